"""Problems to run three times: by fusedrnn, by torch.nn, and by the reference in float64.

A Problem is everything that decides a call: sizes, flags, which inputs require gradients
and which outputs are used. Weights and inputs are drawn in float64 and rounded to the dtype
under test, and the float64 run starts from the rounded values, so that all three compute
the same function. They are drawn on the CPU, whatever the device under test, and the float64 run
stays there. `covering` picks problems such that every pair of choices meets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from support.accuracy import assert_as_accurate_as
from support.oracle import tensors_of
from support.theirs import MODES as MODES
from support.theirs import THEIRS, by_definition, name_of

SHORT = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Problem:
    """One call. ``form``: batched, batch_first, unbatched, sorted or unsorted (packed).

    ``hx``: none, given, or grad (given and requiring grad). ``frozen``: which weights require
    no grad: none, hh (the recurrent ones) or all. ``use``: which outputs have a gradient.
    ``strided``: input is a view with no unit stride. ``dropout`` acts as in training.

    Beyond torch.nn: ``lengths``: none, some (one of them 0), full (all T) or empty (all 0).
    ``resets``: none, no (nowhere), sparse, dense or all. ``reset_state``: none, one (a row for all)
    or rows. ``states``: what return_states is, ``every``: what checkpoint_every is.
    """

    mode: str = "LSTM"
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 6
    L: int = 1
    P: int = 0
    dtype: torch.dtype = torch.float32
    form: str = "batched"
    bidirectional: bool = False
    bias: bool = True
    dropout: float = 0.0
    hx: str = "none"
    frozen: str = "none"
    use: str = "all"
    strided: bool = False
    lengths: str = "none"
    resets: str = "none"
    reset_state: str = "none"
    states: bool | str = False
    every: int | str | None = None

    def __str__(self) -> str:
        words = [self.mode, SHORT[self.dtype]]
        words += [f"{k}{getattr(self, k)}" for k in "TBIH"]
        for field in fields(self)[5:]:
            value = getattr(self, field.name)
            if field.name != "dtype" and value != field.default:
                text = value if isinstance(value, str) else "" if value is True else str(value)
                words.append(field.name + text if field.name != "form" else str(value))
        return "-".join(words)

    @property
    def is_torchs(self) -> bool:
        """Whether torch.nn has what it asks for."""
        return self.lengths == self.resets == "none" and not self.states

    @property
    def D(self) -> int:
        """Directions."""
        return 1 + self.bidirectional


def device_under_test() -> torch.device:
    """Where ours and torch.nn's run: torch's default device, which ``--device`` sets."""
    return torch.get_default_device()


def on_device(problem: Problem) -> Problem:
    """The problem as the device under test can be held to it: cuDNN draws dropout of its own."""
    return problem if device_under_test().type == "cpu" else replace(problem, dropout=0.0)


def make(problem: Problem, namespace: Any, **factory: Any) -> nn.RNNBase:
    """The problem's module from ``fusedrnn`` or ``THEIRS``, on this device and of this dtype."""
    p = problem
    options: dict[str, Any] = {
        "num_layers": p.L,
        "bias": p.bias,
        "batch_first": p.form == "batch_first",
        "dropout": p.dropout,
        "bidirectional": p.bidirectional,
    }
    if p.mode == "LSTM":
        options["proj_size"] = p.P
    if p.mode.startswith("RNN"):
        options["nonlinearity"] = p.mode[4:].lower()
    module: nn.RNNBase = getattr(namespace, name_of(p.mode))(p.I, p.H, **options, **factory)
    return module


def build(problem: Problem, namespace: Any, device: torch.device | None = None) -> nn.RNNBase:
    """The problem's module with the problem's weights."""
    p = problem
    torch.manual_seed(1)
    module = make(p, namespace, dtype=torch.float64, device="cpu")
    module.to(device or device_under_test(), p.dtype)
    for name, parameter in module.named_parameters():
        frozen = p.frozen == "all" or (p.frozen == "hh" and "weight_hh" in name)
        parameter.requires_grad_(not frozen)
    return module


