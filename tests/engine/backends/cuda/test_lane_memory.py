"""Pinned and device memory of lanes is used where it lies, and freed when nothing uses it any more."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cervix_engine.backends.cuda.lanes import IN_FLIGHT
from cervix_engine.bundle.bundle import Bundle
from engine.backends.cuda.lane_callers import RUNTIMES, assert_right, drive, slot_of
from engine.backends.simulated_cuda import CudaError
from engine.backends.simulated_gpu import Machine, opened, pixels_of
from engine.run.support import reference_probabilities

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_slot_is_copied_from_where_it_lies(bundle: Bundle, runtime: str) -> None:
    """A copy into other pinned memory would show the pixels of now, not of when the device copies."""
    with opened(Machine(), bundle, runtime) as backend, slot_of(backend) as slot:
        pending = backend.begin(slot)
        slot[...] = pixels_of(8, 1)  # which nobody may do
        assert_right(pending(), reference_probabilities(slot))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("part", ["the first tiles", "the last tiles", "every other tile", "backwards", "mirrored"])
def test_a_part_of_pinned_memory_is_a_batch_of_its_own(bundle: Bundle, runtime: str, part: str) -> None:
    with opened(Machine(), bundle, runtime) as backend, slot_of(backend) as slot:
        slot[...] = pixels_of(8, 1)
        pixels = {
            "the first tiles": slot[:4],
            "the last tiles": slot[4:],
            "every other tile": slot[::2],
            "backwards": slot[::-1],
            "mirrored": slot.transpose(0, 2, 1, 3),  # at the slot's address, and of its size
        }[part]
        expected = reference_probabilities(pixels.copy())
        assert_right(backend.infer(pixels), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_pinned_by_one_backend_serves_another_one(bundle: Bundle, runtime: str) -> None:
    machine = Machine()
    with (
        opened(machine, bundle, runtime) as first,
        opened(machine, bundle, runtime) as second,
        slot_of(first) as slot,
    ):
        slot[...] = pixels_of(8, 1)
        assert_right(second.infer(slot), reference_probabilities(slot))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_is_unpinned_only_when_nothing_is_copied_from_it(bundle: Bundle, runtime: str) -> None:
    """A stream that fails leaves its slots while the device may still be about to copy from them."""
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        backend.infer(pixels_of(8))
        before = len(machine.computed)
        with slot_of(backend) as slot:
            slot[...] = pixels_of(8, 1)
            pending = backend.begin(slot)
            assert len(machine.computed) == before
        assert len(machine.computed) == before + 1
        assert machine.cuda.registered == {}
        assert_right(pending(), reference_probabilities(pixels_of(8, 1)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_may_be_unpinned_after_the_model_was_freed(bundle: Bundle, runtime: str) -> None:
    """An abandoned thread ends when it ends."""
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        pinned = backend.pinned(np.zeros((8, 32, 32, 3), np.uint8))
        pinned.__enter__()
    pinned.__exit__(None, None, None)
    assert machine.cuda.registered == {}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_that_cannot_be_pinned_is_copied(bundle: Bundle, runtime: str, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.cuda.fail("pinned", CudaError("CUDA_ERROR_INVALID_VALUE"), after=2 * IN_FLIGHT)
    with opened(machine, bundle, runtime) as backend:
        drive(backend, [(8, False)])
        with slot_of(backend) as slot:
            assert "0 MB cannot be page-locked" in caplog.text
            slot[...] = pixels_of(8, 1)
            pending = backend.begin(slot)
            expected = reference_probabilities(slot)
            slot[...] = 0
            assert_right(pending(), expected)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Where memory must be free at once, it must not depend on when Python looks for cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("fetched", [True, False])
def test_with_frees_the_device(bundle: Bundle, runtime: str, fetched: bool) -> None:
    machine = Machine()
    with no_garbage_collection():
        with opened(machine, bundle, runtime) as backend:
            pending = backend.begin(pixels_of(8))
            if fetched:
                pending()
            del pending
        assert machine.cuda.used_bytes == [0]
        assert machine.cuda.pinned_bytes == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_size_frees_what_the_last_one_took(bundle: Bundle, runtime: str) -> None:
    machine = Machine()
    with no_garbage_collection(), opened(machine, bundle, runtime) as backend:
        backend.infer(pixels_of(32))
        large = machine.cuda.used_bytes[0], machine.cuda.pinned_bytes
        backend.infer(pixels_of(4))
        small = machine.cuda.used_bytes[0], machine.cuda.pinned_bytes
        backend.infer(pixels_of(32))
        assert (machine.cuda.used_bytes[0], machine.cuda.pinned_bytes) == large
        assert small[0] * 8 == large[0]
