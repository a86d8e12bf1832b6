"""The corpora: Keras' and d2l's preparation, on made-up files and on the real ones if present."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import data
from examples.data import fetch
from examples.driver.errors import CorruptFile, MissingData

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")
SETS = ("reuters", "imdb")

# The class counts and the first row that Keras' load_data(num_words=10000) is known for.
TRAIN_COUNTS = (
    *(55, 432, 74, 3159, 1949, 17, 48, 16, 139, 101, 124, 390, 49, 172, 26, 20, 444, 39, 66, 549),
    *(269, 100, 15, 41, 62, 92, 24, 15, 48, 19, 45, 39, 32, 11, 50, 10, 49, 19, 19, 24, 36, 30),
    *(13, 21, 12, 18),
)
TEST_COUNTS = (
    *(12, 105, 20, 813, 474, 5, 14, 3, 38, 25, 30, 83, 13, 37, 2, 9, 99, 12, 20, 133),
    *(70, 27, 7, 12, 19, 31, 8, 4, 10, 4, 12, 13, 10, 5, 7, 6, 11, 2, 3, 5, 10, 8),
    *(3, 6, 5, 1),
)
FIRST_ROW = (
    *(1, 2, 2, 8, 43, 10, 447, 5, 25, 207, 270, 5, 3095, 111, 16, 369, 186, 90, 67, 7, 89, 5, 19),
    *(102, 6, 19, 124, 15, 90, 67, 84, 22, 482, 26, 7, 48, 4, 49, 8, 864, 39, 209, 154, 6, 151, 6),
    *(83, 11, 15, 22, 155, 11, 15, 7, 48, 9, 4579, 1005, 504, 6, 258, 6, 272, 11, 15, 22, 134, 44),
    *(11, 15, 16, 8, 197, 1245, 90, 67, 52, 29, 209, 30, 32, 132, 6, 109, 15, 17, 12),
)


@dataclass(frozen=True)
class Case:
    """A made-up corpus of one of the two sets, and how it is written and read."""

    name: str
    corpus: Any
    words: int
    train: int

    def read(self, directory: Path | None = None, **options: Any) -> Any:
        return getattr(data, self.name)(directory, **options)

    def values(self) -> list[list[int]]:
        """Every sequence in load_data's order."""
        return [self.corpus.values(row, self.words) for row in self.corpus.order()]


@pytest.fixture(params=SETS)
def case(request: pytest.FixtureRequest, newswires: Any, reviews: Any) -> Case:
    cases = (Case("reuters", newswires, 10_000, 8), Case("imdb", reviews, 25_000, 6))
    return cases[SETS.index(request.param)]


@pytest.fixture(params=["keras", "flat"])
def directory(request: pytest.FixtureRequest, case: Case, tmp_path: Path, put: Any) -> Path:
    """A data directory with the made-up corpus in one of the two layouts."""
    below = tmp_path / "data" / case.name
    below.mkdir(parents=True)
    if request.param == "keras":
        put(case.name.upper(), case.corpus.keras(), below)
    else:
        np.savez(below / f"{case.name}_flat.npz", **case.corpus.flat())
    return tmp_path / "data"


def test_rows_come_in_load_data_order_with_its_values(directory: Path, case: Case) -> None:
    found = case.read(directory)
    assert [found.values(i) for i in range(11)] == case.values()
    assert found.order.tolist() == case.corpus.order()
    assert found.labels.tolist() == case.corpus.labels
    assert found.n_train == case.train
    assert found.source.startswith(str(directory))


@pytest.mark.parametrize("T", [1, 2, 4, 5, 14, 20])
@pytest.mark.parametrize("front", [True, False], ids=["zeros in front", "zeros behind"])
def test_rows_keep_their_last_values(directory: Path, case: Case, T: int, front: bool) -> None:
    found = case.read(directory)
    x, y = found.padded(T, front=front)
    kept = [values[-T:] for values in case.values()]
    zeros = [[0] * (T - len(values)) for values in kept]
    pairs = zip(zeros, kept, strict=True) if front else zip(kept, zeros, strict=True)
    assert x.tolist() == [[*before, *after] for before, after in pairs]
    assert found.lengths(T).tolist() == [len(values) for values in kept]
    assert y.tolist() == [case.corpus.labels[row] for row in case.corpus.order()]


