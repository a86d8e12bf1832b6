"""What the gradient flow's record says: tables, remarks and the plots of vanishing gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import common, data, plots, training
from benchmarks.workloads.summary import Headline, Summary, Table, plot_path, ratio

SHOWN = (10, 50, 100, 200, 399)  # steps before the last, in the tables
FAR, FAR_LOSS = 1e-9, 1e-3  # differences beyond these are named: norms in float64, trained losses
ROUNDING = "; a difference of rounding is multiplied from step to step as the gradient is."
DENSE, STRIDE = 20, 10  # every distance up to DENSE is measured, then every STRIDE-th

TEXT = (
    "A recurrent layer learns what happened at step t from the gradient of the loss with "
    "respect to its state h_t, and that gradient comes back from the last step through every "
    "step between. Each step multiplies it: by less than one it vanishes, by more it explodes, "
    "and in both cases, after some tens of steps, little is left to learn from. An LSTM and a "
    "GRU have a path on which the factor is a gate's value, which training can bring close to "
    "one; torch.nn's initial weights put it near one half. Clipping divides all gradients by "
    "one number when their norm is too large: it keeps an explosion from destroying the "
    "weights, and it cannot bring back what has vanished. The task here is the next character "
    "of The Time Machine; with recurrent weights three times torch.nn's (a large start) an RNN "
    "explodes."
)


def distances(T: int) -> list[int]:
    """The steps before the last that are measured: 0 is h_T itself, T - 1 is h_1."""
    return sorted({*range(min(DENSE, T)), *range(DENSE, T, STRIDE), T - 1})


def points(T: int, norms: Sequence[float]) -> tuple[list[int], Sequence[float]]:
    """(steps before the last, norms): c's begin one step before it."""
    return distances(T)[-len(norms) :], norms


def draw(record: dict[str, Any], stem: Path) -> None:
    """Three plots: the flow before training, after it, and the norms that clipping meets."""
    T, clip = record["config"]["steps"], record["config"]["clip"]
    colors = {cell: f"C{i}" for i, cell in enumerate(common.CELLS)}
    styles: dict[str, str] = {}
    before: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    after: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    norms: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for r in _first(record, "initial"):
        for state, values in r["norms"].items():
            name = f"{r['cell'].upper()} {state}, {r['start']} start"
            before[name] = points(T, values)
            line = ":" if state == "c" else "-" if r["start"] == "usual" else "--"
            styles[name] = colors[r["cell"]] + line
    for r in _first(record, "runs"):
        name = f"{r['cell'].upper()}, {r['start']} start, {r['clipping']}"
        line = ":" if r["clipping"] == "free" else "-" if r["start"] == "usual" else "--"
        styles[name] = colors[r["cell"]] + line
        if r["trained"]:
            after[name] = points(T, r["trained"]["h"])
        if r["start"] == "large" and r["epochs"]:
            largest = [epoch["figures"]["largest_norm"] for epoch in r["epochs"]]
            norms[name] = range(1, len(largest) + 1), largest
    norms["clipped to"] = (1, record["config"]["epochs"]), (clip, clip)
    styles["clipped to"] = "k-"
    synthetic = "synthetic | " if record["data"] == data.SYNTHETIC else ""
    title = f"{synthetic}Gradient flow, T={T}"
    for suffix, series, words in (("", before, "before training"), ("-trained", after, "trained")):
        plots.lines(
            plot_path(stem, suffix),
            series,
            title=f"{title}, {words}",
            x="steps before the last, T - t",
            y="norm of dL/dh_t",
            log_y=True,
            styles=styles,
        )
    plots.lines(
        plot_path(stem, "-norms"),
        norms,
        title=f"{synthetic}Gradients of the parameters, large start",
        x="epoch",
        y="largest norm of the epoch",
        log_y=True,
        styles=styles,
    )


