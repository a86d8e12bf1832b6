"""The layer operators' arguments by name. Their order stands here and in csrc/ops/schema.h."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import reference
from .cells import CELLS, Cell


class Operands(NamedTuple):
    """What a layer is computed from: ``layer``'s arguments, in its order but for ``train``.

    Under vmap the same fields hold which dimension of each argument is mapped.
    """

    input: Any
    batch_sizes: Any
    hx: Any
    cx: Any
    weights: Sequence[Any]
    mode: str
    has_biases: bool
    lengths: Any = None
    resets: Any = None
    reset_h: Any = None
    reset_c: Any = None

    @property
    def cell(self) -> Cell:
        return CELLS[self.mode]

    @property
    def named(self) -> list[reference._Weights]:
        """The weights of each direction, by name."""
        return reference._weights_of(self.weights, self.has_biases)

    @property
    def batch(self) -> int:
        """The dimension of input that holds the batch, or packed rows."""
        return 1 if self.batch_sizes is None else 0

    @property
    def rows(self) -> list[Any]:
        """Which rows there are, and where they are cut: what has no gradient."""
        return [self.batch_sizes, self.lengths, self.resets]


class Kept(NamedTuple):
    """What a layer keeps: what backward needs or not, c of every step or not, and every how many
    steps a state for backward (0: all gates). And whether its products may be of bfloat16."""

    train: bool
    states: bool = False
    every: int = 0
    bfloat16: bool = False


class Cotangents(NamedTuple):
    """What ``layer_backward`` takes besides: gradients of the results, two of the results, and
    which gradients are asked for. Under vmap, which dimensions are mapped."""

    grad_output: Any
    grad_h_n: Any
    grad_c_n: Any
    output: Any
    reserve: Any
    needs: Sequence[bool]
    grad_states: Any = None
    every: int = 0
    bfloat16: bool = False

    def fit(self) -> tuple[Any, ...]:
        """What ``_C.check_fit`` takes of these."""
        slopes = (self.grad_output, self.grad_h_n, self.grad_c_n)
        return *slopes, self.output, self.needs, self.grad_states


def _of_layer(arguments: Sequence[Any]) -> tuple[Operands, Kept]:
    """layer's arguments. A tracer leaves out the last ones where they are the defaults."""
    train, *course = arguments[7:]
    return Operands(*arguments[:7], *course[:4]), Kept(train, *course[4:])


def of_layer(o: Operands, kept: Kept) -> tuple[Any, ...]:
    """layer's arguments in its order."""
    return (*o[:7], kept.train, *o[7:], *kept[1:])


def _of_backward(arguments: Sequence[Any]) -> tuple[Operands, Cotangents]:
    """layer_backward's arguments: slopes, operands, results, flags; likewise."""
    dy, dh_n, dc_n, x, sizes, hx, cx, weights, output, reserve, mode, biases, needs = arguments[:13]
    defaults: tuple[Any, ...] = (None, None, None, None, None, 0, False)
    rest = (*arguments[13:], *defaults[len(arguments) - 13 :])
    dstates, lengths, resets, reset_h, reset_c, *how = rest
    return (
        Operands(x, sizes, hx, cx, weights, mode, biases, lengths, resets, reset_h, reset_c),
        Cotangents(dy, dh_n, dc_n, output, reserve, needs, dstates, *how),
    )


def in_order(o: Operands, c: Cotangents) -> tuple[Any, ...]:
    """layer_backward's arguments in its order."""
    return (*c[:3], *o[:5], *c[3:5], *o[5:7], *c[5:7], *o[7:], *c[7:])


def on_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Operands and Kept as one of ``layer``'s arguments."""
    return lambda *arguments: function(*_of_layer(arguments))


def on_reference(function: Callable[[Operands], Any]) -> Callable[..., Any]:
    """A function of Operands as one of ``layer_reference``'s arguments."""
    return lambda *arguments: function(Operands(*arguments))


def on_backward(function: Callable[[Operands, Cotangents], Any]) -> Callable[..., Any]:
    """A function of Operands and Cotangents as one of ``layer_backward``'s arguments."""
    return lambda *arguments: function(*_of_backward(arguments))


def mapped_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of V, Operands, their dimensions and Kept as a rule of vmap for ``layer``."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        operands, kept = _of_layer(arguments)
        return function(info.batch_size, operands, _of_layer(in_dims)[0], kept)

    return rule


def mapped_backward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Likewise for ``layer_backward``: of V, Operands, Cotangents and the dimensions of both."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        return function(info.batch_size, *_of_backward(arguments), *_of_backward(in_dims))

    return rule
