"""What each stage of the stream did with its time, and which one bound the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

# The stage of all that the run's own process does in Python, under the one lock of its interpreter.
PARENT = "parent"


@dataclass(slots=True)
class StageClock:
    """The time of a stage's one thread, or of its workers together.

    `busy_s` is work; `waiting_s` is waiting for input or for room in the next stage. A stage that is busy nearly all
    the time bounds the run; one that mostly waits has room to spare.
    """

    stage: str
    threads: int = 1
    busy_s: float = 0.0
    waiting_s: float = 0.0
    tiles: int = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.busy_s += time.perf_counter() - started

    def next(self, items: Iterator[T]) -> T | None:
        """The next item, or None at the end; the time it takes is waiting."""
        with self.waiting():
            return next(items, None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waiting_s += time.perf_counter() - started


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
        """Of its time, from 0 to 1: the stage with the largest one bounds a run."""
        return self.busy_s / (self.busy_s + self.waiting_s) if self.busy_s > 0 else 0.0


@dataclass(slots=True)
class StreamStats:
    """All clocks of one run.

    What the run's threads do in Python they do in turns, under the interpreter's lock. So their processor time
    together is a stage as well, `parent`: a run in which it is busy nearly all the time gains nothing by more workers.
    """

    clocks: list[StageClock] = field(default_factory=list)
    _parent_s: list[float] = field(default_factory=list)
    _began: float = 0.0
    _ended: float = 0.0

    def clock(self, stage: str) -> StageClock:
        """A new clock for one thread of a stage."""
        clock = StageClock(stage)
        self.clocks.append(clock)
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
        names = dict.fromkeys(clock.stage for clock in self.clocks)
        totals = [self._total(name) for name in names]
        busy_s = sum(self._parent_s)
        waiting_s = max(0.0, self._ended - self._began - busy_s)
        tiles = max((total.tiles for total in totals), default=0)
        return *totals, StageStats(PARENT, 1, busy_s, waiting_s, tiles)

    def _total(self, name: str) -> StageStats:
        clocks = [clock for clock in self.clocks if clock.stage == name]
        return StageStats(
            stage=name,
            threads=sum(clock.threads for clock in clocks),
            busy_s=sum(clock.busy_s for clock in clocks),
            waiting_s=sum(clock.waiting_s for clock in clocks),
            tiles=sum(clock.tiles for clock in clocks),
        )
