"""OpenVINO computes what was asked for, in the precision that was asked for, or says why not."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.backends import Combination, objection, open_backend, runtime_version
from cervix_engine.backends.openvino import IN_FLIGHT, PLENTY_BYTES, OpenVino, OpenVinoBackend, cpu_objection, parts_of
from cervix_engine.backends.selection import select
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate, Parity
from cervix_engine.cli.batch import main
from cervix_engine.errors import BackendUnavailableError, InferenceError
from cervix_engine.files import write_json
from cervix_engine.machine import cpu_class, cpu_has_bf16, cpu_has_vnni
from cervix_engine.run.record import RunRecord
from cervix_engine.values import Precision
from engine.run.support import make_bundle, read_table, reference_probabilities, run_setup, tiny_onnx

needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="needs a CPU with BF16 instructions")


class SilentlyBf16(OpenVinoBackend):
    """Does what OpenVINO does by itself on a CPU with BF16."""

    def float_kernels(self) -> str:
        return "bf16"


def backend(
    model: bytes | None = None, precision: Precision = "fp32", kind: type[OpenVinoBackend] = OpenVinoBackend
) -> OpenVinoBackend:
    info = OpenVino().info(Combination("openvino", precision), sha256="0" * 64)
    return kind(tiny_onnx() if model is None else model, info)


def pixels_of(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_fp32_answers_as_numpy_does_for_every_batch_size() -> None:
    with backend() as model:
        for seed, count in enumerate((8, 8, 3, 1)):
            pixels = pixels_of(count, seed)
            np.testing.assert_allclose(model.infer(pixels), reference_probabilities(pixels), atol=1e-5)


def test_a_batch_too_many_costs_no_other_its_answers() -> None:
    batches = [pixels_of(32, seed) for seed in range(IN_FLIGHT)]
    with backend() as model:
        pending = [model.begin(pixels) for pixels in batches]
        with pytest.raises(InferenceError, match="more than 2 batches at a time"):
            model.begin(pixels_of(32, 9))
        for pixels, fetch in zip(batches, pending, strict=True):
            np.testing.assert_allclose(fetch(), reference_probabilities(pixels), atol=1e-5)


def test_failures_leave_it_able_to_compute() -> None:
    pixels = pixels_of(32)
    with backend() as model:
        expected = model.infer(pixels)
        for _ in range(IN_FLIGHT + 1):
            with pytest.raises(InferenceError):
                model.infer(np.zeros((32, 32, 32, 4), np.uint8))
            fetch = model.begin(pixels)
            model.cancel()
            with suppress(InferenceError):  # it may have been done
                fetch()
        np.testing.assert_array_equal(model.infer(pixels), expected)


def test_answers_belong_to_the_caller() -> None:
    first = pixels_of(4, 1)
    with backend() as model:
        kept = model.infer(first)
        model.infer(pixels_of(4, 2))
    np.testing.assert_allclose(kept, reference_probabilities(first), atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "threads", "left", "parts"),
    [
        (32, 2, math.inf, 2),
        (512, 16, math.inf, 2),
        (30, 2, math.inf, 1),  # halves of too few tiles
        (33, 2, math.inf, 1),
        (32, 1, math.inf, 1),
        (32, 3, math.inf, 1),  # one half would get fewer threads
        (32, 2, PLENTY_BYTES, 1),  # the weights would be there twice
    ],
)
def test_a_batch_is_halved_where_that_is_faster_and_there_is_memory(
    batch: int, threads: int, left: float, parts: int
) -> None:
    assert parts_of(batch, threads=threads, left=left) == parts


def test_halves_have_the_digits_of_the_whole() -> None:
    pixels = pixels_of(64)
    answers = []
    for threads in (1, 2):
        info = replace(OpenVino().info(Combination("openvino", "fp32"), sha256="0" * 64), threads=threads)
        with OpenVinoBackend(tiny_onnx(), info) as model:
            answers.append(model.infer(pixels))
    np.testing.assert_array_equal(answers[0], answers[1])


def test_batches_in_flight_are_fetched_in_their_order() -> None:
    batches = [pixels_of(32, seed) for seed in range(5)]
    with backend() as model:
        pending = [model.begin(batch) for batch in batches[:IN_FLIGHT]]
        answers = []
        for batch in batches[IN_FLIGHT:]:
            answers.append(pending.pop(0)())
            pending.append(model.begin(batch))
        answers += [fetch() for fetch in pending]
    for batch, got in zip(batches, answers, strict=True):
        np.testing.assert_allclose(got, reference_probabilities(batch), atol=1e-5)


def interrupted(model: OpenVinoBackend, pixels: Any) -> None:
    with model.pinned(pixels):
        for _ in range(IN_FLIGHT):
            model.begin(pixels)
        raise KeyboardInterrupt


def test_a_batch_that_nobody_fetches_is_ended_before_its_memory_goes() -> None:
    with backend() as model:
        with pytest.raises(KeyboardInterrupt):
            interrupted(model, pixels_of(32))
        again = pixels_of(32, 1)
        np.testing.assert_allclose(model.infer(again), reference_probabilities(again), atol=1e-5)


@needs_bf16
def test_bf16_is_near_and_is_not_fp32() -> None:
    pixels = pixels_of(16)
    with backend(precision="bf16") as model:
        answers = model.infer(pixels)
    expected = reference_probabilities(pixels)
    np.testing.assert_allclose(answers, expected, atol=0.05)
    assert np.abs(answers - expected).max() > 1e-5


@needs_bf16
def test_an_fp32_run_that_would_silently_be_bf16_is_refused() -> None:
    with (
        backend(kind=SilentlyBf16) as model,
        pytest.raises(InferenceError, match="asked for fp32, OpenVINO chose other"),
    ):
        model.infer(pixels_of(4))


@pytest.mark.skipif(not cpu_has_vnni(), reason="needs a CPU with VNNI instructions")
def test_a_float_graph_that_poses_as_int8_is_refused() -> None:
    with backend(precision="int8") as model, pytest.raises(InferenceError, match="asked for int8"):
        model.infer(pixels_of(4))


@pytest.mark.parametrize(
    ("precision", "reason"),
    [("fp16", "computes an FP16 graph in FP32"), ("bf16", "no bf16 instructions"), ("int8", "no VNNI instructions")],
)
def test_what_a_cpu_does_not_compute_is_refused(precision: Precision, reason: str) -> None:
    assert reason in str(cpu_objection(precision, flags=frozenset({"avx2"})))
    capable = cpu_objection(precision, flags=frozenset({"avx512_bf16", "avx512_vnni"}))
    assert (capable is None) is (precision != "fp16")


def test_a_precision_that_it_does_not_run_is_not_opened(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    (made.root / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    with pytest.raises(BackendUnavailableError, match="computes an FP16 graph in FP32"):
        open_backend(seal(made.root), combination=Combination("openvino", "fp16"))


def test_without_openvino_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert objection("openvino", "fp32") == "OpenVINO is not installed: pip install '.[cpu]'"


def test_a_certificate_of_openvino_s_is_passed_over_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(tmp_path / "bundle")
    certificate = Certificate(
        file="model.onnx",
        file_sha256=made.files["model.onnx"],
        backend="openvino",
        backend_version=runtime_version("openvino") or "",
        precision="fp32",
        arithmetic="fp32",
        device_class=cpu_class(),
        reference="numpy",
        parity=Parity(tiles=24, max_absdiff=0.0, p99_absdiff=0.0, top1_agreement=1.0, flips=()),
        tiles_per_sec=1e6,
        passed=True,
    )
    (made.root / "certificates").mkdir()
    write_json(made.root / certificate.path, certificate.to_json())
    certified = seal(made.root)
    assert select(certified, precision="auto").combination == Combination("openvino", "fp32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert runtime_version("openvino") is None
    assert select(certified, precision="auto").combination == Combination("onnxruntime-cpu", "fp32")


def test_a_file_that_is_no_graph_is_an_error() -> None:
    with pytest.raises(InferenceError, match=r"cannot load model\.onnx"), backend(b"not a graph"):
        pass


def test_a_batch_of_another_shape_is_an_error() -> None:
    with backend() as model, pytest.raises(InferenceError, match="batch of 2"):
        model.infer(np.zeros((2, 32, 32, 4), np.uint8))


def test_a_run_on_it(tiles: Path, bundle: Bundle, tmp_path: Path) -> None:
    out, plain = tmp_path / "preds.csv", tmp_path / "plain.csv"
    for path, name in ((out, "openvino"), (plain, "onnxruntime-cpu")):
        options = ["--out", str(path), "--model", str(bundle.root), "--backend", name]
        assert CliRunner().invoke(main, [str(tiles), *options]).exit_code == 0
    ours, theirs = read_table(out), read_table(plain)
    assert [row["pred"] for row in ours] == [row["pred"] for row in theirs]
    assert [row["path"] for row in ours] == [row["path"] for row in theirs]
    ran = RunRecord.load(tmp_path / "preds.csv.run.json").backend
    assert (ran.backend, ran.precision) == ("openvino", "fp32")


def test_a_partial_run_does_not_go_on_on_another_backend(tiles: Path, bundle: Bundle, tmp_path: Path) -> None:
    options = [str(tiles), "--out", str(tmp_path / "preds.csv"), "--model", str(bundle.root)]
    stopping = run_setup(stop_at="missing")
    assert CliRunner().invoke(main, [*options, "--backend", "openvino"], obj=stopping).exit_code == 130
    refused = CliRunner().invoke(main, [*options, "--backend", "onnxruntime-cpu"])
    assert refused.exit_code == 1
    assert "backend" in refused.stderr
    assert CliRunner().invoke(main, options).exit_code == 0
    assert RunRecord.load(tmp_path / "preds.csv.run.json").backend.backend == "openvino"


def test_the_combination_opens_it(bundle: Bundle) -> None:
    with open_backend(bundle, combination=Combination("openvino", "fp32"), threads=1) as model:
        assert (model.info.backend, model.info.threads) == ("openvino", 1)
        assert model.infer(pixels_of(2)).shape == (2, 5)
