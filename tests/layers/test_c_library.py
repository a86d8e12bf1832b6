"""Frozen layers from C: ``libfusedrnn_cpu.so`` gives the frozen layer's bits, needs no torch, takes
any file without a crash, and says why it refuses."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusedrnn
from fusedrnn import _binary
from support.c_library import FLOATS, FUNCTIONS, Library
from support.commands import compiler, output_of
from support.frozen_files import about, of, rewritten
from support.native_build import compiled
from support.paths import ROOT, TESTS

PACKAGE = Path(_binary.build_info()["file"]).parent
LIBRARY = PACKAGE / "lib" / "libfusedrnn_cpu.so"
HEADER = PACKAGE / "include" / "fusedrnn.h"
DTYPES = (None, torch.bfloat16, torch.float16, torch.int8)
# Without optimizing it compiles in 3 s, of 9.
READER = ["-O0", "-g1", "-fsanitize=address,bounds,shift,signed-integer-overflow"]
READER += ["-fno-sanitize-recover=all"]
I, H = 9, 21  # noqa: E741

c = Library(LIBRARY)


def frozen(name: str = "LSTM", to: Any = None, **flags: Any) -> Any:
    torch.manual_seed(0)
    return fusedrnn.freeze(getattr(fusedrnn, name)(I, H, **flags), to)


def floats(array: Any) -> Any:
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return array.ctypes.data_as(FLOATS)


class Stream:
    """A stream of the library over numpy arrays; a refusal is a RuntimeError."""

    def __init__(self, path: Path, rows: int = 1) -> None:
        model = c.load(str(path).encode())
        if not model:
            raise RuntimeError(c.error_text())
        self.sizes = c.input_size(model), c.output_size(model), c.hidden_size(model)
        self.layers, self.has_c = c.num_layers(model), c.mode(model) == b"LSTM"
        self.handle = c.stream_new(model, rows)
        c.free(model)  # the stream keeps what it needs
        self.done(0 if self.handle else -1)

    def __del__(self) -> None:
        c.stream_free(getattr(self, "handle", None))

    def done(self, status: int) -> None:
        if status:
            raise RuntimeError(c.error_text())

    def run(self, x: Any) -> Any:
        """[T, B, I] to [T, B, P]."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((*x.shape[:2], self.sizes[1]), np.float32)
        self.done(c.run(self.handle, floats(x), floats(y), len(x)))
        return y

    def step(self, x: Any) -> Any:
        """[B, I] to [B, P]."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((len(x), self.sizes[1]), np.float32)
        self.done(c.step(self.handle, floats(x), floats(y)))
        return y

    @property
    def state(self) -> list[Any]:
        h, cell = (
            np.empty((self.layers, c.rows(self.handle), n), np.float32) for n in self.sizes[1:]
        )
        self.done(c.get_state(self.handle, floats(h), floats(cell) if self.has_c else None))
        return [h, cell] if self.has_c else [h]

    @state.setter
    def state(self, state: list[Any]) -> None:
        h, cell = floats(state[0]), floats(state[1]) if self.has_c else None
        self.done(c.set_state(self.handle, h, cell))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "layer.safetensors"


# --- the library


def test_it_exports_the_functions_of_its_header_and_nothing_else() -> None:
    listed = output_of(["nm", "-D", "--defined-only", str(LIBRARY)]).splitlines()
    declared = re.findall(
        r"^FUSEDRNN_API [^;]*?\bfusedrnn_(\w+)\(", HEADER.read_text(), re.MULTILINE
    )
    assert sorted(line.split()[-1] for line in listed) == [
        f"fusedrnn_{n}" for n in sorted(declared)
    ]
    assert sorted(declared) == sorted(FUNCTIONS)


def test_it_needs_neither_torch_nor_a_pool_of_threads() -> None:
    needed = re.findall(r"NEEDED.*\[(\S+?)\.so", output_of(["readelf", "-d", str(LIBRARY)]))
    assert set(needed) <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "ld-linux-x86-64"}


def test_header_library_and_package_are_of_one_version() -> None:
    (version,) = re.findall(r'^#define FUSEDRNN_VERSION "(.*)"$', HEADER.read_text(), re.MULTILINE)
    assert c.version().decode() == version == fusedrnn.__version__.partition("+")[0]
    assert HEADER.read_text() == (ROOT / "csrc" / "frozen" / "fusedrnn.h").read_text()


def cc() -> str:
    found = shutil.which("cc")
    if not found:
        pytest.fail("there is no C compiler on PATH, where a C++ compiler is")
    return found


@pytest.fixture(scope="module")
def flags() -> list[str]:
    """What the command prints that users put between the backticks."""
    command = [sys.executable, "-m", "fusedrnn", "--cflags", "--libs"]
    return ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", *shlex.split(output_of(command))]


def test_the_header_is_c99_and_cxx(tmp_path: Path) -> None:
    source = tmp_path / "program.c"
    source.write_text("#include <fusedrnn.h>\nint main(void) { return !fusedrnn_version(); }\n")
    strict = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
    output_of([cc(), "-std=c99", *strict, str(source)])
    output_of([*compiler(), "-std=c++11", "-x", "c++", *strict, str(source)])


def test_the_example_gives_the_layers_bits(path: Path, tmp_path: Path, flags: list[str]) -> None:
    program = tmp_path / "stream"
    output_of([cc(), str(ROOT / "examples" / "c" / "stream.c"), "-o", str(program), *flags])
    made = frozen("GRU", torch.int8, num_layers=2)
    made.save(path)
    x = torch.randn(20, 1, I)

    def run(argument: Path) -> subprocess.CompletedProcess[bytes]:
        data = x.numpy().tobytes()
        return subprocess.run([str(program), str(argument)], input=data, capture_output=True)

    done = run(path)
    assert done.stdout == made(x)[0].numpy().tobytes()
    said = done.stderr.decode().splitlines()
    assert said == [f"GRU of 2 layers, int8, {I} numbers in, {H} out", "20 frames"]
    assert done.returncode == 0
    refused = run(tmp_path / "nowhere")
    assert refused.returncode == 1
    assert b"there is no such file" in refused.stderr


def test_the_pages_program_prints_the_layers_output(tmp_path: Path, flags: list[str]) -> None:
    page = (ROOT / "docs" / "c.md").read_text()
    (text,) = re.findall(r"^```c\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "detector.c").write_text(text)
    program = tmp_path / "detector"
    output_of([cc(), str(tmp_path / "detector.c"), "-o", str(program), *flags])
    made = fusedrnn.freeze(fusedrnn.GRU(40, 64, num_layers=2), torch.int8)
    made.save(tmp_path / "detector.safetensors")
    x = torch.randn(9, 1, 40)
    done = subprocess.run(
        [str(program)], input=x.numpy().tobytes(), cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.decode().split() == [f"{y:g}" for y in made(x)[0][:, 0, 0].tolist()]


# --- streams


@pytest.mark.parametrize(
    ("name", "to", "more"),
    [
        *(
            (name, to, {"num_layers": layers})
            for name in ("RNN", "LSTM", "GRU", "MGU")
            for to in DTYPES
            for layers in (1, 2)
        ),
        *(("LSTM", to, {"proj_size": 5, "num_layers": 2}) for to in DTYPES),
        ("RNN", None, {"nonlinearity": "relu", "bias": False}),
        ("GRU", None, {"dtype": torch.bfloat16}),
        ("LSTM", None, {"dtype": torch.float16}),
    ],
)
def test_steps_give_the_frozen_layers_bits(name: str, to: Any, more: Any, path: Path) -> None:
    made = frozen(name, to, **more)
    made.save(path)
    x = torch.randn(8, 3, I)
    y, end = made(x)
    stream = Stream(path, rows=3)
    for t in range(3):
        assert np.array_equal(stream.step(x[t]), y[t].numpy())
    assert np.array_equal(stream.run(x[3:]), y[3:].numpy())
    for found, expected in zip(stream.state, end if stream.has_c else [end], strict=True):
        assert np.array_equal(found, expected.numpy())


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_rows_join_leave_and_are_reset_as_in_python(name: str, path: Path) -> None:
    made = frozen(name, num_layers=2)
    made.save(path)
    ours, theirs = made.stream(2), Stream(path, rows=2)
    for change, argument in (("join", 2), ("leave", 1), ("reset", 0), ("reset", -1)):
        x = torch.randn(4, ours.batch, I)
        assert np.array_equal(theirs.run(x), ours.run(x).numpy())
        getattr(ours, change)(None if argument == -1 else argument)
        assert getattr(c, change)(theirs.handle, argument) == 0
        assert c.rows(theirs.handle) == ours.batch
        x = torch.randn(ours.batch, I)
        assert np.array_equal(theirs.step(x), ours.step(x))
    for _ in range(3):
        assert c.leave(theirs.handle, 0) == 0
    assert theirs.step(np.zeros((0, I))).shape == (0, H)


def test_states_are_copied_out_and_set(path: Path) -> None:
    frozen("LSTM", num_layers=2, proj_size=5).save(path)
    x = torch.randn(6, 2, I)
    stream, other = Stream(path, 2), Stream(path, 2)
    stream.run(x[:3])
    other.state = stream.state
    assert np.array_equal(other.run(x[3:]), stream.run(x[3:]))


def test_threads_share_a_model_and_have_a_stream_each(path: Path) -> None:
    made = frozen("LSTM", torch.int8, num_layers=2)
    made.save(path)
    xs = torch.randn(4, 200, 2, I)
    expected = [made(x)[0].numpy() for x in xs]
    model = c.load(str(path).encode())
    found: list[Any] = [np.empty((200, 2, H), np.float32) for _ in xs]
    errors = [""] * 4

    def work(i: int) -> None:
        stream = c.stream_new(model, 2)
        x = xs[i].numpy()
        for t in range(200):
            c.step(stream, floats(x[t]), floats(found[i][t]))
        c.reset(stream, 100 + i)
        errors[i] = c.error_text()
        c.stream_free(stream)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    c.free(model)
    assert all(map(np.array_equal, found, expected))
    # Each thread is told of its own errors.
    assert errors == [f"fusedrnn: row must be from 0 to 1, got {100 + i}" for i in range(4)]


def test_a_stream_refuses_a_second_thread(path: Path) -> None:
    frozen("LSTM").save(path)
    stream = Stream(path, 4)
    x, y = np.zeros((5000, 4, I), np.float32), np.empty((5000, 4, H), np.float32)
    errors = []

    def call(steps: int) -> None:
        if c.run(stream.handle, floats(x), floats(y), steps):
            errors.append(c.error_text())

    for _ in range(100):
        thread = threading.Thread(target=call, args=(5000,))
        thread.start()
        while thread.is_alive():
            call(1)
        thread.join()
        if errors:
            break
    assert errors
    assert all("one thread's at a time" in error for error in errors)


# --- refusals


@pytest.fixture
def stream(path: Path) -> Iterator[Any]:
    frozen("GRU").save(path)
    made = Stream(path, 2)
    yield made.handle
    # What was refused has changed nothing.
    assert c.rows(made.handle) == 2
    assert not np.any(made.state[0])


ROOM = floats(np.zeros(64, np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: c.step(None, ROOM, ROOM), "the stream is NULL"),
        (lambda s: c.step(s, None, ROOM), "x and y must not be NULL"),
        (lambda s: c.run(s, ROOM, ROOM, -1), "steps must be 0 or more"),
        (lambda s: c.run(s, ROOM, ROOM, 2**62), "no memory holds so many steps"),
        (lambda s: c.reset(s, 2), "row must be from 0 to 1, got 2"),
        (lambda s: c.reset(s, -2), "row must be from 0 to 1, got -2"),
        (lambda s: c.leave(s, -1), "row must be from 0 to 1, got -1"),
        (lambda s: c.join(s, -1), "must be 0 or more, got -1"),
        (lambda s: c.join(s, 2**62), "at most 2147483647 rows"),
        (lambda s: c.get_state(s, None, None), "h must not be NULL"),
        (lambda s: c.set_state(s, ROOM, ROOM), "has no c"),
        (lambda s: -bool(not c.stream_new(None, 1)), "the model is NULL"),
        (lambda s: -bool(not c.load(None)), "the path is NULL"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str, stream: Any) -> None:
    assert call(stream) == -1
    assert c.error_text().startswith("fusedrnn: ")
    assert message in c.error_text()


def test_nothing_to_do_needs_no_arrays(stream: Any) -> None:
    assert c.run(stream, None, None, 0) == 0
    c.free(None)
    c.stream_free(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (about(fusedrnn_frozen="2"), "version '2', and this library reads version 1"),
        (lambda header: header.pop("__metadata__"), "not a frozen layer"),
        (about(mode="CNN"), "mode 'CNN' is unknown"),
        (about(dtype="int4"), "dtype 'int4' is unknown"),
        (about(hidden_size="20"), "'weight_ih_l0' must be [60, 9], got [63, 9]"),
        (about(hidden_size="-1"), "hidden_size must be a number from 1, got '-1'"),
        (about(input_size="9" * 30), "input_size must be a number from 1"),
        (about(num_layers="2"), "'weight_ih_l1' is missing"),
        (about(bias="false"), "no place for tensor 'bias_hh_l0'"),
        (about(bias="1"), "bias must be 'true' or 'false', got '1'"),
        (about(proj_size="5"), "proj_size is for an LSTM"),
        (lambda header: header["__metadata__"].pop("bias"), "nothing of bias"),
        (
            lambda header: header.update(more=header.pop("weight_hh_l0")),
            "'weight_hh_l0' is missing",
        ),
        (of("bias_ih_l0", dtype="F16"), "'bias_ih_l0' [63] does not take 252 bytes"),
        (of("bias_ih_l0", dtype="C64"), "of dtype 'C64'"),
        (of("weight_ih_l0", dtype="I8", shape=[63, 36]), "must be [63, 9], got [63, 36]"),
        (of("bias_ih_l0", data_offsets=[0]), "no beginning and end"),
        (of("bias_ih_l0", data_offsets=[0, 10**9]), "cut off"),
        (of("bias_ih_l0", data_offsets=[0, 10**30]), "too large"),
        (of("bias_ih_l0", data_offsets=[0, 252]), "lies on another"),
        (of("bias_ih_l0", shape=[-63]), "expected a whole number"),
        (of("bias_ih_l0", shape=[63.0]), "expected"),
        (of("bias_ih_l0", shape="x"), "expected '['"),
        (of("bias_ih_l0", shape=[2**33, 2**33]), "does not take 252 bytes"),
        (of("bias_ih_l0", layout="x"), "got 'layout'"),
        (lambda header: header["bias_ih_l0"].pop("shape"), "without dtype, shape"),
        (lambda header: header.update(more={}), "without dtype"),
        (lambda header: header["__metadata__"].update(x={}), "expected '\"'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: Any, message: str, path: Path) -> None:
    frozen("GRU").save(path)
    rewritten(path, change)
    with pytest.raises(RuntimeError, match=re.escape(message)) as refused:
        Stream(path)
    assert str(refused.value).startswith(f"fusedrnn: cannot read {path}: ")


def test_other_kinds_of_file_are_refused(path: Path) -> None:
    for made, message in (
        (frozen(bidirectional=True), "bidirectional layer"),
        (frozen(dtype=torch.float64), "float64 layer: call float()"),
    ):
        made.save(path)
        with pytest.raises(RuntimeError, match=re.escape(message)):
            Stream(path)
    for place, message in ((path.parent, "not a regular file"), (path / "x", "no such file")):
        with pytest.raises(RuntimeError, match=message):
            Stream(place)
    frozen().save(path)
    with pytest.raises(RuntimeError, match="at most 2147483647 rows"):
        Stream(path, 2**31)
    rewritten(path, lambda header: None, b"more")
    with pytest.raises(RuntimeError, match="tensors take 10752 bytes, and there are 10756"):
        Stream(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(RuntimeError, match="no safetensors file"):
        Stream(path)


def test_names_may_be_escaped_and_tensors_lie_anywhere(path: Path) -> None:
    """Other programs write such headers: read by the same rules, to the same bits."""
    made = frozen("GRU", torch.bfloat16)
    made.save(path)
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    text = data[8:begin].replace(b'"GRU"', b'"G\\u0052U"').replace(b"_l0", b"\\u005fl0")
    text = text.replace(b'"mode"', b'"\xc3\xa9\\ud83d\\ude00\\n\\/": "x", "mode"').strip()
    for blanks in range(2):  # tensors at even bytes, and at odd ones
        header = text + b" " * ((len(text) + blanks) % 2)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[begin:])
        x = torch.randn(4, 1, I)
        assert np.array_equal(Stream(path).run(x), made(x)[0].numpy())


def test_damaged_files_never_crash_a_process_without_torch(path: Path) -> None:
    torch.manual_seed(0)
    fusedrnn.freeze(fusedrnn.LSTM(3, 4, proj_size=2), torch.int8).save(path)
    worker = [sys.executable, "-S", str(TESTS / "support" / "c_library.py")]
    refused, ran = map(int, output_of([*worker, str(LIBRARY), str(path), "500"]).split())
    assert refused > 400
    assert ran > 0  # other weights, or a flag that nobody asks for


def test_damaged_files_are_read_within_bounds(tmp_path: Path) -> None:
    """The reader alone, under sanitizers, so that many copies take a second."""
    files = []
    for dtype in DTYPES:
        files.append(str(tmp_path / f"{dtype}"))
        fusedrnn.freeze(fusedrnn.LSTM(3, 4, 2, proj_size=2), dtype).save(files[-1])
    sources = [ROOT / "csrc" / "frozen" / name for name in ("file.cpp", "json.cpp")]
    sources.append(TESTS / "kernels" / "cpp" / "frozen_file_test.cpp")
    objects = compiled(compiler(), sources, READER, tmp_path)
    program = str(tmp_path / "frozen_file_test")
    output_of([*compiler(), *objects, *READER, "-o", program])
    said = re.fullmatch(r"(\d+) refused, (\d+) whole\n", output_of([program, "2500", *files]))
    assert said
    assert int(said[1]) > 7_500
    assert int(said[2]) > 50
