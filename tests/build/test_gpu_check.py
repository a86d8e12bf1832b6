"""gpu_check.sh where there is no GPU: it says so and builds nothing; and, with a stand-in for
Python that passes, fails or hangs as it is told, how each stage ends: in time, with its own status
and a last line that says why."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import cuda_core
import gpu_profile
import gpu_reports
from benchmarks import gpu_tiles
from support.gpu_stand_ins import NCU, SANITIZER, STAND_IN, TIMEOUT
from support.paths import ROOT, TESTS

SCRIPT = ROOT / "tools" / "gpu_check.sh"
STAGES = ("smoke", "test", "bench", "sanitize", "profile")
PASSED, FAILED, NOTHING, PARTIAL, USAGE = 0, 1, 2, 3, 64


def check(*arguments: str | Path, script: Path = SCRIPT, **environment: str) -> tuple[int, str]:
    """Exit status, and all that was printed."""
    done = subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


# --- the machine


def test_without_a_gpu_it_says_so_and_builds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text = check(out, "smoke", CUDA_VISIBLE_DEVICES="")
    assert status == NOTHING
    reason = "there is no GPU: torch.cuda.is_available() is false"
    assert text == f"logs and figures: {out}\nsmoke: NOTHING TO RUN ON: {reason}\n"
    assert [path.name for path in out.iterdir()] == ["smoke.txt"]


def test_without_torch_it_names_the_interpreter(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    executable(bare, f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    status, text = check(tmp_path / "out", "smoke", PYTHON=str(bare), PYTHONPATH="")
    assert status == NOTHING
    assert re.search(r"smoke: NOTHING TO RUN ON: .* has no torch\n$", text)


@pytest.mark.parametrize("version", ["76.1", "77.0.3"])
def test_setuptools_too_old_is_told_with_its_remedy_before_the_build(
    version: str, tmp_path: Path
) -> None:
    cuda = "is_available = lambda: True\ndevice_count = lambda: 1\n"
    files = {
        "torch/__init__.py": "from torch import cuda\n",
        "torch/cuda.py": f"{cuda}get_device_capability = lambda _: (9, 0)\n",
        "torch/utils/__init__.py": "",
        "torch/utils/cpp_extension.py": "CUDA_HOME = None\n",
        "setuptools/__init__.py": f"__version__ = {version!r}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    executable(tmp_path / "bin" / "nvcc", "")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "gpu_machine.py"],
        env=os.environ
        | {
            "PYTHONPATH": str(tmp_path),
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    if version == "77.0.3":
        assert (done.returncode, done.stdout) == (0, "9.0\n"), done.stderr
    else:
        assert done.returncode == NOTHING
        remedy = f"{sys.executable} -m pip install 'setuptools>=77'"
        assert done.stdout == f"setuptools>=77 is needed, 76.1 is installed: {remedy}\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("{out}",), ("{out}", "tests"), ("{out}", "smoke", "test"), ("--help",)],
    ids=str,
)
def test_a_call_that_is_none_is_answered_with_the_usage(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    status, text = check(*(a.format(out=tmp_path) for a in arguments))
    assert status == USAGE
    assert text == "usage: tools/gpu_check.sh OUT smoke|test|bench|sanitize|profile\n"


# --- the stages, with a stand-in for Python


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """A checkout that holds the script and what it calls, and the environment that has it run."""
    executable(tmp_path / "python", STAND_IN)
    executable(tmp_path / "bin" / "compute-sanitizer", SANITIZER)
    executable(tmp_path / "bin" / "ncu", NCU)
    (tmp_path / "tools").mkdir()
    for path in ROOT.glob("tools/gpu_*"):
        shutil.copy(path, tmp_path / "tools")
    for name in ("benchmarks", "csrc", "fusedrnn"):
        (tmp_path / name).symlink_to(ROOT / name)
    return {
        "PYTHON": str(tmp_path / "python"),
        "REAL": sys.executable,
        "REAL_PYTEST": "",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "LIMITS": str(tmp_path / "limits"),
        "FATE": "",
        "CORE": "cuda_core: 62 ran",
        "REPORT": "",
        "FUSEDRNN_CUDA_KERNEL": "",
        "TORCH_CUDA_ARCH_LIST": "",
        "GPU_CHECK_SECONDS": "60",
    }


def run(pretended: dict[str, str], stage: str, **change: str) -> tuple[int, str, str]:
    """Exit status, what was printed, and its last line without the stage's name."""
    root = Path(pretended["PYTHON"]).parent
    script = root / "tools" / SCRIPT.name
    status, text = check(root / "out", stage, script=script, **(pretended | change))
    assert (root / "out" / f"{stage}.txt").read_text("utf-8").splitlines()[-1] in text
    last = text.splitlines()[-1]
    assert last.startswith(f"{stage}: "), text
    return status, text, last.removeprefix(f"{stage}: ")


