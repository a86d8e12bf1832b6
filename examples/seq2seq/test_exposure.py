"""What is said of the results: the price where something was learnt, and nothing where not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from examples.driver.plots import Chart
from examples.driver.training import Epoch
from examples.driver.workload import workload
from examples.seq2seq import exposure, model

FORMS = ("5.3.1998", "3/1998", "cw 10/98")
Made = Callable[..., dict[str, Any]]


def run(forcing: str, own: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A trained run; fed its own symbols, the share `own` of everything is right, by default."""
    truth = model.Shares(own, min(1.0, own + 0.1), [own, min(1.0, own + 0.2)])
    fed_own = model.Shares(own, own, [own, own])
    found = {
        "name": f"gru-forcing{forcing}-seed{seed}",
        "impl": "fusedrnn",
        "seed": seed,
        "cell": "gru",
        "forcing": forcing,
        "truth": asdict(truth),
        "own": asdict(fed_own),
        "after_slip": [own / 2, own / 4] if own else [],
        "by_form": dict.fromkeys(FORMS, own),
        "examples": [["3/1998", "1998-03", "1998-03"]] * len(FORMS),
        "epochs": [Epoch(1.0, 10, 2.0 if forcing == "1.0" else 3.0, {"symbols": own})] * 2,
    }
    return found | more


def results(*runs: Mapping[str, Any], impl: tuple[str, ...] = ("fusedrnn",)) -> dict[str, Any]:
    config = asdict(model.CONFIG) | {"row": 2, "test": 100}
    options = {"impl": list(impl), "cell": ["gru"], "seed": [0]}
    return {"runs": list(runs), "options": options, "config": config}


def remarks(*runs: Mapping[str, Any]) -> str:
    return "\n".join(exposure.remarks(results(*runs)))


def points(chart: Chart, name: str) -> dict[float, Any]:
    """The places of a series, and its values there to within rounding."""
    places, values = chart.series[name]
    assert isinstance(places, Sequence)
    assert isinstance(values, Sequence)
    return {place: pytest.approx(value) for place, value in zip(places, values, strict=True)}


def test_where_nothing_was_learnt_that_is_all_that_is_said() -> None:
    runs = [run("1.0", 0.0), run("0.5", 0.01)]
    said = remarks(*runs)
    assert re.fullmatch(
        "GRU: nothing was learnt. Fewer than 2% of the test rows are right with every .*", said
    )
    assert "hardest" not in said
    assert "exact match" not in said
    exact, places, _ = exposure.charts(results(*runs), "gru")  # and none of slips
    assert exact.title == places.title == "GRU: nothing was learnt"


def test_a_forcing_that_taught_nothing_is_named_and_not_compared() -> None:
    said = remarks(run("1.0", 0.5), run("0.5", 0.0)).splitlines()
    assert any(line.startswith("GRU, forcing 0.5: not compared, fewer than 2%") for line in said)
    assert not any("1.0 to 0.5" in line for line in said)
    assert said[-1].endswith("0.500 exact over all ratios.")  # the other's alone


def test_the_hardest_form_is_named_only_where_there_is_one() -> None:
    by_form = dict(zip(FORMS, (0.9, 0.1, 0.5), strict=True))
    assert 'the hardest form is "3/1998", 0.100' in remarks(run("1.0", 0.5, by_form=by_form))
    by_form = dict(zip(FORMS, (0.9, 0.0, 0.0), strict=True))
    said = remarks(run("1.0", 0.5, by_form=by_form))
    assert 'no single form is the hardest: "3/1998", "cw 10/98" are alike, 0.000' in said
    assert "the hardest form" not in said


@pytest.mark.parametrize(("other", "clear"), [(0.5, True), (0.78, False)])
def test_every_forcing_is_set_beside_full_forcing_with_the_error_of_the_difference(
    other: float, clear: bool
) -> None:
    said = remarks(run("1.0", 0.8), run("0.5", other))
    line = next(line for line in said.splitlines() if "1.0 to 0.5" in line)
    assert f"exact match 0.8000 to {other:.4f} ({other - 0.8:+.4f}, standard error 0.0" in line
    assert ("no clear difference" not in line) is clear
    assert line.endswith("an epoch takes 1.50 times as long.")


def test_the_standard_error_is_that_of_the_rows_or_the_larger_one_of_the_seeds() -> None:
    assert exposure.standard_error([0.5], 100) == pytest.approx(0.05)
    assert exposure.standard_error([0.49, 0.5, 0.51], 100) == pytest.approx(0.05)
    assert exposure.standard_error([0.3, 0.5, 0.7], 100) == pytest.approx(0.2 / 3**0.5)


