"""What drift is watched by: a few numbers of each tile, of the pixels that the network sees, and of its answer.

All take tenths of a millisecond together, so that a sample of a run's tiles costs it no more than a hundredth. They are
of the resized tile, except for its own size: what the network does not see cannot mislead it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.values import Pixels, Probabilities

# Of at least so many tiles, as far as there are as many; and of every 64th at most, however many there are.
MEASURED_TILES, LARGEST_STEP = 384, 64

Channel = npt.NDArray[Any]

# Below it, in squared grey levels, a difference of neighbouring pixels is a decoder's rounding.
_ROUNDING = 0.05


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a tile.

    Attributes:
        name: in files.
        lower, higher: what a person sees where it falls, and where it rises.
        least_deviation: in its own unit; what differs by less is alike, also where all training tiles are equal.
    """

    name: str
    lower: str
    higher: str
    least_deviation: float = 0.02


IMAGE = (
    Measure("brightness", "darker", "brighter", 1.0),
    Measure("contrast", "less contrast", "more contrast"),
    Measure("red_tint", "less red", "redder", 0.5),
    Measure("blue_tint", "less blue", "bluer", 0.5),
    Measure("red_range", "reds more alike", "reds more varied"),
    Measure("blue_range", "blues more alike", "blues more varied"),
    Measure("fine_detail", "less fine detail", "more fine detail"),
    Measure("sharpness_2px", "softer at 2 px", "sharper at 2 px"),
    Measure("sharpness_4px", "softer at 4 px", "sharper at 4 px"),
    Measure("sharpness_8px", "softer at 8 px", "sharper at 8 px"),
    Measure("colour_detail", "less detail in colour", "more detail in colour"),
    Measure("colour_sharpness", "softer colours", "sharper colours"),
    Measure("green_detail", "less fine detail in green", "more fine detail in green"),
    Measure("height", "lower tiles", "higher tiles"),
    Measure("width", "narrower tiles", "wider tiles"),
)
# They tell together what hues, stain and camera make of detail in each channel.
CHANNEL = (
    Measure("red_detail", "less fine detail in red", "more fine detail in red"),
    Measure("blue_detail", "less fine detail in blue", "more fine detail in blue"),
    Measure("red_detail_4px", "less detail in red", "more detail in red"),
    Measure("green_detail_4px", "less detail in green", "more detail in green"),
    Measure("blue_detail_4px", "less detail in blue", "more detail in blue"),
)
PIXELS = (*IMAGE, *CHANNEL)
ANSWER = (
    Measure("confidence", "less sure", "surer", 0.05),
    Measure("runner_up", "doubt spread over classes", "doubt between two classes", 0.05),
)
# How like what a change of colour does to tiles; see `changes.py`.
CHANGE = (
    Measure("hue_plus", "unlike hues turned by +10°", "other colours, as with hues turned by +10°"),
    Measure("hue_minus", "unlike hues turned by -10°", "other colours, as with hues turned by -10°"),
)
BY_NAME = {measure.name: measure for measure in (*PIXELS, *ANSWER, *CHANGE)}


def step_of(found: int) -> int:
    """One in how many of `found` tiles is measured."""
    return max(1, min(LARGEST_STEP, found // MEASURED_TILES))


def is_measured(path: str, step: int) -> bool:
    """Whether a tile is one of those that are measured: its path alone decides, so a run that goes on agrees."""
    return zlib.crc32(path.encode("utf-8", "surrogateescape")) % step == 0


def measure_image(pixels: Pixels, *, height: int, width: int) -> tuple[float, ...]:
    """The measures `PIXELS` of a preprocessed tile, `uint8 (H, W, 3)` RGB, that was `height` x `width` before."""
    count = pixels.shape[0] * pixels.shape[1]
    channels_rgb = [np.asarray(channel) for channel in cv2.split(pixels)]
    planes = luma, red, blue = _luma_and_tints(pixels, channels_rgb)
    means = [cv2.mean(plane)[0] for plane in planes]
    deviations = [
        _log_root(cv2.norm(plane, cv2.NORM_L2SQR) / count - mean**2) for plane, mean in zip(planes, means, strict=True)
    ]
    detail = [_log_root(_change(luma, lag)) for lag in (1, 2, 4, 8)]
    colour = [_log_root(_change(red, lag) + _change(blue, lag)) for lag in (1, 4)]
    near, far = ([_log_root(_change(channel, lag)) for channel in channels_rgb] for lag in (1, 4))
    return (
        means[0],
        deviations[0],
        *means[1:],
        *deviations[1:],
        detail[0],
        *(finer - coarser for finer, coarser in pairwise(detail)),
        colour[0],
        colour[0] - colour[1],
        near[1],
        math.log(height),
        math.log(width),
        near[0],
        near[2],
        *far,
    )


def _luma_and_tints(pixels: Pixels, channels_rgb: Sequence[Channel]) -> tuple[Channel, Channel, Channel]:
    """Y, Cr and Cb: as OpenCV's own conversion but for rounding, in half the time where the channels are at hand."""
    red, _, blue = channels_rgb
    luma = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    of_red = np.asarray(cv2.addWeighted(red, 0.713, luma, -0.713, 128))
    of_blue = np.asarray(cv2.addWeighted(blue, 0.564, luma, -0.564, 128))
    return luma, of_red, of_blue


def _change(channel: Channel, lag: int) -> float:
    """Mean squared difference of pixels that are `lag` apart, along both axes (a variogram); tiny tiles have none."""
    lag = min(lag, min(channel.shape) - 1)
    if lag == 0:
        return 0.0
    down = cv2.norm(channel[lag:], channel[:-lag], cv2.NORM_L2SQR)
    across = cv2.norm(channel[:, lag:], channel[:, :-lag], cv2.NORM_L2SQR)
    return (down + across) / (2 * channel.size)


def _log_root(square: float) -> float:
    return math.log(max(square, 0.0) + _ROUNDING) / 2


def measure_answers(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """The measures `ANSWER`, `float64 (N, 2)`, of probabilities `(N, classes)`: log odds, so that 0.99 is not 0.999."""
    ranked = np.sort(np.asarray(probabilities, np.float64), axis=1)[:, ::-1].clip(1e-6, 1 - 1e-6)
    first, second = ranked[:, 0], ranked[:, 1]
    return np.stack([np.log(first / (1 - first)), np.log(second / (1 - first))], axis=1)
