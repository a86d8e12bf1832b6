"""Calls drawn at random, held to float64: what a fuzzer draws, how a case is run, what must hold.

A Case is a Problem and everything else that a call may bring along: the lengths of its rows, who
wants a gradient, how each tensor lies in memory, threads, and from where the recurrence is called.
Layouts are ours alone to bear: torch.nn and the float64 run get plain copies. It is printed as the
expression that makes it again, so that what a fuzzer found is pasted into a test as it stands;
fuzz_cases.py draws them.

What torch.nn does not have, lengths, resets and states of every step, is held to the definition in
float64. The accuracy asked for is torch.nn's on the same rows packed where these say all, else the
definition's in the dtype under test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional
from support.accuracy import assert_as_accurate_as
from support.fuzz_frozen import frozen, is_due
from support.guarded import ENDS, guard
from support.oracle import refusal, tensors_of
from support.problems import Problem, make
from support.theirs import THEIRS, TORCHS, by_definition, is_ours, name_of

OUTPUTS = ("output", "h_n", "c_n", "states")
LAYOUTS = ("plain", "offset", "bytes", "strided", "rows", "transposed", "expanded", "windows")
PACKED = ("sorted", "unsorted")
# torch.nn's error in a result of few numbers is luck. So where ours exceeds the rule, up to this
# many draws of other values decide.
DRAWS = 21
# Of a layer's gates, where checkpoint_every is "auto": 10 KiB, which some need and others do not.
RESERVE_MB = "0.01"


@dataclass(frozen=True)
class Case:
    """A call of ``problem``, of which `frozen`, `use` and `strided` are unused.

    ``lengths`` (of a packed sequence, or the argument where the problem has some) and ``needs``
    (which weights want a gradient) repeat as often as it takes. ``used``: the outputs with a
    gradient. ``x``, ``hx``, ``weights``, ``slopes``, ``course`` (lengths, resets and reset states):
    one of LAYOUTS each. ``scale``: of the input. ``guard``: which side of each block ends its page,
    where preloaded.
    """

    problem: Problem
    lengths: tuple[int, ...] = (1,)
    call: str = "module"
    x: str = "plain"
    hx: str = "plain"
    weights: str = "plain"
    slopes: str = "plain"
    course: str = "plain"
    x_grad: bool = True
    needs: tuple[bool, ...] = (True,)
    used: tuple[str, ...] = OUTPUTS
    threads: int = 1
    scale: float = 1.0
    poison: bool = True
    guard: int = ENDS
    seed: int = 0

    @property
    def sorted_lengths(self) -> list[int]:
        """Of packed sequences, in the order of their rows."""
        return sorted(islice(cycle(self.lengths), self.problem.B), reverse=True)

    @property
    def packs(self) -> bool:
        """Whether torch.nn computes the same from its rows packed: it knows no row without steps,
        and draws dropout for packed rows alone."""
        p = self.problem
        plain = p.resets == "none" and not p.states and p.dropout in (0, 1)
        rows = p.B > 0 and p.form != "unbatched" and all(self.lengths)
        return p.mode in TORCHS and p.lengths != "none" and plain and rows


def lay(values: Tensor, layout: str) -> Tensor:
    """A tensor of this layout, of these values where it can hold as many."""
    if not values.numel() or not values.dim():
        return values
    shape = values.shape
    past = torch.nan if values.is_floating_point() else 1  # between the elements
    if layout in ("offset", "bytes"):  # off the alignment of a vector, and of an element
        skip = 3 * values.element_size() + (layout == "bytes")
        size = values.numel() * values.element_size()
        memory = bytearray(skip + size)
        flat = torch.frombuffer(memory, dtype=torch.uint8)
        flat[skip:] = values.contiguous().view(-1).view(torch.uint8)
        return torch.frombuffer(memory, dtype=values.dtype, offset=skip).view(shape)
    if layout == "strided":
        wide = values.new_full((*shape[:-1], 2 * shape[-1] + 1), past)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "rows":
        wide = values.new_full((*shape[:-1], shape[-1] + 3), past)
        wide[..., 2:-1] = values
        return wide[..., 2:-1]
    if layout == "transposed":
        back = tuple(range(values.dim()))[::-1]
        return values.permute(back).contiguous().permute(back)
    if layout == "expanded":
        return values[:1].expand(shape)
    if layout == "windows":  # each a step further along one series
        series = torch.arange(sum(shape) - values.dim() + 1) % values.numel()
        return values.reshape(-1)[series].as_strided(shape, (1,) * values.dim())
    return values


@dataclass(frozen=True)
class Tensors:
    """What a call is given: input, states, weights, the slopes of its outputs, reset states, and
    lengths and resets by name."""

    x: Tensor
    states: list[Tensor]
    weights: list[Tensor]
    slopes: dict[str, Tensor]
    reset_states: list[Tensor]
    course: dict[str, Tensor]

    def all(self) -> list[Tensor]:
        others = [*self.reset_states, *self.course.values()]
        return [self.x, *self.states, *self.weights, *self.slopes.values(), *others]

    def plain(self, dtype: torch.dtype) -> Tensors:
        """Copies that lie as torch makes them."""

        def copy(t: Tensor) -> Tensor:
            return t.detach().to(dtype).clone(memory_format=torch.contiguous_format)

        return self.map(copy)

    def rounded_again(self, generator: torch.Generator) -> Tensors:
        """Each number one rounding away, up or down."""

        def nudge(t: Tensor) -> Tensor:
            signs = torch.randint(0, 2, t.shape, generator=generator).to(t) * 2 - 1
            return t * (1 + torch.finfo(t.dtype).eps * signs)

        return self.map(nudge)

    def map(self, f: Callable[[Tensor], Tensor]) -> Tensors:
        slopes = {k: f(v) for k, v in self.slopes.items()}
        states, weights, resets = (
            [*map(f, tensors)] for tensors in (self.states, self.weights, self.reset_states)
        )
        return Tensors(f(self.x), states, weights, slopes, resets, self.course)


def tensors(case: Case) -> Tensors:
    """Drawn in float64 and rounded, laid out as the case says."""
    p = case.problem
    generator = torch.Generator().manual_seed(case.seed)

    def draw(layout: str, *shape: int) -> Tensor:
        values = torch.randn(shape, dtype=torch.float64, generator=generator)
        return lay(values.to(p.dtype), layout)

    def along(features: int) -> tuple[int, ...]:
        if p.form in PACKED:
            return (sum(case.sorted_lengths), features)
        by_form = {"unbatched": (p.T,), "batch_first": (p.B, p.T)}
        return (*by_form.get(p.form, (p.T, p.B)), features)

    batch = () if p.form == "unbatched" else (p.B,)
    h_size = p.P or p.H
    final = {"h_n": (p.L * p.D, *batch, h_size)}
    if p.mode == "LSTM":
        final["c_n"] = (p.L * p.D, *batch, p.H)
    states = [] if p.hx == "none" else [draw(case.hx, *shape) for shape in final.values()]
    x = lay(draw("plain", *along(p.I)) * case.scale, case.x)
    module = make(p, THEIRS, device="meta")
    bound = p.H**-0.5
    weights = [draw("plain", *w.shape).clamp(-2, 2) * (bound / 2) for w in module.parameters()]
    shapes = {"output": along(p.D * h_size), **final}
    layers = (p.L,) if p.states == "all" and p.form not in PACKED else ()
    for i in range(0 if not p.states else p.L if p.states == "all" and not layers else 1):
        shapes[f"states {i}"] = (*layers, *along(p.D * p.H))
    slopes = {k: draw(case.slopes, *s) for k, s in shapes.items() if k.split()[0] in case.used}
    one = () if p.form == "unbatched" else (p.B if p.reset_state == "rows" else 1,)
    of_h_and_c = [] if p.reset_state == "none" else [h_size, p.H][: len(final)]
    reset_states = [draw(case.course, p.L * p.D, *one, size) for size in of_h_and_c]
    course = {k: lay(v, case.course) for k, v in lengths_and_resets(case, generator).items()}
    weights = [lay(w, case.weights) for w in weights]
    return Tensors(x, states, weights, slopes, reset_states, course)


def lengths_and_resets(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """Of those two arguments the ones that the problem has."""
    p, found = case.problem, {}
    one = p.form == "unbatched"
    if p.lengths != "none":
        lengths = torch.tensor([*islice(cycle(case.lengths), p.B)], dtype=torch.int64)
        found["lengths"] = lengths[0] if one else lengths
    if p.resets != "none":
        share = {"sparse": 0.1, "dense": 0.6, "all": 1.0}[p.resets]
        resets = torch.rand((p.T, p.B), generator=generator) < share
        found["resets"] = resets[:, 0] if one else resets.t() if p.form == "batch_first" else resets
    return found


def packed_by_torch(case: Case, module: nn.RNNBase, input: Tensor, hx: Any) -> Any:
    """By torch.nn, from rows packed and padded again."""
    lengths = torch.tensor([*islice(cycle(case.lengths), case.problem.B)])
    packed = pack_padded_sequence(input, lengths, module.batch_first, enforce_sorted=False)
    output, final = module(packed, hx)
    return pad_packed_sequence(output, module.batch_first, total_length=case.problem.T)[0], final


def theirs(case: Case, module: nn.RNNBase, input: Any, hx: Any, extra: dict[str, Any]) -> Any:
    """The module's results by torch.nn where it has the arguments, or packs; else, and in the
    float64 run, by the definition."""
    if case.problem.is_torchs:
        return module(input, hx)
    if case.packs and input.dtype == case.problem.dtype:
        return packed_by_torch(case, module, input, hx)
    return by_definition(module, input, hx, **extra)


def called(
    case: Case, module: nn.RNNBase, input: Any, hx: Any, extra: dict[str, Any]
) -> dict[str, Tensor]:
    """Output, h_n, an LSTM's c_n and the states of every step, however they are asked for."""
    p = case.problem
    if case.call == "cell" and is_ours(module):
        name = name_of(p.mode)
        options: dict[str, Any] = {"nonlinearity": p.mode[4:].lower()} if name == "RNN" else {}
        cell = getattr(fusedrnn, name + "Cell")(p.I, p.H, p.bias, device="meta", **options)
        own = zip(dict(cell.named_parameters()), module.parameters(), strict=True)
        states = hx if isinstance(hx, tuple) else None if hx is None else (hx,)
        first = None if states is None else tuple(s[0] for s in states)
        hx = first if p.mode == "LSTM" or first is None else first[0]
        result = torch.func.functional_call(cell, dict(own), (input[0], hx))
        h, *c = result if p.mode == "LSTM" else (result,)
        return dict(zip(OUTPUTS, [s.unsqueeze(0) for s in (h, h, *c)], strict=False))
    if case.call == "functional" and is_ours(module):
        options = {"nonlinearity": p.mode[4:].lower()} if p.mode.startswith("RNN") else {}
        found = getattr(functional, name_of(p.mode).lower())(
            input,
            hx,
            list(module.parameters()),
            has_biases=p.bias,
            num_layers=p.L,
            dropout=p.dropout,
            training=True,
            bidirectional=p.bidirectional,
            batch_first=p.form == "batch_first",
            **options,
            **extra,
        )
    else:
        ours = is_ours(module)
        found = module(input, hx, **extra) if ours else theirs(case, module, input, hx, extra)
    output, final, *each = found
    results = dict(zip(OUTPUTS, tensors_of((output, final)), strict=False))
    return results | {f"states {i}": v for i, v in enumerate(tensors_of(each))}


