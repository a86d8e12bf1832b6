"""Frozen layers beside plain ones, torch.nn and other runtimes: what a server asks of them.

    pip install '.[bench-peers]'
    python -m benchmarks serving --out DIR [--threads 1,2] [--quick]
    python -m benchmarks serving --out DIR --only layers,steps     # of the five parts

Writes DIR/serving.jsonl and from it serving.md. The parts: whole calls of layers; single steps of a
stream; the tail of a step's latency at a beat of 10 ms while another core works; streams in several
Python threads; bytes of weights, of files and of the process. All sides of a case run in turn.
Peers that are not installed are left out, and stderr says so.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fusedrnn
from benchmarks import options, peers, serving_memory, serving_steps, timing
from benchmarks.cases import INFERENCE
from benchmarks.layers import CELLS, Layer
from benchmarks.report.place import beside
from benchmarks.report.serving import INT8, KIND, OURS, Called, line_of, page
from benchmarks.results import Line, write
from benchmarks.serving_steps import DTYPES

PARTS = ("layers", "steps", "beat", "threads", "memory")
SECONDS, QUICK_SECONDS, FEWEST = 5.0, 0.05, 7
# Relative to the largest value; what is rounded to int8 differs from float32 by up to this.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.15}
# torch.ao has no dynamic RNN layer, ONNX Runtime's quantize_dynamic leaves GRU and RNN in float32.
AO, ORT = {"LSTM": nn.LSTM, "GRU": nn.GRU}, ("LSTM",)


def cases() -> list[Layer]:
    return [
        Layer(group=group, cell=cell, step=INFERENCE, T=T, B=B, I=H, H=H)
        for group, T, B in (("one row", 100, 1), ("batch", 50, 64))
        for H in (128, 512)
        for cell in CELLS
    ]


def quantized_by_torch(module: nn.Module) -> nn.Module:
    """torch.ao's: int8 weights, and an activation scale for each call."""
    with warnings.catch_warnings():  # that torchao is to take its place
        warnings.simplefilter("ignore")
        holder: Any = nn.Sequential(module)
        found: Any = torch.ao.quantization.quantize_dynamic(holder, {*AO.values()}, torch.qint8)
    low: nn.Module = found[0]
    return low


def products(name: str) -> str:
    """What multiplies numbers of that dtype here, as the extension calls it."""
    return fusedrnn.freeze(fusedrnn.LSTM(1, 1), DTYPES[name])._stack.products


def adds_four_products() -> bool:
    """Whether an instruction does; vpmaddubsw adds two."""
    return bool(re.search("vnni|amx", products("int8")))


def quantized_by_onnxruntime(model: bytes) -> bytes:
    """With DynamicQuantizeLSTM for LSTM. Where it has no instructions but vpmaddubsw, whose sums of
    16 bits saturate, weights get 7 bits, as its documentation says: with 8 an LSTM's output is off
    by half of its largest value."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        plain.write_bytes(model)
        logging.disable(logging.WARNING)  # that the model was not simplified before
        try:
            saturates = not adds_four_products()
            how = {"weight_type": QuantType.QInt8, "reduce_range": saturates}
            quantize_dynamic(plain, small, op_types_to_quantize=["LSTM"], **how)
        finally:
            logging.disable(logging.NOTSET)
        return small.read_bytes()


@dataclass(frozen=True)
class Side:
    """A way to compute a layer; `numbers`: what its weights are."""

    name: str
    numbers: str
    call: Any  # the output first


def sides(layer: Layer, threads: int, installed: Sequence[str]) -> Iterator[Side]:
    """Ours, frozen in each dtype, and the peers'."""
    ours, theirs = layer.modules()
    x, slope = layer.inputs()

    def called(module: nn.Module) -> Any:
        return layer.call(module, x, slope)

    yield Side(OURS, "float32", called(ours))
    for name, dtype in DTYPES.items():
        yield Side(f"frozen {name}", name, called(fusedrnn.freeze(ours, dtype)))
    yield Side("torch.nn", "float32", called(theirs))
    if layer.cell in AO:
        yield Side("torch.ao int8", "int8", called(quantized_by_torch(theirs)))
    model = peers.onnx_of(theirs, x) if len(installed) > 1 else b""
    for name in (name for name in peers.PEERS if name in installed):
        yield Side(name, "float32", peers.PEERS[name][1](model, x, threads))
        if name == "ONNX Runtime" and layer.cell in ORT:
            small = quantized_by_onnxruntime(model)
            yield Side(f"{name} int8", "int8", peers.PEERS[name][1](small, x, threads))


