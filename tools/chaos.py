"""`make chaos`: faults of network, RabbitMQ and processes, and where every message went.

    python tools/chaos.py [--quick] [--only FAULT] [--mixed-minutes M] [--seed N] ...

Each fault has a queue, a worker (`python -m kuyruk_worker -p 2`, in most), and two processes that
send numbered tasks to it (lab_sender.py). Each send and each call is written down (lab.py). Then
the fault comes, alone; in the end all of them, at random. One needs a cluster (not with --quick):
the node that leads a quorum queue is killed, again and again; some of its tasks come back from a
delay queue, some fail for good. docs/reliability.md has the table, and says what its columns are.

What is wrong, and ends it with 1: a message was lost, or ran again though no fault found it on its
way; a send took longer than RABBIT_PUBLISH_TIMEOUT and a second; a worker wasn't back in 10
seconds (of a half-open connection: after the two heartbeats in which it notices); a process was
left behind; an answer was wrong. The same seed draws the same mixed faults. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import lab
from amqpstorm.exception import AMQPChannelError
from amqpstorm.uri_connection import UriConnection
from lab import PATIENCE, RETURNED, Failure, Hit, Sent, option, say
from lab_tasks import AGAIN, DELAY, LOST, MISPLACED, REJECT, VALUE_ERROR, judge
from rabbitmq_node import RabbitmqCluster, RabbitmqNode
from tcp_proxy import TcpProxy

#: Where everything is until the next run: notes and logs. Git ignores it.
FOLDER = os.path.join(lab.ROOT, "build", "chaos")

PLANNED = (VALUE_ERROR, REJECT)  #: What a task raises on purpose.
#: Of the messages to a cluster, a fifth comes back from a delay or fails.
VARIOUS = {"work": 12, "come_back": 1, "reject": 1, "fail": 1}
PROCESSES = 2  #: Of a worker,
THREADS = 4  #: and of each of these.
TICK = 0.1  #: Seconds between two looks.
BACK_LIMIT = 10.0  #: Seconds in which a worker is to be back.
SEND_MARGIN = 1.0  #: Seconds that a send may take beyond RABBIT_PUBLISH_TIMEOUT.
#: Seconds after a fault until each process has heard of it, on a machine that is busy.
NOTICING = 1.0
MIXED_PAUSE = 2.0  #: Seconds between two mixed faults, at least.
#: Seconds without news after which a cluster's messages count as lost. RabbitMQ sends a dead letter
#: again after 180 seconds if its queue hasn't taken it (x-dead-letter-strategy at-least-once), and
#: doesn't count it as a message till then.
CLUSTER_PATIENCE = 200.0
BACKLOG = 1.0  #: Seconds without a worker, so that a queue holds something when it is deleted.
#: Of the broker: milliseconds between two looks for what exceeds consumer_timeout; else 60000.
ADVANCED = "[{rabbit, [{channel_tick_interval, 1000}]}]."
#: The part of its memory from which on the broker blocks those that publish.
ALARM, NO_ALARM = "0", "0.4"


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


FULL = Pace()
QUICK = Pace(2, 4, 4, before=0.5, after=0.5, outage=0.2, stall=3.5, freeze=3.5, alarm=3.5)


@dataclass
class Strike:
    """A fault that has happened."""

    fault: Fault
    began: float
    ended: float = 0.0
    #: Until when it may have found messages on their way; None: it mustn't cost any a second call.
    until: float | None = None
    #: Seconds that a worker may take to notice it.
    unnoticed: float = 0.0
    #: Seconds until each process was back, or until the next fault was due.
    back: float = 0.0


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
        settings: dict[str, object] = {
            "KUYRUK_RABBIT_HEARTBEAT": pace.heartbeat,
            "KUYRUK_RABBIT_PUBLISH_TIMEOUT": pace.publish_timeout,
        }
        if cluster:
            settings["KUYRUK_QUEUE_ARGUMENTS"] = {"x-queue-type": "quorum"}
        super().__init__(node, f"chaos.{fault.slug}", os.path.join(folder, fault.slug), **settings)
        self.cluster, self.fault, self.pace = cluster, fault, pace
        self._url = cluster.url if cluster else node.url
        self.dice = random.Random(f"{seed} {fault.name}")
        self.forgotten = 0  #: Delayed tasks that came back only when somebody looked.
        self.strikes: list[Strike] = []
        self.deletions: list[Deletion] = []
        self._rate, self._patience = rate / 2, patience
        #: How many there are to be that run tasks.
        self.processes = 1 if fault.embedded else PROCESSES

    def __enter__(self) -> Lane:
        self.proxy = TcpProxy(self.node.url)
        #: The URL that the worker and one sender use.
        self.near = self.proxy.url if self.fault.proxied else self._url
        return self

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__()
        self.proxy.close()

    # -- its processes

    def start(self) -> None:
        kinds = ["--kinds", json.dumps(VARIOUS)] * self.fault.cluster
        embed = ["--embed"] * self.fault.embedded
        self.senders = [
            self.start_sender(self.near, "--rate", self._rate, *kinds, *embed),
            self.start_sender(self._url, "--rate", self._rate),
        ]
        self.worker = self.senders[0]
        if not self.fault.embedded:
            self.renew_worker()
        if not self.wait_until(lambda: len(self.ledger.last_begin) >= self.processes, PATIENCE):
            raise Failure(f"{self.fault.name}: the worker doesn't begin, see {self.folder}")
        time.sleep(self.pace.before)

    def renew_worker(self) -> None:
        self.start_worker(self.near, PROCESSES, THREADS)

    def consumers(self) -> list[int]:
        """Return the processes that run tasks."""
        return [self.worker.pid] if self.fault.embedded else self.worker.children()

    def wait_until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.ledger.follow()
            if condition():
                return True
            time.sleep(TICK)
        return False

    # -- the fault

    def strike(self, fault: Fault) -> None:
        strike = Strike(fault, time.monotonic())
        self.strikes.append(strike)
        fault.cause(self)
        strike.ended = time.monotonic()
        strike.unnoticed = 2.0 * self.pace.heartbeat if fault.silent else 0.0
        strike.until = strike.ended + strike.unnoticed + NOTICING if fault.cuts else None

    def hurt(self, begin: Callable[[], object], seconds: float, end: Callable[[], object]) -> None:
        """Do the one, and after a while the other, whatever happens."""
        begin()
        try:
            time.sleep(seconds)
        finally:
            end()

    def delete_queue(self) -> None:
        """Delete the queue."""
        # While nothing consumes it: so the number of unacknowledged messages stays.
        unacknowledged = int(self.node.queues("messages_unacknowledged")[self.queue])
        with UriConnection(self.node.url) as connection, connection.channel() as channel:
            began = time.monotonic()
            ready = channel.queue.delete(self.queue)["message_count"]
            self.deletions.append(Deletion(began, time.monotonic(), ready + unacknowledged))

    def wait_until_back(self, until: float = math.inf) -> None:
        """Wait until each process of the worker has begun a task since the fault."""
        # At most until the next fault is due, if there is one.
        strike, processes = self.strikes[-1], self.processes
        limit = BACK_LIMIT + strike.unnoticed

        def back() -> list[int]:
            begins = self.ledger.last_begin
            return [pid for pid in self.consumers() if begins.get(pid, 0) > strike.ended]

        seconds = min(strike.ended + limit, until) - time.monotonic()
        is_back = self.wait_until(lambda: len(back()) == processes, seconds)
        strike.back = time.monotonic() - strike.ended
        if not is_back and strike.ended + limit < until:
            text = f"after {limit:g} s {len(back())} of {processes} processes were back"
            self.violations.append(f"{strike.fault.name}: {text}")

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
        time.sleep(2 * TICK)
        self.ledger.follow()
        if self.fault.cluster:
            self.ledger.read_failed(self.node.url, self.queue)

    def missing(self) -> list[Sent]:
        """Return what was confirmed, and hasn't ended where it has to."""
        return [sent for sent in self.ledger.confirmed if judge(sent, self.ledger) == LOST]

    def _is_done(self, seconds: float) -> bool:
        """Whether all that was confirmed has run."""
        if seconds <= lab.SETTLING:
            return False
        owed = sum(map(self.is_owed, self.missing()))
        if owed and self.fault.cluster and seconds > self._patience / 2:
            self.forgotten = max(self.forgotten, owed)
            self._look_at(f"{self.queue}.delay.{DELAY * 1000:.0f}")
        return not owed

    def _look_at(self, queue: str) -> None:
        """Ask for a message, and have it go where its time was to send it."""
        # RabbitMQ 3.10 can forget the timer of a quorum queue whose leader has changed. The
        # messages stay in the queue, expired, until somebody asks for one.
        with contextlib.suppress(AMQPChannelError), UriConnection(self.node.url) as connection:
            message = cast(Any, connection.channel().basic.get(queue))
            if message is not None:
                message.reject(requeue=False)  # which dead-letters it

    def is_owed(self, sent: Sent) -> bool:
        """Whether its queue hasn't been deleted since its send began."""
        return all(sent.began > deletion.ended for deletion in self.deletions)


