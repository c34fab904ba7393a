"""`make fuzz`: generated messages of every shape against a live worker, and what became of each.

    python tools/fuzz.py [--messages N] [--seed N]

Starts a private RabbitMQ and a worker, and publishes to it, byte by byte, what the broker takes:
bodies that are no JSON, no task, nearly a task, too deep, too big; properties with every type that
AMQP has, with wrong types, with bytes that are none. What is checked, again and again:

- Each message that the broker has confirmed ended in one place: its task ran (and was told these
  arguments), or it is in "<queue>.failed", with the same body and with a reason.
- A sane task works in between. The worker has kept its connection, and reports no defect of its
  own.
- Nothing was called that isn't a task of this application, nothing was imported for a message.

What the broker itself refuses never reaches a worker: it is counted, but not among the N messages.
The same seed makes the same messages.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
import types
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import lab
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from lab import say
from pamqp import commands, frame, header
from pamqp.exceptions import UnmarshalingException
from rabbitmq_node import RabbitmqNode

import kuyruk
import kuyruk_worker

MODULE = "fuzz_app"  #: Where the tasks are, for a message; made here, in no file.
TASKS = ("note", "discard", "fail", "later", "no_arguments")
#: Modules that nobody has imported, and that a message must not make anybody import.
FORBIDDEN = ("antigravity", "this", "turtledemo", "idlelib")
#: Some messages are forwarded a second time then: at least once.
AGAIN = "again, after the broker has closed the connection for sending"
#: Seconds without any news after which what isn't settled counts as lost.
PATIENCE = 30.0
BATCH = 500  #: Messages that are made between two checks.
#: What the worker's log must not say.
BAD_NEWS = ("Defect", "Lost the connection to RabbitMQ", "goes back", "is stuck")


class Message(NamedTuple):
    body: bytes
    properties: bytes  #: As on the wire: flags, then values.


# --- What is generated: properties ---------------------------------------------


def short(data: bytes) -> bytes:
    return bytes([len(data[:255])]) + data[:255]


def long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def nested(kind: bytes, depth: int) -> bytes:
    """Tables (F) or arrays (A) in each other, as a value."""
    value = b"V"
    for _ in range(depth):
        value = kind + long(value if kind == b"A" else b"\x01k" + value)
    return value


texts = st.one_of(
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=20)
)
#: The types of a field's value that have a fixed size, and their sizes in bytes.
SIZES = {b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"T": 8, b"f": 4, b"d": 8}
SIZES |= {b"D": 5, b"V": 0, b"Z": 0, b"\0": 0}
#: A field's value, of each type that RabbitMQ takes, and of some that it doesn't.
scalars = st.one_of(
    st.sampled_from([b"V", b"t\x00", b"t\x01", b"t\x07"]),
    *(st.binary(min_size=n, max_size=n).map(kind.__add__) for kind, n in SIZES.items()),
    st.builds(lambda kind, data: kind + long(data), st.sampled_from([b"S", b"x"]), texts),
)
#: How deep: also about as deep as Python can read it, and just not write it any more.
depths = st.one_of(st.integers(0, 30), st.integers(300, 520), st.integers(470, 500))
deep_fields = st.builds(nested, st.sampled_from([b"F", b"A"]), depths)
KNOWN_NAMES = ["BCC", "x-death", "x-delivery-count", "x-first-death-queue", "x-last-death-reason"]
KNOWN_NAMES += [f"x-kuyruk-{n}" for n in ("failures", "queue", "exception", "value", "expiration")]
names = st.one_of(
    texts,
    st.binary(min_size=120, max_size=255),
    st.sampled_from([name.encode() for name in KNOWN_NAMES]),
)


def tables(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    entries = st.tuples(names, values).map(lambda entry: short(entry[0]) + entry[1])
    return st.lists(entries, max_size=4).map(b"".join)


def containers(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    arrays = st.lists(values, max_size=4).map(lambda each: b"A" + long(b"".join(each)))
    return st.one_of(arrays, tables(values).map(lambda table: b"F" + long(table)))


# also nearly a whole frame
big_sizes = st.one_of(st.integers(1000, 125_000), st.integers(100_000, 125_000))
big_tables = big_sizes.map(lambda size: b"\x03bigS" + long(b"x" * size))
many_fields = st.integers(100, 20_000).map(lambda count: b"\x04manyA" + long(b"V" * count))
headers = st.one_of(
    *(tables(st.recursive(scalars, containers, max_leaves=8)) for _ in range(3)),
    deep_fields.map(lambda value: b"\x04deep" + value),
    big_tables,
    many_fields,
)
#: None of those that it takes is over before the message is read: an expired one is gone without a
#: trace.
TIMES = [b"60000", b"00060000", b"4294967295"] * 2
TIMES += [b"4294967296", b"-1", b"soon", b"", b" 5", b"\xff"]
ADDRESSES = [b"no such queue", b"", b"x" * 255, b"\xff\xfe"]
ADDRESSES += [b"amq.rabbitmq.reply-to.x", b"amq.rabbitmq.reply-to.g.x"]
#: In the order of the wire: the first has the highest flag.
FIELDS: dict[str, st.SearchStrategy[bytes]] = {
    **dict.fromkeys(("content_type", "content_encoding"), texts.map(short)),
    "headers": headers.map(long),
    "delivery_mode": st.sampled_from([b"\1", b"\2"] * 9 + [b"\0", b"\3"]),
    "priority": st.binary(min_size=1, max_size=1),
    "correlation_id": texts.map(short),
    "reply_to": st.one_of(st.sampled_from(ADDRESSES), texts).map(short),
    "expiration": st.sampled_from(TIMES).map(short),
    "message_id": texts.map(short),
    "timestamp": st.one_of(st.just(bytes(8)), st.binary(min_size=8, max_size=8)),
    "type": texts.map(short),
    "user_id": st.sampled_from([b"guest", b"admin"]).map(short),
    **dict.fromkeys(("app_id", "cluster_id"), texts.map(short)),
}
#: More often some than all, because one that the broker refuses hides the others.
RARE = ("expiration", "user_id", "cluster_id")


@st.composite
def well_formed(draw: st.DrawFn) -> bytes:
    flags, values = 0, b""
    for number, (name, strategy) in enumerate(FIELDS.items()):
        if draw(st.integers(0, 11 if name in RARE else 2)) == 0:
            flags |= 1 << (15 - number)
            values += draw(strategy)
    return struct.pack(">H", flags) + values


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """Flags that don't fit the values, or no values at all."""
    good = draw(well_formed())
    cut = draw(st.integers(0, len(good)))
    flags = draw(st.one_of(st.just(good[:2]), st.binary(min_size=2, max_size=4)))
    return flags + draw(st.one_of(st.just(good[2:cut]), st.just(good[2:]), st.binary(max_size=40)))


