"""The Time Machine language model: the whole training step (model, loss, clipping, SGD) and
inference of one batch.

Model, batches and update are the workload's own; the state starts from zeros, as with random
sampling. The FLOP count is that of the recurrent layer alone, whose one-hot input counts as the
dense product that both sides compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.cases import INFERENCE, ON_CPU, TRAINING, Call, Case, Setting, Subject, Tier, gflop
from benchmarks.timing import Measure
from examples import data
from examples.time_machine import model as time_machine

SIZES = time_machine.CONFIG
SYMBOLS = 28  # of the corpus, real or synthetic; known here so that listing cases loads nothing


@cache
def corpus() -> data.Text:
    return data.time_machine(synthetic="fallback")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step, or inference, of the language model."""

    cell: str
    step: str
    group: str = "Time Machine model"
    headline: bool = True
    tier: Tier = Tier.QUICK

    @property
    def shape(self) -> str:
        return f"T{SIZES.steps} B{SIZES.batch} I{SYMBOLS} H{SIZES.hidden}"

    @property
    def gflop(self) -> float:
        return gflop(
            self.cell,
            SIZES.steps * SIZES.batch,
            SYMBOLS,
            SIZES.hidden,
            step=self.step,
            input_grad=False,
        )

    def build(self, setting: Setting = ON_CPU) -> Subject:
        text = corpus()
        x, y = next(time_machine.batches(text.tokens.to(setting.device), "random"))

        def call(impl: str) -> Call:
            torch.manual_seed(0)
            model = time_machine.build_model(self.cell.lower(), impl, SYMBOLS)
            model.to(setting.device, setting.dtype)
            if self.step == INFERENCE:
                model.eval()
                return lambda: (model(x)[0],)
            optimizer = time_machine.build_optimizer(model)
            return lambda: (time_machine.train_step(model, optimizer, x, y)[0],)

        source = "synthetic" if text.source == data.SYNTHETIC else "real"
        return Subject(call("fusedrnn"), call("torch"), source)


CASES = [
    Step(cell=cell, step=step) for cell in ("LSTM", "GRU", "RNN") for step in (TRAINING, INFERENCE)
]


def test_time_machine(case: Case, threads: int, measure: Measure) -> None:
    measure(case, threads)
