"""The command that runs all workloads: what it starts, what a failure does, and a real start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.driver import page, results, suite
from examples.driver.errors import WorkloadError
from examples.driver.options import parser
from examples.driver.workload import WORKLOADS, workload


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the suite starts; none is run, and no page is written."""
    commands: list[list[str]] = []

    def run(words: Sequence[str]) -> int:
        commands.append(list(words))
        return 0

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(page, "write", lambda *_, **__: None)
    return commands


@pytest.mark.parametrize("size", ["--quick", "--full"])
def test_every_workload_takes_the_options_it_is_started_with(
    size: str, started: list[list[str]], tmp_path: Path
) -> None:
    given = ["--threads", "1", "--data-dir", "d", "--synthetic", "--checkpoints", "c", "--resume"]
    suite.main([size, *given, "--out", str(tmp_path)])
    assert [words[3] for words in started] == list(WORKLOADS)
    expected = {"impl": ["fusedrnn", "torch"], "quick": size == "--quick", "threads": 1}
    expected |= {"data_dir": "d", "out": tmp_path, "synthetic": True, "resume": True}
    expected |= {"checkpoints": Path("c")}
    for name, words in zip(WORKLOADS, started, strict=True):
        args = vars(parser(workload(name)).parse_args(words[4:]))
        assert {option: args[option] for option in expected} == expected


def test_reuters_has_three_seeds_at_full_size(started: list[list[str]]) -> None:
    suite.main(["--full", "--only", "reuters"])
    assert started[0][-4:] == ["--seed", "0", "1", "2"]


def test_only_those_named_are_started_in_the_suites_order(started: list[list[str]]) -> None:
    suite.main(["--quick", "--only", "imdb", "hello"])
    assert [words[3] for words in started] == ["hello", "imdb"]


def test_a_failure_is_named_at_the_end_and_the_others_run(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Callable[[Sequence[str]], int] = suite.run
    monkeypatch.setattr(suite, "run", lambda words: run(words) or 3 * ("reuters" in words))
    with pytest.raises(WorkloadError, match=rf"1 of {len(WORKLOADS)} failed: reuters"):
        suite.main(["--quick"])
    assert len(started) == len(WORKLOADS)
    assert "failed, status 3" in capsys.readouterr().out


def test_ctrl_c_says_what_was_finished(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: Sequence[str]) -> int:
        started.append(list(words))
        if "time_machine" in words:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(suite, "run", run)
    with pytest.raises(KeyboardInterrupt, match="finished before: hello, from_scratch; --only"):
        suite.main(["--quick"])
    assert len(started) == 3


def test_it_trains_and_writes_the_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["--quick", "--only", "hello", "--impl", "torch", "--threads", "1", "--synthetic"]
    suite.main([*small, "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / page.PAGE).read_text("utf-8")
    assert "python -m examples hello --impl torch" in text
    (record,) = map(results.read, (tmp_path / "out").glob("*.jsonl"))
    assert record["options"]["threads"] == 1
    assert "passed" in capfd.readouterr().out


def test_a_workload_that_cannot_go_on_fails_the_suite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    with pytest.raises(WorkloadError, match="1 of 1 failed: time_machine"):
        suite.main(["--quick", "--only", "time_machine", *nowhere])
    assert "is not a directory" in capfd.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--quick --full is required"), (["--quick", "--device", "no"], "argument --device")],
)
def test_an_option_that_cannot_be_is_refused_before_anything_starts(
    options: list[str], message: str, started: list[list[str]], capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        suite.main(options)
    assert message in capsys.readouterr().err
    assert started == []
