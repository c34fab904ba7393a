"""What tools/bench.py compares, and what it measures of each."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from amqpstorm.exception import AMQPError
from amqpstorm.uri_connection import UriConnection
from lab import ROOT, TOOLS, Failure, Process, Quiet, environment, kilobytes, say
from rabbitmq_node import RabbitmqNode

VENV = os.path.join(ROOT, "build", "bench-venv")
PYTHON = os.path.join(VENV, "bin", "python")

#: Seconds that nothing may happen; and that a process which sends may take.
PATIENCE, LOAD_PATIENCE = 60.0, 600.0
#: Milliseconds of the tasks that sleep, and the threads that run them.
SHORT_NAPS, LONG_NAPS, NAPPING_THREADS = 10, 50, 64
#: Messages of a batch; and bytes of a large argument, as load.py has it.
BATCH, LARGE = 2000, 100_000


# --- The contenders ------------------------------------------------------------


def prefetching(count: int | None) -> dict[str, str]:
    """Return the variables that make a contender hold so many messages; ours does that itself."""
    names = ("BENCH_PREFETCH", "dramatiq_queue_prefetch")
    return {} if count is None else dict.fromkeys(names, str(count))


@dataclasses.dataclass(frozen=True)
class Contender:
    """What takes part, in one way of working."""

    name: str
    #: For those who see only the pictures.
    summary: str
    #: Of the folder bench_contenders.
    module: str
    #: No-op tasks per second, about: how many it gets.
    rate: float
    #: Its configuration, for the table.
    about: str
    #: The statement whose time is measured.
    imports: str = ""
    #: Of its worker: after `python`, with {threads} and {queue}. "": the module.
    command: str = ""
    mode: str = ""  #: BENCH_MODE
    #: That its worker runs tasks in: 1 if it can't have more.
    threads: int = 8
    is_persistent: bool = True
    #: None: as it comes; for the loops and Celery, see tasks.py.
    prefetch: int | None = None

    @property
    def kind(self) -> str:
        """Whether it is ours, a peer (another task queue), or raw: a loop on a client library."""
        return {"ours": "ours", "raw": "raw"}.get(self.module.partition("_")[0], "peer")

    @property
    def queue(self) -> str:
        return f"bench.{self.name}"

    def environment(self, url: str, ours: str, threads: int | None = None) -> dict[str, str]:
        """Return the variables of its processes; ours: the folder that our files are in."""
        path = TOOLS if self.module != "ours" else f"{ours}{os.pathsep}{TOOLS}"
        return environment(
            BENCH_URL=url, BENCH_QUEUE=self.queue, BENCH_MODE=self.mode, PYTHONPATH=path,
            BENCH_THREADS=threads or self.threads, PYTHONUNBUFFERED=1, **prefetching(self.prefetch),
        )  # fmt: skip

    def worker(self, threads: int | None = None) -> list[str]:
        command = self.command or f"-m bench_contenders.{self.module}"
        text = command.format(threads=threads or self.threads, queue=self.queue)
        return [PYTHON, *text.split()]


_OURS = "-m kuyruk_worker bench_contenders.ours -t {threads} -p "
_CELERY = "-m celery -A bench_contenders.celery_peer worker -c {threads} -Q {queue} -l WARNING"
_CELERY += " --without-gossip --without-mingle --without-heartbeat -P "
_DRAMATIQ = "-m dramatiq bench_contenders.dramatiq_peer -p 1 -t {threads} --skip-logging"
_CELERY_ABOUT = "prefetch 128, acknowledges late, no results but for RPC,"
_CELERY_ABOUT += " no gossip, mingle, heartbeats, events, remote control"

_KUYRUK10 = "-m kuyruk --app bench_contenders.kuyruk10.app worker -q {queue}"

_ALL = (
    Contender(
        "kuyruk", "this project: one process, 8 threads", "ours", 9000,
        "python -m kuyruk_worker -p 1 -t 8", "import kuyruk", _OURS + "1",
    ),
    Contender(
        "kuyruk-2", "this project: two processes, 8 threads each", "ours", 12000,
        "python -m kuyruk_worker -p 2 -t 8", command=_OURS + "2",
    ),
    Contender(
        "kuyruk-embedded", "this project: a worker inside of a program", "ours", 9000,
        "app.worker(threads=8) in a program",
    ),
    Contender(
        "kuyruk10", "Kuyruk 10: one task at a time, no confirms", "kuyruk10", 700,
        "as it comes: one task at a time, messages not persistent, sends not confirmed",
        "import kuyruk", _KUYRUK10, threads=1, is_persistent=False,
    ),
    Contender(
        "dramatiq", "task queue: 8 threads, its own prefetch", "dramatiq_peer", 4000,
        "dramatiq -p 1 -t 8, default middleware (without Prometheus, as it comes) and prefetch",
        "import dramatiq, dramatiq.brokers.rabbitmq", _DRAMATIQ,
    ),
    Contender(
        "dramatiq-128", "task queue: 8 threads, prefetch 128", "dramatiq_peer", 4000,
        "likewise, with dramatiq_queue_prefetch=128",
        command=_DRAMATIQ, prefetch=128,
    ),
    Contender(
        "celery", "task queue: 8 threads, prefetch 128", "celery_peer", 2200,
        "-P threads -c 8; " + _CELERY_ABOUT,
        "import celery; celery.Celery().amqp", _CELERY + "threads",
    ),
    Contender(
        "celery-prefork", "task queue: two processes, prefetch 128", "celery_peer", 2200,
        "-P prefork -c 2; " + _CELERY_ABOUT,
        command=_CELERY + "prefork", threads=2,
    ),
    Contender(
        "amqpstorm", "bare loop, as its documentation has it", "raw_amqpstorm", 1400,
        "a loop, as its documentation has it (basic.consume, start_consuming), prefetch 128",
        "import amqpstorm", mode="stock", threads=1,
    ),
    Contender(
        "amqpstorm-event", "bare loop in the library's reading thread", "raw_amqpstorm", 10000,
        "tasks run in amqpstorm's own reading thread, TCP_NODELAY, prefetch 128",
        mode="event", threads=1,
    ),
    Contender(
        "amqpstorm-pool", "bare loop with a pool of 8 threads", "raw_amqpstorm", 8000,
        "likewise, with a ThreadPoolExecutor(8), and one thread that acknowledges", mode="pool",
    ),
    Contender(
        "py-amqp", "bare loop", "raw_pyamqp", 8000,
        "a loop of drain_events, prefetch 128",
        "import amqp", threads=1,
    ),
    Contender(
        "pika", "bare loop", "raw_pika", 11000,
        "a loop of a SelectConnection, prefetch 128; sending: a BlockingConnection",
        "import pika", mode="select", threads=1,
    ),
    Contender(
        "pika-confirmed", "bare loop, requests and replies confirmed", "raw_pika", 11000,
        "likewise; requests are confirmed, and each reply before its task is acknowledged",
        mode="confirmed", threads=1,
    ),
)  # fmt: skip
CONTENDERS = {contender.name: contender for contender in _ALL}

DRAINING = tuple(name for name in CONTENDERS if name != "pika-confirmed")
SENDERS = ("kuyruk", "kuyruk10", "dramatiq", "celery", "amqpstorm", "py-amqp", "pika")
CONFIRMING = tuple(name for name in SENDERS if name != "kuyruk10")
NAPPING = ("kuyruk", "kuyruk10", "dramatiq", "celery", "amqpstorm-pool")
_NO_CALLERS = ("kuyruk-2", "kuyruk-embedded", "dramatiq", "dramatiq-128", "celery-prefork")
CALLERS = tuple(name for name in CONTENDERS if name not in (*_NO_CALLERS, "amqpstorm-pool"))


# --- The broker, and what tasks leave in memory --------------------------------


class Broker:
    """What the broker itself says of a queue."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with UriConnection(self._url) as connection, connection.channel() as channel:
            yield channel

    def purge(self, queue: str) -> None:
        with self._channel() as channel:
            channel.queue.purge(queue)

    def expect(self, queue: str, count: int | None, consumers: int = 0) -> None:
        """Wait until there are so many consumers and messages (None: however many). Raises Failure
        if nothing changes for some seconds."""
        # When a consumer is gone, what it had in hand is back.
        quiet = Quiet()
        with self._channel() as channel:
            while True:
                facts = channel.queue.declare(queue, passive=True)
                found = facts["message_count"], facts["consumer_count"]
                if found[1] == consumers and count in (found[0], None):
                    return
                if quiet.seconds(found) > PATIENCE / 3:
                    text = f"{queue} has {found} messages and consumers, not {count, consumers}"
                    raise Failure(text)
                time.sleep(0.01)

    def is_next_persistent(self, queue: str) -> bool:
        with self._channel() as channel:
            message = channel.basic.get(queue)
            if message is None:
                raise Failure(f"{queue} is empty")
            message.reject(requeue=True)
            return bool(message.properties.get("delivery_mode") == 2)


