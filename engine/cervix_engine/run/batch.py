"""The main job: tiles in, one finished table out, and a record of what happened."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.drift.reference import DriftReference
from cervix_engine.drift.watch import DriftFinding, DriftWatch
from cervix_engine.files import output_errors, sha256_file
from cervix_engine.run.assembly.base import Growth, Kept
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.config import BatchConfig, check_paths
from cervix_engine.run.journal import InputRules
from cervix_engine.run.plan import Done, Plan, decide
from cervix_engine.run.record import Provenance, RunRecord, utc_now
from cervix_engine.run.session import Choice, Choose, choose_backend, open_session
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


def no_words(_choice: Choice) -> None:
    """For callers that say nothing."""


def no_news(_kept: Kept) -> None:
    """For callers that say nothing of an update."""


def no_objection(_listing: Listing, _rules: InputRules) -> None:
    """For callers that take every listing."""


@dataclass(slots=True)
class Books:
    """Tiles and failures so far, of all that were found; whoever should know is told after each addition."""

    seen: int
    failed: int
    found: int
    budget: FailureBudget
    progress: Progress

    def add(self, *, seen: int, failed: int) -> None:
        """Raises FailureBudgetExceeded where too many have failed by now."""
        self.seen += seen
        self.failed += failed
        self.budget.check(failed=self.failed, seen=self.seen)
        self.progress(self.seen, self.found)


@dataclass(frozen=True, slots=True)
class Job:
    """A run whose plan is made: what is left is to list, to predict and to commit.

    Attributes:
        config: what is asked.
        plan: what is done about it.
        table: its place, locked.
        setup: what it works with.
        progress: called with (tiles written, tiles found) after each batch.
        reference: what its tiles are compared with, if its bundle keeps anything.
    """

    config: BatchConfig
    plan: Plan
    table: TableTransaction
    setup: RunSetup
    progress: Progress
    reference: DriftReference | None

    def list_tiles(self) -> Listing:
        """The tiles that it predicts."""
        listing = self.plan.list_tiles(self.table)
        if self.plan.kind == "fresh":
            self.setup.listed(listing, self.plan.rules)
        return listing

    def asked(self, provenance: Provenance) -> Provenance:
        """With what was asked, and by whom."""
        return replace(
            provenance,
            arguments=self.config.arguments(),
            host=platform.node(),
            command=self.config.command,
            started_at=utc_now(seconds_ago=time.perf_counter() - self.plan.request.began),
        )

    def watch(self, listing: Listing) -> DriftWatch | None:
        """What its tiles are compared with, if its bundle keeps anything."""
        return DriftWatch.of_run(self.reference, found=listing.found)

    def drift(self, watch: DriftWatch | None, listing: Listing) -> DriftFinding | None:
        """What its tiles are like, now that all are predicted; if they say nothing, what is known of its base.

        Of that nothing is known any more where the new table lacks rows of a slide that it names.
        """
        found = self.table.drift(watch) if watch else None
        base = self.plan.base
        known = base.record.drift if base else None
        if (found and found.run) or not known or not base:
            return found
        return known if Growth(base, listing, self.table.folder).keeps_all_of(known.slides) else found

    def books(self, begun: RunRecord) -> Books:
        """Those of a run that begins so."""
        return Books(begun.resumed, begun.failed, begun.found, self.config.budget, self.progress)


def predict_here(job: Job) -> RunRecord:
    """Predict on this machine what the table still lacks, and commit it."""
    plan, table, setup = job.plan, job.table, job.setup
    with open_session(plan.request, list_tiles=job.list_tiles, choose=setup.choose) as session:
        setup.opened(session.choice)
        listing, identity = session.listing, plan.identity(session)
        with table.begin(
            identity, listing, backend=session.backend.info, provenance=job.asked(session.provenance), base=plan.base
        ) as begun:
            stats, started = StreamStats(), time.perf_counter()
            missing = table.missing(batches_of(listing, session.batch_size))
            watch = job.watch(listing)
            predicted = session.predict(
                missing,
                source=listing.source,
                columns=plan.optional,
                stats=stats,
                steps=setup.steps,
                measure_step=watch.step if watch else 0,
            )
            writer = table.shards(plan.row_format(session.contract, listing, table), watch)
            _write(predicted, writer, clock=stats.clock("write"), books=job.books(begun))
            table.require_balance()
            stream_s = time.perf_counter() - started
            table.assemble(stream_s=stream_s, stages=stats.stages(), drift=job.drift(watch, listing))
            return table.commit()


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run works with. Tests hand in their own.

    Attributes:
        choose: gives the backend.
        open_table: takes a table's place.
        steps: how a tile becomes pixels.
        listed: told what a new run will predict, before a model is loaded; it may raise to refuse that.
        opened: told what was chosen, before the first tile.
        compared: told what an update found, before a model is loaded.
        predict: predicts and commits, here or on other machines.
    """

    choose: Choose = choose_backend
    open_table: Callable[..., TableTransaction] = TableTransaction
    steps: TileSteps = TILE_STEPS
    listed: Callable[[Listing, InputRules], None] = no_objection
    opened: Callable[[Choice], None] = no_words
    compared: Callable[[Kept], None] = no_news
    predict: Callable[[Job], RunRecord] = predict_here


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
    reference = DriftReference.of(bundle)  # before anything is written: a malformed one is refused
    with setup.open_table(config.out) as table:
        plan = decide(config, bundle, table, began=began)
        if isinstance(plan, Plan) and plan.kind == "update":
            plan = plan.with_news(table, compared=setup.compared)
        if isinstance(plan, Done):
            return plan.record
        job = Job(config, plan, table, setup, progress, reference)
        return _drop_rows(job) if plan.only_drops else setup.predict(job)


def _drop_rows(job: Job) -> RunRecord:
    """Commit the finished table without the rows whose tiles are gone: no model is needed for that."""
    plan, table, base, listing = job.plan, job.table, job.plan.base, job.plan.news
    assert base is not None
    assert listing is not None
    with output_errors("cannot read the listing"):
        listed = replace(base.record.identity, listing_sha256=sha256_file(listing.path), **asdict(plan.rules))
    provenance = job.asked(base.record.provenance)
    with table.begin(plan.require_same(listed), listing, backend=base.record.backend, provenance=provenance, base=base):
        table.require_balance()
        table.assemble(drift=job.drift(None, listing))
        return table.commit()


def _write(
    predicted: Generator[BatchResult, None, None], writer: ShardWriter, *, clock: StageClock, books: Books
) -> None:
    # Closed here: after a failure to write, the stream's threads would go on with a backend that is freed.
    with writer as shards, closing(predicted) as results:
        for result in results:
            with clock.busy():
                shards.write(result)
            clock.tiles += len(result.outcomes)
            failed = sum(isinstance(outcome, TileFailure) for outcome in result.outcomes)
            books.add(seen=len(result.outcomes), failed=failed)
        with clock.busy():
            shards.close_shard()
