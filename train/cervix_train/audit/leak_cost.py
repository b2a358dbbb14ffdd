"""What a leak is worth in test accuracy: the same head on random and on grouped splits of the same tiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cervix_engine.files import scratch_folder
from cervix_keras.start import load_keras
from cervix_train.data.copies import find_copies
from cervix_train.data.dataset import Dataset, check_trainable, without_split
from cervix_train.data.layouts import read_dataset
from cervix_train.data.near_copies import group_near_copies
from cervix_train.data.splits import assign_splits
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.features import FeatureSet
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.fit import fit
from cervix_train.learning.network import build_head
from cervix_train.learning.split_tiles import tiles_by_split
from cervix_train.training.extraction import dataset_features, frozen_extractor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeakCost:
    """Test accuracies, one per seed, of the same recipe.

    Attributes:
        random: tiles were split as if each were alone.
        grouped: groups were kept whole.
    """

    random: tuple[float, ...]
    grouped: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        means = {name: float(np.mean(values)) for name, values in (("random", self.random), ("grouped", self.grouped))}
        return {
            "random": list(self.random),
            "grouped": list(self.grouped),
            "random_mean": means["random"],
            "grouped_mean": means["grouped"],
            "difference": means["random"] - means["grouped"],
        }


def leak_cost(config: TrainConfig, *, seeds: Sequence[int]) -> LeakCost:
    """Train heads on features that are computed once, on both kinds of split, with each seed.

    The backbone is the same everywhere. Where it was itself trained on some of these tiles, both numbers are too
    high, and their difference says only what the head's split is worth.

    Raises:
        CervixError: the data or the weights cannot be used.
    """
    dataset = read_dataset(config.data, classes=config.classes, follow_links=config.follow_links)
    check_trainable(dataset)
    # The splits that the data give, if any, are one draw; here new ones are drawn.
    grouped = group_near_copies(find_copies(without_split(dataset)))
    alone = replace(grouped, tiles=tuple(replace(tile, group=tile.path.as_posix()) for tile in grouped.tiles))
    load_keras(seed=config.seed)
    contract = config.contract(dataset.classes)
    extractor = frozen_extractor(config, assign_splits(grouped, seed=config.seed), contract)
    features = dataset_features(config, dataset, ExtractorBackends(extractor), contract=contract)
    accuracies = {
        name: tuple(_accuracy(given, features, config=config, seed=seed) for seed in seeds)
        for name, given in (("random", alone), ("grouped", grouped))
    }
    return LeakCost(**accuracies)


def _accuracy(dataset: Dataset, features: FeatureSet, *, config: TrainConfig, seed: int) -> float:
    tiles = tiles_by_split(assign_splits(dataset, seed=seed), features)
    load_keras(seed=seed)
    head = build_head(features=features.vectors.shape[1], classes=len(dataset.classes))
    with scratch_folder() as folder:
        fit(
            head,
            train=tiles["train"].labelled,
            val=tiles["val"].labelled,
            checkpoint=folder / "head.weights.h5",
            config=replace(config.fit("head"), seed=seed),
        )
    test = tiles["test"].labelled
    # Not `predict`: it would unroll all the steps that `fit` takes a call.
    predicted = np.asarray(head.predict_on_batch(test.vectors)).argmax(axis=1)
    return float((predicted == test.targets).mean())
