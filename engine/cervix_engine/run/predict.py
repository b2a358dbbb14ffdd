"""Predicts what a partial run still lacks, and makes it the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.backends import Backend
from cervix_engine.contract import ModelContract
from cervix_engine.run.budget import DEFAULT_BUDGET, FailureBudget
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.partial import PartialRun, ShardWriter
from cervix_engine.run.record import Provenance, ReportFile, RunReport, replaced_report
from cervix_engine.run.stream.stats import StageClock, StreamStats
from cervix_engine.run.stream.stream import BatchResult, StreamSettings, batches_of, stream
from cervix_engine.table.coordinates import NAMES
from cervix_engine.table.locations import locating_for_run
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import Listing
from cervix_engine.tiles.tile import TileFailure

Progress = Callable[[int, int], None]


def no_progress(_done: int, _found: int) -> None:
    """For callers that show none."""


def predict_partial(
    partial: PartialRun,
    listing: Listing,
    *,
    contract: ModelContract,
    backend: Backend,
    workers: int,
    report_path: Path,
    provenance: Provenance,
    budget: FailureBudget = DEFAULT_BUDGET,
    progress: Progress = no_progress,
) -> RunReport:
    """Predict what a partial run still lacks, with a loaded backend, and commit the table.

    Raises:
        CervixError: as `predict_folder`.
    """
    identity, replaced = partial.journal.identity, replaced_report(partial.out)
    kept = replaced.ok if replaced and identity.retry_of else 0
    start = RunReport(
        found=kept + listing.found,
        ignored=listing.ignored,
        resumed=kept + partial.tiles,
        backend=backend.info,
        provenance=provenance,
        identity=identity,
        replaces=replaced,
    )
    report = ReportFile(report_path, start, partial=partial, kept=kept)
    with report.running():
        columns, batch_size = identity.columns, identity.batch_size
        settings = StreamSettings(
            listing.root,
            contract,
            batch_size,
            workers,
            hash_tiles="sha256" in columns,
            judge_quality="quality" in columns,
        )
        row_format, stats, started = _row_format(contract, identity), StreamStats(), time.perf_counter()
        missing = partial.missing(batches_of(listing, batch_size))
        predicted = stream(missing, backend=backend, settings=settings, stats=stats)
        books = _Books(kept + partial.tiles, partial.failures.total(), start.found, budget, progress)
        _write_shards(partial, predicted, row_format, clock=stats.clock("write"), books=books)
        _balance_books(partial, found=listing.found)
        report.update(
            stream_s=time.perf_counter() - started,
            stages=stats.stages(),
            table=partial.assemble(row_format.columns),
        )
        partial.commit()
        finished = report.settle()
    partial.clear()
    return finished


def _row_format(contract: ModelContract, identity: RunIdentity) -> RowFormat:
    return RowFormat(contract, optional=identity.columns, locator=locating_for_run(identity.coords or NAMES))


@dataclass(slots=True)
class _Books:
    """Tiles and failures so far, of all that were found; whoever should know is told after each batch."""

    seen: int
    failed: int
    found: int
    budget: FailureBudget
    progress: Progress

    def add(self, result: BatchResult) -> None:
        self.seen += len(result.outcomes)
        self.failed += sum(isinstance(outcome, TileFailure) for outcome in result.outcomes)
        self.budget.check(failed=self.failed, seen=self.seen)
        self.progress(self.seen, self.found)


def _write_shards(
    partial: PartialRun,
    predicted: Generator[BatchResult, None, None],
    row_format: RowFormat,
    *,
    clock: StageClock,
    books: _Books,
) -> None:
    # Closed here: after a failure to write, the stream's threads would go on with a backend that is freed.
    with ShardWriter(partial, row_format) as shards, closing(predicted) as results:
        while (result := clock.next(results)) is not None:
            with clock.busy():
                shards.write(result)
            clock.tiles += len(result.outcomes)
            books.add(result)
        with clock.busy():
            shards.close_shard()


def _balance_books(partial: PartialRun, *, found: int) -> None:
    # The conservation law; a violation is this program's defect and must leave no table.
    if partial.tiles != found:
        raise RuntimeError(f"{found} tiles found, but {partial.ok} ok and {partial.failures.total()} failed")
