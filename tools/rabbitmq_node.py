"""A private RabbitMQ node: for the tests, the demo, the benchmarks and the chaos suite.

    with RabbitmqNode(["consumer_timeout = 10000"]) as node:
        amqpstorm.UriConnection(node.url)
        node.ctl("list_queues", "name", "messages")
        node.kill()                 # as a power cut would: SIGKILL, data kept
        node.start()                # same ports, same data
        node.pause()                # SIGSTOP: connected, and silent
        node.resume()

    with RabbitmqCluster() as cluster:      # three nodes
        app.config.RABBIT_HOST = cluster.hosts      # "127.0.0.1:p1,127.0.0.1:p2,127.0.0.1:p3"
        cluster.leader_of("a quorum queue").kill()
        cluster.start()             # and waits: the next node may fall without a loss of majority

    python tools/rabbitmq_node.py [-c 'consumer_timeout = 10000'] [--nodes 3]   # until Ctrl-C

It runs in a folder of its own, listens on 127.0.0.1 only, on free ports, and shares nothing with
a broker that the system runs: no files, no Erlang cookie, no epmd. It needs nothing but the
standard library, /bin/sh and RabbitMQ, on Linux or macOS. What runs for a node, and why nothing of
it outlives this Python process:

      this process --- child --> epmd          leads the process group G
           |       \\-- child --> beam.smp      in G; the node. Its own helpers end with it
           |        \\- child --> rabbitmqctl   in G, while `ctl` runs
           |
           '-- pipe, close-on-exec --> guard (sh, in a group of its own):
                                       when the pipe closes: SIGKILL to G, remove the folder

`Realm` owns G, the guard, the folder, the cookie and epmd. The nodes of a cluster share one; kill()
takes one node and leaves epmd and the others alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

#: Names another RabbitMQ than the system's: the folder that holds its `rabbitmq-server`, or one
#: that rabbitmq_root.sh has made.
SETTING = "KUYRUK_TEST_RABBITMQ"

HOST = "127.0.0.1"

#: Where ports are looked for: below the range that outgoing connections get theirs from (32768 and
#: up on Linux). In that range a client that tries to reconnect to a node that is down would, sooner
#: or later, get the node's own port as its source port, connect to itself and keep the port taken.
PORTS = range(10240, 32768)

TIMEOUT = 120.0  #: Seconds that a node, or a cluster, gets to answer, and a rabbitmqctl to end;
STOP_TIMEOUT = 20.0  #: a node to end on SIGTERM.
POLL_INTERVAL = 0.01  #: Seconds between two looks at a starting node.

#: Where RabbitMQ's scripts are. Debian's /usr/sbin isn't among them: what it has there are wrappers
#: that change the user.
SCRIPT_FOLDERS = (
    "usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora
    "opt/homebrew/sbin",  # macOS
    "usr/local/sbin",
    "opt/rabbitmq/sbin",  # the official container image
)

#: For every Erlang VM: small and quiet, because the machine is shared with the tests; on the
#: loopback interface only; and no epmd of its own, because that would outlive us.
ERLANG_ARGUMENTS = (
    "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
    " -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
)

#: Of bytes or of text.
Popen = subprocess.Popen[Any]


class RabbitmqError(RuntimeError):
    """A node could not be found, started or talked to. The text says what to look at."""


# --- Finding RabbitMQ --------------------------------------------------------


def search_path() -> str:
    """Return the $PATH of all commands."""
    usual = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/bin"
    ours = [f for f in os.environ.get("PATH", "").split(":") if f.startswith("/")]
    return ":".join([*ours, usual])


def find_rabbitmq() -> Path:
    """Return the folder of rabbitmq-server and rabbitmqctl: where SETTING says, or the system's."""
    setting = os.environ.get(SETTING, "")
    root = Path(setting or "/").resolve()
    places = [root / folder for folder in SCRIPT_FOLDERS]
    if setting:  # the folder itself, or that of a "generic Unix" archive
        places = [root, root / "sbin", *places]
    for scripts in places:
        if all((scripts / name).is_file() for name in ("rabbitmq-server", "rabbitmqctl")):
            return scripts
    sought = "\n".join(f"  {scripts / 'rabbitmq-server'}" for scripts in places)
    where = f"{SETTING}={setting} holds no RabbitMQ server" if setting else "no RabbitMQ server"
    raise RabbitmqError(
        f"{where}. Looked for (each with rabbitmqctl beside it):\n{sought}\n"
        f"On Debian or Ubuntu: apt-get install rabbitmq-server; on macOS: brew install rabbitmq. "
        f"Or set {SETTING} to the folder that holds rabbitmq-server."
    )


