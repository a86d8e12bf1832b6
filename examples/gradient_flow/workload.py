"""Gradient flow as a workload: tables, remarks and the plots of vanishing gradients.

Norms and losses of the two implementations differ by rounding, of which a rounded file would show
nothing: the second one's records say how far they are from the first one's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from examples import data
from examples.driver import results
from examples.driver.errors import Diverged, WorkloadError
from examples.driver.layers import CELLS, IMPLEMENTATIONS, NAMES
from examples.driver.options import sized
from examples.driver.plots import Chart, Points
from examples.driver.tables import Summary, Table, ratio
from examples.driver.training import Epoch, Run, seconds_per_epoch
from examples.driver.workload import Claim, Group, Job, Record, Say, Workload
from examples.gradient_flow import model
from examples.gradient_flow.gates import STARTS, label, models
from examples.gradient_flow.model import CLIPPING, CONFIG, Norms, distances

SHOWN = (10, 50, 100, 200, 399)  # steps before the last, in the tables
FAR, FAR_LOSS = 1e-9, 1e-3  # differences beyond these are named: norms in float64, trained losses
KEPT = 1e3  # what grows or shrinks by less than this, over all steps, is not called lost
ROUNDING = "; a difference of rounding is multiplied from step to step as the gradient is."

TEXT = (
    "A recurrent layer learns what happened at step t from the gradient of the loss with "
    "respect to its state h_t, and that gradient comes back from the last step through every "
    "step between. Each step multiplies it: by less than one it vanishes, by more it explodes. "
    "In an RNN the factor is the recurrent matrix times the slope of tanh. An LSTM has a second "
    "state c, a sum: c_t = f_t c_(t-1) + i_t g_t, and along this sum, the additive path, the "
    "factor is the forget gate f alone; what comes back through h and the recurrent weights adds "
    "to it. The gate is open as far as its bias says: torch.nn draws it near 0, so that f is about "
    "0.5 and the gradient is soon lost; a bias of 1 gives about 0.73, a bias of 5 about 0.993, and "
    "0.993 to the power of 400 is still 0.06. Clipping divides all gradients by one number when "
    "their norm is too large: it keeps an explosion from destroying the weights, and it cannot "
    "bring back what has vanished. The task here is the next character of The Time Machine; a "
    "large start is recurrent weights three times torch.nn's."
)


class GradientFlow(Workload):
    name = "gradient_flow"
    about = "Measure how far a gradient reaches back in RNN, GRU and LSTM."
    example = "gradient_flow --steps 100 --cell lstm"
    sizes = CONFIG
    cells = CELLS
    epochs = CONFIG.epochs
    unit = "tokens"
    every = CONFIG.epochs  # the last alone is said

    def options(self, add: Callable[..., Any]) -> None:
        add("--steps", type=_steps, help=f"T, measured over; {CONFIG.steps} at full size")

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, CONFIG, model.QUICK)
        config = replace(config, steps=args.steps or config.steps)
        text = data.time_machine(args.data_dir, args.synthetic).to(args.device)
        x, y = model.windows(text.tokens, config)
        return Job(args, config, (text, x, y), text.source, [str(text)])

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        initial = job.extra.setdefault("initial", [])
        each = product(args.seed, models(args.cell, model.SHOWN_STARTS), CLIPPING)
        for seed, (cell, start), clipping in each:
            if clipping == "free" and start != "large":  # few updates of the others are clipped
                continue
            about = (start, clipping, seed, job.data[0], config)
            runs = [model.new_run(cell, impl, *about) for impl in args.impl]
            if clipping == "clipped":  # both begin with the same model
                initial += self._initial(job, runs)
            yield Group(runs, config.epochs)

    def _initial(self, job: Job, runs: Sequence[Run]) -> list[dict[str, Any]]:
        _, x, y = job.data
        found: list[dict[str, Any]] = []
        for run in runs:
            cell, start = run.fields["cell"], run.fields["start"]
            norms = model.measured(run.model, x, y)
            if norms is None:
                raise WorkloadError(
                    f"the gradient of the {cell} with a {start} start overflows over "
                    f"{job.config.steps} steps: lower --steps"
                )
            apart = {"apart": difference(found[0]["norms"], norms)} if found else {}
            about = {"cell": cell, "start": start, "seed": run.seed, "impl": run.impl}
            found.append({**about, "norms": norms, **apart})
        return found

    def run(self, group: Group, fit: Callable[[Sequence[Run]], None], say: Say) -> None:
        """Without clipping a loss may become nan: that is then the result. Such runs are trained
        one by one, so that none ends another, and their times do not compare."""
        if CLIPPING[group.runs[0].fields["clipping"]]:
            return fit(group.runs)
        for run in group.runs:
            _alone(run, fit, say)
        return None

    def told(self, run: Run, number: int, epoch: Epoch, final: int) -> str:
        largest = max(e["largest_norm"] for e in run.history)
        said = f"{run.name}, {run.impl}: loss {epoch.loss:.4f}, largest norm {largest:.3g}"
        return said if number == final else ""

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        _, x, y = job.data
        first = group.runs[0]
        if len(run.history) < group.epochs:
            return {"trained": None}
        found: dict[str, Any] = {"trained": model.measured(run.model, x, y)}
        if run is not first and len(first.history) == group.epochs:
            found["apart"] = abs(run.history[-1].loss - first.history[-1].loss)
        return found

    def summarise(self, record: Record) -> Summary:
        T = record["config"]["steps"]
        both = [
            ", ".join(
                f"{label(r['cell'], r['start'])} {r['norms']['h'][-1] / r['norms']['h'][0]:.0e}"
                for r in _first(record, "initial", impl)
                if r["start"] in ("usual", "forget5")
            )
            for impl in IMPLEMENTATIONS
        ]
        clipped = _ratio([r for r in record["runs"] if r["clipping"] == "clipped"])
        return Summary(
            title="Gradient flow",
            text=TEXT,
            tables=[flow_table(record), *path_table(record), training_table(record)],
            remarks=[
                *_remarks_before(record),
                *_remarks_path(record),
                *_remarks_free(record),
                *_remarks_apart(record),
            ],
            headline=[(f"Gradient flow: norm at h_1 / norm at h_{T}", both[0], both[1], clipped)],
        )

    def claims(self, record: Record) -> list[Claim]:
        T = record["config"]["steps"]
        far = {(r["cell"], r["start"]): r["norms"]["h"] for r in _first(record, "initial")}
        shown = {key: f"{h[-1] / h[0]:.0e}" for key, h in far.items()}
        usual = ", ".join(f"{c.upper()} {v}" for (c, s), v in shown.items() if s == "usual")
        left = f"share that is left at h_1 of {T}: {usual}"
        rows = [("a gradient vanishes over many steps", left)]
        opened = [f"{label(*key)} {v}" for key, v in shown.items() if key[1].startswith("forget")]
        if opened:
            claim = "an LSTM carries it, by the additive path of c: where the forget gate is open"
            rows.append((claim, ", ".join(opened)))
        if large := [f"{label(*key)} {v}" for key, v in shown.items() if key[1] == "large"]:
            rows.append(("a gradient explodes where recurrent weights are large", ", ".join(large)))
        return rows

    def draw(self, record: Record) -> list[Chart]:
        T = record["config"]["steps"]
        initial = _first(record, "initial")
        reached = "Norm of dL/dh_t relative to the last step's, before training."
        large = "Before training, recurrent weights three times torch.nn's."
        again = "The same after training with clipping."
        h, x = "norm of dL/dh_t, share of the last", "steps before the last, T - t"
        usual = {_label(r): r["norms"]["h"] for r in initial if r["start"] != "large"}
        big = {_label(r): r["norms"]["h"] for r in initial if r["start"] == "large"}
        trained = {
            _label(r): r["trained"]["h"]
            for r in _first(record, "runs")
            if r["trained"] and r["start"] != "large"
        }
        title = "How much of the gradient reaches back"
        of = [
            ("", reached, title, usual),
            (
                "-large",
                large,
                "Large recurrent weights: what grows, what vanishes",
                big,
            ),
            ("-trained", again, f"{title}, trained", trained),
        ]
        charts = [
            Chart(suffix, caption, words, h, _shares(T, norms), x, log_y=True)
            for suffix, caption, words, norms in of
        ]
        return [*charts, *_path_chart(record), _clip_chart(record)]


WORKLOAD = GradientFlow()


def _alone(run: Run, fit: Callable[[Sequence[Run]], None], say: Say) -> None:
    try:
        fit([run])
    except Diverged as error:
        say(f"{run.name}, {run.impl}: {str(error).partition(' (')[0]}")


def _steps(text: str) -> int:
    if int(text) < 3:
        raise argparse.ArgumentTypeError(f"must be at least 3, got {text}")
    return int(text)


def difference(a: Norms, b: Norms) -> float:
    """The largest relative difference of the norms of one model under two implementations."""
    pairs = [pair for state in a for pair in zip(a[state], b[state], strict=True) if max(pair)]
    return max((abs(x - y) / max(x, y) for x, y in pairs), default=0.0)


def points(T: int, norms: Sequence[float]) -> Points:
    """(steps before the last, norms): c's begin one step before it."""
    return distances(T)[-len(norms) :], norms


