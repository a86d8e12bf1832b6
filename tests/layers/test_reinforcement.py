"""Reinforcement learning: the adapters of the page on sequences do what the libraries do.

RecurrentPPO of sb3-contrib trains CartPole as it comes and with its loop over steps replaced by one
call with resets; TorchRL's LSTMModule runs rollouts in recurrent mode. Both adapters are taken from
the page itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from support.pages import run
from support.paths import ROOT

NEEDS = "needs {}, of the extra test-third-party"


@cache
def page() -> dict[str, Any]:
    return run(ROOT / "docs" / "sequences.md")


def sb3() -> Any:
    pytest.importorskip("sb3_contrib", reason=NEEDS.format("sb3_contrib"))
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    return RecurrentActorCriticPolicy


def gradients(outputs: Any, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    flat = [outputs[0], *outputs[1]]
    slopes = [torch.linspace(-1, 1, y.numel()).view(y.shape) for y in flat]
    return torch.autograd.grad(flat, wanted, slopes)


@pytest.mark.parametrize("starts", ["none", "first", "some", "all"])
def test_the_adapter_of_sb3_computes_what_its_loop_does(starts: str) -> None:
    loop = sb3()._process_sequence
    B, T, I, H, L = 3, 7, 4, 5, 2  # noqa: E741
    theirs = nn.LSTM(I, H, L)
    ours = fusedrnn.LSTM(I, H, L)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(B * T, I, requires_grad=True)
    states = tuple(torch.randn(L, B, H, requires_grad=True) for _ in range(2))
    share = {"none": 0.0, "first": 0.0, "some": 0.3, "all": 1.0}[starts]
    episode_starts = (torch.rand(B, T) < share).float()
    if starts == "first":
        episode_starts[:, 0] = 1

    def by(process: Any, lstm: Any) -> Any:
        found = process(features, states, episode_starts.flatten(), lstm)
        return found, gradients(found, [features, *states, *lstm.parameters()])

    torch.testing.assert_close(by(page()["process_sequence"], ours), by(loop, theirs))


class Told:
    """Trains CartPole for some rounds; every action, reward and logged loss."""

    def __init__(self, change: Any) -> None:
        from sb3_contrib import RecurrentPPO

        agent = RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=64,
            batch_size=48,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 16, "n_lstm_layers": 2, "net_arch": [8]},
        )
        change(agent)
        self.actions: list[int] = []
        self.losses: list[float] = []
        train: Any = agent.train

        def train_and_tell() -> None:
            train()
            told = agent.logger.name_to_value
            self.losses += [told[f"train/{name}"] for name in ("loss", "value_loss", "approx_kl")]

        def see(now: dict[str, Any], _: Any) -> bool:
            self.actions += now["actions"].tolist()
            return True

        agent.train = train_and_tell
        agent.learn(4 * 64, callback=see)
        (env,) = agent.env.envs
        self.rewards = env.get_episode_rewards()
        self.weights = {k: v.detach().clone() for k, v in agent.policy.state_dict().items()}


def test_recurrent_ppo_learns_the_same_with_one_call_in_place_of_its_loop() -> None:
    sb3()
    torch.set_num_threads(1)  # quicker for so small a layer
    calls: list[Any] = []

    def one_call(agent: Any) -> None:
        fusedrnn.convert(agent.policy)

        def process(*arguments: Any) -> Any:
            calls.append(arguments[2])
            return page()["process_sequence"](*arguments)

        agent.policy._process_sequence = process

    theirs, ours = Told(lambda agent: None), Told(one_call)
    assert any(starts.numel() > 1 and starts.any() for starts in calls)  # where sb3-contrib loops
    assert len(theirs.rewards) > 5
    assert ours.rewards == theirs.rewards
    assert ours.actions == theirs.actions
    assert len(theirs.losses) == 12
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("starts", ["none", "some"])
def test_the_adapter_of_torchrl_computes_what_its_module_does(starts: str) -> None:
    modules = pytest.importorskip("torchrl.modules", reason=NEEDS.format("torchrl"))
    from tensordict import TensorDict

    B, T, I, H, L = 4, 7, 3, 6, 2  # noqa: E741
    module = modules.LSTMModule(I, H, L, in_key="x", out_key="y")
    ours = fusedrnn.LSTM(I, H, L, batch_first=True)
    ours.load_state_dict(module.lstm.state_dict())
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    if starts == "some":
        is_init[0, 0] = is_init[0, 3] = is_init[2, 1] = is_init[2, 5] = True
    # As a collector records them: a trajectory begins with zeros.
    states = {
        f"recurrent_state_{name}": torch.randn(B, T, L, H) * ~is_init.unsqueeze(-1) for name in "hc"
    }
    x = torch.randn(B, T, I, requires_grad=True)
    td = {"x": x, "is_init": is_init, **states}

    with modules.set_recurrent_mode(True):
        theirs = module(TensorDict(td, [B, T]))
    last = [theirs["next", key][:, -1].transpose(0, 1) for key in states]
    output, found = page()["run_recurrent"](ours, td)
    torch.testing.assert_close((output, *found), (theirs["y"], *last))
    of_theirs = gradients((theirs["y"], last), [x, *module.lstm.parameters()])
    torch.testing.assert_close(gradients((output, found), [x, *ours.parameters()]), of_theirs)
