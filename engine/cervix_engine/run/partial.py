"""A run on its way to a table: a hidden folder beside the table that holds the listing, the journal and shards.

    .preds.csv.cervix/
        listing             what was found, decided once
        journal.jsonl       the identity, and which batches are safe
        shard-000000000.csv rows of whole batches, without a header

Committing is: every shard and journal line fsynced -> the table assembled in the folder as CSV, fsynced, and there
made what its suffix says (`output/formats.py`), fsynced -> its digest
in the journal -> and in `preds.csv.run.json` -> `preds.csv.rows` (a check of each row) -> rename to `preds.csv` ->
fsync of its folder -> `preds.csv.run.json` says `done` -> this folder removed.
A kill at any point leaves either no new table and a run that can go on, or the table and a folder to clear.
"""

from __future__ import annotations

import csv
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cervix_engine.errors import OutputError, OutputLockedError
from cervix_engine.files import fsync_file, fsync_folder, sha256_bytes, sha256_file
from cervix_engine.run.journal import Journal, RunIdentity, Shard, output_errors
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.table.formats import csv_line, csv_lines, publish_as, table_suffix
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import Listing
from cervix_engine.tiles.tile import TileFailure

# A kill costs at most this much work: a shard is closed at whichever comes first.
SHARD_TILES = 4096
SHARD_SECONDS = 30.0

ROW_CHECK_BYTES = 8

JOURNAL = "journal.jsonl"
ASSEMBLED = "table.csv"


@dataclass(frozen=True, slots=True)
class TableDigests:
    """What a finished table can be checked against.

    Attributes:
        table_sha256: of the whole file, whatever its format.
        header_check: of the CSV's first line, see `row_check`.
        rows_sha256: of the file of row checks.
    """

    table_sha256: str
    header_check: str
    rows_sha256: str


def row_check(line: bytes) -> bytes:
    """The check of one row: the first 8 bytes of the SHA-256 of its line in the CSV, without the line's end."""
    return hashlib.sha256(line.rstrip(b"\r\n")).digest()[:ROW_CHECK_BYTES]


