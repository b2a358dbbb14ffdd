"""Trains a model as in the paper: early stopping, the best epoch kept; or for a fixed number of epochs."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.errors import ResumeMismatchError, UsageError
from cervix_keras.start import KerasModel, load_keras
from cervix_train.learning.batches import Batches, Labelled
from cervix_train.learning.fit_setup import FitConfig, class_weights, compile_model, event_callbacks
from cervix_train.learning.fit_state import FitState, restore, snapshot

log = logging.getLogger(__name__)

MEASURES = ("loss", "accuracy", "val_loss", "val_accuracy")
# One value per epoch of each of them.
Measures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Resumable:
    """Where a training keeps its state, and whether it goes on from what lies there.

    Attributes:
        path: a `.npz` file, written after every epoch.
        identity: digest of all that decides the training's course.
        resume: True refuses another training's state, False begins anew, None does whichever fits.
    """

    path: Path
    identity: str
    resume: bool | None

    def state(self) -> FitState | None:
        """What to go on from, if anything.

        Raises:
            ResumeMismatchError: a state lies there that is another training's, and `resume` is True.
        """
        if self.resume is False:
            return None
        try:
            return FitState.load(self.path, identity=self.identity)
        except ResumeMismatchError:
            if self.resume:
                raise
            log.info("an interrupted training lies there, of other tiles or settings: beginning anew")
            return None


@dataclass(frozen=True, slots=True)
class History:
    """What each epoch reached: measure -> one value per epoch.

    Measures are `loss`, `accuracy`, `val_loss`, `val_accuracy`.
    """

    values: Measures

    @property
    def epochs(self) -> int:
        return len(self.values["loss"])

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, counted from 1: the last where no validation chose one."""
        if "val_loss" not in self.values:
            return self.epochs
        return 1 + int(np.nanargmin(self.values["val_loss"]))

    def write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("epoch", *self.values))
            for epoch, row in enumerate(zip(*self.values.values(), strict=True), 1):
                writer.writerow((epoch, *(f"{value:.6f}" for value in row)))


def fit(
    model: KerasModel,
    *,
    train: Labelled,
    val: Labelled,
    checkpoint: Path,
    config: FitConfig,
    resumable: Resumable | None = None,
) -> History:
    """Train `model` in place; it ends with the weights of the epoch of lowest validation loss.

    Args:
        model: ends in a softmax over the classes.
        train, val: what is learnt from, and what chooses the epoch.
        checkpoint: a `.weights.h5` file that always holds the best weights so far.
        resumable: where the state is kept after every epoch; None keeps none.

    Raises:
        UsageError: the loss is not a number in any epoch, or the weights of the best one are not.
        ResumeMismatchError: the state that lies there is another training's.
    """
    state = resumable.state() if resumable else None
    compile_model(model, config, steps_per_execution=train.steps_per_execution)
    if state:
        _go_on(model, state, checkpoint)
    batches = _batches(train, model, config)
    epochs = _Epochs(batches, config, state, resumable)
    model.fit(
        batches.data,
        validation_data=_batches(val, model, config).data,
        class_weight=class_weights(train, config),
        epochs=config.epochs,
        initial_epoch=_next_epoch(state, config),
        # Keras would shuffle the batches once more, with Python's own random numbers, which no state keeps.
        shuffle=False,
        verbose=0,
        callbacks=epochs.callbacks(checkpoint),
    )
    _require_numbers(model, epochs.values["val_loss"], config)
    return History(epochs.values)


def fit_all(model: KerasModel, *, train: Labelled, config: FitConfig) -> History:
    """Train `model` in place for exactly `config.epochs` epochs: no tile is left to choose one by.

    Raises:
        UsageError: the weights are not numbers.
    """
    compile_model(model, config, steps_per_execution=train.steps_per_execution)
    batches = _batches(train, model, config)

    def shuffle(epoch: int, _logs: object) -> None:
        batches.reorder(np.random.default_rng((config.seed, epoch)).permutation(batches.tiles))

    own = load_keras().callbacks.LambdaCallback(on_epoch_begin=shuffle)
    history = model.fit(
        batches.data,
        class_weight=class_weights(train, config),
        epochs=config.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[own, *event_callbacks(config)],
    )
    values = {name: [float(value) for value in history.history[name]] for name in ("loss", "accuracy")}
    _require_numbers(model, values["loss"], config)
    return History(values)


