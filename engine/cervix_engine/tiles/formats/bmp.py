"""BMP (BITMAPINFOHEADER and its successors) without compression, in the masks of colours that OpenCV follows."""

from __future__ import annotations

import struct

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import TileHeader, corrupt, truncated

SIGNATURE = b"BM"

_DEPTHS = (1, 4, 8, 16, 24, 32)
_PLAIN, _MASKS = 0, 3
_BYTE_MASKS = frozenset({0xFF, 0xFF00, 0xFF0000, 0xFF000000})
# Bits a pixel -> the masks of red, green and blue that OpenCV follows whatever the header's size.
_COMMON_MASKS = {16: ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)), 32: ((0xFF0000, 0xFF00, 0xFF),)}


def read_header(data: bytes) -> TileHeader:
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        raise TileDecodeError("unsupported_format", f"BMP header of {header_size} bytes, expected at least 40")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows run from the top
    if compression not in (_PLAIN, _MASKS):
        raise TileDecodeError("unsupported_format", f"BMP compression {compression}, expected none")
    if bits not in _DEPTHS:
        raise TileDecodeError("unsupported_format", f"BMP with {bits} bits a pixel")
    if pixels_at < 14 + header_size:
        raise corrupt("BMP whose pixels begin inside its header")
    row_bytes = (max(width, 0) * bits + 31) // 32 * 4
    if pixels_at + row_bytes * height > len(data):
        raise truncated("BMP ends before its last row")
    has_alpha = compression == _MASKS and _has_alpha_mask(data, header_size, bits)
    return TileHeader("bmp", height, width, has_alpha)


def _has_alpha_mask(data: bytes, header_size: int, bits: int) -> bool:
    """Refuse colour masks that OpenCV does not follow; say whether there is one for an alpha channel."""
    colours = struct.unpack_from("<3I", data, 54)
    full_header = header_size >= 56
    bytewise = full_header and bits == 32 and _BYTE_MASKS.issuperset(colours)
    common = colours in _COMMON_MASKS.get(bits, ()) and not (full_header and bits == 16)
    if not bytewise and not common:
        raise TileDecodeError("unsupported_format", f"BMP with unusual colour masks in {bits} bits a pixel")
    # Without a mask of its own, the fourth byte of a pixel means nothing.
    return full_header and struct.unpack_from("<I", data, 66) != (0,)
