"""Whatever swaps the weights under a module works as under torch.nn's: parametrizations, norms,
pruning, weights dropped and tied, ExpandedWeights. Results and gradients are compared.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, rnn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import fusedrnn
from support.oracle import refusal, states, tensors_of
from support.twins import (
    CELLS,
    LAYERS,
    NAMES,
    close,
    compare,
    compare_after,
    input_of,
    pair,
    recurrent_weight,
)


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.mean(0, keepdim=True)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def parametrizing(name: str) -> dict[str, Callable[[Any], Any]]:
    weight = recurrent_weight(name)

    def registered(module: Any) -> Any:
        parametrize.register_parametrization(module, weight, Symmetric())
        parametrize.register_parametrization(module, weight.replace("weight", "bias"), Symmetric())
        return module

    def removed(module: Any) -> Any:
        parametrize.remove_parametrizations(registered(module), weight)
        return module

    def spectral(module: Any) -> Any:
        torch.manual_seed(0)
        return parametrizations.spectral_norm(module, weight)

    def orthogonal(module: Any) -> Any:
        torch.manual_seed(0)
        return parametrizations.orthogonal(module, weight)

    def frozen(module: Any) -> Any:
        registered(module).requires_grad_(False)
        return module.requires_grad_(True)

    def cast(module: Any) -> Any:
        return registered(module).double()

    return {
        "registered": registered,
        "removed": removed,
        "weight_norm": lambda m: parametrizations.weight_norm(m, weight),
        "spectral_norm": spectral,
        "orthogonal": orthogonal,
        "frozen and freed": frozen,
        "cast": cast,
        "copied": lambda m: copy.deepcopy(registered(m)),
    }


@pytest.mark.parametrize("how", parametrizing("LSTM"))
@pytest.mark.parametrize("name", NAMES)
def test_parametrized_weights_compute_and_train_as_in_torch(name: str, how: str) -> None:
    ours = compare_after(name, parametrizing(name)[how])
    assert isinstance(ours, getattr(fusedrnn, name))


@pytest.mark.parametrize("name", NAMES)
def test_parametrized_modules_are_cached_and_pickled_as_torchs(name: str) -> None:
    ours, theirs = (parametrizing(name)["registered"](m) for m in pair(name, 3, 5))
    for module in (ours, theirs):
        with parametrize.cached():
            module(input_of(module))
    compare(ours, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    a, b = (refusal(partial(pickle.dumps, m)) for m in (ours, theirs))
    assert a[:2] == b[:2]


NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_norms_by_hooks_compute_train_and_are_removed_as_in_torch(name: str, norm: str) -> None:
    apply, remove = NORMS[norm]
    weight = recurrent_weight(name)

    def normed(module: Any) -> Any:
        torch.manual_seed(0)
        return apply(module, weight)

    ours, theirs = (normed(m) for m in pair(name, 3, 5))
    for _ in range(2):  # spectral_norm goes one step of a power iteration each time
        compare(ours, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    compare(*(remove(m, weight) for m in (ours, theirs)))


def prunings(weight: str) -> dict[str, Callable[[Any], Any]]:
    def seeded(module: Any) -> Any:
        torch.manual_seed(0)
        return prune.random_unstructured(module, weight, 0.4)

    def twice(module: Any) -> Any:
        prune.l1_unstructured(module, weight, 3)
        return prune.ln_structured(module, weight, 0.2, n=2, dim=0)

    def everywhere(module: Any) -> Any:
        places = [(module, key) for key, _ in list(module.named_parameters())]
        prune.global_unstructured(places, prune.L1Unstructured, amount=0.3)
        return module

    def by_mask(module: Any) -> Any:
        mask = torch.ones_like(getattr(module, weight))
        mask[::2] = 0
        return prune.custom_from_mask(module, weight, mask)

    return {
        "random": seeded,
        "twice": twice,
        "globally": everywhere,
        "by mask": by_mask,
        "and made so": lambda m: prune.remove(by_mask(m), weight),
        "and copied": lambda m: copy.copy(by_mask(m)),
        "and cast": lambda m: by_mask(m).double(),
    }


@pytest.mark.parametrize("how", prunings("weight_hh"))
@pytest.mark.parametrize("name", NAMES)
def test_pruned_weights_compute_and_train_as_in_torch(name: str, how: str) -> None:
    compare_after(name, prunings(recurrent_weight(name))[how])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trainable", [True, False])
def test_weights_dropped_anew_at_every_call_are_used(name: str, trainable: bool) -> None:
    class Dropped(nn.Module):
        """DropConnect as models have it: the raw weight here, the layer's own replaced."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer
            self.raw = nn.Parameter(layer.weight_hh_l0.data)
            if trainable:
                del layer._parameters["weight_hh_l0"]

        def forward(self, x: Tensor) -> Any:
            torch.manual_seed(5)
            weight = nn.functional.dropout(self.raw, 0.5)
            if trainable:
                self.layer.weight_hh_l0 = weight
            else:
                self.layer.weight_hh_l0.data = weight.data
            return self.layer(x)

    ours = compare_after(name, Dropped)
    assert (ours.raw.grad is not None) is trainable


