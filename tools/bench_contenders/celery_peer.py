# mypy: ignore-errors
# (It isn't installed where the types are checked.)
"""Celery, acknowledging late, as the others do; with results only for `echo`, through RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable

import celery
from bench_contenders import tasks

app = celery.Celery("bench", broker=tasks.URL, backend="rpc://")
app.conf.update(
    task_default_queue=tasks.QUEUE,
    task_acks_late=True,
    # 1 is what its documentation advises for tasks that take long.
    worker_prefetch_multiplier=1
    if tasks.MODE == "fair"
    else max(1, tasks.PREFETCH // tasks.THREADS),
    broker_pool_limit=16,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
)
TASKS = {
    f.__name__: app.task(f, name=f.__name__, ignore_result=f.__name__ != "echo")
    for f in tasks.FUNCTIONS
}


def sender(confirm: bool) -> Callable[..., object]:
    app.conf.broker_transport_options = {"confirm_publish": confirm}
    return lambda name, *args: TASKS[name].delay(*args)


def caller() -> Callable[[int], int]:
    echo = TASKS["echo"]
    return lambda number: echo.delay(number).get(timeout=30)


close = app.close
