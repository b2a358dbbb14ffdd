"""A tile's pixels are OpenSlide's own region; a slide that cannot be read says why, and names no file."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cervix_engine.errors import TileDecodeError, TileReadError
from cervix_engine.tiles.preprocess import resize_into
from cervix_engine.tiles.slides.cut import cut
from cervix_engine.tiles.slides.grid import Grid, GridRules, Region, nearest_level
from cervix_engine.tiles.slides.reading import OpenSlide, OpenSlides
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels
from engine.tiles.slides.drawn_slides import draw_slide, write_aperio


def own_region(path: Path, region: Region, *, level: int) -> Pixels:
    """As OpenSlide's documentation reads it: RGBA on white."""
    with openslide.OpenSlide(path) as slide:
        downsample = slide.level_downsamples[level]
        size = round(region.width / downsample), round(region.height / downsample)
        picture = slide.read_region((region.x, region.y), level, size)
    white = Image.new("RGB", size, "white")
    white.paste(picture, mask=picture)
    return np.asarray(white)


@pytest.mark.parametrize(
    ("name", "mpp", "level"),
    [
        ("generic.tiff", 0.5, 0),
        ("generic.tiff", 1.0, 1),
        ("generic.tiff", 2.0, 2),
        ("aperio.svs", 0.25, 0),
        ("aperio.svs", 1.0, 1),
    ],
)
def test_a_tile_is_openslides_own_region(slides: Path, name: str, mpp: float, level: int) -> None:
    rules = GridRules(tile_px=100, mpp=mpp)
    with OpenSlide(slides / name) as slide:
        tiles = list(cut(slide, rules))
        assert len(tiles) >= 4
        for region in tiles:
            assert np.array_equal(slide.tile(region, 100), own_region(slides / name, region, level=level))


