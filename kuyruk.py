"""Kuyruk: a task queue on RabbitMQ in one file, with one dependency (amqpstorm).

    import kuyruk                               # tasks.py

    app = kuyruk.Kuyruk()

    @app.task(queue="sums", retry=2, max_run_time=30)
    def add(a, b):
        return a + b

    >>> add(1, 2)                                               # send; returns when the broker has it
    >>> add.send_to_queue(args=(1, 2), wait_result=5)           # send, and wait for the answer
    3
    $ python -m kuyruk_worker tasks                             # run them


The threads, and what each owns
===============================

      your threads              worker
      ------------              ---------------------------------------------------------
      task(...)                 supervisor                  pool threads 1..N
          |   ^                 owns: its connection,       own: one delivery each
    order |   | done            consumers, stop             run, reply, settle or forward
          v   |                     |      ^                     ^    |         |
      sender                        |      '------- acks --------|----'         v
      owns: its connection          '---------- deliveries ------'           sender
          |   ^                     ^                                     (the worker's)
          v   |                     |                                           |
      ============= RabbitMQ: queue ==> delivery ==> unacked ==> gone ==================

Each connection has one owner: the one thread that reads it, writes it, and keeps its state, without locks (a sender's
may be lent to another). It waits in `_Link.pump` for the socket, for a heartbeat that is due, or to be woken
(`_Wakeup`).

*Your threads* make an order of what they send, and wait for it on an event of its own, never longer than their
deadline, whatever the sender is doing.
*A sender* (kuyruk-sender; one for each application that sends, and one for each worker) takes orders, connects,
declares, publishes, matches confirms and replies, and sends again what was on its way when the connection was
lost, and what a queue has refused. It ends when idle (RABBIT_IDLE_DURATION). While it has nothing to do, the thread
that sends next *leads*: it uses the connection in the sender's place, until its order is done or others send, too.
With RABBIT_CONFIRM=False nobody waits for an order, as long as the sender is connected and few orders wait.
*The supervisor* (kuyruk-supervisor) connects, consumes, hands deliveries to the pool, writes the pool's
acknowledgements, decides how many messages to hold (`_Spare`), reconnects, pauses, drains. It ends after a stop.
*A pool thread* (kuyruk-pool_N) decodes its delivery, finds the task, runs it, decides what becomes of the message,
and settles it. It waits for the sender when it replies, or forwards a message (failed, delayed). Then it takes what
waits, or waits a moment for what comes, before it goes back to its `ThreadPoolExecutor`.
*The watch* (kuyruk-watch) owns the schedule of interruptions. It waits for the next deadline, or
for an interruption that another thread orders, raises it in the task's thread as soon as that is at
a safe point, and gives up what still runs WORKER_GRACE later. It ends with the worker (or with
`Task.apply`).
*A settler* (kuyruk-settler) settles the message of one run that was given up, as its pool thread would have done,
and ends. Nobody waits for that pool thread any more; another has taken its place.

    lock              guards                                        while holding it
    ----------------  --------------------------------------------  -------------------------
    _Publisher._lock  which sender takes orders, and its end        a thread may be started
    _Sender._helm     its connection: who has it is the owner       the broker is waited for
    _Pool._lock       what waits, runs, is parked or stuck          a thread may be started
    _Watch._changed   when to look at which run                     nothing
    Run._gate         whether the task can be interrupted now       an exception may be set

The life of a delivery. The supervisor reads it. A free pool thread takes it, unless it has been handed back (by a
stop, by a pause, or because it waited too long while another worker may be free), runs its task, and claims it:
whoever claims a delivery settles it, and one that is given up is claimed by that. When its connection is lost it isn't
ours any more: what runs is interrupted (HeartbeatError), nothing is settled, and the broker delivers it again; a
message that still runs here isn't run a second time beside itself. The reply is out before the acknowledgement, and
the copy of a forwarded message is confirmed before it.

**At least once**: a worker that dies between the work and the acknowledgement, or a sender that loses its
connection before the confirm and sends again, makes a task run twice.

The order of a stop. The consumers are cancelled: nothing new comes. What hasn't begun goes back: another worker can
have it at once. What runs ends, or is interrupted. Then the pool, the sender, and last the connection, because
heartbeats and acknowledgements need it until then.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import contextvars
import datetime
import functools
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
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, ParamSpec, TypeVar, cast, overload

from amqpstorm.channel import Channel
from amqpstorm.connection import Connection
from amqpstorm.exception import AMQPChannelError, AMQPConnectionError, AMQPError
from amqpstorm.heartbeat import Heartbeat
from amqpstorm.io import IO
from pamqp import commands, decode, encode
from pamqp import frame as amqp_frame
from pamqp import header as amqp_header
from pamqp import heartbeat as amqp_heartbeat

__all__ = ["Config", "Journal", "Kuyruk", "Run", "SubTask", "Task", "Worker", "current_task", "exceptions"]
__all__ += ["UNSAFE_MODULES"]
__all__ += ["BrokerError", "Crashed", "Discard", "HeartbeatError", "InvalidMessage", "KuyrukError", "Reject"]
__all__ += ["RemoteException", "ResultTimeout", "Shutdown", "Timeout"]

__version__ = "1.0.0"

logger = logging.getLogger("kuyruk")

if TYPE_CHECKING:  # imported when a worker begins
    from concurrent.futures import ThreadPoolExecutor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MAX_TTL = 0xFFFFFFFF  #: Milliseconds: the longest that RabbitMQ takes (49.7 days).
CONSUMER_TIMEOUT = 1800.0  #: Seconds that RabbitMQ by default allows between a delivery and its acknowledgement.
LEAST_CONSUMER_TIMEOUT = 60.0  #: The smallest that it supports.
CONSUMER_TIMEOUT_HELP = (
    "Let its task end sooner (max_run_time), or allow more: consumer_timeout in rabbitmq.conf,"
    " or for its queue, from RabbitMQ 3.12 on, a policy with consumer-timeout (milliseconds)"
)
MAX_TASK_NAME = 1000  #: Characters: looking for longer ones would take long.
MAX_PROPERTIES = 0x20000 - 22  #: Bytes: they have to fit into one frame.
MAX_QUEUE_NAME = 230  #: Bytes: leaves room for the suffixes of the queues that are derived from it.
QUIET = 5.0  #: Seconds without a message after which those that were counted must have been taken by others.
CLOSE_TIMEOUT = 2.0  #: Seconds that closing a connection waits for the broker.
TICK = 1.0  #: Seconds after which a connection's owner looks around, at the latest.
LEAD_AFTER = 0.05  #: Seconds after which a thread sends by itself again, if none but one at a time has sent.
UNATTENDED_ORDERS = 1000  #: That wait to be written while nobody waits for them (RABBIT_CONFIRM=False),
UNATTENDED_BYTES = 0x10000  #: each no larger than this.
BATCH_WINDOW = 2000  #: Messages of a batch on the way at once; each window has the whole publish timeout.
JOINED_WRITES = 0x10000  #: Bytes of frames that are joined into one write, about.
REPLY_TEXT = 100_000  #: Characters of an exception's text, and of its traceback, in a reply...
HEADER_TEXT = 10_000  #: ...and in a failed message's headers.
DELAY_QUEUE_LEASE = 600.0  #: Seconds that an unused delay queue outlives its delay,
DELAY_QUEUE_RENEWAL = 60.0  #: and after which its lease is renewed before it is used.
LOOK = 0.02  #: Seconds after which a busy worker looks whether it holds the right number of messages:
LOCAL_WORK = 0.02  #: beyond one for each thread about so many seconds of work, as measured,
MAX_SPARE = 1000  #: but no more than this. Tiny tasks need it: the way to the broker takes longer than they do.
LATE = 0.02  #: Seconds for which something has waited and nothing begun: it goes back, another may have a free thread.
STILL_LATE = 1.0  #: The same when nothing has begun for long, and it has come back again and again: no other has.
SUSPECT_PATIENCE = 3.0  #: Seconds that what is to run alone waits for running tasks; then others may have it, so long.
DELIVERY_LIMIT = 1_000_000  #: Of quorum queues that it declares. RabbitMQ 4 drops messages after 20 deliveries else.
REFUSAL_PAUSE = 0.2  #: Seconds after which what a queue has refused is sent again.
FORWARD_PAUSE = 1.0  #: Seconds that a message is kept before it goes back because it can't be forwarded.
POOL_SLICE = 0.05  #: Seconds that a pool thread goes on with what waits before it asks the pool again.
FIRST_RECONNECT = 0.1  #: Seconds before the first attempt to reconnect; then twice as long, and so on.


# --- Exceptions --------------------------------------------------------------


class KuyrukError(Exception):
    """Base of the exceptions below, but for the two that a task must not swallow."""


class _Interruption:
    """Mixin of the exceptions that interrupt a task. Python raises them in the task's thread by
    their class alone: made without arguments there, they take the arguments of what has interrupted
    the run."""

    def __init__(self, *args: object) -> None:
        cause = None if _current.run is None else _current.run._cause
        if not args and type(cause) is cast(Any, type(self)):
            args = cast(BaseException, cause).args
        super().__init__(*args)  # a BaseException's


class Reject(KuyrukError):
    """Raised by a task that doesn't want its message: it goes back to the queue, after `reject_delay`."""


class Discard(_Interruption, KuyrukError):
    """Raised by a task that doesn't want its message, or in it by an operator: the message is dropped."""


class Timeout(_Interruption, KuyrukError):
    """Raised in a task that exceeds its `max_run_time`: the message has failed. A broad `except Exception` in
    the task can swallow it."""


class ResultTimeout(KuyrukError):
    """Raised by `Task.send_to_queue`: no reply came within `wait_result` seconds."""


class RemoteException(KuyrukError):
    """Raised by `Task.send_to_queue`: the task raised in the worker. `type` is the dotted name of the exception's
    class, `value` its text, `traceback` its formatted traceback (str)."""

    def __init__(self, type_: str, value: str, traceback: str | None) -> None:
        super().__init__(type_, value, traceback)
        self.type = type_
        self.value = value
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}({self.value!r})"


class BrokerError(KuyrukError, ConnectionError):
    """Raised when sending: RabbitMQ can't be reached, or didn't confirm a message in time, or refused it. It may
    have arrived all the same. `unconfirmed` lists the `SubTask`s of a batch that aren't known to have arrived."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.unconfirmed: list[SubTask] = []


class InvalidMessage(KuyrukError):
    """What a message fails with that can't be decoded, or names no task of the application."""


class Crashed(KuyrukError):
    """What a message fails with that has brought WORKER_MAX_CRASHES worker processes down."""


class HeartbeatError(_Interruption, BaseException):
    """Raised in a task whose worker has lost the connection by which the message came: it will run again.
    `exc_info` tells how it was lost. No Exception, so that the task doesn't swallow it."""

    def __init__(self, exc_info: Any = None) -> None:
        super().__init__(*(() if exc_info is None else (exc_info,)))
        self.exc_info = self.args[0] if self.args else None

    def __str__(self) -> str:
        return f"the worker has lost its connection: {self.exc_info[1] if self.exc_info else None}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class Shutdown(_Interruption, BaseException):
    """Raised in a task that a stopping worker can't wait for: it will run again. No Exception, as above."""


def _make_exceptions_module() -> types.ModuleType:
    """`kuyruk.exceptions`, importable, in a vendored copy too (as `os.path` is a module of os)."""
    module = types.ModuleType(f"{__name__}.exceptions", "The exceptions of kuyruk.")
    module.__file__ = __file__
    for name, value in list(globals().items()):
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == __name__:
            value.__module__ = module.__name__
            setattr(module, name, value)
    sys.modules[module.__name__] = module
    return module


exceptions = _make_exceptions_module()


# --- Config ------------------------------------------------------------------


def _parse_hosts(hosts: str, default_port: int) -> list[tuple[str, int]]:
    """"a,b:5673,[::1]:5674" as addresses. Raises ValueError."""
    addresses = []
    for item in hosts.split(","):
        name = r"\[([^]\s/@]+)]|([^][:\s/@]+)|([^][\s/@]*:[^][\s/@]*:[^][\s/@]*)"  # no URL: it may hold a password
        match = re.fullmatch(rf"\s*(?:{name})(?::(\d+))?\s*", item)
        port = int((match and match[4]) or default_port)
        if match is None or not 0 < port < 65536:
            raise ValueError(f"not a host, or host:port: {item!r}")
        addresses.append((match[1] or match[2] or match[3], port))
    return addresses


