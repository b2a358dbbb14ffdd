"""What a labelled data set is, whatever layout it came in."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cervix_engine.contract import TileClass
from cervix_engine.errors import ContractError, DatasetError, UsageError
from cervix_engine.tiles.tile import TileFailure
from cervix_engine.words import agreeing, counted

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
NAMED_FAILURES = 10
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HELD_OUT: tuple[Split, ...] = ("val", "test")


@dataclass(frozen=True, slots=True)
class LabelledTile:
    """One tile whose class is known.

    Attributes:
        path: relative to the dataset's root.
        label: a class's name.
        group: tiles that show the same field or cell share it and must not be split; None where unknown.
        split: where the layout puts the tile; None where it does not say.
    """

    path: Path
    label: str
    group: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled tiles below one root, in the order of their paths.

    Attributes:
        classes: the classes that occur, in the order they were given.
        layout: how they lie there, in words.
    """

    root: Path
    tiles: tuple[LabelledTile, ...]
    classes: tuple[TileClass, ...]
    layout: str = "a list"


def check_trainable(dataset: Dataset) -> None:
    """Refuse what no classifier can learn from.

    Raises:
        DatasetError: fewer than two classes, or a class with a single tile.
    """
    counts = Counter(tile.label for tile in dataset.tiles)
    if len(counts) < 2:
        raise DatasetError(f"{dataset.root} has tiles of one class only ({', '.join(counts)}): two or more are needed")
    for label, count in sorted(counts.items()):
        if count < 2:
            raise DatasetError(f"class {label} has one tile only: it cannot be both learnt and tested")


def without_split(dataset: Dataset) -> Dataset:
    """The same tiles, in no split."""
    return replace(dataset, tiles=tuple(replace(tile, split=None) for tile in dataset.tiles))


def read_classes(path: Path) -> tuple[TileClass, ...]:
    """Read a list of classes from JSON: `{"classes": [{"name", "display_name", "category"}, …]}`.

    A bundle's `contract.json` has that form too.

    Raises:
        UsageError: the file cannot be read or does not have that form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return tuple(TileClass(**item) for item in data["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ContractError) else f"{type(error).__name__} ({error})"
        form = '{"classes": [{"name": …, "display_name": …, "category": "normal"|"benign"|"abnormal"}, …]}'
        raise UsageError(f"{path} is not a list of classes: {reason}; expected {form}") from error


def log_failures(tiles: Sequence[LabelledTile], failures: Mapping[int, TileFailure]) -> None:
    """Warn of tiles that had to be left out: the first few by name, and how many there are."""
    for index in sorted(failures)[:NAMED_FAILURES]:
        log.warning("left out %s: %s", tiles[index].path, failures[index].reason)
    if failures:
        were = agreeing(len(failures), "was", "were")
        log.warning("%d of %s %s left out", len(failures), counted(len(tiles), "tile"), were)
