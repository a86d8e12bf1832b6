"""The RNN, the LSTM and the GRU as diagrams of their gates, drawn from torch's formulas.

``python -m examples.diagrams --out DIR`` writes a PNG of each; the course's notebook shows the same
ones. A line is a vector of H numbers (x: of I) and has a colour by what it carries: the states, or
the gate that made it. A box with a function's name includes the gate's own weights and both biases,
except where a diagram shows the two products apart: in an RNN, and at gate n of a GRU, where r
stands between them. A dot is where a line branches; lines that cross without one do not meet.

Drawn on an Agg canvas of its own, like `driver.plots`: the same matplotlib writes the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from PIL import Image

from examples.data.fetch import replacing
from examples.driver.errors import WorkloadError

COLOURS = {
    "x": "#5f6670",
    "h": "#1f4e8c",
    "c": "#b8770b",
    "i": "#0f8b8d",
    "f": "#c8385a",
    "g": "#4f8a3c",
    "o": "#7b4fa3",
    "r": "#d0641f",
    "z": "#a8327d",
    "n": "#4f8a3c",
}
INK, CELL, EDGE = "#30343a", "#f6f7f9", "#d5d9df"
INCH = 0.72  # of a unit of the drawing
DPI, SHADES = 160, 96
CORNER = 0.14  # radius of a line's bend
GATE, PRODUCT = (0.86, 0.52), (1.62, 0.52)  # widths and heights of boxes
RADIUS = 0.17  # of an element-wise operation
LINE = 0.46  # from formula to formula

Point = tuple[float, float]


@dataclass(frozen=True)
class Node:
    """A box or a circle, with the middles of its sides."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    def below(self, aside: float = 0.0) -> Point:
        """Where a line enters from below, `aside` of the middle."""
        return self.x + aside, self.y - self.height / 2


