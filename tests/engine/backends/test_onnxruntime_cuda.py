"""ONNX Runtime's CUDA provider runs the bundle's graphs where a GPU and the provider are, and nowhere else quietly.

The provider is the real CPU one behind the simulated GPU's streams; options, shapes and addresses are what is tested.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cervix_engine.backends import Combination, open_backend, runtime_version
from cervix_engine.backends.device import Device
from cervix_engine.backends.register import runtime
from cervix_engine.backends.selection import select
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.errors import BackendUnavailableError, InferenceError
from cervix_engine.run.record import RunRecord
from engine.backends.simulated_gpu import (
    Machine,
    a10s,
    batch,
    certified,
    make_engine_bundle,
    opened,
    pixels_of,
    ways_here,
)
from engine.run.support import read_table, reference_probabilities

CUDA = Device.parse("cuda")
FP32, FP16 = Combination("onnxruntime-cuda", "fp32"), Combination("onnxruntime-cuda", "fp16")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_engine_bundle(tmp_path / "bundle")


# ---- the backend


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("combination", "atol"), [(FP32, 1e-5), (FP16, 0.05)])
def test_it_answers_as_the_model_does(bundle: Bundle, combination: Combination, atol: float) -> None:
    with open_backend(bundle, combination=combination) as backend:
        for seed, count in enumerate((8, 8, 3, 40, 1)):
            pixels = pixels_of(count, seed)
            answers = backend.infer(pixels)
            np.testing.assert_allclose(answers, reference_probabilities(pixels), atol=atol)
            assert answers.dtype == np.float32


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("combination", [FP32, FP16])
def test_it_says_what_runs(bundle: Bundle, combination: Combination) -> None:
    info = open_backend(bundle, combination=combination, device=CUDA).info
    assert (info.backend, info.version, info.device) == ("onnxruntime-cuda", onnxruntime.__version__, "NVIDIA A10")
    assert info.precision == info.arithmetic == combination.precision
    assert (info.device_class, info.artefact) == ("cuda-sm86", combination.artefact)
    assert info.artefact_sha256 == bundle.files[combination.artefact]
    assert runtime_version("onnxruntime-cuda") == info.version
    assert runtime("onnxruntime-cuda").device_class(CUDA) == info.device_class


@pytest.mark.usefixtures("machine")
def test_it_may_be_loaded_again(bundle: Bundle) -> None:
    backend = open_backend(bundle, combination=FP32)
    for _ in range(2):
        with backend:
            np.testing.assert_allclose(backend.infer(pixels_of(2)), reference_probabilities(pixels_of(2)), atol=1e-5)


def test_it_runs_on_the_gpu_that_is_asked_for(bundle: Bundle) -> None:
    machine = Machine(a10s(3))
    with opened(machine, bundle, "onnxruntime-cuda", device="cuda:2") as backend:
        backend.infer(pixels_of(2))
    assert {gpu for gpu, _ in machine.computed} == {2}
    assert machine.cuda.used_bytes[:2] == [0, 0]


def test_a_session_that_runs_elsewhere_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(falls_back=True)
    machine.install(monkeypatch)
    with pytest.raises(BackendUnavailableError, match="CPUExecutionProvider"), open_backend(bundle, combination=FP32):
        pass
    assert machine.computed == []


@pytest.mark.usefixtures("machine")
def test_a_graph_that_does_not_load_is_an_error(bundle: Bundle) -> None:
    graph = (bundle.root / "model.onnx").read_bytes()
    (bundle.root / "model.onnx").write_bytes(graph.replace(b"Softmax", b"Hardmix"))
    broken = seal(bundle.root)
    with pytest.raises(InferenceError, match=r"cannot load model\.onnx"), open_backend(broken, combination=FP32):
        pass


# ---- where it is a way to run


def test_it_is_a_way_to_run_fp32_and_fp16_where_a_gpu_is(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {FP32, FP16} & ways_here(bundle)
    for gpus, provider, fits in ((1, True, True), (1, False, False), (0, True, False)):
        Machine(a10s(gpus), provider=provider).install(monkeypatch)
        assert ({FP32, FP16} <= ways_here(bundle)) is fits
    Machine().install(monkeypatch)
    kinds = {item.precision for item in ways_here(bundle) if item.backend == "onnxruntime-cuda"}
    assert kinds == {"fp32", "fp16"}


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        (("--fp16",), {"provider": False}, "no CUDA provider: pip install '.[gpu]', and not '.[cpu]'"),
        (("--precision", "bf16"), {}, "does not multiply in bf16: use --precision fp16, or TensorRT"),
        (("--precision", "fp32"), {"gpus": ()}, "needs an NVIDIA GPU: the driver offers none"),
    ],
)
def test_what_is_missing_is_named(
    tiles: Path,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    changes: dict[str, Any],
    reason: str,
) -> None:
    Machine(**changes).install(monkeypatch)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "onnxruntime-cuda", *options)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert reason in done.stderr


def test_without_cuda_core_it_is_no_way_to_run(
    tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    assert FP32 not in ways_here(bundle)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "onnxruntime-cuda")
    assert (done.exit_code, machine.computed) == (1, [])
    assert "needs cuda-core: pip install '.[gpu]'" in done.stderr


# ---- a run


def test_a_run_on_it(tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine) -> None:
    out, plain = tmp_path / "preds.csv", tmp_path / "plain.csv"
    done = batch(tiles, bundle, out, "--backend", "onnxruntime-cuda", "--batch-size", "8")
    assert done.exit_code == 0, done.stderr
    assert batch(tiles, bundle, plain, "--backend", "onnxruntime-cpu", "--batch-size", "8").exit_code == 0
    for row, expected in zip(read_table(out), read_table(plain), strict=True):
        assert (row["path"], row["pred"], row["status"]) == (expected["path"], expected["pred"], "ok")
    ran = RunRecord.load(tmp_path / "preds.csv.run.json").backend
    assert (ran.backend, ran.precision, ran.artefact) == ("onnxruntime-cuda", "fp32", "model.onnx")
    assert "cervix-infer" in machine.threads
    assert machine.loaded == []


@pytest.mark.usefixtures("machine")
def test_auto_takes_it_where_its_certificate_is_the_fastest(bundle: Bundle) -> None:
    assert select(bundle, precision="auto").combination.backend == "onnxruntime-cpu"
    sealed, _ = certified(bundle, FP16)
    assert select(sealed, precision="auto", require_parity=True).combination == FP16
    assert select(sealed, precision="auto", device=Device.parse("cpu")).combination.backend == "onnxruntime-cpu"
