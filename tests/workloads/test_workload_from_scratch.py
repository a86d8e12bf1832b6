"""From scratch: equal weights and batches for all, and what the record says of losses and times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.workloads import common, data, from_scratch, time_machine
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.from_scratch_summary import summary
from benchmarks.workloads.written_out import WrittenOut, layer_state

CELLS = pytest.mark.parametrize("cell", common.CELLS)
CONFIG = replace(from_scratch.CONFIG, hidden=12, batch=4, steps=9)
TEXT = data.synthetic_text(500)  # 13 updates an epoch
ALL = ("scratch", *common.IMPLEMENTATIONS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # torch.nn's many small operators crawl on a busy machine


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line with a small network and text."""
    monkeypatch.setattr(from_scratch, "CONFIG", replace(CONFIG, epochs=3))
    monkeypatch.setattr(data, "synthetic_text", lambda *_: TEXT)


def run(out: Path, *options: str) -> dict[str, Any]:
    """The JSON record of a synthetic run."""
    from_scratch.main(["--synthetic", "--log-every=1", f"--out={out}", *options])
    found: dict[str, Any] = json.loads(next(out.glob("*.json")).read_text())
    return found


def losses(found: dict[str, Any]) -> dict[str, list[float]]:
    return {r["impl"]: [epoch["loss"] for epoch in r["epochs"]] for r in found["runs"]}


def record(
    seconds: dict[str, float], later: dict[str, list[float]], double: float = 0.0
) -> dict[str, Any]:
    """A record of one LSTM: seconds and losses of the epochs by implementation, float64 losses of
    the layers a share `double` from the written-out cell's."""
    entry = {"scratch": [2.0, 1.0], **{impl: [2.0 * (1 + 1e-7), 1.0] for impl in seconds}}
    exact = {impl: [2.0, 1.0 + double * (impl != "scratch")] for impl in seconds}
    tensors = {
        name: list(p.shape) for name, p in WrittenOut("lstm", 28, CONFIG.hidden).named_parameters()
    }
    return {
        "options": {"synthetic": False, "impl": [i for i in seconds if i != "scratch"]},
        "config": {"hidden": 12, "batch": 4, "steps": 9, "epochs": len(later["scratch"])},
        "compared": [
            {
                "cell": "lstm",
                "seed": 0,
                "tensors": tensors,
                "losses": {"float32": entry | {"scratch": [2.0, 1.0]}, "float64": exact},
            }
        ],
        "runs": [
            {
                "cell": "lstm",
                "impl": impl,
                "seed": 0,
                "epochs": [
                    {"loss": loss, "targets": 8, "seconds": time, "figures": {}}
                    for loss in later[impl]
                ],
            }
            for impl, time in seconds.items()
        ],
    }


SECONDS = {"scratch": 0.6, "fusedrnn": 0.2, "torch": 0.3}
TOGETHER = {impl: [2.0, 1.0, 0.5] for impl in ALL}


@CELLS
def test_first_losses_are_the_same_for_equal_weights(cell: str) -> None:
    models = from_scratch.build_models(cell, common.IMPLEMENTATIONS, 28, CONFIG)
    scratch = WrittenOut(cell, 28, CONFIG.hidden)
    with torch.no_grad():  # a deviation of a hundredth is too little for the recurrence to show
        for p in scratch.parameters():
            p.normal_(0.0, 0.2)
    models["scratch"] = scratch
    for impl in common.IMPLEMENTATIONS:
        models[impl].load_state_dict(layer_state(scratch))
    found = from_scratch.compare(models, TEXT.tokens, CONFIG, seed=0, count=20)
    for dtype, rel in (("float32", 1e-4), ("float64", 1e-9)):
        expected = found[dtype]["scratch"]
        assert len(set(expected)) == 20
        for impl in common.IMPLEMENTATIONS:
            assert found[dtype][impl] == pytest.approx(expected, rel=rel)


def test_models_are_built_with_the_weights_of_the_written_out_one() -> None:
    torch.manual_seed(0)
    models = from_scratch.build_models("gru", common.IMPLEMENTATIONS, 28, CONFIG)
    x = torch.randint(28, (CONFIG.batch, CONFIG.steps))
    expected = models["scratch"](x)[0]
    for impl in common.IMPLEMENTATIONS:
        torch.testing.assert_close(models[impl](x)[0], expected)
        trained = sum(p.requires_grad for p in models[impl].parameters())
        assert trained == 5  # of weight_ih, weight_hh and both biases, and linear's two
        assert common.count_parameters(models[impl]) == common.count_parameters(models["scratch"])


def test_comparing_leaves_the_models_as_they_were() -> None:
    torch.manual_seed(0)
    models = from_scratch.build_models("rnn", ["torch"], 28, CONFIG)
    before = {impl: [p.clone() for p in m.parameters()] for impl, m in models.items()}
    from_scratch.compare(models, TEXT.tokens, CONFIG, seed=0, count=2)
    for impl, model in models.items():
        for p, kept in zip(model.parameters(), before[impl], strict=True):
            assert torch.equal(p, kept)


def test_all_are_trained_on_the_same_batches_whatever_is_beside_them(
    tmp_path: Path, small: None
) -> None:
    both = losses(run(tmp_path / "both", "--cell", "lstm", "--impl", "fusedrnn", "torch"))
    assert set(both) == set(ALL)
    for found in both.values():
        assert len(found) == 3
        assert found == pytest.approx(both["scratch"], rel=1e-4)
    alone = losses(run(tmp_path / "alone", "--cell", "lstm", "--impl", "torch"))
    assert set(alone) == {"scratch", "torch"}
    assert alone["torch"] == both["torch"]


