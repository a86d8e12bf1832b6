"""What was built and installed, and the decisions setup.py takes before it compiles anything.
Whole builds (wheel, sdist, nothing recompiled, torch absent) are stages of .ci/run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module: its functions, without running it."""
    spec = importlib.util.spec_from_file_location("fusedrnn_setup", ROOT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executable(path: Path, says: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def test_without_torch_one_line_says_what_to_install(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(build, "search_path", lambda python: [])
    with pytest.raises(
        SystemExit, match=r"^fusedrnn: .*torch>=2\.10.*pip install torch"
    ) as stopped:
        build.import_torch()
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.0a0+git1a2b3c", "3.0"])
def test_a_recent_torch_is_accepted(build: ModuleType, version: str) -> None:
    build.check_torch_version(version)


def test_an_old_torch_is_refused(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"fusedrnn: torch>=2\.10 is needed, 2\.9\.1\+cu128 is"):
        build.check_torch_version("2.9.1+cu128")


def test_torch_is_found_outside_the_build_environment(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").touch()  # an overlay's torch must not be taken for the interpreter's
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = build.search_path(sys.executable)
    assert str(Path(torch.__file__).parents[1]) in found
    assert str(tmp_path) not in found


def test_an_interpreter_without_torch_offers_nothing(build: ModuleType, tmp_path: Path) -> None:
    assert build.search_path(executable(tmp_path / "python3", says="[]")) == []
    assert build.search_path("/bin/false") == []


def test_only_a_throwaway_environment_asks_other_interpreters(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caller = executable(tmp_path / "env" / "bin" / "python3", says="[]")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "env"))
    assert build.interpreters() == [sys.executable]
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "build-env-x1y2"))
    assert build.interpreters()[0] == caller


def test_cuda_is_built_where_torch_nvcc_and_kernels_are(build: ModuleType, tmp_path: Path) -> None:
    nvcc = executable(tmp_path / "nvcc", says="Cuda compilation tools, release 13.0, V13.0.48")
    assert build.cuda_obstacle("13.2", nvcc, ["csrc/cuda/block.cu"]) is None


@pytest.mark.parametrize(
    ("torch_cuda", "has_nvcc", "kernels", "reason"),
    [
        (None, True, ["block.cu"], "the installed torch has no CUDA"),
        ("13.0", False, ["block.cu"], "there is no nvcc"),
        ("13.0", True, [], "csrc/cuda holds no .cu sources"),
        ("12.8", True, ["block.cu"], "nvcc is of CUDA 13.0 and torch of CUDA 12.8"),
    ],
)
def test_what_prevents_cuda_is_named(
    build: ModuleType,
    tmp_path: Path,
    torch_cuda: str | None,
    has_nvcc: bool,
    kernels: list[str],
    reason: str,
) -> None:
    nvcc = executable(tmp_path / "nvcc", says="release 13.0, V13.0.48") if has_nvcc else None
    obstacle = build.cuda_obstacle(torch_cuda, nvcc, kernels)
    assert obstacle.startswith(reason)
    assert not build.use_cuda(None, obstacle)
    assert not build.use_cuda("0", obstacle)
    with pytest.raises(SystemExit, match=f"^fusedrnn: FUSEDRNN_CUDA=1 cannot be done, {reason}.*$"):
        build.use_cuda("1", obstacle)


def test_fusedrnn_cuda_chooses_where_there_is_a_choice(build: ModuleType) -> None:
    assert [build.use_cuda(wish, None) for wish in (None, "", "0", "1")] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(SystemExit, match="FUSEDRNN_CUDA must be 0 or 1, got 'yes'"):
        build.use_cuda("yes", None)


def test_nvcc_is_looked_for_where_torch_says_the_toolkit_is(
    build: ModuleType, tmp_path: Path
) -> None:
    assert build.find_nvcc(None) is None
    assert build.find_nvcc(str(tmp_path)) is None
    nvcc = executable(tmp_path / "bin" / "nvcc", says="")
    assert build.find_nvcc(str(tmp_path)) == nvcc


@pytest.mark.parametrize(
    ("release", "arches"),
    [
        ("13.0", "7.5;8.0;8.6;9.0;10.0+PTX;12.0+PTX"),
        ("12.8", "7.5;8.0;8.6;9.0;10.0+PTX;12.0+PTX"),
        ("12.6", "7.5;8.0;8.6;9.0+PTX"),
        ("unknown", "7.5;8.0;8.6;9.0+PTX"),
    ],
)
def test_architectures_are_those_the_toolkit_has(
    build: ModuleType, release: str, arches: str
) -> None:
    assert build.cuda_arches(release) == arches


@pytest.mark.parametrize("wish", ["", "8.0;9.0"])
def test_the_architecture_list_is_fixed_unless_given(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: str
) -> None:
    nvcc = executable(tmp_path / "bin" / "nvcc", says="release 13.0, V13.0.48")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    monkeypatch.delenv("FUSEDRNN_CUDA", raising=False)
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build, "find_nvcc", lambda home: nvcc)
    made: list[str | None] = []
    monkeypatch.setattr(build, "extension", made.append)
    monkeypatch.setattr(build, "setup", lambda **_: None)
    build.main()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == (wish or build.cuda_arches("13.0"))
    assert made == ["13.0"]


