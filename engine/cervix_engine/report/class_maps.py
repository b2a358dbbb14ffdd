"""Class activation maps: which parts of a tile speak for the class that the network gave it.

A network that ends in global average pooling and dense layers is cut at its last feature map A, `(C, h, w)`. Dense
layers with ReLU are linear around any one tile: what the class's logit exceeds its rivals' by is `w · mean(A) + b`,
with w and b of that tile. So the map `w · A(y, x)` adds up to that difference but for b: it is exact for the network
as it is, while what a single cell of A has seen is wider than the cell (Zhou et al., "Learning deep features for
discriminative localization", CVPR 2016; Draelos and Carin, "HiResCAM", 2020, for heads of several layers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.errors import BackendError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.values import Pixels

GRAPH = "model.onnx"
# How strongly the hottest place is painted over the tile.
OPACITY = 0.6
# Cells beyond this quantile are alike the brightest.
BRIGHT = 0.95

_SPATIAL = {(2, 3): "planes first", (1, 2): "planes last"}
_SHAPES = ("Squeeze", "Flatten", "Reshape", "Identity", "Dropout", "Cast")

Floats = npt.NDArray[np.float32]


def check_class_maps() -> None:
    """Raises BackendUnavailableError where nothing here can compute maps."""
    require_installed("report", "onnx", work="a heat map")
    require_installed("cpu", "onnxruntime", work="a heat map")


@dataclass(frozen=True, slots=True)
class Dense:
    """A step of the head: `values @ weights + bias`, then ReLU where there is one."""

    weights: Floats
    bias: Floats
    relu: bool


class ClassMaps:
    """Computes maps with a bundle's FP32 graph, on the CPU, without TensorFlow.

    Raises:
        UsageError: its network does not end in global average pooling and dense layers.
        BackendUnavailableError: a library is missing.
        ContractError: the graph is missing or altered.
    """

    def __init__(self, bundle: Bundle) -> None:
        check_class_maps()
        data = bundle.read(GRAPH)
        refuse_external_data(data)
        self._input_size = bundle.contract.input_size
        graph = _Graph(data)
        self.head = list(graph.head())
        self._planes_last = graph.planes_last
        self._session = _session(graph.cut())
        self._input = self._session.get_inputs()[0].name

    def map_of(self, pixels: Pixels) -> Floats:
        """What each cell of the last feature map adds to the lead of the tile's class, `float32 (h, w)`.

        Args:
            pixels: a decoded tile, `uint8 (height, width, 3)` RGB, of any size.
        """
        place = np.empty((1, *self._input_size, 3), np.uint8)
        resize_into(place[0], pixels)
        features = np.asarray(self._session.run(None, {self._input: place})[0][0], np.float32)
        features = features if self._planes_last else np.moveaxis(features, 0, -1)
        weights = _lead(self.head, features.mean(axis=(0, 1)))
        return np.asarray(features @ weights / (features.shape[0] * features.shape[1]), np.float32)

    def overlay(self, pixels: Pixels) -> Pixels:
        """The tile in grey with what speaks for its class painted over it, `uint8 (height, width, 3)` RGB."""
        height, width = pixels.shape[:2]
        heat = self.map_of(pixels).clip(0)
        # One cell alone, such as a corner that has seen padding, must not leave all others dark.
        brightest = max(float(np.quantile(heat, BRIGHT)), float(heat.max()) / 3, 1e-9)
        heat = cv2.resize(heat / brightest, (width, height), interpolation=cv2.INTER_CUBIC)
        heat = np.asarray(heat, np.float32).clip(0, 1)
        colours = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = OPACITY * np.sqrt(heat)[..., None]
        return np.asarray(np.rint(grey * (1 - share) + colours * share), np.uint8)


def _lead(head: list[Dense], pooled: Floats) -> Floats:
    """The weights of the pooled features in what the first class is ahead of its rivals, each as probable as it is."""
    values, passed = pooled, []
    for dense in head:
        values = values @ dense.weights + dense.bias
        passed.append(values > 0 if dense.relu else np.ones_like(values, bool))
        values = np.where(passed[-1], values, 0)
    rivals = np.exp(values - values.max())
    first = int(values.argmax())
    rivals[first] = 0
    gradient = -rivals / max(float(rivals.sum()), 1e-30)
    gradient[first] = 1
    for dense, through in zip(reversed(head), reversed(passed), strict=True):
        gradient = dense.weights @ np.where(through, gradient, 0)
    return np.asarray(gradient, np.float32)


def _session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen types of its own
        raise BackendError(f"ONNX Runtime cannot load {GRAPH} as far as its last feature map: {error}") from error


class _Graph:
    """An ONNX graph, cut at the input of its global average pooling."""

    def __init__(self, data: bytes) -> None:
        import onnx

        self._model = onnx.load_model_from_string(data)
        self._nodes = list(self._model.graph.node)
        self._constants = {item.name: onnx.numpy_helper.to_array(item) for item in self._model.graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        self._pooling = self._last_pooling()
        self.planes_last = self._axes(self._pooling) == (1, 2)

    def _last_pooling(self) -> Any:
        for node in reversed(self._nodes):
            if node.op_type == "GlobalAveragePool" or self._axes(node) in _SPATIAL:
                return node
        raise _unfit("has no such pooling")

    def _axes(self, node: Any) -> tuple[int, ...]:
        if node.op_type != "ReduceMean":
            return ()
        given = next((item.ints for item in node.attribute if item.name == "axes"), None)
        if given is None and len(node.input) > 1:
            given = self._constants.get(node.input[1])
        return tuple(sorted(int(axis) % 4 for axis in given)) if given is not None else ()

    def head(self) -> Iterator[Dense]:
        """The dense layers from the pooled features to the logits."""
        name = self._pooling.output[0]
        weights: Floats | None = None
        bias: Floats | None = None
        while True:
            node = self._only_user(name)
            constant = next((self._constants[item] for item in node.input if item in self._constants), None)
            name = node.output[0]
            if node.op_type in ("MatMul", "Gemm", "Softmax", "Relu") and weights is not None and bias is not None:
                yield Dense(weights, bias, node.op_type == "Relu")
                weights = bias = None
                if node.op_type == "Relu":
                    continue
            if node.op_type == "Softmax":
                return
            if node.op_type in ("MatMul", "Gemm") and constant is not None:
                weights, bias = self._dense(node)
            elif node.op_type == "Add" and constant is not None and bias is not None:
                bias = bias + constant.astype(np.float32).ravel()
            elif node.op_type not in _SHAPES:
                raise _unfit(f"has {node.op_type} behind it")

    def _dense(self, node: Any) -> tuple[Floats, Floats]:
        flags = {item.name: item.f if item.name in ("alpha", "beta") else item.i for item in node.attribute}
        weights = self._constants[node.input[1]].astype(np.float32) * flags.get("alpha", 1)
        weights = weights.T if flags.get("transB") else weights
        bias = np.zeros(weights.shape[1], np.float32)
        if len(node.input) > 2:
            bias = bias + self._constants[node.input[2]].astype(np.float32).ravel() * flags.get("beta", 1)
        return weights, bias

    def _only_user(self, name: str) -> Any:
        users = [node for node in self._nodes if name in node.input]
        if len(users) != 1:
            raise _unfit(f"is used {len(users)} times")
        return users[0]

    def cut(self) -> bytes:
        """The model as far as its last feature map, as ONNX."""
        from onnx import TensorProto, helper

        graph, wanted, kept = self._model.graph, {self._pooling.input[0]}, []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        del graph.node[:], graph.output[:]
        graph.node.extend(reversed(kept))
        constants = [item for item in graph.initializer if item.name in wanted]
        del graph.initializer[:]
        graph.initializer.extend(constants)
        graph.output.append(helper.make_tensor_value_info(self._pooling.input[0], TensorProto.FLOAT, None))
        return bytes(self._model.SerializeToString())


def _unfit(what: str) -> UsageError:
    return UsageError(f"heat maps need a network that ends in global average pooling and dense layers: this one {what}")