def checks_path(out: Path) -> Path:
    """Where a table's row checks lie: 8 bytes a row, in row order."""
    return out.with_name(out.name + ".rows")


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Hold the table's place; a crash releases it, since the lock is the kernel's.

    Raises:
        OutputLockedError: another run holds it.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:  # before OSError, which it is
        raise OutputLockedError(f"another run is writing {out}") from error
    except OSError as error:
        raise OutputError(f"cannot write in {out.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


class PartialRun:
    """The folder of a run that is not finished, and the one way in which it becomes a table."""

    def __init__(self, out: Path, journal: Journal) -> None:
        self.out = out
        self._folder = work_folder(out)
        self.journal = journal

    @classmethod
    def find(cls, out: Path) -> PartialRun | None:
        """The partial run that lies beside `out`, with every shard checked; None where there is none."""
        journal = Journal.load(work_folder(out) / JOURNAL)
        if journal is None:
            return None
        partial = cls(out, journal)
        with output_errors("cannot check the partial run's shards"):
            for shard in list(journal.shards):
                file = partial._folder / shard.file
                if not file.is_file() or sha256_file(file) != shard.sha256:
                    journal.drop(shard)
        return partial

    @classmethod
    def create(cls, out: Path, *, identity: RunIdentity, listing: Listing) -> PartialRun:
        """Start a run whose listing already lies in `work_folder(out)`."""
        with output_errors("cannot store the listing"):
            fsync_file(listing.path)
        path = work_folder(out) / JOURNAL
        return cls(out, Journal.create(path, identity=identity, found=listing.found, ignored=listing.ignored))

    @property
    def _published(self) -> Path:
        """The assembled table in the format that it is published in."""
        return self._folder / f"table{table_suffix(self.out)}"

    def store(self, shard: Shard, data: bytes) -> None:
        """Make a shard's bytes durable, then record it: a shard in the journal is always whole on disk."""
        file = self._folder / shard.file
        with output_errors("cannot write a shard"):
            file.write_bytes(data)
            fsync_file(file)
            fsync_folder(self._folder)
        self.journal.append(shard)

    def listing(self, root: Path) -> Listing:
        """The listing as it was stored when the run began."""
        return Listing(root, self._folder / "listing", self.journal.found, self.journal.ignored)

    def missing(self, batches: Iterable[TileBatch]) -> Iterator[TileBatch]:
        """Those of all batches of the listing that no shard holds."""
        shards = self.journal.shards
        done = {index for shard in shards for index in range(shard.first_batch, shard.first_batch + shard.batches)}
        return (batch for batch in batches if batch.index not in done)

    @property
    def ok(self) -> int:
        return sum(shard.ok for shard in self.journal.shards)

    @property
    def flagged(self) -> int:
        """Predicted tiles with a flag of `quality.py`."""
        return sum(shard.flagged for shard in self.journal.shards)

    @property
    def failures(self) -> Counter[str]:
        """Failed tiles by kind."""
        total: Counter[str] = Counter()
        for shard in self.journal.shards:
            total.update(shard.failures)
        return total

    @property
    def tiles(self) -> int:
        return self.ok + self.failures.total()

    def is_committed(self) -> bool:
        """Whether the table was already renamed into place and only this folder is left to clear."""
        digest = self.journal.assembled
        with output_errors(f"cannot read {self.out}"):
            # Before the rename, the table that is to be replaced may be the same, byte for byte.
            if digest is None or self._published.exists():
                return False
            return self.out.is_file() and sha256_file(self.out) == digest

    def assemble(self, columns: Iterable[str]) -> TableDigests:
        """Put header and shards together in a durable file, and note its digest; `commit` publishes it."""
        table, checks = self._folder / ASSEMBLED, self._folder / "rows"
        header = csv_line(columns)
        with output_errors("cannot assemble the table"):
            with table.open("wb") as file, checks.open("wb") as check_file:
                file.write(header)
                for row in self._mended_rows() if self.journal.identity.retry_of else self._rows():
                    file.write(row)
                    check_file.write(row_check(row))
            fsync_file(table)
            fsync_file(checks)
            if self._published != table:
                publish_as(table, self._published)
            digests = TableDigests(sha256_file(self._published), row_check(header).hex(), sha256_file(checks))
        self.journal.mark_assembled(digests.table_sha256)
        return digests

    def _rows(self) -> Iterator[bytes]:
        for shard in sorted(self.journal.shards, key=lambda item: item.first_batch):
            with (self._folder / shard.file).open("rb") as file:
                yield from file

    def _mended_rows(self) -> Iterator[bytes]:
        """The rows of the finished table, with this run's in the places of the failed ones."""
        if sha256_file(self.out) != self.journal.identity.retry_of:
            raise OutputError(f"{self.out} is not the table any more whose failed rows were predicted again")
        status_at = self.journal.identity.columns.index("status")
        again = self._rows()
        with closing(csv_lines(self.out)) as rows:
            next(rows)
            for row in rows:
                (cells,) = csv.reader([row.decode("utf-8")])
                yield next(again) if cells[status_at] == "failed" else row

    def commit(self) -> None:
        """Rename the assembled table and its row checks into place, durably; `clear` is what is left to do."""
        with output_errors("cannot put the table in its place"):
            (self._folder / "rows").replace(checks_path(self.out))
            self._published.replace(self.out)
            fsync_folder(self.out.parent)

    def clear(self) -> None:
        """Remove a committed run's folder, the journal last: after a kill meanwhile this is done again."""
        _remove(self._folder, journal_first=False)


def work_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.cervix")


def clear_work_folder(out: Path) -> None:
    """Discard whatever partial run lies beside `out`, the journal first: a kill meanwhile leaves no run at all."""
    _remove(work_folder(out), journal_first=True)


def clear_unless_begun(out: Path) -> None:
    """Remove the work folder of a run that ended before its journal, and so has nothing to go on with."""
    with output_errors(f"cannot clear {work_folder(out).name}"):
        begun = (work_folder(out) / JOURNAL).exists()
    if not begun:
        clear_work_folder(out)


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


class ShardWriter:
    """Gathers rows into shards; leaving the `with` block keeps what is complete, whatever the reason."""

    def __init__(self, partial: PartialRun, row_format: RowFormat) -> None:
        self._partial = partial
        self._format = row_format
        self._results: list[BatchResult] = []
        self._tiles = 0
        self._since = time.monotonic()

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, result: BatchResult) -> None:
        """Take the next batch. A gap, which a resumed run has, ends a shard."""
        if self._results and result.batch.index != self._results[-1].batch.index + 1:
            self.close_shard()
        self._results.append(result)
        self._tiles += len(result.outcomes)
        if self._tiles >= SHARD_TILES or time.monotonic() - self._since >= SHARD_SECONDS:
            self.close_shard()

    def __exit__(self, *exc_info: object) -> None:
        self.close_shard()

    def close_shard(self) -> None:
        """Store what was gathered; does nothing when there is nothing."""
        results, self._results, self._tiles, self._since = self._results, [], 0, time.monotonic()
        if not results:
            return
        rows = [
            self._format.row(*of_tile)
            for result in results
            for of_tile in zip(result.batch.tiles, result.outcomes, result.notes, strict=True)
        ]
        failures = Counter(
            outcome.kind for result in results for outcome in result.outcomes if isinstance(outcome, TileFailure)
        )
        data = b"".join(map(csv_line, rows))
        shard = Shard(
            first_batch=results[0].batch.index,
            batches=len(results),
            ok=len(rows) - failures.total(),
            failures=dict(failures),
            sha256=sha256_bytes(data),
            flagged=sum(bool(notes.quality) for result in results for notes in result.notes),
        )
        self._partial.store(shard, data)
