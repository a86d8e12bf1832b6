"""The kernels without torch: cpp/kernels_test.cpp, built under the sanitizers and run with
every instruction set this machine has, AVX-512 lane by lane where it is not among them, and on
arm64 where that can be emulated; frozen files by the C interface, watched alike; and what the
objects of the variants define, which no test that merely runs them could show."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedrnn
from fusedrnn import _C
from support.commands import ARM64, compiler, output_of
from support.native_build import ADDRESS, FROZEN, KERNELS, SHIPPED, compiled, kernels, shipped
from support.paths import TESTS

EMULATED = TESTS / "kernels" / "cpp" / "emulated_avx512.cpp"
NARROW = TESTS / "kernels" / "cpp" / "emulated_narrow.cpp"
TILES = TESTS / "kernels" / "cpp" / "tiles_test.cpp"
INT8 = [TESTS / "kernels" / "cpp" / name for name in ("int8_test.cpp", "emulated_int8.cpp")]
PROGRAM = TESTS / "kernels" / "cpp" / "kernels_test.cpp"
FROZEN_PROGRAM = TESTS / "kernels" / "cpp" / "frozen_test.cpp"

AVX512 = "avx512" in _C.cpu_isas()
BUILDS = {
    "optimized": SHIPPED,
    "address": ADDRESS,
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
# Each n-th problem is run, by day and by night, for all that sanitizers slow down (3 and 20 times);
# threads order their work alike in both precisions.
RUN = {"optimized": ["3", "1"], "address": ["5", "3"], "thread": ["5", "3"]}
MORE = {"thread": ["by turns"]}


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def isas_of(build: str) -> list[str]:
    """The instruction sets that a build is run for. The kernels are one source for all, so the
    sanitizers, under which each takes minutes to compile, see the last."""
    return _C.cpu_isas() if build == "optimized" else _C.cpu_isas()[-1:]


def objects_of(build: str, place: pytest.TempPathFactory) -> list[str]:
    if build == "optimized":
        return shipped(KERNELS) or kernels(place, *BUILDS[build])
    return kernels(place, *BUILDS[build], isa=isas_of(build)[0])


@pytest.fixture(scope="module")
def objects(build: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return objects_of(build, tmp_path_factory)


def test_kernels_match_the_scalar_reference(
    build: str, objects: list[str], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    # The reference is left unwatched: it would take longer than the kernels. But the atomics by
    # which halves of a team wait have to be seen, or all that they order looks like a race.
    watched = ["-fsanitize=thread"] if build == "thread" else []
    test = compiled(compiler(), [PROGRAM], ["-O2", *watched], tmp_path)
    program = str(tmp_path / "kernels_test")
    output_of([*compiler(), *test, *objects, *BUILDS[build], "-pthread", "-o", program])

    def run(isa: str) -> str:
        every = RUN[build][bool(pytestconfig.getoption("night"))]
        return output_of([program, every, *MORE.get(build, ())], FUSEDRNN_CPU_ISA=isa)

    isas = isas_of(build)
    with ThreadPoolExecutor(2) as pool:
        for isa, said in zip(isas, pool.map(run, isas), strict=True):
            assert said.startswith(f"{isa}: ")
            assert said.endswith(" 0 failures\n")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Objects of the emulated kernels, which take minutes to compile, and of their test. AVX-512 is
    emulated where it is not here."""
    sources = [*([] if AVX512 else [EMULATED]), NARROW, PROGRAM]
    # Vectors wider than a register's have no calling convention; every function here is inlined.
    flags = ["-O1", "-Wno-psabi"]
    objects = compiled(compiler(), sources, flags, tmp_path_factory.mktemp("emulated"))
    return dict(zip(sources, objects, strict=True))


def all_but(replaced: list[str], place: pytest.TempPathFactory) -> list[str]:
    """The optimized kernels, some sources left out."""
    made = objects_of("optimized", place)
    return [path for path in made if Path(path).stem.removeprefix("isa_") not in replaced]


