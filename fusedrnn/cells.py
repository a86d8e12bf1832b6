"""RNNCell, LSTMCell and GRUCell as modules that take the place of torch.nn's.

They inherit everything except the computation from torch.nn's cells. This file holds forward:
torch.nn's checks in torch.nn's order and words, then one operator call that runs the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._ops.cells import CELLS
from ._ops.refusals import refuse_states, refuse_types, rnn_mode
from .tools import Tools, as_leaf

_cell = torch.ops.fusedrnn.cell.default
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def step(
    cell: nn.RNNCellBase, mode: str, input: Tensor, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of any cell, batched or not; c, given and returned, counts only where the cell
    has one."""
    batched = input.dim() == 2
    if not batched:
        input = input.unsqueeze(0)
    if input.size(1) != cell.input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {cell.input_size}"
        )
    shape = (input.size(0), cell.hidden_size)
    if h is None:
        h = input.new_zeros(shape)
        c = h if CELLS[mode].has_c else None
    else:
        if not batched:
            h, c = h.unsqueeze(0), None if c is None else c.unsqueeze(0)
        if h.shape != shape:
            _refuse_cell_state(cell, input, h, 0)
        if c is not None and c.shape != shape:
            _refuse_cell_state(cell, input, c, 1)
    weights = _weights(cell)
    try:
        h, c = _cell(input, h, c, *weights, mode)
    except RuntimeError as error:
        refuse_types(error, weights)
        raise
    return (h, c) if batched else (h.squeeze(0), c.squeeze(0))


def _weights(cell: nn.RNNCellBase) -> list[Any]:
    """The weights, read from ``_parameters``: as an attribute of the module each would take 0.4 us,
    of the 10 us of a step. A subclass may replace a parameter by a property of the same name."""
    own, kind = cell._parameters, type(cell)
    if kind in _PLAIN:
        try:
            return [own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]]
        except KeyError:
            pass
    return [
        own[name] if name in own and not hasattr(kind, name) else getattr(cell, name)
        for name in _WEIGHTS
    ]


def _refuse_cell_state(cell: nn.RNNCellBase, input: Tensor, state: Tensor, i: int) -> None:
    if state.size(0) != input.size(0):
        raise RuntimeError(
            f"Input batch size {input.size(0)} doesn't match hidden{i} batch size {state.size(0)}"
        )
    if state.size(1) != cell.hidden_size:
        raise RuntimeError(
            f"hidden{i} has inconsistent hidden_size: got {state.size(1)}, "
            f"expected {cell.hidden_size}"
        )


def check_cell_dim(cell: str, name: str, value: Tensor) -> None:
    if value.dim() not in (1, 2):
        raise ValueError(f"{cell}: Expected {name} to be 1D or 2D, got {value.dim()}D instead")


class RNNCell(Tools, nn.RNNCell):
    """One Elman step (Elman, 1990), in place of :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size: I and H.
        bias: whether there are biases. Default: True.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [B, I] or unbatched [I].
        hx: [B, H] or [H]; zeros when None.
    Outputs:
        h [B, H] or [H].
    Raises:
        ValueError: input or hx that is neither 1-D nor 2-D.
        TypeError: an argument of the wrong type.
        RuntimeError: any other nonlinearity, or a shape that does not fit.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advance one step; see the class for shapes."""
        # Here TorchScript stops: call fusedrnn.to_torch(model) first.
        if type(input) is not Tensor and (node := as_leaf(self, input, hx)) is not None:
            return node  # type: ignore[return-value]
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        check_cell_dim("RNNCell", "input", input)
        if hx is not None:
            check_cell_dim("RNNCell", "hidden", hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        mode = rnn_mode(self.nonlinearity)
        return step(self, mode, input, hx, None)[0]

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward


class LSTMCell(Tools, nn.LSTMCell):
    """One LSTM step (Hochreiter & Schmidhuber, 1997), in place of :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size: I and H.
        bias: whether there are biases. Default: True.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [B, I] or unbatched [I].
        hx: (h, c), each [B, H] or [H]; zeros when None.
    Outputs:
        (h, c), each [B, H] or [H].
    Raises:
        ValueError: input, h or c that is neither 1-D nor 2-D.
        TypeError: hx that is one tensor, or an argument of the wrong type.
        RuntimeError: hx that is not a pair, or a shape that does not fit.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advance one step; see the class for shapes."""
        # Here TorchScript stops: call fusedrnn.to_torch(model) first.
        if type(input) is not Tensor and (node := as_leaf(self, input, hx)) is not None:
            return node  # type: ignore[return-value]
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        check_cell_dim("LSTMCell", "input", input)
        if hx is None:
            return step(self, "LSTM", input, None, None)
        for i, value in enumerate(hx):
            if value.dim() not in (1, 2):
                check_cell_dim("LSTMCell", f"hx[{i}]", value)
        if input.dim() == 2 and (len(hx) != 2 or isinstance(hx, Tensor)):
            refuse_states("lstm_cell", hx)
        return step(self, "LSTM", input, hx[0], hx[1])

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward


class GRUCell(Tools, nn.GRUCell):
    """One GRU step (Cho et al., 2014), in place of :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size: I and H.
        bias: whether there are biases. Default: True.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [B, I] or unbatched [I].
        hx: [B, H] or [H]; zeros when None.
    Outputs:
        h [B, H] or [H].
    Raises:
        ValueError: input or hx that is neither 1-D nor 2-D.
        TypeError: an argument of the wrong type.
        RuntimeError: a shape that does not fit.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advance one step; see the class for shapes."""
        # Here TorchScript stops: call fusedrnn.to_torch(model) first.
        if type(input) is not Tensor and (node := as_leaf(self, input, hx)) is not None:
            return node  # type: ignore[return-value]
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        check_cell_dim("GRUCell", "input", input)
        if hx is not None:
            check_cell_dim("GRUCell", "hidden", hx)
        return step(self, "GRU", input, hx, None)[0]

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward


_PLAIN = frozenset((RNNCell, LSTMCell, GRUCell))
