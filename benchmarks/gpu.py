"""Times fusedrnn beside torch.nn (cuDNN) on a GPU, and holds both to float64.

    python benchmarks/gpu.py --out DIR [--precision ieee,tf32,bf16,fp16] [--seconds 130] [--quick]

writes DIR/gpu.json, anew after each case, which report.py renders, and prints its summary. A case
is named before it runs; what time leaves out is listed. The cases are those of the bench_*.py files
and a grid of shapes. A script of its own because CUDA events, not the wall clock,
time a GPU, because a case is also timed as a captured graph, and because pytest-benchmark need not
be there. `--device cpu` goes through the same code on a machine without a GPU: a rehearsal, whose
figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bench_layers, bench_reuters, bench_time_machine, harness, machine, report
from benchmarks.bench_layers import Layer
from benchmarks.harness import GRADIENTS, INFERENCE, TRAINING, Call, Effort, Setting, Subject, Tier
from benchmarks.report import GRID, Record, Recurrence, Run

# ieee and tf32 are what torch.backends.cudnn.allow_tf32 chooses between: torch's default is tf32.
DTYPES = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Both sides must agree to this part of the largest value before anything is timed.
AGREE = {"ieee": 1e-3, "tf32": 3e-2, "bf16": 2e-1, "fp16": 3e-2}
FLOOR = 8  # roundings of the largest value, as in the tests
EFFORT, BRIEF = Effort(0.1, 5, 51), Effort(0.03, 3, 15)
USED_UP = "were used up"
STEP_US = 0.7  # aimed at for the recurrence of the Reuters layer, forward and backward each


@dataclass(frozen=True)
class Entry:
    """A case, how it is driven, in which precisions, and the least ratio aimed at (0: none)."""

    case: harness.Case
    modes: tuple[str, ...] = ("eager", "graph")
    precisions: tuple[str, ...] = tuple(DTYPES)
    target: float = 0.0
    effort: Effort = EFFORT


def layers() -> list[Entry]:
    """The layers that bench_layers.py names, and H between the powers of two."""
    entries = []
    for case in bench_layers.named():
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


def workloads() -> list[Entry]:
    """Whole training steps, and inference, of both models."""
    cases: list[harness.Case] = [*bench_time_machine.CASES, *bench_reuters.CASES]
    return [
        Entry(case, ("eager",), ("ieee", "tf32"), 2.0 if case.step == TRAINING else 1.0)
        for case in cases
    ]


def grid() -> list[Entry]:
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
        for cell in bench_layers.CELLS
        for step in bench_layers.STEPS
    ]


class Clock:
    """Seconds of a call on a device, from the device's own events where it has some."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"

    def __call__(self, call: Call, iterations: int) -> float:
        if not self.gpu:
            return harness.seconds_of(call, iterations)
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
    each = harness.seconds_of(call, calls) * 1e6
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


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """torch's switch for cuDNN, which both sides follow. Matrix products stay at torch's default,
    ieee; for bf16 and fp16 the switch stays at its default, or cuDNN would be slower."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name != "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


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
    seconds = min(harness.WARM_SECONDS, effort.seconds / 2)
    a, b = (harness.warm(call, clock, seconds) for call in (subject.ours, subject.theirs))
    steps = harness.pace(a, b, effort)
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
        error = harness.agree(subject, AGREE[precision])
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
                harness.record(
                    entry.case,
                    subject,
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


def kernel_times(call: Call, device: torch.device, calls: int = 5) -> dict[str, float]:
    """Microseconds a call of each kernel (on the CPU: of each operator), by the profiler."""
    gpu = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
        if gpu:
            torch.cuda.synchronize()
    found = {}
    for event in profiler.key_averages():
        total = event.self_device_time_total if gpu else event.self_cpu_time_total
        if event.device_type.name == ("CUDA" if gpu else "CPU") and total > 0:
            found[event.key] = total / calls
    return found


def passes(layer: Layer, setting: Setting) -> dict[str, tuple[Call, Call]]:
    """Ours and torch.nn's call of the forward pass alone, as in training, and the backward pass."""
    x, slope = layer.inputs(setting)
    x.requires_grad_(layer.input_grad)

    def both(module: nn.Module) -> tuple[Call, Call]:
        y = module(x)[0]
        wanted = [*module.parameters(), *([x] if layer.input_grad else [])]
        return (
            lambda: (module(x)[0],),
            lambda: torch.autograd.grad(y, wanted, slope, retain_graph=True),
        )

    ours, theirs = (both(module) for module in layer.modules(setting))
    return {"forward": (ours[0], theirs[0]), "backward": (ours[1], theirs[1])}


def recurrences(layer: Layer, device: torch.device) -> list[Recurrence]:
    """What a time step costs in the kernels themselves, by pass."""
    found = []
    with precision_of("ieee"):
        for name, (ours, theirs) in passes(layer, Setting(device)).items():
            kernels = kernel_times(ours, device)
            own = sum(us for kernel, us in kernels.items() if "fusedrnn" in kernel)
            found.append(
                Recurrence(
                    cell=layer.cell,
                    shape=layer.shape,
                    step=name,
                    precision="ieee",
                    ours_us=own / layer.T,
                    torch_us=sum(kernel_times(theirs, device).values()) / layer.T,
                    target=STEP_US,
                    kernels=dict(sorted(kernels.items(), key=lambda item: -item[1])),
                )
            )
    return found


def reuters_layers() -> list[Layer]:
    return [
        Layer(group="Reuters layer", cell=cell, step=GRADIENTS, T=200, B=64, I=128, H=128)
        for cell in bench_layers.CELLS
    ]


def driver() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty without it."""
    fields = {
        "driver": "driver_version",
        "SM clock": "clocks.sm",
        "highest": "clocks.max.sm",
        "temperature": "temperature.gpu",
        "power": "power.draw",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = told.stdout.splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=True))


def described(device: torch.device) -> dict[str, str]:
    """The GPU and what drives it. Clocks are read at the call: right after work they are those of
    the work."""
    if device.type != "cuda":
        return {"name": f"rehearsal on {machine.cpu_name()}"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        **driver(),
    }


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
    return status, f"gpu.py: {told}, {of_grid} of them of the grid"


def options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Times fusedrnn beside torch.nn on a GPU.")
    top.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
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


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: that of last_line(), or 2 where there is nothing to run."""
    arguments = options().parse_args(argv)
    device: torch.device = arguments.device
    unknown = set(arguments.precision) - set(DTYPES)
    if unknown:
        print(f"gpu.py: no precision {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no GPU; --device cpu rehearses", file=sys.stderr)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)
    entries = [*layers(), *workloads(), *grid()]
    profiled = reuters_layers()
    if arguments.quick:
        entries = [
            replace(entry, effort=BRIEF) for entry in entries if entry.case.tier == Tier.QUICK
        ]
        profiled = [replace(layer, T=20) for layer in profiled]
    run = harness.new_run(Tier.QUICK if arguments.quick else Tier.DEFAULT)
    run.precision = ",".join(arguments.precision)
    path = arguments.out / "gpu.json"
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
        print("\n".join(report.summary(run)))
    print(f"written: {path}")
    status, line = last_line(run)
    print(line)
    return status


if __name__ == "__main__":
    sys.exit(main())
