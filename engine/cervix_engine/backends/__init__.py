"""Which runtimes can run a bundle here, and the one place that opens them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from cervix_engine.backends.base import Backend, BackendInfo
from cervix_engine.bundle import Bundle
from cervix_engine.certificate import Precision
from cervix_engine.errors import BackendUnavailableError

__all__ = [
    "ARTEFACTS",
    "Backend",
    "BackendInfo",
    "Combination",
    "available_combinations",
    "open_backend",
    "runtime_version",
]

# The file that holds each precision. BF16 is a mode of computing the FP32 graph, not a graph of its own.
ARTEFACTS: dict[Precision, str] = {
    "fp32": "model.onnx",
    "bf16": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}


@dataclass(frozen=True, slots=True)
class Combination:
    """One way to run a bundle: a file, on a backend, in a precision."""

    backend: str
    precision: Precision

    @property
    def artefact(self) -> str:
        return ARTEFACTS[self.precision]


def available_combinations(bundle: Bundle) -> list[Combination]:
    """Every combination of the bundle's files that this machine can run.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    runtime = _onnxruntime()
    return [
        Combination(backend, precision)
        for precision, artefact in ARTEFACTS.items()
        for backend in (runtime.CPU, runtime.OPENVINO)
        if artefact in bundle and runtime.supports(backend, precision)
    ]


def open_backend(bundle: Bundle, *, combination: Combination, threads: int | None = None) -> Backend:
    """Make the backend for a combination; `with` loads it. Digests are checked before the runtime sees a byte.

    Args:
        bundle: an opened bundle.
        combination: what to run.
        threads: inference threads, default one a usable core.

    Raises:
        BackendUnavailableError: the runtime, device or precision is not here.
        ContractError: the file is missing, altered, or refers to data outside itself.
    """
    from cervix_engine.onnx_guard import refuse_external_data

    runtime = _onnxruntime()
    model = bundle.read(combination.artefact)
    refuse_external_data(model)
    backend: Backend = runtime.OnnxRuntimeBackend(
        model,
        backend=combination.backend,
        precision=combination.precision,
        artefact=combination.artefact,
        artefact_sha256=bundle.files[combination.artefact],
        threads=threads,
    )
    return backend


def runtime_version(backend: str) -> str | None:
    """The installed version of a backend's runtime, or None where it is not one of ONNX Runtime's."""
    runtime = _onnxruntime()
    return runtime.version() if backend in (runtime.CPU, runtime.OPENVINO) else None


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime  # noqa: F401

        from cervix_engine.backends import onnxruntime as runtime
    except ImportError as error:
        raise BackendUnavailableError("ONNX Runtime is not installed: pip install 'cervix[cpu]'") from error
    return runtime
