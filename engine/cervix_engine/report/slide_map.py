"""A slide seen from above: the probability of being abnormal, averaged over tiles, as a small picture.

Every tile covers its own area, so what the picture leaves free is free on the slide, and tiles that touch leave no gap.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cervix_engine.report.pictures import data_uri
from cervix_engine.table.reader import Box

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MAX_CELLS = 160  # along the longer side

# Blue, green, red: Okabe and Ito's reddish purple, which the map's own colours do not hold.
FAILED_BGR = (167, 121, 204)

# A tile that is much smaller than a cell is seen all the same.
_FAINTEST = 0.35


@dataclass(frozen=True, slots=True)
class SlideMap:
    """A picture of `width x height` cells as a data URI, and what it covers."""

    slide_id: str
    uri: str
    width: int
    height: int
    tiles: int
    failed: int
    cell_px: int


@dataclass(slots=True)
class SlidePoints:
    """The tiles of one slide: 28 bytes each, so a million of them are 28 MB.

    Attributes:
        boxes: x, y, width and height of each predicted tile, one after another.
        probability: of each.
        failed: boxes of failed tiles, where their names say where they lie.
    """

    boxes: array[float] = field(default_factory=lambda: array("d"))
    probability: array[float] = field(default_factory=lambda: array("f"))
    failed: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.probability)

    def add(self, box: Box, probability: float) -> None:
        self.boxes.extend(box)
        self.probability.append(probability)

    def add_failed(self, box: Box) -> None:
        self.failed.extend(box)

    @property
    def usual_size(self) -> tuple[int, int] | None:
        """Width and height of the first predicted tile, for those that failed: a slide's are mostly alike."""
        return (int(self.boxes[2]), int(self.boxes[3])) if self.boxes else None


def draw_map(slide_id: str, points: SlidePoints) -> SlideMap:
    """Draw a slide of which at least one tile has a place; where there is none, the picture is transparent."""
    import cv2
    import numpy as np

    predicted, failed = (np.frombuffer(boxes).reshape(-1, 4) for boxes in (points.boxes, points.failed))
    both = np.concatenate([predicted, failed])
    low, high = both[:, :2].min(axis=0), (both[:, :2] + np.maximum(both[:, 2:], 1)).max(axis=0)
    cell = max(1.0, float((high - low).max()) / MAX_CELLS)
    # Whole dots on both axes: one that the slide ends in would look like the edge of a gap.
    width, height = np.maximum(1, np.rint((high - low) / cell)).astype(int).tolist()
    scale = np.tile([width, height] / (high - low), 2)
    probability = np.frombuffer(points.probability, np.float32)
    covered, sums, spoilt = (
        _coverage((boxes - [*low, 0, 0]) * scale, weights, (height, width))
        for boxes, weights in (
            (predicted, np.ones(len(predicted))),
            (predicted, probability.astype(np.float64)),
            (failed, np.ones(len(failed))),
        )
    )
    levels = np.rint(255 * np.clip(sums / np.maximum(covered, 1e-9), 0, 1)).astype(np.uint8)
    # Cividis keeps its order for every kind of colour vision, and in print.
    picture = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2BGRA)
    picture[spoilt > covered] = (*FAILED_BGR, 255)
    share = np.maximum(covered, spoilt)
    opaque = np.where(share > 1e-6, np.clip(share, _FAINTEST, 1), 0)
    # Where tiles are larger than cells, a cell that is hardly touched is the edge of a gap, and no tile of its own.
    if both[:, 2:].min() > 2 * cell:
        opaque[share < 0.5] = 0
    picture[..., 3] = np.rint(255 * opaque).astype(np.uint8)
    sizes = (width, height, len(points), len(failed), round(cell))
    return SlideMap(slide_id, data_uri("png", picture), *sizes)


def _coverage(boxes: Floats, weights: Floats, shape: tuple[int, int]) -> Floats:
    """How much of each cell boxes cover, each counted with its weight: `float64` of this (height, width).

    A box's area is the twofold running sum of its four corners, each shared among the four cells around it.

    Args:
        boxes: x, y, width and height in cells, `float64 (N, 4)`.
    """
    import numpy as np

    height, width = shape
    total = np.zeros((height + 2) * (width + 2))
    x, y = boxes[:, 0], boxes[:, 1]
    for right, lower in ((0, 0), (1, 0), (0, 1), (1, 1)):
        across, down = x + right * boxes[:, 2], y + lower * boxes[:, 3]
        column, row = (np.floor(values).astype(np.int64) for values in (across, down))
        for along, beside in ((0, 0), (1, 0), (0, 1), (1, 1)):
            part = _shared(across - column, along) * _shared(down - row, beside) * weights
            at = (row + beside) * (width + 2) + column + along
            total += np.bincount(at, part * (-1) ** (right + lower), len(total))[: len(total)]
    return np.asarray(total.reshape(height + 2, width + 2).cumsum(axis=0).cumsum(axis=1)[:height, :width])


def _shared(fraction: Floats, second: int) -> Floats:
    return fraction if second else 1 - fraction
