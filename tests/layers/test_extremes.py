"""Values at the ends of what a dtype holds: not finite, huge, below the least normal number, and
gates saturated over ten thousand steps.

torch.nn is the measure. What is not finite spoils the same elements; what torch.nn computes finite
is finite here and as accurate, gradients above all: one overflow in a product whose other factor is
small would lose a training run that torch.nn survives. Only gradients below the least normal number
may be zeros.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import _C
from support.accuracy import assert_as_accurate_as
from support.oracle import tensors_of
from support.problems import MODES, SHORT, Problem, build, inputs
from support.theirs import SMOOTH, THEIRS, name_of

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
HUGE = {F32: 1e30, F64: 1e300, BF16: 1e30, F16: 3e4}
TINY = {F32: 1e-40, BF16: 1e-40, F16: 1e-6}
SMALL = Problem(T=5, B=4, I=6, H=9, hx="grad")
OUTPUTS = ("output", "h_n", "c_n")


@pytest.fixture(autouse=True)
def _one_thread(_same_start: None) -> None:
    torch.set_num_threads(1)


Named = dict[str, Tensor]


def run(p: Problem, namespace: Any, change: Callable[[Named], None], dtype: Any = None) -> Named:
    """Outputs and gradients of p after ``change`` to its operands, weights and slopes, all by name;
    in float64, if that is the dtype given, from the values that p's own dtype holds."""
    module = build(p, namespace)
    input, states, leaves = inputs(p, p.dtype)
    names = ("input", "hx", "cx")
    own = dict(zip(names, leaves, strict=False)) | dict(module.named_parameters())
    sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
    shape = (len(input.data),) if sizes is not None else (p.T, p.B)
    draw = torch.Generator().manual_seed(4)
    slopes = {"grad output": torch.randn(*shape, p.D * (p.P or p.H), generator=draw)}
    slopes |= {
        f"grad {k}": torch.randn(s.shape, generator=draw)
        for k, s in zip(("h_n", "c_n"), states, strict=False)
    }
    slopes = {k: s.to(p.dtype) for k, s in slopes.items()}
    with torch.no_grad():
        change(own | slopes)
    if dtype is not None:
        module.to(dtype)
        own = {k: v.detach().to(dtype).requires_grad_() for k, v in own.items() if k in names}
        own |= dict(module.named_parameters())
    states = tuple(own[k] for k in names[1:] if k in own)
    x: Any = own["input"]
    if sizes is not None:
        rows = nn.utils.rnn.pack_padded_sequence(x, (sizes[:, None] > torch.arange(p.B)).sum(0))
        x = PackedSequence(rows.data, sizes)
    output, final = module(x, states if p.mode == "LSTM" else states[0])
    outputs = (*tensors_of(output), *tensors_of(final))
    torch.autograd.backward(outputs, [s.to(outputs[0].dtype) for s in slopes.values()])
    found = {k: v.detach() for k, v in zip(OUTPUTS, outputs, strict=False)}
    return found | {f"d {k}": v.grad for k, v in own.items() if v.grad is not None}


