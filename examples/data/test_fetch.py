"""Where data is looked for, and the download: good, truncated, wrong, unreachable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.data import fetch
from examples.driver.errors import CorruptFile, MissingData, WorkloadError

BODY = b"what was published\n" * 1000
NAME = "timemachine.txt"


@pytest.fixture
def asset(publish: Any) -> fetch.Asset:
    published: fetch.Asset = publish("TIME_MACHINE", BODY)
    return published


def put(directory: Path, body: bytes = BODY) -> Path:
    file = directory / "timemachine" / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(body)
    return file


def cached() -> list[str]:
    cache = fetch.cache_dir()
    return [str(f.relative_to(cache)) for f in cache.rglob("*") if f.is_file()]


def test_places_are_tried_in_the_documented_order(
    asset: fetch.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fetch.DATA_ENV, str(tmp_path / "env"))
    places = ("given", "env", "shared/data")
    for file in [*(put(tmp_path / place) for place in places), put(fetch.cache_dir())]:
        assert fetch.locate(asset, tmp_path / "given") == file
        file.unlink()
    with pytest.raises(MissingData):
        fetch.locate(asset, tmp_path / "given")


def test_a_file_may_lie_directly_in_the_data_directory(asset: fetch.Asset, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(BODY)
    assert fetch.locate(asset, tmp_path) == tmp_path / NAME


def test_the_cache_follows_xdg_only_when_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache_dir() == tmp_path / "fusedrnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert fetch.cache_dir() == Path.home() / ".cache" / "fusedrnn"


def test_a_local_file_that_is_not_the_published_one_is_refused(
    asset: fetch.Asset, tmp_path: Path
) -> None:
    file = put(tmp_path, BODY[:-1])
    with pytest.raises(CorruptFile, match=r"is corrupt: sha256 should be .* delete the file") as e:
        fetch.locate(asset, tmp_path)
    assert str(file) in str(e.value)


def test_a_data_dir_that_is_no_directory_is_refused(asset: fetch.Asset, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="is not a directory"):
        fetch.locate(asset, tmp_path / "absent")


def test_a_good_download_is_kept_in_the_cache(asset: fetch.Asset, server: Any) -> None:
    server.files[NAME] = BODY
    file = fetch.locate(asset)
    assert file == fetch.cache_dir() / asset.path
    assert file.read_bytes() == BODY
    assert fetch.locate(asset) == file
    assert server.requests == [NAME]
    assert cached() == [asset.path]


@pytest.mark.parametrize(
    ("body", "limit", "message"),
    [
        (BODY[:5000], fetch.MAX_BYTES, r"truncated|IncompleteRead"),
        (BODY.upper(), fetch.MAX_BYTES, "is not the published file: sha256 should be"),
        (BODY, 1000, "is larger than"),
    ],
    ids=["truncated", "another digest", "without end"],
)
def test_a_bad_download_leaves_nothing(
    asset: fetch.Asset, server: Any, monkeypatch: Any, body: bytes, limit: int, message: str
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", limit)
    server.files[NAME] = body
    server.announced = len(BODY)
    with pytest.raises(MissingData, match=message):
        fetch.locate(asset)
    assert cached() == []


def test_an_absent_remote_file_is_named(asset: fetch.Asset, server: Any) -> None:
    with pytest.raises(MissingData, match=f"cannot download {server.url}/{NAME}: Not Found"):
        fetch.locate(asset)


def test_an_unreachable_server_names_every_place_and_synthetic(asset: fetch.Asset) -> None:
    with pytest.raises(MissingData) as e:
        fetch.locate(asset)
    message = str(e.value)
    assert "\n" not in message
    places = ("--data-dir", fetch.DATA_ENV, "../shared/data", str(fetch.cache_dir()))
    for part in (*places, f"http://127.0.0.1:1/{NAME}", "refused", "--synthetic"):
        assert part in message


def test_an_unwritable_cache_is_named(
    asset: fetch.Asset, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    server.files[NAME] = BODY
    with pytest.raises(MissingData, match=r"cannot write .*Not a directory"):
        fetch.locate(asset)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_replacement_keeps_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "result"
    target.write_text("old")

    def replace() -> None:
        with fetch.replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        replace()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