def test_exposure_bias_is_said_with_its_error_and_how_it_grows_along_the_row() -> None:
    one = run("1.0", 0.5)
    assert exposure.bias(one) == pytest.approx(0.1)
    line = remarks(one).splitlines()[0]
    assert "0.6000 of the symbols are right when the decoder is fed the truth, 0.5000" in line
    assert "exposure bias 0.1000 (one seed)" in line
    assert line.endswith("it is 0.000 at the first place of the row and 0.200 at the last.")
    other = run("1.0", 0.7, seed=1, truth=asdict(model.Shares(0.7, 0.9, [0.7, 0.7])))
    line = remarks(one, other).splitlines()[0]
    assert "exposure bias 0.1500 (standard error 0.0500)" in line


def test_what_follows_a_slip_is_said_with_its_error() -> None:
    one, other = run("1.0", 0.4), run("1.0", 0.8, seed=1)
    assert exposure.recovered(one) == pytest.approx(0.15)
    line = remarks(one).splitlines()[1]
    assert line.endswith("0.150 of the dates that follow are right (one seed).")
    line = remarks(one, other).splitlines()[1]
    assert line.endswith("0.225 of the dates that follow are right (standard error 0.075).")


def test_the_texts_claim_stands_beside_what_follows_a_slip() -> None:
    ((_, said),) = exposure.claims(results(run("1.0", 0.4), run("0.5", 0.8), run("0.0", 0.0)))
    assert said.endswith(
        "GRU, forcing 1.0: 0.150; GRU, forcing 0.5: 0.300; GRU, forcing 0.0: nothing learnt"
    )


def test_a_seed_that_learnt_nothing_takes_its_forcing_out_of_the_comparison() -> None:
    assert exposure.learnt([run("1.0", 0.5)])
    assert exposure.learnt([run("1.0", 0.5), run("1.0", 0.001, seed=1)])  # 2 % of all rows
    assert not exposure.learnt([run("1.0", 0.5), run("1.0", 0.0, seed=1)])


def test_a_chart_has_a_line_a_layer_a_point_for_the_schedule_and_bars_over_seeds() -> None:
    runs = [
        run(forcing, own + seed / 10, seed=seed, impl=impl)
        for impl in ("fusedrnn", "torch")
        for forcing, own in (("1.0", 0.3), ("0.5", 0.5), ("scheduled", 0.4))
        for seed in (0, 1)
    ]
    exact, slip, places, epochs = exposure.charts(results(*runs, impl=("fusedrnn", "torch")), "gru")
    names = ["fusedrnn", "fusedrnn, scheduled", "torch", "torch, scheduled"]
    ratios = [model.forcing_ratio("scheduled", epoch) for epoch in range(model.CONFIG.epochs)]
    for chart, values in ((exact, (0.55, 0.35)), (slip, (0.55 * 3 / 8, 0.35 * 3 / 8))):
        assert list(chart.series) == names
        assert points(chart, names[0]) == {0.5: values[0], 1.0: values[1]}
        assert [*points(chart, names[1])] == pytest.approx([sum(ratios) / len(ratios)])
    assert exact.errors["fusedrnn"] == pytest.approx([0.1 / 2**0.5] * 2)
    assert exact.title == "GRU, exact match: most with forcing 0.5, 0.550; with 1.0, 0.350"
    assert (
        slip.title == "GRU, dates right after a slip: most with forcing 0.5, 0.206; with 1.0, 0.131"
    )
    assert list(places.series) == [
        f"forcing {forcing}, fed {fed}"
        for forcing in ("1.0", "scheduled")
        for fed in ("the truth", "its own")
    ]
    assert points(places, "forcing 1.0, fed the truth") == {1: 0.35, 2: 0.55}
    assert places.errors["forcing 1.0, fed its own"] == pytest.approx([0.1 / 2**0.5] * 2)
    assert places.title == "GRU: exposure bias 0.100 with 1.0, 0.100 with scheduled"
    assert list(epochs.series) == ["forcing 1.0", "forcing 0.5", "forcing scheduled"]


def test_no_chart_has_more_than_six_lines_however_many_ratios_are_trained() -> None:
    runs = [run(f"0.{n}", 0.5) for n in range(9)]
    charts = exposure.charts(results(*runs), "gru")
    assert [len(chart.series) for chart in charts] == [1, 1, 4, 6]


def test_a_quick_run_of_too_few_updates_says_that_nothing_was_learnt(
    record: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    found = record("seq2seq", "--impl", "torch", "--cell", "gru")
    said = workload("seq2seq").summarise(found).remarks
    assert len(said) == 1
    assert said[0].startswith("GRU: nothing was learnt.")
    assert said[0] in capsys.readouterr().out
