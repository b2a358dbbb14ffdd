"""A finished table that a new one is made from: which of its rows are kept, and where the new rows go among them.

    the finished table     a   b   c   d
    the run's listing          b       .   e      its tiles are predicted
    the file `gone`                c              its rows are dropped
    the new table          a   b       d   e      a and d are kept, byte for byte

A *retry* lists the tiles of failed rows; none comes or goes. An *update* lists the tiles that are new, or are not as
they were when the table was made: of another size, time of change, slide or place. A failed row whose tile is as it was
is kept.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from cervix_engine.errors import OutputError
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.assembly.beside import stamps_path
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.record import RunRecord, TableChanges
from cervix_engine.table.formats import csv_lines
from cervix_engine.table.names import unescape_name
from cervix_engine.tiles.listing import STAMP_CHECK_BYTES, Listing, Record, stamp_check, write_records

GONE, LISTED, LISTING = "gone", "listed", "listing"


class BaseRow(NamedTuple):
    """A row of the finished table.

    Attributes:
        name: its tile's path relative to the root.
        line: the row as CSV.
        error: empty where its tile was predicted.
        flagged: whether its column `quality` names a flag.
        stamp: the check of its tile as it was listed; empty where that is not known.
        cells: what the row holds.
    """

    name: bytes
    line: bytes
    error: str
    flagged: bool
    stamp: bytes
    cells: list[str]

    @property
    def slide_id(self) -> str:
        """Of its tile, as the row says it: the second of all tables' columns."""
        return self.cells[1]


# A row of the new table: a row of the finished one, or a tile that is predicted, or a tile in the place of a row.
Step = tuple[BaseRow | None, Record | None]

# Whether a row has another slide or place by now.
Moved = Callable[[BaseRow], bool]


def not_moved(_row: BaseRow) -> bool:
    """Where nothing says slides or places that could change."""
    return False


@dataclass(frozen=True, slots=True)
class Base:
    """A finished table, and what a run does with it.

    Attributes:
        table: the file.
        record: of the run that made it.
        kind: see above.
    """

    table: Path
    record: RunRecord
    kind: Literal["retry", "update"]

    def marked(self, identity: RunIdentity) -> RunIdentity:
        """`identity` as that of a run that is made from this table."""
        digests = self.record.table
        assert digests is not None
        sha256 = digests.table_sha256
        if self.kind == "retry":
            return replace(identity, retry_of=sha256, update_of=None)
        return replace(identity, retry_of=None, update_of=sha256)

    @property
    def what(self) -> str:
        """What is predicted, as the start of a sentence."""
        return "its failed rows" if self.kind == "retry" else "what it lacks"

    @property
    def has_stamps(self) -> bool:
        return self.record.table is not None and self.record.table.stamps_sha256 is not None

    def require_stamps(self) -> None:
        """Raises OutputError where nothing says how the table's tiles were when it was made."""
        digests, path = self.record.table, stamps_path(self.table)
        assert digests is not None
        anew = "so no tile can be told from a changed one: make the table anew with --overwrite"
        if digests.stamps_sha256 is None:
            raise OutputError(f"{self.table} is of an earlier version, which kept no stamps of its tiles, {anew}")
        with output_errors(f"cannot read {path}"):
            if not path.is_file() or sha256_file(path) != digests.stamps_sha256:
                raise OutputError(f"{path} is not there as the run wrote it, {anew}")

    def rows(self) -> Iterator[BaseRow]:
        """Every row, in order."""
        columns = self.record.identity.columns
        error_at, quality_at = columns.index("error"), columns.index("quality") if "quality" in columns else None
        with closing(csv_lines(self.table)) as lines, closing(self._stamps()) as stamps:
            next(lines)
            for line in lines:
                (cells,) = csv.reader([line.decode("utf-8")])
                flagged = quality_at is not None and bool(cells[quality_at]) and not cells[error_at]
                name = os.fsencode(unescape_name(cells[0]))
                yield BaseRow(name, line, cells[error_at], flagged, next(stamps, b""), cells)

    def _stamps(self) -> Generator[bytes, None, None]:
        if self.has_stamps:
            with stamps_path(self.table).open("rb") as file:
                while stamp := file.read(STAMP_CHECK_BYTES):
                    yield stamp


