"""Libraries that build torch.nn's layers themselves compute the same with ours in their place.

Small models of theirs with random weights, nothing downloaded: once as they come, once built under
patch, once converted, and once converted and undone; outputs and the gradient of every parameter
are compared. Where a library imports torch.nn's names when it is imported, only convert reaches its
layers; ``reached`` says which case is which.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracle import tensors_of
from torch import Tensor, nn

import fusedrnn

LAYERS = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
OURS = tuple(getattr(fusedrnn, layer.__name__) for layer in LAYERS)


@dataclass(frozen=True)
class Case:
    """``build`` makes a model of modules from ``package``; ``call`` runs it on fixed inputs.

    ``layers``: what the model holds of each kind. ``reached``: whether patch reaches them.
    """

    name: str
    package: str
    build: Callable[[], nn.Module]
    call: Callable[[Any], Any]
    layers: dict[str, int]
    reached: bool = True


CASES: list[Case] = []


def case(
    package: str, build: Callable[[], nn.Module], reached: bool = True, **layers: int
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def add(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        CASES.append(Case(call.__name__, package, build, call, layers, reached))
        return call

    return add


def made(path: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """Calls a name of a library, imported when it is called."""

    def build() -> nn.Module:
        module, _, name = path.rpartition(".")
        result: nn.Module = getattr(importlib.import_module(module), name)(*args, **kwargs)
        return result

    return build


# stanza: natural language processing. Packed sequences, encoder and decoder.


@case(
    "stanza",
    made("stanza.models.common.packed_lstm.PackedLSTM", 5, 7, 2, True, True, 0.3, True),
    LSTM=1,
)
def stanza_packed_lstm(model: Any) -> Any:
    return model(torch.randn(4, 6, 5), [6, 4, 3, 1])


@case(
    "stanza",
    made("stanza.models.common.packed_lstm.LSTMwRecDropout", 5, 7, 2, rec_dropout=0.4),
    LSTMCell=2,
)
def stanza_recurrent_dropout(model: Any) -> Any:
    return model(nn.utils.rnn.pack_sequence([torch.randn(n, 5) for n in (6, 4, 1)]))


TRANSLATOR = {
    "vocab_size": 20,
    "emb_dim": 6,
    "hidden_dim": 10,
    "num_layers": 2,
    "dropout": 0.2,
    "max_dec_len": 8,
    "attn_type": "soft",
}


@case(
    "stanza",
    made("stanza.models.common.seq2seq_model.Seq2SeqModel", TRANSLATOR),
    LSTM=1,
    LSTMCell=1,
)
def stanza_seq2seq(model: Any) -> Any:
    source = torch.randint(4, 20, (3, 6))
    source[1, 4:] = source[2, 2:] = 0
    return model(source, source == 0, torch.randint(4, 20, (3, 5)))[0]


# torch_geometric: graphs. Layers as aggregations and cells as updates of nodes.


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
GRAPHS = torch.tensor([0, 0, 0, 1, 1, 1])


@case("torch_geometric", made("torch_geometric.nn.Set2Set", 4, 3), LSTM=1)
def geometric_set2set(model: Any) -> Any:
    return model(torch.randn(6, 4), GRAPHS)


@case("torch_geometric", made("torch_geometric.nn.GatedGraphConv", 5, 3), GRUCell=1)
def geometric_gated_graph(model: Any) -> Any:
    return model(torch.randn(6, 5), EDGES)


@case(
    "torch_geometric",
    made("torch_geometric.nn.JumpingKnowledge", "lstm", 4, 3),
    reached=False,
    LSTM=1,
)
def geometric_jumping_knowledge(model: Any) -> Any:
    return model([torch.randn(6, 4) for _ in range(3)])


@case(
    "torch_geometric",
    made("torch_geometric.nn.GRUAggregation", 4, 5, bidirectional=True),
    reached=False,
    GRU=1,
)
def geometric_gru_aggregation(model: Any) -> Any:
    return model(torch.randn(6, 4), GRAPHS)


@case(
    "torch_geometric",
    made("torch_geometric.nn.AttentiveFP", 4, 5, 2, edge_dim=3, num_layers=2, num_timesteps=2),
    reached=False,
    GRUCell=3,
)
def geometric_attentive_fp(model: Any) -> Any:
    return model(torch.randn(6, 4), EDGES, torch.randn(8, 3), GRAPHS)


# stable-baselines3: reinforcement learning. States carried and reset in the middle of a sequence.


def policy() -> nn.Module:
    from gymnasium import spaces
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    space = spaces.Box(-1.0, 1.0, (3,))
    options: Any = {"net_arch": [4], "lstm_hidden_size": 6, "n_lstm_layers": 2}
    action = spaces.Discrete(2)
    result: nn.Module = RecurrentActorCriticPolicy(space, action, lambda _: 1e-3, **options)
    return result


@case("sb3_contrib", policy, LSTM=2)
def sb3_recurrent_ppo(model: Any) -> Any:
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    states = RNNStates(*((torch.randn(2, 2, 6), torch.randn(2, 2, 6)) for _ in range(2)))
    actions = torch.randint(0, 2, (10,))
    restart = torch.zeros(10)
    whole = model.evaluate_actions(torch.randn(10, 3), actions, states, restart)
    restart[3] = restart[7] = 1
    return whole, model.evaluate_actions(torch.randn(10, 3), actions, states, restart)


# transformers: pretrained models. Layers between convolutions, which keep a residual.


def codec() -> nn.Module:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=[2, 2],
        num_lstm_layers=2,
        codebook_size=4,
        codebook_dim=8,
    )
    result: nn.Module = EncodecModel(config)
    return result


@case("transformers", codec, LSTM=2)
def transformers_encodec(model: Any) -> Any:
    return model.decoder(model.encoder(torch.randn(2, 1, 24)))


def built(case: Case) -> nn.Module:
    pytest.importorskip(case.package, reason=f"needs {case.package}, of the extra test-third-party")
    torch.manual_seed(0)
    return case.build()


def count(model: nn.Module, kinds: tuple[type, ...]) -> dict[str, int]:
    """How many modules are of each kind and of no subclass of it."""
    found = [type(m).__name__ for m in model.modules() if type(m) in kinds]
    return {name: found.count(name) for name in set(found)}


def run(case: Case, model: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Tensor | None]]:
    """Outputs and gradients in training mode, with the same draws each time."""
    torch.manual_seed(1)
    outputs = tensors_of(case.call(model.train()))
    outputs = tuple(t for t in outputs if t.requires_grad)
    slopes = [torch.linspace(-1, 1, t.numel()).view(t.shape) for t in outputs]
    torch.autograd.backward(outputs, slopes)
    return outputs, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_library_s_model_computes_the_same_with_ours_in_place(case: Case) -> None:
    theirs = built(case)
    expected = run(case, theirs)
    assert count(theirs, LAYERS) == case.layers
    assert any(g is not None and g.count_nonzero() for g in expected[1].values())

    with fusedrnn.patch():
        patched = built(case)
    reached = case.layers if case.reached else {}
    assert count(patched, OURS) == reached
    torch.testing.assert_close(run(case, patched), expected)

    converted = built(case)
    assert len(fusedrnn.convert(converted)) == sum(case.layers.values())
    assert count(converted, OURS) == case.layers
    torch.testing.assert_close(run(case, converted), expected)

    fusedrnn.to_torch(converted)
    assert count(converted, LAYERS) == case.layers
    converted.zero_grad()
    torch.testing.assert_close(run(case, converted), expected)
