"""Every argument of every public function, wrong in each way it can be, is refused as by torch.nn.

The tables cross each argument with what is put in its place. torch.nn is the oracle for the type
of the exception; its text, where the checks are its own, is compared in test_modules.py and
test_cells.py. Where torch.nn answers by accident (or crashes: it reads past short weights of an
LSTM), the type stands here. Every text says what was expected and what came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import functional
from support.oracle import outcome, packed, pair, refusal, shown, states, tensors_of

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
NAMES = LAYERS + CELLS
WORDS = re.compile(
    r"(?i)(expected|must|should|has to|invalid|argument|have the same|takes|not at the same)"
)


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


NO_TENSOR: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda v: 1,
    "a string": lambda v: "x",
    "a list": lambda v: [v],
    "an array": lambda v: v.numpy(),
    "an empty tuple": lambda v: (),
}
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "0-D": lambda v: v.sum(),
    "1-D": lambda v: v.flatten(),
    "one dimension more": lambda v: v[None],
    "two dimensions more": lambda v: v[None, None],
    "no features": lambda v: v[..., :0],
    "more features": lambda v: torch.cat((v, v), -1),
    "float64": lambda v: v.double(),
    "float16": lambda v: v.half(),
    "int64": lambda v: v.long(),
    "bool": lambda v: v.bool(),
    "complex": lambda v: v.to(torch.complex64),
    "float8": lambda v: v.to(torch.float8_e4m3fn),
    "on meta": lambda v: v.to("meta"),
    "in mkldnn's layout": lambda v: v.to_mkldnn(),
}
# What torch.nn takes, or refuses in one of its functions and not in another.
ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda v: v.to_sparse(), "must be strided"),
    "nested": (lambda v: torch.nested.nested_tensor(list(v)), "must not be nested"),
    "freed": (freed, "needs a storage of"),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*nested tensors.*:UserWarning", "ignore:.*mkldnn.*:UserWarning"
)


def input_of(name: str) -> Tensor:
    return torch.randn(2, 3) if name in CELLS else torch.randn(4, 2, 3)


def state_of(name: str) -> Any:
    return states(name, *((2, 5) if name in CELLS else (1, 2, 5)))


def refused_alike(ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Both refuse, by the same type or one more precise, and ours says what was expected."""
    expected, actual = outcome(theirs), outcome(ours)
    if actual[0] == "returned":
        assert expected[0] == "returned", expected
        torch.testing.assert_close(tensors_of(actual[1]), tensors_of(expected[1]))
    elif expected[0] == "returned":  # by one of torch.nn's paths, and not by another
        assert issubclass(actual[0], RuntimeError), actual
        assert WORDS.search(actual[1]), actual
    else:
        assert issubclass(actual[0], expected[0]) or issubclass(expected[0], actual[0]), actual
        assert actual[0] is not Exception
        assert actual[1] == expected[1] or WORDS.search(actual[1]), actual


def refused(call: Callable[[], Any], kind: type[Exception], words: str = "") -> None:
    actual = refusal(call)
    assert actual[0] is kind or (kind is RuntimeError and issubclass(actual[0], kind)), actual
    assert words in actual[1], actual
    assert WORDS.search(actual[1]), actual


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", [*NO_TENSOR, *WRONG])
def test_input_that_is_wrong_is_refused_as_by_torch(name: str, what: str) -> None:
    ours, theirs = pair(name, 3, 5)
    wrong = (NO_TENSOR | WRONG)[what](input_of(name))
    refused_alike(partial(ours, wrong), partial(theirs, wrong))
    refused_alike(partial(ours, wrong, state_of(name)), partial(theirs, wrong, state_of(name)))


def with_state(name: str, i: int, change: Callable[[Tensor], Any]) -> Any:
    hx = state_of(name)
    return (
        change(hx)
        if not isinstance(hx, tuple)
        else tuple(change(h) if i == k else h for k, h in enumerate(hx))
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", [*NO_TENSOR, *WRONG])
def test_states_that_are_wrong_are_refused_as_by_torch(name: str, what: str) -> None:
    ours, theirs = pair(name, 3, 5)
    x = input_of(name)
    for i in range(1 + name.startswith("LSTM")):
        hx = with_state(name, i, (NO_TENSOR | WRONG)[what])
        refused_alike(partial(ours, x, hx), partial(theirs, x, hx))
    if name.startswith("LSTM"):
        for hx in ((), (state_of(name)[0],), "xy", 1, None):
            refused_alike(partial(ours, x, hx), partial(theirs, x, hx))
        wrong = (NO_TENSOR | WRONG)[what](state_of(name)[0])
        refused_alike(partial(ours, x, wrong), partial(theirs, x, wrong))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ODD)
