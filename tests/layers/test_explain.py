"""explain() tells what would run, per layer, and depends on what the choice depends on. What a GPU
would run is asked about one that need not be there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import _C, _explain, ops
from fusedrnn.plan import GPUS, CudaLayerPlan, LayerPlan
from support.planning import problem


@pytest.fixture(autouse=True)
def no_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    monkeypatch.delenv("FUSEDRNN_CUDA_TILE", raising=False)


def first_layer(*args: Any) -> LayerPlan:
    layer = fusedrnn.explain(*args).layers[0]
    assert isinstance(layer, LayerPlan)
    return layer


def first_on_gpu(*args: Any, gpu: Any = "sm_90") -> CudaLayerPlan:
    layer = fusedrnn.explain(*args, gpu=gpu).layers[0]
    assert isinstance(layer, CudaLayerPlan)
    return layer


def test_plan_names_kernel_instruction_set_threads_blocking_and_reason() -> None:
    torch.set_num_threads(2)
    plan = fusedrnn.explain(fusedrnn.LSTM(28, 256), torch.randn(35, 32, 28))
    (layer,) = plan.layers
    assert isinstance(layer, LayerPlan)
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
    def sizes(module: nn.Module, input: Any) -> tuple[int, int]:
        layer = fusedrnn.explain(module, input).layers[0]
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
    assert first_layer(module, x).threads == 1


def test_torch_modules_are_explained_by_what_would_replace_them() -> None:
    x = torch.randn(5, 2, 3)
    assert str(fusedrnn.explain(nn.GRU(3, 4), x)) == str(fusedrnn.explain(fusedrnn.GRU(3, 4), x))


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="module must be an RNN, LSTM, GRU or a cell, got Linear"):
        fusedrnn.explain(nn.Linear(3, 4), torch.randn(2, 3))


def test_packed_rows_are_counted_as_they_are_not_as_if_padded() -> None:
    rows = pack_sequence([torch.randn(n, 3) for n in (9, 2, 1)])
    module = fusedrnn.LSTM(3, 8)
    packed = fusedrnn.explain(module, rows).layers[0]
    padded = fusedrnn.explain(module, torch.randn(9, 3, 3)).layers[0]
    assert packed.reserve_bytes * 27 == padded.reserve_bytes * 12


def stated(mode: str, **sizes: int) -> dict[str, Any]:
    """A problem as ``_C.explain`` takes it, training in float32."""
    return {"mode": mode, "dtype": "float32", "D": 1, "training": True} | sizes


@pytest.mark.parametrize("batch_sizes", [[], [2], [3, 2], [2, 3], [2, 0], [2, -1]], ids=str)
def test_batch_sizes_that_no_packed_batch_has_are_refused(batch_sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="batch_sizes must"):
        _C.explain(stated("GRU", T=2, B=2, I=3, H=4), batch_sizes, 1)


def test_each_other_instruction_set_is_rejected_for_its_own_reason() -> None:
    isas = _C.cpu_isas()
    chosen = isas.index(_C.cpu_isa())
    rejected = dict(first_layer(fusedrnn.GRU(3, 4), torch.randn(5, 2, 3)).rejected)
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
    found = {T: first_layer(module, torch.randn(T, 1, 64)) for T in (1, 200)}
    assert found[1].weights == "read in place"
    assert found[200].weights == "packed"
    assert "weights packed" in str(found[200])


def planned(T: int, B: int, I: int, H: int, threads: int) -> dict[str, Any]:  # noqa: E741
    found = _C.explain(stated("LSTM", T=T, B=B, I=I, H=H), None, threads)
    return found | {"rejected": dict(found["rejected"])}


def test_reason_of_a_split_is_the_rule_that_decided_it() -> None:
    # W_hh is 16 KiB, and no L2 overflows from that. With AVX-512 H fills two panels, for two of the
    # four threads, which are then no more than the rows.
    found = planned(T=100, B=3, I=32, H=32, threads=4)
    assert found["split"] == "hidden"
    assert found["threads"] == min(4, 32 // found["lanes"])
    assert found["reason"].startswith("fewer rows than threads: each thread owns panels")
    assert found["rejected"]["split by batch rows"] == "3 rows for 4 threads"
    assert ("4 threads" in found["rejected"]) == (found["threads"] < 4)

    found = planned(T=100, B=32, I=32, H=512, threads=4)
    assert found["split"] == "hidden"
    assert found["reason"].startswith("W_hh overflows L2, 4096 KiB of 512: each thread owns panels")
    assert "every thread would read all of W_hh" in found["rejected"]["split by batch rows"]

    found = planned(T=100, B=32, I=32, H=64, threads=4)
    assert found["split"] == "batch"
    assert "stays in L2" in found["rejected"]["split by hidden units"]


def test_threads_that_are_not_used_are_told_of() -> None:
    found = planned(T=100, B=3, I=64, H=1, threads=2)
    assert found["reason"] == "too little work for a second thread to pay"
    assert "under 0.4 MFLOP" in found["rejected"]["2 threads"]
    found = planned(T=1000, B=1, I=1000, H=2, threads=2)
    assert found["reason"] == "fewer rows than threads, and one panel holds all hidden units"
    assert found["rejected"]["split by batch rows"] == "1 row for 2 threads"
    assert planned(T=1000, B=1, I=1000, H=2, threads=1)["reason"] == "one thread is available"


def test_directions_say_why_they_run_at_once_or_in_turn() -> None:
    def told(threads: int, H: int) -> tuple[str, dict[str, str]]:
        found = _C.explain(stated("LSTM", T=50, B=8, I=64, H=H, D=2), None, threads)
        return found["reason"], dict(found["rejected"])

    reason, rejected = told(2, 64)
    assert reason.startswith("both directions run at once, each by half of the threads")
    assert "one direction after the other" in rejected
    for threads, H, why in [
        (1, 64, "1 thread cannot be halved"),
        (2, 512, "W_hh of over 2 MiB would be packed twice at a time"),
        (2, 1, "too little work for a second thread to pay"),
    ]:
        assert told(threads, H)[1]["both directions at once"] == why


def test_the_other_ways_to_read_weights_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CPU_NARROW", "0")
    found = planned(T=1, B=3, I=64, H=64, threads=1)
    assert found["weights"] == "read in place"
    assert "packing costs more" in found["rejected"]["packed weights"]
    found = planned(T=100, B=3, I=64, H=64, threads=1)
    assert found["weights"] == "packed"
    assert "100 steps" in found["rejected"]["weights read in place"]
    for B, weights, other in [
        (3, "packed, W_hh in bfloat16", "W_hh in float32"),
        (5, "packed", "W_hh in bfloat16"),
    ]:
        problem = stated("LSTM", T=100, B=B, I=64, H=64)
        problem |= {"dtype": "bfloat16", "training": False}
        told = _C.explain(problem, None, 1, bfloat16_weights=True)
        assert told["weights"] == weights
        assert other in dict(told["rejected"])
        assert told["reason"].endswith("stored in bfloat16, computed in float32")


def test_gpu_plan_says_how_each_pass_is_cut_up_and_why() -> None:
    module, x = fusedrnn.LSTM(28, 256), torch.randn(35, 32, 28)
    plan = fusedrnn.explain(module, x, gpu="sm_90")
    (layer,) = plan.layers
    assert isinstance(layer, CudaLayerPlan)
    assert (layer.T, layer.B, layer.I, layer.H, layer.P, layer.D) == (35, 32, 28, 256, 0, 1)
    assert layer.reserve_bytes == 35 * 32 * 5 * 256 * 4
    assert layer.backward
    for backward, told in [(False, layer.forward), (True, layer.backward)]:
        asked = problem("LSTM", 35, 32, 256, I=28)
        planned = _C.cuda_plan(asked, GPUS["sm_90"], backward=backward)
        assert dict(planned.pop("rejected")).keys() == dict(told.rejected).keys()
        for key, value in planned.items():
            assert getattr(told, key) == value
        assert told.kernel == "cluster"
        assert told.rejected
        text = str(told)
        for word in (told.kernel, told.reason, f"{told.step_us:.2f} us", f"{told.threads} threads"):
            assert word in text
        for word in ("stepwise: estimated", "cuDNN: estimated"):
            assert word in text
    text = str(plan)
    for word in ("sm_90", "132 multiprocessors", "227 KiB", "float32", "forward ", "backward "):
        assert word in text
    with torch.no_grad():
        layer = first_on_gpu(module, x)
    assert layer.backward is None
    assert layer.reserve_bytes == 0
    assert "backward   " not in str(layer)


def test_gpu_plan_of_a_stack_is_printed_once_for_equal_layers() -> None:
    module = fusedrnn.GRU(3, 8, 4, bidirectional=True)
    plan = fusedrnn.explain(module, torch.randn(5, 2, 3), gpu="sm_75")
    assert [layer.I for layer in plan.layers] == [3, 16, 16, 16]
    assert "layer 0:" in str(plan)
    assert "layers 1-3:" in str(plan)


@pytest.mark.parametrize("gpu", GPUS)
def test_candidates_ruled_out_for_one_reason_share_a_line(gpu: str) -> None:
    layer = first_on_gpu(fusedrnn.LSTM(4, 128), torch.randn(200, 64, 4), gpu=gpu)
    assert len(layer.forward.rejected) > 15
    lines = str(layer.forward).splitlines()
    assert len(lines) < 12
    assert len(set(lines)) == len(lines)
    clusters = [line for line in lines if "needs the clusters" in line]
    assert len(clusters) == (gpu not in ("sm_90", "sm_100"))


def test_gpu_is_named_or_described() -> None:
    module, x = fusedrnn.LSTM(4, 512), torch.randn(100, 64, 4)
    assert first_on_gpu(module, x).forward.kernel == "cluster"
    without = GPUS["sm_90"] | {"clusters": [132, 0, 0, 0, 0]}
    assert first_on_gpu(module, x, gpu=without).forward.kernel == "torch"
    with pytest.raises(ValueError, match=r"gpu must be one of sm_75, .*, got 'sm_91'"):
        fusedrnn.explain(module, x, gpu="sm_91")
    with pytest.raises(ValueError, match=r"gpu must have sm, multiprocessors, .*, got sm$"):
        fusedrnn.explain(module, x, gpu={"sm": 90})


def test_both_passes_go_the_way_that_is_cheaper_together() -> None:
    # cuDNN's persistent kernel goes forward at H=192, but not back.
    x = torch.randn(100, 64, 4)
    for gpu in GPUS:
        for H in (128, 160, 192, 256, 1024):
            layer = first_on_gpu(fusedrnn.LSTM(4, H), x, gpu=gpu)
            assert layer.backward
            theirs = [layer.forward.kernel == "torch", layer.backward.kernel == "torch"]
            asked = problem("LSTM", 100, 64, H, I=4)
            assert theirs == [_C.cuda_choice(asked, GPUS[gpu])["by_torch"]] * 2
            kept = "what cuDNN keeps" if theirs[0] else "MiB kept"
            assert kept in str(layer)


def test_a_pass_that_alone_would_go_the_other_way_says_so() -> None:
    # The 64 KiB of sm_75 hold a block's weights forward, but not back.
    found = [
        (layer.forward, layer.backward)
        for B in (16, 64)
        for layer in [first_on_gpu(fusedrnn.LSTM(4, 128), torch.empty(100, B, 4), gpu="sm_75")]
    ]
    told = [dict(p.rejected) for passes in found for p in passes if p]
    lone = [why for reasons in told for why in reasons.values() if "both passes" in why]
    assert lone
    assert all(re.match(r"estimated \d+\.\d\d us a step, but both passes", why) for why in lone)


def test_cells_never_go_to_cudnn() -> None:
    layer = first_on_gpu(fusedrnn.LSTMCell(4, 1024), torch.randn(64, 4))
    assert layer.T == 1
    assert layer.forward.kernel == "stepwise"
    assert dict(layer.forward.rejected)["cuDNN"] == "has no cell"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_to_cudnn_or_converted(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(dtype).removeprefix("torch.")
    module, x = fusedrnn.GRU(4, 8).to(dtype), torch.randn(5, 2, 4, dtype=dtype)
    layer = first_on_gpu(module, x)
    assert layer.forward.kernel == "torch"
    assert layer.precision == name
    assert f"cuDNN works in {name}" in layer.forward.reason
    for restricted in (True, False):
        if restricted:
            monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
        else:
            monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL")
            monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
        layer = first_on_gpu(module, x)
        assert layer.forward.kernel in ("block", "stepwise")
        assert layer.precision == f"{name}, computed in float32"


def test_gpu_plan_follows_the_kernel_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = fusedrnn.LSTM(4, 100), torch.randn(50, 8, 4)
    for name in ("block", "cluster", "stepwise", "torch"):
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", name)
        layer = first_on_gpu(module, x)
        assert layer.forward.kernel == name
        assert layer.forward.reason.endswith("FUSEDRNN_CUDA_KERNEL names it")
        assert {why for _, why in layer.forward.rejected} >= {"not among the kernels allowed"}
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    with pytest.raises(ValueError, match="none can run LSTM forward with T=50, B=8, H=300"):
        fusedrnn.explain(fusedrnn.LSTM(4, 300), x, gpu="sm_90")
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "torch")
    with pytest.raises(ValueError, match="FUSEDRNN_CUDA_KERNEL"):
        fusedrnn.explain(fusedrnn.LSTMCell(4, 8), torch.randn(2, 4), gpu="sm_90")


def test_gpu_plan_follows_the_tile_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = fusedrnn.LSTM(4, 100), torch.randn(50, 8, 4)
    free = first_on_gpu(module, x).forward
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", str(free.tile + 1))
    named = first_on_gpu(module, x).forward
    assert named.tile == free.tile + 1
    assert named.reason.endswith("FUSEDRNN_CUDA_TILE names it")
    assert named.step_us > free.step_us
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", "0")  # made for a smaller H
    with pytest.raises(ValueError, match="none can run LSTM forward with T=50, B=8, H=100"):
        fusedrnn.explain(module, x, gpu="sm_90")


def test_packed_rows_are_planned_for_on_a_gpu() -> None:
    rows = pack_sequence([torch.randn(n, 3) for n in (90, 20, 10)])
    layer = first_on_gpu(fusedrnn.LSTM(3, 8), rows)
    assert (layer.T, layer.B) == (90, 3)
    assert layer.forward.kernel == "block"
    assert layer.reserve_bytes == 120 * 5 * 8 * 4


@pytest.mark.parametrize(
    ("threads", "H", "B", "split"),
    [
        (2, 64, 8, "directions"),
        (4, 64, 8, "directions, batch"),
        (4, 64, 1, "directions, hidden"),
        (3, 64, 8, "batch"),  # no halves
        (1, 64, 8, "none"),
        (2, 512, 8, "hidden"),  # weights too wide to pack twice
        (2, 1, 1, "none"),  # too little work
    ],
)
def test_directions_run_at_once_where_threads_can_be_halved(
    threads: int, H: int, B: int, split: str
) -> None:
    found = _C.explain(stated("LSTM", T=50, B=B, I=64, H=H, D=2), None, threads)
    assert found["split"] == split
    assert found["threads"] == (1 if split == "none" else threads)


@pytest.fixture
def precision() -> Iterator[Callable[[bool], None]]:
    """Sets torch's switch for RNNs, and puts it back."""
    before = torch.backends.cudnn.allow_tf32
    yield lambda allowed: setattr(torch.backends.cudnn, "allow_tf32", allowed)
    torch.backends.cudnn.allow_tf32 = before


