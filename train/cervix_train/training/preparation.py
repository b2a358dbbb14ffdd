"""What a training does before it learns: reads the tiles, looks for copies among them, and gives each its split."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from cervix_train.data.copies import Copies, find_copies, warn_of_copies
from cervix_train.data.dataset import Dataset, check_trainable
from cervix_train.data.distribution import class_distribution, warn_of_imbalance
from cervix_train.data.layouts import read_dataset
from cervix_train.data.near_copies import group_near_copies
from cervix_train.data.splits import assign_splits
from cervix_train.learning.config import TrainConfig

log = logging.getLogger(__name__)


def read_tiles(config: TrainConfig) -> Dataset:
    """The labelled tiles; the log says what they are.

    Raises:
        DatasetError: they cannot be read, or nothing can be learnt from them.
    """
    dataset = read_dataset(config.data, classes=config.classes, follow_links=config.follow_links)
    counts = Counter(tile.label for tile in dataset.tiles)
    log.info("read %s as %s", dataset.root, dataset.layout)
    named = ", ".join(f"{item.name} {counts[item.name]}" for item in dataset.classes)
    log.info("%d tiles of %d classes (%s)", len(dataset.tiles), len(dataset.classes), named)
    check_trainable(dataset)
    return dataset


def split_tiles(config: TrainConfig) -> Copies:
    """The tiles with their split, and the copies among them; those across a split that was given are named.

    Where the split is drawn, copies are kept together.

    Raises:
        DatasetError: as `read_tiles` and `assign_splits`.
    """
    dataset = read_tiles(config)
    given = dataset.tiles[0].split is not None
    found = find_copies(dataset)
    copies = replace(found, dataset=assign_splits(group_near_copies(found), seed=config.seed))
    distribution = class_distribution(copies.dataset)
    warn_of_imbalance(distribution)
    how = "as given" if given else f"drawn with seed {config.seed}, groups kept whole"
    log.info("train %d, val %d, test %d (%s)", *distribution.totals.splits, how)
    warn_of_copies(copies)
    return copies
