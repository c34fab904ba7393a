"""What tools/bench.py makes of its figures: the table, the targets, two pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from xml.sax.saxutils import escape


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
    stolen: float  #: Part of the machine's time that others got meanwhile.


class Results:
    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.failures: list[str] = []

    def rounds(self, row: str, contender: str) -> dict[int, Figure]:
        return {f.round: f for f in self.figures if f.row == row and f.contender == contender}

    def values(self, row: str, contender: str) -> list[float]:
        return [figure.value for figure in self.rounds(row, contender).values()]

    def median(self, row: str, contender: str) -> float | None:
        values = self.values(row, contender)
        return statistics.median(values) if values else None

    def ratio(self, row: str, contender: str, other: str, other_row: str = "") -> float | None:
        """The median of the ratios in each round: the machine's speed changes between rounds."""
        own, others = self.rounds(row, contender), self.rounds(other_row or row, other)
        ratios = [
            own[n].value / others[n].value for n in own.keys() & others.keys() if others[n].value
        ]
        return statistics.median(ratios) if ratios else None


# --- Targets -------------------------------------------------------------------


class Verdict(NamedTuple):
    text: str
    wanted: str
    measured: str
    is_met: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure of ours, as a ratio to that of the best of some others in the same rounds."""

    row: str
    limit: float
    others: tuple[str, ...]  #: Without any, the limit is of the figure itself.
    contender: str = OURS
    other_row: str = ""
    is_aim: bool = False  #: Worth aiming at, and not promised.

    def judge(self, results: Results) -> Verdict | None:
        """None if it wasn't measured."""
        more = ROWS[self.row].more_is_better
        values = {
            n: v
            for n in self.others
            if (v := results.median(self.other_row or self.row, n)) is not None
        }
        if self.others and not values:
            return None
        best = (max if more else min)(values, key=lambda name: values[name], default="")
        measured = self._measure(results, best)
        if measured is None:
            return None
        text = f"{ROWS[self.row].title}: {self.contender}"
        if best:
            of = f" ({ROWS[self.other_row].title})" if self.other_row else ""
            text += f" / {best}{of}"
        wanted = f"{'≥' if more else '≤'} {self.limit:g}{' (aim)' if self.is_aim else ''}"
        return Verdict(
            text,
            wanted,
            f"{measured:.3g}",
            measured >= self.limit if more else measured <= self.limit,
        )

    def _measure(self, results: Results, best: str) -> float | None:
        if not best:
            return results.median(self.row, self.contender)
        return results.ratio(self.row, self.contender, best, self.other_row)


class ImportTarget(Target):
    """Not a ratio, but a difference: amqpstorm's own import is part of ours."""

    def judge(self, results: Results) -> Verdict | None:
        own, theirs = (
            results.median(self.row, self.contender),
            results.median(self.row, "amqpstorm"),
        )
        if own is None or theirs is None:
            return None
        more = own - theirs
        return Verdict(
            "import: ms over amqpstorm's own",
            f"≤ {self.limit:g}",
            f"{more:.3g}",
            more <= self.limit,
        )


PEERS = ("kuyruk10", "dramatiq", "dramatiq-128", "celery", "celery-prefork")
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
    ImportTarget("import", 25, ("amqpstorm",)),
)


# --- The table -----------------------------------------------------------------


def number(value: float) -> str:
    """With three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def rows_of(results: Results, contenders: Iterable[str]) -> Iterator[str]:
    yield "| | median | min to max | of ours | stolen |"
    yield "|---|--:|--:|--:|--:|"
    for row, (title, more) in ROWS.items():
        present = [name for name in contenders if results.rounds(row, name)]
        if present:
            yield f"| **{title}** ({'more' if more else 'less'} is better) | | | | |"
        for name in present:
            values = results.values(row, name)
            stolen = statistics.median(
                figure.stolen for figure in results.rounds(row, name).values()
            )
            ratio = results.ratio(row, name, OURS)
            extremes = f"{number(min(values))} to {number(max(values))}"
            part = "" if ratio is None else f"{ratio:.2f}"
            yield f"| {name} | **{number(statistics.median(values))}** | {extremes} | {part} | {stolen:.0%} |"


def table(results: Results, facts: Mapping[str, str], contenders: Mapping[str, Any]) -> str:
    """As Markdown."""
    rounds = 1 + max((figure.round for figure in results.figures), default=0)
    lines = [f"# Benchmark: medians of {rounds} interleaved rounds", ""]
    lines += [
        ", ".join(f"{name} {version}" for name, version in facts.items())
        + f"; {os.cpu_count()} CPUs.",
        "",
    ]
    lines += [
        '"Of ours": the median of the ratios to `kuyruk` in each round. "Stolen": by the hypervisor.',
        "",
    ]
    lines += [*rows_of(results, contenders), ""]
    verdicts = [verdict for target in TARGETS if (verdict := target.judge(results)) is not None]
    if verdicts:
        lines += ["## Targets", "", "| | wanted | measured | |", "|---|--:|--:|---|"]
        lines += [
            f"| {v.text} | {v.wanted} | {v.measured} | {'met' if v.is_met else '**missed**'} |"
            for v in verdicts
        ]
        lines += [""]
    lines += ["## Configurations", "", "| | |", "|---|---|"]
    for name, contender in contenders.items():
        threads = f"{contender.threads} {'thread' if contender.threads == 1 else 'threads'}"
        lines += [f"| {name} | {contender.about} ({threads}) |"]
    if results.failures:
        lines += ["", "## Failed", "", *(f"- {failure}" for failure in results.failures)]
    return "\n".join([*lines, ""])


# --- The pictures --------------------------------------------------------------

#: Readable on light and on dark pages; ours stands out in both.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; fill: #24292f; }
.value { font-size: 12px; }
.ours { fill: #1f7a4d; } .peer { fill: #8296aa; } .raw { fill: #c2ccd6; }
@media (prefers-color-scheme: dark) {
  text { fill: #9da7b3; } .title { fill: #e6edf3; }
  .ours { fill: #3fb97a; } .peer { fill: #6b7f94; } .raw { fill: #46525f; }
}"""
#: Pixels: width of a label and of the longest bar, heights.
LABEL, BAR, LINE, GAP = 130, 250, 19, 30
PANEL = LABEL + BAR + 60

