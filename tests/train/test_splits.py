from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_engine.errors import DatasetError
from cervix_train.data.dataset import Dataset, LabelledTile, Split
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import assign_splits, group_of

CLASSES = SIPAKMED_CLASSES[:3]


def make_dataset(fields: dict[str, int], *, cells: int = 3) -> Dataset:
    tiles = tuple(
        LabelledTile(Path(f"{label}/{field:03d}_{cell:02d}.bmp"), label)
        for label, count in fields.items()
        for field in range(count)
        for cell in range(cells)
    )
    return Dataset(Path("root"), tiles, tuple(item for item in CLASSES if item.name in fields))


def splits_of_groups(dataset: Dataset) -> dict[str, set[Split | None]]:
    found: dict[str, set[Split | None]] = defaultdict(set)
    for tile in dataset.tiles:
        found[group_of(tile)].add(tile.split)
    return found


@pytest.mark.parametrize(
    ("tile", "group"),
    [
        (LabelledTile(Path("a/012_03.bmp"), "cervix_dyk"), "cervix_dyk/012"),
        (LabelledTile(Path("a/012_03.bmp"), "cervix_dyk", group="mine"), "mine"),
        (LabelledTile(Path("a/cell_012_03.bmp"), "cervix_dyk"), "a/cell_012_03.bmp"),
    ],
)
def test_group_of(tile: LabelledTile, group: str) -> None:
    assert group_of(tile) == group


@given(
    fields=st.lists(st.integers(3, 40), min_size=2, max_size=3),
    cells=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_groups_stay_whole_and_nothing_is_lost(fields: list[int], cells: int, seed: int) -> None:
    dataset = make_dataset({item.name: count for item, count in zip(CLASSES, fields, strict=False)}, cells=cells)
    result = assign_splits(dataset, seed=seed)
    assert [replace(tile, split=None) for tile in result.tiles] == list(dataset.tiles)
    assert {tile.split for tile in result.tiles} == {"train", "val", "test"}
    assert all(len(splits) == 1 for splits in splits_of_groups(result).values())


def test_shares_are_70_15_15_in_every_class() -> None:
    result = assign_splits(make_dataset({item.name: 100 for item in CLASSES}), seed=0)
    for item in CLASSES:
        counts = Counter(tile.split for tile in result.tiles if tile.label == item.name)
        assert counts["train"] == pytest.approx(210, abs=9)
        assert counts["val"] == pytest.approx(45, abs=9)
        assert counts["test"] == pytest.approx(45, abs=9)


def test_the_seed_decides() -> None:
    dataset = make_dataset({item.name: 20 for item in CLASSES})
    assert assign_splits(dataset, seed=1) == assign_splits(dataset, seed=1)
    assert assign_splits(dataset, seed=1) != assign_splits(dataset, seed=2)


def test_a_class_with_too_few_groups() -> None:
    with pytest.raises(DatasetError, match=r"class cervix_koc has too few separate groups, 2: "):
        assign_splits(make_dataset({"cervix_dyk": 9, "cervix_koc": 2}), seed=0)


def with_splits(*splits: Split | None) -> Dataset:
    tiles = tuple(
        LabelledTile(Path(f"{item.name}/{number}.png"), item.name, split=split)
        for item in CLASSES
        for number, split in enumerate(splits)
    )
    return Dataset(Path("root"), tiles, CLASSES)


def test_a_given_split_is_kept() -> None:
    dataset = with_splits("test", "train", "val")
    assert assign_splits(dataset, seed=0) == dataset


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (("train", "val", None), "some have none"),
        (("train", "val", "val"), "no tile is in the split 'test'"),
        (("val", "test"), "no tile is in the split 'train'"),
    ],
)
def test_a_given_split_that_cannot_be_used(splits: tuple[Split | None, ...], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        assign_splits(with_splits(*splits), seed=0)


def test_a_class_that_is_never_learnt() -> None:
    dataset = with_splits("train", "val", "test")
    moved = tuple(replace(tile, split="val") if tile.label == "cervix_koc" else tile for tile in dataset.tiles)
    with pytest.raises(DatasetError, match="no tile of class cervix_koc is in the training split"):
        assign_splits(replace(dataset, tiles=moved), seed=0)


def test_a_given_split_that_leaks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    dataset = with_splits("train", "val", "test")
    leaking = replace(dataset, tiles=tuple(replace(tile, group=tile.label) for tile in dataset.tiles))
    with caplog.at_level(logging.WARNING, "cervix_train"):
        assign_splits(leaking, seed=0)
    assert "groups in more than one split: 3 (such as " in caplog.text


@pytest.mark.data
def test_real_groups_stay_whole(data_root: Path) -> None:
    given = read_dataset(data_root)
    dataset = replace(given, tiles=tuple(replace(tile, split=None) for tile in given.tiles))
    result = assign_splits(dataset, seed=0)
    counts = Counter(tile.split for tile in result.tiles)
    assert all(len(splits) == 1 for splits in splits_of_groups(result).values())
    assert counts["train"] / len(result.tiles) == pytest.approx(0.7, abs=0.03)
    assert counts["val"] / len(result.tiles) == pytest.approx(0.15, abs=0.03)
