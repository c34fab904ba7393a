"""How long messages wait while a thread is free : two workers with 8 threads each.

Two streams: tasks of 1 s, all sent at once; and tasks of 1 s and of 1 ms at random times, which
keep the threads busy for 60 % of the time. Each task notes when it has begun and ended. From that
follows when at least one thread of the two workers was free, and for each message, how much of its
waiting was at such times: a message that waits while all threads are busy waits for a good reason.

Each peer is configured for tasks that take long: it holds no more messages than it has threads.
"""

from __future__ import annotations

import bisect
import itertools
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench_broker import PATIENCE, Options
from bench_measure import (
    CONTENDERS,
    Bench,
    Contender,
    Worker,
    prefetching,
    report,
    stolen_since,
    stolen_time,
)
from lab import Failure, say

THREADS = 8  #: Of each worker.
WORKERS = 2
LONG, SHORT = 1000, 1  #: Milliseconds.
BUSY = 0.6  #: Part of the threads' time.
SHORT_RATE = 100.0  #: Per second.
#: No more messages than threads, in each peer's way. Ours does that by itself.
SETTINGS = {"BENCH_MODE": "fair"} | prefetching(THREADS)
CHOSEN = ("kuyruk", "dramatiq", "celery", "amqpstorm-pool")


class Message(NamedTuple):
    due: float  #: Seconds after the beginning.
    milliseconds: int


def streams(seconds: float) -> dict[str, list[Message]]:
    burst = [Message(0.0, LONG) for _ in range(2 * WORKERS * THREADS)]
    dice = random.Random(5)
    mixed: list[Message] = []
    long_rate = BUSY * WORKERS * THREADS / (LONG / 1000)
    for rate, milliseconds in ((long_rate, LONG), (SHORT_RATE, SHORT)):
        at = dice.expovariate(rate)
        while at < seconds:
            mixed.append(Message(at, milliseconds))
            at += dice.expovariate(rate)
    return {f"{len(burst)} tasks of 1 s at once": burst, "1 ms and 1 s, mixed": sorted(mixed)}


class Waits(NamedTuple):
    """In milliseconds, while a thread was free."""

    median: float
    p99: float
    longest: float
    total: float  #: Seconds from the first message to the end of the last task.


def waits(sent: Sequence[float], times: Sequence[tuple[float, float]]) -> Waits:
    free = FreeTime(times)
    found = sorted(
        (free.until(began) - free.until(at)) * 1000
        for at, (began, _) in zip(sent, times, strict=True)
    )
    total = max(end for _, end in times) - min(sent)
    return Waits(found[len(found) // 2], found[int(len(found) * 0.99)], found[-1], total)


class FreeTime:
    """How long, since long ago, a thread was free."""

    def __init__(self, times: Iterable[tuple[float, float]]) -> None:
        changes = sorted(itertools.chain(*(((began, 1), (end, -1)) for began, end in times)))
        self._moments, self._sums, self._free = [0.0], [0.0], [True]
        busy = 0
        for at, change in changes:
            self._sums.append(self.until(at))
            self._moments.append(at)
            busy += change
            self._free.append(busy < WORKERS * THREADS)

    def until(self, at: float) -> float:
        place = bisect.bisect_right(self._moments, at) - 1
        return self._sums[place] + (at - self._moments[place] if self._free[place] else 0.0)


def run(bench: Bench, contender: Contender, messages: Sequence[Message]) -> Waits:
    bench.sample(contender)
    options: dict[str, Any] = SETTINGS | ({"BENCH_MODE": contender.mode} if contender.mode else {})
    count = len(messages)
    with bench.working(contender, count, WORKERS, threads=THREADS, **options) as (marks, workers):
        wait_for_consumers(bench, contender, workers)
        sent = send(bench, contender, messages)
        marks.wait_for(count, workers[0])
        for worker in workers:
            worker.check()
        times = marks.times()
    return waits(sent, times)


def wait_for_consumers(bench: Bench, contender: Contender, workers: Sequence[Worker]) -> None:
    deadline = time.monotonic() + PATIENCE
    while bench.broker.consumers(contender.queue) < len(workers):
        if time.monotonic() > deadline:
            raise Failure("its workers don't consume")
        for worker in workers:
            worker.check()
        time.sleep(0.05)
    time.sleep(1.0)  # the rest of their beginning


def send(bench: Bench, contender: Contender, messages: Sequence[Message]) -> list[float]:
    """At their times. Returns when each was really sent."""
    copies = [
        next(bench.broker.copies(contender.queue, "timed", [number], Options(message.milliseconds)))
        for number, message in enumerate(messages)
    ]
    sent, began = [], time.monotonic()
    for message, copy in zip(messages, copies, strict=True):
        time.sleep(max(0.0, began + message.due - time.monotonic()))
        sent.append(time.monotonic())
        bench.broker.write(iter([copy]))
    return sent


def measure(bench: Bench, contenders: Sequence[str], folder: str) -> None:
    """Write fairness.md."""
    rows = ["# How long a message waited while a thread was free", ""]
    rows += [f"Of {WORKERS} workers with {THREADS} threads each.", ""]
    rows += ["| | median ms | 99 % ms | longest ms | all done, s | stolen |", f"|---|{'--:|' * 5}"]
    for stream, messages in streams(5.0 if bench.is_quick else 30.0).items():
        rows.append(f"| **{stream}** | | | | | |")
        for name in filter(contenders.__contains__, CHOSEN):
            before = stolen_time()
            with bench.attempt(f"{stream}, {name}"):
                found = run(bench, CONTENDERS[name], messages)
                figures = f"{found.median:.1f} | {found.p99:.1f} | **{found.longest:.1f}** | "
                stolen = stolen_since(before)
                rows.append(f"| {name} | {figures}{found.total:.2f} | {stolen:.0%} |")
                say(f"  {stream}: {name}: longest {found.longest:.1f} ms")
    report(folder, "fairness.md", "\n".join([*rows, ""]))
