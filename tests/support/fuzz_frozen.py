"""Every third of a fuzzer's calls goes through freeze as well.

Frozen as it is, a layer is held to float64 as the call itself is. Frozen narrow, its results must
be finite, and the same bits whole, in chunks and step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn
from support.oracle import tensors_of

EVERY = 3
NARROW = (torch.bfloat16, torch.int8)

Call = Callable[[nn.RNNBase], dict[str, Tensor]]


def is_due(case: Any) -> bool:
    """Whether this case is among them; a frozen layer has no dropout, and there are no cells."""
    return case.seed % EVERY == 0 and case.call != "cell" and not case.problem.dropout


def frozen(case: Any, module: Any, call: Call, input: Any, hx: Any) -> dict[str, Tensor]:
    """What the frozen layer gives for the call, and what has to hold of its narrow twins.

    Args:
        call: of a module, with the case's input, states and keywords.
    """
    p = case.problem
    for dtype in NARROW if p.dtype != torch.float64 else ():
        low = fusedrnn.freeze(module, dtype)
        for name, value in call(low).items():
            assert value.isfinite().all(), f"{name}, frozen {dtype}: not finite"
        in_parts(low, p, input, hx, dtype)
    low = fusedrnn.freeze(module)
    in_parts(low, p, input, hx, None)
    return {f"{name} frozen": value for name, value in call(low).items()}


def in_parts(low: Any, p: Any, input: Any, hx: Any, dtype: torch.dtype | None) -> None:
    """A padded batch without further arguments: a stream gives the bits of the whole call."""
    plain = p.form == "batched" and p.T > 1 and p.B > 0 and not p.bidirectional
    if not plain or p.dtype not in (torch.float32, torch.float64):
        return
    x = input.detach().contiguous()
    whole, end = low(x, hx)
    stream = low.stream(p.B)
    if hx is not None:
        states = tuple(s.detach().contiguous() for s in tensors_of(hx))
        stream.state = states if p.mode == "LSTM" else states[0]
    stepped = [torch.from_numpy(stream.step(one).copy()) for one in x[: min(3, p.T - 1)]]
    found = torch.cat((torch.stack(stepped), stream.run(x[len(stepped) :])))
    assert torch.equal(found, whole), f"frozen {dtype}: other bits in parts"
    for a, b in zip(tensors_of(stream.state), tensors_of(end), strict=True):
        assert torch.equal(a, b), f"frozen {dtype}: another state in parts"
