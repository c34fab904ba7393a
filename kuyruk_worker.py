"""Run kuyruk workers as processes: command line, signals, supervision, exit codes.

    $ python -m kuyruk_worker app.tasks                # or: kuyruk-worker app.tasks

Beside a vendored `pkg/vendor/kuyruk.py`: `python -m pkg.vendor.kuyruk_worker pkg.tasks`.


The processes, and what each owns
=================================

      supervisor (one thread)                     worker process (1..WORKER_PROCESSES, forked)
      -----------------------                     --------------------------------------------
      signals  ------------ passed on --------->  main thread: signals, orders, what has changed
      the plan: who serves, retires, is replaced       |
          |  ^                                         v
          |  '-- state: serving, degraded ---------  kuyruk.Worker, with its threads
          '----- orders: retire, again, crashes ->     | begin, end
      deaths <------- journal (shared memory) <--------'

*The supervisor* imports neither the library nor the application. It waits in `_Signals.wait` for
signals (SIGCHLD among them), for what its children tell, and for the time when something is due. It
ends when its children have.
*A worker process* imports the application. Its main thread then waits in `_Signals.wait`, too; the
worker runs in threads of its own. It ends when the worker has, and stops as at SIGTERM when its
supervisor is gone (its end of the pipe is closed).

Nobody waits for the other: what is sent over a pipe doesn't block, and an order that comes late
does no harm. Where there is no fork (Windows) the worker runs in the first process, and nothing
replaces it.

A process with a stuck thread, or above --max-memory, is *degraded*: another is started, and when
that consumes, the degraded one retires, that is, it stops gracefully, without a limit. So a restart
costs no task anything.
A process that dies leaves its journal, which says what it was running. One of these messages is to
blame: they are *suspects*. No process runs two suspects at once (kuyruk.py, quarantine), so when
another dies, the only suspect that it had in hand is to blame.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import importlib.util
import io
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
    from typing import Any, NoReturn, TypeVar

    # In a vendored copy it is another module.
    from kuyruk import (  # type: ignore[import-not-found, unused-ignore]
        Config,
        FailedMessage,
        Kuyruk,
        Worker,
    )

    T = TypeVar("T")

logger = logging.getLogger("kuyruk")

#: Exit codes. The last but one is between a worker process and its supervisor.
STOPPED, FAILED, USAGE, INTERRUPTED, RESTART, QUIT = 0, 1, 2, 3, 4, 131
#: Seconds for the last words of a process, and for a line of the supervisor's log: a stuck thread
#: may hold the log, or nobody may read it.
FLUSH_TIMEOUT = 1.0
#: Seconds that an ending process gets beyond its own limits, before it is killed.
KILL_MARGIN = 15.0
#: Seconds before another process is replaced: at first, and at last (twice as long each time).
FIRST_PAUSE, LAST_PAUSE = 0.2, 10.0
#: Seconds without a replacement after which the pauses begin anew.
PROVED = 10.0
#: Seconds that a worker process waits for its supervisor's answer.
ANSWER_TIMEOUT = 1.0
#: Seconds between two pulses of a worker process. It may be without one for three of them.
PULSE = 5.0
#: And for so many heartbeats of RabbitMQ: by then its connection is lost, and its messages are
#: delivered to others.
FROZEN = 1.5
#: Seconds until the supervisor looks again, after an unexpected exception.
DEFECT_PAUSE = 1.0
#: How many processes in a row may fail to start before the supervisor gives up.
MAX_FAILED_STARTS = 3
#: Seconds between two looks at what has come, where a wait can't be ended.
WINDOWS_TICK = 0.2
#: Seconds between two lines of `--failed`'s progress.
PROGRESS_INTERVAL = 2.0
#: How many suspects are remembered.
MAX_SUSPECTS = 10_000
#: Seconds within which several signals of one kind express one wish. A terminal that closes sends
#: SIGHUP twice (kernel and shell), systemd SIGTERM and SIGHUP (SendSIGHUP=), Ctrl-C reaches a
#: process of the group directly and by its supervisor.
ONE_WISH = 1.0
#: Characters of an id or a name that are shown.
MAX_SHOWN = 300
#: Milliseconds: the longest wait that `poll` takes.
MAX_POLL = 0x7FFFFFFF
#: What the supervisor has to know of the application's configuration; its values until a process
#: has imported that.
_SETTINGS: dict[str, Any] = {
    "WORKER_PROCESSES": 1,
    "WORKER_MAX_RUN_TIME": None,
    "WORKER_SHUTDOWN_TIMEOUT": None,
    "WORKER_GRACE": 0,
    "RABBIT_HEARTBEAT": 0,
}


class UsageError(Exception):
    """The command line or the application can't be used as it is; the text tells the user why."""


# --- Texts ---------------------------------------------------------------------


def _shown(value: object) -> str:
    """Return an id, a name or a text that a message brought, as it may be written to a log or a
    terminal: bounded, and without line ends or control codes of its own."""
    text = str(value)
    if len(text) > MAX_SHOWN:
        text = f"{text[:MAX_SHOWN]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def _without_password(text: str) -> str:
    """Return the text with "..." for the user and the password of each URL in it."""
    return re.sub(r"//\S*@", "//...@", text)


def _counted(count: int, noun: str) -> str:
    """Return "1 message", or "2 messages"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def _first_names(names: Iterable[str], most: int) -> str:
    """Return the names with commas between them, but no more than so many."""
    shown = list(itertools.islice(names, most + 1))
    return ", ".join(shown[:most] + ["..."] * (len(shown) > most))


def _say(*lines: str) -> None:
    """Print lines on stderr; nothing, and no error, if nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def _stderr_takes_text(timeout: float) -> bool:
    """Return whether a line can be written to stderr, now or within so many seconds. It can't if
    whoever reads a pipe has stopped to do so: a write would wait without an end."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(timeout * 1000))


def _complain(error: UsageError, code: int = USAGE) -> int:
    """Print on stderr what is wrong. Return the exit code for it."""
    text = _without_password(str(error.args[0]))
    _say(*[trace.rstrip() for trace in error.args[1:]], f"{_program()}: error: {text}")
    return code


# --- The command line ----------------------------------------------------------

_EPILOG = """\
example:
  tasks.py has:                 app = kuyruk.Kuyruk()
                                @app.task(queue="mail")
                                def send_mail(address): ...
  a worker for its queues:      %(prog)s tasks
  one queue, 4 tasks at once:   %(prog)s tasks -q mail -t 4
  what is in the queues:        %(prog)s tasks --status

signals:
  SIGINT (Ctrl-C), SIGTERM,     stop when the running tasks have ended, or after the shutdown time;
  SIGHUP (the terminal closes)  another one, more than a second later, interrupts them: their
                                messages go back
  SIGQUIT (Ctrl-\\)              end at once; the running tasks will run again
  SIGUSR1                       print the running tasks and the stack of every thread
  SIGUSR2                       drop the running tasks: they are interrupted and don't run again

exit codes:
  0    stopped, and no task had to be interrupted for it
  1    the worker failed unexpectedly; --failed: something couldn't be done; --status: messages
       and no consumer
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
    "WORKER_MAX_LOAD": (["--max-load"], "L", "pause above this load average; -1: number of CPUs"),
    "WORKER_MAX_RUN_TIME": (["--max-run-time"], "S", "stop after S seconds, as SIGTERM does"),
    "WORKER_GRACE": (["--grace"], "S", "seconds that an interrupted task gets to end"),
    "WORKER_SHUTDOWN_TIMEOUT": (["--shutdown-timeout"], "S", "seconds for running tasks at a stop"),
    "WORKER_MAX_CRASHES": (["--max-crashes"], "N", "deaths after which a message has failed"),
    "WORKER_PRIORITY": (["--priority"], "P", "larger ones are served first by the broker"),
    "WORKER_LOGGING_LEVEL": (["-l", "--logging-level"], "LEVEL", "DEBUG, INFO, WARNING or ERROR"),
    "RABBIT_URL": (["--broker"], "URL", "the broker's, as amqp://user:password@host:port/vhost (a"
                   " password is better kept in the configuration: others can read commands)"),
}  # fmt: skip
#: How texts call the options.
_FLAGS = {key: "/".join(flags) for key, (flags, *_) in _OPTIONS.items()}


class _Parser(argparse.ArgumentParser):
    """Raises UsageError for what is wrong, instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message, in one line."""
        raise UsageError(f"{' '.join(message.splitlines())} (--help explains)")


