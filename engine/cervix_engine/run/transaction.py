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
| assembled | and `rows`, `stamps` and the table, whose digest the journal has | as above | and the table's digests |
| committed | left to clear, the journal last | the new one, beside `preds.csv.rows` | `done` |

Where a table is a folder, `preds/`, no rename can put it in the place of another: that one moves to `replaced` in the
hidden folder first, and a start that finds it there, and none in its place, puts it back.

A run that is made from a finished table, see `assembly/base.py`, also has `gone` there. `stamps` follows the table to
its place, since a run that is made from the older one needs that one's until then.

Each step is durable before the next relies on it: a shard is fsynced, then listed in the journal; the table and its
row checks are fsynced, then their digests go to the journal and to the record; the record that says `done` is written;
`preds.csv.rows` and the table are renamed, then `preds.csv.stamps`, and their folder is fsynced; then that record is
renamed to its place, then the hidden folder goes. Nothing that a full disk could end comes behind the first rename.
A kill at any instant leaves either no new table and a run that goes on, or the table and a folder that the next start
clears. The lock is the kernel's, so a crash lets it go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from cervix_engine.backends import BackendInfo
from cervix_engine.drift.watch import DriftFinding, DriftWatch
from cervix_engine.errors import CervixError, OutputError, OutputLockedError
from cervix_engine.files import fsync_file, fsync_folder, output_errors
from cervix_engine.locks import PlaceLock, PlaceTakenError
from cervix_engine.run.assembly.base import Base, Growth, Kept
from cervix_engine.run.assembly.beside import checks_path, replaced_record, stamps_path
from cervix_engine.run.assembly.chunks import CHUNK_ROWS, Chunk, WrittenChunk, chunks_of, remove_chunks
from cervix_engine.run.assembly.run_folder import RECORD, RunFolder
from cervix_engine.run.assembly.table_files import (
    CHECKS,
    STAMPS,
    TableContent,
    place_table,
    restore_replaced,
    write_table,
)
from cervix_engine.run.journal import Journal, RunIdentity, Shard
from cervix_engine.run.record import NodeRecord, Provenance, RunRecord, Status, record_beside, utc_now
from cervix_engine.run.shards import ShardSize, ShardWriter
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.table.formats import table_exists, table_sha256
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing, stamp_check
from cervix_engine.tiles.sources.source import TileSource

DEFAULT_SHARD = ShardSize()


class State(Enum):
    """Where a table is on its way, as drawn above."""

    ABSENT = "absent"
    PARTIAL = "partial"
    ASSEMBLED = "assembled"
    COMMITTED = "committed"


