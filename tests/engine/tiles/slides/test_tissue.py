"""Where tissue is found: islands, holes and specks of known size, on glass that is not quite grey."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cervix_engine.tiles.slides.grid import Grid, GridRules, Region, SlideShape
from cervix_engine.tiles.slides.reading import OpenSlide
from cervix_engine.tiles.slides.tissue import Mask, thumbnail, tissue_mask, with_tissue
from cervix_engine.values import Pixels
from engine.tiles.slides.drawn_slides import GLASS, draw_slide, write_generic

MPP = 4.0
STAIN = (190, 130, 180)


def glass(height: int = 200, width: int = 300) -> Pixels:
    noise = np.random.default_rng(3).integers(-2, 3, (height, width, 3))
    return (np.array(GLASS) + noise).astype(np.uint8)


def with_disc(pixels: Pixels, centre: tuple[int, int], radius: int, colour: tuple[int, int, int] = STAIN) -> Pixels:
    cv2.circle(pixels, centre, radius, colour, -1)
    return pixels


def test_tissue_is_what_is_stained() -> None:
    mask = tissue_mask(with_disc(glass(), (150, 100), 40), mpp=MPP)
    expected = with_disc(np.zeros((200, 300, 3), np.uint8), (150, 100), 40, (255, 255, 255))[..., 0]
    assert np.count_nonzero(mask != expected) <= 0.02 * np.count_nonzero(expected)
    assert set(np.unique(mask)) == {0, 255}


def test_a_lone_small_cell_is_tissue_and_dust_is_not() -> None:
    pixels = with_disc(with_disc(glass(), (150, 100), 40), (40, 40), 2)  # 16 µm across
    pixels[170, 260] = STAIN  # 4 µm across
    mask = tissue_mask(pixels, mpp=MPP)
    assert mask[40, 40] == 255
    assert not mask[160:180, 250:270].any()


@pytest.mark.parametrize(("radius", "closed"), [(10, True), (35, False)])
def test_small_holes_are_closed_and_large_ones_are_glass(radius: int, closed: bool) -> None:
    pixels = with_disc(with_disc(glass(), (150, 100), 80), (150, 100), radius, GLASS)
    mask = tissue_mask(pixels, mpp=MPP)
    assert bool(mask[100, 150]) is closed


def test_glass_alone_has_no_tissue() -> None:
    assert not tissue_mask(glass(), mpp=MPP).any()


def test_a_slide_full_of_tissue_is_all_tissue() -> None:
    pixels = with_disc(np.full((200, 300, 3), STAIN, np.uint8), (150, 100), 60, (150, 30, 120))
    assert tissue_mask(pixels, mpp=MPP).all()


def test_a_tile_is_taken_as_soon_as_it_holds_a_cell() -> None:
    area = Region(100, 50, 4800, 3200)  # of level 0; 16 of its pixels are one of the mask's
    mask: Mask = np.zeros((200, 300), np.uint8)
    mask[100:103, 150:153] = 255
    grid = Grid.on(SlideShape(area, 0.25, 0.25, (1.0,)), GridRules())
    tiles = list(with_tissue(grid, mask, area))
    holds = [
        tile
        for tile in grid
        if tile.x - 100 < 153 * 16 and tile.x - 100 + tile.width > 150 * 16
        if tile.y - 50 < 103 * 16 and tile.y - 50 + tile.height > 100 * 16
    ]
    assert tiles == holds
    assert list(with_tissue(grid, np.zeros_like(mask), area)) == []
    assert list(with_tissue(grid, np.full_like(mask, 255), area)) == list(grid)


def test_a_thumbnail_read_in_blocks_is_the_slide_made_small(tmp_path_factory: pytest.TempPathFactory) -> None:
    canvas = draw_slide(4700, 2500, seed=5)  # more than one block each way
    path = write_generic(tmp_path_factory.mktemp("large") / "large.tiff", canvas, mpp=1.0, downsamples=(1,))
    with OpenSlide(path) as slide:
        small = thumbnail(slide, GridRules())
    expected = cv2.resize(canvas, (1175, 625), interpolation=cv2.INTER_AREA)
    assert small.mpp == 4.0
    assert small.pixels.shape == expected.shape
    assert np.abs(small.pixels.astype(int) - expected).max() <= 1
