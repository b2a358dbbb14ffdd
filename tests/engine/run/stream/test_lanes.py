"""Tiles that share what is read for them go to the same worker, and no worker waits for that."""

from __future__ import annotations

from cervix_engine.run.stream.decode_pool import first_of_own


def test_each_worker_takes_the_first_of_its_own_lanes() -> None:
    waiting = [3, 1, 2, 0]
    assert [first_of_own(waiting, worker, workers=2) for worker in range(2)] == [2, 0]
    assert [first_of_own(waiting, worker, workers=4) for worker in range(4)] == [3, 1, 2, 0]
    assert first_of_own([1, 3], 0, workers=2) is None
    assert first_of_own([], 0, workers=1) is None


def test_what_shares_nothing_goes_to_whoever_comes() -> None:
    assert [first_of_own([None, None], worker, workers=8) for worker in range(8)] == [0] * 8
