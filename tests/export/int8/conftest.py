"""An exported graph, and the ranges that were observed in it."""

from __future__ import annotations

from typing import Any

import pytest

from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_export.graphs.int8.graph import layers
from cervix_export.graphs.int8.ranges import Observed, observe
from export.int8.int8_graphs import Exported, graph_of


@pytest.fixture(scope="session")
def exact(exported: Exported) -> Any:
    return graph_of(exported, "model.onnx")


@pytest.fixture(scope="session")
def observed(exact: Any, exported: Exported) -> dict[str, Observed]:
    tensors = {name for layer in layers(exact) for name in (layer.data, layer.result)}
    pixels = calibration_pixels(exported[0])
    return observe(exact, [pixels[:8], pixels[8:16]], tensors=tensors)
