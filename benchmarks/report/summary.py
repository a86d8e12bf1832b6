"""What ends a benchmark run in the terminal: every case, the means, the losses. Cases beside
something else than torch.nn's same call are listed, and count in no mean."""

from __future__ import annotations

import statistics

from benchmarks.report.figures import columns, geometric_mean, milliseconds, times
from benchmarks.results import GRID, Run

NOISY = 0.08  # on an idle machine the median is 0.01


def verdict(run: Run) -> list[str]:
    """The geometric means, and how many cases are lost."""
    training = [r.ratio for r in run.records if r.step != "inference"]
    inference = [r.ratio for r in run.records if r.step == "inference"]
    parts = [
        f"{name} {times(geometric_mean(ratios))} ({len(ratios)})"
        for name, ratios in (("training", training), ("inference", inference))
        if ratios
    ]
    everything = geometric_mean(r.ratio for r in run.records)
    level = sum(record.flag == "level" for record in run.losses)
    losses = f"slower than torch.nn: {len(run.losses)} of {len(run.records)}"
    losses += f", {level} of them within noise" if level else ""
    return [f"geometric mean {times(everything)}: {', '.join(parts)}", losses]


def sentences(run: Run) -> list[str]:
    """The verdict as a page has it."""
    return [f"{line[0].upper()}{line[1:]}." for line in verdict(run)]


def summary(run: Run) -> list[str]:
    """The lines that end a benchmark run."""
    threads = "mode" if run.gpu else "threads"
    head = ("case", threads, "ours ms", "torch ms", "ratio", "±", "GFLOP/s", "of peak", "")
    rows = [head] + [
        (
            record.name,
            record.how,
            milliseconds(record.ours_ms),
            milliseconds(record.torch_ms),
            times(record.ratio),
            f"{record.noise:.0%}",
            f"{record.gflops:.1f}",
            run.share(record),
            record.flag,
        )
        for record in (*run.records, *run.besides)
    ]
    peaks = ", ".join(f"{v:.0f} GFLOP/s on {k}" for k, v in sorted(run.peak_gflops.items()))
    scatter = statistics.median(record.noise for record in (*run.records, *run.besides))
    warning = f"noisy: ratios are known to ±{scatter:.0%} only (median); is the machine busy?"
    noisy = [warning] if scatter > NOISY else []
    losses = [f"  {times(r.ratio)} ±{r.noise:.0%} {r.name} {r.mode}".rstrip() for r in run.losses]
    head_lines = [run.where, *([f"FMA peak: {peaks} thread(s)"] if peaks else []), ""]
    aims = on_gpu(run) if run.gpu else []
    means = ["", *verdict(run), *losses] if run.records else []
    return [*head_lines, *columns(rows), *means, *noisy, *aims]


def on_gpu(run: Run) -> list[str]:
    """What a GPU run says besides: targets, errors against float64, time a step, cases left out."""
    lines = [
        f"{'met' if r.ratio >= r.target else 'MISSED'}: {times(r.ratio)} of {r.target:g}x, "
        f"{r.name} {r.mode}"
        for r in run.records
        if r.target and r.group != GRID
    ]
    aimed = [r for r in run.records if r.target and r.group == GRID]
    short = [r for r in aimed if r.ratio < r.target and r.flag == "slower"]
    lines += [f"grid: {len(short)} of {len(aimed)} shapes below their target"] if aimed else []
    checked = [r for r in run.records if r.allowed_error]
    wrong = [r for r in checked if r.allowed_error > 1]
    lines.append(
        f"errors against float64: {len(wrong)} of {len(checked)} cases beyond twice torch.nn's"
    )
    lines += [
        f"  {r.ours_error:.2e}, torch.nn {r.torch_error:.2e}: {r.name} {r.mode}" for r in wrong
    ]
    eager = [r for r in run.records if r.ours_host_us]
    if eager:
        ours, theirs = (
            statistics.median(getattr(r, name) for r in eager)
            for name in ("ours_host_us", "torch_host_us")
        )
        lines.append(f"host time a call, median: {ours:.0f} us, torch.nn {theirs:.0f} us")
    lines += [found.line for found in run.recurrences]
    lines += [f"left out: {case}" for case in run.left_out]
    return ["", *lines]
