"""The minimal gated unit as its users see it. That its numbers are the definition's is tested with
all other cells; here is what has no counterpart in torch.nn, which has no such layer."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import fusedrnn
from fusedrnn import MGU, MGUCell
from support.oracle import refusal


def written_out(x: Tensor, h: Tensor, weights: list[Tensor]) -> Tensor:
    """The paper's equations 1 to 3, the gate after the product, a unit and a row at a time."""
    w_ih, w_hh, b_ih, b_hh = weights
    H = h.size(1)
    out = torch.empty_like(h)
    for b in range(h.size(0)):
        for j in range(H):
            a_x = [w_ih[g * H + j] @ x[b] + b_ih[g * H + j] for g in range(2)]
            a_h = [w_hh[g * H + j] @ h[b] + b_hh[g * H + j] for g in range(2)]
            f = 1 / (1 + (-(a_x[0] + a_h[0])).exp())
            n = (a_x[1] + f * a_h[1]).tanh()
            out[b, j] = (1 - f) * h[b, j] + f * n
    return out


def test_a_step_is_the_papers() -> None:
    cell = MGUCell(3, 5, dtype=torch.float64)
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(cell(x, h), written_out(x, h, [*cell.parameters()]))


def test_a_layer_is_the_papers_step_over_time() -> None:
    layer = MGU(3, 5, dtype=torch.float64)
    x, h = torch.randn(6, 2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    output, h_n = layer(x, h[None])
    for t in range(6):
        h = written_out(x[t], h, [*layer.parameters()])
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n[0], h)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_parameters_are_named_and_drawn_as_a_grus_of_two_gates(options: dict[str, Any]) -> None:
    ours, gru = MGU(3, 50, **options), nn.GRU(3, 50, **options)
    sizes = {k: (100, *p.shape[1:]) for k, p in gru.named_parameters()}
    assert {k: tuple(p.shape) for k, p in ours.named_parameters()} == sizes
    assert all(p.abs().max() <= 50**-0.5 for p in ours.parameters())
    assert all(p.std() > 0.4 * 50**-0.5 for p in ours.parameters())
    assert [w is p for w, p in zip(ours._flat_weights, ours.parameters(), strict=True)]


