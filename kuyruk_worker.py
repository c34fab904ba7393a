"""Run a kuyruk worker as a process: command line, signals of the operating system, exit codes.

    $ python -m kuyruk_worker app.tasks                # or: kuyruk-worker app.tasks

Beside a vendored `pkg/vendor/kuyruk.py`: `python -m pkg.vendor.kuyruk_worker pkg.tasks`.

The main thread imports the application, and from then on only waits for signals: their handlers
put them into a queue, which is safe whatever they interrupt. The worker runs in a thread of its own
(`kuyruk-supervisor`); its end is one more entry in that queue. The library and the application are
imported late: nothing at the top level of this file loads them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import queue
import re
import signal
import sys
import threading
import traceback
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from kuyruk import Kuyruk, Worker

logger = logging.getLogger("kuyruk")

#: Exit codes.
STOPPED, FAILED, USAGE, INTERRUPTED, QUIT = 0, 1, 2, 3, 131
#: Seconds for the last words of a process that can't wait: a stuck thread may hold the log.
FLUSH_TIMEOUT = 1.0


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
  SIGINT (Ctrl-C), SIGTERM      stop when the running tasks have ended;
                                the second one interrupts them: their messages go back
  SIGQUIT (Ctrl-\\)              end at once; the running tasks will run again
  SIGUSR1                       print the running tasks and the stack of every thread
  SIGUSR2                       drop the running tasks: they are interrupted and don't run again

exit codes:
  0    stopped, and no task had to be interrupted for it
  1    the worker failed unexpectedly
  2    wrong command line or configuration, or the application can't be imported
  3    stopped, but running tasks had to be interrupted
  131  ended by SIGQUIT
"""

