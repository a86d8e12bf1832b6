"""Speech to train on: espeak-ng reads sentences, or a few formants stand in for a voice.

A clip is one sentence of one voice, float32 at 16 kHz, scaled to a speech level of 1. The voices
and the sentences of the two parts, "train" and "test", differ. `Formants` is no speech: harmonics
under three formants and bursts of noise, syllable by syllable, so that tests need no synthesizer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from examples import data
from examples.data import fetch
from examples.driver.errors import MissingData, WorkloadError

Sound = npt.NDArray[np.float32]  # samples, mono
Clips = list[list[Sound]]  # by voice

RATE = 16_000  # samples a second
HOP = 160  # samples of a frame: 10 ms
QUIETEST = 10 ** (-30 / 10)  # a frame of less than this x the speech level's energy is no speech
PROGRAM = "espeak-ng"
LACKING = (
    f"found no {PROGRAM}, which speaks the sentences: apt-get install {PROGRAM} "
    f"(or brew install {PROGRAM}), or use --synthetic"
)
PARTS = ("train", "test")
# espeak-ng's accents and variants of its voice: no part has one of the other's.
VOICES = {
    "train": (
        *("en-us+m1", "en-us+m2", "en-us+f1", "en-us+f2", "en-gb+m3", "en-gb+m4"),
        *("en-gb+f3", "en-gb+croak", "en-gb-scotland+m1", "en-gb-scotland+m5"),
        *("en-gb-scotland+f1", "en-gb-scotland+f2"),
    ),
    "test": ("en-gb-x-rp+m6", "en-gb-x-rp+f4", "en-029+m7", "en-029+f5", "en-gb-x-gbclan+m8"),
}
SPEEDS, PITCHES = (130, 210), (25, 75)  # words a minute; espeak-ng's scale of 0 to 99
LETTERS = (25, 140)  # a sentence has so many
SENTENCES = """
The kettle began to sing before anyone had come down to the kitchen.
A narrow road follows the river as far as the old mill.
She put the letter back into the drawer and locked it twice.
Nobody could say when the clock in the hall had stopped.
The children counted the carriages of the train until it was gone.
Two of the lamps were broken, and the third gave little light.
He asked the way to the harbour and was sent in the wrong direction.
Rain fell on the tin roof all night, louder than the wind.
We keep the spare keys in a jar behind the flour.
The museum shows a map that was drawn before the bridge was built.
Every spring the storks come back to the same chimney.
Give me the smaller hammer, the one with the yellow handle.
The doctor listened, wrote three lines, and said nothing for a while.
From the top of the hill one sees the lake and both villages.
My brother repairs radios that are older than he is.
The bread was still warm when the first customers arrived.
A grey cat slept on the warm bonnet of the car.
They sold the boat in autumn and bought another one in May.
The answer was on the last page, under the picture of a whale.
Please close the window before the papers fly away.
"""


class Source(Protocol):
    """Who speaks."""

    @property
    def name(self) -> str:
        """ "synthetic", or what the head of the results says."""

    @property
    def about(self) -> str:
        """Where the sentences are from."""

    def speak(self, part: str, count: int, rng: np.random.Generator) -> Clips:
        """`count` clips of each of the part's voices."""


@dataclass(frozen=True)
class Espeak:
    """espeak-ng reads each part's own sentences, at speeds and pitches that vary."""

    sentences: Sequence[str]
    about: str
    name: str = PROGRAM

    def speak(self, part: str, count: int, rng: np.random.Generator) -> Clips:
        cut = len(self.sentences) * 3 // 4
        own = self.sentences[:cut] if part == "train" else self.sentences[cut:]
        found: Clips = []
        with tempfile.TemporaryDirectory() as folder:
            for voice in VOICES[part]:
                chosen = rng.choice(len(own), count, replace=count > len(own))
                found.append([_read_out(own[i], voice, rng, Path(folder)) for i in chosen])
        return found


def espeak(data_dir: str | Path | None = None) -> Espeak:
    """espeak-ng with the sentences of The Time Machine, or with `SENTENCES` where that is nowhere;
    WorkloadError where the program is not installed."""
    if shutil.which(PROGRAM) is None:
        raise WorkloadError(LACKING)
    try:
        path = fetch.locate(fetch.TIME_MACHINE, data_dir)
    except MissingData:
        found = SENTENCES.strip().splitlines()
        return Espeak(found, f"{len(found)} sentences of its own, The Time Machine being nowhere")
    found = sentences(path.read_text("ascii"))
    return Espeak(found, f"{len(found):,} sentences of {path.name}")


def sentences(text: str) -> list[str]:
    """The sentences of `text` that are neither too short nor too long to read, without quotes."""
    plain = re.sub(r"[_\"]|'(?!\w)|(?<!\w)'", "", re.sub(r"\s+", " ", text))
    parts = re.split(r"(?<=[.!?]) +", plain)
    return [part for part in parts if LETTERS[0] <= len(part) <= LETTERS[1]]


