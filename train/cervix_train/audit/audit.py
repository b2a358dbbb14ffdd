"""Looks for tiles that show the same thing on both sides of a split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.contract import TileClass
from cervix_engine.errors import DatasetError
from cervix_train.data.dataset import Dataset
from cervix_train.data.duplicates import Pair, find_pairs, fingerprint, groups_of_pairs
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import group_of
from cervix_train.progress import meter

log = logging.getLogger(__name__)

SCHEMA = "cervix/audit/1"


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        dataset: the tiles, with their splits where the data give them.
        pairs: all pairs of tiles that show the same thing.
        unreadable: tiles that could not be decoded and were compared with nothing.
    """

    dataset: Dataset
    pairs: Sequence[Pair]
    unreadable: int


def audit(data: Path, *, classes: Sequence[TileClass], follow_links: bool = False) -> Audit:
    """Compare every tile with every other; the arguments are those of `read_dataset`.

    Raises:
        DatasetError: the data cannot be read, or only some of its tiles have a split.
    """
    dataset = read_dataset(data, classes=classes, follow_links=follow_links)
    if len({tile.split is None for tile in dataset.tiles}) > 1:
        raise DatasetError("some tiles have a split and some have none: give all of them one, or none")
    with meter("fingerprints", total=len(dataset.tiles)) as advance:
        prints = []
        for tile in dataset.tiles:
            prints.append(fingerprint(dataset.root / tile.path))
            advance(1)
    with meter("comparison", total=sum(item is not None for item in prints)) as advance:
        pairs = find_pairs(prints, advance=advance)
    return Audit(dataset, pairs, sum(item is None for item in prints))


def across_splits(found: Audit) -> list[Pair]:
    """The pairs whose tiles lie in different splits: each is a leak."""
    tiles = found.dataset.tiles
    return [pair for pair in found.pairs if tiles[pair.first].split != tiles[pair.second].split]


def summary(found: Audit) -> dict[str, Any]:
    """The findings as JSON of the schema `cervix/audit/1`."""
    tiles, leaks = found.dataset.tiles, across_splits(found)
    tested = {index for index, tile in enumerate(tiles) if tile.split == "test"}
    leaked = {
        place
        for pair in leaks
        for place, other in ((pair.first, pair.second), (pair.second, pair.first))
        if place in tested and tiles[other].split == "train"
    }
    return {
        "schema": SCHEMA,
        "tiles": len(tiles),
        "unreadable": found.unreadable,
        "exact_pairs": sum(pair.exact for pair in found.pairs),
        "near_pairs": sum(not pair.exact for pair in found.pairs),
        "separate": len(set(groups_of_pairs(len(tiles), found.pairs))),
        "test_tiles": len(tested),
        "test_tiles_in_training": len(leaked),
        "groups_across_splits": _straddling_groups(found.dataset),
        "leaks": [
            {
                "first": tiles[pair.first].path.as_posix(),
                "first_split": tiles[pair.first].split,
                "second": tiles[pair.second].path.as_posix(),
                "second_split": tiles[pair.second].split,
                "exact": pair.exact,
                "correlation": round(pair.correlation, 4),
            }
            for pair in sorted(leaks, key=lambda pair: -pair.correlation)
        ],
    }


def _straddling_groups(dataset: Dataset) -> int:
    """How many groups, by column or file name, lie in more than one split."""
    splits: dict[str, set[str | None]] = {}
    for tile in dataset.tiles:
        splits.setdefault(group_of(tile), set()).add(tile.split)
    return sum(len(found) > 1 for found in splits.values())
