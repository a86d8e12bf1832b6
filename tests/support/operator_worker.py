"""Calls torch.ops.fusedrnn as told, a line each, and answers with a line: what became of it.

Run by test_bad_operators.py as a process of its own, so that a call that kills it is known and can
be made smaller. A line is a Python expression over the names below, and can be given again by hand:

    python operator_worker.py <<< "layer(t((4, 2, 3)), None, None, None, [], 'LSTM', True, False)"
"""

from __future__ import annotations

import faulthandler
import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import reference

OPERATORS = ["layer", "layer_backward", "layer_reference", "layer_backward_reference"]
OPERATORS += ["stack", "cell"]
# What expands to more than there is fails at once, and takes no machine.
ADDRESS_SPACE = min(24 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def freed(tensor: Tensor, bytes_left: int) -> Tensor:
    tensor.untyped_storage().resize_(bytes_left)
    return tensor


def unaligned(tensor: Tensor) -> Tensor:
    data = bytearray(3) + bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(data, dtype=tensor.dtype, offset=3).view(tensor.shape)


class Subclass(Tensor):
    pass


HOW: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda v: v,
    "grad": lambda v: v.requires_grad_(),
    "parameter": nn.Parameter,
    "transposed": lambda v: v.mT.contiguous().mT if v.dim() > 1 else v,
    "strided": lambda v: torch.stack((v, v + torch.nan if v.is_floating_point() else v), -1)[
        ..., 0
    ],
    "reversed": lambda v: v.flip(0) if v.dim() else v,
    "offset": lambda v: torch.cat((v.new_zeros(3), v.flatten()))[3:].view(v.shape),
    "expanded": lambda v: v.flatten()[:1].expand(v.shape) if v.numel() else v,
    "unaligned": unaligned,
    "inference": lambda v: torch.inference_mode()(v.clone)(),
    "subclass": lambda v: v.as_subclass(Subclass),
    "negated": lambda v: torch._neg_view(v),
    "conjugated": lambda v: v.conj() if v.is_complex() else v,
    "no numbers": lambda v: torch._efficientzerotensor(v.shape, dtype=v.dtype),
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "csr": lambda v: v.to_sparse_csr(),
    "mkldnn": lambda v: v.to_mkldnn(),
    "quantized": lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8),
    "nested": lambda v: torch.nested.nested_tensor(list(v)),
    "jagged": lambda v: torch.nested.nested_tensor(list(v), layout=torch.jagged),
    "freed": lambda v: freed(v.clone(), 0),
    "cut": lambda v: freed(v.clone(), v.numel() * v.element_size() // 2),
    "cut, strided": lambda v: freed(torch.stack((v, v), -1), v.numel() * v.element_size())[..., 0],
}


def laid_out(tensor: Tensor, how: str) -> Tensor:
    try:
        return HOW[how](tensor)
    except Exception:  # there is no such tensor of this rank or dtype
        return tensor


def t(shape: Sequence[int], dtype: str = "float32", how: str = "plain") -> Tensor:
    """A tensor of these, its values in [-1, 1], or fewer of them repeated if they are too many."""
    kind = getattr(torch, dtype)
    if math.prod(shape) > 1 << 20:
        return torch.zeros((), dtype=kind).expand(shape)
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).mul(0.7).sin()
    return laid_out(numbers.view(tuple(shape)).to(kind), how)


def sizes(values: Sequence[int], how: str = "plain") -> Tensor:
    """batch_sizes."""
    return laid_out(torch.tensor(values, dtype=torch.int64), how)


def flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [v for item in values for v in flat(item)] if isinstance(values, list | tuple) else []


def doubled(value: Any) -> Any:
    if isinstance(value, list):
        return [doubled(item) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().double()
    return value


def by_definition(name: str, args: Sequence[Any]) -> Any:
    """The same results in float64, where the definition has them."""
    args = doubled(list(args))
    if name == "stack":
        return reference.stack(*args)
    if name == "layer":  # its train, reserve and what follows are not the definition's
        return reference.layer(*args[:7])[:3]
    if name == "layer_reference":
        return reference.layer(*args)
    if name == "layer_backward_reference":
        found = reference.layer_backward(*args[:8], *args[10:12])
        return [g for g, need in zip(found, args[12], strict=False) if need and g is not None]
    if name == "cell":
        x, h, c, w_ih, w_hh, b_ih, b_hh, mode = args
        weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
        states = (h[None], None if c is None else c[None])
        _, h, c, _ = reference.layer(x[None], None, *states, weights, mode, b_ih is not None)
        return h[0], c[0] if mode == "LSTM" else c
    return None


def called(name: str, *args: Any) -> str:
    """Call an operator; use what it returns."""
    results = flat(getattr(torch.ops.fusedrnn, name)(*args))
    operands = flat(list(args))
    if any(v.is_meta for v in results):
        return "returned meta tensors"
    values = [v.detach().clone() for v in results]
    wanted = [v for v in results if v.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [torch.ones_like(v) for v in wanted])
        for operand in operands:
            if operand.grad is not None:
                operand.grad.sum().item()
    expected = None
    random = name == "stack" and args[8] and args[9]
    if not random and not any(v.is_complex() for v in operands):
        expected = by_definition(name, args)
    if expected is not None:
        exact = flat(expected)
        # A layer's reserve, its last result, is the kernels' own.
        low = any(v.dtype in (torch.float16, torch.bfloat16) for v in values)
        for value, true in zip(values, exact, strict=name != "layer"):
            torch.testing.assert_close(
                value.double(), true, rtol=0.05, atol=0.1 if low else 1e-3, equal_nan=True
            )
    return "returned"


def answer(line: str, names: dict[str, Any], known: Callable[[], str]) -> str:
    try:
        told = str(eval(line, names))
    except Exception as error:
        told = f"{type(error).__name__}: {error}".replace("\n", " ")
    finally:
        state = known()
    return told if state == "returned" else f"broke what comes after: {state}"


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    torch.set_num_threads(2)
    names: dict[str, Any] = {"t": t, "sizes": sizes, "torch": torch}
    names |= {name: partial(called, name) for name in OPERATORS}
    module = fusedrnn.LSTM(3, 5, 2, bidirectional=True)
    x = t((4, 2, 3))
    before = module(x)[0]

    def known() -> str:
        return "returned" if torch.equal(module(x)[0], before) else "a good call differs"

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what torch may print is no answer
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(answer(line, names, known) + "\n")


if __name__ == "__main__":
    main()
