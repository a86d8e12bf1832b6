"""The sound, its labels and features: known signals, and a stream that gives the file's bits."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.driver.errors import WorkloadError
from examples.streaming import features, scores, tracks, voices
from examples.streaming.features import BANDS, FrontEnd
from examples.streaming.tracks import HANGOVER, NOISES, SNRS
from examples.streaming.voices import HOP, RATE, Espeak, Formants, Sound


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def tone(hertz: float, seconds: float, rate: int = RATE) -> Sound:
    found: Sound = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return found.astype(np.float32)


def silence(seconds: float) -> Sound:
    return np.zeros(int(seconds * RATE), np.float32)


@pytest.mark.parametrize("samples", [0, 1, HOP, 7 * HOP + 31, 40 * HOP])
def test_features_of_a_stream_are_those_of_the_whole_to_the_bit(
    samples: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BLOCK", 16)
    sound = (rng.standard_normal(samples) * np.linspace(0, 0.3, samples)).astype(np.float32)
    front = FrontEnd()
    streamed = [front.push(sound[at : at + HOP]) for at in range(0, samples // HOP * HOP, HOP)]
    whole = features.features(sound)
    assert whole.shape == (samples // HOP, BANDS)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([whole[:0], *streamed]), whole)


def test_features_are_log_mel_energies_of_the_last_25_ms(rng: np.random.Generator) -> None:
    sound = (0.1 * rng.standard_normal(20 * HOP)).astype(np.float32)
    last = sound[11 * HOP - 400 : 11 * HOP].astype(np.float64)  # frame 10 ends with hop 10
    turn = 2 * np.pi * np.arange(400) / 400
    power = np.abs(np.fft.rfft(last * (0.5 - 0.5 * np.cos(turn)), 512)) ** 2
    low, high = 1127 * np.log1p(np.array([60.0, 7600.0]) / 700)
    mel = np.linspace(low, high, BANDS + 2)
    points, bins = 700 * np.expm1(mel / 1127), np.arange(257) * RATE / 512
    bands = [
        np.interp(bins, points[m : m + 3], [0, 1, 0], left=0, right=0) @ power for m in range(BANDS)
    ]
    expected = (np.log(np.array(bands) + 1e-6) + 5) / 4
    np.testing.assert_allclose(features.features(sound)[10], expected, atol=1e-4)


def test_no_feature_knows_what_comes_after_it(rng: np.random.Generator) -> None:
    sound = rng.standard_normal(30 * HOP, np.float32)
    other = sound.copy()
    other[18 * HOP :] = 0
    a, b = features.features(sound), features.features(other)
    np.testing.assert_array_equal(a[:18], b[:18])
    assert (a[18] != b[18]).any()


def test_a_hop_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a hop of 160 samples, got shape \[80\]"):
        FrontEnd().push(np.zeros(80, np.float32))


def test_speech_is_where_there_is_energy_and_for_the_hangover_after() -> None:
    loud = np.sqrt(2) * tone(200, 0.3)
    faint = loud * 10 ** (-31 / 20)
    sound = np.concatenate([silence(0.5), loud, silence(0.2), faint, loud, silence(0.05), loud])
    expected = [0] * 50 + [1] * (30 + HANGOVER) + [0] * (20 - HANGOVER + 30) + [1] * (30 + 5 + 30)
    assert tracks.labels(sound).astype(int).tolist() == expected


def test_energy_finds_what_the_labels_say_where_there_is_no_noise() -> None:
    sound = np.concatenate([silence(0.5), np.sqrt(2) * tone(200, 0.3), silence(0.5)])
    found = scores.energy(voices.energies(sound)[None]) > 10 * np.log10(voices.QUIETEST)
    np.testing.assert_array_equal(found[0], tracks.labels(sound))


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr", [40.0, 0.0])
def test_a_track_has_its_noise_at_its_snr_and_labels_of_the_speech_alone(
    kind: str, snr: float
) -> None:
    clips = Formants().speak("train", 3, np.random.default_rng(0))
    found, clean = (
        tracks.track(clips, 1, kind, of, 1500, np.random.default_rng(1)) for of in (snr, 60.0)
    )
    np.testing.assert_array_equal(found.labels, clean.labels)
    assert 0.2 < found.labels.mean() < 0.8
    assert len(found.sound) == 1500 * HOP
    np.testing.assert_array_equal(found.sound * 32768, np.round(found.sound * 32768))
    loud = voices.energies(clean.sound)
    level = loud[loud > loud[clean.labels].mean() / 30].mean()  # the clips' own levels vary by 3 dB
    noise = np.square(found.sound - clean.sound).mean()
    assert 10 * np.log10(level / noise) == pytest.approx(snr, abs=3.5)


def test_every_noise_is_tested_at_every_snr_and_some_training_is_nearly_clean(
    rng: np.random.Generator,
) -> None:
    clips = Formants().speak("test", 2, rng)
    tested = [(track.noise, track.snr) for track in tracks.to_test(clips, 2, 20, rng)]
    assert sorted(tested) == sorted((kind, snr) for kind in NOISES for snr in SNRS * 2)
    trained = [(track.noise, track.snr) for track in tracks.to_train(clips, 30, 20, rng)]
    assert {kind for kind, _ in trained} == {*NOISES}
    assert {kind for kind, snr in trained if snr == tracks.NEARLY_CLEAN} == {*NOISES}
    assert all(-5 <= snr <= 20 for _, snr in trained if snr != tracks.NEARLY_CLEAN)


def test_formants_sound_at_the_pitch_of_the_speaker(rng: np.random.Generator) -> None:
    sound = voices.syllables(200.0, 1.0, 20, rng)
    spectrum = np.abs(np.fft.rfft(sound)) ** 2
    hertz = np.fft.rfftfreq(len(sound), 1 / RATE)
    near, between = (spectrum[(hertz > at - 35) & (hertz < at + 35)].sum() for at in (200, 300))
    assert near > 5 * between


def test_no_voice_is_in_both_parts() -> None:
    for place in (0, 1):  # the accent, the variant
        train, test = ({v.split("+")[place] for v in voices.VOICES[part]} for part in voices.PARTS)
        assert train.isdisjoint(test)
    assert {*voices.SPEAKERS["train"]}.isdisjoint(voices.SPEAKERS["test"])


ESPEAK = """#!/bin/sh
while [ "$1" != -- ]; do
  if [ "$1" = -w ]; then out=$2; fi
  if [ "$1" = -v ]; then voice=$2; fi
  shift
