"""`make chaos`: faults of the network, of RabbitMQ and of the processes, and where every message
went.

    python tools/chaos.py [--quick] [--only FAULT] [--mixed-minutes M] [--every S] [--rate N]
    [--seed N] [--kills N]

Each fault has a queue, a worker (`python -m kuyruk_worker -p 2`, in most), and two processes that
send numbered tasks to it from several threads: one by one, in batches, and waiting for the answer.
Each send and each run is written down (lab.py). Then comes the fault, alone; in the end all of
them, at random. One needs a cluster: three nodes, with quorum queues, and the one that leads the
queue is killed, three times (not with --quick); some of its tasks come back from a delay queue, some
fail for good. A row of the table:

    sent        messages that were sent: confirmed, or refused, that is, the send has raised
    refused     nobody knows of these: they may have run
    executed    different messages that have run to their end
    again       runs of messages that had run already. Explained is that by a fault that found the message on its way:
                its send, or a run of it that had not ended, or whose acknowledgement the broker had
                not on record yet (from a second before the fault until a second after it, when each
                process has heard of it)
    deleted     confirmed, and gone with the queue when that was deleted
    lost        confirmed, not deleted, and never run
    send        the longest send, in seconds, whether it returned or raised
    silence     the longest time, in seconds, in which no task began while a confirmed message waited and the broker ran
                (neither killed nor stopped). A fault of the network, or of the worker, is part of
                that time
    back        seconds from the end of the fault (the broker answers, the network works, the worker is started) until
                each process of the worker has begun a task; of the mixed faults: until any has, or
                the next fault comes

Exit code: 1 if a message was lost, or ran again without explanation, if a send took longer than
RABBIT_PUBLISH_TIMEOUT and a second, if a worker wasn't back in 10 seconds (of a half-open
connection: after the two heartbeats in which it notices), if a process was left behind, or an
answer was wrong. Others: see lab.py. Ctrl-C ends it, and what it has started. The same seed draws
the same mixed faults. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import bisect
import concurrent.futures
import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import lab
from amqpstorm.exception import AMQPChannelError
from amqpstorm.uri_connection import UriConnection
from lab import PATIENCE, RETURNED, Failure, Sent, say
from lab_tasks import DELAY, REJECT, VALUE_ERROR
from rabbitmq_node import RabbitmqCluster, RabbitmqNode
from tcp_proxy import TcpProxy

#: Where everything is until the next run: notes and logs. Git ignores it.
FOLDER = os.path.join(lab.ROOT, "build", "chaos")

PLANNED = (VALUE_ERROR, REJECT)  #: What a task raises on purpose.
PROCESSES = 2  #: Of a worker,
THREADS = 4  #: and of each of these.
TICK = 0.1  #: Seconds between two looks.
BACK_LIMIT = 10.0  #: Seconds in which a worker is to be back.
SEND_MARGIN = 1.0  #: Seconds that a send may take beyond RABBIT_PUBLISH_TIMEOUT.
#: Seconds before a fault in which the broker may not have on record yet that a task has ended;
SETTLING = 1.0
NOTICING = 1.0  #: and after it, until each process has heard of it, on a machine that is busy.
MIXED_PAUSE = 2.0  #: Seconds between two mixed faults, at least.
#: Likewise, of a cluster. RabbitMQ sends a dead letter again after 180 seconds if its queue hasn't
#: taken it (x-dead-letter-strategy at-least-once), and doesn't count it as a message till then.
CLUSTER_PATIENCE = 200.0
BACKLOG = 1.0  #: Seconds without a worker, so that a queue holds something when it is deleted.
#: Milliseconds between two looks of the broker for what exceeds consumer_timeout; else 60000.
CHANNEL_TICK = 1000
ALARM, NO_ALARM = "0", "0.4"  #: Of its memory, from which on the broker blocks those that publish.


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds."""

    publish_timeout: float = 10
    heartbeat: int = 10
    consumer_timeout: float = 10
    before: float = 2  #: Of calm before a fault,
    after: float = 3  #: and when the worker is back.
    outage: float = 3  #: That the broker is down.
    stall: float = 14  #: Longer than a send may take, as the next two.
    freeze: float = 20
    alarm: float = 14
    at_once: int = 1  #: How many faults that don't concern the broker are tried at once.


