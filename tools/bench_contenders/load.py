"""The sending side of one measurement: `python -m bench_contenders.load MODULE WHAT`, with options
as JSON on standard input.

Imports a contender's module, uses its `sender`, `batch_sender` or `caller` (each is asked for one
in each thread that sends), and prints what came of it as a line of JSON. The clock starts when all
threads are warm.
"""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bench_contenders.tasks import FIRST

WARM_UP = 10  #: Calls of each thread before the clock starts: connections, declarations, caches.
PATIENCE = 60.0  #: Seconds that the threads wait for each other.
TEXT = "x" * 100_000


class Load:
    """Threads that call the same thing for some seconds."""

    def __init__(self, threads: int, seconds: float) -> None:
        self.latencies: list[list[float]] = [[] for _ in range(threads)]
        self._seconds = seconds
        self._numbers = itertools.count(FIRST)
        self._go = threading.Barrier(threads, self._begin)
        self._over = threading.Barrier(threads, self._end)
        self._threads = threads
        self._errors: list[BaseException] = []

    def _begin(self) -> None:
        self._cpu, self._began = time.process_time(), time.monotonic()

    def _end(self) -> None:
        self.cpu, self.seconds = time.process_time() - self._cpu, time.monotonic() - self._began

    def run(self, make: Callable[[], Callable[[int], object]]) -> None:
        if self._threads == 1:
            self._work(make, self.latencies[0])
        else:
            threads = [
                threading.Thread(target=self._work, args=(make, own), daemon=True)
                for own in self.latencies
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, make: Callable[[], Callable[[int], object]], latencies: list[float]) -> None:
        try:
            call = make()
            for _ in range(WARM_UP):
                call(next(self._numbers))
            self._go.wait(PATIENCE)
            at, end = time.monotonic(), self._began + self._seconds
            while at < end:
                call(next(self._numbers))
                latencies.append(-at + (at := time.monotonic()))
            self._over.wait(PATIENCE)
        except BaseException as error:
            self._errors.append(error)
            self._go.abort()
            self._over.abort()

    def facts(self) -> dict[str, float]:
        count = sum(map(len, self.latencies))
        return {
            "count": count,
            "calls": count + WARM_UP * self._threads,
            "seconds": self.seconds,
            "cpu": self.cpu,
        }


def send(
    contender: Any, seconds: float, confirm: bool, threads: int = 1, large: bool = False
) -> dict[str, float]:
    def make() -> Callable[[int], object]:
        send = contender.sender(confirm)
        return (
            (lambda number: send("pad", number, TEXT))
            if large
            else (lambda number: send("noop", number))
        )

    load = Load(threads, seconds)
    load.run(make)
    return load.facts()


def batch(contender: Any, seconds: float, size: int) -> dict[str, float]:
    load = Load(1, seconds)
    load.run(lambda: lambda number: contender.send_batch("noop", range(FIRST, FIRST + size)))
    return {
        key: value * size if key in ("count", "calls") else value
        for key, value in load.facts().items()
    }


def call(contender: Any, threads: int, seconds: float) -> dict[str, float]:
    def make() -> Callable[[int], object]:
        call = contender.caller()

        def checked(number: int) -> None:
            if (answer := call(number)) != number:
                raise ValueError(f"{number} was answered with {answer!r}")

        return checked

    load = Load(threads, seconds)
    load.run(make)
    latencies = sorted(itertools.chain(*load.latencies))
    tail = latencies[int(len(latencies) * 0.99)]
    return load.facts() | {"median": statistics.median(latencies), "p99": tail}


def fill(contender: Any, task: str, first: int, count: int, **options: int) -> dict[str, float]:
    """Send so many messages, each with a number; `size` or `milliseconds` of it in `options`."""
    send = contender.sender(False)
    own = ["x" * options["size"]] if "size" in options else [*options.values()]
    for number in range(first, first + count):
        send(task, FIRST + number, *own)
    return {}


def stream(contender: Any, messages: list[tuple[float, int]]) -> dict[str, list[float]]:
    """Send `timed` tasks at their times, in seconds from now. Return when each was really sent."""
    send, sent, began = contender.sender(False), [], time.monotonic()
    for number, (due, milliseconds) in enumerate(messages):
        time.sleep(max(0.0, began + due - time.monotonic()))
        sent.append(time.monotonic())
        send("timed", FIRST + number, milliseconds)
    return {"sent": sent}


def main() -> None:
    module, what = sys.argv[1:]
    contender = importlib.import_module(f"bench_contenders.{module}")
    functions: dict[str, Callable[..., Any]]
    functions = {"send": send, "batch": batch, "call": call, "fill": fill, "stream": stream}
    facts = functions[what](contender, **json.load(sys.stdin))
    contender.close()  # what is still on its way goes out
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
