"""The two steps from a tile's name to its pixels, as the decode workers take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import preprocess_into
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels


class ReadStep(Protocol):
    """The bytes or pixels of one tile; see `read_tile_of`."""

    def __call__(self, reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes | Pixels: ...


class PixelStep(Protocol):
    """Bytes to pixels in their place in a slot; see `preprocess.preprocess_into`."""

    def __call__(
        self,
        out: Pixels,
        data: bytes | Pixels,
        /,
        *,
        contract: ModelContract,
        look: Callable[[Pixels], None] | None = None,
    ) -> TileSize: ...


def read_tile_of(reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes | Pixels:
    """One tile, from its source."""
    return reader.read(path, stamp)


@dataclass(frozen=True, slots=True)
class TileSteps:
    """What a stream's decode workers do to each tile.

    A run has the steps that stand here. To measure a stream, one of them is replaced by a step that costs nothing, or
    by a slow one. Workers are other processes: each step is a function that a module has under its name, or an object
    that can be pickled.
    """

    read: ReadStep = read_tile_of
    preprocess_into: PixelStep = preprocess_into
