"""A process of `make chaos` that sends numbered tasks from several threads, and notes each.

    python tools/chaos_sender.py --rate 50 [--embed] [--various]

Sends until it is told to stop, and ends when its standard input does. The lines that it reads
there:

    stop            send no more; what is on its way still ends
    fork            fork while the threads send, as a server does that has loaded its application; both send then
    hold SECONDS    send a task that takes so long

With --embed it is a service with a worker in threads of its own. With --various it also sends tasks
that come back from a delay, or fail. Settings come from the environment, see lab_tasks.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import lab
from lab import CONFIRMED, Sent
from lab_tasks import KINDS, app, config, work

import kuyruk

BATCH = 10  #: Messages of a batch.
CHILD_SENDS = 3.0  #: Seconds that a forked child sends.
EMBEDDED_THREADS = 4

Outcomes = dict[str, str]


def send_one(numbers: list[str], hold: float = 0.0) -> Outcomes:
    [number] = numbers
    work(number, hold)
    return {number: CONFIRMED}


def send_batch(numbers: list[str]) -> Outcomes:
    outcomes = dict.fromkeys(numbers, CONFIRMED)
    try:
        app.send_tasks_to_queue([work.subtask((number,)) for number in numbers])
    except kuyruk.BrokerError as error:
        outcomes |= {subtask.args[0]: repr(error) for subtask in error.unconfirmed}
    return outcomes


def send_and_wait(numbers: list[str]) -> Outcomes:
    """A call that is answered has been confirmed, too. Without an answer nobody knows."""
    [number] = numbers
    answer = work.send_to_queue((number,), wait_result=config.RABBIT_PUBLISH_TIMEOUT)
    return {number: CONFIRMED if answer == number else f"WRONG ANSWER {answer!r}"}


_various = itertools.cycle([KINDS[name].task for name in ("come_back", "reject", "fail")])


def send_various(numbers: list[str]) -> Outcomes:
    [number] = numbers
    next(_various)(number, 0.0)
    return {number: CONFIRMED}


Way = Callable[[list[str]], Outcomes]
#: Each has a thread.
WAYS: list[tuple[Way, int]] = [
    (send_one, 1),
    (send_one, 1),
    (send_batch, BATCH),
    (send_and_wait, 1),
]


class Sender(lab.Senders):
    """The threads of this process, which send at an even rate. What a fault has kept from being
    sent is made up for."""

    def __init__(self, rate: float, various: bool) -> None:
        self._numbers = itertools.count(1)
        ways = WAYS + [(send_various, 1)] * various
        super().__init__(
            functools.partial(self._send_on, way, count, count * len(ways) / rate)
            for way, count in ways
        )

    def _send_on(self, way: Way, count: int, pause: float, over: threading.Event) -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            self._send(way, [self._next() for _ in range(count)])
            due += pause

    def _next(self) -> str:
        return f"{os.getpid()}.{next(self._numbers)}"

    def _send(self, way: Way, numbers: list[str]) -> None:
        name, began = getattr(way, "__name__", "held"), time.monotonic()
        try:
            outcomes = way(numbers)
        except kuyruk.KuyrukError as error:  # anything else is a defect, and ends this thread
            outcomes = dict.fromkeys(numbers, repr(error))
        ended = time.monotonic()
        for number, outcome in outcomes.items():
            lab.note(Sent(number, name, began, ended, outcome))

    def hold(self, seconds: float) -> None:
        self._send(functools.partial(send_one, hold=seconds), [self._next()])


def obey(sender: Sender, make: Callable[[], Sender]) -> None:
    """Commands, until there are no more."""
    children: list[int] = []
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "stop":
            sender.stop()
        elif command == "hold":
            sender.hold(float(arguments[0]))
        elif command == "fork":
            pid = os.fork()
            if not pid:
                return be_child(make)
            children.append(pid)
    sender.stop()
    for pid in children:
        os.waitpid(pid, 0)


def be_child(make: Callable[[], Sender]) -> None:
    """Sends with what it has inherited, and ends as programs do: with all clean-up of Python's."""
    sender = make()
    time.sleep(CHILD_SENDS)
    sender.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Sends numbered tasks until it is told to stop.")
    parser.add_argument("--rate", type=float, default=50, help="messages per second (default: 50)")
    parser.add_argument("--embed", action="store_true", help="with a worker of its own")
    parser.add_argument("--various", action="store_true", help="tasks that come back or fail, too")
    arguments = parser.parse_args()
    logging.basicConfig(
        format="%(asctime)s %(levelname)-7s %(process)d %(threadName)s: %(message)s", level="INFO"
    )
    owner = os.getpid()
    worker = app.worker(threads=EMBEDDED_THREADS) if arguments.embed else None
    if worker is not None:
        worker.start()
    make = functools.partial(Sender, arguments.rate, arguments.various)
    obey(make(), make)
    with contextlib.suppress(BrokenPipeError):
        if worker is not None and os.getpid() == owner:
            worker.stop()
        app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