def agreeing(found: Sequence[Side], about: str) -> dict[str, float]:
    """How far each side is from our float32.

    Raises:
        AssertionError: farther than what its weights explain.
    """
    expected = (torch.as_tensor(found[0].call()[0]),)
    errors = {}
    for side in found:
        error = timing.disagreement(expected, (torch.as_tensor(side.call()[0]),))
        if not error <= TOLERANCE[side.numbers]:
            raise AssertionError(f"{about}: {side.name} differs by {error:.1e} of the largest")
        errors[side.name] = error
    return errors


def measure(layer: Layer, threads: int, installed: Sequence[str], seconds: float) -> Called:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = [*sides(layer, threads, installed)]
    about = f"{layer.cell} {layer.shape}"
    errors = agreeing(found, about)
    once = {side.name: timing.warm(side.call) for side in found}
    taken: dict[str, list[float]] = {side.name: [] for side in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken[INT8]) < (FEWEST if seconds >= 1 else 2):
        for side in found:
            calls = max(1, math.ceil(timing.ROUND_SECONDS / once[side.name]))
            taken[side.name].append(peers.settled(side.call, calls))
    ms, ratios = timing.medians_and_ratios(taken, INT8)
    of_bytes, of_products = 1.8 if layer.H < 512 else 2.5, 1.5 if adds_four_products() else 1.0
    least = of_bytes if layer.B == 1 else of_products
    return Called(f"{layer.group}: {about}", threads, len(taken[INT8]), ms, ratios, errors, least)


def small(layer: Layer) -> Layer:
    """A case of the same code that costs nothing."""
    return replace(layer, T=3, B=min(layer.B, 3), I=24, H=24)


def measured(
    parts: Sequence[str], threads: int, installed: Sequence[str], quick: bool
) -> Iterator[Any]:
    """The lines of the parts that are asked for."""
    seconds = QUICK_SECONDS if quick else SECONDS
    if "layers" in parts:
        with torch.inference_mode():
            for case in cases()[:3] if quick else cases():
                yield measure(small(case) if quick else case, threads, installed, seconds)
    torch.set_num_threads(threads)
    asked: dict[str, Callable[..., Iterator[Any]]] = {
        "steps": serving_steps.steps,
        "beat": serving_steps.beats,
        "threads": serving_steps.in_threads,
        "memory": serving_memory.memory,
    }
    for name, part in asked.items():
        if name in parts:
            yield from part(installed, quick)


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Times frozen layers and streams beside other runtimes.")
    options.add_threads(top, 1)
    top.add_argument("--only", default=",".join(PARTS), help="which of %(default)s")
    arguments = top.parse_args(argv)
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        top.error(f"--only: expected some of {','.join(PARTS)}, got {','.join(sorted(unknown))}")
    installed = peers.versions()
    lines: list[Line] = []
    for threads in arguments.threads:
        # A stream runs on the calling thread: those parts are measured once.
        wanted = parts if threads == arguments.threads[0] else {"layers"} & set(parts)
        for found in measured([*wanted], threads, list(installed), arguments.quick):
            lines.append(line_of(found))
            print(found, file=sys.stderr)
    header = timing.place()
    del header["torch"]  # it is among the versions
    header["versions"] = {OURS: fusedrnn.__version__, **installed}
    header["products"] = {name: products(name) for name in ("bfloat16", "int8")}
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, header, lines)
    return beside(path, page(path))
