"""Finds the compilers of a build, asks their versions, and tries them before the long work.

setup.py's helper. A CUDA toolkit is usable only if it compiles and links two small files with the
extension's own flags: a kernel, and a file that includes torch's CUDA headers.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MIN_GCC, MIN_CLANG = 11, 14  # the kernels are C++20

KERNEL = """
#include <cuda_runtime.h>
__global__ void fill(float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = 1.0f;
}
int launch(float* x, int n) {
  fill<<<(n + 127) / 128, 128>>>(x, n);
  return int(cudaGetLastError());
}
"""
GLUE = """
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAStream.h>
#include <cublasLt.h>
#include <cuda_runtime_api.h>
int launch(float* x, int n);
int start() {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const bool has_handle = at::cuda::getCurrentCUDABlasLtHandle() != nullptr;
  return launch(nullptr, 0) + int(stream.device_index()) + int(has_handle + cublasLtGetVersion());
}
"""
# The headers of CUDA's libraries that CUDAContextLight.h includes.
LIBRARY_HEADERS = ("cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")


@dataclass(frozen=True)
class Compiler:
    command: list[str]
    name: str  # "GCC 12.2" or "Clang 14.0"
    is_clang: bool


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit, as its nvcc describes it."""

    nvcc: Path
    home: Path
    release: str  # such as "13.0"
    includes: tuple[str, ...]
    libraries: tuple[str, ...]


class Unusable(Exception):
    """A compiler or toolkit cannot be used; the message says why, in one line."""


