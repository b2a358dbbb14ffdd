from __future__ import annotations

import numpy as np
import pytest

from cervix_engine.table.intervals import wilson
from cervix_train.results.intervals import RESAMPLES, bootstrap_weights, percentile_interval, share_interval


@pytest.mark.parametrize(
    ("hits", "total", "expected"),
    # The first is Newcombe's (1998, Table I), the others follow from the formula's limits.
    [(81, 263, (0.2553, 0.3662)), (0, 20, (0.0, 0.1611)), (20, 20, (0.8389, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson(hits: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson(hits, total) == pytest.approx(expected, abs=1e-4)


def test_whole_groups_are_drawn() -> None:
    weights = bootstrap_weights(["a", "b", "a", "c"])
    assert weights.shape == (RESAMPLES, 4)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.allclose(weights.mean(axis=0), 1, atol=0.1)
    assert np.array_equal(weights, bootstrap_weights(["x", "y", "x", "z"]))


def test_undefined_resamples_do_not_count() -> None:
    values = np.append(np.arange(1001.0), np.nan)
    assert percentile_interval(values) == pytest.approx((25, 975))


def test_a_shares_interval_is_the_wider_of_both() -> None:
    # All right: every resample says 1, only Wilson's doubts.
    sure = np.ones(20, bool)
    assert share_interval(sure, bootstrap_weights(range(20))) == wilson(20, 20)
    # Fields of ten tiles that are right or wrong together: Wilson's is too sure.
    fields = np.repeat([True, True, True, False, True, False], 10)
    low, high = share_interval(fields, bootstrap_weights([number // 10 for number in range(60)]))
    scored = wilson(40, 60)
    assert low < scored[0] - 0.1
    assert high > scored[1] + 0.1
    assert share_interval(np.zeros(0, bool), np.zeros((1000, 0))) == (0.0, 1.0)
