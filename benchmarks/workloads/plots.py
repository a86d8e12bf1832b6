"""The charts of the workloads: lines in one pair of axes, written as a PNG.

Drawn on an Agg canvas of its own: neither a display nor matplotlib's global state is involved.
A file made again from the same figures has the same bytes (matplotlib's version is left out of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.fetch import replacing

FEW = 20  # with fewer points, each is marked


def curves(
    path: Path,
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str,
    log: bool = False,
    styles: Mapping[str, str] | None = None,
) -> None:
    """Writes `path`: every series over epochs 1, 2, ...; the axis `y` logarithmic with `log`.

    Raises:
        WorkloadError: matplotlib is absent, or the file cannot be written.
    """
    points = {name: (range(1, len(values) + 1), values) for name, values in series.items()}
    lines(path, points, title=title, x="epoch", y=y, log_y=log, styles=styles)


def lines(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_y: bool = False,
    log_x: bool = False,
    styles: Mapping[str, str] | None = None,
) -> None:
    """Writes `path`: every series' values over its places, with a legend.

    Args:
        series: (places, values), of one length, by the name in the legend.
        x, y: what stands at the axes; ticks of an `x` of whole places are whole.
        log_y, log_x: logarithmic axes; what is not positive is then left out.
        styles: matplotlib's format of a series: "--" dashed, "C1:" dotted in the second colour;
            when not given, solid in the next colour.
    Raises:
        WorkloadError: matplotlib is absent, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise WorkloadError(f"the plot needs matplotlib: {error}; pip install .[bench]") from error
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (places, values) in series.items():
        marker = "o" if len(values) < FEW else ""
        style = (styles or {}).get(name, "-")
        axes.plot(places, values, style, marker=marker, markersize=4, label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.set_yscale("log" if log_y else "linear")
    axes.set_xscale("log" if log_x else "linear")
    if not log_x and all(place == int(place) for places, _ in series.values() for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    many = len(series) > 6
    axes.legend(frameon=False, fontsize="small" if many else "medium", ncols=2 if many else 1)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