class Marks:
    """The other end of what bench_contenders/tasks.py writes: how often each task has run."""

    def __init__(self, count: int, folder: str) -> None:
        self.count = count
        marks, self._memory = self._share(count, folder)
        times, self._times = self._share(16 * count, folder)
        self.environment = {"BENCH_MARKS": marks, "BENCH_TIMES": times}

    @staticmethod
    def _share(size: int, folder: str) -> tuple[str, mmap.mmap]:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.truncate(size)
            return file.name, mmap.mmap(file.fileno(), size)

    def close(self) -> None:
        self._memory.close()
        self._times.close()
        for path in self.environment.values():
            os.unlink(path)

    def times(self) -> list[tuple[float, float]]:
        """Return when each `timed` task has begun and ended."""
        return list(struct.iter_unpack("dd", self._times[:]))

    def done(self) -> int:
        return self.count - self._memory[:].count(b"\0")

    def wait_for(self, count: int, worker: Worker, pause: float = 0.003) -> float:
        """Wait until so many tasks have run, and return when that was seen. Raises Failure if that
        gets nowhere."""
        quiet = Quiet()
        while (done := self.done()) < count:
            if quiet.seconds(done) > PATIENCE:
                raise Failure(f"{done} of {self.count} tasks have run, and no more in {PATIENCE} s")
            worker.check()
            time.sleep(pause)
        return time.monotonic()

    def check(self, complete: bool = True) -> None:
        """Raise Failure unless each has run once; if it isn't complete, at most once."""
        found = collections.Counter(self._memory[:])
        wrong = {times: n for times, n in found.items() if times > 1 or (times == 0 and complete)}
        if wrong:
            text = ", ".join(f"{n} ran {times} times" for times, n in wrong.items())
            raise Failure(f"of {self.count} tasks {text}")


