"""The one way from predicted rows to a table: whole or not there, whatever ends the run, and never computed twice.

A hidden folder beside the table holds a run on its way. Its journal decides in which of four states the table is:

                begin                assemble                commit                clear
    absent ─────────────> partial ──────────────> assembled ───────────> committed ───────> the table alone
       ^                  │ ^ │ store                 │
       └── empty_folder ──┘ └─┘ <────── begin ────────┘ the next start assembles it anew

| state | the hidden folder `.preds.csv.cervix` | `preds.csv` | `preds.csv.run.json` |
|---|---|---|---|
| absent | none, or one without a journal, which is removed | none, or an older one | that one's |
| partial | `listing`, `journal.jsonl`, and the shards that it lists | as above | `running`, or why it ended |
| assembled | and `rows` and the table, whose digest the journal has | as above | and the table's digests |
| committed | left to clear, the journal last | the new one, beside `preds.csv.rows` | `done` |

Each step is durable before the next relies on it: a shard is fsynced, then listed in the journal; the table and its
row checks are fsynced, then their digests go to the journal and to the record; `preds.csv.rows` and the table are
renamed and their folder is fsynced, then the record says `done`, then the hidden folder goes. A kill at any instant
leaves either no new table and a run that goes on, or the table and a folder that the next start clears. The lock is the
kernel's, so a crash lets it go.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from cervix_engine.backends import BackendInfo
from cervix_engine.errors import CervixError, OutputError, OutputLockedError
from cervix_engine.files import fsync_file, fsync_folder, output_errors, sha256_file
from cervix_engine.locks import PlaceLock, PlaceTakenError
from cervix_engine.run.journal import Journal, RunIdentity, Shard
from cervix_engine.run.record import (
    Provenance,
    RunRecord,
    Status,
    TableDigests,
    checks_path,
    record_beside,
    replaced_record,
    row_check,
    utc_now,
)
from cervix_engine.run.shards import ShardSize, ShardWriter
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.table.formats import csv_line, csv_lines, publish_as, table_suffix
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Table
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import compared, discover
from cervix_engine.tiles.listing import Listing, list_again
from cervix_engine.tiles.sources.source import TileSource

JOURNAL = "journal.jsonl"
DEFAULT_SHARD = ShardSize()


class State(Enum):
    """Where a table is on its way, as drawn above."""

    ABSENT = "absent"
    PARTIAL = "partial"
    ASSEMBLED = "assembled"
    COMMITTED = "committed"


def journal_of(out: Path) -> Path:
    """The journal of a run on its way to a table."""
    return out.with_name(f".{out.name}.cervix") / JOURNAL


class TableTransaction:
    """Owns a table's place; `with` takes its lock, and leaves either a run that can go on, or the table alone.

    Whatever it does raises OutputError where the file system refuses it.

    Args:
        out: where the table goes; its suffix says the format.
        shard_size: how much a kill can cost.

    Attributes:
        state: of the table, as far as it was looked at.
        journal: of the run, once one is loaded or has begun.
    """

    journal: Journal
    _record: RunRecord
    _base: RunRecord | None

    def __init__(self, out: Path, *, shard_size: ShardSize = DEFAULT_SHARD) -> None:
        self.out = out
        self.folder = journal_of(out).parent
        self.state = State.ABSENT
        self._shard_size = shard_size
        self._lock = PlaceLock(out.with_name(f".{out.name}.lock"))

    def __enter__(self) -> TableTransaction:
        """Raises OutputLockedError where another run holds the table's place."""
        try:
            self._lock.acquire()
        except PlaceTakenError as error:
            raise OutputLockedError(f"another run is writing {self.out}{error}") from error
        except OSError as error:
            raise OutputError(f"cannot write in {self.out.parent}: {error.strerror}") from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self.state is State.COMMITTED and error is None:
                self.clear()
            else:
                self._clear_unless_begun()
        finally:
            self._lock.release()

    # ---- what an earlier run left

    def load(self) -> State:
        """Read what an earlier run left. A shard that is not as it was recorded is missing again."""
        journal = Journal.load(self.folder / JOURNAL)
        if journal is None:
            return State.ABSENT
        with output_errors("cannot check the partial run's shards"):
            for shard in list(journal.shards):
                file = self.folder / shard.file
                if not file.is_file() or sha256_file(file) != shard.sha256:
                    journal.drop(shard)
        self.journal = journal
        self.state = self._state_on_disk()
        return self.state

    def _state_on_disk(self) -> State:
        digest = self.journal.assembled
        with output_errors(f"cannot read {self.out}"):
            if digest is None:
                return State.PARTIAL
            # Before the rename, the table that is to be replaced may be the same, byte for byte.
            if self._published.exists():
                return State.ASSEMBLED
            committed = self.out.is_file() and sha256_file(self.out) == digest
        return State.COMMITTED if committed else State.PARTIAL

    def recover(self) -> None:
        """Finish a run that ended behind its rename: its record says `done`, and its folder is cleared."""
        path = record_beside(self.out)
        with output_errors(f"cannot look at {path}"):
            exists = path.exists()
        if exists and (record := RunRecord.load(path)).status != "done":
            record.done().save(self.out)
        self.clear()

    # ---- what is to be predicted

    def stored_listing(self, source: TileSource) -> Listing:
        """The listing of the loaded run, as it was made when that began, and how its source differs by now."""
        journal = self.journal
        stored = Listing(source, self.folder / "listing", journal.found, journal.ignored, journal.ignored_by)
        if journal.identity.retry_of:  # it holds the failed tiles alone
            return stored
        return compared(stored, spool=self.folder)

    def list_tiles(self, source: TileSource) -> Listing:
        """List the tiles of a source for a new run."""
        return discover(source, spool=self.empty_folder())

    def list_failed(self, source: TileSource, base: RunRecord) -> Listing:
        """List the tiles of the table's failed rows for a new run, in the table's order, as they are now."""
        spool = self.empty_folder()
        with output_errors(f"cannot read {self.out}"):
            failed = (row.path for row in Table.open(self.out).rows() if row.error is not None)
            names = (os.fsencode(unescape_name(path)) for path in failed)
            stored = Listing(source, spool / "listing", 0, base.ignored, base.ignored_by)
            return list_again(names, stored)

    def empty_folder(self) -> Path:
        """A new folder for a run's files; whatever partial run lay there is discarded."""
        _remove(self.folder, journal_first=True)
        self.state = State.ABSENT
        with output_errors(f"cannot write in {self.out.parent}"):
            self.folder.mkdir()
        return self.folder

    # ---- absent to partial

    @contextmanager
    def begin(
        self,
        identity: RunIdentity,
        listing: Listing,
        *,
        backend: BackendInfo,
        provenance: Provenance,
        base: RunRecord | None = None,
    ) -> Iterator[RunRecord]:
        """Begin a run, or go on with the loaded one; where the block fails, the record says why.

        Args:
            identity: everything that a row can depend on; another one than a loaded run's is refused.
            listing: what is predicted.
            backend, provenance: for the record.
            base: the finished table whose failed rows these are; all its other rows are the new table's too.

        Yields:
            The record as the run starts.
        """
        if self.state is State.ABSENT:
            self._create_journal(identity, listing)
        self.journal.identity.check(identity)
        self._base, self.state = base, State.PARTIAL
        kept = base.ok if base else 0
        self._record = RunRecord(
            found=kept + listing.found,
            ignored=listing.ignored,
            ignored_by=dict(listing.ignored_by),
            folder_changes=listing.changes,
            resumed=kept + self.journal.tiles,
            backend=backend,
            provenance=provenance,
            identity=identity,
            replaces=replaced_record(self.out),
        )
        with self._telling_why():
            yield self._update()

    def _create_journal(self, identity: RunIdentity, listing: Listing) -> None:
        with output_errors("cannot store the listing"):
            fsync_file(listing.path)
        path = self.folder / JOURNAL
        self.journal = Journal.create(path, identity=identity, listing=listing)

    @contextmanager
    def _telling_why(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            if self.state is not State.COMMITTED:
                # What ended the run may keep this from being written too; it alone is what the caller must see.
                with suppress(OutputError):
                    self._update(status=status, reason=_reason(error), ended_at=utc_now())
            raise

    def _update(self, **changes: Any) -> RunRecord:
        """Write the record with the books as they are, and some of its fields changed."""
        journal, base = self.journal, self._base
        books = replace(
            self._record,
            ok=journal.ok + (base.ok if base else 0),
            failures=dict(sorted(journal.failures.items())),
            # A failed tile has no flags, so all of the base's are of rows that are kept.
            flagged=journal.flagged + (base.flagged if base else 0),
        )
        return self._save(replace(books, **changes))

    def _save(self, record: RunRecord) -> RunRecord:
        record.save(self.out)
        self._record = record
        return record

    # ---- rows

    def missing(self, batches: Iterable[TileBatch]) -> Iterator[TileBatch]:
        """Those of all batches of the listing that no shard holds."""
        done = self.journal.batches()
        return (batch for batch in batches if batch.index not in done)

    def shards(self, row_format: RowFormat) -> ShardWriter:
        """Takes predicted batches in their order, and stores them in shards."""
        return ShardWriter(self.store, row_format, self._shard_size)

    def store(self, shard: Shard, data: bytes) -> None:
        """Make a shard's bytes durable, then record it: a shard in the journal is always whole on disk."""
        file = self.folder / shard.file
        with output_errors("cannot write a shard"):
            file.write_bytes(data)
            fsync_file(file)
            fsync_folder(self.folder)
        self.journal.append(shard)

    def require_balance(self) -> None:
        """The conservation law: a violation is this program's defect, a RuntimeError, and must leave no table."""
        journal = self.journal
        if journal.tiles != journal.found:
            failed = journal.failures.total()
            raise RuntimeError(f"{journal.found} tiles found, but {journal.ok} ok and {failed} failed")

    # ---- partial to assembled

    def assemble(self, *, stream_s: float = 0.0, stages: tuple[StageStats, ...] = ()) -> None:
        """Make the table of header and shards in the folder, and note its digests; `commit` publishes it.

        `stream_s` and `stages` are what the record says of the time that the rows took.
        """
        table, checks = self.folder / "table.csv", self.folder / "rows"
        header = csv_line(self.journal.identity.columns)
        with output_errors("cannot assemble the table"):
            with table.open("wb") as file, checks.open("wb") as check_file:
                file.write(header)
                for row in self._mended_rows() if self._base else self._rows():
                    file.write(row)
                    check_file.write(row_check(row))
            fsync_file(table)
            fsync_file(checks)
            if self._published != table:
                publish_as(table, self._published)
            digests = TableDigests(sha256_file(self._published), row_check(header).hex(), sha256_file(checks))
        self.journal.mark_assembled(digests.table_sha256)
        self.state = State.ASSEMBLED
        self._update(stream_s=stream_s, stages=stages, table=digests)

    @property
    def _published(self) -> Path:
        """The assembled table in the format that it is published in."""
        return self.folder / f"table{table_suffix(self.out)}"

    def _rows(self) -> Iterator[bytes]:
        for shard in sorted(self.journal.shards, key=lambda item: item.first_batch):
            with (self.folder / shard.file).open("rb") as file:
                yield from file

    def _mended_rows(self) -> Iterator[bytes]:
        """The rows of the finished table, with this run's in the places of the failed ones."""
        identity = self.journal.identity
        if sha256_file(self.out) != identity.retry_of:
            raise OutputError(f"{self.out} is not the table any more whose failed rows were predicted again")
        status_at = identity.columns.index("status")
        again = self._rows()
        with closing(csv_lines(self.out)) as rows:
            next(rows)
            for row in rows:
                (cells,) = csv.reader([row.decode("utf-8")])
                yield next(again) if cells[status_at] == "failed" else row

    # ---- assembled to committed, and cleared

    def commit(self) -> RunRecord:
        """Rename the table and its row checks into place, durably, and say in the record that the run is done."""
        with output_errors("cannot put the table in its place"):
            (self.folder / "rows").replace(checks_path(self.out))
            self._published.replace(self.out)
            self.state = State.COMMITTED
            fsync_folder(self.out.parent)
        return self._save(self._record.done())

    def clear(self) -> None:
        """Remove a committed run's folder, the journal last: after a kill meanwhile this is done again."""
        _remove(self.folder, journal_first=False)
        self.state = State.ABSENT

    def _clear_unless_begun(self) -> None:
        """Remove the folder of a run that ended before its journal, and so has nothing to go on with."""
        with output_errors(f"cannot clear {self.folder.name}"):
            begun = (self.folder / JOURNAL).exists()
        if not begun:
            _remove(self.folder, journal_first=True)


def _remove(folder: Path, *, journal_first: bool) -> None:
    with output_errors(f"cannot clear {folder.name}"):
        if not folder.is_dir():
            return
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == JOURNAL) != journal_first):
            file.unlink()
            if file.name == JOURNAL:
                fsync_folder(folder)
        folder.rmdir()
        fsync_folder(folder.parent)


def _reason(error: BaseException) -> str:
    text = str(error) if isinstance(error, CervixError) else f"{type(error).__name__}: {error}".rstrip(": ")
    # A name in it may hold bytes that are not UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()
