"""Steps of decode workers that cost nothing, or of which only a part is done: workers import them, and little else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import decode, read_tile, resize_into
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels


class Remembered:
    """Reads each tile once, and then gives its bytes without a look at the disk; each worker for itself."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytes] = {}

    def __call__(self, path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes:  # noqa: ARG002 - as `read_tile`
        name = os.fspath(path)
        if name not in self._bytes:
            self._bytes[name] = read_tile(path)
        return self._bytes[name]


class ResizedOnly:
    """Decodes each tile once, and then only resizes it; each worker for itself."""

    def __init__(self) -> None:
        self._pixels: dict[bytes, Pixels] = {}

    def __call__(
        self,
        out: Pixels,
        data: bytes,
        /,
        *,
        contract: ModelContract,
        look: Callable[[Pixels], None] | None = None,  # noqa: ARG002 - as `preprocess_into`
    ) -> TileSize:
        if data not in self._pixels:
            self._pixels[data] = decode(read_tile(os.fsdecode(data)), contract=contract)
        resize_into(out, self._pixels[data])
        return TileSize(*out.shape[:2])


def its_name(path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes:  # noqa: ARG001 - as `read_tile`
    """A tile's name in place of its bytes."""
    return os.fsencode(path)


def nothing(path: Path | str, /, *, stamp: TileStamp | None = None) -> bytes:  # noqa: ARG001 - as `read_tile`
    """Nothing in place of a tile's bytes."""
    return b""


def already_filled(
    out: Pixels,
    data: bytes,  # noqa: ARG001 - as `preprocess_into`
    /,
    *,
    contract: ModelContract,  # noqa: ARG001
    look: Callable[[Pixels], None] | None = None,  # noqa: ARG001
) -> TileSize:
    """Leave the slot as it is: what it holds looks like tiles to the model just as well."""
    return TileSize(*out.shape[:2])
