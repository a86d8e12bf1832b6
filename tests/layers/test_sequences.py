"""Modules and functions with lengths, resets and states of every step: forward and every gradient
against the definition in float64, and against what torch.nn gives for the same in pieces."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional
from support.oracle import pair, tensors_of
from support.problems import MODES, Problem, build, check, grid
from support.theirs import THEIRS, TORCHS, by_definition, name_of

NAMES = ("RNN", "LSTM", "GRU", "MGU")
FLAGS: dict[str, tuple[Any, ...]] = {
    "T": (1, 5, 9),
    "B": (1, 3, 64),  # 64: of four steps is a chunk of the reserve
    "H": (1, 7, 37),
    "L": (1, 2),
    "P": (0, 3),
    "form": ("batched", "batch_first", "unbatched", "sorted", "unsorted"),
    "bidirectional": (False, True),
    "bias": (True, False),
    "hx": ("none", "given", "grad"),
    "use": ("all", "output", "h_n", "c_n", "states"),
    "dtype": (torch.float32, torch.float64, torch.bfloat16),
    "frozen": ("none", "hh", "all"),
    "strided": (False, True),
    "lengths": ("none", "some", "full", "empty"),
    "resets": ("none", "no", "sparse", "dense", "all"),
    "reset_state": ("none", "one", "rows"),
    "states": (False, True, "all"),
    "every": (None, 1, 3, "auto"),
}
# What takes another path each; of the widths one no multiple of a vector, one beyond a block.
WHOLE = [
    replace(problem, mode=mode)
    for mode in MODES
    for problem in (
        Problem(T=11, B=5, H=19, L=2, bidirectional=True, lengths="some", hx="grad"),
        Problem(T=11, B=5, H=19, L=2, bidirectional=True, resets="dense", reset_state="rows"),
        Problem(T=9, B=17, H=128, lengths="some", resets="sparse", reset_state="one", states="all"),
        Problem(T=6, B=3, H=131, lengths="some", form="batch_first", states=True),
        # A reset that no step of the reverse direction sees; reset states of no row.
        Problem(T=1, B=3, H=5, bidirectional=True, resets="all", reset_state="rows"),
        Problem(T=5, B=3, H=7, lengths="some", resets="no", reset_state="one"),
    )
]
# Enough bytes that several threads move the rows.
WHOLE += [
    Problem(mode, T=40, B=32, I=100, H=128, lengths="some", resets="sparse", states=True)
    for mode in ("LSTM", "GRU")
]


@pytest.mark.parametrize("problem", [p for m in MODES for p in grid(m, FLAGS)], ids=str)
def test_all_flags_crossed_match_the_definition(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize("problem", WHOLE, ids=str)
def test_each_path_matches_the_definition(problem: Problem) -> None:
    check(problem)


# --- against torch.nn


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)  # the definition's many small operators crawl on a busy machine


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def agree(ours: Any, expected: Any, leaves: Any) -> None:
    """The same results and gradients in float64."""
    torch.testing.assert_close(ours, expected)
    slopes = [torch.randn_like(v) for v in expected]
    found = [torch.autograd.grad(values, leaves, slopes) for values in (ours, expected)]
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("order", ["unsorted", "sorted", "with zeros"])
@pytest.mark.parametrize("mode", TORCHS)
def test_lengths_equal_torchs_packing(mode: str, order: str) -> None:
    problem = Problem(mode, L=2, bidirectional=True, dtype=torch.float64)
    ours, theirs = build(problem, fusedrnn), build(problem, nn)
    values = {"unsorted": [2, 7, 1, 5], "sorted": [7, 5, 2, 1], "with zeros": [0, 4, 7, 0]}[order]
    lengths, x = torch.tensor(values), leaf(7, 4, 4)
    keep = lengths.nonzero()[:, 0]
    packed = pack_padded_sequence(x[:, keep], lengths[keep].cpu(), enforce_sorted=False)
    y, final = theirs(packed)

    def all_rows(v: Tensor) -> Tensor:
        return v.new_zeros(v.size(0), 4, v.size(2)).index_copy(1, keep, v)

    padded = pad_packed_sequence(y, total_length=7)[0]
    expected = [all_rows(v) for v in (padded, *tensors_of(final))]
    leaves = [x, *theirs.parameters()]
    found = tensors_of(
        torch.func.functional_call(
            ours, dict(theirs.named_parameters()), (x,), {"lengths": lengths}
        )
    )
    agree([*found], expected, leaves)


def step_by_step(cell: Any, x: Tensor, state: Any, resets: Tensor) -> tuple[Tensor, ...]:
    """A loop over torch.nn's cell that zeroes states, as reinforcement learning has it."""
    outputs, states = [], tensors_of(state)
    for x_t, reset in zip(x, resets, strict=True):
        states = tuple(s * ~reset[:, None] for s in states)
        found = cell(x_t, states if len(states) > 1 else states[0])
        states = tensors_of(found)
        outputs.append(states)
    columns = [torch.stack(column) for column in zip(*outputs, strict=True)]
    return (columns[0], *(s[None] for s in states), columns[-1])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_resets_equal_a_loop_over_torchs_cell(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, dtype=torch.float64)
    cell = getattr(nn, f"{name}Cell")(3, 5, dtype=torch.float64)
    weights = {key.removesuffix("_l0"): w for key, w in module.named_parameters()}
    x, resets = leaf(8, 4, 3), torch.rand(8, 4) < 0.3
    resets[0, 0] = resets[7, 1] = True
    states = [leaf(4, 5) for _ in range(1 + (name == "LSTM"))]
    by_cell = partial(torch.func.functional_call, cell, weights)
    expected = step_by_step(lambda *given: by_cell(given), x, tuple(states), resets)
    hx = tuple(s[None] for s in states) if name == "LSTM" else states[0][None]
    found = tensors_of(module(x, hx, resets=resets, return_states=True))
    agree([*found], [*expected], [x, *states, *module.parameters()])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_both_directions_of_a_stack_are_cut_into_torchs_pieces(name: str) -> None:
    ours, theirs = pair(name, 3, 5, 2, bidirectional=True, dtype=torch.float64)
    x, cuts = leaf(9, 2, 3), [0, 2, 3, 7, 9]
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[cuts[1:-1]] = True
    pieces = [theirs(x[a:b]) for a, b in pairwise(cuts)]
    y = torch.cat([output for output, _ in pieces])
    first, last = (tensors_of(final) for final in (pieces[0][1], pieces[-1][1]))
    # h_n of the forward directions is the last piece's, of the reverse ones the first one's.
    ends = [torch.stack((z[0], a[1], z[2], a[3])) for a, z in zip(first, last, strict=True)]
    own = dict(theirs.named_parameters())
    found = tensors_of(torch.func.functional_call(ours, own, (x,), {"resets": resets}))
    agree([*found], [y, *ends], [x, *theirs.parameters()])


