"""`make demo`: real files through a real RabbitMQ, from nothing, and nothing left behind.

    python tools/demo.py [--all] [FOLDER]

Starts a private RabbitMQ and a worker process with examples/checksums/tasks.py, and has it compute
the checksum of every file below FOLDER (by default Python's standard library): each as a task whose
result is waited for, by several threads, then all again as one batch, whose results a file
collects. Compares all with the same computed here, and explains the worker's log. With
KUYRUK_TEST_URL it uses that broker.

Exit code: 0 if all agree, 1 if not or if something broke, 2 for wrong arguments, 128 + n for signal
n.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from amqpstorm.exception import AMQPChannelError, AMQPError
from amqpstorm.message import Message
from rabbitmq_node import RabbitmqError, RabbitmqNode

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
for _name in [
    n for n in os.environ if n.startswith("KUYRUK_") and not n.startswith("KUYRUK_TEST_")
]:
    del os.environ[_name]  # the demo's broker and settings are its own

import kuyruk
from examples.checksums import tasks

#: What is taken of a folder without --all: so many files, and so many bytes.
MAX_FILES = 5000
MAX_BYTES = 1_000_000_000
#: Folders in the standard library's that aren't the library's, or that Python writes while we read.
NOT_STANDARD_LIBRARY = ("site-packages", "dist-packages", "__pycache__")
#: The queues that the worker makes.
QUEUES = ("checksums", "checksums.failed")
#: Threads that send and wait for results.
THREADS = 8
#: Seconds that one result is waited for; and that nothing at all may happen with the batch.
PATIENCE = 90.0
#: Seconds that the worker gets to start, and to stop.
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0

#: What to look for in the worker's log, and what it means; in the order in which it is shown.
LOG_LINES = (
    (r"Consuming", "It is connected and ready. After a loss of the broker this line comes again."),
    (r"trying again", "A task raised, and has tries left (retry): it runs again at once."),
    (r"Task .* failed", "No tries left: its message goes to the queue 'checksums.failed'."),
    (r"SIGTERM", "It was asked to stop, as service managers and Ctrl-C do."),
    (r"Stopped", "It took nothing new, finished what ran, and closed its connections."),
)


class DemoError(Exception):
    """What the user should read, instead of a traceback."""


class Interrupted(BaseException):
    """A signal asks to end. `args[0]` is its number."""


# --- Signals -------------------------------------------------------------------


class Signals:
    """Raises Interrupted in the main thread, but not while they are held."""

    def __init__(self) -> None:
        self._held = False
        self._came: list[int] = []

    def install(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: object) -> None:
        if self._held:
            self._came.append(signum)
        else:
            raise Interrupted(signum)

    def hold(self) -> None:
        """For what mustn't be cut in two: starting a process and noting it, and cleaning up."""
        self._held = True

    def release(self) -> None:
        self._held = False
        if self._came:
            raise Interrupted(self._came[0])


signals = Signals()


# --- What the user sees --------------------------------------------------------


class Progress:
    """A line that is written over, if the output is a terminal."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._on = sys.stdout.isatty()
        self._next = 0.0

    def show(self, done: int) -> None:
        if self._on and (done == self._total or time.monotonic() >= self._next):
            self._next = time.monotonic() + 0.1
            of = "" if self._total is None else f" of {self._total}"
            print(f"\r    {self._what}: {done}{of} ", end="", flush=True)

    def clear(self) -> None:
        if self._on:
            print("\r\033[K", end="", flush=True)


def say(text: str = "") -> None:
    print(text, flush=True)


# --- The files -----------------------------------------------------------------


class Selection:
    """The files of a folder that the demo takes, with what is found out here about each."""

    def __init__(self, folder: str, skip: Iterable[str], everything: bool) -> None:
        self.facts: dict[str, tasks.Facts] = {}
        self.left_out = 0
        self.unreadable: list[str] = []
        self._skip = frozenset(skip)
        progress = Progress("files read")
        most, room = (math.inf, math.inf) if everything else (MAX_FILES, MAX_BYTES)
        for path, size in self._walk(folder):
            if len(self.facts) >= most or size > room:
                self.left_out += 1
            elif self._add(path):
                room -= size
            progress.show(len(self.facts))
        progress.clear()

    def _walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Regular files only: no symbolic links, which may lead anywhere, and no devices."""
        for parent, folders, names in os.walk(folder, onerror=self._on_error):
            folders[:] = sorted(set(folders) - self._skip)
            for path in (os.path.join(parent, name) for name in sorted(names)):
                with contextlib.suppress(OSError):  # gone again
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        yield path, status.st_size

    def _on_error(self, error: OSError) -> None:
        self.unreadable.append(str(error.filename))

    def _add(self, path: str) -> bool:
        try:
            self.facts[path] = tasks.examine(path)
        except OSError:
            self.unreadable.append(path)
        return path in self.facts

    def describe(self) -> str:
        text = f"{len(self.facts)} files"
        if self.left_out:
            text += f" ({self.left_out} more are left out: --all takes them, too)"
        if self.unreadable:
            text += f"; {len(self.unreadable)} can't be read, as {self.unreadable[0]!r}"
        return text


