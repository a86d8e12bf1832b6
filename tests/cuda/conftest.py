"""What several of CUDA's tests start from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.gpu import Force
from support.tiles import Kernel, kernels


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """Every row of csrc/cuda/tiles.h in either pass."""
    return kernels(tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """Leaves the plan one kind of kernel."""
    return lambda kernel: monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool
