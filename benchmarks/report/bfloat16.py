"""The page of bfloat16 beside float32 and torch.nn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.figures import markdown, milliseconds, times
from benchmarks.results import made, read

KIND = "bfloat16"


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds: milliseconds a call, and ratios of times in the same round."""

    name: str
    threads: int
    ours_fp32: float
    ours: float
    torch: float
    over_fp32: float  # ours in float32 / ours in bfloat16
    over_torch: float  # torch.nn in bfloat16 / ours in bfloat16


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, lines = read(path, KIND)
    head = ("case", "threads", "fusedrnn fp32", "bf16", "torch.nn bf16")
    rows = []
    for m in (made(Measured, line, path) for line in lines):
        figures = [milliseconds(m.ours_fp32), milliseconds(m.ours), milliseconds(m.torch)]
        figures += [times(m.over_fp32), times(m.over_torch)]
        rows.append([m.name, str(m.threads), *figures])
    found = [
        "# bfloat16 on a CPU",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['isa']}, torch {header['torch']}, "
        f"commit {header['commit']}, {header['date']}. Milliseconds a call; above 1x, fusedrnn's "
        "bfloat16 is the faster. Made by `python -m benchmarks bfloat16`.",
        "",
        *markdown((*head, "against fp32", "torch.nn bf16"), rows),
    ]
    return "\n".join(found) + "\n"
