"""What becomes of a whole slide: the tiles that it is cut into, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cervix_engine.errors import TileReadError
from cervix_engine.tiles.slides.grid import Grid, GridRules, Region
from cervix_engine.tiles.slides.reading import OpenSlide
from cervix_engine.tiles.slides.tissue import Mask, Thumbnail, thumbnail, tissue_mask, with_tissue


@dataclass(frozen=True, slots=True)
class CutSlide:
    """The tiles of a slide, in the order of their names.

    Attributes:
        grid: all that would fit.
        thumbnail, mask: what shows where tissue is; None where all of the grid is taken.
    """

    grid: Grid
    thumbnail: Thumbnail | None = None
    mask: Mask | None = None

    def __iter__(self) -> Iterator[Region]:
        if self.thumbnail is None or self.mask is None:
            return iter(self.grid)
        return with_tissue(self.grid, self.mask, self.thumbnail.area)


def cut(slide: OpenSlide, rules: GridRules) -> CutSlide:
    """Cut a slide into tiles.

    Raises:
        TileReadError: its resolution is not known, it is smaller than a tile, or no tissue was found on it.
        TileDecodeError: it cannot be read.
    """
    grid = Grid.on(slide.shape, rules)
    if not rules.tissue_only:
        return CutSlide(grid)
    picture = thumbnail(slide, rules)
    made = CutSlide(grid, picture, tissue_mask(picture.pixels, mpp=picture.mpp))
    if next(iter(made), None) is None:
        raise TileReadError("no_tissue", "no tissue was found on the slide: --no-tissue-mask takes all of it")
    return made
