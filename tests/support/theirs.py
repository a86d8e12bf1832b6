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


def by_definition(
    module: nn.RNNBase,
    input: Any,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Any = None,
    return_states: bool | str = False,
    checkpoint_every: int | str | None = None,
) -> Any:
    """What ``module(input, hx, lengths=...)`` means, by the reference."""
    data: Any
    data, batch_sizes, order, original = (
        input if isinstance(input, PackedSequence) else (input, None, None, None)
    )
    has_c = module.mode == "LSTM"
    states, others = (s if isinstance(s, tuple) else (s, None) for s in (hx, reset_state))
    unbatched = batch_sizes is None and data.dim() == 2
    batch_first = module.batch_first and data.dim() == 3
    if unbatched:  # a batch of one
        data, resets = data.unsqueeze(1), None if resets is None else resets.unsqueeze(1)
        lengths = None if lengths is None else lengths.unsqueeze(0)
        states, others = (
            tuple(None if s is None else s.unsqueeze(1) for s in pair) for pair in (states, others)
        )
    if batch_first:
        data, resets = data.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    if order is not None:
        states = tuple(None if s is None else s[:, order] for s in states)
    weights = [w for group in module.all_weights for w in group]
    dropout = (module.num_layers, module.dropout, module.training)
    asked = 2 if return_states == "all" else int(return_states)
    y: Any
    y, *final, each = reference.stack(
        *(data, batch_sizes, *states, weights, module.mode, module.bias, *dropout),
        *(module.bidirectional, lengths, resets, *others, asked),
    )

    def laid_out(v: Tensor) -> Any:
        """Values of every step, [T, B, ...], as the input is laid out."""
        if batch_sizes is not None:
            return PackedSequence(v, batch_sizes, order, original)
        return v.squeeze(-2) if unbatched else v.transpose(-3, -2) if batch_first else v

    final = final[: 1 + has_c]
    if original is not None:
        final = [s[:, original] for s in final]
    if unbatched:
        final = [s.squeeze(1) for s in final]
    results = (laid_out(y), tuple(final) if has_c else final[0])
    if not asked:
        return results
    if asked == 2 and batch_sizes is not None:
        return *results, tuple(map(laid_out, each))
    return *results, laid_out(each)


class MGU(fusedrnn.MGU):
    def forward(self, input: Any, hx: Any = None, **keywords: Any) -> Any:
        along = int(self.batch_first and not isinstance(input, PackedSequence) and input.dim() == 3)
        if not isinstance(input, PackedSequence) and not input.size(along):
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return by_definition(self, input, hx, **keywords)


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
