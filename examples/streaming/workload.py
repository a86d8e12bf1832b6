"""The voice activity detector as a workload: how often it is right, beside energy, and how fast."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from examples.driver import results
from examples.driver.layers import NAMES
from examples.driver.options import sized
from examples.driver.plots import Points
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Summary, Table, mean_std
from examples.driver.workload import Chart, Group, Job, Run, Say, Workload
from examples.streaming import model
from examples.streaming.features import BANDS
from examples.streaming.model import FRAMES_A_SECOND, Recordings
from examples.streaming.scores import BASELINES, MEMORY, QUIET, best_threshold, judged
from examples.streaming.stream import Heard, hear
from examples.streaming.tracks import HANGOVER, NOISES, SNRS, TALKERS
from examples.streaming.voices import HOP, Formants, Source, espeak

PASSES = 3  # over the example; of each frame's times the least is told

TEXT = (
    "Who records, calls or transcribes wants to know when somebody speaks. The detector hears a "
    "sound frame by frame, 10 ms each, and says for every frame how probable speech is, from what "
    "it has heard so far. It sees the energies of {bands} bands of the last 25 ms on a "
    "logarithmic scale; {layers} layers of a GRU of {hidden} units remember what came before, "
    "such as how loud the noise is. The sound: {voices} reads {about}, with pauses, in noise: "
    "{noises}, at an SNR of {lowest} to {highest} dB. Babble is {talkers} talkers with other "
    "voices at once, and counts as noise. A frame is speech where the voice alone has energy and "
    "for {hangover} ms after. Voices, sentences and noises of the test are not those of the "
    "training, but they are of the same making: all of it is synthesized, so the figures say "
    "nothing of recorded speech. It is trained on long rows of joined tracks, {steps} frames at a "
    "time; the state goes on from one update to the next, and fusedrnn's `resets=` makes it zero "
    "where a track begins. torch.nn's layers have no such argument: they are called for each part "
    "between two beginnings. Two thresholds on energy stand beside it, each set where it is most "
    "often right in training: the largest energy of the last {window} frames, and how far that is "
    "above the least energy of the last {memory} frames. The delay is from the frame in which "
    "speech begins, after at least {quiet} ms without, to the first frame that is called speech; "
    "what is called speech already when it begins has no delay, and is not counted."
)


@dataclass
class Listening(Group):
    """Runs with the sound that they share."""

    recordings: Recordings | None = None


class Streaming(Workload):
    name = "streaming"
    about = (
        "Train a voice activity detector on what espeak-ng speaks, in noise, and stream through it."
    )
    cells = ("gru",)
    epochs = model.CONFIG.epochs
    unit = "frames"
    example = "streaming --checkpoints kept"
    sizes = model.CONFIG

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, model.QUICK)
        source: Source = Formants() if args.synthetic else espeak(args.data_dir)
        minutes = config.tracks * config.seconds / 60
        test = len(NOISES) * len(SNRS) * config.test_tracks * config.seconds / 60
        line = f"{source.about}: {minutes:.0f} minutes of sound to train, {test:.0f} to test"
        facts = {"about": source.about}
        return Job(args, config, Recordings(source, config), source.name, [line], facts)

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        for seed, cell in product(args.seed, args.cell):
            runs = [
                model.new_run(cell, impl, job.data, args.device, seed=seed) for impl in args.impl
            ]
            title = f"{cell.upper()}, {config.layers} x {config.hidden}, seed {seed}"
            yield Listening(runs, config.epochs, title, recordings=job.data)

    def run(self, group: Group, fit: Callable[[Sequence[Run]], None], say: Say) -> None:
        assert isinstance(group, Listening)
        assert group.recordings is not None
        _ = group.recordings.train, group.recordings.test  # made now, in nobody's time
        fit(group.runs)

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        """What its answers are worth, and how fast one stream of the example goes."""
        assert isinstance(run.model, model.Detector)
        recordings: Recordings = job.data
        if "baselines" not in job.extra:
            job.extra["baselines"] = [*_baselines(recordings)]
        test = recordings.test
        found = model.probabilities(run.model, test.x).numpy()
        heard = _fastest(run.model, recordings)
        if "example" not in job.extra:
            job.extra["example"] = [_example(recordings, heard)]
        say(f"{run.impl:8}  {run.name}  streamed: {heard.text()}")
        return {
            **judged(found, test.truth, 0.5, test.noises, test.snrs),
            "real_time_factor": heard.real_time_factor,
            "p50": heard.percentile(50),
            "p99": heard.percentile(99),
        }

    def summarise(self, record: Record) -> Summary:
        config, found = record["config"], results.groups(record["runs"], "cell")
        minutes = config["tracks"] * config["seconds"] / 60
        words = {
            "bands": BANDS,
            "voices": record["data"] if record["data"] != "synthetic" else "a stand-in for voices",
            "about": record["about"],
            "noises": ", ".join(NOISES),
            "lowest": SNRS[0],
            "highest": SNRS[-1],
            "talkers": TALKERS,
            "hangover": 10 * HANGOVER,
            "window": HANGOVER + 1,
            "memory": MEMORY,
            "quiet": 10 * QUIET,
        }
        system = (
            f"Speech or not, {{}} of {config['layers']} x {config['hidden']}: right frames, AUC"
        )
        return Summary(
            title="Streaming: is somebody speaking?",
            text=TEXT.format(**config, **words),
            tables=[
                _worth(record),
                _shares(record, "by_noise", "noise"),
                _shares(record, "by_snr", "dB"),
                results.times(f"Seconds per epoch of {minutes:.0f} minutes", ("model",), found),
                _streamed(found),
            ],
            remarks=[*remarks(record)],
            headline=results.headline(found, system, _both),
        )

    def draw(self, record: Record) -> list[Chart]:
        rows = _detectors(record)
        roc: dict[str, Points] = {name: tuple(of[0]["roc"]) for name, of in rows.items()}
        snr: dict[str, Points] = {}
        for name, of in rows.items():
            shares = _mean(of, "by_snr")
            snr[name] = [float(db) for db in shares], [*shares.values()]
        words: dict[str, Any] = {"x": "frames without speech that are called speech", "log_x": True}
        (example,) = record["example"]
        at = [n / FRAMES_A_SECOND for n in range(len(example["probability"]))]
        caption = "A voice in pink noise at 5 dB, streamed frame by frame; its loudness below."
        heard: dict[str, Points] = {
            "speech, by the labels": (at, example["label"]),
            "loudest sample of the frame": (at, example["peak"]),
            "probability of speech": (at, example["probability"]),
        }
        styles = dict(zip(heard, ("C1:", "C7-", "C0-"), strict=True))
        return [
            Chart(
                "",
                "Each detector at every threshold; the first seed.",
                "What is found for how many false alarms",
                "frames of speech that are found",
                roc,
                **words,
            ),
            Chart(
                "-snr",
                "Each detector at its threshold, by SNR.",
                "How much noise it bears",
                "right frames",
                snr,
                x="SNR in dB",
            ),
            Chart("-heard", caption, "What it hears", "", heard, x="seconds", styles=styles),
        ]


WORKLOAD = Streaming()


def _baselines(recordings: Recordings) -> Iterator[dict[str, Any]]:
    train, test = recordings.train, recordings.test
    for name, score in BASELINES.items():
        threshold = best_threshold(score(train.energies), train.truth)
        found = judged(score(test.energies), test.truth, threshold, test.noises, test.snrs)
        yield {"name": name, "threshold": threshold, **found}


def _fastest(trained: model.Detector, recordings: Recordings) -> Heard:
    """A stream of the example, on the CPU; a frame's time is the least of `PASSES` streams, since
    others use the machine too."""
    alone = copy.deepcopy(trained).cpu()
    heard = [hear(alone, recordings.example.sound) for _ in range(PASSES)]
    seconds = np.min([one.seconds for one in heard], 0)
    return Heard(heard[0].probabilities, seconds)


def _example(recordings: Recordings, heard: Heard) -> dict[str, Any]:
    """What the picture of the example shows, to three digits."""
    track = recordings.example
    peaks = np.abs(track.sound.reshape(-1, HOP)).max(1)
    return {
        "label": track.labels.astype(int).tolist(),
        "probability": heard.probabilities.round(3).tolist(),
        "peak": (peaks / peaks.max()).astype(float).round(3).tolist(),
    }


def _detectors(record: Record) -> dict[str, Runs]:
    """The first implementation's runs of each cell over the seeds, then the baselines."""
    impl = record["options"]["impl"][0]
    groups = results.groups(record["runs"], "cell")
    found: dict[str, Runs] = {results.word(cell): of[impl] for (cell,), of in groups.items()}
    return found | {of["name"]: [of] for of in record["baselines"]}


