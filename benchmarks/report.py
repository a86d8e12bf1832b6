"""What a benchmark run says: terminal summary, README table, chart, two runs compared.

    python benchmarks/report.py table RESULTS.json [--readme README.md [--check]]
    python benchmarks/report.py chart RESULTS.json CHART.png
    python benchmarks/report.py compare BEFORE.json AFTER.json

Only the standard library is imported (matplotlib by ``chart`` alone), so that a table can be made
and checked where neither torch nor fusedrnn is installed. Everything shown is derived here from
the run's timings: the JSON holds no figure twice.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
VERSION = 1
GRID = "grid"  # its cases are many: charts show each cell's as one row
# What equal code may differ by, whatever the scatter within a run says: two objects in one process
# (torch.nn beside itself: 0.98x to 1.02x), and two runs.
LEVEL, FLOOR = 0.02, 0.05
NOISY = 0.08  # on an idle machine the median is 0.01


@dataclass(frozen=True)
class Record:
    """One case, timed. Milliseconds are per call: the median and the minimum over the rounds."""

    group: str
    cell: str
    step: str  # "fwd+bwd", "training step" or "inference"
    shape: str
    precision: str
    data: str  # "random" (layers), "real" or "synthetic" (workloads)
    headline: bool  # stands in the README
    threads: int
    ours_ms: float
    ours_min_ms: float
    torch_ms: float
    torch_min_ms: float
    ratio: float  # median over the rounds of torch's time / ours
    ratio_q1: float
    ratio_q3: float
    rounds: int
    iterations: int
    gflop: float
    error: float  # largest disagreement with torch.nn, relative to the largest value

    @property
    def model(self) -> tuple[str, str, str, str, int]:
        """What training and inference of one thing have in common."""
        return self.group, self.cell, self.shape, self.data, self.threads

    @property
    def key(self) -> tuple[str, ...]:
        return (self.step, self.precision, *map(str, self.model))

    @property
    def name(self) -> str:
        source = "" if self.data == "random" else f", {self.data} data"
        return f"{self.group}: {self.cell} {self.step} {self.precision} {self.shape}{source}"

    @property
    def gflops(self) -> float:
        return self.gflop / self.ours_ms * 1e3

    @property
    def noise(self) -> float:
        """Half the ~95 % interval of the median ratio, relative (McGill, Tukey & Larsen 1978)."""
        return 1.57 * (self.ratio_q3 - self.ratio_q1) / math.sqrt(self.rounds) / self.ratio

    @property
    def flag(self) -> str:
        if abs(math.log(self.ratio)) <= math.log1p(max(LEVEL, self.noise)):
            return "level"
        return "slower" if self.ratio < 1 else ""


@dataclass
class Run:
    """All cases of one process, and where they were measured."""

    date: str
    commit: str
    cpu: str
    cores: int
    isa: str
    system: str
    python: str
    torch: str
    fusedrnn: str
    precision: str
    selection: str  # "quick", "default" or "full"
    peak_gflops: dict[str, float] = field(default_factory=dict)  # threads -> FMA peak
    records: list[Record] = field(default_factory=list)
    version: int = VERSION

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @staticmethod
    def load(path: Path) -> Run:
        values = json.loads(path.read_text("utf-8"))
        if values.get("version") != VERSION:
            raise ValueError(f"{path} has version {values.get('version')}, expected {VERSION}")
        records = [Record(**record) for record in values.pop("records")]
        return Run(**values, records=records)

    def share(self, record: Record) -> float:
        """Share of the FMA peak of as many threads."""
        return record.gflops / self.peak_gflops[str(record.threads)]

    @property
    def losses(self) -> list[Record]:
        return sorted((r for r in self.records if r.ratio < 1), key=lambda r: r.ratio)

    @property
    def where(self) -> str:
        threads = sorted({record.threads for record in self.records})
        plural = "s" if threads != [1] else ""
        return (
            f"{self.cpu}, {self.cores} cores, {self.isa}, "
            f"{' and '.join(map(str, threads))} thread{plural}, {self.precision}, "
            f"torch {self.torch}, fusedrnn {self.fusedrnn} ({self.commit}), {self.date[:10]}"
        )


def geometric_mean(values: Iterable[float]) -> float:
    """nan when there are none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def milliseconds(value: float) -> str:
    """Three digits, never an exponent: 0.0123, 1.23, 12.3, 123."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, digits)}f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned text: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def verdict(run: Run) -> list[str]:
    """The geometric means, and how many cases are lost."""
    training = [r.ratio for r in run.records if r.step != "inference"]
    inference = [r.ratio for r in run.records if r.step == "inference"]
    parts = [
        f"{name} {times(geometric_mean(ratios))} ({len(ratios)})"
        for name, ratios in (("training", training), ("inference", inference))
        if ratios
    ]
    everything = geometric_mean(r.ratio for r in run.records)
    level = sum(record.flag == "level" for record in run.losses)
    losses = f"slower than torch.nn: {len(run.losses)} of {len(run.records)}"
    losses += f", {level} of them within noise" if level else ""
    return [f"geometric mean {times(everything)}: {', '.join(parts)}", losses]


def summary(run: Run) -> list[str]:
    """The lines that end a benchmark run in the terminal."""
    head = ("case", "threads", "ours ms", "torch ms", "ratio", "±", "GFLOP/s", "of peak", "")
    rows = [head] + [
        (
            record.name,
            str(record.threads),
            milliseconds(record.ours_ms),
            milliseconds(record.torch_ms),
            times(record.ratio),
            f"{record.noise:.0%}",
            f"{record.gflops:.1f}",
            f"{run.share(record):.0%}",
            record.flag,
        )
        for record in run.records
    ]
    peaks = ", ".join(f"{v:.0f} GFLOP/s on {k}" for k, v in sorted(run.peak_gflops.items()))
    scatter = statistics.median(record.noise for record in run.records)
    warning = f"noisy: ratios are known to ±{scatter:.0%} only (median); is the machine busy?"
    noisy = [warning] if scatter > NOISY else []
    losses = [f"  {times(r.ratio)} ±{r.noise:.0%} {r.name}" for r in run.losses]
    head_lines = [run.where, f"FMA peak: {peaks} thread(s)", ""]
    return [*head_lines, *columns(rows), "", *verdict(run), *losses, *noisy]


def readme_table(run: Run) -> str:
    """Training and inference of one model in one row: the headline cases, and every loss.

    Of several thread counts the largest is shown.
    """
    threads = max(record.threads for record in run.records)
    shown = [r for r in run.records if r.threads == threads and (r.headline or r.ratio < 1)]
    models = dict.fromkeys(record.model for record in shown)
    lines = [
        "| case | training, ms | torch.nn | ratio | inference, ms | torch.nn | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in models:
        group, cell, shape, data, _ = model
        source = " (synthetic data)" if data == "synthetic" else ""
        entries: list[str] = []
        for inference in (False, True):
            found = [
                r for r in run.records if r.model == model and (r.step == "inference") is inference
            ]
            for r in found[:1]:
                entries += [milliseconds(r.ours_ms), milliseconds(r.torch_ms), times(r.ratio)]
            entries += [] if found else ["", "", ""]
        lines.append(f"| {' | '.join([f'{group}, {cell} {shape}{source}', *entries])} |")
    if not run.peak_gflops:
        raise ValueError("the run has no reading of the FMA peak")
    total = [f"{line[0].upper()}{line[1:]}." for line in verdict(run)]
    return "\n".join([*lines, "", f"{' '.join(total)} {run.where}."])


def full_table(run: Run) -> str:
    """Every case as Markdown."""
    lines = [
        "| case | threads | ours, ms (min) | torch.nn, ms (min) | ratio | GFLOP/s | of peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in run.records:
        ours = f"{milliseconds(r.ours_ms)} ({milliseconds(r.ours_min_ms)})"
        theirs = f"{milliseconds(r.torch_ms)} ({milliseconds(r.torch_min_ms)})"
        ratio = f"{times(r.ratio)} ±{r.noise:.0%} {r.flag}".rstrip()
        figures = [ours, theirs, ratio, f"{r.gflops:.1f}", f"{run.share(r):.0%}"]
        lines.append(f"| {' | '.join([r.name, str(r.threads), *figures])} |")
    return "\n".join([f"{run.where}.", "", *lines, "", *(f"{line}." for line in verdict(run))])


def between(text: str) -> tuple[str, str, str]:
    """(before and with the begin marker, the table, from the end marker on)."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} once, and then {END} once")
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    return head + BEGIN, table.strip("\n"), END + tail


