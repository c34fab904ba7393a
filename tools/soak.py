"""`make soak`: a worker under a mixed load for minutes or hours, and where every single message
went.

    python tools/soak.py [--minutes M] [--rate N] [--seed N] [--processes N] [--threads N]
    [--without KIND]

Starts a private RabbitMQ and `python -m kuyruk_worker lab_tasks -p 2 -t 8`, and sends it, from
several threads, what lab_tasks.py has: tasks that return, raise, recover, reject, exceed their
time limit, hang in C code, bring their process down. Of a part the result is waited for. What is
checked in the end:

- Each message ended where its kind has to. None is lost, none is misplaced.
- None ran again without need: the only reason is a process that was brought down while the message
  was in its hands. That a process with a stuck thread is replaced is none.
- Each caller got what its kind answers with.
- Each end of a process has its reason. The process that watches over the others stays small, and
  its open files few.
- SIGTERM ends all of it, with exit code 0, and no process is left.

It draws memory, threads, open files and throughput over time. Ctrl-C ends the sending early, and
then checks all the same. The same seed sends the same kinds; which of them meet isn't repeatable.
Linux only (/proc). Exit codes: see lab.py.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import itertools
import os
import random
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterable

import lab
import lab_tasks
from lab import CONFIRMED, RETURNED, Call, Sample, Sent, say
from lab_tasks import CRASHED, DIES, KINDS, QUEUE, answer, app
from rabbitmq_node import RabbitmqNode

import kuyruk

#: Where everything is until the next run: notes, the worker's log, the picture. Git ignores it.
FOLDER = os.path.join(lab.ROOT, "build", "soak")
LOG = os.path.join(FOLDER, "worker.log")
PICTURE = os.path.join(FOLDER, "soak.png")

CLIENTS = 8  #: Threads that send.
WAITED_FOR = 0.3  #: The part of the messages whose result is waited for.
TICK = 1.0  #: Seconds between two looks at the worker's processes.
PATIENCE = 60.0  #: Seconds that a result is waited for; and that nothing may happen at the end.
QUIET = 3.0  #: Seconds without news after which all may be done: no task takes longer.
#: Seconds before a process's death in which it may not have settled yet what has ended.
SETTLING = 1.0
PARENT_MEMORY = 15.0  #: MiB that the process that watches over the others may take.


# --- The account of every message ----------------------------------------------


class Ledger(lab.Ledger):
    """With verdicts. The way of what was sent is its kind."""

    #: In the order of the table. From the third on they are violations.
    VERDICTS = ("as expected", "again: explained", "unexplained", "misplaced", "lost")

    def deaths(self) -> dict[int, float]:
        """Return the processes that tasks have brought down, and when."""
        dying = [c for calls in self.calls.values() for c in calls if c.outcome == DIES]
        return {c.pid: c.ended for c in sorted(dying, key=lambda call: -call.ended)}

    def judge(self, number: str, deaths: dict[int, float]) -> str:
        """Return one of the VERDICTS."""
        kind = KINDS[self.sent[number].way]
        wanted = [] if kind.failed is None else [kind.failed]
        calls, failed = self.calls.get(number, []), self.failed.get(number, [])
        outcomes = [call.outcome for call in calls]
        if set(failed) - set(wanted):
            return "misplaced"
        if kind.calls[-1] not in outcomes or (wanted and not failed):
            return "lost"
        if kind.failed == CRASHED:  # how often it was called is reported, see `Results.crashes`
            return "as expected" if failed == wanted else "unexplained"
        if outcomes == list(kind.calls) and failed == wanted:
            return "as expected"
        return "again: explained" if any(was_cut(c, deaths) for c in calls) else "unexplained"

    def describe(self, number: str) -> str:
        calls = self.calls.get(number, ())
        text = ", ".join(f"{c.outcome} in {c.pid} at {c.began:.2f}" for c in calls)
        failed = self.failed.get(number, [])
        return f"{self.sent[number].way} {number}: {text or 'no call'}; failed: {failed}"


def was_cut(call: Call, deaths: dict[int, float]) -> bool:
    """Whether its process was brought down by another task, while it ran or before the broker knew
    that it had ended."""
    death = deaths.get(call.pid)
    return death is not None and (call.outcome is None or call.ended > death - SETTLING)


# --- The clients ---------------------------------------------------------------


class Clients(lab.Senders):
    """Threads that send tasks at random times, and wait for the results of some."""

    def __init__(self, ledger: Ledger, rate: float, seed: int, without: Iterable[str]) -> None:
        self.answers: list[str] = []  # what those got that waited
        self.problems: list[str] = []
        self._ledger = ledger
        self._pause = CLIENTS / rate
        self._numbers = itertools.count(1)
        kinds = {name: kind for name, kind in KINDS.items() if name not in without}
        common = sum(kind.weight for kind in kinds.values()) or 1
        self._weights = {
            name: k.weight / common + k.per_minute / (60 * rate) for name, k in kinds.items()
        }
        super().__init__(functools.partial(self._send_on, f"{seed} {i}") for i in range(CLIENTS))

    def _send_on(self, seed: str, over: threading.Event) -> None:
        dice = random.Random(seed)
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            [name] = dice.choices(list(self._weights), list(self._weights.values()))
            self._send(next(self._numbers), name, dice.random(), wait=dice.random() < WAITED_FOR)
            # After a result that was long in coming it makes up for one second, not for all.
            due = max(due, time.monotonic() - 1) + dice.expovariate(1 / self._pause)

    def _send(self, number: int, name: str, chance: float, wait: bool) -> None:
        kind, began = KINDS[name], time.monotonic()
        patience, outcome = PATIENCE if wait else None, CONFIRMED
        try:
            result = kind.task.send_to_queue((number, chance), wait_result=patience)
            got = RETURNED if result == answer(number, chance) else f"the result {result!r:.80}"
        except kuyruk.RemoteException as error:
            got = error.type
        except kuyruk.KuyrukError as error:
            got = repr(error)
            if isinstance(error, kuyruk.BrokerError):  # nobody knows whether it has arrived
                outcome, wait = got, True
        self._ledger.sent[str(number)] = Sent(str(number), name, began, time.monotonic(), outcome)
        if wait:
            self.answers.append(got)
            if got not in kind.replies:
                wanted = " or ".join(kind.replies)
                self.problems.append(f"{name} {number}: its sender got {got}, not {wanted}")


# --- The run -------------------------------------------------------------------


class Run(lab.Run):
    """The load, the draining and the stop. Afterwards all that the results need is there."""

    def __init__(self, node: RabbitmqNode, options: argparse.Namespace) -> None:
        super().__init__(node, QUEUE, FOLDER, KUYRUK_WORKER_GRACE=1)
        self.ledger: Ledger = Ledger(FOLDER)
        self.options = options
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self.children: set[int] = set()  # that are there now
        self.gone: dict[int, float] = {}  # children, and when they were first missed
        # at, sent, calls that returned, calls that raised
        self.progress: list[tuple[float, int, int, int]] = []

    def run(self) -> None:
        options = self.options
        self.start_worker(self.node.url, options.processes, options.threads)
        self.clients = Clients(self.ledger, options.rate, options.seed, options.without)
        try:
            while time.monotonic() < self.began + options.minutes * 60 and self._works():
                self._tick()
        except KeyboardInterrupt:
            say("\nStopping early. Once more: without the results.")
        self.clients.over.set()
        if not self._works():
            app.close()  # whoever waits for a result is told
        while self.clients.run:
            self._tick()
        if not self.drain(self._tick, self._is_done, PATIENCE):
            text = f"messages left: {self._left()}, processes: {len(self.children)}"
            self.violations.append(f"nothing happens any more, but it isn't in order; {text}")
        if not self._works():
            self.violations.append("the worker has ended by itself")
        self.stop_worker()
        self.account()

    def _works(self) -> bool:
        return self.worker.code is None

    def _tick(self) -> None:
        time.sleep(TICK)
        now, children = time.monotonic(), set(self.worker.children())
        self.gone |= dict.fromkeys(self.children - children, now)
        self.children = children
        found = [Sample.of(pid) for pid in (self.worker.pid, *sorted(children))]
        samples = [sample for sample in found if sample is not None]
        self.samples += samples
        self.ledger.follow()
        ends = self.ledger.ends
        returned, raised = ends[RETURNED], ends.total() - ends[RETURNED]
        self.progress.append((now, len(self.ledger.sent), returned, raised))
        text = f"{now - self.began:4.0f} s  sent {len(self.ledger.sent)}  calls returned "
        text += f"{returned}, raised {raised}  processes gone {len(self.gone)}  MiB "
        lab.say_progress(text + " ".join(f"{sample.memory:.0f}" for sample in samples))

    def _is_done(self, seconds: float) -> bool:
        """Whether the broker has no message any more, but for those that have failed."""
        whole = len(self.children) == self.options.processes
        return not self._works() or (seconds > QUIET and whole and not self._left())

    def _left(self) -> dict[str, int]:
        counts = {name: int(count) for name, count in self.node.queues("messages").items()}
        return {n: count for n, count in counts.items() if count and not n.endswith(".failed")}


# --- The results ---------------------------------------------------------------


class Results:
    """Of a run that has ended: tables, a picture, and more violations."""

    def __init__(self, run: Run) -> None:
        self._run, self._ledger, self._parent_pid = run, run.ledger, run.worker.pid
        self._deaths = run.ledger.deaths()
        self.violations = run.violations
        self._samples: dict[int, list[Sample]] = {self._parent_pid: []}
        for sample in run.samples:
            self._samples.setdefault(sample.pid, []).append(sample)
        self._parent, *children = self._samples.values()
        self._children = sorted(itertools.chain(*children))

    def messages(self) -> None:
        table: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in KINDS}
        found: dict[str, list[str]] = {verdict: [] for verdict in Ledger.VERDICTS[2:]}
        for sent in self._ledger.confirmed:
            verdict = self._ledger.judge(sent.number, self._deaths)
            failed = len(self._ledger.failed.get(sent.number, ()))
            table[sent.way].update({verdict: 1, "sent": 1, ".failed": failed})
            if verdict in found:
                found[verdict].append(self._ledger.describe(sent.number))
        columns = ("sent", *Ledger.VERDICTS, ".failed")
        say(f"\n{'':12}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
        table["all"] = sum(table.values(), collections.Counter[str]())
        for name, counts in table.items():
            say(f"{name:12}" + "".join(f"{counts[column]:{len(column) + 3}}" for column in columns))
        for verdict, texts in found.items():
            self._run.add(verdict, texts)

    def replies(self) -> None:
        clients = self._run.clients
        waited, wrong = len(clients.answers), len(clients.problems)
        say(f"\nresults waited for: {waited}, wrong or missing: {wrong}")
        self._run.add("result", clients.problems)

    def crashes(self) -> None:
        """Count how many processes each `crash` has cost.

        RabbitMQ can deliver it again before that process is told of the last death; and a death
        counts for one that was just about to begin, too, without a note of it; and one at which two
        suspects ran proves nothing. So one less or two more are told, and aren't a violation."""
        crashes = [sent.number for sent in self._ledger.confirmed if sent.way == "crash"]
        counts = collections.Counter(len(self._ledger.calls.get(number, ())) for number in crashes)
        text = ", ".join(f"{count} in {n} processes" for n, count in sorted(counts.items()))
        say(f"each crash has run until it was given up: {text or 'there were none'}")
        if set(counts) - {2, 3, 4, 5}:
            self.violations.append(f"crashes ran in other than 3 processes: {dict(counts)}")

    def processes(self) -> None:
        # One that has lived too short to be sampled has noted what it began.
        ended = (self._ledger.last_begin.keys() | self._run.gone) - self._run.children
        # a worker that ends gracefully says so
        said = re.findall(r"(\d+) \S+: Stopped$", self._run.worker.text, re.MULTILINE)
        down = ended & self._deaths.keys()
        unexplained = ended - down - set(map(int, said))
        say(f"processes: {len(down)} brought down, {len(ended - down - unexplained)} replaced")
        steps = itertools.pairwise(self._ledger.begins())
        pause, at = max(((after - at, at) for at, after in steps), default=(0.0, 0.0))
        at -= self._run.began
        say(f"the longest time in which no call began: {pause:.1f} s, after {at:.0f} s\n")
        if unexplained:
            self.violations.append(f"processes ended without a reason: {sorted(unexplained)}")
        for who, samples in (("parent", self._parent), ("children", self._children)):
            for what in ("memory", "threads", "files"):
                values = [getattr(sample, what) for sample in samples] or [0]
                facts = (values[0], values[-1], min(values), max(values))
                names = ("first", "last", "min", "max")
                text = "".join(f"{n:>8}{v:6.1f}" for n, v in zip(names, facts, strict=True))
                say(f"{who:10}{what:8}{text}{'  MiB' if what == 'memory' else ''}")

    def parent(self) -> None:
        most = max((sample.memory for sample in self._parent), default=0.0)
        if most > PARENT_MEMORY:
            self.violations.append(f"the parent took {most:.1f} MiB, more than {PARENT_MEMORY:g}")
        files, part = [sample.files for sample in self._parent], len(self._parent) // 4
        # It has more open while it starts a child: they grow if all of the end is above all of the
        # beginning.
        if part and min(files[-part:]) > max(files[:part]):
            least, most = min(files[-part:]), max(files[:part])
            self.violations.append(f"the parent's open files grow: from {most} to {least}")

    def draw(self) -> None:
        # Not an import statement: only `make soak` installs it, and the types are checked without.
        figure = importlib.import_module("matplotlib.figure").Figure((14, 11), layout="constrained")
        panels = figure.subplots(4, 1, sharex=True)
        began, progress = self._run.began, self._run.progress
        names = {"memory": "resident memory, MiB", "threads": "threads", "files": "open files"}
        for panel, (name, label) in zip(panels, names.items(), strict=False):
            panel.set(ylabel=label)
            for pid, own in self._samples.items():
                times, values = [s.at - began for s in own], [getattr(s, name) for s in own]
                panel.plot(times, values, lw=1, color="black" if pid == self._parent_pid else None)
        for index, label in enumerate(("sent", "returned", "raised"), start=1):
            steps = itertools.pairwise((row[0], row[index]) for row in progress)
            rates = [(n - m) / (t - s) for (s, m), (t, n) in steps]
            panels[3].plot([row[0] - began for row in progress[1:]], rates, lw=1, label=label)
        panels[3].set(ylabel="calls per second", xlabel="seconds")
        panels[3].legend(loc="upper left", ncols=3)
        replaced = [at for pid, at in self._run.gone.items() if pid not in self._deaths]
        for panel in panels:
            panel.set_ylim(bottom=0)
            for moments, color in ((self._deaths.values(), "red"), (replaced, "blue")):
                for at in moments:
                    panel.axvline(at - began, color=color, lw=0.6, alpha=0.5)
        text = "kuyruk_worker: a line for each process, the parent's black; "
        figure.suptitle(f"{text}upright: red where one was brought down, blue where replaced")
        figure.savefig(PICTURE, dpi=90)


