"""IMDB: batches of like length, the layouts, scores, that updates learn; options and results."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples import data
from examples.driver.layers import IMPLEMENTATIONS
from examples.driver.training import Epoch
from examples.imdb import model as imdb
from examples.imdb.workload import WORKLOAD

CELLS = pytest.mark.parametrize("cell", imdb.CONFIGS)
# torch.nn's layers take no lengths.
WAYS = [(impl, x) for impl in IMPLEMENTATIONS for x in imdb.LAYOUTS[: 3 if impl != "torch" else 2]]

T = 12
summary = WORKLOAD.summarise


def small(cell: str, **changes: Any) -> imdb.Config:
    """The cell's model, narrow."""
    return replace(imdb.CONFIGS[cell], embedding=6, hidden=8, steps=T, batch=5, **changes)


def built(
    cell: str, impl: str = "torch", layout: str = "packed", **changes: Any
) -> imdb.Classifier:
    torch.manual_seed(0)
    return imdb.build_model(cell, impl, small(cell, **changes), layout)


@pytest.fixture(scope="module")
def corpus() -> data.Imdb:
    """82 reviews of 1 to 20 words, so that T cuts some and pads others."""
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *rng.integers(1, 21, 82)], dtype=np.int32)
    tokens = rng.integers(1, 400, offsets[-1], np.int32)
    labels = np.arange(82, dtype=np.int32) % 2
    return data.Imdb(tokens, offsets, labels, *data.split(41, 41), "made up")


def test_word_vectors_start_small_and_forget_gates_open() -> None:
    state = built("lstm").state_dict()
    vectors = state["embedding.weight"]
    assert not vectors[0].any()
    assert 0.045 < vectors.abs().max() <= 0.05
    biases = [bias for name, bias in state.items() if "bias_ih" in name]
    assert len(biases) == 4
    for bias in biases:
        assert (bias[8:16] == 1).all()
        assert (bias[:8].abs() < 0.5).all()
        assert (bias[16:].abs() < 0.5).all()


def test_reviews_keep_their_last_values_on_the_side_of_their_layout(corpus: data.Imdb) -> None:
    for layout in imdb.LAYOUTS:
        for part, start in zip(imdb.split(corpus, T, layout), (0, 41), strict=True):
            assert len(part.x) == len(part.lengths) == len(part.y) == 41
            for i, row in enumerate(part.x.tolist()):
                kept = corpus.values(start + i)[-T:]
                zeros = [0] * (T - len(kept))
                assert row == ([*zeros, *kept] if layout == "padded" else [*kept, *zeros])
                assert part.lengths[i] == len(kept)
                assert part.y[i] == corpus.labels[corpus.order[start + i]]


def test_a_limit_takes_the_first_reviews_of_either_part(corpus: data.Imdb) -> None:
    for full, few in zip(imdb.split(corpus, T), imdb.split(corpus, T, limit=7), strict=True):
        assert torch.equal(few.x, full.x[:7])
        assert torch.equal(few.y, full.y[:7])


@pytest.mark.parametrize("generator", [torch.Generator(), None], ids=["shuffled", "in order"])
def test_batches_hold_every_review_once_longest_first(generator: torch.Generator | None) -> None:
    lengths = torch.randint(5, 257, (1_000,))
    found = imdb.batches(lengths, 16, generator)
    assert sorted(map(len, found)) == [8, *[16] * 62]
    assert torch.equal(torch.cat(found).sort().values, torch.arange(1_000))
    for rows in found:
        assert (lengths[rows].diff() <= 0).all()


