"""The Python blocks of a documentation page, run as a reader would."""

from __future__ import annotations

import doctest
import io
import re
from pathlib import Path
from typing import Any


def fences(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line it begins on."""
    text = path.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def run(path: Path) -> dict[str, Any]:
    """Run a page's Python blocks in order, in one namespace; what doctests expect is compared."""
    names: dict[str, Any] = {}
    for line, block in fences(path, "python"):
        if ">>>" not in block:
            exec(compile("\n" * line + block, str(path), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, path.name, str(path), line)
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        failed = runner.run(test, out=report.write, clear_globs=False).failed
        assert not failed, report.getvalue()
        names = test.globs
    return names
