"""What a header says is found, and what has no single meaning as 8-bit RGB is refused before any decoder runs."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from cervix_engine.errors import TileDecodeError, TileError, TileShapeError
from cervix_engine.tiles.formats.header import MAX_AREA_PX, MAX_SIDE_PX
from cervix_engine.tiles.headers import inspect

from .encoded_tiles import (
    HEIGHT,
    PNG_GREY_ALPHA,
    PNG_RGB,
    PNG_RGBA,
    WIDTH,
    bmp,
    draw,
    exif,
    grey,
    jpeg,
    jpeg_with_segment,
    png,
    png_palette,
    webp_extended,
    webp_lossless,
    webp_lossy,
    with_alpha,
)
from .refused_tiles import CLAIMS, OTHERS, REFUSED
from .tiff_tiles import tiff
from .whole_tiles import whole_tiles

PIXELS = draw()
PLANE = grey(PIXELS)
BGR = np.ascontiguousarray(PIXELS[..., ::-1])
WHOLE = {name: data for name, (data, _) in whole_tiles().items()}
MAY_BE_TRANSPARENT = {
    "png_palette_opaque",
    "png_unused_transparent_colour",
    "png_rgba_opaque",
    "png_grey_alpha_opaque",
    "bmp_32_opaque",
    "tiff_opaque",
    "tiff_grey_opaque",
    "png_grey_unused_transparent_value",
    "bmp_32_of_no_alpha",
}


def refusal(data: bytes) -> TileError:
    with pytest.raises(TileError) as caught:
        inspect(data)
    return caught.value


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_tile_is_understood(name: str) -> None:
    header = inspect(WHOLE[name])
    assert header.format == name.partition("_")[0]
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    assert header.has_alpha == (name in MAY_BE_TRANSPARENT)


@pytest.mark.parametrize("name", WHOLE)
def test_the_end_of_the_file_is_looked_for(name: str) -> None:
    data = WHOLE[name]
    lengths = {*range(64), *range(0, len(data), 11), *range(len(data) - 64, len(data))}
    assert {refusal(data[:length]).kind for length in lengths} == {"empty", "unknown_format", "truncated"}


@pytest.mark.parametrize("name", WHOLE)
def test_what_follows_the_end_does_not_matter(name: str) -> None:
    header = inspect(WHOLE[name])
    for garbage in (b"\0", b"\xff", b"\xff\xd9", b"trailing text\r\n" * 50, WHOLE[name]):
        assert inspect(WHOLE[name] + garbage) == header


@pytest.mark.parametrize("name", OTHERS)
def test_other_content_is_unknown(name: str) -> None:
    error = refusal(OTHERS[name])
    assert isinstance(error, TileDecodeError)
    assert str(error) == "unknown_format: content is not JPEG, PNG, BMP, TIFF, WebP or JPEG 2000"


def test_an_empty_file_is_its_own_kind() -> None:
    assert str(refusal(b"")) == "empty: the file has 0 bytes"


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("size", [(60_000, 60_000), (MAX_SIDE_PX + 1, 1), (1, MAX_SIDE_PX + 1), (8193, 8192)])
def test_bombs_are_refused_by_their_header(name: str, size: tuple[int, int]) -> None:
    error = refusal(CLAIMS[name](*size))
    assert isinstance(error, TileShapeError)
    assert str(error).startswith(f"too_large: {size[1]}x{size[0]} pixels, limit ")


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("size", [(MAX_SIDE_PX, 1), (1, MAX_SIDE_PX), (8192, 8192), (1, 1)])
def test_the_limits_themselves_are_accepted(name: str, size: tuple[int, int]) -> None:
    header = inspect(CLAIMS[name](*size))
    assert (header.height, header.width) == size
    assert header.height * header.width <= MAX_AREA_PX


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("size", [(0, 56), (40, 0), (0, 0)])
def test_images_without_pixels_are_refused(name: str, size: tuple[int, int]) -> None:
    error = refusal(CLAIMS[name](*size))
    assert isinstance(error, TileShapeError)
    assert error.kind == "bad_dimensions"


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((60_000, 60_000), "truncated"),  # the pixels that it claims are not there
        ((2**31 - 1, 2**31 - 1), "truncated"),
        ((-(2**31), 56), "truncated"),
        ((1_000_000, 0), "bad_dimensions"),
        ((0, 56), "bad_dimensions"),
        ((40, 0), "bad_dimensions"),
        ((40, -56), "bad_dimensions"),
    ],
)
def test_bitmaps_of_impossible_size(size: tuple[int, int], kind: str) -> None:
    assert refusal(bmp(BGR, size=size)).kind == kind


def test_a_webp_bomb_is_refused_by_its_canvas() -> None:
    extended = webp_extended(webp_lossless(PIXELS), flags=0, size=(2**24, 2**24))
    assert refusal(extended).kind == "too_large"
    lossy = webp_lossy(PIXELS)
    claimed = lossy[:26] + struct.pack("<HH", 0x3FFF, 0x3FFF) + lossy[30:]
    assert refusal(claimed).kind == "too_large"


@pytest.mark.parametrize("size", [(1, 1), (1, 16383), (16383, 1), (123, 457)])
def test_webp_packs_its_size_in_bits(size: tuple[int, int]) -> None:
    header = inspect(webp_lossless(np.full((*size, 3), 99, np.uint8)))
    assert (header.height, header.width) == size


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_single_meaning_is_refused(name: str) -> None:
    data, kind = REFUSED[name]
    error = refusal(data)
    assert isinstance(error, TileDecodeError)
    assert error.kind == kind
    assert str(error).startswith(f"{kind}: ")


def test_an_upright_tiff_may_say_so() -> None:
    assert inspect(tiff(PIXELS, tags={274: ("H", [1]), 339: ("H", [1, 1, 1])})) == inspect(tiff(PIXELS))


def test_an_embedded_thumbnail_is_not_the_image() -> None:
    thumbnail = jpeg(draw(1, height=8, width=8))
    assert b"\xff\xd9" in thumbnail
    data = jpeg_with_segment(jpeg(PIXELS), 0xE1, exif(6, thumbnail=thumbnail))
    assert (inspect(data).height, inspect(data).width) == (HEIGHT, WIDTH)
    for length in range(len(data) - 400, len(data)):
        assert refusal(data[:length]).kind == "truncated"


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    data = jpeg(PIXELS)
    assert inspect(data[:2] + b"\xff\xff\xff" + data[2:]).height == HEIGHT
    assert inspect(data[:-2] + b"\xff\xff" + data[-2:]).scan_end == len(data)


def test_the_end_of_a_jpegs_scan_is_where_its_end_marker_begins() -> None:
    for data in WHOLE.values():
        if inspect(data).format == "jpeg":
            end = inspect(data + b"\xff\xd9").scan_end
            assert data[end:] == b"\xff\xd9"


@pytest.mark.parametrize("name", ["jpeg_progressive", "jpeg_progressive_grey"])
def test_a_progressive_jpeg_needs_all_its_scans(name: str) -> None:
    data = WHOLE[name]
    scans = data.split(b"\xff\xda")
    assert len(scans) > 5
    for count in range(2, len(scans)):
        assert refusal(b"\xff\xda".join(scans[:count]) + b"\xff\xd9").kind == "truncated"


def test_palettes_and_alpha_channels_may_be_transparent() -> None:
    assert not inspect(png_palette(PIXELS)).has_alpha
    assert inspect(png_palette(PIXELS, alphas=b"\x80")).has_alpha
    assert inspect(png(with_alpha(PIXELS, 3), PNG_RGBA)).has_alpha
    assert inspect(png(np.dstack([PLANE, PLANE]), PNG_GREY_ALPHA)).has_alpha
    assert inspect(webp_lossless(with_alpha(PIXELS, 3))).has_alpha
    assert inspect(webp_lossy(with_alpha(PIXELS, 3))).has_alpha
    assert inspect(tiff(with_alpha(PIXELS, 3))).has_alpha


def test_messages_hold_no_line_breaks() -> None:
    broken_chunk = png(PIXELS, PNG_RGB, extra=[(b"a\n\r\0", b"")])
    for data, _ in [*REFUSED.values(), (broken_chunk[:45], "")]:
        assert str(refusal(data)).isprintable()
