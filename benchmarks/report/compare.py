"""Two benchmark runs, case by case.

python -m benchmarks compare BEFORE.jsonl AFTER.jsonl
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import options
from benchmarks.report.figures import columns, geometric_mean, milliseconds, times
from benchmarks.results import Record, Run

FLOOR = 0.05  # what two runs of equal code may differ by, whatever their scatter says


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
    known = {record.key: record for record in (*before.records, *before.besides)}
    both = (*after.records, *after.besides)
    return [Change(known[r.key], r) for r in both if r.key in known]


def compare(before: Run, after: Run) -> list[str]:
    """Per case the times and ratios of both runs, the change, and whether it exceeds the noise."""
    found = changes(before, after)
    rows = [("case", "threads", "ms", "ms", "ratio", "ratio", "change", "noise", "")] + [
        (
            change.after.name,
            change.after.how,
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
    total = sum(len(run.records) + len(run.besides) for run in (before, after))
    unmatched = total - 2 * len(found)
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


def main(argv: Sequence[str]) -> int:
    top = options.parser("compare", "Two runs, case by case.")
    top.add_argument("before", type=Path)
    top.add_argument("after", type=Path)
    arguments = top.parse_args(argv)
    print("\n".join(compare(Run.load(arguments.before), Run.load(arguments.after))))
    return 0
