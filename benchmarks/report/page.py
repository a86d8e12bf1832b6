"""The whole page of a results file: of a run's grid of shapes, of another measurement.

python -m benchmarks page RESULTS.jsonl PAGE.md [--check]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.report import bfloat16, callers, cartpole, grid, int8, peers, sequences, serving
from benchmarks.report.place import whole
from benchmarks.results import RUN, read

PAGES = {
    RUN: grid.page,
    peers.KIND: peers.page,
    callers.KIND: callers.page,
    bfloat16.KIND: bfloat16.page,
    sequences.KIND: sequences.page,
    cartpole.KIND: cartpole.page,
    serving.KIND: serving.page,
    int8.KIND: int8.page,
}


def page(path: Path) -> str:
    """Markdown of the results there, whatever kind they are."""
    header, _ = read(path, *PAGES)
    return PAGES[header["kind"]](path)


def main(argv: Sequence[str]) -> int:
    top = options.parser("page", "The whole page of a results file.")
    top.add_argument("results", type=Path)
    top.add_argument("page", type=Path, help="the Markdown file to write")
    options.add_check(top)
    a = top.parse_args(argv)
    return whole(a.page, page(a.results), a.check, ["page", str(a.results), str(a.page)])
