"""A TIFF's pixels are those that another decoder gives, or it is refused by name, and no broken strip is believed."""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import TileDecodeError, TileError
from cervix_engine.tiles.formats import tiff_page as tiff_format
from cervix_engine.tiles.headers import inspect
from cervix_engine.tiles.preprocess import decode

from .encoded_tiles import HEIGHT, Pixels, as_rgb, draw, grey, jpeg, palette_of, webp_lossless, with_alpha
from .tiff_tiles import (
    BLACK_IS_ZERO,
    BYTE_CODECS,
    DAMAGE,
    IN_YCBCR,
    PALETTE,
    RGB,
    TIFF_APERIO_RGB,
    TIFF_APERIO_YCBCR,
    TIFF_CODECS,
    TIFF_DEFLATE,
    TIFF_JPEG,
    TIFF_JPEG2000,
    TIFF_LZMA,
    TIFF_LZW,
    TIFF_WEBP,
    WHITE_IS_ZERO,
    YCBCR,
    TiffTags,
    damaged,
    jpeg_tiff,
    packed,
    palette_tags,
    split_tables,
    tiff,
    tiff_of_levels,
)

CONTRACT = ModelContract(SIPAKMED_CLASSES)
PIXELS = draw()
PLANE = grey(PIXELS)
INDICES, COLOURS = palette_of(PIXELS)
LAYOUTS: dict[str, dict[str, Any]] = {"one strip": {}, "strips": {"rows_per_strip": 7}, "tiles": {"tile": (16, 32)}}
IMAGE_CODECS = (TIFF_JPEG, TIFF_WEBP, TIFF_APERIO_YCBCR, TIFF_APERIO_RGB, TIFF_JPEG2000)


def colour_map(*, scale: int = 257) -> TiffTags:
    filled = np.zeros((256, 3), np.uint16)
    filled[: len(COLOURS)] = COLOURS
    return palette_tags((filled * scale).T.ravel().tolist())


# Kind of picture -> samples, tags, and the pixels that they stand for.
PICTURES = {
    "rgb": (PIXELS, {}, PIXELS),
    "grey": (PLANE, {}, as_rgb(PLANE)),
    "inverted": (PLANE, {262: ("H", [WHITE_IS_ZERO])}, as_rgb(255 - PLANE)),
    "palette": (INDICES, colour_map(), PIXELS),
}


def refusal(data: bytes) -> TileError:
    with pytest.raises(TileError) as caught:
        decode(data, contract=CONTRACT)
    return caught.value


def outcome(data: bytes) -> Pixels | str:
    """The pixels, or the kind of refusal."""
    try:
        return decode(data, contract=CONTRACT)
    except TileError as error:
        return error.kind


