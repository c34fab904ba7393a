# mypy: ignore-errors
# (It isn't installed where the types are checked, and has the name of ours.)
"""Kuyruk 10.2.2, as it comes. Its messages aren't persistent, and its sends aren't confirmed."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterable

from bench_contenders import tasks

import kuyruk

_url = urllib.parse.urlsplit(tasks.URL)
config = kuyruk.Config()
config.RABBIT_HOST = _url.hostname
config.RABBIT_PORT = _url.port
config.WORKER_LOGGING_LEVEL = "warning"
app = kuyruk.Kuyruk(config)
TASKS = {function.__name__: app.task(queue=tasks.QUEUE)(function) for function in tasks.FUNCTIONS}
globals().update(TASKS)  # its worker finds a task by its module and name
# It takes the module from the function, which is the one of our tasks: as an application's own
# would be.
for _task in TASKS.values():
    _task.f.__module__ = __name__


def sender(confirm: bool) -> Callable[..., None]:
    return lambda name, *args: TASKS[name](*args)


def send_batch(name: str, numbers: Iterable[int]) -> None:
    app.send_tasks_to_queue([TASKS[name].subtask((number,)) for number in numbers])


def caller() -> Callable[[int], int]:
    echo = TASKS["echo"]
    return lambda number: echo.send_to_queue((number,), wait_result=30)


def close() -> None:
    app._connection.close()
