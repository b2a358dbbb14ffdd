"""The two steps from a tile's name to its pixels, as the decode workers take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels


class ReadStep(Protocol):
    """The bytes of one tile; see `preprocess.read_tile`."""

    def __call__(self, path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes: ...


class PixelStep(Protocol):
    """Bytes to pixels in their place in a slot; see `preprocess.preprocess_into`."""

    def __call__(
        self, out: Pixels, data: bytes, /, *, contract: ModelContract, look: Callable[[Pixels], None] | None = None
    ) -> TileSize: ...


@dataclass(frozen=True, slots=True)
class TileSource:
    """What a stream's decode workers do to each tile.

    A run has the steps of `preprocess`. To measure a stream, one of them is replaced by a step that costs nothing, or
    by a slow one. Workers are other processes: each step is a function that a module has under its name, or an object
    that can be pickled.
    """

    read: ReadStep
    preprocess_into: PixelStep