#: The panels of the two pictures, and their titles.
THROUGHPUT = {
    "drain": "No-op tasks per second",
    "nap_10": "Tasks of 10 ms in 64 threads, per second",
    "send": "Sends without confirm per second",
    "send_confirmed": "Confirmed sends per second, one thread",
    "send_16": "Confirmed sends per second, 16 threads",
    "rpc_16": "Calls with results per second, 16 callers",
}
COST = {
    "drain_cpu": "CPU seconds per 1000 no-op tasks",
    "memory_all": "Memory of a worker, MiB",
    "rpc": "A call with its result, ms",
    "start": "From a worker's start to its first task, s",
}
LEGEND = {
    "ours": "this project",
    "peer": "other task queues",
    "raw": "bare loops on client libraries",
}


def bars(
    results: Results, row: str, contenders: Iterable[str]
) -> Iterator[Callable[[int, int], str]]:
    """The lines of one panel, each a function of where it is; the best first."""
    values = {
        name: value for name in contenders if (value := results.median(row, name)) is not None
    }
    more, longest = ROWS[row].more_is_better, max(values.values(), default=1)
    for name, value in sorted(values.items(), key=lambda item: item[1], reverse=more):
        kind = (
            "ours"
            if name.startswith("kuyruk") and name != "kuyruk10"
            else "peer"
            if name in PEERS
            else "raw"
        )

        def draw(x: int, y: int, name: str = name, value: float = value, kind: str = kind) -> str:
            width = max(1, round(BAR * value / longest))
            start = x + LABEL
            return (
                f'<text x="{start - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="{kind}" x="{start}" y="{y + 2}" width="{width}" height="{LINE - 4}" rx="2"/>'
                f'<text class="value" x="{start + width + 5}" y="{y + 13}">{number(value)}</text>'
            )

        yield draw


def legend(more_is_better: bool) -> list[str]:
    parts = [
        f'<text x="{2 * PANEL - 130}" y="24">{"longer" if more_is_better else "shorter"} is better</text>'
    ]
    for place, (kind, text) in enumerate(LEGEND.items()):
        x = 10 + 170 * place
        parts.append(f'<rect class="{kind}" x="{x}" y="12" width="14" height="14" rx="2"/>')
        parts.append(f'<text x="{x + 20}" y="24">{escape(text)}</text>')
    return parts


def draw(results: Results, titles: Mapping[str, str], contenders: Iterable[str]) -> str:
    """Panels of bars, two beside each other."""
    panels = [(row, lines) for row in titles if (lines := list(bars(results, row, contenders)))]
    parts, y = legend(ROWS[next(iter(titles))].more_is_better), 2 * GAP
    for i in range(0, len(panels), 2):
        pair = panels[i : i + 2]
        for column, (row, lines) in enumerate(pair):
            x = column * PANEL
            parts.append(f'<text class="title" x="{x + 10}" y="{y}">{escape(titles[row])}</text>')
            parts += [line(x, y + 8 + n * LINE) for n, line in enumerate(lines)]
        y += max(len(lines) for _, lines in pair) * LINE + 8 + GAP
    y -= GAP - 10
    size = f'width="{2 * PANEL}" height="{y}" viewBox="0 0 {2 * PANEL} {y}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}\n</style>'
    return "\n".join([begin, *parts, "</svg>\n"])


def report(
    results: Results,
    folder: str,
    facts: Mapping[str, str],
    contenders: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Writes table.md, results.json and the pictures, and shows the table."""
    if not results.figures:
        return
    text = table(results, facts, contenders)
    data = {
        "facts": dict(facts),
        "failures": results.failures,
        "figures": [f._asdict() for f in results.figures],
    }
    files = {"table.md": text, "results.json": json.dumps(data, indent=1)}
    files |= {
        "throughput.svg": draw(results, THROUGHPUT, contenders),
        "cost.svg": draw(results, COST, contenders),
    }
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(content)
    say(f"\n{text}\nin {folder}: {', '.join(files)}")