def _read_out(sentence: str, voice: str, rng: np.random.Generator, folder: Path) -> Sound:
    path = folder / "said.wav"
    speed, pitch = (str(rng.integers(*span)) for span in (SPEEDS, PITCHES))
    words = [PROGRAM, "-v", voice, "-s", speed, "-p", pitch, "-z", "-w", str(path), "--", sentence]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise WorkloadError(f"{PROGRAM} failed with voice {voice}: {reason}")
    return levelled(read_wav(path))


# The first three formants of six vowels in Hz (men's means; Peterson & Barney, 1952).
VOWELS = (
    *((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240)),
    *((530, 1840, 2480), (570, 840, 2410), (660, 1720, 2410)),
)
SPEAKERS = {  # the pitch in Hz, and how much higher the formants are than a man's
    "train": ((95, 0.95), (120, 1.0), (140, 1.05), (190, 1.12), (230, 1.2)),
    "test": ((108, 0.98), (130, 1.02), (165, 1.08), (210, 1.16)),
}
TOP = 4_000.0  # Hz of the highest harmonic


@dataclass(frozen=True)
class Formants:
    """Voiced sound without words, for tests: syllables of harmonics after bursts of noise."""

    name: str = data.SYNTHETIC
    about: str = "formants and bursts of noise in place of speech"

    def speak(self, part: str, count: int, rng: np.random.Generator) -> Clips:
        return [
            [levelled(syllables(*speaker, int(rng.integers(3, 8)), rng)) for _ in range(count)]
            for speaker in SPEAKERS[part]
        ]


def syllables(pitch: float, tract: float, count: int, rng: np.random.Generator) -> Sound:
    """`count` syllables of 150 to 300 ms each, most of them with noise before the vowel.

    Args:
        pitch: of the harmonics, in Hz.
        tract: the factor of all formants.
    """
    pieces = []
    for _ in range(count):
        if rng.random() < 0.6:
            burst = np.diff(rng.standard_normal(int(rng.integers(640, 1600)) + 1))
            pieces.append(0.3 * burst * np.hanning(len(burst)))
        samples = int(rng.integers(1600, 3600))
        begin, end = pitch * rng.uniform(0.85, 1.15, 2)
        glide = np.linspace(begin, end, samples)
        phase = 2 * np.pi * np.cumsum(glide) / RATE
        harmonics = np.arange(1, int(TOP / pitch))[:, None]
        formants = tract * np.array(VOWELS[rng.integers(len(VOWELS))])
        loud = (1 / (1 + ((harmonics * pitch - formants) / (0.08 * formants)) ** 2)).sum(1)
        vowel = (loud[:, None] * np.sin(harmonics * phase)).sum(0)
        pieces.append(vowel * np.hanning(samples))
    return np.concatenate(pieces).astype(np.float32)


def energies(sound: Sound) -> Sound:
    """The mean square of each whole frame: [N // HOP]."""
    frames = sound[: len(sound) // HOP * HOP].reshape(-1, HOP)
    found: Sound = np.square(frames).mean(1)
    return found


def levelled(sound: Sound) -> Sound:
    """`sound` scaled so that its frames of speech have a mean square of 1."""
    loud = energies(sound)
    if not loud.size or loud.max() <= 0:
        raise WorkloadError("expected a clip with speech in it, got silence")
    level = loud[loud > QUIETEST * loud.max()].mean()
    found: Sound = (sound / np.sqrt(level)).astype(np.float32)
    return found


def resampled(sound: Sound, rate: int) -> Sound:
    """`sound` of `rate` samples a second at RATE, by its spectrum: the whole of it at once."""
    if rate == RATE:
        return sound
    samples = max(round(len(sound) * RATE / rate), 1)
    spectrum = np.fft.rfft(sound.astype(np.float64))
    found = np.fft.irfft(spectrum[: samples // 2 + 1], samples) * (samples / len(sound))
    return found.astype(np.float32)


_CODES = {1: ("u1", 128, 128), 2: ("<i2", 0, 2**15), 4: ("<i4", 0, 2**31)}  # type, zero, scale


def read_wav(path: Path) -> Sound:
    """A WAV file of 8, 16 or 32 bit integers, its channels' mean, at RATE."""
    try:
        with wave.open(str(path), "rb") as file:
            width, rate, channels = file.getsampwidth(), file.getframerate(), file.getnchannels()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise WorkloadError(
            f"{path} cannot be read: expected a WAV file of integers, got one with {error}"
        ) from error
    if width not in _CODES:
        raise WorkloadError(f"{path}: expected 8, 16 or 32 bits a sample, got {8 * width}")
    kind, zero, scale = _CODES[width]
    values = np.frombuffer(raw[: len(raw) // (width * channels) * width * channels], kind)
    if not len(values):
        raise WorkloadError(f"{path} holds no sound")
    sound = (values.reshape(-1, channels).mean(1) - zero) / scale
    return resampled(sound.astype(np.float32), rate)


def write_wav(path: Path, sound: Sound) -> None:
    """Writes `sound`, between -1 and 1, as 16 bit integers at RATE."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(whole(sound).tobytes())


def whole(sound: Sound) -> npt.NDArray[np.int16]:
    """`sound` as 16 bit integers; what is beyond -1 and 1 is clipped."""
    return np.clip(np.round(sound * 32768), -32768, 32767).astype("<i2")
