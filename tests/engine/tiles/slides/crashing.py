"""Decoders that slides crash; processes import them by name."""

from __future__ import annotations

import signal
from pathlib import Path

from cervix_engine.tiles.slides.cut import CutSlide, cut
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.slides.reading import OpenSlide
from cervix_engine.tiles.tile import TileStamp


def crashed_by_generic(path: str, stamp: TileStamp, rules: GridRules, preview: Path | None) -> CutSlide | None:
    if path.endswith("generic.tiff"):
        signal.raise_signal(signal.SIGSEGV)
    with OpenSlide(path, stamp=stamp) as slide:
        return cut(slide, rules)


def crashed_by_any(path: str, stamp: TileStamp, rules: GridRules, preview: Path | None) -> CutSlide | None:
    signal.raise_signal(signal.SIGSEGV)
    return None
