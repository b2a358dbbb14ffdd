"""Which tiles of a data set show one cell: on both sides of a split, where they leak, or under two labels.

What counts as the same is what `duplicates.py` finds. Who gives a split, or names groups, may not know of a cell that
was photographed twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cervix_train.data.dataset import Dataset
from cervix_train.data.duplicates import Pair, find_pairs, fingerprint
from cervix_train.progress import meter

log = logging.getLogger(__name__)

NAMED = 20


@dataclass(frozen=True, slots=True)
class Copies:
    """The pairs of tiles of a data set that show the same thing.

    Attributes:
        dataset: whose tiles the pairs are of, by their index.
        pairs: all that were found.
        unreadable: tiles that could not be decoded and were compared with nothing.
    """

    dataset: Dataset
    pairs: tuple[Pair, ...] = ()
    unreadable: int = 0

    @property
    def across_splits(self) -> list[Pair]:
        """The pairs whose tiles lie in different splits: each is a leak."""
        tiles = self.dataset.tiles
        return [pair for pair in self.pairs if tiles[pair.first].split != tiles[pair.second].split]

    @property
    def of_two_labels(self) -> list[Pair]:
        """The pairs whose tiles have different labels: of one cell, at least one of them is wrong."""
        tiles = self.dataset.tiles
        return [pair for pair in self.pairs if tiles[pair.first].label != tiles[pair.second].label]


def find_copies(dataset: Dataset) -> Copies:
    """Compare every tile with every other; 4,000 tiles take some seconds."""
    prints = []
    with meter("look for copies", total=len(dataset.tiles)) as advance:
        for tile in dataset.tiles:
            prints.append(fingerprint(dataset.root / tile.path))
            advance(1)
    pairs = find_pairs(prints, advance=lambda _tiles: None)
    return Copies(dataset, tuple(pairs), sum(item is None for item in prints))


def warn_of_copies(copies: Copies) -> None:
    """Name the copies that lie across the split, and the cells that have two labels; the surest first."""
    tiles = copies.dataset.tiles
    _warn(
        copies.across_splits,
        "pairs of tiles that look like one cell, on both sides of the split: %d; the test is easier than it should be",
        lambda index: f"{tiles[index].split} {tiles[index].path}",
    )
    _warn(
        copies.of_two_labels,
        "pairs of tiles that look like one cell, under two labels: %d; at least one label of each pair is wrong",
        lambda index: f"{tiles[index].label} {tiles[index].path}",
    )


def surest(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that are most alike first."""
    return sorted(pairs, key=lambda pair: -pair.correlation)


def likeness(pair: Pair) -> str:
    """How alike a pair is, for people."""
    return "copy" if pair.exact else f"near copy ({pair.correlation:.3f})"


def _warn(pairs: Sequence[Pair], headline: str, name: Callable[[int], str]) -> None:
    if not pairs:
        return
    log.warning(headline, len(pairs))
    for pair in surest(pairs)[:NAMED]:
        log.warning("  %s = %s: %s", name(pair.first), name(pair.second), likeness(pair))
    if len(pairs) > NAMED:
        log.warning("  and %d more: training/copies.json lists all", len(pairs) - NAMED)
