"""The stream: one feeder, N decode workers and one inference thread, from batches of tiles to predictions.

    feeder ─── slots ───> decode pool ── chunks ──> worker processes, which fill the slots' places in any order
       │                       └─────── filled ──────┐
       └── slots, in batch order ──> inference <─────┘ ── results, in batch order ──> the caller, who writes
       ^                                 │
       └────────── free slots ───────────┘ the back-pressure

Results come in batch order by construction: inference takes the slots in the order in which they were handed
out and waits for each to be filled. Nothing is ever re-sorted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from cervix_engine.backends.base import Backend
from cervix_engine.contract import ModelContract
from cervix_engine.errors import DecodeWorkerError
from cervix_engine.machine import usable_cpus
from cervix_engine.run.stream.channel import Channel, Stop, Stopped
from cervix_engine.run.stream.decode import DEFAULT_LIMITS, DecodeJob, DecodeLimits
from cervix_engine.run.stream.decode_pool import CHUNKS_A_WORKER, Chunking, DecodePool
from cervix_engine.run.stream.inference import BatchResult, Inference
from cervix_engine.run.stream.memory import SharedPixels
from cervix_engine.run.stream.slot import Slot, TileBatch
from cervix_engine.run.stream.stats import StageClock, StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.worker_count import WorkerCount
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.tiles.tile import TileRef

__all__ = ["BatchResult", "StreamSettings", "batches_of", "stream"]

# Beside the slots that the backend has begun, one waits filled and one is about to be; further ones hold so many tiles
# for each worker, up to so many in all.
SPARE_SLOTS, TILES_A_WORKER, SPARE_TILES = 2, 16, 1024
# Two shards' worth: the model goes on while one of them is made durable.
UNWRITTEN_TILES = 8192
ABANDONED_JOIN_S = 0.5
TILE_STEPS = TileSteps()


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream runs. Only `batch_size` can touch a result's last digits; `workers` never does.

    Attributes:
        source: where the tiles come from.
        contract: what they are decoded to.
        batch_size: tiles a slot.
        workers: decode processes; None starts one a usable core, and keeps those that feed the model.
        hash_tiles, judge_quality: whether to note the SHA-256 of each tile's bytes, and the flags of its pixels.
        measure_step: one in how many tiles is measured for drift; 0 for none.
        limits: what one tile may take.
        unwritten_tiles: predicted ones that may wait for the caller; more hold the stream back.
    """

    source: TileSource
    contract: ModelContract
    batch_size: int
    workers: int | None = None
    hash_tiles: bool = False
    judge_quality: bool = False
    measure_step: int = 0
    limits: DecodeLimits = DEFAULT_LIMITS
    unwritten_tiles: int = UNWRITTEN_TILES

    @property
    def most_workers(self) -> int:
        return self.workers or usable_cpus()

    @property
    def spare_slots(self) -> int:
        """Slots that let every worker have its chunks at all times, beside those that the backend has begun."""
        at_workers = min(self.most_workers * TILES_A_WORKER, SPARE_TILES)
        return SPARE_SLOTS + min(-(-at_workers // self.batch_size), CHUNKS_A_WORKER * self.most_workers)

    @property
    def chunk_tiles(self) -> int:
        """As many as a worker may be given at a time, so that there are enough for all of them."""
        return max(1, self.spare_slots * self.batch_size // (CHUNKS_A_WORKER * self.most_workers))

    def worker_count(self) -> WorkerCount:
        return WorkerCount(self.most_workers, chosen=self.workers is None)

    def job(self, steps: TileSteps, *, slots: int) -> DecodeJob:
        """What the workers are told, for so many slots."""
        return DecodeJob(
            reader=self.source.reader(),
            contract=self.contract,
            shape=(slots, self.batch_size, *self.contract.input_size, 3),
            steps=steps,
            hash_tiles=self.hash_tiles,
            judge_quality=self.judge_quality,
            measure_step=self.measure_step,
            limits=self.limits,
        )


def stream(
    batches: Iterable[TileBatch],
    *,
    backend: Backend,
    settings: StreamSettings,
    stats: StreamStats,
    steps: TileSteps = TILE_STEPS,
) -> Generator[BatchResult, None, None]:
    """Read, decode and infer `batches`; yield their results in the same order, also those of before a failure.

    A tile that cannot be read or decoded becomes a `TileFailure` in its place, also where its decoder crashes or hangs.
    Closing the iterator, or an exception in its consumer, stops every thread and process.

    Args:
        batches: what to predict; each has at most `batch_size` tiles.
        backend: loaded; the stream's inference thread owns it meanwhile.
        settings: where and how.
        stats: filled while the stream runs.
        steps: how a tile becomes pixels, by steps that workers can import.

    Raises:
        CervixError: whatever stopped the stream first.
    """
    run = _Stream(batches, backend, settings, stats, steps)
    # After an interrupt or early exit, do not wait for a batch in flight that cannot be cancelled.
    wait_s: float | None = ABANDONED_JOIN_S
    with stats.running():
        try:
            run.start()
            yield from run.results
            wait_s = None
        except Stopped:
            wait_s = None
            reason = run.stop.reason
            assert reason is not None
            raise reason from None
        finally:
            run.close(wait_s)


class _Stream:
    def __init__(
        self,
        batches: Iterable[TileBatch],
        backend: Backend,
        settings: StreamSettings,
        stats: StreamStats,
        steps: TileSteps,
    ) -> None:
        self.stop = Stop()
        slots = settings.spare_slots + backend.in_flight
        unwritten = max(1, settings.unwritten_tiles // settings.batch_size)
        self.results: Channel[BatchResult] = Channel(self.stop, unwritten, keeps=True)
        self._batches = batches
        self._backend = backend
        self._stats = stats
        self._free: Channel[Slot] = Channel(self.stop, slots)
        self._in_order: Channel[Slot] = Channel(self.stop, slots)
        job = settings.job(steps, slots=slots)
        self._memory = SharedPixels(job.shape)
        for number, pixels in enumerate(self._memory.pixels):
            self._free.put(Slot(self.stop, number, pixels))
        listing, decoding = stats.clock("list"), stats.clock("decode")
        self._pool = DecodePool(
            job,
            self._memory,
            count=settings.worker_count(),
            chunking=Chunking(settings.source.tiles_at_once, settings.chunk_tiles, settings.source.lane),
            stop=self.stop,
            clock=decoding,
        )
        self._inference = Inference(backend, classes=len(settings.contract.classes), stats=stats)
        self._threads = [
            self._thread("decode", self._pool.run, in_python=True),
            self._thread("list", lambda: self._feed(listing), in_python=True),
            self._thread("infer", self._infer, in_python=False),
        ]

    def start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise DecodeWorkerError("no thread can be started on this machine: see `ulimit -u`") from error

    def close(self, wait_s: float | None) -> None:
        """Stop every thread and wait for each at most `wait_s` seconds."""
        self.stop.set(Stopped())
        for thread in self._threads:
            if wait_s is not None:
                # Before each: inference may begin one more batch before it sees that it is to stop.
                self._backend.cancel()
            if thread.ident is not None:
                thread.join(wait_s)

    def _thread(self, stage: str, work: Callable[[], None], *, in_python: bool) -> threading.Thread:
        def run() -> None:
            try:
                with self._stats.in_python() if in_python else nullcontext():
                    work()
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self.stop.set(error)

        return threading.Thread(target=run, name=f"cervix-{stage}", daemon=True)

    def _feed(self, clock: StageClock) -> None:
        for batch in clock.timed(self._batches):
            slot = self._free.get()
            slot.assign(batch)
            clock.tiles += len(batch.tiles)
            self._pool.add(slot)
            self._in_order.put(slot)
        self._in_order.close()
        self._pool.finish()

    def _infer(self) -> None:
        with self._backend.pinned(self._memory.pixels):
            for slot, result in self._inference.results(iter(self._in_order)):
                self._free.put(slot)
                self.results.put(result)
        self.results.close()


def batches_of(tiles: Iterable[TileRef], batch_size: int) -> Iterator[TileBatch]:
    """Cut a listing into fixed batches: batch k is always tiles k·B … k·B+B-1."""
    batch: list[TileRef] = []
    index = 0
    for tile in tiles:
        batch.append(tile)
        if len(batch) == batch_size:
            yield TileBatch(index, tuple(batch))
            batch, index = [], index + 1
    if batch:
        yield TileBatch(index, tuple(batch))
