"""A data set of labelled word sequences as Keras distributes them: Reuters and IMDB are two.

Held as one array of word ranks and offsets into it, so that 12 million words cost 47 MB and a
padded matrix is one gather. Keras' values are made on the way out: 0 pads, 1 starts a sequence, 2
stands for a word beyond the vocabulary, and the word of rank r is r + 3.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from examples.driver.errors import CorruptFile

Ints = NDArray[np.int32]

START, OUT_OF_VOCABULARY, INDEX_FROM = 1, 2, 3
SPLIT_SEED = 113  # load_data's own


@dataclass(frozen=True)
class KerasSet:
    """Sequences of word ranks (1 = most frequent), row after row in the collection's order."""

    num_words: ClassVar[int]  # values from this on are out of the vocabulary
    classes: ClassVar[int]

    tokens: Ints  # [sum of lengths]
    offsets: Ints  # [N+1]  row i is tokens[offsets[i]:offsets[i+1]]
    labels: Ints  # [N]
    order: Ints  # [N]  rows in load_data() order: the n_train training rows, then the test rows
    n_train: int
    source: str  # a path, or "synthetic"

    def fault(self) -> str | None:
        """What makes these arrays no corpus; None when they are one."""
        arrays = (self.tokens, self.offsets, self.labels, self.order)
        if any(array.ndim != 1 for array in arrays):
            return "tokens, offsets, labels and order must be 1-D"
        n = len(self.labels)
        if len(self.offsets) != n + 1 or self.offsets[0] or self.offsets[-1] != len(self.tokens):
            return f"offsets do not cut {len(self.tokens)} tokens into {n} rows"
        if (np.diff(self.offsets) < 0).any():
            return "offsets fall"
        if (self.tokens < 1).any():
            return "word ranks must start at 1"
        if not np.isin(self.labels, np.arange(self.classes)).all():
            return f"labels must lie in 0..{self.classes - 1}"
        if not np.array_equal(np.sort(self.order), np.arange(n)) or not 0 <= self.n_train <= n:
            return f"order is no permutation of {n} rows"
        return None

    @classmethod
    def limited(cls, ranks: Ints) -> Ints:
        """Keras' values of word ranks, within the vocabulary."""
        values = ranks + INDEX_FROM
        return np.where(values < cls.num_words, values, OUT_OF_VOCABULARY).astype(np.int32)

    def values(self, i: int) -> list[int]:
        """Sequence i in load_data() order as Keras gives it: start marker, then words."""
        row = self.order[i]
        ranks = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return [START, *self.limited(ranks).tolist()]

    def lengths(self, T: int) -> NDArray[np.int64]:
        """How many of the values of ``padded(T)`` are no padding, [N] in load_data() order."""
        words = np.diff(self.offsets)[self.order].astype(np.int64)
        return np.minimum(words + 1, T)

    def padded(self, T: int, *, front: bool = True) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(x [N, T], y [N]) in load_data() order; x keeps the last T values of each sequence.

        Args:
            front: whether the zeros stand before the values or after them.
        """
        starts, ends = self.offsets[self.order], self.offsets[self.order + 1]
        first = ends - T if front else np.maximum(starts - 1, ends - T)
        at = first[:, None] + np.arange(T, dtype=np.int32)  # [N, T] positions in tokens
        x = np.zeros(at.shape, np.int64)
        word = (at >= starts[:, None]) & (at < ends[:, None])
        x[word] = self.limited(self.tokens[at[word]])
        x[at == starts[:, None] - 1] = START
        return x, self.labels[self.order].astype(np.int64)


Set = TypeVar("Set", bound=KerasSet)


def read_flat(kind: type[Set], path: Path) -> Set:
    """Reads the flat layout: plain arrays tokens, offsets, labels, order and n_train."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens, offsets, labels, order = (
                np.asarray(file[name], dtype=np.int32)
                for name in ("tokens", "offsets", "labels", "order")
            )
            n_train = int(file["n_train"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(path, error) from error
    return kind(tokens, offsets, labels, order, n_train, str(path))


def read_words(path: Path) -> dict[int, str]:
    """The word of each rank, from Keras' word index."""
    try:
        return {int(rank): word for word, rank in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptFile(path, error) from error


def decode(values: list[int], words: dict[int, str]) -> str:
    """The text of Keras values; what has no word (padding, start, out of vocabulary) is ``?``."""
    return " ".join(words.get(value - INDEX_FROM, "?") for value in values)


def zipf(n: int, exponent: float, shift: float) -> NDArray[np.float64]:
    """Zipf-Mandelbrot probabilities of ranks 1..n: p(r) ~ (r + shift)^-exponent."""
    weights = (np.arange(1, n + 1) + shift) ** -exponent
    return np.asarray(weights / weights.sum(), np.float64)
