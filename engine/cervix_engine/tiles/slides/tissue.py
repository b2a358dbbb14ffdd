"""Where a slide's tissue is: colour tells it from glass, on a small picture of the slide.

Glass is grey, whatever the light; stained cells are not. So Otsu's threshold (1979) on the saturation splits the two.
Then holes are closed, since glass between cells belongs to them, and specks of dust go. Both are small here: a smear
has cells that lie alone, and none may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.tiles.slides.grid import Grid, GridRules, Region, SlideShape, nearest_level
from cervix_engine.tiles.slides.reading import OpenSlide
from cervix_engine.values import Pixels

Mask = npt.NDArray[np.uint8]  # (height, width), 255 where there is tissue, else 0

# The smallest cell of a smear, 10 µm across, has some pixels of this size.
THUMBNAIL_MPP = 4.0
# A slide of 50 mm would have more; then a pixel is larger.
MOST_THUMBNAIL_PX = 6144
# Read at once: no more of a slide is in memory.
_BLOCK_PX = 2048

# A speck is smaller than any cell; a hole as large as several tiles is glass.
SPECK_UM2 = 75.0
HOLE_UM2 = 40_000.0
# Otsu's threshold splits what is all glass, or all tissue, too: then it lies in noise, or among stains.
LEAST_SATURATION, MOST_SATURATION = 12, 30
# From this share of tissue on a tile is taken: a lone small cell on a tile of 100 µm.
LEAST_TISSUE = 0.005


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture of a slide.

    Attributes:
        pixels: RGB.
        area: of level 0, which it shows.
        mpp: micrometres a pixel, the mean of both axes.
    """

    pixels: Pixels
    area: Region
    mpp: float


def thumbnail(slide: OpenSlide, rules: GridRules) -> Thumbnail:
    """A slide's picture of about `THUMBNAIL_MPP`, read block by block.

    Raises:
        TileReadError: its resolution is not known.
        TileDecodeError: it cannot be read.
    """
    shape = slide.shape
    mpp = sum(shape.resolution(rules)) / 2
    longest = max(shape.area.width, shape.area.height)
    scale = max(1.0, THUMBNAIL_MPP / mpp, longest / MOST_THUMBNAIL_PX)
    level = nearest_level(shape.downsamples, scale)
    width, height = (max(1, round(side / scale)) for side in (shape.area.width, shape.area.height))
    pixels = np.empty((height, width, 3), np.uint8)
    step = max(1, int(_BLOCK_PX * shape.downsamples[level] / scale))
    for top in range(0, height, step):
        for left in range(0, width, step):
            block = pixels[top : top + step, left : left + step]
            filled = np.empty(block.shape, np.uint8)
            resize_into(filled, slide.region(_under(block.shape, left, top, scale, shape), level))
            block[...] = filled
    return Thumbnail(pixels, shape.area, mpp * scale)


def _under(block: tuple[int, ...], left: int, top: int, scale: float, shape: SlideShape) -> Region:
    """What a block of a thumbnail shows of level 0, no further than the slide goes."""
    area = shape.area
    x, y = round(left * scale), round(top * scale)
    right = min(area.width, round((left + block[1]) * scale))
    bottom = min(area.height, round((top + block[0]) * scale))
    return Region(area.x + x, area.y + y, max(1, right - x), max(1, bottom - y))


def tissue_mask(pixels: Pixels, *, mpp: float) -> Mask:
    """Where tissue is on a picture of `mpp` micrometres a pixel."""
    saturation = cv2.medianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1], 3)
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = min(max(otsu, LEAST_SATURATION), MOST_SATURATION)
    mask = np.where(saturation > threshold, np.uint8(255), np.uint8(0))
    # Holes first: a ring of cells is one piece of tissue.
    _fill(mask, 0, HOLE_UM2 / mpp**2)
    _fill(mask, 255, SPECK_UM2 / mpp**2)
    return mask


def _fill(mask: Mask, value: int, less_than_px: float) -> None:
    """Invert every connected piece of `value` that is smaller than that; diagonal neighbours connect tissue alone."""
    pieces = np.where(mask == value, np.uint8(1), np.uint8(0))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(pieces, connectivity=8 if value else 4)
    small = stats[:, cv2.CC_STAT_AREA] < less_than_px
    small[0] = False  # what is not of this value
    mask[small[labels]] = 255 - value


def with_tissue(grid: Grid, mask: Mask, area: Region) -> Iterator[Region]:
    """The tiles of a grid that hold tissue, in its order.

    Args:
        grid: of a slide.
        mask: of all of `area`.
        area: of level 0.
    """
    height, width = mask.shape
    scale_x, scale_y = width / area.width, height / area.height
    rows = [_span(top - area.y, grid.height, scale_y, height) for top in grid.tops]
    for x in grid.lefts:
        left, right = _span(x - area.x, grid.width, scale_x, width)
        above = np.concatenate([[0], np.cumsum(np.count_nonzero(mask[:, left:right], axis=1))])
        for y, (top, bottom) in zip(grid.tops, rows, strict=True):
            if above[bottom] - above[top] >= max(1.0, LEAST_TISSUE * (bottom - top) * (right - left)):
                yield Region(x, y, grid.width, grid.height)


def _span(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """The pixels of a mask that a stretch of level 0 touches: at least one."""
    first = min(int(start * scale), limit - 1)
    return first, min(limit, max(first + 1, round((start + length) * scale)))
