"""Libraries that build torch.nn's layers themselves compute the same with ours in their place.

Small models of theirs with random weights, nothing downloaded: once as they come, once built under
patch, once converted, and once converted and undone; outputs and the gradient of every parameter
are compared. Where a library imports torch.nn's names when it is imported, only convert reaches its
layers; ``reached`` says which case is which.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from support.oracle import tensors_of

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


def policy(**options: Any) -> nn.Module:
    from gymnasium import spaces
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    space = spaces.Box(-1.0, 1.0, (3,))
    action = spaces.Discrete(2)
    result: nn.Module = RecurrentActorCriticPolicy(space, action, lambda _: 1e-3, **options)
    return result


SMALL: dict[str, Any] = {"net_arch": [4], "lstm_hidden_size": 6, "n_lstm_layers": 2}


@case("sb3_contrib", lambda: policy(**SMALL), LSTM=2)
def sb3_recurrent_ppo(model: Any) -> Any:
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    states = RNNStates(*((torch.randn(2, 2, 6), torch.randn(2, 2, 6)) for _ in range(2)))
    actions = torch.randint(0, 2, (10,))
    restart = torch.zeros(10)
    whole = model.evaluate_actions(torch.randn(10, 3), actions, states, restart)
    restart[3] = restart[7] = 1
    return whole, model.evaluate_actions(torch.randn(10, 3), actions, states, restart)


# torchrl: reinforcement learning. Asks isinstance whether sequences may be packed; states are reset
# within a sequence, and its modules run one step at a time as well.


@case("torchrl", made("torchrl.modules.LSTMModule", 3, 6, 2, in_key="x", out_key="y"), LSTM=1)
def torchrl_lstm(model: Any) -> Any:
    return episodes(model, {"recurrent_state_h": 6, "recurrent_state_c": 6})


@case("torchrl", made("torchrl.modules.GRUModule", 3, 6, 2, in_key="x", out_key="y"), GRU=1)
def torchrl_gru(model: Any) -> Any:
    return episodes(model, {"recurrent_state": 6})


def episodes(model: Any, states: dict[str, int]) -> list[Tensor]:
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    B, T = 4, 7
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    is_init[0, 3] = is_init[2, 1] = is_init[2, 5] = True
    sequence = {key: torch.randn(B, T, 2, H) for key, H in states.items()}
    sequence |= {"x": torch.randn(B, T, 3), "is_init": is_init}
    step = {key: value[:, 0] for key, value in sequence.items()}
    with set_recurrent_mode(True):
        whole = model(TensorDict(sequence, [B, T]))
    with set_recurrent_mode(False):
        one = model(TensorDict(step, [B]))
    return [td[key] for td in (whole, one) for key in ("y", *(("next", s) for s in states))]


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
    fusedrnn.convert(converted)
    assert count(converted, OURS) == case.layers
    torch.testing.assert_close(run(case, converted), expected)

    fusedrnn.to_torch(converted)
    assert count(converted, LAYERS) == case.layers
    converted.zero_grad()
    torch.testing.assert_close(run(case, converted), expected)


def codecs() -> tuple[Any, Any]:
    """The same model of transformers, as it comes and converted."""
    pytest.importorskip("transformers", reason="needs transformers, of the extra test-third-party")
    torch.manual_seed(0)
    theirs = codec()
    return theirs, fusedrnn.convert(copy.deepcopy(theirs))


def test_transformers_initializes_ours_as_torchs() -> None:
    models: Any = codecs()
    for model in models:
        torch.manual_seed(1)
        for layer in model.modules():
            if isinstance(layer, nn.LSTM):
                before = copy.deepcopy(layer.state_dict())
                for parameter in layer.parameters():
                    parameter._is_hf_initialized = False  # type: ignore[attr-defined]
                model._init_weights(layer)
                assert not torch.equal(layer.state_dict()["weight_hh_l0"], before["weight_hh_l0"])
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_a_pretrained_checkpoint_builds_torchs_layers_again_and_convert_makes_them_ours(
    tmp_path: Path,
) -> None:
    _, ours = codecs()
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert count(again, LAYERS) == {"LSTM": 2}
    assert count(fusedrnn.convert(again), OURS) == {"LSTM": 2}
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_a_policy_that_is_loaded_has_torchs_layers_again_and_convert_makes_them_ours(
    tmp_path: Path,
) -> None:
    pytest.importorskip("sb3_contrib", reason="needs sb3_contrib, of the extra test-third-party")
    ours: Any = fusedrnn.convert(policy())
    ours.save(str(tmp_path / "policy.pt"))
    again = type(ours).load(str(tmp_path / "policy.pt"))
    assert count(again, LAYERS) == {"LSTM": 2}
    assert count(fusedrnn.convert(again), OURS) == {"LSTM": 2}
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("way", ["named", "converted before opacus", "converted"])
def test_opacus_refuses_and_fixes_ours_as_torchs(name: str, way: str) -> None:
    early = fusedrnn.convert(getattr(nn, name)(3, 5))
    opacus = pytest.importorskip("opacus", reason="needs opacus, of the extra test-third-party")
    validator = opacus.validators.ModuleValidator
    torch.manual_seed(0)
    theirs = nn.Sequential(getattr(nn, name)(3, 5, batch_first=True))
    if way == "named":
        ours = nn.Sequential(getattr(fusedrnn, name)(3, 5, batch_first=True))
        ours.load_state_dict(theirs.state_dict())
    else:
        ours = fusedrnn.convert(copy.deepcopy(theirs))
    if way == "converted before opacus":
        assert validator.validate(early)
    errors = [[str(e) for e in validator.validate(model)] for model in (ours, theirs)]
    assert errors[0] == errors[1] != []
    fixed = [validator.fix(model) for model in (ours, theirs)]
    assert type(fixed[0][0]) is type(fixed[1][0])
    assert validator.validate(fixed[0]) == []
    x = torch.randn(4, 6, 3)
    torch.testing.assert_close(fixed[0](x)[0], ours(x)[0])
