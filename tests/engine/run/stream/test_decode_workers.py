"""Decode workers may crash, hang or be killed: one row for the tile that did it, all others as ever, nothing left."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.errors import DecodeWorkerError
from cervix_engine.run.stream.decode import DecodeLimits
from cervix_engine.run.stream.decode_pool import MAX_KILLS
from cervix_engine.run.stream.fork_server import close_fork_server
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import Outcome, Prediction, TileFailure, TileNotes
from cervix_engine.values import Pixels, Probabilities
from engine.run.stream.planted_steps import PLANTED, FirstbornStep, StillbornStep
from engine.run.stream.processes import all_end, are_freed, children_of, fork_servers_of, send, slots_of, workers_of
from engine.run.support import CONTRACT, PATIENCE_S, drawn_tile, encoded, environment, plain_outcomes, refs, threads_end

pytestmark = pytest.mark.timeout(300)

COUNT, BATCH = 40, 16
LIMITS = DecodeLimits(tile_seconds=0.5, worker_bytes=2**30)

Named = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Named:
    """Good tiles, and the order they are listed in."""
    root = tmp_path_factory.mktemp("planted")
    names = [f"{index:02d}.jpg" for index in range(COUNT)]
    for index, name in enumerate(names):
        (root / name).write_bytes(drawn_tile(index, ".jpg"))
    return root, names


def planted(named: Named, ends: dict[int, str]) -> Named:
    """The same tiles, some under a name that their decoder does not survive."""
    root, names = named
    chosen = list(names)
    for index, end in ends.items():
        chosen[index] = f"{index:02d} {end}.jpg"
        (root / chosen[index]).write_bytes(drawn_tile(index, ".jpg"))
    return root, chosen


def as_ever(named: Named) -> list[Outcome]:
    root, names = named
    return plain_outcomes(root, refs(names), FakeBackend(), BATCH)


def outcomes_of(
    named: Named,
    *,
    workers: int | None = 2,
    steps: TileSteps = PLANTED,
    after_each_batch: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    root, names = named
    # The caller holds the stream back, so that there is work for its workers to the end.
    settings = StreamSettings(Folder(root), CONTRACT, BATCH, workers, limits=LIMITS, unwritten_tiles=BATCH)
    tiles = batches_of(refs(names), BATCH)
    outcomes: list[Outcome] = []
    for result in stream(tiles, backend=FakeBackend(), settings=settings, stats=StreamStats(), steps=steps):
        outcomes += result.outcomes
        after_each_batch()
    return outcomes


# ---- a tile that its decoder does not survive

REASONS = {
    "segfault": "decoder_crashed: its process ended with SIGSEGV",
    "abort": "decoder_crashed: its process ended with SIGABRT",
    "leave": "decoder_crashed: its process ended with exit code 0",
    "hang": "decoder_hung: not decoded within 0.5 s",
    "spin": "decoder_hung: not decoded within 0.5 s",
    "allocate": "decoder_crashed: out of memory, the limit is 1024 MB",
    "opencv": "decoder_crashed: out of memory, the limit is 1024 MB",
}


@pytest.mark.parametrize("end", REASONS)
@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_tile_that_ends_its_decoder_is_one_row(names: Named, end: str, workers: int | None) -> None:
    expected = as_ever(names)
    expected[21] = TileFailure("decode", REASONS[end])
    assert outcomes_of(planted(names, {21: end}), workers=workers) == expected


def test_several_of_a_chunk_and_of_all_kinds(names: Named) -> None:
    expected, ends = as_ever(names), dict(zip((0, 1, 7, 8, 22, 30, 39), REASONS, strict=True))
    for index, end in ends.items():
        expected[index] = TileFailure("decode", REASONS[end])
    assert outcomes_of(planted(names, ends)) == expected


def test_a_listing_of_which_no_decoder_survives_any_tile(names: Named) -> None:
    ends = dict.fromkeys(range(COUNT), "segfault")
    assert outcomes_of(planted(names, ends)) == [TileFailure("decode", REASONS["segfault"])] * COUNT


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_tile_that_needs_more_memory_than_a_worker_may_have(tmp_path: Path, suffix: str) -> None:
    """Not one that is called corrupt: OpenCV says that it has no memory by the same error as all else."""
    (tmp_path / f"large{suffix}").write_bytes(encoded(suffix, np.full((4000, 4000, 3), 200, np.uint8)))
    (tmp_path / f"small{suffix}").write_bytes(drawn_tile(1, suffix))
    settings = StreamSettings(Folder(tmp_path), CONTRACT, 2, 1, limits=DecodeLimits(worker_bytes=2**25))
    batches = batches_of(refs([f"large{suffix}", f"small{suffix}"]), 2)
    ((large, small),) = (
        result.outcomes for result in stream(batches, backend=FakeBackend(), settings=settings, stats=StreamStats())
    )
    assert large == TileFailure("decode", "decoder_crashed: out of memory, the limit is 32 MB")
    assert isinstance(small, Prediction)


def test_the_pixels_of_such_a_tile_are_blank(names: Named) -> None:
    """The planted decoder has filled half of them."""
    root, chosen = planted(names, {3: "abort"})
    seen: list[bool] = []

    class Looking(FakeBackend):
        def infer(self, pixels: Pixels) -> Probabilities:
            seen.extend(bool(tile.any()) for tile in pixels)
            return super().infer(pixels)

    settings = StreamSettings(Folder(root), CONTRACT, 8, 1, hash_tiles=True, limits=LIMITS)
    batches = batches_of(refs(chosen[:8]), 8)
    (result,) = stream(batches, backend=Looking(), settings=settings, stats=StreamStats(), steps=PLANTED)
    assert seen == [True, True, True, False, True, True, True, True]
    assert [bool(notes.sha256) for notes in result.notes] == seen
    assert result.notes[3] == TileNotes()


def test_what_a_decoder_prints_is_in_the_log_only(
    names: Named, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert outcomes_of(planted(names, {5: "noise"})) == as_ever(names)
    assert capfd.readouterr() == ("", "")
    assert "decode worker: printed by a decoder" in caplog.text
    assert "decode worker: TIFFReadDirectory: said by a decoder" in caplog.text


# ---- workers that are killed


def test_a_tile_over_which_workers_are_killed_again_and_again_stops_the_run(names: Named) -> None:
    """Each time it may have been another process that took the machine's memory; but the run gets nowhere."""
    with pytest.raises(DecodeWorkerError, match=r"killed again and again, .* out of memory: .* SIGKILL; the run can"):
        outcomes_of(planted(names, {9: "kill"}))
    assert threads_end()
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize("end", ["kill", "segfault"])
def test_workers_that_end_as_they_start_stop_the_run(names: Named, end: str) -> None:
    signum = {"kill": "SIGKILL", "segfault": "SIGSEGV"}[end]
    with pytest.raises(DecodeWorkerError, match=f"end as they start: its process ended with {signum}"):
        outcomes_of(names, steps=TileSteps(preprocess_into=StillbornStep(end)))
    assert threads_end()
    assert workers_of(os.getpid()) == []


