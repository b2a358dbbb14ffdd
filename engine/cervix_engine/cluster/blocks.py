"""Blocks of whole batches, cut from a listing on disk, and handed to workers as places in it.

A block says where in the listing its records begin, so that the driver sends a few numbers and a worker reads the tiles
from the storage that both see. How large a block is has no part in any row: batches keep their numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Generic, TypeVar

import numpy as np

from cervix_engine.files import output_errors
from cervix_engine.run.assembly.chunks import Chunk
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.tiles.listing import FIELDS, read_records, tile_of

_READ_BYTES = 1 << 20

Following = TypeVar("Following")
Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive whole batches of a listing.

    Attributes:
        first_batch, batches: which ones.
        offset: where the record of its first tile begins in the listing, in bytes.
        first_tile, tiles: of the listing.
    """

    first_batch: int
    batches: int
    offset: int
    first_tile: int
    tiles: int

    def read(self, listing: Path, batch_size: int) -> Iterator[TileBatch]:
        """Its batches, from the listing.

        Raises:
            OSError: the listing cannot be read.
        """
        with listing.open("rb") as file:
            file.seek(self.offset)
            records = enumerate(islice(read_records(file), self.tiles), start=self.first_tile)
            tiles = (tile_of(index, record) for index, record in records)
            for number in range(self.first_batch, self.first_batch + self.batches):
                yield TileBatch(number, tuple(islice(tiles, batch_size)))


class _Queue(ABC, Generic[Following, Work]):
    """Work for workers in its order, cut when it is asked for; what a lost worker had comes first."""

    def __init__(self, following: Iterator[Following]) -> None:
        self._following = following
        self._next = next(following, None)
        self._again: list[Work] = []

    def give_back(self, work: Work) -> None:
        """Hand out again what a worker had that was lost."""
        self._again.append(work)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to hand out for now."""
        return self._next is None and not self._again

    def cut(self, tiles: int) -> Work | None:
        """What is next, of about so many tiles where that can be chosen; None where nothing is left for now.

        Raises:
            OutputError: the listing cannot be read.
        """
        if self._again:
            return self._again.pop()
        return None if self._next is None else self._cut(self._next, tiles)

    @abstractmethod
    def _cut(self, following: Following, tiles: int) -> Work: ...


class BlockCutter(_Queue[int, Block]):
    """Cuts the missing batches of a listing into blocks, as large as each is asked for; `with` closes the listing.

    Args:
        listing: the file of records.
        own: the batches that the run predicts.
        done: those of them that are safe already.
        batch_size: tiles a batch.
        last_tile: of the run, and one more: its last batch may be short.
    """

    def __init__(self, listing: Path, *, own: range, done: frozenset[int], batch_size: int, last_tile: int) -> None:
        self._listing = listing
        super().__init__(index for index in own if index not in done)
        self._batch_size = batch_size
        self._last_tile = last_tile
        self._left = len(own) - len(done)
        self._places: _Places | None = None

    def __enter__(self) -> BlockCutter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._places:
            self._places.close()

    @property
    def tiles_left(self) -> int:
        """About as many are in no block yet."""
        return self._left * self._batch_size

    def _cut(self, first: int, tiles: int) -> Block:
        count = 0
        while self._next == first + count and count < max(1, tiles // self._batch_size):
            count += 1
            self._left -= 1
            self._next = next(self._following, None)
        first_tile = first * self._batch_size
        last_tile = min(self._last_tile, (first + count) * self._batch_size)
        with output_errors(f"cannot read the listing {self._listing}"):
            self._places = self._places or _Places(self._listing)
            offset = self._places.of(first_tile)
        return Block(first, count, offset, first_tile, last_tile - first_tile)


class ChunkQueue(_Queue[Chunk, Chunk]):
    """Hands out the chunks of a table that is a folder, as `BlockCutter` does blocks; `with` closes the listing.

    Args:
        chunks: all of them, in order.
        listing: the file of records.
        first_tile: of the run.

    Raises:
        OutputError: the listing cannot be read.
    """

    tiles_left = 0  # which chunks do not depend on

    def __init__(self, chunks: Iterable[Chunk], listing: Path, *, first_tile: int) -> None:
        super().__init__(iter(chunks))
        self._first_tile = first_tile
        with output_errors("cannot read the listing"):
            self._places = _Places(listing)

    def __enter__(self) -> ChunkQueue:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._places.close()

    def _cut(self, following: Chunk, _tiles: int) -> Chunk:
        with output_errors("cannot read the listing"):
            chunk = replace(following, offset=self._places.of(self._first_tile))
        self._first_tile += chunk.rows
        self._next = next(self._following, None)
        return chunk


class _Places:
    """Where records begin in a listing, asked for in rising order: one pass, as fast as the file can be read."""

    def __init__(self, listing: Path) -> None:
        self._file: IO[bytes] = listing.open("rb")
        self._ends = np.empty(0, np.int64)  # of the fields in what was read last
        self._at = 0  # bytes read
        self._before = 0  # fields that end before what was read last

    def close(self) -> None:
        self._file.close()

    def of(self, record: int) -> int:
        if record == 0:
            return 0
        field = record * FIELDS - 1  # the last one before it
        while field >= self._before + len(self._ends):
            data = self._file.read(_READ_BYTES)
            if not data:
                raise OSError(0, f"it has fewer than {record} records")
            self._before += len(self._ends)
            self._ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 0) + self._at
            self._at += len(data)
        return int(self._ends[field - self._before]) + 1
