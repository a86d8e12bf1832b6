"""Fixtures of the workload tests: made-up newswires in both file layouts, and a loopback server.

Every test runs with an empty home, no data place and an unreachable download, so that what it
finds is what it put there.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.workloads import fetch

Rows = list[list[int]]


@dataclass(frozen=True)
class Newswires:
    """Rows of word ranks with their topics, and how to write them down."""

    rows: Rows
    labels: list[int]

    def keras_bytes(self) -> bytes:
        """The layout that Keras distributes: an object array of lists, and the labels."""
        x = np.empty(len(self.rows), object)
        x[:] = self.rows
        return npz(x=x, y=np.array(self.labels))

    def flat(self, **changes: Any) -> dict[str, Any]:
        """The arrays of the flat layout, some of them changed."""
        order = np.arange(len(self.rows))
        np.random.RandomState(113).shuffle(order)
        arrays = {
            "tokens": np.concatenate(self.rows),
            "offsets": np.cumsum([0, *map(len, self.rows)]),
            "labels": np.array(self.labels),
            "order": order,
            "n_train": np.array(int(len(self.rows) * 0.8)),
        }
        return arrays | changes


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.fixture
def newswires() -> Newswires:
    """Lengths 1 to 13, ranks on both sides of the vocabulary's edge (9996 is the last kept)."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 12_000, n).tolist() for n in (3, 1, 13, 5, 2, 7, 4, 4, 11, 6, 2)]
    rows[0][:2] = [9996, 9997]
    return Newswires(rows, rng.integers(0, 46, len(rows)).tolist())


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
