"""The suite itself: what conftest.py leaves to `pytest --all` exists, and naming a file runs it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from support.loading import module_at
from support.paths import TESTS


@pytest.fixture(scope="module")
def conftest() -> ModuleType:
    return module_at(TESTS / "conftest.py", "conftest_on_trial")


def test_what_the_core_leaves_out_is_there(conftest: ModuleType) -> None:
    gone = []
    for name in conftest.EXTENDED:
        file, _, test = name.partition("::")
        found = [*TESTS.glob(f"*/{file}.py")]
        there = found and (not test or f"def {test}(" in found[0].read_text())
        if not there and not (TESTS.parent / file).is_dir():
            gone.append(name)
    assert gone == []


@pytest.mark.parametrize(
    ("path", "test", "core"),
    [
        ("tests/layers/test_layers.py", "test_a", True),
        ("tests/layers/test_extremes.py", "test_a", False),
        ("examples/data/test_data.py", "test_a", False),
        ("tests/cuda/test_cuda_host.py", "test_kernels_match_the_reference", False),
        ("tests/cuda/test_cuda_host.py", "test_the_main_tiles_match_the_reference", True),
    ],
)
def test_folders_files_and_tests_are_left_out(
    conftest: ModuleType, path: str, test: str, core: bool
) -> None:
    item = SimpleNamespace(path=Path(path), originalname=test, name=f"{test}[1]")
    assert conftest.is_core(item) is core


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("tests", False),
        ("examples", False),
        ("tests/test_a.py", True),
        ("tests/test_a.py::test_b[1]", True),
    ],
)
def test_who_names_a_file_wants_all_of_it(conftest: ModuleType, argument: str, names: bool) -> None:
    assert conftest.names_a_test(argument) is names
