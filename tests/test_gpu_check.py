"""gpu_check.sh where there is no GPU: it says so and does nothing; and, with a stand-in for Python,
that its stages run on past a failure and are summed up. What the stages do, only a GPU can show."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_core
import pytest

from benchmarks import gpu_tiles

SCRIPT = Path(__file__).parent / "gpu_check.sh"

# Tells what it was asked; fails where FAIL says.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
-) echo 9.0 ;;
"-m pip "*) [[ $FAIL != *pip* ]] && mkdir -p build/gpu-check/site ;;
*_binary.build_info*) echo "{'version': '0'}" ;;
*'import fusedrnn'*) test -d "${PYTHONPATH%%:*}" ;;
"-m pytest "*)
  echo "FAILED tests/test_x.py"
  echo "1 failed, 2 passed in 0.10s"
  [[ $FAIL != *pytest* ]]
  ;;
*/gpu.py*) echo "met: 9.00x of 3x, a layer" ;;
*) echo "architectures $TORCH_CUDA_ARCH_LIST" ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
case "$*" in
*initcheck*)
  echo "========= Uninitialized __global__ memory read of size 4 bytes"
  echo "=========     at $KERNEL+0x10"
  echo "========= ERROR SUMMARY: 1 error"
  exit 99
  ;;
*) echo "========= ERROR SUMMARY: 0 errors" ;;
esac
"""


def check(*arguments: str | Path, script: Path = SCRIPT, **environment: str) -> tuple[int, str]:
    """Exit status, and all that was printed."""
    done = subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_without_a_gpu_it_says_so_in_one_line_and_builds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, text = check(out, CUDA_VISIBLE_DEVICES="")
    assert status == 2
    assert text == "gpu_check: there is no GPU: torch.cuda.is_available() is false\n"
    assert list(out.iterdir()) == []


def test_without_torch_it_names_the_interpreter(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    status, text = check(tmp_path / "out", PYTHON=str(bare), PYTHONPATH="")
    assert status == 2
    assert text.count("\n") == 1
    assert text.endswith("has no torch\n")


@pytest.mark.parametrize("arguments", [(), ("bench",), ("{out}", "tests"), ("--help",)], ids=str)
def test_a_stage_that_is_none_is_refused_with_the_usage(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    status, text = check(*(a.format(out=tmp_path) for a in arguments))
    assert status == 2
    assert text == "usage: tests/gpu_check.sh OUTDIR [build] [test] [sanitizer] [bench]\n"


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """A checkout that holds the script alone, and the environment that has it run."""
    for name, text in {"python": STAND_IN, "bin/compute-sanitizer": SANITIZER}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "tests").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tests")
    return {
        "PYTHON": str(tmp_path / "python"),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "FAIL": "",
        "KERNEL": "void cutlass::Kernel",
        "TORCH_CUDA_ARCH_LIST": "",
    }


def run(pretended: dict[str, str], *stages: str, **change: str) -> tuple[int, str, Path, str]:
    root = Path(pretended["PYTHON"]).parent
    script = root / "tests" / SCRIPT.name
    status, text = check(root / "out", *stages, script=script, **(pretended | change))
    return status, text, root / "out", Path(pretended["CALLS"]).read_text("utf-8")


def test_all_stages_run_and_the_summary_comes_last(pretended: dict[str, str]) -> None:
    status, text, out, calls = run(pretended)
    assert status == 0, text
    summary = (out / "summary.txt").read_text("utf-8")
    for stage in ("build", "test", "sanitizer", "bench"):
        assert f"{stage}: passed in" in summary
        assert (out / f"{stage}.log").is_file()
    assert text.endswith(f"{summary}logs and figures: {out}\n")
    assert "architectures 9.0" in summary
    assert "    1 failed, 2 passed in 0.10s" in summary
    assert "    met: 9.00x of 3x, a layer" in summary
    assert "--device cuda" in calls
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"    {tool}: exit status 0, ========= ERROR SUMMARY" in summary


def test_a_stage_that_fails_fails_the_check_but_not_the_next_stage(
    pretended: dict[str, str],
) -> None:
    status, text, out, _ = run(pretended, FAIL="pytest")
    assert status == 1
    summary = (out / "summary.txt").read_text("utf-8")
    assert "test: FAILED in" in summary
    assert "    FAILED tests/test_x.py" in summary
    assert "bench: passed in" in summary
    assert text.endswith(f"logs and figures: {out}\n")


def test_a_build_that_fails_leaves_nothing_to_run(pretended: dict[str, str]) -> None:
    status, _, out, calls = run(pretended, FAIL="pip")
    assert status == 1
    assert "nothing else was run" in (out / "summary.txt").read_text("utf-8")
    assert "-m pytest" not in calls


def test_a_stage_alone_is_built_for_and_run(pretended: dict[str, str]) -> None:
    status, _, out, calls = run(pretended, "bench")
    assert status == 0
    assert {path.name for path in out.iterdir()} == {"build.log", "bench.log", "summary.txt"}
    assert "-m pytest" not in calls
    assert "gpu_tiles.py" in calls


def test_an_uninitialized_read_fails_the_check_where_it_is_ours(pretended: dict[str, str]) -> None:
    status, _, out, _ = run(pretended, "sanitizer", KERNEL="void fusedrnn::cuda::kernel")
    assert status == 1
    assert "    initcheck: exit status 99" in (out / "summary.txt").read_text("utf-8")


def test_the_sanitizers_meet_every_tile_and_each_kind_of_kernel_first() -> None:
    problems = list(cuda_core.core())
    indices = [int(value) for name, value, _ in problems if name == "FUSEDRNN_CUDA_TILE"]
    tiles = gpu_tiles.tiles()
    assert sorted(indices) == list(range(len(tiles)))
    kinds = {(tile.cell, tile.cluster > 1) for tile in tiles}
    assert len({(tiles[i].cell, tiles[i].cluster > 1) for i in indices[: len(kinds)]}) == len(kinds)
