"""What tests of layers on any device do not show of the CUDA half. Run by
tests/cuda/test_cuda_glue.py, with the plugin beside this file; not collected otherwise."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fusedrnn
from fusedrnn import _C
from support.problems import MODES, Problem, build, check, inputs
from support.theirs import TORCHS

KERNELS = {"block": 40, "cluster": 150, "stepwise": 7}  # and an H that each can run
GLUE = torch.ops.fusedrnn_glue
PROJECTED = [*((mode, 0) for mode in MODES), ("LSTM", 2)]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of kernel, forced."""
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", request.param)
    return str(request.param)


def layer_arguments(problem: Problem) -> tuple[Any, ...]:
    """The layer operator's arguments for a problem of one layer."""
    p = problem
    input, states, _ = inputs(p, p.dtype)
    x, batch_sizes = (input.data, input.batch_sizes) if p.form == "sorted" else (input, None)
    hx, cx = (*states, None, None)[:2]
    weights = list(build(p, fusedrnn).parameters())
    detached = [t if t is None else t.detach() for t in (x, hx, cx, *weights)]
    return (detached[0], batch_sizes, *detached[1:3], detached[3:], p.mode, p.bias)


def gradients(problem: Problem, needs: list[bool]) -> list[Tensor]:
    """layer_backward's results for those of input, hx, cx and the weights that are wanted."""
    arguments = layer_arguments(problem)
    y, h_n, c_n, reserve, _ = torch.ops.fusedrnn.layer(*arguments, True)
    kept = reserve.clone()
    generator = torch.Generator().manual_seed(5)
    slopes: list[Tensor | None] = [torch.randn(t.shape, generator=generator) for t in (y, h_n, c_n)]
    if problem.mode != "LSTM":
        slopes[2] = None
    (*operands, mode, bias) = arguments
    found = torch.ops.fusedrnn.layer_backward(*slopes, *operands, y, reserve, mode, bias, needs)
    assert torch.equal(kept, reserve), "backward changed the reserve"
    return list(found)


@pytest.mark.parametrize("hx", ["none", "grad"])
@pytest.mark.parametrize("form", ["batched", "unsorted"])
@pytest.mark.parametrize("mode", MODES)
def test_two_directions_are_as_accurate(mode: str, form: str, hx: str, kernel: str) -> None:
    H = KERNELS[kernel]
    check(Problem(mode, T=5, B=4, I=3, H=H, form=form, hx=hx, bidirectional=True))


@pytest.mark.parametrize("hx", ["none", "grad"])
@pytest.mark.parametrize("form", ["batched", "unsorted"])
def test_projection_is_as_accurate(form: str, hx: str) -> None:
    check(Problem("LSTM", T=5, B=4, I=3, H=7, P=3, form=form, hx=hx, bidirectional=True, L=2))


@pytest.mark.parametrize("form", ["batched", "sorted"])
@pytest.mark.parametrize("mode", MODES)
def test_each_gradient_alone_equals_the_one_among_all(mode: str, form: str, kernel: str) -> None:
    H = KERNELS[kernel]
    problem = Problem(mode, T=4, B=3, H=H, form=form, hx="given", bidirectional=True)
    states = 2 if mode == "LSTM" else 1
    wanted = [True, True, states == 2] + [True] * 8
    everything = gradients(problem, wanted)
    for i, (place, expected) in enumerate(
        zip(itertools.compress(itertools.count(), wanted), everything, strict=True)
    ):
        (alone,) = gradients(problem, [k == place for k in range(len(wanted))])
        # Not to the bit: MKL's products depend on where in memory their operands are.
        torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6, msg=f"gradient {i}")


@pytest.mark.parametrize(
    ("mode", "use"), [*itertools.product(MODES, ["output", "h_n"]), ("LSTM", "c_n")]
)
def test_an_output_without_a_gradient_counts_as_zero(mode: str, use: str, kernel: str) -> None:
    check(Problem(mode, T=4, B=3, H=KERNELS[kernel], hx="grad", use=use, form="unsorted"))


@pytest.mark.parametrize("mode", MODES)
def test_backward_twice_gives_the_same_bits(mode: str, kernel: str) -> None:
    module = build(Problem(mode, H=KERNELS[kernel], bidirectional=True), fusedrnn)
    y = module(torch.randn(5, 3, 4))[0]
    once = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True)
    twice = torch.autograd.grad(y.sum(), list(module.parameters()))
    assert all(map(torch.equal, once, twice))