class _Version(argparse.Action):
    """Prints the library's version, which is imported for nothing else here."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        """Print it, and end the program."""
        print(f"kuyruk {_library().__version__}")
        parser.exit()


def _did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """Return a hint at the known word that is most like this one, whatever its capitals; "" if none
    is. before: what stands before it in the hint."""
    import difflib

    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), names, n=1)
    return f": did you mean {before + names[close[0]]!r}?" if close else ""


def _program() -> str:
    """Return the command as the user has called it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if __name__ == "__main__" and spec:
        return f"python -m {spec.name}"
    return os.path.basename(sys.argv[0])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; `for_tasks`: to run them. Raise UsageError for what is
    no command line or can't have an effect."""
    parser = _Parser(
        prog=_program(),
        description="Run the tasks of an application, as messages from RabbitMQ ask for them.\n"
        "In brackets: the key of the application's configuration that an option wins over.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    text = "to import; the first holds the Kuyruk object (MODULE:NAME if it holds several), others"
    add("modules", nargs="+", metavar="MODULE", help=f"{text} more tasks")
    text = "consume this one, not all that the tasks name; repeatable; NAME.localhost: this"
    add("-q", "--queue", action="append", help=f"{text} machine's")
    read: dict[str, Callable[[str], object]] = {"LEVEL": str.upper, "URL": str}
    for key, (flags, metavar, text) in _OPTIONS.items():
        how = read.get(metavar, _number)
        add(*flags, dest=key, type=how, metavar=metavar, help=f"{text} [{key}]")
    text = "replace a process that uses more megabytes, when another consumes in its place"
    add("--max-memory", type=_number, metavar="MB", help=text)
    text = "remember there what brought processes down, across restarts of the whole worker, too"
    add("--state", metavar="FOLDER", help=text)
    text = "touch it every few seconds, but only while all processes consume: for liveness probes"
    add("--health", metavar="FILE", help=text)
    text = "don't run tasks: look at the messages in <queue>.failed, send them again, or delete"
    add("--failed", choices=["list", "requeue", "purge"], help=f"{text} them")
    add("--id", metavar="ID", help="with --failed: only the message with this id")
    text = "don't run tasks: what is in the queues; exit code 1 if one has messages and no consumer"
    add("--status", action="store_true", help=text)
    text = "with --failed list and --status: all of it, an object in each line"
    add("--json", action="store_true", help=text)
    add("--version", action=_Version, nargs=0, help="print the version and exit")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        hints = (_did_you_mean(option, parser._option_string_actions) for option in options)
        hint = next(filter(None, hints), "")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    args.for_tasks = args.failed is None and not args.status
    _check_combination(parser, args)
    return args


def _number(text: str) -> object:
    """Return the number, or the text itself if it is none: the configuration says what is wrong."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _check_combination(parser: _Parser, args: argparse.Namespace) -> None:
    """Raise UsageError for what can't have an effect, before anything is started or imported."""
    if args.failed is not None and args.status:
        parser.error("--failed and --status don't go together")
    if args.failed is None and args.id is not None:
        parser.error("--id goes with --failed")
    if args.json and args.failed != "list" and not args.status:
        parser.error("--json goes with --failed list and with --status")
    limit = args.max_memory
    if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
        parser.error(f"--max-memory takes megabytes, more than 0: not {limit!r}")
    without_effect = {"--state": args.state, "--health": args.health, "--max-memory": limit}
    if not args.for_tasks:
        why = "is for running tasks: --failed and --status don't"
        without_effect |= {
            flags: getattr(args, key)
            for key, flags in _FLAGS.items()
            if key not in ("WORKER_LOGGING_LEVEL", "RABBIT_URL")
        }
    elif not hasattr(os, "fork"):
        why = "needs a process that watches over others, which this system can't fork"
        if args.WORKER_PROCESSES != 1:
            without_effect[_FLAGS["WORKER_PROCESSES"]] = args.WORKER_PROCESSES
    else:
        return
    for option, value in without_effect.items():
        if value is not None:
            parser.error(f"{option} {why}")


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for values that make no sense, before the application is imported."""
    config = _library().Config()
    for key, option in _FLAGS.items():
        try:
            _configure(config, key, args)
        except ValueError as error:
            text = str(error).replace(key, option).replace(", or None", "")
            raise UsageError(text) from None


def _configure(config: Config, key: str, args: argparse.Namespace) -> None:
    """Set the key to what the command line gives for it, if it does. Raise ValueError if that makes
    no sense."""
    if getattr(args, key) is not None:
        setattr(config, key, getattr(args, key))


# --- Finding the application ---------------------------------------------------


def _library() -> ModuleType:
    """Return kuyruk.py: in a vendored copy, the one beside this file. Raise UsageError if it is
    another project's, as PyPI's "kuyruk", a package, which Python finds before a module beside
    it."""
    name = f"{__package__}.kuyruk" if __package__ else "kuyruk"
    # Finding it imports nothing but the packages that hold it: another project's isn't run.
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        found = spec.origin or next(iter(spec.submodule_search_locations), None)
    else:
        module = _locate(name)[0]
        if hasattr(module, "Kuyruk") and hasattr(module, "Journal"):
            return module
        found = module.__file__
    ours = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kuyruk.py")
    raise UsageError(
        f"'import kuyruk' finds another project's library, {found}, and not the one of this worker,"
        f" {ours}: uninstall or rename the other one (PyPI's 'kuyruk' is another project; this one"
        " is 'kuyruk-amqpstorm')"
    )


def find_app(spec: str) -> tuple[str, Kuyruk]:
    """Return what "module", "module:name" or "module.name" names: as "module:name", and the object.

    Raise UsageError if that is no Kuyruk object, or one of several.
    """
    module, name = _locate(spec)
    apps = _apps(module)
    if name is None and len({id(app) for app in apps.values()}) == 1:
        name = next(iter(apps))
    if name not in apps:
        raise UsageError(_why_no_app(module, name))
    return f"{module.__name__}:{name}", apps[name]


def _apps(module: ModuleType) -> dict[str, Kuyruk]:
    """Return the Kuyruk objects in the module, by their names there."""
    # Not isinstance: it asks lazy objects (Flask's, Django's) for a class that they can't tell yet.
    kind = _library().Kuyruk
    return {name: app for name, app in list(vars(module).items()) if issubclass(type(app), kind)}


def _why_no_app(module: ModuleType, name: str | None) -> str:
    """Return why the module has no Kuyruk object, or none of this name, and where there is one."""
    here, library = module.__name__, _library().__name__
    found = {key: value for key, value in vars(module).items() if name in (None, key)}
    for key, value in found.items():
        its = [kind.__module__ for kind in type(value).__mro__ if kind.__name__ == "Kuyruk"]
        if its and its[0] != library:
            return (
                f"{here}:{key} is a Kuyruk object of another copy of the library, {its[0]!r}; this"
                f" is the worker of {library!r}. Put kuyruk_worker.py beside that copy:"
                f" python -m {its[0]}_worker"
            )
    apps = _apps(module)
    if name is not None and found:
        text = f"{here}:{name} isn't a Kuyruk object but a {type(found[name]).__name__}"
    elif name is not None:
        text = f"module {here!r} has no {name!r}"
    elif apps:
        text = f"module {here!r} has several Kuyruk objects: say which"
    else:
        text = f"module {here!r} has no Kuyruk object, as in: app = kuyruk.Kuyruk()"
    everywhere = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    there = [f"{m.__name__}:{key}" for m in ([module] if apps else everywhere) for key in _apps(m)]
    return f"{text} (there is {', '.join(there)})" if there else text


def _locate(spec: str) -> tuple[ModuleType, str | None]:
    """Return the module, imported, and the name in it if one is given. Raise UsageError if there is
    none, or it can't be imported."""
    if spec.endswith(".py") or os.sep in spec:
        name = os.path.relpath(spec).removesuffix(".py").replace(os.sep, ".").lstrip(".")
        raise UsageError(f"{spec!r} is a file: name the module, as {name!r}")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*)?", spec):
        text = "is no module's name, as 'app.tasks', and no object's, as 'app.tasks:app'"
        raise UsageError(f"{spec!r} {text}")
    path, _, name = spec.partition(":")
    module = _import(path)
    if module is not None:
        return module, name or None
    # "module.name"? In a package, what isn't there is rather a module that is misspelt.
    parent, _, last = path.rpartition(".")
    module = None if name else sys.modules.get(parent)
    if module is not None and (hasattr(module, last) or not hasattr(module, "__path__")):
        return module, last
    raise UsageError(_why_no_module(path))


def _import(name: str) -> ModuleType | None:
    """Return the module, or None if there is none. Raise UsageError if it can't be imported: its
    second argument is the application's part of the traceback."""
    try:
        return importlib.import_module(name)
    except _Stopped:
        raise
    except BaseException as error:  # a sys.exit() in the module, too
        trace = error.__traceback__
        # The first frames are this one's and those of Python's import.
        ours = [_import.__code__.co_filename, importlib.__file__]
        ours += ["<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"]
        while trace is not None and trace.tb_frame.f_code.co_filename in ours:
            trace = trace.tb_next
        if isinstance(error, ModuleNotFoundError) and trace is None:
            return None
        shown = "".join(traceback.format_exception(type(error), error, trace))
        why = f"{type(error).__name__}: {_shown(error)}".removesuffix(": ")
        raise UsageError(f"module {name!r} can't be imported (see above): {why}", shown) from None


