"""A training's frozen extractor, and the features of its tiles."""

from __future__ import annotations

import logging

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_keras.start import KerasModel
from cervix_train.data.augment import training_copies
from cervix_train.data.dataset import Dataset, log_failures
from cervix_train.data.tiles import tile_batches
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.batchnorm import reestimate
from cervix_train.features.extractor import build_extractor
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.passes import Extraction
from cervix_train.learning.config import TrainConfig
from cervix_train.progress import meter

log = logging.getLogger(__name__)

# Enough for stable batch-norm statistics: they are averages over every position of every tile.
NORM_TILES = 1024


def frozen_extractor(config: TrainConfig, dataset: Dataset, contract: ModelContract) -> KerasModel:
    """The backbone as it will not change; without weights, its batch norms are estimated on training tiles."""
    extractor = build_extractor(config.backbone, input_size=config.input_size, weights=config.weights)
    if config.weights == "none":
        paths = [dataset.root / tile.path for tile in dataset.tiles if tile.split == "train"]
        chosen = np.random.default_rng(config.seed).permutation(len(paths))[:NORM_TILES]
        with meter("batch-norm statistics", total=len(chosen)) as advance:
            batches = tile_batches(
                [paths[index] for index in chosen], contract=contract, batch_size=config.batch_size, failures={}
            )
            reestimate(extractor, (batch.pixels[: len(batch)] for batch in batches), advance=advance)
    extractor.trainable = False
    return extractor


def dataset_features(
    config: TrainConfig, dataset: Dataset, backends: ExtractorBackends, *, contract: ModelContract, bf16: bool = False
) -> FeatureSet:
    """Features of all tiles and of training tiles' copies, with progress, and a warning for each tile that has none.

    With `bf16`, training tiles and their copies may be computed in BF16: nothing is measured on them.
    """
    copies = training_copies(dataset, count=config.augment, seed=config.seed)
    log.info("features of %d tiles are computed, or taken from %s", len(dataset.tiles) + len(copies), config.cache)
    with meter("features", total=len(dataset.tiles) + len(copies)) as advance:
        features = compute_features(
            [dataset.root / tile.path for tile in dataset.tiles],
            Extraction(backends, contract, config.cache, config.batch_size),
            advance=advance,
            copies=copies,
            bf16={index for index, tile in enumerate(dataset.tiles) if bf16 and tile.split == "train"},
        )
    usable = len(features.indices) + len(features.copies.copies)
    log.info("features: %d computed, %d from the cache", features.computed, usable - features.computed)
    log_failures(dataset.tiles, features.failures)
    return features
