"""How fast a device is shows in the times at which its answers come, also where it mostly waits for decoding."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.backends.base import Pending
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.run.stream.inference import DevicePace
from cervix_engine.run.stream.stats import StageClock, StageStats, StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.values import Pixels, Probabilities
from engine.bench.planted_steps import SLOW_S, slow_decode
from engine.run.stream.test_stream import listed
from engine.run.support import CONTRACT, refs

# Long beside what a busy machine takes to wake a thread.
BATCH, BATCH_S = 40, 0.064


class TimedDevice(FakeBackend):
    """Takes a set time for a batch, one after the other, while the host does something else."""

    in_flight = 2

    def __init__(self) -> None:
        super().__init__()
        self._free_at = 0.0

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        done_at = self._free_at = max(time.perf_counter(), self._free_at) + BATCH_S

        def fetch() -> Probabilities:
            time.sleep(max(0.0, done_at - time.perf_counter()))
            return np.full((len(pixels), 5), 0.2, np.float32)

        return fetch


def infer_stage(root: Path, steps: TileSteps, *, workers: int) -> StageStats:
    stats, settings = StreamStats(), StreamSettings(Folder(root), CONTRACT, BATCH, workers)
    tiles = refs([tile.path for tile in listed(root)] * 4)
    results = stream(batches_of(tiles, BATCH), backend=TimedDevice(), settings=settings, stats=stats, steps=steps)
    assert sum(len(result.outcomes) for result in results) == len(tiles)
    return {stage.stage: stage for stage in stats.stages()}["infer"]


def test_a_device_that_waits_for_decoding_is_known_by_its_first_batches(tiles: Path) -> None:
    """One worker takes 160 ms for a batch, the device 64: what it could do is not what it does."""
    assert BATCH * SLOW_S > 2 * BATCH_S
    infer = infer_stage(tiles, TileSteps(preprocess_into=slow_decode), workers=1)
    # By the time in which this process waited for it, it would have no limit.
    assert 0 < infer.tiles_per_sec < 1.1 * BATCH / BATCH_S
    assert infer.busy_share < 1


def test_a_device_that_bounds_the_run_does_what_it_can(tiles: Path) -> None:
    infer = infer_stage(tiles, TileSteps(), workers=2)
    assert 0 < infer.tiles_per_sec < 1.1 * BATCH / BATCH_S


def paced(*fetches: tuple[float, float, int]) -> float:
    """The stage's busy seconds after fetches of one tile each: asked, got, and how many more were under way."""
    pace, clock = DevicePace(), StageClock("infer", busy_s=9.0, tiles=len(fetches))
    for asked, got, others in fetches:
        pace.fetched(1, asked, got, others=others)
    pace.tell(clock)
    return clock.busy_s


def test_only_times_in_which_nothing_but_the_device_was_waited_for_count() -> None:
    assert paced((0.0, 1.0, 1), (1.0, 3.0, 1), (3.1, 5.0, 0)) == pytest.approx(3 * 2.0)
    assert paced((0.0, 1.0, 1), (1.0, 3.0, 1), (8.0, 8.0, 1)) == pytest.approx(3 * 2.0), "the third was long ready"
    assert paced((0.0, 1.0, 0), (1.0, 3.0, 0)) == 9.0, "the device had nothing to do in between, so nothing is known"
