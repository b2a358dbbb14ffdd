"""What a training is asked for, and what of it the outcome depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.contract import ModelContract, TileClass
from cervix_engine.files import sha256_file
from cervix_train.features.extractor import Backbone, Weights
from cervix_train.learning.fit_setup import PATIENCE, ClassWeights, FitConfig
from cervix_train.learning.mixed import MixedPrecision


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What was asked for.

    Attributes:
        data: a folder or a manifest.
        out: where the bundle goes.
        classes: the classes that may occur, in output order.
        input_size: (height, width) in pixels.
        cache: folder of the feature stores.
        overwrite: whether a bundle at `out` may be replaced.
        patience: epochs without progress after which a stage stops.
        fine_tune_epochs: maximum number of epochs of the second stage; 0 leaves it out.
        thaw: share of the backbone's layers, from the last, that learn in it.
        whole: every layer learns on pixels, in one stage, instead of the head on features.
        mixed_precision: True computes what is learnt from in BF16: the backbone in stages on pixels, and training
            tiles' features; False nothing; None those stages alone, where the hardware has BF16.
        scaled_decoding: whether the model is for tiles that are decoded at 1/2 or 1/4 where they are large; see
            `ModelContract`.
        augment: altered copies of each training tile, for all stages.
        follow_links: whether links that lead out of the folder of tiles are taken too.
        optimizer: what the stages learn with, one of `OPTIMIZERS`.
        class_weights: `balanced` lets each class count alike in the loss, however many tiles it has.
        tensorboard: folder for TensorBoard's events, one below it for each stage; None writes none.
        sensitivity: the share of abnormal validation cells that the operating point must find.
        review_share: the largest share of validation tiles that it may ask a person to see.
        command: the command line that asked for it, for the record.
        resume: True goes on with an interrupted training or fails, False begins anew, None does whichever fits.
    """

    data: Path
    out: Path
    classes: Sequence[TileClass]
    backbone: Backbone
    weights: Weights
    input_size: tuple[int, int]
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    cache: Path
    overwrite: bool
    patience: int = PATIENCE
    fine_tune_epochs: int = 0
    fine_tune_learning_rate: float = 1e-5
    thaw: float = 0.5
    whole: bool = False
    mixed_precision: bool | None = None
    scaled_decoding: bool = False
    augment: int = 0
    follow_links: bool = False
    optimizer: str = "adamax"
    class_weights: ClassWeights = "none"
    tensorboard: Path | None = None
    sensitivity: float = 0.98
    review_share: float = 0.1
    command: str | None = None
    resume: bool | None = None

    def contract(self, classes: tuple[TileClass, ...]) -> ModelContract:
        """What the model's input will mean, before anything is known of the training tiles."""
        return ModelContract(classes=classes, input_size=self.input_size, scaled_decoding=self.scaled_decoding)

    def fit(self, stage: str) -> FitConfig:
        """How a stage, of the head by default, is fitted; `stage` names its folder of events."""
        return FitConfig(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
            patience=self.patience,
            optimizer=self.optimizer,
            class_weights=self.class_weights,
            events=self.tensorboard / stage if self.tensorboard else None,
        )

    def recipe(self, mixed: MixedPrecision) -> dict[str, Any]:
        """The settings that the outcome depends on, as JSON; `mixed` is what `mixed_precision` came to here."""
        weights = self.weights
        return {
            "backbone": self.backbone,
            "weights": f"{weights.name} ({sha256_file(weights)})" if isinstance(weights, Path) else weights,
            "input_size": list(self.input_size),
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "patience": self.patience,
            "fine_tune_epochs": self.fine_tune_epochs,
            "fine_tune_learning_rate": self.fine_tune_learning_rate,
            "thaw": self.thaw,
            "whole": self.whole,
            "mixed_precision": mixed.stages,
            "bf16_features": mixed.features,
            "scaled_decoding": self.scaled_decoding,
            "augment": self.augment,
            "optimizer": self.optimizer,
            "class_weights": self.class_weights,
            "seed": self.seed,
        }

    def decisions(self) -> dict[str, Any]:
        """The settings that only what is decided by the model's answers depends on, as JSON."""
        return {"sensitivity": self.sensitivity, "review_share": self.review_share}
