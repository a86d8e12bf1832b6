"""The page of lengths, resets and checkpoints beside the other ways to do the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.figures import markdown, milliseconds, times
from benchmarks.results import half_interval, made, read

KIND = "sequences"
OURS = "fusedrnn"


@dataclass(frozen=True)
class Aim:
    """What is aimed at beside a side: that we take at most so many times its time, or that it
    takes at least so many times ours."""

    side: str
    most: float = 0.0
    least: float = 0.0

    def line(self, ratio: float) -> str:
        """The verdict, by the side's time / ours."""
        if self.most:
            met = 1 / ratio <= self.most
            shown = f"{1 / ratio:.3f}x its time, aimed at {self.most:g}x at most"
        else:
            met = ratio >= self.least
            shown = f"{times(ratio)} as fast, aimed at {self.least:.3g}x at least"
        return f"{'met' if met else 'MISSED'}: {shown}, beside {self.side}"


@dataclass(frozen=True)
class Measured:
    """One case on so many threads. `ms`: the median of each side; `ratio`: the quartiles of a
    side's time / ours in the same round; `mebibytes`: the most that a step takes at once beside
    its input and its results, where that was asked."""

    name: str
    threads: int
    rounds: int
    gflop: float
    ms: dict[str, float]
    ratio: dict[str, list[float]]
    error: dict[str, float]  # largest difference from ours, relative to the largest value
    aims: list[dict[str, Any]] = field(default_factory=list)
    mebibytes: dict[str, float] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[str]:
        """A line for each aim."""
        about = f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        aims = [Aim(**aim) for aim in self.aims]
        return [f"{aim.line(self.ratio[aim.side][1])}: {about}" for aim in aims]


def row(m: Measured, side: str) -> list[str]:
    ratio = ""
    if side in m.ratio:
        ratio = f"{times(m.ratio[side][1])} ±{half_interval(m.ratio[side], m.rounds):.0%}"
    memory = f"{m.mebibytes[side]:,.0f}" if side in m.mebibytes else ""
    about = [m.name, str(m.threads)] if side == OURS else ["", ""]
    return [*about, side, milliseconds(m.ms[side]), ratio, memory]


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, lines = read(path, KIND)
    measured = [made(Measured, line, path) for line in lines]
    head = ["case", "threads", "by", "ms", "its time / ours", "MiB"]
    verdicts = [line for m in measured for line in m.verdicts]
    found = [
        "# Lengths, resets and checkpoints",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['isa']}, torch {header['torch']}, "
        f"commit {header['commit']}, {header['date']}. float32; milliseconds a call; the ratio is "
        "the median over the rounds, ± half its ~95 % interval. MiB: the most that a training step "
        "takes at once, beside its input, its results and the weights. Made by "
        "`python -m benchmarks sequences`.",
        "",
        *markdown(head, [row(m, side) for m in measured for side in m.ms]),
        "",
        *(f"- {line}." for line in verdicts),
    ]
    return "\n".join(found).rstrip() + "\n"
