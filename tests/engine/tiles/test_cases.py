"""Small files that a run once predicted from pixels of its own making, or refused though they are whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.preprocess import decode
from cervix_engine.values import Pixels

CASES = Path(__file__).parent / "cases"
REFUSED = {"dmg_deflate.tif": "corrupt", "short_lzw.tif": "corrupt", "short_jpeg.tif": "truncated"}


def plain_decode(name: str) -> Pixels:
    data = (CASES / name).read_bytes()
    if name.endswith(".tif"):
        return np.asarray(tifffile.imread(io.BytesIO(data), key=0), np.uint8)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", sorted({path.name for path in CASES.iterdir()} - REFUSED.keys()))
def test_a_whole_file_has_the_pixels_that_another_decoder_gives(name: str, contract: ModelContract) -> None:
    pixels = decode((CASES / name).read_bytes(), contract=contract)
    np.testing.assert_array_equal(pixels, plain_decode(name))
    if not name.startswith("g8"):  # all of them show the same picture
        np.testing.assert_array_equal(pixels, plain_decode("bigtiff.tif"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_strip_is_refused(name: str, contract: ModelContract) -> None:
    with pytest.raises(TileDecodeError) as caught:
        decode((CASES / name).read_bytes(), contract=contract)
    assert caught.value.kind == REFUSED[name]
