"""The products around the CUDA half's recurrence, and how they run beside it. Run by
tests/cuda/test_cuda_glue.py as torch_glue_checks.py is; cuBLASLt and the streams are the stand-ins
in headers/, which multiply in float64, round to TF32 where that was asked for, and find a wait that
is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fusedrnn
from support.problems import MODES, Problem, build, check, inputs

GLUE = torch.ops.fusedrnn_glue
RNN: Any = torch.backends.cudnn.rnn


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """No test leaves work behind that the main stream has not waited for."""
    GLUE.forget_wait(-1)
    GLUE.settle()
    yield
    GLUE.forget_wait(-1)
    assert GLUE.settle() == ""


@pytest.fixture
def tf32() -> Iterator[None]:
    RNN.fp32_precision = "tf32"
    yield
    RNN.fp32_precision = "ieee"


def run(problem: Problem, x: Any, module: Any, slope: Tensor) -> list[Tensor]:
    """Output, last states and, where the problem trains, all gradients."""
    states = inputs(problem, torch.float32)[1]
    given = (tuple(states) if problem.mode == "LSTM" else states[0]) if states else None
    output, final = module(x, given)
    y = output.data if problem.form == "sorted" else output
    found = [y, *(final if problem.mode == "LSTM" else (final,))]
    if not torch.is_grad_enabled():
        return found
    leaves = [*module.parameters(), *(t for t in (*states, x) if getattr(t, "requires_grad", 0))]
    return found + list(torch.autograd.grad((y * slope).sum() + found[-1].sum(), leaves))


def results(problem: Problem) -> list[Tensor]:
    x, _, _ = inputs(problem, torch.float32)
    rows = x.data.shape[0] if problem.form == "sorted" else x.shape[0]
    slope = torch.randn(rows, *([] if problem.form == "sorted" else [problem.B]), 1)
    return run(problem, x, build(problem, fusedrnn), slope)


@pytest.mark.parametrize("chunk", ["1", "2", "3"])
@pytest.mark.parametrize("form", ["batched", "unsorted"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("mode", MODES)
def test_sequences_in_pieces_are_as_accurate(
    mode: str, bidirectional: bool, form: str, chunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", chunk)
    for hx in ("none", "grad"):
        problem = Problem(mode, T=7, B=4, I=3, H=40, form=form, hx=hx, bidirectional=bidirectional)
        GLUE.forget_wait(-1)
        check(problem)
        assert GLUE.forget_wait(-1) >= 7 // int(chunk), "it ran in one piece"


@pytest.mark.parametrize("mode", MODES)
def test_clusters_in_pieces_are_as_accurate(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "cluster")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "2")
    check(Problem(mode, T=5, B=3, H=150, form="unsorted", hx="grad", bidirectional=True))


def test_pieces_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "2")
    monkeypatch.setenv("FUSEDRNN_HOST_CAPTURES", "3")
    check(Problem("LSTM", T=5, B=3, H=40, form="unsorted", hx="grad", bidirectional=True))


@pytest.mark.parametrize("form", ["batched", "sorted"])
@pytest.mark.parametrize("mode", MODES)
def test_pieces_give_the_same_bits_every_time(
    mode: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "2")
    problem = Problem(mode, T=7, B=4, I=3, H=40, form=form, hx="grad", bidirectional=True)
    torch.manual_seed(3)
    once = results(problem)
    torch.manual_seed(3)
    assert all(map(torch.equal, once, results(problem)))


@pytest.mark.parametrize("form", ["batched", "sorted"])
@pytest.mark.parametrize("mode", MODES)
def test_outputs_are_the_same_bits_however_long_the_pieces(
    mode: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(mode, T=7, B=4, I=3, H=40, form=form, hx="given", bidirectional=True)

    def outputs(chunk: int) -> list[Tensor]:
        monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", str(chunk))
        torch.manual_seed(3)
        with torch.no_grad():
            return results(problem)

    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    whole = outputs(0)
    for chunk in (1, 2, 3, 7, 100):
        assert all(map(torch.equal, whole, outputs(chunk)))


@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", ["batched", "sorted"])
@pytest.mark.parametrize("mode", ["LSTM", "RNN_TANH"])
def test_a_missing_wait_is_found(
    mode: str, form: str, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "2")
    problem = Problem(mode, T=9, B=4, I=3, H=40, form=form, bidirectional=True)
    x = inputs(problem, torch.float32)[0]
    data = x.data if form == "sorted" else x
    module = build(problem, fusedrnn)
    slope = torch.randn(len(data), *([] if form == "sorted" else [4]), 1)

    def fault(forgotten: int) -> str:
        GLUE.settle()
        GLUE.forget_wait(forgotten)
        GLUE.written([data, *module.parameters()])
        try:
            with torch.set_grad_enabled(trains):
                run(problem, x, module, slope)
        except RuntimeError as error:
            return str(error)
        return str(GLUE.settle())

    assert fault(-1) == ""
    waits = GLUE.forget_wait(-1)
    assert waits == (8 if not trains else 8 + 6)
    unseen = [n for n in range(waits) if fault(n) == ""]
    # The reserve holds all steps: there a later piece needs no wait of its own, since the first one
    # waited for what made the input.
    kept = trains and mode == "LSTM"
    assert unseen == ([2, 4, 6] if kept else [])
    GLUE.settle()


def test_an_error_midway_leaves_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", "2")
    module, x = fusedrnn.GRU(3, 40, bidirectional=True), torch.randn(7, 4, 3)
    message = (
        r"cuBLASLt did not start a float32 product of \(8, 3\) and \(3, 120\) with a bias, rows "
        r"3, 3 and 120 elements apart: CUBLAS_STATUS_NOT_SUPPORTED \(15\)"
    )
    for fail in range(2, 6):
        GLUE.products(fail)
        with torch.no_grad(), pytest.raises(RuntimeError, match=message):
            module(x)
        assert GLUE.settle() == ""


def test_memory_of_inference_does_not_grow_with_the_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    module = fusedrnn.LSTM(3, 40)

    def largest(chunk: str) -> int:
        """Bytes of the largest allocation, in steps of y."""
        monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", chunk)
        x = torch.randn(40, 4, 3)
        activities = [ProfilerActivity.CPU]
        with torch.no_grad(), profile(activities=activities, profile_memory=True) as profiler:
            module(x)
        sizes = [event.cpu_memory_usage for event in profiler.events() if "empty" in event.name]
        return int(max(sizes)) // (4 * 40 * 4)

    assert largest("0") == 40 * 4
    assert largest("2") == 2 * (2 + 4) * 4  # two pieces, and what is read ahead on either side


@pytest.mark.parametrize("bad", ["-1", "two"])
def test_a_chunk_that_is_no_number_of_steps_is_refused(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", bad)
    with pytest.raises(ValueError, match=f"FUSEDRNN_CUDA_CHUNK must be a number .*, got {bad}"):
        fusedrnn.LSTM(2, 3)(torch.randn(4, 2, 2))


# Precision


class Tf32(TorchDispatchMode):
    """Torch's matrix products with operands rounded to TF32, sums in float32: what cuDNN does."""

    PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)

    @staticmethod
    def rounded(t: Tensor) -> Tensor:
        return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self.PRODUCTS:
            *bias, a, b = args
            args = (*bias, self.rounded(a), self.rounded(b))
        return func(*args, **(kwargs or {}))


