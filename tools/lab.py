"""What the tools of this folder share: the command, processes, and a ledger of every message.

Who imports it can import kuyruk: the folder above is added to the path.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

from amqpstorm.exception import AMQPChannelError, AMQPError
from amqpstorm.uri_connection import UriConnection
from rabbitmq_node import RabbitmqError, RabbitmqNode

TOOLS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TOOLS)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

PATIENCE = 30.0  #: Seconds that a process gets to end, before it is killed.
OFTEN = 10.0  #: Seconds between two lines about the progress.
SHOWN = 10  #: Violations of one sort that are printed.
#: Seconds in which the broker may not have on record yet that a call has ended.
SETTLING = 1.0
#: The outcomes of a call that has returned, and of a send that has.
RETURNED, CONFIRMED = "returned", "confirmed"


# --- The command -----------------------------------------------------------------
#
# Arguments, errors, signals and exit codes are the same in all tools.


class Failure(Exception):
    """What the user should read, instead of a traceback."""


#: The signals that came while they are held back; None: they aren't.
_held: list[int] | None = None


def _on_signal(number: int, frame: object) -> None:
    if _held is None:
        raise KeyboardInterrupt(number)
    _held.append(number)


def _on_unraisable(unraisable: Any) -> None:
    """Send a signal once more whose exception Python has swallowed."""
    # It does that to what a signal handler raises while a destructor runs, or the callback of a
    # weak reference.
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and unraisable.exc_value.args:
        number = unraisable.exc_value.args[0]
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back: for what mustn't be cut in two, as starting a process and noting it."""
    global _held
    if _held is not None:
        yield  # whoever holds them already lets them go, too
        return
    _held = []
    try:
        yield
    finally:
        came, _held = _held, None
        if came:
            raise KeyboardInterrupt(came[0])


def hold_signals() -> None:
    """Hold signals back until the end of the program: for what cleans up."""
    global _held
    _held = []


def option(default: object, text: str) -> dict[str, Any]:
    """Return argparse's arguments for an option with a default; for a flag if that is False."""
    if default is False:
        return {"action": "store_true", "help": text}
    return {"type": type(default), "default": default, "help": f"{text} (default: {default})"}


