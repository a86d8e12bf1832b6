"""Builds fusedrnn._C against the torch that is already installed.

torch is not a build requirement: pip would fetch a second torch into its build environment, and an
extension fits only the torch it was compiled against. So an isolated build looks for torch in the
calling interpreter.

The CPU half is always built. The CUDA half is built for the GPUs of this machine, or on request,
and only with a toolkit that passed a trial (tools/toolchain.py). So it never breaks an install, and
the package keeps the reason why it is missing. Environment: FUSEDRNN_CUDA=1, or FORCE_CUDA=1,
insists on the CUDA half, FUSEDRNN_CUDA=0 leaves it out; TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX and
CUDA_HOME mean what they mean to torch.utils.cpp_extension.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import setuptools
from setuptools import Command, Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import toolchain  # noqa: E402
from progress import progress, told  # noqa: E402
from toolchain import Compiler, Toolkit, Unusable  # noqa: E402
from units import gathered  # noqa: E402

VERSION = "0.2.0.dev0"
MIN_TORCH = (2, 10)
MIN_SETUPTOOLS = 77  # the first that reads the licence in pyproject.toml
# A wheel for others fits one minor version of torch, and its name says which: tools/release.sh.
LOCAL_VERSION = os.environ.get("FUSEDRNN_LOCAL_VERSION")

# Architectures to compile for where there is no GPU: machine code for each family (8.6's also runs
# on 8.9), and PTX for later ones. The PTX of 8.0 compiles in no time and serves 8.7, on which 8.6's
# code is not promised to run. 9.0 needs toolkit 12.1 or newer, for st.async (PTX 8.1). Blackwell's
# two, 10.0 and 12.0, need 12.8 or newer; the PTX of 10.0 serves 11.0.
CUDA_ARCHES = "7.5;8.0+PTX;8.6"
CUDA_ARCHES_12_1 = "9.0"
CUDA_ARCHES_12_8 = "10.0+PTX;12.0+PTX"
MIN_CAPABILITY = (7, 5)

# What C programs need, within the package: the library and its header.
C_FILES = ("lib/libfusedrnn_cpu.so", "include/fusedrnn.h")

# Describing the project needs no torch, compiling does. Metadata for a wheel (dist_info) also asks
# for it: better to stop there than after pip has downloaded a torch that the build cannot use.
TORCH_FREE_COMMANDS = {"sdist", "egg_info", "clean", "--version", "--name"}
METADATA_COMMANDS = {"dist_info"}


def stop(reason: str) -> SystemExit:
    """The exception for what the user can mend: one line, no traceback."""
    return SystemExit(f"fusedrnn: {reason}")


# --- torch


def search_path(python: str) -> list[str]:
    """sys.path of `python` outside any build environment; empty if torch is not on it."""
    probe = (
        "import importlib.util, json, sys; found = importlib.util.find_spec('torch');"
        f"fits = sys.implementation.cache_tag == {sys.implementation.cache_tag!r};"
        "print(json.dumps(sys.path if found and found.origin and fits else []))"
    )
    # -E drops PYTHONPATH, by which pip puts its build environment before the interpreter's own.
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


# --- what else a build needs


def check_setuptools(version: str) -> None:
    """Without build isolation it is whatever the environment has."""
    if int(version.split(".")[0]) < MIN_SETUPTOOLS:
        raise stop(
            f"setuptools>={MIN_SETUPTOOLS} is needed, {version} is installed: run "
            f"`pip install -U setuptools`"
        )


def check_writable(root: Path) -> None:
    if not os.access(root, os.W_OK):
        raise stop(
            f"{root} cannot be written to, and a build keeps its objects there: copy it to where "
            f"you can write, or `pip install git+file://{root}`"
        )


def check_tools(cpp_extension: ModuleType) -> Compiler:
    if not cpp_extension.is_ninja_available():
        raise stop("ninja is missing, which runs the compilers: `pip install ninja`")
    try:
        return toolchain.cxx()
    except Unusable as reason:
        raise stop(str(reason)) from None


# --- the CUDA half


def cuda_wish(environment: Mapping[str, str]) -> bool | None:
    """Whether the user wants the CUDA half; None if they did not say."""
    wish = environment.get("FUSEDRNN_CUDA", "")
    if wish not in ("", "0", "1"):
        raise stop(f"FUSEDRNN_CUDA must be 0 or 1, got {wish!r}")
    if wish:
        return wish == "1"
    return True if environment.get("FORCE_CUDA") == "1" else None


def numbers(release: str) -> tuple[int, int]:
    """A toolkit's release for comparison, as in (12, 8); an unreadable one counts as the oldest."""
    known = re.fullmatch(r"(\d+)\.(\d+)", release)
    return (int(known[1]), int(known[2])) if known else (0, 0)