FULL = Pace()
QUICK = Pace(
    2, 4, 4, before=0.5, after=0.5, outage=0.2, stall=3.5, freeze=3.5, alarm=3.5, at_once=4
)


class Unwanted(Exception):
    """After Ctrl-C: of a thread whose work isn't wanted any more."""


@dataclass
class Strike:
    """A fault that has happened."""

    name: str
    began: float
    ended: float = 0.0
    #: Until when it may have found messages on their way; None: it mustn't cost any a second run.
    until: float | None = None
    #: Seconds that a worker may take to notice it.
    unnoticed: float = 0.0
    #: Until each process was back, if that was waited for; and whether that was in vain.
    back: float | None = None
    late: bool = False


class Deletion(NamedTuple):
    """Of a queue."""

    began: float
    ended: float
    messages: int  #: That it held, with those that were delivered and not acknowledged.


# --- A fault's own world -----------------------------------------------------------


class Lane(lab.Run):
    """A queue, a worker for it, two processes that send, and the proxy that the worker and one of
    those use."""

    def __init__(
        self, node: RabbitmqNode, fault: Fault, pace: Pace, seed: int, rate: float,
        cluster: RabbitmqCluster | None = None, folder: str = FOLDER, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        """node: one of the cluster's, if there is one."""
        queue = f"chaos.{fault.slug}"
        settings: dict[str, object] = {
            "KUYRUK_RABBIT_HEARTBEAT": pace.heartbeat,
            "KUYRUK_RABBIT_PUBLISH_TIMEOUT": pace.publish_timeout,
        }
        if cluster:
            settings["KUYRUK_QUEUE_ARGUMENTS"] = {"x-queue-type": "quorum"}
        super().__init__(node, queue, os.path.join(folder, fault.slug), **settings)
        self.cluster, self.fault, self.pace = cluster, fault, pace
        self._url = cluster.url if cluster else node.url
        self.dice = random.Random(f"{seed} {fault.name}")
        self.forgotten = 0  #: Delayed tasks that came back only when somebody looked.
        self.strikes: list[Strike] = []
        #: Times in which the broker didn't run.
        self.outages: list[tuple[float, float]] = []
        self.deletions: list[Deletion] = []
        self.over = threading.Event()  # by Ctrl-C
        self._rate, self._patience = str(rate / 2), patience

    def __enter__(self) -> Lane:
        self.proxy = TcpProxy(self.node.url)
        return self

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__()
        self.proxy.close()

    # -- its processes

    def start(self) -> None:
        options = ["--embed"] * self.fault.embedded + ["--various"] * self.fault.cluster
        self.senders = [
            self.start_sender(self.near, "chaos_sender.py", "--rate", self._rate, *options),
            self.start_sender(self._url, "chaos_sender.py", "--rate", self._rate),
        ]
        self.worker = self.senders[0]
        if not self.fault.embedded:
            self.renew_worker()
        if not self.wait_until(lambda: len(self.ledger.last_begin) >= self.processes, PATIENCE):
            raise Failure(f"{self.fault.name}: the worker doesn't begin, see {self.folder}")
        self.nap(self.pace.before)

    @property
    def near(self) -> str:
        """The URL that the worker and one sender use."""
        return self.proxy.url if self.fault.proxied else self._url

    @property
    def processes(self) -> int:
        """How many there are to be that run tasks."""
        return 1 if self.fault.embedded else PROCESSES

    def renew_worker(self) -> None:
        self.start_worker(self.near, PROCESSES, THREADS)

    def consumers(self) -> list[int]:
        """Return the processes that run tasks."""
        return [self.worker.pid] if self.fault.embedded else self.worker.children()

    # -- time

    def nap(self, seconds: float) -> None:
        if self.over.wait(seconds):
            raise Unwanted

    def wait_until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.ledger.follow()
            if condition():
                return True
            self.nap(TICK)
        return False

    def hurt(self, begin: Callable[[], object], seconds: float, end: Callable[[], object]) -> None:
        """Do the one, and after a while the other, whatever happens."""
        begin()
        try:
            self.nap(seconds)
        finally:
            end()

    # -- the fault

    def strike(self, fault: Fault) -> None:
        strike = Strike(fault.name, time.monotonic())
        self.strikes.append(strike)
        fault.cause(self)
        strike.ended = time.monotonic()
        strike.unnoticed = 2.0 * self.pace.heartbeat if fault.silent else 0.0
        strike.until = strike.ended + strike.unnoticed + NOTICING if fault.cuts else None

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.outages.append((began, time.monotonic()))

    def delete_queue(self) -> None:
        """While nothing consumes it: so the number of unacknowledged messages stays."""
        unacknowledged = int(self.node.queues("messages_unacknowledged")[self.queue])
        with UriConnection(self.node.url) as connection, connection.channel() as channel:
            began = time.monotonic()
            ready = channel.queue.delete(self.queue)["message_count"]
            self.deletions.append(Deletion(began, time.monotonic(), ready + unacknowledged))

    def wait_until_back(self) -> None:
        strike = self.strikes[-1]
        limit = BACK_LIMIT + strike.unnoticed

        def missing() -> list[int]:
            begins = self.ledger.last_begin
            return [pid for pid in self.consumers() if begins.get(pid, 0) <= strike.ended]

        def are_all_back() -> bool:
            return len(self.consumers()) == self.processes and not missing()

        if self.wait_until(are_all_back, limit + SEND_MARGIN):
            strike.back = time.monotonic() - strike.ended
        else:
            strike.late = True
            text = f"not back in {limit:g} s: {missing() or 'a process is missing'}"
            self.violations.append(text)

    # -- the end

    def finish(self) -> None:
        for sender in self.senders:
            sender.tell("stop")
        self.drain(self._follow, self._is_done, self._patience)
        if not self.fault.embedded:
            self.stop_worker()
        for sender in self.senders:
            self.expect_code("a sender", sender.close_input())
        self.account()

    def _follow(self) -> None:
        self.nap(2 * TICK)
        self.ledger.follow()
        if self.fault.cluster:
            self.ledger.read_failed(self.node.url, self.queue)

    def _is_done(self, seconds: float) -> bool:
        """Whether all that was confirmed has run."""
        if seconds <= SETTLING:
            return False
        owed = sum(map(self.is_owed, self.ledger.unfinished()))
        if owed and self.fault.cluster and seconds > self._patience / 2:
            self.forgotten = max(self.forgotten, owed)
            self._look_at(f"{self.queue}.delay.{DELAY * 1000:.0f}")
        return not owed

    def _look_at(self, queue: str) -> None:
        """Ask for a message, and have it go where its time was to send it.

        RabbitMQ 3.10 can forget the timer of a quorum queue whose leader has changed. The messages
        stay in the queue, expired, until somebody asks for one."""
        with contextlib.suppress(AMQPChannelError), UriConnection(self.node.url) as connection:
            message = cast(Any, connection.channel().basic.get(queue))
            if message is not None:
                message.reject(requeue=False)  # which dead-letters it

    def delete_queues(self) -> None:
        with UriConnection(self.node.url) as connection, connection.channel() as channel:
            for suffix in ("", ".failed", f".delay.{DELAY * 1000:.0f}"):
                channel.queue.delete(f"{self.queue}{suffix}")

    def is_owed(self, sent: Sent) -> bool:
        """Its queue hasn't been deleted since its send began."""
        return all(sent.began > deletion.ended for deletion in self.deletions)


# --- The faults --------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """`cause` returns when it is over: when the broker runs again, and so on."""

    name: str
    cause: Callable[[Lane], object]
    broker: bool = False  #: Concerns all connections of the broker.
    proxied: bool = False  #: Needs the proxy.
    embedded: bool = False  #: Needs a service with a worker in it.
    cluster: bool = False  #: Needs three nodes, whose quorum queues go on without one of them.
    silent: bool = False  #: Is only noticed by missing heartbeats.
    cuts: bool = True  #: May make messages run again.
    mixes: bool = True

    @property
    def slug(self) -> str:
        return "-".join(self.name.replace(",", " ").split())


def kill_child(lane: Lane) -> None:
    os.kill(lane.dice.choice(lane.worker.children()), signal.SIGKILL)


def kill_worker(lane: Lane) -> None:
    lane.worker.kill()
    lane.renew_worker()


def restart_worker(lane: Lane) -> None:
    lane.stop_worker()
    lane.renew_worker()


def kill_broker(lane: Lane) -> None:
    # It would forget a queue that was declared a moment ago, as after a deletion.
    lane.node.flush()
    restart_broker(lane, RabbitmqNode.kill)


def restart_broker(lane: Lane, end: Callable[[RabbitmqNode], None] = RabbitmqNode.halt) -> None:
    with lane.outage():
        end(lane.node)
        lane.nap(lane.pace.outage)
        lane.node.start()


def freeze_broker(lane: Lane) -> None:
    with lane.outage():
        lane.hurt(lane.node.pause, lane.pace.freeze, lane.node.resume)


def raise_alarm(lane: Lane) -> None:
    limit = functools.partial(lane.node.ctl, "set_vm_memory_high_watermark")
    lane.hurt(lambda: limit(ALARM), lane.pace.alarm, lambda: limit(NO_ALARM))


def stall(lane: Lane, direction: str) -> None:
    lane.hurt(lambda: lane.proxy.stall(direction), lane.pace.stall, lane.proxy.resume)


def delete_queue(lane: Lane) -> None:
    """With messages in it, and the worker on it."""
    lane.worker.signal(signal.SIGSTOP)
    try:
        lane.nap(BACKLOG)
        lane.delete_queue()
    finally:
        lane.worker.signal(signal.SIGCONT)


def delete_cached_queue(lane: Lane) -> None:
    """Without a worker that would declare it anew: only senders that believe it to be there."""
    lane.stop_worker()
    lane.nap(BACKLOG)
    lane.delete_queue()
    lane.nap(BACKLOG)
    lane.renew_worker()


def exceed_consumer_timeout(lane: Lane) -> None:
    """The broker closes the channel of a process. Mixed, other faults may be faster."""
    seconds, cuts = 2 * lane.pace.consumer_timeout, count_cuts(lane.ledger)
    lane.senders[1].tell(f"hold {seconds}")
    has_closed = functools.partial(lane.wait_until, lambda: count_cuts(lane.ledger) > cuts, seconds)
    if lane.fault is not MIXED and not has_closed():
        lane.violations.append("the broker hasn't closed the channel")


def count_cuts(ledger: lab.Ledger) -> int:
    """Return how many calls were interrupted."""
    return sum(count for outcome, count in ledger.ends.items() if is_cut(outcome))


def is_cut(outcome: str | None) -> bool:
    return outcome not in (None, RETURNED, *PLANNED)


def fork_sender(lane: Lane) -> None:
    lane.senders[0].tell("fork")


def kill_leading_node(lane: Lane) -> None:
    assert lane.cluster is not None
    lane.cluster.leader_of(lane.queue).kill()


_ALL = (
    Fault("child killed", kill_child),
    Fault("worker killed", kill_worker),
    Fault("worker stopped", restart_worker, cuts=False),
    Fault("broker killed", kill_broker, broker=True),
    Fault("broker stopped", restart_broker, broker=True),
    Fault("broker frozen", freeze_broker, broker=True),
    Fault(
        "connections closed",
        lambda lane: lane.node.ctl("close_all_connections", "chaos"),
        broker=True,
    ),
    Fault("memory alarm", raise_alarm, broker=True, cuts=False),
    Fault("TCP reset", lambda lane: lane.proxy.cut(), proxied=True),
    Fault("TCP stall up", lambda lane: stall(lane, "up"), proxied=True),
    Fault("TCP stall down", lambda lane: stall(lane, "down"), proxied=True),
    Fault("half-open", lambda lane: lane.proxy.swallow(), proxied=True, silent=True),
    Fault("queue deleted", delete_queue),
    Fault("queue deleted, cached", delete_cached_queue),
    Fault("consumer_timeout", exceed_consumer_timeout),
    Fault("fork", fork_sender, cuts=False),
    Fault("fork, embedded", fork_sender, embedded=True, cuts=False, mixes=False),
    Fault("leading node killed", kill_leading_node, broker=True, cluster=True, mixes=False),
)
FAULTS = {fault.name: fault for fault in _ALL}
#: Not a fault: the lane of all of them.
MIXED = Fault("mixed", lambda lane: None, broker=True, proxied=True, mixes=False)


# --- The account -------------------------------------------------------------------


class Row(NamedTuple):
    """Of the table; see the top of this file."""

    fault: str
    sent: int
    confirmed: int
    refused: int
    executed: int
    again: int
    deleted: int
    lost: int
    send: float
    silence: float
    back: float

    @classmethod
    def head(cls) -> str:
        return f"{'fault':22}" + "".join(f"{name:>10}" for name in cls._fields[1:])

    def __str__(self) -> str:
        cells = (f"{cell:10.1f}" if isinstance(cell, float) else f"{cell:10}" for cell in self[1:])
        return f"{self.fault:22}" + "".join(cells)


class Account:
    """Of a lane whose processes have ended."""

    def __init__(self, lane: Lane) -> None:
        self._lane, self._ledger, self._pace = lane, lane.ledger, lane.pace
        missing = self._ledger.unfinished()
        self._deleted = [sent for sent in missing if not lane.is_owed(sent)]
        # More than there were in a queue aren't gone with it: the oldest must have been lost
        # before.
        excess = max(0, len(self._deleted) - self._most_deleted())
        lost = sorted(self._deleted, key=lambda sent: sent.ended)[:excess]
        self._deleted = [sent for sent in self._deleted if sent not in lost]
        self.lost = lost + [sent for sent in missing if lane.is_owed(sent)]
        self._again = self._ledger.again()

    def _most_deleted(self) -> int:
        """Return how many the queues held, and how many were just about to come."""
        deletions = self._lane.deletions
        coming = sum(
            any(_overlap((sent.began, sent.ended), (each.began, each.ended)) for each in deletions)
            for sent in self._deleted
        )
        return coming + sum(deletion.messages for deletion in deletions)

    def row(self) -> Row:
        ledger, add = self._ledger, self._lane.add
        sent, runs = ledger.sent, [number for number in ledger.calls if ledger.runs(number)]
        unexplained = itertools.filterfalse(self._explains, self._again)
        add("lost", map(str, self.lost))
        add("ran again without a reason", map(self._describe, unexplained))
        add("wrong", [str(each) for each in sent.values() if "WRONG" in each.outcome])
        add("failed", [f"{number}: {ledger.failed[number]}" for number in self._misplaced()])
        if self._lane.fault.embedded:
            others = ledger.last_begin.keys() - {self._lane.worker.pid}
            add("a fork of the service has run tasks", map(str, others))
        confirmed = len(ledger.confirmed)
        if not confirmed:
            self._lane.violations.append("no send was confirmed at all")
        return Row(
            fault=self._lane.fault.name,
            sent=len(sent),
            confirmed=confirmed,
            refused=len(sent) - confirmed,
            executed=len({*runs, *ledger.failed}),
            again=sum(len(runs) - 1 for runs in self._again.values()),
            deleted=len(self._deleted),
            lost=len(self.lost),
            send=self._longest_send(),
            silence=self._longest_silence(),
            back=self._longest_back(),
        )

    def _misplaced(self) -> Iterator[str]:
        """Yield what has failed, and is none of those that fail on purpose."""
        for number, exceptions in self._ledger.failed.items():
            outcomes = {call.outcome for call in self._ledger.calls.get(number, ())}
            if set(exceptions) - {VALUE_ERROR} or outcomes - {VALUE_ERROR, None}:
                yield number

    def delays(self) -> str:
        """Return how late the tasks were that came back from a delay."""
        late = []
        for number, calls in self._ledger.calls.items():
            planned = [call for call in calls if call.outcome in PLANNED]
            if planned and (runs := self._ledger.runs(number)):
                late.append(runs[0].began - planned[0].ended - DELAY)
        text = f"{len(late)} came back from a delay, the latest {max(late, default=0):.1f} s late"
        return f"{text}; RabbitMQ forgot {self._lane.forgotten}, till somebody looked"

    # -- messages that ran again

    def _describe(self, number: str) -> str:
        runs = self._again[number]
        before = [strike for strike in self._lane.strikes if strike.began < runs[0].ended]
        return f"{self._ledger.sent.get(number)}, ran {runs}; before that: {before[-1:]}"

    def _explains(self, number: str) -> bool:
        """A fault found it on its way: while it was sent, or before the broker had its
        acknowledgement."""
        on_its_way = [(run.began, run.ended + SETTLING) for run in self._again[number][:-1]]
        if sent := self._ledger.sent.get(number):
            on_its_way.append((sent.began, sent.ended))
        return any(_overlap(span, hit) for span in on_its_way for hit in self._hits())

    def _hits(self) -> Iterator[Span]:
        for strike in self._lane.strikes:
            if strike.until is not None and strike.name != "consumer_timeout":
                yield strike.began, strike.until
        for call in itertools.chain(*self._ledger.calls.values()):
            if is_cut(call.outcome):  # by consumer_timeout, if by nothing else
                yield call.ended, call.ended

    # -- times

    def _longest_send(self) -> float:
        longest = max(self._ledger.sent.values(), key=lambda sent: sent.ended - sent.began)
        seconds = longest.ended - longest.began
        if seconds > self._pace.publish_timeout + SEND_MARGIN:
            self._lane.violations.append(f"a send took {seconds:.1f} s: {longest}")
        return seconds

    def _longest_silence(self) -> float:
        """See the top of this file."""
        #: What becomes of the number of messages that wait while the broker runs; 0: a task begins.
        changes = [(at, 0) for at in self._ledger.begins()]
        for start, stop in self._waits():
            changes += [(start, 1), (stop, -1)] if start < stop else []
        everything = len(changes)
        for start, stop in self._lane.outages:
            changes += [(start, -everything), (stop, everything)]
        longest, since, waiting = 0.0, 0.0, 0
        for at, change in sorted(changes):
            longest = max(longest, at - since if waiting > 0 else 0.0)
            if change == 0 or waiting <= 0:
                since = at
            waiting += change
        return longest

    def _waits(self) -> Iterator[Span]:
        """Yield from when each message was there until its first call that has ended by itself."""
        end = max(sent.ended for sent in self._ledger.sent.values())
        for sent in self._ledger.confirmed:
            calls = self._ledger.calls.get(sent.number, ())
            begins = [call.began for call in calls if call.outcome in (RETURNED, *PLANNED)]
            gone = [each.began for each in self._lane.deletions if sent.began <= each.ended]
            yield sent.ended, next(iter(begins or gone), end)

    def _longest_back(self) -> float:
        """If not each process was waited for: until the next task began, unless another fault came
        in between."""
        begins, strikes = self._ledger.begins(), self._lane.strikes
        for strike, following in itertools.zip_longest(strikes, strikes[1:]):
            if strike.back is None:
                later = begins[bisect.bisect(begins, strike.ended) :][:1] or [strike.ended]
                begin = min(later[0], following.began) if following else later[0]
                strike.back = begin - strike.ended
                limit = BACK_LIMIT + strike.unnoticed
                if strike.back > limit and not strike.late:
                    text = f"not back in {limit:g} s, but after {strike.back:.1f} s"
                    self._lane.violations.append(f"{strike.name}: {text}")
        return max(strike.back or 0.0 for strike in strikes)


Span = tuple[float, float]


def _overlap(a: Span, b: Span) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


# --- The run -----------------------------------------------------------------------


class Chaos:
    """All lanes, on one broker."""

    def __init__(self, node: RabbitmqNode, arguments: argparse.Namespace) -> None:
        self._node, self._arguments = node, arguments
        self._pace = QUICK if arguments.quick else FULL
        self._over = threading.Event()
        self.violations: list[str] = []
        self._told = threading.Lock()  # guards the list, and the output

    def run(self) -> None:
        faults = [FAULTS[name] for name in self._arguments.only]
        lanes = [self._make_lane(fault) for fault in faults if not fault.cluster]
        minutes = self._arguments.mixed_minutes
        mixed = self._make_lane(MIXED) if minutes else None
        self._prepare([*lanes, *([mixed] if mixed else [])])
        say(Row.head())
        try:
            for is_alone in (False, True):
                group = [lane for lane in lanes if lane.fault.broker == is_alone]
                self._run_at_once(group, 1 if is_alone else self._pace.at_once)
            for fault in faults:
                if fault.cluster:
                    self._run_on_cluster(fault)
            if mixed:
                self._run_lane(mixed, self._strike_often)
        finally:
            self._over.set()

    def _run_on_cluster(self, fault: Fault) -> None:
        with RabbitmqCluster() as cluster:
            lane = self._make_lane(fault, cluster)
            strike = functools.partial(strike_in_turn, kills=self._arguments.kills)
            account = self._run_lane(lane, strike)
        say(f"{'':24}{account.delays()}")

    def _make_lane(self, fault: Fault, cluster: RabbitmqCluster | None = None) -> Lane:
        node = cluster.nodes[0] if cluster else self._node
        patience = CLUSTER_PATIENCE if cluster else PATIENCE
        seed, rate = self._arguments.seed, self._arguments.rate
        lane = Lane(node, fault, self._pace, seed, rate, cluster, patience=patience)
        lane.over = self._over
        return lane

    def _prepare(self, lanes: Iterable[Lane]) -> None:
        """The queues well before the faults: a broker that is killed forgets what was declared just
        before."""
        with UriConnection(self._node.url) as connection, connection.channel() as channel:
            for lane in lanes:
                channel.queue.declare(lane.queue, durable=True)
        self._node.ctl(
            "eval", f"application:set_env(rabbit, channel_tick_interval, {CHANNEL_TICK})."
        )
        self._node.flush()

    def _run_at_once(self, lanes: list[Lane], count: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(count) as executor:
            futures = [executor.submit(self._run_lane, lane, self._strike_once) for lane in lanes]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._over.set()
                raise

    def _run_lane(self, lane: Lane, strike: Callable[[Lane], None]) -> Account:
        with lane:
            lane.start()
            strike(lane)
            lane.finish()
        account = Account(lane)
        with self._told:
            say(str(account.row()))
            if lane.fault is MIXED:
                describe_strikes(lane)
            self.violations += [f"{lane.fault.name}: {text}" for text in lane.violations]
        return account

    def _strike_once(self, lane: Lane) -> None:
        lane.strike(lane.fault)
        lane.wait_until_back()
        lane.nap(self._pace.after)

    def _strike_often(self, lane: Lane) -> None:
        every = self._arguments.every
        due = time.monotonic()
        end = due + self._arguments.mixed_minutes * 60
        for fault in self._draw(lane.dice):
            # Those that last end before the next is due; each alone they have lasted longer.
            length = lane.dice.uniform(MIXED_PAUSE / 4, max(every - MIXED_PAUSE, MIXED_PAUSE))
            lane.pace = replace(
                self._pace, outage=length / 4, stall=length, freeze=length, alarm=length
            )
            lane.strike(fault)
            due = max(due + every, time.monotonic() + MIXED_PAUSE)
            if due >= end:
                break
            lane.wait_until(lambda: False, due - time.monotonic())
        lane.wait_until_back()
        lane.nap(self._pace.after)

    def _draw(self, dice: random.Random) -> Iterator[Fault]:
        """Each once, in random order, and again and again."""
        faults = [each for each in FAULTS.values() if each.mixes]
        while True:
            yield from dice.sample(faults, len(faults))


def strike_in_turn(lane: Lane, kills: int) -> None:
    """Let the leading nodes fall, one after the other.

    Each strike is over when its node has fallen: the others go on at once. It is back before the
    next one falls."""
    assert lane.cluster is not None
    for _ in range(kills):
        lane.strike(lane.fault)
        lane.wait_until_back()
        lane.nap(lane.pace.outage)
        lane.cluster.start()
        lane.nap(lane.pace.after)


def fail_over(
    cluster: RabbitmqCluster, folder: str, kills: int, rate: float, patience: float
) -> tuple[Row, list[str]]:
    """Kill the leader of a queue several times; for a test. Return what came of it, and the
    violations. Its queues are deleted in the end."""
    pace = replace(FULL, before=QUICK.before, outage=1.0, after=QUICK.after)
    fault = FAULTS["leading node killed"]
    with Lane(cluster.nodes[0], fault, pace, 0, rate, cluster, folder, patience) as lane:
        lane.start()
        strike_in_turn(lane, kills)
        lane.finish()
        lane.delete_queues()
    return Account(lane).row(), lane.violations


def describe_strikes(lane: Lane) -> None:
    say(f"\n{'':4}at     for    back   the mixed faults")
    for strike in lane.strikes:
        at, length = strike.began - lane.strikes[0].began, strike.ended - strike.began
        say(f"{at:6.1f} {length:6.1f} {strike.back or 0:7.1f}   {strike.name}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Faults, alone and mixed, and where every message went."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="shorter, several at once, no cluster: < 3 minutes")
    text = f"this fault only; repeatable: {', '.join(FAULTS)}. None of them: --only none"
    add("--only", action="append", choices=[*FAULTS, "none"], metavar="FAULT", help=text)
    text = "of mixed faults (default: 3; --quick: 0.3; --only: 0)"
    add("--mixed-minutes", type=float, metavar="M", help=text)
    text = "seconds from a mixed fault to the next (default: 10; --quick: 5)"
    add("--every", type=float, metavar="S", help=text)
    add("--rate", type=float, default=100, help="messages per second, about (default: 100)")
    add("--kills", type=int, default=3, metavar="N", help="of leading nodes (default: 3)")
    text = "an earlier run's, for the same mixed faults"
    add("--seed", type=int, default=random.randrange(10**6), help=text)
    arguments = parser.parse_args()
    if arguments.mixed_minutes is None:
        arguments.mixed_minutes = 0 if arguments.only else 0.3 if arguments.quick else 3
    arguments.every = arguments.every or (5 if arguments.quick else 10)
    default = [name for name, fault in FAULTS.items() if not (arguments.quick and fault.cluster)]
    arguments.only = [name for name in arguments.only or default if name != "none"]
    return arguments


def chaos(arguments: argparse.Namespace) -> list[str]:
    """Return the violations."""
    began, pace = time.monotonic(), QUICK if arguments.quick else FULL
    settings = f"RABBIT_PUBLISH_TIMEOUT {pace.publish_timeout:g}, RABBIT_HEARTBEAT {pace.heartbeat}"
    say(f"--seed {arguments.seed}; {settings}\n")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with RabbitmqNode([f"consumer_timeout = {pace.consumer_timeout * 1000:.0f}"]) as node:
        run = Chaos(node, arguments)
        run.run()
    say(f"\n{time.monotonic() - began:.0f} seconds; notes and logs: {FOLDER}")
    return run.violations


if __name__ == "__main__":
    options = parse_arguments()
    sys.exit(lab.main("chaos", lambda: chaos(options)))
