"""Makes the model's confidences mean what they say, and measures how far they do.

One number, the *temperature*, divides the logits before the softmax (Guo et al. 2017, "On Calibration of Modern
Neural Networks"). It changes no prediction. It is fitted on validation tiles and folded into the last Dense
layer, so every runtime answers with calibrated probabilities and nobody can forget, or repeat, the division.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.table.scores import BINS, bin_members, calibration_error
from cervix_keras.runtime import KerasModel
from cervix_train.data.batches import Inputs
from cervix_train.results.intervals import RESAMPLES, Interval, percentile_interval

SCHEMA = "cervix/calibration/2"
BOUNDS = (0.05, 20.0)  # of the temperature: outside, something other than calibration is wrong
_GRID = 600  # temperatures that are tried in each resample: 1 % apart, where intervals are tens of percent wide
_SMALLEST = 1e-12  # a float32 softmax can answer 0, whose logarithm is infinite
_UNDERFLOW = float(np.finfo(np.float32).tiny)
_SEED = 20170806

Probabilities = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float64]
Targets = npt.NDArray[np.intp]


def logits_of(model: KerasModel, inputs: Inputs, *, tiles: int, batch_size: int) -> Logits:
    """Logits of all tiles, `float64 (tiles, classes)`, up to a constant per tile, which the softmax ignores."""
    chunks = np.array_split(np.arange(tiles), range(batch_size, tiles, batch_size))
    answers = np.concatenate([model.predict_on_batch(inputs(chunk)) for chunk in chunks])
    return np.asarray(np.log(np.maximum(answers.astype(np.float64), _UNDERFLOW)))


def fit_temperature(logits: Logits, targets: Targets) -> float:
    """The temperature of the lowest negative log-likelihood; 1 where none is better than none.

    Args:
        logits: `float64 (N, classes)` of validation tiles.
        targets: `intp (N,)`.
    """
    from scipy.optimize import minimize_scalar

    # In 1/T the likelihood is convex, so that the one minimum is found; its logarithm makes the steps even.
    found = minimize_scalar(
        lambda power: nll(softmax(logits / np.exp(power)), targets), bounds=np.log(BOUNDS), method="bounded"
    )
    temperature = float(np.exp(found.x))
    return temperature if nll(softmax(logits / temperature), targets) < nll(softmax(logits), targets) else 1.0


def temperature_interval(logits: Logits, targets: Targets, *, weights: npt.NDArray[np.float64]) -> Interval:
    """The temperature's own 95 % interval, fitted anew to each resample of the tiles.

    Each tile's likelihood is computed once at every temperature of a fine grid; a resample only weighs them.

    Args:
        logits, targets: as `fit_temperature`.
        weights: `float64 (R, N)`, how often each tile is drawn in each resample.
    """
    grid = np.geomspace(*BOUNDS, _GRID)
    losses = np.stack([_nll_of_each(softmax(logits / temperature), targets) for temperature in grid], axis=1)
    return percentile_interval(grid[(weights @ losses).argmin(axis=1)])


def fold_temperature(model: KerasModel, temperature: float) -> None:
    """Divide the last Dense layer's kernel and bias by `temperature`, in place."""
    last = model.layers[-1]
    last.set_weights([weight / np.float32(temperature) for weight in last.get_weights()])


def before_and_after(logits: Logits, targets: Targets, *, temperature: float, weights: Any) -> dict[str, Any]:
    """The calibration of the same answers without and with the temperature; `weights` as `measure_calibration`."""
    measured = {
        when: measure_calibration(softmax(logits / divisor).astype(np.float32), targets, weights=weights)
        for when, divisor in (("before", 1.0), ("after", temperature))
    }
    change = _nll_of_each(softmax(logits / temperature), targets) - _nll_of_each(softmax(logits), targets)
    return {
        "tiles": len(targets),
        **measured,
        "nll_change_interval": percentile_interval((weights @ change) / weights.sum(axis=1)),
    }


def softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Probabilities of logits, row by row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def nll(probabilities: npt.NDArray[Any], targets: Targets) -> float:
    """Mean negative log-likelihood of the true classes, in nats."""
    return float(_nll_of_each(probabilities, targets).mean())


