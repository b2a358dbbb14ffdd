"""From bytes to the model's pixels: the right ones, or a named refusal, and never anything in between."""

from __future__ import annotations

import csv
import errno
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ListingError, TileDecodeError, TileError, TileReadError
from cervix_engine.tiles.headers import inspect
from cervix_engine.tiles.preprocess import decode, preprocess, preprocess_into, read_tile, resize_into
from cervix_engine.tiles.tile import TileSize

from .encoded_tiles import (
    HEIGHT,
    PNG_GREY,
    PNG_RGB,
    WIDTH,
    Pixels,
    as_rgb,
    bmp,
    draw,
    encode,
    exif,
    grey,
    jpeg,
    jpeg_of_scans,
    jpeg_progressive,
    jpeg_with_segment,
    palette_of,
    png,
    png_palette,
    webp_chunk,
    webp_of,
    with_alpha,
)
from .refused_tiles import TRANSPARENT, one_hole
from .tiff_tiles import tiff
from .whole_tiles import whole_tiles

PIXELS = draw()
PLANE = grey(PIXELS)
BGR = np.ascontiguousarray(PIXELS[..., ::-1])
WHOLE = whole_tiles()
FILES = {name: data for name, (data, _) in WHOLE.items()}
BEYOND_OPENCV = {
    "tiff_grey_of_4_bits",
    "tiff_zstd",
    "tiff_lzma",
    "tiff_webp",
    "tiff_jpeg2000",
    "tiff_big_of_big_endian",
    "jpeg2000_grey",
}
KIND = re.compile(r"[a-z]+(_[a-z]+)*")


