"""The tasks of `make soak`, one for each kind of thing that a task can do, and what has to become
of it.

Each message has a number. Each call notes its begin and its end in a file of its process, so that
the notes survive whatever happens to that. Settings come from the environment: KUYRUK_*, and
SOAK_FOLDER, which only a worker has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import kuyruk

QUEUE = "soak"
RETURNED = "returned"
VALUE_ERROR = "builtins.ValueError"
REJECT, DISCARD, TIMEOUT, CRASHED = (
    f"kuyruk.exceptions.{n}" for n in ("Reject", "Discard", "Timeout", "Crashed")
)

config = kuyruk.Config()
app = kuyruk.Kuyruk(config)
folder = os.environ.get("SOAK_FOLDER", "")
_notes = -1  # a file
if folder:
    config.from_env_vars()
    _notes = os.open(f"{folder}/notes/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


class Kind(NamedTuple):
    """What tasks of a kind do, and where their messages have to end."""

    task: kuyruk.Task[[int, float], object]
    weight: float  #: How often, compared to the other kinds;
    per_minute: float  #: or, for a rare kind, whatever the rate.
    #: How its calls end, in their order. None: not at all, or with their process.
    calls: tuple[str | None, ...]
    failed: str | None  #: With which exception it is in "soak.failed" in the end. None: it isn't.
    replies: tuple[str, ...]  #: What its caller may get.


KINDS: dict[str, Kind] = {}
Function = Callable[[int, float], None]


def kind(
    weight: float = 0,
    per_minute: float = 0,
    calls: tuple[str | None, ...] = (RETURNED,),
    failed: str | None = None,
    replies: tuple[str, ...] = (),
    **options: Any,
) -> Callable[[Function], Kind]:
    """Makes a function the task of a kind. It gets its message's number, and a random number from 0
    to 1."""

    def decorate(f: Function) -> Kind:
        task = app.task(queue=QUEUE, **options)(_noted(f))
        KINDS[f.__name__] = Kind(
            task, weight, per_minute, calls, failed, replies or (failed or RETURNED,)
        )
        return KINDS[f.__name__]

    return decorate


def _noted(f: Function) -> Callable[[int, float], object]:
    @functools.wraps(f)
    def call(number: int, chance: float) -> object:
        _note(number, "begins")
        try:
            f(number, chance)
        except BaseException as error:
            _note(number, f"{type(error).__module__}.{type(error).__qualname__}")
            raise
        _note(number, RETURNED)
        return answer(number, chance)

    return call


def _note(number: int, event: str) -> None:
    # one write: lines of threads don't mix
    os.write(_notes, f"{time.monotonic():.4f} {number} {event}\n".encode())


def answer(number: int, chance: float) -> object:
    """What every task returns that returns: mostly short, sometimes 100 kB."""
    return {"number": number, "nothing": None, "text": "ğ" * int(chance**20 * 50_000)}


def _is_first_call(number: int) -> bool:
    """Of this message, in whatever process."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(f"{folder}/marks/{number}", os.O_CREAT | os.O_EXCL))
        return True
    return False


@kind(weight=40)
def quick(number: int, chance: float) -> None:
    pass


@kind(weight=20)
def nap(number: int, chance: float) -> None:
    time.sleep(0.001 + chance * 0.199)


@kind(weight=12)
def compute(number: int, chance: float) -> None:
    until = time.thread_time() + chance * 0.005
    while time.thread_time() < until:
        pass


@kind(weight=4, calls=(VALUE_ERROR,), failed=VALUE_ERROR)
def fail(number: int, chance: float) -> None:
    raise ValueError(number)


@kind(weight=2, retry=2, calls=(VALUE_ERROR,) * 3, failed=VALUE_ERROR)
def fail_thrice(number: int, chance: float) -> None:
    raise ValueError(number)


@kind(weight=3, retry=2, calls=(VALUE_ERROR, RETURNED))
def recover(number: int, chance: float) -> None:
    if _is_first_call(number):
        raise ValueError(number)


@kind(weight=3, fail_delay=1, calls=(VALUE_ERROR, RETURNED), replies=(VALUE_ERROR, RETURNED))
def come_back(number: int, chance: float) -> None:
    if _is_first_call(number):
        raise ValueError(number)


@kind(weight=3, reject_delay=0.5, calls=(REJECT, RETURNED))
def reject(number: int, chance: float) -> None:
    if _is_first_call(number):
        raise kuyruk.Reject


@kind(weight=3, calls=(DISCARD,), replies=(DISCARD,))
def discard(number: int, chance: float) -> None:
    raise kuyruk.Discard


@kind(per_minute=20, max_run_time=0.3, calls=(TIMEOUT,), failed=TIMEOUT)
def loop(number: int, chance: float) -> None:
    while True:
        pass


@kind(per_minute=4, max_run_time=1, calls=(None,), failed=TIMEOUT)
def hang(number: int, chance: float) -> None:
    time.sleep(600)


@kind(per_minute=3, calls=(None,) * 3, failed=CRASHED)
def crash(number: int, chance: float) -> None:
    time.sleep(chance * 0.1)
    _note(number, "dies")
    ends = (
        lambda: os._exit(1),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        lambda: ctypes.string_at(0),
    )
    ends[int(chance * 1000) % 3]()
