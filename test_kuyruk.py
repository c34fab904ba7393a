"""The tests of kuyruk.py, on a real RabbitMQ.

    make test                           sets up everything; lint, types and all of this
    python -m pytest                    all of this, where pytest and RabbitMQ are installed
    python -m pytest -x -k "config"     a part of it
    KUYRUK_TEST_URL=amqp://guest:guest@localhost/ python -m pytest

A private RabbitMQ node is started for the session and removed after it (tools/rabbitmq_node.py).
With KUYRUK_TEST_URL that broker is used instead, and only the tests that hurt a broker start a
node. Without RabbitMQ they fail.

A test's name says what is promised, and its docstring what the name leaves out. Each test has
queues of its own. Tasks are functions of this module: a test makes them tasks of its own app, with
the options that it needs, and finds in `ran` what they did. It looks at the broker with plain
amqpstorm (`Broker`), and makes trouble on the line with `TcpProxy`.
"""

from __future__ import annotations

import ast
import collections
import configparser
import contextlib
import contextvars
import datetime
import errno
import faulthandler
import functools
import gc
import hashlib
import importlib
import inspect
import io
import itertools
import json
import logging
import math
import operator
import os
import pickle
import pydoc
import queue as queue_module
import random
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
import traceback
import tracemalloc
import types
import urllib.error
import urllib.parse
import urllib.request
import uuid
import weakref
import xml.etree.ElementTree
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import amqpstorm
import pytest
import trustme
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "tools"))  # here: programs that tests start import this module, too

import bench_report
import chaos
import fuzz
import interrupt_proof
import make_stubs
from rabbitmq_node import RabbitmqCluster, RabbitmqNode
from tcp_proxy import TcpProxy

import kuyruk
import kuyruk_worker

#: Seconds that something which must happen may take on a busy machine.
PATIENCE = 20.0
#: Seconds within which happens what waits for no timer of ours. Many times what it takes on an idle
#: machine, and below the timeouts (10 s and more) that would end it if it was forgotten.
SOON = 5.0
#: Seconds after which a test counts as hanging.
TEST_TIMEOUT = 90
#: Milliseconds: the delays that tests use, whose queues are removed after them.
DELAYS = (200, 300, 1000, 1500)
HOSTNAME = socket.gethostname()


# --- Helpers -----------------------------------------------------------------


def wait_until(condition, timeout=PATIENCE):
    """Wait until `condition()` is true, and return what it returned then."""
    __tracebackhide__ = True  # pytest shows the line that waits instead
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} seconds: {explain(condition)}")
        time.sleep(0.005)
    return value


def explain(condition):
    """Return the source of a lambda, and the values of what it compares, as pytest shows them for
    an assert."""
    try:
        code = condition.__code__
        nodes = ast.walk(ast.parse(Path(code.co_filename).read_text()))
        # Mostly there is one in a line; if not, the first is as good a hint as any.
        at_line = (node for node in nodes if getattr(node, "lineno", 0) == code.co_firstlineno)
        node = next(node for node in at_line if isinstance(node, ast.Lambda))
    except (AttributeError, OSError, StopIteration):  # it is no lambda, or not in a file
        return repr(condition)
    names = condition.__globals__ | inspect.getclosurevars(condition).nonlocals
    names |= dict(zip(code.co_varnames, condition.__defaults__ or (), strict=False))
    values = []
    for operand in operands(node.body):
        try:
            value = eval(ast.unparse(operand), names)
        except Exception as error:
            value = error
        values.append(f"{ast.unparse(operand)} is {value!r}")
    return "; ".join([ast.unparse(node.body), *values])


def operands(node):
    """Yield the expressions that an expression compares, or joins by `and`, `or` and `not`."""
    if isinstance(node, ast.BoolOp | ast.UnaryOp | ast.Compare):
        for child in ast.iter_child_nodes(node):
            yield from operands(child)
    elif any(isinstance(part, ast.Name) for part in ast.walk(node)):  # no literal
        yield node


def test_a_wait_in_vain_says_what_was_compared():
    letters, number = ["a"], 0
    with pytest.raises(AssertionError) as info:
        wait_until(lambda: len(letters) == 2 and number, timeout=0)
    text = "len(letters) == 2 and number; len(letters) is 1; number is 0"
    assert str(info.value) == f"not within 0 seconds: {text}"
    # Of these there is nothing more to say.
    for condition in (letters.clear, eval("lambda: 0"), functools.partial(bool, 0)):
        assert explain(condition) == repr(condition)


@contextlib.contextmanager
def takes(least, most):
    """Assert that the block takes a number of seconds in between."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    assert least <= seconds <= most


def background(function, *args, **kwargs):
    """Call a function in a thread of its own. Return a Future."""
    future = Future()

    def run():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    # A daemon: what a test that has failed leaves waiting must not keep pytest from its end.
    threading.Thread(target=run, name="test", daemon=True).start()
    return future


def still_waits(future, seconds=0.2):
    """Assert that a call in the background doesn't end within some seconds. Return True."""
    __tracebackhide__ = True
    with pytest.raises(TimeoutError):
        future.result(seconds)
    return True


def results(futures):
    """Wait for calls in the background. Return what each has returned, or raise what it raised."""
    return [future.result(PATIENCE) for future in futures]


def run_python(*command, cwd=HERE, **env):
    """Run Python with these arguments, and assert that it ends well and writes nothing to stderr.
    Return its output."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), str(HERE)]), **env}
    command = [sys.executable, "-W", "error", *map(str, command)]
    process = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def make_package(folder, name, **modules):
    """Make a package in a folder. modules: the code of each."""
    (folder / name).mkdir()
    for module, code in {"__init__": "", **modules}.items():
        (folder / name / f"{module}.py").write_text(code)


def address_of(url):
    """Return host and port."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port or 5672


def unused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def threads_of_ours():
    """Return the names of the library's threads: all of them begin with its own."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kuyruk")]


def pool_threads():
    return [name for name in threads_of_ours() if name.startswith("kuyruk-pool")]


class Broker:
    """What is in the broker, as plain amqpstorm sees it: nothing of the library is used here, so
    that a fault of it can't hide itself."""

    def __init__(self, url):
        # Nobody answers heartbeats while a test doesn't use it. And without TCP_NODELAY a message,
        # which is three small writes, would take 40 ms.
        self.connection = amqpstorm.UriConnection(f"{url}?heartbeat=0")
        self.connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.channel = self.connection.channel()

    def declare(self, queue, **arguments):
        self.channel.queue.declare(queue, durable=True, arguments=arguments)

    def delete(self, *queues):
        self.channel.write_frames(
            [commands.Queue.Delete(queue=queue, nowait=True) for queue in queues]
        )
        # Deletions without an answer take one round trip for all. Then something that has an
        # answer: it comes after them.
        self.channel.basic.qos()

    def count(self, queue):
        """Return how many messages wait in a queue; None if there is no such queue."""
        try:
            return self.channel.queue.declare(queue, passive=True)["message_count"]
        except amqpstorm.AMQPChannelError:  # which closes the channel
            self.channel = self.connection.channel()
            return None

    def publish(self, queue, body, **properties):
        self.channel.basic.publish(body, queue, properties=properties)

    def publish_late(self, queue, body):
        """Publish to a reply address that may be gone: the broker closes the channel then."""
        channel = self.connection.channel()
        channel.basic.publish(body, queue)
        with contextlib.suppress(amqpstorm.AMQPChannelError):
            channel.basic.qos()  # has an answer, and so comes after what the broker says to that
        channel.close()

    def publish_raw(self, queue, body, properties):
        """Publish with properties (flags and values) that are bytes already, right or wrong."""
        number, header = int(self.channel), struct.pack(">HHQ", 60, 0, len(body)) + properties
        data = frame.marshal(commands.Basic.Publish(routing_key=queue), number)
        for kind, payload in ((2, header), (3, body)):
            data += struct.pack(">BHI", kind, number, len(payload)) + payload + b"\xce"
        self.connection.socket.sendall(data)

    def take(self, queue):
        """Wait for a message, and return it."""
        wait_until(lambda: self.count(queue))
        return self.channel.basic.get(queue, no_ack=True, auto_decode=False)

    def take_all(self, queue):
        """Return the messages that are in a queue now."""
        messages, expected = [], self.count(queue)
        tag = self.channel.basic.consume(messages.append, queue, no_ack=True)
        while len(messages) < expected:
            self.channel.process_data_events(auto_decode=False)
        self.channel.basic.cancel(tag)
        return messages


def arguments_in(messages):
    """Return the positional arguments in each message, as a tuple."""
    return [tuple(json.loads(message.body)["args"]) for message in messages]


# --- Fixtures ----------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """authority[name] is the path of the certificate of an authority ("ca"), or of one that it has
    signed, with its key. "unknown" is of no authority, and "other" of another host."""
    folder, ca, unknown = tmp_path_factory.mktemp("authority"), trustme.CA(), trustme.CA()
    us, past = ("localhost", "127.0.0.1"), datetime.datetime(2020, 1, 1)
    signed = {
        "server": ca.issue_cert(*us),
        "other": ca.issue_cert("rabbit.example.com"),
        "expired": ca.issue_cert(*us, not_before=past, not_after=past + datetime.timedelta(1)),
        "client": ca.issue_cert(common_name="kuyruk"),
    }
    blobs = {name: [each.private_key_and_cert_chain_pem] for name, each in signed.items()}
    blobs |= {"ca": [ca.cert_pem], "unknown": [unknown.private_key_pem, unknown.cert_pem]}
    for name, parts in blobs.items():
        (folder / name).write_bytes(b"".join(part.bytes() for part in parts))
    return {name: str(folder / name) for name in blobs}


@pytest.fixture(scope="session")
def node():
    with RabbitmqNode() as node:
        yield node


@pytest.fixture(scope="session")
def url(request):
    return os.environ.get("KUYRUK_TEST_URL") or request.getfixturevalue("node").url


@pytest.fixture(scope="session")
def broker(url):
    broker = Broker(url)
    yield broker
    broker.connection.close()


@pytest.fixture
def queue(broker):
    """The name of a queue of the test's own, which doesn't exist yet."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    # Those that the library derives from it are removed as well, and ".2", which many tests use.
    suffixes = ["", ".2", ".failed", f".{HOSTNAME}", *(f".delay.{delay}" for delay in DELAYS)]
    broker.delete(*(name + suffix for suffix in suffixes))


@pytest.fixture
def proxy(url):
    with contextlib.closing(TcpProxy(url)) as proxy:
        yield proxy


@pytest.fixture
def make_app():
    """make_app(url, KEY=value...) is a Kuyruk, closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(url, **values):
            config = kuyruk.Config()
            config.from_dict({"RABBIT_URL": url, **values})
            return stack.enter_context(kuyruk.Kuyruk(config))

        yield make


@pytest.fixture
def app(make_app, url):
    return make_app(url)


@pytest.fixture
def offline(make_app):
    """An app whose broker refuses connections. Its sends fail after half a second: in less, a busy
    machine might not even find out why."""
    return make_app(f"amqp://127.0.0.1:{unused_port()}/", RABBIT_PUBLISH_TIMEOUT=0.5)


@pytest.fixture
def start():
    """start(app, queues, **options) is a worker that consumes, stopped after the test."""
    workers = []

    def start(app, queues=None, journal=None, **options):
        workers.append(app.worker(queues, **options))
        workers[-1].journal = journal or workers[-1].journal
        workers[-1].start()
        wait_until(lambda: workers[-1].healthy)
        return workers[-1]

    yield start
    # A test that has failed may have left tasks that run for ever: its report is enough.
    release.set()
    for _ in threads_of_ours():
        trap.put("the way out")
    for worker in workers:
        worker.stop(timeout=SOON)


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored():
    """Have signals do here what they usually do. A program that a shell runs in the background, or
    nohup, ignores some, and the worker processes that it starts would ignore them, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def imports_are_not_collected():
    """Leave what the imports have made out of the collection after each test (80 ms each time)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Assert that no thread and no open socket of ours outlives a test, and that none hangs."""

    def fail(*_):
        faulthandler.dump_traceback()
        # What this raises isn't an Exception, so the code that hangs can't swallow it.
        pytest.fail(f"the test hangs (more than {TEST_TIMEOUT} seconds)")

    ran.clear()
    script.clear()
    release.clear()
    while not trap.empty():
        trap.get()
    signal.signal(signal.SIGALRM, fail)
    # It comes again and again, because the clean-up of a test that hangs may hang as well.
    signal.setitimer(signal.ITIMER_REAL, TEST_TIMEOUT, PATIENCE)
    try:
        yield
        wait_until(lambda: not threads_of_ours())
        gc.collect()  # what was left open warns now, and a warning is an error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


#: An interruption that lands in a destructor or a weak reference's callback is printed by Python,
#: not raised.
may_be_printed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def frequent_switches():
    """Have threads take turns every few instructions, so that races happen."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


#: What isn't in the fast part: tests with these fixtures, which start a RabbitMQ, a worker process
#: or an installation; those that call these helpers, which do; and those that take long without.
SLOW_FIXTURES = {
    "url", "node", "node_with_few_channels", "a_cluster", "cli_worker", "distributions", "editable",
}  # fmt: skip
SLOW_HELPERS = {"RabbitmqNode", "RabbitmqCluster", "Demo", "run_cli"}
SLOW_TESTS = {
    "test_a_generated_command_line_is_understood_or_explained_in_one_line",
    "test_a_generated_text_in_the_environment_is_taken_or_refused",
    "test_a_generated_value_is_taken_or_refused_with_the_name_of_its_key",
    "test_a_vendored_pair_passes_the_users_mypy",
    "test_mypy_knows_an_installed_copys_types_and_the_arguments_of_its_tasks",
    "test_a_soak_reports_what_is_wrong_though_it_cannot_draw_its_picture",
    "test_nothing_is_lost_whatever_fails",
    "test_the_image_of_the_compose_example_has_what_its_installation_needs",
}


def pytest_generate_tests(metafunc):
    """Mark the tests of the fast part: `pytest -m fast`. pytest calls this for each function."""
    code = inspect.unwrap(metafunc.function).__code__
    slow = SLOW_FIXTURES.intersection(metafunc.fixturenames)
    slow |= SLOW_HELPERS.intersection(code.co_names) | SLOW_TESTS & {code.co_name}
    if not slow:
        pytest.mark.fast(metafunc.function)


def test_the_fast_part_starts_no_broker(request):
    fast = [item for item in request.session.items if item.get_closest_marker("fast")]
    assert request.node in fast
    used = {name for item in fast for name in item.fixturenames}
    assert used & {"url", "node", "proxy", "project", "cluster", "impatient", "vhost"} == set()
    # a name that is misspelt keeps nothing out
    assert globals().keys() >= SLOW_FIXTURES | SLOW_HELPERS | SLOW_TESTS


# --- Tasks -------------------------------------------------------------------

#: What the tasks below have noted since the test began.
ran = []
#: What `play` does in its next runs.
script = []
#: Ends the tasks that wait for it.
release = threading.Event()
#: Where tasks get stuck: no interruption ends a wait in C. What is put in lets one of them out.
trap = SimpleQueue()
#: The threads that are in `look_around`.
around = set()


def echo(*args, **kwargs):
    ran.append(args)
    return args[0] if args else kwargs


def add(a, b):
    return a + b


def fail_at(number):
    ran.append((number,))
    raise ValueError(number)


def spin():
    while True:
        pass


def play(*_, **__):
    """Do what is next in `script`: raise it, call it or return it."""
    ran.append(time.monotonic())
    step = script.pop(0)
    if isinstance(step, BaseException):
        raise step
    return step() if callable(step) else step


def reject_once():
    ran.append("short" if "rejected" in ran else "rejected")
    if ran[-1] == "rejected":
        raise kuyruk.Reject


def hold(number=None):
    """Run until released. Note the beginning, and how it was interrupted."""
    ran.append(number)
    try:
        while not release.is_set():
            time.sleep(0.005)
    except BaseException as error:
        ran.append(type(error).__name__)
        raise
    return number


def end_slowly():
    """Run as `hold` does, but go on for a while when it is interrupted, and then return."""
    with contextlib.suppress(BaseException):
        hold("begins")
    time.sleep(0 if release.is_set() else 0.3)
    ran.append("ends")


def end_at_deadline(number):
    """Return when its time limit is over, give or take 0.1 ms."""
    end = kuyruk.current_task().deadline + (number % 21 - 10) / 1e5
    # A sleep ends up to a few tenths of a millisecond late: the rest is spent in a loop.
    time.sleep(max(0.0, end - time.monotonic() - 0.0005))
    while time.monotonic() < end:
        pass
    ran.append(number)


def stay_calm(number):
    """Note an interruption that was meant for another task in this thread."""
    try:
        for _ in range(300):
            pass
    except BaseException as error:
        ran.append(type(error).__name__)
        raise
    ran.append(number)


def get_stuck(number=None):
    ran.append(number)
    trap.get()


def swallow_everything():
    while not release.is_set():
        try:
            time.sleep(0.005)
        except Exception as error:
            ran.append(type(error).__name__)
    ran.append("ends")


def look_around(number=None):
    """Note how many threads were in here at most while this one was."""
    around.add(threading.get_ident())
    most = []
    for _ in range(5):
        time.sleep(0.001)
        most.append(len(around))
    around.discard(threading.get_ident())
    ran.append((number, max(most)))


def note_both_ends(path):
    append_to(path, "begins")
    time.sleep(0.5)
    append_to(path, "ends")


def doze():
    time.sleep(0.1)


def append_to(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\n")


def tell_current_task():
    run = kuyruk.current_task()
    return [run.task.name, run.id, run.queue, run.redelivered, run.remaining()]


# --- Exceptions --------------------------------------------------------------

#: Each with what it can be caught as, and whether `except Exception` catches it, too: a task must
#: not swallow the two that say that its message will run again.
EXCEPTIONS = {
    "KuyrukError": ("Exception", True),
    "Reject": ("KuyrukError", True),
    "Discard": ("KuyrukError", True),
    "Timeout": ("KuyrukError", True),
    "ResultTimeout": ("KuyrukError", True),
    "RemoteException": ("KuyrukError", True),
    "InvalidMessage": ("KuyrukError", True),
    "BrokerError": ("ConnectionError", True),
    "Crashed": ("KuyrukError", True),
    "HeartbeatError": ("BaseException", False),
    "Shutdown": ("BaseException", False),
}


@pytest.mark.parametrize(("name", "base"), EXCEPTIONS.items())
def test_an_exception_belongs_to_kuyruk_exceptions_and_can_be_pickled(name, base):
    kind, module = getattr(kuyruk, name), importlib.import_module("kuyruk.exceptions")
    assert (getattr(module, name), kind.__module__) == (kind, "kuyruk.exceptions")
    assert (module, module.__file__) == (kuyruk.exceptions, kuyruk.__file__)
    assert base[0] in [each.__name__ for each in kind.__mro__]
    assert issubclass(kind, Exception) is base[1]
    error = kind("type", "value", "traceback") if name == "RemoteException" else kind("value")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (kind, error.args, vars(error))


def test_exceptions_of_others_stay_where_they_are():
    exported = {name for name, value in vars(kuyruk.exceptions).items() if isinstance(value, type)}
    assert exported == set(EXCEPTIONS)
    assert amqpstorm.AMQPError.__module__ == "amqpstorm.exception"


@pytest.mark.parametrize("name", ["kuyruk", "pkg.kuyruk"])
def test_exceptions_are_imported_as_from_a_module_and_in_a_vendored_copy(name, tmp_path):
    make_package(tmp_path, "pkg")
    shutil.copy(kuyruk.__file__, tmp_path / "pkg")
    code = (
        f"import pickle, sys, {name}, {name}.exceptions\nfrom {name}.exceptions import Reject\n"
        f"assert Reject is {name}.Reject is {name}.Kuyruk.Reject is {name}.exceptions.Reject\n"
        "copy = pickle.loads(pickle.dumps(Reject()))\n"
        "print(type(copy), 'pkg' in sys.modules, 'kuyruk' in sys.modules)"
    )
    vendored = name != "kuyruk"
    expected = f"<class '{name}.exceptions.Reject'> {vendored} {not vendored}\n"
    assert run_python("-c", code, cwd=tmp_path) == expected


LOST = (OSError, OSError("reset"), None)


@pytest.mark.parametrize(
    ("error", "attributes", "text"),
    [
        (
            kuyruk.RemoteException("builtins.ValueError", "bad", "Traceback..."),
            {"type": "builtins.ValueError", "value": "bad", "traceback": "Traceback..."},
            "builtins.ValueError('bad')",
        ),
        (kuyruk.BrokerError("away"), {"unconfirmed": []}, "away"),
        (
            kuyruk.HeartbeatError(LOST),
            {"exc_info": LOST},
            "the worker has lost its connection: reset",
        ),
        # As a program may raise it.
        (kuyruk.HeartbeatError(), {"exc_info": None}, "the worker has lost its connection: None"),
        (kuyruk.HeartbeatError(5), {"exc_info": 5}, "the worker has lost its connection: 5"),
        (kuyruk.Reject("no", delay=30), {"delay": 30}, "no"),
        (kuyruk.Reject(delay=0), {"delay": 0}, ""),
        (kuyruk.Reject(), {"delay": None}, ""),
    ],
    ids=repr,
)
def test_an_exception_says_what_happened(error, attributes, text):
    assert ({name: getattr(error, name) for name in attributes}, str(error)) == (attributes, text)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), text)
    # Other exceptions aren't equal to their copies.
    assert error.args == (LOST,) or vars(copy) == vars(error)


@pytest.mark.parametrize("delay", [-1, "5", math.nan, 2**32])
def test_a_rejection_takes_no_delay_that_rabbitmq_could_not_keep(delay):
    with pytest.raises(ValueError, match="delay takes seconds"):
        kuyruk.Reject(delay=delay)


def test_an_uncaught_remote_exception_shows_the_workers_traceback():
    error = kuyruk.RemoteException("builtins.ValueError", "bad", "in the worker's line 5")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert "in the worker's line 5" in "".join(traceback.format_exception(each))
    without = traceback.format_exception(kuyruk.RemoteException("a.B", "bad", None))
    assert without == ["kuyruk.exceptions.RemoteException: a.B('bad')\n"]


# --- Logging -----------------------------------------------------------------


def test_a_record_that_comes_as_the_log_thread_is_about_to_end_is_written(monkeypatch, caplog):
    """1. The log thread: finds no more records. 2. Another thread: appends one, and starts no log
    thread, because there is one. 3. The log thread: would end; it must look once more."""

    class Records(collections.deque):
        def popleft(self):
            try:
                return super().popleft()
            except IndexError:  # 1
                if late:
                    kuyruk._log_aside(logging.WARNING, late.pop())  # 2
                raise

    late = ["late"]
    monkeypatch.setattr(kuyruk, "_records", Records())
    kuyruk._log_aside(logging.WARNING, "first")
    wait_until(lambda: caplog.messages == ["first", "late"])
    wait_until(lambda: not kuyruk._log_token.locked())


# --- Signals -----------------------------------------------------------------

SIGNALS = [
    "task_init", "task_presend", "task_postsend", "task_preapply", "task_postapply", "task_prerun",
    "task_postrun", "task_success", "task_error", "task_failure", "worker_init", "worker_start",
    "worker_shutdown", "worker_failure",
]  # fmt: skip


@pytest.fixture
def connect():
    """connect(name, f, sender) connects a receiver to a signal until the test ends."""
    connected = []

    def connect(name, f, sender=None):
        signal = getattr(kuyruk.signals, name)
        connected.append((signal, signal.connect(f, sender)))

    yield connect
    for each, f in connected:
        each.disconnect(f)
    left = {name: getattr(kuyruk.signals, name).receivers for name in SIGNALS}
    assert left == dict.fromkeys(SIGNALS, ())


@pytest.fixture
def heard(connect):
    """heard(name, ..., sender=app) is a list of what is sent by these signals from now on: name,
    sender, keyword arguments."""

    def hear(*names, sender=None):
        sent = []
        for name in names:
            connect(name, lambda app, name=name, **facts: sent.append((name, app, facts)), sender)
        return sent

    return hear


@pytest.mark.parametrize("name", ["kuyruk", "pkg.kuyruk"])
def test_signals_are_imported_as_from_a_module_and_in_a_vendored_copy(name, tmp_path):
    make_package(tmp_path, "pkg")
    shutil.copy(kuyruk.__file__, tmp_path / "pkg")
    code = (
        f"import {name}.signals, {name}, sys\n"
        f"from {name} import signals\nfrom {name}.signals import task_prerun\n"
        f"assert signals.task_prerun is task_prerun is {name}.signals.task_prerun\n"
        "names = sorted(n for n in vars(signals) if n[0] != '_')\n"
        "print(*names, 'kuyruk' in sys.modules, signals.__name__)"
    )
    names = " ".join(sorted(["Signal", *SIGNALS]))  # no others: they are what users may rely on
    assert run_python("-c", code, cwd=tmp_path) == f"{names} {name == 'kuyruk'} {name}.signals\n"


def test_a_receiver_is_called_for_its_sender_until_it_is_disconnected(offline):
    signal, other, seen = kuyruk.signals.Signal("s"), kuyruk.Kuyruk(), []

    def everybodys(sender, **kwargs):
        seen.append((sender, kwargs))
        return 1

    @signal.connect_via(offline)
    def ours(sender, number, **kwargs):
        seen.append(number)
        return 2

    # What is connected twice is called once.
    assert [signal.connect(everybodys), signal.connect(everybodys)] == [everybodys] * 2
    assert signal.send(offline, number=5) == [(ours, 2), (everybodys, 1)]
    assert signal.send(other, number=6) == signal.send(number=6) == [(everybodys, 1)]
    assert seen == [5, (offline, {"number": 5}), (other, {"number": 6}), (None, {"number": 6})]
    signal.connect(everybodys, sender=other)
    # None of these three takes away what is connected for others.
    signal.disconnect(ours, other)
    signal.disconnect(everybodys, other)
    signal.disconnect(print)
    assert signal.send(other, number=7) == [(everybodys, 1)]
    signal.disconnect(everybodys)
    assert (signal.send(other, number=8), signal.send(offline, number=8)) == ([], [(ours, 2)])
    signal.disconnect(ours)
    assert (signal.receivers, signal.send(offline, number=9)) == ((), [])


def test_a_weak_receiver_is_called_as_long_as_it_exists():
    class Extension:
        def receive(self, sender, **kwargs):
            return "heard"

    signal, weak, strong = kuyruk.signals.Signal("s"), Extension(), Extension()
    signal.connect(weak.receive, weak=True)
    signal.connect(strong.receive)
    assert [answer for _, answer in signal.send()] == ["heard", "heard"]
    del weak, strong
    gc.collect()
    assert [answer for _, answer in signal.send()] == ["heard"]


def test_a_signal_does_not_keep_an_application_alive(connect):
    app = kuyruk.Kuyruk()
    kept = weakref.ref(app)
    connect("task_init", print, app)
    del app
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("receiver", [5, None, "x"])
def test_a_receiver_is_a_plain_function(receiver):
    async def later(sender, **kwargs):
        pass

    for wrong in (receiver, later):
        with pytest.raises(TypeError, match="plain function"):
            kuyruk.signals.task_prerun.connect(wrong)


def test_a_receiver_that_raises_is_logged_and_changes_nothing(offline, connect, heard, caplog):
    def fail(sender, **kwargs):
        raise ValueError("oops")

    connect("task_success", fail)
    sent = heard("task_success")  # which is called after it
    assert offline.task(echo).apply(5) == 5
    assert [name for name, _, _ in sent] == ["task_success"]
    assert "signal task_success has raised" in caplog.text and "ValueError: oops" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, kuyruk.HeartbeatError, KeyboardInterrupt])
def test_what_is_no_exception_is_the_programs_in_the_main_thread_only(error, caplog):
    def fail(sender, **kwargs):
        raise error

    signal = kuyruk.signals.Signal("s")
    signal.connect(fail)
    with pytest.raises(error):
        signal.send()
    assert caplog.messages == []
    # In another thread nobody would catch it, and the thread is the library's: it is logged there.
    assert background(signal.send).result(PATIENCE) == []
    assert caplog.messages == ["A receiver of the signal s has raised"]


def test_a_log_that_raises_does_not_stop_a_signal(monkeypatch):
    signal = kuyruk.signals.Signal("s")
    signal.connect(lambda sender: 1 / 0)
    signal.connect(lambda sender: 5)
    monkeypatch.setattr(kuyruk.logger, "log", lambda *args, **options: 1 / 0)
    assert [answer for _, answer in signal.send()] == [5]


@pytest.mark.parametrize(
    ("eager", "steps", "second_try"),
    [
        (False, [ValueError(), 5], "prerun postrun success"),
        (True, [ValueError(), ValueError()], "prerun error postrun failure"),
    ],
    ids=["apply", "EAGER"],
)
def test_a_run_sends_its_signals_in_order(eager, steps, second_try, offline, heard):
    names = f"preapply prerun error postrun {second_try} postapply"
    sent = heard(*(name for name in SIGNALS if name.startswith("task_")), sender=offline)
    task = offline.task(retry=1)(play)
    offline.config.EAGER = eager
    script[:] = steps
    with contextlib.suppress(ValueError):
        task(1, a=2) if eager else task.apply(1, a=2)
    kuyruk.Kuyruk().task(echo).apply(7)  # another sender's
    about = {"task": task, "args": (1,), "kwargs": {"a": 2}}
    seen = [(name, app, {k: facts[k] for k in facts.keys() & about}) for name, app, facts in sent]
    # In EAGER nothing is sent, so there is neither presend nor postsend.
    assert seen[1:] == [(f"task_{name}", offline, about) for name in names.split()]
    assert seen[0] == ("task_init", offline, {"task": task})
    errors = [step for step in steps if isinstance(step, ValueError)]
    shown = [facts["exc_info"] for _, _, facts in sent if "exc_info" in facts]
    # Each try's error, and if it is the last try's that of the failure, too.
    assert [info[:2] for info in shown] == [(ValueError, error) for error in errors + errors[1:]]
    assert {type(info[2]) for info in shown} == {types.TracebackType}


def test_a_receiver_may_add_to_what_is_sent(app, queue, broker, connect, heard):
    given = {"task": app.task(queue)(echo), "args": (1,), "kwargs": {"a": 2}}

    def add_trace(sender, description, **facts):
        assert (sender, facts) == (app, given)
        description["trace"] = "x"
        facts["kwargs"]["b"] = 3

    connect("task_presend", add_trace, app)
    sent = heard("task_postsend", sender=app)
    task = given["task"]
    task.send_to_queue((1,), {"a": 2})
    app.send_tasks_to_queue([task.subtask((1,), {"a": 2})])
    with pytest.raises(kuyruk.ResultTimeout):
        task.send_to_queue((1,), {"a": 2}, wait_result=0.5)
    bodies = [json.loads(broker.take(queue).body) for _ in range(3)]
    changed = {"a": 2, "b": 3}
    assert [(body["trace"], body["kwargs"]) for body in bodies] == [("x", changed)] * 3
    ids = [facts.pop("description")["id"] for _, _, facts in sent]
    assert ids == [body["id"] for body in bodies]
    assert [facts for _, _, facts in sent] == [{**given, "kwargs": changed}] * 3


@pytest.mark.parametrize("what", ["raises", "no JSON"])
def test_a_receiver_can_prevent_a_send(what, offline, connect, heard):
    def prevent(sender, description, **kwargs):
        if what == "raises":
            raise PermissionError("not you")
        description["bad"] = object()

    task, sent = offline.task(echo), heard("task_postsend")
    connect("task_presend", prevent)
    for send in (task, lambda: offline.send_tasks_to_queue([task.subtask()])):
        with pytest.raises(PermissionError if what == "raises" else TypeError):
            send()
    assert (sent, threads_of_ours()) == ([], [])


def test_what_was_not_sent_is_not_announced(offline, heard):
    task, sent = offline.task(echo), heard("task_postsend")
    for send in (task, lambda: offline.send_tasks_to_queue([task.subtask()])):
        with pytest.raises(kuyruk.BrokerError):
            send()
    assert sent == []


@pytest.mark.parametrize("found", [True, False])
def test_a_failure_is_announced_as_kuyruk_sentry_takes_it(found, offline, heard):
    sent, error = heard("worker_failure", sender=offline), ValueError("x")
    worker = offline.worker()
    description = kuyruk._decode_task(
        b'{"module": "m", "function": "f", "args": [1], "kwargs": {}, "x": 5}'
    )
    task = offline.task(echo)
    worker._signal_failure("q", description, task if found else None, error)
    ((_, _, facts),) = sent
    assert facts == {
        "worker": worker,
        "queue": "q",
        "description": description.whole,
        "exc_info": (ValueError, error, None),
        **({"task": task, "args": [1], "kwargs": {}} if found else {}),
    }
    # A message that can't be decoded has a description, too: Kuyruk-Sentry writes into it.
    worker._signal_failure("q", None, None, error)
    assert sent[-1][2]["description"] == {}


@pytest.mark.parametrize("given", [None, {"a": 1}])
def test_a_receiver_sets_headers_of_what_is_sent(given, app, queue, broker, connect, heard):
    def trace(sender, task, args, kwargs, description):
        description["headers"]["traceparent"] = "00-1"

    connect("task_presend", trace)
    connect("task_presend", lambda _, description, **facts: description["headers"].update(b=[2]))
    task, sent = app.task(queue)(echo), heard("task_postsend", sender=app)
    task.send_to_queue((1,), headers=given)
    app.send_tasks_to_queue([task.subtask((1,), headers=given)])
    with pytest.raises(kuyruk.ResultTimeout):
        task.send_to_queue((1,), headers=given, wait_result=0.5)
    task.send_to_queue((1,), headers=given, delay=0.2)
    messages = [broker.take(queue) for _ in range(4)]
    # RabbitMQ's own (x-death and others) are in the one that was delayed.
    headers = [
        {k: v for k, v in message.properties["headers"].items() if not k.startswith("x-")}
        for message in messages
    ]
    assert headers == [{"traceparent": "00-1", "b": [2], **(given or {})}] * 4
    assert given in (None, {"a": 1})  # the caller's is as it was
    bodies = [json.loads(message.body) for message in messages]
    described = [facts["description"] for _, _, facts in sent]
    assert [each for each in bodies + described if "headers" in each] == []


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"a": object}, "headers takes"),
        ({"CC": ["q"]}, "headers takes any names"),
        ({"x-kuyruk-failures": 1}, "headers takes any names"),
        (5, "headers takes a dict"),
        (None, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_headers_of_a_receiver_are_checked_as_those_of_a_sender(
    headers, says, app, queue, broker, connect
):
    connect("task_presend", lambda _, description, **facts: description.update(headers=headers))
    task = app.task(queue)(echo)
    for send in (task, lambda: app.send_tasks_to_queue([task.subtask()])):
        with pytest.raises(ValueError, match=says) if says else contextlib.nullcontext():
            send()
    if says:
        assert broker.count(queue) is None
    else:
        assert [m.properties["headers"] for m in broker.take_all(queue)] == [None, None]


# --- Config ------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
# A surrogate, an object and 2**70 are values that Python takes and AMQP can't carry.
TEXT = (["", "x", "päss:w@rd/"], [None, 5, b"x", "\ud800", "x\udcff"])
FLAG = ([True, False], [None, 2, "yes", "True"])
TABLE = (
    [{}, {"x-queue-type": "quorum"}],
    [None, [], "x", {1: 2}, {"x": object()}, {"x": 2**70}],
)
NO_SECONDS = [-1, NAN, INF, "5", True]
COUNT = ([1, 100], [0, -1, 1.5, "8", None, True])
#: Key: its default; values that it takes; values that it doesn't.
KEYS = {
    "RABBIT_HOST": (
        "localhost",
        ["a:1", "a, b:2", "::1", "[::1]:1"],
        [None, 5, "", "a,", "a:0", "a:99999", "a:b", "a:5672:x", "db:5672:5673"],
    ),
    "RABBIT_PORT": (5672, [1, 65535], [0, 65536, "5672", 5672.0, True, None]),
    "RABBIT_USER": ("guest", *TEXT),
    "RABBIT_PASSWORD": ("guest", *TEXT),
    "RABBIT_VIRTUAL_HOST": ("/", *TEXT),
    "RABBIT_URL": (
        None,
        ["amqp://a", "amqps://u:p@a:1,b/v"],
        [5, "", "http://a", "a:1", "amqp://a:x/", "amqp://?a", "amqp://a:1:2/"],
    ),
    "RABBIT_SSL": (False, *FLAG),
    "RABBIT_SSL_OPTIONS": (
        {},
        [{}, {"cafile": "x"}],
        [{"ca_file": "x"}, {"verify_mode": "on"}, *TABLE[1]],
    ),
    "RABBIT_HEARTBEAT": (60, [0, 1, 65535], [-1, 65536, 1.5, "5", None]),
    "RABBIT_CONNECT_TIMEOUT": (5, [0.1, 5, 2**31 - 1], [0, None, 1e10, *NO_SECONDS]),
    "RABBIT_PUBLISH_TIMEOUT": (10, [0.1, 5, 2**31 - 1], [0, None, 1e10, *NO_SECONDS]),
    "RABBIT_CONFIRM": (True, *FLAG),
    "RABBIT_IDLE_DURATION": (60, [0.1, 5], [0, None, *NO_SECONDS]),
    "QUEUE_ARGUMENTS": ({}, *TABLE),
    "EAGER": (False, *FLAG),
    "FAILED_TTL": (604800, [None, 0.5, 60], [2**32, *NO_SECONDS]),
    "WORKER_THREADS": (8, *COUNT),
    "WORKER_PROCESSES": (1, *COUNT),
    "WORKER_PREFETCH": (None, [1, 65535], [0, -1, 65536, 1.5, "8"]),
    "WORKER_MAX_LOAD": (None, [-1, 0.5, 20], [-2, NAN, INF, "5", True]),
    "WORKER_MAX_RUN_TIME": (None, [0.5, 3600], NO_SECONDS),
    "WORKER_GRACE": (5, [0, 0.5, 5], [None, *NO_SECONDS]),
    "WORKER_SHUTDOWN_TIMEOUT": (None, [0, 0.5], NO_SECONDS),
    "WORKER_RECONNECT_INTERVAL": (5, [0.1, 5], [0, None, *NO_SECONDS]),
    "WORKER_PRIORITY": (None, [-1, 0, 10], [1.5, "5", 2**31, True]),
    "WORKER_MAX_CRASHES": (3, *COUNT),
    "WORKER_LOGGING_LEVEL": ("INFO", ["DEBUG", "INFO"], ["LOUD", 10, None, ""]),
}
DEFAULTS = {key: default for key, (default, _, _) in KEYS.items()}
LOADERS = [
    "from_dict", "from_object", "from_object by name", "from_pyfile", "from_pymodule",
    "from_env_vars",
]  # fmt: skip


def test_the_defaults_are_those_of_the_documentation():
    keys = filter(str.isupper, dir(kuyruk.Config))
    assert {key: getattr(kuyruk.Config, key) for key in keys} == DEFAULTS


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, row in KEYS.items() for value in [row[0], *row[1]]]
)
def test_a_key_takes_its_values(key, value):
    config = kuyruk.Config()
    config.from_dict({key: value})
    # What an object is given is for that object only.
    assert (getattr(config, key), getattr(kuyruk.Config, key)) == (value, DEFAULTS[key])


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, row in KEYS.items() for value in row[2]]
)
def test_a_key_refuses_other_values(key, value):
    config = kuyruk.Config()
    with pytest.raises(ValueError, match=f"{key} takes"):
        config.from_dict({key: value})
    with pytest.raises(ValueError, match=f"{key} takes"):
        setattr(config, key, value)
    assert getattr(config, key) == DEFAULTS[key]


@pytest.mark.parametrize(
    "key", ["RABBIT_HOSTS", "rabbit_host", "from_dict", "__class__", "EAGERR", "x"]
)
def test_an_unknown_key_is_an_error(key):
    with pytest.raises(ValueError, match=key):
        kuyruk.Config().from_dict({key: "x"})
    with pytest.raises(ValueError, match=key):
        setattr(kuyruk.Config(), key, "x")


@pytest.mark.parametrize("key", ["SENTRY_DSN", "WORKER_NAME"])
def test_a_key_that_an_extension_adds_with_a_default_is_as_good_as_ours(key, caplog):
    kuyruk._warn_of_unread_key.cache_clear()  # else it would say nothing because it has before
    config = type("Own", (kuyruk.Config,), {key: None})()
    config.from_dict({key: "x"})
    assert (getattr(config, key), caplog.messages) == ("x", [])


@pytest.fixture
def load(request, tmp_path, monkeypatch):
    """load(values) loads a configuration with the loader that a test is parametrised with."""
    module = f"settings_{uuid.uuid4().hex}"

    def load(values):
        lines = [f"{key} = {value!r}\n" for key, value in values.items()]
        # A module and a lower-case name are no values; the class is for "from_object by name".
        lines += ["import os as NOT_A_VALUE\nhelper = 1\nclass Production:\n"]
        lines += [f"    {line}" for line in lines[: len(values)]]
        (tmp_path / f"{module}.py").write_text("".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        for key, value in values.items() if request.param == "from_env_vars" else ():
            monkeypatch.setenv(f"KUYRUK_{key}", repr(value))
        arguments = {
            "from_dict": [values],
            "from_object": [types.SimpleNamespace(lower="ignored", **values)],
            "from_object by name": [f"{module}.Production"],
            "from_pyfile": [str(tmp_path / f"{module}.py")],
            "from_pymodule": [module],
        }
        config = kuyruk.Config()
        getattr(config, request.param.split()[0])(*arguments.get(request.param, []))
        return config

    return load


@pytest.mark.parametrize("load", LOADERS, indirect=True)
def test_a_loader_takes_every_kind_of_value(load):
    values = {
        "RABBIT_HOST": "a", "RABBIT_PORT": 5673, "EAGER": True, "FAILED_TTL": None,
        "WORKER_GRACE": 0.5, "QUEUE_ARGUMENTS": {"x-queue-type": "quorum"},
    }  # fmt: skip
    assert vars(load(values)) == {**vars(kuyruk.Config()), **values}


@pytest.mark.parametrize("load", LOADERS, indirect=True)
@pytest.mark.parametrize(
    "key", ["RABBIT_HOSTS", "RABBIT_PORT"], ids=["an unknown key", "a bad value"]
)
def test_a_loader_refuses_what_an_assignment_refuses(load, key):
    with pytest.raises(ValueError, match=key):
        load({key: [1]})


@pytest.mark.parametrize(
    ("text", "error"), [("1/0", ZeroDivisionError), ("1 +", SyntaxError), (None, FileNotFoundError)]
)
def test_a_configuration_file_that_cannot_be_run_is_an_error(text, error, tmp_path):
    if text is not None:
        (tmp_path / "config.py").write_text(text)
    with pytest.raises(error):
        kuyruk.Config().from_pyfile(str(tmp_path / "config.py"))


@pytest.mark.parametrize("loader", ["from_object", "from_pymodule"])
@pytest.mark.parametrize("path", ["nowhere", "nowhere.at_all", "os.nothing"])
def test_a_path_that_leads_nowhere_is_an_import_error(loader, path):
    with pytest.raises(ImportError):
        getattr(kuyruk.Config(), loader)(path)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("RABBIT_PORT", "5673", 5673), ("RABBIT_HOST", "rabbit.example.com", "rabbit.example.com"),
        ("RABBIT_HOST", "'quoted'", "quoted"), ("RABBIT_URL", "amqp://a:b@c/d", "amqp://a:b@c/d"),
        ("FAILED_TTL", "None", None), ("RABBIT_URL", "None", None),
        ("QUEUE_ARGUMENTS", "{'a': 5}", {"a": 5}),
        # What takes only strings gets a string, though the text looks like something else.
        ("RABBIT_PASSWORD", "1234", "1234"), ("RABBIT_PASSWORD", "None", "None"),
        ("RABBIT_PASSWORD", "[", "["), ("RABBIT_USER", "1e5", "1e5"),
        # In an environment, flags are often written so.
        ("EAGER", "True", True), ("EAGER", "1", True), ("EAGER", "0", False),
    ],
)  # fmt: skip
def test_environment_variables_are_literals_or_else_strings(key, text, value, monkeypatch):
    monkeypatch.setenv(f"KUYRUK_{key}", text)
    config = kuyruk.Config()
    config.from_env_vars()
    loaded = getattr(config, key)
    assert (loaded, type(loaded)) == (value, type(value))  # 1 is equal to True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RABBIT_URL", "http://user:hunter2@host"),
        ("RABBIT_URL", "amqp://user:hunter2@host:99999"),
        ("RABBIT_URL", "amqp://user:hunter2@host:port"), ("RABBIT_SSL_OPTIONS", ["hunter2"]),
        ("RABBIT_SSL_OPTIONS", {1: "hunter2"}), ("RABBIT_PASSWORDS", "hunter2"),
        ("RABBIT_PASSWORD", "hunter2\udcff"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("load", LOADERS, indirect=True)
def test_a_secret_is_in_no_error(load, key, value):
    with pytest.raises(ValueError, match=key) as info:
        load({key: value})
    errors = (info.value, info.value.__cause__, info.value.__context__)
    assert [error for error in errors if "hunter2" in str(error)] == []


def test_a_secret_is_in_no_repr_and_no_log(make_app, caplog):
    caplog.set_level(logging.DEBUG)
    app = make_app(
        "amqp://user:hunter2@127.0.0.1:1/", RABBIT_PASSWORD="hunter2", RABBIT_PUBLISH_TIMEOUT=0.5
    )
    app.config.RABBIT_SSL_OPTIONS = {"keyfile": "hunter2"}
    with pytest.raises(kuyruk.BrokerError) as info:
        app.task(echo)()
    wait_until(lambda: "can't connect to RabbitMQ at 127.0.0.1:1" in caplog.text)
    error = "".join(traceback.format_exception(info.value))
    texts = [repr(app.config), repr(app), error, caplog.text]
    assert [text for text in texts if "hunter2" in text] == []
    assert "RABBIT_PUBLISH_TIMEOUT=0.5" in texts[0]  # what is no secret is shown


GUEST = ["guest", "guest", "/", False]


def parsed_address(config):
    """Return what a configuration makes of hosts and of a URL: addresses; user, password, virtual
    host and whether to use TLS."""
    options = config._connection_options()
    names = ("username", "password", "virtual_host", "ssl")
    return config._addresses(), [options[name] for name in names]


@pytest.mark.parametrize(
    ("url", "addresses", "login"),
    [
        ("amqp://", [("localhost", 5672)], GUEST),
        ("amqp://h/", [("h", 5672)], GUEST),
        ("amqps://h", [("h", 5671)], [*GUEST[:3], True]),
        ("amqp://u:p@h:1/v", [("h", 1)], ["u", "p", "v", False]),
        ("amqp://u%40x:p%2F%3A@h/a%2Fb", [("h", 5672)], ["u@x", "p/:", "a/b", False]),
        ("amqp://a,b:5673,c/%2F", [("a", 5672), ("b", 5673), ("c", 5672)], GUEST),
        ("amqp://u:p@[::1]:5673,[::2]", [("::1", 5673), ("::2", 5672)], ["u", "p", "/", False]),
        # Not encoded as it should be, but there is only one way to read it.
        ("amqp://u@x:p@:y@h/a/b", [("h", 5672)], ["u@x", "p@:y", "a/b", False]),
        ("amqp://:p@h", [("h", 5672)], ["guest", "p", "/", False]),
    ],
)
def test_a_url_wins_over_the_other_keys(url, addresses, login):
    config = kuyruk.Config()
    config.from_dict({"RABBIT_HOST": "x", "RABBIT_PORT": 9, "RABBIT_USER": "x", "RABBIT_URL": url})
    assert parsed_address(config) == (addresses, login)


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("a", [("a", 9)]), ("a, b:5673 ,c", [("a", 9), ("b", 5673), ("c", 9)]),
        ("::1", [("::1", 9)]), ("fe80::1", [("fe80::1", 9)]),
        ("[::1],[::2]:5673", [("::1", 9), ("::2", 5673)]),
    ],
)  # fmt: skip
def test_hosts_are_addresses_with_the_port_as_default(hosts, addresses):
    config = kuyruk.Config()
    config.from_dict(
        {"RABBIT_HOST": hosts, "RABBIT_PORT": 9, "RABBIT_VIRTUAL_HOST": "v", "RABBIT_SSL": True}
    )
    assert parsed_address(config) == (addresses, ["guest", "guest", "v", True])


@pytest.mark.parametrize("url", [None, "amqp://h", "amqps://h", "amqp://h:5671,h2"])
def test_a_url_takes_no_encryption_back(url):
    config = kuyruk.Config()
    config.RABBIT_URL, config.RABBIT_SSL = url, True
    assert parsed_address(config)[1] == ["guest", "guest", "/", True]


@pytest.mark.parametrize("wrong", ["amqp://u:hunter2@h/", {"RABBIT_HOST": "h"}, 5, kuyruk.Config])
def test_an_application_says_what_its_configuration_is(wrong):
    app, says = kuyruk.Kuyruk(), r"a kuyruk.Config \(made by from_dict .*RABBIT_URL"
    for configure in (kuyruk.Kuyruk, lambda config: setattr(app, "config", config)):
        with pytest.raises(TypeError, match=says) as info:
            configure(wrong)
        assert "hunter2" not in str(info.value)
    with pytest.raises(TypeError, match=says):
        app.config = None
    assert (vars(app.config), app.extensions) == (vars(kuyruk.Config()), {})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rabbit_host": "x"}, "did you mean 'RABBIT_HOST'"),
        ({"Eager": True}, "did you mean 'EAGER'"),
        ({"WORKER_THREAD": 5}, "did you mean 'WORKER_THREADS'"),
        ({"RABIT_URL": 5}, "did you mean 'RABBIT_URL'"),
        ({"RABBIT_HOST": "amqp://a/"}, "belongs into RABBIT_URL"),
        ({"RABBIT_HOST": "a:b"}, "a port is a number"),
        ({"RABBIT_SSL_OPTIONS": {"ca_file": "x"}}, "'ca_file' is none of ca_certs, cafile"),
        ({"RABBIT_SSL_OPTIONS": {"verify_mode": "requird"}}, "verify_mode is 'required'"),
        ({"WORKER_LOGGING_LEVEL": "loud"}, "there are .*WARNING"),
        ({"RABBIT_PORT": 70000}, "to 65535: not 70000"),
        ({"RABBIT_CONNECT_TIMEOUT": 0}, "seconds from 0.001 to 2147483647: not 0"),
    ],
    ids=str,
)  # fmt: skip
def test_an_error_of_the_configuration_says_what_to_do(values, says):
    with pytest.raises(ValueError, match=says):
        kuyruk.Config().from_dict(values)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://u:PW@h/", "begins with amqp"), ("u:PW@h", "begins with amqp"),
        ("amqp:u:PW@h", "begins with amqp"),
        ("amqp://u:PW@h:0/", "a port is"), ("amqp://u:PW@h:x/", "a port is"),
        ("amqp://u:PW@h h/", "a host is"),
        ("amqp://u:PW", "a port is"), ("amqp://u:12/PW@h/", "written as %2F"),
        ("amqp://u:12/34@h/", "written as %2F"),
        ("amqp://u:P/W@h/v", "written as %2F"), ("amqp://u:PW?x@h/", "as %3F"),
        ("amqp://u:P#W@h/", "as %23"),
        ("amqp://u:PW@h/v?heartbeat=5", "keys here"), ("amqp://u:P[W@h/", "as %5B"),
        ("amqp://u:PW@h/?", "%3F"),
    ],
)  # fmt: skip
def test_a_bad_url_says_what_is_wrong_with_it_and_nothing_of_the_password(url, says):
    with pytest.raises(ValueError, match="RABBIT_URL takes") as info:
        kuyruk.Config().from_dict({"RABBIT_URL": url})
    assert says in str(info.value)
    # The traceback has the source of this test; what follows is the texts of the errors.
    shown = "".join(traceback.format_exception(info.value)).split("ValueError: ", 1)[1]
    assert re.findall("PW|12|34|u:", shown) == []


@pytest.mark.parametrize("load", LOADERS, indirect=True)
@pytest.mark.parametrize(
    "key", ["MANAGER_HOST", "SENTRY_DSN", "X", "RABBIT_READ_TIMEOUT", "WORKER_NAME"]
)
def test_an_extensions_key_is_kept(load, key):
    config = load({key: "hunter2", "EAGER": True})
    assert getattr(config, key) == "hunter2"
    assert "hunter2" not in repr(config)  # it may be a secret
    assert not hasattr(kuyruk.Config(), key)


def test_what_kubernetes_sets_for_a_service_is_ignored(monkeypatch):
    # Of Services that are called kuyruk, kuyruk-rabbit and kuyruk-web.
    services = {
        "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80",
        "PORT": "tcp://10.0.0.1:80",
        "PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_PROTO": "tcp",
        "PORT_80_TCP_ADDR": "10.0.0.1",
        "RABBIT_PORT": "tcp://10.0.0.1:5672", "RABBIT_SERVICE_HOST": "10.0.0.1",
        "RABBIT_PORT_5672_TCP_PORT": "5672",
        "WEB_PORT_53_UDP": "udp://10.0.0.1:53", "RABBIT_SERVICE_PORT": "5672",
    }  # fmt: skip
    for key, text in services.items():
        monkeypatch.setenv(f"KUYRUK_{key}", text)
    monkeypatch.setenv("KUYRUK_RABBIT_HOST", "rabbit")
    config = kuyruk.Config()
    config.from_env_vars()
    assert vars(config) == {**vars(kuyruk.Config()), "RABBIT_HOST": "rabbit"}
    # Only what looks like Kubernetes' is ignored: other nonsense is an error.
    monkeypatch.setenv("KUYRUK_RABBIT_PORT", "fast")
    with pytest.raises(ValueError, match="RABBIT_PORT"):
        config.from_env_vars()


@pytest.mark.parametrize("text", ["info", "Info", "INFO"])
def test_a_logging_level_may_be_written_in_small_letters(text):
    config = kuyruk.Config()
    config.WORKER_LOGGING_LEVEL = text
    assert config.WORKER_LOGGING_LEVEL == "INFO"


@pytest.mark.parametrize("key", ["QUEUE_ARGUMENTS", "RABBIT_SSL_OPTIONS"])
@pytest.mark.parametrize("default", [{}, {"certfile": "y"}], ids=["ours", "a subclass's"])
def test_what_is_put_into_a_table_is_for_one_configuration(key, default):
    kind = type("Own", (kuyruk.Config,), {key: dict(default)}) if default else kuyruk.Config
    config = kind()
    getattr(config, key)["cafile"] = "x"
    tables = [getattr(each, key) for each in (config, kind(), kind)]
    assert tables == [{**default, "cafile": "x"}, default, default]


def test_what_a_subclass_sets_is_checked():
    with pytest.raises(ValueError, match="WORKER_THREADS"):
        type("Own", (kuyruk.Config,), {"WORKER_THREADS": "8"})()


#: Keys that look like ours and that nothing here reads, with what the log says of each.
UNREAD_KEYS = {
    "RABBIT_READ_TIMEOUT": "RABBIT_PUBLISH_TIMEOUT takes its place",
    "RABBIT_WRITE_TIMEOUT": "RABBIT_PUBLISH_TIMEOUT takes its place",
    "TCP_USER_TIMEOUT": "RABBIT_HEARTBEAT takes its place",
    "WORKER_CONCURRENCY": "extension",
    "WORKER_POOL_SIZE": "extension",
    "RABBIT_SSL_CAFILE": "extension",
}


@pytest.mark.parametrize("load", LOADERS, indirect=True)
@pytest.mark.parametrize("key", UNREAD_KEYS)
def test_a_key_that_looks_like_ours_and_has_no_effect_is_kept_and_logged(load, key, caplog):
    kuyruk._warn_of_unread_key.cache_clear()
    config = load({key: "hunter2", "MANAGER_HOST": "x", "EAGER": True})
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "kuyruk")
    assert repr(key) in record.getMessage() and UNREAD_KEYS[key] in record.getMessage()
    assert "hunter2" not in caplog.text
    assert (getattr(config, key), config.EAGER) == ("hunter2", True)
    # It is logged once: neither the worker's copy nor another object says it again.
    worker = kuyruk.Kuyruk(config).worker()
    load({key: "hunter2"})
    assert (getattr(worker._config, key), caplog.records) == ("hunter2", [record])


@pytest.mark.parametrize("wrong", ["RABBIT_HOST", None, 5, [("RABBIT_HOST", "a")]])
def test_what_is_no_dict_is_no_configuration(wrong):
    with pytest.raises(TypeError, match="from_dict takes a dict"):
        kuyruk.Config().from_dict(wrong)
    with pytest.raises(ValueError, match="unknown configuration key 5"):
        kuyruk.Config().from_dict({5: "x"})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"a": object}, "'a' holds none of what AMQP carries: text, numbers, lists and dicts"),
        ({"ok": 1, "a": [{"b": {3.5}}]}, "'a' holds none of"),
        ({"a": 2**70}, "'a' holds none of"),
        ({"a": "\ud800"}, "'a' holds none of"),
        ({"a\ud800": 1}, r"'a.ud800' holds none of"),
        ({"k" * 129: 1}, "a key of 1 to 128 bytes"),
        ({"": 1}, "a key of 1 to 128 bytes"),
    ],
    ids=ascii,
)
def test_a_table_that_amqp_cannot_carry_names_what_it_cannot(table, says, caplog, offline):
    with pytest.raises(ValueError, match=says) as info:
        kuyruk.Config().QUEUE_ARGUMENTS = table
    assert "error" not in str(info.value)  # pamqp's own texts say nothing to a user
    with pytest.raises(ValueError, match="headers takes"):
        offline.task(echo).send_to_queue(headers=table)
    assert caplog.messages == []  # pamqp logs a warning, and cuts a key that is too long


@pytest.mark.parametrize(
    "value",
    [5, None, [], b"os", print, types.SimpleNamespace(debug=1), {"EAGER": True}, os.environ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_without_an_upper_case_attribute_is_no_configuration(value):
    for load in (kuyruk.Config().from_object, kuyruk.Config().from_pymodule):
        with pytest.raises(TypeError, match="from_object takes an object with upper-case"):
            load(value)


def test_a_configuration_file_is_named_by_a_path_and_no_descriptor(tmp_path):
    (tmp_path / "config.py").write_text("EAGER = True")
    with open(tmp_path / "config.py") as file, pytest.raises(TypeError, match="int"):
        kuyruk.Config().from_pyfile(file.fileno())


@pytest.mark.parametrize("load", ["from_object", "from_pymodule", "from_pyfile"])
def test_a_module_that_configures_nothing_is_logged(load, tmp_path, monkeypatch, caplog):
    module = f"empty_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text("import os as OS\nrabbit_host = 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = kuyruk.Config()
    getattr(config, load)(tmp_path / f"{module}.py" if load == "from_pyfile" else module)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "no upper-case name in <module" in record.getMessage()


@pytest.mark.parametrize("name", ["{}.settings", "{}.settings.Production"])
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import not_installed_at_all", "No module named 'not_installed_at_all'"),
        ("from os import nothing_such", "cannot import name 'nothing_such'"),
        ("int('fast')", "invalid literal for int"),
    ],
)
def test_a_configuration_that_cannot_be_imported_says_why(name, code, says, tmp_path, monkeypatch):
    package = f"pkg_{uuid.uuid4().hex}"
    make_package(tmp_path, package, settings=f"{code}\nclass Production: EAGER = True")
    monkeypatch.syspath_prepend(tmp_path)
    for load in (kuyruk.Config().from_object, kuyruk.Config().from_pymodule):
        with pytest.raises((ImportError, ValueError), match=says):
            load(name.format(package))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("RABBIT_VHOST", "RABBIT_VIRTUAL_HOST"), ("RABBIT_PASS", "RABBIT_PASSWORD"),
        ("rabbit_passwd", "RABBIT_PASSWORD"), ("WORKER_LOG_LEVEL", "WORKER_LOGGING_LEVEL"),
        ("RABBIT_CONN_TIMEOUT", "RABBIT_CONNECT_TIMEOUT"), ("RABBIT_HOSTNAME", "RABBIT_HOST"),
        ("RABBIT_URI", "RABBIT_URL"), ("WORKER_PROCS", "WORKER_PROCESSES"),
    ],
)  # fmt: skip
def test_an_abbreviated_key_is_named_in_full(key, meant):
    with pytest.raises(ValueError, match=f"{key}': did you mean '{meant}'"):
        kuyruk.Config().from_dict({key: "x"})


def test_an_application_may_get_another_configuration(offline, make_app, url, queue, broker):
    task = offline.task(queue)(echo)
    with pytest.raises(kuyruk.BrokerError):
        task(1)
    offline.config = make_app(url).config
    task(2)
    assert arguments_in(broker.take_all(queue)) == [(2,)]
    assert url == offline.worker()._config.RABBIT_URL
    offline.config = kuyruk.Config()
    offline.config.EAGER = True
    assert task.send_to_queue((3,), wait_result=1) == 3


# --- Importing, and messages before they are sent ----------------------------


def test_importing_opens_nothing_and_loads_only_the_dependency():
    code = (
        "import sys; seen = []; before = set(sys.modules)\n"
        "sys.addaudithook(lambda event, args: seen.append(event))\n"
        "import kuyruk; app = kuyruk.Kuyruk(); task = app.task(print); app.worker()\n"
        "kinds = 'socket.', 'subprocess.', '_thread.', 'os.fork'\n"
        "bad = [e for e in seen if e.startswith(kinds)]\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(names - set(sys.stdlib_module_names)), bad)"
    )
    # A worker has the sockets that wake its threads, and nothing else before it starts.
    assert run_python("-c", code) == "['amqpstorm', 'kuyruk', 'pamqp'] []\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("pkg/mod.py", "mod.f"),
        ("-m pkg.mod", "pkg.mod.f"),
        ("-m pkg", "pkg.__main__.f"),
        ("-m pkg.other", "pkg.mod.f"),
        ("-m cProfile pkg/mod.py", "mod.f"),  # a profiler is `__main__` itself
    ],
)
def test_a_task_is_named_as_a_worker_imports_it(command, name, tmp_path):
    code = "import kuyruk\n@kuyruk.Kuyruk().task\ndef f(): pass\nprint(f.name)\n"
    make_package(tmp_path, "pkg", mod=code, __main__=code, other="import pkg.mod")
    assert run_python(*command.split(), cwd=tmp_path).splitlines()[0] == name


def test_a_task_keeps_what_is_known_of_its_function(offline):
    options = {
        "queue": "q", "retry": 2, "max_run_time": 50, "fail_delay": 1.5, "reject_delay": 2,
        "max_fail_delay": 60, "max_failures": 3, "throws": (ValueError, OSError),
    }  # fmt: skip

    @offline.task(**options)
    def task(a: int) -> int:
        """What it does."""
        return a

    assert (task.__name__, task.__doc__, task.f(3)) == ("task", "What it does.", 3)
    assert inspect.signature(task) == inspect.signature(task.f)
    assert {name: getattr(task, name) for name in options} == options
    defaults = {**dict.fromkeys(options), "queue": "kuyruk", "throws": ()}
    defaults |= dict.fromkeys(("retry", "fail_delay", "reject_delay"), 0)
    plain = offline.task(echo)
    assert {name: getattr(plain, name) for name in options} == defaults
    assert plain.name == "test_kuyruk.echo"


@pytest.mark.parametrize(
    "options",
    [
        {"retry": -1}, {"retry": 1.5}, {"retry": True},
        {"max_run_time": -1}, {"max_run_time": "5"},
        {"fail_delay": -1}, {"fail_delay": NAN}, {"fail_delay": 2**32},
        {"reject_delay": -1}, {"reject_delay": INF},
        # The next four would have no effect.
        {"max_fail_delay": 5}, {"max_failures": 2}, {"throws": KeyError},
        {"fail_delay": 5, "max_fail_delay": 4},
        {"fail_delay": 5, "max_fail_delay": 2**32}, {"fail_delay": 5, "max_failures": 0},
        {"fail_delay": 5, "max_failures": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_task_option_that_cannot_work_is_refused(options, offline):
    with pytest.raises(ValueError, match=list(options)[-1]):
        offline.task(queue="q", **options)(echo)


class Service:
    def method(self=None):
        return "method"

    @staticmethod
    def make_nested():
        def nested():
            return "nested"

        return nested


@pytest.mark.parametrize("function", [lambda: "lambda", Service.make_nested(), Service.method])
def test_what_a_worker_cannot_import_is_not_sent_but_applied(function, offline):
    task = offline.task(function)
    for send in (
        task,
        lambda: offline.send_tasks_to_queue([offline.task(echo).subtask(), task.subtask()]),
    ):
        with pytest.raises(TypeError, match="a worker finds a task by its name"):
            send()
    assert (task.apply(), threads_of_ours()) == (function(), [])


endless = []  # nested without end: it holds itself
endless.append(endless)


@pytest.mark.parametrize(
    "argument", [object(), {1, 2}, b"bytes", NAN, -INF, {(1, 2): 3}, 1j, [{"a": {1}}], endless]
)
def test_arguments_that_are_not_json_are_refused_before_anything_is_sent(argument, offline):
    task = offline.task(echo)
    for send in (task, lambda a: task(key=a), lambda a: task.send_to_queue((1, a), wait_result=1)):
        with pytest.raises(TypeError, match=r"test_kuyruk\.echo"):
            send(argument)
    with pytest.raises(TypeError, match=r"test_kuyruk\.echo"):
        offline.send_tasks_to_queue([task.subtask((1,)), task.subtask((argument,))])
    assert threads_of_ours() == []  # not even the first of the two was sent


SHORT = st.text(max_size=60)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("content_type", "correlation_id", "reply_to", "expiration", "message_id", "app_id"),
            SHORT,
        ),
        "headers": st.dictionaries(
            st.text(min_size=1, max_size=20), st.integers(-99, 99) | SHORT, max_size=3
        ),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(1, 0xFFFFFFFF).map(
            lambda n: datetime.datetime.fromtimestamp(n, datetime.UTC)
        ),
    },
)


@given(
    properties=PROPERTIES,
    body=st.binary(max_size=50),
    number=st.integers(1, 0xFFFF),
    tag=st.integers(1, 2**63 - 1),
)
def test_frames_are_those_of_the_protocol(properties, body, number, tag):
    """The code of ours for the frames that every message takes, which is faster than pamqp's, makes
    and reads the same bytes."""
    theirs = commands.Basic.Properties(**properties)
    encoded = kuyruk._encode_properties(properties)
    assert encoded == theirs.marshal()
    header = kuyruk._CONTENT_HEADER.pack(60, 0, len(body)) + encoded
    given, decoded = [
        [pair for pair in each if pair[1] not in (None, "")]
        for each in (theirs, kuyruk._decode_properties(header))
    ]
    assert decoded == given
    assert kuyruk._ack_frame(number, tag) == frame.marshal(commands.Basic.Ack(tag), number)
    deliver = frame.marshal(commands.Basic.Deliver("host:1:2", tag, True, "x", "y"), number)
    assert kuyruk._decode_method(deliver[7:-1]) == ("host:1:2", tag, True, "Basic.Deliver")
    publish = frame.marshal(commands.Basic.Publish(routing_key="queue é", mandatory=True), number)
    expected = [publish, struct.pack(">BHI", 2, number, len(header)) + header + b"\xce"]
    # Frames of 20 bytes have room for 12 bytes of a body.
    parts = [body[start : start + 12] for start in range(0, len(body), 12)]
    expected += [frame.marshal(ContentBody(part), number) for part in parts]
    sent = kuyruk._content_frames(number, "queue é", True, encoded, body, 20)
    assert sent == b"".join(expected)


@given(properties=PROPERTIES.filter(lambda properties: "headers" not in properties), data=st.data())
def test_properties_that_are_cut_short_are_never_read(properties, data):
    encoded = kuyruk._CONTENT_HEADER.pack(60, 0, 5) + kuyruk._encode_properties(properties)
    cut = encoded[: data.draw(st.integers(12, len(encoded) - 1))]
    with pytest.raises((ValueError, IndexError)):
        kuyruk._decode_properties(cut)


async def run_later():
    ran.append("later")


async def yield_later():
    yield 1


def yield_one():
    ran.append("one")
    yield 1


class CallableObject:
    def __call__(self):
        return 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (run_later, r"an async function.*asyncio\.run\(run_later"),
        (yield_one, r"generator function.*list\(yield_one"),
        (yield_later, "async generator function"),
        (functools.partial(echo, 1), "write one that calls it"),
        # A worker finds a task by its name in its module, and these have none.
        (CallableObject(), "write one that calls it"), (CallableObject, "write one that calls it"),
        (5, "function"),
        (functools.partial(run_later), "write one that calls it"),
        (types.coroutine(yield_one), "generator function"),
        (kuyruk.Kuyruk().task(echo), "write one that calls it"),
    ],
)  # fmt: skip
def test_what_is_no_plain_function_is_refused_where_it_is_decorated(function, says, offline):
    with pytest.raises(TypeError, match=says):
        offline.task(queue="q")(function)
    assert (offline._tasks, offline._queues) == ({}, {})  # no worker waits for its messages


@functools.wraps(run_later)
def forgets_to_wait():
    return run_later()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        # What each returns does its work only when somebody waits for it, iterates over it or
        # calls it.
        forgets_to_wait, lambda: run_later(), lambda: yield_one(), lambda: yield_later(),
        lambda: map(ran.append, [1]), lambda: filter(ran.append, [1]),
        lambda: functools.partial(echo, 1),
        contextlib.contextmanager(yield_one),
        contextlib.asynccontextmanager(yield_one), lambda: itertools.starmap(ran.append, [(1,)]),
        lambda: zip(map(ran.append, [1]), strict=True), lambda: enumerate(map(ran.append, [1])),
        functools.lru_cache(yield_one),
    ],
    ids=range(13),
)  # fmt: skip
def test_a_function_that_returns_what_is_yet_to_run_has_failed(function, eager, offline):
    offline.config.EAGER = eager
    task = offline.task(function)
    with pytest.raises(TypeError, match="which hasn't run"):
        task() if eager else task.apply()
    assert ran == []


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("child.py", True),
        ("-m pkg.child", True),
        # Nothing in the names of these is one that `import` takes.
        ("app.zip", False),
        ("folder", False),
        ("noext", False),
    ],
)
# In a child of these, the program's own module is called __mp_main__.
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_name_leads_to_the_function_or_is_refused(name, runs, method, tmp_path):
    code = (
        "import kuyruk, multiprocessing, os\n"
        "@kuyruk.Kuyruk().task\n"
        "def f(): pass\n"
        "def tell():\n"
        "    try:\n"
        "        print(f._prepare(f.subtask())[0]['module'], flush=True)\n"
        "    except TypeError as error:\n"
        "        print('no module' in str(error), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    tell()\n"
        f"    process = multiprocessing.get_context({method!r}).Process(target=tell)\n"
        "    process.start(); process.join()\n"
    )
    if not runs:  # a child couldn't import `tell` from there
        code = code.split("    process", maxsplit=1)[0]
    make_package(tmp_path, "pkg", child=code)
    make_package(tmp_path, "folder", __main__=code)
    for path in ("child.py", "noext"):
        (tmp_path / path).write_text(code)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", code)
    module = name.split()[-1].removesuffix(".py")
    assert run_python(*name.split(), cwd=tmp_path) == (f"{module}\n" * 2 if runs else "True\n")


def make_counter(number):
    """Return a new function that is called `counter`, at the top level of this module."""
    global counter

    def counter():
        return number

    counter.__qualname__ = "counter"
    return counter


def test_two_functions_of_one_name_are_refused(offline):
    def other():
        pass

    first = make_counter(1)
    tasks = [offline.task(queue="q")(first), offline.task(first)]
    # One function may be two tasks, with other options.
    assert [(task.f, task.queue) for task in tasks] == [(first, "q"), (first, "kuyruk")]
    other.__name__ = other.__qualname__ = "counter"
    says = r"a task called test_kuyruk\.counter.*test_kuyruk.py:\d+"
    for second in (make_counter(2), other):
        with pytest.raises(ValueError, match=says):
            offline.task(second)
    assert offline._find_task("test_kuyruk", "counter").f is first
    kuyruk.Kuyruk().task(make_counter(3))  # another application has names of its own


def test_a_module_may_be_imported_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "import functools, kuyruk\n"
        "def quiet(f): return functools.wraps(f)(lambda *a: f(*a))\n"
        "@kuyruk.app_of_test.task\n@quiet\ndef f(a): return a\n"
        "@kuyruk.app_of_test.task\ndef g(): return 2\n"
    )
    (tmp_path / "again.py").write_text(code)
    app = kuyruk.Kuyruk()
    monkeypatch.setattr(kuyruk, "app_of_test", app, raising=False)
    module = importlib.import_module("again")
    before = module.f
    importlib.reload(module)
    assert module.f is not before
    assert (app._find_task("again", "f"), module.f.apply(5)) == (module.f, 5)
    # Two functions called f in one module are an error all the same. The file gets another size,
    # because Python may take its compiled copy for fresh when both are of one second.
    (tmp_path / "again.py").write_text(code.replace("def g", "def f") + "\n")
    del sys.modules["again"]
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"again\.f"):
        importlib.import_module("again")


def test_what_a_decorator_leaves_at_the_function_does_not_replace_what_is_the_tasks(offline):
    def f(a):
        return a

    # As tenacity's `retry` does: it sets `f.retry` and `f.statistics`.
    f.retry = f.queue = f.apply = f.send_to_queue = f.kuyruk = f.name = "the decorator's"
    f.statistics = {"calls": 0}
    task = offline.task(queue="q", retry=2)(f)
    assert (task.retry, task.queue, task.kuyruk, task.apply(3)) == (2, "q", offline, 3)
    assert task.name == "test_kuyruk.f"
    assert (task.statistics, task.f.retry) == ({"calls": 0}, "the decorator's")


def test_a_parameter_may_have_any_name(offline):
    offline.config.EAGER = True
    arguments = {"self": 1, "args": 2, "kwargs": 3, "task": 4}
    task = offline.task(lambda self, args, kwargs, task: [self, args, kwargs, task])
    assert task.apply(**arguments) == [1, 2, 3, 4]
    assert task.send_to_queue((), arguments, wait_result=1) == [1, 2, 3, 4]
    assert task(**arguments) is None


def call_itself_wrongly(number):
    return call_itself_wrongly()


def plain(f):
    return f


def quiet(f):
    return functools.wraps(f)(lambda *args, **kwargs: f(*args, **kwargs))


def injects(f):
    return functools.wraps(f)(lambda *args, **kwargs: f("connection", *args, **kwargs))


def spoils(f):
    return functools.wraps(f)(lambda *args, **kwargs: 1 + f("connection", *args, **kwargs))


@pytest.mark.parametrize(
    ("wrap", "function", "args", "tries"),
    [
        # `play` returns a text, and to add 1 to it is a TypeError of the task's own.
        (plain, lambda a: play() + 1, (1,), 3),
        (injects, lambda connection, a: play() + 1, (1,), 3),
        (quiet, functools.wraps(len)(lambda a: play() + 1), (1,), 3),
        (spoils, lambda connection, a: play(), (1,), 3),
        # So is a wrong call that the task makes, though the error's text is that of a wrong call.
        (plain, call_itself_wrongly, (1,), 3),
        (plain, lambda a: add(a), (1,), 3),
        (injects, lambda connection, a: add(a), (1,), 3),
        (plain, len, (5,), 3),
        # These are wrong calls of the task.
        (plain, lambda a: play(), (), 1),
        (quiet, lambda a: play(), (1, 2), 1),
        (injects, lambda connection: play(), (1,), 1),
        (spoils, lambda connection, a: play(), (1, 2), 1),
        (plain, len, (), 1),
    ],
)
def test_a_wrong_call_is_not_tried_again_but_a_type_error_of_the_tasks_own_is(
    wrap, function, args, tries, offline, caplog
):
    script[:] = ["text"] * 3
    with pytest.raises(TypeError):
        offline.task(retry=2)(wrap(function)).apply(*args)
    left = [re.search(r"\((\d) left\)", text)[1] for text in caplog.messages]
    assert left == ["2", "1"][: tries - 1]


POOLED = """
import concurrent.futures, multiprocessing, pickle
import kuyruk
app = kuyruk.Kuyruk()
@app.task
def double(n): return 2 * n
def half(n): return n // 2
halve = app.task(half)
if __name__ == "__main__":
    import pooled
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        functions = pooled.double.f, pooled.double.apply, pooled.halve.f
        futures = [pool.submit(f, 4) for f in functions]
        copy = pickle.loads(pickle.dumps(pooled.double))
        print([future.result() for future in futures], copy is pooled.double)
    print(pooled.double.name, pooled.double.__qualname__, pooled.halve.f.__qualname__)
"""


def test_a_process_pool_can_run_a_tasks_function(tmp_path):
    """Pickle looks for a function by its name in its module, and finds the task there."""
    (tmp_path / "pooled.py").write_text(POOLED)
    assert run_python("pooled.py", cwd=tmp_path) == "[8, 8, 2] True\npooled.double double half\n"


@pytest.mark.parametrize(
    "wrong",
    [
        5, b"q", [5], 0.5, ["ok", None], "",
        # RabbitMQ removes line breaks, keeps "amq." to itself, and takes at most 230 bytes of us.
        "a\nb", "\r", "amq.x", "é" * 116, "\ud800",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_queue_is_refused_wherever_queues_are_named(wrong, offline):
    remote = functools.partial(offline.remote, "m.f")
    for call in (
        offline.task, offline.worker, offline.queue_stats, offline.failed_messages, remote
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"a queue's name is a string|RabbitMQ keeps .* names"):
            call(wrong)


@pytest.mark.parametrize(
    "queue", ["mails für alle", "%", "*", "(", "a\tb", " ", "x.failed", "é" * 115]
)
def test_a_queues_name_may_hold_any_letter(queue, offline):
    assert offline.task(queue=queue)(echo).queue == queue
    assert offline.worker([queue]).queues == [queue]


def test_what_an_unknown_task_costs_does_not_grow_with_the_known(offline, monkeypatch):
    """Older code looked through all names for one that is alike: 59 ms for each such message, in an
    application with 1,000 tasks."""
    task = offline.task(echo)
    known = {f"test_kuyruk.task_number_{n}": task for n in range(50)}

    class Counted(dict):
        """Counts how often somebody goes through all of it."""

        looks = 0

        def __iter__(self):
            Counted.looks += 1
            return super().__iter__()

        keys = values = items = __iter__

    monkeypatch.setattr(offline, "_tasks", Counted(known))
    monkeypatch.setattr(offline, "_longest", Counted({f"q{n}": 5 for n in range(50)}))
    with pytest.raises(kuyruk.InvalidMessage, match="no task 'ech'"):
        offline._find_task("test_kuyruk", "ech")
    offline._queue_arguments("q.host")
    assert Counted.looks == 0


def test_a_message_does_not_run_a_program(offline, tmp_path, monkeypatch):
    make_package(tmp_path, "program", __main__="raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    offline.packages.add("program")
    with pytest.raises(kuyruk.InvalidMessage, match="is a program"):
        offline._find_task("program.__main__", "f")


@given(
    first=st.floats(0.001, 1e6),
    factor=st.floats(1, 1e4),
    failures=st.integers(1, 10**9),
    jitter=st.floats(0, 1),
)
def test_a_delay_doubles_with_each_failure_up_to_the_most_and_has_two_digits(
    first, factor, failures, jitter
):
    most = first * factor
    delay = kuyruk._growing_delay(first, most, failures, jitter)
    doubled = min(first * 2.0 ** min(failures - 1, 60), most)
    # The jitter takes up to a quarter off; two digits, rounded up, add up to a tenth.
    assert max(first, 0.75 * doubled) * (1 - 1e-9) <= delay <= min(1.2 * doubled, most)
    assert delay == most or float(f"{delay:.1e}") == pytest.approx(delay, rel=1e-9)
    assert kuyruk._growing_delay(first, None, failures, jitter) == first


@pytest.mark.parametrize(
    "option",
    [
        {"args": "abc"}, {"args": 5}, {"args": {1}}, {"kwargs": [1]}, {"kwargs": {1: 2}},
        {"wait_result": -1}, {"wait_result": NAN}, {"wait_result": "5"},
        {"message_ttl": -1}, {"message_ttl": NAN}, {"message_ttl": INF}, {"message_ttl": 2**32},
        {"message_ttl": "5"}, {"host": "h" * 256},
        {"delay": -1}, {"delay": NAN}, {"delay": 2**32}, {"delay": "5"},
        {"delay": 1, "wait_result": 1}, {"delay": 1, "message_ttl": 5},
        {"priority": -1}, {"priority": 256}, {"priority": 1.5}, {"priority": "5"},
        {"headers": [1]}, {"headers": {1: 2}}, {"headers": {"a": object()}},
        {"headers": {"a": 2**70}}, {"headers": {"x-kuyruk-failures": 1}},
        {"headers": {"CC": ["other"]}}, {"headers": {"k" * 129: 1}}, {"headers": {"": 1}},
        {"headers": {"a": endless}}, {"id": 5}, {"id": "i" * 256},
    ],
    ids=lambda option: ascii(option)[:40],
)  # fmt: skip
@pytest.mark.parametrize("eager", [False, True], ids=["", "EAGER"])
def test_a_sending_option_that_cannot_work_is_refused_in_eager_too(option, eager, offline):
    offline.config.EAGER = eager
    name = next(iter(option))
    says = "a queue's name" if name == "host" else f"{name} (takes|can't be combined)"
    with pytest.raises((ValueError, TypeError), match=says):
        offline.task(echo).send_to_queue(**option)
    if not option.keys() & {"wait_result", "message_ttl"}:  # which a batch doesn't have
        with pytest.raises((ValueError, TypeError), match=says):
            offline.send_tasks_to_queue([offline.task(echo).subtask(**option)])
    assert (ran, threads_of_ours()) == ([], [])


@pytest.mark.parametrize(
    "name", ["add", "", ".add", "pkg.", "pkg..add", "__main__.f", "a b.c", "a." + "x" * 1000, 5]
)
def test_a_remote_task_has_a_whole_name(name, offline):
    with pytest.raises(ValueError, match=r"<module>\.<function>"):
        offline.remote(name)


def test_a_remote_task_cannot_run_here(offline):
    task = offline.remote("pkg.tasks.add", queue="q")
    assert (task.name, task.queue) == ("pkg.tasks.add", "q")
    # A worker of this application doesn't wait for what it can't run.
    assert (offline._tasks, offline._queues) == ({}, {})
    with pytest.raises(TypeError, match=r"pkg\.tasks\.add can't run here"):
        task.apply(1)
    offline.config.EAGER = True
    with pytest.raises(TypeError, match="can't run here"):
        task(1)


GEVENT = """
import os, sys
order, url, queue = sys.argv[1:]
if order != "before":
    import kuyruk
    app = kuyruk.Kuyruk()
    if order == "after a fork":
        app.config.RABBIT_URL = url
        app.task(queue)(os.path.basename)("x")
        if pid := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
from gevent import monkey
monkey.patch_all()
import gevent, kuyruk
app = kuyruk.Kuyruk() if order == "before" else app
app.config.from_dict({"RABBIT_URL": url, "RABBIT_PUBLISH_TIMEOUT": 5})
@app.task(queue)
def tell(number):
    gevent.sleep(0.01)
    return [number, kuyruk.current_task().id]
tell(0)
with app, app.worker(threads=4):
    jobs = [gevent.spawn(tell.send_to_queue, (n,), id=f"id{n}", wait_result=5) for n in range(20)]
    gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [[n, f"id{n}"] for n in range(20)]
    assert not kuyruk.current_task()
print("ends")
"""


@pytest.mark.parametrize("order", ["before", "after", "after a fork"])
def test_it_may_be_imported_before_or_after_gevents_patch(order, url, queue, tmp_path):
    """Each greenlet sends, waits and runs for itself, with `gunicorn -k gevent --preload`, too."""
    (tmp_path / "program.py").write_text(GEVENT)
    assert run_python("program.py", order, url, queue, cwd=tmp_path) == "ends\n"


@pytest.fixture
def context_log():
    """context_log() returns the lines of a log whose handler has a LogContext."""
    lines, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(lines)
    handler.addFilter(kuyruk.LogContext())
    handler.setFormatter(logging.Formatter("%(task)s %(task_id)s %(queue)s %(message)s"))
    log = logging.getLogger("test.context")
    log.addHandler(handler)
    yield lambda: lines.getvalue().splitlines()
    log.removeHandler(handler)


def log_inner_and_outer(inner=False):
    log = logging.getLogger("test.context")
    log.warning("begins")
    if not inner:
        kuyruk.Kuyruk().task(log_inner_and_outer).apply(inner=True)
        log.warning("goes on", extra={"task_id": "given"})


def test_a_log_record_names_the_task_in_which_it_is_made(offline, context_log):
    logging.getLogger("test.context").warning("outside")
    run = kuyruk.Run(task := offline.task(log_inner_and_outer), "an id", "a queue", False)
    task._run(run, (), {}, None)
    background(logging.getLogger("test.context").warning, "elsewhere").result(PATIENCE)
    name = "test_kuyruk.log_inner_and_outer"
    assert context_log() == [
        "None None None outside", f"{name} an id a queue begins", f"{name} None None begins",
        f"{name} given a queue goes on", "None None None elsewhere",
    ]  # fmt: skip


def test_a_worker_gives_each_record_its_message(app, queue, start, context_log):
    task = app.task(queue)(log_inner_and_outer)
    start(app)
    task.send_to_queue((True,), id="x", wait_result=PATIENCE)
    assert context_log() == [f"{task.name} x {queue} begins"]


def test_a_log_context_filters_by_name_as_every_filter():
    record = logging.LogRecord("a.b", logging.INFO, "file", 1, "text", (), None)
    passes = {name: kuyruk.LogContext(name).filter(record) for name in ("", "a", "c")}
    assert passes == {"": True, "a": True, "c": False}
    assert (record.task, record.task_id, record.queue) == (None, None, None)


@pytest.mark.parametrize("decorated", [classmethod(echo), property(echo), None, ["q"]])
def test_what_is_neither_function_nor_queue_is_refused_at_once(decorated, offline):
    with pytest.raises(ValueError, match="queue"):
        offline.task(decorated)


@pytest.mark.parametrize(
    ("throws", "shown"),
    [
        (ValueError(), r"ValueError\(\)"), ("ValueError", "'ValueError'"),
        ((ValueError(),), r"ValueError\(\)"), (["ValueError"], "'ValueError'"), (5, "5"),
        ((ValueError, 5), "5"), (int, "<class 'int'>"),
    ],
)  # fmt: skip
def test_throws_takes_exception_classes_one_or_several(throws, shown, offline):
    with pytest.raises(ValueError, match=f"throws takes exception classes: not {shown}$"):
        offline.task(throws=throws)(echo)
    assert offline.task(retry=1, throws=KeyError)(echo).throws == (KeyError,)
    assert offline.task(retry=1, throws=[KeyError, OSError])(echo).throws == (KeyError, OSError)


@pytest.mark.parametrize("eager", [False, True])
def test_only_subtasks_are_sent_together(eager, offline):
    offline.config.EAGER = eager
    task = offline.task(echo)
    tuples = [task.subtask(), (task, (), {}, None)]  # a SubTask is more than a tuple
    for wrong in ([task], task.subtask((1,)), [None], tuples, 5, None, "x", [5], {"a": 1}):
        with pytest.raises(
            TypeError, match=r"takes a list of what a task's subtask\(...\) returns"
        ):
            offline.send_tasks_to_queue(wrong)
    assert (ran, threads_of_ours()) == ([], [])  # none of them, not even the right ones


def test_a_subtask_may_be_made_by_hand(offline):
    offline.config.EAGER = True
    task = offline.task(echo)
    empty, given = kuyruk.SubTask(task, None, None, ""), kuyruk.SubTask(task, [1], {}, None)
    offline.send_tasks_to_queue([empty, given])
    assert ran == [(), (1,)]


def test_two_functions_at_no_place_of_a_module_are_two(offline):
    functions = []
    for number in (1, 2):
        namespace = {"__name__": "made"}
        exec(f"def f(): return {number}", namespace)
        functions.append(namespace["f"])
    offline.task(functions[0])
    with pytest.raises(ValueError, match=r"two functions are a task called made\.f"):
        offline.task(functions[1])


@pytest.mark.parametrize("where", ["argument", "result"])
def test_an_object_whose_own_code_raises_is_not_json(where, offline):
    class Lazy(dict):
        def items(self):
            raise KeyError("the database is away")

    offline.config.EAGER = True
    task = offline.task(echo if where == "argument" else play)
    script[:] = [Lazy(a=1)]
    with pytest.raises(TypeError, match=f"{where}.* can't be written as JSON: KeyError: .*is away"):
        task.send_to_queue((Lazy(a=1),) if where == "argument" else (), wait_result=1)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda app: app.task(max_retries=3),
         r"task\(\) takes no option 'max_retries'. It takes .*retry"),
        (lambda app: app.task(retrys=3), r"'retrys': did you mean 'retry'\?"),
        (lambda app: app.task("q", max_runtime=3),
         r"did you mean 'max_run_time'\? It takes queue, ret"),
        (lambda app: app.worker(thread=3),
         r"Worker\(\) .*did you mean 'threads'\? It takes queues, thr"),
        (lambda app: kuyruk.Worker(app, queue="q"),
         "takes no option 'queue': did you mean 'queues'"),
        (lambda app: app.task(echo).send_to_queue(dealy=3),
         r"send_to_queue\(\) .*'dealy': did you mean 'delay'"),
        (lambda app: app.task(echo).send_to_queue(a=1, b=2),
         "no option 'a'. It takes args, kwargs"),
        (lambda app: app.task(echo).send_to_queue(ttl=2), "no option 'ttl'. .*message_ttl"),
        (lambda app: app.task(echo).subtask(header=3), r"subtask\(\) .*did you mean 'headers'"),
        (lambda app: app.task(echo).subtask(wait_result=3),
         "subtask.* no option 'wait_result'. It"),
    ],
)  # fmt: skip
def test_an_unknown_option_is_named_with_what_was_meant_or_what_there_is(
    call, says, eager, offline
):
    offline.config.EAGER = eager
    with pytest.raises(TypeError, match=says):
        call(offline)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda app: kuyruk.Worker(5), "app takes a kuyruk.Kuyruk: not 5"),
        (lambda app: kuyruk.Worker("tasks"), "app takes a kuyruk.Kuyruk: not 'tasks'"),
        (lambda app: kuyruk.Worker(kuyruk.Kuyruk), "app takes a kuyruk.Kuyruk: not <class"),
        (lambda app: kuyruk.Task(echo, "app", "q"), "kuyruk takes a kuyruk.Kuyruk: not 'app'"),
        (lambda app: kuyruk.signals.task_init.connect(print, 5), "sender takes a .*Kuyruk: not 5"),
        (lambda app: kuyruk.signals.task_init.connect_via(echo)(print),
         "sender takes a kuyruk.Kuy"),
        (lambda app: kuyruk.signals.task_init.connect(print, app.config),
         "sender takes a kuyruk.K"),
        (lambda app: app.task(echo).subtask(5), "args takes a list or tuple: not 5"),
        (lambda app: app.task(echo).subtask("abc"), "args takes a list or tuple: not 'abc'"),
        (lambda app: app.task(echo).subtask(kwargs=["a"]), "kwargs takes a dict"),
        (lambda app: app.task(echo).subtask(host=5), "host takes a string, or None: not 5"),
        (lambda app: app.task(echo).subtask(delay=True), "delay takes seconds .*: not True"),
        (lambda app: app.task(echo).subtask(id=5), "id takes a string, or None: not 5"),
        (lambda app: app.send_tasks_to_queue([kuyruk.SubTask(echo, (), {}, None)]),
         "task takes a ku"),
        (lambda app: app.send_tasks_to_queue([kuyruk.SubTask(None, 5, {}, "")]),
         "task takes a kuyr"),
        (lambda app: app.send_tasks_to_queue(
            [kuyruk.SubTask(app.task(echo), 5, {}, "")]), "args takes a list or tuple: not 5"),
        (lambda app: app.worker(threads="4"), "^threads takes a whole number .*: not '4'"),
        (lambda app: app.worker(threads=10**6),
         "^threads takes a whole number from 1 to 10000: not"),
        (lambda app: app.worker(max_load=-2), "^max_load takes a load average"),
        (lambda app: kuyruk.Worker(app, grace=None, shutdown_timeout="x"),
         "^shutdown_timeout takes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("eager", [False, True])
def test_what_is_of_the_wrong_kind_is_named_as_the_user_has_written_it(call, says, eager, offline):
    offline.config.EAGER = eager
    with pytest.raises((TypeError, ValueError), match=says):
        call(offline)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "count() missing 1 required positional argument: 'number'"),
        ((1, 2), "count() takes 1 positional argument but 2 were given"),
        # These calls are the task's own.
        ((0,), "inner() missing 1 required positional argument: 'x'"),
        ((5,), "count.f() takes 1 positional argument but 2 were given"),
    ],
)
def test_a_wrong_call_is_named_as_the_user_knows_the_function(args, says, tmp_path, monkeypatch):
    module = f"counted_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(
        "import kuyruk\napp = kuyruk.Kuyruk()\ndef inner(x): pass\n"
        "@app.task(retry=1)\ndef count(number):\n"
        "    inner() if number == 0 else count.f(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module(module).count
    with pytest.raises(TypeError) as info:
        task.apply(*args)
    assert str(info.value) == says


@pytest.mark.parametrize(
    "make",
    [
        "import runpy; f = runpy.run_path('script.py')['f']",
        "space = {'__name__': 'cell [1]'}; exec(code, space); f = space['f']",
        "exec(code)",
    ],
    ids=["run_path", "a notebook's cell", "-c"],
)
def test_a_function_of_no_module_can_be_applied_and_not_sent(make, tmp_path):
    (tmp_path / "script.py").write_text("import kuyruk\n@kuyruk.Kuyruk().task\ndef f(): return 5\n")
    read = "import pathlib; code = pathlib.Path('script.py').read_text()"
    send = "try: f()\nexcept TypeError as error: print('a worker could import' in str(error))"
    program = f"{read}\n{make}\nprint(f.apply())\n{send}"
    assert run_python("-c", program, cwd=tmp_path) == "5\nTrue\n"


# --- Interrupting a running task ---------------------------------------------


def test_a_task_knows_its_run(offline):
    task = offline.task(lambda: kuyruk.current_task())
    run = task.apply()
    assert (run.task, run.id, run.queue, run.redelivered) == (task, None, None, False)
    assert kuyruk.current_task() is None  # it has ended


def test_a_task_knows_how_much_time_remains(offline):
    def look():
        run, now = kuyruk.current_task(), time.monotonic()
        run.check()
        return run.remaining(), run.deadline and run.deadline - now

    assert offline.task(look).apply() == (None, None)
    remaining, until_deadline = offline.task(max_run_time=50)(look).apply()
    assert 49 < remaining <= 50 and 49 < until_deadline <= 50


def test_a_busy_loop_is_interrupted(offline):
    with takes(0.1, SOON), pytest.raises(kuyruk.Timeout, match=r"0\.1"):
        offline.task(max_run_time=0.1)(spin).apply()


def test_a_time_limit_is_for_each_try(offline):
    deadlines = []

    @offline.task(max_run_time=5, retry=2)
    def again():
        deadlines.append(kuyruk.current_task().deadline)
        time.sleep(0.02)
        assert len(deadlines) == 3
        return "done"

    assert again.apply() == "done"
    assert min(later - sooner for sooner, later in itertools.pairwise(deadlines)) >= 0.02


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ValueError, 3),
        (kuyruk.Reject, 1),
        (kuyruk.Discard, 1),
        (kuyruk.Timeout, 1),
        (KeyboardInterrupt, 1),
    ],
)
def test_how_often_a_task_is_tried_that_raises(error, tries, offline):
    script[:] = [error("last"), error("last"), error("last")]
    with pytest.raises(error, match="last"):
        offline.task(retry=2)(play).apply()
    assert len(ran) == tries


def test_a_task_that_swallows_its_timeout_gets_it_again_when_it_asks(offline):
    @offline.task(max_run_time=0.05)
    def swallow():
        try:
            spin()
        except Exception as error:
            ran.append(type(error))
        kuyruk.current_task().check()

    with pytest.raises(kuyruk.Timeout):
        swallow.apply()
    assert ran == [kuyruk.Timeout]


def test_what_a_task_returns_counts_even_if_it_was_late(offline):
    def late():
        with contextlib.suppress(kuyruk.Timeout):
            spin()
        return "late"

    assert offline.task(max_run_time=0.05)(late).apply() == "late"


def test_the_limit_of_an_inner_task_is_its_own(offline):
    inner = offline.task(max_run_time=0.05)(spin)

    @offline.task(max_run_time=50)
    def outer():
        with pytest.raises(kuyruk.Timeout, match=r"0\.05"):
            inner.apply()
        return kuyruk.current_task()

    assert outer.apply().task is outer


def test_the_limit_of_an_outer_task_ends_the_inner_one(offline):
    inner = offline.task(max_run_time=50, retry=3)(spin)
    outer = offline.task(max_run_time=0.05)(lambda: inner.apply())
    with takes(0.05, SOON), pytest.raises(kuyruk.Timeout, match=r"0\.05"):
        outer.apply()


@may_be_printed
@pytest.mark.usefixtures("frequent_switches")
def test_a_limit_hits_nothing_but_its_task(offline):
    """Thousands of tries end when their time does, on eight threads: each either returns or is
    interrupted, and what follows in its thread isn't."""
    tries = collections.Counter()

    def run_many():
        task = offline.task(max_run_time=0.002)(end_at_deadline)
        for n in range(250):
            try:
                task.apply(n)
                tries["returned"] += 1
            except kuyruk.Timeout:
                tries["interrupted"] += 1
            for _ in range(100):  # where a late one would land
                pass

    results([background(run_many) for _ in range(8)])
    # Both have happened, or the tries didn't end close enough to their time.
    assert (tries.total(), tries.keys()) == (2000, {"returned", "interrupted"})


def a_watch(grace=SOON, give_up=lambda run: None):
    """Return a watch as a worker has it, for a `with` block. give_up: called with a run that goes
    on for longer than the grace (seconds) after its interruption."""
    return contextlib.closing(kuyruk._Watch(grace, give_up))


def run_in(watch, task, *args):
    """Run a task as the worker does whose watch this is."""
    return kuyruk.Run(task, "id", "queue", False)._call(args, {}, watch)


@contextlib.contextmanager
def collecting(threshold, on_collection):
    """Have the garbage collector run after so many new objects, and call that each time."""
    before = gc.get_threshold()
    gc.callbacks.append(on_collection)
    gc.set_threshold(threshold)
    try:
        yield
    finally:
        gc.callbacks.remove(on_collection)
        gc.set_threshold(*before)


def test_the_garbage_collector_keeps_away_while_threads_are_looked_at(offline, monkeypatch):
    """On Python 3.11 it may run within sys._current_frames, and lock the interpreter up
    (cpython#106883)."""
    look, looking, looks, hits = sys._current_frames, set(), [], []

    def look_slowly():
        looking.add(threading.get_ident())
        try:
            return look()
        finally:
            looking.discard(threading.get_ident())
            looks.append(None)

    def on_collection(phase, info):
        if threading.get_ident() in looking:
            hits.append(phase)

    def sleep_deep_down(levels):
        sleep_deep_down(levels - 1) if levels else ended.wait(PATIENCE)

    ended = threading.Event()
    # Each thread and each of its frames is an object that the look makes: more of them, and the
    # collector comes more surely.
    threads = [threading.Thread(target=sleep_deep_down, args=(5,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    monkeypatch.setattr(sys, "_current_frames", look_slowly)
    try:
        with collecting(1, on_collection), a_watch() as watch:
            for _ in range(10):
                with pytest.raises(kuyruk.Timeout):
                    run_in(watch, offline.task(max_run_time=0.01)(spin))
                assert "sleep_deep_down" in kuyruk._format_stack(threads[0].ident)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    # Now no watch looks any more, and the collector is let in again.
    assert (hits, gc.isenabled()) == ([], True)
    assert len(looks) >= 20


def run_interrupted(watch, task, cause):
    """Run a task, and interrupt it by the cause as soon as it has noted its run in `ran`."""

    def interrupt():
        wait_until(lambda: ran)
        watch.interrupt(ran[0], cause)

    interrupted = background(interrupt)
    try:
        return run_in(watch, task)
    finally:
        interrupted.result(PATIENCE)


def note_run_and_spin():
    ran.append(kuyruk.current_task())
    spin()


#: An interruption of each kind, with facts.
CAUSES = [
    kuyruk.Timeout("ran too long"),
    kuyruk.Discard("dropped by", "an operator"),
    kuyruk.Shutdown("the worker stops"),
    kuyruk.HeartbeatError((OSError, OSError("reset by peer"), None)),
]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("ask", [False, True], ids=["set in its thread", "by check"])
def test_an_interruption_has_its_text_and_its_facts_inside_the_task(ask, cause, offline):
    caught = []

    def look():
        ran.append(kuyruk.current_task())
        try:
            # The loop needs a body. Python raises what is set at the jump back, which isn't in the
            # try block of a loop that only jumps.
            while True:
                ran[0].check() if ask else ran[0].remaining()
        except BaseException as error:
            caught.append((type(error), str(error), error.args, getattr(error, "exc_info", None)))
            raise

    with a_watch() as watch, pytest.raises(type(cause)) as raised:
        run_interrupted(watch, offline.task(look), cause)
    assert caught == [(type(cause), str(cause), cause.args, getattr(cause, "exc_info", None))]
    assert (str(raised.value), raised.value.args) == (str(cause), cause.args)


def test_an_interruption_that_is_made_outside_of_a_task_has_only_its_arguments():
    kinds = [type(cause) for cause in CAUSES]
    assert [(kind().args, kind("text").args) for kind in kinds] == [((), ("text",))] * 4


# What a task's code, or that of a library, may make of an interruption: raise another exception in
# its place, or in a group.


def raise_from(error):
    raise RuntimeError("wrapped") from error


def raise_group(error):
    raise BaseExceptionGroup("of a TaskGroup", [error])


def raise_another(error):
    raise KeyError("in the clean-up")


def raise_reject(error):
    raise kuyruk.Reject from error


def exit_program(error):
    sys.exit(1)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize(
    "hide", [raise_from, raise_group, raise_another, raise_reject, exit_program]
)
def test_what_interrupted_a_run_decides_whatever_comes_out_of_the_task(hide, cause, offline):
    @offline.task(retry=3)
    def wrap():
        try:
            note_run_and_spin()
        except BaseException as error:
            hide(error)

    with a_watch() as watch, pytest.raises(type(cause), match=re.escape(str(cause))) as raised:
        run_interrupted(watch, wrap, cause)
    assert len(ran) == 1  # it isn't tried again
    # What has hidden it is shown, too.
    assert f"in {hide.__name__}" in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("hide", "error"),
    [(raise_from, RuntimeError), (raise_another, KeyError), (exit_program, SystemExit)],
)
def test_what_an_uninterrupted_task_raises_decides(hide, error, offline):
    with a_watch() as watch, pytest.raises(error):
        run_in(watch, offline.task(max_run_time=50)(hide), ValueError())


def test_asking_again_and_again_makes_no_traceback_grow(offline):
    lengths = []

    def ask():
        with contextlib.suppress(kuyruk.Timeout):
            note_run_and_spin()
        for _ in range(1000):
            try:
                ran[0].check()
            except Exception as error:
                frames = len(list(traceback.walk_tb(error.__traceback__)))
                lengths.append((frames, error.__context__))

    with a_watch() as watch:
        run_interrupted(watch, offline.task(ask), kuyruk.Timeout("over"))
    assert lengths == [(2, None)] * 1000  # `ask` and `check`


class Large:
    """Stands for 20 MB of locals."""


#: Those that still live.
large = weakref.WeakSet()


def fail_with_large_locals(step):
    local = Large()
    large.add(local)
    step()
    return local


@contextlib.contextmanager
def no_garbage_collection():
    """Keep the garbage collector away: what is freed meanwhile was in no cycle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spin_and_wrap():
    try:
        spin()
    except kuyruk.Timeout as error:
        raise RuntimeError from error


@pytest.mark.parametrize(
    "step", [lambda: 1 / 0, spin, spin_and_wrap], ids=["fails", "timeout", "wraps"]
)
def test_the_frames_of_a_failed_task_are_freed_with_its_exception(step, offline):
    task = offline.task(max_run_time=0.05)(fail_with_large_locals)
    lived = []
    with no_garbage_collection():
        for _ in range(3):
            try:
                task.apply(step)
            except (ZeroDivisionError, kuyruk.Timeout):
                lived.append(len(large))
            lived.append(len(large))
    assert lived == [1, 0] * 3  # with its exception, and after it


def test_a_watch_that_lives_on_keeps_nothing_of_a_run_that_it_has_interrupted(offline):
    """It sleeps until the grace would be over, which may be long, and a run has its arguments."""

    @offline.task(max_run_time=0.05)
    def task(argument):
        try:
            spin()
        finally:
            time.sleep(0.1)  # by then the watch has looked once more, and sleeps

    with no_garbage_collection(), a_watch(3600) as watch:
        argument = Large()
        large.add(argument)
        with contextlib.suppress(kuyruk.Timeout):
            run_in(watch, task, argument)
        del argument
        wait_until(lambda: not large, SOON)


def take_all_items(items, *, more):
    while items or more["items"]:
        ran.append((items or more["items"]).pop())
        if len(ran) in (2, 5):
            raise ValueError("between")
    return len(ran)


def test_each_try_has_fresh_arguments(offline):
    task = offline.task(retry=2)(take_all_items)
    assert task.apply([1, 2], more={"items": [3]}) == 8
    # The first try fails after two items, the second after three, and each begins with all.
    assert ran == [2, 1, 2, 1, 3, 2, 1, 3]
    ran.clear()
    offline.config.EAGER = True
    assert task.send_to_queue(([1, 2],), {"more": {"items": [3]}}, wait_result=1) == 8


def test_arguments_that_are_no_json_are_the_same_in_each_try(offline):
    thing, deep = object(), []
    for _ in range(100_000):
        deep = [deep]
    script[:] = [ValueError(), "done"]
    task = offline.task(retry=1)(lambda *args: (ran.append(args), play())[1])
    # One can't be copied, and the other is nested too deeply for it. (`deep` isn't compared with
    # ==, nor shown: both would exceed Python's limit of recursion.)
    assert task.apply((thing,), deep) == "done"
    first, _, second, _ = ran
    assert (first[0], second[0]) == ((thing,), (thing,))
    assert [args[1] is deep for args in (first, second)] == [True, True]


VARIABLE = contextvars.ContextVar("VARIABLE", default="nobody's")


def test_each_run_has_a_context_of_its_own(offline):
    @offline.task(retry=1)
    def look():
        ran.append(VARIABLE.get())
        VARIABLE.set("the task's")
        assert len(ran) > 1
        return VARIABLE.get()

    token = VARIABLE.set("the caller's")
    seen = [look.apply(), VARIABLE.get(), look.apply(), VARIABLE.get()]
    VARIABLE.reset(token)
    assert seen == ["the task's", "the caller's"] * 2
    # The second run doesn't see what the first has set; a second try sees what the first has.
    assert ran == ["the caller's", "the task's", "the caller's"]


@pytest.mark.parametrize(
    ("module", "unsafe", "cut"),
    [
        ("locks", "locks", False),
        ("locks.inner", "locks", False),
        # Neither its package is meant, nor one whose name begins in the same way.
        ("locks", "locks.inner", True),
        ("locksmith", "locks", True),
        # These count without anybody's word.
        ("logging", None, False),
        ("logging.handlers", None, False),
        ("concurrent.futures.thread", None, False),
        ("importlib._bootstrap", None, False),
        ("queue", None, False),
        ("threading", None, False),
    ],
)
def test_a_task_is_not_cut_in_a_module_that_guards_locks(module, unsafe, cut, offline, monkeypatch):
    if unsafe:
        monkeypatch.setattr(kuyruk, "UNSAFE_MODULES", {*kuyruk.UNSAFE_MODULES, unsafe})
    guarded = {"__name__": module}
    exec("def call(f): f()", guarded)

    def work():
        # Where it is to be cut it goes on until then, however late that is on a busy machine.
        end = time.monotonic() + (PATIENCE if cut else 0.5)
        while time.monotonic() < end:
            pass
        ran.append("whole")

    def task():
        guarded["call"](work)
        spin()

    with pytest.raises(kuyruk.Timeout):
        offline.task(max_run_time=0.05)(task).apply()
    assert ran == ([] if cut else ["whole"])


def test_a_task_is_not_cut_in_a_destructor_which_would_swallow_it(offline):
    class Slow:
        def __del__(self):
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                pass
            ran.append("whole")

    def task():
        Slow()
        spin()

    with pytest.raises(kuyruk.Timeout):
        offline.task(max_run_time=0.05)(task).apply()
    assert ran == ["whole"]


@pytest.mark.parametrize("name", sorted(kuyruk._HOLD_NO_LOCK))
def test_what_counts_as_safe_in_logging_takes_no_lock_and_swallows_nothing(name):
    source = inspect.getsource(operator.attrgetter(name)(logging))
    assert re.findall(r"except\s*:|except (?:Base)?Exception|[lL]ock\b|acquire", source) == []


def test_a_task_that_does_nothing_but_log_is_interrupted(offline, tmp_path):
    """It lets other threads run only in logging, which isn't safe: so with the usual switch
    interval the watch would see it nowhere else."""
    log = logging.getLogger(f"test-{uuid.uuid4().hex}")
    log.addHandler(logging.FileHandler(tmp_path / "log"))
    log.setLevel(logging.INFO)
    usual = sys.getswitchinterval()
    # It stays in code that isn't safe until the watch has begun to hunt it: on a busy machine the
    # first look might find it anywhere.
    unsafe = {"__name__": "logging.of_this_test"}
    exec("def wait(condition):\n    while not condition(): pass", unsafe)
    until = time.monotonic() + SOON

    def write():
        unsafe["wait"](lambda: sys.getswitchinterval() < usual or time.monotonic() > until)
        ran.append(sys.getswitchinterval())
        while True:
            log.info("a line")

    with contextlib.closing(log.handlers[0]), takes(0.1, PATIENCE), pytest.raises(kuyruk.Timeout):
        offline.task(max_run_time=0.1)(write).apply()
    assert ran[0] < usual / 10
    assert sys.getswitchinterval() == usual


def test_timeouts_take_no_lock_along_and_hit_nothing_but_their_task(url):
    """This holds for tasks that log, use queues, import and send. (tools/interrupt_proof.py tries
    it thousands of times.)"""
    counts, _ = interrupt_proof.prove(url, 200)
    assert counts == {**dict.fromkeys(counts, 0), "timeouts": 200}


def test_after_an_interruption_a_tracer_goes_on(offline):
    """Python 3.11 hangs in the next traced call if a pending exception was cleared: so the library
    lets it land instead."""
    task, calls = offline.task(max_run_time=0.02)(end_at_deadline), []

    def tracer(frame, event, arg):
        calls.append(event)
        return tracer

    def run_traced():
        sys.settrace(tracer)
        try:
            # These end at their deadline: some are interrupted, and some have just ended then.
            for n in range(20):
                with contextlib.suppress(kuyruk.Timeout):
                    task.apply(n)
                stay_calm(n)
            return len(calls)
        finally:
            sys.settrace(None)

    assert background(run_traced).result(PATIENCE) > 1000


def test_apply_says_that_a_task_in_c_code_goes_on_and_raises_after_it(offline, caplog):
    task = offline.task(max_run_time=0.1)(lambda: time.sleep(1.6))
    with takes(1.6, 1.6 + SOON), pytest.raises(kuyruk.Timeout, match=r"0\.1"):
        task.apply()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "max_run_time of 0.1" in record.getMessage()
    assert "time.sleep(1.6)" in record.getMessage()
    assert "C code" in kuyruk.Task.apply.__doc__


def test_the_watch_survives_what_goes_wrong_and_tries_again_later_and_later(offline, caplog):
    tries = []

    def give_up(run):
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise RuntimeError("can't start new thread")

    task = offline.task(max_run_time=0.05)
    with a_watch(0.1, give_up) as watch:
        stuck = background(run_in, watch, task(get_stuck))
        wait_until(lambda: len(tries) > 1)
        with pytest.raises(kuyruk.Timeout):  # others have their limits all the same
            run_in(watch, task(spin))
        wait_until(lambda: len(tries) == 4)
        # Each pause is as long as all before it together.
        assert tries[3] - tries[2] > 1.5 * (tries[1] - tries[0])
        assert watch.healthy
        trap.put("the way out")
        with pytest.raises(kuyruk.Timeout):
            stuck.result(PATIENCE)
        assert (len(tries), watch._schedule) == (4, [])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [str(record.exc_info[1]) for record in errors] == ["can't start new thread"] * 3


def test_the_watch_is_not_healthy_while_it_hangs_or_after_its_end(offline, monkeypatch):
    monkeypatch.setattr(kuyruk, "_WATCH_STALLS", 0.2)
    hangs = threading.Event()
    with a_watch(0.05, lambda run: (hangs.set(), release.wait(PATIENCE))) as watch:
        stuck = background(run_in, watch, offline.task(max_run_time=0.05)(get_stuck))
        assert hangs.wait(PATIENCE)
        wait_until(lambda: not watch.healthy)
        release.set()
        wait_until(lambda: watch.healthy)
        trap.put("the way out")
        with pytest.raises(kuyruk.Timeout):
            stuck.result(PATIENCE)
    assert not watch.healthy


@pytest.mark.usefixtures("frequent_switches")
def test_a_run_that_is_interrupted_as_it_ends_leaves_the_watch(offline):
    """The watch would look at it for ever, and hold it with all that it leads to."""
    task, left = offline.task(lambda: ran.append(kuyruk.current_task())), []
    with a_watch(3600) as watch:
        for _ in range(300):
            ran.clear()
            with contextlib.suppress(kuyruk.Discard):
                run_interrupted(watch, task, kuyruk.Discard("late"))
            left += watch._schedule
        watch.interrupt(ran[0], kuyruk.Discard("far too late"))
        assert left + watch._schedule == []


def test_the_deadlines_that_the_watch_holds_are_those_of_running_tasks(offline):
    with a_watch() as watch:
        task = offline.task(max_run_time=3600, retry=1)(lambda: len(watch._schedule))
        assert [run_in(watch, task) for _ in range(100)] == [1] * 100
        assert watch._schedule == []


def test_no_interruption_is_lost_where_the_garbage_collector_calls(offline, monkeypatch):
    """An exception that lands in a finalizer, or in one of gc.callbacks, is printed, and the task
    goes on. From Python 3.12 on the collector runs right where one lands, and before it lands."""
    lost = []

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            sum(range(300))

    # Python 3.11 collects where it allocates: with less work, each look would find it there.
    work = 200 if sys.version_info >= (3, 12) else 3000

    def make_garbage():
        until = time.monotonic() + SOON
        while time.monotonic() < until:
            Garbage()
            sum(range(work))

    def on_collection(phase, info):
        sum(range(300))

    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with collecting(100, on_collection), a_watch() as watch:
        for _ in range(200):
            with pytest.raises(kuyruk.Timeout):
                run_in(watch, offline.task(max_run_time=0.005)(make_garbage))
            assert (gc.isenabled(), lost) == (True, [])


def test_the_collector_is_let_in_again_when_an_interruption_does_not_land(offline):
    """The thread is in C code, perhaps for ever: the whole process would go without."""
    with a_watch(grace=0.1, give_up=lambda run: ran.append(gc.isenabled())) as watch:
        with pytest.raises(kuyruk.Timeout):
            run_in(watch, offline.task(max_run_time=0.05)(lambda: time.sleep(1)))
        assert (ran, gc.isenabled()) == ([True], True)


def test_the_garbage_collector_stays_away_until_the_last_thread_has_looked():
    keep_away, enabled = kuyruk._no_collection, []
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        for stack in (first, second):
            stack.enter_context(keep_away)
        for stack in (first, second):
            stack.close()
            enabled.append(gc.isenabled())
    gc.disable()
    try:
        with keep_away:
            pass
        enabled.append(gc.isenabled())  # the program's own decision stays
    finally:
        gc.enable()
    assert enabled == [False, True, False]


def test_a_wait_in_which_a_signal_handler_waits_is_interrupted_all_the_same(offline):
    def wait_within_a_wait():
        event = kuyruk._Event()

        def wait():
            kuyruk._interruptible(lambda: None, lambda: None)  # the handler's: it sends, say
            event.wait(time.monotonic() + 2 * PATIENCE)

        kuyruk._interruptible(wait, event.set)

    with takes(0.1, PATIENCE), a_watch() as watch, pytest.raises(kuyruk.Timeout):
        run_in(watch, offline.task(max_run_time=0.1)(wait_within_a_wait))


def test_a_run_that_ends_while_its_next_look_is_scheduled_leaves_no_entry(offline):
    """1. The watch, at the deadline: takes out the run's entry, to put in that of its next look.
    2. The run's thread: ends, and takes out the entry that it finds. 3. The watch: puts in the
    next, at which it would look for ever."""
    may_end = threading.Event()
    task = offline.task(max_run_time=0.05)(lambda: may_end.wait(PATIENCE))

    class Numbers:
        """Numbers entries. The second number is taken at 1."""

        count = 0

        def __next__(self):
            self.count += 1
            if self.count == 2:
                may_end.set()
                # The run's thread finds an entry, and waits for the watch's lock, as it should.
                with contextlib.suppress(TimeoutError):
                    running.result(0.5)
            return self.count

    with a_watch() as watch:
        watch._serial = Numbers()
        running = background(run_in, watch, task)
        assert running.result(PATIENCE)
        with watch._changed:
            assert watch._schedule == []


# --- EAGER -------------------------------------------------------------------


@pytest.fixture
def eager(offline):
    offline.config.EAGER = True
    yield offline
    assert not threads_of_ours()


def test_eager_runs_the_task_here_and_returns_its_result_to_who_waits_for_it(eager):
    task = eager.task(echo)
    returned = [task(1, 2), task.send_to_queue((5,)), task.send_to_queue((6,), wait_result=1)]
    assert returned == [None, None, 6]
    eager.send_tasks_to_queue([task.subtask((3,)), task.subtask()])
    assert ran == [(1, 2), (5,), (6,), (3,), ()]


def test_eager_passes_everything_through_json(eager):
    def look(*args, **kwargs):
        assert (args, kwargs) == (([1, [2]],), {"d": {"3": None}})
        return (4, (5,)), {6: 7}

    task = eager.task(look)
    assert task.send_to_queue(((1, (2,)),), {"d": {3: None}}, wait_result=1) == [[4, [5]], {"6": 7}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


# An example may take long on a busy machine, and an app outlives the examples of its test.
@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=JSON)
def test_eager_gives_back_every_json_value_as_it_was(eager, value):
    assert eager.task(echo).send_to_queue((value,), wait_result=1) == value
    assert eager.task(echo).send_to_queue((), {"key": value}, wait_result=1) == {"key": value}


def test_eager_fails_where_production_would(eager):
    with pytest.raises(TypeError, match="argument"):
        eager.task(echo)(object())
    with pytest.raises(TypeError, match="result"):
        eager.task(lambda: object()).send_to_queue(wait_result=1)
    with pytest.raises(ZeroDivisionError):
        eager.task(lambda: 1 / 0)()


def test_eager_has_the_retries_and_limits_of_apply(eager):
    script[:] = [ValueError(), ValueError(), "third"]
    assert eager.task(retry=2)(play).send_to_queue(wait_result=1) == "third"
    with pytest.raises(kuyruk.Timeout):
        eager.task(max_run_time=0.05)(spin)()


@pytest.mark.parametrize(
    "nothing", [{"wait_result": 0}, {"wait_result": None}, {"message_ttl": 0, "host": ""}]
)
def test_what_is_empty_is_not_given_in_eager_either(eager, nothing):
    assert eager.task(echo).send_to_queue((1,), None, **nothing) is None
    assert eager.task(echo).send_to_queue(None, None, wait_result=1) == {}
    assert ran == [(1,), ()]


def test_eager_takes_the_options_of_sending(eager):
    headers = {"a": [1, {"b": None}]}
    options = {"delay": 5, "priority": 3, "headers": headers, "id": "x", "host": "h"}
    assert eager.task(echo).send_to_queue((1,), **options) is None
    eager.send_tasks_to_queue([eager.task(echo).subtask((2,), **options)])
    assert ran == [(1,), (2,)]


# --- Sending -----------------------------------------------------------------


def test_a_message_is_as_kuyruk_10_reads_it(app, queue, broker):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0, tzinfo=None)
    app.task(queue)(echo)(1, b=[2])
    message = broker.take(queue)
    body = json.loads(message.body)
    given = {
        name: value for name, value in message.properties.items() if value not in ("", None, {})
    }
    expected = {"content_type": "application/json", "delivery_mode": 2, "message_id": body["id"]}
    assert given.keys() - expected.keys() == {"timestamp"}
    assert given == {**expected, "timestamp": given["timestamp"]}
    assert re.fullmatch("[0-9a-f]{32}", body.pop("id"))
    assert body.pop("sender_cmd").startswith(sys.argv[0])
    sent_at = datetime.datetime.fromisoformat(body.pop("sender_timestamp"))
    assert before <= sent_at <= before + datetime.timedelta(seconds=PATIENCE)
    assert body == {
        "args": [1],
        "kwargs": {"b": [2]},
        "module": "test_kuyruk",
        "function": "echo",
        "sender_hostname": HOSTNAME,
        "sender_pid": os.getpid(),
    }


def test_a_queue_is_declared_durable_and_with_the_given_arguments(make_app, url, queue, broker):
    make_app(url, QUEUE_ARGUMENTS={"x-max-priority": 3}).task(queue)(echo)()
    broker.declare(queue, **{"x-max-priority": 3})  # an error, if it differs from what there is


def test_a_queue_that_exists_is_used_as_it_is(app, queue, broker, start):
    broker.declare(queue, **{"x-max-length": 100, "x-message-ttl": 60000})
    task = app.task(queue)(echo)
    task()
    start(app)
    assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


def test_a_deleted_queue_is_declared_again(app, queue, broker):
    task = app.task(queue)(echo)
    task(1)
    broker.delete(queue)
    task(2)
    assert arguments_in(broker.take_all(queue)) == [(2,)]


@pytest.mark.parametrize("host", ["localhost", HOSTNAME])
def test_a_host_is_a_suffix_of_the_queue(host, app, queue, broker):
    task = app.task(queue)(echo)
    task.send_to_queue((1,), host=host)
    app.send_tasks_to_queue([task.subtask((2,), host=host)])
    assert arguments_in(broker.take_all(f"{queue}.{HOSTNAME}")) == [(1,), (2,)]


@pytest.mark.parametrize("ttl", [0.001, 0.2])
def test_a_message_with_a_ttl_expires(ttl, app, queue, broker):
    task = app.task(queue)(echo)
    # The longest that RabbitMQ takes: 32 bits of milliseconds.
    task.send_to_queue((1,), message_ttl=4294967)
    assert broker.take(queue).properties["expiration"] == "4294967000"
    with takes(ttl, PATIENCE):
        task.send_to_queue((1,), message_ttl=ttl)
        wait_until(lambda: broker.count(queue) == 0)


def test_many_tasks_are_sent_in_one_go_and_in_order(app, queue, broker):
    task, other = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    app.send_tasks_to_queue([])
    # 5000 are more than one window (kuyruk.BATCH_WINDOW).
    app.send_tasks_to_queue((task if n % 5 else other).subtask((n,), {"k": n}) for n in range(5000))
    assert arguments_in(broker.take_all(queue)) == [(n,) for n in range(5000) if n % 5]
    assert arguments_in(broker.take_all(f"{queue}.2")) == [(n,) for n in range(0, 5000, 5)]


@pytest.mark.parametrize("wait_result", [None, PATIENCE])
def test_what_a_queue_refuses_is_sent_again_until_it_has_room(
    wait_result, app, queue, broker, start
):
    broker.declare(queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    task, other = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    task(1)
    sent = background(task.send_to_queue, (2,), wait_result=wait_result)
    other(3)  # isn't held up
    assert still_waits(sent)
    start(app, [queue])
    assert sent.result(SOON) == (None if wait_result is None else 2)
    wait_until(lambda: ran == [(1,), (2,)])


def test_a_queue_that_stays_full_leaves_no_channels_behind(make_app, url, queue, broker):
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=2)
    broker.declare(queue, **{"x-max-length": 0, "x-overflow": "reject-publish"})
    task = app.task(queue)(echo)
    # A channel on which a queue has refused a message is replaced by another: some ten of them in
    # the time of each of these sends.
    for options in ({}, {"wait_result": 1}):
        with pytest.raises((kuyruk.BrokerError, kuyruk.ResultTimeout), match="refuses it"):
            task.send_to_queue((1,), **options)
    app.task(f"{queue}.2")(echo)(2)
    wait_until(lambda: len(app._publisher._keeper.connection.channels) <= 2)


def test_a_batch_to_a_broker_that_is_away_is_all_unconfirmed(offline, queue):
    subtasks = [offline.task(queue)(echo).subtask((n,)) for n in range(2500)]
    with pytest.raises(kuyruk.BrokerError) as info:
        offline.send_tasks_to_queue(subtasks)
    assert info.value.unconfirmed == subtasks


def test_a_send_returns_when_the_broker_has_confirmed(make_app, proxy, queue, broker):
    task = make_app(proxy.url).task(queue)(echo)
    task()
    proxy.stall("down")  # the message gets through, and its confirm doesn't
    sending = background(task)
    wait_until(lambda: broker.count(queue) == 2)
    assert still_waits(sending)
    proxy.resume()
    assert sending.result(PATIENCE) is None


def test_without_confirms_a_send_does_not_wait(make_app, proxy, queue, broker):
    app = make_app(proxy.url, RABBIT_CONFIRM=False, RABBIT_PUBLISH_TIMEOUT=PATIENCE)
    task = app.task(queue)(echo)
    task(1)
    proxy.stall("down")
    with takes(0, SOON):
        app.send_tasks_to_queue([task.subtask((2,))])
    wait_until(lambda: broker.count(queue) == 2)


def test_without_confirms_what_a_lost_connection_takes_along_is_counted(
    make_app, proxy, queue, broker, caplog
):
    task = make_app(proxy.url, RABBIT_CONFIRM=False).task(queue)(echo)
    task(0)
    wait_until(lambda: broker.count(queue) == 1)
    proxy.stall("up")
    for number in range(1, 301):
        task(number, "x" * 1000)
    proxy.cut()
    proxy.resume()
    # A message that is sent before the loss is noticed would be lost with the others.
    lost = wait_until(lambda: re.findall(r"Lost: (\d+ messages for queue '.*'),", caplog.text))
    task("after")
    wait_until(lambda: ("after",) in arguments_in(broker.take_all(queue)))
    assert lost == [f"300 messages for queue '{queue}'"]  # the proxy has passed none of them on


def test_without_confirms_a_call_waits_as_long_as_it_is_told_to(make_app, url, queue, start):
    app = make_app(url, RABBIT_CONFIRM=False, RABBIT_PUBLISH_TIMEOUT=1)
    task = app.task(queue)(hold)
    worker = start(app)
    call = background(task.send_to_queue, (5,), wait_result=PATIENCE)
    assert still_waits(call, 2)
    release.set()
    assert (call.result(SOON), worker.stats["received"]) == (5, 1)  # it was sent once


@pytest.mark.parametrize("count", [1, 3, 50])
def test_without_confirms_what_no_queue_takes_is_counted_and_the_queue_looked_for_again(
    count, make_app, url, queue, broker, caplog
):
    app = make_app(url, RABBIT_CONFIRM=False)
    task, other = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    task("before")
    other("before")
    broker.take(queue)
    broker.delete(queue)
    app.send_tasks_to_queue([task.subtask(("returned",))] * count + [other.subtask(("beside",))])
    # The reader logs what it has read by then: in one line, or in several.
    lost = rf"Lost: (\d+) messages? for queue '{queue}', .* returned"
    wait_until(lambda: sum(map(int, re.findall(lost, caplog.text))) == count)
    task("after")
    assert arguments_in([broker.take(queue)]) == [("after",)]
    wait_until(lambda: broker.count(f"{queue}.2") == 2)
    assert f"'{queue}.2'" not in caplog.text


def test_without_confirms_a_queue_that_cannot_be_used_is_an_error(make_app, url, queue, broker):
    app = make_app(url, RABBIT_CONFIRM=False)
    broker.channel.queue.declare(queue, exclusive=True)
    says = rf"queue '{queue}' can't be used: RESOURCE_LOCKED"
    with pytest.raises(kuyruk.BrokerError, match=says):
        app.task(queue)(echo)()


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_nothing_confirmed_is_lost_when_connections_are_cut(how, make_app, proxy, queue, broker):
    task = make_app(proxy.url).task(queue)(echo)
    confirmed, enough = [], threading.Event()

    def send_on(sender):
        for number in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
            with contextlib.suppress(kuyruk.BrokerError):
                task(sender, number)
                confirmed.append((sender, number))

    senders = [background(send_on, sender) for sender in range(4)]
    for step in range(1, 16):
        wait_until(lambda step=step: len(confirmed) >= 40 * step)
        proxy.cut(how)
    enough.set()
    results(senders)
    assert set(confirmed) - set(arguments_in(broker.take_all(queue))) == set()
    assert proxy.accepted > 10  # of 15 cuts; some come before there is a connection again


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("size", [1, 20_000_000], ids=["small", "more than the buffers take"])
def test_a_send_to_a_stalled_broker_raises_in_time(size, direction, make_app, proxy, queue):
    task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=2).task(queue)(echo)
    task()
    proxy.stall(direction)
    sends = [background(task, "x" * size)]
    sends += [background(task.send_to_queue, (1,), wait_result=wait) for wait in (None, None, 30)]
    with takes(1, 2 + SOON):
        for future in sends:
            with pytest.raises(kuyruk.BrokerError):
                future.result(PATIENCE)
    # Half a message was written, and nothing can follow it: that connection is given up, and the
    # next send has another.
    while size > 1 and direction == "up" and proxy.accepted == 1:
        with contextlib.suppress(kuyruk.BrokerError):
            task()


@pytest.mark.parametrize("confirm", [True, False])
def test_a_broker_that_never_answers_is_an_error_in_time(confirm, make_app, proxy, queue):
    proxy.mute = True
    app = make_app(proxy.url, RABBIT_CONFIRM=confirm)
    app.config.RABBIT_CONNECT_TIMEOUT, app.config.RABBIT_PUBLISH_TIMEOUT = 0.2, 0.5
    task = app.task(queue)(echo)
    with takes(0.5, SOON), pytest.raises(kuyruk.BrokerError):
        task()
    proxy.mute = False
    # What must succeed may take longer than what must fail.
    app.config.RABBIT_CONNECT_TIMEOUT = app.config.RABBIT_PUBLISH_TIMEOUT = PATIENCE
    task()


@pytest.mark.parametrize("wait_result", [None, 30])
@pytest.mark.parametrize("confirm", [True, False])
def test_a_broker_that_is_away_is_an_error_in_time(confirm, wait_result, offline, queue):
    offline.config.RABBIT_CONFIRM = confirm
    with takes(0.5, SOON), pytest.raises(kuyruk.BrokerError, match="refused"):
        offline.task(queue)(echo).send_to_queue(wait_result=wait_result)


def test_a_sender_waits_for_a_broker_that_comes_back_in_time(make_app, proxy, queue, broker):
    task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=PATIENCE).task(queue)(echo)
    proxy.down()
    sending = background(task)
    assert still_waits(sending)
    proxy.up()
    sending.result(PATIENCE)
    assert broker.count(queue) == 1


@pytest.mark.parametrize("dead", ["127.0.0.1:1", "no.such.host.invalid"])
def test_several_hosts_are_tried_in_turn(dead, url, make_app, queue, start):
    hosts = "{},{}:{}".format(dead, *address_of(url))
    task = make_app(None, RABBIT_HOST=hosts, RABBIT_PUBLISH_TIMEOUT=PATIENCE).task(queue)(echo)
    start(task.kuyruk)
    assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


def test_a_broker_can_have_an_ipv6_address(url, make_app, queue, broker):
    with contextlib.closing(TcpProxy(url, host="::1")) as proxy:
        make_app(proxy.url).task(queue)(echo)()
        assert (broker.count(queue), proxy.accepted) == (1, 1)


@pytest.fixture
def tls_proxy(url, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority["server"])
    with contextlib.closing(TcpProxy(url, tls=context)) as proxy:
        yield proxy


def test_with_tls_nothing_is_read_beside_a_write(tls_proxy, make_app, queue, start, monkeypatch):
    """OpenSSL can't do both at once on one connection. So the reader waits for who writes."""
    writers, beside = collections.Counter(), []
    send, recv = ssl.SSLSocket.send, ssl.SSLSocket.recv

    def send_slowly(sock, *args):
        writers[sock] += 1
        time.sleep(0.002)  # the reader gets its turn
        try:
            return send(sock, *args)
        finally:
            writers[sock] -= 1

    def note_and_receive(sock, *args):
        beside.append(writers[sock])
        return recv(sock, *args)

    monkeypatch.setattr(ssl.SSLSocket, "send", send_slowly)
    monkeypatch.setattr(ssl.SSLSocket, "recv", note_and_receive)
    task = make_app(tls_proxy.url, RABBIT_SSL_OPTIONS={"verify_mode": "none"}).task(queue)(echo)
    results([background(task, number) for number in range(200)])
    assert set(beside) == {0}


@pytest.mark.parametrize("option", ["cafile", "verify_mode", "context"])
def test_tls_is_used_when_it_is_asked_for(option, tls_proxy, make_app, queue, start, authority):
    options = {"cafile": authority["ca"], "verify_mode": "none"}
    options["context"] = ssl.create_default_context(cafile=options["cafile"])
    task = make_app(tls_proxy.url, RABBIT_SSL_OPTIONS={option: options[option]}).task(queue)(echo)
    start(task.kuyruk, threads=2)
    # More than a frame and more than what OpenSSL takes at once, both ways.
    texts = [str(n) * 300_000 for n in range(8)]
    calls = [background(task.send_to_queue, (text,), wait_result=PATIENCE) for text in texts]
    assert results(calls) == texts


def test_a_certificate_is_verified_unless_told_not_to(tls_proxy, make_app, queue):
    task = make_app(tls_proxy.url, RABBIT_PUBLISH_TIMEOUT=2).task(queue)(echo)
    with pytest.raises(kuyruk.BrokerError, match=r"(?i)certificate"):
        task()


def test_an_idle_connection_is_closed_and_opened_again(make_app, proxy, queue, broker):
    task = make_app(proxy.url, RABBIT_IDLE_DURATION=0.5).task(queue)(echo)
    task()
    wait_until(lambda: not proxy.open and not threads_of_ours())
    task()
    assert (broker.count(queue), proxy.accepted) == (2, 2)


def test_a_closed_app_opens_again_when_it_is_used(make_app, proxy, queue, broker):
    with make_app(proxy.url) as app:
        app.task(queue)(echo)()
    wait_until(lambda: not proxy.open)
    app.task(queue)(echo)()
    app.close()
    app.close()
    wait_until(lambda: not proxy.open)
    assert (broker.count(queue), proxy.accepted) == (2, 2)


def test_a_socket_has_the_options_that_no_other_test_would_miss(app, queue):
    """TCP_NODELAY: a small frame isn't delayed until the one before is acknowledged. The others:
    without heartbeats, too, a peer that has vanished is noticed within two minutes."""
    app.task(queue)(echo)()
    wanted = {
        "TCP_NODELAY": True, "SO_KEEPALIVE": True, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 10_000,
    }  # fmt: skip
    sock, options = app._publisher._keeper.connection._socket, {}
    for name in [name for name in wanted if hasattr(socket, name)]:  # not each system has all
        level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
        # Some systems have another number than 1 for a flag that is set.
        options[name] = type(wanted[name])(sock.getsockopt(level, getattr(socket, name)))
    assert options == {name: wanted[name] for name in options}


def test_senders_in_many_threads_share_one_connection(make_app, proxy, queue, broker):
    task = make_app(proxy.url).task(queue)(echo)
    results([background(task, n) for n in range(64)])
    assert sorted(arguments_in(broker.take_all(queue))) == [(n,) for n in range(64)]
    assert proxy.accepted == 1


def test_the_death_of_a_connection_is_noticed_at_once(make_app, proxy, queue, broker):
    """amqpstorm itself would notice it with the next heartbeat, after 90 seconds."""
    task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=60).task(queue)(echo)
    for how in ("rst", "fin", "rst"):
        task()
        proxy.cut(how)
        with takes(0, SOON):
            task()
    assert broker.count(queue) == 6


def test_a_connection_for_own_use_is_amqpstorms_and_is_closed(make_app, proxy, queue, broker):
    app = make_app(proxy.url)
    with app.connection() as connection, app.channel() as channel:
        kinds = (amqpstorm.Connection, amqpstorm.Channel)
        assert [*map(isinstance, (connection, channel), kinds)] == [True, True]
        with connection.channel() as other:
            other.queue.declare(queue, durable=True)
            other.basic.publish("x", queue)
        wait_until(lambda: broker.count(queue) == 1)
        count = channel.queue.declare(queue, passive=True)["message_count"]
        assert (count, proxy.open) == (1, 2)  # each is on a connection of its own
    wait_until(lambda: not proxy.open)
    assert [connection.is_closed, channel.is_closed] == [True, True]


@pytest.mark.parametrize(
    ("vhost", "says"), [("no-such-vhost", "no-such-vhost"), ("", "(?i)reset|closed")]
)
def test_a_connection_for_own_use_says_why_it_cannot_be_had(vhost, says, make_app, proxy):
    """What amqpstorm's reader thread notes (_exceptions) must be where `open` looks: the loss of
    the connection would be found out only when the time is up."""
    app = make_app(f"{proxy.url}{vhost}", RABBIT_CONNECT_TIMEOUT=PATIENCE)
    if not vhost:
        proxy.at("Connection.Tune", "before", "rst")
    with takes(0, SOON), pytest.raises(amqpstorm.AMQPConnectionError, match=says):
        app.connection().__enter__()


def test_a_connection_for_own_use_waits_no_longer_than_the_connect_timeout(make_app, proxy):
    """amqpstorm (_wait_for_connection_state) would wait for 30 seconds."""
    proxy.mute = True
    app = make_app(proxy.url, RABBIT_CONNECT_TIMEOUT=0.2)
    with takes(0.2, SOON), pytest.raises(amqpstorm.AMQPConnectionError, match="timed out"):
        app.channel().__enter__()


@pytest.mark.parametrize(("tls", "kind"), [(False, socket.socket), (True, ssl.SSLSocket)])
def test_amqpstorm_makes_the_sockets(tls, kind):
    """It makes them (_create_socket) with TLS, when that is asked for."""
    options = {"ssl": tls, "timeout": 1.5, "ssl_options": {}, "hostname": "localhost"}
    with amqpstorm.io.IO({**options, "poller": "poll"})._create_socket(socket.AF_INET) as sock:
        assert (type(sock), sock.gettimeout()) == (kind, 1.5)


def test_amqpstorm_is_used_by_its_public_names_but_for_those_that_are_listed():
    text = (HERE / "kuyruk.py").read_text()
    listed = set(re.findall(r"^#   (\w+)\.(_\w+) {2,}", text, re.M))
    lazy = amqpstorm.Connection("localhost", "guest", "guest", lazy=True)
    owners = {"IO": amqpstorm.io.IO, "Connection": lazy, "Message": amqpstorm.Message(None, b"x")}
    assert 0 < len(listed) <= 6
    assert [each for each in listed if not hasattr(owners[each[0]], each[1])] == []
    # A private name of amqpstorm's is one that its own source has, and that this project doesn't
    # define.
    modules = [
        Path(amqpstorm.__file__).parent / f"{name}.py"
        for name in ("base", "channel0", "connection", "io")
    ]
    source = "".join(module.read_text() for module in modules)
    theirs = set(re.findall(r"(?:def |self\.)(_[a-z]\w+)", source))
    ours = set(re.findall(r"(?:def |self\.|    )(_[a-z]\w+)(?=\(| = |: )", text)) - {
        name for _, name in listed
    }
    used = set(re.findall(r"\.(_[a-z]\w+)", text)) & theirs - ours
    assert used - {name for _, name in listed} == set()


def test_file_descriptors_above_1023_work(app, queue, start):
    """select() would fail for them."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit[0], min(4096, limit[1])), limit[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        task = app.task(queue)(echo)
        start(app)
        assert files[-1] > 1024
        assert task.send_to_queue((5,), wait_result=PATIENCE) == 5
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


IN_A_PROCESS = """
import os, sys, threading, warnings, kuyruk, test_kuyruk
# Python 3.12 warns of each fork of a program that has threads.
warnings.simplefilter("ignore", DeprecationWarning)
queue, config = sys.argv[1], kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
task = app.task(queue)(test_kuyruk.echo)
"""


# Python ends while threads of the library still run: it must wait for what they write.
@pytest.mark.parametrize(
    ("code", "arrived"),
    [
        ("task(1)", 1),
        ("app.send_tasks_to_queue([task.subtask((n,)) for n in range(500)])", 500),
        ("task(1); threading.Thread(target=task, args=(2,)).start()", 2),
        ("config.RABBIT_CONFIRM = False; [task(n) for n in range(100)]", 100),
    ],
)
def test_a_program_may_end_right_after_it_has_sent(code, arrived, url, queue, broker):
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url)
    assert broker.count(queue) == arrived


def test_a_program_may_end_while_its_worker_runs(url, queue, broker):
    code = """
app.send_tasks_to_queue([app.task(queue)(test_kuyruk.doze).subtask()] * 10)
worker = app.worker(threads=1, prefetch=3)
worker.start()
while not worker.stats["succeeded"]:
    pass
"""
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url)
    wait_until(lambda: 0 < broker.count(queue) < 10)


def test_a_forked_child_sends_on_a_connection_of_its_own(proxy, queue, broker):
    """And it closes its copy of the parent's socket, which would hide the parent's end."""
    code = """
task("parent")
socket = app._publisher._keeper.connection._socket.fileno()
child = os.fork()
if child:
    task("parent again")
    assert os.waitpid(child, 0)[1] == 0
    task("parent in the end")
else:
    try:
        os.fstat(socket)
    except OSError:  # it is closed
        task("child")
"""
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=proxy.url)
    sent = [("child",), ("parent",), ("parent again",), ("parent in the end",)]
    assert sorted(arguments_in(broker.take_all(queue))) == sent and proxy.accepted == 2


def test_forking_while_others_send_does_not_hang_the_child(url, queue, broker):
    code = """
ended, sent = threading.Event(), []
def send_on():
    while not ended.is_set():
        sent.append(task("parent"))
threads = [threading.Thread(target=send_on) for _ in range(4)]
[thread.start() for thread in threads]
for _ in range(10):
    child = os.fork()
    if child == 0:
        task("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
[thread.join() for thread in threads]
print(len(sent))
"""
    sent = int(run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url))
    assert collections.Counter(arguments_in(broker.take_all(queue))) == {
        ("child",): 10,
        ("parent",): sent,
    }


def test_what_waits_long_does_not_keep_others_from_sending(app, queue, broker):
    task = app.task(queue)(echo)
    # Again and again: either of the two may be the one that writes for both.
    for _ in range(20):
        asking = background(task.send_to_queue, ("asked",), wait_result=PATIENCE)
        request = broker.take(queue)
        background(task, "told").result(PATIENCE / 2)
        assert arguments_in([broker.take(queue)]) == [("told",)]
        assert not asking.done()
        broker.publish(request.reply_to, b'{"result": "answered"}')
        assert asking.result(PATIENCE) == "answered"


def test_being_woken_by_two_threads_at_once_keeps_none_awake(app, queue, start):
    """1. Thread A: notes that the reader is to wake. 2. The reader: is awake, and looks. 3. Thread
    A: writes its byte. If the reader left that unread, it would never sleep again."""
    task = app.task(queue)(echo)
    worker = start(app)
    task()
    wait_until(lambda: ran)
    for keeper in (app._publisher._keeper, worker._keeper):
        wakeup = keeper.connection._wakeup
        wakeup._writer.send(b"!")  # 3
        wait_until(lambda wakeup=wakeup: not select.select([wakeup], [], [], 0)[0])
    task()
    wait_until(lambda: len(ran) == 2)


@pytest.mark.parametrize(("where", "connections"), [("while it waits", 1), ("while it writes", 2)])
def test_an_exception_in_a_thread_that_sends_costs_a_connection_only(
    where, connections, make_app, proxy, queue, monkeypatch, caplog
):
    """Ctrl-C may come anywhere. In the middle of a write nobody knows how much of a frame was
    written, so that connection is given up; another is kept."""
    caplog.set_level(logging.INFO)
    task = make_app(proxy.url).task(queue)(echo)
    task()
    owner = kuyruk._Event if where == "while it waits" else kuyruk._ConfirmChannel
    name = "wait" if where == "while it waits" else "encode"
    method = getattr(owner, name)

    def interrupted(*args):
        result = method(*args)
        if threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)

    def send_on():
        while True:
            task()

    with pytest.raises(KeyboardInterrupt):
        send_on()
    for _ in range(10):
        task()
    given_up = "interrupted by KeyboardInterrupt()" in caplog.text
    assert (proxy.accepted, given_up) == (connections, connections == 2)


def test_exceptions_of_signal_handlers_leave_the_connection_usable(proxy, queue, broker):
    """Ctrl-C may come anywhere. What is interrupted may have been sent, and be sent again."""
    code = """
import random, signal
class Ring(Exception):
    pass
def ring(*_):
    global armed
    if armed:
        armed = False
        raise Ring
armed, rings, left = False, 0, list(range(400))
task(left.pop())  # the reader begins: Python itself doesn't like an exception in the middle of that
signal.signal(signal.SIGALRM, ring)
while left:
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.005))
        while left:
            task(left[-1])
            left.pop()
    except Ring:
        rings += 1
        if left:  # it may have come right after the last pop
            task(left.pop())  # whatever it has left behind, the next one works
armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
print(rings)
"""
    rings = int(run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=proxy.url))
    arrived = collections.Counter(n for (n,) in arguments_in(broker.take_all(queue)))
    assert set(arrived) == set(range(400))
    assert arrived.total() <= 400 + 2 * rings
    assert rings > 10  # or nothing was tried
    # Mostly a send is interrupted while it waits, and that costs no connection.
    assert proxy.accepted < rings * 0.5


def test_a_signal_handler_may_send_whatever_it_interrupts(url, queue, broker):
    code = """
import random, signal
rings = 0
def ring(*_):
    global rings
    rings += 1
    task("ring")
signal.signal(signal.SIGALRM, ring)
for n in range(300):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.001))
    task("sent")
    task("sent")
signal.setitimer(signal.ITIMER_REAL, 0)
print(rings)
"""
    rings = int(run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url))
    arrived = collections.Counter(arguments_in(broker.take_all(queue)))
    assert arrived == {("sent",): 600, ("ring",): rings}
    assert rings > 50  # or nothing was tried


@may_be_printed
@pytest.mark.usefixtures("frequent_switches")
def test_interrupting_tasks_that_send_leaves_the_connection_usable(make_app, proxy, queue, broker):
    """Hundreds of tasks are interrupted while they send, or wait for a confirm or a reply."""
    app = make_app(proxy.url)
    task, numbers = app.task(queue)(echo), itertools.count()

    # A few sends: the interruption finds the task at any step of one.
    @app.task(max_run_time=0.004)
    def send_on():
        for n in numbers:
            kuyruk.current_task().check()
            with contextlib.suppress(kuyruk.ResultTimeout):
                task.send_to_queue((n,), wait_result=0.001 if n % 3 == 0 else None)

    def apply_many():
        for _ in range(100):
            with pytest.raises(kuyruk.Timeout):
                send_on.apply()

    task()
    results([background(apply_many) for _ in range(4)])
    call = background(task.send_to_queue, ("after",), wait_result=PATIENCE)
    request = wait_until(lambda: [m for m in broker.take_all(queue) if b"after" in m.body])[0]
    broker.publish(request.reply_to, b'{"result": "reply"}')
    assert (call.result(PATIENCE), proxy.accepted) == ("reply", 1)


def test_a_deadline_in_the_middle_of_a_send_does_not_cut_it(
    make_app, proxy, queue, broker, monkeypatch
):
    app = make_app(proxy.url)
    task, encode = app.task(queue)(echo), kuyruk._ConfirmChannel.encode

    def encode_late(*args):
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        return encode(*args)

    task()  # without this the deadline might come while it still connects
    monkeypatch.setattr(kuyruk._ConfirmChannel, "encode", encode_late)
    with pytest.raises(kuyruk.Timeout):
        app.task(max_run_time=0.1)(lambda: task()).apply()
    wait_until(lambda: broker.count(queue) == 2)
    task()
    assert (broker.count(queue), proxy.accepted) == (3, 1)


def test_a_task_may_send_after_its_interruption(app, queue, broker):
    task = app.task(queue)(echo)

    @app.task(max_run_time=0.1)
    def clean_up():
        try:
            spin()
        except kuyruk.Timeout:
            task("in except")
            raise
        finally:
            task("in finally")

    with pytest.raises(kuyruk.Timeout):
        clean_up.apply()
    assert arguments_in(broker.take_all(queue)) == [("in except",), ("in finally",)]


@pytest.mark.parametrize(
    "nothing", [{"host": ""}, {"message_ttl": 0}, {"wait_result": 0}, {"delay": 0, "priority": 0}]
)
def test_what_is_empty_is_not_given(app, queue, broker, nothing):
    assert app.task(queue)(echo).send_to_queue(None, None, headers={}, id="", **nothing) is None
    app.send_tasks_to_queue([app.task(queue)(echo).subtask(None, None, "")])
    for message in (broker.take(queue), broker.take(queue)):
        body, properties = json.loads(message.body), message.properties
        assert (body["args"], body["kwargs"], body["id"]) == ([], {}, properties["message_id"])
        absent = ("expiration", "reply_to", "headers", "priority")
        assert {key: properties[key] for key in absent if properties[key]} == {}


def test_a_message_has_the_senders_priority_headers_and_id(app, queue, broker):
    task = app.task(queue)(echo)
    options = {"priority": 7, "headers": {"trace": "x", "n": [1, {"a": None}]}, "id": "mine"}
    task.send_to_queue((1,), **options)
    app.send_tasks_to_queue([task.subtask((2,), **options)])
    for number in (1, 2):
        message = broker.take(queue)
        given, body = message.properties, json.loads(message.body)
        assert {**{key: given[key] for key in ("priority", "headers")}, "id": body["id"]} == options
        assert (given["message_id"], body["args"]) == ("mine", [number])


def test_callers_may_give_their_messages_one_id(app, queue, start):
    """Which reply is whose doesn't depend on that id."""
    task = app.task(queue)(echo)
    start(app, [queue])
    futures = [
        background(task.send_to_queue, (n,), wait_result=PATIENCE, id="same") for n in range(10)
    ]
    assert results(futures) == list(range(10))


@pytest.mark.parametrize("batch", [False, True])
def test_a_delayed_message_is_in_its_queue_when_its_time_has_come(app, queue, broker, batch):
    """The queue is declared with the delay queue: what that passes on to none, RabbitMQ drops."""
    task, began = app.task(queue)(echo), time.monotonic()
    if batch:
        app.send_tasks_to_queue(
            [task.subtask((1,), delay=1), task.subtask((2,), {"a": 1}, HOSTNAME, delay=1)]
        )
    else:
        task.send_to_queue((1,), delay=1, priority=3, id="mine")
    delayed = broker.count(queue), broker.count(f"{queue}.delay.1000")
    assert delayed == (0, 1) or time.monotonic() - began >= 1  # on a busy machine
    message = broker.take(queue)
    assert time.monotonic() - began >= 1
    assert (arguments_in([message]), message.properties["delivery_mode"]) == ([(1,)], 2)
    if batch:
        assert arguments_in([broker.take(f"{queue}.{HOSTNAME}")]) == [(2,)]
        broker.delete(f"{queue}.{HOSTNAME}.delay.1000")


def test_a_remote_task_runs_where_its_code_is(make_app, url, queue, start):
    app = make_app(url)
    app.task(queue)(echo)
    start(app)
    remote = make_app(url).remote("test_kuyruk.echo", queue)
    assert remote.send_to_queue((1,), wait_result=PATIENCE) == 1
    remote.kuyruk.send_tasks_to_queue([remote.subtask((2,))])
    remote(3)
    wait_until(lambda: sorted(ran) == [(1,), (2,), (3,)])


# -- at each point where a connection can be lost


class Point(NamedTuple):
    """A place in the conversation of a sender with the broker."""

    place: str
    frame: str
    #: How far a send has come: "login", "preparing", "publishing" or "confirmed", then a call
    #: "answering" or "answered", then the app "closing".
    phase: str

    def __str__(self):
        return f"{self.place} {self.frame}"


POINTS = [
    Point("before", "TCP", "login"),
    Point("before", "ProtocolHeader", "login"),
    Point("half", "ProtocolHeader", "login"),
    Point("half", "Connection.Start", "login"),
    Point("before", "Connection.StartOk", "login"),
    Point("before", "Connection.Tune", "login"),
    Point("before", "Connection.OpenOk", "login"),
    Point("before", "Channel.OpenOk", "preparing"),
    Point("before", "Queue.Declare", "preparing"),
    Point("after", "Queue.Declare", "preparing"),
    Point("before", "Queue.DeclareOk", "preparing"),
    Point("after", "Queue.DeclareOk", "preparing"),
    Point("before", "Basic.Publish", "publishing"),
    Point("half", "Basic.Publish", "publishing"),
    Point("after", "Basic.Publish", "publishing"),
    Point("after", "Basic.Publish ContentHeader", "publishing"),
    Point("half", "Basic.Publish ContentBody", "publishing"),
    Point("after", "Basic.Publish ContentBody", "publishing"),
    Point("before", "Basic.Ack", "publishing"),
    Point("after", "Basic.Ack", "confirmed"),
    Point("before", "Basic.Consume", "preparing"),
    Point("before", "Basic.Deliver", "answering"),
    Point("after", "Basic.Deliver", "answering"),
    Point("half", "Basic.Deliver ContentBody", "answering"),
    Point("after", "Basic.Deliver ContentBody", "answered"),
    Point("before", "Connection.Close", "closing"),
    Point("before", "Connection.CloseOk", "closing"),
]
#: What happens at a point: arguments of `TcpProxy.at`. All but "down" happen to one connection.
LOSSES = {
    "rst": {"action": "rst"},
    "fin": {"action": "fin"},
    "stall": {"action": "stall"},
    "stall the other way": {"action": "stall other"},
    "pause": {"action": "stall", "seconds": 0.25},
    "half-open": {"action": "swallow"},
    "down": {"action": "down"},
}
WAYS = ("send", "batch", "call")
#: Seconds: RABBIT_CONNECT_TIMEOUT, RABBIT_PUBLISH_TIMEOUT and wait_result. A silent connection
#: costs the first, or half of the second: the third leaves time for one more try.
LOSS_TIMEOUTS = 0.7, 3.0, 3.5
#: So many cells of the table are tried at once: most of them wait.
CELLS_AT_ONCE = 12
#: What the text of an error may say has happened.
LOSS_WORDS = r"refused|reset|closed|ended|lost|silent|answer|within [\d.]+ seconds|no reply"


def is_point_of(way, point):
    """Return whether a send in this way passes there."""
    return way == "call" or (
        not point.phase.startswith("answer") and not point.frame.startswith("Basic.Consume")
    )


def allowed_outcomes(point, loss, way):
    """Return what may become of a send: it is done, or it is an error, and may have arrived or not.

    - While one connection is lost, another can be had: the send goes on with that.
    - A silent connection may be kept until the time is over, except while it is being opened.
    - A confirm, and for a call the reply, may have come or not when it is lost beside it.
    - A confirmed call isn't sent again, and its reply address has died with the connection.
    """
    if loss == "pause" or point.phase == "closing":
        return {"done"}
    if (way == "call" and point.frame == "Basic.Ack") or point.phase == "answering":
        return {"done", "error"}
    if point.phase in ("confirmed", "answered"):
        sudden = loss == "down" or (point.phase == "answered" and loss in ("rst", "fin"))
        beside = way == "batch"  # its other messages, which aren't confirmed yet
        return {"done", "error"} if sudden or beside else {"done"}
    if loss == "down":  # on a busy machine the way may be back before the time is over
        return {"done", "error"}
    if loss in ("rst", "fin"):
        return {"done"}
    logged_in = point.frame == "Connection.OpenOk" and loss == "stall the other way"
    return {"done"} if point.phase == "login" and not logged_in else {"done", "error"}


class Cell:
    """A send in one way, with one loss at one point."""

    def __init__(self, point, loss, way, queue):
        self.point, self.loss, self.way, self.queue = point, loss, way, queue
        self.outcome, self.sent, self.error = None, [], None

    def __str__(self):
        return f"{self.way}, {self.loss} {self.point}: {self.outcome} ({self.error!r})"

    def send(self, *what):
        """Send as many messages as there are arguments; by a call, only one."""
        if self.way == "call":
            assert self.task.send_to_queue(what, wait_result=LOSS_TIMEOUTS[2]) == what[0]
        elif self.way == "send":
            self.task(*what)
        else:
            self.app.send_tasks_to_queue([self.task.subtask((each,)) for each in what])
        self.sent += what

    def works(self, what):
        """Send something, and return whether that has succeeded."""
        with contextlib.suppress(kuyruk.BrokerError, kuyruk.ResultTimeout):
            self.send(what)
            return True
        return False

    def run(self, make_app, url):
        """Send by an app of its own, while the connection is lost. Raise what is wrong."""
        connect, publish, _ = LOSS_TIMEOUTS
        with contextlib.closing(TcpProxy(url)) as self.proxy:
            self.app = make_app(
                self.proxy.url, RABBIT_CONNECT_TIMEOUT=connect, RABBIT_PUBLISH_TIMEOUT=publish
            )
            self.task = self.app.task(self.queue)(echo)
            if self.point.phase not in ("login", "preparing"):
                wait_until(lambda: self.works("before"))
            self.lose()
            if self.loss == "down":
                self.proxy.up()
            wait_until(lambda: self.works("after"), SOON)
            with takes(0, SOON):
                self.app.close()
            self.proxy.resume()
            # Except that a half-open one is never told of its end.
            wait_until(lambda: self.proxy.open == 0 or self.loss == "half-open")

    def lose(self):
        """Send, and lose the connection meanwhile, or when it is closed after that."""
        many = self.way == "batch" and self.point.frame.startswith("Basic.Publish")
        trap = self.proxy.at(
            self.point.frame, self.point.place, **LOSSES[self.loss], nth=10 if many else 1
        )
        with takes(0, LOSS_TIMEOUTS[2 if self.way == "call" else 1] + SOON):
            try:
                self.send(*range(20 if self.way == "batch" else 1))
                self.outcome = "done"
            except (kuyruk.BrokerError, kuyruk.ResultTimeout) as error:
                self.outcome, self.error = "error", error
        if self.point.phase == "closing":
            with takes(0, SOON):
                self.app.close()
        assert trap.wait(SOON), "the send doesn't pass there"
        assert self.outcome in allowed_outcomes(self.point, self.loss, self.way)
        assert re.search(LOSS_WORDS, str(self.error or "lost"))
        assert self.way == "call" or type(self.error) is not kuyruk.ResultTimeout


@pytest.mark.parametrize(
    "phases", ["login", "preparing", "publishing", "confirmed answering answered closing"]
)
def test_a_send_is_confirmed_or_raises_in_time_whatever_is_lost_while(
    phases, make_app, app, url, queue, broker, start
):
    app.task(queue)(echo)
    start(app)  # what answers the calls
    cells = [
        Cell(point, loss, way, queue if way == "call" else f"{queue}.{number}")
        for number, (point, loss, way) in enumerate(itertools.product(POINTS, LOSSES, WAYS))
        if point.phase in phases.split() and is_point_of(way, point)
    ]
    with ThreadPoolExecutor(CELLS_AT_ONCE) as pool:
        runs = [pool.submit(cell.run, make_app, url) for cell in cells]
    wrong = [
        f"{cell}: {error!r}"
        for cell, run in zip(cells, runs, strict=True)
        if (error := run.exception())
    ]
    told = [cell for cell in cells if cell.way != "call" and broker.count(cell.queue)]
    arrived = {
        cell: {args[0] for args in arguments_in(broker.take_all(cell.queue))} for cell in told
    }
    wrong += [f"{cell}: lost {lost}" for cell in told if (lost := set(cell.sent) - arrived[cell])]
    broker.delete(*(cell.queue for cell in told))
    assert not wrong, "\n".join(wrong)


# -- each message has its own fate


# Older code counted the returned messages of a batch together, and gave up at the tenth.
@pytest.mark.parametrize("queues", [1, 2], ids=["one queue", "one of two queues"])
@pytest.mark.parametrize("count", [9, 10, 2000])
def test_a_batch_to_a_deleted_queue_is_confirmed_however_many_they_are(
    count, queues, app, queue, broker
):
    tasks = [app.task(name)(echo) for name in (queue, f"{queue}.2")[:queues]]
    for task in tasks:
        task("before")
    broker.delete(queue)
    sent = [tasks[n % queues].subtask((n,)) for n in range(count)]
    app.send_tasks_to_queue(sent)
    arrived = [message for task in tasks for message in broker.take_all(task.queue)]
    assert {(n,) for n in range(count)} - set(arguments_in(arrived)) == set()


def declare_bad(broker, queue, room):
    """Declare a queue that takes no more messages than it has room for; or (None) one that is
    another connection's."""
    if room is None:
        broker.channel.queue.declare(queue, exclusive=True)
    else:
        broker.declare(queue, **{"x-max-length": room, "x-overflow": "reject-publish"})


@pytest.mark.parametrize(
    ("room", "places", "unconfirmed"),
    [
        (0, [0], [0]),
        (0, [9], [9]),
        (0, [1, 2, 7], [1, 2, 7]),
        (0, range(10), range(10)),
        (2, [1, 3, 5, 7, 9], [5, 7, 9]),
        (None, [4], [4]),
        (None, range(10), range(10)),
    ],
)
def test_a_batch_names_exactly_those_whose_queue_does_not_take_them(
    room, places, unconfirmed, make_app, url, queue, broker
):
    """Of ten messages, those at some places are for a queue that takes none, or only a few."""
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=2)
    declare_bad(broker, f"{queue}.2", room)
    good, bad = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    subtasks = [(bad if n in places else good).subtask((n,)) for n in range(10)]
    # A queue that is full may have room soon, so that is tried until the time is up.
    least, why = (0, "can't be used: RESOURCE_LOCKED") if room is None else (2, "refuses it")
    says = rf"{len(unconfirmed)} messages?\b.* queue '{queue}\.2' {why}"
    with takes(least, 2 + SOON), pytest.raises(kuyruk.BrokerError, match=says) as info:
        app.send_tasks_to_queue(subtasks)
    assert info.value.unconfirmed == [subtasks[n] for n in unconfirmed]
    arrived = broker.take_all(queue) if len(places) < 10 else []
    assert set(arguments_in(arrived)) == {(n,) for n in range(10) if n not in places}
    assert room is None or broker.count(f"{queue}.2") == room


def test_what_a_large_batch_does_not_name_has_arrived(make_app, url, queue, broker):
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=2)
    declare_bad(broker, f"{queue}.2", room=0)
    good, bad = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    # In each window there are some that its queue refuses. The send fails with the first window,
    # and names what it hasn't tried, too.
    subtasks = [(good if n % 1000 else bad).subtask((n,)) for n in range(5000)]
    with pytest.raises(kuyruk.BrokerError) as info:
        app.send_tasks_to_queue(subtasks)
    named = {subtask.args for subtask in info.value.unconfirmed}
    arrived = set(arguments_in(broker.take_all(queue)))
    assert (named ^ arrived, named & arrived) == ({(n,) for n in range(5000)}, set())
    assert (0,) in named


# -- forks that Python doesn't see

UNSEEN_FORK = """
import ctypes, time
kuyruk.TICK = 60
fork = ctypes.PyDLL(None).fork
def send_on(who):
    for n in range(5):
        task(who, n)
{before}
time.sleep(0.2)
children = []
for child in range(4):
    if not (pid := fork()):
        code = 1
        try:
            send_on(child)
            app.send_tasks_to_queue([task.subtask((child, n)) for n in range(5, 10)])
            code = 0
        finally:
            os._exit(code)
    children.append(pid)
send_on("parent")
print([os.waitpid(pid, 0)[1] for pid in children])
"""


@pytest.mark.parametrize("before", ["", 'send_on("before")'], ids=["at first", "after a send"])
def test_a_child_of_a_fork_that_python_does_not_see_sends_too(before, url, queue, broker):
    """uWSGI forks so, in C: no hook of Python's is called."""
    code = IN_A_PROCESS + UNSEEN_FORK.format(before=before)
    # At the fork, the thread that reads must sleep, and for long. If it was waiting for the GIL,
    # the child would hang, in code of CPython: of the program's threads it has only one, and C's
    # fork, unlike Python's, doesn't clear what the others have left in the GIL's lock.
    env = dict.fromkeys(("KUYRUK_RABBIT_PUBLISH_TIMEOUT", "KUYRUK_RABBIT_IDLE_DURATION"), "1000")
    env |= {"KUYRUK_RABBIT_HEARTBEAT": "0", "KUYRUK_RABBIT_URL": url}
    codes = run_python("-c", code, queue, **env)
    messages = broker.take_all(queue)
    expected = [(child, n) for child in range(4) for n in range(10)]
    expected += [(who, n) for who in ("parent", "before")[: 2 if before else 1] for n in range(5)]
    assert (codes, set(arguments_in(messages))) == ("[0, 0, 0, 0]\n", set(expected))
    # Nor does a child go on with the ids of its parent.
    ids = {message.message_id for message in messages}
    assert (len(ids), len(messages)) == (len(expected), len(expected))


# -- names of queues


@pytest.fixture
def odd_queue(request, queue, url):
    """A queue whose name RabbitMQ takes, and pamqp doesn't: its deletion is encoded here."""
    name = request.param.format(queue).ljust(230 if request.param.startswith("long") else 0, "x")
    yield name
    with amqpstorm.UriConnection(url) as connection, connection.channel() as channel:
        for each in (name.encode(), f"{name}.failed".encode()):
            no_wait = 4
            payload = struct.pack(">HHHB", 50, 40, 0, len(each)) + each + bytes([no_wait])
            head = struct.pack(">BHI", 1, int(channel), len(payload))
            connection.socket.sendall(head + payload + b"\xce")
        channel.basic.qos()  # has an answer, which comes after the deletions


ODD_NAMES = ["mails für alle {}", "%{}", "*{}", "({}", "long {}", "日本{}", "{}'\"\\", "#{}/?&="]


@pytest.mark.parametrize("odd_queue", ODD_NAMES, indirect=True, ids=ascii)
def test_a_queue_may_have_any_name_that_rabbitmq_takes(odd_queue, app, start):
    task, failing = app.task(odd_queue)(echo), app.task(odd_queue)(play)
    task("told")
    app.send_tasks_to_queue([task.subtask(("of many",))])
    script[:] = [ValueError("bad")]
    start(app)
    assert task.send_to_queue(("asked",), wait_result=SOON) == "asked"
    with pytest.raises(kuyruk.RemoteException, match="bad"):
        failing.send_to_queue(wait_result=SOON)
    echoed = [args[0] for args in ran if isinstance(args, tuple)]
    assert sorted(echoed) == ["asked", "of many", "told"]


# -- slow ways, and more than they can carry


@pytest.mark.parametrize(
    ("rate", "size"), [(200_000, 700_000), (1_000_000, 3_500_000)], ids=["buffered", "written on"]
)
def test_an_upload_over_a_slow_way_that_ends_in_time_succeeds_once(
    rate, size, make_app, url, queue, broker
):
    """It takes longer than half of its time, after which a silent connection would be given up. A
    call that waits beside it keeps its connection, too."""
    with contextlib.closing(TcpProxy(url, rate=rate)) as proxy:
        app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=5)
        asking = background(app.task(f"{queue}.2")(echo).send_to_queue, wait_result=PATIENCE)
        request = broker.take(f"{queue}.2")
        with takes(3, 5 + SOON):
            app.task(queue)(echo)("x" * size)
        assert (broker.count(queue), proxy.accepted) == (1, 1)
        broker.publish(request.reply_to, b'{"result": "answered"}')
        assert asking.result(PATIENCE) == "answered"


@pytest.mark.parametrize("directions", [["up", "down"], ["up"], ["down"]], ids="-".join)
def test_a_broker_that_stands_still_for_less_than_the_timeout_costs_nothing(
    directions, make_app, proxy, queue, broker
):
    app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=3)
    asking = background(app.task(f"{queue}.2")(echo).send_to_queue, wait_result=PATIENCE)
    request = broker.take(f"{queue}.2")
    task = app.task(queue)(echo)
    task("before")
    for direction in directions:
        proxy.stall(direction)
    sends = [background(task, "while it stands still") for _ in range(5)]
    # After half of the timeout another connection is tried. It can't be had: so the broker stands
    # still, and the first connection is kept.
    time.sleep(0.7 * 3)
    proxy.resume()
    results(sends)
    broker.publish(request.reply_to, b'{"result": "answered"}')
    assert asking.result(PATIENCE) == "answered"
    assert broker.count(queue) == 6


def test_what_nobody_waits_for_any_more_is_not_sent(make_app, url, queue, broker):
    """Three times, 60 threads want to send three times as much as the way carries in their time. It
    must not be busy with what comes too late anyway."""
    size, rate, timeout = 100_000, 1_000_000, 2
    carried, raised = rate * timeout // size, []
    with contextlib.closing(TcpProxy(url, rate=rate)) as proxy:
        task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=timeout).task(queue)(echo)
        task(-1)
        for wave in range(3):
            numbers = range(60 * wave, 60 * wave + 60)
            sends = {n: background(task, n, "x" * size) for n in numbers}
            failed = [n for n, future in sends.items() if future.exception(PATIENCE)]
            # The way carries what somebody still waits for.
            assert len(failed) <= 60 - carried / 5
            raised += failed
        proxy.rate = None  # what is on its way may arrive now
        task(-2)
        task.kuyruk.close()
        arrived = {args[0] for args in arguments_in(broker.take_all(queue))}
    assert {-1, -2, *range(180)} - set(raised) - arrived == set()
    assert len(raised) > 60  # or it wasn't too much for the way
    # What is being written when the time is over can't be withdrawn: it is in buffers of the kernel
    # and of the proxy, a megabyte for each wave.
    late = arrived & set(raised)
    assert len(late) <= 3 * 1_000_000 / size


@contextlib.contextmanager
def takes_memory(most):
    """Assert that at no time the block has allocated more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak <= most
    finally:
        tracemalloc.stop()


def confirms(task):
    """Send a message, and return whether it was confirmed."""
    with contextlib.suppress(kuyruk.BrokerError):
        task("is confirmed")
        return True
    return False


def test_what_waits_to_be_written_stays_bounded(make_app, proxy, queue):
    app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=0.3)
    task = app.task(queue)(echo)
    wait_until(lambda: confirms(task))
    proxy.stall("up")
    # Eight threads for six seconds: a hundred megabytes and more, each of which is given up.
    raised, until = [], time.monotonic() + 6

    def send_on():
        while time.monotonic() < until:
            with pytest.raises(kuyruk.BrokerError):
                task("x" * 1_000_000)
            raised.append(1)

    with takes_memory(100_000_000):
        results([background(send_on) for _ in range(8)])
    assert len(raised) > 80  # megabytes, that would have filled more


@pytest.mark.parametrize("size", [1000, 100_000])
def test_without_confirms_the_bytes_that_wait_are_bounded(size, make_app, proxy, queue, caplog):
    app = make_app(proxy.url, RABBIT_CONFIRM=False, RABBIT_PUBLISH_TIMEOUT=1)
    task, body = app.task(queue)(echo), "x" * size
    task("before")
    proxy.stall("up")

    def send_on():
        for _ in range(200_000_000 // size):
            task(body)

    with takes_memory(50_000_000), pytest.raises(kuyruk.BrokerError):
        send_on()
    # After the timeout the connection is given up, and what waited is counted.
    [lost] = wait_until(lambda: re.findall(r"Lost: (\d+) messages", caplog.text))
    assert int(lost) * size <= kuyruk.UNCONFIRMED_BYTES + size


# -- a send where none is expected


class SendsByDestructor:
    def __init__(self, send):
        self.send = send

    def __del__(self):
        self.send()


def by_callback(send):
    """Send in the callback of a weak reference."""

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: send())
    del thing
    return reference


SENDERS = {
    "a log handler": lambda send: send(),
    "a destructor": lambda send: SendsByDestructor(send) and None,
    "a weak reference": by_callback,
}


class SendingHandler(logging.Handler):
    """Sends a message for each record of the library, in whichever thread writes that."""

    def __init__(self, way, task):
        super().__init__(logging.DEBUG)
        self._way, self._task = way, task
        self._inside = threading.local()
        self.times = []  # seconds that each send has taken

    def emit(self, record):
        if not getattr(self._inside, "value", False):
            self._inside.value = True
            self._way(self._send)
            self._inside.value = False

    def _send(self):
        began = time.monotonic()
        with contextlib.suppress(kuyruk.KuyrukError):  # it may be refused
            self._task("of a handler")
        self.times.append(time.monotonic() - began)


@pytest.fixture
def handle():
    """handle(handler) attaches it to the library's loggers until the test ends."""
    loggers, handlers = [logging.getLogger(name) for name in ("kuyruk", "amqpstorm")], []
    levels = [each.level for each in loggers]

    def attach(handler):
        handlers.append(handler)
        for each in loggers:
            each.addHandler(handler)
            each.setLevel(logging.DEBUG)
        return handler

    yield attach
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
        for handler in handlers:
            each.removeHandler(handler)


@pytest.mark.parametrize("way", SENDERS.values(), ids=SENDERS)
def test_a_send_of_a_log_handler_blocks_no_other(way, make_app, proxy, queue, broker, handle):
    """The same holds for a destructor, and the callback of a weak reference, that a handler causes
    to run: they send in threads of the library, too."""
    app = make_app(proxy.url)
    task = app.task(queue)(echo)
    task("before")
    handler = handle(SendingHandler(way, app.task(f"{queue}.2")(echo)))
    for number in range(3):
        proxy.cut()
        # If the thread that reads waited for the handler's send, that would take the whole of
        # RABBIT_PUBLISH_TIMEOUT (10 s).
        with takes(0, SOON):
            task(number)
    with takes(0, SOON):
        app.close()
    assert 0 < max(handler.times, default=0) < 10 + SOON
    assert {("before",), (0,), (1,), (2,)} - set(arguments_in(broker.take_all(queue))) == set()


def test_a_worker_whose_log_handler_sends_goes_on(make_app, proxy, url, queue, start, handle):
    app = make_app(proxy.url)
    task = app.task(queue)(echo)
    start(app)
    handler = handle(SendingHandler(SENDERS["a log handler"], app.task(f"{queue}.2")(echo)))
    caller = make_app(url).task(queue)(echo)
    for number in range(3):
        proxy.cut()
        with takes(0, SOON + 3):  # below the 10 s of a send that waits for itself
            assert caller.send_to_queue((number,), wait_result=PATIENCE) == number
    assert 0 < max(handler.times, default=0) < 10 + SOON
    task("at last")


class BlockingHandler(logging.Handler):
    """Blocks in the thread that logs, until it is let go."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.threads, self.go_on = set(), threading.Event()

    def emit(self, record):
        self.threads.add(threading.current_thread().name)
        self.go_on.wait()


def test_a_send_in_the_middle_of_a_write_has_a_connection_of_its_own(
    make_app, proxy, queue, broker, monkeypatch
):
    """1. A thread: has numbered a message, and is about to write it. 2. A signal handler, or a
    destructor, in the same thread: sends. Its message must not be written before the other."""
    task, encode, inner = make_app(proxy.url).task(queue)(echo), kuyruk._ConfirmChannel.encode, []

    def encode_and_send(channel, outgoing):
        data = encode(channel, outgoing)
        # The reader may write it as well, but in that thread nobody may send.
        if threading.current_thread() is threading.main_thread() and not inner:
            inner.append("begins")
            task("inner")
        return data

    monkeypatch.setattr(kuyruk._ConfirmChannel, "encode", encode_and_send)
    while not inner:
        task("outer")
    assert set(arguments_in(broker.take_all(queue))) == {("inner",), ("outer",)}
    assert proxy.accepted == 2


def test_a_send_in_a_thread_that_reads_is_refused_at_once(app, queue, broker, monkeypatch):
    """It would wait for an answer that only its own thread reads."""
    task, on_method, refused = app.task(queue)(echo), kuyruk._ConfirmChannel.on_method, []

    def send_and_go_on(channel, frame):
        if not refused:
            with pytest.raises(kuyruk.BrokerError, match="from a thread that reads") as info:
                task("inner")
            refused.append(info.value)
        on_method(channel, frame)

    task("before")  # without this the first method might come before the queue is declared
    monkeypatch.setattr(kuyruk._ConfirmChannel, "on_method", send_and_go_on)
    with takes(0, SOON):
        task("outer")
    assert refused != []
    assert arguments_in(broker.take_all(queue)) == [("before",), ("outer",)]


def test_what_is_appended_as_the_reader_falls_asleep_is_written(make_app, url, queue, monkeypatch):
    """1. The reader: has written all that it saw. 2. Another thread: appends, and writes nothing,
    because the reader is awake. 3. The reader: must look once more before it sleeps."""
    # It wakes by itself only after a minute.
    monkeypatch.setattr(kuyruk, "TICK", 60)
    long = {"RABBIT_PUBLISH_TIMEOUT": 1000, "RABBIT_IDLE_DURATION": 1000, "RABBIT_HEARTBEAT": 0}
    app = make_app(url, **long)
    app.task(queue)(echo)()
    connection, appended = app._publisher._keeper.connection, []
    notify = connection._notify  # what it does last

    def notify_and_append():
        notify()
        if not appended:
            appended.append("a heartbeat")
            connection.post(None, b"\x08\0\0\0\0\0\0\xce")  # 2

    connection._notify = notify_and_append
    connection.wake()
    wait_until(lambda: appended and not connection._frames, SOON)


def test_an_event_may_be_set_twice_while_its_thread_wakes_up():
    """1. One thread: sets it. 2. The thread that waits: has got the lock, and would release it for
    the next wait. 3. Another thread: sets it, which releases the lock."""
    event = kuyruk._Event()
    lock = event._until_set

    def acquire(**options):
        event.set()  # 1
        is_mine = lock.acquire(**options)
        event.set()  # 3
        return is_mine

    event._until_set = types.SimpleNamespace(acquire=acquire, release=lock.release)
    event.wait(time.monotonic() + PATIENCE)
    event.wait(math.inf)  # it is set


def test_a_defect_where_a_lost_connection_is_looked_at_costs_no_send(
    make_app, proxy, queue, broker, monkeypatch
):
    task, left = make_app(proxy.url).task(queue)(echo), [MemoryError, RuntimeError]
    task("before")
    look = kuyruk._Keeper._on_trouble

    def fail(self, *args):
        if left:
            raise left.pop()
        look(self, *args)

    monkeypatch.setattr(kuyruk._Keeper, "_on_trouble", fail)
    for number in range(3):
        proxy.cut()
        task(number)
    assert left == []
    assert set(arguments_in(broker.take_all(queue))) == {("before",), (0,), (1,), (2,)}


def test_a_log_that_blocks_for_ever_stops_neither_reader_nor_supervisor_nor_a_stop(
    make_app, proxy, url, queue, start, handle
):
    app = make_app(proxy.url)
    task = app.task(queue)(echo)
    worker = start(app)
    caller = make_app(url).task(queue)(echo)
    handler = handle(BlockingHandler())
    try:
        for number in range(3):
            proxy.cut()
            assert caller.send_to_queue((number,), wait_result=PATIENCE) == number
            task(number)
        worker.stop()
        app.close()
        assert handler.threads == {"kuyruk-log"}
    finally:
        handler.go_on.set()


def test_what_a_worker_has_logged_is_written_when_its_stop_returns(app, queue, start, handle):
    """The process may end then, and the log thread with it."""
    worker, lines = start(app, [queue]), []
    handler = handle(logging.Handler(logging.INFO))
    handler.emit = lambda record: time.sleep(0.3) or lines.append(record.getMessage())
    worker.stop()
    assert lines[-1] == "Stopped"


def test_a_destructor_that_sends_may_run_anywhere_in_a_send(make_app, url, queue, broker):
    """The garbage collector runs it wherever something is allocated."""
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=3)
    task, other = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    refused, inside, wanted = [], threading.local(), 200

    def send():
        if not getattr(inside, "value", False):
            inside.value = True
            try:
                other("of a destructor")
            except kuyruk.KuyrukError as error:
                refused.append(error)
            inside.value = False

    def send_on(sender):
        for number in range(wanted):
            garbage = SendsByDestructor(send)
            garbage.itself = garbage
            del garbage
            task(sender, number)

    task("before")
    threshold = gc.get_threshold()
    gc.set_threshold(20)
    try:
        with takes(0, 2 * PATIENCE):
            results([background(send_on, sender) for sender in range(3)])
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    sent = {(sender, number) for sender in range(3) for number in range(wanted)}
    assert set(arguments_in(broker.take_all(queue))) == {("before",), *sent}
    assert broker.count(f"{queue}.2") + len(refused) >= 3 * wanted


# -- a broker that refuses


@pytest.mark.parametrize(
    ("login", "says"),
    [("guest:hunter2@{}/", "ACCESS_REFUSED"), ("guest:guest@{}/no-such-vhost", "no-such-vhost")],
)
def test_a_login_that_is_refused_is_an_error_at_once_and_not_repeated_with_each_send(
    login, says, make_app, proxy, queue, caplog
):
    caplog.set_level(logging.DEBUG)
    address = "{}:{}".format(*address_of(proxy.url))
    app = make_app(f"amqp://{login.format(address)}", RABBIT_PUBLISH_TIMEOUT=PATIENCE)
    task, began, errors = app.task(queue)(echo), time.monotonic(), []
    with takes(0, PATIENCE):  # for all of them: none waits until its time is up
        for _ in range(20):
            with pytest.raises(kuyruk.BrokerError, match=says) as info:
                task()
            errors += traceback.format_exception(info.value)
    # The keeper tries again after a pause of up to a second, as long as somebody wants to send.
    assert proxy.seen["Connection.StartOk"] <= 2 + (time.monotonic() - began)

    def refusals():
        lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        return [line for line in lines if says in line]

    wait_until(refusals)  # another thread logs it
    assert len(refusals()) == 1
    assert "hunter2" not in caplog.text + "".join(errors)


@pytest.fixture
def vhost(node):
    """vhost(**limits) is the URL of a virtual host of the test's own with these limits."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    node.ctl("add_vhost", name)
    node.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")

    def limit(**limits):
        limits = {key.replace("_", "-"): value for key, value in limits.items()}
        node.ctl("set_vhost_limits", "-p", name, json.dumps(limits))
        return f"{node.url}{name}"

    yield limit
    node.ctl("delete_vhost", name)


@pytest.mark.parametrize("wait_result", [None, PATIENCE])
def test_a_send_waits_while_the_broker_has_too_many_connections(
    wait_result, make_app, vhost, queue
):
    url = vhost(max_connections=1)
    task = make_app(url, RABBIT_PUBLISH_TIMEOUT=PATIENCE).task(queue)(echo)
    with amqpstorm.UriConnection(url) as connection:
        connection.channel().queue.declare(queue, durable=True)
        sending = background(task.send_to_queue, (1,), wait_result=wait_result)
        assert still_waits(sending, 0.5)
    if wait_result is None:
        sending.result(SOON)
    vhost(max_connections=-1)
    broker = Broker(url)
    request = broker.take(queue)
    assert arguments_in([request]) == [(1,)]
    if wait_result is not None:
        broker.publish(request.reply_to, b'{"result": "answered"}')
        assert sending.result(SOON) == "answered"
    broker.connection.close()


def test_a_send_that_finds_too_many_connections_says_so_in_time(make_app, vhost, queue):
    url = vhost(max_connections=1)
    task = make_app(url, RABBIT_PUBLISH_TIMEOUT=1).task(queue)(echo)
    refused = pytest.raises(kuyruk.BrokerError, match="limit")
    with amqpstorm.UriConnection(url), takes(1, 1 + SOON), refused:
        task()


@pytest.fixture(scope="module")
def node_with_few_channels():
    with RabbitmqNode(["channel_max = 5"]) as node:
        yield node


def test_callers_wait_for_their_turn_where_channels_are_few(
    node_with_few_channels, make_app, queue, start
):
    url = node_with_few_channels.url
    # Of five channels, one is for publishing: the calls have four.
    task = make_app(url, RABBIT_PUBLISH_TIMEOUT=PATIENCE).task(queue)(echo)
    start(make_app(url).task(queue)(echo).kuyruk)
    calls = [background(task.send_to_queue, (n,), wait_result=PATIENCE) for n in range(30)]
    task("beside them")
    assert results(calls) == list(range(30))


def test_a_call_whose_turn_does_not_come_where_channels_are_few_says_so(
    node_with_few_channels, make_app, queue
):
    app = make_app(node_with_few_channels.url, RABBIT_PUBLISH_TIMEOUT=2)
    task = app.task(queue)(echo)
    calls = [background(task.send_to_queue, (n,), wait_result=3) for n in range(10)]
    errors = [future.exception(PATIENCE) for future in calls]
    # Some have had a channel and no reply, the others no channel.
    assert {type(error) for error in errors} == {kuyruk.BrokerError, kuyruk.ResultTimeout}
    assert [error for error in errors if "(channel_max)" in str(error)] != []
    task("after them")


@pytest.fixture
def nowhere(proxy, make_app, queue, monkeypatch):
    """A task whose broker accepts connections and never answers, at each of three addresses."""
    proxy.mute = True
    hosts = ",".join(["{}:{}".format(*address_of(proxy.url))] * 3)
    # An attempt to connect takes much longer than a send may; and whoever waits for its thread
    # waits for long, too.
    monkeypatch.setattr(kuyruk, "CLOSE_TIMEOUT", PATIENCE)
    timeouts = {"RABBIT_CONNECT_TIMEOUT": PATIENCE, "RABBIT_PUBLISH_TIMEOUT": 1}
    return make_app(None, RABBIT_HOST=hosts, **timeouts).task(queue)(echo)


@pytest.mark.parametrize("confirm", [True, False])
def test_a_send_whose_time_is_over_waits_for_no_attempt_to_connect(confirm, nowhere):
    nowhere.kuyruk.config.RABBIT_CONFIRM = confirm
    for options in ({}, {"wait_result": 30}, {"wait_result": 1}):
        with takes(1, 1 + SOON), pytest.raises((kuyruk.BrokerError, kuyruk.ResultTimeout)):
            nowhere.send_to_queue(**options)
    with takes(1, 1 + SOON), pytest.raises(kuyruk.BrokerError):
        nowhere.kuyruk.send_tasks_to_queue([nowhere.subtask()] * 3)


def test_a_close_waits_for_no_attempt_to_connect(nowhere):
    with pytest.raises(kuyruk.BrokerError):
        nowhere()
    with takes(0, SOON):
        nowhere.kuyruk.close()


def test_a_stop_waits_for_no_attempt_to_connect(nowhere, proxy):
    worker = nowhere.kuyruk.worker()
    worker.start()
    wait_until(lambda: proxy.accepted)
    with takes(0, SOON):
        worker.stop()


def test_user_and_password_are_used_although_a_broker_offers_external(make_app, queue, authority):
    """RabbitMQ offers both over TLS with a plugin. Without a certificate of ours there is no
    external login."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority["server"])
    answers = SimpleQueue()

    def serve(listener):
        with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
            sock.recv(8)
            offer = commands.Connection.Start(mechanisms="EXTERNAL PLAIN", server_properties={})
            sock.sendall(frame.marshal(offer, 0))
            answers.put(frame.unmarshal(sock.recv(0x10000))[2])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = background(serve, listener)
        url = f"amqps://joe:secret@localhost:{listener.getsockname()[1]}/"
        options = {"cafile": authority["ca"]}
        app = make_app(url, RABBIT_SSL_OPTIONS=options, RABBIT_PUBLISH_TIMEOUT=2)
        with pytest.raises(kuyruk.BrokerError):
            app.task(queue)(echo)()
        serving.result(PATIENCE)
    answer = answers.get(timeout=PATIENCE)
    assert (answer.mechanism, answer.response) == ("PLAIN", "\0joe\0secret")


def test_a_refusal_is_forgotten_when_its_cause_is_gone(make_app, node, queue):
    name = f"test-{uuid.uuid4().hex[:12]}"
    task = make_app(f"{node.url}{name}", RABBIT_PUBLISH_TIMEOUT=1).task(queue)(echo)
    for _ in range(3):
        with pytest.raises(kuyruk.BrokerError, match=name):
            task()
    node.ctl("add_vhost", name)
    try:
        node.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        wait_until(lambda: confirms(task))
    finally:
        node.ctl("delete_vhost", name)


# -- what is wrong with one queue is that queue's trouble only


@pytest.mark.parametrize("room", [0, None], ids=["is full", "is another connection's"])
@pytest.mark.parametrize("confirm", [True, False])
def test_no_send_suffers_from_another_whose_queue(
    confirm, room, make_app, url, proxy, queue, broker, start
):
    declare_bad(broker, f"{queue}.2", room)
    app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=SOON, RABBIT_CONFIRM=confirm)
    good_task, bad_task = app.task(queue)(echo), app.task(f"{queue}.2")(echo)
    start(make_app(url).task(queue)(echo).kuyruk)
    enough = threading.Event()

    def send_on(options):
        while not enough.is_set():
            with contextlib.suppress(kuyruk.BrokerError, kuyruk.ResultTimeout):
                bad_task.send_to_queue(**options)
            time.sleep(0.05)

    suffering = [background(send_on, options) for options in ({}, {}, {"wait_result": 0.2})]
    try:
        for number in range(20):
            with takes(0, SOON):
                assert good_task.send_to_queue((number,), wait_result=PATIENCE) == number
                app.send_tasks_to_queue([good_task.subtask()] * 20)
    finally:
        enough.set()
        results(suffering)
    assert proxy.accepted == 1


# -- whatever fails for a moment


# Each of the next four makes something fail until `monkeypatch` and `stack` are undone, in threads
# of the library and in those that send.


def fail_in_socket(monkeypatch, stack):
    """Have no memory where something is written or read."""

    def failing(method, sock, *args):
        if threading.current_thread().name.startswith(("kuyruk", "test")):
            raise MemoryError
        return method(sock, *args)

    for name in ("send", "sendmsg", "recv", "recv_into"):
        method = functools.partialmethod(functools.partial(failing, getattr(socket.socket, name)))
        monkeypatch.setattr(socket.socket, name, method)


def fail_in_thread_start(monkeypatch, stack):
    begin = threading.Thread.start

    def failing(thread):
        if threading.current_thread().name.startswith(("kuyruk", "test")):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)


def fail_in_open(monkeypatch, stack):
    """Have no descriptor left; what is closed meanwhile is taken by others."""
    limit, taken, enough = resource.getrlimit(resource.RLIMIT_NOFILE), [], threading.Event()
    highest = max(map(int, os.listdir("/proc/self/fd" if os.path.isdir("/proc") else "/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limit[1]))

    def take_all():
        while not enough.is_set():
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                enough.wait(0.001)

    taking = background(take_all)

    @stack.callback
    def give_back():
        enough.set()
        taking.result(PATIENCE)
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    time.sleep(0.02)


class FailingHandler(logging.Handler):
    def emit(self, record):
        raise OSError("no space left on device")


def fail_in_log(monkeypatch, stack):
    logger, handler = logging.getLogger("kuyruk"), FailingHandler()
    stack.callback(logger.removeHandler, handler)
    logger.addHandler(handler)


FAILURES = {
    "the socket has no memory": fail_in_socket,
    "no thread can be started": fail_in_thread_start,
    "no file can be opened": fail_in_open,
    "the log raises": fail_in_log,
}


@pytest.mark.parametrize("broker_is", ["there", "going away", "away"])
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_sends_work_again_after(fail, broker_is, make_app, proxy, queue, broker, monkeypatch):
    """An exception costs a connection, or makes a send raise, and nothing else."""
    app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=2)
    task = app.task(queue)(echo)
    task("before")
    with contextlib.ExitStack() as stack:
        if broker_is == "away":
            proxy.down()
            wait_until(lambda: not confirms(task))
        sends = [background(task, "meanwhile") for _ in range(2)]
        fail(monkeypatch, stack)
        if broker_is == "going away":
            proxy.down()
        sends += [background(task, "meanwhile") for _ in range(2)]
        sends += [background(task.send_to_queue, ("meanwhile",), wait_result=1.5)]
        outcomes = [future.exception(PATIENCE) for future in sends]
        monkeypatch.undo()
    # The first two sends began before the failure. Without a broker, or memory for a socket, none
    # of the others can succeed.
    if broker_is != "there" or fail is fail_in_socket:
        assert None not in outcomes[2:]
    if broker_is != "there":
        proxy.up()
    for future in [background(task, "after") for _ in range(4)]:
        future.result(SOON)
    arrived = collections.Counter(args[0] for args in arguments_in(broker.take_all(queue)))
    confirmed = collections.Counter(before=1, meanwhile=outcomes.count(None), after=4)
    assert confirmed <= arrived  # what wasn't confirmed may have arrived
    asked = background(task.send_to_queue, ("asked",), wait_result=PATIENCE)
    broker.publish(broker.take(queue).reply_to, b'{"result": "answered"}')
    assert asked.result(SOON) == "answered"


@pytest.mark.parametrize("key", ["RABBIT_CONNECT_TIMEOUT", "RABBIT_PUBLISH_TIMEOUT"])
def test_the_longest_timeout_that_is_taken_works(key, make_app, url, queue, start):
    app = make_app(url, **{key: 2**31 - 1})
    task = app.task(queue)(echo)
    start(app)
    assert task.send_to_queue((1,), wait_result=PATIENCE) == 1
    with app.channel() as channel:
        assert channel.is_open


def test_a_send_beside_a_close_finds_another_keeper(offline):
    """1. A send: finds a keeper that has ended. 2. `close`, in another thread: takes it away. 3.
    The send: makes another, and must not ask for the old one again."""

    class Ended:
        @property
        def ended(self):
            publisher._keeper = None  # 2
            return True

    publisher = kuyruk._Publisher(offline.config)
    publisher._keeper, publisher._make_keeper = Ended(), lambda: "new"
    assert publisher._get_keeper() == "new"


def test_a_send_inside_a_send_beside_a_close_still_has_its_other_publisher(offline):
    """1. The inner send: finds the publisher for such sends. 2. `close`, in another thread: takes
    it away. 3. The inner send: uses what it has found."""

    class Publisher(kuyruk._Publisher):
        _other = property(lambda self: next(seen), lambda self, value: None)

    seen = iter([types.SimpleNamespace(_enter=lambda *args: "sent"), None])
    publisher = Publisher(offline.config)
    publisher._inside.add(threading.get_ident())
    assert publisher.send([]) == "sent"


# --- Results -----------------------------------------------------------------


# Values that count as false were lost where `if result:` decided; the text is larger than a frame.
@pytest.mark.parametrize(
    "value", [None, 0, 0.0, False, "", [], {}, "ä\x00\u2028" * 650_000, -1.5e300, 2**80]
)
def test_every_json_value_comes_back(value, app, queue, start):
    task = app.task(queue)(echo)
    start(app)
    result = task.send_to_queue((value,), wait_result=PATIENCE)
    assert (result, type(result)) == (value, type(value))  # 0 is equal to False


def test_a_result_waits_for_no_timer(app, queue, start):
    """With amqpstorm's polling each would take some tens of milliseconds."""
    task = app.task(queue)(echo)
    start(app)
    times = [time.monotonic()]
    while len(times) < 41:
        task.send_to_queue(wait_result=PATIENCE)
        times.append(time.monotonic())
    # On a busy machine most may take long, but not each.
    fast_ones, _, _ = statistics.quantiles([b - a for a, b in itertools.pairwise(times)], n=4)
    assert fast_ones < 0.02


def test_many_callers_at_once_get_their_own_results(app, queue, start):
    task = app.task(queue)(echo)
    start(app)

    def call_often(caller):
        return [task.send_to_queue(([caller, n],), wait_result=PATIENCE) for n in range(10)]

    expected = [[[caller, n] for n in range(10)] for caller in range(32)]
    assert results([background(call_often, caller) for caller in range(32)]) == expected


@pytest.mark.parametrize("wait_result", [0.000001, 0.5])
def test_a_result_that_does_not_come_is_a_timeout(wait_result, app, queue, broker):
    task = app.task(queue)(echo)
    task("before")
    with takes(wait_result, wait_result + SOON), pytest.raises(kuyruk.ResultTimeout):
        task.send_to_queue((1,), wait_result=wait_result)
    if wait_result == 0.5:  # time enough to send it
        assert arguments_in(broker.take_all(queue)) == [("before",), (1,)]


def test_a_result_may_take_longer_than_sending_and_idling(make_app, url, queue, start):
    task = make_app(url, RABBIT_PUBLISH_TIMEOUT=1, RABBIT_IDLE_DURATION=0.5).task(queue)(hold)
    start(task.kuyruk)
    call = background(task.send_to_queue, (7,), wait_result=PATIENCE)
    assert still_waits(call, 2)
    release.set()
    assert call.result(PATIENCE) == 7


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("bad"), "builtins.ValueError", "bad"),
        (kuyruk.Timeout("own"), "kuyruk.exceptions.Timeout", "own"),
        (UnspeakableError(), "test_kuyruk.UnspeakableError", "RuntimeError"),
        (ValueError("\ud800"), "builtins.ValueError", "d800"),
        (ValueError("x" * 10**7), "builtins.ValueError", "xxx"),
    ],
    ids=["ordinary", "ours", "without a text", "surrogate", "long"],
)
def test_a_remote_exception_says_what_happened(error, kind, text, app, queue, start, monkeypatch):
    # pytest keeps what is logged, and pytest-xdist can't carry a lone surrogate.
    monkeypatch.setattr(logging.getLogger("kuyruk"), "disabled", True)
    task = app.task(queue)(play)
    script[:] = [error]
    worker = start(app)
    with pytest.raises(kuyruk.RemoteException) as info:
        task.send_to_queue(wait_result=PATIENCE)
    assert info.value.type == kind
    assert text in info.value.value
    assert len(info.value.value) < 10**6
    # It has the frames of the task, and none of the library.
    assert "in play" in info.value.traceback
    assert kuyruk.__file__ not in info.value.traceback
    worker.stop()  # it logs after it has replied; by then the logger must still be disabled


def test_workers_that_send_no_correlation_id_are_understood(app, queue, broker):
    """Kuyruk 10's workers send none. So the reply's address alone decides whose it is."""
    task = app.task(queue)(echo)
    calls = [background(task.send_to_queue, (n,), wait_result=PATIENCE) for n in range(16)]
    wait_until(lambda: broker.count(queue) == 16)
    for request in reversed(broker.take_all(queue)):
        number = json.loads(request.body)["args"][0]
        broker.publish(request.reply_to, json.dumps({"result": number * 2}))
    assert results(calls) == [n * 2 for n in range(16)]


def test_a_late_reply_never_reaches_a_later_caller(make_app, proxy, queue, broker):
    task = make_app(proxy.url).task(queue)(echo)
    for n in range(5):
        first = background(task.send_to_queue, (n,), wait_result=0.5)
        late = broker.take(queue)
        proxy.stall("down")  # the reply comes as far as the proxy
        broker.publish(late.reply_to, b'{"result": "on its way while the next call begins"}')
        with pytest.raises(kuyruk.ResultTimeout):
            first.result(PATIENCE)
        call = background(task.send_to_queue, (n,), wait_result=PATIENCE)
        request = broker.take(queue)
        broker.publish_late(late.reply_to, b'{"result": "after the next call has begun"}')
        broker.publish(request.reply_to, b'{"result": "own"}')
        # A task that runs twice replies twice.
        broker.publish_late(request.reply_to, b'{"result": "own, again"}')
        proxy.resume()  # all of these arrive at once
        assert call.result(PATIENCE) == "own"
        broker.publish_late(request.reply_to, b'{"result": "own, and too late for the next"}')


BAD_REPLIES = [
    b"", b"x", b"\xff\xfe", b"[1]", b"5", b"{}", b'{"exception": "x"}', b'{"exception": {}}',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("reply", BAD_REPLIES, ids=lambda reply: ascii(reply)[:20])
def test_a_reply_that_cannot_be_read_is_an_error_at_once(reply, app, queue, broker):
    task = app.task(queue)(echo)
    call = background(task.send_to_queue, wait_result=60)
    broker.publish(broker.take(queue).reply_to, reply)
    with pytest.raises(kuyruk.KuyrukError, match="the worker's reply can't be read"):
        call.result(PATIENCE)
    # The next call goes on as if nothing had been.
    call = background(task.send_to_queue, wait_result=60)
    broker.publish(broker.take(queue).reply_to, b'{"result": 5}')
    assert call.result(PATIENCE) == 5


def test_a_waiting_caller_hears_at_once_that_the_connection_is_lost(make_app, proxy, queue, broker):
    task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=2).task(queue)(echo)
    call = background(task.send_to_queue, wait_result=60)
    wait_until(lambda: broker.count(queue))
    assert still_waits(call, 2.2)  # for longer than a send may take
    proxy.cut()
    lost = pytest.raises(kuyruk.BrokerError, match=r"^no reply can come .* the task may run")
    with takes(0, SOON), lost as info:
        call.result(PATIENCE)
    # The message itself has arrived: the caller must not take it for lost.
    assert "confirmed" not in str(info.value)
    assert info.value.unconfirmed == []


def test_callers_whose_connections_are_cut_get_their_own_result_or_an_error(
    make_app, proxy, url, queue, start
):
    start(make_app(url).task(queue)(echo).kuyruk)
    task = make_app(proxy.url).task(queue)(echo)
    ended, enough = collections.Counter(), threading.Event()

    def call_on(caller):
        for n in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
            try:
                assert task.send_to_queue(([caller, n],), wait_result=PATIENCE) == [caller, n]
                ended["well"] += 1
            except kuyruk.BrokerError:
                ended["badly"] += 1

    callers = [background(call_on, caller) for caller in range(8)]
    for step in range(1, 16):
        wait_until(lambda step=step: ended["well"] >= 50 * step)
        proxy.cut()
    enough.set()
    results(callers)


def test_a_close_ends_the_calls_that_wait_for_their_results(app, queue, broker):
    task = app.task(queue)(echo)
    calls = [background(task.send_to_queue, (n,), wait_result=PATIENCE) for n in range(8)]
    wait_until(lambda: broker.count(queue) == 8)
    with takes(0, SOON):
        app.close()
        errors = [call.exception(PATIENCE) for call in calls]
    says = r"no reply can come .* the application was closed"
    assert [bool(re.match(says, str(error))) for error in errors] == [True] * 8
    wait_until(lambda: not threads_of_ours())


def test_a_close_ends_a_call_whose_broker_is_away(make_app):
    """What wasn't sent by then isn't sent after it."""
    app = make_app(f"amqp://127.0.0.1:{unused_port()}/", RABBIT_PUBLISH_TIMEOUT=PATIENCE)
    call = background(app.task(echo).send_to_queue, wait_result=PATIENCE)
    wait_until(lambda: app._publisher._keeper and app._publisher._keeper.trouble)
    with takes(0, SOON):
        app.close()
        error = call.exception(PATIENCE)
    assert str(error) == "RabbitMQ has not confirmed 1 message: the application was closed"


def test_a_close_at_any_moment_ends_the_calls_that_have_begun(make_app, url, queue, broker):
    """It comes while they connect, look for the queue, send and wait. No worker answers them."""
    app = make_app(url)
    task, waited = app.task(queue)(echo), []
    for n in range(40):
        began = threading.Barrier(5)

        def call(began=began):
            began.wait(PATIENCE)
            task.send_to_queue(wait_result=PATIENCE)

        calls = [background(call) for _ in range(4)]
        began.wait(PATIENCE)
        wait_until(lambda: len(app._publisher._calls) == 4)
        # Up to 10 ms: by then they wait for their results.
        time.sleep(n / 4000)
        began = time.monotonic()
        app.close()
        for call in calls:
            with pytest.raises(kuyruk.BrokerError, match="the application was closed"):
                call.result(PATIENCE)
        waited.append(time.monotonic() - began)
    assert max(waited) < SOON


def test_a_call_that_a_close_has_ended_can_be_followed_by_another(app, queue, start, broker):
    task = app.task(queue)(echo)
    call = background(task.send_to_queue, wait_result=PATIENCE)
    wait_until(lambda: broker.count(queue))
    app.close()
    with pytest.raises(kuyruk.BrokerError):
        call.result(PATIENCE)
    start(app)
    assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


def make_large(size):
    return "x" * size


def test_a_result_that_is_too_large_for_rabbitmq_is_an_exception_at_once(make_app, start, caplog):
    with RabbitmqNode(["max_message_size = 120000"]) as strict:
        app = make_app(strict.url)
        task = app.task("large")(make_large)
        worker = start(app)
        assert len(task.send_to_queue((90_000,), wait_result=PATIENCE)) == 90_000
        # RabbitMQ closes the channel for it, without saying which message it means.
        with pytest.raises(kuyruk.RemoteException, match=r"takes 150013 bytes.*larger than"):
            task.send_to_queue((150_000,), wait_result=PATIENCE)
        assert task.send_to_queue((5,), wait_result=PATIENCE) == "xxxxx"
        wait_until(lambda: worker.stats["succeeded"] == 3 and worker.healthy)
        assert caplog.text.count("Can't send a reply: ") == 1
        with pytest.raises(kuyruk.BrokerError, match="larger than"):
            app.task("large")(echo)("x" * 150_000)
        app.close()
        worker.stop(timeout=SOON)


# --- What becomes of a message -----------------------------------------------

OUTCOMES = {
    # What the task does in each of its runs; its options; the reply: a result, or an exception's
    # type; how often the message is delivered; and where it ends.
    "returns": ([42], {}, 42, 1, "gone"),
    "raises": ([ValueError()], {}, "builtins.ValueError", 1, "failed"),
    "raises, then returns": ([ValueError(), ValueError(), 42], {"retry": 2}, 42, 1, "gone"),
    "raises in each try": (
        [ValueError(), OSError()], {"retry": 1}, "builtins.OSError", 1, "failed"
    ),
    "raises, with fail_delay": (
        [ValueError(), 42], {"fail_delay": 0.2}, "builtins.ValueError", 2, "gone"
    ),
    "takes too long": (
        [spin], {"max_run_time": 0.1, "retry": 2}, "kuyruk.exceptions.Timeout", 1, "failed"
    ),
    "takes too long, with fail_delay": (
        [spin, 42], {"max_run_time": 0.1, "fail_delay": 0.2}, "kuyruk.exceptions.Timeout", 2,
        "gone",
    ),
    "rejects": ([kuyruk.Reject(), kuyruk.Reject(), 42], {"retry": 5}, 42, 3, "gone"),
    # A fail_delay of 9 seconds: what is taken for a failure isn't back in time.
    "rejects, with reject_delay": (
        [kuyruk.Reject(), 42], {"reject_delay": 0.2, "fail_delay": 9}, 42, 2, "gone"
    ),
    "discards": (
        [kuyruk.Discard()], {"retry": 2, "fail_delay": 9}, "kuyruk.exceptions.Discard", 1, "gone"
    ),
    "returns what isn't JSON": (
        [object()], {"retry": 2, "fail_delay": 9}, "builtins.TypeError", 1, "gone"
    ),
    # What isn't an Exception is a failure of the task, too: it must not end the pool's thread.
    "exits": ([SystemExit(3)], {"retry": 2}, "builtins.SystemExit", 1, "failed"),
    "raises what only a lost connection should": (
        [kuyruk.HeartbeatError()], {"retry": 2}, "kuyruk.exceptions.HeartbeatError", 1, "failed"
    ),
    "is interrupted": (
        [KeyboardInterrupt()], {"retry": 2}, "builtins.KeyboardInterrupt", 1, "failed"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "options", "reply", "deliveries", "end"), OUTCOMES.values(), ids=OUTCOMES.keys()
)
def test_what_becomes_of_a_message_whose_task(
    steps, options, reply, deliveries, end, app, queue, broker, start
):
    """Each way in which a task ends has its reply, its deliveries and its end; the worker goes
    on."""
    task = app.task(queue, **options)(play)
    script[:] = list(steps)
    worker = start(app)
    try:
        result = task.send_to_queue(wait_result=PATIENCE)
    except kuyruk.RemoteException as error:
        result = error.type
    assert result == reply
    wait_until(lambda: worker.stats["received"] == deliveries and not worker.stats["running"])
    app.task(queue)(echo).send_to_queue(wait_result=PATIENCE)  # the worker goes on
    worker.stop()
    # Each step has run once, and `echo` once.
    assert (broker.count(queue), len(ran), script) == (0, len(steps) + 1, [])
    assert broker.count(f"{queue}.failed") == (1 if end == "failed" else None)


def failure(broker, queue):
    """Take the next failed message; return what its headers say of that, by their short names."""
    headers = broker.take(f"{queue}.failed").properties["headers"]
    return {key.removeprefix("x-kuyruk-"): value for key, value in headers.items()}


def test_a_task_sees_its_message_and_its_limit(app, queue, broker, start):
    """`current_task()` knows the task's name, the message's id and queue, and the seconds left."""
    app.task(queue, max_run_time=50)(tell_current_task)()
    sent = broker.take(queue)
    broker.declare(f"{queue}.2")
    broker.publish(queue, sent.body, reply_to=f"{queue}.2")
    start(app)
    *seen, remaining = json.loads(broker.take(f"{queue}.2").body)["result"]
    assert seen == ["test_kuyruk.tell_current_task", sent.message_id, queue, False]
    assert 0 < remaining <= 50


def test_a_failed_message_tells_what_happened(app, queue, broker, start):
    """A failed message says when, where and with what it failed, and how often, in short texts."""
    error = ValueError("bad " * 10_000)
    script[:] = [error, error]
    task = app.task(queue)(play)
    start(app)
    task(1, b=2)
    for failures in (1, 2):
        message = broker.take(f"{queue}.failed")
        headers = message.properties["headers"]
        expected = {
            "exception": "builtins.ValueError", "failures": failures, "queue": queue,
            "failed-on": f"{HOSTNAME}:{os.getpid()}",
        }  # fmt: skip
        assert {key: headers[f"x-kuyruk-{key}"] for key in expected} == expected
        assert "bad bad" in headers["x-kuyruk-value"]
        assert "in play" in headers["x-kuyruk-traceback"]
        assert len(str(headers)) < 30_000  # the text alone has 40,000 characters
        failed_at = datetime.datetime.fromisoformat(headers["x-kuyruk-failed-at"])
        age = datetime.datetime.now(datetime.UTC) - failed_at
        assert abs(age.total_seconds()) < PATIENCE
        assert json.loads(message.body)["kwargs"] == {"b": 2}
        assert message.properties["delivery_mode"] == 2  # persistent
        broker.publish(queue, message.body, headers=headers)  # as if requeued by hand


def test_a_failed_message_keeps_its_body_and_properties(app, queue, broker, start):
    """A failed message is the original with more headers: requeued, it is what it was."""
    start(app, [queue])
    body = b' {"not": "a task",\n "at": "all"} '
    # All that AMQP has, and nothing that a task has.
    properties = {
        "content_type": "text/x", "content_encoding": "y",
        "headers": {"a": 1, "b": ["c", {"d": None}]}, "priority": 3,
        "correlation_id": "cid", "reply_to": f"{queue}.2", "message_id": "mid", "message_type": "t",
        "app_id": "a",
        "timestamp": datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "expiration": "60000",
    }  # fmt: skip
    broker.publish(queue, body, user_id="guest", **properties)
    message = broker.take(f"{queue}.failed")
    headers = message.properties["headers"]
    assert headers["x-kuyruk-expiration"] == properties.pop("expiration")
    added = {key for key in headers if key.startswith("x-kuyruk-")}
    kept = {key: value for key, value in headers.items() if key not in added}
    assert message.body == body
    assert {**{key: message.properties[key] for key in properties}, "headers": kept} == properties
    # RabbitMQ refuses the name of a user who isn't the sender. And the original's expiration would
    # end the failed message, too: it has that of FAILED_TTL.
    assert (message.properties["user_id"], message.properties["expiration"]) == (None, "604800000")


def test_a_failed_message_is_kept_for_the_configured_time(make_app, url, queue, broker, start):
    """RabbitMQ removes a failed message when FAILED_TTL is over."""
    # One second: long enough for a busy machine to see the message before it is gone.
    start(make_app(url, FAILED_TTL=1), [queue])
    with takes(1, PATIENCE):
        broker.publish(queue, b"nonsense")
        wait_until(lambda: broker.count(f"{queue}.failed") == 1)
        wait_until(lambda: broker.count(f"{queue}.failed") == 0)


def test_without_a_failed_ttl_the_dead_letter_policy_of_the_queue_applies(
    make_app, url, queue, broker, start
):
    """FAILED_TTL=None rejects a failed message: the queue's arguments say where that goes."""
    broker.declare(f"{queue}.2")
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.2"}
    task = make_app(url, FAILED_TTL=None, QUEUE_ARGUMENTS=dead_letters).task(queue)(play)
    script[:] = [ValueError()]
    start(task.kuyruk)
    task("poison")
    assert arguments_in([broker.take(f"{queue}.2")]) == [("poison",)]
    assert broker.count(f"{queue}.failed") is None


def test_copies_of_a_message_are_not_sent_again_when_it_fails(app, queue, broker, start):
    """RabbitMQ copies a message to each queue in its header CC: a failed message has none."""
    broker.declare(f"{queue}.2")
    start(app, [queue])
    broker.publish(queue, b"nonsense", headers={"CC": [f"{queue}.2"]})
    assert "CC" not in broker.take(f"{queue}.failed").properties["headers"]
    # The copy that its sender wanted, and no other.
    assert broker.count(f"{queue}.2") == 1


def test_what_cannot_be_forwarded_is_kept_and_holds_nothing_up(
    make_app, url, queue, broker, start, caplog
):
    """A failed message that its full queue refuses is kept, said so once, and other tasks go on."""
    broker.declare(f"{queue}.failed", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=0.5)
    task, bad = app.task(queue)(echo), app.task(queue)(play)
    worker = start(app, threads=3)
    script[:] = [ValueError("no")] * 5
    app.send_tasks_to_queue([bad.subtask()] * 5 + [task.subtask((n,)) for n in range(50)])
    # Of five failed messages one fits. An older version ran the others again and again, and nothing
    # else.
    wait_until(lambda: worker.stats["succeeded"] == 50 and worker.stats["unsettled"] == 4)
    assert not worker.healthy and worker.stats["received"] == 55 and script == []
    taken = [broker.take(f"{queue}.failed") for _ in range(5)]
    wait_until(lambda: worker.healthy)
    assert len({message.message_id for message in taken}) == 5 and worker.stats["received"] == 55
    assert caplog.text.count("Can't forward a message") == 1
    worker.stop()
    assert broker.count(queue) == 0


def test_what_is_lost_while_it_is_tried_again_stays_lost():
    """A kept delivery that is lost during an attempt to forward it isn't settled, the next one is.

    1. The settler: tries the oldest copy for a queue.
    2. The supervisor: has lost the connection that it came by, and drops it.
    3. The settler: has its answer. It isn't ours any more, whatever that is; another is the oldest.
    """
    settled = []

    class Publisher:
        def send(self, messages):
            if len(attempts) == 1:
                settler.drop(lambda delivery: delivery is kept[0])  # step 2
            if attempts.pop() == "refused":
                raise kuyruk.BrokerError("not now")

    channel = types.SimpleNamespace(queue="q", is_orphaned=False, why_lost=None)
    method = types.SimpleNamespace(delivery_tag=1, redelivered=False)
    copy = kuyruk._Message("q.failed", b"", {}, {})
    for answer in ("refused", "sent"):
        attempts, kept = [answer, "refused"], []
        settler = kuyruk._Settler(Publisher(), kept.append, settled.append)
        for _ in range(2):  # the first is refused, and the second waits for it
            delivery = kuyruk._Delivery(channel, None, method, None, b"")
            settler.settle(delivery, kuyruk._Settlement(None, copy, "leave"))
        settler._retry("q.failed")
        assert (settler.count, settled) == (1, [])
        attempts[:] = [None, "sent"]
        settler._retry("q.failed")
        assert (settler.count, settled.pop(), settler._kept) == (0, kept[1], {})


def test_kept_messages_of_one_queue_are_bounded_and_stop_no_other(
    make_app, url, queue, broker, start, monkeypatch
):
    """At MAX_KEPT kept messages a queue gets no more, and the worker's other queue goes on."""
    # Such that a hundred messages are many.
    monkeypatch.setattr(kuyruk, "MAX_KEPT", 10)
    monkeypatch.setattr(kuyruk, "MAX_PREFETCH", 4)
    app = make_app(url, RABBIT_PUBLISH_TIMEOUT=0.5)
    broker.declare(f"{queue}.failed", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    task = app.task(f"{queue}.2")(echo)
    worker = start(app, [queue, f"{queue}.2"], threads=4)
    for _ in range(100):
        broker.publish(queue, b"nonsense")
    wait_until(lambda: worker.stats["unsettled"] >= 10)
    app.send_tasks_to_queue([task.subtask((n,)) for n in range(300)])
    wait_until(lambda: len(ran) == 300)
    # Ten, and what was in hand when these were kept. It would be all hundred, without a bound.
    assert worker.stats["unsettled"] < 30
    assert broker.count(queue) > 60


def test_what_is_kept_and_lost_with_its_connection_is_kept_once(
    make_app, proxy, queue, broker, start
):
    """A message that is kept when its connection is lost comes again, and isn't kept twice."""
    broker.declare(f"{queue}.failed", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    app = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=0.5)
    worker = start(app, [queue], reconnect_interval=0.1)
    for _ in range(2):
        broker.publish(queue, b"nonsense")
    wait_until(lambda: broker.count(f"{queue}.failed") == 1 and worker.stats["unsettled"] == 1)
    proxy.cut()
    wait_until(lambda: worker.stats["received"] == 3 and worker._pool.held == 0)
    assert worker.stats["unsettled"] == 1
    # There is room for one: another that is kept would make it unhealthy still.
    broker.take(f"{queue}.failed")
    wait_until(lambda: worker.healthy)
    worker.stop()
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == (0, 1)


def test_what_is_kept_at_a_stop_goes_back(make_app, url, queue, broker, start, caplog):
    """A stop doesn't wait for what can't be forwarded: it goes back to its queue, which is
    logged."""
    broker.declare(f"{queue}.failed", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    worker = start(make_app(url, RABBIT_PUBLISH_TIMEOUT=0.5), [queue])
    for _ in range(2):
        broker.publish(queue, b"nonsense")
    wait_until(lambda: broker.count(f"{queue}.failed") == 1 and worker.stats["unsettled"] == 1)
    worker.stop()
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == (1, 1)
    assert "1 message couldn't be forwarded" in caplog.text


def test_a_task_whose_failure_cannot_be_put_on_record_does_not_run_again(
    app, queue, broker, start, monkeypatch
):
    """Only the forwarding is tried again, never the task, and the worker is unhealthy meanwhile."""

    def send(*args, **kwargs):
        raise kuyruk.BrokerError("access refused")

    task = app.task(queue)(play)
    worker = start(app)
    script[:] = [ValueError("once")]
    with monkeypatch.context() as patch:
        patch.setattr(worker._publisher, "send", send)
        task()
        wait_until(lambda: worker.stats["unsettled"] == 1)
        assert not worker.healthy
    assert failure(broker, queue)["value"] == "once"
    wait_until(lambda: worker.healthy)
    assert len(ran) == 1 and worker.stats["received"] == 1


@pytest.mark.parametrize("option", ["fail_delay", "reject_delay"])
@pytest.mark.parametrize("delay", [0.3, 1])
def test_a_delayed_message_comes_back_on_time_and_holds_nothing_up(
    option, delay, app, queue, start
):
    """A delay is spent in the broker: it takes no thread and no place in the prefetch."""
    task, other = app.task(queue, **{option: delay})(play), app.task(queue)(echo)
    script[:] = [kuyruk.Reject() if option == "reject_delay" else ValueError(), "again"]
    start(app, threads=1, prefetch=1)
    task()
    other()
    wait_until(lambda: script == [])
    began, in_between, again = ran
    assert in_between == ()
    # It is late by a second at the most; and one more is for a busy machine.
    assert delay <= again - began <= delay + 1 + 1


def test_a_long_delay_does_not_hold_up_a_short_one(app, queue, start):
    """Each delay has a queue of its own: RabbitMQ expires messages at the head of a queue only."""
    long = app.task(queue, reject_delay=1.5)(play)
    short = app.task(queue, reject_delay=0.3)(reject_once)
    script[:] = [kuyruk.Reject(), "long"]
    start(app)
    long()
    wait_until(lambda: len(ran) == 1)
    short()
    wait_until(lambda: script == [])
    assert ran[1:3] == ["rejected", "short"]


@pytest.mark.parametrize("option", ["fail_delay", "reject_delay"])
def test_a_delayed_message_survives_the_death_of_its_worker(option, app, queue, broker, start):
    """A delayed message comes back though the worker that has put it off has ended meanwhile."""
    task = app.task(queue, **{option: 1})(play)
    script[:] = [kuyruk.Reject() if option == "reject_delay" else ValueError(), "again"]
    worker = start(app)
    task("survivor")
    wait_until(lambda: ran)
    worker.stop()
    message = broker.take(queue)
    # What a stop hands back is redelivered; what comes from a delay is another copy.
    assert (arguments_in([message]), message.redelivered) == ([("survivor",)], False)


def body(**changes):
    """Return a message's body for `add`, with these changes; a value of ... leaves a key out."""
    description = {"id": "x", "args": [], "kwargs": {}, "module": "test_kuyruk", "function": "add"}
    description |= changes
    return json.dumps({k: v for k, v in description.items() if v is not ...}).encode()


POISON = {
    # A body, and what the reason in the failed message says.
    "empty": (b"", "isn't JSON"),
    "not JSON": (b"nonsense", "isn't JSON"),
    "invalid UTF-8": (b'{"id": "\xff"}', "UTF-8"),
    "a list": (b"[1, 2]", "list"),
    "null": (b"null", "NoneType"),
    "deep nesting": (b"[" * 100_000, "nested"),
    "deep nesting in the arguments": (
        body(args=[0]).replace(b"[0]", b"[" * 100_000 + b"]" * 100_000),
        "nested",
    ),
    "a number of 100,000 digits": (body(args=[0]).replace(b"0", b"9" * 100_000), "isn't JSON"),
    "no module": (body(module=...), "module"),
    "no function": (body(function=...), "function"),
    "no args": (body(args=...), "args"),
    "no kwargs": (body(kwargs=...), "kwargs"),
    "args a string": (body(args="ab"), "args"),
    "args a dict": (body(args={"a": 1}), "args"),
    "kwargs a list": (body(kwargs=[1]), "kwargs"),
    "module a number": (body(module=5), "module"),
    "function null": (body(function=None), "function"),
    "an unknown module": (body(module="test_kuyruk.nothing"), "test_kuyruk.nothing"),
    "a module outside, loaded": (body(module="os", function="getcwd"), "'os'"),
    "a module outside, not loaded": (body(module="antigravity", function="geohash"), "antigravity"),
    "a relative module": (body(module=".test_kuyruk"), "test_kuyruk"),
    "an empty module": (body(module=""), "''"),
    "an unknown function": (body(function="ad"), "no task 'ad'"),
    "a function that isn't a task": (body(function="wait_until"), "wait_until"),
    "a dotted function": (body(function="add.f"), "add.f"),
    "too few arguments": (body(args=[1]), "argument"),
    "too many arguments": (body(args=[1, 2, 3]), "argument"),
    "unknown keyword arguments": (body(args=[1, 2], kwargs={"c": 3}), "keyword argument"),
    "10 MB of arguments that don't fit": (body(args=["x" * 10_000_000]), "argument"),
}


@pytest.mark.parametrize(("poison", "reason"), POISON.values(), ids=POISON.keys())
def test_bad_input_fails_with_a_reason_and_the_worker_goes_on(
    poison, reason, app, queue, broker, start, caplog
):
    """A message that is no task's fails at once, the reply says why, and nothing is imported."""
    task = app.task(queue, retry=3, fail_delay=9)(add)
    loaded = set(sys.modules)
    broker.declare(f"{queue}.2")
    worker = start(app)
    broker.publish(queue, poison, reply_to=f"{queue}.2", correlation_id="cid")
    message = broker.take(f"{queue}.failed")
    headers = message.properties["headers"]
    kind = "builtins.TypeError" if "argument" in reason else "kuyruk.exceptions.InvalidMessage"
    assert message.body == poison
    assert headers["x-kuyruk-exception"] == kind
    assert reason in headers["x-kuyruk-value"]
    reply = broker.take(f"{queue}.2")
    assert json.loads(reply.body)["exception"]["type"] == kind and reply.correlation_id == "cid"
    assert task.send_to_queue((1, 2), wait_result=PATIENCE) == 3
    assert worker.healthy and worker.stats["received"] == 2
    assert "antigravity" not in set(sys.modules) - loaded
    assert "trying again" not in caplog.text  # to run it again, or later, would change nothing


def test_arguments_may_be_null_and_unknown_keys_are_ignored(app, queue, broker, start):
    """Null stands for no arguments, as Kuyruk's clients write it, and an id is not required."""
    app.task(queue)(echo)
    start(app)
    broker.publish(queue, body(function="echo", args=None, kwargs=None, id=..., more=[1]))
    wait_until(lambda: ran == [()])


#: Properties as they are on the wire: flags, then values.
BAD_PROPERTIES = {
    "a content type that isn't UTF-8": struct.pack(">HB2s", 1 << 15, 2, b"\xff\xfe"),
    "a header with a name that isn't UTF-8": struct.pack(">HIB1sc", 1 << 13, 3, 1, b"\xff", b"V"),
    "a header with a value that isn't UTF-8": struct.pack(
        ">HIB1scI2s", 1 << 13, 9, 1, b"a", b"S", 2, b"\xff\xfe"
    ),
    "a header with a date in the far future": struct.pack(
        ">HIB1scQ", 1 << 13, 11, 1, b"a", b"T", 2**62
    ),
    "none at all": struct.pack(">H", 0),
}


@pytest.mark.parametrize("properties", BAD_PROPERTIES.values(), ids=BAD_PROPERTIES.keys())
def test_properties_that_cannot_be_decoded_or_encoded_fail_alone(
    properties, app, queue, broker, start
):
    """Properties that pamqp can't read, or not write again, cost their message, no connection."""
    task = app.task(queue)(add)
    worker = start(app)
    broker.publish_raw(queue, b"nonsense", properties)
    message = broker.take(f"{queue}.failed")
    headers = message.properties["headers"]
    assert message.body == b"nonsense" and headers["x-kuyruk-value"]
    assert headers["x-kuyruk-exception"] == "kuyruk.exceptions.InvalidMessage"
    assert task.send_to_queue((1, 2), wait_result=PATIENCE) == 3
    assert worker.healthy and worker.stats["received"] == 2


def test_a_message_without_any_properties_is_accepted(app, queue, broker, start):
    """A message whose sender has set no AMQP properties at all runs."""
    app.task(queue)(echo)
    start(app)
    broker.publish_raw(queue, body(function="echo", args=[7]), BAD_PROPERTIES["none at all"])
    wait_until(lambda: ran == [(7,)])


@pytest.mark.parametrize(
    "address", ["amq.rabbitmq.reply-to.g1h2.x", "amq.rabbitmq.reply-to.x", "missing", "x" * 255]
)
@pytest.mark.parametrize("outcome", ["returns", "raises"])
def test_a_reply_that_cannot_be_delivered_costs_nothing(
    address, outcome, app, queue, broker, start
):
    """A reply that nobody can get is lost alone: the task ends as it did, and the worker goes on.

    RabbitMQ 3.10 ends the whole connection that answers to the first of these addresses.
    """
    task = app.task(queue)(play)
    script[:] = [1 if outcome == "returns" else ValueError(), "next"]
    worker = start(app)
    broker.publish(queue, body(function="play"), reply_to=address)
    wait_until(lambda: len(ran) == 1)
    assert task.send_to_queue(wait_result=PATIENCE) == "next"
    wait_until(lambda: not worker.stats["running"])
    assert worker.stats["received"] == 2 and worker.healthy
    if outcome == "raises":
        assert broker.take(f"{queue}.failed").body == body(function="play")


def test_a_reply_that_ends_the_connection_takes_no_other_along(app, queue, broker, start):
    """Other replies on a connection that one bad address has ended are sent again on another."""
    task = app.task(queue)(echo)
    start(app, threads=8)
    for n in range(5):
        broker.publish(
            queue, body(id=f"bad{n}", function="echo"), reply_to="amq.rabbitmq.reply-to.g1h2.x"
        )
        # Beside four good ones: all replies go by one connection.
        calls = [background(task.send_to_queue, (i,), wait_result=PATIENCE) for i in range(4)]
        assert results(calls) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("module", "reply"),
    [("later", "'later'"), ("broken", "can't import .*SystemExit"), ("none", "has no task 'f'")],
)
def test_a_module_of_the_same_package_is_imported(
    module, reply, app, queue, broker, start, tmp_path, monkeypatch
):
    """A message may name a task in a module that isn't loaded yet, in a package of the worker's."""
    package = f"package_{uuid.uuid4().hex}"
    later = f"from {package} import app\n@app.task\ndef f(): return 'later'\n"
    make_package(tmp_path, package, later=later, broken="raise SystemExit", none="def f(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(package).app = app
    app.task(queue)(types.FunctionType(echo.__code__, {"__name__": package}))
    start(app, [queue])
    broker.declare(f"{queue}.2")
    broker.publish(queue, body(module=f"{package}.{module}", function="f"), reply_to=f"{queue}.2")
    answer = json.loads(broker.take(f"{queue}.2").body)
    assert re.search(reply, repr(answer.get("exception", answer["result"])))


def test_a_message_is_never_run_beside_itself(app, queue, broker, start, caplog):
    """Copies of a message wait for the one that runs, and run after it, one by one."""
    caplog.set_level(logging.INFO)
    app.task(queue)(end_slowly)
    worker = start(app)
    for _ in range(4):
        broker.publish(queue, body(function="end_slowly", id="same"))
    wait_until(lambda: caplog.text.count("waits: it is running here already") == 3)
    # By then the other threads have had them in hand, and let them wait.
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 4)
    assert ran == ["begins", "ends"] * 4


@pytest.mark.parametrize(
    ("options", "errors", "deliveries"),
    [
        ({"max_failures": 2}, [ValueError(), ValueError()], 2),
        ({"max_failures": 1}, [ValueError()], 1),
        ({"throws": KeyError}, [ValueError(), KeyError()], 2),
        ({"throws": (LookupError, OSError)}, [KeyError()], 1),
        ({"throws": KeyError, "retry": 2}, [ValueError(), KeyError()], 1),
        ({"max_failures": 3, "retry": 1}, [ValueError()] * 6, 3),
        ({"max_fail_delay": 0.3, "max_failures": 3}, [ValueError()] * 3, 3),
    ],
)
def test_a_message_that_comes_back_fails_for_good_when(
    options, errors, deliveries, app, queue, broker, start
):
    """`max_failures`, or an exception of `throws`, ends what `fail_delay` would bring back."""
    app.task(queue, fail_delay=0.2, **options)(play)
    broker.declare(f"{queue}.2")
    script[:] = errors
    worker = start(app)
    broker.publish(queue, body(function="play"), reply_to=f"{queue}.2")
    wait_until(lambda: broker.count(f"{queue}.failed") == 1)
    assert broker.count(f"{queue}.2") == 1  # of its first failure: the caller has his answer
    assert not script and worker.stats["received"] == deliveries
    assert failure(broker, queue)["failures"] == deliveries


@pytest.mark.parametrize(("given", "option", "least"), [(0.3, 9, 0.3), (None, 0.3, 0.3), (0, 9, 0)])
def test_a_reject_says_when_the_message_is_back(given, option, least, app, queue, start):
    """A Reject's delay wins over the task's `reject_delay`, 0 does, too; None isn't given."""
    task = app.task(queue, reject_delay=option)(play)
    script[:] = [kuyruk.Reject(delay=given), "again"]
    start(app)
    with takes(least, SOON):
        assert task.send_to_queue(wait_result=PATIENCE) == "again"


def test_signals_of_a_worker_are_sent_in_the_order_of_what_happens(app, queue, broker, start):
    """Each try, each end and the worker's life send Kuyruk's signals, in order, with their
    facts."""
    seen = []

    def connect(name):
        note = lambda sender, **facts: seen.append((name, facts))  # noqa: E731
        getattr(kuyruk.signals, name).connect(note, sender=app)

    for name in set(SIGNALS) - {"task_init", "task_presend", "task_postsend"}:  # a client's
        connect(name)
    task = app.task(queue, retry=1)(play)
    script[:] = [ValueError("first"), "ok", ValueError("a"), KeyError("b")]
    worker = start(app)
    assert task.send_to_queue(wait_result=PATIENCE) == "ok"
    task(1, x=2)
    wait_until(lambda: broker.count(f"{queue}.failed") == 1 and worker.stats["failed"] == 1)
    worker.stop()
    a_try, failing = ["task_prerun", "task_postrun"], ["task_prerun", "task_error", "task_postrun"]
    assert [name for name, _ in seen] == [
        "worker_init", "worker_start",
        "task_preapply", *failing, *a_try, "task_success", "task_postapply",
        "task_preapply", *failing, *failing, "task_failure", "task_postapply", "worker_failure",
        "worker_shutdown",
    ]  # fmt: skip
    [facts] = [facts for name, facts in seen if name == "worker_failure"]
    description, (_, error, _) = facts.pop("description"), facts.pop("exc_info")
    expected = {"worker": worker, "queue": queue, "task": task, "args": [1], "kwargs": {"x": 2}}
    assert facts == expected
    assert (description["function"], repr(error)) == ("play", "KeyError('b')")


def test_what_a_receiver_raises_before_a_try_is_the_tasks(app, queue, broker, start):
    """What a receiver of task_prerun raises is what the task fails with, and it doesn't run."""

    def refuse(sender, **facts):
        raise ValueError("not now")

    kuyruk.signals.task_prerun.connect(refuse, sender=app)
    app.task(queue)(echo)()
    start(app)
    wait_until(lambda: broker.count(f"{queue}.failed") == 1)
    assert not ran
    assert failure(broker, queue)["value"] == "not now"


@pytest.mark.parametrize("kind", ["reply", "failure"])
def test_a_task_does_not_run_again_because_something_of_ours_failed(
    kind, app, queue, broker, start
):
    """A result or an exception whose own code raises, where it is written down, fails for good."""

    class Odd(dict):
        def items(self):
            raise SystemExit("a lazy object")

    class OddError(Exception):
        def __str__(self):
            raise SystemExit("no text")

    task = app.task(queue)(play)
    # Five times: when this was wrong it ran hundreds of times a second.
    script[:] = [Odd(a=1) if kind == "reply" else OddError()] * 5
    worker = start(app)
    with pytest.raises(kuyruk.RemoteException):
        task.send_to_queue(wait_result=PATIENCE)
    assert broker.take(f"{queue}.failed").redelivered is False
    wait_until(lambda: not worker.stats["running"])
    assert (len(ran), worker.stats["received"], worker.healthy) == (1, 1, True)


@pytest.mark.parametrize(
    ("error", "options", "failed_ttl", "says"),
    [
        (kuyruk.Reject(delay=0.3), {}, 60, r"rejected: Reject\(\); it comes back in 0.3 seconds"),
        (kuyruk.Reject(), {"reject_delay": 0.3}, 60, "; it comes back in 0.3 seconds"),
        (kuyruk.Reject("later"), {}, 60, r"rejected: Reject\('later'\)$"),
        (kuyruk.Discard("why"), {}, 60, r"discarded: Discard\('why'\)$"),
        (ValueError(), {"fail_delay": 0.3}, 60, "failed; it comes back in 0.3 seconds"),
        (ValueError(), {}, 60, "failed; see its .failed queue"),
        (ValueError(), {}, None, "failed; it was rejected: a dead-letter policy may keep it"),
    ],
    ids=str,
)
def test_a_log_line_says_what_becomes_of_the_message(
    error, options, failed_ttl, says, make_app, url, queue, start, caplog
):
    """The first line about a message says what became of it, and where or when it is again."""
    app = make_app(url, FAILED_TTL=failed_ttl)
    task = app.task(queue, **options)(play)
    script[:] = [error, "again"]
    start(app)
    task()
    lines = lambda: [r.getMessage() for r in caplog.records if hasattr(r, "task_id")]  # noqa: E731
    assert re.search(says, wait_until(lines)[0])


def test_the_line_of_a_success_can_be_switched_off_alone(app, queue, start, caplog):
    """The logger "kuyruk.success" has a level of its own; the worker's other lines stay."""
    caplog.set_level(logging.INFO)
    task = app.task(queue)(echo)
    successes = logging.getLogger("kuyruk.success")
    successes.setLevel(logging.WARNING)
    try:
        start(app, threads=1)
        task.send_to_queue((1,), id="quiet", wait_result=PATIENCE)
        task.send_to_queue((2,), wait_result=PATIENCE)  # the log comes after the reply
    finally:
        successes.setLevel(logging.NOTSET)
    task.send_to_queue((3,), id="loud", wait_result=PATIENCE)
    lines = lambda: {getattr(r, "task_id", None): r for r in caplog.records}  # noqa: E731
    line = wait_until(lambda: lines().get("loud"))
    assert (line.name, line.levelname, "quiet" in lines()) == ("kuyruk.success", "INFO", False)
    assert re.search(r" succeeded in \d+\.\d{3} s$", line.getMessage())
    assert f"Consuming {queue}" in caplog.text and successes.parent is kuyruk.logger


def test_a_copy_that_was_sent_while_its_queue_began_to_fail_is_not_sent_again():
    """A copy that was sent settles its delivery, though another copy for its queue is kept by then.

    1. A pool thread: sends a copy, and waits for its confirm.
    2. Another: sends one for the same queue, which is refused, so it is kept.
    3. The first: has its confirm. To keep it, too, would send it twice.
    """
    sent, settled = [], []
    copies = [kuyruk._Message("q.failed", body, {}, {}) for body in (b"good", b"bad")]
    channel = types.SimpleNamespace(queue="q", is_orphaned=False, why_lost="closed")
    method = types.SimpleNamespace(delivery_tag=1, redelivered=False)

    def settle(copy):
        delivery = kuyruk._Delivery(channel, None, method, None, b"")
        settler.settle(delivery, kuyruk._Settlement(None, copy, "leave"))

    class Publisher:
        def send(self, messages):
            [message] = messages
            if message.body == b"bad":
                raise kuyruk.BrokerError("not now")
            sent.append(message.body)
            settle(copies[1])  # step 2

    settler = kuyruk._Settler(Publisher(), lambda delivery: None, settled.append)
    settle(copies[0])
    assert (sent, len(settled), settler.count) == ([b"good"], 1, 1)


def test_a_mishap_while_a_message_is_being_kept_counts_it_once(
    app, queue, broker, start, monkeypatch
):
    """A keeping that fails half-way and is done again leaves the counts right."""

    def send(*args, **kwargs):
        raise kuyruk.BrokerError("not now")

    def make_pauses(longest):
        if mishaps and longest == kuyruk.LONGEST_FORWARD_PAUSE:
            raise mishaps.pop()
        return real_pauses(longest)

    # Where a message is kept, after it was counted and before it is in the list.
    mishaps, real_pauses = [MemoryError()], kuyruk._pauses
    worker = start(app, [queue])
    with monkeypatch.context() as patch:
        patch.setattr(worker._publisher, "send", send)
        patch.setattr(kuyruk, "_pauses", make_pauses)
        broker.publish(queue, b"nonsense")
        wait_until(lambda: worker.stats["unsettled"] == 1 and not mishaps)
    wait_until(lambda: broker.count(f"{queue}.failed") == 1 and worker.healthy)
    channel = worker._channels[queue]
    wait_until(lambda: (worker._pool.held, channel.kept) == (0, 0))


def test_a_task_that_had_not_begun_when_its_channel_was_lost_has_not_succeeded(
    make_app, url, queue, broker, start, monkeypatch
):
    """A message whose channel was lost before its task began runs later, and isn't acknowledged
    unrun.

    1. The reader: notes that the broker has closed the channel.
    2. A pool thread: sees that, and doesn't begin the task.
    3. The supervisor: sees that the queue was deleted, so this is the only copy, and ours again.
    """

    def begin(pool, delivery, run):
        channel = delivery.channel
        if not began:
            began.append(delivery)
            monkeypatch.setattr(channel, "lost", amqpstorm.AMQPChannelError("closed"))  # step 1
            may_begin = real_begin(pool, delivery, run)  # step 2
            monkeypatch.setattr(channel, "is_orphaned", True)  # step 3
            return may_begin
        return real_begin(pool, delivery, run)

    began, real_begin = [], kuyruk._Pool._begin
    monkeypatch.setattr(kuyruk._Pool, "_begin", begin)
    task = make_app(url).task(queue)(echo)
    worker = start(task.kuyruk)
    task(1)
    # Otherwise it is taken for one that has returned None, and acknowledged.
    wait_until(lambda: worker.stats["requeued"] or worker.stats["succeeded"])
    assert worker.stats["succeeded"] == 0 and not ran
    worker.stop()
    start(task.kuyruk)
    wait_until(lambda: ran)


def test_a_failed_message_is_requeued_only_when_the_broker_has_confirmed_it(
    make_app, url, queue, broker
):
    """A requeue waits for its confirm, though RABBIT_CONFIRM is False: a refusal loses nothing."""
    app = make_app(url, RABBIT_CONFIRM=False)
    broker.declare(queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    broker.declare(f"{queue}.failed")
    broker.publish(queue, b"fills it")
    broker.publish(f"{queue}.failed", b"failed")
    # Its queue is full, and refuses it: without a confirm nobody hears of that.
    app.config.RABBIT_PUBLISH_TIMEOUT = 1
    [message] = app.failed_messages(queue)
    with pytest.raises(kuyruk.BrokerError, match="refuses"):
        message.requeue()
    assert broker.count(f"{queue}.failed") == 1


@pytest.mark.parametrize(
    ("given", "counted"), [(4, 5), ("many", 1), (None, 1), (True, 1), (-5, 1), (2**40, 1)]
)
def test_a_count_of_failures_that_is_none_begins_anew(given, counted, app, queue, broker, start):
    """Anybody can set the header by which failures are counted: nonsense counts as none."""
    start(app, [queue])
    broker.publish(queue, b"nonsense", headers={"x-kuyruk-failures": given})
    failed = failure(broker, queue)
    assert failed["failures"] == counted
    assert failed["exception"] == "kuyruk.exceptions.InvalidMessage"


# --- Worker ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("thread", r": did you mean 'threads'\?"),
        ("timeout", ""),
        ("processes", ""),
        ("logging_level", ""),
    ],
)
def test_an_unknown_worker_option_is_an_error(option, hint, offline):
    """An option that a worker doesn't have is a TypeError that names it, and what was meant."""
    with pytest.raises(TypeError, match=f"no option '{option}'{hint}"):
        offline.worker(**{option: 1})


@pytest.mark.parametrize(
    "option", ["threads", "prefetch", "grace", "max_load", "priority", "max_run_time"]
)
def test_a_bad_worker_option_is_an_error(option, offline):
    """A value of another kind is refused, under the option's name, where the worker is made."""
    with pytest.raises(ValueError, match=f"^{option} takes"):
        offline.worker(**{option: "x"})


def test_without_queues_a_worker_consumes_those_of_the_tasks(offline):
    """The queues are those that are named, each once; or the tasks'; or "kuyruk"."""
    assert offline.worker().queues == ["kuyruk"]
    offline.task("a")(echo), offline.task("b")(add), offline.task("b")(play)
    assert offline.worker().queues == ["a", "b"]
    named = offline.worker(["x", "x.localhost", "x.elsewhere", "x"]).queues
    assert named == ["x", f"x.{HOSTNAME}", "x.elsewhere"]


def test_a_worker_runs_what_is_sent_to_its_host(app, queue, start):
    """The host "localhost" is this machine's name, for a worker as for a sender."""
    task = app.task(queue)(echo)
    start(app, [f"{queue}.localhost"])
    assert task.send_to_queue((5,), host="localhost", wait_result=PATIENCE) == 5


def test_a_worker_runs_once(app, queue):
    """`start` and `run` raise once a worker runs or ran."""
    with app.worker([queue]) as worker:
        for again in (worker.start, worker.run):
            with pytest.raises(RuntimeError, match="runs or ran already"):
                again()
        wait_until(lambda: worker.healthy)
    with pytest.raises(RuntimeError, match="runs or ran already"):
        worker.start()


def test_a_worker_may_be_stopped_at_any_time(app, queue):
    """A stop before the start, at once after it, and once more at the end returns."""
    app.worker([queue]).stop()  # before it has begun
    # The stop comes while it connects, at another point each time.
    for _ in range(5):
        with app.worker([queue]) as worker:
            pass
        worker.stop()
        assert (worker.join(0), worker.healthy) == (True, False)


def test_a_worker_can_be_waited_for(app, queue, start):
    """`join` returns whether the worker has ended, after its timeout at the latest."""
    worker = start(app, [queue])
    assert worker.join(0.05) is False
    stopping = background(worker.stop)
    assert worker.join(PATIENCE) is True
    stopping.result(PATIENCE)  # has ended, too


@pytest.mark.parametrize("way", ["run", "start and join"])
def test_a_worker_is_stopped_from_a_signal_handler(way, app, queue):
    """A signal handler may stop a worker in the very thread that runs it, or waits for it."""
    worker = app.worker([queue])
    before = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
    try:
        background(
            lambda: wait_until(lambda: worker.healthy) and os.kill(os.getpid(), signal.SIGUSR1)
        )
        if way == "run":
            worker.run()
        else:
            worker.start()
        assert worker.join(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_worker_is_stopped_from_a_task(app, queue, start):
    """A task may stop its worker: it doesn't wait for itself, and its result counts."""
    task = app.task(queue)(play)
    worker = start(app)
    script[:] = [lambda: worker.stop() or "stopped"]
    assert task.send_to_queue(wait_result=PATIENCE) == "stopped"
    assert worker.join(PATIENCE) and worker.stats["succeeded"] == 1


def test_nothing_begins_after_a_stop(app, queue, broker, start):
    """What a worker holds and hasn't begun at a stop goes back, although a thread becomes free."""
    task = app.task(queue)(play)
    script[:] = [lambda: release.wait(PATIENCE) and worker.stop(), "too late", "too late"]
    app.send_tasks_to_queue([task.subtask()] * 3)
    worker = start(app, threads=1, prefetch=3)
    # The first task runs, and will stop the worker; the others are in hand behind it.
    wait_until(lambda: worker.stats["waiting"] == 2)
    release.set()
    assert worker.join(PATIENCE) and len(ran) == 1 and broker.count(queue) == 2


def test_two_workers_in_one_process_share_the_work(app, queue, start):
    """Each of two workers in one process takes as many messages as it has threads."""
    task = app.task(queue)(hold)
    workers = [start(app, threads=2), start(app, threads=2)]
    app.send_tasks_to_queue(task.subtask((n,)) for n in range(4))
    wait_until(lambda: sorted(ran) == [0, 1, 2, 3])
    assert [len(worker.stats["running"]) for worker in workers] == [2, 2]


def test_stats_count_what_became_of_the_deliveries(app, queue, start):
    """Each delivery is counted as received and by its outcome, and what runs is listed."""
    task = app.task(queue, max_run_time=0.2)(play)
    script[:] = [1, 2, ValueError(), kuyruk.Reject(), kuyruk.Discard(), spin, hold]
    worker = start(app, threads=1)
    assert worker.stats["running"] == [] and worker.stats["received"] == 0
    app.send_tasks_to_queue(task.subtask() for _ in range(5))
    wait_until(lambda: worker.stats["timed_out"])
    task.max_run_time = None
    task()
    [running] = wait_until(lambda: script == [] and worker.stats["running"])
    assert (running["task"], running["queue"]) == (task.name, queue)
    assert 0 <= running["seconds"] < PATIENCE
    expected = {"received": 7, "succeeded": 2, "failed": 1, "rejected": 1, "discarded": 1}
    expected |= {"timed_out": 1, "requeued": 0, "lost": 0, "waiting": 0, "suspect": 0, "stuck": 0}
    expected |= {"unsettled": 0, "running": 1}
    stats = worker.stats
    assert {**stats, "running": len(stats["running"])} == expected


def window(worker):
    """Return how many messages RabbitMQ may deliver to the worker: what its consumers may hold,
    without those that it has cancelled."""
    consumers = [c for channel in worker._channels.values() for c in channel.consumers.values()]
    return sum(consumer.prefetch for consumer in consumers)


def hold_many(task, worker):
    """Have a worker of two threads run tiny tasks until it may hold at least 20 messages."""
    # A prefetch grows by the rate at which tasks end, which a busy machine may need several rounds
    # for.
    while window(worker) < 20:
        ran.clear()
        task.kuyruk.send_tasks_to_queue([task.subtask()] * 500)
        wait_until(lambda: len(ran) == 500)


def test_what_waits_behind_long_tasks_goes_to_a_worker_that_has_free_threads(
    make_app, url, queue, start
):
    """Messages that a worker holds behind long tasks go back soon, and another runs them."""
    app = make_app(url)
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2)
    hold_many(tiny, worker)
    ran.clear()
    # The long ones first: they take both threads, and the tiny ones wait behind them.
    app.send_tasks_to_queue([long.subtask()] * 2 + [tiny.subtask((n,)) for n in range(20)])
    wait_until(lambda: len(ran) == 2)
    other_app = make_app(url)
    other_app.task(queue)(echo), other_app.task(queue)(hold)
    other = start(other_app, threads=2)
    wait_until(lambda: other.stats["succeeded"] == 20 and worker.stats["requeued"], timeout=SOON)
    assert ran[:2] == [None] * 2 and sorted(ran[2:]) == [(n,) for n in range(20)]
    assert len(worker.stats["running"]) == 2 and worker.healthy
    release.set()
    wait_until(lambda: not worker.stats["running"])
    # It looks at what it holds whenever something ends: so a few more tasks, and it holds more.
    app.send_tasks_to_queue([tiny.subtask()] * 3)
    wait_until(lambda: window(worker) >= 2)


def doze_longer():
    time.sleep(0.3)


def test_a_second_worker_gets_its_share_of_many_queues(make_app, url, queue, broker, start):
    """No worker hoards the messages of many queues: the prefetch is bounded for the sum of them."""
    queues = [f"{queue}.{n}" for n in range(8)]
    apps = [make_app(url) for _ in range(2)]
    for app, name in itertools.product(apps, queues):
        app.task(name)(doze_longer)
    apps[0].send_tasks_to_queue(
        [apps[0].task(name)(doze_longer).subtask() for name in queues for _ in range(8)]
    )
    try:
        workers = [start(app, queues, threads=8) for app in apps]
        wait_until(lambda: sum(worker.stats["succeeded"] for worker in workers) == 64)
        # Each would have a half, if both began in the same moment. The first used to hold eight
        # messages of each queue, all that there are, and the second stood idle.
        shares = [worker.stats["succeeded"] for worker in workers]
        assert min(shares) >= 16, shares
    finally:
        broker.delete(*queues)


def test_a_busy_worker_gets_only_what_no_other_can_take(make_app, url, queue, start):
    """The consumer that a busy worker keeps is served after those of workers with free threads.

    It keeps one for the sake of queues that expire when nobody consumes them.
    """
    app, free_app = make_app(url), make_app(url)
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    free_app.task(queue)(echo), free_app.task(queue)(hold)
    busy = start(app, threads=2)
    hold_many(tiny, busy)
    ran.clear()
    app.send_tasks_to_queue([long.subtask()] * 2 + [tiny.subtask()] * 20)
    wait_until(lambda: busy.stats["requeued"] and window(busy) == 1)
    free = start(free_app, threads=2)
    wait_until(lambda: free.stats["succeeded"] == 20 and busy.stats["waiting"] == 0)
    received = busy.stats["received"]
    # One by one, so that the other worker has a free thread for each.
    for n in range(20):
        tiny(n)
        wait_until(lambda n=n: (n,) in ran)
    assert busy.stats["received"] == received
    release.set()


def test_a_worker_alone_runs_what_it_has_handed_back_and_holds_many_again(app, queue, start):
    """What was handed back comes again when the threads are free, and the prefetch grows anew."""
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2)
    hold_many(tiny, worker)
    ran.clear()
    app.send_tasks_to_queue([long.subtask()] * 2 + [tiny.subtask((n,)) for n in range(100)])
    # there is always a consumer
    wait_until(lambda: worker.stats["requeued"] and worker.stats["waiting"] <= 1)
    # It is never without a consumer, and this one holds as little as it can.
    assert 1 <= window(worker) <= 2
    release.set()
    wait_until(lambda: len(ran) == 102)
    assert sorted(ran[2:]) == [(n,) for n in range(100)]
    hold_many(tiny, worker)


def test_what_waits_behind_running_tasks_goes_back_again_and_again(app, queue, start):
    """A message that came back to a busy worker goes back soon again: a thread may be free by
    then."""
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2)
    hold_many(tiny, worker)
    app.send_tasks_to_queue([long.subtask()] * 2 + [tiny.subtask()] * 20)
    wait_until(lambda: worker.stats["requeued"] and worker.stats["waiting"] <= 1)
    before, began = worker.stats["requeued"], time.monotonic()
    # In three seconds 40, if each wait is a twentieth longer than the last, up to a second; if it
    # were twice as long, 7, and 9 in five seconds.
    wait_until(lambda: worker.stats["requeued"] > before + 12)
    assert time.monotonic() - began < SOON
    release.set()


def test_a_busy_worker_always_has_a_consumer(app, queue, broker, start):
    """A worker is never without a consumer, not even while it replaces its consumers by one.

    RabbitMQ deletes queues that expire, or delete themselves, when nobody consumes them.
    """
    broker.declare(queue, **{"x-expires": 1000})
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2)
    hold_many(tiny, worker)
    app.send_tasks_to_queue([long.subtask()] * 2 + [tiny.subtask()] * 50)
    wait_until(lambda: worker.stats["requeued"])
    time.sleep(2)  # for what must not come: twice as long as the queue lives without one
    assert broker.count(queue) is not None
    release.set()
    wait_until(lambda: not worker.stats["running"] and broker.count(queue) == 0)


def test_what_a_quorum_queue_has_counted_is_not_handed_back(make_app, url, queue, broker, start):
    """A message that a quorum queue counts isn't handed back: there may be a limit of
    deliveries."""
    app = make_app(url)
    tiny, long = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2)
    hold_many(tiny, worker)
    app.send_tasks_to_queue([long.subtask()] * 2)
    wait_until(lambda: len(worker.stats["running"]) == 2)
    for counted in (True, False):
        broker.publish(
            queue, body(function="echo"), headers={"x-delivery-count": 1} if counted else {}
        )
    wait_until(lambda: worker.stats["requeued"])
    assert worker.stats["waiting"] >= 1
    release.set()


LOOK, LATE = kuyruk.LOOK, kuyruk.HANDBACK_AFTER
#: Looks, each as (seconds since the last one, tasks that have ended since, seconds for which a
#: message has waited and none has begun). The first finds nine idle seconds: these say nothing.
FIRST = [(9, 0, 0)]
BUSY = [*FIRST, *[(LOOK, 200, 0)] * 9]
LOOKS = {
    # Looks, and the most that is held after the last of them.
    "nothing is measured by one look": (FIRST, 0),
    "tiny tasks": (BUSY, 200),
    "no more than the most": ([*FIRST, *[(LOOK, 2000, 0)] * 9], kuyruk.MAX_PREFETCH),
    "tasks of a second that end in step": (FIRST + [(LOOK, 8, 0), *[(LOOK, 0, 0)] * 49] * 2, 0),
    "tasks of 200 ms that end in step": (FIRST + [(LOOK, 8, 0), *[(LOOK, 0, 0)] * 9] * 10, 0),
    "tasks of 15 ms": ([*FIRST, *[(LOOK, 11, 0)] * 9], 10),
    "tasks of 30 ms": ([*FIRST, *[(LOOK, 5, 0)] * 9], 0),
    "slower tasks, but none waits long": ([*BUSY, *[(LOOK, 1, LATE * 0.8)] * 9], 200),
    "one waits too long": ([*BUSY, (LOOK, 100, LATE * 2)], 0),
    "and the next doesn't": ([*BUSY, (LOOK, 0, LATE * 2), (LOOK, 200, 0)], 100),
    "this process has stood still": ([*BUSY, (2, 0, 2)], 200),
}


@pytest.mark.parametrize(("looks", "held"), LOOKS.values(), ids=LOOKS.keys())
def test_how_many_messages_a_worker_holds_beyond_one_for_each_thread(looks, held):
    """The stock grows with the rate of short tasks, and is gone when a message waits too long."""
    prefetch, now, ended, size = kuyruk._Prefetch(8), 0.0, 0, None
    for seconds, count, waited in looks:
        now, ended = now + seconds, ended + count
        size = prefetch.look(now, ended, waited, LATE)
    assert held // 2 <= size <= held


@pytest.mark.parametrize(
    ("stalled", "patience"), [(0, LATE), (2, 0.1), (6, 0.3), (math.inf, kuyruk.LONGEST_PATIENCE)]
)
def test_how_long_something_may_wait_behind_running_tasks(stalled, patience):
    """The longer tasks take, the longer messages may wait, up to a limit: a hand-back has its
    cost."""
    assert kuyruk._patience(stalled) == patience


@pytest.mark.parametrize(
    ("options", "queues", "held"),
    [({"threads": 2}, 1, 2), ({"threads": 1, "prefetch": 3}, 1, 3), ({"threads": 2}, 2, 2)],
    ids=str,
)
def test_a_worker_holds_no_more_messages_than_its_prefetch(
    options, queues, held, app, queue, broker, start
):
    """A worker holds what its prefetch says, or one message for each thread, of all queues."""
    names = [queue, f"{queue}.2"][:queues]
    tasks = [app.task(name)(hold) for name in names]
    app.send_tasks_to_queue(tasks[n % queues].subtask((n,)) for n in range(6))
    worker = start(app, names, **options)
    wait_until(lambda: worker.stats["received"] >= held and len(ran) == options["threads"])
    time.sleep(0.3)  # for what must not come
    assert (worker.stats["received"], sum(map(broker.count, names))) == (held, 6 - held)


def test_a_higher_priority_is_served_first(app, queue, start):
    """RabbitMQ serves the worker of the higher priority as long as that has room."""
    task = app.task(queue)(hold)
    low, high = start(app, priority=1, threads=4), start(app, priority=2, threads=4)
    app.send_tasks_to_queue(task.subtask((n,)) for n in range(4))
    wait_until(lambda: len(ran) == 4)
    assert (low.stats["received"], high.stats["received"]) == (0, 4)


@pytest.mark.parametrize(("max_load", "limit"), [(0.5, 0.5), (-1, os.cpu_count() or 1)])
def test_a_worker_pauses_above_its_max_load(
    max_load, limit, app, queue, broker, start, monkeypatch
):
    """Above the limit (-1: the number of CPUs) nothing is consumed; the worker counts as
    healthy."""
    task = app.task(queue)(echo)
    monkeypatch.setattr(os, "getloadavg", lambda: (limit + 0.1, 0, 0))
    worker = start(app, max_load=max_load)
    with pytest.raises(kuyruk.ResultTimeout):
        task.send_to_queue((1,), wait_result=0.3)
    assert ran == [] and worker.healthy and broker.count(queue) == 1
    # Only the last minute's load counts, and at the limit itself work goes on.
    monkeypatch.setattr(os, "getloadavg", lambda: (limit, 99, 99))
    wait_until(lambda: ran == [(1,)])
    assert worker.healthy


def test_a_worker_stops_after_its_max_run_time(app, queue):
    """`run` returns when WORKER_MAX_RUN_TIME is over."""
    with takes(0.2, PATIENCE):
        app.worker([queue], max_run_time=0.2).run()


def test_a_stop_finishes_what_runs_and_hands_back_the_rest(app, queue, broker, start):
    """A stop takes no more messages, hands back what hasn't begun, and waits for what runs."""
    task = app.task(queue)(hold)
    app.send_tasks_to_queue(task.subtask((n,)) for n in range(6))
    worker = start(app, threads=2, prefetch=5)
    wait_until(lambda: worker.stats["received"] == 5 and len(ran) == 2)
    stopping = background(worker.stop)
    # The sixth, which was never taken, and the three that hadn't begun.
    wait_until(lambda: broker.count(queue) == 4)
    task(6)  # not taken any more
    assert not worker.healthy and not stopping.done()
    release.set()
    stopping.result(PATIENCE)
    assert broker.count(queue) == 5 and sorted(ran) == [0, 1]
    assert (worker.stats["succeeded"], worker.aborted) == (2, 0)


@pytest.mark.parametrize("way", ["stop(timeout)", "shutdown_timeout"])
def test_a_stop_may_interrupt_what_runs(way, app, queue, broker, start):
    """When a stop's time is over running tasks are interrupted, and their messages go back."""
    app.task(queue)(hold)("first")
    worker = start(app, shutdown_timeout=0.2 if way == "shutdown_timeout" else None)
    wait_until(lambda: ran)
    with takes(0.2, SOON):
        worker.stop(timeout=0.2) if way == "stop(timeout)" else worker.stop()
    assert ran == ["first", "Shutdown"] and worker.aborted == 1
    assert broker.take(queue).redelivered and broker.count(f"{queue}.failed") is None


def test_an_operator_drops_running_tasks(app, queue, broker, start):
    """`drop` ends one running task by its id, or all, with Discard: no retry, no failed message."""
    # With tries left: what an operator has dropped isn't tried again.
    task = app.task(queue, retry=3)(hold)
    app.send_tasks_to_queue(task.subtask(("x",)) for n in range(3))
    worker = start(app)
    wait_until(lambda: len(ran) == 3)
    ids = [running["id"] for running in worker.stats["running"]]
    assert worker.drop("no such id") == 0 and worker.drop(ids[0]) == 1
    wait_until(lambda: worker.stats["discarded"] == 1 and len(worker.stats["running"]) == 2)
    assert [running["id"] for running in worker.stats["running"]] == ids[1:] and worker.drop() == 2
    wait_until(lambda: worker.stats["discarded"] == 3)
    assert ran[3:] == ["Discard"] * 3
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == (0, None)


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_lost_connection_interrupts_and_the_message_runs_again_after_that(
    how, make_app, url, proxy, queue, start
):
    """A lost connection interrupts its tasks; their messages run again, not beside what still ends.

    An acknowledgement of the first run would be for another channel, and make the broker close
    that.
    """
    worker = start(make_app(proxy.url).task(queue)(end_slowly).kuyruk)
    task = make_app(url).task(queue)(end_slowly)
    task()
    wait_until(lambda: ran)
    proxy.cut(how)
    wait_until(lambda: len(ran) == 4)
    assert ran == ["begins", "HeartbeatError", "ends", "begins"]
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 1)
    task()
    wait_until(lambda: worker.stats["succeeded"] == 2)
    # Its first connection and its second: RabbitMQ has ended neither.
    assert proxy.accepted == 2 and worker.healthy
    assert (worker.stats["received"], worker.stats["lost"]) == (3, 1)


def test_a_worker_is_unhealthy_until_it_consumes_again(make_app, proxy, queue, start):
    """A connection that is accepted but not answered isn't a healthy one."""
    task = make_app(proxy.url, RABBIT_CONNECT_TIMEOUT=0.1).task(queue)(echo)
    worker = start(task.kuyruk, reconnect_interval=0.1)
    accepted = proxy.accepted  # 1, or more: the time-out is short for a busy machine
    proxy.mute = True
    proxy.cut()
    # Three more attempts: each is accepted, and gets no answer.
    wait_until(lambda: proxy.accepted >= accepted + 3)
    assert not worker.healthy
    proxy.mute = False
    wait_until(lambda: worker.healthy)
    assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


def test_a_worker_waits_for_a_broker_that_is_away_at_start(make_app, proxy, queue, caplog):
    """A worker that starts before its broker says so, and consumes when that is there."""
    proxy.down()
    task = make_app(proxy.url).task(queue)(echo)
    with task.kuyruk.worker(reconnect_interval=0.1) as worker:
        wait_until(lambda: "Waiting for RabbitMQ" in caplog.text)
        assert not worker.healthy
        proxy.up()
        assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


@pytest.mark.parametrize("trouble", ["away", "mute"])
def test_a_worker_that_cannot_connect_stops_when_told_to(trouble, make_app, proxy, queue):
    """A stop isn't held up by a broker that is away, or accepts connections and never answers."""
    proxy.mute = True
    if trouble == "away":
        proxy.down()
    with make_app(proxy.url, RABBIT_CONNECT_TIMEOUT=0.5).worker([queue]) as worker:
        wait_until(lambda: trouble == "away" or proxy.accepted)
        with takes(0, SOON):
            worker.stop()


def test_heartbeats_keep_a_connection_and_end_a_silent_one(make_app, proxy, queue, start):
    """Heartbeats keep an idle connection; one without the broker's heartbeats is given up."""
    task = make_app(proxy.url, RABBIT_HEARTBEAT=1).task(queue)(hold)
    worker = start(task.kuyruk)
    task()
    wait_until(lambda: ran)
    # RabbitMQ ends a connection that is silent for two heartbeats: so three seconds prove it.
    with pytest.raises(AssertionError):
        wait_until(lambda: not worker.healthy or proxy.accepted > 2, timeout=3)
    proxy.stall("down")
    wait_until(lambda: "HeartbeatError" in ran)
    proxy.resume()
    release.set()
    wait_until(lambda: worker.healthy and worker.stats["succeeded"] == 1)


def mute(proxy, value=True):
    proxy.mute = value


#: How the way to the broker goes wrong, and right again. New connections that are tried meanwhile
#: fail.
TROUBLE = {
    "reset": (lambda proxy: (proxy.down(), proxy.cut("rst")), lambda proxy: proxy.up()),
    "closed": (lambda proxy: (mute(proxy), proxy.cut("fin")), lambda proxy: mute(proxy, False)),
    "nothing gets there": (lambda proxy: proxy.stall("up"), lambda proxy: proxy.resume()),
    "nothing comes": (lambda proxy: proxy.stall("down"), lambda proxy: proxy.resume()),
    "half-open": (lambda proxy: (proxy.swallow(), mute(proxy)), lambda proxy: mute(proxy, False)),
}


@pytest.mark.parametrize(("begin", "end"), TROUBLE.values(), ids=TROUBLE.keys())
def test_healthy_is_false_within_two_heartbeats_and_true_when_it_consumes_again(
    begin, end, make_app, url, proxy, queue, start
):
    """`healthy` notices each kind of loss, and is True only when the worker consumes again."""
    heartbeat = 1
    app = make_app(proxy.url, RABBIT_HEARTBEAT=heartbeat, RABBIT_CONNECT_TIMEOUT=0.5)
    app.task(queue)(echo)
    worker = start(app, reconnect_interval=0.1)
    begin(proxy)
    with takes(0, 2 * heartbeat + SOON):
        wait_until(lambda: not worker.healthy)
    with pytest.raises(AssertionError):  # it stays so, through several attempts to connect
        wait_until(lambda: worker.healthy, timeout=0.5)
    end(proxy)
    wait_until(lambda: worker.healthy)
    assert make_app(url).task(queue)(echo).send_to_queue((5,), wait_result=PATIENCE) == 5


def test_healthy_tells_of_a_broker_that_stands_still_or_dies(make_app, queue, start):
    """`healthy` is False while the broker stands still or is dead; a memory alarm is no trouble."""
    with RabbitmqNode() as node:
        app = make_app(node.url, RABBIT_HEARTBEAT=1, RABBIT_CONNECT_TIMEOUT=0.5)
        task = app.task(queue)(echo)
        worker = start(app, reconnect_interval=0.1)
        for begin, end in [(node.pause, node.resume), (node.kill, node.start)]:
            begin()
            wait_until(lambda: not worker.healthy, timeout=2 + SOON)
            end()
            wait_until(lambda: worker.healthy)
            assert task.send_to_queue((5,), wait_result=PATIENCE) == 5
        # RabbitMQ reads nothing from connections that publish; the worker's doesn't.
        node.ctl("set_vm_memory_high_watermark", "0.000001")
        time.sleep(3)  # for what must not come: three heartbeats
        assert worker.healthy
        seen = []  # by whoever is told: it may be healthy again before the command returns
        worker.on_change = lambda: seen.append(worker.healthy)
        node.ctl("close_all_connections", "for a test")
        wait_until(lambda: False in seen and worker.healthy)


def test_a_worker_whose_queue_is_deleted_consumes_it_again(app, queue, broker, start):
    """A queue that was deleted is declared and consumed again, as often as that happens.

    amqpstorm only logs that its consumer was cancelled.
    """
    task = app.task(queue)(echo)
    worker = start(app)
    for _ in range(3):
        broker.delete(queue)
        assert task.send_to_queue((5,), wait_result=PATIENCE) == 5
    assert worker.healthy


def test_the_messages_in_hand_of_a_deleted_queue_run_to_their_end(app, queue, broker, start):
    """What a worker holds of a deleted queue are the only copies: they all run."""
    app.task(queue)(hold), app.task(f"{queue}.2")(echo)
    worker = start(app, threads=1, prefetch=3)
    for n in range(3):
        broker.publish(queue, body(id=str(n), function="hold", args=[n]))
    wait_until(lambda: worker.stats["received"] == 3 and ran == [0])
    broker.delete(queue)
    wait_until(lambda: broker.count(queue) == 0 and worker.healthy)  # it is declared again
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 3)
    assert ran == [0, 1, 2] and worker.stats["lost"] == worker.stats["requeued"] == 0


def test_at_a_stop_what_is_the_only_copy_goes_back_to_a_new_queue(app, queue, broker, start):
    """At a stop, the only copies of a deleted queue's messages are sent again, begun or not."""
    app.task(queue)(hold)
    worker = start(app, threads=1, prefetch=3)
    for n in range(3):
        broker.publish(queue, body(id=str(n), function="hold", args=[n]))
    wait_until(lambda: worker.stats["received"] == 3 and ran == [0])
    broker.delete(queue)
    wait_until(lambda: broker.count(queue) == 0 and worker.healthy)
    worker.stop(timeout=0)
    assert sorted(arguments_in(broker.take_all(queue))) == [(0,), (1,), (2,)]


def test_what_is_wrong_with_one_queue_is_that_queues_trouble(
    app, url, queue, broker, start, caplog
):
    """A queue that can't be consumed is named once; tasks of the other queue run meanwhile,
    uninterrupted.

    It is exclusive to another connection: that is refused as a queue is without permission.
    """
    app.task(queue)(hold), app.task(f"{queue}.2")(echo)
    owner = Broker(url)
    owner.channel.queue.declare(f"{queue}.2", exclusive=True)
    broker.declare(queue)
    worker = app.worker()
    worker.start()
    try:
        broker.publish(queue, body(function="hold"))
        wait_until(lambda: ran == [None] and f"Queue '{queue}.2' can't be consumed" in caplog.text)
        assert not worker.healthy and worker.stats["running"] and worker.stats["lost"] == 0
        time.sleep(1)  # for what must not come: a line for each of the attempts since
        assert caplog.text.count("can't be consumed") == 1
        # The exclusive queue goes with its owner.
        owner.connection.close()
        wait_until(lambda: worker.healthy)
        release.set()
        wait_until(lambda: worker.stats["succeeded"] == 1)
        assert ran == [None] and worker.stats["lost"] == 0
    finally:
        owner.connection.close()
        release.set()
        worker.stop()


def test_a_child_that_is_forked_beside_a_worker_ends(url, queue, broker):
    """A forked child that leaves the worker's `with` block waits for no thread of its parent's."""
    code = """
with app.worker(threads=1):
    child = os.fork()
    if child == 0:
        sys.exit(0)  # leaves the block: the worker isn't its own
    assert os.waitpid(child, 0)[1] == 0
"""
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url)


def test_a_process_that_is_forked_by_a_task_ends_well(url, queue, broker):
    """A multiprocessing.Process of a task ends with code 0, though a pool thread has forked it."""
    code = """
import multiprocessing
def fork():
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join(10)
    return child.exitcode
test_kuyruk.fork, fork.__module__ = fork, "test_kuyruk"
with app.worker(threads=1):
    assert app.task(queue)(fork).send_to_queue(wait_result=20) == 0
"""
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url)


def test_hundreds_of_reconnections_leave_nothing_behind(make_app, proxy, queue, start, monkeypatch):
    """Three hundred reconnections leave no objects, files or threads behind."""
    # pytest keeps what is logged, and each record refers to more.
    monkeypatch.setattr(logging.getLogger("kuyruk"), "disabled", True)
    task = make_app(proxy.url).task(queue)(echo)
    worker = start(task.kuyruk, threads=1, reconnect_interval=0.001)
    sizes = []
    for n in range(1, 301):
        before = proxy.accepted
        # By turns: a reset is an error of the next read, an end is not.
        proxy.cut("rst" if n % 2 else "fin")
        wait_until(lambda before=before: proxy.accepted > before and worker.healthy)
        if n % 100 == 0:
            assert task.send_to_queue((n,), wait_result=PATIENCE) == n
            gc.collect()
            files = len(os.listdir("/dev/fd"))
            sizes.append((len(gc.get_objects()), files, len(threads_of_ours())))
    grown = [last - first for first, last in zip(sizes[0], sizes[-1], strict=True)]
    # Less than one object for each of 200 reconnections. A few may be on their way out.
    assert all(more < limit for more, limit in zip(grown, (100, 5, 2), strict=True)), grown


def test_a_worker_that_is_killed_loses_nothing(app, url, queue, tmp_path):
    """What a killed process had in hand runs again."""
    path = tmp_path / "ran"
    path.touch()
    task = app.task(queue)(append_to)
    app.send_tasks_to_queue(task.subtask((str(path), n)) for n in range(1000))
    code = IN_A_PROCESS + "app.task(queue)(test_kuyruk.append_to); app.worker(threads=4).run()"
    environment = {**os.environ, "KUYRUK_RABBIT_URL": url, "PYTHONPATH": str(HERE)}
    # The first process is killed in the midst of them, and the second does the rest.
    for enough in (300, 1000):
        with subprocess.Popen([sys.executable, "-c", code, queue], env=environment) as process:
            try:
                wait_until(lambda enough=enough: len(set(path.read_text().splitlines())) >= enough)
            finally:
                process.kill()
    assert {int(line) for line in path.read_text().splitlines()} == set(range(1000))


def test_ctrl_c_in_run_stops_gracefully(app, url, queue, broker, tmp_path):
    """Ctrl-C in `run` lets the task end, settles it, and then ends the program as Ctrl-C does."""
    path = tmp_path / "ran"
    path.touch()
    app.task(queue)(note_both_ends)(str(path))
    code = f"""{IN_A_PROCESS}
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
app.task(queue)(test_kuyruk.note_both_ends)
app.worker(threads=2).run()
"""
    environment = {**os.environ, "KUYRUK_RABBIT_URL": url, "PYTHONPATH": str(HERE)}
    with subprocess.Popen(
        [sys.executable, "-c", code, queue], env=environment, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_until(lambda: path.read_text() == "begins\n")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert path.read_text() == "begins\nends\n" and broker.count(queue) == 0
    assert errors.endswith(b"KeyboardInterrupt\n"), errors
    assert process.returncode == -signal.SIGINT


def test_a_stop_under_load_loses_nothing_and_runs_nothing_twice(app, queue, broker, start):
    """A stop amid many messages settles each as done or handed back."""
    task = app.task(queue)(look_around)
    app.send_tasks_to_queue(task.subtask((n,)) for n in range(200))
    # More in hand than threads, so that the stop finds some that haven't begun.
    worker = start(app, threads=20, prefetch=50)
    wait_until(lambda: len(ran) >= 50)
    worker.stop()
    stats, finished = worker.stats, len(ran)
    assert stats["succeeded"] == finished and broker.count(queue) == 200 - finished > 0
    assert stats["received"] == stats["succeeded"] + stats["requeued"] and stats["requeued"] > 0
    start(app)
    wait_until(lambda: len(ran) >= 200)
    assert sorted(number for number, _ in ran) == list(range(200))


def test_heartbeats_go_on_while_a_stop_waits(make_app, url, proxy, queue, broker, start):
    """A stop that waits for a long task keeps its connection, or the task would be interrupted."""
    worker = start(make_app(proxy.url, RABBIT_HEARTBEAT=1).task(queue)(hold).kuyruk)
    make_app(url).task(queue)(hold)()
    wait_until(lambda: ran)
    stopping = background(worker.stop)
    # RabbitMQ ends a connection that is silent for two heartbeats
    with pytest.raises(AssertionError):
        wait_until(lambda: proxy.open != 1 or len(ran) > 1, timeout=3.5)
    release.set()
    stopping.result(PATIENCE)
    assert (worker.stats["succeeded"], worker.stats["lost"], broker.count(queue)) == (1, 0, 0)


def test_a_stop_may_take_longer_than_the_shutdown_timeout_and_be_cut_short(
    app, queue, broker, start
):
    """`stop(math.inf)` wins over `shutdown_timeout`; a later call can shorten it, but not
    lengthen."""
    app.task(queue)(hold)("first")
    worker = start(app, shutdown_timeout=0.1)
    wait_until(lambda: ran)
    # The timeouts of all calls are looked at together: the shortest wins, and the first had none.
    stops = [background(worker.stop, timeout=math.inf), background(worker.stop, timeout=60)]
    assert all(still_waits(stop) for stop in stops) and ran == ["first"]
    worker.stop(timeout=0.5, wait=False)
    with takes(0, SOON):
        worker.stop(timeout=60)
    results(stops)
    assert ran == ["first", "Shutdown"] and broker.count(queue) == 1


def test_a_pause_is_logged_with_figures_and_hands_back_what_has_not_begun(
    app, queue, start, monkeypatch, caplog
):
    """A pause logs load and limit, and hands back what hasn't begun; at the limit there is none."""
    caplog.set_level(logging.INFO)
    load = [0.5]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 99, 99))
    task = app.task(queue)(hold)
    app.send_tasks_to_queue(task.subtask((n,)) for n in range(3))
    worker = start(app, threads=1, prefetch=3, max_load=0.5)
    wait_until(lambda: worker.stats["waiting"] == 2 and ran)  # at its limit it goes on
    load[0] = 0.75
    wait_until(lambda: worker.stats["requeued"] == 2)
    other = start(app, threads=2)
    wait_until(lambda: sorted(ran) == [0, 1, 2])
    assert worker.healthy and len(worker.stats["running"]) == 1 and other.stats["received"] == 2
    other.stop(timeout=0)
    load[0] = 0.25
    wait_until(lambda: worker.stats["waiting"] == 2)
    logged = re.findall(
        r"(Pausing|Resuming): the load average is (\S+), the limit (\S+) ", caplog.text
    )
    assert logged == [("Pausing", "0.75", "0.5"), ("Resuming", "0.25", "0.5")]
    assert worker.healthy


def test_a_worker_never_runs_more_tasks_than_it_has_threads(app, queue, start):
    """A large prefetch makes no more threads, and all of these work."""
    task = app.task(queue)(look_around)
    app.send_tasks_to_queue(task.subtask() for _ in range(500))
    worker = start(app, threads=4, prefetch=100)
    wait_until(lambda: worker.stats["succeeded"] == 500)
    assert max(most for _, most in ran) == 4 and len(pool_threads()) == 4


class NoCommonError(BaseException):
    """As user code, and hosts, raise."""


#: What may happen at any line, in the order in which it happens to the next messages.
MISHAPS = [
    OSError(errno.EMFILE, "Too many open files"),
    RuntimeError("can't start new thread"),
    MemoryError(),
    NoCommonError("from user code"),
]

#: Steps of a delivery. What fails in these, the reader's, costs its connection: messages run again.
READS = ["_Delivery.__init__", "_ConsumerChannel.on_content", "_Pool.add"]
#: What fails in these is what the message fails with, and its task doesn't run.
BEGINS = [
    "_Pool._wake_one", "_Pool._take", "_Pool._next", "_Pool._handle", "_decode_task",
    "_Pool._admit", "Journal.begin", "Kuyruk._find_task", "Run.__init__", "_Pool._begin",
    "Task._run", "_Watch.add", "_set_current",
]  # fmt: skip
#: What fails in these is what the message fails with, and its task has run.
DESCRIBES = [
    "_Pool._conclude", "_decide", "_plan", "_reply_message", "_forwarded", "_failure_headers",
]  # fmt: skip
#: What fails in these is done once more, and costs the message nothing.
SETTLES = [
    "_Pool._settle", "_Settler._send", "_Settler._try_to_send", "_Delivery.send_frame",
    "_ack_frame", "_Pool._on_settled", "_Pool._log_success", "_Pool._log_error", "_Pool._end",
    "Journal.end",
]  # fmt: skip


@pytest.mark.parametrize("step", [*READS, *BEGINS, *DESCRIBES, *SETTLES])
def test_after_mishaps_in_a_step_each_message_is_settled_once_and_all_threads_work(
    step, app, queue, broker, start, monkeypatch
):
    """Whatever fails in whatever step, each message has one fate, and no thread is lost."""
    tasks = [app.task(queue, max_run_time=PATIENCE)(f) for f in (echo, fail_at, hold)]
    left, owner = [], kuyruk
    *path, name = step.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def fails(*args, **kwargs):
        # In threads of ours only: the test itself sends by some of these functions.
        if left and threading.current_thread().name.startswith("kuyruk"):
            raise left.pop(0)
        return real(*args, **kwargs)

    broker.declare(f"{queue}.failed")
    monkeypatch.setattr(owner, name, fails)
    worker = start(app, threads=2)
    left += MISHAPS
    numbers = range(16)
    app.send_tasks_to_queue([tasks[n % 4 == 3].subtask((n,)) for n in numbers])
    asked = [background(tasks[0].send_to_queue, (n,), wait_result=PATIENCE) for n in range(20, 24)]
    wait_until(lambda: not left)
    expected = {*numbers, *range(20, 24)}
    failed = []

    def are_settled():
        # In this order. The other way round, what ended between two looks would be missed.
        have_run = {n for (n,) in ran}
        is_done = worker._pool.held == 0
        while message := broker.channel.basic.get(f"{queue}.failed", no_ack=True):
            failed.extend(n for (n,) in arguments_in([message]))
        return expected <= have_run | set(failed) and is_done

    wait_until(are_settled)
    runs = sorted(n for (n,) in ran)
    if step not in READS:
        assert (runs, sorted(failed)) == (sorted(set(runs)), sorted(set(failed)))  # none twice
    if step in DESCRIBES + SETTLES:
        assert runs == sorted(expected)
    if step in SETTLES:
        assert sorted(failed) == [n for n in numbers if n % 4 == 3]
    # Both threads still run tasks: two of these at once.
    ran.clear()
    app.send_tasks_to_queue([tasks[2].subtask((n,)) for n in range(2)])
    wait_until(lambda: len(ran) == 2 and worker.healthy)
    release.set()
    wait_until(lambda: worker._pool.held == 0)
    worker.stop()
    assert broker.count(queue) == 0
    for call in asked:  # a result or an error, but none waits for ever
        call.exception(PATIENCE)


@pytest.mark.parametrize("broker_is", ["there", "going away"])
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_a_worker_works_again_after(
    fail, broker_is, make_app, proxy, queue, broker, start, monkeypatch
):
    """Once what failed for a moment works again, all messages run, and all threads are there."""
    app = make_app(proxy.url)
    task, _ = app.task(queue)(echo), app.task(queue)(hold)
    worker = start(app, threads=2, reconnect_interval=0.1)
    with contextlib.ExitStack() as stack:
        fail(monkeypatch, stack)
        if broker_is == "going away":
            proxy.cut()
        for n in range(10):
            broker.publish(queue, body(id=f"id {n}", function="echo", args=[n]))
        time.sleep(0.3)  # for the failures to happen
        monkeypatch.undo()
    for n in range(10, 20):
        task(n)
    wait_until(lambda: {n for (n,) in ran} == set(range(20)) and worker.healthy)
    wait_until(lambda: not worker.stats["running"])
    assert broker.count(f"{queue}.failed") is None
    # Both threads still run tasks: two of these at once.
    for n in range(2):
        broker.publish(queue, body(id=f"hold {n}", function="hold"))
    wait_until(lambda: len(worker.stats["running"]) == 2)
    release.set()
    worker.stop()
    assert broker.count(queue) == 0


def test_a_worker_that_is_paused_from_its_start_does_not_spin(app, queue, start, monkeypatch):
    """A worker that has paused before it consumed anything looks at the load once a second."""
    looks = []
    monkeypatch.setattr(os, "getloadavg", lambda: looks.append(99.0) or (99.0, 99, 99))
    start(app, [queue], max_load=1)
    looks.clear()
    time.sleep(1.5)  # one look, or two; a loop that spins has thousands
    assert 1 <= len(looks) < 10
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 99, 99))
    app.task(queue)(echo)(1)
    wait_until(lambda: ran)


# --- Worker: interruptions that hold -----------------------------------------


@may_be_printed
@pytest.mark.usefixtures("frequent_switches")
def test_tasks_that_end_at_their_deadline_are_settled_once(app, queue, broker, start, caplog):
    """An interruption hits its own task or nothing: not the next in that thread, and not the
    worker's code.

    Five thousand tasks end at their deadline, give or take 0.1 ms, on eight threads, with a
    thousand others in between. Each is settled once, as returned or as timed out, and no thread is
    lost.
    """
    task, calm = app.task(queue, max_run_time=0.005)(end_at_deadline), app.task(queue)(stay_calm)
    later = app.task(f"{queue}.2")(hold)
    worker = start(app, threads=8, prefetch=200)
    app.send_tasks_to_queue((calm if n % 6 == 0 else task).subtask((n,)) for n in range(6000))
    tallies = ("succeeded", "failed", "timed_out")
    wait_until(lambda: sum(map(worker.stats.get, tallies)) == 6000, timeout=60)
    stats, ended = worker.stats, set(ran)
    assert len(ran) == len(ended) and len(pool_threads()) == 8
    ran.clear()
    # All eight threads still run tasks: eight of these at once.
    app.send_tasks_to_queue(later.subtask((n,)) for n in range(8))
    wait_until(lambda: sorted(ran) == list(range(8)))
    release.set()
    worker.stop()
    failed = [n for (n,) in arguments_in(broker.take_all(f"{queue}.failed"))]
    assert (stats["received"], stats["failed"], broker.count(queue)) == (6000, 0, 0)
    assert stats["timed_out"] == len(failed) == len(set(failed))
    # Many of both, besides the thousand calm ones: the deadline was hit.
    assert min(stats["timed_out"], stats["succeeded"] - 1000) > 500
    assert ended | set(failed) == set(range(6000))
    assert [n for n in failed if n % 6 == 0] == []  # calm ones
    warnings = [record.exc_info and record.exc_info[0] for record in caplog.records]
    assert warnings == [kuyruk.Timeout] * stats["timed_out"]


def drop_now_and_then(worker):
    """Drop tasks that are about to end, until the worker has stopped; return how many."""
    dropped = 0
    while not worker.join(0.002):
        running = [run["id"] for run in worker.stats["running"] if run["seconds"] > 0.003]
        due = [id for id in running if int(id) % 6]  # not the calm ones
        dropped += sum(worker.drop(id) for id in due[:1])
    return dropped


@may_be_printed
@pytest.mark.usefixtures("frequent_switches")
def test_interruptions_of_every_kind_at_once_lose_nothing(
    make_app, url, proxy, queue, broker, start, caplog
):
    """Deadlines, drops, lost connections and at last a stop, all at once, lose no message.

    Each cut, and the stop, may bring eight messages back; and a connection that was just being made
    may be cut, too.
    """
    apps = make_app(proxy.url), make_app(url)
    for app in apps:
        app.task(queue, max_run_time=0.005)(end_at_deadline), app.task(queue)(stay_calm)
    worker = start(apps[0], threads=8, prefetch=8, reconnect_interval=0.01)
    for n in range(3000):
        function = "end_at_deadline" if n % 6 else "stay_calm"
        broker.publish(queue, body(id=str(n), function=function, args=[n]))
    dropping = background(drop_now_and_then, worker)
    # Seven cuts, spread over the messages, and a stop when the most have run.
    for n in range(1, 8):
        wait_until(lambda n=n: worker.stats["received"] > n * 300 and worker.healthy)
        proxy.cut("rst" if n % 2 else "fin")
    wait_until(lambda: worker.stats["received"] > 2600)
    assert len(pool_threads()) == 8
    worker.stop(timeout=0)
    # Another worker has what is left, on a way that nobody cuts.
    other = start(apps[1], threads=8)
    wait_until(lambda: broker.count(queue) == 0 and not other.stats["running"])
    assert dropping.result(PATIENCE) > 100
    assert worker.stats["discarded"] > 50
    assert worker.stats["timed_out"] > 100
    assert 3000 <= worker.stats["received"] + other.stats["received"] <= 3000 + 8 * (2 * 7 + 1)
    failed = [n for (n,) in arguments_in(broker.take_all(f"{queue}.failed"))]
    # What was dropped is nowhere else: Discard leaves no message.
    pattern = r"end_at_deadline \[(\d+)] from \S+ discarded"
    dropped = [int(id) for id in re.findall(pattern, caplog.text)]
    # What the calm ones have seen: they have no limit, and nobody drops them.
    seen = {n for n in ran if isinstance(n, str)}
    assert {*ran, *failed, *dropped} - seen == set(range(3000))
    assert seen <= {"HeartbeatError", "Shutdown"}
    assert [n for n in failed + dropped if n % 6 == 0] == []
    assert "Defect" not in caplog.text


#: By what interrupts a stuck task: the caller's reply, the count that goes up, and whether the
#: message has failed.
GIVEN_UP = {
    "its limit": ("kuyruk.exceptions.Timeout", "timed_out", True),
    "an operator": ("kuyruk.exceptions.Discard", "discarded", False),
}


@pytest.mark.parametrize(("reply", "tally", "fails"), GIVEN_UP.values(), ids=GIVEN_UP.keys())
def test_a_stuck_task_is_given_up_after_its_interruption_by(
    reply, tally, fails, app, queue, broker, start
):
    """A task that no interruption ends is settled after the grace, and its thread is replaced."""
    # With tries left: a try beside one that is stuck would get stuck, too.
    stuck = app.task(queue, max_run_time=0.2 if fails else None, retry=2)(get_stuck)
    other = app.task(queue)(hold)
    worker = start(app, threads=2, grace=0.2)
    other("other")
    caller = background(stuck.send_to_queue, ("stuck",), wait_result=PATIENCE)
    wait_until(lambda: sorted(ran) == ["other", "stuck"])
    if not fails:
        [id] = [run["id"] for run in worker.stats["running"] if run["task"] == stuck.name]
        assert worker.drop(id) == 1
    with pytest.raises(kuyruk.RemoteException) as error:
        caller.result(SOON)
    assert error.value.type == reply
    assert "trap.get()" in error.value.traceback
    if fails:
        failed = failure(broker, queue)
        assert failed["exception"] == reply
        assert "trap.get()" in failed["traceback"]
    wait_until(lambda: worker.stats["stuck"] == 1 and len(worker.stats["running"]) == 1)
    assert app.task(queue)(echo).send_to_queue((5,), wait_result=SOON) == 5  # beside both
    assert worker.stats[tally] == 1 and not worker.healthy and ran[2:] == [(5,)]
    release.set()
    worker.stop()
    assert broker.count(queue) == 0
    assert (worker.stats["received"], worker.stats["succeeded"]) == (3, 2)


def test_a_stuck_task_that_ends_after_all_changes_nothing_any_more(
    make_app, proxy, queue, broker, start, caplog
):
    """What a given-up task comes to at last is dropped: its message was settled already."""
    app = make_app(proxy.url)
    stuck, other = app.task(queue, max_run_time=0.2)(get_stuck), app.task(queue)(echo)
    worker = start(app, threads=2, grace=0.2)
    stuck("once")
    wait_until(lambda: "is stuck" in caplog.text)
    assert not worker.healthy and worker.stats["stuck"] == 1
    trap.put("the way out")
    wait_until(lambda: worker.healthy)
    # A second acknowledgement would make RabbitMQ end the connection.
    assert other.send_to_queue((5,), wait_result=SOON) == 5
    assert (ran, broker.count(queue), broker.count(f"{queue}.failed")) == (["once", (5,)], 0, 1)
    assert proxy.accepted == 3  # the worker's, its sender's, the application's
    assert worker.stats["received"] == 2


def test_what_is_stuck_is_logged_once_with_its_stack_and_when_it_ends(app, queue, start, caplog):
    """A stuck task is an ERROR with its stack, once, and a line when it ends after all."""
    stuck = app.task(queue, max_run_time=0.2)(get_stuck)
    worker = start(app, threads=2, grace=0.2)
    stuck()
    wait_until(lambda: worker.stats["running"])
    name = f"Task {stuck.name} [{worker.stats['running'][0]['id']}] from {queue!r}"
    wait_until(lambda: "is stuck" in caplog.text)
    trap.put("the way out")
    wait_until(lambda: worker.healthy)
    [about_it, the_end] = [record for record in caplog.records if name in record.getMessage()]
    assert about_it.levelno == logging.ERROR and "Timeout: ran longer" in about_it.getMessage()
    # Once in the log, though the stack is in the failed message as well.
    assert caplog.text.count("trap.get()") == caplog.text.count("in get_stuck") == 1
    assert the_end.getMessage().startswith(f"{name} has ended after all")


def test_a_stuck_task_with_a_fail_delay_comes_back_and_waits_for_itself(
    app, queue, broker, start, caplog
):
    """The next delivery of a message whose task is stuck waits for that to end."""
    stuck = app.task(queue, max_run_time=0.2, fail_delay=0.2)(get_stuck)
    worker = start(app, threads=2, grace=0.2)
    caplog.set_level(logging.INFO)
    stuck("again")
    wait_until(lambda: "waits: it is running here already" in caplog.text)
    assert (worker.stats["received"], worker.stats["stuck"], ran) == (2, 1, ["again"])
    # So that the second run isn't given up, too.
    stuck.max_run_time = None
    trap.put("the way out")
    wait_until(lambda: ran == ["again"] * 2 and worker.healthy)
    trap.put("the way out")
    wait_until(lambda: worker.stats["succeeded"] == 1)
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == (0, None)


def test_a_task_that_swallows_its_interruption_is_given_up(app, queue, broker, start):
    """A task that catches its Timeout and goes on has failed with it all the same."""
    task = app.task(queue, max_run_time=0.1)(swallow_everything)
    worker = start(app, threads=2, grace=0.2)
    with pytest.raises(kuyruk.RemoteException, match="longer than its max_run_time") as error:
        task.send_to_queue(wait_result=SOON)
    assert error.value.type == "kuyruk.exceptions.Timeout"
    assert "in swallow_everything" in error.value.traceback
    assert broker.take(f"{queue}.failed") and worker.stats["stuck"] == 1
    release.set()
    wait_until(lambda: worker.healthy)
    assert ran == ["Timeout", "ends"]


def test_a_worker_whose_threads_are_all_stuck_stops_by_itself(app, queue, broker, start, caplog):
    """A worker with as many stuck threads as it has stops, when what runs beside them has ended."""
    stuck, other = app.task(queue, max_run_time=0.2)(get_stuck), app.task(queue)(hold)
    app.send_tasks_to_queue([stuck.subtask((1,)), stuck.subtask((2,)), other.subtask((3,))])
    worker = start(app, threads=2, prefetch=3, grace=0.2)
    wait_until(lambda: any(record.levelno == logging.CRITICAL for record in caplog.records))
    # It takes nothing more: this one stays in its queue.
    other("left")
    assert "2 threads are stuck" in caplog.text and not worker.healthy
    # It waits for the task of the thread that took their place.
    assert (worker.join(0.5), worker.stats["stuck"]) == (False, 2)
    release.set()
    assert worker.join(PATIENCE) and worker.error is None and sorted(ran) == [1, 2, 3]
    assert (worker.stats["timed_out"], worker.stats["succeeded"], worker.aborted) == (2, 1, 0)
    assert arguments_in(broker.take_all(queue)) == [("left",)]
    assert broker.count(f"{queue}.failed") == 2


def test_a_stuck_task_whose_connection_is_lost_runs_again_after_it_and_not_beside_it(
    make_app, url, proxy, queue, start
):
    """A task that outlives its connection takes no thread, and its message runs again after it."""
    app = make_app(proxy.url)
    app.task(queue)(get_stuck), app.task(queue)(echo)
    sender = make_app(url)
    worker = start(app, threads=1, prefetch=5, grace=0.1)
    sender.task(queue)(get_stuck)("first")
    wait_until(lambda: ran == ["first"])
    proxy.cut()
    wait_until(lambda: worker.stats["stuck"] == 1 and worker.stats["received"] == 2)
    # Its only thread was replaced.
    assert sender.task(queue)(echo).send_to_queue((5,), wait_result=PATIENCE) == 5
    assert worker.stats["lost"] == 1 and worker.healthy and ran == ["first", (5,)]
    trap.put("the way out")
    wait_until(lambda: ran == ["first", (5,), "first"] and worker.stats["stuck"] == 0)
    trap.put("the way out")
    wait_until(lambda: worker.stats["succeeded"] == 2)
    assert worker.stats["received"] == 3 and not worker.join(0)


def test_a_stop_gives_up_a_stuck_task_and_its_message_goes_back(app, queue, broker, start, caplog):
    """A stop waits for a stuck task as long as the grace says; its message isn't a failed one."""
    app.task(queue)(get_stuck)("first")
    worker = start(app, grace=0.3)
    wait_until(lambda: ran)
    with takes(0.3, 0.3 + SOON):
        worker.stop(timeout=0)
    wait_until(lambda: "is stuck" in caplog.text)
    assert (worker.aborted, worker.stats["requeued"], worker.stats["stuck"]) == (1, 1, 1)
    assert broker.take(queue).redelivered and broker.count(f"{queue}.failed") is None


def test_a_stop_gives_up_an_import_that_does_not_end(
    app, queue, broker, start, tmp_path, monkeypatch
):
    """A stop gives up a thread that is stuck in the import of a task's module, too."""
    package = f"package_{uuid.uuid4().hex}"
    make_package(tmp_path, package, endless="import test_kuyruk; test_kuyruk.get_stuck()")
    monkeypatch.syspath_prepend(tmp_path)
    app.task(queue)(types.FunctionType(echo.__code__, {"__name__": package}))
    worker = start(app, [queue], grace=0.2)
    broker.publish(queue, body(module=f"{package}.endless", function="f"))
    wait_until(lambda: ran)
    with takes(0.2, 0.2 + SOON):
        worker.stop(timeout=0)
    assert (worker.aborted, worker.stats["requeued"], broker.count(queue)) == (1, 1, 1)


@pytest.mark.parametrize("cause", ["max_run_time", "stop"])
def test_a_program_may_end_while_a_thread_is_stuck(cause, url, queue, broker):
    """The interpreter doesn't wait at its end for a pool thread that was given up."""
    limit, stuck = (0.2, 1) if cause == "max_run_time" else (None, 0)
    code = f"""
import logging
# `run_python` wants nothing on stderr.
logging.disable()
app.task(queue, max_run_time={limit})(test_kuyruk.get_stuck)()
worker = app.worker(threads=2, grace=0.2)
worker.start()
test_kuyruk.wait_until(lambda: test_kuyruk.ran and worker.stats["stuck"] == {stuck})
worker.stop(timeout=0)
assert worker.stats["stuck"] == 1
"""
    run_python("-c", IN_A_PROCESS + code, queue, KUYRUK_RABBIT_URL=url)
    left = (0, 1) if cause == "max_run_time" else (1, None)
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == left


def test_threads_stay_flat_and_within_their_number_when_many_are_given_up(app, queue, start):
    """Threads that come back from being stuck are used again: no more than `threads` run tasks."""
    stuck, other = app.task(queue, max_run_time=0.02)(get_stuck), app.task(queue)(look_around)
    worker = start(app, threads=3, prefetch=20, grace=0.02)
    for n in range(1, 16):
        app.send_tasks_to_queue([stuck.subtask(), *[other.subtask(("other",))] * 20])
        wait_until(
            lambda n=n: worker.stats["timed_out"] == n and worker.stats["succeeded"] == 20 * n
        )
        if n > 1:  # two are stuck, the most that leave a thread for the others
            trap.put("the way out")
            wait_until(lambda: worker.stats["stuck"] == 1)
    # As many at once as it has threads, whoever was given up meanwhile.
    assert max(entry[1] for entry in ran if entry) == 3
    trap.put("the way out")
    wait_until(lambda: worker.healthy and worker._pool._idle == 3)
    # Three, and the most that were stuck at once: those that have come back were used again.
    assert len(pool_threads()) <= 3 + 2


def wait_in_a_queue(number):
    """Wait in the standard library's Python code, and note where an interruption lands."""
    ran.append(number)
    try:
        doors[number].get()
    except BaseException as error:
        ran.append(traceback.extract_tb(error.__traceback__)[-1].filename)
        raise


#: Where `wait_in_a_queue` waits, in the standard library's Python code.
doors = collections.defaultdict(queue_module.Queue)


def test_a_task_that_is_never_at_a_safe_point_is_given_up(app, queue, broker, start):
    """A task that waits inside the standard library is given up, not interrupted in its lock."""
    task, other = app.task(queue, max_run_time=0.1)(wait_in_a_queue), app.task(queue)(echo)
    worker = start(app, threads=2, grace=0.2)
    with pytest.raises(kuyruk.RemoteException, match="longer than its max_run_time") as error:
        task.send_to_queue((1,), wait_result=SOON)
    assert error.value.type == "kuyruk.exceptions.Timeout" and worker.stats["stuck"] == 1
    assert other.send_to_queue((5,), wait_result=SOON) == 5
    doors[1].put("the way out")
    wait_until(lambda: worker.healthy)
    # It lands here at last, if the task is still there then; and it leaves no lock taken.
    assert set(ran) <= {1, (5,), __file__}
    doors[1].put("unlocked")
    assert doors[1].get(timeout=SOON) == "unlocked"


def test_a_stuck_task_is_given_up_although_no_thread_can_be_started_for_a_moment(
    app, queue, broker, start, monkeypatch
):
    """Giving up is tried again until another thread can be started, and limits hold meanwhile."""
    begin, refused, is_given_up = threading.Thread.start, [], []

    def refuse(thread):
        if is_given_up and thread.name.startswith("kuyruk-pool") and len(refused) < 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    stuck, busy = (app.task(queue, max_run_time=0.1)(f) for f in (get_stuck, spin))
    worker = start(app, threads=2, grace=0.1)
    # From here on: the worker's own threads have been started.
    is_given_up.append(True)
    for task in (stuck, busy):
        with pytest.raises(kuyruk.RemoteException, match="longer than its max_run_time"):
            task.send_to_queue(wait_result=PATIENCE)
    assert len(refused) == 2 and worker.stats["stuck"] == 1 and worker.stats["timed_out"] == 2
    wait_until(lambda: broker.count(f"{queue}.failed") == 2)
    trap.put("the way out")
    wait_until(lambda: worker.healthy)


def hide_interruption():
    ran.append("begins")
    try:
        hold()
    except BaseException as error:
        raise RuntimeError("hidden") from error


def test_a_stop_requeues_a_task_that_hides_its_interruption(app, queue, broker, start):
    """What has interrupted a task decides about its message, whatever the task makes of it."""
    app.task(queue)(hide_interruption)()
    worker = start(app)
    wait_until(lambda: None in ran)
    worker.stop(timeout=0)
    assert (worker.stats["requeued"], worker.stats["failed"]) == (1, 0)
    assert (broker.count(queue), broker.count(f"{queue}.failed")) == (1, None)


def test_a_task_sees_how_its_connection_was_lost(make_app, proxy, queue, start):
    """A HeartbeatError has the reason in its text, and as `exc_info`."""
    seen = []

    def look():
        try:
            hold()
        except kuyruk.HeartbeatError as error:
            seen.append((error.exc_info, str(error)))
            raise

    app = make_app(proxy.url)
    look.__qualname__ = look.__name__ = "hold"  # by which the worker finds it
    app.task(queue)(look)()
    worker = start(app)
    wait_until(lambda: ran)
    proxy.cut()
    wait_until(lambda: seen)
    [((kind, error, _), text)] = seen
    assert isinstance(error, kind) and str(error) in text
    release.set()
    wait_until(lambda: worker.stats["succeeded"])


def set_variable(number):
    before = VARIABLE.get()
    VARIABLE.set(number)
    return before


def test_a_worker_leaves_nothing_of_a_task_to_the_next(app, queue, start):
    """Each run has a context of its own, and each try fresh arguments."""
    task, drain = app.task(queue)(set_variable), app.task(queue, retry=2)(take_all_items)
    start(app, threads=1)
    before = [task.send_to_queue((n,), wait_result=SOON) for n in range(3)]
    assert before == ["nobody's"] * 3
    assert drain.send_to_queue(([1, 2],), {"more": {"items": [3]}}, wait_result=SOON) == 8


def fail_large(how):
    fail_with_large_locals({"fails": lambda: 1 / 0, "timeout": spin}[how])


@pytest.mark.parametrize("how", ["fails", "timeout"])
def test_a_worker_frees_the_frames_of_a_failed_task_at_once(how, app, queue, start):
    """The locals of a failed task are freed at once: the garbage collector is off here."""
    task = app.task(queue, max_run_time=0.05, retry=1)(fail_large)
    worker = start(app, threads=1)
    logging.getLogger("kuyruk").disabled = True  # pytest keeps what is logged
    try:
        with no_garbage_collection():
            for n in range(3):
                with pytest.raises(kuyruk.RemoteException):
                    task.send_to_queue((how,), wait_result=SOON)
                wait_until(lambda n=n: worker.stats["failed"] + worker.stats["timed_out"] == n + 1)
                wait_until(lambda: not large, SOON)
    finally:
        logging.getLogger("kuyruk").disabled = False


def log_for_ever():
    logging.getLogger("of the user").warning("a line")


def test_stuck_tasks_that_hold_the_log_are_each_settled_and_a_stop_ends(app, queue, broker, start):
    """A log that blocks costs the threads that are in it: tasks are settled, and a stop ends."""
    go_on = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: go_on.wait(PATIENCE)  # a pipe that nobody reads
    app.task(queue, max_run_time=0.1)(log_for_ever)
    worker = start(app, threads=2, grace=0.1)
    # Both threads get stuck in it, and so does each thread of ours that would log itself.
    logging.getLogger().addHandler(handler)
    try:
        for n in range(2):
            broker.publish(queue, body(id=f"x {n}", function="log_for_ever"))
        wait_until(lambda: worker.stats["timed_out"] == 2 and broker.count(f"{queue}.failed") == 2)
        assert not worker.healthy
    finally:
        # The log goes on, and so `start` can stop the worker.
        go_on.set()
        logging.getLogger().removeHandler(handler)


# --- Worker: what ran when a process died ------------------------------------


class Notes(kuyruk.Journal):
    """A journal that keeps the names of the calls, in `calls`."""

    def __init__(self, **crashes):
        self.crashes, self.calls = crashes, []

    def begin(self, id):
        self.calls.append("begin")

    def end(self, id):
        self.calls.append("end")

    def clear(self, id):
        self.calls.append("clear")


def test_of_what_ran_when_a_process_died_one_runs_at_a_time_beside_other_tasks(
    app, queue, broker, start
):
    """Suspects, which ran when a process died, run one by one, and other tasks beside them."""
    app.task(queue)(hold), app.task(queue)(echo)
    suspects = [f"bad {n}" for n in range(3)]
    worker = start(app, threads=8, journal=Notes(**dict.fromkeys(suspects, (1, 0))))
    for id in suspects:
        broker.publish(queue, body(id=id, function="hold"))
    wait_until(lambda: worker.stats["suspect"] == 3 and len(ran) == 1)
    for n in range(20):
        broker.publish(queue, body(id=str(n), function="echo"))
    wait_until(lambda: worker.stats["succeeded"] == 20)
    # Of eight threads one runs a suspect; the two that wait take none.
    assert len(worker.stats["running"]) == 1 and worker.stats["waiting"] == 2 and worker.healthy
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 23)
    wait_until(lambda: worker.stats["suspect"] == 0 and worker.healthy)


CRASHES = {
    # How many processes have died while it ran, and for how many deaths it was to blame; the
    # worker's max_crashes; more headers; and whether it fails.
    "too often": (3, 2, 3, {}, True),
    "more than too often": (4, 4, 3, {}, True),
    "twice, when that is too often": (2, 1, 2, {}, True),
    "once, when that is too often": (1, 1, 1, {}, True),
    "once in company, when that is too often": (1, 0, 1, {}, False),
    "often, but never to blame": (9, 0, 3, {}, False),
    "often, but to blame once only": (9, 1, 3, {}, False),
    "not too often": (2, 2, 3, {}, False),
    "in a quorum queue, which counts itself": (9, 9, 3, {"x-delivery-count": 9}, False),
}


@pytest.mark.parametrize(
    ("deaths", "blames", "limit", "headers", "fails"), CRASHES.values(), ids=CRASHES.keys()
)
def test_a_message_that_brought_processes_down(
    deaths, blames, limit, headers, fails, app, queue, broker, start
):
    """A message fails after `max_crashes` deaths, if it was to blame for all of them but one.

    It isn't blamed for a death at which other suspects ran, too. A quorum queue counts by itself.
    """
    app.task(queue)(echo), broker.declare(f"{queue}.2")
    journal = Notes(bad=(deaths, blames))
    start(app, max_crashes=limit, journal=journal)
    broker.publish(
        queue, body(id="bad", function="echo", args=[5]), reply_to=f"{queue}.2", headers=headers
    )
    reply = json.loads(broker.take(f"{queue}.2").body)
    if fails:
        failed, kind = failure(broker, queue), "kuyruk.exceptions.Crashed"
        assert (reply["exception"]["type"], failed["exception"]) == (kind, kind)
        assert failed["value"].startswith(f"{deaths} worker processes have died")
    else:
        assert reply["result"] == 5 and broker.count(f"{queue}.failed") is None
    expected = ["clear"] if fails else ["begin", "clear", "end"]
    wait_until(lambda: len(journal.calls) == len(expected))
    assert journal.calls == expected


def test_a_redelivered_message_is_asked_about_before_it_runs(app, queue, broker, start):
    """A redelivered message is asked about: it may be here before the news of a death."""
    app.task(queue)(echo), broker.declare(queue)
    journal = Notes()
    # Its `crashes` are empty: the news isn't here yet, but the supervisor knows.
    journal.count = lambda id: (3, 2)
    broker.publish(queue, body(id="bad", function="echo", args=["bad"]))
    broker.channel.basic.get(queue).nack(requeue=True)
    broker.publish(queue, body(id="new", function="echo", args=["new"]))
    start(app, journal=journal)
    assert failure(broker, queue)["value"].startswith("3 worker processes have died")
    wait_until(lambda: ran)
    assert ran == [("new",)]


def test_a_message_that_a_quorum_queue_counts_is_no_suspect(app, queue, broker, start):
    """A message that its quorum queue counts runs beside others: the queue has its own limit."""
    app.task(queue)(hold), app.task(queue)(echo), broker.declare(f"{queue}.2")
    worker = start(app, threads=2, journal=Notes(bad=(1, 1)))
    broker.publish(queue, body(function="hold"))
    wait_until(lambda: ran)
    headers = {"x-delivery-count": 1}
    broker.publish(queue, body(id="bad", function="echo"), headers=headers, reply_to=f"{queue}.2")
    assert broker.take(f"{queue}.2") and worker.stats["running"] and ran == [None, ()]


JOURNALS = {
    # What the task does in each of its runs, and the calls of the journal.
    "returns": ([5], ["begin", "clear", "end"]),
    "raises": ([ValueError()], ["begin", "clear", "end"]),
    "rejects": ([kuyruk.Reject(), 5], ["begin", "clear", "end"] * 2),
    "raises what a stop does": ([kuyruk.Shutdown(), 5], ["begin", "end", "begin", "clear", "end"]),
    "is given up": ([lambda: trap.get()], ["begin", "end", "clear"]),
}


@pytest.mark.parametrize(("steps", "calls"), JOURNALS.values(), ids=JOURNALS.keys())
def test_a_journal_is_told_of_each_run_of_a_task_that(steps, calls, app, queue, broker, start):
    """A journal notes each begin and end, and forgets a message once it has ended for good."""
    app.task(queue, max_run_time=0.3)(play)
    script[:] = list(steps)
    journal = Notes(x=(1, 0))
    start(app, threads=2, grace=0.1, journal=journal)
    broker.publish(queue, body(function="play"))
    wait_until(lambda: len(journal.calls) == len(calls) and not script)
    assert journal.calls == calls
    assert broker.count(queue) == 0


@pytest.mark.usefixtures("frequent_switches")
def test_no_two_suspects_run_at_once(app, queue, broker, start):
    """Of twenty suspects among eighty others, on four threads, no two run at once."""
    now, most = [], []

    def look_around_suspects(id):
        now.append(id)
        time.sleep(0.01)
        most.append(sum(each.startswith("bad") for each in now))
        now.remove(id)

    look_around_suspects.__qualname__ = look_around_suspects.__name__
    app.task(queue)(look_around_suspects), broker.declare(queue)
    journal = Notes(**{f"bad {n}": (1, 0) for n in range(20)})
    for n in range(20):
        # One suspect among four others, twenty times: they meet at each thread.
        for id in (f"bad {n}", *[f"good {n}.{m}" for m in range(4)]):
            broker.publish(queue, body(id=id, function="look_around_suspects", args=[id]))
    worker = start(app, threads=4, prefetch=20, journal=journal)
    wait_until(lambda: worker.stats["succeeded"] == 100)
    assert max(most) == 1 and len(most) == 100


@pytest.mark.parametrize("id", [None, "x" * 300])
def test_a_message_may_be_a_suspect_though_its_id_is_missing_or_long(id, app, queue, broker, start):
    """Deaths are counted by the first 255 characters of the id, or by a hash of the body."""
    app.task(queue)(echo)
    data = body(function="echo") if id is None else body(id=id, function="echo")
    data = json.dumps({**json.loads(data), "id": id}).encode()
    key = id[:255] if id else "sha256:" + hashlib.sha256(data).hexdigest()
    start(app, journal=Notes(**{key: (3, 3)}))
    broker.publish(queue, data)
    assert (failure(broker, queue)["exception"], ran) == ("kuyruk.exceptions.Crashed", [])


def test_the_latest_deaths_count_when_a_suspect_is_about_to_run(
    app, queue, broker, start, monkeypatch
):
    """`count` is asked when a suspect is about to run: `crashes` may be too old."""
    monkeypatch.setattr(Notes, "count", lambda self, id: (3, 3))
    app.task(queue)(echo)
    start(app, journal=Notes(bad=(1, 0)))
    broker.publish(queue, body(id="bad", function="echo"))
    assert (failure(broker, queue)["exception"], ran) == ("kuyruk.exceptions.Crashed", [])


def test_a_stop_at_the_moment_of_resuming_is_not_overlooked(app, queue, start, monkeypatch):
    """A stop that comes while the supervisor resumes, and is about to ask the broker, is seen."""

    def stop_first(worker):  # in the supervisor, just before its request for consuming
        monkeypatch.setattr(kuyruk, "TICK", 2 * PATIENCE)  # or it would look in a second, anyway
        worker.stop(wait=False)
        return first_prefetch(worker)

    load, first_prefetch = [9.0], kuyruk.Worker._first_prefetch
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0), raising=False)
    app.task(queue)(echo)
    worker = start(app, max_load=1)
    wait_until(lambda: worker._paused)
    monkeypatch.setattr(kuyruk.Worker, "_first_prefetch", stop_first)
    load[0] = 0.0
    assert worker.join(PATIENCE), "it goes on"


def test_a_journal_is_not_told_of_what_is_handed_back(app, queue, broker, start):
    """A suspect that a stop hands back unrun leaves no trace in the journal."""
    app.task(queue)(hold)
    journal = Notes(bad=(1, 0), worse=(1, 0))
    worker = start(app, threads=2, journal=journal)
    broker.publish(queue, body(id="bad", function="hold", args=["first"]))
    wait_until(lambda: ran == ["first"])
    broker.publish(queue, body(id="worse", function="hold", args=["bad"]))
    wait_until(lambda: worker.stats["suspect"] == 2)
    stopping = background(worker.stop)
    # The one that waited is back in the queue, the other still runs.
    wait_until(lambda: broker.count(queue) == 1)
    release.set()
    stopping.result(PATIENCE)
    assert journal.calls == ["begin", "clear", "end"]
    assert ran == ["first"]
    assert broker.count(queue) == 1


@contextlib.contextmanager
def logging_with(emit):
    """Have each of kuyruk's records handled by this function in a `with` block."""
    handler, log = logging.Handler(), logging.getLogger("kuyruk")
    # Not as `emit`, which is called with the handler's lock: one that blocks would block all.
    handler.handle, before = emit, log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def test_what_was_set_aside_belongs_to_the_thread_that_takes_it_next(app, queue, broker, start):
    """A thread that has a suspect wait, and comes back late, doesn't end the run of who took it
    meanwhile.

    1. A pool thread: has "bad 1" wait, since another suspect runs, and logs that; the log blocks.
    2. The other suspect: ends, and its thread takes "bad 1" and runs it.
    3. The first thread: comes back from the log. It must not take "bad 1" for its own.
    """
    blocked, go_on = threading.Event(), threading.Event()

    def block(record):
        if "waits: it is running here" in record.getMessage():
            blocked.set()
            go_on.wait(PATIENCE)

    app.task(queue)(get_stuck)
    worker = start(app, threads=3, journal=Notes(**{f"bad {n}": (1, 0) for n in range(3)}))
    broker.publish(queue, body(id="bad 0", function="get_stuck", args=[0]))
    wait_until(lambda: ran == [0])
    with logging_with(block):
        broker.publish(queue, body(id="bad 1", function="get_stuck", args=[1]))
        assert blocked.wait(PATIENCE), "step 1 didn't come"
        trap.put(None)  # step 2
        wait_until(lambda: ran == [0, 1])
        go_on.set()  # step 3
        wait_until(lambda: worker._pool._idle == 2)
    assert [each["id"] for each in worker.stats["running"]] == ["bad 1"]
    for n in (1, 2):  # the same message once more, and another suspect
        broker.publish(queue, body(id=f"bad {n}", function="get_stuck", args=[n]))
    pool = worker._pool
    wait_until(lambda: worker.stats["received"] == 4 and len(pool._quarantine) == 1)
    wait_until(lambda: (len(pool._waiting), pool._idle) == (0, 2))  # both have been looked at
    assert (ran, len(pool._quarantine)) == ([0, 1], 1)


@pytest.mark.parametrize("runs_from", [0, 1], ids=["the other", "it"])
def test_a_queue_that_is_deleted_during_a_pause_costs_no_task_anything(
    runs_from, app, queue, broker, start, monkeypatch
):
    """A queue that is deleted while nothing consumes it is declared again after the pause."""
    load = [0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0), raising=False)
    # How often it looks at the load: once a second, otherwise.
    monkeypatch.setattr(kuyruk, "TICK", 0.05)
    queues = [queue, f"{queue}.2"]
    app.task(queue)(hold)
    worker = start(app, queues, max_load=1)
    broker.publish(queues[runs_from], body(function="hold"))
    wait_until(lambda: ran)
    load[0] = 9.0
    wait_until(lambda: worker._paused)
    broker.delete(queues[1])
    load[0] = 0.0
    wait_until(lambda: not worker._paused and worker.healthy and broker.count(queues[1]) == 0)
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 1)
    assert ran == [None] and worker.stats["lost"] == 0


def test_an_owner_or_a_log_that_raises_anything_stops_nothing(app, queue, broker, start):
    """Whatever `on_change` or a log handler raises costs no thread, no message and no stop."""

    def fail(*_):
        raise NoCommonError

    app.task(queue, max_run_time=0.1)(get_stuck), app.task(queue)(echo), app.task(queue)(fail_at)
    worker = app.worker(threads=2, grace=0.1)
    worker.on_change = fail
    with logging_with(fail):
        worker.start()
        wait_until(lambda: worker.healthy)
        broker.publish(queue, body(id="x", function="get_stuck"))
        wait_until(lambda: worker.stats["timed_out"] == 1)
        for n in range(10):
            broker.publish(queue, body(id=f"{n}", function="echo", args=[n]))
            broker.publish(queue, body(id=f"f {n}", function="fail_at", args=[n]))
        wait_until(lambda: worker.stats["succeeded"] == 10 and worker.stats["failed"] == 10)
        trap.put(None)
        wait_until(lambda: worker.healthy)
        # Two, and one in the place of the thread that was stuck.
        assert len(pool_threads()) <= 3
        assert background(worker.stop).result(SOON) is None
    assert broker.count(queue) == 0


@pytest.mark.parametrize("ask", [lambda w: w.stats, lambda w: w.drop()], ids=["stats", "drop"])
def test_a_signal_handler_may_stop_a_worker_whose_numbers_are_being_asked_for(
    ask, app, queue, start, monkeypatch
):
    """A stop doesn't wait in a thread that is inside `stats` or `drop`, with the pool's lock."""
    app.task(queue)(echo)
    worker = start(app)

    class InsideOfTheLock:
        """Stands for a signal that comes while the running tasks are looked at, with the lock."""

        def __iter__(self):
            worker.stop()
            return iter(())

    monkeypatch.setattr(worker._pool, "running", InsideOfTheLock())
    asked = background(ask, worker)
    asked.result(SOON)
    monkeypatch.undo()
    assert worker.join(PATIENCE)


def test_a_log_that_blocks_makes_a_worker_unhealthy_and_holds_up_no_message(
    app, queue, broker, start, monkeypatch
):
    """A thread that doesn't come back from its log is missing, though nothing is stuck."""
    # Twice what the reader may take for a turn: it is asked for its last one, too.
    monkeypatch.setattr(kuyruk, "STALLED", 2 * kuyruk.TICK)
    go_on = threading.Event()

    def block(record):
        if " succeeded in " in record.getMessage():
            go_on.wait(PATIENCE)

    task = app.task(queue)(echo)
    worker = start(app, threads=2)
    with logging_with(block):
        assert task.send_to_queue((1,), wait_result=PATIENCE) == 1
        wait_until(lambda: not worker.healthy)
        assert (worker.stats["stuck"], worker._pool.held, broker.count(queue)) == (0, 0, 0)
        go_on.set()
        wait_until(lambda: worker.healthy)


#: What a worker has lost, as an attribute and the value that it has then.
LOST_THREADS = {
    "a pool thread": lambda worker: (worker._pool, "_loops", worker._pool._loops - 1),
    "the supervisor": lambda worker: (worker, "_supervisor", threading.Thread()),
    "the watch": lambda worker: (worker._pool._watch, "_thread", threading.Thread()),
    "the settler": lambda worker: (worker._pool._settler, "_thread", threading.Thread()),
}


@pytest.mark.parametrize("lost", LOST_THREADS.values(), ids=LOST_THREADS)
def test_a_worker_that_lacks_a_thread_is_unhealthy(lost, app, queue, start, monkeypatch):
    """`healthy` asks for each thread of a worker: none is trusted to live for ever."""
    worker = start(app, [queue])
    with monkeypatch.context() as patch:
        patch.setattr(*lost(worker))
        assert not worker.healthy
    assert worker.healthy


# --- A broker in trouble -----------------------------------------------------


def test_a_memory_alarm_bounds_sends_until_it_is_over(make_app, queue):
    """A send during a memory alarm raises in time, and names it; after it sends work again."""
    with RabbitmqNode() as node:
        task = make_app(node.url, RABBIT_PUBLISH_TIMEOUT=1).task(queue)(echo)
        task()
        node.ctl("set_vm_memory_high_watermark", "0.000001")

        def is_blocked():
            with takes(0, 1 + SOON):
                try:
                    return task()
                except kuyruk.BrokerError as error:
                    return "alarm" in str(error)

        # RabbitMQ needs a moment to notice, and another to say so.
        wait_until(is_blocked)
        node.ctl("set_vm_memory_high_watermark", "0.6")
        wait_until(lambda: not is_blocked())


def test_messages_survive_the_death_of_the_broker(make_app, queue, start):
    """Confirmed messages outlive a killed broker, and a send that waits meanwhile arrives."""
    with RabbitmqNode() as node:
        task = make_app(node.url, RABBIT_PUBLISH_TIMEOUT=PATIENCE).task(queue)(echo)
        worker = start(task.kuyruk, [f"{queue}.2"], reconnect_interval=0.2)
        task.kuyruk.send_tasks_to_queue(task.subtask((n,)) for n in range(100))
        # RabbitMQ 3.10 forgets a queue that was declared just before its death.
        node.ctl("eval", "mnesia:dump_log().")
        node.kill()
        wait_until(lambda: not worker.healthy)
        sending = background(task.send_to_queue, (100,), host="2")
        node.start()
        sending.result(PATIENCE)
        start(task.kuyruk)
        wait_until(lambda: {(n,) for n in range(101)} <= set(ran))
        worker.stop()


@pytest.mark.parametrize("kind", ["a send", "a call"])
def test_a_connection_that_has_vanished_fails_no(kind, make_app, url, proxy, queue, broker, start):
    """The first send or call that waits on a dead connection has it replaced, and arrives."""
    start(make_app(url).task(queue)(echo).kuyruk)
    task = make_app(proxy.url, RABBIT_PUBLISH_TIMEOUT=4).task(queue)(echo)
    send = task if kind == "a send" else lambda n: task.send_to_queue([n], wait_result=PATIENCE)
    send(1)
    proxy.swallow()  # its heartbeats are missed after 120 seconds
    send(2)
    wait_until(lambda: ran == [(1,), (2,)])
    assert proxy.accepted == 2


@pytest.fixture
def impatient(node):
    """A node whose consumer_timeout is 1 second, for channels that are opened meanwhile."""
    setting = "[application:set_env(rabbit, K, V) || {K, V} <- "
    setting += "[{channel_tick_interval, %d}, {consumer_timeout, %d}]]."
    node.ctl("eval", setting % (200, 1000))
    yield node
    node.ctl("eval", setting % (60_000, 1_800_000))


def test_a_task_that_outlives_the_consumer_timeout_is_named_each_time(
    impatient, make_app, queue, start, caplog, monkeypatch
):
    """The task that RabbitMQ has taken away after its consumer_timeout is named, with what to do.

    In a quorum queue: RabbitMQ 4.3 has it for those only, and cancels the consumer.
    """
    monkeypatch.setattr(kuyruk, "LEAST_CONSUMER_TIMEOUT", 0.5)
    app = make_app(impatient.url, QUEUE_ARGUMENTS={"x-queue-type": "quorum"})
    task = app.task(queue)(hold)
    worker = start(app, threads=2)
    for number, id in enumerate(("older", "newer"), 1):
        task.send_to_queue(id=id)
        wait_until(lambda number=number: len(ran) >= number)
    pattern = (
        rf"Task test_kuyruk.hold \[(\w+)] from '{queue}' was in hand for .* consumer_timeout: "
    )
    pattern += ".*max_run_time"
    # Twice: once for each time that messages were delivered and taken away.
    wait_until(lambda: len(re.findall(pattern, caplog.text)) >= 2)
    # The one that was in hand for the longest, not the other that it took along.
    assert re.search(pattern, caplog.text)[1] == "older"
    assert "HeartbeatError" in ran and worker.stats["lost"] >= 1
    release.set()
    wait_until(lambda: worker.stats["succeeded"] == 2 and worker.healthy)
    with app.channel() as channel:
        channel.queue.delete(queue)


@pytest.mark.parametrize(
    ("options", "own", "timeout"),
    [
        ({"max_run_time": 3600}, {}, 2 * (3600 + 5) * 1000),
        ({"max_run_time": 3600, "retry": 1}, {}, 2 * (7200 + 5) * 1000),
        ({"max_run_time": 3600}, {"x-consumer-timeout": 7}, 7),
        ({"max_run_time": 60}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_queue_whose_tasks_may_take_long_is_declared_with_a_consumer_timeout(
    options, own, timeout, make_app, node, queue
):
    """A quorum queue is declared with twice the time that its longest task may take, if that is
    long.

    It is the sum of all tries and the grace. The application's own argument wins.
    """
    app = make_app(node.url, QUEUE_ARGUMENTS={"x-queue-type": "quorum", **own})
    app.task(queue, **options)(echo)()
    rows = [line.split("\t") for line in node.ctl("list_queues", "name", "arguments").splitlines()]
    [arguments] = [row[1] for row in rows if row[0] == queue]
    with app.channel() as channel:
        channel.queue.delete(queue)
    declared = re.findall(r'"x-consumer-timeout",(\d+)', arguments)
    assert declared == ([] if timeout is None else [str(timeout)])


def test_classic_queues_take_tasks_that_may_take_long_too(app, queue, broker):
    """A classic queue is declared without a consumer_timeout: RabbitMQ 4.3 refuses it one."""
    app.task(queue, max_run_time=3600)(echo)()
    assert broker.count(queue) == 1


def test_a_queue_that_cannot_be_declared_says_why(make_app, url, queue):
    """The error of a send says which argument RabbitMQ has refused."""
    with pytest.raises(kuyruk.BrokerError, match="x-max-length"):
        make_app(url, QUEUE_ARGUMENTS={"x-max-length": -1}).task(queue)(echo)()


def test_a_broker_that_stands_still_bounds_sends(make_app, queue):
    """A send to a broker that stands still raises in time; sends work again when it goes on."""
    with RabbitmqNode() as node:
        task = make_app(node.url, RABBIT_PUBLISH_TIMEOUT=1).task(queue)(echo)
        task()
        node.pause()
        with takes(0, 1 + SOON), pytest.raises(kuyruk.BrokerError):
            task()
        node.resume()
        task()


def test_a_stop_waits_in_a_thread_that_has_the_identity_of_one_that_ended(offline):
    """A thread of the application isn't taken for one of the worker's, where a stop doesn't wait.

    The operating system reuses the identities of threads: a list of those of the worker's would
    name another's by and by.
    """
    pool, seen = offline.worker()._pool, []
    pool._closed = True  # its loop ends at once, and its thread with it

    def run(function):
        thread = threading.Thread(target=lambda: seen.append((threading.get_ident(), function())))
        thread.start()
        thread.join()

    run(pool._loop)
    for _ in range(100):
        run(lambda: pool.is_this_thread_needed)
    [(ident, _), *others] = seen
    assert ident in dict(others), "this system reuses no identities: the test says nothing"
    assert {is_needed for _, is_needed in others} == {False}


def test_a_task_may_ask_whether_its_worker_has_stopped_and_then_stop_it(app, queue, start):
    """A pool thread that has called `join` still doesn't wait for itself in `stop`."""
    worker = start(app.task(queue)(play).kuyruk)
    script[:] = [lambda: worker.join(0) or worker.stop()]
    app.task(queue)(play)()
    assert worker.join(SOON)


@pytest.fixture
def importing(app, queue, broker, tmp_path, monkeypatch):
    """A message is in the queue for a task whose module gets stuck when it is imported."""
    package = f"package_{uuid.uuid4().hex}"
    # Stuck in the first line: its task isn't there before that is over.
    later = (
        f"import test_kuyruk; test_kuyruk.get_stuck('import')\nfrom {package} import app\n"
        "@app.task\ndef f(): test_kuyruk.ran.append('runs')\n"
    )
    make_package(tmp_path, package, later=later)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(package).app = app
    app.task(queue)(types.FunctionType(echo.__code__, {"__name__": package}))
    broker.declare(queue)
    broker.publish(queue, body(module=f"{package}.later", function="f"))


@pytest.mark.parametrize("grace", [0.1, SOON])
@pytest.mark.usefixtures("importing")
def test_what_is_interrupted_during_its_import_does_not_begin(
    grace, app, queue, broker, start, caplog
):
    """A task that a stop has handed back while its module was imported doesn't begin after that."""
    caplog.set_level(logging.INFO)
    worker = start(app, grace=grace)
    wait_until(lambda: ran == ["import"])
    stopping = background(worker.stop, timeout=0)
    wait_until(lambda: ("is stuck" if grace < 1 else "interrupting 1") in caplog.text)
    trap.put("the way out")
    # Its thread was given up, with the short grace; or comes back within the long one.
    stopping.result(PATIENCE)
    wait_until(lambda: not pool_threads())
    assert ran == ["import"] and (worker.stats["requeued"], broker.count(queue)) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
@pytest.mark.parametrize(
    "faults",
    [
        ("child killed", "worker stopped", "half-open"),
        ("queue deleted, cached", "connections closed", "broker killed"),
    ],
    ids="; ".join,
)
def test_nothing_is_lost_whatever_fails(faults):
    """A part of `make chaos`, real senders and workers with an account of messages, loses none."""
    options = [word for fault in faults for word in ("--only", fault)]
    ended = subprocess.run(
        [sys.executable, "tools/chaos.py", "--quick", "--seed", "3", *options],
        cwd=HERE, capture_output=True, text=True, timeout=TEST_TIMEOUT,
    )  # fmt: skip
    assert ended.returncode == 0 and "No violations" in ended.stdout, ended.stdout + ended.stderr


def test_a_broker_that_answers_late_delivers_no_more_than_the_prefetch(
    app, queue, broker, start, monkeypatch
):
    """The sign of life that the reader asks a late broker for leaves the next consumer's prefetch
    alone.

    It was a Basic.Qos once, and came between the consumer's own and its Basic.Consume.
    """
    request, on_frame, answers = kuyruk._ConsumerChannel.request, kuyruk._Channel.on_frame, []

    def note_frame(channel, frame):
        answers.append(frame.name)
        on_frame(channel, frame)

    def request_late(channel, frame, until):
        answer = request(channel, frame, until)
        if frame.name == "Basic.Qos":  # as if the reader had found that this answer is late
            channel.ping()
        return answer

    monkeypatch.setattr(kuyruk._ConsumerChannel, "request", request_late)
    monkeypatch.setattr(kuyruk._Channel, "on_frame", note_frame)
    task = app.task(queue)(hold)
    app.send_tasks_to_queue(task.subtask() for _ in range(5))
    worker = start(app, threads=1, prefetch=1)
    wait_until(lambda: ran and worker.healthy)
    assert (worker.stats["received"], broker.count(queue)) == (1, 4)
    wait_until(lambda: "Channel.FlowOk" in answers)  # the broker answers: it is a sign of life


def test_channels_come_and_are_answered_while_the_reader_looks_whether_the_broker_lives(offline):
    """Other threads add channels, and get answers, while the reader looks at all channels."""
    connection = kuyruk._Connection("127.0.0.1", 1, offline.config)

    class Channel:
        looks = pings = 0

        @property
        def waits(self):
            self.looks += 1
            connection.channels[len(connection.channels) + 1] = Channel()  # another thread's
            return self is second and self.looks == 1  # its answer comes before the next look

        def ping(self):
            self.pings += 1

    connection.channels[1], connection.channels[2] = first, second = Channel(), Channel()
    # As if an answer were due since before the last byte came.
    connection._owes_since, connection.stepped_at = connection.read_at, connection.read_at + 1
    try:
        connection._check_broker(connection.stepped_at)
    finally:
        connection.hang_up()
    assert (first.pings, second.pings) == (0, 1)


def consumer_channel(connection):
    return kuyruk._ConsumerChannel(connection, "q", kuyruk.Config(), print, print)


@pytest.mark.parametrize(
    ("make", "name", "look"),
    [
        (consumer_channel, "consumers", lambda channel: channel.is_full),
        (kuyruk._ConfirmChannel, "in_flight", lambda channel: channel.on_lost()),
    ],
    ids=["a channel is full", "a channel is lost"],
)
def test_other_threads_may_add_to_what_the_reader_looks_at(make, name, look, offline):
    """The reader looks at copies: no dictionary changes its size during the iteration."""

    class Entry:
        def __getattr__(self, name):
            entries[len(entries) + 1] = Entry()  # another thread's
            return 1

    connection = kuyruk._Connection("127.0.0.1", 1, offline.config)
    try:
        channel = make(connection)
        entries = getattr(channel, name)
        entries[1] = Entry()
        look(channel)
    finally:
        connection.hang_up()
    assert len(entries) > 1


# --- The command line (kuyruk_worker.py) -------------------------------------

#: An address where nothing listens.
NOWHERE = "amqp://127.0.0.1:1/"


def cli_environment(url):
    """Return the environment of a worker process. url: for applications that read it; or None."""
    env = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    return env if url is None else {**env, "KUYRUK_RABBIT_URL": url}


#: What starts the command line. Warnings are errors there, too.
CLI = ("-W", "error", "-m", "kuyruk_worker")


def cli_with(**constants):
    """Return the command line with other constants: what takes long for users doesn't here."""
    code = "import sys, kuyruk_worker as module\n"
    code += "".join(
        f"assert module.{name}; module.{name} = {value}\n" for name, value in constants.items()
    )
    return ("-W", "error", "-c", f"{code}sys.exit(module.main())")


def lives(group):
    """Return whether a process of the group lives. One that has ended may stay there until init
    looks after it (Linux)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    return True
        return not Path("/proc/self").exists()
    return False


def run_cli(folder, *args, url=NOWHERE, entry=CLI):
    """Run a command line that ends by itself; return what it printed. None of its processes is
    left."""
    command, out = [sys.executable, *entry, *args], subprocess.PIPE
    options = {"cwd": folder, "env": cli_environment(url), "stdout": out, "stderr": out}
    # A group of its own, so that whatever it leaves can be seen, and killed.
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            output = process.communicate(timeout=PATIENCE * 2)
            wait_until(lambda: not lives(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, *output)


class CliWorker:
    """The processes of a worker, and what they have printed. `process` is the supervisor."""

    def __init__(self, folder, *args, url, entry=CLI):
        self._log = folder / f"worker-{uuid.uuid4().hex}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *entry, *args],
                cwd=folder, env=cli_environment(url), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def text(self):
        return self._log.read_text()

    @property
    def pids(self):
        """The processes that consume, or have consumed, in the order in which they began."""
        found = re.findall(r" (\d+) kuyruk-supervisor: Consuming ", self.text)
        return list(dict.fromkeys(map(int, found)))

    @property
    def lives(self):
        return lives(self.process.pid)

    def wait_for_processes(self, count):
        """Wait until so many have begun to consume; return the pid of the last."""
        try:
            return wait_until(lambda: self.pids[count - 1 : count])[0]
        except AssertionError:
            code = self.process.poll()
            pytest.fail(f"less than {count} processes (exit code {code}): {self.text}")

    def wait_for(self, *words):
        """Wait until all of these words are printed."""
        missing = lambda: [word for word in words if word not in self.text]  # noqa: E731
        # The first process may have died: the others print what is waited for a moment later.
        has_ended = lambda: self.process.poll() is not None and not self.lives  # noqa: E731
        with contextlib.suppress(AssertionError):  # the one below says more
            wait_until(lambda: has_ended() or not missing())
        assert missing() == [], f"exit code {self.process.poll()}: {self.text}"

    def send(self, number):
        self.process.send_signal(number)

    def send_all(self, number):
        """Send a signal to the whole group, as a terminal does, and systemd."""
        os.killpg(self.process.pid, number)

    def exit_code(self):
        """Wait for its end and return its exit code. No process of it is left then."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGUSR1)
            time.sleep(1)  # for the stacks
            pytest.fail(f"the worker doesn't end: {self.text}")
        if code not in (0, 1, 2, 3):  # it hasn't waited for its children
            wait_until(lambda: not self.lives)
        assert not self.lives, self.text
        return code

    def end(self, code=0):
        """Send SIGTERM, and wait for its end, with this exit code."""
        self.send(signal.SIGTERM)
        assert self.exit_code() == code, self.text

    def stop(self):
        """As `end`, without a traceback in all that it has printed."""
        self.end()
        assert "Traceback" not in self.text

    def kill(self):
        """Kill whatever is left of it."""
        with contextlib.suppress(ProcessLookupError):
            self.send_all(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self.lives)


#: The application of a CliProject. What the tasks do is seen in files of its folder.
CLI_TASKS = """
import os, pathlib, re, signal, sys, time
import kuyruk

config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
here = pathlib.Path(__file__).parent

@app.task(queue=__name__)
def note(word):
    with open(here / "notes", "a") as notes:
        notes.write(f"{word}\\n")
    return word

def begin(name):
    with open(here / f"begun-{name}", "a") as file:
        file.write(f"{os.getpid()}\\n")

@app.task(queue=__name__)
def hold(name):
    begin(name)
    while not (here / "go").exists():
        time.sleep(0.01)
    note.f(name)

@app.task(queue=__name__)
def nap(name, seconds):
    time.sleep(seconds)
    note.f(name)

@app.task(queue=__name__)
def process_id():
    return os.getpid()

@app.task(queue=__name__)
def command_line():
    return " ".join(sys.argv)

@app.task(queue=__name__)
def grow(megabytes):
    app.extensions["filling"] = bytearray(os.urandom(1)) * (megabytes * 1_000_000)
    return os.getpid()

@app.task(queue=__name__)
def blocked_signals():
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))

@app.task(queue=__name__)
def die(how):
    begin(how)
    if how.startswith("exit"):
        os._exit(int(how[4:]))
    if how == "all":
        os.killpg(0, signal.SIGKILL)
    # To this thread, as what happens in it: it doesn't go on.
    signal.raise_signal(getattr(signal, how))

@app.task(queue=__name__)
def fork():
    pid = os.fork()
    if not pid:
        time.sleep(20)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@app.task(queue=__name__)
def stuck():
    begin("stuck")
    time.sleep(600)

limited = app.task(queue=__name__, max_run_time=3)(stuck.f)

@app.task(queue=__name__)
def stubborn():
    begin("stubborn")
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

@app.task(queue=__name__)
def lock():
    begin("lock")
    re.match("(a+)+$", "a" * 40 + "b")  # for years, and nothing else runs meanwhile
"""


class CliProject:
    """An application in a folder, imported here, too. Its queue has the module's name."""

    def __init__(self, folder, url):
        self.folder = folder
        self.url = url
        self.name = f"cli_{uuid.uuid4().hex[:8]}"
        (folder / f"{self.name}.py").write_text(CLI_TASKS)
        self._workers = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUYRUK_RABBIT_URL", url)
            patch.syspath_prepend(str(folder))
            self.tasks = importlib.import_module(self.name)

    def worker(self, *args, url=None, **options):
        """Start a worker of the application. Perhaps it doesn't consume yet when this returns."""
        worker = CliWorker(self.folder, self.name, *args, url=url or self.url, **options)
        self._workers.append(worker)
        return worker

    def starts(self, name):
        """Return the processes in which this task has begun, one for each time."""
        path = self.folder / f"begun-{name}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def begun(self, *names):
        """Wait until these tasks have begun; return the processes in which each began last."""
        wait_until(lambda: all(map(self.starts, names)))
        return [self.starts(name)[-1] for name in names]

    def hold(self, *names):
        """Have `hold` run with each of these names; return the processes in which that is so."""
        for name in names:
            self.tasks.hold(name)
        return self.begun(*names)

    def go(self):
        """Let all tasks end that are in `hold`."""
        (self.folder / "go").touch()

    def notes(self):
        notes = self.folder / "notes"
        return notes.read_text().split() if notes.exists() else []

    def waiting(self):
        """Return how many messages in the queue nobody has."""
        with self.tasks.app.channel() as channel:
            return int(channel.queue.declare(self.name, passive=True)["message_count"])

    def close(self):
        for worker in self._workers:
            worker.kill()
        with self.tasks.app.channel() as channel:
            for queue in (self.name, f"{self.name}.failed", f"{self.name}.{socket.gethostname()}"):
                channel.queue.delete(queue)
        self.tasks.app.close()
        del sys.modules[self.name]


@pytest.fixture
def project(tmp_path, url):
    project = CliProject(tmp_path, url)
    yield project
    project.close()


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory, url):
    """A project with one worker, at DEBUG, for the tests that leave it running."""
    project = CliProject(tmp_path_factory.mktemp("cli"), url)
    worker = project.worker(
        "-t", "2", "-q", project.name, "-q", f"{project.name}.localhost", "-l", "debug"
    )
    worker.wait_for("Consuming")
    yield project, worker
    project.close()


@pytest.fixture
def shared(shared_project):
    """A project with one worker, for the tests that leave it running."""
    yield shared_project
    shared_project[0].tasks.app.close()


def wait_for_another_wish():
    """Wait until a signal to stop is a second one: what comes sooner is the same wish."""
    time.sleep(kuyruk_worker.ONE_WISH + 0.2)


@pytest.fixture
def cli_worker():
    """cli_worker(folder, module, ..., url=...) is a CliWorker, killed after the test."""
    workers = []

    def start(*args, **options):
        workers.append(CliWorker(*args, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def test_cli_runs_tasks_and_says_of_what_with_what(shared):
    """The first line names application, queues and threads; a child of the supervisor runs
    tasks."""
    project, worker = shared
    assert project.tasks.note.send_to_queue(["one"], wait_result=PATIENCE) == "one"
    name, host = project.name, socket.gethostname()
    queues = f"'{name}', '{name}.{host}'"
    start = f"kuyruk {kuyruk.__version__}: worker of {name}:app for {queues} with 2 threads"
    [line] = [line for line in worker.text.splitlines() if start in line]
    assert f" INFO    {worker.pids[0]} MainThread: " in line
    assert worker.pids[0] != worker.process.pid
    assert "amqpstorm" not in worker.text  # at DEBUG, too


def test_cli_consumes_the_queue_of_this_machine(shared):
    """`-q name.localhost` is the queue that `host="localhost"` sends to."""
    project, _ = shared
    send = project.tasks.note.send_to_queue
    assert send(["here"], host="localhost", wait_result=PATIENCE) == "here"


def test_sigusr1_prints_every_stack_and_the_running_tasks(shared):
    """SIGUSR1 shows what a worker does: its counts, its running tasks, and where each thread is."""
    project, worker = shared
    project.hold("usr1")
    worker.send(signal.SIGUSR1)
    worker.wait_for("\n---\n")
    report = worker.text.partition(f"--- process {worker.pids[0]}: ")[2]
    assert "1 running\n" in report
    assert f"Task {project.name}.hold [" in report
    assert "in hold\n" in report
    for thread in ("MainThread", "kuyruk-supervisor", "kuyruk-pool_0", "kuyruk-watch"):
        assert f"\nThread {thread} (" in report
    project.go()
    wait_until(lambda: "usr1" in project.notes())


def test_sigusr2_drops_the_running_tasks(shared):
    """SIGUSR2 drops what runs; the worker goes on."""
    project, worker = shared
    # Another test that shares the worker may have let its tasks go.
    (project.folder / "go").unlink(missing_ok=True)
    project.hold("dropped")
    worker.send(signal.SIGUSR2)
    worker.wait_for("SIGUSR2: dropping 1 running task\n", "discarded")
    assert project.tasks.note.send_to_queue(["after"], wait_result=PATIENCE) == "after"
    assert "dropped" not in project.notes() and project.waiting() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_to_stop_waits_for_what_runs(project, number):
    """A signal to stop names what it waits for, takes no more messages, and ends with code 0."""
    worker = project.worker("-t", "1")
    project.hold("a")
    worker.send(number)
    worker.wait_for(f"{number.name}: stopping when what runs has ended", f"{project.name}.hold [")
    project.tasks.note("later")
    project.go()
    assert worker.exit_code() == 0, worker.text
    assert project.notes() == ["a"]
    assert project.waiting() == 1
    assert "Traceback" not in worker.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_to_stop_interrupts_and_requeues_what_runs(project, number):
    """A second signal interrupts running tasks; their messages go back, and the exit code is 3."""
    worker = project.worker()
    project.hold("a")
    worker.send(number)
    worker.wait_for(f"{number.name}: stopping when")
    wait_for_another_wish()
    worker.send(number)
    worker.wait_for(f"{number.name} again: interrupting 1 running task\n")
    assert worker.exit_code() == 3, worker.text
    assert project.notes() == []
    assert project.waiting() == 1


def test_a_process_ends_although_a_task_is_stuck(project, monkeypatch):
    """A task that no interruption ends doesn't keep the process: its message goes back."""
    monkeypatch.setenv("KUYRUK_WORKER_GRACE", "0.1")
    worker = project.worker()
    project.tasks.stuck()
    project.begun("stuck")
    worker.send(signal.SIGTERM)
    worker.wait_for("SIGTERM: stopping when")
    wait_for_another_wish()
    worker.end(3)
    assert f"{project.name}.stuck" in worker.text.partition("again: interrupting")[2]
    wait_until(lambda: project.waiting() == 1)


def test_sigquit_ends_at_once(project):
    """SIGQUIT waits for nothing; the broker has the message again."""
    worker = project.worker()
    project.tasks.stuck()
    project.begun("stuck")
    worker.send(signal.SIGQUIT)
    assert worker.exit_code() == 131
    assert worker.text.endswith("SIGQUIT: ended at once\n")
    wait_until(lambda: project.waiting() == 1)


def test_sigterm_with_20_tasks_in_progress_loses_nothing_and_runs_nothing_twice(project):
    """At SIGTERM each of fifty messages is either done or in the queue, and none runs twice."""
    # 15 are in hand and haven't begun, 15 are still in the queue.
    worker = project.worker("-t", "20", "--prefetch", "35")
    worker.wait_for("Consuming")
    project.tasks.app.send_tasks_to_queue([project.tasks.hold.subtask([str(n)]) for n in range(50)])
    wait_until(lambda: len(list(project.folder.glob("begun-*"))) == 20)
    worker.send(signal.SIGTERM)
    wait_until(lambda: project.waiting() == 30)
    project.go()
    assert worker.exit_code() == 0, worker.text
    assert len(project.notes()) == 20
    second = project.worker()
    wait_until(lambda: len(project.notes()) >= 50)
    second.stop()
    assert sorted(project.notes(), key=int) == [str(n) for n in range(50)]


@pytest.mark.parametrize("app_swallows_it", [False, True])
def test_a_signal_to_stop_during_the_import_counts(tmp_path, app_swallows_it):
    """A signal to stop ends the application's import; one that swallows it is obeyed after it."""
    handling = "except BaseException: pass" if app_swallows_it else "finally: pass"
    (tmp_path / "slow.py").write_text(f"""
import os, signal, time
import kuyruk
app = kuyruk.Kuyruk()
app.config.from_env_vars()
try:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
{handling}
""")
    ended = run_cli(tmp_path, "slow")
    assert ended.returncode == 0, ended.stderr
    assert ("worker of slow:app" in ended.stderr) is app_swallows_it
    assert ("SIGTERM: stopp" in ended.stderr) and "Traceback" not in ended.stderr


def test_sigquit_ends_an_import_that_takes_long(tmp_path):
    """SIGQUIT doesn't wait for an import."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGQUIT)\ntime.sleep(600)\n"
    )
    assert run_cli(tmp_path, "slow").returncode == 131


def test_a_signal_to_stop_ends_a_process_that_waits_for_threads_of_the_application(
    tmp_path, cli_worker
):
    """Python waits for the application's threads at its end; a signal to stop ends that."""
    (tmp_path / "tasks.py").write_text("""
import threading, time
import kuyruk
app = kuyruk.Kuyruk()
app.config.from_env_vars()
threading.Thread(target=time.sleep, args=[600]).start()
""")
    worker = cli_worker(tmp_path, "tasks", "--max-run-time", "0.01", url=NOWHERE)
    worker.wait_for("kuyruk-supervisor: Stopped")
    # The end of its run time counts as the first wish.
    wait_for_another_wish()
    worker.stop()


def test_a_task_can_terminate_a_process_that_it_has_forked(shared):
    """The worker's handlers aren't those of a task's child: SIGTERM ends it."""
    project, _ = shared
    assert project.tasks.fork.send_to_queue(wait_result=PATIENCE) == -signal.SIGTERM


def test_other_signals_during_the_import_are_answered_after_it(tmp_path, cli_worker):
    """Signals that ask for something wait for the import; the application's handlers are
    replaced."""
    # The application makes the process ignore SIGTERM, and the command line takes that back.
    (tmp_path / "early.py").write_text("""
import kuyruk, os, signal
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR2)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
app = kuyruk.Kuyruk()
app.config.from_env_vars()
""")
    worker = cli_worker(tmp_path, "early", url=NOWHERE)
    worker.wait_for(
        "Thread MainThread", "SIGUSR2: dropping 0 running tasks", "Waiting for RabbitMQ"
    )
    worker.stop()


def test_a_broker_that_is_away_at_start_is_waited_for(project, proxy):
    """A worker without a broker says so, and goes on when there is one."""
    proxy.down()
    worker = project.worker(url=proxy.url)
    worker.wait_for("WARNING", "Waiting for RabbitMQ, trying again in")
    proxy.up()
    assert project.tasks.note.send_to_queue(["back"], wait_result=PATIENCE) == "back"
    worker.stop()


#: A command line whose run time is over when there is a file "over": a busy machine may take longer
#: to start than any time that a test would wait for.
RUN_TIME_BY_FILE = """
import os, sys, time, kuyruk_worker as module
began = lambda self: 0 if os.path.exists("over") else time.monotonic()
module._Supervisor._began = property(began, lambda self, value: None)
sys.exit(module.main())
"""


def test_max_run_time_ends_the_worker_and_lets_what_runs_end(project):
    """`--max-run-time` stops as SIGTERM does."""
    worker = project.worker("--max-run-time", "1", entry=("-c", RUN_TIME_BY_FILE))
    project.hold("a")
    (project.folder / "over").touch()
    worker.wait_for("Stopping: waiting for 1 running task")
    project.go()
    assert worker.exit_code() == 0, worker.text
    assert project.notes() == ["a"]


def test_an_unexpected_failure_of_the_worker_has_its_exit_code(tmp_path):
    """A process that can't begin is tried three times, then the whole gives up with code 1."""
    (tmp_path / "broken.py").write_text("""
import kuyruk
class Broken(kuyruk.Kuyruk):
    def worker(self, *args, **kwargs):
        worker = super().worker(*args, **kwargs)
        worker.start = lambda: 1 / 0
        return worker
app = Broken()
""")
    ended = run_cli(tmp_path, "broken")
    assert ended.returncode == 1
    assert ended.stderr.count("\nZeroDivisionError: ") == 3 and "CRITICAL" in ended.stderr
    assert "supervisor: Giving up: 3 processes in a row couldn't start" in ended.stderr


# -- several processes


@pytest.mark.parametrize(
    ("key", "option"), [(None, ["-p", "3"]), ("3", []), ("2", ["--processes", "3"])]
)
def test_a_worker_has_as_many_processes_as_wanted(project, key, option, monkeypatch):
    """The command line's number of processes, or else the configuration's, run tasks."""
    if key is not None:
        monkeypatch.setenv("KUYRUK_WORKER_PROCESSES", key)
    worker = project.worker("-t", "1", *option)
    worker.wait_for_processes(3)
    # One thread each: three tasks at once are in three processes.
    assert sorted(project.hold(*"abc")) == sorted(worker.pids)
    assert worker.process.pid not in worker.pids
    project.go()
    wait_until(lambda: sorted(project.notes()) == ["a", "b", "c"])
    worker.stop()
    assert len(worker.pids) == 3
    assert not re.search(r"(?<!kuyruk-)supervisor: ", worker.text)  # it has nothing to say


#: A command line that prints what each process imports.
SPY = """
import os, sys
import kuyruk_worker
class Spy:
    def find_spec(self, name, *_):
        os.write(2, f"{os.getpid()} imports {name}\\n".encode())
sys.meta_path.insert(0, Spy())
sys.exit(kuyruk_worker.main())
"""


def test_the_supervisor_imports_neither_the_library_nor_the_application(project):
    """What the supervisor doesn't import can't break it, and is new in each process."""
    worker = project.worker("-p", "2", entry=("-c", SPY))
    worker.wait_for_processes(2)
    # To start another process it must import nothing, either.
    os.kill(worker.pids[0], signal.SIGKILL)
    worker.wait_for_processes(3)
    imports = collections.defaultdict(set)
    for pid, name in re.findall(r"^(\d+) imports (\S+)$", worker.text, re.MULTILINE):
        imports[int(pid)].add(name)
    for pid in worker.pids:  # so the spy sees them
        assert {"kuyruk", "amqpstorm", "socket", project.name} <= imports[pid]
    unwanted = ("kuyruk", "amqpstorm", "socket", "ssl", "cli_")
    assert [name for name in imports[worker.process.pid] if name.startswith(unwanted)] == []
    worker.stop()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux")
def test_the_supervisor_is_small_and_has_one_thread(project):
    """A supervisor has one thread, since it forks, and hardly more memory than Python."""
    worker = project.worker("-p", "2", entry=("-m", "kuyruk_worker"))
    worker.wait_for_processes(2)
    os.kill(worker.pids[0], signal.SIGKILL)
    worker.wait_for_processes(3)
    worker.send(signal.SIGUSR1)
    worker.wait_for(*(f"--- process {pid}: " for pid in worker.pids[1:]))
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    assert re.search(r"^Threads:\s+1$", status, re.MULTILINE)
    # No more than what it consists of, in this Python; a worker process has the library and the
    # application, too.
    code = "import os, kuyruk_worker; os.system(f'cat /proc/{os.getpid()}/status')"
    alone = resident(run_python("-c", code))
    child = resident(Path(f"/proc/{worker.pids[-1]}/status").read_text())
    assert resident(status) < min(alone + 2000, 0.75 * child)
    worker.stop()


def resident(status):
    """Return the kilobytes of memory in a process's status file."""
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_is_one_signal(project, number):
    """What a terminal sends to every process, and the supervisor passes on, is one signal."""
    worker = project.worker("-p", "2", "-t", "2")
    worker.wait_for_processes(2)
    project.hold(*"abcd")
    worker.send_all(number)
    wait_until(lambda: worker.text.count(f"{number.name}: stopping when what runs has ended") == 2)
    worker.send(signal.SIGUSR1)  # when each has answered this, the first was passed on, too
    worker.wait_for(*(f"--- process {pid}: " for pid in worker.pids))
    project.go()
    assert worker.exit_code() == 0, worker.text
    assert sorted(project.notes()) == list("abcd") and project.waiting() == 0
    # Each process got two: from the group, and from its supervisor.
    assert " again: " not in worker.text and "Traceback" not in worker.text


def test_the_second_signal_to_the_whole_group_interrupts_every_process(project):
    """The second signal to the group interrupts the tasks of each process once."""
    worker = project.worker("-p", "2", "-t", "2")
    worker.wait_for_processes(2)
    project.hold(*"abcd")
    worker.send_all(signal.SIGINT)
    wait_until(lambda: worker.text.count("SIGINT: stopping when what runs") == 2)
    worker.send(signal.SIGUSR1)  # when each has answered this, the first was passed on, too
    worker.wait_for(*(f"--- process {pid}: " for pid in worker.pids))
    wait_for_another_wish()
    worker.send_all(signal.SIGINT)
    assert worker.exit_code() == 3, worker.text
    assert worker.text.count("SIGINT again: interrupting 2 running tasks") == 2
    assert project.notes() == [] and project.waiting() == 4


@pytest.mark.parametrize("send", ["send", "send_all"])
def test_sigquit_ends_every_process_at_once(project, send):
    """SIGQUIT ends all processes, be it sent to the supervisor or to the group."""
    worker = project.worker("-p", "2", "-t", "1")
    worker.wait_for_processes(2)
    project.hold(*"ab")
    getattr(worker, send)(signal.SIGQUIT)
    assert worker.exit_code() == 131
    assert worker.text.endswith("SIGQUIT: ended at once\n")
    wait_until(lambda: project.waiting() == 2)


@contextlib.contextmanager
def ignoring(number):
    """Have what is started in a `with` block ignore the signal, as with nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_worker_that_nohup_has_started_goes_on_when_the_terminal_closes(project):
    """A signal that was ignored when the worker began stays ignored."""
    with ignoring(signal.SIGHUP):
        worker = project.worker("-p", "2")
    worker.wait_for_processes(2)
    worker.send_all(signal.SIGHUP)
    # It is answered after SIGHUP: so that had its chance.
    worker.send(signal.SIGUSR1)
    worker.wait_for(*(f"--- process {pid}: " for pid in worker.pids))
    assert project.tasks.note.send_to_queue(["here"], wait_result=PATIENCE) == "here"
    worker.stop()
    assert "SIGHUP" not in worker.text


def test_a_worker_whose_parent_ignores_sigchld_replaces_and_ends_its_processes(project):
    """A supervisor needs SIGCHLD: it doesn't inherit that this is ignored."""
    with ignoring(signal.SIGCHLD):
        worker = project.worker()
    os.kill(worker.wait_for_processes(1), signal.SIGKILL)
    worker.wait_for_processes(2)
    worker.stop()


def test_no_signal_is_blocked_in_a_task(shared):
    """The signals that are blocked for a fork aren't in the worker process."""
    project, _ = shared
    assert project.tasks.blocked_signals.send_to_queue(wait_result=PATIENCE) == []


def test_a_signal_to_stop_to_one_process_ends_that_gracefully_and_it_is_replaced(project):
    """SIGTERM to a worker process ends it when its task has ended, and another takes its place."""
    worker = project.worker("-p", "2", "-t", "1")
    worker.wait_for_processes(2)
    [pid] = project.hold("a")
    os.kill(pid, signal.SIGTERM)
    worker.wait_for("SIGTERM: stopping when what runs has ended")
    # In the other process: the first takes no more messages.
    assert project.hold("b") == [other for other in worker.pids if other != pid]
    project.go()
    worker.wait_for_processes(3)
    assert f"supervisor: Process {pid} has stopped, another one takes its place" in worker.text
    wait_until(lambda: sorted(project.notes()) == ["a", "b"])
    worker.stop()
    assert len(worker.pids) == 3


def test_processes_end_gracefully_when_their_supervisor_is_killed(project):
    """Worker processes notice the death of their supervisor, finish what runs, and end."""
    worker = project.worker("-p", "3", "-t", "1")
    worker.wait_for_processes(3)
    # One more than there are threads: it must not begin after that.
    for name in "abcd":
        project.tasks.hold(name)
    wait_until(lambda: sum(bool(project.starts(name)) for name in "abcd") == 3)
    worker.send(signal.SIGKILL)
    worker.process.wait()
    wait_until(lambda: worker.text.count("The supervising process is gone") == 3)
    assert project.waiting() == 1 and project.notes() == []
    project.go()
    wait_until(lambda: not worker.lives)
    assert len(project.notes()) == 3 and project.waiting() == 1
    assert "Traceback" not in worker.text


def test_a_stop_at_any_instant_is_clean(project):
    """A signal to stop, at whatever instant from the first on, ends the worker without a traceback.

    Before the command line has begun to handle them signals do what they do to every program.
    """

    def stop(instant):
        worker = project.worker("-p", "2")
        time.sleep(instant)
        worker.send_all(signal.SIGTERM)
        return worker.exit_code(), worker.text

    # Every 25 ms of the first 0.6 s, in which it has begun to consume; three at a time.
    for n in range(0, 24, 3):
        ends = [background(stop, at / 40) for at in (n, n + 1, n + 2)]
        for code, text in results(ends):
            assert code == 0 or (code == -signal.SIGTERM and not text), text
            # An interruption of the import may land in a destructor: then Python prints it, and it
            # comes later.
            assert "Traceback" not in text or "Exception ignored in" in text, text


#: A command line whose new processes take their time before they can handle signals.
SLOW_FORK = """
import os, sys, time
import kuyruk_worker
os.register_at_fork(after_in_child=lambda: os.write(2, b"forked\\n") and time.sleep(0.2))
sys.exit(kuyruk_worker.main())
"""


def test_a_stop_that_comes_while_a_process_is_forked_is_not_lost(project):
    """A signal between the fork and the child's own handlers reaches the child."""
    worker = project.worker(entry=("-c", SLOW_FORK))
    worker.wait_for("forked")
    worker.end()
    assert worker.text == "forked\n-c: SIGTERM: stopped before the worker began\n"


# -- processes that end


def test_a_process_that_dies_is_replaced_after_growing_pauses(project):
    """A death is logged with its cause, and the pause until the next process doubles each time."""
    worker, began = project.worker(), time.monotonic()
    for n in (1, 2, 3):
        os.kill(worker.wait_for_processes(n), signal.SIGKILL)
    worker.wait_for_processes(4)
    # It has really waited so long.
    assert time.monotonic() - began > 0.2 + 0.4 + 0.8
    pattern = r"ERROR +\d+ supervisor: Process (\d+) died while it ran nothing: killed by SIGKILL "
    pattern += r".*; .* in (\S+) s\n"
    pauses = zip(map(str, worker.pids), ("0.2", "0.4", "0.8"), strict=False)
    assert re.findall(pattern, worker.text) == list(pauses)
    worker.stop()


#: The command line whose supervisor starts processes sooner.
QUICK = cli_with(FIRST_PAUSE=0.02, LAST_PAUSE=0.2)


def test_a_process_that_can_not_even_begin_does_not_become_another_supervisor(project):
    """An exception in a new process, before it is a worker, ends that process."""
    code = """
import os, sys, kuyruk_worker as module
def hold(self):
    print("begun by", os.getppid(), flush=True)
    raise OSError("no more locks")
module._Journal.hold = hold
module.FIRST_PAUSE = module.LAST_PAUSE = 0.05
sys.exit(module.main())
"""
    worker = project.worker(entry=("-c", code))
    assert worker.exit_code() == 1
    assert set(re.findall(r"begun by (\d+)", worker.text)) == {str(worker.process.pid)}
    assert not worker.lives


def test_an_application_that_breaks_while_it_runs_is_tried_again_as_long_as_a_process_serves(
    project,
):
    """While another process serves, one that can't import the application is tried again."""
    worker = project.worker("-p", "2", entry=QUICK)
    worker.wait_for_processes(2)
    path = project.folder / f"{project.name}.py"
    path.write_text("raise RuntimeError('broken')")
    os.kill(worker.pids[0], signal.SIGKILL)
    # More often than the three times after which one without other processes gives up.
    wait_until(lambda: worker.text.count("couldn't start: exit code 2; trying again in") >= 4)
    assert project.tasks.process_id.send_to_queue(wait_result=PATIENCE) == worker.pids[1]
    path.write_text(CLI_TASKS)
    worker.wait_for_processes(3)
    worker.end()


def test_an_application_that_breaks_while_nothing_serves_is_given_up(project):
    """Without a process that serves, three starts that fail are the end, with code 2."""
    worker = project.worker(entry=QUICK)
    worker.wait_for_processes(1)
    (project.folder / f"{project.name}.py").write_text("raise RuntimeError('broken')")
    os.kill(worker.pids[0], signal.SIGKILL)
    assert worker.exit_code() == 2
    assert "supervisor: Giving up: 3 processes in a row couldn't start (exit code 2)" in worker.text
    assert worker.text.count("\nRuntimeError: broken\n") == 3  # tracebacks


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os._exit(7)", "exit code 7"),
        ("os._exit(0)", "exit code 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    ],
)
def test_an_import_that_ends_the_process_is_given_up(tmp_path, end, how):
    """An application whose import ends its process is given up after three times."""
    (tmp_path / "ends.py").write_text(f"import os, signal\n{end}\n")
    ended = run_cli(tmp_path, "ends", "-p", "2", entry=QUICK)
    assert ended.returncode == 1
    assert ended.stderr.count(f"couldn't start: {how}; trying again in") == 2
    assert f"Giving up: 3 processes in a row couldn't start ({how})" in ended.stderr


# -- stuck threads


def test_a_stuck_task_costs_no_other_task_anything(project):
    """A process with a stuck thread is replaced, and its other tasks end in it."""
    worker = project.worker("-t", "4", "--grace", "1")
    old = worker.wait_for_processes(1)
    project.tasks.hold("long")
    caller = background(project.tasks.limited.send_to_queue, wait_result=PATIENCE)
    pauses, processes = [], set()
    while len(processes) < 2 or "another process has taken its place" not in worker.text:
        began = time.monotonic()
        processes.add(project.tasks.process_id.send_to_queue(wait_result=PATIENCE))
        pauses.append(time.monotonic() - began)
    assert max(pauses) < SOON
    with pytest.raises(kuyruk.RemoteException) as caught:
        caller.result(PATIENCE)
    assert caught.value.type == "kuyruk.exceptions.Timeout"
    assert (processes, project.notes()) == (set(worker.pids), [])
    project.go()
    wait_until(lambda: not Path(f"/proc/{old}").exists())
    assert project.notes() == ["long"]
    assert project.starts("long") == project.starts("stuck") == [old]  # once each, there
    worker.send(signal.SIGTERM)
    assert worker.exit_code() == 0 and len(worker.pids) == 2, worker.text


def test_a_process_whose_threads_are_all_stuck_is_replaced(project):
    """Another process takes the messages of one whose only thread is stuck."""
    worker = project.worker("-t", "1", "--grace", "0.2")
    project.tasks.limited()
    project.tasks.note("after")
    worker.wait_for_processes(2)
    wait_until(lambda: project.notes() == ["after"])
    assert "1 threads are stuck" in worker.text and project.starts("stuck") == worker.pids[:1]
    wait_until(lambda: not Path(f"/proc/{worker.pids[0]}").exists())
    worker.end()


# -- tasks that take their process down


def crashed(project, broker):
    """Take what is in the failed queue, of which all must have crashed, and return the arguments.

    A message may be there twice: as every message if the process dies between its copy's confirm
    and its acknowledgement.
    """
    get = functools.partial(broker.channel.basic.get, f"{project.name}.failed", no_ack=True)
    messages = list(iter(get, None))
    why = {message.properties["headers"]["x-kuyruk-exception"] for message in messages}
    assert why <= {"kuyruk.exceptions.Crashed"}
    return {argument for (argument,) in arguments_in(messages)}


@pytest.mark.parametrize(
    ("how", "processes"), [("exit1", "1"), ("exit0", "2"), ("SIGSEGV", "1"), ("SIGKILL", "2")]
)
def test_a_task_that_takes_its_process_down_has_failed_after_three_times(
    project, broker, how, processes
):
    """The message that kills its process fails after three deaths; those beside it run."""
    worker = project.worker("-p", processes, "-t", "4", entry=QUICK)
    # In their midst, so that it has company when it kills.
    subtasks = [project.tasks.nap.subtask((str(n), 0.02)) for n in range(100)]
    project.tasks.app.send_tasks_to_queue(
        [*subtasks[:50], project.tasks.die.subtask((how,)), *subtasks[50:]]
    )
    others = set(map(str, range(100)))
    failed = f"{project.name}.failed"
    wait_until(lambda: broker.count(failed) and set(project.notes()) == others)
    assert len(project.starts(how)) == 3
    assert crashed(project, broker) == {how}
    deaths = re.findall(r"supervisor: Process \d+ died while it ran [0-9a-f]{32}", worker.text)
    assert len(deaths) == 3
    worker.end()
    assert project.waiting() == 0


def test_a_crash_limit_of_one_allows_no_second_death(project, broker):
    """With `--max-crashes 1` the first death is the last."""
    worker = project.worker("--max-crashes", "1", entry=QUICK)
    project.tasks.die("exit1")
    wait_until(lambda: broker.count(f"{project.name}.failed"))
    assert len(project.starts("exit1")) == 1 and crashed(project, broker) == {"exit1"}
    worker.stop()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_who_ran_beside_those_that_take_processes_down_is_not_blamed(project, broker, processes):
    """Of three killers and twelve others, only the killers fail."""
    # After the first death, each of the other two can have a suspect blamed wrongly, once: as long
    # as it is none itself. Two such deaths are enough at the default of 3, but not at 4.
    worker = project.worker("-p", processes, "-t", "6", "--max-crashes", "4", entry=QUICK)
    poisons = ["exit1", "SIGKILL", "SIGSEGV"]
    innocents = [f"{n}" for n in range(12)]
    subtasks = [project.tasks.nap.subtask((name, 0.7)) for name in innocents]
    subtasks[2:2] = [project.tasks.die.subtask((how,)) for how in poisons]
    project.tasks.app.send_tasks_to_queue(subtasks)
    broker.declare(f"{project.name}.failed")
    have_failed = set()

    def all_have_failed():
        have_failed.update(crashed(project, broker))
        return have_failed >= set(poisons)

    wait_until(all_have_failed, timeout=60)
    wait_until(lambda: set(project.notes()) == set(innocents))
    assert max(len(project.starts(how)) for how in poisons) <= 8, worker.text
    worker.send(signal.SIGTERM)
    assert (worker.exit_code(), project.waiting()) == (0, 0), worker.text
    assert have_failed | crashed(project, broker) == set(poisons)


def test_what_is_handed_back_or_lost_with_its_connection_is_no_crash(project, proxy, broker):
    """Neither a stop nor a lost connection, three times each, counts as a death."""
    # With a limit of one a single crash would be the end.
    worker = project.worker(
        "--max-crashes", "1", "--shutdown-timeout", "0", url=proxy.url, entry=QUICK
    )
    project.tasks.hold("a")
    for n in range(1, 8):
        wait_until(lambda n=n: len(project.starts("a")) == n)
        if n <= 3:
            os.kill(project.starts("a")[-1], signal.SIGTERM)
        elif n <= 6:
            proxy.cut()
    project.go()
    wait_until(project.notes)
    worker.end()
    assert project.notes() == ["a"] and project.waiting() == 0
    assert broker.count(f"{project.name}.failed") is None and "died while" not in worker.text


def test_a_quorum_queue_that_was_there_counts_deliveries_itself(project, broker):
    """A message of a quorum queue that isn't ours is never failed for its deaths."""
    broker.declare(project.name, **{"x-queue-type": "quorum"})
    worker = project.worker("--max-crashes", "2", entry=QUICK)
    project.tasks.die("exit1")
    # Far beyond the limit of two.
    wait_until(lambda: len(project.starts("exit1")) > 4)
    worker.kill()
    assert broker.count(f"{project.name}.failed") is None


def test_crashes_are_counted_for_a_quorum_queue_that_kuyruk_declares(project, broker, monkeypatch):
    """A quorum queue that kuyruk declares has no limit of deliveries, so crashes are counted.

    RabbitMQ 4 would drop what was delivered 20 times.
    """
    monkeypatch.setenv("KUYRUK_QUEUE_ARGUMENTS", "{'x-queue-type': 'quorum'}")
    worker = project.worker("--max-crashes", "2", entry=QUICK)
    project.tasks.die("exit1")
    wait_until(lambda: broker.count(f"{project.name}.failed"))
    worker.stop()
    assert crashed(project, broker) == {"exit1"} and len(project.starts("exit1")) == 2


def test_what_kills_the_supervisor_too_is_remembered_with_a_state(project, broker):
    """With `--state` the deaths of all processes at once count, as in a container."""
    project.tasks.die("all")
    project.tasks.note("innocent")
    # With one thread: what waits behind the killer isn't to blame, and is run in the end.
    for n in (1, 2, 3):
        worker = project.worker("-t", "1", "--state", str(project.folder / "state"))
        assert worker.exit_code() == -signal.SIGKILL and len(project.starts("all")) == n
    worker = project.worker("--state", str(project.folder / "state"))
    wait_until(lambda: broker.count(f"{project.name}.failed") and project.notes())
    worker.stop()
    assert crashed(project, broker) == {"all"} and project.notes() == ["innocent"]
    # The journals of the dead were read, and removed.
    assert not list((project.folder / "state").glob("journal-*"))


def test_what_runs_when_all_are_killed_during_a_stop_is_not_to_blame(project):
    """A container that stops longer than its time is killed: no message has brought it down."""
    options = ("--max-crashes", "1", "--state", str(project.folder / "state"))
    worker = project.worker(*options)
    project.hold("a")
    worker.send(signal.SIGTERM)
    worker.wait_for("SIGTERM: stopping when")
    worker.send_all(signal.SIGKILL)
    assert worker.exit_code() == -signal.SIGKILL
    second = project.worker(*options)
    wait_until(lambda: len(project.starts("a")) == 2)
    project.go()
    wait_until(project.notes)
    second.stop()
    assert project.notes() == ["a"]


def test_a_process_that_runs_no_python_code_is_killed_and_its_task_is_to_blame(
    project, broker, monkeypatch
):
    """A process without a pulse has lost its connection: it is killed, which counts as a crash."""
    # After this many seconds, times FROZEN, it counts as frozen.
    monkeypatch.setenv("KUYRUK_RABBIT_HEARTBEAT", "2")
    worker = project.worker(
        "--max-crashes", "1", "-t", "1", entry=cli_with(PULSE=0.2, FIRST_PAUSE=0.02)
    )
    project.tasks.lock()
    project.tasks.note("after")
    [pid] = project.begun("lock")
    wait_until(lambda: broker.count(f"{project.name}.failed") and project.notes() == ["after"])
    worker.wait_for(f"Process {pid} is killed, what it runs will run again: no Python code")
    assert len(project.starts("lock")) == 1
    worker.stop()


# -- ending, as containers need it


def test_sigterm_under_load_loses_nothing_and_runs_nothing_twice(project):
    """At SIGTERM amid 200 short tasks each is done or in the queue, and none runs twice."""
    worker = project.worker("-p", "2", "-t", "10")
    naps = [project.tasks.nap.subtask((str(n), 0.03)) for n in range(200)]
    project.tasks.app.send_tasks_to_queue(naps)
    wait_until(lambda: len(project.notes()) >= 50)
    worker.end()
    assert project.waiting() == 200 - len(project.notes()) > 0
    second = project.worker()
    wait_until(lambda: len(project.notes()) >= 200)
    second.stop()
    assert sorted(project.notes(), key=int) == [str(n) for n in range(200)]
    assert project.waiting() == 0


@pytest.mark.parametrize("how", ["--shutdown-timeout", "--max-run-time"])
def test_what_runs_longer_than_the_shutdown_timeout_is_interrupted_and_requeued(project, how):
    """`--shutdown-timeout` bounds the wait of a stop, by a signal or by `--max-run-time`."""
    options = ("-p", "2", "-t", "1", "--shutdown-timeout", "0.3", "--max-run-time", "1")
    project.tasks.hold("a")
    project.tasks.hold("b")
    worker = project.worker(*options, entry=("-c", RUN_TIME_BY_FILE))
    begun = project.begun("a", "b")
    worker.wait_for_processes(2)  # their lines may come after their first tasks
    assert sorted(begun) == sorted(worker.pids)
    if how == "--max-run-time":
        (project.folder / "over").touch()
    else:
        worker.send(signal.SIGTERM)
    assert worker.exit_code() == 3, worker.text
    assert worker.text.count("Stopping: interrupting 1 running task; ") == 2
    assert project.waiting() == 2 and project.notes() == []


def test_a_stop_does_not_wait_for_tasks_that_no_interruption_ends(project):
    """Tasks in C code, and those that swallow everything, are given up at a stop, and go back."""
    worker = project.worker("-p", "2", "-t", "1", "--shutdown-timeout", "0.1", "--grace", "0.3")
    worker.wait_for_processes(2)
    project.tasks.stuck()
    project.tasks.stubborn()
    project.begun("stuck", "stubborn")
    worker.end(3)
    assert project.waiting() == 2


def test_a_process_that_runs_no_python_code_is_killed_at_the_end(project):
    """A process whose C code holds Python's lock can't stop by itself: its supervisor kills it."""
    worker = project.worker("-p", "2", "-t", "1", "--grace", "0.1", entry=cli_with(KILL_MARGIN=0.5))
    worker.wait_for_processes(2)
    project.tasks.lock()
    [pid] = project.begun("lock")
    worker.send(signal.SIGTERM)
    # That of the other process: this one can't even note the signal.
    worker.wait_for("kuyruk-supervisor: Stopped")  # the other process
    wait_for_another_wish()
    worker.end(3)
    assert f"Process {pid} is killed, what it runs will run again: it doesn't end" in worker.text
    wait_until(lambda: project.waiting() == 1)


def test_a_process_that_is_due_when_the_run_time_is_over_is_not_started(project):
    """When a start and the end of the run time are due at once, it is the end."""
    code = """
import os, kuyruk_worker
kuyruk_worker.FIRST_PAUSE = 1
os.register_at_fork(after_in_child=lambda: os.write(2, b"forked\\n"))
"""
    worker = project.worker("--max-run-time", "1", entry=("-c", code + RUN_TIME_BY_FILE))
    os.kill(worker.wait_for_processes(1), signal.SIGKILL)
    worker.wait_for("starting another in")
    worker.send(signal.SIGSTOP)
    (project.folder / "over").touch()
    time.sleep(1.5)  # both are due when it goes on
    worker.send(signal.SIGCONT)
    worker.exit_code()
    assert worker.text.count("forked\n") == 1, worker.text


# -- its parts


def worker_process(state):
    """Return a process as its supervisor sees it. s: serves; w: degraded; r: retires; .: starts."""
    child = kuyruk_worker._Child(0, None, None)
    child.serving, child.degraded, child.retiring = state == "s", state == "w", state == "r"
    return child


def test_whether_a_message_killed_is_answered_when_the_process_that_has_it_is_dead():
    """Who asks about a message that another process has is answered when that is dead, or in time.

    1. A process: dies, and its sockets are closed.
    2. RabbitMQ: delivers its message to another process, which asks about it.
    3. The supervisor: is told of the death, counts it, and answers.
    """
    supervisor = kuyruk_worker._Supervisor.__new__(kuyruk_worker._Supervisor)
    supervisor._state, sent = kuyruk_worker._State(None, kuyruk_worker.logger), []
    children = [worker_process("s") for _ in "ab"]
    for child in children:
        child.journal = kuyruk_worker._Journal({})
        child.pipe = types.SimpleNamespace(send=lambda *args: sent.append(args))
    dying, asking = children
    dying.journal.begin("x")
    supervisor._children = dict(enumerate(children))
    supervisor._asks = [(asking, "x", time.monotonic() + PATIENCE)]
    supervisor._answer()
    assert not sent
    del supervisor._children[0]
    supervisor._state.blame(["x"])
    supervisor._answer()
    assert sent == [("crashes", {"x": (1, 1)})] and not supervisor._asks
    supervisor._children[0] = dying  # it lives: its connection was lost
    supervisor._asks = [(asking, "x", time.monotonic())]
    supervisor._answer()
    assert len(sent) == 2 and not supervisor._asks


@pytest.mark.parametrize(
    ("states", "wanted", "ended", "degraded", "to_retire"),
    [
        ("", 2, 2, 0, []), ("s", 2, 1, 0, []), ("s.", 2, 0, 0, []), ("..", 2, 0, 0, []),
        ("r", 1, 1, 0, []),
        # In the place of a degraded one another serves before it retires.
        ("w", 1, 0, 1, []), ("w.", 1, 0, 0, []), ("ws", 1, 0, 0, [0]), ("rs", 1, 0, 0, []),
        ("wr", 1, 0, 1, []),
        ("ws", 2, 0, 1, []), ("ws.", 2, 0, 0, []), ("wss", 2, 0, 0, [0]), ("wws", 2, 0, 1, [0]),
        ("ww", 2, 0, 2, []),
        ("ss", 1, 0, 0, [0]), ("sss", 2, 0, 0, [0]), ("s..", 2, 0, 0, []),
    ],
)  # fmt: skip
def test_the_plan(states, wanted, ended, degraded, to_retire):
    """The supervisor starts, replaces and retires as many processes as these states ask for."""
    children = [worker_process(state) for state in states]
    expected = ended, degraded, [children[n] for n in to_retire]
    assert kuyruk_worker._plan(children, wanted) == expected


@given(st.text("swr.", max_size=6), st.integers(1, 4))
def test_the_plan_never_leaves_fewer_processes_at_work(states, wanted):
    """In no state does one retire before another is at work, or is a wanted one missing."""
    children = [worker_process(state) for state in states]
    *counts, to_retire = kuyruk_worker._plan(children, wanted)
    working = [child for child, state in zip(children, states, strict=True) if state in "sw"]
    assert len(working) - len(to_retire) >= min(wanted, len(working))
    assert set(to_retire) <= set(working)
    assert sum(state in "sw." for state in states) + sum(counts) >= wanted and min(counts) >= 0


@pytest.fixture
def pipes():
    """Both ends of a connection between the supervisor and a worker process."""
    ends = kuyruk_worker._Pipe.make_pair()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            end.close()


def test_a_pipe_carries_messages_both_ways_and_tells_when_the_other_end_is_gone(pipes):
    """Messages arrive whole, in order, both ways; sending to nobody does nothing."""
    here, there = pipes
    assert here.receive() == there.receive() == []
    here.send("one", {"ä": [None, 1.5]})
    here.send("two", "\n")
    there.send("back")
    assert there.receive() == [["one", {"ä": [None, 1.5]}], ["two", "\n"]]
    assert here.receive() == [["back"]]
    there.close()
    assert here.receive() is None
    here.send("to nobody")


def test_a_pipe_survives_messages_that_are_cut_or_no_messages(pipes):
    """Half a message waits for the rest; what is no message is left out."""
    here, there = pipes
    for data, received in [
        (b'["on', []), (b'e"]\n["tw', [["one"]]),
        (b'["three"]\n\n\xff\x00\n["four"]\n', [["four"]]), (b"\n", []),
    ]:  # fmt: skip
        os.write(here._writer, data)
        assert there.receive() == received


def test_a_pipe_that_nobody_reads_does_not_block(pipes):
    """A full pipe loses its newest messages, and works again when it is read."""
    here, there = pipes
    for n in range(2000):
        here.send(n, "x" * 100)
    received = list(itertools.chain.from_iterable(iter(there.receive, [])))
    # A pipe holds 64 kB (Linux), some hundreds of these.
    assert 100 < len(received) < 2000 and received == [[n, "x" * 100] for n in range(len(received))]
    # After half a message, the next is no message, and the one after it is.
    here.send("cut, perhaps")
    here.send("on")
    assert ["on"] in there.receive()


@pytest.fixture
def journal():
    with contextlib.closing(kuyruk_worker._Journal({})) as journal:
        yield journal


def test_a_journal_notes_what_runs_for_another_process(journal):
    """A journal is read by another process, whatever the ids are; those too long are left out."""
    ids = ["plain", "ünicode \U0001f600", "\ud800 surrogate", "\x00\n"]
    ids += ["x" * 255, "ü" * 255, "\U0001f600" * 255]
    if not os.fork():
        for id in [*ids, "ended", "x" * 1023, "ü" * 512, ""]:  # the last three are left out
            journal.begin(id)
        journal.end("ended")
        os._exit(0)
    os.wait()
    # The parent sees what its child has written.
    assert (sorted(journal.running), journal.exit_code) == (sorted(ids), None)
    for code in (0, 4, 131, 254):
        journal.exit_code = code
        assert (journal.exit_code, sorted(journal.running)) == (code, sorted(ids))


def test_a_journal_that_is_full_leaves_the_rest_out(journal):
    """A full journal, of 4096 entries, has room again when runs end."""
    ids = [f"{n:0200}" for n in range(5000)]
    for id in ids:
        journal.begin(id)
    assert sorted(journal.running) == ids[:4096]
    for id in ids + ids[:10]:
        journal.end(id)
    assert journal.running == []
    journal.begin("short")
    assert journal.running == ["short"]


# -- wrong options


@pytest.mark.parametrize(
    ("args", "option", "value"),
    [
        ("-t 0", "-t/--threads", "0"),
        ("--threads x", "-t/--threads", "'x'"),
        ("-t 1.5", "-t/--threads", "1.5"),
        ("--prefetch 70000", "--prefetch", "70000"),
        ("--max-load -2", "--max-load", "-2"),
        ("--max-run-time soon", "--max-run-time", "'soon'"),
        ("--max-run-time nan", "--max-run-time", "nan"),
        ("--priority 1e3", "--priority", "1000.0"),
        ("-l loud", "-l/--logging-level", "'LOUD'"),
        ("--broker http://u:hunter2@h/", "--broker", "the given value"),
        ("--broker localhost", "--broker", "the given value"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line_before_the_import(tmp_path, args, option, value):
    """A wrong value is refused under its option's name, without a password."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('imported')")
    ended = run_cli(tmp_path, "tasks", *args.split())
    assert ended.returncode == 2
    pattern = f"python -m kuyruk_worker: error: {option} takes .+: not {value}\n"
    assert re.fullmatch(pattern, ended.stderr) and not ended.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("tasks -t", "argument -t/--threads: expected one argument"),
        ("tasks --thread 4", "unrecognized arguments: --thread 4: did you mean '--threads'?"),
        ("tasks --quueue=a", "unrecognized arguments: --quueue=a: did you mean '--queue'?"),
        ("tasks --max-memory 0", "--max-memory takes megabytes, more than 0: not 0"),
        ("tasks --max-memory x", "--max-memory takes megabytes, more than 0: not 'x'"),
        ("tasks --failed list --status", "--failed and --status don't go together"),
        ("tasks --failed purge --json", "--json goes with --failed list and with --status"),
        ("tasks --status --id x", "--id goes with --failed"),
        ("tasks -q a b", "unrecognized arguments: b"),
        ("-t 4", "the following arguments are required: MODULE"),
        ("tasks --max-memory inf", "--max-memory takes megabytes, more than 0: not inf"),
        ("tasks --max-memory nan", "--max-memory takes megabytes, more than 0: not nan"),
        ("tasks --status -t 4", "-t/--threads is for running tasks: --failed and --status don't"),
        ("tasks --failed list -p 1",
         "-p/--processes is for running tasks: --failed and --status don't"),
        ("tasks --failed purge --state x",
         "--state is for running tasks: --failed and --status don't"),
        ("tasks --status --health x --json",
         "--health is for running tasks: --failed and --status don't"),
        ("tasks --status --max-memory 5",
         "--max-memory is for running tasks: --failed and --status don't"),
        ("tasks --prefetch x", "--prefetch takes a whole number from 1 to 65535: not 'x'"),
        ("tasks --shutdown-timeout x", "--shutdown-timeout takes seconds, 0 or more: not 'x'"),
        ("tasks -t 99999999", "-t/--threads takes a whole number from 1 to 10000: not 99999999"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_explained_in_one_line(tmp_path, args, words):
    """What is wrong about options, or has no effect together, is said in one line."""
    ended = run_cli(tmp_path, *args.split())
    said = ended.stderr.removesuffix(" (--help explains)\n").removesuffix("\n")
    assert said == f"python -m kuyruk_worker: error: {words}"
    assert (ended.returncode, ended.stdout) == (2, "")


@pytest.mark.parametrize("queue", ["", "x" * 256])
def test_a_wrong_queue_name_is_explained(modules, queue):
    """A name that no queue can have is refused under `-q`."""
    ended = run_cli(modules, "one", "--queue", queue)
    assert ended.returncode == 2
    assert ended.stderr.startswith("python -m kuyruk_worker: error: -q/--queue: ")
    assert f"not '{queue}" in ended.stderr


def test_version_and_help_need_no_application(tmp_path):
    """`--version` and `--help` import nothing; the help has an example, signals and exit codes."""
    assert run_cli(tmp_path, "--version").stdout == f"kuyruk {kuyruk.__version__}\n"
    help_text = run_cli(tmp_path, "--help").stdout
    words = ("python -m kuyruk_worker tasks -q mail", "SIGUSR1", "exit codes", "131")
    assert [word for word in (*words, "WORKER_PREFETCH") if word not in help_text] == []


# -- finding the application

#: So that no RabbitMQ is asked that is at the default address.
READS_ENVIRONMENT = "config = kuyruk.Config()\nconfig.from_env_vars()\n"
CONFIGURED = f"import kuyruk\n{READS_ENVIRONMENT}"
CLI_FILES = {
    "one.py": f"{CONFIGURED}app = alias = kuyruk.Kuyruk(config)\n@app.task(queue='ones')\n"
    "def add(): pass\n",
    "more.py": "from one import app as _hidden\n@_hidden.task(queue='mores')\ndef add(): pass\n",
    "two.py": f"{CONFIGURED}first = kuyruk.Kuyruk(config)\nsecond = kuyruk.Kuyruk(config)\n",
    "none.py": "x = 1\n",
    "user.py": "import one\n",
    "fails.py": "def f():\n    return 1 / 0\nf()\n",
    "leaves.py": "import sys\nsys.exit('DATABASE is not set')\n",
    "syntax.py": "def f(:\n",
    "needs.py": "import not_installed.part\n",
    "not_installed_either/__init__.py": "import not_installed_either.gone\n",
    "badconfig.py": "import kuyruk\nkuyruk.Config().WORKER_THREADS = 0\n",
    "pkg/__init__.py": "",
    "pkg/tasks.py": f"{CONFIGURED}app = kuyruk.Kuyruk(config)\n",
    "pkg/lazy.py": (
        f"{CONFIGURED}"
        "class Lazy:\n    @property\n    def __class__(self): raise RuntimeError('no context')\n"
        "request = Lazy()\napp = kuyruk.Kuyruk(config)\n"
    ),
    "foreign.py": "import othercopy\napp = othercopy.Kuyruk()\n",
    "else_.py": f"{CONFIGURED}its = kuyruk.Kuyruk(config)\n@its.task(queue='elses')\n"
    "def send(): pass\n",
    "others.py": "import else_ as _e\n@_e.its.task(queue='others')\ndef send(): pass\n",
    "sends.py": "from others import send\n",
    "both.py": "from else_ import its\nfrom one import add\n@its.task(queue='both')\n"
    "def send(): pass\n",
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder of applications, right and wrong ones: the keys of CLI_FILES."""
    folder = tmp_path_factory.mktemp("modules")
    for name, text in CLI_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(HERE / "kuyruk.py", folder / "othercopy.py")
    return folder


@pytest.mark.parametrize(
    ("args", "app", "queues"),
    [
        ("one", "one:app", "'ones'"),
        ("one:alias", "one:alias", "'ones'"),
        ("one more", "one:app", "'ones', 'mores'"),
        ("two:first", "two:first", "'kuyruk'"),
        ("two.second", "two:second", "'kuyruk'"),
        ("pkg.tasks", "pkg.tasks:app", "'kuyruk'"),
        ("pkg.tasks.app", "pkg.tasks:app", "'kuyruk'"),
        ("pkg.lazy", "pkg.lazy:app", "'kuyruk'"),
        ("one sends", "one:app", "'ones'"),  # it only imports a task of another application
        ("one both", "one:app", "'ones'"),
        ("one more:_hidden", "one:app", "'ones', 'mores'"),
    ],
)
def test_the_application_is_found(modules, args, app, queues):
    """Each way to name the application finds it, with the queues of its tasks."""
    ended = run_cli(modules, *args.split(), "--max-run-time", "0.01")
    assert ended.returncode == 0, ended.stderr
    assert f"worker of {app} for {queues} with 8 threads" in ended.stderr


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("none", "module 'none' has no Kuyruk object, as in: app = kuyruk.Kuyruk()"),
        ("user",
         "module 'user' has no Kuyruk object, as in: app = kuyruk.Kuyruk()"
         " (there is one:app, one:alias)"),
        ("two",
         "module 'two' has several Kuyruk objects: say which (there is two:first, two:second)"),
        ("one:ap", "module 'one' has no 'ap' (there is one:app, one:alias)"),
        ("one.ap", "module 'one' has no 'ap' (there is one:app, one:alias)"),
        ("one:add", "one:add isn't a Kuyruk object but a Task (there is one:app, one:alias)"),
        ("onne", ", nor elsewhere on Python's path: did you mean 'one'?"),
        ("pkg.taks", "there is no module 'pkg.taks' in {folder}/pkg: did you mean 'pkg.tasks'?"),
        ("pkgg.tasks:app",
         "there is no module 'pkgg' in {folder}, nor elsewhere on Python's path: did you mean"
         " 'pkg'?"),
        ("one.tasks:app", "there is no module 'one.tasks' in one"),
        ("pkg/tasks.py", "'pkg/tasks.py' is a file: name the module, as 'pkg.tasks'"),
        ("one.py", "'one.py' is a file: name the module, as 'one'"),
        ("pkg..tasks", "'pkg..tasks' is no module's name"),
        ("", "'' is no module's name"),
        ("foreign", "foreign:app is a Kuyruk object of another copy of the library, 'othercopy'"),
        ("foreign:app", "beside that copy: python -m othercopy_worker"),
        ("one else_",
         "module 'else_' belongs to another Kuyruk object than one:app: its tasks wouldn't run"
         " here."),
        ("one more others", "module 'others' belongs to another Kuyruk object than one:app"),
        ("one foreign",
         "Start another worker for it (python -m kuyruk_worker foreign), or let it use one:app"),
        ("one else_:its", "else_:its isn't one:app: only the first MODULE names the Kuyruk object"),
    ],
)  # fmt: skip
def test_an_application_that_is_not_found_is_explained_in_one_line(modules, spec, words):
    """What can't be the application is explained in one line that says what to write instead."""
    ended = run_cli(modules, *spec.split() or [""])
    assert ended.returncode == 2
    assert words.format(folder=modules) in ended.stderr
    assert ended.stderr.count("\n") == 1 and not ended.stdout


@pytest.mark.parametrize(
    ("args", "module", "first", "error"),
    [
        ("fails", "fails", 'File "{folder}/fails.py", line 3', "ZeroDivisionError"),
        ("one fails", "fails", 'File "{folder}/fails.py", line 3', "ZeroDivisionError"),
        ("leaves", "leaves", 'File "{folder}/leaves.py", line 2', "DATABASE is not set"),
        ("needs", "needs", 'File "{folder}/needs.py", line 1', "No module named 'not_installed'"),
        ("not_installed_either", "not_installed_either", "line 1, in <module>",
         "not_installed_either.gone"),
        ("badconfig", "badconfig", 'File "{folder}/badconfig.py", line 2',
         "WORKER_THREADS takes a whole number"),
    ],
)  # fmt: skip
def test_an_application_that_fails_is_shown_with_its_own_traceback(
    modules, args, module, first, error
):
    """The traceback of an import begins in the application: it has none of our own lines."""
    ended = run_cli(modules, *args.split())
    assert ended.returncode == 2
    head, where, *_, last = ended.stderr.splitlines()
    assert head == "Traceback (most recent call last):" and first.format(folder=modules) in where
    assert f"error: module '{module}' can't be imported (see above): " in last and error in last
    # What is between the command and the application is nothing to its author.
    assert "kuyruk_worker.py" not in ended.stderr and "importlib" not in ended.stderr


def test_a_syntax_error_is_shown_with_its_place(modules):
    """A syntax error is shown with its file and line, without the importing code."""
    ended = run_cli(modules, "syntax")
    assert ended.returncode == 2
    assert f'File "{modules}/syntax.py", line 1' in ended.stderr and "SyntaxError" in ended.stderr
    assert "importlib" not in ended.stderr


# -- other ways in


@pytest.mark.parametrize(
    "entry",
    [("-P", *cli_with()), ("-W", "error", str(HERE / "kuyruk_worker.py"))],
    ids=["the console script", "the file"],
)
def test_the_worker_may_be_started_in_other_ways_than_by_its_module(entry, modules):
    """The console script and the file import from the current directory, as `python -m` does."""
    ended = run_cli(modules, "one", "--max-run-time", "0.01", entry=entry)
    assert ended.returncode == 0, ended.stderr
    ended = run_cli(modules, "none", entry=entry)
    assert ended.returncode == 2
    assert "module 'none' has no Kuyruk object" in ended.stderr


VENDORED_TASKS = """
import sys
from pkg.vendor import kuyruk
config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
@app.task(queue="QUEUE")
def loaded():
    return [name for name in sys.modules if name.endswith("kuyruk")]
if __name__ == "__main__":
    print(loaded.send_to_queue(wait_result=20))
    with app.channel() as channel:
        channel.queue.delete("QUEUE")
"""


def test_a_vendored_copy_runs_its_own_library(tmp_path, url, cli_worker):
    """The vendored pair needs no installed library, and names the command for its own copy."""
    vendor = tmp_path / "pkg" / "vendor"
    vendor.mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").touch()
    for file in ("kuyruk.py", "kuyruk_worker.py"):
        shutil.copy(HERE / file, vendor)
    queue = f"cli-{uuid.uuid4().hex[:8]}"
    (tmp_path / "pkg" / "tasks.py").write_text(VENDORED_TASKS.replace("QUEUE", queue))
    worker = cli_worker(tmp_path, "pkg.tasks", url=url, entry=("-m", "pkg.vendor.kuyruk_worker"))
    worker.wait_for("Consuming")
    sent = run_cli(tmp_path, url=url, entry=("-m", "pkg.tasks"))
    assert sent.stdout == "['pkg.vendor.kuyruk']\n", sent.stderr + worker.text
    worker.stop()
    ended = run_cli(tmp_path, "pkg.tasks")
    assert ended.returncode == 2 and "copy: python -m pkg.vendor.kuyruk_worker\n" in ended.stderr


# -- logging


@pytest.mark.parametrize(
    ("args", "shown"),
    [("", "INFO"), ("-l debug", "DEBUG"), ("-l WARNING", None), ("-l Info", "INFO")],
)
def test_the_logging_level_is_of_the_command_line(tmp_path, args, shown):
    """`-l`, in any case of letters, is the level of the whole process; INFO without it."""
    (tmp_path / "tasks.py").write_text("""
import kuyruk, logging
class App(kuyruk.Kuyruk):
    def worker(self, *args, **kwargs):
        logging.getLogger("mine").debug("a detail")
        return super().worker(*args, **kwargs)
app = App()
app.config.from_env_vars()
""")
    text = run_cli(tmp_path, "tasks", "--max-run-time", "0.01", *args.split()).stderr
    assert ("worker of" in text) is (shown is not None)
    assert ("a detail" in text) is (shown == "DEBUG")


def test_an_application_keeps_the_logging_that_it_has_set_up(tmp_path):
    """The command line sets up no logging where the application has."""
    (tmp_path / "tasks.py").write_text("""
import kuyruk, logging.config
logging.config.dictConfig({
    "version": 1,
    "formatters": {"f": {"format": "mine: %(message)s"}},
    "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
    "root": {"handlers": ["h"], "level": "INFO"},
})
app = kuyruk.Kuyruk()
app.config.from_env_vars()
""")
    text = run_cli(tmp_path, "tasks", "--max-run-time", "0.01").stderr
    assert "mine: kuyruk " in text and "mine: Stopped" in text


# -- failed messages, and health


def fail_by_hand(project, broker, count, size=0):
    """Put messages into the failed queue, as a worker does."""
    name = project.name
    broker.declare(f"{name}.failed")
    for n in range(count):
        headers = {
            "x-kuyruk-queue": name, "x-kuyruk-failures": 2, "x-kuyruk-value": "no\nsecond line",
            "x-kuyruk-exception": "builtins.ValueError",
            "x-kuyruk-failed-at": "2026-01-31T12:00:00+00:00",
        }  # fmt: skip
        properties = {"message_id": f"id{n}", "reply_to": "gone", "expiration": "600000"}
        properties["headers"] = headers
        task = {"id": f"id{n}", "module": name, "function": "note", "args": [f"n{n}"]}
        message = body(**task, filling="x" * size)
        broker.publish(f"{name}.failed", message, **properties)
    wait_until(lambda: broker.count(f"{name}.failed") == count)


def run_failed(project, *args):
    """Return what `--failed` prints; it must end well, and say no more than how far it is."""
    ended = run_cli(project.folder, project.name, "--failed", *args, url=project.url)
    progress = r"(\d+ (sent again|deleted)\.\.\.\n)*"  # on a slow machine
    assert ended.returncode == 0 and re.fullmatch(progress, ended.stderr), ended.stderr
    return ended.stdout


def test_failed_messages_are_listed_and_stay(project, broker):
    """`--failed list` shows each message in a line, or as JSON, and takes none."""
    fail_by_hand(project, broker, 3)
    broker.publish(f"{project.name}.failed", b"nonsense", headers={"x-kuyruk-value": 5})
    *lines, odd, total = run_failed(project, "list").splitlines()
    expected = [[f"id{n}", f"{project.name}.note"] for n in range(3)]
    assert [line.split()[:2] for line in lines] == expected
    assert lines[0].endswith("2026-01-31T12:00:00+00:00  None  2x  builtins.ValueError: no")
    assert odd == "None  (no task)  None  None  Nonex  None: 5"
    assert total == f"{project.name}.failed: 4 messages"
    [only] = map(json.loads, run_failed(project, "list", "--json", "--id", "id1").splitlines())
    assert (only["id"], only["args"], only["value"]) == ("id1", ["n1"], "no\nsecond line")
    assert wait_until(lambda: broker.count(f"{project.name}.failed")) == 4


def test_a_failed_message_writes_no_lines_of_its_own_to_the_terminal(project, broker):
    """A message's id can't write lines or control codes to the terminal."""
    broker.declare(f"{project.name}.failed")
    broker.publish(f"{project.name}.failed", body(id="a\n\x1b[0m"))
    line, _ = run_failed(project, "list").splitlines()
    assert line.startswith(r"a\n\x1b[0m  test_kuyruk.add")


def test_failed_messages_are_sent_again_and_run(project, broker):
    """`--failed requeue` sends one or all again: they keep their counts, and answer nobody."""
    # More than an iteration holds at once, several times over.
    fail_by_hand(project, broker, 1200)
    printed = run_failed(project, "requeue", "--id", "id7")
    assert printed == f"{project.name}.failed: 1 message sent again\n"
    again = broker.take(project.name)
    assert again.properties["headers"] == {"x-kuyruk-failures": 2}
    assert again.properties["delivery_mode"] == 2
    assert not again.properties["reply_to"] and not again.properties["expiration"]
    assert "1199 messages sent again" in run_failed(project, "requeue")
    assert broker.count(f"{project.name}.failed") == 0
    project.worker()
    wait_until(lambda: len(project.notes()) == 1199)
    assert {*project.notes(), "n7"} == {f"n{n}" for n in range(1200)}


def test_failed_messages_are_deleted_all_or_one(project, broker):
    """`--failed purge` deletes one or all, and says how many."""
    assert run_failed(project, "purge") == f"{project.name}.failed: 0 messages deleted\n"
    fail_by_hand(project, broker, 3)
    assert "1 message deleted" in run_failed(project, "purge", "--id", "id1")
    assert run_failed(project, "list").count(".note") == 2
    assert "2 messages deleted" in run_failed(project, "purge", "-q", project.name)
    assert broker.count(f"{project.name}.failed") == 0


def test_a_failed_message_that_cannot_be_sent_again_stays(project, broker, monkeypatch):
    """What its queue refuses stays in the failed queue; each is named, and the exit code is 1."""
    fail_by_hand(project, broker, 2)
    broker.declare(project.name, **{"x-max-length": 0, "x-overflow": "reject-publish"})
    monkeypatch.setenv("KUYRUK_RABBIT_PUBLISH_TIMEOUT", "1")
    ended = run_cli(project.folder, project.name, "--failed", "requeue", url=project.url)
    assert ended.returncode == 1
    named = re.findall(
        rf"(id\d) stays in {project.name}.failed: .*queue '{project.name}' refuses", ended.stderr
    )
    assert named == ["id0", "id1"]
    assert wait_until(lambda: broker.count(f"{project.name}.failed")) == 2


def test_failed_messages_need_a_broker_and_go_with_their_options(modules):
    """Without a broker `--failed` says so in one line; `--json` alone has no meaning."""
    # amqpstorm warns
    ended = run_cli(modules, "one", "--failed", "list", url=NOWHERE, entry=("-m", "kuyruk_worker"))
    assert ended.returncode == 1
    assert "python -m kuyruk_worker: error: can't connect to RabbitMQ" in ended.stderr
    ended = run_cli(modules, "one", "--json")
    assert ended.returncode == 2
    assert "--json goes with --failed list and with --status" in ended.stderr


def test_a_health_file_is_fresh_only_while_all_processes_consume(project, proxy):
    """The health file is written while all processes consume, and removed at the end."""
    health = project.folder / "health"
    worker = project.worker(
        "-p", "2", "--health", "health", url=proxy.url, entry=cli_with(PULSE=0.2)
    )

    def written():
        return health.stat().st_mtime_ns if health.exists() else 0

    def is_fresh():
        before = written()
        time.sleep(1)  # five pulses
        return written() > before

    wait_until(is_fresh)
    assert health.read_text() == "2 processes consume\n"
    proxy.down()
    wait_until(lambda: not is_fresh())
    proxy.up()
    wait_until(is_fresh)
    # One that stands still is enough.
    os.kill(worker.pids[0], signal.SIGSTOP)
    wait_until(lambda: not is_fresh())
    os.kill(worker.pids[0], signal.SIGCONT)
    wait_until(is_fresh)
    worker.stop()
    assert not health.exists()


# -- signals that express one wish, trouble with --state, many descriptors, odd ids


#: The command line with a second that takes as long as a busy machine may need.
ONE_WISH_ONLY = cli_with(ONE_WISH=PATIENCE)


@pytest.mark.parametrize(
    "pair", [("SIGHUP", "SIGHUP"), ("SIGTERM", "SIGHUP"), ("SIGINT", "SIGINT")]
)
def test_signals_to_stop_within_a_second_are_one(project, pair):
    """Signals of one wish, which come together, interrupt nothing.

    A terminal that closes sends SIGHUP twice (the kernel, and the shell), systemd SIGTERM and
    SIGHUP (SendSIGHUP=).
    """
    worker = project.worker("-t", "1", "--grace", "0.1", entry=ONE_WISH_ONLY)
    project.hold("a")
    worker.send_all(signal.Signals[pair[0]])
    worker.wait_for(f"{pair[0]}: stopping when what runs has ended")
    # At once: within ONE_WISH of the first.
    worker.send_all(signal.Signals[pair[1]])
    time.sleep(0.5)  # for what must not come
    project.go()
    assert worker.exit_code() == 0, worker.text
    assert project.notes() == ["a"] and " again: " not in worker.text


def test_a_signal_right_after_the_supervisor_has_died_interrupts_nothing(project):
    """SIGTERM to a process that stops because its supervisor has died is the same wish.

    systemd sends it to what is left of a service whose main process has died.
    """
    worker = project.worker("-t", "1", "--grace", "0.1", entry=ONE_WISH_ONLY)
    [pid] = project.hold("a")
    worker.send(signal.SIGKILL)
    worker.wait_for("The supervising process is gone")
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)  # for what must not come
    project.go()
    worker.process.wait()
    wait_until(lambda: not worker.lives)
    assert project.notes() == ["a"] and " again: " not in worker.text


def test_the_same_signal_counts_again_after_a_second():
    """Signals to stop are one kind, other signals each their own; SIGCHLD always counts."""
    signals = object.__new__(kuyruk_worker._Signals)
    signals._counted_at = {}
    came = [
        ("SIGHUP", 10.0), ("SIGHUP", 10.9), ("SIGTERM", 10.99), ("SIGUSR2", 10.99),
        ("SIGUSR2", 11.0), ("SIGINT", 11.01), ("SIGTERM", 12.0), ("SIGTERM", 12.02),
        ("SIGCHLD", 12.0), ("SIGCHLD", 12.0),
    ]  # fmt: skip
    counted = [(name, at) for name, at in came if signals.counts(name, at)]
    assert counted == [came[n] for n in (0, 3, 5, 7, 8, 9)]


def test_signals_are_waited_for_with_more_descriptors_than_select_takes():
    """A supervisor of many processes has descriptors above 1023, which select.select refuses."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard[1] != resource.RLIM_INFINITY and hard[1] < 1200:
        pytest.fail(f"this needs 1200 descriptors: ulimit -Hn is {hard[1]}")
    code = """
import fcntl, os, resource, time, kuyruk_worker
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
signals = kuyruk_worker._Signals()
here, there = kuyruk_worker._Pipe.make_pair()
high = kuyruk_worker._Pipe(fcntl.fcntl(there.fileno(), fcntl.F_DUPFD, 1100), there._writer)
began = time.monotonic()
signals.wait([high], began + 0.3)
assert 0.2 < time.monotonic() - began < 5
here.send("hello")
signals.wait([high])
print(high.fileno(), high.receive())
"""
    assert run_python("-c", code) == "1100 [['hello']]\n"


@pytest.mark.parametrize("trouble", ["removed", "cut", "the folder is gone"])
def test_a_worker_goes_on_when_somebody_tampers_with_its_state(project, broker, trouble):
    """A state that is removed or cut costs what it remembers; crashes are still counted."""
    folder = project.folder / "state"
    worker = project.worker("-t", "1", "--state", "state", "--max-crashes", "2", entry=QUICK)
    worker.wait_for_processes(1)
    [journal] = folder.glob("journal-*")
    if trouble == "cut":
        os.truncate(journal, 0)
    else:
        journal.unlink()
    if trouble == "the folder is gone":
        shutil.rmtree(folder)
    # Both deaths must be counted, though the first process's journal is gone.
    project.tasks.die("SIGKILL")
    project.tasks.note("after")
    wait_until(lambda: broker.count(f"{project.name}.failed") and project.notes() == ["after"])
    assert crashed(project, broker) == {"SIGKILL"}
    gone = "--state state can't be written, what the next process runs isn't noted there: [Errno 2]"
    assert (gone in worker.text) is (trouble == "the folder is gone")
    worker.stop()


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_state_and_nothing_else(tmp_path, monkeypatch, caplog):
    """On a full disk journals work in memory, and what is lost is logged."""
    state = kuyruk_worker._State(str(tmp_path), logging.getLogger("kuyruk"))
    begun_before = state.make_journal()
    monkeypatch.setattr(os, "pwrite", no_room)
    begun_after = state.make_journal()
    # One that was made while there was room, and one that could only be made in memory.
    for journal in (begun_before, begun_after):
        journal.begin("a")
        journal.begin("b")
        journal.end("a")
        assert journal.running == ["b"] and journal.exit_code is None
        journal.remove()
    assert "isn't noted there: [Errno 28] No space left on device" in caplog.text
    monkeypatch.setattr(json, "dump", no_room)
    assert state.blame(["b"]) == {"b": (1, 1)}
    assert "is forgotten when this worker ends: [Errno 28]" in caplog.text
    assert not list(tmp_path.glob("journal-*")) and not (tmp_path / "crashes.json").exists()
    state._lock.close()


@pytest.mark.parametrize("left", [b"", b"\0" * 300, os.urandom(5000), None])
def test_a_state_that_holds_nonsense_is_taken_over(tmp_path, left):
    """What can't be read in the state's folder is no reason not to start."""
    for name in ("journal-1-1", "crashes.json"):
        if left is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(left)
    state = kuyruk_worker._State(str(tmp_path), logging.getLogger("kuyruk"))
    with contextlib.closing(state.make_journal()) as journal:
        journal.begin("a")
        assert journal.running == ["a"]
    state._lock.close()


@pytest.mark.parametrize(
    ("id", "shown"),
    [("x\nINFO it is well\x1b[2J", r"x\nINFO it is well\x1b[2J"), ("ü" * 5000, "ü" * 255)],
)
def test_what_a_message_brings_is_written_to_the_log_in_one_line(project, broker, id, shown):
    """A message's id can't write lines, control codes or megabytes into the log."""
    broker.declare(project.name)
    message = body(id=id, module=project.name, function="hold", args=["odd"], kwargs={})
    broker.publish(project.name, message)
    worker = project.worker("-t", "1", entry=QUICK)
    [pid] = project.begun("odd")
    worker.send(signal.SIGUSR1)
    worker.wait_for("\n---\n")
    assert f"Task {project.name}.hold [{shown}] for " in worker.text
    # The supervisor has the id from the journal, and writes it, too.
    os.kill(pid, signal.SIGKILL)
    worker.wait_for(f"died while it ran {shown}: killed by SIGKILL")
    assert "\x1b" not in worker.text and "\nINFO it" not in worker.text


@pytest.mark.parametrize(("count", "noun", "text"), [
    (0, "message", "0 messages"), (1, "message", "1 message"), (2, "message", "2 messages"),
    (1, "process", "1 process"), (2, "process", "2 processes"),
])  # fmt: skip
def test_counts_are_words_that_fit(count, noun, text):
    """One message, two messages: a count fits its noun."""
    assert kuyruk_worker._counted(count, noun) == text


def test_an_unexpected_exception_does_not_end_the_supervisor(project):
    """A defect costs the supervisor a pause, is logged each time, and it goes on."""
    code = """
import os, sys, kuyruk_worker as module
module.DEFECT_PAUSE, scale, turns = 0.1, module._Supervisor._scale, []
def fail(self, now):
    turns.append(now)
    if len(turns) % 2:
        raise RuntimeError("no luck")
    return scale(self, now)
module._Supervisor._scale = fail
sys.exit(module.main())
"""
    worker = project.worker("-t", "1", entry=("-c", code))
    os.kill(worker.wait_for_processes(1), signal.SIGKILL)
    worker.wait_for_processes(2)
    assert project.tasks.note.send_to_queue(["on"], wait_result=PATIENCE) == "on"
    worker.end()
    defects = worker.text.count("Defect in the supervising process; it goes on")
    assert defects == worker.text.count("no luck\n") > 1


# -- what would be ignored without a word


@pytest.mark.parametrize("args", ["--state x", "--health x", "--max-memory 9", "-p 2"])
def test_options_that_need_processes_are_refused_where_there_are_none(args, monkeypatch):
    """Options of the supervisor are refused where there is no fork: they would have no effect."""
    kuyruk_worker._parse(["tasks", *args.split()])
    monkeypatch.delattr(os, "fork")
    with pytest.raises(kuyruk_worker.UsageError, match="needs a process that watches over others"):
        kuyruk_worker._parse(["tasks", *args.split()])


def test_a_health_file_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    """A health file that can't be is an error of one line, before the application is imported."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('imported')")
    where = f"there is no folder '{tmp_path}/no/such'"
    for path, words in (("no/such/file", where), (".", "it can't be written")):
        ended = run_cli(tmp_path, "tasks", "--health", path)
        assert ended.returncode == 2
        assert ended.stderr == f"python -m kuyruk_worker: error: --health {path}: {words}\n"


def warnings_of(text):
    """Return the warnings that a worker process has printed as it began."""
    return re.findall(r" WARNING \d+ MainThread: (.*)", text)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["one", "-q", "ones", "-q", "ones.2", "-q", "ones.localhost"], []),
        (["one", "more", "-q", "mores"], []),
        (
            ["one", "more", "-q", "ones", "-q", "onse"],
            ["no task of one:app names the queue 'onse': did you mean 'ones'? (they name 'ones',"
             " 'mores')"],
        ),
        (["one", "-q", "q\x1b"],
         [r"no task of one:app names the queue 'q\x1b' (they name 'ones')"]),
        (
            ["pkg.tasks"],
            ["pkg.tasks:app has no tasks yet: name the modules that have them, too, as in:"
             " python -m kuyruk_worker pkg.tasks package.tasks"],
        ),
    ],
)  # fmt: skip
def test_a_queue_that_no_task_names_is_warned_of(modules, args, words):
    """A queue that nobody sends to, or an application without tasks, is warned of."""
    ended = run_cli(modules, *args, "--broker", NOWHERE, "--max-run-time", "0.01")
    assert ended.returncode == 0, ended.stderr
    assert warnings_of(ended.stderr) == words


@pytest.mark.parametrize(
    ("code", "env", "args", "named"),
    [
        ("config = None", {"RABBIT_URL": NOWHERE, "WORKER_THREADS": "3"}, "",
         "RABBIT_URL, KUYRUK_WORKER_THREADS are"),
        ("config = None", {"RABBIT_URL": NOWHERE}, "", "RABBIT_URL is"),
        ("config = None", {"RABBIT_URL": NOWHERE, "WORKER_THREADS": "3"},
         f"--broker {NOWHERE} -t 1", None),
        (READS_ENVIRONMENT, {"RABBIT_URL": NOWHERE, "WORKER_THREADS": "3"}, "", None),
        (READS_ENVIRONMENT + "config.WORKER_GRACE = 1",
         {"WORKER_GRACE": "2", "WORKER_THREADS": "3"}, "", "WORKER_GRACE is"),
        ("config = None", {"WORKER_GRACE": "5", "TEST_URL": "x"}, "", None),  # the default; no key
    ],
)  # fmt: skip
def test_settings_in_the_environment_that_are_not_read_are_warned_of(
    tmp_path, code, env, args, named, monkeypatch
):
    """Variables that the configuration hasn't read are named: they have no effect."""
    for key, value in env.items():
        monkeypatch.setenv(f"KUYRUK_{key}", value)
    code += "\napp = kuyruk.Kuyruk(config)\n@app.task\ndef f(): pass\n"
    code = f"import kuyruk\nkuyruk.Config.RABBIT_PORT = 1\n{code}"  # nothing listens there
    (tmp_path / "tasks.py").write_text(code)
    ended = run_cli(tmp_path, "tasks", "--max-run-time", "0.01", *args.split(), url=None)
    assert ended.returncode == 0, ended.stderr
    warned = warnings_of(ended.stderr)
    beginnings = [
        line.split(" set in the environment, but the configuration")[0] for line in warned
    ]
    assert beginnings == ([f"KUYRUK_{named}"] if named else [])
    assert "amqp://" not in "".join(warned)


def test_the_broker_of_the_command_line_wins_and_its_password_is_shown_to_nobody(
    project, broker, url
):
    """`--broker` wins over the configuration; its password is in no message, log or error."""
    with_password = url.replace("amqp://", "amqp://guest:guest@") if "@" not in url else url
    assert "guest:guest@" in with_password
    worker = project.worker("--broker", with_password, url=NOWHERE)
    worker.wait_for("Consuming")
    assert project.tasks.command_line.send_to_queue(wait_result=PATIENCE).count("//...@") == 1
    worker.stop()
    assert "guest:guest" not in worker.text
    ended = run_cli(project.folder, project.name, "--brokr", with_password)
    assert ended.returncode == 2
    assert "did you mean '--broker'?" in ended.stderr
    assert "guest:guest" not in ended.stderr


def test_another_library_of_the_same_name_is_named_before_the_application_is_imported(tmp_path):
    """Beside another project's `kuyruk` the worker names both files in one line, and ends.

    A package wins over a module of the same folder: PyPI's kuyruk over this one.
    """
    for file in ("kuyruk.py", "kuyruk_worker.py"):
        shutil.copy(HERE / file, tmp_path)
    make_package(tmp_path, "kuyruk", __init__="raise SystemExit('imported')")
    (tmp_path / "tasks.py").write_text("raise SystemExit('imported')")
    # Both ways in, and all that can be asked of it.
    for entry in ("-m", "kuyruk_worker"), ("kuyruk_worker.py",):
        for args in (["tasks"], ["tasks", "--failed", "list"], ["--version"]):
            ended = run_cli(tmp_path, *args, entry=entry)
            assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
            for file in ("kuyruk/__init__.py", "kuyruk.py"):
                assert f"{tmp_path}/{file}" in ended.stderr


def test_a_module_of_the_same_name_that_is_no_library_is_named(tmp_path):
    """A user's own kuyruk.py that shadows the library is named."""
    shutil.copy(HERE / "kuyruk_worker.py", tmp_path)
    (tmp_path / "kuyruk.py").write_text("app = 1\n")
    ended = run_cli(tmp_path, "tasks")
    assert ended.returncode == 2
    assert f"another project's library, {tmp_path}/kuyruk.py" in ended.stderr


# -- failed messages and queues, looked at from a program


def test_failed_messages_are_objects_with_what_is_known_of_them(project, broker):
    """A FailedMessage has what the message and its headers say; None is for what is odd."""
    app = project.tasks.app
    assert list(app.failed_messages(project.name)) == []  # there is no such queue
    fail_by_hand(project, broker, 1)
    odd_headers = {"x-kuyruk-value": [1], "x-kuyruk-failures": "many"}
    broker.publish(f"{project.name}.failed", b"\x00", headers=odd_headers)
    task, odd = app.failed_messages(project.name)
    expected = {
        "id": "id0", "task": f"{project.name}.note", "args": ["n0"], "kwargs": {},
        "traceback": None, "exception": "builtins.ValueError", "value": "no\nsecond line",
        "queue": project.name, "failed_at": "2026-01-31T12:00:00+00:00", "failures": 2,
    }  # fmt: skip
    assert {key: getattr(task, key) for key in expected} == expected
    expected = {**dict.fromkeys(expected), "value": "[1]", "queue": project.name}
    assert {key: getattr(odd, key) for key in expected} == expected
    with pytest.raises(ValueError, match="a queue's name"):
        app.failed_messages("")


@pytest.mark.parametrize("when", ["meanwhile", "afterwards"])
def test_failed_messages_are_requeued_and_deleted_one_by_one(project, broker, when):
    """Messages may be dealt with during the iteration or after it, each once; the others stay."""
    fail_by_hand(project, broker, 30)
    messages = project.tasks.app.failed_messages(project.name)
    for n, message in enumerate(messages if when == "meanwhile" else list(messages)):
        assert message.id == f"id{n}"
        if n in (3, 17):
            message.requeue()
        elif n in (4, 29):
            message.delete()
            with pytest.raises(kuyruk.KuyrukError, match="was requeued or deleted already"):
                message.requeue()
    assert [args for (args,) in arguments_in(broker.take_all(project.name))] == ["n3", "n17"]
    gone = {"id3", "id17", "id4", "id29"}
    left = list(project.tasks.app.failed_messages(project.name))
    assert [message.id for message in left] == [f"id{n}" for n in range(30) if f"id{n}" not in gone]
    broker.channel.queue.purge(f"{project.name}.failed")
    says = f"message 'id0' isn't in '{project.name}.failed' any more"
    with pytest.raises(kuyruk.KuyrukError, match=says):
        left[0].delete()


def test_failed_messages_and_counts_of_queues_with_any_name(app, broker):
    """Queues that RabbitMQ takes can be looked at, though pamqp's check of names is narrower.

    The test makes one with the bytes of its name in place of a plain one's.
    """
    name = f"mails für alle*% {uuid.uuid4().hex[:8]}"
    assert app.queue_stats([name]) == {name: (None, None, 0)}
    assert list(app.failed_messages(name)) == []
    plain = "x" * len(f"{name}.failed".encode())
    number, data = int(broker.channel), f"{name}.failed".encode()
    # A plain name of the same length, whose bytes are then replaced in the frame.
    for request in (
        commands.Queue.Declare(queue=plain, durable=True, nowait=True),
        commands.Queue.Bind(queue=plain, exchange="amq.fanout", nowait=True),
    ):
        broker.connection.socket.sendall(
            frame.marshal(request, number).replace(plain.encode(), data)
        )
    broker.channel.basic.publish(body(id="a"), "", exchange="amq.fanout")
    wait_until(lambda: app.queue_stats([name])[name] == (None, None, 1))
    [message] = app.failed_messages(name)
    message.delete()
    wait_until(lambda: app.queue_stats([name])[name].failed == 0)
    delete = frame.marshal(commands.Queue.Delete(queue=plain, nowait=True), number)
    broker.connection.socket.sendall(delete.replace(plain.encode(), data))


def test_an_iteration_over_failed_messages_may_end_early(project, broker, caplog):
    """What an iteration hasn't come to, or has held, stays in the queue when it ends."""
    fail_by_hand(project, broker, 30)
    for message in project.tasks.app.failed_messages(project.name):
        if message.id == "id15":
            message.delete()
            break
    wait_until(lambda: broker.count(f"{project.name}.failed") == 29)
    assert not caplog.records


def test_failed_messages_are_fetched_a_few_at_a_time(project, broker):
    """An iteration holds a hundred messages at most: a large queue doesn't fill the memory."""
    # 60 MB in all.
    fail_by_hand(project, broker, 600, size=100_000)
    for n, _ in enumerate(project.tasks.app.failed_messages(project.name), 1):
        if n % 97 == 0:
            assert broker.count(f"{project.name}.failed") >= 600 - n - 100
    assert n == 600
    wait_until(lambda: broker.count(f"{project.name}.failed") == 600)


def test_an_odd_failed_message_is_named_and_keeps_no_other_from_being_sent_again(
    project, broker, monkeypatch
):
    """A message that can't be sent again is named, its neighbours are sent."""
    monkeypatch.setenv("KUYRUK_RABBIT_PUBLISH_TIMEOUT", "1")
    fail_by_hand(project, broker, 5)
    full = f"{project.name}.{HOSTNAME}"
    broker.declare(full, **{"x-max-length": 0, "x-overflow": "reject-publish"})
    for id, queue in (("empty", ""), ("lo\nng", "x" * 256), ("full", full)):
        broker.publish(f"{project.name}.failed", body(id=id), headers={"x-kuyruk-queue": queue})
    last = body(id="last", module=project.name, function="note", args=["last"])
    broker.publish(f"{project.name}.failed", last)
    wait_until(lambda: broker.count(f"{project.name}.failed") == 9)
    ended = run_cli(project.folder, project.name, "--failed", "requeue", url=project.url)
    assert ended.returncode == 1
    named = re.findall(rf"^(\S+) stays in {project.name}.failed: .", ended.stderr, re.MULTILINE)
    assert named == [r"lo\nng", "full"]
    assert ended.stdout == f"{project.name}.failed: 7 messages sent again\n"
    sent = sorted(args[0] for args in arguments_in(broker.take_all(project.name)) if args)
    assert sent == ["last", *(f"n{n}" for n in range(5))]


def test_failed_messages_of_a_queue_that_is_not_there_are_an_error(project, broker):
    """A misspelt `-q` is an error, not "0 messages"."""
    for args in (["--failed", "list"], ["--failed", "purge"], ["--status"]):
        ended = run_cli(project.folder, project.name, *args, "-q", "nosuch", url=project.url)
        assert (ended.returncode, ended.stdout) == (2, "")
        says = "error: -q/--queue: there is no queue 'nosuch' at the broker"
        assert ended.stderr == f"python -m kuyruk_worker: {says}\n"
    broker.declare(project.name)
    assert run_failed(project, "list", "-q", project.name) == f"{project.name}.failed: 0 messages\n"


def test_failed_messages_are_listed_on_a_terminal_that_lacks_letters(project, broker, monkeypatch):
    """Letters that the terminal's encoding lacks are shown as escapes."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    broker.declare(f"{project.name}.failed")
    failed, message = f"{project.name}.failed", body(id="ü\U0001f600")
    broker.publish(failed, message, headers={"x-kuyruk-value": "nö"})
    line, total = run_failed(project, "list").splitlines()
    assert line.startswith(r"\xfc\U0001f600  ") and line.endswith(r"None: n\xf6")
    assert total == f"{project.name}.failed: 1 message"


def test_queue_stats_tell_what_is_in_the_queues(project, broker):
    """`queue_stats` and `--status` count the same; messages without a consumer are exit code 1."""
    app, name = project.tasks.app, project.name
    assert app.queue_stats() == {name: (None, None, 0)}
    ended = run_cli(project.folder, name, "--status", url=project.url)
    assert ended.returncode == 0 and ended.stdout.splitlines()[1].split() == [name, "-", "-", "0"]
    fail_by_hand(project, broker, 3)
    project.tasks.note("waits")
    stats = app.queue_stats([name, f"{name}.localhost"])
    assert stats == {name: (1, 0, 3), f"{name}.{HOSTNAME}": (None, None, 0)}
    assert stats[name].waiting == 1 and stats[name].consumers == 0 and stats[name].failed == 3
    ended = run_cli(project.folder, name, "--status", "--json", url=project.url)
    assert ended.returncode == 1  # it has a message and no consumer
    assert json.loads(ended.stdout) == {"queue": name, "waiting": 1, "consumers": 0, "failed": 3}
    worker = project.worker()
    wait_until(lambda: app.queue_stats(name) == {name: (0, 1, 3)})
    ended = run_cli(project.folder, name, "--status", url=project.url)
    assert ended.returncode == 0 and ended.stdout.splitlines()[1].split() == [name, "0", "1", "3"]
    worker.stop()
    with pytest.raises(ValueError, match="a queue's name"):
        app.queue_stats([""])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux")
def test_a_process_that_uses_too_much_memory_is_replaced_when_another_consumes(project):
    """A process above `--max-memory` ends when another consumes and its own tasks have ended."""
    worker = project.worker("-t", "2", "--max-memory", "120", entry=cli_with(PULSE=0.2))
    # An empty worker has a quarter of that, and one with 150 MB more is above it.
    first = worker.wait_for_processes(1)
    project.hold("long")
    assert project.tasks.grow.send_to_queue([150], wait_result=PATIENCE) == first
    second = worker.wait_for_processes(2)
    worker.wait_for(
        "(--max-memory 120): another takes its place", "another process has taken its place"
    )
    assert project.tasks.process_id.send_to_queue(wait_result=PATIENCE) == second
    project.go()
    wait_until(lambda: project.notes() == ["long"])  # in the old one, to its end
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    # Said once, and not at each look.
    worker.stop()
    assert worker.pids == [first, second] and worker.text.count("--max-memory") == 1


@pytest.mark.parametrize("command", ["list", "list --json", "requeue", "purge"])
def test_an_id_that_no_failed_message_has_is_an_error(command, project, broker):
    """`--id` that no queue has is an error, one that is in one of several queues isn't."""
    fail_by_hand(project, broker, 2)
    words = ["--failed", *command.split(), "--id"]
    ended = run_cli(project.folder, project.name, *words, "id7", url=project.url)
    assert ended.returncode == 1 and "message" not in ended.stdout
    says = f"error: no message in {project.name}.failed has the id 'id7'"
    assert ended.stderr == f"python -m kuyruk_worker: {says}\n"
    assert wait_until(lambda: broker.count(f"{project.name}.failed")) == 2
    # one that is in one of the queues is found
    queues = ["-q", project.name, "-q", f"{project.name}.2"]
    broker.declare(f"{project.name}.2")
    ended = run_cli(project.folder, project.name, *words, "id1", *queues, url=project.url)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # amqpstorm's socket
@pytest.mark.parametrize(
    "call",
    [
        lambda app: app.connection().__enter__(),
        lambda app: app.channel().__enter__(),
        lambda app: app.queue_stats(["q"]),
        lambda app: next(app.failed_messages("q")),
    ],
)
def test_a_broker_that_does_not_answer_is_named_once_with_the_reason(call, make_app):
    """The error names each address that was tried, once, with its reason."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never says a word
        ports = silent.getsockname()[1], unused_port()
        url = f"amqp://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/"
        app = make_app(url, RABBIT_CONNECT_TIMEOUT=0.3)
        with pytest.raises(amqpstorm.AMQPConnectionError) as info:
            call(app)
    text = str(info.value)
    assert text.startswith("can't connect to RabbitMQ at ") and text.count("onnect to") == 1
    assert [text.count(str(port)) for port in ports] == [1, 1], text
    assert f"127.0.0.1:{ports[1]} (Connection refused)" in text and "None" not in text
    gc.collect()  # what amqpstorm has left open warns here


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = (", "SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("raise SystemExit", "SystemExit"),
        ("import sys; sys.exit('no DATABASE')", "SystemExit: no DATABASE"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('a\\nb')", r"ValueError: a\nb"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_last_line(code, says, tmp_path):
    """The last line names the module and the error: it is what a log of the last line shows."""
    (tmp_path / "broken.py").write_text(code)
    ended = run_cli(tmp_path, "broken")
    error = "python -m kuyruk_worker: error: module 'broken' can't be imported (see above)"
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1] == f"{error}: {says}"


@pytest.mark.parametrize("unbuffered", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("to", ["nobody", "a full disk"])
def test_output_that_cannot_be_written_is_an_error_of_one_line_or_none(
    to, unbuffered, project, broker
):
    """A reader that has gone (`| head`) is no error to speak of; a full disk is one line."""
    fail_by_hand(project, broker, 3)
    reader, writer = os.pipe()
    os.close(reader)
    if to == "a full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer)
    # Python writes buffered output at its end only, where an error is easily missed.
    env = {**cli_environment(project.url), "PYTHONUNBUFFERED": ""}
    for args in (["--failed", "list"], ["--status"], ["--status", "--json"], ["--version"]):
        ended = subprocess.run(
            [sys.executable, *unbuffered, *CLI, project.name, *args],
            cwd=project.folder, env=env, stdout=writer,
            stderr=subprocess.PIPE, text=True, timeout=PATIENCE,
        )  # fmt: skip
        says = "" if to == "nobody" else f"error: [Errno {errno.ENOSPC}] No space left on device\n"
        assert ended.returncode == 1, (args, ended.stderr)
        assert ended.stderr in (says, f"python -m kuyruk_worker: {says}"), args
    os.close(writer)


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        ("ONE", "one"), ("PKG.Tasks", "pkg"), ("pkg.TASKS", "pkg.tasks"),
        ("one --THREADS 4", "--threads"),
        ("one -T 4", "-t"), ("one -q ONES --max-run-time 0.1", "ones"),
    ],
)  # fmt: skip
def test_what_is_written_in_other_letters_is_named(args, meant, modules):
    """A name in other letters, capitals say, is a likely meaning."""
    ended = run_cli(modules, *args.split())
    assert f": did you mean {meant!r}?" in ended.stderr, ended.stderr


@pytest.mark.parametrize("command", [[], ["--status"], ["--failed", "list"]], ids=" ".join)
def test_a_queue_of_failed_messages_is_named_by_its_own(command, modules):
    """`-q name.failed` is refused: the error says how to look at failed messages."""
    ended = run_cli(modules, "one", *command, "-q", "ones.failed")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "'ones.failed' holds the messages of 'ones' that have failed" in ended.stderr
    assert "python -m kuyruk_worker one --failed requeue -q ones" in ended.stderr


@pytest.mark.parametrize(
    ("of_config", "args", "warns"),
    [
        (None, [], False),
        ("amqp://127.0.0.1:1/", [], True),
        ("amqp://127.0.0.1:1/", ["--broker", "amqp://127.0.0.1:1/"], False),
    ],
)
def test_an_address_of_the_environment_that_a_url_beats_is_warned_of(
    of_config, args, warns, tmp_path, monkeypatch
):
    """RABBIT_URL wins over RABBIT_HOST and the like: where both are set, that is said."""
    code = f"{READS_ENVIRONMENT}config.RABBIT_URL = {of_config!r}\napp = kuyruk.Kuyruk(config)\n"
    (tmp_path / "tasks.py").write_text(f"import kuyruk\n{code}@app.task\ndef f(): pass\n")
    monkeypatch.setenv("KUYRUK_RABBIT_HOST", "rabbit.invalid")
    monkeypatch.setenv("KUYRUK_RABBIT_PASSWORD", "hunter2")
    ended = run_cli(tmp_path, "tasks", *args, "--max-run-time", "0.1", url=None)
    says = (
        "KUYRUK_RABBIT_HOST, KUYRUK_RABBIT_PASSWORD has no effect: the configuration has a RABBIT"
    )
    assert (ended.returncode, says in ended.stderr) == (0, warns), ended.stderr
    assert "hunter2" not in ended.stderr


def looks_at_frozen(looks, read_pulse):
    """Return at which of these looks, times of its clock, the supervisor has killed a process.
    read_pulse: called for each reading of the process's pulse."""
    killed = []

    def kill(child, why):
        child.killed = True
        killed.append(now)

    class Journal:
        exit_code = None
        pulse = property(lambda self: read_pulse())

    supervisor = object.__new__(kuyruk_worker._Supervisor)
    supervisor._settings, supervisor._looked_at = {"RABBIT_HEARTBEAT": 60}, math.inf
    supervisor._children = {1: kuyruk_worker._Child(1, None, Journal())}
    supervisor._kill = kill
    for now in looks:
        supervisor._kill_frozen(now)
    return killed


def test_a_process_whose_first_pulse_comes_while_it_is_looked_at_is_not_frozen():
    """A process isn't killed for a pulse that came between two looks at it."""
    pulses = iter([0, *[1000] * 9])  # as another process writes them
    assert looks_at_frozen([1000.0, 1000.0], lambda: next(pulses)) == []


def test_a_process_without_a_pulse_is_frozen_but_not_while_its_supervisor_was():
    """Ctrl-Z and a suspended machine stop all processes: they get their time anew after that."""
    limit = kuyruk_worker.FROZEN * 60
    looks = [1000.0 + n * kuyruk_worker.PULSE for n in range(100)]
    [at] = looks_at_frozen(looks, lambda: 1000)
    assert limit < at - 1000 <= limit + kuyruk_worker.PULSE
    assert looks_at_frozen([1000.0, 1000.0 + 2 * limit], lambda: 1000) == []


def test_pauses_before_processes_grow_up_to_a_limit_and_begin_anew_when_all_goes_well():
    """Each further death of a process costs twice the time, unless one has run for PROVED
    seconds."""
    first, last = kuyruk_worker.FIRST_PAUSE, kuyruk_worker.LAST_PAUSE
    supervisor = object.__new__(kuyruk_worker._Supervisor)
    supervisor._start_at, supervisor._last_pause = time.monotonic(), 0.0
    pauses = [supervisor._pause() for _ in range(20)]
    assert (pauses[:3], pauses[-1]) == ([first, 2 * first, 4 * first], last)
    supervisor._start_at -= last + kuyruk_worker.PROVED  # as if it had been so long ago
    assert supervisor._pause() == first


def test_a_process_that_can_not_be_forked_is_tried_again(project):
    """A moment without memory, or processes, for another one doesn't end the supervisor."""
    code = """
import errno, os, sys, kuyruk_worker as module
fork, failures = os.fork, [errno.ENOMEM, errno.EAGAIN]
def fail():
    if failures:
        raise OSError(failures.pop(), "not now")
    return fork()
os.fork = fail
sys.exit(module.main())
"""
    worker = project.worker(entry=("-c", code))
    worker.wait_for_processes(1)
    assert worker.text.count("supervisor: Can't start a process: ") == 2
    worker.end()


def test_a_state_is_taken_over_from_the_dead_only(tmp_path):
    """Neither the state nor the journal of a process that lives is another's to read."""
    state = kuyruk_worker._State(str(tmp_path), kuyruk_worker.logger)
    with contextlib.closing(state.make_journal()) as journal:
        journal.hold()
        journal.begin("a")
        ended = run_cli(tmp_path, "tasks", "--state", str(tmp_path))
        says = f"error: --state {tmp_path}: another worker uses it\n"
        assert (ended.returncode, ended.stderr) == (2, f"python -m kuyruk_worker: {says}")
        state._lock.close()
        code = f"""
import kuyruk_worker
state = kuyruk_worker._State({str(tmp_path)!r}, kuyruk_worker.logger)
print(state.crashes)
state._lock.close()
"""
        assert run_python("-c", code) == "{}\n"
    assert run_python("-c", code) == "{'a': (1, 1)}\n"


def test_a_state_remembers_no_more_than_so_many_suspects():
    """Memory stays flat though each death has other messages: the oldest are forgotten."""
    state, most = kuyruk_worker._State(None, kuyruk_worker.logger), kuyruk_worker.MAX_SUSPECTS
    for n in range(most + 10):
        state.blame([n])
    assert list(state.crashes) == list(range(10, most + 10))


# -- faults of processes: what they were started with, and how they end


@pytest.mark.parametrize("closed", [(0, 1, 2), (2,)], ids=str)
def test_standard_streams_that_are_closed_become_no_file_of_ours(closed, tmp_path):
    """What C code writes to stderr would end up in it: a connection, or the journal."""
    (tmp_path / "tasks.py").write_text("""
import os, pathlib, sys
import kuyruk
files = [f"/proc/self/fd/{n}" for n in range(3)]
opened = [os.path.exists(file) and os.readlink(file) for file in files]
pathlib.Path("opened").write_text(repr((opened, None in (sys.stdin, sys.stdout, sys.stderr))))
app = kuyruk.Kuyruk()
""")
    code = f"import os, sys\nfor n in {closed}: os.close(n)\n"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    entry = ("-c", code, *CLI)
    ended = run_cli(tmp_path, "tasks", "--max-run-time", "0.01", "--state", "s", entry=entry)
    assert (ended.returncode, ended.stderr) == (0, "")
    opened, is_none = ast.literal_eval((tmp_path / "opened").read_text())
    assert [opened[n] for n in closed] == [os.devnull] * len(closed) and not is_none


def test_the_last_words_of_a_process_may_fail(tmp_path):
    code = "import sys, kuyruk_worker\nsys.stdout = open('/dev/full', 'w')\nprint('lost')\n"
    run_python("-c", f"{code}kuyruk_worker._exit_now(0)")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGQUIT, 131), (signal.SIGTERM, 0)])
def test_a_log_that_nobody_reads_any_more_holds_up_no_end(number, code, project):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *CLI, project.name, "-t", "1"], cwd=project.folder,
        env=cli_environment(project.url), stderr=writer, start_new_session=True,
    )  # fmt: skip
    try:
        project.tasks.note("begins")
        wait_until(project.notes)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x")
        os.set_blocking(writer, True)
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        wait_until(lambda: not lives(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reader)
        os.close(writer)


def test_a_supervisor_whose_log_nobody_reads_goes_on():
    code = """
import contextlib, os, kuyruk_worker as module
reader, writer = os.pipe()
os.set_blocking(writer, False)
with contextlib.suppress(BlockingIOError):
    while True:
        os.write(writer, b"x")
os.set_blocking(writer, True)
os.dup2(writer, 2)
module.FLUSH_TIMEOUT = 0.1
module._make_log("INFO").error("lost")
os.read(reader, 0x10000)
module._make_log("INFO").error("written")
print(os.read(reader, 0x10000).decode().count("written"))
"""
    assert run_python("-c", code) in ("1\n", "2\n")  # each log has a handler of its own


def test_what_sigquit_ends_is_no_crash(project):
    worker = project.worker("-p", "2", "-t", "1", "--state", "state")
    worker.wait_for_processes(2)
    project.tasks.hold("a")
    project.begun("a")
    worker.send(signal.SIGQUIT)
    assert worker.exit_code() == 131
    project.worker("--state", "state").wait_for("Consuming")
    assert not (project.folder / "state" / "crashes.json").exists()


def test_sigquit_is_heard_although_a_process_has_gone_meanwhile(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    supervisor, quit = object.__new__(kuyruk_worker._Supervisor), []
    with contextlib.closing(kuyruk_worker._Journal({})) as journal:
        supervisor._children = {gone.pid: kuyruk_worker._Child(gone.pid, None, journal)}
        monkeypatch.setattr(kuyruk_worker, "_quit", lambda: quit.append(True))
        supervisor._quit()
    assert quit == [True]


def test_a_process_that_threads_of_the_application_keep_alive_is_replaced(tmp_path, cli_worker):
    (tmp_path / "tasks.py").write_text("""
import os, threading, time
import kuyruk
config = kuyruk.Config()
config.from_env_vars()
config.RABBIT_HEARTBEAT = 1
app = kuyruk.Kuyruk(config)
if not os.path.exists("first"):
    open("first", "w").close()
    threading.Thread(target=time.sleep, args=[600]).start()
""")
    worker = cli_worker(tmp_path, "tasks", url=NOWHERE, entry=cli_with(PULSE=0.2, FIRST_PAUSE=0.02))
    worker.wait_for("Waiting for RabbitMQ")
    [pid] = re.findall(r" (\d+) MainThread: kuyruk ", worker.text)
    os.kill(int(pid), signal.SIGTERM)
    worker.wait_for(f"Process {pid} is killed", f"Process {pid} has stopped, another one takes")
    wait_until(lambda: len(re.findall(r" (\d+) MainThread: kuyruk ", worker.text)) == 2)
    worker.stop()


def test_a_process_that_the_application_forks_at_its_import_ends_by_a_signal(tmp_path):
    (tmp_path / "tasks.py").write_text("""
import os, pathlib, signal, time
import kuyruk
pid = os.fork()
if not pid:
    time.sleep(600)
    os._exit(0)
os.kill(pid, signal.SIGTERM)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
pathlib.Path("status").write_text(str(status))
app = kuyruk.Kuyruk()
""")
    ended = run_cli(tmp_path, "tasks", "--max-run-time", "0.01")
    assert ended.returncode == 0 and "worker of tasks:app" in ended.stderr
    assert (tmp_path / "status").read_text() == str(-signal.SIGTERM)


def test_an_import_that_ends_the_process_with_the_code_of_a_wrong_command_line_is_named(tmp_path):
    (tmp_path / "ends.py").write_text("import os\nos._exit(2)\n")
    ended = run_cli(tmp_path, "ends", entry=QUICK)
    assert ended.returncode == 1
    assert "Giving up: 3 processes in a row couldn't start (exit code 2)" in ended.stderr


def test_a_signal_to_stop_to_a_process_that_imports_is_no_failed_start(tmp_path, cli_worker):
    (tmp_path / "slow.py").write_text("""
import os, signal, time
import kuyruk
app = kuyruk.Kuyruk()
if not os.path.exists("first"):
    open("first", "w").close()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)
""")
    worker = cli_worker(tmp_path, "slow", url=NOWHERE)
    worker.wait_for("SIGTERM: stopped before", "has stopped, another one takes", "worker of slow")
    worker.stop()


@pytest.mark.parametrize("path", ["", "a pipe", os.devnull])
def test_a_health_file_that_is_no_file_is_refused(path, tmp_path):
    (tmp_path / "tasks.py").write_text("raise SystemExit('imported')")
    os.mkfifo(tmp_path / "a pipe")
    ended = run_cli(tmp_path, "tasks", "--health", path)
    assert ended.returncode == 2
    assert ended.stderr == f"python -m kuyruk_worker: error: --health {path}: it can't be written\n"
    assert os.path.exists(os.devnull)


@pytest.mark.parametrize("args", [[], ["--failed", "list"], ["--health", "x"], ["--state", "x"]])
def test_a_current_folder_that_is_gone_is_explained_in_one_line(args, tmp_path):
    code = "import os, sys, kuyruk_worker\nos.mkdir('gone')\nos.chdir('gone')\n"
    code += "os.rmdir('../gone')\nsys.exit(kuyruk_worker.main())\n"
    ended = run_cli(tmp_path, "tasks", *args, entry=("-W", "error", "-c", code))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1 and "[Errno 2]" in ended.stderr


def test_a_file_system_without_locks_is_not_another_worker(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", lockf)
    with pytest.raises(kuyruk_worker.UsageError, match=os.strerror(errno.ENOLCK)):
        kuyruk_worker._State(str(tmp_path), logging.getLogger("kuyruk"))


def test_a_message_through_a_full_pipe_is_whole_or_its_sender_knows(pipes):
    here, there = pipes
    sent = [n for n in range(3000) if here.send("ask", f"{n}{'é' * (n % 600)}")]
    received = list(itertools.chain.from_iterable(iter(there.receive, [])))
    assert 0 < len(sent) < 3000
    assert [int(id.rstrip("é")) for _, id in received] == sent


def test_a_journal_survives_what_fails_and_what_is_no_text(journal, monkeypatch):
    def fail(*_):
        raise MemoryError

    for id in "abc":
        journal.begin(id)
    for id in ("new", "b"):  # in a new slot, and in one that was used
        journal.end(id)
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_write", fail)
            with pytest.raises(MemoryError):
                journal.begin(id)
    for id in "def":
        journal.begin(id)
    assert sorted(journal.running) == list("acdef")
    journal._memory[journal.SLOT + 2] = 0xFF  # as if "a" were being written just now
    assert sorted(journal.running) == list("cdef")


def test_signals_that_the_application_blocks_at_its_import_are_heard(tmp_path, cli_worker):
    (tmp_path / "tasks.py").write_text("""
import signal
import kuyruk
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
config = kuyruk.Config()
config.from_env_vars()
app = kuyruk.Kuyruk(config)
""")
    worker = cli_worker(tmp_path, "tasks", url=NOWHERE)
    worker.wait_for("Waiting for RabbitMQ")
    worker.stop()


# --- Quorum queues, and a cluster ----------------------------------------------

QUORUM = {"x-queue-type": "quorum"}
#: More deliveries than RabbitMQ 4 allows a message of a quorum queue, unless told otherwise: 20.
MANY = 25
#: A configuration with which RabbitMQ 3.10 makes a second attempt to bring a delayed message back,
#: which it may need, after 2 seconds, not after 3 minutes.
SOONER = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}]."


@pytest.fixture
def quorum_app(make_app, url):
    return make_app(url, QUEUE_ARGUMENTS=QUORUM)


def test_a_task_in_a_quorum_queue_may_reject_often(quorum_app, queue, start):
    """Rejections don't count as deliveries: RabbitMQ would drop the message at its limit."""
    script[:] = [kuyruk.Reject()] * MANY + ["the end"]
    start(quorum_app, [queue])
    quorum_app.task(queue)(play)()
    wait_until(lambda: not script)


def test_a_message_in_a_quorum_queue_outlives_many_lost_connections(
    quorum_app, make_app, proxy, queue, start
):
    """Lost connections don't use up a message: our quorum queues have no limit of deliveries."""
    # The worker's way is cut, the sender's isn't.
    app = make_app(proxy.url, QUEUE_ARGUMENTS=QUORUM)
    app.task(queue)(hold)
    worker = start(app, reconnect_interval=0.1)
    quorum_app.task(queue)(hold)(7)
    for count in range(MANY):
        wait_until(lambda count=count: ran.count(7) > count)
        proxy.cut()
    release.set()
    wait_until(lambda: worker.stats["succeeded"])


@pytest.mark.parametrize("then", ["requeue", "purge"])
def test_a_failed_message_in_a_quorum_queue_may_be_looked_at_often(
    then, quorum_app, queue, broker, start
):
    """Looking at failed messages doesn't use them up: they can still be requeued and deleted."""
    script[:] = [ValueError("no"), "the end"]
    task = quorum_app.task(queue)(play)
    start(quorum_app)
    task()
    wait_until(lambda: broker.count(f"{queue}.failed"))
    for _ in range(MANY):
        [message] = quorum_app.failed_messages(queue)
        assert (message.task, message.value) == (task.name, "no")
    message.requeue() if then == "requeue" else message.delete()
    wait_until(lambda: len(script) == (then == "purge"))
    assert broker.count(f"{queue}.failed") == 0


@pytest.mark.parametrize(
    ("option", "error"), [("fail_delay", ValueError()), ("reject_delay", kuyruk.Reject())]
)
def test_a_delayed_message_of_a_quorum_queue_comes_back_on_time(
    option, error, quorum_app, queue, start
):
    """Delays of quorum queues are as those of classic ones: on time, and at least once."""
    script[:] = [error, "the end"]
    task = quorum_app.task(queue, **{option: 1})(play)
    start(quorum_app)
    task()
    wait_until(lambda: not script)
    first, second = ran
    assert 1 <= second - first < 1 + SOON


def test_queues_that_are_derived_from_a_quorum_queue_are_such_too(make_app, node, queue, start):
    """The queues for failed and for delayed messages are as safe as the task's own."""
    app = make_app(node.url, QUEUE_ARGUMENTS=QUORUM)
    script.append(ValueError())
    app.task(queue, fail_delay=300)(play)()
    app.task(queue)(add)("not", "numbers", "but three")
    worker = start(app)
    wait_until(lambda: worker.stats["failed"] == 2 and not worker.stats["running"])
    listed = node.ctl("list_queues", "name", "type", "arguments").splitlines()
    rows = [row.split("\t") for row in listed if row.startswith(queue)]
    # Without a limit of ours RabbitMQ 4 drops what it has delivered 20 times.
    limits = {n: (kind, *re.findall(r'"x-delivery-limit",(\d+)', more)) for n, kind, more in rows}
    names = [queue, f"{queue}.failed", f"{queue}.delay.300000"]
    assert limits == dict.fromkeys(names, ("quorum", str(kuyruk.DELIVERY_LIMIT)))


@pytest.fixture(scope="module")
def a_cluster():
    """A cluster of three nodes, for the module: it takes half a minute to start."""
    with RabbitmqCluster(advanced=SOONER) as cluster:
        yield cluster


@pytest.fixture
def cluster(a_cluster):
    """A cluster whose nodes a test may kill: all three run when it begins."""
    a_cluster.start()
    return a_cluster


@pytest.fixture
def cluster_app(make_app, cluster):
    return make_app(
        None, RABBIT_HOST=cluster.hosts, QUEUE_ARGUMENTS=QUORUM, RABBIT_PUBLISH_TIMEOUT=2
    )


def node_of(worker, cluster):
    """Return the node that the worker is connected to."""
    address = worker._keeper.connection.address
    [node] = [node for node in cluster.nodes if address.endswith(f":{node.port}")]
    return node


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
def test_nothing_is_lost_when_the_leading_nodes_fall_in_rotation(cluster, tmp_path):
    """Two nodes are killed in turn under load: what was confirmed runs, and no send waits long."""
    fault = chaos.FAULTS["leading node killed"]
    pace = chaos.Pace(before=0.5, outage=1.0, after=0.5)
    lane = chaos.Lane(cluster.nodes[0], fault, pace, 0, 50, cluster, tmp_path, PATIENCE)
    row = chaos.run_lane(lane, functools.partial(chaos.strike_in_turn, kills=2))
    assert (lane.violations, row.lost) == ([], 0), row  # a call may lose its answer
    # It was a real load; and the seconds are far more than an election takes.
    assert row.confirmed > 100 and row.send < 10 and row.silence < 10, row


def test_worker_and_sender_go_on_at_another_node_as_long_as_theirs_is_down(
    cluster_app, cluster, queue, start
):
    """Worker and sender find another of the hosts, and don't wait for the dead one."""
    task = cluster_app.task(queue)(echo)
    worker = start(cluster_app)
    assert task.send_to_queue((1,), wait_result=SOON) == 1
    mine = node_of(worker, cluster)
    mine.kill()
    with takes(0, PATIENCE):
        wait_until(lambda: worker.healthy and node_of(worker, cluster) is not mine)
        for number in (2, 3):
            assert task.send_to_queue((number,), wait_result=PATIENCE) == number
    assert mine.pid is None


def test_without_a_majority_sends_are_refused_until_it_is_back(cluster_app, cluster, queue, start):
    """A quorum queue without a majority confirms nothing: sends raise in time, until it is back."""
    task = cluster_app.task(queue)(echo)
    start(cluster_app, reconnect_interval=1)
    task(0)
    # A node that is killed forgets what it hasn't written yet: the new queue, say.
    cluster.flush()
    for node in cluster.nodes[:2]:
        node.kill()
    for number in (1, 2):
        with takes(1, 2 + SOON), pytest.raises(kuyruk.BrokerError):
            task(number)
    for node in cluster.nodes[:2]:
        node.launch()

    def is_sent():
        with contextlib.suppress(kuyruk.BrokerError):
            return task(3) is None

    wait_until(is_sent, timeout=3 * PATIENCE)
    wait_until(lambda: {(0,), (3,)} <= set(ran))


# --- Bad input, generated ------------------------------------------------------

#: The same each time, and no files. Without shrinking, which takes minutes with a broker.
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def generated(count, *strategies):
    """Run the test, or a part of it, with so many generated arguments."""
    return lambda test: settings(REPEATABLE, max_examples=count)(given(*strategies)(test))


def test_generated_messages_are_each_settled_and_the_worker_goes_on(url, queue):
    """350 messages of all shapes each run or fail, once; the worker goes on (tools/fuzz.py,
    shorter)."""
    with fuzz.Fuzz(url, queue) as run:
        fuzz.generate(350, None, run.send)
        violations = run.check()
    assert violations == [] and run.figures["confirmed"] > 200
    # What is generated is another with each version of hypothesis. Some of it runs, most doesn't.
    assert {name.partition(" (")[0] for name in run.figures} >= {"ran", "failed"}, run.figures


def headers_of(*entries):
    """Return properties that are headers only, as on the wire."""
    table = b"".join(fuzz.short(name) + value for name, value in entries)
    return struct.pack(">H", 1 << 13) + fuzz.long(table)


def one_header(value):
    return headers_of((b"a", value))


NO_PROPERTIES = struct.pack(">H", 0)
# RabbitMQ takes headers of up to a frame, 128 kB: this leaves little of that.
BIG_HEADER = headers_of((b"big", b"S" + fuzz.long(b"x" * 115_000)))
#: A body, properties, and what the reason says.
MORE_POISON = {
    # Python's limit of calls, which decoding and encoding reach at different depths.
    **{
        f"{n} tables in each other": (b"x", one_header(fuzz.nested(b"F", n)), "JSON|decoded")
        for n in range(484, 496)
    },
    "what RabbitMQ 3.10 fails to pass on": (
        b"x", headers_of((b"x-death", b"A" + fuzz.long(b"V"))), "JSON",
    ),
    "a text that is none": (b"x", one_header(b"S" + fuzz.long(b"\xff")), "JSON"),
    "a decimal that can't be written": (b"x", one_header(b"D\x00\xff\xff\xff\xff"), "JSON"),
    "a number that can't be written": (b"x", one_header(b"d" + struct.pack(">d", 1e300)), "JSON"),
    "a time that can't be written": (
        b"x", one_header(b"T" + struct.pack(">q", -1)), "JSON|decoded",
    ),
    "arrays in each other": (b"x", one_header(fuzz.nested(b"A", 489)), "JSON"),
    "headers that leave no room for ours": (body(function="x" * 900), BIG_HEADER, "xxx"),
    "headers that leave no room for a long text": (
        body(kwargs={"語" * 9000: 1}), BIG_HEADER, "argument",
    ),
    **{
        f"a module of {n} parts": (
            body(module="test_kuyruk" + ".a" * n), NO_PROPERTIES, "characters",
        )
        for n in (3000, 5_000_000)
    },
    "a function of 10 MB": (body(function="x" * 10_000_000), NO_PROPERTIES, "characters"),
    "a module with a zero byte": (body(module="test_kuyruk.\0"), NO_PROPERTIES, "test_kuyruk."),
    "a module that is no text": (body(module="test_kuyruk.\ud800"), NO_PROPERTIES, "d800"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("poison", "properties", "reason"), MORE_POISON.values(), ids=MORE_POISON.keys()
)
def test_a_message_that_breaks_more_than_its_task_fails_at_once(
    poison, properties, reason, app, url, queue, broker, start, caplog
):
    """What is too deep, too large or can't be written again fails at once, with a reason."""
    task = app.task(queue)(add)
    broker.declare(queue)
    start(app)
    # With its bytes as they are: pamqp would refuse to encode most of these.
    with contextlib.closing(fuzz.Wire(url)) as wire:
        assert wire.publish(queue, fuzz.Message(poison, properties)) is None
    wait_until(lambda: broker.count(f"{queue}.failed"), SOON)
    message = broker.take(f"{queue}.failed")
    assert message.body == poison
    assert re.search(reason, message.properties["headers"]["x-kuyruk-value"])
    assert task.send_to_queue((1, 2), wait_result=PATIENCE) == 3
    assert not re.search("Defect|Lost|goes back", caplog.text) and len(caplog.text) < 100_000


def test_a_delayed_message_does_not_take_headers_along_that_break_its_queue(app, url, queue, start):
    """A sender's own "x-death" isn't in the delayed copy.

    RabbitMQ 3.10 loses a message that expires with one of another's making.
    """
    app.task(queue, fail_delay=0.2)(play)
    script[:] = [ValueError(), "comes back"]
    worker = start(app)
    with contextlib.closing(fuzz.Wire(url)) as wire:
        properties = headers_of((b"x-death", b"A" + fuzz.long(b"V")))
        assert wire.publish(queue, fuzz.Message(body(function="play"), properties)) is None
    wait_until(lambda: worker.stats["succeeded"])


def test_only_headers_that_everybody_can_read_are_kept_in_a_failed_message(
    app, url, queue, broker, start
):
    """Headers in very deep tables are left out of the failed message.

    How deep a table can be decoded depends on how deep in calls its reader is: others may be
    deeper.
    """
    app.task(queue)(add)
    start(app)
    # 450 levels are less than this process can decode, 5 are no trouble for anybody.
    headers = headers_of(
        (b"deep", fuzz.nested(b"F", 450)), (b"flat", fuzz.nested(b"F", 5)), (b"none", b"V")
    )
    with contextlib.closing(fuzz.Wire(url)) as wire:
        assert wire.publish(queue, fuzz.Message(b"x", headers)) is None
    kept = broker.take(f"{queue}.failed").properties["headers"]
    assert {key for key in kept if not key.startswith("x-kuyruk")} == {"flat", "none"}


@pytest.mark.parametrize("key", ["id", "module", "function"])
def test_a_message_writes_no_lines_of_its_own_into_the_log(key, app, queue, broker, start, caplog):
    """Nothing that a message brings writes lines or control codes into the log."""
    app.task(queue)(add)
    worker = start(app)
    broker.publish(queue, body(**{key: "x\n2026-01-01 00:00:00 CRITICAL all is lost\x1b[2J"}))
    wait_until(lambda: worker.stats["failed"])
    wait_until(lambda: "from" in caplog.text)
    assert re.findall("\nCRITICAL|\n2026-01-01|\x1b", caplog.text) == []


def outcome_of(reply):
    """Return what a caller must get for this body: ("result", text) or (exception class, text)."""
    try:
        value = json.loads(reply.decode())
        if value.get("exception") is None:
            return "result", repr(value["result"])
        facts = [value["exception"][key] for key in ("type", "value", "traceback")]
        return kuyruk.RemoteException, repr(facts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return kuyruk.KuyrukError, ""


def outcome_for(call):
    """Return what a caller has got, in the same form."""
    try:
        return "result", repr(call.result(PATIENCE))
    except kuyruk.RemoteException as error:
        return type(error), repr(list(error.args))
    except kuyruk.KuyrukError as error:
        return type(error), ""


#: Replies of all shapes: nearly right, right, and nothing of the kind.
def some_of(*keys):
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, fuzz.shapes))


whole_replies = {
    "result": st.none() | fuzz.shapes,
    "exception": some_of("type", "value", "traceback"),
}
replies = st.one_of(
    some_of("result", "exception", "x").map(json.dumps).map(str.encode),
    st.fixed_dictionaries(whole_replies).map(json.dumps).map(str.encode),
    fuzz.shapes.map(lambda value: json.dumps({"result": value}).encode()),
    fuzz.texts_of_json.map(lambda text: f'{{"result": {text}}}'.encode()),
    st.binary(max_size=50),
    fuzz.damaged(),
)


def test_generated_replies_end_in_a_result_or_an_error_for_the_right_caller(
    app, url, queue, broker
):
    """Whatever the replies are, and in whatever order, each caller gets its own, or an error."""
    task = app.task(queue)(echo)
    order = random.Random(1)

    @generated(25, st.lists(st.tuples(replies, fuzz.properties), min_size=8, max_size=8))
    def answer(answers):
        calls = [background(task.send_to_queue, (n,), wait_result=PATIENCE) for n in range(8)]
        wait_until(lambda: broker.count(queue) == 8)
        requests = broker.take_all(queue)
        # In another order than the requests have come in.
        for request in order.sample(requests, 8):
            reply, properties = answers[json.loads(request.body)["args"][0]]
            message = fuzz.Message(reply, properties)
            # The broker doesn't take some properties, and then says so.
            if wire.publish(request.reply_to, message) is not None:
                assert wire.publish(request.reply_to, fuzz.Message(reply, NO_PROPERTIES)) is None
        assert [outcome_for(call) for call in calls] == [outcome_of(reply) for reply, _ in answers]

    with contextlib.closing(fuzz.Wire(url)) as wire:
        answer()


values = st.one_of(
    fuzz.shapes, fuzz.texts_of_json, st.binary(max_size=9),
    st.integers(1, 4200).map(lambda digits: 10**digits),
    st.sampled_from([object(), int, (), {1}, {"a": 1}, {1: 1}, 10**400, -(10**400), 1e308, NAN]),
    st.sampled_from(["\0", "\ud800"]),
    st.sampled_from(["amqp://u:hunter2@h:x", "amqp://u:hunter2@h/v?hunter2"]),
    st.sampled_from(["h:1,", "[::1", "amqps://[", "٣:٣"]),
)  # fmt: skip


@generated(1500, st.sampled_from(sorted(KEYS)), values)
def test_a_generated_value_is_taken_or_refused_with_the_name_of_its_key(key, value):
    """A configuration takes any value as it is, or refuses it by name and keeps what it had."""
    config, refusal = kuyruk.Config(), None
    try:
        config.from_dict({key: value})
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert getattr(config, key) is value
        repr(config), config._with(), config._addresses(), config._connection_options()
    else:
        assert key in refusal and "hunter2" not in refusal and getattr(config, key) == KEYS[key][0]


texts = st.text(st.characters(exclude_characters="\0"), max_size=20)


@generated(
    700, st.sampled_from(sorted(KEYS)), st.one_of(fuzz.texts_of_json, values.map(repr), texts)
)
def test_a_generated_text_in_the_environment_is_taken_or_refused(key, text):
    """The environment's texts are taken, or refused under their key's name, without a password."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(f"KUYRUK_{key}", text)
        except ValueError:  # no environment can have it
            return
        refusal = key
        try:
            kuyruk.Config().from_env_vars()
        except UnicodeEncodeError:
            return
        except ValueError as error:
            refusal = str(error)
        assert key in refusal and "hunter2" not in refusal


options = [flag for flags, _, _ in kuyruk_worker._OPTIONS.values() for flag in flags]
options += ["-q", "--queue", "--failed", "--id", "--json"]
options += ["--state", "--health", "--broker", "--status", "--max-memory"]
words = st.one_of(
    st.sampled_from([*options, "--", "tasks"]),
    st.sampled_from(["list", "1", "0", "-1", "1e400", "9" * 400, "9" * 5000, "nan", "INFO"]),
    st.sampled_from(["--x\ny", "%s", "-tt"]),
    st.builds("{}={}".format, st.sampled_from(options), st.text(max_size=9)),
    st.text(max_size=9),
)  # fmt: skip


@generated(1000, st.lists(words, max_size=6))
def test_a_generated_command_line_is_understood_or_explained_in_one_line(argv):
    """No command line ends in a traceback, or in more than a line."""
    try:
        kuyruk_worker._check(kuyruk_worker._parse(argv))
    except kuyruk_worker.UsageError as refusal:
        error = refusal
    else:
        return
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert kuyruk_worker._complain(error) == 2
    assert re.fullmatch(r".+: error: .+\n", said.getvalue())
    assert len(said.getvalue().splitlines()) == 1


ODD_ARGUMENTS = {
    "huge": ["t", "--grace", "9" * 400], "huger": ["t", "-t", "9" * 5000], "lines": ["t", "--x\ny"],
    "bytes": ["\udcff"], "half": ["t", "--failed"],
}  # fmt: skip


@pytest.mark.parametrize("args", ODD_ARGUMENTS.values(), ids=ODD_ARGUMENTS)
def test_an_odd_command_line_is_explained_in_one_line(args, tmp_path):
    """As the test above, for what only a whole process shows."""
    ended = run_cli(tmp_path, *args)
    assert ended.returncode == 2 and not ended.stdout
    assert re.fullmatch(r"python -m kuyruk_worker: error: .+\n", ended.stderr)


# --- Security ------------------------------------------------------------------


@pytest.fixture
def tls(url, authority):
    """tls(certificate, clients=True) is the address of a broker behind TLS; clients: which wants
    certificates of its clients."""
    with contextlib.ExitStack() as stack:

        def listen(certificate, clients=False):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority[certificate])
            if clients:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(authority["ca"])
            proxy = stack.enter_context(contextlib.closing(TcpProxy(url, tls=context)))
            return proxy.url.rpartition("@")[2].strip("/")

        yield listen


def settings_for(way, address, password, **options):
    """Return the settings for one of the two ways to ask for TLS."""
    options = {"RABBIT_SSL_OPTIONS": options}
    if way == "amqps":
        return {**options, "RABBIT_URL": f"amqps://guest:{password}@{address}/"}
    options |= {"RABBIT_URL": None, "RABBIT_SSL": True}
    return {**options, "RABBIT_HOST": address, "RABBIT_PASSWORD": password}


both_ways = pytest.mark.parametrize("way", ["amqps", "RABBIT_SSL"])


@both_ways
@pytest.mark.parametrize("clients", [False, True])
def test_a_broker_with_a_certificate_of_a_private_authority_is_trusted(
    clients, way, tls, authority, make_app, queue, start
):
    """`cafile` is trusted, and the client's own certificate is shown if that is asked for."""
    login = {"certfile": authority["client"]} if clients else {}
    values = settings_for(way, tls("server", clients), "guest", cafile=authority["ca"], **login)
    task = make_app(None, **values).task(queue)(echo)
    start(task.kuyruk)
    assert task.send_to_queue((5,), wait_result=PATIENCE) == 5


@both_ways
@pytest.mark.parametrize(
    ("certificate", "cafile", "reason"),
    [
        ("other", "ca", "certificate is not valid for '127.0.0.1'"),
        ("expired", "ca", "certificate has expired"),
        ("unknown", "ca", "self.signed certificate"), ("server", None, "local issuer certificate"),
        ("server", "unknown", "certificate verify failed"),
    ],
)  # fmt: skip
def test_a_certificate_that_proves_nothing_is_refused(
    certificate, cafile, reason, way, tls, authority, make_app, queue, broker, caplog
):
    """A wrong certificate ends senders and workers with its reason, before the password is sent."""
    caplog.set_level(logging.DEBUG, "kuyruk")
    options = {"cafile": authority[cafile]} if cafile else {}
    values = settings_for(way, tls(certificate), "hunter2", **options)
    app = make_app(None, RABBIT_PUBLISH_TIMEOUT=2, **values)
    with pytest.raises(kuyruk.BrokerError, match=reason) as info:
        app.task(queue)(echo)()
    worker = app.worker(reconnect_interval=0.1)
    worker.start()
    wait_until(lambda: "Waiting for RabbitMQ" in caplog.text)
    assert not worker.healthy and re.search(f"Waiting for RabbitMQ.*{reason}", caplog.text)
    worker.stop()
    # At DEBUG, too, and in the whole chain of causes.
    assert "hunter2" not in caplog.text + "".join(traceback.format_exception(info.value))
    assert broker.count(queue) is None


@pytest.fixture
def wants_certificates(authority):
    """A port that ends each connection without a client's certificate, and says why (asyncio's
    servers don't)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority["server"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority["ca"])
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                client = context.wrap_socket(
                    server.accept()[0], server_side=True, do_handshake_on_connect=False
                )
                with contextlib.suppress(ssl.SSLError):
                    client.do_handshake()
                with socket.socket(fileno=client.detach()) as rest, contextlib.suppress(OSError):
                    while rest.recv(4096):  # else it would be reset, and the reason with it
                        pass

    ended = background(serve)
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    ended.result(PATIENCE)


@both_ways
def test_a_client_without_the_certificate_that_the_broker_wants_is_refused(
    way, wants_certificates, authority, make_app, queue
):
    """The error of a send says that the broker wants a certificate."""
    values = settings_for(way, wants_certificates, "hunter2", cafile=authority["ca"])
    task = make_app(None, RABBIT_PUBLISH_TIMEOUT=2, **values).task(queue)(echo)
    with pytest.raises(kuyruk.BrokerError, match=r"(?i)certificate.required") as info:
        task()
    assert "hunter2" not in "".join(traceback.format_exception(info.value))


def test_a_password_is_in_no_text_of_an_application_that_is_refused(make_app, url, queue, caplog):
    """A refused login shows its password in no error, log record or repr."""
    caplog.set_level(logging.DEBUG)
    address = url.rpartition("@")[2]
    app = make_app(f"amqp://guest:hunter2@{address}", RABBIT_PUBLISH_TIMEOUT=2)
    task = app.task(queue)(echo)
    with pytest.raises(kuyruk.BrokerError, match="ACCESS_REFUSED") as sending:
        task.send_to_queue(wait_result=1)
    with pytest.raises(Exception, match="ACCESS_REFUSED") as connecting, app.connection():
        pass
    worker = app.worker(reconnect_interval=0.1)
    worker.start()
    wait_until(lambda: "ACCESS_REFUSED" in caplog.text)
    ours = (app, app.config, task, worker, worker.stats, worker.error, vars(worker))
    seen = list(map(repr, ours))
    worker.stop()
    seen += ["".join(traceback.format_exception(info.value)) for info in (sending, connecting)]
    assert "hunter2" not in caplog.text + "".join(seen)


def test_a_url_where_a_host_belongs_is_refused_without_its_password():
    """A URL in RABBIT_HOST is refused, and its password isn't in the error."""
    with pytest.raises(ValueError, match="RABBIT_HOST") as info:
        kuyruk.Config().RABBIT_HOST = "amqp://user:hunter2@host"
    assert "hunter2" not in str(info.value)


def processes_below(pid):
    """Return the command lines of a process and of its children (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in (pid, *map(int, children))}


@pytest.mark.parametrize("password", ["guest", "hunter2"], ids=["right", "wrong"])
def test_a_password_is_in_nothing_that_a_worker_process_shows(password, project):
    """Neither log nor report nor command line of a worker's processes shows the password."""
    login = project.url.replace("guest:guest", f"guest:{password}")
    worker = project.worker("-l", "debug", url=login)
    worker.wait_for("Consuming" if password == "guest" else "ACCESS_REFUSED")
    if password == "guest":
        project.tasks.note("one")
        wait_until(project.notes)
    worker.send(signal.SIGUSR1)
    worker.wait_for("\n---\n")
    shown = processes_below(worker.process.pid)
    worker.stop()
    assert len(shown) == 2, "not the supervisor and its one process"
    everything = worker.text.encode() + b"".join(shown.values())
    assert re.findall(b"guest:(?:guest|hunter2)|hunter2", everything) == []


@pytest.mark.parametrize(
    "value", ["amqp://guest:hunter2@host:port", "http://guest:hunter2@host", "guest:hunter2@host"]
)
@pytest.mark.parametrize("key", ["RABBIT_URL", "RABBIT_HOST"])
def test_a_wrong_url_is_explained_by_the_command_line_without_its_password(
    key, value, project, monkeypatch
):
    """An address that can't be is refused under its key's name, and not printed."""
    monkeypatch.setenv("KUYRUK_RABBIT_HOST", value if key == "RABBIT_HOST" else "localhost")
    ended = run_cli(project.folder, project.name, url=value if key == "RABBIT_URL" else "None")
    assert ended.returncode == 2
    assert key in ended.stderr
    assert "hunter2" not in ended.stderr + ended.stdout


NAMED = """
import os, subprocess
import kuyruk
from {package} import app

other = kuyruk.Kuyruk()

@app.task
def task():
    (here / "task").touch()

@other.task
def of_another_application():
    (here / "called").touch()

def function():
    (here / "called").touch()

class Class:
    def __init__(self, *args):
        (here / "called").touch()
    method = staticmethod(function)

nested = lambda: app.task(function)
"""
#: Module and function of a message. {0}: the application's package. No such thing is a task of it.
NOT_TASKS = [
    ("{0}.tasks", "function"), ("{0}.tasks", "Class"), ("{0}.tasks", "Class.method"),
    ("{0}.tasks", "os.system"),
    ("{0}.tasks", "of_another_application"), ("{0}.tasks", "nested"), ("{0}.tasks", "<lambda>"),
    ("{0}.tasks", "app"),
    ("{0}.tasks", "task.f"), ("{0}.tasks", "task.__call__"), ("{0}.tasks", "task.kuyruk.close"),
    ("{0}.tasks", ""),
    ("{0}.tasks", "__class__"), ("{0}.tasks", "__builtins__"), ("{0}.tasks", "__import__"),
    ("{0}.tasks", "app.close"),
    ("{0}.tasks.os", "system"), ("{0}.tasks.task", "f"), ("{0}.tasks.", "task"),
    ("{0}", "tasks.function"),
    ("{0}..tasks", "task"), (".{0}.tasks", "task"), (".tasks", "task"), ("..", "task"),
    ("", "task"),
    ("{0}.tasks\0", "task"),
    ("{0}.tasks/../../{0}_outside", "f"), ("{0}/../{0}_outside", "f"), ("{0}:tasks", "task"),
    ("{0}_outside", "f"),
    ("{0}_outside.{0}", "f"), ("os", "system"), ("os.path", "exists"), ("subprocess", "run"),
    ("builtins", "exec"),
    ("builtins", "__import__"), ("kuyruk", "Kuyruk"), ("kuyruk.exceptions", "Reject"),
    ("__main__", "main"),
    ("antigravity", "geohash"), ("pty", "spawn"), ("importlib", "import_module"), ("sys", "exit"),
]  # fmt: skip


def test_a_message_names_only_tasks_of_this_application_and_imports_only_its_packages(
    app, queue, broker, start, tmp_path, monkeypatch
):
    """A message calls only tasks of this application, and imports only from its packages."""
    package = f"package_{os.urandom(4).hex()}"
    where = f"\nimport pathlib\nhere = pathlib.Path({str(tmp_path)!r})\n"
    make_package(tmp_path, package, tasks=NAMED.replace("{package}", package) + where)
    outside = f"open({str(tmp_path / 'imported')!r}, 'w')\ndef f(): pass\n"
    (tmp_path / f"{package}_outside.py").write_text(outside)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(package).app = app
    app.packages.add(package)
    loaded = {"antigravity", "pty", "this"} - set(sys.modules)
    worker = start(app, [queue])
    names = [(module.format(package), function.format(package)) for module, function in NOT_TASKS]
    for module, function in names:
        broker.publish(queue, body(module=module, function=function))
    wait_until(lambda: worker.stats["failed"] == len(names))
    failed = [json.loads(message.body) for message in broker.take_all(f"{queue}.failed")]
    assert sorted((each["module"], each["function"]) for each in failed) == sorted(names)
    broker.publish(queue, body(module=f"{package}.tasks", function="task"))
    wait_until(lambda: worker.stats["succeeded"])
    # "called" and "imported" aren't there: nothing that was named has run.
    assert {path.name for path in tmp_path.iterdir()} == {package, f"{package}_outside.py", "task"}
    assert (loaded | {f"{package}_outside"}) & set(sys.modules) == set()


def test_a_reply_goes_only_to_the_queue_that_its_message_names_and_never_declares_one(
    app, queue, broker, start
):
    """A reply to no queue is dropped; one to the tasks' own queue is one bad message, no loop."""
    app.task(queue)(add)
    worker = start(app)
    broker.publish(queue, body(args=[1, 2]), reply_to=f"{queue}.2")
    # The reply to this one is itself a bad message, which asks for no reply.
    broker.publish(queue, body(args=[1, 2]), reply_to=queue)
    wait_until(lambda: worker.stats["failed"] == 1 and worker.stats["succeeded"] == 2)
    assert broker.count(f"{queue}.2") is None and worker.stats["received"] == 3


def test_objects_are_not_unpickled(app, queue, broker, start, tmp_path):
    """A pickle is no JSON, whatever its content type says."""
    app.task(queue)(add)
    worker = start(app)
    code = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "called").encode()
    for kind in ("application/x-python-serialize", "application/json", None):
        broker.publish(queue, code, content_type=kind)
    wait_until(lambda: worker.stats["failed"] == 3)
    assert list(tmp_path.iterdir()) == []


def test_whoever_has_the_arguments_of_a_program_has_sent_them(app, queue, broker, monkeypatch):
    """What stands on the sender's command line is in each message: no place for a password.

    Kuyruk 10 does it, too.
    """
    monkeypatch.setattr(sys, "argv", ["send.py", "--token", "hunter2", "x" * 9999])
    app.task(queue)(add)(1, 2)
    command = json.loads(broker.take(queue).body)["sender_cmd"]
    assert command == f"send.py --token hunter2 {'x' * 9999}"[:1000]


# --- The manual: README.md and docs/ -----------------------------------------
#
# docs/contributing.md says how a page is tested: each block of it is run, or says why it isn't.

PAGES = {"README.md": HERE / "README.md"}
PAGES |= {f"docs/{path.name}": path for path in sorted((HERE / "docs").glob("*.md"))}
#: The broker of the pages' examples. It stands for the test's own.
EXAMPLE_URL = "amqp://guest:guest@localhost/"
BLOCK = re.compile(r"(?:^<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code of a page."""

    mark: str  #: "", "not run: REASON" or "tested by: TEST".
    language: str
    text: str

    @property
    def file(self):
        """What its first line says that it is called; None if it doesn't say."""
        match = re.match(r"(?:#|<!--) (\S+\.\w+)\b", self.text)
        return match and match[1]


def blocks_of(page):
    return [
        Block(*(group or "" for group in match.groups()))
        for match in BLOCK.finditer(PAGES[page].read_text())
    ]


def file_of(page, name):
    """Return what a page has in a block as the file of this name."""
    return next(block.text for block in blocks_of(page) if block.file == name)


def table_of(page, first):
    """Return the rows of the page's table whose head begins with this cell."""
    body = PAGES[page].read_text().split(f"\n| {first} |")[1].split("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", row.strip("|")) for row in body.splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def names_in(page, first):
    """Return the names that the first cells of such a table begin their code with, in order."""
    return [
        name for row in table_of(page, first) for name in re.findall(r"(?:^|, )`([\w.-]+)", row[0])
    ]


def same_form(line):
    """Return a line without what differs from run to run: time, process and port."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\w+) +\d+", r"\1", line.rstrip())
    return re.sub(r"\b(127\.0\.0\.1|\[::1]|localhost):\d+", "localhost:5672", line)


def has_printed(text, expected):
    """Return whether these lines are in a text, in their order. "..." in one is anything."""
    patterns = [re.escape(same_form(line)).replace(re.escape("..."), ".*") for line in expected]
    lines = iter(map(same_form, text.splitlines()))
    return all(any(re.fullmatch(pattern, line) for line in lines) for pattern in patterns)


@pytest.mark.parametrize(
    ("printed", "expected", "is_so"),
    [
        ("a\nb\nc", ["a", "c"], True),
        ("a\nb\nc", ["c", "a"], False),
        ("3", ["4"], False),
        ("a", ["a", "a"], False),
        ("2026-02-03 01:02:03,456 INFO    123 x: at 127.0.0.1:999",
         ["2026-01-31 12:00:00,000 INFO 4711 x: at localhost:5672"], True),
        ("took 0.31 s", ["took ... s"], True),
        ("took 0.31 h", ["took ... s"], False),
    ],
)  # fmt: skip
def test_the_comparison_of_what_is_printed_can_fail(printed, expected, is_so):
    """The tests of the pages rest on `has_printed`, which sees what is missing or wrong."""
    assert has_printed(printed, expected) == is_so


class PageRunner:
    """Does what a page says, in an empty folder, with the README's tasks.py and the test's own
    broker.

    The workers that it starts run until the end.
    """

    def __init__(self, folder, url):
        self.folder, self.url, self.workers, self.count = folder, url, [], 0
        self.texts = [file_of("README.md", "tasks.py")]
        parts = urllib.parse.urlsplit(url)
        defaults = {"HOST": parts.hostname, "PORT": parts.port or 5672}
        defaults |= {"USER": parts.username or "guest", "PASSWORD": parts.password or "guest"}
        defaults |= {"VIRTUAL_HOST": urllib.parse.unquote(parts.path[1:]) or "/"}
        lines = [f"\nConfig.RABBIT_{key} = {value!r}" for key, value in defaults.items()]
        (folder / "kuyruk.py").write_text((HERE / "kuyruk.py").read_text() + "".join(lines))
        shutil.copy(HERE / "kuyruk_worker.py", folder)
        self.write(next(block for block in blocks_of("README.md") if block.file == "tasks.py"))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUYRUK_", "PYTHON"))}
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        self.env = {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "HOME": str(folder)}

    def do(self, block):
        """Run a block, or at least read it."""
        if block.language == "python":
            ast.parse(block.text)
        if block.mark.startswith("tested by: "):
            assert callable(globals()[block.mark.removeprefix("tested by: ")])
        else:
            assert re.fullmatch(r"|not run: .+", block.mark), block.mark
        self.texts.append(block.text)
        if block.file:
            self.write(block)
        if not block.mark or block.language in ("ini", "yaml", "json"):
            getattr(self, f"do_{block.language}")(block)

    def write(self, block):
        path = self.folder / block.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.text.replace(EXAMPLE_URL, self.url))

    # -- a block that is run

    def do_python(self, block):
        assert block.file, f"its first line must be its file's name, as '# tasks.py':\n{block.text}"
        module = block.file.removesuffix(".py").replace("/", ".")
        self.run(f"python -m {module}", re.findall(r"#> (.*)", block.text))

    def do_console(self, block):
        """Run the commands, which begin with `$`; below each is what it prints, among other
        lines."""
        assert block.text.startswith("$ "), block.text
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            while command.endswith("\\"):
                command = f"{command[:-1]} {expected.pop(0).lstrip('> ')}"
            self.run(command, expected)

    def run(self, command, expected):
        """Run to its end, or, if it is a worker, until it has printed what is expected."""
        is_worker = re.match(r"(\w+=\S+ )*(python -m \S*kuyruk_worker|kuyruk-worker) ", command)
        is_worker = is_worker and not re.search(r" --(failed|status|help|version)\b|;", command)
        if is_worker:  # in the shell's place, so that it can be stopped
            command = re.sub(r"^((\w+=\S+ )*)", r"\1exec ", command)
        process = self.start(command)
        if is_worker:
            self.workers.append(process)
            has_ended = lambda: process.poll() is not None  # noqa: E731
            with contextlib.suppress(AssertionError):  # the one below says more
                wait_until(lambda: has_printed(self.output(process), expected) or has_ended())
        else:
            assert process.wait(PATIENCE) == 0, f"{command}:\n{self.output(process)}"
        text = self.output(process)
        assert has_printed(text, expected), f"{command}: {expected}, not:\n{text}"

    def start(self, command):
        self.count += 1
        paths = [self.folder / f"{name}{self.count}.log" for name in ("out", "err")]
        with paths[0].open("w") as out, paths[1].open("w") as err:
            process = subprocess.Popen(
                command.replace(EXAMPLE_URL, self.url),
                shell=True, cwd=self.folder, env=self.env, stdout=out, stderr=err,
            )  # fmt: skip
        process.logs = paths
        return process

    def output(self, process):
        """What it has written to stdout, and then what it has written to stderr."""
        return "\n".join(path.read_text() for path in process.logs)

    # -- a block that is read

    def do_text(self, block):
        """A picture is one of the source's."""
        picture = textwrap.indent(block.text, " " * 4)
        assert picture in kuyruk.__doc__ or picture in kuyruk_worker.__doc__

    def do_json(self, block):
        json.loads(block.text)

    def do_ini(self, block):
        """A unit of systemd's."""
        unit = configparser.ConfigParser()
        unit.optionxform = str
        unit.read_string(block.text)
        if "Service" in unit:
            service = unit["Service"]
            self.is_waited_for(shlex.split(service["ExecStart"]), service["TimeoutStopSec"])

    def do_yaml(self, block):
        import yaml

        for document in yaml.safe_load_all(block.text):
            for name, command, limit in self.commands_in(document):
                assert limit is not None, f"no grace period for {name}"
                self.is_waited_for(command, limit)

    def commands_in(self, document):
        """Yield each container's worker command in a file of Kubernetes or compose, with the time
        that a stop may take."""
        spec = document.get("spec", {})
        spec = spec.get("template", {}).get("spec", spec)
        for each in spec.get("containers", []):
            yield each["name"], each["command"], spec.get("terminationGracePeriodSeconds")
        for name, service in document.get("services", {}).items():
            if "kuyruk_worker" in service.get("command", ""):
                limit = str(service.get("stop_grace_period")).removesuffix("s")
                yield name, service["command"], limit

    def is_waited_for(self, command, limit):
        """Assert that the worker accepts its command line, and ends before it is killed."""
        python, *module, task = command[:4]
        assert python.endswith("python") and module == ["-m", "kuyruk_worker"] and task == "tasks"
        args = kuyruk_worker._parse(command[3:])
        grace = args.WORKER_GRACE or kuyruk.Config.WORKER_GRACE
        assert args.WORKER_SHUTDOWN_TIMEOUT + grace + kuyruk_worker.KILL_MARGIN < float(limit)

    # -- the end

    def stop(self):
        for process in self.workers:
            process.terminate()
        return [process.wait(PATIENCE) for process in self.workers]

    @property
    def queues(self):
        """The queues that the page's tasks may have made."""
        text = "".join(self.texts)
        names = {"kuyruk", *re.findall(r"""(?:queue=["']|-q )([\w.-]+)""", text)}
        suffixes = ["", ".failed", f".{HOSTNAME}"]
        suffixes += [f".delay.{delay}000" for delay in set(re.findall(r"delay=(\d+)", text))]
        return [f"{name}{suffix}" for name in names for suffix in suffixes]


@pytest.fixture
def page_runner(tmp_path, url, broker):
    runner = PageRunner(tmp_path, url)
    yield runner
    runner.stop()
    broker.delete(*runner.queues)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says_block_by_block(page, page_runner):
    """Each block of a page runs and prints what the page shows; or it says why not."""
    blocks = blocks_of(page)
    assert PAGES[page].read_text().count("```") == 2 * len(blocks)  # none is hidden from this test
    for block in blocks:
        page_runner.do(block)
    assert set(page_runner.stop()) <= {0}


def without_code(text):
    """Return a page's text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors_of(text):
    """Return the anchors that GitHub makes of the titles."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_links_lead_somewhere(page):
    """Each link of a page leads to a file of the project, and to a title that is there."""
    for target in re.findall(r"]\(([^)\s]+)\)", without_code(PAGES[page].read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert found.exists() and found.is_relative_to(HERE), target
        assert not anchor or anchor in anchors_of(found.read_text()), target


def test_the_readme_is_short_and_leads_to_every_page():
    """The README has at most 180 lines, no pictures, and a link to every page of the manual."""
    text = PAGES["README.md"].read_text()
    assert text.count("\n") <= 180
    assert "![" not in text  # a package index shows no picture by a relative address
    linked = {"README.md", *re.findall(r"]\((docs/[^)#]*)", text)}
    assert [page for page in PAGES if page not in linked] == []


def test_the_manuals_web_service_answers_and_ends_by_ctrl_c(page_runner):
    """The web service of the manual answers, reports its health, and ends by Ctrl-C."""
    port = str(unused_port())
    code = file_of("docs/operations.md", "web.py").replace("8000", port)
    (page_runner.folder / "web.py").write_text(code)
    process = page_runner.start("exec python web.py")

    def get(path):
        with contextlib.suppress(OSError):  # it isn't there yet
            return fetch(f"http://127.0.0.1:{port}{path}")

    _, text = wait_until(lambda: (answer := get("/health")) and answer[0] == 200 and answer)
    assert "'received': 0" in text and get("/add?a=1&b=2") == (200, "3\n")
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    # The worker has stopped by then: only the interrupt itself is left to say.
    assert page_runner.output(process).endswith("KeyboardInterrupt\n")


def public_names(kind):
    """Return the attributes and methods of a class that users see."""
    names = re.findall(r"\bself\.([a-z]\w*)(?:: [^=\n]+)? = ", inspect.getsource(kind))
    return {*names, *(name for name in vars(kind) if not name.startswith("_"))}


def parameters(function, *others):
    """Return the names of the parameters, without `self` and these others."""
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", *others)]


def options_of_a_send():
    return [*parameters(kuyruk.Task.send_to_queue, "options"), *kuyruk.SendOptions.__annotations__]


@functools.cache
def help_of_worker():
    """Return what --help prints."""
    return run_python("-m", "kuyruk_worker", "--help")


@pytest.mark.parametrize(
    ("page", "head", "names"),
    [
        ("configuration.md", "key", lambda: [key for key in vars(kuyruk.Config) if key.isupper()]),
        ("configuration.md", "loader",
         lambda: [name for name in vars(kuyruk.Config) if name.startswith("from_")]),
        ("sending.md", "option", options_of_a_send),
        ("sending.md", "option of a task", lambda: parameters(kuyruk.Task, "f", "kuyruk")),
        ("sending.md", "signal", lambda: SIGNALS),
        ("messages.md", "attribute", lambda: public_names(kuyruk.FailedMessage)),
        ("time-limits.md", "attribute", lambda: public_names(kuyruk.Run)),
        ("operations.md", "`worker`", lambda: public_names(kuyruk.Worker)),
        ("operations.md", "`worker.stats`", lambda: kuyruk.Worker(kuyruk.Kuyruk()).stats),
        ("operations.md", "signal", lambda: set(re.findall(r"SIG\w+", help_of_worker()))),
        ("operations.md", "exit code", lambda: re.findall(r"(?m)^  (\d+)", help_of_worker())),
    ],
)  # fmt: skip
def test_a_table_of_the_manual_names_what_there_is(page, head, names):
    """A table of the manual has a row for each thing there is, and for nothing else."""
    shown = names_in(f"docs/{page}", head) or re.findall(
        r"SIG\w+|\b\d+\b", " ".join(row[0] for row in table_of(f"docs/{page}", head))
    )
    assert sorted(shown) == sorted(names())


def test_the_changes_name_this_version():
    """The changelog has a section for the version."""
    titles = re.findall(r"^## (.*)$", PAGES["docs/changelog.md"].read_text(), re.MULTILINE)
    assert kuyruk.__version__ in titles


def test_the_manuals_configuration_has_the_defaults():
    """The defaults in the manual are those of the code."""
    rows = table_of("docs/configuration.md", "key")
    shown = {row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in rows}
    assert shown == {key: getattr(kuyruk.Config, key) for key in shown}


def test_the_manuals_command_line_is_that_of_the_help():
    """Each option of the help is in the table, with the key of the configuration that it beats."""
    text = help_of_worker().partition("\noptions:\n")[2].partition("\nexample:")[0]
    shown = {
        row[0].split()[0].strip("`"): row[2].strip("`")
        for row in table_of("docs/operations.md", "option")
    }
    real = {}
    for block in re.findall(r"^  (-.*(?:\n {10,}.*)*)", text, re.MULTILINE):
        flags = re.findall(r"(?<![\w-])--?[a-z][\w-]*", block.partition("  ")[0])
        name = next((flag for flag in flags if flag in shown), flags[0])
        real[name] = "".join(re.findall(r"\[([A-Z_]+)]", block))
    del real["-h"]
    assert shown == real


def test_the_manuals_headers_are_those_of_a_failed_message(page_runner, broker):
    """The manual explains each header of a failed message, an expiration's, too."""
    page_runner.run("python -m kuyruk_worker tasks", [])
    code = "import tasks; tasks.add.send_to_queue(['no', 1], message_ttl=60)"
    page_runner.run(f'python -c "{code}"', [])
    headers = broker.take("sums.failed").properties["headers"]
    assert sorted(names_in("docs/messages.md", "header")) == sorted(headers)


def test_make_has_the_targets_of_the_manual():
    """Each `make` command of the manual is a target of the Makefile, and is in the table."""
    targets = re.findall(r"^([\w-]+):", (HERE / "Makefile").read_text(), re.MULTILINE)
    text = PAGES["docs/contributing.md"].read_text()
    shown = re.findall(r"^\$ make ([\w-]+)$", text, re.MULTILINE)
    assert shown and set(shown) <= set(targets)
    rows = [row[0] for row in table_of("docs/contributing.md", "command")]
    assert rows == [f"`make {name}`" for name in shown]


def results_of(row, **values):
    """Return results of the benchmark: these, in one row ("_" stands for "-" in a name)."""
    results = bench_report.Results()
    for name, value in values.items():
        figure = bench_report.Figure(row, name.replace("_", "-"), 0, value, 0.0)
        results.figures.append(figure)
    return results


def test_a_table_of_the_benchmark_is_read_as_it_was_written():
    """What is written into the manual's tables is read back as the same figures."""
    results = results_of("drain", kuyruk=29240.0, pika_confirmed=0.0167)
    results.figures += results_of("idle", kuyruk=0.0, celery=0.00001).figures
    text = "\n".join(bench_report.rows_of(results))
    assert bench_report.read_table(text).figures == results.figures


@pytest.mark.parametrize("name", bench_report.PICTURES)
def test_a_picture_is_that_of_the_table_beside_it(name):
    """A chart shows the figures of the page's table.

    After a change of either: python tools/bench_report.py docs/benchmark.md
    """
    results = bench_report.read_table(PAGES["docs/benchmark.md"].read_text())
    drawn = bench_report.draw(results, *bench_report.PICTURES[name])
    assert (HERE / "docs" / name).read_text() == drawn


def test_a_picture_explains_each_name_and_cuts_a_bar_that_would_dwarf_the_others():
    """A chart has a bar and an explanation for each name, and says that a very long bar is cut."""
    results = results_of("rpc", kuyruk=0.5, celery=1.0, pika=0.4, amqpstorm=40.0)
    drawn = bench_report.draw(results, *bench_report.PICTURES["cost.svg"])
    picture = xml.etree.ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in picture.iter(f"{svg}text")]
    bars = [bar for bar in picture.iter(f"{svg}rect") if bar.get("x") == str(bench_report.LABEL)]
    longest = bench_report.BAR
    assert [int(bar.get("width")) for bar in bars] == [longest * 0.4, longest / 2, longest, longest]
    assert [text for text in texts if text and "is cut" in text]
    assert len(list(picture.iter(f"{svg}path"))) == 2  # the gap in one of the four
    known = {"kuyruk", "celery", "pika", "amqpstorm"}
    assert {bench_report.CONTENDERS[name].summary for name in known} <= set(texts)
    assert sorted(name for name in texts if name in known) == sorted([*known, *known])


def luminance(colour):
    """Return the relative luminance of "#rrggbb", as WCAG 2 has it."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(map(operator.mul, (0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_colours_can_be_told_from_their_background(scheme):
    """Text has a contrast of 4.5 at least, and lines and bars of 3, as WCAG 2 asks for."""
    rules = bench_report.STYLE.split("@media")[scheme == "dark"]
    colours = dict(re.findall(r"(\w+) \{[^}]*?(?:fill|stroke): (#\w{6})", rules))
    card = luminance(colours.pop("card"))
    assert luminance(colours.pop("cut")) == card
    assert colours.keys() == {"text", "title", "ours", "peer", "raw"}
    for name, colour in colours.items():
        lower, higher = sorted([card, luminance(colour)])
        assert (higher + 0.05) / (lower + 0.05) >= (4.5 if name in ("text", "title") else 3), name


def test_the_help_of_the_module_names_all_that_is_public_before_it_explains_the_inside():
    """Who reads `help(kuyruk)` for a name finds it before the threads and locks."""
    help_of_names = kuyruk.__doc__.split("\nThe threads, and what each owns\n")[0]
    assert set(kuyruk.__all__) <= set(re.findall(r"\w+", help_of_names))


@pytest.mark.parametrize("kind", [kuyruk.Worker, kuyruk.Kuyruk, kuyruk.Task, kuyruk.Run,
    kuyruk.FailedMessage, kuyruk.SubTask, kuyruk.SendOptions, kuyruk.WorkerOptions,
    kuyruk.QueueStats,
    kuyruk.Signal, kuyruk.Journal, kuyruk.Reject, kuyruk.BrokerError, kuyruk.RemoteException,
    kuyruk.HeartbeatError])  # fmt: skip
def test_the_help_of_a_class_tells_of_its_attributes(kind):
    """pydoc shows methods with what they do, but of attributes only what the class says."""
    shown = types.FunctionType | property
    documented = {name for name, value in vars(kind).items() if isinstance(value, shown)}
    names = public_names(kind) | vars(kind).get("__annotations__", {}).keys()
    attributes = {name for name in names - documented if name[0].islower()}
    assert attributes <= set(re.findall(r"\w+", kind.__doc__))


def test_the_help_of_the_signals_tells_when_each_is_sent():
    """The help of kuyruk.signals has a line for each signal."""
    assert set(SIGNALS) == set(
        re.findall(r"^    (\w+) +[A-Z]", kuyruk.signals.__doc__, re.MULTILINE)
    )


def test_the_help_of_a_task_is_what_its_function_says(offline):
    """pydoc shows a task with its function's own docstring, and with its queue."""

    @offline.task
    def documented():
        """Say what it does."""

    text = pydoc.render_doc(documented, renderer=pydoc.plaintext)
    assert "Say what it does." in text and "documented on 'kuyruk'" in text


# --- The demo, the installed package ------------------------------------------

USER_PROGRAM = """
from __future__ import annotations
import kuyruk
import kuyruk.exceptions
from kuyruk import signals
from kuyruk.exceptions import Crashed, Reject, RemoteException
from kuyruk.signals import task_prerun

config = kuyruk.Config()
config.EAGER = True
app = kuyruk.Kuyruk(config)

@app.task(queue="sums", retry=1, fail_delay=1, max_fail_delay=5, max_failures=3, throws=ValueError)
def add(a: int, b: int = 0) -> int:
    run = kuyruk.current_task()
    if run is None or run.remaining() is not None:
        raise Reject(delay=3)
    return a + b

@app.task
def bare(text: str) -> str:
    return text

@task_prerun.connect
def before(sender: kuyruk.Kuyruk, **kwargs: object) -> None:
    print("before")

@kuyruk.signals.task_postrun.connect_via(app)
def after(sender: kuyruk.Kuyruk, **kwargs: object) -> None:
    print("after")

@signals.task_error.connect_via(app, weak=True)
def on_error(sender: kuyruk.Kuyruk, **kwargs: object) -> int:
    return 5

def worker() -> kuyruk.Worker:
    before(app, task=add)
    return app.worker(["sums"], threads=on_error(app))

def right(wait: float | None) -> int | None:
    number: int = add.send_to_queue((1,), {}, None, 5)
    number += add.send_to_queue(wait_result=5.5, message_ttl=3)
    add.send_to_queue((1,), delay=5, priority=number, headers={"a": 1}, id="x")
    app.remote("pkg.tasks.add", queue="q").send_to_queue((1, 2))
    return add.send_to_queue((1, 2), wait_result=wait)

def wrong() -> None:
    add("1")  # E: Argument 1 to "__call__" of "Task" has incompatible type "str"; expected "int"
    add()  # E: Missing positional argument "a" in call to "__call__" of "Task"
    add(1, c=2)  # E: Unexpected keyword argument "c" for "__call__" of "Task"
    bare(1)  # E: Argument 1 to "__call__" of "Task" has incompatible type "int"; expected "str"
    add.apply(1).upper()  # E: "int" has no attribute "upper"
    print(add.no_such_thing)  # E: "Task[[int, int], int]" has no attribute "no_such_thing"
    config.WORKER_THREADS = "8"  # E: Incompatible types in assignment
    app.worker(thread=4)  # E: Unexpected keyword argument "thread" for "worker" of "Kuyruk"
    app.worker(threads="4")  # E: Argument "threads" to "worker" of "Kuyruk" has incompatible type
    text: str = add.send_to_queue((1,), wait_result=5)  # E: Incompatible types in assignment
    add.send_to_queue((1,), priority="5")  # E: No overload variant of "send_to_queue" of "Task"
    app.task(max_failure=3)  # E: Unexpected keyword argument "max_failure" for overloaded function
    add.subtask((1,), delay="5")  # E: Argument "delay" to "subtask" of "Task" has incompatible
    after(5)  # E: Argument 1 to "after" has incompatible type "int"; expected "Kuyruk"
    signals.task_init.connect(5)  # E: Value of type variable "F" of "connect" of "Signal" cannot be
    print(text, signals.task_init)

if __name__ == "__main__":
    try:
        result: int = add.apply(1, 2)
    except (RemoteException, Crashed, kuyruk.Timeout, kuyruk.exceptions.BrokerError) as error:
        print(error)
    add(1, b=2)
    app.send_tasks_to_queue([add.subtask((1,), delay=5), bare.subtask(("x",), host="h")])
    print(result, kuyruk.__version__)
"""

#: What a checkout has that isn't the project's (.gitignore), and .git itself.
NOT_THE_PROJECTS = (
    ".git", ".venv*", ".*cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info",
)  # fmt: skip


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """A copy of this folder, and what `python -m build` makes there: a source archive and a
    wheel."""
    project = tmp_path_factory.mktemp("distributions") / "project"
    shutil.copytree(HERE, project, symlinks=True, ignore=shutil.ignore_patterns(*NOT_THE_PROJECTS))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", project.parent]
    subprocess.run(command, cwd=project, check=True, timeout=120, stdout=subprocess.DEVNULL)
    [source], [wheel] = project.parent.glob("*.tar.gz"), project.parent.glob("*.whl")
    return project, source, wheel


@pytest.fixture(scope="session")
def installed(tmp_path_factory, distributions):
    """The Python of a fresh environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", distributions[2]]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return python


def run_installed(python, folder, *command):
    """Run a program of that environment, without our variables; return what it prints."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KUYRUK_", "PYTHON"))}
    process = subprocess.run(
        [str(python.parent / command[0]), *command[1:]],
        cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_pip_installs_what_belongs_to_it_and_nothing_else(installed, tmp_path):
    """The wheel has the two modules, the stubs and the console script."""
    code = "import importlib.metadata as m; print(*m.files('kuyruk-amqpstorm'), sep='\\n')"
    files = run_installed(installed, tmp_path, "python", "-c", code).split()
    ours = {file for file in files if "dist-info" not in file and "__pycache__" not in file}
    assert ours == {
        "../../../bin/kuyruk-worker", "kuyruk.py", "kuyruk_worker.py",
        "kuyruk-stubs/__init__.pyi", "kuyruk-stubs/exceptions.pyi", "kuyruk-stubs/signals.pyi",
    }  # fmt: skip


def test_an_installed_copy_runs_and_is_the_same_version(installed, tmp_path):
    """A user's program runs with the installed copy, and nothing is missing there."""
    (tmp_path / "program.py").write_text(USER_PROGRAM)
    printed = run_installed(installed, tmp_path, "python", "program.py").splitlines()
    # another test's messages may be in its queue, and run before
    assert printed[-1] == f"3 {kuyruk.__version__}"
    version = run_installed(installed, tmp_path, "kuyruk-worker", "--version")
    assert version.split()[:2] == ["kuyruk", kuyruk.__version__]
    assert "No broken" in run_installed(installed, tmp_path, "python", "-m", "pip", "check")


@pytest.fixture(scope="session")
def editable(tmp_path_factory):
    """As `installed`, but with `pip install -e`."""
    folder = tmp_path_factory.mktemp("editable")
    ignored = shutil.ignore_patterns(*NOT_THE_PROJECTS)
    shutil.copytree(HERE, folder / "project", symlinks=True, ignore=ignored)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "-e", folder / "project"]
    subprocess.run(command, check=True, timeout=300)
    return python


def test_the_stubs_are_those_of_the_source():
    """The stubs are what make_stubs.py makes of kuyruk.py, in files, not links.

    After a change of kuyruk.py: python tools/make_stubs.py
    """
    made = ast.dump(make_stubs.make_stubs((HERE / "kuyruk.py").read_text()))
    assert ast.dump(ast.parse(make_stubs.STUBS.read_text())) == made
    assert not any(path.is_symlink() for path in make_stubs.STUBS.parent.iterdir())


@pytest.mark.parametrize("name", ["exceptions", "signals"])
def test_the_stubs_of_a_module_name_what_is_in_it(name):
    """The stubs of kuyruk.exceptions and kuyruk.signals name all that is there."""
    text = make_stubs.STUBS.with_name(f"{name}.pyi").read_text()
    names = re.findall(r"^from kuyruk import (\w+) as \1$", text, re.MULTILINE)
    assert sorted(names) == sorted(key for key in vars(getattr(kuyruk, name)) if key[0] != "_")
    assert set(names) <= set(kuyruk.__all__) | set(SIGNALS) and len(names) == text.count("\n")


def test_a_vendored_pair_passes_the_users_mypy(tmp_path):
    """The two files pass `mypy --strict` in a user's package, with the types of the tasks."""
    make_package(tmp_path, "shop")
    for name in ("kuyruk.py", "kuyruk_worker.py"):
        shutil.copy(HERE / name, tmp_path / "shop")
    tasks = file_of("README.md", "shop/tasks.py")
    tasks += """
result: str = send_mail.send_to_queue(['a'], wait_result=1)

@kuyruk.signals.task_prerun.connect_via(app)
def before(sender: kuyruk.Kuyruk, **kwargs: object) -> None: ...

@kuyruk.signals.Signal("mine").connect
def mine(sender: object) -> None: ...
"""
    (tmp_path / "shop" / "tasks.py").write_text(tasks)
    command = [sys.executable, "-m", "mypy", "--strict", "-p", "shop"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("form", ["installed", "editable"])
def test_mypy_knows_an_installed_copys_types_and_the_arguments_of_its_tasks(
    form, installed, editable, tmp_path
):
    """mypy finds exactly the mistakes that USER_PROGRAM marks, with either kind of installation."""
    python = {"installed": installed, "editable": editable}[form]
    (tmp_path / "program.py").write_text(USER_PROGRAM)
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "program.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = enumerate(USER_PROGRAM.splitlines(), 1)
    errors = [(n, line.split("# E: ")[1]) for n, line in lines if "# E: " in line]
    expected = [f"program.py:{n}: error: {text}" for n, text in errors]
    found = [line for line in process.stdout.splitlines() if "error:" in line]
    # As many errors as marks, each at its line: strict=True sees a missing or a further one.
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


VENDORED_PROGRAM = """
import sys
from pkg.vendor import kuyruk
from pkg.vendor.kuyruk.exceptions import RemoteException

app = kuyruk.Kuyruk()
app.config.RABBIT_URL, queue = sys.argv[1:]

@app.task(queue=queue)
def double(number):
    return number * 2

if __name__ == "__main__":
    with app, app.worker(threads=2) as worker:
        print(double.send_to_queue([21], wait_result=10))
        try:
            double.send_to_queue([None], wait_result=10)
        except RemoteException as error:
            print(error.type, worker.healthy, "kuyruk" in sys.modules)
"""


def test_the_single_file_copied_into_a_package_is_client_and_embedded_worker(tmp_path, url, broker):
    """One file in a user's package sends, works and raises, and imports no other "kuyruk"."""
    (tmp_path / "pkg" / "vendor").mkdir(parents=True)
    shutil.copy(HERE / "kuyruk.py", tmp_path / "pkg" / "vendor")
    (tmp_path / "pkg" / "tasks.py").write_text(VENDORED_PROGRAM)
    try:
        command = [sys.executable, "-W", "error", "-m", "pkg.tasks", url, "vendored"]
        out = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=PATIENCE)
        assert out == "42\nbuiltins.TypeError True False\n"
    finally:
        broker.delete("vendored", "vendored.failed")


def processes_of(folder):
    """Return the processes that name the folder in their command line or environment (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            if os.fsencode(folder) in text and int(path.name) != os.getpid():
                found.append(text)
    return found


class Demo:
    """A run of tools/demo.py, with a folder of its own for all that it makes."""

    def __init__(self, folder, *arguments, program=("tools/demo.py",), **env):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KUYRUK_TEST_URL")}
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=HERE, env={**kept, "TMPDIR": str(self.temporary), **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def read_until(self, text):
        for line in self.process.stdout:
            if text in line.decode():
                return
        pytest.fail(f"the demo didn't print {text!r}")

    def end(self):
        """Wait for its end; return its exit code and what else it has printed. Nothing is left."""
        out = self.process.communicate(timeout=TEST_TIMEOUT)[0].decode()
        wait_until(lambda: not processes_of(self.temporary))
        assert list(self.temporary.iterdir()) == []
        return self.process.returncode, out


@pytest.fixture
def files(tmp_path):
    """A folder of files, some with names that make trouble."""
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    for name in ("plain", "two\nlines", "ünicode", os.fsdecode(b"no utf-8 \xff"), "below/plain"):
        (folder / name).write_bytes(name.encode(errors="replace") * 1000 + b"\n")
    (folder / "empty").touch()
    (folder / "link").symlink_to("plain")
    (folder / "dead link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    return folder


def test_the_demo_compares_and_explains_and_leaves_nothing(files, tmp_path):
    """The demo runs real work, with a retry and a failure on the way, and cleans up."""
    code, out = Demo(tmp_path, files).end()
    assert code == 0, out
    assert re.search(r"files: 6 .*mismatches: 0\n", out)
    assert out.count(" 6 tasks  ") == 2
    words = ("Consuming checksums", "trying again (1 left)", "x-kuyruk-exception: builtins.FileNot")
    assert [each for each in words if each not in out] == []


def test_a_tool_ends_though_its_signal_comes_in_a_destructor():
    """An exception in a destructor is printed, not raised: a signal there still ends a tool."""
    code = f"""
import lab, signal, sys, time
class Ends:
    def __del__(self): signal.raise_signal(signal.SIGTERM)
def run(options):
    Ends()
    time.sleep({2 * PATIENCE})
sys.exit(lab.main(run))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE / "tools", capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 128 + signal.SIGTERM and "ignored" not in ended.stderr, ended.stderr


@pytest.mark.parametrize("moment", ["folder:", "RabbitMQ:", "worker:"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_cleans_up(moment, number, files, tmp_path, url):
    """Ctrl-C or SIGTERM at each stage of the demo leaves no process and no file."""
    demo = Demo(tmp_path, KUYRUK_TEST_URL=url) if number == signal.SIGTERM else Demo(tmp_path)
    demo.read_until(moment)
    demo.process.send_signal(number)
    code, out = demo.end()
    assert code == 128 + number, out


def test_a_demo_that_finds_a_mismatch_says_so_and_fails(files, tmp_path, url, broker):
    """A wrong result is counted, and is the exit code 1."""
    wrong = """if True:
        import sys
        sys.path.insert(0, "tools")
        import demo
        examine = demo.tasks.examine
        demo.tasks.examine = lambda path: {**examine(path), "lines": 99}
        sys.exit(demo.main())
    """
    code, out = Demo(tmp_path, files, program=("-c", wrong), KUYRUK_TEST_URL=url).end()
    assert code == 1, out
    assert "mismatches: 12\n" in out
    assert broker.count("checksums") is None


@pytest.mark.parametrize(
    ("folder", "code", "words"),
    [
        ("empty", 1, "nothing to do"),
        ("nowhere", 2, "there is no folder"),
        ("file", 2, "this is no folder"),
    ],
)
def test_a_demo_without_files_says_why(folder, code, words, tmp_path):
    """A folder without files, no folder and a file are each named as such."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    ended, out = Demo(tmp_path, tmp_path / folder).end()
    assert (ended, words in out) == (code, True), out


def test_the_demo_leaves_queues_alone_that_were_there(files, tmp_path, url, broker):
    """The demo refuses a broker where its queues are somebody's, and deletes none of them."""
    # A queue of the demo's name, which somebody else may have work in.
    broker.declare("checksums.failed")
    try:
        code, out = Demo(tmp_path, files, KUYRUK_TEST_URL=url).end()
        count = broker.count("checksums.failed")
        assert (code, "'checksums.failed'" in out, count) == (1, True, 0), out
    finally:
        broker.delete("checksums.failed")


def test_the_source_distribution_has_all_that_make_test_needs(distributions):
    """The source distribution has every file of the project, as it is here."""
    project, source, _ = distributions
    unpacked = project.parent / source.name.removesuffix(".tar.gz")
    shutil.unpack_archive(source, project.parent, filter="data")
    wanted = [
        *(path for name in ("docs", "examples", "tools", "kuyruk-stubs", ".ci")
          for path in (project / name).rglob("*") if path.is_file()),
        *(project / name for name in ("Makefile", "pyproject.toml", ".gitignore")),
        *(project / name for name in ("LICENSE", "README.md", "test_kuyruk.py")),
        *(project / name for name in ("kuyruk.py", "kuyruk_worker.py")),
    ]  # fmt: skip
    for path in wanted:
        there = unpacked / path.relative_to(project)
        assert there.exists(), path
        assert there.read_bytes() == path.read_bytes(), path


def test_what_a_package_index_shows_of_the_readme_has_no_link_that_leads_nowhere(distributions):
    """An index has the README alone: there is a file's name in place of a link to that file."""
    with zipfile.ZipFile(distributions[2]) as wheel:
        [name] = [each for each in wheel.namelist() if each.endswith("/METADATA")]
        described = wheel.read(name).decode().partition("\n\n")[2]
    links = re.compile(r"]\(([^)\s]+)\)")
    relative = [
        target.partition("#")[0]
        for target in links.findall(PAGES["README.md"].read_text())
        if not target.startswith("https:")
    ]
    assert len(relative) > 20
    assert [target for target in relative if f"(`{target}`)" not in described] == []
    assert [target for target in links.findall(described) if not target.startswith("https:")] == []
    assert [b.text for b in blocks_of("README.md") if b.text not in described] == []


def test_each_name_of_this_file_means_one_thing():
    """What is assigned a second time is another thing for the tests above it. Twice a test passed
    only because of that."""
    body = ast.parse(Path(__file__).read_text()).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    names += [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def test_each_classifier_of_a_python_is_one_that_is_supported():
    """Each Python from `requires-python` on has a classifier, and is tried by `make matrix`."""
    pyproject = tomllib.loads((HERE / "pyproject.toml").read_text())
    project, matrix = pyproject["project"], pyproject["tool"]["tox"]["legacy_tox_ini"]
    shown = re.findall(r":: 3\.(\d+)", "\n".join(project["classifiers"]))
    first = int(project["requires-python"].removeprefix(">=3."))
    assert [int(minor) for minor in shown] == list(range(first, first + len(shown)))
    [tried] = re.findall(r"env_list = py3\{([\d,]+)\}-\{oldest,newest\}", matrix)
    assert set(shown) <= set(tried.split(","))
    [oldest] = re.findall(r"oldest: amqpstorm==(\S+)", matrix)
    assert any(each.startswith(f"amqpstorm>={oldest},") for each in project["dependencies"])


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
def test_a_soak_reports_what_is_wrong_though_it_cannot_draw_its_picture():
    """A few seconds of `make soak`, without matplotlib, and with a limit that nothing keeps."""
    program = """if True:
        import sys
        sys.path.insert(0, "tools")
        sys.modules["matplotlib"] = None
        import lab, soak
        soak.PARENT_MEMORY = 1.0
        sys.exit(lab.main(soak.soak, soak.OPTIONS))
    """
    ended = subprocess.run(
        [sys.executable, "-c", program, "--minutes", "0.05"],
        cwd=HERE, capture_output=True, text=True, timeout=TEST_TIMEOUT,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found = ended.stdout.partition("VIOLATIONS:\n")[2].splitlines()
    assert [line.partition(" took ")[0] for line in found] == ["the parent"], ended.stdout
    assert "no picture: ModuleNotFoundError" in ended.stdout
    [total] = re.findall(r"^all +(\d+) +(\d+) +(\d+) ", ended.stdout, re.MULTILINE)
    sent, expected, again = map(int, total)
    assert 0 < sent == expected + again, ended.stdout  # what ran beside a crash runs again


# --- Examples ----------------------------------------------------------------
#
# Each application of examples/ is started as its user would start it, does one round trip and is
# stopped.

EXAMPLES = HERE / "examples"
KUYRUK_WORKER = ("-m", "kuyruk_worker")


class Examples:
    """Starts programs of examples/ in an empty folder, and ends them after the test."""

    def __init__(self, folder, url):
        self.folder, self.url, self._started = folder, url, []

    def start(self, *args, entry=KUYRUK_WORKER):
        """A program that runs until it is stopped."""
        self._started.append(CliWorker(self.folder, *args, url=self.url, entry=entry))
        return self._started[-1]

    def run(self, *args):
        """The standard output of `python -m args`, which ends by itself and well."""
        process = run_cli(self.folder, *args, url=self.url, entry=("-m",))
        assert process.returncode == 0, process.stderr
        return process.stdout

    def lines(self, name):
        """Return what is in a file of JSON lines."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def kill(self):
        for program in self._started:
            program.kill()


@pytest.fixture
def examples(tmp_path, url, broker):
    """Programs of the example in whose name the test is called: its queue is called so, too."""
    programs = Examples(tmp_path, url)
    yield programs
    programs.kill()
    names = [path.name for path in EXAMPLES.iterdir()]
    broker.delete(*names, *(f"{name}.failed" for name in names))


def fetch(url, method="GET", form=None):
    """Return status and text of what is at the URL."""
    request = urllib.request.Request(url, data=form and form.encode(), method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_observability_example_reports_counts_traces_and_logs(examples, monkeypatch):
    """Each run has a count in Prometheus, a trace that leads to its request, and log lines with its
    id; each failure an event in Sentry."""
    for name, value in (("SENTRY_FILE", "events"), ("SPANS_FILE", "spans"), ("METRICS_PORT", "0")):
        monkeypatch.setenv(name, value)
    worker = examples.start("examples.observability.tasks")
    good, bad = examples.run("examples.observability.send", "6", "3", "6", "0").splitlines()
    assert "result 2.0" in good and "failed builtins.ZeroDivisionError" in bad

    # The port is any free one, and the worker says which.
    port = re.search(r"Metrics at port (\d+)", worker.text)[1]
    _, metrics = fetch(f"http://127.0.0.1:{port}/metrics")
    for outcome in ("success", "failure"):
        label = f'outcome="{outcome}",task="examples.observability.tasks.divide"'
        assert f"kuyruk_tasks_total{{{label}}} 1.0" in metrics
    assert "kuyruk_worker_received_total 2.0" in metrics and "kuyruk_worker_healthy 1.0" in metrics
    worker.end()

    (event,) = examples.lines("events")
    task = "examples.observability.tasks.divide"
    assert event["tags"] == {"queue": "observability", "task": task}
    assert event["contexts"]["message"]["args"] == [6, 0]
    assert event["exception"]["values"][-1]["type"] == "ZeroDivisionError"

    spans = examples.lines("spans")
    for out, status in ((good, "UNSET"), (bad, "ERROR")):
        trace = "0x" + re.search(r"trace (\w+)", out)[1]
        run, request = (span for span in spans if span["context"]["trace_id"] == trace)
        assert (run["name"], request["name"]) == (task, "request")
        assert run["parent_id"] == request["context"]["span_id"]
        assert run["status"]["status_code"] == status

    lines = [json.loads(line) for line in worker.text.splitlines() if line.startswith("{")]
    assert [line for line in lines if "ZeroDivisionError" in line.get("traceback", "")], worker.text
    logged = next(line for line in lines if line["text"] == "Dividing 6 by 0")
    assert logged["task"] == task
    assert logged["task_id"] == event["contexts"]["message"]["id"]
    of_tasks = [line for line in lines if line["text"].startswith("Task ")]
    assert [line for line in of_tasks if "task_id" not in line] == []


KUYRUK_SENTRY_PROGRAM = """
import sys, threading
import kuyruk, sentry_sdk
from kuyruk_sentry import Sentry

events, app = [], kuyruk.Kuyruk()
app.config.RABBIT_URL = sys.argv[1]
sentry_sdk.init(
    "http://key@localhost/1",
    transport=lambda envelope: None,
    before_send=lambda event, hint: events.append(event) or event,
    auto_enabling_integrations=False,
)
extension = Sentry(app)

@app.task(queue="observability")
def divide(a, b):
    return a / b

if __name__ == "__main__":
    failed = threading.Event()
    noted = []
    def note(sender, **facts):
        noted.append(facts)
        failed.set()

    extension.on_exception.connect(note)
    with app, app.worker() as worker:
        divide(6, b=0)
        assert failed.wait(20)
    (event,) = events
    (facts,) = noted
    assert event["exception"]["values"][-1]["type"] == "ZeroDivisionError"
    description = event["extra"]["description"]
    facts_of_task = [description[key] for key in ("function", "args", "kwargs")]
    print(*facts_of_task, event["extra"]["queue"])
    assert facts["worker"] is worker and "sentry_id" in facts["description"]
    assert app.extensions["sentry"] is extension
"""


def test_kuyruk_sentry_from_pypi_reports_a_failure_with_its_facts(examples, url):
    """Kuyruk's own extension works unchanged: it needs our signals, and their arguments."""
    folder = examples.folder
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(folder), "Kuyruk-Sentry==1.1.5"]
    subprocess.run(command, check=True, capture_output=True, timeout=TEST_TIMEOUT)
    (folder / "program.py").write_text(KUYRUK_SENTRY_PROGRAM)
    assert examples.run("program", url) == "divide [6] {'b': 0} observability\n"


def files_of(pid):
    """Return the names of the files that a process has open (Linux)."""
    names = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed in between
            names.add(Path(os.readlink(path)).name)
    return names


def test_the_django_example_sends_what_is_committed_and_packs_it(examples, broker, monkeypatch):
    """A task is sent when its order is committed, and the connection is closed after it."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "examples.django_shop.settings")
    examples.run("django", "migrate", "--run-syncdb")
    port = unused_port()
    server = examples.start("runserver", str(port), "--noreload", entry=("-u", "-m", "django"))
    server.wait_for("Quit the server")
    shop = f"http://127.0.0.1:{port}"
    assert fetch(f"{shop}/buy/nothing", "POST")[0] == 500 and not broker.count("django_shop")
    # The order was rolled back: the next has its number.
    assert json.loads(fetch(f"{shop}/buy/book", "POST")[1]) == {"id": 1}
    assert broker.count("django_shop") == 1
    worker = examples.start("examples.django_shop.tasks")
    worker.wait_for("Consuming django_shop", "with 2 threads")  # a setting of Django's
    packed = {"item": "book", "packed": True}
    wait_until(lambda: json.loads(fetch(f"{shop}/order/1")[1]) == packed)
    wait_until(lambda: "shop.sqlite3" not in files_of(worker.pids[0]))  # closed after the task
    worker.stop()
    server.send(signal.SIGINT)
    assert server.exit_code() == 0


def test_the_sqlalchemy_example_commits_what_returns_and_rolls_back_what_raises(examples):
    """A task has a session: committed when it returns, rolled back when it raises."""
    worker = examples.start("examples.sqlalchemy_session.tasks")
    sent = examples.run("examples.sqlalchemy_session.send", "30", "-50", "-10")
    assert sent == "30\nfailed: ann has only 30\n20\n"
    worker.end()


def is_ready(url):
    with contextlib.suppress(OSError):  # it doesn't listen yet
        return fetch(url)[0] == 200


def test_the_fastapi_example_answers_with_results_of_its_own_worker(examples, broker):
    """The service waits for results without blocking, and stops its worker when it shuts down."""
    port = unused_port()
    arguments = ("examples.fastapi_shop.main:service", "--port", str(port))
    service = examples.start(*arguments, entry=("-m", "uvicorn"))
    shop = f"http://127.0.0.1:{port}"
    wait_until(lambda: is_ready(f"{shop}/health"))
    assert fetch(f"{shop}/price?amount=3") == (200, '{"price":29.7}')
    assert fetch(f"{shop}/price?amount=0") == (400, '{"detail":"at least one item"}')
    health = json.loads(fetch(f"{shop}/health")[1])
    assert (health["succeeded"], health["failed"]) == (1, 1)
    service.send(signal.SIGTERM)
    assert service.exit_code() in (0, -signal.SIGTERM)  # uvicorn's way to end
    assert "Application shutdown complete" in service.text and broker.count("fastapi_shop") == 0


def test_the_flask_example_has_a_worker_in_each_process_of_gunicorn(examples, broker):
    """Each process of gunicorn has a worker, which is stopped with it."""
    port = unused_port()
    arguments = ("-c", "python:examples.flask_shop.gunicorn_conf", "-b", f"127.0.0.1:{port}")
    arguments += ("examples.flask_shop.main:service",)
    service = examples.start(*arguments, entry=("-m", "gunicorn"))
    shop = f"http://127.0.0.1:{port}"
    state = lambda: broker.channel.queue.declare("flask_shop", passive=True)  # noqa: E731
    wait_until(lambda: is_ready(f"{shop}/health"))
    wait_until(lambda: state()["consumer_count"] == 2)
    assert json.loads(fetch(f"{shop}/price?amount=3")[1]) == {"price": 29.7}
    assert fetch(f"{shop}/price?amount=0")[0] == 400
    service.send(signal.SIGTERM)
    assert service.exit_code() == 0 and service.text.count("The worker of kuyruk has stopped") == 2
    assert (state()["message_count"], state()["consumer_count"]) == (0, 0)


def test_the_dashboard_example_shows_requeues_and_deletes(examples, broker, monkeypatch):
    """The dashboard shows queues, running tasks and failed messages, and wants its token for
    all."""
    monkeypatch.setenv("RUNNING_FOLDER", str(examples.folder / "running"))
    monkeypatch.setenv("DASHBOARD_TOKEN", "secret&token")
    entry = ("-m", "examples.dashboard.dashboard")
    dashboard = examples.start("examples.dashboard.tasks", "--port", "0", entry=entry)
    dashboard.wait_for("Dashboard: http")
    address = re.search(r"(http://127\.0\.0\.1:\d+/)", dashboard.text)[1]
    page = f"{address}?token=secret%26token"
    worker = examples.start("examples.dashboard.tasks")
    worker.wait_for("Consuming dashboard")
    task, send = "examples.dashboard.tasks", ("function", "args", "id")
    for values in (("read", ["<b>"], "1"), ("read", ["gone"], "2&"), ("wait_for", ["go"], "3")):
        body = {"module": task, "kwargs": {}, **dict(zip(send, values, strict=True))}
        broker.publish("dashboard", json.dumps(body))
    wait_until(lambda: broker.count("dashboard.failed") == 2)

    for wrong in (address, f"{address}?token=x", f"{address}?token=secret"):
        assert fetch(wrong)[0] == 403
    for form in ("do=delete&queue=dashboard&id=1", "do=delete&queue=dashboard&id=1&token=x"):
        assert fetch(address, "POST", form)[0] == 403
    assert broker.count("dashboard.failed") == 2
    running = f"<td>{task}.wait_for<td>3<td>dashboard"
    text = wait_until(lambda: running in (text := fetch(page)[1]) and text)
    assert "<td>dashboard<td>0<td>1<td>2" in text  # waiting, consumers, failed
    assert "builtins.FileNotFoundError" in text and "&lt;b&gt;" in text and "<b>" not in text
    assert "Traceback" in text

    (examples.folder / "gone").write_text("it is back")
    token = "token=secret%26token"
    assert "requeue: " in fetch(address, "POST", f"do=requeue&queue=dashboard&id=2%26&{token}")[1]
    wait_until(lambda: broker.count("dashboard.failed") == 1 and broker.count("dashboard") == 0)
    assert "delete: " in fetch(address, "POST", f"do=delete&queue=dashboard&id=1&{token}")[1]
    wait_until(lambda: broker.count("dashboard.failed") == 0)
    assert "any more" in fetch(address, "POST", f"do=delete&queue=dashboard&id=1&{token}")[1]
    assert "no action" in fetch(address, "POST", f"do=purge&queue=dashboard&id=1&{token}")[1]

    (examples.folder / "go").touch()
    wait_until(lambda: f"{task}.wait_for" not in fetch(page)[1])
    worker.end()
    dashboard.send(signal.SIGINT)
    assert dashboard.exit_code() == 0 and "Traceback" not in dashboard.text
    assert not list((examples.folder / "running").iterdir())


def test_the_vendored_example_runs_with_its_own_copy(examples):
    """The example with copied files imports no other "kuyruk"."""
    shop = examples.folder / "shop"
    shutil.copytree(EXAMPLES / "vendored", shop, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kuyruk.py", "kuyruk_worker.py"):
        shutil.copy(HERE / name, shop)
    worker = examples.start("shop.tasks", entry=("-m", "shop.kuyruk_worker"))
    worker.wait_for("Consuming vendored")
    assert examples.run("shop.send", "me@home.org") == "sent to me@home.org\n"
    assert examples.run("shop.send", "nobody") == "no address: nobody\n"
    code = "import sys, shop.send; print(any(name.startswith('kuyruk') for name in sys.modules))"
    (examples.folder / "look.py").write_text(code)
    assert examples.run("look", "me@home.org").splitlines()[-1] == "False"
    worker.stop()


def test_the_compose_example_starts_checks_and_stops_what_it_says(examples):
    """The commands and health checks of compose.yaml work as they stand there.

    Without Docker: they are run as processes, in a folder for what is /state there.
    """
    import yaml

    port = str(unused_port())

    def here(words):
        places = {"/state": str(examples.folder), "8000": port, "0.0.0.0": "127.0.0.1"}
        places["python"] = sys.executable
        replace = lambda word, place: word.replace(*place)  # noqa: E731
        return [functools.reduce(replace, places.items(), word) for word in words]

    parts = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text())["services"]
    assert parts.keys() == {"rabbitmq", "worker", "service"}
    bare = [name for name, part in parts.items() if not {"healthcheck", "restart"} <= part.keys()]
    assert bare == []
    programs = {}
    for name in ("worker", "service"):
        part = parts[name]
        assert part["depends_on"] == {"rabbitmq": {"condition": "service_healthy"}}
        for key in part["environment"]:
            assert hasattr(kuyruk.Config, key.removeprefix("KUYRUK_"))
        kind, *check = here(part["healthcheck"]["test"])
        check = ["sh", "-c", *check] if kind == "CMD-SHELL" else check
        healthy = functools.partial(subprocess.run, check, capture_output=True, timeout=PATIENCE)
        assert healthy().returncode != 0  # nothing runs yet
        programs[name] = examples.start(*here(part["command"])[2:], entry=("-m",))
        wait_until(lambda healthy=healthy: healthy().returncode == 0)
    command = parts["worker"]["command"]
    limit = float(command[command.index("--shutdown-timeout") + 1])
    limit += kuyruk.Config.WORKER_GRACE + kuyruk_worker.KILL_MARGIN
    assert limit < float(parts["worker"]["stop_grace_period"].removesuffix("s"))

    assert fetch(f"http://127.0.0.1:{port}/add?a=1&b=2") == (200, "3\n")
    assert fetch(f"http://127.0.0.1:{port}/add?a=x")[0] == 400
    for program in programs.values():
        program.stop()
    text = (EXAMPLES / "compose" / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)).split()
    assert copied and [name for name in copied if not (HERE / name).exists()] == []


def test_the_image_of_the_compose_example_has_what_its_installation_needs(tmp_path):
    """Without Docker: what is copied before pip runs is copied into a folder, and built there."""
    text = (EXAMPLES / "compose" / "Dockerfile").read_text().partition("\nRUN pip install")[0]
    for names, to in re.findall(r"^COPY (.+) (\S+)$", text, re.MULTILINE):
        for name in names.split():
            if (HERE / name).is_dir():
                shutil.copytree(HERE / name, tmp_path / to)
            else:
                (tmp_path / to).mkdir(parents=True, exist_ok=True)
                shutil.copy(HERE / name, tmp_path / to)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(tmp_path)]
    subprocess.run(command, check=True, timeout=TEST_TIMEOUT, stdout=subprocess.DEVNULL)
    assert list((tmp_path / "dist").glob("*.whl"))


def test_the_dashboard_example_says_when_rabbitmq_is_away(tmp_path, cli_worker, monkeypatch):
    """Without a broker the dashboard answers 503, with the reason, when it shows and when it
    acts."""
    monkeypatch.setenv("DASHBOARD_TOKEN", "token")
    entry = ("-m", "examples.dashboard.dashboard")
    arguments = ("examples.dashboard.tasks", "--port", "0")
    dashboard = cli_worker(tmp_path, *arguments, url=NOWHERE, entry=entry)
    dashboard.wait_for("Dashboard: http")
    address = re.search(r"(http://127\.0\.0\.1:\d+/)", dashboard.text)[1]
    form = "token=token&do=delete&queue=dashboard&id=1"
    for answer in (fetch(f"{address}?token=token"), fetch(address, "POST", form)):
        assert answer[0] == 503 and "can't connect to RabbitMQ" in answer[1]
