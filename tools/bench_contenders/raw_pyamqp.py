# mypy: ignore-errors
# (It isn't installed where the types are checked.)
"""Loops on nothing but py-amqp."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable

import amqp
from bench_contenders import tasks

TASKS = {function.__name__: function for function in tasks.FUNCTIONS}
REPLIES = "amq.rabbitmq.reply-to"

_connections: list[amqp.Connection] = []


def connect(**options) -> amqp.Connection:
    connection = amqp.Connection(
        urllib.parse.urlsplit(tasks.URL).netloc.rpartition("@")[2], **options
    )
    connection.connect()
    _connections.append(connection)
    return connection


def close() -> None:
    for connection in _connections:
        connection.close()


def declare(channel: amqp.Channel) -> None:
    channel.queue_declare(tasks.QUEUE, durable=True, auto_delete=False)


def message(name: str, args: tuple, **properties) -> amqp.Message:
    return amqp.Message(json.dumps((name, args)), delivery_mode=2, **properties)


def sender(confirm: bool) -> Callable[..., None]:
    channel = connect(confirm_publish=confirm).channel()
    declare(channel)
    return lambda name, *args: channel.basic_publish(message(name, args), routing_key=tasks.QUEUE)


def caller() -> Callable[[int], int]:
    connection = connect()
    channel = connection.channel()
    answers = []
    channel.basic_consume(REPLIES, no_ack=True, callback=lambda answer: answers.append(answer.body))

    def call(number: int) -> int:
        channel.basic_publish(message("echo", (number,), reply_to=REPLIES), routing_key=tasks.QUEUE)
        while not answers:
            connection.drain_events(timeout=30)
        return int(answers.pop())

    return call


def work() -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel)

    def handle(delivery: amqp.Message) -> None:
        name, args = json.loads(delivery.body)
        result = TASKS[name](*args)
        if "reply_to" in delivery.properties:
            channel.basic_publish(
                amqp.Message(json.dumps(result)), routing_key=delivery.properties["reply_to"]
            )
        channel.basic_ack(delivery.delivery_tag)

    channel.basic_qos(0, tasks.PREFETCH, False)
    channel.basic_consume(tasks.QUEUE, callback=handle)
    while True:
        connection.drain_events()


if __name__ == "__main__":
    work()
