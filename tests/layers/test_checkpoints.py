"""checkpoint_every: no bit of a result or a gradient changes, and less is kept for backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedrnn
from support.problems import MODES, Problem, build, inputs, keywords, run

# Pieces are whole chunks, of 256 rows on a CPU: with B = 64 of four steps.
CHECKPOINTED = [
    replace(problem, mode=mode)
    for mode in MODES
    for problem in (
        Problem(T=20, B=64, H=19, L=2, hx="grad", bidirectional=True),
        Problem(T=20, B=64, H=40, lengths="some", resets="dense", reset_state="rows", states="all"),
        Problem(T=20, B=64, H=19, form="unsorted", bidirectional=True, states=True),
        Problem(T=20, B=64, H=128, hx="grad"),
        Problem(T=10, B=1, H=24),
        Problem(T=70, B=4, H=24, bidirectional=True, lengths="some"),
        Problem(T=20, B=64, H=16, dtype=torch.bfloat16, lengths="some", frozen="hh"),
    )
] + [Problem("LSTM", T=20, B=64, H=19, P=5, L=2, lengths="some", states="all", bidirectional=True)]


@pytest.mark.parametrize("problem", CHECKPOINTED, ids=str)
def test_checkpoints_change_no_bit(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(problem, "fusedrnn")
    monkeypatch.setenv("FUSEDRNN_RESERVE_MB", "0.001")
    for every in (1, 3, 7, problem.T, 200, "auto"):
        found = run(replace(problem, every=every), "fusedrnn")
        for name, value in found.items():
            there = expected[name]
            assert (value is None) == (there is None), name
            assert value is None or there is None or torch.equal(value, there), (every, name)


def saved_bytes(call: Callable[[], Any]) -> int:
    """What a call keeps for backward."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    storages = [tensor.untyped_storage() for tensor in kept]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def of_problem(problem: Problem) -> Callable[[int | str | None], int]:
    """What the problem keeps for backward with these checkpoints."""
    module, x = build(problem, fusedrnn), inputs(problem, problem.dtype)[0]
    given, _ = keywords(problem, problem.dtype)
    return lambda every: saved_bytes(lambda: module(x, **given, checkpoint_every=every))


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "MGU"])
@pytest.mark.parametrize("resets", ["none", "sparse"])
def test_checkpoints_keep_less_for_backward(
    mode: str, resets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = of_problem(Problem(mode, T=96, B=4, H=64, resets=resets))
    assert kept(None) - kept(96) > 2 * 96 * 4 * 64 * 4  # two float32 of each unit and step
    assert kept(96) <= kept(8) <= kept(2) < kept(None)
    if mode == "LSTM":  # c is kept, h is the output
        assert kept(8) < kept(2)
    monkeypatch.setenv("FUSEDRNN_RESERVE_MB", "0.01")
    assert kept("auto") < kept(None)
    monkeypatch.setenv("FUSEDRNN_RESERVE_MB", "100")
    assert kept("auto") == kept(None)
    monkeypatch.delenv("FUSEDRNN_RESERVE_MB")
    assert kept("auto") == kept(None)


def test_a_cell_that_goes_back_by_its_output_has_nothing_to_save() -> None:
    kept = of_problem(Problem("RNN_TANH", T=96, B=4, H=64))
    assert kept(8) == kept(None)


@pytest.mark.parametrize("given", ["x", "0", "-1", "1e99"])
def test_a_budget_that_is_no_number_of_megabytes_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = fusedrnn.GRU(3, 5)
    monkeypatch.setenv("FUSEDRNN_RESERVE_MB", given)
    module(torch.randn(4, 2, 3))
    with pytest.raises(ValueError, match=f"FUSEDRNN_RESERVE_MB must be a number .*, got {given}"):
        module(torch.randn(4, 2, 3), checkpoint_every="auto")
