from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

def set_cuda_missing(reason: str, warn: Callable[[], None]) -> None: ...
def cells() -> list[dict[str, Any]]: ...
def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def fma_peak(threads: int, seconds: float = ...) -> float: ...
def eval_activation(tanh_not_sigmoid: bool, x: Tensor) -> Tensor: ...
def explain(
    mode: str,
    dtype: str,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int,
    D: int,
    batch_sizes: list[int] | None,
    training: bool,
    threads: int,
    bfloat16_weights: bool = ...,
) -> dict[str, Any]: ...
def check_fit(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
    backward: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Sequence[bool]]
    | None = ...,
) -> None: ...
def reserve_width(mode: str, dtype: str, H: int, P: int, device: str) -> int: ...
def has_tangent(tensor: Tensor) -> bool: ...
def set_second_backward(function: Callable[..., Sequence[Tensor]]) -> None: ...

class Restriction:
    block: bool
    cluster: bool
    stepwise: bool
    torch: bool
    tile: int
    none_yields: bool
    def __init__(
        self,
        *,
        block: bool = ...,
        cluster: bool = ...,
        stepwise: bool = ...,
        torch: bool = ...,
        tile: int = ...,
        none_yields: bool = ...,
    ) -> None: ...
    @staticmethod
    def to_tile(tile: int) -> Restriction: ...

def cuda_restriction() -> Restriction: ...
def cuda_device(index: int) -> dict[str, Any]: ...
def cuda_plan(
    problem: dict[str, Any],
    device: dict[str, Any],
    restriction: Restriction = ...,
    backward: bool = ...,
    index: int = ...,
) -> dict[str, Any]: ...
def cuda_choice(
    problem: dict[str, Any],
    device: dict[str, Any],
    restriction: Restriction = ...,
    no_torch: str = ...,
    index: int = ...,
) -> dict[str, Any]: ...
def cuda_plans_made() -> int: ...
def rnn_takes_tf32() -> bool: ...
def cuda_class(H: int, B: int) -> tuple[int, int]: ...
def set_measured(index: int, measured: Sequence[dict[str, Any]]) -> None: ...
def exclude_tile(index: int, backward: bool, tile: int) -> None: ...
def set_experience_loader(load: Callable[[int], None]) -> None: ...
def experience(index: int) -> dict[str, Any]: ...
