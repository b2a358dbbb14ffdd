"""What each stage of the stream did with its time, and which one bound the run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

# The stage of all that the run's own process does in Python, under the one lock of its interpreter.
PARENT = "parent"


@dataclass(slots=True)
class StageClock:
    """The time of a stage's one thread, or of its workers together.

    Attributes:
        busy_s: work; the rest of the time is waiting, for input or for room in the next stage.
        present_s: of workers that come and go: the time in which they were there; None is all of the stream's.
    """

    stage: str
    threads: int = 1
    busy_s: float = 0.0
    present_s: float | None = None
    tiles: int = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.busy_s += time.perf_counter() - started

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; it is work to get each."""
        iterator = iter(items)
        while True:
            with self.busy():
                item = next(iterator, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True, slots=True)
class StageStats:
    """A stage's threads, or processes, together. `tiles_per_sec` is what they would sustain if never kept waiting."""

    stage: str
    threads: int
    busy_s: float
    waiting_s: float
    tiles: int

    @property
    def tiles_per_sec(self) -> float:
        return self.tiles * self.threads / self.busy_s if self.busy_s > 0 else 0.0

    @property
    def busy_share(self) -> float:
        """Of the time that it was there, from 0 to 1: the stage with the largest one bounds a run."""
        return self.busy_s / (self.busy_s + self.waiting_s) if self.busy_s > 0 else 0.0


@dataclass(slots=True)
class StreamStats:
    """All clocks of one run.

    What the run's threads do in Python they do in turns, under the interpreter's lock. So their processor time
    together is a stage as well, `parent`: a run in which it is busy nearly all the time gains nothing by more workers.
    """

    _clocks: list[StageClock] = field(default_factory=list)
    _parent_s: list[float] = field(default_factory=list)
    _began: float = 0.0
    _ended: float = 0.0

    def clock(self, stage: str) -> StageClock:
        """A new clock for a stage."""
        clock = StageClock(stage)
        self._clocks.append(clock)
        return clock

    @contextmanager
    def running(self) -> Iterator[None]:
        """The whole stream, in the thread that takes its results: what it does with them counts too."""
        self._began = time.perf_counter()
        try:
            with self.in_python():
                yield
        finally:
            self._ended = time.perf_counter()

    @contextmanager
    def in_python(self) -> Iterator[None]:
        """The thread's processor time in the block is work under the interpreter's lock."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._parent_s.append(time.thread_time() - began)  # atomic, where adding up would not be

    def stages(self) -> tuple[StageStats, ...]:
        """The stages in the order in which they were set up, and the parent."""
        parent = StageClock(PARENT, busy_s=sum(self._parent_s))
        parent.tiles = max((clock.tiles for clock in self._clocks), default=0)
        return tuple(self._seen(clock) for clock in (*self._clocks, parent))

    def _seen(self, clock: StageClock) -> StageStats:
        present_s = self._ended - self._began if clock.present_s is None else clock.present_s
        waiting_s = max(0.0, present_s - clock.busy_s)
        return StageStats(clock.stage, clock.threads, clock.busy_s, waiting_s, clock.tiles)
