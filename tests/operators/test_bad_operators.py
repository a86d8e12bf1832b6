"""torch.ops.fusedrnn called directly, with anything: no call crashes, hangs or answers nonsense.

Calls that are right are drawn, then some of their arguments replaced by tensors of any rank, size,
dtype and layout, strings, lists and None. A process of its own makes them (operator_worker.py), so
that one which kills it fails like any other, is made smaller by hypothesis, and is printed as a
line that can be run. What is accepted must be what the definition computes.
"""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fusedrnn import _C
from support.operator_worker import HOW, OPERATORS
from support.paths import TESTS
from support.problems import MODES
from support.theirs import GATES

HANGS_AFTER = 120.0  # seconds
REFUSALS = ("RuntimeError", "NotImplementedError", "ValueError", "TypeError")


class Worker:
    """The process that makes the calls; another one where it died."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "stderr"
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        with self._errors.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, TESTS / "support" / "operator_worker.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._answer(process) == "ready", self._errors.read_text()
        return process

    def _answer(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], HANGS_AFTER)[0]:
            process.kill()
            return "hangs"
        return process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """What the process answers; how it died if it did."""
        self._process = self._process or self._start()
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._answer(self._process)
        if answer not in ("", "hangs"):
            return answer
        status = self._process.wait()
        self.close()
        return f"{answer or 'died'}, exit status {status}: {self._errors.read_text()[-2000:]}"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as folder:
        process = Worker(Path(folder))
        yield process
        process.close()


def tensor(*shape: int, dtype: str = "float32", how: str = "plain") -> str:
    return f"t({shape!r}, {dtype!r}, {how!r})"


DTYPES = ["float32", "float64", "float16", "bfloat16", "complex64", "complex128"]
DTYPES += ["int64", "int32", "uint8", "bool", "float8_e4m3fn"]
# torch itself prints what is no tensor's place, and dies of that if there is nothing to print.
PRINTABLE = [how for how in HOW if not how.startswith(("freed", "cut"))]
SIZES = st.sampled_from((0, 1, 2, 3, 4, 5, 7, 17)) | st.sampled_from((2**31, 2**40))


@st.composite
def garbage(draw: Any, like: str | None = None, layouts: Sequence[str] = (*HOW,)) -> str:
    """A tensor: one like another but for its shape, dtype or layout, or any."""
    kind = draw(st.sampled_from(("how", "dtype", "size", "rank", "any"))) if like else "any"
    if kind == "any":
        shape = draw(st.lists(SIZES, max_size=5))
        return tensor(
            *shape, dtype=draw(st.sampled_from(DTYPES)), how=draw(st.sampled_from(layouts))
        )
    arguments: Any = eval(str(like), {"t": lambda *a: list(a)})
    shape = list(arguments[0])
    if kind == "how":
        return tensor(*shape, dtype=arguments[1], how=draw(st.sampled_from(layouts)))
    if kind == "dtype":
        return tensor(*shape, dtype=draw(st.sampled_from(DTYPES)))
    if kind == "rank":
        at = draw(st.integers(0, len(shape)))
        shape[at:at] = [draw(SIZES)] if draw(st.booleans()) or not shape else []
        shape = shape if len(shape) > len(arguments[0]) else shape[1:]
    elif shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(SIZES)
    return tensor(*shape, dtype=arguments[1])


BATCH_SIZES = st.builds(
    "sizes({!r}, {!r})".format,
    st.lists(st.integers(-1, 7) | st.sampled_from((2**62, 2**62 + 1, 2**63 - 1)), max_size=5),
    st.sampled_from((*HOW,)),
)
ANYTHING = st.sampled_from(
    ("None", "[]", "[None]", "''", "'LSTM'", "-1", "2**63", "True", "object()")
)
FLAGS = st.sampled_from(("True", "False", "None", "2", "'yes'"))
STRINGS = st.sampled_from([repr(mode) for mode in MODES]) | st.text(max_size=5).map(repr) | ANYTHING


@st.composite
def replaced(draw: Any, given: str, name: str) -> str:
    """Another argument in the place of one that is right."""
    if draw(st.integers(0, 9)) == 0:
        return str(draw(ANYTHING | garbage(layouts=PRINTABLE)))
    if name == "batch_sizes":
        return str(draw(BATCH_SIZES | garbage() | st.just("None")))
    if name == "mode":
        return str(draw(STRINGS))
    if name == "needs":
        return repr(draw(st.lists(st.booleans(), max_size=20)))
    if name in ("has_biases", "train", "bidirectional"):
        return str(draw(FLAGS))
    if name == "num_layers":
        return str(draw(st.sampled_from((-1, 0, 1, 2, 3, 2**31, 2**62))))
    if name == "dropout":
        return str(draw(st.sampled_from(("-1.", "0.", "0.5", "1.", "2.", "float('nan')"))))
    return str(draw(garbage(given if given.startswith("t(") else None) | st.just("None")))


def right_for_a_cell(mode: str, dtype: str, how: str, B: int, I: int, H: int) -> dict[str, Any]:  # noqa: E741
    GH = GATES[mode] * H
    return {
        "input": tensor(B, I, dtype=dtype, how=how),
        "hx": tensor(B, H, dtype=dtype),
        "cx": tensor(B, H, dtype=dtype) if mode == "LSTM" else "None",
        "w_ih": tensor(GH, I, dtype=dtype),
        "w_hh": tensor(GH, H, dtype=dtype),
        "b_ih": tensor(GH, dtype=dtype),
        "b_hh": tensor(GH, dtype=dtype),
        "mode": repr(mode),
    }


@st.composite
def right(draw: Any, operator: str) -> dict[str, Any]:
    """The arguments of a call that fits, as expressions, by name."""
    mode = draw(st.sampled_from(MODES))
    dtypes = ["float32", "float64"]
    dtypes += ["bfloat16"] if operator in ("stack", "cell") else []
    dtypes += ["complex128"] if "backward" not in operator and mode != "RNN_RELU" else []
    dtype = draw(st.sampled_from(dtypes))
    how = draw(st.sampled_from(("plain", "grad")))
    T, B, I, H = (draw(st.integers(1, 5)) for _ in "TBIH")  # noqa: E741
    if operator == "cell":
        return right_for_a_cell(mode, dtype, how, B, I, H)
    biases, both, packed, states = (draw(st.booleans()) for _ in range(4))
    L = draw(st.integers(1, 3)) if operator == "stack" else 1
    P = draw(st.integers(1, H)) if mode == "LSTM" and draw(st.booleans()) else 0
    D, out = 1 + both, P or H
    lengths = sorted(draw(st.lists(st.integers(1, B), min_size=T - 1, max_size=T - 1)))[::-1]
    batch_sizes = [B, *lengths]
    N = sum(batch_sizes) if packed else T * B
    rows = (N,) if packed else (T, B)
    GH = GATES[mode] * H
    weights = []
    for layer in range(L):
        for _ in range(D):
            weights.append(tensor(GH, D * out if layer else I, dtype=dtype, how=how))
            weights.append(tensor(GH, out, dtype=dtype))
            weights += [tensor(GH, dtype=dtype)] * 2 * biases
            weights += [tensor(P, H, dtype=dtype)] * bool(P)
    arguments: dict[str, Any] = {
        "input": tensor(*rows, I, dtype=dtype, how=how),
        "batch_sizes": f"sizes({batch_sizes})" if packed else "None",
        "hx": tensor(L * D, B, out, dtype=dtype) if states else "None",
        "cx": tensor(L * D, B, H, dtype=dtype) if states and mode == "LSTM" else "None",
        "weights": weights,
        "mode": repr(mode),
        "has_biases": repr(biases),
    }
    if operator == "layer":
        return arguments | {"train": repr(draw(st.booleans()))}
    if operator == "stack":
        dropout = draw(st.sampled_from(("0.",) if dtype == "complex128" else ("0.", "0.5")))
        more = {"num_layers": repr(L), "dropout": dropout, "train": repr(draw(st.booleans()))}
        return arguments | more | {"bidirectional": repr(both)}
    if operator == "layer_reference":
        return arguments
    width = _C.reserve_width(mode, dtype, H, P, "cpu")
    given = [how in ("plain", "grad"), states, states and mode == "LSTM"]
    needs = [g and draw(st.booleans()) for g in given] + [draw(st.booleans()) for _ in weights]
    slopes = {
        "grad_output": tensor(*rows, D * out, dtype=dtype),
        "grad_h_n": draw(st.sampled_from((tensor(D, B, out, dtype=dtype), "None"))),
        "grad_c_n": tensor(D, B, H, dtype=dtype) if mode == "LSTM" else "None",
    }
    made = {
        "output": tensor(*rows, D * out, dtype=dtype),
        "reserve": draw(st.sampled_from((tensor(D, N, width, dtype=dtype), tensor(0)))),
    }
    flags = {key: arguments.pop(key) for key in ("mode", "has_biases")}
    return slopes | arguments | made | flags | {"needs": repr(needs)}


def line(operator: str, arguments: dict[str, Any]) -> str:
    written = [f"[{', '.join(a)}]" if isinstance(a, list) else a for a in arguments.values()]
    return f"{operator}({', '.join(written)})"


@st.composite
def calls(draw: Any) -> str:
    operator = draw(st.sampled_from(OPERATORS))
    arguments = draw(right(operator))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from([*arguments]))
        value = arguments[name]
        if not isinstance(value, list):
            arguments[name] = draw(replaced(value, name))
        elif value and draw(st.integers(0, 4)):
            at = draw(st.integers(0, len(value) - 1))
            value[at : at + 1] = [draw(replaced(value[at], name))] * draw(st.integers(0, 2))
        else:
            arguments[name] = draw(ANYTHING | garbage(layouts=PRINTABLE))
    return line(operator, arguments)


def verdict(answer: str) -> str | None:
    """What is wrong with an answer."""
    kind = answer.partition(":")[0]
    if answer in ("returned", "returned meta tensors"):
        return None
    if kind not in REFUSALS or "INTERNAL ASSERT" in answer:
        return answer
    return None


def test_no_arguments_crash_an_operator_or_are_accepted_wrongly(
    worker: Worker, pytestconfig: pytest.Config
) -> None:
    @settings(
        max_examples=pytestconfig.getoption("fuzz") // 4,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(calls())
    def check(call: str) -> None:
        wrong = verdict(worker.ask(call))
        assert wrong is None, f"{call}\n{wrong}"

    number = pytestconfig.getoption("fuzz_seed")
    (seed(number)(check) if number else check)()


@pytest.mark.parametrize("operator", OPERATORS)
def test_right_calls_are_accepted(operator: str, worker: Worker) -> None:
    """Or the others would be refused for something else than what was made wrong in them."""

    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # too slow is the machine, when it is busy
    )
    @given(right(operator))
    def check(arguments: dict[str, Any]) -> None:
        call = line(operator, arguments)
        assert worker.ask(call) == "returned", call

    check()


LSTM = "[t((20, 3)), t((20, 5)), t((20,)), t((20,))]"
ONCE_WRONG = {
    # A storage that is gone was read.
    "freed": (f"layer(t((4, 2, 3), how='freed'), None, None, None, {LSTM}, 'LSTM', True, False)"),
    "cut": (f"layer(t((4, 2, 3), how='cut'), None, None, None, {LSTM}, 'LSTM', True, True)"),
    # Sums that overflow back to the number of rows.
    "wrapping": (
        f"layer(t((6, 3)), sizes([2**62 + 2, 2**62 + 2, 2**62 + 1, 2**62 + 1]), None, None, "
        f"{LSTM}, 'LSTM', True, False)"
    ),
    # What goes to the definition was checked nowhere.
    "no steps": "layer(t((0, 2, 3), 'complex64'), None, None, None, "
    "[t((5, 3), 'complex64'), t((5, 5), 'complex64')], 'RNN_TANH', False, False)",
    "mode": "layer(t((4, 2, 3), 'complex64'), None, None, None, "
    "[t((5, 3), 'complex64'), t((5, 5), 'complex64')], 'other', False, False)",
    "no weights": "layer_reference(t((4, 2, 3)), None, None, None, [], 'GRU', True)",
    # Nor what only shapes are inferred for.
    "meta": "layer(t((4, 2, 3), how='meta'), None, None, None, [], 'GRU', True, False)",
    "mixed": f"layer(t((4, 2, 3), how='meta'), None, None, None, {LSTM}, 'LSTM', True, False)",
    # A dropout that is no probability was none.
    "dropout": "stack(t((4, 2, 3)), None, None, None, [t((5, 3)), t((5, 5)), t((5, 5)), t((5, 5))],"
    " 'RNN_TANH', False, 2, -1., True, False)",
    "nothing": "layer_backward(None, None, None, None, None, None, None, [], None, None, 'GRU', "
    "True, [])",
}


@pytest.mark.parametrize("what", ONCE_WRONG)
def test_calls_that_once_crashed_or_were_accepted_are_refused(what: str, worker: Worker) -> None:
    answer = worker.ask(ONCE_WRONG[what])
    assert answer.partition(":")[0] in REFUSALS, answer
