"""PNG (W3C) as far as its chunks tell: size, depth, transparency, and whether it is one picture and whole."""

from __future__ import annotations

import struct

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import TileHeader, corrupt, refuse_depth, truncated

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DEPTHS = (1, 2, 4, 8)
_GREY = 0
_WITH_ALPHA = (4, 6)


def read_header(data: bytes) -> TileHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    refuse_depth(bits)
    if data[12:16] != b"IHDR" or bits not in _DEPTHS:
        raise corrupt("PNG without a header that makes sense")
    has_alpha = colour in _WITH_ALPHA
    transparent_grey: int | None = None
    seen: set[bytes] = set()
    position = 8
    while True:
        if position + 8 > len(data):
            raise truncated("PNG ends before its IEND chunk")
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if position > len(data):
            raise truncated(f"PNG ends inside its {name.decode('latin-1')!r} chunk")
        content = position - 4 - length
        if name == b"acTL" or b"acTL" in seen:
            _refuse_frames(data, content, name, seen)
        if name == b"tRNS" and name in seen:
            raise corrupt("PNG with two transparent colours")
        if name == b"tRNS":
            has_alpha = True
            transparent_grey = _in_8_bits(data, content, bits) if colour == _GREY and length >= 2 else None
        if name == b"IEND":
            return TileHeader("png", height, width, has_alpha, transparent_grey=transparent_grey)
        seen.add(name)


def _in_8_bits(data: bytes, at: int, bits: int) -> int:
    (value,) = struct.unpack_from(">H", data, at)
    largest = (1 << bits) - 1
    return (int(value) & largest) * 255 // largest


def _refuse_frames(data: bytes, content: int, name: bytes, seen: set[bytes]) -> None:
    """Accept an animation whose only frame is the picture itself."""
    several = name == b"acTL" and struct.unpack_from(">I", data, content) != (1,)
    elsewhere = name == b"fdAT" or (name == b"fcTL" and b"IDAT" in seen)
    if several or elsewhere:
        raise TileDecodeError("animated", "an animated PNG has more than one frame")
