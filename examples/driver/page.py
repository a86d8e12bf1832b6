"""The page of the course's results, and the table of them in the README, from the results.

    python -m examples page examples/results --readme examples/README.md [--check]

Every workload says what its own record means (its `summarise` and `draw`); here stands only how
that is put on a page. What is shown is made anew from the results each time, so that pages and
plots cannot part from them; ``--check`` says whether they have.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.data.fetch import replacing
from examples.driver import options, plots, results
from examples.driver.errors import WorkloadError
from examples.driver.plots import Chart
from examples.driver.tables import Summary, Table
from examples.driver.workload import WORKLOADS, Workload, workload

PAGE = "results.md"  # beside the results
MARKERS = "<!-- workloads:begin -->", "<!-- workloads:end -->"
# Options that choose among what the course publishes; any other makes a result another one.
CHOICES = ("impl", "cell", "seed", "device", "threads", "layout", "sampling", "corpus", "forcing")
HEAD = ("system", "fusedrnn", "torch.nn", "speed")

INTRODUCTION = """# What the examples learn

Where both columns have a figure, the system was trained twice from the same initial weights on the
same batches, once with fusedrnn's layers and once with torch.nn's. Both compute the same function
and sum in another order, so figures differ by rounding, and by what training makes of it. "speed"
is torch.nn's time divided by fusedrnn's for the same training, both in turn, epoch by epoch, in one
process: above 1, fusedrnn is faster. ± is the standard deviation over seeds.
"""


@dataclass(frozen=True)
class Result:
    """One file of results."""

    stem: Path  # of the file and of the plots beside it
    record: dict[str, Any]
    workload: Workload
    summary: Summary
    charts: list[Chart]

    @property
    def marks(self) -> str:
        """How it is not what the course publishes, after the title and each headline."""
        words = {"quick": "reduced size", "synthetic": "synthetic data"}
        given = options.given(self.workload, self.record["options"])
        said = (
            words.get(k, f"{options.flag(k)[2:]} {v}") for k, v in given.items() if k not in CHOICES
        )
        return "".join(f", {mark}" for mark in said)

    def plots(self) -> list[tuple[Chart, Path]]:
        return [(chart, chart.path(self.stem)) for chart in self.charts]


def load(directory: Path) -> list[Result]:
    """The results in `directory`, in the page's order; other JSON files are passed over."""
    found = list(filter(None, map(_read, sorted(directory.glob("*.jsonl")))))
    if not found:
        raise WorkloadError(
            f"expected results (JSONL) in {directory}, got none: python -m examples all makes them"
        )
    return sorted(found, key=lambda r: (WORKLOADS.index(r.record["workload"]), r.stem))


def _read(path: Path) -> Result | None:
    try:
        record = results.read(path)
    except ValueError as error:
        raise WorkloadError(str(error)) from error
    name = record.get("workload")
    if name is None:
        return None
    if name not in WORKLOADS:
        raise WorkloadError(f"{path}: expected one of {', '.join(WORKLOADS)}, got {name!r}")
    made = workload(name)
    try:
        return Result(
            path.with_suffix(""),
            record,
            made,
            made.summarise(record),
            plots.readable(made.draw(record)),
        )
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise WorkloadError(
            f"{path} is not what {name} writes ({type(error).__name__}: {error}): run it again"
        ) from error


