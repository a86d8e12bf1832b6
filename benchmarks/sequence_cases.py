"""Lengths, resets and checkpoints of a layer, each beside the other ways to do the same.

Every side has the same weights and takes the same input, and gives the same output, h_n and
gradients. What a side needs besides the call is part of it: packing and unpacking, the mask, the
loop over steps. Batches are what one has: lengths drawn from 1..T and not sorted, resets drawn for
each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fusedrnn
from benchmarks import cases
from benchmarks.cases import GRADIENTS, INFERENCE, Call, Side, Tier
from benchmarks.report.sequences import OURS, Aim

Forward = Callable[[Tensor], tuple[Tensor, ...]]  # x [T, B, I] -> output [T, B, H], h_n [B, H]

PADDED, PACKED = "fusedrnn, padded", "fusedrnn, packed"
TORCH_PACKED, TORCH_MASKED = "torch.nn, packed", "torch.nn, padded with mask"
WITHOUT_RESETS, CELLS, STEPS = (
    "fusedrnn, without resets",
    "loop over torch.nn's cell",
    "torch.nn's layer, a step a call",
)
WITHOUT, TORCH, PIECES = (
    "fusedrnn, all kept",
    "torch.nn, all kept",
    "torch.nn, torch.utils.checkpoint",
)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What the three kinds share: one layer, its weights and its input."""

    cell: str
    step: str = GRADIENTS
    T: int = 200
    B: int = 64
    I: int = 128  # noqa: E741
    H: int = 128
    tier: Tier = Tier.FULL
    headline: bool = False
    group: str = ""

    @property
    def shape(self) -> str:
        return f"T{self.T} B{self.B} I{self.I} H{self.H}"

    @property
    def steps(self) -> int:
        """How many (time, row) pairs are computed."""
        return self.T * self.B

    @property
    def gflop(self) -> float:
        return cases.gflop(self.cell, self.steps, self.I, self.H, step=self.step)

    @property
    def aims(self) -> list[Aim]:
        return []

    def drawn(self) -> torch.Generator:
        """Lengths and resets are the same in every process."""
        return torch.Generator().manual_seed(0)

    def layers(self) -> tuple[Any, Any]:
        """Ours and torch.nn's, with the same weights."""
        theirs = getattr(nn, self.cell)(self.I, self.H)
        ours = getattr(fusedrnn, self.cell)(self.I, self.H)
        ours.load_state_dict(theirs.state_dict())
        training = self.step == GRADIENTS
        return ours.train(training), theirs.train(training)

    def call(self, module: nn.Module, forward: Forward, x: Tensor, slope: Tensor) -> Call:
        """Forward, and when training the gradients of the input and all weights."""
        if self.step == INFERENCE:
            return lambda: forward(x)
        leaf = x.detach().requires_grad_()
        wanted = [leaf, *module.parameters()]

        def both() -> tuple[Tensor, ...]:
            results = forward(leaf)
            return (*results, *torch.autograd.grad(results[0], wanted, slope))

        return both

    def ways(self, ours: Any, theirs: Any) -> Iterator[tuple[str, nn.Module, Forward, bool]]:
        """Ours first: its name, whose weights it has, its forward, and whether its results are to
        be those of ours."""
        raise NotImplementedError

    def sides(self) -> tuple[Call, list[Side]]:
        """Our call, and every other way as a side."""
        ours, *others = self.all_sides()
        return ours.call, others

    def all_sides(self) -> list[Side]:
        """Ours first; all of one input and one gradient of the output."""
        generator = self.drawn()
        x = torch.randn(self.T, self.B, self.I, generator=generator)
        slope = torch.randn(self.T, self.B, self.H, generator=generator) * self.weight()
        found = []
        for name, module, forward, alike in self.ways(*self.layers()):
            call = self.call(module, forward, x, slope)
            found.append(Side(name, call, call if alike else None))
        return found

    def weight(self) -> Tensor | float:
        """What the gradient of the output is multiplied by."""
        return 1.0


