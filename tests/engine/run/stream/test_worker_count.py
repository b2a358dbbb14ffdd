"""The number of decode workers, on a clock of the test's own: the least that keep up, and all where all are needed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.run.stream.worker_count import OBSERVED_S, WorkerCount, enough_workers
from engine.run.support import Invoke

Load = Callable[[int], float]


def settle(count: WorkerCount, in_use: Load, *, seconds: float, since: float = 0.0) -> int:
    """Observe workers of which `in_use(limit)` have something to do on average; how many are left in the end."""
    chance = random.Random(7)
    for step in range(round(100 * seconds) + 1):
        busy = in_use(count.limit)
        whole = int(busy)
        count.observe(whole + (chance.random() < busy - whole), since + step / 100)
    return count.limit


@pytest.mark.parametrize(
    ("in_use", "most", "enough"),
    [(0.02, 16, 1), (0.9, 16, 2), (7.0, 16, 9), (16.0, 16, 16), (2.0, 2, 2), (0.0, 1, 1), (0.0, 4, 1)],
)
def test_a_quarter_more_than_are_in_use_are_enough(in_use: float, most: int, enough: int) -> None:
    assert enough_workers(in_use, most=most) == enough


@pytest.mark.parametrize("needed", [0.1, 1.0, 3.3, 9.0])
def test_those_that_the_model_does_not_need_are_let_go_within_two_seconds(needed: float) -> None:
    count = WorkerCount(16, chosen=True)
    left = settle(count, lambda limit: min(limit, needed), seconds=2.0)
    assert needed <= left <= 1.25 * needed + 2


def test_where_decoding_bounds_all_of_them_are_kept() -> None:
    assert settle(WorkerCount(16, chosen=True), lambda limit: limit, seconds=10.0) == 16


def test_they_come_back_where_tiles_become_larger() -> None:
    count = WorkerCount(16, chosen=True)
    assert settle(count, lambda _: 0.5, seconds=2.0) == 1
    assert settle(count, lambda limit: limit, since=2.0, seconds=10 * OBSERVED_S) >= 10


def test_a_number_that_was_asked_for_stays() -> None:
    assert settle(WorkerCount(8), lambda _: 0.1, seconds=5.0) == 8


def settle_on_cores(count: WorkerCount, *, cores: int, idle: float, since: float = 0.0) -> int:
    """The same of workers that are on `cores` in turns, where a tile waits `idle` seconds for each second on a core."""
    for step in range(501):
        at_work = min(cores, count.limit / (1 + idle))
        count.worked(cpu_s=at_work / 100, idle_s=at_work * idle / 100)
        count.observe(count.limit, since + step / 100)
    return count.limit


def test_of_a_number_that_was_asked_for_a_few_more_than_the_cores_work_where_all_wait_for_a_core() -> None:
    assert settle_on_cores(WorkerCount(16, cores=2), cores=2, idle=0) == 3
    assert settle_on_cores(WorkerCount(2, cores=2), cores=2, idle=0) == 2
    assert settle_on_cores(WorkerCount(1, cores=2), cores=2, idle=0) == 1


@pytest.mark.parametrize(("idle", "left"), [(0.6, 4), (2.9, 10), (50.0, 16)])
def test_of_those_that_wait_for_a_server_as_many_work_as_keep_the_cores_busy(idle: float, left: int) -> None:
    assert settle_on_cores(WorkerCount(16, cores=2), cores=2, idle=idle) == left


def test_they_come_back_where_tiles_lie_further_away() -> None:
    count = WorkerCount(16, cores=2)
    assert settle_on_cores(count, cores=2, idle=0) == 3
    assert settle_on_cores(count, cores=2, idle=50.0, since=6.0) == 16


def test_no_more_are_kept_than_the_machine_allows() -> None:
    count = WorkerCount(16, chosen=True)
    count.cap(3)
    assert count.limit == 3
    assert settle(count, lambda limit: limit, seconds=5.0) == 3


@pytest.mark.parametrize(("option", "most"), [((), 64), (("-j", "auto"), 64), (("-j", "1"), 1)])
def test_the_number_is_said_in_the_run_s_record(invoke: Invoke, out: Path, option: tuple[str, ...], most: int) -> None:
    done = invoke(*option)
    assert done.exit_code == 0
    (decode,) = [stage for stage in RunRecord.load(record_beside(out)).stages if stage.stage == "decode"]
    assert 1 <= decode.threads <= most
    assert f"{decode.threads} worker" in done.stderr