# --- The faults --------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """`cause` returns when it is over: when the broker runs again, and so on."""

    name: str
    cause: Callable[[Lane], object]
    proxied: bool = False  #: Needs the proxy.
    embedded: bool = False  #: Needs a service with a worker in it.
    cluster: bool = False  #: Needs three nodes, whose quorum queues go on without one of them.
    outage: bool = False  #: The broker doesn't run meanwhile.
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
    end(lane.node)
    time.sleep(lane.pace.outage)
    lane.node.start()


def freeze_broker(lane: Lane) -> None:
    lane.hurt(lane.node.pause, lane.pace.freeze, lane.node.resume)


def raise_alarm(lane: Lane) -> None:
    limit = functools.partial(lane.node.ctl, "set_vm_memory_high_watermark")
    lane.hurt(lambda: limit(ALARM), lane.pace.alarm, lambda: limit(NO_ALARM))


def stall(lane: Lane, direction: str) -> None:
    lane.hurt(lambda: lane.proxy.stall(direction), lane.pace.stall, lane.proxy.resume)


def delete_queue(lane: Lane) -> None:
    """Delete it with messages in it, and the worker on it."""
    # The worker stands still, so that the queue holds something.
    lane.worker.signal(signal.SIGSTOP)
    try:
        time.sleep(BACKLOG)
        lane.delete_queue()
    finally:
        lane.worker.signal(signal.SIGCONT)


