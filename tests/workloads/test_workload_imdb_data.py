"""IMDB's reviews: Keras' preparation, on made-up files and on the real ones if present."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.workloads import data
from benchmarks.workloads.errors import CorruptFile, MissingData

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FLAT = "imdb_flat.npz"
TRAIN = 6

real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")


@dataclass(frozen=True)
class Reviews:
    """Rows of word ranks with their sentiments, the first TRAIN of them to train."""

    rows: list[list[int]]
    labels: list[int]

    def keras(self) -> dict[str, Any]:
        """The arrays that Keras distributes: each part's rows and labels."""
        arrays: dict[str, Any] = {}
        for part, chosen in (("train", slice(None, TRAIN)), ("test", slice(TRAIN, None))):
            x = np.empty(len(self.rows[chosen]), object)
            x[:] = self.rows[chosen]
            arrays |= {f"x_{part}": x, f"y_{part}": np.array(self.labels[chosen])}
        return arrays

    def flat(self, **changes: Any) -> dict[str, Any]:
        """The arrays of the flat layout, some of them changed."""
        arrays = {
            "tokens": np.concatenate(self.rows),
            "offsets": np.cumsum([0, *map(len, self.rows)]),
            "labels": np.array(self.labels),
            "order": np.array(self.order()),
            "n_train": np.array(TRAIN),
        }
        return arrays | changes

    def order(self) -> list[int]:
        """load_data's two shuffles, one generator after the other."""
        rng = np.random.RandomState(113)
        train, test = np.arange(TRAIN), np.arange(TRAIN, len(self.rows))
        rng.shuffle(train)
        rng.shuffle(test)
        return [*train.tolist(), *test.tolist()]

    def values(self, row: int) -> list[int]:
        """load_data(num_words=25000)'s own steps, one value at a time."""
        return [w if w < 25_000 else 2 for w in [1, *(rank + 3 for rank in self.rows[row])]]


