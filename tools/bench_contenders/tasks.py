"""What all contenders run: the same functions. Each leaves marks in memory that it shares with
tools/bench.py.

BENCH_MARKS names a file with one byte for each message, which counts how often that has run: a
message that is lost or runs twice shows, and a mark costs next to nothing. BENCH_TIMES names one
with two doubles for each, of `timed`. Processes that only send have neither.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable
from typing import Any

#: The first message's number. All have seven digits, so that the bodies are equally long.
FIRST = 1_000_000
URL = os.environ.get("BENCH_URL", "amqp://guest:guest@localhost:5672/")
QUEUE = os.environ.get("BENCH_QUEUE", "bench")
MODE = os.environ.get("BENCH_MODE", "")  #: Which of the ways of working that a contender has.
THREADS = int(os.environ.get("BENCH_THREADS", "8"))
#: Of the bare loops and Celery. The same for all, and enough for any: this project's worker sizes
#: its own by what it measures, so a small number here would flatter it.
PREFETCH = int(os.environ.get("BENCH_PREFETCH", "128"))


def _shared(variable: str) -> memoryview:
    path = os.environ.get(variable)
    if not path:
        return memoryview(bytearray(16))
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0))


_marks = _shared("BENCH_MARKS")
_times = _shared("BENCH_TIMES").cast("d")


def noop(number: int) -> None:
    _marks[number - FIRST] += 1


def pad(number: int, text: str) -> None:
    _marks[number - FIRST] += 1


def nap(number: int, milliseconds: int) -> None:
    time.sleep(milliseconds / 1000)
    _marks[number - FIRST] += 1


def timed(number: int, milliseconds: int) -> None:
    _times[2 * (number - FIRST)] = time.monotonic()
    time.sleep(milliseconds / 1000)
    _times[2 * (number - FIRST) + 1] = time.monotonic()
    _marks[number - FIRST] += 1


def echo(number: int) -> int:
    return number


FUNCTIONS = (noop, pad, nap, timed, echo)

# --- For the loops on bare client libraries: messages, and connections to close --------------

_BY_NAME: dict[str, Callable[..., Any]] = {function.__name__: function for function in FUNCTIONS}
REPLIES = "amq.rabbitmq.reply-to"
connections: list[Any] = []


def encode(name: str, *args: object) -> bytes:
    return json.dumps((name, args)).encode()


def perform(body: Any) -> Any:
    """Run the task of a message, and return its result."""
    name, args = json.loads(body)
    return _BY_NAME[name](*args)


def close() -> None:
    for connection in connections:
        connection.close()
