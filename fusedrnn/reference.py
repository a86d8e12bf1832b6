"""The definition: what every kernel of this package has to compute, in plain torch.

Each cell's mathematics stands in ``reference_cells.py``, one step at a time, and layers are loops
over cells, so that a reader can check all of it against the papers. It runs in any floating dtype
and on any device, is differentiable any number of times, and imports only torch. The tests
hold the kernels to it in float64, and second derivatives go through it.

B batch, I input size, H hidden size, P projection size (0: none), D directions, L layers,
T time steps, N rows of a packed sequence. Gate order as in torch: LSTM i, f, g, o; GRU
r, z, n; MGU f, n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as _dropout

from .reference_cells import _CELLS as _CELLS
from .reference_cells import _Back, _Cell, gru_cell, lstm_cell, mgu_cell, rnn_cell
from .reference_cells import _Weights as _Weights

__all__ = ["gru_cell", "layer", "layer_backward", "lstm_cell", "mgu_cell", "rnn_cell", "stack"]


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


def _choose(mask: Tensor | None, value: Tensor, other: Tensor | float) -> Tensor:
    """``value`` in the rows of ``mask``, ``other`` in the rest; None: ``value`` in all."""
    return value if mask is None else torch.where(mask, value, other)


def _sum(gradient: Tensor, slope: Tensor | None) -> Tensor:
    return gradient if slope is None else gradient + slope


class _Through(NamedTuple):
    """What the way forward leaves: of each time step what the cell took (x, h, c), what it gave
    (h, c) or zeros in rows past their end; and the last states."""

    taken: dict[int, tuple[Tensor, Tensor, Tensor]]
    given: dict[int, tuple[Tensor, Tensor]]
    h: Tensor
    c: Tensor


class _Gradients(NamedTuple):
    """What the way back gives: of the input of all steps, one after the other, of the first and the
    reset states, and of each weight."""

    x: Tensor
    h: Tensor
    c: Tensor
    reset_h: Tensor
    reset_c: Tensor
    weights: list[Tensor]


class _Direction(NamedTuple):
    """One direction of a layer: its cell and weights, its first and reset states, and the steps
    that it takes, each the rows of one time step.

    Attributes:
        live: of each step, which rows have not ended, [B, 1]; None: all of its rows.
        cuts: of each step, which rows' states are reset before it, [B, 1]; None: none.
    """

    cell: _Cell
    w: _Weights
    h: Tensor
    c: Tensor
    reset_h: Tensor
    reset_c: Tensor
    steps: Sequence[Tensor]
    order: range
    live: Sequence[Tensor | None]
    cuts: Sequence[Tensor | None]

    def forward(self) -> _Through:
        h, c = self.h, self.c
        taken: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        given: dict[int, tuple[Tensor, Tensor]] = {}
        for t in self.order:
            x, live, cut = self.steps[t], self.live[t], self.cuts[t]
            if cut is not None:
                h, c = torch.where(cut, self.reset_h, h), torch.where(cut, self.reset_c, c)
            # Packed, the first n sequences reach this step; by lengths, the rows of `live`. In the
            # forward direction the others keep their last state; in reverse they still hold their
            # first, and so start at their end. The cell takes zeros in their place: whatever lies
            # past an end, not even nan may reach a gradient.
            n = x.size(0)
            taken[t] = (_choose(live, x, 0), _choose(live, h[:n], 0), _choose(live, c[:n], 0))
            h_t, c_t = self.cell.step(*taken[t], self.w)
            given[t] = (_choose(live, h_t, 0), _choose(live, c_t, 0))
            h = torch.cat((_choose(live, h_t, h[:n]), h[n:]))
            c = torch.cat((_choose(live, c_t, c[:n]), c[n:]))
        return _Through(taken, given, h, c)

    def backward(
        self,
        slopes: Sequence[Tensor | None],
        state_slopes: Sequence[Tensor | None],
        dh: Tensor,
        dc: Tensor,
    ) -> _Gradients:
        """From gradients of each step's h and c and of the last states."""
        taken = self.forward().taken
        backs: dict[int, _Back] = {}
        leaving: dict[int, Tensor] = {}
        d_reset_h, d_reset_c = torch.zeros_like(self.h), torch.zeros_like(self.c)
        for t in reversed(self.order):
            n, live, cut = self.steps[t].size(0), self.live[t], self.cuts[t]
            leaving[t] = _choose(live, _sum(dh[:n], slopes[t]), 0)
            dc_t = _choose(live, _sum(dc[:n], state_slopes[t]), 0)
            backs[t] = self.cell.back(*taken[t], leaving[t], dc_t, self.w)
            dh = torch.cat((_choose(live, backs[t].dh, dh[:n]), dh[n:]))
            dc = torch.cat((_choose(live, backs[t].dc, dc[:n]), dc[n:]))
            if cut is not None:
                d_reset_h = d_reset_h + torch.where(cut, dh, 0)
                d_reset_c = d_reset_c + torch.where(cut, dc, 0)
                dh, dc = torch.where(cut, 0, dh), torch.where(cut, 0, dc)
        times = range(len(self.steps))
        da_x = torch.cat([backs[t].da_x for t in times])
        da_h = torch.cat([backs[t].da_h for t in times])
        weights = [
            da_x.mT @ torch.cat([taken[t][0] for t in times]),
            da_h.mT @ torch.cat([taken[t][1] for t in times]),
        ]
        if self.w.b_ih is not None:
            weights += [da_x.sum(0), da_h.sum(0)]
        if self.w.w_hr is not None:
            hidden = torch.cat([backs[t].hidden for t in times])
            weights.append(torch.cat([leaving[t] for t in times]).mT @ hidden)
        return _Gradients(da_x @ self.w.w_ih, dh, dc, d_reset_h, d_reset_c, weights)


