"""The Reuters classifier: the whole training step (model, loss, Adam) and inference of one batch.

Model, batches and update are the workload's own. Embedding, head and optimizer cost both sides the
same; the FLOP count is that of the recurrent stack alone. The compiled cases put both models
through torch.compile: ours becomes one graph, torch.nn's layers run as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.cases import INFERENCE, ON_CPU, TRAINING, Call, Case, Setting, Subject, Tier, gflop
from benchmarks.timing import Measure
from examples import data
from examples.reuters import model as reuters

SIZES = reuters.CONFIG


@cache
def corpus() -> data.Reuters:
    return data.reuters(synthetic="fallback")


@cache
def batch(T: int) -> tuple[Tensor, Tensor]:
    """The first training batch: x [B, T], y [B]."""
    rows = reuters.split(corpus(), T)
    return next(reuters.batches(rows.x_train, rows.y_train))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step, or inference, of the classifier."""

    cell: str
    step: str
    T: int
    compiled: bool = False

    @property
    def group(self) -> str:
        return "Reuters classifier, compiled" if self.compiled else "Reuters classifier"

    @property
    def headline(self) -> bool:
        return self.T == 100

    @property
    def tier(self) -> Tier:
        return Tier.QUICK if self.T == 50 else Tier.DEFAULT

    @property
    def shape(self) -> str:
        return f"T{self.T} B{SIZES.batch} I{SIZES.embedding} H{SIZES.hidden} L{SIZES.layers}"

    @property
    def gflop(self) -> float:
        return gflop(
            self.cell,
            self.T * SIZES.batch,
            SIZES.embedding,
            SIZES.hidden,
            L=SIZES.layers,
            step=self.step,
        )

    def build(self, setting: Setting = ON_CPU) -> Subject:
        x, y = (t.to(setting.device) for t in batch(self.T))

        def call(impl: str, config: reuters.Config = SIZES) -> Call:
            torch.manual_seed(0)
            model = reuters.build_model(self.cell.lower(), impl, config)
            model.to(setting.device, setting.dtype)
            if self.compiled:  # with torch's own random numbers, so that dropout agrees
                model.compile(options={"fallback_random": True})
            if self.step == INFERENCE:
                model.eval()
                return lambda: (model(x),)
            optimizer = reuters.build_optimizer(model)
            return lambda: (reuters.train_step(model, optimizer, x, y),)

        source = "synthetic" if corpus().source == data.SYNTHETIC else "real"
        alike = None
        if setting.device.type != "cpu":  # on a GPU, dropout is cuDNN's own
            config = replace(SIZES, dropout=0.0)
            alike = call("fusedrnn", config), call("torch", config)
        return Subject(call("fusedrnn"), call("torch"), source, alike)


CASES = [
    Step(cell=cell, step=step, T=T)
    for cell in ("LSTM", "RNN")
    for T in reuters.STEPS
    for step in (TRAINING, INFERENCE)
]
CASES += [Step(cell="LSTM", step=step, T=100, compiled=True) for step in (TRAINING, INFERENCE)]


def test_reuters(case: Case, threads: int, measure: Measure) -> None:
    measure(case, threads)
