"""ROC and precision-recall curves of abnormal tiles against the rest, each with its band."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cervix_train.results.intervals import Interval, percentile_interval
from cervix_train.results.operating_point import JudgedTiles

CurveKind = Literal["roc", "precision_recall"]
CURVE_KINDS: tuple[CurveKind, ...] = get_args(CurveKind)

# A band needs no thousand resamples to be seen, and every one costs a call of scikit-learn.
_RESAMPLES = 200
_GRID = np.linspace(0, 1, 101)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve.

    Attributes:
        x, y: false-positive rate and sensitivity; or sensitivity (recall) and precision.
        grid, low, high: its 95 % band, point by point.
        area: below it (of precision-recall, the average precision), with its 95 % interval.
    """

    x: Floats
    y: Floats
    grid: Floats
    low: Floats
    high: Floats
    area: float
    area_interval: Interval


def curve(tiles: JudgedTiles, kind: CurveKind) -> Curve:
    """A split's curve; some tiles must be abnormal and some not. Whole groups are resampled."""
    points, area = _KINDS[kind]
    x, y = points(tiles, None)
    drawn = [points(tiles, row) for row in tiles.weights[:_RESAMPLES] if _has_both(tiles, row)] or [(x, y)]
    low, high = np.percentile([np.interp(_GRID, *resampled) for resampled in drawn], (2.5, 97.5), axis=0)
    interval = percentile_interval(np.array([area(*resampled) for resampled in drawn]))
    return Curve(x, y, _GRID, low, high, area(x, y), interval)


def _has_both(tiles: JudgedTiles, weights: Floats) -> bool:
    return bool(weights[tiles.is_abnormal].any() and weights[~tiles.is_abnormal].any())


def _roc(tiles: JudgedTiles, weights: Floats | None) -> tuple[Floats, Floats]:
    from sklearn.metrics import roc_curve

    false_positives, sensitivity, _ = roc_curve(tiles.is_abnormal, tiles.abnormal, sample_weight=weights)
    return false_positives, sensitivity


def _precision_recall(tiles: JudgedTiles, weights: Floats | None) -> tuple[Floats, Floats]:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(tiles.is_abnormal, tiles.abnormal, sample_weight=weights)
    return recall[::-1], precision[::-1]


def _auroc(x: Floats, y: Floats) -> float:
    from sklearn.metrics import auc

    return float(auc(x, y))


def _average_precision(recall: Floats, precision: Floats) -> float:
    """As scikit-learn's `average_precision_score`, of points that are there already."""
    return float(np.diff(recall) @ precision[1:])


Points = Callable[[JudgedTiles, Floats | None], tuple[Floats, Floats]]
Area = Callable[[Floats, Floats], float]

_KINDS: dict[CurveKind, tuple[Points, Area]] = {
    "roc": (_roc, _auroc),
    "precision_recall": (_precision_recall, _average_precision),
}