@pytest.fixture
def reviews() -> Reviews:
    """Lengths 1 to 13, ranks on both sides of the vocabulary's edge (24996 is the last kept)."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 30_000, n).tolist() for n in (3, 1, 13, 5, 2, 7, 4, 4, 11, 6, 2)]
    rows[0][:2] = [24_996, 24_997]
    return Reviews(rows, rng.integers(0, 2, len(rows)).tolist())


def body(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.fixture(params=["keras", "flat"])
def imdb_dir(
    request: pytest.FixtureRequest, reviews: Reviews, tmp_path: Path, publish: Any
) -> Path:
    """A data directory with the made-up reviews in one of the two layouts."""
    directory = tmp_path / "data" / "imdb"
    directory.mkdir(parents=True)
    if request.param == "keras":
        published = body(**reviews.keras())
        publish("IMDB", published)
        (directory / "imdb.npz").write_bytes(published)
    else:
        (directory / FLAT).write_bytes(body(**reviews.flat()))
    return directory.parent


def test_each_part_comes_in_load_data_order_with_its_values(
    imdb_dir: Path, reviews: Reviews
) -> None:
    corpus = data.imdb(imdb_dir)
    assert corpus.n_train == TRAIN
    assert corpus.order.tolist() == reviews.order()
    for i, row in enumerate(reviews.order()):
        assert corpus.values(i) == reviews.values(row)
    assert corpus.labels.tolist() == reviews.labels
    assert corpus.source.startswith(str(imdb_dir))


@pytest.mark.parametrize("T", [1, 2, 4, 5, 14, 20])
@pytest.mark.parametrize("front", [True, False], ids=["zeros in front", "zeros behind"])
def test_rows_keep_their_last_values(imdb_dir: Path, reviews: Reviews, T: int, front: bool) -> None:
    corpus = data.imdb(imdb_dir)
    x, y = corpus.padded(T, front=front)
    kept = [reviews.values(row)[-T:] for row in reviews.order()]
    zeros = [[0] * (T - len(values)) for values in kept]
    pairs = zip(zeros, kept, strict=True) if front else zip(kept, zeros, strict=True)
    assert x.tolist() == [[*before, *after] for before, after in pairs]
    assert corpus.lengths(T).tolist() == [len(values) for values in kept]
    assert y.tolist() == [reviews.labels[row] for row in reviews.order()]


def test_the_vocabulary_ends_at_rank_24996(reviews: Reviews) -> None:
    assert reviews.values(0)[:3] == [1, 24_999, 2]
    assert data.Imdb.limited(np.array([24_996, 24_997], np.int32)).tolist() == [24_999, 2]


def test_a_sentiment_that_is_none_is_refused(reviews: Reviews, tmp_path: Path) -> None:
    labels = [*reviews.labels[1:], 2]
    (tmp_path / FLAT).write_bytes(body(**reviews.flat(labels=labels)))
    with pytest.raises(CorruptFile, match=r"labels must lie in 0\.\.1.*delete the file"):
        data.imdb(tmp_path)


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_a_keras_file_without_one_of_its_arrays_is_refused(
    reviews: Reviews, tmp_path: Path, publish: Any, missing: str
) -> None:
    arrays = reviews.keras()
    del arrays[missing]
    published = body(**arrays)
    publish("IMDB", published)
    (tmp_path / "imdb.npz").write_bytes(published)
    with pytest.raises(CorruptFile, match=missing):
        data.imdb(tmp_path)


def test_another_file_under_keras_name_is_refused(reviews: Reviews, tmp_path: Path) -> None:
    (tmp_path / "imdb.npz").write_bytes(body(**reviews.keras()))
    with pytest.raises(CorruptFile, match="sha256 should be 69664113"):
        data.imdb(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_flat_file_is_refused(reviews: Reviews, tmp_path: Path, damage: str) -> None:
    whole = body(**reviews.flat())
    (tmp_path / FLAT).write_bytes(whole[:-100] if damage == "cut" else b"")
    with pytest.raises(CorruptFile, match="delete the file"):
        data.imdb(tmp_path, synthetic="fallback")


def test_without_data_the_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"found no imdb/imdb_flat\.npz or imdb/imdb\.npz"):
        data.imdb(tmp_path)
    with pytest.raises(MissingData, match=r"imdb/imdb_word_index\.json"):
        data.imdb_words(tmp_path)


def test_a_download_is_held_to_its_digest(server: Any, publish: Any, reviews: Reviews) -> None:
    published = body(**reviews.keras())
    publish("IMDB", published)
    server.files["imdb.npz"] = published
    assert data.imdb().order.tolist() == reviews.order()
    assert server.requests == ["imdb.npz"]


def test_synthetic_reviews_have_the_real_lengths_and_frequencies() -> None:
    corpus = data.synthetic_imdb(10_000)
    assert corpus.fault() is None
    assert (len(corpus.labels), corpus.n_train) == (10_000, 5_000)
    lengths = np.diff(corpus.offsets)
    assert abs(np.median(lengths) - 175) < 5
    assert abs(lengths.mean() - 234) < 8
    assert (lengths.min() >= 6) & (lengths.max() <= 2493)
    # The share of the most frequent words in the real reviews.
    for words, share in ((10, 0.238), (100, 0.514), (1000, 0.768), (24_996, 0.981)):
        assert abs((corpus.tokens <= words).mean() - share) < 0.035
    assert np.bincount(corpus.labels[corpus.order[:5_000]]).tolist() == [2_500, 2_500]


@real
def test_the_real_reviews_are_those_of_keras() -> None:
    corpus = data.imdb(SHARED)
    assert corpus.values(0)[:12] == [1, 14, 22, 16, 43, 530, 973, 1622, 1385, 65, 458, 4468]
    assert corpus.values(25_000)[:9] == [1, 591, 202, 14, 31, 6, 717, 10, 10]
    labels = corpus.labels[corpus.order]
    for part, mean in ((slice(None, 25_000), 238.71364), (slice(25_000, None), 230.8042)):
        assert np.bincount(labels[part]).tolist() == [12_500, 12_500]
        assert corpus.lengths(3_000)[part].mean() == pytest.approx(mean, abs=1e-9)
    order, n_train = data.imdb_split(25_000, 25_000)
    assert np.array_equal(order, corpus.order)
    assert n_train == corpus.n_train
    text = data.decode(corpus.values(0), data.imdb_words(SHARED))
    assert text.startswith("? this film was just brilliant casting location scenery story")
