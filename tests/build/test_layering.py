"""Holds the layering: a file's folder decides what it may include or import. Kernels never see
torch, so they compile in a second and can be tested without it; the only torch headers, 25 s a
translation unit, stand under csrc/ops. The checkers are themselves held to planted breaches."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.paths import ROOT

STANDARD = r"[a-z_0-9]+"
POSIX = r"(pthread|sys/mman|omp)\.h"
KERNEL = r"(unistd|sys/syscall)\.h"  # Linux, which is asked whether AMX may be used
INTRINSICS = r"(immintrin|cpuid|arm_neon)\.h"
TOOLKIT = r"(cuda|cooperative_groups|mma|math_constants)\w*(/\w+)*(\.h)?"
# What the operators see of the kernels.
PARAMS = r"(cpu|cuda)/params\.h|cuda/plan\.h|cpu/halves\.h|frozen/\w+\.h"
TORCH = r"(torch|pybind11|(ATen|c10)/(?!cuda/))\b.*\.h"

# Names under csrc, the longest prefix of a file's path deciding, and what these may include.
MAY_INCLUDE = {
    "model/": [STANDARD, "model/.+"],
    "cells/": [STANDARD, r"model/cell\.h", "cells/.+"],
    "cpu/isa/": [STANDARD, INTRINSICS, KERNEL, "model/.+", "cells/.+", "cpu/.+"],
    "cpu/": [STANDARD, INTRINSICS, "model/.+", "cells/.+", "cpu/.+"],
    "cuda/": [STANDARD, TOOLKIT, "model/.+", "cells/.+", "cuda/.+"],
    "frozen/": [STANDARD, "model/.+", r"cpu/(params|narrow)\.h", "frozen/.+"],
    "frozen/fusedrnn.h": [r"stdint\.h"],  # C
    "ops/": [STANDARD, POSIX, TORCH, "model/.+", PARAMS, "ops/(?!cuda/).+"],
    "ops/cuda/": [
        STANDARD,
        TORCH,
        "model/.+",
        PARAMS,
        "ops/.+",
        "c10/cuda/.+",
        r"ATen/cuda/CUDAContextLight\.h",
        r"cublasLt\.h",
        r"cuda_runtime\w*\.h",
    ],
}

# Modules of fusedrnn and which others each may import.
MAY_IMPORT = {
    "__init__": {
        "_binary",
        "cells",
        "convert",
        "freeze",
        "frozen",
        "functional",
        "hooks",
        "mgu",
        "modules",
        "patch",
        "stream",
        "_explain",
        "tuning",
    },
    "__main__": {"LSTM", "__version__", "_binary", "experience", "explain", "ops", "tuning"},
    "tuning": {"_C", "_binary", "_explain", "_ops.cells", "experience", "ops"},
    "tune_worker": {"", "_C", "_ops.cells"},  # the package itself: its layers by name
    "convert": {"layers"},
    "freeze": {"_ops.frozen_file", "frozen", "mgu"},
    "frozen": {
        "_C",
        "_ops.course",
        "_ops.frozen_file",
        "_ops.quantize",
        "_ops.stack",
        "mgu",
        "modules",
        "stream",
    },
    "stream": {"_C"},
    "hooks": {"modules", "onnx_export"},
    "patch": {"layers"},
    "_explain": {"_binary", "_ops.refusals", "_ops.route", "layers", "ops", "plan"},
    "plan": set[str](),
    "layers": {"cells", "modules", "tools"},
    "cells": {"_ops.cells", "_ops.refusals", "tools"},
    "modules": {"_ops.course", "_ops.refusals", "_ops.stack", "tools"},
    "mgu": {"cells", "modules", "reference", "tools"},
    "onnx_export": {"_ops.operands", "ops"},
    "tools": set[str](),
    "functional": {"_ops.course", "_ops.per_sample", "_ops.refusals", "_ops.stack", "ops"},
    "ops": {
        "_C",
        "_binary",
        "_ops.definition",
        "_ops.fake",
        "_ops.second",
        "_ops.vmap",
        "experience",
    },
    "_ops.__init__": set[str](),
    "_ops.per_sample": {"_ops.cells", "_ops.course", "_ops.stack", "reference"},
    "_ops.stack": {"_ops.cells", "_ops.course", "_ops.refusals"},
    "_ops.course": {"_ops.cells"},
    "_ops.fake": {"_C", "_ops.operands"},
    "_ops.vmap": {"_ops.operands"},
    "_ops.definition": {"_C", "_ops.operands", "reference"},
    "_ops.second": {"_C", "_ops.definition", "_ops.operands"},
    "_ops.operands": {"_ops.cells", "reference"},
    "_ops.cells": {"_C"},
    "_ops.frozen_file": set[str](),
    "_ops.quantize": set[str](),
    "_ops.refusals": set[str](),
    "_ops.route": {"_C"},
    "experience": {"_C", "_binary"},
    "reference": {"reference_cells"},
    "reference_cells": set[str](),
    "_binary": set[str](),
}
THIRD_PARTY = {
    "reference": {"torch"},
    "reference_cells": {"torch"},
    "_binary": set[str](),
}  # the others: the runtime dependencies
DEPENDENCIES = {"torch", "numpy", "typing_extensions"}  # the last for types, by way of torch

SOURCES = {".cpp", ".cu"}
HEADERS = {".h", ".cuh"}


def code(csrc: Path) -> list[Path]:
    return sorted(path for path in csrc.rglob("*") if path.suffix in SOURCES | HEADERS)


def include_breaches(csrc: Path) -> list[str]:
    """Each `file: include` the table does not allow; a quoted name without a slash is a sibling."""
    breaches = []
    for path in code(csrc):
        name = path.relative_to(csrc).as_posix()
        prefix = max((key for key in MAY_INCLUDE if name.startswith(key)), key=len, default=None)
        if prefix is None:
            breaches.append(f"{name}: in no folder of the table")
            continue
        for line in re.findall(r"^\s*#\s*include(?:_next)?\s*(.*)", path.read_text(), re.MULTILINE):
            literal = re.match(r'<([^>]+)>|"([^"]+)"', line)
            if not literal:
                breaches.append(f"{name}: {line}")
                continue
            target = literal[1] or literal[2]
            if literal[2] and "/" not in target:
                target = (path.parent / target).relative_to(csrc).as_posix()
            if not any(re.fullmatch(allowed, target) for allowed in MAY_INCLUDE[prefix]):
                breaches.append(f"{name}: {target}")
    return breaches


def shared_objects(csrc: Path) -> list[str]:
    """Sources that would compile to one object file."""
    stems = Counter(path.with_suffix("") for path in code(csrc) if path.suffix in SOURCES)
    return [stem.relative_to(csrc).as_posix() for stem, count in stems.items() if count > 1]


def shadowing_folders(csrc: Path) -> list[str]:
    """Folders that -Icsrc would put before torch's headers."""
    shadowed = ("torch", "ATen", "c10", "pybind11")
    return [name for name in shadowed if (csrc / name).exists()]


