"""The page of inference beside other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.figures import geometric_mean, markdown, milliseconds, times
from benchmarks.results import half_interval, made, read

KIND = "peers"
OURS = "fusedrnn"


@dataclass(frozen=True)
class Measured:
    """One case on so many threads. `ms`: the median of each side; `ratio`: of a peer's time / ours
    in the same round the quartiles."""

    name: str
    threads: int
    rounds: int
    gflop: float
    ms: dict[str, float]
    ratio: dict[str, list[float]]
    error: dict[str, float]  # largest difference from ours, relative to the largest value


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, lines = read(path, KIND)
    measured = [made(Measured, line, path) for line in lines]
    names = [name for name in header["versions"] if name != OURS]
    where = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    peaks = ", ".join(f"{peak:.0f} GFLOP/s on {n}" for n, peak in header["peak_gflops"].items())
    head = ["case", "threads", OURS, "of peak"]
    for name in names:
        head += [name, "ratio"]
    rows = []
    for m in measured:
        share = m.gflop / m.ms[OURS] * 1e3 / header["peak_gflops"][str(m.threads)]
        cells = [m.name, str(m.threads), milliseconds(m.ms[OURS]), f"{share:.0%}"]
        for name in names:
            noise = half_interval(m.ratio[name], m.rounds)
            cells += [milliseconds(m.ms[name]), f"{times(m.ratio[name][1])} ±{noise:.0%}"]
        rows.append(cells)
    found = [
        "# Inference beside other runtimes",
        "",
        f"{header['cpu']}, {header['isa']}, commit {header['commit']}, {header['date']}; "
        f"{where}. float32; FMA peak {peaks} thread(s). Each peer's milliseconds a call, and how "
        "many times ours that is: the median over the rounds, ± half its ~95 % interval. Made by "
        "`python -m benchmarks peers`.",
        "",
        *markdown(head, rows),
    ]
    for name in names:
        ratios = [m.ratio[name][1] for m in measured]
        mean = times(geometric_mean(ratios))
        slower = sum(ratio < 1 for ratio in ratios)
        found += ["", f"{name}: geometric mean {mean}, slower than it {slower} of {len(ratios)}."]
    return "\n".join(found) + "\n"