def pillow(data: bytes) -> Pixels | None:
    """What libtiff says by way of Pillow, which takes its errors for errors."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


def opencv(data: bytes) -> Pixels | None:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if decoded is None else np.asarray(decoded, np.uint8)


# Every compression


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", BYTE_CODECS)
def test_a_whole_tiff_decodes_to_its_pixels(compression: int, layout: str, picture: str) -> None:
    samples, tags, expected = PICTURES[picture]
    for order in "<>":
        for big in (False, True):
            for predicted in (False, True) if compression in tiff_format.PREDICTED else (False,):
                for planar in (False, True)[: samples.ndim - 1]:
                    data = tiff(
                        samples,
                        order=order,
                        big=big,
                        compression=compression,
                        predicted=predicted,
                        planar=planar,
                        tags=tags,
                        **LAYOUTS[layout],
                    )
                    np.testing.assert_array_equal(decode(data, contract=CONTRACT), expected)
                    if not (big and order == ">"):  # which Pillow does not read
                        np.testing.assert_array_equal(pillow(data), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [TIFF_WEBP, TIFF_APERIO_YCBCR, TIFF_APERIO_RGB, TIFF_JPEG2000])
def test_segments_that_are_images_decode_to_their_pixels(compression: int, layout: str) -> None:
    data = tiff(PIXELS, compression=compression, **LAYOUTS[layout])
    np.testing.assert_array_equal(decode(data, contract=CONTRACT), PIXELS)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), PIXELS)


def test_every_compression_is_decoded_or_named() -> None:
    decoded = {*BYTE_CODECS, *IMAGE_CODECS}
    whole = tiff(PIXELS)
    at = whole.index(b"\x03\x01\x03\0\x01\0\0\0") + 8
    for compression in range(65_536):
        data = whole[:at] + compression.to_bytes(2, "little") + whole[at + 2 :]
        if compression in decoded:
            assert inspect(data).format == "tiff"
        else:
            with pytest.raises(TileDecodeError, match=f"^unsupported_compression: TIFF compression {compression}$"):
                inspect(data)


# JPEG


@pytest.mark.parametrize("shared", [False, True], ids=["own tables", "shared tables"])
@pytest.mark.parametrize("layout", [{}, {"rows_per_strip": 16}, {"tile": (16, 32)}, {"tile": (64, 64)}], ids=str)
@pytest.mark.parametrize("sampling", [0x111111, 0x211111, 0x221111, 0x411111, 0x121111], ids=hex)
def test_jpeg_segments_decode_to_opencvs_pixels(sampling: int, layout: dict[str, Any], shared: bool) -> None:
    for samples, model in ((PIXELS, YCBCR), (PLANE, BLACK_IS_ZERO), (PLANE, WHITE_IS_ZERO)):
        data = jpeg_tiff(samples, sampling=sampling, model=model, shared=shared, **layout)
        np.testing.assert_array_equal(decode(data, contract=CONTRACT), opencv(data))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_tiffs_that_libtiff_writes_decode_to_its_pixels(mode: str) -> None:
    for rows in (8, 16, HEIGHT):
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).convert(mode).save(buffer, "TIFF", compression="jpeg", tiffinfo={278: rows})
        data = buffer.getvalue()
        np.testing.assert_array_equal(decode(data, contract=CONTRACT), pillow(data))
        np.testing.assert_array_equal(decode(data, contract=CONTRACT), opencv(data))


def test_jpegs_that_hold_rgb_decode_to_their_pixels() -> None:
    for layout in ({"rowsperstrip": 16}, {"tile": (16, 16)}):
        buffer = io.BytesIO()
        options = {"outcolorspace": "rgb", "level": 90}
        tifffile.imwrite(buffer, PIXELS, photometric="rgb", compression="jpeg", compressionargs=options, **layout)
        data = buffer.getvalue()
        np.testing.assert_array_equal(decode(data, contract=CONTRACT), opencv(data))
        assert np.abs(decode(data, contract=CONTRACT).astype(int) - PIXELS).mean() < 4


def test_a_jpeg_that_says_other_colours_than_its_tiff_is_refused() -> None:
    data = jpeg_tiff(PIXELS, sampling=0x111111, model=RGB)
    assert refusal(data).kind == "unsupported_colour"


def first(data: bytes, _: Pixels) -> bytes:
    return data


def test_a_jpeg_of_other_components_or_size_is_refused() -> None:
    for broken in (jpeg(PLANE), jpeg(PIXELS[:-1]), jpeg(PIXELS[:, :-1]), webp_lossless(PIXELS), b"", b"\xff\xd8"):
        data = tiff(PIXELS, compression=TIFF_JPEG, encode_segment=partial(first, broken), tags=IN_YCBCR)
        assert refusal(data).kind in ("corrupt", "truncated")
    tables, left = split_tables(jpeg(PIXELS))
    data = tiff(PIXELS, compression=TIFF_JPEG, encode_segment=lambda _: left, tags=IN_YCBCR)
    assert refusal(data).kind == "corrupt"
    data = tiff(
        PIXELS, compression=TIFF_JPEG, encode_segment=lambda _: left, tags={**IN_YCBCR, 347: ("B", tables[:40])}
    )
    assert refusal(data).kind in ("corrupt", "truncated")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_jpeg_is_refused_though_libtiff_fills_it(layout: str) -> None:
    for share in np.linspace(0, 0.95, 40):
        for end in (b"", b"\xff\xd9"):

            def cut(piece: Pixels, share: float = float(share), end: bytes = end) -> bytes:
                data = jpeg(piece)
                start = data.rindex(b"\xff\xda") + 14
                return data[: start + int(share * (len(data) - start))] + end

            data = tiff(PIXELS, compression=TIFF_JPEG, encode_segment=cut, tags=IN_YCBCR, **LAYOUTS[layout])
            assert refusal(data).kind in ("corrupt", "truncated")


# Colours, depths and layouts


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_become_eight(bits: int) -> None:
    random = np.random.default_rng(bits)
    levels = random.integers(0, 1 << bits, (7, 13)).astype(np.uint8)
    colours = random.integers(0, 1 << 16, (3, 1 << bits))
    shades = levels * (255 // ((1 << bits) - 1))
    for compression in BYTE_CODECS:
        for model, expected in (
            (WHITE_IS_ZERO, as_rgb(255 - shades)),
            (BLACK_IS_ZERO, as_rgb(shades)),
            (PALETTE, (colours >> 8)[:, levels].transpose(1, 2, 0).astype(np.uint8)),
        ):
            tags = {256: ("I", [13]), 258: ("H", [bits]), 262: ("H", [model]), 320: ("H", colours.ravel().tolist())}
            data = tiff(packed(levels, bits), compression=compression, rows_per_strip=3, tags=tags)
            np.testing.assert_array_equal(decode(data, contract=CONTRACT), expected)
            with_libtiff = opencv(data)
            if with_libtiff is not None:  # where OpenCV has the codec and the depth
                np.testing.assert_array_equal(with_libtiff, expected)


def test_a_palette_of_eight_bits_is_taken_as_libtiff_takes_it() -> None:
    tags = colour_map(scale=1)
    data = tiff(INDICES, tags=tags)
    np.testing.assert_array_equal(decode(data, contract=CONTRACT), PIXELS)
    np.testing.assert_array_equal(decode(data, contract=CONTRACT), opencv(data))


def test_reversed_bits_are_turned_back() -> None:
    def reversed_bits(piece: Pixels) -> bytes:
        stored = np.frombuffer(TIFF_CODECS[TIFF_LZW](piece), np.uint8)
        return np.packbits(np.unpackbits(stored).reshape(-1, 8)[:, ::-1]).tobytes()

    data = tiff(PIXELS, compression=TIFF_LZW, encode_segment=reversed_bits, tags={266: ("H", [2])})
    np.testing.assert_array_equal(decode(data, contract=CONTRACT), PIXELS)
    np.testing.assert_array_equal(opencv(data), PIXELS)


@pytest.mark.parametrize("compression", BYTE_CODECS)
def test_a_last_strip_may_be_filled_up(compression: int) -> None:
    def filled_up(piece: Pixels) -> bytes:
        return bytes(TIFF_CODECS[compression](np.pad(piece, [(0, 16 - len(piece)), (0, 0), (0, 0)])))

    data = tiff(PIXELS, compression=compression, encode_segment=filled_up, rows_per_strip=16)
    np.testing.assert_array_equal(decode(data, contract=CONTRACT), PIXELS)


def test_grey_with_an_opaque_alpha_channel_is_grey() -> None:
    for planar in (False, True):
        data = tiff(np.dstack([PLANE, np.full_like(PLANE, 255)]), planar=planar, tags={338: ("H", [2])})
        np.testing.assert_array_equal(decode(data, contract=CONTRACT), as_rgb(PLANE))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_an_alpha_channel_of_a_webp_in_a_tiff_must_be_opaque(kind: int) -> None:
    tags = {338: ("H", [kind])}
    opaque = tiff(with_alpha(PIXELS, 255), compression=TIFF_WEBP, tags=tags)
    np.testing.assert_array_equal(decode(opaque, contract=CONTRACT), PIXELS)
    assert refusal(tiff(with_alpha(PIXELS, 128), compression=TIFF_WEBP, tags=tags)).kind == "transparent"


# Damage

WITH_CHECKSUM = {TIFF_DEFLATE, 32946, TIFF_LZMA}


def independent(data: bytes, compression: int) -> Pixels | None:
    """What another decoder gives: libtiff, or tifffile where libtiff lacks the codec."""
    if compression in BYTE_CODECS:
        return pillow(data)
    try:
        return np.asarray(tifffile.imread(io.BytesIO(data)), np.uint8)
    except (RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", TIFF_CODECS)
def test_no_pixel_is_believed_that_no_decoder_gave(compression: int, layout: str, damage: str) -> None:
    pictures = ("rgb", "grey", "palette") if compression in BYTE_CODECS else ("rgb",)
    for picture in pictures:
        samples, tags, expected = PICTURES[picture]
        for share in np.linspace(0, 1, 40, endpoint=False):
            encode_segment = damaged(TIFF_CODECS[compression], damage, float(share))
            data = tiff(samples, compression=compression, encode_segment=encode_segment, tags=tags, **LAYOUTS[layout])
            seen = outcome(data)
            if isinstance(seen, str):
                assert seen in {"corrupt", "truncated"} or compression in tiff_format.JPEG2000S
            elif compression in WITH_CHECKSUM:
                np.testing.assert_array_equal(seen, expected)
            elif not np.array_equal(seen, expected):
                np.testing.assert_array_equal(seen, independent(data, compression))


@pytest.mark.parametrize("by_sub_pages", [False, True])
def test_a_pyramid_of_a_slides_size_is_no_tile(by_sub_pages: bool) -> None:
    words = "whole_slide: a TIFF of 2304x2304 pixels .*: cervix-batch --whole-slides cuts it into tiles"
    with pytest.raises(TileDecodeError, match=words):
        inspect(tiff_of_levels(2304, by_sub_pages=by_sub_pages))
    # As some programs write any picture.
    small = decode(tiff_of_levels(512, by_sub_pages=by_sub_pages), contract=CONTRACT)
    assert small.shape == (512, 512, 3)


def test_a_large_tile_may_have_a_thumbnail_and_a_slide_other_pictures() -> None:
    assert inspect(tiff_of_levels(2304, tiled=False)).width == 2304
    with pytest.raises(TileDecodeError, match="whole_slide"):
        inspect(tiff_of_levels(2304, tiled=False, subfile=0))


def test_codecs_are_loaded_with_the_first_tiff_only() -> None:
    code = """
import sys
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.tiles.preprocess import decode
for data in map(bytes.fromhex, sys.argv[1:]):
    decode(data, contract=ModelContract(SIPAKMED_CLASSES))
    print("imagecodecs" in sys.modules)
"""
    files = [data.hex() for data in (jpeg(PIXELS), tiff(PIXELS, compression=TIFF_LZW))]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]
