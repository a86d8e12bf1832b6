"""Documentation that cannot drift: docstrings are read beside signatures and sources, code blocks
are run, links are followed. Sphinx renders the docstrings in a stage of .ci/run, with warnings as
errors."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import draw_sequences
import draw_serving
import fusedrnn
from fusedrnn import functional, plan, reference, tuning
from support import docstrings
from support.pages import run
from support.paths import ROOT

PAGES = sorted(ROOT.glob("docs/*.md"))
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(ROOT / name for name in ("benchmarks/README.md", "examples/README.md")),
    *PAGES,
]
PYTHON = [path for path in TEXTS if "```python\n" in path.read_text()]
WRITTEN_LATER = {"benchmarks/results/latest.jsonl"}  # by a run, and ignored by git


def public(module: ModuleType) -> dict[str, Any]:
    """What a module offers: its __all__, or what it defines without an underscore."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    things = {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    return {name: thing for name, thing in things.items() if callable(thing)}


PLANS = {
    f"fusedrnn.plan.{thing.__name__}": thing
    for thing in (plan.Plan, plan.LayerPlan, plan.CudaLayerPlan, plan.CudaPassPlan)
}
TUNINGS = {f"fusedrnn.tuning.{thing.__name__}": thing for thing in (tuning.Tuning, tuning.Result)}
PUBLIC = public(fusedrnn) | public(functional) | public(reference) | PLANS | TUNINGS


