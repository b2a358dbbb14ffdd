"""What a classifier's answers are worth where true classes are known: macro-F1 of resamples, and calibration.

numpy alone: an engine machine has no scikit-learn, and training, export and engine must mean the same by these names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.intp]


def macro_f1(predicted: Classes, truth: Classes, weights: npt.NDArray[Any], *, classes: int) -> Floats:
    """Macro-F1 of each of R resamples, `float64 (R,)`, over the classes that occur in it.

    All resamples at once: a confusion matrix is linear in the tiles' weights.

    Args:
        predicted, truth: `intp (N,)`, each below `classes`.
        weights: `(R, N)`, how often each tile counts in each resample.
    """
    cells = np.eye(classes * classes)[truth * classes + predicted]
    confusion = (weights @ cells).reshape(-1, classes, classes)
    both = confusion.sum(axis=1) + confusion.sum(axis=2)
    f1 = 2 * np.diagonal(confusion, axis1=1, axis2=2) / np.where(both > 0, both, np.inf)
    occurs = confusion.sum(axis=2) > 0
    return np.asarray((f1 * occurs).sum(axis=1) / occurs.sum(axis=1))


def bin_members(confidence: Floats) -> Floats:
    """Which of `BINS` bins of equal width each confidence lies in, `float64 (N, BINS)` of 0 and 1."""
    return np.asarray(np.eye(BINS)[np.minimum((confidence * BINS).astype(np.intp), BINS - 1)])


def calibration_error(gaps: Floats, member: Floats) -> Floats:
    """Expected calibration error, `float64 (R,)` (Naeini et al. 2015; Guo et al. 2017).

    Args:
        gaps: `(R, N)`, of each tile 1 or 0 for a hit or a miss, less its confidence.
        member: as `bin_members`.
    """
    return np.asarray(np.abs(gaps @ member).sum(axis=1) / gaps.shape[1])
