"""Compiles the extension's C++ against every torch that setup.py admits, without installing them:

    python tools/torch_versions.py [--site SITE-PACKAGES] [--built VERSION] [--fetch] [VERSION ...]

A torch is its wheel's headers, the C++ standard that its cpp_extension passes, and the names that
its libraries define. They are taken out of the wheel and kept in the user's cache, 70 MB a version;
the wheels, 0.5 to 0.9 GB each, are not. csrc/ops is compiled in setup.py's units, with the CUDA
half and without. What torch has to define for the objects must be among the libraries' names. A
version that pip does not offer is said to be left out. Exit status 1 where something does not fit.
The kernels and the plan see no torch: of them each standard is asked once.

CUDA's headers are a toolkit's and, as cuBLAS's, of pip's packages in SITE-PACKAGES: where this
Python's torch is. Those of CUDA 13 serve a torch of CUDA 12 too. Without them the CUDA half is left
out, which is said.

Of a version that was BUILT with its CPU half alone, the build with the CUDA half is left to try.
With --fetch nothing is compiled: the wheels are only made ready for a later run.

Optimization changes nothing here, so there is none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import toolchain
from units import operators

ROOT = Path(__file__).resolve().parents[1]

VERSIONS = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1")  # and the newest there is
LIBRARIES = ("c10", "torch_cpu", "torch_python", "c10_cuda", "torch_cuda")
MACRO = "FUSEDRNN_WITH_CUDA"
UNCOLLECTED = "--param=ggc-min-heapsize=2000000"  # GCC, in KB: saves collecting garbage, 8 %
TAG = sys.implementation.cache_tag


@dataclass(frozen=True)
class Torch:
    version: str  # such as "2.11.0+cu130"
    folder: Path  # holds include/
    standard: str  # such as "c++17"
    symbols: frozenset[str]

    @property
    def has_cuda(self) -> bool:
        return "+cu" in self.version

    def flags(self, cuda: Sequence[Path]) -> list[str]:
        include = self.folder / "include"
        found = [include, include / "torch" / "csrc" / "api" / "include", *cuda]
        found.append(Path(sysconfig.get_paths()["include"]))
        system = [flag for path in found for flag in ("-isystem", str(path))]
        return [f"-std={self.standard}", "-O0", "-g0", "-w", "-fPIC", "-fopenmp", *system]


# --- torch's wheels


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "fusedrnn", "torch")


def pip(*arguments: str) -> str | None:
    """What pip prints; None where it fails, as without a network."""
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.stdout if done.returncode == 0 else None


def newest() -> str | None:
    report = pip(
        *["install", "-q", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", "torch"]
    )
    return json.loads(report)["install"][0]["metadata"]["version"] if report else None


def fetched(version: str, home: Path) -> Torch | None:
    """The torch of a version, from `home` or by pip; None where pip has none. `===` takes the very
    version: `==2.13.0` would be met by 2.13.0+cpu as well."""
    folder = home / f"{version}-{TAG}"
    if not folder.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as work:
            options = ["-q", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "-d", work]
            if pip("download", *options, f"torch==={version}") is None:
                return None
            unpack(next(Path(work).glob("*.whl")), Path(work, "torch"))
            Path(work, "torch").rename(folder)
    return unpacked(folder)


def unpack(wheel: Path, folder: Path) -> None:
    """What is needed of a wheel: headers, cpp_extension, the names that the libraries define."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as work:
        for name in archive.namelist():
            if name.startswith("torch/include/"):
                archive.extract(name, work)
        folder.mkdir()
        shutil.move(Path(work, "torch", "include"), folder / "include")
        for name in ("torch/utils/cpp_extension.py", "torch/version.py"):
            (folder / Path(name).name).write_bytes(archive.read(name))
        libraries = [f"torch/lib/lib{name}.so" for name in LIBRARIES]
        there = [archive.extract(name, work) for name in libraries if name in archive.namelist()]
        defined = {name for kind, name in names("-D", *there) if kind not in "Uw"}
        (folder / "symbols").write_text("\n".join(sorted(filter(of_torch, defined))))


def unpacked(folder: Path) -> Torch:
    extension, version = (
        (folder / name).read_text("utf-8") for name in ("cpp_extension.py", "version.py")
    )
    standard = re.search(r"cpp_flag = cpp_flag_prefix \+ '(c\+\+\d+)'", extension)
    named = re.search(r"^__version__ = '(.+)'$", version, re.MULTILINE)
    assert standard, f"{folder}: cpp_extension.py names its C++ standard in another way"
    assert named
    symbols = frozenset((folder / "symbols").read_text("utf-8").split())
    return Torch(named[1], folder, standard[1], symbols)


# --- names


