"""Sequence to sequence: forcing, packing, greedy decoding, resuming, and what its record says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.driver import training
from examples.driver.checkpoint import Checkpoints
from examples.driver.errors import WorkloadError
from examples.seq2seq import dates as task
from examples.seq2seq import model as seq2seq
from examples.seq2seq.dates import START

CELLS = pytest.mark.parametrize("cell", seq2seq.CELLS)

SMALL = replace(
    seq2seq.CONFIG, train=96, validation=24, test=40, embedding=8, hidden=16, batch=32, fall=2
)


@pytest.fixture(scope="module")
def dates() -> seq2seq.Data:
    return seq2seq.load(SMALL)


@CELLS
def test_all_steps_at_once_are_the_steps_one_by_one(
    cell: str, impl: str, dates: seq2seq.Data
) -> None:
    model = seq2seq.build_model(cell, impl, SMALL)
    fed = torch.full((1, len(dates.test)), START)
    state = model.encode(dates.test)
    steps = []
    for truth in dates.test.y.t():
        logits, state = model.decode(fed, state)
        steps.append(logits)
        fed = truth[None]
    torch.testing.assert_close(torch.cat(steps), model(dates.test))


@CELLS
def test_padding_does_not_reach_the_encoders_state(
    cell: str, impl: str, dates: seq2seq.Data
) -> None:
    model = seq2seq.build_model(cell, impl, SMALL)
    whole = model.encode(dates.test)
    states = (whole,) if isinstance(whole, Tensor) else whole
    for i in range(0, len(dates.test), 7):
        alone = model.encode(dates.test.take(torch.tensor([i])))
        expected = tuple(state[:, i : i + 1] for state in states)
        torch.testing.assert_close((alone,) if isinstance(alone, Tensor) else alone, expected)


def true_share(ratio: float, rows: task.Rows, monkeypatch: pytest.MonkeyPatch) -> float:
    """The share of true symbols of those that a new model's decoder is fed after START."""
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
    return (fed[1:] == truth).double().mean().item()