#: Configuration key: flags, placeholder and help of the option that wins over it.
_OPTIONS = {
    "WORKER_THREADS": (["-t", "--threads"], "N", "tasks to run at once"),
    "WORKER_PREFETCH": (["--prefetch"], "N", "messages of each queue to hold unacknowledged"),
    "WORKER_MAX_LOAD": (["--max-load"], "L", "pause above this load average; -1: the number of CPUs"),
    "WORKER_MAX_RUN_TIME": (["--max-run-time"], "S", "stop after S seconds, as SIGTERM does"),
    "WORKER_PRIORITY": (["--priority"], "P", "larger ones are served first by the broker"),
    "WORKER_LOGGING_LEVEL": (["-l", "--logging-level"], "LEVEL", "DEBUG, INFO, WARNING or ERROR"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help explains)")


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
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser.parse_args(argv)


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
    """The signals that have come and wait to be taken. Those that the platform lacks never come."""

    TO_STOP = ("SIGINT", "SIGTERM", "SIGBREAK")
    NAMES = (*TO_STOP, "SIGQUIT", "SIGUSR1", "SIGUSR2")

    def __init__(self) -> None:
        #: Names of signals, in their order; None: the worker has ended. Its put is reentrant.
        self.queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        #: The main thread imports the application: a signal to stop ends that.
        self.loading = True
        #: The exit code, when nobody takes them any more: one to stop ends what is left of the process.
        self.code: int | None = None
        self._numbers = {getattr(signal, name) for name in self.NAMES if hasattr(signal, name)}
        self._before = {number: signal.getsignal(number) for number in self._numbers}
        self._install()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers),
                after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers),
                after_in_child=self._forked,
            )

    def _install(self) -> None:
        for number in self._numbers:
            signal.signal(number, self._note)

    def _forked(self) -> None:
        """A process that a task forks has nothing to do with us, and loses none that comes meanwhile."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGQUIT":  # here, because it is for when nothing else helps
            with contextlib.suppress(OSError):
                os.write(2, b"SIGQUIT: ended at once\n")
            os._exit(QUIT)
        self.queue.put(name)
        if self.code is not None and name in self.TO_STOP:
            _exit_now(self.code)
        if self.loading and name in self.TO_STOP:
            raise _Stopped(name)

    def loaded(self) -> None:
        """The import is over. Handlers that the application has set meanwhile are replaced."""
        self.loading = False
        self._install()

    def take(self) -> str | None:
        timeout = 0.5 if os.name == "nt" else None  # there, no handler is called during a wait
        while True:
            with contextlib.suppress(queue.Empty):
                return self.queue.get(timeout=timeout)


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


# --- The worker's process ------------------------------------------------------


class _Process:
    """Runs a worker in a thread, and meanwhile does what the signals say."""

    def __init__(self, worker: Worker, signals: _Signals) -> None:
        self._worker = worker
        self._signals = signals
        self._stops = 0
        self._failed = False

    def run(self) -> int:
        """Returns the exit code."""
        thread = threading.Thread(target=self._work, name="kuyruk-supervisor", daemon=True)
        thread.start()
        while (name := self._signals.take()) is not None:
            try:
                self._react(name)
            except Exception:
                logger.exception("Can't do what %s says", name)
        thread.join()
        if self._failed:
            return FAILED
        return INTERRUPTED if self._worker.aborted else STOPPED

    def _work(self) -> None:
        try:
            self._worker.run()
        except BaseException:
            self._failed = True
            logger.critical("The worker failed", exc_info=True)
        finally:
            self._signals.queue.put(None)

    def _react(self, name: str) -> None:
        if name == "SIGUSR1":
            print(_report(self._worker), file=sys.stderr, flush=True)
        elif name == "SIGUSR2":
            logger.warning("SIGUSR2: dropping %d running tasks", self._worker.drop())
        else:
            self._stop(name)

    def _stop(self, name: str) -> None:
        self._stops += 1
        running = self._worker.stats["running"]
        if self._stops > 1:
            logger.warning("%s again: interrupting %d running tasks", name, len(running))
        elif running:
            tasks = ", ".join(map(_describe, running[:5])) + (", ..." if len(running) > 5 else "")
            logger.info("%s: stopping when what runs has ended (again: interrupts it): %s", name, tasks)
        else:
            logger.info("%s: stopping", name)
        self._worker.stop(timeout=None if self._stops == 1 else 0, wait=False)


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


def _load(args: argparse.Namespace) -> Worker:
    """Import the application and make its worker. Raises UsageError."""
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    _check(args)
    where, app = find_app(args.modules[0])
    app.packages.add(where.partition(":")[0].partition(".")[0])
    for module in args.modules[1:]:
        app.packages.add(_locate(module)[0].__name__.partition(".")[0])
    options = {key.removeprefix("WORKER_").lower(): getattr(args, key) for key in _OPTIONS}
    _set_up_logging(options.pop("logging_level"), app.config.WORKER_LOGGING_LEVEL)
    try:
        worker = app.worker(args.queue, **options)
    except ValueError as error:
        raise UsageError(f"-q/--queue: {error}") from None
    logger.info(
        "kuyruk %s: worker of %s for %s with %d threads",
        _library().__version__,
        where,
        ", ".join(map(repr, worker.queues)),
        options["threads"] or app.config.WORKER_THREADS,
    )
    return worker


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code, but ends the process itself if a task is stuck."""
    signals = _Signals()
    try:
        worker = _load(_parse(argv))
        signals.loaded()
    except _Stopped as stopped:
        print(f"{_program()}: {stopped}: stopped before the worker began", file=sys.stderr)
        return STOPPED
    except UsageError as error:
        print(*error.args[1:], f"{_program()}: error: {error.args[0]}", sep="", file=sys.stderr)
        return USAGE
    signals.code = code = _Process(worker, signals).run()
    if any(thread.name.startswith("kuyruk-pool") for thread in threading.enumerate()):
        _exit_now(code)  # leaving the usual way waits for these threads
    return code


if __name__ == "__main__":
    sys.exit(main())
