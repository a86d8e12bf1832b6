"""Lengths, resets and their like, wrong in each way they can be, are refused in one line that names
the argument, what was expected and what came: with gradients and without, by layer or function."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedrnn
from fusedrnn import functional
from support.oracle import packed, refusal, tensors_of
from support.theirs import MODES, name_of

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = torch.tensor([4, 0, 6, 2])
RESETS = torch.zeros(T, B, dtype=torch.bool)
STATE = torch.zeros(4, 1, H)
Case = tuple[type[Exception], str, Any]

# Kind of error, what the message says, and the argument itself.
WRONG_LENGTHS: dict[str, Case] = {
    "beyond T": (RuntimeError, "from 0 to T = 6, got 7", torch.tensor([4, 0, 7, 2])),
    "far beyond T": (RuntimeError, "got 4611686018427387904", torch.tensor([1 << 62, 0, 6, 2])),
    "negative": (RuntimeError, "from 0 to T = 6, got -1", torch.tensor([4, 0, 6, -1])),
    "float32": (RuntimeError, r"Long \[4\].*got Float", LENGTHS.float()),
    "int32": (RuntimeError, r"Long \[4\].*got Int", LENGTHS.int()),
    "bool": (RuntimeError, r"Long \[4\].*got Bool", LENGTHS.bool()),
    "of too few rows": (RuntimeError, r"Long \[4\].*got Long \[3\]", LENGTHS[:3]),
    "2-D": (RuntimeError, r"Long \[4\].*got Long \[1, 4\]", LENGTHS[None]),
    "0-D": (RuntimeError, r"Long \[4\].*got Long \[\]", LENGTHS[0]),
    "sparse": (NotImplementedError, "must be strided, got Sparse", LENGTHS.to_sparse()),
    "on meta": (RuntimeError, "on the CPU.*got meta", LENGTHS.to("meta")),
    "a list": (TypeError, "Tensor or None, got list", [4, 0, 6, 2]),
    "a number": (TypeError, "Tensor or None, got int", 4),
    "an array": (TypeError, "Tensor or None, got ndarray", LENGTHS.numpy()),
}
WRONG_RESETS: dict[str, Case] = {
    "int64": (RuntimeError, r"Bool \[6, 4\].*got Long", RESETS.long()),
    "float32": (RuntimeError, r"Bool \[6, 4\].*got Float", RESETS.float()),
    "uint8": (RuntimeError, r"Bool \[6, 4\].*got Byte", RESETS.byte()),
    "turned": (RuntimeError, r"Bool \[6, 4\].*got Bool \[4, 6\]", RESETS.t()),
    "of too few steps": (RuntimeError, r"Bool \[6, 4\].*got Bool \[5, 4\]", RESETS[:5]),
    "1-D": (RuntimeError, r"Bool \[6, 4\].*got Bool \[4\]", RESETS[0]),
    "3-D": (RuntimeError, r"Bool \[6, 4\].*got Bool \[6, 4, 1\]", RESETS[..., None]),
    "sparse": (NotImplementedError, "must be strided, got Sparse", RESETS.to_sparse()),
    "on meta": (RuntimeError, "on the CPU.*got meta", RESETS.to("meta")),
    "a bool": (TypeError, "Tensor or None, got bool", True),
    "a list": (TypeError, "Tensor or None, got list", RESETS.tolist()),
}
# In place of one of reset_state's tensors, [L*D, B or 1, H].
WRONG_STATES: dict[str, tuple[type[Exception], str, Callable[[Tensor], Any]]] = {
    "of too few layers": (RuntimeError, r"got \[3, 1, 5\]", lambda s: s[:3]),
    "of two rows": (RuntimeError, r"got \[\d, 2, 5\]", lambda s: s.repeat(1, 2, 1)),
    "too narrow": (RuntimeError, r"got \[\d, 1, 4\]", lambda s: s[..., :4]),
    "2-D": (RuntimeError, r"got \[4, 5\]", lambda s: s[:, 0]),
    "float64": (RuntimeError, "must be Float.*got Double", lambda s: s.double()),
    "int64": (RuntimeError, "must be Float.*got Long", lambda s: s.long()),
    "a number": (TypeError, "Tensors?.*got int", lambda s: 1),
    "a string": (TypeError, "Tensors?.*got str", lambda s: "x"),
}
WRONG_OPTIONS: list[tuple[str, type[Exception], str, Any]] = [
    ("checkpoint_every", ValueError, "must be 1 or more, got 0", 0),
    ("checkpoint_every", ValueError, "must be 1 or more, got -3", -3),
    ("checkpoint_every", ValueError, "\"auto\" or None, got 'x'", "x"),
    ("checkpoint_every", TypeError, '"auto" or None, got float', 2.5),
    ("checkpoint_every", TypeError, '"auto" or None, got bool', True),
    ("checkpoint_every", TypeError, '"auto" or None, got Tensor', torch.tensor(2)),
    ("checkpoint_every", TypeError, '"auto" or None, got list', [1]),
    ("return_states", ValueError, "False, True or \"all\", got 'some'", "some"),
    ("return_states", ValueError, 'False, True or "all", got 1', 1),
    ("return_states", ValueError, 'False, True or "all", got None', None),
    ("return_states", ValueError, 'False, True or "all", got \\[', ["all"]),
    ("length", TypeError, "got 'length'", LENGTHS),
]


def made(mode: str, **options: Any) -> Any:
    if mode.startswith("RNN"):
        options["nonlinearity"] = mode[4:].lower()
    return getattr(fusedrnn, name_of(mode))(I, H, **options)


def stacked(mode: str) -> Any:
    """Two layers in both directions: four states."""
    return made(mode, num_layers=2, bidirectional=True)


def refused(
    call: Callable[..., Any], kind: type[Exception], name: str, words: str, **given: Any
) -> None:
    """Refused by this kind of error, in one line that has these words after the argument's name."""
    for grad in (True, False):  # what needs no gradient may take a shorter way
        with torch.set_grad_enabled(grad):
            found = refusal(partial(call, **given))
        assert found[0] is kind, found
        assert "\n" not in found[1], found
        assert re.fullmatch(f"fusedrnn: .*{name}.*{words}.*", found[1]), found


