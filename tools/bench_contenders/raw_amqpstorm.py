"""Loops on nothing but amqpstorm, as the floors: what a task queue on it could reach at best.

The three ways of working (BENCH_MODE): "stock", as its documentation has it; "event", its frames
handled as they come, with TCP_NODELAY; "pool", likewise, but the tasks run in a thread pool, and
one thread acknowledges them.
"""

from __future__ import annotations

import concurrent.futures
import json
import queue
import signal
import socket
from collections.abc import Callable
from typing import Any, cast

from amqpstorm.connection import Connection
from amqpstorm.message import Message
from amqpstorm.uri_connection import UriConnection
from bench_contenders import tasks
from pamqp import commands


def connect() -> Connection:
    connection = UriConnection(tasks.URL)
    if tasks.MODE != "stock":
        assert connection.socket is not None
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tasks.connections.append(connection)
    return connection


close = tasks.close


# --- Sending -------------------------------------------------------------------


def sender(confirm: bool) -> Callable[..., None]:
    channel = connect().channel()
    channel.queue.declare(tasks.QUEUE, durable=True)
    if confirm:
        channel.confirm_deliveries()

    def send(name: str, *args: Any) -> None:
        channel.basic.publish(
            tasks.encode(name, *args), tasks.QUEUE, properties={"delivery_mode": 2}
        )

    return send


def caller() -> Callable[[int], int]:
    return _stock_caller() if tasks.MODE == "stock" else _event_caller()


def _stock_caller() -> Callable[[int], int]:
    channel = connect().channel()
    answers: list[bytes] = []
    channel.basic.consume(lambda message: answers.append(message._body), tasks.REPLIES, no_ack=True)

    def call(number: int) -> int:
        properties = {"delivery_mode": 2, "reply_to": tasks.REPLIES}
        channel.basic.publish(tasks.encode("echo", number), tasks.QUEUE, properties=properties)
        while not answers:
            channel.process_data_events()
        return int(answers.pop())

    return call


def _event_caller() -> Callable[[int], int]:
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    channel = EventChannel(connect(), lambda tag, properties, body: answers.put(body))
    channel.raw.basic.consume(None, tasks.REPLIES, no_ack=True)

    def call(number: int) -> int:
        properties = {"delivery_mode": 2, "reply_to": tasks.REPLIES}
        channel.raw.basic.publish(tasks.encode("echo", number), tasks.QUEUE, properties=properties)
        return int(answers.get(timeout=30))

    return call


# --- Working -------------------------------------------------------------------


class EventChannel:
    """A channel whose deliveries are handled in the thread that reads the socket, as soon as they
    are there."""

    def __init__(
        self, connection: Connection, deliver: Callable[[int, Any, bytes], object]
    ) -> None:
        self.raw = cast(Any, connection.channel(lazy=True))
        self._deliver = deliver
        self._otherwise = self.raw.on_frame
        self.raw.on_frame = self._on_frame
        self.raw.open()

    def _on_frame(self, frame: Any) -> None:
        if frame.name == "Basic.Deliver":
            self._tag = frame.delivery_tag
        elif frame.name == "ContentHeader":
            self._properties, self._left, self._parts = frame.properties, frame.body_size, []
        elif frame.name == "ContentBody":
            self._parts.append(frame.value)
            self._left -= len(frame.value)
            if self._left == 0:
                self._deliver(self._tag, self._properties, b"".join(self._parts))
        else:
            self._otherwise(frame)


def work_stock() -> None:
    channel = connect().channel()
    channel.queue.declare(tasks.QUEUE, durable=True)
    channel.basic.qos(tasks.PREFETCH)

    def handle(message: Message) -> None:
        result = tasks.perform(message._body)
        if message.reply_to:
            channel.basic.publish(json.dumps(result), message.reply_to)
        message.ack()

    channel.basic.consume(handle, tasks.QUEUE)
    channel.start_consuming()


def work_event() -> None:
    def deliver(tag: int, properties: Any, body: bytes) -> None:
        result = tasks.perform(body)
        if properties.reply_to:
            channel.raw.basic.publish(json.dumps(result), properties.reply_to)
        channel.raw.write_frame(commands.Basic.Ack(tag))

    channel = EventChannel(connect(), deliver)
    _consume(channel)
    signal.pause()


def work_pool() -> None:
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(tag: int, body: bytes) -> None:
        tasks.perform(body)
        done.put(tag)

    with concurrent.futures.ThreadPoolExecutor(tasks.THREADS) as pool:
        channel = EventChannel(connect(), lambda tag, properties, body: pool.submit(run, tag, body))
        _consume(channel)
        while True:
            channel.raw.write_frame(commands.Basic.Ack(done.get()))


def _consume(channel: EventChannel) -> None:
    channel.raw.queue.declare(tasks.QUEUE, durable=True)
    channel.raw.basic.qos(max(tasks.PREFETCH, tasks.THREADS))
    channel.raw.basic.consume(None, tasks.QUEUE)


if __name__ == "__main__":
    {"stock": work_stock, "event": work_event, "pool": work_pool}[tasks.MODE]()