def plain_decode(data: bytes) -> Pixels:
    """OpenCV alone, by the book."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def refusal(data: bytes, contract: ModelContract) -> TileError:
    with pytest.raises(TileError) as caught:
        decode(data, contract=contract)
    assert KIND.fullmatch(caught.value.kind)
    return caught.value


# Whole tiles


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
def test_nothing_of_a_cut_tile_becomes_pixels(name: str, contract: ModelContract) -> None:
    data = FILES[name]
    for length in range(len(data)):
        assert isinstance(refusal(data[:length], contract), TileDecodeError)


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


# JPEG


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


# Transparency


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("depth", [0, 128, 254])
def test_one_transparent_pixel_is_enough(name: str, depth: int, contract: ModelContract) -> None:
    assert refusal(TRANSPARENT[name](one_hole(depth)), contract).kind == "transparent"


@pytest.mark.parametrize("name", TRANSPARENT)
def test_an_opaque_alpha_channel_is_dropped(name: str, contract: ModelContract) -> None:
    pixels = decode(TRANSPARENT[name](one_hole(255)), contract=contract)
    expected = as_rgb(PLANE) if "grey" in name else PIXELS
    if name != "webp lossy":
        np.testing.assert_array_equal(pixels, expected)
    assert np.abs(pixels.astype(int) - expected).mean() < 4


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


# Broken and hostile content


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


# Resize


def test_the_interpolation_follows_the_contract(contract: ModelContract) -> None:
    height, width = contract.input_size
    linear, area = cv2.INTER_LINEAR, cv2.INTER_AREA
    rules = {
        (height * 2, width * 3): area,
        (height + 1, width): area,
        (height, width + 1): area,
        (height // 2, width // 2): linear,
        (height - 1, width * 4): linear,  # one axis grows
        (height * 4, width - 1): linear,
        (1, 1): linear,
    }
    for size, interpolation in rules.items():
        pixels = draw(3, height=size[0], width=size[1])
        expected = cv2.resize(pixels, (width, height), interpolation=interpolation)
        actual = preprocess(png(pixels, PNG_RGB), contract=contract)
        np.testing.assert_array_equal(actual, expected, err_msg=str(size))
    noise = np.random.default_rng(0).integers(0, 256, (height * 2, width * 3, 3)).astype(np.uint8)
    by_area, by_line = (cv2.resize(noise, (width, height), interpolation=rule) for rule in (area, linear))
    assert (by_area != by_line).any(), "the two rules must be told apart by this test"
    np.testing.assert_array_equal(preprocess(png(noise, PNG_RGB), contract=contract), by_area)


def test_a_tile_of_the_right_size_is_copied(contract: ModelContract) -> None:
    height, width = contract.input_size
    pixels = draw(4, height=height, width=width)
    np.testing.assert_array_equal(preprocess(png(pixels, PNG_RGB), contract=contract), pixels)


def test_halving_by_area_is_the_mean_of_four_pixels(contract: ModelContract) -> None:
    height, width = contract.input_size
    pixels = (np.random.default_rng(1).integers(0, 64, (height * 2, width * 2, 3)) * 4).astype(np.uint8)
    mean = pixels.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(preprocess(png(pixels, PNG_RGB), contract=contract), mean.astype(np.uint8))


def test_a_slot_gets_the_same_pixels_and_its_neighbours_nothing(contract: ModelContract) -> None:
    slot = np.full((4, *contract.input_size, 3), 77, np.uint8)
    for name, data in FILES.items():
        slot[:] = 77
        size = preprocess_into(slot[2], data, contract=contract)
        assert size == TileSize(HEIGHT, WIDTH)
        np.testing.assert_array_equal(slot[2], preprocess(data, contract=contract), err_msg=name)
        assert (slot[[0, 1, 3]] == 77).all()


def test_preprocessing_twice_gives_the_same_bytes(contract: ModelContract) -> None:
    for name, data in FILES.items():
        first = preprocess(data, contract=contract)
        assert first.flags.c_contiguous
        assert first.tobytes() == preprocess(data, contract=contract).tobytes(), name


def test_the_decoded_size_is_that_before_the_resize(contract: ModelContract) -> None:
    turned = jpeg_with_segment(jpeg(PIXELS), 0xE1, exif(6))
    out = np.empty((*contract.input_size, 3), np.uint8)
    assert preprocess_into(out, turned, contract=contract) == TileSize(HEIGHT, WIDTH)
    applied = replace(contract, exif_policy="apply")
    assert preprocess_into(out, turned, contract=applied) == TileSize(WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((24, 32, 3), np.float32),
        np.zeros((24, 32, 4), np.uint8),
        np.zeros((24, 32, 6), np.uint8)[..., ::2],
        np.zeros((24, 64, 3), np.uint8)[:, ::2],
    ],
)
def test_an_array_that_could_not_be_filled_in_place_is_a_mistake(out: Any) -> None:
    with pytest.raises(ValueError, match="contiguous uint8"):
        resize_into(out, PIXELS)
    assert (out == 0).all()


# Reading


def test_the_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    for name, data in {
        "empty.jpg": b"",
        "tile.jpg": FILES["jpeg_420"],
        "neuf \n'é.png": bytes(range(256)) * 9000,
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read_tile(tmp_path / name) == data


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"tile\xff.jpg")
    path.write_bytes(b"data")
    assert read_tile(path) == b"data"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.jpg").write_bytes(b"data")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    assert read_tile(tmp_path / "link.jpg") == b"data"


def read_refusal(path: Path) -> TileReadError:
    with pytest.raises(TileReadError) as caught:
        read_tile(path)
    assert "tile" not in str(caught.value)  # the file's name
    assert caught.value.filename is None
    return caught.value


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "tile.d.jpg").mkdir()
    os.mkfifo(tmp_path / "tile.fifo.jpg")
    (tmp_path / "tile.zero.jpg").symlink_to("/dev/zero")
    before = open_descriptors()
    for name in ("tile.d.jpg", "tile.fifo.jpg", "tile.zero.jpg"):
        assert str(read_refusal(tmp_path / name)) == "not_a_file: expected a regular file"
    assert open_descriptors() == before


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    assert str(read_refusal(tmp_path / "tile.jpg")) == "unreadable: No such file or directory"
    (tmp_path / "tile.loop.jpg").symlink_to("tile.loop.jpg")
    assert read_refusal(tmp_path / "tile.loop.jpg").kind == "unreadable"
    assert str(read_refusal(tmp_path / ("tile" * 100))) == "unreadable: File name too long"


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path: Path) -> None:
    for name in ("tile\0.jpg", "tile\ud800.jpg"):
        assert read_refusal(tmp_path / name).kind == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "tile.jpg").write_bytes(b"data")
    (tmp_path / "tile.jpg").chmod(0)
    assert str(read_refusal(tmp_path / "tile.jpg")) == "unreadable: Permission denied"


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tile.jpg").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no space
    assert read_refusal(tmp_path / "tile.jpg").kind == "too_large"


# Real tiles


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


@pytest.mark.data
def test_real_tiles_that_lost_their_end_are_refused(data_root: Path, contract: ModelContract) -> None:
    for path in sorted((data_root / "tiles").rglob("*.jpg"))[::60]:
        data = read_tile(path)
        for cut in cuts_of_the_scan(data)[::100]:
            assert refusal(data[:cut], contract).kind == "truncated"
            assert refusal(data[:cut] + b"\xff\xd9", contract).kind in ("truncated", "corrupt"), (path.name, cut)


def test_every_format_that_opencv_writes_by_default_is_accepted(contract: ModelContract) -> None:
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"):
        assert decode(encode(suffix, PIXELS), contract=contract).shape == PIXELS.shape


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_that_has_run_out_is_not_the_tiles_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def exhausted(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "tile.png").write_bytes(b"x")
    monkeypatch.setattr("cervix_engine.tiles.preprocess._open_without_waiting", exhausted)
    with pytest.raises(ListingError, match=os.strerror(number)):
        read_tile(tmp_path / "tile.png")
