"""Layers and cells alone, on random input: the named cases, and the grid cell x B x H x T.

The shapes are the two workloads' and those where a recurrent layer is hard in another way: one row,
one step, large H, both directions, packed lengths, a projection.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from benchmarks import cases
from benchmarks.cases import GRADIENTS, INFERENCE, ON_CPU, Call, Setting, Subject, Tier
from benchmarks.results import GRID

CELLS = ("LSTM", "GRU", "RNN")
STEPS = (GRADIENTS, INFERENCE)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer case; `shortest` > 0 packs B lengths from there up to T, evenly spread."""

    group: str
    cell: str
    step: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    D: int = 1
    P: int = 0
    shortest: int = 0
    input_grad: bool = True
    headline: bool = False
    tier: Tier = Tier.DEFAULT

    @property
    def shape(self) -> str:
        time = f"T{self.shortest}..{self.T}" if self.shortest else f"T{self.T}"
        sizes = f"{time} B{self.B} I{self.I} H{self.H}"
        extra = (("L", self.L, 1), ("D", self.D, 1), ("P", self.P, 0))
        return " ".join([sizes, *(f"{k}{v}" for k, v, usual in extra if v != usual)])

    @property
    def lengths(self) -> Tensor:
        if not self.shortest:
            return torch.full((self.B,), self.T)
        return torch.linspace(self.T, self.shortest, self.B).round().long()

    @property
    def gflop(self) -> float:
        return cases.gflop(
            self.cell,
            int(self.lengths.sum()),
            self.I,
            self.H,
            L=self.L,
            D=self.D,
            P=self.P,
            step=self.step,
            input_grad=self.input_grad,
        )

    def modules(self, setting: Setting = ON_CPU) -> tuple[nn.RNNBase, nn.RNNBase]:
        """Ours and torch.nn's, with the same weights."""
        options = {"num_layers": self.L, "bidirectional": self.D == 2}
        if self.P:
            options["proj_size"] = self.P
        theirs = getattr(nn, self.cell)(self.I, self.H, **options)
        ours = getattr(fusedrnn, self.cell)(self.I, self.H, **options)
        ours.load_state_dict(theirs.state_dict())
        for module in (theirs, ours):
            module.train(self.step == GRADIENTS).to(setting.device, setting.dtype)
        return ours, theirs

    def inputs(self, setting: Setting = ON_CPU) -> tuple[Tensor, Tensor]:
        """The input [T, B, I], and for each valid row a gradient of the output."""
        rows = (int(self.lengths.sum()),) if self.shortest else (self.T, self.B)
        shapes = (self.T, self.B, self.I), (*rows, self.D * (self.P or self.H))
        x, slope = (torch.randn(s).to(setting.device, setting.dtype) for s in shapes)
        return x, slope

    def call(self, module: nn.Module, x: Tensor, slope: Tensor) -> Call:
        packed = pack_padded_sequence(x, self.lengths) if self.shortest else None
        leaf = (x if packed is None else packed.data).detach()
        leaf.requires_grad_(self.input_grad and self.step == GRADIENTS)
        input = leaf if packed is None else packed._replace(data=leaf)
        wanted = [*module.parameters(), *([leaf] if leaf.requires_grad else [])]

        def forward() -> tuple[Tensor, ...]:
            output, state = module(input)
            states = state if isinstance(state, tuple) else (state,)
            return (output.data if isinstance(output, PackedSequence) else output, *states)

        def both() -> tuple[Tensor, ...]:
            results = forward()
            return (*results, *torch.autograd.grad(results[0], wanted, slope))

        return forward if self.step == INFERENCE else both

    def build(self, setting: Setting = ON_CPU) -> Subject:
        ours, theirs = self.modules(setting)
        x, slope = self.inputs(setting)

        def exact() -> tuple[Tensor, ...]:
            return self.call(copy.deepcopy(theirs).double(), x.double(), slope.double())()

        both = self.call(ours, x, slope), self.call(theirs, x, slope)
        return Subject(both[0], both[1], "random", exact=exact)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One step of a cell module, as a policy network or a streaming decoder takes it."""

    cell: str
    B: int
    I: int  # noqa: E741
    H: int
    group: str = "cell, one step"
    step: str = INFERENCE
    headline: bool = False
    tier: Tier = Tier.DEFAULT

    @property
    def shape(self) -> str:
        return f"B{self.B} I{self.I} H{self.H}"

    @property
    def gflop(self) -> float:
        return cases.gflop(self.cell, self.B, self.I, self.H)

    def build(self, setting: Setting = ON_CPU) -> Subject:
        theirs = getattr(nn, f"{self.cell}Cell")(self.I, self.H).eval()
        ours = getattr(fusedrnn, f"{self.cell}Cell")(self.I, self.H).eval()
        ours.load_state_dict(theirs.state_dict())
        for module in (theirs, ours):
            module.to(setting.device, setting.dtype)
        x, h, c = (
            torch.randn(self.B, n).to(setting.device, setting.dtype)
            for n in (self.I, self.H, self.H)
        )
        state = (h, c) if self.cell == "LSTM" else h

        def call(module: nn.Module) -> Call:
            if self.cell == "LSTM":
                return lambda: module(x, state)
            return lambda: (module(x, state),)

        return Subject(call(ours), call(theirs), "random")


def both_steps(base: Layer) -> list[Layer]:
    return [replace(base, step=step) for step in STEPS]


def workloads() -> list[Layer]:
    """The recurrent layers of the two workloads' models."""
    found: list[Layer] = []
    for cell in CELLS:
        for T in (50, 100, 200):
            stack = Layer(
                group="Reuters stack", cell=cell, step="", T=T, B=64, I=128, H=128, L=2,
                tier=Tier.QUICK if T == 50 else Tier.DEFAULT,
            )  # fmt: skip
            found += both_steps(stack)
    for cell in CELLS:
        # One-hot characters come from integers: nobody asks for their gradient.
        layer = Layer(
            group="Time Machine layer", cell=cell, step="", T=35, B=32, I=28, H=256,
            input_grad=False, tier=Tier.QUICK,
        )  # fmt: skip
        found += both_steps(layer)
    return found


def one_row(cell: str, T: int) -> Layer:
    return Layer(
        group="one row", cell=cell, step=INFERENCE, T=T, B=1, I=128, H=128,
        headline=cell == "LSTM", tier=Tier.QUICK,
    )  # fmt: skip


def named() -> list[Layer]:
    """The cases that have a reason of their own."""
    large = Layer(group="large", cell="LSTM", step="", T=50, B=64, I=512, H=512, headline=True)
    larger = replace(large, step=GRADIENTS, T=20, B=128, I=1024, H=1024, headline=False)
    directions = replace(large, group="both directions", T=100, B=32, I=300, H=150, D=2)
    packed = replace(large, group="packed", T=200, I=128, H=128, shortest=10)
    projection = replace(large, group="projection", T=100, I=128, H=256, P=128)
    return [
        *workloads(),
        *(one_row(cell, T) for cell in CELLS for T in (100, 1)),
        *both_steps(large),
        larger,
        *both_steps(directions),
        *both_steps(packed),
        *both_steps(projection),
    ]


def grid() -> list[Layer]:
    """cell x B x H x T, I = H, one layer."""
    return [
        Layer(group=GRID, cell=cell, step=step, T=T, B=B, I=H, H=H, tier=Tier.FULL)
        for cell in CELLS
        for B in (1, 4, 16, 64, 256)
        for H in (16, 64, 128, 256, 512, 1024)
        for T in (1, 10, 100, 500)
        for step in STEPS
    ]
