"""How many tiles each class has, in each split, and whether that is uneven enough to matter."""

from __future__ import annotations

import logging
from typing import Any

from cervix_train.data.dataset import SPLITS, Dataset

log = logging.getLogger(__name__)

# From here on, accuracy says little of the rarest class, and the loss hardly hears it.
IMBALANCED = 2.0


def class_distribution(dataset: Dataset) -> dict[str, Any]:
    """Tiles per class and split, and `imbalance`: the largest class of the training split over the smallest."""
    names = [item.name for item in dataset.classes]
    counts = {name: dict.fromkeys(SPLITS, 0) for name in names}
    for tile in dataset.tiles:
        if tile.split is not None:
            counts[tile.label][tile.split] += 1
    learnt = [counts[name]["train"] for name in names]
    return {"classes": [{"name": name, **counts[name]} for name in names], "imbalance": max(learnt) / min(learnt)}


def warn_of_imbalance(distribution: dict[str, Any]) -> None:
    """Say which classes are far apart in the training split, if any are."""
    if distribution["imbalance"] < IMBALANCED:
        return
    ordered = sorted(distribution["classes"], key=lambda item: int(item["train"]))
    log.warning(
        "the classes are unequal: %s has %d training tiles, %s has %d; read macro F1 and each class's recall, "
        "not accuracy alone",
        ordered[-1]["name"],
        ordered[-1]["train"],
        ordered[0]["name"],
        ordered[0]["train"],
    )
