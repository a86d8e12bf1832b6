"""The gradient flow: against cells unrolled by hand, and a short run with its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.workloads import common, data, gradient_flow, training
from benchmarks.workloads.errors import Diverged, WorkloadError
from benchmarks.workloads.gradient_flow import CONFIG, build_model, flow, windows
from benchmarks.workloads.gradient_flow_summary import distances, factor, summary

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
SMALL = ["--synthetic", "--quick", "--epochs", "2", "--steps", "12", "--threads", "1"]


@pytest.mark.parametrize("impl", common.IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_flow_is_that_of_a_cell_unrolled_by_hand(cell: str, impl: str) -> None:
    torch.manual_seed(0)
    model = build_model(cell, impl, 7, 1.5, gradient_flow.Config(hidden=5))
    T, B = 9, 3
    x, y = torch.randint(0, 7, (B, T)), torch.randint(0, 7, (B,))
    step: Any = CELLS[cell](7, 5).double()
    step.load_state_dict({k[: -len("_l0")]: v for k, v in model.rnn.state_dict().items()})
    state: Any = None
    states: list[tuple[Tensor, ...]] = []
    for t in range(T):
        state = step(F.one_hot(x[:, t], 7).double(), state)
        # Copies, so that what comes back through h_t is no part of c_t's gradient.
        states.append(tuple(s.clone() for s in (state if cell == "lstm" else (state,))))
        state = states[-1] if cell == "lstm" else states[-1][0]
    linear = model.linear.double()
    loss = F.cross_entropy(linear(states[-1][0]), y, reduction="sum")
    found = flow(model.float(), x, y)
    assert list(found) == (["h", "c"] if cell == "lstm" else ["h"])
    assert [len(norms) for norms in found.values()] == [T, T - 1][: len(found)]
    for i, norms in enumerate(found.values()):
        for t, norm in enumerate(norms):
            (expected,) = torch.autograd.grad(loss, states[t][i], retain_graph=True)
            torch.testing.assert_close(norm, expected.norm(dim=1).mean(), rtol=1e-10, atol=0)


def test_measuring_leaves_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    model = build_model("gru", "torch", 7, 1.0, gradient_flow.Config(hidden=5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flow(model, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_large_start_multiplies_the_recurrent_weights_alone() -> None:
    models = []
    for gain in (1.0, 3.0):
        torch.manual_seed(0)
        models.append(dict(build_model("lstm", "torch", 7, gain, CONFIG).named_parameters()))
    for name, usual in models[0].items():
        expected = 3 * usual if name == "rnn.weight_hh_l0" else usual
        torch.testing.assert_close(models[1][name], expected)


@pytest.mark.parametrize("T", [3, 4, 20, 21, 37, 400])
def test_distances_reach_from_the_last_step_to_the_first(T: int) -> None:
    found = distances(T)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, T - 1)


@pytest.mark.parametrize("T", [3, 5, 37, 400])
def test_the_factor_of_a_geometric_series_is_its_own(T: int) -> None:
    norms = [0.5 * 0.9**d for d in distances(T)]
    assert factor(T, norms) == pytest.approx(0.9)
    assert factor(T, norms[1:]) == pytest.approx(0.9)  # c's begin at 1


def test_windows_are_stretches_of_the_text_with_the_character_after_each() -> None:
    tokens = torch.arange(500)
    x, y = windows(tokens, CONFIG)
    assert x.shape == (CONFIG.batch, CONFIG.steps)
    assert (x.diff(dim=1) == 1).all()
    assert torch.equal(y, x[:, -1] + 1)


def test_a_text_too_short_for_a_stretch_is_refused() -> None:
    with pytest.raises(WorkloadError, match=r"more than 400 characters \(--steps\), got 400"):
        windows(torch.arange(400), CONFIG)


def run(tmp_path: Path, *options: str) -> dict[str, Any]:
    gradient_flow.main([*SMALL, "--out", str(tmp_path / "out"), *options])
    (path,) = (tmp_path / "out").glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_a_run_of_both_writes_one_record_and_three_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(tmp_path, "--impl", "fusedrnn", "torch")
    stem = "gradient_flow-fusedrnn-torch-quick-synthetic"
    names = [f"{stem}.json", *(f"{stem}{end}.png" for end in ("", "-norms", "-trained"))]
    assert sorted(f.name for f in (tmp_path / "out").glob("*")) == sorted(names)
    assert record["data"] == data.SYNTHETIC
    assert len(record["initial"]) == 3 * 2 * 2
    assert len(record["runs"]) == 3 * 2 * 2 * 2
    found = summary(record)
    ((_, ours, theirs, ratio),) = found.headline
    assert ours == theirs  # to the digits shown
    assert ratio.endswith("x")
    assert any("differ by at most" in remark for remark in found.remarks)
    out = capsys.readouterr().out
    assert all(line.startswith("synthetic | ") for line in out.splitlines())
    assert found.tables[0].title in out


def test_one_implementation_has_no_ratio(tmp_path: Path) -> None:
    record = run(tmp_path, "--impl", "torch", "--cell", "rnn")
    found = summary(record)
    assert [(row[1], row[3]) for row in found.headline] == [("", "")]
    assert {row[-1] for row in found.tables[1].rows} == {""}


def test_nan_without_clipping_is_a_result_and_with_it_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "free"
    fit = training.fit

    def diverging(runs: Sequence[training.Run], *arguments: Any, **options: Any) -> None:
        if runs[0].name.startswith(f"rnn-large-{ends}"):
            raise Diverged("loss is nan in update 2 of epoch 1 (...)")
        fit(runs, *arguments, **options)

    monkeypatch.setattr(training, "fit", diverging)
    record = run(tmp_path, "--impl", "torch", "--cell", "rnn")
    found = summary(record)
    assert found.tables[1].rows[-1][:4] == ("RNN", "large", "free", "nan in epoch 1")
    assert any("without clipping: nan in epoch 1; the same with" in r for r in found.remarks)
    ends = "clipped"
    with pytest.raises(Diverged):
        run(tmp_path, "--impl", "torch", "--cell", "rnn")


def test_without_clipping_a_norm_that_overflows_does_not_change_the_gradients() -> None:
    text = data.synthetic_text(500)
    run = gradient_flow.build_run(
        *("rnn", "torch", "usual", "free", 0, text, gradient_flow.Config(hidden=4, train_steps=5)),
        device=torch.device("cpu"),
    )
    bias = run.model.get_parameter("linear.bias")
    bias.register_hook(lambda gradient: gradient * 1e25)  # its square is no float32
    training.fit([run], 1, lambda *_: None)
    assert bias.isfinite().all()
    assert 1e22 < run.history[0].figures["largest_norm"] < 1e26


def test_the_summary_says_what_an_explosion_did_without_clipping(tmp_path: Path) -> None:
    record = run(tmp_path, "--impl", "fusedrnn", "torch", "--cell", "rnn")
    for r in record["runs"]:
        for epoch in r["epochs"]:
            epoch["loss"] = 2.0 if r["clipping"] == "clipped" else 3.5
            exploded = r["start"] == "large"
            epoch["figures"] = {"largest_norm": 2e29 * exploded, "above_clip": 0.5 * exploded}
    for r in record["initial"]:
        norms = r["norms"]["h"]
        r["norms"]["h"] = [norms[0] * (1 + 0.5 * (r["impl"] == "torch")), *norms[1:]]
    remarks = "\n".join(summary(record).remarks)
    assert (
        "RNN, large start, without clipping: a norm of up to 2e+29 and a last loss of 3.500; "
        "the same with clipping ends at a loss of 2.000." in remarks
    )
    assert "No update was clipped for: RNN usual start." in remarks
    assert "torch.nn's differ by at most 0.3 in rnn-usual-seed0, 0.3 in rnn-large" in remarks


def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    options = ("--impl", "torch", "--cell", "gru", "--checkpoints", str(tmp_path / "kept"))
    run(tmp_path, *options, "--epochs", "1")
    resumed = run(tmp_path, *options, "--resume", "--epochs", "2")
    whole = run(tmp_path, *options[:4], "--epochs", "2")
    for a, b in zip(resumed["runs"], whole["runs"], strict=True):
        assert [e["loss"] for e in a["epochs"]] == [e["loss"] for e in b["epochs"]]
        assert a["trained"] == b["trained"]
