"""The processes that tools/bench.py measures, and what they take."""

from __future__ import annotations

import contextlib
import glob
import json
import subprocess
from typing import Any

from bench_broker import PATIENCE
from lab import Failure, Process, kilobytes


class Worker(Process):
    """A contender's worker. Ends with the `with` block, with all of its processes."""

    def idle_cpu(self) -> float:
        """Return the seconds that its threads have taken: finer than `cpu`, but without what has
        ended."""
        nanoseconds = 0
        for pid in self.session():
            for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                with contextlib.suppress(OSError), open(path) as file:
                    nanoseconds += int(file.read().split()[0])
        return nanoseconds / 1e9

    def peak_memory(self) -> float:
        """Return the MiB of the process that took most."""
        return max(kilobytes(pid, "status", "VmHWM") for pid in self.session()) / 1024

    def memory(self) -> float:
        """Return the MiB of all of its processes; what they share counts once."""
        return sum(kilobytes(pid, "smaps_rollup", "Pss") for pid in self.session()) / 1024


def run_load(
    python: str, module: str, what: str, options: dict[str, Any], env: dict[str, str], folder: str
) -> dict[str, float]:
    """Run bench_contenders/load.py to its end, and return what it prints."""
    command = [python, "-m", "bench_contenders.load", module, what, json.dumps(options)]
    done = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, timeout=PATIENCE + 60
    )
    try:
        facts: dict[str, float] = json.loads(done.stdout)
    except ValueError:
        raise Failure(f"{what}: {done.stderr.strip().rpartition(chr(10))[2]:.500}") from None
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
