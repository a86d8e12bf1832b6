"""Trains runs epoch by epoch: timing, the progress bar, and the stop at a loss that is no number.

A workload says what an epoch is by a generator that makes one update per item and yields its
loss. The losses stay on the device until the epoch ends, so that a GPU is not stalled every step.
Runs that are to be compared are trained in turn, an epoch of one and then of the next, so that they
meet the same machine; each has torch's random numbers to itself, as if it were alone.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.driver.errors import Diverged, WorkloadError
from examples.driver.layers import count_parameters
from examples.driver.parallel import processes

if TYPE_CHECKING:
    from examples.driver.checkpoint import Checkpoints

Updates = Iterator[tuple[Tensor, int]]  # mean loss of the update, detached; targets it is over
Generator = torch.Generator | random.Random


@dataclass(frozen=True)
class Epoch:
    """One pass over the data."""

    loss: float  # mean over all targets, nats
    targets: int
    seconds: float  # of the updates alone
    figures: dict[str, float] = field(default_factory=dict)  # measured after it

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def per_second(self) -> float:
        return self.targets / self.seconds

    def __getitem__(self, figure: str) -> float:
        """Its loss, its perplexity or one of its figures, by name."""
        value: float = self.figures[figure] if figure in self.figures else getattr(self, figure)
        return value


@dataclass
class Run:
    """One model in training; made right after the seed is set and the model drawn.

    Args:
        name: unique among the runs of one implementation; it names the checkpoint.
        fields: what tells it from the workload's other runs (cell, length, ...), as JSON takes it.
        updates: the updates of one epoch.
        sizes: what else a checkpoint must agree on to be resumed; neither `impl` nor the number of
            epochs.
        generators: where random numbers come from besides torch's global generator.
        length: the updates of an epoch, to within one; the progress bar reckons with them.
        after: figures after an epoch, such as a validation accuracy; its time is not counted.
    """

    workload: str
    name: str
    impl: str
    seed: int
    fields: Mapping[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    updates: Callable[[], Updates]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    generators: Mapping[str, Generator] = field(default_factory=dict)
    after: Callable[[], Mapping[str, float]] | None = None
    length: int = 0
    history: list[Epoch] = field(default_factory=list)
    random_state: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random_state = _random_state(self.device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        return count_parameters(self.model)

    @property
    def task(self) -> dict[str, Any]:
        """What a checkpoint must agree on; the number of epochs may grow."""
        sizes = {key: value for key, value in self.sizes.items() if key != "epochs"}
        return {"workload": self.workload, **self.fields, **sizes}

    def record(self, **figures: Any) -> dict[str, Any]:
        """Its line of the results: what it is, `figures`, and its epochs."""
        about = {"name": self.name, "impl": self.impl, "seed": self.seed, **self.fields}
        return {**about, "parameters": self.parameters, **figures, "epochs": self.history}


Report = Callable[[Run, int, Epoch], None]


def step(optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None = None) -> Tensor:
    """One update by the gradient of `loss`, whose norm is cut to `clip`; the loss, detached."""
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    optimizer.step()
    return loss.detach()


def seconds_per_epoch(epochs: Sequence[Epoch]) -> float:
    """The median, without the first epoch, which warms up, where there are at least three."""
    return statistics.median(epoch.seconds for epoch in _timed(epochs))


def per_second(epochs: Sequence[Epoch]) -> float:
    """Targets a second, the median over the same epochs."""
    return statistics.median(epoch.per_second for epoch in _timed(epochs))


def _timed(epochs: Sequence[Epoch]) -> Sequence[Epoch]:
    return epochs[1:] if len(epochs) > 2 else epochs


def fit(
    runs: Sequence[Run], epochs: int, report: Report, checkpoints: Checkpoints | None = None
) -> None:
    """Trains every run to `epochs` passes, in turn epoch by epoch, and fills its history; Diverged
    where a loss is nan or infinite.

    Args:
        report: called after every epoch with the run, the epoch's number from 1, and the epoch.
        checkpoints: where runs are saved after every epoch, and gone on from.
    """
    if checkpoints is not None:
        for run in runs:
            checkpoints.load(run)
            if len(run.history) > epochs:
                raise WorkloadError(
                    f"{run.name} ({run.impl}) has been trained for {len(run.history)} epochs, "
                    f"got --epochs {epochs}: give at least as many, or another --checkpoints"
                )
    left = sum(max(epochs - len(run.history), 0) * run.length for run in runs)
    quiet = None if processes().leader else True
    try:
        with tqdm(total=left or None, unit="update", leave=False, disable=quiet) as bar:
            for number in range(1, epochs + 1):
                for run in (run for run in runs if len(run.history) < number):
                    bar.set_description(f"{run.name} {run.impl} epoch {number}/{epochs}")
                    epoch = _epoch(run, number, bar, checkpoints)
                    run.history.append(epoch)
                    if checkpoints is not None:
                        checkpoints.save(run)
                    bar.set_postfix(loss=f"{epoch.loss:.4f}", refresh=False)
                    report(run, number, epoch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(checkpoints)) from None


def _epoch(run: Run, number: int, bar: tqdm[object], checkpoints: Checkpoints | None) -> Epoch:
    losses: list[Tensor] = []
    targets: list[int] = []
    _restore(run, number)
    start = time.perf_counter()
    for loss, count in run.updates():
        losses.append(loss)
        targets.append(count)
        bar.update()
    if not losses:
        raise WorkloadError("too little data for one batch")
    values = processes().mean(torch.stack(losses).double()).cpu()  # waits for the device
    seconds = time.perf_counter() - start
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        raise Diverged(
            f"loss is {values[first].item()} in update {first + 1} of epoch {number} "
            f"({run.name}, {run.impl}): {_kept(checkpoints)}"
        )
    run.random_state = _random_state(run.device)
    figures = dict(run.after()) if run.after else {}
    weights = torch.tensor(targets, dtype=torch.float64)
    return Epoch(float(values @ weights / weights.sum()), sum(targets), seconds, figures)


def _kept(checkpoints: Checkpoints | None) -> str:
    return checkpoints.kept() if checkpoints is not None else "nothing was written"


def _random_state(device: torch.device) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def _restore(run: Run, number: int) -> None:
    """Torch's generators as `run` left them. Of several processes, each but the first draws its
    own numbers, anew every epoch, so that one process's checkpoint is enough for all."""
    rank = processes().rank
    if rank:
        torch.manual_seed(random.Random(f"{run.seed}/{rank}/{number}").getrandbits(63))
        return
    torch.set_rng_state(run.random_state[0])
    if run.device.type == "cuda" and len(run.random_state) > 1:
        torch.cuda.set_rng_state(run.random_state[1], run.device)