def inputs(
    problem: Problem, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Any, tuple[Tensor, ...], list[Tensor]]:
    """(input, states or (), the leaves among them that may get a gradient)."""
    p = problem
    generator = torch.Generator("cpu").manual_seed(2)
    device = device or device_under_test()

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu")
        return values.to(p.dtype).to(device, dtype)

    shape = {"unbatched": (p.T, p.I), "batch_first": (p.B, p.T, p.I)}.get(p.form, (p.T, p.B, p.I))
    x = draw(*shape)
    if p.strided:
        wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), torch.nan, dtype=dtype, device=device)
        wide[..., 1::2] = x
        x = wide[..., 1::2].detach()
    leaves = [x.requires_grad_()]
    input: Any = x
    if p.form in ("sorted", "unsorted"):
        lengths = torch.randint(1, p.T + 1, (p.B,), generator=generator, device="cpu")
        lengths[0] = p.T
        lengths = lengths.sort(descending=True).values
        if p.form == "unsorted":
            lengths = lengths[torch.randperm(p.B, generator=generator, device="cpu")]
        input = pack_padded_sequence(x, lengths, enforce_sorted=p.form == "sorted")
    states: tuple[Tensor, ...] = ()
    if p.hx != "none":
        batch = () if p.form == "unbatched" else (p.B,)
        states = (draw(p.L * p.D, *batch, p.P or p.H),)
        if p.mode == "LSTM":
            states += (draw(p.L * p.D, *batch, p.H),)
    if p.hx == "grad":
        leaves += [s.requires_grad_() for s in states]
    return input, states, leaves


