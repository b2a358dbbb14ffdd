"""Whatever ends a run early, the next one completes the same table, and computes only what is missing.

"The same" is always the same bytes as an undisturbed run's.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cervix_engine.errors import InferenceError
from cervix_engine.run.record import RunRecord
from cervix_engine.run.shards import ShardSize
from cervix_engine.run.transaction import State, TableTransaction
from cervix_engine.run.verify import verify_table
from engine.run.resume.stopped_run import BATCH, BATCHES, BATCHES_A_SHARD, SHARD, TILES, Run, assert_finished
from engine.run.support import draw_folder, threads_end

pytestmark = pytest.mark.timeout(300)


def test_an_undisturbed_run(run: Run, undisturbed: bytes) -> None:
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES
    assert report.resumed == 0
    assert RunRecord.load(run.config.record_path) == report


# ---- an error of the backend


@pytest.mark.parametrize("at", [0, 1, 2, 3, 12, 13, 23, 24])
def test_a_failed_run_goes_on_where_it_stopped(run: Run, undisturbed: bytes, at: int) -> None:
    run.interrupt(at)
    assert not run.out.exists()
    stored = run.stored
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES - stored
    assert report.resumed == min(TILES, stored * BATCH)


def test_what_was_computed_before_a_failure_is_kept(run: Run) -> None:
    run.interrupt(13)
    assert run.stored == 13


def test_a_run_that_fails_again_and_again_gets_there(run: Run, undisturbed: bytes) -> None:
    total = 0
    for _ in range(60):
        try:
            run(fail={6: InferenceError("out of memory")})
        except InferenceError:
            total += run.computed
            continue
        break
    assert_finished(run, undisturbed)
    assert total + run.computed <= 3 * BATCHES


def test_a_keyboard_interrupt_keeps_what_was_done(run: Run, undisturbed: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(fail={13: KeyboardInterrupt()})
    assert len(run.shards()) >= 3
    run()
    assert_finished(run, undisturbed)


def test_a_failing_listener_stops_the_run_resumably(run: Run, undisturbed: bytes) -> None:
    def progress(done: int, found: int) -> None:
        if done >= 20:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(progress=progress)
    assert threads_end()
    assert run.stored == 10  # also the one batch that fills no shard
    run()
    assert_finished(run, undisturbed)


# ---- how much is computed again


@pytest.mark.parametrize("missing", [0, 1, 4, 8, 9])
def test_only_missing_batches_are_computed(run: Run, undisturbed: bytes, missing: int) -> None:
    run.stop_before_the_commit()
    assert len(run.shards()) == 9
    firsts = [*range(0, 25, 3)]
    scattered = (firsts[1::2] + firsts[::2])[:missing]
    for first in scattered:
        (run.folder / f"shard-{first:09d}.csv").unlink()
    lost = sum(min(BATCHES_A_SHARD, BATCHES - first) for first in scattered)
    report = run()
    assert_finished(run, undisturbed)
    assert run.computed == lost
    assert report.resumed == TILES - lost * BATCH


@pytest.mark.parametrize("percent_left", [90, 75, 50, 25, 10, 0])
def test_what_is_computed_again_is_what_is_missing(run: Run, percent_left: int, tmp_path: Path) -> None:
    run.shard = ShardSize(BATCH)
    tiles = draw_folder(tmp_path / "forty", 40)  # 20 batches, a shard each
    run(tiles=tiles)
    expected = run.out.read_bytes()
    run.out.unlink()
    run.stop_before_the_commit(tiles=tiles)
    missing = 20 - 20 * percent_left // 100
    for shard in random.Random(percent_left).sample(run.shards(), missing):
        shard.unlink()
    report = run(tiles=tiles)
    assert run.out.read_bytes() == expected
    assert run.computed == missing
    assert report.resumed == 40 - missing * BATCH


def test_a_gap_ends_a_shard(run: Run, undisturbed: bytes) -> None:
    run.stop_before_the_commit()
    for first in (3, 9, 12, 24):
        (run.folder / f"shard-{first:09d}.csv").unlink()
    run.shard = ShardSize(1000)
    run.stop_before_the_commit()
    again = [(entry["first_batch"], entry["batches"]) for entry in run.entries() if "batches" in entry][9:]
    assert again == [(3, 3), (9, 6), (24, 1)]
    run()
    assert_finished(run, undisturbed)


def test_a_damaged_shard_is_computed_again(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    stored = run.stored
    data = bytearray(run.shards()[1].read_bytes())
    data[len(data) // 2] ^= 1
    run.shards()[1].write_bytes(data)
    run.shards()[2].write_bytes(run.shards()[2].read_bytes()[:-1])
    run()
    assert_finished(run, undisturbed)
    assert run.computed == BATCHES - stored + 2 * BATCHES_A_SHARD


def test_a_shard_that_was_swapped_for_another_is_computed_again(run: Run, undisturbed: bytes) -> None:
    run.interrupt()
    first, second = run.shards()[:2]
    first.write_bytes(second.read_bytes())
    run()
    assert_finished(run, undisturbed)


def test_shards_are_closed_by_time_too(run: Run, undisturbed: bytes) -> None:
    run.shard = ShardSize(SHARD, seconds=0.0)
    run.interrupt(10)
    assert [entry["batches"] for entry in run.entries()[1:]] == [1] * run.stored
    run()
    assert_finished(run, undisturbed)


def test_the_same_table_in_its_place_is_not_taken_for_the_new_one(run: Run, undisturbed: bytes) -> None:
    run()
    run.stop_before_the_commit(overwrite=True)
    assert TableTransaction(run.out).load() is State.ASSEMBLED
    report = run(overwrite=True)
    assert_finished(run, undisturbed)
    assert (run.computed, report.resumed) == (0, TILES)
    assert RunRecord.load(run.config.record_path) == report
    assert verify_table(run.out) == []