def _parse_url(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Addresses and options. Raises ValueError, whose text isn't to be shown: it may hold the password."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or parts.query or parts.fragment:
        raise ValueError("not amqp:// or amqps://, or with options (they have configuration keys)")
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = (urllib.parse.unquote(part) for part in login.partition(":"))
    options = {"username": user or "guest", "password": password or "guest", "ssl": parts.scheme == "amqps"}
    options["virtual_host"] = urllib.parse.unquote(parts.path[1:]) or "/"
    return _parse_hosts(hosts or "localhost", 5671 if options["ssl"] else 5672), options


class _Kind(NamedTuple):
    """What a setting takes, in words and as a test."""

    words: str
    accepts: Callable[[Any], Any]


def _or_none(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words}, or None", lambda v: v is None or kind.accepts(v))


def _whole(low: int, high: int = 0x7FFFFFFF) -> _Kind:
    return _Kind(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def _number(words: str, test: Callable[[float], bool]) -> _Kind:
    def accepts(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return -sys.float_info.max <= value <= sys.float_info.max and test(value)  # not NaN, not an endless int

    return _Kind(words, accepts)


def _parsed(words: str, parse: Callable[[Any], Any]) -> _Kind:
    def accepts(value: Any) -> bool:
        with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
            parse(value)
            return True
        return False

    return _Kind(words, accepts)


_TEXT = _Kind("a string", lambda v: isinstance(v, str))
_FLAG = _Kind("True or False", lambda v: v is True or v is False)
_TABLE = _Kind("a dict with strings as keys", lambda v: isinstance(v, dict) and all(isinstance(k, str) for k in v))
_SECONDS = _number("seconds, 0 or more", lambda v: v >= 0)
_SOME_SECONDS = _number("seconds, more than 0", lambda v: v > 0)
_TTL = _number(f"seconds, from 0 to {MAX_TTL // 1000}", lambda v: 0 <= v <= MAX_TTL // 1000)
_KINDS = {
    "RABBIT_HOST": _parsed("'host', 'host:port', or several with commas", lambda v: _parse_hosts(v, 1)),
    "RABBIT_PORT": _whole(1, 65535),
    "RABBIT_URL": _or_none(_parsed("'amqp://user:password@host:port/vhost'", _parse_url)),
    **dict.fromkeys(("RABBIT_USER", "RABBIT_PASSWORD", "RABBIT_VIRTUAL_HOST"), _TEXT),
    **dict.fromkeys(("RABBIT_SSL", "RABBIT_CONFIRM", "EAGER"), _FLAG),
    **dict.fromkeys(("RABBIT_SSL_OPTIONS", "QUEUE_ARGUMENTS"), _TABLE),
    "RABBIT_HEARTBEAT": _whole(0, 65535),
    **dict.fromkeys(("RABBIT_CONNECT_TIMEOUT", "RABBIT_PUBLISH_TIMEOUT", "RABBIT_IDLE_DURATION"), _SOME_SECONDS),
    "FAILED_TTL": _or_none(_TTL),
    **dict.fromkeys(("WORKER_THREADS", "WORKER_MAX_CRASHES"), _whole(1)),
    "WORKER_PROCESSES": _whole(1, 1000),
    "WORKER_PREFETCH": _or_none(_whole(1, 65535)),
    "WORKER_MAX_LOAD": _or_none(_number("a load average, 0 or -1", lambda v: v >= 0 or v == -1)),
    **dict.fromkeys(("WORKER_MAX_RUN_TIME", "WORKER_SHUTDOWN_TIMEOUT"), _or_none(_SECONDS)),
    "WORKER_GRACE": _SECONDS,
    "WORKER_RECONNECT_INTERVAL": _SOME_SECONDS,
    "WORKER_PRIORITY": _or_none(_whole(-0x80000000)),
    "WORKER_LOGGING_LEVEL": _parsed("a level of logging's, as 'INFO'", lambda v: logging.getLevelNamesMapping()[v]),
}
_SECRETS = ("RABBIT_PASSWORD", "RABBIT_URL", "RABBIT_SSL_OPTIONS")  # in no error text, log or repr


def _check(name: str, value: Any, kind: _Kind) -> None:
    if not kind.accepts(value):
        try:
            shown = "the given value" if name in _SECRETS or "@" in str(value) else repr(value)  # a URL, by mistake
        except (ValueError, RecursionError):  # too many digits, too deep
            shown = f"this {type(value).__name__}"
        raise ValueError(f"{name} takes {kind.words}: not {shown}")


class Config:
    """The settings of a `Kuyruk`: the class attributes are the defaults. Set them by assignment or with a loader.

    A key that there isn't, or a value that the key doesn't take, raises ValueError, without the values of secret
    keys. Extensions add keys by adding class attributes.
    """

    RABBIT_HOST: str = "localhost"  #: Host, or several, tried in turn: "a,b:5673,c".
    RABBIT_PORT: int = 5672
    RABBIT_USER: str = "guest"
    RABBIT_PASSWORD: str = "guest"
    RABBIT_VIRTUAL_HOST: str = "/"
    RABBIT_URL: str | None = None  #: "amqp://user:password@host:port/vhost", or amqps: wins over the five above.
    RABBIT_SSL: bool = False  #: TLS; certificates are verified unless the options say otherwise.
    RABBIT_SSL_OPTIONS: dict[str, Any] = {}  #: amqpstorm's: cafile, certfile, keyfile, context...  # noqa: RUF012
    RABBIT_HEARTBEAT: int = 60  #: Seconds; a connection that is silent for longer is given up. 0: never.
    RABBIT_CONNECT_TIMEOUT: float = 5  #: Seconds that an attempt to connect to one address may take.
    RABBIT_PUBLISH_TIMEOUT: float = 10  #: Seconds within which a send is confirmed or raises.
    RABBIT_CONFIRM: bool = True  #: Wait for the broker's confirms.
    RABBIT_IDLE_DURATION: float = 60  #: Seconds after which an unused sending connection is closed.
    QUEUE_ARGUMENTS: dict[str, Any] = {}  #: For queues that it declares: {"x-queue-type": "quorum"}.  # noqa: RUF012
    EAGER: bool = False  #: Run tasks in this process instead of sending them: for tests.
    FAILED_TTL: float | None = 604800  #: Seconds that "<queue>.failed" keeps messages; None: reject them instead.
    WORKER_THREADS: int = 8  #: Tasks that one worker process runs at once.
    WORKER_PROCESSES: int = 1  #: Processes that the command line starts.
    WORKER_PREFETCH: int | None = None  #: Messages held at once, of each queue. None: as threads, and 20 ms of work.
    WORKER_MAX_LOAD: float | None = None  #: Pause above this load average. -1: the number of CPUs; 0: never.
    WORKER_MAX_RUN_TIME: float | None = None  #: Seconds after which a worker stops gracefully. 0: never.
    WORKER_GRACE: float = 5  #: Seconds that an interrupted task gets to end, before its thread is given up.
    WORKER_SHUTDOWN_TIMEOUT: float | None = None  #: Seconds that a stop waits for running tasks. None: for ever.
    WORKER_RECONNECT_INTERVAL: float = 5  #: Seconds: the longest pause between attempts to reconnect.
    WORKER_PRIORITY: int | None = None  #: Of its consumers: larger numbers are served first.
    WORKER_MAX_CRASHES: int = 3  #: Processes that a message may bring down before it has failed. Command line only.
    WORKER_LOGGING_LEVEL: str = "INFO"  #: Command line only.

    if not TYPE_CHECKING:  # type checkers know the keys, unless they see this

        def __setattr__(self, key: str, value: Any) -> None:
            if not key.isupper() or not hasattr(type(self), key):
                known = filter(str.isupper, dir(self))
                raise ValueError(f"unknown configuration key {key!r}{_did_you_mean(key, known)}")
            if key in _KINDS:
                _check(key, value, _KINDS[key])
            super().__setattr__(key, value)

    def __repr__(self) -> str:
        shown = (f"{k}={'...' if k in _SECRETS else repr(v)}" for k, v in vars(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def from_dict(self, d: Mapping[str, Any]) -> None:
        """Load values from a dict."""
        for key, value in d.items():
            setattr(self, key, value)

    def from_object(self, obj: Any) -> None:
        """Load the upper-case attributes of an object, or of what a dotted path (str) leads to, or ImportError."""
        if isinstance(obj, str):
            module, _, name = obj.rpartition(".")
            if not hasattr(importlib.import_module(module or obj), name):
                raise ImportError(f"there is no {obj!r}: it takes the dotted path of an object in a module")
            obj = getattr(importlib.import_module(module), name)
        self.from_dict({key: getattr(obj, key) for key in dir(obj) if key.isupper()})

    def from_pymodule(self, name: str) -> None:
        """Load the upper-case names of a Python module. Raises ImportError."""
        self._from_namespace(vars(importlib.import_module(name)))

    def from_pyfile(self, filename: str) -> None:
        """Run a Python file and load its upper-case names. Raises OSError, and what the file raises."""
        namespace: dict[str, Any] = {"__file__": filename}
        with open(filename, "rb") as file:
            exec(compile(file.read(), filename, "exec"), namespace)
        self._from_namespace(namespace)

    def from_env_vars(self) -> None:
        """Load the environment's KUYRUK_* variables: Python literals, else strings. (KUYRUK_TEST_* are not ours.)"""
        for name, text in os.environ.items():
            key = name.removeprefix("KUYRUK_")
            if key != name and not key.startswith("TEST_"):
                setattr(self, key, self._from_text(key, text))

    def _from_namespace(self, namespace: Mapping[str, Any]) -> None:
        self.from_dict({k: v for k, v in namespace.items() if k.isupper() and not isinstance(v, types.ModuleType)})

    def _from_text(self, key: str, text: str) -> Any:
        import ast

        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
        if isinstance(getattr(type(self), key, None), str) and not isinstance(value, str):
            return text  # a password of digits only is a string all the same
        return bool(value) if _KINDS.get(key) is _FLAG and value in (0, 1) else value

    def _with(self, **values: Any) -> Config:
        """A copy, with those of the values that aren't None."""
        copy = type(self)()
        copy.from_dict(vars(self) | {key: value for key, value in values.items() if value is not None})
        return copy

    def _addresses(self) -> list[tuple[str, int]]:
        return _parse_url(self.RABBIT_URL)[0] if self.RABBIT_URL else _parse_hosts(self.RABBIT_HOST, self.RABBIT_PORT)

    def _connection_options(self) -> dict[str, Any]:
        """For amqpstorm's Connection, but for the address."""
        names = ("username", "password", "virtual_host", "ssl")
        values = (self.RABBIT_USER, self.RABBIT_PASSWORD, self.RABBIT_VIRTUAL_HOST, self.RABBIT_SSL)
        options: dict[str, Any] = dict(zip(names, values, strict=True))
        if self.RABBIT_URL is not None:
            options = _parse_url(self.RABBIT_URL)[1]
        properties = {"product": "kuyruk", "version": __version__}
        more = {"ssl_options": self.RABBIT_SSL_OPTIONS, "client_properties": properties}
        return options | more | {"heartbeat": self.RABBIT_HEARTBEAT, "timeout": self.RABBIT_CONNECT_TIMEOUT}


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


# --- Messages ----------------------------------------------------------------


class _Message(NamedTuple):
    """What is published: to a queue, on the default exchange."""

    queue: str
    body: bytes
    properties: dict[str, Any]
    arguments: dict[str, Any]  #: With which the queue is declared when it is missing.
    mandatory: bool = True  #: It must get into a queue (a reply needn't).
    renewal: float = math.inf  #: Seconds after which the queue is looked for again (a delay queue's lease).

    @property
    def key(self) -> tuple[str, str | None]:
        """What a message that the broker returns is recognised by."""
        return self.queue, self.properties.get("message_id")


class _Description(NamedTuple):
    """A task's message, decoded."""

    id: str | None
    module: str
    function: str
    args: list[Any]
    kwargs: dict[str, Any]


_to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode  # NaN and Infinity aren't JSON


def _encode_json(value: Any, what: str) -> bytes:
    """Raises TypeError for what isn't JSON; `what` tells the user where to look."""
    try:
        return _to_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} can't be written as JSON: {error}") from error


def _encode_task(id: str, module: str, function: str, args: Any, kwargs: Any) -> bytes:
    if not isinstance(args, list | tuple):  # a string, say, whose letters would be the arguments
        raise TypeError(f"args takes a list or tuple of arguments: not {args!r}")
    description: dict[str, Any] = {"id": id, "args": args, "kwargs": dict(kwargs)}
    description |= {"module": module, "function": function}
    description |= _facts_about_sender(int(time.time()), os.getpid())
    return _encode_json(description, f"an argument of task {module}.{function}")


@functools.lru_cache(1)
def _facts_about_sender(now: int, pid: int) -> dict[str, Any]:
    """As they are in this second: system calls for each message are slow, and let other threads take over."""
    facts = {"sender_hostname": socket.gethostname(), "sender_pid": pid, "sender_cmd": " ".join(sys.argv)[:1000]}
    return facts | {"sender_timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))}


class _Ids:
    """Makes ids for messages: of random numbers, but of one for each process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._start, self._count = os.urandom(10).hex(), itertools.count()

    def make(self) -> str:
        return f"{self._start}{next(self._count):012x}"


_ids = _Ids()


def _decode_json_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidMessage, which names what is wrong with the body."""
    try:
        value = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"the body isn't UTF-8: {error}") from None
    except RecursionError:
        raise InvalidMessage("the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidMessage(f"the body isn't JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidMessage(f"the body isn't a JSON object, but a {type(value).__name__}")
    return value


_MESSAGE_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("module", (str,)), ("function", (str,)), ("args", (list, type(None))), ("kwargs", (dict, type(None))),
)  # fmt: skip


def _decode_task(body: bytes) -> _Description:
    """Raises InvalidMessage, which names what is wrong with the body."""
    d = _decode_json_object(body)
    for key, kind in _MESSAGE_KINDS:
        if not isinstance(d.get(key, ...), kind):
            given = f"is a {type(d[key]).__name__}, not a {kind[0].__name__}" if key in d else "is missing"
            raise InvalidMessage(f"the message's {key!r} {given}")
    id = None if d.get("id") is None else str(d["id"])[:255]
    return _Description(id, d["module"], d["function"], d["args"] or [], d["kwargs"] or {})


def _encode_reply(result: Any, error: BaseException | None) -> bytes:
    """Raises TypeError for a result that isn't JSON."""
    if error is None:
        return _encode_json({"result": result}, "the task's result")
    exception = {"type": _exception_name(error), "value": _text_of(error, REPLY_TEXT)}
    exception["traceback"] = _format_traceback(error, REPLY_TEXT)
    return _to_json({"result": None, "exception": exception}).encode()


def _decode_reply(body: bytes) -> Any:
    """The result in a reply. Raises RemoteException for the exception in it."""
    try:
        reply = _decode_json_object(body)
        exception = reply.get("exception")
        if exception is None:
            return reply["result"]
        error = RemoteException(exception["type"], exception["value"], exception["traceback"])
    except (KeyError, TypeError, InvalidMessage) as reason:
        raise KuyrukError(f"the worker's reply can't be read: {reason!r}") from None
    raise error


def _exception_name(error: BaseException) -> str:
    """Dotted; `kuyruk.exceptions.Timeout` is called so in a vendored copy, too."""
    module = type(error).__module__
    return f"{'kuyruk.exceptions' if module == exceptions.__name__ else module}.{type(error).__qualname__}"


def _text_of(error: BaseException, limit: int) -> str:
    try:
        return _bounded(str(error), limit)
    except Exception as inner:
        return f"<no text: str() raised {type(inner).__name__}>"


def _task_traceback(error: BaseException) -> types.TracebackType | None:
    """Without the frames of this file that lead to the task."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb


def _format_traceback(error: BaseException, limit: int) -> str:
    try:
        return _bounded("".join(traceback.format_exception(type(error), error, _task_traceback(error))), limit)
    except Exception as inner:
        return f"<no traceback: formatting it raised {type(inner).__name__}>"


def _format_stack(thread: int) -> str:
    """Where a thread is, without the frames that lead from its beginning through this file to the task."""
    frames = traceback.extract_stack(sys._current_frames().get(thread))
    ours = itertools.dropwhile(lambda frame: frame.filename != __file__, frames)
    inner = list(itertools.dropwhile(lambda frame: frame.filename == __file__, ours))
    return _bounded("".join(traceback.format_list(inner or frames)), HEADER_TEXT // 2).rstrip()


def _bounded(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than `limit` characters; no lone surrogates."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n[... {len(text) - limit} characters ...]\n{text[-(limit // 2) :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def _milliseconds(seconds: float) -> str:
    """As AMQP wants a TTL; rounded up, so that a short one doesn't become none."""
    return str(math.ceil(seconds * 1000))


def _check_queue_name(queue: Any) -> str:
    if not isinstance(queue, str) or not 0 < len(queue.encode("utf-8", "replace")) <= MAX_QUEUE_NAME:
        raise ValueError(f"a queue's name is a string of 1 to {MAX_QUEUE_NAME} bytes: not {queue!r}")
    return queue


def _resolve_host(queue: str) -> str:
    """"name.localhost" stands for "name.<hostname>"."""
    name, dot, host = queue.rpartition(".")
    return f"{name}.{socket.gethostname()}" if dot and host == "localhost" else queue


# --- Interrupting a running task ---------------------------------------------

#: Names of modules that guard locks of the whole process, or swallow exceptions: a task isn't
#: interrupted while one of its frames is in one of them, or in a module below it. Add to it what
#: your tasks use and must not be cut: `kuyruk.UNSAFE_MODULES.add("sqlalchemy.pool")`. This module
#: always counts.
UNSAFE_MODULES = {
    "_frozen_importlib", "_frozen_importlib_external", "_weakrefset", "bdb", "concurrent.futures",
    "coverage", "importlib", "logging", "queue", "threading", "weakref", "zipimport",
}  # fmt: skip

#: Functions of logging that hold no lock, and swallow nothing: a line's way to its handlers. A task
#: that logs much is rarely seen elsewhere.
_HOLD_NO_LOCK = {
    "Filterer.filter", "Logger._log", "Logger.callHandlers", "Logger.critical", "Logger.debug",
    "Logger.error", "Logger.exception", "Logger.findCaller", "Logger.handle", "Logger.info",
    "Logger.log", "Logger.makeRecord", "Logger.warning", "_is_internal_frame",
}  # fmt: skip

_LOOK_AGAIN = 0.001  #: Seconds after which a thread that wasn't at a safe point is looked at again.
#: Seconds: the interpreter's switch interval while the watch is about to look for a safe point.
_SHORT_SWITCH = 1e-5
#: Seconds after which giving up is tried again that has failed; then twice as long, and so on.
_GIVE_UP_AGAIN = 0.1
_WATCH_STALLS = 5.0  #: Seconds that a watch may be late before it counts as stuck.
_APPLY_GRACE = 1.0  #: Seconds after which `Task.apply` warns of a task that can't be interrupted.


class _Current(threading.local):
    run: Run | None = None  #: What runs in this thread.


_current = _Current()


def _raise_pending() -> None:
    """Raise what is set for this thread, if it hasn't been: a loop is where Python looks."""
    for _ in (1, 2):
        pass


def _call_task(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a task's function. The watch knows this frame: further in is the task's code."""
    return f(*args, **kwargs)


def _is_safe(frame: types.FrameType | None) -> bool:
    """Whether a thread whose innermost frame this is may be interrupted: it is in a task's code,
    and none of the frames from here to `_call_task` guards a lock of the process, or is in this
    module."""
    while frame is not None and frame.f_code is not _call_task.__code__:
        if frame.f_globals is globals() or _guards_a_lock(frame):
            return False
        frame = frame.f_back
    return frame is not None


def _guards_a_lock(frame: types.FrameType) -> bool:
    """Whether an exception must not be set in this frame. In a `__del__` Python would print it and
    go on."""
    module, code = str(frame.f_globals.get("__name__")), frame.f_code
    if code.co_name == "__del__":
        return True
    if module == "logging" and code.co_qualname in _HOLD_NO_LOCK:
        return False
    while module and module not in UNSAFE_MODULES:
        module = module.rpartition(".")[0]
    return bool(module)


def _fresh(value: Any) -> Any:
    """Copy the lists, tuples and dicts of a value, and of these; what else there is stays the
    same."""
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return dict(zip(value, map(_fresh, value.values()), strict=True))
    return value


def _fresh_arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments for one more try. If they are nested too deeply to be copied they are the
    same."""
    try:
        return _fresh(args), _fresh(kwargs)
    except RecursionError:
        return args, kwargs


class Run:
    """One message's run of a task, over all its tries; or one `Task.apply`'s. See `current_task`.

    How it is interrupted. Only the first cause counts, and an exception is set for the thread at
    most once for each run (`_hit`): by the watch, or at once by who orders the interruption.

    1. It is set where that is safe (`_is_safe`): in the task's own code. So it can't cut code of
       this module, nor leave a lock of the standard library's taken. The watch looks, marks the run
       as hit, and sets the exception, and no other thread runs in between. Python raises it in the
       frame that was seen, or where that calls or returns to next. If it isn't safe now, the watch
       looks again.
    2. It hits nothing but its task. Whether it is set is decided under a lock, the gate. The watch
       takes it without waiting. The task's thread has the gate except during a try: it takes it
       when a try has ended, and after the last try keeps it for ever. If the run is marked as hit
       then, the thread lets what may not have been raised yet be raised right there. It may be
       raised as well anywhere between the task's return and that point, also right after the gate
       was taken. That is harmless: it was the only one, and nobody waits for the gate of a run that
       was hit.
    3. Where the task waits in this module, the watch wakes it, and the wait raises the cause
       (`_interruptible`).
    4. Inside the task each raise is a new exception (see `_Interruption`): tracebacks don't grow,
       and what the run keeps has none that would lead back to it.
    5. What has interrupted a run decides its fate: `_call` raises that, whatever the task has made
       of it. Only a value that the task returns counts more.

    All this needs the GIL. In a free-threaded Python 2 still holds, but the thread may have left
    the safe point when the exception is set.
    """

    def __init__(
        self, task: Task[..., Any], id: str | None, queue: str | None, redelivered: bool
    ) -> None:
        self.task = task
        self.id = id  #: The message's; None with `Task.apply`.
        self.queue = queue  #: That the message came from; None with `Task.apply`.
        #: The broker has delivered it before, so it may have run; or a worker has only handed it back.
        self.redelivered = redelivered
        self.started = time.monotonic()
        #: time.monotonic() at which this try exceeds `max_run_time`.
        self.deadline: float | None = None
        #: What interrupts it, and since when (time.monotonic()): the grace is counted from there.
        self._cause: BaseException | None = None
        self._interrupted_at = math.inf
        self._hit = False  # the cause was raised in the task, or is set for its thread
        self._given_up = False  # by the watch
        #: Its place in the watch's schedule, if it has one; and whether it must not get another.
        self._place: tuple[float, int, Run] | None = None
        self._is_over = False
        #: Ends the wait that its thread is in, in code of this module.
        self._waker: Callable[[], object] | None = None
        #: The run of a task that this one applies: what interrupts this one interrupts that.
        self._inner: Run | None = None
        self._thread = threading.get_ident()
        self._gate = threading.Lock()
        self._gate.acquire()

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None without a limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise the interruption of this run, if there is one: Timeout, Discard, HeartbeatError or Shutdown. For
        code that catches exceptions broadly, or waits a lot in calls that Python can't interrupt."""
        cause = self._cause
        if cause is not None:
            if threading.get_ident() == self._thread:
                self._hit = True  # the watch sets nothing while the thread is in here
            raise type(cause)(*cause.args)

    # -- by the watch, or by who calls it

    def _interrupt(self) -> None:
        """Raise the cause in the task if it is at a safe point now. To be called again until the
        run is hit."""
        inner = self._inner
        if inner is not None:
            inner._cause = inner._cause or self._cause
            inner._interrupt()
            return
        waker = self._waker
        if waker is not None:
            waker()
        if self._hit or not self._gate.acquire(blocking=False):
            return
        try:
            self._raise_if_safe()
        finally:
            self._gate.release()

    def _raise_if_safe(self) -> None:
        import ctypes  # only here: it costs milliseconds to import

        thread, kind = ctypes.c_ulong(self._thread), ctypes.py_object(type(self._cause))
        set_exception = functools.partial(ctypes.pythonapi.PyThreadState_SetAsyncExc, thread, kind)
        get_frame = operator.itemgetter(self._thread)
        seen = get_frame(sys._current_frames())
        position = seen.f_lasti
        if not _is_safe(seen):
            return
        # Look again, now in a way that no other thread gets its turn between the look and the
        # exception: CPython switches at the end of a call and at a jump back, and there is none. A
        # thread that has moved is looked at later. (No variable may keep the whole of
        # `_current_frames`: this thread's own frame is in it.)
        for frame in map(get_frame, iter(sys._current_frames, None)):
            is_same = frame is seen and frame.f_lasti == position
            if is_same and not (self._inner or self._hit or self._is_over):
                self._hit = True
                set_exception()
            break

    # -- in the task's thread

    def _unmask(self) -> None:
        """From here on the task can be interrupted. Raises the cause that came before."""
        self.check()
        self._gate.release()

    def _mask(self) -> None:
        """From here on the task can't be interrupted. Raises what is set and hasn't been raised."""
        if not self._hit:
            self._gate.acquire()
        if self._hit:
            _raise_pending()

    def _call(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        """Call the task's function, with retries, in a context of its own. Raises what has
        interrupted the run, if the task didn't return all the same. After this no interruption can
        reach the thread."""
        outer, _current.run = _current.run, self
        if outer is not None:
            outer._inner = self
            if not outer._hit:  # else its clean-up may apply tasks
                self._cause = outer._cause
        try:
            return contextvars.copy_context().run(self._try, args, kwargs, watch)
        except BaseException as error:
            if outer is not None and self._hit and self._cause is outer._cause:
                outer._hit = True
            if self._is_decided_by(error):
                raise
            cause = cast(BaseException, self._cause)
            raise type(cause)(*cause.args) from error
        finally:
            self._is_over = True
            if watch is not None:
                watch.discard(self)
            _current.run = outer
            if outer is not None:
                outer._inner = None

    def _is_decided_by(self, error: BaseException) -> bool:
        """Whether what came out of the task counts: nothing has interrupted it, or this is what
        did, or Ctrl-C."""
        if not self._hit or type(error) is type(self._cause):
            return True
        is_main = threading.current_thread() is threading.main_thread()
        return is_main and isinstance(error, KeyboardInterrupt)

    def _try(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        tries = self.task.retry + 1
        original = _fresh_arguments(args, kwargs) if self.task.retry else (args, kwargs)
        while True:
            tries -= 1
            if watch is not None and self.task.max_run_time is not None:
                self.deadline = time.monotonic() + self.task.max_run_time
                watch.add(self, self.deadline)
            try:
                self._unmask()
                try:
                    return _call_task(self.task.f, args, kwargs)
                finally:
                    self._mask()
                    if watch is not None:
                        watch.discard(self)
            except (Timeout, Reject, Discard):
                raise
            except Exception as error:
                if not tries or self._hit or not self.task._fits(error, args, kwargs):
                    raise
                what = f"{_bounded(_exception_name(error), 200)}: {_text_of(error, REPLY_TEXT)}"
                text = "Task %s [%s] raised %s; trying again (%d left)"
                logger.warning(text, self.task.name, self.id, what, tries)
            args, kwargs = _fresh_arguments(*original)


def current_task() -> Run | None:
    """The `Run` of the task that this thread is running; None outside of a task."""
    return _current.run


class _ShortSwitches:
    """While a `with` block of it is entered, threads take turns more often.

    A thread is seen where it lets others run. One that writes to a file or a log every few
    milliseconds always does that there, so it would never be seen at a safe point; now it is
    stopped anywhere.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._users = 0
        self._usual = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, _SHORT_SWITCH))

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._users -= 1
            is_ours = sys.getswitchinterval() <= _SHORT_SWITCH  # nobody else has set it meanwhile
            if not self._users and is_ours:
                sys.setswitchinterval(self._usual)

    def begin_in_child(self) -> None:
        """In a forked child, in which no watch runs."""
        if self._users:
            sys.setswitchinterval(self._usual)
        self._lock, self._users = threading.Lock(), 0


_short_switches = _ShortSwitches()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_short_switches.begin_in_child)


class _Watch:
    """Interrupts the runs that exceed their time limit, and those that other threads want
    interrupted; and gives up those that don't end although interrupted. From a thread of its own,
    that outlives any exception of theirs."""

    def __init__(self, grace: float, give_up: Callable[[Run], object]) -> None:
        self._grace = grace
        self._give_up = give_up
        #: Guards what follows; notified of a time that is earlier than the thread waits for, and of the end.
        self._changed = threading.Condition()
        #: When to look at which run next, in this order. A run is in here from its beginning, or
        #: its interruption, to its end, or until nothing is left to do but to wait for it.
        self._schedule: list[tuple[float, int, Run]] = []
        self._serial = itertools.count()
        self._wakes_at = -math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kuyruk-watch", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether its thread lives, and does what is due."""
        late = bool(first := self._schedule[:1]) and first[0][0] < time.monotonic() - _WATCH_STALLS
        return self._thread.is_alive() and not late

    def add(self, run: Run, deadline: float) -> None:
        """Interrupt the run with Timeout at the deadline."""
        with self._changed:
            self._put(run, deadline)

    def interrupt(self, run: Run, cause: BaseException) -> None:
        """Interrupt the run, if it is still running, and hasn't been interrupted yet."""
        with self._changed:
            if run._cause is None:
                run._cause, run._interrupted_at = cause, time.monotonic()
                self._put(run, run._interrupted_at + _LOOK_AGAIN)
        with contextlib.suppress(Exception):  # the first look is at once, the next is the watch's
            run._interrupt()
        # Its thread may end it just now: it notes that and then looks for its place, here it is the
        # other way round.
        if run._is_over:
            self.discard(run)

    def discard(self, run: Run) -> None:
        """Leave the run alone. The thread may wake for it once more, in vain: cheaper than to
        notify it."""
        if run._place is not None:
            with self._changed:
                self._remove(run)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT)

    def _put(self, run: Run, due: float) -> None:
        self._remove(run)
        run._place = due, next(self._serial), run
        bisect.insort(self._schedule, run._place)
        if due < self._wakes_at:
            self._changed.notify()

    def _remove(self, run: Run) -> None:
        if run._place is not None:
            del self._schedule[bisect.bisect_left(self._schedule, run._place)]
            run._place = None

    # -- its thread

    def _loop(self) -> None:
        # A tracer in Python would let other threads run between the look and the exception.
        sys.settrace(None)
        sys.setprofile(None)
        while not self._closed:
            try:
                run = self._next_due()
                if run is not None:
                    self._look_at(run)
                del run
            except BaseException:  # its run has another turn already
                with contextlib.suppress(BaseException):
                    logger.exception("Can't interrupt a task, or give it up; trying again")

    def _next_due(self) -> Run | None:
        """Wait until a run is due, and schedule its next look, whatever becomes of this one; None
        if there is none after all."""
        with self._changed:
            now = time.monotonic()
            due, _, run = self._schedule[0] if self._schedule else (math.inf, 0, None)
            if due <= now and run is not None:
                if run._cause is None:
                    text = f"ran longer than its max_run_time of {run.task.max_run_time:g} seconds"
                    run._cause, run._interrupted_at = Timeout(text), due
                self._put(run, self._next_look(run, now))
                return run
            if not self._closed:
                is_hunted = run is not None and run._cause is not None and not run._hit
                is_near = due - now <= _LOOK_AGAIN
                del run  # while this thread waits, nothing of it is kept
                self._wakes_at = due - _LOOK_AGAIN if is_hunted and not is_near else due
                with _short_switches if is_hunted and is_near else contextlib.nullcontext():
                    self._changed.wait(_left(self._wakes_at))
                self._wakes_at = -math.inf  # awake: it needn't be woken
            return None

    def _next_look(self, run: Run, now: float) -> float:
        """When to look at an interrupted run after this time: soon, until it is hit; and when its
        grace is over."""
        since = now - run._interrupted_at
        pauses = [math.inf]
        if not run._hit:
            pauses.append(max(_LOOK_AGAIN, since / 1000))
        if not run._given_up:
            left = self._grace - since
            pauses.append(left if left > 0 else max(_GIVE_UP_AGAIN, -left))
        return now + min(pauses)

    def _look_at(self, run: Run) -> None:
        run._interrupt()
        if not run._given_up and time.monotonic() >= run._interrupted_at + self._grace:
            self._give_up(run)
            run._given_up = True
        if run._hit and run._given_up:
            self.discard(run)


def _warn_of_stuck(run: Run) -> None:
    """Log that a task that was applied here goes on beyond its limit."""
    text = (
        "Task %s goes on although it was interrupted (%s): it can't be cut where it is, and here it"
        " can't be given up as in a worker. Timeout is raised when it can be. It is at\n%s"
    )
    logger.warning(text, run.task.name, run._cause, _format_stack(run._thread))


def _left(deadline: float) -> float:
    """Seconds until `deadline`, as waits take them."""
    return min(max(0.0, deadline - time.monotonic()), 1e6)


def _interruptible(wait: Callable[[], T], wake: Callable[[], object]) -> T | None:
    """Wait in code of ours. An interruption of the task in this thread calls `wake`, perhaps
    several times, which must make `wait` return; then the interruption is raised."""
    run = _current.run
    if run is None or run._hit:  # once interrupted, its clean-up may send and wait
        return wait()
    result = None
    run._waker = wake
    try:
        if run._cause is None:
            result = wait()
    finally:
        run._waker = None
    run.check()
    return result


def _wait(done: _Done, deadline: float) -> None:
    _interruptible(lambda: done.wait(_left(deadline)), done.set)


# --- Connections -------------------------------------------------------------


class _Wakeup:
    """Wakes the thread that waits for it and for a socket; from any thread or signal handler.

    Of two threads that set it at once, one may write after the other's byte has been read and cleared. So whoever finds
    it readable notes that it is set: else it stays readable, and its owner awake.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.is_set = False

    def set(self) -> None:
        if not self.is_set:  # a `clear` right after this look is followed by the waiter's own look
            self.is_set = True
            try:
                self._writer.send(b"!")
            except OSError:  # its owner has ended
                pass

    def clear(self) -> None:
        """By the waiter, before it looks at what there is to do: never between that look and the wait."""
        if self.is_set:
            try:
                self._reader.recv(4096)
                self.is_set = False
            except OSError:  # what was set just now comes later, and stays set until it is read
                pass

    def wait(self, until: float) -> None:
        """Wait for nothing else. What there is to do is to be looked at after it, too."""
        self.look(until)
        self.clear()

    def look(self, until: float) -> None:
        """Wait for it, and leave it set."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            self.is_set |= bool(selector.select(_left(until)))

    def fileno(self) -> int:
        return self._reader.fileno()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    __del__ = close


class _Heartbeat(Heartbeat):
    """amqpstorm's, checked by the connection's owner instead of by timer threads."""

    due = math.inf

    def _start_new_timer(self) -> bool:
        self.due = time.monotonic() + (self._interval or math.inf)
        return True

    def tick(self) -> None:
        if self._running.is_set() and time.monotonic() >= self.due:
            self._check_for_life_signs()


class _Socket(IO):
    """amqpstorm's end of the socket, without its thread, its polling and its endless writes."""

    def __init__(self, parameters: dict[str, Any], errors: list[Exception], stall_timeout: float) -> None:
        super().__init__(parameters, errors)
        self._stall_timeout = stall_timeout
        #: What is to be written. Any thread may append.
        self.outbox: collections.deque[bytes] = collections.deque()
        self._rest = memoryview(b"")  # of what is being written
        self._moved_at = math.inf  # when something was written last, while something is left

    def open(self) -> None:
        super().open()
        sock = cast(socket.socket, self.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: notices a peer that has vanished
            limit = min(math.ceil(self._stall_timeout * 1000), 0x7FFFFFFF)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        sock.setblocking(False)

    def _get_socket_addresses(self) -> list[Any]:
        """As amqpstorm's, but of bytes: a string makes Python import a codec, and in a child that is forked meanwhile
        that import never ends."""
        host, port = self._parameters["hostname"], self._parameters["port"]
        name = host.encode("ascii" if host.isascii() else "idna")
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)

    def _find_address_and_connect(self, addresses: list[Any]) -> socket.socket:
        """As amqpstorm's, but closes what failed, and tells why in each case."""
        reasons = []
        for family, _, _, _, address in addresses:
            sock = self._create_socket(family)
            try:
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                reasons.append(error.strerror or str(error))
        raise AMQPConnectionError("; ".join(dict.fromkeys(reasons)))

    def start_inbound(self) -> None:
        """The connection's owner reads."""

    def write_to_socket(self, frame_data: bytes) -> None:
        self.outbox.append(frame_data)

    @property
    def has_to_write(self) -> bool:
        return bool(self._rest or self.outbox)

    def flush(self) -> bool:
        """Write what the socket takes, small frames joined; returns whether all is written."""
        while self.has_to_write:
            if not self._rest:
                chunks, size = [self.outbox.popleft()], 0
                while self.outbox and size < JOINED_WRITES:
                    chunks.append(self.outbox.popleft())
                    size += len(chunks[-1])
                self._rest = memoryview(b"".join(chunks))
            try:
                sent = cast(socket.socket, self.socket).send(self._rest)
            except _WOULD_BLOCK:
                sent = 0
            self._rest = self._rest[sent:]
            if self._rest:
                return self._note_stall(sent)
        self._moved_at = math.inf
        return True

    def _note_stall(self, sent: int) -> Literal[False]:
        now = time.monotonic()
        if sent or self._moved_at == math.inf:
            self._moved_at = now
        if now - self._moved_at > self._stall_timeout:
            raise OSError(f"the broker has taken no data for {self._stall_timeout:g} seconds")
        return False

    def receive(self) -> bytes:
        try:
            data = cast(socket.socket, self.socket).recv(0x20000)
        except _WOULD_BLOCK:
            return b""
        if not data:
            raise OSError("closed by the broker")
        return data


_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


# --- Frames ------------------------------------------------------------------

# pamqp's, but for those that each message takes: its code for any frame there is costs several times as much.
_FRAME_HEADER = struct.Struct(">BHI")  # type, channel, size
_CONTENT_HEADER = struct.Struct(">HHQ")  # class, weight, size of the body
_ACK_FRAME = struct.Struct(">BHIIQBB")
_PUBLISH_START = struct.pack(">IHB", commands.Basic.Publish.index, 0, 0)  # ticket, exchange
_CANCEL_START = struct.pack(">I", commands.Basic.Cancel.index)
_CONSUME_START = struct.pack(">IHB", commands.Basic.Consume.index, 0, 21) + b"amq.rabbitmq.reply-to"
_ACK_START = struct.pack(">I", commands.Basic.Ack.index)
_DELIVER_START = struct.pack(">I", commands.Basic.Deliver.index)
_HEADERS, _MORE_FLAGS = 0x2000, 0x0001


def _marshal(channel: int, *frames: Any) -> bytes:
    return b"".join([amqp_frame.marshal(frame, channel) for frame in frames])


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME_HEADER.pack(kind, channel, len(payload)) + payload + b"\xce"


def _ack_frame(channel: int, tag: int) -> bytes:
    return _ACK_FRAME.pack(1, channel, 13, commands.Basic.Ack.index, tag, 0, 0xCE)


def _content_frames(channel: int, queue: str, mandatory: bool, properties: bytes, body: bytes, limit: int) -> bytes:
    """What publishes a message, through the default exchange. limit: bytes of a frame."""
    name = queue.encode()
    publish = b"%b%c%b%c" % (_PUBLISH_START, len(name), name, mandatory)
    frames = [_frame(1, channel, publish), _frame(2, channel, _CONTENT_HEADER.pack(60, 0, len(body)) + properties)]
    step = limit - 8
    frames += [_frame(3, channel, body[start : start + step]) for start in range(0, len(body), step)]
    return b"".join(frames)


def _renew_frames(channel: int, number: int) -> bytes:
    """Basic.Cancel of the consumer before, and Basic.Consume of replies by the next, neither of which is answered."""
    old, new = b"%d" % (number - 1), b"%d" % number
    cancel = b"%b%c%b\x01" % (_CANCEL_START, len(old), old)
    consume = b"%b%c%b\x0a%b" % (_CONSUME_START, len(new), new, bytes(4))  # no_ack, nowait; no arguments
    return _frame(1, channel, cancel) + _frame(1, channel, consume)


@functools.lru_cache(1000)
def _layout(flags: int) -> list[tuple[str, int]] | None:
    """The properties that these flags announce, with their sizes (0: a short string); None if it takes more to
    read them."""
    if flags & (_HEADERS | _MORE_FLAGS):
        return None
    sizes = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
    return [(name, sizes.get(name, 0)) for name, flag in commands.Basic.Properties.flags.items() if flags & flag]


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "headers": encode.field_table,
    "timestamp": lambda time: time.to_bytes(8, "big") if isinstance(time, int) else encode.timestamp(time),
    "delivery_mode": encode.octet, "priority": encode.octet,
}  # fmt: skip


def _encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Raises ValueError, and whatever pamqp raises, for what can't be encoded."""
    flags, parts = 0, [b""]
    for name, flag in commands.Basic.Properties.flags.items():
        value = properties.get(name)
        if value not in (None, ""):
            flags |= flag
            parts.append(_ENCODERS.get(name, encode.short_string)(value))
    parts[0] = flags.to_bytes(2, "big")
    return b"".join(parts)


def _decode_properties(payload: bytes) -> Any:
    """Of a content header. Raises anything if they can't be decoded."""
    layout = _layout(payload[12] << 8 | payload[13])
    if layout is None:
        header = amqp_header.ContentHeader()
        header.unmarshal(payload)
        return header.properties
    properties, at = commands.Basic.Properties(), 14
    for name, size in layout:
        start, at = (at, at + size) if size else (at + 1, at + 1 + payload[at])
        data = payload[start:at]
        value = data.decode() if not size else data[0] if size == 1 else decode.timestamp(data)[1]
        setattr(properties, name, value)
    if at > len(payload):
        raise ValueError("they are cut short")
    return properties


class _Deliver(NamedTuple):
    """Basic.Deliver. The names of exchange and routing key, which may be undecodable, aren't needed."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    name: str = "Basic.Deliver"


def _decode_method(payload: bytes) -> Any:
    """Raises OSError if it can't be decoded."""
    try:
        if payload.startswith(_DELIVER_START):
            end = 5 + payload[4]
            tag = int.from_bytes(payload[end : end + 8], "big")
            return _Deliver(payload[5:end].decode(), tag, bool(payload[end + 8] & 1))
        if payload.startswith(_ACK_START):
            return commands.Basic.Ack(int.from_bytes(payload[4:12], "big"), bool(payload[12] & 1))
        return amqp_frame.unmarshal(_frame(1, 0, payload))[2]
    except Exception:
        raise OSError(f"it sent a frame that can't be decoded: {payload[:40]!r}") from None


class _Link(Connection):
    """An amqpstorm connection that is read and written by one thread only, its owner's.

    Other threads may `post` frames. All else belongs to the owner, which calls `pump` again and
    again. Everything here raises AMQPConnectionError when the connection is lost: at once,
    and never later than two heartbeats.
    """

    def __init__(self, host: str, port: int, config: Config, wakeup: _Wakeup) -> None:
        self.address = f"{host}:{port}"
        self.wakeup = wakeup
        self.channels_by_id: dict[int, _Channel] = {}
        self._timeout = config.RABBIT_CONNECT_TIMEOUT
        super().__init__(host, port=port, lazy=True, **config._connection_options())
        self._io: _Socket = _Socket(self.parameters, self._exceptions, config.RABBIT_PUBLISH_TIMEOUT)
        self._pulse = self.heartbeat = _Heartbeat(config.RABBIT_HEARTBEAT, self._channel0.send_heartbeat)
        self._selector = selectors.DefaultSelector()  # no select(): it fails from descriptor 1024 on
        self._events = 0  # that it waits for at the socket
        self._buffer = b""
        self.received_at = time.monotonic()
        #: It only waits: an exception that a signal handler raises then leaves all in order.
        self.at_rest = False
        _links.add(self)
        try:
            self.open()
        except BaseException:
            self.hang_up()
            raise

    def post(self, data: bytes) -> None:
        """Have it written soon. From any thread."""
        self._io.outbox.append(data)
        self.wakeup.set()

    def write(self, data: bytes) -> None:
        """Have it written by the next `pump`. By the owner."""
        self.heartbeat.register_write()
        self._io.outbox.append(data)

    @property
    def has_to_write(self) -> bool:
        return self._io.has_to_write

    def flush(self) -> bool:
        """Write what the socket takes now; returns whether all is written."""
        try:
            return self._io.flush()
        except OSError as error:
            raise AMQPConnectionError(str(error)) from error

    def pump(self, until: float) -> None:
        """Write and read what there is, once; wait for it no longer than `until`, or to be woken. The owner clears
        its wakeup before it looks for work, and then pumps."""
        self.at_rest = False
        try:
            for key, _ in self._select(min(until, self._pulse.due), self._io.flush()):
                if key.fileobj is self.wakeup:
                    self.wakeup.is_set = True
                else:
                    self._read(self._io.receive())
            self._io.flush()
            self._pulse.tick()
        except AMQPConnectionError:
            raise
        except OSError as error:
            raise AMQPConnectionError(str(error)) from error
        if self.exceptions:  # of amqpstorm's own code: the broker's Close, missing heartbeats
            raise self.exceptions[0]

    def _select(self, until: float, flushed: bool) -> list[Any]:
        events = selectors.EVENT_READ if flushed else selectors.EVENT_READ | selectors.EVENT_WRITE
        if events != self._events:
            sock = cast(socket.socket, self._io.socket)
            if self._events:
                self._selector.modify(sock, events)
            else:
                self._selector.register(sock, events)
                self._selector.register(self.wakeup, selectors.EVENT_READ)
            self._events = events
        left = _left(until)
        self.at_rest = True
        ready = self._selector.select(left if flushed else min(left, TICK))  # a stall that lasts is to be noticed
        self.at_rest = False
        return ready

    def _read(self, data: bytes) -> None:
        """Hand each whole frame to its channel, and keep the rest."""
        self.received_at = time.monotonic()
        self.heartbeat.register_read()
        data, offset = self._buffer + data, 0
        while len(data) - offset > _FRAME_HEADER.size:
            kind, channel, size = _FRAME_HEADER.unpack_from(data, offset)
            if kind not in (1, 2, 3, 8) or size > self.max_frame_size:
                raise OSError(f"it doesn't speak AMQP 0-9-1: {data[offset : offset + 20]!r}")
            start = offset + _FRAME_HEADER.size
            end = start + size + 1
            if end > len(data):
                break
            self._on_frame(kind, channel, data[start : end - 1])
            offset = end
        self._buffer = data[offset:]

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        channel = self.channels_by_id.get(number)
        if channel is not None and kind == 3:
            channel.on_body(payload)
        elif channel is not None and kind == 2:
            channel.on_header(payload)
        elif channel is not None and kind == 1:
            channel.on_frame(_decode_method(payload))
        elif number == 0:
            self._channel0.on_frame(_decode_method(payload) if kind == 1 else amqp_heartbeat.Heartbeat())
            if self.is_closed and not self._user_closed:
                raise self.exceptions[0] if self.exceptions else OSError("closed by the broker")

    def _wait_for_connection_state(self, state: int = Connection.OPEN, rpc_timeout: float = 30) -> None:
        """As amqpstorm's, without its polling, and within our timeouts."""
        timeout = CLOSE_TIMEOUT if state == self.CLOSED else self._timeout
        deadline = time.monotonic() + timeout
        while self.current_state != state:
            if time.monotonic() >= deadline:
                raise AMQPConnectionError(f"no answer within {timeout:g} seconds")
            self.wakeup.clear()
            self.pump(deadline)

    def close(self) -> None:
        """Write what is left and take leave, within CLOSE_TIMEOUT seconds. Doesn't raise."""
        with contextlib.suppress(OSError):
            super().close()
        self.hang_up()

    def hang_up(self) -> None:
        """End it without a word to the broker, and without waiting. In a forked child, too: the
        parent's connection isn't touched by closing the copy of its socket."""
        sock, self._io.socket = self._io.socket, None
        self._selector.close()
        if sock is not None:
            sock.close()
        self.set_state(self.CLOSED)


_links: weakref.WeakSet[_Link] = weakref.WeakSet()


C = TypeVar("C", bound=Connection)


def _first_that_answers(config: Config, connect: Callable[[str, int], C]) -> C:
    """Try each address in turn. Raises AMQPConnectionError with all reasons."""
    reasons, code = [], None
    for host, port in config._addresses():
        try:
            return connect(host, port)
        except (OSError, ValueError) as error:
            code = code or getattr(error, "error_code", None)
            reasons.append(f"{host}:{port} ({error})")
    raise AMQPConnectionError(f"can't connect to RabbitMQ at {', '.join(reasons)}", reply_code=code)


def _open_link(config: Config, wakeup: _Wakeup) -> _Link:
    return _first_that_answers(config, lambda host, port: _Link(host, port, config, wakeup))


class _Channel:
    """A channel on a link. Belongs to the link's owner. Raises amqpstorm's errors."""

    def __init__(self, link: _Link, timeout: float) -> None:
        self.link = link
        self._timeout = timeout
        #: Why nothing can be done on this channel any more.
        self.lost: AMQPError | None = None
        self._awaited: Sequence[str] = ()
        self._answer: Any = None
        self._method: Any = None
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._missing = 0
        self.id = next(id for id in itertools.count(1) if id not in link.channels_by_id)
        if self.id > link.max_allowed_channels:
            raise AMQPChannelError(f"more than {link.max_allowed_channels} channels (the broker's channel_max)")
        link.channels_by_id[self.id] = self
        self.request(commands.Channel.Open())

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """A whole message has arrived. Must not block."""

    def on_method(self, frame: Any) -> None:
        """A method has arrived that isn't the answer to a request. Must not block."""

    def write(self, *frames: Any) -> None:
        self.link.write(_marshal(self.id, *frames))

    def request(self, frame: Any) -> Any:
        """Send a method and pump until its answer has come."""
        deadline = time.monotonic() + self._timeout
        self._awaited, self._answer = frame.valid_responses, None
        self.write(frame)
        while self._answer is None:
            if self.lost is not None:
                raise self.lost
            if time.monotonic() >= deadline:
                raise AMQPConnectionError(f"no answer to {frame.name} within {self._timeout:g} seconds")
            self.link.wakeup.clear()  # whoever requests looks for work after it, not only before
            self.link.pump(deadline)
        return self._answer

    def close(self) -> None:
        self.request(commands.Channel.Close(reply_code=200, reply_text="", class_id=0, method_id=0))
        self.link.channels_by_id.pop(self.id, None)

    def on_header(self, payload: bytes) -> None:
        """Properties that can't be decoded must not end the connection: it is delivered, with None."""
        self._missing = _CONTENT_HEADER.unpack_from(payload)[2]
        try:
            self._properties = _decode_properties(payload)
        except Exception:
            self._properties = None
        self._end_content()

    def on_body(self, payload: bytes) -> None:
        self._parts.append(payload)
        self._missing -= len(payload)
        self._end_content()

    def on_frame(self, frame: Any) -> None:
        name = frame.name
        if name in ("Basic.Deliver", "Basic.Return"):
            self._method = frame
        elif name in self._awaited:
            self._awaited, self._answer = (), frame
        else:
            if name == "Channel.Close":
                self.write(commands.Channel.CloseOk())
                self.link.channels_by_id.pop(self.id, None)
                self.lost = AMQPChannelError(str(frame.reply_text), reply_code=frame.reply_code)
            self.on_method(frame)

    def _end_content(self) -> None:
        if self._missing <= 0:
            parts, self._parts = self._parts, []
            self.on_content(self._method, self._properties, parts[0] if len(parts) == 1 else b"".join(parts))


def _ensure_queue(link: _Link, queue: str, arguments: dict[str, Any], timeout: float) -> None:
    """Look first, declare only when it is absent: a queue that exists is used as it is.

    On a channel of its own, which a failure closes. Raises amqpstorm's errors, and ValueError for a name that can't be.
    """
    failure = None
    # Classic queues of RabbitMQ 4.3 have no such timeout, and can't be declared with one.
    timeless = {key: value for key, value in arguments.items() if key != "x-consumer-timeout"}
    declarations = [arguments] if timeless == arguments else [arguments, timeless]
    for wanted in (None, *declarations, None):  # None: look. The last: another declared it in between, differently
        look = wanted is None
        declare = commands.Queue.Declare(queue=queue, passive=look, durable=not look, arguments=wanted)
        channel = _Channel(link, timeout)
        try:
            channel.request(declare)
            return channel.close()
        except AMQPChannelError as error:
            if failure is None or error.error_code != 404:  # that there is none says less than why there can be none
                failure = error
            if error.error_code != (404 if look else 406):
                break
    raise cast(AMQPChannelError, failure)


# --- Sending -----------------------------------------------------------------


class _Done:
    """That something is done: a `threading.Event` for one thread that waits. Cheaper: each message has one."""

    def __init__(self) -> None:
        self._is_set = False
        self._until_set = threading.Lock()
        self._until_set.acquire()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        with contextlib.suppress(RuntimeError):  # another has set it, too
            self._until_set.release()

    def wait(self, seconds: float) -> None:
        if not self._is_set and self._until_set.acquire(timeout=seconds):
            with contextlib.suppress(RuntimeError):  # it was set once more
                self._until_set.release()


def _messages(count: int) -> str:
    return "the message" if count == 1 else f"{count} messages"


class _Order:
    """Messages that a thread wants sent, and waits for. The sender settles it; `done` tells.

    Raises ValueError, and whatever pamqp raises, for properties that can't be encoded.
    """

    def __init__(self, messages: Sequence[_Message], call: bool = False, attempts: int = 10) -> None:
        #: By their place: those that aren't known to have arrived.
        self.open = dict(enumerate(messages))
        self.properties = [_encode_properties(m.properties) for m in messages]
        if max(map(len, self.properties), default=0) > MAX_PROPERTIES:  # the broker would close the connection
            raise ValueError(f"properties of more than {MAX_PROPERTIES} bytes")
        self.size = sum([len(message.body) for message in messages])
        #: Whether a reply is wanted, and its body.
        self.call = call
        self.reply: bytes | None = None
        #: How many more times it may be lost on its way.
        self.attempts = attempts
        #: Why it has failed, and how many of its messages are refused for good.
        self.failure: str | None = None
        self.refused = 0
        #: Why it isn't done yet, if more is known than that there is no answer.
        self.trouble: str | None = None
        #: Nobody waits any more: what isn't sent yet must not be. Or nobody has waited: it is to be sent all the same.
        self.abandoned = False
        self.unattended = False
        self.done = _Done()

    def fail(self, why: str) -> None:
        self.failure = why
        self.done.set()
        if self.unattended:
            queues = ", ".join(sorted({repr(message.queue) for message in self.open.values()}))
            logger.error("Lost: %s for %s: %s", _messages(len(self.open)), queues, why)

    def settle(self, place: int, refused: str | None = None) -> None:
        """A message has arrived, or is refused for good: done when that is known of all."""
        if refused is None:
            del self.open[place]
        else:
            self.failure = refused
            self.refused += 1
        if len(self.open) == self.refused and (self.refused or not self.call):
            self.done.set()


def _is_open(order: _Order) -> bool:
    """Somebody waits for it."""
    return not (order.abandoned or order.done.is_set())


class _PublishChannel(_Channel):
    """Publishes; the broker numbers what is published on a channel, and confirms by number."""

    def __init__(
        self, link: _Link, timeout: float, confirms: bool, settle: Callable[[_Order, int, str], object]
    ) -> None:
        super().__init__(link, timeout)
        self._settle = settle
        self._last_tag, self._oldest_tag = 0, 1
        self.in_flight: dict[int, tuple[_Order, int]] = {}
        self.waits_since = math.inf  # time.monotonic(), while something is in flight
        self._returned: set[int] = set()
        #: A queue has refused a message by a Nack. In a cluster this channel may go on with the leader that has fallen.
        self._refused = False
        self._fresh_until = time.monotonic() + REFUSAL_PAUSE
        if confirms:
            self.request(commands.Confirm.Select())

    @property
    def spent(self) -> bool:
        """Another is to take its place. Not sooner, however many queues refuse: channels are limited."""
        return self._refused and time.monotonic() >= self._fresh_until

    @property
    def is_usable(self) -> bool:
        return self.lost is None and not self.spent

    def publish(self, order: _Order, place: int) -> None:
        message, limit = order.open[place], self.link.max_frame_size
        self.link.write(
            _content_frames(
                self.id, message.queue, message.mandatory, order.properties[place], message.body, limit
            )
        )
        if not self.in_flight:
            self.waits_since = time.monotonic()
        self._last_tag += 1
        self.in_flight[self._last_tag] = order, place

    def on_method(self, frame: Any) -> None:
        if frame.name in ("Basic.Ack", "Basic.Nack"):
            self.settle(frame.delivery_tag, frame.multiple, frame.name)
        elif self.lost is not None:
            self.settle(self._last_tag, True, str(self.lost))

    def settle(self, tag: int, multiple: bool, fate: str) -> None:
        self._refused |= fate == "Basic.Nack"
        for number in range(self._oldest_tag if multiple else tag, tag + 1):
            if number in self.in_flight:
                self._settle(*self.in_flight.pop(number), "returned" if number in self._returned else fate)
                self._returned.discard(number)
        if multiple:
            self._oldest_tag = tag + 1

    def settle_written(self) -> None:
        """Without confirms, that the operating system has taken them is all that is known."""
        self.settle(self._last_tag, True, "Basic.Ack")

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """A message that no queue took; its Ack follows. Of several that look alike none is taken
        for confirmed: rather one too many is sent again than one too few."""
        key = method.routing_key, getattr(properties, "message_id", None)
        for number, (order, place) in self.in_flight.items():
            if key == order.open[place].key:
                self._returned.add(number)


class _CallChannel(_PublishChannel):
    """One caller's way of asking and being answered, by direct reply-to.

    A reply bears nothing that tells which request it answers (Kuyruk 10's workers send no
    correlation id), and may come late, or twice. So each request has a reply address and a
    consumer tag of its own: cancelling and consuming again makes the broker forget the old
    address. That costs two small frames and no round trip, and is done when the channel gets
    free: while the broker does it, the caller goes on.
    """

    def __init__(self, link: _Link, timeout: float, settle: Callable[[_Order, int, str], object]) -> None:
        # Confirmed, always: else a call that takes long looks like a message that is on its way.
        super().__init__(link, timeout, confirms=True, settle=settle)
        self.order: _Order | None = None
        self._tag = 0
        self.release()

    def ask(self, order: _Order) -> None:
        self.order = order
        self.publish(order, 0)

    def release(self) -> None:
        """What may still be answered here is of no interest any more."""
        self.order = None
        if self.lost is None:
            self._tag += 1
            self.link.write(_renew_frames(self.id, self._tag))

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        if method.name == "Basic.Return":
            super().on_content(method, properties, body)
        elif self.order is not None and method.consumer_tag == str(self._tag):
            order = self.order
            self.release()
            order.reply = body
            order.done.set()


def _pauses(longest: float) -> Iterator[float]:
    """Growing, with jitter: so that many clients of a broker don't come back as one."""
    for n in itertools.count():
        yield min(FIRST_RECONNECT * 2 ** min(n, 20), longest) * (0.5 + os.urandom(1)[0] / 512)


class _Sender:
    """The thread that owns a publisher's connection, and ends when idle or told to.

    It takes orders from the inbox, and settles them. When the connection is lost, what isn't
    known to have arrived is sent again on the next.

    The owner is whoever has the helm, a lock. While the sender has nothing to do it lets go of that, and a thread that
    wants to send may `lead`: it uses the connection itself, which takes no change of threads. It does nothing that may
    take long (connect, declare, send again), and gives way as soon as there is anything else to do.
    """

    def __init__(self, config: Config, lock: threading.RLock) -> None:
        self._config = config
        #: Guards its last moment: when `ended`, the inbox takes no more.
        self._lock = lock
        self.ended = False
        self.inbox: collections.deque[_Order] = collections.deque()
        self.wakeup = _Wakeup()
        self.closing = False
        self._helm = threading.RLock()
        self._leaders: set[int] = set()  # threads that lead, or try to
        self._leads_from = -math.inf  # time.monotonic(): several threads send, and are better served by this one
        self._broken: BaseException | None = None  # the connection, while a thread led; for this one to see to
        self._trouble = "no connection"
        self.thread = threading.Thread(target=self._run, name="kuyruk-sender", daemon=True)
        self._link: _Link | None = None
        self._careful = False  # some orders may be on their last attempt
        self._reset()

    def _reset(self) -> None:
        #: time.monotonic() when a queue was seen.
        self._queues: dict[str, float] = {}
        self._calls: list[_CallChannel] = []
        #: Not used any more, but for the confirms that are to come.
        self._spent: list[_PublishChannel] = []
        #: To be sent again, from a time.monotonic() on: returned, because their queue has vanished, or refused.
        self._again: collections.deque[tuple[float, _Order, int]] = collections.deque()

    @property
    def state(self) -> str:
        """Why nothing is confirmed, for error texts. For any thread."""
        link = self._link
        if link is None:
            return self._trouble
        return "it blocks publishing (memory or disk alarm)" if link.is_blocked else "no answer"

    @property
    def is_led_here(self) -> bool:
        """By this thread, in which a signal handler wants to send."""
        return threading.get_ident() in self._leaders

    @property
    def keeps_up(self) -> bool:
        """Whether it is connected, and has little to write. For any thread."""
        link = self._link
        return link is not None and not link.is_blocked and self.backlog < UNATTENDED_ORDERS

    @property
    def backlog(self) -> int:
        """Orders that wait to be written, and messages that are on their way. For any thread."""
        return len(self.inbox) + (0 if self._link is None else len(self._channel.in_flight))

    # -- a thread that leads

    def lead(self, order: _Order, until: float) -> bool:
        """Send the order in this thread, and return when it is done, when there is more to do, or at `until`; what is
        left is up to the sender. Returns False at once if the order should better be given to that."""
        me = threading.get_ident()
        if me in self._leaders:
            return False
        # A signal handler may raise, or send, at any point. So it is up to the lock to know whose it is, nothing is
        # called before its release; and as long as this thread may have it, it is among the leaders.
        try:
            self._leaders.add(me)
            return self._helm.acquire(blocking=False) and self._lead(order, until)
        finally:
            try:
                self._helm.release()
            except RuntimeError:  # another thread's
                pass
            self._leaders.discard(me)

    def _lead(self, order: _Order, until: float) -> bool:
        link = self._link
        if link is None or link.is_blocked or not self._is_free_for(order):
            return False
        link.at_rest = False
        try:
            self._publish(link, order, list(order.open))
            while _is_open(order) and not (self.wakeup.is_set or self._again):
                now = time.monotonic()
                if now >= until:
                    break
                link.pump(min(until, self._look_for_answers(link, now)))
        except AMQPConnectionError as error:
            self._broken = error
        except BaseException as error:
            self._broken = None if link.at_rest else error
            raise
        finally:
            self._idle_at = time.monotonic() + self._config.RABBIT_IDLE_DURATION
            if self._broken or self._is_busy:
                self.wakeup.set()
        return True

    def _is_free_for(self, order: _Order) -> bool:
        """Nothing else is to be done, and nothing that takes long is to be done for this one."""
        if not (order.call or self._config.RABBIT_CONFIRM) or time.monotonic() < self._leads_from:
            return False
        if self.wakeup.is_set or self.ended or self.closing or self._broken or self._careful or self._is_busy:
            return False
        channels = self._calls if order.call else [self._channel]
        return any(channel.is_usable for channel in channels) and not self._unseen_queues(order.open.values())

    @property
    def _is_busy(self) -> bool:
        has_to_write = self._link is not None and self._link.has_to_write
        return bool(self.inbox or self._again or self._spent) or has_to_write or self._has_in_flight

    @property
    def _has_in_flight(self) -> bool:
        """That somebody waits for: of a call that is answered, the confirm can come later."""
        return any(map(_is_open, self._orders_in_flight()))

    # -- its own thread

    def _run(self) -> None:
        pauses = _pauses(1.0)
        with self._helm:
            while not self._may_end():
                try:
                    if self._link is None:
                        self._connect()
                        pauses = _pauses(1.0)
                    self._work(cast(_Link, self._link))
                except AMQPConnectionError as error:
                    self._on_lost(error, next(pauses))
                except Exception as error:
                    logger.exception("Defect in the sender; its connection is given up")
                    self._on_lost(AMQPConnectionError(repr(error)), next(pauses))
        if self._link is not None:
            self._link.close()
        self.wakeup.close()

    def _may_end(self) -> bool:
        """Never waits for the lock: who has it has an order, or is below a signal handler that waits for one."""
        idle = self.closing or self._link is None or time.monotonic() >= self._idle_at
        if idle and self._lock.acquire(blocking=False):
            self.ended = not self._has_in_flight and not any(map(_is_open, self.inbox))
            self._lock.release()
        return self.ended

    def _connect(self) -> None:
        link = _open_link(self._config, self.wakeup)
        try:
            self._channel = self._open_channel(link)
        except BaseException:
            link.hang_up()
            raise
        self._link, self._idle_at = link, time.monotonic() + self._config.RABBIT_IDLE_DURATION

    def _open_channel(self, link: _Link) -> _PublishChannel:
        config = self._config
        return _PublishChannel(link, config.RABBIT_PUBLISH_TIMEOUT, config.RABBIT_CONFIRM, self._settle)

    def _work(self, link: _Link) -> None:
        self.wakeup.clear()
        self._look_whether_broken()
        self._close_spent()
        self._send_again(link)
        while self.inbox and not link.is_blocked and self._may_publish(self.inbox[0]):
            now = time.monotonic()
            self._idle_at = now + self._config.RABBIT_IDLE_DURATION
            if len(self.inbox) > 1 or self._has_in_flight:
                self._leads_from = now + LEAD_AFTER
            self._publish(link, self.inbox[0], list(self.inbox[0].open))
            self.inbox.popleft()  # not before: if the connection was lost, it is taken again
        if not self._config.RABBIT_CONFIRM and self._channel.in_flight and link.flush():
            self._channel.settle_written()
        now = time.monotonic()
        if self._is_busy:
            again_at = self._again[0][0] if self._again else math.inf
            link.pump(min(again_at, now + TICK, self._look_for_answers(link, now)))
        elif not self.closing:  # what has woken it for that is cleared, and nothing else will
            self._rest(min(self._idle_at, now + TICK))
            link.pump(0)  # what has come meanwhile

    def _rest(self, until: float) -> None:
        """Others may use the connection. What wakes this thread is left set until they are out of it: it is for them,
        too."""
        self._helm.release()
        try:
            self.wakeup.look(until)
        finally:
            self._helm.acquire()

    def _look_whether_broken(self) -> None:
        broken, self._broken = self._broken, None
        if isinstance(broken, AMQPConnectionError):
            raise broken
        if broken is not None:
            raise AMQPConnectionError(f"interrupted by {broken!r}")

    def _send_again(self, link: _Link) -> None:
        """What is due by now. What is refused meanwhile comes after the inbox: its turn may be due before this ends."""
        now = time.monotonic()
        while self._again and self._again[0][0] <= now:
            again = self._again[0]
            self._publish(link, again[1], [again[2]])
            self._again.remove(again)  # not before: if the connection was lost, it is taken again

    def _channels(self) -> list[_PublishChannel]:
        return [self._channel, *self._calls, *self._spent]

    def _may_publish(self, order: _Order) -> bool:
        """One on its last attempt goes alone: it may be what has ended the connection, or was only beside that."""
        if not self._careful:
            return True
        in_flight = [other for channel in self._channels() for other, _ in channel.in_flight.values()]
        self._careful = any(other.attempts <= 1 for other in (*self.inbox, *in_flight))
        return not in_flight or (order.attempts > 1 and all(other.attempts > 1 for other in in_flight))

    def _look_for_answers(self, link: _Link, now: float) -> float:
        """A peer that has vanished is noticed by its missing heartbeats, which may take minutes: too long for what
        waits for its confirm. In half of its time another connection can be tried. Returns when to look again."""
        waiting = [channel.waits_since for channel in self._channels() if channel.in_flight]
        if not waiting or link.is_blocked:
            return math.inf
        limit = self._config.RABBIT_PUBLISH_TIMEOUT / 2
        if now - max(link.received_at, min(waiting)) > limit:
            raise AMQPConnectionError(f"no answer within {limit:g} seconds")
        return now + TICK

    def _publish(self, link: _Link, order: _Order, places: Sequence[int]) -> None:
        try:
            if not _is_open(order):
                return self._release(order)
            self._ensure_queues(link, [order.open[place] for place in places])
            if order.call:
                return self._call_channel(link, order).ask(order)
            if not self._channel.is_usable:  # refused, or the broker has closed it, not the connection
                self._spent.append(self._channel)
                self._channel = self._open_channel(link)
            for place in places:
                self._channel.publish(order, place)
        except (AMQPChannelError, ValueError) as error:  # a queue that we may not use, a name that no queue can have
            order.fail(str(error))

    def _call_channel(self, link: _Link, order: _Order) -> _CallChannel:
        free = [call for call in self._calls if call.order is None or call.order is order]
        self._spent += [call for call in free if call.spent]  # the others are waiting for a reply
        self._calls = [call for call in self._calls if call.lost is None and call not in self._spent]
        for call in free:
            if call in self._calls:
                return call
        self._calls.append(_CallChannel(link, self._config.RABBIT_PUBLISH_TIMEOUT, self._settle))
        return self._calls[-1]

    def _close_spent(self) -> None:
        """Those that wait for no confirm any more."""
        for channel in [each for each in self._spent if not each.in_flight]:
            self._spent.remove(channel)
            if channel.lost is None:
                channel.close()

    def _release(self, order: _Order) -> None:
        for call in self._calls:
            if call.order is order:
                call.release()

    def _ensure_queues(self, link: _Link, messages: Iterable[_Message]) -> None:
        now = time.monotonic()
        for message in self._unseen_queues(messages):
            _ensure_queue(link, message.queue, message.arguments, self._config.RABBIT_PUBLISH_TIMEOUT)
            self._queues[message.queue] = now

    def _unseen_queues(self, messages: Iterable[_Message]) -> list[_Message]:
        """A message for each queue that is to be looked for."""
        now, mandatory = time.monotonic(), {m.queue: m for m in messages if m.mandatory}
        return [m for m in mandatory.values() if now - self._queues.get(m.queue, -math.inf) >= m.renewal]

    def _settle(self, order: _Order, place: int, fate: str) -> None:
        """What became of a message: its confirm, or else what happened to it. While pumping."""
        if not _is_open(order):
            return
        if fate == "Basic.Ack":
            order.settle(place)
            return
        if fate == "Basic.Nack":  # not for good: while a quorum queue has no leader, and until a full one has room
            order.trouble = f"queue {order.open[place].queue!r} refuses it (it is full, or without a leader)"
            self._again.append((time.monotonic() + REFUSAL_PAUSE, order, place))
            return
        self._queues.pop(order.open[place].queue, None)
        order.attempts -= 1
        limit = re.search(r"larger than configured max size (\d+)", fate)
        if order.attempts <= 0 or (limit and len(order.open[place].body) > int(limit[1])):
            order.settle(place, fate)
        else:
            self._again.appendleft((0, order, place))

    def _on_lost(self, error: AMQPError, pause: float) -> None:
        """Take what was on its way again with the next connection, and pause before that."""
        lost = list(dict.fromkeys(self._orders_in_flight()))
        link, self._link = self._link, None
        if link is not None:
            logger.info("Lost the connection for sending: %s", error)
        elif not self._trouble.startswith("can't"):  # not at each attempt
            logger.warning("Can't send: %s", error)
        self._trouble = str(error)
        for order in lost:
            order.attempts -= 1
            awaits_reply = order.call and not order.open  # it can't come by another channel
            if awaits_reply or order.attempts <= 0:
                order.fail(str(error))
        permanent = error.error_code in (403, 530)  # a wrong password, no such virtual host
        waiting = [self.inbox.popleft() for _ in range(len(self.inbox))]  # others may append meanwhile
        orders = [order for order in dict.fromkeys([*lost, *waiting]) if _is_open(order)]
        hopeless = [order for order in orders if permanent or (self.closing and order.unattended)]
        self.inbox.extendleft(reversed([order for order in orders if order not in hopeless]))
        self._careful = any(order.attempts <= 1 for order in orders)
        for order in hopeless:
            order.fail(str(error))
        self._reset()
        if link is not None:
            link.hang_up()
        until = time.monotonic() + pause
        while self.inbox and not self.closing and time.monotonic() < until:
            self.wakeup.wait(until)

    def _orders_in_flight(self) -> Iterator[_Order]:
        """Those of several messages several times."""
        if self._link is not None:
            yield from (order for channel in self._channels() for order, _ in channel.in_flight.values())
            yield from (call.order for call in self._calls if call.order is not None)
            yield from (order for _, order, _ in self._again)


class _Publisher:
    """Sends messages for many threads, by a sender that it starts when there is something to
    send. In a forked child it begins anew."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.begin()
        _publishers.add(self)

    def begin(self) -> None:
        #: Guards the sender, and its inbox: one that has ended takes no more orders. Reentrant for signal handlers.
        self._lock = threading.RLock()
        self._sender: _Sender | None = None

    def send(self, messages: Sequence[_Message], attempts: int = 10) -> None:
        """Send, in windows that have RABBIT_PUBLISH_TIMEOUT seconds each. Raises BrokerError,
        whose `unconfirmed` lists the messages that aren't known to have arrived."""
        for start in range(0, len(messages), BATCH_WINDOW):
            order = _Order(messages[start : start + BATCH_WINDOW], attempts=attempts)
            sent_by = time.monotonic() + self._config.RABBIT_PUBLISH_TIMEOUT
            sender = self._send(order, sent_by, may_leave=not self._config.RABBIT_CONFIRM)
            if order.unattended:
                continue
            if not order.done.is_set() or order.failure is not None:
                order.abandoned = True
                rest = messages[start + BATCH_WINDOW :]
                raise self._error(sender, order, rest)

    def call(self, message: _Message, wait_result: float) -> bytes:
        """Send a request and wait for the reply. Raises BrokerError and ResultTimeout."""
        result_by = time.monotonic() + wait_result
        sent_by = time.monotonic() + self._config.RABBIT_PUBLISH_TIMEOUT
        order = _Order([message], call=True)
        try:
            sender = self._send(order, min(sent_by, result_by))
            if not order.open:
                _wait(order.done, result_by)
        finally:
            if order.reply is None:
                order.abandoned = True
                self._submit(order)  # gives its channel back
        if order.reply is not None:
            return order.reply
        if order.failure is None and time.monotonic() >= result_by:
            unsent = f"; nor has RabbitMQ confirmed the message: {order.trouble or sender.state}" if order.open else ""
            raise ResultTimeout(f"no reply within {wait_result:g} seconds (wait_result){unsent}")
        raise self._error(sender, order)

    def close(self) -> None:
        """Close the connection. Another send opens it again."""
        with self._lock:
            sender, self._sender = self._sender, None
        if sender is not None:
            sender.closing = True
            sender.wakeup.set()
            sender.thread.join(CLOSE_TIMEOUT)
            if not self._config.RABBIT_CONFIRM and sender.backlog:
                logger.error("%d messages may be lost if this process ends now: %s", sender.backlog, sender.state)

    def _send(self, order: _Order, until: float, may_leave: bool = False) -> _Sender:
        """By this thread, or else by the sender's; and wait until it is done, or `until`."""
        sender = self._sender
        if sender is None or not _interruptible(functools.partial(sender.lead, order, until), sender.wakeup.set):
            sender = self._submit(order, may_leave)
        if not order.unattended:
            _wait(order.done, until)
        return sender

    def _submit(self, order: _Order, may_leave: bool = False) -> _Sender:
        """may_leave: what need not be confirmed is left to a sender that is connected and keeps up."""
        with self._lock:
            sender = self._sender
            if sender is not None and sender.is_led_here:  # it goes on when this has returned
                sender.closing, sender = True, None
            if sender is None or sender.ended:
                sender = _Sender(self._config, self._lock)
                sender.thread.start()
                self._sender = sender
            order.unattended = may_leave and order.size <= UNATTENDED_BYTES and sender.keeps_up
            sender.inbox.append(order)
        sender.wakeup.set()
        return sender

    def _error(self, sender: _Sender, order: _Order, rest: Sequence[_Message] = ()) -> BrokerError:
        limit = f"within {self._config.RABBIT_PUBLISH_TIMEOUT:g} seconds (RABBIT_PUBLISH_TIMEOUT)"
        count = len(order.open) + len(rest)
        what = f"{_messages(count)} not confirmed by RabbitMQ"
        if not count:  # a call's, which has lost the channel that the reply comes by
            what = "no reply can come any more, though RabbitMQ has the message, and the task may run"
        why = order.failure or f"{order.trouble or sender.state} {limit}"
        error = BrokerError(f"{what}: {why}")
        cast(Any, error).unconfirmed = [*order.open.values(), *rest]
        return error


_publishers: weakref.WeakSet[_Publisher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The parent's connections are left to the parent, and its ids."""
    _ids.begin()
    for link in tuple(_links):
        link.hang_up()
    for publisher in tuple(_publishers):
        publisher.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# --- Task --------------------------------------------------------------------


class SubTask(NamedTuple):
    """A task with its arguments, for `Kuyruk.send_tasks_to_queue`."""

    task: Task[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    host: str | None


_NO_KWARGS: Mapping[str, Any] = types.MappingProxyType({})


def _module_name(f: Callable[..., Any]) -> str:
    """By which a worker imports the function's module: a script's is its real one. Raises TypeError if none is."""
    main = sys.modules["__main__"]
    if f.__module__ != "__main__":
        return f.__module__
    if getattr(main, "__spec__", None) is not None:
        return str(cast(Any, main.__spec__).name)
    if getattr(main, "__file__", None) is None:
        raise TypeError(f"function {f.__qualname__!r} is in no module that a worker could import")
    return os.path.splitext(os.path.basename(str(main.__file__)))[0]


class Task(Generic[P, R]):
    """A function that workers run. Calling it sends a message to its queue. Made by `Kuyruk.task`.

    retry: how often it is tried again, at once, when it raises. max_run_time: seconds that a try may take before it
    is interrupted with Timeout. fail_delay: seconds after which a failed message is back in its queue (0: it goes to
    "<queue>.failed"). reject_delay: likewise for a rejected one (0: it is back at once). Raises ValueError.
    """

    def __init__(
        self,
        f: Callable[P, R],
        kuyruk: Kuyruk,
        queue: str,
        retry: int = 0,
        max_run_time: float | None = None,
        fail_delay: float = 0,
        reject_delay: float = 0,
    ) -> None:
        _check("retry", retry, _whole(0))
        _check("max_run_time", max_run_time, _or_none(_SECONDS))
        _check("fail_delay", fail_delay, _TTL)
        _check("reject_delay", reject_delay, _TTL)
        self.f = f
        self.kuyruk = kuyruk
        self.queue = _check_queue_name(queue)
        self.retry = retry
        self.max_run_time = max_run_time or None
        self.fail_delay = fail_delay
        self.reject_delay = reject_delay
        functools.update_wrapper(self, f)

    def __repr__(self) -> str:
        return f"<Task {self.f.__module__}.{self.f.__qualname__} on {self.queue!r}>"

    @property
    def name(self) -> str:
        """"<module>.<function>", by which workers find it."""
        return f"{_module_name(self.f)}.{self.f.__name__}"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send a message that makes a worker call the function with these arguments. Raises as `send_to_queue`."""
        self.send_to_queue(args, kwargs)

    def send_to_queue(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        host: str | None = None,
        wait_result: float | None = None,
        message_ttl: float | None = None,
    ) -> Any:
        """Send a message; with `wait_result`, wait for the result and return it.

        host: sends to "<queue>.<host>"; "localhost" stands for this machine's hostname. wait_result: seconds from now
        to wait for the reply; None: don't wait. message_ttl: seconds after which the message is dropped, unless a
        worker has got it. Raises TypeError (arguments that aren't JSON), BrokerError (not confirmed in time, or the
        connection was lost while waiting), ResultTimeout (no reply in time) and RemoteException (the task raised).
        """
        _check("wait_result", wait_result, _or_none(_SECONDS))
        _check("message_ttl", message_ttl, _or_none(_TTL))
        if self.kuyruk.config.EAGER:
            return self._send_eagerly(args, kwargs, wait_result)
        message = self._message(args, kwargs, host)
        if message_ttl is not None:
            message.properties["expiration"] = _milliseconds(message_ttl)
        if wait_result is None:
            return self.kuyruk._publisher.send([message])
        message.properties.update(reply_to="amq.rabbitmq.reply-to", correlation_id=message.properties["message_id"])
        return _decode_reply(self.kuyruk._publisher.call(message, wait_result))

    def subtask(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = _NO_KWARGS, host: str | None = None
    ) -> SubTask:
        """The task with its arguments, for `Kuyruk.send_tasks_to_queue`."""
        return SubTask(self, args, kwargs, host)

    def apply(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, with its retries and its time limit, without the broker.

        Returns what it returns, and raises what it raises in the last try. A try that exceeds
        `max_run_time` is interrupted with Timeout where Python can do that. A call in C code
        (`time.sleep`, a database driver) goes on to its end, and a wait for a lock or a queue, too:
        Timeout is raised after it, and a warning is logged meanwhile. A worker gives such a task up
        after WORKER_GRACE seconds; here nobody else could go on.
        """
        watch = _Watch(_APPLY_GRACE, _warn_of_stuck) if self.max_run_time else None
        try:
            return cast(R, Run(self, None, None, False)._call(args, kwargs, watch))
        finally:
            if watch is not None:
                watch.close()

    def _fits(self, error: BaseException, args: Any, kwargs: Any) -> bool:
        """Whether the arguments fit the function. Looked at after a TypeError only: it is slow."""
        import inspect

        if isinstance(error, TypeError):
            with contextlib.suppress(ValueError):  # a function without a signature, of C
                try:
                    inspect.signature(self.f).bind(*args, **kwargs)
                except TypeError:
                    return False
        return True

    def _send_eagerly(self, args: Any, kwargs: Any, wait_result: float | None) -> Any:
        """As if sent: what isn't JSON fails, what JSON changes (a tuple, say) is changed."""
        description = _decode_task(_encode_task("", self.f.__module__, self.f.__name__, args, kwargs))
        result = self.apply(*cast(Any, description.args), **cast(Any, description.kwargs))
        return None if wait_result is None else _decode_reply(_encode_reply(result, None))

    def _message(self, args: Any, kwargs: Any, host: str | None) -> _Message:
        """Raises TypeError for what can't be sent, ValueError for a host that makes no queue name."""
        if not self._can_be_found:
            raise TypeError(
                f"{self.f.__qualname__!r} can't be sent: a worker finds a task by its name in its module, so it must"
                " be a named function at the top level (.apply works for any)"
            )
        id = _ids.make()
        properties = {"content_type": "application/json", "delivery_mode": 2, "message_id": id}
        properties |= {"timestamp": int(time.time())}
        queue = self.queue if host is None else _resolve_host(f"{self.queue}.{host}")
        body = _encode_task(id, _module_name(self.f), self.f.__name__, args, kwargs)
        return _Message(_check_queue_name(queue), body, properties, self.kuyruk._queue_arguments(queue))

    @property
    def _can_be_found(self) -> bool:
        return self.f.__qualname__ == self.f.__name__ and self.f.__name__.isidentifier()


AnyTask = Task[..., Any]


# --- Failed messages ---------------------------------------------------------


def _read_all(channel: Channel, queue: str) -> Iterator[Any]:
    """The messages that are in a queue now. They are amqpstorm's, and to be acknowledged."""
    try:
        left = channel.queue.declare(queue, passive=True)["message_count"]
    except AMQPChannelError as error:
        if error.error_code != 404:
            raise
        return
    came: collections.deque[Any] = collections.deque()
    channel.basic.consume(came.append, queue)
    patience = time.monotonic() + QUIET
    while left and time.monotonic() < patience:  # else another has taken the rest
        channel.process_data_events(auto_decode=False)
        while came and left:
            left, patience = left - 1, time.monotonic() + QUIET
            yield came.popleft()


def _facts_about(message: Any) -> dict[str, Any]:
    """What can be told of a failed message: it may be no task's at all."""
    headers = message.properties.get("headers") or {}
    facts: dict[str, Any] = {"id": message.properties.get("message_id") or None, "task": None}
    with contextlib.suppress(InvalidMessage):
        task = _decode_task(message._body)
        facts |= {"id": task.id or facts["id"], "task": f"{task.module}.{task.function}"}
        facts |= {"args": task.args, "kwargs": task.kwargs}
    for key in _OUR_HEADERS:
        value = headers.get(f"x-kuyruk-{key}")
        facts[key.replace("-", "_")] = value if isinstance(value, str | int | None) else repr(value)
    return facts


def _undropped(arguments: dict[str, Any]) -> dict[str, Any]:
    """A queue's, so that RabbitMQ drops no message because its connection was lost too often."""
    return {"x-delivery-limit": DELIVERY_LIMIT, **arguments} if _is_quorum(arguments) else arguments


def _is_quorum(arguments: Mapping[str, Any]) -> bool:
    return arguments.get("x-queue-type") == "quorum"


#: What a forwarded message doesn't take along. Properties: its time to live was for its queue, the
#: broker checks the user against ours, the last is reserved. Headers: CC and BCC would send copies.
_LEFT_BEHIND = ("expiration", "user_id", "cluster_id")
_LEFT_BEHIND_HEADER = re.compile(r"CC$|BCC$|x-death$|x-(first|last)-death-")


def _is_flat(value: Any, levels: int = 50) -> bool:
    """Whether it isn't nested so deeply that who gets it next, deeper in calls than we are, may fail to decode it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def _copied(
    properties: Iterable[tuple[str, Any]], headers: Mapping[str, Any], gone: Iterable[str] = _LEFT_BEHIND
) -> dict[str, Any]:
    """The properties of a message's copy, without those that are gone, and with those of the headers that may go."""
    kept = {k: v for k, v in properties if k not in gone and v not in (None, "")}
    kept["headers"] = {k: v for k, v in headers.items() if not _LEFT_BEHIND_HEADER.match(k) and _is_flat(v)}
    kept["delivery_mode"] = 2
    kept.setdefault("message_id", _ids.make())
    return kept


def _requeued(message: Any, queue: str, arguments: Callable[[str], dict[str, Any]]) -> _Message:
    """A failed message as its sender has sent it, as far as that can be known. Nobody waits for its reply any more."""
    headers = message.properties.get("headers") or {}
    kept = {k: v for k, v in headers.items() if not k.startswith("x-kuyruk-") or k == "x-kuyruk-failures"}
    gone = (*_LEFT_BEHIND, "reply_to", "correlation_id")
    properties = _copied(message.properties.items(), kept, gone)
    target = headers.get("x-kuyruk-queue")
    target = target if isinstance(target, str) else queue.removesuffix(".failed")
    return _Message(target, message._body, properties, arguments(target))


_OUR_HEADERS = ("failed-at", "failed-on", "failures", "queue", "exception", "value", "traceback")


# --- Kuyruk ------------------------------------------------------------------


class Kuyruk:
    """An application: its configuration, its tasks, and its connection for sending.

    config: a `Config`; None for the defaults. Nothing is connected before it is used. As a context manager it closes
    its connection at the end.
    """

    Reject: ClassVar = Reject
    Discard: ClassVar = Discard

    def __init__(self, config: Config | None = None) -> None:
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config takes a kuyruk.Config: not {config!r}")
        self.config = Config() if config is None else config
        self.extensions: dict[str, Any] = {}  #: For extensions.
        #: Top-level packages (or modules): a message makes a worker import nothing outside of them.
        self.packages: set[str] = set()
        self._tasks: dict[str, Task[..., Any]] = {}
        self._queues: dict[str, None] = {}
        self._has_long_tasks = False
        self._publisher = _Publisher(self.config)
        # When this is collected, or the interpreter exits. The publisher doesn't refer to this.
        weakref.finalize(self, self._publisher.close)

    def __enter__(self) -> Kuyruk:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection for sending. Another send opens it again."""
        self._publisher.close()

    @overload
    def task(self, queue: Callable[P, R]) -> Task[P, R]: ...

    @overload
    def task(
        self,
        queue: str = "kuyruk",
        *,
        retry: int = 0,
        max_run_time: float | None = None,
        fail_delay: float = 0,
        reject_delay: float = 0,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(self, queue: Any = "kuyruk", **options: Any) -> Any:
        """Decorate a function into a `Task`: `@app.task` or `@app.task(queue="x", retry=2)`, with Task's options."""

        def decorate(f: Callable[P, R]) -> Task[P, R]:
            task = Task(f, self, "kuyruk" if callable(queue) else queue, **options)
            self._queues[task.queue] = None
            self._has_long_tasks |= (task.retry + 1) * (task.max_run_time or 0) > CONSUMER_TIMEOUT / 4
            with contextlib.suppress(TypeError):  # of an interactive session: it can't be sent either
                if task._can_be_found:
                    self._tasks[task.name] = task
                    self.packages.add(task.name.partition(".")[0])
            return task

        return decorate(queue) if callable(queue) else decorate

    def send_tasks_to_queue(self, subtasks: Iterable[SubTask]) -> None:
        """Send many in one go; returns when the broker has confirmed all.

        Raises TypeError before anything is sent; BrokerError, whose `unconfirmed` lists the subtasks that aren't
        known to have arrived.
        """
        subtasks = list(subtasks)
        if self.config.EAGER:
            for subtask in subtasks:
                subtask.task._send_eagerly(subtask.args, subtask.kwargs, None)
            return
        messages = [s.task._message(s.args, s.kwargs, s.host) for s in subtasks]
        try:
            self._publisher.send(messages)
        except BrokerError as error:
            origin = {id(message): subtask for message, subtask in zip(messages, subtasks, strict=True)}
            error.unconfirmed = [origin[id(message)] for message in error.unconfirmed]
            raise

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A new `amqpstorm.Connection`, closed on exit. Raises amqpstorm.AMQPConnectionError."""
        options = self.config._connection_options() | {"poller": "poll" if hasattr(select, "poll") else "select"}
        connect = lambda host, port: Connection(host, port=port, **options)  # noqa: E731
        with _first_that_answers(self.config, connect) as connection:
            cast(socket.socket, connection.socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection

    @contextlib.contextmanager
    def channel(self) -> Iterator[Channel]:
        """A new `amqpstorm.Channel` on a new connection, both closed on exit."""
        with self.connection() as connection, connection.channel() as channel:
            yield channel

    def worker(self, queues: Iterable[str] | None = None, **options: Any) -> Worker:
        """A `Worker` for this application, with the worker's options."""
        return Worker(self, queues, **options)

    def _failed_messages(self, queue: str, id: str | None, then: str) -> Iterator[dict[str, Any]]:
        """What is in a "<queue>.failed" (of one message id, or all), in its order. then: "list", "requeue" or "purge"
        each. What isn't dealt with stays. Raises amqpstorm's errors, and BrokerError."""
        with self.channel() as channel:
            messages = (message for message in _read_all(channel, queue) if id in (None, _facts_about(message)["id"]))
            # Acknowledged only after the broker has the copies on record: rather twice than never.
            while batch := list(itertools.islice(messages, 500)):
                if then == "requeue":
                    self._publisher.send([_requeued(message, queue, self._queue_arguments) for message in batch])
                for message in batch:
                    if then != "list":
                        message.ack()
                    yield _facts_about(message)

    def _queue_arguments(self, queue: str) -> dict[str, Any]:
        """With which it is declared if it is missing. If its tasks may take long, but not for ever, RabbitMQ is told
        (from 3.12 on; earlier ones ignore that) how long to wait for their acknowledgements."""
        arguments = _undropped(self.config.QUEUE_ARGUMENTS)
        if not self._has_long_tasks:
            return arguments
        tasks = [task for task in self._tasks.values() if queue == task.queue or queue.startswith(f"{task.queue}.")]
        limits = [(task.retry + 1) * (task.max_run_time or math.inf) for task in tasks]
        longest = 2 * (max(limits, default=0) + self.config.WORKER_GRACE)  # it may wait for another to end before
        if not CONSUMER_TIMEOUT < longest < MAX_TTL / 1000:
            return arguments
        return {"x-consumer-timeout": int(_milliseconds(longest)), **arguments}

    def _find_task(self, module: str, function: str) -> AnyTask:
        """The task that a message names. Raises InvalidMessage."""
        name = f"{module}.{function}"
        if len(name) > MAX_TASK_NAME:
            raise InvalidMessage(f"no task's name has {len(name)} characters: {name[:100]!r}...")
        if name not in self._tasks:
            if module.partition(".")[0] not in self.packages:
                known = ", ".join(sorted(self.packages)) or "it has none"
                raise InvalidMessage(f"no task {name!r}, and {module!r} is in no package of this worker ({known})")
            try:
                importlib.import_module(module)
            except BaseException as error:
                raise InvalidMessage(f"can't import the module of task {name!r}: {error!r}") from error
        if name not in self._tasks:
            raise InvalidMessage(f"module {module!r} has no task {function!r}{_did_you_mean(name, self._tasks)}")
        return self._tasks[name]


# --- Worker: what becomes of a message ---------------------------------------


class _Verdict(NamedTuple):
    """What becomes of a message whose task has ended."""

    #: Which of the worker's counts goes up.
    tally: str
    #: ack: done with. requeue: back to its queue. fail: to "<queue>.failed". leave: not ours any more.
    action: Literal["ack", "requeue", "fail", "leave"]
    #: Whether the caller, if one waits, is told.
    reply: bool
    #: Seconds until it is back in its queue (requeue).
    delay: float = 0


def _decide(
    task: AnyTask | None, error: BaseException | None, fits: bool = True, lost: bool = False
) -> _Verdict:
    """What becomes of the message, by what its task raised (None: it returned).

    task: None when none was found; fits: whether the arguments fitted the function; lost: it isn't ours any more.
    """
    if lost:
        return _Verdict("lost", "leave", reply=False)
    if error is None:
        return _Verdict("succeeded", "ack", reply=True)
    if isinstance(error, Shutdown):
        return _Verdict("requeued", "requeue", reply=False)
    if task is None or not fits:
        return _Verdict("failed", "fail", reply=True)
    if isinstance(error, Reject):
        return _Verdict("rejected", "requeue", reply=False, delay=task.reject_delay)
    if isinstance(error, Discard):
        return _Verdict("discarded", "ack", reply=True)
    tally = "timed_out" if isinstance(error, Timeout) else "failed"
    return _Verdict(tally, "requeue" if task.fail_delay else "fail", reply=True, delay=task.fail_delay)


def _forwarded(delivery: _Delivery, queue: str, headers: dict[str, Any], arguments: dict[str, Any]) -> _Message:
    """The delivery's message, for another queue, with more headers."""
    original = delivery.properties
    properties = _copied(original or (), getattr(original, "headers", None) or {})
    if getattr(original, "expiration", None) not in (None, ""):
        properties["headers"]["x-kuyruk-expiration"] = original.expiration
    properties["headers"] |= headers
    return _Message(queue, delivery.body, properties, arguments)


def _failure_headers(delivery: _Delivery, error: BaseException) -> dict[str, Any]:
    """When, where, why and how often it has failed."""
    times = (getattr(delivery.properties, "headers", None) or {}).get("x-kuyruk-failures")
    return {
        "x-kuyruk-failed-at": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "x-kuyruk-failed-on": f"{socket.gethostname()}:{os.getpid()}",
        "x-kuyruk-failures": 1 + (times if type(times) is int and 0 <= times < 1_000_000_000 else 0),
        "x-kuyruk-queue": delivery.queue,
        "x-kuyruk-exception": _exception_name(error),
        "x-kuyruk-value": _text_of(error, HEADER_TEXT),
        "x-kuyruk-traceback": _format_traceback(error, HEADER_TEXT),
    }


def _derived(arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The arguments of a queue that is derived from one with these: of the same type."""
    inherited = {k: v for k, v in arguments.items() if k == "x-queue-type"}
    return _undropped(inherited | {k.replace("_", "-"): v for k, v in more.items()})


def _delayed(delivery: _Delivery, delay: float, headers: dict[str, Any], arguments: Mapping[str, Any]) -> _Message:
    """The delivery's message, for a queue that passes it on to its own queue after `delay` seconds.

    A queue for each distinct delay, because the broker only looks at the head of a queue for
    what has expired. It vanishes when unused; a declaration that is younger than
    DELAY_QUEUE_RENEWAL leaves what is published far more time than it needs.
    """
    ttl = int(_milliseconds(delay))
    # What expires while the target of a quorum queue has no leader would be lost otherwise.
    safe = {"x_dead_letter_strategy": "at-least-once", "x_overflow": "reject-publish"}
    derived = _derived(
        arguments,
        **(safe if _is_quorum(arguments) else {}),
        x_message_ttl=ttl,
        x_expires=min(ttl + math.ceil(DELAY_QUEUE_LEASE * 1000), MAX_TTL),
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=delivery.queue,
    )
    message = _forwarded(delivery, f"{delivery.queue}.delay.{ttl}", headers, derived)
    return message._replace(renewal=DELAY_QUEUE_RENEWAL)


# --- Worker ------------------------------------------------------------------


class _Delivery:
    """A message in our hands, until it is settled, on the channel that delivered it."""

    __slots__ = (
        "at", "body", "cause", "claimed", "consumer", "intake", "properties",
        "queue", "redelivered", "settled", "tag", "task", "thread",
    )  # fmt: skip

    def __init__(self, intake: _Intake, queue: str, method: Any, properties: Any, body: bytes) -> None:
        self.intake = intake
        self.consumer: str = method.consumer_tag
        self.queue = queue
        self.at = time.monotonic()
        self.tag: int = method.delivery_tag
        self.redelivered: bool = method.redelivered
        #: pamqp's Basic.Properties, or None if they couldn't be decoded.
        self.properties = properties
        self.body = body
        #: The task that it names, once it is decoded.
        self.task: _Description | None = None
        #: The pool thread that has it.
        self.thread = 0
        #: It was decided who settles it: its thread, or who gives that up.
        self.claimed = False
        #: What has interrupted it before its task began.
        self.cause: BaseException | None = None
        self.settled = False

    def __str__(self) -> str:
        task = self.task
        if task is None:
            return "A message"
        text = f"Task {task.module}.{task.function} [{task.id}]"
        return text if text.isprintable() and len(text) < 2000 else repr(text[:2000])  # no lines, no control codes

    @property
    def id(self) -> str | None:
        """The message's, once it is decoded."""
        return self.task and self.task.id

    @property
    def is_counted(self) -> bool:
        """By a quorum queue: how often it was delivered."""
        return "x-delivery-count" in (getattr(self.properties, "headers", None) or ())

    @property
    def reply_to(self) -> str | None:
        return getattr(self.properties, "reply_to", None) or None

    def ack(self) -> None:
        self._settle(_ack_frame(self.intake.id, self.tag))

    def requeue(self) -> None:
        # Not Basic.Reject: from RabbitMQ 4.3 on, that counts towards a quorum queue's limit.
        self._settle(_marshal(self.intake.id, commands.Basic.Nack(delivery_tag=self.tag, requeue=True)))

    def reject(self) -> None:
        """To the broker's own dead-letter policy."""
        self._settle(_marshal(self.intake.id, commands.Basic.Reject(delivery_tag=self.tag, requeue=False)))

    def _settle(self, frame: bytes) -> None:
        if self.settled:
            return
        self.settled = True
        if self.intake.lost is None:
            self.intake.link.post(frame)
        else:
            logger.warning("A message from %r isn't ours any more: it will be delivered again", self.queue)


class _Consumer(NamedTuple):
    queue: str
    prefetch: int  #: How many messages of it may be unacknowledged. RabbitMQ fixes that when it begins.


class _Intake(_Channel):
    """The channel that a worker consumes by. It belongs to the supervisor."""

    def __init__(self, link: _Link, config: Config, deliver: Callable[[_Delivery], object]) -> None:
        self._config = config
        self._deliver = deliver
        #: By their tags.
        self.consumers: dict[str, _Consumer] = {}
        self.consuming = False  # of all queues
        self._serial = itertools.count(1)
        super().__init__(link, config.RABBIT_PUBLISH_TIMEOUT)

    def consume(self, queues: Iterable[str]) -> None:
        for queue in queues:
            self.add(queue, self._config.WORKER_PREFETCH or self._config.WORKER_THREADS)
        self.consuming = True

    def cancel(self) -> None:
        """When this returns nothing more will be delivered."""
        self.consuming = False
        self.remove(list(self.consumers))

    def add(self, queue: str, prefetch: int, is_last: bool = False) -> None:
        """One more consumer, which holds so many messages. is_last: it gets what no other worker can take."""
        tag = f"{socket.gethostname()}:{os.getpid()}:{next(self._serial)}"[-255:]
        priority = (self._config.WORKER_PRIORITY or 0) - is_last
        arguments: Any = {"x-priority": priority} if priority else {}
        consumer = self.consumers[tag] = _Consumer(queue, min(prefetch, 0xFFFF))
        self.request(commands.Basic.Qos(prefetch_count=consumer.prefetch))
        self.request(commands.Basic.Consume(queue=queue, consumer_tag=tag, arguments=arguments))

    def remove(self, tags: Iterable[str]) -> None:
        for tag in tags:
            self.request(commands.Basic.Cancel(consumer_tag=tag))
            del self.consumers[tag]

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        consumer = self.consumers[method.consumer_tag]
        self._deliver(_Delivery(self, consumer.queue, method, properties, body))

    def on_method(self, frame: Any) -> None:
        if frame.name == "Basic.Cancel":  # its queue was deleted, or has moved
            consumer = self.consumers.get(frame.consumer_tag)
            self.lost = AMQPChannelError(f"it has cancelled the consumer of queue {consumer and consumer.queue!r}")


def _patience(stalled: float) -> float:
    """Seconds that something may wait when nothing has begun for so many: a twentieth of what the tasks take, about.
    For long ones that costs RabbitMQ little."""
    return min(max(LATE, stalled / 20), STILL_LATE)


class _Spare:
    """How many messages a worker holds beyond one for each thread.

    What it has measured lets it grow: that much is needed not to wait for the broker. That something waits too long
    lets it shrink to 0, whatever was measured: tasks have become long, and others may have free threads.
    """

    def __init__(self, threads: int) -> None:
        self.size = 0
        #: Less is not worth it: tasks take far longer than the way to the broker. And those that are long, but end
        #: in step, or come among short ones, seem to be many a second for a moment.
        self._least = threads
        self._rate = 0.0  # tasks per second, smoothed
        self._at = -math.inf
        self.ended = 0  # how many tasks, at the last look

    def look(self, now: float, ended: int, waited: float, patience: float) -> int:
        """now: seconds. ended: how many tasks have ended. waited: seconds for which something has waited and nothing
        has begun. patience: seconds that this may last."""
        seconds, count = now - self._at, ended - self.ended
        self._at, self.ended = now, ended
        if seconds > 3 * LOOK and waited <= seconds + LATE:
            return self.size  # it had nothing to do, or this process has stood still: nothing follows
        if waited > patience:
            self.size, self._rate = 0, 0.0
        else:
            self._rate = (self._rate + count / seconds) / 2
            wanted = min(int(self._rate * LOCAL_WORK), MAX_SPARE)
            if wanted >= max(1.5 * self.size, self._least):
                self.size = wanted
        return self.size


class Journal:
    """Which messages run, and which have run when a worker process died.

    This one keeps nothing. The command line gives its workers one that outlives their processes (`Worker.journal`).
    """

    #: By message id: how many processes have died while it ran, and whether one did while it ran alone.
    crashes: Mapping[str, tuple[int, bool]] = types.MappingProxyType({})

    def begin(self, id: str) -> None:
        """The message begins to run. This and the next from one thread at a time; they must not block."""

    def end(self, id: str) -> None:
        """It runs no longer. May be called again."""

    def count(self, id: str) -> tuple[int, bool]:
        """Of its `crashes`, as they are now. May wait for a moment."""
        return self.crashes.get(id, (0, False))

    def clear(self, id: str) -> None:
        """It is settled: its crashes can be forgotten."""


_WORKER_OPTIONS = tuple(
    key.removeprefix("WORKER_").lower()
    for key in _KINDS
    if key.startswith("WORKER_") and key not in ("WORKER_PROCESSES", "WORKER_LOGGING_LEVEL")
)
_TALLIES = ("received", "succeeded", "failed", "timed_out", "rejected", "discarded", "requeued", "lost")


class _Settlement:
    """Does with a message what its verdict says. For whoever has claimed the delivery, in any thread."""

    def __init__(self, config: Config, publisher: _Publisher) -> None:
        self._config = config
        self._publisher = publisher

    def settle(self, delivery: _Delivery, result: Any, error: BaseException | None, verdict: _Verdict) -> None:
        if verdict.reply and delivery.reply_to is not None:
            self._reply(delivery, result, error)
        if verdict.action == "ack":
            delivery.ack()
        elif verdict.action == "requeue" and not verdict.delay:
            delivery.requeue()
        elif verdict.action == "requeue":
            headers = _failure_headers(delivery, error) if error is not None and verdict.reply else {}
            message = _delayed(delivery, verdict.delay, headers, self._config.QUEUE_ARGUMENTS)
            if verdict.reply:  # the caller has its answer
                message.properties.pop("reply_to", None)
            self._forward(delivery, message)
        elif verdict.action == "fail":
            self._fail(delivery, cast(BaseException, error))

    def _fail(self, delivery: _Delivery, error: BaseException) -> None:
        if self._config.FAILED_TTL is None:
            delivery.reject()
            return
        headers, arguments = _failure_headers(delivery, error), _derived(self._config.QUEUE_ARGUMENTS)
        message = _forwarded(delivery, f"{delivery.queue}.failed", headers, arguments)
        message.properties["expiration"] = _milliseconds(self._config.FAILED_TTL)
        self._forward(delivery, message)

    def _forward(self, delivery: _Delivery, message: _Message) -> None:
        """The broker has the copy on record before the original is acknowledged."""
        try:
            try:
                self._publisher.send([message])
            except BrokerError:
                raise
            except Exception as error:  # they can't be encoded: ValueError, TypeError, RecursionError...
                logger.warning("A message to %r loses its sender's properties: %s", message.queue, error)
                kept = message.properties["headers"].items()
                headers = {k: v for k, v in kept if k.removeprefix("x-kuyruk-") in _OUR_HEADERS}
                plain = {"headers": headers, "delivery_mode": 2, "message_id": _ids.make()}
                self._publisher.send([message._replace(properties=plain)])
            delivery.ack()
        except BrokerError as error:
            logger.error("Can't forward a message, it goes back to %r: %s", delivery.queue, error)
            time.sleep(FORWARD_PAUSE)  # it will be back at once, and nothing may have changed
            delivery.requeue()

    def _reply(self, delivery: _Delivery, result: Any, error: BaseException | None) -> None:
        """Returns when it is on its way: before the message is settled."""
        try:
            body = _encode_reply(result, error)
        except TypeError as unfit:
            body = _encode_reply(None, unfit)
        properties = {"content_type": "application/json"}
        if delivery.properties.correlation_id:
            properties["correlation_id"] = delivery.properties.correlation_id
        message = _Message(cast(str, delivery.reply_to), body, properties, {}, mandatory=False)
        try:
            # Twice at the most: a made-up address may make the broker end the connection.
            self._publisher.send([message], attempts=2)
        except BrokerError as why:
            logger.warning("Can't send a reply: %s", why)


class _Pool:
    """The threads, and the deliveries that they have: what waits for a thread, what runs, and who is stuck.

    Threads of a `ThreadPoolExecutor`; when one is given up, of another. From the supervisor deliveries are added,
    handed back and interrupted. `notify` is called when the supervisor may have to look again.
    """

    def __init__(self, app: Kuyruk, config: Config, settle: Callable[..., None], notify: Callable[[], object]) -> None:
        self._app = app
        self._config = config
        self._settle = settle
        self._notify = notify
        #: Where it notes what runs, for a process that watches over this one.
        self.journal = Journal()
        #: Quorum queues have their own delivery limit, but those that we declare without one.
        arguments = config.QUEUE_ARGUMENTS
        self._counts_for_quorum = _is_quorum(arguments) and "x-delivery-limit" not in arguments
        #: Nothing begins any more; nothing comes for the moment. The supervisor is notified of each end then.
        self.stopping = False
        self.paused = False
        #: `is_ours` in threads of the worker: in these nobody waits for its end. Idents are reused.
        self.here = threading.local()
        #: Guards what follows, and `_Delivery.claimed`.
        self._lock = threading.Lock()
        #: Delivered and not begun: whoever takes one from here decides what becomes of it. What has run when a worker
        #: process died is set aside: it runs alone, so that the next death tells whether it is to blame.
        self._waiting: collections.deque[_Delivery] = collections.deque()
        self._set_aside: collections.deque[_Delivery] = collections.deque()
        self._alone: _Delivery | None = None
        #: Begun, and not settled. The value is None until its task is found.
        self.running: dict[_Delivery, Run | None] = {}
        #: Given up, and its thread is still in it. What interrupted it.
        self._stuck: dict[_Delivery, BaseException] = {}
        #: How many threads are at work; those that are stuck don't count.
        self._active = 0
        #: How many stay for a moment when there is nothing to do, and what they are given. (No SimpleQueue: where
        #: several threads `get` with a timeout, Python 3.11's may wait for ever.)
        self._lingering = 0
        self._handed_over: collections.deque[_Delivery] = collections.deque()
        self._handover = threading.Condition(self._lock)
        self.ended = 0  # how many runs have
        self._began_at = -math.inf  # time.monotonic(): the last one
        self._executors = 0  # how many have been made
        #: The ids of the messages that run; and deliveries of the same that wait for them to end.
        self._ids: dict[str, collections.deque[_Delivery]] = {}
        self._tallies = dict.fromkeys(_TALLIES, 0)

    def start(self) -> None:
        self._executor = self._make_executor()
        self._watch = _Watch(self._config.WORKER_GRACE, self._give_up)

    def close(self) -> None:
        self._executor.shutdown(wait=not self.running)  # threads that are stuck are of other executors
        self._watch.close()

    def _make_executor(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        self._executors += 1
        prefix = f"kuyruk-pool{self._executors if self._executors > 1 else ''}"
        return ThreadPoolExecutor(self._config.WORKER_THREADS, thread_name_prefix=prefix)

    # -- for the supervisor

    @property
    def stats(self) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            runs = [run for run in self.running.values() if run is not None]
            stats: dict[str, Any] = {**self._tallies, "waiting": len(self._waiting) + len(self._set_aside)}
            stats["suspect"] = len(self._set_aside) + (self._alone is not None)
            stats["stuck"] = len(self._stuck)
        stats["running"] = [
            {"id": r.id, "task": r.task.name, "queue": r.queue, "seconds": round(now - r.started, 3)} for r in runs
        ]
        return stats

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def has_suspects(self) -> bool:
        return bool(self._set_aside) or self._alone is not None

    @property
    def suspects_wait(self) -> bool:
        """For what runs to end."""
        return bool(self._set_aside) and self._alone is None

    @property
    def stuck(self) -> int:
        """Without those whose connection was lost: they are within their limits, and the worker survives that."""
        return sum(not isinstance(cause, HeartbeatError) for cause in tuple(self._stuck.values()))

    def add(self, delivery: _Delivery) -> None:
        with self._lock:
            self._tallies["received"] += 1
            self._waiting.append(delivery)
            self._dispatch()

    def interrupt(self, make_cause: Callable[[], BaseException], which: Callable[[_Delivery], bool]) -> int:
        """Returns how many. One whose task hasn't begun (its module is being imported, say) doesn't begin."""
        with self._lock:
            chosen = [(delivery, run) for delivery, run in self.running.items() if which(delivery)]
            for delivery, run in chosen:
                if run is None and delivery.cause is None:
                    delivery.cause = make_cause()
        for _, run in chosen:
            if run is not None:
                self._watch.interrupt(run, make_cause())
        return len(chosen)

    def on_lost(self, intake: _Intake, cause: Callable[[], BaseException]) -> None:
        """What came by it isn't ours any more."""
        with self._lock:
            for queue in self._queues():
                kept = [delivery for delivery in queue if delivery.intake is not intake]
                queue.clear()
                queue.extend(kept)
        self.interrupt(cause, lambda delivery: delivery.intake is intake)

    def oldest(self, intake: _Intake) -> _Delivery | None:
        """Of what came by it and isn't settled."""
        with self._lock:
            return min((d for d in self._in_hand() if d.intake is intake), key=lambda d: d.at, default=None)

    def hand_back(self, suspects: bool = True) -> None:
        """What hasn't begun goes back at once: another worker can have it."""
        with self._lock:
            queues = [queue for queue in self._queues() if suspects or queue is not self._set_aside]
            deliveries = [delivery for queue in queues for delivery in queue]
            for queue in queues:
                queue.clear()
            self._tallies["requeued"] += len(deliveries)
        for delivery in deliveries:
            delivery.requeue()

    def waited(self, now: float) -> tuple[float, float]:
        """Seconds for which something has waited and nothing has begun; and for which nothing has begun."""
        with self._lock:
            waited = now - max(self._waiting[0].at, self._began_at) if self._waiting else 0.0
            return waited, now - self._began_at

    def held(self, queue: str, but_of: Iterable[str] = ()) -> int:
        """How many messages of the queue are in hand, but for those of some consumers."""
        with self._lock:
            return sum(d.queue == queue and d.consumer not in but_of for d in self._in_hand())

    def hand_back_surplus(self, queue: str, kept: int) -> None:
        """Of what waits, the newest, until no more than `kept` messages of the queue are in hand. Not what a quorum
        queue has counted already: it may have a limit of deliveries."""
        with self._lock:
            surplus = sum(delivery.queue == queue for delivery in self._in_hand()) - kept
            waiting, self._waiting = self._waiting, collections.deque()
            back: list[_Delivery] = []
            while waiting:
                delivery = waiting.pop()
                if len(back) < surplus and delivery.queue == queue and not delivery.is_counted:
                    back.append(delivery)
                else:
                    self._waiting.appendleft(delivery)
            self._tallies["requeued"] += len(back)
        for delivery in back:
            delivery.requeue()

    def _in_hand(self) -> Iterator[_Delivery]:
        """With the lock."""
        return itertools.chain(self.running, *self._queues())

    def _queues(self) -> list[collections.deque[_Delivery]]:
        """What hasn't begun. With the lock."""
        return [self._waiting, self._set_aside, *self._ids.values()]

    # -- the threads

    def _dispatch(self) -> None:
        """Have as many threads at work as there is work for. With the lock."""
        while self._active < self._config.WORKER_THREADS and (delivery := self._take()) is not None:
            self._active += 1
            if self._lingering:
                self._lingering -= 1
                self._handed_over.append(delivery)
                self._handover.notify()
                continue
            try:
                self._executor.submit(self._work, delivery)
            except RuntimeError as error:  # the interpreter is shutting down, or no thread can be started
                level = logging.DEBUG if "shutdown" in str(error) else logging.ERROR
                logger.log(level, "A message from %r isn't run: %s", delivery.queue, error)

    def _take(self) -> _Delivery | None:
        """What begins next. What is set aside begins when nothing runs, and nothing begins beside it. With the lock."""
        if self.stopping or self._alone is not None or (self._set_aside and self.running):
            return None
        if self._set_aside:
            delivery = self._alone = self._set_aside.popleft()
        elif self._waiting:
            delivery = self._waiting.popleft()
        else:
            return None
        self.running[delivery] = None
        self._began_at = time.monotonic()
        return delivery

    def _work(self, delivery: _Delivery | None) -> None:
        """In a pool thread, as most of what follows. It goes on with what waits, which is cheaper than to submit that,
        but not for long: only the pool knows when the interpreter ends, and refuses then."""
        self.here.is_ours = True
        until = time.monotonic() + POOL_SLICE
        while delivery is not None:
            delivery.thread = threading.get_ident()
            self._process(delivery)
            delivery = self._next(delivery, time.monotonic() < until) or self._linger(until)

    def _linger(self, until: float) -> _Delivery | None:
        """Wait for what comes next: cheaper than to be woken by the executor."""
        left = until - time.monotonic()
        with self._lock:
            if left <= 0 or self.stopping:
                return None
            self._lingering += 1
            self._handover.wait(left)
            if self._handed_over:
                return self._handed_over.popleft()
            self._lingering -= 1
            return None

    def _next(self, ended: _Delivery, goes_on: bool) -> _Delivery | None:
        with self._lock:
            was_stuck = self._stuck.pop(ended, None) is not None
            if was_stuck:  # another thread has taken this one's place
                delivery = None
            else:
                self._forget(ended)
                delivery = self._take() if goes_on else None
                self._active -= delivery is None
            self._dispatch()
        if self.stopping or self.paused or was_stuck:
            self._notify()
        return delivery

    def _forget(self, delivery: _Delivery) -> None:
        """It is settled, or set aside. With the lock."""
        del self.running[delivery]
        self.ended += 1
        if delivery is self._alone:
            self._alone = None

    def _claim(self, delivery: _Delivery) -> bool:
        """Whether the caller settles it."""
        with self._lock:
            claimed, delivery.claimed = delivery.claimed, True
            return not claimed

    # -- giving up

    def _give_up(self, run: Run) -> None:
        """It was interrupted, and has had its grace. In the watch."""
        with self._lock:
            delivery = next((d for d, r in self.running.items() if r is run), None)
        if delivery is not None and run._cause is not None:
            self.abandon(delivery, run._cause)

    def abandon(self, delivery: _Delivery, cause: BaseException) -> None:
        """Leave its thread to itself, put another in its place, and have its message settled.
        Raises RuntimeError if no thread can be started: then nothing has changed."""
        arguments = (delivery, cause)
        name = "kuyruk-settler"
        threading.Thread(target=self._abandon, args=arguments, name=name, daemon=True).start()

    def _abandon(self, delivery: _Delivery, cause: BaseException) -> None:
        """In a settler."""
        self.here.is_ours = True
        with self._lock:
            if delivery.claimed:
                return  # it has just ended
            delivery.claimed = True
            self._stuck[delivery] = cause
            self._active -= 1
            self._executor.shutdown(wait=False)  # its other threads end when there is nothing to do
            self._executor = self._make_executor()
            if delivery.id is not None:
                self.journal.end(delivery.id)
        self._let_go(delivery.thread)
        self._settle_abandoned(delivery, cause, _format_stack(delivery.thread))

    def _let_go(self, thread: int) -> None:
        """The interpreter doesn't wait for this thread when it ends. There is no public way: without, it waits."""
        from concurrent.futures import thread as module

        pool_threads: Any = getattr(module, "_threads_queues", {})
        for each in threading.enumerate():
            if each.ident == thread:
                pool_threads.pop(each, None)

    def _settle_abandoned(self, delivery: _Delivery, cause: BaseException, stack: str) -> None:
        """The log comes last: the stuck thread may hold it."""
        run = self.running[delivery]
        cause.add_note(f"It didn't end when it was interrupted. Its thread was given up at\n{stack}")
        try:
            verdict = _decide(run.task if run else None, cause, lost=delivery.intake.lost is not None)
            self._do(delivery, None, cause, verdict)
        except Exception:
            logger.exception("Defect in the worker; a message from %r goes back", delivery.queue)
            delivery.requeue()
        with self._lock:
            self._forget(delivery)
            self._dispatch()
        self._notify()
        text = "%s from %r is stuck, %g seconds after its interruption (%s: %s). Its thread is given up at\n%s"
        grace, kind = self._config.WORKER_GRACE, type(cause).__name__
        logger.error(text, delivery, delivery.queue, grace, kind, cause, stack)

    # -- a delivery

    def _process(self, delivery: _Delivery) -> None:
        try:
            self._perform(delivery)
        except BaseException:  # whatever it is, the thread goes on
            logger.exception("Defect in the worker; a message from %r goes back", delivery.queue)
            if delivery not in self._stuck:
                delivery.requeue()

    def _perform(self, delivery: _Delivery) -> None:
        try:
            if delivery.properties is None:
                raise InvalidMessage("the message's AMQP properties can't be decoded")
            delivery.task = _decode_task(delivery.body)
            if not self._may_run(delivery):
                return
        except Exception as error:  # InvalidMessage, Crashed, or a body that breaks the decoder: not again and again
            self._finish(delivery, None, None, error)
            return
        if self._enter(delivery):
            try:
                self._run_task(delivery, delivery.task)
            finally:
                self._leave(delivery)

    def _may_run(self, delivery: _Delivery) -> bool:
        """False if it is set aside, to run alone. Raises Crashed if it has brought too many processes down."""
        id, journal, alone = delivery.id, self.journal, delivery is self._alone
        if id is None or id not in journal.crashes or (delivery.is_counted and not self._counts_for_quorum):
            return True
        crashes, to_blame = journal.count(id) if alone else journal.crashes.get(id, (0, False))
        if to_blame and crashes >= self._config.WORKER_MAX_CRASHES:
            raise Crashed(f"{crashes} worker processes have died while it ran (WORKER_MAX_CRASHES)")
        if alone:
            return True
        with self._lock:
            self._set_aside.append(delivery)
        self._notify()
        return False

    def _enter(self, delivery: _Delivery) -> bool:
        """False if a message with this id is running here: this one waits until that has ended."""
        id = delivery.id
        if id is None:
            return True
        with self._lock:
            if id not in self._ids:
                self._ids[id] = collections.deque()
                self.journal.begin(id)
                return True
            self._ids[id].append(delivery)
        logger.info("Message %s is running here already; its new delivery waits for that", id)
        return False

    def _leave(self, delivery: _Delivery) -> None:
        id = delivery.id
        if id is None:
            return
        with self._lock:
            self.journal.end(id)
            self._waiting.extendleft(self._ids.pop(id))
            self._dispatch()

    def _run_task(self, delivery: _Delivery, description: _Description) -> None:
        try:
            task = self._app._find_task(description.module, description.function)
        except InvalidMessage as error:
            return self._finish(delivery, None, None, error)
        run = Run(task, description.id, delivery.queue, delivery.redelivered)
        with self._lock:
            cause = delivery.cause
            may_begin = cause is None and delivery.intake.lost is None and not delivery.claimed
            if may_begin:
                self.running[delivery] = run
        if not may_begin:
            return self._finish(delivery, task, None, cause)
        result, raised, fits = None, None, True
        try:
            result = run._call(description.args, description.kwargs, self._watch)
        except BaseException as error:
            raised = error
            fits = task._fits(error, description.args, description.kwargs)
        try:
            self._finish(delivery, task, result, raised, fits)
        finally:
            raised = None  # its traceback leads to this frame: a cycle, which keeps all frames

    def _finish(
        self, delivery: _Delivery, task: AnyTask | None, result: Any, error: BaseException | None, fits: bool = True
    ) -> None:
        if self._claim(delivery):
            verdict = _decide(task, error, fits, delivery.intake.lost is not None)
            self._log(delivery, error, verdict)
            self._do(delivery, result, error, verdict)
        else:
            logger.warning("%s from %r has ended after all: what came of it is dropped", delivery, delivery.queue)

    def _do(self, delivery: _Delivery, result: Any, error: BaseException | None, verdict: _Verdict) -> None:
        with self._lock:
            self._tallies[verdict.tally] += 1
        self._settle(delivery, result, error, verdict)
        if verdict.tally not in ("lost", "requeued") and delivery.id in self.journal.crashes:
            self.journal.clear(cast(str, delivery.id))

    def _log(self, delivery: _Delivery, error: BaseException | None, verdict: _Verdict) -> None:
        if error is None:
            logger.debug("%s from %r %s", delivery, delivery.queue, verdict.tally)
        elif verdict.tally in ("failed", "timed_out"):
            then = f"it comes back in {verdict.delay:g} seconds" if verdict.delay else "see its .failed queue"
            info = (type(error), error, _task_traceback(error))
            logger.error("%s from %r %s; %s", delivery, delivery.queue, verdict.tally, then, exc_info=info)
        else:
            logger.warning("%s from %r %s: %r", delivery, delivery.queue, verdict.tally, error)


class Worker:
    """Consumes queues and runs their tasks, in threads of this process.

    app: the `Kuyruk`. queues: names, or None for those of the app's tasks. options: threads,
    prefetch, max_load, max_run_time, grace, shutdown_timeout, reconnect_interval, priority,
    max_crashes: the configuration's `WORKER_` keys, which are the defaults.

    `run` blocks, `start` doesn't, and as a context manager it is started and stopped. It installs
    no signal handler and leaves logging alone. A worker runs once.
    """

    def __init__(self, app: Kuyruk, queues: Iterable[str] | None = None, **options: Any) -> None:
        unknown = [name for name in options if name not in _WORKER_OPTIONS]
        if unknown:
            raise TypeError(f"Worker has no option {unknown[0]!r}, but {', '.join(_WORKER_OPTIONS)}")
        self.app = app
        self._config = app.config._with(**{f"WORKER_{k.upper()}": v for k, v in options.items()})
        names = [queues] if isinstance(queues, str) else list(queues or app._queues or ["kuyruk"])
        #: The names of the queues that it consumes.
        self.queues = list(dict.fromkeys(_resolve_host(_check_queue_name(name)) for name in names))
        #: How many tasks had to be interrupted for the worker to stop.
        self.aborted = 0
        #: Called in one of its threads when it may have become `healthy` or not, or has stopped. Must not block.
        self.on_change: Callable[[], object] = lambda: None
        #: What it has failed with, if it has.
        self.error: BaseException | None = None
        self._publisher = _Publisher(self._config._with(RABBIT_CONFIRM=True))
        self._wakeup = _Wakeup()  # of the supervisor
        settlement = _Settlement(self._config, self._publisher)
        self._pool = _Pool(app, self._config, settlement.settle, self._on_pool)
        self._interrupt_at = math.inf  # time.monotonic() from which on a stop waits no longer
        self._intake: _Intake | None = None
        self._failure = ""  # to connect; logged
        self._paused_at = self._suspects_go_until = -math.inf
        # Of consumers of such a queue only one is served: more are of no use, and in place of it another worker's is.
        is_single = app.config.QUEUE_ARGUMENTS.get("x-single-active-consumer")
        self._look_at = -math.inf if self._config.WORKER_PREFETCH is None and not is_single else math.inf
        self._spare = _Spare(self._config.WORKER_THREADS)
        self._began = threading.Lock()  # taken once and for ever
        self._ended = threading.Event()

    # -- its life, as its owner sees it

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run in a background thread. Raises RuntimeError if it runs or ran already."""
        if not self._began.acquire(blocking=False):
            raise RuntimeError("this worker runs or ran already: make another one")
        self._stop_at = time.monotonic() + (self._config.WORKER_MAX_RUN_TIME or math.inf)
        self._pool.start()
        # A daemon, and so are the pool's threads, which it starts: one that is stuck doesn't keep the process alive.
        threading.Thread(target=self._run, name="kuyruk-supervisor", daemon=True).start()

    def run(self) -> None:
        """Run until stopped. Raises RuntimeError if it runs or ran already, and what the worker fails with."""
        self.start()
        try:
            self.join()
        except BaseException:  # KeyboardInterrupt
            self.stop()
            raise
        if self.error is not None:
            raise self.error

    def stop(self, timeout: float | None = None, wait: bool = True) -> None:
        """Stop gracefully, and wait until it has.

        timeout: seconds that running tasks get, instead of `shutdown_timeout` (math.inf: as long as they take); then
        they are interrupted, and what hasn't ended after the `grace` is given up. Their messages are requeued. Another
        call can shorten it. From any thread, and from a signal handler: it doesn't wait in a thread that the worker
        needs, or that waits for it already.
        """
        if timeout not in (None, math.inf):
            _check("timeout", timeout, _SECONDS)
        timeout = self._config.WORKER_SHUTDOWN_TIMEOUT if timeout is None else timeout
        if timeout is not None:
            self._interrupt_at = min(self._interrupt_at, time.monotonic() + timeout)
        self._pool.stopping = True
        self._wakeup.set()
        if wait and self._began.locked() and not getattr(self._pool.here, "is_ours", False):
            self.join()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped, at most `timeout` seconds; returns whether it has."""
        here = self._pool.here
        was_ours, here.is_ours = getattr(here, "is_ours", False), True
        try:
            return self._ended.wait(timeout)
        finally:
            here.is_ours = was_ours

    @property
    def journal(self) -> Journal:
        """Where it notes what runs, for a process that watches over this one."""
        return self._pool.journal

    @journal.setter
    def journal(self, journal: Journal) -> None:
        self._pool.journal = journal

    @property
    def healthy(self) -> bool:
        """True while it is really consuming, or has paused on purpose (max_load), and no thread of it is stuck in a
        task that was to end."""
        intake = self._intake
        if intake is None or intake.lost is not None or self._pool.stopping or self._pool.stuck:
            return False
        return self._pool.paused or intake.consuming

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of deliveries, by what became of them, and what there is now.

        received, succeeded, failed, timed_out, rejected, discarded, requeued (by a stop, by a pause, or because they
        waited too long), lost (with their connection); waiting (not begun), suspect (of those, and of what runs: has
        run when a worker died), stuck (threads that were given up and don't end); running: a list of dicts of id,
        task, queue and seconds.
        """
        return self._pool.stats

    def drop(self, id: str | None = None) -> int:
        """Interrupt the running task of this message id, or all, with Discard; returns how many."""
        return self._pool.interrupt(lambda: Discard("dropped by an operator"), lambda each: id in (None, each.id))

    # -- the supervisor

    def _run(self) -> None:
        self._pool.here.is_ours = True
        try:
            self._supervise()
        except BaseException as error:
            logger.critical("Defect in the worker: it stops", exc_info=True)
            self.error = error
        finally:
            self._end()

    def _supervise(self) -> None:
        pauses = _pauses(self._config.WORKER_RECONNECT_INTERVAL)
        while not self._should_stop():
            try:
                intake = self._connect()
                pauses = _pauses(self._config.WORKER_RECONNECT_INTERVAL)
                self._tend(intake)
            except Exception as error:
                if not isinstance(error, AMQPError):
                    logger.exception("Defect in the supervisor; its connection is given up")
                    error = AMQPConnectionError(repr(error))
                pause = next(pauses)
                self._on_lost(error, pause)
                self._nap(time.monotonic() + pause)
        self._drain()

    def _connect(self) -> _Intake:
        link = _open_link(self._config, self._wakeup)
        try:
            for queue in self.queues:
                _ensure_queue(link, queue, self.app._queue_arguments(queue), self._config.RABBIT_PUBLISH_TIMEOUT)
            intake = _Intake(link, self._config, self._pool.add)
        except BaseException:
            link.hang_up()
            raise
        self._intake, self._pool.paused = intake, False  # before it consumes: what is delivered may be lost with it
        intake.consume(self.queues)
        self._failure = ""
        queues, threads = ", ".join(self.queues), self._config.WORKER_THREADS
        logger.info("Consuming %s at %s with %d threads", queues, link.address, threads)
        self.on_change()
        return intake

    def _tend(self, intake: _Intake) -> None:
        """Returns when the worker should stop. Raises AMQPError when the intake is lost."""
        while True:
            self._wakeup.clear()
            if self._should_stop():
                return
            if self._pause_or_resume(intake) or self._balance(intake):
                continue  # its requests have cleared the wakeup
            tick = time.monotonic() + TICK if self._config.WORKER_MAX_LOAD or self._pool.paused else math.inf
            changes = not self._pool.paused and (self._pool.has_waiting or self._pool.ended != self._spare.ended)
            self._pump(intake, min(self._stop_at, tick, self._look_at if changes else math.inf))

    def _balance(self, intake: _Intake) -> bool:
        """Hold the right number of messages, unless WORKER_PREFETCH tells it. Returns whether something has changed."""
        now = time.monotonic()
        if self._pool.paused or now < self._look_at:
            return False
        self._look_at = now + LOOK
        waited, stalled = self._pool.waited(now)
        patience = _patience(stalled)
        spare = self._spare.look(now, self._pool.ended, waited, patience) // len(self.queues)
        size = self._config.WORKER_THREADS + spare
        changed = [self._resize(intake, queue, size, waited > patience) for queue in self.queues]
        return any(changed)

    def _resize(self, intake: _Intake, queue: str, size: int, late: bool) -> bool:
        """RabbitMQ fixes a consumer's prefetch when it begins. So consumers are added; for a smaller size one takes
        the place of all, and what they have delivered counts until it is settled. There is always one: RabbitMQ may
        delete a queue that nobody consumes."""
        tags = [tag for tag, consumer in intake.consumers.items() if consumer.queue == queue]
        prefetch = sum(intake.consumers[tag].prefetch for tag in tags)
        missing = size - prefetch - self._pool.held(queue, but_of=tags)
        too_many = missing < 0 and prefetch > 1 and late  # after a pause what runs is of others than these consumers
        if too_many:
            intake.add(queue, 1, is_last=True)
            intake.remove(tags)
        elif missing > 0:
            intake.add(queue, missing)
        if late:
            self._pool.hand_back_surplus(queue, size)
        return too_many or missing > 0

    def _pump(self, intake: _Intake, until: float) -> None:
        intake.link.pump(until)
        if intake.lost is not None:
            raise intake.lost

    def _should_stop(self) -> bool:
        if not self._pool.stopping and time.monotonic() >= self._stop_at:
            logger.info("Stopping after %g seconds (max_run_time)", self._config.WORKER_MAX_RUN_TIME)
            self.stop(wait=False)
        return self._pool.stopping

    def _nap(self, until: float) -> None:
        while not self._should_stop() and time.monotonic() < until:
            self._wakeup.wait(min(until, self._stop_at))

    def _pause_or_resume(self, intake: _Intake) -> bool:
        """While paused others get the messages, those too that have come and haven't begun. Returns whether it has."""
        now = time.monotonic()
        if self._pool.paused and self._pool.suspects_wait and now >= self._paused_at + SUSPECT_PATIENCE:
            self._suspects_go_until = now + SUSPECT_PATIENCE
            self._pool.hand_back()
        pause, why = self._look_whether_to_pause(now)
        if pause == self._pool.paused:
            return False
        logger.warning("%s: %s", "Pausing" if pause else "Resuming", why)
        if pause:
            self._pool.paused, self._paused_at = True, now  # before it stops consuming: on purpose
            intake.cancel()
            self._pool.hand_back(suspects=False)
        else:
            intake.consume(self.queues)
            self._pool.paused = False
        self.on_change()
        return True

    def _look_whether_to_pause(self, now: float) -> tuple[bool, str]:
        if self._pool.has_suspects or now < self._suspects_go_until:
            return True, "what ran when a worker process died runs alone, one message after the other"
        limit = self._config.WORKER_MAX_LOAD
        if not limit:
            return False, "nothing runs alone any more"
        limit = os.cpu_count() or 1 if limit == -1 else limit
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return load > limit, f"the load average is {load:.2f}, the limit {limit:g} (max_load)"

    def _on_lost(self, error: AMQPError, pause: float = 0) -> None:
        intake, self._intake = self._intake, None
        if intake is None:
            level = logging.DEBUG if str(error) == self._failure else logging.WARNING  # not at each attempt
            logger.log(level, "Waiting for RabbitMQ, trying again in %.1f s: %s", pause, error)
            self._failure = str(error)
            return
        oldest = self._pool.oldest(intake)
        intake.lost = intake.lost or error
        intake.link.hang_up()
        info = (type(error), error, error.__traceback__)
        self._pool.on_lost(intake, lambda: HeartbeatError(info))
        logger.warning("Lost the connection to RabbitMQ at %s: %s", intake.link.address, error)
        if oldest is not None:
            self._look_for_timeout(oldest, str(error), time.monotonic() - oldest.at)
        self.on_change()

    def _look_for_timeout(self, oldest: _Delivery, error: str, age: float) -> None:
        # Of a quorum queue, RabbitMQ 4.3 only cancels the consumer, as if the queue was deleted.
        if "acknowledgement" in error or ("cancelled" in error and age > LEAST_CONSUMER_TIMEOUT):
            perhaps = "" if "acknowledgement" in error else "perhaps "
            text = "%s from %r was in hand for %.0f s, %slonger than RabbitMQ's consumer_timeout: it runs again. %s"
            logger.error(text, oldest, oldest.queue, age, perhaps, CONSUMER_TIMEOUT_HELP)

    def _on_pool(self) -> None:
        """Something has changed in the pool. In one of its threads."""
        if self._pool.stuck >= self._config.WORKER_THREADS and not self._pool.stopping:
            self.stop(math.inf, wait=False)
            logger.critical("Stopping: %d threads are stuck, as many as the worker has", self._pool.stuck)
        self._wakeup.set()
        self.on_change()

    # -- stopping

    def _drain(self) -> None:
        """Nothing new comes, what hasn't begun goes back, what runs ends, or is interrupted, or is given up."""
        try:
            if self._intake is not None:
                self._intake.cancel()
        except AMQPError as error:
            self._on_lost(error)
        self._pool.hand_back()
        if self._pool.running:
            logger.info("Stopping: waiting for %d running tasks", len(self._pool.running))
        if self._wait_for_running(lambda: self._interrupt_at):
            return
        self.aborted = len(self._pool.running)
        logger.warning("Stopping: interrupting %d running tasks; their messages go back", self.aborted)
        self._pool.interrupt(lambda: Shutdown("the worker stops"), lambda _: True)
        grace_ends = time.monotonic() + self._config.WORKER_GRACE
        if not self._wait_for_running(lambda: grace_ends):
            for delivery, run in list(self._pool.running.items()):  # an import, say, which can't be interrupted
                self._pool.abandon(delivery, (run and run._cause) or Shutdown("the worker stops"))
            self._wait_for_running(lambda: math.inf)  # settled: twice RABBIT_PUBLISH_TIMEOUT and a bit, at most

    def _wait_for_running(self, get_end: Callable[[], float]) -> bool:
        """Wait until nothing runs, or a time that may change meanwhile; returns whether nothing does."""
        while True:
            self._wakeup.clear()
            if not self._pool.running:
                return True
            until = get_end()
            if time.monotonic() >= until:
                return False
            try:
                if self._intake is None:
                    self._wakeup.wait(until)
                else:
                    self._pump(self._intake, until)
            except AMQPError as error:
                self._on_lost(error)

    def _end(self) -> None:
        self._pool.close()
        self._publisher.close()
        intake, self._intake = self._intake, None
        if intake is not None:
            intake.link.close()  # what is unacknowledged goes back
            intake.lost = AMQPConnectionError("the worker has stopped")
        self._wakeup.close()
        logger.info("Stopped")
        self._ended.set()
        self.on_change()