def main(
    run: Callable[[argparse.Namespace], Sequence[str] | None],
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Run a tool with the arguments of its command line, and return its exit code: 0 if nothing is
    wrong, 1 if something is or broke (the text is on stderr), 128 + n for the signal n."""
    # `run` returns what is wrong, which is printed; None if there is no more to say. `options` has
    # what argparse needs of each, see `option`; it ends with 2 if the arguments are wrong. Its help
    # begins with the first line of the module.
    about = (sys.modules[run.__module__].__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about.replace("%", "%%"))
    for name, each in (options or {}).items():
        parser.add_argument(name, **each)
    arguments = parser.parse_args()
    name = parser.prog.removesuffix(".py")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_signal)
    sys.unraisablehook = _on_unraisable
    try:
        violations = run(arguments)
    except BrokenPipeError:  # nobody reads any more what is said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failure, RabbitmqError, AMQPError, OSError, subprocess.SubprocessError) as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\n{name}: interrupted; what it started has ended", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    if violations is not None:
        say("\n".join(["", "VIOLATIONS:", *violations] if violations else ["", "No violations."]))
    return 1 if violations else 0


def say(text: str = "") -> None:
    print(text, flush=True)


_said = time.monotonic()


def say_progress(text: str) -> None:
    """Say it if nothing was said of the progress for a while."""
    global _said
    if time.monotonic() > _said + OFTEN:
        _said = time.monotonic()
        say(text)


def some(what: str, found: Iterable[str]) -> list[str]:
    """Return the first of these violations, and how many more there are."""
    found = [f"{what}: {text}" for text in found]
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"{what}: {more} more"] if more > 0 else [])


class Quiet:
    """How long nothing has changed."""

    def __init__(self) -> None:
        self._state: object = self
        self._since = time.monotonic()

    def seconds(self, state: object) -> float:
        """Return the seconds since this, which is compared with what it was, has changed."""
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        return time.monotonic() - self._since


# --- Processes -------------------------------------------------------------------
#
# A process has a session of its own: by that all are known that descend from it.


def environment(**own: object) -> dict[str, str]:
    """Return this process's environment without settings of Kuyruk and Python, and with some
    variables."""
    # PYTHONDONTWRITEBYTECODE, for one, costs a worker a third of its memory and of its start.
    foreign = ("KUYRUK_", "BENCH_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    path = os.pathsep.join((TOOLS, ROOT))
    return kept | {"PYTHONPATH": path} | {key: str(value) for key, value in own.items()}


class Process:
    """A process whose output goes to the end of a log. It is killed with a `with` block."""

    def __init__(
        self, command: Sequence[str], log: str, env: Mapping[str, str], cwd: str = ROOT
    ) -> None:
        self.command, self.log = command, log
        with uninterrupted(), open(log, "ab") as output:
            self.began = time.monotonic()
            self._popen = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        self.pid = self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def code(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._popen.poll()

    @property
    def text(self) -> str:
        """Return its log."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def check(self) -> None:
        """Raise a Failure, with its last words, if it has ended."""
        if self.code is not None:
            words = "\n".join(self.text.splitlines()[-20:])
            raise Failure(f"{self.command[1:4]} has ended with exit code {self.code}:\n{words}")

    def wait_for(self, words: str, seconds: float = PATIENCE) -> str:
        """Return the first line of its log that has these words, when there is one."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            for line in self.text.splitlines():
                if words in line:
                    return line
            if time.monotonic() > deadline:
                raise Failure(f"{words!r} isn't in the log after {seconds:g} s:\n{self.text}")
            time.sleep(0.02)

    def session(self, zombies: bool = False) -> list[int]:
        """Return all processes of it that run, the first one first."""
        own = [(pid, stat) for pid, stat in stats() if stat.session == self.pid]
        found = [pid for pid, stat in own if zombies or stat.state != "Z"]
        return sorted(found, key=lambda pid: pid != self.pid)

    def children(self) -> list[int]:
        return [pid for pid in self.session() if pid != self.pid]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of them."""
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def tell(self, line: str) -> None:
        """Write to its standard input."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(f"{line}\n".encode())

    def stop(self, patience: float = PATIENCE) -> int | None:
        """Send SIGTERM to the first one, and return its exit code; None if it doesn't end."""
        self._popen.terminate()
        return self._wait(patience)

    def close_input(self, patience: float = PATIENCE) -> int | None:
        """End its standard input, and return its exit code; None if it doesn't end."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        return self._wait(patience)

    def _wait(self, patience: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(patience)
        return None

    def kill(self) -> None:
        """Send SIGKILL to all of them, and to those that they have started meanwhile."""
        # Where there is no /proc, to its process group. After its end another one may have that
        # number.
        if self.code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        while self.session():
            self.signal(signal.SIGKILL)
            time.sleep(0.002)
        self.close_input()

    def cpu(self) -> float:
        """Return the seconds of CPU time of all of them, those that have ended included."""
        return sum(stat.ticks for _, stat in stats() if stat.session == self.pid) / TICKS


def worker(module: str, url: str, log: str, processes: int, threads: int, **own: object) -> Process:
    """Start `python -m kuyruk_worker`, with more variables in its environment."""
    command = [sys.executable, "-m", "kuyruk_worker", module, "-p", str(processes)]
    env = environment(KUYRUK_RABBIT_URL=url, **own)
    return Process([*command, "-t", str(threads)], log, env)


# --- /proc -----------------------------------------------------------------------
#
# What Linux knows of a process: its state, CPU time, memory, threads, open files.

TICKS = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    state: str
    session: int
    ticks: int  #: CPU time of the process, and of those of its children that it has waited for.


def stats() -> Iterator[tuple[int, Stat]]:
    """Yield what there is of each process of this machine, zombies included."""
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            yield int(name), Stat(fields[0], int(fields[3]), sum(map(int, fields[11:15])))


def kilobytes(pid: int, file: str, key: str) -> int:
    """Return a number of /proc/PID/FILE; 0 if the process has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
    return 0


class Sample(NamedTuple):
    """What a process takes."""

    at: float  #: time.monotonic()
    pid: int
    memory: float  #: MiB, resident.
    threads: int
    files: int  #: That are open.

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return None if it has ended."""
        memory = kilobytes(pid, "status", "VmRSS")
        with contextlib.suppress(OSError):
            files = len(os.listdir(f"/proc/{pid}/fd"))
            threads = kilobytes(pid, "status", "Threads")
            return cls(time.monotonic(), pid, memory / 1024, threads, files) if memory else None
        return None


def stolen_clock() -> Callable[[], float]:
    """Return a function that tells which part of the machine's time since now the hypervisor has
    given to others."""

    def read() -> list[int]:
        with open("/proc/stat") as file:
            return [int(field) for field in file.readline().split()[1:9]]

    def stolen() -> float:
        spent = [now - then for now, then in zip(read(), before, strict=True)]
        return spent[7] / max(1, sum(spent))

    before = read()
    return stolen


# --- The ledger ------------------------------------------------------------------
#
# What was sent, and what ran: from that follows what is lost, and what ran again. Senders and tasks
# write it with `note` and `noted`: a line in one write, to a file that is only appended to. So it
# tells the truth whatever becomes of its writers.

#: Where the senders and the workers of a run write. They have it from their environment.
FOLDER = os.environ.get("LAB_FOLDER", "")


class Sent(NamedTuple):
    """A message, after its send has returned or raised."""

    number: str
    kind: str  #: Of its task, see lab_tasks.py.
    began: float  #: time.monotonic(), which all processes of this machine share.
    ended: float
    outcome: str  #: CONFIRMED, or why not.


@dataclass
class Call:
    """Of a task."""

    number: str  #: Of its message.
    pid: int
    began: float
    ended: float = 0.0
    #: RETURNED, or the exception's name. None: it still runs, or has ended with its process.
    outcome: str | None = None


class Hit(NamedTuple):
    """A time in which what was on its way may have been cut off, and so comes again."""

    began: float
    ended: float
    pid: int | None = None  #: Of the process whose calls it concerns. None: of all, and of sends.


def note(record: Sent | Call) -> None:
    """Write it down."""
    # The file is opened each time: forks and threads share nothing.
    fields = record if isinstance(record, Sent) else vars(record).values()
    path = os.path.join(FOLDER, type(record).__name__)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps([*fields]).encode() + b"\n")
    finally:
        os.close(file)


@contextlib.contextmanager
def noted(number: object) -> Iterator[Call]:
    """Note that a task begins to work on a message, and how it ends."""
    call = Call(str(number), os.getpid(), time.monotonic())
    note(call)
    try:
        yield call
        call.outcome = RETURNED
    except BaseException as error:
        call.outcome = f"{type(error).__module__}.{type(error).__qualname__}"
        raise
    finally:
        call.ended = time.monotonic()
        note(call)


def is_first(number: object) -> bool:
    """Whether it is asked for the first time, by whatever process."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.join(FOLDER, f"first-{number}"), os.O_CREAT | os.O_EXCL))
        return True
    return False


class Tail:
    """A file of lines, read on as it is written."""

    def __init__(self, path: str) -> None:
        self._path, self._at = path, 0

    def lines(self) -> Iterator[bytes]:
        """Yield those that are new, and whole."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._at)
            for line in file:
                if line.endswith(b"\n"):
                    self._at += len(line)
                    yield line


class Ledger:
    """What has been sent, what has run, and what is in "<queue>.failed"."""

    def __init__(self, folder: str) -> None:
        self.sent: dict[str, Sent] = {}
        #: By their numbers, in the order of their begin.
        self.calls: dict[str, list[Call]] = collections.defaultdict(list)
        #: The exceptions of each message.
        self.failed: dict[str, list[str]] = collections.defaultdict(list)
        #: When each process has begun a task last.
        self.last_begin: dict[int, float] = {}
        #: How many calls ended with which outcome.
        self.ends: collections.Counter[str] = collections.Counter()
        self._by_begin: dict[tuple[str, int, float], Call] = {}
        self._sends, self._calls = (Tail(os.path.join(folder, kind)) for kind in ("Sent", "Call"))

    def follow(self) -> None:
        """Read what was noted since the last time."""
        for line in self._sends.lines():
            sent = Sent(*json.loads(line))
            self.sent[sent.number] = sent
        for line in self._calls.lines():
            self._enter(Call(*json.loads(line)))

    def _enter(self, call: Call) -> None:
        known = self._by_begin.setdefault((call.number, call.pid, call.began), call)
        if known is call:
            calls = self.calls[call.number]
            calls.append(call)
            calls.sort(key=lambda each: each.began)
            self.last_begin[call.pid] = max(call.began, self.last_begin.get(call.pid, 0.0))
        if call.outcome is not None:
            known.ended, known.outcome = call.ended, call.outcome
            self.ends[call.outcome] += 1

    def read_failed(self, url: str, queue: str) -> None:
        """Take what is in the queue of what has failed."""
        # Without such a queue nothing has.
        with contextlib.suppress(AMQPChannelError), UriConnection(url) as connection:
            channel = connection.channel()
            while (message := channel.basic.get(f"{queue}.failed", no_ack=True)) is not None:
                given = cast(Any, message)
                number = str(json.loads(given.body)["args"][0])
                self.failed[number].append(given.properties["headers"]["x-kuyruk-exception"])

    @property
    def confirmed(self) -> list[Sent]:
        return [sent for sent in self.sent.values() if sent.outcome == CONFIRMED]

    def runs(self, number: str) -> list[Call]:
        """Return the calls that have returned, in the order of their end."""
        calls = [call for call in self.calls.get(number, ()) if call.outcome == RETURNED]
        return sorted(calls, key=lambda call: call.ended)

    def was_hit(self, number: str, hits: Iterable[Hit]) -> bool:
        """Whether a message was hit on its way."""
        # That is while it was sent, or in a call that wasn't the last, until the broker had its
        # acknowledgement on record.
        calls = self.calls.get(number, [])
        ways = []
        if sent := self.sent.get(number):
            ways.append(Hit(sent.began, sent.ended))
        for call, following in itertools.zip_longest(calls, calls[1:]):
            if following is not None or len(calls) == 1:
                # A call without an end has ended with its process, before the next one began.
                died = following.began if following else math.inf
                ended = died if call.outcome is None else call.ended + SETTLING
                ways.append(Hit(call.began, ended, call.pid))
        return any(
            hit.began <= way.ended and way.began <= hit.ended and hit.pid in (None, way.pid)
            for way, hit in itertools.product(ways, list(hits))
        )

    def describe(self, number: str) -> str:
        """Return what a violation says of a message."""
        calls = self.calls.get(number, ())
        text = ", ".join(f"{c.outcome} in {c.pid} at {c.began:.2f}-{c.ended:.2f}" for c in calls)
        failed = self.failed.get(number, [])
        return f"{self.sent.get(number)}; {text or 'no call'}; failed: {failed}"

    def begins(self) -> list[float]:
        return sorted(call.began for calls in self.calls.values() for call in calls)

    def news(self) -> tuple[int, ...]:
        """Return what changes when anything happens."""
        return len(self.sent), len(self._by_begin), self.ends.total(), len(self.failed)


# --- A run -------------------------------------------------------------------------


class Run:
    """Processes that work on a queue and send to it, the ledger that they write, and all that is
    wrong. They end with a `with` block."""

    def __init__(self, node: RabbitmqNode, queue: str, folder: str, **settings: object) -> None:
        # The settings are variables for all of its processes.
        self.node, self.queue, self.folder = node, queue, folder
        os.makedirs(folder)
        self.ledger = Ledger(folder)
        self.violations: list[str] = []
        self._settings = settings | {"LAB_FOLDER": folder, "LAB_QUEUE": queue}
        self._processes: list[Process] = []  # all that were ever started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()

    def start_worker(self, url: str, processes: int, threads: int) -> None:
        log = os.path.join(self.folder, "worker.log")
        self.worker = worker("lab_tasks", url, log, processes, threads, **self._settings)
        self._processes.append(self.worker)

    def start_sender(self, url: str, *options: object) -> Process:
        command = [sys.executable, os.path.join(TOOLS, "lab_sender.py"), *map(str, options)]
        env = environment(KUYRUK_RABBIT_URL=url, **self._settings)
        sender = Process(command, os.path.join(self.folder, "sender.log"), env)
        self._processes.append(sender)
        return sender

    def stop_worker(self) -> None:
        self.expect_code("a worker, on SIGTERM,", self.worker.stop())

    def expect_code(self, who: str, code: int | None) -> None:
        if code != 0:
            self.violations.append(f"{who} ended with exit code {code}")

    def drain(
        self, tick: Callable[[], object], is_done: Callable[[float], object], patience: float
    ) -> bool:
        """Wait until all is done. Return False if nothing has happened for so long."""
        # `is_done` gets the seconds since anything has happened.
        quiet = Quiet()
        while (seconds := quiet.seconds(self.ledger.news())) < patience:
            if is_done(seconds):
                return True
            tick()
        return False

    def account(self) -> None:
        """Read what there is in the end, when all processes must have ended."""
        self.ledger.follow()
        self.ledger.read_failed(self.node.url, self.queue)
        left = [pid for process in self._processes for pid in process.session(zombies=True)]
        if left:
            self.violations.append(f"processes were left behind: {left}")
        self.add("ran and was never sent", self.ledger.calls.keys() - self.ledger.sent.keys())

    def add(self, what: str, found: Iterable[str]) -> None:
        self.violations += some(what, found)