class Sheet:
    """A drawing of `width` x `height` units, the formulas below it included."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(INCH * width, INCH * height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def write(
        self, at: Point, text: str, colour: str, size: float = 13, side: str = "center"
    ) -> None:
        """Text at a point: its middle, or its "left" or "right" end."""
        about: dict[str, Any] = {
            "ha": side,
            "va": "center_baseline",
            "math_fontfamily": "cm",
            "zorder": 5,
        }
        self.axes.text(*at, text, color=colour, fontsize=size, **about)

    def cell(self, name: str, low: Point, high: Point) -> None:
        """The frame of what happens in one step."""
        size = (high[0] - low[0], high[1] - low[1])
        style = "round,pad=0,rounding_size=0.25"
        frame = FancyBboxPatch(low, *size, boxstyle=style, facecolor=CELL, edgecolor=EDGE, lw=1)
        self.axes.add_patch(frame)
        self.axes.text(
            low[0] + 0.25, high[1] - 0.34, name, color=INK, fontsize=11, weight="bold", va="center"
        )

    def box(self, at: Point, text: str, colour: str, size: tuple[float, float] = GATE) -> Node:
        """A gate's function, or a product with its bias."""
        node = Node(*at, *size)
        low = (node.left[0], node.below()[1])
        style = "round,pad=0,rounding_size=0.1"
        about: dict[str, Any] = {
            "boxstyle": style,
            "facecolor": "white",
            "edgecolor": colour,
            "lw": 1.3,
        }
        self.axes.add_patch(FancyBboxPatch(low, *size, **about, zorder=4))
        self.write(at, text, colour, 11 if size == PRODUCT else 13)
        return node

    def circle(self, at: Point, sign: str) -> Node:
        """An element-wise operation: "*" (a circled dot), "+" or "1-"."""
        self.axes.add_patch(Circle(at, RADIUS, facecolor="white", edgecolor=INK, lw=1, zorder=4))
        arm = 0.6 * RADIUS
        if sign == "*":
            self.axes.add_patch(Circle(at, 0.035, color=INK, lw=0, zorder=5))
        elif sign == "+":
            for across, up in ((arm, 0.0), (0.0, arm)):
                ends = ((at[0] - across, at[0] + across), (at[1] - up, at[1] + up))
                self.axes.plot(*ends, color=INK, lw=1, zorder=5)
        else:
            self.write(at, r"$1\!-$", INK, 9)
        return Node(*at, 2 * RADIUS, 2 * RADIUS)

    def dot(self, at: Point, colour: str) -> None:
        """Where a line branches."""
        self.axes.add_patch(Circle(at, 0.05, color=colour, lw=0, zorder=4))

    def wire(self, colour: str, *points: Point) -> None:
        """A line through `points` with rounded bends and an arrowhead."""
        vertices, codes = [points[0]], [Curve.MOVETO]
        for before, at, after in zip(points, points[1:], points[2:], strict=False):
            vertices += [_toward(at, before), at, _toward(at, after)]
            codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        vertices, codes = [*vertices, points[-1]], [*codes, Curve.LINETO]
        curve = Curve(vertices, codes)
        self.axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, lw=1.3, zorder=3))
        (x, y), (ux, uy) = points[-1], _direction(points[-2], points[-1])
        back, wide = 0.15, 0.055
        base = (x - back * ux, y - back * uy)
        sides = [(base[0] + s * wide * uy, base[1] - s * wide * ux) for s in (-1, 1)]
        self.axes.add_patch(Polygon([points[-1], *sides], color=colour, lw=0, zorder=3))

    def bus(self, key: str, points: Sequence[Point], inlets: Sequence[Point]) -> None:
        """The line of `key` through `points` and on, with a branch up to each of `inlets`."""
        colour, along = COLOURS[key], points[-1][1]
        *branches, last = inlets
        for at in branches:
            self.wire(colour, (at[0], along), at)
            self.dot((at[0], along), colour)
        self.wire(colour, *points, (last[0], along), last)

    def ends(self, before: Point, x: Point, after: Point) -> None:
        """The names of h_{t-1}, x_t and h_t, outside of the cell."""
        self.write(before, "$h_{t-1}$", COLOURS["h"], side="right")
        self.write(x, "$x_t$", COLOURS["x"])
        self.write(after, "$h_t$", COLOURS["h"], side="left")

    def formulas(self, top: float, left: float, lines: Sequence[tuple[str, str]]) -> None:
        """One formula a line, each in the colour of what it gives."""
        for number, (key, text) in enumerate(lines):
            self.write((left, top - number * LINE), f"${text}$", COLOURS[key], 12.5, "left")


def _direction(start: Point, end: Point) -> Point:
    across, up = end[0] - start[0], end[1] - start[1]
    length = abs(across) + abs(up)  # lines go along an axis
    return across / length, up / length


def _toward(corner: Point, other: Point) -> Point:
    across, up = _direction(corner, other)
    return corner[0] + CORNER * across, corner[1] + CORNER * up


def _function(gate: str) -> str:
    return r"\tanh" if gate in "gn" else r"\sigma"


def _gate(of: str) -> tuple[str, str]:
    """Torch's formula of a gate: both products, both biases."""
    products = rf"W_{{i{of}}}\,x_t + b_{{i{of}}} + W_{{h{of}}}\,h_{{t-1}} + b_{{h{of}}}"
    return of, rf"{of}_t = {_function(of)}({products})"


