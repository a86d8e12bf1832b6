"""Log-mel features of a stream: a frame every 10 ms, from the last 25 ms, nothing ahead.

Frame t is made of the 400 samples that end where hop t ends (zeros before the beginning). The same
operations in the same order make one frame or a thousand of them: no product of matrices, whose
order of summing depends on the number of rows. So a stream gives the bits of the whole file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from examples.streaming.voices import HOP, RATE, Sound

Frames = npt.NDArray[np.float32]  # [T, BANDS], or [BANDS] of one frame

BANDS = 40
WINDOW, SPECTRUM = 400, 512  # samples of a window: 25 ms; of its Fourier transform
LOWEST, HIGHEST = 60.0, 7600.0  # Hz
FLOOR = np.float32(1e-6)  # of a band's energy; the noise of 16 bits is a tenth of it
CENTRE, SPREAD = np.float32(-5.0), np.float32(4.0)  # of the logarithms, roughly
BLOCK = 1000  # frames made at once: a block takes 4 MB


def _mel(hertz: float) -> float:
    return 1127.0 * float(np.log1p(hertz / 700.0))


# Band m rises from point m to point m + 1 and falls to point m + 2. A bin of the spectrum between
# two points belongs to two bands: it falls in the one and rises in the next.
_POINTS = 700.0 * np.expm1(np.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2) / 1127.0)
_BINS = np.arange(SPECTRUM // 2 + 1) * RATE / SPECTRUM
_EDGES = np.searchsorted(_BINS, _POINTS)  # the first bin of each stretch between two points
_USED = slice(int(_EDGES[0]), int(_EDGES[-1]))
_STARTS = _EDGES[:-1] - _EDGES[0]
_AT = np.searchsorted(_POINTS, _BINS[_USED], "right") - 1
_RISE = ((_BINS[_USED] - _POINTS[_AT]) / np.diff(_POINTS)[_AT]).astype(np.float32)
_FALL = (1 - _RISE).astype(np.float32)
_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)


def _frames(windows: Sound) -> Frames:
    """Features [n, BANDS] of windows [n, WINDOW]."""
    spectrum = np.fft.rfft(windows * _HANN, SPECTRUM)[:, _USED]
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    rise = np.add.reduceat(power * _RISE, _STARTS, 1)
    fall = np.add.reduceat(power * _FALL, _STARTS, 1)
    found: Frames = (np.log(rise[:, :-1] + fall[:, 1:] + FLOOR) - CENTRE) / SPREAD
    return found


def features(sound: Sound) -> Frames:
    """Features [N // HOP, BANDS] of sound [N] at RATE; a last part of a hop is left out."""
    count = len(sound) // HOP
    padded = np.concatenate([np.zeros(WINDOW - HOP, np.float32), sound[: count * HOP]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] if count else padded
    blocks = [_frames(windows[at : at + BLOCK]) for at in range(0, count, BLOCK)]
    return np.concatenate([np.empty((0, BANDS), np.float32), *blocks])


class FrontEnd:
    """Features of a stream: `push` takes a hop, and gives the frame that ends with it."""

    def __init__(self) -> None:
        self._window = np.zeros((1, WINDOW), np.float32)

    def push(self, hop: Sound) -> Frames:
        """The frame [1, BANDS] of the HOP samples that follow those pushed before."""
        if hop.shape != (HOP,):
            raise ValueError(f"expected a hop of {HOP} samples, got shape {list(hop.shape)}")
        window = self._window[0]
        window[:-HOP] = window[HOP:]
        window[-HOP:] = hop
        return _frames(self._window)
