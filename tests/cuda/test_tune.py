"""`fusedrnn tune` where there is no GPU: what is kept and read again, a worker that fails in every
way, and what is refused. With the kernels' own source: tests/cuda/glue/tune_checks.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import _C, __main__, _binary, experience, tuning
from fusedrnn.experience import Experience
from fusedrnn.plan import GPUS

KEY = {"gpu": "none", "driver": "1.2", "torch": "2"}
INDEX = 7  # of a device that no other test asks about


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "LSTM", "H": 128, "B": 32, "D": 1, "L": 1, "tf32": True, "backward": False,
        "training": True, "kernel": "block", "tile": 5, "step_us": 0.5,
    } | changes  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(experience, "key_of", lambda index: KEY)
    _C.experience(INDEX)  # which reads once, before there is anything
    yield tmp_path / "cache"
    _C.set_measured(INDEX, [])


# The file.


def test_what_is_kept_is_read_again() -> None:
    known = Experience([entry()], {(True, 6): "hung"})
    assert experience.add(KEY, known, ()) == known
    assert experience.read(KEY) == known
    experience.load(INDEX)
    now = _C.experience(INDEX)
    assert now["measured"] == known.measured
    assert now["excluded"] == ([], [6])


def test_nothing_is_read_where_nothing_was_kept(cache: Path) -> None:
    assert experience.read(KEY) is None
    experience.load(INDEX)
    assert _C.experience(INDEX)["measured"] == []
    assert not cache.exists()


def test_new_figures_replace_old_ones_and_leave_the_others() -> None:
    experience.add(KEY, Experience([entry(), entry(B=64)], {(False, 8): "hung"}), ())
    experience.add(KEY, Experience([entry(step_us=0.4)], {(False, 9): "wrong"}), [(False, 8)])
    known = experience.read(KEY)
    assert known
    assert [m["step_us"] for m in known.measured] == [0.4, 0.5]
    assert known.excluded == {(False, 9): "wrong"}


def test_figures_of_a_kernel_that_was_taken_out_are_dropped() -> None:
    experience.add(KEY, Experience([entry(), entry(tile=6)], {}), ())
    both = experience.add(KEY, Experience([], {(False, 5): "wrong"}), ())
    assert [m["tile"] for m in both.measured] == [6]


def test_figures_for_another_key_are_not_read() -> None:
    experience.add(KEY, Experience([entry()], {}), ())
    assert experience.read(KEY | {"driver": "1.3"}) is None
    path = experience.path_of(KEY)
    path.rename(experience.path_of(KEY | {"driver": "1.3"}))
    with pytest.warns(UserWarning, match="is ignored .*another GPU"):
        assert experience.read(KEY | {"driver": "1.3"}) is None


DAMAGED = {
    "empty": "",
    "cut off": '{"form": 1, "key": {',
    "a list": "[]",
    "another form": json.dumps({"form": 0, "key": KEY, "measured": [], "excluded": []}),
    "a figure without a tile": json.dumps(
        {"form": 1, "key": KEY, "measured": [{"H": 3}], "excluded": []}
    ),
    "a tile that is none": json.dumps(
        {"form": 1, "key": KEY, "measured": [],
         "excluded": [{"backward": False, "tile": 64, "reason": ""}]}
    ),
    "a class that is none": json.dumps(
        {"form": 1, "key": KEY, "measured": [entry(H=100)], "excluded": []}
    ),
    "a time that is none": json.dumps(
        {"form": 1, "key": KEY, "measured": [entry(step_us="fast")], "excluded": []}
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_ignored_with_a_warning_and_written_anew(how: str, cache: Path) -> None:
    cache.mkdir()
    experience.path_of(KEY).write_text(DAMAGED[how])
    with pytest.warns(UserWarning, match=r"is ignored .*`python -m fusedrnn tune` writes it anew"):
        experience.load(INDEX)
    assert _C.experience(INDEX)["measured"] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experience.add(KEY, Experience([entry()], {}), ())
        experience.load(INDEX)
    assert _C.experience(INDEX)["measured"] == [entry()]


def test_what_many_write_at_once_is_all_kept() -> None:
    batches = [2**i for i in range(16)]

    def write(B: int) -> None:
        experience.add(KEY, Experience([entry(B=B)], {}), ())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, batches))
    known = experience.read(KEY)
    assert known
    assert sorted(m["B"] for m in known.measured) == batches


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CACHE", "/a")
    assert experience.folder() == Path("/a")
    monkeypatch.setenv("FUSEDRNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert experience.folder() == Path("/b/fusedrnn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert experience.folder() == Path.home() / ".cache" / "fusedrnn"


def test_the_plan_reads_it_at_the_first_use_of_a_device_and_once() -> None:
    program = (
        "from fusedrnn import _C, experience\n"
        "asked = []\n"
        "_C.set_experience_loader(asked.append)\n"
        "_C.experience(3), _C.experience(3), _C.experience(4)\n"
        "print(asked)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[3, 4]\n", done.stderr


# The worker. It says what it is told to for each tile, or does something worse.
WORKER = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["tile"] == FAULTY:
        print("a last word", file=sys.stderr)
        FAULT
    purposes = ["training"] if job["backward"] else ["training", "inference"]
    print(json.dumps({"step_us": {p: 2.0 + job["tile"] for p in purposes}}), flush=True)
"""
GPU = tuning.Gpu(INDEX, "cpu", KEY, GPUS["sm_90"])


