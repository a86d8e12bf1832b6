"""convert and to_torch change the class of live modules and nothing else, whatever has been done
to them; patch puts fusedrnn's classes under torch.nn's names and takes them away again.

torch.nn is the oracle: a copy that is left as it was is run beside the one that is changed.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fusedrnn
from support.oracle import close, ours_in, shown, states, step

NAMES = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
TORCHS = {name: getattr(nn, name) for name in NAMES + CELLS}  # as they are without a patch


class Model(nn.Module):
    """One of each kind, with one thing about each that a swap could lose."""

    def __init__(self, namespace: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.rnn = namespace.RNN(3, 4, nonlinearity="relu", bias=False)
        self.lstm = namespace.LSTM(4, 5, 2, bidirectional=True, proj_size=2, dropout=0.25)
        self.gru = namespace.GRU(4, 5, batch_first=True)
        self.cells = nn.ModuleList(
            [
                namespace.RNNCell(5, 5, nonlinearity="relu"),
                namespace.LSTMCell(5, 5, bias=False),
                namespace.GRUCell(5, 5),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(0, 1)).view_as(x)
        y = self.cells[0](self.gru(self.lstm(self.rnn(x)[0])[0])[0][-1])
        result: Tensor = self.cells[2](self.cells[1](y)[0])
        return result


LAYERS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"} | {
    f"cells.{i}": name for i, name in enumerate(CELLS)
}


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(model.get_submodule(name)) for name in LAYERS}


def expected_types(namespace: Any) -> dict[str, type]:
    return {name: getattr(namespace, kind) for name, kind in LAYERS.items()}


def test_every_layer_and_cell_of_a_model_changes_its_class_and_the_model_is_returned() -> None:
    model = Model(nn)
    before = dict(model.named_modules())
    for _ in range(2):  # the second time there is nothing to do
        assert fusedrnn.convert(model) is model
        assert types(model) == expected_types(fusedrnn)
        assert ours_in(model) == list(LAYERS)
    for _ in range(2):
        assert fusedrnn.to_torch(model) is model
        assert types(model) == expected_types(nn)
        assert ours_in(model) == []
    assert dict(model.named_modules()) == before


def test_what_was_converted_and_what_was_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"peeking": Peeking(3, 5), "plain": nn.LSTM(3, 5)})
    with caplog.at_level("INFO", "fusedrnn"), pytest.warns(UserWarning, match="left alone"):
        fusedrnn.convert(model)
    assert [record.getMessage() for record in caplog.records] == [
        "convert: left alone 'peeking': Peeking, a subclass of torch.nn.LSTM; to change that: "
        "derive it from fusedrnn.LSTM",
        "convert: 'plain' is fusedrnn.LSTM(3, 5) now",
    ]


@pytest.mark.parametrize("name", NAMES + CELLS)
def test_a_layer_by_itself_is_the_model_under_the_empty_name(name: str) -> None:
    module = getattr(nn, name)(3, 5)
    assert fusedrnn.convert(module) is module
    assert ours_in(module) == [""]
    assert type(module) is getattr(fusedrnn, name)
    assert fusedrnn.to_torch(module) is module
    assert type(module) is getattr(nn, name)


def test_outputs_and_gradients_are_the_same_before_and_after_and_back() -> None:
    model, x = Model(nn), torch.randn(6, 4, 3)
    expected = step(copy.deepcopy(model), x)
    fusedrnn.convert(model)
    ours = step(model, x)
    close(ours, expected)
    fusedrnn.to_torch(model)
    close(step(model, x), expected)
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_but_the_class_changes_there_and_back() -> None:
    model: Any = Model(nn).double().eval().requires_grad_(False)
    model.lstm.weight_hh_l1.requires_grad_(True)
    model.lstm.train()
    model.lstm.note = "mine"
    model.lstm.register_buffer("kept", torch.ones(2))

    def state() -> list[dict[str, Any]]:
        found = []
        for module in model.modules():
            attributes = vars(module).copy()
            found.append(attributes)
            # Lists and dictionaries of tensors and modules: by identity, not by value.
            for key, value in attributes.items():
                if isinstance(value, dict):
                    attributes[key] = {k: id(v) for k, v in value.items()}
                elif key == "_flat_weights":
                    attributes[key] = [id(w) for w in value]
        return found

    before, tensors = state(), {k: v.clone() for k, v in model.state_dict().items()}
    for change in (fusedrnn.convert, fusedrnn.to_torch):
        change(model)
        assert state() == before
        assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())


def test_models_built_with_fusedrnn_become_torchs_and_the_same_as_those_built_with_torch() -> None:
    x, built = torch.randn(6, 4, 3), []
    for namespace in (fusedrnn, nn):
        torch.manual_seed(0)
        built.append(Model(namespace))
    ours, theirs = built
    fusedrnn.to_torch(ours)
    assert types(ours) == expected_types(nn)
    assert shown(ours) == repr(theirs)
    close(step(ours, x), step(theirs, x))
    for name in LAYERS:
        a, b = vars(ours.get_submodule(name)), vars(theirs.get_submodule(name))
        assert a.keys() == b.keys(), name


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(optimizer: Any) -> None:
    torch.manual_seed(1)
    theirs, xs = Model(nn), [torch.randn(6, 4, 3) for _ in range(6)]
    ours = copy.deepcopy(theirs)
    options = {"lr": 1e-2} | ({"momentum": 0.9} if optimizer is torch.optim.SGD else {})
    optimizers = [optimizer(m.parameters(), **options) for m in (ours, theirs)]
    for i, x in enumerate(xs):
        if i in (2, 4):
            (fusedrnn.convert if i == 2 else fusedrnn.to_torch)(ours)
            assert ours_in(ours) == (list(LAYERS) if i == 2 else [])
        for model, updates in zip((ours, theirs), optimizers, strict=True):
            step(model, x, seed=i)
            updates.step()
    assert all(p in optimizers[0].state for p in ours.parameters())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_hooks_of_every_kind_fire_after_conversion_and_after_undoing() -> None:
    model: Any = nn.Sequential(nn.LSTM(3, 5))
    layer, seen = model[0], list[str]()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    layer.register_forward_pre_hook(note("forward pre"))
    layer.register_forward_hook(note("forward"))
    layer.register_full_backward_hook(note("backward"))
    layer.weight_hh_l0.register_hook(note("weight"))
    layer.weight_hh_l0.register_post_accumulate_grad_hook(note("accumulated"))
    layer.register_state_dict_post_hook(note("state dict"))
    layer.register_load_state_dict_pre_hook(note("load"))
    everything = {
        "forward pre",
        "forward",
        "backward",
        "weight",
        "accumulated",
        "state dict",
        "load",
    }
    for change in (fusedrnn.convert, fusedrnn.to_torch):
        change(model)
        seen.clear()
        x = torch.randn(4, 2, 3, requires_grad=True)
        model(x)[0].sum().backward()
        model.load_state_dict(model.state_dict())
        assert set(seen) == everything
        assert len(seen) == len(everything)


def test_state_dicts_go_both_ways_through_a_conversion() -> None:
    theirs, ours = Model(nn), Model(nn)
    fusedrnn.convert(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 4, 3)
    close(step(ours, x), step(theirs, x))
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.01)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()), assign=True)
    close(step(ours, x), step(theirs, x))


def copies() -> dict[str, Callable[[Any], Any]]:
    def saved(model: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "save": saved,
    }


@pytest.mark.parametrize("how", copies())
def test_copies_of_a_converted_model_are_converted(how: str) -> None:
    copied = copies()[how]
    model, x = Model(nn), torch.randn(6, 4, 3)
    fusedrnn.convert(model)
    other = copied(model)
    assert types(other) == expected_types(fusedrnn)
    close(step(other, x), step(model, x))
    fusedrnn.to_torch(other)
    assert types(other) == expected_types(nn)
    assert types(model) == expected_types(fusedrnn)
    close(step(copied(other), x), step(model, x))


WITHOUT = """
import sys
sys.modules["fusedrnn"] = None  # an import of it raises
import torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
assert type(model[0]) is torch.nn.LSTM and type(model[1]) is torch.nn.GRUCell
torch.testing.assert_close(model[1](model[0](x)[0][-1]), expected, rtol=1e-5, atol=1e-6)
"""


def test_a_pickle_of_what_to_torch_gave_loads_where_fusedrnn_is_not_installed(
    tmp_path: Any,
) -> None:
    model = nn.ModuleList([fusedrnn.LSTM(3, 5, 2, bidirectional=True), fusedrnn.GRUCell(10, 5)])
    x = torch.randn(4, 2, 3)
    expected = model[1](model[0](x)[0][-1]).detach()

    def load() -> subprocess.CompletedProcess[str]:
        torch.save((model, x, expected), tmp_path / "model.pt")
        command = [sys.executable, "-c", WITHOUT, str(tmp_path / "model.pt")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = load()
    assert refused.returncode
    assert "No module named 'fusedrnn" in refused.stderr
    fusedrnn.to_torch(model)
    loaded = load()
    assert loaded.returncode == 0, loaded.stderr


def test_meta_modules_convert_and_are_filled_afterwards() -> None:
    model, full = nn.Sequential(nn.LSTM(3, 5, device="meta")), nn.Sequential(nn.LSTM(3, 5))
    fusedrnn.convert(model)
    assert model[0].weight_hh_l0.device.type == "meta"
    model.to_empty(device="cpu").load_state_dict(full.state_dict())
    x = torch.randn(4, 2, 3)
    close(model(x), full(x))


def test_a_compiled_model_compiles_again_after_conversion() -> None:
    model = nn.Sequential(nn.GRU(3, 5))
    x = torch.randn(4, 2, 3)
    compiled: Any = torch.compile(model, backend="aot_eager")
    expected = compiled(x)
    assert ours_in(fusedrnn.convert(compiled)) == ["_orig_mod.0"]
    assert type(model[0]) is fusedrnn.GRU
    close(compiled(x), expected)
    assert torch._dynamo.explain(model)(x).graph_break_count == 0
    fusedrnn.to_torch(compiled)
    close(compiled(x), expected)


class Peeking(nn.LSTM):
    """A user's subclass."""


