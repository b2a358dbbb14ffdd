"""Trains the head on features, as in the paper: Adamax, categorical cross-entropy, early stopping."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import UsageError
from cervix_train.keras_runtime import KerasModel, load_keras

log = logging.getLogger(__name__)

PATIENCE = 5

Features = npt.NDArray[np.float32]
Targets = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Features `float32 (N, features)` and the index of each one's class, `intp (N,)`."""

    vectors: Features
    targets: Targets


@dataclass(frozen=True, slots=True)
class History:
    """What each epoch reached: measure -> one value per epoch.

    Measures are `loss`, `accuracy`, `val_loss`, `val_accuracy`.
    """

    values: dict[str, list[float]]

    @property
    def epochs(self) -> int:
        return len(self.values["loss"])

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, counted from 1."""
        return 1 + int(np.nanargmin(self.values["val_loss"]))

    def write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("epoch", *self.values))
            for epoch, row in enumerate(zip(*self.values.values(), strict=True), 1):
                writer.writerow((epoch, *(f"{value:.6f}" for value in row)))


def fit_head(
    head: KerasModel,
    *,
    train: LabelledFeatures,
    val: LabelledFeatures,
    checkpoint: Path,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> History:
    """Train `head` in place; it ends with the weights of the epoch of lowest validation loss.

    Args:
        head: `float32 (N, features)` → `float32 (N, classes)`, softmax.
        train, val: what is learnt from, and what chooses the epoch.
        checkpoint: a `.weights.h5` file that always holds the best weights so far.
        epochs: at most so many; it stops when `PATIENCE` epochs in a row brought nothing.
        learning_rate: Adamax's.
        batch_size: tiles per step.
        seed: the same seed and features give the same weights.

    Raises:
        UsageError: the loss is not a number in any epoch.
    """
    keras = load_keras()
    # Again here: how many random numbers were drawn before depends on what the cache held.
    keras.utils.set_random_seed(seed)
    head.compile(
        optimizer=keras.optimizers.Adamax(learning_rate), loss="categorical_crossentropy", metrics=["accuracy"]
    )
    classes = int(head.output.shape[-1])
    result = head.fit(
        train.vectors,
        _one_hot(train.targets, classes),
        validation_data=(val.vectors, _one_hot(val.targets, classes)),
        epochs=epochs,
        batch_size=batch_size,
        verbose=0,
        callbacks=_callbacks(keras, checkpoint),
    )
    if np.isnan(result.history["val_loss"]).all():
        raise UsageError(f"the training diverged: its loss is not a number; lower --learning-rate {learning_rate:g}")
    return History({name: [float(value) for value in values] for name, values in result.history.items()})


def _one_hot(targets: Targets, classes: int) -> Features:
    return np.eye(classes, dtype=np.float32)[targets]


def _callbacks(keras: Any, checkpoint: Path) -> list[Any]:
    return [
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=PATIENCE, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(checkpoint, monitor="val_loss", save_best_only=True, save_weights_only=True),
        keras.callbacks.LambdaCallback(on_epoch_end=_log_epoch),
    ]


def _log_epoch(epoch: int, logs: dict[str, float]) -> None:
    log.info(
        "epoch %d: loss %.4f, accuracy %.3f, val_loss %.4f, val_accuracy %.3f",
        epoch + 1,
        *(logs[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")),
    )
