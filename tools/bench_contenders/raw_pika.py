# mypy: ignore-errors
# (It isn't installed where the types are checked.)
"""Loops on nothing but pika.

BENCH_MODE is "select", for its fastest connection, or "confirmed": with what this project promises
for calls: the request is confirmed, and must reach a queue; the reply is confirmed before the task
is acknowledged.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable

import pika
from bench_contenders import tasks

IS_CONFIRMED = tasks.MODE == "confirmed"

_unconfirmed = collections.deque()  # tags of tasks whose replies are on their way
_confirmed = [0]  # how many replies are


def connect() -> pika.BlockingConnection:
    connection = pika.BlockingConnection(pika.URLParameters(tasks.URL))
    tasks.connections.append(connection)
    return connection


close = tasks.close


def sender(confirm: bool) -> Callable[..., None]:
    channel = connect().channel()
    channel.queue_declare(tasks.QUEUE, durable=True)
    if confirm:
        channel.confirm_delivery()
    persistent = pika.BasicProperties(delivery_mode=2)
    return lambda name, *args: channel.basic_publish(
        "", tasks.QUEUE, tasks.encode(name, *args), persistent
    )


def caller() -> Callable[[int], int]:
    connection = connect()
    channel = connection.channel()
    answers = []
    channel.basic_consume(tasks.REPLIES, lambda *answer: answers.append(answer[3]), auto_ack=True)
    properties = pika.BasicProperties(delivery_mode=2, reply_to=tasks.REPLIES)
    if IS_CONFIRMED:
        channel.confirm_delivery()

    def call(number: int) -> int:
        body = tasks.encode("echo", number)
        channel.basic_publish("", tasks.QUEUE, body, properties, mandatory=IS_CONFIRMED)
        while not answers:
            connection.process_data_events(time_limit=30)
        return int(answers.pop())

    return call


def handle(channel, method, properties, body: bytes) -> None:
    result = tasks.perform(body)
    if properties.reply_to:
        channel.basic_publish("", properties.reply_to, json.dumps(result).encode())
    if properties.reply_to and IS_CONFIRMED:
        _unconfirmed.append(method.delivery_tag)
    else:
        channel.basic_ack(method.delivery_tag)


def acknowledge(channel, confirm) -> None:
    """Replies are confirmed in their order, one by one or several at once."""
    while _confirmed[0] < confirm.delivery_tag:
        _confirmed[0] += 1
        channel.basic_ack(_unconfirmed.popleft())


def consume(channel) -> None:
    if IS_CONFIRMED:
        channel.confirm_delivery(lambda frame: acknowledge(channel, frame.method))
    channel.basic_qos(prefetch_count=tasks.PREFETCH)
    channel.basic_consume(tasks.QUEUE, handle)


def work() -> None:
    connection = pika.SelectConnection(
        pika.URLParameters(tasks.URL),
        on_open_callback=lambda connection: connection.channel(on_open_callback=consume),
    )
    connection.ioloop.start()


if __name__ == "__main__":
    work()
