"""Times fusedrnn beside torch.nn (cuDNN) on a GPU, and holds both to float64.

    python -m benchmarks gpu --out DIR [--precision ieee,tf32,bf16,fp16] [--seconds 130] [--quick]

writes DIR/gpu.jsonl, anew after each case, which `python -m benchmarks table` renders, and prints
its summary. A case is named before it runs; what time leaves out is listed. The cases are those of
the bench_*.py files and a grid of shapes. Not under pytest because CUDA events, not the wall clock,
time a GPU, because a case is also timed as a captured graph, and because pytest-benchmark need not
be there. `--device cpu` goes through the same code on a machine without a GPU: a rehearsal, whose
figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import bench_reuters, bench_time_machine, layers, options, timing
from benchmarks.cases import GRADIENTS, INFERENCE, TRAINING, Call, Case, Setting, Subject, Tier
from benchmarks.gpu_device import DTYPES, described, precision_of
from benchmarks.gpu_kernels import recurrences, reuters_layers
from benchmarks.layers import Layer
from benchmarks.report.summary import summary
from benchmarks.results import GRID, Record, Run
from benchmarks.timing import Effort

# Both sides must agree to this part of the largest value before anything is timed.
AGREE = {"ieee": 1e-3, "tf32": 3e-2, "bf16": 2e-1, "fp16": 3e-2}
FLOOR = 8  # roundings of the largest value, as in the tests
EFFORT, BRIEF = Effort(0.1, 5, 51), Effort(0.03, 3, 15)
USED_UP = "were used up"


@dataclass(frozen=True)
class Entry:
    """A case, how it is driven, in which precisions, and the least ratio aimed at (0: none)."""

    case: Case
    modes: tuple[str, ...] = ("eager", "graph")
    precisions: tuple[str, ...] = tuple(DTYPES)
    target: float = 0.0
    effort: Effort = EFFORT


def layer_entries() -> list[Entry]:
    """The named layers, and H between the powers of two."""
    entries = []
    for case in layers.named():
        workload = case.group in ("Reuters stack", "Time Machine layer")
        backward = case.step == GRADIENTS
        target = 4.0 if case.group == "Time Machine layer" and backward else 3.0
        target = 3.0 if case.cell != "LSTM" else target
        precisions = tuple(DTYPES) if workload or case.group == "large" else ("ieee",)
        packed = bool(case.shortest)  # cuDNN's path for packed rows waits for the device
        entries.append(
            Entry(
                case,
                modes=("eager",) if packed else ("eager", "graph"),
                precisions=precisions,
                target=target if workload else 1.0,
            )
        )
    between = Layer(group="H between", cell="LSTM", step=INFERENCE, T=100, B=64, I=160, H=160)
    return entries + [
        Entry(replace(between, I=H, H=H), precisions=("ieee",), target=5.0) for H in (160, 192)
    ]


def model_entries() -> list[Entry]:
    """Whole training steps, and inference, of both models."""
    cases: list[Case] = [*bench_time_machine.CASES, *bench_reuters.CASES]
    return [
        Entry(case, ("eager",), ("ieee", "tf32"), 2.0 if case.step == TRAINING else 1.0)
        for case in cases
    ]


def grid_entries() -> list[Entry]:
    return [
        Entry(
            Layer(group=GRID, cell=cell, step=step, T=T, B=B, I=H, H=H, tier=Tier.FULL),
            ("eager",),
            ("ieee",),
            1.0,
            BRIEF,
        )
        for T in (100, 10)
        for H in (128, 256, 64, 512, 37, 150, 1024)
        for B in (1, 16, 64, 256)
        for cell in layers.CELLS
        for step in layers.STEPS
    ]


class Clock:
    """Seconds of a call on a device, from the device's own events where it has some."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"

    def __call__(self, call: Call, iterations: int) -> float:
        if not self.gpu:
            return timing.seconds_of(call, iterations)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(iterations):
            call()
        end.record()
        end.synchronize()  # so that the next round, too, starts on an idle device
        return float(start.elapsed_time(end)) / 1e3 / iterations


def host_us(call: Call, calls: int = 10) -> float:
    """Microseconds until a call returns: what the host does, as long as the device has room for
    what it is sent."""
    torch.cuda.synchronize()
    each = timing.seconds_of(call, calls) * 1e6
    torch.cuda.synchronize()
    return each


def captured(call: Call) -> Call:
    """The call as a CUDA graph; the tensors it returns are those of the capture."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def errors(subject: Subject, dtype: torch.dtype) -> dict[str, float]:
    """The largest errors of both sides against float64, relative to the largest value, and the
    largest part ours takes of what the tests would allow: twice torch.nn's, plus a floor."""
    if subject.exact is None:
        return {}
    largest, theirs_largest, part = 0.0, 0.0, 0.0
    floor = FLOOR * torch.finfo(dtype).eps
    for a, b, exact in zip(subject.ours(), subject.theirs(), subject.exact(), strict=True):
        scale = exact.abs().max().clamp_min(1e-30)
        ours, theirs = (((t - exact).abs().max() / scale).item() for t in (a, b))
        largest, theirs_largest = max(largest, ours), max(theirs_largest, theirs)
        part = max(part, math.inf if math.isnan(ours) else ours / (2 * theirs + floor))
    return {"ours_error": largest, "torch_error": theirs_largest, "allowed_error": part}


