"""What a benchmark run says: terminal summary and tables of pages; others by modules beside it.

    python benchmarks/report.py table RESULTS.json [--readme PAGE.md [--rows 1,2,5] [--check]]
    python benchmarks/report.py expect RESULTS.json... --page PAGE.md [--check]
    python benchmarks/report.py chart RESULTS.json CHART.png [--headlines]
    python benchmarks/report.py compare BEFORE.json AFTER.json
    python benchmarks/report.py grid RESULTS.json PAGE.md [--check]
    python benchmarks/report.py page DIR PAGE.md [--readme PAGE.md [--check]]

Only the standard library is imported (matplotlib by chart.py; torch by page.py, the page of the
training workloads), so that a table can be made and checked where neither torch nor fusedrnn is
installed. Everything shown is derived here from the run's timings: the JSON holds no figure twice.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

if not __package__:  # a script finds only its siblings
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
VERSION = 1
GRID = "grid"  # its cases are many: charts show each cell's as one row
# What equal code may differ by, whatever the scatter within a run says: two objects in one process
# (torch.nn beside itself: 0.98x to 1.02x).
LEVEL = 0.02
NOISY = 0.08  # on an idle machine the median is 0.01


def half_interval(quartiles: Sequence[float], rounds: int) -> float:
    """Half the ~95 % interval of a median, relative to it (McGill, Tukey & Larsen 1978)."""
    q1, median, q3 = quartiles
    return 1.57 * (q3 - q1) / math.sqrt(rounds) / median


@dataclass(frozen=True)
class Record:
    """One case, timed. Milliseconds are per call: the median and the minimum over the rounds."""

    group: str
    cell: str
    step: str  # "fwd+bwd", "training step" or "inference"
    shape: str
    precision: str
    data: str  # "random" (layers), "real" or "synthetic" (workloads)
    headline: bool  # stands in the table of a page
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
    # On a GPU only, where threads is 0.
    mode: str = ""  # "eager" or "graph"
    target: float = 0.0  # the least ratio that is aimed at; 0: none
    ours_error: float = 0.0  # largest against float64, relative to the largest value
    torch_error: float = 0.0
    allowed_error: float = 0.0  # largest part used of what the tests would allow
    ours_host_us: float = 0.0  # until a call returns, the device not waited for; eager only
    torch_host_us: float = 0.0

    @property
    def model(self) -> tuple[str, ...]:
        """What training and inference of one thing have in common."""
        shown = (self.precision, self.mode) if self.mode else ()
        return self.group, self.cell, self.shape, self.data, str(self.threads), *shown

    @property
    def key(self) -> tuple[str, ...]:
        return (self.step, self.precision, *self.model)

    @property
    def how(self) -> str:
        """On how many threads, or how a GPU was driven."""
        return self.mode or str(self.threads)

    @property
    def name(self) -> str:
        source = "" if self.data == "random" else f", {self.data} data"
        return f"{self.group}: {self.cell} {self.step} {self.precision} {self.shape}{source}"

    @property
    def gflops(self) -> float:
        return self.gflop / self.ours_ms * 1e3

    @property
    def noise(self) -> float:
        """Half the ~95 % interval of the median ratio, relative."""
        return half_interval((self.ratio_q1, self.ratio, self.ratio_q3), self.rounds)

    @property
    def flag(self) -> str:
        if abs(math.log(self.ratio)) <= math.log1p(max(LEVEL, self.noise)):
            return "level"
        return "slower" if self.ratio < 1 else ""


@dataclass(frozen=True)
class Recurrence:
    """Kernel times of one layer on a GPU, microseconds for a time step."""

    cell: str
    shape: str
    step: str  # "forward" (as in training) or "backward"
    precision: str
    ours_us: float  # fusedrnn's kernels alone
    torch_us: float  # all of torch.nn's, input products included: its kernels cannot be told apart
    target: float  # the most that is aimed at
    kernels: dict[str, float]  # all of ours, microseconds a call

    @property
    def line(self) -> str:
        met = "met" if self.ours_us <= self.target else "MISSED"
        return (
            f"{self.cell} {self.step} {self.precision} {self.shape}: {self.ours_us:.3f} us a step "
            f"(target {self.target:g}, {met}); torch.nn, products included, {self.torch_us:.3f}"
        )


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
    gpu: dict[str, str] = field(default_factory=dict)  # name, driver, clocks, ...; empty: a CPU run
    recurrences: list[Recurrence] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # cases, each with the reason

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @staticmethod
    def load(path: Path) -> Run:
        values = json.loads(path.read_text("utf-8"))
        if values.get("version") != VERSION:
            raise ValueError(f"{path} has version {values.get('version')}, expected {VERSION}")
        records = [Record(**record) for record in values.pop("records")]
        recurrences = [Recurrence(**found) for found in values.pop("recurrences", ())]
        return Run(**values, records=records, recurrences=recurrences)

    def share(self, record: Record) -> str:
        """Share of the FMA peak of as many threads, where there is a reading of it."""
        peak = self.peak_gflops.get(str(record.threads))
        return "" if peak is None else f"{record.gflops / peak:.0%}"

    @property
    def losses(self) -> list[Record]:
        return sorted((r for r in self.records if r.ratio < 1), key=lambda r: r.ratio)

    @property
    def headlines(self) -> list[Record]:
        """On the most threads: the headline cases, and every loss."""
        most = max(record.threads for record in self.records)
        return [r for r in self.records if r.threads == most and (r.headline or r.ratio < 1)]

    @property
    def where(self) -> str:
        if self.gpu:
            gpu = ", ".join(f"{k} {v}" if k != "name" else v for k, v in self.gpu.items())
            return f"{gpu}, {self.software}"
        threads = sorted({record.threads for record in self.records})
        plural = "s" if threads != [1] else ""
        return (
            f"{self.cpu}, {self.cores} cores, {self.isa}, "
            f"{' and '.join(map(str, threads))} thread{plural}, {self.precision}, "
            f"{self.software}"
        )

    @property
    def software(self) -> str:
        ours = f"fusedrnn {self.fusedrnn} ({self.commit})"
        return f"torch {self.torch}, {ours}, {self.date[:10]}"


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


def write(path: Path, results: dict[str, Any], page: str) -> None:
    """Results as JSON, their page beside them, and the page on the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page, "utf-8")
    print(page)


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
    threads = "mode" if run.gpu else "threads"
    head = ("case", threads, "ours ms", "torch ms", "ratio", "±", "GFLOP/s", "of peak", "")
    rows = [head] + [
        (
            record.name,
            record.how,
            milliseconds(record.ours_ms),
            milliseconds(record.torch_ms),
            times(record.ratio),
            f"{record.noise:.0%}",
            f"{record.gflops:.1f}",
            run.share(record),
            record.flag,
        )
        for record in run.records
    ]
    peaks = ", ".join(f"{v:.0f} GFLOP/s on {k}" for k, v in sorted(run.peak_gflops.items()))
    scatter = statistics.median(record.noise for record in run.records)
    warning = f"noisy: ratios are known to ±{scatter:.0%} only (median); is the machine busy?"
    noisy = [warning] if scatter > NOISY else []
    losses = [f"  {times(r.ratio)} ±{r.noise:.0%} {r.name} {r.mode}".rstrip() for r in run.losses]
    head_lines = [run.where, *([f"FMA peak: {peaks} thread(s)"] if peaks else []), ""]
    aims = on_gpu(run) if run.gpu else []
    return [*head_lines, *columns(rows), "", *verdict(run), *losses, *noisy, *aims]


