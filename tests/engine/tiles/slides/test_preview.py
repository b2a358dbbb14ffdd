"""A preview shows what is taken and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cervix_engine.tiles.slides.cut import cut
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.slides.preview import preview
from cervix_engine.tiles.slides.reading import OpenSlide


def test_tiles_keep_their_colours_between_their_lines_and_the_rest_is_pale(slides: Path) -> None:
    with OpenSlide(slides / "generic.tiff") as slide:
        made = cut(slide, GridRules())
    assert made.thumbnail is not None
    picture = preview(made.thumbnail, made.mask, made)
    assert picture.shape == made.thumbnail.pixels.shape
    x, y, width, height = next(iter(made))
    left, top, right, bottom = x // 8, y // 8, (x + width) // 8, (y + height) // 8  # 4 µm against 0.5
    assert (picture[top, left:right] == (0, 90, 178)).all()
    inside = np.s_[top + 12 : bottom - 2, left + 12 : right - 2]
    kept = (picture[inside] == made.thumbnail.pixels[inside]).all(axis=-1)
    assert kept.mean() > 0.8
    taken = {(tile.x, tile.y) for tile in made}
    assert (0, 0) not in taken
    assert (picture[2:20, 2:20] > made.thumbnail.pixels[2:20, 2:20]).all()
