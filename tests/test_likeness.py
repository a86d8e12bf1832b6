"""A library that asks isinstance takes ours for torch.nn's; torch.compile does not."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import close
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fusedrnn

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
    assert isinstance(module, getattr(nn, name))  # asked before, so that a look-alike is there
    torch._dynamo.reset()
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(x), module(x))
    for strict in (False, True):
        close(torch.export.export(module, (x,), strict=strict).module()(x), module(x))


def test_traced_code_that_asks_isinstance_runs_as_one_graph() -> None:
    module, x = fusedrnn.GRU(3, 5), torch.randn(4, 2, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def last(x: Tensor) -> Tensor:
        output = module(x)
        return output[0][-1] if isinstance(module, nn.RNNBase) else output

    close(last(x), module(x)[0][-1])


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


@pytest.mark.parametrize("name", LAYERS)
def test_the_class_it_tells_stands_for_its_own(name: str) -> None:
    module, own = named(name), getattr(fusedrnn, name)
    told: Any = module.__class__
    assert told is not own
    assert issubclass(told, getattr(nn, name))
    assert issubclass(told, own)
    assert (told.__name__, told.__qualname__) == (own.__name__, own.__qualname__)
    assert (told.__module__, told.__doc__) == (own.__module__, own.__doc__)
    assert type(told(3, 5)) is own
    assert type(told.__new__(told)) is own
    assert "hidden_size" in inspect.signature(own).parameters
    assert isinstance(module, told)
    assert not isinstance(getattr(nn, name)(3, 5), told)

    told.note = "set"
    assert own.note == "set"
    del told.note
    assert not hasattr(own, "note")

    class Own(told):  # type: ignore[misc]
        note = "mine"

    module.__class__ = Own
    assert not issubclass(type(module), getattr(nn, name))
    assert module.note == "mine"
    assert isinstance(module, Own)
    assert type(Own(3, 5)).__mro__[1] is own
    module.__class__ = told
    assert type(module) is own


def test_a_subclass_tells_its_own_name_and_is_not_made_twice() -> None:
    heard = []

    class Registered(fusedrnn.LSTM):
        note = "mine"

        def __init_subclass__(cls) -> None:
            heard.append(cls)

    module = Registered(3, 5)
    assert isinstance(module, nn.LSTM)
    assert heard == []
    told: Any = module.__class__
    assert (told.__name__, told.note, told.__module__) == ("Registered", "mine", __name__)
    assert told is module.__class__


def test_a_subclass_with_a_metaclass_of_its_own_works_and_tells_its_own_class() -> None:
    class Meta(type):
        pass

    class Strict(fusedrnn.GRU, metaclass=Meta):
        pass

    assert Strict(3, 5).__class__ is Strict


def test_classes_that_torch_makes_for_a_module_go_with_it() -> None:
    module = normalized("LSTM")
    assert isinstance(module, nn.LSTM)
    gone = weakref.ref(type(module))
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", LAYERS)
def test_parametrizations_come_and_go(name: str) -> None:
    module, plain, x = named(name), named(name), torch.randn(4, 2, 3)
    plain.load_state_dict(module.state_dict())
    for _ in range(2):
        for key in ("weight_hh_l0", "bias_hh_l0"):
            parametrize.register_parametrization(module, key, nn.Identity())
        assert isinstance(module, getattr(nn, name))
        assert parametrize.type_before_parametrizations(module) is getattr(fusedrnn, name)
        assert not issubclass(type(module), getattr(nn, name))
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
