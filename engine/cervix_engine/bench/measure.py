"""Rounds until they agree: how any rate here is measured.

The gate is that of Triton's `perf_analyzer`: a figure is stable when the last few rounds lie so near to each other
that largest and smallest differ by less than a tolerance. Its figure is then the median of those rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
Work = Callable[[], int]

PERCENTILES = (50, 90, 95, 99)
# Enough that the 99th percentile is not the slowest call by definition; fewer where each call is slow.
LATENCY_CALLS = 200
LATENCY_S = 10.0


@dataclass(frozen=True, slots=True)
class Gate:
    """When a series of rounds counts as stable.

    Attributes:
        tolerance: how far the largest of the last rounds may lie above the smallest, as a share of it.
        window: how many last rounds are compared.
        max_rounds: after so many a series is given up as unstable.
        round_s: the least time of a round; short work is repeated within it.
    """

    tolerance: float = 0.1
    window: int = 5
    max_rounds: int = 20
    round_s: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.tolerance < 1 and 2 <= self.window <= self.max_rounds and self.round_s >= 0):
            raise ValueError(f"no gate: {self}")

    def holds(self, rates: Sequence[float]) -> bool:
        """Whether the last rounds of `rates` agree."""
        last = rates[-self.window :]
        return len(last) == self.window and max(last) <= (1 + self.tolerance) * min(last)


@dataclass(frozen=True, slots=True)
class Rate:
    """Tiles per second over a series' last rounds: median, smallest, largest, and whether they passed the gate."""

    tiles_per_sec: float
    low: float
    high: float
    rounds: int
    stable: bool

    @classmethod
    def of(cls, rates: Sequence[float], gate: Gate) -> Rate:
        """The figure that a whole series gives."""
        last = rates[-gate.window :]
        return cls(statistics.median(last), min(last), max(last), len(rates), gate.holds(rates))


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of single calls in milliseconds, by the nearest-rank method."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Raises ValueError where there is no call."""
        ordered = sorted(seconds)
        if not ordered:
            raise ValueError("no call was timed")
        p50, p90, p95, p99 = (1000 * ordered[-(-percent * len(ordered) // 100) - 1] for percent in PERCENTILES)
        return cls(p50, p90, p95, p99, len(ordered))


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures with one gate and one clock."""

    gate: Gate = Gate()
    clock: Clock = time.perf_counter

    def rate(self, work: Work) -> Rate:
        """Tiles per second of `work`, which returns the number of tiles that it did. The first round warms up."""
        self._round(work)
        rates: list[float] = []
        while len(rates) < self.gate.max_rounds and not self.gate.holds(rates):
            rates.append(self._round(work))
        return Rate.of(rates, self.gate)

    def latency(self, call: Callable[[], object]) -> Latency:
        """Time single calls. The first one warms up."""
        call()
        return Latency.of(list(self._timed(call)))

    def _round(self, work: Work) -> float:
        started, tiles = self.clock(), 0
        while True:
            tiles += work()
            spent = self.clock() - started
            if spent > 0 and spent >= self.gate.round_s:
                return tiles / spent

    def _timed(self, call: Callable[[], object]) -> Iterator[float]:
        began = last = self.clock()
        calls = 0
        while calls < self.gate.window or (calls < LATENCY_CALLS and last - began < LATENCY_S):
            call()
            now = self.clock()
            yield now - last
            last, calls = now, calls + 1
