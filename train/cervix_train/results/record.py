"""What a training writes down of itself: recipe, versions, class distribution, and what each stage reached."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from cervix_engine.run.record import utc_now
from cervix_train.data.distribution import ClassDistribution
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.learning.stages import Stage


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What one stage reached, and whether its weights were kept."""

    name: str
    epochs: int
    best_epoch: int
    val_loss: float
    val_accuracy: float
    test_accuracy: float
    test_macro_f1: float
    kept: bool

    @classmethod
    def of(cls, stage: Stage, *, test: SplitTiles, kept: bool) -> StageRecord:
        from sklearn.metrics import f1_score

        history, targets = stage.history, test.labelled.targets
        predicted = stage.logits["test"].argmax(axis=1)
        macro = f1_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0)
        return cls(
            name=stage.name,
            epochs=history.epochs,
            best_epoch=history.best_epoch,
            val_loss=stage.val_loss,
            val_accuracy=history.values["val_accuracy"][history.best_epoch - 1],
            test_accuracy=float((predicted == targets).mean()),
            test_macro_f1=float(macro),
            kept=kept,
        )


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """When and where a training ran; nothing that is learnt depends on it.

    Attributes:
        started_at, ended_at: in ISO 8601, UTC.
        seconds: between them.
        host: the machine's name.
        command: the command line; None where Python asked.
    """

    started_at: str
    ended_at: str
    seconds: float
    host: str
    command: str | None

    @classmethod
    def ending_now(cls, *, began: float, command: str | None) -> TrainingRun:
        """Of a training that began at `began`, by `time.perf_counter`."""
        seconds = time.perf_counter() - began
        return cls(utc_now(seconds_ago=seconds), utc_now(), round(seconds, 3), platform.node(), command)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A training, so that it can be done again; of the schema `cervix/training/1`.

    Attributes:
        recipe: what was asked for, as `TrainConfig.recipe` gives it.
        versions: of the libraries.
        distribution: the tiles by class and split.
        left_out: tiles that could not be decoded.
        stages: all that were trained.
        environment: variables of the libraries that were set, since they may change last digits.
        run: when and where; None until it ends.
    """

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    distribution: ClassDistribution
    left_out: int
    stages: tuple[StageRecord, ...]
    environment: Mapping[str, str]
    run: TrainingRun | None = None

    schema: ClassVar[str] = "cervix/training/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}
