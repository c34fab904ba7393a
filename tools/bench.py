"""`make bench`: this project beside other task queues, and beside loops on bare client libraries.

    python tools/bench.py [--quick] [--rounds N] [--only ROW,...] [--contenders NAME,...] [--growth]
    [--fairness]

Installs the peers into build/bench-venv, starts a private RabbitMQ, and measures each contender in
processes of its own: a worker (the contender's own command line), a process that sends, or both.
What is measured is in MEASUREMENTS, with what, in CONTENDERS. In each round the contenders of a
measurement take turns, and each round begins with another one: this kind of machine changes its
speed by a factor of two within minutes, so only figures of one round compare. What the hypervisor
has stolen meanwhile is noted beside each figure.

A worker's tasks are sent before it starts, by the contender's own means. The clock runs from when a tenth of them has run
until all have. Then it is checked:

- Each task has run once, and no message is left: it has been acknowledged.
- Each result is the one that was asked for. Each message that was sent is in the queue.
- Messages and queues are persistent (Kuyruk 10's messages can't be; the table says so).

Results are in build/bench: table.md, throughput.svg, cost.svg, results.json. Instead of them,
`--growth` measures how this project's cost grows with lengths and sizes (growth.md), and
`--fairness`, how long messages wait while a thread is free (fairness.md). `--quick` takes two
minutes, and gives figures to try the tool with, not to compare. Linux (/proc).

Exit code: 0 if all was measured (whether or not the targets are met); others: see lab.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bench_special
import lab
from bench_measure import (
    CONTENDERS,
    IDLE,
    MEASUREMENTS,
    PYTHON,
    VENV,
    Bench,
    Contender,
    Measurement,
    stolen_clock,
)
from bench_report import ROWS, Figure, Results, report
from lab import ROOT, say
from rabbitmq_node import RabbitmqNode

PEERS = [
    "kuyruk==10.2.2",
    "dramatiq[rabbitmq]==2.2.1",
    "celery==5.7.0",
    "amqp==5.4.2",
    "pika==1.4.4",
]
OURS = ("amqpstorm>=3.1.3,<3.2",)
#: What `versions` prints, beside Python and RabbitMQ.
LIBRARIES = ("amqpstorm", "pamqp", "kuyruk", "dramatiq", "celery", "kombu", "amqp", "pika")


# --- The run -------------------------------------------------------------------


class Run:
    """All rounds of all measurements that were asked for."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self.results = Results()
        self.results.failures = bench.failures
        self.bench = bench
        self._arguments = arguments
        only, names = set(arguments.only), arguments.contenders
        self._plan = [
            (m, [CONTENDERS[name] for name in m.contenders if name in names])
            for m in (*MEASUREMENTS, IDLE)
            if not only or only & set(m.rows)
        ]

    def run(self) -> None:
        for measurement, contenders in self._plan:
            say(f"\n{', '.join(measurement.rows)}: {ROWS[measurement.rows[0]].title}")
            for number in range(min(measurement.rounds, self._arguments.rounds)):
                turn = number % max(1, len(contenders))
                self._round(measurement, [*contenders[turn:], *contenders[:turn]], number)

    def _round(self, measurement: Measurement, contenders: list[Contender], number: int) -> None:
        if measurement is IDLE:
            with self._noting(number, "idle") as note:
                for name, figures in self.bench.idle(contenders).items():
                    note(name, figures)
            return
        for contender in contenders:
            with self._noting(number, contender.name) as note:
                self.bench.prepare(contender)
                note(contender.name, measurement.measure(self.bench, contender))

    @contextlib.contextmanager
    def _noting(self, number: int, what: str) -> Iterator[Callable[[str, dict[str, float]], None]]:
        """Notes figures together with the time that was stolen; or why there are none, and goes
        on."""
        stolen = stolen_clock()
        found: dict[str, dict[str, float]] = {}
        with self.bench.attempt(f"{what}, round {number + 1}"):
            yield found.__setitem__
        part = stolen()
        for name, figures in found.items():
            self.results.figures += [
                Figure(row, name, number, value, part) for row, value in figures.items()
            ]
            text = "  ".join(f"{row} {value:.4g}" for row, value in figures.items())
            say(f"  {number + 1} {name:16} {text}  (stolen {part:.0%})")


