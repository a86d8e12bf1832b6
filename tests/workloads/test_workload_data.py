"""The corpora: Keras' and d2l's preparation, on made-up files and on the real ones if present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.workloads import data, fetch
from benchmarks.workloads.errors import CorruptFile, MissingData

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FLAT = "reuters_flat.npz"

real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")

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


def keras_values(row: list[int]) -> list[int]:
    """load_data's own steps, one value at a time."""
    return [w if w < 10_000 else 2 for w in [1, *(rank + 3 for rank in row)]]


def keras_padded(values: list[int], T: int) -> list[int]:
    """pad_sequences(maxlen=T): zeros in front, cut in front."""
    return ([0] * T + values)[-T:]


@pytest.fixture(params=["keras", "flat"])
def reuters_dir(
    request: pytest.FixtureRequest, newswires: Any, tmp_path: Path, publish: Any
) -> Path:
    """A data directory with the made-up newswires in one of the two layouts."""
    directory = tmp_path / "data" / "reuters"
    directory.mkdir(parents=True)
    if request.param == "keras":
        publish("REUTERS", newswires.keras_bytes())
        (directory / "reuters.npz").write_bytes(newswires.keras_bytes())
    else:
        np.savez(directory / FLAT, **newswires.flat())
    return directory.parent


def test_rows_come_in_load_data_order_with_its_values(reuters_dir: Path, newswires: Any) -> None:
    corpus = data.reuters(reuters_dir)
    order = np.arange(len(newswires.rows))
    np.random.RandomState(113).shuffle(order)
    for i, row in enumerate(order):
        assert corpus.values(i) == keras_values(newswires.rows[row])
    assert corpus.n_train == 8
    assert corpus.source.startswith(str(reuters_dir))


@pytest.mark.parametrize("T", [1, 2, 4, 5, 14, 20])
def test_rows_are_padded_and_cut_in_front(reuters_dir: Path, newswires: Any, T: int) -> None:
    corpus = data.reuters(reuters_dir)
    x, y = corpus.padded(T)
    assert x.tolist() == [keras_padded(corpus.values(i), T) for i in range(len(x))]
    assert y.tolist() == [newswires.labels[row] for row in corpus.order]


def test_the_vocabulary_ends_at_rank_9996(newswires: Any) -> None:
    assert keras_values([9996, 9997]) == [1, 9999, 2]
    assert data.Reuters.limited(np.array([9996, 9997], np.int32)).tolist() == [9999, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.arange(5)}, "offsets do not cut"),
        ({"offsets": np.array([0, 9, 3, *range(4, 12)])}, "offsets do not cut|offsets fall"),
        ({"labels": np.full(11, 46)}, r"labels must lie in 0\.\.45"),
        ({"labels": np.zeros((11, 1))}, "must be 1-D"),
        ({"order": np.zeros(11)}, "order is no permutation"),
        ({"n_train": np.array(12)}, "order is no permutation"),
        ({"tokens": np.zeros(58)}, "word ranks must start at 1"),
        ({"tokens": np.array([[1]], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_flat_file_that_contradicts_itself_is_refused(
    newswires: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / FLAT, **newswires.flat(**change))
    with pytest.raises(CorruptFile, match=message):
        data.reuters(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "a member missing"])
def test_a_damaged_flat_file_is_refused(newswires: Any, tmp_path: Path, damage: str) -> None:
    file = tmp_path / FLAT
    arrays = newswires.flat()
    if damage == "a member missing":
        del arrays["order"]
    np.savez_compressed(file, **arrays)
    body = file.read_bytes()
    if damage == "cut":
        body = body[:-100]
    elif damage == "flipped":
        body = body[:60] + bytes(10) + body[70:]
    elif damage == "empty":
        body = b""
    file.write_bytes(body)
    with pytest.raises(CorruptFile, match="delete the file"):
        data.reuters(tmp_path)


def test_a_newswire_is_decoded_with_the_word_index(tmp_path: Path, publish: Any) -> None:
    body = json.dumps({"the": 1, "of": 2}).encode()
    publish("REUTERS_WORDS", body)
    (tmp_path / "reuters_word_index.json").write_bytes(body)
    words = data.reuters_words(tmp_path)
    assert data.decode([1, 4, 5, 2, 4], words) == "? the of ? the"


@pytest.mark.parametrize("body", [b"[1, 2]", b"{", b'{"the": "one"}'])
def test_a_word_index_that_is_none_is_refused(tmp_path: Path, publish: Any, body: bytes) -> None:
    publish("REUTERS_WORDS", body)
    (tmp_path / "reuters_word_index.json").write_bytes(body)
    with pytest.raises(CorruptFile):
        data.reuters_words(tmp_path)


def test_text_is_prepared_as_d2l_does() -> None:
    text = data.text_corpus(
        "The Time Machine, by H. G. Wells [1898]\n\n\nI\n  It's  12 -- ok\n", ""
    )
    whole = "the time machine by h g wellsiit s ok"
    assert text.decode(text.tokens.tolist()) == whole
    counts = [whole.count(symbol) for symbol in text.symbols[1:]]
    assert counts == sorted(counts, reverse=True)
    assert text.symbols[:3] == ("<unk>", " ", "e")
    assert text.encode("e!") == [2, 0]


def test_equally_frequent_symbols_stand_in_order_of_appearance() -> None:
    assert data.text_corpus("zyx", "").symbols == ("<unk>", "z", "y", "x")


def test_the_vocabulary_is_that_of_the_whole_text_and_the_tokens_its_start() -> None:
    text = data.text_corpus("a" * 10_000 + "b", "")
    assert len(text.tokens) == 10_000
    assert text.symbols == ("<unk>", "a", "b")


def test_another_text_under_the_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "timemachine.txt").write_text("It was a dark and stormy night")
    with pytest.raises(CorruptFile):
        data.time_machine(tmp_path)


def test_without_data_only_fallback_gives_synthetic() -> None:
    for corpus in (data.reuters, data.time_machine):
        with pytest.raises(MissingData, match="--synthetic"):
            corpus()
        assert corpus(synthetic="fallback").source == "synthetic"


def test_fallback_does_not_hide_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / FLAT).write_bytes(b"")
    with pytest.raises(CorruptFile):
        data.reuters(tmp_path, synthetic="fallback")


