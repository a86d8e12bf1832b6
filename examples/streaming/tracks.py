"""Recordings to train and test on: clips with pauses between them, in noise, and their labels.

A frame of 10 ms is speech where the clean clips have energy, and for a hangover of 100 ms after
that; so the labels are of the speech alone and know nothing of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from examples.streaming.voices import HOP, QUIETEST, RATE, Clips, Sound, energies, whole

Labels = npt.NDArray[np.bool_]

HANGOVER = 10  # frames that stay speech after the last one with energy
NOISES = ("white", "pink", "babble", "hum", "clicks")
SNRS = (-5, 0, 5, 10, 15, 20)  # dB, of the speech's level over the noise's
NEARLY_CLEAN = 40.0  # dB, of every sixth track to train on
LEVELS = (-36.0, -20.0)  # dB of the speech, 0 being a square wave at full scale
TALKERS = 6  # voices of babble
PAUSES = (0.3, 4.5)  # seconds between clips


@dataclass(frozen=True)
class Track:
    """A recording in noise: samples [T * HOP] as a WAV file of 16 bits holds them, labels [T]."""

    sound: Sound
    labels: Labels
    noise: str
    snr: float


def labels(clean: Sound) -> Labels:
    """Which frames of `clean`, whose speech has a level of 1, are speech: [N // HOP]."""
    loud = energies(clean) > QUIETEST
    last = np.where(loud, np.arange(len(loud)), -HANGOVER - 1)
    found: Labels = np.arange(len(loud)) - np.maximum.accumulate(last) <= HANGOVER
    return found


def joined(clips: list[Sound], samples: int, rng: np.random.Generator) -> Sound:
    """Clips drawn at random, each up to 3 dB louder or softer, with pauses between them."""
    found, at = np.zeros(samples, np.float32), int(rng.uniform(0, 2) * RATE)
    while at < samples:
        clip = clips[rng.integers(len(clips))] * 10 ** (rng.uniform(-3, 3) / 20)
        part = clip[: samples - at]
        found[at : at + len(part)] = part
        at += len(clip) + int(rng.uniform(*PAUSES) * RATE)
    return found


def _white(samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    return rng.standard_normal(samples, np.float32)


def _pink(samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    spectrum = np.fft.rfft(rng.standard_normal(samples, np.float32))
    spectrum /= np.sqrt(np.arange(len(spectrum)).clip(20 * samples // RATE + 1))  # flat below 20 Hz
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def _babble(samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    """Other voices at once, without pauses."""
    found = np.zeros(samples, np.float32)
    for _ in range(TALKERS):
        voice, said = clips[rng.integers(len(clips))], 0
        pieces: list[Sound] = []
        while said < 2 * samples:
            pieces.append(voice[rng.integers(len(voice))])
            said += len(pieces[-1])
        found += np.roll(np.concatenate(pieces), -int(rng.integers(said)))[:samples]
    return found


def _hum(samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    """Mains of 50 or 60 Hz and its harmonics, with a little hiss."""
    time = np.arange(samples, dtype=np.float32) / RATE
    base = 2 * np.pi * rng.choice((50.0, 60.0)) * time
    found = 0.02 * rng.standard_normal(samples, np.float32)
    for k in range(1, 9):
        found += rng.uniform(0.2, 1) / k * np.sin(k * base + rng.uniform(0, 2 * np.pi))
    return found.astype(np.float32)


def _clicks(samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    """Bursts that fade within 5 ms, about four a second, over a little hiss."""
    found = 0.001 * rng.standard_normal(samples, np.float32)
    fade = np.exp(-np.arange(400, dtype=np.float32) / 80)
    for at in rng.integers(0, samples, max(4 * samples // RATE, 1)):
        click = fade * rng.standard_normal(400, np.float32) * rng.uniform(0.3, 1)
        found[at : at + 400] += click[: samples - at]
    return found


_MAKERS: dict[str, Callable[[int, Clips, np.random.Generator], Sound]] = {
    "white": _white,
    "pink": _pink,
    "babble": _babble,
    "hum": _hum,
    "clicks": _clicks,
}


def noise(kind: str, samples: int, clips: Clips, rng: np.random.Generator) -> Sound:
    """Noise with a mean square of 1; "babble" is made of `clips`."""
    found = _MAKERS[kind](samples, clips, rng)
    scaled: Sound = (found / np.sqrt(np.square(found).mean())).astype(np.float32)
    return scaled


def track(
    clips: Clips, voice: int, kind: str, snr: float, frames: int, rng: np.random.Generator
) -> Track:
    """`frames` frames of one voice in noise of that kind; the other voices are the babble."""
    clean = joined(clips[voice], frames * HOP, rng)
    others = clips[:voice] + clips[voice + 1 :]
    added = noise(kind, frames * HOP, others, rng) * np.float32(10 ** (-snr / 20))
    level = np.float32(10 ** (rng.uniform(*LEVELS) / 20))
    sound = (whole(level * (clean + added)) / 32768).astype(np.float32)
    return Track(sound, labels(clean), kind, snr)


def to_train(clips: Clips, count: int, frames: int, rng: np.random.Generator) -> Iterator[Track]:
    """`count` tracks: voices and noises in turn, the SNR at random."""
    for i in range(count):
        snr = NEARLY_CLEAN if i % 6 == 5 else float(rng.uniform(SNRS[0], SNRS[-1]))
        yield track(clips, i % len(clips), NOISES[i % len(NOISES)], snr, frames, rng)


def to_test(clips: Clips, count: int, frames: int, rng: np.random.Generator) -> Iterator[Track]:
    """`count` tracks of every noise at every SNR, voices in turn."""
    for i, (kind, snr) in enumerate(product(NOISES, SNRS * count)):
        yield track(clips, i % len(clips), kind, snr, frames, rng)
