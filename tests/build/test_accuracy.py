"""The comparison helper fails when it should; otherwise every other test proves nothing."""

from __future__ import annotations

import pytest
import torch

from support.accuracy import assert_as_accurate_as

EXACT = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(3, 4)


def test_equal_results_pass() -> None:
    assert_as_accurate_as(EXACT.float(), EXACT.float(), EXACT)


def test_an_error_within_twice_torchs_passes_and_beyond_fails() -> None:
    theirs = EXACT.float() + 1e-3
    assert_as_accurate_as(EXACT.float() - 1.9e-3, theirs, EXACT)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_as_accurate_as(EXACT.float() - 2.1e-3, theirs, EXACT)


def test_a_failure_names_the_worst_coordinate_expected_and_got() -> None:
    ours = EXACT.float()
    ours[1, 2] = 7
    message = r"h_n: error 5\.45 .*worst at \(1, 2\) of \[3, 4\]: expected 1\.54.*got 7\.0"
    with pytest.raises(AssertionError, match=message):
        assert_as_accurate_as(ours, EXACT.float(), EXACT, name="h_n")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_inf_or_nan_pattern_that_differs_fails(bad: float) -> None:
    broken = EXACT.clone()
    broken[2, 3] = bad
    for ours, exact in ((broken, EXACT), (EXACT, broken), (broken, -broken * torch.nan)):
        with pytest.raises(AssertionError, match="inf/nan pattern"):
            assert_as_accurate_as(ours.float(), EXACT.float(), exact)
    assert_as_accurate_as(broken.float(), broken.float(), broken)


def test_overflow_to_inf_in_a_narrow_dtype_is_expected() -> None:
    exact = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert_as_accurate_as(exact.half(), exact.half(), exact)


def test_a_wrong_shape_or_dtype_fails() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate_as(EXACT[0].float(), EXACT.float(), EXACT)
    with pytest.raises(AssertionError, match=r"expected torch\.float32"):
        assert_as_accurate_as(EXACT.half(), EXACT.float(), EXACT)