@pytest.fixture
def files(pytestconfig: pytest.Config) -> set[str]:
    """The files that --device cuda has something to run of."""
    conftest: Any = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    found: set[str] = conftest.ON_ANY_DEVICE
    return found


def calls(pretended: dict[str, str]) -> str:
    return Path(pretended["CALLS"]).read_text("utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_builds_first_and_says_that_it_passed(
    stage: str, pretended: dict[str, str]
) -> None:
    status, text, last = run(pretended, stage)
    assert status == PASSED, text
    assert re.fullmatch(r"passed in \d+ s", last)
    assert "architectures 9.0" in text
    asked = calls(pretended)
    assert asked.index("-m pip install --no-index") < asked.index("_binary.build_info")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("part", ["pip", "import"])
def test_a_build_that_fails_or_does_not_import_leaves_nothing_to_run(
    part: str, stage: str, pretended: dict[str, str]
) -> None:
    status, _, last = run(pretended, stage, FATE=f"{part}=fail")
    assert status == FAILED
    assert re.match(r"FAILED: (build|import): status 1, \w+ broke", last)
    assert not re.search(r"-m pytest|cuda_core|-m benchmarks", calls(pretended))


@pytest.mark.parametrize("fate", ["part", "fail", "hang"])
@pytest.mark.parametrize(
    ("stage", "program"),
    [("smoke", "cuda_core"), ("smoke", "gpu_tiles"), ("bench", "gpu"), ("test", "pytest")],
)
def test_the_status_and_the_last_line_say_how_a_stage_ended(
    stage: str, program: str, fate: str, pretended: dict[str, str]
) -> None:
    seconds = {"part": "60", "fail": "60", "hang": "6"}[fate]
    began = time.monotonic()
    status, text, last = run(pretended, stage, FATE=f"{program}={fate}", GPU_CHECK_SECONDS=seconds)
    if fate == "hang":
        assert time.monotonic() - began < 40  # of the sixty for which it would sleep
        assert f"{program} was cut off after" in last
        assert program == "pytest" or f"begin 7 the problem of {program}" in last
        assert status == (FAILED if program == "cuda_core" else PARTIAL), text
    elif fate == "part" and program != "pytest":
        assert (status, last) == (PARTIAL, f"PARTIAL: {program}: {program}: 3 left out for time")
    elif fate == "fail":
        assert status == FAILED
        assert last.startswith(f"FAILED: {program}: status 1, {program} broke")


def test_tiles_whose_kernels_hang_are_not_timed(pretended: dict[str, str]) -> None:
    core = "HUNG: FUSEDRNN_CUDA_TILE=8 LSTM: it did not end\ncuda_core: 61 ran, 1 hung"
    _, text, _ = run(pretended, "smoke", CORE=core)
    assert "    HUNG: FUSEDRNN_CUDA_TILE=8 LSTM" in text
    assert "--without 8 " in calls(pretended)


def test_tests_are_named_by_file_and_spread_over_workers(
    pretended: dict[str, str], files: set[str]
) -> None:
    run(pretended, "test")
    first, second = (line for line in calls(pretended).splitlines() if "-m pytest" in line)
    assert sorted(re.findall(r"tests/\w+/(\w+)\.py", first)) == sorted(files)
    assert " tests " not in first
    for line in (first, second):
        assert "--device cuda" in line
        assert "-n 8 --maxschedchunk=1" in line
        assert "-o faulthandler_timeout=10 " in line  # a sixth of the stage's time
    assert second.startswith("stepwise:")


def test_every_limit_leaves_the_stage_within_its_time(pretended: dict[str, str]) -> None:
    executable(Path(pretended["PYTHON"]).parent / "bin" / "timeout", TIMEOUT)
    expected = {
        "smoke": [150, 60, 110, 150],
        "test": [200, 60, 453, 60],
        "bench": [200, 60, 518],
        "sanitize": [200, 60, 250, 250, 250, 250],
        "profile": [200, 60, 350, 60, 60, 60],
    }
    for stage in STAGES:
        Path(pretended["LIMITS"]).write_text("")
        run(pretended, stage, GPU_CHECK_SECONDS="")
        limits = [int(n) for n in Path(pretended["LIMITS"]).read_text("utf-8").split()]
        # Stand-ins take next to no time, and what they take is the next one's loss.
        assert len(limits) == len(expected[stage])
        for found, most in zip(limits, expected[stage], strict=True):
            assert most - 30 <= found <= most, stage


