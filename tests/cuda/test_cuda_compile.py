"""What the compilers say of the CUDA half where there is no GPU: nvcc takes every source for every
architecture without a warning, ptxas finds room for each persistent kernel in the registers its row
of csrc/cuda/tiles.h counts on, and the glue fits the headers of a torch that has no CUDA itself."""

from __future__ import annotations

import re
import sysconfig
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.utils.cpp_extension

from support.commands import compiler, needs_nvcc, output_of
from support.nvcc import Made, compiled
from support.paths import CSRC, ROOT
from support.tiles import Kernel
from units import gathered

ARCHES = ["75", "80", "86", "89", "90a", "100a", "120"]
SOURCES = sorted((CSRC / "cuda").rglob("*.cu"))
GLUE = sorted(str(path.relative_to(ROOT)) for path in (CSRC / "ops" / "cuda").glob("*.cpp"))


class Usage(NamedTuple):
    """What ptxas says of a kernel."""

    registers: int
    stack: int
    spilled: int
    static_shared: int


def usages(said: str) -> dict[str, Usage]:
    """By the mangled name of each kernel, from the output of ptxas -v."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*\n.*\n"
        r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        said,
    )
    return {
        name: Usage(int(registers), int(stack), int(stores) + int(loads), int(shared or 0))
        for name, stack, stores, loads, registers, shared in found
    }


def key_of(name: str) -> tuple[str, int] | None:
    """The pass and the row of the table in the mangled name of a persistent kernel."""
    found = re.search(r"recurrence_(forward|backward)ILi(\d+)E", name)
    return (found[1], int(found[2])) if found else None


@pytest.fixture(scope="module")
def listings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    workers: ThreadPoolExecutor,
) -> dict[str, list[Future[Made]]]:
    """For each architecture whose test is to run, what nvcc makes of every source."""
    chosen = {item.name for item in request.session.items}
    return {
        arch: [workers.submit(compiled, source, arch, tmp_path_factory) for source in SOURCES]
        for arch in ARCHES
        if f"{test_kernels_compile_without_warnings_and_spills.__name__}[{arch}]" in chosen
    }


def line_of(kernel: Kernel, arch: str, usage: Usage) -> str:
    return (
        f"sm_{arch:4} row {kernel.row:2} {kernel.cell:4} {kernel.direction:8} H {kernel.hidden:3} "
        f"blocks {kernel.cluster:2} rows {kernel.rows} threads {kernel.threads:3}: "
        f"{usage.registers:3} of {kernel.registers:3} registers, "
        f"{kernel.shared_bytes:6} bytes of shared memory, {usage.spilled} spilled"
    )


def faults(tiles: list[Kernel], arch: str, said: str) -> list[str]:
    """Persistent kernels that are missing, spill, have a stack, or exceed what the table says."""
    found = usages(said)
    kernel_of = {(kernel.direction, kernel.row): kernel for kernel in tiles}
    wrong = []
    for name, usage in found.items():
        kernel = kernel_of.pop(key, None) if (key := key_of(name)) else None
        if key is None:
            continue
        if kernel is None:
            wrong.append(f"{name} is in no row of the table")
            continue
        line = line_of(kernel, arch, usage)
        print(line)
        if usage.stack or usage.spilled or usage.static_shared:
            wrong.append(f"{line}: {usage}")
        elif usage.registers > kernel.registers:
            wrong.append(f"{line}: more than the table counts on")
    return wrong + [f"no kernel for {kernel}" for kernel in kernel_of.values()]


# setup.py compiles 8.9 nowhere but beside such a GPU: elsewhere it runs 8.6's code.
@needs_nvcc
@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=pytest.mark.nightly) if arch == "89" else arch for arch in ARCHES],
)
def test_kernels_compile_without_warnings_and_spills(
    listings: dict[str, list[Future[Made]]], tiles: list[Kernel], arch: str
) -> None:
    known = output_of(["nvcc", "--list-gpu-arch"]).split()
    if f"compute_{arch.removesuffix('a')}" not in known:
        pytest.skip(f"this nvcc knows no compute_{arch}")
    said = "".join(listing.result().said for listing in listings[arch])
    assert faults(tiles, arch, said) == []


LISTING = """\
ptxas info    : Compiling entry function '_ZN8fusedrnn4cuda18recurrence_forwardILi0EEEv' for 'sm_80'
ptxas info    : Function properties for _ZN8fusedrnn4cuda18recurrence_forwardILi0EEEv
    {stack} bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers{shared}
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spilled": "4"}, "spilled=8"),
        ({"stack": "16"}, "stack=16"),
        ({"registers": "256"}, "more than the table counts on"),
        ({"shared": ", 4 bytes smem"}, "static_shared=4"),
    ],
)
def test_a_kernel_that_does_not_fit_is_found(
    tiles: list[Kernel], change: dict[str, str], says: str
) -> None:
    fits = {"stack": "0", "spilled": "0", "registers": "32", "shared": ""}
    assert faults(tiles[:1], "80", LISTING.format(**fits)) == []
    (fault,) = faults(tiles[:1], "80", LISTING.format(**fits | change))
    assert says in fault


def test_a_kernel_that_is_missing_is_found(tiles: list[Kernel]) -> None:
    (fault,) = faults(tiles[:1], "80", "")
    assert fault.startswith("no kernel for ")


# The glue. A torch without CUDA has all headers of c10/cuda but one that its build would write.


def toolkit_headers() -> list[str]:
    """Folders of the CUDA runtime's headers, as nvcc itself finds them."""
    plan = output_of(["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null"])
    (line,) = re.findall(r'^#\$ INCLUDES="(.*?)" *$', plan, re.MULTILINE)
    return [folder.removeprefix("-I") for folder in line.split()]


def library_headers() -> list[str]:
    """Folders of cuBLAS' headers that pip installs beside a torch with CUDA; a toolkit may have its
    own."""
    places = [Path(place) for place in sysconfig.get_paths().values()]
    found = [folder for place in places for folder in sorted(place.glob("nvidia/*/include"))]
    return list(dict.fromkeys(map(str, found)))


@needs_nvcc
def test_the_glue_compiles_against_a_torch_without_cuda(tmp_path: Path) -> None:
    macros = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    macros.parent.mkdir(parents=True)
    macros.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
    folders = torch.utils.cpp_extension.include_paths()
    folders += [sysconfig.get_paths()["include"], str(tmp_path), *toolkit_headers()]
    folders += library_headers()
    fit = GLUE
    if not any(Path(folder, "cublasLt.h").exists() for folder in folders):  # nor nvidia's package
        fit = [each for each in GLUE if "<cublasLt.h>" not in (ROOT / each).read_text()]
    system = [flag for folder in folders for flag in ("-isystem", folder)]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [*compiler(), "-std=c++20", "-fsyntax-only", *warnings, "-DFUSEDRNN_WITH_CUDA"]
    (unit,) = gathered(fit, tmp_path)
    output_of([*command, f"-I{CSRC}", *system, unit])
