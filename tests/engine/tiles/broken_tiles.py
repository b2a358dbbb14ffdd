"""Files of a known format that are broken inside, or coded in a way that nothing here decodes, each with its kind."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from .encoded_tiles import (
    PNG_GREY,
    PNG_RGB,
    bmp,
    draw,
    grey,
    jpeg,
    jpeg2000,
    jpeg2000_of_tiles,
    palette_of,
    png,
    webp_lossless,
    with_alpha,
)
from .tiff_tiles import (
    BYTE_CODECS,
    IN_YCBCR,
    PALETTE,
    TIFF_APERIO_YCBCR,
    TIFF_CODECS,
    TIFF_JPEG2000,
    TIFF_LZW,
    TIFF_NONE,
    TIFF_WEBP,
    damaged,
    overwritten,
    palette_tags,
    tiff,
    tiff_of_two_pages,
)

PIXELS = draw()
PLANE = grey(PIXELS)
BGR = np.ascontiguousarray(PIXELS[..., ::-1])
INDICES, _ = palette_of(PIXELS)
PHOTO = jpeg(PIXELS)
RESTARTING = jpeg(PIXELS, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
TWO_COLOURS = [(b"tRNS", bytes(6))] * 2

CORRUPT, TRUNCATED = "corrupt", "truncated"
NO_DECODER, NO_COLOURS, NO_DEPTH, NO_FORMAT = (
    "unsupported_compression",
    "unsupported_colour",
    "unsupported_depth",
    "unsupported_format",
)


def without(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + data[end:]


def restart(number: int) -> int:
    """Where the restart marker of this number first is."""
    return RESTARTING.index(bytes([0xFF, 0xD0 + number]))


BROKEN_JPEGS: dict[str, tuple[bytes, str]] = {
    "jpeg without the last byte of its scan": (without(PHOTO, len(PHOTO) - 3, len(PHOTO) - 2), TRUNCATED),
    "jpeg of codes that its tables do not have": (overwritten(PHOTO, len(PHOTO) * 3 // 4, b"\xff\0" * 8), CORRUPT),
    "jpeg without a restart marker": (without(RESTARTING, restart(3), restart(3) + 2), CORRUPT),
    "jpeg without an interval": (without(RESTARTING, restart(2), restart(3)), CORRUPT),
    "jpeg without its last intervals": (RESTARTING[: restart(7)] + b"\xff\xd9", TRUNCATED),
    "jpeg of a hierarchical process": (PHOTO.replace(b"\xff\xc0", b"\xff\xc5"), NO_DECODER),
    "jpeg of a lossless process": (PHOTO.replace(b"\xff\xc0", b"\xff\xc3"), NO_DECODER),
    "jpeg ls": (PHOTO.replace(b"\xff\xc0", b"\xff\xf7"), NO_DECODER),
}

BROKEN_OTHERS: dict[str, tuple[bytes, str]] = {
    "png of no bits": (overwritten(png(PLANE, PNG_GREY, extra=[(b"tRNS", b"\0\1")]), 24, b"\0"), CORRUPT),
    "png of two transparent colours": (png(PIXELS, PNG_RGB, extra=TWO_COLOURS), CORRUPT),
    "bmp whose pixels begin in its header": (overwritten(bmp(BGR), 10, struct.pack("<I", 30)), CORRUPT),
    "bmp of two bits a pixel": (overwritten(bmp(PLANE), 28, b"\2\0"), NO_FORMAT),
    "bmp of sixteen bits in a long header": (
        bmp(PLANE.astype(np.uint16), masks=(0xF800, 0x7E0, 0x1F), header_size=124),
        NO_FORMAT,
    ),
    "webp whose chunk is longer": (overwritten(webp_lossless(PIXELS), 16, struct.pack("<I", 1 << 20)), TRUNCATED),
    "jpeg2000 without its last tile": (jpeg2000_of_tiles(PIXELS, kept=1), TRUNCATED),
    "jpeg2000 of four components": (jpeg2000(with_alpha(PIXELS, 255)), NO_COLOURS),
    "jpeg2000 of sixteen bits": (jpeg2000(PIXELS.astype(np.uint16)), NO_DEPTH),
}

BROKEN_TIFFS: dict[str, tuple[bytes, str]] = {
    "tiff of no page": (overwritten(tiff(PIXELS), 4, bytes(4)), CORRUPT),
    "tiff of tables that are no bytes": (tiff(PIXELS, tags={347: ("H", [256])}), CORRUPT),
    "tiff of strips of no rows": (tiff(PIXELS, tags={278: ("I", [0])}), CORRUPT),
    "tiff of one strip too few": (tiff(PIXELS, rows_per_strip=8, tags={278: ("I", [7])}), CORRUPT),
    "tiff of tiles of no size": (tiff(PIXELS, tile=(16, 16), tags={322: ("I", [0])}), "bad_dimensions"),
    "tiff of tiles beyond the limit": (tiff(PIXELS, tile=(16, 16), tags={322: ("I", [1 << 20])}), "too_large"),
    "tiff of a strip of no bytes": (tiff(PIXELS, tags={279: ("I", [0])}), CORRUPT),
    "tiff of a strip that is not there": (tiff(PIXELS, tags={273: ("I", [0]), 279: ("I", [0])}), CORRUPT),
    "tiff of unknown planes": (tiff(PIXELS, tags={284: ("H", [3])}), CORRUPT),
    "tiff of a palette too short": (tiff(INDICES, tags=palette_tags([0] * 767)), CORRUPT),
    "tiff without its palette": (tiff(INDICES, tags={262: ("H", [PALETTE])}), CORRUPT),
    "tiff of a palette and alpha": (tiff(np.dstack([INDICES] * 2), tags=palette_tags([0] * 768)), NO_COLOURS),
    "tiff of three bits": (tiff(PLANE, tags={258: ("H", [3])}), NO_DEPTH),
    "tiff of four bits of colour": (tiff(PIXELS, tags={258: ("H", [4, 4, 4])}), NO_DEPTH),
    "tiff of ycbcr that no codec turns": (tiff(PIXELS, tags=IN_YCBCR), NO_COLOURS),
    "tiff of a float predictor": (tiff(PIXELS, compression=TIFF_LZW, tags={317: ("H", [3])}), NO_DECODER),
    "tiff of an old jpeg": (tiff(PIXELS, tags={259: ("H", [6])}), NO_DECODER),
    "tiff of a fax": (tiff(PLANE, tags={258: ("H", [1]), 259: ("H", [4])}), NO_DECODER),
    "tiff of sixteen bits in jpeg xl": (tiff(PIXELS.astype(np.uint16), tags={259: ("H", [50_002])}), NO_DECODER),
    "tiff of a grey webp": (
        tiff(PLANE, compression=TIFF_WEBP, encode_segment=lambda _: webp_lossless(PIXELS)),
        NO_DECODER,
    ),
    "tiff of aperio's ycbcr": (
        tiff(PIXELS, compression=TIFF_APERIO_YCBCR, encode_segment=lambda piece: jpeg2000(piece, transformed=False)),
        NO_DECODER,
    ),
    "tiff of a grey jpeg 2000 for rgb": (
        tiff(PIXELS, compression=TIFF_JPEG2000, encode_segment=lambda piece: jpeg2000(piece[..., 0])),
        CORRUPT,
    ),
    "tiff of another page": (tiff_of_two_pages(PIXELS, subfile=0), "multi_page"),
    "tiff of a page and its mask": (tiff_of_two_pages(PIXELS, subfile=4), "multi_page"),
    "tiff of a copy before the picture": (tiff_of_two_pages(PIXELS, subfile=1, own_subfile=1), "multi_page"),
    "tiff of pages without end": (tiff(PIXELS, tags={254: ("I", [0])}, next_page=8), "multi_page"),
}
for compression, encode_segment in TIFF_CODECS.items():
    half, empty = (damaged(encode_segment, how, 0.5) for how in ("cut", "emptied"))
    kind = CORRUPT if compression in BYTE_CODECS else TRUNCATED
    BROKEN_TIFFS[f"tiff {compression} cut"] = tiff(PIXELS, compression=compression, encode_segment=half), kind
    if compression != TIFF_NONE:
        zeros = tiff(PIXELS, compression=compression, encode_segment=empty)
        BROKEN_TIFFS[f"tiff {compression} of zeros"] = zeros, CORRUPT

BROKEN = BROKEN_JPEGS | BROKEN_OTHERS | BROKEN_TIFFS
