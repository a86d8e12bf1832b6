"""The GPU benchmarks' code, run on the CPU: what they do with a case, not what a GPU does."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_reuters, gpu, gpu_kernels, gpu_tiles, results, timing
from benchmarks.cases import GRADIENTS, INFERENCE, ON_CPU, TRAINING, Setting, Subject, Tier
from benchmarks.gpu_device import DTYPES, precision_of
from benchmarks.layers import Layer
from benchmarks.report.summary import summary
from benchmarks.report.table import full_table, readme_table
from benchmarks.results import GRID, Recurrence, Run
from examples.reuters import model as reuters
from fusedrnn import ops
from fusedrnn.plan import GPUS

CPU = torch.device("cpu")
SMALL = Layer(group="small", cell="LSTM", step=GRADIENTS, T=5, B=2, I=3, H=4)
QUICK = timing.Effort(0.001, 3, 5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # torch.nn's many small operators crawl on a busy machine


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("step", [GRADIENTS, INFERENCE])
def test_a_case_is_timed_in_its_precision_and_held_to_float64(precision: str, step: str) -> None:
    entry = gpu.Entry(replace(SMALL, step=step), target=2.0, effort=QUICK)
    (record,) = gpu.measure(entry, precision, CPU)  # no graph on a CPU
    assert (record.mode, record.precision, record.threads) == ("eager", precision, 0)
    assert record.target == (2.0 if precision == "ieee" else 0.0)
    assert 0 < record.ours_error < 0.1
    assert 0 < record.allowed_error <= 1


def test_errors_beyond_twice_torchs_are_seen() -> None:
    exact = torch.linspace(0, 1, 9, dtype=torch.float64)
    theirs = exact.float() + 1e-4
    for off, beyond in ((1.9e-4, False), (2.2e-4, True), (float("nan"), True)):
        ours = exact.float() + off
        subject = Subject(
            lambda ours=ours: (ours,),  # type: ignore[misc]
            lambda: (theirs,),
            "random",
            exact=lambda: (exact,),
        )
        assert (gpu.errors(subject, torch.float32)["allowed_error"] > 1) is beyond


def test_precision_sets_cudnns_switch_for_the_time_being() -> None:
    before = torch.backends.cudnn.allow_tf32
    for precision in DTYPES:
        with precision_of(precision):
            assert torch.backends.cudnn.allow_tf32 is (precision != "ieee")
    assert torch.backends.cudnn.allow_tf32 is before


def test_the_targets_are_those_of_the_workloads_and_of_h_between() -> None:
    aims = {(e.case.group, e.case.cell, e.case.step): e.target for e in gpu.layer_entries()}
    assert aims["Reuters stack", "LSTM", GRADIENTS] == 3
    assert aims["Time Machine layer", "LSTM", GRADIENTS] == 4
    assert aims["Time Machine layer", "LSTM", INFERENCE] == 3
    assert aims["Reuters stack", "RNN", INFERENCE] == aims["Time Machine layer", "GRU", GRADIENTS]
    assert aims["H between", "LSTM", INFERENCE] == 5
    assert {e.target for e in gpu.model_entries() if e.case.step == TRAINING} == {2}
    assert {e.target for e in gpu.grid_entries()} == {1}


def test_time_used_up_and_failures_are_told_apart() -> None:
    class Broken(Layer):
        def build(self, setting: Setting = ON_CPU) -> Subject:
            raise RuntimeError("no such kernel\nand more")

    run = timing.new_run(Tier.QUICK)
    entries = [gpu.Entry(Broken(**vars(SMALL))), gpu.Entry(SMALL, effort=QUICK)]
    gpu.run_all(entries, ["ieee"], CPU, 100, run)
    assert run.left_out == [f"small: LSTM fwd+bwd ieee {SMALL.shape}: no such kernel"]
    assert len(run.records) == 1
    gpu.run_all(entries, ["ieee"], CPU, 0, run)
    assert run.left_out[-1].endswith(gpu.USED_UP)


def test_the_last_line_and_the_status_tell_a_part_from_the_whole() -> None:
    run = timing.new_run(Tier.QUICK)
    assert gpu.last_line(run)[0] == 1  # nothing was timed
    run.records = gpu.measure(gpu.Entry(SMALL, effort=QUICK), "ieee", CPU)
    assert gpu.last_line(run)[0] == 0
    run.left_out = [f"{GRID}: a: 9 s {gpu.USED_UP}", f"a layer: 9 s {gpu.USED_UP}"]
    told = "1 timings, 0 cases failed, 2 left out for time, 1 of them of the grid"
    assert gpu.last_line(run) == (3, f"gpu: {told}")
    run.left_out.append("another: no such kernel")
    assert gpu.last_line(run)[0] == 1


def test_a_run_keeps_what_it_had_when_it_is_cut_off(tmp_path: Path) -> None:
    class CutOff(Layer):
        def build(self, setting: Setting = ON_CPU) -> Subject:
            raise KeyboardInterrupt

    run, path = timing.new_run(Tier.QUICK), tmp_path / "gpu.jsonl"
    entries = [gpu.Entry(SMALL, effort=QUICK), gpu.Entry(CutOff(**vars(SMALL)))]
    with pytest.raises(KeyboardInterrupt):
        gpu.run_all(entries, ["ieee"], CPU, 100, run, path)
    assert len(Run.load(path).records) == 1


def test_kernel_times_of_both_passes_are_ours_alone() -> None:
    found = gpu_kernels.recurrences(SMALL, CPU)  # on a CPU, operators stand for kernels
    assert [r.step for r in found] == ["forward", "backward"]
    for recurrence in found:
        assert 0 < recurrence.ours_us < sum(recurrence.kernels.values())
        assert any("fusedrnn" in name for name in recurrence.kernels)


def test_dropout_is_left_out_of_the_comparison_where_it_is_cudnns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[float] = []
    build = reuters.build_model

    def noted(cell: str, impl: str, config: reuters.Config) -> torch.nn.Module:
        seen.append(config.dropout)
        return build(cell, impl, replace(config, hidden=4, embedding=4, vocabulary=10_000))

    monkeypatch.setattr(reuters, "build_model", noted)
    case = bench_reuters.Step(cell="RNN", step=TRAINING, T=50)
    assert case.build(Setting(CPU)).alike is None
    assert set(seen) == {0.5}
    seen.clear()
    assert case.build(Setting(torch.device("meta"))).alike is not None
    assert sorted(seen) == [0.0, 0.0, 0.5, 0.5]


def test_a_gpu_run_reports_targets_errors_and_steps(tmp_path: Path) -> None:
    (record,) = gpu.measure(gpu.Entry(SMALL, effort=QUICK), "ieee", CPU)
    met, missed = (
        replace(record, ratio=ratio, target=3.0, mode="graph", group=group, headline=True)
        for ratio, group in ((4.0, "met one"), (2.0, "missed one"))
    )
    wrong = replace(record, allowed_error=1.5, ours_error=3e-6, torch_error=1e-6)
    run = replace(
        timing.new_run(Tier.QUICK),
        gpu={"name": "a GPU", "cuDNN": "91000"},
        records=[met, missed, wrong],
        recurrences=[Recurrence("LSTM", "T5", "forward", "ieee", 0.5, 3.0, 0.7, {"k": 2.5})],
        left_out=["a case: too large"],
    )
    run.save(tmp_path / "gpu.jsonl")
    loaded = Run.load(tmp_path / "gpu.jsonl")
    assert asdict(loaded) == results.rounded(asdict(run))
    assert [r.mode for r in loaded.records] == ["graph", "graph", "eager"]
    text = "\n".join(summary(run))
    for line in (
        "a GPU, cuDNN 91000, torch",
        "met: 4.00x of 3x, met one",
        "MISSED: 2.00x of 3x, missed one",
        "errors against float64: 1 of 3 cases beyond twice torch.nn's",
        "3.00e-06, torch.nn 1.00e-06: small",
        "LSTM forward ieee T5: 0.500 us a step (target 0.7, met)",
        "left out: a case: too large",
    ):
        assert line in text
    assert "- met: 4.00x of 3x" in full_table(run)
    assert "| graph |" in full_table(run)
    assert ", ieee, graph |" in readme_table(run)


def test_each_tile_is_the_one_the_plan_takes_when_it_alone_is_allowed() -> None:
    limits = GPUS["sm_90"]
    for tile in gpu_tiles.tiles():
        with gpu_tiles.only(tile) as allowed:
            for backward in (False, True):
                plan = gpu_tiles.planned(tile, backward, 3, limits, allowed)
                found = (plan["tile"], plan["hidden"], plan["cluster"], plan["rows"])
                assert found == (tile.index, tile.hidden, tile.cluster, tile.rows)
    with pytest.raises(ValueError, match="none can run"), gpu_tiles.only(tile) as allowed:
        gpu_tiles.planned(tile, False, 3, GPUS["sm_75"], allowed)


@pytest.mark.parametrize("value", ["x", "-1", "7 8", "1000"])
def test_a_tile_that_is_no_row_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", value)
    with pytest.raises(ValueError, match=f"must be a row of csrc/cuda/tiles.h, got {value}"):
        ops.cuda_restriction()


def test_estimates_need_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--estimates", "sm_90", "--tiles", "0,5"]
    assert gpu_tiles.main(arguments) == 0
    header, costs = results.read(tmp_path / "gpu_tiles.jsonl", "gpu_tiles")
    assert len(costs) == 2 * 2 * 2
    assert not any("us" in cost for cost in costs)
    assert all(cost["estimate_us"] > 0 for cost in costs)
    assert "estimates, sm_90" in header["gpu"]["name"]
    assert "LSTM H128" in capsys.readouterr().out


def test_tiles_that_are_not_to_run_are_listed_and_make_the_status_partial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--estimates", "sm_90", "--tiles", "0,5"]
    assert gpu_tiles.main([*arguments, "--without", "5"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "begin 0: LSTM H32 blocks 1 rows 1" in lines
    assert lines[-1] == "gpu_tiles: 1 of 2 tiles timed, 0 failed, 1 left out"
    assert gpu_tiles.main([*arguments, "--without", ""]) == 0
    assert gpu_tiles.main([*arguments, "--seconds", "0"]) == 3
