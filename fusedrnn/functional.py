"""RNN, LSTM and GRU as functions of tensors and a flat list of parameters.

The functions turn the inputs that torch.nn accepts (batch-first, unbatched, packed) into the
operator's form (time first, [T, B, I], or packed rows with their batch sizes), and the results
back. Layers, directions, dropout and all checks of shapes are in the operator, in C++, because
every call pays for time spent in Python, however short it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import implements_per_sample_grads
from torch.nn.utils.rnn import PackedSequence

from . import ops as ops  # registers torch.ops.fusedrnn

__all__ = ["gru", "lstm", "rnn"]

Sequences = TypeVar("Sequences", Tensor, PackedSequence, Tensor | PackedSequence)

# The overload itself, not the packet: resolving it again costs 1 us a call.
_stack = torch.ops.fusedrnn.stack.default


def _run(
    mode: str,
    input: Sequences,
    hx: Tensor | None,
    cx: Tensor | None,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Sequences, Tensor, Tensor]:
    options = (params, mode, has_biases, num_layers, dropout, training, bidirectional)
    try:
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, original = input
            if order is not None:
                hx = None if hx is None else hx.index_select(1, order)
                cx = None if cx is None else cx.index_select(1, order)
            output, h_n, c_n = _stack(data, batch_sizes, hx, cx, *options)
            if original is not None:
                h_n = h_n.index_select(1, original)
                c_n = c_n.index_select(1, original) if mode == "LSTM" else c_n
            return PackedSequence(output, batch_sizes, order, original), h_n, c_n

        dim = input.dim()
        if dim == 3:
            if not batch_first:
                return _stack(input, None, hx, cx, *options)  # type: ignore[no-any-return]
            output, h_n, c_n = _stack(input.transpose(0, 1), None, hx, cx, *options)
            return output.transpose(0, 1), h_n, c_n
        check_dim(mode, dim)
        hx = None if hx is None else hx.unsqueeze(1)
        cx = None if cx is None else cx.unsqueeze(1)
        output, h_n, c_n = _stack(input.unsqueeze(1), None, hx, cx, *options)
        return output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1) if mode == "LSTM" else c_n
    except RuntimeError as error:
        refuse_types(error, params)
        raise


class _PerSample:
    """The stack on torch's ExpandedWeights, as ``call_for_per_sample_grads`` makes them.

    They understand torch's own operators and take those to pieces, step by step; so it is theirs.
    """

    @staticmethod
    def apply(
        names: tuple[str, ...],
        func: Any,
        input: Tensor,
        batch_sizes: Tensor | None,
        hx: Tensor | None,
        cx: Tensor | None,
        params: list[Tensor],
        mode: str,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        B = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        rows = num_layers * (2 if bidirectional else 1)
        if hx is None:
            hx = input.new_zeros(rows, B, params[1].shape[1])
        if mode == "LSTM":
            cx = input.new_zeros(rows, B, params[1].shape[0] // 4) if cx is None else cx
            # What wants no gradient may go to oneDNN's layer, which knows no ExpandedWeights.
            input = input if input.requires_grad else input.detach().requires_grad_()
        states: Any = (hx, cx) if mode == "LSTM" else hx
        form = (
            (input, states, params) if batch_sizes is None else (input, batch_sizes, states, params)
        )
        options = (has_biases, num_layers, dropout, training, bidirectional)
        batch_first = (False,) if batch_sizes is None else ()
        output, *final = getattr(torch, mode.lower())(*form, *options, *batch_first)
        return output, final[0], final[-1]


implements_per_sample_grads(_stack)(_PerSample)


def check_dim(mode: str, dim: int) -> None:
    """Raise torch.nn's ValueError unless input is 2-D (unbatched) or 3-D."""
    if dim not in (2, 3):
        name, noun = ("RNN", " tensor") if mode.startswith("RNN") else (mode, "")
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D{noun} instead")


def refuse_types(error: RuntimeError, weights: Sequence[Tensor]) -> None:
    """Raise a TypeError, as torch.nn does, if what an operator refused is a type of its schema."""
    operator, _, what = str(error).partition("\n")[0].partition("() Expected ")
    if what and operator.startswith("fusedrnn::"):
        kinds = ", ".join(sorted({type(weight).__name__ for weight in weights}))
        what = what.replace("type 'list'", f"a list of {kinds}")
        raise TypeError(f"fusedrnn: expected {what}") from None


