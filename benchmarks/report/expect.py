"""What speed to expect: each kind of case with its least and its largest ratio, on each machine.

A run has over a hundred cases, its reader one model. Every case belongs to one row of the table,
whose label the reader can recognise; a case that no row or two rows would take is an error, so
that none is left out unseen.

    python -m benchmarks expect RUN.jsonl... [--bfloat16 FILE.jsonl...] --page PAGE.md [--check]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import options
from benchmarks.report.bfloat16 import KIND, Measured
from benchmarks.report.figures import markdown
from benchmarks.report.place import place
from benchmarks.results import Record, Run, made, read

MARKERS = "<!-- expect:begin -->", "<!-- expect:end -->"

# These virtual machines hide their model; the pages of results/ say what they are.
MACHINES = {
    ("AMD EPYC", "avx512"): "AMD Zen 5, AVX-512",
    ("AMD EPYC", "avx2"): "AMD Zen 3, AVX2",
    ("Intel(R) Xeon(R) Processor", "avx512"): "Intel Xeon, AVX-512",
}

VANISHING = ("Reuters classifier", "training step", "200")  # group, step, T


@dataclass(frozen=True)
class Case:
    """What of a record decides its row, and its ratio: torch.nn's time / ours."""

    precision: str
    cell: str
    step: str
    shape: str
    ratio: float
    group: str = ""

    @staticmethod
    def of(record: Record) -> Case:
        r = record
        return Case(r.precision, r.cell, r.step, r.shape, r.ratio, r.group)

    @property
    def forms(self) -> list[str]:
        """The words for its shape; none for a shape that no benchmark has."""
        sizes = {word[0]: word[1:] for word in self.shape.split()}
        steps, rows = sizes.get("T", ""), sizes.get("B")
        special = [
            ("packed", ".." in steps),
            ("P", "P" in sizes),
            ("D", "D" in sizes),
            # The loss looks at the last of 200 steps only: see results/xeon/README.md.
            ("vanishing", (self.group, self.step, steps) == VANISHING),
        ]
        found = [form for form, applies in special if applies]
        if found:
            return found
        if rows == "1":
            return [{"": "cell", "1": "one step"}.get(steps, "one row")]
        return ["batch"] if steps else []


@dataclass(frozen=True)
class Row:
    """A row of the table, and the cases that belong to it."""

    label: str
    cells: tuple[str, ...]
    steps: tuple[str, ...]
    forms: tuple[str, ...]
    precision: str = "fp32"

    def takes(self, case: Case) -> bool:
        described = case.precision == self.precision and case.cell in self.cells
        return described and case.step in self.steps and any(f in self.forms for f in case.forms)


LSTM, GRU, RNN = ("LSTM",), ("GRU",), ("RNN",)
TRAINING, INFERENCE = ("fwd+bwd", "training step"), ("inference",)
BOTH = TRAINING + INFERENCE

ROWS = (
    Row("LSTM training, a batch", LSTM, TRAINING, ("batch",)),
    Row("LSTM inference, a batch", LSTM, INFERENCE, ("batch",)),
    Row("LSTM inference, one row, many steps", LSTM, INFERENCE, ("one row",)),
    Row("LSTM training, packed sequences", LSTM, TRAINING, ("packed",)),
    Row("LSTM inference, packed sequences", LSTM, INFERENCE, ("packed",)),
    Row("LSTM training, both directions", LSTM, TRAINING, ("D",)),
    Row("LSTM inference, both directions", LSTM, INFERENCE, ("D",)),
    Row("LSTM with a projection, training and inference", LSTM, BOTH, ("P",)),
    Row("GRU training, a batch", GRU, TRAINING, ("batch",)),
    Row("GRU inference, a batch", GRU, INFERENCE, ("batch",)),
    Row("RNN training, a batch", RNN, TRAINING, ("batch",)),
    Row("RNN inference, a batch", RNN, INFERENCE, ("batch",)),
    Row("LSTM or RNN training, vanishing gradients", LSTM + RNN, TRAINING, ("vanishing",)),
    Row("GRU or RNN inference, one row, many steps", GRU + RNN, INFERENCE, ("one row",)),
    Row("one step of one row, LSTM", LSTM, INFERENCE, ("one step",)),
    Row("one step of one row, GRU or RNN", GRU + RNN, INFERENCE, ("one step",)),
    Row("one step of one row, a cell module", LSTM + GRU + RNN, INFERENCE, ("cell",)),
    Row("bfloat16 training, LSTM, a batch", LSTM, TRAINING, ("batch",), "bf16"),
    Row("bfloat16 inference, LSTM, a batch", LSTM, INFERENCE, ("batch",), "bf16"),
    Row("bfloat16 inference, LSTM, one row, many steps", LSTM, INFERENCE, ("one row",), "bf16"),
    Row("bfloat16, GRU or RNN, many steps", GRU + RNN, BOTH, ("batch", "one row"), "bf16"),
    Row("bfloat16, one step of one row", LSTM + GRU + RNN, INFERENCE, ("one step",), "bf16"),
)


