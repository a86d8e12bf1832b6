"""The report's arithmetic and formats, on made-up runs: no figure here is a measurement."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import results
from benchmarks.report import bfloat16, compare, expect, figures, table
from benchmarks.report.place import BEGIN, END, between
from benchmarks.report.summary import summary
from benchmarks.report.table import readme_table
from benchmarks.results import GRID, Record, Run
from support.paths import ROOT

TABLE = BEGIN, END

TRAINING = Record(
    group="Reuters classifier",
    cell="LSTM",
    step="training step",
    shape="T100 B64",
    precision="fp32",
    data="real",
    headline=True,
    threads=2,
    ours_ms=50.0,
    ours_min_ms=49.0,
    torch_ms=100.0,
    torch_min_ms=98.0,
    ratio=2.0,
    ratio_q1=1.98,
    ratio_q3=2.02,
    rounds=25,
    iterations=1,
    gflop=5.0,
    error=1e-6,
)
INFERENCE = replace(
    TRAINING,
    step="inference",
    ours_ms=10.0,
    torch_ms=5.0,
    ratio=0.5,
    ratio_q1=0.495,
    ratio_q3=0.505,
)
LAYER = replace(TRAINING, group="large", data="random", headline=False, ratio=4.0)


def made_up(*records: Record) -> Run:
    return Run(
        date="2020-01-02T03:04:05+00:00",
        commit="abc",
        cpu="a CPU",
        cores=2,
        isa="avx2",
        system="",
        python="3.12.0",
        torch="2.10.0",
        fusedrnn="0.1.0",
        precision="fp32",
        selection="default",
        peak_gflops={"1": 100.0, "2": 200.0},
        records=list(records),
    )


def saved(path: Path, *records: Record) -> str:
    made_up(*records).save(path)
    return str(path)


def test_geometric_mean_of_a_gain_and_the_same_loss_is_one() -> None:
    assert figures.geometric_mean([2.0, 0.5]) == pytest.approx(1)
    assert figures.geometric_mean([8.0]) == pytest.approx(8)
    assert math.isnan(figures.geometric_mean([]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (56.78, "56.8"), (1234.5, "1234")],
)
def test_milliseconds_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert figures.milliseconds(value) == text


def test_a_run_survives_being_saved_and_loaded(tmp_path: Path) -> None:
    run = made_up(TRAINING, INFERENCE)
    run.save(tmp_path / "new" / "run.jsonl")
    assert Run.load(tmp_path / "new" / "run.jsonl") == run


BESIDE = replace(LAYER, beside="fusedrnn, packed", ratio=1000.0)


def test_what_stands_beside_another_call_is_kept_apart_and_in_no_mean(tmp_path: Path) -> None:
    run = made_up(TRAINING)
    alone = summary(run)
    run.besides.append(BESIDE)
    run.save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl") == run
    lines = "\n".join(summary(run))
    assert "T100 B64 beside fusedrnn, packed" in lines
    assert alone[-2:] == summary(run)[-2:]
    assert alone[-2] == "geometric mean 2.00x: training 2.00x (1)"
    assert replace(BESIDE, beside="torch.nn, packed").key != BESIDE.key != LAYER.key
    assert "1000.00x" in table.full_table(run)
    assert [c.after for c in compare.changes(run, run)] == [TRAINING, BESIDE]


def test_a_run_of_nothing_but_besides_has_no_mean() -> None:
    run = made_up()
    run.besides.append(BESIDE)
    assert "2 threads" in summary(run)[0]
    assert not any("mean" in line for line in summary(run))


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made_up(TRAINING).save(path)
    path.write_text(path.read_text("utf-8").replace('"version": 2', '"version": 0'), "utf-8")
    with pytest.raises(ValueError, match="version 0, expected 2"):
        Run.load(path)


def test_a_file_holds_a_header_and_then_a_line_for_each_record(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made_up(TRAINING, LAYER).save(path)
    header, first, second = map(json.loads, path.read_text("utf-8").splitlines())
    assert (header["kind"], header["cpu"]) == ("run", "a CPU")
    assert not {"gpu", "records", "recurrences", "left_out"} & header.keys()
    assert first["data"] == "real"
    assert first["headline"] is True
    assert not {"data", "headline", "mode", "target", "ours_error", "precision"} & second.keys()


def test_a_number_is_kept_to_nine_digits(tmp_path: Path) -> None:
    made_up(replace(TRAINING, ours_ms=35.37605549354339, gflop=1 / 3)).save(tmp_path / "run.jsonl")
    (record,) = Run.load(tmp_path / "run.jsonl").records
    assert (record.ours_ms, record.gflop) == (35.3760555, 0.333333333)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "expected one JSON object a line"),
        ("{", "expected one JSON object a line"),
        ("[1]", "expected one JSON object a line"),
        ('{"version": 2}', "expected kind run, got None"),
        ('{"version": 2, "kind": "peers"}', "expected kind run, got peers"),
        ('{"version": 2, "kind": "run"}', "missing 11 required positional arguments"),
    ],
)
def test_what_is_no_run_is_refused_with_its_name(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=error) as refused:
        Run.load(path)
    assert str(path) in str(refused.value)


def test_rate_and_share_follow_from_time_and_peak() -> None:
    assert TRAINING.gflops == pytest.approx(100)  # 5 GFLOP in 50 ms
    assert made_up().share(TRAINING) == "50%"
    assert made_up().share(replace(TRAINING, threads=1)) == "100%"
    assert made_up().share(replace(TRAINING, threads=0)) == ""


def test_summary_shows_every_case_the_mean_and_the_losses() -> None:
    text = "\n".join(summary(made_up(TRAINING, INFERENCE)))
    line = next(line for line in text.splitlines() if "training step" in line)
    assert "real data" in line
    assert line.split()[-7:] == ["2", "50.0", "100", "2.00x", "1%", "100.0", "50%"]
    assert "geometric mean 1.00x: training 2.00x (1), inference 0.50x (1)" in text
    assert "slower than torch.nn: 1 of 2" in text
    assert text.splitlines()[-1].startswith("  0.50x ±")


def test_every_line_says_that_its_data_is_synthetic() -> None:
    run = made_up(replace(TRAINING, data="synthetic"), replace(INFERENCE, data="synthetic"))
    lines = [line for line in summary(run) if "Reuters" in line]
    assert len(lines) == 3  # two cases, one loss
    assert all("synthetic data" in line for line in lines)
    assert "(synthetic data)" in readme_table(run)


def test_a_ratio_within_its_noise_of_one_is_level() -> None:
    near = replace(TRAINING, ratio=0.99, ratio_q1=0.9, ratio_q3=1.1)
    assert near.flag == "level"
    assert replace(near, ratio=0.97, ratio_q1=0.969, ratio_q3=0.971).flag == "slower"
    assert TRAINING.flag == ""
    assert "1 of 1, 1 of them within noise" in "\n".join(summary(made_up(near)))


def test_a_run_beside_other_work_says_so() -> None:
    scattered = replace(TRAINING, ratio_q1=1.0, ratio_q3=3.0)
    assert "noisy: ratios are known to ±31%" in summary(made_up(scattered))[-1]
    assert "noisy" not in "".join(summary(made_up(TRAINING, INFERENCE, scattered)))


def test_readme_table_joins_training_and_inference_of_a_model() -> None:
    lines = readme_table(made_up(TRAINING, INFERENCE, LAYER)).splitlines()
    assert lines[2:4] == [
        "| Reuters classifier, LSTM T100 B64 | 50.0 | 100 | 2.00x | 10.0 | 5.00 | 0.50x |",
        "",
    ]
    assert "Geometric mean 1.59x" in lines[-1]
    assert "torch 2.10.0" in lines[-1]


def test_readme_table_shows_a_loss_that_is_no_headline_and_leaves_cells_empty() -> None:
    table = readme_table(made_up(replace(LAYER, ratio=0.8)))
    assert "| large, LSTM T100 B64 | 50.0 | 100 | 0.80x |  |  |  |" in table


def test_readme_table_takes_the_largest_thread_count() -> None:
    table = readme_table(made_up(TRAINING, replace(TRAINING, threads=1, ours_ms=77.0)))
    assert "50.0" in table
    assert "77.0" not in table


def test_readme_is_written_between_its_markers_and_then_passes_the_check(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", "utf-8")
    run = saved(tmp_path / "run.jsonl", TRAINING, INFERENCE)
    arguments = ["table", run, "--readme", str(readme)]
    assert benchmarks.main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text("utf-8")
    assert benchmarks.main(arguments) == 0
    assert benchmarks.main([*arguments, "--check"]) == 0
    text = readme.read_text("utf-8")
    assert text.startswith(f"above\n{BEGIN}\n| case")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    readme.write_text(text.replace("2.00x", "9.00x"), "utf-8")
    assert benchmarks.main([*arguments, "--check"]) == 1


def test_picked_rows_stand_in_the_order_asked_for_above_the_verdict_on_all_cases() -> None:
    run = made_up(TRAINING, INFERENCE, *(replace(LAYER, group=g, headline=True) for g in "ab"))
    head, rule, first, a, b, *below = readme_table(run).splitlines()
    assert readme_table(run, [3, 1]).splitlines() == [head, rule, b, first, *below]
    assert readme_table(run, [2]).splitlines() == [head, rule, a, *below]


@pytest.mark.parametrize("row", [0, 2])
def test_a_row_that_the_table_does_not_have_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=f"^expected rows from 1 to 1, got {row}$"):
        readme_table(made_up(TRAINING), [1, row])


def test_rows_are_picked_on_the_command_line_and_named_in_its_advice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(TABLE), "utf-8")
    run = saved(tmp_path / "run.jsonl", TRAINING, replace(LAYER, headline=True))
    picked = ["table", run, "--readme", str(page), "--rows", "2"]
    assert benchmarks.main(["table", run, "--readme", str(page)]) == 0
    assert benchmarks.main([*picked, "--check"]) == 1
    assert f"python -m benchmarks {' '.join(picked)}\n" in capsys.readouterr().err
    assert benchmarks.main(picked) == 0
    assert benchmarks.main([*picked, "--check"]) == 0
    assert "Reuters" not in page.read_text("utf-8")
    assert benchmarks.main(["table", run, "--rows", "2"]) == 2
    assert "--rows needs --readme FILE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}"])
def test_a_readme_without_the_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once"):
        between(text)


@pytest.mark.parametrize(
    ("name", "markers"),
    [("README.md", TABLE), ("docs/performance.md", TABLE), ("docs/performance.md", expect.MARKERS)],
)
def test_the_pages_have_a_place_for_their_tables(name: str, markers: tuple[str, str]) -> None:
    between((ROOT / name).read_text("utf-8"), markers)


def test_full_table_has_every_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        benchmarks.main(["table", saved(tmp_path / "run.jsonl", TRAINING, INFERENCE, LAYER)]) == 0
    )
    shown = capsys.readouterr().out
    assert shown.count("| 2 |") == 3
    assert "50.0 (49.0) | 100 (98.0) | 2.00x ±1% | 100.0 | 50% |" in shown
    assert "0.50x ±1% slower" in shown


def test_change_is_that_of_the_ratio_so_that_a_slow_machine_cancels() -> None:
    slow = replace(TRAINING, ours_ms=100.0, torch_ms=200.0)
    change = compare.Change(TRAINING, slow)
    assert change.speedup == pytest.approx(1)
    assert change.flag == ""


@pytest.mark.parametrize(
    ("ratio", "flag"), [(2.05, ""), (1.95, ""), (2.3, "faster"), (1.7, "SLOWER")]
)
def test_compare_flags_what_exceeds_the_noise(ratio: float, flag: str) -> None:
    scale = ratio / TRAINING.ratio
    after = replace(TRAINING, ratio=ratio, ratio_q1=1.98 * scale, ratio_q3=2.02 * scale)
    assert compare.Change(TRAINING, after).flag == flag


def test_compare_flags_nothing_when_the_rounds_scatter() -> None:
    after = replace(TRAINING, ratio=2.3, ratio_q1=1.0, ratio_q3=3.6)
    assert compare.Change(TRAINING, after).flag == ""


def test_the_grid_has_a_row_for_each_length_and_batch(tmp_path: Path) -> None:
    base = replace(TRAINING, group=GRID, data="random", step="fwd+bwd")
    run = made_up(
        replace(base, shape="T10 B4 I64 H64"),
        replace(base, shape="T10 B4 I16 H16", ratio=0.9, ratio_q1=0.9, ratio_q3=0.9),
        replace(base, shape="T1 B256 I16 H16", ratio=3.0),
        replace(base, shape="T1 B1 I16 H16", ratio=1.5, threads=1),
        LAYER,
    )
    source, page = tmp_path / "run.jsonl", tmp_path / "grid.md"
    run.save(source)
    assert benchmarks.main(["page", str(source), str(page)]) == 0
    text = page.read_text("utf-8")
    assert "|  | H 16 | H 64 |\n| --- | ---: | ---: |\n" in text
    assert "| T 1, B 256 | 3.00x |  |\n| T 10, B 4 | 0.90x* | 2.00x |\n" in text
    assert "## 1 thread\n\nGeometric mean 1.50x: training 1.50x (1)." in text
    assert "Slower than torch.nn: 1 of 3." in text
    assert benchmarks.main(["page", str(source), str(page), "--check"]) == 0
    page.write_text(text + "more", "utf-8")
    assert benchmarks.main(["page", str(source), str(page), "--check"]) == 1


def test_compare_matches_cases_and_reports_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = saved(tmp_path / "a.jsonl", TRAINING, INFERENCE)
    faster = replace(TRAINING, ours_ms=40.0, ratio=2.5, ratio_q1=2.49, ratio_q3=2.51)
    replace(made_up(faster, LAYER), torch="2.11.0").save(tmp_path / "b.jsonl")
    assert benchmarks.main(["compare", before, str(tmp_path / "b.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "differs: torch 2.10.0 -> 2.11.0" in shown
    assert "+25.0%" in shown
    assert "1 faster, 0 slower; in one run only: 2" in shown


def test_chart_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid = [replace(LAYER, group=GRID, shape=f"T{T}") for T in (1, 10)]
    png = tmp_path / "new" / "chart.png"
    run = saved(tmp_path / "run.jsonl", TRAINING, INFERENCE, LAYER, *grid)
    sizes = []
    for options in ([], ["--headlines"]):
        assert benchmarks.main(["chart", run, str(png), *options]) == 0
        assert png.read_bytes().startswith(b"\x89PNG")
        sizes.append(int.from_bytes(png.read_bytes()[20:24], "big"))  # heights
    assert sizes[1] < sizes[0]


BATCH = replace(TRAINING, shape="T100 B64 I8 H8", group="layer")
STEP = replace(BATCH, step="inference", shape="T1 B1 I8 H8")


def low_precision(path: Path, isa: str, **ratios: float) -> str:
    """Results of the verb bfloat16, a case for each step that is named."""
    measured = [
        bfloat16.Measured(f"LSTM {step} T9 B4 I8 H8", 1, 1.0, 1.0, ratio, 1.0, ratio)
        for step, ratio in ratios.items()
    ]
    header = {"cpu": "a CPU", "isa": isa}
    results.write(path, bfloat16.KIND, header, map(results.line, measured))
    return str(path)


def test_what_to_expect_is_the_range_of_each_kind_of_case_by_machine(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(("above", *expect.MARKERS, "below")), "utf-8")
    first = saved(tmp_path / "1.jsonl", BATCH, replace(BATCH, ratio=1.125), replace(STEP, ratio=9))
    zen5 = replace(made_up(BATCH, BATCH), cpu="AMD EPYC", isa="avx512")
    zen5.save(tmp_path / "2.jsonl")
    low = low_precision(tmp_path / "low.jsonl", "avx2", inference=0.5)
    arguments = ["expect", first, str(tmp_path / "2.jsonl"), "--bfloat16", low, "--page", str(page)]
    assert benchmarks.main([*arguments, "--check"]) == 1
    assert benchmarks.main(arguments) == 0
    assert benchmarks.main([*arguments, "--check"]) == 0
    lines = page.read_text("utf-8").splitlines()
    assert lines[2:8] == [
        "| your case | cases | a CPU, avx2 | AMD Zen 5, AVX-512 |",
        "| --- | ---: | ---: | ---: |",
        "| LSTM training, a batch | 2 | 1.12 to 2.00x | 2.00x |",
        "| one step of one row, LSTM | 1 | 9.00x |  |",
        "| bfloat16 inference, LSTM, a batch | 1 | 0.50x |  |",
        "",
    ]
    assert lines[-3] == f"- AMD Zen 5, AVX-512: {zen5.where}."
    assert [lines[0], *lines[-2:]] == ["above", expect.MARKERS[1], "below"]


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"cell": "GRU"}, "GRU training, a batch"),
        ({"cell": "RNN", "step": "inference", "shape": "T5 B2"}, "RNN inference, a batch"),
        ({"shape": "T1 B64"}, "LSTM training, a batch"),
        ({"step": "inference", "shape": "T9 B1"}, "LSTM inference, one row, many steps"),
        ({"step": "inference", "shape": "B1 I8"}, "one step of one row, a cell module"),
        ({"shape": "T1..9 B4"}, "LSTM training, packed sequences"),
        ({"shape": "T9 B4 D2"}, "LSTM training, both directions"),
        ({"shape": "T9 B1 P4"}, "LSTM with a projection, training and inference"),
        ({"group": "Reuters classifier", "shape": "T200 B4"}, "LSTM or RNN training, vanishing"),
        ({"group": "Reuters classifier", "shape": "T100 B4"}, "LSTM training, a batch"),
    ],
)
def test_a_case_belongs_to_the_row_that_a_reader_would_look_in(
    change: dict[str, str], label: str
) -> None:
    record = replace(BATCH, **change)  # type: ignore[arg-type]
    assert expect.label(expect.Case.of(record)).startswith(label)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"shape": "T9 B1"}, "none"),  # nobody trains on one row here
        ({"shape": "B64 I8 H8"}, "none"),
        ({"precision": "tf32"}, "none"),
        ({"shape": "T1..9 B4 D2"}, "'LSTM training, packed sequences', 'LSTM training, both"),
    ],
)
def test_a_case_without_its_one_row_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, change: dict[str, str], got: str
) -> None:
    run = saved(tmp_path / "run.jsonl", BATCH, replace(BATCH, **change))  # type: ignore[arg-type]
    assert benchmarks.main(["expect", run, "--page", str(tmp_path / "none.md")]) == 2
    assert f"expected one row of expect.py that takes it, got {got}" in capsys.readouterr().err


def test_machines_with_different_cases_in_a_row_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [saved(tmp_path / f"{n}.jsonl", *[BATCH] * n) for n in (1, 2)]
    assert benchmarks.main(["expect", *runs, "--page", str(tmp_path / "none.md")]) == 2
    error = "LSTM training, a batch: expected as many cases on each machine, got 1 and 2"
    assert error in capsys.readouterr().err


def test_bfloat16_results_of_another_machine_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = saved(tmp_path / "run.jsonl", BATCH)
    low = low_precision(tmp_path / "low.jsonl", "avx512", inference=0.5)
    page = str(tmp_path / "none.md")
    assert benchmarks.main(["expect", run, "--bfloat16", low, "--page", page]) == 2
    error = capsys.readouterr().err
    assert "expected bfloat16 results of the runs' machines, got a CPU, avx512" in error
    assert benchmarks.main(["expect", run, "--bfloat16", run, "--page", page]) == 2
    assert f"{run}: expected kind bfloat16, got run" in capsys.readouterr().err


def test_the_command_passes_over_the_benchmarks_of_another_library(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    run = saved(tmp_path / "run.jsonl", TRAINING)
    words = [sys.executable, "-m", "benchmarks", "compare", run, run]
    environment = {"PYTHONPATH": str(tmp_path)}
    subprocess.run(words, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("verb", [*benchmarks.REPORTS, *benchmarks.MEASUREMENTS])
def test_every_verb_says_how_it_is_called(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        benchmarks.main([verb, "--help"])
    assert f"usage: python -m benchmarks {verb} " in capsys.readouterr().out


def test_a_verb_that_is_none_is_answered_with_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert benchmarks.main(["tables"]) == 2
    told = capsys.readouterr().err
    assert all(f"  {verb} " in told for verb in (*benchmarks.REPORTS, *benchmarks.MEASUREMENTS))


def test_a_missing_file_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["table", "no/such/run.jsonl"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