def _why_no_module(path: str) -> str:
    """Return which part of the path is wrong, where it was looked for, and what was meant."""
    *parents, name = path.split(".")
    while parents and ".".join(parents) not in sys.modules:
        name = parents.pop()
    parent, folders = ".".join(parents), [os.getcwd()]
    if parents:
        folders = list(getattr(sys.modules[parent], "__path__", []))
    text = f"there is no module {'.'.join([*parents, name])!r} in {', '.join(folders) or parent}"
    text += "" if parents else ", nor elsewhere on Python's path"
    files = [file for folder in folders if os.path.isdir(folder) for file in os.listdir(folder)]
    known = [file.removesuffix(".py") for file in files]
    return text + _did_you_mean(name, known, f"{parent}." if parents else "")


# --- Signals -------------------------------------------------------------------


class _Stopped(BaseException):
    """Raised in the application's import by a signal to stop."""


class _Signals:
    """Collects signals for the main thread, which waits for them, for pipes and for `wake`. Signals
    that the platform lacks never come."""

    TO_STOP = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    NAMES = (*TO_STOP, "SIGQUIT", "SIGUSR1", "SIGUSR2")

    def __init__(self, *more: str, before: Mapping[int, Any] | None = None) -> None:
        """more: names of other signals. before: what the handlers were when the program began."""
        #: Names of signals, in their order.
        self.names: collections.deque[str] = collections.deque()
        #: By kind of signal: when one last counted (time.monotonic()).
        self._counted_at: dict[str, float] = {}
        #: The main thread imports the application: a signal to stop ends that.
        self.loading = False
        #: The exit code, when nobody takes them any more: one to stop ends what is left of the
        #: process.
        self.code: int | None = None
        #: What SIGQUIT does, in its handler, because it is for when nothing else helps.
        self.quit: Callable[[], object] = _quit
        #: What each signal writes to, and the wait reads. Handlers alone aren't enough: 1. The main
        #: thread: finds no names. 2. A signal: its handler adds one. 3. The main thread: waits.
        self._reader, self._writer = _make_pipe()
        names = [name for name in (*self.NAMES, *more) if hasattr(signal, name)]
        numbers = {name: getattr(signal, name) for name in names}
        self.before = before or {n: signal.getsignal(n) for n in numbers.values()}
        # What was ignored when the program began stays so: nohup. But not what we can't do without.
        self._numbers = [
            n for name, n in numbers.items() if name in more or self.before[n] != signal.SIG_IGN
        ]
        self.install()

    def install(self) -> None:
        """Install the handlers. Again, when the application may have set some of its own."""
        if os.name != "nt":
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. This runs between any two instructions of the main thread: so it may
        only change deques and flags, end the process, or raise where that is expected."""
        name = signal.Signals(number).name
        if name == "SIGQUIT":
            self.quit()
        if not self.counts(name, time.monotonic()):
            return
        self.names.append(name)
        if self.code is not None and name in self.TO_STOP:
            _exit_now(self.code)
        if self.loading and name in self.TO_STOP:
            self.loading = False  # once
            raise _Stopped(name)

    def counts(self, name: str, now: float) -> bool:
        """Return whether a signal that comes now is a wish of its own (see ONE_WISH). If it is,
        those of its kind that come soon aren't."""
        kind = "stop" if name in self.TO_STOP else name
        if kind != "SIGCHLD" and now - self._counted_at.get(kind, -math.inf) < ONE_WISH:
            return False
        self._counted_at[kind] = now
        return True

    def wake(self) -> None:
        """End the wait. May be called by any thread."""
        with contextlib.suppress(OSError):  # it is full of wake-ups
            os.write(self._writer, b"!")

    def wait(self, pipes: Iterable[_Pipe], until: float = math.inf) -> None:
        """Wait until a signal comes, or `wake` is called, or a pipe can be read, or until a
        time.monotonic()."""
        if os.name == "nt":  # its select takes sockets only, and no handler is called during a wait
            return time.sleep(WINDOWS_TICK)
        poll = select.poll()  # not select.select: that takes no descriptor above 1023
        for descriptor in (self._reader, *(pipe.fileno() for pipe in pipes)):
            poll.register(descriptor, select.POLLIN)
        # Rounded up: what is due is due when this returns.
        left = max(0, until - time.monotonic()) * 1000
        poll.poll(None if left == math.inf else min(math.ceil(left), MAX_POLL))
        with contextlib.suppress(OSError):  # nothing has come
            os.read(self._reader, 4096)

    def block(self) -> None:
        """Hold signals back until `unblock`: for a fork, after which the new process has handlers
        of its own to install."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    def unblock(self) -> None:
        """Let signals come again; those that were held back come now."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def guard_forks(self) -> None:
        """Give processes that the application forks the handlers back that were there before us,
        without losing a signal that comes meanwhile."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.block, after_in_parent=self.unblock, after_in_child=self._restore
            )

    def _restore(self) -> None:
        """Undo `install`, in a forked process: its signals do what they did before us."""
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, self.before[number])
        self.unblock()

    def close(self) -> None:
        """Close the descriptors, in a forked process that makes a `_Signals` of its own."""
        os.close(self._reader)
        os.close(self._writer)


def _quit() -> NoReturn:
    """End this process at once, because of SIGQUIT."""
    if _stderr_takes_text(0):
        with contextlib.suppress(OSError):
            os.write(2, b"SIGQUIT: ended at once\n")
    os._exit(QUIT)


def _exit_now(code: int) -> NoReturn:
    """End this process without waiting for its threads."""

    def flush() -> None:
        for flush_one in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
            with contextlib.suppress(Exception):
                flush_one()

    with contextlib.suppress(RuntimeError):  # too late for a thread
        thread = threading.Thread(target=flush, daemon=True)
        thread.start()
        thread.join(FLUSH_TIMEOUT)
    os._exit(code)


# --- Between the processes -----------------------------------------------------


def _make_pipe() -> tuple[int, int]:
    """Return the descriptors to read from a new pipe, and to write to it. Neither blocks."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


class _Pipe:
    """One end of the connection between the supervisor and a worker process. Messages are lists, as
    lines of JSON. Each is smaller than Linux's PIPE_BUF, 4096 bytes: all of it is written, or
    nothing. (Elsewhere one may be cut, and is none then.)"""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""

    @classmethod
    def make_pair(cls) -> tuple[_Pipe, _Pipe]:
        """Return both ends of a new one."""
        here, there = _make_pipe(), _make_pipe()
        return cls(here[0], there[1]), cls(there[0], here[1])

    def fileno(self) -> int:
        """Return the descriptor that can be read when something has come."""
        return self._reader

    def send(self, *message: Any) -> bool:
        """Send a message without waiting. Return False if it can't be sent: the other process is
        gone, or has read nothing for long."""
        try:
            os.write(self._writer, json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[list[Any]] | None:
        """Return the messages that have come, perhaps none; None when the other process is gone."""
        try:
            data = os.read(self._reader, 0x10000)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):  # it is none
                messages.append(json.loads(line))
        return messages if data else None

    def close(self) -> None:
        """Close this end: the other one then receives None."""
        os.close(self._reader)
        os.close(self._writer)


