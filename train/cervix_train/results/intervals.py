"""How sure a number is: 95 % intervals of shares, and of whatever can be resampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from cervix_engine.table.intervals import wilson

LEVEL = 0.95
RESAMPLES = 1000
_SEED = 20180613  # fixed: the same answers always give the same intervals

Interval = tuple[float, float]
# How often each of N tiles is drawn in each of R resamples, `float64 (R, N)`.
Resamples = npt.NDArray[np.float64]


def bootstrap_weights(groups: Sequence[Hashable]) -> Resamples:
    """How often each tile is drawn in each resample, `float64 (RESAMPLES, N)`.

    Whole groups are drawn, with replacement: tiles of one microscope field are not independent.
    """
    members = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([members[group] for group in groups], np.intp)
    draws = np.random.default_rng(_SEED).multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
    return draws[:, place].astype(np.float64)


def share_interval(hits: npt.NDArray[np.bool_], weights: Resamples) -> Interval:
    """The interval of the share of hits: at each end the wider of Wilson's and the bootstrap's.

    Each alone can be too sure: Wilson's where tiles of a field resemble each other, the bootstrap's where all tiles
    are hits or none is, and every resample says the same.

    Args:
        hits: `bool (N,)`.
        weights: how often each is drawn in each resample, `float64 (RESAMPLES, N)`.
    """
    scored = wilson(int(hits.sum()), len(hits))
    drawn = weights.sum(axis=1)
    if not drawn.any():
        return scored
    shares = np.divide(weights @ hits, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
    resampled = percentile_interval(shares)
    return min(scored[0], resampled[0]), max(scored[1], resampled[1])


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval:
    """The middle 95 % of resampled values; resamples in which the value is undefined (NaN) do not count."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)
