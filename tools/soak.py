"""`make soak`: a worker under a mixed load for minutes or hours, and where every single message
went.

    python tools/soak.py [--minutes M] [--rate N] [--seed N] [--processes N] [--threads N]
    [--without KIND]

Starts a private RabbitMQ and `python -m kuyruk_worker soak_tasks -p 2 -t 8`, and sends it, from
several threads, what soak_tasks.py has: tasks that return, raise, recover, reject, exceed their
time limit, hang in C code, bring their process down. Of a part the result is waited for. What is
checked in the end:

- Each message ended where its kind has to. None is lost, none is misplaced.
- None ran again without need: the only reason is a process that was brought down while the message
was in its hands.
  That a process with a stuck thread is replaced is none.
- Each caller got what its kind answers with.
- Each end of a process has its reason. The process that watches over the others stays small, and
its open files few.
- SIGTERM ends all of it, with exit code 0, and no process is left.

It draws memory, threads, open files and throughput over time. Ctrl-C ends the sending early, and
then checks all the same. The same seed sends the same kinds; which of them meet isn't repeatable.
Linux only (/proc).

Exit code: 0 if all is as it must be, 1 if not or if something broke, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import glob
import importlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from amqpstorm.exception import AMQPChannelError, AMQPError
from rabbitmq_node import RabbitmqError, RabbitmqNode

TOOLS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TOOLS)
sys.path.insert(0, ROOT)

import soak_tasks
from soak_tasks import CRASHED, KINDS, QUEUE, RETURNED, answer, app

import kuyruk

#: Where everything is until the next run: notes, the worker's log, the picture. Git ignores it.
FOLDER = os.path.join(ROOT, "build", "soak")
LOG = os.path.join(FOLDER, "worker.log")

CLIENTS = 8  #: Threads that send.
WAITED_FOR = 0.3  #: The part of the messages whose result is waited for.
TICK = 1.0  #: Seconds between two looks at the worker's processes.
#: Seconds that a result is waited for; that nothing at all may happen at the end; that a stop
#: takes.
PATIENCE = 60.0
QUIET = 3.0  #: Seconds without a note after which all may be done: no task takes longer.
#: Seconds before a process's death in which it may not have settled yet what has ended.
SETTLING = 1.0
PARENT_MEMORY = 15.0  #: MiB that the process that watches over the others may take.
SHOWN = 10  #: Violations of one sort that are printed.


# --- The account of every message ----------------------------------------------


@dataclass(slots=True)
class Call:
    """Of a task, in a worker process."""

    pid: int
    began: float
    ended: float = 0.0
    outcome: str | None = None


class Ledger:
    """What was sent, what the processes have noted about it, and what is in "soak.failed"."""

    #: Verdicts, in the order of the table. From the third on they are violations.
    VERDICTS = ("as expected", "again: explained", "unexplained", "misplaced", "lost")

    def __init__(self) -> None:
        self.sent: dict[int, str] = {}  # number: kind
        self.calls: dict[int, list[Call]] = {}  # number: in the order of their begin
        self.ends: collections.Counter[str] = collections.Counter()  # of calls, by their outcome
        self.deaths: dict[int, float] = {}  # process: when a task brought it down
        self.failed: dict[int, list[str]] = {}  # number: exceptions
        self.last_news = time.monotonic()
        self._read: collections.Counter[str] = collections.Counter()  # bytes of each file

    def follow(self) -> None:
        """Read what was noted since the last time."""
        for path in glob.glob(f"{FOLDER}/notes/*"):
            with open(path, "rb") as file:
                file.seek(self._read[path])
                lines = file.read().splitlines(keepends=True)
            for line in lines:
                # else half written: another time, unless its process has died in it
                if line.endswith(b"\n"):
                    self._read[path] += len(line)
                    self._enter(int(os.path.basename(path)), *line.decode().split())

    def _enter(self, pid: int, at: str, number: str, event: str) -> None:
        self.last_news = time.monotonic()
        calls = self.calls.setdefault(int(number), [])
        if event == "begins":
            calls.append(Call(pid, float(at)))
            calls.sort(key=lambda call: call.began)
        elif event == "dies":
            self.deaths.setdefault(pid, float(at))
        else:
            call = next(
                call for call in reversed(calls) if call.pid == pid and call.outcome is None
            )
            call.ended, call.outcome = float(at), event
            self.ends[event] += 1

    def read_failed(self) -> None:
        # nothing has failed: no queue
        with contextlib.suppress(AMQPChannelError), app.channel() as channel:
            count = channel.queue.declare(f"{QUEUE}.failed", passive=True)["message_count"]
            channel.basic.consume(queue=f"{QUEUE}.failed", no_ack=True)
            for message in itertools.islice(channel.build_inbound_messages(), count):
                number = json.loads(str(message.body))["args"][0]
                exception = message.properties["headers"]["x-kuyruk-exception"]
                self.failed.setdefault(number, []).append(exception)

    def judge(self, number: int) -> str:
        """One of the VERDICTS."""
        kind = KINDS[self.sent[number]]
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
        return "again: explained" if any(map(self._was_cut, calls)) else "unexplained"

    def _was_cut(self, call: Call) -> bool:
        """Its process was brought down by another task, while it ran or before the broker knew that
        it had ended."""
        death = self.deaths.get(call.pid)
        return death is not None and (call.outcome is None or call.ended > death - SETTLING)

    def describe(self, number: int) -> str:
        calls = ", ".join(
            f"{c.outcome} in {c.pid} at {c.began:.2f}" for c in self.calls.get(number, ())
        )
        return f"{self.sent[number]} {number}: {calls or 'no call'}; failed: {self.failed.get(number, [])}"


# --- The clients ---------------------------------------------------------------


class Clients:
    """Threads that send tasks at random times, and wait for the results of some."""

    def __init__(self, ledger: Ledger, rate: float, seed: int, without: Iterable[str]) -> None:
        self.over = threading.Event()
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
        seeds = [f"{seed} {i}" for i in range(CLIENTS)]
        self.threads = [
            threading.Thread(target=self._run, args=(own,), daemon=True) for own in seeds
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, seed: str) -> None:
        dice = random.Random(seed)
        due = time.monotonic()
        while not self.over.wait(max(0.0, due - time.monotonic())):
            [name] = dice.choices(list(self._weights), list(self._weights.values()))
            self._send(next(self._numbers), name, dice.random(), wait=dice.random() < WAITED_FOR)
            # After a result that was long in coming it makes up for one second, not for all.
            due = max(due, time.monotonic() - 1) + dice.expovariate(1 / self._pause)

    def _send(self, number: int, name: str, chance: float, wait: bool) -> None:
        kind = KINDS[name]
        self._ledger.sent[number] = name
        try:
            result = kind.task.send_to_queue(
                (number, chance), wait_result=PATIENCE if wait else None
            )
            got = RETURNED if result == answer(number, chance) else f"the result {result!r:.80}"
        except kuyruk.RemoteException as error:
            got = error.type
        except kuyruk.KuyrukError as error:
            got = repr(error)
            if isinstance(error, kuyruk.BrokerError):
                del self._ledger.sent[number]  # nobody knows whether it has arrived
                wait = True
        if wait:
            self.answers.append(got)
            if got not in kind.replies:
                self.problems.append(
                    f"{name} {number}: its sender got {got}, not {' or '.join(kind.replies)}"
                )


# --- The worker, and what its processes take -----------------------------------


class Sample(NamedTuple):
    at: float  #: time.monotonic()
    pid: int
    memory: float  #: MiB, resident.
    threads: int
    files: int  #: That are open.


class WorkerProcesses:
    """`python -m kuyruk_worker -p ...`: the process that watches, and its children."""

    def __init__(self, url: str, processes: int, threads: int) -> None:
        self.samples: list[Sample] = []
        self.children: set[int] = set()  # that are there now
        self.gone: dict[int, float] = {}  # children, and when they were first missed
        command = [
            sys.executable,
            "-m",
            "kuyruk_worker",
            "soak_tasks",
            "-p",
            str(processes),
            "-t",
            str(threads),
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KUYRUK_")}
        environment |= {"KUYRUK_RABBIT_URL": url, "KUYRUK_WORKER_GRACE": "1"}
        environment |= {"SOAK_FOLDER": FOLDER, "PYTHONPATH": TOOLS}
        # of its own session: `leftovers` knows them by it, and a Ctrl-C is for us
        with open(LOG, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def look(self) -> list[Sample]:
        now = time.monotonic()
        children = set(children_of(self.process.pid))
        self.gone |= dict.fromkeys(self.children - children, now)
        self.children = children
        found = [
            sample
            for pid in (self.process.pid, *sorted(children))
            if (sample := look_at(now, pid)) is not None
        ]
        self.samples += found
        return found

    def stop(self) -> int | None:
        """Returns its exit code; None if it doesn't end."""
        if self.runs:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        return self.process.poll()

    def leftovers(self) -> list[int]:
        """Processes of its session, zombies included."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(ProcessLookupError):
                found += [pid] if os.getsid(pid) == self.process.pid else []
        return found

    def kill(self) -> None:
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children_of(pid: int) -> list[int]:
    pids: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            pids += map(int, file.read().split())
    return pids


def look_at(now: float, pid: int) -> Sample | None:
    """None if it has ended."""
    with contextlib.suppress(OSError, KeyError), open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
        memory = int(status["VmRSS"].split()[0]) / 1024
        return Sample(now, pid, memory, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))
    return None


# --- The run -------------------------------------------------------------------


class Run:
    """The load, the draining and the stop. Afterwards all that the results need is there."""

    def __init__(self, node: RabbitmqNode, arguments: argparse.Namespace) -> None:
        self.began = self._told = time.monotonic()
        self.ledger = Ledger()
        # at, sent, calls that returned, calls that raised
        self.progress: list[tuple[float, int, int, int]] = []
        self.violations: list[str] = []
        self._node = node
        self._arguments = arguments
        self.worker = WorkerProcesses(node.url, arguments.processes, arguments.threads)

    def run(self) -> None:
        self.clients = Clients(
            self.ledger, self._arguments.rate, self._arguments.seed, self._arguments.without
        )
        try:
            while time.monotonic() < self.began + self._arguments.minutes * 60 and self.worker.runs:
                self._tick()
        except KeyboardInterrupt:
            say("\nStopping early. Once more: without the results.")
        self.clients.over.set()
        if not self.worker.runs:
            app.close()  # whoever waits for a result is told
        while any(thread.is_alive() for thread in self.clients.threads):
            self._tick()
        self._drain()
        self._stop()
        self.ledger.follow()
        self.ledger.read_failed()

    def _tick(self) -> None:
        time.sleep(TICK)
        samples = self.worker.look()
        self.ledger.follow()
        ends, now = self.ledger.ends, time.monotonic()
        self.progress.append(
            (now, len(self.ledger.sent), ends[RETURNED], ends.total() - ends[RETURNED])
        )
        if sys.stdout.isatty() or now > self._told + 30:
            self._told = now
            _, sent, returned, raised = self.progress[-1]
            text = f"{now - self.began:4.0f} s  sent {sent}  calls returned {returned}, raised {raised}  "
            text += f"deaths {len(self.ledger.deaths)}, gone {len(self.worker.gone)}  MiB "
            text += " ".join(f"{sample.memory:.0f}" for sample in samples)
            width = shutil.get_terminal_size().columns - 1
            say(f"\r\033[K{text[:width]}", end="") if sys.stdout.isatty() else say(text)

    def _drain(self) -> None:
        """Until the broker has no message any more, but for those that have failed."""
        while self.worker.runs:
            self._tick()
            quiet = time.monotonic() - self.ledger.last_news
            left = self._left() if quiet > QUIET else None
            if left == {} and len(self.worker.children) == self._arguments.processes:
                return
            if quiet > PATIENCE:
                text = f"messages left: {left}, processes: {len(self.worker.children)}"
                self.violations.append(f"nothing happens any more, but it isn't in order; {text}")
                return

    def _left(self) -> dict[str, int]:
        rows = [
            line.split() for line in self._node.ctl("list_queues", "name", "messages").splitlines()
        ]
        counts = {name: int(count) for name, count in rows if count.isdigit()}
        return {
            name: count for name, count in counts.items() if count and not name.endswith(".failed")
        }

    def _stop(self) -> None:
        if not self.worker.runs:
            self.violations.append("the worker has ended by itself")
        began = time.monotonic()
        code = self.worker.stop()
        say(
            f"\n\nSIGTERM: the worker ended with exit code {code}, after {time.monotonic() - began:.1f} s"
        )
        if code != 0:
            self.violations.append(f"the worker's exit code is {code}, not 0")
        if left := self.worker.leftovers():
            self.violations.append(f"the worker has left processes behind: {left}")


# --- The results ---------------------------------------------------------------


class Results:
    """Of a run that has ended: tables, a picture, and more violations."""

    def __init__(self, run: Run) -> None:
        self._run, self._ledger, self._worker = run, run.ledger, run.worker
        self.violations = run.violations
        self._samples: dict[int, list[Sample]] = {run.worker.process.pid: []}
        for sample in run.worker.samples:
            self._samples.setdefault(sample.pid, []).append(sample)
        self._parent, *children = self._samples.values()
        self._children = sorted(itertools.chain(*children))

    def messages(self) -> None:
        table: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in KINDS}
        found: dict[str, list[str]] = {verdict: [] for verdict in Ledger.VERDICTS[2:]}
        for number, name in self._ledger.sent.items():
            verdict = self._ledger.judge(number)
            table[name].update(
                {verdict: 1, "sent": 1, ".failed": len(self._ledger.failed.get(number, ()))}
            )
            if verdict in found:
                found[verdict].append(f"{verdict}: {self._ledger.describe(number)}")
        columns = ("sent", *Ledger.VERDICTS, ".failed")
        say(f"\n{'':12}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
        for name, counts in [
            *table.items(),
            ("all", sum(table.values(), collections.Counter[str]())),
        ]:
            say(f"{name:12}" + "".join(f"{counts[column]:{len(column) + 3}}" for column in columns))
        for violations in found.values():
            self._add(violations)

    def replies(self) -> None:
        problems = self._run.clients.problems
        say(
            f"\nresults waited for: {len(self._run.clients.answers)}, wrong or missing: {len(problems)}"
        )
        self._add(problems)

    def _add(self, violations: list[str]) -> None:
        self.violations += violations[:SHOWN]
        if len(violations) > SHOWN:
            self.violations.append(f"... and {len(violations) - SHOWN} more like this")

    def crashes(self) -> None:
        """How many processes each `crash` has cost. RabbitMQ can deliver it again before that
        process is told of the last death; and a death counts for one that was just about to begin,
        too, without a note of it. So one more or less is told, and isn't a violation."""
        crashes = [number for number, name in self._ledger.sent.items() if name == "crash"]
        counts = collections.Counter(len(self._ledger.calls.get(number, ())) for number in crashes)
        text = ", ".join(f"{count} in {n} processes" for n, count in sorted(counts.items()))
        say(f"each crash has run until it was given up: {text or 'there were none'}")
        if set(counts) - {2, 3, 4}:
            self.violations.append(f"crashes ran in other than 3 processes: {dict(counts)}")

    def processes(self) -> None:
        # One that has lived too short to be sampled has a file of notes.
        ended = {
            *map(int, os.listdir(f"{FOLDER}/notes")),
            *self._worker.gone,
        } - self._worker.children
        # a worker that ends gracefully says so
        with open(LOG, encoding="utf-8", errors="replace") as log:
            stopped = {
                int(match[1])
                for match in re.finditer(r"(\d+) \S+: Stopped$", log.read(), re.MULTILINE)
            }
        down = ended & set(self._ledger.deaths)
        unexplained = ended - down - stopped
        say(f"processes: {len(down)} brought down, {len(ended - down - unexplained)} replaced")
        begins = sorted(call.began for calls in self._ledger.calls.values() for call in calls)
        pause, at = max(
            ((after - at, at) for at, after in itertools.pairwise(begins)), default=(0.0, 0.0)
        )
        say(
            f"the longest time in which no call began: {pause:.1f} s, after {at - self._run.began:.0f} s\n"
        )
        if unexplained:
            self.violations.append(f"processes ended without a reason: {sorted(unexplained)}")
        for who, samples in (("parent", self._parent), ("children", self._children)):
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

    def parent(self) -> None:
        most = max((sample.memory for sample in self._parent), default=0.0)
        if most > PARENT_MEMORY:
            self.violations.append(f"the parent took {most:.1f} MiB, more than {PARENT_MEMORY:g}")
        files, part = [sample.files for sample in self._parent], len(self._parent) // 4
        # It has more open while it starts a child: they grow if all of the end is above all of the
        # beginning.
        if part and min(files[-part:]) > max(files[:part]):
            self.violations.append(
                f"the parent's open files grow: from {max(files[:part])} to {min(files[-part:])}"
            )

    def draw(self, path: str) -> None:
        # Not an import statement: only `make soak` installs it, and the types are checked without.
        figure = importlib.import_module("matplotlib.figure").Figure(
            figsize=(14, 11), layout="constrained"
        )
        panels = figure.subplots(4, 1, sharex=True)
        self._draw_processes(panels[:3])
        times = self._since([at for at, *_ in self._run.progress])
        for index, label in enumerate(
            ("sent", "calls that returned", "calls that raised"), start=1
        ):
            steps = itertools.pairwise((row[0], row[index]) for row in self._run.progress)
            panels[3].plot(
                times[1:], [(n - m) / (t - s) for (s, m), (t, n) in steps], lw=1, label=label
            )
        panels[3].set(ylabel="per second", xlabel="seconds")
        panels[3].legend(loc="upper left", ncols=3)
        for panel in panels:
            self._mark(panel)
            panel.set_ylim(bottom=0)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
        figure.suptitle("kuyruk_worker: a line for each process", x=0.01, ha="left")
        figure.savefig(path, dpi=90)

    def _draw_processes(self, panels: Sequence[Any]) -> None:
        names = {"memory": "resident memory, MiB", "threads": "threads", "files": "open files"}
        for pid, own in self._samples.items():
            style = (
                {"color": "black", "label": "the parent"} if pid == self._worker.process.pid else {}
            )
            for panel, (what, name) in zip(panels, names.items(), strict=True):
                panel.plot(
                    self._since([s.at for s in own]),
                    [getattr(s, what) for s in own],
                    ".-",
                    ms=2,
                    lw=1,
                    **style,
                )
                panel.set_ylabel(name)

    def _mark(self, panel: Any) -> None:
        replaced = [at for pid, at in self._worker.gone.items() if pid not in self._ledger.deaths]
        marks = (
            ("brought down", "red", list(self._ledger.deaths.values())),
            ("replaced", "blue", replaced),
        )
        for label, color, moments in marks:
            for i, at in enumerate(self._since(moments)):
                panel.axvline(at, color=color, lw=0.6, alpha=0.5, label=label if i == 0 else None)

    def _since(self, moments: Sequence[float]) -> list[float]:
        return [at - self._run.began for at in moments]


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A worker under a mixed load, and where every message went."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10, help="that it sends for (default: 10)")
    add("--rate", type=float, default=100, help="messages per second, about (default: 100)")
    add(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="an earlier run's, for the same messages",
    )
    add("--processes", type=int, default=2, help="of the worker (default: 2)")
    add("--threads", type=int, default=8, help="of each process (default: 8)")
    text = f"leave a kind out; repeatable: {', '.join(KINDS)}"
    add("--without", action="append", choices=KINDS, default=[], metavar="KIND", help=text)
    add(
        "--plot",
        default=os.path.join(FOLDER, "soak.png"),
        metavar="FILE",
        help="default: %(default)s",
    )
    return parser.parse_args()


def soak(arguments: argparse.Namespace) -> list[str]:
    """Returns the violations."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("notes", "marks"):
        os.makedirs(os.path.join(FOLDER, name))
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(RabbitmqNode())
        soak_tasks.config.RABBIT_URL = node.url
        stack.callback(app.close)
        run = Run(node, arguments)
        stack.callback(run.worker.kill)
        stack.callback(run.worker.stop)
        run.run()
    results = Results(run)
    for part in (
        results.messages,
        results.replies,
        results.crashes,
        results.processes,
        results.parent,
    ):
        part()
    results.draw(arguments.plot)
    return results.violations


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # inherited: what crashes on purpose leaves no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say(f"{arguments.minutes:g} minutes, --seed {arguments.seed}")
    try:
        violations = soak(arguments)
    except (RabbitmqError, kuyruk.KuyrukError, AMQPError, OSError) as error:
        say(f"\nsoak: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nsoak: interrupted; what it started has ended")
        return 1
    say(f"\nthe worker's log: {LOG}\nthe picture:      {arguments.plot}\n")
    say("\n".join(["VIOLATIONS:", *violations] if violations else ["No violations."]))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
