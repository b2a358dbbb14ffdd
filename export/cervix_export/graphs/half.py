"""FP32 graph -> FP16 graph, proven to be one.

Pixels stay `uint8` and probabilities `float32`; everything between is half, except the softmax: near 1, neighbouring
half-precision numbers are 0.0005 apart, which would be the resolution of every confident answer.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_export.graphs.precision_proof import HALF_SHARE, half_share
from cervix_keras.graph import check_graph

logger = logging.getLogger(__name__)


def fp16_from_onnx(onnx_file: Path, half_file: Path, *, contract: ModelContract) -> None:
    """Write the half-precision form of an FP32 ONNX graph.

    Args:
        onnx_file: the FP32 graph, `uint8 (N, height, width, 3)` in, `float32 (N, classes)` out.
        half_file: where the FP16 graph goes, with the same input and output.
        contract: what the graph means.

    Raises:
        ConversionError: the result does not compute in half precision, or is not what the contract says.
    """
    import onnx

    half = in_half(onnx.load_model(onnx_file))
    share = prove_half(half)
    data = half.SerializeToString()
    check_graph(data, contract)
    half_file.write_bytes(data)
    logger.debug("%.2f %% of the multiply-accumulates have half-precision operands", 100 * share)


def prove_half(model: Any) -> float:
    """Check that a graph's arithmetic is in half precision; return its share.

    Raises:
        ConversionError: less than 99 % of the multiply-accumulates have half-precision operands.
    """
    share = half_share(model)
    if share < HALF_SHARE:
        raise ConversionError(
            f"the FP16 graph does {share:.1%} of its multiply-accumulates in half precision, expected {HALF_SHARE:.0%}"
        )
    return share


def in_half(model: Any) -> Any:
    """The half-precision form of an FP32 `ModelProto`, which this takes apart; names of nodes and tensors stay."""
    # Of the known converters, this one also converts the Cast behind a uint8 input.
    from onnxruntime.transformers.float16 import convert_float_to_float16

    softmax = _take_softmax(model.graph)
    half = convert_float_to_float16(model, keep_io_types=True)
    if softmax is not None:
        half.graph.output[0].name = softmax.output[0]
        half.graph.node.append(softmax)
    return half


def _take_softmax(graph: Any) -> Any | None:
    """Take the final softmax off a graph, which then gives logits; None where it ends in something else."""
    output = graph.output[0]
    last = next((node for node in graph.node if output.name in node.output), None)
    if last is None or last.op_type != "Softmax":
        return None
    graph.node.remove(last)
    output.name = last.input[0]
    return last
