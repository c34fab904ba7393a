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
        node = cluster.leader_of("a quorum queue")
        node.kill()
        node.start()
        cluster.wait_until_whole()      # the next node may fall without a queue losing its majority

It runs in a folder of its own, listens on 127.0.0.1 only, on free ports, and shares nothing with
a broker that the system runs: no files, no Erlang cookie, no epmd. As a command it runs one node,
or a cluster, until Ctrl-C or SIGTERM:

    python tools/rabbitmq_node.py [-c 'consumer_timeout = 10000'] [--nodes 3]

What runs for a node, and why nothing of it outlives this Python process:

      this process --- child --> epmd          leads the process group G
           |       \\-- child --> beam.smp      in G; the node. Its own helpers end with it
           |        \\- child --> rabbitmqctl   in G, while `ctl` runs
           |
           '-- pipe, close-on-exec --> guard (sh, in a group of its own):
                                       when the pipe closes: SIGKILL to G, remove the folder

`Realm` owns G, the guard, the folder, the cookie and epmd; it lives from the first `start` to
`stop`. A node owns its ports and its data inside of it. Nodes that share a Realm can be joined to
a cluster; kill() takes one of them and leaves epmd and the others alone.

Another RabbitMQ than the system's: KUYRUK_TEST_RABBITMQ names the folder that holds its
`rabbitmq-server`, or the root folder of another Debian system that has it installed (made by
rabbitmq_root.sh; commands run in it through chroot).

Needs nothing but the standard library, /bin/sh and RabbitMQ. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

#: Names another RabbitMQ than the system's.
SETTING = "KUYRUK_TEST_RABBITMQ"

HOST = "127.0.0.1"

#: Where ports are looked for: below the range that outgoing connections get theirs from (32768 and
#: up on Linux). In that range a client that tries to reconnect to a node that is down would, sooner
#: or later, get the node's own port as its source port, connect to itself and keep the port taken.
PORTS = range(10240, 32768)

#: Seconds that a node gets to answer, and to end on SIGTERM, and a rabbitmqctl to end.
START_TIMEOUT = 120.0
STOP_TIMEOUT = 20.0
CTL_TIMEOUT = 60.0

#: Seconds between two looks at a starting node.
POLL_INTERVAL = 0.01

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


class RabbitmqError(RuntimeError):
    """A node could not be found, started or talked to. The text says what to look at."""


# --- Finding RabbitMQ --------------------------------------------------------


#: $0: the root folder of another system, the rest: a command in it, which keeps this process's id.
#: The mounts are this process's own: they are gone when it ends.
ENTER = 'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'


@dataclass(frozen=True)
class Installation:
    """Where a RabbitMQ is: a folder of scripts, inside a file system's root."""

    #: The root folder of its system; `/` is this one, anything else is entered by chroot.
    root: Path
    #: The folder that holds rabbitmq-server and rabbitmqctl, seen from outside of `root`.
    scripts: Path

    def inside(self, path: Path) -> str:
        """How commands of this installation name a path of ours."""
        return "/" + str(path.relative_to(self.root))

    def which(self, command: str) -> Path | None:
        """The file of a command that belongs to this installation (erl, epmd)."""
        folders = os.pathsep.join(str(self.root / f[1:]) for f in self.search_path().split(":"))
        found = shutil.which(command, path=folders)
        return Path(found) if found else None

    def search_path(self) -> str:
        """$PATH for its commands."""
        usual = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/bin"
        ours = ":".join(f for f in os.environ.get("PATH", "").split(":") if f.startswith("/"))
        return f"{ours}:{usual}" if ours and self.root == Path("/") else usual

    def argv(self, command: Path | str, *arguments: str) -> list[str]:
        """The command line that runs a command of this installation, from outside."""
        name = command if isinstance(command, str) else self.inside(command)
        if self.root == Path("/"):
            return [name, *arguments]
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        enter = ["/bin/sh", "-c", ENTER, str(self.root), name, *arguments]
        return ["unshare", "--mount", "--propagation", "private", *user, *enter]


