"""The definition: what every kernel of this package has to compute, in plain torch.

Each cell's mathematics stands here once, one step at a time, and layers are loops over
cells, so that a reader can check all of it against the papers. It runs in any floating dtype
and on any device, is differentiable any number of times, and imports only torch. The tests
hold the kernels to it in float64, and second derivatives go through it.

B batch, I input size, H hidden size, P projection size (0: none), D directions, L layers,
T time steps, N rows of a packed sequence. Gate order as in torch: LSTM i, f, g, o; GRU
r, z, n; MGU f, n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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


def _weights_of(weights: Sequence[Tensor], has_biases: bool) -> list[_Weights]:
    """The weights of each direction in turn, from a layer's as :func:`layer` takes them."""
    plain = 4 if has_biases else 2
    D = 1 + (len(weights) >= 2 * plain)
    count = len(weights) // D
    named = []
    for d in range(D):
        w_ih, w_hh, *rest = weights[d * count : (d + 1) * count]
        b_ih, b_hh = rest[:2] if has_biases else (None, None)
        w_hr = rest[-1] if count > plain else None
        named.append(_Weights(w_ih, w_hh, b_ih, b_hh, w_hr))
    return named


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


class _Direction(NamedTuple):
    """One direction of a layer: its cell and weights, its first states, and the steps that it
    takes, each the rows of one time step."""

    cell: _Cell
    w: _Weights
    h: Tensor
    c: Tensor
    steps: Sequence[Tensor]
    order: range

    def forward(self) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[int, Tensor], Tensor, Tensor]:
        """The states before each time step, h after it, and the last h and c."""
        h, c = self.h, self.c
        before: dict[int, tuple[Tensor, Tensor]] = {}
        after: dict[int, Tensor] = {}
        for t in self.order:
            # The first n sequences reach this step. In the forward direction the others keep
            # their last state; in reverse they still hold their first, and so start at their end.
            n = self.steps[t].size(0)
            before[t] = (h[:n], c[:n])
            after[t], c_t = self.cell.step(self.steps[t], h[:n], c[:n], self.w)
            h, c = torch.cat((after[t], h[n:])), torch.cat((c_t, c[n:]))
        return before, after, h, c

    def backward(
        self, slopes: Sequence[Tensor | None], dh: Tensor, dc: Tensor
    ) -> tuple[_Back, Tensor, Tensor]:
        """From gradients of outputs and last states: those of the products of all steps, one after
        the other, and of the first states; of h as it leaves each step; and h before each."""
        before, *_ = self.forward()
        times = range(len(self.steps))
        backs: dict[int, _Back] = {}
        leaving: dict[int, Tensor] = {}
        for t in reversed(self.order):
            n, slope = self.steps[t].size(0), slopes[t]
            leaving[t] = dh[:n] if slope is None else dh[:n] + slope
            backs[t] = self.cell.back(self.steps[t], *before[t], leaving[t], dc[:n], self.w)
            dh, dc = torch.cat((backs[t].dh, dh[n:])), torch.cat((backs[t].dc, dc[n:]))
        da_x = torch.cat([backs[t].da_x for t in times])
        da_h = torch.cat([backs[t].da_h for t in times])
        hidden = torch.cat([backs[t].hidden for t in times])
        h = torch.cat([before[t][0] for t in times])
        return _Back(da_x, da_h, dh, dc, hidden), torch.cat([leaving[t] for t in times]), h

    def gradients(self, back: _Back, leaving: Tensor, h: Tensor) -> list[Tensor]:
        """Of the weights, from what ``backward`` returns."""
        x = torch.cat([*self.steps])
        found = [back.da_x.mT @ x, back.da_h.mT @ h]
        found += [] if self.w.b_ih is None else [back.da_x.sum(0), back.da_h.sum(0)]
        return found if self.w.w_hr is None else [*found, leaving.mT @ back.hidden]


def _directions(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    named: Sequence[_Weights],
    mode: str,
) -> list[_Direction]:
    steps = input.unbind() if batch_sizes is None else input.split(batch_sizes.tolist())
    cell, B, T = _CELLS[mode], steps[0].size(0), len(steps)
    found = []
    for d, w in enumerate(named):
        h = hx[d] if hx is not None else input.new_zeros(B, w.w_hh.shape[1])
        c = cx[d] if cx is not None else input.new_zeros(B, w.w_hh.shape[0] // cell.gates)
        order = range(T) if d == 0 else range(T - 1, -1, -1)
        found.append(_Direction(cell, w, h, c, steps, order))
    return found


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
            ``has_biases``, then w_hr [P, H] if projected; G is 4 for LSTM, 3 for GRU, 2
            for MGU and else 1. The number of them tells D.
        mode: "LSTM", "GRU", "MGU", "RNN_TANH" or "RNN_RELU".
        has_biases: whether ``weights`` hold biases.
    Returns:
        output [T, B, D*(P or H)] or [N, D*(P or H)], h_n [D, B, P or H], and c_n [D, B, H]
        (for all but LSTM an empty [0]).
    Raises:
        RuntimeError: torch's own, on shapes that do not fit. Nothing else is checked.
    """
    outputs, h_n, c_n = [], [], []
    join = torch.stack if batch_sizes is None else torch.cat
    for direction in _directions(
        input, batch_sizes, hx, cx, _weights_of(weights, has_biases), mode
    ):
        _, y, h, c = direction.forward()
        outputs.append(join([y[t] for t in range(len(y))]))
        h_n.append(h)
        c_n.append(c)
    cell_state = torch.stack(c_n) if _CELLS[mode].has_c else input.new_empty(0)
    return torch.cat(outputs, dim=-1), torch.stack(h_n), cell_state


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
    directions = _directions(input, batch_sizes, hx, cx, _weights_of(weights, has_biases), mode)
    D, rows = len(directions), [len(x) for x in directions[0].steps]
    dx, dhx, dcx, dweights = [], [], [], []
    for d, direction in enumerate(directions):
        P = direction.h.size(1)
        slopes: Sequence[Tensor | None] = [None] * len(rows)
        if grad_output is not None:
            own = grad_output[..., d * P : (d + 1) * P]
            slopes = own.unbind() if batch_sizes is None else own.split(rows)
        dh = grad_h_n[d] if grad_h_n is not None else input.new_zeros(direction.h.shape)
        dc = input.new_zeros(direction.c.shape)
        if grad_c_n is not None and direction.cell.has_c:
            dc = grad_c_n[d]
        back, leaving, h = direction.backward(slopes, dh, dc)
        dx.append(back.da_x @ direction.w.w_ih)
        dhx.append(back.dh)
        dcx.append(back.dc)
        dweights += direction.gradients(back, leaving, h)
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
