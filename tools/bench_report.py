"""What tools/bench.py makes of its figures: the table, the targets, two pictures.

    python tools/bench_report.py docs/benchmark.md

draws the pictures anew, beside such a table and from its medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import lab
from bench_measure import CONTENDERS
from lab import say


class Row(NamedTuple):
    """A line of the table."""

    title: str
    more_is_better: bool = True


ROWS = {
    "send": Row("send without confirm, per second"),
    "send_cpu": Row("CPU seconds per 1000 sends without confirm", False),
    "send_confirmed": Row("send confirmed, one thread, per second"),
    "send_confirmed_cpu": Row("CPU seconds per 1000 confirmed sends", False),
    "send_16": Row("send confirmed, 16 threads, per second"),
    "batch": Row("a batch, per second (Kuyruk 10's isn't confirmed)"),
    "send_large": Row("send confirmed, 100 kB each, per second"),
    "drain": Row("no-op tasks per second"),
    "drain_cpu": Row("CPU seconds per 1000 no-op tasks", False),
    "start": Row("a worker's start to the end of its first task, seconds", False),
    "memory": Row("peak memory of the process that runs tasks, MiB", False),
    "memory_all": Row("memory of all of a worker's processes (PSS), MiB", False),
    "memory_long": Row("peak memory after 100,000 tasks, MiB", False),
    "drain_large": Row("no-op tasks with 100 kB each, per second"),
    "nap_10": Row("tasks of 10 ms in 64 threads, per second (at best 6400)"),
    "nap_50": Row("tasks of 50 ms in 64 threads, per second (at best 1280)"),
    "rpc": Row("call and result, median, ms", False),
    "rpc_p99": Row("call and result, 99th percentile, ms", False),
    "rpc_16": Row("call and result, 16 callers, per second"),
    "import": Row("import, ms over bare python", False),
    "idle": Row("CPU of an idle worker, %", False),
}


OURS = "kuyruk"


class Figure(NamedTuple):
    """What was measured once."""

    row: str
    contender: str
    round: int
    value: float
    #: Part of the machine's time that others got meanwhile.
    stolen: float


class Results:
    def __init__(self, failures: Iterable[str] = ()) -> None:
        self.figures: list[Figure] = []
        self.failures = failures

    def rounds(self, row: str, contender: str) -> dict[int, Figure]:
        return {f.round: f for f in self.figures if f.row == row and f.contender == contender}

    def median(self, row: str, contender: str) -> float | None:
        values = [figure.value for figure in self.rounds(row, contender).values()]
        return statistics.median(values) if values else None

    def ratio(self, row: str, contender: str, other: str, other_row: str) -> float | None:
        """Return the median of the ratios in each round."""
        # The machine's speed changes between rounds.
        own, others = self.rounds(row, contender), self.rounds(other_row, other)
        ratios = [own[n].value / others[n].value for n in own if n in others and others[n].value]
        return statistics.median(ratios) if ratios else None


# --- Targets -------------------------------------------------------------------


class Target(NamedTuple):
    """A figure of ours, as a ratio to that of the best of some others in the same rounds."""

    row: str
    limit: float
    #: Without any, the limit is of the figure itself.
    others: tuple[str, ...]
    contender: str = OURS
    other_row: str = ""
    #: Worth aiming at, and not promised.
    is_aim: bool = False
    #: Not a ratio: amqpstorm's own import is part of ours.
    is_difference: bool = False

    def judge(self, results: Results) -> Iterator[str]:
        """Yield a line of the table; none if it wasn't measured."""
        title, more = ROWS[self.row]
        row = self.other_row or self.row
        values = {name: v for name in self.others if (v := results.median(row, name)) is not None}
        measured: float | None = results.median(self.row, self.contender)
        text = f"{title}: {self.contender}"
        if measured is not None and self.is_difference and values:
            text, measured = "import: ms over amqpstorm's own", measured - min(values.values())
        elif self.others:
            best = (max if more else min)(values, key=values.__getitem__, default="")
            of = f" ({ROWS[self.other_row].title})" if self.other_row else ""
            text = f"{text} / {best}{of}"
            measured = results.ratio(self.row, self.contender, best, row)
        if measured is not None:
            wanted = f"{'≥' if more else '≤'} {self.limit:g}{' (aim)' if self.is_aim else ''}"
            is_met = measured >= self.limit if more else measured <= self.limit
            yield f"| {text} | {wanted} | {measured:.3g} | {'met' if is_met else '**missed**'} |"