def test_the_vocabularies_end_at_ranks_9996_and_24996(newswires: Any, reviews: Any) -> None:
    assert newswires.values(0, 10_000)[:3] == [1, 9999, 2]
    assert data.Reuters.limited(np.array([9996, 9997], np.int32)).tolist() == [9999, 2]
    assert reviews.values(0, 25_000)[:3] == [1, 24_999, 2]
    assert data.Imdb.limited(np.array([24_996, 24_997], np.int32)).tolist() == [24_999, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.arange(5)}, "offsets do not cut"),
        ({"offsets": np.array([0, 9, 3, *range(4, 12)])}, "offsets do not cut|offsets fall"),
        ({"labels": np.full(11, 46)}, r"labels must lie in 0\.\.(45|1):?"),
        ({"labels": np.zeros((11, 1))}, "must be 1-D"),
        ({"order": np.zeros(11)}, "order is no permutation"),
        ({"n_train": np.array(12)}, "order is no permutation"),
        ({"tokens": np.zeros(58)}, "word ranks must start at 1"),
        ({"tokens": np.array([[1]], object)}, "Object arrays cannot be loaded"),
        ({"order": None}, "order is not a file in the archive"),
    ],
)
def test_a_flat_file_that_contradicts_itself_is_refused(
    case: Case, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / f"{case.name}_flat.npz", **case.corpus.flat(**change))
    with pytest.raises(CorruptFile, match=message):
        case.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda body: body[:-100], lambda body: body[:60] + bytes(10) + body[70:], lambda _: b""],
    ids=["cut", "flipped", "empty"],
)
def test_a_damaged_flat_file_is_refused_and_no_fallback_hides_it(
    case: Case, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / f"{case.name}_flat.npz"
    np.savez_compressed(file, **case.corpus.flat())
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptFile, match="delete the file"):
        case.read(tmp_path, synthetic="fallback")


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_a_keras_file_without_one_of_its_arrays_is_refused(
    reviews: Any, tmp_path: Path, put: Any, missing: str
) -> None:
    put("IMDB", reviews.keras(without=missing))
    with pytest.raises(CorruptFile, match=missing):
        data.imdb(tmp_path)


@pytest.mark.parametrize(
    ("read", "name", "digest"),
    [
        (data.imdb, "imdb.npz", "sha256 should be 69664113"),
        (data.reuters, "reuters.npz", "sha256 should be d6586e69"),
        (data.time_machine, "timemachine.txt", "sha1 should be 090b5e7e"),
    ],
)
def test_another_file_under_the_published_name_is_refused(
    tmp_path: Path, read: Any, name: str, digest: str
) -> None:
    (tmp_path / name).write_text("It was a dark and stormy night")
    with pytest.raises(CorruptFile, match=digest):
        read(tmp_path)


def test_without_data_the_places_are_named(case: Case, tmp_path: Path) -> None:
    name = case.name
    files = rf"{name}/{name}_flat\.npz or {name}/{name}\.npz"
    with pytest.raises(MissingData, match=f"found no {files}"):
        case.read(tmp_path)
    with pytest.raises(MissingData, match=rf"{name}/{name}_word_index\.json"):
        data.words(getattr(fetch, f"{name.upper()}_WORDS"), tmp_path)


def test_a_download_is_held_to_its_digest(server: Any, publish: Any, case: Case) -> None:
    body = case.corpus.keras()
    publish(case.name.upper(), body)
    server.files[f"{case.name}.npz"] = body
    assert case.read().order.tolist() == case.corpus.order()
    assert server.requests == [f"{case.name}.npz"]


def test_a_newswire_is_decoded_with_the_word_index(tmp_path: Path, put: Any) -> None:
    put("REUTERS_WORDS", json.dumps({"the": 1, "of": 2}).encode())
    words = data.words(fetch.REUTERS_WORDS, tmp_path)
    assert data.decode([1, 4, 5, 2, 4], words) == "? the of ? the"


@pytest.mark.parametrize("body", [b"[1, 2]", b"{", b'{"the": "one"}'])
def test_a_word_index_that_is_none_is_refused(tmp_path: Path, put: Any, body: bytes) -> None:
    put("REUTERS_WORDS", body)
    with pytest.raises(CorruptFile):
        data.words(fetch.REUTERS_WORDS, tmp_path)


def test_text_is_prepared_as_d2l_does() -> None:
    book = "The Time Machine, by H. G. Wells [1898]\n\n\nI\n  It's  12 -- ok\n"
    text = data.text_corpus(book, "")
    whole = "the time machine by h g wellsiit s ok"
    assert text.decode(text.tokens.tolist()) == whole
    counts = [whole.count(symbol) for symbol in text.symbols[1:]]
    assert counts == sorted(counts, reverse=True)
    assert text.symbols[:3] == ("<unk>", " ", "e")
    assert text.encode("e!") == [2, 0]


def test_the_vocabulary_is_that_of_the_whole_text_in_order_of_count_then_of_appearance() -> None:
    text = data.text_corpus("z" * 10_000 + "yx", "")
    assert len(text.tokens) == 10_000  # its start
    assert text.symbols == ("<unk>", "z", "y", "x")


@pytest.mark.parametrize("corpus", [data.reuters, data.time_machine])
def test_without_data_only_fallback_gives_synthetic_and_always_looks_for_none(
    corpus: Any, server: Any
) -> None:
    assert corpus(synthetic=True).source == "synthetic"
    assert server.requests == []
    with pytest.raises(MissingData, match="--synthetic"):
        corpus()
    assert corpus(synthetic="fallback").source == "synthetic"