def run(case: Case, namespace: Any, given: Tensors, threads: int = 1) -> dict[str, Tensor | None]:
    """Outputs with and without autograd, and gradients, of one namespace's module."""
    p = case.problem
    module = make(p, namespace, device="meta")
    own = zip([*module._parameters], given.weights, cycle(case.needs), strict=False)
    for name, value, needs in own:
        setattr(module, name, nn.Parameter(value, requires_grad=needs))
    x = given.x.detach().requires_grad_(case.x_grad)
    states = [s.detach().requires_grad_(p.hx == "grad") for s in given.states]
    input: Any = x
    if p.form in PACKED:
        sizes = [sum(n > t for n in case.sorted_lengths) for t in range(case.sorted_lengths[0])]
        order = back = None
        if p.form == "unsorted":
            order = torch.randperm(p.B, generator=torch.Generator().manual_seed(case.seed))
            back = order.argsort()
        input = PackedSequence(x, torch.tensor(sizes), order, back)
    resets = [s.detach().requires_grad_(p.hx != "given") for s in given.reset_states]
    hx, reset_state = (
        (tuple(s) if p.mode == "LSTM" else s[0]) if s else None for s in (states, resets)
    )
    extra: dict[str, Any] = given.course | {
        "reset_state": reset_state,
        "return_states": p.states,
        "checkpoint_every": p.every,
    }
    if case.call == "cell":
        extra = {}
    torch.set_num_threads(threads)
    torch.default_generator.manual_seed(case.seed)  # for dropout
    outputs = called(case, module, input, hx, extra)
    results: dict[str, Tensor | None] = dict(outputs)
    used = {k: v for k, v in outputs.items() if k in given.slopes and v.requires_grad}
    if used:
        torch.autograd.backward(list(used.values()), [given.slopes[k] for k in used])
    results["grad input"] = x.grad
    results |= {f"grad state {i}": s.grad for i, s in enumerate(states)}
    results |= {f"grad reset state {i}": s.grad for i, s in enumerate(resets)}
    results |= {f"grad {k}": v.grad for k, v in module.named_parameters()}
    if namespace is fusedrnn:
        torch.default_generator.manual_seed(case.seed)
        with torch.no_grad():
            again = called(case, module, input, hx, extra)
            if is_due(case):
                plain = replace(case, call="module")
                each = partial(called, plain, input=input, hx=hx, extra=extra)
                results |= frozen(case, module, lambda low: each(module=low), input, hx)
        results |= {f"{k} without autograd": v for k, v in again.items()}
    return results


