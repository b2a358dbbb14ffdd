"""Which runtimes can run a bundle here, and the one place that opens them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from cervix_engine.backends.base import Backend, BackendInfo
from cervix_engine.backends.device import ANY, GPU_BACKENDS, Device
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.engine_file import RUNTIMES, engines_of, read_fingerprint
from cervix_engine.errors import BackendError, BackendUnavailableError, ContractError
from cervix_engine.gpu import find_gpus
from cervix_engine.machine import cpu_class
from cervix_engine.values import Precision

__all__ = [
    "ARTEFACTS",
    "GRAPH_BACKENDS",
    "Backend",
    "BackendInfo",
    "Combination",
    "available_combinations",
    "device_class",
    "objection",
    "open_backend",
    "open_graph",
    "runtime_version",
]

# The file that holds each precision. BF16 is a mode of computing the FP32 graph, not a graph of its own.
ARTEFACTS: dict[Precision, str] = {
    "fp32": "model.onnx",
    "bf16": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}

# Those that run the files above. TensorRT runs engines, each a file for one precision.
GRAPH_BACKENDS = ("onnxruntime-cpu", "onnxruntime-openvino", "openvino", "onnxruntime-cuda")


@dataclass(frozen=True, slots=True)
class Combination:
    """One way to run a bundle: a file, on a backend, in a precision; `engine` names the file where it is TensorRT's."""

    backend: str
    precision: Precision
    engine: str | None = None

    @property
    def artefact(self) -> str:
        return self.engine or ARTEFACTS[self.precision]

    @classmethod
    def certified_by(cls, certificate: Certificate) -> Combination | None:
        """What a certificate speaks of, or None where its file is not the one that this precision runs."""
        engine = certificate.file if certificate.backend in RUNTIMES else None
        combination = cls(certificate.backend, certificate.precision, engine)
        return combination if combination.artefact == certificate.file else None


def available_combinations(bundle: Bundle, *, device: Device = ANY) -> list[Combination]:
    """Every combination of the bundle's files that this machine can run on such a device.

    Raises:
        BackendUnavailableError: the device is not there.
        UsageError: it is several GPUs of different kinds.
    """
    device.gpus()
    graphs = [
        Combination(backend, precision)
        for precision, artefact in ARTEFACTS.items()
        for backend in GRAPH_BACKENDS
        if artefact in bundle and device.allows(backend) and objection(backend, precision) is None
    ]
    return [*graphs, *(_fitting_engines(bundle, device) if device.kind != "cpu" else ())]


def _fitting_engines(bundle: Bundle, device: Device) -> Iterator[Combination]:
    from cervix_engine.backends import tensorrt

    for engine in engines_of(bundle):
        # One with a broken fingerprint keeps no graph from being run; who asks for it is told.
        with suppress(BackendError, ContractError):
            fingerprint = read_fingerprint(bundle, engine)
            tensorrt.require_fitting(bundle, engine, fingerprint, device=device)
            yield Combination(fingerprint.runtime, fingerprint.precision, engine)


def objection(backend: str, precision: Precision) -> str | None:
    """Why one of `GRAPH_BACKENDS` does not run `precision` on this machine; None where it does."""
    from cervix_engine.backends import openvino

    if backend == openvino.NAME:
        return openvino.objection(precision)
    try:
        runtime = _onnxruntime()
    except BackendUnavailableError as error:
        return str(error)
    if backend == "onnxruntime-cuda":
        from cervix_engine.backends import onnxruntime_cuda

        missing = None if find_gpus() else f"{backend} needs an NVIDIA GPU: the driver offers none"
        return missing or onnxruntime_cuda.objection(precision)
    return runtime.objection(backend, precision)  # type: ignore[no-any-return]


def open_backend(
    bundle: Bundle, *, combination: Combination, threads: int | None = None, device: Device = ANY
) -> Backend:
    """Make the backend for a combination; `with` loads it. Digests are checked before the runtime sees a byte.

    Args:
        bundle: an opened bundle.
        combination: what to run.
        threads: inference threads on the CPU, default one a usable core.
        device: on which GPUs, where it runs on GPUs.

    Raises:
        BackendUnavailableError: the runtime, device or precision is not here.
        EngineIncompatibleError: the engine was built for another GPU or runtime.
        ContractError: the file is missing, altered, or refers to data outside itself.
    """
    from cervix_engine.backends import tensorrt
    from cervix_engine.backends.cuda.several_gpus import SeveralGpus

    if combination.engine:
        engines = tensorrt.open_engine(bundle, combination.engine, device=device)
        return engines[0] if len(engines) == 1 else SeveralGpus(engines)
    digest = bundle.files.get(combination.artefact, "")
    graph = bundle.read(combination.artefact)
    return open_graph(graph, combination=combination, sha256=digest, threads=threads, device=device)


def open_graph(
    graph: bytes, *, combination: Combination, sha256: str, threads: int | None = None, device: Device = ANY
) -> Backend:
    """Make the backend for a graph that lies in no bundle; `sha256` is its digest.

    Raises:
        BackendUnavailableError: the runtime, device or precision is not here.
        ContractError: the graph refers to data outside itself.
    """
    from cervix_engine.backends import openvino
    from cervix_engine.bundle.onnx_guard import refuse_external_data

    refuse_external_data(graph)
    precision, artefact = combination.precision, combination.artefact
    if combination.backend == openvino.NAME:
        return openvino.OpenVinoBackend(
            graph, precision=precision, artefact=artefact, artefact_sha256=sha256, threads=threads
        )
    if combination.backend == "onnxruntime-cuda":
        return _on_gpus(graph, combination, sha256, device)
    backend: Backend = _onnxruntime().OnnxRuntimeBackend(
        graph,
        backend=combination.backend,
        precision=precision,
        artefact=artefact,
        artefact_sha256=sha256,
        threads=threads,
    )
    return backend


def _on_gpus(graph: bytes, combination: Combination, sha256: str, device: Device) -> Backend:
    from cervix_engine.backends.cuda.several_gpus import SeveralGpus
    from cervix_engine.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    gpus = device.gpus()
    reason = objection(combination.backend, combination.precision)
    if reason or not gpus:
        raise BackendUnavailableError(reason or f"--device {device} has no GPU for {combination.backend}")
    sessions = [
        OnnxRuntimeCudaBackend(
            graph,
            precision=combination.precision,
            artefact=combination.artefact,
            artefact_sha256=sha256,
            gpu=gpu,
        )
        for gpu in gpus
    ]
    return sessions[0] if len(sessions) == 1 else SeveralGpus(sessions)


def runtime_version(backend: str) -> str | None:
    """The installed version of a backend's runtime; None where it is not installed, or no such backend is known."""
    from cervix_engine.backends import openvino, tensorrt

    if backend in RUNTIMES:
        return tensorrt.version(backend)
    if backend == openvino.NAME:
        return openvino.version()
    if backend not in GRAPH_BACKENDS:
        return None
    with suppress(BackendUnavailableError):
        return str(_onnxruntime().version())
    return None


def device_class(backend: str, *, device: Device = ANY) -> str | None:
    """The class of device that a backend computes on here, as in certificates; None where there is none."""
    if backend not in GPU_BACKENDS:
        return cpu_class()
    return next((gpu.device_class for gpu in device.gpus()), None)


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime  # noqa: F401

        from cervix_engine.backends import onnxruntime as runtime
    except ImportError as error:
        raise BackendUnavailableError("ONNX Runtime is not installed: pip install 'cervix[cpu]'") from error
    return runtime
