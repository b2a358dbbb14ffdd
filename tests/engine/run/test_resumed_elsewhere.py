"""A run goes on only where its rows come out as they would have: on the same kind of device, whichever was named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import InferenceError
from cervix_engine.gpu import Gpu
from engine.backends.simulated_cuda import CudaError
from engine.backends.simulated_gpu import Machine, make_engine_bundle, opened, pixels_of
from engine.bundle.engine_marks import A10
from engine.run.support import Invoke, work_folder

CUDA = "onnxruntime-cuda"
A40 = Gpu("NVIDIA A40", A10.compute_capability)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_engine_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make it a machine with these GPUs."""

    def install(*gpus: Gpu, **options: Any) -> Machine:
        machine = Machine(gpus, **options)
        machine.install(monkeypatch)
        return machine

    return install


@pytest.fixture
def begun(invoke: Invoke, out: Path, on: Callable[..., Machine]) -> None:
    """A run on an A10 that was interrupted."""
    machine = on(A10)
    machine.cuda.fail("copy", CudaError("CUDA_ERROR_LAUNCH_FAILED"), after=14)
    assert invoke("--backend", CUDA, "-b", "8").exit_code == 1
    assert work_folder(out).exists()


@pytest.mark.usefixtures("begun")
def test_another_gpu_of_the_same_capability_is_another_machine(
    invoke: Invoke, out: Path, on: Callable[..., Machine]
) -> None:
    on(A40)
    refused = invoke("--backend", CUDA)
    assert refused.exit_code == 1
    assert "device_class cuda-sm86, NVIDIA A10, this one has cuda-sm86, NVIDIA A40" in refused.stderr
    on(A10)
    assert invoke("--backend", CUDA).exit_code == 0
    assert out.exists()


@pytest.mark.usefixtures("begun")
def test_another_kind_of_device_names_the_run_that_lies_there(invoke: Invoke, out: Path) -> None:
    refused = invoke("--device", "cpu")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        "error: the run that lies there computes on onnxruntime-cuda, which --device cpu leaves out: "
        "run it as before, or pass --no-resume to discard it"
    ]
    assert invoke("--device", "cpu", "--no-resume").exit_code == 0
    assert out.exists()


def test_a_provider_that_cannot_be_loaded_is_no_way_to_run(invoke: Invoke, on: Callable[..., Machine]) -> None:
    on(A10, libraries=False)
    refused = invoke("--backend", CUDA)
    assert refused.exit_code == 1
    assert "error: ONNX Runtime's CUDA provider cannot be loaded: /nonexistent/capi/lib" in refused.stderr
    assert invoke().exit_code == 0


def test_a_batch_that_comes_too_late_is_refused(bundle: Bundle) -> None:
    """After an interruption, a thread that nobody waits for may begin one when the device is freed."""
    with opened(Machine(), bundle, CUDA) as backend:
        lanes = backend._lanes  # type: ignore[attr-defined]
        backend.infer(pixels_of(8))
    with pytest.raises(RuntimeError, match="after the model was freed"):
        lanes.begin(pixels_of(8))
    with pytest.raises((RuntimeError, InferenceError)):
        backend.infer(pixels_of(8))
