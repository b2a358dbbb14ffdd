"""Which file, backend and precision a run takes, and the proof at its start that they answer as training did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cervix_engine.backends import Backend, Combination, available_combinations
from cervix_engine.bundle import Bundle
from cervix_engine.certificate import GATES, Certificate, Precision
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError, ParityError
from cervix_engine.golden import REPLAYED, GoldenSet
from cervix_engine.machine import cpu_class

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
    bundle: Bundle, *, precision: RequestedPrecision, backend: str | None = None, require_parity: bool = False
) -> Selection:
    """Choose a combination: the fastest one of the precision asked for, certified ones first.

    `auto` takes the fastest certified combination on this machine, else FP32. `backend` fixes the backend too,
    which a resumed run needs.

    Raises:
        BackendUnavailableError: nothing here runs what was asked for.
        ParityError: `require_parity`, and no passed certificate covers the choice.
    """
    here = [item for item in available_combinations(bundle) if backend in (None, item.backend)]
    covered = {(c.backend, c.precision): c for c in certificates(bundle) if c.passed and _covers_this_machine(c)}
    asked = [item for item in here if precision in ("auto", item.precision)]
    certified = [item for item in asked if (item.backend, item.precision) in covered]
    if certified:
        best = max(certified, key=lambda item: covered[item.backend, item.precision].tiles_per_sec)
        return Selection(best, covered[best.backend, best.precision])
    wanted: Precision = "fp32" if precision == "auto" else precision
    fallback = [item for item in here if item.precision == wanted]
    if not fallback:
        raise BackendUnavailableError(_why_none(bundle, wanted))
    if require_parity:
        raise ParityError(f"no certificate covers {wanted} on this machine: make one with cervix-export")
    return Selection(fallback[0], None)


def replay_golden(bundle: Bundle, backend: Backend, *, batch_size: int) -> float:
    """Run the first golden tiles through `backend` and compare with Keras.

    Returns:
        The largest absolute probability difference.

    Raises:
        ContractError: this machine decodes to other pixels than training did.
        InferenceError: the answers differ by more than the precision allows.
    """
    golden = GoldenSet.load(bundle)
    count = min(REPLAYED, batch_size, len(golden.tiles))
    batch = np.zeros((batch_size, *bundle.contract.input_size, 3), np.uint8)
    batch[:count] = golden.pixels(count)
    answers = backend.infer(batch)[:count]
    expected = golden.probabilities()[:count]
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


def _covers_this_machine(certificate: Certificate) -> bool:
    from cervix_engine.backends import runtime_version

    same_version = certificate.backend_version == runtime_version(certificate.backend)
    return same_version and certificate.device_class == cpu_class()


def _why_none(bundle: Bundle, precision: Precision) -> str:
    artefact = Combination("", precision).artefact
    if artefact not in bundle:
        hint = {"fp16": "cervix-export --fp16", "int8": "cervix-export --int8"}.get(precision, "cervix-export")
        return f"the bundle has no {artefact}: make it with {hint}"
    return f"no backend on this machine runs {precision}: use --precision auto"
