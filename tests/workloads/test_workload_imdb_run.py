"""IMDB as a command: its files, going on from a checkpoint, two processes, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.workloads import data, imdb
from benchmarks.workloads.errors import MissingData, WorkloadError
from benchmarks.workloads.imdb_summary import summary
from benchmarks.workloads.training import Epoch

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--synthetic", "--quick", "--epochs", "2", "--limit", "70", "--steps", "9"]

# The same small run without dropout, whose numbers processes would draw differently.
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import replace
from benchmarks.workloads import common, data, imdb
made = data.synthetic_imdb(200)
data.synthetic_imdb = lambda: made
imdb.CONFIGS = {{name: replace(c, dropout=0.0) for name, c in imdb.CONFIGS.items()}}
common.run(imdb.main)
"""

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*options): the record of a small synthetic run."""
    corpus = data.synthetic_imdb(200)
    monkeypatch.setattr(data, "synthetic_imdb", lambda: corpus)

    def run(*options: str) -> dict[str, Any]:
        imdb.main([*SMALL, "--out", str(tmp_path / "out"), *options])
        newest = max((tmp_path / "out").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        record: dict[str, Any] = json.loads(newest.read_text())
        return record

    return run


def losses(record: dict[str, Any], name: str) -> list[float]:
    return [e["loss"] for r in record["runs"] if r["name"] == name for e in r["epochs"]]


def test_a_run_of_everything_leaves_its_record_and_plots(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run("--impl", "fusedrnn", "torch", "--layout", "packed", "padded", "--follow")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("synthetic |") for line in lines)
    stem = "imdb-fusedrnn-torch-packed-padded-quick-synthetic"
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == [f"{stem}-accuracy.png", f"{stem}.json", f"{stem}.png"]
    assert record["workload"] == "imdb"
    assert record["reviews"] == {"train": 70, "test": 70}
    assert [r["name"] for r in record["runs"][::2]] == [
        f"{cell}-{layout}-seed0" for cell in imdb.CONFIGS for layout in imdb.LAYOUTS
    ]
    for r in record["runs"]:
        assert r["accuracy"] == pytest.approx(r["epochs"][-1]["figures"]["accuracy"])
        assert [e["targets"] for e in r["epochs"]] == [70, 70]
    for ours, theirs in zip(record["runs"][::2], record["runs"][1::2], strict=True):
        pair = [losses({"runs": [r]}, r["name"])[0] for r in (ours, theirs)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-3)
    found = summary(record)
    assert len(found.tables[0].rows) == 8
    assert [suffix for suffix, _ in found.plots] == ["", "-accuracy"]
    assert len(found.headline) == 4
    assert all(row[3].endswith("x") for row in found.headline)
    assert found.console().splitlines()[-1] in "\n".join(lines)


def test_of_one_implementation_no_ratio_is_shown(run: Run) -> None:
    found = summary(run("--impl", "torch", "--cell", "rnn", "--epochs", "1"))
    ((system, ours, theirs, faster),) = found.headline
    assert system == "IMDB, 1-layer RNN 48, packed: test accuracy"
    assert (ours, faster) == ("", "")
    assert theirs.endswith(" %")
    assert not any("fast" in remark for remark in found.remarks)


def test_a_training_goes_on_under_the_other_implementation(run: Run, tmp_path: Path) -> None:
    options = ("--cell", "lstm", "--checkpoints", str(tmp_path / "saved"))
    straight = run("--cell", "lstm", "--impl", "torch", "--epochs", "3")
    run(*options, "--impl", "fusedrnn", "--epochs", "1")
    resumed = run(*options, "--impl", "torch", "--epochs", "3", "--resume")
    name = "lstm-packed-seed0"
    assert losses(resumed, name) == pytest.approx(losses(straight, name), rel=1e-3)
    assert len(losses(resumed, name)) == 3
    assert (tmp_path / "saved" / f"imdb-{name}.pt").exists()


@pytest.mark.parametrize(
    ("options", "key"), [(["--steps", "8"], "steps 8, got 9"), (["--limit", "60"], "reviews 60")]
)
def test_a_checkpoint_of_other_sizes_is_refused(
    run: Run, tmp_path: Path, options: list[str], key: str
) -> None:
    saved = ("--cell", "rnn", "--checkpoints", str(tmp_path / "saved"), "--epochs", "1")
    run(*saved)
    with pytest.raises(WorkloadError, match=f"expected {key}"):
        run(*saved, "--resume", *options)


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch was built without gloo",
)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "imdb_without_dropout.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for number, launcher in ((1, []), (2, torchrun)):
        out = tmp_path / str(number)
        options = [*SMALL, "--threads", "1", "--layout", "packed", "padded", "--out", str(out)]
        command = [sys.executable, *launcher, str(script), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written: ") == 1
        found.append(json.loads(next(out.glob("*.json")).read_text()))
    one, two = found
    assert (one["processes"], two["processes"]) == (1, 2)
    for a, b in zip(one["runs"], two["runs"], strict=True):
        assert losses(one, a["name"]) == pytest.approx(losses(two, b["name"]), rel=1e-4)
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.03)
        assert [e["targets"] for e in b["epochs"]] == [70, 70]


def test_without_data_the_run_ends_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"imdb_flat\.npz or imdb/imdb\.npz.*--synthetic"):
        imdb.main(["--out", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def made_up(accuracies: dict[str, float], **options: Any) -> dict[str, Any]:
    """A record whose epochs take 120 s packed and 180 s padded, three times that with torch."""
    runs = []
    for name, accuracy in accuracies.items():
        cell, layout, impl, seed = name.split()
        seconds = (120 if layout == "packed" else 180) * (3 if impl == "torch" else 1)
        epochs = [asdict(Epoch(loss, 25_000, seconds)) for loss in (0.5, 0.25)]
        runs.append(
            {
                "cell": cell,
                "layout": layout,
                "impl": impl,
                "seed": seed,
                "name": name,
                "parameters": 1_000,
                "accuracy": accuracy,
                "epochs": epochs,
            }
        )
    return {
        "workload": "imdb",
        "options": {"quick": False, "limit": None, **options},
        "data": "imdb_flat.npz",
        "reviews": {"train": 25_000, "test": 25_000},
        "configs": {cell: asdict(config) for cell, config in imdb.CONFIGS.items()},
        "runs": runs,
    }


FULL = {
    "rnn packed fusedrnn 0": 0.70,
    "lstm packed fusedrnn 0": 0.87,
    "lstm packed fusedrnn 1": 0.88,
    "lstm packed torch 0": 0.875,
    "lstm packed torch 1": 0.878,
    "lstm padded fusedrnn 0": 0.86,
    "lstm padded torch 0": 0.86,
}


def test_the_summary_is_computed_from_the_record() -> None:
    found = summary(made_up(FULL))
    assert found.tables[0].rows[1] == (
        *("2-layer bidirectional LSTM 256", "packed", "fusedrnn", "1,000"),
        *("0.2500 ± 0.0000", "87.50 ± 0.71 %", "2.00", "3.00x"),
    )
    assert found.headline[1] == (
        "IMDB, 2-layer bidirectional LSTM 256, packed: test accuracy",
        *("87.50 ± 0.71 %", "87.65 ± 0.21 %", "3.00x"),
    )
    remarks = "\n".join(found.remarks)
    for part in (
        "right about 87.5 % of the test reviews; the goal of more than 85 % is reached",
        "right about 70.0 %, where guessing gives 50 %; the LSTM judges 17.5 points more",
        "differ by at most 0.5 points, and fusedrnn is 3.00x as fast",
        "LSTM, torch: an epoch takes 6.00 minutes packed and 9.00 padded",
    ):
        assert part in remarks
    assert "25,000 reviews alone" in found.text


def test_a_missed_goal_and_a_better_rnn_are_said() -> None:
    found = summary(
        made_up(
            {"rnn packed torch 0": 0.83, "lstm packed torch 0": 0.8, "lstm packed torch 1": 0.8}
        )
    )
    remarks = "\n".join(found.remarks)
    assert "80.0 % of the test reviews; the goal of more than 85 % is missed" in remarks
    assert "the LSTM judges 3.0 points fewer of them rightly" in remarks


@pytest.mark.parametrize("options", [{"quick": True}, {"limit": 100}])
def test_a_reduced_run_is_not_held_to_the_goal(options: dict[str, Any]) -> None:
    remarks = "\n".join(summary(made_up({"lstm packed torch 0": 0.6}, **options)).remarks)
    assert "missed" not in remarks
    assert "at full size" in remarks


def test_a_part_of_the_reviews_gives_times_and_no_score_for_the_readme() -> None:
    found = summary(made_up(FULL, limit=25_000))
    assert found.title == "IMDB sentiment, the first 25,000 reviews"
    assert found.headline[1] == (
        "IMDB, 2-layer bidirectional LSTM 256, packed: minutes an epoch of 25,000 reviews",
        *("2.00", "6.00", "3.00x"),
    )


def test_random_reviews_make_no_statement_on_accuracy() -> None:
    record = made_up(FULL) | {"data": "synthetic"}
    remarks = "\n".join(summary(record).remarks)
    assert "the accuracies mean nothing" in remarks
    assert "goal" not in remarks
