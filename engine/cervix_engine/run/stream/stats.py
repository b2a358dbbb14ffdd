"""What each stage of the stream did with its time, and which one bound the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class StageClock:
    """One thread's time in a stage. Not shared: each thread has its own, summed at the end.

    `busy_s` is work; `waiting_s` is waiting for input or for room in the next stage. A stage whose threads are
    busy nearly all the time bounds the run; one that mostly waits has room to spare.
    """

    stage: str
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
    """A stage's threads together. `tiles_per_sec` is what they would sustain if never kept waiting."""

    stage: str
    threads: int
    busy_s: float
    waiting_s: float
    tiles: int

    @property
    def tiles_per_sec(self) -> float:
        return self.tiles * self.threads / self.busy_s if self.busy_s > 0 else 0.0


@dataclass(slots=True)
class StreamStats:
    """All clocks of one run."""

    clocks: list[StageClock] = field(default_factory=list)

    def clock(self, stage: str) -> StageClock:
        """A new clock for one thread of a stage."""
        clock = StageClock(stage)
        self.clocks.append(clock)
        return clock

    def stages(self) -> tuple[StageStats, ...]:
        """The stages in the order in which they were set up."""
        names = dict.fromkeys(clock.stage for clock in self.clocks)
        return tuple(self._total(name) for name in names)

    def _total(self, name: str) -> StageStats:
        clocks = [clock for clock in self.clocks if clock.stage == name]
        return StageStats(
            stage=name,
            threads=len(clocks),
            busy_s=sum(clock.busy_s for clock in clocks),
            waiting_s=sum(clock.waiting_s for clock in clocks),
            tiles=sum(clock.tiles for clock in clocks),
        )
