"""Cheap signs that a tile is no picture of a cell as the model knows them.

`blank`, `blurred`, `dark`, `bright` and `blue_shift` are told by the pixels alone; `off_colour` and `off_size` by the
training tiles' statistics, which the contract carries.

Each threshold was set on the SIPaKMeD tiles so that at most 1 % of them are flagged for it. A flag is a reason to look,
never a reason to drop a tile: its prediction stays. All measures are of the tile at its own size, before any resize.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.contract import TileStatistic
from cervix_engine.values import Pixels

# Standard deviation of the grey values, 0-255; 99.5 % of real tiles have more than 10.
BLANK_BELOW = 6.0
# Detail of 1-2 px over detail of 2-4 px, as standard deviations; 99 % of real tiles have more than 0.41. A ratio, so
# that neither contrast nor stain matters, and of smoothed pictures, so that neither do rounding and JPEG's noise.
BLURRED_BELOW = 0.405
# 5th percentile of blue minus red, 0-255: hardly a pixel is left that is not far bluer than red; real tiles' own
# 99th percentile is 68.
BLUE_ABOVE = 75.0
# 95th and 5th percentile of the grey values, 0-255: hardly a pixel is brighter, or darker. Real tiles lie from 67 on,
# and up to 197.
DARK_BELOW, BRIGHT_ABOVE = 60.0, 205.0
# How far outside of the training tiles' 0.5th and 99.5th percentile a tile may lie, in widths of that span.
STRANGE_BEYOND = 0.25

_COLOURS = ("mean_red", "mean_green", "mean_blue")
_SIDES = ("height_px", "width_px")


def quality_flags(pixels: Pixels, statistics: Sequence[TileStatistic] = ()) -> tuple[str, ...]:
    """The flags of one decoded tile, `uint8 (height, width, 3)` RGB.

    A blank tile has no other flag: it has no detail to be blurred, and one colour only.

    Args:
        pixels: the tile at its own size.
        statistics: of the training tiles; without them, neither colour nor size is strange.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if float(grey.std()) < BLANK_BELOW:
        return ("blank",)
    flags = []
    if _sharpness(grey) < BLURRED_BELOW:
        flags.append("blurred")
    darkest, brightest = np.percentile(grey, (5, 95))
    if brightest < DARK_BELOW:
        flags.append("dark")
    if darkest > BRIGHT_ABOVE:
        flags.append("bright")
    if _blueness(pixels) > BLUE_ABOVE:
        flags.append("blue_shift")
    known = {item.name: item for item in statistics}
    if _is_strange(zip(_COLOURS, pixels.mean(axis=(0, 1)).tolist(), strict=True), known):
        flags.append("off_colour")
    if _is_strange(zip(_SIDES, pixels.shape[:2], strict=True), known):
        flags.append("off_size")
    return tuple(flags)


def _is_strange(measures: Iterable[tuple[str, float]], known: Mapping[str, TileStatistic]) -> bool:
    return any(
        not item.low - STRANGE_BEYOND * (item.high - item.low)
        <= value
        <= item.high + STRANGE_BEYOND * (item.high - item.low)
        for name, value in measures
        if (item := known.get(name)) is not None
    )


def _sharpness(grey: npt.NDArray[np.float32]) -> float:
    fine, middle, coarse = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1, 2, 4))
    return float((fine - middle).std() / max(1e-6, float((middle - coarse).std())))


def _blueness(pixels: Pixels) -> float:
    return float(np.quantile(pixels[..., 2].astype(np.int16) - pixels[..., 0], 0.05))
