"""A process of `make soak` and `make chaos` that sends numbered tasks from several threads.

    python tools/lab_sender.py [--rate 50] [--kinds '{"work": 1}'] [--embed] ...

Each send is noted (lab.py). It sends until it is told to stop, and ends when its standard input
does. The lines that it reads there:

    stop            send no more; what is on its way still ends
    fork            fork while the threads send, as a server does that has loaded its application;
                    both send then
    hold SECONDS    send a task that takes so long, up to a minute

With --embed it is a service with a worker in threads of its own. Its settings come from the
environment, see lab_tasks.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import lab
from lab import CONFIRMED, RETURNED, Sent, option
from lab_tasks import KINDS, answer, app, config

import kuyruk

#: Messages of a batch; seconds that a forked child sends; threads of an embedded worker.
BATCH, CHILD_SENDS, EMBEDDED_THREADS = 10, 3.0, 4


class Draft(NamedTuple):
    """What is to be sent."""

    number: str
    kind: str
    chance: float

    def send(self, wait: float | None = None) -> object:
        return KINDS[self.kind].task.send_to_queue((self.number, self.chance), wait_result=wait)


#: By the number of the message, as in `Sent`.
Outcomes = dict[str, str]


def send_each(drafts: Sequence[Draft]) -> Outcomes:
    for draft in drafts:
        draft.send()
    return {draft.number: CONFIRMED for draft in drafts}


def send_batch(drafts: Sequence[Draft]) -> Outcomes:
    outcomes = {draft.number: CONFIRMED for draft in drafts}
    try:
        app.send_tasks_to_queue(
            [KINDS[draft.kind].task.subtask((draft.number, draft.chance)) for draft in drafts]
        )
    except kuyruk.BrokerError as error:
        outcomes |= {subtask.args[0]: repr(error) for subtask in error.unconfirmed}
    return outcomes


def send_and_wait(drafts: Sequence[Draft]) -> Outcomes:
    """Send, and wait for the result."""
    # A call that is answered has been confirmed, too. Without an answer nobody knows.
    [draft] = drafts
    try:
        result = draft.send(wait=config.RABBIT_PUBLISH_TIMEOUT)
        is_right = result == answer(draft.number, draft.chance)
        got = RETURNED if is_right else f"{result!r:.80}"
    except kuyruk.RemoteException as error:
        got = error.type
    is_known = got in KINDS[draft.kind].replies
    return {draft.number: CONFIRMED if is_known else f"WRONG ANSWER {got}"}


Way = Callable[[Sequence[Draft]], Outcomes]
#: The ways of sending, and how many messages at once. Each has a thread, or several.
WAYS: list[tuple[Way, int]] = [
    (send_each, 1),
    (send_each, 1),
    (send_batch, BATCH),
    (send_and_wait, 1),
]


class Sender:
    """The threads of this process, which send at random times."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._numbers = itertools.count(1)
        self._kinds = json.loads(options.kinds)
        # Set by `stop`. The threads wait for it between two sends.
        self._over = threading.Event()
        ways = WAYS * options.threads
        self._threads = [
            threading.Thread(
                target=self._send_on,
                args=(way, count, options.rate / (count * len(ways)), f"{options.seed} {number}"),
                daemon=True,
            )
            for number, (way, count) in enumerate(ways)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def hold(self, seconds: float) -> None:
        self._send(send_each, [self._draft("hold", seconds / 60)])

    def _send_on(self, way: Way, count: int, rate: float, seed: str) -> None:
        dice, due = random.Random(seed), time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            kinds = dice.choices([*self._kinds], [*self._kinds.values()], k=count)
            self._send(way, [self._draft(kind, dice.random()) for kind in kinds])
            # What a fault has kept from being sent is made up for.
            due += dice.expovariate(rate)

    def _draft(self, kind: str, chance: float) -> Draft:
        return Draft(f"{os.getpid()}.{next(self._numbers)}", kind, chance)

    def _send(self, way: Way, drafts: Sequence[Draft]) -> None:
        began = time.monotonic()
        try:
            outcomes = way(drafts)
        # Anything else is a defect, and ends this thread.
        except kuyruk.KuyrukError as error:
            outcomes = {draft.number: repr(error) for draft in drafts}
        ended = time.monotonic()
        for number, kind, _ in drafts:
            lab.note(Sent(number, kind, began, ended, outcomes[number]))


def obey(make: Callable[[], Sender]) -> None:
    """Do what the lines of the standard input say, until there are no more."""
    sender, children = make(), []
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "stop":
            sender.stop()
        elif command == "hold":
            sender.hold(float(arguments[0]))
        elif command == "fork":
            pid = os.fork()
            if not pid:
                # The child sends with what it has inherited, and ends as programs do: with all
                # clean-up of Python's.
                sender = make()
                time.sleep(CHILD_SENDS)
                return sender.stop()
            children.append(pid)
    sender.stop()
    for pid in children:
        os.waitpid(pid, 0)


def run(options: argparse.Namespace) -> None:
    log = "%(asctime)s %(levelname)-7s %(process)d %(threadName)s: %(message)s"
    logging.basicConfig(format=log, level="INFO")
    owner = os.getpid()
    worker = app.worker(threads=EMBEDDED_THREADS) if options.embed else None
    if worker is not None:
        worker.start()
    obey(functools.partial(Sender, options))
    with contextlib.suppress(BrokenPipeError):
        # A forked child has none.
        if worker is not None and os.getpid() == owner:
            worker.stop()
        app.close()


OPTIONS = {
    "--rate": option(50.0, "messages per second, about"),
    "--kinds": option('{"work": 1}', "of tasks, and how often each, as JSON"),
    "--threads": option(1, f"for each of the {len(WAYS)} ways of sending"),
    "--seed": option("0", "the same one sends the same kinds"),
    "--embed": option(False, "with a worker of its own"),
}

if __name__ == "__main__":
    sys.exit(lab.main(run, OPTIONS))
