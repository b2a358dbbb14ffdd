"""The decode workers of a stream, and the one thread that keeps them busy.

    slots ──> waiting chunks ──> workers, two chunks each ──> answers ──> filled slots
                   ^                    │ one ended
                   ├── killed: again ───┤
                   └── crashed or hung: its tiles one by one, each in a fresh worker

The chunk that a worker had when it crashed holds the tile that did it, or none: an earlier one may have spoilt its
memory. So each tile of it is tried again by a worker that decodes nothing else, and what ends that one too has failed.
A worker that was killed says nothing of its tiles: a machine kills what it takes for too large.
"""

from __future__ import annotations

import logging
import pickle
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from cervix_engine.errors import DecodeWorkerError
from cervix_engine.run.stream.channel import Stop, Stopped
from cervix_engine.run.stream.decode import Decoded, DecodeJob, to_send
from cervix_engine.run.stream.exits import exit_words, failure_of_exit
from cervix_engine.run.stream.fork_server import WorkerProcess
from cervix_engine.run.stream.memory import SharedPixels
from cervix_engine.run.stream.slot import Slot
from cervix_engine.run.stream.stats import StageClock
from cervix_engine.run.stream.worker_count import WorkerCount
from cervix_engine.tiles.tile import TileFailure, TileNotes

log = logging.getLogger(__name__)

# The one that a worker is at, and the one that it takes next without waiting for this process.
CHUNKS_A_WORKER = 2
# So long a chunk is to take: handing it over costs little beside that, and no worker is long at it while others wait.
CHUNK_S = 0.005
# As long as nobody knows how long a tile takes; and at most, so that the names of a chunk fit into a message.
FIRST_TILES, MOST_TILES = 4, 32
# So often workers may be killed over the same tiles, or before their first ones; then the run stops.
MAX_KILLS = 5


