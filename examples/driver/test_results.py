"""Results on disk: what is written is read back, rounded, one record a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.driver import results
from examples.driver.training import Epoch


def test_records_come_back_from_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    epochs = [Epoch(1.23456789012, 8, 0.5, {"rmse": 1e-92 / 3}), Epoch(0.5, 9, 0.25, {"rmse": 2.0})]
    runs = [{"impl": "torch", "epochs": epochs}, {"impl": "fusedrnn", "epochs": []}]
    kinds: dict[str, Any] = {"runs": runs, "initial": [{"norms": [1 / 3]}]}
    results.write(path, {"workload": "w"}, kinds)
    assert len(path.read_text().splitlines()) == 4
    found = results.read(path)
    assert found["workload"] == "w"
    assert found["initial"] == [{"norms": [0.33333333]}]
    first, second = found["runs"]
    assert first["epochs"] == [
        Epoch(1.2345679, 8, 0.5, {"rmse": 3.3333333e-93}),
        Epoch(0.5, 9, 0.25, {"rmse": 2.0}),
    ]
    assert second == {"impl": "fusedrnn", "epochs": []}


def test_targets_of_equal_epochs_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    epochs = [Epoch(1.0, 8, 0.5), Epoch(2.0, 8, 0.25)]
    results.write(path, {}, {"runs": [{"epochs": epochs}]})
    assert '"targets": 8,' in path.read_text()
    assert results.read(path)["runs"][0]["epochs"] == epochs


def test_figures_are_found_by_name_and_averaged_over_seeds() -> None:
    about = {"impl": "torch", "cell": "rnn"}
    runs = [about | {"epochs": [Epoch(1.0, 8, 2.0, {"x": x})]} for x in (3, 5)]
    (by_impl,) = results.groups(runs, "cell").values()
    assert results.curve(by_impl["torch"], "x") == [4.0]
    assert results.last(by_impl["torch"], "loss") == [1.0, 1.0]
    assert results.score("x", 1)(by_impl["torch"]) == "4.0 ± 1.4"
    assert (results.seconds(by_impl["torch"]), results.speed(by_impl["torch"])) == (2.0, 4.0)
    assert results.speedup(by_impl) == ""
    assert results.times("t", ["cell"], {("rnn",): by_impl}).rows == [("RNN", "2.00")]


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"workload": "w"}\n[1]\n')
    with pytest.raises(ValueError, match="is no JSON in line 2"):
        results.read(tmp_path / "r.jsonl")
