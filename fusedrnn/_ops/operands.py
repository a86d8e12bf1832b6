"""The layer operators' arguments by name. Their order stands here and in csrc/ops/schema.h."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import reference
from .cells import CELLS, Cell


class Operands(NamedTuple):
    """What a layer is computed from: the first arguments of ``layer``, in its order.

    Under vmap the same fields hold which dimension of each argument is mapped.
    """

    input: Any
    batch_sizes: Any
    hx: Any
    cx: Any
    weights: Sequence[Any]
    mode: str
    has_biases: bool

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


class Cotangents(NamedTuple):
    """What ``layer_backward`` takes besides: gradients of the results, two of the results, and
    which gradients are asked for. Under vmap, which dimensions are mapped."""

    grad_output: Any
    grad_h_n: Any
    grad_c_n: Any
    output: Any
    reserve: Any
    needs: Sequence[bool]

    def fit(self) -> tuple[Any, ...]:
        """What ``_C.check_fit`` takes of these."""
        return self.grad_output, self.grad_h_n, self.grad_c_n, self.output, self.needs


def _named(arguments: Sequence[Any]) -> tuple[Operands, Cotangents]:
    """layer_backward's arguments: slopes, operands, results, flags."""
    dy, dh_n, dc_n, x, sizes, hx, cx, weights, output, reserve, mode, biases, needs = arguments
    return (
        Operands(x, sizes, hx, cx, weights, mode, biases),
        Cotangents(dy, dh_n, dc_n, output, reserve, needs),
    )


def in_order(o: Operands, c: Cotangents) -> tuple[Any, ...]:
    """layer_backward's arguments in its order."""
    return (*c[:3], *o[:5], *c[3:5], *o[5:], c.needs)


def on_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Operands (and ``train``) as one of ``layer``'s arguments."""
    return lambda *arguments: function(Operands(*arguments[:7]), *arguments[7:])


def on_backward(function: Callable[[Operands, Cotangents], Any]) -> Callable[..., Any]:
    """A function of Operands and Cotangents as one of ``layer_backward``'s arguments."""
    return lambda *arguments: function(*_named(arguments))


def mapped_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of V, Operands, their dimensions and ``train`` as a rule of vmap for ``layer``."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        operands, dims = Operands(*arguments[:7]), Operands(*in_dims[:7])
        return function(info.batch_size, operands, dims, *arguments[7:])

    return rule


def mapped_backward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Likewise for ``layer_backward``: of V, Operands, Cotangents and the dimensions of both."""

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        return function(info.batch_size, *_named(arguments), *_named(in_dims))

    return rule