class Comparison:
    """Of what was found out here with what the worker has found out."""

    def __init__(self, selection: Selection, results: Mapping[str, object], seconds: float) -> None:
        self.seconds = seconds
        self.mismatches: list[str] = []
        self.changed: set[str] = set()
        for path, here in selection.facts.items():
            there = results.get(path, "no result")
            if there != here and self._is_still(path, here):
                self.mismatches.append(f"{path!r}: {there}")
            elif there != here:
                self.changed.add(path)

    def _is_still(self, path: str, here: tasks.Facts) -> bool:
        """False if the file has changed meanwhile, or is gone."""
        try:
            return tasks.examine(path) == here
        except OSError:
            return False


# --- The worker process --------------------------------------------------------


class WorkerProcess:
    """`python -m kuyruk_worker`, and the lines of its log."""

    def __init__(self, url: str) -> None:
        self.command = [sys.executable, "-m", "kuyruk_worker", "examples.checksums.tasks"]
        self.lines: list[str] = []
        self._changed = threading.Condition()  # guards `lines`; notified of each, and of the end
        self._ended = False
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, "KUYRUK_RABBIT_URL": url, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us: we stop it
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._ended or self._seen(LOG_LINES[0][0]), START_TIMEOUT
            )
        if not ready or self._ended:
            raise DemoError("the worker didn't start:\n" + "\n".join(self.lines[-20:]))

    def _seen(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.lines)

    def check(self) -> None:
        """Raises DemoError if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"the worker ended with code {code}:\n" + "\n".join(self.lines[-20:]))

    def stop(self) -> int:
        """Gracefully, then less so. Returns its exit code."""
        for ask in (self._process.terminate, self._process.terminate, self._process.kill):
            if self._process.poll() is None:
                ask()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT)
        self._reader.join(STOP_TIMEOUT)
        return self._process.wait()


# --- The two ways to send ------------------------------------------------------


def wait_for_each(selection: Selection, worker: WorkerProcess) -> Comparison:
    """Each result is waited for by the thread that has sent the task."""
    progress = Progress("results", len(selection.facts))
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    began = time.monotonic()
    futures: dict[str, concurrent.futures.Future[object]] = {}
    try:
        # An exception inside `submit` would leave a thread behind that the pool doesn't know of.
        signals.hold()
        futures = {path: pool.submit(ask, path) for path in selection.facts}
        signals.release()
        waiting = set(futures.values())
        while waiting:
            waiting = concurrent.futures.wait(waiting, timeout=0.2).not_done
            progress.show(len(futures) - len(waiting))
            worker.check()
        seconds = time.monotonic() - began
    except BaseException:
        # None begins another call; and whoever waits for a result is told, as is who begins just
        # now.
        pool.shutdown(wait=False, cancel_futures=True)
        while running := [future for future in futures.values() if not future.done()]:
            tasks.app.close()
            concurrent.futures.wait(running, timeout=0.2)
        raise
    finally:
        pool.shutdown()
        progress.clear()
    return Comparison(
        selection, {path: future.result() for path, future in futures.items()}, seconds
    )


def ask(path: str) -> object:
    """The result, or what was raised instead."""
    try:
        return tasks.checksum.send_to_queue(args=(path,), wait_result=PATIENCE)
    except kuyruk.KuyrukError as error:
        return error


def send_as_batch(selection: Selection, worker: WorkerProcess, report: str) -> Comparison:
    """All are sent at once. The tasks append their results to a file, which is read here."""
    progress = Progress("results", len(selection.facts))
    results: dict[str, object] = {}
    began = time.monotonic()
    tasks.app.send_tasks_to_queue(
        [tasks.checksum_into.subtask((path, report)) for path in selection.facts]
    )
    try:
        for facts in follow(report, worker):
            if facts is not None:
                results[facts["path"]] = facts
            progress.show(len(results))
            missing = selection.facts.keys() - results.keys() if facts is None else None
            if len(results) == len(selection.facts) or (
                missing and not any(map(os.path.exists, missing))
            ):
                break  # of files that were deleted meanwhile nothing is reported
        seconds = time.monotonic() - began
    finally:
        progress.clear()
    return Comparison(selection, results, seconds)


def follow(report: str, worker: WorkerProcess) -> Iterator[tasks.Facts | None]:
    """The file's lines as they come; None for each second in which none came."""
    quiet_since = told = time.monotonic()
    with open(report, "ab+") as file:
        file.seek(0)
        while time.monotonic() < quiet_since + PATIENCE:
            line = file.readline()
            if line.endswith(b"\n"):
                quiet_since = told = time.monotonic()
                yield json.loads(line)
                continue
            file.seek(-len(line), os.SEEK_CUR)  # half written: another time
            worker.check()
            time.sleep(0.01)
            if time.monotonic() >= told + 1:
                told = time.monotonic()
                yield None


