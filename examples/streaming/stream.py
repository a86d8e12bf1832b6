"""The detector on a stream: 160 samples go in, a probability comes out, every 10 ms.

Between the frames stand the last 25 ms of sound and the layers' states, nothing else. The front end
and the head are numpy; the layers go through `stepper` alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.driver.layers import fusedrnn
from examples.streaming.features import FrontEnd
from examples.streaming.model import FRAMES_A_SECOND, Detector
from examples.streaming.scores import Scores
from examples.streaming.tracks import Labels
from examples.streaming.voices import HOP, Sound

Step = Callable[[Sound], Sound]  # x [1, I] to the top layer's output [1, H], the state kept inside


def stepper(model: Detector, dtype: torch.dtype | None = None) -> Step:
    """One frame's way through the recurrent layers, from a state of zeros on. fusedrnn's are frozen
    with weights of `dtype` and go on as a stream; torch.nn's are called with T = 1."""
    if isinstance(model.rnn, fusedrnn().GRU):
        frozen: Step = fusedrnn().freeze(copy.deepcopy(model.rnn), dtype).stream(1).step
        return frozen
    state: Tensor | None = None

    def step(x: Sound) -> Sound:
        nonlocal state
        with torch.inference_mode():
            output, state = model.rnn(torch.from_numpy(x)[None], state)
        found: Sound = output[0].numpy()
        return found

    return step


class Listener:
    """A detector, on the CPU, that hears one stream."""

    def __init__(self, model: Detector, dtype: torch.dtype | None = None) -> None:
        self.front, self.step = FrontEnd(), stepper(model, dtype)
        self.weight = model.linear.weight.detach().numpy()[0]
        self.bias = float(model.linear.bias.detach())

    def __call__(self, hop: Sound) -> float:
        """The probability of speech in the next HOP samples."""
        output = self.step(self.front.push(hop))
        logit = float(output[0] @ self.weight) + self.bias
        return float(1 / (1 + np.exp(-logit)))


@dataclass(frozen=True)
class Heard:
    """What a stream gave: a probability and the seconds it took, for each frame."""

    probabilities: Scores
    seconds: Scores

    @property
    def real_time_factor(self) -> float:
        """Seconds of sound in a second of computing."""
        return float(len(self.seconds) / FRAMES_A_SECOND / self.seconds.sum())

    def percentile(self, percent: float) -> float:
        """Of the time of a frame, in microseconds."""
        return float(np.percentile(self.seconds, percent) * 1e6)

    def spoken(self) -> Labels:
        """Which frames are speech: a probability above a half."""
        found: Labels = self.probabilities > 0.5
        return found

    def text(self) -> str:
        """How fast it was."""
        frames = len(self.seconds)
        return (
            f"{frames / FRAMES_A_SECOND:.1f} s of sound in {self.seconds.sum():.3f} s: real-time "
            f"factor {self.real_time_factor:,.0f}; a frame takes {self.percentile(50):.0f} us "
            f"(p50), {self.percentile(99):.0f} us (p99)"
        )


def hear(model: Detector, sound: Sound, dtype: torch.dtype | None = None) -> Heard:
    """Streams the sound, its last part of a hop left out, through a new listener."""
    listener = Listener(model, dtype)
    found, seconds = [], []
    for at in range(0, len(sound) // HOP * HOP, HOP):
        start = time.perf_counter()
        found.append(listener(sound[at : at + HOP]))
        seconds.append(time.perf_counter() - start)
    return Heard(np.array(found), np.array(seconds))
