"""Every workload as a command: a short run of each, its files, and every way it can end badly."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.driver import page
from examples.driver.command import Console
from examples.driver.errors import WorkloadError
from examples.driver.layers import IMPLEMENTATIONS, count_parameters, layer_class
from examples.driver.options import parser
from examples.driver.workload import WORKLOADS, workload

ROOT = Path(__file__).resolve().parents[2]
Train = Callable[..., int]
Fails = Callable[..., str]
Made = Callable[..., dict[str, Any]]
Capture = pytest.CaptureFixture[str]

EACH = pytest.mark.parametrize("name", WORKLOADS)
ONE_CELL = {name: ["--cell", "rnn"] for name in WORKLOADS} | {
    name: ["--cell", "gru"] for name in ("seq2seq", "streaming")
}
FILES = {  # of the charts, and what else stands in the name
    "hello": ("-epochs3", [""]),
    "from_scratch": ("-epochs3", ["-drift", "-gru", "-lstm", "-rnn"]),
    "time_machine": ("-first-epochs3", ["-first-random", "-first-sequential"]),
    "cost": ("-hidden5+8-epochs3", ["-inference", "-training"]),
    "reuters": (
        "-steps8+12-limit70-epochs3",
        ["-accuracy-lstm", "-accuracy-rnn", "-loss-lstm", "-loss-rnn", "-rmse"],
    ),
    "imdb": ("-padded+packed-steps9-limit70-quick", ["", "-2"]),
    "seq2seq": ("-forcing1.0+scheduled-quick", ["-gru", "-gru-places"]),
    "gradient_flow": (
        "-steps12-epochs3-quick",
        ["", "-large", "-norms", "-path", "-trained"],
    ),
    "memory": ("-steps12-epochs2-quick", ["", "-gates"]),
    "streaming": ("-epochs2-quick", ["", "-heard", "-snr"]),
}


def written(tmp_path: Path) -> list[str]:
    return sorted(f.name for f in (tmp_path / "out").glob("*"))


def losses(record: dict[str, Any]) -> dict[tuple[str, str], list[float]]:
    return {(r["name"], r["impl"]): [e.loss for e in r["epochs"]] for r in record["runs"]}


@EACH
def test_both_implementations_are_trained_in_turn_and_compared(
    name: str, record: Made, tmp_path: Path, capsys: Capture
) -> None:
    found = record(name, "--impl", "fusedrnn", "torch")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    assert all(line.startswith("synthetic |") for line in lines)
    part, suffixes = FILES[name]
    stem = f"{name}-fusedrnn-torch{part}-synthetic"
    assert written(tmp_path) == sorted([f"{stem}.jsonl", *(f"{stem}{s}.png" for s in suffixes)])
    for suffix in suffixes:
        assert (tmp_path / "out" / f"{stem}{suffix}.png").read_bytes().startswith(b"\x89PNG")
    impls = [r["impl"] for r in found["runs"] if r["impl"] != "scratch"]
    assert impls == ["fusedrnn", "torch"] * (len(impls) // 2)
    by_name = losses(found)
    for (run, impl), values in by_name.items():
        if impl == "torch" and "large" not in run:  # an explosion multiplies rounding
            assert by_name[run, "fusedrnn"] == pytest.approx(values, rel=1e-4)
    summary = workload(name).summarise(found)
    console = [line.removeprefix("synthetic | ") for line in lines]
    assert summary.console() in "\n".join(console)
    assert all(ratio.endswith("x") for *_, ratio in summary.headline)
    assert all(text and ours for text, ours in workload(name).claims(found))
    page.write(tmp_path / "out", None, check=False)
    page.write(tmp_path / "out", None, check=True)
    assert f"-m examples {name} --impl" in (tmp_path / "out" / page.PAGE).read_text("utf-8")


@EACH
def test_one_implementation_alone_gets_no_ratio_and_a_deviation_of_its_seeds(
    name: str, record: Made
) -> None:
    found = record(name, "--impl", "torch", *ONE_CELL[name], "--seed", "3", "4")
    assert sorted({r["seed"] for r in found["runs"]}) == [3, 4]
    summary = workload(name).summarise(found)
    assert {(ours, ratio) for _, ours, _, ratio in summary.headline} == {("", "")}
    assert "fusedrnn" not in summary.console()
    if name not in ("hello", "cost", "gradient_flow"):
        assert all("±" in theirs for _, _, theirs, _ in summary.headline)


@EACH
@pytest.mark.parametrize("first", IMPLEMENTATIONS)
def test_a_resumed_run_is_the_uninterrupted_one_and_changes_implementation(
    name: str, first: str, record: Made, tmp_path: Path
) -> None:
    kept = ["--checkpoints", str(tmp_path / "kept")]
    begun = losses(record(name, *ONE_CELL[name], "--impl", first, *kept, "--epochs", "1"))
    going = [*ONE_CELL[name], "--impl", "torch", "--epochs", "3"]
    resumed = losses(record(name, *going, *kept, "--resume"))
    whole = losses(record(name, *going))
    for run in whole:
        before = begun[run[0], "scratch" if run[1] == "scratch" else first]
        assert len(resumed[run]) == 3
        assert resumed[run][:1] == before
        if first == "torch":
            assert resumed[run] == whole[run]
        elif "large" not in run[0]:
            assert resumed[run] == pytest.approx(whole[run], rel=2e-3)


@EACH
def test_the_same_seed_gives_the_same_losses(name: str, record: Made) -> None:
    found = [
        [*losses(record(name, *ONE_CELL[name], "--impl", "torch", "--seed", seed)).values()]
        for seed in ("1", "1", "2")
    ]
    assert found[0] == found[1] != found[2]


@EACH
def test_both_begin_with_the_same_parameters_and_a_checkpoint_knows_all_sizes(name: str) -> None:
    chosen = workload(name)  # at full size; nothing is trained
    job = chosen.configs(parser(chosen).parse_args(["--synthetic", "--impl", *IMPLEMENTATIONS]))
    config = next(iter(job.config.values())) if isinstance(job.config, dict) else job.config
    sizes = set(asdict(config)) - {"epochs", "steps"}
    for group in chosen.build(job):
        for run in group.runs:
            twins = [r.model.state_dict() for r in group.runs if r.name == run.name]
            torch.testing.assert_close(twins[0], twins[-1], rtol=0, atol=0)
            assert sizes <= set(run.task)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if workload(name).more_cells])
def test_a_cell_beside_the_usual_ones_is_trained_and_summarised(name: str, record: Made) -> None:
    chosen = workload(name)
    found = record(name, "--impl", "torch", "--cell", *chosen.more_cells)
    assert {run["cell"] for run in found["runs"]} == {*chosen.more_cells}
    assert chosen.more_cells[0].upper() in chosen.summarise(found).console()


def test_a_quick_run_says_that_it_teaches_nothing(record: Made, capsys: Capture) -> None:
    for quick in ([], ["--quick"]):
        record("hello", "--impl", "torch", "--cell", "rnn", *quick)
        assert ("its accuracies teach nothing" in capsys.readouterr().out) == bool(quick)


@EACH
def test_the_progress_bar_knows_the_updates_of_an_epoch(name: str, small: dict[str, str]) -> None:
    chosen = workload(name)
    words = [*small[name].split(), "--synthetic", "--impl", "torch"]
    groups = chosen.build(chosen.configs(parser(chosen).parse_args(words)))
    run = next(groups).runs[-1]
    assert abs(sum(1 for _ in run.updates()) - run.length) <= 1


H, V, GATES = 256, 28, {"rnn": 1, "gru": 3, "lstm": 4}


@pytest.mark.parametrize(
    ("name", "cell", "count"),
    [
        ("reuters", "rnn", 1_351_982),
        ("reuters", "lstm", 1_550_126),
        *(("time_machine", cell, n * H * (V + H + 2) + V * (H + 1)) for cell, n in GATES.items()),
        ("seq2seq", "gru", 2 * (44 * 32 + 3 * 128 * (32 + 128 + 2)) + 44 * 129),
        ("seq2seq", "lstm", 2 * (44 * 32 + 4 * 128 * (32 + 128 + 2)) + 44 * 129),
        ("imdb", "rnn", 25_000 * 100 + 128 * (100 + 128 + 2) + 128 + 1),
        ("imdb", "lstm", 25_000 * 100 + 8 * 128 * (100 + 130 + 256 + 130) + 256 + 1),
    ],
)
def test_models_have_the_expected_number_of_parameters(
    impl: str, name: str, cell: str, count: int
) -> None:
    model = import_module(f"examples.{name}.model").build_model(cell, impl)
    assert count_parameters(model) == count


@pytest.mark.parametrize(
    "name", ["from_scratch", "gradient_flow", "imdb", "reuters", "time_machine"]
)
def test_without_data_the_run_ends_in_one_line_naming_the_places(
    name: str, fails: Fails, tmp_path: Path
) -> None:
    error = fails(name, "--impl", "torch")
    assert error.startswith(f"{name}: found no ")
    for part in ("--data-dir", "FUSEDRNN_DATA", "../shared/data", "cache", "http", "--synthetic"):
        assert part in error
    assert written(tmp_path) == []


@pytest.mark.parametrize("name", ["reuters", "time_machine"])
@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (math.nan, 1, "loss is nan in update 1 of epoch 1"),
        (math.inf, 1, "loss is inf in update 1 of epoch 1"),
        (KeyboardInterrupt(), 130, "interrupted, nothing was written"),
    ],
)
def test_a_run_that_ends_badly_writes_nothing(
    name: str,
    end: float | KeyboardInterrupt,
    status: int,
    message: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*_: Any) -> Any:
        if isinstance(end, float):
            return torch.tensor(end) if name == "reuters" else (torch.tensor(end), None)
        raise end

    monkeypatch.setattr(f"examples.{name}.model.train_step", step)
    assert message in fails(name, "--synthetic", "--impl", "torch", status=status)
    assert written(tmp_path) == []


@EACH
def test_an_unwritable_out_is_found_before_training(
    name: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "__call__", lambda *_: pytest.fail("something was said"))
    (tmp_path / "file").touch()
    error = fails(name, "--synthetic", "--impl", "torch", "--out", str(tmp_path / "file"))
    assert "cannot write to --out" in error


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
WRONG = ("--device nonsense", "--epochs 0", "--threads -1", "--impl other", "--cell other")


@EACH
@pytest.mark.parametrize("option", [*WRONG, pytest.param("--device cuda", marks=NO_CUDA)])
def test_an_option_that_cannot_be_is_refused(name: str, option: str, fails: Fails) -> None:
    words = option.split()
    assert f"argument {words[0]}" in fails(name, *words, status=2)


@pytest.mark.parametrize("forcing", ["-0.1", "1.5", "nan", "often"])
def test_a_forcing_that_is_no_ratio_is_refused(forcing: str, fails: Fails) -> None:
    assert "argument --forcing" in fails("seq2seq", f"--forcing={forcing}", status=2)


def test_resume_needs_a_directory(fails: Fails) -> None:
    assert "--resume needs --checkpoints" in fails("reuters", "--resume", "--synthetic")


def test_reuters_shows_the_newswire_the_counts_and_the_table(
    train: Train, newswires: Any, tmp_path: Path, put: Any, capsys: Capture
) -> None:
    put("REUTERS", newswires.keras())
    put("REUTERS_WORDS", json.dumps({f"w{rank}": rank for rank in range(1, 12_000)}).encode())
    assert train("reuters", "--impl", "torch", "--data-dir", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "synthetic" not in out
    for part in (
        *("8 newswires to train, 3 to test", "first newswire (", "1,351,982", "1,550,126"),
        *("After 3 epochs (one seed)", "Always answering the most frequent topic scores"),
    ):
        assert part in out
    rows = [" ".join(line.split()[:3]) for line in out.splitlines()]
    models = {f"{cell} {T} torch.nn" for cell in ("RNN", "LSTM") for T in (8, 12)}
    assert models <= set(rows)


def test_the_whole_text_is_scored_on_its_held_out_tail(record: Made, capsys: Capture) -> None:
    options = ("--impl", "torch", "--cell", "rnn", "--quick", "--corpus", "whole")
    found = record("time_machine", *options)
    assert found["config"]["whole"]["held_out"] == 0.1
    assert all(1 < r["epochs"][0]["held_out"] < 29 for r in found["runs"])
    assert "on what it never saw" in capsys.readouterr().out


def test_time_machine_prints_perplexity_speed_and_text(train: Train, capsys: Capture) -> None:
    options = ("--synthetic", "--impl", "torch", "--cell", "gru", "--sampling", "random")
    assert train("time_machine", *options) == 0
    lines = [line.removeprefix("synthetic | ") for line in capsys.readouterr().out.splitlines()]
    assert any("epoch 1  perplexity " in line and "tokens/s" in line for line in lines)
    for prefix in ("time traveller", "traveller"):
        assert any(line.startswith(prefix) and len(line) > len(prefix) for line in lines)


def test_a_missing_fusedrnn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fusedrnn", None)
    with pytest.raises(WorkloadError, match=r"pip install \. or use --impl torch"):
        layer_class("lstm", "fusedrnn")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["reuters", "--help"], 0, ("--impl", "--seed", "--epochs", "--data-dir", "--steps")),
        (["all", "--help"], 0, ("--full", "--only", "--synthetic", "--resume")),
        (["--help"], 0, ("usage: python -m examples {hello,", "all,page}")),
        (["nonsense"], 2, ("usage: python -m examples {hello,",)),
        ([], 2, ("usage: ",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_runs_as_a_module_from_a_checkout(
    words: list[str], status: int, says: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "examples", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    for part in says:
        assert part in done.stdout + done.stderr
