"""The task of `make chaos`, and the books that it and the senders write: who has sent, and who has
run what.

A book is a file that is only appended to, a line in one write: so it tells the truth whatever
becomes of its writers. Settings come from the environment: KUYRUK_*, CHAOS_QUEUE and CHAOS_FOLDER.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple, Self

import kuyruk

QUEUE = os.environ.get("CHAOS_QUEUE", "chaos")
FOLDER = os.environ.get("CHAOS_FOLDER", "")
WORK = 0.02  #: Seconds that a task takes: so that some run when a fault comes.
SLICE = 0.05  #: Seconds between two moments in which a task that is held can be interrupted.

config = kuyruk.Config()
app = kuyruk.Kuyruk(config)
if FOLDER:
    config.from_env_vars()


class Sent(NamedTuple):
    """A message, after its send has returned or raised."""

    number: str
    way: str
    began: float  #: time.monotonic(), which all processes of this machine share.
    ended: float
    outcome: str  #: "confirmed", or why not.

    @classmethod
    def parse(cls, line: str) -> Self:
        number, way, began, ended, outcome = line.split(maxsplit=4)
        return cls(number, way, float(began), float(ended), outcome)


class Executed(NamedTuple):
    """A call of the task that has ended."""

    number: str
    pid: int
    began: float
    ended: float
    outcome: str  #: "ran", or "cut" by an interruption.

    @classmethod
    def parse(cls, line: str) -> Self:
        number, pid, began, ended, outcome = line.split()
        return cls(number, int(pid), float(began), float(ended), outcome)


def write(record: Sent | Executed) -> None:
    """Opens the file each time: forks and threads share nothing."""
    fields = (f"{field:.4f}" if isinstance(field, float) else str(field) for field in record)
    path = os.path.join(FOLDER, type(record).__name__.lower())
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (" ".join(fields).replace("\n", " ") + "\n").encode())
    finally:
        os.close(file)


@app.task(queue=QUEUE)
def note(number: str, hold: float = 0.0) -> str:
    """Takes a moment, or the first time `hold` seconds, and notes that it has run."""
    began, outcome = time.monotonic(), "cut"
    until = began + (hold if hold and _is_first(number) else WORK)
    try:
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))
        outcome = "ran"
    finally:
        write(Executed(number, os.getpid(), began, time.monotonic(), outcome))
    return number


def _is_first(number: str) -> bool:
    """Call of it, in whatever process."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(os.path.join(FOLDER, f"held-{number}"), os.O_CREAT | os.O_EXCL))
        return True
    return False
