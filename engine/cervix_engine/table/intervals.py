"""How sure a count can make one: Wilson's interval for a share, McNemar's exact test for a pair of tables."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(count: int, total: int, *, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for the share `count / total`, 95 % by default; (0, 1) where nothing was counted.

    Unlike the textbook interval it stays within 0 and 1 and is of use at 0 of n. Source: E. B. Wilson, Journal of
    the American Statistical Association 22 (1927). It takes tiles as independent, which those of one slide are not:
    it says how little a small count means, not how far another slide of the same patient would be.

    Raises:
        ValueError: `count` is not within 0 and `total`.
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total}: expected 0 <= count <= total")
    if total == 0:
        return 0.0, 1.0
    share, width = count / total, z * z / total
    centre = (share + width / 2) / (1 + width)
    half = z / (1 + width) * math.sqrt(share * (1 - share) / total + width / (4 * total))
    # Rounding would leave 1e-17 where the interval ends at 0 or 1 exactly.
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == total else min(1.0, centre + half)
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: are two classifiers right equally often on the same tiles?

    Args:
        only_first: tiles that only the first got right.
        only_second: tiles that only the second got right.

    Tiles on which both are right or both are wrong say nothing. Under equality each other tile is a fair coin's
    toss, so this is the binomial test of `only_first` in `only_first + only_second` at one half. Source: Q. McNemar,
    Psychometrika 12 (1947), in its exact form.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second}: expected counts")
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    # In logarithms: a binomial coefficient of a million tiles is no float.
    logs = [_log_choose(discordant, k) - discordant * math.log(2) for k in range(fewer + 1)]
    largest = max(logs)
    tail = math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs)
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
