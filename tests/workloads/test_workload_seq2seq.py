"""Sequence to sequence: forcing, packing, greedy decoding, resuming, and what its record says."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import common, seq2seq, seq2seq_task, training
from benchmarks.workloads.checkpoint import Checkpoints
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.seq2seq_summary import remarks, summary
from benchmarks.workloads.seq2seq_task import START

IMPLEMENTATIONS = pytest.mark.parametrize("impl", common.IMPLEMENTATIONS)
CELLS = pytest.mark.parametrize("cell", seq2seq.CELLS)

SMALL = replace(seq2seq.CONFIG, train=96, test=40, embedding=8, hidden=16, batch=32, fall=2)


@pytest.fixture(scope="module")
def dates() -> seq2seq.Data:
    return seq2seq.load(SMALL)


def silent(*_: Any) -> None: ...


@IMPLEMENTATIONS
@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
def test_models_have_the_expected_number_of_parameters(impl: str, cell: str, gates: int) -> None:
    V, E, H = len(seq2seq_task.SYMBOLS), 32, 128
    expected = 2 * (V * E + gates * H * (E + H + 2)) + V * (H + 1)
    assert common.count_parameters(seq2seq.build_model(cell, impl)) == expected


@IMPLEMENTATIONS
@CELLS
def test_all_steps_at_once_are_the_steps_one_by_one(
    cell: str, impl: str, dates: seq2seq.Data
) -> None:
    torch.manual_seed(0)
    model = seq2seq.build_model(cell, impl, SMALL)
    fed = torch.full((1, len(dates.test)), START)
    state = model.encode(dates.test)
    steps = []
    for truth in dates.test.y.t():
        logits, state = model.decode(fed, state)
        steps.append(logits)
        fed = truth[None]
    torch.testing.assert_close(torch.cat(steps), model(dates.test))


@IMPLEMENTATIONS
@CELLS
def test_padding_does_not_reach_the_encoders_state(
    cell: str, impl: str, dates: seq2seq.Data
) -> None:
    torch.manual_seed(0)
    model = seq2seq.build_model(cell, impl, SMALL)
    whole = model.encode(dates.test)
    for i in range(0, len(dates.test), 7):
        alone = model.encode(dates.test.take(torch.tensor([i])))
        pairs = [(whole, alone)] if isinstance(whole, Tensor) else zip(whole, alone, strict=True)
        for a, b in pairs:
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            torch.testing.assert_close(a[:, i : i + 1], b)


def fed_symbols(ratio: float, rows: seq2seq_task.Rows, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """[T - 1, B] what a new model's decoder is fed after START; -1 where it is not the truth."""
    torch.manual_seed(0)
    model = seq2seq.build_model("gru", "torch", SMALL)
    seen: list[Tensor] = []
    decode = model.decode

    def spy(symbols: Tensor, state: Any) -> Any:
        seen.append(symbols)
        return decode(symbols, state)

    monkeypatch.setattr(model, "decode", spy)
    with torch.no_grad():
        logits = model(rows, ratio, torch.Generator().manual_seed(0))
    fed = torch.cat(seen)
    truth, own = rows.y.t()[:-1], logits.argmax(-1)[:-1]
    assert (fed[0] == START).all()
    assert ((fed[1:] == truth) | (fed[1:] == own)).all()
    return torch.where(fed[1:] == truth, fed[1:], -1)


