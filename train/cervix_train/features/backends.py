"""What can compute an extractor's features here: Keras, and the engine's backends on its ONNX graph.

The converted graph is of our own model, made and run in this process, and never leaves it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType

import numpy as np

from cervix_engine.backends import Backend, BackendInfo, Combination, objection, open_graph, runtime_version
from cervix_engine.backends.base import Synchronous
from cervix_engine.files import sha256_bytes
from cervix_engine.machine import cpu_class, usable_cpus
from cervix_engine.values import Pixels, Precision, Probabilities
from cervix_keras.graph import graph_from_keras
from cervix_keras.start import KerasModel, load_keras, native_stderr_held
from cervix_train.features.extractor import extractor_digest

log = logging.getLogger(__name__)

# What may run a converted extractor.
_FP32 = (Combination("onnxruntime-cpu", "fp32"), Combination("openvino", "fp32"))
_BF16 = Combination("openvino", "bf16")


class KerasBackend(Synchronous):
    """The extractor as it is: what every other backend is measured against."""

    def __init__(self, extractor: KerasModel) -> None:
        self._extractor = extractor

    @cached_property
    def info(self) -> BackendInfo:
        return BackendInfo(
            backend="keras",
            version=load_keras().__version__,
            device="tensorflow",
            device_class=cpu_class(),
            precision="fp32",
            arithmetic="fp32",
            artefact=self._extractor.name,
            artefact_sha256=extractor_digest(self._extractor),
            threads=usable_cpus(),
        )

    def __enter__(self) -> KerasBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass  # the extractor is its owner's

    def infer(self, pixels: Pixels) -> Probabilities:
        return np.asarray(self._extractor.predict_on_batch(pixels), np.float32)


class ExtractorBackends:
    """The backends that can compute one extractor's features here, by names that hold version and precision.

    Attributes:
        extractor: frozen; `uint8 (N, H, W, 3)` → `float32 (N, features)`.
    """

    def __init__(self, extractor: KerasModel) -> None:
        self.extractor = extractor

    @property
    def keras(self) -> str:
        """Keras's name."""
        return f"keras {load_keras().__version__}"

    def names(self, precision: Precision = "fp32") -> tuple[str, ...]:
        """Those that are installed; in FP32, Keras first."""
        return (*([self.keras] if precision == "fp32" else []), *graph_backends(precision))

    def no_bf16(self) -> str | None:
        """Why nothing here computes in BF16; None where something does."""
        missing = None if graph_backends("bf16") else "tf2onnx is not installed: pip install '.[export]'"
        return objection(_BF16.backend, _BF16.precision) or missing

    def convert(self) -> None:
        """Make the graph that all but Keras run, if it is not made yet.

        Raises:
            ConversionError: the extractor cannot be converted.
        """
        _ = self._graph

    def backend(self, name: str) -> Backend:
        """A new backend, which `with` loads and frees; `infer` gives features, `float32 (N, features)`.

        Raises:
            BackendError: it cannot be had here.
        """
        if name == self.keras:
            return KerasBackend(self.extractor)
        combination = {**graph_backends("fp32"), **graph_backends("bf16")}[name]
        return open_graph(self._graph, combination=combination, sha256=sha256_bytes(self._graph))

    @cached_property
    def _graph(self) -> bytes:
        log.info("converting the backbone to ONNX for the runtimes installed (a ResNet-101 takes about a minute)")
        return onnx_graph(self.extractor)


def backend_name(combination: Combination) -> str:
    """Its name with version and, unless that is FP32, precision, which stores of features are kept under."""
    backend, precision = combination.backend, combination.precision
    name = f"{backend.removesuffix('-cpu')} {runtime_version(backend)}"
    return name if precision == "fp32" else f"{name} {precision}"


def graph_backends(precision: Precision) -> dict[str, Combination]:
    """Those that are installed and can run a converted extractor, by name."""
    able = ((_BF16,) if precision == "bf16" else _FP32) if importlib.util.find_spec("tf2onnx") else ()
    return {backend_name(combination): combination for combination in able if runtime_version(combination.backend)}


def onnx_graph(extractor: KerasModel) -> bytes:
    """The extractor as ONNX, `uint8 (N, H, W, 3)` → `float32 (N, features)`.

    Raises:
        ConversionError: it cannot be converted.
    """
    with _quiet("tf2onnx"), native_stderr_held():
        return bytes(graph_from_keras(extractor, output="features").SerializeToString())


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold a library's warnings back: they are about its own passes."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
