"""Options: what `--help` says, which sizes they set, and the names of the files they lead to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from examples.driver import options
from examples.driver.workload import WORKLOADS, workload

EACH = pytest.mark.parametrize("name", WORKLOADS)


def parsed(name: str, *words: str) -> Any:
    return options.parser(workload(name)).parse_args(words)


@EACH
def test_the_help_has_groups_an_example_that_parses_and_the_places_of_data(name: str) -> None:
    found = options.parser(workload(name))
    text = found.format_help()
    for group in ("what is trained:", "sizes, where", "how it is trained:", "where things are:"):
        assert group in text
    for place in ("--data-dir (not given)", "FUSEDRNN_DATA", "../shared/data", "the cache"):
        assert place in text
    assert "(default: None)" not in text
    assert f"python -m examples {workload(name).example}" in text
    system, *words = workload(name).example.split()
    assert system == name
    found.parse_args(words)


@EACH
@pytest.mark.parametrize("quick", [[], ["--quick"]], ids=["full", "quick"])
def test_every_size_that_is_offered_reaches_the_config(name: str, quick: list[str]) -> None:
    chosen = workload(name)
    given: dict[str, float] = {"hidden": 8, "layers": 3, "embedding": 5, "batch": 6}
    given |= {"learning_rate": 0.5, "dropout": 0.25, "clip": 2.0}
    offered = {
        size: value
        for size, value in given.items()
        if hasattr(chosen.sizes, size) and size not in chosen.fixed
    }
    words = [word for size, v in offered.items() for word in (options.flag(size), str(v))]
    job = chosen.configs(parsed(name, "--synthetic", *quick, *words, "--epochs", "4"))
    configs = job.config.values() if isinstance(job.config, dict) else [job.config]
    for config in configs:
        sizes = asdict(config)
        assert {size: sizes[size] for size in offered} == offered
        assert sizes["epochs"] == 4


@pytest.mark.parametrize(
    ("words", "stem"),
    [
        ("", "reuters-fusedrnn"),
        ("--impl fusedrnn torch --seed 0 1 2", "reuters-fusedrnn-torch-seed0+1+2"),
        ("--cell gru --hidden 64 --lr 0.01", "reuters-fusedrnn-gru-hidden64-lr0.01"),
        ("--epochs 5", "reuters-fusedrnn"),
        ("--epochs 4", "reuters-fusedrnn-epochs4"),
        ("--steps 50 --quick --threads 1", "reuters-fusedrnn-steps50-threads1-quick"),
        ("--out x --checkpoints y --data-dir z --resume", "reuters-fusedrnn"),
    ],
)
def test_every_option_that_makes_a_figure_is_in_the_files_name(words: str, stem: str) -> None:
    assert options.stem(workload("reuters"), vars(parsed("reuters", *words.split()))) == stem


@pytest.mark.parametrize(
    "option", ["--hidden 0", "--lr 0", "--lr nan", "--dropout 1", "--clip -1", "--batch x"]
)
def test_a_size_that_cannot_be_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("imdb", *option.split())
    assert f"argument {option.split()[0]}" in capsys.readouterr().err


def test_a_zero_and_the_full_epochs_of_a_quick_run_are_in_the_name() -> None:
    def name(*words: str) -> str:
        return options.stem(workload("imdb"), vars(parsed("imdb", *words)))

    assert name("--forget-bias", "0") == "imdb-fusedrnn-forget-bias0.0"
    assert name("--epochs", "2") == name() == "imdb-fusedrnn"
    assert name("--quick", "--epochs", "2") == "imdb-fusedrnn-epochs2-quick"
