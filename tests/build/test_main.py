"""``python -m fusedrnn``: the report that an issue asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from fusedrnn import _C, LSTM, __main__, __version__, _binary


def report(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn"],
        cwd="/",
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    return report(FUSEDRNN_DATA="/nowhere", FUSEDRNN_CPU_ISA="baseline")


def test_the_report_says_what_a_bug_report_needs(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    info, lines = _binary.build_info(), done.stdout.splitlines()
    found = {line[:11].strip(): line[11:] for line in reversed(lines)}
    assert found["fusedrnn"] == f"{__version__}, C++ sources {info['sources']}"
    assert found["torch"] == f"{torch.__version__}, built against {info['torch']}"
    assert found["binary"] == info["file"]
    assert found["compiler"] == info["compiler"]
    assert re.fullmatch(r"3\.\d+\.\S+, built with 3\.\d+\.\S+", found["python"])
    assert found["kernels"] == f"baseline, of {', '.join(_C.cpu_isas())}"
    assert found["setting"] == "FUSEDRNN_CPU_ISA=baseline"
    assert re.fullmatch(r"\d+ of \d+ processors", found["threads"])
    assert found["data"] == "FUSEDRNN_DATA: /nowhere (not there)"
    assert found["check"].startswith("cpu: LSTM, forward and backward, agrees with torch.nn")


def test_the_report_says_why_there_is_no_cuda_half(done: subprocess.CompletedProcess[str]) -> None:
    info, said = _binary.build_info(), done.stdout
    if info["cuda"]:
        assert f"CUDA half  CUDA {info['cuda_toolkit']} for {info['cuda_arches']}" in said
    else:
        assert f"CUDA half  not built: {info['cuda_missing']}" in said
    assert ("FUSEDRNN_CUDA=1" in said) == (not info["cuda"] and torch.version.cuda is not None)


def test_a_wrong_result_is_exit_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(LSTM):
        def forward(self, input: torch.Tensor, hx: None = None) -> object:  # type: ignore[override]
            output, state = super().forward(input, hx)
            return output + 1e-3, state

    monkeypatch.setattr(__main__, "LSTM", Wrong)
    assert __main__.main() == 1
    assert "DIFFERS from torch.nn" in capsys.readouterr().out
