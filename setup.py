"""Builds fusedrnn._C against the torch that is already installed.

torch is no build requirement: pip would fetch a second one into its build environment, and an
extension fits only the torch it was compiled against. So an isolated build looks for torch where
the calling interpreter has it. The C++ half is always built; the CUDA half where torch has CUDA
and nvcc is there, whether or not a GPU is. Environment: FUSEDRNN_CUDA=0|1 forces that choice,
TORCH_CUDA_ARCH_LIST and MAX_JOBS mean what they mean to torch.utils.cpp_extension.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Command, Extension, setup

ROOT = Path(__file__).resolve().parent
MIN_TORCH = (2, 10)

# Fixed, so that a build does not depend on the GPU it runs beside (and torch's own default fails
# where there is none). Real code for each family, 8.6's serving 8.9; PTX for what comes later.
# Blackwell's two have toolkits from 12.8 on; the PTX of the first serves 11.0.
CUDA_ARCHES = "7.5;8.0;8.6;9.0"
CUDA_ARCHES_12_8 = "10.0+PTX;12.0+PTX"

# Describing the project needs no torch, compiling does. Metadata for a wheel counts as compiling:
# better to stop there than after pip has downloaded torch for a build that cannot use it.
TORCH_FREE_COMMANDS = {"sdist", "egg_info", "clean", "--version", "--name"}


def stop(reason: str) -> SystemExit:
    """What setup.py raises on a condition the user can mend: one line and no traceback."""
    return SystemExit(f"fusedrnn: {reason}")


def search_path(python: str) -> list[str]:
    """sys.path of `python` outside any build environment; empty where torch is not on it."""
    probe = (
        "import importlib.util, json, sys; found = importlib.util.find_spec('torch');"
        f"fits = sys.implementation.cache_tag == {sys.implementation.cache_tag!r};"
        "print(json.dumps(sys.path if found and found.origin and fits else []))"
    )
    # -E drops the PYTHONPATH by which pip lays its environment over the interpreter's own.
    done = subprocess.run([python, "-E", "-c", probe], cwd="/", capture_output=True, text=True)
    return [entry for entry in json.loads(done.stdout) if entry] if done.returncode == 0 else []


def interpreters() -> list[str]:
    """Who may have torch: this interpreter and, where it is the throwaway one of `python -m build`,
    which knows nothing of its caller, the active environment's."""
    if not Path(sys.prefix).name.startswith("build-env-"):
        return [sys.executable]
    folders = [str(Path(os.environ["VIRTUAL_ENV"], "bin"))] if "VIRTUAL_ENV" in os.environ else []
    folders += os.environ.get("PATH", "").split(os.pathsep)
    return [python for folder in folders if (python := shutil.which("python3", path=folder))]


def import_torch() -> ModuleType:
    try:
        importlib.import_module("torch")
    except ImportError:
        entries = next(filter(None, map(search_path, interpreters())), [])
        sys.path += [entry for entry in entries if entry not in sys.path]
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        minimum = ".".join(map(str, MIN_TORCH))
        raise stop(
            f"building needs torch>={minimum}, and {sys.executable} has none: run "
            f"`pip install torch` first; if it is installed, build without isolation ({error})"
        ) from None
    check_torch_version(torch.__version__)
    return torch


def check_torch_version(version: str) -> None:
    if tuple(map(int, version.split(".")[:2])) < MIN_TORCH:
        raise stop(f"torch>={'.'.join(map(str, MIN_TORCH))} is needed, {version} is installed")


def cuda_release(nvcc: str) -> str:
    """The toolkit's release, such as 13.0."""
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", told)
    return found[1] if found else "unknown"


def cuda_arches(release: str) -> str:
    """TORCH_CUDA_ARCH_LIST where none is given."""
    known = re.fullmatch(r"(\d+)\.(\d+)", release)
    blackwell = known is not None and (int(known[1]), int(known[2])) >= (12, 8)
    return f"{CUDA_ARCHES};{CUDA_ARCHES_12_8}" if blackwell else f"{CUDA_ARCHES}+PTX"


def cuda_obstacle(torch_cuda: str | None, nvcc: str | None, kernels: list[str]) -> str | None:
    """Why the CUDA half cannot be built; None where it can."""
    if torch_cuda is None:
        return "the installed torch has no CUDA: install a CUDA build of torch"
    if nvcc is None:
        return "there is no nvcc: put it on PATH or set CUDA_HOME"
    if not kernels:
        return "csrc/cuda holds no .cu sources"
    release = cuda_release(nvcc)
    if release.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {release} and torch of CUDA {torch_cuda}: majors must agree"
    return None