@pytest.mark.parametrize(("mode", "P"), PROJECTED)
def test_reserve_is_as_wide_as_fake_tensors_are_told(mode: str, P: int) -> None:
    arguments = layer_arguments(Problem(mode, H=6, P=P, bidirectional=True))
    reserve = torch.ops.fusedrnn.layer(*arguments, True)[3]
    assert reserve.shape == (2, 15, _C.reserve_width(mode, "float32", 6, P, "cuda"))


@pytest.mark.parametrize("kernel", ["block", "stepwise"])
def test_more_than_65535_steps_are_as_accurate(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
    module = fusedrnn.RNN(1, 2).requires_grad_(False)
    exact = nn.RNN(1, 2)
    exact.load_state_dict(module.state_dict())
    x = torch.randn(65_540, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(module(x), exact(x), rtol=1e-4, atol=1e-5)


def test_a_packed_batch_under_capture_is_right(kernel: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("FUSEDRNN_HOST_CAPTURES", "1")
    check(Problem("LSTM", T=4, B=3, H=KERNELS[kernel], form="sorted", bidirectional=True))


@pytest.mark.parametrize(("mode", "P"), PROJECTED)
def test_stepwise_allocates_and_views_nothing_per_step(
    mode: str, P: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise")

    def operators(T: int) -> Counter[str]:
        problem = Problem(mode, T=T, H=6, P=P, bidirectional=True)
        module, x = build(problem, fusedrnn), torch.randn(T, 3, 4)
        GLUE.products()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            module(x)[0].sum().backward()
        products, choices, _ = GLUE.products()
        names = Counter(event.name for event in profiler.events())
        return names + Counter(products=products, choices=choices)

    operators(10), operators(30)  # so that each algorithm has been chosen
    more = operators(30) - operators(10)
    grown = {name for name in more if name.startswith("aten::")}
    assert grown <= ({"aten::add", "aten::copy_"} if P else set())
    # For each of two directions a step forward and back; projected, two more.
    assert more["products"] == (8 if P else 4) * 20
    assert more["choices"] == 0


@pytest.mark.parametrize("form", ["batched", "sorted"])
@pytest.mark.parametrize(("mode", "P"), [(m, P) for m, P in PROJECTED if m in TORCHS])
def test_torchs_own_layers_are_called_as_torch_nn_calls_them(mode: str, P: int, form: str) -> None:
    problem = Problem(mode, H=6, P=P, L=2, bidirectional=True, form=form, hx="given")
    for hx in ("given", "none"):
        module = build(replace(problem, hx=hx), nn)
        input, states, _ = inputs(replace(problem, hx=hx), torch.float32)
        x, sizes = (input.data, input.batch_sizes) if form == "sorted" else (input, None)
        weights = list(module.parameters())
        h, c = (*states, None, None)[:2]
        ours = GLUE.stack_by_torch(x, sizes, h, c, weights, mode, True, 2, 0.0, False, True)
        given: Any = (states if mode == "LSTM" else states[0]) if states else None
        output, final = module(input, given)
        theirs = (getattr(output, "data", output), *(final if mode == "LSTM" else (final,)))
        for a, b in zip(ours, theirs, strict=False):
            assert torch.equal(a, b)
        assert len(theirs) == 3 or ours[2].shape == (0,)


def test_torchs_own_layers_drop_out_only_in_training() -> None:
    module = nn.GRU(3, 40, 2, dropout=0.9)
    arguments = (torch.randn(5, 2, 3), None, None, None, list(module.parameters()), "GRU", True, 2)
    plain = module.eval()(arguments[0])[0]
    assert torch.equal(GLUE.stack_by_torch(*arguments, 0.9, False, False)[0], plain)
    assert not torch.equal(GLUE.stack_by_torch(*arguments, 0.9, True, False)[0], plain)


def test_only_plain_tensors_go_to_torch() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd import forward_ad
    from torch.utils.flop_counter import FlopCounterMode

    seen: list[bool] = []

    def look(t: Tensor) -> Tensor:
        seen.append(GLUE.is_plain(t))
        return t.sum()

    x = torch.ones(3)
    assert GLUE.is_plain(x)
    assert GLUE.is_plain(nn.Parameter(x))
    assert GLUE.is_plain(x.clone().requires_grad_() * 2)
    with torch.inference_mode():
        assert GLUE.is_plain(torch.ones(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert GLUE.is_plain(x)
    torch.func.grad(look)(x)
    assert seen == [False]
    with FakeTensorMode() as mode:
        assert not GLUE.is_plain(torch.ones(3))
    assert not GLUE.is_plain(mode.from_tensor(x))
    with FlopCounterMode(display=False):
        assert not GLUE.is_plain(x)
    with forward_ad.dual_level():
        assert not GLUE.is_plain(forward_ad.make_dual(x, x))


def test_a_name_that_is_no_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "grid")
    with pytest.raises(ValueError, match=r"FUSEDRNN_CUDA_KERNEL must be block, .*, got grid"):
        fusedrnn.LSTM(2, 3)(torch.randn(4, 2, 2))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("LSTM", {"hidden_size": 600}, "H=600\n.*: made for H <= 512, not 600"),
        ("LSTM", {"hidden_size": 6, "proj_size": 2}, "h is not projected in it, P = 2"),
        ("GRU", {"hidden_size": 6, "dtype": torch.float64}, "computes in float32"),
    ],
)
def test_a_kernel_that_cannot_run_the_problem_is_refused_with_the_reason(
    name: str, options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    module = getattr(fusedrnn, name)(2, **options)
    refusal = f"of the CUDA kernels allowed \\(block, .*none can run {name} forward .*{reason}"
    with pytest.raises(ValueError, match=f"(?s){refusal}"):
        module(torch.randn(4, 2, 2, dtype=options.get("dtype")))


def test_a_layer_by_itself_cannot_be_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "torch")
    with pytest.raises(ValueError, match="FUSEDRNN_CUDA_KERNEL=torch leaves a layer by itself no"):
        fusedrnn.LSTM(2, 3)(torch.randn(4, 2, 2))


def test_a_kernel_that_does_not_start_is_told_with_its_plan() -> None:
    GLUE.start(0)
    plan = r"GRU backward: cluster kernel, T=5, B=3, H=100 padded to \d+, tile \d+, \d rows for \d+"
    message = rf"a kernel did not start, invalid configuration argument \({plan} blocks, .* bytes"
    with pytest.raises(RuntimeError, match=message):
        GLUE.start(9)


def test_a_training_step_makes_one_plan_for_a_layer_and_pass() -> None:
    B, H = 3, 64

    def plans(T: int, I: int) -> int:  # noqa: E741 -- the symbol for the input size
        """Those made by a stack of two layers, its own choice included."""
        before = GLUE.plans_made()
        assert not GLUE.goes_by_torch(T, B, H, 2)
        fusedrnn.LSTM(I, H, 2)(torch.randn(T, B, I))[0].sum().backward()
        return int(GLUE.plans_made() - before)

    plans(4, 32)  # tiles are checked at their first use, which makes plans too
    assert plans(5, 32) == 4
    assert plans(5, 32) == 0
    assert plans(6, H) == 2  # both layers are alike
    before = GLUE.plans_made()
    fusedrnn.LSTM(32, H)(torch.randn(7, B, 32))[0].sum().backward()
    assert GLUE.plans_made() - before == 2  # back on what forward chose


def test_what_is_learnt_of_a_device_is_chosen_by_at_once() -> None:
    x, module = torch.randn(8, 3, 32), fusedrnn.GRU(32, 96)
    module(x)
    before = GLUE.plans_made()
    module(x)
    assert GLUE.plans_made() == before
    GLUE.exclude(False, 63)  # no tile there is
    module(x)
    assert GLUE.plans_made() > before


def test_a_device_that_cannot_be_asked_is_told() -> None:
    program = "import torch_glue_plugin, torch, fusedrnn; fusedrnn.GRU(2, 3)(torch.randn(4, 2, 2))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FUSEDRNN_HOST_SM": "1"},
        capture_output=True,
        text=True,
    )
    expected = "fusedrnn: CUDA device 0 cannot be asked what it is: no CUDA-capable device"
    assert expected in done.stderr
