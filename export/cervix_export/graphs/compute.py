"""What a graph that lies in no bundle yet answers."""

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
    import onnxruntime

    from cervix_engine.backends.onnxruntime import exact_integers

    options = exact_integers(onnxruntime.SessionOptions())
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])
