"""A certificate says what was measured, whoever it pleases."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from cervix_engine.backends import Combination
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.errors import InferenceError, ParityError
from cervix_engine.values import Pixels
from cervix_export import certify as certify_module
from cervix_export.certify import certify, certify_all, describe, require_passed
from engine.backends.more_runtimes import Fake

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]
CPU_FP32 = Combination("onnxruntime-cpu", "fp32")


def certificate_of(exported: Exported, combination: Combination = CPU_FP32) -> Certificate:
    name = f"certificates/{combination.artefact}.{combination.backend}.{combination.precision}.json"
    return Certificate.from_json(json.loads(exported[0].read(name)))


def test_every_graph_has_a_certificate_for_its_bytes(exported: Exported) -> None:
    bundle = exported[0]
    for precision in ("fp32", "fp16"):
        certificate = certificate_of(exported, Combination("onnxruntime-cpu", precision))
        assert certificate.path in bundle
        assert certificate.file_sha256 == bundle.files[certificate.file]
        assert certificate.passed
        assert certificate.parity.tiles == len(GoldenSet.load(bundle).tiles)
        assert certificate.tiles_per_sec > 0
        assert certificate.reference.startswith("keras 3.")


def test_the_fp32_graph_keeps_every_decision(exported: Exported) -> None:
    parity = certificate_of(exported).parity
    assert parity.max_absdiff <= 1e-4
    assert parity.top1_agreement == 1
    assert parity.flips == ()


def test_answers_do_not_depend_on_the_batch_size(exported: Exported, golden_pixels: Pixels) -> None:
    golden = GoldenSet.load(exported[0])
    for batch_size in (1, 7, 40, 64):
        certificate = certify(
            exported[0], golden, pixels=golden_pixels, combination=CPU_FP32, reference="keras", batch_size=batch_size
        )
        assert certificate.passed
        assert certificate.parity.tiles == len(golden_pixels)


class Recorder(FakeBackend):
    """Remembers the shapes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, pixels: Pixels) -> np.ndarray:
        self.shapes.append(pixels.shape)
        return super().infer(pixels)


@pytest.mark.parametrize(("tiles", "batch_size", "batches"), [(10, 4, 4), (40, 8, 5), (3, 32, 4)])
def test_every_batch_has_the_deployed_shape(golden_pixels: Pixels, tiles: int, batch_size: int, batches: int) -> None:
    backend = Recorder()
    answers, rate = certify_module.answers_of(backend, golden_pixels[:tiles], batch_size)
    assert backend.shapes == [(batch_size, 32, 32, 3)] * batches
    np.testing.assert_array_equal(answers, FakeBackend().infer(golden_pixels[:tiles]))
    assert rate > 0


def test_rates_are_taken_in_turn(golden_pixels: Pixels) -> None:
    order: list[str] = []

    class Named(FakeBackend):
        def infer(self, pixels: Pixels) -> np.ndarray:
            order.append(self.info.precision)
            return super().infer(pixels)

    record = Fake()
    ways = [Combination("fake", "fp32"), Combination("fake", "fp16")]
    backends = {way: Named(info=record.info(way, sha256="0" * 64)) for way in ways}
    rates = certify_module.rates_in_turn(backends, golden_pixels[:4])
    assert order == ["fp32", "fp16"] * certify_module.COMPARED_ROUNDS
    assert rates.keys() == set(ways)
    assert all(rate > 0 for rate in rates.values())


def test_a_subset_of_the_golden_tiles_can_be_asked_for(exported: Exported) -> None:
    golden = GoldenSet.load(exported[0])
    certificates = certify_all(exported[0], golden, reference="keras", batch_size=4, tiles=6)
    assert {item.parity.tiles for item in certificates} == {6}


def test_other_answers_than_keras_are_written_down_and_then_an_error(exported: Exported, golden_pixels: Pixels) -> None:
    golden = GoldenSet.load(exported[0])
    turned = tuple(replace(tile, probabilities=tile.probabilities[::-1]) for tile in golden.tiles)
    certificate = certify(
        exported[0],
        replace(golden, tiles=turned),
        pixels=golden_pixels,
        combination=CPU_FP32,
        reference="keras",
        batch_size=8,
    )
    assert not certificate.passed
    with pytest.raises(
        ParityError, match=r"model\.onnx on onnxruntime-cpu in fp32: max absolute .* limit 0\.0001"
    ) as e:
        require_passed([certificate_of(exported), certificate])
    assert len(e.value.report["certificates"]) == 1  # type: ignore[arg-type]


def test_a_mode_that_nobody_asked_for_may_fail(exported: Exported) -> None:
    failed = replace(certificate_of(exported), passed=False)
    require_passed([certificate_of(exported), replace(failed, precision="bf16")])
    with pytest.raises(ParityError):
        require_passed([replace(failed, precision="bf16"), replace(failed, precision="fp16")])


def test_a_passed_certificate_is_no_error(exported: Exported) -> None:
    require_passed([certificate_of(exported)])
    assert "top-1 100.00%" in describe(certificate_of(exported))


def test_a_graph_that_no_runtime_computes_is_an_error(exported: Exported, caplog: pytest.LogCaptureFixture) -> None:
    golden = GoldenSet.load(exported[0])
    broken = FailingBundle(exported[0].root, exported[0].digest, exported[0].files, exported[0].contract)
    with pytest.raises(InferenceError, match=r"could compute model\.fp16\.onnx"):
        certify_all(broken, golden, reference="keras", batch_size=8, tiles=4)
    assert "not certified: onnxruntime-cpu in fp16" in caplog.text


class FailingBundle(Bundle):
    """Hands a graph to the runtime that is protobuf, yet nothing that can be computed."""

    def read(self, name: str) -> bytes:
        return b"\x3a\x00" if name == "model.fp16.onnx" else super().read(name)