def places(p: Problem) -> list[str]:
    """What may hold an extreme value."""
    names = ["input", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    names += ["grad output", "grad h_n"]
    names += ["cx", "grad c_n"] if p.mode == "LSTM" else []
    return names + (["weight_hr_l0"] if p.P else [])


def put(place: str, value: float) -> Callable[[Named], None]:
    """Sets one element, neither in the first row nor in the first step."""

    def change(named: Named) -> None:
        elements = named[place].view(-1)
        elements[min(len(elements) - 1, 23)] = value

    return change


def scale(factors: dict[str, float]) -> Callable[[Named], None]:
    def change(named: Named) -> None:
        for place, factor in factors.items():
            named[place].mul_(factor)

    return change


def kinds(t: Tensor) -> Tensor:
    """0 where finite; another number for each of inf, -inf and nan."""
    return t.isposinf() + 2 * t.isneginf() + 4 * t.isnan()


def assert_no_worse(ours: Named, theirs: Named, exact: Named, least: float = 0.0) -> bool:
    """Where torch.nn's results are finite so are ours, and as accurate, but for gradients below
    ``least``. False if nothing could be compared, as the results do not fit."""
    assert ours.keys() == theirs.keys() == exact.keys()
    # What comes after an overflow is decided by whether a product was rounded before it was added.
    fits = all(theirs[k].isfinite().all() for k in OUTPUTS if k in theirs)
    fits = fits and all(exact[k].to(v.dtype).isfinite().all() for k, v in theirs.items())
    for name, expected in theirs.items() if fits else ():
        kept = expected.isfinite()
        lost = (kept & ~ours[name].isfinite()).sum()
        assert not lost, f"{name}: torch.nn has {lost} finite elements that are not so here"
        if name.startswith("d "):
            kept &= (exact[name].abs() >= least) | (ours[name].abs() >= least)
        zero = torch.zeros(())
        values = [torch.where(kept, t, zero.to(t)) for t in (ours[name], expected, exact[name])]
        # The range is at stake; one huge element leaves the rounding of the others to chance.
        assert_as_accurate_as(*values, factor=8, name=name)
    return fits


def compare(p: Problem, changes: Sequence[Callable[[Named], None]], least: float = 0.0) -> None:
    """Every change; half of them and more leave something to compare."""
    compared = [
        assert_no_worse(run(p, fusedrnn, c), run(p, THEIRS, c), run(p, THEIRS, c, F64), least)
        for c in changes
    ]
    assert sum(compared) >= len(changes) / 2


FORMS: dict[str, dict[str, Any]] = {
    "batched": {},
    "one step": {"T": 1},
    "chunks": {"T": 20, "B": 14, "H": 17},
    "packed": {"form": "sorted"},
    "both directions": {"bidirectional": True},
    "projected": {"P": 3},
}


def problems_of(*dtypes: torch.dtype) -> list[Any]:
    return [
        pytest.param(replace(SMALL, mode=m, dtype=t, **form), id=f"{m}-{SHORT[t]}-{name}")
        for m in MODES
        for t in dtypes
        for name, form in FORMS.items()
        if (t == F32 and (m == "LSTM" or name != "projected")) or name in ("packed", "chunks")
    ]


@pytest.mark.parametrize("p", problems_of(F32, F64, BF16, F16))
def test_what_is_not_finite_spoils_what_it_spoils_in_torch(p: Problem) -> None:
    for place in places(p):
        for value in (torch.inf, -torch.inf, torch.nan):
            # In 16 bits both begin from the same values, but ours rounds only what it returns.
            theirs = run(p, THEIRS, put(place, value), F32 if p.dtype in (BF16, F16) else None)
            ours = run(p, fusedrnn, put(place, value))
            for name, expected in theirs.items():
                what = f"{name} with {value} in {place}"
                assert torch.equal(ours[name].isfinite(), expected.isfinite()), what
                assert torch.equal(kinds(ours[name]), kinds(expected)), what


@pytest.mark.parametrize("p", problems_of(F32, F64, BF16, F16))
def test_one_huge_value_loses_nothing_that_torch_keeps(p: Problem) -> None:
    compare(p, [put(place, HUGE[p.dtype]) for place in places(p)])


# To the instructions that multiply bfloat16 denormals are zeros (docs/numerics.md).
@pytest.fixture
def _float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CPU_NARROW", "0")


@pytest.mark.usefixtures("_float32_products")
@pytest.mark.parametrize("p", problems_of(F32, BF16, F16))
def test_operands_below_the_least_normal_number_are_not_lost(p: Problem) -> None:
    # But for gradients that lie there too: going back, such results are zeros.
    few = 64 * torch.finfo(F32).tiny
    compare(p, [scale({place: TINY[p.dtype]}) for place in places(p)], few)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere they cost nothing")
@pytest.mark.parametrize("mode", SMOOTH)
def test_a_gradient_that_vanishes_does_not_pass_through_numbers_below_the_normal_ones(
    mode: str,
) -> None:
    def gradients(namespace: Any, threads: int) -> Tensor:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        module = getattr(namespace, name_of(mode))(16, 16)
        x = torch.randn(200, 8, 16, requires_grad=True)
        with torch.no_grad():
            for w in module.parameters():
                w.mul_(0.7)
        return torch.autograd.grad(module(x)[0][-1].sum(), x)[0]

    def lost(t: Tensor) -> Tensor:
        return (t != 0) & (t.abs() < torch.finfo(F32).tiny)

    ours, theirs = gradients(fusedrnn, 1), gradients(THEIRS, 1)
    assert lost(theirs).any()
    assert not lost(ours).any()
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=64 * torch.finfo(F32).tiny)
    assert all(torch.equal(ours, gradients(fusedrnn, n)) for n in (2, 3))
    # To the threads that did it, the caller's too, such numbers are numbers again.
    torch.set_num_threads(3)
    assert (torch.full((1 << 18,), 1e-39) * 0.5).all()


