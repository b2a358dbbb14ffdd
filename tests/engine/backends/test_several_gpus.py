"""Several GPUs of one kind make one run faster and change no byte of its table: batch k is computed on GPU k mod n."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.backends import open_backend
from cervix_engine.backends.cuda.lanes import IN_FLIGHT
from cervix_engine.backends.device import Device
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import InferenceError
from cervix_engine.run.batch import RunSetup
from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.run.verify import verify_table
from engine.backends.simulated_cuda import CudaError
from engine.backends.simulated_gpu import ON_GPU, Machine, a10s, lane_bytes, make_engine_bundle, opened, pixels_of
from engine.run.support import FINISHED, Invoke, beside, plain_batches, refs, run_setup, work_folder

pytestmark = pytest.mark.timeout(300)

RUNTIMES = sorted(ON_GPU)
BATCH, BATCHES = 4, 13  # the fixture's 50 tiles
ASKED = {"tensorrt": ("--backend", "tensorrt"), "onnxruntime-cuda": ("--backend", "onnxruntime-cuda")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_engine_bundle(tmp_path_factory.mktemp("several") / "bundle")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make it a machine with so many A10s."""

    def install(gpus: int, **options: Any) -> Machine:
        machine = Machine(a10s(gpus), **options)
        machine.install(monkeypatch)
        return machine

    return install


def devices(gpus: int) -> str:
    return f"cuda:{','.join(map(str, range(gpus)))}"


@pytest.fixture
def run(invoke: Invoke) -> Callable[..., int]:
    """A run on so many GPUs; its exit code."""

    def run(runtime: str, gpus: int, *options: str, setup: RunSetup | None = None) -> int:
        return invoke(*ASKED[runtime], "--device", devices(gpus), "-b", str(BATCH), *options, setup=setup).exit_code

    return run


# ---- the backend


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_a_batch_is_always_computed_by_the_same_gpu(bundle: Bundle, runtime: str, gpus: int) -> None:
    machine = Machine(a10s(gpus))
    batches = {number: pixels_of(BATCH, number) for number in (5, 0, 2, 4, 11, 3, 1)}
    with opened(machine, bundle, runtime, device=devices(gpus)) as backend:
        pending = [backend.begin(pixels, batch=number) for number, pixels in batches.items()]
        for fetch in pending:
            fetch()
    assert machine.gpus_of(batches) == {number: [number % gpus] for number in batches}


def test_the_order_of_gpus_is_the_one_asked_for(bundle: Bundle) -> None:
    machine = Machine(a10s(3))
    batches = {number: pixels_of(BATCH, number) for number in range(4)}
    with opened(machine, bundle, "onnxruntime-cuda", device="cuda:2,0") as backend:
        for number, pixels in batches.items():
            backend.begin(pixels, batch=number)()
    assert machine.gpus_of(batches) == {0: [2], 1: [0], 2: [2], 3: [0]}
    assert machine.cuda.used_bytes[1] == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_says_that_they_are_several(bundle: Bundle, runtime: str, on: Callable[..., Machine]) -> None:
    on(3)
    one, three = (
        open_backend(bundle, combination=ON_GPU[runtime], device=Device.parse(text)) for text in ("cuda", "cuda:0,1,2")
    )
    assert (one.info.device, three.info.device) == ("NVIDIA A10", "3 x NVIDIA A10")
    assert (one.in_flight, three.in_flight) == (IN_FLIGHT, 3 * IN_FLIGHT)
    assert one.info.device_class == three.info.device_class


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_that_does_not_load_is_an_error(bundle: Bundle, runtime: str) -> None:
    machine = Machine(a10s(3))
    machine.cuda.fail("load", CudaError("CUDA_ERROR_ECC_UNCORRECTABLE"), after=1)
    with (
        pytest.raises(InferenceError, match=rf"{runtime} cannot load .*: CUDA_ERROR_ECC_UNCORRECTABLE"),
        opened(machine, bundle, runtime, device=devices(3)),
    ):
        pass


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("call", ["copy", "compute", "event"])
def test_one_that_fails_is_an_error(bundle: Bundle, runtime: str, call: str) -> None:
    machine = Machine(a10s(2))
    with opened(machine, bundle, runtime, device=devices(2)) as backend:
        pending = [backend.begin(pixels_of(9, number), batch=number) for number in range(2)]
        assert [len(fetch()) for fetch in pending] == [9, 9]
        machine.cuda.fail(call, CudaError("CUDA_ERROR_LAUNCH_FAILED"), after=1)
        with pytest.raises(InferenceError, match=rf"{runtime} failed on a batch of 9: CUDA_ERROR_LAUNCH_FAILED"):
            [backend.begin(pixels_of(9, number), batch=number)() for number in range(2, 5)]