plain = st.just(b"\x00\x00")
properties = st.one_of(plain, well_formed(), well_formed(), well_formed(), malformed())


# --- What is generated: bodies -------------------------------------------------

leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
shapes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
LITERALS = ["1e999", "-1e999", "NaN", "Infinity", "1E400", "-0", r'"\ud800"', r'"\u0000"']
LITERALS += ["{}", "[]", '""']
#: As JSON text, where Python's writer would refuse: too deep for it, or not a number that it knows.
texts_of_json = st.one_of(
    shapes.map(json.dumps),
    st.integers(1, 6000).map(lambda digits: "9" * digits),
    st.sampled_from(LITERALS),
    st.integers(1, 1100).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 1100).map(lambda depth: '{"k":' * depth + "0" + "}" * depth),
)
NO_MODULES = ["os", "builtins", "kuyruk", "__main__", "", ".", "..", f".{MODULE}", *FORBIDDEN]
NO_MODULES += [f"{MODULE}{end}" for end in (".", ".x", "..x", ".note", ".\0", "/x")]
modules = st.one_of(
    st.sampled_from([MODULE, *NO_MODULES]),
    st.integers(1, 3000).map(lambda count: MODULE + ".a" * count),
    st.text(max_size=20),
)
NO_TASKS = ["other", "bomb", "os", "os.system", "system", "app", "Bomb", "note.f"]
NO_TASKS += ["__class__", "__dict__", "__builtins__", "note.__call__", "", ".", "\ud800", "f\0"]
functions = st.one_of(
    st.sampled_from([*TASKS] * 3 + NO_TASKS),
    st.integers(1, 20_000).map(lambda size: "x" * size),
    st.text(max_size=20),
)
VALID: dict[str, st.SearchStrategy[str]] = {
    "id": st.one_of(
        st.uuids().map(lambda id: id.hex), st.sampled_from(["1", "2"]), st.text(max_size=300)
    ).map(json.dumps),
    "args": st.lists(shapes, max_size=3).map(json.dumps),
    "kwargs": st.dictionaries(st.text(max_size=9), shapes, max_size=3).map(json.dumps),
    "module": st.just(json.dumps(MODULE)),
    "function": st.sampled_from(TASKS).map(json.dumps),
}


