"""Changes of colour that are tried on training tiles, to learn which way they move measures.

Whatever moves tiles is found along axes of all kinds; along the few directions in which colours are known to change, it
is found sooner. Stain, lamp, camera and gamma lead much the same way as a turn of hues, so these two stand for them.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.drift.measures import CHANGE, PIXELS, measure_image
from cervix_engine.drift.reference import Floats
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels

# How far a change moves tiles is an average, to which more add nothing.
MOST_TRIED = 1024

_TURN_DEGREES = (10.0, -10.0)


def turned_hue(pixels: Pixels, degrees: float) -> Pixels:
    """A tile, `uint8 (height, width, 3)` RGB, with every hue turned on the circle from red to green to blue."""
    hsv = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).clip(0, 255).astype(np.uint8)


def measure_changed(
    decoded: Callable[[int], Pixels], count: int, *, contract: ModelContract, seed: int
) -> dict[str, Floats]:
    """The measures `PIXELS` of tiles after each change of `CHANGE`.

    Args:
        decoded: gives tile i at its own size, `uint8 (height, width, 3)` RGB.
        count: number of tiles.
        contract: of the network that sees them.
        seed: of the tiles that changes are tried on.

    Returns:
        By change, `(count, measures)`; rows of NaN for tiles on which it was not tried.
    """
    found = {measure.name: np.full((count, len(PIXELS)), np.nan) for measure in CHANGE}
    for at in np.random.default_rng(seed).permutation(count)[:MOST_TRIED].tolist():
        pixels = decoded(at)
        height, width = pixels.shape[:2]
        for rows, degrees in zip(found.values(), _TURN_DEGREES, strict=True):
            seen = preprocess(turned_hue(pixels, degrees), contract=contract)
            rows[at] = measure_image(seen, height=height, width=width)
    return found