def cxx() -> Compiler:
    """The C++ compiler, CXX or c++; raises Unusable if there is none or it is too old."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    needed = f"GCC {MIN_GCC} or Clang {MIN_CLANG} or newer is needed (it is named by CXX)"
    if not shutil.which(command[0]):
        raise Unusable(f"there is no C++ compiler {command[0]!r}: {needed}")
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    known = dict(re.findall(r"^#define (__\w+__) (\d+)$", macros.stdout, re.MULTILINE))
    is_clang = "__clang_major__" in known
    prefix = "__clang_" if is_clang else "__GNUC_"
    major = known.get("__clang_major__" if is_clang else "__GNUC__")
    if macros.returncode or major is None:
        raise Unusable(f"{shlex.join(command)} is no C++ compiler that works: {_last(macros)}")
    minor = known.get(f"{prefix}minor__" if is_clang else "__GNUC_MINOR__", "0")
    name = f"{'Clang' if is_clang else 'GCC'} {major}.{minor}"
    if int(major) < (MIN_CLANG if is_clang else MIN_GCC):
        raise Unusable(f"{shlex.join(command)} is {name}: {needed}")
    return Compiler(command, name, is_clang)


def toolkits(site: Path) -> Iterator[Toolkit]:
    """The toolkits of this machine, starting with the one that the user names. `site` is torch's
    site-packages folder, where pip puts a toolkit under nvidia/."""
    seen = set()
    for nvcc in _compilers(site):
        toolkit = _asked(nvcc)
        if toolkit and toolkit.home not in seen:
            seen.add(toolkit.home)
            yield _with_libraries(toolkit, site)


def _compilers(site: Path) -> Iterator[Path]:
    named = [home for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    yield from (Path(home, "bin", "nvcc") for home in named)
    if found := shutil.which("nvcc"):
        yield Path(found)
    conda = [prefix] if (prefix := os.environ.get("CONDA_PREFIX")) else []
    yield from (Path(home, "bin", "nvcc") for home in (*conda, "/usr/local/cuda", "/opt/cuda"))
    yield from sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True)
    yield from sorted(site.glob("nvidia/cu*/bin/nvcc"), reverse=True)


def _asked(nvcc: Path) -> Toolkit | None:
    """The toolkit behind an nvcc, which may be a link or a script that calls another nvcc: found by
    what it would run (--dryrun). None if it does not answer."""
    if not nvcc.exists():
        return None
    told = _run([str(nvcc), "--dryrun", "-x", "cu", os.devnull])
    version = _run([str(nvcc), "--version"])
    top = re.search(r"^#\$ TOP=(.+)$", told.stderr, re.MULTILINE)
    release = re.search(r"release (\d+\.\d+)", version.stdout)
    if not top or not release:
        return None
    home = Path(top[1].strip()).resolve()

    def folders(name: str, flag: str) -> tuple[str, ...]:
        line = re.search(rf"^#\$ {name}=(.*)$", told.stderr, re.MULTILINE)
        found = re.findall(rf'"?-{flag}([^" ]+)"?', line[1]) if line else []
        return tuple(str(Path(folder).resolve()) for folder in found if Path(folder).is_dir())

    own = home / "bin" / "nvcc"
    return Toolkit(
        nvcc=own if own.exists() else nvcc,
        home=home,
        release=release[1],
        includes=folders("INCLUDES", "I"),
        libraries=folders("LIBRARIES", "L"),
    )


def _with_libraries(toolkit: Toolkit, site: Path) -> Toolkit:
    """The toolkit, with the folders of pip's CUDA packages after its own: a toolkit may come
    without cuBLAS and its like, and torch has them from pip. If neither has them, try_out says so.
    """
    known = (*toolkit.includes, str(toolkit.home / "include"), "/usr/include")
    lacking = [name for name in LIBRARY_HEADERS if not any(Path(f, name).exists() for f in known)]
    major = toolkit.release.split(".")[0]
    packages = [site / "nvidia" / name for name in (f"cu{major}", "cublas", "cusparse", "cusolver")]
    used = [
        package
        for package in packages
        if any((package / "include" / header).exists() for header in lacking)
    ]
    return replace(
        toolkit,
        includes=(*toolkit.includes, *(str(package / "include") for package in used)),
        libraries=(*toolkit.libraries, *(str(package / "lib") for package in used)),
    )


def try_out(toolkit: Toolkit, compiler: Compiler, extension: Any, arches: Sequence[str]) -> None:
    """Compile and link two small files like the extension's; raise Unusable if that fails."""
    flags = extension.extra_compile_args
    with tempfile.TemporaryDirectory() as folder:
        kernel, glue = Path(folder, "kernel.cu"), Path(folder, "glue.cpp")
        kernel.write_text(KERNEL)
        glue.write_text(GLUE)
        host = ["-ccbin", compiler.command[0]] if "CXX" in os.environ else []
        nvcc = [str(toolkit.nvcc), *host, *flags["nvcc"], *arches, "-Xcompiler=-fPIC"]
        cxx = [*compiler.command, *flags["cxx"], "-std=c++20", "-O0", "-fPIC"]
        libraries = [f"-L{path}" for path in extension.library_dirs]
        libraries += [f"-l{name}" for name in extension.libraries]
        link = [*compiler.command, "-shared", f"{kernel}.o", f"{glue}.o", *libraries]
        for command in (
            [*nvcc, "-c", str(kernel), "-o", f"{kernel}.o"],
            [*cxx, "-c", str(glue), "-o", f"{glue}.o"],
            [*link, *extension.extra_link_args, "-Wl,--no-undefined", "-o", f"{folder}/tried.so"],
        ):
            done = _run(command)
            if done.returncode:
                what = f"CUDA {toolkit.release} in {toolkit.home} does not work here"
                raise Unusable(f"{what}: {_last(done)}")


def gencode(arches: str) -> list[str]:
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST of numbers, "8.0;9.0+PTX"; torch knows the names."""
    flags = []
    for major, minor, ptx in re.findall(r"(\d+)\.(\d+a?)(\+PTX)?", arches):
        number = f"{major}{minor}"
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a compiler's output that names the error."""
    lines = (done.stderr + done.stdout).strip().splitlines()
    named = [line for line in lines if "error" in line.lower()]
    return (named or lines or [f"exit status {done.returncode}"])[0].strip()
