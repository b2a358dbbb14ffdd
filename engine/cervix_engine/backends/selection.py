"""Which file, backend and precision a run takes, and the proof at its start that they answer as training did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import numpy as np

from cervix_engine.backends.base import Backend
from cervix_engine.backends.device import ANY, Device
from cervix_engine.backends.register import computes_on, runtime
from cervix_engine.backends.runtime import Combination
from cervix_engine.backends.survey import Survey, Way, survey
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import GATES, Certificate
from cervix_engine.bundle.golden import REPLAYED, GoldenSet
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError, ParityError, UsageError
from cervix_engine.values import Precision

# Rates closer than this are noise.
SAME_SPEED = 0.95
# These change some decisions, so they run only where they are asked for by name.
ASKED_BY_NAME: frozenset[Precision] = frozenset({"int8"})

RequestedPrecision = Literal["auto"] | Precision
PRECISIONS: tuple[RequestedPrecision, ...] = ("auto", *get_args(Precision))


@dataclass(frozen=True, slots=True)
class Selection:
    """What will run, and the certificate that covers it, if any does.

    Attributes:
        passed_over: what was faster when it was certified, and is not taken: `Way.reason` says why, unless it is
            because of `ASKED_BY_NAME`.
    """

    combination: Combination
    certificate: Certificate | None
    passed_over: tuple[Way, ...] = ()


def select(
    bundle: Bundle,
    *,
    precision: RequestedPrecision,
    backend: str | None = None,
    device: Device = ANY,
    require_parity: bool = False,
) -> Selection:
    """Choose how to run a bundle on this machine: see `choose`.

    Raises:
        BackendUnavailableError: nothing here runs what was asked for.
        EngineIncompatibleError: `backend` is TensorRT's, and the bundle's engines are for another machine.
        ParityError: `require_parity`, and no passed certificate covers the choice.
        UsageError: `backend` does not compute on `device`.
    """
    if backend and not device.allows(computes_on(backend)):
        raise UsageError(f"--device {device}: {backend} does not compute there")
    seen = survey(bundle, device=device)
    return choose(seen, precision=precision, backend=backend, require_parity=require_parity)


def choose(
    seen: Survey, *, precision: RequestedPrecision, backend: str | None = None, require_parity: bool = False
) -> Selection:
    """The fastest certified way of the precision asked for; where none is certified, one that this machine runs.

    `auto` takes the fastest certified way in floating point, else FP32; INT8 moves decisions and is asked for by name.
    `backend` fixes the backend too, which a resumed run needs. Where a backend or a GPU is asked for, `auto` also takes
    what has no certificate, FP32 first.

    Raises:
        BackendError, ParityError: as `select`.
    """
    wanted = [way for way in seen.ways if _is_asked_for(way.combination, precision, backend)]
    here = [way for way in wanted if way.refusal is None]
    certified = [way for way in here if way.certified]
    if certified:
        best = _fastest(certified)
        return Selection(best.combination, best.certificate, _passed_over(seen, best, precision, backend))
    if precision == "auto" and not backend and seen.device.kind != "cuda":
        here = [way for way in here if way.combination.precision == "fp32"]
    if not here:
        _raise_why_none(seen, precision, backend)
    best = here[0]
    if require_parity:
        raise ParityError(
            f"no certificate covers {best.combination.precision} on this machine: make one with cervix-parity --certify"
        )
    return Selection(best.combination, None, _passed_over(seen, best, precision, backend))


def _is_asked_for(combination: Combination, precision: RequestedPrecision, backend: str | None) -> bool:
    if backend not in (None, combination.backend):
        return False
    return combination.precision == precision or (precision == "auto" and combination.precision not in ASKED_BY_NAME)


def _passed_over(seen: Survey, best: Way, precision: RequestedPrecision, backend: str | None) -> tuple[Way, ...]:
    """The fastest ways that are not taken: one of those that are asked for, and where `auto` is, one that is not."""
    rate = best.tiles_per_sec if best.certified else 0.0
    faster = [
        way
        for way in seen.worth_naming
        if way != best and way.tiles_per_sec * SAME_SPEED > rate and backend in (None, way.combination.backend)
    ]
    asked = [way for way in faster if _is_asked_for(way.combination, precision, backend)]
    others = [way for way in faster if precision == "auto" and way not in asked]
    fastest = (max(ways, key=lambda way: way.tiles_per_sec) for ways in (asked, others) if ways)
    return tuple(fastest)


def _fastest(certified: list[Way]) -> Way:
    """The fastest way; of those that are as good as equally fast, the one nearest to Keras."""
    top = max(way.tiles_per_sec for way in certified)
    near = [way for way in certified if way.tiles_per_sec >= SAME_SPEED * top]
    return min(near, key=lambda way: way.certificate.parity.max_absdiff if way.certificate else 1.0)


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


def _raise_why_none(seen: Survey, precision: RequestedPrecision, backend: str | None) -> NoReturn:
    wanted: Precision = "fp32" if precision == "auto" else precision
    if backend:
        refusals = [way.refusal for way in seen.ways if _is_asked_for(way.combination, precision, backend)]
        for refusal in filter(None, refusals):
            raise refusal
        assert seen.bundle is not None, "any bundle has graphs"
        runtime(backend).raise_absent(seen.bundle, None if precision == "auto" else precision, device=seen.device)
    errors = {str(way.refusal): way.refusal for way in seen.worth_naming if way.refusal and _tells(way, precision)}
    if len(errors) == 1:
        raise next(iter(errors.values()))
    others = ["auto"] if precision != "auto" else sorted({way.combination.precision for way in seen.runnable})
    hint = f": use --precision {' or '.join(others)}" if others else ""
    reasons = f" ({'; '.join(errors)})" if errors else ""
    raise BackendUnavailableError(f"no backend on this machine runs {wanted}{hint}{reasons}")


def _tells(way: Way, precision: RequestedPrecision) -> bool:
    """Whether a refusal is news to who asked for a precision: `auto` would have taken FP32, or any engine."""
    wanted = "fp32" if precision == "auto" else precision
    return way.combination.precision == wanted or (precision == "auto" and way.combination.engine is not None)
