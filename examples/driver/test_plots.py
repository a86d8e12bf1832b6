"""The pictures: how many lines, which ticks, where the legend is, and what is told apart."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.driver.errors import WorkloadError
from examples.driver.plots import Bars, Chart, Picture, readable


def test_a_plots_name_goes_on_where_the_stem_ends() -> None:
    chart = Chart("-loss", "", "t", "y", {})
    assert chart.path(Path("runs/imdb.v2")) == Path("runs/imdb.v2-loss.png")


def test_the_same_lines_give_the_same_file_and_others_another(tmp_path: Path) -> None:
    files: list[bytes] = []
    for last in (1.0, 1.0, 1.5):
        lines = {"a": ([1, 2, 3], [3.0, 2.0, last])}
        Chart("", "", "t", "y", lines).write(tmp_path / "p.png")
        files.append((tmp_path / "p.png").read_bytes())
    assert files[0] == files[1] != files[2]
    assert files[0].startswith(b"\x89PNG")


def test_logarithmic_axes_take_what_is_not_positive(tmp_path: Path) -> None:
    chart = Chart("", "", "t", "y", {"a": [1.0, 0.0, math.nan]}, log_y=True)
    chart.write(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size


def test_without_matplotlib_a_plot_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(WorkloadError, match=r"pip install \.\[bench\]"):
        Chart("", "", "t", "y", {"a": [1.0]}).write(tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def drawn(charts: list[Chart]) -> list[tuple[str, list[str]]]:
    return [(chart.suffix, list(chart.series)) for chart in readable(charts)]


def test_a_picture_has_at_most_six_lines_and_keeps_those_of_one_colour_together() -> None:
    curve = [3.0, 2.0, 1.0]
    series = {f"{cell} {impl}": curve for cell in "abcdefg" for impl in ("fusedrnn", "torch")}
    styles = {name: f"C{i // 2}{'-' if i % 2 == 0 else '--'}" for i, name in enumerate(series)}
    chart = Chart("-loss", "", "t", "y", series, styles=styles)
    names = list(series)
    assert drawn([chart]) == [
        ("-loss", names[:6]),
        ("-loss-2", names[6:12]),
        ("-loss-3", names[12:]),
    ]
    unstyled = Chart("", "", "t", "y", {str(i): curve for i in range(8)})
    assert drawn([unstyled]) == [("", list("012345")), ("-2", list("67"))]


def test_two_epochs_are_no_curve_and_two_places_are() -> None:
    chart = Chart("", "", "t", "y", {"short": [2.0, 1.0], "level": ([1, 2], [1.0, 1.0])})
    assert drawn([chart]) == [("", ["level"])]
    assert drawn([Chart("", "", "t", "y", {"short": [2.0, 1.0]})]) == []


def axes_of(chart: Picture) -> Axes:
    """The axes that it draws."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    chart.draw(figure, axes)
    figure.canvas.draw()
    return axes


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.1, 4.0, 28.0], {"1", "2", "5", "10", "20", "50"}),
        ([1.0, 1.1, 1.3], {"1", "1.05", "1.1", "1.15", "1.2", "1.25", "1.3", "0.95", "1.35"}),
    ],
)
def test_a_log_axis_of_few_decades_has_decimal_ticks(values: list[float], ticks: set[str]) -> None:
    axes = axes_of(Chart("", "", "t", "y", {"a": values}, log_y=True))
    low, high = axes.get_ylim()
    shown = {
        label.get_text()
        for label in axes.get_yticklabels()
        if low <= float(label.get_text()) <= high
    }
    assert len(shown) > 2
    assert shown <= ticks


def test_lines_that_coincide_are_both_seen_and_the_legend_lies_below_the_axes() -> None:
    styles = {"ours": "C0-", "theirs": "C0--", "alone": "C1-"}
    series = {name: [3.0, 2.0, 1.0] for name in styles}
    axes = axes_of(Chart("", "", "t", "y", series, styles=styles))
    ours, theirs, alone = (line for line in axes.lines if np.size(line.get_xdata()) == 3)
    assert ours.get_linewidth() > 2 * theirs.get_linewidth() == 2 * alone.get_linewidth()
    assert (ours.get_linestyle(), theirs.get_linestyle()) == ("-", "--")
    (legend,) = axes.figure.legends
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0


@pytest.mark.parametrize("count", [4, 30])
def test_deviations_are_bars_of_few_points_and_a_band_of_many(count: int) -> None:
    curve = [float(i) for i in range(count)]
    chart = Chart("", "", "t", "y", {"a": curve}, errors={"a": [0.5] * count})
    axes = axes_of(chart)
    heights = [path.get_extents().height for c in axes.collections for path in c.get_paths()]
    assert heights
    assert min(heights) == pytest.approx(1.0 if count == 4 else count - 0.5)


def test_bars_name_what_they_show(tmp_path: Path) -> None:
    bars = Bars("", "", "t", {"a": 2.0, "b": 0.5})
    axes = axes_of(bars)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert {"2.00x", "0.50x"} <= {text.get_text() for text in axes.texts}
    bars.write(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