def test_between_levels_a_tile_is_resized_from_the_finer_one(slides: Path) -> None:
    rules = GridRules(tile_px=224, mpp=0.5)  # level 0 has 0.25, level 1 has 1.0
    with OpenSlide(slides / "aperio.svs") as slide:
        region = next(iter(cut(slide, rules)))
        tile = slide.tile(region, 224)
    read = own_region(slides / "aperio.svs", region, level=0)
    assert read.shape == (448, 448, 3)
    assert np.array_equal(tile, cv2.resize(read, (224, 224), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("tile_px", [63, 100, 224, 300, 448, 511])
def test_a_tile_of_any_size_is_openslides_own_region_resized(slides: Path, tile_px: int) -> None:
    region = Region(500, 400, 448, 448)
    with OpenSlide(slides / "generic.tiff") as slide:
        tile = slide.tile(region, tile_px)
        level = nearest_level(slide.shape.downsamples, 448 / tile_px)
    read, expected = own_region(slides / "generic.tiff", region, level=level), np.empty((tile_px, tile_px, 3), np.uint8)
    resize_into(expected, read)
    assert np.array_equal(tile, expected)


def test_a_slide_without_loss_gives_the_pixels_that_were_scanned(slides: Path) -> None:
    canvas = draw_slide(1300, 1000, seed=2)
    with OpenSlide(slides / "generic.tiff") as slide:
        for region in Grid.on(slide.shape, GridRules()):
            scanned = canvas[region.y : region.y + 224, region.x : region.x + 224]
            assert np.array_equal(slide.tile(region, 224), scanned)


@settings(max_examples=40, deadline=None)
@given(x=st.integers(-50, 1400), y=st.integers(-50, 1100), side=st.integers(1, 300), level=st.integers(0, 2))
def test_reading_into_memory_gives_the_pixels_that_pillow_gives(
    slides: Path, x: int, y: int, side: int, level: int
) -> None:
    """Equal to the last bit, on the slide, beyond its edge, and half beyond."""
    region = Region(x, y, side, side)
    with OpenSlide(slides / "generic.tiff") as fast, OpenSlide(slides / "generic.tiff", by_pillow=True) as plain:
        assert np.array_equal(fast.region(region, level), plain.region(region, level))


def test_what_a_slide_does_not_show_has_its_background_colour(slides: Path) -> None:
    with OpenSlide(slides / "generic.tiff") as slide:
        beyond = slide.region(Region(1250, 0, 100, 100), 0)
    assert (beyond[:, 50:] == 255).all()
    assert not (beyond[:, :50] == 255).all()


def broken(folder: Path) -> list[tuple[Path, str]]:
    whole = write_aperio(folder / "whole.svs", draw_slide(600, 500), downsamples=(1,)).read_bytes()
    cases: list[tuple[str, bytes, str]] = [
        ("text.svs", b"no slide at all", "not_a_slide: OpenSlide does not know the file's format"),
        ("empty.svs", b"", "not_a_slide: OpenSlide does not know the file's format"),
        ("head.svs", whole[:200], "not_a_slide: OpenSlide does not know the file's format"),
    ]
    for name, data, _ in cases:
        (folder / name).write_bytes(data)
    tifffile.imwrite(folder / "plain.tif", draw_slide(64, 64), photometric="rgb")
    return [(folder / name, reason) for name, _, reason in cases] + [
        (folder / "plain.tif", "not_a_slide: OpenSlide does not know the file's format"),
        (folder / "gone.svs", "unreadable: No such file or directory"),
        (folder, "not_a_file: expected a regular file"),
    ]


def test_what_is_no_slide_says_so(tmp_path: Path) -> None:
    for path, reason in broken(tmp_path):
        with pytest.raises(TileReadError) as caught:
            OpenSlide(path)
        assert str(caught.value) == reason, path


def test_a_slide_cut_short_is_broken_and_its_name_is_not_told(tmp_path: Path) -> None:
    whole = write_aperio(tmp_path / "whole.svs", draw_slide(600, 500), downsamples=(1, 4)).read_bytes()
    patient = tmp_path / "DOE_JANE.svs"
    patient.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(TileReadError, match=r"^broken_slide: ") as caught:
        OpenSlide(patient)
    assert "DOE" not in str(caught.value)


def test_a_broken_region_fails_alone_once_the_slide_is_opened_again(tmp_path: Path) -> None:
    path = write_aperio(tmp_path / "slide.svs", draw_slide(1200, 600, seed=4), downsamples=(1,))
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    data = bytearray(path.read_bytes())
    data[offsets[0] : offsets[0] + 64] = bytes(64)
    path.write_bytes(data)
    opened = OpenSlides()
    with pytest.raises(TileDecodeError, match=r"^corrupt: "):
        opened.get(str(path)).tile(Region(0, 0, 224, 224), 224)
    opened.drop(str(path))
    good = Region(600, 300, 224, 224)
    assert np.array_equal(opened.get(str(path)).tile(good, 224), own_region(path, good, level=0))
    opened.close()


def test_a_slide_that_changed_since_it_was_listed_is_not_read(slides: Path, tmp_path: Path) -> None:
    path = tmp_path / "slide.tiff"
    path.write_bytes((slides / "generic.tiff").read_bytes())
    status = path.stat()
    listed = TileStamp(status.st_size, status.st_mtime_ns)
    opened = OpenSlides()
    assert opened.get(str(path), stamp=listed) is opened.get(str(path), stamp=listed)
    os.utime(path, ns=(0, listed.mtime_ns + 1))
    with pytest.raises(TileReadError, match=r"^changed: "):
        opened.get(str(path), stamp=listed)
    opened.close()
    with pytest.raises(TileReadError, match=r"^changed: "):
        OpenSlide(path, stamp=listed)


def test_few_slides_are_open_at_once(slides: Path, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.tiff").hardlink_to(slides / "generic.tiff")
    opened = OpenSlides(most=2)
    first = opened.get(str(tmp_path / "a.tiff"))
    assert opened.get(str(tmp_path / "a.tiff")) is first
    for name in "bc":
        assert opened.get(str(tmp_path / f"{name}.tiff"))
    assert opened.get(str(tmp_path / "a.tiff")) is not first
    opened.close()
