"""TensorRT and TensorRT-RTX: an engine of the bundle on an NVIDIA GPU. One code, since the names are the same.

Source: TensorRT documentation, "The Inference Phase" of the Python API; cuda-core's `Buffer` and `Stream`.
"""

from __future__ import annotations

import ctypes
import importlib
from types import TracebackType
from typing import Any, Literal

import numpy as np

from cervix_engine.backends.base import BackendInfo
from cervix_engine.bundle import Bundle
from cervix_engine.certificate import Precision, Probabilities
from cervix_engine.engine_file import (
    MODULES,
    EngineFingerprint,
    EngineRuntime,
    engines_of,
    read_engine,
    read_fingerprint,
    require_fit,
)
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError
from cervix_engine.gpu import Gpu, find_gpus
from cervix_engine.preprocess import Pixels


def version(runtime: EngineRuntime) -> str | None:
    """The installed version of a runtime; None where it cannot be loaded."""
    try:
        return str(importlib.import_module(MODULES[runtime]).__version__)
    except (ImportError, OSError, RuntimeError):  # a library is missing behind the module
        return None


def require_fitting(bundle: Bundle, engine: str, fingerprint: EngineFingerprint) -> Gpu:
    """The GPU that runs an engine of the bundle.

    Raises:
        BackendUnavailableError: the runtime or a GPU is missing.
        EngineIncompatibleError: it was built for another GPU or runtime version; says the command that rebuilds it.
    """
    gpus, here = find_gpus(), version(fingerprint.runtime)
    if not gpus:
        raise BackendUnavailableError(f"{engine} needs an NVIDIA GPU: the driver offers none")
    if here is None:
        raise BackendUnavailableError(f"{engine} needs {fingerprint.runtime}, which cannot be loaded here")
    try:
        import cuda.core  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(f"{engine} needs cuda-core: pip install 'cervix[gpu]' ({error})") from error
    require_fit(bundle, engine, fingerprint, gpu=gpus[0], runtime_version=here)
    return gpus[0]


def require_runtime(bundle: Bundle, runtime: EngineRuntime, precision: Precision | Literal["auto"]) -> None:
    """Say why no engine of this runtime runs in this precision here; returns where one does.

    Raises:
        BackendUnavailableError: the bundle has none, or the runtime or a GPU is missing.
        EngineIncompatibleError: the one that it has was built for another GPU or version.
        ContractError: an engine has no fingerprint of its own.
    """
    marks = {name: read_fingerprint(bundle, name) for name in engines_of(bundle)}
    found = {name: mark for name, mark in marks.items() if mark.runtime == runtime}
    if not found:
        raise BackendUnavailableError(
            f"the bundle has no {runtime} engine: make one with cervix-export --engine {runtime}"
        )
    wanted = {name: mark for name, mark in found.items() if precision in ("auto", mark.precision)}
    if not wanted:
        raise BackendUnavailableError(f"the bundle has no {precision} engine for {runtime}: use --precision auto")
    for name, mark in wanted.items():
        require_fitting(bundle, name, mark)


def open_engine(bundle: Bundle, engine: str) -> TensorRtBackend:
    """Make the backend of an engine, such as `engines/nvidia-a10-tensorrt-fp16.engine`; `with` loads it.

    Raises:
        BackendUnavailableError: the runtime or a GPU is missing.
        EngineIncompatibleError: it was built for another GPU or runtime version.
        ContractError: it was altered, or has no fingerprint of its own.
    """
    fingerprint = read_fingerprint(bundle, engine)
    gpu = require_fitting(bundle, engine, fingerprint)
    data = read_engine(bundle, engine, gpu=gpu, runtime_version=fingerprint.runtime_version)
    return TensorRtBackend(
        data,
        fingerprint=fingerprint,
        artefact=engine,
        input_shape=(*bundle.contract.input_size, 3),
        classes=len(bundle.contract.class_names),
        gpu=gpu,
    )