def with_table(text: str, table: str) -> str:
    head, _, tail = between(text)
    return f"{head}\n{table}\n{tail}"


def has_table(text: str, table: str) -> bool:
    return between(text)[1] == table


@dataclass(frozen=True)
class Change:
    """One case in two runs; `speedup` above 1 says that the second is the faster."""

    before: Record
    after: Record

    @property
    def speedup(self) -> float:
        """Of the ratios to torch.nn: torch, the same in both runs, cancels the machine's state."""
        return self.after.ratio / self.before.ratio

    @property
    def noise(self) -> float:
        return max(FLOOR, math.hypot(self.before.noise, self.after.noise))

    @property
    def flag(self) -> str:
        if abs(math.log(self.speedup)) <= math.log1p(self.noise):
            return ""
        return "faster" if self.speedup > 1 else "SLOWER"


def changes(before: Run, after: Run) -> list[Change]:
    known = {record.key: record for record in before.records}
    return [Change(known[r.key], r) for r in after.records if r.key in known]


def compare(before: Run, after: Run) -> list[str]:
    """Per case the times and ratios of both runs, the change, and whether it exceeds the noise."""
    found = changes(before, after)
    rows = [("case", "threads", "ms", "ms", "ratio", "ratio", "change", "noise", "")] + [
        (
            change.after.name,
            str(change.after.threads),
            milliseconds(change.before.ours_ms),
            milliseconds(change.after.ours_ms),
            times(change.before.ratio),
            times(change.after.ratio),
            f"{change.speedup - 1:+.1%}",
            f"{change.noise:.1%}",
            change.flag,
        )
        for change in found
    ]
    differs = [
        f"differs: {name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in ("cpu", "isa", "torch", "precision")
        if getattr(before, name) != getattr(after, name)
    ]
    flags = [change.flag for change in found]
    unmatched = len(before.records) + len(after.records) - 2 * len(found)
    overall = geometric_mean(change.speedup for change in found)
    return [
        f"before: {before.where}",
        f"after:  {after.where}",
        *differs,
        "",
        *columns(rows),
        "",
        f"geometric mean of the change {overall - 1:+.1%} over {len(found)} cases; beyond noise: "
        f"{flags.count('faster')} faster, {flags.count('SLOWER')} slower; in one run only: "
        f"{unmatched}",
    ]


