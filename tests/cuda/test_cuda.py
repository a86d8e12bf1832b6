"""What only a GPU can show of each kernel: streams, graphs, memory, waiting, launches, several
devices. How accurate the kernels are is in test_cuda_accuracy.py. That the rest holds there too is
shown by all other files that run with ``--device cuda``."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fusedrnn
from fusedrnn import _binary
from support.gpu import NAMES, NEEDS_GPU, OWN, Force, can_run, captured, module_for, step
from support.oracle import packed, states
from support.planning import only
from support.problems import MODES, Problem, run

pytestmark = NEEDS_GPU


def test_this_build_has_cuda_kernels() -> None:
    assert _binary.build_info()["cuda"], "fusedrnn was built without CUDA"


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_run_on_the_current_stream(name: str, kernel: str, force: Force) -> None:
    force(kernel)
    module = module_for(name, kernel)
    x = torch.randn(9, 4, 7)
    expected = step(module, x.clone().requires_grad_())
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # the input is zero until long after the launches
        late.copy_(x)
        found = step(module, late.requires_grad_())
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("packed_rows", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_follows_its_inputs_and_weights(
    name: str, kernel: str, backward: bool, packed_rows: bool, force: Force
) -> None:
    force(kernel)
    module = module_for(name, kernel, num_layers=2)
    x: Any = torch.randn(9, 4, 7)
    if packed_rows:
        x = packed([torch.randn(n, 7) for n in (9, 7, 7, 2)])
    leaf = (x.data if packed_rows else x).requires_grad_()
    graph, results = captured(lambda: step(module, x, backward=backward))
    for _ in range(3):
        with torch.no_grad():
            leaf.copy_(torch.randn_like(leaf))
            module.weight_hh_l1.mul_(0.9)
        graph.replay()
        torch.testing.assert_close(results, step(module, x, backward=backward))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_captured_pieces_are_the_bits_of_eager_ones(
    name: str, backward: bool, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "16")
    module = module_for(name, "block", num_layers=2, bidirectional=True)
    x = torch.randn(200, 64, 7).requires_grad_()
    graph, results = captured(lambda: step(module, x, backward=backward))
    for _ in range(10):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(map(torch.equal, results, step(module, x, backward=backward)))


@pytest.mark.parametrize("packed_rows", [False, True])
@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_no_call_waits_for_the_device(
    name: str, kernel: str, packed_rows: bool, force: Force
) -> None:
    force(kernel)
    module = module_for(name, kernel, num_layers=2, bidirectional=True)
    x: Any = torch.randn(9, 4, 7).requires_grad_()
    if packed_rows:
        rows = packed([torch.randn(n, 7) for n in (2, 9, 7, 7)], enforce_sorted=False)
        x = rows._replace(data=rows.data.detach().requires_grad_())
    step(module, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, x)
        step(module, x, backward=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_would_have_been_seen() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def allocations(call: Callable[[], object]) -> int:
    """How many blocks of memory one call asks for."""
    call()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    return int(torch.cuda.memory_stats()["allocation.all.allocated"] - before)


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_allocated_per_step(name: str, kernel: str, force: Force) -> None:
    force(kernel)
    module = module_for(name, kernel)

    def asked(T: int, backward: bool) -> int:
        x = torch.randn(T, 4, 7, requires_grad=True)
        return allocations(lambda: step(module, x, backward=backward))

    for backward in (False, True):
        assert asked(5, backward) == asked(50, backward)


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_calls_leave_no_memory_behind(name: str) -> None:
    module = getattr(fusedrnn, name)(7, 64, bidirectional=True)
    x = torch.randn(5, 4, 7, requires_grad=True)
    rows = packed([torch.randn(n, 7) for n in (5, 3)])
    rows = rows._replace(data=rows.data.detach().requires_grad_())

    def used() -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    for _ in range(20):
        step(module, x), step(module, rows)
    before = used()
    for _ in range(1000):
        step(module, x), step(module, rows)
    assert used() == before


def launches(module: Any, T: int) -> list[str]:
    """Names of the kernels, copies and fills that one call and its backward start."""
    x = torch.randn(T, 4, 7, requires_grad=True)
    step(module, x)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step(module, x)
        torch.cuda.synchronize()
    return [event.name for event in profiler.events() if event.device_type.name == "CUDA"]


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_a_persistent_kernel_is_one_launch_for_all_steps(
    name: str, kernel: str, force: Force
) -> None:
    force(kernel)
    module = module_for(name, kernel, bidirectional=True)
    few, many = launches(module, 5), launches(module, 50)
    own = [sum("fusedrnn" in name for name in names) for names in (few, many)]
    assert own[0] > 0
    if kernel == "stepwise":
        assert own[1] - own[0] == 2 * 2 * 45  # for each step and direction, forward and back
    else:
        assert own[1] == own[0]
        assert len(many) < len(few) + 20  # a larger product may be split, and summed by one more


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_inputs_give_the_same_bits(mode: str, kernel: str, force: Force) -> None:
    force(kernel)
    H = 256 if kernel == "cluster" else 128
    if not can_run(only(kernel), mode, H):
        pytest.skip(f"this GPU has no {kernel} kernel for H={H}")
    problem = Problem(mode, T=50, B=64, I=20, H=H, form="unsorted", bidirectional=True, hx="grad")
    first = run(problem, "fusedrnn")
    for _ in range(3):
        for name, value in run(problem, "fusedrnn").items():
            other = first[name]
            assert value is not None
            assert other is not None
            assert torch.equal(value, other), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kernel", OWN)
def test_a_module_on_another_gpu_runs_there(kernel: str, force: Force) -> None:
    force(kernel)
    module = module_for("LSTM", kernel)
    x = torch.randn(9, 4, 7)
    expected = step(module, x.clone().requires_grad_())
    elsewhere = copy.deepcopy(module).to("cuda:1")
    found = step(elsewhere, x.to("cuda:1").requires_grad_())
    assert torch.cuda.current_device() == 0
    for a, b in zip(found, expected, strict=True):
        assert a.device == torch.device("cuda:1")
        torch.testing.assert_close(a.to(b.device), b)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_model_trains_as_the_eager_one(name: str, mode: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn: Any = getattr(fusedrnn, name)(7, 60, 2)
            self.out = nn.Linear(60, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.rnn(x.relu())[0]).tanh()
            return result

    model = Model()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(4):
        x = torch.randn(9, 4, 7)
        torch.compiler.cudagraph_mark_step_begin()
        for one in (compiled, eager):
            one(x).square().sum().backward()
        for a, b in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
            a.grad = b.grad = None


@pytest.mark.parametrize("kernel", ["block", "stepwise"])
@pytest.mark.parametrize("name", NAMES)
def test_dropout_follows_the_seed_and_backward_uses_its_mask(
    name: str, kernel: str, force: Force
) -> None:
    force(kernel)
    module = getattr(fusedrnn, name)(3, 40, 2, dropout=0.5)
    x = torch.randn(6, 4, 3)

    def seeded(seed: int) -> tuple[Tensor, ...]:
        torch.manual_seed(seed)
        return step(module, x.clone().requires_grad_())

    first, second, third = seeded(1), seeded(1), seeded(2)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], third[0])
    module.dropout = 1.0  # the upper layer sees zeros: nothing below it has a gradient
    module(x)[0].sum().backward()
    assert not module.weight_hh_l0.grad.count_nonzero()
    assert module.weight_hh_l1.grad.count_nonzero()


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_explain_names_the_kernel_that_is_forced(name: str, kernel: str, force: Force) -> None:
    force(kernel)
    module = module_for(name, kernel)
    (layer,) = fusedrnn.explain(module, torch.randn(9, 4, 7)).layers
    assert isinstance(layer, fusedrnn.plan.CudaLayerPlan)
    assert layer.forward.kernel == kernel
    assert layer.backward is not None
    assert layer.backward.kernel == kernel


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_several_devices_are_refused(name: str, grad: bool) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    x, elsewhere = torch.randn(4, 2, 3), torch.randn(4, 2, 3, device="cpu")
    with torch.set_grad_enabled(grad):
        for args in ((elsewhere,), (x, states(name, 1, 2, 5, device="cpu"))):
            with pytest.raises(RuntimeError, match="not at the same device"):
                module(*args)
        module.cpu()
        with pytest.raises(RuntimeError, match="not at the same device"):
            module(x)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_moves_between_devices(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    x = torch.randn(4, 2, 3)
    there = module(x)[0]
    here = module.cpu()(x.cpu())[0]
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.cuda()(x)[0], there)