def delete_cached_queue(lane: Lane) -> None:
    """Delete it without a worker that would declare it anew."""
    # There are only senders that believe it to be there.
    lane.stop_worker()
    time.sleep(BACKLOG)
    lane.delete_queue()
    time.sleep(BACKLOG)
    lane.renew_worker()


def exceed_consumer_timeout(lane: Lane) -> None:
    """Have the broker close the channel of a process."""
    seconds, cuts = 2 * lane.pace.consumer_timeout, count_cuts(lane.ledger)
    lane.senders[1].tell(f"hold {seconds}")
    has_closed = lane.wait_until(lambda: count_cuts(lane.ledger) > cuts, seconds)
    # Mixed, other faults may be faster.
    if not has_closed and lane.fault is not MIXED:
        lane.violations.append("the broker hasn't closed the channel")


def count_cuts(ledger: lab.Ledger) -> int:
    """Return how many calls were interrupted."""
    return sum(count for outcome, count in ledger.ends.items() if is_cut(outcome))


def is_cut(outcome: str | None) -> bool:
    return outcome not in (None, RETURNED, *PLANNED)


def kill_leading_node(lane: Lane) -> None:
    assert lane.cluster is not None
    lane.cluster.leader_of(lane.queue).kill()


_ALL = (
    Fault("child killed", kill_child),
    Fault("worker killed", kill_worker),
    Fault("worker stopped", restart_worker, cuts=False),
    Fault("TCP reset", lambda lane: lane.proxy.cut(), proxied=True),
    Fault("TCP stall up", lambda lane: stall(lane, "up"), proxied=True),
    Fault("TCP stall down", lambda lane: stall(lane, "down"), proxied=True),
    Fault("half-open", lambda lane: lane.proxy.swallow(), proxied=True, silent=True),
    Fault("queue deleted", delete_queue),
    Fault("queue deleted, cached", delete_cached_queue),
    Fault("consumer_timeout", exceed_consumer_timeout),
    Fault("fork", lambda lane: lane.senders[0].tell("fork"), cuts=False),
    Fault(
        "fork, embedded", lambda lane: lane.senders[0].tell("fork"),
        embedded=True, cuts=False, mixes=False,
    ),
    Fault("broker killed", kill_broker, outage=True),
    Fault("broker stopped", restart_broker, outage=True),
    Fault("broker frozen", freeze_broker, outage=True),
    Fault("connections closed", lambda lane: lane.node.ctl("close_all_connections", "chaos")),
    Fault("memory alarm", raise_alarm, cuts=False),
    Fault("leading node killed", kill_leading_node, cluster=True, mixes=False),
)  # fmt: skip
FAULTS = {fault.name: fault for fault in _ALL}
#: Not a fault: the lane of all of them.
MIXED = Fault("mixed", lambda lane: None, proxied=True, mixes=False)


