"""Results files, and what a benchmark run holds.

A file is one JSON object a line: a header, then a record a line. The header says what kind of file
it is, what was measured, where and when. A field that has its default is left out, and the reader
fills it in. Numbers have nine digits: of a second, a nanosecond. Only the standard library is
imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

VERSION = 2
DIGITS = 9
RUN = "run"  # the kind of file that holds a Run
GRID = "grid"  # the group whose cases are many: charts show each cell's as one row
# What equal code may differ by, whatever the scatter within a run says: two objects in one process
# (torch.nn beside itself: 0.98x to 1.02x).
LEVEL = 0.02

Line = dict[str, Any]
T = TypeVar("T")


def rounded(value: Any) -> Any:
    """The value with nine digits in each float of it."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def line(found: Any) -> Line:
    """The fields of a dataclass that do not have their defaults."""
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    usual = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(found)
    }
    return {name: value for name, value in values.items() if value != usual[name]}


def made(type_: type[T], values: Line, path: Path) -> T:
    """The dataclass that has these fields.

    Raises:
        ValueError: a field is missing or unknown.
    """
    try:
        return type_(**values)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: Path, kind: str, header: Line, lines: Iterable[Line]) -> None:
    """Writes the header, then a record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = {"version": VERSION, "kind": kind, **header}
    path.write_text("".join(json.dumps(rounded(v)) + "\n" for v in (first, *lines)), "utf-8")


def read(path: Path, *kinds: str) -> tuple[Line, list[Line]]:
    """The header and the records of a file of one of these kinds.

    Raises:
        ValueError: it has no such lines, or is of another version or kind.
    """
    try:
        header, *lines = map(json.loads, path.read_text("utf-8").splitlines())
    except ValueError as error:
        raise ValueError(f"{path}: expected one JSON object a line ({error})") from error
    if not all(isinstance(found, dict) for found in (header, *lines)):
        raise ValueError(f"{path}: expected one JSON object a line")
    version = header.pop("version", None)
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, expected {VERSION}")
    kind = header.get("kind")
    if kind not in kinds:
        raise ValueError(f"{path}: expected kind {' or '.join(kinds)}, got {kind}")
    return header, lines


def line_of_table(found: Any, tables: Mapping[str, type]) -> Line:
    """A line of a file of several tables: which of them it belongs to, and its fields."""
    table = next(name for name, kind in tables.items() if isinstance(found, kind))
    return {"table": table, **line(found)}


def read_tables(
    path: Path, kind: str, tables: Mapping[str, type[Any]]
) -> tuple[Line, dict[str, list[Any]]]:
    """The header, and what the lines hold by table.

    Raises:
        ValueError: as :func:`read` and :func:`made`, or a line is of no such table.
    """
    header, lines = read(path, kind)
    found: dict[str, list[Any]] = {name: [] for name in tables}
    for fields_ in lines:
        table = fields_.pop("table", "")
        if table not in tables:
            raise ValueError(f"{path}: expected a table of {', '.join(tables)}, got {table!r}")
        found[table].append(made(tables[table], fields_, path))
    return header, found


def half_interval(quartiles: Sequence[float], rounds: int) -> float:
    """Half the ~95 % interval of a median, relative to it (McGill, Tukey & Larsen 1978)."""
    q1, median, q3 = quartiles
    return 1.57 * (q3 - q1) / math.sqrt(rounds) / median


@dataclass(frozen=True)
class Record:
    """One case, timed. Milliseconds are per call: the median and the minimum over the rounds."""

    group: str
    cell: str
    step: str  # "fwd+bwd", "training step" or "inference"
    shape: str
    threads: int  # 0 on a GPU
    ours_ms: float
    ours_min_ms: float
    torch_ms: float
    torch_min_ms: float
    ratio: float  # median over the rounds of torch's time / ours
    ratio_q1: float
    ratio_q3: float
    rounds: int
    iterations: int
    gflop: float
    error: float = 0.0  # largest disagreement with torch.nn, relative to the largest value
    precision: str = "fp32"
    data: str = "random"  # layers; "real" or "synthetic": workloads
    headline: bool = False  # stands in the table of a page
    beside: str = ""  # whose time torch_ms is, where it is not torch.nn's for the same call
    # On a GPU only.
    mode: str = ""  # "eager" or "graph"
    target: float = 0.0  # the least ratio that is aimed at; 0: none
    ours_error: float = 0.0  # largest against float64, relative to the largest value
    torch_error: float = 0.0
    allowed_error: float = 0.0  # largest part used of what the tests would allow
    ours_host_us: float = 0.0  # until a call returns, the device not waited for; eager only
    torch_host_us: float = 0.0

    @property
    def model(self) -> tuple[str, ...]:
        """What training and inference of one thing have in common."""
        shown = [self.precision, self.mode] if self.mode else []
        shown += [f"beside {self.beside}"] if self.beside else []
        return self.group, self.cell, self.shape, self.data, str(self.threads), *shown

    @property
    def key(self) -> tuple[str, ...]:
        return (self.step, self.precision, *self.model)

    @property
    def how(self) -> str:
        """On how many threads, or how a GPU was driven."""
        return self.mode or str(self.threads)

    @property
    def name(self) -> str:
        source = "" if self.data == "random" else f", {self.data} data"
        beside = f" beside {self.beside}" if self.beside else ""
        about = f"{self.cell} {self.step} {self.precision} {self.shape}"
        return f"{self.group}: {about}{source}{beside}"

    @property
    def gflops(self) -> float:
        return self.gflop / self.ours_ms * 1e3

    @property
    def noise(self) -> float:
        """Half the ~95 % interval of the median ratio, relative."""
        return half_interval((self.ratio_q1, self.ratio, self.ratio_q3), self.rounds)

    @property
    def flag(self) -> str:
        if abs(math.log(self.ratio)) <= math.log1p(max(LEVEL, self.noise)):
            return "level"
        return "slower" if self.ratio < 1 else ""


@dataclass(frozen=True)
class Recurrence:
    """Kernel times of one layer on a GPU, microseconds for a time step."""

    cell: str
    shape: str
    step: str  # "forward" (as in training) or "backward"
    precision: str
    ours_us: float  # fusedrnn's kernels alone
    torch_us: float  # all of torch.nn's, input products included: its kernels cannot be told apart
    target: float  # the most that is aimed at
    kernels: dict[str, float]  # all of ours, microseconds a call

    @property
    def line(self) -> str:
        met = "met" if self.ours_us <= self.target else "MISSED"
        return (
            f"{self.cell} {self.step} {self.precision} {self.shape}: {self.ours_us:.3f} us a step "
            f"(target {self.target:g}, {met}); torch.nn, products included, {self.torch_us:.3f}"
        )


@dataclass
class Run:
    """All cases of one process, and where they were measured."""

    date: str
    commit: str
    cpu: str
    cores: int
    isa: str
    system: str
    python: str
    torch: str
    fusedrnn: str
    precision: str
    selection: str  # "quick", "default" or "full"
    peak_gflops: dict[str, float] = field(default_factory=dict)  # threads -> FMA peak
    gpu: dict[str, str] = field(default_factory=dict)  # name, driver, clocks, ...; empty: a CPU run
    # In the file, each of these is a line of its own.
    records: list[Record] = field(default_factory=list)
    besides: list[Record] = field(default_factory=list)  # beside else than torch.nn's same call
    recurrences: list[Recurrence] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # cases, each with the reason

    def save(self, path: Path) -> None:
        header = line(self)
        for name in ("records", "besides", "recurrences", "left_out"):
            header.pop(name, None)
        lines = [line(record) for record in (*self.records, *self.besides)]
        lines += [{"recurrence": line(found)} for found in self.recurrences]
        lines += [{"left_out": case} for case in self.left_out]
        write(path, RUN, header, lines)

    @staticmethod
    def load(path: Path) -> Run:
        header, lines = read(path, RUN)
        del header["kind"]
        run = made(Run, header, path)
        for found in lines:
            if "recurrence" in found:
                run.recurrences.append(made(Recurrence, found["recurrence"], path))
            elif "left_out" in found:
                run.left_out.append(found["left_out"])
            else:
                record = made(Record, found, path)
                (run.besides if record.beside else run.records).append(record)
        return run

    def share(self, record: Record) -> str:
        """Share of the FMA peak of as many threads, where there is a reading of it."""
        peak = self.peak_gflops.get(str(record.threads))
        return "" if peak is None else f"{record.gflops / peak:.0%}"

    @property
    def losses(self) -> list[Record]:
        return sorted((r for r in self.records if r.ratio < 1), key=lambda r: r.ratio)

    @property
    def headlines(self) -> list[Record]:
        """On the most threads: the headline cases, and every loss."""
        most = max(record.threads for record in self.records)
        return [r for r in self.records if r.threads == most and (r.headline or r.ratio < 1)]

    @property
    def where(self) -> str:
        if self.gpu:
            gpu = ", ".join(f"{k} {v}" if k != "name" else v for k, v in self.gpu.items())
            return f"{gpu}, {self.software}"
        threads = sorted({record.threads for record in (*self.records, *self.besides)})
        plural = "s" if threads != [1] else ""
        return (
            f"{self.cpu}, {self.cores} cores, {self.isa}, "
            f"{' and '.join(map(str, threads))} thread{plural}, {self.precision}, "
            f"{self.software}"
        )

    @property
    def software(self) -> str:
        ours = f"fusedrnn {self.fusedrnn} ({self.commit})"
        return f"torch {self.torch}, {ours}, {self.date[:10]}"
