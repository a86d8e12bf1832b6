"""How the package finds its compiled half, and that it never uses one that does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fusedrnn
from fusedrnn import _binary
from support.loading import module_at
from support.paths import ROOT

SUFFIX = EXTENSION_SUFFIXES[0]
SMALL = "import torch, fusedrnn; print(fusedrnn.LSTM(3, 4)(torch.zeros(5, 2, 3))[0].shape)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, without a binary."""
    for part in ("fusedrnn", "csrc"):
        binaries = shutil.ignore_patterns("*.so", _binary.INFO, "__pycache__")
        shutil.copytree(ROOT / part, tmp_path / part, ignore=binaries)
    return tmp_path


@pytest.fixture
def alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """_binary.py of a checkout whose environment has no fusedrnn."""
    module = module_at(checkout / "fusedrnn" / "_binary.py", "alone")
    monkeypatch.setattr(sys, "path", [str(checkout)])
    monkeypatch.setattr(module, "import_module", lambda name: torch)
    return module


def plant(folder: Path, **info: object) -> Path:
    """A file where a binary is looked for, and what its build would have written."""
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / f"_C{SUFFIX}"
    binary.touch()
    fitting = {"torch": torch.__version__, "sources": _binary.digest(ROOT / "csrc")}
    (folder / _binary.INFO).write_text(json.dumps(fitting | info))
    return binary


def python(code: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run where this process finds fusedrnn too, `folder` first."""
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *path])},
        capture_output=True,
        text=True,
    )


def test_sources_in_a_checkout_use_the_installed_binary(checkout: Path) -> None:
    if _binary.build_info()["sources"] != _binary.digest(ROOT / "csrc"):
        pytest.fail("the installed fusedrnn was built from other sources: pip install .")
    code = f"{SMALL}; print(fusedrnn.__file__); print(fusedrnn._C.__file__)"
    done = python(code, checkout)
    assert done.returncode == 0, done.stderr
    shape, sources, binary = done.stdout.splitlines()
    assert shape == "torch.Size([5, 2, 4])"
    assert sources == str(checkout / "fusedrnn" / "__init__.py")
    assert binary == _binary.build_info()["file"]


def test_a_binary_older_than_its_sources_is_refused_in_two_lines(checkout: Path) -> None:
    with (checkout / "csrc" / "model" / "problem.h").open("a") as header:
        header.write("// changed\n")
    done = python(SMALL, checkout)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("ImportError: fusedrnn: ")
    assert f"is not built from {checkout / 'csrc'} as it is now" in first
    assert second.strip().endswith(f"-m pip install --force-reinstall --no-deps {checkout}")


def test_another_torch_is_refused_in_one_line_before_the_loader_sees_it(checkout: Path) -> None:
    done = python(f"import torch; torch.__version__ = '2.99.1+cu999'; {SMALL}", checkout)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    built = _binary.build_info()["torch"]
    expected = f"fusedrnn was built against torch {built} and cannot run with torch 2.99.1+cu999"
    assert expected in last
    assert f"--force-reinstall --no-deps {checkout}" in last
    assert f"pip install torch=={_binary.minor(built)}.*" in last
    assert "undefined symbol" not in done.stderr


def test_without_a_binary_two_lines_say_how_to_build_it(alone: ModuleType, checkout: Path) -> None:
    with pytest.raises(ImportError, match="compiled half is not installed") as refused:
        alone.load()
    first, second = str(refused.value).splitlines()
    assert "(there is none)" in first
    assert sys.executable in first
    assert second == f"    {sys.executable} -m pip install --force-reinstall --no-deps {checkout}"


def test_a_binary_for_another_python_is_named(alone: ModuleType, checkout: Path) -> None:
    (checkout / "fusedrnn" / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    with pytest.raises(ImportError, match=r"only _C\.cpython-27-x86_64-linux-gnu\.so is there"):
        alone.load()


def test_a_binary_that_an_older_build_left_among_the_sources_is_refused(
    alone: ModuleType, checkout: Path
) -> None:
    (checkout / "fusedrnn" / f"_C{SUFFIX}").touch()  # as it left no word of what it was built from
    with pytest.raises(ImportError, match="does not say what it was built from"):
        alone.load()


def test_a_fitting_binary_is_taken_before_one_that_does_not_fit(
    alone: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(checkout / "fusedrnn", torch="1.0.0")
    fitting = plant(tmp_path / "site" / "fusedrnn")
    monkeypatch.setattr(sys, "path", [str(checkout), str(tmp_path / "site")])
    taken: list[Path] = []
    monkeypatch.setattr(alone, "_import", taken.append)
    alone.load()
    assert taken == [fitting]
    assert alone.build_info()["file"] == str(fitting)


def test_the_nearest_binary_that_does_not_fit_is_the_one_explained(
    alone: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(checkout / "fusedrnn", torch="1.2.0")
    plant(tmp_path / "site" / "fusedrnn", sources="other")
    monkeypatch.setattr(sys, "path", [str(checkout), str(tmp_path / "site")])
    with pytest.raises(ImportError, match=r"built against torch 1\.2\.0"):
        alone.load()


def test_a_binary_that_does_not_load_says_what_to_run(alone: ModuleType, checkout: Path) -> None:
    binary = plant(checkout / "fusedrnn")
    binary.write_bytes(b"no ELF")
    with pytest.raises(ImportError, match=r"does not load \(.*\)\. Build it again:\n    .*pip"):
        alone.load()


@pytest.mark.parametrize(
    ("built", "running", "fits"),
    [
        ("2.13.0", "2.13.0+cpu", True),
        ("2.13.0+cu130", "2.13.1+cu128", True),
        ("2.13.0", "2.14.0", False),
        ("2.14.0a0+git1a2b", "2.14.0", True),
        ("2.1.0", "2.14.0", False),
    ],
)
def test_a_binary_serves_one_minor_version_of_torch(
    alone: ModuleType, checkout: Path, built: str, running: str, fits: bool
) -> None:
    binary = plant(checkout / "fusedrnn", torch=built)
    refused = alone._misfit(binary, alone._info(binary), running)
    assert (refused is None) == fits


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("1")
    one = _binary.digest(tmp_path)
    (tmp_path / "notes.md").write_text("no source")
    assert _binary.digest(tmp_path) == one
    (tmp_path / "a.cpp").write_text("2")
    two = _binary.digest(tmp_path)
    (tmp_path / "a.cpp").rename(tmp_path / "b.cpp")
    assert len({one, two, _binary.digest(tmp_path)}) == 3


def test_build_info_is_a_copy() -> None:
    _binary.build_info()["torch"] = "1.0"
    assert _binary.build_info()["torch"] != "1.0"
    assert _binary.build_info()["file"] == fusedrnn._C.__file__
