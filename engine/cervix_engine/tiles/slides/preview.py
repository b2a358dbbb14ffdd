"""A picture of what is taken of a slide: its thumbnail, tissue outlined, and each tile's box."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cervix_engine.files import atomic_path, output_errors
from cervix_engine.tiles.slides.cut import CutSlide
from cervix_engine.tiles.slides.grid import Region
from cervix_engine.tiles.slides.tissue import Thumbnail
from cervix_engine.values import Pixels

MOST_PX = 2048
_OUTLINE, _BOX = (0, 158, 115), (0, 90, 178)  # RGB


def write_preview(path: Path, thumbnail: Thumbnail, cut: CutSlide) -> None:
    """Write a slide's picture as a PNG file, also in a folder that is not there yet.

    Raises:
        OutputError: it cannot be written.
    """
    picture = preview(thumbnail, cut)
    with output_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def preview(thumbnail: Thumbnail, cut: CutSlide) -> Pixels:
    """A slide's picture, RGB and at most `MOST_PX` wide and high: what lies in no tile is pale."""
    height, width = thumbnail.pixels.shape[:2]
    scale = min(1.0, MOST_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(thumbnail.pixels, size, interpolation=cv2.INTER_AREA)
    drawn: Pixels = 255 - (255 - picture.astype(np.uint8)) // 2
    boxes = [_box(tile, thumbnail.area, size) for tile in cut]
    for left, top, right, bottom in boxes:
        drawn[top:bottom, left:right] = picture[top:bottom, left:right]
    if cut.mask is not None:
        small = cv2.resize(cut.mask, size, interpolation=cv2.INTER_AREA)
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
