"""The stream equals a plain loop over the tiles, bit for bit, whatever its workers; and no fault leaves it hanging.

Equal means: the same outcomes in the same order, and batches of pixels with the same SHA-256 at the backend.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.backends import Backend
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.errors import InferenceError, ListingError
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import (
    TILE_STEPS,
    UNWRITTEN_TILES,
    BatchResult,
    StreamSettings,
    batches_of,
    stream,
)
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileRef
from cervix_engine.values import Pixels, Probabilities
from engine.run.stream.planted_steps import defect
from engine.run.support import (
    CONTRACT,
    PATIENCE_S,
    SpyBackend,
    cervix_threads,
    draw_folder,
    drawn_tile,
    plain_batches,
    plain_outcomes,
    refs,
    threads_end,
)

pytestmark = pytest.mark.timeout(300)

WORKERS = (1, 2, 8, 32)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43 tiles of which some are broken in different ways."""
    root = draw_folder(tmp_path_factory.mktemp("mixed") / "study", 43)
    broken = listed(root)[::6]
    for index, tile in enumerate(broken):
        file = root / tile.path
        data = file.read_bytes()
        file.write_bytes((b"", b"no tile", data[: len(data) // 2])[index % 3])
    return root


def listed(root: Path) -> tuple[TileRef, ...]:
    return refs(sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()))


def results_of(
    root: Path,
    tiles: Sequence[TileRef],
    backend: Backend,
    *,
    batch_size: int = 8,
    workers: int = 2,
    steps: TileSteps = TILE_STEPS,
    unwritten_tiles: int = UNWRITTEN_TILES,
) -> Generator[BatchResult, None, None]:
    settings = StreamSettings(Folder(root), CONTRACT, batch_size, workers, unwritten_tiles=unwritten_tiles)
    batches = batches_of(tiles, batch_size)
    return stream(batches, backend=backend, settings=settings, stats=StreamStats(), steps=steps)


def outcomes_of(
    root: Path, tiles: Sequence[TileRef], backend: Backend, *, batch_size: int = 8, workers: int = 2
) -> list[Outcome]:
    results = list(results_of(root, tiles, backend, batch_size=batch_size, workers=workers))
    assert [result.batch for result in results] == list(batches_of(tiles, batch_size))
    return [outcome for result in results for outcome in result.outcomes]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("batch_size", [1, 8, 13, 64])
def test_the_stream_equals_the_plain_loop(mixed: Path, tiny_backend: Backend, workers: int, batch_size: int) -> None:
    tiles, spy = listed(mixed), SpyBackend(tiny_backend)
    outcomes = outcomes_of(mixed, tiles, spy, batch_size=batch_size, workers=workers)
    assert outcomes == plain_outcomes(mixed, tiles, tiny_backend, batch_size)
    assert sum(isinstance(outcome, TileFailure) for outcome in outcomes) == 8
    plain = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels, _ in plain_batches(mixed, tiles, batch_size)]
    assert spy.digests == plain


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "good", "good", "empty", "cut", "text", "gone"]), min_size=1, max_size=30),
    batch_size=st.integers(1, 12),
    workers=st.integers(1, 9),
)
def test_any_mixture_of_tiles_equals_the_plain_loop(kinds: list[str], batch_size: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for index, kind in enumerate(kinds):
            whole = drawn_tile(index, ".jpg")
            data = {"good": whole, "empty": b"", "cut": whole[:-9], "text": b"text", "gone": None}[kind]
            if data is not None:
                (root / f"{index}.jpg").write_bytes(data)
        tiles, spy = refs([f"{index}.jpg" for index in range(len(kinds))]), SpyBackend(FakeBackend())
        outcomes = outcomes_of(root, tiles, spy, batch_size=batch_size, workers=workers)
        assert outcomes == plain_outcomes(root, tiles, FakeBackend(), batch_size)
        assert [isinstance(outcome, Prediction) for outcome in outcomes] == [kind == "good" for kind in kinds]
        assert len(spy.digests) == -(-len(kinds) // batch_size)


def test_a_bad_tile_never_changes_its_neighbours(tiles: Path, tiny_backend: Backend) -> None:
    names = [tile.path for tile in listed(tiles)[:16]]
    good = outcomes_of(tiles, refs(names), tiny_backend)
    for bad in range(16):
        others = [*names[:bad], "no such tile.png", *names[bad + 1 :]]
        outcomes = outcomes_of(tiles, refs(others), tiny_backend)
        assert outcomes[bad] == TileFailure("read", "unreadable: No such file or directory")
        assert outcomes[:bad] + outcomes[bad + 1 :] == good[:bad] + good[bad + 1 :]


def test_what_a_place_held_before_never_shows(tiles: Path) -> None:
    # Five slots, so the sixth batch takes the first one's.
    names = [tile.path for tile in listed(tiles)[:40]]
    names[40:] = ["gone.png"] * 8
    spy = SpyBackend(FakeBackend())
    outcomes_of(tiles, refs(names), spy, workers=1)
    assert len(spy.buffers) == 5
    assert spy.digests[5] == hashlib.sha256(bytes(8 * 32 * 32 * 3)).hexdigest()


def test_the_last_batch_is_padded_with_zeros(tiles: Path) -> None:
    names = [tile.path for tile in listed(tiles)[:50]]
    spy = SpyBackend(FakeBackend())
    outcomes_of(tiles, refs(names), spy, batch_size=8)
    ((pixels, _),) = plain_batches(tiles, refs(names[48:]), 8)
    assert not pixels[2:].any()
    assert spy.digests[6] == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_slots_circulate(tiles: Path) -> None:
    spy = SpyBackend(FakeBackend())
    outcomes_of(tiles, listed(tiles), spy, batch_size=2, workers=1)
    assert len(spy.digests) == 25
    assert len(spy.buffers) == StreamSettings(Folder(tiles), CONTRACT, 2, 1).spare_slots + spy.in_flight == 5


@pytest.mark.parametrize(
    ("workers", "batch_size", "slots"),
    [(1, 32, 3), (2, 32, 3), (16, 32, 10), (16, 256, 3), (4, 1, 10), (128, 32, 34), (256, 4096, 3)],
)
def test_every_worker_has_two_chunks_at_once_within_limits(workers: int, batch_size: int, slots: int) -> None:
    assert StreamSettings(Folder(Path()), CONTRACT, batch_size, workers).spare_slots == slots


@pytest.mark.parametrize("at", [0, 1, 4, 24])
@pytest.mark.parametrize("workers", [1, 8])
def test_a_backend_that_fails_reaches_the_caller(tiles: Path, at: int, workers: int) -> None:
    spy = SpyBackend(FakeBackend(), fail={at: InferenceError("out of memory")})
    results = results_of(tiles, listed(tiles), spy, batch_size=2, workers=workers)
    done: list[int] = []
    with pytest.raises(InferenceError, match=r"^out of memory$"):
        done.extend(result.batch.index for result in results)
    assert done == list(range(at)), "all that was computed before is given"
    assert len(spy.digests) == at + 1
    assert cervix_threads() == []


def test_a_failure_behind_full_channels_is_no_deadlock(tiles: Path) -> None:
    spy = SpyBackend(FakeBackend(), fail={4: InferenceError("late")})
    results = results_of(tiles, listed(tiles), spy, batch_size=1, workers=2, unwritten_tiles=3)
    next(results)
    until(lambda: len(spy.digests) == 5)  # one is taken, three wait, the fifth fails
    with pytest.raises(InferenceError, match="late"):
        list(results)
    assert cervix_threads() == []


def test_a_slow_consumer_holds_the_stream_back(tiles: Path) -> None:
    spy = SpyBackend(FakeBackend())
    results = results_of(tiles, listed(tiles), spy, batch_size=1, workers=2, unwritten_tiles=3)
    next(results)
    until(lambda: len(spy.digests) == 5)
    time.sleep(0.05)
    assert len(spy.digests) == 5  # one taken, three waiting, one about to be handed on
    assert len(list(results)) == 49


@pytest.mark.parametrize("taken", [1, 5])
def test_a_consumer_that_leaves_ends_the_threads(tiles: Path, taken: int) -> None:
    results = results_of(tiles, listed(tiles), FakeBackend(), batch_size=1)
    for _ in range(taken):
        next(results)
    results.close()
    assert threads_end()


def test_a_consumer_that_leaves_does_not_wait_for_the_batch_that_is_computed(tiles: Path) -> None:
    entered, stuck, go_on = threading.Event(), threading.Event(), threading.Event()

    class Stuck(FakeBackend):
        def infer(self, pixels: Pixels) -> Probabilities:
            if entered.is_set():
                stuck.set()
                assert go_on.wait(PATIENCE_S)
            entered.set()
            return super().infer(pixels)

    results = results_of(tiles, listed(tiles), Stuck(), workers=8)
    next(results)
    assert stuck.wait(PATIENCE_S)
    results.close()
    assert "cervix-infer" in cervix_threads()
    go_on.set()
    assert threads_end()


def test_a_batch_that_begins_while_a_consumer_leaves_is_cancelled_too(tiles: Path) -> None:
    stuck, leaving, cancelled = threading.Event(), threading.Event(), threading.Event()

    class Late(FakeBackend):
        """Computes its second batch from when it was told to cancel the first time until it is told so again."""

        batches = 0

        def infer(self, pixels: Pixels) -> Probabilities:
            self.batches += 1
            if self.batches == 2:
                stuck.set()
                assert cancelled.wait(PATIENCE_S)
            return super().infer(pixels)

        def cancel(self) -> None:
            (cancelled if leaving.is_set() else leaving).set()

    results = results_of(tiles, listed(tiles), Late(), batch_size=1)
    next(results)
    assert stuck.wait(PATIENCE_S)
    results.close()
    assert cancelled.is_set()
    assert threads_end()


def test_an_iterator_that_is_forgotten_ends_the_threads(tiles: Path) -> None:
    results = results_of(tiles, listed(tiles), FakeBackend(), batch_size=1)
    next(results)
    del results
    gc.collect()
    assert threads_end()


def test_an_iterator_that_is_never_used_starts_nothing(tiles: Path) -> None:
    spy = SpyBackend(FakeBackend())
    results_of(tiles, listed(tiles), spy).close()
    assert cervix_threads() == []
    assert spy.digests == []


def test_an_error_in_the_listing_reaches_the_caller(tiles: Path) -> None:
    def batches() -> Iterator[TileBatch]:
        yield from list(batches_of(listed(tiles), 2))[:5]
        raise ListingError("gone")

    settings = StreamSettings(Folder(tiles), CONTRACT, 2, 2)
    with pytest.raises(ListingError, match="gone"):
        list(stream(batches(), backend=FakeBackend(), settings=settings, stats=StreamStats()))
    assert cervix_threads() == []


def test_a_defect_in_a_decoder_reaches_the_caller(tiles: Path) -> None:
    steps = TileSteps(preprocess_into=defect)
    with pytest.raises(ZeroDivisionError) as seen:
        list(results_of(tiles, listed(tiles), FakeBackend(), workers=8, steps=steps))
    assert any("planted_steps.py" in note for note in seen.value.__notes__), "where it was raised is told too"
    assert cervix_threads() == []


def test_steps_that_no_worker_can_import_are_refused(tiles: Path) -> None:
    steps = TileSteps(lambda reader, path, stamp: reader.read(path, stamp), defect)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        list(results_of(tiles, listed(tiles), FakeBackend(), steps=steps))
    assert cervix_threads() == []


def test_even_an_exit_in_the_inference_thread_reaches_the_caller(tiles: Path) -> None:
    spy = SpyBackend(FakeBackend(), fail={1: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        list(results_of(tiles, listed(tiles), spy))
    assert cervix_threads() == []


@pytest.mark.parametrize(
    "answer",
    [
        np.full((8, 5), np.nan, np.float32),
        np.array([[np.inf, 0, 0, 0, 0]] * 8, np.float32),
        np.full((8, 4), 0.25, np.float32),
        np.full((7, 5), 0.2, np.float32),
        np.full((8, 5, 1), 0.2, np.float32),
        np.full((40,), 0.2, np.float32),
    ],
    ids=["nan", "inf", "classes", "tiles", "rank", "flat"],
)
def test_an_answer_that_is_none_stops_the_run(tiles: Path, answer: Probabilities) -> None:
    spy = SpyBackend(FakeBackend(), answers={2: answer})
    with pytest.raises(InferenceError, match=r"expected \(8, 5\)"):
        list(results_of(tiles, listed(tiles), spy))
    assert len(spy.digests) == 3
    assert cervix_threads() == []


def test_one_nan_among_good_answers_is_seen(tiles: Path) -> None:
    answer = np.full((8, 5), 0.2, np.float32)
    answer[7, 4] = np.nan
    with pytest.raises(InferenceError):
        list(results_of(tiles, listed(tiles), SpyBackend(FakeBackend(), answers={0: answer})))


def test_a_fifo_in_a_tile_s_place_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(drawn_tile(1))
    os.mkfifo(tmp_path / "pipe.png")
    good, pipe = outcomes_of(tmp_path, refs(["good.png", "pipe.png"]), FakeBackend())
    assert isinstance(good, Prediction)
    assert isinstance(pipe, TileFailure)
    assert pipe.kind == "not_a_file"


def test_stats_count_every_tile_in_every_stage(tiles: Path) -> None:
    stats = StreamStats()
    settings = StreamSettings(Folder(tiles), CONTRACT, 8, 3)
    list(stream(batches_of(listed(tiles), 8), backend=FakeBackend(), settings=settings, stats=stats))
    stages = {stage.stage: stage for stage in stats.stages()}
    assert {name: stage.tiles for name, stage in stages.items()} == dict.fromkeys(
        ("list", "decode", "infer", "parent"), 50
    )
    assert 1 <= stages["decode"].threads <= 3
    assert stages["parent"].busy_s > 0


@settings(deadline=None)
@given(count=st.integers(0, 50), batch_size=st.integers(1, 12))
def test_batches_are_cut_at_fixed_places(count: int, batch_size: int) -> None:
    tiles = refs([str(index) for index in range(count)])
    batches = list(batches_of(tiles, batch_size))
    assert [batch.index for batch in batches] == list(range(-(-count // batch_size)))
    for batch in batches:
        assert batch.tiles == tiles[batch.index * batch_size : (batch.index + 1) * batch_size]
