"""What a worker does, whatever started it: one opened session, through which blocks go as one stream.

The stream goes on from a block to the next as long as one waits, so that a worker that is always given its next block
before it has ended the last never stands still. Where none waits, the stream ends and gives all that it has; the next
block begins another one.
"""

from __future__ import annotations

import platform
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.cluster.blocks import Block
from cervix_engine.drift.watch import DriftWatch
from cervix_engine.errors import BackendUnavailableError, CervixError, OutputError, UsageError
from cervix_engine.files import fsync_file, output_errors
from cervix_engine.run.assembly.chunks import Chunk, WrittenChunk, write_chunk
from cervix_engine.run.journal import InputRules, RunIdentity, Shard
from cervix_engine.run.session import Choice, Choose, SessionRequest, open_session
from cervix_engine.run.shards import shard_of
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StageStats, StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import BatchResult
from cervix_engine.table.parquet.file import require_pyarrow
from cervix_engine.table.rows import RowFormat
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.version import __version__


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What a worker needs to know of a run. It is pickled.

    Attributes:
        request: the session to open; its bundle is opened anew, and must have the same digest.
        choose, steps: as in `RunSetup`.
        source: where tiles come from.
        listing: the file of records.
        folder: of the run; the worker's rows go there.
        optional, rules: as in `Plan`.
        row_format: how rows are written.
        watch: what measured tiles are compared with, if they are.
        writes_parquet: whether workers write the files of a table that is a folder.
    """

    request: SessionRequest
    choose: Choose
    steps: TileSteps
    source: TileSource
    listing: Path
    folder: Path
    optional: tuple[str, ...]
    rules: InputRules
    row_format: RowFormat
    watch: DriftWatch | None = None
    writes_parquet: bool = False
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker has opened: all workers of a run must say the same, apart from where they are.

    Attributes:
        host: the machine.
        identity: what its rows depend on; the listing's digest is the driver's to add.
        choice: for the record, and to be said.
    """

    host: str
    identity: RunIdentity
    choice: Choice

    def require_alike(self, other: Opened) -> None:
        """Raises ResumeMismatchError where another worker of the same run would answer differently."""
        remedy = f"{other.host} would answer differently, so leave one kind of node out of the cluster"
        if self.identity.threads != other.identity.threads:
            remedy += ", or give all workers as many CPUs with --ray-cpus"
        self.identity.check(other.identity, what=f"{self.host} computes", remedy=remedy)


@dataclass(frozen=True, slots=True)
class Done:
    """A block whose rows are durable.

    Attributes:
        block: as it was given.
        shard: what the journal says of it.
        file: its name in the run's folder.
        seconds: since it was given.
    """

    block: Block
    shard: Shard
    file: str
    seconds: float


@dataclass(slots=True)
class _Given:
    """A block on its way through the stream."""

    block: Block
    done: Future[Done]
    since: float = field(default_factory=time.perf_counter)
    results: list[BatchResult] = field(default_factory=list)


