"""Looks for tiles that show the same thing on both sides of a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cervix_engine.contract import TileClass
from cervix_engine.errors import DatasetError
from cervix_train.data.copies import Copies, find_copies, surest
from cervix_train.data.dataset import Dataset
from cervix_train.data.duplicates import Pair, groups_of_pairs
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import group_of

SCHEMA = "cervix/audit/1"


def audit(data: Path, *, classes: Sequence[TileClass], follow_links: bool = False) -> Copies:
    """Compare every tile with every other; the arguments are those of `read_dataset`.

    Raises:
        DatasetError: the data cannot be read, or only some of its tiles have a split.
    """
    dataset = read_dataset(data, classes=classes, follow_links=follow_links)
    if len({tile.split is None for tile in dataset.tiles}) > 1:
        raise DatasetError("some tiles have a split and some have none: give all of them one, or none")
    return find_copies(dataset)


def summary(found: Copies) -> dict[str, Any]:
    """The findings as JSON of the schema `cervix/audit/1`."""
    tiles, leaks = found.dataset.tiles, found.across_splits
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
        "two_labels": [_pair(found, pair, "label") for pair in surest(found.of_two_labels)],
        "leaks": [_pair(found, pair, "split") for pair in surest(leaks)],
    }


def _pair(found: Copies, pair: Pair, what: str) -> dict[str, Any]:
    """A pair as JSON, with the attribute `what` of both tiles."""
    first, second = (found.dataset.tiles[index] for index in (pair.first, pair.second))
    return {
        "first": first.path.as_posix(),
        f"first_{what}": getattr(first, what),
        "second": second.path.as_posix(),
        f"second_{what}": getattr(second, what),
        "exact": pair.exact,
        "correlation": round(pair.correlation, 4),
    }


def _straddling_groups(dataset: Dataset) -> int:
    """How many groups, by column or file name, lie in more than one split."""
    splits: dict[str, set[str | None]] = {}
    for tile in dataset.tiles:
        splits.setdefault(group_of(tile), set()).add(tile.split)
    return sum(len(found) > 1 for found in splits.values())
