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
from typing import Any

import numpy as np

from cervix_engine.backends.base import BackendInfo
from cervix_engine.backends.cuda.lanes import Compute, GpuLanes, GpuStreams, Lane
from cervix_engine.backends.cuda.one_gpu import OneGpu
from cervix_engine.errors import BackendUnavailableError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Precision

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"


def objection(precision: Precision) -> str | None:
    """Why the installed ONNX Runtime does not compute `precision` on a GPU; None where it does."""
    import onnxruntime

    if PROVIDER not in onnxruntime.get_available_providers():
        return "the installed ONNX Runtime has no CUDA provider: pip install 'cervix[gpu]', and not cervix[cpu] with it"
    if precision in ("bf16", "int8"):
        return f"ONNX Runtime's CUDA provider does not multiply in {precision}: use --precision fp16, or TensorRT"
    try:
        import cuda.core  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"{NAME} needs cuda-core: pip install 'cervix[gpu]' ({error})"
    return loading_error()


@lru_cache(maxsize=1)
def loading_error() -> str | None:
    """Why the provider cannot be loaded: it is listed where it was built in, whether its libraries are here or not."""
    import onnxruntime

    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()  # cuDNN and cuBLAS, where they came as packages
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        # The provider finds what it shares with the runtime only where that is loaded already.
        for library in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{library}.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"ONNX Runtime's CUDA provider cannot be loaded: {error}"
    return None


class OnnxRuntimeCudaBackend(OneGpu):
    """One session on one GPU; `with` creates it from bytes that were already checked.

    Args:
        model: the ONNX file's bytes.
        precision: the graph's.
        artefact, artefact_sha256: the file's name in the bundle and its digest.
        gpu: what it runs on.
    """

    def __init__(self, model: bytes, *, precision: Precision, artefact: str, artefact_sha256: str, gpu: Gpu) -> None:
        import onnxruntime

        super().__init__(
            BackendInfo(
                backend=NAME,
                version=str(onnxruntime.__version__),
                device=gpu.name,
                device_class=gpu.device_class,
                precision=precision,
                arithmetic=precision,
                artefact=artefact,
                artefact_sha256=artefact_sha256,
                threads=1,
                gpu=gpu.name,
            )
        )
        self._model = model
        self._gpu = gpu

    def _load(self) -> GpuLanes:
        return _Session(self._model, self._gpu.ordinal).lanes


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
