"""The cells of the definition: each one's mathematics, once, one step at a time, so that a reader
can check it against the papers; and the step's backward by hand. The layers are in
:mod:`fusedrnn.reference`, which offers the cells too.

B batch, I input size, H hidden size, P projection size. Gate order as in torch: LSTM i, f, g, o;
GRU r, z, n; MGU f, n.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
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


def mgu_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    r"""One MGU step (Zhou et al., 2016), f applied after the recurrent product, as GRU's r.

    .. math::
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        n &= \tanh(W_{in} x + b_{in} + f \odot (W_{hn} h + b_{hn})) \\
        h' &= h + f \odot (n - h)

    Args:
        x: [B, I].
        h: [B, H].
        w_ih: [2H, I], gates f, n.
        w_hh: [2H, H].
        b_ih, b_hh: [2H], or None. Default: None.
    Returns:
        h' [B, H].
    Raises:
        RuntimeError: torch's own, on shapes that do not fit.
    """
    f_x, n_x = linear(x, w_ih, b_ih).chunk(2, dim=-1)
    f_h, n_h = linear(h, w_hh, b_hh).chunk(2, dim=-1)
    f = (f_x + f_h).sigmoid()
    n = (n_x + f * n_h).tanh()
    return h + f * (n - h)


class _Weights(NamedTuple):
    """The weights of one direction; None where a layer has none of the kind."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None


def _lstm_step(x: Tensor, h: Tensor, c: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    return lstm_cell(x, h, c, *w)


def _step_of(cell: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The step of a cell without c."""
    return lambda x, h, c, w: (cell(x, h, *w[:4]), c)


class _Back(NamedTuple):
    """One step back: gradients of the input's and of h's products (before any activation), of h and
    c before the step; and h before the projection."""

    da_x: Tensor
    da_h: Tensor
    dh: Tensor
    dc: Tensor
    hidden: Tensor


def _products(x: Tensor, h: Tensor, w: _Weights) -> tuple[Tensor, Tensor]:
    return linear(x, w.w_ih, w.b_ih), linear(h, w.w_hh, w.b_hh)


def _rnn_back(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    dh: Tensor,
    dc: Tensor,
    w: _Weights,
    nonlinearity: str = "tanh",
) -> _Back:
    a_x, a_h = _products(x, h, w)
    y = (a_x + a_h).tanh()
    da = dh * (1 - y * y) if nonlinearity == "tanh" else dh * (a_x + a_h > 0)
    return _Back(da, da, da @ w.w_hh, dc, h)


def _lstm_back(x: Tensor, h: Tensor, c: Tensor, dh: Tensor, dc: Tensor, w: _Weights) -> _Back:
    a_x, a_h = _products(x, h, w)
    i, f, g, o = (a_x + a_h).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    t = (f * c + i * g).tanh()
    dy = dh if w.w_hr is None else dh @ w.w_hr
    dc = dc + dy * o * (1 - t * t)
    gates = (
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        dy * t * o * (1 - o),
    )
    da = torch.cat(gates, dim=-1)
    return _Back(da, da, da @ w.w_hh, dc * f, o * t)


def _gru_back(x: Tensor, h: Tensor, c: Tensor, dh: Tensor, dc: Tensor, w: _Weights) -> _Back:
    a_x, a_h = _products(x, h, w)
    r_x, z_x, n_x = a_x.chunk(3, dim=-1)
    r_h, z_h, n_h = a_h.chunk(3, dim=-1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h - n) * z * (1 - z)
    dr = dn * n_h * r * (1 - r)
    da_h = torch.cat((dr, dz, dn * r), dim=-1)
    return _Back(torch.cat((dr, dz, dn), dim=-1), da_h, da_h @ w.w_hh + dh * z, dc, h)


def _mgu_back(x: Tensor, h: Tensor, c: Tensor, dh: Tensor, dc: Tensor, w: _Weights) -> _Back:
    a_x, a_h = _products(x, h, w)
    f_x, n_x = a_x.chunk(2, dim=-1)
    f_h, n_h = a_h.chunk(2, dim=-1)
    f = (f_x + f_h).sigmoid()
    n = (n_x + f * n_h).tanh()
    dn = dh * f * (1 - n * n)
    df = (dn * n_h + dh * (n - h)) * f * (1 - f)
    da_h = torch.cat((df, dn * f), dim=-1)
    return _Back(torch.cat((df, dn), dim=-1), da_h, da_h @ w.w_hh + (dh - f * dh), dc, h)


class _Cell(NamedTuple):
    """A cell: how many gates, whether it has a state c, one step and that step's backward."""

    gates: int
    has_c: bool
    step: Callable[[Tensor, Tensor, Tensor, _Weights], tuple[Tensor, Tensor]]
    back: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, _Weights], _Back]


_CELLS = {
    "RNN_TANH": _Cell(1, False, _step_of(rnn_cell), _rnn_back),
    "RNN_RELU": _Cell(
        1,
        False,
        _step_of(partial(rnn_cell, nonlinearity="relu")),
        partial(_rnn_back, nonlinearity="relu"),
    ),
    "LSTM": _Cell(4, True, _lstm_step, _lstm_back),
    "GRU": _Cell(3, False, _step_of(gru_cell), _gru_back),
    "MGU": _Cell(2, False, _step_of(mgu_cell), _mgu_back),
}
