"""What a module holds is what torch.nn's holds: loading, pickles old and new, devices and dtypes.

Each operation runs on both, and state, results and gradients, or refusals, are compared.
test_modules.py has the constructors and the plain round trips.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import fusedrnn
from support.oracle import outcome, refusal, shown
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strict", [True, False])
def test_state_that_does_not_fit_is_refused_in_torchs_words(name: str, strict: bool) -> None:
    modules = pair(name, 3, 5)
    weight = recurrent_weight(name)
    good = modules[1].state_dict()
    missing = {k: v for k, v in good.items() if k != weight}
    for state in (
        missing,
        {**good, "extra": torch.zeros(1)},
        {**missing, "weight_hr_l0": torch.zeros(2, 5)},
        {**good, weight: torch.zeros(5, 5, 5)},
        {**good, weight: "no tensor"},
    ):
        a, b = (outcome(partial(m.load_state_dict, state, strict=strict)) for m in modules)
        assert a == b
        for assign in (True, False):
            a, b = (
                outcome(partial(m.load_state_dict, state, strict=strict, assign=assign))
                for m in modules
            )
            assert a == b


@pytest.mark.parametrize("name", NAMES)
def test_assigned_state_becomes_the_parameters_and_computes(name: str) -> None:
    ours, theirs = pair(name, 3, 5)
    state = {k: torch.randn_like(v) for k, v in ours.state_dict().items()}
    for module in (ours, theirs):
        module.requires_grad_(False)
        module.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        assert not any(p.requires_grad for p in module.parameters())
        module.requires_grad_(True)
    for key, value in ours.named_parameters():
        assert isinstance(value, nn.Parameter)
        assert torch.equal(value, state[key])
    assert name in CELLS or all(
        a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True)
    )
    compare(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_on_meta_is_filled_by_assignment_or_after_to_empty(name: str) -> None:
    def assigned(module: Any) -> Any:
        with torch.device("meta"):
            empty = type(module)(3, 5, dtype=torch.float64)
        assert {p.device.type for p in empty.parameters()} == {"meta"}
        empty.load_state_dict(module.state_dict(), assign=True)
        return empty

    def emptied(module: Any) -> Any:
        empty = type(module)(3, 5, device="meta", dtype=torch.float64).to_empty(device="cpu")
        empty.load_state_dict(module.state_dict())
        return empty

    def skipped(module: Any) -> Any:
        # torch.nn's layers have no device in their signature, and are refused.
        refused = isinstance(module, getattr(nn, name)) and name in LAYERS
        make = type(module) if refused else partial(nn.utils.skip_init, type(module))
        made = make(3, 5, dtype=torch.float64)
        made.load_state_dict(module.state_dict())
        return made

    for change in (assigned, emptied, skipped):
        compare_after(name, change)


@pytest.mark.parametrize("name", NAMES)
def test_moved_to_meta_and_asked_for_data_it_refuses_as_torch(name: str) -> None:
    ours, theirs = (m.to("meta") for m in pair(name, 3, 5))
    x = torch.ones((2, 3) if name in CELLS else (4, 2, 3), dtype=torch.float64)
    assert refusal(lambda: ours(x))[0] is refusal(lambda: theirs(x))[0]
    assert refusal(lambda: ours.to("cpu")) == refusal(lambda: theirs.to("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_pickles_and_copies_keep_mode_flags_hooks_and_ties(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, dtype=torch.float64).eval()
    module.bias_tied = next(module.parameters())
    next(module.parameters()).requires_grad_(False)
    module.note = {"kept": True}
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert not other.training
        assert other.note == {"kept": True}
        assert other.bias_tied is next(other.parameters())
        assert [p.requires_grad for p in other.parameters()] == [
            p.requires_grad for p in module.parameters()
        ]
        close(other(input_of(other)), module(input_of(module)))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_module_loads_weights_only_where_its_class_is_allowed(name: str) -> None:
    saved, results = [], []
    for module in pair(name, 3, 5):
        buffer = io.BytesIO()
        torch.save(module, buffer)
        saved.append((module, buffer))
    for module, buffer in saved:
        buffer.seek(0)
        assert refusal(partial(torch.load, buffer))[0] is pickle.UnpicklingError
        buffer.seek(0)
        assert torch.serialization.get_unsafe_globals_in_checkpoint(buffer) == [
            f"{type(module).__module__}.{name}"
        ]
        buffer.seek(0)
        # A cell of torch.nn's and one of ours are of one name, and both are needed by none.
        with torch.serialization.safe_globals([type(module)]):
            results.append(torch.load(buffer))
    assert type(results[0]) is type(saved[0][0])
    compare(*results)


def aged(module: Any, how: str) -> Any:
    """The module as an old torch would have pickled it."""
    state = module.__dict__
    if "proj" in how:
        del state["proj_size"]
    if "nonlinearity" in how:
        state.pop("nonlinearity", None)
    if "weights" in how:
        state["all_weights"] = module.all_weights
        for key in ("_flat_weights", "_flat_weights_names", "_all_weights"):
            del state[key]
    return module


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "how", ["no proj_size", "lists of weights, no proj_size", "no proj_size, no nonlinearity"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_pickles_of_old_torch_modules_become_ours(name: str, how: str, bias: bool) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "bias": bias}
    if name == "RNN":
        options["nonlinearity"] = "relu"
    theirs = getattr(nn, name)(3, 5, **options, dtype=torch.float64)
    old = copy.deepcopy(theirs)
    expected = theirs.state_dict()
    state = {k: v for k, v in aged(old, how).__dict__.items() if k != "_flat_weight_refs"}

    class Pickled:
        def __reduce__(self) -> Any:
            return object.__new__, (getattr(nn, name),), state

    stream = pickle.dumps(Pickled())
    with fusedrnn.patch():
        ours = pickle.loads(stream)
    assert type(ours) is getattr(fusedrnn, name)
    assert list(ours.state_dict()) == list(expected)
    assert shown(ours) == repr(theirs)
    assert ours.proj_size == 0
    compare(ours, theirs)
    again = pickle.loads(pickle.dumps(ours))
    compare(again, theirs)


@contextmanager
def future(**settings: bool) -> Iterator[None]:
    before = {k: getattr(torch.__future__, f"get_{k}")() for k in settings}
    try:
        for key, value in settings.items():
            getattr(torch.__future__, f"set_{key}")(value)
        yield
    finally:
        for key, value in before.items():
            getattr(torch.__future__, f"set_{key}")(value)


MOVES: dict[str, Callable[[Any], Any]] = {
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "type": lambda m: m.type(torch.float64),
    "there and back": lambda m: m.to("cpu", torch.float64).float(),
    "to another's": lambda m: m.to(torch.zeros((), dtype=torch.float64)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"swap_module_params_on_conversion": True},
        {"overwrite_module_params_on_conversion": True},
    ],
    ids=str,
)
def test_conversions_keep_or_replace_parameters_as_torch(
    name: str, move: str, settings: dict[str, bool]
) -> None:
    kept = []

    def change(module: Any) -> Any:
        before = list(module.parameters())
        with future(**settings):
            module = MOVES[move](module)
        kept.append([a is b for a, b in zip(before, module.parameters(), strict=True)])
        return module

    ours, theirs = (change(m) for m in pair(name, 3, 5))
    assert kept[0] == kept[1]
    assert [p.dtype for p in ours.parameters()] == [p.dtype for p in theirs.parameters()]
    assert name in CELLS or all(
        a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True)
    )
    compare(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_swapping_tensors_on_load_does_what_it_does_in_torch(name: str) -> None:
    modules = pair(name, 3, 5)
    state = {k: torch.randn_like(v) for k, v in modules[1].state_dict().items()}
    with future(swap_module_params_on_conversion=True):
        a, b = (outcome(partial(m.load_state_dict, dict(state))) for m in modules)
    assert a == b  # torch's layers hold weak references to their weights, and refuse
    compare(*modules)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_weight_missing_converts_and_names_what_it_has(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2)
    for module in (ours, theirs):
        del module.weight_hh_l1
        module.double()
        module.to(torch.float32)
        assert module._flat_weights[5] is None
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for module in (ours, theirs):
        module.weight_hh_l1 = nn.Parameter(torch.ones_like(module.weight_hh_l0))
    compare(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_data_set_flattened_and_shared_is_seen(name: str) -> None:
    def data(module: Any) -> Any:
        for p in module.parameters():
            p.data = 2 * p.data
        return module

    def vector(module: Any) -> Any:
        flat = nn.utils.parameters_to_vector(module.parameters())
        nn.utils.vector_to_parameters(flat.detach() * 0.5, module.parameters())
        return module

    def initialised(module: Any) -> Any:
        torch.manual_seed(3)
        for key, p in module.named_parameters():
            nn.init.orthogonal_(p) if p.dim() > 1 else nn.init.constant_(p, len(key))
        return module

    def shared(module: Any) -> Any:
        module.share_memory()
        assert all(p.is_shared() for p in module.parameters())
        alias = pickle.loads(pickle.dumps(module.state_dict()))
        module.load_state_dict({k: v + 1 for k, v in alias.items()})
        return module

    for change in (data, vector, initialised, shared):
        compare_after(name, change)


@pytest.mark.parametrize("name", LAYERS)
def test_mode_decides_and_dropout_may_be_switched_off(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2, dropout=0.5)
    for module in (ours, theirs):
        module.dropout = 0.0
        if name == "RNN":
            module.mode = "RNN_RELU"
            assert module.nonlinearity == "tanh"
    compare(ours, theirs)
    torch.manual_seed(1)
    ours.dropout = 1.0
    assert not ours(input_of(ours))[0].equal(theirs(input_of(theirs))[0])
