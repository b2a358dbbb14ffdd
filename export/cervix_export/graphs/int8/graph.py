"""Puts an INT8 graph together: Q/DQ pairs around the layers that are to be computed in integers.

    x ─ Q ─ DQ ─ Conv ─ Relu ─ Q ─ DQ ─ …        weights: int8 ─ DQ ─ Conv

A runtime fuses DQ, layer and Q into one integer kernel. Those of CPUs need a pair before *and* behind a layer, behind
the activation where one follows; TensorRT needs the one before, and hands on what a layer adds up unrounded. Additions
of the residual stream stay in float: rounding there would add up over 33 blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_export.graphs.int8.ranges import LEVELS, Range

# On either side of zero: -128 is not used.
SIGNED_LEVELS = 127

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How activations are rounded, as the runtimes of a graph want it.

    Attributes:
        signed: 127 levels on either side of zero, else 256 that begin where the values do: after a ReLU all serve.
        behind: also round what a layer gives.
        everywhere: whatever reads a rounded tensor reads it rounded; else only layers in integers do, and the residual
            stream stays as it is.
    """

    signed: bool
    behind: bool
    everywhere: bool

    def tensors(self, layer: Layer) -> tuple[str, ...]:
        """The activations that a layer in integers has rounded."""
        return (layer.data, layer.result) if self.behind else (layer.data,)

    def scale_and_zero_point(self, span: Range, kind: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Of a tensor with the float type `kind`."""
        if self.signed:
            return np.asarray(max(span.high, -span.low) / SIGNED_LEVELS, kind), np.asarray(0, np.int8)
        scale = (span.high - span.low) / LEVELS
        return np.asarray(scale, kind), np.asarray(round(-span.low / scale), np.uint8)


CPU = Scheme(signed=False, behind=True, everywhere=True)
TENSORRT = Scheme(signed=True, behind=False, everywhere=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of a graph.

    Attributes:
        name: of the node.
        data: the tensor that it reads.
        result: the tensor that leaves it, behind the activation where one follows.
        weights, bias: initializers; `(out channels, in channels, height, width)` and `(out channels,)`.
    """

    name: str
    data: str
    result: str
    weights: str
    bias: str


def layers(model: Any) -> list[Layer]:
    """All convolutions with constant weights and a bias, in the order of the graph."""
    constants = {item.name for item in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and constants.issuperset(node.input[1:]):
            result = node.output[0]
            behind = readers.get(result, [])
            if len(behind) == 1 and behind[0].op_type == "Relu":
                result = behind[0].output[0]
            found.append(Layer(node.name, node.input[0], result, node.input[1], node.input[2]))
    return found


def quantised(
    model: Any,
    chosen: Collection[Layer],
    *,
    ranges: Mapping[str, Range],
    biases: Mapping[str, Floats],
    scheme: Scheme = CPU,
) -> Any:
    """A copy of `model` in which the `chosen` layers are computed in integers.

    Args:
        model: with batch norms folded into their convolutions, in single or half precision.
        chosen: some of its `layers`.
        ranges: of each chosen layer's rounded tensors.
        biases: new values for biases, by the initializer's name.
        scheme: how activations are rounded.
    """
    import onnx

    values = initializers(model)
    weights = {layer.weights: values[layer.weights].dtype for layer in chosen}
    kinds = {name: weights[layer.weights] for layer in chosen for name in scheme.tensors(layer)}
    rounded = {name: scheme.scale_and_zero_point(ranges[name], kind) for name, kind in kinds.items()}
    readers = {layer.name for layer in chosen}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = [_with_values(item, biases) for item in graph.initializer if item.name not in weights]
    nodes = [_integer_weights(item, constants) for item in graph.initializer if item.name in weights]
    for node in graph.node:
        taken = {*weights, *(rounded if scheme.everywhere or node.name in readers else ())}
        node.input[:] = [_rounded(name) if name in taken else name for name in node.input]
        nodes.append(node)
        for name in rounded.keys() & set(node.output):
            nodes += _pair(name, rounded[name], constants)
    # Both hold what was given, so they are replaced and not changed in place.
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    return copy


def _with_values(item: Any, values: Mapping[str, Floats]) -> Any:
    """An initializer, with new values of its own type where there are any of its name."""
    from onnx import helper, numpy_helper

    if item.name in values:
        kind = helper.tensor_dtype_to_np_dtype(item.data_type)
        item.CopyFrom(numpy_helper.from_array(values[item.name].astype(kind), item.name))
    return item


def store_in_half(model: Any) -> None:
    """Keep the larger float weights of a graph as FP16, in place; a `Cast` makes FP32 of each when it is loaded.

    What is computed stays FP32, of weights with 11 significant bits: beside rounding to 8 bits that is nothing, and
    the file has room for more layers in float. Weights beyond FP16's range stay as they are, and so do biases.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for item in model.graph.initializer:
        if item.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(item)
        if values.ndim > 1 and values.size >= _LARGE and np.abs(values).max() < np.finfo(np.float16).max:
            name = item.name
            item.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/half"))
            casts.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


# Values; a smaller constant saves less than its `Cast` takes.
_LARGE = 1024


def dequantised_weights(weights: Floats) -> Floats:
    """Weights as an INT8 graph has them: symmetric, one scale for each output channel."""
    integers, scales = _integers(weights)
    return integers * scales.reshape(-1, *[1] * (weights.ndim - 1))


def initializers(model: Any) -> dict[str, Floats]:
    """The graph's constants, by name."""
    from onnx import numpy_helper

    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def _pair(name: str, parameters: tuple[npt.NDArray[Any], npt.NDArray[Any]], constants: list[Any]) -> list[Any]:
    """Q and DQ behind the tensor `name`, with these scale and zero point."""
    from onnx import helper

    inputs = _parameters(name, *parameters, constants)
    return [
        helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}/levels"], name=f"{name}/Q"),
        helper.make_node("DequantizeLinear", [f"{name}/levels", *inputs], [_rounded(name)], name=f"{name}/DQ"),
    ]


def _integer_weights(weights: Any, constants: list[Any]) -> Any:
    """Put weights into `constants` as integers; the node that makes floats of them."""
    from onnx import helper, numpy_helper

    integers, scales = _integers(numpy_helper.to_array(weights))
    constants.append(numpy_helper.from_array(integers, f"{weights.name}/levels"))
    inputs = [f"{weights.name}/levels", *_parameters(weights.name, scales, np.zeros(len(scales), np.int8), constants)]
    return helper.make_node("DequantizeLinear", inputs, [_rounded(weights.name)], name=f"{weights.name}/DQ", axis=0)


def _integers(weights: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1).astype(np.float32)
    scales = np.where(largest > 0, largest / SIGNED_LEVELS, 1)
    # Scales are of the weights' own type, and in half precision never rounded to nothing.
    scales = np.maximum(scales.astype(weights.dtype), np.finfo(weights.dtype).smallest_subnormal)
    integers = np.rint(weights / scales.reshape(-1, *[1] * (weights.ndim - 1)).astype(np.float32))
    return np.clip(integers, -SIGNED_LEVELS, SIGNED_LEVELS).astype(np.int8), scales


def _parameters(name: str, scale: Any, zero_point: Any, constants: list[Any]) -> list[str]:
    from onnx import numpy_helper

    names = [f"{name}/scale", f"{name}/zero_point"]
    constants += [numpy_helper.from_array(np.asarray(v), n) for v, n in zip((scale, zero_point), names, strict=True)]
    return names


def _rounded(name: str) -> str:
    return f"{name}/rounded"
