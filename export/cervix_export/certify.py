"""Measures how far a deployable combination answers from Keras, and how fast it is, on the golden tiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

import numpy as np

from cervix_engine.backends import Backend, Combination, open_backend, runtime_version
from cervix_engine.backends.survey import certificates as certificates_of
from cervix_engine.backends.survey import survey
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate, Parity, measure_parity
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.errors import BackendError, ContractError, InferenceError, ParityError
from cervix_engine.machine import cpu_class
from cervix_engine.values import Pixels, Probabilities
from cervix_engine.words import counted
from cervix_export.graphs.compute import answers_as_written
from cervix_export.graphs.from_keras import SIGNED_FILE

logger = logging.getLogger(__name__)

# The first batch pays for allocation and is not timed; the rate is the median of at least this many others.
TIMED_BATCHES = 3
# BF16 is not a graph but a way to compute the FP32 one, tried wherever the CPU can.
OPTIONAL_PRECISIONS = frozenset({"bf16"})
COMPARED_ROUNDS = 6


def certify_all(
    bundle: Bundle, golden: GoldenSet, *, reference: str, batch_size: int, tiles: int | None = None
) -> list[Certificate]:
    """Certify every combination of the bundle's files that this machine can run.

    Args:
        bundle: holds the files to certify.
        golden: the tiles and Keras's answers.
        reference: what gave those answers, such as `keras 3.15.1`.
        batch_size: tiles a batch, as deployed.
        tiles: use only the first so many golden tiles, default all.

    Returns:
        One certificate a combination, also where its gate failed; none where no runtime is here.

    Raises:
        ContractError: this machine decodes the golden tiles to other pixels.
        InferenceError: no runtime could compute a file that it should.
    """
    pixels = golden.pixels(tiles)
    certificates: dict[Combination, Certificate] = {}
    combinations = [way.combination for way in survey(bundle).runnable]
    for combination in combinations:
        way = f"{combination.artefact} on {combination.backend} in {combination.precision}"
        logger.info("measuring %s, %d tiles", way, len(pixels))
        try:
            certificate = certify(
                bundle, golden, pixels=pixels, combination=combination, reference=reference, batch_size=batch_size
            )
        except BackendError as error:
            logger.warning("not certified: %s in %s: %s", combination.backend, combination.precision, error)
            continue
        logger.info("%s", describe(certificate))
        certificates[combination] = certificate
    _check_covered(combinations, certificates)
    return _with_compared_rates(bundle, certificates, batch=_batches(pixels, batch_size)[0])


def recorded_reference(bundle: Bundle, golden: GoldenSet) -> str:
    """What gave the golden tiles' answers, such as `keras 3.15.1`: as they say, else as a certificate says.

    Raises:
        ContractError: neither does.
    """
    named = (golden.reference, *(item.reference for item in certificates_of(bundle)))
    reference = next(filter(None, named), None)
    if reference is None:
        raise ContractError(f"{bundle.root} does not say what answered its golden tiles: export it where Keras is")
    return reference


def certify(
    bundle: Bundle,
    golden: GoldenSet,
    *,
    pixels: Pixels,
    combination: Combination,
    reference: str,
    batch_size: int,
) -> Certificate:
    """Certify one combination on the first golden tiles, `pixels`, `uint8 (N, height, width, 3)`."""
    with open_backend(bundle, combination=combination) as backend:
        candidate, tiles_per_sec = answers_of(backend, pixels, batch_size)
        info = backend.info
    parity = _parity(golden, candidate)
    return Certificate(
        file=info.artefact,
        file_sha256=info.artefact_sha256,
        backend=info.backend,
        backend_version=info.version,
        precision=info.precision,
        arithmetic=info.arithmetic,
        device_class=info.device_class,
        reference=reference,
        parity=parity,
        tiles_per_sec=round(tiles_per_sec, 2),
        passed=not parity.failures(info.precision),
    )


def certify_signed(bundle: Bundle, golden: GoldenSet, *, reference: str, tiles: int | None = None) -> Certificate:
    """Certify the graph of TensorRT's INT8 engines, computed as it is written by ONNX Runtime on the CPU.

    Nothing runs it like that: it is measured where it is made, long before a GPU sees an engine of it.
    """
    pixels = golden.pixels(tiles)
    logger.info("measuring %s as it is written, %d tiles", SIGNED_FILE, len(pixels))
    started = time.perf_counter()
    parity = _parity(golden, answers_as_written(bundle.read(SIGNED_FILE), pixels))
    certificate = Certificate(
        file=SIGNED_FILE,
        file_sha256=bundle.files[SIGNED_FILE],
        backend="onnxruntime-cpu",
        backend_version=str(runtime_version("onnxruntime-cpu")),
        precision="int8",
        arithmetic="fp32",
        device_class=cpu_class(),
        reference=reference,
        parity=parity,
        tiles_per_sec=round(len(pixels) / (time.perf_counter() - started), 2),
        passed=not parity.failures("int8"),
    )
    logger.info("%s", describe(certificate))
    return certificate


def _parity(golden: GoldenSet, candidate: Probabilities) -> Parity:
    """Compare answers to the first golden tiles with Keras's."""
    return measure_parity(
        golden.probabilities()[: len(candidate)],
        candidate,
        tiles=[tile.file for tile in golden.tiles[: len(candidate)]],
        class_names=golden.bundle.contract.class_names,
    )


