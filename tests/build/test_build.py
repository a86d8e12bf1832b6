"""What was built and installed, and the decisions setup.py takes before it compiles anything.
Whole builds (wheel, sdist, nothing recompiled, torch absent) are stages of .ci/run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fusedrnn import _binary
from support.loading import module_at
from support.paths import ROOT


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module: its functions, without running it."""
    return module_at(ROOT / "setup.py", "fusedrnn_setup")


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


@pytest.mark.parametrize(
    ("environment", "wish"),
    [
        ({}, None),
        ({"FUSEDRNN_CUDA": ""}, None),
        ({"FUSEDRNN_CUDA": "0"}, False),
        ({"FUSEDRNN_CUDA": "1"}, True),
        ({"FORCE_CUDA": "1"}, True),
        ({"FORCE_CUDA": "0"}, None),
        ({"FUSEDRNN_CUDA": "0", "FORCE_CUDA": "1"}, False),
    ],
)
def test_the_environment_tells_whether_cuda_is_wanted(
    build: ModuleType, environment: dict[str, str], wish: bool | None
) -> None:
    assert build.cuda_wish(environment) is wish


def test_any_other_wish_is_refused(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match="FUSEDRNN_CUDA must be 0 or 1, got 'yes'"):
        build.cuda_wish({"FUSEDRNN_CUDA": "yes"})


@pytest.mark.parametrize(
    ("release", "arches"),
    [
        ("13.0", "7.5;8.0+PTX;8.6;9.0;10.0+PTX;12.0+PTX"),
        ("12.8", "7.5;8.0+PTX;8.6;9.0;10.0+PTX;12.0+PTX"),
        ("12.6", "7.5;8.0+PTX;8.6;9.0+PTX"),
        ("12.1", "7.5;8.0+PTX;8.6;9.0+PTX"),
        ("12.0", "7.5;8.0+PTX;8.6+PTX"),
        ("unknown", "7.5;8.0+PTX;8.6+PTX"),
    ],
)
def test_all_architectures_are_those_the_toolkit_has(
    build: ModuleType, release: str, arches: str
) -> None:
    assert build.all_arches(release) == arches


@pytest.mark.parametrize("arches", ["9.0+PTX", "8.0;9.0a", "Ampere Hopper"])
def test_a_toolkit_that_lacks_instructions_of_an_architecture_is_refused(
    build: ModuleType, arches: str
) -> None:
    build.check_arches(arches, "12.1")
    build.check_arches("8.6+PTX", "12.0")
    with pytest.raises(build.Unusable, match=r"for 9\.0 the kernels need CUDA 12\.1 .*not 12\.0"):
        build.check_arches(arches, "12.0")


@dataclass
class Gpus:
    """torch.cuda where there are GPUs of these compute capabilities."""

    capabilities: list[tuple[int, int]]

    def is_available(self) -> bool:
        return bool(self.capabilities)

    def device_count(self) -> int:
        return len(self.capabilities)

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.capabilities[index]


def fake_torch(*capabilities: tuple[int, int], cuda: str | None = "13.0") -> Any:
    version = SimpleNamespace(cuda=cuda)
    return SimpleNamespace(
        cuda=Gpus([*capabilities]), version=version, __version__="2.14.1", __file__=torch.__file__
    )


