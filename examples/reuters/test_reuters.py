"""Reuters: parameter counts, batches, scores, and that an update learns; both implementations."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import nn

from examples import data
from examples.driver.layers import count_parameters
from examples.reuters import model as reuters
from examples.reuters.workload import derivation, verdict


def test_the_derivation_lists_the_models_own_parameters(cell: str) -> None:
    model = reuters.build_model(cell, "torch")
    *entries, total = derivation(cell, asdict(reuters.CONFIG)).rows
    assert [(name, sizes, values) for name, _, sizes, values in entries] == [
        (name, " x ".join(f"{size:,}" for size in p.shape), f"{p.numel():,}")
        for name, p in model.named_parameters()
    ]
    assert total == ("total", "", "", f"{count_parameters(model):,}")


def test_the_split_keeps_order_and_dtype() -> None:
    corpus = data.synthetic_reuters(100)
    rows = reuters.split(corpus, 20)
    assert len(rows.x_train) == len(rows.y_train) == 80
    assert rows.x_train.dtype == rows.y_train.dtype == torch.int64
    x, y = map(torch.from_numpy, corpus.padded(20))
    assert torch.equal(torch.cat([rows.x_train, rows.x_test]), x)
    assert torch.equal(torch.cat([rows.y_train, rows.y_test]), y)


def test_batches_cover_every_row_once_and_keep_pairs() -> None:
    x = torch.arange(150)[:, None].expand(150, 3)
    y = torch.arange(150)
    plain = list(reuters.batches(x, y, 64))
    assert [len(b) for b, _ in plain] == [64, 64, 22]
    assert torch.equal(torch.cat([b for b, _ in plain]), x)
    generator = torch.Generator().manual_seed(0)
    first, second = (list(reuters.batches(x, y, 64, generator)) for _ in range(2))
    for epoch in (first, second):
        assert torch.equal(torch.cat([t for _, t in epoch]).sort().values, y)
        assert all(torch.equal(b[:, 0], t) for b, t in epoch)
    assert not torch.equal(first[0][1], second[0][1])


def fixed(logits: torch.Tensor) -> nn.Module:
    """Gives each row the logits that its first value indexes."""
    return nn.Sequential(nn.Embedding.from_pretrained(logits), nn.Flatten())


def test_scores_follow_their_definition() -> None:
    logits = torch.randn(300, 46)
    y = torch.randint(46, (300,))
    scores = reuters.evaluate(fixed(logits), torch.arange(300)[:, None], y, size=128)
    error = logits.softmax(-1) - nn.functional.one_hot(y, 46)
    assert scores["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-6)
    assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == y).float().mean().item())
    assert scores["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item())


def test_a_uniform_guess_scores_the_known_rmse() -> None:
    scores = reuters.evaluate(fixed(torch.zeros(1, 46)), torch.zeros(9, 1).long(), torch.arange(9))
    assert scores["rmse"] == pytest.approx(math.sqrt(1 / 46 * (1 - 1 / 46)))


def test_evaluation_switches_dropout_off_and_back() -> None:
    model = reuters.build_model("rnn", "torch")
    rows = reuters.split(data.synthetic_reuters(40), 10)
    first, second = (reuters.evaluate(model, rows.x_test, rows.y_test) for _ in range(2))
    assert first == second
    assert model.training


@pytest.mark.parametrize("cell", reuters.CELLS)
def test_updates_lower_the_loss_of_a_batch(impl: str, cell: str) -> None:
    rows = reuters.split(data.synthetic_reuters(40), 15)
    model = reuters.build_model(cell, impl)
    optimizer = reuters.build_optimizer(model)
    update = partial(reuters.train_step, model, optimizer, rows.x_train, rows.y_train)
    losses = [update().item() for _ in range(15)]
    assert losses[0] == pytest.approx(math.log(46), rel=0.1)
    assert losses[-1] < 0.8 * losses[0]


def test_a_difference_is_told_from_the_spread_between_seeds() -> None:
    low, high = [0.60, 0.61, 0.62], [0.70, 0.71, 0.72]
    assert verdict([0.40, 0.50, 0.45], [0.41, 0.49, 0.47]).startswith("no clear change (+0.007")
    assert verdict(low, high).startswith("clearly better (+0.100 ±")
    assert verdict(high, low).startswith("clearly worse (-0.100 ±")
    assert verdict([0.6], [0.7]) == "a change of +0.100 from one seed, which says little"
