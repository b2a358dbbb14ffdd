"""What a laboratory decides by: chosen on validation tiles alone, and then measured on validation and test tiles.

A tile is called abnormal where the abnormal classes' probabilities add up to `abnormal_at`, as in `decisions.py`, whose
digits these are too. `choose` is given the validation tiles and nothing else: what it promises can be held against
the test tiles, which are looked at once, after the choice.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import DECIMALS, OperatingPoint, TileClass
from cervix_engine.values import Probabilities
from cervix_train.learning.temperature import Targets
from cervix_train.results.intervals import Interval, Resamples, percentile_interval, share_interval

_ONE: int = 10**DECIMALS

# For the table of thresholds, besides the one that was asked for.
SENSITIVITIES = (0.9, 0.95, 0.98, 0.99, 1.0)

Flags = npt.NDArray[np.bool_]
Millionths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class JudgedTiles:
    """The tiles of one split, as an operating point sees them; an item for each of N tiles.

    Attributes:
        abnormal: prob_abnormal in millionths, as a table writes it; `confidence` likewise.
        is_abnormal: whether the true class is.
        right: whether the most probable class is the true one.
        weights: how often each tile is drawn in each resample of whole groups, `float64 (R, N)`.
    """

    abnormal: Millionths
    confidence: Millionths
    is_abnormal: Flags
    right: Flags
    weights: Resamples

    @classmethod
    def of(
        cls, probabilities: Probabilities, targets: Targets, weights: Resamples, *, classes: Sequence[TileClass]
    ) -> JudgedTiles:
        """Judge answers, `float32 (N, classes)`, of tiles of these true classes, `intp (N,)`."""
        abnormal = np.array([item.category == "abnormal" for item in classes])
        written = np.rint(probabilities.astype(np.float64) * _ONE).astype(np.int64)
        return cls(
            abnormal=np.minimum(written[:, abnormal].sum(axis=1), _ONE),
            confidence=written.max(axis=1),
            is_abnormal=abnormal[targets],
            right=np.asarray(probabilities.argmax(axis=1) == targets),
            weights=weights,
        )

    @property
    def can_be_told_apart(self) -> bool:
        """Whether some tiles are abnormal and some are not."""
        return bool(self.is_abnormal.any() and not self.is_abnormal.all())


@dataclass(frozen=True, slots=True)
class Worth:
    """What an operating point is worth on some tiles, each share with its 95 % interval.

    Attributes:
        aim: the share of the validation split's abnormal cells that `abnormal_at` was chosen to find.
        sensitivity: share of abnormal tiles that are called so.
        specificity: share of all others that are not.
        review: share that a person must see.
        rest_called_right: of those that nobody must see, the share that is rightly called abnormal or not.
        rest_class_right: of the same, the share whose most probable class is the true one.

    Shares of nothing are None.
    """

    aim: float
    abnormal_at: float
    sensitivity: float
    sensitivity_interval: Interval
    specificity: float
    specificity_interval: Interval
    review: float
    review_interval: Interval
    rest_called_right: float | None
    rest_called_right_interval: Interval
    rest_class_right: float | None
    rest_class_right_interval: Interval

    def __str__(self) -> str:
        (a, b), (c, d) = self.sensitivity_interval, self.specificity_interval
        return (
            f"abnormal from {self.abnormal_at:.6f} on, sensitivity {self.sensitivity:.3f} ({a:.3f} to {b:.3f}), "
            f"specificity {self.specificity:.3f} ({c:.3f} to {d:.3f}), {self.review:.1%} to review"
        )


@dataclass(frozen=True, slots=True)
class SplitWorth:
    """One split: how many tiles, and what each threshold is worth there, the chosen one first."""

    tiles: int
    abnormal_tiles: int
    thresholds: tuple[Worth, ...]

    @property
    def chosen(self) -> Worth:
        return self.thresholds[0]


@dataclass(frozen=True, slots=True)
class DecisionReport:
    """The operating point, and what it and others are worth; of the schema `cervix/operating-point/1`.

    Attributes:
        point: chosen on validation tiles, for `sensitivity` and `review_share`.
        abnormal_at_interval: where the threshold would lie in 95 % of resamples of the validation tiles' groups.
        val, test: each split; None where there are no test tiles, or all of them are abnormal or all not.
    """

    point: OperatingPoint
    review_share: float
    abnormal_at_interval: Interval
    val: SplitWorth
    test: SplitWorth | None

    schema: ClassVar[str] = "cervix/operating-point/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def threshold_for(tiles: JudgedTiles, sensitivity: float) -> int:
    """The largest threshold, in millionths, that finds this share of the abnormal tiles; at least 1."""
    scores = np.sort(tiles.abnormal[tiles.is_abnormal])
    found = math.ceil(sensitivity * len(scores) - 1e-9)
    return max(1, int(scores[len(scores) - found]))


def choose(val: JudgedTiles, *, sensitivity: float, review_share: float) -> OperatingPoint:
    """Choose an operating point on the validation tiles, some of which are abnormal and some not.

    A person must see the tiles that the model is least sure of, and as many of those that lie closest to the threshold:
    as many as together are no more than `review_share` of the tiles.
    """
    at = threshold_for(val, sensitivity)
    confidences, distances = np.sort(val.confidence), np.sort(np.abs(val.abnormal - at))

    def point(count: int) -> OperatingPoint:
        below, within = (int(values[count]) if count else 0 for values in (confidences, distances))
        return OperatingPoint(at / _ONE, below / _ONE, within / _ONE, round(sensitivity, DECIMALS))

    counts = range(min(int(review_share * len(distances)), len(distances) - 1) + 1)
    # The more of each, the more of both together.
    fitting = bisect_right(counts, review_share, key=lambda count: float(_reviewed(point(count), val).mean()))
    return point(max(0, fitting - 1))


def threshold_interval(val: JudgedTiles, sensitivity: float) -> Interval:
    """The 95 % interval of `threshold_for`, chosen anew in each resample of whole groups."""
    order = np.argsort(-val.abnormal[val.is_abnormal], kind="stable")
    scores, weights = val.abnormal[val.is_abnormal][order], val.weights[:, val.is_abnormal][:, order]
    found = np.cumsum(weights, axis=1)
    wanted = sensitivity * found[:, -1:]
    first = (found >= wanted - 1e-9).argmax(axis=1)
    chosen = np.where(found[:, -1] > 0, np.maximum(scores[first], 1) / _ONE, np.nan)
    return percentile_interval(chosen)


def worth(point: OperatingPoint, tiles: JudgedTiles, *, aim: float) -> Worth:
    """What a point that was chosen for the sensitivity `aim` is worth on some tiles."""
    called = tiles.abnormal >= round(point.abnormal_at * _ONE)
    review, truth = _reviewed(point, tiles), tiles.is_abnormal
    shares: list[Any] = []
    for hits, among in (
        (called, truth),
        (~called, ~truth),
        (review, np.ones_like(review)),
        (called == truth, ~review),
        (tiles.right, ~review),
    ):
        share = float(hits[among].mean()) if among.any() else None
        shares += [share, share_interval(hits[among], tiles.weights[:, among])]
    return Worth(aim, point.abnormal_at, *shares)


def split_worth(point: OperatingPoint, others: Sequence[tuple[float, int]], tiles: JudgedTiles) -> SplitWorth | None:
    """What a point and other thresholds, (aim, in millionths), are worth on a split; None where nothing can be told."""
    if not tiles.can_be_told_apart:
        return None
    moved = [(aim, OperatingPoint(at / _ONE, point.review_below, point.review_within)) for aim, at in others]
    aimed = ((point.sensitivity or 0.0, point), *moved)
    return SplitWorth(
        len(tiles.abnormal), int(tiles.is_abnormal.sum()), tuple(worth(item, tiles, aim=aim) for aim, item in aimed)
    )


def report_decisions(
    val: JudgedTiles, test: JudgedTiles | None, *, sensitivity: float, review_share: float
) -> DecisionReport | None:
    """Choose on `val`, then measure there and on `test`, if there are such; None where `val` is of one side alone."""
    if not val.can_be_told_apart:
        return None
    point = choose(val, sensitivity=sensitivity, review_share=review_share)
    others = [(aim, threshold_for(val, aim)) for aim in SENSITIVITIES if aim != sensitivity]
    measured = split_worth(point, others, val)
    assert measured is not None
    interval, tested = threshold_interval(val, sensitivity), split_worth(point, others, test) if test else None
    return DecisionReport(point, review_share, interval, measured, tested)


def _reviewed(point: OperatingPoint, tiles: JudgedTiles) -> Flags:
    at, below, within = (round(value * _ONE) for value in (point.abnormal_at, point.review_below, point.review_within))
    return np.asarray((tiles.confidence < below) | (np.abs(tiles.abnormal - at) < within))
