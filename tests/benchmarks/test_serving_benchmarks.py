"""Frozen layers and streams are timed beside sides that compute the same, and what is asked for is
said to be met or missed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedrnn
from benchmarks import results, serving, serving_memory, serving_steps
from benchmarks.layers import Layer
from benchmarks.report import page
from benchmarks.report import serving as report
from benchmarks.report.figures import times
from benchmarks.report.serving import Called, Remembered, Stepped, Threaded

SMALL = {f"{case.group} {case.cell}": serving.small(case) for case in serving.cases()}


def test_the_page_has_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_steps, "loaded", lambda: nullcontext(False))
    parts = "layers,steps,beat,threads"
    assert serving.main(["--out", str(tmp_path), "--quick", "--only", parts]) == 0
    file = tmp_path / "serving.jsonl"
    written = file.with_suffix(".md").read_text("utf-8")
    assert written == page.page(file)
    _, found = report.load(file)
    assert [len(found[name]) for name in report.TABLES] == [3, 2, 2, 4, 0]
    for side in ("fusedrnn", "frozen float32", "frozen bfloat16", "frozen int8", "torch.nn"):
        assert all(side in m.ms for m in found["layers"])
        assert f" {side} |" in written
    for m in found["layers"]:
        assert f"| {times(m.ratio['torch.nn'][1])} ±" in written
    assert written.count("- met: ") + written.count("- MISSED: ") == 6 + 1 + 4


@pytest.mark.parametrize("name", SMALL)
def test_every_side_computes_what_ours_does(name: str) -> None:
    with torch.inference_mode():
        found = [*serving.sides(SMALL[name], 1, ["torch.nn"])]
        errors = serving.agreeing(found, name)
    assert ("torch.ao int8" in errors) == ("RNN" not in name)
    assert 0 < errors["frozen bfloat16"] < errors["frozen int8"] < serving.TOLERANCE["int8"]


def test_a_side_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = Layer.modules

    def wrong(layer: Layer, *setting: Any) -> tuple[Any, Any]:
        ours: Any
        ours, theirs = modules(layer, *setting)
        with torch.no_grad():
            ours.weight_ih_l0.add_(1)
        return ours, theirs

    monkeypatch.setattr(Layer, "modules", wrong)
    with torch.inference_mode(), pytest.raises(AssertionError, match=r"torch\.nn differs"):
        serving.measure(next(iter(SMALL.values())), 1, ["torch.nn"], 0.01)
    case = serving_steps.Streamed(8)
    steppers = serving_steps.steppers(case, [])
    serving_steps.held(steppers, case.name)
    stream = fusedrnn.freeze(fusedrnn.LSTM(8, 8)).stream()
    steppers["torch.nn.LSTM"] = lambda: stream.step(case.input())
    with pytest.raises(AssertionError, match=r"LSTM B1 I8 H8: torch.nn.LSTM differs"):
        serving_steps.held(steppers, case.name)


def test_int8_takes_a_quarter_of_the_file_and_of_the_process() -> None:
    layer, tiny = fusedrnn.LSTM(700, 700), fusedrnn.LSTM(8, 8)
    plain = serving_memory.of(layer, tiny, "fusedrnn.LSTM", "", 0)
    frozen, first = (fusedrnn.freeze(each, torch.int8) for each in (layer, tiny))
    found = serving_memory.of(frozen, first, "frozen int8", "", frozen._stack.bytes)
    assert 14 < plain.file < 16
    assert plain.file * 0.25 < found.file < plain.file * 0.27
    assert 13 < plain.resident < 20
    assert 3 < found.resident < plain.resident / 2


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ({"fusedrnn": 1.81, "torch.nn": 1.01, "frozen float32": 0.5}, ["met", "met"]),
        ({"fusedrnn": 1.79, "torch.nn": 2.0, "OpenVINO": 0.99}, ["MISSED", "MISSED"]),
    ],
)
def test_what_is_asked_of_int8_is_met_or_missed(ratio: dict[str, float], said: list[str]) -> None:
    quartiles = {side: [value] * 3 for side, value in ratio.items()}
    found = [*report.called_verdicts(Called("", 1, 7, {}, quartiles, {}, 1.8))]
    assert [line.split(":")[0] for line in found] == [f"- {word}" for word in said]


def test_host_threads_and_memory_are_met_or_missed() -> None:
    step = Stepped(report.HOST, 1, {"frozen int8": 3.0}, {"frozen int8": 2.1})
    slow = replace(step, us={"frozen int8": 3.2})
    threads = [Threaded("", "int8", [1, 4], [1.0, 2.0], gain) for gain in (1.91, 1.89)]
    plain, low = Remembered("", "fusedrnn.LSTM", 8, 8, 8), Remembered("", report.INT8, 2, 2, 2.1)
    lines = [
        *(line for s in (step, slow) for line in report.steps([s])),
        *report.threads(threads),
        *report.memory([plain, low]),
        *report.memory([plain, replace(low, resident=2.3)]),
    ]
    verdicts = [line.split(":")[0][2:] for line in lines if line.startswith("- ")]
    assert verdicts == ["met", "MISSED"] * 3


def test_what_is_unknown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--out", "nowhere", "--only", "step"])
    assert "expected some of layers,steps,beat,threads,memory, got step" in capsys.readouterr().err
    results.write(tmp_path / "serving.jsonl", "serving", {}, [{"table": "tables"}])
    with pytest.raises(ValueError, match=r"expected a table of layers.*got 'tables'"):
        report.load(tmp_path / "serving.jsonl")
