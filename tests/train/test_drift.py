"""What a training leaves in its bundle for runs to be compared with."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.drift.measures import IMAGE, PIXELS, measure_image
from cervix_engine.tiles.preprocess import preprocess, read_tile
from cervix_train.data.augment import ORIGINAL
from cervix_train.data.dataset import Dataset, Split
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import assign_splits, group_of
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.synthetic import write_drawn
from cervix_train.training.drift import MOST_TILES, drift_of, measured


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, contract: ModelContract) -> Dataset:
    folder = tmp_path_factory.mktemp("drawn") / "cells"
    write_drawn(folder, tiles=160, seed=3, flat=True)
    return assign_splits(read_dataset(folder / "manifest.csv", classes=contract.classes), seed=0)


def split_tiles(dataset: Dataset) -> dict[Split, SplitTiles]:
    found: dict[Split, SplitTiles] = {}
    for split in ("train", "val", "test"):
        indices = np.array([at for at, tile in enumerate(dataset.tiles) if tile.split == split])
        labelled = LabelledFeatures(np.zeros((len(indices), 1), np.float32), np.zeros(len(indices), np.intp))
        groups = tuple(group_of(dataset.tiles[at]) for at in indices)
        found[split] = SplitTiles(indices, labelled, groups, (ORIGINAL,) * len(indices))
    return found


def test_it_is_made_of_training_and_validation_tiles(dataset: Dataset, contract: ModelContract) -> None:
    tiles = split_tiles(dataset)
    answers = np.full((len(tiles["val"].indices), 5), 0.2, np.float32)
    reference = drift_of(dataset, tiles, answers, contract=contract, seed=0)
    assert reference is not None
    assert reference.images.tiles == len(tiles["train"].indices) + len(tiles["val"].indices)
    assert reference.answers is None, "too few validation tiles"
    assert reference.images.scale.measures == tuple(measure.name for measure in IMAGE)
    assert reference.colours is not None
    assert reference.colours.scale.measures == tuple(measure.name for measure in PIXELS)
    assert reference.colours.tiles == reference.images.tiles
    assert MOST_TILES > 160


def test_it_sees_the_pixels_that_a_run_sees(dataset: Dataset, contract: ModelContract) -> None:
    path = dataset.root / dataset.tiles[7].path
    values, at = measured([path, path.with_name("gone.png")], contract=contract)
    pixels = preprocess(read_tile(path), contract=contract)
    height, width = np.exp(values[0, len(IMAGE) - 2 : len(IMAGE)]).round().astype(int)
    assert at == [0]
    assert values[0].tolist() == list(measure_image(pixels, height=height, width=width))


def test_too_few_tiles_are_said_to_be_too_few(
    drawn: Path, contract: ModelContract, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = assign_splits(read_dataset(drawn, classes=contract.classes), seed=0)
    tiles = split_tiles(dataset)
    answers = np.full((len(tiles["val"].indices), 5), 0.2, np.float32)
    with caplog.at_level(logging.WARNING):
        assert drift_of(dataset, tiles, answers, contract=contract, seed=0) is None
    assert "drift of runs will not be watched" in caplog.text
