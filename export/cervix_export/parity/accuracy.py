"""What a change of answers does to accuracy, where true classes are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cervix_engine.certificate import Probabilities

RESAMPLES = 1000
BINS = 15
_SEED = 0

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """Differences between a candidate's accuracy and its reference's on the same tiles.

    Attributes:
        tiles: how many have a known class.
        macro_f1: the reference's.
        macro_f1_drop: the reference's less the candidate's.
        interval: of the drop, 95 %, both resampled together (paired bootstrap over tiles).
        ece_change: the candidate's expected calibration error less the reference's.
    """

    tiles: int
    macro_f1: float
    macro_f1_drop: float
    interval: tuple[float, float]
    ece_change: float


def accuracy_change(reference: Probabilities, candidate: Probabilities, labels: Labels) -> AccuracyChange | None:
    """Compare two sets of answers, `float32 (N, classes)` each, by the true classes `intp (N,)`, -1 where unknown.

    Returns:
        None where no class is known.
    """
    known = labels >= 0
    if not known.any():
        return None
    truth, before, after = labels[known], reference[known], candidate[known]
    once = np.ones((1, len(truth)))
    drawn = np.random.default_rng(_SEED).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), RESAMPLES)
    drops = macro_f1(before, truth, drawn) - macro_f1(after, truth, drawn)
    low, high = np.quantile(drops, [0.025, 0.975])
    f1 = float(macro_f1(before, truth, once)[0])
    return AccuracyChange(
        tiles=len(truth),
        macro_f1=f1,
        macro_f1_drop=f1 - float(macro_f1(after, truth, once)[0]),
        interval=(float(low), float(high)),
        ece_change=_ece(after, truth) - _ece(before, truth),
    )


def macro_f1(
    probabilities: Probabilities, truth: Labels, weights: npt.NDArray[np.float64] | npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Macro-F1 of each of R resamples, `float64 (R,)`; a class that occurs nowhere in one is left out of its mean.

    Args:
        probabilities: `float32 (N, classes)`.
        truth: `intp (N,)`.
        weights: `(R, N)`, how often each tile counts in each resample.
    """
    one_hot = np.eye(probabilities.shape[1])
    predicted, true = one_hot[probabilities.argmax(axis=1)], one_hot[truth]
    hits, counts = weights @ (predicted * true), weights @ predicted + weights @ true
    f1 = np.divide(2 * hits, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return np.asarray(np.nanmean(f1, axis=1))


def _ece(probabilities: Probabilities, truth: Labels) -> float:
    """Expected calibration error over `BINS` bins of equal width (Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == truth) - confidence
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    return float(np.abs(np.bincount(bins, gap, minlength=BINS)).sum() / len(truth))
