"""A preview shows what is taken and what is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cervix_engine.tiles.slides.cut import CutSlide, cut
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.slides.preview import preview, write_preview
from cervix_engine.tiles.slides.reading import OpenSlide
from cervix_engine.tiles.slides.tissue import Thumbnail
from cervix_engine.values import Pixels


def shown(path: Path, *, tissue_only: bool = True) -> tuple[Pixels, CutSlide]:
    """A slide's thumbnail, and how it is cut."""
    seen: list[Pixels] = []

    def show(thumbnail: Thumbnail, _: CutSlide) -> None:
        seen.append(thumbnail.pixels)

    with OpenSlide(path) as slide:
        made = cut(slide, GridRules(tissue_only=tissue_only), shown=show)
        return seen[0], made


def test_tiles_keep_their_colours_between_their_lines_and_the_rest_is_pale(slides: Path) -> None:
    pixels, made = shown(slides / "generic.tiff")
    picture = preview(Thumbnail(pixels, made.area, 4.0), made)
    assert picture.shape == pixels.shape
    x, y, width, height = next(iter(made))
    left, top, right, bottom = x // 8, y // 8, (x + width) // 8, (y + height) // 8  # 4 µm against 0.5
    assert (picture[top, left:right] == (0, 90, 178)).all()
    inside = np.s_[top + 12 : bottom - 2, left + 12 : right - 2]
    kept = (picture[inside] == pixels[inside]).all(axis=-1)
    assert kept.mean() > 0.8
    taken = {(tile.x, tile.y) for tile in made}
    assert (0, 0) not in taken
    assert (picture[2:20, 2:20] > pixels[2:20, 2:20]).all()


def test_a_preview_is_written_where_no_folder_is_yet(slides: Path, tmp_path: Path) -> None:
    pixels, made = shown(slides / "generic.tiff", tissue_only=False)
    thumbnail = Thumbnail(pixels, made.area, 4.0)
    write_preview(tmp_path / "new" / "sub" / "a.svs.png", thumbnail, made)
    written = cv2.imread(str(tmp_path / "new" / "sub" / "a.svs.png"))
    assert written is not None
    assert np.array_equal(written[..., ::-1], preview(thumbnail, made))
