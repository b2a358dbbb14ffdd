"""ONNX Runtime's CUDA provider: the bundle's FP32 and FP16 graphs on an NVIDIA GPU, without an engine.

Its inputs and outputs are bound to a lane's buffers and it computes on the lanes' stream, so that nothing is copied
that the lanes do not copy.

Source: ONNX Runtime documentation, "CUDA Execution Provider" and "I/O Binding".
"""

from __future__ import annotations

import ctypes
import io
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cervix_engine.backends.base import Backend, BackendInfo
from cervix_engine.backends.cuda.lanes import Compute, GpuLanes, GpuStreams, Lane
from cervix_engine.backends.cuda.one_gpu import OneGpu, cuda_core_error
from cervix_engine.backends.device import ComputesOn, Device
from cervix_engine.backends.onnxruntime import OnnxRuntime
from cervix_engine.errors import BackendUnavailableError
from cervix_engine.values import Precision

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"


class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime with its CUDA provider."""

    name, extra = "onnxruntime-cuda", "gpu"
    computes_on: ClassVar[ComputesOn] = "cuda"

    def objection(self, precision: Precision, device: Device, /) -> str | None:
        if not device.gpus():
            return f"{self.name} needs an NVIDIA GPU: the driver offers none"
        return super().objection(precision, device)

    def provider_objection(self, precision: Precision) -> str | None:
        import onnxruntime

        if PROVIDER not in onnxruntime.get_available_providers():
            remedy = "pip install '.[gpu]', and not '.[cpu]' with it"
            return f"the installed ONNX Runtime has no CUDA provider: {remedy}"
        if precision in ("bf16", "int8"):
            return f"ONNX Runtime's CUDA provider does not multiply in {precision}: use --precision fp16, or TensorRT"
        if error := cuda_core_error():
            return f"{self.name} needs cuda-core: pip install '.[gpu]' ({error})"
        return loading_error(Path(onnxruntime.__file__).parent / "capi")

    def load(self, graph: bytes, info: BackendInfo, ordinal: int, /) -> Backend:
        return _OnGpu(graph, info, ordinal)


@lru_cache(maxsize=1)
def loading_error(folder: Path) -> str | None:
    """Why the provider cannot be loaded: it is listed where it was built in, whether its libraries are here or not.

    Args:
        folder: where ONNX Runtime has its libraries.
    """
    import onnxruntime

    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()  # cuDNN and cuBLAS, where they came as packages
    try:
        # The provider finds what it shares with the runtime only where that is loaded already.
        for library in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{library}.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"ONNX Runtime's CUDA provider cannot be loaded: {error}"
    return None


class _OnGpu(OneGpu):
    """One session on one GPU; `with` creates it from bytes that were already checked."""

    def __init__(self, model: bytes, info: BackendInfo, ordinal: int) -> None:
        super().__init__(info)
        self._model = model
        self._ordinal = ordinal

    def _load(self) -> GpuLanes:
        return _Session(self._model, self._ordinal).lanes


class _Session:
    def __init__(self, model: bytes, ordinal: int) -> None:
        import onnxruntime

        streams = GpuStreams(ordinal)
        self._ordinal = ordinal
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Never fall back: a session that quietly runs elsewhere would carry the wrong certificate.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {
            "device_id": str(ordinal),
            "user_compute_stream": str(int(streams.compute.handle)),
            # An exhaustive search picks other kernels from one start to the next, and with them other last digits.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",  # which would make FP32 a name only
        }
        # By itself it would try again on the CPU, and say so on standard output.
        self._session = onnxruntime.InferenceSession(
            model, options, providers=[(PROVIDER, provider)], enable_fallback=0
        )
        if self._session.get_providers()[0] != PROVIDER:
            raise BackendUnavailableError(f"asked for {PROVIDER}, the session runs on {self._session.get_providers()}")
        classes = self._session.get_outputs()[0].shape[1]
        self.lanes = GpuLanes(streams, classes=classes, prepare=self._prepare)
        self._run_options = onnxruntime.RunOptions()
        # The lanes wait by events; the host does not.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _prepare(self, lane: Lane) -> Compute:
        binding: Any = self._session.io_binding()
        (given,), (answered,) = self._session.get_inputs(), self._session.get_outputs()
        bind = (binding.bind_input, binding.bind_output)
        for name, kind, call, shape, address in zip(
            (given.name, answered.name), (np.uint8, np.float32), bind, lane.shapes, lane.addresses, strict=True
        ):
            call(name, DEVICE, self._ordinal, kind, list(shape), address)
        return lambda: self._session.run_with_iobinding(binding, self._run_options)
