"""What a change of answers does to accuracy, where true classes are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.table.scores import bin_members, calibration_error, macro_f1
from cervix_engine.values import Probabilities

RESAMPLES = 1000
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

    def f1(answers: Probabilities, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return macro_f1(answers.argmax(axis=1), truth, weights, classes=answers.shape[1])

    drops = f1(before, drawn) - f1(after, drawn)
    low, high = np.quantile(drops, [0.025, 0.975])
    reached = float(f1(before, once)[0])
    return AccuracyChange(
        tiles=len(truth),
        macro_f1=reached,
        macro_f1_drop=reached - float(f1(after, once)[0]),
        interval=(float(low), float(high)),
        ece_change=_ece(after, truth) - _ece(before, truth),
    )


def _ece(probabilities: Probabilities, truth: Labels) -> float:
    confidence = probabilities.max(axis=1).astype(np.float64)
    gaps = (probabilities.argmax(axis=1) == truth) - confidence
    return float(calibration_error(gaps[None], bin_members(confidence))[0])