def _first(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The entries of the first implementation and seed."""
    impl, seed = record["options"]["impl"][0], record["options"]["seed"][0]
    return [r for r in record[key] if r["impl"] == impl and r["seed"] == seed]


def factor(T: int, norms: Sequence[float]) -> float:
    """What the gradient is multiplied by from one step to the one before: the geometric mean from
    10 steps before the last (or half of a shorter T) to the first."""
    places, values = points(T, norms)
    begin = min(10, (T - 1) // 2)
    near, far = values[places.index(begin)], values[-1]
    return float((far / near) ** (1 / (T - 1 - begin))) if near else 0.0


def flow_table(record: dict[str, Any]) -> Table:
    """How much reaches the state `d` steps before the last, a row per cell, state and start."""
    T = record["config"]["steps"]
    shown = [d for d in SHOWN if d < T - 1] + [T - 1]
    rows = []
    for r in _first(record, "initial"):
        for state, norms in r["norms"].items():
            places, values = points(T, norms)
            reached = [f"{values[places.index(d)] / values[0]:.1e}" for d in shown]
            by = f"{factor(T, norms):.3f}"
            rows.append((r["cell"].upper(), state, r["start"], by, *reached))
    head = ("model", "state", "start", "factor per step", *(f"T - {d}" for d in shown))
    return Table(
        f"Before training: norm at step T - d relative to the last step's, T={T}", head, rows
    )


def _loss(record: dict[str, Any], r: dict[str, Any]) -> str:
    done = len(r["epochs"])
    ended = done == record["config"]["epochs"]
    return f"{r['epochs'][-1]['loss']:.3f}" if ended else f"nan in epoch {done + 1}"


def _ratio(runs: Sequence[dict[str, Any]]) -> str:
    """Of the seconds per epoch, summed, where both implementations were trained in turn."""
    seconds = {
        impl: sum(
            training.seconds_per_epoch(training.history(r)) for r in runs if r["impl"] == impl
        )
        for impl in common.IMPLEMENTATIONS
    }
    return ratio(seconds["torch"], seconds["fusedrnn"]) if all(seconds.values()) else ""


def training_table(record: dict[str, Any]) -> Table:
    """What training with and without clipping did, a row per cell, start and clipping."""
    T, impls = record["config"]["steps"], record["options"]["impl"]
    rows = []
    for first in _first(record, "runs"):
        same = [r for r in record["runs"] if r["name"] == first["name"]]
        figures = [epoch["figures"] for epoch in first["epochs"]]
        above = sum(f["above_clip"] for f in figures) / len(figures) if figures else math.nan
        largest = max((f["largest_norm"] for f in figures), default=math.nan)
        rows.append(
            (
                first["cell"].upper(),
                first["start"],
                first["clipping"],
                *(_loss(record, next(r for r in same if r["impl"] == impl)) for impl in impls),
                f"{above:.0%}" if figures else "-",
                f"{largest:.3g}" if figures else "-",
                f"{factor(T, first['trained']['h']):.3f}" if first["trained"] else "-",
                _ratio(same) if first["clipping"] == "clipped" else "",
            )
        )
    losses = [f"loss, {'torch.nn' if impl == 'torch' else impl}" for impl in impls]
    head = (
        "model",
        "start",
        "training",
        *losses,
        "norm above clip",
        "largest norm",
        "factor per step, trained",
    )
    return Table("Training, with the norm clipped and free", (*head, "speed"), rows)


def _remarks(record: dict[str, Any]) -> Iterator[str]:
    T = record["config"]["steps"]
    for r in _first(record, "initial"):
        h = r["norms"]["h"]
        by = factor(T, h)
        verb = "vanishes" if by < 1 else "explodes"
        yield (
            f"{r['cell'].upper()}, {r['start']} start: every step back multiplies the gradient by "
            f"{by:.3f}, it {verb}: h_1 gets {h[-1] / h[0]:.1e} times what h_{T} gets."
        )
    runs = _first(record, "runs")
    for r in runs:
        figures = [epoch["figures"] for epoch in r["epochs"]]
        ended = len(figures) == record["config"]["epochs"]
        if r["clipping"] == "clipped" or (ended and not any(f["above_clip"] for f in figures)):
            continue
        twin = next(
            o
            for o in runs
            if (o["cell"], o["start"], o["clipping"]) == (r["cell"], r["start"], "clipped")
        )
        largest = max((f["largest_norm"] for f in figures), default=math.nan)
        met = f"a norm of up to {largest:.0e} and a last loss of " if ended else ""
        yield (
            f"{r['cell'].upper()}, {r['start']} start, without clipping: {met}"
            f"{_loss(record, r)}; the same with clipping ends at a loss of {_loss(record, twin)}."
        )
    spared = [
        f"{r['cell'].upper()} {r['start']} start"
        for r in runs
        if r["clipping"] == "clipped" and not any(e["figures"]["above_clip"] for e in r["epochs"])
    ]
    if spared:
        yield f"No update was clipped for: {', '.join(spared)}."
    differences = _differences(record["initial"])
    if differences:
        yield (
            "Before training, fusedrnn's norms and torch.nn's differ by at most "
            f"{_widest(differences, FAR)} (relative, in float64){ROUNDING}"
        )
    losses: dict[str, list[float]] = {}
    for r in record["runs"]:
        if r["trained"]:
            losses.setdefault(r["name"], []).append(r["epochs"][-1]["loss"])
    gaps = {name: abs(both[0] - both[1]) for name, both in losses.items() if len(both) == 2}
    if gaps:
        yield (
            "After training in float32, their losses differ by at most "
            f"{_widest(gaps, FAR_LOSS)}{ROUNDING}"
        )


def _widest(differences: Mapping[str, float], far: float) -> str:
    """The largest of those up to `far`, and every one beyond it with its name."""
    near = [value for value in differences.values() if value <= far]
    beyond = [f"{value:.1g} in {name}" for name, value in differences.items() if value > far]
    parts = [*([f"{max(near):.1g}"] if near else []), *([", ".join(beyond)] if beyond else [])]
    return ", but by ".join(parts)


def _differences(initial: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest relative difference between the implementations by cell, start and seed; nothing
    when there is one implementation."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for r in initial:
        found.setdefault((r["cell"], r["start"], r["seed"]), []).append(r["norms"])
    return {
        f"{cell}-{start}-seed{seed}": max(
            (
                abs(a - b) / max(a, b)
                for state in both[0]
                for a, b in zip(both[0][state], both[1][state], strict=True)
                if max(a, b)
            ),
            default=0.0,
        )
        for (cell, start, seed), both in found.items()
        if len(both) == 2
    }


def summary(record: dict[str, Any]) -> Summary:
    """What the JSON record says."""
    T, impls = record["config"]["steps"], record["options"]["impl"]
    clipped = [r for r in record["runs"] if r["clipping"] == "clipped"]
    usual = {
        impl: ", ".join(
            f"{r['cell'].upper()} {r['norms']['h'][-1] / r['norms']['h'][0]:.0e}"
            for r in record["initial"]
            if (r["impl"], r["start"], r["seed"]) == (impl, "usual", record["options"]["seed"][0])
        )
        for impl in impls
    }
    row: Headline = (
        f"Gradient flow: norm at h_1 / norm at h_{T}",
        usual.get("fusedrnn", ""),
        usual.get("torch", ""),
        _ratio(clipped),
    )
    return Summary(
        title="Gradient flow",
        text=TEXT,
        tables=[flow_table(record), training_table(record)],
        remarks=list(_remarks(record)),
        plots=[
            ("", f"The gradient on its way back through {T} steps, before training."),
            ("-trained", "The same after training. A training that met nan has no line."),
            (
                "-norms",
                "What clipping meets: the largest norm of each epoch, before it is clipped.",
            ),
        ],
        headline=[row],
    )