def test_it_is_made_where_and_as_it_is_asked() -> None:
    module = MGU(3, 5, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    with torch.device("meta"):
        assert MGU(3, 5).weight_ih_l0.is_meta
    assert isinstance(module, nn.RNNBase)
    assert not isinstance(module, nn.GRU)
    assert repr(MGU(3, 5, 2, bidirectional=True)) == (
        "fusedrnn.MGU(3, 5, num_layers=2, bidirectional=True)"
    )
    assert repr(MGUCell(3, 5)) == "fusedrnn.MGUCell(3, 5)"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"input_size": 0}, ValueError),
        ({"hidden_size": -1}, ValueError),
        ({"num_layers": 0}, ValueError),
        ({"dropout": 2}, ValueError),
        ({"bias": 1}, TypeError),
        ({"hidden_size": 5.0}, TypeError),
        ({"proj_size": 2}, TypeError),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_as_by_torch(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        MGU(**{"input_size": 3, "hidden_size": 5} | arguments)


X, H0 = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
WRONG = {
    "1-D": (X[0, 0], None),
    "4-D": (X[None], None),
    "features": (torch.randn(4, 2, 7), None),
    "dtype": (X.double(), None),
    "no steps": (X[:0], None),
    "hx of a batch for none": (X[:, 0], H0),
    "hx of another batch": (X, H0[:, :1]),
    "hx of another size": (X, torch.randn(1, 2, 6)),
    "hx of another depth": (X, torch.randn(3, 2, 5)),
    "hx on another device": (X, H0.to("meta")),
    "two states": (X, (H0, H0)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_refused_as_by_a_gru(what: str) -> None:
    ours, grus = (refusal(partial(module, *WRONG[what])) for module in (MGU(3, 5), nn.GRU(3, 5)))
    assert ours[:2] == (grus[0], str(grus[1]).replace("GRU", "MGU"))


WRONG_STEPS = {
    "0-D": (X[0, 0, 0], None),
    "3-D": (X, None),
    "features": (torch.randn(2, 7), None),
    "hx 3-D": (X[0], H0),
    "hx of another batch": (X[0], torch.randn(4, 5)),
    "hx of another size": (X[0], torch.randn(2, 6)),
    "hx of another size, unbatched": (X[0, 0], torch.randn(6)),
}


@pytest.mark.parametrize("what", WRONG_STEPS)
def test_a_wrong_step_is_refused_as_by_a_gru_cell(what: str) -> None:
    modules = (MGUCell(3, 5), nn.GRUCell(3, 5))
    ours, grus = (refusal(partial(module, *WRONG_STEPS[what])) for module in modules)
    assert ours[:2] == (grus[0], str(grus[1]).replace("GRU", "MGU"))


def test_copies_pickles_and_state_dicts_keep_it() -> None:
    x = torch.randn(4, 2, 3)
    for module in (MGU(3, 5), MGUCell(3, 5)):
        given = x if isinstance(module, MGU) else x[0]
        expected = module(given)
        fresh = type(module)(3, 5)
        fresh.load_state_dict(module.state_dict())
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
            torch.testing.assert_close(other(given), expected, rtol=0, atol=0)


def test_it_trains() -> None:
    torch.manual_seed(0)
    module, head = MGU(2, 16), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 0.01)
    x = torch.randn(20, 32, 2)
    target = x[..., :1].cumsum(0).tanh()  # needs a memory
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (head(module(x)[0]) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_explain_lists_and_plans_it() -> None:
    model = nn.Sequential(MGU(3, 5), MGUCell(3, 5))
    assert [(layer.kind, layer.ours) for layer in fusedrnn.explain(model).layers] == [
        ("MGU", True),
        ("MGUCell", True),
    ]
    x = torch.randn(4, 2, 3)
    assert fusedrnn.explain(model[0], x).mode == "MGU"
    assert fusedrnn.explain(model[1], x[0]).mode == "MGU"
    planned = fusedrnn.explain(MGU(100, 100), torch.randn(50, 8, 100), gpu="sm_90")
    assert "block" in str(planned)
    assert "cuDNN: torch.nn has no such layer" in str(planned)


def test_to_torch_leaves_it_alone_and_says_so() -> None:
    model = nn.ModuleDict({"ours": MGU(3, 5), "theirs": fusedrnn.GRU(3, 5), "step": MGUCell(3, 5)})
    with pytest.warns(UserWarning, match="torch.nn does not have: 'ours' .MGU., 'step' .MGUCell."):
        fusedrnn.to_torch(model)
    assert type(model["ours"]) is MGU
    assert type(model["theirs"]) is nn.GRU
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(fusedrnn.convert(model)["ours"]) is MGU


def test_tools_that_need_a_class_of_torchs_are_refused_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="MGU: torch\\.nn has no class of this kind"):
        torch.jit.script(MGU(3, 5))
    module, x = MGU(3, 5), torch.randn(4, 2, 3)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_onnx_refuses_it_by_name() -> None:
    pytest.importorskip("onnxscript")
    module, x = MGU(3, 5), torch.randn(4, 2, 3)
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(module, (x,), dynamo=True)
    errors: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        errors.append(str(error))
        error = error.__cause__
    assert any("ONNX has no node for MGU" in said for said in errors)


def test_per_sample_gradients_are_each_samples_own() -> None:
    module, x = MGU(3, 5, batch_first=True), torch.randn(2, 4, 3)
    call_for_per_sample_grads(module, batch_size=2)(x)[0].square().sum().backward()
    for i in range(2):
        loss = module(x[i : i + 1])[0].square().sum()
        for p, expected in zip(
            module.parameters(), torch.autograd.grad(loss, [*module.parameters()]), strict=True
        ):
            torch.testing.assert_close(cast("Any", p).grad_sample[i], expected)
