"""The stream: one feeder, N decode workers and one inference thread, from batches of tiles to predictions.

    feeder ── chunks ──> decode workers ─┐ fill the slot's places, in any order
       │                                 v
       └──── slots, in batch order ──> inference ── results, in batch order ──> the caller, who writes
       ^                                 │
       └────────── free slots ───────────┘ the back-pressure

Results come in batch order by construction: inference takes the slots in the order in which they were handed
out and waits for each to be filled. Nothing is ever re-sorted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.backends.base import Backend, Pending
from cervix_engine.contract import ModelContract
from cervix_engine.errors import InferenceError, TileError, TileReadError
from cervix_engine.files import sha256_bytes
from cervix_engine.run.stream.channel import Channel, Stop, Stopped
from cervix_engine.run.stream.slot import Decoded, Slot, TileBatch
from cervix_engine.run.stream.source import TileSource
from cervix_engine.run.stream.stats import StageClock, StreamStats
from cervix_engine.tiles.discover import SameRoot
from cervix_engine.tiles.preprocess import preprocess_into, read_tile
from cervix_engine.tiles.quality import quality_flags
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileNotes, TileRef
from cervix_engine.values import Pixels, Probabilities

log = logging.getLogger(__name__)

# One slot is being decoded and one waits filled, beside those that the backend has begun.
SPARE_SLOTS = 2
# Tiles a worker takes at a time: small enough to share a batch, large enough that handing over costs nothing.
CHUNK = 8
ABANDONED_JOIN_S = 0.2


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One outcome per tile of a batch, and what was noted of it, in the batch's order."""

    batch: TileBatch
    outcomes: tuple[Outcome, ...]
    notes: tuple[TileNotes, ...]


