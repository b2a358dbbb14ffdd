"""The verdict is right where it is known what bounds the run, and says when it is not sure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.bench.bench import measure
from cervix_engine.bench.measure import Rate
from cervix_engine.bench.stages import StageName, StageRate, end_to_end
from cervix_engine.bench.steps import Bound, PipelineSteps
from cervix_engine.bench.verdict import Capacities, FreedRun, Verdict, judge
from cervix_engine.run.stream.steps import TileSteps
from engine.bench.planted_steps import Traced
from engine.bench.setups import QUICK, bench_setup, slowed
from engine.run.support import SpyBackend, read_table

STAGES: tuple[StageName, ...] = ("read", "decode", "resize", "copy", "infer", "write")


def _rate(tiles_per_sec: float) -> Rate:
    return Rate(tiles_per_sec, tiles_per_sec, tiles_per_sec, 5, True)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("situation", ["read", "decode", "infer", "write"])
def test_what_was_made_slow_is_what_bounds(tiles: Path, tmp_path: Path, situation: Bound) -> None:
    setup = bench_setup(tiles, tmp_path / "scratch")
    report = measure(setup, slowed(setup, situation), batch_sizes=(1,), meter=QUICK)
    assert report.verdict.stage == situation
    assert report.verdict.confirmed
    assert [check.stage for check in report.verdict.checks] == [situation]
    assert str(report.verdict).startswith("bound by ")


def test_a_suspect_that_freeing_does_not_help_is_passed_over(tiles: Path, tmp_path: Path) -> None:
    setup = bench_setup(tiles, tmp_path / "scratch")
    claimed: dict[StageName, float] = dict.fromkeys(STAGES, 1e6)
    claimed["write"] = 1.0
    claimed["infer"] = 2.0
    stages = [StageRate(stage, 1, _rate(rate)) for stage, rate in claimed.items()]
    steps = slowed(setup, "infer")
    whole = end_to_end(setup, steps, meter=QUICK)
    verdict = judge(setup, steps, stages=stages, whole=whole, meter=QUICK)
    assert (verdict.stage, verdict.confirmed) == ("infer", True)
    assert [check.stage for check in verdict.checks] == ["write", "infer"]


def test_where_no_stage_alone_bounds_the_verdict_says_so(tiles: Path, tmp_path: Path) -> None:
    setup = bench_setup(tiles, tmp_path / "scratch")
    stages = [StageRate(stage, 1, _rate(1e6)) for stage in STAGES]
    verdict = judge(setup, PipelineSteps.real(setup), stages=stages, whole=_rate(1e9), meter=QUICK)
    assert not verdict.confirmed
    assert len(verdict.checks) == 4
    assert str(verdict).startswith("bound by no stage alone: suspected was read")


def _verdict(stage: Bound, capacities: Capacities) -> str:
    return str(Verdict(stage, True, 2850.0, capacities, (FreedRun(stage, _rate(7100.0)),)))


def test_the_sentence_gives_the_figures_and_what_would_lift_them() -> None:
    # 1/(1/29,000 + 1/3,222) = 2,900
    capacities = Capacities(workers=2, read=29_000.0, decode=3222.2222, infer=7400.0, write=60_000.0)
    assert capacities.prepare == pytest.approx(2900)
    assert _verdict("decode", capacities) == (
        "bound by decode: 2 workers sustain 2,900 tiles/s, the model could do 7,400; 6 workers would saturate it; "
        "with that made free, the run goes from 2,850 to 7,100 tiles/s"
    )
    assert _verdict("infer", capacities).startswith(
        "bound by the model: it sustains 7,400 tiles/s, 2 workers could prepare 2,900; "
    )
    assert "writing: it sustains 60,000 tiles/s, the model could do 7,400" in _verdict("write", capacities)


def test_enough_workers_are_those_the_slower_of_model_and_writer_needs() -> None:
    capacities = Capacities(workers=1, read=2000.0, decode=2000.0, infer=50_000.0, write=2500.0)
    assert capacities.workers_to_saturate == 3
    assert "1 worker sustains 1,000 tiles/s, writing could do 2,500; 3 workers would" in _verdict("read", capacities)


@pytest.mark.parametrize(
    ("read", "decode", "infer", "write", "first"),
    [
        (10.0, 20.0, 30.0, 40.0, "read"),
        (20.0, 10.0, 30.0, 40.0, "decode"),
        (50.0, 50.0, 20.0, 40.0, "infer"),
        (90.0, 90.0, 50.0, 40.0, "write"),
    ],
)
def test_suspicion_falls_on_the_slowest(read: float, decode: float, infer: float, write: float, first: str) -> None:
    assert Capacities(1, read, decode, infer, write).slowest_first()[0] == first


def test_a_run_from_files_to_table_writes_the_table(tiles: Path, tmp_path: Path) -> None:
    setup = replace(bench_setup(tiles, tmp_path / "scratch"), passes=2)
    rate = end_to_end(setup, PipelineSteps.real(setup), meter=QUICK)
    assert rate.tiles_per_sec > 0
    rows = read_table(setup.out)
    assert len(rows) == 2 * len(setup.tiles)
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("stage", ["read", "decode", "infer", "write"])
def test_a_stage_that_is_made_free_is_not_done(tiles: Path, tmp_path: Path, stage: Bound) -> None:
    setup, traces = bench_setup(tiles, tmp_path / "scratch"), tmp_path / "traces"
    traces.mkdir()
    real = PipelineSteps.real(setup)
    tile = TileSteps(Traced(real.tile.read, traces / "read"), Traced(real.tile.preprocess_into, traces / "decode"))
    steps = PipelineSteps(tile, SpyBackend(real.backend), Traced(real.write, traces / "write")).without(stage, setup)
    end_to_end(setup, steps, meter=QUICK)
    done = {path.name for path in traces.iterdir()}
    if isinstance(steps.backend, SpyBackend) and steps.backend.digests:
        done.add("infer")
    assert done == {"read", "decode", "infer", "write"} - {stage}
