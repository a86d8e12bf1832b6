"""explain(): which kernel runs a module on an input, how it is cut up, and why.

The choice is made in C++, by the same function that the kernels call; this only asks it
about each layer of a module and prints the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import ops
from .functional import rnn_mode


@dataclass(frozen=True)
class LayerPlan:
    """How one layer runs. Sizes in bytes; rows of the batch; steps of time.

    ``panel`` is the block of weights a core works on, ``rows`` the batch rows that pass it
    together, ``lanes`` the hidden units in a vector, ``stretch`` the steps whose weight
    gradients are summed at a time, ``weights`` whether the forward pass packs the weights into
    panels first, ``rejected`` the other candidates, each with its reason.
    """

    T: int
    B: int
    I: int  # noqa: E741 -- the field's symbol for the input size
    H: int
    P: int
    D: int
    device: str
    kernel: str
    isa: str
    threads: int
    split: str
    lanes: int
    panel: str
    rows: int
    stretch: int
    weights: str
    workspace_bytes: int
    reserve_bytes: int
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        projected = f" P{self.P}" if self.P else ""
        lines = [
            f"T{self.T} B{self.B} I{self.I} H{self.H}{projected} D{self.D}",
            f"kernel     {self.kernel} ({self.device}, {self.isa}, {self.lanes} lanes): "
            f"{self.reason}",
            f"threads    {self.threads}, split: {self.split}",
            f"blocking   {self.panel}, {self.rows} rows, {self.stretch} steps a stretch, "
            f"weights {self.weights}",
            f"memory     {_bytes(self.workspace_bytes)} workspace, "
            f"{_bytes(self.reserve_bytes)} kept for backward",
        ]
        lines += [f"not taken  {candidate}: {reason}" for candidate, reason in self.rejected]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Plan:
    """How a module runs on an input: its mode and dtype, and a :class:`LayerPlan` per layer."""

    mode: str
    dtype: str
    packed: bool
    training: bool
    layers: tuple[LayerPlan, ...]

    def __str__(self) -> str:
        packed = ", packed" if self.packed else ""
        purpose = "forward and backward" if self.training else "forward only"
        lines = [f"{self.mode} {self.dtype}{packed}, {purpose}"]
        # Layers above the first are alike; show a run of equal ones once.
        first = 0
        for i, layer in enumerate(self.layers):
            if i + 1 < len(self.layers) and self.layers[i + 1] == layer:
                continue
            name = f"layer {first}" if first == i else f"layers {first}-{i}"
            lines.append(f"{name}: {layer}")
            first = i + 1
        return "\n".join(lines)


def _bytes(n: int) -> str:
    return f"{n / 1024:.1f} KiB" if n < 1 << 20 else f"{n / (1 << 20):.1f} MiB"


def explain(
    module: nn.Module, input: Tensor | PackedSequence, hx: Tensor | Sequence[Tensor] | None = None
) -> Plan:
    """The plan that ``module(input, hx)`` would follow now; nothing is computed.

    It depends on torch.get_num_threads(), on autocast and on whether gradients would be kept.

    Args:
        module: a fusedrnn module or cell (or torch.nn's: what would replace it).
        input: as the module takes it.
        hx: as the module takes it; it matters only if it alone requires grad.
    Raises:
        TypeError: a module that is not a recurrent one.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    states = [hx] if isinstance(hx, Tensor) else list(hx or ())
    tensors = [data, *states, *module.parameters()]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    mode, L, D, P = _stack(module)
    batch_sizes: list[int] | None = None
    if isinstance(input, PackedSequence):
        batch_sizes = input.batch_sizes.tolist()
        T, B = len(batch_sizes), batch_sizes[0]
    elif isinstance(module, nn.RNNCellBase):
        T, B = 1, input.size(0) if input.dim() == 2 else 1
    else:
        T, B = (input.size(0), input.size(1)) if input.dim() == 3 else (input.size(0), 1)
        if input.dim() == 3 and module.batch_first:
            T, B = B, T
    H: int = module.hidden_size  # type: ignore[assignment]
    dtype = str(_dtype(data)).removeprefix("torch.")
    threads = torch.get_num_threads()
    layers = []
    for i in range(L):
        width: int = D * (P or H) if i else module.input_size  # type: ignore[assignment]
        plan = ops.explain(mode, dtype, T, B, width, H, P, D, batch_sizes, training, threads)
        plan["rejected"] = tuple((str(name), str(why)) for name, why in plan["rejected"])
        layers.append(LayerPlan(T=T, B=B, I=width, H=H, P=P, D=D, **plan))
    return Plan(mode, dtype, batch_sizes is not None, training, tuple(layers))


def _dtype(input: Tensor) -> torch.dtype:
    """What autocast makes of the input's dtype, as the operators do."""
    device = input.device.type
    applies = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if applies and input.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return input.dtype


def _stack(module: nn.Module) -> tuple[str, int, int, int]:
    """Mode, L, D and P of a recurrent module."""
    if isinstance(module, nn.RNNBase):
        D = 2 if module.bidirectional else 1
        return module.mode, module.num_layers, D, module.proj_size
    if isinstance(module, nn.RNNCell):
        return rnn_mode(module.nonlinearity), 1, 1, 0
    if isinstance(module, nn.RNNCellBase):
        return "LSTM" if isinstance(module, nn.LSTMCell) else "GRU", 1, 1, 0
    raise TypeError(f"module must be an RNN, LSTM, GRU or a cell, got {type(module).__name__}")