def test_precision_is_what_the_products_run_in(precision: Callable[[bool], None]) -> None:
    x, wide = torch.empty(100, 64, 128), torch.empty(100, 64, 1024)
    ours, theirs = fusedrnn.LSTM(128, 128), fusedrnn.LSTM(1024, 1024)
    precision(True)
    assert first_on_gpu(ours, x).precision == "float32; products in TF32"
    assert first_on_gpu(theirs, wide).precision == "float32; cuDNN's products in TF32"
    for module, input in ((ours, x), (theirs, wide)):
        told = first_on_gpu(module, input, gpu="sm_75").precision
        assert told == "float32 throughout: the GPU has no TF32"
    assert first_on_gpu(ours.double(), x.double()).precision == "float64"
    precision(False)
    ours.float()
    told = first_on_gpu(ours, x).precision
    assert told == "float32 throughout, as torch's switch for RNNs asks"


def test_gpu_plan_depends_on_precision_and_layers(precision: Callable[[bool], None]) -> None:
    x = torch.empty(100, 128, 512)
    found = {}
    for L, tf32 in product((1, 2), (False, True)):
        precision(tf32)
        plan = fusedrnn.explain(fusedrnn.LSTM(512, 512, L), x, gpu="sm_90")
        kernels = {layer.forward.kernel for layer in plan.layers}  # type: ignore[union-attr]
        assert len(kernels) == 1  # a stack goes one way
        found[L, tf32] = kernels.pop()
    assert found[1, False] == "cluster"
    assert found[1, True] == found[2, True] == "torch"
    precision(True)
    told = dict(first_on_gpu(fusedrnn.LSTM(512, 512), x).forward.rejected)
    assert "over 2 waves of blocks are left to cuDNN until measured" in told.values()


