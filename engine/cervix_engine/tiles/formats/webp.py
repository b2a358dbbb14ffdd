"""WebP (RFC 9649): its RIFF frame, and the size and alpha channel that its chunks name."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats.header import TileHeader, corrupt, truncated

_ANIMATED, _WITH_ALPHA = 0x02, 0x10
_IMAGES = (b"VP8 ", b"VP8L")


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_header(data: bytes) -> TileHeader:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise truncated("WebP ends before its RIFF length")
    chunks = _chunks(data, 12, size + 8)
    name, at = next(chunks, (b"", 0))
    if name == b"VP8X":
        return _extended(data, at, list(chunks))
    if name == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, at + 1)
        return TileHeader("webp", (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1, has_alpha=bool(packed >> 28 & 1))
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 6)
        return TileHeader("webp", height & 0x3FFF, width & 0x3FFF)
    raise corrupt("WebP without an image chunk")


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """(name, where its content begins) of each chunk."""
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > end:
            raise truncated("WebP ends inside a chunk")
        yield name, at + 8
        at += 8 + size + size % 2


def _extended(data: bytes, at: int, chunks: list[tuple[bytes, int]]) -> TileHeader:
    canvas = _three_bytes(data, at + 4), _three_bytes(data, at + 7)
    if data[at] & _ANIMATED:
        frames = [content for name, content in chunks if name == b"ANMF"]
        # A frame that covers the canvas is the picture itself.
        if [(_three_bytes(data, frame + 6), _three_bytes(data, frame + 9)) for frame in frames] != [canvas]:
            raise TileDecodeError("animated", "an animated WebP has more than one frame")
    elif not any(name in _IMAGES for name, _ in chunks):
        raise corrupt("WebP without an image chunk")
    return TileHeader("webp", canvas[1] + 1, canvas[0] + 1, has_alpha=bool(data[at] & _WITH_ALPHA))


def _three_bytes(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")
