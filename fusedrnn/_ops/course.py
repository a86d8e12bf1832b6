"""What a layer is told of its sequences beyond torch.nn's arguments: where they end, where their
state is cut, and what is kept of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from .cells import CELLS

if TYPE_CHECKING:
    State = Tensor | tuple[Tensor, Tensor]


class Keywords(TypedDict, total=False):
    """The keyword arguments of ``forward`` beyond torch.nn's, but for ``return_states``."""

    lengths: Tensor | None
    resets: Tensor | None
    reset_state: State | None
    checkpoint_every: int | Literal["auto"] | None


AUTOMATIC = -1  # the operators' `every`: by the memory budget
_STATES = {False: 0, True: 1, "all": 2}
_NAMES = (*Keywords.__annotations__, "return_states")


class Course(NamedTuple):
    """The last arguments of the operator ``stack``, in its order: time first, [T, B]."""

    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_h: Tensor | None = None
    reset_c: Tensor | None = None
    states: int = 0  # of no layer, of the top one, of all
    every: int = 0

    @property
    def is_cut(self) -> bool:
        return self.lengths is not None or self.resets is not None


PLAIN = Course()  # torch.nn's behaviour


def _wrong(name: str, expected: str, given: Any) -> str:
    return f"fusedrnn: {name} must be {expected}, got {type(given).__name__}"


def course_of(mode: str, keywords: dict[str, Any]) -> Course:
    """The keyword arguments of ``forward``, checked by themselves; their shapes are the operator's
    to check. Tensors are still laid out as the caller has them.

    Raises:
        TypeError: an argument that is of another type, or that there is not.
        ValueError: a number or word that is none of those there are.
        RuntimeError: ``reset_state`` without ``resets``.
    """
    for name in keywords:
        if name not in _NAMES:
            raise TypeError(f"fusedrnn: arguments must be of {', '.join(_NAMES)}, got {name!r}")
    return _course(mode, **keywords) if keywords else PLAIN


def _course(
    mode: str,
    *,
    lengths: Any = None,
    resets: Any = None,
    reset_state: Any = None,
    return_states: Any = False,
    checkpoint_every: Any = None,
) -> Course:
    for name, given in (("lengths", lengths), ("resets", resets)):
        if given is not None and not isinstance(given, Tensor):
            raise TypeError(_wrong(name, "a Tensor or None", given))
    if not isinstance(return_states, bool) and return_states != "all":
        raise ValueError(
            f'fusedrnn: return_states must be False, True or "all", got {return_states!r}'
        )
    reset_h, reset_c = _reset_states(mode, resets, reset_state)
    states, every = _STATES[return_states], _every(checkpoint_every)
    return Course(lengths, resets, reset_h, reset_c, states, every)


def _reset_states(mode: str, resets: Any, given: Any) -> tuple[Tensor | None, Tensor | None]:
    if given is not None and resets is None:
        raise RuntimeError("fusedrnn: reset_state must be None without resets: pass resets too")
    if not CELLS[mode].has_c:
        states: tuple[Any, Any] = (given, None)
    elif given is None:
        states = (None, None)
    elif isinstance(given, Tensor):
        raise TypeError("fusedrnn: reset_state must be (h, c), got one Tensor")
    elif not isinstance(given, tuple | list):
        raise TypeError(_wrong("reset_state", "(h, c)", given))
    elif len(given) != 2:
        raise RuntimeError(f"fusedrnn: reset_state must be (h, c), got {len(given)} of them")
    else:
        states = (given[0], given[1])
    for state in states:
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(_wrong("reset_state", "of Tensors", state))
    return states


def _every(given: Any) -> int:
    if given is None:
        return 0
    if given == "auto":
        return AUTOMATIC
    if isinstance(given, bool) or not isinstance(given, int | torch.SymInt):
        if isinstance(given, str):
            expected = 'a number of steps, "auto" or None'
            raise ValueError(f"fusedrnn: checkpoint_every must be {expected}, got {given!r}")
        raise TypeError(_wrong("checkpoint_every", 'an int, "auto" or None', given))
    if given < 1:
        raise ValueError(f"fusedrnn: checkpoint_every must be 1 or more, got {given}")
    return int(given)


def unbatched(given: Course) -> Course:
    """With a batch of one: lengths [] become [1], resets [T, 1], reset states [L*D, 1, P]."""

    def added(name: str, x: Tensor | None, dim: int, at: int) -> Tensor | None:
        if x is None:
            return None
        if x.dim() != dim:
            raise RuntimeError(
                f"fusedrnn: for unbatched 2-D input, {name} must be {dim}-D, got {x.dim()}-D"
            )
        return x.unsqueeze(at)

    lengths = added("lengths", given.lengths, 0, 0)
    resets = added("resets", given.resets, 1, 1)
    reset_h = added("reset_state", given.reset_h, 2, 1)
    reset_c = added("reset_state", given.reset_c, 2, 1)
    return given._replace(lengths=lengths, resets=resets, reset_h=reset_h, reset_c=reset_c)


def time_first(given: Course, input: Tensor) -> Course:
    """Of a layer with ``batch_first``: resets [B, T] become [T, B]."""
    if given.resets is None:
        return given
    if given.resets.shape != input.shape[:2]:
        expected, got = list(input.shape[:2]), list(given.resets.shape)
        raise RuntimeError(f"fusedrnn: resets must be Bool {expected} (B, T), got {got}")
    return given._replace(resets=given.resets.transpose(0, 1))
