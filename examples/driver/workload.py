"""What the driver asks of a system: a `Workload`, with the types that its methods take and give."""

from __future__ import annotations

import argparse
import importlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from examples.driver.plots import Chart as Chart
from examples.driver.results import Record as Record
from examples.driver.tables import Claim as Claim
from examples.driver.tables import Summary as Summary
from examples.driver.training import Epoch as Epoch
from examples.driver.training import Run as Run

# In the order of the page, from the smallest to the largest idea.
WORKLOADS = (
    "hello",
    "from_scratch",
    "time_machine",
    "cost",
    "reuters",
    "imdb",
    "seq2seq",
    "gradient_flow",
    "memory",
    "streaming",
)
Say = Callable[[str], None]


@dataclass
class Job:
    """What one command trains: its options, sizes and data.

    Args:
        config: the workload's sizes, a dataclass, or several of them by name.
        source: where the data is from: a path, "synthetic" or a word.
        lines: what is said of the data before training; the first follows its source.
        facts: what else the head of the results says.
        extra: records of other kinds than runs; the workload adds to them while it builds.
    """

    args: argparse.Namespace
    config: Any
    data: Any
    source: str
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class Group:
    """Runs that are trained in turn, an epoch of each, so that their times compare.

    Args:
        title: said before, with the number of parameters of the first; nothing when empty.
        more: said after that.
    """

    runs: list[Run]
    epochs: int
    title: str = ""
    more: str = ""


class Workload(Protocol):
    """One system; each method is called by the driver, in this order."""

    name: str  # of its folder, its results and its checkpoints
    about: str  # what the command does
    cells: Sequence[str]  # those that are trained when none is asked for
    more_cells: Sequence[str] = ()  # what --cell takes besides
    sizes: Any = None  # at full size, a dataclass: the options offer those in options.SIZES,
    fixed: Sequence[str] = ()  # except these
    example: str  # a command that is worth a try, after "python -m examples"
    epochs: int  # at full size, for the help text
    unit: str  # what a target is, in the plural
    measure: str = "loss"  # or "perplexity": what is said of an epoch's loss
    shares: bool = False  # whether several processes may share its batches
    every: int = 1  # epochs between the lines said of a run; --log-every where there is one

    def options(self, add: Callable[..., Any]) -> None:
        """Adds options to those of every workload; `add` is the parser's add_argument."""
        return

    @abstractmethod
    def configs(self, args: argparse.Namespace) -> Job:
        """The sizes and the data that the options ask for."""

    @abstractmethod
    def build(self, job: Job) -> Iterator[Group]:
        """The runs, not begun, group by group; the next one is asked for when one is trained."""

    def run(self, group: Group, fit: Callable[[Sequence[Run]], None], say: Say) -> None:
        """Trains a group by `fit`, which raises Diverged where a loss is no number."""
        fit(group.runs)

    def told(self, run: Run, number: int, epoch: Epoch, final: int) -> str:
        """The line said after an epoch, the `number`-th of `final`; empty: none."""
        figures = {self.measure: epoch[self.measure], **epoch.figures}
        shown = "".join(f"{key.replace('_', ' ')} {v:.4f}  " for key, v in figures.items())
        return (
            f"{run.impl:8}  {run.name}  epoch {number}  {shown}"
            f"{epoch.seconds:.2f} s  {epoch.per_second:,.0f} {self.unit}/s"
        )

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        """What the record of a trained run says besides its fields and epochs."""
        return {}

    @abstractmethod
    def summarise(self, record: Record) -> Summary:
        """What the results say: from the file alone."""

    def claims(self, record: Record) -> list[Claim]:
        """What the course texts claim or report of this system, and what this record says."""
        return []

    @abstractmethod
    def draw(self, record: Record) -> list[Chart]:
        """The charts of the results: from the file alone."""


def workload(name: str) -> Workload:
    """The workload of that name."""
    found: Workload = importlib.import_module(f"examples.{name}.workload").WORKLOAD
    return found
