"""Calling RNN, LSTM and GRU: arguments accepted, refused and returned as torch.nn does.

The numbers are test_layers.py's matter; here it is the protocol, with torch.nn as oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from support.oracle import close, pair, refusal, states, without_cudnn
from support.oracle import packed as pack

NAMES = ("RNN", "LSTM", "GRU")


def packed(dtype: torch.dtype = torch.float32, features: int = 3) -> PackedSequence:
    rows = [torch.randn(n, features, dtype=dtype) for n in (2, 4)]
    return pack(rows, enforce_sorted=False)


WRONG: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "1-D input": lambda name: (torch.randn(3),),
    "4-D input": lambda name: (torch.randn(2, 2, 2, 3),),
    "features": lambda name: (torch.randn(4, 2, 7),),
    "features, unbatched": lambda name: (torch.randn(4, 7),),
    "dtype": lambda name: (torch.randn(4, 2, 3, dtype=torch.float64),),
    "half": lambda name: (torch.randn(4, 2, 3).half(),),
    "integers": lambda name: (torch.ones(4, 2, 3, dtype=torch.int64),),
    "hx 2-D for 3-D": lambda name: (torch.randn(4, 2, 3), states(name, 2, 5)),
    "hx 4-D for 3-D": lambda name: (torch.randn(4, 2, 3), states(name, 1, 1, 2, 5)),
    "hx 3-D for 2-D": lambda name: (torch.randn(4, 3), states(name, 1, 2, 5)),
    "hx batch": lambda name: (torch.randn(4, 2, 3), states(name, 1, 7, 5)),
    "hx batch 1": lambda name: (torch.randn(4, 2, 3), states(name, 1, 1, 5)),
    "hx layers": lambda name: (torch.randn(4, 2, 3), states(name, 2, 2, 5)),
    "hx size": lambda name: (torch.randn(4, 2, 3), states(name, 1, 2, 6)),
    "hx size, unbatched": lambda name: (torch.randn(4, 3), states(name, 1, 6)),
    "T=0": lambda name: (torch.randn(0, 2, 3),),
    "T=0, B=0": lambda name: (torch.randn(0, 0, 3),),
    "T=0, unbatched": lambda name: (torch.randn(0, 3),),
    "input on meta": lambda name: (torch.randn(4, 2, 3, device="meta"),),
    "hx on meta": lambda name: (torch.randn(4, 2, 3), states(name, 1, 2, 5, device="meta")),
}


@pytest.mark.cpu_only("cuDNN has words of its own")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", WRONG)
def test_forward_refuses_as_torch(name: str, case: str) -> None:
    ours, theirs = pair(name, 3, 5)
    args = WRONG[case](name)
    assert refusal(partial(ours, *args)) == refusal(partial(theirs, *args))


@pytest.mark.cpu_only("cuDNN has words of its own")
def test_cell_state_of_a_wrong_size_is_refused_as_torch_does() -> None:
    ours, theirs = pair("LSTM", 3, 5, proj_size=2)
    x = torch.randn(4, 2, 3)
    for h, c in (((1, 2, 2), (1, 2, 2)), ((1, 2, 5), (1, 2, 5)), ((1, 2, 2), (2, 5))):
        hx = (torch.randn(h), torch.randn(c))
        assert refusal(partial(ours, x, hx)) == refusal(partial(theirs, x, hx))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_list_for_hx_is_refused_where_torch_does(name: str) -> None:
    ours, theirs = pair(name, 3, 5)
    x, hx = torch.randn(4, 2, 3), [torch.randn(1, 2, 5)]
    assert refusal(partial(ours, x, hx)) == refusal(partial(theirs, x, hx))


@pytest.mark.parametrize("name", NAMES)
def test_hx_of_another_dtype_is_refused(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    hx = states(name, 1, 2, 5, dtype=torch.float64)
    assert refusal(partial(module, torch.randn(4, 2, 3), hx))[0] is RuntimeError


@pytest.mark.parametrize("name", NAMES)
def test_packed_input_is_checked_like_any_other(name: str) -> None:
    # torch.nn checks it for RNN and GRU, in these words; nn.LSTM fails deep inside.
    module = getattr(fusedrnn, name)(3, 5)
    oracle = nn.GRU(3, 5)
    wrong = (packed(torch.float64), packed(features=7))
    for x in wrong:
        assert refusal(partial(module, x)) == refusal(partial(oracle, x))
    for shape in ((1, 7, 5), (2, 2, 5), (1, 2, 6), (2, 5)):
        error = refusal(partial(module, packed(), states(name, *shape)))
        index = "[0]" if name == "LSTM" else ""
        text = f"Expected hidden{index} size (1, 2, 5), got {list(shape)}"
        assert error[:2] == (RuntimeError, text)


@pytest.mark.parametrize("name", NAMES)
def test_keyword_arguments_and_results_are_torchs(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2)
    x, hx = torch.randn(4, 2, 3), states(name, 2, 2, 5)
    a, b = ours(input=x, hx=hx), theirs(input=x, hx=hx)
    close(a, b)
    assert type(a) is type(b) is tuple
    assert type(a[1]) is type(b[1])
    if name == "LSTM":
        close(ours(x, list(hx)), b)


@pytest.mark.parametrize("name", NAMES)
def test_unbatched_input_takes_unbatched_hx_whatever_batch_first_says(name: str) -> None:
    for batch_first in (False, True):
        ours, theirs = pair(name, 3, 5, 2, batch_first=batch_first)
        x, hx = torch.randn(4, 3), states(name, 2, 5)
        close(ours(x, hx), theirs(x, hx))
        wrong = states(name, 2, 6)
        assert refusal(partial(ours, x, wrong)) == refusal(partial(theirs, x, wrong))


@pytest.mark.parametrize("name", NAMES)
def test_batch_first_means_nothing_to_packed_input(name: str) -> None:
    x, hx = packed(), states(name, 2, 2, 5)
    ours, theirs = pair(name, 3, 5, 2, batch_first=True)
    (a, a_n), (b, b_n) = ours(x, hx), theirs(x, hx)
    close((a.data, a_n), (b.data, b_n))
    close((a.data, a_n), tuple(getattr(t, "data", t) for t in pair(name, 3, 5, 2)[0](x, hx)))


@pytest.mark.cpu_only("torch.nn's own refusal is of the CPU")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_strided_nested_tensors_are_refused_as_by_torch(name: str) -> None:
    rows = [torch.randn(n, 3) for n in (2, 4)]
    x = torch.nested.nested_tensor(rows, layout=torch.strided)
    for module in pair(name, 3, 5):
        assert issubclass(refusal(partial(module, x))[0], RuntimeError)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_output_has_torchs_shape_and_strides(name: str, batch_first: bool) -> None:
    ours, theirs = pair(name, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    ours.double(), theirs.double()  # in float32 nn.LSTM takes oneDNN's layout
    for shape in ((4, 2, 3), (4, 3), (4, 0, 3) if not batch_first else (0, 4, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        with without_cudnn():
            a, b = ours(x), theirs(x)
        close(a, b)
        assert a[0].stride() == b[0].stride() or 0 in shape


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_runs_and_gives_float32_gradients(name: str) -> None:
    device = torch.get_default_device().type
    module = getattr(fusedrnn, name)(3, 5, 2)
    x = torch.randn(4, 2, 3, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        output, _ = module(x)
        module(x, states(name, 2, 2, 5))
        module(pack([torch.randn(4, 3), torch.randn(2, 3)]))
    exact = module(x)[0]
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.02)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_float64_input_under_autocast_passes_the_dtype_check(name: str) -> None:
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        getattr(fusedrnn, name)(3, 5)(torch.randn(4, 2, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", NAMES)
def test_meta_module_infers_shapes(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2, bidirectional=True, device="meta")
    x = torch.randn(4, 2, 3, device="meta")
    a, b = ours(x), theirs(x)
    assert a[0].shape == b[0].shape
    assert a[0].device.type == "meta"
    final = (a[1], b[1]) if name == "LSTM" else ((a[1],), (b[1],))
    assert [t.shape for t in final[0]] == [t.shape for t in final[1]]


@pytest.mark.parametrize("name", NAMES)
def test_hooks_checkpoint_and_inference_mode_work(name: str) -> None:
    from torch.utils.checkpoint import checkpoint

    module, seen = getattr(fusedrnn, name)(3, 5), []
    module.register_forward_hook(lambda *args: seen.append(1))
    x = torch.randn(4, 2, 3, requires_grad=True)
    with torch.inference_mode():
        module(x)
    expected = module(x)[0]
    (slope,) = torch.autograd.grad(expected.sum(), x)
    again = checkpoint(lambda v: module(v)[0], x, use_reentrant=False)
    close(again, expected)
    close(torch.autograd.grad(again.sum(), x)[0], slope)
    assert len(seen) == 3  # once each, recomputation stops before the hook