class TableTransaction:
    """Owns a table's place; `with` takes its lock, and leaves either a run that can go on, or the table alone.

    Whatever it does raises OutputError where the file system refuses it.

    Args:
        out: where the table goes; its suffix says the format.
        shard_size: how much a kill can cost.
        chunk_rows: how many rows each file of a folder has.

    Attributes:
        state: of the table, as far as it was looked at.
        journal: of the run, once one is loaded or has begun.
    """

    journal: Journal
    _record: RunRecord
    _listing: Listing
    _growth: Growth | None
    _kept: Kept

    def __init__(self, out: Path, *, shard_size: ShardSize = DEFAULT_SHARD, chunk_rows: int = CHUNK_ROWS) -> None:
        self.out = out
        self.state = State.ABSENT
        self._files = RunFolder(out)
        self._shard_size = shard_size
        self._chunk_rows = chunk_rows
        self._lock = PlaceLock(out.with_name(f".{out.name}.lock"))

    @property
    def folder(self) -> Path:
        """Where the run's files lie."""
        return self._files.path

    def __enter__(self) -> TableTransaction:
        """Raises OutputLockedError where another run holds the table's place."""
        try:
            self._lock.acquire()
        except PlaceTakenError as error:
            raise OutputLockedError(f"another run is writing {self.out}{error}") from error
        except OSError as error:
            raise OutputError(f"cannot write in {self.out.parent}: {error.strerror}") from error
        with output_errors(f"cannot put {self.out} back in its place"):
            restore_replaced(self.folder, self.out)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self.state is State.COMMITTED and error is None:
                self.clear()
            else:
                self._files.remove_unless_begun()
        finally:
            self._lock.release()

    # ---- what an earlier run left

    def load(self) -> State:
        """Read what an earlier run left. A shard that is not as it was recorded is missing again."""
        journal = Journal.load(self._files.journal)
        if journal is None:
            return State.ABSENT
        journal.shards = [shard for shard in journal.shards if self._files.holds(shard)]
        self.journal = journal
        self.state = self._state_on_disk()
        return self.state

    def _state_on_disk(self) -> State:
        digest = self.journal.assembled
        with output_errors(f"cannot read {self.out}"):
            if digest is None:
                return State.PARTIAL
            # Before the rename, the table that is to be replaced may be the same, byte for byte.
            if self._files.published.exists():
                return State.ASSEMBLED
            committed = table_exists(self.out) and table_sha256(self.out) == digest
        return State.COMMITTED if committed else State.PARTIAL

    def recover(self) -> None:
        """Finish a run that ended behind its rename: its record says `done`, and its folder is cleared."""
        path = record_beside(self.out)
        with output_errors(f"cannot look at {path}"):
            exists = path.exists()
        self._place_stamps()
        if exists and (record := RunRecord.load(path)).status != "done":
            record.done().save(self.out)
        self.clear()

    # ---- what is to be predicted

    def list_tiles(self, source: TileSource) -> Listing:
        """List the tiles of a source for a new run."""
        return discover(source, spool=self.empty_folder())

    def empty_folder(self) -> Path:
        """A new folder for a run's files; whatever partial run lay there is discarded."""
        self.state = State.ABSENT
        self._files.make()
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
        base: Base | None = None,
    ) -> Iterator[RunRecord]:
        """Begin a run, or go on with the loaded one; where the block fails, the record says why.

        Args:
            identity: everything that a row can depend on; another one than a loaded run's is refused.
            listing: what is predicted.
            backend, provenance: for the record.
            base: the finished table that the new one is made from.

        Yields:
            The record as the run starts.
        """
        if self.state is State.ABSENT:
            self._create_journal(identity, listing)
        self.journal.identity.check(identity)
        self._listing, self.state = listing, State.PARTIAL
        self._growth = Growth(base, listing, self.folder) if base else None
        self._kept = kept = self._growth.kept() if self._growth else Kept()
        self._record = RunRecord(
            found=kept.rows + self.journal.found,
            ignored=listing.ignored,
            ignored_by=dict(listing.ignored_by),
            folder_changes=listing.changes,
            resumed=kept.rows + self.journal.tiles,
            backend=backend,
            provenance=provenance,
            identity=identity,
            replaces=replaced_record(self.out),
            table_changes=kept.changes if identity.update_of else None,
        )
        with self._telling_why():
            yield self._update()

    def _create_journal(self, identity: RunIdentity, listing: Listing) -> None:
        with output_errors("cannot store the listing"):
            fsync_file(listing.path)
        self.journal = Journal.create(self._files.journal, identity=identity, listing=listing)

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
        journal, kept = self.journal, self._kept
        books = replace(
            self._record,
            ok=journal.ok + kept.ok,
            failures=dict(sorted((journal.failures + kept.failures).items())),
            flagged=journal.flagged + kept.flagged,
        )
        return self._save(replace(books, **changes))

    def _save(self, record: RunRecord) -> RunRecord:
        record.save(self.out)
        self._record = record
        return record

    # ---- rows

    def missing(self, batches: Iterable[TileBatch]) -> Iterator[TileBatch]:
        """Those of all batches of the listing that are this run's and that no shard holds."""
        own, done = self.journal.identity.batches(self._listing.found), self.journal.batches()
        return (batch for batch in batches if batch.index in own and batch.index not in done)

    def shards(self, row_format: RowFormat, watch: DriftWatch | None = None) -> ShardWriter:
        """Takes predicted batches in their order, and stores them in shards, with what `watch` makes of them."""
        return ShardWriter(self.store, row_format, self._shard_size, watch)

    def drift(self, watch: DriftWatch) -> DriftFinding | None:
        """What the tiles of all shards say together; None where some of them were not watched."""
        sums = [shard.drift for shard in self.journal.shards]
        return None if None in sums else watch.finding(part for part in sums if part is not None)

    def store(self, shard: Shard, data: bytes) -> None:
        """Make a shard's bytes durable, then record it: a shard in the journal is always whole on disk."""
        self._files.write(shard, data)
        self.journal.append(shard)

    def take(self, shard: Shard, name: str) -> None:
        """Record a shard that another machine has made durable in the folder, under a name of its own.

        Only who holds the table's lock names a shard, so what an earlier run's machine still writes is never taken.
        """
        self._files.name(shard, name)
        self.journal.append(shard)

    def require_balance(self) -> None:
        """The conservation law: a violation is this program's defect, a RuntimeError, and must leave no table."""
        journal = self.journal
        if journal.tiles != journal.found:
            failed = journal.failures.total()
            raise RuntimeError(f"{journal.found} tiles found, but {journal.ok} ok and {failed} failed")

    # ---- partial to assembled

    def chunks(self) -> Iterator[Chunk]:
        """The files of a folder that has no rows but those of this run's shards, for whoever writes all of them."""
        with output_errors("cannot remove files of an earlier assembly"):
            remove_chunks(self.folder)
        return chunks_of(self.journal.shards, self._chunk_rows)

    def assemble(
        self,
        *,
        stream_s: float = 0.0,
        stages: tuple[StageStats, ...] = (),
        nodes: tuple[NodeRecord, ...] = (),
        drift: DriftFinding | None = None,
        chunks: Sequence[WrittenChunk] | None = None,
    ) -> None:
        """Make the table of header and shards in the folder, and note its digests; `commit` publishes it.

        `stream_s`, `stages` and `nodes` are what the record says of the time that the rows took, and of who took it,
        `drift` of what the tiles are like. `chunks`, where others have written all of them, spare it all rows.
        """
        growth, identity = self._growth, self.journal.identity
        with output_errors("cannot assemble the table"):
            if growth and table_sha256(self.out) != identity.base_sha256:
                raise OutputError(f"{self.out} is not the table any more that this one is made from")
            rows = self._files.lines(self.journal.shards)
            rows = growth.lines(rows) if growth else rows
            stamps = growth.stamps() if growth else self._stamps()
            content = TableContent(identity, rows, stamps, chunks, self._chunk_rows)
            digests, decided = write_table(self.folder, self._files.published, content)
        self.journal.mark_assembled(digests.table_sha256)
        self.state = State.ASSEMBLED
        self._update(stream_s=stream_s, stages=stages, nodes=nodes, table=digests, drift=drift, decided=decided)

    def adopt(self, record: RunRecord, *, rows: Iterable[bytes], stamps: Iterable[bytes]) -> None:
        """From absent to assembled at once: a table of rows that other runs have finished.

        `record` says what they are; a kill before the end leaves nothing.
        """
        folder, content = self.empty_folder(), TableContent(record.identity, rows, stamps, chunk_rows=self._chunk_rows)
        with output_errors("cannot assemble the table"):
            digests, decided = write_table(folder, self._files.published, content)
        self._record = replace(record, replaces=replaced_record(self.out), table=digests, decided=decided)
        self.journal = Journal.adopt(
            self._files.journal, record.identity, found=record.found, assembled=digests.table_sha256
        )
        self.state = State.ASSEMBLED
        self._save(self._record)

    @property
    def is_adopted(self) -> bool:
        """Whether the loaded run only had to be committed, and has no tiles of its own to predict."""
        return not self._files.has_listing

    def _stamps(self) -> Iterator[bytes]:
        tiles = self.journal.identity.tiles(self._listing.found)
        return map(stamp_check, islice(self._listing.records(), tiles.start, tiles.stop))

    # ---- assembled to committed, and cleared

    def commit(self) -> RunRecord:
        """Rename the table and its row checks into place, durably, and say in the record that the run is done.

        The record is written before that, and only renamed behind it, so that no full disk comes between.
        """
        done = self._record.done()
        done.write(self.folder / RECORD)
        with output_errors("cannot put the table in its place"):
            (self.folder / CHECKS).replace(checks_path(self.out))
            place_table(self._files.published, self.out)
            self.state = State.COMMITTED
            self._place_stamps()
            fsync_folder(self.out.parent)
            (self.folder / RECORD).replace(record_beside(self.out))
            fsync_folder(self.out.parent)
        self._record = done
        return done

    def _place_stamps(self) -> None:
        with output_errors("cannot put the stamps of the tiles in their place"), suppress(FileNotFoundError):
            (self.folder / STAMPS).replace(stamps_path(self.out))

    def clear(self) -> None:
        """Remove a committed run's folder, the journal last: after a kill meanwhile this is done again."""
        self._files.remove(journal_first=False)
        self.state = State.ABSENT


def _reason(error: BaseException) -> str:
    text = str(error) if isinstance(error, CervixError) else f"{type(error).__name__}: {error}".rstrip(": ")
    # A name in it may hold bytes that are not UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()