def imported(module: ast.Module, package: str) -> list[str]:
    """Dotted names of everything imported anywhere in a module of ``package``."""
    names = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(filter(None, [*parents * bool(node.level), node.module]))
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def import_breaches(package: Path) -> list[str]:
    """Each `module: import` that goes up or across, or outside the runtime dependencies."""
    breaches = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        allowed = MAY_IMPORT.get(module, set())
        outside = THIRD_PARTY.get(module, DEPENDENCIES) | sys.stdlib_module_names
        parent = ".".join(["fusedrnn", *module.split(".")[:-1]])
        for name in imported(ast.parse(path.read_text()), parent):
            top, _, rest = name.partition(".")
            fits = any(f"{rest}.".startswith(f"{other}.") for other in allowed)
            if not (fits if top == "fusedrnn" else top in outside):
                breaches.append(f"{module}: {name}")
    return breaches


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_source_includes_only_what_its_folder_may() -> None:
    assert code(ROOT / "csrc")
    assert include_breaches(ROOT / "csrc") == []


def test_no_two_sources_share_an_object_file() -> None:
    assert shared_objects(ROOT / "csrc") == []


def test_no_folder_shadows_the_headers_of_torch() -> None:
    assert shadowing_folders(ROOT / "csrc") == []


def test_each_module_imports_only_from_the_layer_below() -> None:
    assert (ROOT / "fusedrnn" / "__init__.py").exists()
    assert import_breaches(ROOT / "fusedrnn") == []