def _batches(labelled: Labelled, model: KerasModel, config: FitConfig) -> Batches:
    return labelled.batches(classes=int(model.output.shape[-1]), batch_size=config.batch_size)


def _go_on(model: KerasModel, state: FitState, checkpoint: Path) -> None:
    """Put a compiled model where an interrupted training left it."""
    # The checkpoint lies in a folder that went with the killed process.
    model.set_weights(state.best_weights)
    model.save_weights(checkpoint)
    restore(model, state)
    log.info("resumed after epoch %d", state.epochs)


def _require_numbers(model: KerasModel, losses: Sequence[float], config: FitConfig) -> None:
    # Both, since some CPUs' kernels take the ReLU of NaN for 0: the loss then looks well.
    if np.isnan(losses).all() or not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise UsageError(
            "the training diverged: its loss or its weights are not numbers; lower --learning-rate "
            f"{config.learning_rate:g}"
        )


def _next_epoch(state: FitState | None, config: FitConfig) -> int:
    if state is None:
        return 0
    # A training that had stopped early before it was killed has no epoch left.
    return config.epochs if state.wait >= config.patience else state.epochs


class _Epochs:
    """What happens around each epoch: tiles in an order of its own, a line in the log, the state kept.

    Attributes:
        values: what the epochs reached so far, those before an interruption included.
    """

    def __init__(
        self, batches: Batches, config: FitConfig, state: FitState | None, resumable: Resumable | None
    ) -> None:
        self.values: Measures = {name: list(state.values[name]) if state else [] for name in MEASURES}
        self._batches, self._config, self._state, self._resumable = batches, config, state, resumable
        self._started = time.monotonic()

    def callbacks(self, checkpoint: Path) -> list[Any]:
        """Keras's, and one of this object's methods; it is last, so it sees what the others decided."""
        callbacks = load_keras().callbacks
        self._stopping = callbacks.EarlyStopping(
            monitor="val_loss", patience=self._config.patience, restore_best_weights=True
        )
        self._saving = callbacks.ModelCheckpoint(
            checkpoint, monitor="val_loss", save_best_only=True, save_weights_only=True
        )
        own = callbacks.LambdaCallback(
            on_train_begin=self._remember, on_epoch_begin=self._shuffle, on_epoch_end=self._record
        )
        return [self._stopping, self._saving, *event_callbacks(self._config), own]

    def _remember(self, _logs: object) -> None:
        # Both forget everything when a training begins.
        if state := self._state:
            self._stopping.wait, self._stopping.best_epoch = state.wait, state.best_epoch
            self._stopping.best = self._saving.best = state.best
            self._stopping.best_weights = state.best_weights

    def _shuffle(self, epoch: int, _logs: object) -> None:
        # The epoch's own order, so that it does not matter how many epochs this process has seen.
        self._batches.reorder(np.random.default_rng((self._config.seed, epoch)).permutation(self._batches.tiles))

    def _record(self, epoch: int, logs: dict[str, float]) -> None:
        for name in MEASURES:
            self.values[name].append(float(logs[name]))
        if self._resumable:
            _state(self._stopping, self.values, self._resumable.identity).save(self._resumable.path)
        # Said last: what the log names is kept.
        pace = (time.monotonic() - self._started) / (epoch + 1 - (self._state.epochs if self._state else 0))
        log.info(
            "epoch %d of %d: loss %.4f, accuracy %.3f, val_loss %.4f, val_accuracy %.3f, at most %.0f s left",
            epoch + 1,
            self._config.epochs,
            *(logs[name] for name in MEASURES),
            pace * (self._config.epochs - epoch - 1),
        )


def _state(stopping: Any, values: Measures, identity: str) -> FitState:
    model = stopping.model
    return FitState(
        identity=identity,
        values=values,
        best=stopping.best,
        best_epoch=stopping.best_epoch,
        wait=stopping.wait,
        variables=snapshot(model.variables),
        optimizer=snapshot(model.optimizer.variables),
        best_weights=stopping.best_weights,
    )
