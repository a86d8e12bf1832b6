"""What ours is compared with: torch.nn's layers and cells and, where torch.nn has none of a kind,
the definition step by step in the dtype under test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import reference

TORCHS = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")  # modes of torch.nn
MODES = (*TORCHS, "MGU")
SMOOTH = tuple(mode for mode in MODES if mode != "RNN_RELU")  # whose slopes do not jump
GATES = {"LSTM": 4, "GRU": 3, "MGU": 2, "RNN_TANH": 1, "RNN_RELU": 1}


def by_definition(module: nn.RNNBase, input: Any, hx: Any = None) -> tuple[Any, Any]:
    """What ``module(input, hx)`` means, by the reference."""
    data: Any
    data, batch_sizes, order, original = (
        input if isinstance(input, PackedSequence) else (input, None, None, None)
    )
    states = hx if isinstance(hx, tuple) else (hx,)
    unbatched = batch_sizes is None and data.dim() == 2
    batch_first = module.batch_first and data.dim() == 3
    if unbatched:
        data, states = data.unsqueeze(1), tuple(s if s is None else s.unsqueeze(1) for s in states)
    if batch_first:
        data = data.transpose(0, 1)
    if order is not None:
        states = tuple(s if s is None else s[:, order] for s in states)
    weights = [w for group in module.all_weights for w in group]
    h, c = (*states, None)[:2]
    y: Any
    y, *final = reference.stack(
        data,
        batch_sizes,
        h,
        c,
        weights,
        module.mode,
        module.bias,
        module.num_layers,
        module.dropout,
        module.training,
        module.bidirectional,
    )
    final = final[:2] if module.mode == "LSTM" else final[:1]
    if original is not None:
        final = [s[:, original] for s in final]
    if unbatched:
        y, final = y.squeeze(1), [s.squeeze(1) for s in final]
    if batch_first:
        y = y.transpose(0, 1)
    if batch_sizes is not None:
        y = PackedSequence(y, batch_sizes, order, original)
    return y, tuple(final) if module.mode == "LSTM" else final[0]


class MGU(fusedrnn.MGU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        if not isinstance(input, PackedSequence) and 0 in input.shape[:1]:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return by_definition(self, input, hx)


class MGUCell(fusedrnn.MGUCell):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        weights: Any = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return reference.mgu_cell(input, h, *weights)


THEIRS = SimpleNamespace(
    RNN=nn.RNN,
    LSTM=nn.LSTM,
    GRU=nn.GRU,
    MGU=MGU,
    RNNCell=nn.RNNCell,
    LSTMCell=nn.LSTMCell,
    GRUCell=nn.GRUCell,
    MGUCell=MGUCell,
)


def is_ours(module: nn.Module) -> bool:
    """Whether fusedrnn computes it."""
    return type(module).__module__.partition(".")[0] == "fusedrnn"


def name_of(mode: str) -> str:
    """The name of a mode's class."""
    return mode.partition("_")[0]
