"""bfloat16 on a CPU: beside float32, and beside torch.nn.

    python -m benchmarks bfloat16 --out DIR [--threads 1,2] [--quick]

Writes DIR/bfloat16.jsonl and from it bfloat16.md. fusedrnn in float32 and in bfloat16 and torch.nn
in bfloat16 are timed in turn, in one process, with the same weights. Both multiply bfloat16 where
the machine can; fusedrnn sums and applies cells in float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from benchmarks import options, timing
from benchmarks.cases import GRADIENTS, INFERENCE, Setting
from benchmarks.layers import CELLS, Layer
from benchmarks.report.bfloat16 import KIND, Measured, page
from benchmarks.report.place import beside
from benchmarks.results import line, write

LOW = Setting(torch.device("cpu"), torch.bfloat16)
ROUNDS, SECONDS = 31, 0.05  # of a side in a round
SHAPES = (
    (1, 1, 128),
    (1, 1, 512),
    (100, 1, 128),
    (100, 1, 512),
    (100, 4, 512),
    (50, 64, 128),
    (50, 64, 512),
)
CASES = [
    Layer(group="layer", cell=cell, step=INFERENCE, T=T, B=B, I=H, H=H)
    for cell in CELLS
    for T, B, H in SHAPES
]
CASES += [replace(case, step=GRADIENTS) for case in CASES if case.B == 64]


def measure(layer: Layer, threads: int, rounds: int, seconds: float) -> Measured:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    low, theirs = layer.modules(LOW)
    wide, _ = layer.modules()
    wide.load_state_dict({name: value.float() for name, value in low.state_dict().items()})
    x, slope = layer.inputs(LOW)
    sides = [
        layer.call(wide, x.float(), slope.float()),
        layer.call(low, x, slope),
        layer.call(theirs, x, slope),
    ]
    with torch.inference_mode() if layer.step == INFERENCE else nullcontext():
        exact, *rounded = [side()[0].float() for side in sides]
        if max((y - exact).abs().max().item() for y in rounded) > 0.05:
            raise AssertionError(f"{layer.shape}: results differ")
        once = [timing.warm(side) for side in sides]
        calls = [max(1, int(seconds / 3 / each)) for each in once]
        found = [
            [timing.seconds_of(side, n) * 1e3 for side, n in zip(sides, calls, strict=True)]
            for _ in range(rounds)
        ]
    fp32, ours, torchs = (statistics.median(column) for column in zip(*found, strict=True))
    return Measured(
        f"{layer.cell} {layer.step} {layer.shape}",
        threads,
        fp32,
        ours,
        torchs,
        statistics.median(a / b for a, b, _ in found),
        statistics.median(c / b for _, b, c in found),
    )


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Times layers in bfloat16.")
    options.add_threads(top, torch.get_num_threads())
    arguments = top.parse_args(argv)
    cases, rounds, seconds = CASES, ROUNDS, SECONDS
    if arguments.quick:
        cases, rounds, seconds = [replace(case, T=3, H=24, I=24) for case in CASES], 2, 0.001
    measured = [
        line(measure(case, threads, rounds, seconds))
        for case in cases
        for threads in arguments.threads
    ]
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, timing.place(), measured)
    return beside(path, page(path))
