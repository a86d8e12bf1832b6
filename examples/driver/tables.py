"""What a workload's results say, as data: tables, remarks computed from figures, headline rows.

A workload makes its Summary from its results alone, so that the terminal, the results page and the
README of the examples show one set of figures, and showing them again takes no training.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

Claim = tuple[str, str]  # what a course text says, and what a record says
Headline = tuple[str, str, str, str]  # system, fusedrnn's figure, torch.nn's ("": not run), ratio

# A figure, with or without unit, deviation or factor: its column is aligned to the right.
_FIGURE = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( ± \S+)?( ?(%|x|s|ms|us|min))?|-|nan|inf|")


@dataclass(frozen=True)
class Table:
    """Entries under a head of the same width, shown as text or as Markdown."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                columns = f"{len(self.head)} columns"
                raise ValueError(f"table {self.title!r} has {columns}, got the row {row}")

    def text(self) -> str:
        """The title, then columns as wide as their widest entry; figures to the right."""
        right = self._right()
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        shown = [
            "  ".join(
                entry.rjust(width) if to_right else entry.ljust(width)
                for entry, width, to_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *shown])

    def markdown(self) -> str:
        """The table without its title; a bar within an entry, or what begins a tag, is escaped."""
        rule = ["---:" if right else "---" for right in self._right()]
        lines = [self.head, rule, *self.rows]
        return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)

    def _right(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [("",)] * len(self.head)
        return [all(_FIGURE.fullmatch(entry) for entry in column) for column in columns]


def _escaped(entry: str) -> str:
    return entry.replace("|", "\\|").replace("<", "&lt;")


@dataclass(frozen=True)
class Summary:
    """One system's results."""

    title: str
    text: str  # a paragraph for a student: what is learnt, from what, by which model
    tables: list[Table]
    remarks: list[str] = field(default_factory=list)  # sentences computed from the figures
    headline: list[Headline] = field(default_factory=list)  # rows of the table of all systems

    def console(self) -> str:
        """Tables and remarks, as a run ends."""
        blocks = [table.text() for table in self.tables]
        return "\n\n".join([*blocks, *(["\n".join(self.remarks)] if self.remarks else [])])


def mean_std(values: Sequence[float], digits: int) -> str:
    """``0.798 ± 0.004``, the deviation that of a sample (n - 1); of one value the value alone."""
    if not values:
        raise ValueError("expected at least one value, got none")
    mean = f"{math.fsum(values) / len(values):,.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else mean


def standard_error(*samples: Sequence[float]) -> float:
    """Of the difference of the means of samples, of two values or more each."""
    return math.sqrt(sum(statistics.variance(sample) / len(sample) for sample in samples))


def ratio(torch: float | None, ours: float | None) -> str:
    """How many times as fast ours is, from two times: ``1.37x``; empty where one is None."""
    return "" if torch is None or ours is None else f"{torch / ours:.2f}x"