def in_turn(subject: Subject, clock: Clock, effort: Effort) -> tuple[list[float], list[float], int]:
    """Seconds a call of both sides, round by round, and the calls of a round."""
    seconds = min(timing.WARM_SECONDS, effort.seconds / 2)
    a, b = (timing.warm(call, clock, seconds) for call in (subject.ours, subject.theirs))
    steps = timing.pace(a, b, effort)
    ours, theirs = [], []
    gc.collect()
    gc.disable()
    try:
        for _ in range(steps.rounds):
            ours.append(clock(subject.ours, steps.iterations))
            theirs.append(clock(subject.theirs, steps.iterations))
    finally:
        gc.enable()
    return ours, theirs, steps.iterations


def measure(entry: Entry, precision: str, device: torch.device) -> list[Record]:
    """A record for each mode of one case."""
    torch.manual_seed(0)
    setting = Setting(device, DTYPES[precision])
    records = []
    with precision_of(precision), torch.inference_mode(entry.case.step == INFERENCE):
        subject = entry.case.build(setting)
        error = timing.agree(subject, AGREE[precision])
        accuracy = errors(subject, setting.dtype)
        for mode in entry.modes:
            if mode == "graph" and device.type != "cuda":
                continue
            driven = subject
            if mode == "graph":
                driven = Subject(captured(subject.ours), captured(subject.theirs), subject.data)
            ours, theirs, iterations = in_turn(driven, Clock(device), entry.effort)
            host = {}
            if mode == "eager" and device.type == "cuda":
                host = {
                    "ours_host_us": host_us(subject.ours),
                    "torch_host_us": host_us(subject.theirs),
                }
            records.append(
                timing.record(
                    entry.case,
                    subject.data,
                    ours,
                    theirs,
                    iterations,
                    precision=precision,
                    threads=0,
                    error=error,
                    mode=mode,
                    target=entry.target if precision == "ieee" else 0.0,
                    **accuracy,
                    **host,
                )
            )
    return records


def run_all(
    entries: Sequence[Entry],
    precisions: Sequence[str],
    device: torch.device,
    seconds: float,
    run: Run,
    path: Path | None = None,
) -> None:
    """Every entry in each of its precisions, until the time is used up; the grid comes last. Saved
    after each where there is a path."""
    end = time.monotonic() + seconds
    for entry, precision in sorted(
        ((e, p) for p in precisions for e in entries if p in e.precisions),
        key=lambda pair: pair[0].case.group == GRID,
    ):
        case = entry.case
        name = f"{case.group}: {case.cell} {case.step} {precision} {case.shape}"
        if time.monotonic() >= end:
            run.left_out.append(f"{name}: {seconds:g} s {USED_UP}")
            continue
        print(f"begin {name}", flush=True)
        try:
            run.records += measure(entry, precision, device)
        except Exception as error:  # named and counted; the others still run
            run.left_out.append(f"{name}: {reason(error)}")
        if path:
            run.save(path)


def reason(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def last_line(run: Run) -> tuple[int, str]:
    """The exit status and how the run ended: 0; 1 where a case failed or disagreed, or none was
    timed; 3 where the time was used up before all were."""
    late = [case for case in run.left_out if case.endswith(USED_UP)]
    failed = len(run.left_out) - len(late)
    of_grid = sum(case.startswith(f"{GRID}: ") for case in late)
    told = f"{len(run.records)} timings, {failed} cases failed, {len(late)} left out for time"
    status = 1 if failed or not run.records else 3 if late else 0
    return status, f"gpu: {told}, {of_grid} of them of the grid"


def parser() -> argparse.ArgumentParser:
    top = options.parser("gpu", "Times fusedrnn beside torch.nn on a GPU.")
    top.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonll")
    top.add_argument("--device", type=torch.device, default="cuda", help="cuda, cuda:1; cpu")
    top.add_argument(
        "--precision",
        type=lambda text: text.split(","),
        default=list(DTYPES),
        help=f"of {','.join(DTYPES)} (all of them)",
    )
    top.add_argument("--seconds", type=float, default=130, help="then no case is begun (130)")
    top.add_argument(
        "--quick", action="store_true", help="a few cases, a few rounds (a smoke test)"
    )
    return top


def main(argv: Sequence[str]) -> int:
    """The exit status: that of last_line(), or 2 where there is nothing to run."""
    arguments = parser().parse_args(argv)
    device: torch.device = arguments.device
    unknown = set(arguments.precision) - set(DTYPES)
    if unknown:
        print(f"gpu: no precision {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu: torch sees no GPU; --device cpu rehearses", file=sys.stderr)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)
    entries = [*layer_entries(), *model_entries(), *grid_entries()]
    profiled = reuters_layers()
    if arguments.quick:
        entries = [
            replace(entry, effort=BRIEF) for entry in entries if entry.case.tier == Tier.QUICK
        ]
        profiled = [replace(layer, T=20) for layer in profiled]
    run = timing.new_run(Tier.QUICK if arguments.quick else Tier.DEFAULT)
    run.precision = ",".join(arguments.precision)
    path = arguments.out / "gpu.jsonl"
    run.gpu = described(device)
    for layer in profiled:
        name = f"{layer.group}: {layer.cell} kernels"
        print(f"begin {name}", flush=True)
        try:
            run.recurrences += recurrences(layer, device)
        except Exception as error:  # named and counted; the others still run
            run.left_out.append(f"{name}: {reason(error)}")
    run_all(entries, arguments.precision, device, arguments.seconds, run, path)
    run.gpu = described(device)  # once more: the clocks are now those of the work
    run.records.sort(key=lambda record: (record.group == GRID, record.data == "random"))
    run.save(path)
    if run.records:
        print("\n".join(summary(run)))
    print(f"written: {path}")
    status, line = last_line(run)
    print(line)
    return status
