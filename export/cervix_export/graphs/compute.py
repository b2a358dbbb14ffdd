"""What a graph answers that lies in no bundle yet, or that no backend runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from cervix_engine.values import Pixels, Probabilities

_BATCH = 16


def answers(model: Any, pixels: Pixels) -> Probabilities:
    """The probabilities of an ONNX `ModelProto`, `float32 (N, classes)`, with the kernels that a run would use.

    Args:
        pixels: `uint8 (N, height, width, 3)`.
    """
    return answers_of_graph(model.SerializeToString(), pixels)


def answers_of_graph(graph: bytes, pixels: Pixels) -> Probabilities:
    """As `answers`, of a graph's bytes."""
    import onnxruntime

    from cervix_engine.backends.onnxruntime import exact_integers

    return _answers(graph, exact_integers(onnxruntime.SessionOptions()), pixels)


def answers_as_written(graph: bytes, pixels: Pixels) -> Probabilities:
    """As `answers`, of a graph's bytes, with each pair of QuantizeLinear and DequantizeLinear computed by itself.

    Fused with their layers, those in half precision gave other answers altogether (ONNX Runtime 1.32: 0.9 off where
    0.05 is right), since biases are then rounded too, by scales of the wrong type.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return _answers(graph, options, pixels)


def _answers(graph: bytes, options: Any, pixels: Pixels) -> Probabilities:
    import onnxruntime

    run = onnxruntime.RunOptions()
    options.log_severity_level = run.log_severity_level = 4  # its errors are raised, and told by us
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    return np.concatenate([session.run(None, {name: part}, run)[0] for part in parts])
