"""The detector: its resets, its stream beside the whole sound, the command that hears a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.driver import training
from examples.driver.checkpoint import Checkpoints
from examples.driver.errors import WorkloadError
from examples.driver.plots import Chart
from examples.streaming import __main__ as command
from examples.streaming import listen, model, stream, tracks, voices, workload
from examples.streaming.features import BANDS, features
from examples.streaming.model import Config, Recordings, build_model, crops, in_parts
from examples.streaming.voices import HOP, Formants

SMALL = Config(tracks=10, seconds=4, test_tracks=1, clips=3, hidden=16, batch=4, steps=100)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return Recordings(Formants(), SMALL)


@pytest.fixture
def heard(recordings: Recordings, tmp_path: Path) -> Path:
    """The example as a WAV file."""
    voices.write_wav(tmp_path / "said.wav", recordings.example.sound)
    return tmp_path / "said.wav"


@pytest.fixture
def hear(small: Any, tmp_path: Path) -> Callable[..., int]:
    """hear(*options): the exit status of the command, whose detector is small and synthetic."""
    threads = str(torch.get_num_threads())

    def hear(*options: str | Path) -> int:
        words = ["--synthetic", "--threads", threads, "--out", str(tmp_path / "out")]
        return command.run([*map(str, options), *words])

    return hear


def test_resets_are_the_calls_between_them() -> None:
    """Of fusedrnn's layer, beside torch.nn's in parts: outputs, state and gradients."""
    models = [build_model("gru", impl, SMALL) for impl in ("fusedrnn", "torch")]
    models[1].load_state_dict(models[0].state_dict())
    T, B = 30, 3
    x, resets = torch.randn(T, B, BANDS), torch.rand(T, B) < 0.1
    resets[0] = torch.tensor([True, False, True])
    state = torch.randn(2, B, SMALL.hidden)
    found = []
    for one in models:
        logits, last = one(x, state, resets)
        loss = logits.square().sum() + last.sum()
        gradients = torch.autograd.grad(loss, [*one.parameters()])
        found.append([logits, last, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_part_begins_from_zeros_in_the_rows_that_are_reset_alone() -> None:
    gru, x = nn.GRU(3, 5), torch.randn(7, 2, 3)
    resets = torch.zeros(7, 2, dtype=torch.bool)
    resets[4, 1] = True
    output, state = in_parts(gru, x, None, resets)
    whole, last = gru(x)
    anew, _ = gru(x[4:, 1:])
    torch.testing.assert_close(output[:, 0], whole[:, 0])
    torch.testing.assert_close(output[:4, 1], whole[:4, 1])
    torch.testing.assert_close(output[4:, 1:], anew)
    torch.testing.assert_close(state[:, 0], last[:, 0])


def test_crops_follow_each_other_in_their_rows_and_begin_anew_with_each_track() -> None:
    x = torch.arange(5 * 7).view(5, 7, 1).float()
    y = x[..., 0] % 2
    found = [*crops(x, y, 3, 4, torch.Generator().manual_seed(0))]
    assert [len(crop[1]) for crop in found] == [4, 4, 3]
    values, targets, resets = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert values.shape == (11, 3, 1)
    rows = values[..., 0].t()
    assert len(rows.unique()) == rows.numel()
    torch.testing.assert_close(targets.t(), rows % 2)
    assert torch.equal(resets.t(), rows % 7 == 0)
    follows = rows[:, 1:] == rows[:, :-1] + 1
    assert torch.equal(follows | resets.t()[:, 1:], torch.ones_like(follows))


def test_too_little_sound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkloadError, match="too little sound for 99 rows: 14 frames"):
        next(crops(torch.zeros(2, 7, 1), torch.zeros(2, 7), 99, 4))
    monkeypatch.setattr(tracks, "joined", lambda _, samples, __: np.zeros(samples, np.float32))
    with pytest.raises(WorkloadError, match="too little sound to train"):
        _ = Recordings(Formants(), SMALL).train


def test_it_learns_more_than_energy_tells() -> None:
    recordings = Recordings(Formants(), replace(SMALL, tracks=40, batch=8, learning_rate=0.01))
    run = model.new_run("gru", "fusedrnn", recordings)
    training.fit([run], 7, lambda *_: None)
    baselines = [of["auc"] for of in workload._baselines(recordings)]
    assert run.history[-1].figures["auc"] > max(baselines)
    assert run.history[-1].loss < 0.7 * run.history[0].loss


def test_the_sound_is_the_same_for_every_seed_and_other_in_the_test(
    recordings: Recordings,
) -> None:
    again = Recordings(Formants(), SMALL)
    torch.testing.assert_close(again.train.x, recordings.train.x, rtol=0, atol=0)
    assert recordings.test.x.shape == (30, 400, BANDS)
    other = Recordings(Formants(), replace(SMALL, task_seed=1))
    assert not np.array_equal(other.example.sound, recordings.example.sound)


def test_a_stream_is_the_whole_sound_at_once(impl: str, recordings: Recordings) -> None:
    detector = build_model("gru", impl, SMALL)
    sound = recordings.example.sound[: 200 * HOP + 17]
    streamed = stream.hear(detector, sound)
    whole = model.probabilities(detector, torch.from_numpy(features(sound))[None])[0]
    assert streamed.probabilities.shape == streamed.seconds.shape == (200,)
    assert np.ptp(streamed.probabilities) > 1e-3
    np.testing.assert_allclose(streamed.probabilities, whole.numpy(), atol=1e-6, rtol=0)
    again = stream.hear(detector, sound)  # a stream of its own, from zeros
    np.testing.assert_array_equal(again.probabilities, streamed.probabilities)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_stream_of_narrow_weights_hears_nearly_the_same(
    dtype: torch.dtype, recordings: Recordings
) -> None:
    detector, sound = build_model("gru", "fusedrnn", SMALL), recordings.example.sound
    exact, narrow = (stream.hear(detector, sound, of).probabilities for of in (None, dtype))
    assert 0 < np.abs(narrow - exact).max() < 0.01
    assert isinstance(detector.rnn, nn.GRU)  # and not frozen itself


def test_two_streams_of_one_detector_do_not_meet(recordings: Recordings) -> None:
    detector, sound = build_model("gru", "fusedrnn", SMALL), recordings.example.sound
    one, two = stream.Listener(detector), stream.Listener(detector)
    alone = stream.hear(detector, sound[: 20 * HOP]).probabilities
    for n in range(20):
        two(sound[(n + 20) * HOP : (n + 21) * HOP])
        assert one(sound[n * HOP : (n + 1) * HOP]) == alone[n]


def test_speed_is_told_in_seconds_of_sound_a_second() -> None:
    heard = stream.Heard(np.zeros(100), np.full(100, 1e-4))
    assert heard.real_time_factor == pytest.approx(100)
    assert heard.text() == (
        "1.0 s of sound in 0.010 s: real-time factor 100; a frame takes 100 us (p50), 100 us (p99)"
    )


def test_short_pauses_belong_to_the_speech() -> None:
    spoken = np.zeros(200, bool)
    spoken[5:10] = spoken[29:40] = spoken[60:61] = spoken[190:] = True
    assert listen.stretches(spoken) == [(0.05, 0.4), (0.6, 0.61), (1.9, 2.0)]
    assert listen.stretches(spoken[:5]) == []


def test_a_file_is_heard_by_a_detector_trained_at_once(
    hear: Callable[..., int], heard: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert hear(heard, "--quick") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("synthetic | ") for line in lines)
    assert "training a small detector" in lines[0]
    assert "4.0 s of sound in" in lines[-2]
    assert "real-time factor" in lines[-2]
    assert lines[-1] == f"synthetic | written: {tmp_path / 'out' / 'streaming-said.png'}"
    assert (tmp_path / "out" / "streaming-said.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_file_one_is_made_and_what_is_right_is_said(
    hear: Callable[..., int], tmp_path: Path, capsys: Capture
) -> None:
    assert hear() == 0
    out = capsys.readouterr().out
    assert "sound.wav, a voice in pink noise at 5 dB" in out
    assert "% of the frames" in out
    assert len(voices.read_wav(tmp_path / "out" / "sound.wav")) == voices.RATE
    assert (tmp_path / "out" / "streaming-sound.png").is_file()


def test_a_trained_detector_hears_what_it_heard_in_training(
    hear: Callable[..., int], heard: Path, recordings: Recordings, tmp_path: Path, capsys: Capture
) -> None:
    run = model.new_run("gru", "torch", recordings)
    training.fit([run], 1, lambda *_: None, Checkpoints(tmp_path, resume=False))
    path = tmp_path / "streaming-gru-seed0.pt"
    loaded = listen.load(path, "fusedrnn")
    assert isinstance(run.model, model.Detector)
    x = recordings.test.x[:2]
    found, expected = (model.probabilities(one, x) for one in (loaded, run.model))
    torch.testing.assert_close(found, expected)
    assert hear(heard, "--model", path) == 0
    assert "training" not in capsys.readouterr().out
    assert hear(heard, "--model", path, "--dtype", "int8") == 0
    assert hear(heard, "--model", path, "--quick") == 1
    assert "give one of both" in capsys.readouterr().err
    assert hear(heard, "--model", path, "--impl", "torch", "--dtype", "int8") == 1
    assert "--dtype int8 is of frozen layers: give --impl fusedrnn" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["missing", "other", "short"])
def test_what_cannot_be_heard_ends_in_one_line(
    wrong: str, hear: Callable[..., int], heard: Path, tmp_path: Path, capsys: Capture
) -> None:
    kept = tmp_path / "memory.pt"
    said = f"found no {kept}: python -m examples streaming --checkpoints kept makes"
    if wrong == "other":
        linear = nn.Linear(1, 1)
        other = training.Run(
            "memory",
            "a",
            "torch",
            0,
            {},
            linear,
            torch.optim.SGD(linear.parameters()),
            lambda: iter(()),
        )
        Checkpoints(tmp_path, resume=False).save(other)
        kept = tmp_path / "memory-a.pt"
        said = "expected a detector, got a model of memory"
    if wrong == "short":
        voices.write_wav(heard, np.zeros(HOP - 1, np.float32))
        said = "expected at least 160 samples, got 159"
    words = ["--quick"] if wrong == "short" else ["--model", kept]
    assert hear(heard, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("streaming: ")
    assert said in error
    assert error.count("\n") == 1


def made_up(accuracy: float) -> dict[str, Any]:
    """A record of one run that is as often right, beside a baseline that is in 0.8."""
    shares = {
        "auc": 0.9, "alarms": 0.1, "missed": 0.1, "onsets": 10, "unheard": 1, "delay": 2.0,
        "delay95": 9.0, "by_snr": {"-5": 0.7, "20": 0.9}, "by_noise": {"hum": 0.9, "babble": 0.7},
        "roc": [[0.01, 0.1, 1.0], [0.2, 0.8, 1.0]],
    }  # fmt: skip
    timed = {"real_time_factor": 90.0, "p50": 90.0, "p99": 200.0}
    epochs = [training.Epoch(0.5, 9, 1.0, {"accuracy": accuracy, "auc": 0.9})]
    run = {"name": "gru-seed0", "cell": "gru", "impl": "torch", "seed": 0, "epochs": epochs}
    return {
        "data": "espeak-ng",
        "about": "sentences",
        "config": {**SMALL.__dict__},
        "options": {"impl": ["torch"], "seed": [0]},
        "runs": [{**run, **shares, **timed, "accuracy": accuracy}],
        "baselines": [{"name": "energy", "threshold": 1.0, **shares, "accuracy": 0.8}],
        "example": [{"label": [0, 1], "probability": [0.1, 0.9], "peak": [0.2, 1.0]}],
    }


def test_remarks_say_what_the_figures_say() -> None:
    better, worse = (workload.WORKLOAD.summarise(made_up(share)) for share in (0.95, 0.75))
    assert better.remarks == [
        "GRU: 4.0 times fewer wrong frames than by energy.",
        "GRU: least is right in babble, 70.0 % of the frames.",
    ]
    assert worse.remarks == ["GRU: no more frames are right than by energy: nothing was learnt."]
    assert better.headline[0][2] == "95.0 %, 0.900"


def test_pictures_show_each_detector_and_what_is_heard() -> None:
    roc, snr, heard = workload.WORKLOAD.draw(made_up(0.9))
    assert all(isinstance(chart, Chart) for chart in (roc, snr, heard))
    assert [*roc.series] == [*snr.series] == ["GRU", "energy"]
    assert snr.series["GRU"] == ([-5.0, 20.0], [0.7, 0.9])
    assert heard.series["probability of speech"] == ([0.0, 0.01], [0.1, 0.9])
