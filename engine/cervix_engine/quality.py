"""Cheap signs that a tile is no picture of a cell as the model knows them: blank, blurred, or shifted to blue.

Each threshold was set on the SIPaKMeD tiles so that at most 1 % of them are flagged for it. A flag is a reason to look,
never a reason to drop a tile: its prediction stays. All measures are of the tile at its own size, before any resize.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.preprocess import Pixels

# Standard deviation of the grey values, 0-255; 99.5 % of real tiles have more than 10.
BLANK_BELOW = 6.0
# Detail of 1-2 px over detail of 2-4 px, as standard deviations; 99 % of real tiles have more than 0.41. A ratio, so
# that neither contrast nor stain matters, and of smoothed pictures, so that neither do rounding and JPEG's noise.
BLURRED_BELOW = 0.405
# 5th percentile of blue minus red, 0-255: hardly a pixel is left that is not far bluer than red; real tiles' own
# 99th percentile is 68.
BLUE_ABOVE = 75.0


def quality_flags(pixels: Pixels) -> tuple[str, ...]:
    """The flags of one decoded tile, `uint8 (height, width, 3)` RGB: of `blank`, `blurred`, `blue_shift`.

    A blank tile has no other flag: it has no detail to be blurred, and one colour only.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if float(grey.std()) < BLANK_BELOW:
        return ("blank",)
    flags = []
    if _sharpness(grey) < BLURRED_BELOW:
        flags.append("blurred")
    if _blueness(pixels) > BLUE_ABOVE:
        flags.append("blue_shift")
    return tuple(flags)


def _sharpness(grey: npt.NDArray[np.float32]) -> float:
    fine, middle, coarse = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1, 2, 4))
    return float((fine - middle).std() / max(1e-6, float((middle - coarse).std())))


def _blueness(pixels: Pixels) -> float:
    return float(np.quantile(pixels[..., 2].astype(np.int16) - pixels[..., 0], 0.05))