def find_rabbitmq(setting: str = "", system: Path = Path("/")) -> Installation:
    """Where RabbitMQ is installed: as `setting` (see SETTING) says, else in `system`.

    Raises RabbitmqError that names every file that was looked for.
    """
    places: list[tuple[Path, Path]] = []  # (root, scripts)
    if setting:
        given = Path(setting).resolve()
        root = next((given.parents[f.count("/")] for f in SCRIPT_FOLDERS if given.match(f)), system)
        # A folder of scripts inside of another system runs in that system, not in ours.
        foreign = root != system and (root / "usr/bin/erl").exists()
        places.append((root if foreign else system, given))
        places += [(given, given / folder) for folder in SCRIPT_FOLDERS]
        places.append((system, given / "sbin"))  # the folder of a "generic Unix" archive
    else:
        places += [(system, system / folder) for folder in SCRIPT_FOLDERS]
    for root, scripts in places:
        if all((scripts / name).is_file() for name in ("rabbitmq-server", "rabbitmqctl")):
            return Installation(root, scripts)
    sought = "\n".join(f"  {scripts / 'rabbitmq-server'}" for _, scripts in places)
    where = f"{SETTING}={setting} holds no RabbitMQ server" if setting else "no RabbitMQ server"
    raise RabbitmqError(
        f"{where}. Looked for (each with rabbitmqctl beside it):\n{sought}\n"
        f"On Debian or Ubuntu: apt-get install rabbitmq-server; on macOS: brew install rabbitmq. "
        f"Or set {SETTING} to the folder that holds rabbitmq-server, or to the root folder of "
        f"another Debian system that has it."
    )


# --- Ports -------------------------------------------------------------------

_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback TCP port that nobody has bound, and that this process didn't get before."""
    # Not the shared generator: test libraries seed it, and two test runs would get equal ports.
    for port in random.SystemRandom().sample(PORTS, 1000):
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise RabbitmqError(f"no free port on {HOST} from {PORTS.start} to {PORTS.stop - 1}")


def answers_amqp(port: int, timeout: float = 5.0) -> bool:
    """Whether a broker answers on this port with a Connection.Start frame in `timeout` seconds."""
    try:
        with socket.create_connection((HOST, port), timeout) as client:
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

#: RabbitMQ, and what it uses without naming it.
NEEDED_APPLICATIONS = ("rabbit", "mnesia", "compiler", "syntax_tools")

