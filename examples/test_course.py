"""The notebook of the course: its commands exist, its formulas are whole, every system is in it.

That it runs is tested with the other notebook, in tests/build/test_notebook.py.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from examples import diagrams
from examples.driver import options, suite
from examples.driver.workload import WORKLOADS, workload

CELLS = json.loads(Path(__file__).with_name("course.ipynb").read_text("utf-8"))["cells"]
TEXT = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
COMMANDS = re.findall(r"^    python -m (examples.*)$", TEXT, re.MULTILINE)
DISPLAYED = r"\$\$(.+?)\$\$"
INLINE = r"\$([^$]+)\$"


def sections() -> dict[str, list[tuple[str, str]]]:
    """By the folder that a section's first link leads to, the kinds and sources of its cells."""
    found: dict[str, list[tuple[str, str]]] = {}
    for cell in CELLS:
        source = "".join(cell["source"])
        if source.startswith("## "):
            name = re.search(r"\]\((\w+)\)", source)
            section = found.setdefault(name[1] if name else "", [])
        elif not found:
            continue  # the title and the imports
        section.append((cell["cell_type"], source))
    return found


OPENS = {"{": "}", "(": ")", "[": "]", r"\Bigl(": r"\Bigr)", r"\left(": r"\right)"}
TOKEN = r"\\(?:begin|end)\{\w+\}|\\(?:Bigl|Bigr|left|right)[()]|\\[A-Za-z]+|\\.|[{}()\[\]]"


def faults(latex: str) -> list[str]:
    """What is opened and not closed in a formula, or closed and not opened."""
    found: list[str] = []
    opened: list[str] = []  # what closes it
    for token in re.findall(TOKEN, latex):
        if token in OPENS:
            opened.append(OPENS[token])
        elif token.startswith(r"\begin{"):
            opened.append(token.replace("begin", "end"))
        elif token in OPENS.values() or token.startswith(r"\end{"):
            if opened[-1:] == [token]:
                opened.pop()
            else:
                found.append(token)
    return [*found, *reversed(opened)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_notebook_parses(command: str) -> None:
    module, *words = shlex.split(command)
    if module == "examples.diagrams":
        diagrams.parser().parse_args(words)
    elif words[0] == "all":
        assert suite.commands(words[1:])
    else:
        options.parser(workload(words[0])).parse_args(words[1:])


def test_every_system_has_equations_code_and_a_command_that_answers_the_exercise() -> None:
    found = sections()
    assert [name for name in found if name] == list(WORKLOADS)
    for name in WORKLOADS:
        text = "\n".join(source for kind, source in found[name] if kind == "markdown")
        assert re.search(DISPLAYED, text, re.DOTALL), name
        assert "code" in {kind for kind, _ in found[name]}, name
        exercise = text[text.index("**Exercise.**") :]
        assert f"    python -m examples {name} " in exercise, name


def test_every_formula_is_whole() -> None:
    displayed = re.findall(DISPLAYED, TEXT, re.DOTALL)
    rest = re.sub(DISPLAYED, "", TEXT, flags=re.DOTALL)
    inline = re.findall(INLINE, rest)
    assert len(displayed) > len(WORKLOADS)
    assert inline
    assert "$" not in re.sub(INLINE, "", rest)
    assert [latex for latex in displayed + inline if faults(latex)] == []


@pytest.mark.parametrize(
    ("latex", "missing"),
    [
        (r"\frac{a}{b}", []),
        (r"\frac{a}{b", ["}"]),
        (r"(a + b))", [")"]),
        (r"\begin{aligned} a \end{aligned}", []),
        (r"\begin{aligned} a", [r"\end{aligned}"]),
        (r"\begin{cases} a \end{aligned}", [r"\end{aligned}", r"\end{cases}"]),
        (r"\exp\Bigl(a\Bigr)", []),
        (r"\exp\Bigl(a)", [")", r"\Bigr)"]),
        (r"\{ a", []),  # an escaped brace is a sign, not a delimiter
    ],
)
def test_a_formula_that_is_not_whole_is_told(latex: str, missing: list[str]) -> None:
    assert faults(latex) == missing


def test_the_notebook_draws_every_cell() -> None:
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    drawn = Counter(re.findall(r'diagrams\.png\("(\w+)"\)', code))
    assert drawn == dict.fromkeys(diagrams.DIAGRAMS, 1)