def test_batches_of_an_epoch_are_like_in_length_and_differ_from_the_next_epochs() -> None:
    lengths = torch.randint(5, 257, (6_400,))

    def epochs() -> list[list[Tensor]]:
        generator = torch.Generator().manual_seed(3)
        return [imdb.batches(lengths, 64, generator) for _ in range(2)]

    (first, second), again = epochs(), epochs()
    assert all(map(torch.equal, first + second, [*again[0], *again[1]]))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    steps = sum(int(lengths[rows].max()) * len(rows) for rows in first)
    assert 1 - lengths.sum() / steps < 0.03
    longest = torch.tensor([float(lengths[rows].max()) for rows in first])
    assert (longest.diff() > 0).float().mean() > 0.3  # batches do not come by length


@pytest.mark.parametrize("layout", imdb.LAYOUTS)
def test_a_batch_is_cut_to_its_longest_review(corpus: data.Imdb, layout: str) -> None:
    train, _ = imdb.split(corpus, T, layout)
    rows = imdb.batches(train.lengths, 5)[-1]
    x, lengths, y = train.batch(rows)
    longest = int(train.lengths[rows].max())
    assert longest < T
    assert x.shape == (len(rows), longest)
    assert torch.equal((x != 0).sum(1), train.lengths[rows])
    assert (x[0] != 0).all()
    assert torch.equal(y, train.y[rows])
    assert (lengths is None) == (layout == "padded")


@CELLS
@pytest.mark.parametrize(("impl", "layout"), [way for way in WAYS if way[1] != "padded"])
def test_every_review_is_judged_as_if_it_were_alone(
    impl: str, cell: str, layout: str, corpus: data.Imdb
) -> None:
    model = built(cell, impl, layout).eval()
    train, _ = imdb.split(corpus, T, layout)
    rows = imdb.batches(train.lengths, 9)[2]
    x, lengths, _ = train.batch(rows)
    together = model(x, lengths)
    alone = [model(train.x[i : i + 1, : int(train.lengths[i])]) for i in rows.tolist()]
    torch.testing.assert_close(together, torch.cat(alone))


@CELLS
def test_without_padding_all_layouts_give_the_same_logits(impl: str, cell: str) -> None:
    x = torch.randint(1, 400, (4, T))
    padded = built(cell, impl).eval()(x)
    for layout in ("packed", "lengths") if impl == "fusedrnn" else ("packed",):
        logits = built(cell, impl, layout).eval()(x, torch.full((4,), T))
        torch.testing.assert_close(logits, padded)


def test_the_lstm_judges_by_the_last_state_of_each_direction_of_the_last_layer() -> None:
    model = built("lstm").eval()
    x = torch.randint(1, 400, (3, T))
    output, _ = model.rnn(model.embedding(x.t()))  # [T, B, 2H]
    last = torch.cat([output[-1, :, :8], output[0, :, 8:]], 1)
    torch.testing.assert_close(model(x), model.linear(last).squeeze(1))


@CELLS
@pytest.mark.parametrize(("impl", "layout"), WAYS)
def test_updates_learn_the_training_reviews_by_heart(
    impl: str, cell: str, layout: str, corpus: data.Imdb
) -> None:
    reviews = imdb.split(corpus, T, layout, limit=20)
    config = small(cell, dropout=0.0, learning_rate=0.02)
    run = imdb.new_run(cell, impl, 0, layout, reviews, config)
    for _ in range(25):
        losses = [loss.item() for loss, _ in run.updates()]
    assert max(losses) < 0.2
    assert imdb.evaluate(run.model, reviews[0]) == 1.0
    weight = run.model.get_parameter("embedding.weight")
    assert not weight[0].any()  # padding has learnt nothing


def test_gradients_are_clipped_together(corpus: data.Imdb) -> None:
    model = built("lstm")
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train, _ = imdb.split(corpus, T)
    batch = train.batch(imdb.batches(train.lengths, 5)[0])
    imdb.train_step(model, optimizer, batch, clip=1e-2)
    change = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert change.norm().item() == pytest.approx(1e-2, rel=1e-2)


