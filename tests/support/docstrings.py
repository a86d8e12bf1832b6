"""Reads a Google-style docstring beside its signature and source, and says what it leaves out.

What a docstring owes: every argument by name, with its default; shapes of tensors, in and out;
every exception that fusedrnn's Python below it raises; and the paper a formula comes from. An
entry may refer to another function's, ``as for :func:`lstm```, and then owes what that one does.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

SECTIONS = ("Args", "Attributes", "Inputs", "Outputs", "Returns", "Raises")
SOURCES = {
    "rnn": "Elman, 1990",
    "lstm": "Hochreiter & Schmidhuber, 1997",
    "gru": "Cho et al., 2014",
}
TENSORS = re.compile(r"\b(Tensor|PackedSequence|Sequences)\b")
SHAPE = re.compile(r"\[[^\]]*[A-Z0-9][^\]]*\]")
THE_MODULES = re.compile(r"as the module (takes|returns) it")
REFERRED = re.compile(r"\bas (?:for )?:func:`(\w+)`")


@dataclasses.dataclass
class Docstring:
    """A docstring, the text of its sections, and their entries ``a, b: about``."""

    text: str
    sections: dict[str, str]
    entries: dict[str, dict[str, str]]

    @property
    def arguments(self) -> dict[str, str]:
        return self.entries.get("Args", {}) | self.entries.get("Inputs", {})

    @property
    def results(self) -> str:
        return self.sections.get("Returns", "") + self.sections.get("Outputs", "")


def parse(docstring: str | None) -> Docstring:
    text = inspect.cleandoc(docstring or "")
    section = rf"^({'|'.join(SECTIONS)}):\n((?:[ ]+.*\n?|\n)*)"
    sections = {
        name: textwrap.dedent(body) for name, body in re.findall(section, text, re.MULTILINE)
    }
    entries: dict[str, dict[str, str]] = {}
    for name, body in sections.items():
        entry = r"^(\w+(?:, \w+)*): (.*(?:\n[ ]+.*)*)"
        entries[name] = {
            argument: " ".join(about.split())
            for arguments, about in re.findall(entry, body, re.MULTILINE)
            for argument in arguments.split(", ")
        }
    return Docstring(text, sections, entries)


def parameters(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a caller passes: to a function, or to a module's constructor and forward."""
    found = dict(inspect.signature(thing).parameters)
    if forward := _forward(thing):
        found |= inspect.signature(forward).parameters
        found.pop("self")
    return found


def result(thing: Callable[..., Any]) -> str:
    """What comes back, as annotated; of a class, from forward."""
    function = _forward(thing) if isinstance(thing, type) else thing
    return str(inspect.signature(function).return_annotation) if function else "None"


def raised(thing: Any, owner: type | None = None, seen: set[Any] | None = None) -> set[str]:
    """Names of the exceptions that fusedrnn's Python raises when ``thing`` is called."""
    seen = set() if seen is None else seen
    if isinstance(thing, type):
        called = (getattr(thing, "__init__", None), _forward(thing))
        return {error for function in called for error in raised(function, thing, seen)}
    ours = isinstance(thing, FunctionType) and thing.__module__.partition(".")[0] == "fusedrnn"
    if not ours or thing in seen or thing.__code__.co_filename[0] == "<":  # a dataclass's __init__
        return set()
    seen.add(thing)
    errors: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(thing)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            errors.add(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Call):
            errors |= raised(_called(node.func, thing, owner), owner, seen)
    return errors


def _forward(thing: Any) -> Any:
    return getattr(thing, "forward", None) if isinstance(thing, type) else None


def _called(name: ast.expr, caller: FunctionType, owner: type | None) -> Any:
    """The function a call names, where it is one of the module, of another module, or of self."""
    if isinstance(name, ast.Name):
        return caller.__globals__.get(name.id)
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        if name.value.id == "self":
            return getattr(owner, name.attr, None)
        module = caller.__globals__.get(name.value.id)
        return getattr(module, name.attr, None) if isinstance(module, ModuleType) else None
    return None


def gaps(name: str, thing: Any) -> list[str]:
    """What the docstring of a function or class owes and does not say, or says unreadably."""
    docstring = parse(thing.__doc__)
    if not docstring.text:
        return ["no docstring"]
    found: list[str] = []
    if dataclasses.is_dataclass(thing):
        fields = {field.name for field in dataclasses.fields(thing)}
        missing = fields - docstring.entries.get("Attributes", {}).keys()
        found += [f"{field} is not an entry of Attributes" for field in sorted(missing)]
    else:
        found += _call_gaps(thing, docstring)
    for method, function in vars(thing).items() if isinstance(thing, type) else ():
        ours = isinstance(function, FunctionType) and function.__module__ == thing.__module__
        if ours and method[0] != "_" and not function.__doc__:
            found.append(f"{method} has no docstring")
    for cell, source in SOURCES.items():
        if re.search(rf"(^|\.){cell}(_?cell)?$", name.lower()) and source not in docstring.text:
            found.append(f"the source of its formula, {source}, is not named")
    for entries in docstring.entries.values():
        for entry, about in entries.items():
            if re.match(r"([a-zA-Z]|\d+)\. ", about):
                found.append(f"{entry} begins like an enumeration, and would be rendered as one")
    return found


def _call_gaps(thing: Callable[..., Any], docstring: Docstring) -> Iterator[str]:
    takes_tensors = False
    for name, parameter in parameters(thing).items():
        about = docstring.arguments.get(name)
        if about is None:
            yield f"{name} is not an entry of Args or Inputs"
            continue
        about = _followed(about, name, thing)
        if TENSORS.search(str(parameter.annotation)):
            takes_tensors = True
            if not (SHAPE.search(about) or THE_MODULES.search(about)):
                yield f"{name} has no shape"
        if not _states_default(about, parameter.default):
            yield f"{name} does not state its default, {parameter.default!r}"

    annotation = result(thing)
    if annotation != "None" and not docstring.results:
        yield "nothing is said of what it returns"
    elif TENSORS.search(annotation) and not SHAPE.search(docstring.results):
        yield "what it returns has no shape"

    errors = raised(thing)
    told = _followed(docstring.sections.get("Raises", ""), "Raises", thing)
    if takes_tensors and not told:
        yield "nothing is said of what it raises"
    for error in sorted(errors):
        if not re.search(rf"\b{error}\b", told):
            yield f"{error} is raised and not told"


def _followed(about: str, entry: str, thing: Callable[..., Any]) -> str:
    """An entry, or a section, with those that it refers to."""
    for other in REFERRED.findall(about):
        docstring = parse(getattr(inspect.getmodule(thing), other).__doc__)
        about += " " + docstring.arguments.get(entry, docstring.sections.get(entry, ""))
    return about


def _states_default(about: str, default: Any) -> bool:
    if default is inspect.Parameter.empty:
        return True
    stated = re.findall(r"Default: (.+?)\.(?:\s|$)", about)
    if default is None:
        return bool(stated) or "None" in about
    if isinstance(default, float) and default.is_integer():
        return any(text in (str(default), str(int(default))) for text in stated)
    return any(text.replace('"', "'") == repr(default) for text in stated)
