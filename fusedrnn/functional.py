"""RNN, LSTM, GRU and MGU as functions of tensors and a flat list of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import ops as ops  # registers torch.ops.fusedrnn
from ._ops import per_sample as per_sample
from ._ops.course import course_of
from ._ops.refusals import rnn_mode, two_states
from ._ops.stack import Flags, Sequences, run, with_states

__all__ = ["gru", "lstm", "mgu", "rnn"]


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
    **keywords: Any,
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
        keywords: lengths [B], resets [T, B], reset_state, return_states and checkpoint_every, as
            for :meth:`fusedrnn.GRU.forward`. Default: none of them.
    Returns:
        output [T, B, D*P], laid out as the input was, and ``(h_n, c_n)`` shaped as hx.
    Raises:
        ValueError: input that is not 2-D, 3-D or packed.
        TypeError: an argument of the wrong type.
        RuntimeError: a shape, dtype or device that does not fit, with the one that would.
    """
    flags = Flags(has_biases, num_layers, dropout, training, bidirectional)
    course = course_of("LSTM", keywords)
    output, h_n, c_n, kept = run("LSTM", input, two_states(hx), params, flags, batch_first, course)
    return with_states(course, (output, (h_n, c_n)), kept)  # type: ignore[no-any-return]


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
    **keywords: Any,
) -> tuple[Sequences, Tensor]:
    """Multi-layer GRU over whole sequences (Cho et al., 2014).

    The reset gate acts after the recurrent product, as in torch.nn and cuDNN.

    Args:
        input: as for :func:`lstm`.
        hx: h_0 [L*D, B, H] (without B if unbatched); zeros when None.
        params: as for :func:`lstm`, with 3H for 4H (gates r, z, n) and no projection.
        has_biases, num_layers, dropout, training, bidirectional, batch_first, keywords: as for
            :func:`lstm`.
    Returns:
        output [T, B, D*H], laid out as the input was, and h_n shaped as hx.
    Raises:
        ValueError, TypeError, RuntimeError: as :func:`lstm`.
    """
    flags = Flags(has_biases, num_layers, dropout, training, bidirectional)
    return _one_state("GRU", input, hx, params, flags, batch_first, keywords)


def mgu(
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
    **keywords: Any,
) -> tuple[Sequences, Tensor]:
    """Multi-layer minimal gated unit over whole sequences (Zhou et al., 2016).

    Its gate acts after the recurrent product, as GRU's reset gate does; see
    :class:`fusedrnn.MGU`.

    Args:
        input: as for :func:`lstm`.
        hx: h_0 [L*D, B, H] (without B if unbatched); zeros when None.
        params: as for :func:`lstm`, with 2H for 4H (gates f, n) and no projection.
        has_biases, num_layers, dropout, training, bidirectional, batch_first, keywords: as for
            :func:`lstm`.
    Returns:
        output [T, B, D*H], laid out as the input was, and h_n shaped as hx.
    Raises:
        ValueError, TypeError, RuntimeError: as :func:`lstm`.
    """
    flags = Flags(has_biases, num_layers, dropout, training, bidirectional)
    return _one_state("MGU", input, hx, params, flags, batch_first, keywords)


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
    **keywords: Any,
) -> tuple[Sequences, Tensor]:
    """Multi-layer Elman RNN over whole sequences (Elman, 1990).

    Args:
        input: as for :func:`lstm`.
        hx: h_0 [L*D, B, H] (without B if unbatched); zeros when None.
        params: as for :func:`lstm`, with H for 4H and no projection.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        has_biases, num_layers, dropout, training, bidirectional, batch_first, keywords: as for
            :func:`lstm`.
    Returns:
        output [T, B, D*H], laid out as the input was, and h_n shaped as hx.
    Raises:
        ValueError: any other nonlinearity, and as :func:`lstm`.
        TypeError, RuntimeError: as :func:`lstm`.
    """
    flags = Flags(has_biases, num_layers, dropout, training, bidirectional)
    return _one_state(rnn_mode(nonlinearity), input, hx, params, flags, batch_first, keywords)


def _one_state(
    mode: str,
    input: Sequences,
    hx: Tensor | None,
    params: Sequence[Tensor],
    flags: Flags,
    batch_first: bool,
    keywords: dict[str, Any],
) -> tuple[Sequences, Tensor]:
    """A stack of layers without c."""
    course = course_of(mode, keywords)
    output, h_n, _, kept = run(mode, input, (hx, None), params, flags, batch_first, course)
    return with_states(course, (output, h_n), kept)  # type: ignore[no-any-return]
