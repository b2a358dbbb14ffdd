"""What copies across the split, and cells with two labels, cost the test's figures: the same answers without them.

A copy of what was learnt is answered from memory, which makes the figures too high. Of a cell with two labels, one is
wrong whatever is answered, which makes them too low.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from cervix_engine.contract import TileClass
from cervix_engine.values import Probabilities
from cervix_train.data.copies import Copies, surest
from cervix_train.data.duplicates import Pair
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.results.intervals import Interval
from cervix_train.results.metrics import measure


@dataclass(frozen=True, slots=True)
class CostRow:
    """The figures of the tested tiles without some of them.

    Attributes:
        without: which tiles these are not, in words.
        left_out: how many those are, and `left_out_right` how many of them are answered right.
        tiles: how many the figures are of; they are None where there are none.
    """

    without: str
    left_out: int
    left_out_right: int
    tiles: int
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    macro_f1: float | None = None
    macro_f1_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class CopyReport:
    """The copies that a training found, and what they cost; of the schema `cervix/copies/1`.

    Attributes:
        copies: with the split that was trained on.
        cost: of all tested tiles, then without those that were found, where any were.
    """

    copies: Copies
    cost: tuple[CostRow, ...]

    schema: ClassVar[str] = "cervix/copies/1"

    @property
    def found(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.copies.across_splits or self.copies.of_two_labels)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "tiles": len(self.copies.dataset.tiles),
            "unreadable": self.copies.unreadable,
            "pairs": len(self.copies.pairs),
            "across_splits": [self._pair(pair) for pair in surest(self.copies.across_splits)],
            "two_labels": [self._pair(pair) for pair in surest(self.copies.of_two_labels)],
            "cost": [asdict(row) for row in self.cost],
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        tiles = [self.copies.dataset.tiles[index] for index in (pair.first, pair.second)]
        return {
            "tiles": [
                {"path": tile.path.as_posix(), "label": tile.label, "split": tile.split} for tile in tiles
            ],
            "exact": pair.exact,
            "correlation": round(pair.correlation, 4),
        }  # fmt: skip


def copy_report(
    copies: Copies, probabilities: Probabilities, tested: SplitTiles, *, classes: Sequence[TileClass]
) -> CopyReport:
    """What was found, and its cost on the tested tiles.

    Args:
        copies: of the data set with its split.
        probabilities: the answers, `float32 (N, classes)`.
        tested: the N tiles that were answered.
    """
    leaked = _members(copies.across_splits)
    doubted = _members(copies.of_two_labels)
    kinds: list[tuple[str, Collection[int]]] = [("nothing left out", ())]
    if leaked:
        kinds.append(("without copies of tiles in another split", leaked))
    if doubted:
        kinds.append(("without cells of two labels", doubted))
    if leaked and doubted:
        kinds.append(("without both", leaked | doubted))
    rows = (_row(words, members, probabilities, tested, classes) for words, members in kinds)
    return CopyReport(copies, tuple(rows))


def _members(pairs: Sequence[Pair]) -> set[int]:
    return {index for pair in pairs for index in (pair.first, pair.second)}


def _row(
    words: str,
    members: Collection[int],
    probabilities: Probabilities,
    tested: SplitTiles,
    classes: Sequence[TileClass],
) -> CostRow:
    out = np.isin(tested.indices, list(members))
    targets = tested.labelled.targets
    right = probabilities.argmax(axis=1) == targets
    counts = (words, int(out.sum()), int(right[out].sum()), int((~out).sum()))
    if out.all():
        return CostRow(*counts)
    groups = [group for group, gone in zip(tested.groups, out, strict=True) if not gone]
    metrics = measure(probabilities[~out], targets[~out], classes=classes, split="test", groups=groups)
    return CostRow(*counts, metrics.accuracy, metrics.accuracy_interval, metrics.macro.f1, metrics.macro_f1_interval)
