"""The gradient flow: against cells unrolled by hand, and a short run with its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import data
from examples.driver import training
from examples.driver.errors import Diverged, WorkloadError
from examples.gradient_flow import model as gradient_flow
from examples.gradient_flow.gates import STARTS, Start
from examples.gradient_flow.model import CONFIG, build_model, distances, flow, windows
from examples.gradient_flow.workload import WORKLOAD, difference, factor

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def test_the_flow_is_that_of_a_cell_unrolled_by_hand(cell: str, impl: str) -> None:
    model = build_model(cell, impl, 7, Start(gain=1.5), gradient_flow.Config(hidden=5))
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
    assert list(found) == (["h", "c", "path"] if cell == "lstm" else ["h"])
    assert [len(norms) for norms in found.values()] == [T, T - 1, T - 1][: len(found)]
    found.pop("path", None)  # test_gates.py has it
    for i, norms in enumerate(found.values()):
        for t, norm in enumerate(norms):
            (expected,) = torch.autograd.grad(loss, states[t][i], retain_graph=True)
            torch.testing.assert_close(norm, expected.norm(dim=1).mean(), rtol=1e-10, atol=0)


def test_measuring_leaves_the_model_as_it_is() -> None:
    model = build_model("gru", "torch", 7, Start(), gradient_flow.Config(hidden=5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flow(model, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_large_start_multiplies_the_recurrent_weights_alone() -> None:
    usual = build_model("lstm", "torch", 7, STARTS["usual"], CONFIG).state_dict()
    torch.manual_seed(0)
    large = build_model("lstm", "torch", 7, STARTS["large"], CONFIG).state_dict()
    usual["rnn.weight_hh_l0"] *= 3
    torch.testing.assert_close(large, usual)


@pytest.mark.parametrize("T", [3, 4, 5, 20, 21, 37, 400])
def test_distances_reach_to_the_first_step_and_the_factor_of_a_geometric_series_is_its_own(
    T: int,
) -> None:
    found = distances(T)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, T - 1)
    norms = [0.5 * 0.9**d for d in found]
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


def test_nan_without_clipping_is_a_result_and_with_it_an_error(
    record: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "free"
    fit = training.fit

    def diverging(runs: Sequence[training.Run], *arguments: Any, **options: Any) -> None:
        if runs[0].name.startswith(f"rnn-large-{ends}"):
            raise Diverged("loss is nan in update 2 of epoch 1 (...)")
        fit(runs, *arguments, **options)

    monkeypatch.setattr(training, "fit", diverging)
    found = WORKLOAD.summarise(record("gradient_flow", "--impl", "torch", "--cell", "rnn"))
    assert found.tables[1].rows[-1][:3] == ("RNN, large start", "free", "nan in epoch 1")
    assert any("without clipping: nan in epoch 1; the same with" in r for r in found.remarks)
    ends = "clipped"
    error = fails("gradient_flow", "--synthetic", "--impl", "torch", "--cell", "rnn")
    assert "loss is nan in update 2" in error


def test_without_clipping_a_norm_that_overflows_does_not_change_the_gradients() -> None:
    text, config = data.synthetic_text(500), gradient_flow.Config(hidden=4, train_steps=5)
    run = gradient_flow.new_run("rnn", "torch", "usual", "free", 0, text, config)
    bias = run.model.get_parameter("linear.bias")
    bias.register_hook(lambda gradient: gradient * 1e25)  # its square is no float32
    training.fit([run], 1, lambda *_: None)
    assert bias.isfinite().all()
    assert 1e22 < run.history[0].figures["largest_norm"] < 1e26


def test_the_summary_says_what_an_explosion_did_without_clipping(record: Any) -> None:
    found = record("gradient_flow", "--impl", "fusedrnn", "torch", "--cell", "rnn")
    for r in found["runs"]:
        exploded = r["start"] == "large"
        figures = {"largest_norm": 2e29 * exploded, "above_clip": 0.5 * exploded}
        loss = 2.0 if r["clipping"] == "clipped" else 3.5
        r["epochs"] = [training.Epoch(loss, 8, 1.0, figures)] * 3
    for r in found["initial"][1::2]:  # torch's
        h = r["norms"]["h"]
        r["apart"] = difference({"h": h}, {"h": [1.5 * h[0], *h[1:]]})
    remarks = "\n".join(WORKLOAD.summarise(found).remarks)
    assert (
        "RNN, large start, without clipping: a norm of up to 2e+29 and a last loss of 3.500; "
        "the same with clipping ends at a loss of 2.000." in remarks
    )
    assert "No update was clipped for: RNN." in remarks
    assert "torch.nn's differ by at most 0.3 in rnn-usual-seed0, 0.3 in rnn-large" in remarks


def made_up(shares: dict[str, float], T: int = 101) -> dict[str, Any]:
    """A record of LSTMs whose gradients fall geometrically to the share that their start has."""
    initial = []
    for start, share in shares.items():
        h = [share ** (d / (T - 1)) for d in distances(T)]
        c = h[1:]
        norms = {"h": h, "c": c, "path": [value**2 for value in c]}
        about = {"cell": "lstm", "start": start, "seed": 0, "impl": "torch"}
        initial.append({**about, "norms": norms})
    config = {"steps": T, "epochs": 1, "clip": 1.0}
    options = {"impl": ["torch"], "seed": [0], "cell": ["lstm"]}
    return {"config": config, "options": options, "initial": initial, "runs": []}


def test_remarks_say_of_each_model_whether_its_gradient_is_lost() -> None:
    found = WORKLOAD.summarise(made_up({"usual": 1e-20, "forget5": 0.2, "large": 1e20}))
    remarks = "\n".join(found.remarks)
    assert "LSTM: every step back multiplies the gradient by 0.631, it vanishes: h_1" in remarks
    assert "forget bias 5: every step back multiplies the gradient by 0.984, it reaches" in remarks
    assert "large start: every step back multiplies the gradient by 1.585, it explodes" in remarks
    path = "LSTM: the forget gates alone multiply c's gradient by 0.398 a step; the way back "
    assert f"{path}through h and the recurrent weights adds to it, together 0.631." in remarks
    assert [row[0] for row in found.tables[1].rows] == ["LSTM", "LSTM, forget bias 5"]


def test_no_picture_has_more_than_six_lines_and_the_gates_product_is_in_one(record: Any) -> None:
    charts = WORKLOAD.draw(record("gradient_flow", "--impl", "torch"))
    lines = {chart.suffix: [*chart.series] for chart in charts}
    assert max(map(len, lines.values())) <= 6
    assert lines[""] == ["RNN", "GRU", "LSTM", "LSTM, forget bias 1", "LSTM, forget bias 5"]
    pairs = [f"bias {b}, {what}" for b in (0, 1, 5) for what in ("product of f", "dL/dc_t")]
    assert lines["-path"] == pairs
    reached = next(chart for chart in charts if not chart.suffix).series
    assert all(values[0] == 1 for _, values in reached.values() if isinstance(values, list))
