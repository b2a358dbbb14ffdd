"""What a cross-validation writes down: every tile's answer out of fold, and the figures of each fold and of all.

`training/folds.csv` has one row a tile, answered by the model of its fold, which learnt from other groups alone.
`training/folds.json`, of the schema `cervix/folds/1`, has the figures.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import ContractError, UsageError
from cervix_engine.table.columns import probability
from cervix_engine.values import Probabilities
from cervix_train.data.dataset import LabelledTile
from cervix_train.data.splits import group_of
from cervix_train.learning.temperature import Targets
from cervix_train.results.intervals import Interval
from cervix_train.results.metrics import Metrics

FOLDS_FILE, FIGURES_FILE = "training/folds.csv", "training/folds.json"
COLUMNS = ("path", "label", "group", "fold", "pred")


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracy and macro-F1 of some tiles, with 95 % intervals by groups."""

    tiles: int
    groups: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval

    @classmethod
    def of(cls, metrics: Metrics) -> Figures:
        return cls(
            metrics.tiles,
            metrics.groups or metrics.tiles,
            metrics.accuracy,
            metrics.accuracy_interval,
            metrics.macro.f1,
            metrics.macro_f1_interval,
        )


@dataclass(frozen=True, slots=True)
class FoldFigures:
    """One fold's: how its model was trained, and how it answers the fold's tiles.

    Attributes:
        fold: its number, from 1.
        epochs, best_epoch: trained, and kept.
        val_loss: of the kept epoch, on the next fold.
        temperature: fitted on the next fold.
        figures: of this fold's tiles.
    """

    fold: int
    epochs: int
    best_epoch: int
    val_loss: float
    temperature: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """All folds; of the schema `cervix/folds/1`.

    Attributes:
        folds: in their order.
        pooled: of all tiles, each answered by its fold's model.
        epochs: of the model that learnt from all tiles: the median of the folds' best.
        temperature: of that model, fitted on all answers out of fold.
        caveats: what keeps the figures from being quite honest, a sentence each.
    """

    folds: tuple[FoldFigures, ...]
    pooled: Figures
    epochs: int
    temperature: float
    caveats: tuple[str, ...]

    schema: ClassVar[str] = "cervix/folds/1"

    def spread(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over the folds of `accuracy` or `macro_f1`."""
        values = [getattr(item.figures, name) for item in self.folds]
        return fmean(values), stdev(values)

    def to_json(self) -> dict[str, Any]:
        spread = {name: dict(zip(("mean", "sd"), self.spread(name), strict=True)) for name in ("accuracy", "macro_f1")}
        folds = [{**asdict(item), **asdict(item.figures)} for item in self.folds]
        for item in folds:
            del item["figures"]
        return {
            "schema": self.schema,
            "folds": folds,
            "pooled": asdict(self.pooled),
            "over_folds": spread,
            "final_model": {"epochs": self.epochs, "temperature": self.temperature},
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True, slots=True)
class FoldTable:
    """The answers out of fold of some tiles, in the order of their paths.

    Attributes:
        paths, labels, groups, folds: of each of N tiles; folds from 1.
        class_names: in output order.
        probabilities: `float32 (N, classes)`.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    folds: tuple[int, ...]
    class_names: tuple[str, ...]
    probabilities: Probabilities

    @property
    def targets(self) -> Targets:
        return np.array([self.class_names.index(label) for label in self.labels], np.intp)

    @classmethod
    def of(
        cls,
        tiles: Sequence[LabelledTile],
        folds: Sequence[int],
        probabilities: Probabilities,
        class_names: tuple[str, ...],
    ) -> FoldTable:
        return cls(
            tuple(tile.path.as_posix() for tile in tiles),
            tuple(tile.label for tile in tiles),
            tuple(group_of(tile) for tile in tiles),
            tuple(folds),
            class_names,
            probabilities,
        )

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, *(f"prob_{name}" for name in self.class_names)))
            named = zip(self.paths, self.labels, self.groups, self.folds, self.probabilities, strict=True)
            for tile, label, group, fold, row in named:
                pred = self.class_names[int(row.argmax())]
                # All digits: who reads it back gets the same classes, also of ties that were nearly some.
                writer.writerow((tile, label, group, fold, pred, *(repr(float(value)) for value in row)))

    @classmethod
    def read(cls, root: Path) -> FoldTable:
        """The table in the bundle at `root`.

        Raises:
            UsageError: there is no bundle, or it was not cross-validated.
            ContractError: it was altered, or its table is malformed.
        """
        bundle = Bundle.open(root)
        if FOLDS_FILE not in bundle:
            raise UsageError(f"{root} has no {FOLDS_FILE}: train it with cervix-train --folds K")
        text = bundle.read(FOLDS_FILE).decode("utf-8", "surrogateescape")
        names = bundle.contract.class_names
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            values = [[probability(row[f"prob_{name}"]) for name in names] for row in rows]
            columns = {name: tuple(row[name] for row in rows) for name in COLUMNS}
            folds = tuple(map(int, columns["fold"]))
        except (csv.Error, KeyError, ValueError, TypeError) as error:
            raise ContractError(f"the bundle's {FOLDS_FILE} is malformed: {error}") from error
        probabilities = np.array(values, np.float32).reshape(-1, len(names))
        return cls(columns["path"], columns["label"], columns["group"], folds, names, probabilities)


def median_epochs(best: Sequence[int]) -> int:
    """How long the model of all tiles learns: the median of the folds' best epochs, rounded up."""
    return math.ceil(float(np.median(best)))