# --- The demo ------------------------------------------------------------------


def start_broker(stack: contextlib.ExitStack) -> str:
    """Returns its URL. Raises DemoError."""
    url = os.environ.get("KUYRUK_TEST_URL")
    if url:
        say("RabbitMQ: the one of KUYRUK_TEST_URL")
        return url
    began = time.monotonic()
    node = RabbitmqNode()
    stack.callback(node.stop)
    node.start()
    say(f"RabbitMQ: a private one, started in {time.monotonic() - began:.1f} s")
    return node.url


def claim_queues(stack: contextlib.ExitStack) -> None:
    """Ours until the end. Raises DemoError when there are such queues already."""
    for queue in QUEUES:
        with contextlib.suppress(AMQPChannelError), tasks.app.channel() as channel:
            channel.queue.declare(queue, passive=True)
            raise DemoError(f"there is a queue {queue!r} on this broker already: not touched")
    stack.callback(delete_queues)


def delete_queues() -> None:
    with contextlib.suppress(AMQPError), tasks.app.channel() as channel:
        for queue in QUEUES:
            channel.queue.delete(queue)


def start_worker(stack: contextlib.ExitStack, url: str) -> WorkerProcess:
    signals.hold()
    worker = WorkerProcess(url)
    stack.callback(worker.stop)
    signals.release()
    worker.wait_until_ready()
    say(f"worker:   python {' '.join(worker.command[1:])} (process {worker.pid})")
    return worker


def show_failure(folder: str) -> None:
    """A task that fails on purpose: what its caller gets."""
    missing = os.path.join(folder, "there is no such file")
    try:
        tasks.checksum.send_to_queue(args=(missing,), wait_result=PATIENCE)
    except kuyruk.RemoteException as error:
        say(f"A task that fails raises in its caller:\n    kuyruk.RemoteException: {error}")


def show_failed_message() -> None:
    """Raises DemoError if there is none."""
    with tasks.app.channel() as channel:
        message = channel.basic.get("checksums.failed", no_ack=True)
    if not isinstance(message, Message):
        raise DemoError("the failed message isn't in the queue 'checksums.failed'")
    headers = message.properties["headers"]
    say("Its message is kept in the queue 'checksums.failed', with headers that tell why:")
    for name in ("x-kuyruk-exception", "x-kuyruk-failed-at", "x-kuyruk-failures"):
        say(f"    {name}: {headers[name]}")


