"""The minimal gated unit as a layer and a cell. torch.nn has none to take the place of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import reference
from .cells import check_cell_dim, step
from .modules import _OneState
from .tools import Tools, as_leaf


class MGU(_OneState):
    r"""Multi-layer minimal gated unit (Zhou et al., 2016): a GRU with one gate in place of two.

    .. math::
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + f_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - f_t) \odot h_{t-1} + f_t \odot n_t

    The gate acts after the recurrent product, as GRU's reset gate does here and in cuDNN; in the
    paper before it. Two thirds of a GRU's parameters.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L, each layer reading the one below. Default: 1.
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: h_0 [L*D, B, H], or [L*D, H] if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states and checkpoint_every,
            which torch.nn has not: see :meth:`forward`. Default: none of them.
    Outputs:
        output [T, B, D*H], laid out as the input, and h_n shaped as hx.
    Raises:
        ValueError: on an argument out of range; in forward, on an input that is neither 2-D nor
            3-D, or that has another dtype than the weights.
        TypeError: on an argument of the wrong type.
        RuntimeError: in forward, on a shape or device that does not fit; where this package runs
            without its CUDA half, on a GPU; and in an export to ONNX, which has no such node.

    Parameters are named as GRU's, weight_ih_l0 [2H, I] and so on with gates f, n, and drawn from
    U(-1/sqrt(H), 1/sqrt(H)).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        # torch.nn's constructor knows three modes. As a GRU, without memory, it checks all
        # arguments and names the parameters, which then take their size.
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device="meta",
            dtype=dtype,
        )
        self.mode = "MGU"
        for name, gru in [*self.named_parameters()]:
            size = (2 * hidden_size, *gru.shape[1:])
            setattr(self, name, nn.Parameter(torch.empty(size, device=device, dtype=gru.dtype)))
        self.reset_parameters()

    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN, for which torch.nn's layers gather weights, has no such layer."""


class MGUCell(Tools, nn.RNNCellBase):
    """One step of the minimal gated unit (Zhou et al., 2016); see :class:`MGU`.

    Args:
        input_size, hidden_size: I and H.
        bias: whether there are biases. Default: True.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [B, I] or unbatched [I].
        hx: [B, H] or [H]; zeros when None.
    Outputs:
        h [B, H] or [H].
    Raises:
        ValueError: input or hx that is neither 1-D nor 2-D.
        TypeError: an argument of the wrong type.
        RuntimeError: a shape that does not fit, and as :class:`MGU`.
    """

    mode = "MGU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=2, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advance one step; see the class for shapes."""
        # Here TorchScript stops: it cannot compile this.
        if type(input) is not Tensor and (node := as_leaf(self, input, hx)) is not None:
            return node  # type: ignore[return-value]
        check_cell_dim("MGUCell", "input", input)
        if hx is not None:
            check_cell_dim("MGUCell", "hidden", hx)
        if not (self.input_size and self.hidden_size):  # no kernel runs on nothing
            h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
            return reference.mgu_cell(
                input, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
            )
        return step(self, "MGU", input, hx, None)[0]

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward
