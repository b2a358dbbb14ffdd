"""Chooses what computes features: Keras, or ONNX Runtime or OpenVINO where these give the same ones sooner.

1. A store that holds all tiles serves them, whichever runtime filled it; nothing is then opened.
2. A runtime whose store holds some of the tiles goes on, so that one data set's features come from one runtime.
3. Few tiles are Keras's: a conversion takes longer than it saves.
4. Otherwise those that are installed and agree with Keras run a short race, and the winner gets the tiles.

The converted graph is of our own model, made and run in this process, and never leaves it.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cervix_engine.backends import Combination, open_graph, runtime_version
from cervix_engine.errors import BackendError, ConversionError
from cervix_engine.files import sha256_bytes
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

# The backends that run a converted extractor, by the module that each needs.
_MODULES = {"onnxruntime-cpu": "onnxruntime", "openvino": "openvino"}

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


class GraphRuntime:
    """The extractor as an ONNX graph, in FP32 on all cores of the CPU, on one of the engine's backends.

    Args:
        backend: `onnxruntime-cpu` or `openvino`.
        graph: as `onnx_graph` makes it.
    """

    def __init__(self, backend: str, graph: bytes) -> None:
        self.name = graph_runtime_name(backend)
        combination = Combination(backend, "fp32")
        self._backend = open_graph(graph, combination=combination, sha256=sha256_bytes(graph)).__enter__()

    def __call__(self, pixels: Pixels) -> Vectors:
        return self._backend.infer(pixels)


def keras_name() -> str:
    return f"keras {load_keras().__version__}"


def graph_runtime_name(backend: str) -> str:
    """Its name with version, which stores of features are kept under."""
    return f"{backend.removesuffix('-cpu')} {runtime_version(backend)}"


def graph_runtimes() -> dict[str, str]:
    """The backends that can run a converted extractor here, by name with version."""
    installed = [name for name, module in _MODULES.items() if importlib.util.find_spec(module)]
    usable = installed if importlib.util.find_spec("tf2onnx") else []
    return {graph_runtime_name(backend): backend for backend in usable}


def runtime_names() -> tuple[str, ...]:
    """The runtimes that can be used here, Keras first."""
    return (keras_name(), *graph_runtimes())


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
    backends = {name: backend for name, backend in graph_runtimes().items() if name in held}
    if held[most] == 0 and tiles < PAYS_FROM:
        return _chosen(keras, f"{tiles} tiles are too few for a conversion to pay")
    if not backends:
        return _chosen(keras, "no other runtime is installed together with tf2onnx")
    if held[most] and most == keras.name:
        return _chosen(keras, f"{held[most]} of {tiles} tiles are in its store already")
    try:
        graph = onnx_graph(extractor)
    except ConversionError as error:
        return _chosen(keras, str(error))
    expected = keras(sample)
    wanted = [backend for name, backend in backends.items() if not held[most] or name == most]
    tried = [_try(backend, graph, sample, expected) for backend in wanted]
    agreeing = {item.runtime.name: item for item in tried if isinstance(item, _Agreeing)}
    if not agreeing:
        return _chosen(keras, "; ".join(map(str, tried)))
    if held[most]:
        reason = f"{held[most]} of {tiles} tiles are in its store already"
        return _chosen(agreeing[most].runtime, f"{reason}; {agreeing[most].remark}")
    racing: list[FeatureRuntime] = [keras, *(item.runtime for item in agreeing.values())]
    rates = _race(racing, sample)
    fastest = max(racing, key=lambda runtime: rates[runtime.name])
    beaten = ", ".join(f"{rate:.1f} of {name}" for name, rate in rates.items() if name != fastest.name)
    agrees = f"; {agreeing[fastest.name].remark}" if fastest.name in agreeing else ""
    return _chosen(fastest, f"{rates[fastest.name]:.1f} tiles/s against {beaten}{agrees}")


@dataclass(frozen=True, slots=True)
class _Agreeing:
    """A runtime whose features are Keras's, and how nearly."""

    runtime: FeatureRuntime
    remark: str


def _try(backend: str, graph: bytes, sample: Pixels, expected: Vectors) -> _Agreeing | str:
    """Compute the first features on a backend; the answer is text where they cannot be used."""
    try:
        runtime = GraphRuntime(backend, graph)
        difference = relative_difference(runtime(sample), expected)
    except BackendError as error:
        return str(error)
    if not difference <= AGREEMENT:
        return f"{runtime.name} differs by {difference:.1e} of the largest feature, over {AGREEMENT:g}"
    return _Agreeing(runtime, f"they agree to {difference:.0e} of the largest feature")


def relative_difference(vectors: Vectors, reference: Vectors) -> float:
    """The largest difference as a share of the largest reference feature."""
    return float(np.abs(vectors - reference).max() / max(float(np.abs(reference).max()), 1e-12))


def _chosen(runtime: FeatureRuntime, reason: str) -> FeatureRuntime:
    log.info("features by %s: %s", runtime.name, reason)
    return runtime


def _race(runtimes: Sequence[FeatureRuntime], pixels: Pixels) -> dict[str, float]:
    """Tiles per second of runtimes that are warm, by turns, so that a busy moment hurts all of them."""
    seconds: dict[str, list[float]] = {runtime.name: [] for runtime in runtimes}
    for _ in range(RACE_ROUNDS):
        for runtime in runtimes:
            started = time.perf_counter()
            runtime(pixels)
            seconds[runtime.name].append(time.perf_counter() - started)
    return {name: len(pixels) / max(statistics.median(taken), 1e-9) for name, taken in seconds.items()}


def onnx_graph(extractor: KerasModel) -> bytes:
    """The extractor as ONNX, `uint8 (N, H, W, 3)` → `float32 (N, features)`.

    Raises:
        ConversionError: it cannot be converted.
    """
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
