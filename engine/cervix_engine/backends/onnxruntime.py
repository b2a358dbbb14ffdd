"""ONNX Runtime's own CPU kernels, and what its records and sessions have in common with those of its providers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Set
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from cervix_engine.backends.base import Backend, BackendInfo, Synchronous
from cervix_engine.backends.device import Device
from cervix_engine.backends.runtime import GraphRuntime
from cervix_engine.errors import BackendUnavailableError, InferenceError
from cervix_engine.machine import cpu_has_vnni
from cervix_engine.values import Pixels, Precision, Probabilities

SPIN_US = 200


class OnnxRuntime(GraphRuntime):
    """ONNX Runtime with one of its providers.

    Attributes:
        extra: what installs it.
    """

    extra = "cpu"

    def version(self) -> str | None:
        try:
            import onnxruntime
        except (ImportError, OSError):
            return None
        return str(onnxruntime.__version__)

    def objection(self, precision: Precision, _device: Device, /) -> str | None:
        if self.version() is None:
            return f"ONNX Runtime is not installed: pip install '.[{self.extra}]'"
        return self.provider_objection(precision)

    @abstractmethod
    def provider_objection(self, precision: Precision) -> str | None:
        """Why the provider does not run a precision here, where ONNX Runtime is installed."""


class OnnxRuntimeCpu(OnnxRuntime):
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime-cpu"

    def provider_objection(self, precision: Precision) -> str | None:
        return "ONNX Runtime's CPU provider has no bf16: use --precision fp32" if precision == "bf16" else None

    def load(self, graph: bytes, info: BackendInfo, _ordinal: int, /) -> Backend:
        # It has no half-precision kernels on x86.
        return CpuSession(graph, replace(info, arithmetic="fp32") if info.precision == "fp16" else info)


def exact_integers(options: Any, *, flags: Set[str] | None = None) -> Any:
    """Session options with integer kernels that cannot overflow on a CPU with these flags, default this one.

    Without VNNI instructions, ONNX Runtime's fastest kernel adds pairs of products in 16 bits, where they saturate:
    seen to change 152 of 192 answers of a ResNet-101. With them it is exact, to the same last bit, and 1.5 times as
    fast as the kernel that is asked for here.
    """
    if not cpu_has_vnni(flags):
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class CpuSession(Synchronous):
    """One ONNX Runtime session on the CPU; `with` creates it from bytes that were already checked.

    Attributes:
        provider: the one that must run the whole graph.
    """

    provider = "CPUExecutionProvider"

    def __init__(self, model: bytes, info: BackendInfo) -> None:
        self._model: bytes | None = model
        self._session: Any = None
        self._run: Any = None
        self.info = info

    def __enter__(self) -> CpuSession:
        try:
            self._session = self._create(self._model or b"")
        except Exception as error:  # the runtime raises a dozen types of its own
            raise InferenceError(f"ONNX Runtime cannot load {self.info.artefact}: {error}") from error
        self._model = None  # the session has its own copy
        self._input = self._session.get_inputs()[0].name
        if (first := self._session.get_providers()[0]) != self.provider:
            raise BackendUnavailableError(f"asked for {self.info.backend}, the session runs on {first}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, pixels: Pixels) -> Probabilities:
        import onnxruntime

        self._run = onnxruntime.RunOptions()
        self._run.log_severity_level = 4  # its errors are raised, and told by us
        try:
            (probabilities,) = self._session.run(None, {self._input: pixels}, self._run)
        except Exception as error:  # the runtime raises a dozen types of its own
            raise InferenceError(f"ONNX Runtime failed on a batch of {len(pixels)}: {error}") from error
        return np.asarray(probabilities, np.float32)

    def cancel(self) -> None:
        if self._run is not None:
            self._run.terminate = True  # looked at before each node

    def _create(self, model: bytes) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(model, self._options(), providers=[self.provider])

    def _options(self) -> Any:
        import onnxruntime

        options = exact_integers(onnxruntime.SessionOptions())
        options.intra_op_num_threads = self.info.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin for the next batch would take the cores that decode it; they do so only for as long as
        # one layer waits for another.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        return options
