# mypy: ignore-errors
# (It isn't installed where the types are checked.)
"""Loops on nothing but py-amqp."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable

import amqp
from bench_contenders import tasks


def connect(**options) -> amqp.Connection:
    connection = amqp.Connection(
        urllib.parse.urlsplit(tasks.URL).netloc.rpartition("@")[2], **options
    )
    connection.connect()
    tasks.connections.append(connection)
    return connection


close = tasks.close


def declare(channel: amqp.Channel) -> None:
    channel.queue_declare(tasks.QUEUE, durable=True, auto_delete=False)


def message(name: str, *args: object, **properties) -> amqp.Message:
    return amqp.Message(tasks.encode(name, *args), delivery_mode=2, **properties)


def sender(confirm: bool) -> Callable[..., None]:
    channel = connect(confirm_publish=confirm).channel()
    declare(channel)
    return lambda name, *args: channel.basic_publish(message(name, *args), routing_key=tasks.QUEUE)


def caller() -> Callable[[int], int]:
    connection = connect()
    channel = connection.channel()
    answers = []
    channel.basic_consume(
        tasks.REPLIES, no_ack=True, callback=lambda answer: answers.append(answer.body)
    )

    def call(number: int) -> int:
        channel.basic_publish(
            message("echo", number, reply_to=tasks.REPLIES), routing_key=tasks.QUEUE
        )
        while not answers:
            connection.drain_events(timeout=30)
        return int(answers.pop())

    return call


def work() -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel)

    def handle(delivery: amqp.Message) -> None:
        result = tasks.perform(delivery.body)
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
