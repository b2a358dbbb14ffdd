"""From bytes to pixels: each whole tile of every format gives the right ones."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.preprocess import decode, read_tile

from .decoded_tiles import FILES, WHOLE, plain_decode
from .encoded_tiles import as_rgb, bmp, draw, encode, exif, jpeg, jpeg_of_scans, jpeg_with_segment, with_alpha
from .refused_tiles import BGR, PIXELS, PLANE, TRANSPARENT, one_hole

BEYOND_OPENCV = {
    "tiff_grey_of_4_bits",
    "tiff_zstd",
    "tiff_lzma",
    "tiff_webp",
    "tiff_jpeg2000",
    "tiff_big_of_big_endian",
    "jpeg2000_grey",
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_tile_decodes_to_its_pixels(name: str, contract: ModelContract) -> None:
    data, expected = WHOLE[name]
    pixels = decode(data, contract=contract)
    assert pixels.dtype == np.uint8
    if name not in BEYOND_OPENCV:
        np.testing.assert_array_equal(pixels, plain_decode(data))
    if expected is not None:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", [name for name, (_, expected) in WHOLE.items() if expected is None])
def test_a_lossy_tile_decodes_close_to_what_was_drawn(name: str, contract: ModelContract) -> None:
    # Red and blue exchanged, rows upside down or a wrong scale would be far off.
    drawn = as_rgb(PLANE) if "grey" in name else PIXELS
    if name == "jpeg_three_scans":  # luma and both chromas are the same plane: no picture of anything
        drawn = plain_decode(jpeg_of_scans(PLANE, components=3))
    difference = np.abs(decode(FILES[name], contract=contract).astype(int) - drawn)
    assert difference.mean() < 4


@pytest.mark.parametrize("name", WHOLE)
def test_trailing_bytes_change_nothing(name: str, contract: ModelContract) -> None:
    pixels = decode(FILES[name], contract=contract)
    for garbage in (b"\0" * 7, b"trailing text\r\n", FILES["jpeg_420"]):
        np.testing.assert_array_equal(decode(FILES[name] + garbage, contract=contract), pixels)


@pytest.mark.parametrize("header_size", [40, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_bitmaps_of_every_header(header_size: int, top_down: bool, contract: ModelContract) -> None:
    for samples in (BGR, with_alpha(BGR, 0)):
        data = bmp(samples, header_size=header_size, top_down=top_down)
        np.testing.assert_array_equal(decode(data, contract=contract), PIXELS)


def test_sixteen_bit_bitmaps_have_five_bits_a_channel(contract: ModelContract) -> None:
    coarse = PIXELS & 0xF8
    red, green, blue = (coarse[..., channel].astype(np.uint16) for channel in range(3))
    plain = bmp(np.asarray(red << 7 | green << 2 | blue >> 3, np.uint16))
    np.testing.assert_array_equal(decode(plain, contract=contract), coarse)
    masked = bmp(np.asarray(red << 8 | green << 3 | blue >> 3, np.uint16), masks=(0xF800, 0x7E0, 0x1F))
    np.testing.assert_array_equal(decode(masked, contract=contract), coarse)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_turns_the_pixels_only_where_the_contract_says_so(
    orientation: int, contract: ModelContract
) -> None:
    plain = jpeg(PIXELS)
    upright = decode(plain, contract=contract)
    stored = jpeg_with_segment(plain, 0xE1, exif(orientation, thumbnail=jpeg(draw(1, height=8, width=8))))
    np.testing.assert_array_equal(decode(stored, contract=contract), upright)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright),
    }
    np.testing.assert_array_equal(decode(stored, contract=replace(contract, exif_policy="apply")), turned[orientation])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_turns_nothing(orientation: int, contract: ModelContract) -> None:
    data = jpeg_with_segment(jpeg(PIXELS), 0xE1, exif(orientation))
    applied = decode(data, contract=replace(contract, exif_policy="apply"))
    np.testing.assert_array_equal(applied, decode(jpeg(PIXELS), contract=contract))


@pytest.mark.parametrize("value", [0, 127, 128, 129, 255])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 33)])
@pytest.mark.parametrize("policy", ["ignore", "apply"])
def test_a_plain_grey_tile_is_no_short_scan(
    value: int, size: tuple[int, int], policy: Any, contract: ModelContract
) -> None:
    data = jpeg(np.full((*size, 3), value, np.uint8))
    pixels = decode(data, contract=replace(contract, exif_policy=policy))
    np.testing.assert_array_equal(pixels, np.full((*size, 3), value))
    # Fill bytes before the end marker are allowed, and no sign of anything.
    filled = decode(data[:-2] + b"\xff\xff\xff\xd9", contract=replace(contract, exif_policy=policy))
    np.testing.assert_array_equal(filled, pixels)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_an_opaque_alpha_channel_is_dropped(name: str, contract: ModelContract) -> None:
    pixels = decode(TRANSPARENT[name](one_hole(255)), contract=contract)
    expected = as_rgb(PLANE) if "grey" in name else PIXELS
    if name != "webp lossy":
        np.testing.assert_array_equal(pixels, expected)
    assert np.abs(pixels.astype(int) - expected).mean() < 4


@pytest.mark.data
def test_every_real_tile_is_accepted_and_decoded_plainly(
    data_root: Path, sipakmed_manifest: Path, contract: ModelContract
) -> None:
    paths = sorted((data_root / "tiles").rglob("*.jpg"))
    with sipakmed_manifest.open(encoding="utf-8", newline="") as file:
        assert len(paths) == sum(1 for _ in csv.DictReader(file))
    different = []
    for path in paths:
        data = read_tile(path)
        if not np.array_equal(decode(data, contract=contract), plain_decode(data)):
            different.append(path.name)
    assert different == []


def test_every_format_that_opencv_writes_by_default_is_accepted(contract: ModelContract) -> None:
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"):
        assert decode(encode(suffix, PIXELS), contract=contract).shape == PIXELS.shape
