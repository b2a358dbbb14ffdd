"""Batches under way on a GPU answer as they would one by one, whatever is begun and fetched in between.

Right means: each answer is that of the batch's own pixels, though slots are scribbled over as soon as that is allowed.
The GPU is simulated, see `simulated_cuda.py`: whatever may go wrong with the order of its work does go wrong there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.backends.cuda.lanes import GRAPHED_TILES, IN_FLIGHT
from cervix_engine.bundle.bundle import Bundle
from engine.backends.cuda.lane_callers import RUNTIMES, drive
from engine.backends.simulated_cuda import Capture
from engine.backends.simulated_gpu import Machine, a10s, opened, pixels_of

pytestmark = pytest.mark.timeout(300)
# On both sides of where graphs end, and the largest that the engine takes.
SIZES = (1, 3, GRAPHED_TILES, GRAPHED_TILES + 1, 32)
FETCH = "fetch"
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
