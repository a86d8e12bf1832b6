"""Ours are instances of torch.nn's classes, to libraries that ask and in traced code alike, and
torch.compile still makes one graph of them, which it does not of torch.nn's."""

from __future__ import annotations

import abc
import copy
import functools
import importlib.util
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fusedrnn
from fusedrnn import hooks
from support.oracle import close

LAYERS = ("RNN", "LSTM", "GRU")
NAMES = (*LAYERS, "RNNCell", "LSTMCell", "GRUCell")


def named(name: str) -> nn.Module:
    return getattr(fusedrnn, name)(3, 5)  # type: ignore[no-any-return]


def converted(name: str) -> nn.Module:
    return fusedrnn.convert(getattr(nn, name)(3, 5))  # type: ignore[no-any-return]


def patched(name: str) -> nn.Module:
    with fusedrnn.patch():
        return getattr(nn, name)(3, 5)  # type: ignore[no-any-return]


def derived(name: str) -> nn.Module:
    class Derived(getattr(fusedrnn, name)):  # type: ignore[misc]
        pass

    return Derived(3, 5)


def normalized(name: str) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(named(name), weight(name))  # type: ignore[no-any-return]


def weight(name: str) -> str:
    return "weight_hh" if name.endswith("Cell") else "weight_hh_l0"


WAYS = (named, converted, patched, derived, normalized)


def input_of(name: str) -> Tensor:
    return torch.randn(2, 3) if name.endswith("Cell") else torch.randn(4, 2, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_ours_is_an_instance_of_torchs_and_of_ours(name: str, way: Callable[[str], Any]) -> None:
    module = way(name)
    assert isinstance(module, getattr(nn, name))
    assert isinstance(module, getattr(fusedrnn, name))
    assert issubclass(type(module), getattr(fusedrnn, name))
    assert isinstance(module, nn.RNNCellBase if name.endswith("Cell") else nn.RNNBase)
    assert [other for other in NAMES if isinstance(module, getattr(nn, other))] == [name]
    assert module.__class__.__name__ == type(module).__name__


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_into_one_graph_and_exports(name: str, way: Callable[[str], Any]) -> None:
    module, x = way(name), input_of(name)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(x), module(x))
    for strict in (False, True):
        close(torch.export.export(module, (x,), strict=strict).module()(x), module(x))


QUESTIONS: dict[str, Callable[[Any], bool]] = {
    "a class": lambda m: isinstance(m, nn.LSTM),
    "a tuple": lambda m: isinstance(m, (nn.GRU, nn.LSTM)),
    "a union": lambda m: isinstance(m, nn.GRU | nn.LSTM),
    "another class": lambda m: isinstance(m, nn.GRU),
    "a subclass": lambda m: issubclass(type(m), nn.LSTM),
    "the name": lambda m: m.__class__.__name__ == "LSTM",
    "its class": lambda m: m.__class__ is fusedrnn.LSTM and type(m) is m.__class__,
}


class Asking(nn.Module):
    """Goes by the answer, as code that takes one state or two."""

    def __init__(self, question: Callable[[Any], bool]) -> None:
        super().__init__()
        self.rnn = fusedrnn.LSTM(3, 5)
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        output, states = self.rnn(x)
        return states[0] if self.question(self.rnn) else output


