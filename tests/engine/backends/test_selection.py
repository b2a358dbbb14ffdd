"""What runs is certified where it can be, and what does not answer as training did does not run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.backends import Combination, open_backend
from cervix_engine.backends.device import Device
from cervix_engine.backends.fake import FakeBackend
from cervix_engine.backends.selection import Selection, choose, replay_golden, select
from cervix_engine.backends.survey import Way, certificates, survey
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate, Parity
from cervix_engine.bundle.golden import REPLAYED, GoldenSet
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError, ParityError
from cervix_engine.files import write_json
from cervix_engine.machine import cpu_class
from engine.backends.more_runtimes import Fake
from engine.run.support import GOLDEN_TILES, SpyBackend, make_bundle, tiny_onnx

CPU, OPENVINO = "onnxruntime-cpu", "onnxruntime-openvino"
PARITY = Parity(tiles=24, max_absdiff=0.0, p99_absdiff=0.0, top1_agreement=1.0, flips=())

# A machine with two runtimes; a third one is known, and not installed.
ONE = Fake(CPU, refuses={"bf16": "one has no bf16"})
TWO = Fake(OPENVINO, refuses={"fp16": "two has no fp16"})
HERE = (ONE, TWO, Fake("openvino", installed=None))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle with a file in every precision."""
    root = make_bundle(tmp_path / "full").root
    (root / "model.fp16.onnx").write_bytes(tiny_onnx(half=True))
    (root / "model.int8.onnx").write_bytes(b"stands for the INT8 model")
    return root


def certificate(root: Path, backend: str = CPU, precision: Any = "fp32", **changes: Any) -> Certificate:
    file = Combination(backend, precision).artefact
    made = Certificate(
        file=file,
        file_sha256=hashlib.sha256((root / file).read_bytes()).hexdigest(),
        backend=backend,
        backend_version="1",
        precision=precision,
        arithmetic=precision,
        device_class=cpu_class(),
        reference="numpy",
        parity=PARITY,
        tiles_per_sec=10.0,
        passed=True,
    )
    return replace(made, **changes)


def sealed(root: Path, *made: Certificate) -> Bundle:
    (root / "certificates").mkdir(exist_ok=True)
    for item in made:
        write_json(root / item.path, item.to_json())
    return seal(root)


def selected(bundle: Bundle, precision: Any = "auto", among: Any = HERE, **options: Any) -> Selection:
    return choose(survey(bundle, among=among), precision=precision, **options)


def chosen(bundle: Bundle, precision: Any = "auto", **options: Any) -> tuple[str, str, bool]:
    selection = selected(bundle, precision, **options)
    covered = selection.certificate is not None
    if selection.certificate:
        assert selection.certificate.backend == selection.combination.backend
        assert selection.certificate.precision == selection.combination.precision
    return selection.combination.backend, selection.combination.precision, covered


def way_of(bundle: Bundle, backend: str, precision: Any) -> Way:
    (way,) = [way for way in survey(bundle, among=HERE).ways if way.combination == Combination(backend, precision)]
    return way


# ---- the choice


def test_without_certificates_auto_is_fp32_on_the_plain_runtime(root: Path) -> None:
    assert chosen(sealed(root)) == (CPU, "fp32", False)


def test_auto_takes_the_fastest_certified(root: Path) -> None:
    bundle = sealed(
        root,
        certificate(root, CPU, "fp32", tiles_per_sec=20.0),
        certificate(root, OPENVINO, "fp32", tiles_per_sec=25.0),
        certificate(root, OPENVINO, "bf16", tiles_per_sec=150.0),
        certificate(root, CPU, "fp16", tiles_per_sec=5.0),
    )
    assert chosen(bundle) == (OPENVINO, "bf16", True)
    assert chosen(bundle, "fp32") == (OPENVINO, "fp32", True)
    assert chosen(bundle, "fp16") == (CPU, "fp16", True)
    assert chosen(bundle, backend=CPU) == (CPU, "fp32", True)


def test_auto_never_takes_int8(root: Path) -> None:
    integers = certificate(root, CPU, "int8", tiles_per_sec=1e6)
    assert chosen(sealed(root, integers)) == (CPU, "fp32", False)
    assert chosen(sealed(root, integers), "int8") == (CPU, "int8", True)
    halves = certificate(root, CPU, "fp16", tiles_per_sec=20.0)
    assert chosen(sealed(root, integers, halves)) == (CPU, "fp16", True)
    assert chosen(sealed(root, integers, halves), backend=CPU) == (CPU, "fp16", True)


