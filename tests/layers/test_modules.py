"""Drop-in means: whatever a caller does, ours answers as torch.nn does, refusals included.

torch.nn is the oracle: each case runs on both namespaces and results, or exception types
and texts, are compared.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import fusedrnn
from support.oracle import close, outcome, pair, refusal, shown, states

NAMES = ("RNN", "LSTM", "GRU")


GOOD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 5), {}),
    ((3, 5, 2), {}),
    ((), {"input_size": 3, "hidden_size": 5, "bias": False}),
    ((3, 5, 2), {"batch_first": True, "dropout": 0.1, "bidirectional": True}),
    ((3, 5, 2), {"dropout": 1}),
    ((3, 5), {"dropout": 0.5}),
    ((3, 5), {"bidirectional": 3}),
    ((3, 5), {"dtype": torch.float64}),
    ((3, 5), {"device": "meta"}),
    ((3, 5, True), {}),
]
BAD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((3,), {}),
    ((3, 5), {"dropout": 2}),
    ((3, 5), {"dropout": -1}),
    ((3, 5), {"dropout": True}),
    ((3, 5), {"dropout": "a"}),
    ((3, 5), {"dropout": None}),
    ((3, 5), {"bias": 1}),
    ((3, 5), {"bias": None}),
    ((3, 5), {"batch_first": 1}),
    ((3.0, 5), {}),
    ((3, 5.0), {}),
    ((3, "5"), {}),
    ((0, 5), {}),
    ((3, 0), {}),
    ((-1, 5), {}),
    ((3, -5), {}),
    ((3, 5, 0), {}),
    ((3, 5, -1), {}),
    ((3, 5, 1.5), {}),
    ((3, 5), {"proj_size": 5}),
    ((3, 5), {"proj_size": -1}),
    ((3, 5), {"proj_size": 6}),
]


def words(args: Any) -> str:
    return str(args).replace("torch.", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", GOOD, ids=words)
def test_constructor_accepts_warns_and_prints_as_torch(name: str, call: Any) -> None:
    args, kwargs = call
    ours, theirs = (outcome(partial(getattr(ns, name), *args, **kwargs)) for ns in (fusedrnn, nn))
    assert ours[0] == theirs[0] == "returned"
    assert ours[2] == theirs[2]
    a, b = ours[1], theirs[1]
    assert shown(a) == repr(b)
    assert a.mode == b.mode
    described = [{k: (v.shape, v.dtype, v.device) for k, v in m.named_parameters()} for m in (a, b)]
    assert list(described[0].items()) == list(described[1].items())
    assert a._flat_weights_names == b._flat_weights_names
    assert a._all_weights == b._all_weights
    for key in nn.RNNBase.__constants__:
        assert getattr(a, key) == getattr(b, key), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", BAD, ids=words)
def test_constructor_refuses_as_torch(name: str, call: Any) -> None:
    args, kwargs = call
    ours, theirs = (refusal(partial(getattr(ns, name), *args, **kwargs)) for ns in (fusedrnn, nn))
    if "required positional argument" in theirs[1]:  # ours names its own __init__
        assert ours[0] is theirs[0]
    else:
        assert ours == theirs


def test_rnn_takes_nonlinearity_as_fourth_positional_and_as_keyword() -> None:
    for args, kwargs in (
        ((3, 5, 2, "relu", False, True), {}),
        ((3, 5, 2), {"nonlinearity": "relu", "bias": False, "batch_first": True}),
        ((3, 5), {"nonlinearity": "tanh"}),
    ):
        ours, theirs = pair("RNN", *args, **kwargs)
        assert (ours.mode, ours.nonlinearity) == (theirs.mode, theirs.nonlinearity)
        assert shown(ours) == repr(theirs)
    for call in (lambda ns: ns.RNN(3, 5, 2, "x"), lambda ns: ns.RNN(3, 5, nonlinearity="x")):
        refusals = [refusal(partial(call, ns)) for ns in (fusedrnn, nn)]
        assert refusals[0] == refusals[1]


def test_all_arguments_come_in_the_documented_order() -> None:
    # nn.GRU and nn.RNN take proj_size for their device where it is given by position.
    device, dtype = "cpu", torch.float64
    options: dict[str, Any] = {"bias": False, "batch_first": True, "bidirectional": True}
    options |= {"num_layers": 2, "dropout": 0.1, "device": device, "dtype": dtype}
    tail = (False, True, 0.1, True)
    for ours, theirs in (
        (fusedrnn.RNN(3, 5, 2, "relu", *tail, device, dtype), nn.RNN(3, 5, **options)),
        (fusedrnn.GRU(3, 5, 2, *tail, device, dtype), nn.GRU(3, 5, **options)),
        (
            fusedrnn.LSTM(3, 5, 2, *tail, 4, device, dtype),
            nn.LSTM(3, 5, 2, *tail, 4, device, dtype),
        ),
    ):
        assert shown(ours) == repr(theirs)
        assert {p.dtype for p in ours.parameters()} == {dtype}
    assert "proj_size=4" in repr(ours)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_projections_are_refused_where_there_are_none(name: str, proj_size: int) -> None:
    calls = [partial(getattr(ns, name), 3, 5, proj_size=proj_size) for ns in (fusedrnn, nn)]
    assert refusal(calls[0]) == refusal(calls[1])


@pytest.mark.parametrize("name", NAMES)
def test_mode_and_unknown_keywords_are_refused(name: str) -> None:
    for kwargs in ({"mode": "LSTM"}, {"hidden": 5}):
        for namespace in (fusedrnn, nn):
            assert refusal(partial(getattr(namespace, name), 3, 5, **kwargs))[0] is TypeError


def test_signatures_are_explicit_so_that_skip_init_works() -> None:
    for name in NAMES:
        parameters = inspect.signature(getattr(fusedrnn, name)).parameters
        assert {"input_size", "hidden_size", "device", "dtype"} <= set(parameters)
        module = nn.utils.skip_init(getattr(fusedrnn, name), 3, 5)
        assert module.weight_hh_l0.device.type == "cpu"


SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"bias": False, "num_layers": 2},
    {"proj_size": 2, "bidirectional": True, "num_layers": 2},
    {"proj_size": 2, "bias": False},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_same_seed_gives_torchs_values_and_state_dict_round_trips(
    name: str, options: dict[str, Any]
) -> None:
    if name != "LSTM" and "proj_size" in options:
        options = {**options}
        del options["proj_size"]
    ours, theirs = pair(name, 3, 5, **options)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [len(group) for group in ours.all_weights] == [len(g) for g in theirs.all_weights]

    theirs.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3)
    close(ours(x), theirs(x))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    close(ours(x), theirs(x))
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), assign=True)
    close(ours(x), theirs(x))


def round_trips() -> dict[str, Callable[[Any], Any]]:
    def saved(module: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        "save": saved,
        "double": lambda m: copy.deepcopy(m).double().float(),
        "to_empty": lambda m: _filled(copy.deepcopy(m).to_empty(device="cpu"), m),
        "share_memory": lambda m: copy.deepcopy(m).share_memory(),
    }


def _filled(module: Any, source: Any) -> Any:
    module.load_state_dict(source.state_dict())
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", round_trips())
def test_copies_compute_the_same_and_follow_their_own_weights(name: str, how: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    x = torch.randn(4, 2, 3)
    other = round_trips()[how](module)
    close(other(x), module(x))
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))
    with torch.no_grad():
        other.weight_hh_l1.mul_(2)
    assert not torch.equal(other(x)[0], module(x)[0]) or how == "copy"


@pytest.mark.parametrize("name", NAMES)
def test_state_of_an_old_pickle_is_accepted(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    state = module.__getstate__()
    assert "_flat_weight_refs" not in state
    for key in ("proj_size", "_flat_weights", "_flat_weights_names", "_all_weights"):
        del state[key]
    state["all_weights"] = module.all_weights
    old = getattr(fusedrnn, name).__new__(getattr(fusedrnn, name))
    old.__setstate__(state)
    x = torch.randn(4, 2, 3)
    close(old(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_may_be_replaced_deleted_tied_or_frozen(name: str) -> None:
    ours, theirs = pair(name, 3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3)
    weight = torch.randn_like(ours.weight_hh_l0)
    for module in (ours, theirs):
        module.weight_hh_l0 = nn.Parameter(weight)
        module.bias_ih_l0_reverse = module.bias_ih_l0
    close(ours(x), theirs(x))
    assert len(list(ours.parameters())) == len(list(theirs.parameters())) == 7

    def assign(module: Any) -> None:
        module.weight_hh_l0 = torch.randn(2)

    assert refusal(lambda: assign(ours)) == refusal(lambda: assign(theirs))
    for module in (ours, theirs):
        del module.weight_hh_l0
        module.to(torch.float64)  # works with a weight missing
        module.to(torch.float32)
        module.weight_hh_l0 = 2 * weight
    close(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_weights_swapped_by_torch_utilities_are_seen(name: str) -> None:
    x = torch.randn(4, 2, 3)

    class Doubled(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    def parametrized(module: Any) -> Any:
        parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
        return module

    def normed(module: Any) -> Any:
        return nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")

    def pruned(module: Any) -> Any:
        return prune.l1_unstructured(module, "weight_hh_l0", 0.5)

    for change in (parametrized, normed, pruned):
        ours, theirs = (change(module) for module in pair(name, 3, 5))
        close(ours(x), theirs(x))
        with torch.no_grad():
            for module in (ours, theirs):
                for parameter in module.parameters():
                    parameter.mul_(1.5)
        close(ours(x), theirs(x))
        ours(x)[0].sum().backward()
        theirs(x)[0].sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(a.grad, b.grad)

    ours, theirs = pair(name, 3, 5)
    weights = {k: 2 * v.detach() for k, v in theirs.named_parameters()}
    expected = torch.func.functional_call(theirs, weights, (x,))
    close(torch.func.functional_call(ours, weights, (x,)), expected)
    close(ours(x), theirs(x))  # and they are back


@pytest.mark.parametrize("name", NAMES)
def test_replicas_use_their_own_weights(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    replica = module._replicate_for_data_parallel()
    for key, value in module.named_parameters():
        setattr(replica, key, 2 * value)
    x = torch.randn(4, 2, 3)
    doubled = getattr(nn, name)(3, 5)
    doubled.load_state_dict({k: 2 * v for k, v in module.state_dict().items()})
    close(replica(x), doubled(x))


@pytest.mark.parametrize("name", NAMES)
def test_flatten_parameters_is_callable_replaceable_and_does_nothing(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    before = [w.data_ptr() for w in module.parameters()]
    module.flatten_parameters()
    assert before == [w.data_ptr() for w in module.parameters()]
    module.flatten_parameters = lambda: None
    module(torch.randn(4, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_and_batch_first_may_change_after_construction(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2)
    x = torch.randn(4, 2, 3)
    for module in (ours, theirs):
        module.dropout, module.batch_first = 0.5, True
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(module(x))
    close(*results)
    close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_module_is_an_rnn_base_and_keeps_its_helpers(name: str) -> None:
    ours, theirs = pair(name, 3, 5)
    assert isinstance(ours, nn.RNNBase)
    assert isinstance(ours, getattr(nn, name))
    assert set(dir(theirs)) - set(dir(ours)) == set()
    for key in ("__constants__", "__jit_unused_properties__"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert all(
        w is getattr(ours, key)
        for group, keys in zip(ours.all_weights, theirs._all_weights, strict=True)
        for w, key in zip(group, keys, strict=True)
    )
    x = torch.randn(4, 2, 3)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    h, order = states(name, 1, 2, 5), torch.tensor([1, 0])
    close(ours.permute_hidden(h, order), theirs.permute_hidden(h, order))


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_may_use_and_replace_what_torchs_may(name: str) -> None:
    calls = []

    def derived(namespace: Any) -> Any:
        class Derived(getattr(namespace, name)):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.scale = nn.Parameter(torch.ones(1))

            def check_forward_args(self, *args: Any) -> None:
                calls.append(namespace)
                super().check_forward_args(*args)

            def forward(self, x: torch.Tensor, hx: Any) -> Any:
                # As DropConnect was written: torch's function on the module's own list of weights.
                run = getattr(torch, self.mode.lower())
                weights = [self.scale * w for w in self._flat_weights]
                by_torch = run(x, hx, weights, self.bias, 1, 0.0, True, False, self.batch_first)
                self.check_forward_args(x, hx, None)
                return by_torch, super().forward(x, self.permute_hidden(hx, None))

        torch.manual_seed(0)
        return Derived(3, 5)

    x, hx = torch.randn(4, 2, 3), states(name, 1, 2, 5)
    ours, theirs = (derived(ns)(x, hx) for ns in (fusedrnn, nn))
    close(ours, theirs)
    assert {*calls} == {fusedrnn, nn}
    assert len(calls) == 4


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}Cell" for name in NAMES)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_remedy_and_changes_nothing(name: str) -> None:
    own = getattr(fusedrnn, name)(3, 5)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(own))
    before = list(model.modules())
    for module in (model, own):
        error = refusal(partial(torch.jit.script, module))
        assert error[:2] == (
            RuntimeError,
            f"fusedrnn: TorchScript cannot compile {name}: "
            "call fusedrnn.to_torch(model) before torch.jit.script",
        )
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))

    class Own(getattr(fusedrnn, name)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    assert torch.equal(torch.jit.script(Own(3, 5))(torch.ones(2)), torch.full((2,), 2.0))


def test_public_names_and_version() -> None:
    from importlib.metadata import version

    assert fusedrnn.__version__ == version("fusedrnn")
    for name in fusedrnn.__all__:
        assert getattr(fusedrnn, name) is not None