def parse_arguments() -> argparse.Namespace:
    text = "A worker under a mixed load, and where every message went."
    parser = argparse.ArgumentParser(description=text)
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="that it sends for (default: 10)")
    add("--rate", type=float, default=100, help="messages per second, about (default: 100)")
    add("--seed", type=int, default=random.randrange(10**6), help="an earlier run's, for the same")
    add("--processes", type=int, default=2, help="of the worker (default: 2)")
    add("--threads", type=int, default=8, help="of each process (default: 8)")
    text = f"leave a kind out; repeatable: {', '.join(KINDS)}"
    add("--without", action="append", choices=KINDS, default=[], metavar="KIND", help=text)
    return parser.parse_args()


def soak(arguments: argparse.Namespace) -> list[str]:
    """Return the violations."""
    # inherited: what crashes on purpose leaves no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say(f"{arguments.minutes:g} minutes, --seed {arguments.seed}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(RabbitmqNode())
        lab_tasks.config.RABBIT_URL = node.url
        stack.callback(app.close)
        run = stack.enter_context(Run(node, arguments))
        run.run()
    results = Results(run)
    results.messages()
    results.replies()
    results.crashes()
    results.processes()
    results.parent()
    results.draw()
    say(f"\nthe worker's log: {LOG}\nthe picture:      {PICTURE}")
    return results.violations


if __name__ == "__main__":
    options = parse_arguments()
    sys.exit(lab.main("soak", lambda: soak(options)))