# --- The command ---------------------------------------------------------------


def make_environment() -> dict[str, str]:
    """The peers' virtual environment, unless it is there already. Returns what is in it."""
    wanted = "\n".join((*PEERS, *OURS, sys.version))
    note = os.path.join(VENV, "bench.txt")
    with contextlib.suppress(OSError), open(note) as file:
        if file.read() == wanted:
            return versions()
    say(f"installing {', '.join(PEERS)} into {os.path.relpath(VENV, ROOT)}")
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True, timeout=300)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS, *OURS]
    subprocess.run(pip, check=True, timeout=600)
    with open(note, "w") as file:
        file.write(wanted)
    return versions()


def versions() -> dict[str, str]:
    command = [PYTHON, "-m", "pip", "list", "--disable-pip-version-check", "--format", "json"]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    installed = {row["name"].lower(): row["version"] for row in json.loads(done.stdout)}
    return {"python": platform.python_version(), **{name: installed[name] for name in LIBRARIES}}


def names(known: Iterable[str], text: str) -> list[str]:
    chosen, known = text.split(","), list(known)
    if unknown := ", ".join(set(chosen) - set(known)):
        raise argparse.ArgumentTypeError(f"unknown: {unknown}; there are {', '.join(known)}")
    return chosen


def bench(arguments: argparse.Namespace) -> list[str]:
    """Return what failed."""
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (0.25 if arguments.quick else 2.0)
    os.makedirs(arguments.out, exist_ok=True)
    facts = make_environment()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kuyruk-bench-"))
        node = stack.enter_context(RabbitmqNode())
        facts["rabbitmq"] = node.ctl("version").strip()
        bench = Bench(node, folder, arguments.seconds, arguments.quick)
        facts["this project (sha256)"] = bench.version
        stack.callback(bench.broker.close)
        say(", ".join(f"{name} {version}" for name, version in facts.items()))
        if arguments.growth:
            bench_special.measure_growth(bench, arguments.rounds, arguments.out)
        elif arguments.fairness:
            bench_special.measure_fairness(bench, arguments.contenders, arguments.out)
        else:
            compare(bench, arguments, facts)
        return bench.failures + not_durable(node)


def compare(bench: Bench, arguments: argparse.Namespace, facts: dict[str, str]) -> None:
    run = Run(bench, arguments)
    try:
        run.run()
    finally:  # after a Ctrl-C, what there is
        report(run.results, arguments.out, facts)


def not_durable(node: RabbitmqNode) -> list[str]:
    durable = node.queues("durable")
    return [f"the queue {name} isn't durable" for name in durable if durable[name] == "false"]


OPTIONS: dict[str, dict[str, Any]] = {
    "--quick": lab.option(False, "one short round, to try the tool; smaller maxima"),
    "--rounds": {"type": int, "help": "of each measurement (default: 5; with --quick: 1)"},
    "--seconds": {
        "type": float, "help": "that a measurement takes, about (default: 2; with --quick: 0.25)",
    },
    "--only": {
        "type": functools.partial(names, ROWS), "default": [], "metavar": "ROW,...",
        "help": f"these rows: {', '.join(ROWS)}",
    },
    "--contenders": {
        "type": functools.partial(names, CONTENDERS), "default": [*CONTENDERS],
        "metavar": "NAME,...", "help": ", ".join(CONTENDERS),
    },
    "--out": lab.option(os.path.join(ROOT, "build", "bench"), "where its files go"),
    "--growth": lab.option(False, "instead, how the cost of a task grows"),
    "--fairness": lab.option(False, "instead, how long messages wait"),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(lab.main(bench, OPTIONS))
