"""``python -m examples.streaming [WAV]``: hears a WAV file frame by frame, as a stream would come.

It prints the stretches of speech and how long a frame takes, and draws the probability of speech
over the waveform. The detector is the one in `--model`, or is trained at once, small.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from examples.driver import checkpoint, training
from examples.driver.errors import WorkloadError
from examples.driver.layers import IMPLEMENTATIONS
from examples.driver.options import positive
from examples.driver.plots import Picture
from examples.streaming import model as detector
from examples.streaming.model import FRAMES_A_SECOND, Config, Detector, Recordings
from examples.streaming.scores import QUIET, Scores
from examples.streaming.stream import hear
from examples.streaming.tracks import Labels
from examples.streaming.voices import HOP, Formants, Sound, Source, espeak, read_wav, write_wav

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
FULL = "python -m examples streaming --checkpoints kept"


@dataclass(frozen=True)
class Waveform(Picture):
    """The probability of speech over a waveform; what is known to be speech is shaded.

    Args:
        sound: samples between -1 and 1.
        probabilities: of each frame.
        labels: of each frame, where they are known.
    """

    sound: Sound
    probabilities: Scores
    labels: Labels | None = None

    def draw(self, figure: Figure, axes: Axes) -> None:
        frames = len(self.probabilities)
        at = np.arange(frames) / FRAMES_A_SECOND
        hops = self.sound[: frames * HOP].reshape(-1, HOP)
        top = 1.05 * max(float(np.abs(hops).max()), 1e-3)
        plain: dict[str, Any] = {"linewidth": 0, "antialiased": False}
        if self.labels is not None:
            shade: dict[str, Any] = {"where": self.labels, "color": "#fdebdd", "label": "speech"}
            axes.fill_between(at, -top, top, **shade, **plain)
        axes.fill_between(at, hops.min(1), hops.max(1), color="0.65", label="sound", **plain)
        axes.set(xlabel="seconds", ylabel="sound", ylim=(-top, top), xlim=(0, at[-1]))
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.plot(at, self.probabilities, color="C0", linewidth=1.2, label="probability of speech")
        right.axhline(0.5, color="C0", linewidth=0.6, linestyle=":")
        right.set(ylabel="probability of speech", ylim=(-0.02, 1.02))
        figure.legend(loc="outside lower center", frameon=False, ncols=3)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m examples.streaming",
        description="Hear a WAV file frame by frame, and draw the probability of speech.",
    )
    add = found.add_argument
    add("wav", type=Path, nargs="?", help="a WAV file; if none is given, one is made and written")
    add("--model", type=Path, help=f"a checkpoint of `{FULL}`; if none is given, one is trained")
    add("--impl", choices=IMPLEMENTATIONS, default="fusedrnn", help="whose layers")
    add("--dtype", choices=DTYPES, default="float32", help="of fusedrnn's frozen weights")
    add("--quick", action="store_true", help="train small, in half a minute, as without --model")
    add("--synthetic", action="store_true", help="train on formants, not speech: no espeak-ng")
    add("--data-dir", help="where the sentences are")
    add("--threads", type=positive, default=1, help="CPU threads; the layers are too small for 2")
    add("--out", type=Path, default=Path("runs"), help="directory for the picture")
    return found


def main(argv: Sequence[str]) -> None:
    """The command; WorkloadError says what a user can mend."""
    args = parser().parse_args(argv)
    if args.model and args.quick:
        raise WorkloadError("--quick trains a detector and --model brings one: give one of both")
    if args.impl == "torch" and args.dtype != "float32":
        raise WorkloadError(f"--dtype {args.dtype} is of frozen layers: give --impl fusedrnn")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    prefix = "synthetic | " if args.synthetic else ""
    path, labels = args.wav, None
    if path is not None:
        sound = read_wav(path)
        if len(sound) < HOP:
            raise WorkloadError(f"{path}: expected at least {HOP} samples, got {len(sound)}")
    if args.model is not None:
        model = load(args.model, args.impl)
    if path is None or args.model is None:
        source: Source = Formants() if args.synthetic else espeak(args.data_dir)
        recordings = Recordings(source, detector.QUICK)
    if args.model is None:
        model = train(recordings, args.impl, prefix)
    if path is None:
        sound, labels = recordings.example.sound, recordings.example.labels
        path = args.out / "sound.wav"
        write_wav(path, sound)
        print(f"{prefix}written: {path}, a voice in pink noise at 5 dB")
    heard = hear(model, sound, DTYPES[args.dtype])
    for begin, end in stretches(heard.spoken()):
        print(f"{prefix}speech from {begin:.2f} s to {end:.2f} s")
    print(f"{prefix}{heard.text()}")
    if labels is not None:
        print(f"{prefix}right: {(heard.spoken() == labels).mean():.1%} of the frames")
    title = f"{path.name}, frame by frame"
    picture = Waveform("", "", title, sound, heard.probabilities, labels)
    png = args.out / f"streaming-{path.stem}.png"
    picture.write(png, prefix)
    print(f"{prefix}written: {png}")


def stretches(spoken: Labels) -> list[tuple[float, float]]:
    """The beginnings and ends of speech in seconds; pauses shorter than `QUIET` frames belong."""
    edges = np.flatnonzero(np.diff(spoken, prepend=False, append=False)).tolist()
    found: list[tuple[int, int]] = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        joins = found and begin - found[-1][1] < QUIET
        found.append((found.pop()[0] if joins else begin, end))
    return [(begin / FRAMES_A_SECOND, end / FRAMES_A_SECOND) for begin, end in found]


def train(recordings: Recordings, impl: str, prefix: str) -> Detector:
    """A small detector, trained at once."""
    print(f"{prefix}training a small detector; {FULL} trains a good one, for --model")
    run = detector.new_run("gru", impl, recordings)
    training.fit([run], recordings.config.epochs, lambda *_: None)
    seconds = sum(epoch.seconds for epoch in run.history)
    accuracy = run.history[-1].figures["accuracy"]
    print(f"{prefix}trained for {seconds:.0f} s: {accuracy:.1%} of the frames to test are right")
    assert isinstance(run.model, Detector)
    return run.model


def load(path: Path, impl: str) -> Detector:
    """The detector of a checkpoint."""
    if not path.is_file():
        raise WorkloadError(f"found no {path}: {FULL} makes kept/streaming-gru-seed0.pt")
    state = checkpoint.read(path)
    task: dict[str, Any] = json.loads(state["task"])
    if task.get("workload") != "streaming":
        raise WorkloadError(f"{path}: expected a detector, got a model of {task.get('workload')}")
    known = {field.name for field in fields(Config)}
    config = Config(**{key: value for key, value in task.items() if key in known})
    model = detector.build_model(task["cell"], impl, config)
    model.load_state_dict(state["model"])
    return model
