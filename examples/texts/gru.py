"""The GRU as the texts write it, and which weights of one convention another can load.

Texts differ in two things. The update gate: h' = z h + (1-z) n keeps the state where z is 1 (Cho et
al. 2014, arXiv:1406.1078; d2l; Keras; torch and cuDNN), h' = (1-z) h + z n where z is 0 (Chung et
al. 2014, arXiv:1412.3555). `negated` turns one into the other.

The reset gate: before the product, n = tanh(W x + b + U (r h) + b_u) (the third version of Cho et
al., Chung et al., d2l, Keras with reset_after=False), or after it,
n = tanh(W x + b + r (U h + b_u)) (torch and cuDNN, Keras' default; the first version of Cho et al.,
says Keras' documentation). fusedrnn's GRU computes the second alone, `GRU` below all four.

When weights convert. If U is diagonal (with H = 1 it is), then U (r h) = r (U h), and it takes no
more than `reset_after`: b_u joins b, where r does not multiply it. So too if r is one number for
all units, whatever U is. And if r does not depend on x and h (W_r = U_r = 0), U diag(r) is the same
as diag(r) (1/diag(r) U diag(r)).

In general no weights do. A proof with H = 2 and two inputs: let z be constant,
n_1 = tanh(r_1 h_1 + r_2 h_2), r_1 = sigmoid(a x_1) and r_2 = sigmoid(b x_2), a and b not 0. What a
reset after the product can make of h_1 is

    h_1' = Z h_1 + (1-Z) tanh(A),  A = w x + v + R (u h + c),

with Z and R sigmoids of something linear in x and h. At h = 0 the state stays 0 for every x, so A
is 0 there: w x + v + c R(x, 0) = 0. A line and a sigmoid cancel only if w = 0 and either c = v = 0
or R(x, 0) does not depend on x. The slopes of h_1' at h = 0 are then, with constants k_1, k_2 and
with P = R(x, 0) in the first case, P = 1 in the second,

    by h_2: (1-Z) P k_2 = (1-z) r_2(x_2),   by h_1: Z + (1-Z) P k_1 = z + (1-z) r_1(x_1).

The first must not depend on x_1. The logarithm of its left side has the slope -p Z + q (1-P) by
x_1, p and q those of the lines within Z and P. It is 0 for all x only if p = q = 0: else Z and 1-P,
which both come as near to 1 as one likes, would be equal, so that p = q, but the line within 1-P
has the slope -q. So neither Z nor P depends on x_1, and the second equation cannot hold: its right
side does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class GRU(nn.Module):
    """One layer over x [T, B, I] from h [1, B, H], as torch.nn.GRU has it, whose state_dict it
    loads and gives; written out step by step.

    Args:
        reset_before: multiply h by r before the product with U, not the product.
        z_keeps: the state stays where z is 1, not where z is 0.
    """

    def __init__(
        self, inputs: int, hidden: int, *, reset_before: bool = True, z_keeps: bool = True
    ) -> None:
        super().__init__()
        drawn = nn.GRU(inputs, hidden)
        for name, parameter in drawn.named_parameters():
            self.register_parameter(name, parameter)
        self.hidden_size = hidden
        self.reset_before, self.z_keeps = reset_before, z_keeps

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        state = x.new_zeros(x.shape[1], self.hidden_size) if h is None else h[0]
        u_gates, u_n = w_hh.split((2 * self.hidden_size, self.hidden_size))
        b_gates, b_n = b_hh.split((2 * self.hidden_size, self.hidden_size))
        outputs = []
        for of_r, of_z, of_n in zip(*(x @ w_ih.t() + b_ih).chunk(3, -1), strict=True):
            u_r, u_z = (state @ u_gates.t() + b_gates).chunk(2, -1)
            r, z = torch.sigmoid(of_r + u_r), torch.sigmoid(of_z + u_z)
            if self.reset_before:
                n = torch.tanh(of_n + (r * state) @ u_n.t() + b_n)
            else:
                n = torch.tanh(of_n + r * (state @ u_n.t() + b_n))
            kept = z if self.z_keeps else 1 - z
            state = kept * state + (1 - kept) * n
            outputs.append(state)
        return torch.stack(outputs), state[None]


def negated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A GRU's weights for the other convention of z: those of gate z, rows H to 2H, negated.

    sigmoid(-a) = 1 - sigmoid(a), so this is exact, and twice gives back the same bits. It takes the
    state_dict of a GRU of any layers and directions.
    """
    found = {name: tensor.clone() for name, tensor in weights.items()}
    for tensor in found.values():
        H = len(tensor) // 3
        tensor[H : 2 * H].neg_()
    return found


def reset_after(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a one-layer `GRU` that resets before the product, for one that resets after it.

    Gate n's bias_hh moves into its bias_ih. Exact where U is diagonal, else a start to train from.
    """
    found = {name: tensor.clone() for name, tensor in weights.items()}
    b_n = found["bias_hh_l0"].chunk(3)[2]
    found["bias_ih_l0"].chunk(3)[2].add_(b_n)
    b_n.zero_()
    return found
