"""The usable tiles of each split, with all that training and measuring need of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import DatasetError
from cervix_train.data.augment import ORIGINAL, Variant
from cervix_train.data.dataset import SPLITS, Dataset, Split
from cervix_train.data.splits import group_of
from cervix_train.features.features import CopyFeatures, FeatureSet
from cervix_train.learning.batches import LabelledFeatures


@dataclass(frozen=True, slots=True)
class SplitTiles:
    """One split's tiles that could be decoded, in the data set's order.

    Attributes:
        indices: where each stands in `Dataset.tiles`. Altered copies follow the tiles, and stand where their tile does.
        labelled: their features and classes.
        groups: which of them belong together.
        variants: how each is altered.
    """

    indices: npt.NDArray[np.intp]
    labelled: LabelledFeatures
    groups: tuple[str, ...]
    variants: tuple[Variant, ...]

    def with_copies(self, copies: CopyFeatures) -> SplitTiles:
        """These tiles and altered copies of them; each has its tile's class and group.

        Raises:
            ValueError: a copy is of a tile of another split, which it would cross.
        """
        positions = {int(index): position for position, index in enumerate(self.indices)}
        strangers = [copy.index for copy in copies.copies if copy.index not in positions]
        if strangers:
            raise ValueError(f"{len(strangers)} copies are of tiles of another split, such as {strangers[0]}")
        own = [positions[copy.index] for copy in copies.copies]
        labelled = LabelledFeatures(
            np.concatenate([self.labelled.vectors, copies.vectors]),
            np.concatenate([self.labelled.targets, self.labelled.targets[own]]),
        )
        return SplitTiles(
            indices=np.concatenate([self.indices, self.indices[own]]),
            labelled=labelled,
            groups=(*self.groups, *(self.groups[position] for position in own)),
            variants=(*self.variants, *(copy.variant for copy in copies.copies)),
        )


def tiles_by_split(dataset: Dataset, features: FeatureSet) -> dict[Split, SplitTiles]:
    """The features by split, those of altered copies with the training tiles.

    Raises:
        DatasetError: so many tiles had to be left out that a split or a class has none.
    """
    names = [item.name for item in dataset.classes]
    tiles = [dataset.tiles[index] for index in features.indices]
    targets = np.array([names.index(tile.label) for tile in tiles], np.intp)
    found: dict[Split, SplitTiles] = {}
    for split in SPLITS:
        members = np.array([tile.split == split for tile in tiles], bool)
        if not members.any():
            raise DatasetError(f"no readable tile is left in the split {split!r}")
        groups = tuple(group_of(tile) for tile in tiles if tile.split == split)
        labelled = LabelledFeatures(features.vectors[members], targets[members])
        found[split] = SplitTiles(features.indices[members], labelled, groups, (ORIGINAL,) * len(groups))
    missing = set(range(len(names))) - set(found["train"].labelled.targets.tolist())
    if missing:
        raise DatasetError(f"no readable tile of class {names[min(missing)]} is left in the training split")
    if features.copies.copies:
        found["train"] = found["train"].with_copies(features.copies)
    return found