@st.composite
def descriptions(draw: st.DrawFn) -> bytes:
    """A task's message, of which some part may be missing, or wrong."""
    wrong = draw(st.just(set()) | st.sets(st.sampled_from([*VALID, "more"]), max_size=2))
    parts = {}
    for key, strategy in VALID.items():
        if key not in wrong:
            parts[key] = draw(strategy)
        elif draw(st.booleans()):
            names = {"module": modules, "function": functions}
            parts[key] = draw(names[key].map(json.dumps) if key in names else texts_of_json)
    if "more" in wrong:
        parts[draw(st.text(max_size=9))] = draw(texts_of_json)
    text = ",".join(f"{json.dumps(key)}:{value}" for key, value in parts.items())
    return f"{{{text}}}".encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(descriptions()))
    for _ in range(draw(st.integers(1, 3))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[draw(st.integers(0, 2)) : len(body) - draw(st.integers(0, 2))])


@st.composite
def big(draw: st.DrawFn) -> bytes:
    """Longer than one frame."""
    size = draw(st.integers(130_000, 400_000))
    many = "x" * size if draw(st.booleans()) else "é" * size
    function = draw(st.sampled_from(TASKS))
    task = {"id": "big", "args": [many], "kwargs": {}, "module": MODULE, "function": function}
    texts = [json.dumps(task).encode(), many.encode(), bytes(size), b"[" * size]
    return draw(st.sampled_from(texts))


bodies = st.one_of(
    *(descriptions() for _ in range(3)),  # the same one would count once
    texts_of_json.map(str.encode),
    damaged(),
    st.binary(max_size=200),
    st.integers(0, 49).flatmap(lambda number: big() if number == 0 else descriptions()),
)
messages = st.builds(Message, bodies, properties)


# --- The wire ------------------------------------------------------------------