@pytest.mark.parametrize(
    ("gpus", "given", "wish", "arches"),
    [
        ([(9, 0)], "", None, "9.0+PTX"),
        ([(8, 9), (8, 6), (8, 9)], "", None, "8.6;8.9+PTX"),
        ([(7, 0), (8, 0)], "", None, "8.0+PTX"),  # 7.0 is too old, its neighbour is served
        ([(9, 0)], "", True, "9.0+PTX"),
        ([], "", True, "7.5;8.0+PTX;8.6;9.0;10.0+PTX;12.0+PTX"),
        ([(9, 0)], "8.0", None, "8.0"),
        ([], "8.0;9.0", None, "8.0;9.0"),
        ([(9, 0)], "native", None, "9.0+PTX"),
    ],
)
def test_it_is_compiled_for_the_gpus_that_are_there_or_asked_for(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[tuple[int, int]],
    given: str,
    wish: bool | None,
    arches: str,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert build.chosen_arches(fake_torch(*gpus), wish, "13.0") == arches


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ([], "torch saw no GPU when fusedrnn was built, and FUSEDRNN_CUDA=1 was not set"),
        ([(7, 0)], "need compute capability 7.5, the GPUs here have 7.0"),
    ],
)
def test_it_is_compiled_for_no_gpu_that_is_not_there(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[tuple[int, int]],
    reason: str,
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    with pytest.raises(build.Unusable, match=reason):
        build.chosen_arches(fake_torch(*gpus), None, "13.0")


@pytest.fixture
def compiler(build: ModuleType) -> Any:
    return build.toolchain.cxx()


@pytest.fixture
def decided(build: ModuleType, monkeypatch: pytest.MonkeyPatch, compiler: Any) -> Any:
    """What setup.py decides for a torch, given the toolkits that are there and what trying the
    first ones ends with: a function."""
    monkeypatch.delenv("FORCE_CUDA", raising=False)

    def decide(toolkits: list[str], failures: list[str], a_torch: Any) -> Any:
        found = [
            build.Toolkit(Path(f"/cuda-{n}/bin/nvcc"), Path(f"/cuda-{n}"), n, (), ())
            for n in toolkits
        ]
        monkeypatch.setattr(build.toolchain, "toolkits", lambda site: iter(found))
        monkeypatch.setattr(build, "extension", lambda compiler, toolkit: toolkit)
        waiting = list(failures)

        def try_out(*_: object) -> None:
            if waiting:
                raise build.Unusable(waiting.pop(0))

        monkeypatch.setattr(build.toolchain, "try_out", try_out)
        monkeypatch.setenv("PYTORCH_NVCC", "")  # both are set on the way, and set back after it
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
        return build.chosen_build(a_torch, compiler)

    return decide


def test_the_first_toolkit_that_works_builds_the_cuda_half(
    decided: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSEDRNN_CUDA", raising=False)
    monkeypatch.setenv("FORCE_CUDA", "1")
    made = decided(["12.8", "13.1", "13.0"], ["nvcc dies"], fake_torch())
    assert made.toolkit.release == "13.0"  # of 12.8 the major differs, 13.1 does not work
    assert made.arches == "7.5;8.0+PTX;8.6;9.0;10.0+PTX;12.0+PTX"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == made.arches
    assert os.environ["PYTORCH_NVCC"] == "/cuda-13.0/bin/nvcc"
    assert made.cuda_missing is None


@pytest.mark.parametrize(
    ("toolkits", "failures", "a_torch", "reason"),
    [
        (["13.0"], ["no cuda_runtime_api.h"], fake_torch((9, 0)), "no cuda_runtime_api.h"),
        (["12.0"], [], fake_torch((9, 0), cuda="12.6"), "need CUDA 12.1"),
        (["12.8"], [], fake_torch((9, 0)), "is of CUDA 12.8, torch of CUDA 13.0"),
        ([], [], fake_torch((9, 0)), "there is no nvcc of CUDA 13.0: put it on PATH or set"),
        (["13.0"], [], fake_torch((9, 0), cuda=None), "2.14.1, has no CUDA"),
    ],
)
def test_a_toolkit_that_does_not_work_never_breaks_an_install(
    decided: Any,
    monkeypatch: pytest.MonkeyPatch,
    toolkits: list[str],
    failures: list[str],
    a_torch: Any,
    reason: str,
) -> None:
    monkeypatch.delenv("FUSEDRNN_CUDA", raising=False)
    made = decided(toolkits, failures, a_torch)
    assert made.toolkit is None
    assert reason in made.cuda_missing
    assert reason in made.info(a_torch)["cuda_missing"]
    monkeypatch.setenv("FUSEDRNN_CUDA", "1")
    with pytest.raises(SystemExit, match=f"^fusedrnn: FUSEDRNN_CUDA=1 cannot be done, .*{reason}"):
        decided(toolkits, failures, a_torch)
    monkeypatch.setenv("FUSEDRNN_CUDA", "0")
    assert "left it out" in decided(toolkits, failures, a_torch).cuda_missing


@pytest.mark.parametrize("there", [True, False])
def test_a_checkout_that_cannot_be_written_to_is_one_line(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, there: bool, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: there)
    if there:
        build.check_writable(tmp_path)
        return
    with pytest.raises(SystemExit, match=r"cannot be written to.*copy it .*git\+file://"):
        build.check_writable(tmp_path)


def test_an_old_setuptools_is_refused(build: ModuleType) -> None:
    build.check_setuptools("77.0.3")
    with pytest.raises(SystemExit, match=r"setuptools>=77 is needed, 65\.5\.0 is installed"):
        build.check_setuptools("65.5.0")


def test_without_ninja_or_a_compiler_one_line_says_what_to_install(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"fusedrnn: ninja is missing.*`pip install ninja`"):
        build.check_tools(SimpleNamespace(is_ninja_available=lambda: False))
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(SystemExit, match=r"there is no C\+\+ compiler '/nowhere/g\+\+': GCC 11"):
        build.check_tools(SimpleNamespace(is_ninja_available=lambda: True))


def test_progress_names_the_file_and_how_many_are_left(
    build: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with build.progress(2):
        lines = [
            "[1/2] c++ -MMD -I/x/csrc -c /x/csrc/ops/stack.cpp -o /x/build/csrc/ops/stack.o",
            "csrc/ops/stack.cpp:1:1: warning: unused",
            "FAILED: /x/build/csrc/ops/check.o",
        ]
        subprocess.run([sys.executable, "-c", f"print({chr(10).join(lines)!r})"], check=True)
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "fusedrnn: compiling 2 files, of which only those that changed"
    assert said[1] == "fusedrnn: compiled csrc/ops/stack.cpp, 1 file left, 0 s"
    assert said[2:] == lines[1:]


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


def test_flags_name_no_processor(build: ModuleType, compiler: Any) -> None:
    flags = build.extension(compiler, toolkit=None).extra_compile_args["cxx"]
    assert [flag for flag in flags if flag.startswith("-m")] == []


def test_the_openmp_that_torch_ships_is_linked(build: ModuleType, tmp_path: Path) -> None:
    assert build.openmp([str(tmp_path)]) == "-lgomp"
    (tmp_path / "libgomp-a1b2c3d4.so.1").touch()
    assert build.openmp([str(tmp_path)]) == str(tmp_path / "libgomp-a1b2c3d4.so.1")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_fusedrnn_share_one_openmp() -> None:
    show = "import torch, fusedrnn; print(open('/proc/self/maps').read())"
    maps = subprocess.run(
        [sys.executable, "-c", show], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert len({line.split()[-1] for line in maps.splitlines() if "gomp" in line}) == 1


def test_a_library_without_a_plain_name_is_linked_by_its_version(
    build: ModuleType, tmp_path: Path
) -> None:
    assert build.linked("cudart", [str(tmp_path)]) == "cudart"
    (tmp_path / "libcudart.so.13").touch()
    assert build.linked("cudart", [str(tmp_path)]) == ":libcudart.so.13"
    (tmp_path / "libcudart.so").touch()
    assert build.linked("cudart", [str(tmp_path)]) == "cudart"


def test_build_info_agrees_with_the_distribution_and_torch() -> None:
    info = _binary.build_info()
    assert info["version"] == importlib.metadata.version("fusedrnn")
    assert info["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"(GCC|Clang) \d+\.\d+", info["compiler"])
    assert isinstance(info["cuda"], bool)
    for kept in ("cuda_toolkit", "cuda_arches"):
        assert (info[kept] is not None) == info["cuda"]
    assert (info["cuda_missing"] is None) == info["cuda"]


def test_the_distribution_installs_its_package_and_nothing_else() -> None:
    files = importlib.metadata.files("fusedrnn")
    assert files
    tops = {file.parts[0] for file in files if "editable" not in file.parts[0]}
    assert {top.partition("-")[0] for top in tops - {"__pycache__"}} <= {"fusedrnn"}
    installed = Path(str(importlib.util.find_spec("fusedrnn").origin)).parent  # type: ignore[union-attr]
    assert (installed / "py.typed").exists()
    assert Path(_binary.build_info()["file"]).with_name(_binary.INFO).exists()


def test_the_distribution_owns_what_c_programs_need(build: ModuleType) -> None:
    """So that pip removes it."""
    owned = {file.as_posix() for file in importlib.metadata.files("fusedrnn") or ()}
    assert {f"fusedrnn/{file}" for file in build.C_FILES} <= owned


def test_links_of_the_description_are_absolute_and_lead_to_files(build: ModuleType) -> None:
    text = build.description()
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert any("/raw/main/docs/images/" in target for target in targets)
    for target in targets:
        place = re.fullmatch(r"https://\S+/(?:raw|blob)/main/([^#]+)(?:#.*)?", target)
        assert place, target
        assert (ROOT / place[1]).exists(), target


def test_links_that_work_anywhere_are_left_as_they_are(build: ModuleType) -> None:
    text = "[a](#part) [b](https://there.example) [c](mailto:x@there.example) ![d](d.png) [e](e.md)"
    absolute = build.absolute_links(text, "https://here.example")
    assert absolute == text.replace("(d.png)", "(https://here.example/raw/main/d.png)").replace(
        "(e.md)", "(https://here.example/blob/main/e.md)"
    )


def test_the_installed_package_says_where_it_is_at_home() -> None:
    about = importlib.metadata.metadata("fusedrnn")
    urls = dict(entry.split(", ", 1) for entry in about.get_all("Project-URL") or ())
    assert {"Homepage", "Source", "Documentation", "Changelog", "Issues"} <= urls.keys()
    assert about["License-Expression"] == "BSD-3-Clause"
    assert about["Description-Content-Type"] == "text/markdown"
    assert any("3.13" in classifier for classifier in about.get_all("Classifier") or ())
