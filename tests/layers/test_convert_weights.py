"""Weights that torch's utilities tie, compute, prune or replace stay so when a module becomes ours,
and when it becomes torch.nn's again; and what those utilities do can be undone on either side."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import fusedrnn
from support.oracle import close, ours_in, step

NAMES = ("RNN", "LSTM", "GRU")


def test_tied_weights_and_a_layer_used_twice_stay_so() -> None:
    first = nn.LSTM(3, 3, bidirectional=True)
    first.bias_ih_l0_reverse = first.bias_ih_l0
    second = nn.LSTM(3, 3)
    second.weight_hh_l0 = first.weight_hh_l0
    model = nn.ModuleDict({"a": first, "b": second, "again": first})
    count = len(list(model.parameters()))
    assert ours_in(fusedrnn.convert(model)) == ["a", "b"]
    assert model["again"] is model["a"]
    assert type(model["again"]) is fusedrnn.LSTM
    assert first.bias_ih_l0_reverse is first.bias_ih_l0
    assert second.weight_hh_l0 is first.weight_hh_l0
    assert len(list(model.parameters())) == count == 10
    assert ours_in(fusedrnn.to_torch(model)) == []
    assert second.weight_hh_l0 is first.weight_hh_l0


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w / 2


def parametrized(module: Any) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    parametrize.register_parametrization(module, "bias_hh_l0", Doubled())


def pruned_twice(module: Any) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    prune.random_unstructured(module, "weight_hh_l0", 0.5)
    prune.l1_unstructured(module, "bias_ih_l0", 0.2)


def old_weight_norm(module: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, "weight_hh_l0")


def weight_dropped(module: Any) -> None:
    weight = module.weight_hh_l0
    del module.weight_hh_l0
    module.weight_raw = weight
    module.register_forward_pre_hook(lambda m, _: setattr(m, "weight_hh_l0", m.weight_raw * 0.5))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "parametrized": parametrized,
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
    "old weight_norm": old_weight_norm,
    "pruned": pruned_twice,
    "weight dropped": weight_dropped,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", CHANGES)
def test_weights_computed_by_torch_utilities_stay_computed(name: str, how: str) -> None:
    theirs, x = getattr(nn, name)(3, 5), torch.randn(4, 2, 3)
    CHANGES[how](theirs)
    ours = getattr(nn, name)(3, 5)
    CHANGES[how](ours)
    ours.load_state_dict(theirs.state_dict())
    tensors = dict(ours.named_parameters()) | dict(ours.named_buffers())
    for change, namespace in ((fusedrnn.convert, fusedrnn), (fusedrnn.to_torch, nn)):
        assert change(ours) is ours
        assert parametrize.type_before_parametrizations(ours) is getattr(namespace, name)
        now = dict(ours.named_parameters()) | dict(ours.named_buffers())
        assert now.keys() == tensors.keys()
        assert all(now[k] is tensors[k] for k in now)
        for _ in range(2):
            close(step(ours, x), step(theirs, x))
            with torch.no_grad():
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    a.mul_(1.1)
                    b.mul_(1.1)


@pytest.mark.parametrize("name", [*NAMES, "LSTMCell"])
def test_a_parametrization_may_be_added_and_removed_after_conversion(name: str) -> None:
    weight = "weight_hh" if name == "LSTMCell" else "weight_hh_l0"
    module = getattr(nn, name)(3, 5)
    original = getattr(module, weight)
    parametrize.register_parametrization(module, weight, Doubled())
    copied = copy.deepcopy(module)  # torch gives it the very class of the original
    fusedrnn.convert(module)
    assert type(module).__name__ == f"Parametrized{name}"
    assert isinstance(module, getattr(fusedrnn, name))
    x = torch.randn(2, 3) if name == "LSTMCell" else torch.randn(4, 2, 3)
    close(copied(x), module(x))
    close(copy.deepcopy(module)(x), module(x))
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(module)

    parametrize.remove_parametrizations(module, weight, leave_parametrized=False)
    assert type(module) is getattr(fusedrnn, name)
    assert getattr(module, weight) is original
    parametrize.register_parametrization(module, weight, Doubled())
    fusedrnn.to_torch(module)
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is getattr(nn, name)
    assert isinstance(copied, getattr(nn, name))
    assert torch.equal(getattr(copied, weight), 2 * copied.parametrizations[weight].original)


def test_removing_pruning_and_weight_norm_works_after_conversion() -> None:
    remove: dict[Any, Any] = {
        pruned_twice: prune.remove,
        old_weight_norm: nn.utils.remove_weight_norm,
    }
    for change, undo in remove.items():
        module, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
        change(module)
        expected = module(x)
        fusedrnn.convert(module)
        undo(module, "weight_hh_l0")
        close(module(x), expected)
        assert "weight_hh_l0" in module._parameters


@pytest.mark.parametrize("name", NAMES)
def test_flatten_parameters_is_harmless_before_between_and_after(name: str) -> None:
    module, x = getattr(nn, name)(3, 5, 2), torch.randn(4, 2, 3)
    expected, weights = step(module, x), list(module.parameters())
    for change in (fusedrnn.convert, fusedrnn.to_torch):
        module.flatten_parameters()
        change(module)
        module.flatten_parameters()
        close(step(module, x), expected)
        assert all(a is b for a, b in zip(module.parameters(), weights, strict=True))
        assert all(a is b for a, b in zip(module._flat_weights, weights, strict=True))


def test_to_torch_gathers_weights_as_torch_does_and_runs_no_parametrization(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathered: list[Any] = []
    ran: list[Tensor] = []

    class Noted(Doubled):
        def forward(self, w: Tensor) -> Tensor:
            ran.append(w)
            return super().forward(w)

    layer: Any = fusedrnn.LSTM(3, 5)
    model = nn.ModuleList([layer, fusedrnn.GRU(3, 5), fusedrnn.GRUCell(3, 5)])
    parametrize.register_parametrization(model[1], "weight_hh_l0", Noted())
    swapped = nn.Parameter(torch.zeros(20, 5))
    layer._parameters["weight_hh_l0"] = swapped  # past the module's own list of weights
    ran.clear()
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: gathered.append(self))
    fusedrnn.to_torch(model)
    assert gathered == [layer]
    assert ran == []
    assert layer._flat_weights[1] is swapped
