"""How far each CUDA kernel is from float64: at most twice as far as cuDNN in the same mode, as in
every other test. Every tile, many rows, many steps, pieces, TF32, autocast."""

from __future__ import annotations

import copy

import pytest
import torch

import fusedrnn
from benchmarks import gpu_tiles
from fusedrnn import _C
from support.accuracy import assert_as_accurate_as
from support.gpu import KERNELS, NAMES, NEEDS_GPU, OF_MODULE, OWN, Force, can_run
from support.oracle import pair, tensors_of, without_cudnn
from support.planning import only
from support.problems import MODES, Problem, check, run
from support.theirs import SMOOTH

pytestmark = NEEDS_GPU


HIDDEN = (1, 37, 64, 100, 128, 150, 160, 192, 200, 256, 384, 512, 600)


@pytest.mark.parametrize(("form", "bidirectional"), [("batched", False), ("unsorted", True)])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("H", HIDDEN)
@pytest.mark.parametrize("mode", MODES)
def test_each_kernel_is_as_accurate_as_cudnn_or_refuses(
    mode: str, H: int, kernel: str, form: str, bidirectional: bool, force: Force
) -> None:
    force(kernel)
    problem = Problem(
        mode, T=7, B=5, I=9, H=H, form=form, bidirectional=bidirectional, hx="grad", L=2
    )
    if can_run(only(kernel), mode, H):
        check(problem)
    else:
        with pytest.raises(ValueError, match=f"allowed \\({kernel}, .* none can run {mode}"):
            run(problem, "fusedrnn")