def _first(record: Record, kind: str, impl: str | None = None) -> list[Record]:
    """The entries of the first seed, and of the first implementation when none is named."""
    wanted = impl or record["options"]["impl"][0]
    return [r for r in results.first_seed(record, kind) if r["impl"] == wanted]


def _label(r: Record) -> str:
    return label(r["cell"], r["start"])


def _gated(record: Record) -> list[Record]:
    """The initial LSTMs, but for the large start."""
    initial = _first(record, "initial")
    return [r for r in initial if "c" in r["norms"] and r["start"] != "large"]


def _shares(T: int, series: Mapping[str, Sequence[float]]) -> dict[str, Points]:
    """Each norm over the first of its series, the one nearest to the end."""
    return {name: points(T, [norm / n[0] for norm in n]) for name, n in series.items()}


def _path_chart(record: Record) -> list[Chart]:
    """dL/dc beside the product of forget gates; none without an LSTM."""
    series, styles = {}, {}
    for i, r in enumerate(_gated(record)):
        bias = STARTS[r["start"]].forget or 0
        for state, line, name in (("path", "-", "product of f"), ("c", "--", "dL/dc_t")):
            series[f"bias {bias:g}, {name}"] = r["norms"][state]
            styles[f"bias {bias:g}, {name}"] = f"C{i}{line}"
    caption = "An LSTM before training: dashed dL/dc_t, solid what the forget gates alone let back."
    T, y = record["config"]["steps"], "norm, share of that at c_(T-1)"
    words = ("The product of forget gates, and c's whole gradient", y, _shares(T, series))
    x = "steps before the last, T - t"
    return [Chart("-path", caption, *words, x, log_y=True, styles=styles)] if series else []


