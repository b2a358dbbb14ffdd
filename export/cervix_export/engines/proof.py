"""Proves from a parsed TensorRT network in what precision the engine will compute.

Networks are strongly typed: kernels take the types that stand here, so an FP32 graph becomes an FP32 engine whatever
it was asked for as. This is the last place where that can be read without a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from cervix_engine.errors import EngineBuildError
from cervix_engine.values import Precision
from cervix_export.graphs.precision_proof import HALF_SHARE, INTEGER_SHARE

# Of an INT8 network's multiply-accumulates, but for the layers that are listed as kept in float.
INTEGER_SHARE_OF_THE_REST = 0.95


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of a network's multiply-accumulates, 0.0 to 1.0; 0.0 for a network that has none.

    Attributes:
        half: with two half-precision operands.
        integer: with two operands that were 8-bit integers.
        integer_of_the_rest: the same, but for the layers that are listed as kept in float.
    """

    half: float
    integer: float
    integer_of_the_rest: float


def network_shares(network: Any, trt: Any, *, kept: Collection[str] = ()) -> Shares:
    """What a network computes its convolutions and matrix products in.

    Args:
        network: a parsed `INetworkDefinition`. A dimension of unknown size (the batch) counts as 1.
        trt: `tensorrt` or `tensorrt_rtx`.
        kept: names of layers that are meant to stay in float.
    """
    products = list(_products(network, trt))

    def share(kind: _Operands, but: Collection[str] = ()) -> float:
        counted = [item for item in products if item.name not in but]
        total = sum(item.macs for item in counted)
        return sum(item.macs for item in counted if item.operands == kind) / total if total else 0.0

    return Shares(share("half"), share("integer"), share("integer", kept))


def prove_network(network: Any, trt: Any, *, precision: Precision, kept: Collection[str] = ()) -> Shares:
    """Check that a parsed network computes in the precision asked for; return its shares.

    Raises:
        EngineBuildError: of `fp16`, less than 99 % of the multiply-accumulates have half-precision operands; of `int8`,
            less than 70 % of all have integer ones, or less than 95 % of those outside of `kept`.
    """
    shares = network_shares(network, trt, kept=kept)
    if precision == "fp16" and shares.half < HALF_SHARE:
        raise _broken(precision, shares.half, "in half precision", HALF_SHARE)
    if precision == "int8" and shares.integer < INTEGER_SHARE:
        raise _broken(precision, shares.integer, "in integers", INTEGER_SHARE)
    if precision == "int8" and shares.integer_of_the_rest < INTEGER_SHARE_OF_THE_REST:
        what = "in integers, of those outside of the layers kept in float"
        raise _broken(precision, shares.integer_of_the_rest, what, INTEGER_SHARE_OF_THE_REST)
    return shares


def _broken(precision: Precision, share: float, what: str, expected: float) -> EngineBuildError:
    return EngineBuildError(
        f"the engine asked for as {precision} would do {share:.1%} of its multiply-accumulates {what}, expected "
        f"{expected:.0%}"
    )


_Operands = Literal["half", "integer", "other"]


@dataclass(frozen=True, slots=True)
class _Product:
    """A convolution or matrix product: how many multiply-accumulates, of what."""

    name: str
    macs: int
    operands: _Operands


def _products(network: Any, trt: Any) -> Iterator[_Product]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    integers = {
        layer.get_output(0).name
        for layer in layers
        if layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.DataType.INT8
    }
    for layer in layers:
        if layer.type == trt.LayerType.CONVOLUTION:
            # The network hands out its layers as their base class; NVIDIA's way to the rest is to name the class.
            layer.__class__ = trt.IConvolutionLayer
            yield _Product(layer.name, _macs_of_convolution(layer), _operands(layer, integers, trt))
        elif layer.type == trt.LayerType.MATRIX_MULTIPLY:
            layer.__class__ = trt.IMatrixMultiplyLayer
            inner = -2 if layer.op0 == trt.MatrixOperation.TRANSPOSE else -1
            macs = prod(_shape(layer.get_output(0))) * _shape(layer.get_input(0))[inner]
            yield _Product(layer.name, macs, _operands(layer, integers, trt))


def _operands(layer: Any, integers: set[str], trt: Any) -> _Operands:
    # A convolution's weights come as a second input where something, such as a Cast, stands before them.
    tensors = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
    tensors = [tensor for tensor in tensors if tensor is not None]
    if len(tensors) == 2 and integers.issuperset(tensor.name for tensor in tensors):
        return "integer"
    weights_are_half = len(tensors) == 2 or layer.kernel.dtype == np.float16
    return "half" if weights_are_half and all(tensor.dtype == trt.DataType.HALF for tensor in tensors) else "other"


def _macs_of_convolution(layer: Any) -> int:
    channels = _shape(layer.get_input(0))[1] // int(layer.num_groups)
    return prod(_shape(layer.get_output(0))) * channels * prod(map(int, layer.kernel_size_nd))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(1 if axis < 0 else int(axis) for axis in tensor.shape)
