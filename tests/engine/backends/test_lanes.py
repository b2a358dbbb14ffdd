"""Batches under way on a GPU answer as they would one by one, whatever is begun and fetched in between.

Right means: each answer is that of the batch's own pixels, though slots are scribbled over as soon as that is allowed.
The GPU is simulated, see `simulated_cuda.py`: whatever may go wrong with the order of its work does go wrong there.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.backends import Backend
from cervix_engine.backends.base import Pending
from cervix_engine.backends.cuda.lanes import GRAPHED_TILES, IN_FLIGHT
from cervix_engine.backends.cuda.pinned import _PINNED
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import InferenceError
from cervix_engine.values import Pixels
from engine.backends.simulated_cuda import Capture, CudaError
from engine.backends.simulated_gpu import ON_GPU, Machine, a10s, make_engine_bundle, opened, pixels_of
from engine.run.support import CONTRACT, PATIENCE_S, reference_probabilities

pytestmark = pytest.mark.timeout(300)

RUNTIMES = sorted(ON_GPU)
# On both sides of where graphs end, and the largest that the engine takes.
SIZES = (1, 3, GRAPHED_TILES, GRAPHED_TILES + 1, 32)
FETCH = "fetch"

Begin = tuple[int, bool]  # so many tiles; whether they lie in page-locked memory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_engine_bundle(tmp_path_factory.mktemp("lanes") / "bundle")


@pytest.fixture(autouse=True)
def no_memory_stays_pinned() -> Iterator[None]:
    yield
    assert len(_PINNED) == 0


def assert_right(answers: Any, expected: Any) -> None:
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@contextmanager
def slot_of(backend: Backend, tiles: int = 8) -> Iterator[Pixels]:
    """Page-locked memory for a batch, as a stream's slots have it."""
    pixels = np.zeros((tiles, *CONTRACT.input_size, 3), np.uint8)
    with backend.pinned(pixels):
        yield pixels


class Caller:
    """Begins and fetches batches as the protocol allows, in memory that it uses again as soon as it may."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._begun: deque[tuple[Pending, Any, Begin, Pixels]] = deque()
        self._free: dict[Begin, list[Pixels]] = {}
        self._answered: list[tuple[Any, Any]] = []
        self._slots = ExitStack()
        self._seed = 0

    def begin(self, kind: Begin) -> None:
        self._seed += 1
        free = self._free.get(kind) or [self._array(*kind)]
        pixels = free.pop()
        pixels[...] = pixels_of(kind[0], self._seed)
        expected = reference_probabilities(pixels)
        self._begun.append((self._backend.begin(pixels, batch=self._seed), expected, kind, pixels))

    def fetch(self) -> None:
        if self._begun:
            pending, expected, kind, pixels = self._begun.popleft()
            answers = pending()
            assert_right(answers, expected)
            pixels[...] = 0xEE
            self._free.setdefault(kind, []).append(pixels)
            self._answered.append((answers, expected))

    def end(self) -> None:
        while self._begun:
            self.fetch()
        self._slots.close()
        for answers, expected in self._answered:  # which belong to the caller
            assert_right(answers, expected)

    def _array(self, tiles: int, pinned: bool) -> Pixels:
        if pinned:
            return self._slots.enter_context(slot_of(self._backend, tiles))
        return np.zeros((tiles, *CONTRACT.input_size, 3), np.uint8)


def drive(backend: Backend, steps: Sequence[Begin | str]) -> None:
    caller = Caller(backend)
    for step in steps:
        if isinstance(step, tuple):
            caller.begin(step)
        else:
            caller.fetch()
    caller.end()


STEPS = st.lists(
    st.one_of(st.just(FETCH), st.tuples(st.sampled_from((8, 8, 8, *SIZES)), st.booleans())), min_size=1, max_size=14
)


@pytest.mark.parametrize("runtime", RUNTIMES)
@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS,
    hurry=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 999),
    capture=st.sampled_from(["works", "refused", "broken"]),
    gpus=st.sampled_from([1, 1, 2, 3]),
)
def test_any_order_that_is_allowed_answers_right(
    bundle: Bundle, runtime: str, steps: list[Any], hurry: float, seed: int, capture: Capture, gpus: int
) -> None:
    machine = Machine(a10s(gpus), hurry=hurry, seed=seed, capture=capture)
    device = f"cuda:{','.join(map(str, range(gpus)))}"
    with opened(machine, bundle, runtime, device=device) as backend:
        assert backend.in_flight == gpus * IN_FLIGHT
        drive(backend, steps)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("hurry", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pinned", [False, True])
def test_more_batches_than_lanes_may_be_begun(bundle: Bundle, runtime: str, hurry: float, pinned: bool) -> None:
    with opened(Machine(hurry=hurry), bundle, runtime) as backend:
        drive(backend, [(8, pinned)] * (3 * IN_FLIGHT + 1))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("hurry", [0.0, 0.5, 1.0])
def test_the_size_may_change_while_batches_are_under_way(bundle: Bundle, runtime: str, hurry: float) -> None:
    with opened(Machine(hurry=hurry), bundle, runtime) as backend:
        drive(backend, [(size, pinned) for size in (*SIZES, *SIZES[::-1]) for pinned in (True, False)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_is_waited_for_while_there_is_a_free_lane(bundle: Bundle, runtime: str) -> None:
    """Else nothing would overlap: on a machine in no hurry, only a wait computes anything."""
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        backend.infer(pixels_of(9))
        before = len(machine.computed)
        pending = [backend.begin(pixels_of(9, seed)) for seed in range(IN_FLIGHT)]
        assert len(machine.computed) == before
        pending[0]()
        assert len(machine.computed) == before + 1
        pending[1]()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_may_be_fetched_again(bundle: Bundle, runtime: str) -> None:
    with opened(Machine(), bundle, runtime) as backend:
        first = backend.begin(pixels_of(8, 1))
        kept = first().copy()
        for seed in range(4):
            backend.infer(pixels_of(8, seed))
        np.testing.assert_array_equal(first(), kept)


# ---- memory


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


# ---- graphs


@pytest.mark.parametrize(("tiles", "graphs"), [(1, 2), (GRAPHED_TILES, 2), (GRAPHED_TILES + 1, 0), (32, 0)])
def test_small_batches_are_one_call(bundle: Bundle, tiles: int, graphs: int) -> None:
    machine = Machine()
    with opened(machine, bundle, "tensorrt") as backend:
        drive(backend, [(tiles, True)] * 5)
    assert machine.cuda.graphs == graphs


@pytest.mark.parametrize("capture", ["refused", "broken"])
@pytest.mark.parametrize("hurry", [0.0, 1.0])
def test_what_cannot_be_captured_is_run_as_it_is(bundle: Bundle, capture: Capture, hurry: float) -> None:
    machine = Machine(capture=capture, hurry=hurry)
    with opened(machine, bundle, "tensorrt") as backend:
        drive(backend, [(4, True), (4, False), (2, True), (4, True), FETCH, (4, False)])
    assert machine.cuda.graphs == 0


def test_graphs_of_two_sizes_do_not_mix(bundle: Bundle) -> None:
    machine = Machine()
    with opened(machine, bundle, "tensorrt") as backend:
        drive(backend, [(2, True), (4, True), (2, False), (2, False), (4, True), (4, False), (9, True), (2, True)])


# ---- threads and failures


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
