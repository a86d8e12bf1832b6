"""explain() tells what would run, per layer, and depends on what the choice depends on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import _C


def test_plan_names_kernel_instruction_set_threads_blocking_and_reason() -> None:
    torch.set_num_threads(2)
    plan = fusedrnn.explain(fusedrnn.LSTM(28, 256), torch.randn(35, 32, 28))
    (layer,) = plan.layers
    assert (layer.T, layer.B, layer.I, layer.H, layer.P, layer.D) == (35, 32, 28, 256, 0, 1)
    assert layer.device == "cpu"
    assert layer.isa == _C.cpu_isa()
    assert layer.threads == 2
    text = str(plan)
    for word in ("LSTM float32", layer.kernel, layer.isa, "threads", layer.panel, layer.reason):
        assert word in text
    for candidate, reason in layer.rejected:
        assert candidate in text
        assert reason in text


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_each_layer_has_a_plan_and_equal_ones_are_printed_once(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 8, 4, bidirectional=True)
    plan = fusedrnn.explain(module, torch.randn(5, 2, 3))
    assert [layer.I for layer in plan.layers] == [3, 16, 16, 16]
    assert "layer 0:" in str(plan)
    assert "layers 1-3:" in str(plan)


def test_plan_reads_the_size_from_every_form_of_input() -> None:
    def sizes(module: nn.Module, input: object) -> tuple[int, int]:
        layer = fusedrnn.explain(module, input).layers[0]  # type: ignore[arg-type]
        return layer.T, layer.B

    assert sizes(fusedrnn.GRU(3, 4), torch.randn(5, 2, 3)) == (5, 2)
    assert sizes(fusedrnn.GRU(3, 4, batch_first=True), torch.randn(5, 2, 3)) == (2, 5)
    assert sizes(fusedrnn.GRU(3, 4, batch_first=True), torch.randn(5, 3)) == (5, 1)
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    assert sizes(fusedrnn.GRU(3, 4), packed) == (4, 2)
    assert fusedrnn.explain(fusedrnn.GRU(3, 4), packed).packed
    assert sizes(fusedrnn.GRUCell(3, 4), torch.randn(7, 3)) == (1, 7)
    assert sizes(fusedrnn.RNNCell(3, 4), torch.randn(3)) == (1, 1)


def test_projection_widens_no_layer_above() -> None:
    plan = fusedrnn.explain(fusedrnn.LSTM(3, 8, 2, proj_size=2), torch.randn(5, 2, 3))
    assert [(layer.I, layer.P) for layer in plan.layers] == [(3, 2), (2, 2)]
    assert "P2" in str(plan)


def test_memory_for_backward_is_planned_only_where_gradients_are_kept() -> None:
    module, x = fusedrnn.LSTM(3, 8), torch.randn(5, 2, 3)
    assert fusedrnn.explain(module, x).layers[0].reserve_bytes > 0
    with torch.no_grad():
        plan = fusedrnn.explain(module, x)
    assert not plan.training
    assert plan.layers[0].reserve_bytes == 0
    module.requires_grad_(False)
    assert not fusedrnn.explain(module, x).training
    h = torch.zeros(1, 2, 8)
    assert fusedrnn.explain(module, x, (h, h.clone().requires_grad_())).training


def test_plan_follows_dtype_and_threads() -> None:
    module, x = fusedrnn.RNN(3, 64, nonlinearity="relu").double(), torch.randn(5, 16, 3).double()
    torch.set_num_threads(1)
    plan = fusedrnn.explain(module, x)
    assert plan.mode == "RNN_RELU"
    assert plan.dtype == "float64"
    assert plan.layers[0].threads == 1


def test_torch_modules_are_explained_by_what_would_replace_them() -> None:
    x = torch.randn(5, 2, 3)
    assert str(fusedrnn.explain(nn.GRU(3, 4), x)) == str(fusedrnn.explain(fusedrnn.GRU(3, 4), x))


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="module must be an RNN, LSTM, GRU or a cell, got Linear"):
        fusedrnn.explain(nn.Linear(3, 4), torch.randn(2, 3))


def test_build_info_says_what_this_binary_is() -> None:
    info = _C.build_info()
    assert info["version"] == fusedrnn.__version__
    assert str(info["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert isinstance(info["cuda"], bool)
    assert info["compiler"]


def test_packed_rows_are_counted_as_they_are_not_as_if_padded() -> None:
    rows = pack_sequence([torch.randn(n, 3) for n in (9, 2, 1)])
    module = fusedrnn.LSTM(3, 8)
    packed = fusedrnn.explain(module, rows).layers[0]
    padded = fusedrnn.explain(module, torch.randn(9, 3, 3)).layers[0]
    assert packed.reserve_bytes * 27 == padded.reserve_bytes * 12


@pytest.mark.parametrize("batch_sizes", [[], [2], [3, 2], [2, 3], [2, 0], [2, -1]], ids=str)
def test_batch_sizes_that_no_packed_batch_has_are_refused(batch_sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="batch_sizes must"):
        _C.explain("GRU", "float32", 2, 2, 3, 4, 0, 1, batch_sizes, True, 1)


def test_each_other_instruction_set_is_rejected_for_its_own_reason() -> None:
    isas = _C.cpu_isas()
    chosen = isas.index(_C.cpu_isa())
    rejected = dict(fusedrnn.explain(fusedrnn.GRU(3, 4), torch.randn(5, 2, 3)).layers[0].rejected)
    for i, isa in enumerate(isas):
        reason = rejected.get(f"instruction set {isa}")
        ruled_out = f"FUSEDRNN_CPU_ISA={isas[chosen]} rules it out"
        assert reason == (None if i == chosen else "narrower vectors" if i < chosen else ruled_out)


def test_autocast_is_followed_except_by_float64() -> None:
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fusedrnn.explain(fusedrnn.GRU(3, 4), x).dtype == "bfloat16"
        assert fusedrnn.explain(fusedrnn.GRU(3, 4).double(), x.double()).dtype == "float64"
    assert fusedrnn.explain(fusedrnn.GRU(3, 4), x).dtype == "float32"


def test_plan_says_whether_weights_are_packed() -> None:
    torch.set_num_threads(1)
    module = fusedrnn.LSTM(64, 256)
    found = {T: fusedrnn.explain(module, torch.randn(T, 1, 64)).layers[0] for T in (1, 200)}
    assert found[1].weights == "read in place"
    assert found[200].weights == "packed"
    assert "weights packed" in str(found[200])