def test_a_run_shows_and_writes_what_the_summary_is_made_from(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path, "--quick", "--epochs=2", "--cell", "rnn", "lstm", "--seed", "1", "2")
    printed = [line.removeprefix("synthetic | ") for line in capsys.readouterr().out.splitlines()]
    assert summary(found).console() in "\n".join(printed)
    assert any("in 14 tensors: W_xi [28, 12], W_hi [12, 12], b_i [12]," in s for s in printed)
    assert [(r["cell"], r["impl"], r["seed"]) for r in found["runs"]] == [
        (cell, impl, seed)
        for cell in ("rnn", "lstm")
        for seed in (1, 2)
        for impl in ("scratch", "fusedrnn")
    ]
    assert all(len(c["losses"]["float64"]["scratch"]) == 8 for c in found["compared"])
    stem = "from_scratch-fusedrnn-quick-synthetic"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{stem}.json", f"{stem}.png", f"{stem}-drift.png"}


def test_a_resumed_run_is_the_uninterrupted_one_and_changes_implementation(
    tmp_path: Path, small: None
) -> None:
    saved = ["--cell", "gru", "--checkpoints", str(tmp_path / "saved")]
    first = losses(run(tmp_path / "a", "--impl", "fusedrnn", "--epochs=1", *saved))
    second = losses(run(tmp_path / "b", "--impl", "torch", *saved, "--resume"))
    whole = losses(run(tmp_path / "c", "--impl", "torch", "--cell", "gru"))
    assert second["scratch"] == whole["scratch"]
    assert second["torch"][:1] == first["fusedrnn"]
    assert second["torch"] == pytest.approx(whole["torch"], rel=1e-4)


def test_a_checkpoint_of_other_sizes_is_refused(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = ["--cell", "rnn", "--impl", "torch", "--checkpoints", str(tmp_path / "saved")]
    run(tmp_path, "--epochs=1", *saved)
    monkeypatch.setattr(from_scratch, "CONFIG", replace(CONFIG, hidden=13))
    with pytest.raises(WorkloadError, match="expected hidden 13, got 12"):
        run(tmp_path, *saved, "--resume")


def test_too_short_a_text_is_an_error(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(TEXT, tokens=TEXT.tokens[:30])
    monkeypatch.setattr(data, "synthetic_text", lambda *_: short)
    with pytest.raises(WorkloadError, match="too little data for one batch"):
        run(tmp_path, "--cell", "rnn", "--impl", "torch")


def test_the_summary_compares_the_times() -> None:
    found = summary(record(SECONDS, TOGETHER))
    assert found.tables[0].rows == [("LSTM", "0.600", "0.200", "0.300", "3.00x", "2.00x")]
    assert found.remarks[0] == (
        "LSTM, written out: an epoch takes 3.00x the time of fusedrnn's layer and 2.00x the time "
        "of torch.nn's layer."
    )
    ((system, ours, theirs, ratio),) = found.headline
    assert system.endswith("written out, perplexity 1.65, 3.00x fusedrnn's time")
    assert (ours, theirs, ratio) == ("perplexity 1.65", "perplexity 1.65", "1.50x")


def test_the_summary_of_one_implementation_leaves_out_the_other() -> None:
    found = summary(record({"scratch": 0.6, "torch": 0.3}, TOGETHER))
    assert found.tables[0].rows == [("LSTM", "0.600", "0.300", "2.00x")]
    assert found.headline[0][1:] == ("", "perplexity 1.65", "")
    assert "fusedrnn" not in found.console()


@pytest.mark.parametrize(
    ("double", "verdict"),
    [(1e-15, "rounding, not another formula"), (1e-6, "the two do not compute the same")],
)
def test_losses_apart_in_float64_are_not_called_rounding(double: float, verdict: str) -> None:
    found = summary(record(SECONDS, TOGETHER, double))
    assert found.remarks[1].endswith(f"{verdict}.")
    assert found.tables[1].rows[0] == ("LSTM", "float32", "2.000000", "1.000000", *["1.0e-07"] * 2)


@pytest.mark.parametrize(
    ("last", "expected"), [(0.5001, "for all 3 epochs"), (0.51, "for 2 epochs")]
)
def test_the_summary_says_how_long_losses_stay_together(last: float, expected: str) -> None:
    later = TOGETHER | {"torch": [2.0, 1.0, last]}
    assert summary(record(SECONDS, later)).remarks[2].endswith(f"{expected}.")


def test_the_summary_counts_sixteen_tensors_of_the_lstm() -> None:
    rows = summary(record(SECONDS, TOGETHER)).tables[3].rows
    assert rows[1] == (
        "LSTM",
        "W_xf [28, 12], W_hf [12, 12], b_f [12]",
        "rows 12 to 23 of weight_ih, weight_hh, bias_ih",
    )
    assert rows[-2] == ("LSTM", "H [4, 12], C [4, 12]: not trained", "h_0, c_0")
    assert rows[-1][1] == "16 tensors, 14 of them trained"


def test_the_task_is_that_of_time_machine() -> None:
    sizes = ("hidden", "batch", "steps", "learning_rate", "clip")
    for size in sizes:
        assert getattr(from_scratch.CONFIG, size) == getattr(time_machine.CONFIG, size)