def on_gpu(run: Run) -> list[str]:
    """What a GPU run says besides: targets, errors against float64, time a step, cases left out."""
    lines = [
        f"{'met' if r.ratio >= r.target else 'MISSED'}: {times(r.ratio)} of {r.target:g}x, "
        f"{r.name} {r.mode}"
        for r in run.records
        if r.target and r.group != GRID
    ]
    aimed = [r for r in run.records if r.target and r.group == GRID]
    short = [r for r in aimed if r.ratio < r.target and r.flag == "slower"]
    lines += [f"grid: {len(short)} of {len(aimed)} shapes below their target"] if aimed else []
    checked = [r for r in run.records if r.allowed_error]
    wrong = [r for r in checked if r.allowed_error > 1]
    lines.append(
        f"errors against float64: {len(wrong)} of {len(checked)} cases beyond twice torch.nn's"
    )
    lines += [
        f"  {r.ours_error:.2e}, torch.nn {r.torch_error:.2e}: {r.name} {r.mode}" for r in wrong
    ]
    eager = [r for r in run.records if r.ours_host_us]
    if eager:
        ours, theirs = (
            statistics.median(getattr(r, name) for r in eager)
            for name in ("ours_host_us", "torch_host_us")
        )
        lines.append(f"host time a call, median: {ours:.0f} us, torch.nn {theirs:.0f} us")
    lines += [found.line for found in run.recurrences]
    lines += [f"left out: {case}" for case in run.left_out]
    return ["", *lines]


