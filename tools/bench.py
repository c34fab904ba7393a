"""`make bench`: this project beside other task queues, and beside loops on bare client libraries.

    python tools/bench.py [--quick] [--only ROW ...] [--growth] [--fairness] ...

Installs the peers into build/bench-venv, starts a private RabbitMQ, and measures each contender in
processes of its own: a worker (the contender's own command line), a process that sends, or both.
It is checked that each task has run once, that each message was persistent (Kuyruk 10's can't be;
the table says so) and is acknowledged, and that each result is the one that was asked for.

Results are in build/bench: table.md, throughput.svg, cost.svg, results.json. Instead of them,
`--growth` measures how this project's cost grows with lengths and sizes (growth.md), and
`--fairness`, how long messages wait while a thread is free (fairness.md). `--quick` takes two
minutes, and gives figures to try the tool with, not to compare. Linux (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import bench_special
import lab
from bench_measure import CONTENDERS, IDLE, MEASUREMENTS, PYTHON, VENV, Bench, Measurement
from bench_report import ROWS, Figure, Results, report
from lab import ROOT, say, stolen_clock
from rabbitmq_node import RabbitmqNode

PEERS = ["kuyruk==10.2.2", "dramatiq[rabbitmq]==2.2.1", "celery==5.7.0"]
CLIENTS = ["amqp==5.4.2", "pika==1.4.4", "amqpstorm>=3.1.3,<3.2"]
#: Whose versions are told, beside Python's and RabbitMQ's.
LIBRARIES = ("amqpstorm", "pamqp", "kuyruk", "dramatiq", "celery", "kombu", "amqp", "pika")


# --- The run -------------------------------------------------------------------


def compare(bench: Bench, options: argparse.Namespace, facts: dict[str, str]) -> None:
    """Measure all rounds of all rows that were asked for, and write the table of them."""
    results = Results(bench.failures)
    try:
        for measurement in (*MEASUREMENTS, IDLE):
            if not options.only or set(options.only) & set(measurement.rows):
                say(f"\n{', '.join(measurement.rows)}: {ROWS[measurement.rows[0]].title}")
                for number in range(min(measurement.rounds, options.rounds)):
                    measure_round(bench, measurement, options.contenders, number, results)
    # After a Ctrl-C, of what there is.
    finally:
        report(results, options.out, facts)


def measure_round(
    bench: Bench, measurement: Measurement, names: list[str], number: int, results: Results
) -> None:
    """Have the contenders take turns. Each round begins with another one."""
    # This kind of machine changes its speed by a factor of two within minutes, so only figures of
    # one round compare. What the hypervisor has stolen meanwhile is noted beside each figure.
    contenders = [CONTENDERS[name] for name in measurement.contenders if name in names]
    turn = number % max(1, len(contenders))
    turns = [[each] for each in (*contenders[turn:], *contenders[:turn])]
    # It isn't the clock that is read of those that are idle: all of them at once.
    for group in [contenders] if measurement is IDLE else turns:
        stolen, found = stolen_clock(), dict[str, dict[str, float]]()
        with bench.attempt(f"{', '.join(each.name for each in group)}, round {number + 1}"):
            for contender in group:
                bench.prepare(contender)
            if measurement is IDLE:
                found = bench.idle(group)
            else:
                found = {each.name: measurement.measure(bench, each) for each in group}
        part = stolen()
        for name, figures in found.items():
            text = "  ".join(f"{row} {value:.4g}" for row, value in figures.items())
            say(f"  {number + 1} {name:16} {text}  (stolen {part:.0%})")
            results.figures += [
                Figure(row, name, number, value, part) for row, value in figures.items()
            ]


# --- The command ---------------------------------------------------------------


def make_environment() -> dict[str, str]:
    """Make the peers' virtual environment, unless it is there. Return the versions in it."""
    # A note in it says what it was made of, by which Python.
    wanted = "\n".join((*PEERS, *CLIENTS, sys.version))
    note, found = os.path.join(VENV, "bench.txt"), ""
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    with contextlib.suppress(OSError), open(note) as file:
        found = file.read()
    if found != wanted:
        say(f"installing {', '.join(PEERS)} into {os.path.relpath(VENV, ROOT)}")
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, timeout=300)
        subprocess.run([*pip, "install", "--quiet", *PEERS, *CLIENTS], check=True, timeout=600)
        with open(note, "w") as file:
            file.write(wanted)
    command = [*pip, "list", "--format", "json"]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    installed = {row["name"].lower(): row["version"] for row in json.loads(done.stdout)}
    return {"python": platform.python_version(), **{name: installed[name] for name in LIBRARIES}}


def bench(options: argparse.Namespace) -> list[str]:
    """Return what failed."""
    # A target that was missed is no failure.
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.25 if options.quick else 2.0)
    os.makedirs(options.out, exist_ok=True)
    facts = make_environment()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kuyruk-bench-"))
        node = stack.enter_context(RabbitmqNode())
        facts["rabbitmq"] = node.ctl("version").strip()
        bench = Bench(node, folder, options.seconds, options.quick)
        facts["this project (sha256)"] = bench.version
        say(", ".join(f"{name} {version}" for name, version in facts.items()))
        if options.growth:
            bench_special.measure_growth(bench, options.rounds, options.out)
        elif options.fairness:
            bench_special.measure_fairness(bench, options.contenders, options.out)
        else:
            compare(bench, options, facts)
        durable = node.queues("durable")
        transient = [name for name in durable if durable[name] == "false"]
        return bench.failures + lab.some("this queue isn't durable", transient)


OPTIONS: dict[str, dict[str, Any]] = {
    "--quick": lab.option(False, "one short round, to try the tool; smaller maxima"),
    "--rounds": {"type": int, "help": "of each measurement (default: 5; with --quick: 1)"},
    "--seconds": {
        "type": float, "help": "that a measurement takes, about (default: 2; with --quick: 0.25)",
    },
    "--only": {
        "nargs": "+", "choices": ROWS, "default": [], "metavar": "ROW",
        "help": f"these rows: {', '.join(ROWS)}",
    },
    "--contenders": {
        "nargs": "+", "choices": CONTENDERS, "default": [*CONTENDERS], "metavar": "NAME",
        "help": f"these: {', '.join(CONTENDERS)}",
    },
    "--out": lab.option(os.path.join(ROOT, "build", "bench"), "where its files go"),
    "--growth": lab.option(False, "instead, how the cost of a task grows"),
    "--fairness": lab.option(False, "instead, how long messages wait"),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(lab.main(bench, OPTIONS))
