"""Folds constant scales and shifts into the convolutions beside them, and padding into the pooling behind it.

A converted Keras model keeps a multiplication and an addition for each batch norm, and those that rescale its pixels.
Every runtime computes them, loads them, or has to find and fuse them; a convolution can hold them in its own constants.

Rules, applied to each convolution and pooling until none fits; `s` and `b` are constants, one number or one for each
channel:

1. Conv(x) · s  ->  Conv(x), weights and bias times `s` by output channel.
2. Conv(x) + b  ->  Conv(x), bias plus `b`.
3. Conv(x · s)  ->  Conv(x), weights times `s` by input channel. Padding stays right: zeros times `s` are zeros.
4. Conv(x + b)  ->  Conv(x), bias plus what the weights make of `b`; only where the convolution pads nothing, or `b` is
                    zero. At an edge, padding puts zeros beside x + b: no bias is right there and inside, too.
5. MaxPool(Pad(Relu(x))) with zeros  ->  MaxPool(Relu(x)), which pads by itself: a ReLU gives nothing less than zero.

In 3 and 4 a Transpose may stand before the convolution. What more than one node reads, or the graph itself gives, is
left alone, and so is the scale of pixels between their Cast and a Transpose: OpenVINO converts and scales them in one
pass and moves the channels for nothing, but without the scale transposes, converts and reorders them in three (2.9 ms
in place of 0.3 of the 485 that a ResNet-101 takes for 16 tiles). New constants are computed in double precision.

Half precision: where pixels up to 255 meet weights that 1/255 made small, some are below the smallest normal half
number. Their error, at most 2⁻²⁵ each, is beside that of the activations as nothing; certificates tell.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import ModelContract
from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers
from cervix_keras.graph import check_graph

logger = logging.getLogger(__name__)

# What rounding a constant once more may move a probability. Seen on a trained ResNet-101: 3e-7.
MOST_ABSDIFF = 1e-5

Floats = npt.NDArray[np.float64]


def fold_onnx(onnx_file: Path, *, contract: ModelContract, pixels: Pixels, most_absdiff: float = MOST_ABSDIFF) -> None:
    """Replace an FP32 graph's file by its folded form, unless that answers otherwise on `pixels`.

    Args:
        onnx_file: `uint8 (N, height, width, 3)` in, `float32 (N, classes)` out.
        contract: what the graph means.
        pixels: preprocessed tiles, `uint8 (N, height, width, 3)`.
        most_absdiff: how far any probability may move.

    Raises:
        ConversionError: the result is not what the contract says.
    """
    import onnx

    model = onnx.load_model(onnx_file)
    smaller = folded(model)
    absdiff = float(np.abs(answers(smaller, pixels) - answers(model, pixels)).max())
    if not absdiff <= most_absdiff:
        logger.warning("the graph is left as converted: folded, it answers otherwise by up to %.2g", absdiff)
        return
    logger.info("%d nodes folded to %d, by which answers move %.2g", *map(_size, (model, smaller)), absdiff)
    data = smaller.SerializeToString()
    check_graph(data, contract)
    onnx_file.write_bytes(data)


def _size(model: Any) -> int:
    return len(model.graph.node)


def folded(model: Any) -> Any:
    """A copy of an ONNX `ModelProto` that computes the same with fewer nodes; one with graphs inside stays as it is."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if any(attribute.HasField("g") or attribute.graphs for node in copy.graph.node for attribute in node.attribute):
        return copy
    graph = _Graph.of(copy)
    for conv in graph.of_kind("Conv"):
        while graph.owns_constants(conv) and any(rule(graph, conv) for rule in _RULES):
            pass
    for pool in graph.of_kind("MaxPool"):
        while _padding_before(graph, pool):
            pass
    graph.write_to(copy.graph)
    return copy


# Each rule says whether it fitted, and was applied.


def _scale_behind(graph: _Graph, conv: Any) -> bool:
    """Rule 1."""
    if (found := graph.behind(conv, "Mul")) is None:
        return False
    weights, bias = graph.weights_and_bias(conv)
    by_output = found.values.reshape(-1, *[1] * (weights.ndim - 1))
    graph.set_weights_and_bias(conv, weights * by_output, bias * found.values)
    graph.absorb(found.node, into=conv)
    return True


def _shift_behind(graph: _Graph, conv: Any) -> bool:
    """Rule 2."""
    if (found := graph.behind(conv, "Add")) is None:
        return False
    weights, bias = graph.weights_and_bias(conv)
    graph.set_weights_and_bias(conv, weights, bias + found.values)
    graph.absorb(found.node, into=conv)
    return True


