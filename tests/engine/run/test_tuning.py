"""The automatic batch size, on a clock that only the fake model moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import DeviceMemoryError, InferenceError
from cervix_engine.machine import usable_cpus
from cervix_engine.run import tuning
from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.run.session import Chosen
from cervix_engine.run.tuning import (
    BATCH_SIZES,
    WORKER_BYTES,
    choose_batch_size,
    require_memory,
    require_memory_to_load,
    smallest_as_fast,
    tune,
)
from cervix_engine.values import Pixels, Probabilities
from engine.run.support import CONTRACT, Invoke, drawn_tile, run_setup

SAMPLE = [drawn_tile(seed) for seed in range(6)]


class TimedBackend(FakeBackend):
    """Takes a fixed time a batch plus one a tile, on its own clock; fails above a batch size."""

    def __init__(self, *, batch_s: float, tile_s: float, largest: int = 4096) -> None:
        super().__init__()
        self.now = 0.0
        self.seen: list[int] = []
        self._batch_s, self._tile_s, self._largest = batch_s, tile_s, largest

    def infer(self, pixels: Pixels) -> Probabilities:
        if len(pixels) > self._largest:
            raise InferenceError("out of memory")
        self.now += self._batch_s + self._tile_s * len(pixels)
        self.seen.append(len(pixels))
        return super().infer(pixels)

    def clock(self) -> float:
        self.now += 1e-6  # decoding takes some time too
        return self.now


def test_the_smallest_batch_that_is_as_fast_is_taken() -> None:
    backend = TimedBackend(batch_s=0.001, tile_s=0.001)
    # 1000·B/(B + 1) tiles/s: 256 gives 996, 32 gives 970, which is 97.3 % of it, and 16 only 941.
    assert tune(backend, SAMPLE, contract=CONTRACT, clock=backend.clock) == 32


def test_a_model_that_gains_nothing_runs_tile_by_tile() -> None:
    backend = TimedBackend(batch_s=0.0, tile_s=0.001)
    assert tune(backend, SAMPLE, contract=CONTRACT, clock=backend.clock) == 1


def test_larger_batches_are_not_tried_when_the_time_is_spent() -> None:
    backend = TimedBackend(batch_s=0.1, tile_s=0.05)
    tune(backend, SAMPLE, contract=CONTRACT, budget_s=5.0, clock=backend.clock)
    assert max(backend.seen) < max(BATCH_SIZES)
    assert backend.now < 2 * 5.0


def test_a_batch_that_does_not_fit_ends_the_search() -> None:
    backend = TimedBackend(batch_s=0.01, tile_s=0.0001, largest=8)
    assert tune(backend, SAMPLE, contract=CONTRACT, clock=backend.clock) == 8


def test_a_model_that_fails_on_one_tile_is_no_model() -> None:
    backend = TimedBackend(batch_s=0.01, tile_s=0.0001, largest=0)
    with pytest.raises(InferenceError):
        tune(backend, SAMPLE, contract=CONTRACT, clock=backend.clock)


@pytest.mark.parametrize(("sample", "message"), [([], "no tile"), ([b"no image"], "no tile")])
def test_a_sample_without_a_tile_is_refused(sample: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(FakeBackend(), sample, contract=CONTRACT)


def test_a_broken_tile_among_good_ones_is_passed_over() -> None:
    backend = TimedBackend(batch_s=0.01, tile_s=0.0001)
    assert tune(backend, [b"no image", *SAMPLE], contract=CONTRACT, clock=backend.clock) > 1


@pytest.mark.parametrize(("rates", "size"), [({1: 1.0}, 1), ({1: 5.0, 2: 10.0, 4: 10.2}, 2), ({1: 9.0, 2: 3.0}, 1)])
def test_noise_does_not_choose_a_larger_batch(rates: Mapping[int, float], size: int) -> None:
    assert smallest_as_fast(dict(rates)) == size


# ---- in a run


class SmallBackend(FakeBackend):
    """Is the faster, the larger its batches are, up to those of `largest` tiles."""

    def __init__(self, largest: int) -> None:
        super().__init__(seconds_per_batch=0.01)
        self._largest = largest

    def infer(self, pixels: Pixels) -> Probabilities:
        if len(pixels) > self._largest:
            raise InferenceError("out of memory")
        return super().infer(pixels)


def test_an_automatic_batch_size_is_decided_once(invoke: Invoke, out: Path, fake_bundle: Bundle) -> None:
    model = fake_bundle.root
    small = run_setup(choose=lambda _: Chosen(SmallBackend(4)), stop_at="assemble")
    large = run_setup(choose=lambda _: Chosen(SmallBackend(64)))
    assert invoke("-b", "auto", setup=small, model=model).exit_code == 130
    assert invoke("-b", "auto", setup=large, model=model).exit_code == 0
    assert RunRecord.load(record_beside(out)).batch_size == 4
    automatic = out.read_bytes()
    assert invoke("-b", "auto", "--overwrite", setup=large, model=model).exit_code == 0
    assert RunRecord.load(record_beside(out)).batch_size > 4
    assert invoke("-b", "4", "--overwrite", setup=large, model=model).exit_code == 0
    assert out.read_bytes() == automatic


def test_it_is_measured_on_the_run_s_own_tiles(invoke: Invoke, out: Path) -> None:
    assert invoke("-b", "auto").exit_code == 0
    assert RunRecord.load(record_beside(out)).batch_size in tuning.BATCH_SIZES


def test_with_no_tile_to_measure_the_usual_size_is_taken(invoke: Invoke, out: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    assert invoke("-b", "auto", tiles=tmp_path / "broken").exit_code == 3
    assert RunRecord.load(record_beside(out)).batch_size == tuning.DEFAULT_BATCH_SIZE


def test_what_is_given_is_not_measured() -> None:
    def sample() -> list[bytes]:
        pytest.fail("measured in vain")

    assert choose_batch_size(FakeBackend(), sample, contract=CONTRACT, asked=5) == 5
    assert choose_batch_size(FakeBackend(), sample, contract=CONTRACT, asked=None) == tuning.DEFAULT_BATCH_SIZE


def test_an_engines_usual_batch_is_taken_unless_told_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    def size(asked: int | None, usual: int | None) -> int:
        return choose_batch_size(FakeBackend(), list, contract=CONTRACT, asked=asked, usual=usual)

    with caplog.at_level("INFO"):
        assert (size(None, 256), size(5, 256), size(None, None)) == (256, 5, tuning.DEFAULT_BATCH_SIZE)
    assert [record.getMessage() for record in caplog.records] == [
        "batches of 256 tiles: the engine's usual size",
        "batches of 5 tiles: as asked",
        f"batches of {tuning.DEFAULT_BATCH_SIZE} tiles: the default",
    ]


class GrowingBackend(FakeBackend):
    """Takes 10 MB of a control group's memory for each tile of the largest batch so far."""

    def __init__(self, left: float) -> None:
        super().__init__()
        self.seen: list[int] = []
        self._left = left

    def left(self) -> float:
        return self._left - 10e6 * max(self.seen, default=0)

    def infer(self, pixels: Pixels) -> Probabilities:
        self.seen.append(len(pixels))
        return super().infer(pixels)


def test_a_batch_that_the_control_group_cannot_hold_is_refused_with_one_that_it_can() -> None:
    backend = GrowingBackend(left=60e6 + 1.25 * (150e6 + usable_cpus() * WORKER_BYTES))
    message = r"a batch of 32 tiles takes about 320 MB, .* choose --batch-size 16, or give it more memory"
    with pytest.raises(DeviceMemoryError, match=message):
        require_memory(backend, 32, contract=CONTRACT, left=backend.left)
    assert max(backend.seen) < 32, "what does not fit was tried"
    require_memory(backend, 16, contract=CONTRACT, left=backend.left)


def test_nothing_is_measured_where_much_memory_is_left() -> None:
    backend = GrowingBackend(left=5e9)
    require_memory(backend, 512, contract=CONTRACT, left=backend.left)
    assert backend.seen == []


def test_a_model_that_the_control_group_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(2_000_000))
    with pytest.raises(DeviceMemoryError, match=r"loading the model takes about 6 MB, .* has 5 MB left"):
        require_memory_to_load(tmp_path / "model.onnx", left=lambda: 5e6)
    require_memory_to_load(tmp_path / "model.onnx", left=lambda: 7e6)
