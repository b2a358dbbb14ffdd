"""A bundle's FP32 graph as far as its last feature map: what heat maps and likeness of tiles are computed from.

It runs in ONNX Runtime on the CPU, without TensorFlow, for every network that ends in global average pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.onnx_guard import refuse_external_data
from cervix_engine.errors import BackendError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.values import Pixels

GRAPH = "model.onnx"

_SPATIAL = {(2, 3): "planes first", (1, 2): "planes last"}
_SHAPES = ("Squeeze", "Flatten", "Reshape", "Identity", "Dropout", "Cast")

Floats = npt.NDArray[np.float32]


def check_feature_network(work: str) -> None:
    """Raises BackendUnavailableError where nothing here can compute features for `work`."""
    require_installed("report", "onnx", work=work)
    require_installed("cpu", "onnxruntime", work=work)


@dataclass(frozen=True, slots=True)
class Dense:
    """A step of the head: `values @ weights + bias`, then ReLU where there is one."""

    weights: Floats
    bias: Floats
    relu: bool


class FeatureNetwork:
    """The last feature map of tiles, by a bundle's FP32 graph.

    Args:
        bundle: with the graph.
        with_head: whether `head`, the dense layers from the pooled features to the logits, is wanted too.

    Raises:
        UsageError: its network does not end in global average pooling, or has other layers behind it.
        ContractError: the graph is missing or altered.
    """

    def __init__(self, bundle: Bundle, *, with_head: bool = False) -> None:
        data = bundle.read(GRAPH)
        refuse_external_data(data)
        self._input_size = bundle.contract.input_size
        graph = _Graph(data)
        self.head = tuple(graph.head()) if with_head else ()
        self._planes_last = graph.planes_last
        self._session = _session(graph.cut())
        self._input = self._session.get_inputs()[0].name

    def features(self, tiles: Sequence[Pixels]) -> Floats:
        """The last feature map of N tiles, `float32 (N, h, w, features)`.

        Args:
            tiles: decoded, `uint8 (height, width, 3)` RGB, each of any size.
        """
        batch = np.empty((len(tiles), *self._input_size, 3), np.uint8)
        for place, pixels in zip(batch, tiles, strict=True):
            resize_into(place, pixels)
        features = np.asarray(self._session.run(None, {self._input: batch})[0], np.float32)
        return features if self._planes_last else np.moveaxis(features, 1, -1)


def pooled(features: Floats) -> Floats:
    """The mean over a feature map's cells: `(..., h, w, features)` to `(..., features)`, which the head sees."""
    return np.asarray(features.mean(axis=(-3, -2)), np.float32)


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
        raise UsageError(
            "heat maps and similar tiles need a network that ends in global average pooling: this one has none"
        )

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
