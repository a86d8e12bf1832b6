"""The CUDA kernels without a GPU: their own source, compiled as C++ with stand-ins of two headers
that run each thread as a fiber (tests/cuda/host), against a float64 reference, under the sanitizers
and in orders of execution that starve whom they can. That this would find a bug is tested too: by
kernels with a fault each for the shim, and by bugs planted into copies of the project's kernels."""

from __future__ import annotations

import re
import shlex
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from support.commands import ARM64, compiler, done, output_of
from support.cuda_bugs import BUGS, Bug, plant
from support.nights import a_part
from support.paths import CSRC, HOST
from support.shim import FLAGS, SHIM
from support.tiles import Kernel, cells_of

LANGUAGE = ["-Wall", "-Wextra", *FLAGS]
BUILDS = {
    "plain": ["-O1"],
    "address": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
HALT = {"TSAN_OPTIONS": "halt_on_error=1"}
ORDERS = ["in-order 0", "random 1", *(f"starving {seed}" for seed in range(6))]


def units(csrc: Path = CSRC) -> list[Path]:
    """What is linked: the kernels, but not the one source that asks the CUDA runtime about the
    device, the plan, and the test with its shim."""
    device = [path for path in (csrc / "cuda").rglob("*.cu") if path.stem != "device"]
    plan = sorted((csrc / "cuda").glob("*.cpp"))
    return [*sorted(device), *plan, HOST / "kernels_test.cpp", *SHIM]


def compiled(source: Path, flags: list[str], folder: Path, csrc: Path = CSRC) -> Path:
    target = folder / f"{source.stem}.o"
    watched = ["-O2", "-g1"] if source in SHIM else flags
    paths = [f"-I{csrc}", "-x", "c++", "-c", str(source), "-o", str(target)]
    output_of([*compiler(), *LANGUAGE, *watched, *paths])
    return target


class Objects:
    """The objects of each build, made when first asked for."""

    def __init__(self, folder: Path, workers: ThreadPoolExecutor) -> None:
        self.folder, self.workers = folder, workers
        self.made: dict[str, list[Path]] = {}

    def of(self, build: str) -> list[Path]:
        if build not in self.made:
            folder = self.folder / build
            folder.mkdir()
            sources = units()
            self.made[build] = list(
                self.workers.map(lambda source: compiled(source, BUILDS[build], folder), sources)
            )
        return self.made[build]


def linked(objects: list[Path], build: str, program: Path) -> str:
    output_of([*compiler(), *BUILDS[build], *map(str, objects), "-o", str(program)])
    return str(program)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory, workers: ThreadPoolExecutor) -> Objects:
    return Objects(tmp_path_factory.mktemp("objects"), workers)


def rows_for(tiles: list[Kernel], cell: str) -> list[int]:
    """Few rows that have all there is: batch rows, weights in shared memory, wide sends."""
    rows = [kernel for kernel in tiles if kernel.cell == cell and kernel.direction == "forward"]
    block = [kernel for kernel in rows if kernel.cluster == 1]
    cluster = [kernel for kernel in rows if kernel.cluster > 1]
    chosen = {
        next(kernel.row for kernel in block if kernel.rows > 1),
        max(block, key=lambda kernel: (kernel.hidden, -kernel.rows)).row,
        min(cluster, key=lambda kernel: (kernel.cluster, kernel.rows)).row,
        min(cluster, key=lambda kernel: (kernel.cluster, -kernel.rows)).row,
        # Sends several values at once, in both passes.
        next(kernel.row for kernel in cluster if kernel.hidden >= 256 and kernel.rows > 1),
    }
    return sorted(chosen)


def keep_rows(csrc: Path, rows: list[int]) -> None:
    """Make a copy of csrc compile of the table just these rows, which takes a tenth of the time."""
    kept = " || ".join(f"kOne == {row}" for row in rows)
    old, new = ".cell == kFamily)", f".cell == kFamily && ({kept}))"
    places = [path for path in (csrc / "cuda").rglob("*.cu*") if old in path.read_text()]
    assert places, f"csrc/cuda chooses its rows by other words now, not by {old}"
    for path in places:
        path.write_text(path.read_text().replace(old, new))


