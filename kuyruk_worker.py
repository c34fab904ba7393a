"""Run kuyruk workers as processes: command line, signals of the operating system, supervision, exit codes.

    $ python -m kuyruk_worker app.tasks                # or: kuyruk-worker app.tasks

Beside a vendored `pkg/vendor/kuyruk.py`: `python -m pkg.vendor.kuyruk_worker pkg.tasks`.


The processes, and what each owns
=================================

      supervisor (one thread)                       worker process (1..WORKER_PROCESSES, forked)
      -----------------------                       --------------------------------------------
      signals  ------------- passed on ---------->  main thread: signals, orders, the worker's changes
      the plan: who serves, retires, is replaced       |
          |  ^                                         v
          |  '-- state: serving, alone, worn -----  kuyruk.Worker, with its threads
          '----- orders: retire, again, crashes ->     | begin, end
      deaths <------- journal (shared memory) <--------'

*The supervisor* imports neither the library nor the application. It waits in `_Signals.wait` for signals (SIGCHLD
among them), for what its children tell, and for the time when something is due. It ends when its children have.
*A worker process* imports the application. Its main thread then waits in `_Signals.wait`, too; the worker runs in
threads of its own. It ends when the worker has, and stops as at SIGTERM when its supervisor is gone (its end of
the wire is closed).

Nobody waits for the other: what is sent over a wire doesn't block, and an order that comes late does no harm.
Where there is no fork (Windows) the worker runs in the first process, and nothing replaces it.

A process with a stuck thread is *worn*: another is started, and when that consumes, the worn one retires, that is, it
stops gracefully, without a limit. So a restart costs no task anything.
A process that dies leaves its journal, which says what it was running. One of these messages is to blame. They are
*suspects*: each runs alone, in a process that does nothing else meanwhile (another one stands in for it). The one
during which a process dies again is the culprit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import itertools
import json
import logging
import math
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from types import ModuleType

TYPE_CHECKING = False  # typing's; each module more costs the supervisor memory
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import FrameType
    from typing import Any, NoReturn

    from kuyruk import Kuyruk, Worker  # type: ignore[import-not-found, unused-ignore]  # in a vendored copy

logger = logging.getLogger("kuyruk")

#: Exit codes. The last but one is between a worker process and its supervisor.
STOPPED, FAILED, USAGE, INTERRUPTED, RESTART, QUIT = 0, 1, 2, 3, 4, 131
#: Seconds for the last words of a process that can't wait: a stuck thread may hold the log.
FLUSH_TIMEOUT = 1.0
#: Seconds that an ending process gets beyond its own limits, before it is killed.
KILL_MARGIN = 15.0
#: Seconds before a process that died is replaced: at first, and at last (twice as long each time).
FIRST_PAUSE, LAST_PAUSE = 0.2, 10.0
#: Seconds without a death after which the pauses begin anew. And the least between two restarts because of stuck
#: threads.
PROVED = 10.0
RESTART_INTERVAL = 5.0
#: Seconds that a process may run suspects only before another stands in for it.
ALONE_TOLERANCE = 1.0
#: Seconds that a worker process waits for its supervisor's answer.
ANSWER_TIMEOUT = 1.0
#: Seconds between two pulses of a worker process. It may be without one for three of them, and for so many heartbeats
#: of RabbitMQ: by then its connection is lost, and its messages are delivered to others.
PULSE = 5.0
FROZEN = 1.5
#: How many processes in a row may fail to start before the supervisor gives up.
MAX_FAILED_STARTS = 3
#: Seconds between two looks at what has come, where a wait can't be ended.
WINDOWS_TICK = 0.2
#: Seconds between two lines of `--failed`'s progress.
PROGRESS_INTERVAL = 2.0
#: How many suspects are remembered.
MAX_SUSPECTS = 10_000


class UsageError(Exception):
    """The command line or the application can't be used as it is; the text tells the user why."""


# --- The command line ----------------------------------------------------------

_EPILOG = """\
example:
  tasks.py has:                 app = kuyruk.Kuyruk()
                                @app.task(queue="mail")
                                def send_mail(address): ...
  a worker for its queues:      %(prog)s tasks
  one queue, 4 tasks at once:   %(prog)s tasks -q mail -t 4

signals:
  SIGINT (Ctrl-C), SIGTERM,     stop when the running tasks have ended, or after the shutdown timeout;
  SIGHUP (the terminal closes)  the second one interrupts them: their messages go back
  SIGQUIT (Ctrl-\\)              end at once; the running tasks will run again
  SIGUSR1                       print the running tasks and the stack of every thread
  SIGUSR2                       drop the running tasks: they are interrupted and don't run again

exit codes:
  0    stopped, and no task had to be interrupted for it
  1    the worker failed unexpectedly
  2    wrong command line or configuration, or the application can't be imported
  3    stopped, but running tasks had to be interrupted
  4    ended because of stuck threads (where it isn't restarted: Windows)
  131  ended by SIGQUIT
"""

#: Configuration key: flags, placeholder and help of the option that wins over it.
_OPTIONS = {
    "WORKER_THREADS": (["-t", "--threads"], "N", "tasks to run at once"),
    "WORKER_PROCESSES": (["-p", "--processes"], "N", "processes to run, each with its threads"),
    "WORKER_PREFETCH": (["--prefetch"], "N", "messages of each queue to hold unacknowledged"),
    "WORKER_MAX_LOAD": (["--max-load"], "L", "pause above this load average; -1: the number of CPUs"),
    "WORKER_MAX_RUN_TIME": (["--max-run-time"], "S", "stop after S seconds, as SIGTERM does"),
    "WORKER_GRACE": (["--grace"], "S", "seconds that an interrupted task gets to end"),
    "WORKER_SHUTDOWN_TIMEOUT": (["--shutdown-timeout"], "S", "seconds that running tasks get when it stops"),
    "WORKER_MAX_CRASHES": (["--max-crashes"], "N", "deaths of processes after which a message has failed"),
    "WORKER_PRIORITY": (["--priority"], "P", "larger ones are served first by the broker"),
    "WORKER_LOGGING_LEVEL": (["-l", "--logging-level"], "LEVEL", "DEBUG, INFO, WARNING or ERROR"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.splitlines())} (--help explains)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        print(f"kuyruk {_library().__version__}")
        parser.exit()


