"""How good a detector is: accuracy, AUC, ROC, how late it answers; and energy as a detector.

A score is any number that is higher for speech, a frame each; a frame is called speech where its
score is above a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.streaming.tracks import HANGOVER, Labels

Scores = npt.NDArray[Any]  # floats [...], as the labels beside them

QUIET = 20  # frames without speech before an onset
MEMORY = 300  # frames over which the least energy is taken for the noise's


def auc(scores: Scores, truth: Labels) -> float:
    """The probability that a frame of speech scores higher than another; a tie counts half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1, ties at their mean
    speech = int(truth.sum())
    others = truth.size - speech
    total = mean_ranks[ranks.reshape(truth.shape)[truth]].sum()
    return float((total - speech * (speech + 1) / 2) / (speech * others))


def roc(scores: Scores, truth: Labels, points: int = 60) -> tuple[list[float], list[float]]:
    """Shares of other frames called speech, from 0.001 to 1, and of the frames of speech found at
    the thresholds that lead to them."""
    alarms = np.geomspace(0.001, 1, points)
    thresholds = np.quantile(scores[~truth], 1 - alarms)
    speech = np.sort(scores[truth])
    found = 1 - np.searchsorted(speech, thresholds, "left") / len(speech)
    return alarms.tolist(), found.tolist()


def best_threshold(scores: Scores, truth: Labels) -> float:
    """The threshold with the highest accuracy."""
    order = np.argsort(scores, axis=None)
    found = truth.ravel()[order]
    # With the threshold at the i-th score, what is up to it is no speech and the rest is.
    right = np.cumsum(~found) + (found.sum() - np.cumsum(found))
    return float(scores.ravel()[order][right.argmax()])


def onsets(truth: Labels) -> list[int]:
    """The frames in which speech begins, after at least `QUIET` frames without."""
    edges = np.flatnonzero(np.diff(truth, prepend=False))
    begins, ends = edges[::2], edges[1::2]
    gaps = begins - np.concatenate([[0], ends])[: len(begins)]
    return [int(begin) for begin, gap in zip(begins, gaps, strict=True) if gap >= QUIET]


def delays(decided: Labels, truth: Labels) -> list[int | None]:
    """Of each onset, after how many frames speech is decided; None where it is not before the
    speech ends. Onsets that come while speech is decided already say nothing, and are left out."""
    found: list[int | None] = []
    for onset in onsets(truth):
        if decided[onset - 1]:
            continue
        rest = truth[onset:]
        end = onset + (len(rest) if rest.all() else int((~rest).argmax()))
        heard = decided[onset:end]
        found.append(int(heard.argmax()) if heard.any() else None)
    return found


def judged(
    scores: Scores, truth: Labels, threshold: float, noises: Sequence[str], snrs: Sequence[float]
) -> dict[str, Any]:
    """What the scores [N, T] of tracks are worth: shares of right frames, by noise and SNR as
    well, and the frames until an onset is heard."""
    called = scores > threshold
    waits = [wait for row, true in zip(called, truth, strict=True) for wait in delays(row, true)]
    heard = [wait for wait in waits if wait is not None]
    median, late = np.quantile(heard, [0.5, 0.95]).tolist() if heard else (-1, -1)
    right = (called == truth).mean(1)
    return {
        "accuracy": float(right.mean()),
        "auc": auc(scores, truth),
        "alarms": float(called[~truth].mean()),
        "missed": float((~called[truth]).mean()),
        "onsets": len(waits),
        "unheard": len(waits) - len(heard),
        "delay": median,
        "delay95": late,
        "by_snr": _means(snrs, right),
        "by_noise": _means(noises, right),
        "roc": roc(scores, truth),
    }


def _means(keys: Sequence[Any], values: Scores) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(str(key), []).append(value)
    return {key: float(np.mean(of_key)) for key, of_key in groups.items()}


def energy(energies: Scores) -> Scores:
    """From the frames' energies [N, T], in dB: the largest of the last `HANGOVER` + 1 frames. The
    labels are made so, of speech without noise."""
    found: Scores = _over_last(_decibels(energies), HANGOVER + 1).max(-1)
    return found


def above_floor(energies: Scores) -> Scores:
    """How far `energy` is above the least energy of the last `MEMORY` frames."""
    floor: Scores = _over_last(_decibels(energies), MEMORY).min(-1)
    return energy(energies) - floor


def _decibels(energies: Scores) -> Scores:
    found: Scores = 10 * np.log10(energies + 1e-10)
    return found


def _over_last(found: Scores, count: int) -> Scores:
    """[N, T, count]: each frame's values of the last `count` frames, the first one before it."""
    padded = np.pad(found, ((0, 0), (count - 1, 0)), "edge")
    return np.lib.stride_tricks.sliding_window_view(padded, count, 1)


BASELINES = {"energy": energy, "energy above the floor": above_floor}
