"""OpenVINO itself, which computes in BF16 and in integers on every x86 CPU that has the instructions.

ONNX Runtime's OpenVINO plug-in is the same runtime behind one more door, which opens on Intel's CPUs only.

Source: OpenVINO documentation, "CPU Device" and "Query Execution Graph".
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np

from cervix_engine.backends.base import Backend, BackendInfo, Pending
from cervix_engine.backends.device import Device
from cervix_engine.backends.runtime import GraphRuntime
from cervix_engine.errors import InferenceError
from cervix_engine.machine import cpu_has_bf16, cpu_has_vnni, memory_left
from cervix_engine.values import Pixels, Precision, Probabilities

_KERNELS = {"fp32": {"f32"}, "bf16": {"bf16"}, "int8": {"u8", "i8"}}
_MATRIX_LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul"})

# Least share of the layers that compute as asked. An INT8 graph leaves some in float, and OpenVINO may leave some in
# FP32; with fewer than half it would not be what it is called. FP32 is all of it or not.
_LEAST_SHARE = {"fp32": 1.0, "bf16": 0.5, "int8": 0.5}

# While one batch is fetched, the next one keeps all threads busy.
IN_FLIGHT = 2
# A part of a batch with fewer tiles would read the weights too often for what it computes with them.
LEAST_PART = 16
# Each part has a copy of the weights: not where a container leaves little memory.
PLENTY_BYTES = 4e9


class OpenVino(GraphRuntime):
    """OpenVINO's CPU plug-in."""

    name = "openvino"

    def version(self) -> str | None:
        """OpenVINO's version, without the build; None where it cannot be loaded."""
        try:
            import openvino
        except (ImportError, OSError):
            return None
        return str(openvino.__version__).split("-")[0]

    def objection(self, precision: Precision, _device: Device, /) -> str | None:
        if self.version() is None:
            return "OpenVINO is not installed: pip install '.[cpu]'"
        return cpu_objection(precision)

    def load(self, graph: bytes, info: BackendInfo, _ordinal: int, /) -> Backend:
        return OpenVinoBackend(graph, info)


def cpu_objection(precision: Precision, *, flags: Set[str] | None = None) -> str | None:
    """Why OpenVINO does not run this precision on a CPU with these flags, default this one; None where it does."""
    if precision == "fp16":
        return "OpenVINO computes an FP16 graph in FP32: use --precision fp32"
    if precision == "bf16" and not cpu_has_bf16(flags):
        return "this CPU has no bf16 instructions: OpenVINO would silently compute FP32"
    if precision == "int8" and not cpu_has_vnni(flags):
        return "this CPU has no VNNI instructions, without which OpenVINO's sums of products can saturate"
    return None


