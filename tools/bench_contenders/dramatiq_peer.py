# mypy: ignore-errors
# (It isn't installed where the types are checked.)
"""dramatiq, with its default middleware. Results would need Redis: it has no caller."""

from __future__ import annotations

from collections.abc import Callable

import dramatiq
from bench_contenders import tasks
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=tasks.URL)
dramatiq.set_broker(broker)
ACTORS = {f.__name__: dramatiq.actor(f, queue_name=tasks.QUEUE) for f in tasks.FUNCTIONS}


def sender(confirm: bool) -> Callable[..., object]:
    broker.confirm_delivery = confirm
    return lambda name, *args: ACTORS[name].send(*args)


close = broker.close
