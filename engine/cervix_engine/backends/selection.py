"""Which file, backend and precision a run takes, and the proof at its start that they answer as training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np

from cervix_engine.backends import (
    ARTEFACTS,
    GRAPH_BACKENDS,
    Backend,
    Combination,
    available_combinations,
    device_class,
    objection,
    runtime_version,
)
from cervix_engine.backends.device import ANY, Device
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import GATES, Certificate
from cervix_engine.bundle.engine_file import RUNTIMES
from cervix_engine.bundle.golden import REPLAYED, GoldenSet
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError, ParityError, UsageError
from cervix_engine.values import Precision

# Rates closer than this are noise.
SAME_SPEED = 0.95

RequestedPrecision = Literal["auto"] | Precision


@dataclass(frozen=True, slots=True)
class Selection:
    """What will run, and the certificate that covers it, if any does."""

    combination: Combination
    certificate: Certificate | None


def certificates(bundle: Bundle) -> list[Certificate]:
    """All certificates of a bundle whose file is still the certified one."""
    names = [name for name in bundle.files if name.startswith("certificates/")]
    found = [Certificate.from_json(bundle.read_json(name, schema=Certificate.schema)) for name in names]
    return [item for item in found if bundle.files.get(item.file) == item.file_sha256]


def select(
    bundle: Bundle,
    *,
    precision: RequestedPrecision,
    backend: str | None = None,
    device: Device = ANY,
    require_parity: bool = False,
) -> Selection:
    """Choose a combination: the fastest one of the precision asked for, certified ones first.

    `auto` takes the fastest certified combination on this machine (see `_fastest`), else FP32. `backend` fixes the
    backend too, which a resumed run needs, and `device` leaves out what computes elsewhere. Where TensorRT or a GPU is
    asked for, `auto` also takes what has no certificate, FP32 first.

    Raises:
        BackendUnavailableError: nothing here runs what was asked for.
        EngineIncompatibleError: `backend` is TensorRT's, and the bundle's engines are for another machine.
        ParityError: `require_parity`, and no passed certificate covers the choice.
    """
    here = [item for item in available_combinations(bundle, device=device) if backend in (None, item.backend)]
    covered = {Combination.certified_by(c): c for c in certificates(bundle) if c.passed and _covers(c, device)}
    asked = [item for item in here if precision in ("auto", item.precision)]
    certified = [item for item in asked if item in covered]
    if certified:
        best = _fastest(certified, covered)
        return Selection(best, covered[best])
    if backend in RUNTIMES or device.kind == "cuda":
        fallback = sorted(asked, key=lambda item: item.precision != "fp32")
    else:
        fallback = [item for item in asked if item.precision == ("fp32" if precision == "auto" else precision)]
    if not fallback:
        _raise_why_none(bundle, precision, backend, device)
    if require_parity:
        raise ParityError(f"no certificate covers {fallback[0].precision} on this machine: make one with cervix-export")
    return Selection(fallback[0], None)


def _fastest(certified: list[Combination], covered: Mapping[Combination | None, Certificate]) -> Combination:
    """The fastest combination; of those that are as good as equally fast, the one nearest to Keras."""
    top = max(covered[item].tiles_per_sec for item in certified)
    near = [item for item in certified if covered[item].tiles_per_sec >= SAME_SPEED * top]
    return min(near, key=lambda item: covered[item].parity.max_absdiff)


def replay_golden(bundle: Bundle, backend: Backend, *, batch_size: int) -> float:
    """Run the first golden tiles through `backend` and compare with Keras.

    Returns:
        The largest absolute probability difference.

    Raises:
        ContractError: this machine decodes to other pixels than training did.
        InferenceError: the answers differ by more than the precision allows.
    """
    golden = GoldenSet.load(bundle)
    pixels = golden.pixels(REPLAYED)
    # In batches of the run's size, padded as its last one: the shape that will run is the one that is tried.
    padded = np.zeros((-(-len(pixels) // batch_size) * batch_size, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    batches = [padded[start : start + batch_size] for start in range(0, len(padded), batch_size)]
    answers = np.concatenate([backend.infer(batch) for batch in batches])[: len(pixels)]
    expected = golden.probabilities()[: len(pixels)]
    if answers.shape != expected.shape:
        raise ContractError(f"the model gives {answers.shape[1:]} probabilities a tile, expected {expected.shape[1:]}")
    difference = float(np.abs(answers - expected).max())
    limit = GATES[backend.info.precision].replay_absdiff
    if not difference <= limit:
        raise InferenceError(
            f"{backend.info.backend} {backend.info.precision} answers differ from Keras's on golden tiles by "
            f"{difference:.3g}, limit {limit:g}: the model or the runtime is not the certified one"
        )
    return difference


def _covers(certificate: Certificate, device: Device) -> bool:
    """Whether a certificate speaks of this machine's runtime and of what it would compute on."""
    if not device.allows(certificate.backend):
        return False
    same_version = certificate.backend_version == runtime_version(certificate.backend)
    return same_version and certificate.device_class == device_class(certificate.backend, device=device)


def _raise_why_none(bundle: Bundle, precision: RequestedPrecision, backend: str | None, device: Device) -> NoReturn:
    if backend and not device.allows(backend):
        raise UsageError(f"--device {device}: {backend} does not compute there")
    if backend in RUNTIMES:
        from cervix_engine.backends.tensorrt import require_runtime

        require_runtime(bundle, backend, precision, device=device)
    wanted: Precision = "fp32" if precision == "auto" else precision
    if ARTEFACTS[wanted] not in bundle:
        option = f" --{wanted}" if wanted in ("fp16", "int8") else ""
        raise BackendUnavailableError(f"the bundle has no {ARTEFACTS[wanted]}: make it with cervix-export{option}")
    # On a GPU, ONNX Runtime runs what has no engine; so its reason is the one to mend.
    decisive = backend or ("onnxruntime-cuda" if device.kind == "cuda" else None)
    reason = objection(decisive, wanted) if decisive in GRAPH_BACKENDS else None
    raise BackendUnavailableError(reason or f"no backend on this machine runs {wanted}: use --precision auto")
