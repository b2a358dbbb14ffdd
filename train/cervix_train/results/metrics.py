"""Measures a classifier's answers against the true classes.

Definitions are scikit-learn's, with `zero_division=0`: precision of a class that was never predicted is 0.
Macro averages go over the classes that occur. For `abnormal_vs_rest`, a tile counts as called abnormal when its
predicted class is of category `abnormal`; AUROC ranks tiles by the sum of those classes' probabilities.

Every `…_interval` holds 95 % by the bootstrap, which resamples whole groups of tiles; of a share it is at each end
the wider of that and Wilson's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import TileClass
from cervix_engine.table.scores import macro_f1
from cervix_engine.values import Probabilities
from cervix_train.learning.temperature import Targets
from cervix_train.results.calibration import Reliability, measure_reliability
from cervix_train.results.intervals import (
    Interval,
    Resamples,
    bootstrap_weights,
    percentile_interval,
    share_interval,
)


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well one class is told; `tiles` are those of this class."""

    name: str
    precision: float
    recall: float
    f1: float
    tiles: int
    recall_interval: Interval


@dataclass(frozen=True, slots=True)
class Averages:
    """Averages over the classes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Misses:
    """How many tiles of one class were missed, and what they were called, most frequent first."""

    name: str
    missed: int
    called: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AbnormalVsRest:
    """How well abnormal tiles are told from all others."""

    abnormal_tiles: int
    sensitivity: float
    sensitivity_interval: Interval
    specificity: float
    specificity_interval: Interval
    auroc: float
    auroc_interval: Interval


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of one evaluation; of the schema `cervix/metrics/1`.

    Attributes:
        split: which tiles these were: `train`, `val`, `test` or `all`; `folds` where each was answered out of fold,
            in a cross-validation.
        tiles: how many were measured on.
        failed: tiles that could not be decoded and are in none of the other numbers.
        groups: how many groups the tiles are of; None where each is on its own.
        per_class: in output order, as are the rows (true) and columns (predicted) of `confusion_matrix`.
        macro, weighted: averages of the classes that occur, equally and by their tiles.
        abnormal_vs_rest: None where the tiles are all abnormal or all not, so that nothing can be told apart.
    """

    split: str
    tiles: int
    failed: int
    groups: int | None
    accuracy: float
    accuracy_interval: Interval
    per_class: tuple[ClassScores, ...]
    macro: Averages
    macro_f1_interval: Interval
    weighted: Averages
    confusion_matrix: tuple[tuple[int, ...], ...]
    false_negatives: tuple[Misses, ...]
    abnormal_vs_rest: AbnormalVsRest | None
    calibration: Reliability

    schema: ClassVar[str] = "cervix/metrics/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def measure(
    probabilities: Probabilities,
    targets: Targets,
    *,
    classes: Sequence[TileClass],
    split: str,
    failed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Metrics:
    """Measure the answers of one evaluation.

    Args:
        probabilities: `float32 (N, classes)`, of `classes` in this order.
        targets: `intp (N,)`, indices into `classes`.
        split, failed: as in `Metrics`.
        groups: which tiles belong together and are resampled together; None where each is on its own.

    Raises:
        ValueError: there are no tiles, or the shapes differ.
    """
    predicted = _predicted(probabilities, targets, len(classes))
    weights = bootstrap_weights(range(len(targets)) if groups is None else groups)
    scores = _class_scores(predicted, targets, weights, classes=classes)
    confusion = _confusion(targets, predicted, len(classes)).tolist()
    return Metrics(
        split=split,
        tiles=len(targets),
        failed=failed,
        groups=None if groups is None else len(set(groups)),
        accuracy=float((predicted == targets).mean()),
        accuracy_interval=share_interval(predicted == targets, weights),
        per_class=scores,
        macro=_average(scores, weights=[item.tiles > 0 for item in scores]),
        macro_f1_interval=percentile_interval(macro_f1(predicted, targets, weights, classes=len(classes))),
        weighted=_average(scores, weights=[item.tiles for item in scores]),
        confusion_matrix=tuple(map(tuple, confusion)),
        false_negatives=tuple(_misses(label, row, classes=classes) for label, row in enumerate(confusion)),
        abnormal_vs_rest=_abnormal_vs_rest(probabilities, targets, weights, classes=classes),
        calibration=measure_reliability(probabilities, targets, weights=weights),
    )


def _predicted(probabilities: Probabilities, targets: Targets, classes: int) -> Targets:
    if probabilities.shape != (len(targets), classes) or not len(targets):
        raise ValueError(f"probabilities {probabilities.shape} for {len(targets)} tiles and {classes} classes")
    return np.asarray(probabilities.argmax(axis=1))


def _confusion(targets: Targets, predicted: Targets, classes: int) -> Targets:
    """How often each class (rows) was called each (columns), `intp (classes, classes)`."""
    return np.bincount(classes * targets + predicted, minlength=classes**2).reshape(classes, classes)


def _class_scores(
    predicted: Targets, targets: Targets, weights: Resamples, *, classes: Sequence[TileClass]
) -> tuple[ClassScores, ...]:
    from sklearn.metrics import precision_recall_fscore_support

    labels = list(range(len(classes)))
    scores = zip(*precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0), strict=True)
    return tuple(
        ClassScores(
            item.name,
            float(precision),
            float(recall),
            float(f1),
            int(support),
            share_interval(predicted[targets == label] == label, weights[:, targets == label]),
        )
        for label, item, (precision, recall, f1, support) in zip(labels, classes, scores, strict=True)
    )


def _average(scores: Sequence[ClassScores], *, weights: Sequence[float]) -> Averages:
    columns = zip(*((item.precision, item.recall, item.f1) for item in scores), strict=True)
    return Averages(*(float(np.average(column, weights=weights)) for column in columns))


def _misses(label: int, answers: Sequence[int], *, classes: Sequence[TileClass]) -> Misses:
    """What the tiles of class `label` were called; `answers` is its row of the confusion matrix."""
    order = sorted((other for other in range(len(classes)) if other != label), key=lambda other: -answers[other])
    called = {classes[other].name: answers[other] for other in order if answers[other]}
    return Misses(classes[label].name, sum(called.values()), called)


def _abnormal_vs_rest(
    probabilities: Probabilities, targets: Targets, weights: Resamples, *, classes: Sequence[TileClass]
) -> AbnormalVsRest | None:
    abnormal = np.array([item.category == "abnormal" for item in classes])
    truth, called = abnormal[targets], abnormal[probabilities.argmax(axis=1)]
    if truth.all() or not truth.any():
        return None
    scores = probabilities[:, abnormal].sum(axis=1)
    return AbnormalVsRest(
        abnormal_tiles=int(truth.sum()),
        sensitivity=float(called[truth].mean()),
        sensitivity_interval=share_interval(called[truth], weights[:, truth]),
        specificity=float((~called[~truth]).mean()),
        specificity_interval=share_interval(~called[~truth], weights[:, ~truth]),
        auroc=float(_auroc(scores, truth, np.ones((1, len(truth))))[0]),
        auroc_interval=percentile_interval(_auroc(scores, truth, weights)),
    )


def _auroc(scores: Any, truth: npt.NDArray[np.bool_], weights: Resamples) -> npt.NDArray[np.float64]:
    """The chance that an abnormal tile has the higher score, ties counting half, under each row of weights.

    scikit-learn's takes one set of weights a call, so that a thousand resamples would take seconds. NaN where a
    resample drew tiles of one kind only.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive, negative = (
        np.add.reduceat(weights[:, order] * chosen[order], starts, axis=1) for chosen in (truth, ~truth)
    )
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.asarray(np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0))