def by_definition(problem: Problem, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The output of a layer of one direction, step by step: torch.nn's equations."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = c = x.new_zeros(problem.B, problem.H)
    outputs = []
    for i in nn.functional.linear(x.flatten(0, 1), w_ih, b_ih).unflatten(0, x.shape[:2]):
        g = nn.functional.linear(h, w_hh, b_hh)
        if problem.mode == "LSTM":
            i, f, n, o = (i + g).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * n.tanh()
            h = o.sigmoid() * c.tanh()
        elif problem.mode == "GRU":
            (r, z, n), (hr, hz, hn) = i.chunk(3, 1), g.chunk(3, 1)
            z = (z + hz).sigmoid()
            h = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h
        elif problem.mode == "MGU":
            (f, n), (hf, hn) = i.chunk(2, 1), g.chunk(2, 1)
            f = (f + hf).sigmoid()
            h = h + f * ((n + f * hn).tanh() - h)
        else:
            h = (i + g).tanh() if problem.mode == "RNN_TANH" else (i + g).relu()
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("kernel", ["block", "stepwise"])
@pytest.mark.parametrize("mode", MODES)
def test_errors_in_tf32_are_at_most_twice_torchs(
    mode: str, kernel: str, tf32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
    problem = Problem(mode, T=12, B=6, I=24, H=40)
    module = build(problem, fusedrnn)
    # Numbers that bring no unit of relu to where rounding decides between slopes 0 and 1.
    x = torch.randn(12, 6, 24, generator=torch.Generator().manual_seed(5)).requires_grad_()
    slope = torch.randn(12, 6, 40, generator=torch.Generator().manual_seed(3))

    def everything(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        return [y.detach(), *torch.autograd.grad((y * slope).sum(), leaves)]

    weights = list(module.parameters())
    GLUE.products()
    ours = everything(module(x)[0], [x, *weights])
    products, _, rounded = GLUE.products()
    assert rounded == products > 0
    with Tf32():  # type: ignore[no-untyped-call]
        theirs = everything(by_definition(problem, weights, x), [x, *weights])
    wide = [t.detach().double().requires_grad_() for t in (x, *weights)]
    exact = everything(by_definition(problem, wide[1:], wide[0]), wide)
    for i, (a, b, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        of_ours, of_theirs = ((t.double() - e).norm() for t in (a, b))
        assert of_ours <= 2 * of_theirs, f"result {i}: {of_ours:.2e} against {of_theirs:.2e}"
        # And it is TF32's error that is compared.
        assert of_theirs > 1e-5 * e.norm()


@pytest.mark.parametrize(("sm", "rounds"), [("75", False), ("80", True)])
def test_products_go_by_the_switch_for_rnns_alone(
    sm: str, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"""
import torch, torch_glue_plugin, fusedrnn
module, x = fusedrnn.LSTM(3, 40), torch.randn(5, 2, 3)
for matmul in ("ieee", "tf32"):
    torch.backends.cuda.matmul.fp32_precision = matmul
    for switch in ("ieee", "tf32"):
        torch.backends.cudnn.rnn.fp32_precision = switch
        torch.ops.fusedrnn_glue.products()
        module(x)[0].sum().backward()
        products, _, rounded = torch.ops.fusedrnn_glue.products()
        assert rounded == (products if switch == "tf32" and {rounds} else 0) and products > 0
assert module.double()(x.double())[0].dtype == torch.float64
assert torch.ops.fusedrnn_glue.products()[2] == 0
"""
    monkeypatch.setenv("FUSEDRNN_HOST_SM", sm)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Offsets of packed batches


def test_layers_of_a_stack_share_one_copy_of_the_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    module = fusedrnn.LSTM(3, 40, 3, bidirectional=True)
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (13, 11, 3)])

    def copies() -> int:
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            module(packed)
        return sum(event.name == "aten::copy_" for event in profiler.events())

    assert [copies(), copies()] == [1, 0]


def test_kept_offsets_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def offsets(*rows: int) -> Tensor:
        found: Tensor = GLUE.offsets(rows)
        expected = torch.tensor([0, *rows]).cumsum(0)
        assert torch.equal(found, expected)
        return found

    first = offsets(3, 2, 1)
    assert offsets(3, 2, 1).data_ptr() == first.data_ptr()
    for n in range(1, 20):  # more than are kept
        offsets(3, n)
        offsets(3, 2, 1)
    assert offsets(3, 2, 1).data_ptr() == first.data_ptr()
    for n in range(1, 20):
        offsets(4, n)
    offsets(3, 2, 1)
    assert torch.equal(first, torch.tensor([0, 3, 5, 6]))


def test_a_capture_keeps_offsets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = GLUE.offsets([5, 4])
    places = {outside.data_ptr()}
    kept = [outside]
    for capture in ("7", "8"):
        monkeypatch.setenv("FUSEDRNN_HOST_CAPTURES", capture)
        kept.append(GLUE.offsets([5, 4]))
        assert GLUE.offsets([5, 4]).data_ptr() == kept[-1].data_ptr()
        places.add(kept[-1].data_ptr())
    assert len(places) == 3
    monkeypatch.delenv("FUSEDRNN_HOST_CAPTURES")
    assert GLUE.offsets([5, 4]).data_ptr() == outside.data_ptr()