def both(mode: str) -> list[Callable[..., Any]]:
    """A module's call on a good input, and its function's."""
    module, x = stacked(mode), torch.randn(T, B, I)
    weights = [w for group in module.all_weights for w in group]
    function = getattr(functional, name_of(mode).lower())
    options: dict[str, Any] = {"nonlinearity": mode[4:].lower()} if mode.startswith("RNN") else {}
    options |= {"num_layers": 2, "bidirectional": True}
    return [partial(module, x), partial(function, x, None, weights, **options)]


@pytest.mark.parametrize("what", WRONG_LENGTHS)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_lengths_are_refused(mode: str, what: str) -> None:
    kind, words, lengths = WRONG_LENGTHS[what]
    for call in both(mode):
        refused(call, kind, "lengths", words, lengths=lengths)
        refused(call, kind, "lengths", words, lengths=lengths, resets=RESETS, checkpoint_every=2)
        call(lengths=LENGTHS)


@pytest.mark.parametrize("what", WRONG_RESETS)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_resets_are_refused(mode: str, what: str) -> None:
    kind, words, resets = WRONG_RESETS[what]
    for call in both(mode):
        refused(call, kind, "resets", words, resets=resets)
        refused(call, kind, "resets", words, resets=resets, lengths=LENGTHS, return_states=True)
        call(resets=RESETS)


@pytest.mark.parametrize("what", WRONG_STATES)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_reset_states_are_refused(mode: str, what: str) -> None:
    kind, words, change = WRONG_STATES[what]
    count = 1 + (mode == "LSTM")
    for call in both(mode):
        for i in range(count):
            states = tuple(change(STATE) if i == k else STATE for k in range(count))
            given = states if count == 2 else states[0]
            refused(call, kind, "reset_(state|h|c)", words, resets=RESETS, reset_state=given)
        call(resets=RESETS, reset_state=(STATE, STATE) if count == 2 else STATE)


