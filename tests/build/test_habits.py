"""What a commit must pass before it is one: the hook on its subject and the hooks on its files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
COMMANDS = re.findall(r"^ +entry: (.+)$", HOOKS, re.MULTILINE)


def refused(message: str, folder: Path) -> str:
    """What the hook says of a commit message; empty if it passes."""
    (folder / "message").write_text(message, "utf-8")
    command = [str(ROOT / "tools" / "commit_subject.sh"), str(folder / "message")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize(
    ("message", "length"),
    [
        (f"area: {66 * 'x'}\n", None),
        (f"area: {67 * 'x'}\n", 73),
        (f"area: {66 * 'ü'}\n", None),
        (f"area: short\n\n{100 * 'x'}\n", None),
        (f"\n# {100 * 'x'}\narea: {67 * 'x'}\n# a comment\n", 73),
        (f"fixup! area: {66 * 'x'}\n", None),
        (f"fixup! area: {67 * 'x'}\n", 73),
    ],
)
def test_a_subject_has_at_most_72_characters(
    message: str, length: int | None, tmp_path: Path
) -> None:
    said = refused(message, tmp_path)
    if length is None:
        assert said == ""
    else:
        assert said.startswith(f"the subject has {length} characters, at most 72")


def test_each_hooks_command_comes_with_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (extra,) = re.findall(r"^dev = \[(.*)\]$", project, re.MULTILINE)
    developers = re.findall(r'"([\w-]+)"', extra)
    assert "pre-commit" in developers
    assert len(COMMANDS) == HOOKS.count("- id: ")
    for command in COMMANDS:
        program, *arguments = command.split()
        ours = [word for word in (program, *arguments) if "/" in word]
        assert all((ROOT / path).is_file() for path in ours), command
        assert ours or program in developers, command