# --- what holds for every module


def made(mode: str, **options: Any) -> tuple[Any, Tensor, Any]:
    """A module of two layers in both directions, an input [6, 4, 3] and states, that ask for a
    gradient."""
    if mode.startswith("RNN"):
        options["nonlinearity"] = mode[4:].lower()
    module = getattr(fusedrnn, name_of(mode))(3, 5, 2, bidirectional=True, **options)
    states = tuple(torch.randn(4, 4, 5, requires_grad=True) for _ in range(1 + (mode == "LSTM")))
    hx = states if mode == "LSTM" else states[0]
    return module, torch.randn(6, 4, 3, requires_grad=True), hx


LENGTHS = torch.tensor([4, 0, 6, 2])


@pytest.mark.parametrize("mode", MODES)
def test_nothing_past_an_end_reaches_a_result_or_a_gradient(mode: str) -> None:
    module, x, hx = made(mode)
    past = torch.arange(6)[:, None] >= LENGTHS
    x.data[past] = torch.nan
    given = tensors_of(hx)
    found = module(x, hx, lengths=LENGTHS, return_states="all")
    output, *final, states = tensors_of(found)
    assert not output[past].count_nonzero()
    assert not states[:, past].count_nonzero()
    assert output[~past].count_nonzero()
    for last, first in zip(final, given, strict=True):
        assert torch.equal(last[:, 1], first[:, 1])
    leaves = [x, *given, *module.parameters()]
    slopes = [torch.randn_like(v) for v in tensors_of(found)]
    slopes[0][past] = torch.nan
    slopes[-1][:, past] = torch.nan
    gradients = torch.autograd.grad(tensors_of(found), leaves, slopes)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][past].count_nonzero()
    without = module(x, lengths=LENGTHS)
    for last in tensors_of(without[1]):
        assert not last[:, 1].count_nonzero()