def last(state: Any) -> Tensor:
    """h_n [B, H] of what a layer of one direction returns."""
    h = state[0] if isinstance(state, tuple) else state
    return h[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Lengths(Sequences):
    """`lengths=` beside packing and beside padding."""

    group: str = "lengths"

    @property
    def shape(self) -> str:
        return f"T1..{self.T} B{self.B} I{self.I} H{self.H}"

    @property
    def lengths(self) -> Tensor:
        """[B], each of 1..T alike, in no order; the first is T."""
        found = torch.randint(1, self.T + 1, (self.B,), generator=self.drawn())
        found[0] = self.T
        return found

    @property
    def steps(self) -> int:
        return int(self.lengths.sum())

    @property
    def aims(self) -> list[Aim]:
        padding = self.T * self.B / self.steps
        return [
            Aim(PACKED, most=1.05),
            Aim(TORCH_PACKED, least=5.0),
            Aim(PADDED, least=0.8 * padding),
        ]

    def mask(self) -> Tensor:
        """[T, B, 1], 1 up to each row's end."""
        return (torch.arange(self.T)[:, None] < self.lengths).float().unsqueeze(-1)

    def weight(self) -> Tensor | float:
        return self.mask()

    def ways(self, ours: Any, theirs: Any) -> Iterator[tuple[str, nn.Module, Forward, bool]]:
        lengths, mask, T = self.lengths, self.mask(), self.T
        ends = lengths - 1, torch.arange(self.B)

        def whole(x: Tensor) -> tuple[Tensor, ...]:
            output, state = ours(x, lengths=lengths)
            return output, last(state)

        def packed(layer: Any) -> Forward:
            def forward(x: Tensor) -> tuple[Tensor, ...]:
                output, state = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
                return pad_packed_sequence(output, total_length=T)[0], last(state)

            return forward

        def padded(x: Tensor) -> tuple[Tensor, ...]:
            output, state = ours(x)
            return output, last(state)

        def masked(x: Tensor) -> tuple[Tensor, ...]:
            output, _ = theirs(x)
            return output * mask, output[ends]

        yield OURS, ours, whole, True
        yield PACKED, ours, packed(ours), True
        yield PADDED, ours, padded, False  # what lies past an end is not what lengths= gives
        yield TORCH_PACKED, theirs, packed(theirs), True
        yield TORCH_MASKED, theirs, masked, True


@dataclass(frozen=True, kw_only=True)
class Resets(Sequences):
    """`resets=` beside none, and beside loops over the steps."""

    group: str = "resets"
    p: float = 0.05  # that the state is cut before a step

    @property
    def shape(self) -> str:
        return f"{super().shape} p{self.p:g}"

    @property
    def aims(self) -> list[Aim]:
        return [Aim(WITHOUT_RESETS, most=1.03)]

    def ways(self, ours: Any, theirs: Any) -> Iterator[tuple[str, nn.Module, Forward, bool]]:
        resets = torch.rand(self.T, self.B, generator=self.drawn()) < self.p
        kept = (~resets).float().unsqueeze(-1)  # [T, B, 1]
        cell = getattr(nn, f"{self.cell}Cell")(self.I, self.H)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in theirs.state_dict().items()})

        def with_resets(x: Tensor) -> tuple[Tensor, ...]:
            output, state = ours(x, resets=resets)
            return output, last(state)

        def without(x: Tensor) -> tuple[Tensor, ...]:
            output, state = ours(x)
            return output, last(state)

        def cells(x: Tensor) -> tuple[Tensor, ...]:
            state, outputs = zeros(self.cell, x.new_zeros(self.B, self.H)), []
            for at, keep in zip(x, kept, strict=True):
                state = cell(at, cut(state, keep))
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs), outputs[-1]

        def steps(x: Tensor) -> tuple[Tensor, ...]:
            state, outputs = zeros(self.cell, x.new_zeros(1, self.B, self.H)), []
            for at, keep in zip(x, kept, strict=True):
                output, state = theirs(at.unsqueeze(0), cut(state, keep.unsqueeze(0)))
                outputs.append(output)
            return torch.cat(outputs), last(state)

        yield OURS, ours, with_resets, True
        yield WITHOUT_RESETS, ours, without, False
        yield CELLS, cell, cells, True
        yield STEPS, theirs, steps, True


def zeros(cell: str, h: Tensor) -> Any:
    return (h, h) if cell == "LSTM" else h


def cut(state: Any, keep: Tensor) -> Any:
    """The state, zeroed where keep is 0."""
    return tuple(keep * s for s in state) if isinstance(state, tuple) else keep * state


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Sequences):
    """`checkpoint_every=` beside keeping all, and beside torch's own checkpoints of pieces."""

    group: str = "checkpoints"
    every: int = 32
    long: bool = False  # too large for the sides that keep all

    @property
    def shape(self) -> str:
        return f"{super().shape} k{self.every}"

    @property
    def aims(self) -> list[Aim]:
        return [] if self.long else [Aim(WITHOUT, most=1.45)]

    def ways(self, ours: Any, theirs: Any) -> Iterator[tuple[str, nn.Module, Forward, bool]]:
        def kept(x: Tensor) -> tuple[Tensor, ...]:
            output, state = ours(x, checkpoint_every=self.every)
            return output, last(state)

        def all_kept(layer: Any) -> Forward:
            def forward(x: Tensor) -> tuple[Tensor, ...]:
                output, state = layer(x)
                return output, last(state)

            return forward

        def pieces(x: Tensor) -> tuple[Tensor, ...]:
            outputs, state = [], None
            for piece in x.split(self.every):
                output, state = checkpoint(theirs, piece, state, use_reentrant=False)
                outputs.append(output)
            return torch.cat(outputs), last(state)

        yield OURS, ours, kept, True
        if not self.long:
            yield WITHOUT, ours, all_kept(ours), True
            yield TORCH, theirs, all_kept(theirs), True
        yield PIECES, theirs, pieces, True


def lengths() -> Iterable[Lengths]:
    tiers = {("LSTM", INFERENCE): Tier.QUICK, ("LSTM", GRADIENTS): Tier.DEFAULT}
    for cell in ("LSTM", "GRU"):
        for step in (GRADIENTS, INFERENCE):
            yield Lengths(cell=cell, step=step, tier=tiers.get((cell, step), Tier.FULL))


def resets() -> Iterable[Resets]:
    usual = ("LSTM", 0.05, GRADIENTS)
    for cell in ("LSTM", "GRU"):
        for p in (0.005, 0.05):
            for step in (GRADIENTS, INFERENCE):
                tier = Tier.DEFAULT if (cell, p, step) == usual else Tier.FULL
                yield Resets(cell=cell, step=step, p=p, tier=tier)


SHORT = Checkpoints(cell="LSTM", T=256, B=8, I=256, H=256, every=16, tier=Tier.QUICK)
LONG = Checkpoints(cell="LSTM", T=2000, B=8, I=512, H=512, every=45)
# Its gates would take 9.8 GB: only what recomputes them has room. Minutes a call.
HUGE = replace(LONG, T=100_000, every=316, long=True)

ALL: list[Sequences] = [*lengths(), *resets(), SHORT, LONG, replace(LONG, cell="GRU")]
