"""TensorRT and TensorRT-RTX: an engine of the bundle on an NVIDIA GPU. One code, since the names are the same.

Source: TensorRT documentation, "The Inference Phase" of the Python API, "CUDA Graphs".
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal

from cervix_engine.backends.base import BackendInfo, Pending
from cervix_engine.backends.cuda.lanes import GRAPHED_TILES, Compute, GpuLanes, GpuStreams, Lane
from cervix_engine.backends.cuda.one_gpu import OneGpu
from cervix_engine.backends.device import ANY, Device
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.engine_file import (
    MODULES,
    EngineFingerprint,
    EngineRuntime,
    engines_of,
    read_engine,
    read_fingerprint,
    require_fit,
)
from cervix_engine.errors import BackendUnavailableError, ContractError, InferenceError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Pixels, Precision


def version(runtime: EngineRuntime) -> str | None:
    """The installed version of a runtime; None where it cannot be loaded."""
    try:
        return str(importlib.import_module(MODULES[runtime]).__version__)
    except (ImportError, OSError, RuntimeError):  # a library is missing behind the module
        return None


def require_fitting(
    bundle: Bundle, engine: str, fingerprint: EngineFingerprint, *, device: Device = ANY
) -> tuple[Gpu, ...]:
    """The GPUs that run an engine of the bundle.

    Raises:
        BackendUnavailableError: the runtime or a GPU is missing.
        EngineIncompatibleError: it was built for another GPU or runtime version; says the command that rebuilds it.
    """
    gpus, here = device.gpus(), version(fingerprint.runtime)
    if not gpus:
        raise BackendUnavailableError(f"{engine} needs an NVIDIA GPU: the driver offers none")
    if here is None:
        raise BackendUnavailableError(f"{engine} needs {fingerprint.runtime}, which cannot be loaded here")
    try:
        import cuda.core  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(f"{engine} needs cuda-core: pip install 'cervix[gpu]' ({error})") from error
    require_fit(bundle, engine, fingerprint, gpu=gpus[0], runtime_version=here)
    return gpus


def require_runtime(
    bundle: Bundle, runtime: EngineRuntime, precision: Precision | Literal["auto"], *, device: Device
) -> None:
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
        require_fitting(bundle, name, mark, device=device)


def open_engine(bundle: Bundle, engine: str, *, device: Device = ANY) -> Sequence[TensorRtBackend]:
    """Make the backends of an engine, such as `engines/nvidia-a10-tensorrt-fp16.engine`, one for each GPU.

    Raises:
        BackendUnavailableError: the runtime or a GPU is missing.
        EngineIncompatibleError: it was built for another GPU or runtime version.
        ContractError: it was altered, or has no fingerprint of its own.
    """
    fingerprint = read_fingerprint(bundle, engine)
    gpus = require_fitting(bundle, engine, fingerprint, device=device)
    data = read_engine(bundle, engine, gpu=gpus[0], runtime_version=fingerprint.runtime_version)
    return [
        TensorRtBackend(
            data,
            fingerprint=fingerprint,
            artefact=engine,
            input_shape=(*bundle.contract.input_size, 3),
            classes=len(bundle.contract.class_names),
            gpu=gpu,
        )
        for gpu in gpus
    ]


class TensorRtBackend(OneGpu):
    """One engine on one GPU; `with` loads and frees it.

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
        super().__init__(
            BackendInfo(
                backend=fingerprint.runtime,
                version=fingerprint.runtime_version,
                device=gpu.name,
                device_class=gpu.device_class,
                precision=fingerprint.precision,
                arithmetic=fingerprint.precision,
                artefact=artefact,
                artefact_sha256=fingerprint.file_sha256,
                threads=1,
                gpu=gpu.name,
            )
        )
        self._file: bytes | None = engine
        self._fingerprint = fingerprint
        self._shapes = (input_shape, (classes,))
        self._gpu = gpu

    def _load(self) -> GpuLanes:
        try:
            loaded = _LoadedEngine(self._file, self._fingerprint.runtime, self._gpu.ordinal, *self._shapes)
        except ContractError as error:
            raise ContractError(f"{self.info.artefact}: {error}") from error
        self._file = None  # the engine has its own copy
        return loaded.lanes

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:
        mark, tiles = self._fingerprint, len(pixels)
        if not mark.min_batch <= tiles <= mark.max_batch:
            raise InferenceError(
                f"{self.info.artefact} takes batches of {mark.min_batch} to {mark.max_batch} tiles, got {tiles}: "
                "choose another --batch-size, or export with another --max-batch"
            )
        return super().begin(pixels, batch=batch)


class _LoadedEngine:
    """An engine with its context and lanes; `tile` and `answer` are the shapes of one tile and of its answer."""

    def __init__(
        self, file: bytes | None, runtime: EngineRuntime, ordinal: int, tile: tuple[int, ...], answer: tuple[int, ...]
    ) -> None:
        trt = importlib.import_module(MODULES[runtime])
        self._streams = GpuStreams(ordinal)
        self.lanes = GpuLanes(self._streams, classes=answer[0], prepare=self._prepare)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # it must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(file)
        if engine is None:
            raise RuntimeError("its bytes are refused")
        self._names = tuple(engine.get_tensor_name(place) for place in range(2))
        for name, kind, shape in zip(self._names, (trt.uint8, trt.float32), (tile, answer), strict=True):
            found = (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:])
            if found != (kind, shape):
                raise ContractError(f"{name} is {found}, expected {(kind, shape)}")
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("it gives no execution context: the GPU's memory may be full")

    def _prepare(self, lane: Lane) -> Compute:
        if not self._context.set_input_shape(self._names[0], lane.shapes[0]):
            raise RuntimeError(f"the engine refuses pixels of {lane.shapes[0]}")

        addresses = lane.addresses  # and not the lane, which keeps what is returned here: it would never be freed

        def compute() -> None:
            for name, address in zip(self._names, addresses, strict=True):
                self._context.set_tensor_address(name, address)
            if not self._context.execute_async_v3(int(self._streams.compute.handle)):
                raise RuntimeError("the engine was not run")

        return self._streams.captured(compute) if lane.shapes[0][0] <= GRAPHED_TILES else compute