def chart(run: Run, path: Path) -> None:
    """Draws each model's ratios, training and inference, on one row; right of 1 ours is faster."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    rows: dict[str, list[tuple[str, list[Record]]]] = {}  # group -> (label, records)
    threads = sorted({record.threads for record in run.records})
    for record in run.records:
        shape = "all shapes" if record.group == GRID else record.shape
        source = "  synthetic data" if record.data == "synthetic" else ""
        counted = f"  {record.threads} thr" if len(threads) > 1 else ""
        label = f"{record.cell}  {shape}{source}{counted}"
        group = rows.setdefault(record.group, [])
        if label not in dict(group):
            group.append((label, []))
        dict(group)[label].append(record)

    ink, soft, faint = "#1f2933", "#52606d", "#e4e7eb"
    looks = {True: ("inference", "D", 4.2, "#e8833a"), False: ("training", "o", 5.4, "#1f6feb")}
    height = sum(len(group) + 1.5 for group in rows.values())
    figure = Figure(figsize=(8.6, 0.205 * height + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, marker, size, color in reversed(looks.values()):
        axes.plot([], [], marker, color=color, markersize=size, label=name)
    y, ticks, labels = 0.0, [], []
    for name, group in rows.items():
        axes.annotate(
            name, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), va="center",
            textcoords="offset points", ha="right", color=ink, weight="bold", fontsize=8.5,
        )  # fmt: skip
        for label, records in group:
            y += 1
            ticks.append(y)
            labels.append(label)
            axes.axhline(y, color=faint, linewidth=0.7, zorder=0)
            for record in records:
                _, marker, size, color = looks[record.step == "inference"]
                alpha = 0.5 if record.group == GRID else 1.0
                if record.group != GRID:
                    quartiles = [record.ratio_q1, record.ratio_q3]
                    axes.plot(quartiles, [y, y], color=color, linewidth=2.4, alpha=0.35, zorder=2)
                axes.plot(
                    record.ratio, y, marker, color=color, markersize=size, alpha=alpha, zorder=3,
                    markeredgecolor="white", markeredgewidth=0.5,
                )  # fmt: skip
        y += 1.5
    ratios = [record.ratio for record in run.records]
    low, high = min(0.8, 0.9 * min(ratios)), max(2.2, 1.15 * max(ratios))
    mean = geometric_mean(ratios)
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(y - 0.9, -0.9))
    steps = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0, labelsize=7.5, colors=ink)
    axes.tick_params(axis="x", labelsize=8, colors=ink, top=True, labeltop=True, length=2)
    axes.spines[:].set_visible(False)
    axes.axvspan(low, 1, color="#fdecea", zorder=-1)
    axes.axvline(1, color=ink, linewidth=1.1, zorder=1)
    axes.axvline(mean, color=soft, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for x, note, side in ((1, "slower", "right"), (mean, f"geometric mean {mean:.2f}×", "left")):
        axes.annotate(
            note, (x, 0), xytext=(-4 if side == "right" else 4, 0), va="center", ha=side,
            textcoords="offset points", color=soft, fontsize=7.5,
        )  # fmt: skip
    axes.set_xlabel(
        "torch.nn's time / ours; bars span the middle half of the rounds", fontsize=8, color=soft
    )
    axes.set_title(
        "Speed beside torch.nn", loc="left", weight="bold", color=ink, fontsize=12, pad=46
    )
    device, _, software = run.where.partition(", torch")
    axes.annotate(
        f"{device}\ntorch{software}", (0, 1),
        xycoords="axes fraction", xytext=(0, 21), textcoords="offset points", fontsize=7.5,
        color=soft,
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=5.6, frameon=False, fontsize=8,
        handletextpad=0.1, labelcolor=ink, borderpad=0, ncols=2, columnspacing=1,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description="Tables, chart and comparison of benchmark runs (JSON)."
    )
    commands = top.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="Markdown table of every case, or the README's")
    table.add_argument("run", type=Path)
    table.add_argument("--readme", type=Path, help="write the table between this file's markers")
    table.add_argument(
        "--check", action="store_true", help="write nothing; fail unless the README's table is this"
    )
    drawn = commands.add_parser("chart", help="PNG of the ratio of every case")
    drawn.add_argument("run", type=Path)
    drawn.add_argument("png", type=Path)
    two = commands.add_parser("compare", help="two runs, case by case")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    return top


def run_table(arguments: argparse.Namespace) -> int:
    run = Run.load(arguments.run)
    if arguments.readme is None:
        if arguments.check:
            raise ValueError("--check needs --readme FILE")
        print(full_table(run))
        return 0
    text, table = arguments.readme.read_text("utf-8"), readme_table(run)
    if arguments.check:
        if has_table(text, table):
            return 0
        print(
            f"the table in {arguments.readme} is not that of {arguments.run}; "
            f"run: python benchmarks/report.py table {arguments.run} --readme {arguments.readme}",
            file=sys.stderr,
        )
        return 1
    arguments.readme.write_text(with_table(text, table), "utf-8")
    return 0


def run_chart(arguments: argparse.Namespace) -> int:
    chart(Run.load(arguments.run), arguments.png)
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    print("\n".join(compare(Run.load(arguments.before), Run.load(arguments.after))))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    commands: dict[str, Callable[[Any], int]] = {
        "table": run_table,
        "chart": run_chart,
        "compare": run_compare,
    }
    try:
        return commands[cast(str, arguments.command)](arguments)
    except (OSError, ValueError, TypeError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