@pytest.mark.parametrize(
    ("name", "line", "target"),
    [
        ("cells/lstm.h", "#include <immintrin.h>", "immintrin.h"),
        ("cells/lstm.h", '#include "cpu/simd.h"', "cpu/simd.h"),
        ("model/problem.h", "#include <torch/library.h>", "torch/library.h"),
        ("cpu/loops.cpp", "#include <torch/library.h>", "torch/library.h"),
        ("cpu/loops.cpp", '#include "../ops/checks.h"', "../ops/checks.h"),
        ("cpu/loops.cpp", "#  include <ATen/Parallel.h>", "ATen/Parallel.h"),
        ("cpu/loops.cpp", "#include LOOPS_FILE", "LOOPS_FILE"),
        ("cuda/block.cu", "#include <c10/cuda/CUDAStream.h>", "c10/cuda/CUDAStream.h"),
        ("ops/library.cpp", "#include <cuda_runtime.h>", "cuda_runtime.h"),
        ("ops/library.cpp", "#include <c10/cuda/CUDAGuard.h>", "c10/cuda/CUDAGuard.h"),
        ("ops/library.cpp", '#include "cpu/simd.h"', "cpu/simd.h"),
        ("ops/cuda/glue.cpp", "#include <ATen/cuda/CUDAContext.h>", "ATen/cuda/CUDAContext.h"),
    ],
)
def test_a_planted_include_is_found(tmp_path: Path, name: str, line: str, target: str) -> None:
    plant(tmp_path, name, f"// header\n{line}\n")
    assert include_breaches(tmp_path) == [f"{name}: {target}"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cells/lstm.h", '#include "math.h"'),
        ("cpu/loops.cpp", "#include <immintrin.h>"),
        ("cuda/block.cu", "#include <cuda_bf16.h>"),
        ("ops/library.cpp", "#include <c10/util/Exception.h>"),
        ("ops/library.cpp", "#include <ATen/Parallel.h>"),
        ("ops/cuda/glue.cpp", "#include <c10/cuda/CUDAStream.h>"),
    ],
)
def test_an_include_of_the_table_is_let_through(tmp_path: Path, name: str, line: str) -> None:
    plant(tmp_path, name, line)
    assert include_breaches(tmp_path) == []


def test_a_source_outside_the_table_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "util/misc.h", "")
    assert include_breaches(tmp_path) == ["util/misc.h: in no folder of the table"]


def test_a_planted_stem_and_a_planted_folder_are_found(tmp_path: Path) -> None:
    for name in ("cuda/plan.cpp", "cuda/plan.cu", "cpu/plan.cpp", "torch/extension.h"):
        plant(tmp_path, name, "")
    assert shared_objects(tmp_path) == ["cuda/plan"]
    assert shadowing_folders(tmp_path) == ["torch"]


@pytest.mark.parametrize(
    ("module", "line", "name"),
    [
        ("functional", "from .modules import LSTM", "fusedrnn.modules.LSTM"),
        ("functional", "from . import _C", "fusedrnn._C"),
        ("modules", "from fusedrnn.ops import stack", "fusedrnn.ops.stack"),
        ("reference", "from . import ops", "fusedrnn.ops"),
        ("reference", "def f():\n    import numpy", "numpy"),
        ("modules", "import scipy.special", "scipy.special"),
        ("_ops.fake", "from .stack import run", "fusedrnn._ops.stack.run"),
        ("_ops.fake", "from .. import modules", "fusedrnn.modules"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, line: str, name: str) -> None:
    plant(tmp_path, f"{module.replace('.', '/')}.py", line)
    assert import_breaches(tmp_path) == [f"{module}: {name}"]
