"""The training loop: how losses are weighed and timed, and that runs in turn do not meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.driver import training
from examples.driver.errors import WorkloadError
from examples.driver.parallel import Processes


def small_run(seed: int = 0, **changes: Any) -> training.Run:
    """Three updates an epoch of a model with dropout, on numbers from a generator of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(seed)

    def updates() -> training.Updates:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
            yield loss.detach(), 5

    about = ("test", "small", "torch", seed, {"T": 5}, model, optimizer, updates)
    return replace(training.Run(*about, generators={"data": generator}), **changes)


def giving(*updates: tuple[float, int]) -> training.Run:
    """A run whose every epoch has these losses over as many targets."""

    def again() -> Iterable[tuple[Tensor, int]]:
        return iter([(torch.tensor(loss), count) for loss, count in updates])

    return small_run(updates=again)


def fit(*runs: training.Run, epochs: int = 2) -> list[list[float]]:
    training.fit(runs, epochs, lambda *_: None)
    return [[epoch.loss for epoch in run.history] for run in runs]


def test_runs_in_turn_train_as_each_alone() -> None:
    alone = [fit(small_run(seed), epochs=3)[0] for seed in (0, 1)]
    together = fit(small_run(0), small_run(1), epochs=3)
    assert together == alone
    assert alone[0] != alone[1]


def test_runs_are_trained_in_turn_and_reported_with_their_epoch() -> None:
    seen: list[tuple[int, int]] = []
    runs = [small_run(seed) for seed in (0, 1)]
    training.fit(runs, 2, lambda run, number, _: seen.append((run.seed, number)))
    assert seen == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_every_process_draws_numbers_of_its_own_and_the_same_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = fit(small_run())
    monkeypatch.setattr(training, "processes", lambda: Processes(rank=1))
    second = fit(small_run())
    assert second != first
    interrupted = small_run()
    fit(interrupted, epochs=1)
    torch.rand(3)
    assert fit(interrupted) == second


def test_epochs_weigh_updates_by_their_targets() -> None:
    run = giving((1.0, 3), (5.0, 1))
    fit(run)
    assert [(e.loss, e.targets) for e in run.history] == [(2.0, 4)] * 2
    assert run.history[0].perplexity == pytest.approx(torch.tensor(2.0).exp().item())


def test_an_epoch_without_updates_is_an_error() -> None:
    with pytest.raises(WorkloadError, match="too little data"):
        fit(giving())


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_names_its_update_and_run(loss: str) -> None:
    message = f"loss is {loss} in update 2 of epoch 1 \\(small, torch\\): nothing was written"
    with pytest.raises(WorkloadError, match=message):
        fit(giving((1.0, 1), (float(loss), 1)))


def test_figures_after_an_epoch_are_kept_with_it_and_draw_nothing_from_the_training() -> None:
    plain = fit(small_run())
    run = small_run(after=lambda: {"drawn": torch.rand(()).item()})
    assert fit(run) == plain
    assert all(set(epoch.figures) == {"drawn"} for epoch in run.history)
    entry = run.record(accuracy=0.5)
    assert (entry["T"], entry["accuracy"], entry["parameters"]) == (5, 0.5, 49)
    assert entry["epochs"] == run.history


def test_times_are_medians_without_the_first_of_three_epochs() -> None:
    epochs = [training.Epoch(0.0, 10, seconds) for seconds in (9.0, 1.0, 2.0, 4.0)]
    assert training.seconds_per_epoch(epochs) == 2.0
    assert training.per_second(epochs) == 5.0
    assert training.seconds_per_epoch(epochs[:2]) == 5.0
    assert training.seconds_per_epoch(epochs[:1]) == 9.0


def test_the_progress_bar_counts_to_the_updates_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    totals: list[int | None] = []

    def bar(total: int | None, **options: Any) -> Any:
        totals.append(total)
        return tqdm(total=total, **options)

    monkeypatch.setattr(training, "tqdm", bar)
    begun, fresh = small_run(0, length=3), small_run(1, length=3)
    fit(begun, epochs=2)
    fit(begun, fresh, epochs=5)
    assert totals == [2 * 3, (3 + 5) * 3]
