"""A picture of what is taken of a slide: its thumbnail, tissue outlined, and each tile's box."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from cervix_engine.tiles.slides.grid import Region
from cervix_engine.tiles.slides.tissue import Mask, Thumbnail
from cervix_engine.values import Pixels

MOST_PX = 2048
_OUTLINE, _BOX = (0, 158, 115), (0, 90, 178)  # RGB


def preview(thumbnail: Thumbnail, mask: Mask | None, tiles: Iterable[Region]) -> Pixels:
    """A slide's picture, RGB and at most `MOST_PX` wide and high: what lies in no tile is pale.

    Args:
        thumbnail: of the slide.
        mask: where its tissue is, of the thumbnail's size; None where that was not asked.
        tiles: that are taken.
    """
    height, width = thumbnail.pixels.shape[:2]
    scale = min(1.0, MOST_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(thumbnail.pixels, size, interpolation=cv2.INTER_AREA)
    drawn: Pixels = 255 - (255 - picture.astype(np.uint8)) // 2
    if mask is not None:
        small = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    boxes = [_box(tile, thumbnail.area, size) for tile in tiles]
    for left, top, right, bottom in boxes:
        drawn[top:bottom, left:right] = picture[top:bottom, left:right]
    if mask is not None:
        outlines, _ = cv2.findContours((small > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(drawn, outlines, -1, _OUTLINE, 1)
    for left, top, right, bottom in boxes:
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), _BOX, 1)
    return drawn


def _box(tile: Region, area: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    scale_x, scale_y = size[0] / area.width, size[1] / area.height
    left, top = round((tile.x - area.x) * scale_x), round((tile.y - area.y) * scale_y)
    right, bottom = (
        round((tile.x - area.x + tile.width) * scale_x),
        round((tile.y - area.y + tile.height) * scale_y),
    )
    return left, top, max(right, left + 1), max(bottom, top + 1)
