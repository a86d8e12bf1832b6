"""`fusedrnn tune` with real child processes and the CUDA half's own source, where kernels fail on
purpose. Run by tests/cuda/test_cuda_glue.py; not collected otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import _C, experience, tuning
from fusedrnn.plan import GPUS

# The worker as it is, but on the CPU, by the CPU's clock, and with few steps: fibers are slow.
WORKER = """
import sys, time
import torch_glue_plugin
from fusedrnn import tune_worker

def clock(call, calls):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin

tune_worker.ROUNDS, tune_worker.CALLS, tune_worker.steps = 1, 1, lambda B: 2
tune_worker.main(sys.argv[1], clock)
"""
GPU = tuning.Gpu(0, "cpu", {"gpu": "fibers"}, GPUS["sm_90"])


@pytest.fixture(autouse=True)
def _fibers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "COMMAND", [sys.executable, "-c", WORKER])
    monkeypatch.setattr(tuning, "_gpu", lambda device: GPU)
    monkeypatch.setattr(experience, "key_of", lambda index: GPU.key)
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path))


def tiles(mode: str, H: int, backward: bool) -> list[int]:
    with tuning.Worker("cpu") as worker:  # never started
        session = tuning.Session(GPU, worker)
        sizes = tuning.Sizes(mode, *_C.cuda_class(H, 2), 1, True)
        return [tile for _, tile, _ in session.candidates(sizes, backward, True) if tile >= 0]


def test_every_candidate_is_measured_or_taken_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong, hangs, *_ = tiles("RNN_TANH", 384, False)
    refused, crashes, *_ = tiles("RNN_TANH", 384, True)
    monkeypatch.setattr(tuning, "JOB_LIMIT", 10.0)
    monkeypatch.setenv(
        "FUSEDRNN_HOST_FAULT",
        f"wrong:{wrong}:forward hang:{hangs}:forward "
        f"refuse:{refused}:backward crash:{crashes}:backward",
    )
    found = fusedrnn.tune(fusedrnn.RNN(7, 380), torch.zeros(5, 2, 7))
    failed = {(r.backward, r.tile): r.reason for r in found.results if r.reason}
    assert set(failed) == {(False, wrong), (False, hangs), (True, refused), (True, crashes)}
    assert failed[False, wrong].startswith("computes wrongly: ")
    assert failed[False, hangs] == "hung: no answer within 10 s"
    assert "did not start, invalid configuration argument" in failed[True, refused]
    assert failed[True, crashes].startswith("crashed: SIGABRT")
    timed = [r for r in found.results if not r.reason]
    assert {r.kernel for r in timed} == {"cluster", "stepwise", "torch"}
    assert all(r.training_us and (r.backward or r.inference_us) for r in timed)
    assert "computes wrongly" in str(found)
    assert not found.left_out

    # What was found is kept, and this process goes by it.
    known = experience.read(GPU.key)
    assert known
    assert known.excluded == failed
    now = _C.experience(0)
    assert now["excluded"] == ([*sorted([wrong, hangs])], [*sorted([refused, crashes])])
    assert now["measured"] == known.measured


def test_a_kernel_that_was_taken_out_comes_back_when_it_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tile = tiles("GRU", 512, False)[0]
    before = experience.Experience([], {(False, tile): "hung", (True, 0): "hung"})
    experience.add(GPU.key, before, ())
    fusedrnn.tune(fusedrnn.GRU(3, 512), torch.zeros(5, 2, 3))
    known = experience.read(GPU.key)
    assert known
    assert set(known.excluded) == {(True, 0)}
    assert tile in {entry["tile"] for entry in known.measured}
