"""Is somebody speaking? A GRU answers for every 10 ms of a sound, from what it has heard so far.

Two layers read log-mel features, a sigmoid gives the probability of speech. The tracks of an epoch
are joined to `batch` long rows and read `steps` frames at a time; the state goes on from each
update to the next, as it will in a stream, and is reset where a track begins. The voices,
sentences and noises that are tested were never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import data
from examples.driver import training
from examples.driver.errors import WorkloadError
from examples.driver.layers import Layer, layer_class
from examples.streaming import scores, tracks
from examples.streaming.features import BANDS, features
from examples.streaming.scores import Scores
from examples.streaming.tracks import Labels, Track
from examples.streaming.voices import HOP, PARTS, RATE, Clips, Source, energies

FRAMES_A_SECOND = RATE // HOP


@dataclass(frozen=True)
class Config:
    """The sound, the model's sizes and how it is trained."""

    tracks: int = 720  # to train on
    seconds: int = 15  # of a track
    test_tracks: int = 2  # of each noise at each SNR
    clips: int = 60  # sentences of each voice
    task_seed: int = 0  # of the sound, which is the same for every --seed
    hidden: int = 64
    layers: int = 2
    steps: int = 200  # T: frames of an update
    batch: int = 32
    learning_rate: float = 2e-3
    clip: float = 1.0  # largest norm of all gradients together
    epochs: int = 12

    @property
    def updates(self) -> int:
        """Of an epoch; the last one may be shorter."""
        return -(-(self.tracks * self.frames // self.batch) // self.steps)

    @property
    def frames(self) -> int:
        """Of a track."""
        return self.seconds * FRAMES_A_SECOND


CONFIG = Config()
QUICK = replace(CONFIG, tracks=96, seconds=10, test_tracks=1, clips=8, batch=16, epochs=16)

Maker = Callable[[Clips, int, int, np.random.Generator], Iterator[Track]]
Crop = tuple[Tensor, Tensor, Tensor]  # x [T, B, BANDS], y [T, B], resets bool [T, B]


@dataclass(frozen=True)
class Part:
    """The tracks to train or to test on, without their sound."""

    x: Tensor  # features [N, T, BANDS]
    y: Tensor  # [N, T]: 1 is speech
    energies: Scores  # of the frames, [N, T]
    noises: list[str]  # of each track
    snrs: list[float]

    @property
    def truth(self) -> Labels:
        found: Labels = self.y.numpy() > 0
        return found


class Recordings:
    """The tracks of both parts, made when they are first asked for."""

    def __init__(self, source: Source, config: Config) -> None:
        self.source, self.config = source, config

    @cached_property
    def train(self) -> Part:
        return self._part("train", tracks.to_train, self.config.tracks)

    @cached_property
    def test(self) -> Part:
        return self._part("test", tracks.to_test, self.config.test_tracks)

    @cached_property
    def example(self) -> Track:
        """A track to listen to: a voice of those to test with, in pink noise at 5 dB."""
        clips, rng = self._clips("test"), self._rng(2)
        return tracks.track(clips, 0, "pink", 5.0, self.config.frames, rng)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.task_seed, stream])

    def _clips(self, part: str) -> Clips:
        return self.source.speak(part, self.config.clips, self._rng(PARTS.index(part)))

    def _part(self, part: str, made: Maker, count: int) -> Part:
        rng = self._rng(3 + PARTS.index(part))
        found, energy, about = [], [], []
        for track in made(self._clips(part), count, self.config.frames, rng):
            found.append((features(track.sound), track.labels.astype(np.float32)))
            energy.append(energies(track.sound))
            about.append((track.noise, track.snr))
        x, y = (torch.from_numpy(np.stack(of_all)) for of_all in zip(*found, strict=True))
        if not 0 < float(y.mean()) < 1:
            raise WorkloadError(f"too little sound to {part}: expected speech and pauses, got one")
        noises, snrs = (list(of_all) for of_all in zip(*about, strict=True))
        return Part(x, y, np.stack(energy), noises, snrs)