# --- The account -------------------------------------------------------------------


class Row(NamedTuple):
    """Of the table; see docs/reliability.md."""

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


def account_for(lane: Lane) -> Row:
    """Return what became of the messages of a lane whose processes have ended; add what is wrong
    to its violations."""
    ledger, hits, missing = lane.ledger, list(hits_of(lane)), lane.missing()
    lost = [sent for sent in missing if lane.is_owed(sent)]
    deleted = [sent for sent in missing if not lane.is_owed(sent)]
    # No more can have gone with a queue than it held, and than were just about to come.
    held = sum(deletion.messages for deletion in lane.deletions)
    coming = sum(
        any(sent.began <= each.ended and each.began <= sent.ended for each in lane.deletions)
        for sent in deleted
    )
    excess = max(0, len(deleted) - held - coming)
    verdicts = {number: judge(sent, ledger) for number, sent in ledger.sent.items()}
    again = [number for number, verdict in verdicts.items() if verdict == AGAIN]
    misplaced = [number for number, verdict in verdicts.items() if verdict == MISPLACED]
    unexplained = [number for number in again if not ledger.was_hit(number, hits)]
    longest = max(ledger.sent.values(), key=lambda sent: sent.ended - sent.began)
    send = longest.ended - longest.began
    confirmed = len(ledger.confirmed)
    runs = [len(ledger.runs(number)) for number in ledger.calls]
    lane.add("lost", [ledger.describe(sent.number) for sent in lost])
    lane.add("gone, and not with a queue", [f"{excess} messages"] * (excess > 0))
    lane.add("ran again without a reason", map(ledger.describe, unexplained))
    lane.add("failed", map(ledger.describe, misplaced))
    lane.add("wrong", [str(sent) for sent in ledger.sent.values() if "WRONG" in sent.outcome])
    if lane.fault.embedded:
        others = ledger.last_begin.keys() - {lane.worker.pid}
        lane.add("a fork of the service has run tasks", map(str, others))
    if not confirmed:
        lane.violations.append("no send was confirmed at all")
    if send > lane.pace.publish_timeout + SEND_MARGIN:
        lane.violations.append(f"a send took {send:.1f} s: {longest}")
    return Row(
        fault=lane.fault.name,
        sent=len(ledger.sent),
        confirmed=confirmed,
        refused=len(ledger.sent) - confirmed,
        executed=len({number for number in ledger.calls if ledger.runs(number)} | {*ledger.failed}),
        again=sum(max(0, count - 1) for count in runs),
        deleted=len(deleted) - excess,
        lost=len(lost) + excess,
        send=send,
        silence=longest_silence(lane),
        back=max(strike.back for strike in lane.strikes),
    )


