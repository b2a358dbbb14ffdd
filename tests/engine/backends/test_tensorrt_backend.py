"""An engine is run as its profile allows, and only where it fits; what it answers reaches the table.

TensorRT and the GPU are simulated: what is shown here is the backend's part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.backends import Combination, open_backend
from cervix_engine.backends.device import ANY
from cervix_engine.backends.register import runtime
from cervix_engine.backends.selection import select
from cervix_engine.backends.survey import survey
from cervix_engine.backends.tensorrt import TensorRt, TensorRtRtx
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.engine_file import fingerprint_path
from cervix_engine.cli.doctor import main as doctor
from cervix_engine.errors import ContractError, InferenceError
from cervix_engine.gpu import Gpu
from cervix_engine.run.record import RunRecord
from cervix_engine.run.session import SessionRequest, open_session
from engine.backends.simulated_gpu import (
    DATA,
    VERSION,
    Machine,
    batch,
    certified,
    make_engine_bundle,
    pixels_of,
    ways_here,
)
from engine.bundle.engine_marks import A10, ENGINE, H100, L4
from engine.run.support import read_table, reference_probabilities

COMBINATION = Combination("tensorrt", "fp16", ENGINE)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_engine_bundle(tmp_path / "bundle")


# ---- the backend


@pytest.mark.usefixtures("machine")
def test_it_answers_batches_of_every_size_of_its_profile(bundle: Bundle) -> None:
    with open_backend(bundle, combination=COMBINATION) as backend:
        for seed, count in enumerate((8, 8, 3, 32, 1)):
            pixels = pixels_of(count, seed)
            np.testing.assert_array_equal(backend.infer(pixels), reference_probabilities(pixels))


@pytest.mark.usefixtures("machine")
def test_answers_belong_to_the_caller(bundle: Bundle) -> None:
    first, second = pixels_of(8, 1), pixels_of(8, 2)
    with open_backend(bundle, combination=COMBINATION) as backend:
        kept = backend.infer(first)
        backend.infer(second)
    np.testing.assert_array_equal(kept, reference_probabilities(first))


@pytest.mark.usefixtures("machine")
def test_it_says_what_runs(bundle: Bundle) -> None:
    info = open_backend(bundle, combination=COMBINATION).info
    assert (info.backend, info.version, info.device) == ("tensorrt", VERSION, "NVIDIA A10")
    assert (info.precision, info.device_class, info.artefact) == ("fp16", "cuda-sm86", ENGINE)
    assert info.artefact_sha256 == bundle.files[ENGINE]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("count", [3, 33])
def test_a_batch_outside_of_the_profile_names_the_options(tmp_path: Path, count: int) -> None:
    bundle = make_engine_bundle(tmp_path / "narrow", min_batch=4)
    with (
        open_backend(bundle, combination=COMBINATION) as backend,
        pytest.raises(InferenceError, match=rf"batches of 4 to 32 tiles, got {count}: .*--batch-size.*--max-batch"),
    ):
        backend.infer(pixels_of(count))


def test_an_engine_that_does_not_load_is_an_error_with_the_runtimes_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(broken=True).install(monkeypatch)
    reason = "tensorrt cannot load .*: its bytes are refused: a reason of the runtime's own"
    with pytest.raises(InferenceError, match=reason), open_backend(bundle, combination=COMBINATION):
        pass


def test_an_engine_of_other_outputs_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(classes=4).install(monkeypatch)
    with pytest.raises(ContractError, match="probabilities"), open_backend(bundle, combination=COMBINATION):
        pass


def test_without_cuda_core_the_engine_is_no_way_to_run(
    tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    assert COMBINATION not in ways_here(bundle)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt")
    assert (done.exit_code, machine.loaded) == (1, [])
    assert "needs cuda-core: pip install '.[gpu]'" in done.stderr


@pytest.mark.usefixtures("machine")
def test_an_automatic_batch_size_keeps_to_the_profile(tiles: Path, tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "narrow", min_batch=4)
    out = tmp_path / "preds.csv"
    done = batch(tiles, bundle, out, "--backend", "tensorrt", "--batch-size", "auto")
    assert done.exit_code == 0, done.stderr
    assert 4 <= RunRecord.load(tmp_path / "preds.csv.run.json").batch_size <= 32


def test_a_broken_fingerprint_keeps_no_graph_from_being_run(tiles: Path, bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / fingerprint_path(ENGINE)).write_text('{"schema": "cervix/engine/1"}', encoding="utf-8")
    broken = seal(bundle.root)
    assert batch(tiles, broken, tmp_path / "preds.csv", "--precision", "fp32").exit_code == 0
    refused = batch(tiles, broken, tmp_path / "other.csv", "--backend", "tensorrt")
    assert refused.exit_code == 1
    assert "engine fingerprint is malformed" in refused.stderr
    told = CliRunner().invoke(doctor, ["--model", str(broken.root)]).stdout
    assert "engine fingerprint is malformed" in " ".join(told.split())


# ---- the choice


def test_an_engine_is_a_way_to_run_the_bundle_where_it_fits(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMBINATION not in ways_here(bundle)
    for gpus, fits in (((A10,), True), ((L4,), False), ((), False)):
        Machine(gpus).install(monkeypatch)
        assert (COMBINATION in ways_here(bundle)) is fits
    assert runtime("tensorrt").device_class(ANY) is None


@pytest.mark.usefixtures("machine")
def test_auto_takes_the_engine_that_is_certified_and_fastest(bundle: Bundle) -> None:
    assert select(bundle, precision="auto").combination.backend == "onnxruntime-cpu"
    sealed, certificate = certified(bundle, COMBINATION)
    chosen = select(sealed, precision="auto", require_parity=True)
    assert (chosen.combination, chosen.certificate) == (COMBINATION, certificate)


# ---- the command


def test_a_run_on_the_engine(tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine) -> None:
    out = tmp_path / "preds.csv"
    done = batch(tiles, bundle, out, "--backend", "tensorrt", "--batch-size", "8")
    assert done.exit_code == 0, done.stderr
    assert {row["status"] for row in read_table(out)} == {"ok"}
    plain = tmp_path / "plain.csv"
    assert batch(tiles, bundle, plain, "--backend", "onnxruntime-cpu", "--batch-size", "8").exit_code == 0
    assert [row["pred"] for row in read_table(out)] == [row["pred"] for row in read_table(plain)]
    ran = RunRecord.load(tmp_path / "preds.csv.run.json").backend
    assert (ran.backend, ran.artefact, machine.loaded) == ("tensorrt", ENGINE, [DATA])


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_an_engine_for_another_gpu_ends_with_5_before_it_is_loaded(
    tiles: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    machine = Machine((L4,))
    machine.install(monkeypatch)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt", "--precision", precision)
    assert (done.exit_code, machine.loaded) == (5, [])
    assert "was built for NVIDIA A10, here is NVIDIA L4 (8.9); rebuild it: cervix-export" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_altered_engine_is_refused_before_it_is_loaded(
    tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine
) -> None:
    (bundle.root / ENGINE).write_bytes(DATA[:-1] + b"?")
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt")
    assert (done.exit_code, machine.loaded) == (1, [])


@pytest.mark.parametrize(
    ("gpus", "backend", "precision", "reason"),
    [
        ((), "tensorrt", "auto", "needs an NVIDIA GPU"),
        ((A10,), "tensorrt-rtx", "auto", "the bundle has no tensorrt-rtx engine: make one with cervix-export"),
        ((A10,), "tensorrt", "fp32", "no fp32 engine for tensorrt"),
    ],
)
def test_what_is_missing_is_named(
    tiles: Path,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: Any,
    backend: str,
    precision: str,
    reason: str,
) -> None:
    Machine(gpus).install(monkeypatch)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", backend, "--precision", precision)
    assert done.exit_code == 1
    assert reason in done.stderr


def test_without_tensorrt_it_is_named(
    tiles: Path, bundle: Bundle, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt")
    assert (done.exit_code, machine.loaded) == (1, [])
    assert "needs tensorrt, which cannot be loaded here" in done.stderr


def test_the_doctor_says_why_an_engine_is_not_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine((L4,)).install(monkeypatch)
    told = CliRunner().invoke(doctor, ["--json", "--model", str(bundle.root)]).stdout
    assert "was built for NVIDIA A10, here is NVIDIA L4" in told


# ---- a runtime that does not run on the GPU at all


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("runtime", ["tensorrt-rtx", "tensorrt"], ids=["with an engine", "without one"])
def test_a_gpu_that_the_runtime_does_not_know_ends_with_5_before_anything_is_loaded(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    Machine((H100,)).install(monkeypatch)
    bundle = make_engine_bundle(tmp_path / "rtx", runtime=runtime, gpu=None, compute_capabilities=("8.9", "9.0"))
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt-rtx", "--precision", precision)
    assert done.exit_code == 5
    assert "TensorRT-RTX does not run on NVIDIA H100 80GB HBM3, compute capability 9.0: it supports 8.0" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_doctor_says_that_the_runtime_does_not_know_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine((H100,)).install(monkeypatch)
    bundle = make_engine_bundle(tmp_path / "rtx", runtime="tensorrt-rtx", gpu=None, compute_capabilities=("8.9",))
    told = json.loads(CliRunner().invoke(doctor, ["--json", "--model", str(bundle.root)]).stdout)
    (reason,) = [way["reason"] for way in told["ways"] if way["backend"] == "tensorrt-rtx"]
    assert reason.startswith("TensorRT-RTX does not run on NVIDIA H100")


def test_the_gpus_that_tensorrt_rtx_runs_on() -> None:
    known = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1", "13.0"]
    gpus = [Gpu("a GPU", capability) for capability in known]
    here = [gpu.compute_capability for gpu in gpus if TensorRtRtx().gpu_objection(gpu) is None]
    assert here == ["8.0", "8.6", "8.9", "12.0", "12.1", "13.0"]
    assert not any(TensorRt().gpu_objection(gpu) for gpu in gpus)


# ---- which engines of a bundle are meant


@pytest.mark.usefixtures("machine")
def test_an_integer_engine_is_asked_for_by_name(tiles: Path, tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "integers", precision="int8")
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt")
    assert done.exit_code == 1
    assert "the bundle has no engine in floating point for tensorrt: use --precision int8" in done.stderr
    done = batch(tiles, bundle, tmp_path / "preds.csv", "--backend", "tensorrt", "--int8")
    assert done.exit_code == 0, done.stderr


def test_an_engine_of_a_runtime_that_nobody_knows_is_a_problem(tmp_path: Path) -> None:
    bundle = make_engine_bundle(tmp_path / "abacus", runtime="abacus")
    problem = f"{ENGINE} is for the runtime 'abacus': unknown to this version"
    assert survey(bundle).problems == (problem,)
    assert problem in CliRunner().invoke(doctor, ["--model", str(bundle.root)]).stdout


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("usual", "asked", "taken"), [(16, None, 16), (None, None, 8), (16, 4, 4)])
def test_a_run_takes_the_engines_usual_batch_unless_told_otherwise(
    tmp_path: Path, usual: int | None, asked: int | None, taken: int
) -> None:
    bundle = make_engine_bundle(tmp_path / "bundle", usual_batch=usual)
    with open_session(SessionRequest(bundle, backend="tensorrt", batch_size=asked)) as session:
        assert session.batch_size == taken
