"""RNN, LSTM and GRU as modules that take the place of torch.nn's.

Each derives from torch.nn's class of the same name, so that isinstance and issubclass hold
everywhere; hooks.py makes torch.compile trace it nevertheless. This file holds the constructors,
spelt out so that they can be introspected, and forward: torch.nn's checks in torch.nn's order and
words, then one call that runs every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._ops.course import Course, course_of
from ._ops.refusals import check_dim, refuse_states, two_states
from ._ops.stack import Flags, Sequences, run, with_states
from .tools import Tools, as_leaf

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._ops.course import Keywords


class _Recurrent(Tools, nn.RNNBase):
    """What RNN, LSTM and GRU share."""

    _operator: Callable[..., Any] | None = None  # what takes the place of the operator `stack`

    def flatten_parameters(self) -> None:
        """Gather the weights in one piece where cuDNN may read them; else do nothing.

        Our kernels read each weight where it lies. On a GPU a stack may be handed to cuDNN, which
        would copy weights that lie apart on every call.
        """
        first = self._flat_weights[0] if self._flat_weights else None
        if isinstance(first, Tensor) and first.is_cuda:
            super().flatten_parameters()

    def _current_weights(self) -> list[Tensor]:
        """The weights as they are now, in torch's order."""
        # Pruning, parametrizations, functional_call and replicas swap tensors between calls. That
        # nothing was swapped shows here at a tenth of _weights_have_changed's cost.
        names, weights = self._flat_weights_names, self._flat_weights
        same = all(map(is_, map(self._parameters.get, names), weights))
        if not same and self._weights_have_changed():  # type: ignore[no-untyped-call]
            # Each is looked up as often as by torch.nn: a parametrization may draw random numbers,
            # or count, as the power iteration of spectral_norm does.
            weights = [getattr(self, name) if hasattr(self, name) else None for name in names]
        return weights  # type: ignore[return-value]

    def _check(self, input: Tensor | PackedSequence, hx: Any) -> None:
        """Raise what torch.nn raises for arguments that do not fit."""
        if isinstance(input, PackedSequence):
            data, batch_sizes = input.data, input.batch_sizes
        else:
            if type(input) is not Tensor and getattr(input, "is_nested", False):
                return  # torch.nn's checks know no ragged sizes; the operator's own remain
            data, batch_sizes, dim = input, None, input.dim()
            if dim != 3:
                check_dim(self.mode, dim)
                data = input.unsqueeze(0 if self.batch_first else 1)
            if hx is not None:
                hx = self._check_hidden_dim(hx, dim)
        # A tracer cannot know the batch of packed rows; the operator compares it when it runs.
        if hx is None or (batch_sizes is not None and torch.compiler.is_compiling()):
            self.check_input(data, batch_sizes)
        else:
            self.check_forward_args(data, hx, batch_sizes)

    def _check_hidden_dim(self, hx: Any, dim: int) -> Any:
        """Check that hx is batched as a ``dim``-D input is; return it with a batch dimension."""
        if hx.dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx.dim()}-D tensor"
            )
        return hx if dim == 3 else hx.unsqueeze(1)

    def _run(
        self,
        input: Sequences,
        states: tuple[Tensor | None, Tensor | None],
        weights: Sequence[Tensor],
        course: Course,
    ) -> tuple[Sequences, Tensor, Tensor, Any]:
        # By mode, not by self.nonlinearity: torch.nn does so too, and old pickles have only mode.
        flags = self._flags()
        return run(
            self.mode, input, states, weights, flags, self.batch_first, course, self._operator
        )

    def _flags(self) -> Flags:
        return Flags(self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)


def _hands_on(input: Tensor | PackedSequence) -> bool:
    """Whether nn.LSTM hands hx on as it is; to reshape or sort it, it picks the first two."""
    if isinstance(input, PackedSequence):
        return input.sorted_indices is None
    return input.dim() == 3


def _refuse_projection(proj_size: int | None) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class _OneState(_Recurrent):
    """What the layers without c share: forward."""

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, **keywords: Unpack[Keywords]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, **keywords: Unpack[Keywords]
    ) -> tuple[PackedSequence, Tensor]: ...
    @overload
    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = None,
        *,
        return_states: bool | Literal["all"],
        **keywords: Unpack[Keywords],
    ) -> tuple[Sequences, Tensor, Any]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        **keywords: Any,  # TorchScript stops: call fusedrnn.to_torch(model) first
    ) -> Any:
        """Run all layers over whole sequences; see the class for shapes.

        Args:
            input, hx: as torch.nn takes them. By default all others leave everything as it is
                there.
            lengths: [B] int64, on the CPU or input's device: how many steps each row has, 0 to T.
                Past its end a row's output is zero, its last states are those of its last step,
                and the reverse direction starts at its end. Default: None, T for all.
            resets: [T, B] bool ([B, T] with ``batch_first``): the state is cut before such a
                step. Default: None, nowhere.
            reset_state: what the state is after a cut, shaped as hx, with B rows or 1; it gets a
                gradient. Default: None, zeros.
            return_states: whether there is a third result, the state of every step: c of an LSTM
                [T, B, D*H], h of other layers, laid out as the output. True: of the top layer;
                "all": [L, T, B, D*H]. Default: False.
            checkpoint_every: in training, keep a state for backward every so many steps only; the
                gates in between are computed again. "auto": where a layer's gates would take more
                than FUSEDRNN_RESERVE_MB (1024). Default: None, all gates are kept.
        Raises:
            RuntimeError, TypeError, ValueError: as the class, and on one of these that does not
                fit.
        """
        if type(input) is not Tensor and (node := as_leaf(self, input, hx, **keywords)) is not None:
            return node
        weights = self._current_weights()
        self._check(input, hx)
        course = course_of(self.mode, keywords)
        output, h_n, _, kept = self._run(input, (hx, None), weights, course)
        return with_states(course, (output, h_n), kept)

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward


