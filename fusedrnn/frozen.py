"""Layers for inference alone, whose weights are packed once and never change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import _C
from ._ops import frozen_file
from ._ops.course import Course
from ._ops.quantize import quantized, restored
from ._ops.stack import Flags
from .mgu import MGU
from .modules import GRU, LSTM, RNN, _Recurrent
from .stream import Stream

# The overload itself, as in _ops/stack.py.
_operator = torch.ops.fusedrnn.frozen.default

# What a frozen layer keeps of the one that it was made of.
_ATTRIBUTES = (
    "mode",
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "proj_size",
)

_KINDS = {"bias": bool, "batch_first": bool, "dropout": float, "bidirectional": bool}  # others: int


def _is_packed(name: str) -> bool:
    """Whether a weight is one of those that a step reads whole: W_ih and W_hh."""
    return name.startswith(("weight_ih", "weight_hh")) and not name.endswith("_scale")


def _plain(frozen: _Frozen) -> nn.RNNBase:
    """The layer with parameters that a frozen one was made of, but for their values."""
    cls = next(base for base in type(frozen).__mro__ if base in (RNN, LSTM, GRU, MGU))
    own = {name: getattr(frozen, name) for name in _ATTRIBUTES[1:]}
    if cls is not LSTM:
        del own["proj_size"]
    if cls is RNN:
        own["nonlinearity"] = frozen.nonlinearity
    return cls(**own, dtype=frozen._original)


def _shown(tensor: tuple[torch.Size, torch.dtype] | None) -> str:
    return "absent" if tensor is None else f"{tensor[1]} {list(tensor[0])}"


class _Frozen(_Recurrent):
    """What the frozen layers share: what they keep, and how they run."""

    dtype: torch.dtype  # of W_ih and W_hh
    nonlinearity: str  # of an RNN alone
    _original: torch.dtype  # of the layer that was frozen
    _kept: dict[str, Tensor]  # the small weights by name, and the scales of int8
    _stack: _C.FrozenStack
    _number: int  # of _stack, for the operator

    def __init__(self, layer: nn.RNNBase, dtype: torch.dtype | None = None) -> None:
        nn.Module.__init__(self)
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(layer, name))
        if hasattr(layer, "nonlinearity"):
            self.nonlinearity = str(layer.nonlinearity)
        self.training = False
        # By attribute: a parametrization or pruning makes a weight there.
        names = layer._flat_weights_names
        weights = {name: getattr(layer, name).detach() for name in names}
        self._original = weights["weight_ih_l0"].dtype
        self._keep(weights, dtype)

    def _keep(self, weights: dict[str, Tensor], dtype: torch.dtype | None) -> None:
        """Pack the weights. The small ones stay as they are beside the pack, for state_dict."""
        self._kept = {}
        self.dtype = dtype or self._original
        given, scales = [], []
        for name, value in weights.items():
            if name.endswith("_scale"):
                continue
            if not _is_packed(name):
                given.append(value)
                self._kept[name] = value
                continue
            if self.dtype == torch.int8:
                scale = weights.get(f"{name}_scale")
                value, scale = quantized(value) if scale is None else (value, scale)
                self._kept[f"{name}_scale"] = scale
                scales.append(scale)
            given.append(value.to(self.dtype).to(self._stored))
        directions = 2 if self.bidirectional else 1
        projected = getattr(self, "proj_size", 0) > 0
        self._stack = _C.FrozenStack(
            self.mode, self.num_layers, directions, self.bias, projected, given, scales
        )
        self._number = self._stack.number()

    @property
    def _stored(self) -> torch.dtype:
        """Of the packed weights. There are no instructions for float16, so it is float32 there."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        """The weights in torch's order, unpacked."""
        for layer in range(self.num_layers):
            for direction in range(2 if self.bidirectional else 1):
                ending = f"_l{layer}{'_reverse' if direction else ''}"
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
                    own = name + ending
                    if _is_packed(own):
                        unpacked = self._stack.unpacked(layer, direction, name == "weight_hh")
                        yield own, unpacked.to(self.dtype)
                        if self.dtype == torch.int8:
                            yield f"{own}_scale", self._kept[f"{own}_scale"]
                    elif own in self._kept:
                        yield own, self._kept[own]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self._all():
            destination[prefix + name] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Pack what a state_dict holds, of a frozen layer of the same dtype or of a plain one.
        Streams that were made before go on with the weights from before."""
        names = [name for name, _ in self._all()]
        there = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        # A plain layer's weights have no scales.
        low = any(value.dtype == torch.int8 for value in there.values())
        missing = [n for n in names if n not in there and (low or not n.endswith("_scale"))]
        missing_keys += [prefix + name for name in missing]
        for name, value in self._all():
            if name in there and there[name].shape != value.shape:
                error_msgs.append(
                    f"size mismatch for {prefix}{name}: copying a param with shape "
                    f"{there[name].shape} from checkpoint, the shape in current model is "
                    f"{value.shape}."
                )
        known = {prefix + name for name in names}
        own = [key for key in state_dict if key.startswith(prefix)]
        unexpected_keys += [key for key in own if strict and key not in known]
        if not missing and not error_msgs:
            self._keep(there, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed for this machine."""
        state = dict(self.__dict__)
        del state["_stack"]
        state["_weights"] = dict(self._all())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights")
        self.__dict__.update(state)
        self._keep(weights, self.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> _Frozen:
        """What ``to()``, ``cuda()``, ``half()`` and their like call: refuse what would change."""
        like = torch.empty(0, dtype=self._original)
        moved = fn(like)
        if moved.device.type != "cpu" or moved.dtype != like.dtype:
            raise RuntimeError(
                f"fusedrnn: a frozen layer stays {self._original} on the CPU, got "
                f"{moved.dtype} on {moved.device}: thaw() it, move it and freeze() it again"
            )
        return self

    def train(self, mode: bool = True) -> _Frozen:
        """Do nothing: there is inference alone, without dropout."""
        return self

    def _current_weights(self) -> list[Tensor]:
        return []

    def _flags(self) -> Flags:
        return super()._flags()._replace(dropout=0.0, training=False)

    def _operator(self, input: Tensor, sizes: Any, hx: Any, cx: Any, *rest: Any) -> Any:
        """The operator ``stack`` with our weights."""
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "fusedrnn: a frozen layer cannot be exported, its weights are packed for this "
                "machine: thaw() it first"
            )
        course = Course(*rest[7:])
        return _operator(input, sizes, hx, cx, self._number, *course[:5])

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """torch.nn's check, which asks the first weight for its dtype."""
        dim = 3 if batch_sizes is None else 2
        if input.dim() != dim:
            raise RuntimeError(f"input must have {dim} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def stream(self, batch: int = 1) -> Stream:
        """Sequences that go on, a step at a time; see :class:`fusedrnn.Stream`.

        Args:
            batch: rows, that is sequences that advance together; 0 or more. Default: 1.
        Returns:
            A stream whose states are zeros.
        Raises:
            ValueError: a negative ``batch``, or a bidirectional layer.
        """
        return Stream(self._stack, batch)

    def step(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of all layers, without most of what a call takes beside the kernel.

        Args:
            input: [B, I], float32 (float64 if the layer was).
            state: as ``hx`` of the class; zeros when None.
        Returns:
            Output [B, P], and the state after the step, shaped as ``hx``.
        Raises:
            ValueError: a bidirectional layer.
            RuntimeError: another shape or dtype, or where a gradient is asked for.
        """
        if torch.compiler.is_compiling() and not self.bidirectional:  # a graph holds operators
            time = 1 if self.batch_first else 0
            steps, end = self(input.unsqueeze(time), state)
            return steps.squeeze(time), end
        h, c = state if isinstance(state, tuple | list) else (state, None)
        output, h_n, c_n = self._stack.step(input, h, c)
        return output, h_n if c_n is None else (h_n, c_n)

    def thaw(self) -> nn.RNNBase:
        """A layer with parameters again, in the dtype that was frozen, of the weights as they are
        now: those of int8 are what the int8 stand for.

        Returns:
            A layer of the class without "Frozen".
        """
        layer = _plain(self)
        with torch.no_grad():
            weights = dict(self._all())
            for name, value in layer.named_parameters():
                scale = weights.get(f"{name}_scale")
                value.copy_(weights[name] if scale is None else restored(weights[name], scale))
        return layer.eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to a file, which :func:`fusedrnn.load` reads, and C programs by
        ``fusedrnn.h``. It is a safetensors file of ``state_dict()``, whose metadata say what the
        layer is. A file that is there is replaced, and never left half written.

        Args:
            path: where to; ``.safetensors`` is the usual ending.
        Raises:
            OSError: a place that cannot be written to.
        """
        about = {name: getattr(self, name, 0) for name in _ATTRIBUTES}  # 0: no proj_size
        about["dropout"] = float(self.dropout)
        about["dtype"] = str(self.dtype).removeprefix("torch.")
        about["layer_dtype"] = str(self._original).removeprefix("torch.")
        frozen_file.write(path, about, dict(self._all()))

    @classmethod
    def _of_file(cls, about: dict[str, str], tensors: dict[str, Tensor]) -> _Frozen:
        """The layer of what a file says; ValueError where its tensors are not the layer's."""
        missing = {*_ATTRIBUTES, "dtype", "layer_dtype"} - about.keys()
        if missing:
            raise ValueError(f"it says nothing of {', '.join(sorted(missing))}")
        frozen = cls.__new__(cls)
        nn.Module.__init__(frozen)
        frozen.mode = about["mode"]
        for name in _ATTRIBUTES[1:]:
            value = json.loads(about[name])
            kind = _KINDS.get(name, int)
            if type(value) is not kind:
                raise ValueError(f"{name} must be {kind.__name__}, got {about[name]}")
            setattr(frozen, name, value)
        if issubclass(cls, RNN):
            frozen.nonlinearity = frozen.mode.rpartition("_")[2].lower()
        frozen.training = False
        frozen.dtype = frozen_file.dtype_of(about["dtype"])
        frozen._original = frozen_file.dtype_of(about["layer_dtype"])
        with torch.device("meta"):
            plain = _plain(frozen).state_dict()
        wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for name, value in plain.items():
            wanted[name] = (value.shape, frozen.dtype if _is_packed(name) else value.dtype)
            if _is_packed(name) and frozen.dtype == torch.int8:
                wanted[f"{name}_scale"] = (value.shape[:1], torch.float32)
        found = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"tensor {name!r} must be {_shown(wanted.get(name))}, "
                    f"got {_shown(found.get(name))}"
                )
        frozen._keep({name: tensors[name] for name in wanted}, frozen.dtype)
        return frozen

    def extra_repr(self) -> str:
        """What ``print(model)`` shows between the brackets."""
        dtype = "" if self.dtype == self._original else f", dtype={self.dtype}"
        return super().extra_repr() + dtype


class FrozenRNN(_Frozen, RNN):
    """:class:`fusedrnn.RNN` (Elman, 1990) for inference alone.

    :func:`fusedrnn.freeze` makes it.

    Args:
        layer: RNN of this package or of torch.nn, on the CPU.
        dtype: of W_ih and W_hh, as for :func:`fusedrnn.freeze`. Default: None, the layer's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a PackedSequence,
            in the dtype that the layer took; bfloat16 and float16 too, where that is float32.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states, as for
            :meth:`fusedrnn.GRU.forward`. Default: none of them.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError, TypeError: as :class:`fusedrnn.RNN`.
        RuntimeError: as :class:`fusedrnn.RNN`; and where a gradient is asked for, or a move to
            another device or dtype.
    """


class FrozenLSTM(_Frozen, LSTM):
    """:class:`fusedrnn.LSTM` (Hochreiter & Schmidhuber, 1997) for inference alone.

    :func:`fusedrnn.freeze` makes it.

    Args:
        layer: LSTM of this package or of torch.nn, on the CPU.
        dtype: of W_ih and W_hh, as for :func:`fusedrnn.freeze`. Default: None, the layer's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a PackedSequence,
            in the dtype that the layer took; bfloat16 and float16 too, where that is float32.
        hx: (h_0, c_0), [L*D, B, P] and [L*D, B, H], without B if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states, as for
            :meth:`fusedrnn.GRU.forward`. Default: none of them.
    Outputs:
        output [T, B, D*P], laid out as the input, and (h_n, c_n) shaped as hx.
    Raises:
        ValueError, TypeError, IndexError: as :class:`fusedrnn.LSTM`.
        RuntimeError: as :class:`fusedrnn.LSTM`; and where a gradient is asked for, or a move to
            another device or dtype.
    """


class FrozenGRU(_Frozen, GRU):
    """:class:`fusedrnn.GRU` (Cho et al., 2014) for inference alone.

    :func:`fusedrnn.freeze` makes it.

    Args:
        layer: GRU of this package or of torch.nn, on the CPU.
        dtype: of W_ih and W_hh, as for :func:`fusedrnn.freeze`. Default: None, the layer's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a PackedSequence,
            in the dtype that the layer took; bfloat16 and float16 too, where that is float32.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states, as for
            :meth:`fusedrnn.GRU.forward`. Default: none of them.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError, TypeError: as :class:`fusedrnn.GRU`.
        RuntimeError: as :class:`fusedrnn.GRU`; and where a gradient is asked for, or a move to
            another device or dtype.
    """


class FrozenMGU(_Frozen, MGU):
    """:class:`fusedrnn.MGU` (Zhou et al., 2016) for inference alone.

    :func:`fusedrnn.freeze` makes it.

    Args:
        layer: MGU of this package, on the CPU.
        dtype: of W_ih and W_hh, as for :func:`fusedrnn.freeze`. Default: None, the layer's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a PackedSequence,
            in the dtype that the layer took; bfloat16 and float16 too, where that is float32.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states, as for
            :meth:`fusedrnn.GRU.forward`. Default: none of them.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError, TypeError: as :class:`fusedrnn.MGU`.
        RuntimeError: as :class:`fusedrnn.MGU`; and where a gradient is asked for, or a move to
            another device or dtype.
    """