def keywords(
    problem: Problem, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """(the arguments beyond torch.nn's, the leaves among them that get a gradient)."""
    p = problem
    generator = torch.Generator("cpu").manual_seed(6)
    device = device or device_under_test()
    one = p.form == "unbatched"
    B = 1 if one else p.B
    given: dict[str, Any] = {}
    if p.lengths != "none":
        lengths = torch.randint(0, p.T + 1, (B,), generator=generator, device="cpu")
        lengths[B // 2] = 0 if B > 1 else (p.T + 1) // 2
        lengths = {"full": torch.full_like(lengths, p.T), "empty": 0 * lengths}.get(
            p.lengths, lengths
        )
        given["lengths"] = (lengths[0] if one else lengths).to(device)
    if p.resets != "none":
        share = {"no": 0.0, "sparse": 0.1, "dense": 0.6, "all": 1.0}[p.resets]
        resets = torch.rand((p.T, B), generator=generator, device="cpu") < share
        if p.resets == "sparse":  # else a small problem may have none
            resets[p.T // 2, -1] = True
        resets = resets[:, 0] if one else resets.t() if p.form == "batch_first" else resets
        given["resets"] = resets.to(device)
    leaves: list[Tensor] = []
    if p.reset_state != "none":
        rows = () if one else (B if p.reset_state == "rows" else 1,)
        for width in [p.P or p.H, p.H][: 1 + (p.mode == "LSTM")]:
            shape = (p.L * p.D, *rows, width)
            values = torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu")
            leaves.append(values.to(p.dtype).to(device, dtype).requires_grad_())
        given["reset_state"] = tuple(leaves) if p.mode == "LSTM" else leaves[0]
    if p.states:
        given["return_states"] = p.states
    if p.every is not None:
        given["checkpoint_every"] = p.every
    return given, leaves


def run(problem: Problem, by: str, device: torch.device | None = None) -> dict[str, Tensor | None]:
    """Outputs and gradients by "fusedrnn", "torch" or "exact" (the reference in float64)."""
    p = on_device(problem)
    device = torch.device("cpu") if by == "exact" else device or device_under_test()
    module = build(p, fusedrnn if by == "fusedrnn" else THEIRS, device)
    if by == "exact":
        module.double()
    input, states, leaves = inputs(p, torch.float64 if by == "exact" else p.dtype, device)
    torch.manual_seed(3)  # for dropout
    threads = torch.get_num_threads()
    if by != "fusedrnn":  # per-step operators on several threads crawl on a busy machine
        torch.set_num_threads(1)
    hx: Any = (states if p.mode == "LSTM" else states[0]) if states else None
    extra, others = keywords(p, torch.float64 if by == "exact" else p.dtype, device)
    if by == "exact" or (by == "torch" and not p.is_torchs):
        found = by_definition(module, input, hx, **extra)
    else:
        found = module(input, hx, **(extra if by == "fusedrnn" else {}))
    output, final, *each = found
    data = output.data if isinstance(output, PackedSequence) else output
    outputs = [data, *final] if p.mode == "LSTM" else [data, final]
    names = ["output", "h_n", "c_n"][: len(outputs)]
    names += [f"states {i}" for i in range(len(tensors_of(each)))]
    outputs += tensors_of(each)
    results: dict[str, Tensor | None] = dict(zip(names, outputs, strict=True))
    used = [v for k, v in results.items() if v is not None and p.use in ("all", k.split()[0])]
    generator = torch.Generator("cpu").manual_seed(4)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator, device="cpu")
    slopes = [draw(v.shape).to(p.dtype).to(v) for v in used]
    torch.autograd.backward(used, slopes)
    torch.set_num_threads(threads)
    leaf_names = ("input", "hx", "cx")
    results |= {f"grad {k}": v.grad for k, v in zip(leaf_names, leaves, strict=False)}
    results |= {f"grad {k}": v.grad for k, v in zip(("reset h", "reset c"), others, strict=False)}
    results |= {f"grad {k}": v.grad for k, v in module.named_parameters()}
    return results


def check(problem: Problem, *, factor: float = 2) -> dict[str, Tensor | None]:
    """Assert that fusedrnn is as accurate as torch.nn, outputs and every gradient."""
    ours, theirs, exact = (run(problem, by) for by in ("fusedrnn", "torch", "exact"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected, reference = theirs[name], exact[name]
        if expected is None or reference is None:  # no path to the outputs used
            assert value is None or not value.count_nonzero(), f"{name}: expected no gradient"
        else:
            assert value is not None, f"{name}: expected a gradient, got None"
            assert_as_accurate_as(value, expected, reference, factor=factor, name=name)
    return ours


def covering(choices: Mapping[str, Sequence[Any]], *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Few rows in which every pair of values of any two choices occurs (a covering array)."""
    random_ = random.Random(seed)
    names = list(choices)
    missing = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(names, 2)
        for x, y in product(choices[a], choices[b])
    }

    def gain(row: dict[str, Any]) -> int:
        return sum(frozenset(pair) in missing for pair in combinations(row.items(), 2))

    while missing:
        # The best of a few random rows that contain one pair still missing.
        seed_pair = dict(min(missing, key=lambda pair: sorted(map(str, pair))))
        rows = [
            {name: random_.choice(choices[name]) for name in names} | seed_pair for _ in range(50)
        ]
        row = max(rows, key=gain)
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        yield row


def grid(mode: str, choices: Mapping[str, Sequence[Any]], *, seed: int = 0) -> list[Problem]:
    """A covering array of problems for ``mode``; choices it has no use for take their default."""
    problems = {}
    for row in covering(choices, seed=seed):
        problem = Problem(mode, **row)
        if mode != "LSTM":
            problem = replace(problem, P=0, use="all" if problem.use == "c_n" else problem.use)
        if problem.form in ("sorted", "unsorted"):
            problem = replace(problem, lengths="none", resets="none")
        if problem.resets == "none":
            problem = replace(problem, reset_state="none")
        if problem.use == "states" and not problem.states:
            problem = replace(problem, use="all")
        if problem.P >= problem.H:
            problem = replace(problem, P=0)
        if problem.form == "unbatched":
            problem = replace(problem, B=1)
        if problem.L == 1:
            problem = replace(problem, dropout=0.0)
        problems[str(problem)] = problem
    return list(problems.values())


def each(
    modes: Sequence[str], variants: Sequence[Mapping[str, Any]], **common: Any
) -> list[Problem]:
    """Every variant in every mode; projections only where there are any."""
    pairs = product(modes, variants)
    return [Problem(m, **{**common, **v}) for m, v in pairs if m == "LSTM" or "P" not in v]


# One of each thing that takes another path in the kernels; small enough to repeat everywhere.
_CUT = Problem(hx="grad", resets="dense", reset_state="rows")
CORE = [
    replace(problem, mode=mode)
    for mode in MODES
    for problem in (
        Problem(T=1, B=1, I=1, H=1),
        Problem(T=7, B=5, I=3, H=37, hx="grad", L=2, bidirectional=True),
        Problem(T=9, B=6, I=5, H=19, form="unsorted", hx="grad", bidirectional=True),
        Problem(T=4, B=2, H=100, bias=False, dtype=torch.float64, hx="given"),
        Problem(T=6, B=17, H=128, dtype=torch.bfloat16),
        Problem(T=3, B=3, H=33, dtype=torch.float16, form="sorted"),
        Problem(T=1, B=3, I=131, H=133, hx="grad"),
        Problem(T=5, B=4, I=257, H=131, form="sorted", hx="grad", bidirectional=True),
        replace(_CUT, T=9, B=6, I=5, H=19, bidirectional=True, lengths="some", states=True),
        replace(_CUT, T=80, B=16, H=37, reset_state="one", every=16),  # five pieces
    )
] + [
    Problem("LSTM", T=6, B=4, H=21, P=5, bidirectional=True, L=2, hx="grad"),
    Problem("LSTM", T=6, B=4, H=40, P=8, form="unsorted", hx="grad"),
]
