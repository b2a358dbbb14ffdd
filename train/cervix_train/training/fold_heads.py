"""The heads of a cross-validation: the tiles of each fold, answered by a head that learnt from other folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.values import Probabilities
from cervix_keras.start import KerasModel, load_keras
from cervix_train.data.augment import ORIGINAL
from cervix_train.data.copies import Copies, find_copies, warn_of_copies
from cervix_train.data.dataset import Dataset, Split, without_split
from cervix_train.data.distribution import class_distribution, warn_of_imbalance
from cervix_train.data.near_copies import group_near_copies
from cervix_train.data.splits import fold_numbers
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.features import FeatureSet
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.network import build_head
from cervix_train.learning.split_tiles import SplitTiles, tiles_by_split
from cervix_train.learning.stages import Stage, Trainable, train_head
from cervix_train.learning.temperature import Logits, fit_temperature, softmax
from cervix_train.training.extraction import dataset_features, frozen_extractor
from cervix_train.training.preparation import read_tiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all folds share.

    Attributes:
        copies: with the data set, whose tiles are all learnt from in the end.
        numbers: the fold of each tile of the data set, from 0.
        features: of all usable tiles, and of altered copies of them.
    """

    config: TrainConfig
    copies: Copies
    numbers: tuple[int, ...]
    contract: ModelContract
    extractor: KerasModel
    features: FeatureSet

    @property
    def dataset(self) -> Dataset:
        return self.copies.dataset

    def new_head(self) -> KerasModel:
        """The same random weights every time."""
        load_keras(seed=self.config.seed)
        return build_head(features=self.features.vectors.shape[1], classes=len(self.dataset.classes))


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold's model, by what it answers."""

    tested: SplitTiles
    stage: Stage
    temperature: float


@dataclass(frozen=True, slots=True)
class Pooled:
    """All usable tiles in the data set's order, each with the logits of its fold's model, and that one's temperature.

    Attributes:
        logits: `float64 (N, classes)`.
        temperatures: `float64 (N, 1)`.
    """

    tiles: SplitTiles
    logits: Logits
    temperatures: Logits

    @property
    def probabilities(self) -> Probabilities:
        return softmax(self.logits / self.temperatures).astype(np.float32)


def prepare(config: TrainConfig, folds: int) -> Setup:
    """Read the tiles, cut them into folds, and compute their features.

    Raises:
        CervixError: the data or the weights cannot be used.
    """
    read = read_tiles(config)
    if any(tile.split is not None for tile in read.tiles):
        log.info("the split that the data give is not used: all tiles are cut into folds")
    found = find_copies(without_split(read))
    grouped = group_near_copies(found)
    numbers = fold_numbers(grouped, folds=folds, seed=config.seed)
    # In the end all are learnt from.
    dataset = replace(grouped, tiles=tuple(replace(tile, split="train") for tile in grouped.tiles))
    warn_of_imbalance(class_distribution(dataset))
    copies = replace(found, dataset=dataset)
    warn_of_copies(copies)
    sizes = ", ".join(str(numbers.count(number)) for number in range(folds))
    log.info("%d folds of %s tiles, drawn with seed %d, groups kept whole", folds, sizes, config.seed)
    contract = config.contract(dataset.classes)
    load_keras(seed=config.seed)
    extractor = frozen_extractor(config, dataset, contract)
    features = dataset_features(config, dataset, ExtractorBackends(extractor), contract=contract)
    return Setup(config, copies, numbers, contract, extractor, features)


def train_fold(setup: Setup, number: int, folds: int, *, folder: Path) -> Fold:
    """Train the head that answers the tiles of fold `number`, which the next fold validates."""
    roles: dict[int, Split] = {number: "test", (number + 1) % folds: "val"}
    splits = [roles.get(fold, "train") for fold in setup.numbers]
    named = zip(setup.dataset.tiles, splits, strict=True)
    dataset = replace(setup.dataset, tiles=tuple(replace(tile, split=split) for tile, split in named))
    learnt = {index for index, split in enumerate(splits) if split == "train"}
    tiles = tiles_by_split(dataset, replace(setup.features, copies=setup.features.copies.of(learnt)))
    head = setup.new_head()
    given = Trainable(head, head, tiles, (), setup.contract)
    name = f"fold_{number + 1}"
    log.info("fold %d of %d: learning from %d tiles", number + 1, folds, len(tiles["train"].indices))
    stage = train_head(given, checkpoint=folder / f"{name}.weights.h5", config=setup.config.fit(name), resumable=None)
    temperature = fit_temperature(stage.logits["val"], tiles["val"].labelled.targets)
    return Fold(tiles["test"], replace(stage, name=f"fold {number + 1}"), temperature)


def pool(trained: Sequence[Fold], features: FeatureSet) -> Pooled:
    """All folds' answers together."""
    order = np.argsort(np.concatenate([fold.tested.indices for fold in trained]))
    targets = np.concatenate([fold.tested.labelled.targets for fold in trained])[order]
    groups = [group for fold in trained for group in fold.tested.groups]
    temperatures = np.concatenate([np.full((len(fold.tested.indices), 1), fold.temperature) for fold in trained])
    tiles = SplitTiles(
        indices=features.indices,
        labelled=LabelledFeatures(features.vectors, targets),
        groups=tuple(groups[position] for position in order),
        variants=(ORIGINAL,) * len(order),
    )
    logits = np.concatenate([fold.stage.logits["test"] for fold in trained])
    return Pooled(tiles, logits[order], temperatures[order])