def test_layouts_that_no_kernel_reads_are_refused_wherever_they_come(name: str, what: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    change, words = ODD[what]
    x = input_of(name)
    calls = [partial(module, change(x))]
    calls += [partial(module, x, with_state(name, i, change)) for i in range(1 + ("LSTM" in name))]
    for key, weight in list(module.named_parameters()):
        weights = {key: change(weight.detach())}
        calls.append(partial(torch.func.functional_call, module, weights, (x,)))
    for call in calls if what != "nested" else calls[:1]:
        actual = refusal(call)
        assert issubclass(actual[0], RuntimeError), actual
        # A view on the way to the operator is torch's own, and its words.
        assert words in actual[1] or "setStorage" in actual[1] or name in CELLS, actual


ROWS = [torch.ones(4, 3), torch.ones(2, 3)]  # named alike in every run
BATCH_SIZES: dict[str, tuple[Any, type[Exception]]] = {
    "rising": (torch.tensor([1, 2, 3]), RuntimeError),
    "zero": (torch.tensor([6, 0]), RuntimeError),
    "negative": (torch.tensor([7, -1]), RuntimeError),
    "too few": (torch.tensor([2, 2]), RuntimeError),
    "too many": (torch.tensor([4, 4]), RuntimeError),
    "wrapping around to the right sum": (
        torch.tensor([2**62 + 2] * 2 + [2**62 + 1] * 2),
        RuntimeError,
    ),
    "float": (torch.tensor([2.0, 2.0, 1.0, 1.0]), RuntimeError),
    "int32": (torch.tensor([2, 2, 1, 1], dtype=torch.int32), RuntimeError),
    "2-D": (torch.tensor([[2, 2, 1, 1]]), RuntimeError),
    "0-D": (torch.tensor(6), RuntimeError),
    "empty": (torch.tensor([], dtype=torch.int64), RuntimeError),
    "sparse": (torch.tensor([2, 2, 1, 1]).to_sparse(), RuntimeError),
    "freed": (freed(torch.tensor([2, 2, 1, 1])), RuntimeError),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("what", BATCH_SIZES)
@pytest.mark.parametrize("given", [False, True], ids=["no hx", "hx"])
def test_batch_sizes_that_are_wrong_are_refused(name: str, what: str, given: bool) -> None:
    batch_sizes, kind = BATCH_SIZES[what]
    module = getattr(fusedrnn, name)(3, 5)
    rows = PackedSequence(torch.cat(ROWS), batch_sizes)
    if not given:
        refused(partial(module, rows), kind)
    else:
        assert issubclass(refusal(partial(module, rows, state_of(name)))[0], Exception)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("what", WRONG)
def test_packed_data_that_are_wrong_are_refused_as_a_gru_of_torchs_refuses_them(
    name: str, what: str
) -> None:
    # torch.nn.LSTM checks nothing here.
    rows = packed(ROWS)
    wrong = rows._replace(data=WRONG[what](rows.data))
    refused_alike(partial(getattr(fusedrnn, name)(3, 5), wrong), partial(nn.GRU(3, 5), wrong))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("field", ["sorted_indices", "unsorted_indices"])
@pytest.mark.parametrize(
    "indices",
    [[0, 5], [-3, 0], [0.0, 1.0], [0], [[0, 1]], [True, False], 7, []],
    ids=str,
)
def test_orders_of_rows_that_are_wrong_are_refused_as_by_torch(
    name: str, field: str, indices: Any
) -> None:
    ours, theirs = pair(name, 3, 5)
    order = torch.tensor([0, 1])
    rows = PackedSequence(packed(ROWS).data, packed(ROWS).batch_sizes, order, order)
    rows = PackedSequence(*rows._replace(**{field: torch.tensor(indices)}))
    hx = state_of(name)
    refused_alike(partial(ours, rows, hx), partial(theirs, rows, hx))


OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_layers": (0, -1, 3, 1.5, None, "a", 2**63),
    "dropout": (-1.0, 2.0, float("nan"), None, "a"),
    "bidirectional": (True, "a"),
    "bias": ("a",),
    "training": ("a",),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("option", "values"), OPTIONS.items(), ids=str)
def test_options_made_wrong_after_construction_are_refused_as_by_torch(
    name: str, option: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        ours, theirs = pair(name, 3, 5, 2)
        for module in (ours, theirs):
            setattr(module, option, value)
        x = input_of(name)
        refused_alike(partial(ours, x), partial(theirs, x))


KEYWORDS: dict[str, tuple[Any, ...]] = {
    "has_biases": ("a", []),
    "num_layers": (None, 1.5, "a", []),
    "dropout": (None, "a", []),
    "training": ("a", []),
    "bidirectional": ("a", []),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("keyword", "values"), KEYWORDS.items(), ids=str)
def test_functions_refuse_keywords_of_another_type(
    name: str, keyword: str, values: tuple[Any, ...]
) -> None:
    run, weights = getattr(functional, name.lower()), [*nn.GRU(3, 5).parameters()]
    for value in values:
        call = partial(run, input_of(name), None, weights, **{keyword: value})
        refused(call, TypeError, keyword.removesuffix("ing"))


@pytest.mark.parametrize("name", LAYERS)
def test_functions_refuse_what_does_not_fit(name: str) -> None:
    run: Any = getattr(functional, name.lower())
    x, hx = input_of(name), state_of(name)
    weights = [*getattr(nn, name)(3, 5).parameters()]
    no_inputs: list[Any] = [None, 1, [x], "x"]
    for wrong in no_inputs:
        assert refusal(partial(run, wrong, None, weights))[0] in (AttributeError, TypeError)
    no_weights: list[Any] = [None, 1, "abcd", [None] * 4, [1, 2, 3, 4], [*weights[:3], None]]
    for wrong in no_weights:
        assert refusal(partial(run, x, hx, wrong))[0] is TypeError, wrong
    for few in ([], weights[:3], weights * 2, weights * 3, weights[::-1]):
        refused(partial(run, x, hx, few), RuntimeError)
    refused(partial(run, x, hx, weights, num_layers=2), RuntimeError)
    refused(partial(run, x, hx, weights, bidirectional=True), RuntimeError)
    refused(partial(run, x, hx, weights, has_biases=False), RuntimeError)
    two = [*getattr(nn, name)(3, 5, 2).parameters()]
    for dropout in (-0.1, 1.1, float("nan")):
        options: Any = {"num_layers": 2, "training": True, "dropout": dropout}
        refused(partial(run, x, None, two, **options), RuntimeError, "between 0 and 1")
    for what, change in WRONG.items():
        if what not in ("one dimension more", "0-D", "1-D"):
            kind = (ValueError, RuntimeError)
            assert issubclass(refusal(partial(run, change(x), None, weights))[0], kind), what
    if name == "LSTM":
        h, c = hx
        for states_ in ((), (h,), (h, c, c), torch.stack((h, c))):
            refused_alike(
                partial(run, x, states_, weights),
                partial(torch.lstm, x, states_, weights, True, 1, 0.0, False, False, False),
            )


WEIGHTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception]]] = {
    "None": (lambda w: None, TypeError),
    "0-D": (lambda w: w.sum(), RuntimeError),
    "1-D": (lambda w: w.flatten()[:2], RuntimeError),
    "3-D": (lambda w: w[None, None], RuntimeError),
    "empty": (lambda w: w[:0], RuntimeError),
    "longer": (lambda w: torch.cat((w, w)), RuntimeError),
    "shorter": (lambda w: w[:-1], RuntimeError),
    "float64": (lambda w: w.double(), RuntimeError),
    "int64": (lambda w: w.long(), RuntimeError),
    "complex": (lambda w: w.to(torch.complex64), RuntimeError),
    "on meta": (lambda w: w.to("meta"), RuntimeError),
    "sparse": (lambda w: w.to_sparse(), NotImplementedError),
    "freed": (freed, RuntimeError),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", WEIGHTS)
def test_a_weight_that_was_swapped_for_a_wrong_one_is_refused(name: str, what: str) -> None:
    change, kind = WEIGHTS[what]
    keys = [key for key, _ in getattr(fusedrnn, name)(3, 5).named_parameters()]
    for key in keys:
        module = getattr(fusedrnn, name)(3, 5)
        wrong = change(getattr(module, key).detach())
        setattr(module, key, None)
        if wrong is not None:
            delattr(module, key)
            setattr(module, key, wrong)
        actual = refusal(partial(module, input_of(name)))
        if key == "weight_ih_l0" and not issubclass(actual[0], kind):
            # The one that torch.nn compares the input with.
            theirs = getattr(nn, name)(3, 5)
            theirs._flat_weights[0] = wrong
            assert actual == refusal(partial(theirs.check_forward_args, input_of(name), None, None))
        else:
            one = what == "None" and "bias" in key and name in CELLS  # no type is wrong
            assert issubclass(actual[0], RuntimeError if one else kind), (key, actual)
            assert WORDS.search(actual[1]), (key, actual)


STATE: dict[str, Callable[[Tensor], Any]] = {
    **NO_TENSOR,
    **WRONG,
    "None": lambda w: None,
    "sparse": lambda w: w.to_sparse(),
    "shorter": lambda w: w[:-1],
    "longer": lambda w: torch.cat((w, w)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_a_corrupted_state_dict_does_to_ours_what_it_does_to_torchs(
    name: str, assign: bool
) -> None:
    for what, change in STATE.items():
        results = []
        for module in pair(name, 3, 5):
            state = module.state_dict()
            key = [*state][1]
            state[key] = change(state[key].clone())
            loaded = outcome(partial(module.load_state_dict, state, assign=assign))
            left = {k: (v.shape, v.dtype, v.layout) for k, v in module.state_dict().items()}
            results.append((loaded[0], str(loaded[1]), left))
        assert results[0] == results[1], what
    for module in pair(name, 3, 5):
        for state in (None, 1, [], "x"):
            assert refusal(partial(module.load_state_dict, state))[0] is TypeError


CONSTRUCTOR: list[dict[str, Any]] = [
    {"dtype": torch.int64},
    {"dtype": torch.bool},
    {"dtype": "float32"},
    {"dtype": 1},
    {"device": "nowhere"},
    {"device": -1},
    {"device": 1.5},
    {"device": []},
    {"bias": "yes"},
    {"input_size": None},
    {"input_size": "3"},
    {"input_size": 2.0},
    {"hidden_size": -1},
    {"hidden_size": None},
    {"hidden_size": [5]},
    {"hidden_size": 2**62},
    {"unknown": 1},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", CONSTRUCTOR, ids=str)
def test_constructors_refuse_as_torchs(name: str, options: dict[str, Any]) -> None:
    calls = [
        partial(getattr(ns, name), **{"input_size": 3, "hidden_size": 5, **options})
        for ns in (fusedrnn, nn)
    ]
    ours, theirs = map(outcome, calls)
    if "unknown" in options:
        assert ours[0] is theirs[0] is TypeError
    elif theirs[0] == "returned":
        assert shown(ours[1]) == repr(theirs[1])
    else:
        assert ours[:2] == theirs[:2]


MODULE = fusedrnn.LSTM(3, 5)
X = torch.zeros(4, 2, 3)
GPU = fusedrnn.plan.GPUS["sm_90"]
OTHERS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[Exception]]] = [
    *(
        (convert, (wrong,), {}, TypeError)
        for convert in (fusedrnn.convert, fusedrnn.to_torch)
        for wrong in (None, 1, "x", X, [MODULE], nn.LSTM, nn.Parameter(X))
    ),
    (fusedrnn.patch, (1,), {}, TypeError),
    *(
        (fusedrnn.explain, (wrong, X), {}, TypeError)
        for wrong in (None, 1, "x", X, nn.Linear(3, 5), nn.LSTM, nn.Sequential(MODULE))
    ),
    *((fusedrnn.explain, (MODULE, wrong), {}, TypeError) for wrong in (1, "x", [X])),
    *((fusedrnn.explain, (wrong,), {}, TypeError) for wrong in (None, [MODULE], fusedrnn.LSTM)),
    (fusedrnn.explain, (MODULE,), {"gpu": "sm_90"}, TypeError),
    (fusedrnn.explain, (MODULE,), {"hx": X}, TypeError),
    *(
        (fusedrnn.explain, (MODULE, torch.zeros(shape)), {}, ValueError)
        for shape in ((), (3,), (1, 4, 2, 3))
    ),
    (fusedrnn.explain, (MODULE, torch.zeros(4, 2, 4)), {}, RuntimeError),
    (fusedrnn.explain, (MODULE, packed([torch.zeros(2, 4)])), {}, RuntimeError),
    (fusedrnn.explain, (MODULE, X.long()), {}, ValueError),
    (fusedrnn.explain, (MODULE, X, 1), {}, TypeError),
    (fusedrnn.explain, (fusedrnn.LSTMCell(3, 5), X), {}, ValueError),
    (fusedrnn.explain, (fusedrnn.LSTMCell(3, 5), packed(ROWS)), {}, TypeError),
    *(
        (fusedrnn.explain, (MODULE, X), {"gpu": gpu}, kind)
        for gpu, kind in (
            (5, TypeError),
            ("sm_1", ValueError),
            ({}, ValueError),
            ({**GPU, "more": 1}, ValueError),
            ({**GPU, "multiprocessors": 0}, ValueError),
            ({**GPU, "multiprocessors": -1}, ValueError),
            ({**GPU, "sm": 0}, ValueError),
            ({**GPU, "sm": "90"}, TypeError),
            ({**GPU, "sm": 90.5}, TypeError),
            ({**GPU, "shared_bytes": 0}, ValueError),
            ({**GPU, "clock_ghz": -1}, ValueError),
            ({**GPU, "clock_ghz": "1"}, TypeError),
            ({**GPU, "clusters": []}, ValueError),
            ({**GPU, "clusters": 5}, TypeError),
            ({**GPU, "clusters": ["a"] * 5}, TypeError),
            ({**GPU, "clusters": [-1] * 5}, ValueError),
        )
    ),
]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case[0].__name__} {case[1:3]}"[:80])
def test_other_functions_refuse_with_what_they_expected(case: Any) -> None:
    function, args, options, kind = case
    actual = refusal(partial(function, *args, **options))
    assert actual[0] is kind, actual
