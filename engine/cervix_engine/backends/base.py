"""The one seam between the engine and a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from cervix_engine.certificate import Precision, Probabilities
from cervix_engine.preprocess import Pixels


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is really running, as read back from the runtime.

    Attributes:
        backend: `onnxruntime-cpu`, `onnxruntime-openvino`, `openvino`, `tensorrt`, `tensorrt-rtx` or `fake`.
        version: the runtime's version.
        device: such as `cpu`.
        device_class: the instruction set or compute capability that results may depend on.
        precision: that of the graph, or of the mode it is computed in.
        arithmetic: what the kernels really multiply in. ONNX Runtime's CPU provider has no half-precision kernels
            on x86: it computes an FP16 graph in FP32, with weights and tensors rounded to half.
        artefact, artefact_sha256: the file of the bundle that was loaded.
        threads: inference threads; they never depend on the decode workers.
    """

    backend: str
    version: str
    device: str
    device_class: str
    precision: Precision
    arithmetic: Precision
    artefact: str
    artefact_sha256: str
    threads: int


class Backend(Protocol):
    """A loaded model. Constructing is cheap; `with` loads it and frees it. One thread owns it."""

    @property
    def info(self) -> BackendInfo: ...

    def infer(self, pixels: Pixels) -> Probabilities:
        """Compute `float32 (N, classes)` probabilities of `uint8 (N, height, width, 3)` RGB tiles.

        The result belongs to the caller; `pixels` may be reused as soon as this returns.

        Raises:
            InferenceError: the runtime failed.
        """
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