class RNN(_OneState, nn.RNN):
    r"""Multi-layer Elman RNN (Elman, 1990), in place of :class:`torch.nn.RNN`.

    .. math::
        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    With ``nonlinearity="relu"``, relu takes the place of tanh.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L, each layer reading the one below. Default: 1.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        device, dtype: of the parameters. Default: torch's.
        proj_size: refused, unless None: only :class:`LSTM` projects. Default: None.
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
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )


class LSTM(_Recurrent, nn.LSTM):
    r"""Multi-layer LSTM (Hochreiter & Schmidhuber, 1997), in place of :class:`torch.nn.LSTM`.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    With projection (Sak et al., 2014) h_t is multiplied by W_hr.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the cell state.
        num_layers: L, each layer reading the one below. Default: 1.
        bias: whether there are biases. Default: True.
        batch_first: whether input and output are [B, T, ...]. Default: False.
        dropout: probability of zeroing an output of any layer but the last, in training
            mode. Default: 0.
        bidirectional: whether every layer also runs from the sequence's end (D = 2, else 1).
            Default: False.
        proj_size: P < H, features that h is projected to; 0 for none (then P = H).
            Default: 0.
        device, dtype: of the parameters. Default: torch's.
    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, unbatched [T, I], or a
            PackedSequence, sorted or not.
        hx: (h_0, c_0), [L*D, B, P] and [L*D, B, H], without B if unbatched; zeros when None.
        keywords: lengths [B], resets [T, B], reset_state, return_states and checkpoint_every,
            which torch.nn has not: see :meth:`forward`. Default: none of them.
    Outputs:
        output [T, B, D*P], laid out as the input, and (h_n, c_n) shaped as hx.
    Raises:
        ValueError: on an argument out of range; in forward, on an input that is neither 2-D nor
            3-D, or that has another dtype than the weights.
        TypeError: on an argument of the wrong type.
        IndexError: in forward, on one tensor for hx, where torch.nn finds no second.
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
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
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    def _refuse_one_tensor(self, input: Tensor | PackedSequence, hx: Tensor) -> None:
        """Raise what nn.LSTM does, in words that name the mistake, unless hx[0], hx[1] will do."""
        packed = isinstance(input, PackedSequence)
        if packed and _hands_on(input):
            refuse_states("lstm", hx)
        dim = 3 if packed else input.dim()  # type: ignore[union-attr]
        if dim in (2, 3) and (hx.dim() != dim + 1 or hx.size(0) < 2):
            message = (
                f"LSTM: hx must be a tuple of two {dim}-D tensors, got one tensor of shape "
                f"{list(hx.shape)}: pass (h_0, c_0)"
            )
            if hx.dim() == 0 or hx.size(0) < 2 or (packed and hx.dim() <= dim):
                raise IndexError(message)
            raise RuntimeError(message)

    def _check_hidden_dim(self, hx: Any, dim: int) -> Any:
        if hx[0].dim() != dim or hx[1].dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D "
                f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return hx if dim == 3 else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        **keywords: Unpack[Keywords],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        **keywords: Unpack[Keywords],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        return_states: bool | Literal["all"],
        **keywords: Unpack[Keywords],
    ) -> tuple[Sequences, tuple[Tensor, Tensor], Any]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        **keywords: Any,  # TorchScript stops: call fusedrnn.to_torch(model) first
    ) -> Any:
        """Run all layers over whole sequences; see the class for shapes, and
        :meth:`GRU.forward` for the keyword arguments: ``lengths``, ``resets``, ``reset_state``
        (here (h, c)), ``return_states`` and ``checkpoint_every``.
        """
        if type(input) is not Tensor and (node := as_leaf(self, input, hx, **keywords)) is not None:
            return node
        weights = self._current_weights()
        if isinstance(hx, Tensor) and hx.layout is torch.strided:
            self._refuse_one_tensor(input, hx)
        self._check(input, hx)
        if hx is not None and (len(hx) != 2 or isinstance(hx, Tensor)) and not _hands_on(input):
            hx = (hx[0], hx[1])
        states = two_states(hx)
        course = course_of("LSTM", keywords)
        output, h_n, c_n, kept = self._run(input, states, weights, course)
        return with_states(course, (output, (h_n, c_n)), kept)

    if TYPE_CHECKING:  # nn.Module leaves what a call returns Any
        __call__ = forward


class GRU(_OneState, nn.GRU):
    r"""Multi-layer GRU (Cho et al., 2014), in place of :class:`torch.nn.GRU`.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

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
        proj_size: refused, unless None: only :class:`LSTM` projects. Default: None.
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
        RuntimeError: in forward, on a shape or device that does not fit.

    Parameters are drawn from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order: the same seed
    gives the same values.
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
        *,
        proj_size: int | None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
