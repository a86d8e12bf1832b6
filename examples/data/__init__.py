"""The corpora as integer arrays, real or synthetic.

Reuters and IMDB are what Keras' ``load_data(num_words=...)`` returns, in its order (seed 113);
Time Machine is d2l's character corpus. The synthetic twins have the same shapes, lengths and a
Zipf-like token distribution, so that they cost the same time and mean nothing else; ``source``
then says so, and whoever prints a figure prints it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from examples.data import fetch, keras_npz
from examples.data.keras_set import SPLIT_SEED, Ints, KerasSet, Set, read_flat, read_words, zipf
from examples.data.keras_set import decode as decode
from examples.driver.errors import CorruptFile, MissingData

Synthetic = bool | Literal["fallback"]
SYNTHETIC = "synthetic"

NUM_WORDS = 10_000  # Reuters
IMDB_WORDS = 25_000
SENTIMENTS = ("negative", "positive")
TEST_SHARE = 0.2  # Reuters
MAX_CHARACTERS, ALL_CHARACTERS = 10_000, 170_580
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


class Reuters(KerasSet):
    """The newswires and their topics."""

    num_words: ClassVar[int] = NUM_WORDS
    classes: ClassVar[int] = len(TOPICS)


class Imdb(KerasSet):
    """The film reviews and their sentiments, half of them to train and half to test."""

    num_words: ClassVar[int] = IMDB_WORDS
    classes: ClassVar[int] = len(SENTIMENTS)


@dataclass(frozen=True)
class Text:
    """A character corpus."""

    symbols: tuple[str, ...]  # index 0 is <unk>, then by falling count
    tokens: Tensor  # int64 [N]
    source: str  # a path, or "synthetic"

    def __str__(self) -> str:
        return f"{len(self.tokens):,} characters, {len(self.symbols)} symbols"

    def to(self, device: torch.device) -> Text:
        return replace(self, tokens=self.tokens.to(device))

    def encode(self, text: str) -> list[int]:
        return [self.symbols.index(c) if c in self.symbols else 0 for c in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.symbols[token] for token in tokens)


Corpus = TypeVar("Corpus", Reuters, Imdb, Text)


def kind(source: str) -> str:
    """ "synthetic" or "real": a checkpoint of one is none of the other."""
    return SYNTHETIC if source == SYNTHETIC else "real"


def _choose(mode: Synthetic, real: Callable[[], Corpus], synthetic: Callable[[], Corpus]) -> Corpus:
    if mode is True:
        return synthetic()
    try:
        return real()
    except MissingData:
        if not mode:
            raise
        return synthetic()


def reuters(data_dir: str | Path | None = None, synthetic: Synthetic = False) -> Reuters:
    """The Reuters newswires.

    Args:
        data_dir: looked at before the other places (see ``fetch.places``).
        synthetic: False raises MissingData when there is no data, "fallback" then gives synthetic
            newswires (not in place of a damaged file), True looks for none.
    """
    read = partial(_keras, Reuters, fetch.REUTERS, data_dir, [""])
    return _choose(synthetic, read, synthetic_reuters)


def imdb(data_dir: str | Path | None = None, synthetic: Synthetic = False) -> Imdb:
    """The IMDB film reviews (Maas et al., ACL 2011); arguments as for `reuters`."""
    read = partial(_keras, Imdb, fetch.IMDB, data_dir, ["_train", "_test"])
    return _choose(synthetic, read, synthetic_imdb)


def _keras(
    kind: type[Set], asset: fetch.Asset, data_dir: str | Path | None, parts: Sequence[str]
) -> Set:
    """The set of `asset`, from its flat layout or the `parts` of the file Keras distributes."""
    path = fetch.locate(asset, data_dir, asset.path.replace(".npz", "_flat.npz"))
    if path.name == Path(asset.path).name:
        found = [keras_npz.read(path, f"x{part}", f"y{part}") for part in parts]
        tokens, lengths, labels = map(np.concatenate, zip(*found, strict=True))
        offsets = np.cumsum([0, *lengths], dtype=np.int32)
        order, n_train = split(*(len(labels) for *_, labels in found))
        corpus = kind(tokens, offsets, labels, order, n_train, str(path))
    else:
        corpus = read_flat(kind, path)
    fault = corpus.fault()
    if fault:
        raise CorruptFile(path, fault)
    return corpus


def split(*parts: int) -> tuple[Ints, int]:
    """(order, n_train) as ``load_data(seed=113)`` shuffles that many rows of each part in turn; of
    one part alone, a fifth is to test."""
    rng = np.random.RandomState(SPLIT_SEED)
    order = np.arange(sum(parts), dtype=np.int32)
    for rows in np.split(order, np.cumsum(parts)[:-1]):
        rng.shuffle(rows)
    return order, parts[0] if len(parts) > 1 else int(parts[0] * (1 - TEST_SHARE))


def words(asset: fetch.Asset, data_dir: str | Path | None = None) -> dict[int, str]:
    """The word of each rank, from one of the two word indices."""
    return read_words(fetch.locate(asset, data_dir))


def time_machine(
    data_dir: str | Path | None = None,
    synthetic: Synthetic = False,
    length: int | None = MAX_CHARACTERS,
) -> Text:
    """The first `length` characters of The Time Machine, or all; other arguments as for `reuters`.

    Its symbols are those of the whole text, whatever the length.
    """

    def real() -> Text:
        path = fetch.locate(fetch.TIME_MACHINE, data_dir)
        return text_corpus(path.read_text("ascii"), str(path), length)

    return _choose(synthetic, real, lambda: synthetic_text(length or ALL_CHARACTERS))


def text_corpus(text: str, source: str, length: int | None = MAX_CHARACTERS) -> Text:
    """d2l's preparation: each line's runs of non-letters become one space, ends cut, lower case;
    lines joined with nothing between; the vocabulary is that of the whole text."""
    lines = (re.sub("[^A-Za-z]+", " ", line).strip() for line in text.splitlines())
    characters = "".join(lines).lower()
    symbols = (UNKNOWN, *(symbol for symbol, _ in Counter(characters).most_common()))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    tokens = torch.tensor([index[c] for c in characters[:length]])
    return Text(symbols, tokens, source)


def _random_words(
    rng: np.random.Generator, rows: int, spread: Sequence[float], words: int, shift: float
) -> tuple[Ints, Ints]:
    """Tokens and offsets of random rows, with log-normal lengths and Zipf-like words.

    Args:
        spread: the median, the deviation, the least and the largest of their lengths.
        shift: with it the most frequent words cover the real shares to 0.03.
    """
    median, sigma, shortest, longest = spread
    lengths = rng.lognormal(np.log(median), sigma, rows).clip(shortest, longest).astype(np.int32)
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    tokens = 1 + rng.choice(words, int(offsets[-1]), p=zipf(words, 1.2, shift))
    return tokens.astype(np.int32), offsets


def synthetic_reuters(rows: int = 11_228, seed: int = 0) -> Reuters:
    """Random newswires with Reuters' lengths, word frequencies and topic shares."""
    rng = np.random.default_rng(seed)
    tokens, offsets = _random_words(rng, rows, (95, 0.92, 13, 2376), 30_979, 7.0)
    counts = np.array(TOPIC_COUNTS, np.float64)
    labels = rng.choice(len(TOPICS), rows, p=counts / counts.sum()).astype(np.int32)
    return Reuters(tokens, offsets, labels, *split(rows), SYNTHETIC)


def synthetic_imdb(rows: int = 50_000, seed: int = 0) -> Imdb:
    """Random reviews with IMDB's lengths and word frequencies; every second one is positive."""
    rng = np.random.default_rng(seed)
    tokens, offsets = _random_words(rng, rows, (175, 0.76, 6, 2493), 88_584, 4.0)
    labels = np.arange(rows, dtype=np.int32) % len(SENTIMENTS)
    train = rows // 2
    return Imdb(tokens, offsets, labels, *split(train, rows - train), SYNTHETIC)


def synthetic_text(length: int = MAX_CHARACTERS, seed: int = 0) -> Text:
    """Random characters, 28 symbols in the real order of frequency, frequencies Zipf-like."""
    symbols = (UNKNOWN, *" etainoshrdlmucfwgypbvkxzjq")
    rng = np.random.default_rng(seed)
    tokens = 1 + rng.choice(27, length, p=zipf(27, 1.2, 4.0))
    return Text(symbols, torch.from_numpy(tokens), SYNTHETIC)
