# Made by tools/make_stubs.py.
from __future__ import annotations
import bisect
import collections.abc
import contextlib
import contextvars
import datetime
import functools
import gc
import importlib
import itertools
import json
import logging
import math
import operator
import os
import re
import select
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
import types
import typing
import urllib.parse
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, ParamSpec, TypeVar, cast
from amqpstorm.base import Stateful
from amqpstorm.channel import Channel
from amqpstorm.channel0 import Channel0
from amqpstorm.connection import Connection
from amqpstorm.exception import AMQPChannelError, AMQPConnectionError, AMQPError
from amqpstorm.io import IO
from pamqp import commands, decode, encode
from pamqp import frame as amqp_frame
from pamqp import header as amqp_header
__all__ = ['BrokerError', 'Config', 'Crashed', 'Discard', 'current_task', 'exceptions']
__all__ += ['FailedMessage', 'HeartbeatError', 'InvalidMessage', 'Journal', 'Kuyruk', 'KuyrukError']
__all__ += ['LogContext', 'QueueStats', 'Reject', 'RemoteException', 'ResultTimeout', 'Run']
__all__ += ['SendOptions', 'Shutdown', 'Signal', 'SubTask', 'Task', 'Timeout', 'signals']
__all__ += ['UNSAFE_MODULES', 'Worker', 'WorkerOptions']
__version__ = '1.0.0'
logger = logging.getLogger('kuyruk')
_success_logger = logging.getLogger('kuyruk.success')
P = ParamSpec('P')
R = TypeVar('R')
T = TypeVar('T')
F = TypeVar('F', bound=Callable[..., Any])
MAX_TTL = 4294967295
CONSUMER_TIMEOUT = 1800.0
LEAST_CONSUMER_TIMEOUT = 60.0
CONSUMER_TIMEOUT_HELP = 'Let its task end sooner (max_run_time), or allow more: consumer_timeout in rabbitmq.conf, or for its queue, from RabbitMQ 3.12 on, a policy with consumer-timeout (milliseconds)'
MAX_TASK_NAME = 1000
MAX_QUEUE_NAME = 230
QUIET = 5.0
CLOSE_TIMEOUT = 2.0
TICK = 1.0
UNWRITTEN_BYTES = 1000000
UNCONFIRMED_BYTES = 32000000
BATCH_WINDOW = 2000
BATCH_BYTES = 1000000
LONGEST_PAUSE = 1.0
WAITING_LOG_INTERVAL = 60.0
JOINED_WRITES = 65536
REPLY_TEXT = 100000
HEADER_TEXT = 10000
DELAY_QUEUE_LEASE = 600.0
DELAY_QUEUE_RENEWAL = 60.0
LOOK = 0.02
PREFETCH_SECONDS = 0.02
MAX_PREFETCH = 1000
HANDBACK_AFTER = 0.02
LONGEST_PATIENCE = 1.0
STALLED = 5.0
LONGEST_QUEUE_PAUSE = 5.0
LONGEST_FORWARD_PAUSE = 10.0
MAX_KEPT = 500
LARGE_REPLY = 100000
DELIVERY_LIMIT = 1000000
REFUSAL_PAUSE = 0.2
FIRST_SHARE = 10
MAX_SHARE, SHARE_BYTES = (500, 4000000)
FIRST_RECONNECT = 0.1

class KuyrukError(Exception):
    ...

class _Interruption:

    def __init__(self, *args: object) -> None:
        run = current_task()
        cause = None if run is None else run._cause
        if run is not None and (not args) and (type(cause) is cast(Any, type(self))):
            args = cast(BaseException, cause).args
            run._on_landed()
        super().__init__(*args)

class Reject(KuyrukError):

    def __init__(self, *args: object, delay: float | None=None) -> None:
        _check('delay', delay)
        super().__init__(*args)
        self.delay = delay

class Discard(_Interruption, KuyrukError):
    ...

class Timeout(_Interruption, KuyrukError):
    ...

class ResultTimeout(KuyrukError):
    ...

class RemoteException(KuyrukError):

    def __init__(self, type_: str, value: str, traceback: str | None) -> None:
        super().__init__(type_, value, traceback)
        self.type = type_
        self.value = value
        self.traceback = traceback
        if traceback:
            self.add_note(f'In the worker:\n{traceback}')

    def __str__(self) -> str:
        ...

class BrokerError(KuyrukError, ConnectionError):

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.unconfirmed: list[SubTask] = []

class InvalidMessage(KuyrukError):
    ...

class Crashed(KuyrukError):
    ...

class HeartbeatError(_Interruption, BaseException):

    def __init__(self, exc_info: Any=None) -> None:
        super().__init__(*(() if exc_info is None else (exc_info,)))
        self.exc_info = self.args[0] if self.args else None

    def __str__(self) -> str:
        ...

    def __repr__(self) -> str:
        ...

class Shutdown(_Interruption, BaseException):
    ...

def _make_module(name: str, is_member: Callable[[Any], bool], doc: str) -> types.ModuleType:
    ...
exceptions = _make_module('exceptions', lambda v: isinstance(v, type) and issubclass(v, BaseException) and (v.__module__ == __name__), 'The exceptions of kuyruk.')

def _is_for_program(error: BaseException) -> bool:
    ...

def _log(level: int, text: str, *args: Any, **options: Any) -> None:
    ...
_records: collections.deque[logging.LogRecord] = collections.deque(maxlen=1000)
_log_token = threading.Lock()

def _log_aside(level: int, text: str, *args: Any, error: BaseException | None=None, extra: dict[str, Any] | None=None) -> None:
    ...

def _write_records() -> None:
    ...

def _wait_for_log() -> None:
    ...

class _Receiver(NamedTuple):
    function: Callable[[], Callable[..., Any] | None]
    sender: Callable[[], Any] | None

class Signal:

    def __init__(self, name: str, raises: bool=False) -> None:
        self.name = name
        self.raises = raises
        self.receivers: tuple[_Receiver, ...] = ()

    def __repr__(self) -> str:
        ...

    def connect(self, f: F, sender: Any=None, weak: bool=False) -> F:
        ...

    def connect_via(self, sender: Any, weak: bool=False) -> Callable[[F], F]:
        ...

    def disconnect(self, f: Callable[..., Any], sender: Any=None) -> None:
        ...

    def send(self, sender: Any=None, /, **kwargs: Any) -> list[tuple[Callable[..., Any], Any]]:
        ...
_signals_change = threading.Lock()
_SIGNALS_HELP = 'The signals of kuyruk, each a `Signal`. Their sender is the `Kuyruk`.\n\nThose about a task are sent with task=, args= and kwargs= (the arguments of its function), those\nabout a worker with worker=, and both with the further arguments that are named here.\n\n    task_init        A task was made. With task= only.\n    task_presend     A message is about to be sent. With description=, a dict: a receiver may change\n                     it. Its "headers" are the message\'s AMQP headers; all else is in its body.\n    task_postsend    The broker has the message. With description=.\n    task_preapply    A task is about to run, with all tries.\n    task_prerun      A try begins.\n    task_postrun     A try is over.\n    task_success     The task has returned.\n    task_error       A try has raised. With exc_info=.\n    task_failure     The last try has raised. With exc_info=.\n    task_postapply   All tries are over.\n    worker_failure   A message has failed in a worker, and that will be logged. With queue=,\n                     description= and exc_info=; with the three of a task if that was found.\n    worker_init      A worker was made.\n    worker_start     A worker starts.\n    worker_shutdown  A worker has stopped.\n\nWhat a receiver of task_presend or task_prerun raises is the send\'s or the task\'s exception. What\nanother raises is logged.\n'
task_init = Signal('task_init')
task_presend = Signal('task_presend', raises=True)
task_postsend = Signal('task_postsend')
task_preapply = Signal('task_preapply')
task_postapply = Signal('task_postapply')
task_prerun = Signal('task_prerun', raises=True)
task_postrun = Signal('task_postrun')
task_success = Signal('task_success')
task_error = Signal('task_error')
task_failure = Signal('task_failure')
worker_failure = Signal('worker_failure')
worker_init = Signal('worker_init')
worker_start = Signal('worker_start')
worker_shutdown = Signal('worker_shutdown')
_Signal = Signal