PEERS = tuple(name for name, each in CONTENDERS.items() if each.kind == "peer")
TARGETS = (
    Target("send", 2, ("dramatiq",)),
    Target("send", 0.6, ("amqpstorm",)),
    Target("send_confirmed", 1, ("pika",)),
    Target("send_confirmed", 1, ("py-amqp",)),
    Target("send_16", 5, ("pika", "py-amqp"), other_row="send_confirmed"),
    Target("send_16", 5, ("kuyruk",), other_row="send_confirmed"),
    Target("batch", 1, ("kuyruk10",)),
    Target("drain", 2.5, ("dramatiq", "dramatiq-128", "celery")),
    Target("drain", 3, ("celery",)),
    Target("drain", 1, ("amqpstorm-pool",)),
    Target("drain", 1, ("py-amqp",), is_aim=True),
    Target("drain", 1.6, ("kuyruk",), contender="kuyruk-2"),
    Target("drain_cpu", 0.45, PEERS),
    Target("rpc", 1.3, ("pika",)),
    Target("rpc_16", 4, PEERS),
    Target("rpc_16", 1, ("pika",)),
    Target("nap_10", 1.7, ("dramatiq",)),
    Target("nap_50", 0.95 * 1280, ()),
    Target("memory", 1.15, ("amqpstorm",), contender="kuyruk-embedded"),
    Target("memory", 1.15, ("amqpstorm",)),
    Target("memory_long", 1.15, ("amqpstorm",), contender="kuyruk-embedded"),
    Target("idle", 0.2, ()),
    Target("idle", 0.2, (), contender="kuyruk-embedded"),
    Target("import", 25, ("amqpstorm",), is_difference=True),
)


# --- The table -----------------------------------------------------------------


