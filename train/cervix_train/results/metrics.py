"""Measures a classifier's answers against the true classes.

Definitions are scikit-learn's, with `zero_division=0`: precision of a class that was never predicted is 0.
Macro averages go over the classes that occur. For `abnormal_vs_rest`, a tile counts as called abnormal when its
predicted class is of category `abnormal`; AUROC ranks tiles by the sum of those classes' probabilities.

Every `…_interval` holds 95 % by the bootstrap, which resamples whole groups of tiles; of a share it is at each end
the wider of that and Wilson's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import TileClass
from cervix_engine.table.scores import macro_f1
from cervix_train.learning.calibration import measure_calibration
from cervix_train.results.intervals import bootstrap_weights, percentile_interval, share_interval

SCHEMA = "cervix/metrics/1"

Probabilities = npt.NDArray[np.float32]
Targets = npt.NDArray[np.intp]
Averages = dict[str, float]


def measure(
    probabilities: Probabilities,
    targets: Targets,
    *,
    classes: Sequence[TileClass],
    split: str,
    failed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """All metrics of one evaluation, as JSON of the schema `cervix/metrics/1`.

    Args:
        probabilities: `float32 (N, classes)`.
        targets: `intp (N,)`, indices into `classes`.
        classes: in output order.
        split: which tiles these were: `train`, `val`, `test` or `all`.
        failed: tiles that could not be decoded and are in none of the other numbers.
        groups: which tiles belong together and are resampled together; None where each is on its own.

    Raises:
        ValueError: there are no tiles, or the shapes differ.
    """
    if probabilities.shape != (len(targets), len(classes)) or not len(targets):
        raise ValueError(f"probabilities {probabilities.shape} for {len(targets)} tiles and {len(classes)} classes")
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    labels = list(range(len(classes)))
    scores = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0)
    confusion = confusion_matrix(targets, predicted, labels=labels)
    support = np.asarray(scores[3])
    weights = bootstrap_weights(range(len(targets)) if groups is None else groups)
    return {
        "schema": SCHEMA,
        "split": split,
        "tiles": len(targets),
        "failed": failed,
        "groups": len(set(groups)) if groups is not None else None,
        "accuracy": float((predicted == targets).mean()),
        "accuracy_interval": share_interval(predicted == targets, weights),
        "per_class": [
            {
                **_class_scores(item, *(column[i] for column in scores)),
                "recall_interval": share_interval(predicted[targets == i] == i, weights[:, targets == i]),
            }
            for i, item in enumerate(classes)
        ],
        "macro": _average(scores, weights=(support > 0).astype(float)),
        "macro_f1_interval": percentile_interval(macro_f1(predicted, targets, weights, classes=len(classes))),
        "weighted": _average(scores, weights=support.astype(float)),
        "confusion_matrix": confusion.tolist(),
        "false_negatives": _false_negatives(confusion, classes=classes),
        "abnormal_vs_rest": _abnormal_vs_rest(probabilities, targets, weights, classes=classes),
        "calibration": measure_calibration(probabilities, targets, weights=weights),
    }


def _class_scores(item: TileClass, precision: float, recall: float, f1: float, support: int) -> dict[str, Any]:
    scores = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    return {"name": item.name, **scores, "tiles": int(support)}


def _average(scores: Sequence[Any], *, weights: npt.NDArray[np.float64]) -> Averages:
    names = ("precision", "recall", "f1")
    return {name: float(np.average(column, weights=weights)) for name, column in zip(names, scores, strict=False)}


def _false_negatives(confusion: Any, *, classes: Sequence[TileClass]) -> list[dict[str, Any]]:
    """For each class: how many of its tiles were missed, and what they were called, most frequent first."""
    table = []
    for row, item in enumerate(classes):
        order = sorted((column for column in range(len(classes)) if column != row), key=lambda c: -confusion[row, c])
        called = {classes[column].name: int(confusion[row, column]) for column in order if confusion[row, column]}
        table.append({"name": item.name, "missed": sum(called.values()), "called": called})
    return table


def _abnormal_vs_rest(
    probabilities: Probabilities, targets: Targets, weights: Any, *, classes: Sequence[TileClass]
) -> dict[str, Any] | None:
    """None where the tiles are all abnormal or all not, so that nothing can be told apart."""
    abnormal = np.array([item.category == "abnormal" for item in classes])
    truth, called = abnormal[targets], abnormal[probabilities.argmax(axis=1)]
    if truth.all() or not truth.any():
        return None
    scores = probabilities[:, abnormal].sum(axis=1)
    return {
        "abnormal_tiles": int(truth.sum()),
        "sensitivity": float(called[truth].mean()),
        "sensitivity_interval": share_interval(called[truth], weights[:, truth]),
        "specificity": float((~called[~truth]).mean()),
        "specificity_interval": share_interval(~called[~truth], weights[:, ~truth]),
        "auroc": float(_auroc(scores, truth, np.ones((1, len(truth))))[0]),
        "auroc_interval": percentile_interval(_auroc(scores, truth, weights)),
    }


def _auroc(scores: Any, truth: npt.NDArray[np.bool_], weights: Any) -> npt.NDArray[np.float64]:
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