def rnn() -> Figure:
    """h_t from x_t and h_{t-1}, with the two products apart."""
    sheet = Sheet(9.4, 4.3)
    x, h = COLOURS["x"], COLOURS["h"]
    sheet.cell("RNN", (1.1, 1.35), (8.3, 4.15))
    of_h = sheet.box((2.6, 3.1), r"$W_{hh}\,h + b_{hh}$", h, PRODUCT)
    of_x = sheet.box((4.5, 2.0), r"$W_{ih}\,x + b_{ih}$", x, PRODUCT)
    total = sheet.circle((4.5, 3.1), "+")
    tanh = sheet.box((6.1, 3.1), r"$\tanh$", h)
    sheet.wire(h, (0.75, 3.1), of_h.left)
    sheet.wire(h, of_h.right, total.left)
    sheet.wire(x, (4.5, 1.1), of_x.below())
    sheet.wire(x, of_x.top, total.below())
    sheet.wire(h, total.right, tanh.left)
    sheet.wire(h, tanh.right, (8.65, 3.1))
    sheet.ends((0.65, 3.1), (4.5, 0.9), (8.75, 3.1))
    formula = r"h_t = \tanh(W_{ih}\,x_t + b_{ih} + W_{hh}\,h_{t-1} + b_{hh})"
    sheet.formulas(0.35, 1.1, [("h", formula)])
    return sheet.figure


def lstm() -> Figure:
    """Four gates and two states: along c's line stand f and a sum, and nothing else."""
    sheet = Sheet(11.0, 7.45)
    h, c = COLOURS["h"], COLOURS["c"]
    level, middle, top = 4.25, 5.35, 6.45  # of the gates, of i * g, of c
    sheet.cell("LSTM", (1.1, 2.5), (9.9, 7.35))
    f, i, g, o = (
        sheet.box((at, level), f"${_function(name)}$", COLOURS[name])
        for name, at in (("f", 2.6), ("i", 4.0), ("g", 5.4), ("o", 7.0))
    )
    nodes = (f, i, g, o)
    sheet.bus("h", [(0.75, 3.35)], [gate.below(0.2) for gate in nodes])
    sheet.bus("x", [(2.0, 2.25), (2.0, 2.9)], [gate.below(-0.2) for gate in nodes])

    kept, total = sheet.circle((f.x, top), "*"), sheet.circle((i.x, top), "+")
    added, shown = sheet.circle((i.x, middle), "*"), sheet.circle((8.4, 5.0), "*")
    tanh = sheet.box((8.4, 5.75), r"$\tanh$", c)
    sheet.wire(c, (0.75, top), kept.left)
    sheet.wire(c, kept.right, total.left)
    sheet.wire(c, total.right, (10.25, top))
    sheet.wire(c, (8.4, top), tanh.top)
    sheet.dot((8.4, top), c)
    sheet.wire(c, tanh.below(), shown.top)
    sheet.wire(COLOURS["f"], f.top, kept.below())
    sheet.wire(COLOURS["i"], i.top, added.below())
    sheet.wire(COLOURS["g"], g.top, (g.x, middle), added.right)
    sheet.wire(INK, added.top, total.below())
    sheet.wire(COLOURS["o"], o.top, (o.x, shown.y), shown.left)
    sheet.wire(h, shown.below(), (shown.x, 3.35), (10.25, 3.35))
    for name, node in (("f", f), ("i", i), ("g", g), ("o", o)):
        sheet.write((node.x - 0.2, level + 0.45), f"${name}$", COLOURS[name])
    sheet.write((0.65, top), "$c_{t-1}$", c, side="right")
    sheet.write((10.35, top), "$c_t$", c, side="left")
    sheet.ends((0.65, 3.35), (2.0, 2.07), (10.35, 3.35))
    sheet.formulas(1.55, 1.1, [_gate(of) for of in "ifgo"])
    states = [
        ("c", r"c_t = f_t \odot c_{t-1} + i_t \odot g_t"),
        ("h", r"h_t = o_t \odot \tanh(c_t)"),
    ]
    sheet.formulas(1.55, 7.0, states)
    return sheet.figure