def _mean(runs: Runs, shares: str) -> dict[str, float]:
    """By noise or SNR: the mean over the seeds."""
    return {key: statistics.fmean(run[shares][key] for run in runs) for key in runs[0][shares]}


def _worth(record: Record) -> Table:
    """A row for each model under each implementation and for each baseline."""
    config = record["config"]
    named = [
        ((results.word(cell), NAMES[impl]), runs)
        for (cell,), by_impl in results.groups(record["runs"], "cell").items()
        for impl, runs in by_impl.items()
    ]
    named += [((of["name"], ""), [of]) for of in record["baselines"]]
    rows: list[tuple[str, ...]] = []
    for name, runs in named:
        shown = (_percent(runs, key) for key in ("accuracy", "alarms", "missed"))
        unheard = [100 * run["unheard"] / max(run["onsets"], 1) for run in runs]
        delays = (mean_std([run[key] for run in runs], 1) for key in ("delay", "delay95"))
        auc = mean_std([run["auc"] for run in runs], 4)
        rows.append((*name, *shown, auc, *delays, f"{mean_std(unheard, 1)} %"))
    tracks = len(NOISES) * len(SNRS) * config["test_tracks"]
    minutes = tracks * config["seconds"] / 60
    title = f"Frames of {minutes:.0f} minutes to test ({results.over(record)}; delays in frames)"
    head = ("detector", "layers", "right", "false alarms", "missed", "AUC")
    return Table(title, (*head, "median delay", "95th percentile", "onsets not heard"), rows)


