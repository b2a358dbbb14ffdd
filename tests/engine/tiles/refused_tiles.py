"""Files that are no tile, or none with a single meaning as 8-bit RGB, each with the kind of its failure."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from .encoded_tiles import (
    GIF,
    HEIGHT,
    PNG_GREY,
    PNG_GREY_ALPHA,
    PNG_RGB,
    PNG_RGBA,
    WIDTH,
    Pixels,
    bmp,
    draw,
    encode,
    grey,
    jpeg,
    jpeg2000,
    jpeg2000_claiming,
    jpeg_claiming,
    jpeg_of_scans,
    jpeg_progressive,
    jpeg_with_segment,
    png,
    png_animated,
    webp_animated,
    webp_chunk,
    webp_extended,
    webp_lossless,
    webp_lossy,
    webp_of,
    with_alpha,
)
from .tiff_tiles import TiffTags, tiff

PIXELS = draw()
PLANE = grey(PIXELS)
BGR = np.ascontiguousarray(PIXELS[..., ::-1])

# Content of no known format.
OTHERS: dict[str, bytes] = {
    "gif": GIF,
    "text": "tile,label\n1,café\n".encode(),
    "html": b"<!doctype html><html><body>404 Not Found</body></html>",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\x03\x04" + bytes(40),
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "zeros": bytes(4096),
    "ppm": encode(".ppm", PIXELS),
    "riff-wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(32),
    "jpeg-without-its-start": jpeg(PIXELS)[2:],
}


def tiff_claim(height: int, width: int) -> TiffTags:
    """The tags of a TIFF of this size in one strip."""
    return {256: ("I", [width]), 257: ("I", [height]), 278: ("I", [max(height, 1)])}


# Every way to say how large the image is.
CLAIMS: dict[str, Callable[[int, int], bytes]] = {
    "jpeg": lambda height, width: jpeg_claiming(jpeg(PIXELS), height=height, width=width),
    "jpeg_progressive": lambda height, width: jpeg_claiming(jpeg_progressive(PIXELS), height=height, width=width),
    "png": lambda height, width: png(PIXELS, PNG_RGB, size=(height, width)),
    "tiff": lambda height, width: tiff(PIXELS, tags=tiff_claim(height, width)),
    "tiff_big": lambda height, width: tiff(PIXELS, big=True, tags=tiff_claim(height, width)),
    "jpeg2000": lambda height, width: jpeg2000_claiming(jpeg2000(PIXELS), height=height, width=width),
}

DEEP = np.zeros((8, 8, 3), np.uint16)
REFUSED: dict[str, tuple[bytes, str]] = {
    "png 16 bits": (png(DEEP, PNG_RGB), "unsupported_depth"),
    "png grey 16 bits": (png(DEEP[..., 0], PNG_GREY), "unsupported_depth"),
    "png animated": (png_animated(PIXELS), "animated"),
    "png of a broken chunk": (png(PIXELS, PNG_RGB)[:33] + b"\xff" * 40, "truncated"),
    "jpeg 12 bits": (jpeg(PIXELS).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "unsupported_depth"),
    "jpeg of four components": (jpeg_of_scans(PLANE, components=4), "unsupported_colour"),
    "jpeg of two components": (jpeg_of_scans(PLANE, components=2), "unsupported_colour"),
    "jpeg without a scan": (jpeg_of_scans(PLANE, components=3)[:-2].split(b"\xff\xda")[0] + b"\xff\xd9", "truncated"),
    "jpeg without its last scan": (jpeg_of_scans(PLANE, components=3, scans=2), "truncated"),
    "jpeg without a frame": (b"\xff\xd8\xff\xfe\x00\x04hi\xff\xd9", "corrupt"),
    "jpeg of two frames": (jpeg_with_segment(jpeg(PIXELS), 0xC0, struct.pack(">BHHB9x", 8, 40, 56, 3)), "corrupt"),
    "jpeg inside a jpeg": (jpeg(PIXELS)[:2] + jpeg(PIXELS), "corrupt"),
    "jpeg of an empty segment": (b"\xff\xd8\xff\xe0\x00\x00" + jpeg(PIXELS)[2:], "corrupt"),
    "jpeg of bytes between segments": (jpeg(PIXELS)[:2] + b"\xff\xfe\x00\x04hi?" + jpeg(PIXELS)[2:], "corrupt"),
    "jpeg cut and continued by another": (jpeg(PIXELS)[:-200] + jpeg(PIXELS), "corrupt"),
    "bmp of os/2": (b"BM" + struct.pack("<IHHIIHHHH", 30, 0, 0, 26, 12, 1, 1, 1, 24) + bytes(4), "unsupported_format"),
    "bmp compressed": (bmp(PLANE, compression=1), "unsupported_format"),
    "bmp of a jpeg": (bmp(BGR, compression=4), "unsupported_format"),
    "bmp of 10-bit masks": (
        bmp(with_alpha(BGR, 0), masks=(0x3FF00000, 0xFFC00, 0x3FF)),
        "unsupported_format",
    ),
    "bmp whose short header holds unusual masks": (
        bmp(with_alpha(PIXELS, 0), masks=(0xFF, 0xFF00, 0xFF0000)),
        "unsupported_format",
    ),
    "bmp 24 with masks": (bmp(BGR, masks=(0xFF0000, 0xFF00, 0xFF)), "unsupported_format"),
    "tiff 16 bits": (tiff(DEEP), "unsupported_depth"),
    "tiff 16 bits in one sample": (tiff(PIXELS, tags={258: ("H", [8, 16, 8])}), "unsupported_depth"),
    "tiff signed": (tiff(PIXELS, tags={339: ("H", [2, 2, 2])}), "unsupported_depth"),
    "tiff float": (tiff(PLANE, tags={339: ("H", [3])}), "unsupported_depth"),
    "tiff of two pages": (tiff(PIXELS, next_page=8), "multi_page"),
    "tiff cmyk": (tiff(with_alpha(PIXELS, 0), tags={262: ("H", [5])}), "unsupported_colour"),
    "tiff lab": (tiff(PIXELS, tags={262: ("H", [8])}), "unsupported_colour"),
    "tiff of five samples": (tiff(np.dstack([PIXELS, PLANE, PLANE])), "unsupported_colour"),
    "tiff grey of three samples": (tiff(PIXELS, tags={262: ("H", [1])}), "unsupported_colour"),
    "tiff without a value": (tiff(PIXELS, tags={258: ("H", [])}), "corrupt"),
    "tiff without sizes of strips": (tiff(PIXELS, rows_per_strip=8, tags={279: ("I", [1])}), "corrupt"),
    "tiff whose strip lies behind the end": (tiff(PIXELS, tags={273: ("I", [1 << 20])}), "truncated"),
    "tiff whose strip is longer than the file": (tiff(PIXELS, tags={279: ("I", [1 << 31])}), "truncated"),
    "tiff of sixteen million strips": (
        tiff(PIXELS).replace(struct.pack("<HHI", 279, 4, 1), struct.pack("<HHI", 279, 4, 1 << 24)),
        "corrupt",
    ),
    "tiff whose directory lies behind the end": (b"II*\0" + struct.pack("<I", 1 << 31) + bytes(100), "truncated"),
    "tiff without dimensions": (b"II*\0" + struct.pack("<IHI", 8, 0, 0), "corrupt"),
    "webp animated": (webp_animated(PIXELS), "animated"),
    "webp without an image": (webp_of(webp_chunk(b"EXIF", b"abcd" * 8)), "corrupt"),
}
REFUSED |= {
    f"tiff orientation {value}": (tiff(PIXELS, tags={274: ("H", [value])}), "unsupported_orientation")
    for value in range(2, 9)
}

# The same picture with any alpha channel `uint8 (height, width)`, in every way to have one.
TRANSPARENT: dict[str, Callable[[Pixels], bytes]] = {
    "png": lambda alpha: png(with_alpha(PIXELS, alpha), PNG_RGBA),
    "png grey": lambda alpha: png(np.dstack([PLANE, alpha]), PNG_GREY_ALPHA),
    "bmp": lambda alpha: bmp(with_alpha(BGR, alpha), masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), header_size=124),
    "tiff": lambda alpha: tiff(with_alpha(PIXELS, alpha), tags={338: ("H", [2])}),
    "tiff grey": lambda alpha: tiff(np.dstack([PLANE, alpha]), tags={338: ("H", [2])}),
    "tiff unspecified": lambda alpha: tiff(with_alpha(PIXELS, alpha), tags={338: ("H", [0])}),
    "webp lossless": lambda alpha: webp_lossless(with_alpha(PIXELS, alpha)),
    "webp lossy": lambda alpha: webp_lossy(with_alpha(PIXELS, alpha)),
    "webp extended": lambda alpha: webp_extended(
        webp_lossless(with_alpha(PIXELS, alpha)), flags=0x10, size=(HEIGHT, WIDTH)
    ),
}


def one_hole(depth: int) -> Pixels:
    """An alpha channel that is opaque but for its last pixel."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[-1, -1] = depth
    return alpha
