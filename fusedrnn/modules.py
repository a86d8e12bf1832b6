"""RNN, LSTM, GRU and their cells as modules that take the place of torch.nn's.

Parameters, state_dict, initial values, pickling and repr are inherited: sequence modules
from nn.RNNBase, not from nn.LSTM and its sisters, because TorchDynamo refuses to trace any
instance of those; cells from torch.nn's cells. What is written here is the constructors,
spelt out so that they can be introspected, and forward: torch.nn's checks in torch.nn's
order and words, then one call that runs every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from .functional import Sequences

_cell = torch.ops.fusedrnn.cell.default


class _Recurrent(nn.RNNBase):
    """What RNN, LSTM and GRU share."""

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read each weight where it lies, so there is nothing to gather."""

    def _current_weights(self) -> list[Tensor]:
        """The weights as they are now, in torch's order."""
        # Pruning, parametrizations, functional_call and replicas swap tensors between calls.
        # Where none was swapped this finds out at a tenth of _weights_have_changed's cost.
        names, weights = self._flat_weights_names, self._flat_weights
        same = all(map(is_, map(self._parameters.get, names), weights))
        if not same and self._weights_have_changed():  # type: ignore[no-untyped-call]
            weights = [getattr(self, name) for name in names]
        return weights  # type: ignore[return-value]

    def _check(self, input: Tensor | PackedSequence, hx: Any) -> None:
        """Raise what torch.nn raises for arguments that do not fit."""
        if isinstance(input, PackedSequence):
            data, batch_sizes = input.data, input.batch_sizes
        else:
            data, batch_sizes, dim = input, None, input.dim()
            if dim != 3:
                functional.check_dim(self.mode, dim)
                data = input.unsqueeze(0 if self.batch_first else 1)
            if hx is not None:
                hx = self._check_hidden_dim(hx, dim)
        # A tracer cannot know the batch of packed rows; the operator compares it when it runs.
        if hx is None or (batch_sizes is not None and torch.compiler.is_compiling()):
            self.check_input(data, batch_sizes)
        else:
            self.check_forward_args(data, hx, batch_sizes)

    def _check_hidden_dim(self, hx: Any, dim: int) -> Any:
        """Check that hx is batched as a ``dim``-D input is; return it with a batch dimension."""
        if hx.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx.dim()}-D tensor"
            )
        return hx if dim == 3 else hx.unsqueeze(1)

    def _options(self) -> dict[str, Any]:
        return {
            "has_biases": self.bias,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
            "training": self.training,
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
        }


def _hands_on(input: Tensor | PackedSequence) -> bool:
    """Whether nn.LSTM hands hx on as it is; to reshape or sort it, it picks the first two."""
    if isinstance(input, PackedSequence):
        return input.sorted_indices is None
    return input.dim() == 3


def _refuse_states(name: str, hx: Sequence[Tensor]) -> None:
    """Raise what torch.nn raises for states of an LSTM that are not a pair."""
    if isinstance(hx, Tensor):
        raise TypeError(f"{name}(): argument 'hx' must be tuple of Tensors, not Tensor")
    raise RuntimeError(f"{name} expects two hidden states")


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(_Recurrent):
    """Multi-layer Elman RNN (Elman, 1990), in place of :class:`torch.nn.RNN`.

    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L, each layer reading the one below. Default: 1.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        device, dtype: of the parameters. Default: torch's.
        proj_size: refused, unless None: only :class:`LSTM` projects. Default: None.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError: on an argument out of range; in forward, on an input that is neither 2-D nor
            3-D, or that has another dtype than the weights.
        TypeError: on an argument of the wrong type.
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            functional.rnn_mode(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity

    def forward(self, input: Sequences, hx: Tensor | None = None) -> tuple[Sequences, Tensor]:
        """Run all layers over whole sequences; see the class for shapes."""
        weights = self._current_weights()
        self._check(input, hx)
        return functional.rnn(input, hx, weights, nonlinearity=self.nonlinearity, **self._options())


class LSTM(_Recurrent):
    """Multi-layer LSTM (Hochreiter & Schmidhuber, 1997), in place of :class:`torch.nn.LSTM`.

    i, f, o = sigmoid(...) and g = tanh(...) of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;
    c_t = f c_{t-1} + i g; h_t = o tanh(c_t), times W_hr with projection (Sak et al., 2014).

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the cell state.
        num_layers: L, each layer reading the one below. Default: 1.
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        proj_size: P < H, features that h is projected to; 0 for none (then P = H).
            Default: 0.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: (h_0, c_0), [L*D, B, P] and [L*D, B, H], without B if unbatched; zeros when None.
    Outputs:
        output [T, B, D*P], laid out as the input, and (h_n, c_n) shaped as hx.
    Raises:
        ValueError: on an argument out of range; in forward, on an input that is neither 2-D nor
            3-D, or that has another dtype than the weights.
        TypeError: on an argument of the wrong type.
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    # What nn.LSTM has beyond nn.RNNBase; subclasses call these.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _check_hidden_dim(self, hx: Any, dim: int) -> Any:
        h, c = hx[0], hx[1]
        if h.dim() != dim or c.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D "
                f"but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )
        return (h, c) if dim == 3 else (h.unsqueeze(1), c.unsqueeze(1))

    def forward(
        self, input: Sequences, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Sequences, tuple[Tensor, Tensor]]:
        """Run all layers over whole sequences; see the class for shapes."""
        weights = self._current_weights()
        self._check(input, hx)
        if hx is not None and (len(hx) != 2 or isinstance(hx, Tensor)) and _hands_on(input):
            _refuse_states("lstm", hx)
        return functional.lstm(input, hx, weights, **self._options())