def _program() -> str:
    """As the user has called it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if __name__ == "__main__" and spec else os.path.basename(sys.argv[0])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog=_program(),
        description="Run the tasks of an application, as messages from RabbitMQ ask for them."
        " In brackets: the key of the application's configuration that an option wins over.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = "to import; the first holds the Kuyruk object (MODULE:NAME if it holds several), others more tasks"
    parser.add_argument("modules", nargs="+", metavar="MODULE", help=text)
    text = "consume this one, not all that the tasks name; repeatable; NAME.localhost: this machine's"
    parser.add_argument("-q", "--queue", action="append", help=text)
    for key, (flags, metavar, text) in _OPTIONS.items():
        read = str.upper if metavar == "LEVEL" else _number
        parser.add_argument(*flags, dest=key, type=read, metavar=metavar, help=f"{text} [{key}]")
    text = "remember there what brought processes down, across restarts of the whole worker, too"
    parser.add_argument("--state", metavar="FOLDER", help=text)
    text = "touch it every few seconds, but only while all processes consume: for liveness probes"
    parser.add_argument("--health", metavar="FILE", help=text)
    text = "don't run tasks: look at the messages in <queue>.failed, send them again, or delete them"
    parser.add_argument("--failed", choices=["list", "requeue", "purge"], help=text)
    parser.add_argument("--id", metavar="ID", help="with --failed: only the message with this id")
    parser.add_argument("--json", action="store_true", help="with --failed list: all of it, an object in each line")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    args = parser.parse_args(argv)
    if args.failed is None and (args.id is not None or args.json):
        parser.error("--id and --json go with --failed")
    return args


def _number(text: str) -> object:
    """The text itself if it is none: the configuration knows better what to say then."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for values that make no sense; before the application is imported."""
    config = _library().Config()
    for key, (flags, *_) in _OPTIONS.items():
        try:
            if getattr(args, key) is not None:
                setattr(config, key, getattr(args, key))
        except ValueError as error:
            raise UsageError(str(error).replace(key, "/".join(flags))) from None


# --- Finding the application ---------------------------------------------------


def _library() -> ModuleType:
    """kuyruk.py: in a vendored copy, the one beside this file."""
    return _locate(f"{__package__}.kuyruk" if __package__ else "kuyruk")[0]


def find_app(spec: str) -> tuple[str, Kuyruk]:
    """What "module", "module:name" or "module.name" names: as "module:name", and the object.

    Raises UsageError.
    """
    module, name = _locate(spec)
    apps = _apps(module)
    if name is None and len({id(app) for app in apps.values()}) == 1:
        name = next(iter(apps))
    if name not in apps:
        raise UsageError(_why_no_app(module, name))
    return f"{module.__name__}:{name}", apps[name]


def _apps(module: ModuleType) -> dict[str, Kuyruk]:
    # Not isinstance: it asks lazy objects (Flask's, Django's) for a class that they can't tell yet.
    kind = _library().Kuyruk
    return {name: value for name, value in list(vars(module).items()) if issubclass(type(value), kind)}


def _why_no_app(module: ModuleType, name: str | None) -> str:
    here, library = module.__name__, _library().__name__
    found = {key: value for key, value in vars(module).items() if name in (None, key)}
    for key, value in found.items():
        other = next((kind.__module__ for kind in type(value).__mro__ if kind.__name__ == "Kuyruk"), library)
        if other != library:
            return (
                f"{here}:{key} is a Kuyruk object of another copy of the library, {other!r}; this is the"
                f" worker of {library!r}. Put kuyruk_worker.py beside that copy: python -m {other}_worker"
            )
    if name is not None and found:
        text = f"{here}:{name} isn't a Kuyruk object but a {type(found[name]).__name__}"
    elif name is not None:
        text = f"module {here!r} has no {name!r}"
    elif _apps(module):
        text = f"module {here!r} has several Kuyruk objects: say which"
    else:
        text = f"module {here!r} has no Kuyruk object, as in: app = kuyruk.Kuyruk()"
    modules = [module] if _apps(module) else [m for m in sys.modules.values() if isinstance(m, ModuleType)]
    there = [f"{m.__name__}:{key}" for m in modules for key in _apps(m)]
    return f"{text} (there is {', '.join(there)})" if there else text


def _locate(spec: str) -> tuple[ModuleType, str | None]:
    """The module, imported, and the name in it if one is given. Raises UsageError."""
    if spec.endswith(".py") or os.sep in spec:
        name = os.path.relpath(spec).removesuffix(".py").replace(os.sep, ".").lstrip(".")
        raise UsageError(f"{spec!r} is a file: name the module, as {name!r}")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*)?", spec):
        raise UsageError(f"{spec!r} is no module's name, as 'app.tasks', and no object's, as 'app.tasks:app'")
    path, _, name = spec.partition(":")
    module = _import(path)
    if module is not None:
        return module, name or None
    parent, _, last = path.rpartition(".")
    module = sys.modules.get(parent)
    if module is not None and not name and (hasattr(module, last) or not hasattr(module, "__path__")):
        return module, last
    raise UsageError(_no_module(path))


def _import(name: str) -> ModuleType | None:
    """None if there is no such module. Raises UsageError if it can't be imported: its second
    argument is the application's part of the traceback."""
    try:
        return importlib.import_module(name)
    except _Stopped:
        raise
    except BaseException as error:  # a sys.exit() in the module, too
        trace = error.__traceback__
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        if isinstance(error, ModuleNotFoundError) and trace is None:
            return None
        shown = "".join(traceback.format_exception(type(error), error, trace))
        raise UsageError(f"module {name!r} can't be imported (see above): {error!r}", shown) from None


