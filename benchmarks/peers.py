"""Inference of a layer beside torch.nn's, ONNX Runtime's and OpenVINO's, all in turn.

    pip install '.[bench-peers]'
    python benchmarks/peers.py --out DIR [--threads 1,2] [--quick]

Writes peers.json and from it peers.md. The two runtimes get the weights of torch.nn's module by way
of torch.onnx. Those that are not installed are left out, and stderr says so.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not __package__:  # a script finds only its siblings
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fusedrnn
from benchmarks import harness
from benchmarks.bench_layers import Layer
from benchmarks.machine import commit, cpu_name
from benchmarks.report import geometric_mean, half_interval, milliseconds, times, write
from fusedrnn import ops

SECONDS, QUICK_SECONDS = 5.0, 0.2  # of all sides' rounds of a case
# Pools spin before they sleep, each for a while of its own: without a pause the next side would
# share its cores with the last one's threads. Threads that have slept may wake on one core and stay
# there until the system spreads them, so the first calls are not timed.
PAUSE_SECONDS, WARM_SECONDS = 0.05, 0.01
TOLERANCE = 1e-4


def reuters(T: int) -> Layer:
    return Layer(
        group="Reuters stack", cell="LSTM", step=harness.INFERENCE, T=T, B=64, I=128, H=128, L=2
    )


def time_machine(cell: str) -> Layer:
    return Layer(group="Time Machine", cell=cell, step=harness.INFERENCE, T=35, B=32, I=28, H=256)


def one_row(T: int) -> Layer:
    return Layer(group="one row", cell="LSTM", step=harness.INFERENCE, T=T, B=1, I=128, H=128)


CASES = [
    *(reuters(T) for T in (50, 100, 200)),
    *(time_machine(cell) for cell in ("LSTM", "GRU", "RNN")),
    *(one_row(T) for T in (1, 100)),
]

Call = Callable[[], Sequence[Any]]  # the output first


def onnx_of(module: nn.Module, x: Tensor) -> bytes:
    file: Any = io.BytesIO()
    with warnings.catch_warnings():  # that this exporter is old, and that the batch is fixed
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, input_names=["x"], dynamo=False)
    return bytes(file.getvalue())


def onnxruntime_call(model: bytes, x: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": x.numpy()}
    return lambda: session.run(None, inputs)


def openvino_call(model: bytes, x: Tensor, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    inputs = {0: x.numpy()}
    return lambda: list(request.infer(inputs, share_inputs=True, share_outputs=True).values())


PEERS = {"ONNX Runtime": ("onnxruntime", onnxruntime_call), "OpenVINO": ("openvino", openvino_call)}


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    installed = [name for name, (package, _) in PEERS.items() if find_spec(package)]
    for name in PEERS.keys() - installed:
        print(f"peers.py: {name} is not installed", file=sys.stderr)
    return {
        "torch.nn": str(torch.__version__),
        **{name: metadata.version(PEERS[name][0]) for name in installed},
    }


@dataclass(frozen=True)
class Measured:
    """One case on so many threads. `ms`: the median of each side; `ratio`: of a peer's time / ours
    in the same round the quartiles."""

    name: str
    threads: int
    rounds: int
    gflop: float
    ms: dict[str, float]
    ratio: dict[str, list[float]]
    error: dict[str, float]  # largest difference from ours, relative to the largest value


def settled(call: harness.Call | Call, iterations: int) -> float:
    time.sleep(PAUSE_SECONDS)
    warm = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < warm:
        call()
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    return (time.perf_counter() - start) / iterations


def measure(layer: Layer, threads: int, installed: Sequence[str], seconds: float) -> Measured:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, theirs = layer.modules()
    x, slope = layer.inputs()
    model = onnx_of(theirs, x)
    sides: dict[str, Any] = {"fusedrnn": layer.call(ours, x, slope)}
    for name in installed:
        if name in PEERS:
            sides[name] = PEERS[name][1](model, x, threads)
        else:
            sides[name] = layer.call(theirs, x, slope)
    expected = sides["fusedrnn"]()[0]
    error = {
        name: harness.disagreement((expected,), (torch.as_tensor(side()[0]),))
        for name, side in sides.items()
    }
    if max(error.values()) > TOLERANCE:
        raise AssertionError(f"{layer.cell} {layer.shape}: results differ: {error}")
    quickest = min(harness.warm(side) for side in sides.values())
    iterations = max(1, math.ceil(harness.ROUND_SECONDS / quickest))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["fusedrnn"]) < 7:
        for name, side in sides.items():
            taken[name].append(settled(side, iterations))
    ratios = {
        name: [b / a for a, b in zip(taken["fusedrnn"], found, strict=True)]
        for name, found in taken.items()
        if name != "fusedrnn"
    }
    return Measured(
        f"{layer.group}: {layer.cell} {layer.shape}",
        threads,
        len(taken["fusedrnn"]),
        layer.gflop,
        {name: statistics.median(found) * 1e3 for name, found in taken.items()},
        {name: statistics.quantiles(r, n=4, method="inclusive") for name, r in ratios.items()},
        error,
    )


def page(results: dict[str, Any]) -> str:
    """Markdown of what peers.json holds."""
    names = [name for name in results["versions"] if name != "fusedrnn"]
    where = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    peaks = ", ".join(f"{peak:.0f} GFLOP/s on {n}" for n, peak in results["peak_gflops"].items())
    lines = [
        "# Inference beside other runtimes",
        "",
        f"{results['cpu']}, {results['isa']}, commit {results['commit']}, {results['date']}; "
        f"{where}. float32; FMA peak {peaks} thread(s). Each peer's milliseconds a call, and how "
        "many times ours that is: the median over the rounds, ± half its ~95 % interval. Made by "
        "`python benchmarks/peers.py`.",
        "",
        f"| case | threads | fusedrnn | of peak | {' | ratio | '.join(names)} | ratio |",
        f"| --- | ---: | ---: | ---: |{' ---: | ---: |' * len(names)}",
    ]
    for m in (Measured(**found) for found in results["measured"]):
        share = m.gflop / m.ms["fusedrnn"] * 1e3 / results["peak_gflops"][str(m.threads)]
        cells = [m.name, str(m.threads), milliseconds(m.ms["fusedrnn"]), f"{share:.0%}"]
        for name in names:
            noise = half_interval(m.ratio[name], m.rounds)
            cells += [milliseconds(m.ms[name]), f"{times(m.ratio[name][1])} ±{noise:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    for name in names:
        ratios = [found["ratio"][name][1] for found in results["measured"]]
        mean = times(geometric_mean(ratios))
        slower = sum(ratio < 1 for ratio in ratios)
        lines += ["", f"{name}: geometric mean {mean}, slower than it {slower} of {len(ratios)}."]
    return "\n".join(lines) + "\n"


def options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Times inference beside other runtimes.")
    top.add_argument("--out", type=Path, required=True, help="folder for peers.json and peers.md")
    top.add_argument(
        "--threads",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[torch.get_num_threads()],
        help="thread counts, as in 1,2 (default: torch's own)",
    )
    top.add_argument("--quick", action="store_true", help="few rounds of short sequences")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options().parse_args(argv)
    installed = versions()
    cases, seconds = CASES, SECONDS
    if arguments.quick:
        cases, seconds = [replace(case, T=min(case.T, 5)) for case in CASES[2:]], QUICK_SECONDS
    measured: list[Measured] = []
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        for threads in arguments.threads:
            for case in cases:
                peak = ops.fma_peak(threads, harness.PEAK_SECONDS)
                peaks[str(threads)] = max(peak, peaks.get(str(threads), 0.0))
                measured.append(measure(case, threads, list(installed), seconds))
                print(measured[-1], file=sys.stderr)
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "isa": ops.cpu_isa(),
        "versions": {"fusedrnn": fusedrnn.__version__, **installed},
        "peak_gflops": peaks,
        "measured": [asdict(found) for found in measured],
    }
    write(arguments.out / "peers.json", results, page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
