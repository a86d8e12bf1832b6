"""bfloat16 on a CPU: beside float32, and beside torch.nn.

    python benchmarks/bfloat16.py --out DIR [--threads 1,2] [--quick]

Writes bfloat16.json and from it bfloat16.md. fusedrnn in float32 and in bfloat16 and torch.nn in
bfloat16 in turn, in one process, with the same weights. fusedrnn reads weights that are stored in
bfloat16 and computes in float32; torch.nn computes in bfloat16 where the machine can.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

if not __package__:  # a script finds only its siblings
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from benchmarks.bench_layers import CELLS, Layer
from benchmarks.report import milliseconds, times, write

LOW = harness.Setting(torch.device("cpu"), torch.bfloat16)
ROUNDS, SECONDS = 31, 0.05  # of a side in a round
SHAPES = ((1, 1, 128), (1, 1, 512), (100, 1, 128), (100, 1, 512), (100, 4, 512), (50, 64, 128))
CASES = [
    Layer(group="layer", cell=cell, step=harness.INFERENCE, T=T, B=B, I=H, H=H)
    for cell in CELLS
    for T, B, H in SHAPES
]
CASES += [replace(case, step=harness.GRADIENTS) for case in CASES if case.B == 64]


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds: milliseconds a call, and ratios of times in the same round."""

    name: str
    threads: int
    ours_fp32: float
    ours: float
    torch: float
    over_fp32: float  # ours in float32 / ours in bfloat16
    over_torch: float  # torch.nn in bfloat16 / ours in bfloat16


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
    with torch.inference_mode() if layer.step == harness.INFERENCE else nullcontext():
        exact, *rounded = [side()[0].float() for side in sides]
        if max((y - exact).abs().max().item() for y in rounded) > 0.05:
            raise AssertionError(f"{layer.shape}: results differ")
        once = [harness.warm(side) for side in sides]
        calls = [max(1, int(seconds / 3 / each)) for each in once]
        found = [
            [harness.seconds_of(side, n) * 1e3 for side, n in zip(sides, calls, strict=True)]
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


def page(results: dict[str, Any]) -> str:
    """Markdown of what bfloat16.json holds."""
    lines = [
        "# bfloat16 on a CPU",
        "",
        f"{results['cpu']}, {results['cores']} cores, {results['isa']}, torch {results['torch']}, "
        f"commit {results['commit']}, {results['date']}. Milliseconds a call; above 1x, fusedrnn's "
        "bfloat16 is the faster. Made by `python benchmarks/bfloat16.py`.",
        "",
        "| case | threads | fusedrnn fp32 | bf16 | torch.nn bf16 | against fp32 | torch.nn bf16 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for m in (Measured(**found) for found in results["measured"]):
        figures = [milliseconds(m.ours_fp32), milliseconds(m.ours), milliseconds(m.torch)]
        figures += [times(m.over_fp32), times(m.over_torch)]
        lines.append(f"| {' | '.join([m.name, str(m.threads), *figures])} |")
    return "\n".join(lines) + "\n"


def options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Times layers in bfloat16.")
    top.add_argument("--out", type=Path, required=True, help="folder for bfloat16.json and .md")
    top.add_argument(
        "--threads",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[torch.get_num_threads()],
        help="thread counts, each measured, as in 1,2 (default: torch's own)",
    )
    top.add_argument("--quick", action="store_true", help="few rounds of short sequences")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options().parse_args(argv)
    cases, rounds, seconds = CASES, ROUNDS, SECONDS
    if arguments.quick:
        cases, rounds, seconds = [replace(case, T=3, H=24, I=24) for case in CASES], 2, 0.001
    run = asdict(harness.new_run(harness.Tier.DEFAULT))
    results = {key: run[key] for key in ("date", "commit", "cpu", "cores", "isa", "torch")}
    results["measured"] = [
        asdict(measure(case, threads, rounds, seconds))
        for case in cases
        for threads in arguments.threads
    ]
    write(arguments.out / "bfloat16.json", results, page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
