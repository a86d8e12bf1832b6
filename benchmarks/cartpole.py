"""RecurrentPPO of sb3-contrib on CartPole: its loop over steps beside one call with resets.

    pip install sb3-contrib
    python -m benchmarks cartpole --out DIR [--threads 2] [--quick]

Writes DIR/cartpole.jsonl and from it cartpole.md. Where an episode begins anywhere in a batch,
sb3-contrib's policy runs its LSTM once for every step of the batch. Three agents learn in turn, a
round each, from the same seeds: as sb3-contrib is, converted, and with that loop replaced by one
call. Their rewards must be the same, or the command fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fusedrnn
from benchmarks import options, timing
from benchmarks.report.cartpole import KIND, Measured, page
from benchmarks.report.place import beside
from benchmarks.results import line, write

ROUNDS, STEPS, HIDDEN = 15, 1024, 128


def process_sequence(
    features: Tensor, states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """In place of RecurrentActorCriticPolicy's; see the page on sequences."""
    B = states[0].shape[1]
    x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
    resets = episode_starts.reshape(B, -1).t() != 0
    output, states = lstm(x, states, resets=resets)
    return output.transpose(0, 1).flatten(0, 1), states


def as_it_is(agent: Any) -> None:
    pass


def converted(agent: Any) -> None:
    fusedrnn.convert(agent.policy)


def with_resets(agent: Any) -> None:
    fusedrnn.convert(agent.policy)
    agent.policy._process_sequence = process_sequence


WAYS: dict[str, Callable[[Any], None]] = {
    "torch.nn, as sb3-contrib is": as_it_is,
    "fusedrnn, sb3-contrib's loop": converted,
    "fusedrnn, one call with resets": with_resets,
}


class Agent:
    """An agent that learns a round at a time, and what its rounds took."""

    def __init__(self, change: Callable[[Any], None], steps: int, hidden: int) -> None:
        from sb3_contrib import RecurrentPPO

        self.steps, self.rewards = steps, list[float]()
        self.collect, self.learn = list[float](), list[float]()
        kwargs = {"lstm_hidden_size": hidden}
        about: dict[str, Any] = {"n_steps": steps, "batch_size": steps, "n_epochs": 4}
        self.ppo: Any = RecurrentPPO(
            "MlpLstmPolicy", "CartPole-v1", seed=0, policy_kwargs=kwargs, device="cpu", **about
        )
        change(self.ppo)
        self._train = self.ppo.train
        self.ppo.train = self._timed

    def _timed(self) -> None:
        start = time.perf_counter()
        self._train()
        self.learn.append(time.perf_counter() - start)

    def round(self, seed: int) -> None:
        """Collects and learns once. What sb3-contrib draws, it draws from the global generators."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = len(self.learn)
        start = time.perf_counter()
        self.ppo.learn(self.steps, reset_num_timesteps=False, log_interval=None)
        seconds = time.perf_counter() - start
        assert len(self.learn) == before + 1
        self.collect.append(seconds - self.learn[-1])
        (env,) = self.ppo.env.envs
        self.rewards = env.get_episode_rewards()


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def measure(rounds: int, steps: int, hidden: int) -> list[Measured]:
    agents = {name: Agent(change, steps, hidden) for name, change in WAYS.items()}
    for number in range(rounds + 1):  # the first is not timed
        for agent in agents.values():
            agent.round(number)
    first, *others = agents.values()
    for agent in others:
        if agent.rewards != first.rewards:
            raise AssertionError("the agents' rewards differ")
    return [
        Measured(
            name,
            steps,
            rounds,
            statistics.median(agent.collect[1:]),
            statistics.median(agent.learn[1:]),
            ratio(first.collect[1:], agent.collect[1:]),
            ratio(first.learn[1:], agent.learn[1:]),
            len(agent.rewards),
            statistics.fmean(agent.rewards[-10:]),
        )
        for name, agent in agents.items()
    ]


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Trains RecurrentPPO on CartPole three ways.")
    top.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's")
    arguments = top.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sizes = (2, 32, 8) if arguments.quick else (ROUNDS, STEPS, HIDDEN)
    measured = measure(*sizes)
    header = timing.place()
    header["sb3"] = metadata.version("sb3-contrib")
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, header, map(line, measured))
    return beside(path, page(path))
