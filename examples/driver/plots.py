"""The charts of the systems: lines in one pair of axes, written as a PNG.

Drawn on an Agg canvas of its own: neither a display nor matplotlib's global state is involved.
A file made again from the same figures has the same bytes (matplotlib's version is left out of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.data.fetch import replacing
from examples.driver.errors import WorkloadError

FEW = 20  # with fewer points, each is marked

Points = tuple[Sequence[float], Sequence[float]]  # places and the values there, of one length


@dataclass(frozen=True)
class Chart:
    """Every series' values over its places, with a legend.

    Args:
        suffix: of the file's name, after that of the results.
        caption: a sentence that stands below it.
        series: by the name in the legend; values without places are of epochs 1, 2, ...
        x, y: what stands at the axes; ticks of an `x` of whole places are whole.
        log_y: a logarithmic axis; what is not positive is then left out.
        styles: matplotlib's format of a series: "--" dashed, "C1:" dotted in the second colour;
            when not given, solid in the next colour.
        errors: a deviation for each point of a series, drawn as a bar.
    """

    suffix: str
    caption: str
    title: str
    y: str
    series: Mapping[str, list[float] | Points]
    x: str = "epoch"
    log_y: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def path(self, stem: Path) -> Path:
        """Its file: ``runs/imdb-torch`` and ``-accuracy`` give ``runs/imdb-torch-accuracy.png``."""
        return stem.with_name(f"{stem.name}{self.suffix}.png")

    def write(self, path: Path, prefix: str = "") -> None:
        """Draws it into `path`, with `prefix` before the title."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise WorkloadError(
                f"the plot needs matplotlib: {error}; pip install .[bench]"
            ) from error
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        whole = True  # the places of all points
        for name, points in self.series.items():
            counted = range(1, len(points) + 1)
            places, values = points if isinstance(points, tuple) else (counted, points)
            whole = whole and all(place == int(place) for place in places)
            marker = "o" if len(values) < FEW else ""
            style = self.styles.get(name, "-")
            (line,) = axes.plot(places, values, style, marker=marker, markersize=4, label=name)
            if name in self.errors:
                bars: Any = {
                    "fmt": "none",
                    "ecolor": line.get_color(),
                    "elinewidth": 1,
                    "capsize": 2,
                }
                axes.errorbar(places, values, yerr=self.errors[name], **bars)
        axes.set(xlabel=self.x, ylabel=self.y, title=prefix + self.title)
        axes.set_yscale("log" if self.log_y else "linear")
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        many = len(self.series) > 6
        axes.legend(frameon=False, fontsize="small" if many else "medium", ncols=2 if many else 1)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
