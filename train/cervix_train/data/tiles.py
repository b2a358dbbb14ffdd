"""Turns tile files into the batches that Keras reads, through the engine's own decode and resize."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import preprocess_into, read_tile
from cervix_engine.tiles.tile import TileFailure, TileSize
from cervix_engine.values import Pixels
from cervix_train.data.augment import ORIGINAL, Variant


@dataclass(slots=True)
class TileBatch:
    """Some tiles, ready for a model; `len(batch)` is their number.

    Attributes:
        pixels: `uint8 (batch_size, height, width, 3)` RGB, owned by whoever receives the batch. Always of that
            shape, with zeros after the last tile: so a model is traced once, and what it says of a tile does not
            depend on how many tiles came with it.
        indices: where each tile stands in the list it was read from.
        digests: hex SHA-256 of each tile's file; of an altered tile, its variant's key.
        sizes: decoded sizes, before the resize.
    """

    pixels: Pixels
    indices: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    sizes: list[TileSize] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def add(self, index: int, data: bytes, *, digest: str, contract: ModelContract, variant: Variant) -> None:
        """Decode one more tile into the next free place, and alter it; `digest` is its file's.

        Raises:
            TileError: it cannot be decoded; the batch is then as before.
        """
        place = self.pixels[len(self)]
        size = preprocess_into(place, data, contract=contract)
        place[:] = variant.apply(place, digest=digest)
        self.indices.append(index)
        self.digests.append(variant.key(digest))
        self.sizes.append(size)


def tile_batches(
    paths: Sequence[Path],
    *,
    contract: ModelContract,
    batch_size: int,
    failures: dict[int, TileFailure],
    skip: Callable[[int, str], bool] = lambda _index, _digest: False,
    variants: Sequence[Variant] | None = None,
) -> Iterator[TileBatch]:
    """Read, decode and batch tiles, in order; every path ends in a batch, in `failures`, or is skipped.

    Args:
        paths: the tiles' files.
        contract: how they are decoded and resized.
        batch_size: tiles in a batch; the last one may hold fewer.
        failures: gets an entry, by index, for each tile that cannot be read or decoded.
        skip: told index and digest, as in `TileBatch`, before decoding; True leaves the tile out.
        variants: how each tile is altered; None leaves all as they are.
    """
    batch = _empty(batch_size, contract)
    for index, (path, variant) in enumerate(zip(paths, variants or repeat(ORIGINAL, len(paths)), strict=True)):
        try:
            data = read_tile(path)
        except TileError as error:
            failures[index] = TileFailure("read", str(error))
            continue
        digest = sha256_bytes(data)
        if skip(index, variant.key(digest)):
            continue
        try:
            batch.add(index, data, digest=digest, contract=contract, variant=variant)
        except TileError as error:
            failures[index] = TileFailure("decode", str(error))
            continue
        if len(batch) == batch_size:
            yield batch
            batch = _empty(batch_size, contract)
    if len(batch):
        yield batch


def _empty(batch_size: int, contract: ModelContract) -> TileBatch:
    return TileBatch(np.zeros((batch_size, *contract.input_size, 3), np.uint8))