# ---- a run


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("hurry", [0.0, 0.5])
def test_the_table_is_that_of_one_gpu(
    run: Callable[..., int], out: Path, tiles: Path, on: Callable[..., Machine], runtime: str, hurry: float
) -> None:
    on(1)
    assert run(runtime, 1) == 0
    table = out.read_bytes()
    for gpus in (2, 3):
        machine = on(gpus, hurry=hurry)
        assert run(runtime, gpus, "--overwrite") == 0
        assert out.read_bytes() == table
        assert {gpu for gpu, _ in machine.computed} == set(range(gpus))
    assert verify_table(out) == []
    assert beside(out) == FINISHED


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_gives_batch_k_to_gpu_k_mod_n(
    run: Callable[..., int], out: Path, tiles: Path, on: Callable[..., Machine], runtime: str
) -> None:
    machine = on(2)
    assert run(runtime, 2) == 0
    names = [line.split(",")[0] for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(names) == 50
    batches = {number: pixels for number, (pixels, _) in enumerate(plain_batches(tiles, refs(names), BATCH))}
    assert len(batches) == BATCHES
    assert machine.gpus_of(batches) == {number: [number % 2] for number in batches}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("copies", [26, 30])
def test_an_interrupted_run_goes_on_with_other_gpus(
    run: Callable[..., int],
    out: Path,
    on: Callable[..., Machine],
    runtime: str,
    before: int,
    after: int,
    copies: int,
) -> None:
    on(1)
    assert run(runtime, 1) == 0
    table = out.read_bytes()
    machine = on(before)
    machine.cuda.fail("copy", CudaError("CUDA_ERROR_LAUNCH_FAILED: somebody pulled a plug"), after=copies)
    assert run(runtime, before, "--overwrite") == 1
    assert work_folder(out).exists()
    assert out.read_bytes() == table
    machine = on(after)
    assert run(runtime, after, "--overwrite") == 0
    assert out.read_bytes() == table
    report = RunRecord.load(record_beside(out))
    assert 0 < report.resumed < 50
    assert report.backend.device == (f"{after} x NVIDIA A10" if after > 1 else "NVIDIA A10")
    assert verify_table(out) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_gpu_is_tried_before_the_run_begins(
    run: Callable[..., int], out: Path, on: Callable[..., Machine], runtime: str
) -> None:
    """The golden tiles show on one GPU that it answers as training did; on another one, it may be broken."""
    machine = on(2)
    assert run(runtime, 2, "--dry-run") == 0
    machine.computed.clear()
    assert run(runtime, 2, setup=run_setup(stop_at="begin")) == 130
    assert {gpu for gpu, _ in machine.computed} == {0, 1}
    assert not work_folder(out).exists()


@pytest.mark.parametrize("faulty", [0, 1, 2])
def test_a_gpu_that_answers_wrongly_ends_the_run_before_it_begins(
    run: Callable[..., int], out: Path, on: Callable[..., Machine], faulty: int
) -> None:
    on(3, faulty=faulty)
    assert run("tensorrt", 3) == 1
    assert not out.exists()
    assert not work_folder(out).exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("full", [0, 1])
def test_the_batch_must_fit_every_gpu(
    run: Callable[..., int], out: Path, on: Callable[..., Machine], runtime: str, full: int
) -> None:
    """Somebody else may use one of them."""
    on(2, memory_bytes={full: IN_FLIGHT * lane_bytes(2)})
    assert run(runtime, 2) == 0
    assert RunRecord.load(record_beside(out)).batch_size == 2