# --- Processes -----------------------------------------------------------------


class Worker(Process):
    """A contender's worker."""

    def idle_cpu(self) -> float:
        """Return the seconds that its threads have taken."""
        # This is finer than `cpu`, but without what has ended.
        nanoseconds = 0
        for pid in self.session():
            for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                with contextlib.suppress(OSError), open(path) as file:
                    nanoseconds += int(file.read().split()[0])
        return nanoseconds / 1e9

    def peak_memory(self) -> float:
        """Return the MiB of the process that took most."""
        return max(kilobytes(pid, "status", "VmHWM") for pid in self.session()) / 1024

    def memory(self) -> float:
        """Return the MiB of all of its processes; what they share counts once."""
        return sum(kilobytes(pid, "smaps_rollup", "Pss") for pid in self.session()) / 1024


# --- Measurements --------------------------------------------------------------


class Bench:
    """Measure one thing, of one contender, once: return figures by the name of their row."""

    def __init__(self, node: RabbitmqNode, folder: str, seconds: float, is_quick: bool) -> None:
        self.broker = Broker(node.url)
        self.seconds = seconds
        self.is_quick = is_quick
        self.folder = folder  #: For logs and marks.
        self.failures: list[str] = []
        self._node = node
        self._prepared: set[str] = set()
        # A copy: whoever edits the library meanwhile doesn't mix two versions into one table.
        self.ours = os.path.join(folder, "ours")
        os.mkdir(self.ours)
        digest = hashlib.sha256()
        for name in ("kuyruk.py", "kuyruk_worker.py"):
            with open(shutil.copy(os.path.join(ROOT, name), self.ours), "rb") as file:
                digest.update(file.read())
        #: Of what is measured, whatever its version number says.
        self.version = digest.hexdigest()[:12]

    def load(self, contender: Contender, what: str, **options: Any) -> dict[str, Any]:
        """Run bench_contenders/load.py to its end, and return what it prints."""
        command = [PYTHON, "-m", "bench_contenders.load", contender.module, what]
        env = contender.environment(self._node.url, self.ours)
        run = functools.partial(subprocess.run, env=env, cwd=self.folder, text=True)
        done = run(command, input=json.dumps(options), capture_output=True, timeout=LOAD_PATIENCE)
        try:
            facts: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise Failure(f"{what}: {done.stderr.strip().rpartition(chr(10))[2]:.500}") from None
        return facts

    def worker(
        self, contender: Contender, marks: Marks | None, threads: int | None = None,
        arguments: Sequence[str] = (), **environment: str,
    ) -> Worker:  # fmt: skip
        own = contender.environment(self._node.url, self.ours, threads)
        own |= (marks.environment if marks else {}) | environment
        log = os.path.join(self.folder, f"{contender.name}.log")
        command = [*contender.worker(threads), *arguments]
        return Worker(command, log, own, cwd=self.folder)

    def prepare(self, contender: Contender) -> None:
        """Have its queue be there, and empty."""
        if contender.name not in self._prepared:
            # It makes the queue itself, with the first message that it sends to it.
            self.fill(contender, "noop", 1)
            self._check_persistence(contender)
            self._prepared.add(contender.name)
        self.broker.purge(contender.queue)

    def fill(
        self, contender: Contender, task: str, count: int, first: int = 0, **options: int
    ) -> None:
        """Have it send the messages from `first` on, and wait until they are in the queue."""
        self.load(contender, "fill", task=task, first=first, count=count, **options)
        self.broker.expect(contender.queue, first + count)

    def _check_persistence(self, contender: Contender) -> None:
        persistent = self.broker.is_next_persistent(contender.queue)
        if persistent != contender.is_persistent:
            raise Failure(f"its messages are {'' if persistent else 'not '}persistent")

    def send(
        self, contender: Contender, row: str, cost: str = "", what: str = "send", **options: Any
    ) -> dict[str, float]:
        facts = self.load(contender, what, seconds=self.seconds, **options)
        self.broker.expect(contender.queue, int(facts["calls"]))
        self._check_persistence(contender)
        self.broker.purge(contender.queue)
        figures = {row: facts["count"] / facts["seconds"]}
        return figures | ({cost: facts["cpu"] * 1000 / facts["count"]} if cost else {})

    def drain(
        self, contender: Contender, task: str, count: int, threads: int | None = None,
        **options: int,
    ) -> Drained:  # fmt: skip
        # Its tasks are sent before it starts. The clock runs from when a tenth of them has run
        # until all have: a beginning is another figure.
        self.fill(contender, task, count, **options)
        with self.working(contender, count, threads=threads) as (marks, [worker]):
            first = marks.wait_for(1, worker)
            drained = drained_by(worker, marks, count // 10, count)
        return drained._replace(start=first - worker.began)

    @contextlib.contextmanager
    def working(
        self, contender: Contender, count: int, workers: int = 1, left: int | None = 0,
        **options: Any,
    ) -> Iterator[tuple[Marks, list[Worker]]]:  # fmt: skip
        """Have it work on so many messages."""
        # Afterwards each must have run once, and so many must be left in the queue (None: of what
        # is left, none must have run twice).
        with contextlib.ExitStack() as stack:
            marks = stack.enter_context(contextlib.closing(Marks(count, self.folder)))
            started = [
                stack.enter_context(self.worker(contender, marks, **options))
                for _ in range(workers)
            ]
            yield marks, started
            for worker in started:
                self.kill(worker)
            marks.check(complete=left is not None)
        self.broker.expect(contender.queue, left)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note why this fails, and go on."""
        try:
            yield
        except (Failure, AMQPError, OSError, subprocess.SubprocessError) as error:
            self.failures.append(f"{what}: {error}")
            say(f"  {what}: FAILED: {error}")

    def kill(self, worker: Worker) -> None:
        """End it: what it hasn't acknowledged is back in the queue, for `Broker.expect` to find."""
        # A graceful end would tell the same, but takes some peers ten seconds.
        time.sleep(0.2)
        worker.kill()

    def no_ops(self, contender: Contender) -> dict[str, float]:
        drained = self.drain(contender, "noop", max(200, int(contender.rate * self.seconds * 1.5)))
        figures = {"start": drained.start, "drain": drained.rate, "drain_cpu": drained.cpu}
        return figures | {"memory": drained.peak, "memory_all": drained.memory}

    def large(self, contender: Contender) -> dict[str, float]:
        count = int(min(contender.rate / 4, 600) * self.seconds)
        return {"drain_large": self.drain(contender, "pad", count, size=LARGE).rate}

    def naps(self, contender: Contender, row: str, milliseconds: int) -> dict[str, float]:
        threads = NAPPING_THREADS if contender.threads > 1 else 1
        ideal = 1000 / milliseconds * threads
        count = int(min(ideal, contender.rate) * self.seconds * 1.5)
        return {row: self.drain(contender, "nap", count, threads, milliseconds=milliseconds).rate}

    def long(self, contender: Contender) -> dict[str, float]:
        count = 1_000 if self.is_quick else 100_000
        return {"memory_long": self.drain(contender, "noop", count).peak}

    def call(self, contender: Contender) -> dict[str, float]:
        with self.worker(contender, None) as worker:
            one = self.load(contender, "call", threads=1, seconds=self.seconds)
            many = self.load(contender, "call", threads=16, seconds=self.seconds)
            self.kill(worker)
        self.broker.expect(contender.queue, 0)
        figures = {"rpc": one["median"] * 1000, "rpc_p99": one["p99"] * 1000}
        return figures | {"rpc_16": many["count"] / many["seconds"]}

    def imports(self, contender: Contender) -> dict[str, float]:
        env = contender.environment(self._node.url, self.ours)
        run = functools.partial(subprocess.run, env=env, cwd=self.folder, check=True)
        texts = ("pass", contender.imports)
        times: dict[str, list[float]] = {text: [] for text in texts}
        for turn in range(3 if self.is_quick else 12):
            for text in texts:
                began = time.monotonic()
                # Its end is seen on its pipe: a `wait` with a timeout looks every 50 ms only.
                run([PYTHON, "-c", text], timeout=PATIENCE, capture_output=True)
                # The first one may compile.
                if turn:
                    times[text].append(time.monotonic() - began)
        bare, own = (min(values) * 1000 for values in times.values())
        return {"import": own - bare}

    def idle(self, contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
        """Return the figures of each, which are idle all at once."""
        seconds = 3.0 if self.is_quick else 20.0
        with contextlib.ExitStack() as stack:
            workers = {}
            for contender in contenders:
                marks = stack.enter_context(contextlib.closing(Marks(1, self.folder)))
                self.fill(contender, "noop", 1)
                workers[contender.name] = stack.enter_context(self.worker(contender, marks))
                marks.wait_for(1, workers[contender.name])
            time.sleep(2.0)
            before = {name: (each.idle_cpu(), time.monotonic()) for name, each in workers.items()}
            time.sleep(seconds)
            return {
                name: {"idle": (each.idle_cpu() - cpu) / (time.monotonic() - since) * 100}
                for (name, each), (cpu, since) in zip(workers.items(), before.values(), strict=True)
            }


def report(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)
    say(f"\n{text}")


class Drained(NamedTuple):
    """What a worker did with a queue full of tasks."""

    rate: float  #: Tasks per second.
    cpu: float  #: Seconds per 1000 tasks, of all of its processes.
    peak: float  #: MiB, of the process that took most: VmHWM.
    memory: float  #: MiB in the end, of all of its processes, what they share counted once: PSS.
    start: float = 0.0  #: Seconds from its start to the end of its first task.


def drained_by(worker: Worker, marks: Marks, first: int, last: int) -> Drained:
    """Measure from when `first` tasks have run until `last` have."""
    marks.wait_for(max(1, first), worker)
    began, cpu, done = time.monotonic(), worker.cpu(), marks.done()
    end = marks.wait_for(last, worker)
    count = max(1, marks.done() - done)
    return Drained(
        rate=count / (end - began),
        cpu=(worker.cpu() - cpu) * 1000 / count,
        peak=worker.peak_memory(),
        memory=worker.memory(),
    )


class Measurement(NamedTuple):
    #: The figures that it gives.
    rows: tuple[str, ...]
    contenders: tuple[str, ...]
    measure: Callable[[Bench, Contender], dict[str, float]]
    rounds: int = 1_000_000  #: At most.


def sending(row: str, contenders: tuple[str, ...], **options: Any) -> Measurement:
    cost = (f"{row}_cpu",) if row in ("send", "send_confirmed") else ()
    return Measurement((row, *cost), contenders, lambda b, c: b.send(c, row, *cost, **options))


MEASUREMENTS = (
    sending("send", SENDERS, confirm=False),
    sending("send_confirmed", CONFIRMING, confirm=True),
    sending("send_16", CONFIRMING, confirm=True, threads=16),
    sending("batch", ("kuyruk", "kuyruk10"), what="batch", size=BATCH),
    sending("send_large", CONFIRMING, confirm=True, large=True),
    Measurement(("drain", "drain_cpu", "start", "memory", "memory_all"), DRAINING, Bench.no_ops),
    Measurement(("drain_large",), DRAINING, Bench.large),
    Measurement(("nap_10",), NAPPING, lambda b, c: b.naps(c, "nap_10", SHORT_NAPS)),
    Measurement(("nap_50",), NAPPING, lambda b, c: b.naps(c, "nap_50", LONG_NAPS)),
    Measurement(("rpc", "rpc_p99", "rpc_16"), CALLERS, Bench.call),
    Measurement(("import",), SENDERS, Bench.imports),
    Measurement(("memory_long",), DRAINING, Bench.long, rounds=1),
)
IDLE = Measurement(("idle",), DRAINING, lambda b, c: b.idle([c])[c.name], rounds=3)
