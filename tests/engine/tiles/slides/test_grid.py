"""Where tiles lie: exact pixels of level 0, whatever a slide's resolution is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cervix_engine.errors import TileReadError, UsageError
from cervix_engine.tiles.slides.grid import Grid, GridRules, Region, SlideShape, nearest_level, pixels_of


def shape(width: int, height: int, *, mpp: float | None = 0.25, left: int = 0, top: int = 0) -> SlideShape:
    return SlideShape(Region(left, top, width, height), mpp, mpp, (1.0, 4.0, 16.0))


@pytest.mark.parametrize(("mpp", "side"), [(0.25, 448), (0.5, 224), (0.499, 224), (0.2525, 444), (1.0, 112)])
def test_a_tile_has_its_extent_on_the_slide(mpp: float, side: int) -> None:
    grid = Grid.on(shape(5000, 5000, mpp=mpp), GridRules(tile_px=224, mpp=0.5))
    assert (grid.width, grid.height) == (side, side)


def test_the_last_tiles_end_where_the_slide_does() -> None:
    grid = Grid.on(shape(1000, 896), GridRules())
    assert list(grid) == [
        Region(x, y, 448, 448) for x, y in [(0, 0), (0, 448), (448, 0), (448, 448), (552, 0), (552, 448)]
    ]


def test_tiles_overlap_by_the_share_asked_for() -> None:
    grid = Grid.on(shape(1344, 448), GridRules(overlap=0.25))
    assert grid.lefts == (0, 336, 672, 896)


def test_unlike_axes_have_sides_of_their_own() -> None:
    unlike = SlideShape(Region(0, 0, 2000, 2000), 0.25, 0.5, (1.0,))
    grid = Grid.on(unlike, GridRules())
    assert (grid.width, grid.height) == (448, 224)


def test_the_grid_begins_where_the_scanned_area_does() -> None:
    grid = Grid.on(shape(500, 448, left=100, top=7), GridRules())
    assert list(grid) == [Region(100, 7, 448, 448), Region(152, 7, 448, 448)]


@given(
    width=st.integers(60, 3000),
    height=st.integers(60, 3000),
    side=st.integers(1, 60),
    overlap=st.floats(0, 0.9, allow_nan=False),
)
def test_every_pixel_lies_in_a_tile_and_every_tile_on_the_slide(
    width: int, height: int, side: int, overlap: float
) -> None:
    grid = Grid.on(shape(width, height, mpp=0.5), GridRules(tile_px=side, mpp=0.5, overlap=overlap))
    for starts, length in ((grid.lefts, width), (grid.tops, height)):
        assert starts[0] == 0
        assert starts[-1] + side == length
        assert all(0 < after - before <= side for before, after in itertools.pairwise(starts))
    assert len(grid) == len(grid.lefts) * len(grid.tops)


def test_names_give_the_region_back_and_sort_as_the_grid() -> None:
    regions = list(Grid.on(shape(20_000, 20_000), GridRules()))
    names = [region.name for region in regions]
    assert names[1] == "x000000_y000448_w448_h448"
    assert names == sorted(names)
    assert [Region.from_name(name) for name in names] == regions


@pytest.mark.parametrize("name", ["", "slide", "x1_y2", "x1_y2_w3_h4.png", "x-1_y2_w3_h4", "a_x1_y2_w3_h4"])
def test_no_other_name_is_a_region(name: str) -> None:
    assert Region.from_name(name) is None


@pytest.mark.parametrize(
    ("wanted", "level"), [(0.5, 0), (1.0, 0), (3.9, 0), (3.97, 1), (4.0, 1), (15.0, 1), (16.0, 2), (99.0, 2)]
)
def test_the_level_is_the_nearest_that_is_fine_enough(wanted: float, level: int) -> None:
    assert nearest_level((1.0, 4.0003, 16.003), wanted) == level


@pytest.mark.parametrize("said", [None, 352.8, 0.0001])
def test_a_slide_without_a_credible_resolution_is_refused(said: float | None) -> None:
    with pytest.raises(TileReadError, match=r"^no_resolution: .*--slide-mpp"):
        Grid.on(shape(2000, 2000, mpp=said), GridRules())
    assert Grid.on(shape(2000, 2000, mpp=said), GridRules(slide_mpp=0.5)).width == 224


def test_what_a_slide_says_of_itself_goes_first() -> None:
    assert Grid.on(shape(2000, 2000, mpp=0.25), GridRules(slide_mpp=1.0)).width == 448


def test_a_slide_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(TileReadError, match=r"^too_small: the slide has 447 x 2000 pixels, a tile 448 x 448"):
        Grid.on(shape(447, 2000), GridRules())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"tile_px": side} for side in (0, 9000)),
        *({"mpp": mpp} for mpp in (0.0, 50.0)),
        *({"overlap": share} for share in (0.95, -0.1)),
        {"slide_mpp": 353.0},
    ],
)
def test_rules_that_make_no_grid_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        GridRules(**wrong)  # type: ignore[arg-type]


def test_an_extent_in_micrometres_is_whole_pixels() -> None:
    assert pixels_of(112.0, mpp=0.5) == 224
    assert pixels_of(100.0, mpp=0.3) == 333
