"""Time Machine: how the text is cut, the carried state, generation, and that updates learn."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples import data
from examples.driver.errors import WorkloadError
from examples.time_machine import model as time_machine

B, T = 4, 5
TOKENS = torch.arange(203)


@pytest.mark.parametrize("sampling", time_machine.SAMPLINGS)
@pytest.mark.parametrize("seed", range(5))
def test_targets_are_one_character_ahead(sampling: str, seed: int) -> None:
    pairs = list(time_machine.BATCHES[sampling](TOKENS, B, T, random.Random(seed)))
    assert pairs
    for x, y in pairs:
        assert x.shape == (B, T)
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(T))


@pytest.mark.parametrize("seed", range(5))
def test_sequential_rows_go_on_in_the_next_batch(seed: int) -> None:
    xs = [x for x, _ in time_machine.sequential_batches(TOKENS, B, T, random.Random(seed))]
    start = random.Random(seed).randint(0, T)
    width = (len(TOKENS) - start - 1) // B
    assert len(xs) == width // T
    assert torch.equal(xs[0][:, 0], start + width * torch.arange(B))
    for before, after in itertools.pairwise(xs):
        assert torch.equal(after[:, 0], before[:, -1] + 1)


@pytest.mark.parametrize("seed", range(5))
def test_random_subsequences_are_disjoint_and_shuffled(seed: int) -> None:
    xs = [x for x, _ in time_machine.random_batches(TOKENS, B, T, random.Random(seed))]
    start = random.Random(seed).randint(0, T - 1)
    assert len(xs) == (len(TOKENS) - start - 1) // T // B
    firsts = torch.cat(xs)[:, 0]
    assert len(firsts.unique()) == len(firsts)
    assert ((firsts - start) % T == 0).all()
    assert not torch.equal(firsts, firsts.sort().values)


@pytest.mark.parametrize("cut", time_machine.BATCHES.values())
def test_starts_differ_from_epoch_to_epoch(cut: Any) -> None:
    rng = random.Random(0)
    assert len({int(next(cut(TOKENS, B, T, rng))[0].min()) for _ in range(20)}) > 1


@pytest.mark.parametrize("sampling", time_machine.SAMPLINGS)
def test_an_epoch_of_the_task_has_8_batches_of_32_by_35(sampling: str) -> None:
    pairs = time_machine.batches(data.synthetic_text().tokens, sampling)
    assert [x.shape for x, _ in pairs] == [(32, 35)] * 8


def test_a_carried_state_continues_the_sequence(impl: str, cell: str) -> None:
    model = time_machine.build_model(cell, impl)
    x = torch.randint(28, (3, 10))
    whole, _ = model(x)
    head, state = model(x[:, :4])
    tail, _ = model(x[:, 4:], state)
    assert whole.shape == (10 * 3, 28)
    torch.testing.assert_close(torch.cat([head, tail]), whole)


def test_updates_learn_and_return_a_detached_state(impl: str, cell: str) -> None:
    model = time_machine.build_model(cell, impl)
    optimizer = time_machine.build_optimizer(model)
    x = torch.randint(28, (4, 1)).expand(4, 12)  # the same character again and again
    losses, state = [], None
    for _ in range(12):
        loss, state = time_machine.train_step(model, optimizer, x, x, state)
        losses.append(loss.item())
        assert not any(t.requires_grad for t in ([state] if isinstance(state, Tensor) else state))
    assert losses[0] == pytest.approx(math.log(28), rel=0.1)
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_are_clipped_together() -> None:
    model = time_machine.build_model("rnn", "torch")
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    x = torch.randint(28, (4, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    time_machine.train_step(model, optimizer, x, x, clip=1e-3)
    change = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert change.norm().item() == pytest.approx(1e-3, rel=1e-2)


class Alphabet(nn.Module):
    """Finds the next symbol most likely; the state counts the characters seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.seen += x[0].tolist()
        return nn.functional.one_hot((x.t().flatten() + 1) % 28, 28), (state or 0) + x.shape[1]


def test_generation_warms_up_on_the_prefix_and_then_takes_the_most_likely() -> None:
    text = data.Text(("<unk>", *" abcdefghijklmnopqrstuvwxyz"), torch.empty(0), "")
    model = Alphabet()
    assert time_machine.generate(model, text, "fed", count=5) == "fedefghi"
    assert text.decode(model.seen[:4]) == "fede"


def test_the_held_out_score_is_the_perplexity_of_every_next_character() -> None:
    model = time_machine.build_model("gru", "torch")
    tokens = torch.randint(28, (103,))
    rows = [tokens[at : at + 26] for at in range(0, 100, 25)]  # (103 - 1) // 4 = 25 targets each
    losses = [nn.functional.cross_entropy(model(x[None, :-1])[0], x[1:]) for x in rows]
    expected = torch.stack(losses).mean().exp().item()
    assert time_machine.evaluate(model, tokens, B=4) == pytest.approx(expected, rel=1e-5)


def test_too_short_a_tail_is_an_error() -> None:
    model = time_machine.build_model("rnn", "torch")
    with pytest.raises(WorkloadError, match="expected more than 32 characters, got 20"):
        time_machine.evaluate(model, torch.zeros(20, dtype=torch.int64))


def test_the_tail_is_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def note(_: Any, __: Any, x: Tensor, y: Tensor, *___: Any) -> tuple[Tensor, None]:
        seen.extend((x, y))
        return torch.zeros(()), None

    monkeypatch.setattr(time_machine, "train_step", note)
    tokens = torch.tensor([1] * 900 + [2] * 100)
    text = data.Text(("<unk>", *" abc"), tokens, "")
    config = time_machine.Config(hidden=4, batch=4, steps=5, held_out=0.1)
    run = time_machine.new_run("whole", "rnn", "torch", "random", 0, text, config)
    list(run.updates())
    assert torch.cat([t.flatten() for t in seen]).unique().tolist() == [1]
