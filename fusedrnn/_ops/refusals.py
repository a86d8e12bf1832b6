"""What is refused in Python, in torch.nn's words where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# What torch.nn calls a layer and its input where that is not the mode.
_WORDS = {"RNN_TANH": ("RNN", " tensor"), "RNN_RELU": ("RNN", " tensor")}


def check_dim(mode: str, dim: int) -> None:
    """Raise torch.nn's ValueError unless input is 2-D (unbatched) or 3-D."""
    if dim not in (2, 3):
        name, noun = _WORDS.get(mode, (mode, ""))
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D{noun} instead")


def refuse_types(error: RuntimeError, weights: Sequence[Tensor]) -> None:
    """Raise a TypeError, as torch.nn does, if what an operator refused is a type of its schema."""
    operator, _, what = str(error).partition("\n")[0].partition("() Expected ")
    if what and operator.startswith("fusedrnn::"):
        kinds = ", ".join(sorted({type(weight).__name__ for weight in weights}))
        what = what.replace("type 'list'", f"a list of {kinds}")
        raise TypeError(f"fusedrnn: expected {what}") from None


def refuse_states(name: str, hx: Tensor | Sequence[Tensor]) -> None:
    """Raise what torch.nn raises for states of an LSTM that are not a pair."""
    if isinstance(hx, Tensor):
        raise TypeError(
            f"{name}(): argument 'hx' must be tuple of Tensors, not Tensor: "
            "an LSTM has two states, pass (h, c)"
        )
    raise RuntimeError(f"{name} expects two hidden states")


def two_states(hx: Any) -> tuple[Tensor | None, Tensor | None]:
    """An LSTM's h and c; refuse what is not a pair."""
    if hx is None:
        return None, None
    if len(hx) != 2 or isinstance(hx, Tensor):
        refuse_states("lstm", hx)
    return hx[0], hx[1]


def rnn_mode(nonlinearity: str) -> str:
    """The operators' name for an Elman RNN with this nonlinearity."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"RNN_{nonlinearity.upper()}"
