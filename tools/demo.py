"""`make demo`: real files through a real RabbitMQ, from nothing, and nothing left behind.

    python tools/demo.py [FOLDER]

Starts a private RabbitMQ and a worker process with examples/checksums/tasks.py, and has it compute
the checksum of every file below FOLDER (by default Python's standard library): each as a task whose
result is waited for, by several threads, then all again as one batch, whose results a file
collects. Compares all with the same computed here, and explains the worker's log. With
KUYRUK_TEST_URL it uses that broker.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import itertools
import json
import os
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import lab
from amqpstorm.exception import AMQPChannelError, AMQPError
from amqpstorm.message import Message
from lab import Failure, say, uninterrupted
from rabbitmq_node import RabbitmqNode

for _name in [n for n in os.environ if n.startswith("KUYRUK_") and n[7:11] != "TEST"]:
    del os.environ[_name]  # the demo's broker and settings are its own

import kuyruk
from examples.checksums import tasks

#: What is taken of a folder: so many files, each of at most so many bytes.
MAX_FILES = 5000
MAX_BYTES = 100_000_000
#: Folders in the standard library's that aren't the library's, or that Python writes while we read.
NOT_STANDARD_LIBRARY = ("site-packages", "dist-packages", "__pycache__")
#: The queues that the worker makes.
QUEUES = ("checksums", "checksums.failed")
#: Threads that send and wait for results.
THREADS = 8
#: Seconds that one result is waited for; and that nothing at all may happen with the batch.
PATIENCE = 60.0
#: What to look for in the worker's log, and what it means; in the order in which it is shown.
LOG_LINES = (
    ("Consuming", "It is connected and ready. After a loss of the broker this line comes again."),
    ("trying again", "A task raised, and has tries left (retry): it runs again at once."),
    (" failed", "No tries left: its message goes to the queue 'checksums.failed'."),
    ("SIGTERM", "It was asked to stop, as service managers and Ctrl-C do."),
    ("Stopped", "It took nothing new, finished what ran, and closed its connections."),
)


# --- The files -----------------------------------------------------------------

#: What is found out about files, by their paths.
Found = dict[str, tasks.Facts]


def regular_files(folder: str, skip: Iterable[str]) -> Iterator[str]:
    """Yield no symbolic links, which may lead anywhere, and no devices."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - set(skip))
        for path in (os.path.join(parent, name) for name in sorted(names)):
            with contextlib.suppress(OSError):  # gone again
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
                    yield path


def examine(path: str) -> tasks.Facts | None:
    with contextlib.suppress(OSError):
        return tasks.examine(path)
    return None


def select(folder: str | None) -> Found:
    """Return the files of a folder that the demo takes, with what is found out here about each.
    Raises Failure if there is nothing to send."""
    skip: tuple[str, ...] = ()
    if folder is None:
        folder, skip = sysconfig.get_paths()["stdlib"], NOT_STANDARD_LIBRARY
    say(f"folder:   {folder!r}" + (f" (without {', '.join(skip)})" if skip else ""))
    found: Found = {}
    for path in itertools.islice(regular_files(folder, skip), MAX_FILES):
        if facts := examine(path):
            found[path] = facts
            lab.say_progress(f"    files read: {len(found)}")
    say(f"          {len(found)} files" + (", and no more are taken" * (len(found) == MAX_FILES)))
    if not found:
        raise Failure("no file there that could be read: nothing to do")
    return found


def mismatches(here: Found, there: Mapping[str, object]) -> list[str]:
    """Compare what was found out here with what the worker has found out."""
    wrong = [path for path in here if there.get(path) != here[path]]
    # A file that has changed meanwhile, or is gone, proves nothing.
    return [f"{path!r}: {there.get(path)}" for path in wrong if examine(path) == here[path]]


# --- The two ways to send ------------------------------------------------------


