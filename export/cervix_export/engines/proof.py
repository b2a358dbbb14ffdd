"""Proves from a parsed TensorRT network in what precision the engine will compute.

Networks are strongly typed: kernels take the types that stand here, so an FP32 graph becomes an FP32 engine whatever
it was asked for as. This is the last place where that can be read without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cervix_engine.errors import EngineBuildError
from cervix_export.graphs.precision_proof import HALF_SHARE


def network_half_share(network: Any, trt: Any) -> float:
    """Share of the multiply-accumulates of convolutions and matrix products whose two operands are both half.

    Args:
        network: a parsed `INetworkDefinition`. A dimension of unknown size (the batch) counts as 1.
        trt: `tensorrt` or `tensorrt_rtx`.

    Returns:
        0.0 to 1.0; 0.0 for a network without any such layer.
    """
    total = half = 0
    for macs, in_half in _layers(network, trt):
        total += macs
        half += macs * in_half
    return half / total if total else 0.0


def prove_half_network(network: Any, trt: Any) -> float:
    """Check that a parsed network computes in half precision; return its share.

    Raises:
        EngineBuildError: less than 99 % of the multiply-accumulates have half-precision operands.
    """
    share = network_half_share(network, trt)
    if share < HALF_SHARE:
        raise EngineBuildError(
            f"the engine asked for as fp16 would do {share:.1%} of its multiply-accumulates in half precision, "
            f"expected {HALF_SHARE:.0%}"
        )
    return share


def _layers(network: Any, trt: Any) -> Iterator[tuple[int, bool]]:
    """(multiply-accumulates, whether both operands are half) of every layer that counts."""
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        if layer.type == trt.LayerType.CONVOLUTION:
            # The network hands out its layers as their base class; NVIDIA's way to the rest is to name the class.
            layer.__class__ = trt.IConvolutionLayer
            yield _macs_of_convolution(layer), _is_half(layer.get_input(0), trt) and _kernel_is_half(layer, trt)
        elif layer.type == trt.LayerType.MATRIX_MULTIPLY:
            layer.__class__ = trt.IMatrixMultiplyLayer
            operands = layer.get_input(0), layer.get_input(1)
            inner = -2 if layer.op0 == trt.MatrixOperation.TRANSPOSE else -1
            macs = prod(_shape(layer.get_output(0))) * _shape(operands[0])[inner]
            yield macs, all(_is_half(operand, trt) for operand in operands)


def _macs_of_convolution(layer: Any) -> int:
    channels = _shape(layer.get_input(0))[1] // int(layer.num_groups)
    return prod(_shape(layer.get_output(0))) * channels * prod(map(int, layer.kernel_size_nd))


def _kernel_is_half(layer: Any, trt: Any) -> bool:
    # Weights come as a second input where something, such as a Cast, stands before them.
    given = layer.get_input(1) if layer.num_inputs > 1 else None
    return _is_half(given, trt) if given is not None else layer.kernel.dtype == np.float16


def _is_half(tensor: Any, trt: Any) -> bool:
    return bool(tensor.dtype == trt.DataType.HALF)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(1 if axis < 0 else int(axis) for axis in tensor.shape)
