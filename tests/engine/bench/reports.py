"""Bench reports with figures of a test's choice."""

from __future__ import annotations

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.measure import Gate, Latency, Rate
from cervix_engine.bench.report import BenchReport, Conditions
from cervix_engine.bench.stages import BatchRate, StageName, StageRate
from cervix_engine.bench.verdict import Capacities, FreedRun, Verdict

STAGES: tuple[StageName, ...] = ("read", "decode", "resize", "copy", "infer", "write")


def steady(tiles_per_sec: float) -> Rate:
    return Rate(tiles_per_sec, tiles_per_sec, tiles_per_sec, 5, True)


def report(
    *, end_to_end: Rate | None = None, sweep: dict[int, Rate] | None = None, cores: int = 2, workers: int = 2
) -> BenchReport:
    """A run at 100 tiles/s, bound by decode."""
    rates = sweep or {1: steady(50.0), 32: steady(400.0)}
    capacities = Capacities(workers, 2000.0, 110.0, 400.0, 9000.0)
    return BenchReport(
        conditions=Conditions({"cpu": "a CPU", "cervix": "1"}, cores, (2600.0, None), (0.5, 1.5)),
        backend=FakeBackend().info,
        tiles=24,
        tiles_bytes=24_000,
        batch_size=32,
        workers=workers,
        gate=Gate(),
        stages=tuple(StageRate(stage, 2, steady(100.0)) for stage in STAGES),
        sweep=tuple(BatchRate(size, rate, Latency(10.0, 11.0, 12.0, 13.0, calls=200)) for size, rate in rates.items()),
        end_to_end=end_to_end or steady(100.0),
        verdict=Verdict("decode", True, 100.0, capacities, (FreedRun("decode", steady(390.0)),)),
    )