def test_the_ratio_is_the_share_of_true_symbols_fed(
    dates: seq2seq.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dates.train
    by_chance = (fed_symbols(0.0, rows, monkeypatch) >= 0).double().mean().item()
    assert by_chance < 0.3
    for ratio in (0.5, 0.9, 1.0):
        share = (fed_symbols(ratio, rows, monkeypatch) >= 0).double().mean().item()
        assert share == pytest.approx(ratio + (1 - ratio) * by_chance, abs=0.08)
    assert share == 1


def test_a_scheduled_ratio_falls_from_1_to_0_and_stays_there() -> None:
    ratios = [seq2seq.forcing_ratio("scheduled", epoch, SMALL) for epoch in range(4)]
    assert ratios == [1.0, 0.5, 0.0, 0.0]
    assert [seq2seq.forcing_ratio("0.3", epoch, SMALL) for epoch in (0, 3)] == [0.3, 0.3]


def test_padding_of_the_targets_is_no_part_of_the_loss(dates: seq2seq.Data) -> None:
    rows = dates.train.take(torch.tensor([i for i, n in enumerate(dates.train.targets) if n < 11]))
    wide = replace(rows, y=torch.nn.functional.pad(rows.y, (0, 5)))
    losses = []
    for part in (rows, wide):
        torch.manual_seed(0)
        model = seq2seq.build_model("lstm", "torch", SMALL)
        losses.append(seq2seq.train_step(model, torch.optim.SGD(model.parameters()), part).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(math.log(len(seq2seq_task.SYMBOLS)), rel=0.1)


class Scripted(seq2seq.Translator):
    """Writes `script` whatever it reads; the state counts the steps."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(torch.nn.GRU, len(seq2seq_task.SYMBOLS), SMALL)
        self.script = script
        self.fed: list[int] = []

    def encode(self, rows: seq2seq_task.Rows) -> Tensor:
        return torch.zeros(1, len(rows), 1)

    def decode(self, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.fed.append(int(symbols[0, 0]))
        written = torch.full_like(symbols, self.script[int(state[0, 0, 0])])
        return torch.nn.functional.one_hot(written, len(seq2seq_task.SYMBOLS)).float(), state + 1


def test_greedy_decoding_feeds_back_its_own_symbols_and_ends_at_the_first_end(
    dates: seq2seq.Data,
) -> None:
    script = [*seq2seq_task.symbols("1998-03"), seq2seq_task.END, *seq2seq_task.symbols("-05")]
    model = Scripted(script)
    found = model.translate(dates.test, limit=11)
    assert found == ["1998-03"] * len(dates.test)
    assert model.fed == [START, *script[:10]]


def test_exact_match_asks_for_every_symbol_and_is_told_by_form() -> None:
    pairs = [
        seq2seq_task.Pair("march 1998", "1998-03", "march 1998"),
        seq2seq_task.Pair("may 1998", "1998-05", "march 1998"),
        seq2seq_task.Pair("5-mar-98", "1998-03-05", "5-mar-98"),
        seq2seq_task.Pair("6-mar-98", "1998-03-06", "5-mar-98"),
    ]
    found = ["1998-03", "1998-05", "1998-03", "1998-03-06-"]
    assert seq2seq.exact(found, pairs) == 0.5
    assert seq2seq.by_form(found, pairs) == {"5-mar-98": 0.0, "march 1998": 1.0}


@IMPLEMENTATIONS
@CELLS
@pytest.mark.parametrize("forcing", ["1.0", "0.0"])
def test_it_learns_some_dates_by_heart(impl: str, cell: str, forcing: str) -> None:
    config = replace(SMALL, hidden=32, batch=8, learning_rate=0.02, decay=1.0)
    pairs, _ = seq2seq_task.pairs(8, 1, seed=0)
    rows = seq2seq_task.rows(pairs)
    run = seq2seq.new_run(cell, impl, forcing, seq2seq.Data(rows, rows, pairs), config)
    after, run.after = run.after, None  # decoded before and after, not every epoch
    assert after is not None
    assert after() == {"exact": 0.0}
    training.fit([run], 100, silent)
    assert after()["exact"] >= 0.75


@CELLS
def test_both_implementations_give_the_same_losses_when_forced(
    cell: str, dates: seq2seq.Data
) -> None:
    runs = [seq2seq.new_run(cell, impl, "1.0", dates, SMALL) for impl in common.IMPLEMENTATIONS]
    training.fit(runs, 3, silent)
    ours, theirs = ([epoch.loss for epoch in run.history] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]


def test_a_run_is_the_same_alone_and_in_turn_with_others(dates: seq2seq.Data) -> None:
    def losses(*forcings: str) -> list[float]:
        runs = [seq2seq.new_run("gru", "torch", forcing, dates, SMALL) for forcing in forcings]
        training.fit(runs, 2, silent)
        return [epoch.loss for epoch in runs[-1].history]

    assert losses("0.5") == losses("1.0", "0.0", "0.5")


@pytest.mark.parametrize("forcing", ["scheduled", "0.5"])
@pytest.mark.parametrize("first", common.IMPLEMENTATIONS)
def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(
    first: str, forcing: str, dates: seq2seq.Data, tmp_path: Path
) -> None:
    whole = seq2seq.new_run("lstm", "fusedrnn", forcing, dates, SMALL)
    training.fit([whole], 4, silent)
    begun = seq2seq.new_run("lstm", first, forcing, dates, SMALL)
    training.fit([begun], 2, silent, checkpoints=Checkpoints(tmp_path, resume=False))
    going_on = seq2seq.new_run("lstm", "fusedrnn", forcing, dates, SMALL)
    training.fit([going_on], 4, silent, checkpoints=Checkpoints(tmp_path, resume=True))
    rel = 0 if first == "fusedrnn" else 1e-3
    for a, b in zip(whole.history, going_on.history, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=rel)


def test_a_checkpoint_of_another_forcing_is_refused(dates: seq2seq.Data, tmp_path: Path) -> None:
    other, run = (
        seq2seq.new_run("gru", "torch", forcing, dates, SMALL) for forcing in ("0.5", "1.0")
    )
    training.fit([other], 1, silent, checkpoints=Checkpoints(tmp_path, resume=False))
    saved = next(tmp_path.iterdir())
    assert saved.name == "seq2seq-gru-forcing0.5-seed0.pt"
    saved.rename(tmp_path / "seq2seq-gru-forcing1.0-seed0.pt")
    with pytest.raises(WorkloadError, match=r"expected forcing 1\.0, got 0\.5"):
        training.fit([run], 1, silent, checkpoints=Checkpoints(tmp_path, resume=True))


def command(*options: str) -> int:
    """The exit status of seq2seq.py, whose --quick is a second or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq2seq, "QUICK", replace(SMALL, epochs=2))
        patch.setattr(sys, "argv", ["seq2seq.py", *options])
        with pytest.raises(SystemExit) as e:
            common.run(seq2seq.main)
    assert isinstance(e.value.code, int)
    return e.value.code


def test_the_command_writes_its_record_and_plots_and_prints_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impls = ("--impl", "fusedrnn", "torch")
    assert command("--quick", *impls, "--out", str(tmp_path / "out")) == 0
    stem = "seq2seq-fusedrnn-torch-quick"
    expected = [f"{stem}-epochs.png", f"{stem}.json", f"{stem}.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected
    record = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
    made = [(run["cell"], run["forcing"], run["impl"]) for run in record["runs"]]
    assert made == [
        *itertools.product(seq2seq.CELLS, seq2seq.FORCINGS, common.IMPLEMENTATIONS),
    ]
    assert all(len(run["epochs"]) == 2 for run in record["runs"])
    out = capsys.readouterr().out
    assert summary(record).console() in out
    for part in ("generated dates, seed 0, 96 pairs to train, 40 to test", "torch / fusedrnn"):
        assert part in out


@pytest.mark.parametrize("forcing", ["-0.1", "1.5", "nan", "often"])
def test_a_forcing_that_is_no_ratio_is_refused(
    forcing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--out", str(tmp_path), f"--forcing={forcing}") == 2
    assert "argument --forcing" in capsys.readouterr().err


def a_record(shares: dict[str, float], impls: Sequence[str] = ("fusedrnn",)) -> dict[str, Any]:
    """An LSTM's record with these exact matches by forcing; torch takes twice the time, and any
    forcing but 1.0 three times."""
    return {
        "config": {"train": 100, "test": 400, "epochs": 1},
        "options": {
            "impl": [*impls],
            "cell": ["lstm"],
            "forcing": [*shares],
            "seed": [0],
            "synthetic": False,
        },
        "runs": [
            {
                "cell": "lstm",
                "forcing": forcing,
                "impl": impl,
                "by_form": {"march 1998": share, "3/1998": share / 2},
                "examples": [["may 1970", "1970-05", "1970-05"], ["5/1970", "1970-05", "1970-50"]],
                "epochs": [
                    {
                        "loss": 0.1,
                        "targets": 10,
                        "seconds": (1 + (impl == "torch")) * (1 if forcing == "1.0" else 3),
                        "figures": {"exact": share},
                    }
                ],
            }
            for forcing, share in shares.items()
            for impl in impls
        ],
    }


def test_a_remark_names_a_difference_only_beyond_its_standard_error() -> None:
    said = remarks(a_record({"1.0": 0.9, "0.5": 0.92, "0.0": 0.5}))
    assert len(said) == 3
    assert "0.9000 to 0.9200 (+0.0200, standard error 0.0202, no clear difference)" in said[0]
    assert "0.9000 to 0.5000 (-0.4000, standard error 0.0292);" in said[1]
    assert said[1].endswith("an epoch takes 3.00 times as long.")
    assert '"3/1998", 0.387 exact' in said[2]


def test_a_time_ratio_is_shown_only_where_both_were_trained_in_turn() -> None:
    alone, both = (
        summary(a_record({"1.0": 0.9, "scheduled": 0.8}, impls))
        for impls in (("fusedrnn",), ("fusedrnn", "torch"))
    )
    assert [row[1:] for row in alone.headline] == [("0.800", "", "")]  # of the last ratio
    assert [row[1:] for row in both.headline] == [("0.800", "0.800", "2.00x")]
    assert "torch" not in alone.console()
