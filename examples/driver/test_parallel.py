"""Several processes train as one: shares and weights, and real commands under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.nn import functional as F

from examples.driver import results
from examples.driver.parallel import Processes

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch without gloo",
)

# A workload on few rows without dropout, whose numbers differ from process to process; 65 rows in
# batches of 64, so that for the second process no row of the last batch is left.
COMMAND = """
import os, sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from examples import data
from examples.driver import command
from examples.driver.errors import WorkloadError
from examples.imdb import model as imdb
from examples.reuters import model as reuters
reuters.CONFIG = replace(reuters.CONFIG, dropout=0.0, hidden=16, embedding=16)
imdb.CONFIGS = {{name: replace(c, dropout=0.0) for name, c in imdb.CONFIGS.items()}}
made = data.synthetic_imdb(200)
data.synthetic_imdb = lambda: made
small = ["--synthetic", "--threads", "1", "--limit", "65", "--steps", "7", "--epochs", "3"]
{more}
command.run([sys.argv[1], *small, *sys.argv[2:]])
"""

# The second process fails in its second update, while the first waits for it.
ONE_FAILS = """
true_step, updates = reuters.train_step, iter(range(9))
def step(*arguments):
    if os.environ["RANK"] == "1" and next(updates) == 1:
        raise WorkloadError("the second process cannot go on")
    return true_step(*arguments)
reuters.train_step = step
"""


def command(
    tmp_path: Path, *options: str, size: int = 1, more: str = "", name: str = "reuters"
) -> subprocess.CompletedProcess[str]:
    """Runs that script to its end, under torchrun for several processes."""
    script = tmp_path / f"script{size}.py"
    script.write_text(COMMAND.format(root=str(ROOT), more=more))
    start = [sys.executable]
    if size > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    return subprocess.run(
        [*start, str(script), name, *options],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def record(directory: Path) -> dict[str, Any]:
    return results.read(next(directory.glob("out/*.jsonl")))


def losses(run: dict[str, Any]) -> list[float]:
    return [epoch.loss for epoch in run["epochs"]]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("total", [1, 2, 5, 64])
def test_shares_make_up_the_batch_and_weights_its_mean_loss(size: int, total: int) -> None:
    logits, y = torch.randn(total, 4, dtype=torch.float64), torch.randint(4, (total,))
    losses, rows = [], []
    for group in (Processes(rank, size) for rank in range(size)):
        weight = group.weight(total)
        losses.append(F.cross_entropy(group.share(logits), group.share(y)) * weight)
        assert len(group.share(y)) > 0
        rows += [group.share(torch.arange(total))] if weight else []
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(total))
    torch.testing.assert_close(torch.stack(losses).mean(), F.cross_entropy(logits, y))


def places(directory: Path) -> tuple[str, ...]:
    return "--out", str(directory / "out"), "--checkpoints", str(directory / "kept")


def weights(directory: Path) -> list[dict[str, torch.Tensor]]:
    files = sorted((directory / "kept").iterdir())
    return [torch.load(file, weights_only=True)["model"] for file in files]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left the results and the checkpoints of three epochs."""
    directory = tmp_path_factory.mktemp("together")
    done = command(directory, *places(directory), size=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RNN, T=7, seed 0: ") == 1
    return directory


def test_two_processes_train_as_one(tmp_path: Path, together: Path) -> None:
    alone = command(tmp_path, *places(tmp_path))
    assert alone.returncode == 0, alone.stderr
    one, two = record(tmp_path), record(together)
    assert (one["processes"], two["processes"]) == (1, 2)
    for ours, theirs in zip(one["runs"], two["runs"], strict=True):
        assert losses(theirs) == pytest.approx(losses(ours), rel=1e-5)
        assert [e.targets for e in theirs["epochs"]] == [65] * 3
    for mine, other in zip(weights(tmp_path), weights(together), strict=True):
        assert list(mine) == list(other)  # names without DistributedDataParallel's "module."
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_two_processes_go_on_from_their_checkpoint_as_if_never_interrupted(
    tmp_path: Path, together: Path
) -> None:
    for options in (("--epochs", "1"), ("--resume",)):
        assert command(tmp_path, *places(tmp_path), *options, size=2).returncode == 0
    resumed, whole = (list(map(losses, record(at)["runs"])) for at in (tmp_path, together))
    assert resumed == whole
    torch.testing.assert_close(weights(tmp_path), weights(together), rtol=0, atol=0)


def test_a_failure_in_one_process_ends_all_with_one_message(tmp_path: Path) -> None:
    done = command(tmp_path, size=2, more=ONE_FAILS)
    assert done.returncode != 0
    assert done.stderr.count("reuters: the second process cannot go on") == 1
    assert done.stderr.count("reuters: ") == 1
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("reuters", "small.append('--resume')", "--resume needs --checkpoints"),
        ("time_machine", "small = small[:3]", "this workload is one process, got several"),
    ],
)
def test_a_failure_in_every_process_is_told_once(
    tmp_path: Path, name: str, more: str, message: str
) -> None:
    done = command(tmp_path, size=2, more=more, name=name)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1


def test_reviews_of_both_layouts_train_as_one_process_does(tmp_path: Path) -> None:
    options = ("--quick", "--layout", "packed", "padded", "--epochs", "2")
    found = []
    for size in (1, 2):
        out = tmp_path / str(size) / "out"
        done = command(tmp_path, *options, "--out", str(out), size=size, name="imdb")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written: ") == 1
        found.append(record(out.parent)["runs"])
    for a, b in zip(*found, strict=True):
        assert losses(a) == pytest.approx(losses(b), rel=1e-4)
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.03)
        assert [e.targets for e in b["epochs"]] == [65, 65]
