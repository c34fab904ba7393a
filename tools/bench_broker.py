"""What tools/bench.py does with the broker itself: fill queues, count, and look at messages."""

from __future__ import annotations

import collections
import contextlib
import itertools
import mmap
import os
import re
import socket
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

from amqpstorm.exception import AMQPError
from amqpstorm.uri_connection import UriConnection
from bench_contenders.load import MILLISECONDS, NUMBER, TEXT
from bench_contenders.tasks import FIRST
from lab import Failure, Quiet
from pamqp import commands, frame, header
from pamqp.body import ContentBody

PATIENCE = 60.0  #: Seconds that nothing may happen.
MAX_BODY = 0x20000 - 8  #: Bytes of a body in one frame.
CHUNK = 0x40000  #: Bytes, about, that are written at once.
ID = re.compile(rb"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


class Options(NamedTuple):
    """What a copy has in place of the sample's."""

    milliseconds: int = 0
    size: int = len(TEXT)


NO_OPTIONS = Options()


class Pattern(NamedTuple):
    """A message of a contender, of which others are made."""

    properties: dict[str, Any]
    body: str

    def copies(self, queue: str, numbers: Iterable[int], options: Options) -> Iterator[bytes]:
        """Ready to be written on channel 1: each with its number, and ids that nobody else has."""
        body = self._changed(self.body, options).replace(TEXT, "x" * options.size).encode()
        properties = commands.Basic.Properties(**self._changed(self.properties, options))
        frames: list[Any] = [
            commands.Basic.Publish(routing_key=queue),
            header.ContentHeader(0, len(body), properties),
        ]
        frames += [
            ContentBody(body[start : start + MAX_BODY]) for start in range(0, len(body), MAX_BODY)
        ]
        written = b"".join(frame.marshal(each, 1) for each in frames)
        old, ids = b"%d" % NUMBER, set(ID.findall(written))
        for number in numbers:
            copy = written.replace(old, b"%d" % (FIRST + number))
            for id in ids:
                copy = copy.replace(id, id[:-12] + b"%012x" % number)
            yield copy

    def _changed(self, value: Any, options: Options) -> Any:
        if isinstance(value, dict):
            return {k: self._changed(v, options) for k, v in value.items()}
        return (
            value.replace(str(MILLISECONDS), str(options.milliseconds))
            if isinstance(value, str)
            else value
        )


class Broker:
    """A connection of our own. `reset` it after an error."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._patterns: dict[tuple[str, str], Pattern] = {}
        self._connect()

    def _connect(self) -> None:
        self._connection = cast(Any, UriConnection(self._url))
        # Else a message that is written alone can wait for 40 ms.
        self._connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel: Any = self._connection.channel()

    def reset(self) -> None:
        self.close()
        self._connect()

    def close(self) -> None:
        with contextlib.suppress(AMQPError):
            self._connection.close()

    def purge(self, queue: str) -> None:
        self._channel.queue.purge(queue)

    def count(self, queue: str) -> int:
        """Messages that nobody has in hand."""
        return int(self._channel.queue.declare(queue, passive=True)["message_count"])

    def consumers(self, queue: str) -> int:
        return int(self._channel.queue.declare(queue, passive=True)["consumer_count"])

    def expect(self, queue: str, count: int | None) -> None:
        """Waits until nobody consumes, and there are so many messages (None: however many).

        When a consumer is gone, what it had in hand is back. Raises Failure if nothing changes
        for some seconds.
        """
        quiet = Quiet()
        while True:
            facts = self._channel.queue.declare(queue, passive=True)
            ready, consumers = facts["message_count"], facts["consumer_count"]
            if consumers == 0 and count in (ready, None):
                return
            if quiet.seconds((ready, consumers)) > PATIENCE / 10:
                text = f"{ready} messages are in {queue}, not {count}; consumers: {consumers}"
                raise Failure(text)
            time.sleep(0.01)

    def is_next_persistent(self, queue: str) -> bool:
        message = self._channel.basic.get(queue)
        if message is None:
            raise Failure(f"{queue} is empty")
        message.reject(requeue=True)
        return bool(message.properties.get("delivery_mode") == 2)

    def take_patterns(self, queue: str) -> bool:
        """Takes the samples out of a queue. Returns whether they are persistent."""
        persistent = []
        for name in ("noop", "pad", "nap", "timed"):
            message = None
            for _ in range(200):
                if (message := self._channel.basic.get(queue)) is not None:
                    break
                time.sleep(0.01)
            if message is None:
                raise Failure(f"there is no sample of {name} in {queue}")
            message.ack()
            properties = {k: v for k, v in message.properties.items() if v not in (None, "")}
            persistent.append(properties.get("delivery_mode") == 2)
            self._patterns[queue, name] = Pattern(properties, message._body.decode())
        return all(persistent)

    def fill(
        self, queue: str, task: str, numbers: Sequence[int], options: Options = NO_OPTIONS
    ) -> None:
        """Puts a message for each number into a queue, and waits until they are there."""
        before = self.count(queue)
        self.write(self.copies(queue, task, numbers, options))
        self.expect(queue, before + len(numbers))

    def copies(
        self, queue: str, task: str, numbers: Iterable[int], options: Options = NO_OPTIONS
    ) -> Iterator[bytes]:
        """To be written."""
        return self._patterns[queue, task].copies(queue, numbers, options)

    def write(self, messages: Iterator[bytes]) -> None:
        while batch := list(itertools.islice(messages, 1)):
            batch += itertools.islice(messages, min(500, CHUNK // len(batch[0])))
            self._connection._io.write_to_socket(b"".join(batch))


class Checked(Protocol):
    def check(self) -> None: ...


class Marks:
    """The other end of what bench_contenders/tasks.py writes: how often each task has run."""

    def __init__(self, count: int, folder: str) -> None:
        self.count = count
        marks, self._memory = self._share(count, folder)
        times, self._times = self._share(16 * count, folder)
        self.environment = {"BENCH_MARKS": marks, "BENCH_TIMES": times}

    @staticmethod
    def _share(size: int, folder: str) -> tuple[str, mmap.mmap]:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.truncate(size)
            return file.name, mmap.mmap(file.fileno(), size)

    def close(self) -> None:
        self._memory.close()
        self._times.close()
        for path in self.environment.values():
            os.unlink(path)

    def times(self) -> list[tuple[float, float]]:
        """When each `timed` task has begun and ended."""
        return list(struct.iter_unpack("dd", self._times[:]))

    def done(self) -> int:
        return self.count - self._memory[:].count(b"\0")

    def wait_for(self, count: int, worker: Checked, pause: float = 0.003) -> float:
        """Until so many tasks have run. Returns when it was seen. Raises Failure if that gets
        nowhere."""
        quiet = Quiet()
        while (done := self.done()) < count:
            if quiet.seconds(done) > PATIENCE:
                raise Failure(f"{done} of {self.count} tasks have run, and no more in {PATIENCE} s")
            worker.check()
            time.sleep(pause)
        return time.monotonic()

    def check(self, complete: bool = True) -> None:
        """Raises Failure unless each has run once; if it isn't complete, at most once."""
        found = collections.Counter(self._memory[:])
        wrong = {times: n for times, n in found.items() if times > 1 or (times == 0 and complete)}
        if wrong:
            text = ", ".join(f"{n} ran {times} times" for times, n in wrong.items())
            raise Failure(f"of {self.count} tasks {text}")