@pytest.mark.parametrize("value", [1e-40, -1e-40])
def test_relu_has_its_slope_however_little_above_zero(value: float) -> None:
    module: Any = fusedrnn.RNN(3, 3, nonlinearity="relu", bias=False)
    nn.init.ones_(module.weight_ih_l0)
    x = torch.full((1, 1, 3), value, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [3.0 if value > 0 else 0.0]


PAIRS = [
    {"input": 1e10, "weight_ih_l0": 1e5},
    {"hx": 1e15, "weight_hh_l0": 1e-15},
    {"hx": 1e30, "grad h_n": 1e-30},
    {"hx": 1e-30, "grad h_n": 1e30, "grad output": 1e30},
    {"cx": 1e30, "grad h_n": 1e30, "grad output": 1e30},
    {"cx": 1e25, "grad c_n": 1e10},
    {"grad output": 1e34, "bias_ih_l0": 30},
    {"input": 1e-40, "grad output": 1e20, "grad h_n": 1e20},
    {"hx": 1e-40, "grad output": 1e20, "grad h_n": 1e20},
]


@pytest.mark.usefixtures("_float32_products")
@pytest.mark.parametrize("p", problems_of(F32, BF16))
def test_operands_large_and_small_together_lose_nothing_that_torch_keeps(p: Problem) -> None:
    compare(p, [scale(f) for f in PAIRS if "cx" not in f or p.mode == "LSTM"])


@pytest.mark.parametrize("dtype", [F32, F64], ids=SHORT.get)
def test_a_gradient_that_fits_survives_a_product_that_does_not(dtype: torch.dtype) -> None:
    # d c_prev is beyond the largest number; times the slope of a closed gate it is not.
    root = torch.finfo(dtype).max ** 0.55
    closed = torch.finfo(dtype).max ** -0.2
    bias = torch.tensor(closed, dtype=F64).logit().item()
    lstm: Any = fusedrnn.LSTM(1, 1, dtype=dtype)
    gru: Any = fusedrnn.GRU(1, 1, dtype=dtype)
    for module in (lstm, gru):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    x, h = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, dtype=dtype)
    with torch.no_grad():
        lstm.bias_ih_l0[1] = bias
    c = torch.full_like(h, root)
    lstm(x, (h, c))[1][1].backward(torch.full_like(h, root))
    expected = torch.full((), root * closed, dtype=F64) * root
    torch.testing.assert_close(lstm.bias_ih_l0.grad[1].double(), expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        gru.bias_ih_l0[0] = bias
        gru.bias_hh_l0[2] = root
        gru.bias_ih_l0[2] = -root * torch.tensor(bias, dtype=dtype).sigmoid()
    gru(x, h)[1].backward(torch.full_like(h, root))
    assert gru.bias_ih_l0.grad.isfinite().all()
    assert gru.bias_hh_l0.grad.isfinite().all()


LONG = 10_000


def gates_to(module: Any, values: list[float], recurrent: float = 0.0) -> None:
    """Biases that hold each gate where the test wants it, and weights that leave it there."""
    H = module.hidden_size
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0.copy_(torch.tensor(values).repeat_interleave(H))
        module.weight_hh_l0[-H:].fill_diagonal_(recurrent)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=SHORT.get)
@pytest.mark.parametrize("H", [1, 19])
def test_open_gates_carry_state_and_gradient_through_ten_thousand_steps(
    dtype: torch.dtype, H: int
) -> None:
    x = torch.zeros(LONG, 2, 1, dtype=dtype)

    def check(module: Any, state: int, values: list[float], **recurrent: float) -> None:
        gates_to(module, values, **recurrent)
        own: list[Any] = [torch.rand(1, 2, H, dtype=dtype) for _ in range(state + 1)]
        own = [s.requires_grad_() for s in own]
        final = module(x, tuple(own) if state else own[0])[1]
        last = final[1] if state else final
        slope = torch.randn_like(last)
        assert torch.equal(last, own[-1])
        last.backward(slope)
        assert torch.equal(own[-1].grad, slope)
        assert all(p.grad.isfinite().all() for p in module.parameters())

    # i closed, f open; z open; f closed; relu of what is positive
    check(fusedrnn.LSTM(1, H, dtype=dtype), 1, [-200, 200, 0, 0])
    check(fusedrnn.GRU(1, H, dtype=dtype), 0, [0, 200, 0])
    check(fusedrnn.MGU(1, H, dtype=dtype), 0, [-200, 0])
    check(fusedrnn.RNN(1, H, nonlinearity="relu", dtype=dtype), 0, [0], recurrent=1)


@pytest.mark.parametrize("mode", SMOOTH)
def test_gates_saturated_for_ten_thousand_steps_give_torchs_results(mode: str) -> None:
    p = Problem(mode, T=LONG, B=2, I=3, H=5, hx="grad")

    def saturate(named: Named) -> None:
        for name, tensor in named.items():
            if name.startswith(("weight_ih", "bias")):
                tensor.mul_(100)

    compare(p, [saturate])


@pytest.mark.parametrize("isa", [isa for isa in _C.cpu_isas() if isa != _C.cpu_isa()])
@pytest.mark.skipif("FUSEDRNN_CPU_ISA" in os.environ, reason="is run by this test")
def test_every_other_instruction_set_passes_these_too(
    isa: str, pytestconfig: pytest.Config
) -> None:
    options = ["-q", "-x", "-k", "not torchs_results and not fp16"]
    options += [] if pytestconfig.getoption("night") else ["--sample", "0/3"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(Path(__file__))],
        env=os.environ | {"FUSEDRNN_CPU_ISA": isa},
        cwd=Path(__file__).parent,  # from the root it would find the checkout's package
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
