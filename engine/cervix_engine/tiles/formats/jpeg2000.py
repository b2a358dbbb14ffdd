"""JPEG 2000 (ITU-T T.800), bare or in a JP2 file: what its markers say, and the pixels of what is whole."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import TileHeader, corrupt, refuse_depth, truncated
from cervix_engine.values import Pixels

JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
SIGNATURES = (JP2_SIGNATURE, b"\xff\x4f\xff\x51")

_SIZE, _CODING_STYLE, _TILE_PART, _END = 0xFF51, 0xFF52, 0xFF90, 0xFFD9
_SRGB, _GREY = 16, 17
_BY_NUMBER = 1


@dataclass(frozen=True, slots=True)
class Codestream:
    """What is known of an image before it is decoded.

    Attributes:
        height, width: in pixels.
        components: 1 (grey) or 3.
        says_rgb: whether it states by itself that its components are red, green and blue.
    """

    height: int
    width: int
    components: int
    says_rgb: bool

    @property
    def header(self) -> TileHeader:
        return TileHeader("jpeg2000", self.height, self.width, decode=partial(decode, codestream=self))


def read_header(data: bytes) -> TileHeader:
    return read_codestream(data).header


def read_codestream(data: bytes) -> Codestream:
    """Read the markers of a file or of a bare codestream, up to its end.

    Raises:
        TileDecodeError: it is cut, or has no single meaning as 8-bit RGB.
    """
    if not data.startswith(SIGNATURES):
        raise corrupt("content is not JPEG 2000")
    start, in_srgb = _boxes(data) if data.startswith(JP2_SIGNATURE) else (0, False)
    height, width, components, tiles = _size(data, start)
    if min(height, width) < 1:
        return Codestream(height, width, components, says_rgb=False)  # which nobody accepts
    transformed = _whole_tiles(data, start, tiles)
    return Codestream(height, width, components, says_rgb=components == 3 and (in_srgb or transformed))


def decode(data: bytes, *, codestream: Codestream) -> Pixels:
    """Decode to `uint8 (height, width, 3)`; grey becomes three equal channels.

    Raises:
        TileDecodeError: the decoder refuses it.
    """
    import imagecodecs  # takes milliseconds that only who meets a JPEG 2000 pays

    try:
        pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    except (RuntimeError, ValueError) as error:
        raise corrupt("the decoder refused the data") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    expected = (codestream.height, codestream.width, codestream.components)
    if pixels.dtype != np.uint8 or pixels.shape != expected:
        raise corrupt(f"decoded to {pixels.dtype} {pixels.shape}, the header says {expected}")
    return pixels if codestream.components == 3 else np.repeat(pixels, 3, axis=2)


def _boxes(data: bytes) -> tuple[int, bool]:
    """Where the codestream of a JP2 file begins, and whether the file says that it is in sRGB."""
    in_srgb = False
    at, end = len(JP2_SIGNATURE), len(data)
    while at < end:
        length, name = struct.unpack_from(">I4s", data, at)
        content = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        if name == b"jp2c":
            return content, in_srgb
        if name == b"jp2h":
            at = content  # a box of boxes
            continue
        if name == b"colr":
            in_srgb = _says_srgb(data, content)
        if name in (b"pclr", b"cdef"):
            raise TileDecodeError("unsupported_colour", f"JPEG 2000 with a {name.decode()!r} box")
        if length < 8:
            raise corrupt("JPEG 2000 box of impossible length")
        at += length
    raise truncated("JPEG 2000 ends before its codestream")


def _says_srgb(data: bytes, at: int) -> bool:
    (method,) = struct.unpack_from("B", data, at)
    if method != _BY_NUMBER:
        return False  # by a profile, as other formats may, too
    (colours,) = struct.unpack_from(">I", data, at + 3)
    if colours not in (_SRGB, _GREY):
        raise TileDecodeError("unsupported_colour", f"JPEG 2000 in colours {colours}, expected sRGB or grey")
    return bool(colours == _SRGB)


def _size(data: bytes, start: int) -> tuple[int, int, int, int]:
    """Height, width, components and tiles."""
    first, second = struct.unpack_from(">HH", data, start)
    if (first << 16 | second) != 0xFF4FFF51:
        raise corrupt("JPEG 2000 without a size")
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, count = struct.unpack_from(
        ">8IH", data, start + 8
    )
    height, width = bottom - top, right - left
    if count not in (1, 3):
        raise TileDecodeError("unsupported_colour", f"JPEG 2000 with {count} components, expected 1 (grey) or 3")
    for depth, across, down in struct.iter_unpack("3B", data[start + 42 : start + 42 + 3 * count]):
        refuse_depth((depth & 0x7F) + 1)
        if depth != 7:
            raise TileDecodeError("unsupported_depth", "JPEG 2000 samples that are not unsigned integers of 8 bits")
        if (across, down) != (1, 1):
            raise TileDecodeError("unsupported_colour", "JPEG 2000 with components of different sizes")
    if not (tile_width and tile_height):
        raise corrupt("JPEG 2000 with tiles of no size")
    tiles = -(-(right - tiles_left) // tile_width) * -(-(bottom - tiles_top) // tile_height)
    return height, width, count, tiles


def _whole_tiles(data: bytes, start: int, tiles: int) -> bool:
    """Walk to the codestream's end and find every part of every tile; say whether colours were transformed."""
    transformed = False
    found: Counter[int] = Counter()
    announced: Counter[int] = Counter()
    at = start + 2
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == _END:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _TILE_PART:
            tile, part_bytes, _, parts = struct.unpack_from(">HIBB", data, at + 4)
            found[tile] += 1
            announced[tile] = max(announced[tile], parts)
            # 0: as far as the end, whose bytes occur nowhere among packets.
            at = at + part_bytes if part_bytes else data.find(b"\xff\xd9", at)
            if not 0 < at < len(data):
                raise truncated("JPEG 2000 ends inside a tile")
            continue
        if marker == _CODING_STYLE:
            transformed = data[at + 8] == 1
        if length < 2:
            raise corrupt("JPEG 2000 segment of impossible length")
        at += 2 + length
    if len(found) != tiles or max(found) >= tiles or any(found[tile] < parts for tile, parts in announced.items()):
        raise truncated("JPEG 2000 without all of its tiles")
    return transformed