@pytest.mark.parametrize("name", LAYERS)
def test_ties_within_and_between_modules_add_up_gradients_and_survive_copies(name: str) -> None:
    def tied(module: Any) -> Any:
        other = type(module)(5, 5, dtype=torch.float64)
        other.weight_hh_l0 = module.weight_hh_l0
        other.weight_ih_l0 = other.weight_hh_l0

        class Stacked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = module, other

            def forward(self, x: Tensor) -> Any:
                return self.second(self.first(x)[0])

        torch.manual_seed(0)
        for p in other.parameters():
            nn.init.uniform_(p, -0.4, 0.4)
        return Stacked()

    model = compare_after(name, lambda m: copy.deepcopy(tied(m)))
    assert model.first.weight_hh_l0 is model.second.weight_ih_l0 is model.second.weight_hh_l0
    assert len(list(model.parameters())) == 6
    model.float()
    assert model.first.weight_hh_l0 is model.second.weight_hh_l0


def per_sample(module: Any, x: Any, hx: Any, **options: Any) -> dict[str, Any]:
    outputs = tensors_of(call_for_per_sample_grads(module, **options)(x, hx))
    torch.stack([t.square().sum() for t in outputs]).sum().backward()
    return {k: p.grad_sample for k, p in module.named_parameters()}


@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx given"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_expanded_weights_give_torchs_per_sample_gradients(
    name: str, options: dict[str, Any], given: bool
) -> None:
    x = torch.randn(4, 4, 3, dtype=torch.float64)
    packed = rnn.pack_padded_sequence(x, torch.tensor([4, 3, 3, 1]))
    rows = 4 if "num_layers" in options else 1
    hx = states(name, rows, 4, 5, dtype=torch.float64) if given else None
    for reduction in ("sum", "mean"):
        for input in (x, packed):
            found = [
                per_sample(m, input, hx, batch_size=4, loss_reduction=reduction)
                for m in pair(name, 3, 5, **options)
            ]
            assert all(g.shape[0] == 4 for g in found[0].values())
            close(*found)


def test_expanded_weights_work_with_projections_and_frozen_weights() -> None:
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    modules = pair("LSTM", 3, 5, proj_size=2)
    close(*(per_sample(m, x, None, batch_size=3) for m in modules))
    modules = pair("GRU", 3, 5)
    for module in modules:
        module.weight_ih_l0.requires_grad_(False)
        module.weight_ih_l0.grad_sample = None
    close(*(per_sample(m, x, None, batch_size=3) for m in modules))


def test_expanded_weights_of_a_float32_lstm_need_no_gradient_of_the_input() -> None:
    # torch.nn's takes oneDNN's layer there, which knows no ExpandedWeights, and raises.
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    exact = pair("LSTM", 3, 5)[1]
    expected = per_sample(exact, x, None, batch_size=3)
    ours = fusedrnn.LSTM(3, 5)
    ours.load_state_dict(exact.state_dict())
    found = per_sample(ours, x.float(), None, batch_size=3)
    torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("name", CELLS)
def test_expanded_weights_of_a_cell_are_refused_as_in_torch(name: str) -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    a, b = (refusal(partial(call_for_per_sample_grads(m), x)) for m in pair(name, 3, 5))
    assert a[0] is b[0] is RuntimeError
    text = "Expanded Weights encountered but cannot handle function"
    assert a[1].startswith(text)
    assert b[1].startswith(text)