# --- Ports -------------------------------------------------------------------

_given_ports: set[int] = set()


def free_port() -> int:
    """Return a loopback TCP port that nobody has bound, and that this process didn't get before."""
    # Not the shared generator: test libraries seed it, and two test runs would get equal ports.
    for port in random.SystemRandom().sample(PORTS, 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given_ports:
                probe.bind((HOST, port))
                _given_ports.add(port)
                return port
    raise RabbitmqError(f"no free port on {HOST} from {PORTS.start} to {PORTS.stop - 1}")


def answers_amqp(port: int) -> bool:
    """Whether a broker answers on this port with a Connection.Start frame within 5 seconds."""
    try:
        with socket.create_connection((HOST, port), 5.0) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            answer = client.recv(11)
    except OSError:
        return False
    # A method frame on channel 0, its length, and the numbers of Connection (10) and Start (10).
    return answer[:3] == b"\x01\x00\x00" and answer[7:] == b"\x00\x0a\x00\x0a"


# --- Realm -------------------------------------------------------------------

#: Waits for a line before it becomes epmd: nothing may run before the guard does.
START_EPMD = 'read -r _ && exec "$@" </dev/null'

#: $1: the group to kill, $2: the folder to remove. Killed processes may still be about to write.
GUARD = """trap '' HUP INT TERM
read -r _
kill -s KILL -- "-$1" 2>/dev/null
for attempt in 1 2 3 4 5; do rm -rf -- "$2" 2>/dev/null && break; sleep 1; done"""


class Realm:
    """What the nodes of one cluster share: a folder, an Erlang cookie, epmd and a guard."""

    def __init__(self) -> None:
        self.installed = self._scripts = find_rabbitmq()
        self.plugins: Path | None = None  # other ones than those of the installation
        self.epmd_port = free_port()
        #: Holds everything; None while closed.
        self.folder: Path | None = None
        self._epmd: Popen | None = None
        self._guard: Popen | None = None

    def open(self) -> None:
        """Make the folder, start the guard and epmd; do nothing if that was done."""
        if self.folder is not None:
            return
        self._owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix="kuyruk-rabbitmq-")).resolve()
        try:
            self._write_files(self.folder)
            self._start_epmd(self.folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything at once and remove the folder. Do nothing in a forked child."""
        if self.folder is None or os.getpid() != self._owner:
            return
        if self._epmd is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._epmd.pid, signal.SIGKILL)
        # The guard ends before epmd is reaped: until then, no other group can have this number.
        for process in (self._guard, self._epmd):
            if process is not None:
                process.kill()
                process.communicate()
        folder, self.folder = self.folder, None
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():  # a helper of the node was still at it
            time.sleep(0.5)
            shutil.rmtree(folder, ignore_errors=True)

    def spawn(self, command: str, arguments: Sequence[str], **options: Any) -> Popen:
        """Start one of RabbitMQ's scripts, which ends with this realm."""
        assert self.folder is not None and self._epmd is not None
        return subprocess.Popen(
            [self._scripts / command, *arguments],
            stdin=subprocess.DEVNULL, cwd=self.folder, process_group=self._epmd.pid, **options,
        )  # fmt: skip

    def _write_files(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        # A bare system, as debootstrap makes it, doesn't know the name "localhost".
        (home / "inetrc").write_text(
            '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'
        )
        self._link_without_plugins(folder)

    def _link_without_plugins(self, folder: Path) -> None:
        """Make a folder of links: RabbitMQ without its 40 plugins."""
        # A starting node loads every module that it sees: most of its time goes there.
        server = (self.installed / "rabbitmq-server").resolve().parent.parent
        if not (server / "plugins").is_dir():
            return  # it starts with them, too
        system = folder / "system"
        (system / "plugins").mkdir(parents=True)
        for name in ("sbin", "escript"):
            (system / name).symlink_to(server / name)
        own = [path.read_text() for path in server.glob("plugins/rabbit-*/ebin/rabbit.app")]
        for path in (server / "plugins").iterdir():
            name = path.name.partition("-")[0]
            if not name.startswith("rabbitmq_") or any(name in text for text in own):
                (system / "plugins" / path.name).symlink_to(path)
        self.plugins, self._scripts = system / "plugins", system / "sbin"

    def _start_epmd(self, folder: Path) -> None:
        """Start the guard and epmd, and wait until that answers."""
        epmd = shutil.which("epmd", path=search_path())
        if epmd is None:
            raise RabbitmqError(f"no epmd in {search_path()}: is Erlang there?")
        argv = [epmd, "-port", str(self.epmd_port), "-address", HOST]
        self._epmd = self._start_shell(START_EPMD, "epmd", *argv)
        self._guard = self._start_shell(GUARD, "guard", str(self._epmd.pid), str(folder))
        assert self._epmd.stdin is not None
        with self._epmd.stdin as line:
            line.write(b"go\n")
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self._epmd.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.epmd_port), 1):
                return
            time.sleep(POLL_INTERVAL / 10)
        raise RabbitmqError(f"epmd didn't start on port {self.epmd_port}")

    def _start_shell(self, script: str, *arguments: str) -> Popen:
        """Start it in a group of its own, with a pipe."""
        return subprocess.Popen(
            ["/bin/sh", "-c", script, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={"PATH": search_path()}, cwd="/", process_group=0,
        )  # fmt: skip


# --- Node --------------------------------------------------------------------

#: RabbitMQ before 4.3 has Mnesia's tables; all have DETS files for quorum queues.
FLUSH = "catch mnesia:dump_log(), [ok = dets:sync(Table) || Table <- dets:all()]."


class _Started:
    """What is started and stopped, as a context manager too."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class RabbitmqNode(_Started):
    """One private RabbitMQ node; see the top of this file.

    `config`: lines for its rabbitmq.conf. `advanced`: the text of its advanced.config, for what
    the former doesn't have. `name`: distinguishes nodes that share a `realm`; a node without one
    gets one of its own, and closes it on stop().
    """

    def __init__(
        self, config: Iterable[str] = (), *, advanced: str = "", name: str = "rabbit",
        realm: Realm | None = None,
    ) -> None:  # fmt: skip
        self.config = tuple(config)
        self.advanced = advanced
        self.name = f"{name}@localhost"
        self.realm = realm or Realm()
        self.port = free_port()
        self._dist_port = free_port()
        self._owns_realm = realm is None
        self._process: Popen | None = None
        self._is_paused = False

    @property
    def url(self) -> str:
        """Return what a client connects to. It stays the same over kill(), halt() and start()."""
        return f"amqp://guest:guest@{HOST}:{self.port}/"

    @property
    def pid(self) -> int | None:
        """Return the Erlang VM's process id while it runs (paused or not), else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def responds(self) -> bool:
        """Whether it runs, and isn't paused."""
        return self.pid is not None and not self._is_paused

    def start(self) -> None:
        """Start the node, again on the same ports and data if it ran before; return when it answers
        clients. Raises RabbitmqError with the end of its log."""
        self.launch()
        self.wait_until_it_answers()

    def launch(self) -> None:
        """Start the node, and don't wait until it answers."""
        if self.pid is not None:
            raise RabbitmqError(f"{self.name} runs already, as process {self.pid}")
        self.realm.open()
        self._write_files()
        with (self._folder / "log").open("ab") as output:
            self._process = self.realm.spawn(
                "rabbitmq-server", [], env=self._environment(), stdout=output, stderr=output
            )
        self._is_paused = False

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        try:
            while not answers_amqp(self.port):
                if self.pid is None or time.monotonic() > deadline:
                    code = self._process and self._process.returncode
                    text = f"{self.name} doesn't answer on port {self.port}; its exit code: {code}"
                    raise RabbitmqError(f"{text}. The end of its log:\n{self.log_tail()}")
                time.sleep(POLL_INTERVAL)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it gracefully, and everything that ran for it; remove its data."""
        try:
            self.halt()
        finally:
            if self._owns_realm:
                self.realm.close()

    def halt(self) -> None:
        """End it gracefully (SIGTERM, and SIGKILL after STOP_TIMEOUT); keep its data."""
        if self._process is None or self.pid is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # it may be paused
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL; keep its data. Its helper processes end by themselves, within ms."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._is_paused = False

    def pause(self) -> None:
        """Send SIGSTOP: from when this returns until resume(), connections are open and silent."""
        if self._process is None or self.pid is None:
            raise RabbitmqError(f"{self.name} doesn't run")
        self._is_paused = True
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """End a pause."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
        self._is_paused = False

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it prints (without "Listing ..." lines).
        Raises RabbitmqError with what it says."""
        command = f"rabbitmqctl {' '.join(arguments)}"
        with self.realm.spawn(
            "rabbitmqctl", ["--quiet", *arguments], env=self._environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        ) as ctl:  # fmt: skip
            try:
                out, err = ctl.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                raise RabbitmqError(f"{command}: no end in {TIMEOUT} s") from None
            finally:
                ctl.kill()  # nothing, if it has ended
        if ctl.returncode:
            raise RabbitmqError(f"{command}: {err.strip()}\n{out.strip()}")
        return str(out)

    def queues(self, column: str) -> dict[str, str]:
        """Return what rabbitmqctl shows of each queue in this column, by their names."""
        rows = self.ctl("list_queues", "--no-table-headers", "name", column).splitlines()
        return dict(row.split("\t") for row in rows)

    def flush(self) -> None:
        """Have it write down now which queues it has; by itself it does within a second."""
        # Messages are on disk when they are confirmed, but a node that is killed right after it has
        # declared a queue forgets the queue, or the node's share of a quorum queue.
        self.ctl("eval", FLUSH)

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the node's log; what a failed start printed is in it."""
        try:
            text = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        except (OSError, RabbitmqError):
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _folder(self) -> Path:
        if self.realm.folder is None:
            raise RabbitmqError(f"{self.name} wasn't started")
        return self.realm.folder / self.name

    def _write_files(self) -> None:
        folder = self._folder
        (folder / "conf.d").mkdir(parents=True, exist_ok=True)
        if self.config:  # reading any costs 0.2 s
            (folder / "rabbitmq.conf").write_text("\n".join((*self.config, "")))
        if self.advanced:
            (folder / "advanced.config").write_text(self.advanced)
        (folder / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        """Return the variables of all commands, see rabbitmq.com/docs/configure."""
        folder = self._folder
        # With -sname the VM registers with epmd by itself. Without, RabbitMQ first starts a second
        # VM to see that an epmd runs: that costs 0.2 s, and it would start one that outlives us.
        arguments = (
            f"-sname {self.name} -kernel inet_dist_listen_min {self._dist_port}"
            f" -kernel inet_dist_listen_max {self._dist_port} {ERLANG_ARGUMENTS}"
        )
        plugins = self.realm.plugins
        # Nothing of ours leaks in: not RABBITMQ_*.
        return ({"RABBITMQ_PLUGINS_DIR": str(plugins)} if plugins else {}) | {
            "PATH": search_path(),
            "HOME": f"{self.realm.folder}/home",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_INETRC": f"{self.realm.folder}/home/inetrc",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.realm.epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",  # don't write one
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # The script then becomes the VM, so that its process id is the VM's.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": arguments,
            # Any free port instead of one of eleven, that others may have.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            "RABBITMQ_CTL_ERL_ARGS": ERLANG_ARGUMENTS,
        }


# --- Cluster -----------------------------------------------------------------

#: Ends when each queue could lose the node that it is run on, or else at its timeout; in all
#: releases, "rabbitmq-upgrade await_online_quorum_plus_one" is the same.
AWAIT_QUORUM = f"rabbit_upgrade_preparation:await_online_quorum_plus_one({TIMEOUT * 1000:.0f})."


def _formation(name: str) -> list[str]:
    """Return the lines for a node that joins the first one when it starts for the first time."""
    # With a list of all in each, and all started at once, RabbitMQ 3.10 takes 20 seconds to find
    # out that there is nobody yet. So the first one runs already.
    formation = {
        "peer_discovery_backend": "classic_config",
        "classic_config.nodes.1": "rabbit1@localhost",
        "classic_config.nodes.2": f"{name}@localhost",
    }
    return [f"cluster_formation.{key} = {value}" for key, value in formation.items()]


class RabbitmqCluster(_Started):
    """Private RabbitMQ nodes that are one cluster.

    `config`, `advanced`: of each node, see RabbitmqNode. `size`: how many nodes; three keep their
    quorum queues when one falls. `nodes` can be killed, paused and started one by one; ports and
    data stay.
    """

    def __init__(self, config: Iterable[str] = (), *, advanced: str = "", size: int = 3) -> None:
        self.realm = Realm()
        lines = tuple(config)
        names = [f"rabbit{number}" for number in range(1, size + 1)]
        configs = [lines, *((*_formation(name), *lines) for name in names[1:])]
        self.nodes = tuple(
            RabbitmqNode(config, advanced=advanced, name=name, realm=self.realm)
            for name, config in zip(names, configs, strict=True)
        )

    @property
    def hosts(self) -> str:
        """Return all addresses, for RABBIT_HOST."""
        return ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    @property
    def url(self) -> str:
        """Return all addresses, for RABBIT_URL. Others than Kuyruk take the `url` of a node."""
        return f"amqp://guest:guest@{self.hosts}/"

    def start(self) -> None:
        """Start those nodes that don't run, and return when the cluster is whole: when all are in
        it, and each quorum queue has all its members."""
        # Then, and not before, a node can be killed without taking a queue its majority: one that
        # has just answered again may still miss in some of them.
        if self.realm.folder is None:  # there is no cluster yet that others could join
            self.nodes[0].start()
        # Once they have data, all at once: one that wasn't the last to end waits for the others.
        started = [node for node in self.nodes if node.pid is None]
        for node in started:
            node.launch()
        for node in started:
            node.wait_until_it_answers()
        seconds = f"{TIMEOUT:.0f}"
        self.ctl("await_online_nodes", "--timeout", seconds, str(len(self.nodes)))
        answer = self.ctl("eval", AWAIT_QUORUM)
        if answer.strip() != "true":
            raise RabbitmqError(f"there are queues without all of their members: {answer.strip()}")

    def stop(self) -> None:
        """End all at once, and everything that ran for them; remove their data."""
        self.realm.close()
        for node in self.nodes:
            node.kill()  # reaps it

    def leader_of(self, queue: str) -> RabbitmqNode:
        """Return the node that leads this quorum queue, when there is one that runs."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            leader = self._responding().queues("leader").get(queue)
            for node in self.nodes:
                if node.name == leader and node.responds:
                    return node
        raise RabbitmqError(f"queue {queue!r} has no leader in {TIMEOUT} s")

    def _responding(self) -> RabbitmqNode:
        for node in self.nodes:
            if node.responds:
                return node
        raise RabbitmqError("no node of the cluster runs")

    def flush(self) -> None:
        """See RabbitmqNode.flush: before the majority of the nodes is killed."""
        for node in self.nodes:
            if node.responds:
                node.flush()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the first node that responds; see RabbitmqNode.ctl."""
        return self._responding().ctl(*arguments)


# --- Command line ------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run a node, or a cluster, until Ctrl-C or SIGTERM, and print its URL. Return the exit code: 0
    if so ended, 1 if it was RabbitMQ's fault."""
    # Not lab.main: setup.sh runs this before there is a virtual environment.
    parser = argparse.ArgumentParser(description=main.__doc__)
    add = parser.add_argument
    add("-c", "--config", metavar="LINE", action="append", default=[], help="for rabbitmq.conf")
    add("-n", "--nodes", metavar="N", type=int, default=1, help="as a cluster of so many")
    add("--which", action="store_true", help="only print which rabbitmq-server it would run")
    options = parser.parse_args(arguments)

    try:
        if options.which:
            print(find_rabbitmq() / "rabbitmq-server")
            return 0
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.default_int_handler)
        with RabbitmqCluster(options.config, size=options.nodes) as cluster:
            print(cluster.url, flush=True)
            # One may end, and be started by no one.
            while any(node.pid for node in cluster.nodes):
                time.sleep(1)
            raise RabbitmqError(f"no node runs any more. A log:\n{cluster.nodes[0].log_tail()}")
    except KeyboardInterrupt:
        return 0
    except RabbitmqError as error:
        print(f"rabbitmq_node: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