def names(*arguments: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of each symbol, by nm: `U` undefined, `w` weak and undefined."""
    done = subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if found := re.search(r"(?:^|\s)(\w) (\S+)$", line):
            yield found[1], found[2].split("@")[0]


def of_torch(name: str) -> bool:
    """Whether a mangled name is torch's: of its namespaces or a template over them, not the
    standard library's and not ours."""
    if not name.startswith("_Z") or "8fusedrnn" in name or re.match(r"_ZN?[KVR]*S", name):
        return False
    return re.search(r"(?<!\d)(3c10|2at|5torch|6caffe2)|THP", name) is not None


def missing(objects: Iterable[Path], torch: Torch) -> list[str]:
    """What torch would have to define for these objects and does not."""
    files = list(map(str, objects))
    seen = list(names(*files)) if files else []
    needed = {name for kind, name in seen if kind == "U"} - {n for kind, n in seen if kind != "U"}
    return sorted({name for name in needed if of_torch(name)} - torch.symbols)


# --- compiling


def halves(torch: Torch, cuda: Sequence[Path], built: bool) -> list[bool]:
    """Whether with the CUDA half, of each build to try."""
    return [True] * (torch.has_cuda and bool(cuda)) + [False] * (not built)


def errors(command: Sequence[str], what: str) -> list[str]:
    """The first errors of a compilation, `what` before each; none where it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = done.stderr.splitlines() if done.returncode else []
    named = [line for line in lines if "error" in line] or lines or ["failed without a word"]
    return [f"{what}: {line}" for line in named[:3]] if done.returncode else []


def kernels(root: Path, standard: str) -> list[str]:
    """What of the C++ that sees no torch is not of this standard."""
    found = [
        path for part in ("cpu", "cuda") for path in sorted(root.glob(f"csrc/{part}/**/*.cpp"))
    ]
    command = [*os.environ.get("CXX", "c++").split(), f"-std={standard}", "-w", "-fopenmp"]
    command += [f"-I{root / 'csrc'}", "-fsyntax-only"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        said = pool.map(
            lambda path: errors([*command, str(path)], f"{path.relative_to(root)}, {standard}"),
            found,
        )
        return [line for lines in said for line in lines]


def check(root: Path, torch: Torch, cuda: Sequence[Path], built: bool = False) -> list[str]:
    """What does not fit this torch: compilers' words, names that it lacks."""
    compiler = toolchain.cxx()
    heap = [] if compiler.is_clang else [UNCOLLECTED]
    with tempfile.TemporaryDirectory() as work:

        def compile_one(unit: tuple[Path, bool]) -> tuple[Path, list[str]]:
            source, with_cuda = unit
            macros = [f"-D{MACRO}"] if with_cuda else []
            flags = [f"-I{root / 'csrc'}", "-DTORCH_EXTENSION_NAME=_C", *macros]
            flags += torch.flags(cuda if with_cuda else ())
            made = source.with_suffix(".o")
            command = [*compiler.command, *heap, *flags, "-c", str(source), "-o", str(made)]
            return made, errors(command, f"{'with' if with_cuda else 'without'} CUDA")

        all_units = [
            (unit, half)
            for half in halves(torch, cuda, built)
            for unit in operators(root, Path(work, f"cuda-{half}"), half)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            done = list(pool.map(compile_one, all_units))
        problems = [line for _, lines in done for line in lines]
        lacking = missing([made for made, _ in done if made.exists()], torch)
        return problems + [f"{name} is in none of its libraries" for name in lacking]


def cuda_headers(site: Path) -> list[Path]:
    """The folders of CUDA's headers, cuBLAS's among them; none where there is no such toolkit."""
    for toolkit in toolchain.toolkits(site):
        folders = [Path(folder) for folder in toolkit.includes]
        if all(any((f / name).exists() for f in folders) for name in toolchain.LIBRARY_HEADERS):
            return folders
    return []


def site_of_torch() -> Path:
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parents[1] if found and found.origin else Path()


def report(torch: Torch, cuda: Sequence[Path], built: bool) -> bool:
    started = time.monotonic()
    problems = check(ROOT, torch, cuda, built)
    tried = ["with CUDA" if half else "without CUDA" for half in halves(torch, cuda, built)]
    fit = "does not fit" if problems else "fits" if tried else "was built, and has no CUDA half"
    seconds = time.monotonic() - started
    print(f"torch {torch.version}, as {torch.standard}: {' and '.join(tried)} {fit}", end="")
    print(f" ({seconds:.0f} s)", *problems, sep="\n  " if problems else "", flush=True)
    return not problems


def fetch(version: str) -> Torch | None:
    """The torch of a version; says how long that took, and where pip has none."""
    started = time.monotonic()
    torch = fetched(version, cache())
    if torch is None:
        print(f"torch {version}: pip does not offer it here, NOT COMPILED AGAINST", flush=True)
    elif (seconds := time.monotonic() - started) > 2:
        print(f"torch {version}: fetched in {seconds:.0f} s", flush=True)
    return torch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compile csrc/ops against other versions of torch")
    parser.add_argument("--site", type=Path, default=site_of_torch(), metavar="SITE-PACKAGES")
    parser.add_argument("--built", action="append", default=[], metavar="VERSION")
    parser.add_argument("--fetch", action="store_true", help="only make the wheels ready")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    versions = dict.fromkeys(asked.versions)
    if asked.versions == VERSIONS and (latest := newest()):
        versions[latest] = None
    if asked.fetch:
        list(map(fetch, versions))
        return 0
    cuda = cuda_headers(asked.site)
    if not cuda:
        print(f"no CUDA toolkit has cuBLAS's headers, nor {asked.site}: THE CUDA HALF IS LEFT OUT")
    fit, standards = True, set[str]()
    for version in versions:
        torch = fetch(version)
        if torch is None:
            continue
        if torch.standard not in standards:
            standards.add(torch.standard)
            problems = kernels(ROOT, torch.standard)
            print(
                f"kernels and plan as {torch.standard}: {len(problems)} problems",
                *problems,
                sep="\n  ",
            )
            fit &= not problems
        fit &= report(torch, cuda, version in asked.built)
    return 0 if fit else 1


if __name__ == "__main__":
    sys.exit(main())