def gru() -> Figure:
    """Two gates and the candidate n: r stands behind W_hn h + b_hn, as torch and cuDNN have it."""
    sheet = Sheet(12.6, 7.1)
    x, h, n, z_line = COLOURS["x"], COLOURS["h"], COLOURS["n"], COLOURS["z"]
    level, middle, top = 4.0, 5.15, 6.05  # of the boxes, of n, of h
    sheet.cell("GRU", (1.1, 2.25), (11.5, 7.0))
    r = sheet.box((2.7, level), r"$\sigma$", COLOURS["r"])
    of_h = sheet.box((4.4, level), r"$W_{hn}\,h + b_{hn}$", h, PRODUCT)
    of_x = sheet.box((6.3, level), r"$W_{in}\,x + b_{in}$", x, PRODUCT)
    z = sheet.box((8.7, level), r"$\sigma$", z_line)
    start = (1.6, top)  # of the way down to the products
    inlets = r.below(0.2), of_h.below(), z.below(0.2)
    sheet.bus("h", [start, (1.6, 3.15)], inlets)
    sheet.dot(start, h)
    sheet.bus("x", [(2.1, 2.0), (2.1, 2.7)], [r.below(-0.2), of_x.below(), z.below(-0.2)])

    reset, summed = sheet.circle((of_h.x, middle), "*"), sheet.circle((of_x.x, middle), "+")
    tanh = sheet.box((7.5, middle), r"$\tanh$", n)
    kept, total = sheet.circle((z.x, top), "*"), sheet.circle((10.4, top), "+")
    less, new = sheet.circle((9.4, 4.62), "1-"), sheet.circle((10.4, middle), "*")
    sheet.wire(COLOURS["r"], r.top, (r.x, middle), reset.left)
    sheet.wire(h, of_h.top, reset.below())
    sheet.wire(INK, reset.right, summed.left)
    sheet.wire(x, of_x.top, summed.below())
    sheet.wire(INK, summed.right, tanh.left)
    sheet.wire(n, tanh.right, new.left)
    sheet.wire(z_line, z.top, kept.below())
    sheet.wire(z_line, (z.x, less.y), less.left)
    sheet.dot((z.x, less.y), z_line)
    sheet.wire(z_line, less.right, (new.x, less.y), new.below())
    sheet.wire(INK, new.top, total.below())
    sheet.wire(h, (0.75, top), kept.left)
    sheet.wire(h, kept.right, total.left)
    sheet.wire(h, total.right, (11.85, top))
    for name, at in (("r", (r.x - 0.2, 4.5)), ("z", (z.x - 0.2, 4.62)), ("n", (8.2, middle + 0.2))):
        sheet.write(at, f"${name}$", COLOURS[name])
    sheet.ends((0.65, top), (2.1, 1.82), (11.95, top))
    inner = r"W_{in}\,x_t + b_{in} + r_t \odot (W_{hn}\,h_{t-1} + b_{hn})"
    gates = [_gate("r"), _gate("z"), ("n", rf"n_t = \tanh({inner})")]
    sheet.formulas(1.3, 1.1, gates)
    sheet.formulas(1.3, 7.6, [("h", r"h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}")])
    return sheet.figure


DIAGRAMS: dict[str, Callable[[], Figure]] = {"rnn": rnn, "lstm": lstm, "gru": gru}


def small(picture: bytes) -> bytes:
    """A PNG of few colours, which takes a third of the bytes."""
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(SHADES)
    image.save(stream, "png", optimize=True)
    return stream.getvalue()


def png(cell: str) -> bytes:
    """The diagram of "rnn", "lstm" or "gru"."""
    stream = io.BytesIO()
    DIAGRAMS[cell]().savefig(stream, format="png")
    return small(stream.getvalue())


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m examples.diagrams", description="Draw the cells."
    )
    found.add_argument("--out", type=Path, default=Path("runs"), help="directory for the PNGs")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Writes rnn.png, lstm.png and gru.png."""
    out = parser().parse_args(argv).out
    for cell in DIAGRAMS:
        path = out / f"{cell}.png"
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(png(cell))
        except WorkloadError as error:
            sys.exit(str(error))
        print(path)


if __name__ == "__main__":
    main()