def refuse_states(name: str, hx: Tensor | Sequence[Tensor]) -> None:
    """Raise what torch.nn raises for states of an LSTM that are not a pair."""
    if isinstance(hx, Tensor):
        raise TypeError(
            f"{name}(): argument 'hx' must be tuple of Tensors, not Tensor: "
            "an LSTM has two states, pass (h, c)"
        )
    raise RuntimeError(f"{name} expects two hidden states")


def lstm(
    input: Sequences,
    hx: Sequence[Tensor] | None,
    params: Sequence[Tensor],
    *,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Sequences, tuple[Tensor, Tensor]]:
    """Multi-layer LSTM over whole sequences (Hochreiter & Schmidhuber, 1997).

    Projects h to P features (Sak et al., 2014) where ``params`` hold weight_hr. L is
    ``num_layers``, D is 2 with ``bidirectional`` and else 1, and P is H without projection.

    Args:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: ``(h_0, c_0)``, [L*D, B, P] and [L*D, B, H] (without B if unbatched), in the
            caller's order of sequences even when packed; zeros when None.
        params: for each layer and direction in turn weight_ih [4H, I or D*P],
            weight_hh [4H, P], with ``has_biases`` bias_ih and bias_hh [4H], and with
            projection weight_hr [P, H]: a module's ``all_weights``, flattened. Gates are
            stacked i, f, g, o.
        has_biases: whether ``params`` hold biases. Default: True.
        num_layers: how many (L). Default: 1.
        dropout: probability of zeroing an output of any layer but the last, applied only
            when ``training``. Default: 0.
        training: whether dropout applies. Default: False.
        bidirectional: whether every layer also runs from each sequence's end. Default: False.
        batch_first: whether input and output are [B, T, ...]. Default: False.
    Returns:
        output [T, B, D*P], laid out as the input was, and ``(h_n, c_n)`` shaped as hx.
    Raises:
        ValueError: input that is not 2-D, 3-D or packed.
        TypeError: an argument of the wrong type.
        RuntimeError: a shape, dtype or device that does not fit, with the one that would.
    """
    if hx is not None and (len(hx) != 2 or isinstance(hx, Tensor)):
        refuse_states("lstm", hx)
    h, c = (None, None) if hx is None else (hx[0], hx[1])
    output, h_n, c_n = _run(
        "LSTM",
        input,
        h,
        c,
        params,
        has_biases,
        num_layers,
        dropout,
        training,
        bidirectional,
        batch_first,
    )
    return output, (h_n, c_n)


def gru(
    input: Sequences,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Sequences, Tensor]:
    """Multi-layer GRU over whole sequences (Cho et al., 2014).

    The reset gate acts after the recurrent product, as in torch.nn and cuDNN.

    Args:
        input: as for :func:`lstm`.
        hx: h_0 [L*D, B, H] (without B if unbatched); zeros when None.
        params: as for :func:`lstm`, with 3H for 4H (gates r, z, n) and no projection.
        has_biases, num_layers, dropout, training, bidirectional, batch_first: as for
            :func:`lstm`.
    Returns:
        output [T, B, D*H], laid out as the input was, and h_n shaped as hx.
    Raises:
        ValueError, TypeError, RuntimeError: as :func:`lstm`.
    """
    return _run(
        "GRU",
        input,
        hx,
        None,
        params,
        has_biases,
        num_layers,
        dropout,
        training,
        bidirectional,
        batch_first,
    )[:2]


def rnn(
    input: Sequences,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Sequences, Tensor]:
    """Multi-layer Elman RNN over whole sequences (Elman, 1990).

    Args:
        input: as for :func:`lstm`.
        hx: h_0 [L*D, B, H] (without B if unbatched); zeros when None.
        params: as for :func:`lstm`, with H for 4H and no projection.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        has_biases, num_layers, dropout, training, bidirectional, batch_first: as for
            :func:`lstm`.
    Returns:
        output [T, B, D*H], laid out as the input was, and h_n shaped as hx.
    Raises:
        ValueError: any other nonlinearity, and as :func:`lstm`.
        TypeError, RuntimeError: as :func:`lstm`.
    """
    return _run(
        rnn_mode(nonlinearity),
        input,
        hx,
        None,
        params,
        has_biases,
        num_layers,
        dropout,
        training,
        bidirectional,
        batch_first,
    )[:2]


def rnn_mode(nonlinearity: str) -> str:
    """The operators' name for an Elman RNN with this nonlinearity."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"RNN_{nonlinearity.upper()}"