class Wire:
    """A connection that publishes and gets bytes as they are: client libraries refuse most of
    these."""

    LIMIT = 131_072 - 8

    def __init__(self, url: str) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._socket: socket.socket | None = None

    def publish(self, queue: str, message: Message) -> str | None:
        """Return None if the broker has confirmed it, else why it hasn't: it has closed the channel
        or the connection."""
        try:
            self._connect()
            head = struct.pack(">HHQ", 60, 0, len(message.body)) + message.properties
            starts = range(0, len(message.body), self.LIMIT)
            parts = [(3, message.body[start : start + self.LIMIT]) for start in starts]
            data = frame.marshal(commands.Basic.Publish(routing_key=queue), 1)
            for kind, payload in [(2, head), *parts]:
                data += struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"
            answer = self._ask(data)
        except OSError as error:
            self.close()
            return f"connection: {type(error).__name__}"
        if answer.name in ("Basic.Ack", "Basic.Nack"):
            return None if answer.name == "Basic.Ack" else "nack"
        self.close()
        return f"{answer.name.partition('.')[0].lower()}: {answer.reply_code}"

    def get(self, queue: str) -> tuple[Any, bytes] | None:
        """Take a message out of a queue: its properties (None if they can't be decoded) and its
        body."""
        self._connect()
        answer = self._ask(frame.marshal(commands.Basic.Get(queue=queue, no_ack=True), 1))
        if answer.name == "Basic.GetEmpty":
            return None
        assert answer.name == "Basic.GetOk", answer.name
        content = self._read_frame()
        size = int.from_bytes(content[11:19], "big")
        body = b""
        while len(body) < size:
            body += self._read_frame()[7:-1]
        try:
            return cast(header.ContentHeader, frame.unmarshal(content)[2]).properties, body
        except (UnmarshalingException, RecursionError):
            return None, body

    def close(self) -> None:
        if self._socket is not None:
            # First the file: the socket is open as long as that is.
            self._file.close()
            self._socket.close()
        self._socket = None

    def _connect(self) -> None:
        if self._socket is not None:
            return
        host, port = self._url.hostname, self._url.port or 5672
        self._socket = socket.create_connection((host, port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        login = [
            urllib.parse.unquote(part or "guest")
            for part in (self._url.username, self._url.password)
        ]
        capabilities: Any = {"capabilities": {"publisher_confirms": True}}
        secret = "\0".join(["", *login])
        host = urllib.parse.unquote(self._url.path[1:]) or "/"
        start = commands.Connection.StartOk(capabilities, "PLAIN", secret, "en_US")
        tune = frame.marshal(commands.Connection.TuneOk(10, 131_072, 0), 0)
        self._ask(header.ProtocolHeader().marshal())
        self._ask(frame.marshal(start, 0))
        self._ask(tune + frame.marshal(commands.Connection.Open(virtual_host=host), 0))
        self._ask(frame.marshal(commands.Channel.Open(), 1))
        self._ask(frame.marshal(commands.Confirm.Select(), 1))

    def _ask(self, data: bytes) -> Any:
        """Return the next method."""
        cast(socket.socket, self._socket).sendall(data)
        try:
            return frame.unmarshal(self._read_frame())[2]
        # A Close, which quotes what it doesn't like.
        except UnmarshalingException as error:
            raise ConnectionError("closed, for a reason that can't be decoded") from error

    def _read_frame(self) -> bytes:
        head = self._file.read(7)
        if len(head) < 7:
            raise ConnectionError("closed")
        return head + self._file.read(int.from_bytes(head[3:], "big") + 1)


# --- The application, and the account of every message ---------------------------


def hash_of_call(function: str, args: Any, kwargs: Any) -> int:
    """Return what stands for a call of a task."""
    # By Python's own text: it tells 1 from True and from 1.0.
    return hash(f"{function}{args!r}{sorted(kwargs.items())!r}")


class LogWatch(logging.Handler):
    """Format what the worker says, as any log would, and keep what it must not say."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []
        # Of the connection for sending: a made-up reply address makes RabbitMQ 3.10 close it. What
        # was being forwarded then may end in "<queue>.failed" twice.
        self.losses = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.losses += text.startswith("Waiting for RabbitMQ, trying again")
        first = text.partition("\n")[0]
        if record.levelno >= logging.WARNING and any(words in first for words in BAD_NEWS):
            self.bad.append(f"{text[:200]} ... {text[-200:]}")


class Fuzz:
    """A worker, a publisher, and what became of each message. As a context manager it leaves
    nothing behind."""

    def __init__(self, url: str, queue: str) -> None:
        self.queue = queue
        self.figures: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        # The bodies of what is confirmed and not accounted for.
        self._open: collections.Counter[bytes] = collections.Counter()
        # The calls whose ends are not accounted for.
        self._ran: collections.Counter[int] = collections.Counter()
        # Guards what tasks write: the calls that ran, and those of `later`.
        self._lock = threading.Lock()
        # What isn't a task, and was called all the same.
        self.called: list[str] = []
        self._log = LogWatch()
        self._logger = logging.getLogger("kuyruk")
        self._level = self._logger.level
        config = kuyruk.Config()
        config.from_dict({"RABBIT_URL": url, "WORKER_RECONNECT_INTERVAL": 0.2})
        self.app = kuyruk.Kuyruk(config)
        self._make_module()
        self._worker = self.app.worker([queue], threads=4)
        self._journal = kuyruk_worker._Journal({})
        # As _be_worker does.
        self._worker.journal = self._journal  # type: ignore[assignment]
        self._wire = Wire(url)

    def __enter__(self) -> Fuzz:
        self._logger.addHandler(self._log)
        self._logger.setLevel(logging.DEBUG)
        with self.app.channel() as channel:
            # Without a dead-letter exchange: what a message says in "x-death" can crash such a
            # queue (RabbitMQ 3.10.8).
            channel.queue.declare(self.queue, durable=True)
            channel.queue.declare(f"{self.queue}.failed", durable=True)
        self._worker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._worker.stop(timeout=5)
        self._wire.close()
        with self.app.channel() as channel:
            for suffix in ("", ".failed", ".delay.200"):
                channel.queue.delete(self.queue + suffix)
        self.app.close()
        self._journal.close()
        self._logger.removeHandler(self._log)
        self._logger.setLevel(self._level)
        del sys.modules[MODULE]

    def _functions(self) -> list[Callable[..., Any]]:
        """Return what tasks are made of: those of TASKS, and one for sane messages."""
        seen: set[int] = set()  # calls of `later`

        def note(*args: Any, **kwargs: Any) -> Any:
            self._end("note", args, kwargs)
            return [args, kwargs]

        def discard(*args: Any, **kwargs: Any) -> None:
            self._end("discard", args, kwargs)
            raise kuyruk.Discard

        def fail(*args: Any, **kwargs: Any) -> None:
            raise ValueError(args, kwargs)

        def later(*args: Any, **kwargs: Any) -> None:
            """Fail at first, and come back."""
            call = hash_of_call("later", list(args), kwargs)
            with self._lock:
                is_first = call not in seen
                seen.add(call)
            if is_first:
                raise ValueError(args, kwargs)
            self._end("later", args, kwargs)

        def no_arguments() -> None:
            self._end("no_arguments")

        def sane() -> str:
            return "sane"

        return [note, discard, fail, later, no_arguments, sane]

    def _make_module(self) -> None:
        """Make a module with tasks of this application, and with much that is none."""

        def bomb(*args: Any, **kwargs: Any) -> None:
            self.called.append("no task")

        module: Any = types.ModuleType(MODULE)
        for function in (bomb, *self._functions()):
            name = function.__name__
            function.__module__, function.__qualname__ = MODULE, name
            if function is not bomb:
                task = self.app.task(self.queue, fail_delay=0.2 if name == "later" else 0)(function)
                setattr(module, name, task)
        module.bomb, module.os, module.app = bomb, os, self.app
        module.other = kuyruk.Kuyruk().task(bomb)
        module.Bomb = type("Bomb", (), {"__init__": bomb})
        sys.modules[MODULE] = module
        self._sane_task = module.sane

    def _end(self, task: str, args: Any = (), kwargs: Any = types.MappingProxyType({})) -> None:
        with self._lock:
            self._ran[hash_of_call(task, list(args), kwargs)] += 1

    # -- the account

    def send(self, message: Message) -> None:
        refused = self._wire.publish(self.queue, message)
        self.figures["sent"] += 1
        if refused is None:
            self.figures["confirmed"] += 1
            self._open[message.body] += 1
        else:
            self.figures[f"refused by the broker ({refused})"] += 1

    def check(self) -> list[str]:
        """Wait until each message is accounted for. Return all that is wrong so far."""
        quiet = lab.Quiet()
        while self._open and quiet.seconds(self._open.total()) < PATIENCE:
            if not self._account():
                time.sleep(0.02)
        self.violations += [
            f"lost, or not settled: {count} of {body[:200]!r} ({len(body)} bytes)"
            for body, count in self._open.items()
        ]
        self._open.clear()
        self._check_worker()
        self.figures["connections for sending that the broker has closed"] = self._log.losses
        return self.violations

    def _account(self) -> int:
        """Return for how many messages."""
        before = self._open.total()
        while (message := self._wire.get(f"{self.queue}.failed")) is not None:
            self._enter(*message)
        with self._lock:
            for body in list(self._open) if self._ran else ():
                function, call = self._call_of(body)
                if count := min(self._open[body], self._ran[call]):
                    self._tick_off(body, f"ran ({function})", count)
                    self._ran[call] -= count
        return before - self._open.total()

    def _call_of(self, body: bytes) -> tuple[str, int]:
        """Return which call this message is, if it is any."""
        limit = sys.getrecursionlimit()
        # what the worker could just read must not be too deep here
        sys.setrecursionlimit(5 * limit)
        try:
            what = json.loads(body.decode())
            function = what["function"]
            return function, hash_of_call(function, what["args"] or [], what["kwargs"] or {})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "", 0
        finally:
            sys.setrecursionlimit(limit)

    def _tick_off(self, body: bytes, where: str, count: int = 1) -> None:
        self.figures[where] += count
        self._open[body] -= count
        if not self._open[body]:
            del self._open[body]

    def _enter(self, properties: Any, body: bytes) -> None:
        """Account for a message of "<queue>.failed"."""
        facts = (properties and properties.headers) or {}
        exception = facts.get("x-kuyruk-exception")
        if body in self._open:
            self._tick_off(body, f"failed ({exception})")
        elif self._log.losses:
            self.figures[AGAIN] += 1
        else:
            self.violations.append(f"failed twice, or with another body: {body[:200]!r}")
        if not (exception and facts.get("x-kuyruk-value") and facts.get("x-kuyruk-failed-at")):
            self.violations.append(f"failed without a reason: {body[:200]!r}: {facts!r}")

    def _check_worker(self) -> None:
        try:
            answer = self._sane_task.send_to_queue(wait_result=PATIENCE)
        except kuyruk.KuyrukError as error:
            answer = error
        with self._lock:
            again, self._ran = self._ran.total(), collections.Counter()
        if self._log.losses:
            self.figures[AGAIN] += again
            again = 0
        log, self._log.bad = self._log.bad, []
        facts = {
            "a sane task doesn't work: its caller got": answer != "sane" and repr(answer),
            "the worker isn't healthy": not self._worker.healthy,
            "called although no task:": self.called,
            "imported for a message:": sys.modules.keys() & set(FORBIDDEN),
            "tasks ran that no message had asked for, or once too often:": again,
            "in the log:": log,
        }
        self.violations += [f"{text} {fact}" for text, fact in facts.items() if fact]


def generate(count: int, seed: int | None, use: Callable[[Message], object]) -> None:
    """Make so many messages. Without a seed: always the same, of this version of hypothesis."""

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        derandomize=seed is None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(messages)
    def run(message: Message) -> None:
        use(message)

    (run if seed is None else with_seed(seed)(run))()


# --- The command ---------------------------------------------------------------


def run(options: argparse.Namespace) -> list[str]:
    """Return the violations."""
    began, count, seed = time.monotonic(), options.messages, options.seed
    say(f"seed {seed}")
    with RabbitmqNode() as node, Fuzz(node.url, "fuzz") as fuzz:
        while (done := fuzz.figures["confirmed"]) < count:
            generate(min(BATCH, count - done), seed, fuzz.send)
            seed += 1
            violations = fuzz.check()
            seconds = time.monotonic() - began
            text = f"{fuzz.figures['confirmed']}/{count} messages, {len(violations)} violations"
            lab.say_progress(f"{text}, {seconds:.0f} s")
    say(f"\nIn {time.monotonic() - began:.0f} seconds:")
    for name, number in sorted(fuzz.figures.items(), key=lambda item: (-item[1], item[0])):
        say(f"{number:8} {name}")
    return lab.some("wrong", fuzz.violations)


OPTIONS = {
    "--messages": lab.option(20_000, "that the broker takes"),
    "--seed": lab.option(int(time.time()), "an earlier run's, for the same messages"),
}

if __name__ == "__main__":
    sys.exit(lab.main(run, OPTIONS))