def _masks(
    T: int, d: int, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """``live`` and ``cuts`` of direction d."""
    live, cuts = None, resets
    if lengths is not None:
        live = torch.arange(T, device=lengths.device).unsqueeze(1) < lengths
        cuts = None if cuts is None else cuts & live
    if cuts is not None and d == 1:
        # A cut lies between t - 1 and t, so going back it comes before step t - 1.
        cuts = torch.cat((cuts[1:], torch.zeros_like(cuts[:1])))
    of_none: list[Tensor | None] = [None] * T
    return (
        of_none if live is None else live.unsqueeze(-1).unbind(),
        of_none if cuts is None else cuts.unsqueeze(-1).unbind(),
    )


def _directions(
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor | None, Tensor | None],
    named: Sequence[_Weights],
    mode: str,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_states: tuple[Tensor | None, Tensor | None],
) -> list[_Direction]:
    steps = input.unbind() if batch_sizes is None else input.split(batch_sizes.tolist())
    cell, B, T = _CELLS[mode], steps[0].size(0), len(steps)
    lengths = None if lengths is None else lengths.to(input.device)
    found = []
    for d, w in enumerate(named):
        sizes = (w.w_hh.shape[1], w.w_hh.shape[0] // cell.gates)
        h, c, reset_h, reset_c = (
            input.new_zeros(rows, size) if given is None else given[d]
            for pair, rows in ((states, B), (reset_states, 1))
            for given, size in zip(pair, sizes, strict=True)
        )
        order = range(T) if d == 0 else range(T - 1, -1, -1)
        live, cuts = _masks(T, d, lengths, resets)
        found.append(_Direction(cell, w, h, c, reset_h, reset_c, steps, order, live, cuts))
    return found


def layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer of one or two directions over whole sequences.

    Past a row's end its results are zero, and h_n and c_n are those of its last step (of length 0:
    hx and cx); the reverse direction starts at each row's own end. A reset cuts a row between
    t - 1 and t, for both directions: forward its state is set before step t, also at t = 0, and in
    reverse before step t - 1. Past a row's end a reset has no effect.

    Args:
        input: [T, B, I], or packed [N, I], sequences sorted by decreasing length.
        batch_sizes: [T], how many sequences reach each step, if packed, else None.
        hx, cx: [D, B, P or H] and [D, B, H]; zeros when None.
        weights: per direction w_ih [G*H, I], w_hh [G*H, P or H], then b_ih, b_hh [G*H] if
            ``has_biases``, then w_hr [P, H] if projected; G is 4 for LSTM, 3 for GRU, 2
            for MGU and else 1. The number of them tells D.
        mode: "LSTM", "GRU", "MGU", "RNN_TANH" or "RNN_RELU".
        has_biases: whether ``weights`` hold biases.
        lengths: int64 [B], each 0 to T, how many steps each row has; not with ``batch_sizes``.
            Default: None, T steps.
        resets: bool [T, B], where a row is cut before step t; not with ``batch_sizes``.
            Default: None, nowhere.
        reset_h, reset_c: [D, B or 1, P or H] and [D, B or 1, H], the states after a cut.
            Default: None, zeros.
    Returns:
        output [T, B, D*(P or H)] or [N, D*(P or H)], h_n [D, B, P or H], c_n [D, B, H] and c of
        every step [T, B, D*H] or [N, D*H] (the last two are for all but LSTM an empty [0]).
    Raises:
        RuntimeError: torch's own, on shapes that do not fit. Nothing else is checked.
    """
    outputs, states, h_n, c_n = [], [], [], []
    join = torch.stack if batch_sizes is None else torch.cat
    named = _weights_of(weights, has_biases)
    for direction in _directions(
        input, batch_sizes, (hx, cx), named, mode, lengths, resets, (reset_h, reset_c)
    ):
        _, given, h, c = direction.forward()
        outputs.append(join([given[t][0] for t in range(len(given))]))
        states.append(join([given[t][1] for t in range(len(given))]))
        h_n.append(h)
        c_n.append(c)
    output, last_h, none = torch.cat(outputs, dim=-1), torch.stack(h_n), input.new_empty(0)
    if not _CELLS[mode].has_c:
        return output, last_h, none, none
    return output, last_h, torch.stack(c_n), torch.cat(states, dim=-1)


def _by_step(
    gradient: Tensor | None, d: int, width: int, steps: Sequence[Tensor], packed: bool
) -> Sequence[Tensor | None]:
    """Direction d's columns of a gradient, of each step."""
    if gradient is None:
        return [None] * len(steps)
    own = gradient[..., d * width : (d + 1) * width]
    return own.split([len(x) for x in steps]) if packed else own.unbind()


