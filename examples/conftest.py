"""Fixtures of the examples' tests: small trainings, made-up data files, and a loopback server.

Every test starts from the same seed, with an empty home, no data place and an unreachable download,
so that what it finds is what it put there.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import data
from examples.cost import model as cost
from examples.data import fetch
from examples.driver import command, results
from examples.driver.layers import CELLS, IMPLEMENTATIONS
from examples.from_scratch import model as from_scratch
from examples.gradient_flow import model as gradient_flow
from examples.memory import model as memory
from examples.seq2seq import model as seq2seq
from examples.streaming import model as streaming
from examples.time_machine import model as time_machine


@dataclass(frozen=True)
class Corpus:
    """Rows of word ranks with their labels, and how to write them down.

    Args:
        train: how many of the rows, at the start, are to train where a file says so (IMDB); 0: the
            rows are one part, cut in order (Reuters).
    """

    rows: list[list[int]]
    labels: list[int]
    train: int = 0

    def keras(self, without: str = "") -> bytes:
        """The file that Keras distributes, object arrays of lists and the labels, but for one."""
        n = self.train
        parts = {"_train": slice(None, n), "_test": slice(n, None)} if n else {"": slice(None)}
        arrays: dict[str, Any] = {}
        for part, chosen in parts.items():
            x = np.empty(len(self.rows[chosen]), object)
            x[:] = self.rows[chosen]
            arrays |= {f"x{part}": x, f"y{part}": np.array(self.labels[chosen])}
        stream = io.BytesIO()
        np.savez_compressed(stream, **{k: a for k, a in arrays.items() if k != without})
        return stream.getvalue()

    def order(self) -> list[int]:
        """load_data's shuffle of each part, one generator after the other."""
        rng, found = np.random.RandomState(113), np.arange(len(self.rows))
        rng.shuffle(found[: self.train or None])
        if self.train:
            rng.shuffle(found[self.train :])
        return list(found.tolist())

    def values(self, row: int, num_words: int) -> list[int]:
        """load_data(num_words=...)'s own steps, one value at a time."""
        return [w if w < num_words else 2 for w in [1, *(rank + 3 for rank in self.rows[row])]]

    def flat(self, **changes: Any) -> dict[str, Any]:
        """The arrays of the flat layout, some of them changed, or left out when None."""
        arrays = {
            "tokens": np.concatenate(self.rows),
            "offsets": np.cumsum([0, *map(len, self.rows)]),
            "labels": np.array(self.labels),
            "order": np.array(self.order()),
            "n_train": np.array(self.train or int(len(self.rows) * 0.8)),
        }
        return {name: a for name, a in (arrays | changes).items() if a is not None}


