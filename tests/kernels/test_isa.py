"""Every instruction set this machine can run computes the same, and a wrong name is refused.

The variant is chosen once per process, so each runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fusedrnn import _C
from support.paths import TESTS

CORE = """
from support import problems
from fusedrnn import _C
assert _C.cpu_isa() == {isa!r}, _C.cpu_isa()
for problem in problems.CORE:
    try:
        problems.check(problem)
    except AssertionError as error:
        raise AssertionError(f"{{problem}}: {{error}}") from None
print("checked", len(problems.CORE))
"""


def in_process(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the instruction set forced and the tests' helpers importable."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "FUSEDRNN_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_each_instruction_set_matches_torch_and_reference(isa: str) -> None:
    result = in_process(isa, CORE.format(isa=isa))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("checked")


# The last is what the tests of layers run by.
@pytest.mark.parametrize("files", [["test_freeze", "test_stream"], ["test_bfloat16"]], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas()[:-1])
def test_each_instruction_set_passes_tests_of_layers(
    isa: str, files: list[str], pytestconfig: pytest.Config
) -> None:
    arguments = ["-q", *(f"layers/{name}.py" for name in files)]
    if not pytestconfig.getoption("night"):
        arguments += ["--sample", "1/4"]
    result = in_process(isa, f"import pytest; raise SystemExit(pytest.main({arguments}))")
    assert result.returncode == 0, result.stdout


def test_the_baseline_runs_everywhere_and_the_widest_is_chosen() -> None:
    isas = _C.cpu_isas()
    assert "baseline" in isas
    if "FUSEDRNN_CPU_ISA" not in os.environ:
        assert _C.cpu_isa() == isas[-1]


@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", "avx1024"])
def test_an_unknown_instruction_set_is_refused_with_the_possible_ones(isa: str) -> None:
    code = "import torch, fusedrnn; fusedrnn.RNN(2, 2)(torch.zeros(1, 1, 2))"
    result = in_process(isa, code)
    assert result.returncode != 0
    assert "RuntimeError" in result.stderr
    assert isa.strip() in result.stderr
    for possible in _C.cpu_isas():
        assert possible in result.stderr


def test_fma_peak_is_a_plausible_rate() -> None:
    peak = _C.fma_peak(1, 0.02)
    assert 0.5 < peak < 1000
