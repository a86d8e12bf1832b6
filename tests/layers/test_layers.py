"""Sequence modules against torch.nn and the float64 reference: forward and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fusedrnn
from support.accuracy import assert_as_accurate_as
from support.oracle import close, without_cudnn
from support.problems import CORE, MODES, Problem, check, covering, grid, run
from support.theirs import THEIRS, name_of

FLAGS = {
    "dtype": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "T": (1, 2, 9, 20),
    "B": (1, 2, 5, 19),
    "I": (1, 7, 24),
    "H": (1, 3, 16, 37, 100),
    "L": (1, 2, 3),
    "P": (0, 2),
    "form": ("batched", "batch_first", "unbatched", "sorted", "unsorted"),
    "bidirectional": (False, True),
    "bias": (True, False),
    "dropout": (0.0, 0.4),
    "hx": ("none", "given", "grad"),
    "frozen": ("none", "hh", "all"),
    "use": ("all", "output", "h_n", "c_n"),
    "strided": (False, True),
}

SIZES = (  # T, B, I, H
    (1, 1, 1, 1),
    (300, 1, 2, 1),
    (300, 3, 5, 3),
    (2, 130, 3, 3),
    (1, 130, 40, 37),
    (75, 7, 37, 37),
    (300, 2, 28, 100),
    (35, 32, 28, 100),
    (50, 64, 128, 128),
    (130, 13, 100, 128),
    (35, 32, 28, 256),
    (3, 130, 64, 256),
    (100, 1, 9, 256),
    (4, 5, 128, 1000),
    (1, 2, 1000, 1000),
    (7, 131, 1100, 1056),
)


@pytest.mark.parametrize("problem", [p for m in MODES for p in grid(m, FLAGS)], ids=str)
def test_all_flags_crossed_match_torch_and_reference(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "T{}-B{}-I{}-H{}".format(*s))
def test_odd_and_large_sizes_match_torch_and_reference(
    mode: str, size: tuple[int, int, int, int]
) -> None:
    T, B, I, H = size  # noqa: E741
    check(Problem(mode, T, B, I, H, hx="grad"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_long_sequences_match_in_every_dtype(mode: str, dtype: torch.dtype) -> None:
    check(Problem(mode, T=120, B=4, I=12, H=37, dtype=dtype, hx="grad"))


@pytest.mark.cpu_only("threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("B", [1, 2, 3, 7])
def test_any_number_of_threads_matches_and_repeats_bit_for_bit(threads: int, B: int) -> None:
    torch.set_num_threads(threads)
    for mode in MODES:
        problem = Problem(mode, T=11, B=B, I=8, H=130, hx="grad", bidirectional=True)
        first, second = check(problem), run(problem, "fusedrnn")
        for name, value in first.items():
            other = second[name]
            assert value is not None
            assert other is not None
            assert torch.equal(value, other), name


@pytest.mark.parametrize("problem", CORE, ids=str)
def test_inference_equals_training_forward(problem: Problem) -> None:
    problem = replace(problem, frozen="none")
    expected = run(problem, "fusedrnn")
    from support.problems import build, inputs, keywords

    module = build(problem, fusedrnn).eval()
    input, states, _ = inputs(problem, problem.dtype)
    hx = (states if problem.mode == "LSTM" else states[0]) if states else None
    given, _ = keywords(problem, problem.dtype)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            output, final, *_ = module(input, hx, **given)
        output = getattr(output, "data", output)
        final = final if problem.mode == "LSTM" else (final,)
        for name, value in zip(("output", "h_n", "c_n"), (output, *final), strict=False):
            exact = expected[name]
            assert exact is not None
            assert not value.requires_grad
            torch.testing.assert_close(value, exact.detach())


@pytest.mark.parametrize("mode", MODES)
def test_expanded_and_transposed_hx_and_strided_weights_are_read_right(mode: str) -> None:
    name = name_of(mode)
    ours, theirs = getattr(fusedrnn, name)(4, 6, 2), getattr(THEIRS, name)(4, 6, 2)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        for key in ("weight_hh_l0", "weight_ih_l1"):
            weight = getattr(module, key)
            weight.data = weight.data.t().contiguous().t()
    x = torch.randn(5, 3, 4)
    for h in (torch.randn(1, 1, 6).expand(2, 3, 6), torch.randn(6, 3, 2).transpose(0, 2)):
        hx = (h, h) if mode == "LSTM" else h
        with without_cudnn():
            expected = theirs(x, hx)
        close(ours(x, hx), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_empty_batch_gives_empty_outputs_and_zero_gradients(mode: str, bidirectional: bool) -> None:
    problem = Problem(mode, B=0, L=2, hx="grad", bidirectional=bidirectional)
    ours, theirs = run(problem, "fusedrnn"), run(problem, "torch", torch.device("cpu"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = theirs[name]
        assert value is not None
        assert expected is not None
        assert value.shape == expected.shape, name
        assert not value.count_nonzero(), name


@pytest.mark.parametrize("mode", MODES)
def test_nan_in_one_sequence_stays_in_that_sequence_and_after(mode: str) -> None:
    name = name_of(mode)
    options = {"nonlinearity": mode[4:].lower()} if name == "RNN" else {}
    module = getattr(fusedrnn, name)(3, 20, **options)
    x = torch.randn(8, 9, 3)
    clean = module(x)[0]
    x[4, 6, 1] = torch.nan
    output = module(x)[0]
    touched = torch.zeros(8, 9, 20, dtype=torch.bool)
    touched[4:, 6] = True
    assert output[touched].isnan().all()
    assert torch.equal(output[~touched], clean[~touched])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 1e30, -1e30])
def test_infinite_and_huge_inputs_saturate_as_in_torch(mode: str, value: float) -> None:
    name = name_of(mode)
    options = {"nonlinearity": mode[4:].lower()} if name == "RNN" else {}
    ours = getattr(fusedrnn, name)(2, 9, **options)
    theirs = getattr(THEIRS, name)(2, 9, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 2)
    x[2, 1, 0] = value
    exact = theirs.double()(x.double())[0]
    assert_as_accurate_as(ours(x)[0], theirs.float()(x)[0], exact, name="output")


@pytest.mark.cpu_only("cuDNN draws dropout from a state of its own")
def test_dropout_draws_the_masks_that_torch_draws() -> None:
    for form in ("batched", "batch_first", "sorted"):
        for mode in MODES:
            check(Problem(mode, T=6, B=4, H=32, L=3, dropout=0.5, form=form))
    torch.manual_seed(5)
    fusedrnn.LSTM(3, 4, 3, dropout=0.5)(torch.randn(5, 2, 3))
    ours = torch.rand(1)
    torch.manual_seed(5)
    nn.LSTM(3, 4, 3, dropout=0.5)(torch.randn(5, 2, 3))
    assert ours == torch.rand(1)


@pytest.mark.cpu_only("cuDNN draws dropout from a state of its own")
def test_dropout_of_one_zeroes_all_but_the_last_layer() -> None:
    check(Problem("GRU", L=2, dropout=1.0))


@pytest.mark.parametrize("mode", MODES)
def test_chunks_of_time_with_carried_state_equal_the_whole(mode: str) -> None:
    name = name_of(mode)
    module = getattr(fusedrnn, name)(5, 40, 2)
    x = torch.randn(13, 4, 5)
    whole, final = module(x)
    parts, state = [], None
    for chunk in x.split(4):
        part, state = module(chunk, state)
        parts.append(part)
    close((torch.cat(parts), state), (whole, final))


def test_covering_array_holds_every_pair() -> None:
    choices = {"a": (0, 1, 2), "b": ("x", "y"), "c": (True, False)}
    rows = list(covering(choices))
    assert {(r["a"], r["b"]) for r in rows} == {(a, b) for a in choices["a"] for b in "xy"}
    assert {(r["b"], r["c"]) for r in rows} == {(b, c) for b in "xy" for c in (True, False)}
    assert len(rows) < 12
