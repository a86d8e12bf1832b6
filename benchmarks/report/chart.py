"""The chart of a benchmark run: every case's ratio, drawn with matplotlib.

python -m benchmarks chart RUN.jsonl CHART.png [--headlines]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks import options
from benchmarks.report.figures import geometric_mean
from benchmarks.results import GRID, Record, Run

INK, SOFT, FAINT = "#1f2933", "#52606d", "#e4e7eb"
LOOKS = {True: ("inference", "D", 4.2, "#e8833a"), False: ("training", "o", 5.4, "#1f6feb")}
BETWEEN = 1.5  # rows of space, a group's name in it
STEPS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)

Groups = dict[str, dict[str, list[Record]]]  # group -> label -> records


def grouped(shown: Sequence[Record]) -> Groups:
    """The records of each row: training and inference of one model."""
    groups: Groups = {}
    several = len({record.threads for record in shown}) > 1
    for record in shown:
        shape = "all shapes" if record.group == GRID else record.shape
        source = "  synthetic data" if record.data == "synthetic" else ""
        counted = f"  {record.threads} thr" if several else ""
        counted += f"  {record.precision} {record.mode}" if record.mode else ""
        label = f"{record.cell}  {shape}{source}{counted}"
        groups.setdefault(record.group, {}).setdefault(label, []).append(record)
    return groups


def draw_record(axes: Axes, record: Record, y: float) -> None:
    _, marker, size, color = LOOKS[record.step == "inference"]
    alpha = 0.5 if record.group == GRID else 1.0
    if record.group != GRID:
        quartiles = [record.ratio_q1, record.ratio_q3]
        axes.plot(quartiles, [y, y], color=color, linewidth=2.4, alpha=0.35, zorder=2)
    axes.plot(
        record.ratio, y, marker, color=color, markersize=size, alpha=alpha, zorder=3,
        markeredgecolor="white", markeredgewidth=0.5,
    )  # fmt: skip


def draw_rows(axes: Axes, groups: Groups) -> float:
    """Draws and labels every row; where the next one would be."""
    y, ticks, labels = 0.0, [], []
    for name, group in groups.items():
        axes.annotate(
            name, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), va="center",
            textcoords="offset points", ha="right", color=INK, weight="bold", fontsize=8.5,
        )  # fmt: skip
        for label, records in group.items():
            y += 1
            ticks.append(y)
            labels.append(label)
            axes.axhline(y, color=FAINT, linewidth=0.7, zorder=0)
            for record in records:
                draw_record(axes, record, y)
        y += BETWEEN
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0, labelsize=7.5, colors=INK)
    return y


def draw_scale(axes: Axes, ratios: Sequence[float]) -> None:
    """The logarithmic axis of the ratios, and where torch.nn is faster."""
    low, high = min(0.8, 0.9 * min(ratios)), max(2.2, 1.15 * max(ratios))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks([step for step in STEPS if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8, colors=INK, top=True, labeltop=True, length=2)
    axes.axvspan(low, 1, color="#fdecea", zorder=-1)
    axes.axvline(1, color=INK, linewidth=1.1, zorder=1)


def draw_words(axes: Axes, run: Run, headlines: bool) -> None:
    """The mean and what is said around the chart."""
    mean = geometric_mean(record.ratio for record in run.records)
    axes.axvline(mean, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    mean_of = f"geometric mean of {len(run.records)} cases" if headlines else "geometric mean"
    for x, note, side in ((1, "slower", "right"), (mean, f"{mean_of} {mean:.2f}×", "left")):
        axes.annotate(
            note, (x, 0), xytext=(-4 if side == "right" else 4, 0), va="center", ha=side,
            textcoords="offset points", color=SOFT, fontsize=7.5,
        )  # fmt: skip
    axes.set_xlabel(
        "torch.nn's time / ours; bars span the middle half of the rounds", fontsize=8, color=SOFT
    )
    axes.set_title(
        "Speed beside torch.nn", loc="left", weight="bold", color=INK, fontsize=12, pad=46
    )
    device, _, software = run.where.partition(", torch")
    axes.annotate(
        f"{device}\ntorch{software}", (0, 1),
        xycoords="axes fraction", xytext=(0, 21), textcoords="offset points", fontsize=7.5,
        color=SOFT,
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=5.6, frameon=False, fontsize=8,
        handletextpad=0.1, labelcolor=INK, borderpad=0, ncols=2, columnspacing=1,
    )  # fmt: skip


def chart(run: Run, path: Path, headlines: bool = False) -> None:
    """Draws each model's ratios, training and inference, on one row; right of 1 ours is faster.

    ``headlines``: only the cases of README's table, on the most threads; the mean is of all.
    """
    shown = run.headlines if headlines else run.records
    groups = grouped(shown)
    height = sum(len(group) + BETWEEN for group in groups.values())
    figure = Figure(figsize=(8.6, 0.205 * height + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, marker, size, color in reversed(LOOKS.values()):
        axes.plot([], [], marker, color=color, markersize=size, label=name)
    end = draw_rows(axes, groups)
    axes.set_ylim(end - 0.9, -0.9)
    draw_scale(axes, [record.ratio for record in shown])
    axes.spines[:].set_visible(False)
    draw_words(axes, run, headlines)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def main(argv: Sequence[str]) -> int:
    top = options.parser("chart", "PNG of the ratio of every case.")
    top.add_argument("run", type=Path)
    top.add_argument("png", type=Path)
    top.add_argument("--headlines", action="store_true", help="README's: the headline cases only")
    arguments = top.parse_args(argv)
    chart(Run.load(arguments.run), arguments.png, arguments.headlines)
    return 0