class OfOurs(fusedrnn.GRU):
    """A user's subclass."""


def test_subclasses_are_left_alone_and_named() -> None:
    model = nn.ModuleDict({"peeking": Peeking(3, 5), "plain": nn.LSTM(3, 5)})
    text = r"fusedrnn.convert left alone .* torch.nn's: 'peeking' \(Peeking\); derive .* fusedrnn's"
    with pytest.warns(UserWarning, match=text) as caught:
        assert ours_in(fusedrnn.convert(model)) == ["plain"]
    assert caught[0].filename == __file__
    assert type(model["peeking"]) is Peeking

    parametrize.register_parametrization(model["peeking"], "weight_hh_l0", nn.Identity())
    with pytest.warns(UserWarning, match=r"the model \(ParametrizedPeeking\)"):
        assert ours_in(fusedrnn.convert(model["peeking"])) == []
    with pytest.warns(UserWarning, match=r"to_torch left alone .* fusedrnn's: the model \(OfOurs"):
        assert ours_in(fusedrnn.to_torch(OfOurs(3, 5))) == [""]


def test_what_is_neither_side_s_is_passed_over_without_a_word() -> None:
    class Own(nn.RNNBase):
        pass

    model = nn.ModuleList([Own("GRU", 3, 5), nn.Linear(3, 5), OfOurs(3, 5), fusedrnn.GRUCell(3, 5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fusedrnn.convert(model)
    assert [type(module) for module in model[:3]] == [Own, nn.Linear, OfOurs]
    assert type(model[3]) is fusedrnn.GRUCell


def test_a_forward_set_on_the_instance_stays_in_force() -> None:
    module, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    expected = module(x)
    module.forward = module.forward  # type: ignore[method-assign]
    fusedrnn.convert(module)
    assert module.forward.__func__ is TORCHS["GRU"].forward  # type: ignore[attr-defined]
    close(module(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("change", [fusedrnn.convert, fusedrnn.to_torch])
def test_torchscript_is_refused_before_anything_changes(change: Any) -> None:
    x = torch.randn(4, 2, 3)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTM(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]  # type: ignore[no-any-return]

    name = change.__name__
    for scripted in (torch.jit.script(Plain()), torch.jit.trace(Plain(), x)):
        with pytest.raises(TypeError, match=rf"fusedrnn.{name}: the model is a TorchScript module"):
            change(scripted)
        model = nn.ModuleDict({"first": nn.LSTM(3, 5), "ours": fusedrnn.LSTM(3, 5), "no": scripted})
        with pytest.raises(TypeError, match=rf"'no\.inner' .* call fusedrnn.{name} on the module"):
            change(model)
        assert type(model["first"]) is nn.LSTM
        assert type(model["ours"]) is fusedrnn.LSTM

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    harmless = nn.Sequential(torch.jit.script(Scaled()), nn.LSTM(3, 5))
    assert ours_in(fusedrnn.convert(harmless)) == ["1"]


@pytest.mark.parametrize("change", [fusedrnn.convert, fusedrnn.to_torch])
def test_what_is_no_module_is_refused(change: Any) -> None:
    program = torch.export.export(nn.Linear(3, 5), (torch.randn(2, 3),))
    for thing in (program, [nn.LSTM(3, 5)], nn.LSTM):
        got = type(thing).__name__
        remedy = "what it was exported from" if thing is program else "the model that holds"
        with pytest.raises(TypeError, match=f"torch.nn.Module, got {got}: call it on {remedy}"):
            change(thing)


def test_states_given_and_returned_are_the_same_for_cells() -> None:
    for name in CELLS:
        cell = TORCHS[name](3, 5)
        x, hx = torch.randn(2, 3), states(name, 2, 5)
        expected = cell(x, hx)
        fusedrnn.convert(cell)
        close(cell(x, hx), expected)
