"""The RNN, GRU and LSTM written out in torch operations, as a textbook builds them up.

Every gate has its own tensors W_x, W_h and b, drawn Gaussian with deviation 0.01 (biases zero),
and a Python loop goes over the steps: the code that a student writes first (d2l, chapters 9 and
10), and the contrast to a fused layer. An LSTM then handles 16 tensors: three for each of its 4
gates, W_hq and b_q of the output layer, which makes the 14 that are trained, and the states H and
C, which are not trained but carried. `layer_state` lays the trained ones out as a language model
made of a fused layer has them, and `load_layer_state` is the way back.

One bias a gate is half of what torch's layers have. The other half, ``bias_hh``, is zero and stays
so (`freeze`): two biases that are only ever added would each take the step that one should take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.driver.errors import WorkloadError
from examples.driver.layers import State

# The gates of each cell by d2l's names, in the order in which torch's layers stack them.
GATES = {"rnn": ("h",), "gru": ("r", "z", "h"), "lstm": ("i", "f", "c", "o")}
DEVIATION = 0.01

States = tuple[Tensor, ...]  # (H,), or (H, C) of an LSTM; each [B, H]


class WrittenOut(nn.Module):
    """Logits [T*B, V] of the next character, time first, and the last state.

    In place of `time_machine.LanguageModel`, with states that have no layer dimension. Drawn from
    torch's global generator; V = `vocabulary` inputs and outputs, H = `hidden` units of the state.
    """

    def __init__(self, cell: str, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.cell = cell
        self.vocabulary = vocabulary
        self.hidden = hidden
        shapes: dict[str, tuple[int, ...]] = {}
        for gate in GATES[cell]:
            shapes |= {f"W_x{gate}": (vocabulary, hidden), f"W_h{gate}": (hidden, hidden)}
            shapes |= {f"b_{gate}": (hidden,)}
        shapes |= {"W_hq": (hidden, vocabulary), "b_q": (vocabulary,)}
        for name, shape in shapes.items():
            values = torch.zeros(shape) if len(shape) == 1 else torch.randn(shape) * DEVIATION
            self.register_parameter(name, nn.Parameter(values))

    def initial_states(self, rows: int) -> States:
        """(H,) or (H, C), zeros for a batch of that many rows."""
        zeros = next(self.parameters()).new_zeros(rows, self.hidden)
        return (zeros, zeros) if self.cell == "lstm" else (zeros,)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        *gates, W_hq, b_q = self.parameters()
        inputs = F.one_hot(x.t(), self.vocabulary).to(W_hq.dtype)  # [T, B, V]
        step = STEPS[self.cell]
        states: States = (state,) if isinstance(state, Tensor) else state or ()
        states = states or self.initial_states(len(x))
        logits = []
        for X in inputs:
            states = step(X, states, gates)
            logits.append(states[0] @ W_hq + b_q)
        H, *C = states
        return torch.cat(logits), (H, C[0]) if C else H


def rnn_step(X: Tensor, states: States, gates: Sequence[Tensor]) -> States:
    """The next (H,) [B, H] from inputs X [B, V]."""
    W_xh, W_hh, b_h = gates
    (H,) = states
    return (torch.tanh(X @ W_xh + H @ W_hh + b_h),)


def gru_step(X: Tensor, states: States, gates: Sequence[Tensor]) -> States:
    """The next (H,) [B, H] from inputs X [B, V]; r after the product, as cuDNN and torch have it,
    where d2l multiplies H by it before."""
    W_xr, W_hr, b_r, W_xz, W_hz, b_z, W_xh, W_hh, b_h = gates
    (H,) = states
    R = torch.sigmoid(X @ W_xr + H @ W_hr + b_r)
    Z = torch.sigmoid(X @ W_xz + H @ W_hz + b_z)
    H_tilde = torch.tanh(X @ W_xh + R * (H @ W_hh) + b_h)
    return (Z * H + (1 - Z) * H_tilde,)


def lstm_step(X: Tensor, states: States, gates: Sequence[Tensor]) -> States:
    """The next (H, C), each [B, H], from inputs X [B, V]."""
    W_xi, W_hi, b_i, W_xf, W_hf, b_f, W_xc, W_hc, b_c, W_xo, W_ho, b_o = gates
    H, C = states
    gate_i = torch.sigmoid(X @ W_xi + H @ W_hi + b_i)
    gate_f = torch.sigmoid(X @ W_xf + H @ W_hf + b_f)
    gate_o = torch.sigmoid(X @ W_xo + H @ W_ho + b_o)
    C_tilde = torch.tanh(X @ W_xc + H @ W_hc + b_c)
    C = gate_f * C + gate_i * C_tilde
    return gate_o * torch.tanh(C), C


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def layer_state(model: WrittenOut) -> dict[str, Tensor]:
    """The weights of `model` under the names and in the layout of a language model's layers.

    ``rnn.weight_ih_l0`` [G*H, V] holds the gates' W_x transposed, one below the other,
    ``rnn.weight_hh_l0`` [G*H, H] their W_h, ``rnn.bias_ih_l0`` [G*H] their biases;
    ``rnn.bias_hh_l0`` is zero. ``linear`` has W_hq transposed and b_q. All are copies.
    """
    gates = GATES[model.cell]
    tensors = {name: value.detach() for name, value in model.named_parameters()}
    bias = torch.cat([tensors[f"b_{gate}"] for gate in gates])
    return {
        "rnn.weight_ih_l0": torch.cat([tensors[f"W_x{gate}"].t() for gate in gates]),
        "rnn.weight_hh_l0": torch.cat([tensors[f"W_h{gate}"].t() for gate in gates]),
        "rnn.bias_ih_l0": bias,
        "rnn.bias_hh_l0": torch.zeros_like(bias),
        "linear.weight": tensors["W_hq"].t().clone(memory_format=torch.contiguous_format),
        "linear.bias": tensors["b_q"].clone(),
    }


def load_layer_state(model: WrittenOut, state: Mapping[str, Tensor]) -> None:
    """Copies the weights of a language model's layers into `model`, the two biases added up.

    Raises:
        WorkloadError: a GRU's ``bias_hh`` of gate n is not zero: it stands within the brackets
            that r multiplies, and the written-out GRU has no tensor for it.
    """
    gates = GATES[model.cell]
    bias_hh = state["rnn.bias_hh_l0"].chunk(len(gates))
    if model.cell == "gru" and bias_hh[-1].any():
        raise WorkloadError(
            "rnn.bias_hh_l0 of a GRU must be zero in its last third (gate n), got values up to "
            f"{bias_hh[-1].abs().max().item():.2g}: keep it frozen at zero while training"
        )
    stacked = (
        state[f"rnn.{name}_l0"].chunk(len(gates)) for name in ("weight_ih", "weight_hh", "bias_ih")
    )
    tensors = {"W_hq": state["linear.weight"].t(), "b_q": state["linear.bias"]}
    for gate, w_x, w_h, b, b_h in zip(gates, *stacked, bias_hh, strict=True):
        tensors |= {f"W_x{gate}": w_x.t(), f"W_h{gate}": w_h.t(), f"b_{gate}": b + b_h}
    model.load_state_dict(tensors)


def freeze(model: nn.Module) -> None:
    """Sets ``bias_hh`` of a language model of torch's or fusedrnn's layers to zero, for good."""
    bias = model.get_parameter("rnn.bias_hh_l0")
    with torch.no_grad():
        bias.zero_()
    bias.requires_grad_(False)