def use_cuda(wish: str | None, obstacle: str | None) -> bool:
    """Whether to build the CUDA half: FUSEDRNN_CUDA's `wish`, else wherever nothing prevents it."""
    if wish not in (None, "", "0", "1"):
        raise stop(f"FUSEDRNN_CUDA must be 0 or 1, got {wish!r}")
    if wish == "1" and obstacle:
        raise stop(f"FUSEDRNN_CUDA=1 cannot be done, {obstacle}")
    return wish != "0" and obstacle is None


def find_nvcc(cuda_home: str | None) -> str | None:
    return shutil.which("nvcc", path=str(Path(cuda_home, "bin"))) if cuda_home else None


def listed(root: Path, pattern: str) -> list[str]:
    """Files that match, sorted and relative to `root`: the same on every machine."""
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))


def sources(root: Path, cuda: bool) -> list[str]:
    """The extension's translation units. CUDA's own are the kernels in csrc/cuda and the glue in
    csrc/ops/cuda; the plan, plain C++, tells of GPUs in every build."""
    units = [
        unit for part in ("cpu", "cuda", "ops") for unit in listed(root, f"csrc/{part}/**/*.cpp")
    ]
    units = [unit for unit in units if cuda or not unit.startswith("csrc/ops/cuda/")]
    return units + (listed(root, "csrc/cuda/**/*.cu") if cuda else [])


def openmp(libraries: Iterable[str]) -> str:
    """What to link for OpenMP: the very libgomp torch ships where it ships one, whatever its name,
    so that one thread pool serves both."""
    bundled = sorted(
        str(path) for folder in libraries for path in Path(folder).glob("libgomp*.so*")
    )
    return bundled[0] if bundled else "-fopenmp"


def extension(toolkit: str | None) -> Extension:
    """The extension, its CUDA half built by nvcc of this release; without one for None."""
    cuda = toolkit is not None
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    ext: Extension = make("fusedrnn._C", sources(ROOT, cuda))
    # torch's headers are system headers: the warnings left are our own. The language standard is
    # torch's to choose, since its headers ask for it.
    system = [flag for folder in ext.include_dirs for flag in ("-isystem", folder)]
    ext.include_dirs = [str(ROOT / "csrc")]
    ext.depends = listed(ROOT, "csrc/**/*.h") + listed(ROOT, "csrc/**/*.cuh")
    if cuda:
        ext.define_macros += [
            ("FUSEDRNN_WITH_CUDA", None),
            ("FUSEDRNN_CUDA_TOOLKIT", f'"{toolkit}"'),
            ("FUSEDRNN_CUDA_ARCHES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"'),
        ]
    warnings = ["-Wall", "-Wextra", f"-ffile-prefix-map={ROOT}/="]
    ext.extra_compile_args = {
        "cxx": [
            "-O3",
            "-g0",
            "-ffp-contract=fast",
            "-fvisibility=hidden",
            "-fopenmp",
            *warnings,
            *system,
        ],
        # Kernels do without torch's headers, so that the standard is ours to choose. No folders of
        # torch's either: it drops every -gencode when a flag contains "arch", as /research would.
        "nvcc": ["-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden,-Wall,-Wextra"],
    }
    ext.extra_link_args = [openmp(ext.library_dirs)]
    return ext


def build_ext() -> type[Command]:
    base: Any = importlib.import_module("torch.utils.cpp_extension").BuildExtension

    class BuildExt(base):  # type: ignore[misc]
        """torch's ninja build, its objects kept in one place for every way to install (an editable
        one would use a temporary folder), so that each compiles only what changed."""

        def initialize_options(self) -> None:
            super().initialize_options()
            self.build_temp = f"build/objects-{sys.platform}-{sys.implementation.cache_tag}"

        def finalize_options(self) -> None:
            super().finalize_options()
            version = ("FUSEDRNN_VERSION", f'"{self.distribution.get_version()}"')
            for ext in self.extensions:
                if version not in ext.define_macros:  # an editable install finalizes twice
                    ext.define_macros.append(version)

    return BuildExt


def main() -> None:
    if TORCH_FREE_COMMANDS & set(sys.argv[1:]):
        setup(ext_modules=[Extension("fusedrnn._C", sources(ROOT, cuda=False))])
        return
    torch = import_torch()
    home = importlib.import_module("torch.utils.cpp_extension").CUDA_HOME
    nvcc = find_nvcc(home)
    obstacle = cuda_obstacle(torch.version.cuda, nvcc, listed(ROOT, "csrc/cuda/**/*.cu"))
    toolkit = None
    if use_cuda(os.environ.get("FUSEDRNN_CUDA"), obstacle) and nvcc:
        toolkit = cuda_release(nvcc)
        wished = os.environ.get("TORCH_CUDA_ARCH_LIST")
        os.environ["TORCH_CUDA_ARCH_LIST"] = wished or cuda_arches(toolkit)
    setup(ext_modules=[extension(toolkit)], cmdclass={"build_ext": build_ext()})


if __name__ == "__main__":
    main()
