"""The kernels without torch: tests/cpp/kernels_test.cpp, built under the sanitizers and run with
every instruction set this machine has, and on arm64 where that can be emulated; and what the
objects of the variants define, which no test that merely runs them could show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusedrnn import _C

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
PROGRAM = ROOT / "tests" / "cpp" / "kernels_test.cpp"
LANGUAGE = ["-std=c++20", f"-I{ROOT / 'csrc'}"]

BUILDS = {
    "optimized": ["-O3", "-fvisibility=hidden"],  # as setup.py does
    # Calls in place of inline checks compile twice as fast. Of the undefined, what AddressSanitizer
    # sees itself is left out, and alignment, which triples the time to compile: vectors are only
    # accessed through a type with the alignment of an element.
    "address": [
        *["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        "-fno-sanitize=alignment,null,object-size,pointer-overflow",
        "--param=asan-instrumentation-with-call-threshold=0",
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
# Each n-th problem is run, for all that they slow down: 5 and 20 times.
STRIDE = {"optimized": 1, "address": 3, "thread": 5}
ARM64 = ["aarch64-linux-gnu-g++", "qemu-aarch64"]


def output_of(command: list[str], **environment: str) -> str:
    """What a command prints; a test that needs it fails with all of it when the command does."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        pytest.fail(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def compiled(compiler: list[str], sources: list[Path], flags: list[str], to: Path) -> list[str]:
    """Objects of the sources, made two at a time."""

    def compile_one(source: Path) -> str:
        target = str(to / f"{source.stem}.o")
        output_of([*compiler, *LANGUAGE, *flags, "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        pytest.fail(f"no C++ compiler {command[0]!r}: install one, or name it in CXX")
    return command


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(build: str, compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return compiled(compiler, KERNELS, BUILDS[build], tmp_path_factory.mktemp(build))


def test_kernels_match_the_scalar_reference(
    build: str, objects: list[str], compiler: list[str], tmp_path: Path
) -> None:
    # The reference is left unwatched: it would take longer than the kernels.
    test = compiled(compiler, [PROGRAM], ["-O2"], tmp_path)
    program = str(tmp_path / "kernels_test")
    output_of([*compiler, *test, *objects, *BUILDS[build], "-pthread", "-o", program])

    def run(isa: str) -> str:
        return output_of([program, str(STRIDE[build])], FUSEDRNN_CPU_ISA=isa)

    isas = _C.cpu_isas()
    with ThreadPoolExecutor(2) as pool:
        for isa, said in zip(isas, pool.map(run, isas), strict=True):
            assert said.startswith(f"{isa}: ")
            assert said.endswith(" 0 failures\n")


# A function the linker saw in two variants it would merge, and a machine without AVX-512 could
# then meet AVX-512 code in its baseline (see csrc/cpu/simd.h).
def test_a_variant_defines_no_function_but_its_table(objects: list[str]) -> None:
    for path in objects:
        name = Path(path).stem
        if not name.startswith("kernels_"):
            continue
        listing = output_of(["nm", "--defined-only", "--extern-only", "--demangle", path])
        functions = re.findall(r"^\w+ [TWi] (.*)$", listing, re.MULTILINE)
        assert functions == [f"fusedrnn::cpu::{name.removeprefix('kernels_')}::variant()"]


@pytest.mark.skipif(
    not all(map(shutil.which, ARM64)), reason=f"needs {' and '.join(ARM64)} on PATH"
)
def test_kernels_match_the_scalar_reference_on_emulated_arm64(tmp_path: Path) -> None:
    objects = compiled(ARM64[:1], [*KERNELS, PROGRAM], ["-O2"], tmp_path)
    program = str(tmp_path / "kernels_test")
    output_of([ARM64[0], "-static", "-pthread", *objects, "-o", program])
    said = output_of([ARM64[1], program, "5"], FUSEDRNN_CPU_ISA="baseline")
    assert said.startswith("baseline: ")
    assert said.endswith(" 0 failures\n")