def title(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def inclusions(path: Path) -> list[tuple[str, list[str]]]:
    """The files a page includes, each with the marks between which."""
    text = path.read_text()
    found = re.findall(r"^```\{include\} (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    mark = re.compile(r'^:(?:start-after|end-before): "?(.*?)"?$', re.MULTILINE)
    return [(name, mark.findall(options)) for name, options in found]


def anchors(path: Path) -> set[str]:
    """The fragments GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Links, images, included files and paths in backticks that lead nowhere in the repository."""
    text = path.read_text()
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, fragment = target.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        file = path.parent / name if name else path
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    for name, marks in inclusions(path):
        file = path.parent / name
        if file.exists():
            broken += [f"{name}: {mark}" for mark in marks if mark not in file.read_text()]
        else:
            broken.append(name)
    named = re.findall(r"`((?:benchmarks|csrc|docs|fusedrnn|tests|\.ci)/[\w./]*)`", text)
    return broken + [n for n in named if n not in WRITTEN_LATER and not (ROOT / n).exists()]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_says_what_it_owes(name: str) -> None:
    assert docstrings.gaps(name, PUBLIC[name]) == []


def test_every_public_name_is_on_a_page_of_the_reference() -> None:
    pages = "".join(path.read_text() for path in PAGES)
    shown = set(re.findall(r"^\.\. auto[cf]\w+:: ([\w.]+)", pages, re.MULTILINE))
    whole = re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", pages, re.MULTILINE)
    shown |= {name for name in PUBLIC if name.rpartition(".")[0] in whole}
    assert PUBLIC.keys() - shown == set()


def test_the_package_offers_every_module_it_defines() -> None:
    parts = [part for name, part in sys.modules.items() if name.startswith("fusedrnn.")]
    classes = [thing for part in parts for thing in vars(part).values() if inspect.isclass(thing)]
    ours = {c for c in classes if issubclass(c, nn.Module) and c.__module__.startswith("fusedrnn.")}
    assert {c.__name__ for c in ours if c.__name__[0] != "_"} <= set(fusedrnn.__all__)
    assert fusedrnn.GRUCell in ours


def scale(input: Tensor, factor: float = 1.0, bias: Tensor | None = None) -> Tensor:
    if factor < 0:
        raise ValueError("factor must not be negative")
    return input * factor if bias is None else input * factor + bias


WHOLE = """Scale.

Args:
    input: [B, I].
    factor: what to multiply with. Default: 1.
    bias: [I], or None.
Returns:
    [B, I].
Raises:
    ValueError: a negative factor.
"""


@pytest.mark.parametrize(
    ("said", "instead", "gap"),
    [
        ("Scale.", "Scale.", None),
        (WHOLE, "", "no docstring"),
        ("    factor: what", "    what", "factor is not an entry of Args or Inputs"),
        ("Default: 1.", "Default: 2.", "factor does not state its default, 1.0"),
        ("[I], or None", "[I]", "bias does not state its default, None"),
        ("input: [B, I]", "input: a tensor", "input has no shape"),
        ("what to multiply with", "F. What to multiply with", "factor begins like an enumeration"),
        ("    [B, I].\n", "    a tensor.\n", "what it returns has no shape"),
        ("Returns:\n", "Gives:\n", "nothing is said of what it returns"),
        ("Raises:\n", "Refuses:\n", "nothing is said of what it raises"),
        ("ValueError", "TypeError", "ValueError is raised and not told"),
    ],
)
def test_a_planted_gap_is_found(
    monkeypatch: pytest.MonkeyPatch, said: str, instead: str, gap: str | None
) -> None:
    assert said in WHOLE
    monkeypatch.setattr(scale, "__doc__", WHOLE.replace(said, instead))
    monkeypatch.setattr(scale, "__module__", "fusedrnn.planted")
    found = docstrings.gaps("scale", scale)
    if gap is None:
        assert found == []
    else:
        assert any(text.startswith(gap) for text in found)


def test_a_missing_source_of_a_formula_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "__doc__", WHOLE)
    missing = ["the source of its formula, Cho et al., 2014, is not named"]
    assert docstrings.gaps("fusedrnn.GRUCell", scale) == missing
    assert docstrings.gaps("fusedrnn.reference.gru_cell", scale) == missing


def test_an_exception_is_found_through_calls() -> None:
    told = {"IndexError", "RuntimeError", "TypeError", "ValueError"}
    assert docstrings.raised(fusedrnn.LSTM) == told
    assert docstrings.raised(functional.rnn) == told - {"IndexError"}


@pytest.mark.parametrize("path", PYTHON, ids=title)
def test_code_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(path)
    assert torch.nn.LSTM.__module__ == "torch.nn.modules.rnn", "a block leaves torch.nn patched"


def test_the_readme_and_the_guide_have_code_blocks() -> None:
    assert {title(path) for path in PYTHON} >= {"README.md", "docs/index.md"}


@pytest.mark.parametrize("path", TEXTS, ids=title)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_planted_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, or so\n[a](gone.md) [b](#a-page-or-so) [c](#gone) [d](https://gone.example)\n"
        "![e](page.md#gone) `tests/gone.py` `tests/conftest.py`\n\n```{include} gone.md\n```\n"
        '```{include} other.md\n:start-after: "# Other"\n:end-before: <!-- end -->\n```\n'
    )
    (tmp_path / "other.md").write_text("# Other\ntext\n")
    links = ["gone.md", "#gone", "page.md#gone", "gone.md", "other.md: <!-- end -->"]
    assert broken_links(page) == [*links, "tests/gone.py"]


@pytest.mark.parametrize("name", draw_sequences.PICTURES)
def test_a_picture_is_what_its_program_draws(name: str) -> None:
    committed = ROOT / "docs" / "images" / f"{name}.svg"
    assert committed.read_text("utf-8") == draw_sequences.PICTURES[name]()


@pytest.mark.parametrize("name", draw_serving.PICTURES)
def test_a_picture_of_results_is_what_its_program_draws(name: str) -> None:
    committed = ROOT / "docs" / "images" / f"{name}.svg"
    results = ROOT / "benchmarks" / "results" / "zen4"
    assert committed.read_text("utf-8") == draw_serving.PICTURES[name](results)


@pytest.mark.parametrize("block", [">>> 1 + 1\n3\n", "assert 1 + 1 == 3\n"])
def test_a_planted_block_fails(tmp_path: Path, block: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"text\n\n```python\n{block}```\n")
    with pytest.raises(AssertionError):
        run(page)
