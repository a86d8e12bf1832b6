"""Training over processes, replicas and recomputed activations: the gradients are those of one
process that keeps everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fusedrnn
from support import distributed_worker as worker
from support.distributed_worker import NAMES, RANKS, SCENARIOS
from support.oracle import packed, states, tensors_of
from support.transforming import Calls

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
ALL = range(RANKS)

without_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch was built without gloo",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left: for each scenario, cell and rank its gradients."""
    path = tmp_path_factory.mktemp("ranks")
    worker.run_ranks(path, "CPU")
    return path


@without_gloo
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_have_the_gradients_of_one(folder: Path, scenario: str, name: str) -> None:
    expected = worker.on_one(scenario, name)
    unused = [k for k, g in expected.items() if g is None]
    assert bool(unused) == (scenario == "unused_parameters")
    for rank in ALL:
        found = torch.load(folder / f"{scenario}-{name}-{rank}.pt")
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], msg=f"{key} of rank {rank}")


def replica_of(module: Any) -> Any:
    """A replica as torch.nn.parallel.replicate makes it, of which only the copying needs GPUs."""
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for key, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[key] = None
        else:  # what Broadcast returns: no Parameter, and a path back to it
            copied = parameter.clone()
            setattr(replica, key, copied)
            replica._former_parameters[key] = copied
    return replica


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES + CELLS)
def test_replicas_compute_with_their_own_weights_and_send_gradients_back(
    name: str, bias: bool
) -> None:
    module: Any = getattr(fusedrnn, name)(3, 5, bias=bias)
    x = torch.randn(4, 2, 3) if name in NAMES else torch.randn(4, 3)
    replicas = [replica_of(module) for _ in range(2)]
    halves = x.chunk(2, dim=1 if name in NAMES else 0)
    for replica, part in zip(replicas, halves, strict=True):
        assert not list(replica.parameters())
        torch.stack([t.square().sum() for t in tensors_of(replica(part))]).sum().backward()
    found = [p.grad for p in module.parameters()]
    module.zero_grad()
    torch.stack([t.square().sum() for t in tensors_of(module(x))]).sum().backward()
    torch.testing.assert_close(found, [p.grad for p in module.parameters()])
    with torch.no_grad():  # a replica is a snapshot
        before = tensors_of(replicas[0](x))
        next(module.parameters()).mul_(2)
        assert all(map(torch.equal, before, tensors_of(replicas[0](x))))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_compute_again_to_the_same_bits(name: str, reentrant: bool) -> None:
    module: Any = getattr(fusedrnn, name)(3, 5, 2, dropout=0.4, bidirectional=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    hx = states(name, 4, 2, 5)

    def call(x: Tensor) -> tuple[Tensor, ...]:  # flat, as the reentrant kind wants results
        return tensors_of(module(x, hx))

    found: list[Any] = []
    for kept in (True, False):
        torch.manual_seed(9)
        with Calls() as calls:
            y = call(x) if kept else checkpoint(call, x, use_reentrant=reentrant)
            loss = torch.stack([t.square().sum() for t in y]).sum()
            module.zero_grad()
            x.grad = None
            loss.backward()
        assert calls.fused == (2 if kept else 4, 2)
        found.append([x.grad, *(p.grad for p in module.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpointed_packed_call_has_the_same_gradients(name: str) -> None:
    module: Any = getattr(fusedrnn, name)(3, 5, 2)
    rows = packed([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    data = rows.data.clone().requires_grad_()

    def call(data: Tensor) -> Any:
        output, _ = module(PackedSequence(data, *rows[1:]))
        return output.data

    found = [
        torch.autograd.grad(y.square().sum(), [data, *module.parameters()])
        for y in (call(data), checkpoint(call, data, use_reentrant=False))
    ]
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpointed_call_can_be_differentiated_twice(name: str) -> None:
    module: Any = getattr(fusedrnn, name)(3, 5).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for call in (module, lambda v: checkpoint(module, v, use_reentrant=False)):
        (slope,) = torch.autograd.grad(call(x)[0].square().sum(), x, create_graph=True)
        loss: Tensor = slope.square().sum()
        found.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_saved_tensors_may_be_packed_away(name: str) -> None:
    """Hooks on saved tensors, as offloading and compressing libraries use them."""
    module: Any = getattr(fusedrnn, name)(3, 5, 2).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    stored: list[Tensor] = []

    def put(t: Tensor) -> int:
        stored.append(t.clone())
        return len(stored) - 1

    def slope(loss: Tensor, graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [x, *module.parameters()], create_graph=graph)

    def twice() -> list[Tensor]:
        first = slope(module(x)[0].square().sum(), True)
        second = slope(torch.stack([g.square().sum() for g in first]).sum(), False)
        return [*first, *second]

    expected = twice()
    with torch.autograd.graph.saved_tensors_hooks(put, stored.__getitem__):
        found = twice()
    assert stored
    torch.testing.assert_close(found, expected)


def test_the_checkpoint_wrapper_keeps_state_and_gradients() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    torch.manual_seed(0)
    model = worker.build("LSTM")
    expected, keys = worker.train(model, worker.batch(ALL)[0]), list(model.state_dict())
    model.zero_grad()
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, fusedrnn.LSTM))
    assert list(model.state_dict()) == keys
    with Calls() as calls:
        found = worker.train(model, worker.batch(ALL)[0])
    assert calls.fused == (2 * 3, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_layers_in_a_checkpointed_sequence_train() -> None:
    class Only(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x)[0]
            return result

    model = nn.Sequential(*(Only(getattr(fusedrnn, name)(3, 3)) for name in NAMES))
    x = torch.randn(4, 2, 3)
    found = [
        torch.autograd.grad(y.square().sum(), list(model.parameters()))
        for y in (model(x), checkpoint_sequential(model, 2, x, use_reentrant=False))
    ]
    assert all(map(torch.equal, *found))