@pytest.mark.parametrize(
    ("made", "sizes", "bounds", "median", "mean", "shares"),
    [
        (
            *(data.synthetic_reuters, (11_228, 8_982), (13, 2376), (95, 3), (145, 5)),
            ((10, 0.209), (100, 0.480), (1000, 0.782), (9996, 0.972)),
        ),
        (
            *(lambda: data.synthetic_imdb(10_000), (10_000, 5_000), (6, 2493), (175, 5), (234, 8)),
            ((10, 0.238), (100, 0.514), (1000, 0.768), (24_996, 0.981)),
        ),
    ],
    ids=SETS,
)
def test_synthetic_sequences_have_the_real_shapes_lengths_and_frequencies(
    made: Any, sizes: Any, bounds: Any, median: Any, mean: Any, shares: Any
) -> None:
    corpus = made()
    assert corpus.fault() is None
    assert (len(corpus.labels), corpus.n_train) == sizes
    lengths = np.diff(corpus.offsets)
    assert bounds[0] <= lengths.min() < lengths.max() <= bounds[1]
    assert np.median(lengths) == pytest.approx(median[0], abs=median[1])
    assert lengths.mean() == pytest.approx(mean[0], abs=mean[1])
    for words, share in shares:  # of the most frequent words in the real ones
        assert (corpus.tokens <= words).mean() == pytest.approx(share, abs=0.035)


def test_synthetic_labels_are_as_frequent_as_the_real_ones() -> None:
    newswires, reviews = data.synthetic_reuters(), data.synthetic_imdb(10_000)
    assert abs((newswires.labels == data.TOPICS.index("earn")).mean() - 3972 / 11_228) < 0.02
    assert np.bincount(reviews.labels[reviews.order[:5_000]]).tolist() == [2_500, 2_500]


def test_synthetic_data_is_the_same_every_time() -> None:
    first, second = (np.column_stack(data.synthetic_reuters(50).padded(9)) for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(data.synthetic_text().tokens, data.synthetic_text().tokens)


def test_synthetic_text_has_the_real_size_and_symbols() -> None:
    text = data.synthetic_text()
    assert (len(text.tokens), len(text.symbols), len(set(text.symbols))) == (10_000, 28, 28)
    counts = torch.bincount(text.tokens, minlength=28)
    assert counts[0] == 0
    assert counts[1] > counts[5] > counts[20] > 0


def test_topics_stand_for_all_newswires() -> None:
    assert len(data.TOPICS) == 46
    assert tuple(map(int, data.TOPIC_COUNTS)) == tuple(
        a + b for a, b in zip(TRAIN_COUNTS, TEST_COUNTS, strict=True)
    )


@real
def test_the_real_newswires_are_those_of_keras() -> None:
    corpus = data.reuters(SHARED)
    x, y = corpus.padded(100)
    n = corpus.n_train
    assert (n, len(y) - n, x.shape) == (8_982, 2_246, (11_228, 100))
    assert corpus.values(0) == list(FIRST_ROW)
    assert x[0].tolist() == ([0] * 100 + list(FIRST_ROW))[-100:]
    assert data.TOPICS[y[0]] == "earn"
    assert np.bincount(y[:n], minlength=46).tolist() == list(TRAIN_COUNTS)
    assert np.bincount(y[n:], minlength=46).tolist() == list(TEST_COUNTS)
    lengths = np.diff(corpus.offsets)[corpus.order] + 1
    assert (lengths[:n].max(), lengths[:n].mean()) == (2376, 145.5398574927633)
    order, n_train = data.split(11_228)
    assert np.array_equal(order, corpus.order)
    assert n_train == n
    text = data.decode(corpus.values(0), data.words(fetch.REUTERS_WORDS, SHARED))
    assert text.startswith("? ? ? said as a result of its december acquisition of space co")


@real
def test_the_real_text_is_that_of_d2l() -> None:
    text = data.time_machine(SHARED)
    assert (len(text.tokens), len(text.symbols)) == (10_000, 28)
    assert text.decode(text.tokens[:32].tolist()) == "the time machine by h g wellsith"
    assert fetch.locate(fetch.TIME_MACHINE, SHARED).stat().st_size == 178_979


@real
def test_the_real_reviews_are_those_of_keras() -> None:
    corpus = data.imdb(SHARED)
    assert corpus.values(0)[:12] == [1, 14, 22, 16, 43, 530, 973, 1622, 1385, 65, 458, 4468]
    assert corpus.values(25_000)[:9] == [1, 591, 202, 14, 31, 6, 717, 10, 10]
    labels = corpus.labels[corpus.order]
    for part, mean in ((slice(None, 25_000), 238.71364), (slice(25_000, None), 230.8042)):
        assert np.bincount(labels[part]).tolist() == [12_500, 12_500]
        assert corpus.lengths(3_000)[part].mean() == pytest.approx(mean, abs=1e-9)
    order, n_train = data.split(25_000, 25_000)
    assert np.array_equal(order, corpus.order)
    assert n_train == corpus.n_train
    text = data.decode(corpus.values(0), data.words(fetch.IMDB_WORDS, SHARED))
    assert text.startswith("? this film was just brilliant casting location scenery story")
