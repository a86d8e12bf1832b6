"""explain() inside torch.func's transforms: it says which way the call would go, and the tests of
the transforms count that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn.plan import Plan
from support.oracle import pair
from support.transforming import NAMES, B, H, I, T, V, grad, jacfwd, jvp, vmap


def seen_inside(transform: Callable[..., Any], module: Any, *arguments: Any) -> Plan:
    """What explain() says of the call that a transform makes."""
    plans = []

    def call(w: Any, x: Any) -> Any:
        with torch.nn.utils.stateless._reparametrize_module(module, w):
            plans.append(fusedrnn.explain(module, x))
        return torch.func.functional_call(module, w, (x,))[0].square().sum()

    transform(call)(*arguments)
    return plans[0]


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_explain_says_which_way_a_transformed_call_goes() -> None:
    module, _ = pair("LSTM", I, H, 2)
    w = {k: p.detach() for k, p in module.named_parameters()}
    x = torch.randn(V, T, B, I)

    def tell(transform: Callable[..., Any], w: Any = w, x: Any = x) -> Plan:
        return seen_inside(transform, module, w, x)

    data, ensemble = {"in_dims": (None, 0)}, {"in_dims": (0, None)}
    plan = tell(lambda f: vmap(f, **data))
    assert plan.route == "kernels"
    assert [layer.B for layer in plan.layers] == [V * B] * 2
    assert not plan.training
    assert "3 samples are rows of one batch" in str(plan)
    plan = tell(lambda f: vmap(vmap(f, **data), **data), x=x.expand(4, V, T, B, I))
    assert plan.layers[0].B == 4 * V * B

    plan = tell(lambda f: vmap(grad(f, argnums=1), **data))
    assert plan.training
    assert len(plan.reasons) == 1
    plan = tell(lambda f: vmap(grad(f), **data))
    assert plan.reasons[1].startswith("per-sample gradients: 3 calls")
    plan = tell(lambda f: grad(lambda *a: vmap(f, **data)(*a).sum()))
    assert plan.reasons == ("vmap: 3 samples are rows of one batch",)

    many = {k: torch.stack([p] * 5) for k, p in w.items()}
    plan = tell(lambda f: vmap(f, **ensemble), many, x[0])
    assert plan.layers[0].B == B
    assert plan.reasons == ("vmap: 5 calls, because each sample has weights of its own",)

    for transform in (
        lambda f: lambda w, x: jvp(lambda x: f(w, x), (x,), (x,)),
        lambda f: lambda w, x: jacfwd(f)(w, x),
        lambda f: lambda w, x: jvp(lambda x: grad(f, argnums=1)(w, x), (x,), (x,)),
    ):
        plan = tell(transform, w, x[0])
        assert (plan.route, plan.layers) == ("definition", ())
        assert "forward-mode AD" in str(plan)
    assert tell(lambda f: grad(f), w, x[0]).reasons == ()


@pytest.mark.parametrize("name", NAMES)
def test_explain_of_a_complex_module_names_the_definition(name: str) -> None:
    module, _ = pair(name, I, H, dtype=torch.complex64)
    plan = fusedrnn.explain(module, torch.randn(T, B, I, dtype=torch.complex64))
    assert (plan.route, plan.dtype) == ("definition", "complex64")
    assert "complex numbers" in str(plan)
    packed = PackedSequence(torch.randn(4, I, dtype=torch.complex64), torch.tensor([2, 1, 1]))
    assert fusedrnn.explain(module, packed).packed


def test_explain_folds_packed_batches_as_the_call_does() -> None:
    module, _ = pair("GRU", I, H)
    sizes, plans = torch.tensor([3, 2, 2], device="cpu"), list[Plan]()

    def call(rows: Tensor) -> Any:
        packed = PackedSequence(rows, sizes)
        plans.extend(fusedrnn.explain(module, packed, gpu=gpu) for gpu in (None, "sm_90"))
        return module(packed)[0].data

    vmap(call)(torch.randn(V, 7, I))
    assert [plan.layers[0].B for plan in plans] == [9, 9]
    assert all(plan.packed and plan.route == "kernels" for plan in plans)
