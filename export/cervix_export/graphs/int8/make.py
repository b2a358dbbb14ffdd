"""INT8 graphs, from observed ranges to proven files: one for the runtimes of CPUs, one for TensorRT.

In both, weights are symmetric with one scale for each output channel, and the first layer, whose inputs are the pixels
themselves, and the head stay in float.

For CPUs, activations have 256 unsigned levels a tensor, before and behind each layer. The mean error that rounding
brings is taken off the biases, and the blocks that cost most stay in float too, stored as FP16.

For TensorRT, they have 127 levels above zero and 127 below. Only what layers in integers read is rounded: the residual
stream stays as it is, and no block needs to stay in float (a trained ResNet-101 on 128 golden tiles: p99 0.025 with all
blocks in integers, where unsigned levels before and behind each layer gave 0.056 with the costly ones in float).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_engine.values import Pixels
from cervix_export.graphs.fold import folded
from cervix_export.graphs.half import in_half
from cervix_export.graphs.int8.graph import (
    CPU,
    TENSORRT,
    Floats,
    Layer,
    Scheme,
    dequantised_weights,
    initializers,
    layers,
    quantised,
    store_in_half,
)
from cervix_export.graphs.int8.means import correct_means
from cervix_export.graphs.int8.ranges import Observed, Range, observe
from cervix_export.graphs.int8.sensitivity import BlockCost, leave_in_float, sweep
from cervix_export.graphs.precision_proof import INTEGER_SHARE, PRODUCTS, integer_share
from cervix_keras.graph import check_graph

logger = logging.getLogger(__name__)

# Few tiles at once: every value inside of a ResNet-101 is some 200 MB a tile and a half.
_BATCH = 4
_SWEPT = 16
_SIGNED_OPSET = 19


@dataclass(frozen=True, slots=True)
class Int8Record:
    """How an INT8 graph was made.

    Attributes:
        calibration_tiles: training tiles that ranges were observed on.
        integer_share: share of the multiply-accumulates in integers.
        blocks: what each costs.
        kept_when_signed: what the signed graph computes in float of convolutions and matrix products, by their nodes'
            names.
    """

    calibration_tiles: int
    integer_share: float
    blocks: tuple[BlockCost, ...]
    kept_when_signed: tuple[str, ...]

    schema: ClassVar[str] = "cervix/int8/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def int8_from_onnx(
    onnx_file: Path, int8_file: Path, *, contract: ModelContract, tiles: Pixels, signed_file: Path | None = None
) -> Int8Record:
    """Write the integer forms of an FP32 ONNX graph; the accuracy that they cost is measured, not promised.

    Args:
        onnx_file: the FP32 graph, `uint8 (N, height, width, 3)` in, `float32 (N, classes)` out.
        int8_file: where the INT8 graph goes, with the same input and output.
        contract: what the graph means.
        tiles: preprocessed training tiles, `uint8 (N, height, width, 3)`.
        signed_file: where the graph of TensorRT's INT8 engines goes; None makes none.

    Raises:
        ConversionError: the graph has no layer that could be in integers, or the result is not what the contract says.
    """
    import onnx

    model = folded(onnx.load_model(onnx_file))
    blocks = _blocks(model)
    if not blocks:
        raise ConversionError(f"{onnx_file.name} has no convolutions that could be computed in integers")
    every = [layer for block in blocks for layer in block]
    logger.info("observing ranges on %d training tiles", len(tiles))
    rounding = _Rounding.observe(model, every, tiles)
    sizes = {name: values.size for name, values in rounding.weights.items()}
    costs = leave_in_float(sweep(blocks, rounding.graph, exact=model, sizes=sizes, pixels=tiles[:_SWEPT]))
    chosen = [layer for block, cost in zip(blocks, costs, strict=True) if not cost.in_float for layer in block]
    logger.info("taking the mean error off the values between blocks")
    share = _write_proven(rounding.corrected_graph(chosen, tiles), int8_file, contract)
    if signed_file:
        logger.info("making the signed form that TensorRT takes")
        _write_proven(rounding.signed_graph(every), signed_file, contract)
    return Int8Record(len(tiles), share, tuple(costs), _products_but(model, every))


def _write_proven(graph: Any, file: Path, contract: ModelContract) -> float:
    share = integer_share(graph)
    if share < INTEGER_SHARE:
        raise ConversionError(f"the INT8 graph does only {share:.0%} of its multiply-accumulates in integers")
    data = graph.SerializeToString()
    check_graph(data, contract)
    file.write_bytes(data)
    return share


def _products_but(model: Any, layers: Collection[Layer]) -> tuple[str, ...]:
    """The names of a graph's convolutions and matrix products but those of `layers`."""
    names = {layer.name for layer in layers}
    return tuple(node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in names)


