"""The page of RecurrentPPO on CartPole: its own loop over steps beside one call with resets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.figures import markdown, times
from benchmarks.results import made, read

KIND = "cartpole"


@dataclass(frozen=True)
class Measured:
    """One way to train, over all rounds. Seconds a round are medians; a round collects `steps` and
    learns from them."""

    name: str
    steps: int
    rounds: int
    collect: float
    learn: float
    collect_ratio: float  # of the first way's time / this one's in the same round, the median
    learn_ratio: float
    episodes: int
    reward: float  # of the last ten episodes, the mean


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, lines = read(path, KIND)
    measured = [made(Measured, line, path) for line in lines]
    head = ["the LSTM", "collect, s", "ratio", "learn, s", "ratio", "episodes", "last rewards"]
    rows = [
        [
            m.name,
            f"{m.collect:.2f}",
            times(m.collect_ratio),
            f"{m.learn:.2f}",
            times(m.learn_ratio),
            str(m.episodes),
            f"{m.reward:.1f}",
        ]
        for m in measured
    ]
    first = measured[0]
    found = [
        "# RecurrentPPO on CartPole",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['isa']}, torch {header['torch']}, "
        f"sb3-contrib {header['sb3']}, commit {header['commit']}, {header['date']}. Seconds a "
        f"round, which collects {first.steps} steps and learns from them; medians of "
        f"{first.rounds} rounds, all ways in turn, from the same seeds. The ratio is sb3-contrib's "
        "own time / this one's. Made by `python -m benchmarks cartpole`.",
        "",
        *markdown(head, rows),
    ]
    return "\n".join(found) + "\n"
