"""The page of several threads that call one module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.figures import markdown, times
from benchmarks.results import made, read

KIND = "callers"


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds: calls a second, and of ours / torch.nn's in the same round."""

    name: str
    callers: int
    ours: float
    torch: float
    ratio: float


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, lines = read(path, KIND)
    alone: dict[str, float] = {}
    rows = []
    for m in (made(Measured, line, path) for line in lines):
        first = alone.setdefault(m.name, m.ours / m.callers)
        figures = [f"{m.ours:.0f}", f"{m.torch:.0f}", times(m.ratio), times(m.ours / first)]
        rows.append([m.name, str(m.callers), *figures])
    head = ("case", "callers", "fusedrnn", "torch.nn", "ratio", "against one caller")
    found = [
        "# Several callers of one module",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['isa']}, torch {header['torch']}, "
        f"commit {header['commit']}, {header['date']}. Inference, float32, one thread a call; "
        "calls a second of all callers together. Made by `python -m benchmarks callers`.",
        "",
        *markdown(head, rows),
    ]
    return "\n".join(found) + "\n"
