"""How an LSTM's gates begin, and what its forget gate lets through.

c_t = f_t c_{t-1} + i_t g_t (Gers, Schmidhuber & Cummins, 2000): along this sum the gradient of c is
multiplied by f_t alone. With a bias b on the forget gate, f is at first about sigmoid(b): 0.50 for
0, 0.73 for 1 (Jozefowicz, Zaremba & Sutskever, 2015), 0.993 for 5. With the input gate's bias at -b
(Tallec & Ollivier, 2018) i is about 1 - f, so that c stays small although little is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GATES = ("input", "forget")  # the first two of torch's order i, f, g, o


@dataclass(frozen=True)
class Start:
    """What is changed in a layer that torch.nn's rule has drawn; a bias of None is left as drawn.

    Args:
        gain: what the recurrent weights are multiplied by.
    """

    label: str = ""
    gain: float = 1.0
    forget: float | None = None
    input: float | None = None

    def apply(self, layer: nn.RNNBase) -> None:
        """Changes the first layer's weights, in fusedrnn and torch.nn alike."""
        with torch.no_grad():
            layer.get_parameter("weight_hh_l0").mul_(self.gain)
            for gate, bias in zip(GATES, (self.input, self.forget), strict=True):
                if bias is not None:
                    rows = gate_rows(layer, gate)
                    layer.get_parameter("bias_ih_l0")[rows] = bias
                    layer.get_parameter("bias_hh_l0")[rows] = 0.0  # the layer adds both


STARTS = {
    "usual": Start(),
    "forget1": Start(", forget bias 1", forget=1.0),
    "forget5": Start(", forget bias 5", forget=5.0),
    "guarded": Start(", forget bias 5, input bias -5", forget=5.0, input=-5.0),
    "large": Start(", large start", gain=3.0),
}


def models(cells: Sequence[str], starts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every cell with each of the starts that it can have: only an LSTM has a forget gate."""
    for cell in cells:
        for start in starts:
            if cell == "lstm" or STARTS[start].forget is None:
                yield cell, start


def label(cell: str, start: str) -> str:
    """A model as a page names it: "LSTM, forget bias 1"."""
    return cell.upper() + STARTS[start].label


def gate_rows(layer: nn.RNNBase, gate: str) -> slice:
    """The rows of an LSTM's weights and biases that belong to that gate."""
    at = GATES.index(gate) * layer.hidden_size
    return slice(at, at + layer.hidden_size)


def forget_gates(layer: nn.RNNBase, x: Tensor, h: Tensor) -> Tensor:
    """f_t [T, B, H] of an LSTM of one layer, from its inputs x [T, B, I] and outputs h [T, B, H];
    it began with a state of zeros."""
    rows = gate_rows(layer, "forget")
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    w_ih, w_hh, b_ih, b_hh = (
        layer.get_parameter(f"{name}_l0")[rows]
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return torch.sigmoid(F.linear(x, w_ih, b_ih) + F.linear(before, w_hh, b_hh))


def along_the_path(last: Tensor, f: Tensor) -> Tensor:
    """What the additive path alone brings back: ``last`` times all f in between.

    Args:
        last: [B, H], the gradient with respect to c_T.
        f: [T, B, H], the forget gates.
    Returns:
        [T, B, H], for every c_t: ``last * f_{t+1} * ... * f_T``.
    """
    factors = torch.cat([f[1:], torch.ones_like(f[:1])])
    return last * factors.flip(0).cumprod(0).flip(0)


def longest_memory(f: Tensor) -> float:
    """Steps after which the unit that forgets least keeps 1/e of its c, by its mean log f."""
    rate = -f.double().log().mean((0, 1)).max()
    return float(1 / rate.clamp_min(1e-9))