def pick(lines: Sequence[str], rows: Sequence[int]) -> list[str]:
    """The lines of these numbers, counted from 1; all of them when no number is given."""
    missing = [row for row in rows if not 1 <= row <= len(lines)]
    if missing:
        got = ", ".join(map(str, missing))
        raise ValueError(f"expected rows from 1 to {len(lines)}, got {got}")
    return [lines[row - 1] for row in rows] or list(lines)


def readme_table(run: Run, rows: Sequence[int] = ()) -> str:
    """Training and inference of one model in one row: the headline cases, and every loss.

    Of several thread counts the largest is shown. `rows` picks rows of the table; the lines below
    it are about all cases.
    """
    models = dict.fromkeys(record.model for record in run.headlines)
    head = [
        "| case | training, ms | torch.nn | ratio | inference, ms | torch.nn | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines: list[str] = []
    for model in models:
        group, cell, shape, data, _, *rest = model
        source = " (synthetic data)" if data == "synthetic" else ""
        source += "".join(f", {word}" for word in rest)
        entries: list[str] = []
        for inference in (False, True):
            found = [
                r for r in run.records if r.model == model and (r.step == "inference") is inference
            ]
            for r in found[:1]:
                entries += [milliseconds(r.ours_ms), milliseconds(r.torch_ms), times(r.ratio)]
            entries += [] if found else ["", "", ""]
        lines.append(f"| {' | '.join([f'{group}, {cell} {shape}{source}', *entries])} |")
    if not run.peak_gflops and not run.gpu:
        raise ValueError("the run has no reading of the FMA peak")
    total = [f"{line[0].upper()}{line[1:]}." for line in verdict(run)]
    return "\n".join([*head, *pick(lines, rows), "", f"{' '.join(total)} {run.where}."])


def full_table(run: Run) -> str:
    """Every case as Markdown."""
    how = "mode" if run.gpu else "threads"
    lines = [
        f"| case | {how} | ours, ms (min) | torch.nn, ms (min) | ratio | GFLOP/s | of peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in run.records:
        ours = f"{milliseconds(r.ours_ms)} ({milliseconds(r.ours_min_ms)})"
        theirs = f"{milliseconds(r.torch_ms)} ({milliseconds(r.torch_min_ms)})"
        ratio = f"{times(r.ratio)} ±{r.noise:.0%} {r.flag}".rstrip()
        figures = [ours, theirs, ratio, f"{r.gflops:.1f}", run.share(r)]
        lines.append(f"| {' | '.join([r.name, r.how, *figures])} |")
    aims = [f"- {line.strip()}" if line else "" for line in on_gpu(run)] if run.gpu else []
    verdicts = [f"{line}." for line in verdict(run)]
    return "\n".join([f"{run.where}.", "", *lines, "", *verdicts, *aims])


def between(text: str, markers: tuple[str, str] = (BEGIN, END)) -> tuple[str, str, str]:
    """(before and with the begin marker, the table, from the end marker on)."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} once, and then {end} once")
    head, rest = text.split(begin)
    table, tail = rest.split(end)
    return head + begin, table.strip("\n"), end + tail


def with_table(text: str, table: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    head, _, tail = between(text, markers)
    return f"{head}\n{table}\n{tail}"


def has_table(text: str, table: str, markers: tuple[str, str] = (BEGIN, END)) -> bool:
    return between(text, markers)[1] == table


def place(
    path: Path, table: str, markers: tuple[str, str], check: bool, command: Sequence[str]
) -> int:
    """Writes the table between the markers of a file; the exit status.

    Args:
        check: write nothing; 1 and a line unless the file has this table.
        command: what follows report.py to write it.
    """
    text = path.read_text("utf-8")
    if not check:
        path.write_text(with_table(text, table, markers), "utf-8")
    elif not has_table(text, table, markers):
        made = f"python benchmarks/report.py {shlex.join(command)}"
        print(f"the table in {path} is not that of the results; run: {made}", file=sys.stderr)
        return 1
    return 0


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description="Tables, chart and comparison of benchmark runs (JSON)."
    )
    commands = top.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="Markdown table of every case, or a page's")
    table.add_argument("run", type=Path)
    table.add_argument("--readme", type=Path, help="write the table between this file's markers")
    table.add_argument("--rows", type=numbers, default=[], help="only these, as in 1,2,5")
    table.add_argument("--check", action="store_true", help="write nothing; fail unless it is so")
    expect = commands.add_parser("expect", help="the range of ratios for each kind of case")
    expect.add_argument("runs", type=Path, nargs="+", help="one of each machine")
    expect.add_argument("--bfloat16", type=Path, nargs="+", default=[], help="bfloat16.py's files")
    expect.add_argument("--page", type=Path, required=True, help="the file with the markers")
    expect.add_argument("--check", action="store_true", help="write nothing; fail unless it is so")
    drawn = commands.add_parser("chart", help="PNG of the ratio of every case")
    drawn.add_argument("run", type=Path)
    drawn.add_argument("png", type=Path)
    drawn.add_argument("--headlines", action="store_true", help="README's: the headline cases only")
    two = commands.add_parser("compare", help="two runs, case by case")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    grid = commands.add_parser("grid", help="Markdown page of the grid of shapes")
    grid.add_argument("run", type=Path)
    grid.add_argument("page", type=Path, help="the Markdown file to write")
    grid.add_argument("--check", action="store_true", help="write nothing; fail unless it is so")
    page = commands.add_parser("page", help="the training workloads' results page, plots and table")
    page.add_argument("results", type=Path, help="directory of the workloads' JSON files")
    page.add_argument("page", type=Path, help="the Markdown file to write")
    page.add_argument("--readme", type=Path, help="write the table between this file's markers")
    page.add_argument("--check", action="store_true", help="write nothing; fail unless all is so")
    return top


def run_table(arguments: argparse.Namespace) -> int:
    run, page, rows = Run.load(arguments.run), arguments.readme, arguments.rows
    if page is None:
        if arguments.check or rows:
            raise ValueError(f"{'--check' if arguments.check else '--rows'} needs --readme FILE")
        print(full_table(run))
        return 0
    command = ["table", str(arguments.run), "--readme", str(page)]
    command += ["--rows", ",".join(map(str, rows))] if rows else []
    return place(page, readme_table(run, rows), (BEGIN, END), arguments.check, command)


def run_expect(arguments: argparse.Namespace) -> int:
    from benchmarks import expect

    return expect.run(arguments.runs, arguments.bfloat16, arguments.page, arguments.check)


def run_chart(arguments: argparse.Namespace) -> int:
    from benchmarks.chart import chart

    chart(Run.load(arguments.run), arguments.png, arguments.headlines)
    return 0


def run_page(arguments: argparse.Namespace) -> int:
    from benchmarks import page

    return page.run(arguments.results, arguments.page, arguments.readme, arguments.check)


def run_compare(arguments: argparse.Namespace) -> int:
    from benchmarks.compare import compare

    print("\n".join(compare(Run.load(arguments.before), Run.load(arguments.after))))
    return 0


def run_grid(arguments: argparse.Namespace) -> int:
    from benchmarks.grid import page

    text = page(Run.load(arguments.run))
    if not arguments.check:
        arguments.page.write_text(text, "utf-8")
    elif arguments.page.read_text("utf-8") != text:
        print(f"{arguments.page} is not the page of {arguments.run}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    commands: dict[str, Callable[[Any], int]] = {
        "table": run_table,
        "expect": run_expect,
        "chart": run_chart,
        "compare": run_compare,
        "grid": run_grid,
        "page": run_page,
    }
    try:
        return commands[cast(str, arguments.command)](arguments)
    except (OSError, ValueError, TypeError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
