"""The tasks of `make soak` and `make chaos`, one for each kind of thing that a task can do, and
whether what became of a message is what has to.

Settings come from the environment: KUYRUK_*, LAB_QUEUE and LAB_FOLDER.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lab import FOLDER, RETURNED, Ledger, Sent, is_first, note, noted

import kuyruk

QUEUE = os.environ.get("LAB_QUEUE", "soak")
DELAY = 0.5  #: Seconds that a task which comes back is away.
WORK = 0.02  #: Seconds that `work` takes: so that some run when a fault comes.
SLICE = 0.05  #: Seconds between two moments in which it can be interrupted.
DIES = "dies"  #: The outcome of a call that brings its process down.
VALUE_ERROR = "builtins.ValueError"
REJECT, DISCARD, TIMEOUT, CRASHED = (
    f"kuyruk.exceptions.{n}" for n in ("Reject", "Discard", "Timeout", "Crashed")
)

config = kuyruk.Config()
app = kuyruk.Kuyruk(config)
if FOLDER:
    config.from_env_vars()
running = threading.local()  #: Its `call` is that of the thread.

#: What `judge` returns.
VERDICTS = EXPECTED, AGAIN, MISPLACED, LOST = "as expected", "again", "misplaced", "lost"


class Kind(NamedTuple):
    """What tasks of a kind do, and where their messages have to end."""

    task: kuyruk.Task[[str, float], object]
    #: How often, compared to the other kinds; or, for a rare kind, whatever the rate.
    weight: float = 0
    per_minute: float = 0
    #: How its calls end, in their order. None: not at all, or with their process.
    calls: tuple[str | None, ...] = (RETURNED,)
    #: With which exception it is in ".failed" in the end. None: it isn't.
    failed: str | None = None
    replies: tuple[str, ...] = (RETURNED,)  #: What its caller may get.


KINDS: dict[str, Kind] = {}
Function = Callable[[str, float], None]


def kind(options: dict[str, Any] | None = None, **facts: Any) -> Callable[[Function], Kind]:
    """Make a function the task of a kind, with these options."""
    # It gets its message's number, and a random number from 0 to 1. The begin and the end of each
    # call are noted.

    def decorate(f: Function) -> Kind:
        @functools.wraps(f)
        def call(number: str, chance: float) -> object:
            with noted(number) as running.call:
                f(number, chance)
            return answer(number, chance)

        task = app.task(queue=QUEUE, **(options or {}))(call)
        if failed := facts.get("failed"):
            facts.setdefault("replies", (failed,))
        KINDS[f.__name__] = Kind(task, **facts)
        return KINDS[f.__name__]

    return decorate


def judge(sent: Sent, ledger: Ledger) -> str:
    """Return which of the VERDICTS is that of a message: whether it ended where its kind has to."""
    kind = KINDS[sent.kind]
    wanted = [] if kind.failed is None else [kind.failed]
    failed = ledger.failed.get(sent.number, [])
    outcomes = [call.outcome for call in ledger.calls.get(sent.number, ())]
    if set(failed) - set(wanted):
        return MISPLACED
    if kind.calls[-1] not in outcomes or (wanted and not failed):
        return LOST
    # RabbitMQ can deliver what crashes again before it is told of the last death: so how often that
    # was called isn't compared here.
    as_often = kind.failed == CRASHED or outcomes == list(kind.calls)
    return EXPECTED if as_often and failed == wanted else AGAIN


def answer(number: str, chance: float) -> object:
    """Return what every task returns that returns."""
    # It is mostly short, sometimes 100 kB.
    return {"number": number, "nothing": None, "text": "ğ" * int(chance**20 * 50_000)}


@kind()
def work(number: str, chance: float) -> None:
    # Only chaos.py sends this one and the next.
    time.sleep(WORK)


@kind()
def hold(number: str, part: float) -> None:
    """Take that part of a minute, the first time."""
    until = time.monotonic() + (60 * part if is_first(number) else 0.0)
    while time.monotonic() < until:
        time.sleep(SLICE)


@kind(weight=40)
def quick(number: str, chance: float) -> None:
    pass


@kind(weight=20)
def nap(number: str, chance: float) -> None:
    time.sleep(0.001 + chance * 0.199)


@kind(weight=12)
def compute(number: str, chance: float) -> None:
    until = time.thread_time() + chance * 0.005
    while time.thread_time() < until:
        pass


@kind(weight=4, calls=(VALUE_ERROR,), failed=VALUE_ERROR)
def fail(number: str, chance: float) -> None:
    raise ValueError(number)


@kind({"retry": 2}, weight=2, calls=(VALUE_ERROR,) * 3, failed=VALUE_ERROR)
def fail_thrice(number: str, chance: float) -> None:
    raise ValueError(number)


@kind({"retry": 2}, weight=3, calls=(VALUE_ERROR, RETURNED))
def recover(number: str, chance: float) -> None:
    if is_first(number):
        raise ValueError(number)


@kind(
    {"fail_delay": DELAY}, weight=3, calls=(VALUE_ERROR, RETURNED), replies=(VALUE_ERROR, RETURNED)
)
def come_back(number: str, chance: float) -> None:
    if is_first(number):
        raise ValueError(number)


@kind({"reject_delay": DELAY}, weight=3, calls=(REJECT, RETURNED))
def reject(number: str, chance: float) -> None:
    if is_first(number):
        raise kuyruk.Reject


@kind(weight=3, calls=(DISCARD,), replies=(DISCARD,))
def discard(number: str, chance: float) -> None:
    raise kuyruk.Discard


@kind({"max_run_time": 0.3}, per_minute=20, calls=(TIMEOUT,), failed=TIMEOUT)
def loop(number: str, chance: float) -> None:
    while True:
        pass


@kind({"max_run_time": 1}, per_minute=4, calls=(None,), failed=TIMEOUT)
def hang(number: str, chance: float) -> None:
    time.sleep(600)


@kind(per_minute=3, calls=(DIES,) * 3, failed=CRASHED)
def crash(number: str, chance: float) -> None:
    time.sleep(chance * 0.1)
    running.call.ended, running.call.outcome = time.monotonic(), DIES
    note(running.call)
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    ends = (functools.partial(os._exit, 1), kill, functools.partial(ctypes.string_at, 0))
    ends[int(chance * 1000) % 3]()
