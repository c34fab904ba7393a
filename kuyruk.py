"""Kuyruk: a task queue on RabbitMQ in one file, with one dependency (amqpstorm).

    import kuyruk                               # tasks.py

    app = kuyruk.Kuyruk()

    @app.task(queue="sums", retry=2, max_run_time=30)
    def add(a, b):
        return a + b

    >>> add(1, 2)                                   # send; returns when the broker has it
    >>> add.send_to_queue(args=(1, 2), wait_result=5)   # send, and wait for the answer
    3
    $ python -m kuyruk_worker tasks                 # run them


The names for programs
======================

    Kuyruk(config)    An application. `task` makes a `Task` of a function, `remote` of a name.
                      `send_tasks_to_queue` sends many in one go. `worker` makes a `Worker`.
                      `failed_messages` iterates over `FailedMessage`s. `queue_stats` returns
                      `QueueStats`.
    Config            Its settings, with their defaults. `from_env_vars` and others load them.
    Task              add(1, 2) and `send_to_queue` (with `SendOptions`) send a message. `subtask`
                      returns a `SubTask`, for `send_tasks_to_queue`. `apply` runs it here.
    Worker            Runs tasks in threads of this process (with `WorkerOptions`): `start`, `run`,
                      `stop`, `join`, `drop`, `healthy`, `stats`. `Journal`: what it is running, for
                      a process that watches over it.
    current_task()    In a task, its `Run`: `id`, `headers`, `failures`, `remaining`, `check`...
    signals           `task_prerun` and others, each a `Signal`: `connect` a function to it.
    LogContext        A filter of logging's: which task has written a record.
    UNSAFE_MODULES    The modules whose code isn't interrupted.
    exceptions        Raised where a message is sent: `BrokerError`, `ResultTimeout` and
                      `RemoteException`. For a task to raise: `Reject` and `Discard`. Raised in a
                      task: `Timeout`, `Discard`, `HeartbeatError` and `Shutdown`. What a message
                      can fail with: `InvalidMessage` and `Crashed`. `KuyrukError`: most of them.

Each has its own help, as `help(kuyruk.Run)`. The manual is docs/ of the source distribution. What
follows is for those who want to change this file, or to know what to expect of it.


The threads, and what each owns
===============================

      your threads              worker
      ------------              ---------------------------------------------------------
      task(...)                 supervisor                  pool threads 1..N
        |  ^                    owns: consumers,            own: one delivery each
        |  | fates, replies     prefetch, the stop          run, settle; reply and forward
        v  |                        |                          ^    |          |
      connection's reader           v                          |    v          v
      owns: what is read        connection's reader -- deliveries  acks     another
        |  ^                    owns: what is read             |    |       connection
        v  |                        |  ^                            v       for sending
      ============= RabbitMQ: queue ==> delivery ==> unacked ==> gone ==================

*Your threads* send for themselves (`_Publisher`): they connect, look for the queue, publish, and
wait for the fate of each message. Messages without a fate are published again, until
RABBIT_PUBLISH_TIMEOUT. A thread that writes to the connection writes what other threads have
appended, too. Messages that nobody waits for (RABBIT_CONFIRM=False) are written by the reader, many
at once.
*A connection's reader* (kuyruk-connection; one for each application that sends, two for each
worker) is the thread of a `_Keeper`. It connects as long as another thread wants a connection, and
then reads: it hands on confirms, returned messages, replies and deliveries, writes what the socket
didn't take at once, keeps the heartbeats, and notices when the broker is silent or takes no data.
It never waits for an answer, because it is the thread that would read it; so a send in this thread
is refused. It ends when the connection is idle (RABBIT_IDLE_DURATION) or closed.
*A probe* (kuyruk-probe) opens a second connection when the broker owes an answer on the first and
is silent. If the second opens, it takes the place of the first. If not, the broker itself stands
still, and the first is kept.
*The supervisor* (kuyruk-supervisor) consumes each queue by a channel of its own while there is a
connection, retries a queue that can't be consumed without touching the others, decides how many
messages to hold (`_Prefetch`), pauses, and drains. It ends after a stop.
*A pool thread* (kuyruk-pool_N) is one of WORKER_THREADS loops on a `ThreadPoolExecutor`. All wait
on one condition for deliveries. It decodes its delivery, finds the task, runs it, decides what
becomes of the message, settles it, and then logs that. It sends replies and forwarded messages
(failed, delayed) as your threads send.
*The watch* (kuyruk-watch) owns the schedule of interruptions. It waits for the next deadline, or
for an interruption that another thread orders, raises it in the task's thread as soon as that is at
a safe point, and gives up a task that still runs WORKER_GRACE later. It ends with the worker (or
with `Task.apply`).
*The settler* (kuyruk-settler) keeps the deliveries whose copies can't be forwarded at the moment,
and tries again after growing pauses; their tasks don't run again. It also settles the message of a
run that was given up, as its pool thread would have done: nobody waits for that thread any more,
and one more loop has taken its place.
*The log thread* (kuyruk-log) writes what the others log, except pool threads: a handler may block,
or send, while others wait for the thread that logs. It is started when there is a record, and ends
when there is none.
Each of these loops survives any exception (`_keep_running`); `Worker.healthy` asks whether all of
the worker's live and do what is due.

    lock              guards                                        while holding it
    ----------------  --------------------------------------------  -------------------------
    _Connection._lock what is taken from its queues and written     the socket, without blocking
    _Publisher._lock  which keeper it publishes with                a thread may be started
    _Pool._lock       deliveries, their states and queues           a thread may be started
    _Settler._changed kept deliveries, and when to try them again   nothing
    _Watch._changed   when to look at which run                     nothing
    Run._gate         whether the task can be interrupted now       an exception may be set

No thread waits for the first of these. A thread that can't have it leaves its frames to the thread
that has it, and that looks again after releasing it. Threads wait on events (`_Event`, `_Changes`):
one that waits registers first and looks then, one that changes something notifies afterwards, so no
change is missed. An exception in the middle of a write (raised by a signal handler, or for want of
memory) gives up the connection, never a message: each thread that waits on it sends again.

The life of a message that is sent. It is in its connection's outbox until a thread takes it,
numbers it and writes it. From then on it is in flight, until the broker

- confirms it: it has arrived;
- returns it, because its queue is gone: the queue is declared, and the message sent again;
- refuses it: it is sent again after a pause;
- closes its channel: the message may be the reason, so it is sent again on a connection of its own;
- or the connection is lost: it is sent again on the next.

When its time is up it is withdrawn from the outbox. If it was in flight, it may have arrived;
`BrokerError.unconfirmed` names it in both cases.

The life of a delivery. Its states are:

- *waiting*: the reader has read it. It goes back to the broker if this lasts too long while another
  worker may be free, and at a stop or a pause.
- *running*: a pool thread has begun with it.
- *claimed*: it is decided who settles it: that thread, or the one that gives that thread up.
- *kept*: its message is to be forwarded to another queue, and that isn't possible at the moment.
- *settled*: it was acknowledged or sent back. Its reply is sent before that, and the copy of a
  forwarded message is confirmed before that.
- *lost*: its channel was lost while it was waiting.

When its channel is lost, a delivery isn't ours any more: its task, if running, is interrupted
(HeartbeatError), nothing is settled, and the broker delivers the message again. If it still runs
here then, it isn't run a second time beside itself. Only when its queue was deleted it runs to its
end: there is no other copy. A message that was running when a worker process died is a suspect. No
two suspects run at once in a worker, so that the next death tells which of them is to blame.

**At least once**: a task runs twice when a worker dies between the work and the acknowledgement, or
when a sender loses its connection before the confirm, and sends again.

The order of a stop. The consumers are cancelled, so that nothing new is delivered. Waiting
deliveries go back at once, for other workers. Running tasks end, or are interrupted. Then the pool
ends, then the connection for sending, and last the one that consumes: until then it is needed for
heartbeats and acknowledgements.
"""

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
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    cast,
)

from amqpstorm.base import Stateful
from amqpstorm.channel import Channel
from amqpstorm.channel0 import Channel0
from amqpstorm.connection import Connection
from amqpstorm.exception import AMQPChannelError, AMQPConnectionError, AMQPError
from amqpstorm.io import IO
from pamqp import commands, decode, encode
from pamqp import frame as amqp_frame
from pamqp import header as amqp_header

__all__ = ["BrokerError", "Config", "Crashed", "Discard", "current_task", "exceptions"]
__all__ += ["FailedMessage", "HeartbeatError", "InvalidMessage", "Journal", "Kuyruk", "KuyrukError"]
__all__ += ["LogContext", "QueueStats", "Reject", "RemoteException", "ResultTimeout", "Run"]
__all__ += ["SendOptions", "Shutdown", "Signal", "SubTask", "Task", "Timeout", "signals"]
__all__ += ["UNSAFE_MODULES", "Worker", "WorkerOptions"]

__version__ = "1.0.0"

logger = logging.getLogger("kuyruk")
# Successes have a logger of their own, so that its level can be set without that of failures.
_success_logger = logging.getLogger("kuyruk.success")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_TTL = 0xFFFFFFFF  #: The most milliseconds that RabbitMQ takes as a time to live (49.7 days).
#: Seconds that RabbitMQ allows by default between a delivery and its acknowledgement.
CONSUMER_TIMEOUT = 1800.0
LEAST_CONSUMER_TIMEOUT = 60.0  #: Seconds: the shortest such time that RabbitMQ supports.
CONSUMER_TIMEOUT_HELP = (
    "Let its task end sooner (max_run_time), or allow more: consumer_timeout in rabbitmq.conf,"
    " or for its queue, from RabbitMQ 3.12 on, a policy with consumer-timeout (milliseconds)"
)
MAX_TASK_NAME = 1000  #: Characters of a task's name: a message can't make a worker search longer.
#: Bytes of a queue's name. AMQP allows 255: the names of its delay and failed queues are longer.
MAX_QUEUE_NAME = 230
#: Seconds without a message after which the rest of a queue must have been taken by others.
QUIET = 5.0
CLOSE_TIMEOUT = 2.0  #: Seconds that closing a connection waits for the broker, or for a thread.
TICK = 1.0  #: The most seconds between two checks of a connection's health by its reader.
#: Bytes that may wait to be written when a send with RABBIT_CONFIRM=False returns.
UNWRITTEN_BYTES = 1_000_000
#: Bytes that such sends may have written and that the broker hasn't confirmed.
UNCONFIRMED_BYTES = 32_000_000
#: Messages of a batch that are on their way at once: a window, with a publish timeout of its own.
BATCH_WINDOW = 2000
BATCH_BYTES = 1_000_000  #: Bytes of a window's bodies; a larger message is a window of its own.
#: Seconds: the longest pause between two attempts to connect for sending.
LONGEST_PAUSE = 1.0
#: Seconds after which it is logged again that the same trouble keeps us from RabbitMQ.
WAITING_LOG_INTERVAL = 60.0
JOINED_WRITES = 0x10000  #: About how many bytes of frames are joined into one write.
REPLY_TEXT = 100_000  #: Characters of an exception's text, and of its traceback, in a reply.
HEADER_TEXT = 10_000  #: Characters of the same in a failed message's headers.
#: Seconds that a delay queue lives, unused, beyond its delay.
DELAY_QUEUE_LEASE = 600.0
#: Seconds after which a delay queue is declared again before it is used, which renews its lease.
DELAY_QUEUE_RENEWAL = 60.0
#: Seconds after which a busy worker looks whether it holds the right number of messages.
LOOK = 0.02
#: Seconds of work that a worker holds, by its measured rate, beyond one message for each thread.
PREFETCH_SECONDS = 0.02
#: The most messages that this may be. Only tiny tasks come near: they are done sooner than the
#: broker sends the next.
MAX_PREFETCH = 1000
#: Seconds that a message waits here while no task begins. Then it goes back, because another worker
#: may be free.
HANDBACK_AFTER = 0.02
#: Seconds: the longest such wait, for a worker in which nothing has begun for long.
LONGEST_PATIENCE = 1.0
#: Seconds after which a thread counts as stuck although it waits for no task.
STALLED = 5.0
#: Seconds: the longest pause before a queue that can't be consumed is tried again.
LONGEST_QUEUE_PAUSE = 5.0
#: Seconds: the longest pause before messages that can't be forwarded are tried again.
LONGEST_FORWARD_PAUSE = 10.0
#: Messages of a queue that are kept because they can't be forwarded, and that take no other
#: message's place. With more of them the queue is served more slowly, and at last no more.
MAX_KEPT = 500
LARGE_REPLY = 100_000  #: Bytes from which on a refused reply may have been refused for its size.
#: Deliveries that a quorum queue which we declare allows. RabbitMQ 4 drops a message after 20
#: otherwise.
DELIVERY_LIMIT = 1_000_000
REFUSAL_PAUSE = 0.2  #: Seconds after which a message that its queue has refused is sent again.
#: Failed messages that are fetched at once at first; their size decides how many follow.
FIRST_SHARE = 10
MAX_SHARE, SHARE_BYTES = 500, 4_000_000  #: The most messages, and bytes, that are fetched at once.
#: Seconds before the first attempt to reconnect. Each further pause is twice as long.
FIRST_RECONNECT = 0.1


# --- Exceptions ----------------------------------------------------------------------------------


class KuyrukError(Exception):
    """Base of the exceptions below, except for the two that a task must not swallow."""


class _Interruption:
    """Mixin of the exceptions that interrupt a task.

    Python can only set a class for another thread, and makes the exception there, without
    arguments. Such a one takes those of the exception that has interrupted the run.
    """

    def __init__(self, *args: object) -> None:
        run = current_task()
        cause = None if run is None else run._cause
        if run is not None and not args and type(cause) is cast(Any, type(self)):
            args = cast(BaseException, cause).args
            run._on_landed()
        super().__init__(*args)


class Reject(KuyrukError):
    """Raised by a task that doesn't want its message: it goes back to the queue, not counted as a
    failure. It is there again after `delay` seconds (0: at once; None: the task's `reject_delay`).
    Raises ValueError for a delay that is negative, too long, or no number."""

    def __init__(self, *args: object, delay: float | None = None) -> None:
        _check("delay", delay)
        super().__init__(*args)
        self.delay = delay


class Discard(_Interruption, KuyrukError):
    """Raised by a task that doesn't want its message, or in a task by an operator (`Worker.drop`):
    the message is dropped."""


class Timeout(_Interruption, KuyrukError):
    """Raised in a task that exceeds its `max_run_time`: the message has failed. A broad `except
    Exception` in the task can swallow it."""


class ResultTimeout(KuyrukError):
    """Raised by `Task.send_to_queue`: no reply came within `wait_result` seconds."""


class RemoteException(KuyrukError):
    """Raised by `Task.send_to_queue`: the task raised in the worker. `type` is the dotted name of
    the exception's class, `value` its text, `traceback` its formatted traceback (str or None)."""

    def __init__(self, type_: str, value: str, traceback: str | None) -> None:
        super().__init__(type_, value, traceback)
        self.type = type_
        self.value = value
        self.traceback = traceback
        if traceback:
            # Python prints notes where nothing catches an exception. There the reader needs it.
            self.add_note(f"In the worker:\n{traceback}")

    def __str__(self) -> str:
        return f"{self.type}({self.value!r})"


class BrokerError(KuyrukError, ConnectionError):
    """Raised when sending: RabbitMQ can't be reached, or didn't confirm a message in time, or
    refused it. It may have arrived all the same. `unconfirmed` lists the `SubTask`s of a batch that
    aren't known to have arrived."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.unconfirmed: list[SubTask] = []


class InvalidMessage(KuyrukError):
    """What a message fails with that can't be decoded, or names no task of the application."""


class Crashed(KuyrukError):
    """What a message fails with that has brought WORKER_MAX_CRASHES worker processes down."""


class HeartbeatError(_Interruption, BaseException):
    """Raised in a task whose worker has lost the connection by which the message came: it will run
    again. `exc_info` (type, value, traceback) says how it was lost. It isn't an Exception, so that
    the task doesn't swallow it."""

    def __init__(self, exc_info: Any = None) -> None:
        super().__init__(*(() if exc_info is None else (exc_info,)))
        self.exc_info = self.args[0] if self.args else None

    def __str__(self) -> str:
        why = self.exc_info[1] if isinstance(self.exc_info, tuple) else self.exc_info
        return f"the worker has lost its connection: {why}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class Shutdown(_Interruption, BaseException):
    """Raised in a task that a stopping worker can't wait for: it will run again. It isn't an
    Exception, so that the task doesn't swallow it."""


def _make_module(name: str, is_member: Callable[[Any], bool], doc: str) -> types.ModuleType:
    """Return a new module `kuyruk.<name>` with the members of this one that `is_member` chooses.

    It can be imported although it has no file, as `os.path` can, in a vendored copy too. Classes
    say that they come from there, as with Kuyruk: pickles and error texts name them so.
    """
    module = types.ModuleType(f"{__name__}.{name}", doc)
    module.__file__ = __file__
    for key, value in list(globals().items()):
        if is_member(value):
            setattr(module, key, value)
            if isinstance(value, type):
                value.__module__ = module.__name__
    sys.modules[module.__name__] = module
    return module


exceptions = _make_module(
    "exceptions",
    lambda v: isinstance(v, type) and issubclass(v, BaseException) and v.__module__ == __name__,
    "The exceptions of kuyruk.",
)


# --- Logging -------------------------------------------------------------------------------------


def _is_for_program(error: BaseException) -> bool:
    """Whether an exception that came out of the user's code is meant for the program: a signal
    handler has raised it in the main thread (Ctrl-C), while that was in the user's code by chance.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and not isinstance(error, Exception)


def _log(level: int, text: str, *args: Any, **options: Any) -> None:
    """Log, in this thread. A handler is the user's code: what it raises changes nothing here."""
    try:
        options.pop("logger", logger).log(level, text, *args, stacklevel=2, **options)
    except BaseException as error:
        if _is_for_program(error):
            raise


#: Records for the log thread. When a handler blocks for long, the oldest are dropped: no backlog
#: may fill the memory.
_records: collections.deque[logging.LogRecord] = collections.deque(maxlen=1000)
_log_token = threading.Lock()  #: The log thread has it, from before its start until its end.


