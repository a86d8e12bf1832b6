"""The chart of a benchmark run: every case's ratio, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.report import GRID, Record, Run, geometric_mean


def chart(run: Run, path: Path, headlines: bool = False) -> None:
    """Draws each model's ratios, training and inference, on one row; right of 1 ours is faster.

    ``headlines``: only the cases of README's table, on the most threads; the mean is of all.
    """
    rows: dict[str, list[tuple[str, list[Record]]]] = {}  # group -> (label, records)
    shown = run.headlines if headlines else run.records
    threads = sorted({record.threads for record in shown})
    for record in shown:
        shape = "all shapes" if record.group == GRID else record.shape
        source = "  synthetic data" if record.data == "synthetic" else ""
        counted = f"  {record.threads} thr" if len(threads) > 1 else ""
        counted += f"  {record.precision} {record.mode}" if record.mode else ""
        label = f"{record.cell}  {shape}{source}{counted}"
        group = rows.setdefault(record.group, [])
        if label not in dict(group):
            group.append((label, []))
        dict(group)[label].append(record)

    ink, soft, faint = "#1f2933", "#52606d", "#e4e7eb"
    looks = {True: ("inference", "D", 4.2, "#e8833a"), False: ("training", "o", 5.4, "#1f6feb")}
    height = sum(len(group) + 1.5 for group in rows.values())
    figure = Figure(figsize=(8.6, 0.205 * height + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, marker, size, color in reversed(looks.values()):
        axes.plot([], [], marker, color=color, markersize=size, label=name)
    y, ticks, labels = 0.0, [], []
    for name, group in rows.items():
        axes.annotate(
            name, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), va="center",
            textcoords="offset points", ha="right", color=ink, weight="bold", fontsize=8.5,
        )  # fmt: skip
        for label, records in group:
            y += 1
            ticks.append(y)
            labels.append(label)
            axes.axhline(y, color=faint, linewidth=0.7, zorder=0)
            for record in records:
                _, marker, size, color = looks[record.step == "inference"]
                alpha = 0.5 if record.group == GRID else 1.0
                if record.group != GRID:
                    quartiles = [record.ratio_q1, record.ratio_q3]
                    axes.plot(quartiles, [y, y], color=color, linewidth=2.4, alpha=0.35, zorder=2)
                axes.plot(
                    record.ratio, y, marker, color=color, markersize=size, alpha=alpha, zorder=3,
                    markeredgecolor="white", markeredgewidth=0.5,
                )  # fmt: skip
        y += 1.5
    ratios = [record.ratio for record in shown]
    low, high = min(0.8, 0.9 * min(ratios)), max(2.2, 1.15 * max(ratios))
    mean = geometric_mean(record.ratio for record in run.records)
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(y - 0.9, -0.9))
    steps = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0, labelsize=7.5, colors=ink)
    axes.tick_params(axis="x", labelsize=8, colors=ink, top=True, labeltop=True, length=2)
    axes.spines[:].set_visible(False)
    axes.axvspan(low, 1, color="#fdecea", zorder=-1)
    axes.axvline(1, color=ink, linewidth=1.1, zorder=1)
    axes.axvline(mean, color=soft, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    mean_of = f"geometric mean of {len(run.records)} cases" if headlines else "geometric mean"
    for x, note, side in ((1, "slower", "right"), (mean, f"{mean_of} {mean:.2f}×", "left")):
        axes.annotate(
            note, (x, 0), xytext=(-4 if side == "right" else 4, 0), va="center", ha=side,
            textcoords="offset points", color=soft, fontsize=7.5,
        )  # fmt: skip
    axes.set_xlabel(
        "torch.nn's time / ours; bars span the middle half of the rounds", fontsize=8, color=soft
    )
    axes.set_title(
        "Speed beside torch.nn", loc="left", weight="bold", color=ink, fontsize=12, pad=46
    )
    device, _, software = run.where.partition(", torch")
    axes.annotate(
        f"{device}\ntorch{software}", (0, 1),
        xycoords="axes fraction", xytext=(0, 21), textcoords="offset points", fontsize=7.5,
        color=soft,
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=5.6, frameon=False, fontsize=8,
        handletextpad=0.1, labelcolor=ink, borderpad=0, ncols=2, columnspacing=1,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
