"""Whole slides, drawn: pyramids as a scanner writes them, with glass, cells, a hole and dust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile

from cervix_engine.values import Pixels

GLASS, STAIN = (243, 242, 244), (200, 120, 170)


def draw_slide(width: int, height: int, *, seed: int = 0) -> Pixels:
    """Level 0 of a slide: an island of textured tissue in the middle two thirds, glass around it. RGB."""
    random = np.random.default_rng(seed)
    canvas = np.empty((height, width, 3), np.uint8)
    island = np.zeros((height, width), np.uint8)
    cv2.ellipse(island, (width // 2, height // 2), (width // 3, height // 3), 0, 0, 360, 255, -1)
    for top in range(0, height, 256):  # band by band: a large slide would take many times its memory
        band = canvas[top : top + 256]
        texture = random.integers(0, 60, (len(band) // 4 + 1, width // 4 + 1, 3), np.uint8)
        stained = np.array(STAIN, np.uint8) - cv2.resize(texture, (width, len(band))).astype(np.uint8)
        band[...] = np.where(island[top : top + 256, :, None] > 0, stained, np.array(GLASS, np.uint8))
    return canvas


def levels_of(canvas: Pixels, downsamples: Sequence[int]) -> list[Pixels]:
    height, width = canvas.shape[:2]
    return [
        cv2.resize(canvas, (width // by, height // by), interpolation=cv2.INTER_AREA).astype(np.uint8)
        for by in downsamples
    ]


def write_aperio(
    path: Path, canvas: Pixels, *, mpp: float | None = 0.25, downsamples: Sequence[int] = (1, 4, 16)
) -> Path:
    """A slide as Aperio's scanners write it: level 0, a thumbnail in strips, then the other levels; JPEG tiles."""
    height, width = canvas.shape[:2]
    says = "" if mpp is None else f"|MPP = {mpp}"
    text = f"Aperio Image Library v11.2.1\r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=90"
    levels = levels_of(canvas, downsamples)
    thumbnail = cv2.resize(canvas, (max(16, width // 32), max(16, height // 32)), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 90},
                description=f"{text}|AppMag = 40{says}",
                metadata=None,
                subfiletype=1 if number else 0,
            )
            if not number:
                file.write(thumbnail, photometric="rgb", description=text, metadata=None)
    return path


def write_generic(
    path: Path, canvas: Pixels, *, mpp: float | None = 0.5, downsamples: Sequence[int] = (1, 2, 4)
) -> Path:
    """A tiled pyramidal TIFF without loss, as other programs write it; its resolution in pixels a centimetre."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(levels_of(canvas, downsamples)):
            said = {} if mpp is None else {"resolution": (1e4 / mpp / downsamples[number],) * 2, "resolutionunit": 3}
            file.write(
                level,
                photometric="rgb",
                tile=(256, 256),
                compression="deflate",
                metadata=None,
                subfiletype=1 if number else 0,
                **said,  # type: ignore[arg-type]
            )
    return path
