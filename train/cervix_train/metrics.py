"""Measures a classifier's answers against the true classes.

Definitions are scikit-learn's, with `zero_division=0`: precision of a class that was never predicted is 0.
Macro averages go over the classes that occur. For `abnormal_vs_rest`, a tile counts as called abnormal when its
predicted class is of category `abnormal`; AUROC ranks tiles by the sum of those classes' probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import TileClass

SCHEMA = "cervix/metrics/1"

Probabilities = npt.NDArray[np.float32]
Targets = npt.NDArray[np.intp]
Averages = dict[str, float]


def measure(
    probabilities: Probabilities, targets: Targets, *, classes: Sequence[TileClass], split: str, failed: int = 0
) -> dict[str, Any]:
    """All metrics of one evaluation, as JSON of the schema `cervix/metrics/1`.

    Args:
        probabilities: `float32 (N, classes)`.
        targets: `intp (N,)`, indices into `classes`.
        classes: in output order.
        split: which tiles these were: `train`, `val`, `test` or `all`.
        failed: tiles that could not be decoded and are in none of the other numbers.

    Raises:
        ValueError: there are no tiles, or the shapes differ.
    """
    if probabilities.shape != (len(targets), len(classes)) or not len(targets):
        raise ValueError(f"probabilities {probabilities.shape} for {len(targets)} tiles and {len(classes)} classes")
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    labels = list(range(len(classes)))
    scores = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=0)
    support = np.asarray(scores[3])
    return {
        "schema": SCHEMA,
        "split": split,
        "tiles": len(targets),
        "failed": failed,
        "accuracy": float((predicted == targets).mean()),
        "per_class": [_class_scores(item, *(column[i] for column in scores)) for i, item in enumerate(classes)],
        "macro": _average(scores, weights=(support > 0).astype(float)),
        "weighted": _average(scores, weights=support.astype(float)),
        "confusion_matrix": confusion_matrix(targets, predicted, labels=labels).tolist(),
        "abnormal_vs_rest": _abnormal_vs_rest(probabilities, targets, classes=classes),
    }


def _class_scores(item: TileClass, precision: float, recall: float, f1: float, support: int) -> dict[str, Any]:
    scores = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    return {"name": item.name, **scores, "tiles": int(support)}


def _average(scores: Sequence[Any], *, weights: npt.NDArray[np.float64]) -> Averages:
    names = ("precision", "recall", "f1")
    return {name: float(np.average(column, weights=weights)) for name, column in zip(names, scores, strict=False)}


def _abnormal_vs_rest(
    probabilities: Probabilities, targets: Targets, *, classes: Sequence[TileClass]
) -> dict[str, Any] | None:
    """None where the tiles are all abnormal or all not, so that nothing can be told apart."""
    from sklearn.metrics import roc_auc_score

    abnormal = np.array([item.category == "abnormal" for item in classes])
    truth, called = abnormal[targets], abnormal[probabilities.argmax(axis=1)]
    if truth.all() or not truth.any():
        return None
    return {
        "abnormal_tiles": int(truth.sum()),
        "sensitivity": float(called[truth].mean()),
        "specificity": float((~called[~truth]).mean()),
        "auroc": float(roc_auc_score(truth, probabilities[:, abnormal].sum(axis=1))),
    }