def _is_ours(file: str) -> bool:
    return file in (_is_ours.__code__.co_filename, importlib.__file__) or file.startswith("<frozen importlib")


def _no_module(path: str) -> str:
    """Which part of the path is wrong, where it was looked for, and what was meant, perhaps."""
    import difflib

    *parents, name = path.split(".")
    while parents and ".".join(parents) not in sys.modules:
        name = parents.pop()
    folders = list(getattr(sys.modules[".".join(parents)], "__path__", [])) if parents else [os.getcwd()]
    text = f"there is no module {'.'.join([*parents, name])!r} in {', '.join(folders) or '.'.join(parents)}"
    text += "" if parents else ", nor elsewhere on Python's path"
    known = [entry.removesuffix(".py") for f in folders if os.path.isdir(f) for entry in os.listdir(f)]
    close = difflib.get_close_matches(name, known, n=1)
    return f"{text}: did you mean {'.'.join([*parents, *close])!r}?" if close else text


# --- Signals -------------------------------------------------------------------


class _Stopped(BaseException):
    """Raised in the application's import by a signal to stop."""


class _Signals:
    """The signals that have come. Its owner, the main thread, waits for them and for others. Those that the platform
    lacks never come."""

    TO_STOP = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    NAMES = (*TO_STOP, "SIGQUIT", "SIGUSR1", "SIGUSR2")

    def __init__(self, *more: str, before: Mapping[int, Any] | None = None) -> None:
        """more: names of other signals. before: what the handlers were when the program began."""
        #: Names of signals, in their order.
        self.names: collections.deque[str] = collections.deque()
        #: The main thread imports the application: a signal to stop ends that.
        self.loading = False
        #: The exit code, when nobody takes them any more: one to stop ends what is left of the process.
        self.code: int | None = None
        #: What SIGQUIT does, in its handler, because it is for when nothing else helps.
        self.quit: Callable[[], object] = _quit
        #: Why this, and not only the handlers: one that comes just before a wait begins must end it.
        self._reader, self._writer = _make_pipe()
        numbers = {name: getattr(signal, name) for name in (*self.NAMES, *more) if hasattr(signal, name)}
        self.before = {n: signal.getsignal(n) for n in numbers.values()} if before is None else before
        # What was ignored when the program began stays so: nohup. But not what we can't do without.
        self._numbers = [n for name, n in numbers.items() if name in more or self.before[n] != signal.SIG_IGN]
        self.install()

    def install(self) -> None:
        if os.name != "nt":
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGQUIT":
            self.quit()
        self.names.append(name)
        if self.code is not None and name in self.TO_STOP:
            _exit_now(self.code)
        if self.loading and name in self.TO_STOP:
            self.loading = False  # once
            raise _Stopped(name)

    def wake(self) -> None:
        """From any thread: the wait ends."""
        with contextlib.suppress(OSError):
            os.write(self._writer, b"!")

    def wait(self, wires: Iterable[_Wire], until: float = math.inf) -> None:
        """Until a signal comes, or `wake` is called, or a wire can be read, or that time (monotonic)."""
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        if os.name == "nt":  # its select takes sockets only, and no handler is called during a wait
            return time.sleep(WINDOWS_TICK)
        select.select([self._reader, *(wire.fileno() for wire in wires)], [], [], timeout)
        with contextlib.suppress(OSError):
            os.read(self._reader, 4096)

    def block(self) -> None:
        """None comes until `unblock`: for a fork, after which the new process has handlers of its own to install."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def unblock(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def guard_forks(self) -> None:
        """A process that a task forks has nothing to do with us, and loses none that comes meanwhile."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.block, after_in_parent=self.unblock, after_in_child=self._forked)

    def _forked(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, self.before[number])
        self.unblock()

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def _quit() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"SIGQUIT: ended at once\n")
    os._exit(QUIT)


def _exit_now(code: int) -> NoReturn:
    """End the process without waiting for its threads."""

    def flush() -> None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()

    with contextlib.suppress(RuntimeError):  # too late for a thread
        thread = threading.Thread(target=flush, daemon=True)
        thread.start()
        thread.join(FLUSH_TIMEOUT)
    os._exit(code)


# --- Between the processes -----------------------------------------------------


def _make_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


