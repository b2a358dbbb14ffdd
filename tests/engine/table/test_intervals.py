"""Published values, and the definition by plain counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.table.intervals import mcnemar_exact, wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_wilson_holds_the_share(count: int, others: int) -> None:
    low, high = wilson(count, count + others)
    assert 0 <= low <= high <= 1
    if count + others:
        assert low <= count / (count + others) <= high


def test_wilson_refuses_an_impossible_count() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


@settings(deadline=None)  # a busy machine is no defect
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    n, fewer = first + second, min(first, second)
    counted = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert mcnemar_exact(first, second) == pytest.approx(counted, rel=1e-9)


def test_mcnemar_at_large_counts_is_no_overflow() -> None:
    assert mcnemar_exact(50_000, 50_000) == 1.0
    # The normal approximation: z = 1000 / sqrt(100000), two-sided 0.00157.
    assert mcnemar_exact(49_500, 50_500) == pytest.approx(0.00157, rel=0.02)
    assert 0 <= mcnemar_exact(10, 100_000) < 1e-300