def _scale_before(graph: _Graph, conv: Any) -> bool:
    """Rule 3."""
    found = graph.before(conv, "Mul")
    if found is None or _is_between_cast_and_transpose(graph, found):
        return False
    weights, bias = graph.weights_and_bias(conv)
    graph.set_weights_and_bias(conv, weights * _by_input(found.values, conv, weights), bias)
    graph.bypass(found.node, data=found.data)
    return True


def _shift_before(graph: _Graph, conv: Any) -> bool:
    """Rule 4."""
    found = graph.before(conv, "Add")
    if found is None or (_pads(conv) and found.values.any()):
        return False
    weights, bias = graph.weights_and_bias(conv)
    made = (weights * _by_input(found.values, conv, weights)).reshape(len(weights), -1).sum(axis=1)
    graph.set_weights_and_bias(conv, weights, bias + made)
    graph.bypass(found.node, data=found.data)
    return True


def _is_between_cast_and_transpose(graph: _Graph, found: _ByConstant) -> bool:
    source, reader = graph.source(found.data), graph.only_reader(found.node.output[0])
    return source is not None and source.op_type == "Cast" and reader is not None and reader.op_type == "Transpose"


_RULES = (_scale_behind, _shift_behind, _scale_before, _shift_before)


def _padding_before(graph: _Graph, pool: Any) -> bool:
    """Rule 5."""
    pad = graph.only_source(pool.input[0])
    if pad is None or pad.op_type != "Pad":
        return False
    source, added = graph.source(pad.input[0]), graph.zeros_around(pad)
    if source is None or source.op_type != "Relu" or added is None or _pools_otherwise(pool):
        return False
    attributes = {item.name: item for item in pool.attribute}
    kernel = attributes["kernel_shape"]
    pads = added + (np.reshape(attributes["pads"].ints, added.shape) if "pads" in attributes else 0)
    if (pads >= kernel.ints).any():
        return False  # no window may lie in padding alone
    attribute = attributes.get("pads") or pool.attribute.add(name="pads", type=kernel.type)
    attribute.ints[:] = pads.reshape(-1).tolist()
    graph.bypass(pad, data=pad.input[0])
    return True


def _pools_otherwise(pool: Any) -> bool:
    """Whether a pooling also says where it found its values, pads by a rule, or reaches beyond its padding."""
    by_rule = any(item.s != b"NOTSET" for item in pool.attribute if item.name == "auto_pad")
    beyond = any(item.i for item in pool.attribute if item.name == "ceil_mode")
    return len(pool.output) > 1 or by_rule or beyond


@dataclass(frozen=True, slots=True)
class _ByConstant:
    """A node that adds a constant to the tensor `data`, or multiplies it: `values`, `float64 (1,)` or `(channels,)`."""

    node: Any
    data: str
    values: Floats


