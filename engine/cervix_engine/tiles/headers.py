"""Reads the header of an encoded tile without any decoder, and refuses what has no single meaning as pixels.

Five formats are known, by content and never by suffix. `inspect` finds the dimensions, the depth and the
colour model, and proves that the file is whole: OpenCV returns a grey-filled image for a truncated JPEG
without an error (opencv #6468), so the end of every file is looked for here.

What is refused, and why: CMYK and YCCK (need a colour profile), more than 8 bits (the scale is unknown: a
12-bit sample in a 16-bit file would be read as black), animations and multi-page files (which frame?), TIFFs
that are not stored upright (OpenCV turns them whatever the contract's EXIF policy says).
Formats: ITU-T T.81 (JPEG), W3C PNG, TIFF 6.0, RFC 9649 (WebP), BITMAPINFOHEADER (BMP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cervix_engine.errors import TileDecodeError, TileShapeError

Format = Literal["jpeg", "png", "bmp", "tiff", "webp"]

MAX_SIDE_PX = 16_384
MAX_AREA_PX = 64 * 2**20

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = 0xC2
_JPEG_COEFFICIENTS = (1 << 64) - 1  # one bit for each coefficient of an 8x8 block
# A marker that ends entropy-coded data: 0xFF, then neither a stuffed 0x00, a restart, nor a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TileHeader:
    """What the header of an encoded tile says.

    Attributes:
        format: by content.
        height, width: in pixels, as stored.
        has_alpha: whether pixels may be transparent.
        scan_end: where a JPEG's end-of-image marker begins; 0 in other formats.
    """

    format: Format
    height: int
    width: int
    has_alpha: bool = False
    scan_end: int = 0


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


def _reader(data: bytes) -> Callable[[bytes], TileHeader]:
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
    size: tuple[int, int] | None = None
    missing: dict[int, int] = {}  # component -> its coefficients that no scan has brought in full precision
    progressive = False
    position = 2
    while True:
        marker, position = _next_jpeg_marker(data, position)
        if marker == 0xD9:
            if size is None:
                raise TileDecodeError("corrupt", "JPEG without a frame header")
            if any(missing.values()):
                raise _truncated("JPEG ends before its last scan")
            return TileHeader("jpeg", *size, scan_end=position - 2)
        if marker == 0xD8:
            raise TileDecodeError("corrupt", "JPEG with another start of image inside")
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2:
            raise TileDecodeError("corrupt", "JPEG segment of impossible length")
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise TileDecodeError("corrupt", "JPEG with more than one frame header")
            size, missing = _jpeg_frame(data, position)
            progressive = marker == _JPEG_PROGRESSIVE
        if marker == 0xDA:
            _jpeg_scan(data, position, missing, progressive=progressive)
        position += length
        if marker == 0xDA:
            position = _end_of_scan(data, position)


def _end_of_scan(data: bytes, position: int) -> int:
    found = _JPEG_MARKER.search(data, position)
    if found is None:
        raise _truncated("JPEG ends before its end-of-image marker")
    return found.start()


def _next_jpeg_marker(data: bytes, position: int) -> tuple[int, int]:
    if position + 2 > len(data):
        raise _truncated("JPEG ends before its end-of-image marker")
    if data[position] != 0xFF:
        raise TileDecodeError("corrupt", "JPEG segment does not start with a marker")
    while data[position] == 0xFF:
        position += 1
    return data[position], position + 1


def _jpeg_frame(data: bytes, position: int) -> tuple[tuple[int, int], dict[int, int]]:
    bits, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
    _refuse_depth(bits)
    if components not in (1, 3):
        raise TileDecodeError("unsupported_colour", f"JPEG with {components} components, expected 1 (grey) or 3")
    identifiers = data[position + 8 : position + 8 + 3 * components : 3]
    return (height, width), dict.fromkeys(identifiers, _JPEG_COEFFICIENTS)


def _jpeg_scan(data: bytes, position: int, missing: dict[int, int], *, progressive: bool) -> None:
    count = data[position + 2]
    first, last, approximation = struct.unpack_from("3B", data, position + 3 + 2 * count)
    brought = _JPEG_COEFFICIENTS
    if progressive:
        # The low half of `approximation` counts the bits that later scans still have to bring.
        brought = 0 if approximation & 0x0F else (2 << last) - (1 << first)
    for component in data[position + 3 : position + 3 + 2 * count : 2]:
        missing[component] = missing.get(component, 0) & ~brought


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


_BMP_PLAIN, _BMP_MASKS = 0, 3
_BMP_BYTE_MASKS = frozenset({0xFF, 0xFF00, 0xFF0000, 0xFF000000})
# Bits a pixel -> the masks of red, green and blue that OpenCV follows whatever the header's size.
_BMP_COMMON_MASKS = {16: ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)), 32: ((0xFF0000, 0xFF00, 0xFF),)}


def _bmp(data: bytes) -> TileHeader:
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        raise TileDecodeError("unsupported_format", f"BMP header of {header_size} bytes, expected at least 40")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows run from the top
    if compression not in (_BMP_PLAIN, _BMP_MASKS):
        raise TileDecodeError("unsupported_format", f"BMP compression {compression}, expected none")
    row_bytes = (max(width, 0) * bits + 31) // 32 * 4
    if pixels_at + row_bytes * height > len(data):
        raise _truncated("BMP ends before its last row")
    has_alpha = compression == _BMP_MASKS and _bmp_masks(data, header_size, bits)
    return TileHeader("bmp", height, width, has_alpha)


def _bmp_masks(data: bytes, header_size: int, bits: int) -> bool:
    """Refuse colour masks that OpenCV does not follow; say whether there is one for an alpha channel."""
    colours = struct.unpack_from("<3I", data, 54)
    full_header = header_size >= 56
    bytewise = full_header and bits == 32 and _BMP_BYTE_MASKS.issuperset(colours)
    if not bytewise and colours not in _BMP_COMMON_MASKS.get(bits, ()):
        raise TileDecodeError("unsupported_format", f"BMP with unusual colour masks in {bits} bits a pixel")
    # Without a mask of its own, the fourth byte of a pixel means nothing.
    return full_header and struct.unpack_from("<I", data, 66) != (0,)


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
_TIFF_MAX_VALUES = 2**20
_WIDTH, _HEIGHT, _BITS, _COLOUR_MODEL, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 256, 257, 258, 262, 274, 277, 339
_OFFSETS, _SIZES = (273, 324), (279, 325)  # of strips, of tiles
_TIFF_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COLOUR_MODEL, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT, *_OFFSETS, *_SIZES}
)
# Colour model -> samples a pixel: white is zero, black is zero, RGB, palette, YCbCr.
_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}


def _tiff(data: bytes) -> TileHeader:
    tags = _tiff_tags(data, "<" if data[:2] == b"II" else ">")
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise TileDecodeError("corrupt", "TIFF without dimensions")
    _refuse_depth(max(tags.get(_BITS, (1,))))
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise TileDecodeError("unsupported_depth", "TIFF samples that are not unsigned integers")
    orientation = tags.get(_ORIENTATION, (1,))[0]
    if orientation != 1:
        raise TileDecodeError("unsupported_orientation", f"TIFF orientation {orientation}, expected 1 (upright)")
    has_alpha = _tiff_has_alpha(tags)
    _check_tiff_data(tags, len(data))
    return TileHeader("tiff", tags[_HEIGHT][0], tags[_WIDTH][0], has_alpha)


def _tiff_tags(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    tags: dict[int, tuple[int, ...]] = {}
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, at)
        if tag in _TIFF_TAGS:
            tags[tag] = _tiff_values(data, order, kind, values, at + 8)
    (following,) = struct.unpack_from(order + "I", data, directory + 2 + 12 * count)
    if following:
        raise TileDecodeError("multi_page", "a TIFF with more than one page")
    return tags


def _tiff_values(data: bytes, order: str, kind: int, count: int, at: int) -> tuple[int, ...]:
    if kind not in _TIFF_TYPES or not 1 <= count <= _TIFF_MAX_VALUES:
        raise TileDecodeError("corrupt", f"TIFF tag with {count} values of type {kind}")
    layout = f"{order}{count}{_TIFF_TYPES[kind]}"
    if struct.calcsize(layout) > 4:
        (at,) = struct.unpack_from(order + "I", data, at)
    return struct.unpack_from(layout, data, at)


def _tiff_has_alpha(tags: dict[int, tuple[int, ...]]) -> bool:
    model, samples = tags.get(_COLOUR_MODEL, (2,))[0], tags.get(_SAMPLES, (1,))[0]
    if model not in _TIFF_COLOURS:
        raise TileDecodeError("unsupported_colour", f"TIFF colour model {model}, expected grey, RGB or YCbCr")
    colours = _TIFF_COLOURS[model]
    # OpenCV drops a grey image's second sample unseen, so its transparency cannot be checked.
    if samples != colours and (colours, samples) != (3, 4):
        raise TileDecodeError("unsupported_colour", f"TIFF colour model {model} with {samples} samples a pixel")
    return samples > colours


def _check_tiff_data(tags: dict[int, tuple[int, ...]], length: int) -> None:
    offsets, sizes = (next((tags[tag] for tag in pair if tag in tags), ()) for pair in (_OFFSETS, _SIZES))
    if not offsets or len(offsets) != len(sizes):
        raise TileDecodeError("corrupt", f"TIFF with {len(offsets)} strips and {len(sizes)} strip sizes")
    if any(at + size > length for at, size in zip(offsets, sizes, strict=True)):
        raise _truncated("TIFF ends inside its pixels")