def stub_tests(root: Path, files: set[str], **special: str) -> None:
    (root / "tests").mkdir()
    (root / "tests" / "conftest.py").write_text(
        'def pytest_addoption(parser):\n    parser.addoption("--device")\n'
    )
    for name in files:
        text = special.get(name, "def test_flags():\n    pass\n")
        (real,) = TESTS.glob(f"*/{name}.py")
        path = root / "tests" / real.relative_to(TESTS)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


REAL_PYTEST = {"REAL_PYTEST": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_one_collection_error_takes_no_other_file_along(
    pretended: dict[str, str], files: set[str], tmp_path: Path
) -> None:
    stub_tests(tmp_path, files, test_cells="import nowhere_to_be_found\n")
    status, text, last = run(pretended, "test", **REAL_PYTEST)
    assert status == FAILED
    assert "    ERROR tests/layers/test_cells.py" in text
    others = len(files) - 1
    assert re.match(rf"FAILED: pytest: status 1, =* ?{others} passed, 1 error", last)


def test_a_test_that_hangs_is_named_with_its_parameters(
    pretended: dict[str, str], files: set[str], tmp_path: Path
) -> None:
    hangs = """import time, pytest
@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_waits(name):
    time.sleep(60 if name == "LSTM" else 0)
"""
    stub_tests(tmp_path, files, test_layers="def test_flags(): pass\n", test_compile=hangs)
    status, text, last = run(pretended, "test", **REAL_PYTEST, GPU_CHECK_SECONDS="24")
    assert status == FAILED
    assert last.startswith(
        "FAILED: HUNG: tests/layers/test_compile.py::test_waits[LSTM]; PARTIAL: pytest"
    )
    assert "test_waits[RNN]" not in text


def race(tile: int) -> str:
    kernel = f"void fusedrnn::cuda::recurrence_forward<(int){tile}>(fusedrnn::cuda::Forward)"
    return f"""========= Error: Race reported between Write access at {kernel}+0x4c0
=========     and Read access at {kernel}+0x5d0 [64 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"""


def first_tile(clustered: bool) -> int:
    return next(t.index for t in gpu_tiles.tiles() if (t.cluster > 1) is clustered)


READ = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at {}+0x10
========= ERROR SUMMARY: 1 error"""


@pytest.mark.parametrize(
    ("tool", "report", "expected", "told"),
    [
        ("racecheck", race(first_tile(False)), FAILED, "racecheck: 1 races that decide"),
        ("racecheck", race(first_tile(True)), PASSED, "1 of cluster kernels, a lead to follow"),
        (
            "initcheck",
            READ.format("void fusedrnn::cuda::k"),
            FAILED,
            "initcheck: 1 reports of ours",
        ),
        ("initcheck", READ.format("void cutlass::k"), PASSED, "0 reports of ours, 1 of other"),
        ("memcheck", "========= ERROR SUMMARY: 2 errors", FAILED, "memcheck: 2 errors"),
    ],
)
def test_which_reports_of_a_sanitizer_decide(
    tool: str, report: str, expected: int, told: str, pretended: dict[str, str]
) -> None:
    status, text, last = run(pretended, "sanitize", FATE=f"{tool}=found", REPORT=report)
    assert status == expected, text
    assert told in text
    assert (told in last) is (expected == FAILED)


@pytest.mark.parametrize(
    ("fate", "expected", "told"),
    [
        ("part", PARTIAL, "PARTIAL: synccheck: "),
        ("hang", PARTIAL, "PARTIAL: synccheck: cut off in begin 4 the problem of synccheck"),
        ("refused", NOTHING, "NOTHING TO RUN ON: synccheck: compute-sanitizer does not support"),
    ],
)
def test_a_sanitizer_that_does_not_end_or_cannot_run_is_told(
    fate: str, expected: int, told: str, pretended: dict[str, str]
) -> None:
    seconds = "8" if fate == "hang" else "60"
    status, text, last = run(
        pretended, "sanitize", FATE=f"synccheck={fate}", GPU_CHECK_SECONDS=seconds
    )
    assert status == expected, text
    assert last.startswith(told)


def test_a_tool_that_is_not_there_leaves_nothing_to_run_on(pretended: dict[str, str]) -> None:
    for stage, tool in (("sanitize", "compute-sanitizer"), ("profile", "ncu")):
        (Path(pretended["PYTHON"]).parent / "bin" / tool).unlink()
        if shutil.which(tool):
            pytest.skip(f"this machine has {tool}")
        status, _, last = run(pretended, stage)
        assert (status, last) == (NOTHING, f"NOTHING TO RUN ON: there is no {tool} on PATH")


def test_counters_that_may_not_be_read_leave_nothing_to_run_on(pretended: dict[str, str]) -> None:
    status, _, last = run(pretended, "profile", FATE="ncu=denied")
    assert status == NOTHING
    assert last.startswith("NOTHING TO RUN ON: ncu may not read the counters: ==ERROR== ERR_NVGPU")


def test_counters_are_listed_a_kernel_a_line_and_missing_ones_named(
    pretended: dict[str, str],
) -> None:
    status, text, _ = run(pretended, "profile")
    assert status == PASSED
    assert re.search(r"^ +recurrence_forward<\(int\)5> +33\.50$", text, re.MULTILINE)
    assert "not in the report: l1tex__data_pipe_lsu_wavefronts_mem_shared.sum" in text


def test_a_profile_that_is_cut_off_is_partial_or_failed(pretended: dict[str, str]) -> None:
    _, _, last = run(pretended, "profile", FATE="ncu=hang", GPU_CHECK_SECONDS="6")
    assert "ncu was cut off after" in last


# --- what the stages run


def test_a_log_that_ends_early_tells_what_hung_failed_and_was_at_work() -> None:
    log = """scheduling tests via LoadScheduling

tests/cuda/test_cuda.py::test_a[0: LSTM H32]
tests/cuda/test_cuda.py::test_b[GRU]
tests/cuda/test_cuda.py::test_c
[gw1] [ 50%] PASSED tests/cuda/test_cuda.py::test_a[0: LSTM H32] Timeout (0:01:30)!
Thread 0x00007fb98ae51b80 (most recent call first):
  File "/x/tests/cuda/test_cuda.py", line 4 in test_c
  File "/x/_pytest/python.py", line 187 in pytest_pyfunc_call
"""
    expected = [
        "HUNG: tests/cuda/test_cuda.py::test_c",
        "cut off: tests/cuda/test_cuda.py::test_b[GRU]",
    ]
    assert gpu_reports.unended(log) == expected
    log += "[gw0] [ 60%] FAILED tests/cuda/test_cuda.py::test_d\n"
    assert gpu_reports.unended(log) == [
        expected[0],
        "FAILED: tests/cuda/test_cuda.py::test_d",
        expected[1],
    ]
    ended = "".join(
        f"[gw0] [ 90%] PASSED tests/cuda/test_cuda.py::{name}\n"
        for name in ("test_b[GRU]", "test_c")
    )
    assert gpu_reports.unended(log + ended) == []  # pytest itself sums up what failed


PROBLEMS = """import faulthandler, sys, time
first = int(sys.argv[sys.argv.index("--first") + 1])
for number in range(first, 6):
    print(f"begin {number} problem {number}", flush=True)
    if number == 1:
        faulthandler.dump_traceback_later(0.2, exit=True)
        time.sleep(60)
    if number == 3:
        sys.exit("CUDA error: an illegal memory access")
    if number == 4:
        print("left out: problem 4: too large")
print(f"cuda_core: {5 - first} ran, 1 this GPU cannot run")
"""


def test_problems_that_hang_or_crash_are_named_and_the_rest_still_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "problems.py"
    program.write_text(PROBLEMS)
    assert cuda_core.watched([sys.executable, str(program)], 60) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert "HUNG: problem 1: it did not end" in lines
    assert "FAILED: problem 3: status 1, CUDA error: an illegal memory access" in lines
    assert lines[-1] == "cuda_core: 3 ran, 1 failed, 1 hung, 1 this GPU cannot run"


def test_the_sanitizers_meet_every_tile_and_each_kind_of_kernel_first() -> None:
    problems = list(cuda_core.core())
    indices = [int(value) for name, value, _ in problems if name == "FUSEDRNN_CUDA_TILE"]
    tiles = gpu_tiles.tiles()
    assert sorted(indices) == list(range(len(tiles)))
    kinds = {(tile.cell, tile.cluster > 1) for tile in tiles}
    assert len({(tiles[i].cell, tiles[i].cluster > 1) for i in indices[: len(kinds)]}) == len(kinds)


def test_the_profiled_kernels_exchange_h_in_three_ways() -> None:
    found = gpu_profile.chosen()
    assert [(t.hidden, t.cluster, t.rows) for t in found] == [
        (128, 1, 1),
        (256, 4, 1),
        (512, 16, 4),
    ]
