"""Time Machine as a workload: perplexity, speed, the text written, learning against memory."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from examples import data
from examples.driver import results
from examples.driver.layers import CELLS, NAMES
from examples.driver.options import positive, sized
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Headline, Summary, Table
from examples.driver.workload import Chart, Claim, Group, Job, Run, Say, Workload
from examples.time_machine import model
from examples.time_machine.model import CORPORA, PREFIXES, QUICK, SAMPLINGS

TEXT = (
    "The model reads a novel character by character and says after each how likely every character "
    "is to come next. Perplexity is the exponential of the mean loss: 28 for a guess among 28 "
    "symbols, 1 for certainty. With sequential sampling a batch goes on where the last one stopped "
    "and keeps the state; with random sampling every batch starts from a state of zeros. After "
    "training the model writes: it is given a few characters and always takes the most likely next."
)
# What the texts report of 500 epochs on the first 10,000 characters.
CLAIMED = {
    "rnn": "",
    "gru": "",
    "lstm": ": perplexity 1.3, 10,880 characters/s on their machine",
}
TITLES = {
    "first": "the first {characters:,} characters",
    "whole": "the text with its last part held out",
}


class TimeMachine(Workload):
    name = "time_machine"
    about = "Train RNN, GRU and LSTM on the characters of The Time Machine."
    cells = CELLS
    example = "time_machine --corpus first --cell lstm --hidden 512 --layers 2"
    sizes = model.CONFIG
    epochs = model.CONFIG.epochs
    unit = "tokens"
    measure = "perplexity"

    def options(self, add: Callable[..., Any]) -> None:
        tail = f"the last tenth held out ({CORPORA['whole'].epochs} epochs at full size)"
        parts = f"the first 10,000 characters, or all with {tail}"
        add("--corpus", choices=list(CORPORA), nargs="+", default=list(CORPORA), help=parts)
        add("--sampling", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS), help="in turn")
        add("--log-every", type=positive, default=10, help="epochs between printed lines")

    def configs(self, args: argparse.Namespace) -> Job:
        configs, texts = {}, {}
        for corpus in args.corpus:
            configs[corpus] = config = sized(args, CORPORA[corpus], QUICK[corpus])
            text = data.time_machine(args.data_dir, args.synthetic, config.characters)
            texts[corpus] = text.to(args.device)
        source = next(iter(texts.values())).source
        said = ", ".join(f"{corpus}: {text}" for corpus, text in texts.items())
        return Job(args, configs, texts, source, [said])

    def build(self, job: Job) -> Iterator[Group]:
        args = job.args
        for corpus, config in job.config.items():
            for cell, sampling, seed in product(args.cell, args.sampling, args.seed):
                about = (sampling, seed, job.data[corpus], config)
                runs = [model.new_run(corpus, cell, impl, *about) for impl in args.impl]
                title = f"{cell.upper()}, {corpus}, {sampling}, seed {seed}"
                yield Group(runs, config.epochs, title)

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        text = job.data[run.fields["corpus"]]
        written = [model.generate(run.model, text, prefix) for prefix in PREFIXES]
        say("\n".join(written))
        return {"generated": written}

    def summarise(self, record: Record) -> Summary:
        tables: list[Table] = []
        remarks: list[str] = []
        headline: list[Headline] = []
        for corpus, config in record["config"].items():
            found, title, figure, kind = _of(record, corpus)
            per_second = f"Characters trained on per second, {title}"
            tables += [
                _perplexities(found, config, title),
                results.times(per_second, ("model", "sampling"), found, ",.0f", results.speed),
            ]
            remarks += [*_on_sampling(found, title, figure), *_on_memory(found, title)]
            part = (
                "whole text" if corpus == "whole" else f"first {config['characters']:,} characters"
            )
            first = next(iter(found))[1]  # the sampling asked for first; tables have the others
            headline += results.headline(
                {key: by_impl for key, by_impl in found.items() if key[1] == first},
                f"Time Machine, {part}, {{}}, {{}}: {kind} perplexity",
                results.score(figure, 3),
            )
        return Summary(
            title="Time Machine: a language model of characters",
            text=TEXT,
            tables=[*tables, _texts(record)],
            remarks=remarks,
            headline=headline,
        )

    def claims(self, record: Record) -> list[Claim]:
        if "first" not in record["config"]:
            return []
        found, *_ = _of(record, "first")
        rows = []
        for cell, reported in CLAIMED.items():
            runs = {sampling: found.get((cell, sampling)) for sampling in SAMPLINGS}
            for sampling, by_impl in runs.items():
                if by_impl:
                    perplexity, rate = (
                        results.both(by_impl, show)
                        for show in (results.score("perplexity", 2), _per_second)
                    )
                    said = f"perplexity {_or(*perplexity)}, {_or(*rate)} characters/s"
                    theirs = reported if sampling == "sequential" else ""
                    rows.append((f"{cell.upper()} concise, {sampling} sampling{theirs}", said))
        return rows

    def draw(self, record: Record) -> list[Chart]:
        charts: list[Chart] = []
        for corpus in record["config"]:
            found, title, figure, kind = _of(record, corpus)
            caption = f"{kind.capitalize()} perplexity after each epoch, {title}, mean over seeds; "
            said = f"{kind} perplexity, {{}} sampling: {title}"
            about = (f"-{corpus}", caption + "dashed: torch.nn.", said[0].upper() + said[1:])
            lines = (found, "{} {}", figure)
            charts += results.charts(1, *about, f"{kind} perplexity", *lines, log_y=True)
        return charts


WORKLOAD = TimeMachine()


def _per_second(runs: Runs) -> str:
    return f"{results.speed(runs):,.0f}"


def _or(ours: str, theirs: str) -> str:
    """Both figures, where there are two."""
    return f"{ours} ({theirs} with torch.nn)" if ours and theirs else ours or theirs


def _of(record: Record, corpus: str) -> tuple[Groups, str, str, str]:
    """A corpus' runs by cell and sampling, its title, and the figure that counts, with its name:
    the perplexity of what is held out, where something is."""
    config = record["config"][corpus]
    runs = [run for run in record["runs"] if run["corpus"] == corpus]
    figure = ("held_out", "held-out") if config["held_out"] else ("perplexity", "training")
    return results.groups(runs, "cell", "sampling"), TITLES[corpus].format(**config), *figure


def _perplexities(found: Groups, config: Record, title: str) -> Table:
    columns = {"training perplexity": results.score("perplexity", 3)}
    if config["held_out"]:
        columns["held-out perplexity"] = results.score("held_out", 3)
        columns["lowest on the way"] = lambda runs: f"{min(results.curve(runs, 'held_out')):.3f}"
    title = f"After {config['epochs']} epochs, {title}"
    return results.scores(title, ("model", "sampling"), found, columns)


def _texts(record: Record) -> Table:
    return Table(
        "Text written after the prefixes, by the models of the first seed",
        ("corpus", "model", "sampling", "layers", "text"),
        [
            (run["corpus"], run["cell"].upper(), run["sampling"], NAMES[run["impl"]], text)
            for run in results.first_seed(record)
            for text in run["generated"]
        ],
    )


def _on_sampling(found: Groups, title: str, figure: str) -> Iterator[str]:
    for cell in dict.fromkeys(cell for cell, _ in found):
        if (cell, "sequential") in found and (cell, "random") in found:
            kept, anew = (
                statistics.mean(results.last(results.ours(found[cell, sampling]), figure))
                for sampling in ("sequential", "random")
            )
            lower = "sequential" if kept < anew else "random"
            yield (
                f"{cell.upper()}, {title}: perplexity {kept:.3f} with sequential sampling and "
                f"{anew:.3f} with random, lower with {lower}."
            )


def _on_memory(found: Groups, title: str) -> Iterator[str]:
    for (cell, sampling), by_impl in found.items():
        run = results.ours(by_impl)[0]
        last = run["epochs"][-1]
        if "held_out" not in last.figures:
            continue
        values = [epoch["held_out"] for epoch in run["epochs"]]
        best = values.index(min(values))
        since = f"; the latter was lowest after epoch {best + 1} ({values[best]:.3f}) and has risen"
        risen = ", lowest after the last epoch." if best == len(values) - 1 else f"{since} since."
        yield (
            f"{cell.upper()}, {sampling}, {title}, seed {run['seed']}: perplexity "
            f"{last.perplexity:.3f} on what it was trained on, "
            f"{values[-1]:.3f} on what it never saw{risen}"
        )
