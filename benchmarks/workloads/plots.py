"""One chart per run of a workload: a curve per model, written as a PNG.

Drawn on an Agg canvas of its own: neither a display nor matplotlib's global state is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.fetch import replacing


def curves(
    path: Path, series: Mapping[str, Sequence[float]], *, title: str, y: str, log: bool = False
) -> None:
    """Writes `path`: every series over epochs 1, 2, ...; the axis `y` logarithmic with `log`.

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
    for name, values in series.items():
        marker = "o" if len(values) < 20 else ""
        axes.plot(range(1, len(values) + 1), values, marker=marker, label=name)
    axes.set(xlabel="epoch", ylabel=y, title=title, yscale="log" if log else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
