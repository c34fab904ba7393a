"""A RabbitMQ cluster loses the node that leads the queue, again and again: is a task lost?

    python tools/failover.py [--kills N] [--rate N] [--senders N] [--processes N]

Starts three private nodes as a cluster, and `python -m kuyruk_worker failover` with quorum queues.
Threads send it numbered tasks, with confirms. Meanwhile the node that leads the queue is killed
(SIGKILL), is down for a while, and is started again; then the node that leads it by then, and so
on. Most tasks only note that they ran; some fail or reject their first run and come back from a
delay queue, some fail for good and end in "<queue>.failed". In the end each task that was confirmed
has to be where it belongs. From other programs:

    with RabbitmqCluster() as cluster:
        report = failover.run(cluster, kills=3, rate=100)
        assert not report.lost

It is also the module that the worker imports. Exit code: 0 if nothing is lost, 1 if something is or
the run broke.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

TOOLS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TOOLS)
sys.path[:0] = [ROOT, TOOLS]

from amqpstorm.exception import AMQPChannelError
from rabbitmq_node import RabbitmqCluster, RabbitmqError, RabbitmqNode

import kuyruk

QUEUE = "failover"
DELAY = 0.5  #: Seconds that a task which comes back is away.
DELAY_QUEUE = f"{QUEUE}.delay.{DELAY * 1000:.0f}"
DOWN = 1.0  #: Seconds that a node is down, at least: its start comes to that.
#: Seconds that nothing may happen while something is missing. RabbitMQ sends a dead letter again
#: after 180 seconds if its queue hasn't taken it (x-dead-letter-strategy at-least-once), and
#: doesn't count it among the messages till then.
PATIENCE = 200.0
STOP_TIMEOUT = 20.0  #: Seconds that the worker gets to stop.
#: What is shown of its log.
LIFE_CYCLE = re.compile("kuyruk-supervisor|kuyruk-connection|MainThread|Defect")

# --- The tasks -----------------------------------------------------------------

config = kuyruk.Config()
app = kuyruk.Kuyruk(config)
_folder = os.environ.get("FAILOVER_FOLDER", "")  # only the worker has it
_notes = -1
if _folder:
    config.from_env_vars()
    _notes = os.open(f"{_folder}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _is_first_run(number: int) -> bool:
    """In whatever process."""
    with contextlib.suppress(FileExistsError), open(f"{_folder}/marks/{number}", "x") as mark:
        mark.write(f"{time.monotonic():.4f}")
        return True
    return False


@app.task(queue=QUEUE)
def note(number: int) -> None:
    os.write(_notes, f"{time.monotonic():.4f} {number}\n".encode())  # one write: lines don't mix


@app.task(queue=QUEUE, fail_delay=DELAY)
def come_back(number: int) -> None:
    if _is_first_run(number):
        raise ValueError("the first run fails")
    note.f(number)


@app.task(queue=QUEUE, reject_delay=DELAY)
def reject(number: int) -> None:
    if _is_first_run(number):
        raise kuyruk.Reject
    note.f(number)


@app.task(queue=QUEUE)
def fail(number: int) -> None:
    raise ValueError("it fails for good")


#: By the last digit of a task's number.
KINDS = (come_back, reject, fail, *[note] * 7)


# --- The account -----------------------------------------------------------------


@dataclass
class Report:
    """What a run has come to. Seconds; `lost` and `duplicates` hold the tasks' numbers."""

    sent: int = 0
    confirmed: int = 0
    #: By the error's text.
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    executed: int = 0  #: Of those, once or more: ran to the end, or are in the failed queue.
    lost: list[int] = field(default_factory=list)  #: Confirmed, and neither.
    forgotten: int = 0  #: Delayed tasks that came back only when somebody looked at their queue.
    duplicates: list[int] = field(default_factory=list)  #: Ran to the end more than once.
    longest_send: float = 0.0
    #: Between two tasks that ran, of any worker, while the senders were sending.
    longest_silence: float = 0.0
    returned: int = 0  #: Tasks that came back from a delay,
    latest_return: float = 0.0  #: and how much later than asked the latest did.
    #: From the end of the sending until nothing was missing, or nothing happened any more.
    settled_after: float = 0.0
    kills: list[str] = field(default_factory=list)  #: The nodes, in their order.

    def __str__(self) -> str:
        lines = [f"killed {', '.join(node.partition('@')[0] for node in self.kills)}"]
        lines.append(
            f"{self.sent} sent, {self.confirmed} confirmed, {self.refused.total()} refused"
        )
        lines.append(
            f"{self.executed} executed, {len(self.duplicates)} of them again, {len(self.lost)} lost"
        )
        lines.append(
            f"longest send {self.longest_send:.1f} s, longest silence {self.longest_silence:.1f} s"
        )
        lines.append(
            f"{self.returned} came back from their delay, the latest {self.latest_return:.1f} s late"
        )
        lines += [f"{self.forgotten} delayed ones were forgotten by RabbitMQ"] * bool(
            self.forgotten
        )
        lines.append(f"all settled {self.settled_after:.1f} s after the last send")
        lines += [f"  {count} x {text}" for text, count in self.refused.most_common(5)]
        lines += [f"  lost: {self.lost[:20]}"] * bool(self.lost)
        return "\n".join(lines)


