"""Reads the header of an encoded tile without any decoder, and refuses what has no single meaning as pixels.

Five formats are known, by content and never by suffix. `inspect` finds the dimensions, the depth and the
colour model, and proves that the file is whole: OpenCV returns a grey-filled image for a truncated JPEG
without an error (opencv #6468), so the end of every file is looked for here.

What is refused, and why: CMYK and YCCK (need a colour profile), more than 8 bits (the scale is unknown: a
12-bit sample in a 16-bit file would be read as black), animations and multi-page files (which frame?).
Formats: ITU-T T.81 (JPEG), W3C PNG, TIFF 6.0, RFC 9649 (WebP), BITMAPINFOHEADER (BMP).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from cervix_engine.errors import TileDecodeError, TileShapeError

Format = Literal["jpeg", "png", "bmp", "tiff", "webp"]

MAX_SIDE_PX = 16_384
MAX_AREA_PX = 64 * 2**20

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A marker that ends entropy-coded data: 0xFF, then neither a stuffed 0x00, a restart, nor a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TileHeader:
    """What the header of an encoded tile says; `has_alpha` marks pixels that may be transparent."""

    format: Format
    height: int
    width: int
    has_alpha: bool = False


def inspect(data: bytes) -> TileHeader:
    """Read and check the header of one encoded tile.

    Raises:
        TileDecodeError: unknown format, truncated, or no single meaning as 8-bit RGB.
        TileShapeError: dimensions of zero or above the limits.
    """
    if not data:
        raise TileDecodeError("empty", "the file has 0 bytes")
    try:
        header = _reader(data)(data)
    except (struct.error, IndexError) as error:
        raise TileDecodeError("truncated", "the file ends inside its header") from error
    _check_size(header)
    return header


def _check_size(header: TileHeader) -> None:
    height, width = header.height, header.width
    if height < 1 or width < 1:
        raise TileShapeError("bad_dimensions", f"{width}x{height} pixels")
    if max(height, width) > MAX_SIDE_PX or height * width > MAX_AREA_PX:
        limit = f"{MAX_SIDE_PX} a side and {MAX_AREA_PX} in all"
        raise TileShapeError("too_large", f"{width}x{height} pixels, limit {limit}")


def _reader(data: bytes):  # type: ignore[no-untyped-def]
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png
    if data[:2] == b"BM":
        return _bmp
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    raise TileDecodeError("unknown_format", "content is not JPEG, PNG, BMP, TIFF or WebP")


def _truncated(what: str) -> TileDecodeError:
    return TileDecodeError("truncated", what)


def _refuse_depth(bits: int) -> None:
    if bits > 8:
        raise TileDecodeError("unsupported_depth", f"{bits} bits a sample, expected 8")


def _jpeg(data: bytes) -> TileHeader:
    header: TileHeader | None = None
    position = 2
    while True:
        marker, position = _next_jpeg_marker(data, position)
        if marker == 0xD9:
            if header is None:
                raise TileDecodeError("corrupt", "JPEG without a frame header")
            return header
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:
            raise TileDecodeError("corrupt", "JPEG segment of impossible length")
        if marker in _JPEG_FRAMES:
            header = _jpeg_frame(data, position)
        position += length
        if marker == 0xDA:
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                raise _truncated("JPEG ends before its end-of-image marker")
            position = found.start()


def _next_jpeg_marker(data: bytes, position: int) -> tuple[int, int]:
    if position + 2 > len(data):
        raise _truncated("JPEG ends before its end-of-image marker")
    if data[position] != 0xFF:
        raise TileDecodeError("corrupt", "JPEG segment does not start with a marker")
    while data[position] == 0xFF:
        position += 1
    return data[position], position + 1


def _jpeg_frame(data: bytes, position: int) -> TileHeader:
    bits, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
    _refuse_depth(bits)
    if components not in (1, 3):
        raise TileDecodeError("unsupported_colour", f"JPEG with {components} components (CMYK), expected 1 or 3")
    return TileHeader("jpeg", height, width)


def _png(data: bytes) -> TileHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    _refuse_depth(bits)
    has_alpha = colour in (4, 6)
    position = 8
    while True:
        if position + 8 > len(data):
            raise _truncated("PNG ends before its IEND chunk")
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if position > len(data):
            raise _truncated(f"PNG ends inside its {name.decode('latin-1')!r} chunk")
        if name == b"acTL":
            raise TileDecodeError("animated", "an animated PNG has more than one frame")
        if name == b"tRNS":
            has_alpha = True
        if name == b"IEND":
            return TileHeader("png", height, width, has_alpha)


def _bmp(data: bytes) -> TileHeader:
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        raise TileDecodeError("unsupported_format", f"BMP header of {header_size} bytes, expected at least 40")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows run from the top
    if compression == 0 and width > 0:
        row_bytes = (width * bits + 31) // 32 * 4
        if pixels_at + row_bytes * height > len(data):
            raise _truncated("BMP ends before its last row")
    elif compression not in (0, 3):
        raise TileDecodeError("unsupported_format", f"BMP compression {compression}, expected none")
    return TileHeader("bmp", height, width, has_alpha=bits == 32)


def _webp(data: bytes) -> TileHeader:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise _truncated("WebP ends before its RIFF length")
    chunk = data[12:16]
    if chunk == b"VP8X":
        if data[20] & 0x02:
            raise TileDecodeError("animated", "an animated WebP has more than one frame")
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return TileHeader("webp", height, width, has_alpha=bool(data[20] & 0x10))
    if chunk == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return TileHeader("webp", (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1, has_alpha=bool(packed >> 28 & 1))
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return TileHeader("webp", height & 0x3FFF, width & 0x3FFF)
    raise TileDecodeError("corrupt", "WebP without an image chunk")


_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}


def _tiff(data: bytes) -> TileHeader:
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(count):
        tag, kind, values = struct.unpack_from(order + "HHI", data, directory + 2 + 12 * entry)
        if kind in _TIFF_TYPES and tag in (256, 257, 258, 262, 277, 338):
            tags[tag] = _tiff_values(data, order, _TIFF_TYPES[kind], values, directory + 10 + 12 * entry)
    (following,) = struct.unpack_from(order + "I", data, directory + 2 + 12 * count)
    if following:
        raise TileDecodeError("animated", "a TIFF with more than one page")
    if 256 not in tags or 257 not in tags:
        raise TileDecodeError("corrupt", "TIFF without dimensions")
    _refuse_depth(max(tags.get(258, (1,))))
    photometric = tags.get(262, (2,))[0]
    if photometric not in (0, 1, 2, 3, 6):
        raise TileDecodeError("unsupported_colour", f"TIFF colour model {photometric}, expected grey, RGB or YCbCr")
    return TileHeader("tiff", tags[257][0], tags[256][0], has_alpha=338 in tags or tags.get(277, (1,))[0] in (2, 4))


def _tiff_values(data: bytes, order: str, code: str, count: int, at: int) -> tuple[int, ...]:
    layout = f"{order}{min(count, 16)}{code}"
    if struct.calcsize(f"{order}{code}") * count > 4:
        (at,) = struct.unpack_from(order + "I", data, at)
    return struct.unpack_from(layout, data, at)
