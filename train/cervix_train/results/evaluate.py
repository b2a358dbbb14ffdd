"""Evaluates a Keras model file on a labelled data set."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ContractError, DatasetError
from cervix_engine.words import counted
from cervix_keras.model_file import open_model
from cervix_train.data.dataset import Dataset, LabelledTile, Split, log_failures
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import group_of
from cervix_train.results.metrics import Metrics, measure
from cervix_train.results.predict import predict
from cervix_train.results.reference import SPLIT_FILE

log = logging.getLogger(__name__)


def evaluate(
    model_path: Path, data: Path, *, split: Split | None, batch_size: int, follow_links: bool = False
) -> Metrics:
    """Predict the tiles of `data` (all, or those of one split) and measure the answers.

    Args:
        model_path: a bundle folder or a `.keras` file beside a `contract.json`.
        data: any layout that `read_dataset` knows.
        split: the data's own, else the one that the bundle remembers from its training.
        batch_size: tiles per call of the model.
        follow_links: as `read_dataset`.

    Raises:
        CervixError: the model or the data cannot be used.
    """
    opened = open_model(model_path)
    dataset = read_dataset(data, classes=opened.contract.classes, follow_links=follow_links)
    remembered = _splits(opened.bundle)
    tiles = _of_split(dataset, remembered, split) if split else _all(dataset, remembered)
    answers = predict(
        opened.model,
        [dataset.root / tile.path for tile in tiles],
        contract=opened.contract,
        batch_size=batch_size,
        what="evaluation",
    )
    log_failures(tiles, answers.failures)
    if not answers.indices:
        raise DatasetError(f"none of {counted(len(tiles), 'tile')} of {data} can be decoded")
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


def _splits(bundle: Bundle | None) -> dict[str, Split]:
    """Path relative to the data set -> split, as the training that made the bundle drew it; empty where unknown."""
    if bundle is None or SPLIT_FILE not in bundle:
        return {}
    text = bundle.read(SPLIT_FILE).decode("utf-8", "surrogateescape")
    try:
        return {row["path"]: cast("Split", row["split"]) for row in csv.DictReader(io.StringIO(text, newline=""))}
    except (csv.Error, KeyError) as error:
        raise ContractError(f"the bundle's {SPLIT_FILE} is malformed: {error}") from error


def _all(dataset: Dataset, remembered: Mapping[str, Split]) -> tuple[LabelledTile, ...]:
    learnt = sum(remembered.get(tile.path.as_posix()) == "train" for tile in dataset.tiles)
    if learnt:
        log.warning(
            "the model was trained on %d of %s here (by their paths): --split test leaves them out",
            learnt,
            counted(len(dataset.tiles), "tile"),
        )
    return dataset.tiles


def _of_split(dataset: Dataset, remembered: Mapping[str, Split], split: Split) -> tuple[LabelledTile, ...]:
    tiles = dataset.tiles
    if all(tile.split is None for tile in tiles):
        if not remembered:
            raise DatasetError(f"{dataset.root} has no splits, and the model remembers none: leave --split out")
        tiles = tuple(replace(tile, split=remembered.get(tile.path.as_posix())) for tile in tiles)
    chosen = tuple(tile for tile in tiles if tile.split == split)
    if not chosen:
        raise DatasetError(f"no tile of {dataset.root} is in the split {split!r}")
    unknown = sum(tile.split is None for tile in tiles)
    if unknown:
        log.warning(
            "%s not looked at", counted(unknown, "tile is in no split and was", "tiles are in no split and were")
        )
    return chosen
