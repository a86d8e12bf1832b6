"""Frozen layers: they compute what the layer computed, in every form of a call, whatever they are
frozen as; and their weights come back."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from support.oracle import tensors_of

NAMES = ("RNN", "LSTM", "GRU", "MGU")
NARROW = (torch.bfloat16, torch.int8)
T, B, I, H = 11, 5, 7, 19  # noqa: E741


def layer(name: str, *sizes: int, **flags: Any) -> Any:
    torch.manual_seed(0)
    return getattr(fusedrnn, name)(*(sizes or (I, H)), **flags).eval()


def states_of(made: Any, rows: int = B) -> Any:
    count = made.num_layers * (2 if made.bidirectional else 1)
    h = torch.randn(count, rows, made.proj_size or made.hidden_size)
    return (h, torch.randn(count, rows, made.hidden_size)) if made.mode == "LSTM" else h


def equal(ours: object, theirs: object) -> None:
    for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        assert torch.equal(a, b)


def rounded(made: Any, dtype: torch.dtype) -> Any:
    """The layer whose weights are those that are frozen, as float32."""
    return fusedrnn.thaw(fusedrnn.freeze(made, dtype))


CALLS: dict[str, Any] = {
    "plain": lambda made, x: made(x),
    "states": lambda made, x: made(x, states_of(made)),
    "unbatched": lambda made, x: made(x[:, 0]),
    "packed": lambda made, x: made(pack_padded_sequence(x, [11, 3, 7, 1, 9], enforce_sorted=False)),
    "lengths": lambda made, x: made(x, lengths=torch.tensor([11, 0, 7, 1, 9])),
    "resets": lambda made, x: made(
        x, resets=torch.arange(T * B).reshape(T, B) % 4 == 0, reset_state=states_of(made, 1)
    ),
    "all states": lambda made, x: made(x, return_states="all"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_layer_gives_the_layers_bits(name: str, call: str) -> None:
    made = layer(name, num_layers=2, bidirectional=True)
    frozen = fusedrnn.freeze(made)
    assert type(frozen) is getattr(fusedrnn, f"Frozen{name}")
    assert isinstance(frozen, type(made))
    assert not list(frozen.parameters())
    x = torch.randn(T, B, I)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = CALLS[call](made, x)
        torch.manual_seed(1)
        equal(CALLS[call](frozen, x), expected)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("LSTM", {"proj_size": 5}),
        ("GRU", {"bias": False}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {"batch_first": True}),
        ("LSTM", {"dtype": torch.float64}),
        ("GRU", {"dtype": torch.bfloat16}),
        ("LSTM", {"dtype": torch.float16}),
    ],
)
def test_flags_and_dtypes_are_the_layers(name: str, flags: Any) -> None:
    made = layer(name, num_layers=2, **flags)
    frozen = fusedrnn.freeze(made)
    x = torch.randn(T, B, I, dtype=flags.get("dtype"))
    with torch.no_grad():
        found, expected = frozen(x)[0], made(x)[0]
    assert found.dtype == expected.dtype
    low = x.dtype in (torch.bfloat16, torch.float16)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if low else 1e-6)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NAMES)
def test_narrow_weights_are_within_what_rounding_explains(name: str, dtype: torch.dtype) -> None:
    made = layer(name, 40, 64, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, 40)
    with torch.no_grad():
        found = fusedrnn.freeze(made, dtype)(x)[0]
        exact = rounded(made, dtype).double()(x.double())[0]
        apart = made.double()(x.double())[0] - exact
    # Against the rounded weights only x and h are rounded besides, to as many bits as the weights.
    error = (found - exact).square().mean().sqrt()
    assert error <= 4 * apart.square().mean().sqrt()
    assert error <= (0.005 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_int8_is_exact_where_nothing_is_rounded(name: str) -> None:
    """Weights, inputs and states that are whole numbers of steps: the products are exact then."""
    made = layer(name, 8, 16)
    with torch.no_grad():
        for weight in made.parameters():
            steps = torch.randint(-127, 128, weight.shape).float()
            if weight.dim() == 2:
                steps[:, 0] = 127  # the scale is 1/127 then
            weight.copy_(steps / 127)
        x = torch.randint(-127, 128, (1, B, 8)).float()
        x[..., 0] = 127
        hx = torch.zeros(1, B, 16)
        state = (hx, hx) if name == "LSTM" else hx
        expected = made.double()(
            x.double(),
            tuple(s.double() for s in tensors_of(state)) if name == "LSTM" else hx.double(),
        )[0]
        found = fusedrnn.freeze(made.float(), torch.int8)(x, state)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("name", NAMES)
def test_any_chunks_give_the_same_bits(name: str, dtype: torch.dtype | None) -> None:
    frozen = fusedrnn.freeze(layer(name, 24, 80, num_layers=2), dtype)
    x = torch.randn(37, 3, 24)
    whole, end = frozen(x)
    for chunks in ([1] * 37, [36, 1], [5, 20, 12]):
        state, parts = None, []
        for part in x.split(chunks):
            output, state = frozen(part, state)
            parts.append(output)
        equal((torch.cat(parts), state), (whole, end))
    stepped, state = [], None
    for one in x:
        output, state = frozen.step(one, state)
        stepped.append(output)
    equal((torch.stack(stepped), state), (whole, end))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back(name: str, dtype: torch.dtype | None) -> None:
    made = layer(name, I, 37, num_layers=2, bidirectional=True)
    frozen = fusedrnn.freeze(made, dtype)
    kept, given = frozen.state_dict(), made.state_dict()
    assert [n for n in kept if not n.endswith("_scale")] == list(given)
    for key, value in given.items():
        if not key.startswith(("weight_ih", "weight_hh")):
            assert torch.equal(kept[key], value)
        elif dtype == torch.int8:
            apart = kept[key].float() * kept[f"{key}_scale"].unsqueeze(1) - value
            assert apart.abs().max() <= value.abs().max() / 127 / 2 * 1.001
        else:
            assert torch.equal(kept[key], value.to(dtype or value.dtype))
    thawed = fusedrnn.thaw(frozen)
    assert type(thawed) is type(made)
    assert list(thawed.state_dict()) == list(given)
    if dtype is None:
        equal(list(thawed.state_dict().values()), list(given.values()))
    x = torch.randn(T, B, I)
    again = fusedrnn.freeze(thawed, dtype)
    equal(again(x), frozen(x))


def through_torch(frozen: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(frozen, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, through_torch, lambda frozen: pickle.loads(pickle.dumps(frozen))]
)
@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_copies_and_pickles_give_the_same_bits(copied: Any, dtype: Any) -> None:
    frozen = fusedrnn.freeze(layer("LSTM", num_layers=2), dtype)
    x = torch.randn(T, B, I)
    equal(copied(frozen)(x), frozen(x))


def test_a_state_dict_loads_into_a_frozen_layer() -> None:
    one, other = layer("GRU"), layer("GRU")
    nn.init.normal_(other.weight_hh_l0)
    x = torch.randn(T, B, I)
    for dtype in (None, torch.int8):
        frozen, expected = fusedrnn.freeze(one, dtype), fusedrnn.freeze(other, dtype)
        frozen.load_state_dict(expected.state_dict())
        equal(frozen(x), expected(x))
    frozen = fusedrnn.freeze(one)
    frozen.load_state_dict(other.state_dict())
    equal(frozen(x), fusedrnn.freeze(other)(x))
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        frozen.load_state_dict(layer("GRU", I, H + 1).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*bias_hh_l0"):
        frozen.load_state_dict({k: v for k, v in one.state_dict().items() if k != "bias_hh_l0"})


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below = nn.LSTM(I, H, batch_first=True)
        self.above = nn.Sequential(fusedrnn.GRU(H, H, batch_first=True), nn.Identity())
        self.shared = self.above[0]
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.above[0](self.below(x)[0])[0])
        return y


def test_a_model_is_frozen_in_place_and_thawed() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    x = torch.randn(B, T, I)
    with torch.no_grad():
        expected = model(x)
        assert fusedrnn.freeze(model) is model
        assert type(model.below) is fusedrnn.FrozenLSTM
        assert type(model.above[0]) is fusedrnn.FrozenGRU
        assert model.shared is model.above[0]
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        model.train()
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        fusedrnn.thaw(model)
        assert type(model.below) is fusedrnn.LSTM
        assert model.shared is model.above[0]
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_pruned_and_parametrized_weights_are_frozen_as_they_are_now() -> None:
    made = layer("LSTM")
    parametrizations.weight_norm(made, "weight_hh_l0")
    prune.l1_unstructured(made, "weight_ih_l0", 0.5)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        equal(fusedrnn.freeze(made)(x), made(x))


def test_bytes_are_a_half_and_a_quarter() -> None:
    made = layer("LSTM", 256, 256)
    stacks = {dtype: fusedrnn.freeze(made, dtype)._stack for dtype in (None, *NARROW)}
    plain = 4 * sum(weight.numel() for weight in made.parameters())
    assert stacks[None].bytes <= plain * 1.02
    assert stacks[torch.int8].bytes <= plain * 0.27
    if stacks[torch.bfloat16].products:  # elsewhere it is widened when it is packed
        assert stacks[torch.bfloat16].bytes <= plain * 0.52


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(torch.randn(T, B, I, requires_grad=True)), RuntimeError, "thaw"),
        (lambda f: f(torch.randn(T, B, I + 1)), RuntimeError, "Expected 7, got 8"),
        (lambda f: f(torch.randn(T, B, I).double()), ValueError, "Float or"),
        (lambda f: f(torch.randn(T, B, I), torch.zeros(1, B + 1, H)), RuntimeError, "hidden"),
        (lambda f: f.to(torch.float64), RuntimeError, "thaw"),
        (lambda f: f.to("meta"), RuntimeError, "thaw"),
        (lambda f: f.stream(-1), ValueError, "got -1"),
        (lambda f: fusedrnn.freeze(f, torch.float32), ValueError, "got torch.float32"),
        (lambda f: fusedrnn.freeze(f.mode), TypeError, "got str"),
        (lambda f: fusedrnn.thaw(f.mode), TypeError, "got str"),
        (lambda f: fusedrnn.freeze(layer("GRU").double(), torch.int8), ValueError, "float64"),
        (lambda f: fusedrnn.freeze(layer("GRU", device="meta")), RuntimeError, "model.cpu"),
        (lambda f: f.step(torch.randn(I)), RuntimeError, r"\[B, 7\]"),
        (lambda f: f.step(torch.randn(2, I), torch.zeros(1, 3, H)), RuntimeError, r"\[1, 2, 19\]"),
        (lambda f: f.step(torch.randn(2, I, requires_grad=True)), RuntimeError, "thaw"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    frozen = fusedrnn.freeze(layer("GRU"))
    with pytest.raises(error, match=message):
        call(frozen)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_what_would_lose_a_derivative_or_a_trace_is_refused() -> None:
    frozen, x = fusedrnn.freeze(layer("GRU")), torch.randn(T, B, I)

    def refused(call: Any) -> None:
        with pytest.raises(RuntimeError, match="thaw"):
            call()

    with torch.no_grad():
        refused(lambda: torch.vmap(lambda one: frozen(one)[0])(torch.randn(2, T, B, I)))
        refused(lambda: torch.jit.trace(frozen, (x,)))
        refused(lambda: torch.export.export(frozen, (x,)))
    with forward_ad.dual_level():
        refused(lambda: frozen(forward_ad.make_dual(x, x)))
    compiled: Any = torch.compile(frozen, backend="aot_eager")
    with pytest.raises(RuntimeError, match="thaw"):
        compiled(x.requires_grad_())
    step: Any = torch.compile(frozen.step, backend="aot_eager")
    with pytest.raises(RuntimeError, match="thaw"):
        step(x[0].detach(), torch.zeros(1, B, H, requires_grad=True))


@pytest.mark.parametrize("call", [c for c in CALLS if c != "packed"])  # where torch breaks it
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_graph_holds_a_frozen_layer_whole(name: str, call: str) -> None:
    frozen = fusedrnn.freeze(layer(name, num_layers=2, bidirectional=True), torch.int8)
    x = torch.randn(T, B, I)
    compiled: Any = torch.compile(CALLS[call], backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    expected = CALLS[call](frozen, x)
    torch.manual_seed(1)
    equal(compiled(frozen, x), expected)


@pytest.mark.parametrize("given", [False, True])
def test_a_compiled_graph_takes_packed_rows(given: bool) -> None:
    frozen = fusedrnn.freeze(layer("LSTM"))
    packed = pack_padded_sequence(torch.randn(T, B, I), [11, 7, 7, 3, 1])
    hx = states_of(frozen) if given else None
    compiled: Any = torch.compile(frozen, backend="aot_eager", fullgraph=given)
    equal(compiled(packed, hx), frozen(packed, hx))


def test_compiled_steps_and_their_shapes_are_dynamic() -> None:
    """One graph for all lengths and rows, and another once the layer has other weights."""
    frozen = fusedrnn.freeze(layer("LSTM", batch_first=True))
    graphs = CompileCounter()
    forward: Any = torch.compile(frozen, backend=graphs, fullgraph=True, dynamic=True)
    step: Any = torch.compile(frozen.step, backend="aot_eager", fullgraph=True)
    for rows, steps in ((5, 11), (3, 4), (7, 2)):
        x = torch.randn(rows, steps, I)
        equal(forward(x), frozen(x))
        equal(step(x[:, 0]), frozen.step(x[:, 0]))
    assert graphs.frame_count == 1
    before = forward(x)
    frozen.load_state_dict({name: w + 1 for name, w in frozen.state_dict().items()})
    equal(forward(x), frozen(x))
    assert not torch.equal(forward(x)[0], before[0])


def test_a_compiled_model_has_each_of_its_layers() -> None:
    model: Any = fusedrnn.freeze(nn.ModuleList([layer("GRU", I, I), layer("GRU", I, I)]))
    with torch.no_grad():
        model[1].load_state_dict({n: w * 2 for n, w in model[1].state_dict().items()})

    def both(x: Tensor) -> Any:
        return model[1](model[0](x)[0])[0]

    compiled: Any = torch.compile(both, fullgraph=True)  # by inductor
    x = torch.randn(T, B, I)
    equal(compiled(x), both(x))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_opcheck_passes_on_frozen(name: str) -> None:
    frozen = fusedrnn.freeze(layer(name, num_layers=2))
    h, c = torch.randn(2, B, H), torch.randn(2, B, H) if name == "LSTM" else None
    sizes = torch.tensor([3, 2, 2], device="cpu")
    operator = torch.ops.fusedrnn.frozen.default
    for states in range(3):
        whole = (torch.randn(T, B, I), None, h, c, frozen._number, None, None, None, None, states)
        torch.library.opcheck(operator, whole)
    torch.library.opcheck(operator, (torch.randn(7, I), sizes, None, None, frozen._number))


def test_a_layer_that_is_gone_has_no_number() -> None:
    frozen = fusedrnn.freeze(layer("GRU"))
    number, x = frozen._number, torch.randn(T, B, I)
    del frozen
    for gone in (number, -1, 2**62):
        with pytest.raises(RuntimeError, match="still there"):
            torch.ops.fusedrnn.frozen(x, None, None, None, gone)


def test_int8_refuses_rows_whose_sums_could_overflow() -> None:
    with pytest.raises(ValueError, match="65536 weights, got 65537"):
        fusedrnn.freeze(layer("RNN", 65537, 1), torch.int8)


def test_nan_and_infinity_show() -> None:
    x = torch.randn(T, B, I)
    x[3, 1, 2], x[5, 2, 0] = torch.nan, torch.inf
    for dtype in (None, *NARROW):
        y = fusedrnn.freeze(layer("LSTM"), dtype)(x)[0]
        assert y[3:, 1].isnan().all()
        assert y[:, 0].isfinite().all()
        assert y[:5].isfinite().all(2).sum() == 5 * B - 2


@pytest.mark.parametrize("rows", [1, 3, 17, 64])
def test_zeros_and_tiny_rows_are_exact_in_int8(rows: int) -> None:
    frozen = fusedrnn.freeze(layer("GRU", 33, H), torch.int8)
    x = torch.zeros(3, rows, 33)
    y = frozen(x)[0]
    assert torch.equal(frozen(x + 1e-38)[0], y)
    torch.testing.assert_close(y, fusedrnn.thaw(frozen)(x)[0].detach(), rtol=0, atol=2e-3)