@pytest.mark.parametrize("mode", MODES)
def test_full_lengths_and_no_resets_change_nothing(mode: str) -> None:
    module, x, hx = made(mode)
    expected = tensors_of(module(x, hx))
    assert len(module(x, hx, return_states=False)) == 2
    for given in (
        {"lengths": torch.full((4,), 6)},
        {"resets": torch.zeros(6, 4, dtype=torch.bool)},
        {"lengths": None, "resets": None, "reset_state": None, "checkpoint_every": None},
    ):
        torch.testing.assert_close(tensors_of(module(x, hx, **given)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_forgets_whatever_came_before(mode: str) -> None:
    module, x, hx = made(mode)
    resets = torch.zeros(6, 4, dtype=torch.bool)
    resets[3] = True
    output = module(x, hx, resets=resets)[0].unflatten(2, (2, 5))
    # The second layer's forward half reads the first one's reverse half, which is cut there too.
    ahead = torch.autograd.grad(output[3:].sum(), x, retain_graph=True)[0]
    back = torch.autograd.grad(output[:3].sum(), x)[0]
    assert not ahead[:3].count_nonzero()
    assert ahead[3:].count_nonzero()
    assert not back[3:].count_nonzero()
    assert back[:3].count_nonzero()


@pytest.mark.parametrize("mode", MODES)
def test_every_layout_of_lengths_and_resets_is_read(mode: str) -> None:
    module, x, hx = made(mode)
    resets = torch.rand(6, 4) < 0.4
    expected = tensors_of(module(x, hx, lengths=LENGTHS, resets=resets))
    spread = torch.stack((LENGTHS, LENGTHS + 1), dim=1)[:, 0]
    turned = resets.t().contiguous().t()
    for lengths, marks in (
        (spread, turned),
        (LENGTHS.flip(0)[[3, 2, 1, 0]], resets.repeat(2, 1)[:6]),
    ):
        assert lengths.tolist() == LENGTHS.tolist()
        found = tensors_of(module(x, hx, lengths=lengths, resets=marks))
        assert all(map(torch.equal, found, expected))
    same = tensors_of(
        module(x, lengths=torch.tensor(3).expand(4), resets=resets[:, :1].expand(6, 4))
    )
    apart = tensors_of(module(x, lengths=torch.tensor([3] * 4), resets=resets[:, :1].repeat(1, 4)))
    assert all(map(torch.equal, same, apart))


@pytest.mark.parametrize("mode", MODES)
def test_the_states_returned_are_those_of_each_step(mode: str) -> None:
    module, x, hx = made(mode)
    options: dict[str, Any] = {"nonlinearity": mode[4:].lower()} if mode.startswith("RNN") else {}
    one = getattr(fusedrnn, name_of(mode))(3, 5, **options)
    with torch.no_grad():
        y, _, states = one(x, return_states=True)
        for t in range(6):
            final = tensors_of(one(x[: t + 1])[1])
            torch.testing.assert_close(states[t], final[-1][0])
        if mode != "LSTM":
            assert torch.equal(states, y)
        top = module(x, hx, return_states=True)[2]
        all_layers = module(x, hx, return_states="all")[2]
    assert all_layers.shape == (2, 6, 4, 10)
    assert torch.equal(all_layers[1], top)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [True, False])
def test_empty_batches_pass(name: str, grad: bool) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    with torch.set_grad_enabled(grad):
        y, _, states = module(
            torch.randn(6, 0, 3),
            lengths=torch.zeros(0, dtype=torch.int64),
            resets=torch.zeros(6, 0, dtype=torch.bool),
            return_states="all",
        )
    assert y.shape == (6, 0, 5)
    assert states.shape == (2, 6, 0, 5)
    if grad:
        y.sum().backward()


# --- dropout, dtypes, the functions, conversion


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_dropout_draws_the_same_from_the_same_seed(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2, dropout=0.5)
    x, resets = torch.randn(6, 4, 3), torch.rand(6, 4) < 0.3
    weights = list(module.parameters())
    found = []
    for every in (None, None, 2):
        torch.manual_seed(3)
        results = module(
            x, lengths=LENGTHS, resets=resets, return_states="all", checkpoint_every=every
        )
        values = tensors_of(results)
        slopes = [torch.ones_like(v) for v in values]
        found.append((*values, *torch.autograd.grad(values, weights, slopes)))
        assert all(v.isfinite().all() for v in found[-1])
        assert not values[0][torch.arange(6)[:, None] >= LENGTHS].count_nonzero()
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))
    other = module(x, lengths=LENGTHS, resets=resets)[0]
    assert not torch.equal(other, found[0][0])
    module.eval()
    exact = by_definition(module, x, lengths=LENGTHS, resets=resets)
    torch.testing.assert_close(module(x, lengths=LENGTHS, resets=resets), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_autocast_rounds_the_results_and_keeps_the_gradients_dtypes(
    mode: str, dtype: torch.dtype
) -> None:
    module, x, hx = made(mode)
    others = tuple(torch.randn(4, 1, 5, requires_grad=True) for _ in tensors_of(hx))
    given: dict[str, Any] = {
        "lengths": LENGTHS,
        "resets": torch.rand(6, 4) < 0.3,
        "reset_state": others if mode == "LSTM" else others[0],
        "return_states": "all",
    }
    exact = tensors_of(module(x, hx, **given))
    with torch.autocast("cpu", dtype=dtype):
        found = tensors_of(module(x, hx, **given))
    # bfloat16 is rounded before each product as well, where the machine multiplies it.
    near = 1e-2 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(found, tuple(v.to(dtype) for v in exact), rtol=2 * near, atol=near)
    leaves = [x, *tensors_of(hx), *others, *module.parameters()]
    loss = torch.stack([v.float().square().sum() for v in found]).sum()
    for gradient, of in zip(torch.autograd.grad(loss, leaves), leaves, strict=True):
        assert gradient.dtype == of.dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("every", [None, 2, "auto"])
@pytest.mark.parametrize("states", [False, True, "all"])
@pytest.mark.parametrize("mode", MODES)
def test_functions_take_what_modules_take(
    mode: str, states: bool | str, every: int | str | None
) -> None:
    module, x, hx = made(mode, batch_first=True)
    x = x.detach().transpose(0, 1)
    others = tuple(torch.randn(4, 1, 5) for _ in tensors_of(hx))
    given: dict[str, Any] = {
        "lengths": LENGTHS,
        "resets": torch.rand(4, 6) < 0.3,
        "reset_state": others if mode == "LSTM" else others[0],
        "return_states": states,
        "checkpoint_every": every,
    }
    function = getattr(functional, name_of(mode).lower())
    options: dict[str, Any] = {"nonlinearity": mode[4:].lower()} if mode.startswith("RNN") else {}
    weights = [w for group in module.all_weights for w in group]
    options |= {"num_layers": 2, "bidirectional": True, "batch_first": True}
    found = function(x, hx, weights, **options, **given)
    expected = module(x, hx, **given)
    assert len(found) == len(expected) == 2 + bool(states)
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_converted_module_takes_them(name: str) -> None:
    theirs = nn.ModuleDict({"rnn": getattr(nn, name)(3, 5, 2, bidirectional=True)})
    exact = getattr(THEIRS, name)(3, 5, 2, bidirectional=True)
    exact.load_state_dict(theirs["rnn"].state_dict())
    model: Any = fusedrnn.convert(theirs)
    given: Any = {"lengths": LENGTHS, "resets": torch.rand(6, 4) < 0.3, "return_states": "all"}
    x = torch.randn(6, 4, 3)
    torch.testing.assert_close(model["rnn"](x, **given), by_definition(exact, x, **given))


def test_a_learned_reset_state_is_trained() -> None:
    torch.manual_seed(0)
    module: Any = fusedrnn.GRU(3, 5)
    start = nn.Parameter(torch.zeros(1, 1, 5))
    optimizer = torch.optim.SGD([start], lr=0.5)
    x, resets = torch.randn(6, 4, 3), torch.rand(6, 4) < 0.5
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (module(x, resets=resets, reset_state=start)[0] - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert start.count_nonzero() == 5


@pytest.mark.parametrize("rows", [(1, 4), (4, 1)])
def test_h_and_c_of_a_reset_may_have_a_row_for_all_or_for_each(rows: tuple[int, int]) -> None:
    lstm = fusedrnn.LSTM(3, 5, bidirectional=True).double()
    x, resets = torch.randn(6, 4, 3, dtype=torch.float64), torch.rand(6, 4) < 0.5
    resets[1] = True
    start = [torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True) for n in rows]
    each = [state.expand(2, 4, 5).contiguous() for state in start]
    found, expected = (
        lstm(x, resets=resets, reset_state=(states[0], states[1]))[0] for states in (start, each)
    )
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(y, start, slope) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b)
