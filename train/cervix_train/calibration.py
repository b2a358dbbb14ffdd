"""Makes the model's confidences mean what they say, and measures how far they do.

One number, the *temperature*, divides the logits before the softmax (Guo et al. 2017, "On Calibration of Modern
Neural Networks"). It changes no prediction. It is fitted on validation tiles and folded into the last Dense
layer, so every runtime answers with calibrated probabilities and nobody can forget, or repeat, the division.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.scores import BINS, bin_members, calibration_error
from cervix_train.batches import Inputs
from cervix_train.intervals import RESAMPLES, percentile_interval
from cervix_train.keras_runtime import KerasModel

SCHEMA = "cervix/calibration/1"
BOUNDS = (0.05, 20.0)  # of the temperature: outside, something other than calibration is wrong
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
    return {"tiles": len(targets), **measured}


def softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Probabilities of logits, row by row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def nll(probabilities: npt.NDArray[Any], targets: Targets) -> float:
    """Mean negative log-likelihood of the true classes, in nats."""
    true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.maximum(true, _SMALLEST)).mean())


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
