"""The tasks of `make chaos`; lab.py notes the begin and the end of each call.

Settings come from the environment: KUYRUK_*, CHAOS_QUEUE and LAB_FOLDER.
"""

from __future__ import annotations

import os
import time

from lab import FOLDER, is_first, name_of, noted

import kuyruk

QUEUE = os.environ.get("CHAOS_QUEUE", "chaos")
WORK = 0.02  #: Seconds that a task takes: so that some run when a fault comes.
SLICE = 0.05  #: Seconds between two moments in which a task that is held can be interrupted.
DELAY = 0.5  #: Seconds that a task which comes back is away.

config = kuyruk.Config()
app = kuyruk.Kuyruk(config)
if FOLDER:
    config.from_env_vars()

#: What a task raises on purpose.
PLANNED = (name_of(ValueError), name_of(kuyruk.Reject))


@app.task(queue=QUEUE)
def note(number: str, hold: float = 0.0) -> str:
    """Take a moment, or the first time `hold` seconds."""
    with noted(number):
        until = time.monotonic() + (hold if hold and is_first(number) else WORK)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))
    return number


@app.task(queue=QUEUE, fail_delay=DELAY)
def come_back(number: str) -> None:
    with noted(number):
        if is_first(number):
            raise ValueError("the first run fails")


@app.task(queue=QUEUE, reject_delay=DELAY)
def reject(number: str) -> None:
    with noted(number):
        if is_first(number):
            raise kuyruk.Reject


@app.task(queue=QUEUE)
def fail(number: str) -> None:
    with noted(number):
        raise ValueError("it fails for good")
