"""Chooses what computes features: Keras, or ONNX Runtime where that gives the same ones sooner.

1. A store that holds all tiles serves them, whichever runtime filled it; nothing is then opened.
2. A runtime whose store holds some of the tiles goes on, so that one data set's features come from one runtime.
3. Few tiles are Keras's: a conversion takes longer than it saves.
4. Otherwise ONNX Runtime gets the tiles where it is installed, agrees with Keras and wins a short race.

The converted graph is of our own model, made and run in this process, and never leaves it.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import ConversionError
from cervix_engine.machine import usable_cpus
from cervix_engine.preprocess import Pixels
from cervix_train.keras_runtime import KerasModel, load_keras, native_stderr_held

log = logging.getLogger(__name__)

# Of the largest feature. Two FP32 runtimes that sum 100 layers in another order differ by about 1e-6 of it; a
# wrong padding, a lost batch norm or half precision by 1e-3 and more.
AGREEMENT = 1e-4
# A conversion and a race cost a ResNet-101 about a minute, which 4 ms to 40 ms a tile must bring back.
PAYS_FROM = 2000
RACE_TILES = 16
RACE_ROUNDS = 3
# As in exported graphs; ONNX Runtime of any version that is supported here reads it.
OPSET = 17

Vectors = npt.NDArray[np.float32]


class FeatureRuntime(Protocol):
    """Computes features: `uint8 (N, H, W, 3)` → `float32 (N, features)`; `name` is with version."""

    @property
    def name(self) -> str: ...

    def __call__(self, pixels: Pixels) -> Vectors: ...


class KerasRuntime:
    """The extractor as it is: what every other runtime is measured against."""

    def __init__(self, extractor: KerasModel) -> None:
        self._extractor = extractor

    @property
    def name(self) -> str:
        return keras_name()

    def __call__(self, pixels: Pixels) -> Vectors:
        return np.asarray(self._extractor.predict_on_batch(pixels), np.float32)


class OnnxRuntime:
    """The extractor as an ONNX graph on all cores of the CPU.

    Raises:
        ConversionError: it cannot be converted.
    """

    def __init__(self, extractor: KerasModel) -> None:
        self._session = _session(_graph(extractor))

    @property
    def name(self) -> str:
        return onnx_name()

    def __call__(self, pixels: Pixels) -> Vectors:
        (vectors,) = self._session.run(None, {"tiles": pixels})
        return np.asarray(vectors, np.float32)


def keras_name() -> str:
    return f"keras {load_keras().__version__}"


def onnx_name() -> str:
    return f"onnxruntime {version('onnxruntime')}"


def runtime_names() -> tuple[str, ...]:
    """The runtimes that can be used here, Keras first."""
    installed = all(importlib.util.find_spec(name) for name in ("onnxruntime", "tf2onnx"))
    return (keras_name(), onnx_name()) if installed else (keras_name(),)


def choose_runtime(extractor: KerasModel, *, held: Mapping[str, int], tiles: int, sample: Pixels) -> FeatureRuntime:
    """The runtime that is to compute what is missing, with a log line that says which and why.

    Args:
        extractor: frozen.
        held: how many of the tiles each runtime's store holds; its keys are those of `runtime_names()`.
        tiles: how many are wanted in all.
        sample: a few of them, on which runtimes are compared, `uint8 (N, H, W, 3)`.
    """
    keras = KerasRuntime(extractor)
    most = max(held, key=lambda name: held[name])
    if held[most] == 0 and tiles < PAYS_FROM:
        return _chosen(keras, f"{tiles} tiles are too few for a conversion to pay")
    if len(held) == 1:
        return _chosen(keras, "onnxruntime and tf2onnx are not both installed")
    if held[most] and most == keras.name:
        return _chosen(keras, f"{held[most]} of {tiles} tiles are in its store already")
    try:
        onnx = OnnxRuntime(extractor)
    except ConversionError as error:
        return _chosen(keras, str(error))
    difference = relative_difference(onnx(sample), keras(sample))
    if not difference <= AGREEMENT:
        return _chosen(keras, f"{onnx.name} differs by {difference:.1e} of the largest feature, over {AGREEMENT:g}")
    if held[most]:
        return _chosen(onnx, f"{held[most]} of {tiles} tiles are in its store already; {_agrees(difference)}")
    ours, theirs = _race(keras, onnx, sample)
    if theirs <= ours:
        return _chosen(keras, f"{ours:.1f} tiles/s against {theirs:.1f} of {onnx.name}")
    return _chosen(onnx, f"{theirs:.1f} tiles/s against {ours:.1f} of {keras.name}; {_agrees(difference)}")


def relative_difference(vectors: Vectors, reference: Vectors) -> float:
    """The largest difference as a share of the largest reference feature."""
    return float(np.abs(vectors - reference).max() / max(float(np.abs(reference).max()), 1e-12))


def _agrees(difference: float) -> str:
    return f"they agree to {difference:.0e} of the largest feature"


def _chosen(runtime: FeatureRuntime, reason: str) -> FeatureRuntime:
    log.info("features by %s: %s", runtime.name, reason)
    return runtime


def _race(first: FeatureRuntime, second: FeatureRuntime, pixels: Pixels) -> tuple[float, float]:
    """Tiles per second of two runtimes that are warm, by turns, so that a busy moment hurts both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(RACE_ROUNDS):
        for runtime, taken in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            runtime(pixels)
            taken.append(time.perf_counter() - started)
    ours, theirs = (len(pixels) / max(statistics.median(taken), 1e-9) for taken in seconds)
    return ours, theirs


def _graph(extractor: KerasModel) -> bytes:
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *extractor.input.shape[1:]), tf.uint8, name="tiles")]
    function = tf.function(lambda tiles: {"features": extractor(tiles, training=False)})
    try:
        with _quiet("tf2onnx"), native_stderr_held():
            graph, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    except Exception as error:  # the converter raises whatever its handlers raise
        raise ConversionError(f"tf2onnx cannot convert the extractor ({type(error).__name__}: {error})") from error
    return bytes(graph.SerializeToString())


def _session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


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