@dataclass(frozen=True, slots=True)
class Kept:
    """The books of the rows that are kept, and what becomes of the others."""

    ok: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    changes: TableChanges = field(default_factory=lambda: TableChanges(0, 0, 0))

    @property
    def rows(self) -> int:
        return self.ok + self.failures.total()


@dataclass(frozen=True, slots=True)
class Growth:
    """The new table, made of a base, of what is predicted, and without what is gone.

    Attributes:
        base: the finished table.
        listing: the tiles that are predicted, in the table's order.
        folder: of the run, with the file `gone`.
    """

    base: Base
    listing: Listing
    folder: Path

    def steps(self) -> Iterator[Step]:
        """The rows of the new table, in order."""
        predicted, gone = self.listing.records(), self._gone()
        record, lost = next(predicted, None), next(gone, None)
        for row in self.base.rows():
            while self.base.kind == "update" and record and record[0] < row.name:
                yield None, record
                record = next(predicted, None)
            if record and record[0] == row.name:
                yield row, record
                record = next(predicted, None)
            elif row.name == lost:
                lost = next(gone, None)
            else:
                yield row, None
        while record:
            yield None, record
            record = next(predicted, None)

    def _gone(self) -> Iterator[bytes]:
        path = self.folder / GONE
        yield from path.read_bytes().split(b"\0")[:-1] if path.exists() else ()

    def kept(self) -> Kept:
        """Count the rows that are kept, and the others."""
        ok = flagged = added = changed = 0
        failures: Counter[str] = Counter()
        with output_errors(f"cannot read {self.base.table}"):
            for row, record in self.steps():
                if row is None:
                    added += 1
                elif record is not None:
                    changed += 1
                elif row.error:
                    failures[row.error.partition(":")[0]] += 1
                else:
                    ok, flagged = ok + 1, flagged + row.flagged
            changes = TableChanges(added, changed, removed=sum(1 for _ in self._gone()))
        return Kept(ok, failures, flagged, changes)

    def keeps_all_of(self, slides: Container[str]) -> bool:
        """Whether each predicted row of these slides is kept, as it is."""
        had = sum(not row.error and row.slide_id in slides for row in self.base.rows())
        kept = (row for row, record in self.steps() if row and not record)
        return had == sum(not row.error and row.slide_id in slides for row in kept)

    def paths(self) -> Iterator[str]:
        """The path of each row's tile, in order."""
        for row, record in self.steps():
            name = record[0] if record else row.name if row else b""
            yield os.fsdecode(name)

    def lines(self, predicted: Iterator[bytes]) -> Iterator[bytes]:
        """The new table's rows, of which `predicted` are this run's."""
        for row, record in self.steps():
            yield row.line if record is None and row else next(predicted)

    def stamps(self) -> Iterator[bytes] | None:
        """The stamp check of each row; None where the base has none."""
        if not self.base.has_stamps:
            return None
        return (stamp_check(record) if record else row.stamp if row else b"" for row, record in self.steps())


def list_news(base: Base, now: Listing, *, moved: Moved = not_moved) -> Listing:
    """Narrow `now`, all tiles as they are listed now, to those that a finished table lacks or that changed since.

    The listing is written anew, and the names of the rows that have no tile any more beside it.

    Raises:
        OutputError: the table's stamps are missing, its rows are out of order, or something cannot be written.
    """
    base.require_stamps()
    folder = now.path.parent
    with output_errors("cannot compare the tiles with the table"):
        now.path.replace(folder / LISTED)
        with (folder / GONE).open("wb") as gone:
            news = _news(base, replace(now, path=folder / LISTED), gone, moved)
            found = write_records(now.path, news)
        (folder / LISTED).unlink()
    return replace(now, found=found)


def _news(base: Base, now: Listing, gone: BinaryIO, moved: Moved) -> Iterator[Record]:
    listed = now.records()
    record, before = next(listed, None), b""
    for row in base.rows():
        if row.name <= before:
            raise OutputError(f"{base.table} is not in the order of its paths: make it anew with --overwrite")
        before = row.name
        while record and record[0] < row.name:
            yield record
            record = next(listed, None)
        if record and record[0] == row.name:
            if stamp_check(record) != row.stamp or moved(row):
                yield record
            record = next(listed, None)
        else:
            gone.write(row.name + b"\0")
    while record:
        yield record
        record = next(listed, None)