def made_up(words: int, labels: int, train: int = 0) -> Corpus:
    """Lengths 1 to 13, ranks on both sides of the vocabulary's edge: `words` - 4 is the last."""
    rng = np.random.default_rng(0)
    lengths = (3, 1, 13, 5, 2, 7, 4, 4, 11, 6, 2)
    rows = [rng.integers(1, words * 6 // 5, n).tolist() for n in lengths]
    rows[0][:2] = [words - 4, words - 3]
    return Corpus(rows, rng.integers(0, labels, len(rows)).tolist(), train)


@pytest.fixture
def newswires() -> Corpus:
    return made_up(data.NUM_WORDS, len(data.TOPICS))


@pytest.fixture
def reviews() -> Corpus:
    return made_up(data.IMDB_WORDS, len(data.SENTIMENTS), train=6)


# Options and sizes with which a command is a second or two.
SMALL = {
    "hello": "--epochs 3",
    "from_scratch": "--epochs 3 --log-every 1",
    "time_machine": "--epochs 3 --log-every 1 --corpus first",
    "cost": "--epochs 3 --hidden 5 8",
    "reuters": "--epochs 3 --limit 70 --steps 8 12",
    "imdb": "--quick --limit 70 --steps 9 --layout padded packed",
    "seq2seq": "--quick --forcing 1.0 scheduled",
    "gradient_flow": "--quick --epochs 3 --steps 12",
    "memory": "--quick --epochs 2 --steps 12",
    "streaming": "--quick --epochs 2",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Small models and synthetic data for what `train` runs, and its options by system."""
    text, reviews = data.synthetic_text(500), data.synthetic_imdb(200)
    sizes: dict[str, Any] = {"hidden": 12, "batch": 4, "steps": 9}
    monkeypatch.setattr(data, "synthetic_text", lambda *_: text)
    monkeypatch.setattr(data, "synthetic_imdb", lambda: reviews)
    monkeypatch.setattr(cost, "CONFIG", replace(cost.CONFIG, **sizes))
    monkeypatch.setattr(from_scratch, "CONFIG", replace(from_scratch.CONFIG, **sizes))
    for corpora in (time_machine.CORPORA, time_machine.QUICK):
        for corpus, config in corpora.items():
            monkeypatch.setitem(corpora, corpus, replace(config, **sizes))
    flow: dict[str, Any] = {"hidden": 12, "batch": 4, "train_steps": 20}
    monkeypatch.setattr(gradient_flow, "QUICK", replace(gradient_flow.QUICK, **flow))
    rows: dict[str, Any] = {"hidden": 8, "batch": 16, "updates": 5, "held_out": 40}
    monkeypatch.setattr(memory, "QUICK", replace(memory.QUICK, **rows))
    dates: dict[str, Any] = {"train": 96, "test": 40, "embedding": 8, "hidden": 16, "batch": 32}
    monkeypatch.setattr(seq2seq, "QUICK", replace(seq2seq.CONFIG, **dates, fall=2, epochs=2))
    sound: dict[str, Any] = {"tracks": 8, "seconds": 1, "clips": 1, "hidden": 8, "batch": 4}
    monkeypatch.setattr(streaming, "QUICK", replace(streaming.QUICK, **sound, steps=50, epochs=2))
    return SMALL


@pytest.fixture
def train(small: dict[str, str], tmp_path: Path) -> Callable[..., int]:
    """train("reuters", *options): the exit status of a small run that writes to tmp_path/out."""

    def train(name: str, *options: str) -> int:
        with pytest.raises(SystemExit) as ended:
            command.run([name, *SMALL[name].split(), "--out", str(tmp_path / "out"), *options])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return train


@pytest.fixture
def fails(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """fails("reuters", *options): the one line on stderr of a command that ends with `status`."""

    def fails(name: str, *options: str, status: int = 1) -> str:
        assert train(name, *options) == status
        error = capsys.readouterr().err
        assert error.count("\n") == 1 or status == 2  # then after the usage
        return error

    return fails


@pytest.fixture
def record(train: Callable[..., int], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """record("reuters", *options): the results of a small run on synthetic data, read back."""

    def record(name: str, *options: str) -> dict[str, Any]:
        assert train(name, "--synthetic", *options) == 0
        files = (tmp_path / "out").glob("*.jsonl")
        return results.read(max(files, key=lambda path: path.stat().st_mtime_ns))

    return record


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """One thread: torch.nn's many small operators crawl on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(fetch.DATA_ENV, raising=False)
    monkeypatch.setenv(fetch.URL_ENV, "http://127.0.0.1:1")  # nothing listens on port 1
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "REPOSITORY", tmp_path / "repository")


@dataclass
class Server:
    """Serves `files` by name; announces `announced` bytes instead of the true length."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    announced: int | None = None
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            state.requests.append(name)
            if name not in state.files:
                self.send_error(404)
                return
            body = state.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(state.announced or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state = Server(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(fetch.URL_ENV, state.url)
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """publish("REUTERS", body): from now on `body` is what fetch.REUTERS should be."""

    def publish(name: str, body: bytes) -> fetch.Asset:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        asset: fetch.Asset = replace(getattr(fetch, name), digest=digest)
        monkeypatch.setattr(fetch, name, asset)
        return asset

    return publish


@pytest.fixture
def put(publish: Any, tmp_path: Path) -> Any:
    """put("REUTERS", body): publishes `body` and writes the file into tmp_path, or a directory."""

    def put(name: str, body: bytes, directory: Path = tmp_path) -> None:
        (directory / Path(publish(name, body).path).name).write_bytes(body)

    return put
