"""What bfloat16 and int8 weights cost: scores of trained models, and errors over many steps.

    python -m examples time_machine --corpus whole --sampling sequential --checkpoints kept
    python -m examples reuters --cell lstm gru --steps 100 --checkpoints kept
    python -m examples imdb --cell lstm --layout lengths --checkpoints kept
    python -m examples streaming --checkpoints kept
    python -m benchmarks int8 --out DIR --checkpoints kept

Writes DIR/int8.jsonl and from it int8.md. Each model in `--checkpoints` is frozen in every dtype
and scored on what it was not trained on. Without `--checkpoints`, there are the errors alone: of
frozen layers over 10,000 steps, beside the same layer in float64.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn
from benchmarks import options, timing
from benchmarks.report.int8 import KIND, Drifted, Scored, line_of, page
from benchmarks.report.place import beside
from benchmarks.results import write
from benchmarks.serving_steps import DTYPES
from examples import data
from examples.driver import checkpoint

# The last steps of the windows over which errors are taken.
ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# And a bias of the forget gates. By 3 they are 0.95, and what is stored fades over 20 steps; by 5
# over 150: with weights as torch draws them such a layer is chaotic, in float32 as well.
LAYERS = {
    "RNN": 0.0,
    "GRU": 0.0,
    "LSTM": 0.0,
    "LSTM, forget bias 3": 3.0,
    "LSTM, forget bias 5": 5.0,
}

Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Trained:
    """A model of an example, and how it is scored."""

    name: str
    measure: str  # "accuracy" or "perplexity"
    model: nn.Module
    score: Score


def config_of(kind: Any, task: dict[str, Any]) -> Any:
    """The dataclass of a model's sizes, from a checkpoint's task."""
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in task.items() if key in known})


def imdb(task: dict[str, Any]) -> Trained:
    from examples.imdb import model

    config = config_of(model.Config, task)
    made = model.build_model(task["cell"], "fusedrnn", config, task["layout"])
    limit = task["reviews"] if task["reviews"] < 25_000 else None
    _, test = model.split(data.imdb(), config.steps, task["layout"], limit)
    name = f"IMDB reviews, {task['cell'].upper()}"
    return Trained(name, "accuracy", made, lambda found: model.evaluate(found, test))


def time_machine(task: dict[str, Any]) -> Trained:
    from examples.time_machine import model

    config = config_of(model.Config, task)
    text = data.time_machine(length=config.characters)
    made = model.build_model(task["cell"], "fusedrnn", len(text.symbols), config)
    cut = len(text.tokens) - int(len(text.tokens) * config.held_out)
    tokens = text.tokens[cut:] if config.held_out else text.tokens
    name = f"Time Machine, {task['corpus']}, {task['cell'].upper()}"
    return Trained(
        name, "perplexity", made, lambda found: model.evaluate(found, tokens, config.batch)
    )


def reuters(task: dict[str, Any]) -> Trained:
    from examples.reuters import model

    config = config_of(model.Config, task)
    made = model.build_model(task["cell"], "fusedrnn", config)
    rows = model.split(data.reuters(), task["T"])

    def score(found: nn.Module) -> float:
        return model.evaluate(found, rows.x_test, rows.y_test)["accuracy"]

    return Trained(f"Reuters, {task['cell'].upper()} T{task['T']}", "accuracy", made, score)


def streaming(task: dict[str, Any]) -> Trained:
    from examples.streaming import model
    from examples.streaming.voices import espeak

    config = config_of(model.Config, task)
    made = model.build_model(task["cell"], "fusedrnn", config)
    recordings = model.Recordings(espeak(None), config)

    def score(found: Any) -> float:
        return model.figures(found, recordings)["accuracy"]

    return Trained(f"voice detector, {task['cell'].upper()}", "accuracy", made, score)


EXAMPLES = {f.__name__: f for f in (imdb, time_machine, reuters, streaming)}


def trained(path: Path) -> Trained:
    """The model of a checkpoint.

    Raises:
        ValueError: of no example that is scored here, or trained on made-up data.
    """
    state = checkpoint.read(path)
    task = json.loads(state["task"])
    if task["workload"] not in EXAMPLES or task["data"] != "real":
        known = ", ".join(EXAMPLES)
        got = f"{task['workload']} on {task['data']} data"
        raise ValueError(f"{path}: expected a model of {known}, trained on real data, got {got}")
    found = EXAMPLES[task["workload"]](task)
    found.model.load_state_dict(state["model"])
    found.model.eval()
    return found


@torch.no_grad()
def scored(found: Trained) -> Scored:
    """Its score in each dtype."""
    scores = {
        name: found.score(fusedrnn.freeze(copy.deepcopy(found.model), dtype))
        for name, dtype in DTYPES.items()
    }
    return Scored(found.name, found.measure, scores)


def layer(name: str, H: int) -> Any:
    """As torch.nn draws it, but for a bias of the forget gates."""
    torch.manual_seed(0)
    made = getattr(fusedrnn, name.split(",")[0])(H, H)
    if LAYERS[name]:
        with torch.no_grad():
            made.bias_ih_l0[H : 2 * H] = LAYERS[name]
    return made.eval()


def rms(values: Tensor) -> float:
    return math.sqrt(values.double().square().mean().item())


@torch.no_grad()
def drifted(name: str, H: int, B: int, ends: Sequence[int]) -> Drifted:
    """Errors of the output in each window of steps, relative to the output there."""
    made = layer(name, H)
    x = torch.randn(ends[-1], B, H)
    frozen = {key: fusedrnn.freeze(copy.deepcopy(made), dtype) for key, dtype in DTYPES.items()}
    exact = made.double()(x.double())[0]
    windows = [slice(a, b) for a, b in pairwise((0, *ends))]
    errors = {}
    for key, low in frozen.items():
        apart = low(x)[0] - exact
        errors[key] = [rms(apart[w]) / rms(exact[w]) for w in windows]
    return Drifted(f"{name}, B{B} I{H} H{H}", [*ends], errors)


def measured(folder: Path | None, quick: bool) -> Iterator[Any]:
    for path in sorted(folder.glob("*.pt")) if folder else ():
        yield scored(trained(path))
    sizes = (16, 2, ENDS[:5]) if quick else (128, 8, ENDS)
    for name in LAYERS:
        yield drifted(name, *sizes)


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Scores models and layers that are frozen in each dtype.")
    top.add_argument("--checkpoints", type=Path, help="trained models, as `examples` saves them")
    arguments = top.parse_args(argv)
    if arguments.checkpoints and not [*arguments.checkpoints.glob("*.pt")]:
        top.error(f"--checkpoints: found no *.pt in {arguments.checkpoints}")
    lines = []
    for found in measured(arguments.checkpoints, arguments.quick):
        print(found, file=sys.stderr)
        lines.append(line_of(found))
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, timing.place(), lines)
    return beside(path, page(path))