_open_realms: weakref.WeakSet[Realm] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child must not keep the guards waiting after its parent is gone."""
    for realm in list(_open_realms):
        realm.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


class Realm:
    """What the nodes of one cluster share: a folder, an Erlang cookie, epmd and a guard."""

    def __init__(self, installation: Installation | None = None) -> None:
        self.installation = installation or find_rabbitmq(os.environ.get(SETTING, ""))
        self.epmd_port = free_port()
        #: Holds everything; None while closed.
        self.folder: Path | None = None
        self._owner = os.getpid()

    def open(self) -> Path:
        """Makes the folder, starts the guard and epmd; nothing if it did already."""
        if self.folder is not None:
            return self.folder
        root = self.installation.root
        parent = None if root == Path("/") else str(root / "tmp")
        folder = Path(tempfile.mkdtemp(prefix="kuyruk-rabbitmq-", dir=parent)).resolve()
        self._owner = os.getpid()
        try:
            self._write_files(folder)
            self._start_epmd(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.folder = folder
        _open_realms.add(self)
        try:
            self._wait_for_epmd()
        except BaseException:
            self.close()
            raise
        return folder

    def close(self) -> None:
        """Ends everything at once and removes the folder. Does nothing in a forked child."""
        if self.folder is None or os.getpid() != self._owner:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._epmd.pid, signal.SIGKILL)
        # The guard ends before epmd is reaped: until then, no other group can have this number.
        self._guard.kill()
        self._guard.wait()
        self.let_go()
        self._epmd.wait()
        folder, self.folder = self.folder, None
        _open_realms.discard(self)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():  # a helper of the node was still at it
            time.sleep(0.5)
            shutil.rmtree(folder, ignore_errors=True)

    def let_go(self) -> None:
        """Closes this process's end of the guard's pipe."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()

    @property
    def scripts(self) -> Path:
        """The folder of rabbitmq-server to start nodes with."""
        assert self.folder is not None
        return self.folder / "system/sbin" if self._is_linked() else self.installation.scripts

    def plugin_folders(self) -> dict[str, str]:
        """What rabbitmq-server needs besides, to make use of the links."""
        assert self.folder is not None
        folders = (self.folder / "modules", self.folder / "system/plugins")
        path = ":".join(self.installation.inside(folder) for folder in folders)
        return {"RABBITMQ_PLUGINS_DIR": path} if self._is_linked() else {}

    def environment(self) -> dict[str, str]:
        """What every command in this realm needs. Nothing of ours leaks in: not RABBITMQ_*."""
        assert self.folder is not None
        inside = self.installation.inside
        return {
            "PATH": self.installation.search_path(),
            "HOME": inside(self.folder / "home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_INETRC": inside(self.folder / "home/inetrc"),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",  # don't write one
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }

    def spawn(self, argv: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a process that ends with this realm."""
        with log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=log.parent,
                process_group=self._epmd.pid,
            )

    def run(
        self, argv: list[str], env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in this realm to its end."""
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=env,
            cwd=self.folder,
            process_group=self._epmd.pid,
            timeout=timeout,
            check=False,
        )

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
        self._link_modules(folder)

    def _is_linked(self) -> bool:
        return self.folder is not None and (self.folder / "system/sbin").is_symlink()

    def _link_modules(self, folder: Path) -> None:
        """Makes folders of links from which a node starts in a third of the time.

        A starting node loads every module of every application that it sees, and looks for each in
        all of their folders, one after the other; that is most of the time that it takes. So
        `system` is RabbitMQ without its 40 plugins, and `modules` names the folders of what is left
        once more, so that those with the most modules are looked into first (RabbitMQ does it in
        descending order).
        """
        inside = self.installation.inside
        server = (self.installation.scripts / "rabbitmq-server").resolve().parent.parent
        erl = self.installation.which("erl")
        if erl is None or not server.is_relative_to(self.installation.root):
            return  # it starts without them, too
        otp = erl.resolve().parent.parent
        system, modules = folder / "system", folder / "modules"
        (system / "plugins").mkdir(parents=True)
        modules.mkdir()
        for name in ("sbin", "escript"):
            (system / name).symlink_to(inside(server / name))
        own, known = _folders(server / "plugins"), _folders(otp / "lib")
        known |= own
        needed = _applications(known)
        for name in needed & own.keys():
            (system / "plugins" / own[name].name).symlink_to(inside(own[name]))
        by_size = sorted((known[n] for n in needed), key=lambda app: len(os.listdir(app / "ebin")))
        for number, app in enumerate(by_size):
            (modules / f"{number:03}").symlink_to(inside(app))

    def _start_epmd(self, folder: Path) -> None:
        epmd = self.installation.which("epmd")
        if epmd is None:
            raise RabbitmqError(f"no epmd in {self.installation.search_path()}: is Erlang there?")
        argv = self.installation.argv(epmd, "-port", str(self.epmd_port), "-address", HOST)
        self._epmd = subprocess.Popen(
            ["/bin/sh", "-c", START_EPMD, "epmd", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": self.installation.search_path()},
            cwd="/",
            process_group=0,
        )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._epmd.pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
        assert self._epmd.stdin is not None
        with self._epmd.stdin as line:
            line.write(b"go\n")

    def _wait_for_epmd(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._epmd.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, self.epmd_port), 1.0),
            ):
                return
            time.sleep(POLL_INTERVAL / 10)
        raise RabbitmqError(f"epmd didn't start on port {self.epmd_port}")


def _folders(parent: Path) -> dict[str, Path]:
    """The Erlang applications below `parent`, each with its folder."""
    return {app.stem: app.parent.parent for app in parent.glob("*/ebin/*.app")}


