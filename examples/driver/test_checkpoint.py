"""Saved runs: to the bit as if never interrupted, between implementations, and never half lost."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import data
from examples.driver import training
from examples.driver.checkpoint import Checkpoints
from examples.driver.errors import CorruptFile, WorkloadError
from examples.driver.layers import IMPLEMENTATIONS
from examples.reuters import model as reuters
from examples.time_machine import model as time_machine

Make = Callable[..., training.Run]

SIZES = reuters.Config(vocabulary=data.NUM_WORDS, embedding=8, hidden=16, batch=16)
ROWS = reuters.split(data.synthetic_reuters(60), 9)
TEXT = data.synthetic_text(1_500)


def goes_on(directory: Path) -> Checkpoints:
    return Checkpoints(directory, resume=True)


def newswires(impl: str = "fusedrnn", cell: str = "lstm", **changes: Any) -> training.Run:
    """A small Reuters run: dropout, Adam, shuffled batches."""
    return reuters.new_run(cell, impl, ROWS, replace(SIZES, **changes))


def characters(impl: str = "fusedrnn") -> training.Run:
    """A small Time Machine run: random starts, and a score on a held-out tail."""
    config = time_machine.Config(hidden=16, batch=4, steps=7, held_out=0.1)
    return time_machine.new_run("first", "gru", impl, "random", 0, TEXT, config)


RUNS = pytest.mark.parametrize("make", [newswires, characters])


def fit(run: training.Run, epochs: int, files: Checkpoints | None = None) -> training.Run:
    training.fit([run], epochs, lambda *_: None, checkpoints=files)
    return run


def outcome(run: training.Run) -> tuple[list[Any], list[torch.Tensor]]:
    figures = [(e.loss, e.targets, e.figures) for e in run.history]
    states = run.optimizer.state_dict()["state"].values()
    moments = [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]
    return figures, [*run.model.state_dict().values(), *moments]


def assert_equal_to_the_bit(found: training.Run, expected: training.Run) -> None:
    (figures, tensors), (their_figures, their_tensors) = outcome(found), outcome(expected)
    assert figures == their_figures
    assert len(tensors) == len(their_tensors)
    assert all(map(torch.equal, tensors, their_tensors))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The file of a Reuters run after one epoch."""
    files = Checkpoints(tmp_path, resume=False)
    return files.path(fit(newswires(), 1, files))


@RUNS
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    make: Make, impl: str, tmp_path: Path
) -> None:
    fit(make(impl), 1, Checkpoints(tmp_path, resume=False))
    torch.rand(3)  # whatever the process draws in between
    resumed = fit(make(impl), 3, goes_on(tmp_path))
    assert_equal_to_the_bit(resumed, fit(make(impl), 3))


@RUNS
def test_what_fusedrnn_began_goes_on_under_torch_and_back(make: Make, tmp_path: Path) -> None:
    fit(make("fusedrnn"), 1, Checkpoints(tmp_path, resume=False))
    for epochs, impl in enumerate(("torch", "fusedrnn"), 2):
        files, run = goes_on(tmp_path), make(impl)
        before = torch.load(files.path(run), weights_only=True)["model"]
        files.load(run)
        assert all(torch.equal(run.model.state_dict()[name], before[name]) for name in before)
        fit(run, epochs, files)
        assert len(run.history) == epochs
    alone = fit(make("torch"), 3)
    assert [e.loss for e in run.history] == pytest.approx([e.loss for e in alone.history], rel=1e-4)


def test_a_loaded_model_is_torchs_own(saved: Path) -> None:
    model = reuters.build_model("lstm", "torch", SIZES)
    model.load_state_dict(torch.load(saved, weights_only=True)["model"])
    assert type(model.rnn) is torch.nn.LSTM
    ours = newswires()
    goes_on(saved.parent).load(ours)
    model.eval()
    ours.model.eval()
    torch.testing.assert_close(ours.model(ROWS.x_test), model(ROWS.x_test))


def test_both_implementations_together_have_files_of_their_own(tmp_path: Path) -> None:
    pair = [newswires(impl) for impl in IMPLEMENTATIONS]
    files = Checkpoints(tmp_path, resume=False, per_impl=True)
    training.fit(pair, 1, lambda *_: None, checkpoints=files)
    names = [f"reuters-lstm-T9-seed0-{impl}.pt" for impl in IMPLEMENTATIONS]
    assert sorted(f.name for f in tmp_path.iterdir()) == names


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    finished = fit(newswires(), 2, Checkpoints(tmp_path, resume=False))
    again = newswires()
    again.updates = lambda: pytest.fail("an epoch was trained")
    assert_equal_to_the_bit(fit(again, 2, goes_on(tmp_path)), finished)


