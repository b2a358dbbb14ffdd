"""Steps of decode workers that cost nothing, or of which only a part is done: workers import them, and little else."""

from __future__ import annotations

from collections.abc import Callable

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import decode
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels


class Remembered:
    """Reads each tile once, and then gives its bytes without a look at the disk; each worker for itself."""

    def __init__(self) -> None:
        self._tiles: dict[str, bytes | Pixels] = {}

    def __call__(self, reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes | Pixels:
        if path not in self._tiles:
            self._tiles[path] = reader.read(path, stamp)
        return self._tiles[path]


class Decoded:
    """Reads and decodes each tile once, and then gives its pixels, which are only to be resized; as `Remembered`."""

    def __init__(self, contract: ModelContract) -> None:
        self._contract = contract
        self._pixels: dict[str, Pixels] = {}

    def __call__(self, reader: TileReader, path: str, stamp: TileStamp | None, /) -> Pixels:
        if path not in self._pixels:
            data = reader.read(path, stamp)
            self._pixels[path] = decode(data, contract=self._contract) if isinstance(data, bytes) else data
        return self._pixels[path]


def nothing(reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes:  # noqa: ARG001 - as `read_tile_of`
    """Nothing in place of a tile's bytes."""
    return b""


def already_filled(
    out: Pixels,
    data: bytes | Pixels,  # noqa: ARG001 - as `preprocess_into`
    /,
    *,
    contract: ModelContract,  # noqa: ARG001
    look: Callable[[Pixels], None] | None = None,  # noqa: ARG001
) -> TileSize:
    """Leave the slot as it is: what it holds looks like tiles to the model just as well."""
    return TileSize(*out.shape[:2])