# No emulator at hand runs AVX-512: QEMU and Valgrind stop at AVX2.
@pytest.mark.skipif(AVX512, reason="AVX-512 is here and tested as itself")
@pytest.mark.skipif("avx2" not in _C.cpu_isas(), reason="needs AVX2")
def test_the_avx512_kernels_match_the_scalar_reference_lane_by_lane(
    emulated: dict[Path, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    objects = [emulated[EMULATED], emulated[PROGRAM]]
    objects += all_but(["kernels_baseline"], tmp_path_factory)
    program = str(tmp_path / "kernels_test")
    output_of([*compiler(), *objects, "-pthread", "-o", program])
    said = output_of([program, "3"], FUSEDRNN_CPU_ISA="baseline")
    assert said.startswith("baseline: ")
    assert said.endswith(" 0 failures\n")


# As above, on AVX-512 or that lane by lane: layers whose products are of bfloat16.
@pytest.mark.parametrize("table", ["avx512_bf16", "amx_bf16"])
@pytest.mark.skipif("avx2" not in _C.cpu_isas(), reason="needs AVX2")
def test_layers_match_the_scalar_reference_on_emulated_bfloat16(
    table: str,
    emulated: dict[Path, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    replaced = ["narrow", *([] if AVX512 else ["kernels_baseline"])]
    objects = [*emulated.values(), *all_but(replaced, tmp_path_factory)]
    program = str(tmp_path / "kernels_test")
    output_of([*compiler(), *objects, "-pthread", "-o", program])
    isa = "avx512" if AVX512 else "baseline"
    said = output_of([program, "11", "bfloat16"], FUSEDRNN_CPU_ISA=isa, EMULATED=table)
    assert said.startswith(f"{isa}: ")
    assert said.endswith(" 0 failures\n")


# No emulator at hand has tile registers, nor most machines.
def test_products_by_tiles_are_those_of_float64_and_of_integers(tmp_path: Path) -> None:
    flags = ["-O1", "-g1", "-Wno-psabi", "-fsanitize=address,undefined"]
    objects = compiled(compiler(), [TILES], flags, tmp_path)
    program = str(tmp_path / "tiles_test")
    output_of([*compiler(), *objects, *flags, "-o", program])
    assert output_of([program]).endswith(" results, 0 failures\n")


def test_products_of_int8_are_those_of_integers(
    build: str, objects: list[str], tmp_path: Path
) -> None:
    if build == "thread":
        return  # a product runs on one
    program = str(tmp_path / "int8_test")
    test = compiled(compiler(), INT8, ["-O1", "-Wno-psabi"], tmp_path)
    output_of([*compiler(), *test, *objects, *BUILDS[build], "-pthread", "-o", program])
    assert output_of([program]).endswith(" results, 0 failures\n")


FORMS: list[tuple[str, torch.dtype | None, dict[str, Any]]] = [
    ("LSTM", None, {"num_layers": 2}),
    ("LSTM", torch.int8, {"proj_size": 8}),
    ("GRU", torch.bfloat16, {}),
    ("RNN", torch.int8, {"num_layers": 3}),
    ("MGU", None, {"bias": False}),
]


def test_frozen_files_run_through_the_c_interface(
    build: str, objects: list[str], tmp_path: Path
) -> None:
    files: list[str] = []
    expected: list[torch.Tensor] = []
    x = (torch.arange(20 * 5 * 9) * 37 % 101 - 50).view(20, 5, 9) / 64  # as the program makes it
    for name, dtype, flags in FORMS:
        torch.manual_seed(0)
        frozen = fusedrnn.freeze(getattr(fusedrnn, name)(9, 33, **flags), dtype)
        files.append(str(tmp_path / f"{len(files)}.safetensors"))
        frozen.save(files[-1])
        expected.append(frozen(x)[0])
    test = compiled(compiler(), [*FROZEN, FROZEN_PROGRAM], BUILDS[build], tmp_path)
    program, written = str(tmp_path / "frozen_test"), str(tmp_path / "outputs")
    output_of([*compiler(), *test, *objects, *BUILDS[build], "-pthread", "-o", program])
    for isa in isas_of(build):
        output_of([program, written, *files], FUSEDRNN_CPU_ISA=isa)
        sizes = [y.numel() for y in expected]
        outputs = torch.from_file(written, size=sum(sizes)).split(sizes)
        for (_, dtype, _), y, found in zip(FORMS, expected, outputs, strict=True):
            # What is rounded may go the other way by another instruction set.
            atol = 2e-2 if dtype else 1e-5
            torch.testing.assert_close(found.view_as(y), y, rtol=0, atol=atol)


# A function the linker saw in two variants it would merge, and a machine without AVX-512 could
# then meet AVX-512 code in its baseline (see csrc/cpu/simd.h).
def test_a_variant_defines_no_function_but_its_table(objects: list[str]) -> None:
    for path in objects:
        name = Path(path).stem
        if not name.startswith(("kernels_", "narrow_")):
            continue
        listing = output_of(["nm", "--defined-only", "--extern-only", "--demangle", path])
        functions = re.findall(r"^\w+ [TWi] (.*)$", listing, re.MULTILINE)
        kind, isa = name.split("_", 1)
        table = "variant" if kind == "kernels" else "table"
        assert functions == [f"fusedrnn::cpu::{isa}::{table}()"]


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