def all_arches(release: str) -> str:
    """Every architecture that the kernels are written for and this release of CUDA knows."""
    arches = [CUDA_ARCHES]
    if numbers(release) >= (12, 1):
        arches.append(CUDA_ARCHES_12_1)
    if numbers(release) >= (12, 8):
        return ";".join([*arches, CUDA_ARCHES_12_8])
    return ";".join(arches) + "+PTX"


def check_arches(arches: str, release: str) -> None:
    """Raise Unusable if nvcc knows an architecture but not every instruction that we use on it."""
    if numbers(release) < (12, 1) and re.search(r"\b9\.0|hopper", arches, re.IGNORECASE):
        raise Unusable(f"for 9.0 the kernels need CUDA 12.1 (st.async, PTX 8.1), not {release}")


def arches_of(capabilities: Iterable[tuple[int, int]]) -> str:
    """TORCH_CUDA_ARCH_LIST for the GPUs of this machine, with PTX for the newest."""
    usable = sorted({each for each in capabilities if each >= MIN_CAPABILITY})
    return ";".join(f"{major}.{minor}" for major, minor in usable) + "+PTX" if usable else ""


def chosen_arches(torch: ModuleType, wish: bool | None, release: str) -> str:
    """The architectures to compile the CUDA half for; raises Unusable if there is none."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if given and given != "native":
        return given
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    capabilities = [torch.cuda.get_device_capability(index) for index in range(count)]
    if arches := arches_of(capabilities):
        return arches
    if wish:
        return all_arches(release)
    if capabilities:
        found = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
        raise Unusable(f"its kernels need compute capability 7.5, the GPUs here have {found}")
    raise Unusable("torch saw no GPU when fusedrnn was built, and FUSEDRNN_CUDA=1 was not set")


def usable_toolkit(torch: ModuleType, compiler: Compiler, wish: bool | None) -> Build:
    """The CUDA build with the first toolkit that works; else Unusable with the first's reason."""
    version = torch.version.cuda
    if version is None:
        raise Unusable(f"the torch it was built against, {torch.__version__}, has no CUDA")
    chosen_arches(torch, wish, "")  # before anything is tried
    reasons = []
    for toolkit in toolchain.toolkits(Path(str(torch.__file__)).parents[1]):
        if toolkit.release.split(".")[0] != version.split(".")[0]:
            reasons.append(f"{toolkit.nvcc} is of CUDA {toolkit.release}, torch of CUDA {version}")
            continue
        arches = chosen_arches(torch, wish, toolkit.release)
        told(f"trying CUDA {toolkit.release} in {toolkit.home} for {arches}")
        build = Build(extension(compiler, toolkit), compiler, toolkit, arches, None)
        try:
            check_arches(arches, toolkit.release)
            toolchain.try_out(toolkit, compiler, build.extension, toolchain.gencode(arches))
        except Unusable as reason:
            reasons.append(str(reason))
            continue
        os.environ["TORCH_CUDA_ARCH_LIST"] = arches  # torch's BuildExtension reads both
        os.environ["PYTORCH_NVCC"] = str(toolkit.nvcc)
        return build
    missing = f"there is no nvcc of CUDA {version}: put it on PATH or set CUDA_HOME"
    raise Unusable(reasons[0] if reasons else missing)


# --- the extension


@dataclass(frozen=True)
class Build:
    """What is built, and the facts about it that are written beside the binary."""

    extension: Extension
    compiler: Compiler
    toolkit: Toolkit | None
    arches: str | None
    cuda_missing: str | None  # why there is no CUDA half

    def info(self, torch: ModuleType) -> dict[str, Any]:
        return {
            "version": version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "compiler": self.compiler.name,
            "sources": binary().digest(ROOT / "csrc"),
            "cuda": self.toolkit is not None,
            "cuda_toolkit": self.toolkit.release if self.toolkit else None,
            "cuda_arches": self.arches,
            "cuda_missing": self.cuda_missing,
        }


