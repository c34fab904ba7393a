"""This project. As a module of tasks for `python -m kuyruk_worker`; run itself, it is an embedded
worker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

from bench_contenders import tasks

import kuyruk

config = kuyruk.Config()
config.RABBIT_URL = tasks.URL
config.WORKER_LOGGING_LEVEL = "WARNING"
app = kuyruk.Kuyruk(config)

#: With a limit: what the growth of deadlines is measured with.
_LIMIT = 600.0 if tasks.MODE == "deadlines" else None
TASKS: dict[str, kuyruk.Task[..., Any]] = {}
for _function in tasks.FUNCTIONS:
    _task = app.task(queue=tasks.QUEUE, max_run_time=_LIMIT)(_function)
    TASKS[_function.__name__] = _task


def sender(confirm: bool) -> Callable[..., None]:
    config.RABBIT_CONFIRM = confirm
    return lambda name, *args: TASKS[name](*args)


def send_batch(name: str, numbers: Iterable[int]) -> None:
    app.send_tasks_to_queue([TASKS[name].subtask((number,)) for number in numbers])


def caller() -> Callable[[int], int]:
    echo = TASKS["echo"]
    return lambda number: int(echo.send_to_queue((number,), wait_result=30))


close = app.close


def main() -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: over.set())
    with app.worker(threads=tasks.THREADS):
        over.wait()


if __name__ == "__main__":
    main()
