"""What a case is: the work that both sides do, and how many operations that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
INFERENCE, TRAINING, GRADIENTS = "inference", "training step", "fwd+bwd"

Call = Callable[[], tuple[Tensor, ...]]


class Tier(IntEnum):
    """A run takes the cases up to its tier."""

    QUICK, DEFAULT, FULL = range(3)


@dataclass(frozen=True)
class Setting:
    """Where a case runs, and in which dtype."""

    device: torch.device
    dtype: torch.dtype = torch.float32


ON_CPU = Setting(torch.device("cpu"))


@dataclass(frozen=True)
class Subject:
    """The same work by both sides; each call returns the tensors that must agree.

    `alike` is what must agree instead where both sides draw dropout, each its own. `exact` gives
    the same tensors in float64.
    """

    ours: Call
    theirs: Call
    data: str  # "random", "real" or "synthetic"
    alike: tuple[Call, Call] | None = None
    exact: Call | None = None


@dataclass(frozen=True)
class Side:
    """Another way to do the work of ours, timed beside it.

    `check` is what must agree with ours: the call itself, one that also does what the call leaves
    out, or None where other results are meant.
    """

    name: str
    call: Call
    check: Call | None


class Named(Protocol):
    """What names a case, in one shape, for training or for inference."""

    @property
    def group(self) -> str: ...
    @property
    def cell(self) -> str: ...
    @property
    def step(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def headline(self) -> bool: ...
    @property
    def tier(self) -> Tier: ...
    @property
    def gflop(self) -> float: ...


class Case(Named, Protocol):
    """A layer, a cell or a model, beside torch.nn's."""

    def build(self, setting: Setting = ON_CPU) -> Subject: ...


class Sided(Named, Protocol):
    """A call of ours beside several other ways to do its work."""

    def sides(self) -> tuple[Call, list[Side]]: ...


def gflop(
    cell: str,
    steps: int,
    I: int,  # noqa: E741
    H: int,
    *,
    L: int = 1,
    D: int = 1,
    P: int = 0,
    step: str = INFERENCE,
    input_grad: bool = True,
) -> float:
    """Matrix products of a recurrent stack over `steps` valid (time, row) pairs, in 10^9.

    Backward has two products for each of forward's (one for the values, one for the weights),
    less the first layer's gradient of its input when nobody asks for it.
    """
    total = 0
    for layer in range(L):
        width, out = (I if layer == 0 else D * (P or H)), P or H
        inputs = 2 * steps * D * GATES[cell] * H * width
        hidden = 2 * steps * D * (GATES[cell] * H * out + P * H)
        if step == INFERENCE:
            total += inputs + hidden
        else:
            total += (3 if layer or input_grad else 2) * inputs + 3 * hidden
    return total / 1e9