def _nll_of_each(probabilities: npt.NDArray[Any], targets: Targets) -> npt.NDArray[np.float64]:
    true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, _SMALLEST)))


def measure_calibration(
    probabilities: Probabilities, targets: Targets, *, weights: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """How well confidences match hits: NLL, Brier score, expected calibration error and the reliability bins.

    ECE (`calibration_error`) is above 0 even for a perfect model of few tiles, so `ece_if_calibrated` says within which
    range it would then lie in 95 % of data sets: hits are drawn with the stated confidences as their chances.

    Args:
        probabilities: `float32 (N, classes)`.
        targets: `intp (N,)`.
        weights: `float64 (R, N)`, how often each tile is drawn in each resample.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    hit = (probabilities.argmax(axis=1) == targets).astype(np.float64)
    member = bin_members(confidence)
    drawn = np.random.default_rng(_SEED).random((RESAMPLES, len(hit))) < confidence
    one_hot = np.eye(probabilities.shape[1])[targets]
    return {
        "nll": nll(probabilities, targets),
        "brier": float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        "ece": float(calibration_error((hit - confidence)[None], member)[0]),
        "ece_interval": percentile_interval(
            calibration_error((hit - confidence) * weights, member) / weights.mean(axis=1)
        ),
        "ece_if_calibrated": percentile_interval(calibration_error(drawn - confidence, member)),
        "bins": _bins(confidence, hit, member),
    }


def doubts(calibration: dict[str, Any]) -> list[str]:
    """What speaks against the temperature on the test tiles, in plain words; `calibration` is as in its JSON."""
    temperature, test = calibration["temperature"], calibration["test"]
    before, after = test["before"], test["after"]
    found = []
    # Of the same tiles, so that a change is seen long before the two figures' own intervals part.
    if test["nll_change_interval"][0] > 0:
        # The likelihood has one minimum, so the test tiles' own temperature lies on the other side.
        kind, left = ("harder", "too unsure") if temperature > 1 else ("easier", "too sure")
        found.append(
            f"temperature {temperature:.3f} makes the test tiles' NLL worse ({before['nll']:.4f} before, "
            f"{after['nll']:.4f} after): the validation tiles are {kind} than the test tiles, of which it leaves the "
            f"model {left}"
        )
    if _miscalibrated(after):
        low, high = after["ece_if_calibrated"]
        # Where the validation tiles' own ECE is too high, one number was not enough, whatever the test tiles are like.
        both = "so does the validation tiles', which one temperature does not mend"
        cause = both if _miscalibrated(calibration["val"]["after"]) else _shift(after)
        found.append(
            f"the test tiles' ECE {after['ece']:.4f} lies above a calibrated model's, {low:.4f} to {high:.4f}: {cause}"
        )
    return found


def _miscalibrated(measured: dict[str, Any]) -> bool:
    # An ECE below the range is luck, and no fault.
    return bool(measured["ece"] > measured["ece_if_calibrated"][1])


def _shift(test: dict[str, Any]) -> str:
    """How test tiles differ from those that the temperature was fitted on, by the sign of their mean gap."""
    tiles = sum(item["tiles"] for item in test["bins"])
    confidence, accuracy = (
        sum(item["tiles"] * item[name] for item in test["bins"]) / tiles for name in ("confidence", "accuracy")
    )
    kind, often = ("harder", "more") if accuracy > confidence else ("easier", "less")
    return (
        f"the validation tiles are {kind} than the test tiles, of which the model is right {often} often "
        f"({accuracy:.1%}) than it says ({confidence:.1%})"
    )


def _bins(
    confidence: npt.NDArray[np.float64], hit: npt.NDArray[np.float64], member: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The bins that hold tiles, from the lowest confidence."""
    counts = member.sum(axis=0)
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "tiles": int(counts[number]),
            "confidence": float(confidence @ member[:, number] / counts[number]),
            "accuracy": float(hit @ member[:, number] / counts[number]),
        }
        for number in np.flatnonzero(counts).tolist()
    ]
