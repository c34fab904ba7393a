"""`make soak`: a worker under a mixed load for minutes or hours, and where each message went.

    python tools/soak.py [--minutes M] [--rate N] [--seed N] [--without KIND] ...

A process sends a worker what lab_tasks.py has: tasks that return, raise, recover, reject, exceed
their time limit, hang in C code, bring their process down. What is checked in the end:

- Each message ended where its kind has to, and each sender got what its kind answers with.
- None ran again without need: the only reason is a process that was brought down while the message
  was in its hands. That a process with a stuck thread is replaced is none.
- Each end of a process has its reason. The process that watches over the others stays small, and
  its open files few.
- SIGTERM ends all of it, with exit code 0, and no process is left.

Ctrl-C ends the sending early, and then it checks all the same. The same seed sends the same kinds;
which of them meet isn't repeatable. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import collections
import importlib
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import sys
import time

import lab
from lab import CONFIRMED, RETURNED, Hit, Sample, option, say
from lab_tasks import AGAIN, DIES, EXPECTED, KINDS, LOST, MISPLACED, judge
from rabbitmq_node import RabbitmqNode

#: Where everything is until the next run: notes, logs, the picture. Git ignores it.
FOLDER = os.path.join(lab.ROOT, "build", "soak")
PICTURE = os.path.join(FOLDER, "soak.png")

SENDERS = 4  #: Threads for each way of sending.
TICK = 1.0  #: Seconds between two looks at the worker's processes.
#: Seconds that a send, or a result, may take; and that nothing may happen at the end.
PATIENCE = 60.0
QUIET = 3.0  #: Seconds without news after which all may be done: no task takes longer.
PARENT_MEMORY = 15.0  #: MiB that the process that watches over the others may take.
CRASHES = range(2, 6)  #: In how many processes a `crash` may run, see `Soak.check_crashes`.


def weights(rate: float, without: list[str]) -> dict[str, float]:
    """Return how often each kind is to be sent."""
    kinds = {name: kind for name, kind in KINDS.items() if name not in without}
    common = sum(kind.weight for kind in kinds.values()) or 1
    found = {n: k.weight / common + k.per_minute / (60 * rate) for n, k in kinds.items()}
    return {name: weight for name, weight in found.items() if weight}


class Soak(lab.Run):
    """The load, the draining and the stop; and then the tables, and what is wrong."""

    def __init__(self, node: RabbitmqNode, options: argparse.Namespace) -> None:
        settings = {"KUYRUK_WORKER_GRACE": 1, "KUYRUK_RABBIT_PUBLISH_TIMEOUT": PATIENCE}
        super().__init__(node, "soak", FOLDER, **settings)
        self.options = options
        self.began = time.monotonic()
        #: By process, the worker's first one first.
        self.samples: dict[int, list[Sample]] = {}
        self.children: set[int] = set()  # that are there now
        self.gone: dict[int, float] = {}  # children, and when they were first missed
        # at, sent, calls that returned, calls that raised
        self.progress: list[tuple[float, int, int, int]] = []

    def run(self) -> None:
        options = self.options
        self.start_worker(self.node.url, options.processes, options.threads)
        kinds = json.dumps(weights(options.rate, options.without))
        sender = self.start_sender(
            self.node.url, "--rate", options.rate, "--kinds", kinds, "--threads", SENDERS,
            "--seed", options.seed,
        )  # fmt: skip
        try:
            while time.monotonic() < self.began + options.minutes * 60 and self.worker.code is None:
                self._tick()
        except KeyboardInterrupt:
            say("\nStopping early. Once more: without the results.")
        sender.tell("stop")
        if not self.drain(self._tick, self._is_done, PATIENCE):
            text = f"messages left: {self._left()}, processes: {len(self.children)}"
            self.violations.append(f"nothing happens any more, but it isn't in order; {text}")
        if self.worker.code is not None:
            self.violations.append("the worker has ended by itself")
        self.expect_code("the sender", sender.close_input(PATIENCE))
        self.stop_worker()
        self.account()
        #: The processes that tasks have brought down, and when.
        self.deaths = {
            call.pid: call.ended
            for calls in self.ledger.calls.values()
            for call in calls
            if call.outcome == DIES
        }

    def _tick(self) -> None:
        time.sleep(TICK)
        now, children = time.monotonic(), set(self.worker.children())
        self.gone |= dict.fromkeys(self.children - children, now)
        self.children = children
        memory = []
        for pid in (self.worker.pid, *sorted(children)):
            if sample := Sample.of(pid):
                self.samples.setdefault(pid, []).append(sample)
                memory.append(f"{sample.memory:.0f}")
        self.ledger.follow()
        sent, ends = len(self.ledger.sent), self.ledger.ends
        returned, raised = ends[RETURNED], ends.total() - ends[RETURNED]
        self.progress.append((now, sent, returned, raised))
        lab.say_progress(
            f"{now - self.began:4.0f} s  sent {sent}  calls returned {returned}, raised {raised}  "
            f"processes gone {len(self.gone)}  MiB {' '.join(memory)}"
        )

    def _is_done(self, seconds: float) -> bool:
        """Whether the broker has no message any more, but for those that have failed."""
        whole = len(self.children) == self.options.processes
        return self.worker.code is not None or (seconds > QUIET and whole and not self._left())

    def _left(self) -> dict[str, int]:
        counts = {name: int(count) for name, count in self.node.queues("messages").items()}
        return {n: count for n, count in counts.items() if count and not n.endswith(".failed")}

    # -- what is said and checked in the end

    def check_messages(self) -> None:
        # A task notes that it brings its process down, and others may begin there before it does.
        hits = [Hit(at, math.inf, pid) for pid, at in self.deaths.items()]
        table = {name: collections.Counter[str]() for name in KINDS}
        wrong: dict[str, list[str]] = {"unexplained": [], MISPLACED: [], LOST: []}
        for number, sent in self.ledger.sent.items():
            verdict = judge(sent, self.ledger)
            if verdict == AGAIN and not self.ledger.was_hit(number, hits):
                verdict = "unexplained"
            failed = len(self.ledger.failed.get(number, ()))
            table[sent.kind].update({"sent": 1, verdict: 1, ".failed": failed})
            if verdict in wrong:
                wrong[verdict].append(self.ledger.describe(number))
            if sent.outcome != CONFIRMED:
                self.add("its sender got another answer", [str(sent)])
        columns = ("sent", EXPECTED, AGAIN, *wrong, ".failed")
        say(f"\n{'':12}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
        table["all"] = sum(table.values(), collections.Counter[str]())
        for name, counts in table.items():
            # Some kinds are chaos.py's.
            if not counts:
                continue
            say(f"{name:12}" + "".join(f"{counts[column]:{len(column) + 3}}" for column in columns))
        for verdict, texts in wrong.items():
            self.add(verdict, texts)

    def check_crashes(self) -> None:
        """Count how many processes each `crash` has cost."""
        # RabbitMQ can deliver it again before that process is told of the last death; and a death
        # counts for one that was just about to begin, too, without a note of it; and one at which
        # two suspects ran proves nothing. So one less or two more are told, and aren't a violation.
        crashes = [number for number, sent in self.ledger.sent.items() if sent.kind == "crash"]
        counts = collections.Counter(len(self.ledger.calls.get(number, ())) for number in crashes)
        text = ", ".join(f"{count} in {n} processes" for n, count in sorted(counts.items()))
        say(f"\neach crash has run until it was given up: {text or 'there were none'}")
        if set(counts) - {*CRASHES}:
            self.violations.append(f"crashes ran in other than 3 processes: {dict(counts)}")

    def check_processes(self) -> None:
        # One that has lived too short to be sampled has noted what it began.
        ended = (self.ledger.last_begin.keys() | self.gone) - self.children
        # A worker that ends gracefully says so.
        said = re.findall(r"(\d+) \S+: Stopped$", self.worker.text, re.MULTILINE)
        down = ended & self.deaths.keys()
        unexplained = ended - down - set(map(int, said))
        say(f"processes: {len(down)} brought down, {len(ended - down - unexplained)} replaced")
        steps = itertools.pairwise(self.ledger.begins())
        pause, at = max(((after - at, at) for at, after in steps), default=(0.0, 0.0))
        say(
            f"the longest time in which no call began: {pause:.1f} s, after {at - self.began:.0f} s"
        )
        if unexplained:
            self.violations.append(f"processes ended without a reason: {sorted(unexplained)}")

    def check_sizes(self) -> None:
        parent = self.samples.get(self.worker.pid, [])
        others = [own for pid, own in self.samples.items() if pid != self.worker.pid]
        for who, samples in (("parent", parent), ("children", sorted(itertools.chain(*others)))):
            for what in ("memory", "threads", "files"):
                values = [getattr(sample, what) for sample in samples] or [0]
                facts = {
                    "first": values[0],
                    "last": values[-1],
                    "min": min(values),
                    "max": max(values),
                }
                text = "".join(f"{name:>8}{value:6.1f}" for name, value in facts.items())
                say(f"{who:10}{what:8}{text}{'  MiB' if what == 'memory' else ''}")
        most = max((sample.memory for sample in parent), default=0.0)
        if most > PARENT_MEMORY:
            self.violations.append(f"the parent took {most:.1f} MiB, more than {PARENT_MEMORY:g}")
        files, part = [sample.files for sample in parent], len(parent) // 4
        # It has more open while it starts a child: they grow if all of the end is above all of the
        # beginning. A run of seconds is nothing but a beginning.
        if part > 10 and min(files[-part:]) > max(files[:part]):
            least, most = min(files[-part:]), max(files[:part])
            self.violations.append(f"the parent's open files grow: from {most} to {least}")

    def draw(self) -> None:
        """Draw memory, threads, open files and throughput over time, if there is matplotlib."""
        # Not an import statement: only `make soak` installs it, and the types are checked without.
        figure = importlib.import_module("matplotlib.figure").Figure((14, 11), layout="constrained")
        *panels, rates = figure.subplots(4, 1, sharex=True)
        for panel, name in zip(panels, ("memory", "threads", "files"), strict=True):
            panel.set(ylabel="resident memory, MiB" if name == "memory" else name)
            for pid, own in self.samples.items():
                times = [sample.at - self.began for sample in own]
                color = "black" if pid == self.worker.pid else None
                panel.plot(times, [getattr(sample, name) for sample in own], lw=1, color=color)
        for index, label in enumerate(("sent", "returned", "raised"), start=1):
            steps = itertools.pairwise((row[0], row[index]) for row in self.progress)
            changes = [(n - m) / (t - s) for (s, m), (t, n) in steps]
            times = [row[0] - self.began for row in self.progress[1:]]
            rates.plot(times, changes, lw=1, label=label)
        rates.set(ylabel="calls per second", xlabel="seconds")
        rates.legend(loc="upper left", ncols=3)
        for panel in (*panels, rates):
            panel.set_ylim(bottom=0)
            for pid, at in (self.gone | self.deaths).items():
                color = "red" if pid in self.deaths else "blue"
                panel.axvline(at - self.began, color=color, lw=0.6, alpha=0.5)
        text = "kuyruk_worker: a line for each process, the parent's black; "
        figure.suptitle(f"{text}upright: red where one was brought down, blue where replaced")
        figure.savefig(PICTURE, dpi=90)


def soak(options: argparse.Namespace) -> list[str]:
    """Return the violations."""
    # Inherited by the worker: what crashes on purpose leaves no file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say(f"{options.minutes:g} minutes, --seed {options.seed}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with RabbitmqNode() as node, Soak(node, options) as run:
        run.run()
    run.check_messages()
    run.check_crashes()
    run.check_processes()
    run.check_sizes()
    # The violations are what it is for: nothing that becomes of the picture may hide them.
    try:
        run.draw()
        say(f"\nthe picture: {PICTURE}")
    except Exception as error:
        say(f"\nno picture: {error!r}")
    say(f"notes and logs: {FOLDER}")
    return run.violations


OPTIONS = {
    "--minutes": option(10.0, "that it sends for"),
    "--rate": option(100.0, "messages per second, about"),
    "--seed": option(random.randrange(10**6), "an earlier run's, for the same"),
    "--processes": option(2, "of the worker"),
    "--threads": option(8, "of each process"),
    "--without": {
        "action": "append", "choices": KINDS, "default": [], "metavar": "KIND",
        "help": f"leave a kind out; repeatable: {', '.join(KINDS)}",
    },
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(lab.main(soak, OPTIONS))
