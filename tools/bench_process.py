"""The processes that tools/bench.py measures, and what they take."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
import time
from types import TracebackType
from typing import Any, NamedTuple, Self

from bench_broker import PATIENCE, BenchError

TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """A contender's worker. Ends with the `with` block, with all of its processes."""

    def __init__(self, command: list[str], environment: dict[str, str], log: str) -> None:
        self._log = log
        with open(log, "wb") as output:  # of its own session: so its processes can be found
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=os.path.dirname(log),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def check(self) -> None:
        """Raises BenchError if it has ended."""
        if self._process.poll() is not None:
            raise BenchError(
                f"its worker has ended with exit code {self._process.returncode}: {self._last_words()}"
            )

    def _last_words(self) -> str:
        with open(self._log, encoding="utf-8", errors="replace") as log:
            return " | ".join(log.read().split("\n")[-5:])

    def kill(self) -> None:
        while pids := [
            pid for pid in self._pids() if pid != self._process.pid or self._process.poll() is None
        ]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        self._process.wait()

    def _pids(self) -> list[int]:
        """Of its session, without zombies."""
        return [
            pid
            for pid, stat in _processes()
            if stat.session == self._process.pid and stat.state != "Z"
        ]

    def cpu(self) -> float:
        """Seconds of all of its processes, those that have ended included."""
        own = [stat.ticks for _, stat in _processes() if stat.session == self._process.pid]
        return sum(own) / TICKS

    def idle_cpu(self) -> float:
        """Seconds that its threads have taken: finer than `cpu`, but without what has ended."""
        nanoseconds = 0
        for pid in self._pids():
            for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                with contextlib.suppress(OSError), open(path) as file:
                    nanoseconds += int(file.read().split()[0])
        return nanoseconds / 1e9

    def peak_memory(self) -> float:
        """MiB, of the process that took most."""
        return max(_kilobytes(pid, "status", "VmHWM") for pid in self._pids()) / 1024

    def memory(self) -> float:
        """MiB, of all of its processes; what they share counts once."""
        return sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in self._pids()) / 1024


class _Stat(NamedTuple):
    state: str
    session: int
    ticks: int  #: Of the process and of those of its children that it has waited for.


def _processes() -> list[tuple[int, _Stat]]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            found.append(
                (int(name), _Stat(fields[0], int(fields[3]), sum(map(int, fields[11:15]))))
            )
    return found


def _kilobytes(pid: int, file: str, key: str) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}") as lines:
        for line in lines:
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def run_load(
    python: str,
    module: str,
    what: str,
    options: dict[str, Any],
    environment: dict[str, str],
    folder: str,
) -> dict[str, float]:
    """Runs bench_contenders/load.py to its end, and returns what it prints."""
    command = [python, "-m", "bench_contenders.load", module, what, json.dumps(options)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE + 60,
        )
        facts: dict[str, float] = json.loads(done.stdout)
    except ValueError:
        raise BenchError(f"{what}: {done.stderr.strip().rpartition(chr(10))[2]:.500}") from None
    return facts


# --- Stolen time ---------------------------------------------------------------


def stolen_time() -> tuple[int, int]:
    """Ticks that the hypervisor gave to others, and all, since the machine started."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return fields[7], sum(fields)


def stolen_since(before: tuple[int, int]) -> float:
    """As a part of all."""
    now = stolen_time()
    return (now[0] - before[0]) / max(1, now[1] - before[1])
