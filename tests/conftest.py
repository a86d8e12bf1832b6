"""Every test starts from the same seed and leaves torch's settings as it found them.

``--device cuda`` runs the tests whose subject is the same on every device there: what they create
without naming a device is on it, and torch.nn, the oracle, is then cuDNN. It is held to ieee
precision, as fusedrnn computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

ON_ANY_DEVICE = {
    "test_autograd",
    "test_cells",
    "test_compile",
    "test_cuda",
    "test_forward",
    "test_functional",
    "test_layers",
    "test_regressions",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedrnn")
    group.addoption("--device", help="where modules and inputs are, as in cuda or cuda:1 (cpu)")
    group.addoption("--fuzz", type=int, default=2000, help="how many random calls (2000)")
    group.addoption("--fuzz-seed", type=int, default=0, help="other calls for another number (0)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only(reason): not for another --device")
    device = config.getoption("device")
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise pytest.UsageError(f"--device {device} cannot be used: {reason}") from None
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("device")
    if device is None or torch.device(device).type == "cpu":
        return
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        runs = item.path.stem in ON_ANY_DEVICE and item.get_closest_marker("cpu_only") is None
        (kept if runs else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(autouse=True)
def _same_start(pytestconfig: pytest.Config) -> Iterator[None]:
    threads, device = torch.get_num_threads(), pytestconfig.getoption("device")
    if device is not None:
        torch.set_default_device(device)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    if device is not None:
        torch.set_default_device(None)
