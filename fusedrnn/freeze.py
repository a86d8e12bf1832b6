"""Makes the recurrent layers of a model ready to serve, and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import nn

from ._ops import frozen_file
from .frozen import FrozenGRU, FrozenLSTM, FrozenMGU, FrozenRNN, _Frozen
from .mgu import MGU

Model = TypeVar("Model", bound=nn.Module)

DTYPES = (None, torch.bfloat16, torch.float16, torch.int8)
_KINDS: dict[str, type[_Frozen]] = {
    "RNN_TANH": FrozenRNN,
    "RNN_RELU": FrozenRNN,
    "LSTM": FrozenLSTM,
    "GRU": FrozenGRU,
    "MGU": FrozenMGU,
}

_log = logging.getLogger(__package__)


@overload
def freeze(model: nn.LSTM, dtype: torch.dtype | None = None) -> FrozenLSTM: ...
@overload
def freeze(model: nn.GRU, dtype: torch.dtype | None = None) -> FrozenGRU: ...
@overload
def freeze(model: nn.RNN, dtype: torch.dtype | None = None) -> FrozenRNN: ...
@overload
def freeze(model: MGU, dtype: torch.dtype | None = None) -> FrozenMGU: ...
@overload
def freeze(model: Model, dtype: torch.dtype | None = None) -> Model: ...
def freeze(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a layer's inference-only twin, or those of every layer in a model.

    A frozen layer takes what the layer took and returns the same. Its weights are packed once, for
    this machine, and never change: threads and forked processes share them, and a pickle is packed
    again where it is loaded. It has no parameters; ``state_dict`` and ``thaw`` unpack them. Steps
    one by one, in chunks or as one call give the same bits. For single steps see ``stream`` and
    ``step`` of :class:`fusedrnn.FrozenLSTM`.

    Args:
        model: an RNN, LSTM, GRU or MGU of this package or of torch.nn on the CPU, of which the twin
            is returned; or any other module, in which every such layer is replaced, in place. Cells
            stay as they are.
        dtype: of the weights W_ih and W_hh. None: as they are. torch.bfloat16: half of the bytes,
            and products in bfloat16 where the machine has AVX512-BF16 or AMX. torch.int8: a quarter
            of the bytes and products of int8; each row of weights has a scale, and so has each row
            of x and h in each step. torch.float16: half of the bytes where it is stored, float32
            here. States, gates and sums are float32, and so is what goes in and out. Default: None.
    Returns:
        The twin, or the model.
    Raises:
        TypeError: not a module.
        ValueError: another dtype, or one of these for a float64 layer.
        RuntimeError: a layer that is not on the CPU.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"fusedrnn.freeze: expected a torch.nn.Module, got {type(model).__name__}: "
            "call it on the model that holds the layers"
        )
    if dtype not in DTYPES:
        raise ValueError(
            "fusedrnn.freeze: dtype must be None, torch.bfloat16, torch.float16 or torch.int8, "
            f"got {dtype}"
        )
    return _replace(model, nn.RNNBase, lambda layer: _twin(layer, dtype))


def thaw(model: Model) -> Model:
    """Undo :func:`freeze`: layers with parameters again.

    Args:
        model: a frozen layer, of which a plain one is returned; or any other module, in which every
            frozen layer is replaced, in place.
    Returns:
        The plain layer, or the model. Weights that were frozen as bfloat16, float16 or int8 stay
        rounded.
    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"fusedrnn.thaw: expected a torch.nn.Module, got {type(model).__name__}: "
            "call it on the model that holds the layers"
        )
    return _replace(model, _Frozen, _Frozen.thaw)


def load(path: str | os.PathLike[str]) -> FrozenLSTM | FrozenGRU | FrozenRNN | FrozenMGU:
    """Read a frozen layer from a file that its ``save`` wrote, and pack it for this machine.

    Args:
        path: the file.
    Returns:
        The layer, as it was frozen: same class, flags, dtype and, on the same machine, bits.
    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: a damaged file, or one of another kind.
    """
    try:
        about, tensors = frozen_file.read(path)
        kind = _KINDS.get(about.get("mode", ""))
        if kind is None:
            raise ValueError(f"mode {about.get('mode')!r} is unknown")
        return kind._of_file(about, tensors)  # type: ignore[return-value]
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"fusedrnn.load: cannot read {os.fspath(path)}: {error}") from error


def _replace(model: Model, kind: type[nn.Module], made: Callable[[Any], nn.Module]) -> Model:
    """``made`` of a layer, or a model with it in the place of each. Nothing is changed where one
    cannot be made; a layer that has several places gets one twin."""
    if isinstance(model, kind):
        return made(model)  # type: ignore[return-value]
    twins = {id(layer): made(layer) for layer in model.modules() if isinstance(layer, kind)}
    for name, parent in [*model.named_modules()]:
        for own, layer in [*parent._modules.items()]:
            if id(layer) in twins:
                setattr(parent, own, twins[id(layer)])
                _log.info("%s is %r now", f"{name}.{own}".lstrip("."), twins[id(layer)])
    return model


def _twin(layer: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    if isinstance(layer, _Frozen):
        return layer if dtype in (None, layer.dtype) else _twin(layer.thaw(), dtype)
    cls = _KINDS.get(getattr(layer, "mode", ""))
    if cls is None:
        raise TypeError(f"fusedrnn.freeze: no frozen layer for {type(layer).__name__}")
    weight = layer.weight_ih_l0
    if weight.device.type != "cpu":
        raise RuntimeError(
            f"fusedrnn.freeze: layers must be on the CPU, got {weight.device}: call model.cpu() "
            "first"
        )
    if weight.dtype == torch.float64 and dtype is not None:
        raise ValueError(
            f"fusedrnn.freeze: a float64 layer is frozen as it is, got dtype={dtype}: call "
            "model.float() first"
        )
    return cls(layer, dtype)  # type: ignore[arg-type]
