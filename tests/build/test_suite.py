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


def chosen(conftest: ModuleType, *args: str, **options: object) -> list[str]:
    """Of five tests, the third for nights alone, those that pytest runs with this command line."""
    items = [
        SimpleNamespace(
            path=Path("tests/layers/test_layers.py"),
            name=f"test_{letter}",
            get_closest_marker=lambda name, letter=letter: (
                (letter, name) == ("c", "nightly") or None
            ),
        )
        for letter in "abcde"
    ]
    left: list[SimpleNamespace] = []
    config = SimpleNamespace(
        args=list(args),
        getoption=options.get,
        hook=SimpleNamespace(pytest_deselected=lambda items: left.extend(items)),
    )
    conftest.pytest_collection_modifyitems(config, items)
    assert sorted(item.name for item in [*items, *left]) == [f"test_{c}" for c in "abcde"]
    return [item.name.removeprefix("test_") for item in items]


def test_what_is_for_nights_is_left_to_them(conftest: ModuleType) -> None:
    assert chosen(conftest) == chosen(conftest, all=True) == ["a", "b", "d", "e"]
    assert chosen(conftest, night=True) == ["a", "b", "c", "d", "e"]
    assert chosen(conftest, "tests/layers/test_layers.py") == ["a", "b", "c", "d", "e"]


def test_samples_share_the_tests_out(conftest: ModuleType) -> None:
    assert chosen(conftest, sample="0/3", all=True) == ["a", "e"]
    assert chosen(conftest, sample="1/3", all=True) == ["b"]
    assert chosen(conftest, sample="2/3", all=True) == ["d"]
