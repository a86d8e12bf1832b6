"""The page of the grid of shapes: every ratio, by cell, step and number of threads."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from benchmarks.report.figures import markdown, times
from benchmarks.report.summary import sentences
from benchmarks.results import GRID, Record, Run


def sizes(record: Record) -> tuple[int, int, int]:
    """T, B and H; I is H there."""
    found = re.fullmatch(r"T(\d+) B(\d+) I(\d+) H\3", record.shape)
    if not found:
        raise ValueError(f"{record.shape} is no shape of the grid")
    T, B, H = map(int, found.groups())
    return T, B, H


def table(records: list[Record]) -> list[str]:
    """A row for each T and B, a column for each H; * is slower than torch.nn beyond the noise."""
    shown = {sizes(r): times(r.ratio) + ("*" if r.flag == "slower" else "") for r in records}
    widths = sorted({H for _, _, H in shown})
    rows = [
        [f"T {T}, B {B}", *(shown.get((T, B, H), "") for H in widths)]
        for T, B in sorted({(T, B) for T, B, _ in shown})
    ]
    return markdown(["", *(f"H {H}" for H in widths)], rows)


def page(path: Path) -> str:
    """Markdown of the cases of the grid."""
    run = Run.load(path)
    records = [record for record in run.records if record.group == GRID]
    lines = [
        "# The grid of shapes",
        "",
        f"{run.where}. torch.nn's time divided by ours; I = H, one layer, random input. * marks "
        "what is slower than torch.nn beyond the noise. Made by "
        "`pytest benchmarks --benchmark-only --full` and `python -m benchmarks page`.",
    ]
    for threads in sorted({record.threads for record in records}):
        of_threads = [record for record in records if record.threads == threads]
        lines += ["", f"## {threads} thread{'s' if threads > 1 else ''}", ""]
        lines += sentences(replace(run, records=of_threads))
        for cell, step in dict.fromkeys((r.cell, r.step) for r in of_threads):
            chosen = [r for r in of_threads if (r.cell, r.step) == (cell, step)]
            lines += ["", f"### {cell}, {step}", "", *table(chosen)]
    return "\n".join(lines) + "\n"
