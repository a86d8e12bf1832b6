"""Finds the data sets, and downloads what is nowhere on this machine.

The places are tried in order: ``--data-dir``, ``FUSEDRNN_DATA``, ``../shared/data`` beside the
repository, the cache, then the public download into the cache. A file with a published digest is
held to it wherever it lies, so that a figure always belongs to the data it names. A download is
verified before it takes its final name: no reader ever sees half a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.driver.errors import CorruptFile, MissingData, WorkloadError

REPOSITORY = Path(__file__).resolve().parents[2]
DATA_ENV = "FUSEDRNN_DATA"
URL_ENV = "FUSEDRNN_DATA_URL"  # replaces the part of every URL before the file name
TIMEOUT_S = 15.0
MAX_BYTES = 64 << 20  # the largest file is 17 MB: whatever exceeds this is not it


@dataclass(frozen=True)
class Asset:
    """A published file: its path below a data directory, its URL, and the digest it must have."""

    path: str
    url: str
    digest: str  # "sha1:<hex>"

    @property
    def source(self) -> str:
        base = os.environ.get(URL_ENV)
        return f"{base.rstrip('/')}/{self.path.rsplit('/', 1)[-1]}" if base else self.url

    def mismatch(self, body: bytes) -> str | None:
        """How `body` differs from the published file; None when it is that file."""
        algorithm, expected = self.digest.split(":")
        got = hashlib.new(algorithm, body).hexdigest()
        return None if got == expected else f"{algorithm} should be {expected}, got {got}"

    def check(self, file: Path) -> None:
        """Raises CorruptFile unless `file` is the published file."""
        try:
            difference = self.mismatch(file.read_bytes())
        except OSError as error:
            raise WorkloadError(f"cannot read {file}: {error.strerror}") from error
        if difference:
            raise CorruptFile(file, difference)


KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
TIME_MACHINE = Asset(
    "timemachine/timemachine.txt",
    "http://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt",
    "sha1:090b5e7e70c295757f55df93cb0a180b9691891a",
)
REUTERS = Asset(
    "reuters/reuters.npz",
    f"{KERAS}/reuters.npz",
    "sha256:d6586e694ee56d7a4e65172e12b3e987c03096cb01eab99753921ef915959916",
)
REUTERS_WORDS = Asset(
    "reuters/reuters_word_index.json",
    f"{KERAS}/reuters_word_index.json",
    "md5:4d44cc38712099c9e383dc6e5f11a921",
)
IMDB = Asset(
    "imdb/imdb.npz",
    f"{KERAS}/imdb.npz",
    "sha256:69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f",
)
IMDB_WORDS = Asset(
    "imdb/imdb_word_index.json",
    f"{KERAS}/imdb_word_index.json",
    "md5:bfafd718b763782e994055a2d397834f",
)


def cache_dir() -> Path:
    """The cache: ``$XDG_CACHE_HOME/fusedrnn``, or ``~/.cache/fusedrnn``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fusedrnn"


def places(data_dir: str | Path | None) -> Iterator[tuple[str, Path | None]]:
    """Every place looked at, in order: how to name it, and the directory when there is one."""
    yield "--data-dir", Path(data_dir) if data_dir else None
    named = os.environ.get(DATA_ENV)
    yield DATA_ENV, Path(named) if named else None
    yield "../shared/data", REPOSITORY.parent / "shared" / "data"
    yield "the cache", cache_dir()


def tried(data_dir: str | Path | None) -> list[str]:
    """Every place, in order, as a message names it."""
    return [f"{name} ({directory or 'not given'})" for name, directory in places(data_dir)]


def locate(asset: Asset, data_dir: str | Path | None = None, *alternatives: str) -> Path:
    """The path of `asset`, or of one of the `alternatives` to it, downloaded if need be.

    Args:
        data_dir: what ``--data-dir`` gave; it must be a directory.
        alternatives: paths below a data directory that serve as well and come first.
    """
    if data_dir and not Path(data_dir).is_dir():
        raise WorkloadError(f"--data-dir {data_dir} is not a directory")
    for _, directory in places(data_dir):
        if directory is None:
            continue
        for path in (*alternatives, asset.path):
            for file in (directory / path, directory / Path(path).name):
                if file.is_file():
                    if path == asset.path:
                        asset.check(file)
                    return file
    try:
        return download(asset, cache_dir() / asset.path)
    except WorkloadError as error:
        wanted = " or ".join((*alternatives, asset.path))
        raise MissingData(
            f"found no {wanted} in: {'; '.join(tried(data_dir))}; nor by download: {error}. "
            "Put the file in one of these, or use --synthetic"
        ) from error


def download(asset: Asset, target: Path) -> Path:
    """Fetches `asset` into `target`: verified first, then renamed into place."""
    with replacing(target) as temporary:
        try:
            with urllib.request.urlopen(asset.source, timeout=TIMEOUT_S) as response:
                length = response.headers.get("Content-Length")
                body = response.read(MAX_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise WorkloadError(f"cannot download {asset.source}: {reason}") from error
        if len(body) > MAX_BYTES:
            raise WorkloadError(f"{asset.source} is larger than {MAX_BYTES >> 20} MiB")
        if length is not None and len(body) != int(length):
            raise WorkloadError(
                f"{asset.source} was truncated: {length} bytes announced, {len(body)} received"
            )
        difference = asset.mismatch(body)
        if difference:
            raise WorkloadError(f"{asset.source} is not the published file: {difference}")
        temporary.write_bytes(body)
    return target


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file that becomes `target` when the block ends well, and vanishes otherwise."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp gives 0600
        temporary.replace(target)
    except OSError as error:
        raise WorkloadError(f"cannot write {target}: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