def _clip_chart(record: Record) -> Chart:
    """What clipping meets with a large start: of all cells, and of the first without clipping."""
    config, cells = record["config"], record["options"]["cell"]
    norms: dict[str, list[float]] = {}
    styles = {"clipped to": "k:"}
    for r in _first(record, "runs"):
        free = r["clipping"] == "free"
        if r["start"] == "large" and r["epochs"] and (not free or r["cell"] == cells[0]):
            name = f"{r['cell'].upper()}, {r['clipping']}"
            norms[name] = [epoch["largest_norm"] for epoch in r["epochs"]]
            styles[name] = f"C{CELLS.index(r['cell'])}{'--' if free else '-'}"
    norms["clipped to"] = [config["clip"]] * config["epochs"]
    caption = "What clipping meets: the largest norm of each epoch, before it is clipped."
    words = (
        "Largest gradient of an epoch, clipped and free",
        "largest norm of the epoch",
        norms,
    )
    return Chart("-norms", caption, *words, log_y=True, styles=styles)


def factor(T: int, norms: Sequence[float]) -> float:
    """What the gradient is multiplied by from one step to the one before: the geometric mean from
    10 steps before the last (or half of a shorter T) to the first."""
    reached = dict(zip(*points(T, norms), strict=True))
    begin = min(10, (T - 1) // 2)
    near, far = reached[begin], norms[-1]
    return float((far / near) ** (1 / (T - 1 - begin))) if near else 0.0


def flow_table(record: Record) -> Table:
    """How much reaches h, `d` steps before the last, a row for each model."""
    T = record["config"]["steps"]
    shown = [d for d in SHOWN if d < T - 1] + [T - 1]
    rows: list[tuple[str, ...]] = []
    for r in _first(record, "initial"):
        norms = r["norms"]["h"]
        reached = dict(zip(*points(T, norms), strict=True))
        shares = [f"{reached[d] / norms[0]:.1e}" for d in shown]
        rows.append((_label(r), f"{factor(T, norms):.3f}", *shares))
    head = ("model", "factor per step", *(f"T - {d}" for d in shown))
    title = f"Before training: norm of dL/dh at step T - d relative to the last step's, T={T}"
    return Table(title, head, rows)


def path_table(record: Record) -> list[Table]:
    """c's gradient and the product of forget gates, a row for each LSTM; none without one."""
    T = record["config"]["steps"]
    rows: list[tuple[str, ...]] = []
    for r in _gated(record):
        c, path = r["norms"]["c"], r["norms"]["path"]
        by = (f"{factor(T, c):.3f}", f"{factor(T, path):.3f}")
        rows.append((_label(r), *by, f"{c[-1] / c[0]:.1e}", f"{path[-1] / path[0]:.1e}"))
    head = ("model", "dL/dc, factor", "product of f, factor", "dL/dc at c_1", "product of f at c_1")
    title = "The additive path before training: factor per step, and the share that reaches c_1"
    return [Table(title, head, rows)] if rows else []


def _ended(record: Record, r: Record) -> bool:
    return bool(len(r["epochs"]) == record["config"]["epochs"])


def _loss(record: Record, r: Record) -> str:
    if not _ended(record, r):
        return f"nan in epoch {len(r['epochs']) + 1}"
    return f"{r['epochs'][-1].loss:.3f}"


def _norms(r: Record) -> tuple[float, float]:
    """The largest norm of a training, and the share of its updates above the clip."""
    if not r["epochs"]:
        return math.nan, math.nan
    above = [epoch["above_clip"] for epoch in r["epochs"]]
    return max(epoch["largest_norm"] for epoch in r["epochs"]), sum(above) / len(above)


def _ratio(runs: Sequence[Record]) -> str:
    """Of the seconds per epoch, summed, where both implementations were trained in turn."""
    theirs, ours = (
        sum(seconds_per_epoch(r["epochs"]) for r in runs if r["impl"] == impl)
        for impl in ("torch", "fusedrnn")
    )
    return ratio(theirs or None, ours or None)


def training_table(record: Record) -> Table:
    """What training with and without clipping did, a row per model and clipping."""
    T = record["config"]["steps"]
    rows: list[tuple[str, ...]] = []
    for first in _first(record, "runs"):
        same = [r for r in record["runs"] if r["name"] == first["name"]]
        largest, above = _norms(first)
        norms = (f"{above:.0%}", f"{largest:.3g}") if first["epochs"] else ("-", "-")
        by = f"{factor(T, first['trained']['h']):.3f}" if first["trained"] else "-"
        speed = _ratio(same) if first["clipping"] == "clipped" else ""
        about = (_label(first), first["clipping"])
        rows.append((*about, *(_loss(record, r) for r in same), *norms, by, speed))
    losses = [f"loss, {NAMES[impl]}" for impl in record["options"]["impl"]]
    measured = ("norm above clip", "largest norm", "factor per step, trained")
    head = ("model", "training", *losses, *measured, "speed")
    return Table("Training, with the norm clipped and free", head, rows)


def _remarks_before(record: Record) -> Iterator[str]:
    T = record["config"]["steps"]
    for r in _first(record, "initial"):
        h = r["norms"]["h"]
        share = h[-1] / h[0]
        verb = "vanishes" if share < 1 / KEPT else "explodes" if share > KEPT else "reaches back"
        yield (
            f"{_label(r)}: every step back multiplies the gradient by {factor(T, h):.3f}, it "
            f"{verb}: h_1 gets {share:.1e} times what h_{T} gets."
        )


def _remarks_path(record: Record) -> Iterator[str]:
    """What the forget gates alone give of the factor of c's gradient."""
    T = record["config"]["steps"]
    for r in _gated(record):
        c, path = factor(T, r["norms"]["c"]), factor(T, r["norms"]["path"])
        change = "adds to" if c > path else "takes from"
        yield (
            f"{_label(r)}: the forget gates alone multiply c's gradient by {path:.3f} a step; the "
            f"way back through h and the recurrent weights {change} it, together {c:.3f}."
        )


def _remarks_free(record: Record) -> Iterator[str]:
    """What the norm did where it was not clipped, and where clipping had nothing to do."""
    runs = {(r["cell"], r["start"], r["clipping"]): r for r in _first(record, "runs")}
    spared = []
    for (cell, start, clipping), r in runs.items():
        (largest, above), ended = _norms(r), _ended(record, r)
        if clipping == "clipped" and not above:
            spared.append(label(cell, start))
        if clipping == "clipped" or (ended and not above):
            continue
        met = f"a norm of up to {largest:.0e} and a last loss of " if ended else ""
        twin = _loss(record, runs[cell, start, "clipped"])
        free = f"{label(cell, start)}, without clipping: {met}{_loss(record, r)}"
        yield f"{free}; the same with clipping ends at a loss of {twin}."
    if spared:
        yield f"No update was clipped for: {'; '.join(spared)}."


def _remarks_apart(record: Record) -> Iterator[str]:
    """How far the two implementations are from each other."""
    initial = [r for r in record["initial"] if "apart" in r]
    if initial:
        norms = {f"{r['cell']}-{r['start']}-seed{r['seed']}": r["apart"] for r in initial}
        start = "Before training, fusedrnn's norms and torch.nn's differ by at most "
        yield f"{start}{_widest(norms, FAR)} (relative, in float64){ROUNDING}"
    losses = {r["name"]: r["apart"] for r in record["runs"] if "apart" in r}
    if losses:
        start = "After training in float32, their losses differ by at most "
        yield f"{start}{_widest(losses, FAR_LOSS)}{ROUNDING}"


def _widest(differences: Mapping[str, float], far: float) -> str:
    """The largest of those up to `far`, and every one beyond it with its name."""
    near = max((value for value in differences.values() if value <= far), default=None)
    beyond = ", ".join(
        f"{value:.1g} in {name}" for name, value in differences.items() if value > far
    )
    return ", but by ".join(filter(None, ["" if near is None else f"{near:.1g}", beyond]))