def worker(fault: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = WORKER.replace("FAULTY", str(tile)).replace("FAULT", fault)
    monkeypatch.setattr(tuning, "COMMAND", [sys.executable, "-c", program])
    monkeypatch.setattr(tuning, "_gpu", lambda device: GPU)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("time.sleep(60)", "hung: no answer within 2 s"),
        ("os.abort()", "crashed: SIGABRT, a last word"),
        ("sys.exit(3)", "crashed: exit status 3, a last word"),
        ('print(\'{"failed": "lost", "dead": true}\', flush=True); time.sleep(60)', "lost"),
    ],
)
def test_a_worker_that_fails_is_a_result_and_the_rest_goes_on(
    fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "JOB_LIMIT", 2.0)
    session = tuning.Session(GPU, tuning.Worker("cpu"))
    tiles = [t for _, t, _ in session.candidates(tuning.Sizes("GRU", 512, 4, 1, True), False, True)]
    worker(fault, tiles[0], monkeypatch)
    begin = time.monotonic()
    found = fusedrnn.tune(nn.GRU(3, 512), torch.zeros(5, 4, 3))
    assert time.monotonic() - begin < 30
    failed = [r for r in found.results if r.reason]
    assert [(r.tile, r.backward, r.reason) for r in failed] == [
        (tiles[0], False, reason),
        (tiles[0], True, reason),
    ]
    assert len(found.results) > 2 * len(tiles) - 2
    known = experience.read(KEY)
    assert known
    assert known.excluded == {(False, tiles[0]): reason, (True, tiles[0]): reason}


def test_a_worker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "COMMAND", [sys.executable, "-c", "raise ValueError('no')"])
    monkeypatch.setattr(tuning, "_gpu", lambda device: GPU)
    with pytest.raises(RuntimeError, match=r"that tries kernels crashed: exit status 1, .*no$"):
        fusedrnn.tune(nn.LSTM(3, 32), torch.zeros(5, 4, 3))


def test_common_classes_come_first_and_the_rest_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker("pass", -2, monkeypatch)
    said: list[str] = []
    found = tuning.common(GPU, 0.5, said.append)
    assert re.fullmatch(r" +\d+\.\d s  LSTM H<=128 B<=32 TF32: forward .* us, backward .*", said[0])
    assert re.search(r"\d+ classes less common: 0.5 s were over \(--seconds\)", str(found))
    assert "LSTM H<=128 B<=32 TF32" in str(found)
    # A stack of two layers can be compared only if cuDNN's was timed.
    of_torch = {m["L"] for m in _C.experience(INDEX)["measured"] if m["kernel"] == "torch"}
    assert of_torch == {1, 2}


# What is refused.


@pytest.mark.parametrize(
    ("module", "input", "error", "said"),
    [
        (nn.Linear(3, 3), torch.zeros(5, 4, 3), TypeError, "must be an RNN, LSTM or GRU"),
        (nn.LSTMCell(3, 3), torch.zeros(4, 3), TypeError, "must be an RNN, LSTM or GRU"),
        (nn.LSTM(3, 4), [1], TypeError, "input must be a Tensor or a PackedSequence"),
        (nn.LSTM(3, 4), torch.zeros(5), ValueError, "Expected input to be 2D or 3D"),
        (nn.LSTM(3, 4), torch.zeros(5, 4, 2), RuntimeError, "Expected 3, got 2"),
        (nn.LSTM(3, 4, proj_size=2), torch.zeros(5, 4, 3), ValueError, "got proj_size=2"),
        (nn.GRU(3, 4).double(), torch.zeros(5, 4, 3).double(), ValueError, "got float64"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    module: nn.Module, input: Any, error: type[Exception], said: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tuning, "_gpu", lambda device: GPU)
    with pytest.raises(error, match=said):
        fusedrnn.tune(module, input)


def test_without_a_gpu_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees none"):
        fusedrnn.tune(nn.LSTM(3, 4), torch.zeros(5, 4, 3))
    assert __main__.main(["tune"]) == 2
    assert "torch sees none" in capsys.readouterr().err


def test_without_the_cuda_half_the_error_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(_binary._built, "cuda", False)
    monkeypatch.setitem(_binary._built, "cuda_missing", "no nvcc")
    with pytest.raises(RuntimeError, match="FUSEDRNN_CUDA=1"):
        fusedrnn.tune(nn.LSTM(3, 4), torch.zeros(5, 4, 3))


def test_an_input_that_is_not_on_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = tuning.Gpu(0, "cuda:0", KEY, GPUS["sm_90"])
    monkeypatch.setattr(tuning, "_gpu", lambda device: there)
    with pytest.raises(RuntimeError, match="it is on cpu: move module and input to the GPU"):
        fusedrnn.tune(nn.LSTM(3, 4), torch.zeros(5, 4, 3))