@dataclass(slots=True)
class _Chunk:
    """Tiles of a slot that one worker decodes.

    Attributes:
        lane: of its tiles, as `TileSource.lane`.
        suspect: the only one of its tiles was in a chunk whose worker crashed.
        kills: how many workers were killed while they had it.
    """

    slot: Slot
    start: int
    stop: int
    lane: int | None = None
    suspect: bool = False
    kills: int = 0

    def message(self) -> object:
        tiles = self.slot.batch.tiles[self.start : self.stop]
        return self.slot.number, self.start, list(map(to_send, tiles))

    def suspects(self) -> list[_Chunk]:
        return [_Chunk(self.slot, at, at + 1, suspect=True) for at in range(self.start, self.stop)]


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker's process and the chunks that it was given, of which it is at the first."""

    process: WorkerProcess
    began: float = field(default_factory=time.perf_counter)
    is_ready: bool = False
    given: deque[_Chunk] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How batches are cut into chunks.

    Attributes:
        least_tiles, most_tiles: of a chunk: with more, the slots would not hold all workers' chunks.
        lane: of a tile, by its path, as `TileSource.lane`; a chunk is of one lane.
    """

    least_tiles: int
    most_tiles: int
    lane: Callable[[str], int | None]


class DecodePool:
    """Fills slots. `add` and `finish` are for the thread that feeds; `run` is a thread's own work.

    Args:
        job: what all tiles have in common.
        memory: of the slots; closed by `run`.
        count: how many workers there are.
        chunking: how batches become chunks.
        stop: the stream's stop.
        clock: of all workers together.
    """

    def __init__(
        self,
        job: DecodeJob,
        memory: SharedPixels,
        *,
        count: WorkerCount,
        chunking: Chunking,
        stop: Stop,
        clock: StageClock,
    ) -> None:
        self._job = pickle.dumps(job)
        self._limits = job.limits
        self._memory = memory
        self._count = count
        self._most_tiles = min(chunking.most_tiles, MOST_TILES)
        self._least_tiles = min(chunking.least_tiles, self._most_tiles)
        self._lane = chunking.lane
        self._stop = stop
        self._clock = clock
        self._added: deque[_Chunk] = deque()  # by the thread that feeds; what waits belongs to the other one
        self._waiting: deque[_Chunk] = deque()
        self._suspects: deque[_Chunk] = deque()
        self._finished = False
        self._workers: list[_Worker] = []
        self._retry: _Worker | None = None
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        stop.wakes(self._wake)

    def add(self, slot: Slot) -> None:
        """Let workers fill a slot that has its batch."""
        self._added.extend(self._chunks(slot))
        self._wake()

    def _chunks(self, slot: Slot) -> Iterator[_Chunk]:
        start, most = 0, self._chunk_tiles()
        for lane, tiles in groupby(slot.batch.tiles, key=lambda tile: self._lane(tile.path)):
            stop = start + len(list(tiles))
            yield from (_Chunk(slot, at, min(at + most, stop), lane) for at in range(start, stop, most))
            start = stop

    def _chunk_tiles(self) -> int:
        done, busy_s = self._clock.tiles, self._clock.busy_s
        wanted = round(CHUNK_S * done / busy_s) if done and busy_s else FIRST_TILES
        return max(self._least_tiles, min(wanted, self._most_tiles))

    def finish(self) -> None:
        """No more slots will come."""
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # it has been woken already, or has ended
            self._waker.send(b"\0")

    def run(self) -> None:
        """Hand chunks out and take answers until every slot is filled.

        Raises:
            DecodeWorkerError: no worker can be started, or they are killed again and again.
            Stopped: the stream was stopped.
            CervixError: a worker met something that is no tile's fault.
        """
        try:
            while not (self._finished and self._is_idle()):
                self._take_added()
                self._adjust_workers()
                self._hand_out()
                self._receive_ready()
            self._clock.threads = max(1, len(self._workers))
        finally:
            for worker in [*self._workers, *([self._retry] if self._retry else [])]:
                self._end(worker)
            self._selector.close()
            self._woken.close()
            self._waker.close()
            self._memory.close()

    def _take_added(self) -> None:
        while self._added:
            self._waiting.append(self._added.popleft())

    def _is_idle(self) -> bool:
        left = self._added or self._waiting or self._suspects or self._retry
        return not (left or any(worker.given for worker in self._workers))

    # ---- workers come and go

    def _adjust_workers(self) -> None:
        """End workers too many, or start one too few: no more at once, or those that work already would wait."""
        if self._suspects and not self._retry:
            self._retry = self._start()
            self._send_chunk(self._retry, self._suspects.popleft())
        for surplus in self._workers[self._count.limit :]:
            if not surplus.given:
                self._end(surplus)
        if self._lacks_workers():
            try:
                self._workers.append(self._start())
            except DecodeWorkerError as error:
                if not self._workers:
                    raise
                log.warning("no more decode workers than %d: %s", len(self._workers), error)
                self._count.cap(len(self._workers))

    def _lacks_workers(self) -> bool:
        """Whether there is none, or another one would have something to do: a small run needs few."""
        idle = sum(not worker.given for worker in self._workers)
        return len(self._workers) < self._count.limit and (not self._workers or len(self._waiting) > idle)

    def _start(self) -> _Worker:
        worker = _Worker(WorkerProcess(self._memory.descriptor, self._job))
        self._selector.register(worker.process, selectors.EVENT_READ, worker)
        return worker

    def _end(self, worker: _Worker) -> int | None:
        self._selector.unregister(worker.process)
        if worker is self._retry:
            self._retry = None
        else:
            self._workers.remove(worker)
        self._clock.present_s = (self._clock.present_s or 0.0) + time.perf_counter() - worker.began
        return worker.process.end()

    # ---- chunks go out and answers come in

    def _hand_out(self) -> None:
        for given in range(CHUNKS_A_WORKER):
            for number, worker in enumerate(self._workers[: self._count.limit]):
                if len(worker.given) == given and (chunk := self._next_for(number, is_idle=not given)):
                    self._send_chunk(worker, chunk)

    def _next_for(self, number: int, *, is_idle: bool) -> _Chunk | None:
        """The first chunk of this worker's own lanes that waits; another's only where it had nothing to do."""
        place = first_of_own((chunk.lane for chunk in self._waiting), number, workers=len(self._workers))
        if place is None:
            return self._waiting.popleft() if self._waiting and is_idle else None
        chunk = self._waiting[place]
        del self._waiting[place]
        return chunk

    def _send_chunk(self, worker: _Worker, chunk: _Chunk) -> None:
        worker.given.append(chunk)
        worker.process.send(chunk.message())

    def _receive_ready(self) -> None:
        busy = sum(bool(worker.given) for worker in self._workers if worker.is_ready)
        for key, _ in self._selector.select(0 if self._lacks_workers() else None):
            if key.data:
                self._receive(key.data)
            else:
                self._woken.recv(1024)
        self._count.observe(busy, time.perf_counter())
        if self._stop.is_set:
            raise Stopped

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = worker.process.receive()
        except EOFError:
            self._handle_exit(worker)
            return
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            worker.is_ready, self._failed_starts = True, 0
            return
        times, decoded, notes = answer
        self._clock.busy_s += times.took
        self._count.worked(cpu_s=times.on_core, idle_s=times.idle)
        chunk = worker.given.popleft()
        self._fill(chunk, decoded, notes)
        if chunk.suspect:
            self._end(worker)

    def _fill(self, chunk: _Chunk, decoded: Sequence[Decoded], notes: Mapping[int, TileNotes]) -> None:
        if log.isEnabledFor(logging.DEBUG):
            for tile, outcome in zip(chunk.slot.batch.tiles[chunk.start : chunk.stop], decoded, strict=True):
                if isinstance(outcome, TileFailure):
                    log.debug("tile %d, %r: %s", tile.index, tile.path, outcome.reason)
        self._clock.tiles += len(decoded)
        chunk.slot.fill(chunk.start, decoded, notes)

    # ---- a worker has ended

    def _handle_exit(self, worker: _Worker) -> None:
        status = self._end(worker)
        log.debug("a decode worker has ended: %s", exit_words(status))
        if not worker.is_ready:
            self._requeue(worker.given)
            self._failed_starts += 1
            self._do_without_more(status)
            return
        if not worker.given:
            return
        had, failure = worker.given.popleft(), failure_of_exit(status, self._limits)
        self._requeue(worker.given)
        if failure is None:
            had.kills += 1
            self._require_progress(
                had.kills, "are killed again and again, as by a machine that runs out of memory", status
            )
            self._requeue([had])
        elif had.suspect:
            had.slot.pixels[had.start] = 0
            self._fill(had, [failure], {})
        else:
            self._suspects.extend(had.suspects())

    def _do_without_more(self, status: int | None) -> None:
        """Where no worker outlives its start, go on with those that work already; without any, stop."""
        working = sum(other.is_ready for other in self._workers)
        if not working:
            self._require_progress(self._failed_starts, "end as they start", status)
        elif self._failed_starts >= MAX_KILLS:
            words = "no more decode workers than %d: further ones end as they start: %s"
            log.warning(words, working, exit_words(status))
            self._count.cap(working)
            self._failed_starts = 0

    def _requeue(self, chunks: Sequence[_Chunk]) -> None:
        for chunk in reversed(chunks):
            (self._suspects if chunk.suspect else self._waiting).appendleft(chunk)

    def _require_progress(self, deaths: int, what: str, status: int | None) -> None:
        if deaths >= MAX_KILLS:
            raise DecodeWorkerError(f"decode workers {what}: {exit_words(status)}; the run can go on later")


def first_of_own(lanes: Iterable[int | None], worker: int, *, workers: int) -> int | None:
    """Which of the chunks that wait, by their lanes, comes first for a worker: lanes go to workers by turns."""
    places = (place for place, lane in enumerate(lanes) if lane is None or lane % workers == worker)
    return next(places, None)
