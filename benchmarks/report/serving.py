"""The page of frozen layers and their streams beside plain layers and other runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report.figures import markdown, milliseconds, times
from benchmarks.results import Line, half_interval, line_of_table, read_tables

KIND = "serving"
OURS, INT8 = "fusedrnn", "frozen int8"
GAIN, HOST_US, QUARTER = (
    1.9,
    1.0,
    0.27,
)  # asked for: 4 threads / 1, a step's host part, int8's bytes
HOST = "LSTM B1 I128 H128"


@dataclass(frozen=True)
class Called:
    """Whole calls. `ms`: each side's median; `ratio`: the quartiles of a side's time / that of
    frozen int8 in the same round; `least`: how many times ours in float32 int8 is asked to be."""

    name: str
    threads: int
    rounds: int
    ms: dict[str, float]
    ratio: dict[str, list[float]]
    error: dict[str, float]  # largest difference from ours, relative to the largest value
    least: float


@dataclass(frozen=True)
class Stepped:
    """Microseconds of a step of `rows` rows, and of one of many in a call of T steps."""

    name: str
    rows: int
    us: dict[str, float]
    kernel_us: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat:
    """The latency of one row's step at a beat: p50, p99 and p99.9 in microseconds."""

    name: str
    beats: int
    loaded: bool  # whether another core worked meanwhile
    us: dict[str, list[float]]


@dataclass(frozen=True)
class Threaded:
    """Steps a second of so many Python threads, a stream each, together."""

    name: str
    dtype: str
    threads: list[int]
    steps: list[float]
    gain: float  # of the most threads over one, the median of the rounds


@dataclass(frozen=True)
class Remembered:
    """MiB: of packed weights, of the file, and what a process has more once it is loaded."""

    name: str
    side: str
    packed: float
    file: float
    resident: float


TABLES: dict[str, Any] = {
    "layers": Called,
    "steps": Stepped,
    "beat": Beat,
    "threads": Threaded,
    "memory": Remembered,
}
Found = dict[str, list[Any]]


def line_of(found: Any) -> Line:
    """A line of the file."""
    return line_of_table(found, TABLES)


def load(path: Path) -> tuple[Line, Found]:
    """The header, and the lines by table."""
    return read_tables(path, KIND, TABLES)


def every_side(found: Sequence[Any], of: str) -> list[str]:
    """All sides that some line has, in order."""
    return list(dict.fromkeys(side for m in found for side in getattr(m, of)))


def verdict(met: bool, said: str) -> str:
    return f"- {'met' if met else 'MISSED'}: {said}."


def layers(found: Sequence[Called]) -> Iterator[str]:
    sides = every_side(found, "ms")
    yield from ("## Whole calls", "", "Milliseconds a call.", "")
    rows = [
        [m.name, str(m.threads), *(milliseconds(m.ms[s]) if s in m.ms else "" for s in sides)]
        for m in found
    ]
    yield from markdown(["case", "threads", *sides], rows)
    yield from ("", f"Each side's time / {INT8}'s, ± half its ~95 % interval:", "")
    others = [side for side in sides if side != INT8]

    def shown(m: Called, side: str) -> str:
        if side not in m.ratio:
            return ""
        return f"{times(m.ratio[side][1])} ±{half_interval(m.ratio[side], m.rounds):.0%}"

    rows = [[m.name, str(m.threads), *(shown(m, side) for side in others)] for m in found]
    yield from markdown(["case", "threads", *others], rows)
    yield ""
    yield from (line for m in found for line in called_verdicts(m))


def called_verdicts(m: Called) -> Iterator[str]:
    about = f"{m.name}, {m.threads} thread{'s' if m.threads > 1 else ''}"
    gain = m.ratio[OURS][1]
    asked = f"int8 {times(gain)} our float32, asked for {m.least:g}x: {about}"
    yield verdict(gain >= m.least, asked)
    rivals = {s: r[1] for s, r in m.ratio.items() if s != OURS and not s.startswith("frozen")}
    best = min(rivals, key=lambda side: rivals[side])
    yield verdict(rivals[best] >= 1, f"int8 {times(rivals[best])} the best peer, {best}: {about}")


