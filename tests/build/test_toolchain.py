"""tools/toolchain.py: compilers asked and CUDA toolkits found, in every place a user may have one.
The toolkits here are scripts that answer as nvcc does; a real one is tried where it is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import toolchain


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "CXX"):
        monkeypatch.delenv(name, raising=False)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def nvcc(home: Path, release: str = "13.0") -> Path:
    """A toolkit's nvcc, as far as it is asked."""
    for folder in ("include", "lib"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    told = [f"#$ TOP={home}/bin/..", f'#$ INCLUDES="-I{home}/bin/../include"  ']
    told.append(f'#$ LIBRARIES=  "-L{home}/bin/../lib/stubs" "-L{home}/bin/../lib"')
    echo = "\n".join(f"  echo '{line}' >&2" for line in told)
    return script(
        home / "bin" / "nvcc",
        f'if [ "$1" = --version ]; then echo "release {release}, V{release}.48"; else\n{echo}\nfi',
    )


def first(site: Path) -> Any:
    return next(toolchain.toolkits(site), None)


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_the_toolkit_that_the_user_names_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    nvcc(tmp_path / "named", "12.9")
    on_path = nvcc(tmp_path / "other")
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    monkeypatch.setenv(name, str(tmp_path / "named"))
    found = first(tmp_path)
    assert found.home == tmp_path / "named"
    assert found.release == "12.9"
    assert found.includes == (str(tmp_path / "named" / "include"),)
    assert found.libraries == (str(tmp_path / "named" / "lib"),)  # there are no stubs


@pytest.mark.parametrize("how", ["a script that calls it", "a link", "a link to the folder"])
def test_the_toolkit_behind_an_nvcc_on_path_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    real = nvcc(tmp_path / "cuda-13.0")
    on_path = tmp_path / "bin"
    if how == "a script that calls it":
        script(on_path / "nvcc", f'exec {real} "$@"')
    elif how == "a link":
        on_path.mkdir()
        (on_path / "nvcc").symlink_to(real)
    else:
        on_path.symlink_to(real.parent)
    monkeypatch.setenv("PATH", str(on_path), prepend=os.pathsep)
    found = first(tmp_path)
    assert found.home == tmp_path / "cuda-13.0"
    assert found.nvcc == real


def test_toolkits_of_conda_and_of_pip_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    conda, pip = nvcc(tmp_path / "conda"), nvcc(tmp_path / "site" / "nvidia" / "cu13")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    found = [each.nvcc for each in toolchain.toolkits(tmp_path / "site")]
    assert found[0] == conda
    assert pip in found


def test_each_toolkit_is_named_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(real.parent), prepend=os.pathsep)
    homes = [each.home for each in toolchain.toolkits(tmp_path)]
    assert homes.count(tmp_path / "cuda") == 1


def headers(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


@pytest.mark.parametrize("packages", ["of CUDA 13", "of CUDA 12", "none"])
def test_headers_that_a_toolkit_lacks_are_those_of_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packages: str
) -> None:
    home, nvidia = tmp_path / "cuda", tmp_path / "nvidia"
    nvcc(home, "12.8" if packages == "of CUDA 12" else "13.0")
    monkeypatch.setenv("CUDA_HOME", str(home))
    behind = []
    if packages == "of CUDA 13":
        behind = [headers(nvidia / "cu13" / "include", *toolchain.LIBRARY_HEADERS)]
    elif packages == "of CUDA 12":
        headers(nvidia / "cu13" / "include", *toolchain.LIBRARY_HEADERS)
        behind = [
            headers(nvidia / "cublas" / "include", "cublas_v2.h", "cublasLt.h"),
            headers(nvidia / "cusparse" / "include", "cusparse.h"),
            headers(nvidia / "cusolver" / "include", "cusolverDn.h"),
        ]
    found = first(tmp_path)
    assert found.includes == (str(home / "include"), *behind)
    libraries = [path.replace("include", "lib") for path in behind]
    assert found.libraries == (str(home / "lib"), *libraries)


