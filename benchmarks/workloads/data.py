"""The two corpora as integer arrays, real or synthetic.

Reuters is what Keras' ``load_data(num_words=10000)`` returns, in its order (seed 113), padded and
cut on the left; Time Machine is d2l's character corpus. The synthetic twins have the same shapes,
lengths and a Zipf-like token distribution, so that they cost the same time and mean nothing else;
``source`` then says so, and whoever prints a figure prints it.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.workloads import fetch, keras_npz
from benchmarks.workloads.errors import CorruptFile, MissingData

Ints = NDArray[np.int32]
Synthetic = Literal["never", "fallback", "always"]
SYNTHETIC = "synthetic"

NUM_WORDS = 10_000
START, OUT_OF_VOCABULARY, INDEX_FROM = 1, 2, 3  # 0 pads; the word of rank r is r + 3
TEST_SHARE, SPLIT_SEED = 0.2, 113
MAX_CHARACTERS = 10_000
UNKNOWN = "<unk>"

# Topic of each label, in label order, and how many newswires have it.
_TOPICS = """
cocoa 67, grain 537, veg-oil 94, earn 3972, acq 2423, wheat 22, copper 62, housing 19,
money-supply 177, coffee 126, sugar 154, trade 473, reserves 62, ship 209, cotton 28, carcass 29,
crude 543, nat-gas 51, cpi 86, money-fx 682, interest 339, gnp 127, meal-feed 22, alum 53,
oilseed 81, gold 123, tin 32, strategic-metal 19, livestock 58, retail 23, ipi 57, iron-steel 52,
rubber 42, heat 16, jobs 57, lei 16, bop 60, zinc 21, orange 22, pet-chem 29, dlr 46, gas 38,
silver 16, wpi 27, hog 17, lead 19
"""
TOPICS, TOPIC_COUNTS = zip(*(entry.split() for entry in _TOPICS.split(",")), strict=True)


@dataclass(frozen=True)
class Reuters:
    """The newswires as word ranks (1 = most frequent), row after row in collection order."""

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
        if not np.isin(self.labels, np.arange(len(TOPICS))).all():
            return f"labels must lie in 0..{len(TOPICS) - 1}"
        if not np.array_equal(np.sort(self.order), np.arange(n)) or not 0 <= self.n_train <= n:
            return f"order is no permutation of {n} rows"
        return None

    def values(self, i: int) -> list[int]:
        """Newswire i in load_data() order as Keras gives it: start marker, then words."""
        row = self.order[i]
        ranks = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return [START, *_limited(ranks).tolist()]

    def padded(self, T: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(x [N, T], y [N]) in load_data() order; x keeps the last T values, zeros in front."""
        starts, ends = self.offsets[self.order], self.offsets[self.order + 1]
        at = ends[:, None] - T + np.arange(T, dtype=np.int32)  # [N, T] positions in tokens
        x = np.zeros(at.shape, np.int64)
        word = at >= starts[:, None]
        x[word] = _limited(self.tokens[at[word]])
        x[at == starts[:, None] - 1] = START
        return x, self.labels[self.order].astype(np.int64)


@dataclass(frozen=True)
class Text:
    """A character corpus."""

    symbols: tuple[str, ...]  # index 0 is <unk>, then by falling count
    tokens: Tensor  # int64 [N]
    source: str  # a path, or "synthetic"

    def encode(self, text: str) -> list[int]:
        return [self.symbols.index(c) if c in self.symbols else 0 for c in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.symbols[token] for token in tokens)


def _limited(ranks: Ints) -> Ints:
    values = ranks + INDEX_FROM
    return np.where(values < NUM_WORDS, values, OUT_OF_VOCABULARY).astype(np.int32)


Corpus = TypeVar("Corpus", Reuters, Text)


def _choose(mode: Synthetic, real: Callable[[], Corpus], synthetic: Callable[[], Corpus]) -> Corpus:
    if mode == "always":
        return synthetic()
    try:
        return real()
    except MissingData:
        if mode == "never":
            raise
        return synthetic()


def reuters(data_dir: str | Path | None = None, synthetic: Synthetic = "never") -> Reuters:
    """The Reuters newswires.

    Args:
        data_dir: looked at before the other places (see ``fetch.places``).
        synthetic: "never" raises MissingData when there is no data, "fallback" then gives
            synthetic newswires, "always" looks for none.
    Raises:
        CorruptFile: a file is there and is damaged.
    """
    return _choose(synthetic, lambda: _real_reuters(data_dir), synthetic_reuters)


