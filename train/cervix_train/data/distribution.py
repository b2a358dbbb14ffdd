"""How many tiles each class has, in each split, and whether that is uneven enough to matter."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from cervix_train.data.dataset import SPLITS, Dataset

log = logging.getLogger(__name__)

# From here on, accuracy says little of the rarest class, and the loss hardly hears it.
IMBALANCED = 2.0


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """How many tiles of one class each split has."""

    name: str
    train: int
    val: int
    test: int

    @property
    def splits(self) -> tuple[int, int, int]:
        """As the fields, in the order of `SPLITS`."""
        return self.train, self.val, self.test


@dataclass(frozen=True, slots=True)
class ClassDistribution:
    """Tiles per class and split, and `imbalance`: the largest class of the training split over the smallest."""

    classes: tuple[ClassCounts, ...]
    imbalance: float

    @property
    def totals(self) -> ClassCounts:
        """The counts of all classes together."""
        return ClassCounts("all", *map(sum, zip(*(item.splits for item in self.classes), strict=True)))


def class_distribution(dataset: Dataset) -> ClassDistribution:
    """Count the tiles of a data set that has its split."""
    counts = Counter((tile.label, tile.split) for tile in dataset.tiles)
    classes = tuple(ClassCounts(item.name, *(counts[item.name, split] for split in SPLITS)) for item in dataset.classes)
    learnt = [item.train for item in classes]
    return ClassDistribution(classes, max(learnt) / min(learnt))


def warn_of_imbalance(distribution: ClassDistribution) -> None:
    """Say which classes are far apart in the training split, if any are."""
    if distribution.imbalance < IMBALANCED:
        return
    smallest, *_, largest = sorted(distribution.classes, key=lambda item: item.train)
    log.warning(
        "the classes are unequal: %s has %d training tiles, %s has %d; read macro F1 and each class's recall, "
        "not accuracy alone",
        largest.name,
        largest.train,
        smallest.name,
        smallest.train,
    )
