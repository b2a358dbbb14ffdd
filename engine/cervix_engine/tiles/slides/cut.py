"""What becomes of a whole slide: the tiles that it is cut into, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        area: of level 0, that the mask shows.
        mask: where tissue is; None where all of the grid is taken.
    """

    grid: Grid
    area: Region
    mask: Mask | None = None

    def __iter__(self) -> Iterator[Region]:
        return iter(self.grid) if self.mask is None else with_tissue(self.grid, self.mask, self.area)


# Shown what becomes of a slide.
Shown = Callable[[Thumbnail, CutSlide], None]


def cut(slide: OpenSlide, rules: GridRules, *, shown: Shown | None = None) -> CutSlide:
    """Cut a slide into tiles.

    Args:
        slide: open.
        rules: how.
        shown: given its picture and its tiles, also where these are none.

    Raises:
        TileReadError: its resolution is not known, it is smaller than a tile, or no tissue was found on it.
        TileDecodeError: it cannot be read.
    """
    grid, mask, picture = Grid.on(slide.shape, rules), None, None
    if rules.tissue_only or shown:
        picture = thumbnail(slide, rules)
        mask = tissue_mask(picture.pixels, mpp=picture.mpp) if rules.tissue_only else None
    made = CutSlide(grid, slide.shape.area, mask)
    if shown and picture:
        shown(picture, made)
    if mask is not None and next(iter(made), None) is None:
        raise TileReadError("no_tissue", "no tissue was found on the slide: --no-tissue-mask takes all of it")
    return made