class _Journal:
    """Which messages a worker process runs, in memory that its supervisor reads when it has died
    (`kuyruk.Journal`).

    Byte 0 is 1 + the exit code, once the process ends as it should. Byte 1 is 1 when it was told to
    end. Bytes 8 to 15 are the time of its last pulse (time.monotonic(), whole seconds; 0: none
    yet). Then come the slots, each for a message's id. A slot begins with the id's length, two
    bytes: 0 if it was never used, nor any after it; FREE if it was. (An id has at most 255
    characters, that is, 1020 bytes.)

    With --state there is a copy in a file, for a supervisor that takes over when all have been
    killed at once. It is written, never mapped: a disk that is full, or a file that somebody
    removes or cuts, ends no process (a store into a mapped page without a block is SIGBUS); the
    copy is lost, no more.
    """

    SLOT, SLOTS = 1024, 4096
    SIZE = SLOT * (1 + SLOTS)
    FREE = 0xFFFF

    def __init__(self, crashes: Mapping[str, tuple[int, int]], path: str = "") -> None:
        """crashes: what is known when the process begins. path: of the copy; "": there is none.
        Raise OSError if it can't be made, or there is no room for it."""
        import mmap

        self.crashes = dict(crashes)
        self.pipe: _Pipe | None = None  # of the worker process
        #: By id: set when the supervisor has answered.
        self._asked: dict[str, threading.Event] = {}
        self._memory = mmap.mmap(-1, self.SIZE)
        #: The slots of what runs, by id; and those that were of what ran.
        self._taken: dict[str, int] = {}
        self._free: list[int] = []
        self._path, self._file = path, -1
        if path:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                # So that its blocks are there. A disk that becomes full takes a part.
                at = 0
                while at < self.SIZE:
                    at += os.pwrite(self._file, bytes(self.SIZE - at), at)
            except BaseException:
                self.remove()
                raise

    @classmethod
    def read(cls, file: int) -> _Journal:
        """Return the journal that another supervisor's process has left in this open file."""
        journal = cls({})
        data = os.pread(file, cls.SIZE, 0)
        journal._memory[: len(data)] = data
        return journal

    def _write(self, at: int, data: bytes) -> None:
        """Write to the memory, and to the copy if that can be."""
        self._memory[at : at + len(data)] = data
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, data, at)

    # -- in the worker process

    def begin(self, id: str) -> None:
        """Note that a message begins to run. If there is no room the supervisor won't know."""
        data = id.encode("utf-8", "surrogatepass")
        slot = self._free[-1] if self._free else len(self._taken) + 1
        if slot <= self.SLOTS and 0 < len(data) <= self.SLOT - 2:
            # The process can be killed between any two of these statements: so the length, by which
            # the id counts, comes after it. And if one fails (no memory), the slot is as it was.
            at = slot * self.SLOT
            self._memory[at + 2 : at + 2 + len(data)] = data
            self._write(at, len(data).to_bytes(2, "little") + data)
            self._taken[id] = slot
            del self._free[-1:]

    def end(self, id: str) -> None:
        """Note that it runs no longer. May be called again."""
        slot = self._taken.get(id)
        if slot is not None:
            self._write(slot * self.SLOT, self.FREE.to_bytes(2, "little"))
            self._free.append(slot)
            del self._taken[id]

    def count(self, id: str) -> tuple[int, int]:
        """Ask the supervisor how many processes have died while the message ran, and for how many
        of them it was to blame. Wait for its answer, for ANSWER_TIMEOUT at most: a process that
        died just now may have had it, and the broker can be faster than the news."""
        # Two threads may ask about one message: both wait for the same answer.
        answered = self._asked.setdefault(id, threading.Event())
        if self.pipe is not None and self.pipe.send("ask", id):
            answered.wait(ANSWER_TIMEOUT)
        self._asked.pop(id, None)
        return self.crashes.get(id, (0, 0))

    def update(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Take what the supervisor tells: the counts of messages, (0, 0) for those without."""
        for id, (deaths, blames) in counts.items():
            self.crashes[id] = deaths, blames
            if not deaths:
                del self.crashes[id]
            answered = self._asked.get(id)
            if answered is not None:
                answered.set()

    def clear(self, id: str) -> None:
        """Forget its crashes, and have the supervisor forget them."""
        self.crashes.pop(id, None)
        if self.pipe is not None:
            self.pipe.send("clear", id)

    def beat(self) -> None:
        """Show that the process runs Python code."""
        self._memory[8:16] = int(time.monotonic()).to_bytes(8, "little")

    def hold(self) -> None:
        """Let other supervisors see that this process, whose journal it is, lives."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                _try_lock(self._file)

    # -- in the supervisor

    @property
    def exit_code(self) -> int | None:
        """Return what the process ends with; None: it runs, or has died."""
        return self._memory[0] - 1 if self._memory[0] else None

    @exit_code.setter
    def exit_code(self, code: int) -> None:
        """Note that the process ends as it should, with this code (0 to 254)."""
        self._write(0, bytes([1 + code]))

    @property
    def stopping(self) -> bool:
        """Return whether it was told to end: then what it runs is not to blame if it is killed."""
        return self._memory[1] != 0

    @stopping.setter
    def stopping(self, value: bool) -> None:
        """Note whether it was told to end."""
        self._write(1, bytes([value]))

    @property
    def pulse(self) -> int:
        """Return when it last showed that it runs Python code (time.monotonic()); 0: not yet."""
        return int.from_bytes(self._memory[8:16], "little")

    @property
    def running(self) -> list[str]:
        """Return the ids of the messages that it runs, or ran when it died."""
        ids = []
        for at in range(self.SLOT, self.SIZE, self.SLOT):
            length = int.from_bytes(self._memory[at : at + 2], "little")
            if not length:
                break
            # 1. Here: the length of an id. 2. The process that lives: ends, and begins another one.
            # 3. Here: a part of that. It may be no text, and is nobody's id: it began just now.
            with contextlib.suppress(ValueError):
                if length != self.FREE:
                    data = self._memory[at + 2 : at + 2 + length]
                    ids.append(data.decode("utf-8", "surrogatepass"))
        return ids

    def close(self) -> None:
        """Close the memory and the copy, which others have open, too."""
        self._memory.close()
        if self._file >= 0:
            os.close(self._file)

    def remove(self) -> None:
        """Close it, and remove the copy."""
        self.close()
        with contextlib.suppress(OSError):  # there is none, or somebody has removed it
            os.unlink(self._path)


def _try_lock(file: int) -> bool:
    """Lock an open file for this process; return False if another process holds it. Raise OSError
    if the file system has no locks."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them depends on the system
        return False
    return True


class _State:
    """The supervisor's memory of crashes. With a folder (--state) it outlives the supervisor, and
    what its processes ran when all were killed at once counts, too: a container that exceeds its
    memory limit, say. Trouble with the folder while the worker runs costs that memory, and nothing
    else."""

    def __init__(self, folder: str | None, log: logging.Logger) -> None:
        """Raise UsageError if the folder can't be used when the worker begins."""
        #: By message id: how many processes have died while it ran, and for how many of them it is
        #: to blame.
        self.crashes: dict[str, tuple[int, int]] = {}
        self._folder = folder
        self._log = log
        self._serial = itertools.count(1)
        if folder is not None:
            try:
                self._take_over(folder)
            except (OSError, ImportError) as error:
                raise UsageError(f"--state {folder}: {error}") from None

    def make_journal(self) -> _Journal:
        """Return the journal of another process. Raise OSError if there is no memory for it."""
        if self._folder is not None:
            name = f"journal-{os.getpid()}-{next(self._serial)}"
            try:
                return _Journal(self.crashes, os.path.join(self._folder, name))
            except OSError as error:
                self._warn("what the next process runs isn't noted there", error)
        return _Journal(self.crashes)

    def blame(self, ids: list[str]) -> dict[str, tuple[int, int]]:
        """Count that a process has died while it ran these messages; return their new counts. The
        only suspect among them is to blame, or the only message if there is no suspect."""
        suspects = [id for id in ids if id in self.crashes] or ids
        news = {}
        for id in ids:
            deaths, blames = self.crashes.pop(id, (0, 0))  # it is the latest now
            news[id] = self.crashes[id] = deaths + 1, blames + (suspects == [id])
        for id in list(self.crashes)[:-MAX_SUSPECTS]:
            del self.crashes[id]
        self._save()
        return news

    def clear(self, id: str) -> None:
        """Forget the crashes of a message that has ended well, or for good."""
        if self.crashes.pop(id, None) is not None:
            self._save()

    def _save(self) -> None:
        """Write the crashes to the folder, if there is one. The file is never half of them."""
        if self._folder is None:
            return
        path = os.path.join(self._folder, "crashes.json")
        try:
            with open(f"{path}.new", "w") as file:
                json.dump(self.crashes, file)
            os.replace(f"{path}.new", path)
        except OSError as error:
            self._warn("what brought processes down is forgotten when this worker ends", error)

    def _warn(self, effect: str, error: OSError) -> None:
        """Log what it means that the folder can't be written."""
        self._log.warning("--state %s can't be written, %s: %s", self._folder, effect, error)

    def _take_over(self, folder: str) -> None:
        """Read what another supervisor has left. Raise OSError, or UsageError if it uses it."""
        os.makedirs(folder, exist_ok=True)
        with contextlib.ExitStack() as undo:
            self._lock = undo.enter_context(open(os.path.join(folder, "lock"), "w"))
            if not _try_lock(self._lock.fileno()):
                raise UsageError(f"--state {folder}: another worker uses it")
            undo.pop_all()  # it stays open, and locked
        # What can't be read is forgotten: there is nothing better to do with it.
        unreadable = contextlib.suppress(Exception)
        with unreadable, open(os.path.join(folder, "crashes.json")) as file:
            read = json.load(file).items()
            self.crashes = {id: (int(deaths), int(blames)) for id, (deaths, blames) in read}
        for name in os.listdir(folder):
            if name.startswith("journal-"):
                with contextlib.suppress(OSError):
                    self._read_left_behind(os.path.join(folder, name))

    def _read_left_behind(self, path: str) -> None:
        """Read and remove the journal of a process whose supervisor is gone; blame what it ran if
        it was killed. Raise OSError."""
        file = os.open(path, os.O_RDWR)
        try:
            if not _try_lock(file):
                return  # the process lives, and stops by itself
            with contextlib.closing(_Journal.read(file)) as journal:
                if journal.exit_code is None and not journal.stopping:
                    self.blame(journal.running)
            os.unlink(path)
        finally:
            os.close(file)


# --- The worker's process ------------------------------------------------------


class _Process:
    """Runs a worker in its threads, and meanwhile does what the signals and the supervisor say.

    It logs in the library's log thread: a handler may block, and a main thread that stands still
    has no pulse, and hears no signal.
    """

    def __init__(
        self,
        worker: Worker,
        signals: _Signals,
        pipe: _Pipe | None,
        journal: _Journal,
        max_memory: float | None,
    ) -> None:
        """pipe: None if there is no supervisor. max_memory: megabytes; None: no limit."""
        self._worker = worker
        self._signals = signals
        self._pipe = pipe
        self._journal = journal
        self._max_memory = max_memory
        self._log: Callable[..., None] = _library()._log_aside
        self._is_too_large = False
        self._is_stopping = False
        #: The state that the supervisor knows.
        self._reported: dict[str, Any] = {}

    def run(self) -> int:
        """Run the worker until it has stopped. Return the exit code."""
        self._worker.on_change = self._signals.wake
        try:
            self._worker.start()
        except Exception:
            logger.critical("The worker can't start", exc_info=True)
            return FAILED
        while not self._worker.join(0):
            self._journal.beat()
            self._signals.wait([self._pipe] if self._pipe else [], time.monotonic() + PULSE)
            try:
                self._handle_events()
            except Exception as error:
                self._log(logging.ERROR, "Can't do what it was told", error=error)
        if self._worker.error is not None:
            return FAILED
        if self._worker.aborted:
            return INTERRUPTED
        return RESTART if self._worker.stats["stuck"] else STOPPED

    def _handle_events(self) -> None:
        """Do what has come, and tell the supervisor what has changed."""
        while self._signals.names:
            self._on_signal(self._signals.names.popleft())
        if self._pipe is None:
            return
        orders = self._pipe.receive()
        if orders is None:
            self._log(logging.WARNING, "The supervising process is gone")
            self._pipe = None
            # systemd sends SIGTERM to the processes that are left: the same wish.
            self._signals.counts("SIGTERM", time.monotonic())
            self._stop("Stopping")
            return
        for order in orders:
            self._on_order(*order)
        self._report_state(self._pipe)

    def _on_signal(self, name: str) -> None:
        """Do what a signal asks for."""
        if name == "SIGUSR1":
            # In a thread: who reads it may stand still.
            report = _report(self._worker)
            threading.Thread(target=_say, args=(report,), daemon=True).start()
        elif name == "SIGUSR2":
            dropped = _counted(self._worker.drop(), "running task")
            self._log(logging.WARNING, "SIGUSR2: dropping %s", dropped)
        elif not self._is_stopping:
            self._stop(name)
        elif self._pipe is None:  # a supervisor decides itself when it is enough, and sends `again`
            self._interrupt(name)

    def _on_order(self, order: str, argument: Any) -> None:
        """Do what the supervisor asks for."""
        if order == "again":
            self._interrupt(argument)
        elif order == "retire":
            self._worker.stop(math.inf, wait=False)
            self._log(logging.INFO, "Stopping when what runs has ended: %s", argument)
        elif order == "crashes":
            self._journal.update(argument)

    def _report_state(self, pipe: _Pipe) -> None:
        """Tell the supervisor what has changed."""
        degraded = self._worker.stats["stuck"] > 0 or self._is_too_large
        if not degraded and self._max_memory is not None:
            used = _memory_used()
            # What it was once above it will be above again: so it is never taken back.
            degraded = self._is_too_large = used > self._max_memory
            if degraded:
                text = "This process uses %.0f MB (--max-memory %g): another takes its place"
                self._log(logging.WARNING, text, used, self._max_memory)
        state = {"serving": self._worker.healthy, "degraded": degraded}
        if state != self._reported and pipe.send("state", state):
            self._reported = state

    def _stop(self, name: str) -> None:
        """Stop gracefully. name: of the signal."""
        self._is_stopping = True
        self._journal.stopping = True
        tasks = _first_names(map(_describe, self._worker.stats["running"]), 5)
        self._worker.stop(wait=False)
        if tasks:
            text = "%s: stopping when what runs has ended (again: interrupts it): %s"
            self._log(logging.INFO, text, name, tasks)
        else:
            self._log(logging.INFO, "%s: stopping", name)

    def _interrupt(self, name: str) -> None:
        """Interrupt what still runs. name: of the signal that came again."""
        running = _counted(len(self._worker.stats["running"]), "running task")
        self._worker.stop(timeout=0, wait=False)
        self._log(logging.WARNING, "%s again: interrupting %s", name, running)


def _memory_used() -> float:
    """Return the megabytes that this process has in memory; where the system doesn't tell, those
    that it has had at most."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1e6 if sys.platform == "darwin" else most / 1e3


def _describe(run: dict[str, Any]) -> str:
    """Return what a log says of a running task."""
    return f"{_shown(run['task'])} [{_shown(run['id'])}] for {run['seconds']:.1f} s"


def _report(worker: Worker) -> str:
    """Return the counts, the running tasks, and where each thread is, as text."""
    stats = worker.stats
    running = stats.pop("running")
    counts = ", ".join(f"{count} {name}" for name, count in stats.items())
    lines = [f"--- process {os.getpid()}: {counts}, {len(running)} running"]
    lines += [f"Task {_describe(run)}, from '{_shown(run['queue'])}'" for run in running]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in worker._frames().items():
        lines.append(f"\nThread {names.get(ident, 'of unknown name')} ({ident}):")
        lines.append("".join(traceback.format_stack(frame)).rstrip())
    return "\n".join([*lines, "---"])


def _set_up_logging(level: str, wins: bool) -> None:
    """Set up logging, unless the application has: then it keeps its handlers, and its level if
    this one doesn't win."""
    root = logging.getLogger()
    if not root.handlers:
        form = "%(asctime)s %(levelname)-7s %(process)d %(threadName)s: %(message)s"
        logging.basicConfig(level=level.upper(), format=form)
    elif wins:
        root.setLevel(level.upper())
    # dictConfig disables what it doesn't name, unless told not to.
    logger.disabled = logging.getLogger("kuyruk.success").disabled = False
    amqpstorm = logging.getLogger("amqpstorm")
    amqpstorm.setLevel(amqpstorm.level or logging.WARNING)


def _load(args: argparse.Namespace, supervised: bool) -> Worker:
    """Import the application, give it the command line's configuration, and make its worker. Raise
    UsageError."""
    _check(args)
    where, app = find_app(args.modules[0])
    app.packages.add(where.partition(":")[0].partition(".")[0])
    for spec in args.modules[1:]:
        module, name = _locate(spec)
        _check_more_tasks(app, where, module, name)
        app.packages.add(module.__name__.partition(".")[0])
    for key in _OPTIONS:
        _configure(app.config, key, args)
    level = app.config.WORKER_LOGGING_LEVEL
    _set_up_logging(level, wins=args.WORKER_LOGGING_LEVEL is not None)
    for queue in args.queue or ():
        of = queue.removesuffix(".failed")
        if of in app._queues and queue not in app._queues and of != queue:
            raise UsageError(
                f"-q/--queue: {queue!r} holds the messages of {of!r} that have failed: name"
                f" {of!r}, as in: {_program()} {args.modules[0]} --failed requeue -q {of}"
            )
    try:
        # A supervisor sees to the time that all of them run.
        worker = app.worker(args.queue, max_run_time=0 if supervised else None)
    except ValueError as error:
        raise UsageError(f"-q/--queue: {error}") from None
    warnings = [*_unread_variables(app, args)]
    if args.for_tasks:
        warnings += _names_that_lead_nowhere(app, where, worker.queues)
    for warning in warnings:
        logger.warning("%s", warning)
    queues = ", ".join(map(repr, worker.queues))
    threads = _counted(app.config.WORKER_THREADS, "thread")
    text = "kuyruk %s: worker of %s for %s with %s"
    logger.info(text, _library().__version__, where, queues, threads)
    return worker


def _check_more_tasks(app: Kuyruk, where: str, module: ModuleType, name: str | None) -> None:
    """Raise UsageError if a further module of the command line has its tasks for another
    application. where: the "module:name" of this one."""
    here = module.__name__
    if name is not None and getattr(module, name, None) is not app:
        raise UsageError(
            f"{here}:{name} isn't {where}: only the first MODULE names the Kuyruk object"
        )
    owners = [_owner(value, here) for value in list(vars(module).values())]
    has_one = any(owner is app for owner, _ in owners)
    if not has_one and any(is_made_here for _, is_made_here in owners):
        raise UsageError(
            f"module {here!r} belongs to another Kuyruk object than {where}: its tasks wouldn't run"
            f" here. Start another worker for it ({_program()} {here}), or let it use {where}"
        )


def _owner(value: object, module: str) -> tuple[object, bool]:
    """Return the Kuyruk object that a module's value is, or that it is a task of (None: neither),
    also one of another copy of the library; and whether it can't have come there by importing a
    task to send it."""
    kinds = {kind.__name__ for kind in type(value).__mro__}
    if "Kuyruk" in kinds:
        return value, True
    owner = getattr(value, "kuyruk", None) if "Task" in kinds else None
    made_in = getattr(getattr(value, "f", None), "__module__", None) if owner is not None else None
    return owner, made_in is not None and f"{made_in}.".startswith(f"{module}.")


def _unread_variables(app: Kuyruk, args: argparse.Namespace) -> Iterator[str]:
    """Yield a warning if the environment has settings that the application's configuration
    hasn't."""
    kind = _library().Config
    given = {key for key in _OPTIONS if getattr(args, key) is not None}
    keys = {name.removeprefix("KUYRUK_") for name in os.environ if name.startswith("KUYRUK_")}
    keys = {key for key in keys - given if key.isupper() and hasattr(kind, key)}
    read = kind()
    try:
        read.from_env_vars()
    except ValueError as error:  # had it been read, the application couldn't have started
        yield f"the environment has KUYRUK_ variables that the application hasn't read: {error}"
        return
    unread = [key for key in keys if getattr(read, key) != getattr(app.config, key, None)]
    if unread:
        names = ", ".join(sorted(f"KUYRUK_{key}" for key in unread))
        yield (
            f"{names} {'is' if len(unread) == 1 else 'are'} set in the environment, but the"
            " configuration has another value: config.from_env_vars() isn't called, or not last"
        )
    in_url = ("HOST", "PORT", "USER", "PASSWORD", "VIRTUAL_HOST")
    beaten = [f"KUYRUK_RABBIT_{key}" for key in in_url if f"RABBIT_{key}" in keys]
    if beaten and app.config.RABBIT_URL is not None and "RABBIT_URL" not in keys | given:
        yield (
            f"what the environment says by {', '.join(beaten)} has no effect: the configuration has"
            " a RABBIT_URL, which wins"
        )


def _names_that_lead_nowhere(app: Kuyruk, where: str, queues: Iterable[str]) -> Iterator[str]:
    """Yield warnings about queues that no task names: nobody sends there, perhaps."""
    known = list(app._queues)
    if not known:
        yield (
            f"{where} has no tasks yet: name the modules that have them, too, as in:"
            f" {_program()} {where.partition(':')[0]} package.tasks"
        )
        return
    for queue in queues:
        if not any(queue == name or queue.startswith(f"{name}.") for name in known):
            names = _first_names(map(repr, known), 10)
            meant = _did_you_mean(queue, known)
            yield f"no task of {where} names the queue {queue!r}{meant} (they name {names})"


def _load_unless_stopped(
    args: argparse.Namespace, signals: _Signals, supervised: bool
) -> tuple[Worker | None, int]:
    """Return the worker; or None, if it can't be made or a signal to stop has come, and the exit
    code for that."""
    try:
        try:
            # 1. The supervisor: blocks signals, and forks. 2. A signal to stop comes: it is kept
            # back. 3. Here: from this line on it raises _Stopped, in this block and nowhere else.
            signals.loading = True
            signals.unblock()
            return _load(args, supervised), STOPPED
        except UsageError as error:
            # Or a signal to stop has ended the import, in whatever form it came out.
            if not signals.loading:
                raise _Stopped("signal") from None
            return None, _complain(error)
        finally:
            signals.loading = False
    except _Stopped as stopped:
        _say(f"{_program()}: {stopped}: stopped before the worker began")
        return None, STOPPED


def _be_worker(
    args: argparse.Namespace,
    signals: _Signals,
    pipe: _Pipe | None = None,
    journal: _Journal | None = None,
) -> int:
    """Be a worker process. Return the exit code, but end the process itself if a thread is stuck:
    Python would wait for that thread for ever."""
    signals.guard_forks()
    journal = journal or _Journal({})  # nobody reads it
    worker, code = _load_unless_stopped(args, signals, supervised=pipe is not None)
    if worker is not None:
        # The application may have set handlers of its own, and blocked signals.
        signals.install()
        signals.unblock()
        if pipe is not None:
            journal.pipe = pipe
            # It is a Journal, though the library wasn't there to say so.
            worker.journal = journal  # type: ignore[assignment, unused-ignore]
            pipe.send("loaded", {key: getattr(worker.app.config, key) for key in _SETTINGS})
        code = _Process(worker, signals, pipe, journal, args.max_memory).run()
    signals.code = journal.exit_code = code
    # Python would wait for a stuck thread; or to write to stderr, if nobody reads it.
    if worker is not None and (worker.stats["stuck"] or not _stderr_takes_text(FLUSH_TIMEOUT)):
        _exit_now(code)
    return code


# --- Looking at queues, and at failed messages ---------------------------------

#: What `--failed` shows of a message: attributes of kuyruk.FailedMessage.
_FACTS = ["id", "task", "args", "kwargs", "failed_at", "failed_on", "failures", "queue"]
_FACTS += ["exception", "value", "traceback"]


def _to_its_end(act: Callable[[], T]) -> T:
    """Call what prints on stdout, and see to it that all of it is written. End the program if that
    can't be, or without a broker: in silence if nobody reads it any more (| head)."""
    try:
        try:
            return act()
        finally:
            sys.stdout.flush()
    except OSError as error:  # amqpstorm's, too
        if not isinstance(error, BrokenPipeError):
            _complain(UsageError(str(error)))
        # What couldn't be written the interpreter would try to write once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _do_without_worker(args: argparse.Namespace) -> int:
    """Do what `--failed list`, `requeue` or `purge`, or `--status` say. Return the exit code."""
    args.WORKER_LOGGING_LEVEL = args.WORKER_LOGGING_LEVEL or "WARNING"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks; as stderr's
    try:
        worker = _load(args, supervised=False)
        stats = worker.app.queue_stats(worker.queues) if args.status or args.queue else {}
        for queue in stats if args.queue else ():
            if stats[queue].waiting is None and not stats[queue].failed:
                raise UsageError(f"-q/--queue: there is no queue {queue!r} at the broker")
        if args.failed is None:
            return _print_status(stats, args.json)
        counts = [_do_with_failed(worker.app, queue, args) for queue in worker.queues]
    except UsageError as error:
        return _complain(error)
    except ValueError as error:
        return _complain(UsageError(str(error)), FAILED)
    except KeyboardInterrupt:
        _say("Interrupted: what wasn't dealt with is still there")
        return FAILED
    done, stay = map(sum, zip(*counts, strict=True))
    if args.id is not None and not done + stay:
        where = " or ".join(f"{_shown(queue)}.failed" for queue in worker.queues)
        text = f"no message in {where} has the id '{_shown(args.id)}'"
        return _complain(UsageError(text), FAILED)
    return FAILED if stay else STOPPED


def _print_status(stats: Mapping[str, Any], as_json: bool) -> int:
    """Print what is in the queues. Return FAILED if a queue has messages and no consumer."""
    if as_json:
        for queue, each in stats.items():
            print(json.dumps({"queue": queue, **each._asdict()}))
    else:
        rows: list[tuple[Any, ...]] = [("queue", "waiting", "consumers", "failed")]
        rows += [(_shown(queue), *each) for queue, each in stats.items()]
        width = max(len(row[0]) for row in rows)
        for name, *counts in rows:
            shown = ["-" if count is None else count for count in counts]
            print(f"{name:{width}}", *(f"{count:>10}" for count in shown))
    is_left = any(each.waiting and not each.consumers for each in stats.values())
    return FAILED if is_left else STOPPED


def _do_with_failed(app: Kuyruk, queue: str, args: argparse.Namespace) -> tuple[int, int]:
    """List, requeue or purge what is in the queue's ".failed". Return the numbers of messages with
    which that was done, and of those that stay because it couldn't be done."""
    done, stay, reported_at = 0, 0, time.monotonic()
    how = {"list": "", "requeue": " sent again", "purge": " deleted"}[args.failed]
    for message in app.failed_messages(queue):
        if args.id not in (None, message.id):
            continue
        try:
            if args.failed == "list":
                facts = {key: getattr(message, key) for key in _FACTS}
                print(json.dumps(facts) if args.json else _line_about(message))
            else:
                message.requeue() if args.failed == "requeue" else message.delete()
        except Exception as error:  # whatever is wrong with one message, the others go on
            if isinstance(error, OSError) and not isinstance(error, _library().KuyrukError):
                raise  # the connection is lost, or nobody reads what is printed
            stay += 1
            _say(f"{_shown(message.id)} stays in {queue}.failed: {_shown(error)}")
            continue
        done += 1
        if args.failed != "list" and time.monotonic() > reported_at + PROGRESS_INTERVAL:
            reported_at = time.monotonic()
            _say(f"{done}{how}...")
    if not args.json and (done or args.id is None):
        print(f"{_shown(queue)}.failed: {_counted(done, 'message')}{how}")
    return done, stay


def _line_about(message: FailedMessage) -> str:
    """Return what `--failed list` prints of a message."""
    first_line = str(message.value or "").partition("\n")[0]
    facts = [message.id, message.task or "(no task)", message.failed_at, message.failed_on]
    text = "  ".join(map(_shown, facts))
    return f"{text}  {message.failures}x  {_shown(message.exception)}: {_shown(first_line[:100])}"


# --- The supervisor ------------------------------------------------------------


class _Child:
    """A worker process, as its supervisor sees it."""

    #: It has imported the application.
    loaded = False
    #: It consumes.
    serving = False
    #: It has a stuck thread, or uses too much memory.
    degraded = False
    #: It was told to end, because another one serves in its place.
    retiring = False
    #: We have killed it.
    killed = False
    #: When it has last shown that it runs Python code (time.monotonic()), as far as is known.
    pulse = 0.0

    def __init__(self, pid: int, pipe: _Pipe, journal: _Journal) -> None:
        self.pid, self.pipe, self.journal = pid, pipe, journal


def _plan(children: Iterable[_Child], wanted: int) -> tuple[int, int, list[_Child]]:
    """Return what to do so that as many processes as wanted serve at any time: how many to start
    because others have ended, how many because others are degraded, and which to retire because
    others serve in their place."""
    # A process that starts counts as if it served already: or each look would start one more.
    staying = [child for child in children if not child.retiring]
    degraded = [child for child in staying if child.degraded]
    fresh = [child for child in staying if not child.degraded]
    serving = [child for child in fresh if child.serving]
    ended = max(0, wanted - len(fresh) - len(degraded))
    # Too many serve when the configuration has changed: the process that loads it last tells.
    surplus = max(0, len(serving) - wanted)
    replaced = max(0, len(serving) - surplus + len(degraded) - wanted)
    return ended, max(0, wanted - len(fresh)) - ended, serving[:surplus] + degraded[:replaced]


class _Supervisor:
    """Starts worker processes, replaces those that end, and ends them all."""

    def __init__(self, args: argparse.Namespace, signals: _Signals) -> None:
        """Raise UsageError for a --state or --health that can't be used."""
        self._args = args
        self._signals = signals
        self._log = _make_log(args.WORKER_LOGGING_LEVEL)
        self._children: dict[int, _Child] = {}
        #: As the process has told them that has imported the application last.
        self._settings = _SETTINGS
        self._began = time.monotonic()
        #: No process is started before this time.
        self._start_at = -math.inf
        self._state = _State(args.state, self._log)
        _check_health(args.health)  # now, since it may be in the folder of the state
        #: Questions of processes that aren't answered: of whom, about which message, until when.
        self._asks: list[tuple[_Child, str, float]] = []
        self._last_pause = 0.0
        self._failed_starts = 0  # in a row
        #: How many signals have asked to stop.
        self._stops = 0
        self._stopping = False
        #: When those that have not ended are killed.
        self._kill_at = math.inf
        #: When it last looked for pulses: every PULSE seconds.
        self._looked_at = -math.inf
        #: Exit codes of processes, as `_last_code` reads them; and its own, if it gives up.
        self._codes: list[int] = []
        signals.quit = self._quit

    def run(self) -> int:
        """Return the exit code. Fork: in the child this doesn't return, but raises SystemExit."""
        while True:
            with self._guard():
                self._reap()
                self._answer()
            if self._stopping and not self._children:
                with contextlib.suppress(OSError, TypeError):  # there is none
                    os.unlink(self._args.health)
                by_weight = [STOPPED, INTERRUPTED, FAILED, USAGE]
                return max(self._codes, key=by_weight.index, default=STOPPED)
            due = time.monotonic() + DEFECT_PAUSE  # if the next step fails
            with self._guard():
                due = self._manage(time.monotonic())
            with self._guard():
                self._signals.wait([child.pipe for child in self._children.values()], due)
                # Signals before the deaths that they have caused: a child that Ctrl-C ends isn't
                # replaced.
                while self._signals.names:
                    self._on_signal(self._signals.names.popleft())
                for child in list(self._children.values()):
                    self._listen(child)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Log an unexpected exception instead of ending the worker with it: what it has left undone
        is looked at again in the next turn. SystemExit passes: a child's end."""
        try:
            yield
        except Exception:
            self._log.exception("Defect in the supervising process; it goes on")

    # -- what happens

    def _on_signal(self, name: str) -> None:
        """Do what a signal asks for. SIGCHLD has ended the wait, no more: `_reap` is next."""
        if name in _Signals.TO_STOP:
            self._stops += 1
            self._stop(name)
            if self._stops > 1:
                self._escalate(name)
        elif name != "SIGCHLD":
            self._pass_on(name)

    def _pass_on(self, name: str) -> None:
        """Send the signal to all processes."""
        for child in self._children.values():
            _send_signal(child, getattr(signal, name))

    def _stop(self, name: str) -> None:
        """Start no process any more, and stop those that there are. name: of the signal for it."""
        self._stopping = True
        self._pass_on(name)
        timeout = self._settings["WORKER_SHUTDOWN_TIMEOUT"]
        if timeout is not None:
            self._kill_within(timeout)

    def _escalate(self, name: str) -> None:
        """Interrupt what runs: somebody has asked to stop once more."""
        for child in self._children.values():
            if child.loaded:
                child.pipe.send("again", name)
            else:
                self._kill(child, "it is still importing the application")
        self._kill_within(0)

    def _kill_within(self, timeout: float) -> None:
        """Kill what hasn't ended after so many seconds, and its own limits."""
        at = time.monotonic() + timeout + self._settings["WORKER_GRACE"] + KILL_MARGIN
        self._kill_at = min(at, self._kill_at)

    def _kill(self, child: _Child, why: str) -> None:
        """Kill a process, and log why."""
        child.killed = True
        _send_signal(child, signal.SIGKILL)
        self._log.error("Process %d is killed, what it runs will run again: %s", child.pid, why)

    def _quit(self) -> None:
        """End all processes at once, in a signal's handler. What they run isn't to blame."""
        for child in list(self._children.values()):
            child.journal.stopping = True
            _send_signal(child, signal.SIGKILL)
        _quit()

    def _listen(self, child: _Child) -> None:
        """Take note of what a process has told."""
        for kind, content in child.pipe.receive() or []:
            if kind == "loaded":
                child.loaded = True
                self._settings = content
            elif kind == "state":
                child.serving, child.degraded = content["serving"], content["degraded"]
                self._failed_starts = 0 if child.serving else self._failed_starts
            elif kind == "ask":
                self._asks.append((child, content, time.monotonic() + ANSWER_TIMEOUT))
            elif kind == "clear":
                self._state.clear(content)

    def _answer(self) -> None:
        """Answer those that ask, after all dead processes have been reaped.

        While another process has the message, the answer waits, as long as who asks does: 1. That
        process: dies, and its sockets are closed. 2. RabbitMQ: delivers the message to the one that
        asks. 3. This process: is told of the death.
        """
        asks, self._asks = self._asks, []
        running = {child: set(child.journal.running) for child in self._children.values() if asks}
        for child, id, until in asks:
            others = [ids for other, ids in running.items() if other is not child]
            if time.monotonic() < until and any(id in ids for ids in others):
                self._asks.append((child, id, until))
            elif child in running:
                child.pipe.send("crashes", {id: self._state.crashes.get(id, (0, 0))})

    def _reap(self) -> None:
        """Take note of the processes that have ended. Of those that aren't ours, too: in a
        container this one may be their init."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                child = self._children.pop(pid, None)
                if child is not None:
                    self._listen(child)  # its last words
                    self._on_end(child, os.waitstatus_to_exitcode(status))
                    child.pipe.close()
                    child.journal.remove()

    def _on_end(self, child: _Child, status: int) -> None:
        """Do what the end of a process asks for. status: negative if a signal has killed it."""
        code = child.journal.exit_code  # None: it has died
        if self._stopping:
            self._codes.append(_last_code(child, code))
        elif code in (FAILED, USAGE) or (code is None and not child.loaded):
            self._on_failed_start(child, code or FAILED, _how(status))
        elif code is None:
            self._on_death(child, "killed by its supervisor" if child.killed else _how(status))
        elif not child.retiring and code != RESTART:
            text = "Process %d has stopped, another one takes its place in %.1f s"
            self._log.warning(text, child.pid, self._pause())

    def _on_failed_start(self, child: _Child, code: int, how: str) -> None:
        """Try again, or give up: what has failed so often won't do better, if nothing serves."""
        self._failed_starts += 1
        is_served = any(each.serving for each in self._children.values())
        if code == USAGE and self._settings is _SETTINGS:  # the first, which has said why
            self._give_up(code)
        elif self._failed_starts >= MAX_FAILED_STARTS and not is_served:
            text = "Giving up: %d processes in a row couldn't start (%s)"
            self._log.critical(text, self._failed_starts, how)
            self._give_up(code)
        else:
            text = "Process %d couldn't start: %s; trying again in %.1f s"
            self._log.error(text, child.pid, how, self._pause())

    def _give_up(self, code: int) -> None:
        """Stop, with this exit code at the least."""
        self._codes.append(code)
        self._stop("SIGTERM")

    def _on_death(self, child: _Child, how: str) -> None:
        """Note who may be to blame for the death of a process, and tell the others, which may have
        the messages soon, or already: after a lost connection."""
        suspects = child.journal.running
        # The death of a suspect is to be expected, and it has a limit: the others need not wait.
        if any(id in self._state.crashes for id in suspects):
            self._last_pause = 0
        for id, counts in self._state.blame(suspects).items():
            for other in self._children.values():
                other.pipe.send("crashes", {id: counts})  # one at a time: see _Pipe
        what = ", ".join(map(_shown, suspects)) or "nothing"
        text = "Process %d died while it ran %s: %s; starting another in %.1f s"
        self._log.error(text, child.pid, what, how, self._pause())

    def _pause(self) -> float:
        """Return the seconds until the next process is started: more and more of them, unless all
        goes well for a while."""
        now = time.monotonic()
        if now - self._start_at >= PROVED:
            self._last_pause = 0
        self._last_pause = min(max(FIRST_PAUSE, 2 * self._last_pause), LAST_PAUSE)
        self._start_at = now + self._last_pause
        return self._last_pause

    # -- what is to be done

    def _manage(self, now: float) -> float:
        """Start, retire and kill. Return the time.monotonic() at which there is something to do if
        nothing happens until then."""
        if now >= self._looked_at + PULSE:
            self._kill_frozen(now)
            self._report_health(now)
        look_at = self._looked_at + PULSE
        limit = self._settings["WORKER_MAX_RUN_TIME"]
        end = self._began + limit if limit else math.inf
        if now >= end and not self._stopping:
            self._stop("SIGTERM")
            self._log.info("Stopping after %g seconds (max_run_time)", limit)
        if not self._stopping:
            return min(end, look_at, self._scale(now))
        if now >= self._kill_at:
            self._kill_at = math.inf
            for child in self._children.values():
                self._kill(child, "it doesn't end")
        return min(self._kill_at, look_at)

    def _kill_frozen(self, now: float) -> None:
        """Kill those that have had no pulse for so long that their connection is lost."""
        heartbeat = self._settings["RABBIT_HEARTBEAT"]
        limit = max(FROZEN * heartbeat, 3 * PULSE)
        # Stopped by Ctrl-Z, say, as its children were: they get time anew.
        late = now - self._looked_at > 2 * PULSE
        self._looked_at = now
        for child in self._children.values() if heartbeat else ():
            pulse = child.journal.pulse  # once: the first may come between two looks at it
            child.pulse = now if late else max(child.pulse, pulse)
            if not pulse or now - child.pulse <= limit or child.killed:
                continue
            if child.journal.exit_code is None:
                text = "no Python code has run for %g seconds (C code holds Python's lock?)"
                self._kill(child, text % limit)
            # Python waits for the application's threads. At a stop they may take as long as they
            # want, but a process that is to be replaced takes the place of one that works.
            elif not self._stopping:
                text = "its worker has ended; %g seconds later the application's threads haven't"
                self._kill(child, text % limit)

    def _report_health(self, now: float) -> None:
        """Touch the health file if all is well."""
        serving = sum(
            child.serving and now - child.journal.pulse < 3 * PULSE
            for child in self._children.values()
        )
        is_well = serving >= self._settings["WORKER_PROCESSES"] and not self._stopping
        if self._args.health is not None and is_well:
            try:
                with open(self._args.health, "w") as file:
                    file.write(f"{_counted(serving, 'process')} consume{'s' * (serving == 1)}\n")
            except OSError as error:
                self._log.error("Can't write the health file: %s", error)

    def _scale(self, now: float) -> float:
        """Start and retire, so that as many processes as wanted serve. Return when to look again
        (time.monotonic())."""
        wanted = self._settings["WORKER_PROCESSES"]
        ended, degraded, to_retire = _plan(list(self._children.values()), wanted)
        for child in to_retire:
            child.retiring = child.pipe.send("retire", "another process has taken its place")
        if ended + degraded and now >= self._start_at:
            self._start(ended + degraded)
            if degraded:
                self._pause()  # what degrades each of them at once must not keep a CPU busy
        return self._start_at if ended + degraded and self._start_at > now else math.inf

    def _start(self, count: int) -> None:
        """Start so many processes. What can't be started now is tried again after a pause."""
        try:
            for _ in range(count):
                self._fork()
        except OSError as error:  # no memory, no descriptors...; the child doesn't come here
            text = "Can't start a process: %s; trying again in %.1f s"
            self._log.error(text, error, self._pause())

    def _fork(self) -> None:
        """Start a process. Raise OSError if that can't be; SystemExit in the child, at its end."""
        with contextlib.ExitStack() as undo:
            ours, theirs = _Pipe.make_pair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            journal = self._state.make_journal()
            undo.callback(journal.remove)
            # No signal may come between the fork and the child's own handlers: it would be noted by
            # a copy of the supervisor's, which nobody looks at.
            undo.callback(self._signals.unblock)
            self._signals.block()
            pid = os.fork()
            undo.pop_all()  # from here on each process closes what it doesn't need
        if not pid:
            code = FAILED
            try:
                ours.close()
                code = self._be_child(theirs, journal)
            # Whatever it is, it must not get out of here: the child would be a supervisor, too.
            except BaseException:
                with contextlib.suppress(OSError):  # nobody reads it
                    traceback.print_exc()
            sys.exit(code)
        self._children[pid] = _Child(pid, ours, journal)
        self._signals.unblock()  # not before: SIGQUIT is for all children
        theirs.close()

    def _be_child(self, pipe: _Pipe, journal: _Journal) -> int:
        """Be a worker process, from the fork on. Return its exit code."""
        for child in self._children.values():
            child.pipe.close()  # else it wouldn't notice that the supervisor is gone
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
        return _be_worker(self._args, signals, pipe, journal)


def _send_signal(child: _Child, number: int) -> None:
    """Send a signal to a process, if it is there."""
    # A child that has ended and isn't reaped yet is a zombie: its pid is nobody else's. It may have
    # been reaped just now, if this is a signal's handler.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)


def _check_health(path: str | None) -> None:
    """Raise UsageError if a health file can't be written there."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"--health {path}: there is no folder {folder!r}")
    # It is removed in the end: it must not be a device, or a pipe, of others.
    is_other = not path or (os.path.exists(path) and not os.path.isfile(path))
    if is_other or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--health {path}: it can't be written")


def _last_code(child: _Child, code: int | None) -> int:
    """Return what the end of a process while all are stopping means for the whole's exit code."""
    if code is None:
        return STOPPED if not child.loaded else INTERRUPTED if child.killed else FAILED
    return STOPPED if code in (RESTART, QUIT) else code


def _how(status: int) -> str:
    """Return in words how a process has ended. status: negative if a signal has killed it."""
    if status >= 0:
        return f"exit code {status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (for its memory, perhaps)" if name == "SIGKILL" else "")
    return f"killed by signal {-status}"


