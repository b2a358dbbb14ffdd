"""One INT8 graph, from observed ranges to a proven file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_engine.values import Pixels
from cervix_export.graphs.fold import folded
from cervix_export.graphs.int8.graph import (
    Floats,
    Layer,
    dequantised_weights,
    initializers,
    layers,
    quantised,
    store_in_half,
)
from cervix_export.graphs.int8.means import correct_means
from cervix_export.graphs.int8.ranges import Observed, observe
from cervix_export.graphs.int8.sensitivity import BlockCost, leave_in_float, sweep
from cervix_export.graphs.precision_proof import integer_share
from cervix_keras.graph import check_graph

logger = logging.getLogger(__name__)

# Few tiles at once: every value inside of a ResNet-101 is some 200 MB a tile and a half.
_BATCH = 4
_SWEPT = 16
# The first layer and the head stay in float, and so may what the sweep finds; less than this is no INT8 graph.
INTEGER_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Int8Record:
    """How an INT8 graph was made.

    Attributes:
        calibration_tiles: training tiles that ranges were observed on.
        integer_share: share of the multiply-accumulates in integers.
        blocks: what each costs.
    """

    calibration_tiles: int
    integer_share: float
    blocks: tuple[BlockCost, ...]

    schema: ClassVar[str] = "cervix/int8/1"

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, **asdict(self)}


def int8_from_onnx(onnx_file: Path, int8_file: Path, *, contract: ModelContract, tiles: Pixels) -> Int8Record:
    """Write the integer form of an FP32 ONNX graph; the accuracy that it costs is measured, not promised.

    Weights are symmetric with one scale for each output channel; activations have 256 unsigned levels a tensor; the
    mean error that rounding brings is taken off the biases. The first layer, whose inputs are the pixels themselves,
    and the head stay in float, stored as FP16, and so do the blocks that cost most.

    Args:
        onnx_file: the FP32 graph, `uint8 (N, height, width, 3)` in, `float32 (N, classes)` out.
        int8_file: where the INT8 graph goes, with the same input and output.
        contract: what the graph means.
        tiles: preprocessed training tiles, `uint8 (N, height, width, 3)`.

    Raises:
        ConversionError: the graph has no layer that could be in integers, or the result is not what the contract says.
    """
    import onnx

    model = folded(onnx.load_model(onnx_file))
    blocks = _blocks(model)
    if not blocks:
        raise ConversionError(f"{onnx_file.name} has no convolutions that could be computed in integers")
    logger.info("observing ranges on %d training tiles", len(tiles))
    rounding = _Rounding.observe(model, [layer for block in blocks for layer in block], tiles)
    sizes = {name: values.size for name, values in rounding.weights.items()}
    costs = sweep(blocks, rounding.graph, exact=model, sizes=sizes, pixels=tiles[:_SWEPT])
    costs = leave_in_float(costs)
    graph = rounding.graph(
        [layer for block, cost in zip(blocks, costs, strict=True) if not cost.in_float for layer in block]
    )
    logger.info("taking the mean error off the values between blocks")
    correct_means(graph, exact=model, tiles=tiles)
    store_in_half(graph)
    share = integer_share(graph)
    if share < INTEGER_SHARE:
        raise ConversionError(f"the INT8 graph does only {share:.0%} of its multiply-accumulates in integers")
    data = graph.SerializeToString()
    check_graph(data, contract)
    int8_file.write_bytes(data)
    return Int8Record(len(tiles), share, tuple(costs))


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
        tensors = {name for layer in chosen for name in (layer.data, layer.result)}
        ranges = {name: self.observed[name].best_range() for name in tensors}
        return quantised(self.model, chosen, ranges=ranges, biases={item.bias: self._bias(item) for item in chosen})

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
