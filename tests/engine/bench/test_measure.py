"""The gate, the median and the percentiles, on a clock that only work moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from cervix_engine.bench.measure import LATENCY_CALLS, Gate, Latency, Meter, Rate

GATE = Gate(tolerance=0.1, window=3, max_rounds=8, round_s=0.0)


class Clock:
    """Stands still but for work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def working(self, seconds: Iterable[float], *, tiles: int = 1) -> Callable[[], int]:
        """Work that takes these times, one after another, then the last one for ever."""
        times = list(seconds)

        def work() -> int:
            self.now += times.pop(0) if len(times) > 1 else times[0]
            return tiles

        return work


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_round_warms_up(clock: Clock) -> None:
    rate = Meter(GATE, clock).rate(clock.working([100.0, 0.5]))
    assert rate == Rate(2.0, 2.0, 2.0, rounds=3, stable=True)


def test_rounds_go_on_until_they_agree(clock: Clock) -> None:
    seconds = [1.0, 1.0, 0.5, 0.25, 0.25, 0.25]
    rate = Meter(GATE, clock).rate(clock.working(seconds, tiles=10))
    assert rate == Rate(40.0, 40.0, 40.0, rounds=5, stable=True)


def test_rounds_that_never_agree_are_called_unstable(clock: Clock) -> None:
    rate = Meter(GATE, clock).rate(clock.working([1.0, *[0.5, 1.0] * 20]))
    assert (rate.stable, rate.rounds) == (False, GATE.max_rounds)
    assert (rate.low, rate.high) == (1.0, 2.0)


@pytest.mark.parametrize(("rates", "holds"), [([10, 10.5, 11], True), ([10, 10.5, 11.1], False), ([10, 10], False)])
def test_the_gate_is_the_ratio_of_largest_to_smallest(rates: list[float], holds: bool) -> None:
    assert GATE.holds([1.0, *rates] if len(rates) == 3 else rates) is holds


def test_short_work_is_repeated_until_a_round_is_long_enough(clock: Clock) -> None:
    calls: list[int] = []
    work = clock.working([0.25])

    def counted() -> int:
        calls.append(1)
        return work()

    rate = Meter(Gate(window=2, max_rounds=2, round_s=1.0), clock).rate(counted)
    assert rate.tiles_per_sec == 4.0
    assert len(calls) == 4 * 3


@pytest.mark.parametrize(
    "wrong", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"window": 1}, {"window": 30}, {"round_s": -1.0}]
)
def test_a_gate_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no gate"):
        Gate(**wrong)  # type: ignore[arg-type]


def test_percentiles_are_calls_that_happened() -> None:
    latency = Latency.of([index / 1000 for index in range(100, 0, -1)])
    assert (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms) == (50.0, 90.0, 95.0, 99.0)
    assert Latency.of([0.002]) == Latency(2.0, 2.0, 2.0, 2.0, calls=1)


def test_no_call_has_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no call"):
        Latency.of([])


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, LATENCY_CALLS), (4.0, 3), (2.5, 4)])
def test_slow_calls_are_timed_less_often(clock: Clock, seconds: float, calls: int) -> None:
    latency = Meter(GATE, clock).latency(clock.working([50.0, seconds]))
    assert latency.calls == calls
    assert latency.p99_ms == pytest.approx(1000 * seconds)
