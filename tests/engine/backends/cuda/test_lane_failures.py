"""Threads and failures: each failure is named, and spoils no other batch."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import InferenceError
from engine.backends.cuda.lane_callers import RUNTIMES, assert_right, drive
from engine.backends.simulated_cuda import CudaError
from engine.backends.simulated_gpu import Machine, opened, pixels_of
from engine.run.support import PATIENCE_S, reference_probabilities

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("call", ["pinned", "begin"])
def test_another_thread_may_use_it_than_loaded_it(bundle: Bundle, runtime: str, call: str) -> None:
    """A run loads on its main thread and infers on another one, which has no CUDA context of its own at first."""
    failures: list[BaseException] = []
    with opened(Machine(), bundle, runtime) as backend:

        def use() -> None:
            try:
                pixels = pixels_of(8)
                with backend.pinned(pixels) if call == "pinned" else nullcontext():
                    assert_right(backend.begin(pixels)(), reference_probabilities(pixels))
            except BaseException as error:  # noqa: BLE001 - for the test to look at
                failures.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join(PATIENCE_S)
    assert failures == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("call", ["copy", "compute", "event"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_every_failure_is_named(bundle: Bundle, runtime: str, call: str, after: int) -> None:
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        backend.infer(pixels_of(9))
        machine.cuda.fail(call, CudaError("CUDA_ERROR_ILLEGAL_ADDRESS: it is said"), after=after)
        with pytest.raises(InferenceError, match=rf"{runtime} failed on a batch of 9: CUDA_ERROR_ILLEGAL_ADDRESS"):
            drive(backend, [(9, False), (9, True)] * 3)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("call", ["copy", "compute"])
@pytest.mark.parametrize("hurry", [0.0, 0.5])
def test_a_failed_batch_leaves_the_others_right(bundle: Bundle, runtime: str, call: str, hurry: float) -> None:
    machine = Machine(hurry=hurry)
    with opened(machine, bundle, runtime) as backend:
        first = backend.begin(pixels_of(9, 1))
        machine.cuda.fail(call, CudaError("CUDA_ERROR_UNKNOWN"))
        with pytest.raises(InferenceError):
            backend.begin(pixels_of(9, 2))
        machine.cuda.heal()
        later = [(backend.begin(pixels_of(9, seed)), pixels_of(9, seed)) for seed in (3, 4, 5)]
        assert_right(first(), reference_probabilities(pixels_of(9, 1)))
        for pending, pixels in later:
            assert_right(pending(), reference_probabilities(pixels))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_leaving_waits_for_what_is_under_way_and_never_fails(bundle: Bundle, runtime: str) -> None:
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        backend.begin(pixels_of(9))
    assert len(machine.computed) == 1
    with opened(machine, bundle, runtime) as backend:
        backend.begin(pixels_of(9))
        machine.cuda.fail("stream", CudaError("CUDA_ERROR_ILLEGAL_ADDRESS"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outside_of_with_it_is_a_mistake(bundle: Bundle, runtime: str) -> None:
    with opened(Machine(), bundle, runtime) as backend:
        pass
    for use in (lambda: backend.infer(pixels_of(1)), lambda: backend.pinned(pixels_of(1))):
        with pytest.raises(RuntimeError, match="outside of `with`"):
            use()


def test_a_context_that_the_engine_does_not_give_is_named(bundle: Bundle) -> None:
    """TensorRT gives none where the device has no memory for it."""
    with (
        pytest.raises(InferenceError, match=r"tensorrt cannot load .*context"),
        opened(Machine(context=False), bundle, "tensorrt"),
    ):
        pass


def test_two_backends_on_one_gpu_do_not_disturb_each_other(bundle: Bundle) -> None:
    machine = Machine()
    with opened(machine, bundle, "tensorrt") as outer, opened(machine, bundle, "onnxruntime-cuda") as inner:
        pending = [backend.begin(pixels_of(9, seed)) for seed, backend in enumerate((outer, inner) * 4)]
        for seed, fetch in enumerate(pending):
            assert_right(fetch(), reference_probabilities(pixels_of(9, seed)))