def passed_over(bundle: Bundle, precision: Any = "auto", **options: Any) -> dict[tuple[str, str], str | None]:
    ways = selected(bundle, precision, **options).passed_over
    return {(way.combination.backend, way.combination.precision): way.reason for way in ways}


def test_what_was_faster_and_is_not_taken_is_told_with_the_reason(root: Path) -> None:
    bundle = sealed(
        root,
        certificate(root, CPU, "fp32", tiles_per_sec=20.0),
        certificate(root, OPENVINO, "fp32", tiles_per_sec=30.0, backend_version="0.9"),
        certificate(root, OPENVINO, "bf16", tiles_per_sec=60.0, backend_version="0.9"),
        certificate(root, CPU, "int8", tiles_per_sec=40.0),
        certificate(root, OPENVINO, "int8", tiles_per_sec=90.0),
        certificate(root, CPU, "fp16", tiles_per_sec=1.0, backend_version="0.9"),
    )
    stale = "onnxruntime-openvino 1 is here, certified with 0.9"
    assert passed_over(bundle) == {(OPENVINO, "bf16"): stale, (OPENVINO, "int8"): None}
    assert passed_over(bundle, "fp32") == {(OPENVINO, "fp32"): stale}
    assert passed_over(bundle, backend=CPU) == {(CPU, "int8"): None}
    assert passed_over(bundle, "int8") == {}
    assert passed_over(bundle, among=(ONE, Fake(OPENVINO, installed=None))) == {
        (OPENVINO, "bf16"): "onnxruntime-openvino is not installed",
        (OPENVINO, "int8"): "onnxruntime-openvino is not installed",
    }


def test_what_needs_a_gpu_is_not_told_where_there_is_none(root: Path) -> None:
    bundle = sealed(root, certificate(root, "onnxruntime-cuda", "fp16", tiles_per_sec=1e6, device_class="cuda-sm86"))
    assert [way.combination.backend for way in survey(bundle).ways if way.certificate] == ["onnxruntime-cuda"]
    assert select(bundle, precision="auto").passed_over == ()


def test_of_equally_fast_ones_auto_takes_the_nearest_to_keras(root: Path) -> None:
    far = replace(PARITY, max_absdiff=0.001)
    near = certificate(root, CPU, "fp32", tiles_per_sec=19.5)
    assert chosen(sealed(root, near, certificate(root, CPU, "fp16", tiles_per_sec=20.0, parity=far)))[1] == "fp32"
    assert chosen(sealed(root, near, certificate(root, CPU, "fp16", tiles_per_sec=30.0, parity=far)))[1] == "fp16"


