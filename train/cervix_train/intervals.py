"""How sure a number is: 95 % intervals of shares, and of whatever can be resampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 1000
_Z = 1.959963984540054  # the normal distribution's 97.5th percentile
_SEED = 20180613  # fixed: the same answers always give the same intervals

Interval = list[float]


def wilson(hits: int, total: int) -> Interval:
    """Wilson's score interval of a share, [low, high]; [0, 1] where nothing was counted.

    It takes the counted tiles for independent, so it is too narrow where tiles of one field resemble each other.
    """
    if not total:
        return [0.0, 1.0]
    share, spread = hits / total, _Z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * float(np.sqrt(share * (1 - share) / total + spread / (4 * total))) / (1 + spread)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def bootstrap_weights(groups: Sequence[Hashable]) -> npt.NDArray[np.float64]:
    """How often each tile is drawn in each resample, `float64 (RESAMPLES, N)`.

    Whole groups are drawn, with replacement: tiles of one microscope field are not independent.
    """
    members = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([members[group] for group in groups], np.intp)
    draws = np.random.default_rng(_SEED).multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
    return draws[:, place].astype(np.float64)


def share_interval(hits: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]) -> Interval:
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
    return [min(scored[0], resampled[0]), max(scored[1], resampled[1])]


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval:
    """The middle 95 % of resampled values; resamples in which the value is undefined (NaN) do not count."""
    tail = 100 * (1 - LEVEL) / 2
    return [float(value) for value in np.nanpercentile(values, [tail, 100 - tail])]
