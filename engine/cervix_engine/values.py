"""The values that every room exchanges."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["fp32", "bf16", "fp16", "int8"]

# Tiles or batches of tiles, `uint8 (…, height, width, 3)`, RGB.
Pixels = npt.NDArray[np.uint8]

# A row for each tile and a column for each class: `float32 (N, classes)`.
Probabilities = npt.NDArray[np.float32]
