"""The definition's lengths, resets and states in float64, held to what knows nothing of them:
torch.nn on packed sequences, on each row alone and on the pieces between resets, and a plain loop
over cells, a row at a time. The hand-written backward is held to autograd through the forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn.reference
from support.theirs import GATES, MODES, TORCHS, name_of

reference: Any = fusedrnn.reference  # mypy cannot count operands in a tuple
T, B, I, H = 6, 5, 3, 4  # noqa: E741
LENGTHS = torch.tensor([4, 0, 6, 1, 5])
RESETS = torch.tensor(
    [
        [1, 1, 0, 1, 0],  # before the first step
        [0, 0, 1, 1, 1],  # past the end of rows 1 and 3
        [0, 1, 1, 0, 0],  # twice in a row
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1],  # at row 0's end
        [0, 0, 1, 1, 1],
    ],
    dtype=torch.bool,
)
WHOLE = torch.full((B,), T)

close: Callable[..., None] = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the definition's many small operators crawl on a busy machine


class Case(NamedTuple):
    """A layer of one or two directions, or, of projections, an LSTM of two such layers."""

    mode: str
    D: int = 1
    P: int = 0
    L: int = 1

    def __str__(self) -> str:
        return f"{self.mode}-D{self.D}-P{self.P}-L{self.L}"

    @property
    def has_c(self) -> bool:
        return self.mode == "LSTM"

    @property
    def flags(self) -> tuple[Any, ...]:
        return self.mode, True, self.L, 0.0, False, self.D == 2


def cases(modes: Sequence[str], *, layers: bool = True) -> list[Case]:
    """Every cell in both directions, and projections, in two layers where ``layers``."""
    L = 2 if layers else 1
    return [Case(mode, D) for mode in modes for D in (1, 2)] + [
        Case("LSTM", D, 2, L) for D in (1, 2)
    ]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def drawn_states(case: Case, rows: int) -> tuple[Tensor, Tensor | None]:
    """h and c [L*D, rows, ...]."""
    D = case.L * case.D
    return leaf(D, rows, case.P or H), leaf(D, rows, H) if case.has_c else None


def drawn_weights(case: Case) -> list[Tensor]:
    """Of one layer, as the definition takes them."""
    G, P = GATES[case.mode], case.P or H
    shapes = [(G * H, I), (G * H, P), (G * H,), (G * H,)] + [(P, H)] * bool(case.P)
    return [leaf(*shape) for _ in range(case.D) for shape in shapes]


def theirs(case: Case) -> tuple[nn.RNNBase, list[Tensor]]:
    """torch.nn's module, and its weights as the definition takes them."""
    options = {"proj_size": case.P} if case.P else {}
    if case.mode.startswith("RNN"):
        options["nonlinearity"] = case.mode[4:].lower()  # type: ignore[assignment]
    made = getattr(nn, name_of(case.mode))
    module = made(I, H, case.L, bidirectional=case.D == 2, dtype=torch.float64, **options)
    return module, [w for group in module.all_weights for w in group]


def state_of(case: Case, h: Tensor, c: Tensor | None) -> Any:
    return (h, c) if case.has_c else h


def parts(final: Any) -> tuple[Tensor, ...]:
    return final if isinstance(final, tuple) else (final,)