class Knowing(nn.Module):
    """A positive logit for the reviews whose first value is even; knows its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()

    def forward(self, x: Tensor, _: Tensor | None) -> Tensor:
        self.modes.add(self.training)
        return 0.5 - x[:, 0] % 2


def test_the_score_is_the_share_of_reviews_judged_rightly() -> None:
    x = torch.randint(1, 400, (601, 3))
    y = torch.randint(0, 2, (601,)).float()
    reviews = imdb.Reviews(x, torch.full((601,), 3), y, padded=False)
    model = Knowing()
    expected = ((x[:, 0] % 2 == 0) == (y == 1)).double().mean().item()
    assert imdb.evaluate(model, reviews, size=128) == pytest.approx(expected, abs=1e-12)
    assert model.modes == {False}
    assert model.training


@pytest.mark.parametrize("switched", ["word vectors", "layers", "decision"])
def test_dropout_is_on_word_vectors_between_layers_and_before_the_decision(switched: str) -> None:
    x = torch.randint(1, 400, (1, T))
    model = built("lstm", dropout=0.5).eval()
    assert torch.equal(model(x), model(x))
    if switched == "layers":
        model.rnn.train()
    else:
        calls = iter([switched == "word vectors", switched == "decision"] * 2)
        model.dropout.register_forward_pre_hook(lambda m, _: m.train(next(calls)) and None)
    assert not torch.equal(model(x), model(x))


def test_both_layouts_are_followed_epoch_by_epoch(record: Any, tmp_path: Path) -> None:
    found = record("imdb", "--layout", "packed", "padded", "--follow")
    stem = "imdb-fusedrnn-packed+padded-steps9-limit70-follow-quick-synthetic"
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == [f"{stem}-accuracy.png", f"{stem}.jsonl", f"{stem}.png"]
    assert found["reviews"] == {"train": 70, "test": 70}
    assert [r["name"] for r in found["runs"]] == [
        f"{cell}-{layout}-seed0" for cell in WORKLOAD.cells for layout in ("packed", "padded")
    ]
    for r in found["runs"]:
        assert r["accuracy"] == pytest.approx(r["epochs"][-1]["accuracy"])
        assert [e.targets for e in r["epochs"]] == [70, 70, 70]
    assert len(summary(found).tables[0].rows) == len(summary(found).headline) == 4


def test_lengths_stand_beside_packed_and_padded_for_ours_alone(record: Any) -> None:
    layouts = ("packed", "padded", "lengths")
    found = record("imdb", "--cell", "rnn", "--impl", "fusedrnn", "torch", "--layout", *layouts)
    runs = [(r["layout"], r["impl"]) for r in found["runs"]]
    both = [(layout, impl) for layout in layouts for impl in ("fusedrnn", "torch")]
    assert runs == both[:-1]
    said = summary(found)
    minutes = {row[1]: row[2:] for row in said.tables[1].rows}
    assert minutes["lengths"][0]
    assert minutes["lengths"][1:] == ("", "")
    (remark,) = (r for r in said.remarks if "with lengths" in r)
    assert remark.startswith("RNN, fusedrnn: an epoch takes ")


def test_lengths_are_refused_where_only_torch_s_layers_are_asked_for(fails: Any) -> None:
    words = ("--synthetic", "--impl", "torch", "--layout", "lengths")
    assert "torch.nn's layers take no lengths: expected --impl fusedrnn" in fails("imdb", *words)


@pytest.mark.parametrize("layout", imdb.LAYOUTS)
def test_the_last_fifth_of_the_training_reviews_is_held_out(layout: str) -> None:
    train, _ = imdb.split(data.synthetic_imdb(), T, layout, 103)
    first, last = imdb.held_out(train)
    assert (len(first.y), len(last.y)) == (83, 20)
    for name in ("x", "lengths", "y"):
        parts = torch.cat([getattr(first, name), getattr(last, name)])
        assert torch.equal(parts, getattr(train, name))
    assert first.padded == last.padded == train.padded == (layout == "padded")


def test_with_held_out_no_test_review_is_read_and_no_claim_is_made(
    record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = imdb.split
    monkeypatch.setattr(imdb, "split", lambda *a: (split(*a)[0], None))
    found = record("imdb", "--held-out", "--vectors", "0.1", "--forget-bias", "2")
    assert found["reviews"] == {"train": 56, "test": 14}
    assert {(c["vectors"], c["forget_bias"]) for c in found["config"].values()} == {(0.1, 2.0)}
    assert WORKLOAD.claims(found) == []


@pytest.mark.parametrize(
    ("options", "key"), [(["--steps", "8"], "steps 8, got 9"), (["--limit", "60"], "reviews 60")]
)
def test_a_checkpoint_of_other_sizes_is_refused(
    train: Any, fails: Any, tmp_path: Path, options: list[str], key: str
) -> None:
    kept = ("--synthetic", "--cell", "rnn", "--checkpoints", str(tmp_path / "kept"))
    assert train("imdb", *kept) == 0
    assert f"expected {key}" in fails("imdb", *kept, "--resume", *options)


def made_up(accuracies: dict[str, float], **options: Any) -> dict[str, Any]:
    """A record whose epochs take 120 s packed and 180 s padded, three times that with torch."""
    runs = []
    for name, accuracy in accuracies.items():
        cell, layout, impl, seed = name.split()
        seconds = (120 if layout == "packed" else 180) * (3 if impl == "torch" else 1)
        about = {"cell": cell, "layout": layout, "impl": impl, "seed": seed, "name": name}
        epochs = [Epoch(loss, 25_000, seconds) for loss in (0.5, 0.25)]
        runs.append(about | {"parameters": 1_000, "accuracy": accuracy, "epochs": epochs})
    return {
        "workload": "imdb",
        "options": {"quick": False, "limit": None, **options},
        "data": "imdb_flat.npz",
        "reviews": {"train": 25_000, "test": 25_000},
        "config": {cell: asdict(config) for cell, config in imdb.CONFIGS.items()},
        "runs": runs,
    }


def test_a_missed_goal_and_a_better_rnn_are_said() -> None:
    scores = {"rnn packed torch 0": 0.83, "lstm packed torch 0": 0.8, "lstm packed torch 1": 0.8}
    remarks = "\n".join(summary(made_up(scores)).remarks)
    assert "80.0 % of the test reviews; the goal of more than 85 % is missed" in remarks
    assert "the LSTM judges 3.0 points fewer of them rightly" in remarks


@pytest.mark.parametrize("options", [{"quick": True}, {"limit": 100}])
def test_a_reduced_run_is_not_held_to_the_goal(options: dict[str, Any]) -> None:
    remarks = "\n".join(summary(made_up({"lstm packed torch 0": 0.6}, **options)).remarks)
    assert "missed" not in remarks
    assert "at full size" in remarks


def test_random_reviews_make_no_statement_on_accuracy() -> None:
    record = made_up({"lstm packed torch 0": 0.9}) | {"data": "synthetic"}
    remarks = "\n".join(summary(record).remarks)
    assert "the accuracies mean nothing" in remarks
    assert "goal" not in remarks


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ((0.86, 0.84), "at most 2.0 points with one seed and by 0.0 on average "),
        ((0.96, 0.94), "at most 12.0 points with one seed and by 10.0 on average "),
    ],
)
def test_a_difference_of_implementations_is_held_against_that_of_seeds(
    theirs: tuple[float, float], said: str
) -> None:
    scores = {f"rnn padded fusedrnn {i}": a for i, a in enumerate((0.84, 0.86))}
    scores |= {f"rnn padded torch {i}": a for i, a in enumerate(theirs)}
    (remark,) = (r for r in summary(made_up(scores)).remarks if "same initial values" in r)
    clear = "a clear" if theirs[0] > 0.9 else "no clear"
    assert f"{said}(standard error 1.4: {clear} difference)" in remark