def _with_compared_rates(
    bundle: Bundle, certificates: Mapping[Combination, Certificate], *, batch: Pixels
) -> list[Certificate]:
    """The certificates with rates that were taken in turn, so that a noisy minute does not decide what `auto` takes."""
    if len(certificates) < 2:
        return list(certificates.values())
    with ExitStack() as stack:
        backends = {item: stack.enter_context(open_backend(bundle, combination=item)) for item in certificates}
        rates = rates_in_turn(backends, batch)
    compared = [replace(certificate, tiles_per_sec=rates[item]) for item, certificate in certificates.items()]
    told = ", ".join(f"{certificate.path} {certificate.tiles_per_sec} tiles/s" for certificate in compared)
    logger.info("rates taken in turn: %s", told)
    return compared


def rates_in_turn(backends: Mapping[Combination, Backend], batch: Pixels) -> dict[Combination, float]:
    """Tiles per second of loaded backends on one batch, by turns, so that a busy moment hurts all of them."""
    seconds: dict[Combination, list[float]] = {combination: [] for combination in backends}
    for _ in range(COMPARED_ROUNDS):
        for combination, backend in backends.items():
            started = time.perf_counter()
            backend.infer(batch)
            seconds[combination].append(time.perf_counter() - started)
    # The first round pays for allocation.
    return {item: round(len(batch) / median(times[1:]), 2) for item, times in seconds.items()}


def describe(certificate: Certificate) -> str:
    """One line for people."""
    parity = certificate.parity
    return (
        f"{certificate.file} on {certificate.backend} in {certificate.precision}: max difference "
        f"{parity.max_absdiff:.2g}, top-1 {parity.top1_agreement:.2%} on {counted(parity.tiles, 'tile')}"
    )


def require_passed(certificates: list[Certificate]) -> None:
    """Raise ParityError, naming every number, where the gate of a graph that was asked for failed.

    A mode that nobody asked for stays uncertified, which keeps `auto` from taking it, and is no error.
    """
    failed = [item for item in certificates if not item.passed and item.precision not in OPTIONAL_PRECISIONS]
    if not failed:
        return
    objections = [
        f"{item.file} on {item.backend} in {item.precision}: {'; '.join(item.parity.failures(item.precision))}"
        for item in failed
    ]
    message = f"not certified, {' | '.join(objections)}"
    raise ParityError(message, report={"certificates": [item.to_json() for item in failed]})


def answers_of(backend: Backend, pixels: Pixels, batch_size: int) -> tuple[Probabilities, float]:
    """The backend's probabilities, `float32 (N, classes)`, and its rate in tiles a second."""
    batches = _batches(pixels, batch_size)
    answers, seconds = [], []
    # With few tiles the first batches are computed again, for their time alone.
    for index in range(max(len(batches), TIMED_BATCHES + 1)):
        started = time.perf_counter()
        answer = backend.infer(batches[index % len(batches)])
        seconds.append(time.perf_counter() - started)
        answers.append(answer)
    return np.concatenate(answers)[: len(pixels)], batch_size / median(seconds[1:])


def _batches(pixels: Pixels, batch_size: int) -> list[Pixels]:
    """Cut tiles into full batches: the last is padded with zeros, since every batch has the deployed shape."""
    missing = -len(pixels) % batch_size
    padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
    return [padded[start : start + batch_size] for start in range(0, len(padded), batch_size)]


def _check_covered(combinations: Sequence[Combination], certified: Container[Combination]) -> None:
    files = {item.artefact for item in combinations}
    missing = files - {item.artefact for item in combinations if item in certified}
    if missing:
        raise InferenceError(f"no runtime on this machine could compute {', '.join(sorted(missing))}")