def number(value: float) -> str:
    """With three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows_of(results: Results) -> Iterator[str]:
    yield "| | median | min to max | of ours | stolen |"
    yield "|---|--:|--:|--:|--:|"
    for row, (title, more) in ROWS.items():
        present = [name for name in CONTENDERS if results.rounds(row, name)]
        if present:
            yield f"| **{title}** ({'more' if more else 'less'} is better) | | | | |"
        for name in present:
            rounds = results.rounds(row, name).values()
            values = [figure.value for figure in rounds]
            stolen = statistics.median(figure.stolen for figure in rounds)
            ratio = results.ratio(row, name, OURS, row)
            of_ours = "" if ratio is None else f"{ratio:.2f}"
            extremes = f"{number(min(values))} to {number(max(values))}"
            median = number(statistics.median(values))
            yield f"| {name} | **{median}** | {extremes} | {of_ours} | {stolen:.0%} |"


def table(results: Results, facts: Mapping[str, str]) -> str:
    """As Markdown."""
    rounds = 1 + max((figure.round for figure in results.figures), default=0)
    facts_of = ", ".join(f"{name} {version}" for name, version in facts.items())
    about = '"Of ours": the median of the ratios to `kuyruk` in each round. '
    lines = [f"# Benchmark: medians of {rounds} interleaved rounds", ""]
    lines += [f"{facts_of}; {os.cpu_count()} CPUs.", "", f'{about}"Stolen": by the hypervisor.', ""]
    lines += [*rows_of(results), ""]
    verdicts = [line for target in TARGETS for line in target.judge(results)]
    if verdicts:
        lines += ["## Targets", "", "| | wanted | measured | |", "|---|--:|--:|---|", *verdicts, ""]
    lines += ["## Configurations", "", "| | |", "|---|---|"]
    for name, contender in CONTENDERS.items():
        threads = f"{contender.threads} {'thread' if contender.threads == 1 else 'threads'}"
        lines += [f"| {name} | {contender.about} ({threads}) |"]
    if results.failures:
        lines += ["", "## Failed", "", *(f"- {failure}" for failure in results.failures)]
    return "\n".join([*lines, ""])


def read_table(text: str) -> Results:
    """Return the medians of a table that `table` has made."""
    results, rows, row = Results(), {about.title: row for row, about in ROWS.items()}, ""
    for line in text.splitlines():
        # A title of `rows_of`, or a line below it.
        if match := re.match(r"\| \*\*(.*)\*\* \((more|less) is better\) \|", line):
            row = rows[match[1]]
        elif match := re.match(r"\| ([\w-]+) \| \*\*([^*]+)\*\* \|", line):
            value = float(match[2].replace(",", ""))
            results.figures.append(Figure(row, match[1], 0, value, 0.0))
    return results


# --- The pictures --------------------------------------------------------------

#: The pictures bring their background: what a page has behind them, and whether it asks the same
#: thing for "dark" as the browser does, doesn't matter. A test of these colours has the contrasts.
STYLE = """
.card { fill: #ffffff; stroke: #d0d7de; }
text { font: 13px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; fill: #24292f; }
.small { font-size: 12px; }
.ours { fill: #1a7f4b; } .peer { fill: #3b6ea8; } .raw { fill: #868e96; }
.cut { stroke: #ffffff; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22; stroke: #30363d; }
  text { fill: #9da7b3; } .title { fill: #e6edf3; }
  .ours { fill: #3fb97a; } .peer { fill: #6ca4e0; } .raw { fill: #7d8590; }
  .cut { stroke: #161b22; }
}"""
#: Pixels: the margin, the width of a name and of the longest bar, the heights of a line
#: and of what is above the first one.
MARGIN, LABEL, BAR, LINE, TOP = 16, 145, 220, 19, 60
PANEL = LABEL + BAR + 65
WIDTH = 2 * (MARGIN + PANEL)
#: A bar that is more than so many times as long as the middle one of its panel is cut.
CUT = 10


#: What they show: their titles; their rows, and the titles of these.
PICTURES: dict[str, tuple[str, dict[str, str]]] = {
    "throughput.svg": ("Throughput: longer is better", {
        "drain": "No-op tasks per second",
        "nap_10": "Tasks of 10 ms in 64 threads per second (at best 6400)",
        "send": "Sends without confirm per second",
        "send_confirmed": "Confirmed sends per second, one thread",
        "send_16": "Confirmed sends per second, 16 threads",
        "rpc_16": "Calls with results per second, 16 callers",
    }),
    "cost.svg": ("Cost: shorter is better", {
        "drain_cpu": "CPU seconds per 1000 no-op tasks",
        "memory_all": "Memory of a worker's processes, MiB",
        "rpc": "A call and its result, median, ms",
        "start": "From a worker's start to its first task's end, s",
    }),
}  # fmt: skip


def text_of(text: str, x: int = 0, style: str = "", more: str = "") -> str:
    return f'<text class="{style}" x="{x}" y="13"{more}>{escape(text)}</text>'


def bar(name: str, value: float, longest: float) -> str:
    """Return a line of a panel, which begins at 0, 0."""
    is_cut = value > longest
    width = BAR if is_cut else max(1, round(BAR * value / longest))
    kind = CONTENDERS[name].kind
    style = "title" if kind == "ours" else ""
    parts = [
        text_of(name, LABEL - 6, style, ' text-anchor="end"'),
        f'<rect class="{kind}" x="{LABEL}" y="2" width="{width}" height="{LINE - 4}" rx="2"/>',
        text_of(number(value), LABEL + width + 5, "small"),
    ]
    if is_cut:
        parts += [f'<path class="cut" d="M{LABEL + BAR - x} {LINE} l8 -{LINE}"/>' for x in (35, 28)]
    return "".join(parts)


def panel(results: Results, row: str, title: str) -> list[str]:
    """Return the lines of a panel, the best bar first; none if its row wasn't measured."""
    values = {name: v for name in CONTENDERS if (v := results.median(row, name)) is not None}
    if not values:
        return []
    # The longest bar that isn't cut.
    longest = max(v for v in values.values() if v <= CUT * statistics.median(values.values())) or 1
    ranked = sorted(values.items(), key=lambda item: item[1], reverse=ROWS[row].more_is_better)
    lines = [text_of(title, style="title"), *(bar(*item, longest) for item in ranked)]
    if max(values.values()) > longest:
        note = f"A bar with a gap is cut: over {CUT} times as long as the middle one"
        lines.append(text_of(note, style="small"))
    return [*lines, ""]


def key(name: str) -> str:
    """Return the line that says what a name stands for."""
    contender = CONTENDERS[name]
    rect = f'<rect class="{contender.kind}" y="2" width="14" height="14" rx="2"/>'
    return rect + text_of(name, 22) + text_of(contender.summary, LABEL + 16, "small")


def draw(results: Results, title: str, rows: Mapping[str, str]) -> str:
    """Return a picture as SVG: panels of bars in two columns, and below what the names mean."""
    # Each column is a list of lines, empty ones between its panels: all that is drawn has its place
    # by the number of its line. The columns get the same length, so that the names begin together.
    panels = [lines for item in rows.items() if (lines := panel(results, *item))]
    shown = {figure.contender for figure in results.figures if figure.row in rows}
    known = [key(name) for name in CONTENDERS if name in shown]
    half = (len(known) + 1) // 2
    columns = [list(itertools.chain(*panels[side::2])) for side in (0, 1)]
    high = max(map(len, columns))
    parts = [text_of(title, MARGIN, "title", ' dy="17"')]
    for side, lines in enumerate((known[:half], known[half:])):
        x = MARGIN + side * (PANEL + MARGIN)
        for n, line in enumerate([*columns[side], *[""] * (high - len(columns[side])), *lines]):
            parts += [f'<g transform="translate({x} {TOP + n * LINE})">{line}</g>'] if line else []
    height = TOP + (high + half) * LINE + MARGIN
    begin = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
    ]
    return "\n".join([*begin, *parts, "</svg>\n"])


def report(results: Results, folder: str, facts: Mapping[str, str]) -> None:
    """Writes table.md, results.json and the pictures, and shows the table."""
    if not results.figures:
        return
    text = table(results, facts)
    figures = [figure._asdict() for figure in results.figures]
    data = {"facts": dict(facts), "failures": [*results.failures], "figures": figures}
    files = {"table.md": text, "results.json": json.dumps(data, indent=1)}
    files |= {name: draw(results, *picture) for name, picture in PICTURES.items()}
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(content)
    say(f"\n{text}\nin {folder}: {', '.join(files)}")


def redraw(options: argparse.Namespace) -> None:
    path = Path(options.table)
    results = read_table(path.read_text(encoding="utf-8"))
    for name, picture in PICTURES.items():
        path.with_name(name).write_text(draw(results, *picture), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(lab.main(redraw, {"table": {"help": "a page with the table, as docs/benchmark.md"}}))
