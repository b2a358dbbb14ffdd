"""The quick JPEG decoder gives OpenCV's pixels, to the last bit, or leaves the file to OpenCV."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.jpeg import quick_decode
from cervix_engine.tiles.preprocess import decode, preprocess
from cervix_engine.values import Pixels
from engine.tiles.encoded_tiles import draw, encode, exif, grey, jpeg_with_segment

CONTRACT = ModelContract(SIPAKMED_CLASSES)
QUALITIES = (1, 5, 25, 50, 75, 85, 90, 95, 100)
SIZES = ((1, 1), (1, 40), (33, 1), (7, 9), (8, 8), (17, 23), (40, 56), (64, 64), (100, 101), (224, 224))
SUBSAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def _opencv(data: bytes) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags), np.uint8)


def _jpeg(pixels: Pixels, quality: int, subsampling: int, *options: int) -> bytes:
    return encode(
        ".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampling, *options
    )


def _tile(height: int, width: int) -> Pixels:
    """A drawn tile with noise, so that every coefficient counts."""
    noise = np.random.default_rng(height * width).integers(-40, 41, (height, width, 3))
    return (draw(height=height, width=width) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("progressive", [0, 1], ids=["sequential", "progressive"])
def test_every_quality_and_size_decodes_to_opencv_s_pixels(subsampling: str, progressive: int) -> None:
    for height, width in SIZES:
        tile = _tile(height, width)
        for quality in QUALITIES:
            extra = (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, quality % 3)
            data = _jpeg(tile, quality, SUBSAMPLINGS[subsampling], *extra)
            quick = quick_decode(data)
            assert quick is not None
            assert np.array_equal(quick, _opencv(data)), f"{height}x{width} at quality {quality}"


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize(("divisor", "flag"), [(2, cv2.IMREAD_REDUCED_COLOR_2), (4, cv2.IMREAD_REDUCED_COLOR_4)])
def test_shrunk_tiles_decode_to_opencv_s_pixels(subsampling: str, divisor: int, flag: int) -> None:
    for height, width in SIZES:
        if min(height, width) >= 8:
            data = _jpeg(_tile(height, width), 90, SUBSAMPLINGS[subsampling])
            quick = quick_decode(data, (-(-height // divisor), -(-width // divisor)))
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            assert quick is not None
            assert np.array_equal(quick[..., ::-1], np.asarray(expected)), f"{height}x{width}"


@pytest.mark.parametrize("quality", QUALITIES)
def test_grey_tiles_decode_to_opencv_s_pixels(quality: int) -> None:
    data = encode(".jpg", grey(_tile(40, 57)), cv2.IMWRITE_JPEG_QUALITY, quality)
    quick = quick_decode(data)
    assert quick is not None
    assert np.array_equal(quick, _opencv(data))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("progressive", [0, 1], ids=["sequential", "progressive"])
def test_a_scan_that_lost_a_single_byte_is_refused_as_cut(subsampling: str, progressive: int) -> None:
    data = _jpeg(_tile(64, 64), 90, SUBSAMPLINGS[subsampling], cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    for missing in range(1, 40):
        cut = data[: -2 - missing] + b"\xff\xd9"
        for change in ({}, {"exif_policy": "apply"}):
            for data_of in (cut, jpeg_with_segment(cut, 0xE1, exif(6))):
                with pytest.raises(TileDecodeError, match="truncated"):
                    decode(data_of, contract=replace(CONTRACT, **change))  # type: ignore[arg-type]
        with pytest.raises(TileDecodeError, match="truncated"):
            preprocess(cut, contract=replace(CONTRACT, input_size=(32, 32), scaled_decoding=True))


def test_damaged_bytes_decode_as_opencv_decodes_them_or_are_refused() -> None:
    data = bytearray(_jpeg(_tile(64, 64), 90, SUBSAMPLINGS["4:2:0"], cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
    random = np.random.default_rng(5)
    kinds = Counter[str]()
    for _ in range(900):
        damaged = bytearray(data)
        for position in random.integers(len(data) // 3, len(data) - 2, 1):
            damaged[position] = int(random.integers(256))
        try:
            quick = quick_decode(bytes(damaged))
        except TileDecodeError as error:
            kinds[error.kind] += 1
            continue
        if quick is not None:
            kinds["ok"] += 1
            assert np.array_equal(quick, _opencv(bytes(damaged)))
    assert set(kinds) >= {"ok", "truncated"}, "damage of each kind was not among these"


def test_codes_that_the_tables_do_not_have_are_refused() -> None:
    data = _jpeg(_tile(64, 64), 90, SUBSAMPLINGS["4:2:0"])
    for at in range(len(data) // 2, len(data) - 40, 37):
        ones = b"\xff\0" * 8
        with pytest.raises(TileDecodeError, match="corrupt"):
            decode(data[:at] + ones + data[at + len(ones) :], contract=CONTRACT)


@pytest.mark.data
def test_real_tiles_decode_to_opencv_s_pixels(data_root: Path, sipakmed_manifest: Path) -> None:
    with sipakmed_manifest.open(encoding="utf-8", newline="") as file:
        rows = [row["path"] for row in csv.DictReader(file)]
    quick_ones = 0
    for path in rows[::8]:
        data = (data_root / path).read_bytes()
        quick = quick_decode(data)
        if quick is not None:
            quick_ones += 1
            assert np.array_equal(quick, _opencv(data)), path
    assert quick_ones == len(rows[::8])
