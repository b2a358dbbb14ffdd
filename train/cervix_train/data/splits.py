"""Decides which tiles train, which choose the best epoch and which test.

A split that comes with the data is kept. Else 70/15/15 is drawn, stratified by class, with groups kept whole:
crops of one microscope field share pixels, so a random split would test on what was trained on. Where nothing says
what belongs together, `near_copies.py` groups near-copies first.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from cervix_engine.errors import DatasetError
from cervix_train.data.dataset import SPLITS, Dataset, LabelledTile, Split

log = logging.getLogger(__name__)

HELD_OUT = 0.15  # each of val and test
_FOLDS = 20  # 3 + 3 of 20 folds are 15 % + 15 %
_SIPAKMED_NAME = re.compile(r"(\d+)_\d+")


def stands_alone(tile: LabelledTile) -> bool:
    """Whether neither the data set nor the tile's name says which group it is of."""
    return tile.group is None and not _SIPAKMED_NAME.fullmatch(tile.path.stem)


def group_of(tile: LabelledTile) -> str:
    """The tile's group: as given, else the field `NNN` of a SIPaKMeD name `NNN_MM`, else the tile alone."""
    if tile.group is not None:
        return tile.group
    name = _SIPAKMED_NAME.fullmatch(tile.path.stem)
    return f"{tile.label}/{name[1]}" if name else tile.path.as_posix()


def assign_splits(dataset: Dataset, *, seed: int) -> Dataset:
    """Give every tile a split: the one it has, or one drawn with `seed`.

    Raises:
        DatasetError: only some tiles have a split, a split or a class's training part is empty, or a class has
            too few groups to be divided.
    """
    given = {tile.split for tile in dataset.tiles}
    if None not in given:
        _warn_of_straddling(dataset.tiles)
        result = dataset
    elif len(given) > 1:
        raise DatasetError("some tiles have a split and some have none: give all of them one, or none")
    else:
        result = replace(dataset, tiles=_draw(dataset, seed=seed))
    _check(result)
    return result


def _draw(dataset: Dataset, *, seed: int) -> tuple[LabelledTile, ...]:
    folds = min(_FOLDS, _fewest_groups(dataset))
    held_out = max(1, round(HELD_OUT * folds))
    # As many folds as val has, then as many for test.
    splits: list[Split] = [*["val"] * held_out, *["test"] * held_out, *["train"] * (folds - 2 * held_out)]  # type: ignore[list-item]
    numbers = fold_numbers(dataset, folds=folds, seed=seed)
    return tuple(replace(tile, split=splits[number]) for tile, number in zip(dataset.tiles, numbers, strict=True))


def fold_numbers(dataset: Dataset, *, folds: int, seed: int) -> tuple[int, ...]:
    """The fold of every tile, from 0: stratified by class, with groups kept whole; drawn with `seed`.

    Raises:
        DatasetError: a class has fewer groups than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    label, fewest = _rarest(dataset)
    if fewest < folds:
        raise DatasetError(
            f"class {label} has too few separate groups, {fewest}: {folds} folds need {folds}; "
            "give more tiles or fewer --folds"
        )
    labels = [tile.label for tile in dataset.tiles]
    groups = [group_of(tile) for tile in dataset.tiles]
    numbers = [0] * len(labels)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, members) in enumerate(splitter.split(labels, labels, groups)):
        for member in members:
            numbers[member] = number
    return tuple(numbers)


def _rarest(dataset: Dataset) -> tuple[str, int]:
    """The class with the fewest groups, and how many it has."""
    members: dict[str, set[str]] = defaultdict(set)
    for tile in dataset.tiles:
        members[tile.label].add(group_of(tile))
    label, found = min(members.items(), key=lambda item: (len(item[1]), item[0]))
    return label, len(found)


def _fewest_groups(dataset: Dataset) -> int:
    label, fewest = _rarest(dataset)
    if fewest < 3:
        raise DatasetError(
            f"class {label} has too few separate groups, {fewest}: train, val and test need 3; "
            "give more tiles, or a manifest with a split column"
        )
    return fewest


def _check(dataset: Dataset) -> None:
    for split in SPLITS:
        found = {tile.label for tile in dataset.tiles if tile.split == split}
        missing = [item.name for item in dataset.classes if item.name not in found]
        if not found:
            raise DatasetError(f"no tile is in the split {split!r}: train, val and test are all needed")
        if missing and split == "train":
            raise DatasetError(f"no tile of class {missing[0]} is in the training split")
        if missing:
            log.warning("no tile of class %s is in the split %s", ", ".join(missing), split)


def _warn_of_straddling(tiles: Sequence[LabelledTile]) -> None:
    splits: dict[str, set[Split | None]] = defaultdict(set)
    for tile in tiles:
        splits[group_of(tile)].add(tile.split)
    straddling = [group for group, members in splits.items() if len(members) > 1]
    if straddling:
        log.warning(
            "groups in more than one split: %d (such as %s); test results will look better than they are",
            len(straddling),
            straddling[0],
        )