def steps(found: Sequence[Stepped]) -> Iterator[str]:
    sides = every_side(found, "us")
    yield from (
        "## One step",
        "",
        "Microseconds of a step of all rows, in turn: lower quartiles.",
        "",
    )
    yield from markdown(["case", *sides], [[m.name, *_each(m.us, sides)] for m in found])
    yield from ("", "Steps a second, rows times calls:", "")
    rows = [
        [m.name, *(f"{m.rows / m.us[s] * 1e6:,.0f}" if s in m.us else "" for s in sides)]
        for m in found
    ]
    yield from markdown(["case", *sides], rows)
    yield from (
        "",
        "Microseconds of a step beyond one of many in a call of 1,000 steps (which reads W_ih once "
        "for several steps, so that this is more than the host's part; what an LSTM of one unit "
        "takes is nearly all the host's):",
        "",
    )
    ours = [side for side in sides if side.startswith("frozen")]
    alone = [m for m in found if m.kernel_us]
    beyond = [[m.name, *(f"{m.us[s] - m.kernel_us[s]:.2f}" for s in ours)] for m in alone]
    yield from markdown(["case", *ours], beyond)
    yield ""
    for m in (m for m in found if m.name == "LSTM B1 I1 H1"):
        most = max(m.us[side] for side in ours)
        yield verdict(most <= HOST_US, f"the host's part of a step {most:.2f} us, asked for 1 us")
    for m in (m for m in found if m.name == HOST):
        most = max(m.us[side] - m.kernel_us[side] for side in ours)
        yield verdict(most <= HOST_US, f"{m.name}: {most:.2f} us beyond the kernel, asked for 1 us")


def _each(us: dict[str, float], sides: Sequence[str]) -> list[str]:
    return [milliseconds(us[side]) if side in us else "" for side in sides]


def beat(found: Sequence[Beat]) -> Iterator[str]:
    yield from ("## At a beat", "")
    load = "while another core multiplies matrices" if found[0].loaded else "no other core worked"
    yield f"Microseconds of one row's step, one every 10 ms, {load}; {found[0].beats:,} beats."
    yield ""
    rows = [
        [m.name if i == 0 else "", side, *(f"{value:.1f}" for value in us)]
        for m in found
        for i, (side, us) in enumerate(m.us.items())
    ]
    yield from markdown(["case", "by", "p50", "p99", "p99.9"], rows)


def threads(found: Sequence[Threaded]) -> Iterator[str]:
    yield from ("## Threads", "", "Steps a second of several Python threads, a stream each.", "")
    counts = found[0].threads
    rows = [[m.name, m.dtype, *(f"{rate:,.0f}" for rate in m.steps), times(m.gain)] for m in found]
    head = ["case", "dtype", *(f"{count} thread{'s' * (count > 1)}" for count in counts)]
    yield from markdown([*head, f"{counts[-1]} / 1"], rows)
    yield ""
    for m in found:
        said = f"{m.name} {m.dtype}: {times(m.gain)}, asked for {times(GAIN)} on two cores"
        yield verdict(m.gain >= GAIN, said)


def memory(found: Sequence[Remembered]) -> Iterator[str]:
    said = "what loading the file and one step add to a process"
    yield from (
        "## Memory",
        "",
        f"MiB of the weights as they lie in memory, of the file, and {said}.",
    )
    yield ""
    rows = [
        [m.name, m.side, f"{m.packed:.2f}", f"{m.file:.2f}", f"{m.resident:.2f}"] for m in found
    ]
    yield from markdown(["case", "as", "weights", "file", "resident"], rows)
    yield ""
    for m in (m for m in found if m.side == INT8):
        plain = next(p for p in found if p.name == m.name and not p.side.startswith("frozen"))
        share, of_resident = m.file / plain.file, m.resident / plain.resident
        said = f"{m.name}: the file is {share:.2f} of the plain one, what is resident "
        yield verdict(max(share, of_resident) <= QUARTER, f"{said}{of_resident:.2f}, asked for 1/4")


def page(path: Path) -> str:
    """Markdown of what the file holds."""
    header, found = load(path)
    where = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    products = ", ".join(f"{name} by {by or 'float32'}" for name, by in header["products"].items())
    lines = [
        "# Serving on a CPU",
        "",
        f"{header['cpu']}, {header['cores']} cores, {header['isa']} ({products}), commit "
        f"{header['commit']}, {header['date']}; {where}. All sides in turn, on one thread where "
        "none is said. torch.ao has no RNN with int8 weights, and ONNX Runtime quantizes LSTM "
        "alone. Made by `python -m benchmarks serving`.",
    ]
    parts: dict[str, Callable[[Any], Iterator[str]]] = {
        "layers": layers,
        "steps": steps,
        "beat": beat,
        "threads": threads,
        "memory": memory,
    }
    for name, part in parts.items():
        if found[name]:
            lines += ["", *part(found[name])]
    return "\n".join(lines).rstrip() + "\n"
