"""What was found in a source of tiles, on disk: one record a tile, in byte order of the paths.

A record is `path NUL size NUL mtime_ns NUL`, of the real file where the path is a link. Where one file holds many
tiles, as an archive does, it is `path NUL size NUL mtime_ns@where NUL`. The listing is written once and then read, by
the run and by whoever resumes it: what was found is decided there and nowhere else.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cervix_engine.errors import UsageError
from cervix_engine.files import output_errors
from cervix_engine.tiles.tile import TileRef, TileStamp

if TYPE_CHECKING:
    from cervix_engine.tiles.sources.source import TileSource

log = logging.getLogger(__name__)

LISTING = "listing"

# 16,384 records of about 100 bytes: the sort holds a few MB however many tiles there are.
RUN_LENGTH = 16_384

# Path in its source, size in bytes, time of change in ns, and where in its source it lies, for its reader.
Record = tuple[bytes, int, int, bytes]

# Size and time of a tile that is gone.
ABSENT = (0, 0)

# Of a record, each ended by a NUL.
FIELDS = 3

STAMP_CHECK_BYTES = 8


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """How a source differs from its listing, by the names of its tiles."""

    added: int
    removed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


@dataclass(frozen=True, slots=True)
class Listing:
    """The tiles that were found, on disk.

    Attributes:
        source: that paths are relative to.
        path: the file of records.
        found: number of tiles.
        ignored: files passed over, and folders that were not entered.
        ignored_by: how many of these for which of `discover.REASONS`; empty where that is not known.
        changes: how the source differs by now from a listing that was stored; None where it was listed just now.
    """

    source: TileSource
    path: Path
    found: int
    ignored: int
    ignored_by: Mapping[str, int] = field(default_factory=dict)
    changes: FolderChanges | None = None

    def __iter__(self) -> Iterator[TileRef]:
        for index, record in enumerate(self.records()):
            yield tile_of(index, record)

    def paths(self) -> Iterator[str]:
        """The path of each tile, in order."""
        return (os.fsdecode(name) for name, *_ in self.records())

    def records(self) -> Iterator[Record]:
        """Every record, in order.

        Raises:
            OutputError: the listing cannot be read.
        """
        with output_errors(f"cannot read the listing {self.path}"), self.path.open("rb") as file:
            yield from read_records(file)


def tile_of(index: int, record: Record) -> TileRef:
    """The tile of a record, with its place in the listing."""
    name, size, mtime_ns, where = record
    return TileRef(index, os.fsdecode(name), TileStamp(size, mtime_ns, where.decode()))


def absent(name: bytes) -> Record:
    """The record of a tile that is gone: an empty file of no time, which it cannot be read as."""
    return name, *ABSENT, b""


def list_again(names: Iterable[bytes], listing: Listing) -> Listing:
    """Write `listing` anew: tiles that were found before, in the order given, as they are now.

    One that is gone is listed as `absent`.

    Raises:
        OutputError: the listing cannot be written.
    """
    records = listing.source.again(names, spool=listing.path.parent)
    with output_errors(f"cannot write the listing {listing.path}"):
        return replace(listing, found=write_records(listing.path, records))


def write_sorted(
    records: Iterable[Record], spool: Path, *, name: str = LISTING, once: bool = True, run_length: int = RUN_LENGTH
) -> int:
    """Write `spool / name` in byte order of the paths, sorted on disk; returns the number of records.

    Args:
        records: in any order.
        spool: a folder.
        name: of the file.
        once: refuse a path that is there twice.
        run_length: records that are held in memory at once.

    Raises:
        UsageError: two tiles have one path.
        OutputError: the listing cannot be written.
    """
    with output_errors(f"cannot write the listing in {spool}"), ExitStack() as stack:
        merged = _merged(_sorted_runs(records, spool, run_length), stack)
        return write_records(spool / name, _each_once(merged) if once else merged)


def folder_changes(listed: Iterable[bytes], now: Iterable[Record], *, spool: Path) -> FolderChanges:
    """Compare paths in byte order with what is found `now`, in any order and in bounded memory.

    Raises:
        OutputError: `spool` cannot be written, or the listing not read.
    """
    alone: Counter[str] = Counter()
    with output_errors(f"cannot compare the tiles with their listing in {spool}"), ExitStack() as stack:
        before = ((name, "listing") for name in listed)
        there = ((name, "source") for name, *_ in _merged(_sorted_runs(now, spool), stack))
        for _, group in groupby(heapq.merge(before, there, key=itemgetter(0)), key=itemgetter(0)):
            sides = [side for _, side in group]
            if len(sides) == 1:
                alone[sides[0]] += 1
    return FolderChanges(added=alone["source"], removed=alone["listing"])


def found_again(names: Iterable[bytes], now: Iterable[Record], *, spool: Path) -> Iterator[Record]:
    """The records of `names` among all that there are `now`, which are in no order; `absent` for one that is not there.

    One pass finds names that are in byte order; for each one that is not, the search begins anew.

    Raises:
        OutputError: `spool` cannot be written or read.
    """
    write_sorted(now, spool, name="now", once=False)
    before = b""
    with output_errors(f"cannot look for tiles again in {spool}"):
        with (spool / "now").open("rb") as file:
            records = read_records(file)
            at = next(records, None)
            for name in names:
                if name < before:
                    file.seek(0)
                    records = read_records(file)
                    at = next(records, None)
                while at and at[0] < name:
                    at = next(records, None)
                yield at if at and at[0] == name else absent(name)
                before = name
        (spool / "now").unlink()


def _each_once(records: Iterable[Record]) -> Iterator[Record]:
    before = None
    for record in records:
        if record[0] == before:
            log.debug("twice: %r", os.fsdecode(record[0]))
            raise UsageError("two tiles have one path, and no row could say which is meant; --log-file says which path")
        before = record[0]
        yield record


def _merged(runs: Iterable[IO[bytes]], stack: ExitStack) -> Iterator[Record]:
    files = [stack.enter_context(run) for run in runs]
    return heapq.merge(*map(read_records, files), key=itemgetter(0))


def _sorted_runs(records: Iterable[Record], spool: Path, run_length: int = RUN_LENGTH) -> Iterator[IO[bytes]]:
    iterator = iter(records)
    while run := sorted(islice(iterator, run_length)):
        file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - the caller's ExitStack closes it
        file.writelines(map(_encode, run))
        file.seek(0)
        yield file


def stamp_check(record: Record) -> bytes:
    """The check of one tile as it was listed: the first 8 bytes of the SHA-256 of its record."""
    return hashlib.sha256(_encode(record)).digest()[:STAMP_CHECK_BYTES]


def _encode(record: Record) -> bytes:
    name, size, mtime_ns, where = record
    return b"%b\0%d\0%d@%b\0" % record if where else b"%b\0%d\0%d\0" % (name, size, mtime_ns)


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write a listing of `records` as they come; returns their number.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    with path.open("wb") as file:
        for record in records:
            file.write(_encode(record))
            count += 1
    return count


def read_records(file: IO[bytes]) -> Iterator[Record]:
    """The records of an open listing, from where it stands."""
    rest = b""
    while block := file.read(1 << 16):
        *fields, rest = (rest + block).split(b"\0")
        # What does not fill a record waits for the next block.
        whole = len(fields) // FIELDS * FIELDS
        for at in range(0, whole, FIELDS):
            mtime_ns, _, where = fields[at + 2].partition(b"@")
            yield fields[at], int(fields[at + 1]), int(mtime_ns), where
        rest = b"\0".join([*fields[whole:], rest])
