"""tools/torch_versions.py finds what a torch lacks: here in one that is made up, of a header and a
library. And the versions that setup.py and the pages name are those that it compiles against."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

import torch_versions
from support.loading import module_at
from support.paths import ROOT
from torch_versions import Torch

HEADER = """
#pragma once
namespace at {
void known();
void declared_only();
}
"""
LIBRARY = "namespace at { void known() {} } namespace other { void not_torch() {} }"
SOURCE = """
#include <torch/library.h>
namespace fusedrnn {
void elsewhere();
#ifdef FUSEDRNN_WITH_CUDA
void half() { WITH }
#else
void half() { WITHOUT }
#endif
void both() { elsewhere(); BOTH }
}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds torch 9.8.7+cu130, unpacked from a wheel."""
    home = tmp_path_factory.mktemp("cache")
    library, source = home / "libc10.so", home / "c10.cpp"
    source.write_text(LIBRARY)
    command = [*os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(source)], check=True)
    with zipfile.ZipFile(home / "torch.whl", "w") as wheel:
        wheel.writestr("torch/include/torch/library.h", HEADER)
        wheel.writestr("torch/version.py", "__version__ = '9.8.7+cu130'\n")
        passed = "            cpp_flag = cpp_flag_prefix + 'c++17'\n"
        wheel.writestr("torch/utils/cpp_extension.py", f"# -std=c++98\n{passed}")
        wheel.write(library, "torch/lib/libc10.so")
    torch_versions.unpack(home / "torch.whl", home / f"9.8.7-{torch_versions.TAG}")
    return home


@pytest.fixture
def made_up(home: Path) -> Torch:
    found = torch_versions.fetched("9.8.7", home)
    assert found
    return found


def problems(folder: Path, torch: Torch, cuda: list[Path], **bodies: str) -> list[str]:
    """What the check says of one source with these statements."""
    text = SOURCE
    for name in ("WITHOUT", "WITH", "BOTH"):
        text = text.replace(f" {name} ", f" {bodies.get(name, 'at::known();')} ")
    (folder / "csrc" / "ops").mkdir(parents=True)
    (folder / "csrc" / "ops" / "stack.cpp").write_text(text)
    return torch_versions.check(folder, torch, cuda)


def test_a_wheel_gives_headers_standard_and_names(made_up: Torch) -> None:
    assert made_up.version == "9.8.7+cu130"
    assert made_up.standard == "c++17"
    assert made_up.symbols == {"_ZN2at5knownEv"}
    assert (made_up.folder / "include" / "torch" / "library.h").read_text() == HEADER


def test_what_fits_has_no_problems(made_up: Torch, tmp_path: Path) -> None:
    assert problems(tmp_path, made_up, [tmp_path]) == []


@pytest.mark.parametrize(
    ("where", "how"),
    [("BOTH", {"with", "without"}), ("WITH", {"with"}), ("WITHOUT", {"without"})],
)
def test_a_source_that_uses_what_the_headers_lack_is_found(
    made_up: Torch, tmp_path: Path, where: str, how: set[str]
) -> None:
    said = problems(tmp_path, made_up, [tmp_path], **{where: "at::newer();"})
    assert {line.split(" CUDA: ")[0] for line in said} == how
    assert len(said) == len(how)
    assert all("csrc/ops/stack.cpp:" in line and "newer" in line for line in said)


def test_a_source_for_a_newer_standard_is_found(made_up: Torch, tmp_path: Path) -> None:
    lambda_of_20 = "auto f = []<class T>(T x) requires true { return x; }; f(1);"
    said = problems(tmp_path, made_up, [tmp_path], BOTH=lambda_of_20)
    assert len(said) == 2


def test_a_kernel_for_a_newer_standard_is_found(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "csrc" / "cpu" / "gemm.cpp").write_text("template <class T> concept C = true;")
    assert torch_versions.kernels(tmp_path, "c++20") == []
    said = torch_versions.kernels(tmp_path, "c++17")
    assert said
    assert said[0].startswith("csrc/cpu/gemm.cpp, c++17: ")


@pytest.mark.parametrize("where", ["BOTH", "WITH", "WITHOUT"])
def test_a_name_that_no_library_defines_is_found(
    made_up: Torch, tmp_path: Path, where: str
) -> None:
    said = problems(tmp_path, made_up, [tmp_path], **{where: "at::declared_only();"})
    assert said == ["_ZN2at13declared_onlyEv is in none of its libraries"]


def test_without_cudas_headers_its_half_alone_is_left_out(made_up: Torch, tmp_path: Path) -> None:
    glue = tmp_path / "csrc" / "ops" / "cuda" / "glue.cpp"
    glue.parent.mkdir(parents=True)
    glue.write_text("#include <not_there.h>")
    (said,) = torch_versions.check(tmp_path, made_up, cuda=[tmp_path])
    assert said.startswith("with CUDA: ")
    assert torch_versions.check(tmp_path, made_up, cuda=[]) == []


def test_a_version_that_was_built_is_tried_with_the_cuda_half_alone(
    made_up: Torch, tmp_path: Path
) -> None:
    assert problems(tmp_path, made_up, [tmp_path], WITHOUT="at::newer();")
    assert torch_versions.check(tmp_path, made_up, [tmp_path], built=True) == []
    assert torch_versions.halves(made_up, [], built=True) == []


@pytest.mark.parametrize(
    ("name", "of_torch"),
    [
        ("_ZN2at4_ops3add4callERKNS_6TensorES4_", True),
        ("_ZTIN3c105ErrorE", True),
        ("_ZN8pybind116detail11type_casterIN2at6TensorEvE4loadENS_6handleEb", True),
        ("_Z16THPVariable_WrapRKN2at10TensorBaseE", True),
        ("_ZN8fusedrnn3ops5stackERKN2at6TensorE", False),
        ("_ZNSt6vectorIN2at6TensorESaIS1_EE9push_backEOS1_", False),
        ("_ZNKSs2atEm", False),
        ("cudaStreamCreate", False),
    ],
)
def test_the_names_that_torch_has_to_define_are_told_from_others(name: str, of_torch: bool) -> None:
    assert torch_versions.of_torch(name) is of_torch


def test_a_version_that_pip_does_not_offer_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch_versions, "pip", lambda *_: None)
    assert torch_versions.fetched("2.10.0", tmp_path / "cache") is None
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_torch_that_is_only_fetched_is_not_compiled_against(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Torch] = []

    def check(_: Path, torch: Torch, *__: object) -> list[str]:
        asked.append(torch)
        return []

    monkeypatch.setattr(torch_versions, "cache", lambda: home)
    monkeypatch.setattr(torch_versions, "cuda_headers", lambda _: [])
    monkeypatch.setattr(torch_versions, "kernels", lambda *_: [])
    monkeypatch.setattr(torch_versions, "check", check)
    monkeypatch.setattr("sys.argv", ["torch_versions.py", "--fetch", "9.8.7"])
    assert torch_versions.main() == 0
    assert asked == []
    monkeypatch.setattr("sys.argv", ["torch_versions.py", "9.8.7"])
    assert torch_versions.main() == 0
    assert [torch.version for torch in asked] == ["9.8.7+cu130"]


def test_every_version_that_is_claimed_is_compiled_against() -> None:
    minimum = module_at(ROOT / "setup.py", "fusedrnn_setup").MIN_TORCH
    minors = [tuple(map(int, each.split(".")[:2])) for each in torch_versions.VERSIONS]
    first, last = minors[0], minors[-1]
    assert first == minimum
    assert minors == [(first[0], minor) for minor in range(first[1], last[1] + 1)]
    oldest = ".".join(map(str, minimum))
    for page in ("README.md", "docs/install.md"):
        assert f"{oldest} or newer" in (ROOT / page).read_text("utf-8"), page
