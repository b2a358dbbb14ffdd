"""A source whose workers make pixels themselves, as those of a slide do; workers import it by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cervix_engine.errors import TileReadError
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels

SIDE, BLANK = 40, 9


def drawn(number: int) -> Pixels:
    if number == BLANK:
        return np.full((SIDE, SIDE, 3), 255, np.uint8)
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + number, 3), np.uint8)


@dataclass(frozen=True)
class DrawnReader:
    def read(self, path: str, stamp: TileStamp | None) -> Pixels:
        if path == "3":
            raise TileReadError("unreadable", "no such region")
        return drawn(int(path))

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        assert all(path.isdecimal() for path, _ in tiles)

    def require_there(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Drawn(Folder):
    """All that is asked of it is its reader."""

    def reader(self) -> DrawnReader:  # type: ignore[override]
        return DrawnReader()