class _Wire:
    """One end of the connection between the supervisor and a worker process. Messages are lists, as lines of JSON."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""

    @classmethod
    def make_pair(cls) -> tuple[_Wire, _Wire]:
        here, there = _make_pipe(), _make_pipe()
        return cls(here[0], there[1]), cls(there[0], here[1])

    def fileno(self) -> int:
        return self._reader

    def send(self, *message: Any) -> None:
        """Doesn't wait, nor fail: a process that is gone, or stands still, needs no message."""
        with contextlib.suppress(OSError):
            os.write(self._writer, json.dumps(message).encode() + b"\n")

    def receive(self) -> list[list[Any]] | None:
        """What has come, perhaps nothing. None when the other process is gone."""
        try:
            data = os.read(self._reader, 0x10000)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return list(self._decode(lines)) if data else None

    def _decode(self, lines: list[bytes]) -> Iterator[list[Any]]:
        for line in lines:
            with contextlib.suppress(ValueError):  # of what was sent while its buffer was full
                yield json.loads(line)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class _Journal:
    """Which messages a worker process runs, in memory that its supervisor reads when it has died (`kuyruk.Journal`).

    Its first byte is 1 + the exit code, once the process ends as it should; its second is 1 from when it was told to;
    bytes 8 to 15 are the time of its last pulse (time.monotonic(), whole seconds; 0: none yet); 16 to 23 the number of
    slots in use so far. The slots come then: each has a message's id, and begins with its length. What has no id, or
    one of more than 255 bytes, isn't noted.
    """

    SLOT, SLOTS = 256, 4096

    def __init__(self, crashes: Mapping[str, tuple[int, bool]], file: int = -1) -> None:
        """file: its descriptor, of a file that holds the memory, and outlives the supervisor, too; -1: none does."""
        import mmap

        self.crashes = dict(crashes)
        self.wire: _Wire | None = None  # of the worker process
        self._asked: dict[str, threading.Event] = {}
        self._file = file
        if file >= 0:
            os.ftruncate(file, self.SLOT * (1 + self.SLOTS))
        self._memory = mmap.mmap(file, self.SLOT * (1 + self.SLOTS))
        self._taken: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0

    def begin(self, id: str) -> None:
        data = id.encode("utf-8", "surrogatepass")
        slot = self._free.pop() if self._free else self._used + 1
        if slot <= self.SLOTS and len(data) < self.SLOT:
            self._taken[id] = slot
            at = slot * self.SLOT
            if slot > self._used:
                self._used = slot
                self._memory[16:24] = slot.to_bytes(8, "little")
            self._memory[at + 1 : at + 1 + len(data)] = data
            self._memory[at] = len(data)  # last: from here on it counts

    def end(self, id: str) -> None:
        slot = self._taken.pop(id, None)
        if slot is not None:
            self._memory[slot * self.SLOT] = 0
            self._free.append(slot)

    def count(self, id: str) -> tuple[int, bool]:
        """A process that died just now may have had it: the broker can be faster than the news. So ask for them."""
        answered = self._asked[id] = threading.Event()
        if self.wire is not None:
            self.wire.send("ask", id)
            answered.wait(ANSWER_TIMEOUT)
        return self.crashes.get(id, (0, False))

    def update(self, news: dict[str, tuple[int, bool]]) -> None:
        for id, (deaths, alone) in news.items():
            if deaths:
                self.crashes[id] = deaths, alone
            else:
                self.crashes.pop(id, None)
            if id in self._asked:
                self._asked.pop(id).set()

    def clear(self, id: str) -> None:
        self.crashes.pop(id, None)
        if self.wire is not None:
            self.wire.send("clear", id)

    @property
    def exit_code(self) -> int | None:
        """None if the process has died."""
        return self._memory[0] - 1 if self._memory[0] else None

    @exit_code.setter
    def exit_code(self, code: int) -> None:
        self._memory[0] = 1 + code

    @property
    def pulse(self) -> int:
        return int.from_bytes(self._memory[8:16], "little")

    def beat(self) -> None:
        self._memory[8:16] = int(time.monotonic()).to_bytes(8, "little")

    @property
    def stopping(self) -> bool:
        return self._memory[1] != 0

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._memory[1] = value

    @property
    def running(self) -> list[str]:
        used = min(int.from_bytes(self._memory[16:24], "little"), self.SLOTS)
        starts = range(self.SLOT, self.SLOT * (1 + used), self.SLOT)
        slots = (self._memory[at + 1 : at + 1 + self._memory[at]] for at in starts if self._memory[at])
        return [slot.decode("utf-8", "surrogatepass") for slot in slots]

    def hold(self) -> bool:
        """Let others see that this process, whose journal it is, lives; returns False if another one does."""
        if self._file >= 0:
            import fcntl

            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True

    def close(self) -> None:
        self._memory.close()
        if self._file >= 0:
            os.close(self._file)


class _State:
    """The supervisor's memory of crashes. With a folder (--state) it outlives the supervisor, and what its processes
    ran when all were killed at once counts, too: a container that exceeds its memory limit, say."""

    def __init__(self, folder: str | None) -> None:
        """Raises UsageError."""
        self.crashes: dict[str, tuple[int, bool]] = {}
        self._folder = folder
        self._files: dict[_Journal, str] = {}
        self._serial = itertools.count(1)
        if folder is not None:
            try:
                self._take_over(folder)
            except (OSError, ImportError) as error:
                raise UsageError(f"--state {folder}: {error}") from None

    def make_journal(self) -> _Journal:
        if self._folder is None:
            return _Journal(self.crashes)
        path = os.path.join(self._folder, f"journal-{os.getpid()}-{next(self._serial)}")
        journal = _Journal(self.crashes, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        self._files[journal] = path
        return journal

    def drop_journal(self, journal: _Journal) -> None:
        journal.close()
        if journal in self._files:
            os.unlink(self._files.pop(journal))

    def blame(self, ids: list[str]) -> dict[str, tuple[int, bool]]:
        """A process has died while it ran these messages; returns their new counts."""
        news = {}
        for id in ids:
            deaths, alone = self.crashes.pop(id, (0, False))
            news[id] = self.crashes[id] = deaths + 1, alone or len(ids) == 1
        for id in list(self.crashes)[:-MAX_SUSPECTS]:
            del self.crashes[id]
        self._save()
        return news

    def clear(self, id: str) -> None:
        if self.crashes.pop(id, None) is not None:
            self._save()

    def _save(self) -> None:
        if self._folder is None:
            return
        path = os.path.join(self._folder, "crashes.json")
        with contextlib.suppress(OSError):  # a full disk: then it forgets
            with open(f"{path}.new", "w") as file:
                json.dump(self.crashes, file)
            os.replace(f"{path}.new", path)

    def _take_over(self, folder: str) -> None:
        import fcntl

        os.makedirs(folder, exist_ok=True)
        self._lock = open(os.path.join(folder, "lock"), "w")  # noqa: SIM115
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"--state {folder}: another worker uses it") from None
        # What can't be read is forgotten: there is nothing better to do with it.
        unreadable = contextlib.suppress(OSError, ValueError, TypeError, AttributeError)
        with unreadable, open(os.path.join(folder, "crashes.json")) as file:
            self.crashes = {id: (int(deaths), bool(alone)) for id, (deaths, alone) in json.load(file).items()}
        for name in os.listdir(folder):
            if name.startswith("journal-"):
                self._read_left_behind(os.path.join(folder, name))

    def _read_left_behind(self, path: str) -> None:
        """The journal of a process whose supervisor is gone."""
        journal = _Journal({}, os.open(path, os.O_RDWR))
        if journal.hold():  # else it lives, and stops by itself
            if journal.exit_code is None and not journal.stopping:
                with contextlib.suppress(ValueError):
                    self.blame(journal.running)
            os.unlink(path)
        journal.close()


