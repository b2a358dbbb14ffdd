"""Reads the header of an encoded tile without any decoder, and refuses what has no single meaning as pixels.

Formats are known by content and never by suffix. `inspect` finds the dimensions, the depth and the colour model, and
proves that the file is whole; how is a matter of each format, see `formats/`.

What is refused, and why: CMYK and YCCK (need a colour profile), more than 8 bits (the scale is unknown: a
12-bit sample in a 16-bit file would be read as black), animations and multi-page files (which frame?), TIFFs
that are not stored upright (OpenCV turns them whatever the contract's EXIF policy says), compressions that no decoder
here knows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats import bmp, jpeg, jpeg2000, png, tiff, webp
from cervix_engine.tiles.formats.header import TileHeader, refuse_size, truncated


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
        raise truncated("the file ends inside its header") from error
    refuse_size(header.height, header.width)
    return header


def _reader(data: bytes) -> Callable[[bytes], TileHeader]:
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.read_header
    if data.startswith(png.SIGNATURE):
        return png.read_header
    if data.startswith(bmp.SIGNATURE):
        return bmp.read_header
    if data.startswith(tiff.SIGNATURES):
        return tiff.read_header
    if webp.is_webp(data):
        return webp.read_header
    if data.startswith(jpeg2000.SIGNATURES):
        return jpeg2000.read_header
    raise TileDecodeError("unknown_format", "content is not JPEG, PNG, BMP, TIFF, WebP or JPEG 2000")