def _stacked(gradients: Sequence[Tensor], like: Tensor | None) -> Tensor | None:
    """The gradient of a state of all directions, [D, B, ...], summed over B where the state has one
    row for all."""
    if like is None:
        return None
    stacked = torch.stack([*gradients])
    return stacked.sum(1, keepdim=True) if like.size(1) == 1 else stacked


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
    grad_states: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of :func:`layer`, by hand: back through time (Werbos, 1990).

    Written out rather than left to autograd: it consists of plain operations, which can
    themselves be differentiated and transformed, wherever it is called from.

    Args:
        grad_output, grad_h_n, grad_c_n, grad_states: [T, B, D*(P or H)] or [N, D*(P or H)],
            [D, B, P or H], [D, B, H] and [T, B, D*H] or [N, D*H], as layer's results; zeros
            when None. Of a cell without c the last two are not looked at.
        input, batch_sizes, hx, cx, weights, mode, has_biases: as for :func:`layer`; real.
        lengths, resets, reset_h, reset_c: as for :func:`layer`. Default: None.
    Returns:
        The gradients of input, hx, cx, each weight, reset_h and reset_c (None for a state that was
        not given), shaped as these: [T, B, I] or [N, I], [D, B, P or H], [D, B, H].
    Raises:
        RuntimeError: as :func:`layer`.
    """
    named = _weights_of(weights, has_biases)
    directions = _directions(
        input, batch_sizes, (hx, cx), named, mode, lengths, resets, (reset_h, reset_c)
    )
    packed, found = batch_sizes is not None, []
    if not _CELLS[mode].has_c:
        grad_c_n = grad_states = None
    for d, direction in enumerate(directions):
        h, c, steps = direction.h, direction.c, direction.steps
        slopes = _by_step(grad_output, d, h.size(1), steps, packed)
        state_slopes = _by_step(grad_states, d, c.size(1), steps, packed)
        dh = input.new_zeros(h.shape) if grad_h_n is None else grad_h_n[d]
        dc = input.new_zeros(c.shape) if grad_c_n is None else grad_c_n[d]
        found.append(direction.backward(slopes, state_slopes, dh, dc))
    dx = found[0].x if len(found) == 1 else found[0].x + found[1].x
    return [
        dx.reshape(input.shape),
        _stacked([g.h for g in found], hx),
        _stacked([g.c for g in found], cx),
        *(gradient for g in found for gradient in g.weights),
        _stacked([g.reset_h for g in found], reset_h),
        _stacked([g.reset_c for g in found], reset_c),
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
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    states: int = 0,
    every: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        lengths, resets: as for :func:`layer`, for every layer. Default: None.
        reset_h, reset_c: [L*D, B or 1, P or H] and [L*D, B or 1, H]. Default: None, zeros.
        states: whether c of every step is asked for: 0 no, 1 the top layer's, 2 all layers'.
            Default: 0.
        every: of how many steps the kernels keep the states; no matter here. Default: 0.
    Returns:
        output as of :func:`layer`, h_n [L*D, B, P or H], c_n [L*D, B, H] (or an empty [0]) and
        the states asked for: c of every step [T, B, D*H] or [N, D*H], after an L of all layers; of
        a cell without c its h, before any dropout; an empty [0] when not asked for.
    Raises:
        RuntimeError: as :func:`layer`.
    """
    D, count = 1 + bidirectional, len(weights) // num_layers
    h_n, c_n, of_layers = [], [], []
    for i in range(num_layers):
        if i and train and dropout:
            input = _dropout(input, dropout)
        own = slice(i * D, (i + 1) * D)
        h, c, r_h, r_c = (None if s is None else s[own] for s in (hx, cx, reset_h, reset_c))
        own_weights = weights[i * count : (i + 1) * count]
        input, last_h, last_c, c_t = layer(
            input, batch_sizes, h, c, own_weights, mode, has_biases, lengths, resets, r_h, r_c
        )
        h_n.append(last_h)
        c_n.append(last_c)
        of_layers.append(c_t if _CELLS[mode].has_c else input)
    asked = [input.new_empty(0), of_layers[-1]][states] if states < 2 else torch.stack(of_layers)
    return input, torch.cat(h_n), torch.cat(c_n), asked