@pytest.mark.parametrize("less", [0, 3])
@pytest.mark.parametrize("tile", gpu_tiles.tiles(), ids=str)
def test_each_tile_is_as_accurate_as_cudnn(
    tile: gpu_tiles.Tile, less: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", str(tile.index))
    modes = ("RNN_TANH", "RNN_RELU") if tile.cell == "RNN" else (tile.mode,)
    H = tile.hidden - less
    if not can_run(_C.cuda_restriction(), modes[0], H):
        pytest.skip("too large for this GPU")
    for mode in modes:
        check(Problem(mode, T=6, B=5, I=3, H=H, hx="grad", form="sorted" if less else "batched"))
        check(Problem(mode, T=5, B=7, I=3, H=H, bidirectional=True, bias=not less))


def test_a_large_hopper_has_every_persistent_kernel() -> None:
    limits = _C.cuda_device(torch.cuda.current_device())
    if limits["sm"] != 90:
        pytest.skip("not a Hopper")
    for mode in MODES:
        assert can_run(only("block"), mode, 256 if mode.startswith("RNN") else 128)
        assert can_run(only("cluster"), mode, 512)


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("mode", MODES)
def test_more_rows_than_run_at_once_are_as_accurate(mode: str, kernel: str, force: Force) -> None:
    force(kernel)
    H = 256 if kernel == "cluster" else 64
    if not can_run(only(kernel), mode, H):
        pytest.skip(f"this GPU has no {kernel} kernel for H={H}")
    check(Problem(mode, T=4, B=1500, I=3, H=H, hx="grad"))


@pytest.mark.parametrize("kernel", ["block", "stepwise"])
def test_more_rows_than_a_grid_is_high_are_as_accurate(kernel: str, force: Force) -> None:
    force(kernel)
    with without_cudnn():
        check(Problem("LSTM", T=2, B=70_000, I=2, H=3))


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_more_than_65535_steps_are_as_accurate(name: str, kernel: str, force: Force) -> None:
    force(kernel)
    H = 400 if kernel == "cluster" else 20
    if not can_run(only(kernel), OF_MODULE[name], H):
        pytest.skip(f"this GPU has no {kernel} kernel")
    T, B = 66_000, 2
    ours, theirs = pair(name, 3, H)
    x = torch.randn(T, B, 3)
    with torch.no_grad(), without_cudnn():  # which takes at most 65,535
        exact = copy.deepcopy(theirs).double()(x.double())
        for values in zip(*(map(tensors_of, (ours(x), theirs(x), exact))), strict=True):
            assert_as_accurate_as(*values)
    v = x.clone().requires_grad_()
    ours(v)[0][-1].sum().backward()
    assert v.grad is not None
    assert v.grad.isfinite().all()
    # Steps long before the end have no more influence: it was shrunk at every one.
    assert v.grad[-5:].abs().max() > v.grad[:1000].abs().max()


@pytest.mark.parametrize("form", ["batched", "unsorted"])
@pytest.mark.parametrize("kernel", ["block", "cluster"])
@pytest.mark.parametrize("mode", MODES)
def test_sequences_in_pieces_are_as_accurate_as_cudnn(
    mode: str, kernel: str, form: str, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kernel)
    H = {"block": 100, "cluster": 400}[kernel]
    if not can_run(only(kernel), mode, H):
        pytest.skip(f"this GPU has no {kernel} kernel for {mode}")
    for chunk in (1, 16, 60):
        monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", str(chunk))
        check(Problem(mode, T=150, B=9, I=40, H=H, form=form, hx="grad", bidirectional=True))


@pytest.mark.parametrize("kernel", OWN)
# Relu's slope jumps where TF32 moves a sum past zero.
@pytest.mark.parametrize("mode", SMOOTH)
def test_errors_in_tf32_are_at_most_twice_cudnns(mode: str, kernel: str, force: Force) -> None:
    force(kernel)
    H = {"block": 100, "cluster": 400}.get(kernel, 60)
    if not can_run(only(kernel), mode, H):
        pytest.skip(f"this GPU has no {kernel} kernel for {mode}")
    torch.backends.cudnn.allow_tf32 = True
    check(Problem(mode, T=20, B=16, I=64, H=H, bidirectional=True, hx="grad"))


@pytest.mark.parametrize("kernel", ["", "block", "stepwise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_is_as_accurate_as_torchs(
    name: str, dtype: torch.dtype, kernel: str, force: Force
) -> None:
    force(kernel)
    ours, theirs = pair(name, 7, 60)
    exact = copy.deepcopy(theirs).cpu().double()
    x = torch.randn(9, 4, 7)
    results = []
    for module in (ours, theirs):
        v = x.clone().requires_grad_()
        with torch.autocast("cuda", dtype=dtype):
            y = module(v)[0]
        assert y.dtype == dtype
        y.float().sum().backward()
        assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
        assert v.grad is not None
        results.append((y, v.grad.to(dtype)))
    v64 = x.cpu().double().requires_grad_()
    y64 = exact(v64)[0]
    y64.sum().backward()
    assert_as_accurate_as(results[0][0], results[1][0], y64, name="output")
    # What autocast rounds, gradients inherit: their floor is that of the low dtype.
    assert v64.grad is not None
    assert_as_accurate_as(results[0][1], results[1][1], v64.grad, name="grad input")


def test_ieee_is_kept_where_products_elsewhere_may_be_tf32() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for mode in MODES:
            for bias in (True, False):
                check(Problem(mode, T=9, B=8, I=200, H=64, bias=bias, hx="grad"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("kernel", ["block", "stepwise"])
def test_buffers_of_more_than_2_to_31_elements_are_indexed_right(kernel: str, force: Force) -> None:
    force(kernel)
    H, B = 128, 2048
    T = 2**31 // (4 * H * B) + 10
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of free memory")
    module = fusedrnn.LSTM(2, H)
    x = torch.randn(T, B, 2, requires_grad=True)
    last = x.detach()[:, -2:].clone().requires_grad_()
    whole, alone = module(x)[0], module(last)[0]
    torch.testing.assert_close(whole[-20:, -2:], alone[-20:], rtol=1e-4, atol=1e-5)
    (dx,) = torch.autograd.grad(whole[-20:].sum(), x)
    (dlast,) = torch.autograd.grad(alone[-20:].sum(), last)
    torch.testing.assert_close(dx[-40:, -2:], dlast[-40:], rtol=1e-4, atol=1e-5)
    torch.cuda.empty_cache()