def hits_of(lane: Lane) -> Iterator[Hit]:
    for strike in lane.strikes:
        if strike.until is not None and strike.fault.cause is not exceed_consumer_timeout:
            yield Hit(strike.began, strike.until)
    for call in itertools.chain(*lane.ledger.calls.values()):
        if is_cut(call.outcome):  # by consumer_timeout, if by nothing else
            yield Hit(call.ended, call.ended)


def longest_silence(lane: Lane) -> float:
    """Return the longest time in which no task began while a confirmed message waited and the
    broker ran."""
    # A fault of the network, or of the worker, is part of that time; one of the broker isn't.
    # What becomes of the number of messages that wait while the broker runs; 0: a task begins.
    changes = [(at, 0) for at in lane.ledger.begins()]
    for start, stop in waits(lane):
        changes += [(start, 1), (stop, -1)] if start < stop else []
    everything = len(changes)
    for strike in lane.strikes:
        if strike.fault.outage:
            changes += [(strike.began, -everything), (strike.ended, everything)]
    longest, since, waiting = 0.0, 0.0, 0
    for at, change in sorted(changes):
        longest = max(longest, at - since if waiting > 0 else 0.0)
        if change == 0 or waiting <= 0:
            since = at
        waiting += change
    return longest


def waits(lane: Lane) -> Iterator[tuple[float, float]]:
    """Yield from when each message was there until its first call that has ended by itself."""
    end = max(sent.ended for sent in lane.ledger.sent.values())
    for sent in lane.ledger.confirmed:
        calls = lane.ledger.calls.get(sent.number, ())
        begins = [call.began for call in calls if call.outcome in (RETURNED, *PLANNED)]
        gone = [each.began for each in lane.deletions if sent.began <= each.ended]
        yield sent.ended, next(iter(begins or gone), end)


def describe_delays(lane: Lane) -> str:
    """Return how late the tasks were that came back from a delay."""
    late = []
    for number, calls in lane.ledger.calls.items():
        planned = [call for call in calls if call.outcome in PLANNED]
        if planned and (runs := lane.ledger.runs(number)):
            late.append(runs[0].began - planned[0].ended - DELAY)
    text = f"{len(late)} came back from a delay, the latest {max(late, default=0):.1f} s late"
    return f"{text}; RabbitMQ forgot {lane.forgotten}, till somebody looked"


# --- The run -----------------------------------------------------------------------


def run_lane(lane: Lane, strike: Callable[[Lane], None]) -> Row:
    with lane:
        lane.start()
        strike(lane)
        lane.finish()
    return account_for(lane)


def strike_once(lane: Lane) -> None:
    lane.strike(lane.fault)
    lane.wait_until_back()
    time.sleep(lane.pace.after)


def strike_in_turn(lane: Lane, kills: int) -> None:
    """Let the leading nodes fall, one after the other."""
    # Each strike is over when its node has fallen: the others go on at once. It is back before the
    # next one falls.
    assert lane.cluster is not None
    for _ in range(kills):
        lane.strike(lane.fault)
        lane.wait_until_back()
        time.sleep(lane.pace.outage)
        lane.cluster.start()
        time.sleep(lane.pace.after)


