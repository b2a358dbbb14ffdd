"""Evaluates a Keras model file on a labelled data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import DatasetError
from cervix_keras.model_files import OpenedModel, open_model
from cervix_train.data.dataset import Dataset, LabelledTile, Split, log_failures
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import group_of
from cervix_train.learning.predict import predict
from cervix_train.results.metrics import measure

log = logging.getLogger(__name__)


def evaluate(model_path: Path, data: Path, *, split: Split | None, batch_size: int) -> dict[str, Any]:
    """Predict the tiles of `data` (all, or those of one split) and measure the answers.

    Args:
        model_path: a bundle folder or a `.keras` file beside a `contract.json`.
        data: any layout that `read_dataset` knows.
        split: the data's own, else the one that the bundle remembers from its training.
        batch_size: tiles per call of the model.

    Returns:
        Metrics of the schema `cervix/metrics/1`.

    Raises:
        CervixError: the model or the data cannot be used.
    """
    opened = open_model(model_path)
    dataset = read_dataset(data, classes=opened.contract.classes)
    tiles = _of_split(dataset, opened, split) if split else _all(dataset, opened)
    answers = predict(
        opened.model,
        [dataset.root / tile.path for tile in tiles],
        contract=opened.contract,
        batch_size=batch_size,
        what="evaluation",
    )
    log_failures(tiles, answers.failures)
    if not answers.indices:
        raise DatasetError(f"none of the {len(tiles)} tiles of {data} can be decoded")
    answered = [tiles[index] for index in answers.indices]
    return measure(
        answers.probabilities,
        _targets(answered, opened.contract),
        classes=opened.contract.classes,
        split=split or "all",
        failed=len(answers.failures),
        groups=[group_of(tile) for tile in answered],
    )


def _targets(tiles: Sequence[LabelledTile], contract: ModelContract) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array([contract.class_names.index(tile.label) for tile in tiles], np.intp)


def _all(dataset: Dataset, opened: OpenedModel) -> tuple[LabelledTile, ...]:
    learnt = sum(opened.splits.get(tile.path.as_posix()) == "train" for tile in dataset.tiles)
    if learnt:
        log.warning(
            "the model was trained on %d of these %d tiles (by their paths): --split test leaves them out",
            learnt,
            len(dataset.tiles),
        )
    return dataset.tiles


def _of_split(dataset: Dataset, opened: OpenedModel, split: Split) -> tuple[LabelledTile, ...]:
    tiles = dataset.tiles
    if all(tile.split is None for tile in tiles):
        if not opened.splits:
            raise DatasetError(f"{dataset.root} has no splits, and the model remembers none: leave --split out")
        tiles = tuple(replace(tile, split=opened.splits.get(tile.path.as_posix())) for tile in tiles)
    chosen = tuple(tile for tile in tiles if tile.split == split)
    if not chosen:
        raise DatasetError(f"no tile of {dataset.root} is in the split {split!r}")
    unknown = sum(tile.split is None for tile in tiles)
    if unknown:
        log.warning("%d tiles are in no split and were not looked at", unknown)
    return chosen