@dataclass(frozen=True, slots=True)
class _Rounding:
    """What was observed once, and makes any graph."""

    model: Any
    observed: dict[str, Observed]
    weights: dict[str, Floats]

    @classmethod
    def observe(cls, model: Any, chosen: Sequence[Layer], tiles: Pixels) -> _Rounding:
        batches = [tiles[start : start + _BATCH] for start in range(0, len(tiles), _BATCH)]
        tensors = {name for layer in chosen for name in (layer.data, layer.result)}
        return cls(model, observe(model, batches, tensors=tensors), initializers(model))

    def graph(self, chosen: Sequence[Layer]) -> Any:
        """The model with the chosen layers in integers."""
        biases = {item.bias: self._bias(item) for item in chosen}
        return quantised(self.model, chosen, ranges=self._ranges(chosen, CPU), biases=biases)

    def corrected_graph(self, chosen: Sequence[Layer], tiles: Pixels) -> Any:
        """The same with the mean error taken off between blocks, and what is in float stored in half precision."""
        graph = self.graph(chosen)
        correct_means(graph, exact=self.model, tiles=tiles)
        store_in_half(graph)
        return graph

    def signed_graph(self, chosen: Sequence[Layer]) -> Any:
        """The same for TensorRT: in signed integers, and in half precision where it is not in integers.

        TensorRT 11 and TensorRT-RTX compute in the types that the graph says: what is FP32 there would take longer than
        all integers together. QuantizeLinear takes half precision since ONNX opset 19.
        """
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        half = onnx.version_converter.convert_version(in_half(copy), _SIGNED_OPSET)
        biases = {item.bias: self._bias(item) for item in chosen}
        return quantised(half, chosen, ranges=self._ranges(chosen, TENSORRT), biases=biases, scheme=TENSORRT)

    def _ranges(self, chosen: Sequence[Layer], scheme: Scheme) -> dict[str, Range]:
        tensors = {name for layer in chosen for name in scheme.tensors(layer)}
        return {name: self.observed[name].best_range(signed=scheme.signed) for name in tensors}

    def _bias(self, layer: Layer) -> Floats:
        """The bias less the mean of what rounding the weights adds (Nagel et al. 2019, section 4.2)."""
        weights = self.weights[layer.weights]
        error = (dequantised_weights(weights) - weights).sum(axis=(2, 3), dtype=np.float64)
        return np.asarray(self.weights[layer.bias] - error @ self.observed[layer.data].mean, np.float32)


def _blocks(model: Any) -> list[list[Layer]]:
    """The layers but the first, cut where two streams are added: a residual network's blocks; else layer by layer."""
    constants = {item.name for item in model.graph.initializer}
    by_name = {layer.name: layer for layer in layers(model)[1:]}
    blocks: list[list[Layer]] = [[]]
    for node in model.graph.node:
        if node.name in by_name:
            blocks[-1].append(by_name[node.name])
        elif node.op_type == "Add" and constants.isdisjoint(node.input):
            blocks.append([])
    found = [block for block in blocks if block]
    return found if len(found) > 1 else [[layer] for block in found for layer in block]
