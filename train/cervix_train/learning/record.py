"""What a training writes down of itself: recipe, versions, class distribution, and what each stage reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cervix_keras.runtime import library_versions
from cervix_train.data.dataset import Dataset
from cervix_train.data.distribution import class_distribution
from cervix_train.data.split_tiles import Part
from cervix_train.features.mixed import MixedPrecision
from cervix_train.learning.calibration import Logits
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.stages import Stage

SCHEMA = "cervix/training/1"


def training_record(
    config: TrainConfig,
    mixed: MixedPrecision,
    dataset: Dataset,
    stages: Sequence[Stage],
    kept: Stage,
    *,
    test_part: Part,
    left_out: int,
) -> dict[str, Any]:
    """The record as JSON.

    Args:
        config, mixed: what was asked for, and for what of it BF16 was; where features could not be had in BF16, the log
            says so.
        dataset: every tile with its split.
        stages: all that were trained, and the one whose weights were kept.
        kept: that one.
        test_part: the tiles that all stages are scored on.
        left_out: tiles that could not be decoded.
    """
    return {
        "schema": SCHEMA,
        "recipe": config.recipe(mixed),
        "versions": library_versions(),
        "distribution": class_distribution(dataset),
        "left_out": left_out,
        "stages": [
            {
                "name": stage.name,
                "epochs": stage.history.epochs,
                "best_epoch": stage.history.best_epoch,
                "val_loss": stage.val_loss,
                "val_accuracy": stage.history.values["val_accuracy"][stage.history.best_epoch - 1],
                **_test_scores(stage.logits["test"], test_part),
                "kept": stage is kept,
            }
            for stage in stages
        ],
    }


def _test_scores(logits: Logits, test: Part) -> dict[str, float]:
    from sklearn.metrics import f1_score

    predicted, targets = logits.argmax(axis=1), test.labelled.targets
    macro = f1_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0)
    return {"test_accuracy": float((predicted == targets).mean()), "test_macro_f1": float(macro)}