@dataclass(slots=True)
class _Graph:
    """A graph while it is changed.

    Attributes:
        nodes: in order.
        constants: arrays by name.
        shapes: of tensors, by name, as far as they are known; 0 for a dimension of any size.
        outputs: names of what the graph gives.
    """

    nodes: list[Any]
    constants: dict[str, npt.NDArray[Any]]
    shapes: dict[str, list[int]]
    outputs: set[str]

    @classmethod
    def of(cls, model: Any) -> _Graph:
        from onnx import numpy_helper, shape_inference

        inferred = shape_inference.infer_shapes(model).graph
        shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*inferred.input, *inferred.value_info)
        }
        taken = {value.name for value in model.graph.input}  # such a "constant" is only a default
        constants = {
            item.name: numpy_helper.to_array(item) for item in model.graph.initializer if item.name not in taken
        }
        return cls(list(model.graph.node), constants, shapes, {output.name for output in model.graph.output})

    def write_to(self, graph: Any) -> None:
        """Put what is left in place of a graph's nodes and constants."""
        from onnx import numpy_helper

        read = {name for node in self.nodes for name in node.input}
        defaults = [item for item in graph.initializer if item.name not in self.constants]
        kept = [numpy_helper.from_array(values, name) for name, values in self.constants.items() if name in read]
        # Both hold what was given, so they are replaced and not changed in place.
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*defaults, *kept])

    def of_kind(self, kind: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type == kind]

    def owns_constants(self, conv: Any) -> bool:
        """Whether a convolution's weights and bias are constants that nothing else reads."""
        return all(name in self.constants and self.only_reader(name) is not None for name in conv.input[1:])

    def weights_and_bias(self, conv: Any) -> tuple[Floats, Floats]:
        weights = self.constants[conv.input[1]].astype(np.float64)
        bias = self.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(weights))
        return weights, bias.astype(np.float64)

    def set_weights_and_bias(self, conv: Any, weights: Floats, bias: Floats) -> None:
        kind = self.constants[conv.input[1]].dtype
        if len(conv.input) == 2:
            conv.input.append(f"{conv.input[1]}/bias")
        for name, values in zip(conv.input[1:], (weights, bias), strict=True):
            self.constants[name] = values.astype(kind)

    def behind(self, conv: Any, kind: str) -> _ByConstant | None:
        """The `kind` of node that alone reads a convolution's result, where it does so with a constant."""
        node = self.only_reader(conv.output[0])
        weights = self.constants[conv.input[1]]
        if node is None or node.op_type != kind:
            return None
        return self._by_constant(node, rank=weights.ndim, axis=1, channels=len(weights))

    def before(self, conv: Any, kind: str) -> _ByConstant | None:
        """The `kind` of node whose result a convolution alone reads, where it computes that with a constant."""
        weights = self.constants[conv.input[1]]
        source, axis = self.only_source(conv.input[0]), 1
        if source is not None and source.op_type == "Transpose" and source.attribute:
            axis = source.attribute[0].ints[1]  # of the channels, before they are moved
            source = self.only_source(source.input[0])
        if source is None or source.op_type != kind:
            return None
        channels = weights.shape[1] * _groups(conv)
        found = self._by_constant(source, rank=weights.ndim, axis=axis, channels=channels)
        if found is None or len(found.values) == 1:
            return found
        # A constant of many channels may be what spread one channel of data over all of them.
        shape = self.shapes.get(found.data, [])
        return found if len(shape) == weights.ndim and shape[axis] == channels else None

    def absorb(self, node: Any, *, into: Any) -> None:
        """Take out a node whose work the one before it now does: that gives its result, by its name."""
        into.output[0] = node.output[0]
        self._remove(node)

    def zeros_around(self, pad: Any) -> npt.NDArray[np.int64] | None:
        """How many zeros a Pad node puts before and behind, `(2, axes)` without those of batch and channels.

        None where it does otherwise, or is told as operator sets before 11 do it.
        """
        _, widths, value, axes = [*pad.input, "", "", ""][:4]
        constant = all(item.s == b"constant" for item in pad.attribute if item.name == "mode")
        zeros = not value or (value in self.constants and not self.constants[value].any())
        if axes or not constant or not zeros or widths not in self.constants:
            return None
        by_end = self.constants[widths].reshape(2, -1)
        return None if (by_end < 0).any() or by_end[:, :2].any() else by_end[:, 2:]

    def bypass(self, node: Any, *, data: str) -> None:
        """Take out a node whose work the one behind it now does: that reads `data`, as the node did."""
        for reader in self._readers(node.output[0]):
            reader.input[:] = [data if name == node.output[0] else name for name in reader.input]
        self._remove(node)

    def _by_constant(self, node: Any, *, rank: int, axis: int, channels: int) -> _ByConstant | None:
        constants = [name for name in node.input if name in self.constants]
        if len(constants) != 1:
            return None
        (data,) = (name for name in node.input if name not in constants)
        values = self.constants[constants[0]]
        shape = [*[1] * (rank - values.ndim), *values.shape]
        if len(shape) != rank or values.size not in (1, channels) or shape[axis] != values.size:
            return None
        return _ByConstant(node, data, values.astype(np.float64).reshape(-1))

    def only_source(self, name: str) -> Any | None:
        """The node that makes a tensor which one node reads and the graph does not give."""
        if self.only_reader(name) is None:
            return None
        return self.source(name)

    def source(self, name: str) -> Any | None:
        """The node that makes a tensor; None for constants and what the graph takes."""
        return next((node for node in self.nodes if name in node.output), None)

    def only_reader(self, name: str) -> Any | None:
        readers = self._readers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def _readers(self, name: str) -> list[Any]:
        return [node for node in self.nodes for item in node.input if item == name]

    def _remove(self, node: Any) -> None:
        self.nodes = [other for other in self.nodes if other is not node]


def _by_input(values: Floats, conv: Any, weights: Floats) -> Floats:
    """Values of input channels as they meet `weights`, which are (out channels, in channels / groups, kernel…)."""
    groups = _groups(conv)
    by_group = np.broadcast_to(values, weights.shape[1] * groups).reshape(groups, -1)
    by_output = np.repeat(by_group, len(weights) // groups, axis=0)
    return by_output.reshape(*weights.shape[:2], *[1] * (weights.ndim - 2))


def _groups(conv: Any) -> int:
    return next((int(item.i) for item in conv.attribute if item.name == "group"), 1)


def _pads(conv: Any) -> bool:
    """Whether a convolution may put anything around its input."""
    attributes = {item.name: item for item in conv.attribute}
    automatic = attributes["auto_pad"].s if "auto_pad" in attributes else b"NOTSET"
    return automatic not in (b"NOTSET", b"VALID") or ("pads" in attributes and any(attributes["pads"].ints))
