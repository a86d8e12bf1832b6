"""torch.nn as the oracle: what it does with a call, to be compared with what ours does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence

import fusedrnn
from support.theirs import THEIRS


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call does: ("returned", value) or the exception's type and text; then warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result: tuple[Any, ...] = ("returned", call())
        except Exception as error:
            result = (type(error), str(error))
    kept = [(w.category, str(w.message)) for w in caught if "oneDNN" not in str(w.message)]
    return (*result, kept)


def refusal(call: Callable[[], Any]) -> tuple[Any, ...]:
    """As outcome(), asserting that the call is refused."""
    result = outcome(call)
    assert result[0] != "returned", result
    return result


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's module of this name, made with the same seed."""
    modules = []
    for namespace in (fusedrnn, THEIRS):
        torch.manual_seed(0)
        modules.append(getattr(namespace, name)(*args, **kwargs))
    return modules[0], modules[1]


def ours_in(model: nn.Module) -> list[str]:
    """The names of the layers and cells of a model that fusedrnn runs."""
    return [layer.name for layer in fusedrnn.explain(model).layers if layer.ours]


def shown(module: nn.Module) -> str:
    """What print(module) shows, without whose layers they are."""
    return repr(module).replace("fusedrnn.", "")


def close(ours: object, theirs: object) -> None:
    """Assert that two float32 results, nested alike, agree to rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def states(name: str, *shape: int, **options: Any) -> Any:
    """A random hx for the module of this name: a pair for LSTM and LSTMCell."""
    h = torch.randn(shape, **options)
    return (h, torch.randn(shape, **options)) if name.startswith("LSTM") else h


def tensors_of(result: Any) -> tuple[Tensor, ...]:
    """All tensors of a module's result."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, PackedSequence):
        return (result.data,)
    return tuple(t for item in result for t in tensors_of(item))


def packed(rows: Sequence[Tensor], *, enforce_sorted: bool = True) -> PackedSequence:
    """torch's pack_sequence, which loses its way when the default device is no CPU: lengths
    belong on the CPU."""
    lengths = torch.tensor([len(row) for row in rows], device="cpu")
    return pack_padded_sequence(pad_sequence(list(rows)), lengths, enforce_sorted=enforce_sorted)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """torch.nn on its own kernels, which can what cuDNN can't: gradients in eval mode and of
    gradients, strided states, empty batches. Without effect on the CPU."""
    # torch.backends.cudnn.flags would also reset the precision.
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def step(model: Any, x: Tensor, *, seed: int = 5) -> tuple[Tensor, list[Tensor | None]]:
    """A training step's output and gradients; dropout draws the same each time."""
    torch.manual_seed(seed)
    model.zero_grad()
    output = tensors_of(model(x))[0]
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output, [p.grad for p in model.parameters()]
