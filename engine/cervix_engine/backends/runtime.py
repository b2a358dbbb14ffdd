"""What a runtime says of itself. Each one has its record in a file of its own; `register.py` lists them.

Importing this loads neither NumPy nor a runtime, so that `--help` can name them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from cervix_engine.backends.base import Backend, BackendInfo
from cervix_engine.backends.device import ComputesOn, Device
from cervix_engine.errors import BackendUnavailableError
from cervix_engine.machine import cpu_class, usable_cpus

if TYPE_CHECKING:
    from cervix_engine.bundle.bundle import Bundle
    from cervix_engine.gpu import Gpu
    from cervix_engine.values import Precision

# The graph that holds each precision. BF16 is a mode of computing the FP32 graph, not a graph of its own.
ARTEFACTS: dict[Precision, str] = {
    "fp32": "model.onnx",
    "bf16": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}


@dataclass(frozen=True, slots=True)
class Combination:
    """One way to run a bundle: a file, on a backend, in a precision; `engine` names the file where it is no graph."""

    backend: str
    precision: Precision
    engine: str | None = None

    @property
    def artefact(self) -> str:
        return self.engine or ARTEFACTS[self.precision]


class Runtime(ABC):
    """One runtime: where it computes, what of a bundle it runs, why it does not do so here, and how it is opened.

    Attributes:
        name: as `--backend`, certificates and journals give it.
        computes_on: `cpu`, or `cuda` for NVIDIA GPUs.
    """

    name: str
    computes_on: ClassVar[ComputesOn] = "cpu"

    @abstractmethod
    def version(self) -> str | None:
        """The installed version; None where it cannot be loaded."""

    @abstractmethod
    def combinations(self, bundle: Bundle | None) -> Iterable[Combination]:
        """What it is made to run of a bundle, or of any bundle, whether this machine and the bundle allow it or not."""

    @abstractmethod
    def require(self, bundle: Bundle | None, combination: Combination, *, device: Device) -> None:
        """Return where this machine runs a combination of the bundle, or of any bundle.

        Raises:
            BackendUnavailableError: the file, the runtime, the device or the precision is not here.
            EngineIncompatibleError: the engine is for another GPU or version, or the runtime for other GPUs.
        """

    @abstractmethod
    def raise_absent(self, bundle: Bundle, precision: Precision | None, *, device: Device) -> NoReturn:
        """Raise as `require` does where the bundle has no file of this precision, or of any, for this runtime."""

    @abstractmethod
    def open(self, bundle: Bundle, combination: Combination, *, threads: int | None, device: Device) -> Backend:
        """As `register.open_backend`."""

    def device_class(self, device: Device) -> str | None:
        """The class of device that it computes on here, as certificates name it; None where there is none."""
        if self.computes_on == "cpu":
            return cpu_class()
        return next((gpu.device_class for gpu in device.gpus()), None)

    def info(
        self, combination: Combination, *, sha256: str, threads: int | None = None, gpu: Gpu | None = None
    ) -> BackendInfo:
        """What a backend of this runtime is, on a GPU or on the CPU."""
        return BackendInfo(
            backend=self.name,
            version=self.version() or "",
            device=gpu.name if gpu else "cpu",
            device_class=gpu.device_class if gpu else cpu_class(),
            precision=combination.precision,
            arithmetic=combination.precision,
            artefact=combination.artefact,
            artefact_sha256=sha256,
            threads=1 if gpu else threads or usable_cpus(),
            gpu=gpu.name if gpu else None,
        )


class GraphRuntime(Runtime):
    """A runtime of the bundle's ONNX graphs."""

    @abstractmethod
    def objection(self, precision: Precision, device: Device, /) -> str | None:
        """Why it does not run a graph of this precision on this machine; None where it does."""

    @abstractmethod
    def load(self, graph: bytes, info: BackendInfo, ordinal: int, /) -> Backend:
        """Make the backend for a graph that was checked; on the GPU of this number, where it computes on GPUs."""

    def combinations(self, bundle: Bundle | None) -> Iterable[Combination]:  # noqa: ARG002 - whatever it holds
        return [Combination(self.name, precision) for precision in ARTEFACTS]

    def require(self, bundle: Bundle | None, combination: Combination, *, device: Device) -> None:
        if bundle is not None and combination.artefact not in bundle:
            self.raise_absent(bundle, combination.precision, device=device)
        self._require(combination.precision, device)

    def raise_absent(self, bundle: Bundle, precision: Precision | None, *, device: Device) -> NoReturn:  # noqa: ARG002
        precision = precision or "fp32"
        option = f" --{precision}" if precision in ("fp16", "int8") else ""
        raise BackendUnavailableError(f"the bundle has no {ARTEFACTS[precision]}: make it with cervix-export{option}")

    def open(self, bundle: Bundle, combination: Combination, *, threads: int | None, device: Device) -> Backend:
        graph, sha256 = bundle.read(combination.artefact), bundle.files[combination.artefact]
        return self.open_graph(graph, combination, sha256=sha256, threads=threads, device=device)

    def open_graph(
        self, graph: bytes, combination: Combination, *, sha256: str, threads: int | None, device: Device
    ) -> Backend:
        """As `register.open_graph`."""
        from cervix_engine.bundle.onnx_guard import refuse_external_data

        refuse_external_data(graph)
        self._require(combination.precision, device)
        if self.computes_on == "cpu":
            return self.load(graph, self.info(combination, sha256=sha256, threads=threads), 0)
        from cervix_engine.backends.cuda.several_gpus import on_each

        def make(gpu: Gpu) -> Backend:
            return self.load(graph, self.info(combination, sha256=sha256, gpu=gpu), gpu.ordinal)

        return on_each(device.gpus(), make)

    def _require(self, precision: Precision, device: Device) -> None:
        if reason := self.objection(precision, device):
            raise BackendUnavailableError(reason)
