"""Translates our operators to ONNX's LSTM, GRU and RNN nodes for torch.onnx.export.

torch has two exporters. The default one (dynamo=True) takes ``stack`` and ``cell`` apart before it
translates, so it gets a translation of ``layer``. The old one (dynamo=False) records ``stack`` and
``cell`` as they are called, so it gets translations of these two.

B batch, I input size, H hidden size, P projection size, D directions, G gates, T time steps.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.onnx.ops
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from . import ops as ops  # registers torch.ops.fusedrnn
from ._ops.operands import Kept, Operands, on_layer


@dataclass(frozen=True)
class _Node:
    """The ONNX node of a cell: its name, torch's gates in its order, and what it has to be told."""

    name: str
    order: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    activation: str = ""


_NODES = {
    "LSTM": _Node("LSTM", (0, 3, 1, 2)),  # i, f, g, o become i, o, f, g
    "GRU": _Node("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # r, z, n become z, r, n
    "RNN_TANH": _Node("RNN", (0,), activation="Tanh"),
    "RNN_RELU": _Node("RNN", (0,), activation="Relu"),
}

# The old exporter is deprecated, and a torch without it must still import fusedrnn.
_helper: Any = getattr(torch.onnx, "symbolic_helper", None)
_register: Any = getattr(torch.onnx, "register_custom_op_symbolic", None)


# For the export an entry in torch._decomp.decomposition_table would suffice. But torch.compile
# uses that table to infer shapes when sizes are dynamic, and would fail on packed sequences.
@torch.library.register_torch_dispatch("fusedrnn::layer", ProxyTorchDispatchMode)  # type: ignore[untyped-decorator]
def _trace_layer(mode: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Trace a layer as an ONNX node in an export to ONNX, else as one operator as usual."""
    if not torch.onnx.is_in_onnx_export():
        return mode.__torch_dispatch__(func, types, args, kwargs)
    with mode:
        return _layer(*args, **kwargs)


@torch.library.register_torch_dispatch("fusedrnn::layer", FakeTensorMode)  # type: ignore[untyped-decorator]
def _infer_layer(mode: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Infer a layer's shapes as usual, but refuse in an export to ONNX what it has no node for.

    Refused later, packed sequences would make pad_packed_sequence fail first, with an error of
    torch.export that does not say what to do.
    """
    if torch.onnx.is_in_onnx_export():
        _refuse(*args, **kwargs)
    return mode.__torch_dispatch__(func, types, args, kwargs)


@on_layer
def _refuse(o: Operands, kept: Kept) -> None:
    if o.batch_sizes is not None:
        raise RuntimeError(
            "fusedrnn: only torch.onnx.export(..., dynamo=False) can export packed sequences"
        )
    if o.resets is not None or kept.states:
        name = "return_states" if o.resets is None else "resets"
        raise RuntimeError(f"fusedrnn: ONNX has no node for {name}")


def _node_of(mode: str) -> _Node:
    if mode not in _NODES:
        raise RuntimeError(f"fusedrnn: ONNX has no node for {mode}")
    return _NODES[mode]


@on_layer
def _layer(o: Operands, kept: Kept) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator ``layer`` as an ONNX node; its reserve for training is empty."""
    assert o.batch_sizes is None  # _infer_layer runs first and refuses packed sequences
    lengths = None if o.lengths is None else o.lengths.to(torch.int32)
    node, directions = _node_of(o.mode), o.named
    D = len(directions)

    def stacked(weights: Iterable[Tensor | None]) -> Tensor | None:
        there = [w for w in weights if w is not None]
        return torch.stack(there) if there else None

    w_ih, w_hh, b_ih, b_hh, w_hr = map(stacked, zip(*directions, strict=True))
    assert w_ih is not None
    assert w_hh is not None
    bias = None
    if b_ih is not None and b_hh is not None:
        bias = torch.cat([_reordered(b_ih, node), _reordered(b_hh, node)], dim=1)
    input, hx = o.input, o.hx
    if w_hr is not None:
        input, w_ih, w_hh = _without_projection(input, hx, w_ih, w_hh, w_hr)
        hx = None
    T, B, H = input.size(0), input.size(1), w_hh.size(2)
    attributes: dict[str, Any] = {
        "hidden_size": H,
        "direction": "bidirectional" if D == 2 else "forward",
        **node.attributes,
    }
    if node.activation:
        attributes["activations"] = [node.activation] * D
    states = [hx, o.cx] if o.cell.has_c else [hx]
    y, h_n, *c_n = torch.onnx.ops.symbolic_multi_out(
        node.name,
        [input, _reordered(w_ih, node), _reordered(w_hh, node), bias, lengths, *states],
        attributes,
        dtypes=[input.dtype] * (1 + len(states)),
        shapes=[(T, D, B, H), *[(D, B, H)] * len(states)],
    )
    if w_hr is not None:
        y, h_n = y @ w_hr.mT, h_n @ w_hr.mT
    nothing = input.new_empty(0)
    empty = (nothing, nothing.clone())
    return y.transpose(1, 2).flatten(2), h_n, c_n[0] if c_n else nothing.clone(), *empty


def _reordered(weight: Tensor, node: _Node) -> Tensor:
    """The weight, [D, G*H, ...], with its gates in ONNX's order."""
    if len(node.order) == 1:
        return weight
    H = weight.size(1) // len(node.order)
    return torch.cat([weight[:, i * H : (i + 1) * H] for i in node.order], dim=1)


def _without_projection(
    input: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor, w_hr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Input and weights of an LSTM without projection that computes the same.

    ONNX has no projection. Since h = W_hr y, W_hh h = (W_hh W_hr) y: the node keeps y instead of h,
    and its recurrent weight is W_hh W_hr. Only h_0 does not come from a y. So it becomes additional
    features of the input: h_0 at a direction's first step and zeros at the others. Their weight is
    W_hh.

    Args:
        input: [T, B, I].
        hx: [D, B, P], or None for zeros.
        w_ih, w_hh, w_hr: [D, G*H, I], [D, G*H, P] and [D, P, H].
    Returns:
        The LSTM's input [T, B, I + D*P] and weights [D, G*H, I + D*P] and [D, G*H, H]; when hx
        is None, I instead of I + D*P.
    """
    if hx is not None:
        D, P = w_hr.shape[:2]
        others = input.new_zeros(input.size(0) - 1, input.size(1), P)
        features = [torch.cat((hx[:1], others)), torch.cat((others, hx[1:]))]
        input = torch.cat((input, *features[:D]), dim=2)
        # A direction ignores the other direction's features: their weight is zero.
        own = [torch.cat([w_hh[d] * (d == e) for e in range(D)], dim=1) for d in range(D)]
        w_ih = torch.cat((w_ih, torch.stack(own)), dim=2)
    return input, w_ih, w_hh @ w_hr


def _parsed(kinds: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Parse the arguments of a function after the graph, a letter for each: tensor (v), string,
    int or float. The parser takes as many as a signature names; here it is told of all."""

    def decorated(function: Any) -> Callable[..., Any]:
        kind = inspect.Parameter.POSITIONAL_ONLY
        names = ["g", *(f"argument_{i}" for i in range(len(kinds)))]
        function.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])
        return _helper.parse_args(*kinds)(function)  # type: ignore[no-any-return]

    return decorated


def _symbolic_stack(g: Any, *arguments: Any) -> tuple[Any, Any, Any, Any]:
    """The operator ``stack`` in the old exporter's graph, where each tensor is a value of it."""
    o = Operands(*arguments[:7])
    num_layers, dropout, train, bidirectional, *course = arguments[7:]
    if course[4] or not all(map(_helper._is_none, course[:4])):
        raise RuntimeError(
            "fusedrnn: torch.onnx.export(..., dynamo=False) exports no lengths, resets or states "
            "of every step: pass dynamo=True, which exports lengths"
        )
    input, batch_sizes, hx, cx = o[:4]
    weights = _helper._unpack_list(o.weights)
    D, count = 1 + bidirectional, len(weights) // num_layers
    if o._replace(weights=weights[:count]).named[0].w_hr is not None:
        raise RuntimeError(
            "fusedrnn: only torch.onnx.export(..., dynamo=True) can export an LSTM with proj_size"
        )
    packed = not _helper._is_none(batch_sizes)
    # torch's exporter undoes a packing that it sees within the model. Packed rows from outside it
    # would take for padded ones.
    if packed and batch_sizes.node().kind() != "prim::PackPadded":
        raise RuntimeError(
            "fusedrnn: to export a packed sequence to ONNX, call pack_padded_sequence within the "
            "model"
        )
    if dropout and train and num_layers > 1:
        raise RuntimeError(
            "fusedrnn: torch.onnx.export(..., dynamo=False) cannot export dropout between layers: "
            "call model.eval() first"
        )

    def state(x: Any, layer: int) -> Any:
        if num_layers == 1 or _helper._is_none(x):
            return x
        return _helper._slice_helper(g, x, axes=[0], starts=[layer * D], ends=[(layer + 1) * D])

    finals: list[tuple[Any, ...]] = []
    for i in range(num_layers):
        own = weights[i * count : (i + 1) * count]
        states = (state(hx, i), state(cx, i))
        sizes = batch_sizes if packed else None
        layer = Operands(input, sizes, *states, own, o.mode, o.has_biases)
        input, *final = _old_layer(g, layer, bidirectional)
        finals.append(tuple(final))
    h_n, c_n = (
        each[0] if num_layers == 1 else g.op("Concat", *each, axis_i=0)
        for each in zip(*finals, strict=True)
    )
    return input, h_n, c_n, g.op("Constant", value_t=torch.empty(0))


def _old_layer(g: Any, o: Operands, bidirectional: int) -> tuple[Any, Any, Any]:
    """Output, h_n and c_n of the node that torch makes of its own layers; c_n is empty where the
    cell has none."""
    # Private, so it is looked up only when it is needed: if torch moves it, only this export fails.
    from torch.onnx._internal.torchscript_exporter.symbolic_opset9 import _generic_rnn

    with warnings.catch_warnings():
        # It warns of a fixed batch size in the states that torch.nn's modules make when given none.
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size")
        output, h_n, *c_n = _generic_rnn(
            g,
            o.mode,
            o.input,
            (o.hx, o.cx) if o.cell.has_c else o.hx,
            o.weights,
            o.has_biases,
            num_layers=1,
            dropout=0.0,
            train=0,
            bidirectional=bidirectional,
            batch_sizes=o.batch_sizes,
        )
    return output, h_n, c_n[0] if c_n else g.op("Constant", value_t=torch.empty(0))


def _symbolic_cell(g: Any, *arguments: Any) -> tuple[Any, Any]:
    """The operator ``cell`` in the old exporter's graph: a layer of one time step."""
    *states, w_ih, w_hh, b_ih, b_hh, mode = arguments
    has_biases = not _helper._is_none(b_ih)
    weights = [w_ih, w_hh, b_ih, b_hh] if has_biases else [w_ih, w_hh]

    def lifted(x: Any) -> Any:
        return x if _helper._is_none(x) else _helper._unsqueeze_helper(g, x, [0])

    input, hx, cx = map(lifted, states)
    o = Operands(input, None, hx, cx, weights, mode, has_biases)
    _, h_n, c_n = _old_layer(g, o, 0)
    h = _helper._squeeze_helper(g, h_n, [0])
    return h, _helper._squeeze_helper(g, c_n, [0]) if o.cell.has_c else c_n


if _helper is not None and _register is not None:
    # What is registered for opset 9, the old exporter's first, serves all later ones.
    _register("fusedrnn::stack", _parsed("vvvvvsiifiivvvvii")(_symbolic_stack), 9)
    _register("fusedrnn::cell", _parsed("vvvvvvvs")(_symbolic_cell), 9)
