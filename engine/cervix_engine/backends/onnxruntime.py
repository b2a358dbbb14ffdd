"""ONNX Runtime: its own CPU kernels, or Intel's OpenVINO as a plug-in, which alone of the two computes in BF16.

OpenVINO takes BF16 by default wherever the CPU has it, so an "FP32" run there would silently not be one:
the precision is always set, and what came of it is read back.
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import numpy as np

from cervix_engine.backends.base import BackendInfo, Synchronous
from cervix_engine.backends.openvino import cpu_objection
from cervix_engine.errors import BackendUnavailableError, InferenceError
from cervix_engine.machine import cpu_class, cpu_has_vnni, usable_cpus
from cervix_engine.values import Pixels, Precision, Probabilities

CPU = "onnxruntime-cpu"
OPENVINO = "onnxruntime-openvino"

SPIN_US = 200

_PLUGIN = "OpenVINOPlugin"
_OPENVINO_PRECISIONS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def version() -> str:
    """ONNX Runtime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


def openvino_device() -> Any | None:
    """The OpenVINO plug-in's CPU device (an `OrtEpDevice`), or None where it is not installed or offers none."""
    try:
        import onnxruntime
        import onnxruntime_ep_openvino as plugin
    except ImportError:
        return None
    if not any(device.ep_name in plugin.get_ep_names() for device in onnxruntime.get_ep_devices()):
        try:
            onnxruntime.register_execution_provider_library(_PLUGIN, plugin.get_library_path())
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            return None  # registered before, yet it offers no device: it serves Intel CPUs only
    for device in onnxruntime.get_ep_devices():
        if device.ep_name in plugin.get_ep_names() and device.ep_metadata.get("ov_device") == "CPU":
            return device
    return None


def exact_integers(options: Any) -> Any:
    """Session options with integer kernels that cannot overflow, whatever the CPU.

    Without VNNI instructions, ONNX Runtime's fastest kernel adds pairs of products in 16 bits, where they saturate:
    seen to change 152 of 192 answers of a ResNet-101. With them it is exact, to the same last bit, and 1.5 times as
    fast as the kernel that is asked for here.
    """
    if not cpu_has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def objection(backend: str, precision: Precision) -> str | None:
    """Why `backend` does not run this precision here; None where it does."""
    if backend == CPU:
        return "ONNX Runtime's CPU provider has no bf16: use --precision fp32" if precision == "bf16" else None
    if openvino_device() is None:
        return "the OpenVINO plug-in offers no device here: it needs onnxruntime-ep-openvino and an Intel CPU"
    return cpu_objection(precision)


class OnnxRuntimeBackend(Synchronous):
    """One ONNX Runtime session; `with` creates it from bytes that were already checked.

    Args:
        model: the ONNX file's bytes.
        backend: `onnxruntime-cpu` or `onnxruntime-openvino`.
        precision: what the session must compute in.
        artefact, artefact_sha256: the file's name in the bundle and its digest.
        threads: inference threads, default one a usable core.
    """

    def __init__(
        self,
        model: bytes,
        *,
        backend: str,
        precision: Precision,
        artefact: str,
        artefact_sha256: str,
        threads: int | None = None,
    ) -> None:
        if reason := objection(backend, precision):
            raise BackendUnavailableError(reason)
        self._model: bytes | None = model
        self._session: Any = None
        self.info = BackendInfo(
            backend=backend,
            version=version(),
            device="cpu",
            device_class=cpu_class(),
            precision=precision,
            arithmetic="fp32" if (backend, precision) == (CPU, "fp16") else precision,
            artefact=artefact,
            artefact_sha256=artefact_sha256,
            threads=threads or usable_cpus(),
        )

    def __enter__(self) -> OnnxRuntimeBackend:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(self._model, self._options(), **self._providers())
        except Exception as error:  # the runtime raises a dozen types of its own
            raise InferenceError(f"ONNX Runtime cannot load {self.info.artefact}: {error}") from error
        self._model = None  # the session has its own copy
        self._input = self._session.get_inputs()[0].name
        self._read_back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, pixels: Pixels) -> Probabilities:
        try:
            (probabilities,) = self._session.run(None, {self._input: pixels})
        except Exception as error:  # the runtime raises a dozen types of its own
            raise InferenceError(f"ONNX Runtime failed on a batch of {len(pixels)}: {error}") from error
        return np.asarray(probabilities, np.float32)

    def _options(self) -> Any:
        import onnxruntime

        options = exact_integers(onnxruntime.SessionOptions())
        options.intra_op_num_threads = self.info.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin for the next batch would take the cores that decode it; they do so only for as long as
        # one layer waits for another.
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        # Never fall back: a session that quietly runs elsewhere would carry the wrong certificate.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(self.info.backend != CPU)))
        if self.info.backend == OPENVINO:
            options.add_provider_for_devices([openvino_device()], {"load_config": json.dumps(self._openvino_config())})
        return options

    def _openvino_config(self) -> dict[str, dict[str, str]]:
        return {
            "CPU": {
                "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[self.info.precision],
                "INFERENCE_NUM_THREADS": str(self.info.threads),
                "PERFORMANCE_HINT": "LATENCY",
            }
        }

    def _providers(self) -> dict[str, list[str]]:
        return {"providers": ["CPUExecutionProvider"]} if self.info.backend == CPU else {}

    def _read_back(self) -> None:
        first = self._session.get_providers()[0]
        expected = "CPUExecutionProvider" if self.info.backend == CPU else "OpenVINOExecutionProvider"
        if first != expected:
            raise BackendUnavailableError(f"asked for {self.info.backend}, the session runs on {first}")
