"""What rounding each part of a graph costs, and which parts are better left in floating point.

A few blocks cost most of the accuracy and next to none of the arithmetic. They are found by rounding one block at a
time and looking at the answers; then the costliest are left in float, one more at each step, until the answers on
tiles that were not used for calibration are near enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cervix_engine.certificate import Probabilities
from cervix_engine.preprocess import Pixels
from cervix_export.int8.graph import Layer

logger = logging.getLogger(__name__)

# Half of what the gate allows: the tiles of a certificate are others than those looked at here.
TARGET_P99 = 0.05
# More than this many blocks in float, and the graph would hardly be INT8.
MOST_FLOAT = 8


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What it costs to compute one block in integers, all others being as they were.

    Attributes:
        name: of its first layer.
        layers: how many convolutions it has.
        rms: root mean square of the changes of all probabilities.
        in_float: whether it was therefore left in floating point.
    """

    name: str
    layers: int
    rms: float
    in_float: bool = False


Round = Callable[[Sequence[Layer]], Any]
"""Makes a graph in which these layers are computed in integers."""


def sweep(blocks: Sequence[Sequence[Layer]], rounding: Round, *, exact: Any, pixels: Pixels) -> list[float]:
    """For each block, the RMS change of the probabilities where it alone is computed in integers.

    Args:
        rounding: makes the graphs.
        exact: the graph in floating point.
        pixels: `uint8 (N, height, width, 3)`.
    """
    reference = answers(exact, pixels)
    costs = []
    for number, block in enumerate(blocks, 1):
        difference = answers(rounding(block), pixels) - reference
        costs.append(float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))))
        logger.info("rounding block %d of %d alone: RMS change %.2g  %s", number, len(blocks), costs[-1], block[0].name)
    return costs


def choose(
    blocks: Sequence[Sequence[Layer]], costs: Sequence[float], rounding: Round, *, exact: Any, pixels: Pixels
) -> tuple[Any, frozenset[int]]:
    """The graph with as few blocks in float as reach `TARGET_P99` on `pixels`, else with the best number of them.

    Returns:
        The graph, and the places of the blocks that were left in float.
    """
    reference = answers(exact, pixels)
    costliest = sorted(range(len(blocks)), key=lambda place: -costs[place])
    best: tuple[float, Any, frozenset[int]] | None = None
    for count in range(min(MOST_FLOAT, len(blocks) - 1) + 1):
        in_float = frozenset(costliest[:count])
        graph = rounding([layer for place, block in enumerate(blocks) if place not in in_float for layer in block])
        p99 = float(np.quantile(np.abs(answers(graph, pixels) - reference), 0.99))
        logger.info("%d of %d blocks in float: p99 difference %.3f on %d tiles", count, len(blocks), p99, len(pixels))
        if best is None or p99 < best[0]:
            best = p99, graph, in_float
        if p99 <= TARGET_P99:
            break
    assert best is not None
    return best[1], best[2]


def answers(model: Any, pixels: Pixels) -> Probabilities:
    """A graph's probabilities, `float32 (N, classes)`, with the kernels that a run would use."""
    import onnxruntime

    from cervix_engine.backends.onnxruntime import exact_integers

    options = exact_integers(onnxruntime.SessionOptions())
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


_BATCH = 16
