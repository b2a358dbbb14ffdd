"""A slide seen from above: the probability of being abnormal, averaged over tiles, as a small picture."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from cervix_engine.report.pictures import data_uri
from cervix_engine.table.reader import Box

MAX_CELLS = 128  # along the longer side


@dataclass(frozen=True, slots=True)
class SlideMap:
    """A picture of `width x height` cells as a data URI, and what it covers."""

    slide_id: str
    uri: str
    width: int
    height: int
    tiles: int
    cell_px: int


@dataclass(slots=True)
class SlidePoints:
    """The tiles of one slide: 20 bytes each, so a million of them are 20 MB."""

    x: array[float] = field(default_factory=lambda: array("d"))
    y: array[float] = field(default_factory=lambda: array("d"))
    probability: array[float] = field(default_factory=lambda: array("f"))
    tile_px: int = 1

    def add(self, box: Box, probability: float) -> None:
        self.x.append(box.minx + box.width / 2)
        self.y.append(box.miny + box.height / 2)
        self.probability.append(probability)
        self.tile_px = max(self.tile_px, box.width, box.height)


def draw_map(slide_id: str, points: SlidePoints) -> SlideMap:
    """Average the tiles into cells no smaller than a tile; cells without any are transparent."""
    import cv2
    import numpy as np

    x, y = np.frombuffer(points.x), np.frombuffer(points.y)
    extent = max(np.ptp(x), np.ptp(y))
    cell = max(float(points.tile_px), extent / (MAX_CELLS - 1))
    columns, rows = ((x - x.min()) / cell).astype(np.int64), ((y - y.min()) / cell).astype(np.int64)
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    flat = rows * shape[1] + columns
    counts = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(flat, np.frombuffer(points.probability, np.float32), shape[0] * shape[1]).reshape(shape)
    levels = np.rint(255 * sums / np.maximum(counts, 1)).astype(np.uint8)
    # Cividis keeps its order for every kind of colour vision, and in print.
    picture = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2BGRA)
    picture[..., 3] = np.where(counts > 0, 255, 0)
    return SlideMap(slide_id, data_uri("png", picture), shape[1], shape[0], len(x), round(cell))