class Detector(nn.Module):
    """Logits of speech, a frame each, from features; two layers of a GRU and one output.

    `takes_resets`: whether the layer has fusedrnn's `resets=`.
    """

    def __init__(self, layer: Layer, config: Config, takes_resets: bool = True) -> None:
        super().__init__()
        self.takes_resets = takes_resets
        self.rnn = layer(BANDS, config.hidden, num_layers=config.layers)
        self.linear = nn.Linear(config.hidden, 1)

    def forward(
        self, x: Tensor, state: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [T, B] of x [T, B, BANDS], and the state after the last frame.

        Args:
            resets: bool [T, B], the frames before which a row's state becomes zero.
        """
        if resets is None:
            output, state = self.rnn(x, state)
        elif self.takes_resets:
            output, state = self.rnn(x, state, resets=resets)
        else:
            output, state = in_parts(self.rnn, x, state, resets)
        return self.linear(output)[..., 0], state


def in_parts(
    rnn: nn.RNNBase, x: Tensor, state: Tensor | None, resets: Tensor
) -> tuple[Tensor, Tensor]:
    """What `resets=` does, by a layer that has no such argument: a call for each part of x between
    two frames with a reset in any row."""
    cuts = [0, *(resets[1:].any(1).nonzero()[:, 0] + 1).tolist(), len(x)]
    outputs = []
    for begin, end in pairwise(cuts):
        if state is not None:
            state = state * ~resets[begin][:, None]
        output, state = rnn(x[begin:end], state)
        outputs.append(output)
    assert state is not None
    return torch.cat(outputs), state


def crops(
    x: Tensor, y: Tensor, B: int, T: int, generator: torch.Generator | None = None
) -> Iterator[Crop]:
    """The tracks x [N, frames, BANDS], y [N, frames] in random order, joined to B rows of one
    length, T frames after T; the last crop may be shorter."""
    frames = y.shape[1]
    length = y.numel() // B
    if not length:
        raise WorkloadError(f"too little sound for {B} rows: {y.numel()} frames")
    order = torch.randperm(len(x), generator=generator).to(x.device)
    begins = torch.zeros_like(y, dtype=torch.bool)
    begins[:, 0] = True
    kept = -(-B * length // frames)  # tracks
    rows = [part[order[:kept]].flatten(0, 1)[: B * length] for part in (x, y, begins)]
    x, y, begins = (part.unflatten(0, (B, length)).transpose(0, 1) for part in rows)
    for at in range(0, length, T):
        yield x[at : at + T].contiguous(), y[at : at + T], begins[at : at + T].contiguous()


def train_step(
    model: Detector,
    optimizer: torch.optim.Optimizer,
    crop: Crop,
    state: Tensor | None = None,
    clip: float = CONFIG.clip,
) -> tuple[Tensor, Tensor]:
    """One update from `state` (zeros when None); the mean cross-entropy and the state after the
    last frame, both detached."""
    x, y, resets = crop
    logits, state = model(x, state, resets)
    loss = F.binary_cross_entropy_with_logits(logits, y)
    return training.step(optimizer, loss, clip), state.detach()


@torch.no_grad()
def probabilities(model: Detector, x: Tensor) -> Tensor:
    """The probability of speech [N, T] in every frame of x [N, T, BANDS], each row from zeros."""
    device = next(model.parameters()).device
    logits, _ = model(x.transpose(0, 1).contiguous().to(device))
    found: Tensor = logits.sigmoid().t().cpu()
    return found


def figures(model: Detector, recordings: Recordings) -> dict[str, float]:
    """The accuracy at a probability of a half and the AUC, of the frames to test."""
    test = recordings.test
    found = probabilities(model, test.x).numpy()
    accuracy = float(((found > 0.5) == test.truth).mean())
    return {"accuracy": accuracy, "auc": scores.auc(found, test.truth)}


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Detector:
    """The model in its initial state, drawn from torch's global generator."""
    return Detector(layer_class(cell, impl), config, impl == "fusedrnn")


def new_run(
    cell: str,
    impl: str,
    recordings: Recordings,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
) -> training.Run:
    """One training, not begun; the sound is made when it begins, or before by who asks for it."""
    torch.manual_seed(seed)
    config = recordings.config
    model = build_model(cell, impl, config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)

    def updates() -> training.Updates:
        train = recordings.train
        x, y = train.x.to(device), train.y.to(device)
        state: Tensor | None = None
        for crop in crops(x, y, config.batch, config.steps, generator):
            loss, state = train_step(model, optimizer, crop, state, config.clip)
            yield loss, crop[1].numel()

    def after() -> dict[str, float]:
        return figures(model, recordings)

    sizes = {"data": data.kind(recordings.source.name), **asdict(config)}
    about = ("streaming", f"{cell}-seed{seed}", impl, seed, {"cell": cell})
    order = {"order": generator}
    run = training.Run(*about, model, optimizer, updates, sizes, order, after)
    run.length = config.updates
    return run
