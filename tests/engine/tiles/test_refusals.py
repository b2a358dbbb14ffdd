"""What is no whole tile of one meaning is refused by name, and never anything in between."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileDecodeError, TileError
from cervix_engine.tiles.headers import inspect
from cervix_engine.tiles.preprocess import decode, preprocess_into, read_tile

from .decoded_tiles import FILES, WHOLE, plain_decode
from .encoded_tiles import (
    HEIGHT,
    PNG_GREY,
    PNG_RGB,
    WIDTH,
    exif,
    jpeg_of_scans,
    jpeg_progressive,
    jpeg_with_segment,
    palette_of,
    png,
    png_palette,
    webp_chunk,
    webp_of,
)
from .refused_tiles import PIXELS, PLANE, TRANSPARENT, one_hole
from .tiff_tiles import tiff

KIND = re.compile(r"[a-z]+(_[a-z]+)*")


def refusal(data: bytes, contract: ModelContract) -> TileError:
    with pytest.raises(TileError) as caught:
        decode(data, contract=contract)
    assert KIND.fullmatch(caught.value.kind)
    return caught.value


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_of_a_cut_tile_becomes_pixels(name: str, contract: ModelContract) -> None:
    data = FILES[name]
    for length in range(len(data)):
        assert isinstance(refusal(data[:length], contract), TileDecodeError)


def test_cmyk_is_refused_though_the_decoder_would_not(contract: ModelContract) -> None:
    data = jpeg_of_scans(PLANE, components=4)
    assert plain_decode(data).shape == PIXELS.shape
    assert refusal(data, contract).kind == "unsupported_colour"


def cuts_of_the_scan(data: bytes) -> range:
    """Where the last scan of a JPEG can be cut, but for its last bytes: one block more or less is not seen."""
    start = data.rindex(b"\xff\xda") + 14
    return range(start, start + (len(data) - start) * 3 // 4, 5)


@pytest.mark.parametrize("name", ["jpeg_420", "jpeg_444", "jpeg_422", "jpeg_grey", "jpeg_restarts"])
@pytest.mark.parametrize("policy", ["ignore", "apply"])
def test_a_short_scan_is_seen_behind_an_end_marker(name: str, policy: Any, contract: ModelContract) -> None:
    data = jpeg_with_segment(FILES[name], 0xE1, exif(6))
    for cut in cuts_of_the_scan(data):
        error = refusal(data[:cut] + b"\xff\xd9", replace(contract, exif_policy=policy))
        assert error.kind in ("truncated", "corrupt")


def test_a_progressive_jpeg_that_lost_scans_is_seen_behind_an_end_marker(contract: ModelContract) -> None:
    data = jpeg_progressive(PIXELS)
    last = data.rindex(b"\xff\xda")
    for cut in range(data.index(b"\xff\xda"), last, 7):
        assert refusal(data[:cut] + b"\xff\xd9", contract).kind in ("truncated", "corrupt")


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("depth", [0, 128, 254])
def test_one_transparent_pixel_is_enough(name: str, depth: int, contract: ModelContract) -> None:
    assert refusal(TRANSPARENT[name](one_hole(depth)), contract).kind == "transparent"


def test_transparent_colours_are_refused_where_they_are_used(contract: ModelContract) -> None:
    indices, colours = palette_of(PIXELS)
    assert refusal(png_palette(PIXELS, alphas=b"\x80"), contract).kind == "transparent"
    unused = np.vstack([colours, [[1, 2, 3]]]).astype(np.uint8)
    extra = [(b"PLTE", unused.tobytes()), (b"tRNS", b"\xff" * len(colours) + b"\0")]
    np.testing.assert_array_equal(decode(png(indices, 3, extra=extra), contract=contract), PIXELS)
    used = [(b"tRNS", struct.pack(">3H", *PIXELS[0, 0]))]
    assert refusal(png(PIXELS, PNG_RGB, extra=used), contract).kind == "transparent"


def test_a_transparent_grey_is_refused_where_it_is_used(contract: ModelContract) -> None:
    for value in (int(PLANE[0, 0]), int(PLANE[-1, -1]), 0x100 | int(PLANE[0, 0])):
        data = png(PLANE, PNG_GREY, extra=[(b"tRNS", struct.pack(">H", value))])
        assert refusal(data, contract).kind == "transparent"


def test_a_png_with_one_wrong_bit_is_refused(contract: ModelContract) -> None:
    data = FILES["png_rgb"]
    pixels_at = data.index(b"IDAT")
    for position in range(pixels_at, len(data) - 12):
        broken = bytearray(data)
        broken[position] ^= 1
        assert isinstance(refusal(bytes(broken), contract), TileDecodeError)


def test_a_webp_whose_length_was_mended_is_refused(contract: ModelContract) -> None:
    for name in ("webp_lossless", "webp_lossy"):
        body = FILES[name][20:]
        for length in range(0, len(body) - 2, 3):
            mended = webp_of(webp_chunk(FILES[name][12:16], body[:length]))
            assert isinstance(refusal(mended, contract), TileDecodeError)


def test_a_tiff_whose_strip_was_shortened_is_refused(contract: ModelContract) -> None:
    for missing in (1, 100, HEIGHT * WIDTH * 3 - 1):
        mended = tiff(PIXELS, tags={279: ("I", [HEIGHT * WIDTH * 3 - missing])})[:-missing]
        assert refusal(mended, contract).kind == "corrupt"


EDITS = st.one_of(
    st.tuples(st.just("set"), st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.just(0.0)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.just(0.0)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 64), st.just(0.0)),
    st.tuples(st.just("move"), st.floats(0, 1), st.integers(1, 64), st.floats(0, 1)),
)
# Half of all edits near the front: that is where the meaning is.
MUTATIONS = st.lists(st.tuples(EDITS, st.booleans()), min_size=1, max_size=5)


def edit(data: bytearray, operation: str, where: float, amount: int, to: float, *, in_front: bool) -> None:
    at = int(where * (min(len(data), 120) if in_front else len(data)))
    if operation in ("set", "flip") and data:
        data[at] = amount if operation == "set" else data[at] ^ 1 << amount
    if operation in ("cut", "move"):
        piece = data[at : at + amount]
        del data[at : at + amount]
        if operation == "move":
            data[int(to * len(data)) : 0] = piece


@pytest.mark.parametrize("policy", ["ignore", "apply"])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(FILES)), mutations=MUTATIONS)
def test_damaged_tiles_are_decoded_or_refused_and_nothing_else(
    policy: Any, contract: ModelContract, name: str, mutations: Any
) -> None:
    data = bytearray(FILES[name])
    for (operation, where, amount, to), in_front in mutations:
        edit(data, operation, where, amount, to, in_front=in_front)
    out = np.full((*contract.input_size, 3), 77, np.uint8)
    error = None
    try:
        size = preprocess_into(out, bytes(data), contract=replace(contract, exif_policy=policy))
    except TileError as caught:
        error = caught
    if error is None:
        header = inspect(bytes(data))
        assert {size.height, size.width} == {header.height, header.width}
    else:
        assert KIND.fullmatch(error.kind)
        assert str(error).isprintable()
        assert (out == 77).all()


@given(st.binary(max_size=300), st.sampled_from(sorted(FILES)))
@settings(max_examples=300, deadline=None)
def test_noise_behind_a_signature_is_refused(contract: ModelContract, noise: bytes, name: str) -> None:
    with pytest.raises(TileError):
        decode(FILES[name][:16] + noise, contract=contract)


@pytest.mark.data
def test_real_tiles_that_lost_their_end_are_refused(data_root: Path, contract: ModelContract) -> None:
    for path in sorted((data_root / "tiles").rglob("*.jpg"))[::60]:
        data = read_tile(path)
        for cut in cuts_of_the_scan(data)[::100]:
            assert refusal(data[:cut], contract).kind == "truncated"
            assert refusal(data[:cut] + b"\xff\xd9", contract).kind in ("truncated", "corrupt"), (path.name, cut)