def _log_aside(
    level: int,
    text: str,
    *args: Any,
    error: BaseException | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Log in the log thread. For threads of ours that others wait for: a handler may block, or may
    send a message, which needs the very thread that logs."""
    if logger.isEnabledFor(level):
        code, line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
        info = None if error is None else (type(error), error, error.__traceback__)
        record = logger.makeRecord(
            logger.name, level, code.co_filename, line, text, args, info, code.co_name, extra
        )
        _records.append(record)
        if _log_token.acquire(blocking=False):
            try:
                threading.Thread(target=_write_records, name="kuyruk-log", daemon=True).start()
            except Exception:  # no thread can be started, or there is no memory for one
                _write_records()


def _write_records() -> None:
    """Write all records there are, in the log thread, which has the token.

    1. This thread: finds no more records. 2. Another thread: appends one, and can't have the token.
    3. This thread: releases the token, and looks once more. So no record is left behind.
    """
    while True:
        with contextlib.suppress(IndexError):  # the deque is empty
            while True:
                record = _records.popleft()
                try:
                    logger.handle(record)
                except BaseException:  # a handler's
                    pass
        _log_token.release()
        if not _records or not _log_token.acquire(blocking=False):
            return


def _wait_for_log() -> None:
    """Wait until the log thread has nothing to write, for CLOSE_TIMEOUT seconds at most."""
    until = time.monotonic() + CLOSE_TIMEOUT
    while (_records or _log_token.locked()) and time.monotonic() < until:
        time.sleep(0.005)


# --- Signals -------------------------------------------------------------------------------------


class _Receiver(NamedTuple):
    """A function to call when a signal is sent."""

    function: Callable[[], Callable[..., Any] | None]  #: Returns it; None: it is gone (weak).
    sender: Callable[[], Any] | None  #: Returns the only sender it wants; None: it wants any.


class Signal:
    """Calls functions, its receivers, when something happens. Each gets the sender (a `Kuyruk`) and
    keyword arguments, in the thread where it happens, before that goes on.

    name: what it is called.
    raises: whether `send` raises a receiver's exception. If not, it is logged, and changes nothing.
    receivers: those that are connected. Whoever sends may look whether there is any, and spare
    itself the arguments.
    """

    def __init__(self, name: str, raises: bool = False) -> None:
        self.name = name
        self.raises = raises
        #: This tuple is replaced, under a lock, and never changed: so `send` needs no lock.
        self.receivers: tuple[_Receiver, ...] = ()

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    def connect(self, f: F, sender: Any = None, weak: bool = False) -> F:
        """Call `f` when the signal is sent; returns `f`, so this is a decorator, too. One that is
        connected already is called once all the same.

        sender: the `Kuyruk` whose signals it gets; None: any. weak: keep no reference to `f`: it is
        called as long as others do. Raises TypeError for what is no such sender, and for an async
        function, whose call wouldn't run it.
        """
        import inspect  # not at the top: 6 ms and a megabyte, for who has no task and no receiver

        if not callable(f) or inspect.iscoroutinefunction(f):
            raise TypeError(f"{self!r} takes a plain function as a receiver: not {f!r}")
        if sender is not None:
            _require("sender", sender, Kuyruk)
        self.disconnect(f, sender)
        # A plain reference to a bound method dies at once: each look at the attribute makes one.
        kind: Any = weakref.WeakMethod if inspect.ismethod(f) else weakref.ref
        # Weak, because signals live for ever: an application that is dropped must not.
        wanted = None if sender is None else weakref.ref(sender)
        receiver = _Receiver(kind(f) if weak else lambda: f, wanted)
        with _signals_change:
            self.receivers += (receiver,)
        return f

    def connect_via(self, sender: Any, weak: bool = False) -> Callable[[F], F]:
        """Return a decorator that connects a function for the signals of this sender."""
        return lambda f: self.connect(f, sender, weak)

    def disconnect(self, f: Callable[..., Any], sender: Any = None) -> None:
        """Call `f` no longer, for this sender or (None) for any. No error if it isn't connected."""

        def stays(receiver: _Receiver) -> bool:
            g, wanted = receiver.function(), receiver.sender
            if g is None:
                return False  # it was connected weakly, and exists no more
            return g != f or (sender is not None and (wanted is None or wanted() is not sender))

        with _signals_change:
            self.receivers = tuple(filter(stays, self.receivers))

    def send(self, sender: Any = None, /, **kwargs: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Call the receivers, in the order in which they were connected. Returns each with what it
        has returned."""
        results = []
        for receiver in self.receivers:
            f = receiver.function()
            if f is None or (receiver.sender is not None and receiver.sender() is not sender):
                continue
            try:
                results.append((f, f(sender, **kwargs)))
            except BaseException as error:
                if self.raises or _is_for_program(error):
                    raise
                text = "A receiver of the signal %s has raised"
                _log(logging.ERROR, text, self.name, exc_info=True)
        return results


_signals_change = threading.Lock()  #: Guards the replacement of `Signal.receivers`.

#: What `help(kuyruk.signals)` says.
_SIGNALS_HELP = """The signals of kuyruk, each a `Signal`. Their sender is the `Kuyruk`.

Those about a task are sent with task=, args= and kwargs= (the arguments of its function), those
about a worker with worker=, and both with the further arguments that are named here.

    task_init        A task was made. With task= only.
    task_presend     A message is about to be sent. With description=, a dict: a receiver may change
                     it. Its "headers" are the message's AMQP headers; all else is in its body.
    task_postsend    The broker has the message. With description=.
    task_preapply    A task is about to run, with all tries.
    task_prerun      A try begins.
    task_postrun     A try is over.
    task_success     The task has returned.
    task_error       A try has raised. With exc_info=.
    task_failure     The last try has raised. With exc_info=.
    task_postapply   All tries are over.
    worker_failure   A message has failed in a worker, and that will be logged. With queue=,
                     description= and exc_info=; with the three of a task if that was found.
    worker_init      A worker was made.
    worker_start     A worker starts.
    worker_shutdown  A worker has stopped.

What a receiver of task_presend or task_prerun raises is the send's or the task's exception. What
another raises is logged.
"""

task_init = Signal("task_init")
task_presend = Signal("task_presend", raises=True)
task_postsend = Signal("task_postsend")
task_preapply = Signal("task_preapply")
task_postapply = Signal("task_postapply")
task_prerun = Signal("task_prerun", raises=True)
task_postrun = Signal("task_postrun")
task_success = Signal("task_success")
task_error = Signal("task_error")
task_failure = Signal("task_failure")
worker_failure = Signal("worker_failure")
worker_init = Signal("worker_init")
worker_start = Signal("worker_start")
worker_shutdown = Signal("worker_shutdown")

_Signal = Signal  # the next class has an attribute of that name


class _SignalsModule(types.ModuleType):
    """Says to type checkers what is in `signals`, so that its decorators have types."""

    Signal: type[_Signal]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> _Signal: ...


_is_signal = lambda v: v is Signal or isinstance(v, Signal)  # noqa: E731
signals = cast(_SignalsModule, _make_module("signals", _is_signal, _SIGNALS_HELP))


# --- Config --------------------------------------------------------------------------------------

# Patterns here are text, and `re` compiles them at their first use: compiling them all would take a
# quarter of the time that it takes to import this module.

#: "[IPv6]", a name or an IPv4 address, or an IPv6 address without brackets (it has "::" in it, or
#: six colons: "db:5672:5673" is a mistake); then a port.
_HOST = (
    r"\s*(?:\[([^]\s/@]+)]|([^][:\s/@]+)|((?=[^,\s]*::|(?:\w*:){6})[0-9a-fA-F.:]+(?:%\w+)?))"
    r"(?::([^]:\s]*))?\s*"
)

#: Scheme, user, password, hosts, virtual host.
_URL = r"(amqps?)://(?:([^]/?#[:]*)(?::([^]/?#[]*))?@)?([^/?#@]*)(?:/([^?#@]*))?"


def _parse_hosts(hosts: str, default_port: int = 5672) -> list[tuple[str, int]]:
    """Return "a,b:5673,[::1]:5674" as addresses. Raises ValueError, whose text holds none of it."""
    if "://" in hosts:
        raise ValueError("a URL belongs into RABBIT_URL")
    addresses = []
    for item in hosts.split(","):
        match = re.fullmatch(_HOST, item)
        if match is None:
            raise ValueError("a host is a name or an address; IPv6 with a port is [::1]:5672")
        port = match[4] if match[4] is not None else str(default_port)
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ValueError("a port is a number from 1 to 65535")
        addresses.append((match[1] or match[2] or match[3], int(port)))
    return addresses


def _parse_url(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Return addresses and options. Raises ValueError, whose text holds nothing of the URL: what
    looks like its host may be a part of the password."""
    match = re.fullmatch(_URL, url)
    if match is None:
        raise ValueError(
            "it begins with amqp:// or amqps://; in a user, password or virtual host / is written"
            " as %2F, ? as %3F, # as %23, @ as %40, [ as %5B; options after a ? are keys here"
        )
    is_ssl = match[1] == "amqps"
    names = ("username", "password", "virtual_host")
    values = (match[2] or "guest", match[3] or "guest", match[5] or "/")
    options = {n: urllib.parse.unquote(v) for n, v in zip(names, values, strict=True)}
    addresses = _parse_hosts(match[4] or "localhost", 5671 if is_ssl else 5672)
    return addresses, {"ssl": is_ssl, **options}


def _is_table(value: Any) -> bool:
    """Whether it is a dict whose keys are strings."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_amqp_table(value: Any) -> bool:
    """Whether it is a dict whose keys are strings. Raises ValueError for one that AMQP can't
    carry."""
    for key, item in value.items() if _is_table(value) else ():
        if not 0 < len(key.encode("utf-8", "surrogatepass")) <= 128:
            raise ValueError("a key of 1 to 128 bytes")
        try:
            encode.field_table({key: item})
        except (TypeError, ValueError, RecursionError, struct.error):
            what = "text, numbers, lists and dicts"
            raise ValueError(f"{key!r} holds none of what AMQP carries: {what}") from None
    return _is_table(value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number. (An int can be too large for a float.)"""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -sys.float_info.max <= value <= sys.float_info.max


def _is_ssl_options(options: Any) -> bool:
    """Whether it is a dict whose keys are strings. Raises ValueError for an option that amqpstorm
    would ignore: a misspelt one could leave a connection unverified that was to be verified."""
    known = ["ca_certs", "cafile", "cert_reqs", "certfile", "check_hostname", "context", "keyfile"]
    known += ["server_hostname", "verify_mode"]
    for name, value in options.items() if _is_table(options) else ():
        if name not in known:
            raise ValueError(f"{name[:100]!r} is none of {', '.join(known)}")
        is_mode = value is None or isinstance(value, ssl.VerifyMode)
        is_mode = is_mode or str(value).lower() in ("required", "optional", "none")
        if name in ("verify_mode", "cert_reqs") and not is_mode:
            raise ValueError(f"{name} is 'required', 'optional', 'none', or an ssl.VerifyMode")
    return _is_table(options)


def _level_name(level: str) -> str:
    """Return the name of a level of logging's: "info" is "INFO". Raises ValueError."""
    names = logging.getLevelNamesMapping()
    name = level if level in names else level.upper()
    if name not in names:
        raise ValueError(f"there are {', '.join(names)}")
    return name


#: The kinds of values, in words and as a test. A parser can be the test: what it returns is true,
#: and it raises ValueError with a better reason.
_KINDS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "text": ("a string", lambda v: isinstance(v, str) and not re.search("[\ud800-\udfff]", v)),
    "flag": ("True or False", lambda v: isinstance(v, bool)),
    "table": ("a dict with strings as keys", _is_amqp_table),
    "whole": ("a whole number", lambda v: type(v) is int),
    "seconds": ("seconds", _is_number),
    "load": ("a load average, 0 or more, or -1", lambda v: _is_number(v) and (v >= 0 or v == -1)),
    "hosts": ("'host', 'host:port', or several with commas", _parse_hosts),
    "url": ("'amqp://user:password@host:port/vhost'", _parse_url),
    "ssl": ("a dict of amqpstorm's ssl_options", _is_ssl_options),
    "level": ("a level of logging's, as 'INFO'", _level_name),
}


class _Rule(NamedTuple):
    """What a setting, an option of a task or an argument takes."""

    kind: str  #: One of `_KINDS`; with "?" None is allowed, too.
    least: float = -math.inf
    most: float = math.inf


_MOST = 0x7FFFFFFF  #: The largest signed 32-bit number; no sensible count comes near it.
#: What is checked here: the configuration's keys, and (in lower case) options and arguments.
_RULES = {
    name: _Rule(*rule)
    for names, *rule in (
        ("RABBIT_HOST", "hosts"),
        ("RABBIT_URL", "url?"),
        ("RABBIT_PORT", "whole", 1, 65535),
        ("RABBIT_HEARTBEAT", "whole", 0, 65535),
        ("RABBIT_USER RABBIT_PASSWORD RABBIT_VIRTUAL_HOST", "text"),
        ("RABBIT_SSL RABBIT_CONFIRM EAGER", "flag"),
        ("RABBIT_SSL_OPTIONS", "ssl"),
        ("RABBIT_CONNECT_TIMEOUT RABBIT_PUBLISH_TIMEOUT", "seconds", 0.001, _MOST),  # of sockets
        ("RABBIT_IDLE_DURATION WORKER_RECONNECT_INTERVAL", "seconds", 0.001),
        ("QUEUE_ARGUMENTS", "table"),
        ("WORKER_THREADS", "whole", 1, 10_000),  # a machine stands still that starts millions
        ("WORKER_MAX_CRASHES", "whole", 1, _MOST),
        ("WORKER_PROCESSES", "whole", 1, 1000),
        ("WORKER_PREFETCH", "whole?", 1, 65535),
        ("WORKER_MAX_LOAD", "load?"),
        ("WORKER_GRACE timeout", "seconds", 0),
        ("WORKER_MAX_RUN_TIME WORKER_SHUTDOWN_TIMEOUT max_run_time wait_result", "seconds?", 0),
        ("WORKER_PRIORITY", "whole?", -_MOST - 1, _MOST),
        ("WORKER_LOGGING_LEVEL", "level"),
        ("retry", "whole", 0, _MOST),
        ("max_failures", "whole?", 1, _MOST),
        ("fail_delay reject_delay", "seconds", 0, MAX_TTL // 1000),
        ("FAILED_TTL max_fail_delay message_ttl delay", "seconds?", 0, MAX_TTL // 1000),
        ("host id", "text?"),
        ("priority", "whole?", 0, 255),
        ("headers", "table?"),
    )
    for name in names.split()
}
_SECRETS = ("RABBIT_PASSWORD", "RABBIT_URL", "RABBIT_SSL_OPTIONS")  # in no error text, log or repr


def _require(name: str, value: Any, kind: type, how: str = "") -> None:
    """Raise TypeError if it is no object of this class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} takes a kuyruk.{kind.__name__}{how}: not {_shown(name, value)}")


def _check(name: str, value: Any, called: str = "") -> None:
    """Raise ValueError if the rule of this name doesn't allow the value. called: what the user
    calls it, if not so."""
    kind, least, most = _RULES[name]
    words, test = _KINDS[kind.removesuffix("?")]
    if value is None and kind.endswith("?"):
        return
    reason = ""
    try:
        # Only numbers have limits: nothing else is compared with any.
        if test(value) and (least == -math.inf or least <= value <= most):
            return
    except ValueError as error:
        reason = f" ({error})"
    except (TypeError, AttributeError):  # a parser that was given another type
        pass
    if least > -math.inf:
        words += f", {least:g} or more" if most == math.inf else f" from {least} to {most}"
    words += ", or None" if kind.endswith("?") else ""
    raise ValueError(f"{called or name} takes {words}{reason}: not {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    """Return a value for an error's text, unless it is secret or can't be written."""
    try:
        text = repr(value)
        return "the given value" if name in _SECRETS or re.search("@|://", text) else text[:500]
    except Exception:  # too many digits, too deep, or an object of the user's
        return f"this {type(value).__name__}"


#: "KEY=value" of the variables that Kubernetes sets for each of its Services, without "KUYRUK_":
#: those of a Service that is called "kuyruk" or "kuyruk-rabbit" look like ours.
_KUBERNETES = (
    r"(?s)(.*_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|(.*_)?PORT=(tcp|udp|sctp)://.*"
)


#: Keys of Kuyruk 10 that nothing reads here, and what takes their place.
_UNREAD_KEYS = {
    "RABBIT_READ_TIMEOUT": "RABBIT_PUBLISH_TIMEOUT",
    "RABBIT_WRITE_TIMEOUT": "RABBIT_PUBLISH_TIMEOUT",
    "TCP_USER_TIMEOUT": "RABBIT_HEARTBEAT",
}


@functools.cache  # the same file is often loaded again, in a test or by the command line
def _warn_of_unread_key(key: str) -> None:
    """Log that nothing here reads a key of the configuration, if it looks like one of ours."""
    instead = _UNREAD_KEYS.get(key)
    if instead is not None or key.startswith(("RABBIT_", "WORKER_")):
        what = f"{instead} takes its place" if instead else "it is kept, for an extension"
        _log(logging.WARNING, "The configuration key %r has no effect here: %s", key, what)


def _did_you_mean(word: str, known: Iterable[str], likeness: float) -> str:
    """Return a hint at what is like the word, or what it abbreviates: VHOST is nearer to HOST than
    to VIRTUAL_HOST."""
    import difflib

    def is_short_for(name: str) -> bool:
        """Whether the word's letters are in the name, in this order, from its first on."""
        letters = iter(name)
        return word[0] == name[0] and all(letter in letters for letter in word)

    known = list(known)
    long = filter(is_short_for, known) if word else ()
    close = difflib.get_close_matches(word, long, n=1, cutoff=likeness - 0.1)
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=likeness)
    return f": did you mean {close[0]!r}?" if close else ""


def _check_names(function: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for an option that the function doesn't know."""
    for name in options:
        if name not in known:
            hint = _did_you_mean(name, known, 0.7) or "."
            raise TypeError(
                f"{function} takes no option {name!r}{hint} It takes {', '.join(known)}"
            )


class Config:
    """The settings of a `Kuyruk`: the class attributes are the defaults. Set them by assignment or
    with a loader. What each means is said beside it in the source, and in docs/configuration.md.

    A value that its key doesn't take raises ValueError, and so does a key that looks like a
    misspelling of one of these. Another upper-case key is an extension's: it is kept; if it looks
    like one of these all the same, a warning is logged, once. (Extensions may also add class
    attributes, with defaults: there is no warning then.) No error holds the value of a secret key.
    """

    RABBIT_HOST: str = "localhost"  #: Host, or several, tried in turn: "a,b:5673,c".
    RABBIT_PORT: int = 5672
    RABBIT_USER: str = "guest"
    RABBIT_PASSWORD: str = "guest"
    RABBIT_VIRTUAL_HOST: str = "/"
    #: "amqp://user:password@host:port/vhost", or amqps: wins over the five above.
    RABBIT_URL: str | None = None
    RABBIT_SSL: bool = False  #: TLS; certificates are verified unless the options say otherwise.
    #: amqpstorm's: cafile, certfile, keyfile, context...
    RABBIT_SSL_OPTIONS: dict[str, Any] = {}  # noqa: RUF012
    #: Seconds between signs of life. A connection is lost after twice as much silence. 0: none.
    RABBIT_HEARTBEAT: int = 60
    RABBIT_CONNECT_TIMEOUT: float = 5  #: Seconds that an attempt to connect to an address may take.
    RABBIT_PUBLISH_TIMEOUT: float = 10  #: Seconds within which a send is confirmed or raises.
    RABBIT_CONFIRM: bool = True  #: Wait for the broker's confirms.
    RABBIT_IDLE_DURATION: float = 60  #: Seconds after which an unused sending connection is closed.
    #: For queues that it declares: {"x-queue-type": "quorum"}.
    QUEUE_ARGUMENTS: dict[str, Any] = {}  # noqa: RUF012
    EAGER: bool = False  #: Run tasks in this process instead of sending them: for tests.
    #: Seconds that "<queue>.failed" keeps messages; None: reject them instead.
    FAILED_TTL: float | None = 604800
    WORKER_THREADS: int = 8  #: Tasks that one worker process runs at once.
    WORKER_PROCESSES: int = 1  #: Processes that the command line starts.
    #: Messages held at once, of each queue. None: one for each thread, and 20 ms of work.
    WORKER_PREFETCH: int | None = None
    #: Pause above this load average. -1: the number of CPUs; 0: never.
    WORKER_MAX_LOAD: float | None = None
    #: Seconds after which a worker stops gracefully. 0: never.
    WORKER_MAX_RUN_TIME: float | None = None
    #: Seconds that an interrupted task gets to end, before its thread is given up.
    WORKER_GRACE: float = 5
    #: Seconds that a stop waits for running tasks. None: for ever.
    WORKER_SHUTDOWN_TIMEOUT: float | None = None
    WORKER_RECONNECT_INTERVAL: float = 5  #: Seconds: longest pause between attempts to reconnect.
    WORKER_PRIORITY: int | None = None  #: Of its consumers: larger numbers are served first.
    #: Processes that a message may bring down before it has failed. Command line only.
    WORKER_MAX_CRASHES: int = 3
    WORKER_LOGGING_LEVEL: str = "INFO"  #: Command line only.

    def __init__(self) -> None:
        for key in filter(str.isupper, _RULES):
            value = getattr(self, key)
            # A dict is copied: what is put into it is for this object only. And the defaults of a
            # subclass are checked as if they were assigned.
            if isinstance(value, dict):
                setattr(self, key, dict(value))
            elif value is not getattr(Config, key):
                setattr(self, key, value)

    if not TYPE_CHECKING:  # type checkers know the keys, unless they see this

        def __setattr__(self, key: str, value: Any) -> None:
            """Set a key. Raises ValueError for a value that it doesn't take, and for a key that
            looks misspelt."""
            if not key.isupper() or not hasattr(type(self), key):
                known = filter(str.isupper, dir(type(self)))
                hint = _did_you_mean(key.upper(), known, 0.8)
                if hint or not key.isupper():
                    raise ValueError(f"unknown configuration key {key!r}{hint}")
                _warn_of_unread_key(key)
            if key in _RULES:
                _check(key, value)
            super().__setattr__(key, _level_name(value) if key == "WORKER_LOGGING_LEVEL" else value)

    def __repr__(self) -> str:
        shown = []
        for key, value in vars(self).items():
            if key in _SECRETS or key not in _RULES:  # an extension's may be a secret, too
                shown.append(f"{key}=...")
            elif value != getattr(type(self), key):
                shown.append(f"{key}={_shown(key, value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def from_dict(self, d: Mapping[str, Any]) -> None:
        """Load values from a dict. Raises TypeError for anything else."""
        if not isinstance(d, Mapping):
            raise TypeError(f"from_dict takes a dict: not {type(d)}")
        for key, value in d.items():
            if not isinstance(key, str):
                raise ValueError(f"unknown configuration key {key!r}")
            setattr(self, key, value)

    def from_object(self, obj: Any) -> None:
        """Load the upper-case attributes, but modules, of an object, or of what a dotted path (str)
        leads to. Raises what importing it does, and TypeError for an object that has none. (For a
        class or a module that has none a warning is logged.)"""
        if isinstance(obj, str):
            import pkgutil

            try:
                obj = pkgutil.resolve_name(obj)
            except (AttributeError, ValueError):
                obj = importlib.import_module(obj)  # which says why it can't be imported
        values = {key: getattr(obj, key) for key in dir(obj) if key.isupper()}
        values = {k: v for k, v in values.items() if not isinstance(v, types.ModuleType)}
        if not values and not isinstance(obj, type | types.ModuleType):
            what = "an object with upper-case attributes, or the dotted path of one"
            raise TypeError(f"from_object takes {what}: not {type(obj)}")
        if not values:
            _log(logging.WARNING, "There is no upper-case name in %r: it configures nothing", obj)
        self.from_dict(values)

    def from_pymodule(self, name: str) -> None:
        """Load the upper-case names of a Python module. Raises as `from_object`."""
        self.from_object(name)

    def from_pyfile(self, filename: str) -> None:
        """Run a Python file and load its upper-case names. Raises OSError, and what it raises."""
        module = types.ModuleType("kuyruk_config")
        module.__file__ = filename
        with open(os.fspath(filename), "rb") as file:  # no number: that would be a descriptor
            exec(compile(file.read(), filename, "exec"), vars(module))
        self.from_object(module)

    def from_env_vars(self) -> None:
        """Load the environment's KUYRUK_* variables: Python literals, else strings. Those that
        Kubernetes sets for a Service are ignored, and KUYRUK_TEST_*, which aren't ours."""
        for name, text in os.environ.items():
            key = name.removeprefix("KUYRUK_")
            is_key = key != name and not key.startswith("TEST_")
            if is_key and not re.fullmatch(_KUBERNETES, f"{key}={text}"):
                setattr(self, key, self._from_text(key, text))

    def _from_text(self, key: str, text: str) -> Any:
        """Return the value that an environment variable's text stands for."""
        import ast

        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
        if isinstance(getattr(type(self), key, None), str) and not isinstance(value, str):
            return text  # a password of digits only is a string all the same
        is_flag = key in _RULES and _RULES[key].kind == "flag"
        return bool(value) if is_flag and value in (0, 1) else value

    def _with(self, **values: Any) -> Config:
        """Return a copy, with those of the values that aren't None."""
        copy = type(self)()
        copy.from_dict(vars(self) | {k: v for k, v in values.items() if v is not None})
        return copy

    def _addresses(self) -> list[tuple[str, int]]:
        """Return hosts and ports, in the order in which they are tried."""
        if self.RABBIT_URL:
            return _parse_url(self.RABBIT_URL)[0]
        return _parse_hosts(self.RABBIT_HOST, self.RABBIT_PORT)

    def _connection_options(self) -> dict[str, Any]:
        """Return the options of amqpstorm's Connection, without the address."""
        options: dict[str, Any] = {
            "username": self.RABBIT_USER,
            "password": self.RABBIT_PASSWORD,
            "virtual_host": self.RABBIT_VIRTUAL_HOST,
            "ssl": self.RABBIT_SSL,
            "ssl_options": self.RABBIT_SSL_OPTIONS,
            "client_properties": {"product": "kuyruk", "version": __version__},
            "heartbeat": self.RABBIT_HEARTBEAT,
            "timeout": self.RABBIT_CONNECT_TIMEOUT,
        }
        options |= _parse_url(self.RABBIT_URL)[1] if self.RABBIT_URL is not None else {}
        return options | {"ssl": options["ssl"] or self.RABBIT_SSL}  # amqp:// takes nothing back


# --- Messages ------------------------------------------------------------------------------------


class _Message(NamedTuple):
    """A message to publish, to a queue, through the default exchange."""

    queue: str
    body: bytes
    properties: dict[str, Any]  #: AMQP's, by pamqp's names.
    arguments: dict[str, Any]  #: The queue is declared with these when it is missing.
    mandatory: bool = True  #: The broker is to return it when there is no such queue.
    #: Seconds after which its queue is declared again before it is used. For delay queues, which
    #: vanish when they are unused.
    renewal: float = math.inf
    #: For a message to a delay queue: the queue that passes it on to, and that one's arguments. It
    #: is declared as well, because RabbitMQ drops messages for a queue that doesn't exist.
    target: tuple[str, dict[str, Any]] | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """What is compared to recognise a message that the broker returns."""
        return self.queue, self.properties.get("message_id")


class _Description(NamedTuple):
    """A task's message, decoded."""

    id: str | None
    module: str
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    whole: dict[str, Any]  #: As it was sent, with all its keys.


# allow_nan=False, because NaN and Infinity are Python's, not JSON's: other readers reject them.
_to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _encode_json(value: Any, what: str) -> bytes:
    """Return JSON. Raises TypeError for a value that JSON can't hold; `what` names it in the text.
    Other exceptions, which an object's own code or a signal handler may raise, come through."""
    try:
        return _to_json(value).encode()
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {_text_of(error, 1000)}"
        raise TypeError(f"{what} can't be written as JSON: {why}") from error


def _check_headers(headers: Mapping[str, Any]) -> None:
    """Raise ValueError for headers that a sender may not set: for CC and BCC, RabbitMQ sends copies
    to other queues, and those with our prefix are ours."""
    for name in headers:
        if name in ("CC", "BCC") or name.startswith("x-kuyruk-"):
            raise ValueError(
                "headers takes any names but CC, BCC and those that begin with x-kuyruk-: not"
                f" {_shown('headers', name)}"
            )


@functools.lru_cache(1)
def _facts_about_sender(now: int, pid: int) -> dict[str, Any]:
    """Return the keys of a message that say who sends it. They are kept for a second (`now`, Unix
    time): system calls for each message are slow, and let other threads take over."""
    return {
        "sender_hostname": socket.gethostname(),
        "sender_pid": pid,
        "sender_cmd": " ".join(sys.argv)[:1000],
        "sender_timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)),
    }


class _Ids:
    """Makes ids for messages, from a random number of the process and a count: asking the system
    for random bytes for each message is slow."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with another random number; in a forked child, too: its parent goes on with its."""
        self._process_id = os.getpid()
        self._start, self._count = os.urandom(10).hex(), itertools.count()

    def make(self) -> str:
        """Return the next id, 32 hexadecimal digits."""
        if os.getpid() != self._process_id:  # forked by C code, which calls no hook of Python's
            self.begin()
        return f"{self._start}{next(self._count):012x}"


_ids = _Ids()


def _decode_json_object(body: bytes) -> dict[str, Any]:
    """Return the object. Raises InvalidMessage, which names what is wrong with the body."""
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


def _decode_task(body: bytes) -> _Description:
    """Return what a task's message says. Raises InvalidMessage, which names what is wrong."""
    d = _decode_json_object(body)
    for key, kind in (("module", str), ("function", str), ("args", list), ("kwargs", dict)):
        if key not in d:
            raise InvalidMessage(f"the message's {key!r} is missing")
        if not isinstance(d[key], kind) and not (d[key] is None and kind is not str):
            given = type(d[key]).__name__
            raise InvalidMessage(f"the message's {key!r} is a {given}, not a {kind.__name__}")
    # Other producers may send an id of any length; a worker's journal has room for this much.
    id = None if d.get("id") is None else str(d["id"])[:255]
    return _Description(id, d["module"], d["function"], d["args"] or [], d["kwargs"] or {}, d)


def _encode_reply(result: Any, error: BaseException | None) -> bytes:
    """Return a reply's body. Raises TypeError for a result that isn't JSON."""
    if error is None:
        return _encode_json({"result": result}, "the task's result")
    exception = {"type": _exception_name(error), "value": _text_of(error, REPLY_TEXT)}
    exception["traceback"] = _format_traceback(error, REPLY_TEXT)
    return _to_json({"result": None, "exception": exception}).encode()


def _decode_reply(body: bytes) -> Any:
    """Return the result in a reply. Raises RemoteException for the exception in it."""
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
    """Return the dotted name; `kuyruk.exceptions.Timeout` is called so in a vendored copy, too."""
    module = type(error).__module__
    module = "kuyruk.exceptions" if module == exceptions.__name__ else module
    return f"{module}.{type(error).__qualname__}"


def _text_of(value: object, limit: int, write: Callable[[Any], str] = str) -> str:
    """Return what `write` makes of a value, in about `limit` characters at most. A `__str__` is the
    user's code: if that raises, a text that says so is returned."""
    try:
        return _bounded(write(value), limit)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # a signal handler's: it is for the program
            raise
        return f"<no text: {type(error).__name__} was raised instead>"


def _task_traceback(error: BaseException) -> types.TracebackType | None:
    """Return an exception's traceback, without the frames of this file that lead to the task."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb


def _format_traceback(error: BaseException, limit: int) -> str:
    """Return it as text, in about `limit` characters at most."""

    def write(error: BaseException) -> str:
        return "".join(traceback.format_exception(type(error), error, _task_traceback(error)))

    return _text_of(error, limit, write)


class _Setting(Generic[T]):
    """Keeps a setting of the interpreter changed while a `with` block of this is entered, by one
    thread or by several at once. The first changes it, and the last restores it."""

    def __init__(self, change: Callable[[], T], restore: Callable[[T], object]) -> None:
        self._change, self._restore = change, restore
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_in_child)

    def _begin(self) -> None:
        """Begin with nobody who has entered."""
        self._lock = threading.Lock()  # guards what follows, and the change
        self._users = 0
        self._before: T

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = self._change()
            self._users += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._restore(self._before)

    def _begin_in_child(self) -> None:
        """Restore it in a forked child, in which no thread that has entered runs."""
        if self._users:
            self._restore(self._before)
        self._begin()


def _disable_collection() -> bool:
    """Return whether the garbage collector was enabled."""
    was_enabled = gc.isenabled()
    gc.disable()
    return was_enabled


def _restore_collection(was_enabled: bool) -> None:
    """Enable the garbage collector, if it was."""
    if was_enabled:
        gc.enable()


#: Keeps the garbage collector away from an interruption that hasn't landed yet
#: (`Run._interrupt`), and from `sys._current_frames`, which holds the interpreter's lock of its
#: list of threads. On Python 3.11 the collector may run within it (cpython#106883):
#: 1. The collector: calls a finalizer, which lets another thread run. 2. That thread: wants to read
#: the list, too, and waits for the lock without letting others run, for ever.
_no_collection = _Setting(_disable_collection, _restore_collection)


def _current_frames() -> dict[int, types.FrameType]:
    """Return each thread's innermost frame, by the thread's ident."""
    with _no_collection:
        return sys._current_frames()


def _format_stack(thread: int) -> str:
    """Return where a thread is, without the frames that lead from its beginning through this file
    to the task."""
    frame = _current_frames().get(thread)
    frames = traceback.extract_stack(frame)
    del frame
    ours = itertools.dropwhile(lambda frame: frame.filename != __file__, frames)
    inner = list(itertools.dropwhile(lambda frame: frame.filename == __file__, ours))
    return _bounded("".join(traceback.format_list(inner or frames)), HEADER_TEXT // 2).rstrip()


def _bounded(text: str, limit: int) -> str:
    """Return a text, or its beginning and its end if it has more than `limit` characters, without
    lone surrogates."""
    if len(text) > limit:
        left_out = f"\n[... {len(text) - limit} characters ...]\n"
        text = text[: limit // 2] + left_out + text[-(limit // 2) :]
    return text.encode("utf-8", "backslashreplace").decode()


def _count(number: int, noun: str) -> str:
    """Return "1 message" or "2 messages"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _milliseconds(seconds: float) -> str:
    """Return seconds as AMQP takes an expiration: in whole milliseconds, as text. They are rounded
    up, because 0 would expire at once."""
    return str(math.ceil(seconds * 1000))


def _check_queue_name(queue: str) -> str:
    """Return the name if RabbitMQ takes it. Raises ValueError."""
    try:
        fits = isinstance(queue, str) and 0 < len(queue.encode()) <= MAX_QUEUE_NAME
    except UnicodeEncodeError:
        fits = False
    # RabbitMQ removes line breaks from a name, and the message would find no such queue.
    if not fits or "\r" in queue or "\n" in queue:
        what = f"a string of 1 to {MAX_QUEUE_NAME} bytes of UTF-8, without line breaks"
        raise ValueError(f"a queue's name is {what}: not {_shown('queue', queue)}")
    if queue.startswith("amq."):
        raise ValueError(f"RabbitMQ keeps queue names that begin with 'amq.' to itself: {queue!r}")
    return queue


def _put_off(message: _Message, delay: float, arguments: Mapping[str, Any]) -> _Message:
    """Return the message for a delay queue, which passes it on to its own queue after `delay`
    seconds.

    arguments: QUEUE_ARGUMENTS. There is a queue for each distinct delay, because the broker looks
    for expired messages only at a queue's head. A delay queue vanishes DELAY_QUEUE_LEASE seconds
    after the longest that a message can be in it. A declaration renews that, so a sender that
    declares it at least each DELAY_QUEUE_RENEWAL seconds never publishes to one that is about to
    vanish.
    """
    ttl = int(_milliseconds(delay))
    # Without these a message is lost that expires while its quorum queue has no leader.
    safe = {"x_dead_letter_strategy": "at-least-once", "x_overflow": "reject-publish"}
    derived = _derived(
        arguments,
        **(safe if _is_quorum(arguments) else {}),
        x_message_ttl=ttl,
        x_expires=min(ttl + math.ceil(DELAY_QUEUE_LEASE * 1000), MAX_TTL),
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=message.queue,
    )
    return message._replace(
        queue=f"{message.queue}.delay.{ttl}",
        arguments=derived,
        renewal=DELAY_QUEUE_RENEWAL,
        target=(message.queue, message.arguments),
    )


def _growing_delay(first: float, most: float | None, failures: int, jitter: float) -> float:
    """Return the seconds until a message that has failed so often is back: `first`, doubled with
    each further failure, up to `most` (None: always `first`).

    jitter: from 0 to 1. It takes up to a quarter off, so that messages that have failed together
    don't come back together. The result has two significant digits, so that there are few distinct
    delays: each has a queue.
    """
    if most is None or first <= 0:
        return first
    # The exponent is bounded, since a float overflows.
    whole = min(first * 2.0 ** min(failures - 1, 60), most)
    seconds = max(first, whole * (1 - jitter / 4))
    digit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    # The 1e-9 keeps a division that isn't exact (3.0000000000000004) from being rounded up.
    return min(math.ceil(seconds / digit - 1e-9) * digit, most)


def _undropped(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a queue's arguments, with which RabbitMQ drops no message because the connections that
    it was delivered by were lost too often."""
    return {"x-delivery-limit": DELIVERY_LIMIT, **arguments} if _is_quorum(arguments) else arguments


def _is_quorum(arguments: Mapping[str, Any]) -> bool:
    """Whether a queue with these arguments is a quorum queue."""
    return arguments.get("x-queue-type") == "quorum"


def _derived(arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the arguments of a queue that is derived from one with these: of these it has only the
    type. In the names of `more`, _ stands for -."""
    inherited = {k: v for k, v in arguments.items() if k == "x-queue-type"}
    return _undropped(inherited | {k.replace("_", "-"): v for k, v in more.items()})


def _queue_names(queues: Iterable[str] | str) -> list[str]:
    """Return the names of queues, or of one, as RabbitMQ knows them. Raises ValueError."""
    is_one = isinstance(queues, str | bytes) or not isinstance(queues, Iterable)
    names: Any = [queues] if is_one else queues
    return list(dict.fromkeys(_resolve_host(_check_queue_name(name)) for name in names))


def _resolve_host(queue: str) -> str:
    """Return a queue's name, in which "name.localhost" stands for "name.<hostname>"."""
    name, dot, host = queue.rpartition(".")
    return f"{name}.{socket.gethostname()}" if dot and host == "localhost" else queue


# --- Interrupting a running task -----------------------------------------------------------------

#: Names of modules whose code must not be cut, because it guards a lock of the whole process, or
#: swallows exceptions. A task isn't interrupted while one of its frames is in such a module, or in
#: a submodule. This module always counts. Add modules that your tasks use:
#: `kuyruk.UNSAFE_MODULES.add("sqlalchemy.pool")`.
UNSAFE_MODULES = {
    "_frozen_importlib", "_frozen_importlib_external", "_weakrefset", "bdb", "concurrent.futures",
    "coverage", "importlib", "logging", "queue", "threading", "weakref", "zipimport",
}  # fmt: skip

#: Functions of logging that hold no lock and swallow nothing: they bring a record to its handlers.
#: They are exceptions to `UNSAFE_MODULES`, because a task that logs much is rarely seen elsewhere.
_HOLD_NO_LOCK = {
    "Filterer.filter", "Logger._log", "Logger.callHandlers", "Logger.critical", "Logger.debug",
    "Logger.error", "Logger.exception", "Logger.findCaller", "Logger.handle", "Logger.info",
    "Logger.log", "Logger.makeRecord", "Logger.warning", "_is_internal_frame",
}  # fmt: skip

_LOOK_AGAIN = 0.001  #: Seconds after which a thread that wasn't at a safe point is looked at again.
#: Seconds: the interpreter's switch interval while the watch is about to look for a safe point.
_SHORT_SWITCH = 1e-5
#: Seconds after which a failed attempt to give a task up is repeated. Each further pause is about
#: twice as long.
_GIVE_UP_AGAIN = 0.1
_WATCH_STALLS = 5.0  #: Seconds that a watch may be late before it counts as stuck.
_APPLY_GRACE = 1.0  #: Seconds after which `Task.apply` warns of a task that can't be interrupted.


#: The run in each thread, by the thread's ident. It isn't a `threading.local`, because one that was
#: made before gevent's monkey patch is the same for all greenlets.
_runs: dict[int, Run] = {}


def _set_current(run: Run | None) -> Run | None:
    """Note which run this thread is in (None: none). Return the one that it was in before."""
    me = threading.get_ident()
    before = _runs.pop(me, None)
    if run is not None:
        _runs[me] = run
    return before


def _raise_pending() -> None:
    """Raise the exception that is set for this thread, if there is one."""
    # Python looks for it where a loop jumps back.
    for _ in (1, 2):
        pass


def _call_task(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a task's function. `_is_safe` knows this frame: those that it calls are the task's."""
    try:
        return f(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            # Python's, about the arguments: it begins with what only pickle calls the function.
            text = str(error)
            error.args = (text.replace(f"{f.__qualname__}() ", f"{_name_of(f)}() ", 1),)
        raise


def _name_of(f: Callable[..., Any]) -> str:
    """Return what a function is called, not what it is pickled as (`Kuyruk._add`)."""
    is_renamed = f.__qualname__ == f"{f.__name__}.f"
    return f.__name__ if is_renamed else f.__qualname__


def _is_safe(frame: types.FrameType | None) -> bool:
    """Whether a thread whose innermost frame this is may be interrupted: it is in a task's code,
    and none of the frames from here out to `_call_task` must not be cut."""
    while frame is not None and frame.f_code is not _call_task.__code__:
        if frame.f_globals is globals() or _must_not_be_cut(frame):
            return False
        frame = frame.f_back
    return frame is not None


def _must_not_be_cut(frame: types.FrameType) -> bool:
    """Whether a frame must not be cut, by `UNSAFE_MODULES` or because it would have no effect."""
    module, code = str(frame.f_globals.get("__name__")), frame.f_code
    # Python prints an exception there, and goes on: the interruption would be lost.
    if code.co_name == "__del__" or any(getattr(f, "__code__", 0) is code for f in gc.callbacks):
        return True
    if module == "logging" and code.co_qualname in _HOLD_NO_LOCK:
        return False
    while module and module not in UNSAFE_MODULES:
        module = module.rpartition(".")[0]
    return bool(module)


def _fresh(value: Any) -> Any:
    """Return a copy of a value, in which lists, tuples and dicts are copied at all levels, and
    other objects are the same. (Not `copy.deepcopy`: it would copy a caller's objects in `apply`.)
    """
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_fresh, value))
    if type(value) is dict:
        return dict(zip(value, map(_fresh, value.values()), strict=True))
    return value


def _fresh_arguments(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments for one more try, as they were before the first changed them. If they
    are nested too deeply to be copied they are the same objects."""
    try:
        return _fresh(args), _fresh(kwargs)
    except RecursionError:
        return args, kwargs


class Run:
    """One message's run of a task, over all its tries; or one `Task.apply`'s. See `current_task`.

    task: the `Task`.
    id, queue: the message's id, and the queue that it came from; None with `Task.apply`.
    redelivered: whether the broker has delivered the message before: it may have run then, or a
        worker may only have handed it back.
    args, kwargs: the arguments of the function, as the message has them.
    started: time.monotonic() when the first try began.
    deadline: time.monotonic() at which this try exceeds `max_run_time`; None without a limit.

    How it is interrupted. Only the first cause counts. An exception of its class is set for the
    thread (`PyThreadState_SetAsyncExc`) at most once in each run: by the watch, or by the thread
    that orders the interruption, if the first look finds a safe point.

    1. It is set only at a safe point (`_is_safe`): in the task's own code. So it can't cut code of
       this module, nor leave a lock of the standard library's taken. The watch looks, marks the run
       as hit, and sets the exception, and no other thread runs in between. Python raises it in the
       frame that was seen, or in the one that this calls or returns to next. If the thread isn't at
       a safe point, the watch looks again.
    2. It hits nothing but its task. The exception is set under a lock, the gate, which the watch
       takes without waiting. The task's thread has the gate except during a try: it takes the gate
       when a try has ended, and keeps it for ever after the last. So this may happen:
       1. Watch: takes the gate, marks the run as hit, sets the exception.
       2. Task: returns, or raises by itself, before Python has raised that.
       3. Task's thread: sees the mark in `_mask`, and has the exception raised there, if Python
          hasn't raised it on the way, be it right after the thread has taken the gate.
       It can't come later, and no second one comes. The gate may stay taken: nobody waits for it.
    3. Where the task waits in this module, the watch wakes it, and the wait raises the cause
       (`_interruptible`).
    4. Each raise in the task is of a new exception (see `_Interruption`). If it was the same one,
       its traceback would grow, and `_cause` would lead back to the task's frames.
    5. The cause decides the run's fate: `_call` raises it, whatever exception the task has made of
       it. Only when the task returns a value all the same, that counts.

    All this needs the GIL. In a free-threaded Python 2 still holds, but the thread may have left
    the safe point when the exception is set.
    """

    def __init__(
        self, task: Task[..., Any], id: str | None, queue: str | None, redelivered: bool
    ) -> None:
        self.task = task
        self.id = id
        self.queue = queue
        self.redelivered = redelivered
        self.args: Any = ()
        self.kwargs: Any = {}
        self._properties: Any = None  # pamqp's Basic.Properties; None with Task.apply
        self.started = time.monotonic()
        self.deadline: float | None = None
        #: The interruption that was ordered, and time.monotonic() then: its grace begins there.
        self._cause: BaseException | None = None
        self._interrupted_at = math.inf
        self._hit = False  # the cause was raised in the task, or is set for its thread
        self._until_landed: list[Callable[[], None]] = []  # what is to be done then, once
        self._given_up = False  # by the watch, which does that once
        #: Its entry in the watch's schedule. The watch's lock guards it.
        self._place: tuple[float, int, Run] | None = None
        self._is_over = False  # its last try has ended: it must get no further entry
        #: Ends the wait in this module that the thread is in.
        self._waker: Callable[[], object] | None = None
        #: The run of a task that this one applies: an interruption of this one goes to that.
        self._inner: Run | None = None
        self._thread = threading.get_ident()
        self._gate = threading.Lock()  # see 2 above; nobody waits for it
        self._gate.acquire()

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers, as its sender and RabbitMQ have set them."""
        return _headers_of(self._properties)

    @property
    def failures(self) -> int:
        """How often the message has failed before."""
        return _failures_in(self.headers)

    @property
    def sent_at(self) -> datetime.datetime | None:
        """When the message was sent (UTC), if it says so."""
        sent_at: datetime.datetime | None = getattr(self._properties, "timestamp", None)
        return sent_at

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None without a limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise the interruption of this run, if there is one: Timeout, Discard, HeartbeatError or
        Shutdown. For code that catches exceptions broadly, or waits a lot in calls that Python
        can't interrupt."""
        cause = self._cause
        if cause is not None:
            # Only in the task's own thread: one that the task has started isn't what is cut. The
            # watch sets no exception meanwhile, since code of this module isn't a safe point.
            if threading.get_ident() == self._thread:
                self._hit = True
            raise type(cause)(*cause.args)

    # -- for the watch, or the thread that orders the interruption

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
        # The collector keeps away until it has landed. 1. The task's thread: is due to collect. 2.
        # This thread: sets the exception. 3. The task's thread: collects first, and the exception
        # would land in a finalizer, or in one of `gc.callbacks`, which print it and go on.
        is_set = False
        try:
            _no_collection.__enter__()
            self._until_landed = [_no_collection.__exit__]
            is_set = self._raise_if_safe()
        finally:
            if not is_set:
                self._on_landed()
            self._gate.release()

    def _on_landed(self) -> None:
        """Let the collector in again. By the task's thread, or when that doesn't get there; whoever
        comes first does it."""
        with contextlib.suppress(IndexError):
            self._until_landed.pop()()

    def _raise_if_safe(self) -> bool:
        """Set the exception if the thread is at a safe point. Return whether it was. With the
        gate."""
        import ctypes  # only here: it costs milliseconds to import

        # All that is needed between the second look and the exception is made before.
        thread, kind = ctypes.c_ulong(self._thread), ctypes.py_object(type(self._cause))
        set_exception = functools.partial(ctypes.pythonapi.PyThreadState_SetAsyncExc, thread, kind)
        get_frame = operator.itemgetter(self._thread)
        seen = sys._current_frames().get(self._thread)  # None: gevent runs it
        if seen is None or not _is_safe(seen):
            return False
        position = seen.f_lasti
        # 1. This thread: sees the task at a safe point. 2. The task's thread: goes on. 3. This
        # thread: would set the exception somewhere else. So it looks again, now so that no other
        # thread gets its turn between the look and the exception: CPython switches threads at the
        # end of a call of Python code and at a jump back, and there is none in the loop, which runs
        # once. A thread that has moved is looked at later. (No variable may keep the whole of
        # `_current_frames`: this thread's own frame is in it, which would be a cycle.)
        for frame in map(get_frame, iter(sys._current_frames, None)):
            is_same = frame is seen and frame.f_lasti == position
            if is_same and not (self._inner or self._hit or self._is_over):
                self._hit = True
                set_exception()
                return True
            break
        return False

    # -- in the task's thread

    def _unmask(self) -> None:
        """Allow interruptions from here on. Raises the cause if it has come already."""
        self.check()
        self._gate.release()

    def _mask(self) -> None:
        """Allow no interruption from here on. Raises one that is set and wasn't raised yet."""
        # The watch holds the gate only while it looks: this is no wait to speak of. A run that was
        # hit can't be hit again, with or without the gate.
        if not self._hit:
            self._gate.acquire()
        if self._hit:
            _raise_pending()

    def _call(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        """Call the task's function, with retries, in a context of its own. Raises what has
        interrupted the run, if the task didn't return all the same. After this no interruption can
        reach the thread."""
        outer = _set_current(self)
        self.args, self.kwargs = args, kwargs
        if outer is not None:
            # In this order: an interruption of the outer run that comes before the first line is
            # copied by the second, and one that comes after it goes to this run (`_interrupt`). A
            # task that was hit is cleaning up, and may apply tasks for that.
            outer._inner = self
            if not outer._hit:
                self._cause = outer._cause
        try:
            return contextvars.copy_context().run(self._try, args, kwargs, watch)
        except BaseException as error:
            # The outer run's interruption has been raised, in here, and comes out of here.
            if outer is not None and self._hit and self._cause is outer._cause:
                outer._hit = True
            if self._is_decided_by(error):
                raise
            cause = cast(BaseException, self._cause)
            raise type(cause)(*cause.args) from error
        finally:
            # First this: `_Watch.interrupt` makes an entry first and then looks at it.
            self._is_over = True
            if self._hit:  # and C code may have swallowed what was set
                self._on_landed()
            if watch is not None:
                watch.discard(self)
            _set_current(outer)
            if outer is not None:
                outer._inner = None

    def _is_decided_by(self, error: BaseException) -> bool:
        """Whether the exception that came out of the task counts: nothing has interrupted it, or
        this is the interruption, or Ctrl-C."""
        if not self._hit or type(error) is type(self._cause):
            return True
        return isinstance(error, KeyboardInterrupt) and _is_for_program(error)

    def _try(self, args: Any, kwargs: Any, watch: _Watch | None) -> Any:
        """Call the task's function until it returns, or no tries are left, or it has raised what is
        never tried again. Raises what the last try has raised."""
        tries = self.task.retry + 1
        original = _fresh_arguments(args, kwargs) if self.task.retry else (args, kwargs)
        while True:
            tries -= 1
            if watch is not None and self.task.max_run_time is not None:
                self.deadline = time.monotonic() + self.task.max_run_time
                watch.add(self, self.deadline)
            try:
                # Receivers of signals are called behind the gate: no interruption reaches them.
                self.task._notify(task_prerun, args, kwargs)
                self._unmask()
                try:
                    return _call_task(self.task.f, args, kwargs)
                finally:
                    self._mask()
                    if watch is not None:
                        watch.discard(self)
            except (Timeout, Reject, Discard) as error:
                self.task._notify(task_error, args, kwargs, error)
                raise
            except Exception as error:
                self.task._notify(task_error, args, kwargs, error)
                is_last = not tries or self._hit or isinstance(error, self.task.throws)
                if is_last or not self.task._fits(error):
                    raise
                what = f"{_bounded(_exception_name(error), 200)}: {_text_of(error, REPLY_TEXT)}"
                text = "Task %s [%s] raised %s; trying again (%d left)"
                _log(logging.WARNING, text, self.task.name, self.id, what, tries)
            finally:
                self.task._notify(task_postrun, args, kwargs)
            args, kwargs = _fresh_arguments(*original)


def current_task() -> Run | None:
    """The `Run` of the task that this thread is running; None outside of a task."""
    return _runs.get(threading.get_ident())


def _shorten_switches() -> float:
    """Return the interpreter's switch interval in seconds, as it was."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, _SHORT_SWITCH))
    return usual


def _restore_switches(usual: float) -> None:
    """Set the interpreter's switch interval, in seconds, to what it was."""
    if sys.getswitchinterval() <= _SHORT_SWITCH:  # else somebody has set it meanwhile
        sys.setswitchinterval(usual)


#: Makes threads take turns more often while the watch hunts one. A thread is seen where it lets
#: others run. One that writes to a file or a log every few milliseconds always does that there, so
#: it would never be seen at a safe point. With short turns it is stopped anywhere.
_short_switches = _Setting(_shorten_switches, _restore_switches)


class _Watch:
    """Interrupts runs that exceed their time limit, and runs that other threads want interrupted.
    Gives up those that don't end although they were interrupted. It has a thread of its own, which
    survives any exception.

    grace: seconds from an interruption to giving up. give_up: called with the run, in the watch's
    thread; what it raises makes the watch call it again later.
    """

    def __init__(self, grace: float, give_up: Callable[[Run], object]) -> None:
        self._grace = grace
        self._give_up = give_up
        #: Guards what follows and `Run._place`. Notified when the thread is to wake sooner than it
        #: meant to, and at the end. Nothing is waited for while it is held.
        self._changed = threading.Condition()
        #: Sorted: time.monotonic() of the next look, a number that tells equal times apart, and the
        #: run. A run has an entry from the beginning of a limited try, or from its interruption,
        #: until its end, or until it was hit and given up: nothing is left to do then.
        self._schedule: list[tuple[float, int, Run]] = []
        self._serial = itertools.count()
        self._wakes_at = -math.inf  # time.monotonic() until which the thread waits
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
        # The first look is now, the next ones are the watch's: it mends what this fails with.
        with contextlib.suppress(Exception):
            run._interrupt()
        # 1. This thread: finds no cause. 2. The run's thread: notes that the run is over, and finds
        # no entry. 3. This thread: makes an entry, which nobody would take out. So it looks here.
        if run._is_over:
            self.discard(run)

    def discard(self, run: Run) -> None:
        """Take out the run's entry. The thread isn't notified: it wakes for it once more in vain,
        which costs less."""
        if run._place is not None:
            with self._changed:
                self._take_out(run)
                run._place = None

    def close(self) -> None:
        """End the thread. Waits for that for CLOSE_TIMEOUT seconds at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT)

    def _put(self, run: Run, due: float) -> None:
        """Have the run looked at, at that time.monotonic() and no other. With the lock."""
        self._take_out(run)
        # Its place is never None in between. 1. This thread: moves it. 2. The run's thread, at its
        # end: finds no place in `discard`, and goes. 3. This thread: leaves an entry for ever.
        run._place = due, next(self._serial), run
        bisect.insort(self._schedule, run._place)
        if due < self._wakes_at:
            self._changed.notify()

    def _take_out(self, run: Run) -> None:
        """Remove the run's entry, if it has one. With the lock."""
        if run._place is not None:
            del self._schedule[bisect.bisect_left(self._schedule, run._place)]

    # -- its thread

    def _loop(self) -> None:
        # A tracer (threading.settrace, coverage) is Python code, which lets other threads run
        # between the second look and the exception (`Run._raise_if_safe`).
        sys.settrace(None)
        sys.setprofile(None)
        while not self._closed:
            try:
                run = self._next_due()
                if run is not None:
                    self._interrupt_or_give_up(run)
                del run  # while this thread waits, it keeps no run and nothing that leads to one
            except BaseException as error:  # the run's next look is scheduled already
                with contextlib.suppress(BaseException):
                    text = "Can't interrupt a task, or give it up; trying again"
                    _log_aside(logging.ERROR, text, error=error)

    def _next_due(self) -> Run | None:
        """Wait until a run is due, and return it, or None to be called again. Its next look is
        scheduled first: it takes place even if this one fails."""
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
                del run  # as in `_loop`
                # Short switches cost all threads of the process. So this one sleeps until a
                # millisecond before the look, and waits with short switches only for the rest: then
                # the task's thread is to be stopped.
                self._wakes_at = due - _LOOK_AGAIN if is_hunted and not is_near else due
                with _short_switches if is_hunted and is_near else contextlib.nullcontext():
                    self._changed.wait(_left(self._wakes_at))
                self._wakes_at = -math.inf  # awake: it needn't be woken
            return None

    def _next_look(self, run: Run, now: float) -> float:
        """Return the time.monotonic() of the next look at an interrupted run: soon, until it is
        hit; and when its grace is over."""
        since = now - run._interrupted_at
        pauses = [math.inf]
        if not run._hit:
            # The longer it takes, the rarer are the looks: many stuck tasks cost little.
            pauses.append(max(_LOOK_AGAIN, since / 1000))
        if not run._given_up:
            left = self._grace - since
            pauses.append(left if left > 0 else max(_GIVE_UP_AGAIN, -left))
        return now + min(pauses)

    def _interrupt_or_give_up(self, run: Run) -> None:
        """Interrupt a run that is due, and give it up when its grace is over."""
        run._interrupt()
        if not run._given_up and time.monotonic() >= run._interrupted_at + self._grace:
            run._on_landed()  # its thread is in C code, for long
            self._give_up(run)
            run._given_up = True
        if run._hit and run._given_up:
            self.discard(run)


def _warn_of_stuck(run: Run) -> None:
    """Log that a task goes on beyond its limit: what giving up is for `Task.apply`."""
    text = (
        "Task %s goes on although it was interrupted (%s): it can't be cut where it is, and here it"
        " can't be given up as in a worker. Timeout is raised when it can be. It is at\n%s"
    )
    stack = _format_stack(run._thread)
    _log_aside(logging.WARNING, text, run.task.name, run._cause, stack)


def _left(deadline: float) -> float:
    """Return the seconds until a time.monotonic(), as waits take them: neither below 0 nor so many
    that the system can't count them."""
    return min(max(0.0, deadline - time.monotonic()), 1e6)


def _interruptible(wait: Callable[[], T], wake: Callable[[], object]) -> T | None:
    """Wait, in code of this module, which isn't a safe point: a task that is interrupted must leave
    it by itself. Return what `wait` returns, or raise the interruption of the task in this thread.

    wake: makes `wait` return. It is called when the task is interrupted, perhaps several times.
    """
    run = current_task()
    # A task that was interrupted already may send and wait while it cleans up.
    if run is None or run._hit or run._is_over:
        return wait()
    result = None
    # First the waker, then the look: whoever interrupts notes the cause first and then wakes. (A
    # waker from before is that of a wait in which a signal handler of the program waits.)
    outer, run._waker = run._waker, wake
    try:
        if run._cause is None:
            result = wait()
    finally:
        run._waker = outer
    run.check()
    return result


# --- AMQP: the frames that every message takes ---------------------------------------------------

# pamqp decodes and encodes all other frames. Its code takes any frame there is; for those that each
# message and each call needs, it costs several times as much: no-op tasks would run at two thirds
# of the rate.
_FRAME_HEADER = struct.Struct(">BHI")  # type, channel, size
_CONTENT_HEADER = struct.Struct(">HHQ")  # class, weight, size of the body
_ACK_FRAME = struct.Struct(">BHIIQBB")
_PUBLISH_START = struct.pack(">IHB", commands.Basic.Publish.index, 0, 0)  # ticket, exchange
_ACK_START = struct.pack(">I", commands.Basic.Ack.index)
_CANCEL_START = struct.pack(">I", commands.Basic.Cancel.index)
_REPLY_TO = b"amq.rabbitmq.reply-to"
_CONSUME_START = struct.pack(">IHB", commands.Basic.Consume.index, 0, len(_REPLY_TO)) + _REPLY_TO
_DELIVER_START = struct.pack(">I", commands.Basic.Deliver.index)
# Of the flags that say which properties a message has: it has headers; a second word follows.
_HEADERS, _MORE_FLAGS = 0x2000, 0x0001


def _marshal(channel: int, *frames: Any) -> bytes:
    """Return pamqp's frames as bytes, for a channel by its number."""
    return b"".join([amqp_frame.marshal(frame, channel) for frame in frames])


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame. kind: 1, a method; 2, a message's header; 3, a part of its body."""
    return _FRAME_HEADER.pack(kind, channel, len(payload)) + payload + b"\xce"


def _ack_frame(channel: int, tag: int) -> bytes:
    """Return Basic.Ack of one delivery."""
    return _ACK_FRAME.pack(1, channel, 13, commands.Basic.Ack.index, tag, 0, 0xCE)


def _content_frames(
    channel: int, queue: str, mandatory: bool, properties: bytes, body: bytes, frame_max: int
) -> bytes:
    """Return what publishes a message through the default exchange, in frames of at most
    `frame_max` bytes."""
    publish = b"%b%b%c" % (_PUBLISH_START, _short_string(queue), mandatory)
    header = _CONTENT_HEADER.pack(60, 0, len(body)) + properties
    frames = [_frame(1, channel, publish), _frame(2, channel, header)]
    step = frame_max - 8  # without a frame's header and its end
    for start in range(0, len(body), step):
        frames.append(_frame(3, channel, body[start : start + step]))
    return b"".join(frames)


def _renew_frames(channel: int, number: int) -> bytes:
    """Return Basic.Cancel of the consumer before, and Basic.Consume of replies by the next; neither
    is answered."""
    old, new = b"%d" % (number - 1), b"%d" % number
    cancel = b"%b%c%b\x01" % (_CANCEL_START, len(old), old)
    # no_ack, nowait; no arguments
    consume = b"%b%c%b\x0a%b" % (_CONSUME_START, len(new), new, bytes(4))
    return _frame(1, channel, cancel) + _frame(1, channel, consume)


# Bounded: other producers decide which properties there are.
@functools.lru_cache(1000)
def _layout(flags: int) -> list[tuple[str, int]] | None:
    """Return the properties that these flags announce, with their sizes in bytes (0: a short
    string). None if this isn't enough to read them: that is pamqp's then."""
    if flags & (_HEADERS | _MORE_FLAGS):
        return None
    sizes = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
    known = commands.Basic.Properties.flags.items()
    return [(name, sizes.get(name, 0)) for name, flag in known if flags & flag]


def _short_string(value: str) -> bytes:
    """Return a short string of AMQP. Raises ValueError for one of more than 255 bytes."""
    data = value.encode()
    return _octet(len(data)) + data


def _octet(value: int) -> bytes:
    """Return one byte. Raises ValueError for a number that it can't hold."""
    return bytes((value,))


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "headers": encode.field_table,
    "timestamp": lambda t: t.to_bytes(8, "big") if isinstance(t, int) else encode.timestamp(t),
    "delivery_mode": _octet, "priority": _octet,
}  # fmt: skip


@functools.lru_cache(1000)
def _order_of(given: tuple[str, ...]) -> tuple[bytes, list[tuple[str, Callable[[Any], bytes]]]]:
    """Return the flags that announce these properties, and how to encode each, in their order."""
    known = [
        (name, flag) for name, flag in commands.Basic.Properties.flags.items() if name in given
    ]
    encoders = [(name, _ENCODERS.get(name, _short_string)) for name, _ in known]
    return sum(flag for _, flag in known).to_bytes(2, "big"), encoders


def _encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Return properties as a content header has them. Raises ValueError, and whatever pamqp raises,
    for a value that can't be encoded."""
    given = tuple([name for name, value in properties.items() if value not in (None, "")])
    flags, encoders = _order_of(given)
    return flags + b"".join([encode_one(properties[name]) for name, encode_one in encoders])


def _decode_properties(payload: bytes) -> Any:
    """Return the properties in a content header: pamqp's Basic.Properties. Raises any Exception if
    they can't be decoded."""
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
    """Basic.Deliver, without the names of exchange and routing key: they may be undecodable."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    name: str = "Basic.Deliver"


def _decode_method(payload: bytes) -> Any:
    """Return pamqp's frame, or a `_Deliver`. Raises OSError if it can't be decoded."""
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


class _Declare(commands.Queue.Declare):
    """pamqp's, without its check of the name: RabbitMQ takes any name that has 1 to 255 bytes."""

    def validate(self) -> None:
        """Accept the frame as it is."""


class _Consume(commands.Basic.Consume):
    """As `_Declare`."""

    def validate(self) -> None:
        """Accept the frame as it is."""


# --- AMQP: waiting -------------------------------------------------------------------------------


class _Event:
    """A `threading.Event` for one thread that waits. Unlike that one it may be set in a signal
    handler, even while the same thread sets it, and it is cheaper."""

    def __init__(self) -> None:
        self._is_set = False
        self._until_set = threading.Lock()  # taken until it is set: the thread waits for this lock
        self._until_set.acquire()

    def set(self) -> None:
        """Set it, from any thread. May be called again."""
        # In this order: a thread that has found the flag not set waits for the lock.
        self._is_set = True
        try:
            self._until_set.release()
        except RuntimeError:  # it is set already
            pass

    def clear(self) -> None:
        """Clear it. For the thread that waits, before it looks at what there is to do."""
        # 1. This thread: clears the flag. 2. Another: sets it, and releases the lock. 3. This
        # thread: takes the lock. The flag is set all the same, and `wait` looks at that first.
        self._is_set = False
        self._until_set.acquire(blocking=False)

    def wait(self, until: float) -> None:
        """Wait until it is set, or until a time.monotonic(). May also return for no reason: look
        for yourself."""
        if not self._is_set and self._until_set.acquire(timeout=_left(until)):
            self.set()  # another may set it right now, so the lock may be free already


def _wait(event: _Event, until: float) -> None:
    """Wait for an event, until a time.monotonic() at the latest. An interruption of the task in
    this thread ends the wait, and is raised."""
    _interruptible(lambda: event.wait(until), event.set)


class _Changes:
    """A condition without a lock: threads wait until something that others change is as they want.

    A thread that waits registers first and looks then; one that changes something changes it first
    and notifies then. In whatever order these four steps come, the look sees the change or the
    notification wakes the thread. Nobody waits for a lock that another thread holds, and a signal
    handler may do either.
    """

    def __init__(self) -> None:
        self._waiting: set[_Event] = set()

    def __bool__(self) -> bool:
        """Return whether a thread waits."""
        return bool(self._waiting)

    def subscribe(self, event: _Event) -> None:
        """Have an event set at each change."""
        self._waiting.add(event)

    def unsubscribe(self, event: _Event) -> None:
        """Have it set no longer."""
        self._waiting.discard(event)

    def notify(self) -> None:
        """Have all who wait look again."""
        # A copy, which is made without letting other threads run: they may register meanwhile.
        for event in tuple(self._waiting):
            event.set()

    def wait_for(self, look: Callable[[], T], until: float, event: _Event | None = None) -> T:
        """Return what `look` returns, as soon as that is true; at `until` (time.monotonic()), what
        it returns then. An interruption of the task in this thread is raised.

        event: one that others also set when only this thread is to look.
        """
        found = look()
        if found:
            return found
        event = event or _Event()
        try:
            self._waiting.add(event)
            while not (found := look()) and time.monotonic() < until:
                _wait(event, until)
                event.clear()
            return found
        finally:
            self._waiting.discard(event)


class _Wakeup:
    """Wakes the thread, its owner, that waits for this and for a socket at once. It may be set in
    any thread and in a signal handler.

    1. Thread A: `set` notes that it is set. 2. The owner: `clear` finds no byte, and leaves it set.
    3. Thread A: writes its byte. 4. The owner: wakes once more, in vain, and clears it.
    So no byte is left behind when it isn't set. Nor is a `set` missed that writes no byte because
    another has just done that: the owner looks at what there is to do after `clear`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False

    def set(self) -> None:
        """Wake the owner. Does nothing if it has ended."""
        if not self._is_set:
            self._is_set = True
            with contextlib.suppress(OSError):
                self._writer.send(b"!")

    def clear(self) -> None:
        """Clear it. For the owner, before it looks at what there is to do."""
        with contextlib.suppress(OSError):
            self._reader.recv(4096)
            self._is_set = False

    def fileno(self) -> int:
        """Return what a selector waits for."""
        return self._reader.fileno()

    def close(self) -> None:
        """Release both descriptors."""
        self._reader.close()
        self._writer.close()


#: The idents of threads that read a connection. What needs an answer is refused in them: they would
#: wait for what only they can read.
_readers: set[int] = set()


def _is_reader() -> bool:
    """Whether this thread reads a connection."""
    return threading.get_ident() in _readers


# amqpstorm logs in the thread that reads. Where that is ours, a handler must not block it; what is
# worth it we log ourselves (`_Connection._on_frame`).
logging.getLogger("amqpstorm.channel0").addFilter(lambda record: not _is_reader())


# --- AMQP: connections ---------------------------------------------------------------------------

# amqpstorm does handshake, credentials, TLS, blocked and close. These are all of its private names
# that are used here. A test looks that these are all, each has a test of what it is for, and
# pyproject.toml pins the versions.
#   IO._create_socket                       makes a socket, with TLS as RABBIT_SSL_OPTIONS says
#   Connection._channel0                    replaced, so that a user's name is used beside EXTERNAL
#   Connection._exceptions                  kept, so that `app.connection()` can say why it failed
#   Connection._wait_for_connection_state   bounded by RABBIT_CONNECT_TIMEOUT
#   Message._body                           the bytes of a failed message, which may be no text


class _Channel0(Channel0):
    """amqpstorm's, which prefers EXTERNAL when a broker offers that beside PLAIN.

    EXTERNAL means that the broker knows a client by its certificate. That is impossible without
    one, and a client that has both a certificate and a user of its own means the user.
    """

    def __init__(self, connection: Any, client_properties: dict[str, Any]) -> None:
        super().__init__(connection, client_properties)
        self._options = connection.parameters

    def on_frame(self, frame_in: Any) -> None:
        """Take a frame: EXTERNAL isn't among the mechanisms on offer if we don't mean that."""
        if frame_in.name == "Connection.Start" and self._means_user():
            # Where nothing else is offered it is tried all the same: the broker knows best.
            frame_in.mechanisms = frame_in.mechanisms.replace("EXTERNAL", "").strip() or "EXTERNAL"
        super().on_frame(frame_in)

    def _means_user(self) -> bool:
        """Whether the broker is to know us by RABBIT_USER."""
        options = self._options
        has_certificate = {"certfile", "context"} & {
            k for k, v in options["ssl_options"].items() if v
        }
        return not has_certificate or options["username"] != "guest"


class _PlainConnection(Connection):
    """amqpstorm's, for the user (`Kuyruk.connection`). Opening it takes no longer than
    RABBIT_CONNECT_TIMEOUT, and fails with the reason."""

    def __init__(self, host: str, port: int, options: dict[str, Any]) -> None:
        super().__init__(host, port=port, lazy=True, **options)
        self._channel0 = _Channel0(self, self.parameters["client_properties"])
        try:
            self.open()
        except BaseException:
            self.set_state(self.CLOSED)  # else `close` would wait for an answer
            self.close()
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        # `open` replaces the list that the reader thread writes to; then nobody would look at its
        # errors.
        if name == "_exceptions" and hasattr(self, name):
            self._exceptions[:] = value
        else:
            super().__setattr__(name, value)

    def _wait_for_connection_state(
        self, state: int = Connection.OPEN, rpc_timeout: float = 30
    ) -> None:
        super()._wait_for_connection_state(state, cast(Any, self.parameters["timeout"]))


_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _as_lost(error: BaseException) -> AMQPError:
    """Return why a connection is lost, for one that has ended with this error."""
    return error if isinstance(error, AMQPError) else AMQPConnectionError(str(error) or repr(error))


def _again(error: AMQPError) -> AMQPError:
    """Return a copy, to be raised: each raise adds frames to an exception's traceback, and what is
    kept must not keep those."""
    return type(error)(str(error), reply_code=error.error_code)


class _Interrupted(AMQPConnectionError):
    """A connection is given up because of this process, not of the broker: the next attempt to
    connect needs no pause."""


class _Connection(Stateful):
    """A connection to RabbitMQ: a socket, one lock, and one thread that reads.

    Any thread appends frames, and then writes what the socket takes, together with what others have
    appended meanwhile. The thread that writes has the lock; nobody waits for it, except the reader
    with TLS: OpenSSL can't read beside a write. The reader writes what the socket didn't take.

    The reader opens the connection and calls `step` again and again. It alone reads: it hands each
    frame to its channel, answers heartbeats, and notices when the broker is silent or takes no
    data. Nothing that it calls may wait for an answer.

    The connection is lost from the instant in which `lost` says why. A thread that waits for
    something registers in its channel's `waiting`, appends, and then looks at `lost`; `give_up`
    sets `lost`, and then notifies all that are registered. An exception in the locked part gives
    the connection up, since nobody knows then how much of a frame was written.

    How it ends: `give_up`, by any thread, says that it is lost, and wakes the reader, whose `step`
    raises that. `close`, by the reader, takes leave of the broker first. `hang_up` closes the
    socket, and `forget` counts the messages that are lost with it.
    """

    def __init__(self, host: str, port: int, config: Config) -> None:
        super().__init__()
        self.address = f"{host}:{port}"
        # A lazy connection isn't opened: it is made for its parameters, which amqpstorm checks.
        self.parameters = Connection(
            host, port=port, lazy=True, **config._connection_options()
        ).parameters
        self._channel0 = _Channel0(cast(Any, self), self.parameters["client_properties"])
        #: Why it can't be used any more.
        self.lost: AMQPError | None = None
        #: Notified when a channel gets free, and when less is on its way that nobody waits for.
        self.changes = _Changes()
        self.channels: dict[int, _Channel] = {}
        self._ids = itertools.count(1)
        self._free_ids: collections.deque[int] = collections.deque()
        #: What is to be written: frames, with the channel that they are for (None: the connection
        #: itself); and messages, which are numbered and encoded when their turn comes. Any thread
        #: may append.
        self._frames: collections.deque[tuple[_Channel | None, bytes]] = collections.deque()
        self.outbox: collections.deque[_Outgoing] = collections.deque()
        #: Held by the thread that takes from these and writes, which must not block meanwhile. It
        #: is an RLock, though never taken twice, because that knows whose it is: `_write` can
        #: release it without knowing whether a signal handler's exception came before or after it
        #: was acquired.
        self._lock = threading.RLock()
        self._rest = memoryview(b"")  # taken from these, and not taken by the socket yet
        self._is_full = False  # the socket took less than it was given, when it was written to last
        self._awake = True  # the reader isn't in `select`: it writes what there is before it is
        self._buffer = b""  # the beginning of a frame that isn't read whole
        # The reader sets these events right before it sleeps. The threads that wait for them need
        # the GIL: woken sooner, they would only wait for it.
        self._notices: list[_Event] = []
        self._heartbeat = config.RABBIT_HEARTBEAT or math.inf  # seconds
        self._timeout = config.RABBIT_PUBLISH_TIMEOUT  # seconds
        # Seconds between two looks whether the broker lives: few enough for each of these times.
        self._tick = min(
            TICK, self._timeout / 16, self._heartbeat / 4, config.RABBIT_IDLE_DURATION / 2
        )
        self.used_at = time.monotonic()  #: When something was sent on it last.
        #: time.monotonic() when a queue was seen.
        self.queues: dict[str, float] = {}
        #: What became of messages that nobody waits for: by queue and reason, how many are lost.
        self.failures: collections.Counter[tuple[str, str]] = collections.Counter()
        #: The channel that all publish on, which the reader replaces when it is lost; and channels
        #: for calls that no call uses.
        self.confirms: _ConfirmChannel | None = None
        self.replies: collections.deque[_ReplyChannel] = collections.deque()
        #: Channels that nobody is to use any more, for the reader to close.
        self.retired: collections.deque[_Channel] = collections.deque()
        # These are time.monotonic(): when to look next whether the broker lives; when the reader
        # was awake, data was read, and a write was tried; when a full socket took some data, or got
        # full; since when the broker has owed an answer (inf: it owes none).
        self._check_at = self.stepped_at = self.read_at = self.wrote_at = self.moved_at = (
            time.monotonic()
        )
        self._owes_since = math.inf
        self._has_pinged = False  # since data was read last
        self._wakeup = _Wakeup()
        self._selector = selectors.DefaultSelector()  # select() fails for descriptors from 1024 on
        self._socket: socket.socket | None = None
        self._is_tls = bool(self.parameters["ssl"])
        _connections.add(self)

    @classmethod
    def open_first(cls, config: Config) -> _Connection:
        """Open a connection to the first address that answers. Raise AMQPConnectionError with all
        reasons."""
        return _first_that_answers(config, lambda host, port: cls(host, port, config)._open())

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes no messages for the moment: memory or disk alarm."""
        return self._channel0.is_blocked

    @property
    def frame_max(self) -> int:
        """The most bytes that a frame may have, as agreed with the broker."""
        return self._channel0.max_frame_size

    # -- for any thread

    def post(self, channel: _Channel | None, data: bytes) -> None:
        """Have frames written, by this thread if it can. None: see `enqueue`."""
        self.enqueue(channel, data)
        self.flush()

    def flush(self) -> None:
        """Write what is appended, unless another thread does, or the socket is full."""
        # 1. The reader: has just written all that it saw. 2. This thread: appends, and sees that
        # the reader is awake. 3. The reader: notes that it isn't, and looks once more (`step`).
        if not (self._awake or self._rest):
            self._write()

    def enqueue(self, channel: _Channel | None, data: bytes) -> None:
        """Have frames written together with what follows. channel: the one that they are for; they
        aren't written if that is lost by then. None: they are in any case."""
        self._frames.append((channel, data))

    def post_soon(self, channel: _Channel, data: bytes) -> None:
        """Have frames written by the reader. That is cheaper where nobody waits for an answer: it
        writes what several threads have appended at once."""
        self.enqueue(channel, data)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have the reader write what is appended."""
        if not self._awake:
            self._wakeup.set()

    def write_frame(self, channel_id: int, frame: Any) -> None:
        """Have a frame written: what amqpstorm's Channel0 calls."""
        self.post(None, _marshal(channel_id, frame))

    def give_up(self, error: AMQPError) -> None:
        """Note that it is lost, and notify all who wait on it. The reader then ends it."""
        if self.lost is None:
            self.lost = _again(error)  # without a traceback, whose frames would lead back to here
        for channel in tuple(self.channels.values()):
            channel.waiting.notify()
        self.changes.notify()
        self._wakeup.set()

    def add(self, channel: _Channel) -> int:
        """Return a number for a new channel. Raise _ChannelsExhausted if the broker allows no
        more."""
        try:
            number = self._free_ids.popleft()
        except IndexError:
            number = next(self._ids)
            if number > self._channel0.max_allowed_channels:
                limit = self._channel0.max_allowed_channels
                raise _ChannelsExhausted(
                    f"all {limit} channels of its connection are in use"
                ) from None
        self.channels[number] = channel
        return number

    def get_confirms(self) -> _ConfirmChannel | None:
        """Return the channel that all publish on. None while that is lost, and no other is free.
        Raise AMQPError if the connection is lost."""
        self._raise_if_lost()
        channel = self.confirms
        return channel if channel is not None and channel.lost is None else None

    def get_replies(self) -> _ReplyChannel | None:
        """Return a channel for a call, which is to give it back. None if none is free. Raise
        AMQPError if the connection is lost."""
        self._raise_if_lost()
        while self.replies:
            with contextlib.suppress(IndexError):  # another thread has taken it
                channel = self.replies.pop()
                if channel.lost is None:
                    return channel
        return _new_channel(self, _ReplyChannel)

    def _raise_if_lost(self) -> None:
        """Raise AMQPError if the connection is lost."""
        if self.lost is not None:
            raise _again(self.lost)

    # -- writing

    def _has_output(self) -> bool:
        """Whether something can be written. (A broker with an alarm takes no messages.)"""
        return bool(self._rest or self._frames or (self.outbox and not self.is_blocked))

    def _write(self) -> None:
        """Write until nothing is left, or the socket is full, or another thread does it.

        1. This thread: takes all there is. 2. Another: appends, and can't have the lock. 3. This
        thread: releases the lock, and then looks again. So nothing is left behind.
        """
        while self._has_output() and self.lost is None:
            try:
                if not self._lock.acquire(blocking=False):
                    return
                if not self._write_locked():
                    return
            except OSError as error:
                self.give_up(AMQPConnectionError(str(error)))
            except BaseException as error:
                self.give_up(_Interrupted(f"a thread was interrupted by {error!r} while it wrote"))
                raise
            finally:
                # Nothing may be called before the release: a signal handler that raises in there
                # would leave the lock taken for ever.
                try:
                    self._lock.release()
                except RuntimeError:  # it is another thread's
                    pass

    def _write_locked(self) -> bool:
        """Return whether all is written; if not, the reader goes on when the socket takes more."""
        while data := self._rest or self._take():
            try:
                sent = cast(socket.socket, self._socket).send(data)
            except _WOULD_BLOCK:
                sent = 0
            self._rest = memoryview(data)[sent:]
            self.wrote_at = time.monotonic()
            # For the stall that `_check_broker` looks for: the time counts from when the socket got
            # full, or from when it took something last.
            if self._rest or self._is_full:
                if sent or not self._is_full:
                    self.moved_at = self.wrote_at
                self._is_full = bool(self._rest)
            if self._rest:
                # The reader has to wait for the socket to take more, and sleeps without that.
                if not self._awake:
                    self._wakeup.set()
                return False
        return True

    def _take(self) -> bytes:
        """Return what is to be written next; empty: nothing. With the lock: so the messages are
        written in the order of their numbers, as the broker counts them.

        Frames come before messages: those that open a channel, before what is published on it.
        """
        chunks, size = [], 0
        while size < JOINED_WRITES:
            try:
                if self._frames:
                    channel, data = self._frames.popleft()
                    if channel is not None and channel.lost is not None:
                        continue  # its number may be another's by now
                elif self.outbox and not self.is_blocked:
                    outgoing = self.outbox.popleft()
                    if outgoing.channel.lost is not None:
                        if outgoing.fate == LEFT:
                            why = str(outgoing.channel.lost)
                            self.failures[outgoing.message.queue, why] += 1
                        continue
                    data = outgoing.channel.encode(outgoing)
                else:
                    break
            except IndexError:  # its sender has withdrawn the only message meanwhile
                continue
            chunks.append(data)
            size += len(data)
        return b"".join(chunks)

    # -- the reader

    def _open(self) -> _Connection:
        """Connect and shake hands. In the thread that is to be its reader, or in one that hands it
        over to that. Returns itself. Raises AMQPError, OSError and ValueError."""
        try:
            self._socket = self._connect()
            self._selector.register(self._socket, selectors.EVENT_READ)
            self._selector.register(self._wakeup, selectors.EVENT_READ)
            self.set_state(self.OPENING)
            self._frames.append((None, amqp_header.ProtocolHeader().marshal()))
            deadline = time.monotonic() + self.parameters["timeout"]
            while not self.is_open:
                if time.monotonic() >= deadline:
                    raise AMQPConnectionError(
                        f"no answer within {self.parameters['timeout']:g} seconds"
                    )
                self.step(deadline)
            return self
        except BaseException:
            self.hang_up()
            raise

    def _connect(self) -> socket.socket:
        """Return a socket to the first of the host's addresses that can be connected to. Raises
        AMQPConnectionError with each one's reason.

        amqpstorm's own way leaves sockets open that have failed, and names the last reason only.
        """
        host, port, reasons = self.parameters["hostname"], self.parameters["port"], []
        # Of bytes: a string makes Python import a codec, and in a child that is forked meanwhile
        # that import never ends.
        name = host.encode("ascii" if host.isascii() else "idna")
        for family, _, _, _, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM):
            sock = IO(self.parameters)._create_socket(family)
            try:
                sock.connect(address)
                self._set_options(sock)
                return sock
            except OSError as error:
                sock.close()
                reasons.append(error.strerror or str(error))
        raise AMQPConnectionError("; ".join(dict.fromkeys(reasons)))

    def _set_options(self, sock: socket.socket) -> None:
        """Set the options of a connected socket, as far as this system has them."""
        stall = min(math.ceil(self._timeout * 1000), 0x7FFFFFFF)
        for level, name, value in [
            # A small frame isn't delayed until the one before has been acknowledged.
            (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
            # Without heartbeats, too, a peer that has vanished is noticed: after two minutes.
            (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
            (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
            (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
            (socket.IPPROTO_TCP, "TCP_KEEPCNT", 6),
            (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", stall),
            # A message that the system has taken can't be withdrawn when its time is up: so the
            # system takes little more than it can send.
            (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", 2 * JOINED_WRITES),
        ]:
            if hasattr(socket, name):
                sock.setsockopt(level, getattr(socket, name), value)
        sock.setblocking(False)

    def step(self, until: float) -> None:
        """Wait for the socket, or to be woken, or until a time.monotonic(), and do once what there
        is to do. Raise AMQPError if the connection is lost."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._is_full else 0)
        sock = cast(socket.socket, self._socket)
        if self._selector.get_key(sock).events != events:
            self._selector.modify(sock, events)
        ready = self._selector.select(_left(min(until, self._check_at)))
        self._awake = True
        try:
            for key, event in ready:
                if key.fileobj is not sock:
                    self._wakeup.clear()
                elif event & selectors.EVENT_READ:
                    self._read(self._receive(sock))
            self._write()
            self._maintain()
        except AMQPError:
            raise
        except OSError as error:
            raise AMQPConnectionError(str(error)) from error
        finally:
            self._notify()
        self._raise_if_lost()
        # In this order: see `flush`.
        self._awake = False
        if self._has_output() and not self._rest:
            self._write()

    def notify(self, event: _Event) -> None:
        """Set an event at the end of this step."""
        self._notices.append(event)

    def _notify(self) -> None:
        """Set the events that have come together in this step."""
        notices, self._notices = self._notices, []
        for event in notices:
            event.set()

    def _receive(self, sock: socket.socket) -> bytes:
        """Return what has arrived, perhaps nothing. Raises OSError at the end of the stream."""
        try:
            with self._lock if self._is_tls else contextlib.nullcontext():
                data = sock.recv(0x20000)
        except _WOULD_BLOCK:
            return b""
        if not data:
            raise OSError("closed by the broker")
        return data

    def _read(self, data: bytes) -> None:
        """Hand each whole frame to its channel, and keep the rest."""
        self.read_at, self._has_pinged = time.monotonic(), False
        data, offset = self._buffer + data, 0
        while len(data) - offset > _FRAME_HEADER.size:
            kind, channel, size = _FRAME_HEADER.unpack_from(data, offset)
            if kind not in (1, 2, 3, 8) or size > self.frame_max:
                raise OSError(f"it doesn't speak AMQP 0-9-1: {data[offset : offset + 20]!r}")
            start = offset + _FRAME_HEADER.size
            end = start + size + 1
            if end > len(data):
                break
            self._on_frame(kind, channel, data[start : end - 1])
            offset = end
        self._buffer = data[offset:]

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        """Hand a frame to its channel. Frames of channels that are closed here are dropped, and so
        are heartbeats (kind 8): that they were read is all that counts."""
        channel = self.channels.get(number)
        if channel is not None and kind == 3:
            channel.on_body(payload)
        elif channel is not None and kind == 2:
            channel.on_header(payload)
        elif channel is not None and kind == 1:
            channel.on_frame(_decode_method(payload))
        elif number == 0 and kind == 1:
            was_blocked = self.is_blocked
            self._channel0.on_frame(_decode_method(payload))
            if self.is_blocked is not was_blocked:
                what = (
                    "takes no messages (memory or disk alarm)"
                    if self.is_blocked
                    else "takes messages again"
                )
                _log_aside(logging.WARNING, "RabbitMQ at %s %s", self.address, what)
            if self.exceptions or self.is_closed:
                raise self.exceptions[0] if self.exceptions else OSError("closed by the broker")

    def remove(self, channel: _Channel) -> None:
        """Forget a channel that is closed; its number is free."""
        if self.channels.pop(channel.id, None) is channel:
            self._free_ids.append(channel.id)

    def _maintain(self) -> None:
        """Do what is due at the end of a step: check the broker, log lost messages, replace the
        channel for publishing, close retired channels."""
        self.stepped_at = time.monotonic()
        if self.stepped_at >= self._check_at:
            self._check_broker(self.stepped_at)
        if self.failures:
            self._log_failures()
        confirms = self.confirms
        if confirms is not None and (confirms.lost or confirms.has_refused):
            self.confirms = _new_channel(self, _ConfirmChannel) or confirms
            if confirms is not self.confirms:
                confirms.retire()
        for _ in range(len(self.retired)):
            channel = self.retired.popleft()
            # The broker's answers for messages in flight, and those in the outbox, would be lost.
            if channel.waits or any(o.channel is channel for o in tuple(self.outbox)):
                self.retired.append(channel)
            else:
                channel.close()
        if self.changes:
            self.changes.notify()

    def _check_broker(self, now: float) -> None:
        """Send a heartbeat if one is due. Raise OSError if the broker has given no sign of life for
        two heartbeats, or has taken no data for the publish timeout. Ask one that owes an answer
        for a sign of life, after a quarter of that; the keeper looks at `is_silent`."""
        self._check_at = now + self._tick
        # Any data is a heartbeat. One goes out before half of the time has passed without.
        if now - self.wrote_at >= self._heartbeat / 2 - self._tick:
            self._channel0.send_heartbeat()
        silence, beats = now - self.read_at, 2 * self._heartbeat
        if silence > beats:
            raise OSError(
                f"no heartbeat or data received for {silence:.1f} seconds (RABBIT_HEARTBEAT)"
            )
        if self._is_full and now - self.moved_at > self._timeout:
            raise OSError(f"the broker has taken no data for {self._timeout:g} seconds")
        # Other threads add channels meanwhile, and stop waiting: so there is one look, at a copy.
        owed = next((c for c in tuple(self.channels.values()) if c.waits), None)
        if self.is_blocked or owed is None:
            self._owes_since = math.inf
        elif self._owes_since == math.inf:
            self._owes_since = now
        elif self.silence() > self._timeout / 4 and not self._has_pinged:
            self._has_pinged = True
            owed.ping()

    def silence(self) -> float:
        """Return for how many seconds the broker has owed an answer and given no sign of life: it
        has sent nothing, and (on a slow way) taken nothing either. Below 0: it owes none."""
        return self.stepped_at - max(self.read_at, self.moved_at, self._owes_since)

    @property
    def is_silent(self) -> bool:
        """Whether that has lasted for half of the publish timeout. Another connection is tried
        then, so that half of the time is left for sending again."""
        return self.silence() > self._timeout / 2

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is to be written, no answer is to come, and nobody waits."""
        channels = tuple(self.channels.values())
        return not (
            self._has_output() or self.outbox or any(c.waits or c.waiting for c in channels)
        )

    @property
    def no_wait(self) -> list[_Outgoing]:
        """Messages that nobody waits for, and that aren't known to have arrived."""
        confirms = [c for c in tuple(self.channels.values()) if isinstance(c, _ConfirmChannel)]
        written = [o for c in confirms for o in tuple(c.in_flight.values()) if o.batch is None]
        return written + [o for o in tuple(self.outbox) if o.fate == LEFT]

    def forget(self) -> None:
        """Count and log the messages that are lost with it and that nobody waits for. Drop all that
        it holds: it is in cycles, and would keep that until the garbage collector comes."""
        for outgoing in self.no_wait:
            self.failures[outgoing.message.queue, str(self.lost)] += 1
        self._log_failures()
        for channel in tuple(self.channels.values()):
            channel.forget()
        for deque in (self.outbox, self._frames, self.replies, self.retired):
            deque.clear()
        self.confirms, self._rest, self._buffer = None, memoryview(b""), b""
        self.channels.clear()

    def _log_failures(self) -> None:
        """Log the messages that are lost and that nobody waits for, once for each queue."""
        failures, self.failures = self.failures, collections.Counter()
        for (queue, why), count in failures.items():
            text = "Lost: %s for queue %r, for which nobody waits (RABBIT_CONFIRM): %s"
            _log_aside(logging.ERROR, text, _count(count, "message"), queue, why)

    def wake(self) -> None:
        """Have the reader do a step. (`flush_soon` isn't enough: a reader that is awake may be past
        the place where it looks at what has changed.)"""
        self._wakeup.set()

    def close(self) -> None:
        """Take leave of the broker, within CLOSE_TIMEOUT seconds, and end the connection. By the
        reader. A broker that doesn't answer is no error."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        self.set_state(self.CLOSING)
        with contextlib.suppress(OSError):
            self._channel0.send_close_connection()
            while self.is_closing and time.monotonic() < deadline:
                self.step(deadline)
        self.give_up(AMQPConnectionError("it was closed"))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the socket, without a word to the broker. By the reader. May be called again."""
        # With the lock: a thread that is writing would go on with a descriptor that may be somebody
        # else's file by then. Nobody holds the lock for long, and after this nobody writes.
        with self._lock:
            sock, self._socket = self._socket, None
            if sock is not None:
                sock.close()
        self._selector.close()
        self._wakeup.close()
        self.set_state(self.CLOSED)

    def leave_to_parent(self) -> None:
        """Close a forked child's copy of the socket, and leave the connection to the parent."""
        # A thread of the parent's may have held the lock at the fork. It isn't here to release it.
        self._lock = threading.RLock()
        self.lost = AMQPConnectionError("it is the parent process's")
        self.hang_up()


#: All that there are, for a forked child to leave them to its parent.
_connections: weakref.WeakSet[_Connection] = weakref.WeakSet()

C = TypeVar("C")


def _first_that_answers(config: Config, connect: Callable[[str, int], C]) -> C:
    """Return what `connect` returns for the first address with which it doesn't raise. Raise
    AMQPConnectionError with each address's reason, and the first reply code of a broker."""
    reasons, code = [], None
    for host, port in config._addresses():
        try:
            return connect(host, port)
        except (OSError, ValueError) as error:
            code = code or getattr(error, "error_code", None)
            # amqpstorm's names the address again, and has no reason when nothing answers.
            reason = str(error).removeprefix(f"Could not connect to {host}:{port} error: ")
            reasons.append(f"{host}:{port} ({'no answer' if reason == 'None' else reason})")
    raise AMQPConnectionError(f"can't connect to RabbitMQ at {', '.join(reasons)}", reply_code=code)


class _ChannelsExhausted(Exception):
    """The broker allows no more channels on a connection at the moment (channel_max)."""


CH = TypeVar("CH", bound="_Channel")


def _new_channel(connection: _Connection, kind: type[CH], *arguments: Any) -> CH | None:
    """Return a new channel, or None if none is free: to be called again when the connection
    changes (`_Connection.changes`)."""
    try:
        return kind(connection, *arguments)
    except _ChannelsExhausted:
        # An idle channel of calls is closed, so that its number gets free.
        with contextlib.suppress(IndexError):
            connection.replies.pop().retire()
        return None


class _Channel:
    """A channel of a connection. One thread at a time makes requests on it; the connection's reader
    calls the methods that begin with `on_`. A channel that isn't used any more is retired."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        #: Why nothing can be done on this channel any more, though its connection may live.
        self.lost: AMQPError | None = None
        #: Notified when this channel or its connection is lost.
        self.waiting = _Changes()
        self._awaited: Sequence[str] = ()  # names of frames, one of which is to answer a request
        self._answer: Any = None
        # The message that is arriving: its Basic.Deliver or Basic.Return, its properties, the parts
        # of its body, and the bytes of it that haven't arrived.
        self._method: Any = None
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._missing = 0
        self.id = connection.add(self)
        self.begin()

    def begin(self) -> None:
        """Have it opened. The answer isn't waited for, so that the next frames leave in one write
        with this one: RabbitMQ works them off in their order."""
        self.connection.enqueue(None, _marshal(self.id, commands.Channel.Open()))

    @property
    def why_lost(self) -> AMQPError | None:
        """Why nothing can be done on this channel any more; None: it is usable."""
        return self.lost or self.connection.lost

    @property
    def waits(self) -> bool:
        """Whether the broker owes an answer."""
        return bool(self._awaited)

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """Take a message that has arrived as a whole. properties: None, they can't be decoded."""

    def on_method(self, frame: Any) -> None:
        """Take a method that isn't the answer to a request."""

    def on_lost(self) -> None:
        """Note that the broker has closed this channel."""

    def forget(self) -> None:
        """Drop the messages that it holds: its connection has ended."""
        self._parts.clear()

    def post(self, *frames: Any) -> None:
        """Have frames of pamqp's written."""
        self.connection.post(self, _marshal(self.id, *frames))

    def ping(self) -> None:
        """Ask the broker for a sign of life. By the reader."""
        # A method with an answer that changes nothing: the flow is on already. (A Basic.Qos would
        # come between that of a consumer and its Basic.Consume, which then has no prefetch.)
        self.post(commands.Channel.Flow(active=True))

    def request(self, frame: Any, until: float) -> Any:
        """Send a method and return its answer. Raise AMQPError if the channel is lost, or if none
        has come by the time.monotonic() `until`."""
        self._awaited, self._answer = frame.valid_responses, None
        try:
            self.post(frame)
            self.waiting.wait_for(lambda: self._answer is not None or self.why_lost, until)
        finally:
            self._awaited = ()
        if self._answer is None:
            raise _again(self.why_lost or AMQPConnectionError(f"no answer to {frame.name} in time"))
        return self._answer

    def retire(self) -> None:
        """Have the reader close it, as soon as no answer is to come. Until then, other threads that
        have got it may still publish on it."""
        self.connection.retired.append(self)
        self.connection.wake()

    def close(self) -> None:
        """Close it. Only by the reader: while it does this, it can't do what the broker's own Close
        asks for."""
        if self.lost is None:
            # In this order: frames that others append from here on are dropped, so none follows the
            # Close.
            self.lost = AMQPChannelError("it was closed")
            self.connection.enqueue(None, _marshal(self.id, commands.Channel.Close(200, "", 0, 0)))
            self.waiting.notify()

    def on_header(self, payload: bytes) -> None:
        """Take a message's header. Properties that can't be decoded are None: one odd message must
        not end the connection."""
        self._missing = _CONTENT_HEADER.unpack_from(payload)[2]
        try:
            self._properties = _decode_properties(payload)
        except Exception:
            self._properties = None
        self._end_content()

    def on_body(self, payload: bytes) -> None:
        """Take a part of a message's body."""
        self._parts.append(payload)
        self._missing -= len(payload)
        self._end_content()

    def on_frame(self, frame: Any) -> None:
        """Take a method."""
        name = frame.name
        if name in ("Basic.Deliver", "Basic.Return"):
            self._method = frame
        elif name in self._awaited:
            self._answer, self._awaited = frame, ()
            self.waiting.notify()
        elif name == "Channel.CloseOk":
            self.connection.remove(self)
        elif name == "Channel.Close":
            self.connection.enqueue(None, _marshal(self.id, commands.Channel.CloseOk()))
            # If we close it as well, the broker still answers our Close, and the number isn't free
            # before that.
            if self.lost is None:
                self.connection.remove(self)
                self.lost = AMQPChannelError(str(frame.reply_text), reply_code=frame.reply_code)
                self.on_lost()
            self.waiting.notify()
        else:
            self.on_method(frame)

    def _end_content(self) -> None:
        """Hand the message on if it is whole."""
        if self._missing <= 0:
            parts, self._parts = self._parts, []
            self.on_content(
                self._method, self._properties, parts[0] if len(parts) == 1 else b"".join(parts)
            )


def _declare(connection: _Connection, until: float, **options: Any) -> None:
    """Declare a queue, or look whether it exists (passive=True), within a time.monotonic(). Raise
    AMQPChannelError with RabbitMQ's reason, and AMQPConnectionError.

    This takes a channel of its own, since RabbitMQ closes the channel of what fails.
    """
    channel = connection.changes.wait_for(lambda: _new_channel(connection, _Channel), until)
    if channel is None:
        queue = options["queue"]
        raise AMQPConnectionError(
            f"no channel was free in time to look for queue {queue!r} (channel_max)"
        )
    try:
        channel.request(_Declare(**options), until)
    finally:
        channel.retire()


def _ensure_queue(
    connection: _Connection, queue: str, arguments: dict[str, Any], until: float
) -> None:
    """Declare a queue only if it doesn't exist: one that does is used as it is. Raise as `_declare`
    does.

    It is looked for, and declared if it is missing (404). If the declaration differs from what
    there is (406), another program has declared it meanwhile, and it is looked for once more.
    """
    failure: tuple[str, int | None] | None = None
    # Classic queues of RabbitMQ 4.3 have no such timeout, and can't be declared with one.
    timeless = {key: value for key, value in arguments.items() if key != "x-consumer-timeout"}
    declarations = [arguments] if timeless == arguments else [arguments, timeless]
    # None stands for a look.
    for wanted in (None, *declarations, None):
        look = wanted is None
        try:
            return _declare(
                connection, until, queue=queue, passive=look, durable=not look, arguments=wanted
            )
        except AMQPChannelError as error:
            # "There is no such queue" says less than why it couldn't be declared. The error itself
            # isn't kept: its traceback leads to this frame.
            if failure is None or error.error_code != 404:
                failure = str(error), error.error_code
            if error.error_code != (404 if look else 406):
                break
    text, code = cast(Any, failure)
    raise AMQPChannelError(text, reply_code=code)


def _pauses(longest: float) -> Iterator[float]:
    """Yield growing pauses in seconds, up to `longest`. Each is taken times 0.5 to 1, by chance, so
    that many clients of a broker don't come back at the same time."""
    for n in itertools.count():
        yield min(FIRST_RECONNECT * 2 ** min(n, 20), longest) * (0.5 + os.urandom(1)[0] / 512)


def _keep_running(step: Callable[[], bool]) -> None:
    """Call a step again and again, until it returns True: the loop of a thread that must live.

    An exception costs that step. It is logged, and the next step follows after a pause, which grows
    as long as there is no step without.
    """
    pauses: Iterator[float] | None = None
    while True:
        try:
            while not step():
                pauses = None
            return
        except BaseException as error:
            text = "Defect in a thread of kuyruk's; it goes on"
            _log_aside(logging.ERROR, text, error=error)
        # Without a pause a lasting defect would take a whole CPU, and fill the log.
        try:
            pauses = pauses or _pauses(LONGEST_PAUSE)
            time.sleep(next(pauses))
        except BaseException:  # no memory, say
            pass


def _refuses_us(error: BaseException) -> bool:
    """Whether trying again is of no use: a wrong password, or no such virtual host."""
    code = getattr(error, "error_code", None)
    # RabbitMQ says 530 as well when it has too many connections at the moment.
    return code == 403 or (code == 530 and "limit" not in str(error))


class _Keeper:
    """Has a thread that connects, and then reads the connection: for one publisher (publishes=True)
    or for one worker.

    For a publisher it connects as long as another thread wants a connection, and ends after
    RABBIT_IDLE_DURATION without use; for a worker it always connects. In both cases it ends when it
    is closed. A thread that wants a connection waits only as long as it wants to, however long an
    attempt to connect takes.
    """

    def __init__(self, config: Config, publishes: bool) -> None:
        self._config = config
        self._publishes = publishes
        self._idle = config.RABBIT_IDLE_DURATION if publishes else math.inf  #: Seconds.
        #: Seconds between two attempts, at most.
        self._longest_pause = LONGEST_PAUSE if publishes else config.WORKER_RECONNECT_INTERVAL
        self._pauses = _pauses(self._longest_pause)  #: Between the attempts that are to come.
        #: Notified when there is another connection, or another reason why there is none.
        self.changes = _Changes()
        self.connection: _Connection | None = None
        #: Why there is none; and if RabbitMQ has refused us, until the next attempt.
        self.trouble: AMQPError | None = None
        self.refusal: AMQPError | None = None
        #: Its thread has ended: it is of no use any more.
        self.ended = False
        self.closing = False
        self._wakeup = _Event()  # ends the pauses of its thread, while there is no connection
        #: A connection that a probe has opened, to take the place of one that is silent.
        self._successor: _Connection | None = None
        self._is_probing = False  # a probe is under way: one at a time
        self._is_asked = False  # a thread has asked for a connection, and may have gone by now
        self._was_idle = False  # the last connection was closed because nobody used it
        self._was_connected = False  # there was a connection since the last trouble
        self._logged, self._logged_at = "", -math.inf  # the last trouble, and time.monotonic()
        self._thread = threading.Thread(target=self._run, name="kuyruk-connection", daemon=True)

    def start(self) -> _Keeper:
        """Raise RuntimeError if no thread can be started."""
        self._thread.start()
        return self

    # -- for threads that want a connection

    @property
    def usable(self) -> _Connection | None:
        """The connection, if there is one that isn't lost."""
        connection = self.connection
        return connection if connection and connection.lost is None and connection.is_open else None

    def connect(
        self, until: float, ends: Callable[[], object] = lambda: False, event: _Event | None = None
    ) -> _Connection:
        """Wait for a connection. Raise AMQPConnectionError at the time.monotonic() `until`, or when
        RabbitMQ refuses us, or `ends` returns true. event: one that is set when that has changed.

        The keeper may be about to end. 1. This thread: registers as waiting (`wait_for`). 2. The
        keeper: notes that it has ended. 3. This thread: looks whether it has, and waits no longer.
        4. The keeper: looks whether somebody waits, and takes it back. Each notes first and looks
        then, so at least one sees the other. (If both do, as here, the caller tries again.)
        """
        connection = self.usable or self.changes.wait_for(
            lambda: self._ask() or ends(), until, event
        )
        if isinstance(connection, _Connection):
            return connection
        raise _again(
            self.refusal or self.trouble or AMQPConnectionError("there is no connection yet")
        )

    def _ask(self) -> Any:
        """Have it connect, unless it is connected. Return something true if there is no more to
        wait for: the connection, a refusal, or its end."""
        if self.usable is None:
            self._is_asked = True
            self._wakeup.set()
        return self.usable or self.refusal or self.ended

    def close(self) -> None:
        """Close the connection as soon as nothing is on its way; wait for that for CLOSE_TIMEOUT
        seconds."""
        self.closing = True
        self._wakeup.set()
        connection = self.connection
        # An attempt to connect isn't waited for: it may take long, and nothing depends on it.
        if connection is not None and not _is_reader():
            connection.wake()
            self._thread.join(CLOSE_TIMEOUT)
            _wait_for_log()  # the process may end now

    # -- its thread

    def _run(self) -> None:
        _readers.add(threading.get_ident())
        _keep_running(self._connect_and_read)
        _readers.discard(threading.get_ident())
        successor = self._successor
        if successor is not None:
            successor.hang_up()

    def _connect_and_read(self) -> bool:
        """Wait until a connection is wanted, and read it until it is lost. Return whether there is
        to be no other."""
        if not self._wait_until_wanted():
            return True
        self.refusal, self._is_asked, self._was_idle = None, False, False
        try:
            connection = self._open()
            self._pauses = _pauses(self._longest_pause)
            self._read(connection)
        except BaseException as error:
            if not isinstance(error, OSError | ValueError):  # amqpstorm's are OSErrors
                _log_aside(logging.ERROR, "Defect in a connection: it is given up", error=error)
            self._on_trouble(error, next(self._pauses))
        return False

    def _open(self) -> _Connection:
        """Return the connection that a probe has opened, or open one."""
        successor, self._successor = self._successor, None
        return successor or _Connection.open_first(self._config)

    def _read(self, connection: _Connection) -> None:
        """Read until it is to be closed. Raise AMQPConnectionError when it is lost."""
        try:
            connection.used_at = time.monotonic()
            # Now, because calls may have taken all channels when the first message is to be sent.
            if self._publishes:
                connection.confirms = _ConfirmChannel(connection)
            self.connection, self.trouble, self._was_connected = connection, None, True
            self._is_asked = False
            self.changes.notify()
            while not self._may_close(connection):
                connection.step(math.inf)
                if connection.is_silent:
                    self._probe(connection)
            connection.close()
            self._was_idle = True
        except BaseException as error:
            connection.give_up(_as_lost(error))
            raise
        finally:
            self.connection = None
            connection.hang_up()
            connection.forget()

    def _may_close(self, connection: _Connection) -> bool:
        """Whether a connection is to be closed, or has been idle for long, and nothing is on its
        way."""
        return (
            self.closing or connection.stepped_at >= connection.used_at + self._idle
        ) and connection.is_quiet

    def _wait_until_wanted(self) -> bool:
        """Wait until a connection is wanted. Return False if the keeper ends instead: it was
        closed, or none was wanted for long."""
        until = time.monotonic() + self._idle
        while not self._is_wanted():
            if not (self.closing or self._was_idle) and time.monotonic() < until:
                self._wakeup.wait(until)
                self._wakeup.clear()
                continue
            # In this order: see `connect`.
            self.ended = True
            if not self.changes:
                return False
            self.ended = False
        return True

    def _is_wanted(self) -> bool:
        """Whether to connect: a worker always wants that, a publisher's threads at times."""
        always = not (self._publishes or self.closing)
        return bool(always or self.changes or self._is_asked or self._successor)

    def _on_trouble(self, error: BaseException, pause: float) -> None:
        """Note why there is no connection, log it, and wait before the next attempt (seconds)."""
        was_connected, self._was_connected = self._was_connected, False
        self.trouble = _again(_as_lost(error))
        if _refuses_us(self.trouble):
            self.refusal = self.trouble
        self.changes.notify()
        now, text = time.monotonic(), str(error)
        if text != self._logged or now > self._logged_at + WAITING_LOG_INTERVAL:
            self._logged, self._logged_at = text, now
            level = logging.INFO if was_connected else logging.WARNING
            _log_aside(level, "Waiting for RabbitMQ, trying again in %.1f s: %s", pause, error)
        until = now if isinstance(error, _Interrupted) else now + pause
        while not self.closing and time.monotonic() < until:
            self._wakeup.wait(until)
            self._wakeup.clear()

    # -- a connection that may have vanished

    def _probe(self, connection: _Connection) -> None:
        """Look in another thread whether a second connection can be opened. If so the broker lives,
        and the way of the first has vanished. If not the broker stands still, and the first may go
        on when it does: nothing is lost, and nothing is sent twice."""
        if not self._is_probing:
            self._is_probing = True
            try:
                arguments = (connection,)
                threading.Thread(
                    target=self._open_successor, args=arguments, name="kuyruk-probe", daemon=True
                ).start()
            except RuntimeError as error:  # no thread can be started
                self._is_probing = False
                _log_aside(logging.WARNING, "Can't look for another connection: %s", error)

    def _open_successor(self, silent: _Connection) -> None:
        """Replace a connection that is silent, if another can be opened. In the probe's thread."""
        # It reads the handshake, like a keeper.
        _readers.add(threading.get_ident())
        try:
            successor = _Connection.open_first(self._config)
            # First the successor: the keeper looks for it as soon as the silent one is lost.
            if silent.lost is None and silent.is_silent:
                self._successor = successor
                why = f"no answer for {silent.silence():.1f} seconds, but from a new connection"
                silent.give_up(AMQPConnectionError(why))
            else:
                successor.hang_up()
        except (OSError, ValueError) as error:
            text = "RabbitMQ doesn't answer, nor can it be reached anew: %s"
            _log_aside(logging.DEBUG, text, error)
        finally:
            self._is_probing = False
            _readers.discard(threading.get_ident())


# --- Sending -------------------------------------------------------------------------------------

#: Fates of a message. What RabbitMQ says: it has it; no queue took it; its queue didn't take it.
CONFIRMED, RETURNED, REFUSED = "confirmed", "returned", "refused"
LEFT = "left"  #: Its sender doesn't wait to hear that (RABBIT_CONFIRM=False).


class _Outgoing:
    """A message on its way, and what is known of it."""

    __slots__ = (
        "batch", "channel", "failure", "fate", "is_suspect", "message", "properties", "size",
        "tag", "trouble",
    )  # fmt: skip

    def __init__(self, message: _Message, batch: _Batch | None) -> None:
        """Raise ValueError, and whatever pamqp raises, for properties that can't be encoded."""
        self.message = message
        self.properties = _encode_properties(message.properties)
        self.size = len(message.body) + len(self.properties) + 100  #: Bytes on the wire, about.
        self.batch = batch  #: The thread that waits for its fate; None: no thread does (LEFT).
        #: The channel that it was published on last.
        self.channel: _ConfirmChannel
        #: Its number on that channel; None until it is written.
        self.tag: int | None = None
        #: CONFIRMED, RETURNED, REFUSED or LEFT; None as long as it isn't known.
        self.fate: str | None = None
        #: Why it isn't confirmed yet: another attempt may help.
        self.trouble: str | None = None
        #: Why it can't be sent at all: there is no other attempt.
        self.failure: str | None = None
        #: It may be what has ended its channel: it is sent once more, alone on a connection.
        self.is_suspect = False


class _Batch:
    """A thread that waits for the fates of its messages; or, if it has a `result_by`, a call: it
    has one message, and waits for the reply to that."""

    __slots__ = ("done", "is_cancelled", "pending", "reply", "result_by")

    def __init__(self, result_by: float | None = None) -> None:
        #: time.monotonic() until which a call waits for its reply.
        self.result_by = result_by
        self.reply: bytes | None = None
        #: The application was closed: the call waits for its message's fate, but for no reply.
        self.is_cancelled = False
        #: How many of the messages that were published last have no fate yet.
        self.pending = 0
        #: Set by the reader of the connection, or by `_Publisher.close`: the thread is to look.
        self.done = _Event()


class _ConfirmChannel(_Channel):
    """Publishes. The broker numbers what is published on a channel, and confirms by number."""

    def __init__(self, connection: _Connection) -> None:
        self._last_tag = 0  # the number that was given last
        self._oldest_tag = 1  # all numbers below it have their fate
        self.in_flight: dict[int, _Outgoing] = {}  #: By number: written, and without a fate.
        #: Messages that were returned, by `_Message.key`: the last number that was given by then.
        self._returned: dict[tuple[str, Any], int] = {}
        #: A queue has refused a message. In a cluster that may be this channel's fault: it goes on
        #: sending to a leader that has fallen. So the reader, or its user, replaces it.
        self.has_refused = False
        # Bytes of messages that were written, and of those that have their fate. No lock: the first
        # is changed with the connection's lock only, the second by the reader only.
        self._bytes_written = self._bytes_answered = 0
        #: Bytes that may be appended before the outbox is measured again, which takes long. Threads
        #: that append at once may count one message for another; the next measurement mends that.
        self._room = 0
        super().__init__(connection)

    def begin(self) -> None:
        """Have it opened, and its messages confirmed."""
        super().begin()
        self.connection.enqueue(self, _marshal(self.id, commands.Confirm.Select(nowait=True)))

    @property
    def waits(self) -> bool:
        """Whether the broker owes an answer, or the fate of a message."""
        return bool(self.in_flight or self._awaited)

    def on_lost(self) -> None:
        """Count the messages that are lost with it and that nobody waits for."""
        # Senders that wait see it by themselves; for the others it is counted here, and logged.
        # A copy: a thread that found it not lost yet may be writing one more message.
        for outgoing in tuple(self.in_flight.values()):
            if outgoing.batch is None:
                self.connection.failures[outgoing.message.queue, str(self.lost)] += 1

    def forget(self) -> None:
        """Drop the messages that it holds: its connection has ended."""
        super().forget()
        self.in_flight.clear()

    def find_room(self) -> AMQPError | bool:
        """Return why this channel is lost; or else whether a sender that doesn't wait for fates may
        append more: what isn't written, or isn't confirmed, is held in memory."""
        if self._room <= 0:
            unwritten = sum([o.size for o in tuple(self.connection.outbox)])
            self._room = UNWRITTEN_BYTES - unwritten
        unconfirmed = self._bytes_written - self._bytes_answered
        has_room = self._room > 0 and unconfirmed <= UNCONFIRMED_BYTES
        return self.why_lost or has_room

    def publish(self, messages: Sequence[_Outgoing]) -> None:
        """Append messages to the outbox: whoever writes next takes them along."""
        for outgoing in messages:
            outgoing.channel, outgoing.tag, outgoing.fate = self, None, None
            self._room -= outgoing.size
        self.connection.outbox.extend(messages)

    def encode(self, outgoing: _Outgoing) -> bytes:
        """Number a message, and return its frames. With the connection's lock: the broker counts in
        the order in which the frames arrive."""
        message = outgoing.message
        data = _content_frames(
            self.id,
            message.queue,
            message.mandatory,
            outgoing.properties,
            message.body,
            self.connection.frame_max,
        )
        self._last_tag = outgoing.tag = self._last_tag + 1
        self._bytes_written += outgoing.size
        self.in_flight[outgoing.tag] = outgoing
        return data

    def on_method(self, frame: Any) -> None:
        """Take confirms: of one message, or of all up to a number."""
        if frame.name in ("Basic.Ack", "Basic.Nack"):
            tag, fate = frame.delivery_tag, CONFIRMED if frame.name == "Basic.Ack" else REFUSED
            for number in range(self._oldest_tag, tag + 1) if frame.multiple else (tag,):
                outgoing = self.in_flight.pop(number, None)
                if outgoing is not None:
                    self._on_fate(outgoing, fate)
            if frame.multiple:
                self._oldest_tag = tag + 1

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """Note a message that no queue took. Its Ack follows, and only that tells the number.

        What comes back has no number, so messages in flight with the same queue and id can't be
        told apart: all of them count as returned then. Rather one too many is sent again than one
        too few.
        """
        if not self.in_flight:
            self._returned.clear()  # all that these were about have their fate
        self._returned[method.routing_key, getattr(properties, "message_id", None)] = self._last_tag

    def _on_fate(self, outgoing: _Outgoing, fate: str) -> None:
        """Note what has become of a message, and wake who waits for it. In the reader."""
        self._bytes_answered += outgoing.size
        returned_up_to = self._returned.get(outgoing.message.key, 0) if self._returned else 0
        if cast(int, outgoing.tag) <= returned_up_to:
            fate = RETURNED
        outgoing.fate = fate
        self.has_refused |= fate == REFUSED
        batch = outgoing.batch
        if batch is None:
            # Only the log will tell; and the queue is looked for before the next message for it.
            if fate != CONFIRMED:
                self.connection.queues.pop(outgoing.message.queue, None)
                self.connection.failures[outgoing.message.queue, fate] += 1
            return
        batch.pending -= 1
        # A call isn't woken by its confirm, only to wait again: it wants the reply.
        is_end = fate != CONFIRMED or batch.result_by is None or batch.is_cancelled
        if batch.pending <= 0 and is_end:
            self.connection.notify(batch.done)


class _ReplyChannel(_ConfirmChannel):
    """Publishes one request at a time, and consumes the reply to it (RabbitMQ's direct reply-to).

    A reply bears nothing that tells which request it answers (Kuyruk 10's workers send no
    correlation id), and may come late, or twice. So each request has a reply address and a consumer
    tag of its own: cancelling and consuming again makes the broker forget the old address. That
    costs two small frames and no round trip, and is done when the channel gets free.
    """

    def __init__(self, connection: _Connection) -> None:
        self._consumers = 0  # how many there have been; the tag of the last is this number
        self._batch: _Batch | None = None  # the call that it is for; None: it is free
        super().__init__(connection)

    def begin(self) -> None:
        """Have it opened, with a first address for replies."""
        super().begin()
        self.renew()

    def renew(self) -> None:
        """Forget the address that there is, and have another."""
        self._batch, self._consumers = None, self._consumers + 1
        self.connection.enqueue(self, _renew_frames(self.id, self._consumers))

    def publish(self, messages: Sequence[_Outgoing]) -> None:
        """Append a request: what arrives from here on, at this address, is the reply to it."""
        self._batch = messages[0].batch
        super().publish(messages)

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """Take the reply, or the request that no queue took."""
        batch = self._batch
        if method.name == "Basic.Return":
            super().on_content(method, properties, body)
        # Not the second answer to a request, nor one that comes when nobody waits, nor an old one.
        elif batch and batch.reply is None and method.consumer_tag == str(self._consumers):
            batch.reply = body
            self.connection.notify(batch.done)


def _note_trouble(outgoing: _Outgoing, alone: bool) -> bool:
    """Note what went wrong with a message that was published and isn't confirmed.

    Return whether to pause before it is sent again: not after its first trouble, unless its queue
    refuses it. alone: nothing else was on its connection.
    """
    queue, channel = outgoing.message.queue, outgoing.channel
    had_trouble = outgoing.trouble is not None
    if outgoing.fate == RETURNED:
        channel.connection.queues.pop(queue, None)  # so that it is looked for, and declared
        outgoing.trouble = f"queue {queue!r} is deleted again and again: look who does that"
        return had_trouble
    if outgoing.fate == REFUSED:
        outgoing.trouble = f"queue {queue!r} refuses it (it is full, or without a leader)"
        return True
    if channel.why_lost is None:
        outgoing.trouble = outgoing.trouble or _why_no_answer(channel.connection)
    elif outgoing.tag is not None:  # if it has none it wasn't even written: it isn't to blame
        outgoing.trouble = str(channel.why_lost)
        outgoing.failure = outgoing.trouble if alone else None
        # The broker closes a channel because of a message on it. A whole connection is lost because
        # of the network; or because of a message, but only if that is a reply to a made-up address
        # (RabbitMQ 3.10).
        outgoing.is_suspect = channel.lost is not None or not outgoing.message.mandatory
        return had_trouble
    return False


def _why_no_answer(connection: _Connection) -> str:
    """Return why a broker that we are connected to has not answered."""
    return "it blocks publishing (memory or disk alarm)" if connection.is_blocked else "no answer"


def _windows(messages: Sequence[_Message]) -> Iterator[list[_Message]]:
    """Cut messages into windows, by number and by bytes: RABBIT_PUBLISH_TIMEOUT is for each."""
    window: list[_Message] = []
    size = 0
    for message in messages:
        if window and (len(window) >= BATCH_WINDOW or size + len(message.body) > BATCH_BYTES):
            yield window
            window, size = [], 0
        window.append(message)
        size += len(message.body)
    if window:
        yield window


#: Why a call has ended that `_Publisher.close` has cancelled.
APP_CLOSED = "the application was closed"


class _Publisher:
    """Sends messages for many threads, on one connection.

    Sending is a loop in the caller's thread (`_deliver`): connect, look for the queue, publish,
    wait for the fate of each message, and again for those that aren't confirmed, until
    RABBIT_PUBLISH_TIMEOUT. In a forked child it begins anew.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.begin()
        _publishers.add(self)

    def begin(self) -> None:
        """Begin with no connection: a new object, or that of a parent process in its child."""
        #: Held while the keeper is replaced: a thread is started, and nothing is waited for.
        #: Reentrant because such a lock knows whose it is (see `_get_keeper`).
        self._lock = threading.RLock()
        self._keeper: _Keeper | None = None
        #: The idents of threads that are sending. A signal handler, a destructor or a log handler
        #: that sends in one of them must not wait for what that thread has begun: it uses another
        #: publisher, with a connection of its own.
        self._inside: set[int] = set()
        self._other: _Publisher | None = None
        #: The calls that are under way, for `close`.
        self._calls: set[_Batch] = set()

    def send(self, messages: Sequence[_Message], confirm: bool = True) -> None:
        """Send, in windows that have RABBIT_PUBLISH_TIMEOUT seconds each. confirm: wait until the
        broker has each message. If not, what is lost later is only logged.

        Raise BrokerError, whose `unconfirmed` lists the messages that aren't known to have arrived.
        """
        return self._enter(_Publisher._send, messages, confirm)

    def call(self, message: _Message, wait_result: float) -> bytes:
        """Send a request and wait for the reply. Raise BrokerError and ResultTimeout."""
        return self._enter(_Publisher._call, message, wait_result)

    def close(self) -> None:
        """Close the connection. Another send opens it again.

        What is being sent still arrives. A call that waits for its reply gets a BrokerError as soon
        as its message is confirmed, and one that hasn't been sent yet gets it instead of being
        sent.
        """
        # 1. Here: is_cancelled, then done. 2. The reader: the fate, then done if it is cancelled.
        # Whichever comes last wakes the call, which then sees both.
        for batch in tuple(self._calls):
            batch.is_cancelled = True
            batch.done.set()
        keeper, self._keeper = self._keeper, None
        other, self._other = self._other, None
        if other is not None:
            other.close()
        if keeper is not None:
            connection = keeper.connection
            keeper.close()
            if connection is not None and (count := len(connection.no_wait)):
                _log(
                    logging.ERROR,
                    "%s may be lost if this process ends now",
                    _count(count, "message"),
                )

    def _enter(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work` with this publisher; or with another, if this thread is in here already.
        Raise BrokerError in a thread that reads a connection: it would wait for itself."""
        if os.getpid() != _process_id:  # forked by C code, which calls no hook of Python's
            _after_fork_in_child()
        me = threading.get_ident()
        if me in _readers:
            raise BrokerError(
                "can't send from a thread that reads a connection (a log handler, a destructor)"
            )
        if me in self._inside:
            # Two threads may make one each: of that which isn't kept, the connection ends when it
            # is idle.
            other = self._other
            if other is None:
                other = self._other = _Publisher(self.config)
            return other._enter(work, *arguments)
        try:
            self._inside.add(me)
            return work(self, *arguments)
        finally:
            self._inside.discard(me)

    def _send(self, messages: Sequence[_Message], confirm: bool) -> None:
        """Do what `send` says, in its thread."""
        sent = 0
        for window in _windows(messages):
            batch = _Batch() if confirm else None
            outgoing = [_Outgoing(message, batch) for message in window]
            until = time.monotonic() + self.config.RABBIT_PUBLISH_TIMEOUT
            unconfirmed = self._deliver(outgoing, batch, until)
            sent += len(window)
            if unconfirmed:
                raise self._error(unconfirmed, messages[sent:])

    def _call(self, message: _Message, wait_result: float) -> bytes:
        """Do what `call` says, in its thread."""
        # Two times: to have the message confirmed, and to have the reply.
        result_by = time.monotonic() + wait_result
        sent_by = time.monotonic() + self.config.RABBIT_PUBLISH_TIMEOUT
        batch = _Batch(result_by)
        outgoing = _Outgoing(message, batch)
        try:
            self._calls.add(batch)
            unconfirmed = self._deliver([outgoing], batch, min(sent_by, result_by))
        finally:
            self._calls.discard(batch)
        if batch.reply is not None:
            return batch.reply
        if outgoing.failure is None and time.monotonic() >= result_by:
            why = f"; nor has RabbitMQ confirmed the message: {outgoing.trouble}"
            why = why if unconfirmed else ""
            raise ResultTimeout(f"no reply within {wait_result:g} seconds (wait_result){why}")
        if unconfirmed:
            raise self._error(unconfirmed)
        # It is confirmed, and the time isn't up: the address of the reply is gone with its channel.
        why = APP_CLOSED if batch.is_cancelled else str(outgoing.channel.why_lost)
        raise BrokerError(
            "no reply can come any more, though RabbitMQ has the message, and the task may run:"
            f" {why}"
        )

    def _deliver(
        self, messages: list[_Outgoing], batch: _Batch | None, until: float
    ) -> list[_Outgoing]:
        """Send messages again and again, until each is confirmed or has failed, or the time is up,
        or RabbitMQ refuses us. Return those that aren't known to have arrived."""
        own: _Keeper | None = None  # whose connection suspects have to themselves, one by one
        unconfirmed = messages
        try:
            while to_send := [o for o in unconfirmed if o.failure is None]:
                if batch is not None and batch.is_cancelled:
                    messages[0].failure = APP_CLOSED
                    break
                # Suspects come last: what they would take along is confirmed by then.
                ordinary = [outgoing for outgoing in to_send if not outgoing.is_suspect]
                try:
                    if ordinary:
                        pause = self._attempt(self._get_keeper(), batch, ordinary, until)
                    else:
                        own = own or self._make_keeper()
                        pause = self._attempt(own, batch, to_send[:1], until, alone=True)
                except (AMQPError, RuntimeError, OSError) as error:
                    # RuntimeError: no thread could be started for the connection.
                    for outgoing in to_send:
                        outgoing.trouble = str(error)
                    if _refuses_us(error):
                        break
                    pause = True
                unconfirmed = [o for o in unconfirmed if o.fate not in (CONFIRMED, LEFT)]
                if time.monotonic() >= until or (batch is not None and batch.reply is not None):
                    break
                if pause:
                    _wait(_Event(), min(until, time.monotonic() + REFUSAL_PAUSE))
        finally:
            if own is not None:
                own.close()
        return unconfirmed

    def _attempt(
        self,
        keeper: _Keeper,
        batch: _Batch | None,
        messages: list[_Outgoing],
        until: float,
        alone: bool = False,
    ) -> bool:
        """Publish messages, and wait for their fates. Return whether to pause before the next
        attempt."""
        if batch is None:
            connection = keeper.connect(until)
        else:
            connection = keeper.connect(until, lambda: batch.is_cancelled, batch.done)
        connection.used_at = time.monotonic()
        messages = self._ensure_queues(connection, messages, until)
        if not messages:
            return False
        # Whoever releases a channel notifies `changes`: a call waits until one is free.
        is_call = batch is not None and batch.result_by is not None
        get_channel = connection.get_replies if is_call else connection.get_confirms
        channel = connection.changes.wait_for(get_channel, until)
        if channel is None:
            raise AMQPConnectionError("all channels of its connection are in use (channel_max)")
        if batch is None:
            room = connection.changes.wait_for(channel.find_room, until)
            if room is not True:
                raise _again(room or AMQPConnectionError(_why_no_answer(connection)))
        else:
            # First: as soon as they are published the reader may count down.
            batch.pending = len(messages)
            batch.done.clear()
        try:
            channel.publish(messages)
            if batch is None:
                # The reader writes them with what else has come by then: cheaper, and nobody waits.
                connection.flush_soon()
                self._leave(channel, messages)
            else:
                connection.flush()
                self._wait_for_fates(channel, batch, messages, until)
        finally:
            self._release(channel, messages)
            if keeper.closing:  # this may be the last that its connection had to wait for
                connection.wake()
        pauses = [_note_trouble(o, alone) for o in messages if o.fate not in (CONFIRMED, LEFT)]
        return True in pauses

    def _ensure_queues(
        self, connection: _Connection, messages: list[_Outgoing], until: float
    ) -> list[_Outgoing]:
        """Declare the queues that are missing. Return the messages whose queue can be used; the
        others have failed.

        Raise ValueError for properties that don't fit into a frame: the broker would close the
        connection.
        """
        failures: dict[str, str] = {}
        largest = connection.frame_max - 22
        now = time.monotonic()
        for outgoing in messages:
            message, size = outgoing.message, len(outgoing.properties)
            if size > largest:
                raise ValueError(
                    f"its properties take {size} bytes, RabbitMQ allows {largest} (frame_max)"
                )
            seen = connection.queues.get(message.queue, -math.inf)
            is_due = message.mandatory and now - seen >= message.renewal
            if is_due and message.queue not in failures:
                try:
                    if message.target is not None:
                        _ensure_queue(connection, *message.target, until)
                    _ensure_queue(connection, message.queue, message.arguments, until)
                    connection.queues[message.queue] = time.monotonic()
                except AMQPChannelError as error:
                    # This user may not use it, or it can't be declared with these arguments.
                    failures[message.queue] = f"queue {message.queue!r} can't be used: {error}"
            outgoing.failure = failures.get(message.queue)
        return [outgoing for outgoing in messages if outgoing.failure is None]

    def _wait_for_fates(
        self, channel: _ConfirmChannel, batch: _Batch, messages: list[_Outgoing], until: float
    ) -> None:
        """Wait until all have a fate; or, with a call, until it has its reply, or can't have it."""
        if batch.result_by is None:
            channel.waiting.wait_for(
                lambda: batch.pending <= 0 or channel.why_lost, until, batch.done
            )
            return
        [outgoing] = messages

        def look() -> Any:
            ends = (RETURNED, REFUSED, CONFIRMED) if batch.is_cancelled else (RETURNED, REFUSED)
            return batch.reply is not None or outgoing.fate in ends or channel.why_lost

        # Mostly the reply is here soon. If not, the message must have been confirmed by `until`:
        # there is nothing more to wait for otherwise.
        channel.waiting.wait_for(look, until, batch.done)
        if outgoing.fate == CONFIRMED:
            channel.waiting.wait_for(look, batch.result_by, batch.done)

    def _leave(self, channel: _ConfirmChannel, messages: list[_Outgoing]) -> None:
        """Wait for nothing. What is lost from now on is counted and logged.

        1. This thread: LEFT. 2. The channel is lost, and who drops its messages counts those that
        are LEFT. 3. This thread: sees the loss, and sends again what wasn't written. So none is
        lost in silence; at worst one is logged as lost that is sent again. The other way round, one
        that is dropped before it is LEFT would be counted by nobody.
        """
        for outgoing in messages:
            outgoing.fate = LEFT
        if channel.why_lost is not None:
            for outgoing in messages:
                if outgoing.tag is None:
                    outgoing.fate = None

    def _release(self, channel: _ConfirmChannel, messages: list[_Outgoing]) -> None:
        """Withdraw what isn't written, and give the channel back."""
        connection = channel.connection
        for outgoing in messages:
            if outgoing.tag is None and outgoing.fate is None:
                # Nobody waits for it any more: it would fill the outbox of a broker that takes
                # nothing, and arrive although its send has raised.
                with contextlib.suppress(ValueError):  # it has just been written
                    connection.outbox.remove(outgoing)
        if isinstance(channel, _ReplyChannel):
            if channel.has_refused:
                channel.retire()
            else:
                channel.renew()
                connection.replies.append(channel)
        connection.changes.notify()

    def _make_keeper(self) -> _Keeper:
        """Return a new keeper, which runs. Raise RuntimeError if no thread can be started."""
        return _Keeper(self.config, publishes=True).start()

    def _get_keeper(self) -> _Keeper:
        """Return the keeper of all that isn't suspect; a new one if it has ended, being idle."""
        keeper = self._keeper
        if keeper is None or keeper.ended:
            # A signal handler may raise between any two of these steps, also right after the lock
            # was acquired; so that is in the try block, and it may not be this thread's.
            try:
                self._lock.acquire()
                keeper = self._keeper  # another thread may have replaced it, or closed all
                if keeper is None or keeper.ended:
                    keeper = self._keeper = self._make_keeper()
            finally:
                try:
                    self._lock.release()
                except RuntimeError:  # it wasn't acquired
                    pass
        return keeper

    def _error(
        self, unconfirmed: Sequence[_Outgoing], rest: Sequence[_Message] = ()
    ) -> BrokerError:
        """Return the error of a send. rest: what wasn't tried, in the windows that follow."""
        reasons = collections.Counter(o.failure or o.trouble or "no answer" for o in unconfirmed)
        why = "; ".join(reason for reason, _ in reasons.most_common(3))
        count = len(unconfirmed) + len(rest)
        limit = f" within {self.config.RABBIT_PUBLISH_TIMEOUT:g} seconds (RABBIT_PUBLISH_TIMEOUT)"
        limit = "" if all(o.failure for o in unconfirmed) else limit
        error = BrokerError(f"RabbitMQ has not confirmed {_count(count, 'message')}{limit}: {why}")
        cast(Any, error).unconfirmed = [*(o.message for o in unconfirmed), *rest]
        return error


#: All there are, to begin anew in a forked child.
_publishers: weakref.WeakSet[_Publisher] = weakref.WeakSet()
_process_id = os.getpid()


def _after_fork_in_child() -> None:
    """Leave to the parent what is its own: connections, message ids, log lines, and the runs of
    threads that aren't in this process. Locks may have been taken by such threads: they are new."""
    global _process_id, _log_token
    _process_id, _log_token = os.getpid(), threading.Lock()
    _records.clear()
    _ids.begin()
    _readers.clear()
    run = current_task()
    _runs.clear()
    _set_current(run)
    for connection in tuple(_connections):
        connection.leave_to_parent()
    for publisher in tuple(_publishers):
        publisher.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# --- Task ----------------------------------------------------------------------------------------

#: What the program's own module is called, also in a child of multiprocessing (spawn, forkserver).
_MAIN = ("__main__", "__mp_main__")


class SendOptions(typing.TypedDict, total=False):
    """Options of `Task.send_to_queue` and `Task.subtask`. None, 0 and "" mean "not given".

    delay: seconds (up to 49 days) after which the message is in its queue. Until then RabbitMQ
        keeps it on a queue for this delay.
    priority: from 0 to 255, in a queue that was declared with x-max-priority.
    headers: a dict. The task finds them in `current_task().headers`. Any names but CC, BCC, and
        those that begin with x-kuyruk-.
    id: the message's, instead of a new one; up to 255 bytes.
    """

    delay: float | None
    priority: int | None
    headers: Mapping[str, Any] | None
    id: str | None


_SUBTASK_OPTIONS = ("args", "kwargs", "host", *SendOptions.__annotations__)
_SEND_OPTIONS = (*_SUBTASK_OPTIONS, "wait_result", "message_ttl")


class SubTask(NamedTuple):
    """A task with its arguments (args, kwargs) and options (host, delay, priority, headers, id):
    those of `Task.send_to_queue`. Made by `Task.subtask`, for `Kuyruk.send_tasks_to_queue`."""

    task: Task[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    host: str | None
    delay: float | None = None
    priority: int | None = None
    headers: Mapping[str, Any] | None = None
    id: str | None = None

    def _checked(self) -> SubTask:
        """Return it. Raise TypeError or ValueError for what can't be sent. (The names of options
        aren't looked at when there is none, as in most.)"""
        _require("task", self.task, Task)
        args, kwargs = () if self.args is None else self.args, self.kwargs or {}
        if not isinstance(args, list | tuple):  # a string's letters would be the arguments
            raise TypeError(f"args takes a list or tuple: not {_shown('args', args)}")
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            shown = _shown("kwargs", kwargs)
            raise TypeError(f"kwargs takes a dict with strings as keys: not {shown}")
        if any(self[3:]):  # most have no options: a send takes less time then
            for name in ("host", "delay", "priority", "headers", "id"):
                _check(name, getattr(self, name) or None)
            _check_headers(self.headers or {})
            if self.id and len(self.id.encode("utf-8", "replace")) > 255:
                raise ValueError(f"id takes at most 255 bytes: not {_shown('id', self.id)}")
            self._queue()
        return self

    def _queue(self) -> str:
        """Return the queue that it is for. Raises ValueError for a host that makes no name."""
        queue = self.task.queue
        return _check_queue_name(_resolve_host(f"{queue}.{self.host}")) if self.host else queue

    def _describe(self) -> dict[str, Any]:
        """Return its description: what is sent, as a dict."""
        return {
            "id": self.id or _ids.make(),
            "args": self.args or (),
            "kwargs": dict(self.kwargs or {}),
            "module": self.task._module,
            "function": self.task.f.__name__,
            **_facts_about_sender(int(time.time()), os.getpid()),
        }

    def _message(self, description: dict[str, Any]) -> _Message:
        """Return what is published for a description, which a receiver of task_presend may have
        changed. Raises TypeError for what isn't JSON."""
        app, queue = self.task.kuyruk, self._queue()
        properties = {"content_type": "application/json", "delivery_mode": 2}
        properties |= {"message_id": description["id"], "timestamp": int(time.time())}
        if self.priority:
            properties["priority"] = self.priority
        if self.headers:
            properties["headers"] = dict(self.headers)
        body = _encode_json(description, f"an argument of task {self.task.name}")
        message = _Message(queue, body, properties, app._queue_arguments(queue))
        return _put_off(message, self.delay, app.config.QUEUE_ARGUMENTS) if self.delay else message


def _module_of(f: Callable[..., Any]) -> str:
    """Return the name by which a worker imports the function's module. If the program was started
    as that module, which is `__main__` then, it is the name that it has in other programs. Raises
    TypeError if it has none."""
    if f.__module__ not in _MAIN:
        if all(map(str.isidentifier, f.__module__.split("."))):
            return f.__module__
        raise TypeError(_no_module(f, repr(f.__module__)))  # runpy's "<run_path>", say
    import inspect

    namespace = getattr(inspect.unwrap(f), "__globals__", {})
    if namespace.get("__name__") != f.__module__:  # a profiler has a __main__ of its own
        namespace = vars(sys.modules[f.__module__])
    spec, file = namespace.get("__spec__"), namespace.get("__file__")
    if spec is not None and spec.name not in _MAIN:  # python -m pkg.mod
        return str(spec.name)
    name, suffix = os.path.splitext(os.path.basename(file or ""))  # python mod.py
    # A folder and a zip application are started by their __main__.py: that is no name, either.
    if name not in ("", *_MAIN) and "." not in name and suffix in (".py", ".pyc"):
        return name
    raise TypeError(_no_module(f, repr(file) if file else "an interactive session"))


def _no_module(f: Callable[..., Any], where: str) -> str:
    return (
        f"function {f.__qualname__!r} is in {where}, which is no module that a worker could import:"
        " move it to one (tasks.py), and import it from there"
    )


def _check_function(f: Any) -> None:
    """Raise TypeError for what can't be a task, or whose call doesn't run it."""
    import inspect

    names = [getattr(f, name, None) for name in ("__module__", "__name__", "__qualname__")]
    if isinstance(f, type | Task) or not callable(f) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f"a task is made of a function, not of {_shown('f', f)}: write one that calls it"
            " (def f(x): return ...), and decorate that"
        )
    for test, kind, instead in (
        (inspect.iscoroutinefunction, "an async function", "asyncio.run({}(...))"),
        (inspect.isgeneratorfunction, "a generator function", "list({}(...))"),
        (inspect.isasyncgenfunction, "an async generator function", "asyncio.run(...)"),
    ):
        if test(f):
            raise TypeError(
                f"{names[1]!r} is {kind}: to call it doesn't run it. Decorate a plain function in"
                f" its place, which calls {instead.format(names[1])}"
            )


#: Types of results that still have to be run by somebody: the task has done nothing then.
_NOT_RUN: tuple[type, ...] = (functools.partial, contextlib._GeneratorContextManagerBase)
_NOT_RUN += (collections.abc.Generator, collections.abc.Awaitable, collections.abc.AsyncGenerator)


@functools.lru_cache(100)
def _is_yet_to_run(kind: type) -> bool:
    """Whether objects of this type do their work only when somebody asks them to."""
    # Python's own iterators: map, filter, zip, starmap... A database's cursor has run.
    is_lazy = kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__")
    return is_lazy or issubclass(kind, _NOT_RUN)


def _require_result(task: Task[..., Any], result: T) -> T:
    """Return what a task has returned. Raises TypeError if that has yet to be run by somebody."""
    if _is_yet_to_run(cast(Any, type(result))):
        if isinstance(result, types.CoroutineType) and result.cr_frame is not None:
            result.close()  # Python would warn that nobody has waited for it
        raise TypeError(
            f"task {task.name} has returned a {type(result).__name__}, which hasn't run: run it in"
            " the task, with asyncio.run(...), or list(...) for a generator"
        )
    return result


class Task(Generic[P, R]):
    """A function that workers run. Calling it sends a message to its queue. Made by `Kuyruk.task`.

    retry: how often it is tried again, at once, when it raises.
    max_run_time: seconds that a try may take before it is interrupted with Timeout.
    fail_delay: seconds after which a failed message is back in its queue (0: it goes to
        "<queue>.failed").
    reject_delay: likewise for a rejected one (0: it is back at once).
    max_fail_delay: fail_delay doubles with each failure of the message, up to so many seconds.
    max_failures: after so many failures the message goes to "<queue>.failed" all the same.
    throws: an exception class, or several, that another try doesn't help against: there is none,
        and the message goes to "<queue>.failed" at once.

    They are its attributes, too, and: f, the function; kuyruk, the application; name, which is
    "<module>.<function>": by that workers find it.

    Raises ValueError for an option that can't be, or would have no effect; TypeError for what is no
    plain function.
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
        max_fail_delay: float | None = None,
        max_failures: int | None = None,
        throws: type[BaseException] | Iterable[type[BaseException]] = (),
    ) -> None:
        _check_function(f)
        _require("kuyruk", kuyruk, Kuyruk)
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
        # As `functools.update_wrapper`, which would copy the function's attributes over ours, too.
        for name in functools.WRAPPER_ASSIGNMENTS:
            with contextlib.suppress(AttributeError):
                setattr(self, name, getattr(f, name))
        self.__wrapped__ = f
        try:
            self._module, problem = _module_of(f), ""
        except TypeError as error:
            self._module, problem = f.__module__, str(error)
        #: Why it can't be sent, if it can't. `apply` works all the same.
        self._problem = problem
        # "add.f" is what `Kuyruk._add` has named the function of another task, which is made again.
        at_top = f.__qualname__ in (f.__name__, f"{f.__name__}.f")
        if not problem and not (at_top and f.__name__.isidentifier()):
            self._problem = (
                f"{f.__qualname__!r} can't be sent: a worker finds a task by its name in its"
                " module, so it must be a named function at the top level (.apply works for any)"
            )
        self.name: str = f"{self._module}.{f.__name__}"
        for key, value in getattr(f, "__dict__", {}).items():
            if not hasattr(self, key):  # what decorators leave there must not replace what is ours
                setattr(self, key, value)
        if task_init.receivers:
            task_init.send(kuyruk, task=self)

    def _check_options(self) -> None:
        """Raise ValueError for an option that can't be, or would have no effect."""
        names = ("retry", "max_run_time", "fail_delay", "reject_delay", "max_fail_delay")
        for name in (*names, "max_failures"):
            _check(name, getattr(self, name))
        self.max_run_time = self.max_run_time or None
        for each in self.throws:
            if not (isinstance(each, type) and issubclass(each, BaseException)):
                raise ValueError(f"throws takes exception classes: not {_shown('throws', each)}")
        if not self.fail_delay and (self.max_fail_delay, self.max_failures) != (None, None):
            raise ValueError("max_fail_delay and max_failures have no effect without a fail_delay")
        if self.throws and not (self.retry or self.fail_delay):
            raise ValueError("throws has no effect without a retry or a fail_delay")
        if self.max_fail_delay is not None and self.max_fail_delay < self.fail_delay:
            least = f"the fail_delay of {self.fail_delay:g} seconds"
            raise ValueError(f"max_fail_delay takes at least {least}: not {self.max_fail_delay:g}")

    def __repr__(self) -> str:
        return f"<Task {self.name} on {self.queue!r}>"

    def __reduce__(self) -> str:
        """Pickle it as the global of that name in its module: so a process pool that a task starts
        can run `task.apply`, or `task.f`."""
        return self.f.__name__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send a message that makes a worker call the function with these arguments. Raises as
        `send_to_queue`."""
        self.send_to_queue(args, kwargs)

    @typing.overload
    def send_to_queue(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None,
        host: str | None = None, wait_result: None = None, message_ttl: float | None = None,
        **options: typing.Unpack[SendOptions],
    ) -> None: ...  # fmt: skip

    @typing.overload
    def send_to_queue(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None,
        host: str | None = None, *, wait_result: float, message_ttl: float | None = None,
        **options: typing.Unpack[SendOptions],
    ) -> R: ...  # fmt: skip

    @typing.overload
    def send_to_queue(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, host: str | None,
        wait_result: float, message_ttl: float | None = None, **options: typing.Unpack[SendOptions],
    ) -> R: ...  # fmt: skip

    @typing.overload
    def send_to_queue(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None,
        host: str | None = None, wait_result: float | None = None,
        message_ttl: float | None = None, **options: typing.Unpack[SendOptions],
    ) -> R | None: ...  # fmt: skip

    def send_to_queue(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None,
        host: str | None = None, wait_result: float | None = None,
        message_ttl: float | None = None, **options: typing.Unpack[SendOptions],
    ) -> Any:  # fmt: skip
        """Send a message; with `wait_result`, wait for the result and return it.

        host: sends to "<queue>.<host>"; "localhost" stands for this machine's hostname.
        wait_result: seconds from now to wait for the reply.
        message_ttl: seconds after which the message is dropped, unless a worker has got it.
        options: delay (not with the two above), priority, headers, id: see `SendOptions`.

        None, and what else is empty (0, ""), means "not given". Raises TypeError (arguments that
        aren't JSON), ValueError (an option that can't be), BrokerError (not confirmed in time, or
        the connection was lost while waiting), ResultTimeout (no reply in time) and
        RemoteException (the task raised).
        """
        _check_names("Task.send_to_queue()", options, _SEND_OPTIONS)
        wait_result, message_ttl = wait_result or None, message_ttl or None
        _check("wait_result", wait_result)
        _check("message_ttl", message_ttl)
        subtask = self.subtask(args, kwargs, host, **options)
        if subtask.delay and (wait_result or message_ttl):
            raise ValueError("delay can't be combined with wait_result or message_ttl")
        if self.kuyruk.config.EAGER:
            return self._send_eagerly(subtask, wait_result)
        description, message = self._prepare(subtask)
        if message_ttl is not None:
            message.properties["expiration"] = _milliseconds(message_ttl)
        if wait_result is None:
            self.kuyruk._publisher.send([message], self.kuyruk.config.RABBIT_CONFIRM)
            return self._announce(task_postsend, description)
        # Not the message's id if the caller has chosen that: another's may have the same.
        correlation_id = _ids.make() if subtask.id else description["id"]
        message.properties.update(reply_to="amq.rabbitmq.reply-to", correlation_id=correlation_id)
        try:
            reply = self.kuyruk._publisher.call(message, wait_result)
        except ResultTimeout:  # it was sent, though no answer has come
            self._announce(task_postsend, description)
            raise
        self._announce(task_postsend, description)
        return _decode_reply(reply)

    def subtask(
        self,
        args: Sequence[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        host: str | None = None,
        **options: typing.Unpack[SendOptions],
    ) -> SubTask:
        """Return the task with its arguments, for `Kuyruk.send_tasks_to_queue`. Nothing is sent.

        host and options: as for `send_to_queue`. Raises TypeError or ValueError for what can't be
        sent, but not yet for arguments that aren't JSON.
        """
        _check_names("Task.subtask()", options, _SUBTASK_OPTIONS)
        args = () if args is None else args
        return SubTask(self, args, kwargs or {}, host, **options)._checked()

    def apply(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, with its retries and its time limit, without the broker.

        Returns what it returns, and raises what it raises in the last try. A try that exceeds
        `max_run_time` is interrupted with Timeout where Python can do that. A call in C code
        (`time.sleep`, a database driver) goes on to its end, and a wait for a lock or a queue, too:
        Timeout is raised after it, and a warning is logged meanwhile. A worker gives such a task up
        after WORKER_GRACE seconds; here nobody else could go on.
        """
        watch = _Watch(_APPLY_GRACE, _warn_of_stuck) if self.max_run_time else None
        try:
            return self._run(Run(self, None, None, False), args, kwargs, watch)
        finally:
            if watch is not None:
                watch.close()

    def _run(self, run: Run, args: Any, kwargs: Any, watch: _Watch | None) -> R:
        """Have a run call the function, with all tries. Returns what it returns, raises what has
        come of the last try, and sends the signals that are about all tries together."""
        self._notify(task_preapply, args, kwargs)
        try:
            result = cast(R, _require_result(self, run._call(args, kwargs, watch)))
        except Exception as error:
            self._notify(task_failure, args, kwargs, error)
            raise
        else:
            self._notify(task_success, args, kwargs)
            return result
        finally:
            self._notify(task_postapply, args, kwargs)

    def _notify(self, signal: Signal, args: Any, kwargs: Any, error: Any = None) -> None:
        """Send a signal about a run of this task. Costs nothing if nobody receives it."""
        if signal.receivers:
            facts = {} if error is None else {"exc_info": (type(error), error, error.__traceback__)}
            signal.send(self.kuyruk, task=self, args=args, kwargs=kwargs, **facts)

    def _announce(self, signal: Signal, description: dict[str, Any]) -> None:
        """Send a signal about a message, whose description a receiver may change."""
        if signal.receivers:
            facts = {"args": description["args"], "kwargs": description["kwargs"]}
            signal.send(self.kuyruk, task=self, **facts, description=description)

    def _fits(self, error: BaseException) -> bool:
        """Return whether the arguments fitted the function, by what was raised. If they didn't, no
        try would help: Python has raised a TypeError in the frame that called it (of this module,
        or of a decorator), whose text begins with the function's name."""
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if not isinstance(error, TypeError) or last is None:
            return True
        import inspect

        # `unwrap` shows each decorator's function to `stop`, which returns None: not to stop there.
        decorators: list[Any] = []
        inner = inspect.unwrap(self.f, stop=decorators.append)
        callers = [_call_task.__code__, *(getattr(f, "__code__", None) for f in decorators)]
        is_about_call = _text_of(error, 1000).startswith(f"{_name_of(inner)}() ")
        return last.tb_frame.f_code not in callers or not is_about_call

    def _send_eagerly(self, subtask: SubTask, wait_result: float | None) -> Any:
        """Run it here (EAGER), as if it was sent: what isn't JSON fails, and what JSON changes (a
        tuple, say) is changed. Returns the result, if that is waited for."""
        body = _encode_json(subtask._describe(), f"an argument of task {self.name}")
        description = _decode_task(body)
        result = cast(AnyTask, self).apply(*description.args, **description.kwargs)
        return None if wait_result is None else _decode_reply(_encode_reply(result, None))

    def _prepare(self, subtask: SubTask) -> tuple[dict[str, Any], _Message]:
        """Return the description and the message that are sent. Raises TypeError or ValueError for
        what can't be, and what a receiver of task_presend raises."""
        if self._problem:
            raise TypeError(self._problem)
        description = subtask._describe()
        if task_presend.receivers:
            # A receiver may set headers, too. They are no part of the body.
            description["headers"] = dict(subtask.headers or {})
            self._announce(task_presend, description)
            subtask = subtask._replace(headers=description.pop("headers", None))._checked()
        return description, subtask._message(description)


AnyTask = Task[..., Any]
_TASK_OPTIONS = tuple(Task.__init__.__annotations__)[3:-1]  # without f, kuyruk, queue, return


# --- Failed messages -----------------------------------------------------------------------------

#: Properties that a copy of a message doesn't take along: the time to live was for its queue, the
#: broker checks the user against ours, and the last is reserved.
_LEFT_BEHIND = ("expiration", "user_id", "cluster_id")
#: Headers that it doesn't: by CC and BCC the broker would send copies, the others are its own.
_LEFT_BEHIND_HEADER = r"CC$|BCC$|x-death$|x-(first|last)-death-"
#: The headers of a failed message that we have set, without their "x-kuyruk-".
_OUR_HEADERS = ("failed-at", "failed-on", "failures", "queue", "exception", "value", "traceback")


def _is_flat(value: Any, levels: int = 50) -> bool:
    """Return whether a header is nested so little that whoever gets the copy can decode it, too,
    however near that program is to its limit of recursion."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def _properties_of_copy(
    properties: Iterable[tuple[str, Any]],
    headers: Mapping[str, Any],
    left_behind: Iterable[str] = _LEFT_BEHIND,
) -> dict[str, Any]:
    """Return the properties, with these headers, that a copy of a message takes along."""
    kept = {k: v for k, v in properties if k not in left_behind and v not in (None, "")}
    kept["headers"] = {
        k: v for k, v in headers.items() if not re.match(_LEFT_BEHIND_HEADER, k) and _is_flat(v)
    }
    return {"message_id": _ids.make()} | kept | {"delivery_mode": 2}


def _queue_counts(channel: Channel, queue: str) -> tuple[int, int] | None:
    """Return the numbers of messages that are ready and of consumers; None if there is no such
    queue. Raises amqpstorm's errors."""
    try:
        answer = cast(Any, channel.rpc_request(_Declare(queue=queue, passive=True)))
    except AMQPChannelError as error:
        if error.error_code != 404:
            raise
        channel.open()  # RabbitMQ has closed it
        return None
    return int(answer["message_count"]), int(answer["consumer_count"])


def _read_all(channel: Channel, queue: str) -> Iterator[Any]:
    """Yield the messages that are in a queue now: amqpstorm's, not acknowledged.

    A consumer brings no more unacknowledged messages than its prefetch allows, so that memory is
    bounded; but what the caller leaves alone stays unacknowledged. So one consumer follows another:
    each brings a share of the messages, no more than its prefetch, and the next gets the rest.
    """
    left, _ = _queue_counts(channel, queue) or (0, 0)
    share, largest = FIRST_SHARE, 1
    while left > 0:
        channel.basic.qos(share)
        tag = cast(Any, channel.rpc_request(_Consume(queue=queue)))["consumer_tag"]
        channel.add_consumer_tag(tag)  # amqpstorm yields messages only as long as it knows of one
        came = 0
        # It ends when nothing has come for a while, too: another has taken the rest.
        messages = channel.build_inbound_messages(
            break_on_empty=True, auto_decode=False, empty_timeout=QUIET
        )
        for message in itertools.islice(messages, min(share, left)):
            came, largest = came + 1, max(largest, len(message._body))
            yield message
        channel.basic.cancel(tag)
        left = left - came if came else 0
        # Large messages come a few at a time: a share is held in memory.
        share = max(1, min(MAX_SHARE, SHARE_BYTES // largest))


class FailedMessage:
    """A message in "<queue>.failed", from `Kuyruk.failed_messages`. Anybody may have put it there:
    what isn't known of it is None.

    id: the message's.
    task, args, kwargs: "<module>.<function>", and its arguments.
    exception, value, traceback: the dotted name of the exception's class, its text, and its
        formatted traceback.
    failed_at, failed_on: "2026-01-31T12:00:00+00:00", and "<host>:<pid>" of the worker.
    failures: how often it has failed.
    queue: that in which it was, and to which `requeue` sends it.
    """

    def __init__(self, app: Kuyruk, source: str, message: Any, channel: Channel) -> None:
        """source: the queue whose ".failed" queue it is in. message: amqpstorm's, of channel."""
        self._app = app
        self._source = source
        self._message = message
        self._channel = channel
        self._is_gone = False
        self._headers: dict[str, Any] = message.properties.get("headers") or {}
        known = {name: self._headers.get(f"x-kuyruk-{name}") for name in _OUR_HEADERS}
        text = {k: None if v is None else _text_of(v, 2 * HEADER_TEXT) for k, v in known.items()}
        self.id: str | None = message.properties.get("message_id") or None
        self.task: str | None = None
        self.args: list[Any] | None = None
        self.kwargs: dict[str, Any] | None = None
        with contextlib.suppress(InvalidMessage):
            task = _decode_task(message._body)
            self.id, self.task = task.id or self.id, f"{task.module}.{task.function}"
            self.args, self.kwargs = task.args, task.kwargs
        self.failed_at = text["failed-at"]
        self.failed_on = text["failed-on"]
        times, queue = known["failures"], known["queue"]
        self.failures: int | None = times if type(times) is int else None
        self.queue: str = queue if queue and isinstance(queue, str) else source
        self.exception = text["exception"]
        self.value = text["value"]
        self.traceback = text["traceback"]

    def __repr__(self) -> str:
        return f"<FailedMessage {self.id!r} of task {self.task!r} in {self._source + '.failed'!r}>"

    def requeue(self) -> None:
        """Send it to its queue again as its sender has sent it, as far as that can be known, and
        then take it from "<queue>.failed". Nobody waits for its reply any more.

        If the connection is lost in between it is in both queues. Raises BrokerError and ValueError
        (it can't be sent: it stays), and KuyrukError (it isn't there any more).
        """
        with self._held() as message:
            ours = self._ours().keys() - {"x-kuyruk-failures"}  # max_failures goes on counting
            kept = {key: value for key, value in self._headers.items() if key not in ours}
            left_behind = (*_LEFT_BEHIND, "reply_to", "correlation_id")
            properties = _properties_of_copy(message.properties.items(), kept, left_behind)
            queue = _check_queue_name(self.queue)
            arguments = self._app._queue_arguments(queue)
            # Confirmed, whatever RABBIT_CONFIRM is: until then the failed message is the only one.
            self._app._publisher.send([_Message(queue, message._body, properties, arguments)])
            message.ack()

    def delete(self) -> None:
        """Take it from "<queue>.failed". Raises KuyrukError (it isn't there any more)."""
        with self._held() as message:
            message.ack()

    @contextlib.contextmanager
    def _held(self) -> Iterator[Any]:
        """Yield amqpstorm's message on an open channel, which can acknowledge it. Once the
        iteration that has brought it has ended, RabbitMQ has put it back, and it is looked for."""
        if self._is_gone:
            raise KuyrukError(f"message {self.id!r} was requeued or deleted already")
        if self._channel.is_open:
            yield self._message
        else:
            with contextlib.closing(self._app.failed_messages(self._source)) as messages:
                mine = self._identity()
                same = next((each for each in messages if each._identity() == mine), None)
                if same is None:
                    there = f"{self._source}.failed"
                    raise KuyrukError(f"message {self.id!r} isn't in {there!r} any more")
                yield same._message
        self._is_gone = True

    def _identity(self) -> Any:
        """Return what tells it from others in its queue. Not its id, which may be missing."""
        return self._message._body, self._ours()

    def _ours(self) -> dict[str, Any]:
        """Return the headers that workers have set."""
        return {k: v for k, v in self._headers.items() if k.startswith("x-kuyruk-")}


# --- Kuyruk --------------------------------------------------------------------------------------


class QueueStats(NamedTuple):
    """What `Kuyruk.queue_stats` has seen of a queue. None: there is no such queue.

    waiting: messages that no worker has yet.
    consumers: subscriptions. A worker has one for each queue, and at times more.
    failed: messages in "<queue>.failed".
    """

    waiting: int | None
    consumers: int | None
    failed: int


class WorkerOptions(typing.TypedDict, total=False):
    """Options of a `Worker`: threads, prefetch, max_load, max_run_time, grace, shutdown_timeout,
    reconnect_interval, priority, max_crashes. What each means, and its unit, is said at the key of
    `Config` that is called so (`grace`: WORKER_GRACE); None: the value of that key."""

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
    """A filter for a handler of logging's: it gives each record `task` (the name), `task_id` and
    `queue`, of `current_task()`; None outside of a task. What a record has as `extra` stays.

        handler.addFilter(kuyruk.LogContext())
        handler.setFormatter(logging.Formatter("%(task_id)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Give a record the three attributes. Returns whether it passes, as `logging.Filter`: True
        unless this was made with the name of other loggers."""
        run = current_task()
        facts = (None, None, None) if run is None else (run.task.name, run.id, run.queue)
        for name, value in zip(("task", "task_id", "queue"), facts, strict=True):
            vars(record).setdefault(name, value)
        return bool(super().filter(record))


class Kuyruk:
    """An application: its configuration, its tasks, and its connection for sending.

    config: a `Config`; None for the defaults. Nothing is connected before it is used. As a context
    manager it closes its connection at the end.
    extensions: a dict for extensions: what they keep, by their names.
    packages: the names of top-level packages (or modules): a message makes a worker import nothing
    outside of them.
    """

    Reject: ClassVar = Reject
    Discard: ClassVar = Discard

    def __init__(self, config: Config | None = None) -> None:
        self.extensions: dict[str, Any] = {}
        self.packages: set[str] = set()
        #: By their names. Those that can't be sent (`Task._problem`) aren't in it.
        self._tasks: dict[str, AnyTask] = {}
        #: Those of the tasks, in the order in which they were named.
        self._queues: dict[str, None] = {}
        #: By queue: seconds that its longest task may run, with all its tries (math.inf: no limit).
        self._longest: dict[str, float] = {}
        self._publisher = _Publisher(Config())
        self.config = self._publisher.config if config is None else config
        # Close it when this is collected, or the interpreter exits. The publisher doesn't refer to
        # this object, so nothing keeps that from being collected.
        weakref.finalize(self, self._publisher.close)

    @property
    def config(self) -> Config:
        """The settings. Another `Config` that takes their place counts from the next send on, and
        for workers that are made then."""
        return self._publisher.config

    @config.setter
    def config(self, config: Config) -> None:
        how = " (made by from_dict and others, or with RABBIT_URL set)"
        _require("config", config, Config, how)
        self._publisher.config = config
        self._publisher.close()

    def __enter__(self) -> Kuyruk:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection for sending. Another send opens it again.

        Whoever waits for a result in another thread gets a BrokerError; what is being sent still
        arrives.
        """
        self._publisher.close()

    @typing.overload
    def task(self, queue: Callable[P, R]) -> Task[P, R]: ...

    @typing.overload
    def task(
        self,
        queue: str = "kuyruk",
        *,
        retry: int = 0,
        max_run_time: float | None = None,
        fail_delay: float = 0,
        reject_delay: float = 0,
        max_fail_delay: float | None = None,
        max_failures: int | None = None,
        throws: type[BaseException] | Iterable[type[BaseException]] = (),
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(self, queue: Any = "kuyruk", **options: Any) -> Any:
        """Decorate a function into a `Task`: `@app.task` or `@app.task(queue="x", retry=2)`, with
        Task's options.

        Raises as `Task`, and ValueError if another function is a task of that name already.
        """

        _check_names("Kuyruk.task()", options, ("queue", *_TASK_OPTIONS))
        queue, function = ("kuyruk", queue) if callable(queue) else (_check_queue_name(queue), None)

        def decorate(f: Callable[P, R]) -> Task[P, R]:
            task = Task(f, self, queue, **options)
            if not task._problem:
                self._add(task)
            self._queues[task.queue] = None
            return task

        return decorate if function is None else decorate(function)

    def remote(self, name: str, queue: str = "kuyruk") -> AnyTask:
        """Return a task by its name ("pkg.tasks.add"), for a program that doesn't have its code:
        it can be sent, and not run here. Raises ValueError for what is no such name."""
        module, _, function = name.rpartition(".") if isinstance(name, str) else ("", "", "")
        parts = [*module.split("."), function]
        if not all(map(str.isidentifier, parts)) or module in _MAIN or len(name) > MAX_TASK_NAME:
            raise ValueError(f"a task's name is '<module>.<function>': not {_shown('name', name)}")

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            raise TypeError(f"task {name} can't run here: Kuyruk.remote makes it without its code")

        stand_in.__module__, stand_in.__name__, stand_in.__qualname__ = module, function, function
        return Task(stand_in, self, queue)

    def _add(self, task: AnyTask) -> None:
        """Make a task known to workers. Raises ValueError if its name is another function's."""
        f, other = task.f, self._tasks.get(task.name)
        if other is not None and other.f is not f:
            import inspect

            codes = [getattr(inspect.unwrap(each), "__code__", None) for each in (other.f, f)]
            places = [c and f"{os.path.realpath(c.co_filename)}:{c.co_firstlineno}" for c in codes]
            # A module may be imported again: then the function is at the same place, and was
            # compiled anew. Two that a factory has made share their code; and what was made by
            # exec ("<string>") has no place that would tell.
            is_exec = codes[0] is not None and codes[0].co_filename.startswith("<")
            if codes[0] is codes[1] or places[0] != places[1] or is_exec:
                raise ValueError(
                    f"two functions are a task called {task.name}, at {places[0]} and at"
                    f" {places[1]}: a worker finds a task by its name, so give them two"
                )
        self._tasks[task.name] = task
        self.packages.add(task.name.partition(".")[0])
        limit = (task.retry + 1) * (task.max_run_time or math.inf)
        self._longest[task.queue] = max(limit, self._longest.get(task.queue, 0))
        # Pickle looks for a function by its qualified name in its module. That name is going to be
        # the task's, and "add.f" is the function: an attribute of the task.
        named = getattr(sys.modules.get(f.__module__), f.__name__, None)
        if isinstance(f, types.FunctionType) and named is not f:
            f.__qualname__ = f"{f.__name__}.f"

    def send_tasks_to_queue(self, subtasks: Iterable[SubTask]) -> None:
        """Send many in one go; returns when the broker has confirmed all.

        Raises TypeError or ValueError before anything is sent; BrokerError, whose `unconfirmed`
        lists the subtasks that aren't known to have arrived.
        """
        subtasks = list(subtasks) if isinstance(subtasks, Iterable) else [subtasks]
        for each in subtasks:
            if not isinstance(each, SubTask):
                what = "send_tasks_to_queue takes a list of what a task's subtask(...) returns"
                raise TypeError(f"{what}: not {_shown('subtasks', each)}")
            each._checked()  # it may have been made by hand
        if self.config.EAGER:
            for subtask in subtasks:
                subtask.task._send_eagerly(subtask, None)
            return
        prepared = [subtask.task._prepare(subtask) for subtask in subtasks]
        messages = [message for _, message in prepared]
        failure = None
        try:
            self._publisher.send(messages, self.config.RABBIT_CONFIRM)
        except BrokerError as error:
            failure = error
        # By identity: two messages of a batch may be equal.
        unconfirmed = set(map(id, failure.unconfirmed)) if failure is not None else ()
        is_sent = [id(message) not in unconfirmed for message in messages]
        for subtask, (description, _), sent in zip(subtasks, prepared, is_sent, strict=True):
            if sent:
                subtask.task._announce(task_postsend, description)
        if failure is not None:
            failure.unconfirmed = [s for s, sent in zip(subtasks, is_sent, strict=True) if not sent]
            raise failure

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a new `amqpstorm.Connection`, closed on exit. Raises
        amqpstorm.AMQPConnectionError."""
        # select() fails for descriptors from 1024 on. Not every system has the other.
        poller = "poll" if hasattr(select, "poll") else "select"
        options = self.config._connection_options() | {"poller": poller}
        connect = lambda host, port: _PlainConnection(host, port, options)  # noqa: E731
        with _first_that_answers(self.config, connect) as connection:
            sock = cast(socket.socket, connection.socket)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection

    @contextlib.contextmanager
    def channel(self) -> Iterator[Channel]:
        """Yield a new `amqpstorm.Channel` on a new connection, both closed on exit. Raises
        amqpstorm.AMQPConnectionError."""
        with self.connection() as connection, connection.channel() as channel:
            yield channel

    def worker(
        self, queues: Iterable[str] | None = None, **options: typing.Unpack[WorkerOptions]
    ) -> Worker:
        """Return a `Worker` for this application, of queues (None: those of its tasks), with
        `WorkerOptions`."""
        return Worker(self, queues, **options)

    def failed_messages(self, queue: str) -> Generator[FailedMessage, None, None]:
        """Iterate over the messages that are in "<queue>.failed" now, in their order.

        What isn't requeued or deleted stays; until the iteration ends nobody else sees what it has
        brought. Memory is bounded, however many there are. "name.localhost" stands for
        "name.<hostname>". Raises ValueError (no queue's name) and amqpstorm's errors.
        """
        # The name is checked now, not when the iteration begins.
        return self._iterate_failed(_resolve_host(_check_queue_name(queue)))

    def _iterate_failed(self, queue: str) -> Generator[FailedMessage, None, None]:
        # A GeneratorExit must not reach amqpstorm, which would log it as an error.
        with self.channel() as channel, contextlib.suppress(GeneratorExit):
            for message in _read_all(channel, f"{queue}.failed"):
                yield FailedMessage(self, queue, message, channel)

    def queue_stats(self, queues: Iterable[str] | None = None) -> dict[str, QueueStats]:
        """Return what is in the queues of the tasks, or in those named, by their names. It is asked
        for by passive declarations, so no management plugin is needed.

        "name.localhost" stands for "name.<hostname>". Raises ValueError (no queue's name) and
        amqpstorm's errors.
        """
        names = _queue_names(self._queues if queues is None else queues)
        stats = {}
        with self.channel() as channel:
            for name in names:
                there = _queue_counts(channel, name)
                failed = _queue_counts(channel, f"{name}.failed")
                waiting, consumers = there or (None, None)
                stats[name] = QueueStats(waiting, consumers, failed[0] if failed else 0)
        return stats

    def _queue_arguments(self, queue: str) -> dict[str, Any]:
        """Return the arguments with which a queue is declared if it is missing. If its tasks may
        take long, but not for ever, RabbitMQ is told how long to wait for their acknowledgements
        (from 3.12 on; earlier ones ignore that)."""
        arguments = _undropped(self.config.QUEUE_ARGUMENTS)
        longest = self._longest.get(queue, 0)
        # "<queue>.<host>" has the tasks of "<queue>"; a host's name may have dots.
        while "." in queue:
            queue = queue.rpartition(".")[0]
            longest = max(longest, self._longest.get(queue, 0))
        # Twice: a message may be in hand while another runs to its end before it begins.
        longest = 2 * (longest + self.config.WORKER_GRACE)
        if not CONSUMER_TIMEOUT < longest < MAX_TTL / 1000:
            return arguments
        return {"x-consumer-timeout": int(_milliseconds(longest)), **arguments}

    def _find_task(self, module: str, function: str) -> AnyTask:
        """Return the task that a message names; its module is imported if need be. Raises
        InvalidMessage.

        Anybody who can send can make a worker do this. So it imports only modules of the packages
        that tasks are in, and its cost doesn't depend on how many tasks there are.
        """
        name = f"{module}.{function}"
        if len(name) > MAX_TASK_NAME:
            raise InvalidMessage(f"no task's name has {len(name)} characters: {name[:100]!r}...")
        if name not in self._tasks:
            what = f"no task {name!r}"
            if module.partition(".")[0] not in self.packages:
                known = ", ".join(sorted(self.packages)) or "it has none"
                where = f"{module!r} is in no package of this worker"
                raise InvalidMessage(f"{what}, and {where} ({known})")
            if module.rpartition(".")[2] == "__main__" and module not in sys.modules:
                raise InvalidMessage(f"{what}: {module!r} is a program: no message runs it")
            try:
                importlib.import_module(module)
            except BaseException as error:
                text = f"can't import the module of task {name!r}: {error!r}"
                raise InvalidMessage(text) from error
        if name not in self._tasks:
            raise InvalidMessage(f"module {module!r} has no task {function!r}")
        return self._tasks[name]


# --- Worker: what becomes of a message -----------------------------------------------------------


class _Verdict(NamedTuple):
    """What becomes of a message whose task has ended."""

    #: Which of the worker's counts (`Worker.stats`) goes up.
    tally: str
    #: ack: it is done with. requeue: it goes back to its queue. fail: it goes to "<queue>.failed".
    #: leave: it isn't ours any more, and the broker delivers it again.
    action: Literal["ack", "requeue", "fail", "leave"]
    #: Whether a reply is sent, if the message asks for one. Not if its next run will send one.
    reply: bool
    #: Seconds until it is back in its queue (requeue).
    delay: float = 0


_BACK = _Verdict("requeued", "requeue", reply=False)
_DONE = _Verdict("succeeded", "ack", reply=True)


def _decide(
    task: AnyTask | None,
    error: BaseException | None,
    fits: bool = True,
    lost: bool = False,
    failures: int = 0,
    jitter: float = 0,
) -> _Verdict:
    """Return what becomes of the message, by what its task raised (None: it returned).

    task: None when none was found; fits: whether the arguments fitted the function; lost: it isn't
    ours any more; failures: how often it has failed before; jitter: from 0 to 1.
    """
    if lost:
        return _Verdict("lost", "leave", reply=False)
    if error is None:
        return _DONE
    if isinstance(error, Shutdown):  # also when it has cut the import of a task's module
        return _BACK
    if task is None or not fits:
        return _Verdict("failed", "fail", reply=True)
    if isinstance(error, Reject):
        delay = task.reject_delay if error.delay is None else error.delay
        return _Verdict("rejected", "requeue", reply=False, delay=delay)
    if isinstance(error, Discard):
        return _Verdict("discarded", "ack", reply=True)
    tally = "timed_out" if isinstance(error, Timeout) else "failed"
    was_last = task.max_failures is not None and failures + 1 >= task.max_failures
    if not task.fail_delay or was_last or isinstance(error, task.throws):
        return _Verdict(tally, "fail", reply=True)
    delay = _growing_delay(task.fail_delay, task.max_fail_delay, failures + 1, jitter)
    return _Verdict(tally, "requeue", reply=True, delay=delay)


class _Settlement(NamedTuple):
    """What is to be sent for a message, in this order: the reply, a copy of the message for another
    queue, and the frame that settles the delivery. What has been sent is taken from it (None), so
    that it can be tried again where it has failed."""

    reply: _Message | None
    copy: _Message | None
    frame: Literal["ack", "requeue", "reject", "leave"]


_NOTHING_LEFT = _Settlement(None, None, "leave")


def _plan(
    delivery: _Delivery, verdict: _Verdict, result: Any, error: BaseException | None, config: Config
) -> _Settlement:
    """Return what is to be sent to carry the verdict out. Raise whatever the user's objects raise
    when they are described: the result, the exception."""
    reply, copy, frame = None, None, cast(Any, verdict.action)
    if verdict.reply and delivery.reply_to is not None:
        reply = _reply_message(delivery, result, error)
    if verdict.action == "fail" and config.FAILED_TTL is not None:
        headers = _failure_headers(delivery, cast(BaseException, error))
        arguments = _derived(config.QUEUE_ARGUMENTS)
        copy = _forwarded(delivery, f"{delivery.queue}.failed", headers, arguments)
        copy.properties["expiration"] = _milliseconds(config.FAILED_TTL)
    elif verdict.action == "fail":
        frame = "reject"  # for the broker's own dead-letter policy
    # What goes back at once needs no copy: unless its queue was deleted, the broker has it.
    elif verdict.action == "requeue" and (verdict.delay or delivery.is_only_copy):
        # With a reply it has failed, and that is counted; without it was rejected, say.
        headers = _failure_headers(delivery, error) if error and verdict.reply else {}
        arguments = _undropped(dict(config.QUEUE_ARGUMENTS))
        copy = _forwarded(delivery, delivery.queue, headers, arguments)
        if verdict.reply:  # the caller has its answer: the next run is to send none
            copy.properties.pop("reply_to", None)
        if verdict.delay:
            copy = _put_off(copy, verdict.delay, config.QUEUE_ARGUMENTS)
    return _Settlement(reply, copy, "ack" if copy is not None else frame)


def _reply_message(delivery: _Delivery, result: Any, error: BaseException | None) -> _Message:
    """Return the reply: the result, or the exception; or why the result can't be sent."""
    try:
        body = _encode_reply(result, error)
    except Exception as unfit:  # what the task has returned isn't JSON, and it did run
        text = "Task %s.%s [%s] has returned what can't be sent: %s"
        task = cast(_Description, delivery.task)
        arguments = task.module, task.function, task.id, _text_of(unfit, 1000)
        _log_aside(logging.ERROR, text, *arguments, extra=delivery.extra)
        body = _encode_reply(None, unfit)
    properties = {"content_type": "application/json"}
    if delivery.properties.correlation_id:
        properties["correlation_id"] = delivery.properties.correlation_id
    return _Message(cast(str, delivery.reply_to), body, properties, {}, mandatory=False)


def _forwarded(
    delivery: _Delivery, queue: str, headers: dict[str, Any], arguments: dict[str, Any]
) -> _Message:
    """Return the delivery's message, for another queue, with more headers."""
    original = delivery.properties
    properties = _properties_of_copy(original or (), delivery.headers)
    if getattr(original, "expiration", None) not in (None, ""):
        properties["headers"]["x-kuyruk-expiration"] = original.expiration
    properties["headers"] |= headers
    return _Message(queue, delivery.body, properties, arguments)


def _plain_copy(message: _Message) -> _Message:
    """Return a message whose properties can't be encoded, with our own of its headers only: what is
    left out was its sender's, and is lost."""
    kept = message.properties.get("headers", {}).items()
    headers = {k: v for k, v in kept if k.removeprefix("x-kuyruk-") in _OUR_HEADERS}
    plain = {"headers": headers, "delivery_mode": 2, "message_id": _ids.make()}
    return message._replace(properties=plain)


def _headers_of(properties: Any) -> Mapping[str, Any]:
    """Return the headers in pamqp's properties; None: they couldn't be decoded, or there are
    none."""
    return getattr(properties, "headers", None) or {}


def _failures_in(headers: Mapping[str, Any] | None) -> int:
    """Return how often a message has failed. Anybody can set the header: nonsense counts as 0."""
    times = (headers or {}).get("x-kuyruk-failures")
    return times if type(times) is int and 0 <= times < 1_000_000_000 else 0


def _failure_headers(delivery: _Delivery, error: BaseException) -> dict[str, Any]:
    """Return when, where, why and how often it has failed."""
    return {
        "x-kuyruk-failed-at": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "x-kuyruk-failed-on": f"{socket.gethostname()}:{os.getpid()}",
        "x-kuyruk-failures": 1 + delivery.failures,
        "x-kuyruk-queue": delivery.queue,
        "x-kuyruk-exception": _exception_name(error),
        "x-kuyruk-value": _text_of(error, HEADER_TEXT),
        "x-kuyruk-traceback": _format_traceback(error, HEADER_TEXT),
    }


# --- Worker: deliveries, and the channels that they come by --------------------------------------

#: States of a delivery. It has arrived; a pool thread has begun with it;
WAITING, RUNNING = "waiting", "running"
#: it is decided who settles it: that thread, or who gives it up; its copy can't be forwarded now;
CLAIMED, KEPT = "claimed", "kept"
#: it is settled; or its channel was lost before it began.
SETTLED, LOST = "settled", "lost"


class _Delivery:
    """A message in our hands, until it is settled. The pool changes its state, with its lock."""

    __slots__ = (
        "arrived_at", "body", "cause", "channel", "consumer", "properties", "redelivered", "run",
        "settled_at", "settlement", "state", "tag", "task", "thread",
    )  # fmt: skip

    def __init__(
        self,
        channel: _ConsumerChannel,
        consumer: _Consumer,
        method: Any,
        properties: Any,
        body: bytes,
    ) -> None:
        self.channel = channel
        self.consumer = consumer
        self.state = WAITING
        self.arrived_at = time.monotonic()
        self.settled_at = math.inf  #: time.monotonic()
        self.tag: int = method.delivery_tag
        self.redelivered: bool = method.redelivered
        #: pamqp's Basic.Properties, or None if they couldn't be decoded.
        self.properties = properties
        self.body = body
        #: The task that it names, once it is decoded; and its run, once that begins.
        self.task: _Description | None = None
        self.run: Run | None = None
        #: The ident of the pool thread that has it, or had it last. With the pool's lock.
        self.thread = 0
        #: What has interrupted it before its task began. With the pool's lock.
        self.cause: BaseException | None = None
        #: What is still to be sent for it, once its verdict is known.
        self.settlement: _Settlement

    def __str__(self) -> str:
        task = self.task
        if task is None:
            return "A message"
        text = f"Task {task.module}.{task.function} [{task.id}]"
        # Anybody can choose these: no false lines, control codes or megabytes in the log.
        return text if text.isprintable() and len(text) < 2000 else repr(text[:2000])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self} from {self.queue!r}, {self.state}>"

    @property
    def queue(self) -> str:
        """The queue that it came from."""
        return self.channel.queue

    @property
    def key(self) -> str:
        """What deaths of processes are counted by: the message's id, or else what is in it."""
        if self.task is not None and self.task.id:
            return self.task.id
        import hashlib

        return "sha256:" + hashlib.sha256(self.body).hexdigest()

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers of its message."""
        return _headers_of(self.properties)

    @property
    def failures(self) -> int:
        """How often it has failed before."""
        return _failures_in(self.headers)

    @property
    def reply_to(self) -> str | None:
        """Where its sender waits for a reply; None: nowhere."""
        return getattr(self.properties, "reply_to", None) or None

    @property
    def is_only_copy(self) -> bool:
        """Whether its queue was deleted: then the broker has the message no more."""
        return self.channel.is_orphaned

    @property
    def is_lost(self) -> bool:
        """Whether it isn't ours any more: the broker delivers it again."""
        return self.channel.why_lost is not None and not self.is_only_copy

    @property
    def extra(self) -> dict[str, Any]:
        """What log records about it have as attributes."""
        task = self.task
        name = task and f"{task.module}.{task.function}"
        return {"task": name, "task_id": task and task.id, "queue": self.queue}

    def send_frame(self, frame: str) -> None:
        """Have the frame of a `_Settlement` sent, by the channel that delivered it: on any other
        the tag would be another message's."""
        if self.channel.why_lost is not None:
            if not self.is_only_copy and frame != "leave":
                text = "%s from %r isn't ours any more: it will be delivered again"
                _log_aside(logging.WARNING, text, self, self.queue, extra=self.extra)
        elif frame == "ack":
            data = _ack_frame(self.channel.id, self.tag)
            self.channel.connection.post_soon(self.channel, data)
        elif frame != "leave":
            # Not Basic.Reject: from RabbitMQ 4.3 on, that counts towards a quorum queue's limit.
            back = commands.Basic.Nack(delivery_tag=self.tag, requeue=True)
            reject = commands.Basic.Reject(delivery_tag=self.tag, requeue=False)
            data = _marshal(self.channel.id, back if frame == "requeue" else reject)
            self.channel.connection.post_soon(self.channel, data)


class _Consumer:
    """A subscription to a queue. A channel may have several at once: see `_adjust_prefetch`."""

    __slots__ = ("held", "prefetch")

    def __init__(self, prefetch: int) -> None:
        #: How many of its messages may be unacknowledged. RabbitMQ fixes that when it begins.
        self.prefetch = prefetch
        self.held = 0  #: How many are. With the pool's lock.


class _ConsumerChannel(_Channel):
    """Consumes one queue. The supervisor uses it; the reader calls what begins with `on_`.

    deliver: called with each delivery. on_trouble: called when the broker has closed the channel,
    or ended a consumer. Both in the reader, so they must not wait.
    """

    def __init__(
        self,
        connection: _Connection,
        queue: str,
        config: Config,
        deliver: Callable[[_Delivery], object],
        on_trouble: Callable[[_ConsumerChannel], object],
    ) -> None:
        self.queue = queue
        self._config = config
        self._deliver = deliver
        self._on_trouble = on_trouble
        #: Those that the broker delivers to, by their tags.
        self.consumers: dict[str, _Consumer] = {}
        self._cancelled: list[_Consumer] = []  # those that we have ended, while they hold messages
        #: The queue was deleted: what is in our hands is the only copy.
        self.is_orphaned = False
        self.kept = 0  #: How many messages can't be forwarded. With the pool's lock.
        self._serial = itertools.count(1)
        super().__init__(connection)

    @property
    def capacity(self) -> int:
        """How many messages it may hold for threads to run: as many as its consumers may, and those
        that cancelled ones still do; without those that are kept, up to MAX_KEPT. By the
        supervisor."""
        self._cancelled = [c for c in self._cancelled if c.held]
        left = sum(c.held for c in self._cancelled)
        return left + sum(c.prefetch for c in self.consumers.values()) - min(self.kept, MAX_KEPT)

    @property
    def is_full(self) -> bool:
        """Whether its queue may have messages that it can't get: all of its consumers hold what
        they may. With the pool's lock."""
        # A copy: the supervisor may be adding a consumer.
        return all(c.held >= c.prefetch for c in tuple(self.consumers.values()))

    def add(self, prefetch: int, is_last: bool = False) -> None:
        """Begin one more consumer. is_last: it gets only what no other consumer can take, here or
        in another worker. Raise AMQPError."""
        number = next(self._serial)
        tag = f"{socket.gethostname()}:{os.getpid()}:{self.id}:{number}"[-255:]
        priority = (self._config.WORKER_PRIORITY or 0) - is_last
        arguments: Any = {"x-priority": priority} if priority else {}
        # First: its first messages may be read before its answer is waited for.
        consumer = self.consumers[tag] = _Consumer(min(prefetch, 0xFFFF))
        self._ask(commands.Basic.Qos(prefetch_count=consumer.prefetch))
        self._ask(_Consume(queue=self.queue, consumer_tag=tag, arguments=arguments))

    def cancel(self, tags: Iterable[str]) -> None:
        """End consumers. When this returns nothing more will be delivered to them: RabbitMQ answers
        after the last message, and the reader hands them on in this order. Raise AMQPError."""
        for tag in tags:
            self._ask(commands.Basic.Cancel(consumer_tag=tag))
            self._cancelled.append(self.consumers.pop(tag))

    def _ask(self, frame: Any) -> None:
        """Send a method, and wait for its answer. Raise AMQPError."""
        self.request(frame, time.monotonic() + self._config.RABBIT_PUBLISH_TIMEOUT)

    def on_content(self, method: Any, properties: Any, body: bytes) -> None:
        """Hand a delivery on, with the consumer that it is counted for."""
        consumer = self.consumers[method.consumer_tag]
        self._deliver(_Delivery(self, consumer, method, properties, body))

    def on_method(self, frame: Any) -> None:
        """Report that the broker has ended a consumer."""
        if frame.name == "Basic.Cancel":  # the queue was deleted, or its leader has moved
            self._on_trouble(self)

    def on_lost(self) -> None:
        """Report that the broker has closed this channel."""
        self._on_trouble(self)


# --- Worker: how many messages it holds ----------------------------------------------------------


def _patience(stalled: float) -> float:
    """Return for how many seconds a message may wait before it is handed back.

    stalled: seconds for which no task has begun. So it grows with what the tasks take, to a
    twentieth of that, about: each time that a message is handed back and comes again costs RabbitMQ
    something, and while long tasks run that must not happen too often.
    """
    return min(max(HANDBACK_AFTER, stalled / 20), LONGEST_PATIENCE)


class _Prefetch:
    """Decides how many messages a worker holds beyond one for each thread, of all queues together.

    It grows with the rate at which tasks end: short ones need a stock, or threads wait for the
    broker. It falls to 0 as soon as a message waits too long, whatever the rate was: tasks have
    become long then, and other workers may have free threads.
    """

    def __init__(self, threads: int) -> None:
        self.size = 0
        #: It is this or more, or 0. Where less would do, tasks take far longer than the way to the
        #: broker. And long ones, if they end in step or come among short ones, seem to be many for
        #: a moment.
        self._least = threads
        self._rate = 0.0  # tasks per second, smoothed
        self._looked_at = -math.inf  # time.monotonic()
        self._ended = 0  # how many tasks had ended then

    def look(self, now: float, ended: int, waited: float, patience: float) -> int:
        """Return the size.

        now: time.monotonic(). ended: how many tasks have ended so far. waited: seconds for which a
        message has waited and none has begun. patience: seconds that this may last.
        """
        seconds, count = now - self._looked_at, ended - self._ended
        self._looked_at, self._ended = now, ended
        # The last look is long ago, since there was nothing to do, or this process stood still (and
        # what came meanwhile had to wait): that says nothing about tasks.
        if seconds > 3 * LOOK and waited <= seconds + HANDBACK_AFTER:
            return self.size
        if waited > patience:
            self.size, self._rate = 0, 0.0
        else:
            self._rate = (self._rate + count / seconds) / 2
            wanted = min(int(self._rate * PREFETCH_SECONDS), MAX_PREFETCH)
            # In large steps: each costs the broker one more consumer.
            if wanted >= max(1.5 * self.size, self._least):
                self.size = wanted
        return self.size


class Journal:
    """Where a worker notes which messages run, and learns which ran when a worker process died.

    This one keeps nothing. The command line gives its workers one that outlives their processes
    (`Worker.journal`). id: the message's, or a hash of its body if it has none.
    crashes: by id, how many processes have died while the message ran, and for how many of these
    deaths it was to blame: it was the only suspect, or ran alone.
    """

    crashes: Mapping[str, tuple[int, int]] = types.MappingProxyType({})

    def begin(self, id: str) -> None:
        """Note that the message begins to run. This and `end` are called by one thread at a time,
        with a lock of the worker's: they must not block."""

    def end(self, id: str) -> None:
        """Note that it runs no longer. May be called again."""

    def count(self, id: str) -> tuple[int, int]:
        """Return its `crashes`, as they are now. May wait for a moment."""
        return self.crashes.get(id, (0, 0))

    def clear(self, id: str) -> None:
        """Forget its crashes: it has ended well, or for good."""


# --- Worker: settling, and the threads that run tasks --------------------------------------------


class _Settler:
    """Sends what settles deliveries: in the thread that calls it, and again and again in a thread
    of its own what can't be sent at once.

    The delivery is kept meanwhile, and its task doesn't run again. Copies for one queue wait for
    each other: one attempt in each pause is enough to see whether it works again. What is wrong
    with one queue delays nothing else. The thread also has jobs (`do`) that would hold others up.
    """

    def __init__(
        self,
        publisher: _Publisher,
        on_kept: Callable[[_Delivery], object],
        on_settled: Callable[[_Delivery], object],
    ) -> None:
        self._publisher = publisher
        self._on_kept = on_kept
        self._on_settled = on_settled
        #: Guards what follows; notified of a job, of the first delivery that is kept, and of the
        #: end. Nothing is sent, and no other lock is waited for, while it is held.
        self._changed = threading.Condition(threading.Lock())
        self._jobs: collections.deque[Callable[[], object]] = collections.deque()
        #: By the queue that copies are for: time.monotonic() of the next attempt, the pauses after
        #: that, and the deliveries, in their order.
        self._kept: dict[str, tuple[float, Iterator[float], collections.deque[_Delivery]]] = {}
        self.count = 0  #: Of kept deliveries.
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kuyruk-settler", daemon=True)

    def start(self) -> None:
        """Start its thread. Raise RuntimeError if none can be started."""
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether its thread lives, and nothing is kept."""
        return self._thread.is_alive() and not self.count

    def settle(self, delivery: _Delivery, settlement: _Settlement) -> None:
        """Reply, then forward, then settle, in the calling thread. Doesn't raise; what can't be
        forwarded is kept. By who has claimed the delivery."""
        delivery.settlement = settlement
        self.attempt(self._send, delivery)

    def _send(self, delivery: _Delivery) -> None:
        """Send what is left of a settlement. When this raises it can be called again: what has been
        sent is taken from the settlement at once, and isn't sent twice."""
        reply, copy, frame = delivery.settlement
        if reply is not None:
            self._reply(reply)
            delivery.settlement = _Settlement(None, copy, frame)
        if copy is not None:
            # Looked at once: by the time that this is sent another may be kept for the same queue.
            has_to_wait = copy.queue in self._kept
            error = "others wait before it" if has_to_wait else self._try_to_send(copy)
            if error is not None:
                self._keep(delivery, copy.queue, error)
                return
            delivery.settlement = _Settlement(None, None, frame)
        delivery.send_frame(frame)
        delivery.settlement = _NOTHING_LEFT
        self._on_settled(delivery)

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function, and return what it returns. If it raises, which is a defect or bad luck
        (no memory, no thread), this returns None, and the settler's thread calls it again and again
        until it doesn't raise."""
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            self.do(functools.partial(function, *args, **kwargs))
            text = "Defect where a message is settled; it will be tried again"
            _log_aside(logging.ERROR, text, error=error)
            return None

    def do(self, job: Callable[[], object]) -> None:
        """Have something done in the settler's thread, soon; and again if it raises."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread, when it has done its jobs; wait for CLOSE_TIMEOUT seconds. What is kept
        goes back with its connection."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT)
        if self.count:
            text = "%s couldn't be forwarded: the worker stops, and they will be delivered again"
            _log_aside(logging.ERROR, text, _count(self.count, "message"))

    def drop(self, is_lost: Callable[[_Delivery], bool]) -> None:
        """Forget the kept deliveries that aren't ours any more."""
        with self._changed:
            for queue, (_, _, kept) in list(self._kept.items()):
                for delivery in [delivery for delivery in kept if is_lost(delivery)]:
                    kept.remove(delivery)  # in place: an attempt with the first may be under way
                    self.count -= 1
                if not kept:
                    del self._kept[queue]

    def _reply(self, message: _Message) -> None:
        """Send a reply, and return when the broker has it. This comes before the message is
        settled: if the process dies in between, that runs again, and the caller has its answer
        either way. A reply that can't be sent is lost."""
        error = self._try_to_send(message)
        if error is not None and len(message.body) > LARGE_REPLY:  # perhaps that is why
            text = f"the result takes {len(message.body)} bytes, and can't be sent: {error}"
            body = _encode_reply(None, KuyrukError(text))
            self._try_to_send(message._replace(body=body))
        if error is not None:
            _log_aside(logging.ERROR, "Can't send a reply: %s", error)

    def _try_to_send(self, message: _Message) -> BaseException | None:
        """Return why it can't be sent; None: the broker has it."""
        try:
            try:
                self._publisher.send([message])
            except BrokerError:
                raise
            except Exception as error:  # its properties can't be encoded: ValueError, TypeError...
                text = "A message to %r loses its sender's properties: %s"
                _log_aside(logging.WARNING, text, message.queue, error)
                self._publisher.send([_plain_copy(message)])
        except BaseException as error:
            # It may be kept: its frames, and what is in them, needn't live as long.
            error.__traceback__ = None
            return error
        return None

    def _keep(self, delivery: _Delivery, queue: str, error: object) -> None:
        """Keep a delivery whose copy for a queue can't be sent now, and log why, once for each
        queue."""
        # First: as soon as it is in `_kept` the settler's thread may settle it.
        self._on_kept(delivery)
        with self._changed:
            is_first = queue not in self._kept
            if is_first:
                pauses = _pauses(LONGEST_FORWARD_PAUSE)
                due = time.monotonic() + next(pauses)
                self._kept[queue] = due, pauses, collections.deque()
            self._kept[queue][2].append(delivery)
            self.count += 1
            self._changed.notify()
        if is_first:
            text = "Can't forward a message from %r; it is kept, trying again: %s"
            _log_aside(logging.ERROR, text, delivery.queue, error, extra=delivery.extra)

    # -- its thread

    def _loop(self) -> None:
        _keep_running(self._step)

    def _step(self) -> bool:
        """Do one thing. Return whether it was the last."""
        job: Callable[[], object] | None = None
        with self._changed:
            due, queue = min(
                ((due, queue) for queue, (due, _, _) in self._kept.items()), default=(math.inf, "")
            )
            if self._jobs:
                job = self._jobs.popleft()
            elif self._closed:
                return True
            elif due > time.monotonic():
                self._changed.wait(_left(due))
                return False
        if job is None:
            self._retry(queue)
            return False
        try:
            job()
        except BaseException:
            if not self._closed:
                self.do(job)  # after the others
            raise
        return False

    def _retry(self, queue: str) -> None:
        """Try the oldest copy for a queue. The others follow if that works."""
        with self._changed:
            if queue not in self._kept:
                return  # all were lost meanwhile
            _, pauses, kept = self._kept[queue]
            delivery = kept[0]
        settlement = delivery.settlement
        error = self._try_to_send(cast(_Message, settlement.copy))
        with self._changed:
            if not kept or kept[0] is not delivery:
                return  # it was lost meanwhile (`drop`)
            if error is not None:
                self._kept[queue] = time.monotonic() + next(pauses), pauses, kept
                return
            kept.popleft()
            self.count -= 1
            self._kept[queue] = -math.inf, pauses, kept  # it works: the next follows at once
            if not kept:
                del self._kept[queue]
        self.settle(delivery, settlement._replace(copy=None))


#: What deliveries are counted by (`Worker.stats`): all, and what became of them (`_Verdict.tally`).
_TALLIES = (
    "received", "succeeded", "failed", "timed_out", "rejected", "discarded", "requeued", "lost",
)  # fmt: skip


class _Pool:
    """The threads that run tasks, and all deliveries in hand: the only place where the state of a
    delivery changes.

    WORKER_THREADS loops on a `ThreadPoolExecutor`; all wait on one condition for what is delivered.
    A thread that is given up is left to itself, and one more loop begins.

    notify: has the supervisor look again. on_failure: called by a pool thread with the queue, the
    description, the task and the exception of a message that has failed.
    """

    def __init__(
        self,
        app: Kuyruk,
        config: Config,
        publisher: _Publisher,
        notify: Callable[[], object],
        on_failure: Callable[..., object],
    ) -> None:
        self._app = app
        self._config = config
        self._notify = notify
        self._on_failure = on_failure
        self._settler = _Settler(publisher, self._on_kept, self._on_settled)
        #: Where it notes what runs, for a process that watches over this one.
        self.journal = Journal()
        #: Whether we count the crashes of messages of quorum queues, too. Such a queue has a limit
        #: of deliveries for that, but for one that we have declared (`_undropped`).
        arguments = config.QUEUE_ARGUMENTS
        self._counts_for_quorum = _is_quorum(arguments) and "x-delivery-limit" not in arguments
        #: Nothing begins any more; and each end is to be noticed at once.
        self.stopping = False
        #: `is_needed` in a thread that the worker needs. Not a set of idents: these are reused.
        self._this_thread = threading.local()
        #: Guards what follows, and the states of deliveries; notified of what can begin, and of the
        #: end of a loop. No lock is waited for while it is held.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: collections.deque[_Delivery] = collections.deque()
        #: Suspects: what has run when a process died. One of them runs at a time, the others wait.
        self._quarantine: collections.deque[_Delivery] = collections.deque()
        self._suspect: _Delivery | None = None  # that which runs
        #: Those whose pool threads haven't come back from them; settled or not, stuck ones, too.
        self.running: dict[_Delivery, None] = {}
        #: Of these, those whose threads were given up, and are stuck; and what interrupted them.
        self.given_up: dict[_Delivery, BaseException] = {}
        #: By the keys of the messages that run: the delivery that does, and those that the broker
        #: has delivered meanwhile of the same message: they wait for its end.
        self._keys: dict[str, tuple[_Delivery, collections.deque[_Delivery]]] = {}
        self._loops = 0  # how many there are, without those that are stuck
        self._idle = 0  # how many of these wait for a delivery,
        self._woken = False  # and whether one of these was notified, and hasn't come yet
        self._closed = False
        self.held = 0  #: How many messages are in hand, without those that the settler keeps.
        self.ended = 0  #: How many deliveries threads have come back from.
        self._began_at = -math.inf  # time.monotonic() when the last one began
        #: Channels that may have been full (`is_full`) since the last look (`take_full`).
        self.full: set[_ConsumerChannel] = set()
        self._tallies = dict.fromkeys(_TALLIES, 0)  # what became of how many deliveries

    def start(self) -> None:
        """Raise RuntimeError if a thread can't be started."""
        from concurrent.futures import ThreadPoolExecutor

        # Without a limit: it starts a thread for each loop, and `_loops` counts them. One that is
        # stuck would count for its limit.
        self._executor = ThreadPoolExecutor(sys.maxsize, thread_name_prefix="kuyruk-pool")
        self._watch = _Watch(self._config.WORKER_GRACE, self._give_up)
        self._settler.start()
        for _ in range(self._config.WORKER_THREADS):
            self._start_loop()

    def close(self) -> None:
        """End the threads, except those that are stuck, or wait for a log."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._loops, CLOSE_TIMEOUT)
        self._settler.close()
        if hasattr(self, "_executor"):  # `start` may have failed before it was made
            self._executor.shutdown(wait=False)
        if hasattr(self, "_watch"):
            self._watch.close()

    @contextlib.contextmanager
    def needs_this_thread(self) -> Iterator[None]:
        """Note in a `with` block that this thread is the worker's, has a lock that it needs, or
        waits for its end already. A signal handler in it that stops the worker must not wait."""
        was_needed, self._this_thread.is_needed = self.is_this_thread_needed, True
        try:
            yield
        finally:
            self._this_thread.is_needed = was_needed

    @property
    def is_this_thread_needed(self) -> bool:
        """Whether this thread is in such a block."""
        return getattr(self._this_thread, "is_needed", False)

    # -- for the supervisor, and for those who ask

    @property
    def stats(self) -> dict[str, Any]:
        """See `Worker.stats`."""
        now = time.monotonic()
        with self._lock:
            running = [d for d in self.running if d.state == RUNNING]
            waiting = len(self._waiting) + len(self._quarantine)
            suspects = len(self._quarantine) + (self._suspect is not None)
            stats: dict[str, Any] = {**self._tallies, "waiting": waiting, "suspect": suspects}
            stats |= {"stuck": len(self.given_up), "unsettled": self._settler.count}
        stats["running"] = [
            {"id": d.extra["task_id"], "task": d.extra["task"], "queue": d.queue,
             "seconds": round(now - (d.run.started if d.run else d.arrived_at), 3)}
            for d in running if d.task is not None
        ]  # fmt: skip
        return stats

    @property
    def healthy(self) -> bool:
        """Whether its threads live, do what is due, and get rid of what they have done."""
        now = time.monotonic()
        is_late = [d for d in tuple(self.running) if now - d.settled_at > STALLED]
        is_staffed = self._loops >= self._config.WORKER_THREADS
        return (
            is_staffed
            and not (self.stuck or is_late)
            and self._watch.healthy
            and self._settler.healthy
        )

    @property
    def stuck(self) -> int:
        """How many threads are stuck, without those that were given up because their connection was
        lost: their tasks are within their limits, and will end."""
        causes = tuple(self.given_up.values())
        return sum(not isinstance(cause, HeartbeatError) for cause in causes)

    @property
    def unfinished(self) -> list[_Delivery]:
        """What has begun, and is neither settled nor kept."""
        with self._lock:
            return [d for d in self.running if d.state in (RUNNING, CLAIMED)]

    @property
    def has_waiting(self) -> bool:
        """Whether a delivery waits that is no suspect."""
        return bool(self._waiting)

    def add(self, delivery: _Delivery) -> None:
        """Take a delivery that has arrived. In the reader."""
        with self._lock:
            self._tallies["received"] += 1
            self.held += 1
            delivery.consumer.held += 1
            is_full = delivery.channel.is_full
            if is_full:
                self.full.add(delivery.channel)
            self._waiting.append(delivery)
            is_busy = len(self._waiting) > self._idle
            self._wake_one()
        if is_full or is_busy:
            self._notify()

    def interrupt(
        self, make_cause: Callable[[], BaseException], which: Callable[[_Delivery], bool]
    ) -> int:
        """Interrupt running tasks; return how many. One that hasn't begun (its module is being
        imported, say) doesn't begin. make_cause: called for each: an exception that two threads
        raise gets the traceback of both."""
        with self._lock:
            chosen = [d for d in self.running if d.state == RUNNING and which(d)]
            for delivery in chosen:
                if delivery.run is None and delivery.cause is None:
                    delivery.cause = make_cause()  # `_begin` looks for it, with the lock
        # Without the lock: the watch has one of its own.
        for delivery in chosen:
            if delivery.run is not None:
                self._watch.interrupt(delivery.run, make_cause())
        return len(chosen)

    def on_lost(self, channel: _ConsumerChannel, make_cause: Callable[[], BaseException]) -> None:
        """Forget what came by a channel that is lost and hasn't begun or is kept, and interrupt
        what runs: the broker delivers it again. Not if it is the only copy."""
        with self._lock:
            self.full.discard(channel)
            for queue in self._queues():
                for delivery in [d for d in queue if d.channel is channel and d.is_lost]:
                    queue.remove(delivery)
                    delivery.state = LOST
                    self._tallies["lost"] += 1
                    self.held -= 1
        self._settler.drop(lambda delivery: delivery.is_lost)
        self.interrupt(make_cause, lambda d: d.channel is channel and d.is_lost)

    def oldest(self, channel: _ConsumerChannel) -> _Delivery | None:
        """Return the delivery that came first of those that came by a channel and aren't settled:
        what RabbitMQ's consumer_timeout is about."""
        with self._lock:
            begun = [d for d in self.running if d.state != SETTLED]
            in_hand = itertools.chain(begun, *self._queues())
            ours = (d for d in in_hand if d.channel is channel)
            return min(ours, key=lambda d: d.arrived_at, default=None)

    def hand_back(self) -> None:
        """Send what hasn't begun back at once: another worker can have it."""
        with self._lock:
            back = [delivery for queue in self._queues() for delivery in queue]
            for queue in self._queues():
                queue.clear()
        self._requeue(back)

    def hand_back_surplus(self, kept: int) -> None:
        """Send the newest of what waits back, until no more than `kept` messages are in hand. Not
        what a quorum queue has counted already: it may have a limit of deliveries."""
        with self._lock:
            newest = [d for d in reversed(self._waiting) if "x-delivery-count" not in d.headers]
            back = dict.fromkeys(newest[: max(0, self.held - kept)])
            self._waiting = collections.deque([d for d in self._waiting if d not in back])
        self._requeue(back)

    def _requeue(self, deliveries: Collection[_Delivery]) -> None:
        """Send deliveries back that were taken from the queues and haven't begun."""
        with self._lock:
            self._tallies["requeued"] += len(deliveries)
            for delivery in deliveries:
                delivery.state = CLAIMED
        for delivery in deliveries:
            self._settler.attempt(self._send_back, delivery)

    def _send_back(self, delivery: _Delivery) -> None:
        """Send one delivery back to its queue."""
        self._settler.settle(delivery, _plan(delivery, _BACK, None, None, self._config))

    def waited(self, now: float) -> tuple[float, float]:
        """Return for how many seconds a message has waited and none has begun; and for how many
        none has begun."""
        with self._lock:
            stalled = now - self._began_at
            waited = min(now - self._waiting[0].arrived_at, stalled) if self._waiting else 0.0
            return waited, stalled

    def take_full(self) -> set[_ConsumerChannel]:
        """Return the channels for which there may be more messages: they were full since the last
        look."""
        with self._lock:
            full, self.full = self.full, {channel for channel in self.full if channel.is_full}
            return full

    def _queues(self) -> list[collections.deque[_Delivery]]:
        """Return all queues of what hasn't begun. With the lock."""
        return [self._waiting, self._quarantine, *(others for _, others in self._keys.values())]

    # -- the loops

    def _wake_one(self) -> None:
        """Wake an idle thread for what waits, unless one was woken and hasn't come yet: that wakes
        the next one (`_take`). With the lock.

        To wake all that could do something costs more than tiny tasks do: by the time that they
        have the GIL, others have taken their work.
        """
        if not self._woken and self._idle and (self._waiting or self._quarantine):
            self._woken = True
            self._changed.notify()

    def _start_loop(self) -> None:
        """Raise RuntimeError if no thread can be started.

        Its thread is taken from those that the interpreter waits for when it ends, and that a
        forked child takes for its own (cpython#88110). There is no public way: without, they are
        waited for.
        """
        from concurrent.futures import thread as module

        self._executor.submit(self._loop)
        waited_for: Any = getattr(module, "_threads_queues", {})
        for thread in tuple(getattr(self._executor, "_threads", ())):
            waited_for.pop(thread, None)

    def _loop(self) -> None:
        """Run what is delivered, until the pool closes, or this thread was given up."""
        self._this_thread.is_needed = True
        with self._lock:
            # The executor queues a loop for which it can't start a thread, and raises; that loop
            # begins all the same when another's thread ends. It may be one too many by then.
            if self._loops >= self._config.WORKER_THREADS:
                return
            self._loops += 1
        ended: _Delivery | None = None

        def step() -> bool:
            nonlocal ended
            ended = self._next(ended)
            if ended is not None:
                try:
                    self._handle(ended)
                except BaseException as defect:
                    # Not here: what has failed, no memory say, may be this thread's trouble.
                    self._settler.do(functools.partial(self._settle_as_failed, ended, defect))
                    raise
            return ended is None

        _keep_running(step)

    def _next(self, ended: _Delivery | None) -> _Delivery | None:
        """Note that a delivery has ended, and wait for the next. Return None if this thread is to
        end: the pool is closed, or it was given up and another has its place."""
        if ended is not None:
            with self._lock:
                was_given_up = ended in self.given_up
                self._end(ended)
                self.given_up.pop(ended, None)
                delivery = None if was_given_up else self._take()
                is_news = was_given_up or self.stopping or self.full or self._waiting
            del ended  # its body and arguments needn't live while this thread waits
            # To wake the supervisor at each end would cost more than tiny tasks do.
            if is_news:
                self._notify()
            if was_given_up or delivery is not None:
                return delivery
        with self._lock:
            while True:
                delivery = self._take()
                if delivery is not None:
                    return delivery
                if self._closed:
                    self._loops -= 1
                    self._changed.notify_all()
                    return None
                self._idle += 1
                try:
                    self._changed.wait()
                finally:
                    self._idle -= 1
                    self._woken = False

    def _end(self, delivery: _Delivery) -> None:
        """Forget a delivery whose thread has come back from it, unless it is another's by now. With
        the lock.

        1. This thread has it wait (`_admit`), and logs that. 2. Another takes it, since what it
        waited for has ended, and runs it. 3. This thread comes back: it isn't its delivery any
        more.
        """
        if delivery.thread != threading.get_ident():
            return
        self.running.pop(delivery, None)
        self.ended += 1
        if self._suspect is delivery:
            self._suspect = None
            self._wake_one()
        if delivery.task is not None and (key := delivery.key) in self._keys:
            owner, others = self._keys[key]
            if owner is delivery:
                self.journal.end(key)
                self._waiting.extendleft(others)
                del self._keys[key]
                # This thread goes on with one of them; but not if it was given up.
                self._wake_one()

    def _take(self) -> _Delivery | None:
        """Return what begins next, or None if nothing can. With the lock."""
        if self.stopping:
            return None
        is_suspect = bool(self._quarantine) and self._suspect is None
        queue = self._quarantine if is_suspect else self._waiting
        if not queue:
            return None
        if len(self._waiting) > 1 - is_suspect:  # something is left for another thread
            self._wake_one()
        # It must not get lost if this fails (no memory): it leaves its queue last.
        delivery = queue[0]
        self._began_at = time.monotonic()
        self.running[delivery] = None
        queue.popleft()
        delivery.state, delivery.thread = RUNNING, threading.get_ident()
        if is_suspect:
            self._suspect = delivery
        return delivery

    # -- a delivery

    def _handle(self, delivery: _Delivery) -> None:
        """Run the task of a delivery, and settle it. What this raises is a defect of ours, and
        nothing is lost by it."""
        task, result, error = None, None, None
        try:
            try:
                if delivery.properties is None:
                    raise InvalidMessage("the message's AMQP properties can't be decoded")
                delivery.task = description = _decode_task(delivery.body)
                if not self._admit(delivery):
                    return
                task = self._app._find_task(description.module, description.function)
                run = Run(task, description.id, delivery.queue, delivery.redelivered)
                run._properties = delivery.properties
                if self._begin(delivery, run):
                    result = task._run(run, description.args, description.kwargs, self._watch)
                else:
                    # If nothing has interrupted it its channel is lost. It hasn't returned, though
                    # it may be ours again: 1. The broker closes its channel. 2. This thread sees
                    # that. 3. The supervisor sees that its queue is gone: this is the only copy.
                    error = delivery.cause or Shutdown("its channel was lost before it began")
            except BaseException as raised:  # the task has raised, or it can't be run
                error = raised
            self._conclude(delivery, task, result, error)
        finally:
            # Its traceback leads to this frame: a cycle, which would keep all frames, and what is
            # in them, until the garbage collector comes.
            error = None

    def _admit(self, delivery: _Delivery) -> bool:
        """Return whether its task may run now. If the same message runs here, or if it is a suspect
        and another suspect runs, it waits again. Raise Crashed if it has brought too many processes
        down."""
        key, is_suspect = delivery.key, False
        # What nobody else has had can have brought nobody down. It need not be asked about.
        if delivery.redelivered or key in self.journal.crashes:
            crashes, blames = self.journal.count(key)
            # A quorum queue counts itself, and has a limit, if it isn't one of ours.
            counts = self._counts_for_quorum or "x-delivery-count" not in delivery.headers
            is_suspect = bool(crashes) and counts
        if is_suspect:
            limit = self._config.WORKER_MAX_CRASHES
            # At the first death it may have been one of many messages. And to be the only suspect
            # at one more proves little: what ran beside it, not suspected yet, may be to blame.
            if crashes >= limit and blames >= max(1, limit - 1):
                why = "worker processes have died while it ran (WORKER_MAX_CRASHES)"
                raise Crashed(f"{crashes} {why}")
        with self._lock:
            if key in self._keys:
                self._keys[key][1].append(delivery)
            elif is_suspect and self._suspect not in (None, delivery):
                self._quarantine.append(delivery)
            else:
                self._suspect = delivery if is_suspect else self._suspect
                self._keys[key] = delivery, collections.deque()
                self.journal.begin(key)
                return True
            delivery.state = WAITING
            if self._suspect is delivery:
                self._suspect = None
        text = "%s from %r waits: it is running here already, or another suspect is"
        _log(logging.INFO, text, delivery, delivery.queue, extra=delivery.extra)
        return False

    def _begin(self, delivery: _Delivery, run: Run) -> bool:
        """Return whether its task may begin: it is still ours, and nothing has interrupted it. From
        here on interruptions are the run's."""
        with self._lock:
            if delivery.state == RUNNING and not delivery.is_lost and delivery.cause is None:
                delivery.run = run
            return delivery.run is run

    def _conclude(
        self, delivery: _Delivery, task: AnyTask | None, result: Any, error: BaseException | None
    ) -> None:
        """Settle a delivery whose task has ended, then log that: nothing waits for a log."""
        began = delivery.run.started if delivery.run else delivery.arrived_at
        seconds = time.monotonic() - began
        verdict = self._settler.attempt(self._settle, delivery, task, result, error, RUNNING)
        if verdict is None:
            return  # another settles it, or the settler will
        if error is None:
            self._log_success(delivery, verdict, seconds)
        else:
            outer = _set_current(delivery.run)  # a filter may want to know what a record is about
            try:
                if verdict.tally in ("failed", "timed_out"):
                    self._on_failure(delivery.queue, delivery.task, task, error)
                self._log_error(delivery, error, verdict)
            finally:
                _set_current(outer)

    def _settle(
        self,
        delivery: _Delivery,
        task: AnyTask | None,
        result: Any,
        error: BaseException | None,
        state: str,
    ) -> _Verdict | None:
        """Settle a delivery, or have it kept until that is possible. Return what becomes of it;
        None if it isn't in this state any more: then another has claimed it.

        state: RUNNING for the thread that has run it, CLAIMED for who has given that up. If the
        result or the exception can't be described, since code of the user's raises, the message
        has failed with that.
        """
        defect: BaseException | None = None
        try:
            fits = task is None or error is None or task._fits(error)
            failures, jitter = (
                (0, 0.0) if error is None else (delivery.failures, os.urandom(1)[0] / 255)
            )
            verdict = _decide(task, error, fits, delivery.is_lost, failures, jitter)
            settlement = _plan(delivery, verdict, result, error, self._config)
        except BaseException as raised:
            defect = raised
            text = "what came of it can't be described"
            verdict = _Verdict("failed", "fail", reply=True)
            plain = KuyrukError(f"{text}: {type(raised).__name__}")
            settlement = _plan(delivery, verdict, None, plain, self._config)
        with self._lock:
            may_settle = delivery.state == state
            if may_settle:
                delivery.state = CLAIMED
                self._tallies[verdict.tally] += 1
        if not may_settle:
            text = "%s from %r has ended after all: what came of it is dropped"
            _log_aside(logging.WARNING, text, delivery, delivery.queue, extra=delivery.extra)
            return None
        self._settler.settle(delivery, settlement)
        has_ended = verdict.tally not in ("lost", "requeued")
        if has_ended and self.journal.crashes and delivery.key in self.journal.crashes:
            self.journal.clear(delivery.key)
        if defect is not None:
            text = "%s from %r: what came of it can't be described"
            arguments = text, delivery, delivery.queue
            _log_aside(logging.ERROR, *arguments, error=defect, extra=delivery.extra)
            defect = None  # its traceback leads to this frame
        return verdict

    def _settle_as_failed(self, delivery: _Delivery, defect: BaseException) -> None:
        """Settle a delivery that a defect has left unsettled: the last line of defence. In the
        settler."""
        if delivery.state == RUNNING:
            self._settle(delivery, None, None, defect, RUNNING)

    def _on_kept(self, delivery: _Delivery) -> None:
        """Note that its copy can't be forwarded for the moment. By who settles it; again, if that
        has failed after this."""
        with self._lock:
            if delivery.state != KEPT:
                delivery.state = KEPT
                delivery.channel.kept += 1
                self.held -= 1
        self._notify()  # others may come in its place

    def _on_settled(self, delivery: _Delivery) -> None:
        """Note that it is settled. By who settles it."""
        with self._lock:
            if delivery.state == KEPT:
                delivery.channel.kept -= 1
            else:
                self.held -= 1
            delivery.consumer.held -= 1
            delivery.state, delivery.settled_at = SETTLED, time.monotonic()

    def _log_success(self, delivery: _Delivery, verdict: _Verdict, seconds: float) -> None:
        """Log what has become of a message whose task has returned."""
        is_success = verdict.tally == "succeeded"
        log, level = (_success_logger, logging.INFO) if is_success else (logger, logging.WARNING)
        if log.isEnabledFor(level):
            arguments = delivery, delivery.queue, verdict.tally, seconds
            _log(level, "%s from %r %s in %.3f s", *arguments, extra=delivery.extra, logger=log)

    def _log_error(self, delivery: _Delivery, error: BaseException, verdict: _Verdict) -> None:
        """Log what a task has raised, and what becomes of its message. With a traceback only where
        somebody has to look for the cause."""
        about: dict[str, Any] = {"extra": delivery.extra}
        arguments = delivery, delivery.queue, verdict.tally
        then = ""
        if verdict.delay:
            then = f"; it comes back in {verdict.delay:g} seconds"
        elif verdict.action == "fail" and self._config.FAILED_TTL is not None:
            then = "; see its .failed queue"
        elif verdict.action == "fail":
            then = "; it was rejected: a dead-letter policy may keep it"
        if verdict.tally in ("failed", "timed_out"):
            about["exc_info"] = type(error), error, _task_traceback(error)
            _log(logging.ERROR, "%s from %r %s%s", *arguments, then, **about)
        else:
            _log(logging.WARNING, "%s from %r %s: %r%s", *arguments, error, then, **about)

    # -- giving up

    def _give_up(self, run: Run) -> None:
        """Give up the thread of a run that was interrupted, and has had its grace. In the watch."""
        with self._lock:
            delivery = next((d for d in self.running if d.run is run), None)
        if delivery is not None and run._cause is not None:
            self.give_up(delivery, run._cause)

    def give_up(self, delivery: _Delivery, cause: BaseException) -> None:
        """Leave its thread to itself, have another take its place, and have its message settled.
        Raise RuntimeError if no thread can be started: then nothing has changed."""
        with self._lock:
            if delivery.state != RUNNING:
                return  # it has just ended
            self._loops -= 1  # first: the new thread looks whether it is needed
            try:
                self._start_loop()
            except BaseException:
                self._loops += 1
                raise
            delivery.state = CLAIMED
            self.given_up[delivery] = cause
            if delivery.task is not None:
                self.journal.end(delivery.key)
        self._settler.do(lambda: self._settle_given_up(delivery, cause))

    def _settle_given_up(self, delivery: _Delivery, cause: BaseException) -> None:
        """Settle a delivery whose thread was given up, and log where that is stuck. In the settler;
        not in the watch, which interrupts others meanwhile."""
        stack = _format_stack(delivery.thread)
        task = delivery.run.task if delivery.run else None
        cause.add_note(
            f"It didn't end when it was interrupted. Its thread was given up at\n{stack}"
        )
        self._settle(delivery, task, None, cause, CLAIMED)
        self._notify()
        text = "%s from %r is stuck, %g seconds after its interruption (%s: %s). "
        text += "Its thread is given up at\n%s"
        grace, kind = self._config.WORKER_GRACE, type(cause).__name__
        arguments = delivery, delivery.queue, grace, kind, cause, stack
        _log_aside(logging.ERROR, text, *arguments, extra=delivery.extra)


# --- Worker --------------------------------------------------------------------------------------

#: Around what is asked of a queue's channel: if the broker closes that meanwhile, it is no error
#: here. The reader has noted it, and the supervisor looks after it next (`_give_up_troubled`).
_unless_closed = contextlib.suppress(AMQPChannelError)

_WORKER_OPTIONS = tuple(WorkerOptions.__annotations__)


class Worker:
    """Consumes queues and runs their tasks, in threads of this process.

    app: the `Kuyruk`. queues: names, or None for those of the app's tasks. options:
    `WorkerOptions`; the configuration's `WORKER_` keys are the defaults. Raises TypeError for an
    option that isn't known, ValueError for a value or a name that can't be.

    `run` blocks, `start` doesn't, and as a context manager it is started and stopped. It installs
    no signal handler and leaves logging alone. A worker runs once.

    queues: the names of those that it consumes.
    aborted: how many tasks had to be interrupted for it to stop.
    error: what it has failed with, if it has.
    on_change: called in one of its threads when it has begun or ceased to consume, when a thread is
        given up, and when it has stopped: `healthy` may be another then. It must not block. What it
        raises is logged.
    """

    def __init__(
        self,
        app: Kuyruk,
        queues: Iterable[str] | None = None,
        **options: typing.Unpack[WorkerOptions],
    ) -> None:
        _check_names("Worker()", options, ("queues", *_WORKER_OPTIONS))
        _require("app", app, Kuyruk)
        self.app = app
        values = {f"WORKER_{name.upper()}": value for name, value in options.items()}
        for name, key in zip(options, values, strict=True):
            if values[key] is not None:
                _check(key, values[key], name)
        self._config = app.config._with(**values)
        self.queues = _queue_names(app._queues if queues is None else queues)
        self.queues = self.queues or _queue_names(app._queues or "kuyruk")
        self.aborted = 0
        self.on_change: Callable[[], object] = lambda: None
        self.error: BaseException | None = None
        self._process_id = os.getpid()
        self._began = threading.Lock()  # acquired by `start`, and never released
        self._ended = threading.Event()  # set by the supervisor, last of all
        # time.monotonic() at which each call of `stop` wants running tasks to be interrupted.
        self._interrupt_times = [math.inf]
        self._publisher = _Publisher(self._config)
        self._keeper = _Keeper(self._config, publishes=False)
        self._pool = _Pool(
            app, self._config, self._publisher, self._on_pool_change, self._signal_failure
        )
        self._wakeup = _Event()  # the supervisor's: there is something to do
        self._supervisor = threading.Thread(target=self._run, name="kuyruk-supervisor", daemon=True)
        # What follows is the supervisor's: no other thread changes it, but for `_troubled`.
        #: What each queue is consumed by.
        self._channels: dict[str, _ConsumerChannel] = {}
        #: Queues that aren't consumed: time.monotonic() of the next attempt, and the pauses after.
        self._missing: dict[str, tuple[float, Iterator[float]]] = {}
        self._reported: dict[str, str] = {}  # why they aren't, as it was logged last
        #: Channels that were closed, or whose consumer was ended. The reader appends to it.
        self._troubled: collections.deque[_ConsumerChannel] = collections.deque()
        self._paused = False
        # Of consumers of such a queue only one is served: more of them are of no use.
        is_single = app.config.QUEUE_ARGUMENTS.get("x-single-active-consumer")
        self._adjusts = self._config.WORKER_PREFETCH is None and not is_single
        self._prefetch = _Prefetch(self._config.WORKER_THREADS)
        self._adjust_at = -math.inf  # time.monotonic() of the next `_adjust_prefetch`, at the least
        #: The supervisor looks at the pool soon, whether it is woken or not.
        self._looks_soon = False
        #: Channels with consumers that `_grow` has added; and those that `_shrink` has left one.
        self._grown: set[_ConsumerChannel] = set()
        self._shrunk: set[_ConsumerChannel] = set()
        self._signal(worker_init)

    # -- its life, as its owner sees it

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run in a background thread. Raise RuntimeError if it runs or ran already, or if no thread
        can be started."""
        if not self._began.acquire(blocking=False):
            raise RuntimeError("this worker runs or ran already: make another one")
        # time.monotonic() at which it stops by itself.
        self._stop_at = time.monotonic() + (self._config.WORKER_MAX_RUN_TIME or math.inf)
        try:
            # A daemon, and so are the threads that it starts: one that is stuck doesn't keep the
            # process alive.
            self._supervisor.start()
        except BaseException:
            self._ended.set()  # or `stop` and `join` would wait for ever
            raise

    def run(self) -> None:
        """Run until stopped. Raise RuntimeError if it runs or ran already, and what the worker
        fails with."""
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

        timeout: seconds that running tasks get, instead of `shutdown_timeout` (math.inf: as long as
        they take); then they are interrupted, and what hasn't ended after the `grace` is given up.
        Their messages are requeued. Another call can shorten it. From any thread, and from a signal
        handler: it doesn't wait in a thread that the worker needs, or that waits for it already.
        """
        if timeout not in (None, math.inf):
            _check("timeout", timeout)
        timeout = self._config.WORKER_SHUTDOWN_TIMEOUT if timeout is None else timeout
        # A signal handler may call this in the middle of another call in its thread: so there is no
        # lock, and each only appends. The time comes before the wake-up.
        if timeout is not None:
            self._interrupt_times.append(time.monotonic() + timeout)
        self._pool.stopping = True
        self._wakeup.set()
        if wait and self._began.locked() and not self._pool.is_this_thread_needed:
            self.join()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped, at most `timeout` seconds; return whether it has. In a forked
        child it has: its threads are the parent's."""
        if os.getpid() != self._process_id:
            return True
        with self._pool.needs_this_thread():
            return self._ended.wait(timeout)

    @property
    def journal(self) -> Journal:
        """Where it notes what runs, for a process that watches over this one."""
        return self._pool.journal

    @journal.setter
    def journal(self, journal: Journal) -> None:
        self._pool.journal = journal

    @property
    def healthy(self) -> bool:
        """Whether it is really consuming all of its queues, or has paused on purpose (max_load),
        and all of its threads live and do what is due: none is stuck in a task that was to end, and
        no message waits to be forwarded."""
        connection = self._keeper.usable
        if connection is None or self._pool.stopping or not self._supervisor.is_alive():
            return False
        is_reading = time.monotonic() - connection.stepped_at < STALLED
        consumes = self._paused or len(self._channels) == len(self.queues)
        return is_reading and consumes and self._pool.healthy

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of deliveries, by what became of them, and what there is now.

        received, succeeded, failed, timed_out, rejected, discarded, requeued (by a stop, by a
        pause, or because they waited too long), lost (with their connection); waiting (not begun),
        suspect (of those, and of what runs: has run when a worker died), stuck (threads that were
        given up and don't end), unsettled (can't be forwarded for the moment); running: a list of
        dicts of id, task, queue and seconds.
        """
        with self._pool.needs_this_thread():
            return self._pool.stats

    def drop(self, id: str | None = None) -> int:
        """Interrupt the running task of this message id, or (None) all, with Discard: their
        messages are dropped. Return how many."""
        with self._pool.needs_this_thread():
            return self._pool.interrupt(
                lambda: Discard("dropped by an operator"),
                lambda delivery: id in (None, delivery.task and delivery.task.id),
            )

    def _frames(self) -> dict[int, types.FrameType]:
        """Return where each thread of the process is, for the command line's report."""
        return _current_frames()

    # -- the supervisor

    def _run(self) -> None:
        """Be the supervisor, from the worker's start to its end."""
        with self._pool.needs_this_thread():
            try:
                self._pool.start()
                self._keeper.start()
                self._signal(worker_start)
                _keep_running(self._supervise)
                self._drain()
            except BaseException as error:
                _log_aside(logging.CRITICAL, "Defect in the worker: it stops", error=error)
                self.error = error
            finally:
                self._end()

    def _supervise(self) -> bool:
        """Consume while there is a connection. Return whether to stop; an exception costs the
        connection."""
        if self._should_stop():
            return True
        connection = self._keeper.changes.wait_for(
            lambda: self._keeper.usable or self._pool.stopping, self._stop_at, self._wakeup
        )
        if isinstance(connection, _Connection):
            try:
                self._consume(connection)
            except BaseException as error:
                # A defect, too: with the connection all that it may have left half done is gone.
                connection.give_up(_as_lost(error))
                self._on_lost(_as_lost(error))
                if not isinstance(error, AMQPError):
                    raise
        return False

    def _consume(self, connection: _Connection) -> None:
        """Return when the worker should stop. Raise AMQPError when the connection is lost."""
        self._missing = {queue: (-math.inf, _pauses(LONGEST_QUEUE_PAUSE)) for queue in self.queues}
        while not self._should_stop():
            self._wakeup.clear()  # before it looks: what changes from here on sets it again
            if connection.lost is not None:
                raise _again(connection.lost)
            self._give_up_troubled()
            self._pause_or_resume()
            now = time.monotonic()
            if not self._paused:
                for queue in [q for q, (due, _) in self._missing.items() if due <= now]:
                    self._subscribe(connection, queue)
                self._adjust_prefetch()
            if not self._pool.stopping and connection.lost is None:
                _wait(self._wakeup, self._next_look())

    def _next_look(self) -> float:
        """Return the time.monotonic() at which there is something to do if nothing happens."""
        times = [self._stop_at]
        if self._config.WORKER_MAX_LOAD:
            times.append(time.monotonic() + TICK)
        if not self._paused:  # or what is due, and can't be done, would be looked for all the time
            times += [due for due, _ in self._missing.values()]
        # 1. Here: it won't look soon. 2. Here: is there anything to look after? 3. Whoever changes
        # the pool after that sees 1, and wakes it: no change is missed.
        self._looks_soon = False
        self._looks_soon = bool(self._pool.has_waiting or self._pool.full or self._shrunk)
        if self._adjusts and self._looks_soon and not self._paused:
            times.append(self._adjust_at)
        return min(times)

    def _subscribe(self, connection: _Connection, queue: str) -> None:
        """Begin to consume a queue. What is wrong with it is tried again after a pause, and costs
        no other queue anything. Raise AMQPError when the connection is lost."""
        until = time.monotonic() + self._config.RABBIT_PUBLISH_TIMEOUT
        try:
            _ensure_queue(connection, queue, self.app._queue_arguments(queue), until)
            arguments = (queue, self._config, self._pool.add, self._on_channel_trouble)
            channel = connection.changes.wait_for(
                lambda: _new_channel(connection, _ConsumerChannel, *arguments), until
            )
            if channel is None:
                raise AMQPChannelError("its connection has no free channel (channel_max)")
            channel.waiting.subscribe(self._wakeup)
            # Before it consumes: if that fails, `_on_queue_trouble` gives up this channel.
            self._channels[queue] = channel
            channel.add(self._first_prefetch())
        except AMQPChannelError as error:
            self._on_queue_trouble(queue, f"can't be consumed: {error}", error)
            return
        del self._missing[queue]
        self._reported.pop(queue, None)
        text = "Consuming %s at %s with %d threads"
        if not self._missing:
            queues, threads = ", ".join(self.queues), self._config.WORKER_THREADS
            _log_aside(logging.INFO, text, queues, connection.address, threads)
        self._notify_owner()

    def _on_channel_trouble(self, channel: _ConsumerChannel) -> None:
        """Have the supervisor look after a channel. In the reader, which can't ask the broker."""
        self._troubled.append(channel)
        self._wakeup.set()

    def _give_up_troubled(self) -> None:
        """Give up channels whose queue was deleted or has moved, or that were closed."""
        while self._troubled:
            channel = self._troubled.popleft()
            if self._channels.get(channel.queue) is channel:  # it hasn't been given up yet
                why = channel.lost or AMQPChannelError("its consumer was cancelled by the broker")
                # Before it counts as lost, or the tasks of the only copies would be interrupted.
                if channel.connection.lost is None:
                    channel.is_orphaned = self._is_gone(channel)
                what = "was deleted" if channel.is_orphaned else f"isn't consumed any more: {why}"
                self._on_queue_trouble(channel.queue, what, why)

    def _is_gone(self, channel: _ConsumerChannel) -> bool:
        """Return whether a queue was deleted."""
        until = time.monotonic() + self._config.RABBIT_PUBLISH_TIMEOUT
        try:
            _declare(channel.connection, until, queue=channel.queue, passive=True)
            return False
        except AMQPError as error:
            return error.error_code == 404

    def _on_queue_trouble(self, queue: str, what: str, why: AMQPError) -> None:
        """Give up a queue's channel, if there is one, and try another after a pause. what: what is
        the matter with the queue, for the log."""
        channel = self._channels.pop(queue, None)
        if channel is not None:
            self._give_up(channel, why)
        _, pauses = self._missing.get(queue, (0, _pauses(LONGEST_QUEUE_PAUSE)))
        pause = next(pauses)
        self._missing[queue] = time.monotonic() + pause, pauses
        # A warning once, not at each attempt.
        level = logging.DEBUG if self._reported.get(queue) == what else logging.WARNING
        self._reported[queue] = what
        _log_aside(level, "Queue %r %s; trying again in %.1f s", queue, what, pause)
        self._notify_owner()

    def _give_up(self, channel: _ConsumerChannel, why: AMQPError) -> None:
        """Use a channel no more. What came by it isn't ours any more, unless it is the only
        copy."""
        oldest = self._pool.oldest(channel)  # before `on_lost` forgets it
        channel.waiting.unsubscribe(self._wakeup)
        if channel.lost is None:
            channel.retire()
            channel.lost = why
        self._grown.discard(channel)
        self._shrunk.discard(channel)
        info = (type(why), why, None)
        self._pool.on_lost(channel, lambda: HeartbeatError(info))
        if oldest is not None and not channel.is_orphaned:
            self._log_consumer_timeout(oldest, str(why), time.monotonic() - oldest.arrived_at)

    def _on_lost(self, error: AMQPError) -> None:
        """Give up all channels: the connection is lost. Nothing is consumed until there is
        another."""
        channels, self._channels = list(self._channels.values()), {}
        was_paused, self._paused = self._paused, False
        for channel in channels:
            channel.lost = channel.lost or error
            self._give_up(channel, error)
        if channels or was_paused:
            address = channels[0].connection.address if channels else "RabbitMQ"
            text = "Lost the connection to RabbitMQ at %s: %s"
            _log_aside(logging.WARNING, text, address, error)
        self._notify_owner()

    def _log_consumer_timeout(self, oldest: _Delivery, error: str, age: float) -> None:
        """Log what to do if RabbitMQ has ended a consumer because a message was in hand too long.

        oldest: the oldest that it had. error: what RabbitMQ says. age: seconds since it came.
        """
        # Of a quorum queue, RabbitMQ 4.3 only cancels the consumer, as if the queue was deleted.
        is_named = "acknowledgement" in error
        if is_named or ("cancelled" in error and age > LEAST_CONSUMER_TIMEOUT):
            perhaps = "" if is_named else "perhaps "
            text = "%s from %r was in hand for %.0f s, %slonger than RabbitMQ's consumer_timeout: "
            text += "it runs again. %s"
            arguments = oldest, oldest.queue, age, perhaps, CONSUMER_TIMEOUT_HELP
            _log_aside(logging.ERROR, text, *arguments, extra=oldest.extra)

    def _signal(self, signal: Signal, **facts: Any) -> None:
        if signal.receivers:
            signal.send(self.app, worker=self, **facts)

    def _signal_failure(
        self,
        queue: str,
        description: _Description | None,
        task: AnyTask | None,
        error: BaseException,
    ) -> None:
        """Send worker_failure. None: the message couldn't be decoded; its task wasn't found.

        By a pool thread, before the failure is logged: Sentry drops what it is told of one
        exception again.
        """
        facts: dict[str, Any] = {"exc_info": (type(error), error, error.__traceback__)}
        facts["description"] = {} if description is None else description.whole  # may be added to
        if description is not None and task is not None:
            facts |= {"task": task, "args": description.args, "kwargs": description.kwargs}
        self._signal(worker_failure, queue=queue, **facts)

    def _on_pool_change(self) -> None:
        """Look whether what has changed in the pool concerns the supervisor, or the worker's owner.
        In one of the pool's threads, or in the reader."""
        pool = self._pool
        if pool.given_up and not pool.stopping and pool.stuck >= self._config.WORKER_THREADS:
            self.stop(math.inf, wait=False)
            text = "Stopping: %d threads are stuck, as many as the worker has"
            _log_aside(logging.CRITICAL, text, pool.stuck)
        if pool.stopping or not self._looks_soon:
            self._wakeup.set()
        if pool.given_up:
            self._notify_owner()

    def _notify_owner(self) -> None:
        """Call `on_change`."""
        try:
            self.on_change()
        except BaseException as error:  # its code isn't ours
            _log_aside(logging.ERROR, "Worker.on_change has raised", error=error)

    def _should_stop(self) -> bool:
        """Return whether to stop; begin a stop if the worker has run for WORKER_MAX_RUN_TIME."""
        if not self._pool.stopping and time.monotonic() >= self._stop_at:
            text = "Stopping after %g seconds (max_run_time)"
            _log_aside(logging.INFO, text, self._config.WORKER_MAX_RUN_TIME)
            self.stop(wait=False)
        return self._pool.stopping

    # -- how many messages it holds

    def _first_prefetch(self) -> int:
        """Return how many messages the first consumer of each queue may hold: together enough for
        the threads; or if that isn't adjusted later, each alone."""
        threads = self._config.WORKER_THREADS
        share = -(-threads // len(self.queues))  # rounded up
        return self._config.WORKER_PREFETCH or (share if self._adjusts else threads)

    def _adjust_prefetch(self) -> None:
        """Hold the right number of messages, of all queues together.

        RabbitMQ fixes a consumer's prefetch when it begins. So consumers are added, for queues that
        may have more messages; and when messages wait too long, all of a channel's are replaced by
        a small one, and what they have delivered counts until it is settled. There is always one:
        RabbitMQ may delete a queue that nobody consumes.
        """
        now = time.monotonic()
        if not self._adjusts or now < self._adjust_at:
            return
        self._adjust_at = now + LOOK
        waited, stalled = self._pool.waited(now)
        patience = _patience(stalled)
        size = self._config.WORKER_THREADS
        size += self._prefetch.look(now, self._pool.ended, waited, patience)
        if waited > patience:
            self._shrink(size)
        elif self._pool.held < size:
            self._grow(size)

    def _shrink(self, size: int) -> None:
        """Replace the consumers of channels that have grown by one that holds a message, and hand
        back what is more than `size`: a worker with free threads can have it."""
        share = max(1, size // len(self.queues))
        for channel in [c for c in self._grown if c.capacity > share or len(self.queues) == 1]:
            if channel.why_lost is None and channel.capacity > 1:
                tags = list(channel.consumers)
                with _unless_closed:
                    channel.add(1, is_last=True)  # first: the queue isn't without a consumer
                    channel.cancel(tags)
                    self._shrunk.add(channel)
            self._grown.discard(channel)
        # Last: what is handed back while large consumers are there would come to them again.
        self._pool.hand_back_surplus(size)

    def _grow(self, size: int) -> None:
        """Add consumers to channels that have shrunk, for their share; and to those that have been
        full, for as much as there is room for."""
        full = {channel for channel in self._pool.take_full() if channel.why_lost is None}
        free = size - self._pool.held
        share = max(1, size // len(self.queues))
        part = -(-free // len(full)) if full else 0  # rounded up
        for channel in full | self._shrunk:
            wanted = share - channel.capacity
            if channel in full:
                wanted = max(wanted, min(part, size - channel.capacity))
            missing = min(wanted, free)
            if missing > 0:
                with _unless_closed:
                    channel.add(missing)
                    self._grown.add(channel)
                free -= missing
        self._shrunk.clear()

    def _pause_or_resume(self) -> None:
        """Pause while the load average is above max_load: other workers get the messages, those,
        too, that are in hand and haven't begun. What runs goes on."""
        limit = self._config.WORKER_MAX_LOAD
        if not limit:
            return
        limit = os.cpu_count() or 1 if limit == -1 else limit
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        pause = load > limit
        if pause == self._paused:
            return
        text = "%s: the load average is %.2f, the limit %g (max_load)"
        _log_aside(logging.WARNING, text, "Pausing" if pause else "Resuming", load, limit)
        self._paused = pause  # first: `healthy` is to know that it is on purpose
        for channel in self._channels.values():
            with _unless_closed:
                if pause:
                    channel.cancel(list(channel.consumers))
                else:
                    channel.add(self._first_prefetch())
        if pause:
            self._pool.hand_back()
        self._notify_owner()

    # -- stopping

    def _drain(self) -> None:
        """Stop consuming, hand back what hasn't begun, and wait for what runs: until it ends, or is
        interrupted when `stop` wants that, or is given up after the grace."""
        try:
            for channel in self._channels.values():
                with _unless_closed:
                    channel.cancel(list(channel.consumers))
        except AMQPError as error:
            self._on_lost(error)
        self._pool.hand_back()
        unfinished = len(self._pool.unfinished)
        if unfinished:
            _log_aside(logging.INFO, "Stopping: waiting for %s", _count(unfinished, "running task"))
        if self._wait_for_running(lambda: min(self._interrupt_times)):
            return
        self.aborted = len(self._pool.unfinished)
        text = "Stopping: interrupting %s; what they run goes back"
        _log_aside(logging.WARNING, text, _count(self.aborted, "running task"))
        self._pool.interrupt(lambda: Shutdown("the worker stops"), lambda _: True)
        grace_ends = time.monotonic() + self._config.WORKER_GRACE
        if not self._wait_for_running(lambda: grace_ends):
            # The watch gives up runs; this is for what isn't in one: an import, say.
            for delivery in self._pool.unfinished:
                cause = delivery.run and delivery.run._cause
                self._pool.give_up(delivery, cause or Shutdown("the worker stops"))
            # The settler settles them: that takes twice RABBIT_PUBLISH_TIMEOUT and a bit, at most.
            self._wait_for_running(lambda: math.inf)

    def _wait_for_running(self, get_end: Callable[[], float]) -> bool:
        """Wait until nothing runs, or until a time.monotonic() that may change meanwhile; return
        whether nothing does. Connections and channels may be lost in this time, too."""
        while True:
            self._wakeup.clear()
            if not self._pool.unfinished:
                return True
            until = get_end()
            if time.monotonic() >= until:
                return False
            lost = next((c for c in self._channels.values() if c.why_lost is not None), None)
            if lost is None:
                _wait(self._wakeup, until)
            elif lost.connection.lost is not None:
                self._on_lost(_again(lost.connection.lost))
            else:
                self._give_up(self._channels.pop(lost.queue), cast(AMQPError, lost.lost))

    def _end(self) -> None:
        """End all threads, in this order: what pool threads settle needs the publisher, and the
        connection by which messages came."""
        for clean_up in (self._pool.close, self._publisher.close, self._close_connection):
            try:
                clean_up()
            except BaseException as error:
                _log_aside(logging.ERROR, "Defect while stopping", error=error)
        self._signal(worker_shutdown)
        _log_aside(logging.INFO, "Stopped")
        _wait_for_log()
        self._ended.set()
        self._notify_owner()

    def _close_connection(self) -> None:
        """Close the connection by which messages came: acknowledgements are written before that,
        and what is unacknowledged goes back."""
        for channel in self._channels.values():
            channel.waiting.unsubscribe(self._wakeup)
        self._keeper.close()
        # Whatever is late finds that nothing is ours to settle any more.
        for channel in self._channels.values():
            channel.lost = channel.lost or AMQPConnectionError("the worker has stopped")
