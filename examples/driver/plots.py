"""The charts of the systems, written as PNGs: lines in one pair of axes, or bars of speed.

A reader sees every line: at most `MOST` a picture, the legend below the axes, and where
torch.nn's thin dashed line lies on fusedrnn's wide pale one, both. Drawn on an Agg canvas of its
own: neither a display nor matplotlib's global state is involved. A file made again from the same
figures has the same bytes (matplotlib's version is left out of it).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.data.fetch import replacing
from examples.driver.errors import WorkloadError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 6  # lines in a picture
FEWEST = 3  # values that make a curve over epochs
MARKED = 20  # with fewer points, each is marked
DECADES = 2  # a log axis that spans less has ticks like 1, 2, 5 in place of powers of ten

Points = tuple[Sequence[float], Sequence[float]]  # places and the values there, of one length


@dataclass(frozen=True)
class Picture(ABC):
    """What every chart has.

    Args:
        suffix: of the file's name, after that of the results.
        caption: a sentence that stands below it.
    """

    suffix: str
    caption: str
    title: str

    def path(self, stem: Path) -> Path:
        """Its file: ``runs/imdb-torch`` and ``-accuracy`` give ``runs/imdb-torch-accuracy.png``."""
        return stem.with_name(f"{stem.name}{self.suffix}.png")

    def write(self, path: Path, prefix: str = "") -> None:
        """Draws it into `path`, with `prefix` before the title."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise WorkloadError(
                f"the plot needs matplotlib: {error}; pip install .[bench]"
            ) from error
        figure = Figure(figsize=(7.0, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(prefix + self.title, fontsize="large")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        self.draw(figure, axes)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

    @abstractmethod
    def draw(self, figure: Figure, axes: Axes) -> None:
        """What is between the axes."""


@dataclass(frozen=True)
class Chart(Picture):
    """Every series' values over its places, with a legend.

    Args:
        series: by the name in the legend; values without places are of epochs 1, 2, ...
        x, y: what stands at the axes; ticks of an `x` of whole places are whole.
        log_x, log_y: a logarithmic axis; what is not positive is then left out.
        styles: matplotlib's format of a series: "--" dashed, "C1:" dotted in the second colour;
            when not given, solid in the next colour.
        errors: of a series, the deviation of each of its values, drawn as a bar.
    """

    y: str
    series: Mapping[str, list[float] | Points]
    x: str = "epoch"
    log_y: bool = False
    log_x: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def draw(self, figure: Figure, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set(xlabel=self.x, ylabel=self.y)
        dashed = {style[:2] for style in self.styles.values() if style[2:] == "--"}
        for name in self.series:
            places, values = self.points(name)
            style = self.styles.get(name, "-")
            wide = style[:2] in dashed and style[2:] == "-"
            few, errors = len(values) < MARKED, self.errors.get(name)
            look: dict[str, Any] = {"linewidth": 5, "alpha": 0.4} if wide else {"linewidth": 1.5}
            if few:
                look |= {"yerr": errors, "marker": "o", "markersize": 4, "capsize": 3}
            (line, *_) = axes.errorbar(places, values, fmt=style, label=name, **look)
            if errors and not few:
                floor = 0.0 if min(values) >= 0 else -math.inf  # of a loss or a share
                low = [max(v - e, floor) for v, e in zip(values, errors, strict=True)]
                high = [v + e for v, e in zip(values, errors, strict=True)]
                color = line.get_color()
                axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        drawn = [self.points(name) for name in self.series]
        for axis, log, numbers in (
            (axes.xaxis, self.log_x, [place for places, _ in drawn for place in places]),
            (axes.yaxis, self.log_y, [value for _, values in drawn for value in values]),
        ):
            if log:
                _decimal(axis, [n for n in numbers if n > 0 and math.isfinite(n)])
        whole = all(place == int(place) for places, _ in drawn for place in places)
        if whole and not self.log_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(
            loc="outside lower center", frameon=False, ncols=2 if len(self.series) > 3 else 1
        )

    def points(self, name: str) -> Points:
        """The places and values of a series."""
        found = self.series[name]
        return found if isinstance(found, tuple) else (range(1, len(found) + 1), found)


@dataclass(frozen=True)
class Bars(Picture):
    """How many times as fast fusedrnn is, a bar each; a line at 1.

    Args:
        values: by what is named at the bar, from top to bottom.
    """

    values: Mapping[str, float]
    x: str = "torch.nn's time / fusedrnn's"

    def draw(self, figure: Figure, axes: Axes) -> None:
        names = list(self.values)
        bars = axes.barh(names, [self.values[name] for name in names], height=0.6)
        axes.bar_label(bars, fmt="%.2fx", padding=4)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xlabel=self.x, xlim=(0, 1.15 * max(self.values.values())))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")


def readable(charts: Iterable[Chart]) -> list[Chart]:
    """The charts as they are drawn: without curves of too few epochs, and each that has more lines
    than `MOST` in parts; lines of one colour that follow each other stay together."""
    found = []
    for chart in charts:
        kept = [n for n, s in chart.series.items() if isinstance(s, tuple) or len(s) >= FEWEST]
        for number, names in enumerate(_parts(chart, kept), 1):
            suffix = f"{chart.suffix}-{number}" if number > 1 else chart.suffix
            series = {name: chart.series[name] for name in names}
            found.append(replace(chart, suffix=suffix, series=series))
    return found


def _parts(chart: Chart, names: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    for _, group in groupby(names, lambda name: chart.styles.get(name, name)[:2]):
        together = list(group)
        if parts and len(parts[-1]) + len(together) <= MOST:
            parts[-1] += together
        else:
            parts += [together[at : at + MOST] for at in range(0, len(together), MOST)]
    return parts


def _decimal(axis: Any, numbers: Sequence[float]) -> None:
    """A logarithmic `axis` over `numbers`; decimal ticks where it spans few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if not numbers or max(numbers) >= 10**DECADES * min(numbers):
        return
    few = max(numbers) < 5 * min(numbers)
    plain, decades = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]), LogLocator(subs=(1, 2, 5))
    axis.set_major_locator(plain if few else decades)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
