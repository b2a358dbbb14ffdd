"""Measures how far confidences can be believed, without the temperature and with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.table.scores import BINS, bin_members, calibration_error
from cervix_engine.values import Probabilities
from cervix_train.data.dataset import HELD_OUT, Split
from cervix_train.learning.temperature import BOUNDS, Logits, Targets, nll, nll_of_each, softmax
from cervix_train.results.intervals import RESAMPLES, Interval, Resamples, percentile_interval

_GRID = 600  # temperatures that are tried in each resample: 1 % apart, where intervals are tens of percent wide
_SEED = 20170806


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Tiles whose confidence lies between `low` and `high`: how sure the model was on average, and how often right."""

    low: float
    high: float
    tiles: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well confidences match hits.

    Attributes:
        nll: mean negative log-likelihood of the true classes, in nats.
        brier: Brier score.
        ece: expected calibration error (`calibration_error`), above 0 even for a perfect model of few tiles.
        ece_interval: its 95 % interval.
        ece_if_calibrated: within which range it would lie in 95 % of data sets if the model were calibrated.
        bins: those that hold tiles, from the lowest confidence.
    """

    nll: float
    brier: float
    ece: float
    ece_interval: Interval
    ece_if_calibrated: Interval
    bins: tuple[ReliabilityBin, ...]

    @property
    def miscalibrated(self) -> bool:
        # An ECE below the range is luck, and no fault.
        return self.ece > self.ece_if_calibrated[1]


@dataclass(frozen=True, slots=True)
class SplitCalibration:
    """The same answers without and with the temperature.

    Attributes:
        nll_change_interval: 95 % interval of the change of the NLL, tile by tile.
    """

    tiles: int
    before: Reliability
    after: Reliability
    nll_change_interval: Interval


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature, and what it changed; of the schema `cervix/calibration/2`."""

    temperature: float
    temperature_interval: Interval
    val: SplitCalibration
    test: SplitCalibration

    schema: ClassVar[str] = "cervix/calibration/2"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def calibration_of(
    logits: dict[Split, Logits], targets: dict[Split, Targets], weights: dict[Split, Resamples], *, temperature: float
) -> Calibration:
    """What a temperature that was fitted on validation tiles does to both splits.

    Args:
        logits, targets: of each split, as `fit_temperature`.
        weights: of each split, as `measure_reliability`.
    """
    return Calibration(
        temperature,
        temperature_interval(logits["val"], targets["val"], weights=weights["val"]),
        *(
            before_and_after(logits[split], targets[split], temperature=temperature, weights=weights[split])
            for split in HELD_OUT
        ),
    )


def temperature_interval(logits: Logits, targets: Targets, *, weights: Resamples) -> Interval:
    """The temperature's own 95 % interval, fitted anew to each resample of the tiles.

    Each tile's likelihood is computed once at every temperature of a fine grid; a resample only weighs them.

    Args:
        logits, targets: as `fit_temperature`.
        weights: as `measure_reliability`.
    """
    grid = np.geomspace(*BOUNDS, _GRID)
    losses = np.stack([nll_of_each(softmax(logits / temperature), targets) for temperature in grid], axis=1)
    return percentile_interval(grid[(weights @ losses).argmin(axis=1)])


def before_and_after(
    logits: Logits, targets: Targets, *, temperature: float | npt.NDArray[np.float64], weights: Resamples
) -> SplitCalibration:
    """The calibration of the same answers without and with the temperature; `weights` as `measure_reliability`.

    The temperature may be each tile's own, `float64 (N, 1)`.
    """
    before, after = (
        measure_reliability(softmax(logits / divisor).astype(np.float32), targets, weights=weights)
        for divisor in (1.0, temperature)
    )
    change = nll_of_each(softmax(logits / temperature), targets) - nll_of_each(softmax(logits), targets)
    interval = percentile_interval((weights @ change) / weights.sum(axis=1))
    return SplitCalibration(len(targets), before, after, interval)


def measure_reliability(probabilities: Probabilities, targets: Targets, *, weights: Resamples) -> Reliability:
    """Measure how well confidences match hits.

    For `ece_if_calibrated`, hits are drawn with the stated confidences as their chances.

    Args:
        probabilities: `float32 (N, classes)`.
        targets: `intp (N,)`.
        weights: how often each tile is drawn in each resample.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    hit = (probabilities.argmax(axis=1) == targets).astype(np.float64)
    member = bin_members(confidence)
    drawn = np.random.default_rng(_SEED).random((RESAMPLES, len(hit))) < confidence
    one_hot = np.eye(probabilities.shape[1])[targets]
    resampled = calibration_error((hit - confidence) * weights, member) / weights.mean(axis=1)
    return Reliability(
        nll=nll(probabilities, targets),
        brier=float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        ece=float(calibration_error((hit - confidence)[None], member)[0]),
        ece_interval=percentile_interval(resampled),
        ece_if_calibrated=percentile_interval(calibration_error(drawn - confidence, member)),
        bins=_bins(confidence, hit, member),
    )


def calibration_warnings(calibration: Calibration) -> list[str]:
    """What shows on the test tiles that the temperature does not fit them, a sentence each; empty where it does."""
    temperature, test = calibration.temperature, calibration.test
    found = []
    # Of the same tiles, so that a change is seen long before the two figures' own intervals part.
    if test.nll_change_interval[0] > 0:
        # The likelihood has one minimum, so the test tiles' own temperature lies on the other side.
        kind, left = ("harder", "too unsure") if temperature > 1 else ("easier", "too sure")
        found.append(
            f"temperature {temperature:.3f} makes the test tiles' NLL worse ({test.before.nll:.4f} before, "
            f"{test.after.nll:.4f} after): the validation tiles are {kind} than the test tiles, of which it leaves the "
            f"model {left}"
        )
    if test.after.miscalibrated:
        low, high = test.after.ece_if_calibrated
        # Where the validation tiles' own ECE is too high, one number was not enough, whatever the test tiles are like.
        both = "so does the validation tiles', which one temperature does not mend"
        cause = both if calibration.val.after.miscalibrated else _shift(test.after)
        found.append(
            f"the test tiles' ECE {test.after.ece:.4f} lies above a calibrated model's, {low:.4f} to {high:.4f}: "
            f"{cause}"
        )
    return found


def _shift(test: Reliability) -> str:
    """How test tiles differ from those that the temperature was fitted on, by the sign of their mean gap."""
    tiles = sum(item.tiles for item in test.bins)
    confidence = sum(item.tiles * item.confidence for item in test.bins) / tiles
    accuracy = sum(item.tiles * item.accuracy for item in test.bins) / tiles
    kind, often = ("harder", "more") if accuracy > confidence else ("easier", "less")
    return (
        f"the validation tiles are {kind} than the test tiles, of which the model is right {often} often "
        f"({accuracy:.1%}) than it says ({confidence:.1%})"
    )


def _bins(
    confidence: npt.NDArray[np.float64], hit: npt.NDArray[np.float64], member: npt.NDArray[np.float64]
) -> tuple[ReliabilityBin, ...]:
    counts = member.sum(axis=0)
    return tuple(
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            tiles=int(counts[number]),
            confidence=float(confidence @ member[:, number] / counts[number]),
            accuracy=float(hit @ member[:, number] / counts[number]),
        )
        for number in np.flatnonzero(counts).tolist()
    )