def binary() -> Any:
    """fusedrnn/_binary.py alone: importing the package would need the binary that we build here."""
    spec = importlib.util.spec_from_file_location("binary", ROOT / "fusedrnn" / "_binary.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version() -> str:
    return f"{VERSION}+{LOCAL_VERSION}" if LOCAL_VERSION else VERSION


def chosen_build(torch: ModuleType, compiler: Compiler) -> Build:
    wish = cuda_wish(os.environ)
    try:
        if wish is False:
            raise Unusable("FUSEDRNN_CUDA=0 left it out")
        return usable_toolkit(torch, compiler, wish)
    except Unusable as reason:
        if wish:
            raise stop(f"FUSEDRNN_CUDA=1 cannot be done, {reason}") from None
        return Build(extension(compiler, None), compiler, None, None, str(reason))


def listed(root: Path, pattern: str) -> list[str]:
    """Files that match, relative to `root` and sorted, so that every machine has the same list."""
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))


def sources(root: Path, cuda: bool) -> list[str]:
    """The extension's sources. The CUDA half adds csrc/ops/cuda and the .cu files of
    csrc/cuda. csrc/cuda's plan is plain C++ and part of every build: it can plan for any GPU."""
    units = [
        unit
        for part in ("cpu", "cuda", "frozen", "ops")
        for unit in listed(root, f"csrc/{part}/**/*.cpp")
    ]
    units = [unit for unit in units if cuda or not unit.startswith("csrc/ops/cuda/")]
    return units + (listed(root, "csrc/cuda/**/*.cu") if cuda else [])


def openmp(libraries: Iterable[str]) -> str:
    """What to link for OpenMP: the libgomp that torch ships, if it ships one, whatever its name, so
    that one thread pool serves both."""
    bundled = sorted(
        str(path) for folder in libraries for path in Path(folder).glob("libgomp*.so*")
    )
    return bundled[0] if bundled else "-lgomp"


def linked(name: str, folders: Iterable[str]) -> str:
    """The name to link a CUDA library by: pip's packages have libcudart.so.13, no libcudart.so."""
    found = [path for each in folders for path in sorted(Path(each).glob(f"lib{name}.so*"))]
    plain = not found or any(path.name == f"lib{name}.so" for path in found)
    return name if plain else f":{found[0].name}"


def extension(compiler: Compiler, toolkit: Toolkit | None) -> Extension:
    """The extension, with its CUDA half where there is a toolkit."""
    cpp_extension: Any = importlib.import_module("torch.utils.cpp_extension")
    make = cpp_extension.CppExtension
    if toolkit:
        cpp_extension.CUDA_HOME = str(toolkit.home)
        make = cpp_extension.CUDAExtension
    ext: Extension = make("fusedrnn._C", sources(ROOT, toolkit is not None))
    if toolkit:
        ext.include_dirs += toolkit.includes
        ext.library_dirs += [*toolkit.libraries, str(toolkit.home / "lib")]
        # Linked by us too: where torch links cuBLASLt statically, no other library brings it.
        names = [*ext.libraries, "cublasLt"]
        of_cuda = {each: linked(each, ext.library_dirs) for each in ("cudart", "cublasLt")}
        ext.libraries = [of_cuda.get(each, each) for each in names]
        ext.define_macros += [("FUSEDRNN_WITH_CUDA", None)]
    # torch's headers count as system headers, so that warnings are about our code only. torch sets
    # the language standard, because its headers need a certain one.
    system = [flag for folder in ext.include_dirs for flag in ("-isystem", folder)]
    ext.include_dirs = [str(ROOT / "csrc")]
    # The sources too: in their place come units that include them.
    ext.depends = [
        file for kind in ("h", "cuh", "cpp") for file in listed(ROOT, f"csrc/**/*.{kind}")
    ]
    ext.extra_compile_args = {
        "cxx": [
            *["-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra"],
            f"-ffile-prefix-map={ROOT}/=",
            # Clang's -fopenmp would start LLVM's thread pool beside torch's: csrc/ops/openmp.h
            *([] if compiler.is_clang else ["-fopenmp"]),
            *system,
        ],
        # Kernels include no torch header, so we set the standard. torch's folders must not be named
        # here: torch drops every -gencode if a flag contains "arch", as a path /research would.
        "nvcc": ["-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden,-Wall,-Wextra"],
    }
    ext.extra_link_args = [openmp(ext.library_dirs)]
    return ext


# --- compiling


def c_objects(build_temp: str) -> list[str]:
    """Objects of the C library: those parts of the extension that know neither torch nor Python."""
    return [
        str(Path(build_temp, unit).with_suffix(".o"))
        for part in ("cpu", "frozen")
        for unit in listed(ROOT, f"csrc/{part}/**/*.cpp")
    ]