def test_a_run_of_more_epochs_than_asked_for_is_refused(saved: Path) -> None:
    fit(newswires(), 3, goes_on(saved.parent))
    with pytest.raises(WorkloadError, match="trained for 3 epochs, got --epochs 2: give at least"):
        fit(newswires(), 2, goes_on(saved.parent))


def test_without_resume_a_file_that_is_there_is_not_overwritten(saved: Path) -> None:
    body = saved.read_bytes()
    with pytest.raises(WorkloadError, match="would be lost: --resume goes on from it"):
        fit(newswires(), 1, Checkpoints(saved.parent, resume=False))
    assert saved.read_bytes() == body


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: newswires(cell="rnn"), "expected cell rnn, got lstm"),
        (lambda: newswires(hidden=32), "expected hidden 32, got 16"),
        (lambda: newswires(learning_rate=0.5), "expected learning_rate 0.5, got 0.001"),
        (characters, "expected workload time_machine, got reuters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_training_is_refused(
    saved: Path, other: Make, difference: str
) -> None:
    run, files = other(), goes_on(saved.parent)
    saved.replace(files.path(run))
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(WorkloadError, match=f"{difference}; give the options it was made with"):
        fit(run, 2, files)
    assert all(map(torch.equal, before, run.model.parameters()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "expected .*, got weight;"),
        ([1, 2], "expected .*, got list;"),
        (SIZES, "it holds more than tensors and numbers"),
    ],
    ids=["weights", "list", "object"],
)
def test_a_file_of_torch_that_is_none_is_refused(saved: Path, content: Any, message: str) -> None:
    torch.save(content, saved)
    with pytest.raises(WorkloadError, match=f"is no checkpoint of a workload: {message}"):
        fit(newswires(), 2, goes_on(saved.parent))


def flipped(body: bytes) -> bytes:
    """`body` with one bit of its largest tensor changed."""
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"<html>", lambda body: body[: len(body) // 2], flipped],
    ids=["empty", "html", "cut", "one bit"],
)
def test_a_damaged_checkpoint_is_refused(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CorruptFile, match=r"is corrupt: .*; delete the file"):
        fit(newswires(), 2, goes_on(saved.parent))


def test_a_write_that_fails_leaves_the_last_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = saved.read_bytes()

    def full(file: Path, _: bytes) -> int:
        file.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WorkloadError, match=r"cannot write .*: No space left on device"):
        fit(newswires(), 2, goes_on(saved.parent))
    assert saved.read_bytes() == body
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (math.nan, 1, "loss is nan in update 1 of epoch 2"),
        (KeyboardInterrupt(), 130, "reuters: interrupted, "),
    ],
    ids=["nan", "Ctrl-C"],
)
def test_a_command_that_ends_badly_keeps_the_last_epoch_and_goes_on_from_it(
    end: float | KeyboardInterrupt,
    status: int,
    message: str,
    train: Callable[..., int],
    fails: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def options(name: str) -> tuple[str, ...]:
        places = ("--checkpoints", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out"))
        return ("reuters", "--synthetic", "--cell", "rnn", "--steps", "6", "--epochs", "2", *places)

    true_step, updates = reuters.train_step, itertools.count()

    def step(*arguments: Any) -> torch.Tensor:
        if next(updates) < 2:  # an epoch has two
            return true_step(*arguments)
        if isinstance(end, float):
            return torch.tensor(end)
        raise end

    monkeypatch.setattr(reuters, "train_step", step)
    error = fails(*options("broken"), status=status)
    assert message in error
    assert "keeps 1 of the runs, after epoch 1; the same command with --resume goes on" in error
    assert [f.name for f in (tmp_path / "broken").iterdir()] == ["reuters-rnn-T6-seed0.pt"]
    assert list((tmp_path / "broken-out").iterdir()) == []

    monkeypatch.setattr(reuters, "train_step", true_step)
    assert train(*options("broken"), "--resume") == train(*options("whole")) == 0
    files = [tmp_path / name / "reuters-rnn-T6-seed0.pt" for name in ("broken", "whole")]
    resumed, whole = (torch.load(file, weights_only=True) for file in files)
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)
    assert [e["loss"] for e in resumed["history"]] == [e["loss"] for e in whole["history"]]
