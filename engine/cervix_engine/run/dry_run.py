"""What a run would cost, from a sample of its own batches: `cervix-batch --dry-run`, which writes no table."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, ClassVar

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.files import scratch_folder
from cervix_engine.run.assembly.base import Base, Growth
from cervix_engine.run.batch import DEFAULT_SETUP, RunSetup
from cervix_engine.run.config import BatchConfig, check_paths
from cervix_engine.run.plan import Done, Plan, foresee
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import Session, open_session
from cervix_engine.run.stream.fork_server import fork_server
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stream import BatchResult, batches_of
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.table.formats import csv_lines
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.tile import TileFailure

# The first two batches fill the stream and are not timed.
SAMPLED_BATCHES = 8
WARM_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect of a run.

    Attributes:
        found: tiles that it predicts; as many rows.
        ignored, ignored_by: files that are no tiles, and how many for which of `discover.REASONS`.
        sampled: tiles that were predicted for this forecast.
        failed: how many of those would have failed.
        start_s: seconds until the first tile can be predicted.
        tiles_per_sec: of the sample, once the stream was full.
        seconds: of the whole run.
        peak_bytes: largest memory of this process while it sampled; a run's does not depend on the number of tiles.
        table_bytes: of the table as CSV.
        runs: backend, version and precision.
        kept: rows that it keeps of the finished table that it is made from.
    """

    found: int
    ignored: int
    ignored_by: Mapping[str, int]
    sampled: int
    failed: int
    start_s: float
    tiles_per_sec: float
    seconds: float
    peak_bytes: int
    table_bytes: int
    runs: str
    kept: int = 0

    schema: ClassVar[str] = "cervix/forecast/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def forecast(config: BatchConfig, *, setup: RunSetup = DEFAULT_SETUP) -> Forecast:
    """Count the tiles of a run and predict a few of its batches.

    Raises:
        CervixError: as the run itself would, where it cannot start.
    """
    began = time.perf_counter()
    check_paths(config)
    fork_server()  # it starts while the model is loaded
    plan = foresee(config, Bundle.open(config.model, expect_digest=config.expect_digest), began=began)
    with scratch_folder() as folder, TableTransaction(folder / "preds.csv") as table:
        if isinstance(plan, Plan) and plan.kind == "update":
            plan = plan.with_news(table, compared=setup.compared)
        if isinstance(plan, Done):
            return _without_model(plan.record, (len(line) for line in islice(csv_lines(config.out), 1, None)))
        if plan.only_drops and plan.base and plan.news:
            return _without_model(plan.base.record, _kept_lines(plan.base, plan.news, table))
        return _forecast(plan, table, setup=setup)


def _kept_lines(base: Base | None, listing: Listing, table: TableTransaction) -> Iterator[int]:
    """The length of each row that is kept of a finished table, if there is one."""
    steps = Growth(base, listing, table.folder).steps() if base else ()
    return (len(row.line) for row, record in steps if row and not record)


def _without_model(made: RunRecord, kept: Iterable[int]) -> Forecast:
    """Of a run that has no tile to predict."""
    rows = list(kept)
    return Forecast(
        found=0,
        ignored=made.ignored,
        ignored_by=made.ignored_by,
        sampled=0,
        failed=0,
        start_s=0.0,
        tiles_per_sec=0.0,
        seconds=0.0,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        table_bytes=sum(rows),
        runs=f"{made.backend.backend} {made.backend.version} {made.backend.precision}",
        kept=len(rows),
    )


def _forecast(plan: Plan, table: TableTransaction, *, setup: RunSetup) -> Forecast:
    def list_tiles() -> Listing:
        listing = plan.list_tiles(table)
        if plan.kind == "fresh":
            setup.listed(listing, plan.rules)
        return listing

    with open_session(plan.request, list_tiles=list_tiles, choose=setup.choose) as session:
        setup.opened(session.choice)
        shard = str(plan.shard) if plan.shard else None
        listing = session.listing
        found = len(replace(session.identity(listing), shard=shard).tiles(listing.found))
        seen = _predict(session, columns=plan.optional, rows=plan.row_format(session.contract, listing, table))
    kept = list(_kept_lines(plan.base, listing, table))
    info, start_s = session.backend.info, session.provenance.start_s
    return Forecast(
        found=found,
        ignored=listing.ignored,
        ignored_by=listing.ignored_by,
        sampled=seen.tiles,
        failed=seen.failed,
        start_s=start_s,
        tiles_per_sec=seen.tiles_per_sec,
        seconds=start_s + found / seen.tiles_per_sec,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        table_bytes=round(seen.row_bytes / seen.tiles * found) + sum(kept),
        runs=f"{info.backend} {info.version} {info.precision}",
        kept=len(kept),
    )


@dataclass(slots=True)
class _Sample:
    tiles: int = 0
    failed: int = 0
    row_bytes: int = 0
    tiles_per_sec: float = 0.0


def _predict(session: Session, *, columns: Collection[str], rows: RowFormat) -> _Sample:
    listing = session.listing
    seen, ends, done = _Sample(), [time.perf_counter()], [0]
    batches = _spread(listing, session.batch_size)
    with closing(session.predict(batches, source=listing.source, columns=columns)) as results:
        for result in results:
            _add(seen, result, rows)
            ends.append(time.perf_counter())
            done.append(seen.tiles)
    # A run so small that it never fills the stream is timed as a whole.
    warm = WARM_BATCHES if len(batches) > 2 * WARM_BATCHES else 0
    seen.tiles_per_sec = (done[-1] - done[warm]) / max(ends[-1] - ends[warm], 1e-9)
    return seen


def _spread(listing: Listing, batch_size: int) -> list[TileBatch]:
    """Some of the run's batches, evenly spread: tiles of one folder are often alike."""
    count = -(-listing.found // batch_size)
    wanted = {part * count // SAMPLED_BATCHES for part in range(SAMPLED_BATCHES)}
    return [batch for batch in batches_of(listing, batch_size) if batch.index in wanted]


def _add(seen: _Sample, result: BatchResult, rows: RowFormat) -> None:
    seen.tiles += len(result.outcomes)
    seen.failed += sum(isinstance(outcome, TileFailure) for outcome in result.outcomes)
    seen.row_bytes += len(rows.lines(result.batch.tiles, result.outcomes, result.notes))
