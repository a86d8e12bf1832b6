"""Changes the recurrent layers of an existing model to fusedrnn's, and back.

A live module is changed by assigning to its ``__class__``. Both classes keep the same state, so
every reference to the module, its Parameters or its hooks stays valid, and nothing is copied.
"""

from __future__ import annotations

import logging
import warnings
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from .layers import OURS, TORCHS, Layer, layers_of

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__package__)


def convert(model: Model) -> Model:
    """Change every torch.nn RNN, LSTM, GRU and cell of a model to fusedrnn's, in place.

    The layers stay the same objects and only change their class. Parameters, buffers, hooks,
    tied weights, parametrizations, pruning, weight norm, ``requires_grad``, training mode,
    dtype, device and every attribute survive, and an optimizer goes on. Call it before
    ``fully_shard`` and before TorchScript; before or after ``torch.compile``, DataParallel and
    DistributedDataParallel.

    Subclasses of torch.nn's layers may override anything, so they are left alone, with a
    warning that names them: derive the subclass from fusedrnn's, or import it under
    :func:`patch`. A ``forward`` set on an instance, not in its class, stays in force.

    Every change is logged (``logging.getLogger("fusedrnn")``, level INFO), and
    ``explain(model)`` lists the layers and whose they are.

    Args:
        model: any module, also a recurrent layer itself; changed in place.
    Returns:
        The same model.
    Raises:
        TypeError: not a module, or a model with recurrent layers compiled by TorchScript.
            Nothing has been changed then.

    Example::

        model = fusedrnn.convert(model)
        print(fusedrnn.explain(model))
    """
    return _swap(model, "convert", to_ours=True)


def to_torch(model: Model) -> Model:
    """Change every fusedrnn RNN, LSTM, GRU and cell of a model to torch.nn's, in place.

    Undoes :func:`convert`, and also changes models that were built with fusedrnn. Use it for
    tools that know only torch.nn's classes (TorchScript, ``quantize_dynamic``), and for models
    and exported programs that must load where fusedrnn is not installed. The same things
    survive as in :func:`convert`. A layer that torch.nn does not have is left alone, with a warning
    that names it. On a GPU the weights are gathered for cuDNN, as torch.nn does
    when it builds a layer. The classes are torch's own, under :func:`patch` too.

    Args:
        model: any module, also a recurrent layer itself; changed in place.
    Returns:
        The same model.
    Raises:
        TypeError: as :func:`convert`.

    Example::

        scripted = torch.jit.script(fusedrnn.to_torch(model))
    """
    return _swap(model, "to_torch", to_ours=False)


def _swap(model: Model, name: str, to_ours: bool) -> Model:
    """Replace the classes of a model's layers; refuse before anything is changed."""
    if not isinstance(model, nn.Module):
        exported = isinstance(model, torch.export.ExportedProgram)
        remedy = "what it was exported from" if exported else "the model that holds the layers"
        raise TypeError(
            f"fusedrnn.{name}: expected a torch.nn.Module, got {type(model).__name__}: "
            f"call it on {remedy}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(_scripted("the model", name))
    found = layers_of(model).layers
    for layer in found:
        if layer.scripted:
            raise TypeError(_scripted(layer.label, name))
    theirs = [layer for layer in found if layer.ours is not to_ours]
    for layer in theirs:
        if layer.subclass or not layer.torch_has_it:
            _log.info("%s: left alone %s", name, layer)
        else:
            _change(layer, to_ours)
            _log.info("%s: %s is %r now", name, layer.label, layer.module)
    source, target = ("torch.nn", "fusedrnn") if to_ours else ("fusedrnn", "torch.nn")
    alone = [layer for layer in theirs if not layer.torch_has_it]
    if derived := [layer for layer in theirs if layer.subclass and layer not in alone]:
        warnings.warn(
            f"fusedrnn.{name} left alone what is of a subclass of {source}'s: {_named(derived)}; "
            f"derive the subclass from {target}'s instead",
            stacklevel=3,
        )
    if alone:
        warnings.warn(
            f"fusedrnn.{name} left alone what torch.nn does not have: {_named(alone)}; "
            "where fusedrnn is not installed, the model cannot be loaded",
            stacklevel=3,
        )
    return model


def _named(layers: list[Layer]) -> str:
    return ", ".join(f"{layer.label} ({type(layer.module).__qualname__})" for layer in layers)


def _scripted(label: str, name: str) -> str:
    return (
        f"fusedrnn.{name}: {label} is a TorchScript module, whose code is compiled: "
        f"call fusedrnn.{name} on the module before torch.jit"
    )


def _change(layer: Layer, to_ours: bool) -> None:
    module, cls = layer.module, (OURS if to_ours else TORCHS)[layer.kind]
    parametrized = parametrize.is_parametrized(module)
    if parametrized:
        # torch made this module a class of its own, with a property for each parametrized weight.
        # Make the same class again, on top of the other base.
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    module.__class__ = cls
    # Parametrized weights wait for the first call, because computing them may have side effects.
    if not to_ours and isinstance(module, nn.RNNBase) and not parametrized:
        module._init_flat_weights()