def watched_clusters(tiles: list[Kernel]) -> str:
    """For each cell the rows of its smallest cluster: of each thread ThreadSanitizer keeps what it
    knows of all others, and more of them take minutes."""

    def size(kernel: Kernel) -> int:
        return kernel.cluster * kernel.threads

    clusters = [kernel for kernel in tiles if kernel.cluster > 1]
    smallest = [
        min((kernel for kernel in clusters if kernel.cell == cell), key=size)
        for cell in cells_of(clusters)
    ]
    return ",".join(str(kernel.row) for kernel in smallest)


# The stand-ins.


def functions(header: Path) -> set[tuple[str, int]]:
    """Name and number of parameters of each device function, the shim's own parameter left out."""
    text = re.sub(r",? *Site site = Site::current\(\)|//.*", "", header.read_text())
    found = re.findall(r"^(?:FUSEDRNN_DEVICE|inline) .*?(\w+)\(([^()]*)\) \{", text, re.MULTILINE)
    return {(name, len(re.findall(r"[^,]+", taken))) for name, taken in found}


def test_the_stand_in_has_the_functions_of_the_header() -> None:
    real = functions(CSRC / "cuda" / "primitives.cuh")
    assert ("send", 4) in real
    inner = {("shared_address", 1), ("shared_address_in", 2), ("barrier_try", 2)}
    assert real - inner <= functions(HOST / "cuda" / "primitives.cuh")


# The shim on trial: a case of tests/cuda/host/shim_test.cpp, a build, and what must be said.
RACE = "ThreadSanitizer: data race"
FAULTS = [
    ("single buffer", "plain", "wrong"),
    ("single buffer", "thread", RACE),
    ("no barrier", "plain", "wrong"),
    ("no barrier", "thread", RACE),
    ("write past shared memory", "plain", "byte 512 of shared memory is not its own"),
    ("write past shared memory", "address", "AddressSanitizer: use-after-poison"),
    ("read past shared memory", "address", "AddressSanitizer: use-after-poison"),
    ("write before shared memory", "plain", "byte -4 of shared memory is not its own"),
    ("write before shared memory", "address", "AddressSanitizer: use-after-poison"),
    ("blocks write to one place", "thread", RACE),
    ("a thread misses a barrier", "plain", r"deadlock\n.*in block_sync at .*shim_test.cpp:\d+\n"),
    ("lanes at different barriers", "plain", r"a lane of the warp is at .*shim_test.cpp:\d+"),
    ("lanes with different masks", "plain", "a lane of the warp shuffles by"),
    ("barrier not made", "plain", "the barrier has not been made"),
    ("not armed", "plain", r"deadlock\n.*in barrier_wait at "),
    ("armed for half", "plain", "wrong|ended|second time"),
    ("armed for half", "thread", RACE),
    ("armed twice", "plain", "the barrier is armed a second time in a phase"),
    ("no first cluster barrier", "plain", "the barrier has not been made"),
    ("single barrier", "plain", "deadlock"),
    ("no wait", "plain", "the barrier is armed a second time in a phase"),
    ("wrong parity", "plain", "the barrier is armed a second time in a phase"),
    ("not armed again", "plain", r"deadlock\n.*in barrier_wait at "),
    ("sent and not awaited", "plain", "its block ended before|to a block that has ended"),
    ("sent to nowhere", "plain", "where to send is not in shared memory"),
    ("sent to a block that ended", "plain", "to a block that has ended"),
    ("four to a place for two", "plain", "where to send is not in shared memory, or not aligned"),
    ("sent past shared memory", "plain", "where to send is not in shared memory, or not aligned"),
]


