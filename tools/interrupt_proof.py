"""Prove that interrupting tasks breaks nothing: thousands of timeouts of tasks that never check.

    [coverage run] tools/interrupt_proof.py [--timeouts 5000] [--threads 8]

Tasks log to a file, use a queue.Queue, import modules and send messages, and some do a bit of each;
threads run them with a limit of some milliseconds each. What an interruption must not do:

- leave a lock taken: of a log handler, logging, the queue, the import system, threading, or the
  application's connection;
- be swallowed by the standard library, so that the task goes on;
- reach code that runs after its task, or the next task of that thread;
- come late because the task is never found at a safe point.
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import itertools
import logging
import multiprocessing
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
from lab import say
from rabbitmq_node import RabbitmqNode

import kuyruk

#: For each thread.
MODULES = 5
#: Seconds: each task's max_run_time.
LIMIT = 0.004
#: Seconds of work between two uses of a lock.
PAUSES = 0.00005, 0.0005
#: Seconds in which each timeout, and each lock, must come.
LATE = 30.0
QUEUE = "kuyruk-interrupt-proof"

logger = logging.getLogger("interrupt-proof")
#: Where it is imported, logging swallows what is raised while it asks for the process's name.
multiprocessing.current_process()
shared: queue.Queue[int] = queue.Queue()


class NotingHandler(logging.FileHandler):
    """Note what logging has swallowed."""

    swallowed = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.swallowed += 1


def work(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def log(n: int) -> None:
    logger.info("line %d", n)


def use_queue(n: int) -> None:
    shared.put(n)
    shared.get(timeout=LATE)


def import_module(n: int) -> object:
    """Import it anew."""
    # Each thread has modules of its own: what removes them from sys.modules is this tool.
    name = f"interrupt_proof_{threading.current_thread().name}_{n % MODULES}"
    sys.modules.pop(name, None)
    return importlib.import_module(name)


class Proof:
    def __init__(self, url: str, folder: Path, threads: int) -> None:
        self.threads = threads
        config = kuyruk.Config()
        config.from_dict({"RABBIT_URL": url})
        self.app = kuyruk.Kuyruk(config)
        self.note = self.app.task(QUEUE)(work)
        self.handler = NotingHandler(folder / "log")
        #: What became of each run. A list: threads that add to a counter overtake each other.
        self.outcomes: list[str] = []
        self.slowest = 0.0
        for name, n in itertools.product((*map(str, range(threads)), "last"), range(MODULES)):
            module = folder / f"interrupt_proof_{name}_{n}.py"
            module.write_text(f"import math\nvalue = {n}\n")
        self.actions: list[Callable[[int], object]] = [log, use_queue, import_module, self.send]

    def send(self, n: int) -> None:
        self.note.send_to_queue((0,), message_ttl=0.001)

    def make_task(
        self, actions: list[Callable[[int], object]], pause: float
    ) -> kuyruk.Task[..., Any]:
        def act() -> None:
            for n in itertools.count(random.randrange(1000)):
                for action in actions:
                    action(n)
                work(pause)

        return self.app.task(QUEUE, max_run_time=LIMIT)(act)

    def run_thread(self, timeouts: int) -> None:
        combinations = [[action] for action in self.actions] + [self.actions]
        tasks = [self.make_task(c, pause) for c in combinations for pause in PAUSES]
        calm = self.app.task(QUEUE)(lambda: sum(n for n in range(300)))
        for task in itertools.islice(itertools.cycle(tasks), timeouts):
            began = time.monotonic()
            try:
                task.apply()
                self.outcomes.append("returned")
            except kuyruk.Timeout as error:
                self.outcomes.append("timeouts" if str(error) else "without text")
            except BaseException as error:
                self.outcomes.append(f"raised {error!r}")
            try:
                calm.apply()
                # Where a late one would land.
                sum(n for n in range(300))
            except BaseException as error:
                self.outcomes.append(f"{type(error).__name__} in later code")
            self.slowest = max(self.slowest, time.monotonic() - began)

    def run(self, timeouts: int) -> None:
        run = functools.partial(self.run_thread, -(-timeouts // self.threads))
        names = map(str, range(self.threads))
        threads = [threading.Thread(target=run, name=name, daemon=True) for name in names]
        for thread in threads:
            thread.start()
        until = time.monotonic() + LATE + timeouts / 10
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.outcomes += ["threads that hang"] * sum(thread.is_alive() for thread in threads)
        self.outcomes += ["swallowed by logging"] * self.handler.swallowed

    def try_locks(self) -> None:
        """Use each of them."""
        # In a thread of its own, which must end.
        uses: dict[str, Callable[[], object]] = {
            "a log handler": lambda: logger.info("the end"),
            "logging": lambda: logging.getLogger("interrupt-proof-new").setLevel("INFO"),
            "the queue": lambda: use_queue(0),
            "the import system": lambda: list(map(import_module, range(MODULES))),
            "threading": lambda: threading.enumerate(),
            "the connection": lambda: self.send(0),
        }
        for name, use in uses.items():
            ended: list[object] = []
            then = functools.partial(lambda use, ended: ended.append(use()), use, ended)
            thread = threading.Thread(target=then, name="last", daemon=True)
            thread.start()
            thread.join(LATE)
            if not ended:
                self.outcomes.append(f"lock of {name} left taken")


def prove(url: str, timeouts: int, threads: int = 8) -> tuple[dict[str, int], float]:
    """Run that many tasks that exceed their limit. Return counts of what became of them, and how
    long the slowest took."""
    # All but "timeouts" must be 0. What Python can only print, as an exception in a destructor, is
    # counted as well.
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(url, Path(folder), threads)
        sys.path.insert(0, folder)
        logger.addHandler(proof.handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        printed: list[object] = []
        hook, sys.unraisablehook = sys.unraisablehook, printed.append
        try:
            with proof.app:
                proof.run(timeouts)
                proof.try_locks()
                with proof.app.channel() as channel:
                    channel.queue.delete(QUEUE)
        finally:
            sys.unraisablehook = hook
            logger.removeHandler(proof.handler)
            proof.handler.close()
            sys.path.remove(folder)
    outcomes = [*proof.outcomes, *["printed by Python"] * len(printed)]
    return collections.Counter(outcomes), proof.slowest


def run(options: argparse.Namespace) -> list[str]:
    """Return the violations."""
    began = time.monotonic()
    with RabbitmqNode() as node:
        counts, slowest = prove(node.url, options.timeouts, options.threads)
    version, seconds = sys.version.split()[0], time.monotonic() - began
    say(f"Python {version}: {seconds:.0f} s, slowest {slowest:.2f} s")
    for name, count in counts.items():
        say(f"{count:8} {name}")
    return [f"{count} {name}" for name, count in counts.items() if count and name != "timeouts"]


OPTIONS = {
    "--timeouts": lab.option(5000, "that are to come"),
    "--threads": lab.option(8, "that run tasks"),
}

if __name__ == "__main__":
    sys.exit(lab.main(run, OPTIONS))
