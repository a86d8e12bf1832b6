"""Tables, means and ratios: what every workload says its results with."""

from __future__ import annotations

import pytest

from examples.driver.tables import Summary, Table, mean_std, ratio

TABLE = Table(
    "Scores",
    ("model", "accuracy", "speed", "text"),
    [("LSTM", "0.798 ± 0.004", "1.37x", "a|<b>"), ("RNN", "0.81", "", "time traveller")],
)


def test_a_tables_text_aligns_words_left_and_figures_right() -> None:
    assert TABLE.text().splitlines() == [
        "Scores",
        "model       accuracy  speed  text",
        "LSTM   0.798 ± 0.004  1.37x  a|<b>",
        "RNN             0.81         time traveller",
    ]


def test_a_tables_markdown_aligns_likewise_and_escapes_bars() -> None:
    assert TABLE.markdown().splitlines() == [
        "| model | accuracy | speed | text |",
        "| --- | ---: | ---: | --- |",
        "| LSTM | 0.798 ± 0.004 | 1.37x | a\\|&lt;b> |",
        "| RNN | 0.81 |  | time traveller |",
    ]


FIGURES = ("1", "-0.5", "1,351,982", "2.7e-92", "45%", "3.1 s", "1.2x", "")


@pytest.mark.parametrize("entry", [*FIGURES, "RNN", "3 layers", "nan in epoch 1", "T=50"])
def test_a_figure_stands_to_the_right_and_a_word_to_the_left(entry: str) -> None:
    rule = "| ---: |" if entry in FIGURES else "| --- |"
    assert Table("", ("x",), [(entry,)]).markdown().splitlines()[1] == rule


def test_a_table_without_rows_is_its_head() -> None:
    assert Table("t", ("a", "b"), []).text() == "t\na  b"


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"table 't' has 2 columns, got the row \('1',\)"):
        Table("t", ("a", "b"), [("1",)])


def test_a_mean_has_the_deviation_of_a_sample() -> None:
    assert mean_std([0.7, 0.8, 0.9], 2) == "0.80 ± 0.10"
    assert mean_std([1234.5], 1) == "1,234.5"
    with pytest.raises(ValueError, match="got none"):
        mean_std([], 2)


def test_a_ratio_is_torchs_time_over_ours_and_empty_without_one_of_them() -> None:
    assert ratio(3.0, 2.0) == "1.50x"
    assert ratio(None, 2.0) == ratio(3.0, None) == ""


def test_the_console_shows_tables_and_then_remarks() -> None:
    shown = Summary("title", "text", [TABLE, TABLE], ["One.", "Two."]).console()
    assert shown == f"{TABLE.text()}\n\n{TABLE.text()}\n\nOne.\nTwo."