def _percent(runs: Runs, key: str) -> str:
    return f"{mean_std([100 * run[key] for run in runs], 1)} %"


def _shares(record: Record, by: str, unit: str) -> Table:
    """Right frames by noise or by SNR, a row for each detector."""
    rows: list[tuple[str, ...]] = []
    head: tuple[str, ...] = ()
    for name, runs in _detectors(record).items():
        shares = _mean(runs, by)
        head = tuple(shares)
        rows.append((name, *(f"{100 * share:.1f} %" for share in shares.values())))
    layers = NAMES[record["options"]["impl"][0]]
    return Table(f"Right frames by {unit}, {layers}", ("detector", *head), rows)


def _streamed(found: Groups) -> Table:
    """How fast one stream goes, frame by frame."""
    rows: list[tuple[str, ...]] = []
    for (cell,), by_impl in found.items():
        for impl, runs in by_impl.items():
            keys = ("real_time_factor", "p50", "p99")
            figures = (statistics.median(run[key] for run in runs) for key in keys)
            rows.append((results.word(cell), NAMES[impl], *(f"{f:,.0f}" for f in figures)))
    title = (
        "One stream, frame by frame, features and all: seconds of sound in a second, and "
        f"microseconds of a frame (each the fastest of {PASSES} passes)"
    )
    return Table(title, ("model", "layers", "real-time factor", "p50", "p99"), rows)


def _both(runs: Runs) -> str:
    return f"{_percent(runs, 'accuracy')}, {mean_std([run['auc'] for run in runs], 3)}"


def remarks(record: Record) -> Iterator[str]:
    """Whether the detector is better than energy, and where it is worst."""
    rows = _detectors(record)
    best = max(record["baselines"], key=lambda of: float(of["accuracy"]))
    for name, runs in rows.items():
        if runs[0] in record["baselines"]:
            continue
        wrong, plain = (
            statistics.fmean(1 - run["accuracy"] for run in of) for of in (runs, [best])
        )
        if wrong >= plain:
            yield f"{name}: no more frames are right than by {best['name']}: nothing was learnt."
            continue
        yield f"{name}: {plain / wrong:.1f} times fewer wrong frames than by {best['name']}."
        shares = _mean(runs, "by_noise")
        worst = min(shares, key=lambda noise: shares[noise])
        yield f"{name}: least is right in {worst}, {100 * shares[worst]:.1f} % of the frames."
