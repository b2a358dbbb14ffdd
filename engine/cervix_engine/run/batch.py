"""The main job: tiles in, one finished table out, and a record of what happened."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.assembly.base import Kept
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.config import BatchConfig, check_paths
from cervix_engine.run.journal import InputRules
from cervix_engine.run.plan import Done, Plan, decide
from cervix_engine.run.record import Provenance, RunRecord, utc_now
from cervix_engine.run.session import Choose, Session, choose_backend, open_session
from cervix_engine.run.shards import ShardWriter
from cervix_engine.run.stream.fork_server import fork_server
from cervix_engine.run.stream.stats import StageClock, StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import TILE_STEPS, BatchResult, batches_of
from cervix_engine.run.transaction import TableTransaction
from cervix_engine.tiles.listing import Listing
from cervix_engine.tiles.tile import TileFailure

__all__ = ["BatchConfig", "Progress", "RunSetup", "no_progress", "predict_folder"]

Progress = Callable[[int, int], None]


def no_progress(_done: int, _found: int) -> None:
    """For callers that show none."""


def no_words(_session: Session) -> None:
    """For callers that say nothing."""


def no_news(_kept: Kept) -> None:
    """For callers that say nothing of an update."""


def no_objection(_listing: Listing, _rules: InputRules) -> None:
    """For callers that take every listing."""


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run works with. Tests hand in their own.

    Attributes:
        choose: gives the backend.
        open_table: takes a table's place.
        steps: from a tile's name to its pixels.
        listed: told what a new run will predict, before a model is loaded; it may raise to refuse that.
        opened: told of the session, before the first tile.
        compared: told what an update found, before a model is loaded.
    """

    choose: Choose = choose_backend
    open_table: Callable[..., TableTransaction] = TableTransaction
    steps: TileSteps = TILE_STEPS
    listed: Callable[[Listing, InputRules], None] = no_objection
    opened: Callable[[Session], None] = no_words
    compared: Callable[[Kept], None] = no_news


DEFAULT_SETUP = RunSetup()


def predict_folder(
    config: BatchConfig, *, progress: Progress = no_progress, setup: RunSetup = DEFAULT_SETUP
) -> RunRecord:
    """Predict every tile of `config.tiles` and write the table and its `.run.json`; go on with a partial run.

    Args:
        config: what is asked.
        progress: called with (tiles written, tiles found) after each batch.
        setup: what it works with.

    Raises:
        CervixError: see `errors.py`; then there is no new table at `config.out`, and what was done is kept.
    """
    began = time.perf_counter()
    check_paths(config)
    fork_server()  # it starts while the model is loaded
    bundle = Bundle.open(config.model, expect_digest=config.expect_digest)
    with setup.open_table(config.out) as table:
        plan = decide(config, bundle, table, began=began)
        if isinstance(plan, Plan) and plan.kind == "update":
            plan = plan.with_news(table, compared=setup.compared)
        if isinstance(plan, Done):
            return plan.record
        if plan.only_drops:
            return _drop_rows(config, plan, table)

        def list_tiles() -> Listing:
            listing = plan.list_tiles(table)
            if plan.kind == "fresh":
                setup.listed(listing, plan.rules)
            return listing

        with open_session(plan.request, list_tiles=list_tiles, choose=setup.choose) as session:
            setup.opened(session)
            return _predict(config, plan, session, table, steps=setup.steps, progress=progress)


def _predict(
    config: BatchConfig,
    plan: Plan,
    session: Session,
    table: TableTransaction,
    *,
    steps: TileSteps,
    progress: Progress,
) -> RunRecord:
    """Predict what the table still lacks, and commit it."""
    provenance = _asked(session.provenance, config, plan)
    with table.begin(
        plan.identity(session), session.listing, backend=session.backend.info, provenance=provenance, base=plan.base
    ) as begun:
        stats, started = StreamStats(), time.perf_counter()
        missing = table.missing(batches_of(session.listing, session.batch_size))
        predicted = session.predict(
            missing, source=session.listing.source, columns=plan.optional, stats=stats, steps=steps
        )
        row_format = plan.row_format(session, table)
        books = _Books(begun.resumed, begun.failed, begun.found, config.budget, progress)
        _write(predicted, table.shards(row_format), clock=stats.clock("write"), books=books)
        table.require_balance()
        table.assemble(stream_s=time.perf_counter() - started, stages=stats.stages())
        return table.commit()


def _drop_rows(config: BatchConfig, plan: Plan, table: TableTransaction) -> RunRecord:
    """Commit the finished table without the rows whose tiles are gone: no model is needed for that."""
    base, listing = plan.base, plan.news
    assert base is not None
    assert listing is not None
    with output_errors("cannot read the listing"):
        listed = replace(base.record.identity, listing_sha256=sha256_file(listing.path))
    provenance = _asked(base.record.provenance, config, plan)
    with table.begin(plan.require_same(listed), listing, backend=base.record.backend, provenance=provenance, base=base):
        table.require_balance()
        table.assemble()
        return table.commit()


def _asked(provenance: Provenance, config: BatchConfig, plan: Plan) -> Provenance:
    """With what was asked, and by whom."""
    return replace(
        provenance,
        arguments=config.arguments(),
        host=platform.node(),
        command=config.command,
        started_at=utc_now(seconds_ago=time.perf_counter() - plan.request.began),
    )


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


def _write(
    predicted: Generator[BatchResult, None, None], writer: ShardWriter, *, clock: StageClock, books: _Books
) -> None:
    # Closed here: after a failure to write, the stream's threads would go on with a backend that is freed.
    with writer as shards, closing(predicted) as results:
        for result in results:
            with clock.busy():
                shards.write(result)
            clock.tiles += len(result.outcomes)
            books.add(result)
        with clock.busy():
            shards.close_shard()
