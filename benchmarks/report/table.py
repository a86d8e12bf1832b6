"""Tables of one run: every case, or a page's headline cases.

python -m benchmarks table RUN.jsonl [--readme PAGE.md [--rows 1,2,5] [--check]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.report.figures import markdown, milliseconds, times
from benchmarks.report.place import BEGIN, END, place
from benchmarks.report.summary import on_gpu, sentences, verdict
from benchmarks.results import Record, Run


def pick(lines: Sequence[list[str]], rows: Sequence[int]) -> list[list[str]]:
    """The lines of these numbers, counted from 1; all of them when no number is given."""
    missing = [row for row in rows if not 1 <= row <= len(lines)]
    if missing:
        got = ", ".join(map(str, missing))
        raise ValueError(f"expected rows from 1 to {len(lines)}, got {got}")
    return [lines[row - 1] for row in rows] or list(lines)


def entries(found: Sequence[Record]) -> list[str]:
    """Both sides' times and the ratio of the first record; empty where there is none."""
    for r in found:
        return [milliseconds(r.ours_ms), milliseconds(r.torch_ms), times(r.ratio)]
    return ["", "", ""]


def readme_table(run: Run, rows: Sequence[int] = ()) -> str:
    """Training and inference of one model in one row: the headline cases, and every loss.

    Of several thread counts the largest is shown. `rows` picks rows of the table; the lines below
    it are about all cases.
    """
    if not run.peak_gflops and not run.gpu:
        raise ValueError("the run has no reading of the FMA peak")
    head = ("case", "training, ms", "torch.nn", "ratio", "inference, ms", "torch.nn", "ratio")
    lines: list[list[str]] = []
    for model in dict.fromkeys(record.model for record in run.headlines):
        group, cell, shape, data, _, *rest = model
        name = f"{group}, {cell} {shape}" + " (synthetic data)" * (data == "synthetic")
        both = [
            [r for r in run.records if r.model == model and (r.step == "inference") is inference]
            for inference in (False, True)
        ]
        lines.append([", ".join([name, *rest]), *entries(both[0]), *entries(both[1])])
    below = " ".join([*sentences(run), f"{run.where}."])
    return "\n".join([*markdown(head, pick(lines, rows)), "", below])


def full_table(run: Run) -> str:
    """Every case as Markdown."""
    how = "mode" if run.gpu else "threads"
    head = ("case", how, "ours, ms (min)", "torch.nn, ms (min)", "ratio", "GFLOP/s", "of peak")
    lines = []
    for r in (*run.records, *run.besides):
        ours = f"{milliseconds(r.ours_ms)} ({milliseconds(r.ours_min_ms)})"
        theirs = f"{milliseconds(r.torch_ms)} ({milliseconds(r.torch_min_ms)})"
        ratio = f"{times(r.ratio)} ±{r.noise:.0%} {r.flag}".rstrip()
        lines.append([r.name, r.how, ours, theirs, ratio, f"{r.gflops:.1f}", run.share(r)])
    aims = [f"- {line.strip()}" if line else "" for line in on_gpu(run)] if run.gpu else []
    verdicts = [f"{line}." for line in verdict(run)]
    return "\n".join([f"{run.where}.", "", *markdown(head, lines), "", *verdicts, *aims])


def main(argv: Sequence[str]) -> int:
    top = options.parser("table", "Markdown table of every case, or a page's.")
    top.add_argument("run", type=Path)
    top.add_argument("--readme", type=Path, help="write the table between this file's markers")
    top.add_argument("--rows", type=options.numbers, default=[], help="only these, as in 1,2,5")
    options.add_check(top)
    arguments = top.parse_args(argv)
    run, page, rows = Run.load(arguments.run), arguments.readme, arguments.rows
    if page is None:
        if arguments.check or rows:
            raise ValueError(f"{'--check' if arguments.check else '--rows'} needs --readme FILE")
        print(full_table(run))
        return 0
    command = ["table", str(arguments.run), "--readme", str(page)]
    command += ["--rows", ",".join(map(str, rows))] if rows else []
    return place(page, readme_table(run, rows), (BEGIN, END), arguments.check, command)
