"""Strips and tiles of a TIFF that are images of their own: JPEG, WebP and JPEG 2000."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import cv2
import numpy as np

from cervix_engine.errors import TileDecodeError
from cervix_engine.tiles.formats import jpeg, jpeg2000, tiff_page, webp
from cervix_engine.tiles.formats.header import TileHeader, corrupt, refuse_transparency, truncated
from cervix_engine.tiles.formats.opencv import imdecode
from cervix_engine.tiles.formats.tiff_page import TiffPage
from cervix_engine.values import Pixels

_END, _SCAN, _JFIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xEE
_DROPPED = frozenset(range(0xE0, 0xF0)) | {0xFE}  # applications' segments and comments


def decode_image(encoded: bytes, page: TiffPage, height: int) -> Pixels:
    """Decode a segment to its colours, `uint8 (height or more, segment width, 1 or 3)`, grey or RGB.

    Raises:
        TileDecodeError: it is not one whole image of this size and these colours.
    """
    try:
        if page.compression == tiff_page.JPEG:
            return _jpeg(encoded, page, height)
        return _webp(encoded, page, height) if page.compression == tiff_page.WEBP else _jpeg2000(encoded, page, height)
    except (struct.error, IndexError) as error:
        raise truncated("a TIFF strip or tile ends inside its header") from error


def _check_size(header: TileHeader, page: TiffPage, height: int) -> None:
    # Some writers fill up the last strip.
    if header.width != page.segment_width or header.height not in (height, page.segment_height):
        expected = f"{page.segment_width}x{height}"
        raise corrupt(f"TIFF strip or tile of {header.width}x{header.height} pixels, expected {expected}")


def _jpeg(encoded: bytes, page: TiffPage, height: int) -> Pixels:
    channels = 1 if page.planar else page.colours
    whole = _whole_jpeg(encoded, page, channels)
    header = jpeg.read_header(whole)
    _check_size(header, page, height)
    return jpeg.decode(whole, header)[..., :channels]


def _whole_jpeg(encoded: bytes, page: TiffPage, channels: int) -> bytes:
    """A file of a segment: with the tables that all have in common, and the colours that the TIFF's tag says."""
    in_ycbcr = page.colour_model == tiff_page.YCBCR
    adobe = struct.pack(">BBH5sHHHB", 0xFF, _ADOBE, 14, b"Adobe", 100, 0, 0, in_ycbcr)
    parts = [jpeg.SIGNATURE[:2], adobe if channels == 3 else b""]
    for stream in filter(None, (page.jpeg_tables, encoded)):
        for marker, at, end in _segments(stream):
            content = stream[at + 4 : end]
            if marker == _JFIF and channels == 3 and not in_ycbcr and content.startswith(b"JFIF"):
                raise _other_colours()
            if marker == _ADOBE and channels == 3 and content.startswith(b"Adobe") and content[11] != in_ycbcr:
                raise _other_colours()
            if marker in jpeg.FRAMES and content[5] != channels:
                raise corrupt(f"JPEG with {content[5]} components in a TIFF, expected {channels}")
            if marker not in _DROPPED:
                parts.append(stream[at:end])
    return b"".join(parts)


def _other_colours() -> TileDecodeError:
    return TileDecodeError("unsupported_colour", "a JPEG in a TIFF says other colours than the TIFF")


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment; the last one, of a scan, goes on to the end."""
    if stream[:2] != jpeg.SIGNATURE[:2]:
        raise corrupt("a JPEG in a TIFF does not start as one")
    position = 2
    while position < len(stream):
        marker, content = jpeg.next_marker(stream, position)
        if marker == _END:
            return
        (length,) = struct.unpack_from(">H", stream, content)
        end = len(stream) if marker == _SCAN else content + length
        if end > len(stream):
            raise truncated("a JPEG in a TIFF ends inside a segment")
        yield marker, content - 2, end
        position = end


def _webp(encoded: bytes, page: TiffPage, height: int) -> Pixels:
    if not webp.is_webp(encoded):
        raise corrupt("a TIFF strip or tile is not the WebP that it should be")
    header = webp.read_header(encoded)
    _check_size(header, page, height)
    pixels = imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if pixels.shape != (header.height, header.width, 4 if header.has_alpha else 3):
        raise corrupt(f"a WebP in a TIFF decodes to {pixels.shape}")
    refuse_transparency(pixels[..., 3:])
    return np.asarray(cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB), np.uint8)


def _jpeg2000(encoded: bytes, page: TiffPage, height: int) -> Pixels:
    codestream = jpeg2000.read_codestream(encoded)
    if page.compression == tiff_page.APERIO_YCBCR and not codestream.says_rgb:
        raise TileDecodeError("unsupported_compression", "TIFF compression 33003, JPEG 2000 in a YCbCr of its maker's")
    _check_size(codestream.header, page, height)
    if codestream.components != page.colours:
        raise corrupt(f"JPEG 2000 with {codestream.components} components in a TIFF, expected {page.colours}")
    return jpeg2000.decode(encoded, codestream=codestream)[..., : page.colours]
