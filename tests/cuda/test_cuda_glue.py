"""The CUDA half of the operators without a GPU: csrc/ops/cuda and every kernel it calls, built for
the CPU (tests/cuda/glue/torch_glue.cpp) and put in the place of the CPU kernels, so that the tests
of layers test it. In processes of their own: there is no way back. The build, half a minute, is
kept in pytest's cache until a source changes."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from support import shim
from support.commands import compiler, output_of
from support.paths import CSRC, GLUE, HOST

KERNELS = [path for path in sorted((CSRC / "cuda").rglob("*.c[pu]*")) if path.suffix != ".cuh"]
SOURCES = [
    *(path for path in KERNELS if path.name not in ("device.cu", "dispatch.cu")),
    *(GLUE / name for name in ("torch_glue.cpp", "faults.cpp")),
    *shim.SHIM,
]
FLAGS = [
    *["-O1", "-fPIC", "-fvisibility=hidden", "-DFUSEDRNN_WITH_CUDA", f"-I{GLUE / 'headers'}"],
    *[*shim.FLAGS, f"-I{CSRC}"],
]

# Which tests run under FUSEDRNN_CUDA_KERNEL: all flags of a layer crossed under each kernel, as far
# as it can run them, and what else there is where the plan has the choice. SAMPLES says of which
# files a part is enough; with --night all.
SAMPLES = {"block": "0/3", "cluster": "1/3", "stepwise": "2/3", "": "0/2", "gradients": "1/2"}
RUNS = {
    "block": ["tests/layers/test_layers.py", "-k", "flags and fp32 and not P2"],
    "cluster": ["tests/layers/test_layers.py", "-k", "flags and fp32 and not P2"],
    "stepwise": ["tests/layers/test_layers.py", "-k", "flags and not fp16"],
    "": ["tests/layers/test_layers.py", "-k", "T35 or T3- or empty or nan or chunks or strided"],
    "gradients": ["tests/layers/test_autograd.py", "-k", "not second and not penalty"],
    "checks": ["tests/cuda/glue/torch_glue_checks.py"],
    "trust": ["tests/cuda/glue/trust_checks.py"],
    "tune": ["tests/cuda/glue/tune_checks.py"],
    "products": ["tests/cuda/glue/torch_glue_products.py"],
    "sequences": ["tests/cuda/glue/torch_glue_sequences.py"],
}


def fingerprint() -> str:
    """Of everything that the library is made from."""
    digest = hashlib.sha256(f"{torch.__version__} {compiler()} {FLAGS}".encode())
    for path in sorted([*CSRC.rglob("*.*"), *HOST.rglob("*.*"), *GLUE.rglob("*.*")]):
        if path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(path.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def glue(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to be loaded in place of the CPU kernels."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # -p no:cacheprovider
    place = cache.mkdir("cuda_glue") if cache else tmp_path_factory.mktemp("cuda_glue")
    library = place / f"{fingerprint()}.so"
    if library.exists():
        return library
    for old in place.iterdir():
        old.unlink()
    include = [f for path in cpp_extension.include_paths() for f in ("-isystem", path)]

    def compiled(source: Path) -> str:
        target = str(place / f"{source.name}.o")
        torch_flags = include if source.name == "torch_glue.cpp" else []
        output_of([*compiler(), *FLAGS, *torch_flags, "-x", "c++", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sorted(SOURCES, key=lambda s: s.name, reverse=True)))
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries = [*folders, "-ltorch", "-ltorch_cpu", "-lc10"]
    made = library.with_suffix(".tmp")
    output_of([*compiler(), "-shared", *objects, *libraries, "-o", str(made)])
    made.rename(library)
    return library


@pytest.mark.parametrize("name", RUNS)
def test_layers_run_by_the_cuda_half_pass_their_tests(
    name: str, glue: Path, pytestconfig: pytest.Config
) -> None:
    kernel = name if name in ("block", "cluster", "stepwise") else ""
    options = ["-p", "torch_glue_plugin", "-p", "no:cacheprovider"]
    if name in SAMPLES and not pytestconfig.getoption("night"):
        options += ["--sample", SAMPLES[name]]
    told = output_of(
        [sys.executable, "-m", "pytest", "-q", *options, *RUNS[name]],
        PYTHONPATH=os.pathsep.join([str(GLUE), os.environ.get("PYTHONPATH", "")]),
        FUSEDRNN_GLUE=str(glue),
        FUSEDRNN_CUDA_KERNEL=kernel,
        OMP_NUM_THREADS="1",  # products are small, and threads that spin slow the shim down
    )
    assert " passed" in told


# What is to run on a GPU, without what takes minutes here.
PYTEST = ["-m", "pytest", "-q", "--device", "cuda", "-p", "no:cacheprovider"]
QUICK = "LSTM and not fifty and not smaller"
REHEARSED = {
    "every kernel": ["tools/cuda_core.py", "--watch", "300"],
    "kernels to be profiled": ["tools/gpu_profile.py", "--steps", "2"],
    "hardware": [*PYTEST, "tests/cuda/test_cuda_hardware.py", "-k", QUICK],
}


@pytest.mark.parametrize("name", REHEARSED)
def test_what_a_gpu_is_to_run_runs_on_the_host(name: str, glue: Path) -> None:
    told = output_of(
        [sys.executable, *REHEARSED[name]],
        PYTHONPATH=os.pathsep.join([str(GLUE / "pretended"), os.environ.get("PYTHONPATH", "")]),
        FUSEDRNN_GLUE=str(glue),
        OMP_NUM_THREADS="1",
    )
    assert re.search(r" ran$|: all ran$| passed", told, re.MULTILINE)
