"""How far a deployable combination answers from the Keras model, measured on real tiles and bound to a digest.

A certificate covers one combination of (file digest, backend and version, effective precision, device class):
the same `model.onnx` is FP32 on ONNX Runtime and BF16 on OpenVINO, and each needs its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import ContractError
from cervix_engine.values import Precision, Probabilities

# No two probabilities are further apart, so answers that are none, such as NaN, count as this and fail every gate.
NOT_A_PROBABILITY = 1.0


@dataclass(frozen=True, slots=True)
class ParityGate:
    """What a precision must keep to be certified.

    Attributes:
        quantile: which quantile of the absolute probability differences is bounded; 1.0 is the maximum.
        absdiff: its bound.
        flip_margin: no change of the predicted class where Keras's top-1 margin exceeds this.
        replay_absdiff: bound on each golden tile that is replayed at start.
    """

    quantile: float
    absdiff: float
    flip_margin: float
    replay_absdiff: float


GATES: Mapping[Precision, ParityGate] = {
    "fp32": ParityGate(quantile=1.0, absdiff=1e-4, flip_margin=1e-4, replay_absdiff=1e-4),
    "fp16": ParityGate(quantile=1.0, absdiff=0.02, flip_margin=0.1, replay_absdiff=0.02),
    "bf16": ParityGate(quantile=0.99, absdiff=0.03, flip_margin=0.1, replay_absdiff=0.1),
    "int8": ParityGate(quantile=0.99, absdiff=0.10, flip_margin=0.25, replay_absdiff=0.25),
}


@dataclass(frozen=True, slots=True)
class Flip:
    """A tile whose predicted class changed; `margin` is the reference's top-1 minus top-2 probability."""

    tile: str
    reference: str
    candidate: str
    margin: float


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a candidate's probabilities are from a reference's, over `tiles` tiles.

    `max_absdiff` and `p99_absdiff` are over all tiles and classes. A difference to or from NaN, or of more than 1,
    counts as 1.
    """

    tiles: int
    max_absdiff: float
    p99_absdiff: float
    top1_agreement: float
    flips: tuple[Flip, ...]

    def failures(self, precision: Precision) -> list[str]:
        """What the gate of this precision objects to; empty when it passes."""
        gate = GATES[precision]
        observed = self.max_absdiff if gate.quantile == 1.0 else self.p99_absdiff
        name = "max" if gate.quantile == 1.0 else "p99"
        objections = []
        if not self.max_absdiff < NOT_A_PROBABILITY:
            objections.append("an answer that is not a probability, or certain of the opposite")
        if not observed <= gate.absdiff:
            objections.append(f"{name} absolute difference {observed:.3g}, limit {gate.absdiff:g}")
        widest = max((flip.margin for flip in self.flips), default=0.0)
        if not widest <= gate.flip_margin:
            objections.append(f"a changed decision at margin {widest:.3f}, limit {gate.flip_margin:g}")
        return objections


def measure_parity(
    reference: Probabilities, candidate: Probabilities, *, tiles: list[str], class_names: tuple[str, ...]
) -> Parity:
    """Compare two sets of answers, `float32 (N, classes)` each; `tiles` names them for the list of flips.

    Raises:
        ValueError: the shapes differ or there is nothing to compare.
    """
    expected_shape = (len(tiles), len(class_names))
    if not tiles or reference.shape != expected_shape or candidate.shape != expected_shape:
        raise ValueError(f"shapes {reference.shape} and {candidate.shape}, expected {expected_shape}")
    differences = _bounded(np.abs(reference.astype(np.float64) - candidate))
    expected, actual = reference.argmax(axis=1), candidate.argmax(axis=1)
    top_two = np.sort(reference.astype(np.float64), axis=1)[:, -2:]
    margins = _bounded(top_two[:, 1] - top_two[:, 0])
    flips = tuple(
        Flip(tiles[i], class_names[expected[i]], class_names[actual[i]], float(margins[i]))
        for i in np.flatnonzero(expected != actual)
    )
    return Parity(
        tiles=len(tiles),
        max_absdiff=float(differences.max()),
        p99_absdiff=float(np.quantile(differences, 0.99, method="higher")),
        top1_agreement=float((expected == actual).mean()),
        flips=flips,
    )


def _bounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # `values <= 1` is false for NaN.
    return np.where(values <= NOT_A_PROBABILITY, values, NOT_A_PROBABILITY)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A measured statement about one deployable combination.

    Attributes:
        file, file_sha256: the artefact in the bundle.
        backend, backend_version: such as `onnxruntime-cpu`, `1.32.0`.
        precision: that of the graph, or of the mode it is computed in.
        arithmetic: what the kernels really multiply in.
        device_class: such as `cpu-avx2` or `cuda-sm90`.
        reference: what it was compared with, such as `keras 3.15.1`.
        parity: the measured numbers.
        tiles_per_sec: model-only rate when it was certified; `auto` takes the fastest in floating point.
        passed: whether the precision's gate was kept.
    """

    file: str
    file_sha256: str
    backend: str
    backend_version: str
    precision: Precision
    arithmetic: Precision
    device_class: str
    reference: str
    parity: Parity
    tiles_per_sec: float
    passed: bool

    schema: ClassVar[str] = "cervix/certificate/1"

    def __post_init__(self) -> None:
        if self.precision not in GATES:
            raise ContractError(f"certificate for precision {self.precision!r}: expected one of {', '.join(GATES)}")
        if type(self.passed) is not bool:
            raise ContractError(f"certificate with passed {self.passed!r}: expected true or false")

    @property
    def path(self) -> str:
        """Where it lies in the bundle."""
        return f"certificates/{self._subject}.json"

    def path_among(self, names: Container[str]) -> str:
        """Where it lies in a bundle of files with these names."""
        return self.path_beside_others if self.path_beside_others in names else self.path

    @property
    def path_beside_others(self) -> str:
        """Where it lies in the bundle if another machine's certificate already lies at `path`."""
        return f"certificates/{self._subject}.{self.device_class}.{self.backend_version}.json"

    @property
    def _subject(self) -> str:
        return f"{PurePosixPath(self.file).name}.{self.backend}.{self.precision}"

    @property
    def covers(self) -> tuple[str, str, str, str, str]:
        """What it applies to. A later certificate of the same replaces it; one of anything else lies beside it."""
        return (self.file, self.backend, self.backend_version, self.precision, self.device_class)

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Raises ContractError where the data are not a certificate."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != cls.schema:
            raise ContractError(f"certificate schema {schema!r}: expected {cls.schema!r}")
        values = {key: value for key, value in data.items() if key not in ("schema", "parity")}
        try:
            parity = dict(data["parity"])
            flips = tuple(Flip(**flip) for flip in parity.pop("flips"))
            return cls(**values, parity=Parity(**parity, flips=flips))
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"certificate is malformed: {error}") from error
