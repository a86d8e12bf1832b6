"""Lengths, resets and checkpoints are timed beside sides that compute the same, and what is aimed
at is said to be met or missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import cartpole, peak, results, sequence_cases, sequences, timing
from benchmarks.cases import GRADIENTS
from benchmarks.report import page
from benchmarks.report.sequences import OURS, Aim
from benchmarks.sequence_cases import ALL, SHORT, Lengths, Sequences

QUICK = ("--quick", "--threads", "1")
SMALL = [sequences.small(case) for case in ALL]


@pytest.mark.parametrize("case", {repr(c): c for c in SMALL}.values(), ids=lambda c: c.shape)
def test_every_side_computes_what_ours_does(case: Sequences) -> None:
    ours, sides = case.sides()
    found = timing.check_sides(ours, sides)
    assert set(found) == {side.name for side in sides}
    assert len(ours()) == (8 if case.step == GRADIENTS else 3) - 1  # output, h_n; x and weights
    assert {aim.side for aim in case.aims} <= set(found)


def test_lengths_are_of_every_size_and_in_no_order() -> None:
    lengths = Lengths(cell="LSTM").lengths
    assert (int(lengths.min()) >= 1, int(lengths.max())) == (True, 200)
    assert 0.4 < lengths.float().mean() / 200 < 0.6
    assert (lengths.diff() > 0).any()
    assert (lengths.diff() < 0).any()


@pytest.mark.parametrize("kind", ["lengths", "resets", "checkpoints"])
def test_a_side_that_is_wrong_is_not_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Sequences.layers

    def wrong(case: Sequences) -> tuple[Any, Any]:
        ours, theirs = layers(case)
        with torch.no_grad():
            ours.weight_ih_l0 += 1
        return ours, theirs

    monkeypatch.setattr(Sequences, "layers", wrong)
    case = next(case for case in SMALL if case.group == kind)
    with pytest.raises(AssertionError, match=r"differ from .*torch\.nn"):
        sequences.measure(case, 1, 0.01, 1)


@pytest.mark.parametrize(
    ("aim", "ratio", "said"),
    [
        (Aim("x", most=1.05), 0.96, "met: 1.042x its time, aimed at 1.05x at most, beside x"),
        (Aim("x", most=1.05), 0.95, "MISSED: 1.053x its time, aimed at 1.05x at most, beside x"),
        (Aim("x", least=5), 5.01, "met: 5.01x as fast, aimed at 5x at least, beside x"),
        (Aim("x", least=5), 4.99, "MISSED: 4.99x as fast, aimed at 5x at least, beside x"),
    ],
)
def test_an_aim_is_met_or_missed(aim: Aim, ratio: float, said: str) -> None:
    assert aim.line(ratio) == said


def test_padding_is_to_cost_what_its_steps_do() -> None:
    (aim,) = (aim for aim in Lengths(cell="GRU").aims if aim.side == sequence_cases.PADDED)
    valid = int(Lengths(cell="GRU").lengths.sum())
    assert aim.least == pytest.approx(0.8 * 200 * 64 / valid)


def test_the_page_has_a_row_a_side_and_a_line_an_aim(tmp_path: Path) -> None:
    assert sequences.main(["--out", str(tmp_path), *QUICK, "--only", "lengths,resets"]) == 0
    file = tmp_path / "sequences.jsonl"
    _, measured = results.read(file, "sequences")
    assert [len(m["ms"]) for m in measured] == [5, 4]
    written = file.with_suffix(".md").read_text("utf-8")
    assert written == page.page(file)
    for m in measured:
        for name, quartiles in m["ratio"].items():
            assert f"| {name} |" in written
            assert f"| {quartiles[1]:.2f}x ±" in written
    assert written.count("\n- met: ") + written.count("\n- MISSED: ") == 4


def test_a_step_s_memory_is_what_it_keeps_and_no_more() -> None:
    # torch.nn keeps at least six values a step and unit: four gates, c and tanh(c).
    case = replace(SHORT, cell="LSTM", T=4000, H=128, I=8)
    small = sequences.small(case)
    kept, _ = peak.of(case, small, sequence_cases.TORCH, 1)
    pieces, _ = peak.of(case, small, sequence_cases.PIECES, 1)
    unit = case.T * case.B * case.H * 4 / 2**20
    assert 6 * unit < kept < 40 * unit
    assert pieces < kept / 2


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sequences.main(["--out", "nowhere", "--only", "lenghts"])
    kinds = "lengths,resets,checkpoints,huge"
    assert f"expected some of {kinds}, got lenghts" in capsys.readouterr().err


def test_three_agents_get_the_same_rewards(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib", reason="needs sb3_contrib, of the extra test-third-party")
    assert cartpole.main(["--out", str(tmp_path), *QUICK]) == 0
    _, measured = results.read(tmp_path / "cartpole.jsonl", "cartpole")
    assert [m["name"] for m in measured] == list(cartpole.WAYS)
    assert len({(m["episodes"], m["reward"]) for m in measured}) == 1
    written = (tmp_path / "cartpole.md").read_text("utf-8")
    assert written == page.page(tmp_path / "cartpole.jsonl")


def test_an_agent_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sb3_contrib", reason="needs sb3_contrib, of the extra test-third-party")

    def wrong(agent: Any) -> None:
        for module in agent.policy.modules():
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.bias, 1.0)
                module.weight.data.neg_()

    monkeypatch.setitem(cartpole.WAYS, "wrong", wrong)
    torch.set_num_threads(1)
    with pytest.raises(AssertionError, match="rewards differ"):
        cartpole.measure(3, 64, 8)


def test_ours_is_a_side_s_name_of_its_own() -> None:
    for case in SMALL:
        names = [side.name for side in case.all_sides()]
        assert names[0] == OURS
        assert len(set(names)) == len(names)