done
echo "$voice: $2" >>"{log}"
{act}
"""


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, act: str = 'cp "{tone}" "$out"') -> Path:
    """A program of espeak-ng's name, the only one on PATH besides the system's; its log."""
    log, wav, program = folder / "log", folder / "tone.wav", folder / "espeak-ng"
    voices.write_wav(wav, 0.5 * tone(300, 0.2))
    program.write_text(ESPEAK.format(log=log, act=act.format(tone=wav)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def test_each_part_has_its_own_voices_and_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    log, said = pretend(tmp_path, monkeypatch), {}
    source = voices.espeak()
    assert source.about == "20 sentences of its own, The Time Machine being nowhere"
    for part in voices.PARTS:
        clips = source.speak(part, 4, rng)
        said[part] = [line.split(": ") for line in log.read_text().splitlines()]
        log.unlink()
        assert [len(of_voice) for of_voice in clips] == [4] * len(voices.VOICES[part])
        assert [voice for voice, _ in said[part][::4]] == [*voices.VOICES[part]]
        level = np.square(clips[0][0]).mean()
        assert level == pytest.approx(1, rel=0.05)
    train, test = ({sentence for _, sentence in said[part]} for part in voices.PARTS)
    assert train.isdisjoint(test)
    assert train | test <= {*source.sentences}


def test_what_espeak_says_when_it_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    pretend(tmp_path, monkeypatch, "echo no such voice >&2; exit 1")
    source = Espeak(["A sentence that is not spoken."] * 4, "one")
    with pytest.raises(WorkloadError, match=r"failed with voice en-us\+m1: no such voice$"):
        source.speak("train", 1, rng)


def test_without_espeak_one_line_says_how_to_get_it(
    fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = fails("streaming")
    for part in ("found no espeak-ng", "apt-get install espeak-ng", "--synthetic"):
        assert part in error


def test_sentences_are_cut_at_their_ends_and_lose_quotes() -> None:
    text = (
        "Short. 'You must follow\nme, carefully. I don't,' he _said_.  "
        + "Long " * 40
        + ". And is it so, then, or not?"
    )
    assert voices.sentences(text) == [
        "You must follow me, carefully.",
        "And is it so, then, or not?",
    ]


def wav(path: Path, values: Any, width: int, channels: int = 1, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(values).tobytes())
    return path


def test_a_wav_file_is_read_as_it_was_written(tmp_path: Path, rng: np.random.Generator) -> None:
    sound = (rng.integers(-32768, 32768, 1000) / 32768).astype(np.float32)
    voices.write_wav(tmp_path / "a.wav", sound)
    np.testing.assert_array_equal(voices.read_wav(tmp_path / "a.wav"), sound)
    both = wav(tmp_path / "b.wav", np.array([[100, 300], [-8, 0]], "<i2"), 2, channels=2)
    np.testing.assert_allclose(voices.read_wav(both) * 32768, [200, -4])
    narrow = wav(tmp_path / "c.wav", np.array([0, 128, 192], "u1"), 1)
    np.testing.assert_allclose(voices.read_wav(narrow), [-1, 0, 0.5])
    wide = wav(tmp_path / "d.wav", np.array([2**30, -(2**31)], "<i4"), 4)
    np.testing.assert_allclose(voices.read_wav(wide), [0.5, -1])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_another_rate_becomes_16_khz(rate: int, tmp_path: Path) -> None:
    values = (20_000 * tone(1000, 0.5, rate)).astype("<i2")
    found = voices.read_wav(wav(tmp_path / "a.wav", values, 2, rate=rate))
    assert len(found) == RATE // 2
    middle = slice(1000, 7000)  # the ends of a cut tone ring
    expected = 20_000 / 32768 * tone(1000, 0.5)
    np.testing.assert_allclose(found[middle], expected[middle], atol=2e-3)


@pytest.mark.parametrize(
    ("width", "body", "said"),
    [
        (0, b"no sound", "cannot be read: expected a WAV file of integers, got one with"),
        (2, b"", "holds no sound"),
        (3, b"abc", "expected 8, 16 or 32 bits a sample, got 24"),
    ],
)
def test_a_file_that_cannot_be_heard_is_refused(
    width: int, body: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.wav"
    if width:
        wav(path, np.frombuffer(body, "u1"), width)
    else:
        path.write_bytes(body)
    with pytest.raises(WorkloadError, match=said):
        voices.read_wav(path)


def test_a_silent_clip_is_refused() -> None:
    with pytest.raises(WorkloadError, match="got silence"):
        voices.levelled(silence(1))


def test_auc_is_the_share_of_pairs_in_order(rng: np.random.Generator) -> None:
    found, truth = rng.integers(0, 6, (3, 50)), rng.random((3, 50)) < 0.4
    speech, others = found[truth][:, None], found[~truth]
    expected = (speech > others).mean() + (speech == others).mean() / 2
    assert scores.auc(found, truth) == pytest.approx(expected)
    assert scores.auc(truth.astype(float), truth) == 1


def test_the_best_threshold_is_right_as_often_as_any(rng: np.random.Generator) -> None:
    truth = rng.random(300) < 0.6
    found = rng.standard_normal(300) + truth
    best = scores.best_threshold(found, truth)
    rights = [((found > threshold) == truth).mean() for threshold in found]
    assert ((found > best) == truth).mean() == max(rights)


def test_roc_says_what_is_found_at_each_share_of_alarms(rng: np.random.Generator) -> None:
    truth = rng.random(20_000) < 0.5
    chance, sure = (scores.roc(rng.random(20_000) + k * truth, truth) for k in (0, 2))
    np.testing.assert_allclose(chance[0], chance[1], atol=0.02)
    assert min(sure[1]) == 1
    assert chance[0][::59] == pytest.approx([0.001, 1])


def test_a_delay_is_from_where_speech_begins_to_the_first_frame_called_speech() -> None:
    truth = np.zeros(200, bool)
    truth[30:60] = truth[70:80] = truth[110:130] = truth[160:200] = True  # 70: too soon after 60
    assert scores.onsets(truth) == [30, 110, 160]
    called = np.zeros(200, bool)
    called[33:100] = called[150:155] = called[163:] = True
    assert scores.delays(called, truth) == [3, None, 3]
    called[159] = True
    assert scores.delays(called, truth) == [3, None]


def test_what_is_judged_is_counted_by_noise_and_snr() -> None:
    truth = np.zeros((2, 100), bool)
    truth[:, 50:] = True
    found = truth * 0.9
    found[0, 50:60] = 0
    about = judged = scores.judged(found, truth, 0.5, ["hum", "pink"], [0, 5])
    assert judged["accuracy"] == pytest.approx(0.95)
    assert (judged["alarms"], judged["missed"]) == (0, pytest.approx(0.1))
    assert (judged["onsets"], judged["unheard"], judged["delay"]) == (2, 0, 5)
    assert about["by_noise"] == {"hum": pytest.approx(0.9), "pink": 1}
    assert about["by_snr"] == {"0": pytest.approx(0.9), "5": 1}


def test_energy_above_the_floor_follows_a_noise_that_changes() -> None:
    energies = np.concatenate([np.full(400, 1e-6), np.full(400, 1e-2), [1.0]])[None]
    found = scores.above_floor(energies)[0]
    assert found[399] == 0
    assert found[400] == pytest.approx(40, abs=0.1)
    assert found[799] == 0
    assert found[800] == pytest.approx(20, abs=0.1)
