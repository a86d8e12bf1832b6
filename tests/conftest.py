"""Every test starts from the same seed, with nothing compiled by torch, and leaves torch's settings
as it found them.

``pytest`` runs the core, about ten minutes on two cores: every module, cell, flag and dtype,
gradients, bad input, torch.compile, each instruction set, and the CUDA kernels' main tiles on the
CPU. ``pytest --all`` runs what a change must pass. EXTENDED, below, is the difference: what
compiles for minutes, repeats the core under a sanitizer or another compiler, trains a workload for
long, or needs packages of ``.[test-all]``. ``pytest --all --night`` leaves nothing out: some of the
longest tests are otherwise run for a part of their cases.

``--device cuda`` runs the tests whose subject is the same on every device there: what they create
without naming a device is on it, and torch.nn, the oracle, is then cuDNN. It is held to ieee
precision, as fusedrnn computes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fusedrnn import _binary

CSRC = Path(__file__).parents[1] / "csrc"

ON_ANY_DEVICE = {
    "test_autograd",
    "test_cells",
    "test_compile",
    "test_cuda",
    "test_cuda_accuracy",
    "test_cuda_hardware",
    "test_forward",
    "test_functional",
    "test_layers",
    "test_regressions",
}


# Folders, files and single tests that only --all runs.
EXTENDED = {
    "examples",
    "test_activations",
    "test_cuda_compile",
    "test_cuda_glue",
    "test_cuda_opcodes",
    "test_distributed",
    "test_export",
    "test_extremes",
    "test_gpu_benchmarks",
    "test_huge",
    "test_inference_benchmarks",
    "test_kernels_native",
    "test_onnx",
    "test_planted_bugs",
    "test_reinforcement",
    "test_sanitized_extension",
    "test_sequence_benchmarks",
    "test_third_party",
    "test_typing",
    "test_autograd::test_forward_mode_and_batched_gradients_equal_finite_differences",
    "test_autograd::test_second_derivatives_equal_finite_differences",
    "test_compile::test_compiled_autograd_takes_the_backward_pass",
    "test_compile::test_reduced_overhead_trains_alike_and_keeps_earlier_results",
    "test_c_library::test_damaged_files_are_read_within_bounds",
    "test_cuda_host::test_a_planted_bug_is_caught",
    "test_cuda_host::test_a_sequence_may_be_longer_than_16_bits_count",
    "test_cuda_host::test_a_shuffle_orders_no_writes_where_that_is_asked",
    "test_cuda_host::test_kernels_match_the_reference",
    "test_cuda_host::test_the_shim_refuses_what_a_gpu_refuses",
    "test_cuda_host::test_the_shim_reports_a_fault",
    "test_cuda_host::test_the_shim_runs_what_is_right_in_any_order",
    "test_gpu_check::test_a_sanitizer_that_does_not_end_or_cannot_run_is_told",
    "test_gpu_check::test_a_test_that_hangs_is_named_with_its_parameters",
    "test_gpu_check::test_one_collection_error_takes_no_other_file_along",
    "test_gpu_check::test_the_status_and_the_last_line_say_how_a_stage_ended",
    "test_gpu_check::test_which_reports_of_a_sanitizer_decide",
    "test_guard_pages::test_no_byte_beside_a_tensor_is_touched",
    "test_isa::test_each_instruction_set_passes_tests_of_layers",
    "test_memory::test_training_takes_at_most_the_memory_that_torch_takes",
    "test_notebook::test_the_notebook_runs_and_shows_what_is_committed",
    "test_processes::test_a_child_forked_by_a_child_or_by_a_thread_computes_too",
    "test_processes::test_a_module_that_dies_with_its_graph_in_a_thread_frees_all",
    "test_processes::test_a_second_derivative_at_exit_finds_no_dead_interpreter",
    "test_processes::test_the_interpreter_waits_for_threads_that_run_a_layer",
    "test_processes::test_processes_and_loader_workers_compute_what_their_parent_does",
}
FUZZ = {False: 100, True: 1000}  # random calls, without and with --all


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedrnn")
    group.addoption("--device", help="where modules and inputs are, as in cuda or cuda:1 (cpu)")
    group.addoption("--all", action="store_true", help="every test, not the core alone")
    group.addoption("--night", action="store_true", help="with --all: every case of every test")
    group.addoption("--sample", help="k/n: of the tests chosen, each n-th from the k-th on (0/1)")
    group.addoption("--fuzz", type=int, help="how many random calls (100; with --all 1000)")
    group.addoption("--fuzz-seed", type=int, default=0, help="other calls for another number (0)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only(reason): not for another --device")
    config.addinivalue_line("markers", "nightly: for --night, and where its file is named")
    if _binary.build_info()["sources"] != _binary.digest(CSRC):
        raise pytest.UsageError(
            f"the installed fusedrnn is not built from {CSRC} as it is now: `pip install .`"
        )
    if config.getoption("fuzz") is None:
        config.option.fuzz = FUZZ[config.getoption("all")]
    device = config.getoption("device")
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise pytest.UsageError(f"--device {device} cannot be used: {reason}") from None
    torch.backends.cudnn.allow_tf32 = False


def is_core(item: pytest.Item) -> bool:
    folder, file = item.path.parent, item.path.stem
    test = getattr(item, "originalname", item.name)
    return not {folder.name, folder.parent.name, file, f"{file}::{test}"} & EXTENDED


def runs_on_any_device(item: pytest.Item) -> bool:
    return item.path.stem in ON_ANY_DEVICE and item.get_closest_marker("cpu_only") is None


def names_a_test(argument: str) -> bool:
    """Whether a command line's argument is a file or a test: who names it wants it."""
    return "::" in argument or argument.endswith(".py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("device")
    named = any(map(names_a_test, config.args))
    wanted = config.getoption("all") or named
    nightly = config.getoption("night") or named
    first, every = map(int, (config.getoption("sample") or "0/1").split("/"))
    on_cpu = device is None or torch.device(device).type == "cpu"
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        runs = (wanted or is_core(item)) and (on_cpu or runs_on_any_device(item))
        runs &= nightly or item.get_closest_marker("nightly") is None
        (kept if runs else left).append(item)
    left += [item for index, item in enumerate(kept) if index % every != first]
    kept = kept[first::every]
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(autouse=True)
def _same_start(pytestconfig: pytest.Config) -> Iterator[None]:
    threads, device = torch.get_num_threads(), pytestconfig.getoption("device")
    if device is not None:
        torch.set_default_device(device)
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:  # code that it once could not compile it never tries again
        torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)
    if device is not None:
        torch.set_default_device(None)


@pytest.fixture
def on_gpu(pytestconfig: pytest.Config) -> Iterator[None]:
    """What a test makes is on the GPU, and held to ieee precision, without ``--device`` too."""
    before, tf32 = torch.get_default_device(), torch.backends.cudnn.allow_tf32
    torch.set_default_device(pytestconfig.getoption("device") or "cuda")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_default_device(before)