def _make_log(level: str | None) -> logging.Logger:
    """Return the supervisor's own logger: the application sets up logging for the workers."""
    log = logging.getLogger("kuyruk.supervisor")
    handler = logging.StreamHandler()
    text = "%(asctime)s %(levelname)-7s %(process)d supervisor: %(message)s"
    handler.setFormatter(logging.Formatter(text))
    # What nobody reads is dropped: it must hold up no process that ends, or that is to be started.
    handler.addFilter(lambda record: _stderr_takes_text(FLUSH_TIMEOUT))
    log.addHandler(handler)
    log.propagate = False
    with contextlib.suppress(ValueError):  # a worker process explains it
        log.setLevel(level or "INFO")
    return log


# --- The beginning -------------------------------------------------------------


def _open_standard_streams() -> None:
    """Open those that were closed when the program began: or the next file, a connection, say,
    would be in their place, and get what C code writes to stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def main(argv: list[str] | None = None) -> int:
    """Be the command line. Return the exit code, but end the process itself if a task is stuck."""
    _open_standard_streams()
    try:
        args = _to_its_end(lambda: _parse(argv))
        if sys.path[:1] != [os.getcwd()]:
            sys.path.insert(0, os.getcwd())
    except UsageError as error:
        return _complain(error)
    except OSError as error:
        return _complain(UsageError(f"the current folder can't be used: {error}"))
    if args.RABBIT_URL is not None:
        # What the tasks send says by which command: not with the password.
        sys.argv[1:] = [_without_password(word) for word in sys.argv[1:]]
    if not args.for_tasks:
        return _to_its_end(lambda: _do_without_worker(args))
    if not hasattr(os, "fork"):
        return _be_worker(args, _Signals())
    try:
        supervisor = _Supervisor(args, _Signals("SIGCHLD"))
    except UsageError as error:
        return _complain(error)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