def strike_often(lane: Lane, minutes: float, every: float) -> None:
    """Draw each fault once, in random order, and again and again."""
    faults, pace = [each for each in FAULTS.values() if each.mixes], lane.pace
    due = time.monotonic()
    end = due + minutes * 60
    turns = (lane.dice.sample(faults, len(faults)) for _ in itertools.count())
    for fault in itertools.chain.from_iterable(turns):
        # Those that last end before the next is due; each alone they have lasted longer.
        length = lane.dice.uniform(MIXED_PAUSE / 4, max(every - MIXED_PAUSE, MIXED_PAUSE))
        lane.pace = replace(pace, outage=length / 4, stall=length, freeze=length, alarm=length)
        lane.strike(fault)
        due = max(due + every, time.monotonic() + MIXED_PAUSE)
        if due >= end:
            break
        lane.wait_until_back(due)
        time.sleep(max(0.0, due - time.monotonic()))
    lane.wait_until_back()
    time.sleep(pace.after)


def try_fault(
    fault: Fault, node: RabbitmqNode, pace: Pace, minutes: float, options: argparse.Namespace
) -> list[str]:
    """Print what came of it. Return the violations."""
    make = functools.partial(Lane, fault=fault, pace=pace, seed=options.seed, rate=options.rate)
    if fault.cluster:
        with RabbitmqCluster() as cluster:
            lane = make(cluster.nodes[0], cluster=cluster, patience=CLUSTER_PATIENCE)
            say(str(run_lane(lane, functools.partial(strike_in_turn, kills=options.kills))))
        say(f"{'':24}{describe_delays(lane)}")
    elif fault is MIXED:
        lane, every = make(node), options.every or (5 if options.quick else 10)
        say(str(run_lane(lane, functools.partial(strike_often, minutes=minutes, every=every))))
        say(f"\n{'':4}at     for    back   the mixed faults")
        for each in lane.strikes:
            at, length = each.began - lane.strikes[0].began, each.ended - each.began
            say(f"{at:6.1f} {length:6.1f} {each.back:7.1f}   {each.fault.name}")
    else:
        lane = make(node)
        say(str(run_lane(lane, strike_once)))
    return [f"{fault.name}: {text}" for text in lane.violations]


def chaos(options: argparse.Namespace) -> list[str]:
    """Return the violations."""
    began, pace = time.monotonic(), QUICK if options.quick else FULL
    minutes = options.mixed_minutes
    if minutes is None:
        minutes = 0 if options.only else 0.3 if options.quick else 3
    usual = [name for name, fault in FAULTS.items() if not (options.quick and fault.cluster)]
    faults = [FAULTS[name] for name in options.only or usual if name != "none"]
    settings = f"RABBIT_PUBLISH_TIMEOUT {pace.publish_timeout:g}, RABBIT_HEARTBEAT {pace.heartbeat}"
    say(f"--seed {options.seed}; {settings}\n\n{Row.head()}")
    shutil.rmtree(FOLDER, ignore_errors=True)
    violations: list[str] = []
    config = [f"consumer_timeout = {pace.consumer_timeout * 1000:.0f}"]
    with RabbitmqNode(config, advanced=ADVANCED) as node:
        for fault in [*faults, *([MIXED] if minutes else [])]:
            violations += try_fault(fault, node, pace, minutes, options)
    say(f"\n{time.monotonic() - began:.0f} seconds; notes and logs: {FOLDER}")
    return violations


OPTIONS = {
    "--quick": option(False, "shorter, and no cluster: about 3 minutes"),
    "--only": {
        "action": "append", "choices": [*FAULTS, "none"], "metavar": "FAULT",
        "help": f"this fault only; repeatable: {', '.join(FAULTS)}. None of them: --only none",
    },
    "--mixed-minutes": {
        "type": float, "metavar": "M",
        "help": "of mixed faults (default: 3; --quick: 0.3; --only: 0)",
    },
    "--every": {
        "type": float, "metavar": "S",
        "help": "seconds from a mixed fault to the next (default: 10; --quick: 5)",
    },
    "--rate": option(100.0, "messages per second, about"),
    "--kills": option(3, "of leading nodes"),
    "--seed": option(random.randrange(10**6), "an earlier run's, for the same mixed faults"),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(lab.main(chaos, OPTIONS))