class OpenVinoBackend:
    """One compiled model; `with` reads it from bytes that were already checked.

    It is compiled for the shape of the first batch, and again where another comes: fixed shapes are the fastest. Where
    `parts_of` says so, it is compiled twice, and the halves of a batch are computed side by side: threads that share a
    batch wait for each other at every layer. One compiled model with two streams would do, but some of those that are
    made of INT8 graphs answer wrongly, as if streams disturbed each other while they are made (OpenVINO 2026.4.1).

    Args:
        model: the ONNX file's bytes.
        info: says in which precision its kernels must compute, and on how many threads.
    """

    in_flight = IN_FLIGHT

    def __init__(self, model: bytes, info: BackendInfo) -> None:
        self._file: bytes | None = model
        self._graph: Any = None
        self._compiled: list[Any] = []  # one a part
        self._requests: list[list[Any]] = []  # for each batch in flight, one a part
        self._free: list[list[Any]] = []  # those of no batch; taken and given back by any thread
        self._shape: tuple[int, ...] = ()
        self.info = info

    def __enter__(self) -> OpenVinoBackend:
        import openvino

        self._core = openvino.Core()
        try:
            self._graph = self._core.read_model(io.BytesIO(self._file or b""))
        except RuntimeError as error:
            raise InferenceError(f"OpenVINO cannot load {self.info.artefact}: {error}") from error
        self._file = None  # the graph has its own copy
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._requests, self._free, self._compiled, self._graph = [], [], [], None

    @contextmanager
    def pinned(self, pixels: Pixels) -> Iterator[None]:  # noqa: ARG002 - all memory is as near
        try:
            yield
        finally:
            self._end()

    def cancel(self) -> None:
        for request in chain(*self._requests):
            request.cancel()  # before its next layer

    def _end(self) -> None:
        """End what was begun and will not be fetched: it reads memory that may be freed next."""
        self.cancel()
        _wait_for(chain(*self._requests))
        self._free = list(self._requests)

    def begin(self, pixels: Pixels, *, batch: int = 0) -> Pending:  # noqa: ARG002 - the one device takes all
        with self._named(pixels):
            if pixels.shape != self._shape:
                self._compile(pixels.shape)
            free = self._free
            if not free:
                # What holds the answers of a batch that was not fetched must not compute another.
                raise InferenceError(f"more than {IN_FLIGHT} batches at a time: fetch one before the next")
            requests = free.pop()
            try:
                for request, part in zip(requests, np.split(pixels, len(requests)), strict=True):
                    request.start_async([part], share_inputs=True)
            except BaseException:
                _wait_for(requests)
                free.append(requests)
                raise

        def fetch() -> Probabilities:
            with self._named(pixels):
                try:
                    for request in requests:
                        request.wait()
                    return np.concatenate([request.get_output_tensor().data for request in requests], dtype=np.float32)
                finally:
                    _wait_for(requests)
                    free.append(requests)

        return fetch

    def infer(self, pixels: Pixels) -> Probabilities:
        return self.begin(pixels)()

    @contextmanager
    def _named(self, pixels: Pixels) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise InferenceError(f"OpenVINO failed on a batch of {len(pixels)}: {error}") from error

    def float_kernels(self) -> str:
        """What it is told to compute in; see the function of this name."""
        return float_kernels(self.info.precision)

    def kernel_precisions(self) -> list[str]:
        """What each layer of the model that last ran computes in; see the function of this name."""
        return kernel_precisions(self._compiled[0])

    def _compile(self, shape: tuple[int, ...]) -> None:
        batch, *tile = shape
        parts = parts_of(batch, threads=self.info.threads, left=memory_left())
        self._graph.reshape([batch // parts, *tile])
        settings = {
            # OpenVINO takes BF16 by default wherever the CPU has it, so an "FP32" run would silently not be one.
            "INFERENCE_PRECISION_HINT": self.float_kernels(),
            "INFERENCE_NUM_THREADS": str(self.info.threads // parts),
            "PERFORMANCE_HINT": "LATENCY",
            # Each would pin its threads to the same cores.
            **({"ENABLE_CPU_PINNING": "NO"} if parts > 1 else {}),
        }
        with ThreadPoolExecutor(parts) as threads:
            models = [threads.submit(self._core.compile_model, self._graph, "CPU", settings) for _ in range(parts)]
        self._compiled = [model.result() for model in models]
        self._read_back(self._compiled[0])
        self._requests = [[part.create_infer_request() for part in self._compiled] for _ in range(IN_FLIGHT)]
        self._free = list(self._requests)
        self._shape = shape

    def _read_back(self, compiled: Any) -> None:
        """Check that the kernels compute in the precision asked for."""
        layers = kernel_precisions(compiled)
        if not layers:
            raise InferenceError("OpenVINO's execution graph names no layer whose precision could be read back")
        share = sum(layer in _KERNELS[self.info.precision] for layer in layers) / len(layers)
        if share < _LEAST_SHARE[self.info.precision]:
            raise InferenceError(
                f"asked for {self.info.precision}, OpenVINO chose other kernels for {1 - share:.0%} of the layers"
            )


def _wait_for(requests: Iterable[Any]) -> None:
    """Wait until none of them computes, however it ends."""
    for request in requests:
        with suppress(RuntimeError):  # it failed, or was cancelled
            request.wait()


def parts_of(batch: int, *, threads: int, left: float) -> int:
    """In how many equal parts a batch of tiles is computed, 1 or 2; `left` is the memory in bytes that there is."""
    return 2 if batch % 2 == threads % 2 == 0 and batch // 2 >= LEAST_PART and left > PLENTY_BYTES else 1


def float_kernels(precision: Precision) -> str:
    """What layers compute in that are not in integers: in an INT8 graph those left in float, which need no FP32."""
    return "bf16" if precision == "bf16" or (precision == "int8" and cpu_has_bf16()) else "f32"


def kernel_precisions(compiled: Any) -> list[str]:
    """What each convolution and matrix product of a compiled model's execution graph computes in, such as `bf16`.

    Small products that OpenVINO fused with their neighbours, such as a head's, are not among them.
    """
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    return [str(fact["runtimePrecision"].value).lower() for fact in facts if fact["layerType"].value in _MATRIX_LAYERS]
