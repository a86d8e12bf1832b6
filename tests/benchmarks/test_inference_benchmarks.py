"""The comparisons of inference with other runtimes and of several callers run, check results before
they time them, and their pages say what their files hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bfloat16, callers, peers, results
from support.paths import ROOT


def run(verb: str, out: Path) -> tuple[list[dict[str, Any]], str]:
    """What ``verb`` measured, and its page, which follows from the file."""
    command = [sys.executable, "-m", "benchmarks"]
    measure = [*command, verb, "--out", str(out), "--quick"]
    page = [*command, "page", str(out / f"{verb}.jsonl"), str(out / f"{verb}.md"), "--check"]
    for words in (measure, page):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    _, measured = results.read(out / f"{verb}.jsonl", verb)
    return measured, (out / f"{verb}.md").read_text("utf-8")


def test_peers_agree_with_ours_and_are_listed_with_their_ratios(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra bench-peers")
    measured, page = run("peers", tmp_path)
    assert len(measured) == 6
    for found in measured:
        for name in ("torch.nn", "ONNX Runtime"):
            assert found["error"][name] < 1e-4
            assert f"{found['ratio'][name][1]:.2f}x" in page


def test_callers_are_counted_together_and_listed_by_their_number(tmp_path: Path) -> None:
    measured, page = run("callers", tmp_path)
    assert [found["callers"] for found in measured] == [1, 2, 4] * 2
    for found in measured:
        assert f"| {found['ours']:.0f} | {found['torch']:.0f} | {found['ratio']:.2f}x |" in page


def test_bfloat16_is_listed_beside_float32_and_torch(tmp_path: Path) -> None:
    measured, page = run("bfloat16", tmp_path)
    assert len(measured) == 27
    for found in measured:
        assert f"| {found['over_fp32']:.2f}x | {found['over_torch']:.2f}x |" in page


@pytest.mark.parametrize("verb", [bfloat16, callers, peers])
def test_a_side_that_is_wrong_is_not_timed(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = verb.CASES[0]
    modules = type(case).modules

    def wrong(layer: Any, *setting: Any) -> tuple[Any, Any]:
        ours, theirs = modules(layer, *setting)
        with torch.no_grad():
            ours.weight_ih_l0 += 1
        return ours, theirs

    monkeypatch.setattr(type(case), "modules", wrong)
    arguments: tuple[Any, ...] = (1, 1, 0.01)
    if verb is peers:
        pytest.importorskip("onnx", reason="needs onnx, of the extra bench-peers")
        arguments = (1, ["torch.nn"], 0.1)
    with torch.inference_mode(), pytest.raises(AssertionError, match="differ"):
        verb.measure(case, *arguments)
