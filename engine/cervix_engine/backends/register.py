"""The one list of runtimes, and the one place that opens them.

A new runtime is a file beside this one, with its record, and a line here. Whatever chooses, certifies, measures or
names runtimes reads this list.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cervix_engine.errors import BackendUnavailableError

if TYPE_CHECKING:  # `--help` lists the register, and is to answer at once
    from collections.abc import Iterator

    from cervix_engine.backends.base import Backend
    from cervix_engine.backends.device import ComputesOn, Device
    from cervix_engine.backends.runtime import Combination, GraphRuntime, Runtime
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.values import Precision

# Each runtime's name and where its record lies, which is imported when it is first asked for. Of those that are
# equally good, the first one is taken.
_RECORDS: dict[str, str] = {
    "onnxruntime-cpu": "cervix_engine.backends.onnxruntime:OnnxRuntimeCpu",
    "onnxruntime-openvino": "cervix_engine.backends.onnxruntime_openvino:OnnxRuntimeOpenVino",
    "openvino": "cervix_engine.backends.openvino:OpenVino",
    "onnxruntime-cuda": "cervix_engine.backends.onnxruntime_cuda:OnnxRuntimeCuda",
    "tensorrt": "cervix_engine.backends.tensorrt:TensorRt",
    "tensorrt-rtx": "cervix_engine.backends.tensorrt:TensorRtRtx",
}


def runtime_names() -> tuple[str, ...]:
    """The names of all runtimes, in the register's order."""
    return tuple(_RECORDS)


def runtime(name: str) -> Runtime:
    """The record of a runtime.

    Raises:
        BackendUnavailableError: the register has none of this name.
    """
    if name not in _RECORDS:
        raise BackendUnavailableError(f"no backend {name!r}: expected one of {', '.join(_RECORDS)}")
    from pkgutil import resolve_name

    record: Runtime = resolve_name(_RECORDS[name])()
    return record


def runtimes() -> tuple[Runtime, ...]:
    """The records of all runtimes, in the register's order."""
    return tuple(runtime(name) for name in _RECORDS)


@contextmanager
def registered(name: str, record: str) -> Iterator[None]:
    """Add a runtime for the time of a `with`; `record` is the path of its class, such as `package.module:Class`."""
    if name in _RECORDS:
        raise ValueError(f"there is a runtime {name} already")
    _RECORDS[name] = record
    try:
        yield
    finally:
        del _RECORDS[name]


def computes_on(backend: str) -> ComputesOn:
    """Where a backend computes: `cpu` or `cuda`. Raises BackendUnavailableError as `runtime` does."""
    return runtime(backend).computes_on


def runtime_version(backend: str) -> str | None:
    """The installed version of a backend's runtime; None where it is not installed, or no such backend is known."""
    return runtime(backend).version() if backend in _RECORDS else None


def objection(backend: str, precision: Precision) -> str | None:
    """Why a runtime of graphs does not run `precision` on this machine; None where it does."""
    from cervix_engine.backends.device import ANY

    return _of_graphs(backend).objection(precision, ANY)


def open_backend(
    bundle: Bundle, *, combination: Combination, threads: int | None = None, device: Device | None = None
) -> Backend:
    """Make the backend for a combination; `with` loads it. Digests are checked before the runtime sees a byte.

    Args:
        bundle: an opened bundle.
        combination: what to run.
        threads: inference threads on the CPU, default one a usable core.
        device: on which GPUs, where it runs on GPUs; None takes whichever is best.

    Raises:
        BackendUnavailableError: the runtime, device or precision is not here.
        EngineIncompatibleError: the engine was built for another GPU or runtime.
        ContractError: the file is missing, altered, or refers to data outside itself.
    """
    from cervix_engine.backends.device import ANY

    return runtime(combination.backend).open(bundle, combination, threads=threads, device=device or ANY)


def open_graph(
    graph: bytes, *, combination: Combination, sha256: str, threads: int | None = None, device: Device | None = None
) -> Backend:
    """Make the backend for a graph that lies in no bundle; `sha256` is its digest.

    Raises:
        BackendUnavailableError: the runtime, device or precision is not here, or it runs engines.
        ContractError: the graph refers to data outside itself.
    """
    from cervix_engine.backends.device import ANY

    backend = _of_graphs(combination.backend)
    return backend.open_graph(graph, combination, sha256=sha256, threads=threads, device=device or ANY)


def _of_graphs(backend: str) -> GraphRuntime:
    from cervix_engine.backends.runtime import GraphRuntime

    record = runtime(backend)
    if not isinstance(record, GraphRuntime):
        raise BackendUnavailableError(f"{backend} runs engines, not graphs")
    return record