@pytest.mark.parametrize("question", QUESTIONS)
def test_traced_code_gets_the_answer_of_eager_code(question: str) -> None:
    model, x = Asking(QUESTIONS[question]), torch.randn(4, 2, 3)
    expected = model(x)
    assert len(expected) == (4 if question == "another class" else 1)
    for fullgraph in (False, True):
        compiled: Any = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
        close(compiled(x), expected)
    for strict in (False, True):
        close(torch.export.export(model, (x,), strict=strict).module()(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_copies_by_every_way_are_of_the_same_class(name: str) -> None:
    module, x = named(name), input_of(name)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.copy(module), copy.deepcopy(module), torch.load(buffer, weights_only=False)]
    copies += [pickle.loads(pickle.dumps(module, protocol)) for protocol in range(6)]
    for other in copies:
        assert type(other) is getattr(fusedrnn, name)
        close(other(x), module(x))


def test_what_asks_for_a_class_by_other_means_finds_it_too() -> None:
    @functools.singledispatch
    def states(_: Any) -> int:
        return 1

    @states.register
    def _(_: nn.LSTM) -> int:
        return 2

    class Derived(fusedrnn.LSTM, metaclass=abc.ABCMeta):
        pass

    for module in (fusedrnn.LSTM(3, 5), Derived(3, 5), mock.Mock(spec=fusedrnn.LSTM(3, 5))):
        assert isinstance(module, nn.LSTM)
    assert (states(Derived(3, 5)), states(fusedrnn.GRU(3, 5))) == (2, 1)
    assert issubclass(fusedrnn.GRU, nn.GRU)


SPLIT = """
import torch, fusedrnn
from torch import nn
{first}
x = torch.randn(4, 2, 3)
ours, theirs = fusedrnn.LSTM(3, 5), nn.LSTM(3, 5)
theirs.load_state_dict(ours.state_dict())
for _ in range(2):
    compiled = torch.compile(lambda x: ours(x)[0] + 1, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), theirs(x)[0] + 1)
    try:
        torch.compile(lambda x: theirs(x)[0], fullgraph=True, backend="eager")(x)
    except torch._dynamo.exc.Unsupported as error:
        assert "LSTM" in str(error)
    else:
        raise AssertionError("torch.nn's is traced, too")
    assert torch._dynamo.config.allow_rnn is False
    torch._dynamo.reset()
"""


@pytest.mark.parametrize("first", ["", "import torch._dynamo"])
def test_torchs_own_layers_break_the_graph_as_ever(first: str, tmp_path: Path) -> None:
    program = SPLIT.format(first=first)
    if first:
        program = first + program
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_fusedrnn_imports_no_dynamo_and_no_onnx(tmp_path: Path) -> None:
    program = "import sys, fusedrnn; print({'torch._dynamo', 'torch.onnx'} & sys.modules.keys())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_hook_waits_for_the_import_and_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[ModuleType] = []
    hooks.when_imported("waited_for", heard.append)
    assert importlib.util.find_spec("waited_for") is None
    (tmp_path / "waited_for.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("waited_for") is not None
    assert heard == []
    module = importlib.import_module("waited_for")
    assert heard == [module]
    monkeypatch.delitem(sys.modules, "waited_for")
    again = importlib.import_module("waited_for")
    assert heard == [module]
    hooks.when_imported("waited_for", heard.append)
    assert heard == [module, again]
    monkeypatch.delitem(sys.modules, "waited_for")


def test_a_torch_whose_dynamo_differs_is_left_as_it_is() -> None:
    def wrap_module(self: Any, value: Any) -> None:
        pass

    for methods in ({}, {"wrap_module": wrap_module}):
        builder: Any = ModuleType("builder")
        builder.VariableBuilder = type("VariableBuilder", (), methods)
        hooks._allow_ours(builder)
        assert getattr(builder.VariableBuilder, "wrap_module", wrap_module) is wrap_module
    hooks._allow_ours(ModuleType("empty"))


def test_every_thread_compiles_ours() -> None:
    def compile_whole(_: int) -> Tensor:
        compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
        result: Tensor = compiled(x)[0]
        return result

    module, x = fusedrnn.GRU(3, 5), torch.randn(4, 2, 3)
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(compile_whole, range(6)):
            close(result, module(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_parametrizations_come_and_go(name: str) -> None:
    module, plain, x = named(name), named(name), torch.randn(4, 2, 3)
    plain.load_state_dict(module.state_dict())
    for _ in range(2):
        for key in ("weight_hh_l0", "bias_hh_l0"):
            parametrize.register_parametrization(module, key, nn.Identity())
        assert isinstance(module, getattr(nn, name))
        assert parametrize.type_before_parametrizations(module) is getattr(fusedrnn, name)
        close(module(x), plain(x))
        for key in ("weight_hh_l0", "bias_hh_l0"):
            parametrize.remove_parametrizations(module, key)
        assert type(module) is getattr(fusedrnn, name)
        close(module(x), plain(x))


def test_a_loop_over_isinstance_initializes_ours() -> None:
    def initialize(module: nn.Module) -> None:
        if isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
            for key, parameter in module.named_parameters():
                nn.init.constant_(parameter, 1.0 if "weight" in key else 0.0)

    model = fusedrnn.convert(nn.ModuleList(getattr(nn, name)(3, 5) for name in LAYERS))
    model.apply(initialize)
    sums = {float(parameter.sum()) for module in model for parameter in module.parameters()}
    assert sums == {0.0, *(gates * 5.0 * n for gates in (1, 3, 4) for n in (3, 5))}


class RNNModel(nn.Module):
    """Asks isinstance for its states, as the language model of Dive into Deep Learning, 9.5."""

    def __init__(self, rnn: Any, vocabulary: int) -> None:
        super().__init__()
        self.rnn, self.vocabulary = rnn, vocabulary
        self.linear = nn.Linear(rnn.hidden_size, vocabulary)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = nn.functional.one_hot(tokens.T, self.vocabulary).float()
        y, state = self.rnn(x, state)
        return self.linear(y.reshape(-1, y.shape[-1])), state

    def begin_state(self, batch: int) -> Any:
        zeros = torch.zeros(self.rnn.num_layers, batch, self.rnn.hidden_size)
        return zeros if not isinstance(self.rnn, nn.LSTM) else (zeros, zeros.clone())


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_that_asks_isinstance_for_its_states_trains_alike(name: str) -> None:
    losses: list[list[float]] = []
    for change in (nn.Module.train, fusedrnn.convert):
        torch.manual_seed(0)
        model = RNNModel(change(getattr(nn, name)(11, 8)), 11)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        state, tokens = model.begin_state(4), torch.randint(11, (4, 13))
        losses.append([])
        for _ in range(5):
            state = tuple(s.detach() for s in state) if name == "LSTM" else state.detach()
            logits, state = model(tokens[:, :-1], state)
            loss = nn.functional.cross_entropy(logits, tokens[:, 1:].T.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    close(torch.tensor(losses[1]), torch.tensor(losses[0]))
    assert losses[0][-1] < losses[0][0]
