"""Whether an export also makes a TensorRT engine."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Literal

from cervix_engine.errors import BackendUnavailableError, EngineBuildError

EngineChoice = Literal["auto", "none", "tensorrt", "tensorrt-rtx"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_NOT_BUILT = "this version of cervix does not build engines yet"


def decide_engine(choice: EngineChoice) -> str | None:
    """Decide about an engine before any work is done.

    Returns:
        Why there will be no engine, for one line to the user; None where none was wanted.

    Raises:
        BackendUnavailableError: an engine was asked for by name, and this machine cannot make it.
        EngineBuildError: an engine was asked for by name, and this version cannot make it.
    """
    if choice == "none":
        return None
    reason = _obstacle("tensorrt" if choice == "auto" else choice)
    if choice == "auto":
        return f"no TensorRT engine: {reason or _NOT_BUILT}; the bundle is complete for ONNX Runtime"
    if reason:
        raise BackendUnavailableError(f"no {choice} engine: {reason}")
    raise EngineBuildError(f"no {choice} engine: {_NOT_BUILT}; use --engine none")


def _obstacle(runtime: str) -> str | None:
    # The driver is loaded only where TensorRT is: without it the answer is known.
    if importlib.util.find_spec(_MODULES[runtime]) is None:
        return f"{_MODULES[runtime]} is not installed"
    return None if gpu_count() else "this machine has no NVIDIA GPU"


def gpu_count() -> int:
    """NVIDIA GPUs that the driver offers; 0 without a driver. Source: CUDA driver API, `cuInit`, `cuDeviceGetCount`."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
