"""One number, the *temperature*, that makes the model's confidences mean what they say.

It divides the logits before the softmax (Guo et al. 2017, "On Calibration of Modern Neural Networks") and changes no
prediction. It is fitted on validation tiles and folded into the last Dense layer, so every runtime answers with
calibrated probabilities and nobody can forget, or repeat, the division.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_keras.start import KerasModel
from cervix_train.learning.batches import Inputs

BOUNDS = (0.05, 20.0)  # of the temperature: outside, something other than calibration is wrong
_SMALLEST = 1e-12  # a float32 softmax can answer 0, whose logarithm is infinite
_UNDERFLOW = float(np.finfo(np.float32).tiny)

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


def softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Probabilities of logits, row by row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def nll(probabilities: npt.NDArray[Any], targets: Targets) -> float:
    """Mean negative log-likelihood of the true classes, in nats."""
    return float(nll_of_each(probabilities, targets).mean())


def nll_of_each(probabilities: npt.NDArray[Any], targets: Targets) -> npt.NDArray[np.float64]:
    true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, _SMALLEST)))