def test_a_certified_choice_goes_before_an_uncertified_one(root: Path) -> None:
    bundle = sealed(root, certificate(root, OPENVINO, "fp32", tiles_per_sec=0.1))
    assert chosen(bundle) == (OPENVINO, "fp32", True)
    assert chosen(bundle, "int8") == (CPU, "int8", False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device_class": "cpu-elsewhere"}, "certified on cpu-elsewhere, this is cpu-"),
        ({"backend_version": "0.0.1"}, "onnxruntime-openvino 1 is here, certified with 0.0.1"),
        ({"passed": False}, "its certificate's gate was not passed"),
        ({"file_sha256": "0" * 64}, "no certificate"),
        ({"backend": "tensorrt"}, "no certificate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_certificate_does_not_cover(root: Path, changes: dict[str, Any], reason: str) -> None:
    fast = replace(certificate(root, OPENVINO, "bf16", tiles_per_sec=1e6), **changes)
    slow = certificate(root, CPU, "fp16", tiles_per_sec=1.0)
    assert chosen(sealed(root, fast, slow)) == (CPU, "fp16", True)
    (root / slow.path).unlink()
    bundle = sealed(root)
    assert chosen(bundle) == (CPU, "fp32", False)
    assert not way_of(bundle, OPENVINO, "bf16").certified
    assert str(way_of(bundle, OPENVINO, "bf16").reason).startswith(reason)
    with pytest.raises(ParityError, match="no certificate covers fp32"):
        selected(bundle, require_parity=True)


def test_of_two_certificates_the_one_that_is_for_this_machine_counts(root: Path) -> None:
    here = certificate(root)
    (root / "certificates").mkdir()
    elsewhere = replace(here, device_class="cpu-elsewhere").to_json()
    write_json(root / "certificates" / "a.json", elsewhere)
    write_json(root / "certificates" / "z.json", elsewhere)
    bundle = sealed(root, here)
    assert way_of(bundle, CPU, "fp32") == Way(Combination(CPU, "fp32"), certificate=here)


def test_a_certificate_covers_its_own_file_only(root: Path) -> None:
    # The FP32 graph is not what was measured, whatever the precision's name says.
    of_other_file = replace(
        certificate(root, CPU, "fp16", tiles_per_sec=100.0), precision="fp32"
    )  # its file stays model.fp16.onnx
    bundle = sealed(root, of_other_file)
    assert len(certificates(bundle)) == 1
    assert chosen(bundle) == (CPU, "fp32", False)


def test_a_file_that_was_altered_and_sealed_again_loses_its_certificate(root: Path) -> None:
    bundle = sealed(root, certificate(root))
    assert chosen(bundle) == (CPU, "fp32", True)
    (root / "model.onnx").write_bytes(tiny_onnx(swapped=True))
    bundle = sealed(root)
    assert certificates(bundle) == []
    assert chosen(bundle) == (CPU, "fp32", False)


def test_a_precision_that_the_bundle_has_no_file_for(root: Path) -> None:
    (root / "model.fp16.onnx").unlink()
    with pytest.raises(BackendUnavailableError, match=r"no model\.fp16\.onnx"):
        selected(sealed(root), "fp16")


def test_a_precision_that_the_machine_has_not(root: Path) -> None:
    bundle = sealed(root, certificate(root, OPENVINO, "bf16", tiles_per_sec=100.0))
    without = (ONE, Fake(OPENVINO, refuses={"bf16": "this CPU has no bf16"}))
    assert chosen(bundle, among=without) == (CPU, "fp32", False)
    with pytest.raises(BackendUnavailableError) as refused:
        selected(bundle, "bf16", among=without)
    assert str(refused.value) == (
        "no backend on this machine runs bf16: use --precision auto (one has no bf16; this CPU has no bf16)"
    )


def test_a_machine_without_any_runtime_names_them(root: Path) -> None:
    nothing = (Fake(CPU, installed=None), Fake("openvino", installed=None))
    with pytest.raises(
        BackendUnavailableError, match=r"runs fp32 \(onnxruntime-cpu is not inst.*; openvino is not inst"
    ):
        selected(sealed(root), among=nothing)
    with pytest.raises(BackendUnavailableError, match=r"^openvino is not installed$"):
        selected(sealed(root), among=nothing, backend="openvino")


def test_a_runtime_that_is_missing_stops_no_other(root: Path) -> None:
    only_last = (Fake(CPU, installed=None), Fake(OPENVINO, installed=None), Fake("openvino"))
    assert chosen(sealed(root), among=only_last) == ("openvino", "fp32", False)


def test_every_way_has_a_certificate_or_a_reason(root: Path) -> None:
    (root / "model.int8.onnx").unlink()
    bundle = sealed(root, certificate(root, OPENVINO, "bf16"))
    told = {(way.combination.backend, way.combination.precision): way.reason for way in survey(bundle, among=HERE).ways}
    missing, absent = (
        "the bundle has no model.int8.onnx: make it with cervix-export --int8",
        "openvino is not installed",
    )
    assert told == {
        (CPU, "fp32"): "no certificate", (OPENVINO, "fp32"): "no certificate", ("openvino", "fp32"): absent,
        (CPU, "bf16"): "one has no bf16", (OPENVINO, "bf16"): None, ("openvino", "bf16"): absent,
        (CPU, "fp16"): "no certificate", (OPENVINO, "fp16"): "two has no fp16", ("openvino", "fp16"): absent,
        (CPU, "int8"): missing, (OPENVINO, "int8"): missing, ("openvino", "int8"): missing,
    }  # fmt: skip


def test_ways_that_compute_elsewhere_are_left_out(root: Path) -> None:
    ways = survey(sealed(root), device=Device("cpu")).ways
    assert {way.combination.backend for way in ways} == {CPU, OPENVINO, "openvino"}


def test_a_malformed_certificate_is_refused(root: Path) -> None:
    (root / "certificates").mkdir()
    document = certificate(root).to_json()
    write_json(root / "certificates" / "x.json", {**document, "precision": "fp8"})
    with pytest.raises(ContractError, match="fp8"):
        selected(seal(root))


def test_what_runs_follows_the_bundle_s_files(root: Path) -> None:
    here = survey(sealed(root), among=HERE).runnable
    assert [(way.combination.backend, way.combination.precision) for way in here] == [
        (CPU, "fp32"), (OPENVINO, "fp32"), (OPENVINO, "bf16"), (CPU, "fp16"), (CPU, "int8"), (OPENVINO, "int8"),
    ]  # fmt: skip


def test_what_is_no_backend_is_named(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="no backend 'abacus': expected one of onnxruntime-cpu, "):
        select(bundle, precision="auto", backend="abacus")


# ---- the proof at the start


def replayed(bundle: Bundle, *, batch_size: int = 32) -> float:
    with open_backend(bundle, combination=Combination(CPU, "fp32"), threads=1) as backend:
        return replay_golden(bundle, backend, batch_size=batch_size)


def test_the_faultless_model_passes(bundle: Bundle) -> None:
    assert 0 < replayed(bundle) < 1e-4


@pytest.mark.parametrize("batch_size", [1, 3, 8, 9, 64])
def test_eight_tiles_are_replayed_whatever_the_batch_size(bundle: Bundle, batch_size: int) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    class Watched(SpyBackend):
        def infer(self, pixels: Any) -> Any:
            assert pixels.shape == (batch_size, 32, 32, 3)
            seen.extend(pixels[:])
            return super().infer(pixels.copy())

    with open_backend(bundle, combination=Combination(CPU, "fp32"), threads=1) as backend:
        assert replay_golden(bundle, Watched(backend), batch_size=batch_size) < 1e-4
    golden = GoldenSet.load(bundle).pixels(REPLAYED)
    assert all(any(np.array_equal(tile, other) for other in seen) for tile in golden)


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize(
    "fault", [{"swapped": True}, {"bgr": True}, {"scaled": False}], ids=lambda fault: next(iter(fault))
)
def test_a_faulty_model_is_caught(tmp_path: Path, fault: dict[str, bool], batch_size: int) -> None:
    bundle = make_bundle(tmp_path / "faulty", model=tiny_onnx(**fault))
    with pytest.raises(InferenceError, match="answers differ from Keras's on golden tiles"):
        replayed(bundle, batch_size=batch_size)


def test_a_model_with_other_classes_is_caught(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "other", model=tiny_onnx(classes=4))
    with pytest.raises(ContractError, match=r"gives \(4,\) probabilities a tile, expected \(5,\)"):
        replayed(bundle)


def test_a_fault_in_the_last_replayed_tile_alone_is_caught(bundle: Bundle) -> None:
    golden = GoldenSet.load(bundle)

    class AlmostRight(FakeBackend):
        def infer(self, pixels: Any) -> Any:
            answers = golden.probabilities()[: len(pixels)].copy()
            answers[REPLAYED - 1, 0] += 0.01
            return answers

    with pytest.raises(InferenceError, match=r"by 0\.01, limit 0\.0001"):
        replay_golden(bundle, AlmostRight(), batch_size=GOLDEN_TILES)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_caught(bundle: Bundle, wrong: float) -> None:
    class Broken(FakeBackend):
        def infer(self, pixels: Any) -> Any:
            return np.full((len(pixels), 5), wrong, np.float32)

    with pytest.raises(InferenceError):
        replay_golden(bundle, Broken(), batch_size=32)


@pytest.fixture
def altered(bundle: Bundle, tmp_path: Path) -> Callable[[str, bytes], Bundle]:
    def make(name: str, data: bytes) -> Bundle:
        root = tmp_path / "altered"
        shutil.copytree(bundle.root, root)
        (root / name).write_bytes(data)
        return seal(root)

    return make


def test_other_pixels_than_in_training_are_caught(bundle: Bundle, altered: Callable[[str, bytes], Bundle]) -> None:
    other = altered("golden/00001.tile", bundle.read("golden/00003.tile"))
    with pytest.raises(ContractError, match=r"00001\.tile decodes to other pixels"):
        replayed(other)


def test_a_golden_tile_that_cannot_be_decoded_is_caught(altered: Callable[[str, bytes], Bundle]) -> None:
    with pytest.raises(ContractError, match=r"00000\.tile cannot be decoded"):
        replayed(altered("golden/00000.tile", b"no tile"))
