"""What is left to `pytest --night`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def a_part(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters of a test: the first and each so many after it run always, the others at night."""
    return [
        value if index % every == 0 else pytest.param(value, marks=pytest.mark.nightly)
        for index, value in enumerate(values)
    ]