def build_ext(build: Build, torch: ModuleType) -> type[Command]:
    base: Any = importlib.import_module("torch.utils.cpp_extension").BuildExtension
    info_name: str = binary().INFO

    class BuildExt(base):  # type: ignore[misc]
        """torch's ninja build, with its objects in one folder for every way to install, so that
        each compiles only what changed. An editable install would use a temporary folder."""

        def initialize_options(self) -> None:
            super().initialize_options()
            tag = f"{sys.platform}-{sys.implementation.cache_tag}-torch{torch.__version__}"
            self.build_temp = f"build/objects-{tag}"

        def build_extensions(self) -> None:
            # Ninja's default, two jobs more than cores, is slower: the CPU half takes 66 s, not 62.
            os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
            extension = build.extension
            extension.sources = gathered(extension.sources, Path("build", "units", "csrc"))
            with progress(len(extension.sources)):
                super().build_extensions()
            made = Path(self.get_ext_fullpath("fusedrnn._C"))
            made.with_name(info_name).write_text(json.dumps(build.info(torch), indent=2) + "\n")
            self.link_c_library(made.parent)

        def link_c_library(self, package: Path) -> None:
            """libfusedrnn_cpu.so, of objects that the extension is made of, and its header. It
            exports the functions of the header alone: the standard library's templates too are
            its own."""
            exported = Path(self.build_temp, "exported.map")
            exported.write_text("{ global: fusedrnn_*; local: *; };\n")
            for file in C_FILES:
                (package / file).parent.mkdir(exist_ok=True)
            library, header = (package / file for file in C_FILES)
            self.compiler.link_shared_object(
                c_objects(self.build_temp),
                str(library),
                extra_postargs=[
                    f"-Wl,--version-script={exported}",
                    f"-Wl,-soname,{library.name}",
                    "-Wl,--no-undefined",
                ],
                target_lang="c++",
            )
            shutil.copy(ROOT / "csrc" / "frozen" / header.name, header)

        def copy_extensions_to_source(self) -> None:
            """Put an editable install's binary into its wheel, so that `pip uninstall` removes it.
            Only `setup.py build_ext --inplace` puts it among the sources."""
            install = self.distribution.get_command_obj("install")
            place = Path(install.install_lib if self.editable_mode else ROOT, "fusedrnn")
            made = Path(self.build_lib, self.get_ext_filename("fusedrnn._C"))
            for file in (made.name, info_name, *C_FILES):
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(made.parent / file, place / file)

        def get_output_mapping(self) -> dict[str, str]:
            return {} if self.editable_mode else super().get_output_mapping()

    return BuildExt


# --- the description


def absolute_links(text: str, source: str) -> str:
    """A page of the repository with links that work anywhere; `source` is the repository's URL."""

    def absolute(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        return f"{image}[{words}]({source}/{'raw' if image else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", absolute, text)


def description() -> str:
    """README as a package index shows it: with absolute links."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    source = re.search(r'^Source = "(.*)"$', project, re.MULTILINE)
    assert source
    return absolute_links((ROOT / "README.md").read_text("utf-8"), source[1])


def main() -> None:
    asked = set(sys.argv[1:])
    torch_needed = f"torch>={'.'.join(map(str, MIN_TORCH))}"
    check_setuptools(setuptools.__version__)
    if not {"--version", "--name"} & asked:
        check_writable(ROOT)
    common: dict[str, Any] = {
        "version": version(),
        "install_requires": [torch_needed, "numpy"],
        "long_description": description(),
        "long_description_content_type": "text/markdown",
    }
    if "sdist" not in asked:
        (ROOT / "build").mkdir(exist_ok=True)
        common["options"] = {"egg_info": {"egg_base": "build"}}
    if TORCH_FREE_COMMANDS & asked:
        setup(ext_modules=[Extension("fusedrnn._C", sources(ROOT, cuda=False))], **common)
        return
    torch = import_torch()
    if LOCAL_VERSION:
        common["install_requires"][0] = f"torch=={binary().minor(torch.__version__)}.*"
    compiler = check_tools(importlib.import_module("torch.utils.cpp_extension"))
    if METADATA_COMMANDS & asked:
        setup(ext_modules=[extension(compiler, None)], **common)
        return
    build = chosen_build(torch, compiler)
    if build.toolkit:
        told(f"CPU and CUDA half, {build.compiler.name}, CUDA {build.toolkit.release}")
    else:
        told(f"CPU half only, {build.compiler.name}: {build.cuda_missing}")
    # Else modules that were deleted since an older build would be packaged again.
    for old in (ROOT / "build").glob("lib*"):
        shutil.rmtree(old)
    cmdclass = {"build_ext": build_ext(build, torch)}
    setup(ext_modules=[build.extension], cmdclass=cmdclass, **common)


if __name__ == "__main__":
    main()
