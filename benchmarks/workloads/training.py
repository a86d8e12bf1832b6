"""Runs epochs of updates: timing, the progress bar, and the stop at a loss that is no number.

A workload says what an epoch is by a generator that makes one update per item and yields its
loss. The losses stay on the device until the epoch ends, so that a GPU is not stalled every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.workloads.errors import WorkloadError

Updates = Iterator[tuple[Tensor, int]]  # mean loss of the update, detached; targets it is over


@dataclass(frozen=True)
class Epoch:
    """One pass over the data."""

    loss: float  # mean over all targets, nats
    targets: int
    seconds: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def per_second(self) -> float:
        return self.targets / self.seconds


def fit(
    epochs: int,
    updates: Callable[[], Updates],
    report: Callable[[int, Epoch], None],
    *,
    label: str = "",
) -> list[Epoch]:
    """Trains for `epochs` passes, each made of the updates of a fresh ``updates()``.

    Args:
        report: called after every epoch with its number, from 1, and its figures.
        label: stands in front of the progress bar, which shows on a terminal only.
    Raises:
        WorkloadError: a loss is nan or infinite, or an epoch has no update.
    """
    history: list[Epoch] = []
    with tqdm(total=epochs, desc=label, unit="epoch", leave=False, disable=None) as bar:
        for number in range(1, epochs + 1):
            epoch = _epoch(number, updates(), bar)
            history.append(epoch)
            bar.set_postfix(loss=f"{epoch.loss:.4f}", refresh=False)
            report(number, epoch)
    return history


def _epoch(number: int, updates: Updates, bar: tqdm[object]) -> Epoch:
    losses: list[Tensor] = []
    targets: list[int] = []
    start = time.perf_counter()
    for loss, count in updates:
        losses.append(loss)
        targets.append(count)
    if not losses:
        raise WorkloadError("too little data for one batch")
    values = torch.stack(losses).double().cpu()  # waits for the device
    seconds = time.perf_counter() - start
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        raise WorkloadError(
            f"loss is {values[first].item()} in update {first + 1} of epoch {number}: "
            "nothing was written"
        )
    weights = torch.tensor(targets, dtype=torch.float64)
    bar.update()
    return Epoch(float(values @ weights / weights.sum()), sum(targets), seconds)