def command(result: Result) -> str:
    """The command that makes the record: the options that are not the workload's defaults."""
    processes = result.record.get("processes", 1)
    start = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    words = [*start, "-m", "examples", result.record["workload"]]
    for name, value in options.given(result.workload, result.record["options"]).items():
        words.append(options.flag(name))
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def where(records: Iterable[dict[str, Any]]) -> str:
    """What was measured, where and when: a sentence, of several machines or versions in parts."""
    groups: dict[str, tuple[set[str], set[str]]] = {}
    for record in records:
        device = record["device"] if record["device"] != "cpu" else record.get("cpu") or "cpu"
        parts = [device, f"{record['threads']} thread{'s' * (record['threads'] != 1)}"]
        if record.get("processes", 1) > 1:
            parts.append(f"{record['processes']} processes")
        parts.append(f"torch {record['torch']}")
        if record.get("fusedrnn"):
            parts.append(f"fusedrnn {record['fusedrnn']}")
        commits, dates = groups.setdefault(", ".join(parts), (set(), set()))
        commits.update([record["commit"]] if record.get("commit") else [])
        dates.add(record["date"][:10])
    described = []
    for words, (commits, dates) in groups.items():
        made = f" ({', '.join(sorted(commits))})" if commits else ""
        described.append(f"{words}{made}, {' and '.join(sorted(dates))}")
    return f"{'; '.join(described)}."


def section(result: Result, page: Path) -> str:
    """One system as Markdown; `page` is where it will stand, for the links to plots."""
    summary = result.summary
    blocks = [f"## {summary.title}{result.marks}", summary.text]
    blocks += [f"```\n{command(result)}\n```", where([result.record])]
    for table in summary.tables:
        blocks += [f"**{table.title}**", table.markdown()]
    if summary.remarks:
        blocks.append("\n".join(f"- {remark}" for remark in summary.remarks))
    for chart, png in result.plots():
        link = Path(os.path.relpath(png, page.parent)).as_posix()
        blocks += [f"![{chart.caption}]({link})", f"*{chart.caption}*"]
    return "\n\n".join(blocks)


def headline_table(found: Sequence[Result]) -> str:
    """The table of all systems: each one's rows, and where they were measured."""
    rows: list[tuple[str, ...]] = [
        (row[0] + result.marks, *row[1:]) for result in found for row in result.summary.headline
    ]
    place = where(result.record for result in found)
    return f"{Table('', HEAD, rows).markdown()}\n\n{place}"


def render(found: Sequence[Result], page: Path) -> str:
    """The whole page."""
    sections = [section(result, page) for result in found]
    return "\n\n".join([INTRODUCTION.strip(), headline_table(found), *sections]) + "\n"


def with_table(path: Path, table: str) -> str:
    """The text of `path` with the table between its markers."""
    text = path.read_text("utf-8")
    for marker in MARKERS:
        times = text.count(marker)
        if times != 1:
            raise WorkloadError(f"{path}: expected {marker} once, got it {times} times")
    head, rest = text.split(MARKERS[0])
    tail = rest.split(MARKERS[1])[-1]
    return f"{head}{MARKERS[0]}\n{table}\n{MARKERS[1]}{tail}"


def write(directory: Path, readme: Path | None, check: bool) -> None:
    """Draws the plots beside the results, and writes the page and the table between the markers of
    `readme`; to `check`, writes nothing and fails where a file does not follow from the results."""
    found, page = load(directory), directory / PAGE
    texts = {page: render(found, page)}
    if readme:
        texts[readme] = with_table(readme, headline_table(found))
    plots = [plot for result in found for plot in result.plots()]
    if check:
        faults = [f"{png} is missing" for _, png in plots if not png.is_file()]
        faults += [
            f"{path} does not follow from the results"
            for path, text in texts.items()
            if not path.is_file() or path.read_text("utf-8") != text
        ]
        if faults:
            option = f" --readme {readme}" if readme else ""
            made = f"python -m examples page {directory}{option}"
            raise WorkloadError("; ".join([*faults, f"run: {made}"]))
        return
    for result in found:
        prefix = "synthetic | " * bool(result.record["options"].get("synthetic"))
        for chart, png in result.plots():
            chart.write(png, prefix)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m examples page``."""
    about = f"Write DIR/{PAGE} and the plots it shows."
    parser = argparse.ArgumentParser(prog="python -m examples page", description=about)
    add = parser.add_argument
    add("results", type=Path, help="directory of the results (JSONL)")
    add("--readme", type=Path, help="write the table between this file's markers")
    add("--check", action="store_true", help="write nothing; fail unless it is so")
    args = parser.parse_args(argv)
    write(args.results, args.readme, args.check)
