"""Both command lines: a short run of each, its files, and every way it can end badly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.workloads import common, reuters, time_machine
from benchmarks.workloads.errors import WorkloadError

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., int]

# A second or two: one epoch of few rows.
SMALL: dict[ModuleType, list[str]] = {
    reuters: ["--epochs", "1", "--limit", "70", "--steps", "8", "12"],
    time_machine: ["--epochs", "1", "--log-every", "1", "--corpus", "first"],
}
PART = {reuters: "-first70", time_machine: ""}  # in the results' names
PLOTS = {reuters: ("accuracy", "loss"), time_machine: ("first",)}
WORKLOADS = pytest.mark.parametrize("workload", SMALL, ids=["reuters", "time_machine"])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(workload, *options): the exit status of a small run that writes to tmp_path/out."""

    def run(workload: ModuleType, *options: str) -> int:
        name = f"{workload.__name__.rsplit('.', 1)[-1]}.py"
        out = ["--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [name, *SMALL[workload], *out, *options])
        with pytest.raises(SystemExit) as e:
            common.run(workload.main)
        assert isinstance(e.value.code, int)
        return e.value.code

    return run


def written(tmp_path: Path) -> list[str]:
    return sorted(f.name for f in (tmp_path / "out").glob("*"))


@WORKLOADS
@pytest.mark.parametrize("impl", common.IMPLEMENTATIONS)
def test_a_synthetic_run_says_so_in_every_line_and_file(
    workload: ModuleType, impl: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workload, "--synthetic", "--impl", impl) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    assert all(line.startswith("synthetic |") for line in lines)
    name = workload.__name__.rsplit(".", 1)[-1]
    stem = f"{name}-{impl}{PART[workload]}-synthetic"
    plots = [f"{stem}-{plot}.png" for plot in PLOTS[workload]]
    assert written(tmp_path) == sorted([f"{stem}.json", *plots])
    record = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
    assert record["data"] == "synthetic"
    assert record["options"]["impl"] == [impl]
    assert len(record["runs"]) == {"reuters": 4, "time_machine": 6}[name]
    assert all(len(r["epochs"]) == 1 for r in record["runs"])
    for plot in plots:
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")


def test_reuters_shows_the_newswire_the_counts_and_the_table(
    run: Run, newswires: Any, tmp_path: Path, publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("REUTERS", newswires.keras_bytes())
    index = json.dumps({f"w{rank}": rank for rank in range(1, 12_000)}).encode()
    publish("REUTERS_WORDS", index)
    (tmp_path / "reuters.npz").write_bytes(newswires.keras_bytes())
    (tmp_path / "reuters_word_index.json").write_bytes(index)
    assert run(reuters, "--impl", "torch", "--data-dir", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "synthetic" not in out
    for part in ("8 newswires to train, 3 to test", "first newswire (", "1,351,982", "1,550,126"):
        assert part in out
    assert "After 1 epochs (one seed)" in out
    first = [line.split()[:3] for line in out.splitlines()]
    for model in (["RNN", "8"], ["RNN", "12"], ["LSTM", "8"], ["LSTM", "12"]):
        assert [*model, "torch"] in first
    assert "Always answering the most frequent topic scores" in out


@WORKLOADS
def test_both_implementations_are_trained_in_turn_and_compared(
    workload: ModuleType, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workload, "--synthetic", "--impl", "fusedrnn", "torch", "--epochs", "2") == 0
    out = capsys.readouterr().out
    epochs = [line.split()[2] for line in out.splitlines() if "  epoch " in line]
    assert epochs == ["fusedrnn", "torch"] * (len(epochs) // 2)
    name = workload.__name__.rsplit(".", 1)[-1]
    stem = f"{name}-fusedrnn-torch{PART[workload]}-synthetic"
    record = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
    assert [r["impl"] for r in record["runs"]] == ["fusedrnn", "torch"] * (len(record["runs"]) // 2)
    for ours, theirs in zip(record["runs"][::2], record["runs"][1::2], strict=True):
        for mine, other in zip(ours["epochs"], theirs["epochs"], strict=True):
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
    found = workload.summary(record)
    assert all(ratio.endswith("x") for *_, ratio in found.headline)


@WORKLOADS
def test_one_implementation_alone_gets_no_ratio(
    workload: ModuleType, run: Run, tmp_path: Path
) -> None:
    assert run(workload, "--synthetic", "--impl", "torch", "--cell", "rnn", "--seed", "3", "4") == 0
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert sorted({r["seed"] for r in record["runs"]}) == [3, 4]
    found = workload.summary(record)
    assert {ours for _, ours, _, _ in found.headline} == {""}
    assert {ratio for *_, ratio in found.headline} == {""}
    assert all("±" in theirs for _, _, theirs, _ in found.headline)


def test_the_whole_text_is_scored_on_its_held_out_tail(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--synthetic", "--impl", "torch", "--cell", "rnn", "--quick", "--corpus", "whole")
    assert run(time_machine, *options) == 0
    record = json.loads(next((tmp_path / "out").glob("*-quick-synthetic.json")).read_text())
    assert record["config"]["whole"]["held_out"] == 0.1
    assert all(1 < r["epochs"][0]["figures"]["held_out"] < 28 for r in record["runs"])
    assert "on what it never saw" in capsys.readouterr().out


def test_time_machine_prints_perplexity_speed_and_text(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--synthetic", "--impl", "torch", "--cell", "gru", "--sampling", "random")
    assert run(time_machine, *options) == 0
    lines = [line.removeprefix("synthetic | ") for line in capsys.readouterr().out.splitlines()]
    assert any("epoch 1  perplexity " in line and "tokens/s" in line for line in lines)
    for prefix in time_machine.PREFIXES:
        assert any(line.startswith(prefix) and len(line) > len(prefix) for line in lines)


@WORKLOADS
def test_the_same_seed_gives_the_same_losses(
    workload: ModuleType, run: Run, tmp_path: Path
) -> None:
    losses = []
    for seed in ("1", "1", "2"):
        assert run(workload, "--synthetic", "--impl", "torch", "--cell", "rnn", "--seed", seed) == 0
        record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
        losses.append([r["epochs"][0]["loss"] for r in record["runs"]])
    assert losses[0] == losses[1] != losses[2]


@WORKLOADS
def test_without_data_the_run_ends_in_one_line_naming_the_places(
    workload: ModuleType, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workload, "--impl", "torch") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("--data-dir", "FUSEDRNN_DATA", "../shared/data", "cache", "http", "--synthetic"):
        assert part in error
    assert written(tmp_path) == []


@WORKLOADS
@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (lambda: torch.tensor(float("nan")), 1, "loss is nan in update 1 of epoch 1"),
        (lambda: torch.tensor(float("inf")), 1, "loss is inf in update 1 of epoch 1"),
        (KeyboardInterrupt, 130, "interrupted, nothing was written"),
    ],
    ids=["nan", "inf", "Ctrl-C"],
)
def test_a_run_that_ends_badly_writes_nothing(
    workload: ModuleType,
    end: Callable[[], Any],
    status: int,
    message: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def step(*_: Any) -> Any:
        outcome = end()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome if workload is reuters else (outcome, None)

    monkeypatch.setattr(workload, "train_step", step)
    assert run(workload, "--synthetic", "--impl", "torch") == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert written(tmp_path) == []


@WORKLOADS
def test_an_unwritable_out_is_found_before_training(
    workload: ModuleType, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(workload, "--synthetic", "--impl", "torch", "--out", str(tmp_path / "file")) == 1
    captured = capsys.readouterr()
    assert "cannot write to --out" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@WORKLOADS
@pytest.mark.parametrize(
    "options",
    [
        ["--device", "nonsense"],
        ["--epochs", "0"],
        ["--threads", "-1"],
        ["--impl", "other"],
        ["--cell", "other"],
        pytest.param(
            ["--device", "cuda"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_is_refused(
    workload: ModuleType, options: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workload, *options) == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_a_missing_fusedrnn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "fusedrnn", None)
    with pytest.raises(WorkloadError, match=r"pip install \. or use --impl torch"):
        common.layer_class("lstm", "fusedrnn")


@WORKLOADS
@pytest.mark.parametrize("style", ["file", "module"])
def test_it_runs_as_a_file_and_as_a_module(workload: ModuleType, style: str) -> None:
    name = workload.__name__
    command = [f"{name.replace('.', '/')}.py"] if style == "file" else ["-m", name]
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in ("--impl", "--device", "--seed", "--epochs", "--data-dir", "--synthetic"):
        assert option in done.stdout