def test_headers_that_a_toolkit_has_come_from_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc(tmp_path / "cuda")
    own = headers(tmp_path / "cuda" / "include", *toolchain.LIBRARY_HEADERS)
    headers(tmp_path / "nvidia" / "cu13" / "include", *toolchain.LIBRARY_HEADERS)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert first(tmp_path).includes == (own,)


def test_an_nvcc_that_does_not_answer_is_no_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / "bin" / "nvcc", "exit 1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = first(tmp_path)
    assert found is None or found.home != tmp_path


def test_the_compiler_tells_its_name() -> None:
    found = toolchain.cxx()
    assert found.command == ["c++"]
    assert found.name.split()[0] == ("Clang" if found.is_clang else "GCC")


def test_a_compiler_may_have_a_launcher_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launcher = script(tmp_path / "cache", 'exec "$@"')
    monkeypatch.setenv("CXX", f"{launcher} c++")
    assert toolchain.cxx().command == [str(launcher), "c++"]


@pytest.mark.parametrize(
    ("macros", "refused"),
    [
        ("#define __GNUC__ 10\n#define __GNUC_MINOR__ 2", r"is GCC 10\.2: GCC 11 or Clang 14"),
        ("#define __GNUC__ 4\n#define __clang_major__ 13", r"is Clang 13\.0: GCC 11 or Clang 14"),
        ("what?", "is no C"),
    ],
)
def test_a_compiler_too_old_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, macros: str, refused: str
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", f"echo '{macros}'")))
    with pytest.raises(toolchain.Unusable, match=refused):
        toolchain.cxx()


def test_architectures_become_flags() -> None:
    assert toolchain.gencode("8.6;12.0+PTX 9.0a") == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]


def flags(*, cxx: list[str], link: list[str]) -> Any:
    return SimpleNamespace(
        extra_compile_args={"cxx": cxx, "nvcc": ["-std=c++20"]},
        library_dirs=[],
        libraries=[],
        extra_link_args=link,
    )


@pytest.mark.parametrize("broken", ["the headers", "the compiler"])
def test_a_toolkit_that_cannot_compile_is_unusable(tmp_path: Path, broken: str) -> None:
    says = "echo 'crt.h: fatal error: gone' >&2; exit 1" if broken == "the compiler" else "exit 0"
    fake = script(tmp_path / "bin" / "nvcc", says)
    toolkit = toolchain.Toolkit(fake, tmp_path, "13.0", (), ())
    reason = "gone" if broken == "the compiler" else r"CUDAContextLight\.h: No such file"
    with pytest.raises(toolchain.Unusable, match=rf"CUDA 13\.0 in {tmp_path} does not .*{reason}"):
        toolchain.try_out(toolkit, toolchain.cxx(), flags(cxx=[], link=[]), [])


@pytest.mark.skipif(
    torch.version.cuda is None or not shutil.which("nvcc"), reason="needs nvcc and torch's headers"
)
def test_a_real_toolkit_that_works_is_usable() -> None:
    from torch.utils import cpp_extension

    site = Path(torch.__file__).parents[1]
    toolkit = next(toolchain.toolkits(site))
    include = [f for path in cpp_extension.include_paths() for f in ("-isystem", path)]
    include += [f for path in toolkit.includes for f in ("-isystem", path)]
    libraries = [f"-L{path}" for path in (*cpp_extension.library_paths(), *toolkit.libraries)]
    blas = next(found for path in toolkit.libraries for found in Path(path).glob("libcublasLt.so*"))
    of_torch = ["-lc10", "-lc10_cuda", "-ltorch_cuda"]
    ext = flags(cxx=include, link=[*libraries, "-lcudart", str(blas), *of_torch])
    toolchain.try_out(toolkit, toolchain.cxx(), ext, toolchain.gencode("9.0"))