def show_log(lines: Sequence[str]) -> None:
    say("\nThe worker's log, and how to read it:")
    for pattern, meaning in LOG_LINES:
        line = next((line for line in lines if re.search(pattern, line)), None)
        if line is None:
            raise DemoError(f"the worker's log has no line with {pattern!r}:\n" + "\n".join(lines))
        say(f"    {line}\n        {meaning}")


def show_table(selection: Selection, each: Comparison, batch: Comparison) -> None:
    files = len(selection.facts)
    size = sum(facts["bytes"] for facts in selection.facts.values())
    lines = sum(facts["lines"] for facts in selection.facts.values())
    mismatches = [*each.mismatches, *batch.mismatches]
    say(f"\n    files: {files}   bytes: {size}   lines: {lines}   mismatches: {len(mismatches)}")
    ways = ((f"each waited for, {THREADS} threads", each), ("one batch, results in a file", batch))
    for way, comparison in ways:
        rate = files / comparison.seconds
        say(f"    {way:32}{files:>8} tasks  {comparison.seconds:6.2f} s {rate:8.0f} tasks/s")
    changed = each.changed | batch.changed
    if changed:
        say(f"    not counted, because they changed meanwhile: {len(changed)}")
    for mismatch in mismatches[:10]:
        say(f"    mismatch: {mismatch}")
    say()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Real files through a real RabbitMQ.")
    parser.add_argument("folder", nargs="?", help="default: Python's standard library")
    bound = f"without it, the first {MAX_FILES} and at most {MAX_BYTES / 1e6:.0f} MB"
    parser.add_argument("--all", action="store_true", help=f"every file; {bound}")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is not None and not os.path.isdir(folder):
        parser.error(
            f"{'this is no' if os.path.exists(folder) else 'there is no'} folder: {folder!r}"
        )
    return arguments


def select(arguments: argparse.Namespace) -> tuple[str, Selection]:
    """Raises DemoError if there is nothing to send."""
    skip: tuple[str, ...] = ()
    folder = arguments.folder
    if folder is None:
        folder, skip = sysconfig.get_paths()["stdlib"], NOT_STANDARD_LIBRARY
    folder = os.path.abspath(folder)  # the worker has a working directory of its own
    say(f"folder:   {folder!r}" + (f" (without {', '.join(skip)})" if skip else ""))
    selection = Selection(folder, skip, arguments.all)
    say(f"          {selection.describe()}")
    if not selection.facts:
        raise DemoError("no file there that could be read: nothing to do")
    return folder, selection


def demonstrate(arguments: argparse.Namespace) -> bool:
    """Returns whether all agree. Raises what goes wrong, after cleaning up."""
    with contextlib.ExitStack() as stack:
        try:
            return _demonstrate(arguments, stack)
        finally:
            signals.hold()  # until the end: what cleans up isn't interrupted


def _demonstrate(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> bool:
    folder, selection = select(arguments)
    url = start_broker(stack)
    try:
        tasks.config.RABBIT_URL = url
    except ValueError as error:
        raise DemoError(f"KUYRUK_TEST_URL: {error}") from None
    stack.callback(tasks.app.close)
    claim_queues(stack)
    report = os.path.join(
        stack.enter_context(tempfile.TemporaryDirectory(prefix="kuyruk-demo-")), "report"
    )
    worker = start_worker(stack, url)
    each = wait_for_each(selection, worker)
    batch = send_as_batch(selection, worker, report)
    show_table(selection, each, batch)
    show_failure(folder)
    code = worker.stop()  # it settles what it has begun: then the failed message is there
    show_failed_message()
    show_log(worker.lines)
    if code != 0:
        raise DemoError(f"the worker ended with code {code}")
    return not each.mismatches and not batch.mismatches


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names can be anything
    arguments = parse_arguments()
    signals.install()
    try:
        return 0 if demonstrate(arguments) else 1
    except BrokenPipeError:  # nobody reads any more what is said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DemoError, RabbitmqError, kuyruk.KuyrukError, AMQPError, OSError) as error:
        say(f"\ndemo: {error}")
        return 1
    except Interrupted as interrupted:
        say("\ndemo: interrupted; what it started has ended")
        return 128 + int(interrupted.args[0])


if __name__ == "__main__":
    sys.exit(main())
