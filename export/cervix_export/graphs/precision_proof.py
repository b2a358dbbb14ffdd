"""Proves from the graph itself in what precision a model computes.

A file named `fp16` is no evidence: asking a strongly typed runtime (TensorRT 11, TensorRT-RTX) for FP16 on an FP32
graph builds an FP32 engine and reports success. So the multiply-accumulates of the layers that hold nearly all of
the arithmetic are counted by the type of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from cervix_engine.errors import ConversionError

# Share of the multiply-accumulates that must be in half precision for a graph to be called FP16.
HALF_SHARE = 0.99
# The first layer and the head of an INT8 graph stay in float, and so may what costs most; with less it is none.
INTEGER_SHARE = 0.7


def half_share(model: Any) -> float:
    """Share of the multiply-accumulates of Conv, Gemm and MatMul whose two operands are both float16.

    Args:
        model: an ONNX `ModelProto`. A dimension of unknown size (the batch) counts as 1.

    Returns:
        0.0 to 1.0; 0.0 for a graph without any such layer.

    Raises:
        ConversionError: a shape or type cannot be inferred, or a layer hides in the body of an If or Loop.
    """
    import onnx

    return _share(model, lambda _, kind: kind == onnx.TensorProto.FLOAT16)


def integer_share(model: Any) -> float:
    """Share of the multiply-accumulates whose two operands both come from 8-bit integers; otherwise as `half_share`."""
    levels = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return _share(model, lambda name, _: name in levels)


def _share(model: Any, counts: Callable[[str, int], bool]) -> float:
    """Share of the multiply-accumulates for whose two operands `counts(name, element type)` holds."""
    import onnx

    tensors = _tensors(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph)
    total = share = 0
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ConversionError(f"cannot prove the precision of {node.op_type} {node.name}: it has graphs inside")
        if node.op_type in _MACS:
            operands = [_known(tensors, name) for name in (*node.input[:2], node.output[0])]
            macs = _MACS[node.op_type](node, *(shape for _, shape in operands))
            total += macs
            share += macs * all(
                counts(name, kind) for name, (kind, _) in zip(node.input[:2], operands[:2], strict=True)
            )
    return share / total if total else 0.0


Shape = tuple[int, ...]


def _conv_macs(_: Any, data: Shape, weights: Shape, out: Shape) -> int:
    # Weights are (out channels, in channels / group, kernel…): all but the first are multiplied for each output value.
    del data
    return prod(out) * prod(weights[1:])


def _matmul_macs(_: Any, left: Shape, right: Shape, out: Shape) -> int:
    del right
    return prod(out) * left[-1]


def _gemm_macs(node: Any, left: Shape, right: Shape, out: Shape) -> int:
    del right
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(out) * left[0 if transposed else -1]


_MACS = {"Conv": _conv_macs, "MatMul": _matmul_macs, "Gemm": _gemm_macs}
PRODUCTS = frozenset(_MACS)


def _tensors(graph: Any) -> dict[str, tuple[int, Shape]]:
    """Element type and shape of every value in a graph whose shapes were inferred."""
    found = {item.name: (item.data_type, tuple(item.dims)) for item in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shape = tuple(axis.dim_value if axis.HasField("dim_value") else 1 for axis in tensor.shape.dim)
            found[value.name] = (tensor.elem_type, shape)
    return found


def _known(tensors: dict[str, tuple[int, Shape]], name: str) -> tuple[int, Shape]:
    if name not in tensors:
        raise ConversionError(f"cannot prove the graph's precision: the shape of {name} is unknown")
    return tensors[name]
