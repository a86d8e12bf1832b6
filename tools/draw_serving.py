"""Draws the pictures of the page on serving from results: steps a second, and errors over steps.

    python tools/draw_serving.py benchmarks/results/zen4 docs/images

reads serving.jsonl and int8.jsonl, and writes serving-steps.svg and serving-drift.svg, plain SVG in
the colours of the other pictures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import int8, serving
from draw_sequences import BLUE, GREEN, INK, LINE, ORANGE, SOFT, sheet, text

Points = Sequence[tuple[float, float]]
DASHES = {"": "", "--": ' stroke-dasharray="6 4"'}


@dataclass(frozen=True)
class Look:
    """How a line is drawn, and named in the key."""

    name: str
    colour: str
    dashes: str = ""


STEPS = {
    "frozen int8": Look("int8", ORANGE[1]),
    "frozen bfloat16": Look("bfloat16", GREEN[1]),
    "frozen float32": Look("float32", BLUE[1]),
    "ONNX Runtime int8": Look("ONNX Runtime int8", ORANGE[1], "--"),
    "ONNX Runtime": Look("ONNX Runtime", SOFT, "--"),
    "torch.nn.LSTM": Look("torch.nn.LSTM", LINE, "--"),
}
DRIFT = dict(zip(("int8", "bfloat16", "float32"), STEPS.values(), strict=False))


@dataclass(frozen=True)
class Axes:
    """Logarithmic axes: where they lie, and from and to which values they go."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        def share(value: float, ends: tuple[float, float]) -> float:
            return math.log(value / ends[0]) / math.log(ends[1] / ends[0])

        right = self.left + self.width * share(x, self.x)
        return right, self.top + self.height * (1 - share(y, self.y))

    def drawn(self, title: str, xs: Mapping[float, str], ys: Mapping[float, str]) -> Iterator[str]:
        """The frame, a line for each of `ys`, and the names of both."""
        bottom = self.top + self.height
        yield text(self.left, self.top - 12, title)
        for y, name in ys.items():
            _, at = self.at(self.x[0], y)
            right = self.left + self.width
            yield f'<path d="M{self.left:g} {at:.1f}H{right:g}" stroke="{LINE}" opacity="0.4"/>'
            yield text(self.left - 8, round(at + 4, 1), name, "end", True)
        for x, name in xs.items():
            at, _ = self.at(x, self.y[0])
            yield text(round(at, 1), bottom + 18, name, "middle", True)

    def line(self, points: Points, look: Look) -> str:
        found = (self.at(*point) for point in points)
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in found)
        style = f'fill="none" stroke="{look.colour}" stroke-width="2"{DASHES[look.dashes]}'
        return f'<path d="M{path}" {style}/>'


def key(looks: Sequence[Look], y: float, left: float = 90, columns: int = 3) -> Iterator[str]:
    for i, look in enumerate(looks):
        x, at = left + i % columns * 220, y + i // columns * 22
        style = f'stroke="{look.colour}" stroke-width="2"{DASHES[look.dashes]}'
        yield f'<path d="M{x:g} {at:g}h30" {style}/>'
        yield f'<text x="{x + 38:g}" y="{at + 4:g}" fill="{INK}" font-size="13">{look.name}</text>'


def powers(low: int, high: int, name: Callable[[int], str]) -> dict[float, str]:
    return {10.0**k: name(k) for k in range(low, high + 1)}


def thousands(k: int) -> str:
    return f"{10**k:,}"


def steps(folder: Path) -> str:
    """Steps a second of all rows, by the number of rows; a panel for each size."""
    _, found = serving.load(folder / "serving.jsonl")
    panels: dict[str, list[serving.Stepped]] = {}
    for m in found["steps"]:
        parts = m.name.split()
        if parts[-1].startswith("H") and parts[-1] != "H1":
            panels.setdefault(f"LSTM, I = H = {parts[-1][1:]}", []).append(m)

    def lines() -> Iterator[str]:
        yield text(20, 24, "steps a second, of all rows together", small=True)
        for i, (title, cases) in enumerate(panels.items()):
            axes = Axes(90 + i * 365, 60, 265, 230, (0.9, 71), (3e2, 3e6))
            rows = {float(m.rows): str(m.rows) for m in cases}
            yield from axes.drawn(title, rows, powers(3, 6, thousands))
            for side, look in STEPS.items():
                points = [(m.rows, m.rows / m.us[side] * 1e6) for m in cases if side in m.us]
                yield axes.line(points, look)
            yield text(axes.left + axes.width / 2, 326, "rows of the stream", "middle", True)
        yield from key([*STEPS.values()], 352)

    return sheet(390, "Steps a second of frozen LSTMs and of others, by rows", lines())


def drift(folder: Path) -> str:
    """Errors over the steps, of an LSTM as torch draws it and of one that forgets slowly."""
    _, found = int8.load(folder / "int8.jsonl")
    panels = {
        title: m
        for m in found["drift"]
        for begin, title in (
            ("LSTM, B", "LSTM"),
            ("LSTM, forget bias 3,", "LSTM that forgets slowly (forget bias 3)"),
        )
        if m.name.startswith(begin)
    }

    def lines() -> Iterator[str]:
        yield text(20, 24, "error relative to the output, beside float64", small=True)
        for i, (title, m) in enumerate(panels.items()):
            axes = Axes(90 + i * 350, 60, 290, 230, (1, 10_000), (1e-8, 1))
            ys = {
                10.0**k: f'10<tspan dy="-4" font-size="9">{k}</tspan>' if k else "1"
                for k in range(-8, 1, 2)
            }
            yield from axes.drawn(title, powers(0, 4, thousands), ys)
            for dtype, look in DRIFT.items():
                yield axes.line([*zip(m.ends, m.errors[dtype], strict=True)], look)
            yield text(axes.left + axes.width / 2, 326, "steps", "middle", True)
        yield from key([*DRIFT.values()], 352)

    return sheet(370, "Errors of frozen LSTMs over 10,000 steps", lines())


PICTURES = {"serving-steps": steps, "serving-drift": drift}


def main(argv: Sequence[str]) -> None:
    results, images = map(Path, argv)
    for name, draw in PICTURES.items():
        (images / f"{name}.svg").write_text(draw(results), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
