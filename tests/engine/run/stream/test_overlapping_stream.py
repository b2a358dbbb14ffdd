"""A stream over a backend that has several batches under way equals the plain loop too, and stops as cleanly.

The backend here looks at a batch's pixels only when its answers are fetched, which is as late as the protocol allows;
so a slot that is filled again too early, or answers that are fetched in another order, show as other rows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.backends.base import Pending
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.errors import InferenceError
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileFailure
from cervix_engine.values import Pixels, Probabilities
from engine.backends.simulated_gpu import ON_GPU, Machine, a10s, make_engine_bundle, opened
from engine.run.stream.test_stream import listed, mixed, outcomes_of, results_of, until
from engine.run.support import CONTRACT, PATIENCE_S, cervix_threads, drawn_tile, plain_outcomes, refs, threads_end

__all__ = ["mixed"]

pytestmark = pytest.mark.timeout(300)


class Overlapping(FakeBackend):
    """Computes a batch when its answers are fetched, and insists on the protocol.

    Attributes:
        numbers: of the batches that were begun, in order.
        most: how many were under way at once.
        buffers: the addresses of the arrays that were seen.
        pinned_at: the addresses of the memory that they must lie in.
    """

    def __init__(self, in_flight: int, *, fail_begin: int | None = None, fail_fetch: int | None = None) -> None:
        super().__init__()
        self.in_flight = in_flight
        self.numbers: list[int] = []
        self.most = 0
        self.buffers: set[int] = set()
        self.pinned_at = range(0)
        self._begun: deque[int] = deque()
        self._fail_begin, self._fail_fetch = fail_begin, fail_fetch

    @contextmanager
    def pinned(self, pixels: Pixels) -> Iterator[None]:
        assert threading.current_thread().name == "cervix-infer", "the backend's own thread"
        self.pinned_at = range(pixels.ctypes.data, pixels.ctypes.data + pixels.nbytes)
        yield
        self.pinned_at = range(0)

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        if batch == self._fail_begin:
            raise InferenceError(f"batch {batch} cannot be begun")
        self.numbers.append(batch)
        self.buffers.add(pixels.ctypes.data)
        assert pixels.ctypes.data in self.pinned_at
        self._begun.append(batch)
        self.most = max(self.most, len(self._begun))
        assert len(self._begun) <= self.in_flight

        def fetch() -> Probabilities:
            assert self._begun.popleft() == batch, "answers are fetched in the order in which batches were begun"
            if batch == self._fail_fetch:
                raise InferenceError(f"batch {batch} cannot be fetched")
            return self.infer(pixels)

        return fetch


@pytest.mark.parametrize("in_flight", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_it_equals_the_plain_loop(mixed: Path, in_flight: int, workers: int, batch_size: int) -> None:
    tiles, backend = listed(mixed), Overlapping(in_flight)
    outcomes = outcomes_of(mixed, tiles, backend, batch_size=batch_size, workers=workers)
    assert outcomes == plain_outcomes(mixed, tiles, FakeBackend(), batch_size)
    assert sum(isinstance(outcome, TileFailure) for outcome in outcomes) == 8
    assert backend.numbers == list(range(-(-43 // batch_size)))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 30),
    in_flight=st.integers(1, 6),
    batch_size=st.integers(1, 7),
    workers=st.integers(1, 5),
    bad=st.sets(st.integers(0, 29), max_size=5),
)
def test_any_mixture_equals_the_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, count: int, in_flight: int, batch_size: int, workers: int, bad: set[int]
) -> None:
    root = tmp_path_factory.mktemp("tiles")
    for index in range(count):
        (root / f"{index}.jpg").write_bytes(b"no tile" if index in bad else drawn_tile(index, ".jpg"))
    tiles = refs([f"{index}.jpg" for index in range(count)])
    outcomes = outcomes_of(root, tiles, Overlapping(in_flight), batch_size=batch_size, workers=workers)
    assert outcomes == plain_outcomes(root, tiles, FakeBackend(), batch_size)


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_as_many_batches_are_under_way_as_the_backend_takes(tiles: Path, in_flight: int) -> None:
    backend = Overlapping(in_flight)
    outcomes_of(tiles, listed(tiles), backend, batch_size=2, workers=1)
    assert backend.most == in_flight
    assert len(backend.buffers) == StreamSettings(Folder(tiles), CONTRACT, 2, 1).spare_slots + in_flight
    assert not backend.pinned_at


@pytest.mark.parametrize("in_flight", [2, 5])
@pytest.mark.parametrize("at", [0, 1, 4, 24])
@pytest.mark.parametrize("call", ["fail_begin", "fail_fetch"])
def test_a_failure_reaches_the_caller_and_ends_the_threads(tiles: Path, in_flight: int, at: int, call: str) -> None:
    backend = Overlapping(in_flight, **{call: at})
    done: list[int] = []
    results = results_of(tiles, listed(tiles), backend, batch_size=2)
    with pytest.raises(InferenceError, match=rf"^batch {at} cannot be"):
        done.extend(result.batch.index for result in results)
    assert done == list(range(len(done)))
    assert max(0, at - in_flight) <= len(done) <= at
    assert len(backend.numbers) <= at + in_flight
    assert cervix_threads() == []


@pytest.mark.parametrize("answer", [np.full((2, 5), np.nan, np.float32), np.full((1, 5), 0.2, np.float32)])
def test_an_answer_that_is_none_stops_the_run(tiles: Path, answer: Probabilities) -> None:
    class Wrong(Overlapping):
        def infer(self, pixels: Pixels) -> Probabilities:
            return answer

    with pytest.raises(InferenceError, match=r"expected \(2, 5\)"):
        list(results_of(tiles, listed(tiles), Wrong(3), batch_size=2))
    assert cervix_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_consumer_that_leaves_ends_the_threads(tiles: Path, taken: int) -> None:
    results = results_of(tiles, listed(tiles), Overlapping(4), batch_size=1)
    for _ in range(taken):
        next(results)
    results.close()
    assert threads_end()


def test_a_slow_consumer_holds_the_stream_back(tiles: Path) -> None:
    backend = Overlapping(3)
    results = results_of(tiles, listed(tiles), backend, batch_size=1, unwritten_tiles=5)
    next(results)
    # One is taken, five wait, one is about to be handed on, two more are begun.
    until(lambda: len(backend.numbers) == 9)
    time.sleep(0.05)
    assert len(backend.numbers) == 9
    assert len(list(results)) == 49


def test_what_is_under_way_is_fetched_while_the_listing_waits(tiles: Path) -> None:
    """A source that stalls must not hold back more than what the backend has begun."""
    go_on = threading.Event()
    every = list(batches_of(listed(tiles), 5))

    def batches() -> Iterator[object]:
        yield from every[:6]
        assert go_on.wait(PATIENCE_S)
        yield from every[6:]

    settings = StreamSettings(Folder(tiles), CONTRACT, 5, 2)
    results = stream(batches(), backend=Overlapping(3), settings=settings, stats=StreamStats())  # type: ignore[arg-type]
    first = [next(results).batch.index for _ in range(4)]
    go_on.set()
    assert [*first, *(result.batch.index for result in results)] == list(range(10))


@pytest.mark.parametrize("runtime", sorted(ON_GPU))
@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("hurry", [0.0, 0.5, 1.0])
def test_it_equals_the_plain_loop_on_gpus(mixed: Path, tmp_path: Path, runtime: str, gpus: int, hurry: float) -> None:
    bundle, tiles = make_engine_bundle(tmp_path / "bundle"), listed(mixed)
    machine = Machine(a10s(gpus), hurry=hurry, seed=gpus)
    device = f"cuda:{','.join(map(str, range(gpus)))}"
    with opened(machine, bundle, runtime, device=device) as backend:
        for batch_size in (1, 8, 9):
            outcomes = outcomes_of(mixed, tiles, backend, batch_size=batch_size)
            assert outcomes == plain_outcomes(mixed, tiles, backend, batch_size)
    assert machine.threads == {"cervix-infer", threading.current_thread().name}
