"""What is measured: real tiles on disk, a loaded model, and a folder to write to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError, UsageError
from cervix_engine.machine import usable_cpus
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.session import Session
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stream import BatchResult, batches_of
from cervix_engine.run.transaction import DEFAULT_SHARD, TableTransaction
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.preprocess import preprocess, preprocess_into
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileRef
from cervix_engine.values import Pixels


@dataclass(frozen=True, slots=True)
class BenchSetup:
    """Everything that a measurement needs.

    Attributes:
        session: the model, loaded, and its sizes.
        listing: the tiles, as a run would find them.
        tiles: those of the listing that are used, all of which can be decoded.
        identity: that of a run with this listing and session.
        out: where the measured table goes, in a folder of its own.
        passes: how often a run from files to table goes over the tiles.
        rows: how many the writer writes when it is measured alone; with few, its fixed costs would count as theirs.
    """

    session: Session
    listing: Listing
    tiles: Sequence[TileRef]
    identity: RunIdentity
    out: Path
    passes: int = 1
    rows: int = DEFAULT_SHARD.tiles

    @classmethod
    def of(cls, session: Session, tiles: Sequence[TileRef], *, out: Path) -> BenchSetup:
        """For these tiles of the session's listing."""
        return cls(session, session.listing, tiles, session.identity(session.listing), out)

    @property
    def contract(self) -> ModelContract:
        return self.session.contract

    @property
    def batch_size(self) -> int:
        return self.session.batch_size

    @property
    def workers(self) -> int:
        return self.session.workers or usable_cpus()

    @property
    def batches_a_pass(self) -> int:
        return -(-len(self.tiles) // self.batch_size)

    def batches(self) -> Iterator[TileBatch]:
        """What a run predicts."""
        return batches_of(chain.from_iterable(repeat(self.tiles, self.passes)), self.batch_size)

    def write_table(self, results: Iterable[BatchResult]) -> int:
        """Write results to fsynced shards and make them the table, as a run does.

        Returns:
            The number of tiles.
        """
        session = self.session
        with TableTransaction(self.out) as table:
            table.empty_folder()
            with table.begin(self.identity, self.listing, backend=session.backend.info, provenance=session.provenance):
                with table.shards(RowFormat(self.contract)) as shards:
                    for result in results:
                        shards.write(result)
                table.assemble()
                record = table.commit()
        return record.ok + record.failed

    def batch(self, batch_size: int) -> Pixels:
        """A batch of real pixels, `uint8 (batch_size, height, width, 3)`; tiles repeat where there are too few."""
        chosen = [self.tiles[index % len(self.tiles)] for index in range(batch_size)]
        pixels = np.empty((batch_size, *self.contract.input_size, 3), np.uint8)
        reader = self.listing.source.reader()
        for out, tile in zip(pixels, chosen, strict=True):
            preprocess_into(out, reader.read(tile.path, tile.stamp), contract=self.contract)
        return pixels


def usable_tiles(listing: Listing, *, contract: ModelContract, count: int) -> tuple[TileRef, ...]:
    """The first `count` tiles of a listing that can be decoded: a failure costs other time than a tile.

    Raises:
        UsageError: none can.
    """
    reader = listing.source.reader()
    usable = (tile for tile in listing if _decodes(reader, tile, contract))
    tiles = tuple(islice(usable, count))
    if not tiles:
        raise UsageError(f"no tile in {listing.source} can be decoded")
    return tiles


def copy_golden(bundle: Bundle, folder: Path) -> Path:
    """Copy the bundle's golden tiles to `folder`, under names that are found as tiles.

    Raises:
        ContractError: the bundle has none, or one was altered.
    """
    folder.mkdir()
    for tile in GoldenSet.load(bundle).tiles:
        # Content, not suffix, decides the codec.
        (folder / f"{Path(tile.file).stem}.jpg").write_bytes(bundle.read(tile.file))
    return folder


def _decodes(reader: TileReader, tile: TileRef, contract: ModelContract) -> bool:
    try:
        preprocess(reader.read(tile.path, tile.stamp), contract=contract)
    except TileError:
        return False
    return True
