"""RNNCell, LSTMCell and GRUCell: numbers, protocol and refusals as torch.nn's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusedrnn
from support.accuracy import assert_as_accurate_as
from support.oracle import pair, refusal, shown, states

NAMES = ("RNNCell", "LSTMCell", "GRUCell")
VARIANTS = [
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("MGUCell", {}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
]


def flat(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_forward_and_gradients_match_torch_and_float64(variant: Any, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)  # torch.nn's many small operators crawl on a busy machine
    name, options = variant
    for (B, I, H), bias, given in product(  # noqa: E741
        ((1, 1, 1), (3, 5, 37), (130, 28, 100), (2, 64, 256)), (True, False), (True, False)
    ):
        ours, theirs = (m.to(dtype) for m in pair(name, I, H, bias, **options))
        exact = copy.deepcopy(theirs).double()
        x = torch.randn(B, I, dtype=dtype)
        hx = [t.to(dtype) for t in flat(states(name, B, H))] if given else []
        slopes = [torch.randn(B, H, dtype=dtype) for _ in flat(states(name, B, H))]
        results = []
        for module in (ours, theirs, exact):
            wide = torch.float64 if module is exact else dtype
            leaves = [t.detach().to(wide).requires_grad_() for t in (x, *hx)]
            state: Any = (tuple(leaves[1:]) if name == "LSTMCell" else leaves[1]) if given else None
            outputs = flat(module(leaves[0], state))
            torch.autograd.backward(outputs, [s.to(wide) for s in slopes])
            gradients = [t.grad for t in (*leaves, *module.parameters())]
            results.append([*outputs, *gradients])
        for i, (a, b, c) in enumerate(zip(*results, strict=True)):
            assert_as_accurate_as(a, b, c, name=f"{(B, I, H, bias, given)} result {i}")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_unbatched_input_has_no_batch_dimension(variant: Any) -> None:
    name, options = variant
    ours, theirs = pair(name, 3, 5, **options)
    x, hx = torch.randn(3), states(name, 5)
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    torch.testing.assert_close(ours(input=x), theirs(input=x))


@pytest.mark.parametrize("name", [*NAMES, "MGUCell"])
def test_a_loop_over_the_cell_equals_the_layer(name: str) -> None:
    layer = getattr(fusedrnn, name.removesuffix("Cell"))(3, 20)
    cell = getattr(fusedrnn, name)(3, 20)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, state, outputs = torch.randn(6, 4, 3), None, []
    for step in x:
        state = cell(step, state)
        outputs.append(flat(state)[0])
    torch.testing.assert_close(torch.stack(outputs), layer(x)[0])


@pytest.mark.parametrize("name", [*NAMES, "MGUCell"])
def test_cells_of_no_rows_or_no_features_work_as_in_torch(name: str) -> None:
    for B, I, H in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):  # noqa: E741
        ours, theirs = pair(name, I, H)
        x, hx = torch.randn(B, I), states(name, B, H)
        torch.testing.assert_close(ours(x, hx), theirs(x, hx))
        for module in (ours, theirs):
            torch.cat(flat(module(x, hx))).sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_repr_type_and_copies_are_torchs(name: str, bias: bool) -> None:
    ours, theirs = pair(name, 3, 5, bias)
    assert isinstance(ours, getattr(nn, name))
    assert shown(ours) == repr(theirs)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    if not bias:
        assert ours.bias_ih is None
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied(x), theirs(x))
    assert "nonlinearity=relu" in repr(fusedrnn.RNNCell(3, 5, nonlinearity="relu"))


WRONG: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "3-D input": lambda name: (torch.randn(1, 2, 3),),
    "0-D input": lambda name: (torch.tensor(1.0),),
    "3-D hx": lambda name: (torch.randn(2, 3), states(name, 1, 2, 5)),
    "features": lambda name: (torch.randn(2, 4),),
    "features, unbatched": lambda name: (torch.randn(4),),
    "batch": lambda name: (torch.randn(2, 3), states(name, 4, 5)),
    "hidden": lambda name: (torch.randn(2, 3), states(name, 2, 6)),
    "hidden, unbatched": lambda name: (torch.randn(3), states(name, 6)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_as_by_torch(name: str, case: str) -> None:
    ours, theirs = pair(name, 3, 5)
    args = WRONG[case](name)
    assert refusal(partial(ours, *args)) == refusal(partial(theirs, *args))


def test_cell_state_of_a_wrong_size_is_refused_as_by_torch() -> None:
    ours, theirs = pair("LSTMCell", 3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    for c in (torch.randn(4, 5), torch.randn(2, 6), torch.randn(1, 2, 5)):
        assert refusal(partial(ours, x, (h, c))) == refusal(partial(theirs, x, (h, c)))


@pytest.mark.parametrize("name", NAMES)
def test_states_of_another_type_are_taken_or_refused_as_by_torch(name: str) -> None:
    ours, theirs = pair(name, 3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    if name == "LSTMCell":
        torch.testing.assert_close(ours(x, [h, h]), theirs(x, [h, h]))
    for hx in ([h], (h,)):
        assert refusal(partial(ours, x, hx)) == refusal(partial(theirs, x, hx))


def test_arguments_come_in_torchs_order_and_sizes_are_checked_as_late() -> None:
    for name in NAMES:
        options = ("relu",) if name == "RNNCell" else ()
        ours, theirs = pair(name, 3, 5, False, *options, "cpu", torch.float64)
        assert shown(ours) == repr(theirs)
        assert ours.weight_ih.dtype == torch.float64
        calls = [partial(getattr(ns, name), 3, -5) for ns in (fusedrnn, nn)]
        assert refusal(calls[0]) == refusal(calls[1])


@pytest.mark.cpu_only("torch.nn has no complex kernels elsewhere")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_cells_give_torchs_results_and_gradients(name: str) -> None:
    results = []
    x, hx = torch.randn(2, 3, dtype=torch.complex128), states(name, 2, 5, dtype=torch.complex128)
    for module in pair(name, 3, 5, dtype=torch.complex128):
        outputs = flat(module(x, hx))
        torch.stack([t.abs().sum() for t in outputs]).sum().backward()
        results.append([*outputs, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results)


def test_unknown_nonlinearity_is_refused_in_forward() -> None:
    ours, theirs = pair("RNNCell", 3, 5, nonlinearity="x")
    x = torch.randn(2, 3)
    assert refusal(lambda: ours(x)) == refusal(lambda: theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_a_subclass_computes_is_the_one_that_counts(name: str) -> None:
    def of(base: Any) -> Any:
        class Halved(base):  # type: ignore[misc]
            ready = False

            @property
            def weight_hh(self) -> torch.Tensor:
                if not self.ready:
                    raise AttributeError
                return self._parameters["weight_hh"] * 0.5  # type: ignore[no-any-return]

        module = Halved(3, 4)
        module.ready = True
        return module

    ours, theirs = of(getattr(fusedrnn, name)), of(getattr(nn, name))
    theirs.load_state_dict(ours.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    hx = (h, h) if name == "LSTMCell" else h
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("name", NAMES)
def test_another_dtype_is_refused(name: str) -> None:
    ours, _ = pair(name, 3, 5)
    for args in (
        (torch.randn(2, 3, dtype=torch.float64),),
        (torch.randn(2, 3), states(name, 2, 5, dtype=torch.float64)),
    ):
        assert refusal(partial(ours, *args))[0] is RuntimeError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_gradients_has_the_bits_of_one_with_them(
    name: str, dtype: torch.dtype
) -> None:
    # Without gradients a step goes to the kernel at once, with them by way of the layer.
    cell = getattr(fusedrnn, name)(37, 130, dtype=dtype)
    for B in (1, 5, 64):
        x = torch.randn(37, B, dtype=dtype).t()  # not contiguous
        h = torch.randn(2, B, 130, dtype=dtype)
        for input in (x, x.contiguous()):
            hx = (h[0], h[1]) if name == "LSTMCell" else h[0]
            kept = cell(input, hx)
            with torch.no_grad():
                for again in (cell(input, hx), cell(input, hx)):
                    assert all(map(torch.equal, flat(kept), flat(again)))


def test_a_step_is_a_layers_where_a_mode_watches() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **kwargs or {})

    cell = fusedrnn.GRUCell(3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    with torch.no_grad():
        expected = cell(x, h)
        with Watch():  # type: ignore[no-untyped-call]
            assert torch.equal(cell(x, h), expected)
    assert "fusedrnn.layer.default" in seen
