"""TensorRT and TensorRT-RTX: an engine of the bundle on an NVIDIA GPU. One code, since the names are the same.

Source: TensorRT documentation, "The Inference Phase" of the Python API, "CUDA Graphs"; the compute capabilities are
those that TensorRT-RTX 1.7 names when it refuses another one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import ClassVar, NoReturn

from cervix_engine.backends.base import Backend, BackendInfo, Pending
from cervix_engine.backends.cuda.lanes import GRAPHED_TILES, Compute, GpuLanes, GpuStreams, Lane
from cervix_engine.backends.cuda.messages import collected_messages
from cervix_engine.backends.cuda.one_gpu import OneGpu, cuda_core_error
from cervix_engine.backends.cuda.several_gpus import on_each
from cervix_engine.backends.device import ComputesOn, Device
from cervix_engine.backends.runtime import Combination, Runtime
from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.engine_file import (
    EngineFingerprint,
    engines_of,
    fingerprints_of,
    read_fingerprint,
    rebuild_command,
)
from cervix_engine.errors import BackendUnavailableError, ContractError, EngineIncompatibleError, InferenceError
from cervix_engine.gpu import Gpu
from cervix_engine.values import Pixels, Precision


class TensorRt(Runtime):
    """TensorRT 10 and 11.

    Attributes:
        module: what is imported.
    """

    name, module = "tensorrt", "tensorrt"
    computes_on: ClassVar[ComputesOn] = "cuda"

    def version(self) -> str | None:
        try:
            return str(importlib.import_module(self.module).__version__)
        except (ImportError, OSError, RuntimeError):  # a library is missing behind the module
            return None

    def combinations(self, bundle: Bundle | None) -> Iterable[Combination]:
        marks = fingerprints_of(bundle) if bundle else {}
        own = {engine: mark for engine, mark in marks.items() if mark.runtime == self.name}
        return [Combination(self.name, mark.precision, engine) for engine, mark in own.items()]

    def require(self, bundle: Bundle | None, combination: Combination, *, device: Device) -> None:
        if bundle is None or combination.engine is None:
            raise BackendUnavailableError(f"{self.name} runs the engines of a bundle")
        engine = combination.engine
        mark, gpus = read_fingerprint(bundle, engine), device.gpus()
        if not gpus:
            raise BackendUnavailableError(f"{engine} needs an NVIDIA GPU: the driver offers none")
        self._refuse_gpus(gpus)
        version = self.version()
        if version is None:
            raise BackendUnavailableError(f"{engine} needs {self.name}, which cannot be loaded here")
        if error := cuda_core_error():
            raise BackendUnavailableError(f"{engine} needs cuda-core: pip install '.[gpu]' ({error})")
        if reason := self.misfit(mark, gpus[0], version):
            raise EngineIncompatibleError(
                f"{engine} does not fit this machine: {reason}; rebuild it: {rebuild_command(bundle.root, mark)}"
            )

    def raise_absent(self, bundle: Bundle, precision: Precision | None, *, device: Device) -> NoReturn:
        self._refuse_gpus(device.gpus())
        for engine in engines_of(bundle):
            read_fingerprint(bundle, engine)  # a broken one may be the one that is looked for
        if not any(self.combinations(bundle)):
            raise BackendUnavailableError(
                f"the bundle has no {self.name} engine: make one with cervix-export --engine {self.name}"
            )
        kind, other = (f"{precision} engine", "auto") if precision else ("engine in floating point", "int8")
        raise BackendUnavailableError(f"the bundle has no {kind} for {self.name}: use --precision {other}")

    def open(self, bundle: Bundle, combination: Combination, *, threads: int | None, device: Device) -> Backend:  # noqa: ARG002
        self.require(bundle, combination, device=device)
        mark, engine = read_fingerprint(bundle, combination.artefact), bundle.read(combination.artefact)
        shapes = ((*bundle.contract.input_size, 3), (len(bundle.contract.class_names),))

        def make(gpu: Gpu) -> Backend:
            info = self.info(combination, sha256=mark.file_sha256, gpu=gpu)
            return TensorRtBackend(engine, info, mark, module=self.module, shapes=shapes, ordinal=gpu.ordinal)

        return on_each(device.gpus(), make)

    def gpu_objection(self, gpu: Gpu) -> str | None:  # noqa: ARG002 - see TensorRtRtx
        """Why it runs no engine whatever on this GPU; None where it may."""
        return None

    def misfit(self, mark: EngineFingerprint, gpu: Gpu, version: str) -> str | None:
        """Why an engine of this runtime does not run on `gpu` with this version of it; None where it does."""
        if version != mark.runtime_version:
            return f"it was built with {self.name} {mark.runtime_version}, here is {version}"
        if not self.fits(mark, gpu):
            built_for = mark.gpu or f"compute capability {', '.join(mark.compute_capabilities)}"
            return f"it was built for {built_for}, here is {gpu.name} ({gpu.compute_capability})"
        return None

    def fits(self, mark: EngineFingerprint, gpu: Gpu) -> bool:
        """Whether an engine's kernels are for `gpu`: TensorRT chooses them for one GPU's cores and memory."""
        if mark.hardware_compat == "ampere+":
            return gpu.capability >= (8, 0)
        same_gpu = mark.hardware_compat == "same-cc" or gpu.name == mark.gpu
        return same_gpu and gpu.compute_capability in mark.compute_capabilities

    def _refuse_gpus(self, gpus: Iterable[Gpu]) -> None:
        for gpu in gpus:
            if reason := self.gpu_objection(gpu):
                raise EngineIncompatibleError(reason)


class TensorRtRtx(TensorRt):
    """TensorRT-RTX, which chooses kernels where an engine is loaded, on the GPUs that it knows."""

    name, module = "tensorrt-rtx", "tensorrt_rtx"

    def gpu_objection(self, gpu: Gpu) -> str | None:
        if gpu.capability in ((8, 0), (8, 6), (8, 9)) or gpu.capability >= (12, 0):
            return None
        return (
            f"TensorRT-RTX does not run on {gpu.name}, compute capability {gpu.compute_capability}: it supports 8.0, "
            "8.6, 8.9, 12.0 and later; TensorRT does: cervix-export --engine tensorrt"
        )

    def fits(self, mark: EngineFingerprint, gpu: Gpu) -> bool:
        return gpu.compute_capability in mark.compute_capabilities


# The module of each.
MODULES = {kind.name: kind.module for kind in (TensorRt, TensorRtRtx)}


class TensorRtBackend(OneGpu):
    """One engine on one GPU; `with` loads and frees it.

    Args:
        engine: its bytes, already checked.
        info: what it is.
        fingerprint: what it was built for.
        module: the runtime's.
        shapes: of one tile, (height, width, 3), and of its answer, (classes,).
        ordinal: the GPU's place in the driver's order.
    """

    def __init__(
        self,
        engine: bytes,
        info: BackendInfo,
        fingerprint: EngineFingerprint,
        *,
        module: str,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        ordinal: int,
    ) -> None:
        super().__init__(info)
        self._file: bytes | None = engine
        self._fingerprint = fingerprint
        self._module, self._shapes, self._ordinal = module, shapes, ordinal

    def _load(self) -> GpuLanes:
        try:
            loaded = _LoadedEngine(self._file, self._module, self._ordinal, *self._shapes)
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
        self, file: bytes | None, module: str, ordinal: int, tile: tuple[int, ...], answer: tuple[int, ...]
    ) -> None:
        trt = importlib.import_module(module)
        self._streams = GpuStreams(ordinal)
        self.lanes = GpuLanes(self._streams, classes=answer[0], prepare=self._prepare)
        messages = collected_messages(trt)
        self._runtime = trt.Runtime(messages)  # it must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(file)
        if engine is None:
            raise RuntimeError(f"its bytes are refused: {messages.last_error}")
        self._names = tuple(engine.get_tensor_name(place) for place in range(2))
        for name, kind, shape in zip(self._names, (trt.uint8, trt.float32), (tile, answer), strict=True):
            found = (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:])
            if found != (kind, shape):
                raise ContractError(f"{name} is {found}, expected {(kind, shape)}")
        self._context = engine.create_execution_context()
        if self._context is None:
            reason = messages.last_error
            raise RuntimeError(f"it gives no execution context, the GPU's memory may be full: {reason}")

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
