"""Reads the logs of gpu_check.sh: a line or a table on standard output, the verdict as the status.

gpu_reports.py tests LOG                   1: cut off; the tests that hung, failed, were at work
gpu_reports.py sanitizer TOOL STATUS LOG   0: nothing found, 1: errors, 2: not run, 3: in part
gpu_reports.py counters CSV                hardware counters of each kernel; 1: there are none
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks puts it last
CUT_OFF = (124, 137)  # how timeout ends
TOOL_FOUND = 99  # what compute-sanitizer was asked to end with

STALLED = "smsp__average_warps_issue_stalled_"
PER_ISSUE = "_per_issue_active.ratio"
# What decides whether a step is bound by shared memory, by x coming late, by the exchange between
# blocks, or by fetching instructions. ncu has more, in profile-raw.csv.
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "shared wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "issue %": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    **{
        name: f"{STALLED}{name}{PER_ISSUE}"
        for name in (
            *("long_scoreboard", "short_scoreboard", "no_instruction", "barrier", "membar"),
            *("wait", "sleeping", "mio_throttle"),
        )
    },
}


def unended(log: str) -> list[str]:
    """What pytest could not sum up itself, by a verbose log that ends too early: tests that
    faulthandler found hanging, since the name of their function is in a stack that it printed;
    tests that failed; tests that began and did not end. Empty where all that began has ended."""
    begun: dict[str, None] = {}
    failed: list[str] = []
    # A stack is printed in the midst of a line.
    for line in log.replace("Timeout (", "\nTimeout (").splitlines():
        ended = re.match(r"\[gw\d+\] \[ *\d+%\] (?P<word>[A-Z]+) (?P<test>tests/.*\S)", line)
        ended = ended or re.match(
            r"(?P<test>tests/.*?) (?P<word>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", line
        )
        if ended:
            begun.pop(ended["test"], None)
            failed += [ended["test"]] * (ended["word"] in ("FAILED", "ERROR"))
        elif re.match(r"tests/\S+::", line):
            begun[line.strip()] = None
    hanging = set(re.findall(r'^  File ".*", line \d+ in (test_\w+)$', log, re.MULTILINE))
    hung = [test for test in begun if test.split("::")[-1].split("[")[0] in hanging]
    words = {"HUNG": hung, "FAILED": failed, "cut off": [t for t in begun if t not in hung]}
    return [f"{word}: {test}" for word, tests in words.items() for test in tests] if begun else []


def clusters_of(location: str) -> int:
    """Blocks of a cluster of the persistent kernel that a report names, 0 for any other kernel."""
    from benchmarks import gpu_tiles  # imports torch: only where there is something to report

    tile = re.search(r"recurrence_(?:for|back)ward<(?:\(int\))?(\d+)>", location)
    return gpu_tiles.tiles()[int(tile[1])].cluster if tile else 0


def findings(tool: str, log: str) -> tuple[int, str]:
    """How many reports count, and what is to be said of the others.

    racecheck knows neither st.async nor the waits for its barrier, so of a cluster it may report
    what is none; initcheck sees every kernel, of which only ours concern us."""
    if tool == "racecheck":
        races = re.findall(r"(?:Error|Warning): Race reported between .*", log)
        leads = sum(clusters_of(race) > 1 for race in races)
        aside = f"; {leads} of cluster kernels, a lead to follow and no verdict" if leads else ""
        return len(races) - leads, f"{len(races) - leads} races that decide{aside}"
    if tool == "initcheck":
        lines = log.splitlines()
        reads = [i for i, line in enumerate(lines) if "Uninitialized" in line]
        ours = sum(any("fusedrnn" in near for near in lines[i : i + 4]) for i in reads)
        return ours, f"{ours} reports of ours, {len(reads) - ours} of other kernels"
    (errors,) = re.findall(r"ERROR SUMMARY: (\d+) error", log)[-1:] or ["no"]
    return int(errors) if errors != "no" else 1, f"{errors} errors"


def sanitizer(tool: str, status: int, log: str) -> tuple[int, str]:
    """The verdict on one tool's run."""
    last = (log.strip().splitlines() or ["no output"])[-1]
    if "Device not supported" in log:
        return 2, f"{tool}: compute-sanitizer does not support this device here"
    count, told = findings(tool, log)
    begun = re.findall(r"^begin .*", log, re.MULTILINE)
    if status in CUT_OFF:
        where = f"cut off in {begun[-1]}" if begun else "cut off before any kernel ran"
        found = tool in ("racecheck", "initcheck") and count
        return (1 if found else 3), f"{tool}: {where}; {told if found else 'no verdict'}"
    if status == TOOL_FOUND:
        return int(count > 0), f"{tool}: {told}"
    if status == 3:
        return 3, f"{tool}: {told}, in part: {last}"
    if status:
        return 1, f"{tool}: status {status}, {last}"
    return int(count > 0), f"{tool}: {told}, {len(begun)} problems"


def counters(lines: Sequence[str]) -> list[str]:
    """A table, a kernel a row, from the raw page that ncu prints as CSV: names, units, values."""
    from benchmarks.report.figures import columns

    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[start:]))[1:]
    if not rows:
        return []
    known = {name: column for name, column in COUNTERS.items() if column in rows[0]}
    table = [("kernel", *known)]
    for row in rows:
        name = re.sub(r"^void |fusedrnn::cuda::|\(fused.*\)$", "", row["Kernel Name"])
        table.append((name, *(row[column] for column in known.values())))
    absent = [COUNTERS[name] for name in COUNTERS if name not in known]
    return [*columns(table, left=1), *(f"not in the report: {name}" for name in absent)]


def main(argv: Sequence[str]) -> int:
    verb, *arguments = argv
    log = Path(arguments[-1]).read_text("utf-8", errors="replace")
    if verb == "tests":
        lines = unended(log)
        status = int(bool(lines))
    elif verb == "sanitizer":
        status, line = sanitizer(arguments[0], int(arguments[1]), log)
        lines = [line]
    else:
        lines = counters(log.splitlines())
        status = int(not lines)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