def wait_for_each(found: Found, worker: lab.Process) -> dict[str, object]:
    """Wait for each result in the thread that has sent the task."""
    results: dict[str, object] = {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            # An exception inside of `map` would leave a thread that the pool doesn't know of.
            with uninterrupted():
                answers = pool.map(ask, found)
            for path, result in zip(found, answers, strict=True):
                results[path] = result
                lab.say_progress(f"    results: {len(results)}")
                worker.check()
        except BaseException:
            # None begins another call; those that run end soon, because the worker still works.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def ask(path: str) -> object:
    """Return the result, or what was raised instead."""
    try:
        return tasks.checksum.send_to_queue(args=(path,), wait_result=PATIENCE)
    except kuyruk.KuyrukError as error:
        return error


def send_as_batch(found: Found, worker: lab.Process, report: str) -> dict[str, object]:
    """Send all at once. The tasks append their results to a file, which is read here."""
    results: dict[str, object] = {}
    tail, quiet = lab.Tail(report), lab.Quiet()
    tasks.app.send_tasks_to_queue([tasks.checksum_into.subtask((path, report)) for path in found])
    while missing := found.keys() - results.keys():
        results |= {facts["path"]: facts for facts in map(json.loads, tail.lines())}
        lab.say_progress(f"    results: {len(results)}")
        seconds = quiet.seconds(len(results))
        # Of files that were deleted meanwhile nothing is reported.
        if seconds > PATIENCE or (seconds > 1 and not any(map(os.path.exists, missing))):
            break
        worker.check()
        time.sleep(0.01)
    return results


# --- The demo ------------------------------------------------------------------


def start_broker(stack: contextlib.ExitStack) -> str:
    """Return its URL."""
    url = os.environ.get("KUYRUK_TEST_URL")
    if url:
        say("RabbitMQ: the one of KUYRUK_TEST_URL")
        return url
    began, node = time.monotonic(), stack.enter_context(RabbitmqNode())
    say(f"RabbitMQ: a private one, started in {time.monotonic() - began:.1f} s")
    return node.url


@contextlib.contextmanager
def claimed_queues() -> Iterator[None]:
    """Have them for ourselves until the end. Raises Failure if there are such queues already."""
    for queue in QUEUES:
        with contextlib.suppress(AMQPChannelError), tasks.app.channel() as channel:
            channel.queue.declare(queue, passive=True)
            raise Failure(f"there is a queue {queue!r} on this broker already: not touched")
    try:
        yield
    finally:
        with contextlib.suppress(AMQPError), tasks.app.channel() as channel:
            for queue in QUEUES:
                channel.queue.delete(queue)


def start_worker(stack: contextlib.ExitStack, url: str, log: str) -> lab.Process:
    with uninterrupted():
        worker = lab.worker("examples.checksums.tasks", url, log, processes=1, threads=THREADS)
        stack.enter_context(worker)
        stack.callback(worker.stop)
    worker.wait_for(LOG_LINES[0][0])
    say(f"worker:   python {' '.join(worker.command[1:])} (process {worker.pid})")
    return worker


def show_failure() -> None:
    """Send a task that fails, and show what its caller gets."""
    try:
        tasks.checksum.send_to_queue(args=("/there is no such file",), wait_result=PATIENCE)
    except kuyruk.RemoteException as error:
        say(f"A task that fails raises in its caller:\n    kuyruk.RemoteException: {error}")


def show_failed_message() -> None:
    """Show the message of the task that failed. Raises Failure if there is none."""
    with tasks.app.channel() as channel:
        message = channel.basic.get("checksums.failed", no_ack=True)
    if not isinstance(message, Message):
        raise Failure("the failed message isn't in the queue 'checksums.failed'")
    headers = message.properties["headers"]
    say("Its message is kept in the queue 'checksums.failed', with headers that tell why:")
    for name in ("x-kuyruk-exception", "x-kuyruk-failed-at", "x-kuyruk-failures"):
        say(f"    {name}: {headers[name]}")


def show_log(log: str) -> None:
    say("\nThe worker's log, and how to read it:")
    for words, meaning in LOG_LINES:
        line = next((line for line in log.splitlines() if words in line), None)
        if line is None:
            raise Failure(f"the worker's log has no line with {words!r}:\n{log}")
        say(f"    {line}\n        {meaning}")


def demonstrate(options: argparse.Namespace) -> list[str] | None:
    """Return what doesn't agree. Raises what goes wrong, after cleaning up."""
    with contextlib.ExitStack() as stack:
        try:
            return _demonstrate(select(options.folder), stack)
        except kuyruk.KuyrukError as error:
            raise Failure(str(error)) from error
        finally:
            lab.hold_signals()  # until the end: what cleans up isn't interrupted


def _demonstrate(found: Found, stack: contextlib.ExitStack) -> list[str] | None:
    url = start_broker(stack)
    try:
        tasks.config.RABBIT_URL = url
    except ValueError as error:
        raise Failure(f"KUYRUK_TEST_URL: {error}") from None
    stack.callback(tasks.app.close)
    stack.enter_context(claimed_queues())
    made = stack.enter_context(tempfile.TemporaryDirectory(prefix="kuyruk-demo-"))
    worker = start_worker(stack, url, os.path.join(made, "log"))
    ways: dict[str, Callable[[], dict[str, object]]] = {
        f"each waited for, {THREADS} threads": lambda: wait_for_each(found, worker),
        "one batch, results in a file": lambda: send_as_batch(found, worker, f"{made}/report"),
    }
    seconds, wrong = {}, []
    for way, send in ways.items():
        began = time.monotonic()
        results = send()
        seconds[way] = time.monotonic() - began
        wrong += mismatches(found, results)
    size = sum(facts["bytes"] for facts in found.values())
    lines = sum(facts["lines"] for facts in found.values())
    say(f"\n    files: {len(found)}   bytes: {size}   lines: {lines}   mismatches: {len(wrong)}")
    for way, taken in seconds.items():
        rate = len(found) / taken
        say(f"    {way:32}{len(found):>8} tasks  {taken:6.2f} s {rate:8.0f} tasks/s")
    say()
    show_failure()
    # It settles what it has begun: then the failed message is there.
    code = worker.stop()
    show_failed_message()
    show_log(worker.text)
    if code != 0:
        raise Failure(f"the worker ended with code {code}")
    return lab.some("mismatch", wrong) or None


def existing_folder(folder: str) -> str:
    if not os.path.isdir(folder):
        text = "this is no" if os.path.exists(folder) else "there is no"
        raise argparse.ArgumentTypeError(f"{text} folder: {folder!r}")
    return os.path.abspath(folder)  # the worker has a working directory of its own


OPTIONS = {
    "folder": {
        "nargs": "?", "type": existing_folder, "help": "default: Python's standard library",
    },
}  # fmt: skip


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names can be anything
    return lab.main(demonstrate, OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
