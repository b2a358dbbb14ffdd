"""Groups tiles by what they show, where neither a manifest nor their names say which belong together.

Copies that were turned, flipped, lit, cropped or re-encoded would otherwise be split, and the test set would
measure memory. What counts as the same is what the audit finds.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from cervix_train.data.dataset import Dataset
from cervix_train.data.duplicates import find_pairs, fingerprint, groups_of_pairs
from cervix_train.data.splits import stands_alone
from cervix_train.progress import meter

log = logging.getLogger(__name__)


def group_near_copies(dataset: Dataset) -> Dataset:
    """Give tiles of no known group that show the same thing a group: the path of the first of them.

    Nothing is looked at where every tile's group is known, or where a split is given, which would be kept anyway.
    A tile that cannot be decoded stays alone.
    """
    alone = [index for index, tile in enumerate(dataset.tiles) if stands_alone(tile)]
    if not alone or any(tile.split is not None for tile in dataset.tiles):
        return dataset
    prints = []
    with meter("look for copies", total=len(alone)) as advance:
        for index in alone:
            prints.append(fingerprint(dataset.root / dataset.tiles[index].path))
            advance(1)
    roots = groups_of_pairs(len(alone), find_pairs(prints, advance=lambda _tiles: None))
    sizes = Counter(roots)
    tiles = list(dataset.tiles)
    for index, root in zip(alone, roots, strict=True):
        if sizes[root] > 1:
            tiles[index] = replace(tiles[index], group=dataset.tiles[alone[root]].path.as_posix())
    shared = [size for size in sizes.values() if size > 1]
    log.info(
        "%d tiles have no group: %d of them look like another and share %d groups, of at most %d tiles",
        len(alone),
        sum(shared),
        len(shared),
        max(shared, default=1),
    )
    return replace(dataset, tiles=tuple(tiles))
