"""The results page and the README's table, from made-up records: no figure is a measurement."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__, page
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.summary import Summary, Table

RECORD: dict[str, Any] = {
    "workload": "reuters",
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc",
    "options": {
        "impl": ["fusedrnn", "torch"],
        "seed": [0, 1],
        "epochs": None,
        "device": "cpu",
        "log_every": 5,
        "quick": False,
        "synthetic": False,
    },
    "torch": "2.13.0",
    "fusedrnn": "0.1.0",
    "cpu": "A CPU",
    "device": "cpu",
    "threads": 2,
    "accuracy": 0.75,
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--impl", nargs="+", default=["fusedrnn"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--synthetic", action="store_true")
    return parser


def summary(record: dict[str, Any]) -> Summary:
    accuracy = f"{record['accuracy']:.2f}"
    return Summary(
        "A system",
        "What it learns.",
        [Table("Scores", ("model", "accuracy"), [("LSTM", accuracy)])],
        ["A remark."],
        [("-loss", "The loss.")],
        [("A system, LSTM", accuracy, accuracy, "1.50x")],
    )


def draw(record: dict[str, Any], stem: Path) -> None:
    Path(f"{stem}-loss.png").write_text(f"drawn of {record['accuracy']}")


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(summary=summary, draw=draw, options=options)
    monkeypatch.setattr(page, "workload", lambda name: module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    directory = tmp_path / "results"
    directory.mkdir()
    write(directory / "reuters.json", {})
    return directory


def write(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**RECORD, **changes}), "utf-8")


def make(*arguments: Path | str) -> int:
    return __main__.main(["workloads", *map(str, arguments)])


def test_the_page_shows_system_command_machine_table_remark_and_plot(
    results: Path, tmp_path: Path
) -> None:
    assert make(results, tmp_path / "pages.md") == 0
    text = (tmp_path / "pages.md").read_text("utf-8")
    for part in (
        "| A system, LSTM | 0.75 | 0.75 | 1.50x |",
        "## A system\n\nWhat it learns.",
        "reuters.py --impl fusedrnn torch --seed 0 1 --log-every 5\n",
        "A CPU, 2 threads, torch 2.13.0, fusedrnn 0.1.0 (abc), 2026-01-02.",
        "**Scores**\n\n| model | accuracy |",
        "- A remark.",
        "![The loss.](results/reuters-loss.png)",
    ):
        assert part in text
    assert (results / "reuters-loss.png").read_text() == "drawn of 0.75"


def test_the_command_of_several_processes_starts_as_many(results: Path) -> None:
    write(results / "reuters.json", {"processes": 2})
    (result,) = page.load(results)
    start = "torchrun --nproc-per-node 2 benchmarks/workloads/reuters.py --impl"
    assert page.command(result).startswith(start)


def test_reduced_and_synthetic_results_say_so_in_title_and_table(
    results: Path, tmp_path: Path
) -> None:
    write(results / "reuters.json", {"options": {**RECORD["options"], "quick": True}})
    write(results / "z.json", {"options": {**RECORD["options"], "synthetic": True}})
    make(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text("utf-8")
    assert "## A system, reduced size" in text
    assert "| A system, LSTM, synthetic data |" in text
    assert "--quick" in text


def test_the_machine_is_named_once_with_the_commits_of_all_systems(
    results: Path, tmp_path: Path
) -> None:
    write(results / "hello.json", {"workload": "hello", "commit": "aaa"})
    write(results / "imdb.json", {"workload": "imdb", "cpu": "Another", "fusedrnn": None})
    table = page.headline_table(page.load(results))
    assert table.splitlines()[-1] == (
        "A CPU, 2 threads, torch 2.13.0, fusedrnn 0.1.0 (aaa, abc), 2026-01-02; "
        "Another, 2 threads, torch 2.13.0 (abc), 2026-01-02."
    )


def test_systems_stand_in_the_pages_order_not_that_of_names(results: Path, tmp_path: Path) -> None:
    write(results / "a.json", {"workload": "gradient_flow"})
    write(results / "z.json", {"workload": "hello"})
    found = [result.record["workload"] for result in page.load(results)]
    assert found == ["hello", "reuters", "gradient_flow"]


def test_the_readmes_table_is_written_between_its_markers_and_checked(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, target = tmp_path / "README.md", tmp_path / "page.md"
    begin, end = page.MARKERS
    readme.write_text(f"above\n{begin}\nold\n{end}\nbelow\n", "utf-8")
    assert make(results, target, "--readme", readme) == 0
    text = readme.read_text("utf-8")
    assert text.startswith(f"above\n{begin}\n| system |")
    assert text.endswith(f"2026-01-02.\n{end}\nbelow\n")
    assert make(results, target, "--readme", readme, "--check") == 0
    assert capsys.readouterr().err == ""
    write(results / "reuters.json", {"accuracy": 0.25})
    assert make(results, target, "--readme", readme, "--check") == 1
    error = capsys.readouterr().err
    assert "is not the page of" in error
    assert "the table of workloads in" in error
    assert f"run: python -m benchmarks workloads {results} {target} --readme {readme}" in error
    assert readme.read_text("utf-8") == text


def test_a_missing_plot_fails_the_check(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(results, tmp_path / "page.md")
    (results / "reuters-loss.png").unlink()
    assert make(results, tmp_path / "page.md", "--check") == 1
    assert "reuters-loss.png is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ('{"workload": "other"}', "got workload 'other'"),
        ('{"workload": "reuters"}', "is not what reuters.py writes (KeyError: 'accuracy')"),
        ("[]", "expected results of workloads (JSON)"),
        ("{}", "expected results of workloads (JSON)"),
    ],
    ids=["no JSON", "unknown", "incomplete", "a list", "of no workload"],
)
def test_what_is_no_result_ends_in_one_line_and_leaves_the_page(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.md"
    target.write_text("old")
    (tmp_path / "run.json").write_text(content)
    assert make(tmp_path, target) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert target.read_text() == "old"


def test_a_readme_without_markers_is_refused_before_anything_is_written(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").touch()
    assert make(results, tmp_path / "page.md", "--readme", tmp_path / "README.md") == 2
    assert "expected <!-- workloads:begin --> once" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
    assert not (results / "reuters-loss.png").exists()


def test_a_plot_that_cannot_be_drawn_leaves_the_page(
    results: Path,
    tmp_path: Path,
    made_up: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise WorkloadError("the plot needs matplotlib")

    made_up.draw = fail
    assert make(results, tmp_path / "page.md") == 2
    assert "the plot needs matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
