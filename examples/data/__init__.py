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
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from examples.data import fetch, keras_npz
from examples.data.keras_set import SPLIT_SEED, Ints, KerasSet, Set, read_flat, read_words, zipf
from examples.data.keras_set import decode as decode
from examples.driver.errors import CorruptFile, MissingData

Synthetic = Literal["never", "fallback", "always"]
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

    def encode(self, text: str) -> list[int]:
        return [self.symbols.index(c) if c in self.symbols else 0 for c in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.symbols[token] for token in tokens)


Corpus = TypeVar("Corpus", Reuters, Imdb, Text)


def kind(source: str) -> str:
    """ "synthetic" or "real": a checkpoint of one is none of the other."""
    return SYNTHETIC if source == SYNTHETIC else "real"


def mode(synthetic: bool) -> Synthetic:
    """Of ``--synthetic``."""
    return "always" if synthetic else "never"


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
    return _choose(
        synthetic,
        lambda: _keras(Reuters, fetch.REUTERS, data_dir, _read_reuters),
        synthetic_reuters,
    )


def _keras(
    kind: type[Set], asset: fetch.Asset, data_dir: str | Path | None, read: Callable[[Path], Set]
) -> Set:
    """The set of `asset`, from its flat layout or by `read` from the file Keras distributes."""
    path = fetch.locate(asset, data_dir, asset.path.replace(".npz", "_flat.npz"))
    corpus = read(path) if path.name == Path(asset.path).name else read_flat(kind, path)
    fault = corpus.fault()
    if fault:
        raise CorruptFile(path, fault)
    return corpus


def _read_reuters(path: Path) -> Reuters:
    tokens, offsets, labels = keras_npz.read(path)
    return Reuters(tokens, offsets, labels, *reuters_split(len(labels)), str(path))


def reuters_split(rows: int) -> tuple[Ints, int]:
    """(order, n_train) as ``load_data(seed=113, test_split=0.2)`` splits that many rows."""
    order = np.arange(rows)
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    return order.astype(np.int32), int(rows * (1 - TEST_SHARE))


def reuters_words(data_dir: str | Path | None = None) -> dict[int, str]:
    """The word of each rank."""
    return read_words(fetch.locate(fetch.REUTERS_WORDS, data_dir))


def imdb(data_dir: str | Path | None = None, synthetic: Synthetic = "never") -> Imdb:
    """The IMDB film reviews (Maas et al., ACL 2011); arguments as for `reuters`."""
    wanted = (Imdb, fetch.IMDB, data_dir, _read_imdb)
    return _choose(synthetic, lambda: _keras(*wanted), synthetic_imdb)


def _read_imdb(path: Path) -> Imdb:
    parts = [keras_npz.read(path, f"x_{part}", f"y_{part}") for part in ("train", "test")]
    (tokens, offsets, labels), (test_tokens, test_offsets, test_labels) = parts
    return Imdb(
        np.concatenate([tokens, test_tokens]),
        np.concatenate([offsets, test_offsets[1:] + offsets[-1]]),
        np.concatenate([labels, test_labels]),
        *imdb_split(len(labels), len(test_labels)),
        str(path),
    )


def imdb_split(train: int, test: int) -> tuple[Ints, int]:
    """(order, n_train) as ``load_data(seed=113)`` shuffles each part in its turn."""
    rng = np.random.RandomState(SPLIT_SEED)
    parts = np.arange(train), np.arange(test)
    for part in parts:
        rng.shuffle(part)
    return np.concatenate([parts[0], parts[1] + train]).astype(np.int32), train


def imdb_words(data_dir: str | Path | None = None) -> dict[int, str]:
    """The word of each rank."""
    return read_words(fetch.locate(fetch.IMDB_WORDS, data_dir))


def time_machine(
    data_dir: str | Path | None = None,
    synthetic: Synthetic = "never",
    length: int | None = MAX_CHARACTERS,
) -> Text:
    """The first `length` characters of The Time Machine, or all; other arguments as for `reuters`.

    Its symbols are those of the whole text, whatever the length.
    """
    return _choose(
        synthetic,
        lambda: _real_time_machine(data_dir, length),
        lambda: synthetic_text(ALL_CHARACTERS if length is None else length),
    )


def _real_time_machine(data_dir: str | Path | None, length: int | None) -> Text:
    path = fetch.locate(fetch.TIME_MACHINE, data_dir)
    return text_corpus(path.read_text("ascii"), str(path), length)


def text_corpus(text: str, source: str, length: int | None = MAX_CHARACTERS) -> Text:
    """d2l's preparation: each line's runs of non-letters become one space, ends cut, lower case;
    lines joined with nothing between; the vocabulary is that of the whole text."""
    characters = "".join(
        re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in text.splitlines()
    )
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
    drawn = rng.lognormal(np.log(median), sigma, rows)
    cut = np.clip(drawn, shortest, longest).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(cut)]).astype(np.int32)
    tokens = 1 + rng.choice(words, int(offsets[-1]), p=zipf(words, 1.2, shift))
    return tokens.astype(np.int32), offsets


def synthetic_reuters(rows: int = 11_228, seed: int = 0) -> Reuters:
    """Random newswires with Reuters' lengths, word frequencies and topic shares."""
    rng = np.random.default_rng(seed)
    tokens, offsets = _random_words(rng, rows, (95, 0.92, 13, 2376), 30_979, 7.0)
    counts = np.array(TOPIC_COUNTS, np.float64)
    labels = rng.choice(len(TOPICS), rows, p=counts / counts.sum()).astype(np.int32)
    return Reuters(tokens, offsets, labels, *reuters_split(rows), SYNTHETIC)


def synthetic_imdb(rows: int = 50_000, seed: int = 0) -> Imdb:
    """Random reviews with IMDB's lengths and word frequencies; every second one is positive."""
    rng = np.random.default_rng(seed)
    tokens, offsets = _random_words(rng, rows, (175, 0.76, 6, 2493), 88_584, 4.0)
    labels = np.arange(rows, dtype=np.int32) % len(SENTIMENTS)
    train = rows // 2
    return Imdb(tokens, offsets, labels, *imdb_split(train, rows - train), SYNTHETIC)


def synthetic_text(length: int = MAX_CHARACTERS, seed: int = 0) -> Text:
    """Random characters, 28 symbols in the real order of frequency, frequencies Zipf-like."""
    symbols = (UNKNOWN, *" etainoshrdlmucfwgypbvkxzjq")
    rng = np.random.default_rng(seed)
    tokens = 1 + rng.choice(27, length, p=zipf(27, 1.2, 4.0))
    return Text(symbols, torch.from_numpy(tokens), SYNTHETIC)