@dataclass(frozen=True, slots=True)
class _Chunk:
    slot: Slot
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream runs. Only `batch_size` can touch a result's last digits; `workers` never does.

    `hash_tiles` notes the SHA-256 of each tile's bytes, `judge_quality` the flags of its pixels.
    """

    root: Path
    contract: ModelContract
    batch_size: int
    workers: int
    hash_tiles: bool = False
    judge_quality: bool = False


def stream(
    batches: Iterable[TileBatch],
    *,
    backend: Backend,
    settings: StreamSettings,
    stats: StreamStats,
    source: TileSource | None = None,
) -> Generator[BatchResult, None, None]:
    """Read, decode and infer `batches`; yield their results in the same order.

    A tile that cannot be read or decoded becomes a `TileFailure` in its place. Closing the iterator, or an
    exception in its consumer, stops every thread.

    Args:
        batches: what to predict; each has at most `batch_size` tiles.
        backend: loaded; the stream's inference thread owns it meanwhile.
        settings: where and how.
        stats: filled while the stream runs.
        source: how a tile becomes pixels; None takes the steps of `preprocess`.

    Raises:
        CervixError: whatever stopped the stream first.
    """
    run = _Stream(batches, backend, settings, stats, source or TileSource(read_tile, preprocess_into))
    # Who is interrupted, or leaves early, does not wait for a batch that is being computed.
    wait_s: float | None = ABANDONED_JOIN_S
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
        source: TileSource,
    ) -> None:
        self.stop = Stop()
        slots = SPARE_SLOTS + backend.in_flight
        self.results: Channel[BatchResult] = Channel(self.stop, slots)
        self._batches = batches
        self._backend = backend
        self._settings = settings
        self._source = source
        # Joined as text: a `Path` for each tile would cost as much as all of the rest of handing it on.
        self._prefix = os.path.join(settings.root, "")  # noqa: PTH118
        self._root = SameRoot(settings.root)
        self._free: Channel[Slot] = Channel(self.stop, slots)
        self._in_order: Channel[Slot] = Channel(self.stop, slots)
        self._chunks: Channel[_Chunk] = Channel(self.stop, 2 * settings.workers + settings.batch_size // CHUNK)
        shape = (settings.batch_size, *settings.contract.input_size, 3)
        for _ in range(slots):
            self._free.put(Slot(self.stop, backend.allocate(shape)))
        decoders = [self._thread("decode", self._decode, stats) for _ in range(settings.workers)]
        self._threads = [
            self._thread("list", self._feed, stats),
            *decoders,
            self._thread("infer", self._infer, stats),
        ]

    def start(self) -> None:
        # OpenCV's own threads inside the workers would oversubscribe the cores.
        cv2.setNumThreads(1)
        for thread in self._threads:
            thread.start()

    def close(self, wait_s: float | None) -> None:
        """Stop every thread and wait for each at most `wait_s` seconds."""
        self.stop.set(Stopped())
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(wait_s)

    def _thread(self, stage: str, work: Callable[[StageClock], None], stats: StreamStats) -> threading.Thread:
        clock = stats.clock(stage)

        def run() -> None:
            try:
                work(clock)
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self.stop.set(error)

        return threading.Thread(target=run, name=f"cervix-{stage}", daemon=True)

    def _feed(self, clock: StageClock) -> None:
        for batch in self._batches:
            with clock.waiting():
                slot = self._free.get()
            with clock.busy():
                slot.assign(batch)
                clock.tiles += len(batch.tiles)
            with clock.waiting():
                self._in_order.put(slot)
                for start in range(0, len(batch.tiles), CHUNK):
                    self._chunks.put(_Chunk(slot, start, min(start + CHUNK, len(batch.tiles))))
        self._in_order.close()
        self._chunks.close()

    def _decode(self, clock: StageClock) -> None:
        chunks = iter(self._chunks)
        while (chunk := clock.next(chunks)) is not None:
            with clock.busy():
                for position in range(chunk.start, chunk.stop):
                    chunk.slot.decoded[position] = self._decode_tile(chunk.slot, position)
                clock.tiles += chunk.stop - chunk.start
            chunk.slot.done(chunk.stop - chunk.start)

    def _decode_tile(self, slot: Slot, position: int) -> Decoded:
        tile, out = slot.batch.tiles[position], slot.pixels[position]
        try:
            data = self._source.read(self._prefix + tile.path, stamp=tile.stamp)
            if self._settings.hash_tiles:
                slot.notes[position] = TileNotes(sha256=sha256_bytes(data))

            def judge(pixels: Pixels) -> None:
                flags = quality_flags(pixels, self._settings.contract.tile_statistics)
                slot.notes[position] = replace(slot.notes[position], quality=flags)

            look = judge if self._settings.judge_quality else None
            return self._source.preprocess_into(out, data, contract=self._settings.contract, look=look)
        except TileError as error:
            if isinstance(error, TileReadError):
                self._root.require()
            log.debug("tile %d, %r: %s", tile.index, tile.path, error)
            # Blank, so that a neighbour's numbers cannot depend on what this place held before.
            out[...] = 0
            return TileFailure(stage="read" if isinstance(error, TileReadError) else "decode", reason=str(error))

    def _infer(self, clock: StageClock) -> None:
        slots, begun = iter(self._in_order), deque[tuple[Slot, Pending]]()
        while (slot := clock.next(slots)) is not None:
            with clock.waiting():
                slot.wait_filled()
            with clock.busy():
                begun.append((slot, self._backend.begin(slot.pixels, batch=slot.batch.index)))
            # Fetched as late as the backend allows: until then it copies and computes by itself.
            if len(begun) == self._backend.in_flight:
                self._fetch(*begun.popleft(), clock)
        while begun:
            self._fetch(*begun.popleft(), clock)
        self.results.close()

    def _fetch(self, slot: Slot, pending: Pending, clock: StageClock) -> None:
        with clock.busy():
            result = self._result(slot, pending())
            clock.tiles += len(result.outcomes)
        with clock.waiting():
            self._free.put(slot)
            self.results.put(result)

    def _result(self, slot: Slot, probabilities: Probabilities) -> BatchResult:
        expected = (len(slot.pixels), len(self._settings.contract.classes))
        if probabilities.shape != expected or not np.isfinite(probabilities).all():
            raise InferenceError(f"the model gave {probabilities.shape}, expected {expected} and only finite numbers")
        count = len(slot.batch.tiles)
        outcomes = tuple(map(_outcome, slot.decoded, probabilities[:count].tolist()))
        return BatchResult(slot.batch, outcomes, tuple(slot.notes))


def _outcome(decoded: Decoded | None, probabilities: list[float]) -> Outcome:
    if decoded is None:
        raise RuntimeError("a slot was inferred before all of its tiles were decoded")
    return decoded if isinstance(decoded, TileFailure) else Prediction(decoded, tuple(probabilities))


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
