"""What a type checker is told: mypy reads programs that use the package, and agrees with them.

nn.Module leaves the result of a call Any, so a wrong use of torch.nn's layers passes unseen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusedrnn

pytest.importorskip("mypy", reason="mypy, of the extra 'test-all', is not installed")

PREAMBLE = """
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

import fusedrnn

Pair = tuple[Tensor, Tensor]
rnn, lstm, gru = fusedrnn.RNN(3, 5), fusedrnn.LSTM(3, 5, 2, proj_size=2), fusedrnn.GRU(3, 5)
rnn_cell, lstm_cell = fusedrnn.RNNCell(3, 5), fusedrnn.LSTMCell(3, 5)
gru_cell = fusedrnn.GRUCell(3, 5)


def program(x: Tensor, rows: PackedSequence, either: Tensor | PackedSequence, hx: Pair) -> None:
"""

RIGHT = """
assert_type(rnn(x), tuple[Tensor, Tensor])
assert_type(gru(x, hx[0]), tuple[Tensor, Tensor])
assert_type(lstm(x), tuple[Tensor, Pair])
assert_type(lstm(input=x, hx=hx), tuple[Tensor, Pair])
assert_type(rnn(rows), tuple[PackedSequence, Tensor])
assert_type(gru(rows, hx=hx[0]), tuple[PackedSequence, Tensor])
assert_type(lstm(rows, hx), tuple[PackedSequence, Pair])
assert_type(lstm.forward(x), tuple[Tensor, Pair])
assert_type(gru.forward(rows), tuple[PackedSequence, Tensor])
output, (h_n, c_n) = lstm(either)
assert_type(c_n, Tensor)
assert_type(rnn_cell(x), Tensor)
assert_type(gru_cell(x, x), Tensor)
assert_type(lstm_cell(x, hx), Pair)
assert_type(fusedrnn.functional.gru(rows, None, [x]), tuple[PackedSequence, Tensor])
assert_type(fusedrnn.functional.lstm(x, hx, [x]), tuple[Tensor, Pair])
assert_type(lstm.all_weights[0][0], torch.nn.Parameter)
assert_type(fusedrnn.convert(torch.nn.Linear(2, 3)), torch.nn.Linear)
assert_type(fusedrnn.explain(lstm), fusedrnn.layers.Layers)
assert_type(fusedrnn.explain(lstm, x), fusedrnn.plan.Plan)
with fusedrnn.patch() as patched: assert_type(patched, fusedrnn.Patch)
""".strip().splitlines()

WRONG = """
lstm(x, x)
lstm(x, (x,))
gru(x, hx)
rnn(3)
lstm(x, hx, x)
lstm(x)[1].tanh()
gru(rows)[0].tanh()
lstm_cell(x, x)
gru_cell(x, hx)
fusedrnn.GRU(3, 5, proj_size="2")
fusedrnn.LSTM(3, 5, nonlinearity="relu")
fusedrnn.LSTM(3, 5, bias=1.5)
fusedrnn.RNN("3", 5)
fusedrnn.functional.lstm(x, x[0], [x], bidirectional="yes")
fusedrnn.convert("model")
""".strip().splitlines()


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy --strict says of each line of one program of all lines, and of other files."""
    folder = tmp_path_factory.mktemp("typing")
    path = folder / "program.py"
    path.write_text(PREAMBLE + "".join(f"    {line}\n" for line in RIGHT + WRONG))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    command += [f"--cache-dir={folder}", "--untyped-calls-exclude=torch", str(path)]
    # mypy finds what pip installed by itself, but not what an editable install points to.
    where = Path(fusedrnn.__file__).parents[1]
    path_too = {} if where.name == "site-packages" else {"MYPYPATH": str(where)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | path_too,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr or done.stdout
    lines = path.read_text().splitlines()
    said: dict[str, list[str]] = {}
    for message in done.stdout.splitlines():
        place, _, text = message.partition(": error: ")
        if text:
            name, _, number = place.rpartition(":")
            own = Path(name).name == path.name
            said.setdefault(lines[int(number) - 1].strip() if own else name, []).append(text)
    return said


@pytest.mark.parametrize("line", RIGHT)
def test_types_of_results_follow_the_input(line: str, errors: dict[str, list[str]]) -> None:
    assert line not in errors, errors[line]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_found(line: str, errors: dict[str, list[str]]) -> None:
    assert line in errors


def test_the_program_and_the_package_have_no_other_errors(errors: dict[str, list[str]]) -> None:
    assert {k: v for k, v in errors.items() if k not in WRONG} == {}