def test_the_ratio_is_the_share_of_true_symbols_fed(
    dates: seq2seq.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_chance = true_share(0.0, dates.train, monkeypatch)
    assert by_chance < 0.3
    for ratio, error in ((0.5, 0.08), (0.9, 0.08), (1.0, 0.0)):
        share = true_share(ratio, dates.train, monkeypatch)
        assert share == pytest.approx(ratio + (1 - ratio) * by_chance, abs=error)


def test_a_scheduled_ratio_falls_from_1_to_0_and_stays_there() -> None:
    ratios = [seq2seq.forcing_ratio("scheduled", epoch, SMALL) for epoch in range(4)]
    assert ratios == [1.0, 0.5, 0.0, 0.0]
    assert [seq2seq.forcing_ratio("0.3", epoch, SMALL) for epoch in (0, 3)] == [0.3, 0.3]


def test_padding_of_the_targets_is_no_part_of_the_loss(dates: seq2seq.Data) -> None:
    rows = dates.train.take(torch.tensor([i for i, n in enumerate(dates.train.targets) if n < 30]))
    wide = replace(rows, y=torch.nn.functional.pad(rows.y, (0, 5)))
    losses = []
    for part in (rows, wide):
        torch.manual_seed(0)
        model = seq2seq.build_model("lstm", "torch", SMALL)
        losses.append(seq2seq.train_step(model, torch.optim.SGD(model.parameters()), part).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(math.log(len(task.SYMBOLS)), rel=0.1)


class Scripted(seq2seq.Translator):
    """Writes `script` whatever it reads; the state counts the steps."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(torch.nn.GRU, len(task.SYMBOLS), SMALL)
        self.script = script
        self.fed: list[int] = []

    def encode(self, rows: task.Rows) -> Tensor:
        return torch.zeros(1, len(rows), 1)

    def decode(self, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.fed.append(int(symbols[0, 0]))
        written = torch.full_like(symbols, self.script[int(state[0, 0, 0])])
        return torch.nn.functional.one_hot(written, len(task.SYMBOLS)).float(), state + 1


def test_greedy_decoding_feeds_back_its_own_symbols_and_ends_at_the_first_end(
    dates: seq2seq.Data,
) -> None:
    script = [*task.symbols("1998-03"), task.END, *task.symbols("-05")]
    model = Scripted(script)
    written = model.write(dates.test, limit=11).t().tolist()
    assert [task.text(row) for row in written] == ["1998-03"] * len(dates.test)
    assert model.fed == [START, *script[:10]]


def test_exact_match_asks_for_every_symbol_and_is_told_by_form() -> None:
    isos = ("1998-03", "1998-05", "1998-03-05", "1998-03-06")
    forms = ("march 1998", "march 1998", "5-mar-98", "5-mar-98")
    pairs = [task.Pair("", iso, form) for iso, form in zip(isos, forms, strict=True)]
    found = ["1998-03", "1998-05", "1998-03", "1998-03-06-"]
    assert seq2seq.exact(found, pairs) == 0.5
    assert seq2seq.by_form(found, pairs) == {"5-mar-98": 0.0, "march 1998": 1.0}


def test_shares_count_rows_symbols_and_the_dates_of_each_place() -> None:
    rows = ("1998-03 1998-04", "2001-W09 2001-W10")
    pairs = [task.Pair("x", row, "") for row in rows]
    found = task.rows(pairs)
    y = found.y.t()
    right = torch.ones_like(y, dtype=torch.bool)
    right[y == task.PAD] = False  # padding is not asked for
    assert seq2seq.shares(right, found, 2) == seq2seq.Shares(1.0, 1.0, [1.0, 1.0])
    right[7, 0] = False  # the space after the first month
    assert seq2seq.shares(right, found, 2) == seq2seq.Shares(0.5, 33 / 34, [0.5, 1.0])
    right[17, 1] = False  # the END of the weeks
    assert seq2seq.shares(right, found, 2) == seq2seq.Shares(0.0, 32 / 34, [0.5, 0.5])


class Copier(seq2seq.Translator):
    """Writes `first`, then what it was fed a date before, then END: `length` dates in all."""

    def __init__(self, first: str, length: int = 2) -> None:
        super().__init__(torch.nn.GRU, len(task.SYMBOLS), SMALL)
        self.first = task.symbols(first)
        self.length = length
        self.fed: list[Tensor] = []

    def encode(self, rows: task.Rows) -> Tensor:
        self.fed.clear()
        return torch.zeros(1, len(rows), 1)

    def decode(self, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
        written = []
        width = len(self.first)
        for fed in symbols:
            t = len(self.fed)
            self.fed.append(fed)
            own = self.first[t] if t < width else task.END
            copied = width <= t < self.length * width - 1
            written.append(self.fed[t - width + 1] if copied else torch.full_like(fed, own))
        return torch.nn.functional.one_hot(torch.stack(written), len(task.SYMBOLS)), state


def test_fed_its_own_symbols_a_copier_repeats_its_mistake_and_fed_the_truth_it_does_not() -> None:
    rows = task.rows([task.Pair("x", "1998-03 1998-03", "")] * 3)
    truth, own = seq2seq.exposure(Copier("1998-04 "), rows, 2)
    assert truth == seq2seq.Shares(0.0, 15 / 16, [0.0, 1.0])
    assert own == seq2seq.Shares(0.0, 14 / 16, [0.0, 0.0])


class Reader(Copier):
    """Knows the whole row, `first`, whatever it is fed."""


def test_after_a_slip_a_copier_repeats_the_wrong_digit_and_a_reader_does_not() -> None:
    row = "1998-03 1998-03 1998-03"
    rows = task.rows([task.Pair("x", row, ""), task.Pair("x", "1998-03 1998-03 1998-04", "")])
    assert seq2seq.after_slip(Copier("1998-03 ", 3), rows, 3) == [0.0, 0.0]
    assert seq2seq.after_slip(Reader(row, 1), rows, 3) == [1.0, 1.0]
    assert seq2seq.after_slip(Copier("1998-04 ", 3), rows, 3) == []  # no row is right before


def test_a_slip_is_the_next_digit_at_one_place_alone_and_is_fed() -> None:
    row = "1998-39 1998-39"
    rows = task.rows([task.Pair("x", row, "")])
    written = Copier("1998-39 ").write(rows, 16, torch.tensor([6]))
    assert task.text(written[:, 0].tolist()) == "1998-30 1998-30"
    with_slip = Reader(row, 1).write(rows, 16, torch.tensor([6]))
    assert task.text(with_slip[:, 0].tolist()) == "1998-30 1998-39"


def test_what_is_written_after_an_end_is_not_right() -> None:
    rows = task.rows([task.Pair("x", "1998-03 1998-04", "")])
    script = [*task.symbols("1998-03"), task.END, *task.symbols("1998-04"), task.END]
    _, own = seq2seq.exposure(Scripted(script), rows, 2)
    assert own == seq2seq.Shares(0.0, 7 / 16, [0.0, 0.0])


def test_an_exact_match_is_the_same_fed_the_truth_or_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(SMALL, row=1, hidden=32, batch=8, learning_rate=0.02, decay=1.0)
    pairs, *_ = task.pairs((24, 1, 1), 1, seed=0)
    rows = task.rows(pairs)
    run = seq2seq.new_run("gru", "torch", "1.0", seq2seq.Data(rows, rows, rows, pairs), config)
    assert isinstance(run.model, seq2seq.Translator)
    training.fit([run], 40, lambda *_: None)
    truth, own = seq2seq.exposure(run.model, rows, 1)
    found = seq2seq.translations(run.model, rows)
    assert 0 < own.rows < 1
    assert truth.rows == own.rows == seq2seq.exact(found, pairs)
    assert truth.symbols > own.symbols
    monkeypatch.setattr(seq2seq, "PART", 7)  # rows that are decoded together change nothing
    assert seq2seq.exposure(run.model, rows, 1) == (truth, own)
    assert seq2seq.translations(run.model, rows) == found


@CELLS
@pytest.mark.parametrize("forcing", ["1.0", "0.0"])
def test_it_learns_some_dates_by_heart(impl: str, cell: str, forcing: str) -> None:
    config = replace(SMALL, row=1, hidden=32, batch=8, learning_rate=0.02, decay=1.0)
    pairs, *_ = task.pairs((8, 1, 1), 1, seed=0)
    rows = task.rows(pairs)
    run = seq2seq.new_run(cell, impl, forcing, seq2seq.Data(rows, rows, rows, pairs), config)
    after, run.after = run.after, None  # decoded before and after, not every epoch
    assert after is not None
    assert after()["exact"] == 0
    training.fit([run], 160, lambda *_: None)
    figures = after()
    assert 0.75 <= figures["exact"] <= figures["symbols"]


def test_a_checkpoint_of_another_forcing_is_refused(dates: seq2seq.Data, tmp_path: Path) -> None:
    other, run = (seq2seq.new_run("gru", "torch", of, dates, SMALL) for of in ("0.5", "1.0"))
    training.fit([other], 1, lambda *_: None, checkpoints=Checkpoints(tmp_path, resume=False))
    saved = next(tmp_path.iterdir())
    assert saved.name == "seq2seq-gru-forcing0.5-seed0.pt"
    saved.rename(tmp_path / "seq2seq-gru-forcing1.0-seed0.pt")
    with pytest.raises(WorkloadError, match=r"expected forcing 1\.0, got 0\.5"):
        training.fit([run], 1, lambda *_: None, checkpoints=Checkpoints(tmp_path, resume=True))