# --- The worker's process ------------------------------------------------------


class _Process:
    """Runs a worker in its threads, and meanwhile does what the signals and the supervisor say."""

    def __init__(self, worker: Worker, signals: _Signals, wire: _Wire | None, journal: _Journal | None) -> None:
        self._worker = worker
        self._journal = journal
        self._signals = signals
        self._wire = wire  # None: there is no supervisor
        self._stops = 0
        self._told: dict[str, bool] = {}

    def run(self) -> int:
        """Returns the exit code."""
        self._worker.on_change = self._signals.wake
        try:
            self._worker.start()
        except Exception:
            logger.critical("The worker can't start", exc_info=True)
            return FAILED
        while not self._worker.join(0):
            if self._journal is not None:
                self._journal.beat()
            self._signals.wait([self._wire] if self._wire else [], time.monotonic() + PULSE)
            try:
                self._look()
            except Exception:
                logger.exception("Can't do what it was told")
        if self._worker.error is not None:
            return FAILED
        if self._worker.aborted:
            return INTERRUPTED
        return RESTART if self._worker.stats["stuck"] else STOPPED

    def _look(self) -> None:
        while self._signals.names:
            self._react(self._signals.names.popleft())
        if self._wire is None:
            return
        orders = self._wire.receive()
        if orders is None:
            logger.warning("The supervising process is gone")
            self._wire = None
            self._stop("Stopping")
        for order in orders or []:
            self._obey(*order)
        self._tell()

    def _react(self, name: str) -> None:
        if name == "SIGUSR1":
            print(_report(self._worker), file=sys.stderr, flush=True)
        elif name == "SIGUSR2":
            logger.warning("SIGUSR2: dropping %d running tasks", self._worker.drop())
        elif not self._stops:
            self._stop(name)
        elif self._wire is None:  # a supervisor decides itself when it is enough, and sends `again`
            self._interrupt(name)

    def _obey(self, order: str, argument: Any) -> None:
        if order == "again":
            self._interrupt(argument)
        elif order == "retire":
            logger.info("Stopping when what runs has ended: %s", argument)
            self._worker.stop(math.inf, wait=False)
        elif order == "crashes" and self._journal is not None:
            self._journal.update({id: (deaths, alone) for id, (deaths, alone) in argument.items()})

    def _tell(self) -> None:
        """The supervisor, what has changed."""
        stats = self._worker.stats
        state = {"serving": self._worker.healthy, "alone": stats["suspect"] > 0, "worn": stats["stuck"] > 0}
        if state != self._told and self._wire is not None:
            self._wire.send("state", state)
            self._told = state

    def _stop(self, name: str) -> None:
        self._stops += 1
        if self._journal is not None:
            self._journal.stopping = True
        running = self._worker.stats["running"]
        if running:
            tasks = ", ".join(map(_describe, running[:5])) + (", ..." if len(running) > 5 else "")
            logger.info("%s: stopping when what runs has ended (again: interrupts it): %s", name, tasks)
        else:
            logger.info("%s: stopping", name)
        self._worker.stop(wait=False)

    def _interrupt(self, name: str) -> None:
        logger.warning("%s again: interrupting %d running tasks", name, len(self._worker.stats["running"]))
        self._worker.stop(timeout=0, wait=False)


def _describe(run: dict[str, Any]) -> str:
    return f"{run['task']} [{run['id']}] for {run['seconds']:.1f} s"


def _report(worker: Worker) -> str:
    """The counts, the running tasks, and where each thread is."""
    stats = worker.stats
    running = stats.pop("running")
    counts = ", ".join(f"{count} {name}" for name, count in stats.items())
    lines = [f"--- process {os.getpid()}: {counts}, {len(running)} running"]
    lines += [f"Task {_describe(run)}, from {run['queue']!r}" for run in running]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        lines.append(f"\nThread {names.get(ident, 'of unknown name')} ({ident}):")
        lines.append("".join(traceback.format_stack(frame)).rstrip())
    return "\n".join([*lines, "---"])


def _set_up_logging(level: str | None, default: str) -> None:
    """level: the command line's. An application that has set up logging itself keeps its handlers."""
    root = logging.getLogger()
    if not root.handlers:
        form = "%(asctime)s %(levelname)-7s %(process)d %(threadName)s: %(message)s"
        logging.basicConfig(level=level or default, format=form)
    elif level is not None:
        root.setLevel(level)
    logger.disabled = False  # dictConfig disables what it doesn't name, unless told not to
    amqpstorm = logging.getLogger("amqpstorm")
    amqpstorm.setLevel(amqpstorm.level or logging.WARNING)


def _load(args: argparse.Namespace, supervised: bool) -> tuple[Worker, dict[str, Any]]:
    """Import the application and make its worker. Returns the settings, too. Raises UsageError."""
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    _check(args)
    where, app = find_app(args.modules[0])
    app.packages.add(where.partition(":")[0].partition(".")[0])
    for module in args.modules[1:]:
        app.packages.add(_locate(module)[0].__name__.partition(".")[0])
    given = {key: getattr(args, key) for key in _OPTIONS}
    settings = {key: getattr(app.config, key) if value is None else value for key, value in given.items()}
    _set_up_logging(given["WORKER_LOGGING_LEVEL"], settings["WORKER_LOGGING_LEVEL"])
    options = {key.removeprefix("WORKER_").lower(): value for key, value in given.items()}
    del options["logging_level"], options["processes"]
    if supervised:
        options["max_run_time"] = 0  # the supervisor sees to it
    try:
        worker = app.worker(args.queue, **options)
    except ValueError as error:
        raise UsageError(f"-q/--queue: {error}") from None
    version, queues = _library().__version__, ", ".join(map(repr, worker.queues))
    threads = settings["WORKER_THREADS"]
    logger.info("kuyruk %s: worker of %s for %s with %d threads", version, where, queues, threads)
    return worker, settings