def past(lengths: Tensor) -> Tensor:
    """[T, B, 1], which steps lie past a row's end."""
    return (torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(-1)


def equal(ours: Sequence[Tensor], expected: Sequence[Tensor], leaves: Sequence[Any]) -> None:
    """The same values and, of a random weighting of them, the same gradients."""
    for a, b in zip(ours, expected, strict=True):
        close(a, b)
    slopes = [torch.randn_like(v) for v in expected]
    there = [v for v in leaves if v is not None]
    pull = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
    of_ours = pull(ours, there, slopes)
    for a, b in zip(of_ours, pull(expected, there, slopes), strict=True):
        close(a, b)


# --- lengths


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("case", cases(TORCHS), ids=str)
def test_lengths_are_what_packing_computes(case: Case, given: bool) -> None:
    module, weights = theirs(case)
    x = leaf(T, B, I)
    h, c = drawn_states(case, B) if given else (None, None)
    keep = LENGTHS.nonzero()[:, 0]  # torch.nn packs no sequence of length 0
    packed = pack_padded_sequence(x[:, keep], LENGTHS[keep], enforce_sorted=False)
    state = None if h is None else state_of(case, h[:, keep], None if c is None else c[:, keep])
    y, final = module(packed, state)
    P = case.P or H
    output = x.new_zeros(T, B, case.D * P)
    output = output.index_copy(1, keep, pad_packed_sequence(y, total_length=T)[0])
    expected = [output]
    for start, last, width in zip((h, c), parts(final), (P, H), strict=False):
        rows = x.new_zeros(case.L * case.D, B, width) if start is None else start
        expected.append(rows.index_copy(1, keep, last))
    # Nothing that lies past an end may reach a result.
    spoilt = torch.where(past(LENGTHS), torch.nan, x)
    ours = reference.stack(spoilt, None, h, c, weights, *case.flags, LENGTHS)
    equal(ours[: len(expected)], expected, [x, h, c, *weights])


@pytest.mark.parametrize("case", cases(TORCHS), ids=str)
def test_lengths_are_each_row_alone(case: Case) -> None:
    module, weights = theirs(case)
    x, (h, c) = leaf(T, B, I), drawn_states(case, B)
    columns = []
    for b, n in enumerate(LENGTHS.tolist()):
        state = state_of(case, h[:, b : b + 1], None if c is None else c[:, b : b + 1])
        y, final = module(x[:n, b : b + 1], state) if n else (x.new_empty(0), state)
        zeros = x.new_zeros(T - n, 1, case.D * (case.P or H))
        columns.append((torch.cat((y, zeros)) if n else zeros, *parts(final)))
    expected = [torch.cat(column, dim=1) for column in zip(*columns, strict=True)]
    ours = reference.stack(x, None, h, c, weights, *case.flags, LENGTHS)
    equal(ours[: len(expected)], expected, [x, h, c, *weights])


@pytest.mark.parametrize("case", cases(MODES, layers=False), ids=str)
def test_packed_rows_and_lengths_agree(case: Case) -> None:
    x, (h, c), weights = leaf(T, B, I), drawn_states(case, B), drawn_weights(case)
    lengths = torch.tensor([6, 4, 4, 2, 1])
    packed = pack_padded_sequence(x, lengths)
    of_packed = reference.layer(packed.data, packed.batch_sizes, h, c, weights, case.mode, True)
    ours = reference.layer(x, None, h, c, weights, case.mode, True, lengths)
    per_step = [ours[0], ours[3]] if case.has_c else [ours[0]]
    picked = [pack_padded_sequence(v, lengths).data for v in per_step]
    used = [of_packed[0], of_packed[3], *of_packed[1:3]] if case.has_c else [*of_packed[:2]]
    equal([*picked, *ours[1 : 3 if case.has_c else 2]], used, [x, h, c, *weights])


@pytest.mark.parametrize("mode", MODES)
def test_a_state_that_takes_no_step_is_returned_and_reaches_no_weight(mode: str) -> None:
    case = Case(mode, D=2)
    x, weights, (h, c) = leaf(T, B, I), drawn_weights(case), drawn_states(case, B)
    for state in (h, c):
        if state is not None:
            state.data[:, 1] = torch.nan  # the row of length 0
    y, h_n, c_n, _ = reference.layer(x, None, h, c, weights, mode, True, LENGTHS)
    for last in (h_n, c_n) if case.has_c else (h_n,):
        assert last[:, 1].isnan().all()
        assert last[:, LENGTHS > 0].isfinite().all()
    found = torch.autograd.grad(y.sum(), [x, *weights])
    plain = (x, None, h, c, weights, mode, True)
    by_hand = reference.layer_backward(torch.ones_like(y), None, None, *plain, None, LENGTHS)
    for gradient in (*found, by_hand[0], *by_hand[3 : 3 + len(weights)]):
        assert gradient is not None
        assert gradient.isfinite().all()


# --- resets

TORCH_CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell}


