"""What tools/bench.py asks the broker itself, and what the contenders' tasks leave in memory."""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import struct
import tempfile
import time
from typing import Any, Protocol

from amqpstorm.exception import AMQPError
from amqpstorm.uri_connection import UriConnection
from lab import Failure, Quiet

PATIENCE = 60.0  #: Seconds that nothing may happen.


class Broker:
    """A connection of our own. `reset` it after an error."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connect()

    def _connect(self) -> None:
        self._connection = UriConnection(self._url)
        self._channel: Any = self._connection.channel()

    def reset(self) -> None:
        self.close()
        self._connect()

    def close(self) -> None:
        with contextlib.suppress(AMQPError):
            self._connection.close()

    def purge(self, queue: str) -> None:
        self._channel.queue.purge(queue)

    def consumers(self, queue: str) -> int:
        return int(self._channel.queue.declare(queue, passive=True)["consumer_count"])

    def expect(self, queue: str, count: int | None) -> None:
        """Wait until nobody consumes, and there are so many messages (None: however many).

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
        """Return when each `timed` task has begun and ended."""
        return list(struct.iter_unpack("dd", self._times[:]))

    def done(self) -> int:
        return self.count - self._memory[:].count(b"\0")

    def wait_for(self, count: int, worker: Checked, pause: float = 0.003) -> float:
        """Wait until so many tasks have run, and return when that was seen. Raises Failure if that
        gets nowhere."""
        quiet = Quiet()
        while (done := self.done()) < count:
            if quiet.seconds(done) > PATIENCE:
                raise Failure(f"{done} of {self.count} tasks have run, and no more in {PATIENCE} s")
            worker.check()
            time.sleep(pause)
        return time.monotonic()

    def check(self, complete: bool = True) -> None:
        """Raise Failure unless each has run once; if it isn't complete, at most once."""
        found = collections.Counter(self._memory[:])
        wrong = {times: n for times, n in found.items() if times > 1 or (times == 0 and complete)}
        if wrong:
            text = ", ".join(f"{n} ran {times} times" for times, n in wrong.items())
            raise Failure(f"of {self.count} tasks {text}")
