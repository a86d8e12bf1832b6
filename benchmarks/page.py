"""The results page of the training workloads, and the table of them on another page, from JSON.

Every workload says what its own record means (its `summary` and `draw`); here stands only how that
is put on a page. What is shown is made anew from the records each time, so that pages and plots
cannot part from them; ``--check`` says whether they have.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.place import has_table, with_table
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.fetch import replacing
from benchmarks.workloads.summary import Headline, Summary, Table, plot_path

WORKLOADS = (  # in the order of the page, from the smallest to the largest idea
    "hello",
    "from_scratch",
    "time_machine",
    "reuters",
    "imdb",
    "seq2seq",
    "gradient_flow",
)
MARKERS = "<!-- workloads:begin -->", "<!-- workloads:end -->"
HEAD = ("system", "fusedrnn", "torch.nn", "speed")

INTRODUCTION = """# What the workloads learn

Where both columns have a figure, the system was trained twice from the same initial weights on the
same batches, once with fusedrnn's layers and once with torch.nn's. Both compute the same function
and sum in another order, so figures differ by rounding, and by what training makes of it. "speed"
is torch.nn's time divided by fusedrnn's for the same training, both in turn, epoch by epoch, in one
process: above 1, fusedrnn is faster. ± is the standard deviation over seeds.
"""


@dataclass(frozen=True)
class Result:
    """One JSON file of a workload."""

    stem: Path  # of the JSON file and of the plots beside it
    record: dict[str, Any]
    summary: Summary

    @property
    def module(self) -> Any:
        return workload(self.record["workload"])

    @property
    def title(self) -> str:
        options = self.record["options"]
        marks = [mark for mark in ("quick", "synthetic") if options.get(mark)]
        words = {"quick": "reduced size", "synthetic": "synthetic data"}
        return self.summary.title + "".join(f", {words[mark]}" for mark in marks)

    @property
    def headline(self) -> list[Headline]:
        marks = self.title.removeprefix(self.summary.title)
        return [(row[0] + marks, *row[1:]) for row in self.summary.headline]

    def plots(self) -> list[tuple[Path, str]]:
        """(PNG, caption)."""
        return [(plot_path(self.stem, suffix), text) for suffix, text in self.summary.plots]

    def draw(self) -> None:
        self.module.draw(self.record, self.stem)


def workload(name: str) -> Any:
    """The module of that workload."""
    return importlib.import_module(f"benchmarks.workloads.{name}")


def load(directory: Path) -> list[Result]:
    """The results in `directory`, in the page's order; other JSON files are passed over.

    Raises:
        ValueError: there is none, or one cannot be read as its workload writes it.
    """
    found = [result for path in sorted(directory.glob("*.json")) for result in _read(path)]
    if not found:
        raise ValueError(
            f"expected results of workloads (JSON) in {directory}, got none: "
            "python benchmarks/workloads/suite.py makes them"
        )
    return sorted(found, key=lambda r: (WORKLOADS.index(r.record["workload"]), r.stem))


def _read(path: Path) -> Iterable[Result]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    name = record.get("workload") if isinstance(record, dict) else None
    if name is None:
        return
    if name not in WORKLOADS:
        raise ValueError(f"{path}: expected one of {', '.join(WORKLOADS)}, got workload {name!r}")
    try:
        summary = workload(name).summary(record)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ValueError(
            f"{path} is not what {name}.py writes ({type(error).__name__}: {error}): run it again"
        ) from error
    yield Result(path.with_suffix(""), record, summary)


def command(result: Result) -> str:
    """The command that makes the record: the options that are not the workload's defaults."""
    defaults = vars(result.module.options().parse_args([]))
    processes = result.record.get("processes", 1)
    start = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    words = [*start, f"benchmarks/workloads/{result.record['workload']}.py"]
    for name, value in result.record["options"].items():
        default = json.loads(json.dumps(defaults.get(name), default=str))
        if value is None or value is False or value == default:
            continue
        words.append(f"--{name.replace('_', '-')}")
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
    blocks = [f"## {result.title}", result.summary.text, f"```\n{command(result)}\n```"]
    blocks.append(where([result.record]))
    for table in result.summary.tables:
        blocks += [f"**{table.title}**", table.markdown()]
    if result.summary.remarks:
        blocks.append("\n".join(f"- {remark}" for remark in result.summary.remarks))
    for png, caption in result.plots():
        link = Path(os.path.relpath(png, page.parent)).as_posix()
        blocks += [f"![{caption}]({link})", f"*{caption}*"]
    return "\n\n".join(blocks)


def headline_table(results: Sequence[Result]) -> str:
    """The table of all systems: each one's rows, and where they were measured."""
    rows: list[tuple[str, ...]] = [row for result in results for row in result.headline]
    place = where(result.record for result in results)
    return "\n\n".join([Table("", HEAD, rows).markdown(), place])


def render(results: Sequence[Result], page: Path) -> str:
    """The whole page."""
    sections = [section(result, page) for result in results]
    return "\n\n".join([INTRODUCTION.strip(), headline_table(results), *sections]) + "\n"


def run(directory: Path, page: Path, readme: Path | None, check: bool) -> int:
    """Draws the plots beside the results, and writes `page` and the table in `readme`.

    Args:
        readme: the file with the markers, workloads/README.md; None: only `page`.
        check: write nothing; 1 and a line for each fault when a file does not follow from the
            results.
    Raises:
        ValueError: as `load` does, or `readme` has no markers, or a plot cannot be drawn.
    """
    results = load(directory)
    text, table = render(results, page), headline_table(results)
    old = readme.read_text("utf-8") if readme else ""
    if check:
        found = [f"{png} is missing" for r in results for png, _ in r.plots() if not png.is_file()]
        if not page.is_file() or page.read_text("utf-8") != text:
            found.append(f"{page} is not the page of {directory}")
        if readme and not has_table(old, table, MARKERS):
            found.append(f"the table of workloads in {readme} is not that of {directory}")
        if found:
            option = f" --readme {readme}" if readme else ""
            found.append(f"run: python -m benchmarks workloads {directory} {page}{option}")
        print("\n".join(found), end="\n" * bool(found), file=sys.stderr)
        return 1 if found else 0
    new = with_table(old, table, MARKERS) if readme else ""
    try:
        for result in results:
            result.draw()
        for path, content in ((page, text), *([(readme, new)] if readme else [])):
            with replacing(path) as temporary:
                temporary.write_text(content, "utf-8")
    except WorkloadError as error:
        raise ValueError(str(error)) from error
    return 0


def main(argv: Sequence[str]) -> int:
    top = argparse.ArgumentParser("python -m benchmarks workloads")
    top.add_argument("results", type=Path, help="directory of the workloads' JSON files")
    top.add_argument("page", type=Path, help="the Markdown file to write")
    top.add_argument("--readme", type=Path, help="write the table between this file's markers")
    top.add_argument("--check", action="store_true", help="write nothing; fail unless all is so")
    a = top.parse_args(argv)
    return run(a.results, a.page, a.readme, a.check)
