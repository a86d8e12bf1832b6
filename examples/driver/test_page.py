"""The results page and the README's table, from made-up records: no figure is a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from examples.driver import page
from examples.driver.errors import WorkloadError
from examples.driver.plots import Chart
from examples.driver.results import Record
from examples.driver.tables import Claim, Summary, Table
from examples.driver.workload import Workload

OPTIONS = {"impl": ["fusedrnn", "torch"], "seed": [0, 1], "epochs": None, "device": "cpu"}
OPTIONS |= {"steps": 5, "quick": False, "synthetic": False}
HEADER = {"workload": "reuters", "date": "2026-01-02T03:04:05+00:00", "commit": "abc"}
MACHINE = {"torch": "2.13.0", "fusedrnn": "0.1.0", "cpu": "A CPU", "device": "cpu", "threads": 2}


class MadeUp(Workload):
    name, about, cells, epochs, unit, example = "reuters", "", ("lstm",), 1, "rows", ""

    def options(self, add: Any) -> None:
        add("--steps", type=int, default=10)

    configs = build = None  # type: ignore[assignment]  # a page asks for neither

    def summarise(self, record: Record) -> Summary:
        accuracy = f"{record['accuracy']:.2f}"
        return Summary(
            "A system",
            "What it learns.",
            [Table("Scores", ("model", "accuracy"), [("LSTM", accuracy)])],
            ["A remark."],
            [("A system, LSTM", accuracy, accuracy, "1.50x")],
        )

    def claims(self, record: Record) -> list[Claim]:
        return [("an LSTM is right more than half of the time", f"{record['accuracy']:.2f}")]

    def draw(self, record: Record) -> list[Chart]:
        return [Chart("-loss", "The loss.", "t", "loss", {"a": [1, 2, record["accuracy"]]})]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "workload", lambda name: MadeUp())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write(tmp_path / "reuters.jsonl")
    return tmp_path


def write(path: Path, options: dict[str, Any] | None = None, **changes: Any) -> None:
    record = {**HEADER, **MACHINE, "accuracy": 0.75, "options": OPTIONS | (options or {})}
    path.write_text(json.dumps(record | changes), "utf-8")


def make(*arguments: Path | str) -> None:
    page.main([*map(str, arguments)])


def made(out: Path) -> str:
    """The page of the results in `out`."""
    page.main([str(out)])
    return (out / page.PAGE).read_text("utf-8")


def test_the_page_shows_system_command_machine_table_remark_and_plot(out: Path) -> None:
    text = made(out)
    for part in (
        "| A system, LSTM, steps 5 | 0.75 | 0.75 | 1.50x |",
        "## A system, steps 5\n\nWhat it learns.",
        "python -m examples reuters --impl fusedrnn torch --seed 0 1 --steps 5\n",
        "A CPU, 2 threads, torch 2.13.0, fusedrnn 0.1.0 (abc), 2026-01-02.",
        "**Scores**\n\n| model | accuracy |",
        "- A remark.",
        "![The loss.](reuters-loss.png)",
    ):
        assert part in text
    assert (out / "reuters-loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_of_several_processes_starts_as_many(out: Path) -> None:
    write(out / "reuters.jsonl", processes=2)
    (result,) = page.load(out)
    start = "torchrun --nproc-per-node 2 -m examples reuters --impl"
    assert page.command(result).startswith(start)


def test_reduced_and_synthetic_results_say_so_in_title_and_table(out: Path) -> None:
    write(out / "reuters.jsonl", {"quick": True})
    write(out / "z.jsonl", {"synthetic": True})
    text = made(out)
    reduced, drawn = "steps 5, reduced size", "| A system, LSTM, steps 5, synthetic data |"
    for part in (f"## A system, {reduced}", drawn, "--quick"):
        assert part in text


def test_the_machine_is_named_once_with_the_commits_of_all_systems(out: Path) -> None:
    write(out / "hello.jsonl", workload="hello", commit="aaa")
    write(out / "imdb.jsonl", workload="imdb", cpu="Another", fusedrnn=None)
    assert page.headline_table(page.load(out)).splitlines()[-1] == (
        "A CPU, 2 threads, torch 2.13.0, fusedrnn 0.1.0 (aaa, abc), 2026-01-02; "
        "Another, 2 threads, torch 2.13.0 (abc), 2026-01-02."
    )


def test_systems_stand_in_the_pages_order_not_that_of_names(out: Path) -> None:
    write(out / "a.jsonl", workload="gradient_flow")
    write(out / "z.jsonl", workload="hello")
    found = [result.record["workload"] for result in page.load(out)]
    assert found == ["hello", "reuters", "gradient_flow"]


MARKS = [f"<!-- {name}:{which} -->" for name in page.MARKERS for which in ("begin", "end")]


def test_the_readmes_tables_are_written_between_its_markers_and_checked(out: Path) -> None:
    readme = out / "README.md"
    begin, end, *texts = MARKS
    readme.write_text(f"above\n{begin}\nold\n{end}\n{texts[0]}\n{texts[1]}\nbelow\n", "utf-8")
    make(out, "--readme", readme)
    text = readme.read_text("utf-8")
    assert text.startswith(f"above\n{begin}\n| system |")
    assert "2026-01-02.\n\n![" in text
    speed = (
        "![Whole trainings, torch.nn's time divided by fusedrnn's: above 1, fusedrnn is faster.]"
    )
    assert f"{speed}(speed.png)" in text
    assert (out / "speed.png").read_bytes().startswith(b"\x89PNG")
    row = (
        "| an LSTM is right more than half of the time | 0.75 | `python -m examples reuters --impl"
    )
    assert row in text.split(texts[0])[1]
    assert text.endswith(f"{texts[1]}\nbelow\n")
    make(out, "--readme", readme, "--check")
    write(out / "reuters.jsonl", accuracy=0.25)
    with pytest.raises(WorkloadError) as failed:
        make(out, "--readme", readme, "--check")
    for part in (
        f"{out / page.PAGE} does not follow from the results",
        f"{readme} does not follow from the results",
        f"run: python -m examples page {out} --readme {readme}",
    ):
        assert part in str(failed.value)
    assert readme.read_text("utf-8") == text


def test_a_missing_plot_fails_the_check(out: Path) -> None:
    make(out)
    (out / "reuters-loss.png").unlink()
    with pytest.raises(WorkloadError, match=r"reuters-loss\.png is missing"):
        make(out, "--check")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON in line 1"),
        ('{"workload": "other"}', "got 'other'"),
        ('{"workload": "reuters"}', r"is not what reuters writes \(KeyError: 'accuracy'\)"),
        ("[1]", "is no JSON in line 1"),
        ("{}", r"expected results \(JSONL\)"),
    ],
    ids=["no JSON", "unknown", "incomplete", "a list", "of no workload"],
)
def test_what_is_no_result_ends_in_one_line_and_leaves_the_page(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / page.PAGE).write_text("old")
    (tmp_path / "run.jsonl").write_text(content)
    with pytest.raises(WorkloadError, match=message) as failed:
        make(tmp_path)
    assert "\n" not in str(failed.value)
    assert (tmp_path / page.PAGE).read_text() == "old"


def test_a_readme_without_markers_is_refused_before_anything_is_written(out: Path) -> None:
    (out / "README.md").touch()
    with pytest.raises(WorkloadError, match="expected <!-- workloads:begin --> once"):
        make(out, "--readme", out / "README.md")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "reuters.jsonl"]


def test_a_plot_that_cannot_be_drawn_leaves_the_page(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise WorkloadError("the plot needs matplotlib")

    monkeypatch.setattr(Chart, "write", fail)
    with pytest.raises(WorkloadError, match="the plot needs matplotlib"):
        make(out)
    assert not (out / page.PAGE).exists()


def test_the_committed_page_follows_from_the_committed_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    examples = Path(page.__file__).parents[1]
    make(examples / "results", "--readme", examples / "README.md", "--check")
