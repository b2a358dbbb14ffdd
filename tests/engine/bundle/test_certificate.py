"""Parity is what a slow, plain calculation says it is, and no gate lets through what is not a probability."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cervix_engine.bundle.certificate import GATES, Certificate, Flip, Parity, measure_parity
from cervix_engine.errors import ContractError
from cervix_engine.values import Precision

Validate = Callable[[str, Any], None]
Mutants = Callable[[Any], list[tuple[str, Any]]]
Answers = npt.NDArray[np.float32]

CLASSES = ("dyk", "mep", "sfi")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
# The gates that README and certificates speak of, written down once more: a change must be meant.
LIMITS = {
    "fp32": (1.0, 1e-4, 1e-4, 1e-4),
    "fp16": (1.0, 0.02, 0.1, 0.02),
    "bf16": (0.99, 0.03, 0.1, 0.1),
    "int8": (0.99, 0.10, 0.25, 0.25),
}


def exact(tiles: int = 400) -> Answers:
    """Sure answers, all right."""
    answers = np.full((tiles, 3), 0.05, np.float32)
    answers[np.arange(tiles), np.arange(tiles) % 3] = 0.9
    return answers


def measure(reference: Answers, candidate: Answers) -> Parity:
    return measure_parity(
        reference, candidate, tiles=[f"golden/{i:05d}.tile" for i in range(len(reference))], class_names=CLASSES
    )


def slow_parity(reference: Answers, candidate: Answers) -> Parity:
    """The same with loops over Python floats."""
    differences, flips = [], []
    for index, (row, other) in enumerate(zip(reference.tolist(), candidate.tolist(), strict=True)):
        differences += [abs(a - b) for a, b in zip(row, other, strict=True)]
        expected, actual = row.index(max(row)), other.index(max(other))
        if expected != actual:
            first, second = sorted(row, reverse=True)[:2]
            flips.append(Flip(f"golden/{index:05d}.tile", CLASSES[expected], CLASSES[actual], first - second))
    ordered = sorted(differences)
    return Parity(
        tiles=len(reference),
        max_absdiff=ordered[-1],
        p99_absdiff=ordered[math.ceil(0.99 * (len(ordered) - 1))],
        top1_agreement=1 - len(flips) / len(reference),
        flips=tuple(flips),
    )


PROBABILITIES = st.floats(0, 1, width=32)
PAIRS = st.integers(1, 40).flatmap(
    lambda tiles: st.tuples(*(arrays.arrays(np.float32, (tiles, 3), elements=PROBABILITIES) for _ in range(2)))
)


@given(PAIRS)
def test_parity_equals_the_slow_calculation(pair: tuple[Answers, Answers]) -> None:
    measured, expected = measure(*pair), slow_parity(*pair)
    assert measured.flips == expected.flips
    assert (measured.tiles, measured.max_absdiff, measured.p99_absdiff) == (
        expected.tiles,
        expected.max_absdiff,
        expected.p99_absdiff,
    )
    assert measured.top1_agreement == pytest.approx(expected.top1_agreement)


def test_the_p99_of_a_thousand_values_is_one_of_them() -> None:
    reference = exact(1000)
    candidate = reference.copy()
    candidate[:10, 0] += np.float32(0.05)  # 10 of 3,000 values: fewer than one in a hundred
    assert measure(reference, candidate).p99_absdiff == 0
    candidate[:31, 0] = reference[:31, 0] + np.float32(0.05)  # 31 of 3,000: more
    assert measure(reference, candidate).p99_absdiff == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_answers_pass_every_gate(precision: Precision) -> None:
    parity = measure(exact(), exact())
    assert (parity.max_absdiff, parity.p99_absdiff, parity.top1_agreement, parity.flips) == (0, 0, 1, ())
    assert parity.failures(precision) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0, -1.0])
@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_one_answer_that_is_no_probability_fails_every_gate(
    precision: Precision, value: float, column: int, side: str
) -> None:
    broken = exact()  # one value of 1,200: a 99th percentile alone does not see it
    broken[7, column] = value
    parity = measure(broken, exact()) if side == "reference" else measure(exact(), broken)
    assert parity.failures(precision) != []
    assert 0 <= parity.p99_absdiff <= parity.max_absdiff <= 1
    assert all(0 <= flip.margin <= 1 for flip in parity.flips)


def test_the_gates_are_the_published_ones() -> None:
    found = {name: (g.quantile, g.absdiff, g.flip_margin, g.replay_absdiff) for name, g in GATES.items()}
    assert found == LIMITS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gate_is_kept_at_its_limit_and_failed_above(precision: Precision) -> None:
    quantile, limit, margin, _ = LIMITS[precision]
    flip = Flip("golden/00000.tile", "dyk", "mep", margin)
    kept = Parity(
        400, max_absdiff=0.9 if quantile < 1 else limit, p99_absdiff=limit, top1_agreement=0.99, flips=(flip,)
    )
    assert kept.failures(precision) == []
    above = math.nextafter(limit, 1)
    beyond = replace(kept, p99_absdiff=above) if quantile < 1 else replace(kept, max_absdiff=above)
    assert [text.split()[0] for text in beyond.failures(precision)] == ["p99" if quantile < 1 else "max"]
    flipped = replace(kept, flips=(flip, replace(flip, margin=math.nextafter(margin, 1))))
    assert len(flipped.failures(precision)) == 1
    assert "changed decision" in flipped.failures(precision)[0]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_quantile_gate_forgives_a_single_outlier(precision: Precision) -> None:
    assert Parity(400, 0.9, 0.001, 1.0, ()).failures(precision) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_that_a_certificate_should_not_hold_fail(precision: Precision) -> None:
    nan = float("nan")
    assert Parity(400, nan, nan, 1.0, ()).failures(precision) != []
    assert Parity(400, 0.0, 0.0, 0.9, (Flip("a", "dyk", "mep", nan),)).failures(precision) != []


@pytest.mark.parametrize(
    ("reference", "candidate", "tiles"),
    [
        ((4, 3), (5, 3), 4),
        ((4, 3), (4, 2), 4),
        ((4, 3), (4, 3), 3),
        ((0, 3), (0, 3), 0),
        ((4, 2), (4, 2), 4),
        ((4,), (4,), 4),
    ],
)
def test_answers_that_do_not_belong_together(
    reference: tuple[int, ...], candidate: tuple[int, ...], tiles: int
) -> None:
    with pytest.raises(ValueError, match="shapes"):
        measure_parity(
            np.zeros(reference, np.float32), np.zeros(candidate, np.float32), tiles=["t"] * tiles, class_names=CLASSES
        )


@pytest.fixture
def certificate() -> Certificate:
    candidate = exact()
    candidate[3] = [0.5, 0.4, 0.1]
    candidate[4] = [0.5, 0.4, 0.1]
    return Certificate(
        file="model.fp16.onnx",
        file_sha256="0123456789abcdef" * 4,
        backend="onnxruntime-cpu",
        backend_version="1.32.0",
        precision="fp16",
        arithmetic="fp32",
        device_class="cpu-amx",
        reference="keras 3.15.1",
        parity=measure(exact(), candidate),
        tiles_per_sec=24.6,
        passed=False,
    )


def test_a_certificate_survives_json(certificate: Certificate, validate: Validate) -> None:
    document = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    validate("certificate", document)
    assert len(certificate.parity.flips) == 1
    assert Certificate.from_json(document) == certificate


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_certificate_of_broken_answers_is_still_json(
    certificate: Certificate, validate: Validate, value: float
) -> None:
    broken = exact()
    broken[0] = value
    document = replace(certificate, parity=measure(exact(), broken)).to_json()
    validate("certificate", json.loads(json.dumps(document, allow_nan=False)))


def test_changes_of_its_json_are_refused(certificate: Certificate, validate: Validate, mutants: Mutants) -> None:
    changed = mutants(certificate.to_json())
    for what, document in changed:
        with pytest.raises(jsonschema.ValidationError):
            validate("certificate", document)
        if what.startswith("with"):  # keys that are too many or missing
            with pytest.raises(ContractError, match="certificate"):
                Certificate.from_json(document)
    assert len(changed) > 30


@pytest.mark.parametrize("document", [None, [], "certificate", {}, {"schema": "cervix/certificate/2"}])
def test_other_json_is_refused(document: Any) -> None:
    with pytest.raises(ContractError, match="schema"):
        Certificate.from_json(document)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp8"},
        {"precision": 5},
        {"passed": "yes"},
        {"passed": 1},
        {"parity": "abc"},
        {"parity": None},
        {"parity": []},
    ],
)
def test_values_that_would_be_trusted_are_checked(certificate: Certificate, change: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="certificate"):
        Certificate.from_json({**certificate.to_json(), **change})


def test_its_place_in_the_bundle_tells_combinations_apart(certificate: Certificate) -> None:
    assert certificate.path == "certificates/model.fp16.onnx.onnxruntime-cpu.fp16.json"
    assert replace(certificate, backend="onnxruntime-openvino").path != certificate.path
    assert replace(certificate, precision="bf16").path != certificate.path


def test_a_certificate_cannot_be_changed(certificate: Certificate) -> None:
    with pytest.raises(FrozenInstanceError):
        certificate.passed = True  # type: ignore[misc]