def test_one_worker_is_enough_where_no_other_one_outlives_its_start(
    names: Named, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, some = names
    many = root, some * 4
    steps = TileSteps(preprocess_into=FirstbornStep(tmp_path / "told"))
    assert outcomes_of(many, steps=steps) == as_ever(many)
    assert (
        "no more decode workers than 1: further ones end as they start: its process ended with SIGKILL" in caplog.text
    )


def test_killed_workers_are_replaced(names: Named) -> None:
    root, some = names
    many = root, some * 8
    killed: list[int] = []

    def kill_one() -> None:
        # Many batches may be ready at once; so only workers that have begun: others would never get to.
        if begun := [worker for worker in workers_of(os.getpid()) if slots_of(worker)]:
            killed.append(random.Random(len(killed)).choice(begun))
            send(signal.SIGKILL, killed[-1])

    expected = as_ever(many)
    assert outcomes_of(many, after_each_batch=kill_one) == expected
    assert len(killed) > MAX_KILLS
    assert workers_of(os.getpid()) == []


def test_a_killed_fork_server_is_replaced_and_so_are_its_workers(names: Named) -> None:
    root, some = names
    many, servers = (root, some * 4), set[int]()

    def kill_server() -> None:
        for server in fork_servers_of(os.getpid()):
            if children_of(server):  # else it may be a new one that has just started
                servers.add(server)
                send(signal.SIGKILL, server)

    expected = as_ever(many)
    assert outcomes_of(many, after_each_batch=kill_server) == expected
    assert servers


def test_a_stopped_worker_is_killed_when_the_stream_is_left(names: Named) -> None:
    """As one that hangs in a read which nothing ends would be."""
    root, some = names
    settings = StreamSettings(Folder(root), CONTRACT, 4, 2)
    results = stream(batches_of(refs(some), 4), backend=FakeBackend(), settings=settings, stats=StreamStats())
    next(results)
    stopped = workers_of(os.getpid())
    send(signal.SIGSTOP, *stopped)
    results.close()
    assert threads_end()
    assert all_end(stopped)


def test_nothing_is_left_of_a_stream(names: Named) -> None:
    slots: list[set[str]] = []
    outcomes_of(names, after_each_batch=lambda: slots.append(slots_of(os.getpid())))
    assert workers_of(os.getpid()) == []
    assert slots[0]
    gc.collect()
    assert are_freed(slots[0])


PARENT = """
import sys, time
from pathlib import Path
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.stream import StreamSettings, batches_of, stream
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.values import Pixels, Probabilities
from engine.run.stream.planted_steps import PLANTED
from engine.run.support import CONTRACT, refs
root, *names = sys.argv[1:]
batches = batches_of(refs(names * 1000), 4)
settings = StreamSettings(Folder(Path(root)), CONTRACT, 4, 3)
for result in stream(batches, backend=FakeBackend(), settings=settings, stats=StreamStats(), steps=PLANTED):
    print(result.batch.index, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_parent_leaves_no_process_and_no_memory(names: Named, busy: bool) -> None:
    """Also where a worker is in native code that nothing but a signal ends."""
    root, chosen = planted(names, {12: "spin"} if busy else {})
    command = [sys.executable, "-c", PARENT, str(root), *chosen[:16]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as run:
        assert run.stdout is not None
        run.stdout.readline()
        if busy:
            time.sleep(0.5)
        started = [*fork_servers_of(run.pid), *workers_of(run.pid)]
        slots = slots_of(run.pid)
        assert len(started) >= 2
        assert slots
        run.kill()
    assert all_end(started)
    assert are_freed(slots)


# ---- the processes themselves


def test_the_fork_server_has_one_thread_and_little_else() -> None:
    """It forks at any time; a second thread, a runtime or a context of the GPU would not survive that."""
    code = (
        "import cervix_engine.run.stream.worker, sys, os; "
        "print(len(os.listdir('/proc/self/task')), *sorted(name.partition('.')[0] for name in sys.modules))"
    )
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **one_thread}
    )
    threads, *modules = done.stdout.split()
    assert threads == "1"
    assert not set(modules) & {"onnxruntime", "openvino", "tensorrt", "cuda", "rich", "click", "filelock", "asyncio"}
    assert {"cv2", "numpy", "simplejpeg"} <= set(modules)


def test_it_is_not_looked_for_in_the_working_directory(
    names: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "cv2.py").write_text("raise SystemExit('the wrong one')")
    close_fork_server()
    monkeypatch.chdir(tmp_path)
    assert outcomes_of(names) == as_ever(names)


def test_one_that_cannot_start_is_an_error_of_one_line(
    names: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise ImportError('no such codec')")
    close_fork_server()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(DecodeWorkerError, match=r"ends as it starts: ImportError: no such codec$"):
            outcomes_of(names)
    close_fork_server()
    assert outcomes_of(names, steps=TileSteps()) == as_ever(names)


FORKED = """
import os, sys
from pathlib import Path
from cervix_engine.run.stream import fork_server
from engine.run.stream.test_decode_workers import as_ever, outcomes_of
before, root, *names = sys.argv[1:]
named = Path(root), names
if before == "started":
    fork_server.fork_server()
if os.fork() == 0:
    right = outcomes_of(named) == as_ever(named)
    fork_server.close_fork_server()
    os._exit(not right)
assert os.wait()[1] == 0
assert outcomes_of(named) == as_ever(named)
"""


@pytest.mark.parametrize("before", ["started", "none"])
def test_a_forked_process_decodes_by_a_fork_server_of_its_own(names: Named, before: str) -> None:
    root, chosen = names
    command = [sys.executable, "-c", FORKED, before, str(root), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