class TensorRtBackend:
    """One engine with its own stream and buffers on the first GPU; `with` loads and frees them.

    Args:
        engine: its bytes, already checked.
        fingerprint: what it was built for.
        artefact: its name in the bundle.
        input_shape: a tile's (height, width, 3).
        classes: how many probabilities it gives a tile.
        gpu: what it runs on.
    """

    def __init__(
        self,
        engine: bytes,
        *,
        fingerprint: EngineFingerprint,
        artefact: str,
        input_shape: tuple[int, ...],
        classes: int,
        gpu: Gpu,
    ) -> None:
        self._file: bytes | None = engine
        self._fingerprint = fingerprint
        self._shapes = (input_shape, (classes,))
        self._loaded: _LoadedEngine | None = None
        self.info = BackendInfo(
            backend=fingerprint.runtime,
            version=fingerprint.runtime_version,
            device=gpu.name,
            device_class=gpu.device_class,
            precision=fingerprint.precision,
            arithmetic=fingerprint.precision,
            artefact=artefact,
            artefact_sha256=fingerprint.file_sha256,
            threads=1,
        )

    def __enter__(self) -> TensorRtBackend:
        try:
            self._loaded = _LoadedEngine(self._file, self._fingerprint.runtime, self._shapes)
        except ContractError as error:
            raise ContractError(f"{self.info.artefact}: {error}") from error
        except Exception as error:  # TensorRT and CUDA raise types of their own
            raise InferenceError(f"{self.info.backend} cannot load {self.info.artefact}: {error}") from error
        self._file = None  # the engine has its own copy
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None

    def infer(self, pixels: Pixels) -> Probabilities:
        if self._loaded is None:
            raise RuntimeError("infer() outside of `with`")
        mark = self._fingerprint
        if not mark.min_batch <= len(pixels) <= mark.max_batch:
            raise InferenceError(
                f"{self.info.artefact} takes batches of {mark.min_batch} to {mark.max_batch} tiles, got {len(pixels)}: "
                "choose another --batch-size, or export with another --max-batch"
            )
        try:
            return self._loaded.infer(pixels)
        except Exception as error:  # as above
            raise InferenceError(f"{self.info.backend} failed on a batch of {len(pixels)}: {error}") from error


class _LoadedEngine:
    """An engine with its context, its stream and its buffers; `shapes` are a tile's and its answer's."""

    def __init__(self, file: bytes | None, runtime: EngineRuntime, shapes: tuple[tuple[int, ...], ...]) -> None:
        from cuda.core import Device

        trt = importlib.import_module(MODULES[runtime])
        self._device = Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # it must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(file)
        if engine is None:
            raise RuntimeError("its bytes are refused")
        self._names = tuple(engine.get_tensor_name(place) for place in range(2))
        for name, kind, shape in zip(self._names, (trt.uint8, trt.float32), shapes, strict=True):
            found = (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:])
            if found != (kind, shape):
                raise ContractError(f"{name} is {found}, expected {(kind, shape)}")
        self._shapes = shapes
        self._context = engine.create_execution_context()
        self._tiles = 0  # for which there is room

    def infer(self, pixels: Pixels) -> Probabilities:
        self._device.set_current()  # for this thread, which need not be the one that loaded the engine
        if len(pixels) != self._tiles:
            self._fit(len(pixels))
        self._pixels.host[:] = pixels
        self._pixels.upload(self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise RuntimeError("the engine was not run")
        self._answers.download(self._stream)
        self._stream.sync()
        return np.array(self._answers.host)

    def _fit(self, tiles: int) -> None:
        """Make room for batches of so many tiles. A run has one size."""
        pixels, answers = ((tiles, *shape) for shape in self._shapes)
        self._pixels = _Pair(self._device, self._stream, pixels, np.uint8)
        self._answers = _Pair(self._device, self._stream, answers, np.float32)
        self._context.set_input_shape(self._names[0], pixels)
        for name, pair in zip(self._names, (self._pixels, self._answers), strict=True):
            self._context.set_tensor_address(name, pair.address)
        self._tiles = tiles


class _Pair:
    """The same array twice: on the GPU, and in pinned memory as `host`."""

    def __init__(self, device: Any, stream: Any, shape: tuple[int, ...], kind: type[np.generic]) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        self._device = device.allocate(size, stream=stream)
        self._pinned = LegacyPinnedMemoryResource().allocate(size)
        memory = (ctypes.c_uint8 * size).from_address(int(self._pinned.handle))
        self.host = np.ctypeslib.as_array(memory).view(kind).reshape(shape)

    @property
    def address(self) -> int:
        return int(self._device.handle)

    def upload(self, stream: Any) -> None:
        self._device.copy_from(self._pinned, stream=stream)

    def download(self, stream: Any) -> None:
        self._pinned.copy_from(self._device, stream=stream)