class BlockWorker:
    """Opens a session, and predicts blocks; several threads may ask it, and each waits for its own block.

    Raises:
        CervixError: the session cannot be opened, or this machine does not see what all share.
    """

    def __init__(self, job: WorkerJob) -> None:
        _require_shared(job)
        self._job = job
        self._held = ExitStack()
        bundle = Bundle.open(job.request.bundle.root, expect_digest=job.request.bundle.digest)
        request = replace(job.request, bundle=bundle, began=time.perf_counter())
        self._session = self._held.enter_context(open_session(request, choose=job.choose))
        self._waiting: queue.SimpleQueue[_Given | None] = queue.SimpleQueue()
        self._under_way: deque[_Given] = deque()
        self._stages: list[tuple[StageStats, ...]] = []
        self._writes = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="cervix-blocks", daemon=True)
        self._thread.start()

    def opened(self) -> Opened:
        session, job = self._session, self._job
        identity = session.identity_of(job.source, "", optional=job.optional, rules=job.rules)
        return Opened(platform.node(), identity, session.choice)

    def predict(self, block: Block) -> Done:
        """Predict a block's tiles and make their rows durable.

        Raises:
            CervixError: whatever stopped the stream.
        """
        given = _Given(block, Future())
        self._waiting.put(given)
        return given.done.result()

    def write_chunk(self, chunk: Chunk) -> WrittenChunk:
        """Write a file of a table that is a folder; one at a time, since each is in memory as a whole.

        Raises:
            OutputError: rows cannot be read, or the file not be written.
        """
        folder = self._job.folder
        with self._writes, output_errors("cannot write a file of the table"):
            columns, stamps = self._job.row_format.columns, chunk.stamps(self._job.listing)
            return write_chunk(folder, chunk.number, columns, chunk.lines(folder), stamps)

    def close(self) -> tuple[StageStats, ...]:
        """End, and free the model.

        Returns:
            What each stage did, in all streams together.
        """
        self._waiting.put(None)
        self._thread.join()
        self._held.close()
        return summed(self._stages)

    def _run(self) -> None:
        while (given := self._waiting.get()) is not None:
            stats = StreamStats()
            try:
                self._stream(given, stats)
            except BaseException as error:  # noqa: BLE001 - handed to those who wait
                for lost in {id(item): item for item in (given, *self._under_way)}.values():
                    if not lost.done.done():
                        lost.done.set_exception(error)
                self._under_way.clear()
            self._stages.append(stats.stages())

    def _stream(self, first: _Given, stats: StreamStats) -> None:
        """One stream over `first` and whatever blocks come before it has ended."""
        job, writing = self._job, stats.clock("write")
        batches = self._batches(first)
        predicted = self._session.predict(
            batches,
            source=job.source,
            columns=job.optional,
            stats=stats,
            steps=job.steps,
            measure_step=job.watch.step if job.watch else 0,
        )
        with closing(predicted) as results:
            for result in results:
                given = self._under_way[0]
                given.results.append(result)
                writing.tiles += len(result.outcomes)
                if len(given.results) == given.block.batches:
                    with writing.busy():
                        done = self._stored(given)
                    self._under_way.popleft().done.set_result(done)

    def _batches(self, first: _Given) -> Iterator[TileBatch]:
        given: _Given | None = first
        while given is not None:
            self._under_way.append(given)
            with output_errors("cannot read the listing"):
                yield from given.block.read(self._job.listing, self._session.batch_size)
            try:
                given = self._waiting.get_nowait()
            except queue.Empty:
                return
        self._waiting.put(None)  # for `_run`

    def _stored(self, given: _Given) -> Done:
        shard, data = shard_of(given.results, self._job.row_format, self._job.watch)
        name = f"{shard.file}.{uuid.uuid4().hex[:12]}"
        with output_errors("cannot write a block's rows"):
            (self._job.folder / name).write_bytes(data)
            fsync_file(self._job.folder / name)
        return Done(given.block, shard, name, time.perf_counter() - given.since)


def _require_shared(job: WorkerJob) -> None:
    if job.version != __version__:
        raise CervixError(f"{platform.node()} has cervix {__version__}, the run {job.version}: install the same")
    for path in (job.listing, job.request.bundle.root):
        if not path.exists():
            raise OutputError(
                f"{platform.node()} does not see {path}: tiles, bundle and table must lie on storage that all nodes "
                "see under the same path"
            )
    if job.writes_parquet:
        try:
            require_pyarrow()
        except BackendUnavailableError as error:
            raise BackendUnavailableError(f"{platform.node()}: {error}") from error
    try:
        job.source.check()
    except UsageError as error:
        raise UsageError(f"{platform.node()}: {error}") from error


def summed(several: list[tuple[StageStats, ...]], *, side_by_side: bool = False) -> tuple[StageStats, ...]:
    """Stages of several streams together: one after another, or `side_by_side`, when their threads add up too."""
    totals: dict[str, StageStats] = {}
    for stage in (stage for stages in several for stage in stages):
        before = totals.get(stage.stage)
        threads = before.threads if before else 0
        totals[stage.stage] = StageStats(
            stage=stage.stage,
            threads=threads + stage.threads if side_by_side else max(threads, stage.threads),
            busy_s=stage.busy_s + (before.busy_s if before else 0.0),
            waiting_s=stage.waiting_s + (before.waiting_s if before else 0.0),
            tiles=stage.tiles + (before.tiles if before else 0),
        )
    return tuple(totals.values())
