"""Inference of a layer beside torch.nn's, ONNX Runtime's and OpenVINO's, all in turn.

    pip install '.[bench-peers]'
    python -m benchmarks peers --out DIR [--threads 1,2] [--quick]

Writes DIR/peers.jsonl and from it peers.md. The two runtimes get the weights of torch.nn's module
by way of torch.onnx. Those that are not installed are left out, and stderr says so.
"""

from __future__ import annotations

import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn
from benchmarks import cases, options, timing
from benchmarks.cases import INFERENCE
from benchmarks.layers import Layer
from benchmarks.report.peers import KIND, OURS, Measured, page
from benchmarks.report.place import beside
from benchmarks.results import line, write

SECONDS, QUICK_SECONDS = 5.0, 0.2  # of all sides' rounds of a case
# Pools spin before they sleep, each for a while of its own: without a pause the next side would
# share its cores with the last one's threads. Threads that have slept may wake on one core and stay
# there until the system spreads them, so the first calls are not timed.
PAUSE_SECONDS, WARM_SECONDS = 0.05, 0.01
TOLERANCE = 1e-4


def reuters(T: int) -> Layer:
    return Layer(group="Reuters stack", cell="LSTM", step=INFERENCE, T=T, B=64, I=128, H=128, L=2)


def time_machine(cell: str) -> Layer:
    return Layer(group="Time Machine", cell=cell, step=INFERENCE, T=35, B=32, I=28, H=256)


def one_row(T: int) -> Layer:
    return Layer(group="one row", cell="LSTM", step=INFERENCE, T=T, B=1, I=128, H=128)


CASES = [
    *(reuters(T) for T in (50, 100, 200)),
    *(time_machine(cell) for cell in ("LSTM", "GRU", "RNN")),
    *(one_row(T) for T in (1, 100)),
]

Call = Callable[[], Sequence[Any]]  # the output first


def onnx_of(module: nn.Module, *inputs: Any, names: Sequence[str] = ("x",)) -> bytes:
    file: Any = io.BytesIO()
    with warnings.catch_warnings():  # that this exporter is old, and that the batch is fixed
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, input_names=[*names], dynamo=False)
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
        print(f"peers: {name} is not installed", file=sys.stderr)
    return {
        "torch.nn": str(torch.__version__),
        **{name: metadata.version(PEERS[name][0]) for name in installed},
    }


def settled(call: cases.Call | Call, iterations: int) -> float:
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
    sides: dict[str, Any] = {OURS: layer.call(ours, x, slope)}
    for name in installed:
        if name in PEERS:
            sides[name] = PEERS[name][1](model, x, threads)
        else:
            sides[name] = layer.call(theirs, x, slope)
    expected = sides[OURS]()[0]
    error = {
        name: timing.disagreement((expected,), (torch.as_tensor(side()[0]),))
        for name, side in sides.items()
    }
    if max(error.values()) > TOLERANCE:
        raise AssertionError(f"{layer.cell} {layer.shape}: results differ: {error}")
    quickest = min(timing.warm(side) for side in sides.values())
    iterations = max(1, math.ceil(timing.ROUND_SECONDS / quickest))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[OURS]) < 7:
        for name, side in sides.items():
            taken[name].append(settled(side, iterations))
    ms, ratios = timing.medians_and_ratios(taken, OURS)
    return Measured(
        f"{layer.group}: {layer.cell} {layer.shape}",
        threads,
        len(taken[OURS]),
        layer.gflop,
        ms,
        ratios,
        error,
    )


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Times inference beside other runtimes.")
    options.add_threads(top, torch.get_num_threads())
    arguments = top.parse_args(argv)
    installed = versions()
    layers, seconds = CASES, SECONDS
    if arguments.quick:
        layers, seconds = [replace(case, T=min(case.T, 5)) for case in CASES[2:]], QUICK_SECONDS
    measured: list[Measured] = []
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        for threads in arguments.threads:
            for layer in layers:
                timing.note_peak(peaks, threads)
                measured.append(measure(layer, threads, list(installed), seconds))
                print(measured[-1], file=sys.stderr)
    header = timing.place()
    del header["cores"], header["torch"]  # it is among the versions
    header["versions"] = {OURS: fusedrnn.__version__, **installed}
    header["peak_gflops"] = peaks
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, header, map(line, measured))
    return beside(path, page(path))