class GRU(_Recurrent):
    """Multi-layer GRU (Cho et al., 2014), in place of :class:`torch.nn.GRU`.

    r, z = sigmoid(...) of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh;
    n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)); h_t = (1 - z) n + z h_{t-1}.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L, each layer reading the one below. Default: 1.
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        device, dtype: of the parameters. Default: torch's.
        proj_size: refused, unless None: only :class:`LSTM` projects. Default: None.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError: on an argument out of range; in forward, on an input that is neither 2-D nor
            3-D, or that has another dtype than the weights.
        TypeError: on an argument of the wrong type.
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Sequences, hx: Tensor | None = None) -> tuple[Sequences, Tensor]:
        """Run all layers over whole sequences; see the class for shapes."""
        weights = self._current_weights()
        self._check(input, hx)
        return functional.gru(input, hx, weights, **self._options())


def _step(
    cell: nn.RNNCellBase, mode: str, input: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """One step of any cell, batched or not; the second result counts only for LSTM."""
    batched = input.dim() == 2
    if not batched:
        input = input.unsqueeze(0)
    if input.size(1) != cell.input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {cell.input_size}"
        )
    if states is None:
        h = c = input.new_zeros(input.size(0), cell.hidden_size)
    else:
        states = states if batched else [state.unsqueeze(0) for state in states]
        for i, state in enumerate(states):
            _check_cell_state(cell, input, state, i)
        h, c = states[0], states[-1]
    h, c = _cell(
        input,
        h,
        c if mode == "LSTM" else None,
        cell.weight_ih,
        cell.weight_hh,
        cell.bias_ih,
        cell.bias_hh,
        mode,
    )
    return (h, c) if batched else (h.squeeze(0), c.squeeze(0))


def _check_cell_state(cell: nn.RNNCellBase, input: Tensor, state: Tensor, i: int) -> None:
    if state.size(0) != input.size(0):
        raise RuntimeError(
            f"Input batch size {input.size(0)} doesn't match hidden{i} batch size {state.size(0)}"
        )
    if state.size(1) != cell.hidden_size:
        raise RuntimeError(
            f"hidden{i} has inconsistent hidden_size: got {state.size(1)}, "
            f"expected {cell.hidden_size}"
        )


def _check_cell_dim(cell: str, name: str, value: Tensor) -> None:
    if value.dim() not in (1, 2):
        raise ValueError(f"{cell}: Expected {name} to be 1D or 2D, got {value.dim()}D instead")


class RNNCell(nn.RNNCell):
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
        RuntimeError: any other nonlinearity, or a shape that does not fit.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advance one step; see the class for shapes."""
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        _check_cell_dim("RNNCell", "input", input)
        if hx is not None:
            _check_cell_dim("RNNCell", "hidden", hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        mode = functional.rnn_mode(self.nonlinearity)
        return _step(self, mode, input, None if hx is None else (hx,))[0]


class LSTMCell(nn.LSTMCell):
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
        TypeError: hx that is one tensor.
        RuntimeError: hx that is not a pair, or a shape that does not fit.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Advance one step; see the class for shapes."""
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        _check_cell_dim("LSTMCell", "input", input)
        if hx is not None:
            for i, value in enumerate(hx):
                _check_cell_dim("LSTMCell", f"hx[{i}]", value)
            if input.dim() == 2 and (len(hx) != 2 or isinstance(hx, Tensor)):
                _refuse_states("lstm_cell", hx)
            hx = (hx[0], hx[1])
        return _step(self, "LSTM", input, hx)


class GRUCell(nn.GRUCell):
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
        RuntimeError: a shape that does not fit.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advance one step; see the class for shapes."""
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            return super().forward(input, hx)
        _check_cell_dim("GRUCell", "input", input)
        if hx is not None:
            _check_cell_dim("GRUCell", "hidden", hx)
        return _step(self, "GRU", input, None if hx is None else (hx,))[0]
