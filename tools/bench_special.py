"""What tools/bench.py measures instead of the table: how costs grow, and fairness."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench_measure import CONTENDERS, Bench, Contender, Drained, drained_by, prefetching, report
from lab import say, stolen_clock

# --- Growth ----------------------------------------------------------------------
#
# How the cost of one task of this project's worker grows: with what waits, its size, threads,
# prefetch, and deadlines. Each series changes one number.

PARK = 600_000  #: Milliseconds of a task that does nothing but hold a thread and a deadline.
TOLERANCE = 1.5  #: Less than that many times the linear growth may be noise.


class Point(NamedTuple):
    """Of a series."""

    at: int
    tasks: int  #: That are measured.
    waiting: int = 0  #: More that are in the queue.
    size: int = 0  #: Bytes of their argument; 0: no-op tasks.
    threads: int = 8
    prefetch: int | None = None
    deadlines: int = 0  #: Tasks with deadlines that run meanwhile.


def growth_series(is_quick: bool) -> dict[str, list[Point]]:
    count = 1_000 if is_quick else 10_000
    tens = [10**n for n in range(8)]
    lengths = tens[1 : 5 if is_quick else 7]
    sizes = tens[2 : 7 if is_quick else 8]
    in_flight = tens[:3] if is_quick else [*tens[:4], 9_000]  # a worker has up to 10,000 threads
    return {
        "messages that wait": [Point(n, count, waiting=n) for n in lengths],
        "bytes of an argument": [
            Point(n, max(20, min(count, 200_000_000 // n)), size=n) for n in sizes
        ],
        "threads": [Point(n, count, threads=n) for n in (1, 2, 4, 8, 16, 32, 64, 128)],
        "prefetch": [Point(n, count, prefetch=n) for n in tens[:4]],
        "running tasks with deadlines": [
            Point(n, count, threads=n + 8, deadlines=n) for n in in_flight
        ],
    }


def measure_point(bench: Bench, point: Point) -> Drained:
    contender = CONTENDERS["kuyruk"]
    first = point.deadlines
    total = first + point.tasks + point.waiting
    bench.prepare(contender)
    with contextlib.ExitStack() as stack:
        stack.callback(bench.broker.purge, contender.queue)
        if first:
            bench.fill(contender, "nap", first, milliseconds=PARK)
        task, size = ("pad", {"size": point.size}) if point.size else ("noop", {})
        bench.fill(contender, task, total - first, first, **size)
        arguments = [] if point.prefetch is None else ["--prefetch", str(point.prefetch)]
        options: dict[str, Any] = {"threads": point.threads, "arguments": arguments}
        mode = "deadlines" if first else ""
        with bench.working(contender, total, left=None, BENCH_MODE=mode, **options) as (
            marks,
            [worker],
        ):
            return drained_by(worker, marks, point.tasks // 10, point.tasks)


def growth(values: Sequence[tuple[int, float]]) -> Iterator[str]:
    """Yield by which power the cost has grown, since where it was least of the points before."""
    for place, (at, cost) in enumerate(values):
        best = min(values[:place], key=lambda value: value[1], default=None)
        if best is None or not (cost and best[1]):
            yield ""
            continue
        longer, dearer = at / best[0], cost / best[1]
        verdict = " **worse than linear**" if dearer > longer * TOLERANCE else ""
        yield f"{math.log(dearer) / math.log(longer):+.2f}{verdict}"


def lines(name: str, points: Sequence[tuple[Point, list[Drained]]]) -> Iterator[str]:
    measured = [(point, found) for point, found in points if found]
    costs = [statistics.median(each.cpu for each in found) for _, found in measured]
    powers = growth([(point.at, cost) for (point, _), cost in zip(measured, costs, strict=True)])
    yield f"| **{name}** | | | | |"
    for (point, found), cost, power in zip(measured, costs, powers, strict=True):
        rate = statistics.median(each.rate for each in found)
        memory = max(each.peak for each in found)
        yield f"| {point.at:,} | {cost:.3g} | {rate:,.0f} | {memory:.1f} | {power} |"


def measure_growth(bench: Bench, rounds: int, folder: str) -> None:
    """Write growth.md."""
    # By CPU time of the worker, which the rest of the machine disturbs less than the clock.
    results: dict[str, list[tuple[Point, list[Drained]]]] = {}
    for name, points in growth_series(bench.is_quick).items():
        results[name] = [(point, []) for point in points]
        for number in range(rounds):
            for point, found in results[name]:
                with bench.attempt(f"{name}, {point.at:,}"):
                    drained = measure_point(bench, point)
                    found.append(drained)
                    text = f"{drained.cpu:.3g} ms CPU a task, {drained.rate:,.0f}/s"
                    say(f"  {number + 1} {name} {point.at:,}: {text}")
    rows = [line for name, points in results.items() for line in lines(name, points)]
    report(folder, "growth.md", ABOUT + "\n".join([*rows, ""]))


ABOUT = """\
# How the cost of a task grows

