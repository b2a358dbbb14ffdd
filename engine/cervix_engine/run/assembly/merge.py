"""Joins the finished shards of one listing into the table that an undivided run would have made, byte for byte.

Every shard is held against what its own run wrote down, and against the first one: other tiles, another bundle, batch
size, runtime, device or rule would have made other rows. One that is missing, doubled, foreign, altered or not finished
is named, and nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from cervix_engine.errors import OutputError, ResumeMismatchError, UsageError
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.outputs.places import require_apart
from cervix_engine.run.assembly.beside import files_of_table, record_of, stamps_path
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.config import check_place
from cervix_engine.run.record import RunRecord, ShardRecord, TableDigests
from cervix_engine.run.stream.stats import StageStats
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.table.formats import csv_lines, require_no_table, require_writer, table_exists, table_sha256
from cervix_engine.tiles.listing import STAMP_CHECK_BYTES
from cervix_engine.words import agreeing


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard's table, as its run wrote it."""

    table: Path
    record: RunRecord
    part: Part
    digests: TableDigests

    @classmethod
    def open(cls, table: Path) -> FinishedShard:
        """Read what a shard's run wrote down, and hold its table against it.

        Raises:
            UsageError: there is no such table, or it is no shard.
            OutputError: its run is not finished, or it is not as its run wrote it.
        """
        record = _record(table)
        digests, shard = record.table, record.identity.shard
        assert digests is not None
        if shard is None:
            raise UsageError(f"{table} is no shard: its run predicted all tiles, without --shard")
        with output_errors(f"cannot read {table}"):
            if table_sha256(table) != digests.table_sha256:
                raise OutputError(f"{table} is not as its run wrote it: cervix-verify says where")
        stamps = stamps_path(table)
        with output_errors(f"cannot read {stamps}"):
            if not stamps.is_file() or sha256_file(stamps) != digests.stamps_sha256:
                raise OutputError(f"{stamps} is not there as its run wrote it: it belongs beside {table.name}")
        return cls(table, record, Part.parse(shard), digests)

    def rows(self) -> Iterator[bytes]:
        """Its rows as CSV, without the header."""
        with closing(csv_lines(self.table)) as lines:
            next(lines)
            yield from lines

    def stamps(self) -> Iterator[bytes]:
        """The stamp checks of its tiles."""
        with stamps_path(self.table).open("rb") as file:
            while stamp := file.read(STAMP_CHECK_BYTES):
                yield stamp

    def summary(self) -> ShardRecord:
        record = self.record
        return ShardRecord(
            str(self.part), self.digests.table_sha256, record.found, record.provenance.host, record.seconds
        )


def merge_shards(
    out: Path,
    tables: Sequence[Path],
    *,
    overwrite: bool = False,
    command: str | None = None,
    open_table: Callable[[Path], TableTransaction] = TableTransaction,
) -> RunRecord:
    """Join all shards of one listing, given in any order, into the table `out`.

    Args:
        out: where the table goes; its suffix says the format, which may differ from the shards'.
        tables: the shards' tables, in any format, with what their runs left beside them.
        overwrite: whether a finished table may be replaced.
        command: the command line, for the record.
        open_table: takes a table's place. Tests hand in their own.

    Raises:
        CervixError: a shard is missing, doubled, foreign, altered or not finished; then nothing was written.
    """
    require_writer(out)
    check_place(out)
    require_apart(out, chain.from_iterable(map(files_of_table, tables)))
    shards = in_order([FinishedShard.open(table) for table in tables])
    with open_table(out) as table:
        if table.load() is State.COMMITTED:
            table.recover()
        elif table.state is not State.ABSENT and not table.is_adopted:
            raise OutputError(f"a run on its way to {out} lies there: finish it, or choose another place")
        require_no_table(out, overwrite=overwrite)
        rows = chain.from_iterable(shard.rows() for shard in shards)
        stamps = chain.from_iterable(shard.stamps() for shard in shards)
        table.adopt(_joined(shards, command), rows=rows, stamps=stamps)
        return table.commit()


def in_order(shards: Sequence[FinishedShard]) -> list[FinishedShard]:
    """The shards of one run, complete and in their order.

    Raises:
        ResumeMismatchError: one is of another run.
        UsageError: one is missing, or there twice.
    """
    first = shards[0]
    undivided = replace(first.record.identity, shard=None)
    by_number: dict[int, FinishedShard] = {}
    for shard in shards:
        undivided.check(
            replace(shard.record.identity, shard=None),
            what=f"{first.table} was made",
            remedy=f"{shard.table} is no shard of the same run",
        )
        if shard.part.of != first.part.of:
            raise ResumeMismatchError(
                f"{first.table} is shard {first.part}, {shard.table} is shard {shard.part}: no shards of the same run"
            )
        if twin := by_number.get(shard.part.number):
            raise UsageError(f"shard {shard.part} is there twice: {twin.table} and {shard.table}")
        by_number[shard.part.number] = shard
    if missing := [str(Part(number, first.part.of)) for number in _numbers(first) if number not in by_number]:
        raise UsageError(f"missing: shard{agreeing(len(missing), '', 's')} {', '.join(missing)}")
    return [by_number[number] for number in _numbers(first)]


def _numbers(shard: FinishedShard) -> range:
    return range(1, shard.part.of + 1)


def _record(table: Path) -> RunRecord:
    try:
        record = record_of(table)
    except OutputError as error:
        raise OutputError(f"{table} is no finished shard: {error}") from error
    if not table_exists(table):
        raise UsageError(f"no such table: {table}")
    if record.status != "done":
        raise OutputError(f"{table} is no finished shard: its run is {record.status}, and the same command ends it")
    return record


def _joined(shards: Sequence[FinishedShard], command: str | None) -> RunRecord:
    """The record of the whole: their books together, and the time that all of them took, one after another."""
    records = [shard.record for shard in shards]
    first = records[0]
    started = min((at for record in records if (at := record.provenance.started_at)), default=None)
    return RunRecord(
        found=sum(record.found for record in records),
        ignored=first.ignored,
        ignored_by=first.ignored_by,
        resumed=sum(record.resumed for record in records),
        backend=first.backend,
        provenance=replace(first.provenance, command=command, started_at=started),
        identity=replace(first.identity, shard=None),
        ok=sum(record.ok for record in records),
        failures=dict(sorted(sum((Counter(record.failures) for record in records), Counter()).items())),
        flagged=sum(record.flagged for record in records),
        stream_s=sum(record.stream_s for record in records),
        stages=tuple(map(_stage, zip(*(record.stages for record in records), strict=True))),
        shards=tuple(shard.summary() for shard in shards),
    )


def _stage(same: Sequence[StageStats]) -> StageStats:
    return StageStats(
        stage=same[0].stage,
        threads=max(stage.threads for stage in same),
        busy_s=sum(stage.busy_s for stage in same),
        waiting_s=sum(stage.waiting_s for stage in same),
        tiles=sum(stage.tiles for stage in same),
    )