@dataclass(frozen=True)
class Machine:
    """A column of the table: every case that was timed there, under its row's label."""

    name: str
    where: str  # what was timed, where and when
    ratios: dict[str, list[float]]


def label(case: Case) -> str:
    """Of the only row that takes the case.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [row.label for row in ROWS if row.takes(case)]
    if len(found) != 1:
        got = ", ".join(map(repr, found)) or "none"
        name = f"{case.cell} {case.step} {case.precision} {case.shape}"
        raise ValueError(f"{name}: expected one row of expect.py that takes it, got {got}")
    return found[0]


def bfloat16_cases(path: Path) -> tuple[tuple[str, str], list[Case]]:
    """(CPU, instruction set), and the bfloat16 cases beside torch.nn's bfloat16."""
    header, lines = read(path, KIND)
    cases = []
    for found in (made(Measured, line, path) for line in lines):
        cell, step, shape = found.name.split(" ", 2)
        cases.append(Case("bf16", cell, step, shape, found.over_torch))
    return (header["cpu"], header["isa"]), cases


def machines(runs: Sequence[Path], bfloat16: Sequence[Path]) -> list[Machine]:
    """A column for each run, with the bfloat16 results of the same CPU and instruction set.

    Raises:
        ValueError: a case without its one row, or bfloat16 results of another machine.
    """
    low = dict(map(bfloat16_cases, bfloat16))
    columns = []
    for run in map(Run.load, runs):
        machine = run.cpu, run.isa
        ratios: dict[str, list[float]] = {}
        for case in [Case.of(record) for record in run.records] + low.pop(machine, []):
            ratios.setdefault(label(case), []).append(case.ratio)
        columns.append(Machine(MACHINES.get(machine, ", ".join(machine)), run.where, ratios))
    if low:
        strangers = "; ".join(map(", ".join, low))
        raise ValueError(f"expected bfloat16 results of the runs' machines, got {strangers}")
    return columns


def span(ratios: Sequence[float]) -> str:
    """As in 1.06 to 1.23x; empty when there is no ratio."""
    ends = [f"{end:.2f}" for end in (min(ratios), max(ratios))] if ratios else []
    return " to ".join(dict.fromkeys(ends)) + "x" * bool(ends)


def table(columns: Sequence[Machine]) -> str:
    """Markdown: a row for each kind of case that was timed, and what the ranges are.

    Raises:
        ValueError: the machines have different numbers of cases in a row.
    """
    lines = []
    for row in ROWS:
        found = [machine.ratios.get(row.label, []) for machine in columns]
        counts = sorted({len(ratios) for ratios in found if ratios})
        if not counts:
            continue
        if len(counts) > 1:
            got = " and ".join(map(str, counts))
            raise ValueError(f"{row.label}: expected as many cases on each machine, got {got}")
        lines.append([row.label, str(counts[0]), *map(span, found)])
    head = ["your case", "cases", *(machine.name for machine in columns)]
    return "\n".join(
        [
            *markdown(head, lines),
            "",
            "torch.nn's time divided by fusedrnn's, the least and the largest of a row's cases: "
            "above 1, fusedrnn is faster. A case counts once for each number of threads. "
            "bfloat16 is beside torch.nn's bfloat16, all else beside its float32.",
            "",
            *(f"- {machine.name}: {machine.where}." for machine in columns),
        ]
    )


def main(argv: Sequence[str]) -> int:
    top = options.parser("expect", "The range of ratios for each kind of case.")
    top.add_argument("runs", type=Path, nargs="+", help="one of each machine")
    top.add_argument("--bfloat16", type=Path, nargs="+", default=[], help="results of that verb")
    top.add_argument("--page", type=Path, required=True, help="the file with the markers")
    options.add_check(top)
    a = top.parse_args(argv)
    command = ["expect", *map(str, a.runs)]
    command += ["--bfloat16", *map(str, a.bfloat16)] if a.bfloat16 else []
    found = table(machines(a.runs, a.bfloat16))
    return place(a.page, found, MARKERS, a.check, [*command, "--page", str(a.page)])
