"""Intel's OpenVINO as a plug-in of ONNX Runtime, on Intel's CPUs.

OpenVINO takes BF16 by default wherever the CPU has it, so an "FP32" run there would silently not be one: the precision
is always set.
"""

from __future__ import annotations

import json
from typing import Any

from cervix_engine.backends.base import Backend, BackendInfo
from cervix_engine.backends.onnxruntime import CpuSession, OnnxRuntime
from cervix_engine.backends.openvino import cpu_objection
from cervix_engine.values import Precision

_PLUGIN = "OpenVINOPlugin"
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OnnxRuntimeOpenVino(OnnxRuntime):
    """ONNX Runtime with the OpenVINO plug-in."""

    name = "onnxruntime-openvino"

    def provider_objection(self, precision: Precision) -> str | None:
        if plugin_device() is None:
            return "the OpenVINO plug-in offers no device here: it needs onnxruntime-ep-openvino and an Intel CPU"
        return cpu_objection(precision)

    def load(self, graph: bytes, info: BackendInfo, _ordinal: int, /) -> Backend:
        return _PluginSession(graph, info)


def plugin_device() -> Any | None:
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


class _PluginSession(CpuSession):
    provider = "OpenVINOExecutionProvider"

    def _create(self, model: bytes) -> Any:
        import onnxruntime

        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.info.precision],
            "INFERENCE_NUM_THREADS": str(self.info.threads),
            "PERFORMANCE_HINT": "LATENCY",
        }
        options = self._options()
        # Never fall back: a session that quietly runs elsewhere would carry the wrong certificate.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_provider_for_devices([plugin_device()], {"load_config": json.dumps({"CPU": config})})
        return onnxruntime.InferenceSession(model, options)
