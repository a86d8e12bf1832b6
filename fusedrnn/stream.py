"""Sequences that go on and on, advanced a step at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _C


class Stream:
    """Sequences that advance together and go on and on, as sound or a market's prices do.

    It owns their states and everything that a step takes, so that a step allocates nothing. A step
    runs on the calling thread, without torch's dispatcher, and without Python's lock unless it
    takes less than some 6 us, when handing the lock over would take longer. Each thread
    needs a stream of its own; they share the weights. :meth:`fusedrnn.FrozenLSTM.stream` makes
    one. Steps one by one, in chunks or all at once give the same bits.

    Args:
        stack: a frozen layer's packed weights.
        batch: B, how many sequences.
    Raises:
        ValueError: a negative ``batch``, or weights of two directions, of which one begins at a
            sequence's end.
    """

    def __init__(self, stack: _C.FrozenStack, batch: int) -> None:
        self._stream = _C.Stream(stack, batch)

    @property
    def batch(self) -> int:
        """B, the sequences there are."""
        return self._stream.rows

    def step(self, x: Any) -> Any:
        """Advance every sequence by one step.

        Args:
            x: [B, I], a contiguous numpy array or CPU tensor, float32 (float64 if the layer was).
        Returns:
            The top layer's h [B, P], a numpy array that belongs to the stream: the next step
            writes over it.
        Raises:
            RuntimeError: another shape or dtype, or another thread in the same stream.
            TypeError: neither an array nor a Tensor.
        """
        return self._stream.step(x)

    def run(self, x: Tensor) -> Tensor:
        """Advance every sequence by T steps.

        Args:
            x: [T, B, I], a CPU tensor, float32 (float64 if the layer was).
        Returns:
            The top layer's h [T, B, P], a tensor of its own.
        Raises:
            RuntimeError: as :meth:`step`.
        """
        return self._stream.run(x)

    def reset(self, row: int | None = None) -> None:
        """Begin anew, from states of zeros.

        Args:
            row: which sequence. Default: None, all.
        Raises:
            ValueError: no such row.
        """
        self._stream.reset(-1 if row is None else _row(row))

    def join(self, count: int = 1) -> None:
        """Let further sequences join, after the others, from states of zeros. :meth:`step` then
        returns another array.

        Args:
            count: how many. Default: 1.
        Raises:
            ValueError: a negative number.
        """
        self._stream.join(count)

    def leave(self, row: int) -> None:
        """Let a sequence go; those after it move up by one. :meth:`step` then returns another
        array.

        Args:
            row: which sequence.
        Raises:
            ValueError: no such row.
        """
        self._stream.leave(_row(row))

    @property
    def state(self) -> Any:
        """A copy of the states, as ``hx`` of the layer: (h [L, B, P], c [L, B, H]) of an LSTM, h of
        other layers. May be set.

        Raises:
            RuntimeError: set to another shape or dtype.
        """
        h, c = self._stream.states()
        return h if c is None else (h, c)

    @state.setter
    def state(self, state: Any) -> None:
        h, c = state if isinstance(state, tuple | list) else (state, None)
        self._stream.set_states(h, c)


def _row(row: int) -> int:
    if row < 0:
        raise ValueError(f"fusedrnn: row must be 0 or more, got {row}")
    return row
