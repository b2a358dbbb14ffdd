"""Near-copies share a group where nothing else says so, and only there."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_train.data.copies import find_copies
from cervix_train.data.dataset import Dataset, Split
from cervix_train.data.layouts import read_dataset
from cervix_train.data.near_copies import group_near_copies
from cervix_train.data.splits import assign_splits, group_of
from cervix_train.learning.config import TrainConfig
from cervix_train.training.train import train


@pytest.fixture(scope="module")
def unnamed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn tiles under names that say nothing, each with a copy that is turned, flipped and a little darker."""
    root = tmp_path_factory.mktemp("unnamed") / "cells"
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        image = np.asarray(cv2.imread(str(path)))
        altered = np.clip(np.rot90(image)[:, ::-1] * 0.9, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"a{number}.png"), image)
        cv2.imwrite(str(folder / f"z{number}.jpg"), altered)
    return root


def separated(dataset: Dataset) -> int:
    """How many tiles lie in another split than their copy."""
    splits: dict[str, set[Split | None]] = defaultdict(set)
    for tile in dataset.tiles:
        splits[tile.path.stem[1:]].add(tile.split)
    return sum(len(found) > 1 for found in splits.values())


def test_near_copies_stay_together(unnamed: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = read_dataset(unnamed)
    with caplog.at_level(logging.INFO, "cervix_train"):
        grouped = group_near_copies(find_copies(dataset))
    assert "120 tiles have no group: " in caplog.messages[-1]
    assert [replace(tile, group=None) for tile in grouped.tiles] == list(dataset.tiles)
    together = sum(
        group_of(tile) == group_of(other)
        for tile in grouped.tiles
        for other in grouped.tiles
        if tile.path.stem[1:] == other.path.stem[1:] and tile.path.stem < other.path.stem
    )
    assert together >= 0.8 * 60
    # Without the groups a split tears many of them apart; with them, only those that were not found.
    assert separated(assign_splits(dataset, seed=0)) > 15
    assert separated(assign_splits(grouped, seed=0)) <= 60 - together


def test_strangers_stay_alone(drawn: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(drawn.rglob("*.png"))[::5]):
        folder = tmp_path / path.parent.name
        folder.mkdir(exist_ok=True)
        (folder / f"cell{number}.png").write_bytes(path.read_bytes())
    broken = tmp_path / "cervix_dyk/broken.png"
    broken.write_bytes(b"none")
    grouped = group_near_copies(find_copies(read_dataset(tmp_path)))
    groups = {group_of(tile) for tile in grouped.tiles}
    assert len(groups) == len(grouped.tiles) == 13


def test_nothing_is_grouped_without_need(drawn: Path, unnamed: Path) -> None:
    # Tiles that were grouped come back in a new data set.
    named = read_dataset(drawn)
    assert group_near_copies(find_copies(named)) is named
    copies = find_copies(read_dataset(unnamed))
    split = replace(copies.dataset, tiles=tuple(replace(tile, split="train") for tile in copies.dataset.tiles))
    assert group_near_copies(replace(copies, dataset=split)) is split
    given = replace(copies.dataset, tiles=tuple(replace(tile, group="mine") for tile in copies.dataset.tiles))
    assert group_near_copies(replace(copies, dataset=given)) is given


def test_known_groups_that_share_a_cell_are_joined(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(drawn, tmp_path / "cells")
    first = tmp_path / "cells/cervix_dyk/001_01.png"
    shutil.copy(first, tmp_path / "cells/cervix_koc/900_01.png")
    with caplog.at_level(logging.INFO, "cervix_train"):
        grouped = group_near_copies(find_copies(read_dataset(tmp_path / "cells")))
    assert "1 of " in caplog.messages[-1]
    assert "groups shares a cell with another and is joined to it" in caplog.messages[-1]
    groups = {tile.path.as_posix(): group_of(tile) for tile in grouped.tiles}
    assert groups["cervix_koc/900_01.png"] == groups["cervix_dyk/001_01.png"] == "cervix_dyk/001"


def test_a_training_writes_the_groups_that_it_kept_whole(
    unnamed: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(tmp_path, data=unnamed, epochs=1)
    train(config)
    text = Bundle.open(config.out).read("training/split.csv").decode()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    splits: dict[str, set[str]] = defaultdict(set)
    for _path, _label, group, split, _error in rows:
        splits[group].add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) <= 120 - 0.8 * 60