@contextmanager
def hostile(case: Case, poison: bool) -> Iterator[None]:
    """Memory as bad as it may be: nan until written, and ending where the tensors do."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(poison)
    budget = os.environ.get("FUSEDRNN_RESERVE_MB", "")
    os.environ["FUSEDRNN_RESERVE_MB"] = RESERVE_MB
    guard(case.guard)
    try:
        yield
    finally:
        guard(0)
        os.environ["FUSEDRNN_RESERVE_MB"] = budget
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def bits(tensor: Tensor) -> Tensor:
    """All of the memory behind it, what it skips included."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


Results = dict[str, Tensor | None]


def three(case: Case) -> tuple[Results, Results, Results]:
    """Ours, torch.nn's and the float64 run's, and what has to hold of ours alone."""
    with hostile(case, case.poison):
        given = tensors(case)
        before = [bits(t) for t in given.all()]
        ours = run(case, fusedrnn, given, case.threads)
        for was, t in zip(before, given.all(), strict=True):
            assert torch.equal(was, bits(t)), "an operand was written to"
    # Gates made again in backward have the bits of kept ones.
    all_kept = replace(case, problem=replace(case.problem, every=None))
    with hostile(case, not case.poison):
        again = run(all_kept, fusedrnn, given)
    for name, value in ours.items():
        other = again[name]
        assert (value is None) == (other is None), name
        if value is not None and other is not None:
            assert torch.equal(value, other), (
                f"{name}: other bits, on one thread with all gates kept"
            )
    dtype = case.problem.dtype
    plain = given.plain(torch.float64)
    exact = run(case, THEIRS, plain)
    if dtype == torch.float64:
        # torch.nn's error does not show against itself. What a rounding of every operand does to
        # its results stands in for it.
        nudged = plain.rounded_again(torch.Generator().manual_seed(case.seed))
        return ours, run(case, THEIRS, nudged), exact
    return ours, run(case, THEIRS, given.plain(dtype)), exact


