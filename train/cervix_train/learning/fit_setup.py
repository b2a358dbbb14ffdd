"""What a fit is asked for and compiled with: optimiser, loss, class weights, TensorBoard's events.

By default as in the paper: Adamax and categorical cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cervix_engine.files import output_errors
from cervix_keras.start import KerasModel, load_keras
from cervix_train.learning.batches import Labelled
from cervix_train.learning.optimizers import build_optimizer

PATIENCE = 5
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How long and how fast.

    Attributes:
        epochs: maximum number; it stops earlier when `patience` epochs in a row brought nothing.
        learning_rate: learning rate of the optimiser.
        batch_size: tiles per step.
        seed: the same seed and inputs give the same weights.
        optimizer: one of `OPTIMIZERS`.
        class_weights: `balanced` weighs a tile's loss in training by the tiles of an average class over those of its
            class; validation stays unweighted.
        events: folder for TensorBoard's events; None writes none.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    patience: int = PATIENCE
    optimizer: str = "adamax"
    class_weights: ClassWeights = "none"
    events: Path | None = None


def class_weights(train: Labelled, config: FitConfig) -> dict[int, float] | None:
    """What the loss of each class's tiles is multiplied by; None where all count alike."""
    if config.class_weights == "none":
        return None
    counts = np.bincount(train.targets)
    average = len(train.targets) / np.count_nonzero(counts)
    return {label: average / count if count else 1.0 for label, count in enumerate(counts.tolist())}


def event_callbacks(config: FitConfig) -> list[Any]:
    """TensorBoard's, where its events are wanted.

    Raises:
        OutputError: their folder cannot be written.
    """
    if config.events is None:
        return []
    with output_errors(f"cannot write TensorBoard's events to {config.events}"):
        config.events.mkdir(parents=True, exist_ok=True)
    return [load_keras().callbacks.TensorBoard(config.events, write_graph=False)]


def compile_model(model: KerasModel, config: FitConfig, *, steps_per_execution: int) -> None:
    """Give a model its optimiser, loss and measures, and set the seed."""
    keras = load_keras()
    # Again here: how many random numbers were drawn before depends on what the cache held.
    keras.utils.set_random_seed(config.seed)
    model.compile(
        optimizer=build_optimizer(config.optimizer, learning_rate=config.learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