def test_always_synthetic_looks_for_no_data(server: Any) -> None:
    assert data.reuters(synthetic="always").source == "synthetic"
    assert data.time_machine(synthetic="always").source == "synthetic"
    assert server.requests == []


def test_synthetic_newswires_have_the_real_shapes_lengths_and_frequencies() -> None:
    corpus = data.synthetic_reuters()
    assert corpus.fault() is None
    assert (len(corpus.labels), corpus.n_train) == (11_228, 8_982)
    lengths = np.diff(corpus.offsets)
    assert (lengths.min(), lengths.max()) == (13, 2376)
    assert abs(np.median(lengths) - 95) < 3
    assert abs(lengths.mean() - 145) < 5
    # The share of the most frequent words in the real newswires.
    for words, share in ((10, 0.209), (100, 0.480), (1000, 0.782), (9996, 0.972)):
        assert abs((corpus.tokens <= words).mean() - share) < 0.035
    assert abs((corpus.labels == data.TOPICS.index("earn")).mean() - 3972 / 11_228) < 0.02


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
    assert x[0].tolist() == keras_padded(list(FIRST_ROW), 100)
    assert data.TOPICS[y[0]] == "earn"
    assert np.bincount(y[:n], minlength=46).tolist() == list(TRAIN_COUNTS)
    assert np.bincount(y[n:], minlength=46).tolist() == list(TEST_COUNTS)
    lengths = np.diff(corpus.offsets)[corpus.order] + 1
    assert (lengths[:n].max(), lengths[:n].mean()) == (2376, 145.5398574927633)
    order, n_train = data.reuters_split(11_228)
    assert np.array_equal(order, corpus.order)
    assert n_train == n


@real
def test_the_real_word_index_decodes_the_first_newswire() -> None:
    text = data.decode(data.reuters(SHARED).values(0), data.reuters_words(SHARED))
    assert text.startswith("? ? ? said as a result of its december acquisition of space co")


@real
def test_the_real_text_is_that_of_d2l() -> None:
    text = data.time_machine(SHARED)
    assert (len(text.tokens), len(text.symbols)) == (10_000, 28)
    assert text.decode(text.tokens[:32].tolist()) == "the time machine by h g wellsith"
    assert fetch.locate(fetch.TIME_MACHINE, SHARED).stat().st_size == 178_979
