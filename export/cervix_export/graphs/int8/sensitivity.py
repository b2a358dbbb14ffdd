"""What rounding each part of a graph costs, and which parts are better left in floating point.

A few blocks cost much of the accuracy and hold few of the weights. They are found by rounding one block at a time
and looking at the answers; those that save most error a weight are left in float, as far as the file may grow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers
from cervix_export.graphs.int8.graph import Layer

logger = logging.getLogger(__name__)

# A weight in float, stored as FP16, is twice as large: with 10 % of them, the file is 0.29 times the FP32 one.
MOST_FLOAT_WEIGHTS = 0.1


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What it costs to compute one block in integers, all others being as they were.

    Attributes:
        name: of its first layer.
        layers: how many convolutions it has.
        weights: how many numbers those have.
        rms: root mean square of the changes of all probabilities.
        in_float: whether it was therefore left in floating point.
    """

    name: str
    layers: int
    weights: int
    rms: float
    in_float: bool = False

    @property
    def saved_a_weight(self) -> float:
        """Squared error that a weight in float saves; errors of blocks add up as those of independent causes do."""
        return self.rms**2 / self.weights


Round = Callable[[Sequence[Layer]], Any]
"""Makes a graph in which these layers are computed in integers."""


def sweep(
    blocks: Sequence[Sequence[Layer]], rounding: Round, *, exact: Any, sizes: Mapping[str, int], pixels: Pixels
) -> list[BlockCost]:
    """What each block costs where it alone is computed in integers.

    Args:
        rounding: makes the graphs.
        exact: the graph in floating point.
        sizes: how many weights a layer has, by the name of its weights.
        pixels: `uint8 (N, height, width, 3)`.
    """
    reference = answers(exact, pixels)
    costs = []
    for number, block in enumerate(blocks, 1):
        difference = answers(rounding(block), pixels) - reference
        rms = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
        costs.append(BlockCost(block[0].name, len(block), sum(sizes[layer.weights] for layer in block), rms))
        logger.info("rounding block %d of %d alone: RMS change %.2g  %s", number, len(blocks), rms, block[0].name)
    return costs


def leave_in_float(costs: Sequence[BlockCost]) -> list[BlockCost]:
    """Mark the blocks that stay in float: those that save most error a weight, within `MOST_FLOAT_WEIGHTS`.

    How near the answers then are is no question for training tiles: a model is more certain of what it has learnt
    than of other tiles, and rounding moves a certain answer least. The certificate tells it, on tiles it has not.
    """
    room = MOST_FLOAT_WEIGHTS * sum(cost.weights for cost in costs)
    chosen: set[int] = set()
    for place in sorted(range(len(costs)), key=lambda place: -costs[place].saved_a_weight):
        if costs[place].weights <= room:
            room -= costs[place].weights
            chosen.add(place)
    return [replace(cost, in_float=place in chosen) for place, cost in enumerate(costs)]