def test_sources_come_sorted_and_cuda_ones_only_on_demand(
    build: ModuleType, tmp_path: Path
) -> None:
    cpp = ["csrc/cpu/a.cpp", "csrc/cpu/b.cpp", "csrc/cuda/plan.cpp", "csrc/ops/library.cpp"]
    for name in [*reversed(cpp), "csrc/ops/cuda/glue.cpp", "csrc/cuda/inst/block.cu"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert build.sources(tmp_path, cuda=False) == cpp
    with_cuda = [*cpp, "csrc/ops/cuda/glue.cpp", "csrc/cuda/inst/block.cu"]
    assert sorted(build.sources(tmp_path, cuda=True)) == sorted(with_cuda)


def test_flags_name_no_processor(build: ModuleType) -> None:
    flags = build.extension(toolkit=None).extra_compile_args["cxx"]
    assert [flag for flag in flags if flag.startswith("-m")] == []


def test_the_openmp_that_torch_ships_is_linked(build: ModuleType, tmp_path: Path) -> None:
    assert build.openmp([str(tmp_path)]) == "-fopenmp"
    (tmp_path / "libgomp-a1b2c3d4.so.1").touch()
    assert build.openmp([str(tmp_path)]) == str(tmp_path / "libgomp-a1b2c3d4.so.1")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_fusedrnn_share_one_openmp() -> None:
    show = "import torch, fusedrnn; print(open('/proc/self/maps').read())"
    maps = subprocess.run(
        [sys.executable, "-c", show], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert len({line.split()[-1] for line in maps.splitlines() if "gomp" in line}) == 1


def test_build_info_agrees_with_the_distribution_and_torch() -> None:
    from fusedrnn import _C

    info: dict[str, Any] = _C.build_info()
    assert set(info) == {"version", "torch", "compiler", "cuda", "cuda_toolkit", "cuda_arches"}
    assert info["version"] == importlib.metadata.version("fusedrnn")
    assert info["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert info["compiler"]
    assert isinstance(info["cuda"], bool)
    assert (info["cuda_toolkit"] is not None) == info["cuda"]
    assert (info["cuda_arches"] is not None) == info["cuda"]


def test_the_distribution_installs_its_package_and_nothing_else() -> None:
    files = importlib.metadata.files("fusedrnn")
    assert files
    tops = {file.parts[0] for file in files if "editable" not in file.parts[0]}
    assert {top.partition("-")[0] for top in tops - {"__pycache__"}} <= {"fusedrnn"}
    installed = Path(str(importlib.util.find_spec("fusedrnn").origin)).parent  # type: ignore[union-attr]
    assert (installed / "py.typed").exists()
    assert list(installed.glob("_C.*.so"))
