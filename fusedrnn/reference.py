"""The definition: what every kernel of this package has to compute, in plain torch.

Each cell's mathematics stands here once, one step at a time, and layers are loops over
cells, so that a reader can check all of it against the papers. It runs in any floating dtype
and on any device, is differentiable any number of times, and imports only torch. The tests
hold the kernels to it in float64, and second derivatives go through it.

B batch, I input size, H hidden size, P projection size (0: none), D directions, L layers,
T time steps, N rows of a packed sequence. Gate order as in torch: LSTM i, f, g, o; GRU
r, z, n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as _dropout
from torch.nn.functional import linear


def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""One Elman step (Elman, 1990).

    .. math::
        h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        x: [B, I].
        h: [B, H].
        w_ih: [H, I].
        w_hh: [H, H].
        b_ih, b_hh: [H], or None. Default: None.
        nonlinearity: "tanh"; anything else is relu. Default: "tanh".
    Returns:
        h' [B, H].
    Raises:
        RuntimeError: torch's own, on shapes that do not fit.
    """
    a = linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)
    return a.tanh() if nonlinearity == "tanh" else a.relu()


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One LSTM step (Hochreiter & Schmidhuber, 1997; projection: Sak et al., 2014).

    .. math::
        i, f, o &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        g &= \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(c')

    each gate with its rows of the weights; h' is multiplied by W_hr where there is one.

    Args:
        x: [B, I].
        h: [B, P or H].
        c: [B, H].
        w_ih: [4H, I], gates i, f, g, o.
        w_hh: [4H, P or H].
        b_ih, b_hh: [4H], or None. Default: None.
        w_hr: [P, H], or None: no projection. Default: None.
    Returns:
        h' [B, P or H] and c' [B, H].
    Raises:
        RuntimeError: torch's own, on shapes that do not fit.
    """
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w_hr is None else linear(h, w_hr)), c


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    r"""One GRU step (Cho et al., 2014), r applied after the recurrent product as in cuDNN.

    .. math::
        r, z &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    Args:
        x: [B, I].
        h: [B, H].
        w_ih: [3H, I], gates r, z, n.
        w_hh: [3H, H].
        b_ih, b_hh: [3H], or None. Default: None.
    Returns:
        h' [B, H].
    Raises:
        RuntimeError: torch's own, on shapes that do not fit.
    """
    r_x, z_x, n_x = linear(x, w_ih, b_ih).chunk(3, dim=-1)
    r_h, z_h, n_h = linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return (1 - z) * n + z * h


def _step(
    mode: str, x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor], has_biases: bool
) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if has_biases else (None, None)
    if mode == "LSTM":
        w_hr = rest[-1] if len(rest) % 2 else None
        return lstm_cell(x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr)
    if mode == "GRU":
        return gru_cell(x, h, w_ih, w_hh, b_ih, b_hh), c
    return rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, mode.removeprefix("RNN_").lower()), c


def _directions(weights: Sequence[Tensor], has_biases: bool) -> int:
    return 1 + (len(weights) >= (8 if has_biases else 4))


def _sizes(batch_sizes: Tensor) -> list[int]:
    return batch_sizes.tolist()


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of one or two directions over whole sequences.

    Args:
        input: [T, B, I], or packed [N, I], sequences sorted by decreasing length.
        batch_sizes: [T], how many sequences reach each step, if packed, else None.
        hx, cx: [D, B, P or H] and [D, B, H]; zeros when None.
        weights: per direction w_ih [G*H, I], w_hh [G*H, P or H], then b_ih, b_hh [G*H] if
            ``has_biases``, then w_hr [P, H] if projected; G is 4 for LSTM, 3 for GRU and
            else 1. The number of them tells D.
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        has_biases: whether ``weights`` hold biases.
    Returns:
        output [T, B, D*(P or H)] or [N, D*(P or H)], h_n [D, B, P or H], and c_n [D, B, H]
        (for all but LSTM an empty [0]).
    Raises:
        RuntimeError: torch's own, on shapes that do not fit. Nothing else is checked.
    """
    packed = batch_sizes is not None
    steps = input.split(_sizes(batch_sizes)) if batch_sizes is not None else input.unbind()
    D = _directions(weights, has_biases)
    B, count = steps[0].size(0), len(weights) // D
    outputs, h_n, c_n = [], [], []
    for d in range(D):
        own = weights[d * count : (d + 1) * count]
        H = own[1].size(0) // {"LSTM": 4, "GRU": 3}.get(mode, 1)
        h = hx[d] if hx is not None else input.new_zeros(B, own[1].size(1))
        c = cx[d] if cx is not None else input.new_zeros(B, H)
        y: list[Tensor] = []
        for x in reversed(steps) if d else steps:
            # The first n sequences reach this step. In the forward direction the others keep
            # their last state; in reverse they still hold their first, and so start at their end.
            n = x.size(0)
            h_t, c_t = _step(mode, x, h[:n], c[:n], own, has_biases)
            h, c = torch.cat((h_t, h[n:])), torch.cat((c_t, c[n:]))
            y.append(h_t)
        y = y[::-1] if d else y
        outputs.append(torch.cat(y) if packed else torch.stack(y))
        h_n.append(h)
        c_n.append(c)
    cell_state = torch.stack(c_n) if mode == "LSTM" else input.new_empty(0)
    return torch.cat(outputs, dim=-1), torch.stack(h_n), cell_state


def _step_backward(
    mode: str,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    dh_t: Tensor,
    dc_t: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step back: gradients of the input's and of h's products (before any activation), of h and
    c before the step, and an LSTM's h before the projection."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if has_biases else (None, None)
    a_x, a_h = linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)
    if mode == "LSTM":
        i, f, g, o = (a_x + a_h).chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        t = (f * c + i * g).tanh()
        dy = dh_t @ rest[-1] if len(rest) % 2 else dh_t
        dc_t = dc_t + dy * o * (1 - t * t)
        gates = (
            dc_t * g * i * (1 - i),
            dc_t * c * f * (1 - f),
            dc_t * i * (1 - g * g),
            dy * t * o * (1 - o),
        )
        da = torch.cat(gates, dim=-1)
        return da, da, da @ w_hh, dc_t * f, o * t
    if mode == "GRU":
        r_x, z_x, n_x = a_x.chunk(3, dim=-1)
        r_h, z_h, n_h = a_h.chunk(3, dim=-1)
        r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
        n = (n_x + r * n_h).tanh()
        dn = dh_t * (1 - z) * (1 - n * n)
        dz = dh_t * (h - n) * z * (1 - z)
        dr = dn * n_h * r * (1 - r)
        da_h = torch.cat((dr, dz, dn * r), dim=-1)
        return torch.cat((dr, dz, dn), dim=-1), da_h, da_h @ w_hh + dh_t * z, dc_t, h
    y = (a_x + a_h).tanh()
    da = dh_t * (1 - y * y) if mode == "RNN_TANH" else dh_t * (a_x + a_h > 0)
    return da, da, da @ w_hh, dc_t, h


def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
) -> list[Tensor | None]:
    """The gradients of :func:`layer`, by hand: back through time (Werbos, 1990).

    Written out rather than left to autograd: it consists of plain operations, which can
    themselves be differentiated and transformed, wherever it is called from.

    Args:
        grad_output, grad_h_n, grad_c_n: [T, B, D*(P or H)] or [N, D*(P or H)], [D, B, P or H]
            and [D, B, H], as layer's results; zeros when None.
        input, batch_sizes, hx, cx, weights, mode, has_biases: as for :func:`layer`; real.
    Returns:
        The gradients of input, hx, cx (None for a state that was not given) and each weight,
        shaped as these: [T, B, I] or [N, I], [D, B, P or H], [D, B, H].
    Raises:
        RuntimeError: as :func:`layer`.
    """
    packed = batch_sizes is not None
    steps = input.split(_sizes(batch_sizes)) if batch_sizes is not None else input.unbind()
    slopes: Sequence[Tensor | None] = [None] * len(steps)
    if grad_output is not None:
        slopes = grad_output.split([len(x) for x in steps]) if packed else grad_output.unbind()
    D, B = _directions(weights, has_biases), steps[0].size(0)
    count, T = len(weights) // D, len(steps)
    dx, dhx, dcx, dweights = [], [], [], []
    for d in range(D):
        own = weights[d * count : (d + 1) * count]
        P, H = own[1].size(1), own[1].size(0) // {"LSTM": 4, "GRU": 3}.get(mode, 1)
        order = range(T) if d == 0 else range(T - 1, -1, -1)
        h = hx[d] if hx is not None else input.new_zeros(B, P)
        c = cx[d] if cx is not None else input.new_zeros(B, H)
        before = {}
        for t in order:
            n = steps[t].size(0)
            before[t] = (h[:n], c[:n])
            h_t, c_t = _step(mode, steps[t], h[:n], c[:n], own, has_biases)
            h, c = torch.cat((h_t, h[n:])), torch.cat((c_t, c[n:]))
        dh = grad_h_n[d] if grad_h_n is not None else input.new_zeros(B, P)
        dc = grad_c_n[d] if grad_c_n is not None and mode == "LSTM" else input.new_zeros(B, H)
        # By time step: gradients of both products and of h as it leaves, an LSTM's inner h.
        da_x: dict[int, Tensor] = {}
        da_h: dict[int, Tensor] = {}
        leaving: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        for t in reversed(order):
            n, slope = steps[t].size(0), slopes[t]
            dh_t = dh[:n] if slope is None else dh[:n] + slope[:, d * P : (d + 1) * P]
            da_x[t], da_h[t], dh_p, dc_p, hidden[t] = _step_backward(
                mode, steps[t], *before[t], dh_t, dc[:n], own, has_biases
            )
            leaving[t] = dh_t
            dh, dc = torch.cat((dh_p, dh[n:])), torch.cat((dc_p, dc[n:]))
        h_all = torch.cat([before[t][0] for t in range(T)])
        dgates_x, dgates_h, dh_all, hidden_all = (
            torch.cat([by_time[t] for t in range(T)]) for by_time in (da_x, da_h, leaving, hidden)
        )
        dx.append(dgates_x @ own[0])
        dhx.append(dh)
        dcx.append(dc)
        x_all = input if packed else input.flatten(0, 1)
        dweights += [dgates_x.mT @ x_all, dgates_h.mT @ h_all]
        dweights += [dgates_x.sum(0), dgates_h.sum(0)] if has_biases else []
        dweights += [dh_all.mT @ hidden_all] if count % 2 else []
    return [
        (dx[0] if D == 1 else dx[0] + dx[1]).reshape(input.shape),
        None if hx is None else torch.stack(dhx),
        None if cx is None else torch.stack(dcx),
        *dweights,
    ]


def stack(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """L layers, with dropout on the output of each but the last when ``train``.

    From the same generator state torch.nn draws the same dropout masks.

    Args:
        input, batch_sizes, mode, has_biases: as for :func:`layer`.
        hx, cx: [L*D, B, P or H] and [L*D, B, H]; zeros when None.
        weights: as for :func:`layer`, of all layers one after the other.
        num_layers: how many (L).
        dropout: probability of zeroing an element.
        train: whether dropout applies.
        bidirectional: whether D is 2.
    Returns:
        output as of :func:`layer`, h_n [L*D, B, P or H] and c_n [L*D, B, H] (or an empty [0]).
    Raises:
        RuntimeError: as :func:`layer`.
    """
    D, count = 1 + bidirectional, len(weights) // num_layers
    h_n, c_n = [], []
    for i in range(num_layers):
        if i and train and dropout:
            input = _dropout(input, dropout)
        state = slice(i * D, (i + 1) * D)
        input, h, c = layer(
            input,
            batch_sizes,
            None if hx is None else hx[state],
            None if cx is None else cx[state],
            weights[i * count : (i + 1) * count],
            mode,
            has_biases,
        )
        h_n.append(h)
        c_n.append(c)
    return input, torch.cat(h_n), torch.cat(c_n)
