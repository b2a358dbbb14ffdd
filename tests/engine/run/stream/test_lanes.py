"""Tiles that share what is read for them go to the same worker, and no worker waits for that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bench.free_steps import already_filled, nothing
from cervix_engine.run.stream.decode_pool import first_of_own
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.sources.folder import Folder
from engine.run.support import CONTRACT, refs


def test_each_worker_takes_the_first_of_its_own_lanes() -> None:
    waiting = [3, 1, 2, 0]
    assert [first_of_own(waiting, worker, workers=2) for worker in range(2)] == [2, 0]
    assert [first_of_own(waiting, worker, workers=4) for worker in range(4)] == [3, 1, 2, 0]
    assert first_of_own([1, 3], 0, workers=2) is None
    assert first_of_own([], 0, workers=1) is None


def test_what_shares_nothing_goes_to_whoever_comes() -> None:
    assert [first_of_own([None, None], worker, workers=8) for worker in range(8)] == [0] * 8


class OneLane(Folder):
    """All of its tiles are for the first of several workers: the others look through everything that waits."""

    def lane(self, path: str) -> int:  # type: ignore[override]
        return 0


@pytest.mark.timeout(60)
def test_batches_come_while_chunks_are_handed_out() -> None:
    tiles = refs([str(index) for index in range(20_000)])
    settings = StreamSettings(OneLane(Path("none")), CONTRACT, batch_size=8, workers=8)
    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        results = stream(
            batches_of(tiles, 8),
            backend=FakeBackend(),
            settings=settings,
            stats=StreamStats(),
            steps=TileSteps(nothing, already_filled),
        )
        assert sum(len(result.outcomes) for result in results) == len(tiles)
    finally:
        sys.setswitchinterval(switched)
