"""What rounding one block alone costs, and which blocks stay in floating point for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cervix_engine.values import Pixels
from cervix_export.graphs.int8 import sensitivity
from cervix_export.graphs.int8.graph import Layer
from cervix_export.graphs.int8.sensitivity import BlockCost

WEIGHTS = {"w0": 100, "w1": 10, "w2": 1000, "w3": 10, "w4": 100}


def in_float(*rms: float) -> list[int]:
    blocks = enumerate(zip(WEIGHTS.values(), rms, strict=True))
    costs = [BlockCost(f"conv{place}", 1, size, cost) for place, (size, cost) in blocks]
    return [place for place, cost in enumerate(sensitivity.leave_in_float(costs)) if cost.in_float]


def test_the_sweep_says_what_each_block_alone_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    harm = {"conv0": 0.01, "conv1": 0.2, "conv2": 0.01, "conv3": 0.1, "conv4": 0.02}
    blocks = [[Layer(f"conv{place}", "x", "y", name, "b")] for place, name in enumerate(WEIGHTS)]

    def planted(graph: Sequence[Layer], pixels: Pixels) -> Any:
        return np.full((len(pixels), 5), sum(harm[layer.name] for layer in graph), np.float32)

    monkeypatch.setattr(sensitivity, "answers", planted)
    costs = sensitivity.sweep(blocks, list, exact=[], sizes=WEIGHTS, pixels=np.zeros((4, 2, 2, 3), np.uint8))
    assert [cost.rms for cost in costs] == pytest.approx(list(harm.values()))
    assert [cost.weights for cost in costs] == list(WEIGHTS.values())


def test_blocks_that_save_most_a_weight_are_left_in_float_as_far_as_the_file_may_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "MOST_FLOAT_WEIGHTS", 0.05)
    # 5 % of 1,220 weights are 61: room for both small blocks, and for none of the others, whatever they would save.
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1, 3]
    assert in_float(9.0, 0.2, 9.0, 0.1, 0.02) == [1, 3]
    monkeypatch.setattr(sensitivity, "MOST_FLOAT_WEIGHTS", 0.01)
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1]
    assert in_float(0.01, 0.1, 0.01, 0.2, 0.02) == [3]