def test_the_way_of_a_stack_is_chosen_by_its_upper_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choice(problem: dict[str, Any], *rest: Any) -> dict[str, Any]:
        asked.append((problem["top_I"], problem["L"]))
        return _C.cuda_choice(problem, *rest)

    monkeypatch.setattr(ops, "cuda_choice", choice)
    module = fusedrnn.LSTM(1, 64, 3, bidirectional=True)
    layers = fusedrnn.explain(module, torch.empty(100, 64, 1), gpu="sm_90").layers
    assert [layer.I for layer in layers] == [1, 128, 128]
    assert asked == [(128, 3)] * 3


def test_chunks_are_told_of(precision: Callable[[bool], None]) -> None:
    precision(False)
    layer = first_on_gpu(fusedrnn.LSTM(128, 128), torch.empty(1000, 64, 128))
    assert layer.forward.chunk > 0
    assert f"chunks     {layer.forward.chunk} steps a launch" in str(layer)
    layer = first_on_gpu(fusedrnn.LSTM(128, 128), torch.empty(20, 64, 128))
    assert layer.forward.chunk == 0
    assert "chunks" not in str(layer)


def test_what_was_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = fusedrnn.LSTM(4, 128), torch.empty(100, 64, 4)
    assert "us a step (estimated)" in str(first_on_gpu(module, x).forward)
    index = 79  # of a device that nobody has
    monkeypatch.setattr(_explain, "_gpu", lambda *_: ("cuda:79", GPUS["sm_90"], index))
    entry = {"mode": "LSTM", "training": True, "tf32": ops.rnn_takes_tf32(), "H": 128, "B": 64}
    entry |= {"D": 1, "L": 1, "kernel": "stepwise", "tile": -1, "step_us": 1.25}
    _C.set_measured(index, [entry | {"backward": backward} for backward in (False, True)])
    try:
        layer = first_on_gpu(module, x)
    finally:
        _C.set_measured(index, [])
    for told in (layer.forward, layer.backward):
        assert told is not None
        assert told.measured
        assert "stepwise, about 1.25 us a step (measured)" in str(told)
        assert "others were measured" in str(told)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_a_frozen_layer_tells_of_its_own_weights(dtype: torch.dtype | None) -> None:
    frozen = fusedrnn.freeze(fusedrnn.LSTM(8, 16), dtype)
    layer = fusedrnn.explain(frozen, torch.randn(1, 2, 8)).layers[0]
    assert layer.weights == "packed"  # type: ignore[union-attr]
    reason, products = layer.reason, frozen._stack.products  # type: ignore[union-attr]
    assert "the weights are frozen: they were packed once" in reason
    assert ("products of" in reason) == bool(products)
    assert products in reason