Power: how its CPU time has grown since where it was least; 0: not at all; 1: linearly.

| | CPU ms a task | tasks per second | peak MiB | power |
|--:|--:|--:|--:|--:|
"""


# --- Fairness --------------------------------------------------------------------
#
# How long messages wait while a thread is free, of two workers with 8 threads each. A message that
# waits while all threads are busy waits for a good reason.

#: Of each worker, and how many of these there are.
THREADS, WORKERS = 8, 2
#: Milliseconds of the tasks; the part of the threads' time that the long ones take; and how many
#: short ones come in a second.
LONG, SHORT, BUSY, SHORT_RATE = 1000, 1, 0.6, 100.0
#: No more messages than threads, in each peer's way. Ours does that by itself.
SETTINGS = {"BENCH_MODE": "fair"} | prefetching(THREADS)
CHOSEN = ("kuyruk", "dramatiq", "celery", "amqpstorm-pool")


class Message(NamedTuple):
    due: float  #: Seconds after the beginning.
    milliseconds: int


def streams(seconds: float) -> dict[str, list[Message]]:
    """Return tasks of 1 s, all sent at once; and tasks of 1 s and of 1 ms at random times, which
    keep the threads busy for a part of the time."""
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


def measure_waits(
    bench: Bench, contender: Contender, messages: Sequence[Message]
) -> tuple[list[float], float]:
    """Return how long each waited while a thread was free, in milliseconds, sorted; and the seconds
    from the first message to the end of the last task."""
    bench.prepare(contender)
    options: dict[str, Any] = SETTINGS | ({"BENCH_MODE": contender.mode} if contender.mode else {})
    count = len(messages)
    with bench.working(contender, count, WORKERS, threads=THREADS, **options) as (marks, workers):
        bench.broker.expect(contender.queue, None, consumers=WORKERS)
        time.sleep(1.0)  # the rest of their beginning
        sent = bench.load(contender, "stream", messages=messages)["sent"]
        marks.wait_for(count, workers[0])
        for worker in workers:
            worker.check()
        times = marks.times()
    free = FreeTime(times)
    waits = [free.until(t[0]) - free.until(at) for at, t in zip(sent, times, strict=True)]
    return sorted(1000 * wait for wait in waits), max(end for _, end in times) - min(sent)


def measure_fairness(bench: Bench, contenders: Sequence[str], folder: str) -> None:
    """Write fairness.md."""
    rows = ["# How long a message waited while a thread was free", ""]
    rows += [f"Of {WORKERS} workers with {THREADS} threads each.", ""]
    rows += ["| | median ms | 99 % ms | longest ms | all done, s | stolen |", f"|---|{'--:|' * 5}"]
    for stream, messages in streams(5.0 if bench.is_quick else 30.0).items():
        rows.append(f"| **{stream}** | | | | | |")
        for name in filter(contenders.__contains__, CHOSEN):
            stolen = stolen_clock()
            with bench.attempt(f"{stream}, {name}"):
                found, total = measure_waits(bench, CONTENDERS[name], messages)
                median, late = found[len(found) // 2], found[int(len(found) * 0.99)]
                figures = f"{median:.1f} | {late:.1f} | **{found[-1]:.1f}** | {total:.2f}"
                rows.append(f"| {name} | {figures} | {stolen():.0%} |")
                say(f"  {stream}: {name}: longest {found[-1]:.1f} ms")
    report(folder, "fairness.md", "\n".join([*rows, ""]))
