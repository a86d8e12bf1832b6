"""hello: that every cell learns the word, what is shown of it, and that training goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.workloads import common, hello, training

CELLS = pytest.mark.parametrize("cell", common.CELLS)
IMPLEMENTATIONS = pytest.mark.parametrize("impl", common.IMPLEMENTATIONS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # torch.nn's many small operators crawl on a busy machine


class Fixed(nn.Module):
    """Says the letters of `text` with probability 0.7, each other letter with 0.1."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.logits = torch.full((len(text), 4), 0.1).log()
        self.logits[torch.arange(len(text)), hello.encode(text)] = torch.tensor(0.7).log()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def epoch(says: str, loss: float = 1.0, seconds: float = 1e-3) -> training.Epoch:
    figures = hello.figures(Fixed(says), hello.encode("hell"), hello.encode("ello"))
    return training.Epoch(loss, 4, seconds, figures)


def record(*runs: tuple[str, str, list[str]], seconds: float = 1e-3) -> dict[str, Any]:
    """A JSON record of runs (cell, implementation, what it says epoch by epoch)."""
    entries = []
    for cell, impl, texts in runs:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters())
        run = training.Run(f"{cell}-seed0", impl, 0, model, optimizer, lambda: iter([]), {})
        time = seconds * (2 if impl == "torch" else 1)
        run.history += [epoch(says, seconds=time) for says in texts]
        entries.append(run.record(cell=cell))
    options = {
        "impl": list(dict.fromkeys(impl for _, impl, _ in runs)),
        "cell": list(dict.fromkeys(cell for cell, _, _ in runs)),
        "seed": [0],
        "synthetic": False,
    }
    config = {"hidden": 8, "learning_rate": 0.05, "epochs": len(runs[0][2])}
    found: dict[str, Any] = json.loads(
        json.dumps({"options": options, "config": config, "runs": entries})
    )
    return found


def tables(found: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    return {table.title: table.rows for table in hello.summary(found).tables}


@IMPLEMENTATIONS
@CELLS
@pytest.mark.parametrize("seed", range(3))
def test_every_cell_learns_to_spell(cell: str, impl: str, seed: int) -> None:
    run = hello.build_run(cell, impl, seed, hello.CONFIG, torch.device("cpu"))
    training.fit([run], 100, lambda *_: None)
    assert run.history[0].loss == pytest.approx(math.log(4), rel=0.1)
    assert hello.said(run.history[-1]) == "ello"
    assert run.history[-1].loss < 0.1
    assert hello.learnt(run.history) is not None


@CELLS
def test_both_implementations_take_the_same_steps(cell: str) -> None:
    runs = [
        hello.build_run(cell, impl, 0, hello.CONFIG, torch.device("cpu"))
        for impl in common.IMPLEMENTATIONS
    ]
    training.fit(runs, 30, lambda *_: None)
    ours, theirs = ([e.loss for e in run.history] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert [hello.said(e) for e in runs[0].history] == [hello.said(e) for e in runs[1].history]


def test_without_its_state_the_network_cannot_tell_the_two_letters_l_apart() -> None:
    run = hello.build_run("rnn", "torch", 0, hello.CONFIG, torch.device("cpu"))
    recurrent = run.model.get_parameter("rnn.weight_hh_l0")
    with torch.no_grad():
        recurrent.zero_()
    recurrent.requires_grad_(False)
    training.fit([run], 100, lambda *_: None)
    after_l = {hello.said(run.history[-1])[t] for t in (2, 3)}
    assert len(after_l) == 1
    assert hello.said(run.history[-1])[:2] == "el"


def test_an_epochs_figures_give_what_is_said_and_how_likely_the_right_letter_was() -> None:
    found = epoch("eloo")
    assert hello.said(found) == "eloo"
    right = [found.figures[f"right_{t}"] for t in range(4)]
    assert right == pytest.approx([0.7, 0.7, 0.1, 0.7])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["llll", "ello", "ello"], 2),
        (["ello", "eloo", "ello"], 3),
        (["ello", "ello", "elll"], None),
        (["ello", "ello", "ello"], 1),
    ],
    ids=["kept", "lost and found", "lost", "at once"],
)
def test_a_word_is_learnt_when_it_is_never_lost_again(
    texts: list[str], expected: int | None
) -> None:
    assert hello.learnt([epoch(text) for text in texts]) == expected


def test_the_summary_shows_every_change_and_the_last_epoch() -> None:
    found = record(("rnn", "torch", ["llll", "llll", "elll", "ello", "ello", "ello"]))
    _, steps, times = hello.summary(found).tables
    assert [row[:4] for row in steps.rows] == [
        ("RNN", "1", "1.0000", "llll"),
        ("RNN", "3", "1.0000", "elll"),
        ("RNN", "4", "1.0000", "ello"),
        ("RNN", "6", "1.0000", "ello"),
    ]
    assert steps.rows[0][4:] == ("0.10", "0.70", "0.70", "0.10")
    assert times.rows == [("RNN", "2000")]
    assert hello.summary(found).headline == [
        ("hello, RNN: epochs until it spells the word", "", "4", "")
    ]


def test_the_summary_says_when_a_cell_did_not_learn() -> None:
    texts = ["llll", "ello", "ello"]
    found = hello.summary(
        record(("gru", "fusedrnn", texts), ("gru", "torch", ["ello", "ello", "elll"]))
    )
    assert [row[2] for row in found.tables[0].rows] == ["2", "never"]
    assert found.remarks == [
        "GRU: 1 of 2 trainings spell the word; after the first l, l has probability 0.699 or more, "
        "after the second, o has 0.099."
    ]
    assert found.headline[0][1:] == ("2", "never", "2.00x")
    assert found.tables[2].rows == [("GRU", "1000", "2000", "2.00x")]


def test_a_run_prints_the_steps_and_writes_what_the_summary_is_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    hello.main(["--impl", "fusedrnn", "torch", "--cell", "lstm", "--epochs", "40", f"--out={out}"])
    printed = capsys.readouterr().out
    for impl in ("fusedrnn", "torch.nn"):
        assert f"{impl}: epoch 1  loss " in printed
        last = next(line for line in printed.splitlines() if f"{impl}: epoch 40 " in line)
        assert last.endswith("h -> e, e -> l, l -> l, l -> o")
    found = json.loads((out / "hello-fusedrnn-torch.json").read_text())
    assert hello.summary(found).console() in printed
    assert (out / "hello-fusedrnn-torch.png").read_bytes().startswith(b"\x89PNG")
    assert found["data"] == "hello"


def test_training_saved_by_one_implementation_goes_on_under_the_other(tmp_path: Path) -> None:
    def losses(impl: str, epochs: int, *options: str) -> list[float]:
        common_options = ["--impl", impl, "--cell", "gru", f"--epochs={epochs}"]
        hello.main([*common_options, f"--out={tmp_path}", *options])
        found = json.loads((tmp_path / f"hello-{impl}.json").read_text())
        return [e["loss"] for e in found["runs"][0]["epochs"]]

    saved = ["--checkpoints", str(tmp_path / "saved")]
    first = losses("fusedrnn", 4, *saved)
    both = losses("torch", 9, *saved, "--resume")
    assert both[:4] == first
    assert both == pytest.approx(losses("torch", 9), rel=1e-4)