def _applications(known: dict[str, Path]) -> set[str]:
    """NEEDED_APPLICATIONS and all those that they name, as far as they are known."""
    found: set[str] = set()
    todo = list(NEEDED_APPLICATIONS)
    while todo:
        name = todo.pop()
        if name in known and name not in found:
            found.add(name)
            text = (known[name] / "ebin" / f"{name}.app").read_text(errors="replace")
            for names in re.findall(r"applications\s*,\s*\[([^\]]*)\]", text):
                todo += re.findall(r"\w+", names)
    return found


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class RabbitmqNode(_Started):
    """One private RabbitMQ node; see the top of this file.

    `config`: lines for its rabbitmq.conf. `advanced`: the text of its advanced.config, for what
    the former doesn't have. `name`: distinguishes nodes that share a `realm`; a node without one
    gets one of its own, and closes it on stop().
    """

    host = HOST

    def __init__(
        self,
        config: Iterable[str] = (),
        *,
        advanced: str = "",
        name: str = "rabbit",
        realm: Realm | None = None,
    ) -> None:
        self.config = tuple(config)
        self.advanced = advanced
        self.name = f"{name}@localhost"
        self.realm = realm or Realm()
        self.port = free_port()
        self._dist_port = free_port()
        self._owns_realm = realm is None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False

    @property
    def url(self) -> str:
        """What a client connects to. It stays the same over kill(), halt() and start()."""
        return f"amqp://guest:guest@{self.host}:{self.port}/"

    @property
    def pid(self) -> int | None:
        """The Erlang VM's process id while it runs (paused or not), else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def responds(self) -> bool:
        """Whether it runs, and isn't paused."""
        return self.pid is not None and not self._is_paused

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Starts the node, again on the same ports and data if it ran before.

        Returns when it answers clients. Raises RabbitmqError with the end of its log when it ends
        or doesn't answer in `timeout` seconds.
        """
        self.launch()
        self.wait_until_it_answers(timeout)

    def launch(self) -> None:
        """Starts the node, and doesn't wait until it answers."""
        if self.pid is not None:
            raise RabbitmqError(f"{self.name} runs already, as process {self.pid}")
        self.realm.open()
        self._write_files()
        argv = self.realm.installation.argv(self.realm.scripts / "rabbitmq-server")
        environment = self._environment() | self.realm.plugin_folders()
        self._process = self.realm.spawn(argv, environment, self._log)
        self._is_paused = False

    def wait_until_it_answers(self, timeout: float = START_TIMEOUT) -> None:
        """As `start`, after `launch`."""
        deadline = time.monotonic() + timeout
        try:
            while not answers_amqp(self.port):
                if self.pid is None:
                    code = self._process and self._process.returncode
                    raise self._not_started(f"ended with exit code {code}")
                if time.monotonic() > deadline:
                    raise self._not_started(f"didn't answer on port {self.port} in {timeout} s")
                time.sleep(POLL_INTERVAL)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends it gracefully, and everything that ran for it; removes its data."""
        try:
            self.halt()
        finally:
            if self._owns_realm:
                self.realm.close()

    def halt(self) -> None:
        """Ends it gracefully (SIGTERM, and SIGKILL after STOP_TIMEOUT); keeps its data."""
        if self._process is None or self.pid is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # it may be paused
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, at once; keeps its data. Its helper processes end by themselves, within ms."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._is_paused = False

    def pause(self) -> None:
        """SIGSTOP: from when this returns until resume(), connections are open and silent."""
        process = self._running()
        self._is_paused = True
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):  # it ended meanwhile
            process.returncode = os.waitstatus_to_exitcode(status)
            raise RabbitmqError(f"{self.name} ended\n{self.log_tail()}")

    def resume(self) -> None:
        """SIGCONT: ends pause()."""
        self._running().send_signal(signal.SIGCONT)
        self._is_paused = False

    def wait(self) -> int:
        """Waits until the node ends; returns its exit code (negative: the signal)."""
        return self._running().wait()

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Runs rabbitmqctl on this node and returns what it prints (without "Listing ..." lines).

        Raises RabbitmqError with what it says when it fails or takes longer than `timeout` seconds.
        """
        if self.realm.folder is None:
            raise RabbitmqError(f"{self.name} wasn't started")
        script = self.realm.installation.scripts / "rabbitmqctl"
        argv = self.realm.installation.argv(script, "--quiet", *arguments)
        command = f"rabbitmqctl {' '.join(arguments)}"
        try:
            done = self.realm.run(argv, self._environment(), timeout)
        except subprocess.TimeoutExpired:
            raise RabbitmqError(f"{command}: no end in {timeout} s") from None
        if done.returncode:
            raise RabbitmqError(f"{command}: {done.stderr.strip()}\n{done.stdout.strip()}")
        return done.stdout

    def queues(self, column: str) -> dict[str, str]:
        """What rabbitmqctl shows of each queue in this column, by their names."""
        rows = self.ctl("list_queues", "--no-table-headers", "name", column).splitlines()
        return dict(row.split("\t") for row in rows)

    def flush(self) -> None:
        """Has it write down now which queues it has; by itself it does within a second.

        Messages are on disk when they are confirmed, but a node that is killed right after it has
        declared a queue forgets the queue, or the node's share of a quorum queue.
        """
        self.ctl("eval", FLUSH)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the node's log; what a failed start printed is in it."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except (OSError, RabbitmqError):
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    @property
    def _folder(self) -> Path:
        if self.realm.folder is None:
            raise RabbitmqError(f"{self.name} wasn't started")
        return self.realm.folder / self.name

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self.pid is None:
            raise RabbitmqError(f"{self.name} doesn't run")
        return self._process

    def _write_files(self) -> None:
        folder = self._folder
        (folder / "conf.d").mkdir(parents=True, exist_ok=True)
        if self.config:  # reading any costs 0.2 s
            (folder / "rabbitmq.conf").write_text("\n".join((*self.config, "")))
        if self.advanced:
            (folder / "advanced.config").write_text(self.advanced)
        (folder / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        """For rabbitmq-server and rabbitmqctl, see rabbitmq.com/docs/configure."""
        inside = self.realm.installation.inside
        folder = self._folder
        # With -sname the VM registers with epmd by itself. Without, RabbitMQ first starts a second
        # VM to see that an epmd runs: that costs 0.2 s, and it would start one that outlives us.
        arguments = (
            f"-sname {self.name} -kernel inet_dist_listen_min {self._dist_port}"
            f" -kernel inet_dist_listen_max {self._dist_port} {ERLANG_ARGUMENTS}"
        )
        return self.realm.environment() | {
            # The script then becomes the VM, so that its process id is the VM's.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONFIG_FILE": inside(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": inside(folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": inside(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": inside(folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": inside(folder / "pid"),
            "RABBITMQ_MNESIA_BASE": inside(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": inside(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": arguments,
            # Any free port instead of one of eleven, that others may have.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            "RABBITMQ_CTL_ERL_ARGS": ERLANG_ARGUMENTS,
        }

    def _not_started(self, reason: str) -> RabbitmqError:
        return RabbitmqError(f"{self.name} {reason}. The end of its log:\n{self.log_tail()}")


# --- Cluster -----------------------------------------------------------------

#: Ends when each queue could lose the node that it is run on, or else at its timeout; in all
#: releases, "rabbitmq-upgrade await_online_quorum_plus_one" is the same.
AWAIT_QUORUM = "rabbit_upgrade_preparation:await_online_quorum_plus_one({milliseconds})."


def _formation(name: str) -> list[str]:
    """For a node that joins the first, which runs already, when it starts for the first time.

    With a list of all in each, and all started at once, RabbitMQ 3.10 takes 20 seconds to find out
    that there is nobody yet.
    """
    formation = {
        "peer_discovery_backend": "classic_config",
        "classic_config.nodes.1": "rabbit1@localhost",
        "classic_config.nodes.2": f"{name}@localhost",
    }
    return [f"cluster_formation.{key} = {value}" for key, value in formation.items()]


class RabbitmqCluster(_Started):
    """Private RabbitMQ nodes that are one cluster.

    `config`, `advanced`: of each node, see RabbitmqNode. `size`: how many nodes; three keep their
    quorum queues when one falls. `nodes` can be killed, paused and started one by one; `ports` and
    data
    stay. What a node does alone, as `ctl`, see RabbitmqNode.
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
        """For RABBIT_HOST: all addresses."""
        return ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    @property
    def url(self) -> str:
        """For RABBIT_URL: all addresses. Only for Kuyruk; others take the `url` of a node."""
        return f"amqp://guest:guest@{self.hosts}/"

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Starts those nodes that don't run, and returns when the cluster is whole.

        Once they have data, all at once: one that wasn't the last to end waits for the others.
        """
        deadline = time.monotonic() + timeout
        if self.realm.folder is None:  # there is no cluster yet that others could join
            self.nodes[0].start(timeout)
        started = [node for node in self.nodes if node.pid is None]
        for node in started:
            node.launch()
        for node in started:
            node.wait_until_it_answers(deadline - time.monotonic())
        self.wait_until_whole(deadline - time.monotonic())

    def stop(self) -> None:
        """Ends all at once, and everything that ran for them; removes their data."""
        self.realm.close()
        for node in self.nodes:
            node.kill()  # reaps it

    def wait_until_whole(self, timeout: float = START_TIMEOUT) -> None:
        """Waits until all nodes are in the cluster, and each quorum queue has all its members.

        Then, and not before, a node can be killed without taking a queue its majority: a node that
        has just answered again may still miss in some of them. Raises RabbitmqError.
        """
        milliseconds = max(0, int(timeout * 1000))
        seconds = str(math.ceil(milliseconds / 1000))
        self.ctl("await_online_nodes", "--timeout", seconds, str(len(self.nodes)), timeout=timeout)
        answer = self.ctl("eval", AWAIT_QUORUM.format(milliseconds=milliseconds), timeout=timeout)
        if answer.strip() != "true":
            raise RabbitmqError(f"there are queues without all of their members: {answer.strip()}")

    def leader_of(self, queue: str, timeout: float = CTL_TIMEOUT) -> RabbitmqNode:
        """The node that leads this quorum queue. Waits until there is one that runs.

        Raises RabbitmqError if there is none in `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            asked = next((node for node in self.nodes if node.responds), self.nodes[0])
            leader = asked.queues("leader").get(queue)
            for node in self.nodes:
                if node.name == leader and node.responds:
                    return node
        raise RabbitmqError(f"queue {queue!r} has no leader in {timeout} s")

    def flush(self) -> None:
        """See RabbitmqNode.flush: before the majority of the nodes is killed."""
        for node in self.nodes:
            if node.responds:
                node.flush()

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Runs rabbitmqctl on the first node that responds; see RabbitmqNode.ctl."""
        for node in self.nodes:
            if node.responds:
                return node.ctl(*arguments, timeout=timeout)
        raise RabbitmqError("no node of the cluster runs")


# --- Command line ------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Runs a node, or a cluster, until Ctrl-C or SIGTERM. Exit codes: 0 so ended, 1 RabbitMQ's
    fault."""
    parser = argparse.ArgumentParser(
        description="Runs a private RabbitMQ node, or a cluster, until Ctrl-C or SIGTERM and prints "
        "its URL (for Kuyruk: all addresses are in it)."
    )
    parser.add_argument(
        "-c", "--config", metavar="LINE", action="append", default=[], help="for rabbitmq.conf"
    )
    parser.add_argument(
        "-n", "--nodes", metavar="N", type=int, default=1, help="as a cluster of so many"
    )
    parser.add_argument(
        "--which", action="store_true", help="only print which rabbitmq-server it would run"
    )
    options = parser.parse_args(arguments)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        if options.which:
            print(find_rabbitmq(os.environ.get(SETTING, "")).scripts / "rabbitmq-server")
            return 0
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, interrupt)
        if options.nodes > 1:
            with RabbitmqCluster(options.config, size=options.nodes) as cluster:
                print(cluster.url, flush=True)
                while True:
                    signal.pause()  # a node may end, and be started by no one
        with RabbitmqNode(options.config) as node:
            print(node.url, flush=True)
            code = node.wait()
            raise RabbitmqError(f"the node ended ({code}). Its log:\n{node.log_tail()}")
    except KeyboardInterrupt:
        return 0
    except RabbitmqError as error:
        print(f"rabbitmq_node: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