def compare(name: str, ours: Tensor | None, theirs: Tensor | None, exact: Tensor | None) -> None:
    if theirs is None or exact is None:
        assert ours is None or not ours.count_nonzero(), f"{name}: expected no gradient"
    else:
        assert ours is not None, f"{name}: expected a gradient, got None"
        assert_as_accurate_as(ours, theirs, exact, name=name)


def holds(name: str, ours: Tensor | None, theirs: Tensor | None, exact: Tensor | None) -> bool:
    try:
        compare(name, ours, theirs, exact)
    except AssertionError:
        return False
    return True


def is_smooth(case: Case) -> bool:
    """Whether one rounding can't change much: no unit at relu's kink, none saturated."""
    return case.problem.mode != "RNN_RELU" and case.scale <= 1


def is_gross(ours: Tensor, theirs: Tensor, exact: Tensor) -> bool:
    """Whether half of the digits are wrong."""
    error, their_error = ((t.double() - exact).abs().nan_to_num(0).max() for t in (ours, theirs))
    half = torch.finfo(ours.dtype).eps ** 0.5 * exact.abs().nan_to_num(0).max()
    return bool(error > 10 * their_error + half)


def check(case: Case) -> int:
    """Assert that ours is as accurate as torch.nn, writes nothing of its operands, and repeats.

    Returns how many more draws of values it took to decide.
    """
    if case.problem.T == 0:
        given = tensors(case)
        ours, theirs = (refusal(partial(run, case, n, given))[:2] for n in (fusedrnn, THEIRS))
        assert ours == theirs
        return 0
    results = three(case)
    draws: list[tuple[Results, Results, Results]] = []
    for name in results[0]:
        of = name.removesuffix(" without autograd").removesuffix(" frozen")

        def values(draw: tuple[Results, Results, Results], n: str = name, o: str = of) -> Any:
            return draw[0][n], draw[1][o], draw[2][o]

        try:
            compare(name, *values(results))
        except AssertionError as error:
            if "exceeds" not in str(error):
                raise
            gross = is_gross(*values(results))
            if is_smooth(case) and gross:
                raise
            # One rounding of a saturated unit outweighs all others; of float64 no digits are known
            # beyond its own. Which of two roundings is the better one is luck there, in any draw.
            if not gross and (case.scale > 1 or case.problem.dtype == torch.float64):
                continue
            # Other values decide: what is inaccurate is so in most draws, luck is not.
            votes: list[bool] = []
            while max(map(votes.count, (True, False))) <= DRAWS // 2:
                if len(votes) == len(draws):
                    draws.append(three(replace(case, seed=case.seed + 1000 * len(draws) + 1000)))
                votes.append(holds(name, *values(draws[len(votes)])))
            if votes.count(False) > DRAWS // 2:
                raise AssertionError(f"in most of {len(votes)} draws, {error}") from None
    return len(draws)