def _complain(error: UsageError) -> int:
    print(*error.args[1:], f"{_program()}: error: {error.args[0]}", sep="", file=sys.stderr)
    return USAGE


def _be_worker(
    args: argparse.Namespace, signals: _Signals, wire: _Wire | None = None, journal: _Journal | None = None
) -> int:
    """What a worker process does. Returns the exit code, but ends the process itself if a thread is stuck."""
    try:
        try:
            signals.loading = True
            signals.unblock()
            worker, settings = _load(args, supervised=wire is not None)
        except UsageError as error:
            if not signals.loading:  # a signal to stop has ended the import, in whatever form it came out
                raise _Stopped("signal") from None
            signals.code = _complain(error)
        finally:
            signals.loading = False
    except _Stopped as stopped:
        print(f"{_program()}: {stopped}: stopped before the worker began", file=sys.stderr)
        signals.code = STOPPED
    if signals.code is not None:
        return signals.code
    signals.install()  # handlers that the application has set meanwhile are replaced
    signals.guard_forks()
    if wire is not None and journal is not None:
        journal.wire = wire
        worker.journal = journal  # type: ignore[assignment, unused-ignore]  # it is one, though the library wasn't there to say so
        wire.send("loaded", settings | {"RABBIT_HEARTBEAT": worker.app.config.RABBIT_HEARTBEAT})
    signals.code = code = _Process(worker, signals, wire, journal).run()
    if journal is not None:
        journal.exit_code = code
    if worker.stats["stuck"]:
        _exit_now(code)
    return code


# --- Failed messages -----------------------------------------------------------