@pytest.fixture(scope="module")
def shim_tests(
    tmp_path_factory: pytest.TempPathFactory, workers: ThreadPoolExecutor
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("shim")

    def build(name: str) -> str:
        (folder / name).mkdir()
        sources = [HOST / "shim_test.cpp", *SHIM]
        made = [compiled(source, BUILDS[name], folder / name) for source in sources]
        return linked(made, name, folder / name / "shim_test")

    return dict(zip(BUILDS, workers.map(build, BUILDS), strict=True))


@pytest.mark.parametrize(("case", "build", "says"), FAULTS)
def test_the_shim_reports_a_fault(
    shim_tests: dict[str, str], case: str, build: str, says: str
) -> None:
    status, said = done([shim_tests[build], case, "1", "1"], **HALT)
    assert status not in (0, 2)
    assert re.search(says, said), said


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("case", ["neighbours", "warp sum", "ring", "wide ring", "geometry"])
def test_the_shim_runs_what_is_right_in_any_order(
    shim_tests: dict[str, str], build: str, case: str
) -> None:
    for order in ("0 0", "1 1", *(f"2 {seed}" for seed in range(6 if build == "plain" else 2))):
        said = output_of([shim_tests[build], case, *order.split()], **HALT)
        assert said == "right\n", order


def test_a_shuffle_orders_no_writes_where_that_is_asked(shim_tests: dict[str, str]) -> None:
    command = [shim_tests["thread"], "a warp writes and reads", "1", "1"]
    assert output_of(command, **HALT) == "right\n"
    status, said = done([*command, "shuffles order nothing"], **HALT)
    assert status
    assert RACE in said


def test_the_shim_refuses_what_a_gpu_refuses(shim_tests: dict[str, str]) -> None:
    command = [shim_tests["plain"], "refusals"]
    assert output_of(command, FUSEDRNN_HOST_SM="90") == "9 9 9 9 9 9 9 9 9 1 1 0 \n"
    assert output_of(command, FUSEDRNN_HOST_SM="80") == "9 9 9 9 9 9 9 9 9 1 1 9 \n"
    assert output_of(command, FUSEDRNN_HOST_SM="60") == "100 " * 12 + "\n"


# The kernels.


def test_the_main_tiles_match_the_reference(
    tiles: list[Kernel], workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    rows = [row for cell in cells_of(tiles) for row in rows_for(tiles, cell)]
    shutil.copytree(CSRC, tmp_path / "csrc")
    keep_rows(tmp_path / "csrc", rows)

    def build(source: Path) -> Path:
        return compiled(source, BUILDS["plain"], tmp_path, tmp_path / "csrc")

    objects = list(workers.map(build, units(tmp_path / "csrc")))
    program = linked(objects, "plain", tmp_path / "kernels_test")
    for what in (",".join(map(str, rows)), "stepwise"):
        said = output_of([program, what, "random", "1", "4", "0"])
        assert re.fullmatch(r"[1-9]\d* problems, 0 failures\n", said)


@pytest.fixture(scope="module")
def programs(objects: Objects) -> dict[str, str]:
    return {
        build: linked(objects.of(build), build, objects.folder / build / "kernels_test")
        for build in BUILDS
    }


# Each problem in the plain build; with --night in every order.
@pytest.mark.parametrize(
    ("build", "order", "quarters"),
    [
        ("plain", "in-order 0", (0, 1)),
        ("plain", "starving 2", (2, 3)),
        ("address", "random 3", (1, 2)),
        ("thread", "starving 4", ()),
    ],
)
def test_kernels_match_the_reference(
    programs: dict[str, str],
    tiles: list[Kernel],
    workers: ThreadPoolExecutor,
    pytestconfig: pytest.Config,
    build: str,
    order: str,
    quarters: tuple[int, ...],
) -> None:
    def run(what: str, every: int, which: int, *more: str) -> str:
        command = [programs[build], what, *order.split(), str(every), str(which), *more]
        return output_of(command, **HALT)

    quarters = (0, 1, 2, 3) if pytestconfig.getoption("night") else quarters
    jobs = [("all", 4, quarter) for quarter in quarters]
    if build == "thread":
        jobs = [(watched_clusters(tiles), 2, 0), ("stepwise", 4, 1), ("planned", 4, 1)]
    runs = [workers.submit(run, *job) for job in jobs]
    if build == "thread":
        # Within a block the kernels trust no shuffle. In a cluster they do for reads: what a thread
        # has read of h goes into what its warp sends on.
        blocks = ",".join(str(kernel.row) for kernel in tiles[::2] if kernel.cluster == 1)
        runs += [workers.submit(run, blocks, 4, which, "unordered") for which in (0, 1)]
    for ended in runs:
        assert re.fullmatch(r"[1-9]\d* problems, 0 failures\n", ended.result())


def test_a_sequence_may_be_longer_than_16_bits_count(programs: dict[str, str]) -> None:
    assert output_of([programs["plain"], "long"]) == "1 problems, 0 failures\n"


@pytest.mark.skipif(
    not all(map(shutil.which, ARM64)), reason=f"needs {' and '.join(ARM64)} on PATH"
)
def test_the_shim_runs_kernels_on_emulated_arm64(tmp_path: Path, tiles: list[Kernel]) -> None:
    flags = [*LANGUAGE, f"-I{CSRC}", "-O1", "-static"]
    program = str(tmp_path / "kernels_test")
    output_of([ARM64[0], *flags, "-x", "c++", *map(str, units()), "-o", program])
    said = output_of([ARM64[1], program, "planned", "random", "1", "5", "0"])
    assert re.fullmatch(r"[1-9]\d* problems, 0 failures\n", said)


# The bugs.


class Hunt:
    """Plants a bug into a copy of csrc and runs the kernels until something says so."""

    def __init__(self, folder: Path, objects: Objects, tiles: list[Kernel]) -> None:
        self.folder, self.objects = folder, objects
        self.rows = {cell: rows_for(tiles, cell) for cell in cells_of(tiles)}

    def planted(self, name: str, bug: Bug) -> Path:
        copy = self.folder / re.sub(r"\W+", "_", name)
        shutil.copytree(CSRC, copy / "csrc")
        plant(bug, copy / "csrc" / "cuda")
        keep_rows(copy / "csrc", [row for rows in self.rows.values() for row in rows])
        return copy

    def caught_by(self, name: str, bug: Bug) -> str | None:
        folder = self.planted(name, bug)
        what = ",".join(map(str, self.rows.get(bug.what, [bug.what])))
        for build in BUILDS:
            (folder / build).mkdir()
            source = folder / "csrc" / "cuda" / bug.source
            flags = BUILDS[build]
            mutant = compiled(source, flags, folder / build, folder / "csrc")
            others = [path for path in self.objects.of(build) if path.name != mutant.name]
            program = linked([mutant, *others], build, folder / build / "kernels_test")
            for order in ORDERS if build == "plain" else ORDERS[1:3]:
                command = [program, what, *order.split()]
                status, said = done(command, **HALT)
                if status:
                    return f"{build}, {order}: {said[:300]}"
        return None


@pytest.fixture(scope="module")
def hunts(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    objects: Objects,
    tiles: list[Kernel],
    workers: ThreadPoolExecutor,
) -> dict[str, Future[str | None]]:
    for build in BUILDS:
        objects.of(build)
    hunt = Hunt(tmp_path_factory.mktemp("bugs"), objects, tiles)
    chosen = {item.name for item in request.session.items}
    return {
        name: workers.submit(hunt.caught_by, name, bug)
        for name, bug in BUGS.items()
        if f"{test_a_planted_bug_is_caught.__name__}[{name}]" in chosen
    }


def test_each_bug_has_its_place_in_the_sources(tmp_path: Path) -> None:
    gone = {}
    for name, bug in BUGS.items():
        copy = shutil.copytree(CSRC / "cuda", tmp_path / "cuda", dirs_exist_ok=True)
        try:
            plant(bug, copy)
        except ValueError as error:
            gone[name] = str(error)
    assert gone == {}


# Each takes a compilation or more: a third of them, with --night all.
@pytest.mark.parametrize("name", a_part(BUGS, 3))
def test_a_planted_bug_is_caught(hunts: dict[str, Future[str | None]], name: str) -> None:
    caught = hunts[name].result()
    print(caught)
    assert caught, f"no build and no order showed it: {shlex.quote(name)}"
