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
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
MARKERS = ("workloads", "texts")  # <!-- workloads:begin -->, <!-- workloads:end -->, ...
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


def _prefix(result: Result) -> str:
    return "synthetic | " * bool(result.record["options"].get("synthetic"))


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


def speed(found: Sequence[Result]) -> plots.Bars | None:
    """A bar for each system, the geometric mean of the speeds in its headlines."""
    ratios: dict[str, list[float]] = {}
    for result in found:
        named = ratios.setdefault(result.summary.title.partition(":")[0], [])
        named += [float(ratio[:-1]) for *_, ratio in result.summary.headline if ratio]
    values = {name: statistics.geometric_mean(of) for name, of in ratios.items() if of}
    caption = "Whole trainings, torch.nn's time divided by fusedrnn's: above 1, fusedrnn is faster."
    return plots.Bars("", caption, "How much faster the examples train", values) if values else None


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
        blocks += _shown(chart, png, page)
    return "\n\n".join(blocks)


def headline_table(found: Sequence[Result]) -> str:
    """The table of all systems: each one's rows, and where they were measured."""
    rows: list[tuple[str, ...]] = [
        (row[0] + result.marks, *row[1:]) for result in found for row in result.summary.headline
    ]
    place = where(result.record for result in found)
    return f"{Table('', HEAD, rows).markdown()}\n\n{place}"


def _shown(picture: plots.Picture, png: Path, page: Path) -> list[str]:
    """A picture and its caption as Markdown of `page`."""
    link = Path(os.path.relpath(png, page.parent)).as_posix()
    return [f"![{picture.caption}]({link})", f"*{picture.caption}*"]


def overview(found: Sequence[Result], directory: Path, page: Path) -> str:
    """The table of all systems and the picture of their speeds, for `page`."""
    bars = speed(found)
    shown = _shown(bars, directory / "speed.png", page) if bars else []
    return "\n\n".join([headline_table(found), *shown])


def claims(found: Sequence[Result]) -> str:
    """What the course texts say, beside what the results say, with the commands that made them."""
    rows: list[tuple[str, ...]] = [
        (text, ours, f"`{command(result)}`")
        for result in found
        for text, ours in result.workload.claims(result.record)
    ]
    return Table("", ("the texts", "here", "command"), rows).markdown()


def render(found: Sequence[Result], page: Path) -> str:
    """The whole page."""
    sections = [section(result, page) for result in found]
    blocks = [INTRODUCTION.strip(), overview(found, page.parent, page), *sections]
    return "\n\n".join(blocks) + "\n"


def filled(path: Path, parts: Mapping[str, str]) -> str:
    """The text of `path` with each part between the markers of its name."""
    text = path.read_text("utf-8")
    for name, part in parts.items():
        begin, end = (f"<!-- {name}:{which} -->" for which in ("begin", "end"))
        for marker in (begin, end):
            times = text.count(marker)
            if times != 1:
                raise WorkloadError(f"{path}: expected {marker} once, got it {times} times")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{part}\n{end}{rest.split(end)[-1]}"
    return text


def write(directory: Path, readme: Path | None, check: bool) -> None:
    """Draws the plots beside the results, and writes the page and the table between the markers of
    `readme`; to `check`, writes nothing and fails where a file does not follow from the results."""
    found, page = load(directory), directory / PAGE
    texts = {page: render(found, page)}
    if readme:
        parts = (overview(found, directory, readme), claims(found))
        texts[readme] = filled(readme, dict(zip(MARKERS, parts, strict=True)))
    pictures: list[tuple[plots.Picture, Path, str]]
    pictures = [(chart, png, _prefix(r)) for r in found for chart, png in r.plots()]
    if bars := speed(found):
        pictures.append((bars, directory / "speed.png", ""))
    if check:
        faults = [f"{png} is missing" for _, png, _ in pictures if not png.is_file()]
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
    for picture, png, prefix in pictures:
        picture.write(png, prefix)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m examples page``."""
    about = f"Write DIR/{PAGE} and the plots it shows."
    parser = argparse.ArgumentParser(prog="python -m examples page", description=about)
    add = parser.add_argument
    add("results", type=Path, help="directory of the results (JSONL)")
    add("--readme", type=Path, help="write the tables between this file's markers")
    add("--check", action="store_true", help="write nothing; fail unless it is so")
    args = parser.parse_args(argv)
    write(args.results, args.readme, args.check)
