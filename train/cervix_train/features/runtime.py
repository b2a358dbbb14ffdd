"""Chooses what computes features: Keras, or ONNX Runtime or OpenVINO where these give the same ones sooner.

1. A store that holds all tiles serves them, whichever runtime filled it; nothing is then opened.
2. A runtime whose store holds some of the tiles goes on, so that one data set's features come from one runtime.
3. Few tiles are Keras's: a conversion takes longer than it saves.
4. Otherwise those that are installed and agree with Keras run a short race, and the winner gets the tiles.
5. All of this is FP32. What is only learnt from may be computed in BF16 by OpenVINO, where that is asked for, it is
   nearer to Keras than BF16's own bound, and it wins a race against Keras; else rules 1 to 4 hold for it too.

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
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cervix_engine.backends import Combination, objection, open_graph, runtime_version
from cervix_engine.errors import BackendError, ConversionError
from cervix_engine.files import sha256_bytes
from cervix_engine.values import Pixels, Precision
from cervix_keras.runtime import KerasModel, load_keras, native_stderr_held

log = logging.getLogger(__name__)

# Of the largest feature. Two FP32 runtimes that sum 100 layers in another order differ by about 1e-6 of it; a
# wrong padding, a lost batch norm or half precision by 1e-3 and more.
AGREEMENT = 1e-4
# BF16 keeps 8 bits of every number. To a ResNet-101 that was trained on cells this does 1e-2, and 3e-2 in the worst 16
# of 3,602 tiles, about what one level of 255 less light does; a shift by one pixel does 1e-1, swapped channels 1.
BF16_AGREEMENT = 5e-2
# A conversion and a race cost a ResNet-101 about a minute, which 4 ms to 40 ms a tile must bring back.
PAYS_FROM = 2000
RACE_TILES = 16
RACE_ROUNDS = 3
# As in exported graphs; ONNX Runtime of any version that is supported here reads it.
OPSET = 17

# The backends that run a converted extractor, by the module that each needs.
_MODULES = {"onnxruntime-cpu": "onnxruntime", "openvino": "openvino"}
_BF16 = Combination("openvino", "bf16")

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
    """The extractor as an ONNX graph, on all cores of the CPU, on one of the engine's backends.

    Args:
        combination: `onnxruntime-cpu` or `openvino` in FP32, or `openvino` in BF16.
        graph: as `onnx_graph` makes it.
    """

    def __init__(self, combination: Combination, graph: bytes) -> None:
        self.name = graph_runtime_name(combination)
        self._backend = open_graph(graph, combination=combination, sha256=sha256_bytes(graph)).__enter__()

    def __call__(self, pixels: Pixels) -> Vectors:
        return self._backend.infer(pixels)


class Convertible:
    """A frozen extractor, and its ONNX graph, which is made when it is first wanted, and once."""

    def __init__(self, extractor: KerasModel) -> None:
        self.keras = KerasRuntime(extractor)
        self._extractor = extractor

    @cached_property
    def graph(self) -> bytes:
        return onnx_graph(self._extractor)


def keras_name() -> str:
    return f"keras {load_keras().__version__}"


def graph_runtime_name(combination: Combination) -> str:
    """Its name with version and, unless that is FP32, precision, which stores of features are kept under."""
    backend, precision = combination.backend, combination.precision
    name = f"{backend.removesuffix('-cpu')} {runtime_version(backend)}"
    return name if precision == "fp32" else f"{name} {precision}"


def graph_runtimes(precision: Precision = "fp32") -> dict[str, Combination]:
    """Those that are installed and can run a converted extractor, by name with version."""
    able = [_BF16] if precision == "bf16" else [Combination(backend, "fp32") for backend in _MODULES]
    installed = [combination for combination in able if importlib.util.find_spec(_MODULES[combination.backend])]
    usable = installed if importlib.util.find_spec("tf2onnx") else []
    return {graph_runtime_name(combination): combination for combination in usable}


def runtime_names(precision: Precision = "fp32") -> tuple[str, ...]:
    """The runtimes that are installed; in FP32, Keras first."""
    return (*([keras_name()] if precision == "fp32" else []), *graph_runtimes(precision))


def choose_runtime(extractor: Convertible, *, held: Mapping[str, int], tiles: int, sample: Pixels) -> FeatureRuntime:
    """The runtime that is to compute what is missing, in FP32, with a log line that says which and why.

    Args:
        extractor: frozen.
        held: how many of the tiles each runtime's store holds; its keys are those of `runtime_names()`.
        tiles: how many are wanted in all.
        sample: a few of them, on which runtimes are compared, `uint8 (N, H, W, 3)`.
    """
    keras = extractor.keras
    most = max(held, key=lambda name: held[name])
    backends = {name: combination for name, combination in graph_runtimes().items() if name in held}
    if held[most] == 0 and tiles < PAYS_FROM:
        return _chosen(keras, _too_few(tiles))
    if not backends:
        return _chosen(keras, "no other runtime is installed together with tf2onnx")
    if held[most] and most == keras.name:
        return _chosen(keras, _begun(held[most], tiles))
    try:
        graph = extractor.graph
    except ConversionError as error:
        return _chosen(keras, str(error))
    expected = keras(sample)
    wanted = [combination for name, combination in backends.items() if not held[most] or name == most]
    tried = [_try(combination, graph, sample, expected) for combination in wanted]
    agreeing = {item.runtime.name: item for item in tried if isinstance(item, _Agreeing)}
    if not agreeing:
        return _chosen(keras, "; ".join(map(str, tried)))
    if held[most]:
        return _chosen(agreeing[most].runtime, f"{_begun(held[most], tiles)}; {agreeing[most].remark}")
    racing: list[FeatureRuntime] = [keras, *(item.runtime for item in agreeing.values())]
    rates = _race(racing, sample)
    fastest = max(racing, key=lambda runtime: rates[runtime.name])
    agrees = f"; {agreeing[fastest.name].remark}" if fastest.name in agreeing else ""
    return _chosen(fastest, f"{_won(rates, fastest.name)}{agrees}")


def choose_bf16(
    extractor: Convertible, *, held: Mapping[str, int], tiles: int, sample: Pixels
) -> FeatureRuntime | None:
    """OpenVINO in BF16; None, with a log line that says why, where what is only learnt from has to be in FP32 too.

    Args:
        extractor, tiles, sample: as `choose_runtime`.
        held: how many of the tiles the store of BF16 holds; its keys are those of `runtime_names("bf16")`.
    """
    chosen = _bf16(extractor, held=sum(held.values()), tiles=tiles, sample=sample)
    if isinstance(chosen, str):
        log.warning("the features of training tiles are not computed in BF16: %s", chosen)
        return None
    return _chosen(*chosen)


def _bf16(extractor: Convertible, *, held: int, tiles: int, sample: Pixels) -> tuple[FeatureRuntime, str] | str:
    """The runtime and why; the answer is text where it cannot be used."""
    if reason := objection(_BF16.backend, _BF16.precision):
        return reason
    if not graph_runtimes("bf16"):
        return "tf2onnx is not installed: pip install 'cervix[export]'"
    if not held and tiles < PAYS_FROM:
        return _too_few(tiles)
    try:
        graph = extractor.graph
    except ConversionError as error:
        return str(error)
    tried = _try(_BF16, graph, sample, extractor.keras(sample))
    if isinstance(tried, str):
        return tried
    if held:
        return tried.runtime, f"{_begun(held, tiles)}; {tried.remark}"
    # Keras may have a GPU.
    rates = _race([extractor.keras, tried.runtime], sample)
    if rates[extractor.keras.name] >= rates[tried.runtime.name]:
        return f"{extractor.keras.name} is as fast, {_won(rates, extractor.keras.name)}"
    return tried.runtime, f"{_won(rates, tried.runtime.name)}; {tried.remark}"


def _too_few(tiles: int) -> str:
    return f"{tiles} tiles are too few for a conversion to pay"


def _begun(held: int, tiles: int) -> str:
    return f"{held} of {tiles} tiles are in its store already"


def _won(rates: Mapping[str, float], winner: str) -> str:
    beaten = ", ".join(f"{rate:.1f} of {name}" for name, rate in rates.items() if name != winner)
    return f"{rates[winner]:.1f} tiles/s against {beaten}"


@dataclass(frozen=True, slots=True)
class _Agreeing:
    """A runtime whose features are Keras's, within its precision, and how nearly."""

    runtime: FeatureRuntime
    remark: str


def _try(combination: Combination, graph: bytes, sample: Pixels, expected: Vectors) -> _Agreeing | str:
    """Compute the first features on a backend; the answer is text where they cannot be used."""
    bound = BF16_AGREEMENT if combination.precision == "bf16" else AGREEMENT
    try:
        runtime = GraphRuntime(combination, graph)
        difference = relative_difference(runtime(sample), expected)
    except BackendError as error:
        return str(error)
    if not difference <= bound:
        return f"{runtime.name} differs by {difference:.1e} of the largest feature, over {bound:g}"
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
