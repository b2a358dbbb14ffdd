"""What a run would cost, from a sample of its own batches: `cervix-batch --dry-run`, which writes no table."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.files import scratch_folder
from cervix_engine.run.batch import DEFAULT_SETUP, RunSetup
from cervix_engine.run.config import BatchConfig, check_paths
from cervix_engine.run.journal import InputRules
from cervix_engine.run.session import Session, open_session
from cervix_engine.run.stream.fork_server import fork_server
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stream import BatchResult, batches_of
from cervix_engine.table.locations import check_slides, slides_for_run
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.discover import discover
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.tile import TileFailure

# The first two batches fill the stream and are not timed.
SAMPLED_BATCHES = 8
WARM_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect of a run.

    Attributes:
        found: tiles; as many rows.
        ignored, ignored_by: files that are no tiles, and how many for which of `discover.REASONS`.
        sampled: tiles that were predicted for this forecast.
        failed: how many of those would have failed.
        start_s: seconds until the first tile can be predicted.
        tiles_per_sec: of the sample, once the stream was full.
        seconds: of the whole run.
        peak_bytes: largest memory of this process while it sampled; a run's does not depend on the number of tiles.
        table_bytes: of the table as CSV.
        runs: backend, version and precision.
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

    schema: ClassVar[str] = "cervix/forecast/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def forecast(config: BatchConfig, *, setup: RunSetup = DEFAULT_SETUP) -> Forecast:
    """Count the tiles of a run and predict a few of its batches.

    Raises:
        CervixError: as the run itself would, where it cannot start.
    """
    began, rules = time.perf_counter(), config.rules()
    check_paths(config)
    source = config.source(rules)
    fork_server()  # it starts while the model is loaded
    request = config.request(Bundle.open(config.model, expect_digest=config.expect_digest), began=began)
    with scratch_folder() as folder:

        def list_tiles() -> Listing:
            listing = discover(source, spool=folder)
            check_slides(slides_for_run(rules.slide, source.slide_name), listing.paths())
            setup.listed(listing, rules)
            return listing

        with open_session(request, list_tiles=list_tiles, choose=setup.choose) as session:
            setup.opened(session.choice)
            found = len(
                replace(session.identity(session.listing), shard=config.shard_name).tiles(session.listing.found)
            )
            seen = _predict(session, columns=config.optional_columns(()), rules=rules)
    listing, info, start_s = session.listing, session.backend.info, session.provenance.start_s
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
        table_bytes=round(seen.row_bytes / seen.tiles * found),
        runs=f"{info.backend} {info.version} {info.precision}",
    )


@dataclass(slots=True)
class _Sample:
    tiles: int = 0
    failed: int = 0
    row_bytes: int = 0
    tiles_per_sec: float = 0.0


def _predict(session: Session, *, columns: Collection[str], rules: InputRules) -> _Sample:
    listing = session.listing
    rows = RowFormat.for_run(
        session.contract,
        optional=columns,
        slide=rules.slide,
        coords=rules.coords,
        root_name=listing.source.slide_name,
        paths=listing.paths(),
    )
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
