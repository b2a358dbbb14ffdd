"""A GPU whose memory does not hold a batch gets smaller ones, said and decided once, before a run's journal exists."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.backends.cuda.lanes import IN_FLIGHT
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import DeviceMemoryError, InferenceError
from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.run.tuning import fit_memory
from cervix_engine.values import Pixels, Probabilities
from engine.backends.simulated_cuda import CudaError
from engine.backends.simulated_gpu import ON_GPU, Machine, lane_bytes, make_engine_bundle, opened, pixels_of
from engine.run.support import CONTRACT, Invoke, reference_probabilities, work_folder

pytestmark = pytest.mark.timeout(300)

RUNTIMES = sorted(ON_GPU)


def room(tiles: int) -> dict[int, int]:
    """Device memory for batches of so many tiles, and not of one more."""
    return {0: IN_FLIGHT * lane_bytes(tiles)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_engine_bundle(tmp_path_factory.mktemp("memory") / "bundle")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make it a machine with room for batches of so many tiles."""

    def install(tiles: int, **options: Any) -> Machine:
        machine = Machine(memory_bytes=room(tiles), **options)
        machine.install(monkeypatch)
        return machine

    return install


# ---- what is tried


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("holds", "asked", "fits"), [(32, 32, 32), (31, 32, 16), (8, 32, 8), (7, 32, 4), (1, 32, 1)])
@pytest.mark.parametrize("collects", [True, False])
def test_a_batch_is_halved_until_it_fits(
    bundle: Bundle,
    runtime: str,
    holds: int,
    asked: int,
    fits: int,
    collects: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a batch that was too large took is free again at once, not when Python happens to look for cycles."""
    machine = Machine(memory_bytes=room(holds))
    if not collects:
        gc.disable()
    try:
        with caplog.at_level(logging.WARNING), opened(machine, bundle, runtime) as backend:
            assert fit_memory(backend, asked, contract=CONTRACT) == fits
            pixels = pixels_of(fits)
            np.testing.assert_allclose(backend.infer(pixels), reference_probabilities(pixels), atol=1e-5)
    finally:
        gc.enable()
    halved = [asked >> step for step in range(10) if asked >> step > fits]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"the GPU's memory does not hold batches of {size} tiles: halved" for size in halved]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_gpu_that_does_not_hold_one_tile_is_an_error(bundle: Bundle, runtime: str) -> None:
    with (
        opened(Machine(memory_bytes=room(0)), bundle, runtime) as backend,
        pytest.raises(DeviceMemoryError, match=r"no memory for a batch of 1: CUDA_ERROR_OUT_OF_MEMORY"),
    ):
        fit_memory(backend, 4, contract=CONTRACT)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY: the API call failed", True),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=here", True),
        ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 123", True),
        ("[TRT] Error Code 2: OutOfMemory (Requested size was 123 bytes.)", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered", False),
        ("CUDNN failure 9: CUDNN_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_full_memory_is_known_by_what_the_libraries_say(bundle: Bundle, runtime: str, said: str, full: bool) -> None:
    machine = Machine()
    with opened(machine, bundle, runtime) as backend:
        machine.cuda.fail("compute", CudaError(said))
        with pytest.raises(InferenceError) as caught:
            backend.infer(pixels_of(16))
        assert isinstance(caught.value, DeviceMemoryError) is full
        machine.cuda.heal()
        pixels = pixels_of(8)
        np.testing.assert_allclose(backend.infer(pixels), reference_probabilities(pixels), atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("hurry", [0.0, 0.5, 1.0])
def test_a_batch_under_way_survives_one_that_does_not_fit(bundle: Bundle, runtime: str, hurry: float) -> None:
    machine = Machine(memory_bytes=room(8), hurry=hurry)
    small, large = pixels_of(8, 1), pixels_of(32, 2)
    with opened(machine, bundle, runtime) as backend:
        pending = [backend.begin(small) for _ in range(2)]
        with pytest.raises(DeviceMemoryError):
            backend.begin(large)
        for fetch in (*pending, backend.begin(small)):
            np.testing.assert_allclose(fetch(), reference_probabilities(small), atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_larger_batch_takes_the_place_of_those_under_way(bundle: Bundle, runtime: str) -> None:
    """They are fetched first: the device need not hold both sizes at once."""
    small, large = pixels_of(7, 1), pixels_of(8, 2)
    with opened(Machine(memory_bytes=room(8)), bundle, runtime) as backend:
        pending = [backend.begin(small) for _ in range(2)]
        last = backend.begin(large)
        for fetch in pending:
            np.testing.assert_allclose(fetch(), reference_probabilities(small), atol=1e-5)
        np.testing.assert_allclose(last(), reference_probabilities(large), atol=1e-5)


def test_a_failure_of_another_kind_is_not_halved_away(bundle: Bundle) -> None:
    machine = Machine()
    with opened(machine, bundle, "tensorrt") as backend:
        machine.cuda.fail("compute", CudaError("CUDA_ERROR_LAUNCH_FAILED"))
        with pytest.raises(InferenceError, match="batch of 32"):
            fit_memory(backend, 32, contract=CONTRACT)


def test_a_cpu_is_not_asked() -> None:
    class Untouched(FakeBackend):
        def infer(self, pixels: Pixels) -> Probabilities:
            raise AssertionError("a batch was computed in vain")

    assert fit_memory(Untouched(), 4096, contract=CONTRACT) == 4096


# ---- a run


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_ends_with_the_batch_size_that_fits(
    invoke: Invoke, out: Path, on: Callable[..., Machine], runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    on(9)
    done = invoke("--backend", runtime, "-b", "32")
    assert done.exit_code == 0, done.stderr
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [(32,), (16,)]
    report = RunRecord.load(record_beside(out))
    assert (report.batch_size, report.identity.batch_size, report.ok) == (8, 8, 50)
    halved = out.read_bytes()
    assert invoke("--backend", runtime, "-b", "8", "--overwrite").exit_code == 0
    assert out.read_bytes() == halved


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_usual_and_the_automatic_batch_size_fit_too(
    invoke: Invoke, out: Path, on: Callable[..., Machine], runtime: str
) -> None:
    for options in ((), ("-b", "auto")):
        on(9)
        assert invoke("--backend", runtime, "--overwrite", *options).exit_code == 0
        assert RunRecord.load(record_beside(out)).batch_size <= 8


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_that_holds_no_tile_is_one_line(
    invoke: Invoke, out: Path, on: Callable[..., Machine], runtime: str
) -> None:
    on(0)
    done = invoke("--backend", runtime, "-b", "4")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: the device has no memory for a batch of 1:")
    assert not out.exists()
    assert not work_folder(out).exists()


def interrupted(invoke: Invoke, machine: Machine, runtime: str, *options: str) -> None:
    machine.cuda.fail("copy", CudaError("CUDA_ERROR_LAUNCH_FAILED"), after=14)
    assert invoke("--backend", runtime, *options).exit_code == 1
    machine.cuda.heal()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_resumed_run_keeps_its_batch_size_or_stops(
    invoke: Invoke, out: Path, on: Callable[..., Machine], runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows depend on it; so a GPU that is fuller now is an error that names what is in the way."""
    interrupted(invoke, on(8), runtime, "-b", "8")
    assert work_folder(out).exists()
    on(4)
    stopped = invoke("--backend", runtime)
    assert stopped.exit_code == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "the device has no memory for a batch of 8:" in stopped.stderr.splitlines()[-1]
    assert not out.exists()
    on(8)
    assert invoke("--backend", runtime).exit_code == 0
    report = RunRecord.load(record_beside(out))
    assert (report.batch_size, report.ok) == (8, 50)
    table = out.read_bytes()
    assert invoke("--backend", runtime, "-b", "8", "--overwrite").exit_code == 0
    assert out.read_bytes() == table


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("holds", [8, 32])
def test_a_run_that_was_halved_goes_on_under_the_same_command(
    invoke: Invoke, out: Path, on: Callable[..., Machine], runtime: str, holds: int
) -> None:
    """As an interrupted run says; also where more of the GPU's memory is free by then."""
    interrupted(invoke, on(8), runtime, "-b", "16")
    assert work_folder(out).exists()
    on(holds)
    done = invoke("--backend", runtime, "-b", "16")
    assert done.exit_code == 0, done.stderr
    report = RunRecord.load(record_beside(out))
    assert (report.batch_size, report.ok) == (8, 50)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_dry_run_shows_it_too(
    invoke: Invoke, on: Callable[..., Machine], runtime: str, caplog: pytest.LogCaptureFixture
) -> None:
    on(4)
    done = invoke("--backend", runtime, "-b", "32", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    assert [record.args for record in caplog.records if record.levelno == logging.WARNING] == [(32,), (16,), (8,)]
    assert json.loads(done.stdout.splitlines()[-1])["forecast"]["failed"] == 0
