"""What the inference thread of a stream does: filled slots through the backend, in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from cervix_engine.backends.base import Backend, Pending
from cervix_engine.errors import InferenceError
from cervix_engine.run.stream.decode import Decoded
from cervix_engine.run.stream.slot import Slot, TileBatch
from cervix_engine.run.stream.stats import StageClock, StreamStats
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileNotes, TileSize
from cervix_engine.values import Probabilities


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One outcome per tile of a batch, and what was noted of it, in the batch's order."""

    batch: TileBatch
    outcomes: tuple[Outcome, ...]
    notes: tuple[TileNotes, ...]


class Inference:
    """One thread's work with the backend, which it alone owns meanwhile.

    Args:
        backend: loaded.
        classes: how many probabilities a tile has.
        stats: for what this does in Python.
    """

    def __init__(self, backend: Backend, *, classes: int, stats: StreamStats) -> None:
        self._backend = backend
        self._classes = classes
        self._stats = stats
        self._clock = stats.clock("infer")
        self._pace = DevicePace()

    def results(self, slots: Iterator[Slot]) -> Iterator[tuple[Slot, BatchResult]]:
        """Each slot with its answers, in the order in which the slots come; a slot may then be used again."""
        begun: deque[tuple[Slot, Pending]] = deque()
        for slot in self._several_at_first(slots):
            slot.wait_filled()
            with self._clock.busy():
                begun.append((slot, self._backend.begin(slot.pixels, batch=slot.batch.index)))
            # Fetched as late as the backend allows: until then it copies and computes by itself.
            if len(begun) == self._backend.in_flight:
                yield self._fetched(*begun.popleft(), others=len(begun))
        while begun:
            yield self._fetched(*begun.popleft(), others=len(begun))
        self._pace.tell(self._clock)

    def _several_at_first(self, slots: Iterator[Slot]) -> Iterator[Slot]:
        """The same slots. Where several batches may be under way, the first ones are begun together.

        Later, a device that waits for decoding hides how fast it could be.
        """
        several = self._backend.in_flight + 1 if self._backend.in_flight > 1 else 0
        first = list(islice(slots, several))
        for slot in first:
            slot.wait_filled()
        return chain(first, slots)

    def _fetched(self, slot: Slot, pending: Pending, *, others: int) -> tuple[Slot, BatchResult]:
        with self._clock.busy():
            asked = time.perf_counter()
            probabilities = pending()
            self._pace.fetched(len(slot.batch.tiles), asked, time.perf_counter(), others=others)
            with self._stats.in_python():
                result = self._result(slot, probabilities)
        self._clock.tiles += len(result.outcomes)
        return slot, result

    def _result(self, slot: Slot, probabilities: Probabilities) -> BatchResult:
        expected = (len(slot.pixels), self._classes)
        if probabilities.shape != expected or not np.isfinite(probabilities).all():
            raise InferenceError(f"the model gave {probabilities.shape}, expected {expected} and only finite numbers")
        count = len(slot.batch.tiles)
        outcomes = tuple(map(_outcome, slot.decoded, probabilities[:count].tolist()))
        return BatchResult(slot.batch, outcomes, tuple(slot.notes))


def _outcome(decoded: Decoded | None, probabilities: list[float]) -> Outcome:
    if decoded is None:
        raise RuntimeError("a slot was inferred before all of its tiles were decoded")
    if isinstance(decoded, TileFailure):
        return decoded
    return Prediction(TileSize(*decoded), tuple(probabilities))


class DevicePace:
    """How long a device takes for a tile while batches wait for it, and not it for them.

    A device that computes by itself is busy while this process waits for nothing. So its time is told by the answers:
    between those of two batches, the second of which was under way when the first one's came, and most of which time
    was spent waiting for the device, it did nothing but compute the second.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._tiles = 0
        self._last = 0.0
        self._others = 0

    def fetched(self, tiles: int, asked: float, got: float, *, others: int) -> None:
        """Answers were asked for and got at these times, while so many further batches were under way."""
        if self._others and got - asked > (got - self._last) / 2:
            self._seconds += got - self._last
            self._tiles += tiles
        self._last, self._others = got, others

    def tell(self, clock: StageClock) -> None:
        """Put the time that the device must have been busy on the clock of its stage, where it is known."""
        if self._tiles:
            clock.busy_s = self._seconds / self._tiles * clock.tiles