class _Account:
    """Who sent what, and what the worker has noted in its folder."""

    def __init__(self, folder: Path) -> None:
        self.report = Report()
        self.confirmed: set[int] = set()
        self.sent_until = 0.0  # time.monotonic()
        self._folder = folder
        #: Guards all of it: the senders write.
        self._lock = threading.Lock()

    def number(self) -> int:
        with self._lock:
            self.report.sent += 1
            return self.report.sent

    def enter(self, number: int, began: float, error: Exception | None) -> None:
        with self._lock:
            report = self.report
            report.longest_send = max(report.longest_send, time.monotonic() - began)
            if error is None:
                self.confirmed.add(number)
            else:
                report.refused[f"{type(error).__name__}: {error}"] += 1

    def notes(self) -> list[tuple[float, int]]:
        """(when, number) of each task that has run to its end."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self._folder / "notes").read_text().splitlines()
            return [(float(when), int(number)) for when, number in map(str.split, lines)]
        return []

    def close(self, failed: set[int]) -> Report:
        notes, report = self.notes(), self.report
        times = collections.Counter(number for _, number in notes)
        moments = sorted(when for when, _ in notes if when < self.sent_until)
        report.confirmed = len(self.confirmed)
        report.executed = len(set(times) | failed)
        report.lost = sorted(self.confirmed - set(times) - failed)
        report.duplicates = sorted(number for number, count in times.items() if count > 1)
        report.longest_silence = max((b - a for a, b in itertools.pairwise(moments)), default=0.0)
        left = {
            int(mark.name): float(mark.read_text()) for mark in (self._folder / "marks").iterdir()
        }
        # of several, the first
        back = {number: when for when, number in reversed(notes) if number in left}
        report.returned = len(back)
        report.latest_return = max(
            (when - left[number] - DELAY for number, when in back.items()), default=0.0
        )
        return report


# --- The run ---------------------------------------------------------------------


def run(
    cluster: RabbitmqCluster,
    kills: int = 3,
    rate: float = 100,
    senders: int = 4,
    processes: int = 1,
    patience: float = PATIENCE,
    say: Callable[[str], object] = lambda text: None,
    **settings: Any,
) -> Report:
    """Kill the leader of the queue `kills` times, under a load of `rate` tasks a second.

    patience: seconds, see PATIENCE. settings: configuration keys, for senders and workers. Its
    queues are deleted in the end, and so is everything else.
    """
    values = {
        "RABBIT_HOST": cluster.hosts,
        "QUEUE_ARGUMENTS": {"x-queue-type": "quorum"},
        **settings,
    }
    config.from_dict(values)
    with tempfile.TemporaryDirectory(prefix="kuyruk-failover-") as name:
        folder = Path(name)
        (folder / "marks").mkdir()
        account = _Account(folder)
        with app, _worker(folder, processes, values):
            with _senders(account, rate, senders):
                for _ in range(kills):
                    time.sleep(DOWN)
                    account.report.kills.append(kill_leader(cluster, QUEUE, say=say).name)
                time.sleep(DOWN)
            account.sent_until = time.monotonic()
            failed = _wait_for_the_rest(account, patience)
        report = account.close(failed)
        if report.lost:
            say("\n".join(filter(LIFE_CYCLE.search, (folder / "log").read_text().splitlines())))
    return report


def kill_leader(
    cluster: RabbitmqCluster,
    queue: str,
    down: float = DOWN,
    say: Callable[[str], object] = lambda text: None,
) -> RabbitmqNode:
    """Kill the node that leads a quorum queue, start it `down` seconds later, and wait until the
    cluster is whole: until the next may be killed. Returns that node."""
    node = cluster.leader_of(queue)
    say(f"{node.name} leads {queue!r}: killed")
    node.kill()
    time.sleep(down)
    node.start()
    cluster.wait_until_whole()
    return node


@contextlib.contextmanager
def _worker(folder: Path, processes: int, settings: dict[str, Any]) -> Iterator[None]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUYRUK_")}
    environment |= {f"KUYRUK_{key}": str(value) for key, value in settings.items()}
    environment |= {"FAILOVER_FOLDER": str(folder), "PYTHONPATH": f"{ROOT}:{TOOLS}"}
    module = note.name.removesuffix(".note")  # "tools.failover" where it was imported as that
    command = [sys.executable, "-m", "kuyruk_worker", module, "-p", str(processes)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield
            process.terminate()
            code = process.wait(STOP_TIMEOUT)
            if code:
                raise RuntimeError(
                    f"the worker has ended with {code}:\n{(folder / 'log').read_text()}"
                )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _senders(account: _Account, rate: float, count: int) -> Iterator[None]:
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(count / rate):
            number, began, problem = account.number(), time.monotonic(), None
            try:
                KINDS[number % 10](number)
            except kuyruk.BrokerError as error:
                problem = error
            account.enter(number, began, problem)

    threads = [threading.Thread(target=send, name=f"sender-{n}") for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _wait_for_the_rest(account: _Account, patience: float) -> set[int]:
    """Until all that is confirmed has ended, or nothing happens any more; returns what is in the
    failed queue."""
    began = since = time.monotonic()
    seen, failed = -1, set[int]()
    while time.monotonic() - since < patience:
        failed |= _take_failed()
        done = {number for _, number in account.notes()} | failed
        if account.confirmed <= done:
            break
        if len(done) > seen:
            seen, since = len(done), time.monotonic()
        elif time.monotonic() - since > patience / 2:
            account.report.forgotten = max(account.report.forgotten, len(account.confirmed - done))
            _look_at(DELAY_QUEUE)
        time.sleep(0.2)
    account.report.settled_after = time.monotonic() - began
    with app.channel() as channel:
        for name in (QUEUE, f"{QUEUE}.failed", DELAY_QUEUE):
            channel.queue.delete(name)
    return failed


def _look_at(queue: str) -> None:
    """RabbitMQ 3.10 can forget the timer of a quorum queue whose leader has changed. The messages
    stay in the queue, expired, until somebody asks for one."""
    with contextlib.suppress(AMQPChannelError), app.channel() as channel:
        channel.basic.get(queue)  # and back it goes, with the channel


def _take_failed() -> set[int]:
    numbers = set()
    # nothing has failed: no queue
    with contextlib.suppress(AMQPChannelError), app.channel() as channel:
        while (message := channel.basic.get(f"{QUEUE}.failed", no_ack=True)) is not None:
            numbers.add(json.loads(cast(Any, message).body)["args"][0])
    return numbers


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: see the top of this file."""
    parser = argparse.ArgumentParser(
        description="Kills the nodes of a RabbitMQ cluster, one after the other."
    )
    parser.add_argument("--kills", type=int, default=6, metavar="N", help="how many times")
    parser.add_argument(
        "--rate", type=float, default=100, metavar="N", help="tasks sent in a second"
    )
    parser.add_argument("--senders", type=int, default=4, metavar="N", help="threads that send")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the worker")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="S",
        help="for what is missing at the end",
    )
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    try:
        with RabbitmqCluster() as cluster:
            say(f"cluster of {len(cluster.nodes)} at {cluster.hosts}")
            report = run(cluster, **vars(options), say=say)
    except (RabbitmqError, RuntimeError) as error:
        print(f"failover: {error}", file=sys.stderr)
        return 1
    print(report)
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
