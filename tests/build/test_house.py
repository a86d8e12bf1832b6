"""The house's limits: how long a file and a function may be, how many parameters it may take, and
where a cell may be told from another. What goes beyond a limit for a reason says so in a comment,
`Long because ...`. The checkers are themselves held to planted breaches."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.paths import ROOT

FILE, FUNCTION, PARAMETERS = 500, 60, 8  # the most lines, lines and parameters
REASON = "Long because "
FOLDERS = ("csrc", "fusedrnn", "tests", "benchmarks", "examples", "tools")
CXX = {".h", ".cuh", ".cpp", ".cu"}
# Long argument lists are for the operators' schemas; in Python and in tests they are not counted.
MAY_TAKE_MORE = re.compile(r"csrc/ops/(schema|calls)\.|(?!csrc/)")
# Where cells are told apart: their mathematics, their table, and the definition.
OF_CELLS = re.compile(r"csrc/(cells/.*|model/cell\.h)|fusedrnn/reference_cells\.py")
CELLS = {"LSTM", "GRU", "RNN", "RNN_TANH", "RNN_RELU", "MGU"}


class Function(NamedTuple):
    name: str
    parameters: int
    lines: int
    text: str  # with the comment before it


# --- C++, as far as its brackets and words tell


def blanked(source: str) -> str:
    """Without comments and what is quoted, everything else in its place."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'"
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found[0]), source, flags=re.DOTALL)


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed."""
    opened = text[start]
    closed = {"(": ")", "{": "}"}[opened]
    depth = 0
    for found in re.compile(rf"[{re.escape(opened + closed)}]").finditer(text, start):
        depth += 1 if found[0] == opened else -1
        if depth == 0:
            return found.start()
    return len(text) - 1


def parameters_of(text: str) -> int:
    depth, count = 0, int(bool(text.strip()))
    for letter in text.replace("->", "").replace("<<", ""):
        depth += letter in "(<[{"
        depth -= letter in ")>]}"
        count += letter == "," and depth == 0
    return count


NO_FUNCTION = {"if", "for", "while", "switch", "catch", "constexpr", "return", "defined", "sizeof"}
# Between a parameter list and a body.
BEFORE_BODY = re.compile(r"\s*(const\b\s*|noexcept\b\s*|override\b\s*)*(->[^{};()]*|:[^{};]*)?\{")


def functions_in_cxx(source: str) -> Iterator[Function]:
    text = blanked(source)
    for found in re.finditer(r"(\w+)\s*\(", text):
        if found[1] in NO_FUNCTION:
            continue
        end = closing(text, found.end() - 1)
        body = BEFORE_BODY.match(text, end + 1)
        if not body:
            continue
        last = closing(text, body.end() - 1)
        first = text.rfind("\n", 0, found.start()) + 1
        yield Function(
            found[1],
            parameters_of(text[found.end() : end]),
            text.count("\n", first, last) + 1,
            "\n".join(source[:first].splitlines()[-5:]) + source[first:last],
        )


def cells_told_apart_in_cxx(source: str) -> Iterator[str]:
    text = blanked(source)
    for found in re.finditer(r"[!=]=\s*Cell::k\w+|Cell::k\w+\s*[!=]=|case\s+Cell::k\w+", text):
        yield f"{found[0]}"
    for found in re.finditer(r"switch\s*\(", text):
        body = text.index("{", closing(text, found.end() - 1))
        part = text[body : closing(text, body)]
        if "case Cell::" in part and "default:" in part:
            yield "default: over cells"
    for found in re.finditer(r"[!=]=\s*\"(\w+)\"|\"(\w+)\"\s*[!=]=", source):
        if found[1] in CELLS or found[2] in CELLS:
            yield found[0]


# --- Python


def functions_in_python(source: str) -> Iterator[Function]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        end = node.end_lineno or node.lineno
        # What is documented at length is no longer for that.
        told = node.body[0] if ast.get_docstring(node) else None
        documented = (told.end_lineno or 0) - told.lineno + 1 if told else 0
        text = "\n".join(lines[max(0, node.lineno - 6) : end])
        yield Function(node.name, 0, end - node.lineno + 1 - documented, text)


def names_a_cell(node: ast.AST) -> bool:
    return any(isinstance(c, ast.Constant) and c.value in CELLS for c in ast.walk(node))


def cells_told_apart_in_python(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        compares = isinstance(node, ast.Compare) and any(
            map(names_a_cell, (node.left, *node.comparators))
        )
        begins = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("startswith")
        if compares or (begins and names_a_cell(node)):
            yield ast.unparse(node)


# --- the limits


def breaches(path: str, source: str) -> Iterator[str]:
    """What of a file goes beyond a limit, each under a name that stays when lines are added."""
    in_cxx = Path(path).suffix in CXX
    if source.count("\n") > FILE and REASON not in source:
        yield f"{path}: more than {FILE} lines"
    for function in functions_in_cxx(source) if in_cxx else functions_in_python(source):
        if function.lines > FUNCTION and REASON not in function.text:
            yield f"{path}: {function.name} has more than {FUNCTION} lines"
        if function.parameters > PARAMETERS and not MAY_TAKE_MORE.match(path):
            yield f"{path}: {function.name} takes more than {PARAMETERS} parameters"
    if path.startswith(("csrc/", "fusedrnn/")) and not OF_CELLS.fullmatch(path):
        told = cells_told_apart_in_cxx if in_cxx else cells_told_apart_in_python
        for what in told(source):
            yield f"{path}: tells cells apart: {what}"


def files() -> list[str]:
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if Path(path).suffix in CXX | {".py"}]


@pytest.fixture(scope="module")
def found() -> set[str]:
    there = (path for path in files() if (ROOT / path).is_file())
    return {each for path in there for each in breaches(path, (ROOT / path).read_text("utf-8"))}


def test_no_limit_is_broken(found: set[str]) -> None:
    assert sorted(found) == []


BODY = "\n".join(["  work();"] * 60)
LONG = f"int f(int a) const {{\n{BODY}\n}}\n"
NINE = "a, b, c, d, e, f, g, h, i".replace(", ", ", int ")


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("csrc/a.h", "\n" * 501, "more than 500 lines"),
        ("csrc/a.h", LONG, "f has more than 60 lines"),
        ("csrc/a.h", f"A::A(int a) : a_(a) {{\n{BODY}\n}}\n", "A has more than 60 lines"),
        ("csrc/a.h", f"auto g() -> int {{\n{BODY}\n}}\n", "g has more than 60 lines"),
        ("csrc/a.h", f"void g(int {NINE}) {{}}\n", "g takes more than 8 parameters"),
        ("csrc/a.h", "bool g(Cell c) { return c == Cell::kLstm; }\n", "apart: == Cell::kLstm"),
        ("csrc/a.h", "switch (c) { case Cell::kGru: break; default: g(); }\n", "default: over"),
        ("csrc/a.h", 'bool g() { return mode == "LSTM"; }\n', 'apart: == "LSTM"'),
        ("csrc/a.h", 'bool g() { return "MGU" != mode; }\n', 'apart: "MGU" !='),
        ("fusedrnn/a.py", "def f():\n" + " pass\n" * 60, "f has more than 60 lines"),
        ("fusedrnn/a.py", 'c = mode in ("LSTM", "GRU")\n', "apart: mode in ('LSTM', 'GRU')"),
        ("fusedrnn/a.py", 'c = mode.startswith("RNN")\n', "apart: mode.startswith('RNN')"),
    ],
)
def test_a_planted_breach_is_found(path: str, source: str, what: str) -> None:
    assert any(what in each for each in breaches(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("csrc/a.h", f"// Long because of its registers.\n{LONG}"),
        ("csrc/a.h", f"void g(std::map<int, int> {NINE[:-14]}) {{}}\n"),
        ("csrc/a.h", f"int x = g({NINE});\n"),
        ("csrc/a.h", "// c == Cell::kLstm\n"),
        ("csrc/cells/a.h", "bool g(Cell c) { return c == Cell::kLstm; }\n"),
        ("csrc/ops/schema.cpp", f"void g(int {NINE}) {{}}\n"),
        ("fusedrnn/a.py", f'def f():\n """{"long" * 5}\n{chr(10) * 60}"""\n'),
        ("fusedrnn/reference_cells.py", 'c = mode == "LSTM"\n'),
        ("tests/a.py", 'c = mode == "LSTM"\n'),
    ],
)
def test_what_is_within_the_limits_passes(path: str, source: str) -> None:
    assert [*breaches(path, source)] == []