@pytest.mark.parametrize("mode", MODES)
def test_reset_states_of_another_number_are_refused(mode: str) -> None:
    for call in both(mode):
        given = (STATE, STATE) if mode == "LSTM" else STATE
        refused(call, RuntimeError, "reset_state", "None without resets", reset_state=given)
        wrong = partial(refused, call, name="reset_state", resets=RESETS)
        if mode != "LSTM":
            wrong(TypeError, words="got tuple", reset_state=(STATE, STATE))
            continue
        wrong(TypeError, words=r"\(h, c\), got one Tensor", reset_state=STATE)
        wrong(TypeError, words=r"\(h, c\), got int", reset_state=1)
        wrong(TypeError, words=r"\(h, c\), got str", reset_state="hc")
        for few in ((), (STATE,), (STATE, STATE, STATE)):
            wrong(RuntimeError, words=rf"\(h, c\), got {len(few)}", reset_state=few)


@pytest.mark.parametrize(("name", "kind", "words", "given"), WRONG_OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_options_are_refused(
    mode: str, name: str, kind: type[Exception], words: str, given: Any
) -> None:
    for call in both(mode):
        refused(call, kind, name, words, **{name: given})


@pytest.mark.parametrize("mode", MODES)
def test_input_with_lengths_of_its_own_takes_no_others(mode: str) -> None:
    module, rows = stacked(mode), [torch.randn(n, I) for n in (4, 2)]
    lengths, resets = torch.tensor([4, 2]), torch.zeros(4, 2, dtype=torch.bool)
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    for input in (packed(rows), packed(rows[::-1], enforce_sorted=False), jagged):
        words = "None with .*pass padded input"
        refused(partial(module, input), RuntimeError, "lengths", words, lengths=lengths)
        refused(partial(module, input), RuntimeError, "resets", words, resets=resets)
        module(input, return_states=True, checkpoint_every=2)


@pytest.mark.parametrize("mode", MODES)
def test_unbatched_input_takes_arguments_without_a_batch(mode: str) -> None:
    call = partial(stacked(mode), torch.randn(T, I))
    has_c = mode == "LSTM"

    def pair(s: Tensor) -> Any:
        return (s, s) if has_c else s

    refused(call, RuntimeError, "lengths", "0-D, got 1-D", lengths=LENGTHS[:1])
    refused(call, RuntimeError, "lengths", "from 0 to T = 6, got 7", lengths=torch.tensor(7))
    refused(call, RuntimeError, "resets", "1-D, got 2-D", resets=RESETS[:, :1])
    given = {"resets": RESETS[:, 0], "reset_state": pair(STATE)}
    refused(call, RuntimeError, "reset_state", "2-D, got 3-D", **given)
    found = call(lengths=LENGTHS[0], resets=RESETS[:, 0], reset_state=pair(STATE[:, 0]))
    assert not tensors_of(found)[0][4:].count_nonzero()


@pytest.mark.parametrize("mode", MODES)
def test_shapes_are_told_as_the_caller_has_them(mode: str) -> None:
    call = partial(made(mode, batch_first=True), torch.randn(B, T, I))
    for wrong in (RESETS, RESETS.t()[:3], RESETS.t()[:, :5], RESETS[0], RESETS[..., None]):
        shape = re.escape(str(list(wrong.shape)))
        refused(
            call,
            RuntimeError,
            "resets",
            rf"\(B, T\), got {shape}",
            resets=wrong,
        )
    refused(call, RuntimeError, "resets", r"Bool.*got Long", resets=RESETS.t().long())
    call(resets=RESETS.t())


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_a_trace_refuses_as_a_call_does(mode: str) -> None:
    module, x = stacked(mode), torch.randn(T, B, I)

    def call(x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
        return module(x, lengths=lengths, resets=resets)[0]

    compiled: Any = torch.compile(call, backend="eager", fullgraph=True)
    compiled(x, LENGTHS, RESETS)
    with pytest.raises(RuntimeError, match="lengths must be from 0 to T = 6, got 7"):
        compiled(x, torch.tensor([7, 0, 1, 2]), RESETS)
    for lengths, resets in ((LENGTHS[:3], RESETS), (LENGTHS, RESETS.t()), (LENGTHS.int(), RESETS)):
        with pytest.raises(Exception, match=r"must be (Long|Bool) \["):
            compiled(x, lengths, resets)
