"""How the cost of one task grows: with what waits, its size, threads, prefetch, and deadlines.

Of this project's worker only. Each series changes one number; the cost is CPU time of the worker,
which the rest of the machine disturbs less than the clock. In a queue of a million, only the first
thousands are run: what is asked is what they cost while the others wait.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench_broker import Options
from bench_measure import CONTENDERS, Bench, Drained, drained_by, report
from lab import say

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


def powers(low: int, high: int, base: int = 10) -> list[int]:
    return [base**n for n in range(math.ceil(math.log(low, base)), round(math.log(high, base)) + 1)]


def series(is_quick: bool) -> dict[str, list[Point]]:
    count = 1_000 if is_quick else 10_000
    lengths = powers(10, 10_000 if is_quick else 1_000_000)
    sizes = powers(100, 1_000_000 if is_quick else 10_000_000)
    in_flight = powers(1, 100 if is_quick else 10_000)
    return {
        "messages that wait": [Point(n, count, waiting=n) for n in lengths],
        "bytes of an argument": [
            Point(n, max(20, min(count, 200_000_000 // n)), size=n) for n in sizes
        ],
        "threads": [Point(n, count, threads=n) for n in powers(1, 128, 2)],
        "prefetch": [Point(n, count, prefetch=n) for n in powers(1, 1_000)],
        "running tasks with deadlines": [
            Point(n, count, threads=n + 8, deadlines=n) for n in in_flight
        ],
    }


def run(bench: Bench, point: Point) -> Drained:
    contender = CONTENDERS["kuyruk"]
    first = point.deadlines
    total = first + point.tasks + point.waiting
    bench.sample(contender)
    with contextlib.ExitStack() as stack:
        stack.callback(bench.broker.purge, contender.queue)
        if first:
            bench.broker.fill(contender.queue, "nap", range(first), Options(PARK))
        task = "pad" if point.size else "noop"
        bench.broker.fill(contender.queue, task, range(first, total), Options(size=point.size))
        arguments = [] if point.prefetch is None else ["--prefetch", str(point.prefetch)]
        options: dict[str, Any] = {"threads": point.threads, "arguments": arguments}
        mode = "deadlines" if first else ""
        with bench.working(contender, total, left=None, BENCH_MODE=mode, **options) as (
            marks,
            [worker],
        ):
            return drained_by(worker, marks, point.tasks // 10, point.tasks)


def growth(values: Sequence[tuple[int, float]]) -> Iterator[str]:
    """By which power the cost has grown, since the point where it was least of those before."""
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


def measure(bench: Bench, rounds: int, folder: str) -> None:
    """Write growth.md."""
    results: dict[str, list[tuple[Point, list[Drained]]]] = {}
    for name, points in series(bench.is_quick).items():
        results[name] = [(point, []) for point in points]
        for number in range(rounds):
            for point, found in results[name]:
                with bench.attempt(f"{name}, {point.at:,}"):
                    drained = run(bench, point)
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