def _do_with_failed(args: argparse.Namespace) -> int:
    """`--failed list`, `requeue` or `purge`. Returns the exit code."""
    args.WORKER_LOGGING_LEVEL = args.WORKER_LOGGING_LEVEL or "WARNING"
    try:
        worker, _ = _load(args, supervised=False)
        for queue in worker.queues:
            _do_with_queue(worker.app, f"{queue}.failed", args)
    except UsageError as error:
        return _complain(error)
    except OSError as error:  # amqpstorm's, too
        print(f"{_program()}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("Interrupted: what wasn't dealt with is still there", file=sys.stderr)
        return FAILED
    return STOPPED


def _do_with_queue(app: Kuyruk, queue: str, args: argparse.Namespace) -> None:
    count, told_at = 0, time.monotonic()
    done = {"list": "", "requeue": " sent again", "purge": " deleted"}[args.failed]
    for count, facts in enumerate(app._failed_messages(queue, args.id, args.failed), 1):
        if args.failed == "list":
            print(json.dumps(facts) if args.json else _line_about(facts))
        elif time.monotonic() > told_at + PROGRESS_INTERVAL:
            told_at = time.monotonic()
            print(f"{count}{done}...", file=sys.stderr, flush=True)
    if not args.json:
        print(f"{queue}: {count} messages{done}")


def _line_about(facts: dict[str, Any]) -> str:
    first_line = str(facts["value"] or "").partition("\n")[0]
    text = f"{facts['id']}  {facts['task'] or '(no task)'}  {facts['failed_at']}  {facts['failed_on']}"
    text = f"{text}  {facts['failures']}x  {facts['exception']}: {first_line:.100}"
    return text if text.isprintable() else repr(text)[1:-1]  # no lines and no control codes of the message's


# --- The supervisor ------------------------------------------------------------


class _Child:
    """A worker process, as its supervisor sees it."""

    def __init__(self, pid: int, wire: _Wire, journal: _Journal) -> None:
        self.pid = pid
        self.wire = wire
        self.journal = journal
        #: It has imported the application.
        self.loaded = False
        #: It consumes.
        self.serving = False
        #: It has a stuck thread.
        self.worn = False
        #: time.monotonic() since when it has run suspects only; None: it doesn't.
        self.alone_since: float | None = None
        #: When it has last shown that it runs Python code, as far as is known.
        self.pulse = 0.0
        #: It was told to end; it was killed because it didn't.
        self.retiring = False
        self.killed = False

    def is_away(self, now: float) -> bool:
        return self.alone_since is not None and now - self.alone_since >= ALONE_TOLERANCE


def _plan(children: Iterable[_Child], wanted: int, now: float) -> tuple[int, int, list[_Child]]:
    """What to do so that as many processes as wanted serve, at any time: how many to start in the place of such that
    have ended, how many in the place of such that are worn, and which to retire, because others serve in their place.
    """
    staying = [child for child in children if not child.retiring]
    worn = [child for child in staying if child.worn]
    fresh = [child for child in staying if not child.worn and not child.is_away(now)]
    serving = [child for child in fresh if child.serving]
    ended = max(0, wanted - len(fresh) - len(worn))
    surplus = max(0, len(serving) - wanted)
    replaced = max(0, len(serving) - surplus + len(worn) - wanted)
    return ended, max(0, wanted - len(fresh)) - ended, serving[:surplus] + worn[:replaced]


class _Supervisor:
    """Starts worker processes, replaces those that end, and ends them all."""

    def __init__(self, args: argparse.Namespace, signals: _Signals) -> None:
        self._args = args
        self._signals = signals
        self._log = _make_log(args.WORKER_LOGGING_LEVEL)
        self._children: dict[int, _Child] = {}
        #: The first that has loaded tells the settings.
        self._settings: dict[str, Any] = {}
        self._began = time.monotonic()
        self._start_at = -PROVED  # no process is started before
        self._restarted_at = -RESTART_INTERVAL
        self._state = _State(args.state)
        self._asks: list[tuple[_Child, str]] = []
        self._last_pause = 0.0
        self._failed_starts = 0  # in a row
        self._stops = 0
        self._stopping = False
        self._kill_at = math.inf
        self._looked_at = math.inf  # for pulses
        self._health_at = -math.inf
        self._codes: list[int] = []
        signals.quit = self._quit

    def run(self) -> int:
        """Returns the exit code. Forks: in the child it doesn't return, but raises SystemExit."""
        while True:
            self._reap()
            self._answer()
            if self._stopping and not self._children:
                self._remove_health()
                return max(self._codes, key=[STOPPED, INTERRUPTED, FAILED, USAGE].index, default=STOPPED)
            due = self._manage(time.monotonic())
            self._signals.wait([child.wire for child in self._children.values()], due)
            while self._signals.names:
                self._react(self._signals.names.popleft())
            for child in list(self._children.values()):
                self._listen(child)

    # -- what happens

    def _react(self, name: str) -> None:
        """To a signal. They come before the deaths that they have caused: a child that Ctrl-C ends isn't replaced."""
        if name == "SIGCHLD":
            return
        if name in _Signals.TO_STOP:
            self._stops += 1
            self._stop(name)
            if self._stops > 1:
                self._insist(name)
        else:
            self._pass_on(name)

    def _pass_on(self, name: str) -> None:
        for child in self._children.values():
            os.kill(child.pid, getattr(signal, name))

    def _stop(self, name: str) -> None:
        """No process is started any more."""
        self._stopping = True
        self._pass_on(name)
        timeout = self._settings.get("WORKER_SHUTDOWN_TIMEOUT")
        if timeout is not None:
            self._kill_within(timeout)

    def _insist(self, name: str) -> None:
        for child in self._children.values():
            if child.loaded:
                child.wire.send("again", name)
            else:
                self._kill(child, "it is still importing the application")
        self._kill_within(0)

    def _kill(self, child: _Child, why: str) -> None:
        self._log.error("Process %d is killed, what it runs will run again: %s", child.pid, why)
        child.killed = True
        os.kill(child.pid, signal.SIGKILL)

    def _quit(self) -> None:
        for child in list(self._children.values()):
            os.kill(child.pid, signal.SIGKILL)
        _quit()

    def _kill_within(self, timeout: float) -> None:
        at = time.monotonic() + timeout + self._settings.get("WORKER_GRACE", 0) + KILL_MARGIN
        self._kill_at = min(at, self._kill_at)

    def _listen(self, child: _Child) -> None:
        for kind, content in child.wire.receive() or []:
            if kind == "loaded":
                child.loaded = True
                self._settings = content
            elif kind == "state":
                child.serving, child.worn = content["serving"], content["worn"]
                self._failed_starts = 0 if child.serving else self._failed_starts
                child.alone_since = (child.alone_since or time.monotonic()) if content["alone"] else None
            elif kind == "ask":
                self._asks.append((child, content))
            elif kind == "clear":
                self._state.clear(content)

    def _answer(self) -> None:
        """After the last dead processes have been reaped."""
        while self._asks:
            child, id = self._asks.pop()
            if child.pid in self._children:
                child.wire.send("crashes", {id: self._state.crashes.get(id, (0, False))})

    def _reap(self) -> None:
        """Processes that aren't ours, too: in a container this one may be their init."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                child = self._children.pop(pid, None)
                if child is not None:
                    self._listen(child)  # its last words
                    self._on_end(child, os.waitstatus_to_exitcode(status))
                    child.wire.close()
                    self._state.drop_journal(child.journal)

    def _on_end(self, child: _Child, status: int) -> None:
        code = child.journal.exit_code  # None: it has died
        if self._stopping:
            self._codes.append(_last_code(child, code))
        elif code == FAILED or (code is None and not child.loaded):
            self._on_failed_start(child, USAGE if status == USAGE else FAILED, _how(status))
        elif code is None:
            self._on_death(child, "killed by its supervisor" if child.killed else _how(status))
        elif not child.retiring and code != RESTART:
            text = "Process %d has stopped, another one takes its place in %.1f s"
            self._log.warning(text, child.pid, self._pause())

    def _on_failed_start(self, child: _Child, code: int, how: str) -> None:
        self._failed_starts += 1
        if code == USAGE and not self._settings:  # the first, which has said why
            self._give_up(code)
        elif self._failed_starts >= MAX_FAILED_STARTS and not any(each.serving for each in self._children.values()):
            self._log.critical("Giving up: %d processes in a row couldn't start (%s)", self._failed_starts, how)
            self._give_up(code)
        else:
            self._log.error("Process %d couldn't start: %s; trying again in %.1f s", child.pid, how, self._pause())

    def _give_up(self, code: int) -> None:
        self._codes.append(code)
        self._stop("SIGTERM")

    def _on_death(self, child: _Child, how: str) -> None:
        suspects = child.journal.running
        if any(id in self._state.crashes for id in suspects):  # to be expected, and not for long: it has a limit
            self._last_pause = 0
        news = self._state.blame(suspects)
        for other in self._children.values():
            other.wire.send("crashes", news)
        what = f"while it ran {', '.join(suspects)}" if suspects else "while it ran nothing"
        self._log.error("Process %d died %s: %s; starting another in %.1f s", child.pid, what, how, self._pause())

    def _pause(self) -> float:
        """Seconds until the next is started: more and more of them, unless all goes well for a while."""
        now = time.monotonic()
        if now - self._start_at >= PROVED:
            self._last_pause = 0
        self._last_pause = min(max(FIRST_PAUSE, 2 * self._last_pause), LAST_PAUSE)
        self._start_at = now + self._last_pause
        return self._last_pause

    # -- what is to be done

    def _manage(self, now: float) -> float:
        """Start, retire and kill; returns when there is something to do again if nothing happens."""
        look_at = self._look_for_frozen(now)
        look_at = min(look_at, self._tell_health(now))
        if self._stopping:
            if now >= self._kill_at:
                self._kill_at = math.inf
                for child in self._children.values():
                    self._kill(child, "it doesn't end")
            return min(self._kill_at, look_at)
        limit = self._settings.get("WORKER_MAX_RUN_TIME")
        end = self._began + limit if limit else math.inf
        if now >= end:
            self._log.info("Stopping after %g seconds (max_run_time)", limit)
            self._stop("SIGTERM")
            return self._manage(now)
        return min([end, look_at, *self._staff(now)])

    def _look_for_frozen(self, now: float) -> float:
        """Kill those that have had no pulse for so long that their connection is lost; returns when to look again."""
        heartbeat = self._settings.get("RABBIT_HEARTBEAT", 0)
        limit = max(FROZEN * heartbeat, 3 * PULSE)
        late = now - self._looked_at > 2 * PULSE  # stopped by Ctrl-Z, say, as its children were: they get time anew
        self._looked_at = now
        for child in self._children.values() if heartbeat else ():
            child.pulse = now if late else max(child.pulse, child.journal.pulse)
            if child.journal.pulse and child.journal.exit_code is None and now - child.pulse > limit:
                child.pulse = math.inf  # once
                self._kill(child, f"no Python code has run for {limit:g} seconds (C code holds Python's lock?)")
        return now + PULSE if heartbeat else math.inf

    def _remove_health(self) -> None:
        with contextlib.suppress(OSError, TypeError):  # there is none
            os.unlink(self._args.health)

    def _tell_health(self, now: float) -> float:
        """Touch the file if all is well; returns when to do it again."""
        path = self._args.health
        if path is None:
            return math.inf
        serving = sum(child.serving and now - child.journal.pulse < 3 * PULSE for child in self._children.values())
        if self._stopping or serving < self._settings.get("WORKER_PROCESSES", 1):
            self._health_at = -math.inf  # at once, when it is well again
        elif now >= self._health_at:
            self._health_at = now + PULSE
            try:
                with open(path, "w") as file:
                    file.write(f"{serving} processes consume\n")
            except OSError as error:
                self._log.error("Can't write the health file: %s", error)
        return self._health_at if self._health_at > now else math.inf

    def _staff(self, now: float) -> list[float]:
        """Have as many processes as wanted; returns times at which to look again."""
        children = list(self._children.values())
        wanted = self._settings.get("WORKER_PROCESSES", 1)  # not known before one has loaded
        ended, worn, to_retire = _plan(children, wanted, now)
        for child in to_retire:
            child.retiring = True
            child.wire.send("retire", "another process has taken its place")
        restart_at = max(self._start_at, self._restarted_at + RESTART_INTERVAL)
        if worn and now >= restart_at:
            self._restarted_at = now
            self._start(worn)
        if ended and now >= self._start_at:
            self._start(ended)
        times = [self._start_at] * ended + [restart_at] * worn
        times += [child.alone_since + ALONE_TOLERANCE for child in children if child.alone_since]
        return [at for at in times if at > now]

    def _start(self, count: int) -> None:
        for _ in range(count):
            try:
                self._fork()
            except OSError as error:  # no memory, no descriptors...; the child doesn't come here
                self._log.error("Can't start a process: %s; trying again in %.1f s", error, self._pause())
                return

    def _fork(self) -> None:
        with contextlib.ExitStack() as undo:
            ours, theirs = _Wire.make_pair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            journal = self._state.make_journal()
            undo.callback(self._state.drop_journal, journal)
            undo.callback(self._signals.unblock)
            self._signals.block()
            pid = os.fork()
            undo.pop_all()
        if not pid:
            code = FAILED
            try:
                ours.close()
                code = self._be_child(theirs, journal)
            except BaseException:  # whatever it is, it must not get out of here: the child would be a supervisor, too
                with contextlib.suppress(OSError):  # nobody reads it
                    traceback.print_exc()
            sys.exit(code)
        self._children[pid] = _Child(pid, ours, journal)
        self._signals.unblock()  # not before: SIGQUIT is for all children
        theirs.close()

    def _be_child(self, wire: _Wire, journal: _Journal) -> int:
        """Returns the exit code."""
        for child in self._children.values():
            child.wire.close()  # else it wouldn't notice that the supervisor is gone
            child.journal.close()
        self._signals.close()
        signal.signal(signal.SIGCHLD, self._signals.before[signal.SIGCHLD])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        signals = _Signals(before=self._signals.before)

        def quit() -> None:  # the supervisor has said it
            journal.exit_code = QUIT
            os._exit(QUIT)

        signals.quit = quit
        journal.hold()
        return _be_worker(self._args, signals, wire, journal)


def _last_code(child: _Child, code: int | None) -> int:
    """What the end of a process while all are stopping means for the exit code of the whole."""
    if code is None:
        return STOPPED if not child.loaded else INTERRUPTED if child.killed else FAILED
    return STOPPED if code in (RESTART, QUIT) else code


def _how(status: int) -> str:
    """It has ended."""
    if status >= 0:
        return f"exit code {status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (for its memory, perhaps)" if name == "SIGKILL" else "")
    return f"killed by signal {-status}"


def _make_log(level: str | None) -> logging.Logger:
    """The supervisor's own: the application sets up logging for its worker processes."""
    log = logging.getLogger("kuyruk.supervisor")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(process)d supervisor: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    with contextlib.suppress(ValueError):  # a worker process explains it
        log.setLevel(level or "INFO")
    return log


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code, but ends the process itself if a task is stuck."""
    try:
        args = _parse(argv)
    except UsageError as error:
        return _complain(error)
    if args.failed is not None:
        return _do_with_failed(args)
    if not hasattr(os, "fork"):
        return _be_worker(args, _Signals())
    try:
        supervisor = _Supervisor(args, _Signals("SIGCHLD"))
    except UsageError as error:
        return _complain(error)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
