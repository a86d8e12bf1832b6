"""The page of what bfloat16 and int8 weights cost in accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.figures import markdown
from benchmarks.results import Line, line_of_table, read_tables

KIND = "int8"
PLAIN, INT8 = "float32", "int8"
POINTS, PERCENT = 0.3, 2.0  # what int8 may cost: of accuracy, of perplexity
SHOWN = (10, 100, 1000, 10_000)  # the windows that end there are in the table


@dataclass(frozen=True)
class Scored:
    """A trained model's score, frozen in each dtype."""

    name: str
    measure: str  # "accuracy" or "perplexity"
    scores: dict[str, float]

    def cost(self, dtype: str) -> float:
        """What it loses: points of accuracy, per cent of perplexity."""
        plain, low = self.scores[PLAIN], self.scores[dtype]
        cost = low / plain - 1 if self.measure == "perplexity" else plain - low
        return round(100 * cost, 2) + 0.0  # no -0.00

    @property
    def verdict(self) -> str:
        most, unit = (POINTS, "points") if self.measure == "accuracy" else (PERCENT, "%")
        cost = self.cost(INT8)
        met = "met" if cost <= most else "MISSED"
        return f"- {met}: int8 costs {cost:+.2f} {unit}, asked for at most {most:g}: {self.name}."


@dataclass(frozen=True)
class Drifted:
    """RMS error in the steps up to each end, since the last one, relative to the output's RMS."""

    name: str
    ends: list[int]
    errors: dict[str, list[float]]


TABLES: dict[str, Any] = {"scores": Scored, "drift": Drifted}


def line_of(found: Any) -> Line:
    """A line of the file."""
    return line_of_table(found, TABLES)


def load(path: Path) -> tuple[Line, dict[str, list[Any]]]:
    """The header, and the lines by table."""
    return read_tables(path, KIND, TABLES)


def scores(found: Sequence[Scored]) -> Iterator[str]:
    yield from ("## Trained models", "")
    yield "Accuracy in per cent, or perplexity; in brackets what is lost: points, or per cent."
    yield ""
    dtypes = [*found[0].scores]

    def shown(m: Scored, dtype: str) -> str:
        value = f"{100 * m.scores[dtype]:.2f}" if m.measure == "accuracy" else ""
        value = value or f"{m.scores[dtype]:.4f}"
        return value if dtype == PLAIN else f"{value} ({m.cost(dtype):+.2f})"

    rows = [[m.name, m.measure, *(shown(m, dtype) for dtype in dtypes)] for m in found]
    yield from markdown(["model", "score", *dtypes], rows)
    yield ""
    yield from (m.verdict for m in found)


def drift(found: Sequence[Drifted]) -> Iterator[str]:
    ends = [end for end in SHOWN if end in found[0].ends]
    yield from ("## Over many steps", "")
    yield (
        "RMS error of the output beside float64, relative to the output's, of the last half of so "
        "many steps. Where the forget gates' bias is 5, the layer is chaotic: float32 loses it too."
    )
    yield ""
    rows = [
        [m.name if i == 0 else "", dtype, *(f"{errors[m.ends.index(e)]:.1e}" for e in ends)]
        for m in found
        for i, (dtype, errors) in enumerate(m.errors.items())
    ]
    yield from markdown(["layer", "dtype", *(f"{end:,}" for end in ends)], rows)


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, found = load(path)
    lines = [
        "# What bfloat16 and int8 weights cost",
        "",
        f"{header['cpu']}, {header['isa']}, torch {header['torch']}, commit {header['commit']}, "
        f"{header['date']}. Layers frozen in each dtype; states, gates and sums are float32 in all "
        "of them. Made by `python -m benchmarks int8`.",
    ]
    if found["scores"]:
        lines += ["", *scores(found["scores"])]
    if found["drift"]:
        lines += ["", *drift(found["drift"])]
    return "\n".join(lines) + "\n"
