"""The Parquet files of a table that is a folder: each holds as many consecutive rows, a chunk, whoever writes it.

    shards   │ 0      │ 4096        │ 12288   │ 16384 …          in the run's hidden folder, as CSV
    chunks   │ 0                  │ 10000              │ 20000 …   in `table/` there, as Parquet

Which rows a file holds depends on neither shards nor workers, so that the folder is the same, byte for byte, whatever
the run went through. A chunk is written under a name of its own, durably, and gets its place by whoever holds the
table's lock: what an earlier run's worker still writes is never taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cervix_engine.files import fsync_file, fsync_folder, sha256_file
from cervix_engine.run.assembly.beside import row_check
from cervix_engine.run.journal import Shard
from cervix_engine.table.parquet.file import parquet_of_csv
from cervix_engine.table.parquet.folder import ListedFile
from cervix_engine.table.rows import DecidedRows
from cervix_engine.tiles.listing import read_records, stamp_check

CHUNK_ROWS = 262_144


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a shard's file."""

    file: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of one Parquet file of the table, as they lie in shards.

    Attributes:
        number: of the file, from 0.
        pieces: of shards, in order.
        offset: where the record of its first tile begins in the listing, in bytes; None where nobody looked.
    """

    number: int
    pieces: tuple[Piece, ...]
    offset: int | None = None

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    def stamps(self, listing: Path) -> Iterator[bytes] | None:
        """The stamp check of each row's tile; None where nobody looked where they begin."""
        return None if self.offset is None else self._stamps_from(listing, self.offset)

    def _stamps_from(self, listing: Path, offset: int) -> Iterator[bytes]:
        with listing.open("rb") as file:
            file.seek(offset)
            yield from map(stamp_check, islice(read_records(file), self.rows))

    def lines(self, folder: Path) -> Iterator[bytes]:
        """Its rows as CSV, from the run's folder."""
        for piece in self.pieces:
            with (folder / piece.file).open("rb") as file:
                yield from islice(file, piece.first, piece.first + piece.rows)


@dataclass(frozen=True, slots=True)
class WrittenChunk:
    """A chunk that is durable in the run's folder.

    Attributes:
        number: which one.
        rows, sha256: of its Parquet file.
        abnormal, review: as `DecidedRows` counts them.
        file: its name for now; the checks of its rows lie beside it, and maybe those of their tiles.
        has_stamps: whether the latter do.
    """

    number: int
    rows: int
    sha256: str
    abnormal: int
    review: int
    file: str
    has_stamps: bool = False

    @property
    def checks(self) -> str:
        return f"{self.file}.rows"

    @property
    def stamps(self) -> str:
        return f"{self.file}.stamps"

    @property
    def listed(self) -> ListedFile:
        """As the manifest has it."""
        return ListedFile(f"part-{self.number:05d}.parquet", self.rows, self.sha256)


def chunks_of(shards: Iterable[Shard], chunk_rows: int) -> Iterator[Chunk]:
    """The chunks of a table that has no rows but those of these shards."""
    number, wanted, pieces = 0, chunk_rows, list[Piece]()
    for shard in sorted(shards, key=lambda item: item.first_batch):
        first, left = 0, shard.rows
        while left:
            rows = min(left, wanted)
            pieces.append(Piece(shard.file, first, rows))
            first, left, wanted = first + rows, left - rows, wanted - rows
            if not wanted:
                yield Chunk(number, tuple(pieces))
                number, wanted, pieces = number + 1, chunk_rows, []
    if pieces:
        yield Chunk(number, tuple(pieces))


def write_chunk(
    folder: Path, number: int, columns: Sequence[str], lines: Iterable[bytes], stamps: Iterable[bytes] | None = None
) -> WrittenChunk:
    """Write the rows of a chunk as Parquet, and checks of them and of their tiles beside it, in the run's folder.

    Raises:
        OSError, OutputError: something cannot be written.
    """
    decided = DecidedRows(columns)
    rows = list(decided.counted(lines))
    path = folder / f"part-{number:05d}.{uuid.uuid4().hex[:12]}"
    parquet_of_csv(path, columns, b"".join(rows))
    fsync_file(path)
    sha256, has_stamps = sha256_file(path), stamps is not None
    written = WrittenChunk(number, len(rows), sha256, decided.abnormal, decided.review, path.name, has_stamps)
    (folder / written.checks).write_bytes(b"".join(map(row_check, rows)))
    if stamps is not None:
        (folder / written.stamps).write_bytes(b"".join(stamps))
    return written


def remove_chunks(folder: Path) -> None:
    """Remove the chunks of an assembly that ended too early, which may be what fills a disk.

    Raises:
        OSError: one cannot be removed.
    """
    for path in folder.glob("part-*"):
        path.unlink(missing_ok=True)  # a worker of that assembly may be writing


def write_chunks(
    folder: Path, columns: Sequence[str], rows: Iterable[bytes], chunk_rows: int
) -> Iterator[WrittenChunk]:
    """Write all rows of a table, a chunk after another; raises as `write_chunk`."""
    lines, number = iter(rows), 0
    while some := list(islice(lines, chunk_rows)):
        yield write_chunk(folder, number, columns, some)
        number += 1


def take_chunks(chunks: Sequence[WrittenChunk], table: Path, *, checks: Path, stamps: Path) -> tuple[ListedFile, ...]:
    """Give all chunks of a table, in any order, their places in the new folder `table`, and join what lies beside them.

    Raises:
        OSError: something cannot be written.
    """
    ordered = sorted(chunks, key=lambda chunk: chunk.number)
    _join([table.parent / chunk.checks for chunk in ordered], checks)
    if any(chunk.has_stamps for chunk in ordered):
        _join([table.parent / chunk.stamps for chunk in ordered], stamps)
    for chunk in ordered:
        (table.parent / chunk.file).replace(table / chunk.listed.name)
    fsync_folder(table)
    return tuple(chunk.listed for chunk in ordered)


def _join(parts: Iterable[Path], whole: Path) -> None:
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
            part.unlink()