def _real_reuters(data_dir: str | Path | None) -> Reuters:
    path = fetch.locate(fetch.REUTERS, data_dir, "reuters/reuters_flat.npz")
    corpus = read_keras(path) if path.name == "reuters.npz" else read_flat(path)
    fault = corpus.fault()
    if fault:
        raise CorruptFile(path, fault)
    return corpus


def read_keras(path: Path) -> Reuters:
    """Reads the file that Keras distributes."""
    tokens, offsets, labels = keras_npz.read(path)
    return Reuters(tokens, offsets, labels, *keras_split(len(labels)), str(path))


def keras_split(rows: int) -> tuple[Ints, int]:
    """(order, n_train) as ``load_data(seed=113, test_split=0.2)`` splits that many rows."""
    order = np.arange(rows)
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    return order.astype(np.int32), int(rows * (1 - TEST_SHARE))


def read_flat(path: Path) -> Reuters:
    """Reads ``reuters_flat.npz``: plain arrays tokens, offsets, labels, order and n_train."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens, offsets, labels, order = (
                np.asarray(file[name], dtype=np.int32)
                for name in ("tokens", "offsets", "labels", "order")
            )
            n_train = int(file["n_train"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(path, error) from error
    return Reuters(tokens, offsets, labels, order, n_train, str(path))


def reuters_words(data_dir: str | Path | None = None) -> dict[int, str]:
    """The word of each rank."""
    path = fetch.locate(fetch.REUTERS_WORDS, data_dir)
    try:
        return {int(rank): word for word, rank in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptFile(path, error) from error


def decode(values: list[int], words: dict[int, str]) -> str:
    """The text of Keras values; what has no word (padding, start, out of vocabulary) is ``?``."""
    return " ".join(words.get(value - INDEX_FROM, "?") for value in values)


def time_machine(data_dir: str | Path | None = None, synthetic: Synthetic = "never") -> Text:
    """The first 10,000 characters of The Time Machine; arguments as for `reuters`."""
    return _choose(synthetic, lambda: _real_time_machine(data_dir), synthetic_text)


def _real_time_machine(data_dir: str | Path | None) -> Text:
    path = fetch.locate(fetch.TIME_MACHINE, data_dir)
    return text_corpus(path.read_text("ascii"), str(path))


def text_corpus(text: str, source: str) -> Text:
    """d2l's preparation: each line's runs of non-letters become one space, ends cut, lower case;
    lines joined with nothing between; the vocabulary is that of the whole text."""
    characters = "".join(
        re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in text.splitlines()
    )
    symbols = (UNKNOWN, *(symbol for symbol, _ in Counter(characters).most_common()))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    tokens = torch.tensor([index[c] for c in characters[:MAX_CHARACTERS]])
    return Text(symbols, tokens, source)


def zipf(n: int, exponent: float, shift: float) -> NDArray[np.float64]:
    """Zipf-Mandelbrot probabilities of ranks 1..n: p(r) ~ (r + shift)^-exponent."""
    weights = (np.arange(1, n + 1) + shift) ** -exponent
    return np.asarray(weights / weights.sum(), np.float64)


def synthetic_reuters(rows: int = 11_228, seed: int = 0) -> Reuters:
    """Random newswires with Reuters' lengths, word frequencies and topic shares.

    Lengths are log-normal with the real median 95 and mean 145, within the real 13..2376; of the
    words, the most frequent 10, 100, 1000 and 9996 cover the real shares to 0.03.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(95), 0.92, rows), 13, 2376).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = 1 + rng.choice(30_979, int(offsets[-1]), p=zipf(30_979, 1.2, 7.0))
    counts = np.array(TOPIC_COUNTS, np.float64)
    labels = rng.choice(len(TOPICS), rows, p=counts / counts.sum())
    return Reuters(
        tokens.astype(np.int32), offsets, labels.astype(np.int32), *keras_split(rows), SYNTHETIC
    )


def synthetic_text(length: int = MAX_CHARACTERS, seed: int = 0) -> Text:
    """Random characters, 28 symbols in the real order of frequency, frequencies Zipf-like."""
    symbols = (UNKNOWN, *" etainoshrdlmucfwgypbvkxzjq")
    rng = np.random.default_rng(seed)
    tokens = 1 + rng.choice(27, length, p=zipf(27, 1.2, 4.0))
    return Text(symbols, torch.from_numpy(tokens), SYNTHETIC)
