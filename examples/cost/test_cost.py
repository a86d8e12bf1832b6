"""Cost: what is timed, and what the summary makes of the times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from examples import data
from examples.cost import model as cost
from examples.cost.workload import WORKLOAD
from examples.driver.training import Epoch
from examples.time_machine import model as time_machine

CONFIG = replace(cost.CONFIG, hidden=6, batch=4, steps=9)


def test_reading_leaves_the_model_as_it_was_and_takes_time(impl: str, cell: str) -> None:
    text = data.synthetic_text(500)
    model = time_machine.build_model(cell, impl, len(text.symbols), CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    model.rnn.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    assert cost.read(model, text.tokens, CONFIG) > 0
    assert model.training
    assert modes == [False] * len([*time_machine.batches(text.tokens, config=CONFIG)])
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def record(seconds: dict[tuple[int, str, str], tuple[float, float]]) -> dict[str, Any]:
    """Results in which a batch takes these seconds, training and inference; the first epoch ten
    times as long."""
    size = CONFIG.batch * CONFIG.steps
    runs = []
    for (H, cell, impl), (training, inference) in seconds.items():
        epochs = [
            Epoch(1.0, 3 * size, 3 * training * warm, {"inference": 3 * inference * warm})
            for warm in (10, 1, 1)
        ]
        runs.append({"hidden": H, "cell": cell, "impl": impl, "seed": 0, "epochs": epochs})
    return {"config": {"batch": CONFIG.batch, "steps": CONFIG.steps}, "runs": runs}


def test_times_are_milliseconds_a_batch_and_each_phase_has_its_own_speed() -> None:
    seconds = {
        (64, "rnn", "fusedrnn"): (0.001, 0.0005),
        (64, "rnn", "torch"): (0.002, 0.002),
        (64, "lstm", "fusedrnn"): (0.003, 0.001),
        (64, "lstm", "torch"): (0.003, 0.001),
    }
    found = WORKLOAD.summarise(record(seconds))
    training, inference = (table.rows for table in found.tables)
    assert training[0] == ("64", "RNN", "1.00", "2.00", "2.00x")
    assert inference[0] == ("64", "RNN", "0.50", "2.00", "4.00x")
    assert found.remarks == [
        "Training, H = 64: an LSTM takes 3.0 times an RNN's time.",
        "Inference, H = 64: an LSTM takes 2.0 times an RNN's time.",
    ]
    assert [row[1:] for row in found.headline] == [
        ("1.00", "2.00", "2.00x"),
        ("3.00", "3.00", "1.00x"),
    ]


@pytest.mark.parametrize("cells", [("rnn",), ("gru", "lstm")])
def test_without_both_cells_nothing_is_compared(cells: tuple[str, ...]) -> None:
    found = record({(H, cell, "torch"): (0.001, 0.001) for H in (8, 16) for cell in cells})
    assert WORKLOAD.summarise(found).remarks == []
    assert WORKLOAD.claims(found) == []


def test_a_line_goes_from_the_fewest_units_to_the_most() -> None:
    found = record({(H, "rnn", "torch"): (H / 1e3, H / 2e3) for H in (16, 8)})
    training, inference = WORKLOAD.draw(found)
    assert training.series == {"RNN, torch.nn": ([8, 16], [8.0, 16.0])}
    assert inference.series == {"RNN, torch.nn": ([8, 16], [4.0, 8.0])}
