"""Groups tiles by what they show: near-copies that a drawn split would tear apart become one group.

Copies that were turned, flipped, lit, cropped or re-encoded would otherwise be split, and the test set would
measure memory. Tiles of no known group that show the same thing share one; known groups that share a cell are joined.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cervix_engine.words import agreeing, counted
from cervix_train.data.copies import Copies
from cervix_train.data.dataset import Dataset
from cervix_train.data.duplicates import groups_of_pairs
from cervix_train.data.splits import group_of, stands_alone

log = logging.getLogger(__name__)


def group_near_copies(copies: Copies) -> Dataset:
    """The data set with tiles that show the same thing in one group, named after the first of those it joins.

    A split that is given would be kept anyway: nothing is then grouped.
    """
    dataset = copies.dataset
    if any(tile.split is not None for tile in dataset.tiles):
        return dataset
    groups = [group_of(tile) for tile in dataset.tiles]
    joined = _joined(groups, copies)
    _log_alone(dataset, [joined[group] for group in groups])
    if all(group == first for group, first in joined.items()):
        return dataset
    tiles = (
        tile if joined[group] == group else replace(tile, group=joined[group])
        for tile, group in zip(dataset.tiles, groups, strict=True)
    )
    return replace(dataset, tiles=tuple(tiles))


def _joined(groups: Sequence[str], copies: Copies) -> dict[str, str]:
    """Each group's name -> that of the first group which it shares a cell with, directly or through others."""
    names = list(dict.fromkeys(groups))
    number = {name: position for position, name in enumerate(names)}
    pairs = [
        replace(pair, first=number[groups[pair.first]], second=number[groups[pair.second]]) for pair in copies.pairs
    ]
    return {name: names[root] for name, root in zip(names, groups_of_pairs(len(names), pairs), strict=True)}


def _log_alone(dataset: Dataset, joined: Sequence[str]) -> None:
    alone = [group for tile, group in zip(dataset.tiles, joined, strict=True) if stands_alone(tile)]
    known = {group_of(tile): group for tile, group in zip(dataset.tiles, joined, strict=True) if not stands_alone(tile)}
    if moved := sum(name != group for name, group in known.items()):
        share = agreeing(moved, "shares a cell with another and is", "share a cell with another and are")
        log.info("%d of %s %s joined to it", moved, counted(len(known), "group"), share)
    if not alone:
        return
    sizes = Counter(joined)
    shared = {group for group in alone if sizes[group] > 1}
    log.info(
        "%s no group: %d of them look like another and share %s, of at most %s",
        counted(len(alone), "tile has", "tiles have"),
        sum(group in shared for group in alone),
        counted(len(shared), "group"),
        counted(max((sizes[group] for group in shared), default=1), "tile"),
    )