class _SignalsModule(types.ModuleType):
    Signal: type[_Signal]
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> _Signal:
            ...
_is_signal = lambda v: v is Signal or isinstance(v, Signal)
signals = cast(_SignalsModule, _make_module('signals', _is_signal, _SIGNALS_HELP))
_HOST = '\\s*(?:\\[([^]\\s/@]+)]|([^][:\\s/@]+)|((?=[^,\\s]*::|(?:\\w*:){6})[0-9a-fA-F.:]+(?:%\\w+)?))(?::([^]:\\s]*))?\\s*'
_URL = '(amqps?)://(?:([^]/?#[:]*)(?::([^]/?#[]*))?@)?([^/?#@]*)(?:/([^?#@]*))?'

def _parse_hosts(hosts: str, default_port: int=5672) -> list[tuple[str, int]]:
    ...

def _parse_url(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    ...

def _is_table(value: Any) -> bool:
    ...

def _is_amqp_table(value: Any) -> bool:
    ...

def _is_number(value: Any) -> bool:
    ...

def _is_ssl_options(options: Any) -> bool:
    ...

def _level_name(level: str) -> str:
    ...
_KINDS: dict[str, tuple[str, Callable[[Any], object]]] = {'text': ('a string', lambda v: isinstance(v, str) and (not re.search('[\ud800-\udfff]', v))), 'flag': ('True or False', lambda v: isinstance(v, bool)), 'table': ('a dict with strings as keys', _is_amqp_table), 'whole': ('a whole number', lambda v: type(v) is int), 'seconds': ('seconds', _is_number), 'load': ('a load average, 0 or more, or -1', lambda v: _is_number(v) and (v >= 0 or v == -1)), 'hosts': ("'host', 'host:port', or several with commas", _parse_hosts), 'url': ("'amqp://user:password@host:port/vhost'", _parse_url), 'ssl': ("a dict of amqpstorm's ssl_options", _is_ssl_options), 'level': ("a level of logging's, as 'INFO'", _level_name)}

class _Rule(NamedTuple):
    kind: str
    least: float = -math.inf
    most: float = math.inf
_MOST = 2147483647
_RULES = {name: _Rule(*rule) for names, *rule in (('RABBIT_HOST', 'hosts'), ('RABBIT_URL', 'url?'), ('RABBIT_PORT', 'whole', 1, 65535), ('RABBIT_HEARTBEAT', 'whole', 0, 65535), ('RABBIT_USER RABBIT_PASSWORD RABBIT_VIRTUAL_HOST', 'text'), ('RABBIT_SSL RABBIT_CONFIRM EAGER', 'flag'), ('RABBIT_SSL_OPTIONS', 'ssl'), ('RABBIT_CONNECT_TIMEOUT RABBIT_PUBLISH_TIMEOUT', 'seconds', 0.001, _MOST), ('RABBIT_IDLE_DURATION WORKER_RECONNECT_INTERVAL', 'seconds', 0.001), ('QUEUE_ARGUMENTS', 'table'), ('WORKER_THREADS', 'whole', 1, 10000), ('WORKER_MAX_CRASHES', 'whole', 1, _MOST), ('WORKER_PROCESSES', 'whole', 1, 1000), ('WORKER_PREFETCH', 'whole?', 1, 65535), ('WORKER_MAX_LOAD', 'load?'), ('WORKER_GRACE timeout', 'seconds', 0), ('WORKER_MAX_RUN_TIME WORKER_SHUTDOWN_TIMEOUT max_run_time wait_result', 'seconds?', 0), ('WORKER_PRIORITY', 'whole?', -_MOST - 1, _MOST), ('WORKER_LOGGING_LEVEL', 'level'), ('retry', 'whole', 0, _MOST), ('max_failures', 'whole?', 1, _MOST), ('fail_delay reject_delay', 'seconds', 0, MAX_TTL // 1000), ('FAILED_TTL max_fail_delay message_ttl delay', 'seconds?', 0, MAX_TTL // 1000), ('host id', 'text?'), ('priority', 'whole?', 0, 255), ('headers', 'table?')) for name in names.split()}
_SECRETS = ('RABBIT_PASSWORD', 'RABBIT_URL', 'RABBIT_SSL_OPTIONS')

def _require(name: str, value: Any, kind: type, how: str='') -> None:
    ...

def _check(name: str, value: Any, called: str='') -> None:
    ...

def _shown(name: str, value: Any) -> str:
    ...
_KUBERNETES = '(?s)(.*_)?(SERVICE_HOST|SERVICE_PORT(_\\w+)?|PORT_\\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|(.*_)?PORT=(tcp|udp|sctp)://.*'
_UNREAD_KEYS = {'RABBIT_READ_TIMEOUT': 'RABBIT_PUBLISH_TIMEOUT', 'RABBIT_WRITE_TIMEOUT': 'RABBIT_PUBLISH_TIMEOUT', 'TCP_USER_TIMEOUT': 'RABBIT_HEARTBEAT'}

@functools.cache
def _warn_of_unread_key(key: str) -> None:
    ...

def _did_you_mean(word: str, known: Iterable[str], likeness: float) -> str:
    ...

def _check_names(function: str, options: Iterable[str], known: Sequence[str]) -> None:
    ...

class Config:
    RABBIT_HOST: str = 'localhost'
    RABBIT_PORT: int = 5672
    RABBIT_USER: str = 'guest'
    RABBIT_PASSWORD: str = 'guest'
    RABBIT_VIRTUAL_HOST: str = '/'
    RABBIT_URL: str | None = None
    RABBIT_SSL: bool = False
    RABBIT_SSL_OPTIONS: dict[str, Any] = {}
    RABBIT_HEARTBEAT: int = 60
    RABBIT_CONNECT_TIMEOUT: float = 5
    RABBIT_PUBLISH_TIMEOUT: float = 10
    RABBIT_CONFIRM: bool = True
    RABBIT_IDLE_DURATION: float = 60
    QUEUE_ARGUMENTS: dict[str, Any] = {}
    EAGER: bool = False
    FAILED_TTL: float | None = 604800
    WORKER_THREADS: int = 8
    WORKER_PROCESSES: int = 1
    WORKER_PREFETCH: int | None = None
    WORKER_MAX_LOAD: float | None = None
    WORKER_MAX_RUN_TIME: float | None = None
    WORKER_GRACE: float = 5
    WORKER_SHUTDOWN_TIMEOUT: float | None = None
    WORKER_RECONNECT_INTERVAL: float = 5
    WORKER_PRIORITY: int | None = None
    WORKER_MAX_CRASHES: int = 3
    WORKER_LOGGING_LEVEL: str = 'INFO'

    def __init__(self) -> None:
        for key in filter(str.isupper, _RULES):
            value = getattr(self, key)
            if isinstance(value, dict):
                setattr(self, key, dict(value))
            elif value is not getattr(Config, key):
                setattr(self, key, value)
    if not TYPE_CHECKING:

        def __setattr__(self, key: str, value: Any) -> None:
            ...

    def __repr__(self) -> str:
        ...

    def from_dict(self, d: Mapping[str, Any]) -> None:
        ...

    def from_object(self, obj: Any) -> None:
        ...

    def from_pymodule(self, name: str) -> None:
        ...

    def from_pyfile(self, filename: str) -> None:
        ...

    def from_env_vars(self) -> None:
        ...

    def _from_text(self, key: str, text: str) -> Any:
        ...

    def _with(self, **values: Any) -> Config:
        ...

    def _addresses(self) -> list[tuple[str, int]]:
        ...

    def _connection_options(self) -> dict[str, Any]:
        ...

class _Message(NamedTuple):
    queue: str
    body: bytes
    properties: dict[str, Any]
    arguments: dict[str, Any]
    mandatory: bool = True
    renewal: float = math.inf
    target: tuple[str, dict[str, Any]] | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        ...

class _Description(NamedTuple):
    id: str | None
    module: str
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    whole: dict[str, Any]
_to_json = json.JSONEncoder(allow_nan=False, separators=(',', ':')).encode

def _encode_json(value: Any, what: str) -> bytes:
    ...

def _check_headers(headers: Mapping[str, Any]) -> None:
    ...

@functools.lru_cache(1)
def _facts_about_sender(now: int, pid: int) -> dict[str, Any]:
    ...

class _Ids:

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        ...

    def make(self) -> str:
        ...
_ids = _Ids()

def _decode_json_object(body: bytes) -> dict[str, Any]:
    ...

def _decode_task(body: bytes) -> _Description:
    ...

def _encode_reply(result: Any, error: BaseException | None) -> bytes:
    ...

def _decode_reply(body: bytes) -> Any:
    ...

def _exception_name(error: BaseException) -> str:
    ...

def _text_of(value: object, limit: int, write: Callable[[Any], str]=str) -> str:
    ...

def _task_traceback(error: BaseException) -> types.TracebackType | None:
    ...

def _format_traceback(error: BaseException, limit: int) -> str:
    ...

class _Setting(Generic[T]):

    def __init__(self, change: Callable[[], T], restore: Callable[[T], object]) -> None:
        self._change, self._restore = (change, restore)
        self._begin()
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=self._begin_in_child)

    def _begin(self) -> None:
        ...

    def __enter__(self) -> None:
        ...

    def __exit__(self, *exc_info: object) -> None:
        ...

    def _begin_in_child(self) -> None:
        ...

def _disable_collection() -> bool:
    ...

def _restore_collection(was_enabled: bool) -> None:
    ...
_no_collection = _Setting(_disable_collection, _restore_collection)

def _current_frames() -> dict[int, types.FrameType]:
    ...

def _format_stack(thread: int) -> str:
    ...

def _bounded(text: str, limit: int) -> str:
    ...

def _count(number: int, noun: str) -> str:
    ...

def _milliseconds(seconds: float) -> str:
    ...

def _check_queue_name(queue: str) -> str:
    ...

def _put_off(message: _Message, delay: float, arguments: Mapping[str, Any]) -> _Message:
    ...

def _growing_delay(first: float, most: float | None, failures: int, jitter: float) -> float:
    ...

def _undropped(arguments: dict[str, Any]) -> dict[str, Any]:
    ...

def _is_quorum(arguments: Mapping[str, Any]) -> bool:
    ...

def _derived(arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    ...

def _queue_names(queues: Iterable[str] | str) -> list[str]:
    ...

def _resolve_host(queue: str) -> str:
    ...
UNSAFE_MODULES = {'_frozen_importlib', '_frozen_importlib_external', '_weakrefset', 'bdb', 'concurrent.futures', 'coverage', 'importlib', 'logging', 'queue', 'threading', 'weakref', 'zipimport'}
_HOLD_NO_LOCK = {'Filterer.filter', 'Logger._log', 'Logger.callHandlers', 'Logger.critical', 'Logger.debug', 'Logger.error', 'Logger.exception', 'Logger.findCaller', 'Logger.handle', 'Logger.info', 'Logger.log', 'Logger.makeRecord', 'Logger.warning', '_is_internal_frame'}
_LOOK_AGAIN = 0.001
_SHORT_SWITCH = 1e-05
_GIVE_UP_AGAIN = 0.1
_WATCH_STALLS = 5.0
_APPLY_GRACE = 1.0
_runs: dict[int, Run] = {}

def _set_current(run: Run | None) -> Run | None:
    ...

def _raise_pending() -> None:
    ...

def _call_task(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    ...

def _name_of(f: Callable[..., Any]) -> str:
    ...

def _is_safe(frame: types.FrameType | None) -> bool:
    ...

def _must_not_be_cut(frame: types.FrameType) -> bool:
    ...

def _fresh(value: Any) -> Any:
    ...

def _fresh_arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    ...

class Run:

    def __init__(self, task: Task[..., Any], id: str | None, queue: str | None, redelivered: bool) -> None:
        self.task = task
        self.id = id
        self.queue = queue
        self.redelivered = redelivered
        self.args: Any = ()
        self.kwargs: Any = {}
        self._properties: Any = None
        self.started = time.monotonic()
        self.deadline: float | None = None
        self._cause: BaseException | None = None
        self._interrupted_at = math.inf
        self._hit = False
        self._until_landed: list[Callable[[], None]] = []
        self._given_up = False
        self._place: tuple[float, int, Run] | None = None
        self._is_over = False
        self._waker: Callable[[], object] | None = None
        self._inner: Run | None = None
        self._thread = threading.get_ident()
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def headers(self) -> Mapping[str, Any]:
        ...

    @property
    def failures(self) -> int:
        ...

    @property
    def sent_at(self) -> datetime.datetime | None:
        ...

    def remaining(self) -> float | None:
        ...

    def check(self) -> None:
        ...

    def _interrupt(self) -> None:
        ...

    def _on_landed(self) -> None:
        ...

    def _raise_if_safe(self) -> bool:
        ...

    def _unmask(self) -> None:
        ...

    def _mask(self) -> None:
        ...

    def _call(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        ...

    def _is_decided_by(self, error: BaseException) -> bool:
        ...

    def _try(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        ...

def current_task() -> Run | None:
    ...

def _shorten_switches() -> float:
    ...

def _restore_switches(usual: float) -> None:
    ...
_short_switches = _Setting(_shorten_switches, _restore_switches)

class _Watch:

    def __init__(self, grace: float, give_up: Callable[[Run], object]) -> None:
        self._grace = grace
        self._give_up = give_up
        self._changed = threading.Condition()
        self._schedule: list[tuple[float, int, Run]] = []
        self._serial = itertools.count()
        self._wakes_at = -math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name='kuyruk-watch', daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        ...

    def add(self, run: Run, deadline: float) -> None:
        ...

    def interrupt(self, run: Run, cause: BaseException) -> None:
        ...

    def discard(self, run: Run) -> None:
        ...

    def close(self) -> None:
        ...

    def _put(self, run: Run, due: float) -> None:
        ...

    def _take_out(self, run: Run) -> None:
        ...

    def _loop(self) -> None:
        ...

    def _next_due(self) -> Run | None:
        ...

    def _next_look(self, run: Run, now: float) -> float:
        ...

    def _interrupt_or_give_up(self, run: Run) -> None:
        ...

def _warn_of_stuck(run: Run) -> None:
    ...

def _left(deadline: float) -> float:
    ...

def _interruptible(wait: Callable[[], T], wake: Callable[[], object]) -> T | None:
    ...
_FRAME_HEADER = struct.Struct('>BHI')
_CONTENT_HEADER = struct.Struct('>HHQ')
_ACK_FRAME = struct.Struct('>BHIIQBB')
_PUBLISH_START = struct.pack('>IHB', commands.Basic.Publish.index, 0, 0)
_ACK_START = struct.pack('>I', commands.Basic.Ack.index)
_CANCEL_START = struct.pack('>I', commands.Basic.Cancel.index)
_REPLY_TO = b'amq.rabbitmq.reply-to'
_CONSUME_START = struct.pack('>IHB', commands.Basic.Consume.index, 0, len(_REPLY_TO)) + _REPLY_TO
_DELIVER_START = struct.pack('>I', commands.Basic.Deliver.index)
_HEADERS, _MORE_FLAGS = (8192, 1)

def _marshal(channel: int, *frames: Any) -> bytes:
    ...

def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    ...

def _ack_frame(channel: int, tag: int) -> bytes:
    ...

def _content_frames(channel: int, queue: str, mandatory: bool, properties: bytes, body: bytes, frame_max: int) -> bytes:
    ...

def _renew_frames(channel: int, number: int) -> bytes:
    ...

@functools.lru_cache(1000)
def _layout(flags: int) -> list[tuple[str, int]] | None:
    ...

def _short_string(value: str) -> bytes:
    ...

def _octet(value: int) -> bytes:
    ...
_ENCODERS: dict[str, Callable[[Any], bytes]] = {'headers': encode.field_table, 'timestamp': lambda t: t.to_bytes(8, 'big') if isinstance(t, int) else encode.timestamp(t), 'delivery_mode': _octet, 'priority': _octet}

@functools.lru_cache(1000)
def _order_of(given: tuple[str, ...]) -> tuple[bytes, list[tuple[str, Callable[[Any], bytes]]]]:
    ...

def _encode_properties(properties: Mapping[str, Any]) -> bytes:
    ...

def _decode_properties(payload: bytes) -> Any:
    ...

class _Deliver(NamedTuple):
    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    name: str = 'Basic.Deliver'

def _decode_method(payload: bytes) -> Any:
    ...

class _Declare(commands.Queue.Declare):

    def validate(self) -> None:
        ...

class _Consume(commands.Basic.Consume):

    def validate(self) -> None:
        ...

class _Event:

    def __init__(self) -> None:
        self._is_set = False
        self._until_set = threading.Lock()
        self._until_set.acquire()

    def set(self) -> None:
        ...

    def clear(self) -> None:
        ...

    def wait(self, until: float) -> None:
        ...

def _wait(event: _Event, until: float) -> None:
    ...

class _Changes:

    def __init__(self) -> None:
        self._waiting: set[_Event] = set()

    def __bool__(self) -> bool:
        ...

    def subscribe(self, event: _Event) -> None:
        ...

    def unsubscribe(self, event: _Event) -> None:
        ...

    def notify(self) -> None:
        ...

    def wait_for(self, look: Callable[[], T], until: float, event: _Event | None=None) -> T:
        ...

class _Wakeup:

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False

    def set(self) -> None:
        ...

    def clear(self) -> None:
        ...

    def fileno(self) -> int:
        ...

    def close(self) -> None:
        ...
_readers: set[int] = set()

def _is_reader() -> bool:
    ...
logging.getLogger('amqpstorm.channel0').addFilter(lambda record: not _is_reader())

class _Channel0(Channel0):

    def __init__(self, connection: Any, client_properties: dict[str, Any]) -> None:
        super().__init__(connection, client_properties)
        self._options = connection.parameters

    def on_frame(self, frame_in: Any) -> None:
        ...

    def _means_user(self) -> bool:
        ...

class _PlainConnection(Connection):

    def __init__(self, host: str, port: int, options: dict[str, Any]) -> None:
        super().__init__(host, port=port, lazy=True, **options)
        self._channel0 = _Channel0(self, self.parameters['client_properties'])
        try:
            self.open()
        except BaseException:
            self.set_state(self.CLOSED)
            self.close()
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        ...

    def _wait_for_connection_state(self, state: int=Connection.OPEN, rpc_timeout: float=30) -> None:
        ...
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

def _as_lost(error: BaseException) -> AMQPError:
    ...

def _again(error: AMQPError) -> AMQPError:
    ...

class _Interrupted(AMQPConnectionError):
    ...

class _Connection(Stateful):

    def __init__(self, host: str, port: int, config: Config) -> None:
        super().__init__()
        self.address = f'{host}:{port}'
        self.parameters = Connection(host, port=port, lazy=True, **config._connection_options()).parameters
        self._channel0 = _Channel0(cast(Any, self), self.parameters['client_properties'])
        self.lost: AMQPError | None = None
        self.changes = _Changes()
        self.channels: dict[int, _Channel] = {}
        self._ids = itertools.count(1)
        self._free_ids: collections.deque[int] = collections.deque()
        self._frames: collections.deque[tuple[_Channel | None, bytes]] = collections.deque()
        self.outbox: collections.deque[_Outgoing] = collections.deque()
        self._lock = threading.RLock()
        self._rest = memoryview(b'')
        self._is_full = False
        self._awake = True
        self._buffer = b''
        self._notices: list[_Event] = []
        self._heartbeat = config.RABBIT_HEARTBEAT or math.inf
        self._timeout = config.RABBIT_PUBLISH_TIMEOUT
        self._tick = min(TICK, self._timeout / 16, self._heartbeat / 4, config.RABBIT_IDLE_DURATION / 2)
        self.used_at = time.monotonic()
        self.queues: dict[str, float] = {}
        self.failures: collections.Counter[tuple[str, str]] = collections.Counter()
        self.confirms: _ConfirmChannel | None = None
        self.replies: collections.deque[_ReplyChannel] = collections.deque()
        self.retired: collections.deque[_Channel] = collections.deque()
        self._check_at = self.stepped_at = self.read_at = self.wrote_at = self.moved_at = time.monotonic()
        self._owes_since = math.inf
        self._has_pinged = False
        self._wakeup = _Wakeup()
        self._selector = selectors.DefaultSelector()
        self._socket: socket.socket | None = None
        self._is_tls = bool(self.parameters['ssl'])
        _connections.add(self)

    @classmethod
    def open_first(cls, config: Config) -> _Connection:
        ...

    @property
    def is_blocked(self) -> bool:
        ...

    @property
    def frame_max(self) -> int:
        ...

    def post(self, channel: _Channel | None, data: bytes) -> None:
        ...

    def flush(self) -> None:
        ...

    def enqueue(self, channel: _Channel | None, data: bytes) -> None:
        ...

    def post_soon(self, channel: _Channel, data: bytes) -> None:
        ...

    def flush_soon(self) -> None:
        ...

    def write_frame(self, channel_id: int, frame: Any) -> None:
        ...

    def give_up(self, error: AMQPError) -> None:
        ...

    def add(self, channel: _Channel) -> int:
        ...

    def get_confirms(self) -> _ConfirmChannel | None:
        ...

    def get_replies(self) -> _ReplyChannel | None:
        ...

    def _raise_if_lost(self) -> None:
        ...

    def _has_output(self) -> bool:
        ...

    def _write(self) -> None:
        ...

    def _write_locked(self) -> bool:
        ...

    def _take(self) -> bytes:
        ...

    def _open(self) -> _Connection:
        ...

    def _connect(self) -> socket.socket:
        ...

    def _set_options(self, sock: socket.socket) -> None:
        ...

    def step(self, until: float) -> None:
        ...

    def notify(self, event: _Event) -> None:
        ...

    def _notify(self) -> None:
        ...

    def _receive(self, sock: socket.socket) -> bytes:
        ...

    def _read(self, data: bytes) -> None:
        ...

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        ...

    def remove(self, channel: _Channel) -> None:
        ...

    def _maintain(self) -> None:
        ...

    def _check_broker(self, now: float) -> None:
        ...

    def silence(self) -> float:
        ...

    @property
    def is_silent(self) -> bool:
        ...

    @property
    def is_quiet(self) -> bool:
        ...

    @property
    def no_wait(self) -> list[_Outgoing]:
        ...

    def forget(self) -> None:
        ...

    def _log_failures(self) -> None:
        ...

    def wake(self) -> None:
        ...

    def close(self) -> None:
        ...

    def hang_up(self) -> None:
        ...

    def leave_to_parent(self) -> None:
        ...
_connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
C = TypeVar('C')

def _first_that_answers(config: Config, connect: Callable[[str, int], C]) -> C:
    ...

class _ChannelsExhausted(Exception):
    ...
CH = TypeVar('CH', bound='_Channel')

def _new_channel(connection: _Connection, kind: type[CH], *arguments: Any) -> CH | None:
    ...

class _Channel:

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self.lost: AMQPError | None = None
        self.waiting = _Changes()
        self._awaited: Sequence[str] = ()
        self._answer: Any = None
        self._method: Any = None
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._missing = 0
        self.id = connection.add(self)
        self.begin()

    def begin(self) -> None:
        ...

    @property
    def why_lost(self) -> AMQPError | None:
        ...

    @property
    def waits(self) -> bool:
        ...

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        ...

    def on_method(self, frame: Any) -> None:
        ...

    def on_lost(self) -> None:
        ...

    def forget(self) -> None:
        ...

    def post(self, *frames: Any) -> None:
        ...

    def ping(self) -> None:
        ...

    def request(self, frame: Any, until: float) -> Any:
        ...

    def retire(self) -> None:
        ...

    def close(self) -> None:
        ...

    def on_header(self, payload: bytes) -> None:
        ...

    def on_body(self, payload: bytes) -> None:
        ...

    def on_frame(self, frame: Any) -> None:
        ...

    def _end_content(self) -> None:
        ...

def _declare(connection: _Connection, until: float, **options: Any) -> None:
    ...

def _ensure_queue(connection: _Connection, queue: str, arguments: dict[str, Any], until: float) -> None:
    ...

def _pauses(longest: float) -> Iterator[float]:
    ...

def _keep_running(step: Callable[[], bool]) -> None:
    ...

def _refuses_us(error: BaseException) -> bool:
    ...

class _Keeper:

    def __init__(self, config: Config, publishes: bool) -> None:
        self._config = config
        self._publishes = publishes
        self._idle = config.RABBIT_IDLE_DURATION if publishes else math.inf
        self._longest_pause = LONGEST_PAUSE if publishes else config.WORKER_RECONNECT_INTERVAL
        self._pauses = _pauses(self._longest_pause)
        self.changes = _Changes()
        self.connection: _Connection | None = None
        self.trouble: AMQPError | None = None
        self.refusal: AMQPError | None = None
        self.ended = False
        self.closing = False
        self._wakeup = _Event()
        self._successor: _Connection | None = None
        self._is_probing = False
        self._is_asked = False
        self._was_idle = False
        self._was_connected = False
        self._logged, self._logged_at = ('', -math.inf)
        self._thread = threading.Thread(target=self._run, name='kuyruk-connection', daemon=True)

    def start(self) -> _Keeper:
        ...

    @property
    def usable(self) -> _Connection | None:
        ...

    def connect(self, until: float, ends: Callable[[], object]=lambda: False, event: _Event | None=None) -> _Connection:
        ...

    def _ask(self) -> Any:
        ...

    def close(self) -> None:
        ...

    def _run(self) -> None:
        ...

    def _connect_and_read(self) -> bool:
        ...

    def _open(self) -> _Connection:
        ...

    def _read(self, connection: _Connection) -> None:
        ...

    def _may_close(self, connection: _Connection) -> bool:
        ...

    def _wait_until_wanted(self) -> bool:
        ...

    def _is_wanted(self) -> bool:
        ...

    def _on_trouble(self, error: BaseException, pause: float) -> None:
        ...

    def _probe(self, connection: _Connection) -> None:
        ...

    def _open_successor(self, silent: _Connection) -> None:
        ...
CONFIRMED, RETURNED, REFUSED = ('confirmed', 'returned', 'refused')
LEFT = 'left'

class _Outgoing:
    __slots__ = ('batch', 'channel', 'failure', 'fate', 'is_suspect', 'message', 'properties', 'size', 'tag', 'trouble')

    def __init__(self, message: _Message, batch: _Batch | None) -> None:
        self.message = message
        self.properties = _encode_properties(message.properties)
        self.size = len(message.body) + len(self.properties) + 100
        self.batch = batch
        self.channel: _ConfirmChannel
        self.tag: int | None = None
        self.fate: str | None = None
        self.trouble: str | None = None
        self.failure: str | None = None
        self.is_suspect = False

class _Batch:
    __slots__ = ('done', 'is_cancelled', 'pending', 'reply', 'result_by')

    def __init__(self, result_by: float | None=None) -> None:
        self.result_by = result_by
        self.reply: bytes | None = None
        self.is_cancelled = False
        self.pending = 0
        self.done = _Event()

class _ConfirmChannel(_Channel):

    def __init__(self, connection: _Connection) -> None:
        self._last_tag = 0
        self._oldest_tag = 1
        self.in_flight: dict[int, _Outgoing] = {}
        self._returned: dict[tuple[str, Any], int] = {}
        self.has_refused = False
        self._bytes_written = self._bytes_answered = 0
        self._room = 0
        super().__init__(connection)

    def begin(self) -> None:
        ...

    @property
    def waits(self) -> bool:
        ...

    def on_lost(self) -> None:
        ...

    def forget(self) -> None:
        ...

    def find_room(self) -> AMQPError | bool:
        ...

    def publish(self, messages: Sequence[_Outgoing]) -> None:
        ...

    def encode(self, outgoing: _Outgoing) -> bytes:
        ...

    def on_method(self, frame: Any) -> None:
        ...

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        ...

    def _on_fate(self, outgoing: _Outgoing, fate: str) -> None:
        ...

class _ReplyChannel(_ConfirmChannel):

    def __init__(self, connection: _Connection) -> None:
        self._consumers = 0
        self._batch: _Batch | None = None
        super().__init__(connection)

    def begin(self) -> None:
        ...

    def renew(self) -> None:
        ...

    def publish(self, messages: Sequence[_Outgoing]) -> None:
        ...

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        ...

def _note_trouble(outgoing: _Outgoing, alone: bool) -> bool:
    ...

def _why_no_answer(connection: _Connection) -> str:
    ...

def _windows(messages: Sequence[_Message]) -> Iterator[list[_Message]]:
    ...
APP_CLOSED = 'the application was closed'

class _Publisher:

    def __init__(self, config: Config) -> None:
        self.config = config
        self.begin()
        _publishers.add(self)

    def begin(self) -> None:
        ...

    def send(self, messages: Sequence[_Message], confirm: bool=True) -> None:
        ...

    def call(self, message: _Message, wait_result: float) -> bytes:
        ...

    def close(self) -> None:
        ...

    def _enter(self, work: Callable[..., T], *arguments: Any) -> T:
        ...

    def _send(self, messages: Sequence[_Message], confirm: bool) -> None:
        ...

    def _call(self, message: _Message, wait_result: float) -> bytes:
        ...

    def _deliver(self, messages: list[_Outgoing], batch: _Batch | None, until: float) -> list[_Outgoing]:
        ...

    def _attempt(self, keeper: _Keeper, batch: _Batch | None, messages: list[_Outgoing], until: float, alone: bool=False) -> bool:
        ...

    def _ensure_queues(self, connection: _Connection, messages: list[_Outgoing], until: float) -> list[_Outgoing]:
        ...

    def _wait_for_fates(self, channel: _ConfirmChannel, batch: _Batch, messages: list[_Outgoing], until: float) -> None:
        ...

    def _leave(self, channel: _ConfirmChannel, messages: list[_Outgoing]) -> None:
        ...

    def _release(self, channel: _ConfirmChannel, messages: list[_Outgoing]) -> None:
        ...

    def _make_keeper(self) -> _Keeper:
        ...

    def _get_keeper(self) -> _Keeper:
        ...

    def _error(self, unconfirmed: Sequence[_Outgoing], rest: Sequence[_Message]=()) -> BrokerError:
        ...
_publishers: weakref.WeakSet[_Publisher] = weakref.WeakSet()
_process_id = os.getpid()

def _after_fork_in_child() -> None:
    ...
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork_in_child)
_MAIN = ('__main__', '__mp_main__')

class SendOptions(typing.TypedDict, total=False):
    delay: float | None
    priority: int | None
    headers: Mapping[str, Any] | None
    id: str | None
_SUBTASK_OPTIONS = ('args', 'kwargs', 'host', *SendOptions.__annotations__)
_SEND_OPTIONS = (*_SUBTASK_OPTIONS, 'wait_result', 'message_ttl')

class SubTask(NamedTuple):
    task: Task[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    host: str | None
    delay: float | None = None
    priority: int | None = None
    headers: Mapping[str, Any] | None = None
    id: str | None = None

    def _checked(self) -> SubTask:
        ...

    def _queue(self) -> str:
        ...

    def _describe(self) -> dict[str, Any]:
        ...

    def _message(self, description: dict[str, Any]) -> _Message:
        ...

def _module_of(f: Callable[..., Any]) -> str:
    ...

def _no_module(f: Callable[..., Any], where: str) -> str:
    ...

def _check_function(f: Any) -> None:
    ...
_NOT_RUN: tuple[type, ...] = (functools.partial, contextlib._GeneratorContextManagerBase)
_NOT_RUN += (collections.abc.Generator, collections.abc.Awaitable, collections.abc.AsyncGenerator)

@functools.lru_cache(100)
def _is_yet_to_run(kind: type) -> bool:
    ...

def _require_result(task: Task[..., Any], result: T) -> T:
    ...

class Task(Generic[P, R]):

    def __init__(self, f: Callable[P, R], kuyruk: Kuyruk, queue: str, retry: int=0, max_run_time: float | None=None, fail_delay: float=0, reject_delay: float=0, max_fail_delay: float | None=None, max_failures: int | None=None, throws: type[BaseException] | Iterable[type[BaseException]]=()) -> None:
        _check_function(f)
        _require('kuyruk', kuyruk, Kuyruk)
        self.f = f
        self.kuyruk = kuyruk
        self.queue = _check_queue_name(queue)
        self.retry = retry
        self.max_run_time = max_run_time
        self.fail_delay = fail_delay
        self.reject_delay = reject_delay
        self.max_fail_delay = max_fail_delay
        self.max_failures = max_failures
        classes: Any = throws
        if isinstance(throws, type | str) or not isinstance(throws, Iterable):
            classes = [throws]
        self.throws: tuple[type[BaseException], ...] = tuple(classes)
        self._check_options()
        for name in functools.WRAPPER_ASSIGNMENTS:
            with contextlib.suppress(AttributeError):
                setattr(self, name, getattr(f, name))
        self.__wrapped__ = f
        try:
            self._module, problem = (_module_of(f), '')
        except TypeError as error:
            self._module, problem = (f.__module__, str(error))
        self._problem = problem
        at_top = f.__qualname__ in (f.__name__, f'{f.__name__}.f')
        if not problem and (not (at_top and f.__name__.isidentifier())):
            self._problem = f"{f.__qualname__!r} can't be sent: a worker finds a task by its name in its module, so it must be a named function at the top level (.apply works for any)"
        self.name: str = f'{self._module}.{f.__name__}'
        for key, value in getattr(f, '__dict__', {}).items():
            if not hasattr(self, key):
                setattr(self, key, value)
        if task_init.receivers:
            task_init.send(kuyruk, task=self)

    def _check_options(self) -> None:
        ...

    def __repr__(self) -> str:
        ...

    def __reduce__(self) -> str:
        ...

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        ...

    @typing.overload
    def send_to_queue(self, args: Sequence[Any] | None=(), kwargs: Mapping[str, Any] | None=None, host: str | None=None, wait_result: None=None, message_ttl: float | None=None, **options: typing.Unpack[SendOptions]) -> None:
        ...

    @typing.overload
    def send_to_queue(self, args: Sequence[Any] | None=(), kwargs: Mapping[str, Any] | None=None, host: str | None=None, *, wait_result: float, message_ttl: float | None=None, **options: typing.Unpack[SendOptions]) -> R:
        ...

    @typing.overload
    def send_to_queue(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, host: str | None, wait_result: float, message_ttl: float | None=None, **options: typing.Unpack[SendOptions]) -> R:
        ...

    @typing.overload
    def send_to_queue(self, args: Sequence[Any] | None=(), kwargs: Mapping[str, Any] | None=None, host: str | None=None, wait_result: float | None=None, message_ttl: float | None=None, **options: typing.Unpack[SendOptions]) -> R | None:
        ...

    def subtask(self, args: Sequence[Any] | None=(), kwargs: Mapping[str, Any] | None=None, host: str | None=None, **options: typing.Unpack[SendOptions]) -> SubTask:
        ...

    def apply(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        ...

    def _run(self, run: Run, args: Any, kwargs: Any, watch: _Watch | None) -> R:
        ...

    def _notify(self, signal: Signal, args: Any, kwargs: Any, error: Any=None) -> None:
        ...

    def _announce(self, signal: Signal, description: dict[str, Any]) -> None:
        ...

    def _fits(self, error: BaseException) -> bool:
        ...

    def _send_eagerly(self, subtask: SubTask, wait_result: float | None) -> Any:
        ...

    def _prepare(self, subtask: SubTask) -> tuple[dict[str, Any], _Message]:
        ...
AnyTask = Task[..., Any]
_TASK_OPTIONS = tuple(Task.__init__.__annotations__)[3:-1]
_LEFT_BEHIND = ('expiration', 'user_id', 'cluster_id')
_LEFT_BEHIND_HEADER = 'CC$|BCC$|x-death$|x-(first|last)-death-'
_OUR_HEADERS = ('failed-at', 'failed-on', 'failures', 'queue', 'exception', 'value', 'traceback')

def _is_flat(value: Any, levels: int=50) -> bool:
    ...

def _properties_of_copy(properties: Iterable[tuple[str, Any]], headers: Mapping[str, Any], left_behind: Iterable[str]=_LEFT_BEHIND) -> dict[str, Any]:
    ...

def _queue_counts(channel: Channel, queue: str) -> tuple[int, int] | None:
    ...

def _read_all(channel: Channel, queue: str) -> Iterator[Any]:
    ...

class FailedMessage:

    def __init__(self, app: Kuyruk, source: str, message: Any, channel: Channel) -> None:
        self._app = app
        self._source = source
        self._message = message
        self._channel = channel
        self._is_gone = False
        self._headers: dict[str, Any] = message.properties.get('headers') or {}
        known = {name: self._headers.get(f'x-kuyruk-{name}') for name in _OUR_HEADERS}
        text = {k: None if v is None else _text_of(v, 2 * HEADER_TEXT) for k, v in known.items()}
        self.id: str | None = message.properties.get('message_id') or None
        self.task: str | None = None
        self.args: list[Any] | None = None
        self.kwargs: dict[str, Any] | None = None
        with contextlib.suppress(InvalidMessage):
            task = _decode_task(message._body)
            self.id, self.task = (task.id or self.id, f'{task.module}.{task.function}')
            self.args, self.kwargs = (task.args, task.kwargs)
        self.failed_at = text['failed-at']
        self.failed_on = text['failed-on']
        times, queue = (known['failures'], known['queue'])
        self.failures: int | None = times if type(times) is int else None
        self.queue: str = queue if queue and isinstance(queue, str) else source
        self.exception = text['exception']
        self.value = text['value']
        self.traceback = text['traceback']

    def __repr__(self) -> str:
        ...

    def requeue(self) -> None:
        ...

    def delete(self) -> None:
        ...

    @contextlib.contextmanager
    def _held(self) -> Iterator[Any]:
        ...

    def _identity(self) -> Any:
        ...

    def _ours(self) -> dict[str, Any]:
        ...

class QueueStats(NamedTuple):
    waiting: int | None
    consumers: int | None
    failed: int

class WorkerOptions(typing.TypedDict, total=False):
    threads: int | None
    prefetch: int | None
    max_load: float | None
    max_run_time: float | None
    grace: float | None
    shutdown_timeout: float | None
    reconnect_interval: float | None
    priority: int | None
    max_crashes: int | None

class LogContext(logging.Filter):

    def filter(self, record: logging.LogRecord) -> bool:
        ...

class Kuyruk:
    Reject: ClassVar = Reject
    Discard: ClassVar = Discard

    def __init__(self, config: Config | None=None) -> None:
        self.extensions: dict[str, Any] = {}
        self.packages: set[str] = set()
        self._tasks: dict[str, AnyTask] = {}
        self._queues: dict[str, None] = {}
        self._longest: dict[str, float] = {}
        self._publisher = _Publisher(Config())
        self.config = self._publisher.config if config is None else config
        weakref.finalize(self, self._publisher.close)

    @property
    def config(self) -> Config:
        ...

    @config.setter
    def config(self, config: Config) -> None:
        ...

    def __enter__(self) -> Kuyruk:
        ...

    def __exit__(self, *exc_info: object) -> None:
        ...

    def close(self) -> None:
        ...

    @typing.overload
    def task(self, queue: Callable[P, R]) -> Task[P, R]:
        ...

    @typing.overload
    def task(self, queue: str='kuyruk', *, retry: int=0, max_run_time: float | None=None, fail_delay: float=0, reject_delay: float=0, max_fail_delay: float | None=None, max_failures: int | None=None, throws: type[BaseException] | Iterable[type[BaseException]]=()) -> Callable[[Callable[P, R]], Task[P, R]]:
        ...

    def remote(self, name: str, queue: str='kuyruk') -> AnyTask:
        ...

    def _add(self, task: AnyTask) -> None:
        ...

    def send_tasks_to_queue(self, subtasks: Iterable[SubTask]) -> None:
        ...

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        ...

    @contextlib.contextmanager
    def channel(self) -> Iterator[Channel]:
        ...

    def worker(self, queues: Iterable[str] | None=None, **options: typing.Unpack[WorkerOptions]) -> Worker:
        ...

    def failed_messages(self, queue: str) -> Generator[FailedMessage, None, None]:
        ...

    def _iterate_failed(self, queue: str) -> Generator[FailedMessage, None, None]:
        ...

    def queue_stats(self, queues: Iterable[str] | None=None) -> dict[str, QueueStats]:
        ...

    def _queue_arguments(self, queue: str) -> dict[str, Any]:
        ...

    def _find_task(self, module: str, function: str) -> AnyTask:
        ...

class _Verdict(NamedTuple):
    tally: str
    action: Literal['ack', 'requeue', 'fail', 'leave']
    reply: bool
    delay: float = 0
_BACK = _Verdict('requeued', 'requeue', reply=False)
_DONE = _Verdict('succeeded', 'ack', reply=True)

def _decide(task: AnyTask | None, error: BaseException | None, fits: bool=True, lost: bool=False, failures: int=0, jitter: float=0) -> _Verdict:
    ...

class _Settlement(NamedTuple):
    reply: _Message | None
    copy: _Message | None
    frame: Literal['ack', 'requeue', 'reject', 'leave']
_NOTHING_LEFT = _Settlement(None, None, 'leave')

def _plan(delivery: _Delivery, verdict: _Verdict, result: Any, error: BaseException | None, config: Config) -> _Settlement:
    ...

def _reply_message(delivery: _Delivery, result: Any, error: BaseException | None) -> _Message:
    ...

def _forwarded(delivery: _Delivery, queue: str, headers: dict[str, Any], arguments: dict[str, Any]) -> _Message:
    ...

def _plain_copy(message: _Message) -> _Message:
    ...

def _headers_of(properties: Any) -> Mapping[str, Any]:
    ...

def _failures_in(headers: Mapping[str, Any] | None) -> int:
    ...

def _failure_headers(delivery: _Delivery, error: BaseException) -> dict[str, Any]:
    ...
WAITING, RUNNING = ('waiting', 'running')
CLAIMED, KEPT = ('claimed', 'kept')
SETTLED, LOST = ('settled', 'lost')

class _Delivery:
    __slots__ = ('arrived_at', 'body', 'cause', 'channel', 'consumer', 'properties', 'redelivered', 'run', 'settled_at', 'settlement', 'state', 'tag', 'task', 'thread')

    def __init__(self, channel: _ConsumerChannel, consumer: _Consumer, method: Any, properties: Any, body: bytes) -> None:
        self.channel = channel
        self.consumer = consumer
        self.state = WAITING
        self.arrived_at = time.monotonic()
        self.settled_at = math.inf
        self.tag: int = method.delivery_tag
        self.redelivered: bool = method.redelivered
        self.properties = properties
        self.body = body
        self.task: _Description | None = None
        self.run: Run | None = None
        self.thread = 0
        self.cause: BaseException | None = None
        self.settlement: _Settlement

    def __str__(self) -> str:
        ...

    def __repr__(self) -> str:
        ...

    @property
    def queue(self) -> str:
        ...

    @property
    def key(self) -> str:
        ...

    @property
    def headers(self) -> Mapping[str, Any]:
        ...

    @property
    def failures(self) -> int:
        ...

    @property
    def reply_to(self) -> str | None:
        ...

    @property
    def is_only_copy(self) -> bool:
        ...

    @property
    def is_lost(self) -> bool:
        ...

    @property
    def extra(self) -> dict[str, Any]:
        ...

    def send_frame(self, frame: str) -> None:
        ...

class _Consumer:
    __slots__ = ('held', 'prefetch')

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.held = 0

class _ConsumerChannel(_Channel):

    def __init__(self, connection: _Connection, queue: str, config: Config, deliver: Callable[[_Delivery], object], on_trouble: Callable[[_ConsumerChannel], object]) -> None:
        self.queue = queue
        self._config = config
        self._deliver = deliver
        self._on_trouble = on_trouble
        self.consumers: dict[str, _Consumer] = {}
        self._cancelled: list[_Consumer] = []
        self.is_orphaned = False
        self.kept = 0
        self._serial = itertools.count(1)
        super().__init__(connection)

    @property
    def capacity(self) -> int:
        ...

    @property
    def is_full(self) -> bool:
        ...

    def add(self, prefetch: int, is_last: bool=False) -> None:
        ...

    def cancel(self, tags: Iterable[str]) -> None:
        ...

    def _ask(self, frame: Any) -> None:
        ...

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        ...

    def on_method(self, frame: Any) -> None:
        ...

    def on_lost(self) -> None:
        ...

def _patience(stalled: float) -> float:
    ...

class _Prefetch:

    def __init__(self, threads: int) -> None:
        self.size = 0
        self._least = threads
        self._rate = 0.0
        self._looked_at = -math.inf
        self._ended = 0

    def look(self, now: float, ended: int, waited: float, patience: float) -> int:
        ...

class Journal:
    crashes: Mapping[str, tuple[int, int]] = types.MappingProxyType({})

    def begin(self, id: str) -> None:
        ...

    def end(self, id: str) -> None:
        ...

    def count(self, id: str) -> tuple[int, int]:
        ...

    def clear(self, id: str) -> None:
        ...

class _Settler:

    def __init__(self, publisher: _Publisher, on_kept: Callable[[_Delivery], object], on_settled: Callable[[_Delivery], object]) -> None:
        self._publisher = publisher
        self._on_kept = on_kept
        self._on_settled = on_settled
        self._changed = threading.Condition(threading.Lock())
        self._jobs: collections.deque[Callable[[], object]] = collections.deque()
        self._kept: dict[str, tuple[float, Iterator[float], collections.deque[_Delivery]]] = {}
        self.count = 0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name='kuyruk-settler', daemon=True)

    def start(self) -> None:
        ...

    @property
    def healthy(self) -> bool:
        ...

    def settle(self, delivery: _Delivery, settlement: _Settlement) -> None:
        ...

    def _send(self, delivery: _Delivery) -> None:
        ...

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        ...

    def do(self, job: Callable[[], object]) -> None:
        ...

    def close(self) -> None:
        ...

    def drop(self, is_lost: Callable[[_Delivery], bool]) -> None:
        ...

    def _reply(self, message: _Message) -> None:
        ...

    def _try_to_send(self, message: _Message) -> BaseException | None:
        ...

    def _keep(self, delivery: _Delivery, queue: str, error: object) -> None:
        ...

    def _loop(self) -> None:
        ...

    def _step(self) -> bool:
        ...

    def _retry(self, queue: str) -> None:
        ...
_TALLIES = ('received', 'succeeded', 'failed', 'timed_out', 'rejected', 'discarded', 'requeued', 'lost')

class _Pool:

    def __init__(self, app: Kuyruk, config: Config, publisher: _Publisher, notify: Callable[[], object], on_failure: Callable[..., object]) -> None:
        self._app = app
        self._config = config
        self._notify = notify
        self._on_failure = on_failure
        self._settler = _Settler(publisher, self._on_kept, self._on_settled)
        self.journal = Journal()
        arguments = config.QUEUE_ARGUMENTS
        self._counts_for_quorum = _is_quorum(arguments) and 'x-delivery-limit' not in arguments
        self.stopping = False
        self._this_thread = threading.local()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: collections.deque[_Delivery] = collections.deque()
        self._quarantine: collections.deque[_Delivery] = collections.deque()
        self._suspect: _Delivery | None = None
        self.running: dict[_Delivery, None] = {}
        self.given_up: dict[_Delivery, BaseException] = {}
        self._keys: dict[str, tuple[_Delivery, collections.deque[_Delivery]]] = {}
        self._loops = 0
        self._idle = 0
        self._woken = False
        self._closed = False
        self.held = 0
        self.ended = 0
        self._began_at = -math.inf
        self.full: set[_ConsumerChannel] = set()
        self._tallies = dict.fromkeys(_TALLIES, 0)

    def start(self) -> None:
        ...

    def close(self) -> None:
        ...

    @contextlib.contextmanager
    def needs_this_thread(self) -> Iterator[None]:
        ...

    @property
    def is_this_thread_needed(self) -> bool:
        ...

    @property
    def stats(self) -> dict[str, Any]:
        ...

    @property
    def healthy(self) -> bool:
        ...

    @property
    def stuck(self) -> int:
        ...

    @property
    def unfinished(self) -> list[_Delivery]:
        ...

    @property
    def has_waiting(self) -> bool:
        ...

    def add(self, delivery: _Delivery) -> None:
        ...

    def interrupt(self, make_cause: Callable[[], BaseException], which: Callable[[_Delivery], bool]) -> int:
        ...

    def on_lost(self, channel: _ConsumerChannel, make_cause: Callable[[], BaseException]) -> None:
        ...

    def oldest(self, channel: _ConsumerChannel) -> _Delivery | None:
        ...

    def hand_back(self) -> None:
        ...

    def hand_back_surplus(self, kept: int) -> None:
        ...

    def _requeue(self, deliveries: Collection[_Delivery]) -> None:
        ...

    def _send_back(self, delivery: _Delivery) -> None:
        ...

    def waited(self, now: float) -> tuple[float, float]:
        ...

    def take_full(self) -> set[_ConsumerChannel]:
        ...

    def _queues(self) -> list[collections.deque[_Delivery]]:
        ...

    def _wake_one(self) -> None:
        ...

    def _start_loop(self) -> None:
        ...

    def _loop(self) -> None:
        ...

    def _next(self, ended: _Delivery | None) -> _Delivery | None:
        ...

    def _end(self, delivery: _Delivery) -> None:
        ...

    def _take(self) -> _Delivery | None:
        ...

    def _handle(self, delivery: _Delivery) -> None:
        ...

    def _admit(self, delivery: _Delivery) -> bool:
        ...

    def _begin(self, delivery: _Delivery, run: Run) -> bool:
        ...

    def _conclude(self, delivery: _Delivery, task: AnyTask | None, result: Any, error: BaseException | None) -> None:
        ...

    def _settle(self, delivery: _Delivery, task: AnyTask | None, result: Any, error: BaseException | None, state: str) -> _Verdict | None:
        ...

    def _settle_as_failed(self, delivery: _Delivery, defect: BaseException) -> None:
        ...

    def _on_kept(self, delivery: _Delivery) -> None:
        ...

    def _on_settled(self, delivery: _Delivery) -> None:
        ...

    def _log_success(self, delivery: _Delivery, verdict: _Verdict, seconds: float) -> None:
        ...

    def _log_error(self, delivery: _Delivery, error: BaseException, verdict: _Verdict) -> None:
        ...

    def _give_up(self, run: Run) -> None:
        ...

    def give_up(self, delivery: _Delivery, cause: BaseException) -> None:
        ...

    def _settle_given_up(self, delivery: _Delivery, cause: BaseException) -> None:
        ...
_unless_closed = contextlib.suppress(AMQPChannelError)
_WORKER_OPTIONS = tuple(WorkerOptions.__annotations__)

class Worker:

    def __init__(self, app: Kuyruk, queues: Iterable[str] | None=None, **options: typing.Unpack[WorkerOptions]) -> None:
        _check_names('Worker()', options, ('queues', *_WORKER_OPTIONS))
        _require('app', app, Kuyruk)
        self.app = app
        values = {f'WORKER_{name.upper()}': value for name, value in options.items()}
        for name, key in zip(options, values, strict=True):
            if values[key] is not None:
                _check(key, values[key], name)
        self._config = app.config._with(**values)
        self.queues = _queue_names(app._queues if queues is None else queues)
        self.queues = self.queues or _queue_names(app._queues or 'kuyruk')
        self.aborted = 0
        self.on_change: Callable[[], object] = lambda: None
        self.error: BaseException | None = None
        self._process_id = os.getpid()
        self._began = threading.Lock()
        self._ended = threading.Event()
        self._interrupt_times = [math.inf]
        self._publisher = _Publisher(self._config)
        self._keeper = _Keeper(self._config, publishes=False)
        self._pool = _Pool(app, self._config, self._publisher, self._on_pool_change, self._signal_failure)
        self._wakeup = _Event()
        self._supervisor = threading.Thread(target=self._run, name='kuyruk-supervisor', daemon=True)
        self._channels: dict[str, _ConsumerChannel] = {}
        self._missing: dict[str, tuple[float, Iterator[float]]] = {}
        self._reported: dict[str, str] = {}
        self._troubled: collections.deque[_ConsumerChannel] = collections.deque()
        self._paused = False
        is_single = app.config.QUEUE_ARGUMENTS.get('x-single-active-consumer')
        self._adjusts = self._config.WORKER_PREFETCH is None and (not is_single)
        self._prefetch = _Prefetch(self._config.WORKER_THREADS)
        self._adjust_at = -math.inf
        self._looks_soon = False
        self._grown: set[_ConsumerChannel] = set()
        self._shrunk: set[_ConsumerChannel] = set()
        self._signal(worker_init)

    def __enter__(self) -> Worker:
        ...

    def __exit__(self, *exc_info: object) -> None:
        ...

    def start(self) -> None:
        ...

    def run(self) -> None:
        ...

    def stop(self, timeout: float | None=None, wait: bool=True) -> None:
        ...

    def join(self, timeout: float | None=None) -> bool:
        ...

    @property
    def journal(self) -> Journal:
        ...

    @journal.setter
    def journal(self, journal: Journal) -> None:
        ...

    @property
    def healthy(self) -> bool:
        ...

    @property
    def stats(self) -> dict[str, Any]:
        ...

    def drop(self, id: str | None=None) -> int:
        ...

    def _frames(self) -> dict[int, types.FrameType]:
        ...

    def _run(self) -> None:
        ...

    def _supervise(self) -> bool:
        ...

    def _consume(self, connection: _Connection) -> None:
        ...

    def _next_look(self) -> float:
        ...

    def _subscribe(self, connection: _Connection, queue: str) -> None:
        ...

    def _on_channel_trouble(self, channel: _ConsumerChannel) -> None:
        ...

    def _give_up_troubled(self) -> None:
        ...

    def _is_gone(self, channel: _ConsumerChannel) -> bool:
        ...

    def _on_queue_trouble(self, queue: str, what: str, why: AMQPError) -> None:
        ...

    def _give_up(self, channel: _ConsumerChannel, why: AMQPError) -> None:
        ...

    def _on_lost(self, error: AMQPError) -> None:
        ...

    def _log_consumer_timeout(self, oldest: _Delivery, error: str, age: float) -> None:
        ...

    def _signal(self, signal: Signal, **facts: Any) -> None:
        ...

    def _signal_failure(self, queue: str, description: _Description | None, task: AnyTask | None, error: BaseException) -> None:
        ...

    def _on_pool_change(self) -> None:
        ...

    def _notify_owner(self) -> None:
        ...

    def _should_stop(self) -> bool:
        ...

    def _first_prefetch(self) -> int:
        ...

    def _adjust_prefetch(self) -> None:
        ...

    def _shrink(self, size: int) -> None:
        ...

    def _grow(self, size: int) -> None:
        ...

    def _pause_or_resume(self) -> None:
        ...

    def _drain(self) -> None:
        ...

    def _wait_for_running(self, get_end: Callable[[], float]) -> bool:
        ...

    def _end(self) -> None:
        ...

    def _close_connection(self) -> None:
        ...
