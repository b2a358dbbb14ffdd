"""The quick JPEG decoder gives OpenCV's pixels, to the last bit, or leaves the file to OpenCV."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.preprocess import _quick_jpeg, decode
from cervix_engine.values import Pixels
from engine.encoded_tiles import draw, encode, grey

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
            quick = _quick_jpeg(data)
            assert quick is not None
            assert np.array_equal(quick, _opencv(data)), f"{height}x{width} at quality {quality}"


@pytest.mark.parametrize("quality", QUALITIES)
def test_grey_tiles_decode_to_opencv_s_pixels(quality: int) -> None:
    data = encode(".jpg", grey(_tile(40, 57)), cv2.IMWRITE_JPEG_QUALITY, quality)
    quick = _quick_jpeg(data)
    assert quick is not None
    assert np.array_equal(quick, _opencv(data))


def test_a_cut_file_is_left_to_opencv_and_refused_as_before() -> None:
    data = _jpeg(_tile(64, 64), 90, SUBSAMPLINGS["4:2:0"])
    cut = data[: len(data) // 2] + b"\xff\xd9"
    assert _quick_jpeg(cut) is None
    with pytest.raises(TileDecodeError, match="truncated"):
        decode(cut, contract=CONTRACT)


def test_damaged_bytes_decode_as_opencv_decodes_them() -> None:
    data = bytearray(_jpeg(_tile(64, 64), 90, SUBSAMPLINGS["4:2:0"], cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
    random = np.random.default_rng(5)
    quick_ones = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in random.integers(len(data) // 3, len(data) - 2, 2):
            damaged[position] = int(random.integers(256))
        quick = _quick_jpeg(bytes(damaged))
        if quick is not None:
            quick_ones += 1
            assert np.array_equal(quick, _opencv(bytes(damaged)))
    assert quick_ones > 0, "damage that leaves a readable file was not among these"


@pytest.mark.data
def test_real_tiles_decode_to_opencv_s_pixels(data_root: Path, sipakmed_manifest: Path) -> None:
    with sipakmed_manifest.open(encoding="utf-8", newline="") as file:
        rows = [row["path"] for row in csv.DictReader(file)]
    quick_ones = 0
    for path in rows[::8]:
        data = (data_root / path).read_bytes()
        quick = _quick_jpeg(data)
        if quick is not None:
            quick_ones += 1
            assert np.array_equal(quick, _opencv(data)), path
    assert quick_ones == len(rows[::8])