def step_of(case: Case, weights: Sequence[Tensor]) -> Callable[[Tensor, Any], Any]:
    """One step of torch.nn's cell with these weights, of an input and the states before it."""
    *plain, w_hr = weights if case.P else [*weights, None]
    if case.mode == "MGU":
        return lambda x, s: (reference.mgu_cell(x, s[0], *plain),)
    options = {"nonlinearity": "relu"} if case.mode == "RNN_RELU" else {}
    cell: Any = TORCH_CELLS.get(case.mode, nn.RNNCell)(I, H, dtype=torch.float64, **options)
    names = [name for name, _ in cell.named_parameters()]

    def step(x: Tensor, s: Any) -> Any:
        if w_hr is not None:  # torch.nn's cell has no projection
            return reference.lstm_cell(x, *s, *plain, w_hr)
        state = s if case.has_c else s[0]
        own = dict(zip(names, plain, strict=True))
        return parts(torch.func.functional_call(cell, own, (x, state)))

    return step


def by_loop(
    case: Case,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor,
    resets: Tensor,
    reset_states: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Output, last states and c of every step: a row at a time, a step at a time."""
    count = len(weights) // case.D
    of_directions = []
    for d in range(case.D):
        step = step_of(case, weights[d * count : (d + 1) * count])
        rows = []
        for b, n in enumerate(lengths.tolist()):
            state = [s[d, b] for s in states]
            other = [torch.zeros_like(s) for s in state]
            if reset_states is not None:
                other = [r[d, b if r.size(1) > 1 else 0] for r in reset_states]
            given = [[torch.zeros_like(s) for s in state] for _ in range(T)]
            for t in range(n) if d == 0 else reversed(range(n)):
                # A cut lies between t - 1 and t, whichever way it is passed.
                if (d == 0 and resets[t, b]) or (d == 1 and t + 1 < n and resets[t + 1, b]):
                    state = other
                state = [*step(x[t, b], state)]
                given[t] = state
            every = [torch.stack(column) for column in zip(*given, strict=True)]
            rows.append((every[0], *state, *every[1:]))
        of_directions.append([torch.stack(column) for column in zip(*rows, strict=True)])
    every_step = (0, 3) if case.has_c else (0,)
    return [
        torch.cat(found, dim=-1).transpose(0, 1) if k in every_step else torch.stack(found)
        for k, found in enumerate(zip(*of_directions, strict=True))
    ]


@pytest.mark.parametrize("rows", [0, 1, B], ids=lambda rows: f"reset{rows}")
@pytest.mark.parametrize("lengths", [WHOLE, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("case", cases(MODES, layers=False), ids=str)
def test_resets_are_a_loop_over_cells(case: Case, lengths: Tensor, rows: int) -> None:
    x, weights = leaf(T, B, I), drawn_weights(case)
    h, c = drawn_states(case, B)
    reset_h, reset_c = drawn_states(case, rows) if rows else (None, None)
    states = [s for s in (h, c) if s is not None]
    others = [s for s in (reset_h, reset_c) if s is not None] or None
    expected = by_loop(case, x, states, weights, lengths, RESETS, others)
    given = None if lengths is WHOLE else lengths
    found = reference.layer(
        x, None, h, c, weights, case.mode, True, given, RESETS, reset_h, reset_c
    )
    ours = found if case.has_c else found[:2]
    assert [v.numel() for v in found[len(ours) :]] == [0] * (4 - len(ours))
    equal(ours, expected, [x, h, c, reset_h, reset_c, *weights])


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("mode", TORCHS)
def test_resets_are_torchs_layers_on_the_pieces(mode: str, L: int) -> None:
    case = Case(mode, D=2, L=L)
    module, weights = theirs(case)
    x = leaf(T, B, I)
    first = [s for s in drawn_states(case, B) if s is not None]
    other = [s for s in drawn_states(case, 1) if s is not None]
    forward = torch.arange(2 * L).remainder(2).eq(0)[:, None, None]
    rows = []
    for b in range(B):
        marks = [t for t in range(T) if RESETS[t, b] and t] + [T]
        outputs, kept = [], []
        for begin, end in zip([0, *marks], marks, strict=False):
            cut_before = begin > 0 or bool(RESETS[0, b])
            pair = []
            for f, o in zip(first, other, strict=True):
                ahead = o if cut_before else f[:, b : b + 1]
                back = o if end < T else f[:, b : b + 1]
                pair.append(torch.where(forward, ahead, back))
            y, final = module(x[begin:end, b : b + 1], state_of(case, pair[0], pair[-1]))
            outputs.append(y)
            kept.append(parts(final))
        # Forward the last piece's states are the last, in reverse the first one's.
        ends = [torch.where(forward, z, a) for a, z in zip(kept[0], kept[-1], strict=True)]
        rows.append([torch.cat(outputs), *ends])
    expected = [torch.cat(column, dim=1) for column in zip(*rows, strict=True)]
    h, c, reset_h, reset_c = (
        v for pair in (first, other) for v in (pair[0], pair[1] if case.has_c else None)
    )
    ours = reference.stack(x, None, h, c, weights, *case.flags, None, RESETS, reset_h, reset_c)
    equal(ours[: len(expected)], expected, [x, *first, *other, *weights])


def test_resets_at_the_first_step_and_past_an_end_change_nothing_in_reverse() -> None:
    case = Case("LSTM", D=2)
    x, (h, c), weights = leaf(T, B, I), drawn_states(case, B), drawn_weights(case)
    layer = partial(reference.layer, x, None, h, c, weights, "LSTM", True, LENGTHS)
    without = layer(RESETS)
    moved = torch.where(past(LENGTHS).squeeze(-1), ~RESETS, RESETS)
    for a, b in zip(layer(moved), without, strict=True):
        assert torch.equal(a, b)
    moved[0] = ~moved[0]
    y, h_n, _, states = layer(moved)
    assert torch.equal(y[..., H:], without[0][..., H:])
    assert torch.equal(states[..., H:], without[3][..., H:])
    assert torch.equal(h_n[1], without[1][1])
    assert not torch.equal(y[..., :H], without[0][..., :H])


# --- the backward, twice and under vmap


@pytest.mark.parametrize("case", cases(MODES, layers=False), ids=str)
def test_the_backward_by_hand_is_autograds(case: Case) -> None:
    for given, rows, used in (
        (True, B, "all"),
        (False, 1, "all"),
        (True, 1, "output"),
        (False, 0, "output"),
        (True, 0, "states"),
    ):
        x, weights = leaf(T, B, I), drawn_weights(case)
        h, c = drawn_states(case, B) if given else (None, None)
        reset_h, reset_c = drawn_states(case, rows) if rows else (None, None)
        new = (LENGTHS, RESETS, reset_h, reset_c)
        results = reference.layer(x, None, h, c, weights, case.mode, True, *new)
        chosen = {"all": range(4), "output": (0,), "states": (3 if case.has_c else 1,)}[used]
        slopes = [
            torch.randn_like(v) if k in chosen and v.numel() else None
            for k, v in enumerate(results)
        ]
        dy, dh_n, dc_n, d_states = slopes
        ours = reference.layer_backward(
            dy, dh_n, dc_n, x, None, h, c, weights, case.mode, True, d_states, *new
        )
        leaves: list[Any] = [x, h, c, *weights, reset_h, reset_c]
        assert [g is None for g in ours] == [v is None for v in leaves]
        expected = torch.autograd.grad(
            [v for v, slope in zip(results, slopes, strict=True) if slope is not None],
            [v for v in leaves if v is not None],
            [slope for slope in slopes if slope is not None],
            allow_unused=True,
            materialize_grads=True,
        )
        for a, b in zip([g for g in ours if g is not None], expected, strict=True):
            close(a, b)


def test_the_backward_by_hand_takes_states_of_packed_rows() -> None:
    case = Case("LSTM", D=2)
    (h, c), weights = drawn_states(case, 3), drawn_weights(case)
    x, batch_sizes = leaf(6, I), torch.tensor([3, 2, 1])
    states = reference.layer(x, batch_sizes, h, c, weights, "LSTM", True)[3]
    slope = torch.randn_like(states)
    ours = reference.layer_backward(
        None, None, None, x, batch_sizes, h, c, weights, "LSTM", True, slope
    )
    assert ours[-2:] == [None, None]
    leaves: list[Any] = [x, h, c, *weights]
    expected = torch.autograd.grad(states, leaves, slope, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours[:-2], expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_second_derivatives_are_right(mode: str) -> None:
    G, D, has_c = GATES[mode], 2, mode == "LSTM"
    lengths, resets = torch.tensor([3, 1]), torch.tensor([[0, 1], [1, 0], [0, 1]]).bool()
    weights = [leaf(*s) for _ in range(D) for s in ((G, 1), (G, 1))]
    states = [leaf(D, n, 1) for n in (2, 1) for _ in range(1 + has_c)]

    def unpack(x: Tensor, *others: Tensor) -> tuple[Any, ...]:
        h, *rest = others[: len(states)]
        c, reset_h, reset_c = rest if has_c else (None, rest[0], None)
        return (x, None, h, c, [*others[len(states) :]], mode, False), (reset_h, reset_c)

    def forward(*leaves: Tensor) -> Any:
        plain, reset_states = unpack(*leaves)
        results = reference.layer(*plain, lengths, resets, *reset_states)
        return results if has_c else results[:2]

    def backward(slope: Tensor, state_slope: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        plain, reset_states = unpack(*leaves)
        found = reference.layer_backward(
            slope, None, None, *plain, state_slope, lengths, resets, *reset_states
        )
        return tuple(g for g in found if g is not None)

    leaves = [leaf(3, 2, 1), *states, *weights]
    assert torch.autograd.gradgradcheck(forward, leaves)
    slopes = [leaf(3, 2, D), leaf(3, 2, D).requires_grad_(has_c)]
    assert torch.autograd.gradcheck(backward, [*slopes, *leaves])


@pytest.mark.parametrize("mode", MODES)
def test_lengths_and_resets_may_differ_under_vmap(mode: str) -> None:
    case = Case(mode, D=2)
    x, (h, c), weights = (
        torch.randn(3, T, B, I).double(),
        drawn_states(case, B),
        drawn_weights(case),
    )
    lengths = torch.stack((LENGTHS, LENGTHS.flip(0), WHOLE))
    resets = torch.stack((RESETS, RESETS.flip(0), RESETS.flip(1)))

    def slope(x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
        def loss(x: Tensor) -> tuple[Tensor, Any]:
            results = reference.layer(x, None, h, c, weights, mode, True, lengths, resets)
            return results[0].square().sum(), results

        return torch.func.grad(loss, has_aux=True)(x)

    at_once = torch.func.vmap(slope)(x, lengths, resets)
    alone = [slope(*each) for each in zip(x, lengths, resets, strict=True)]
    close(at_once[0], torch.stack([g for g, _ in alone]))
    for k, value in enumerate(at_once[1]):
        close(value, torch.stack([results[k] for _, results in alone]))


# --- stack


@pytest.mark.parametrize("mode", MODES)
def test_the_stack_gives_the_states_of_the_layers_asked_for(mode: str) -> None:
    case = Case(mode, D=2)
    first = drawn_weights(case)
    second = [leaf(len(w), 2 * H) if w.size(-1) == I else leaf(*w.shape) for w in first]
    h, c = drawn_states(case._replace(L=2), B)
    reset_h, reset_c = drawn_states(case._replace(L=2), 1)
    outputs, of_layers, x = [], [], leaf(T, B, I)
    input = x
    for i, weights in enumerate((first, second)):
        own = slice(2 * i, 2 * i + 2)
        pieces = [None if s is None else s[own] for s in (h, c, reset_h, reset_c)]
        input, _, _, states = reference.layer(
            input, None, *pieces[:2], weights, mode, True, LENGTHS, RESETS, *pieces[2:]
        )
        outputs.append(input)
        of_layers.append(states if case.has_c else input)
    run = partial(reference.stack, x, None, h, c, first + second, mode, True, 2, 0.0, True, True)
    for asked, expected in enumerate((torch.empty(0), of_layers[-1], torch.stack(of_layers))):
        y, *_, states = run(LENGTHS, RESETS, reset_h, reset_c, asked)
        assert torch.equal(y, outputs[-1])
        assert torch.equal(states, expected.to(states))
