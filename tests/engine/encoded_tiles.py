"""Tiles in every format, drawn and encoded here: what OpenCV cannot write is put together byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 40, 56

# The smallest GIF that there is: one pixel.
GIF = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")


def draw(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A few cells on a pale ground, `uint8 (height, width, 3)` RGB; the same seed draws the same tile."""
    random = np.random.default_rng(seed)
    tile = np.empty((height, width, 3), np.uint8)
    tile[:] = random.integers(200, 240, 3)
    for _ in range(4):
        centre = (int(random.integers(width)), int(random.integers(height)))
        radius = int(random.integers(4, 14))
        colour = [int(value) for value in random.integers(60, 200, 3)]
        cv2.circle(tile, centre, radius, colour, -1)
        cv2.circle(tile, centre, radius // 3, [value // 3 for value in colour], -1)
    return tile


def grey(pixels: Pixels) -> Pixels:
    """The green channel alone, `uint8 (height, width)`."""
    return np.ascontiguousarray(pixels[..., 1])


def as_rgb(plane: Pixels) -> Pixels:
    """A grey plane as three equal channels."""
    return np.repeat(plane[..., None], 3, axis=2)


def with_alpha(pixels: Pixels, alpha: int | Pixels) -> Pixels:
    """RGBA of RGB."""
    return np.dstack([pixels, np.broadcast_to(np.asarray(alpha, np.uint8), pixels.shape[:2])])


def encode(suffix: str, pixels: Pixels, *options: int) -> bytes:
    """What OpenCV writes for RGB, RGBA or grey pixels."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    stored = cv2.cvtColor(pixels, codes[pixels.shape[2]]) if pixels.ndim == 3 else pixels
    done, data = cv2.imencode(suffix, stored, options)
    assert done, f"OpenCV cannot write {suffix}"
    return data.tobytes()


# JPEG


def jpeg(pixels: Pixels, *options: int, quality: int = 90) -> bytes:
    return encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, quality, *options)


def jpeg_progressive(pixels: Pixels) -> bytes:
    return jpeg(pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def jpeg_with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """`data` with another segment right behind its start-of-image marker."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def exif(orientation: int, *, thumbnail: bytes = b"") -> bytes:
    """The content of an APP1 segment, with an orientation and, if given, an embedded thumbnail."""
    first = struct.pack(">HHHIHH", 1, 274, 3, 1, orientation, 0)
    second_at = 8 + len(first) + 4
    if not thumbnail:
        return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + first + struct.pack(">I", 0)
    data_at = second_at + 2 + 2 * 12 + 4
    second = struct.pack(">HHHIIHHIII", 2, 513, 4, 1, data_at, 514, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + first + struct.pack(">I", second_at) + second + thumbnail


def jpeg_of_scans(plane: Pixels, *, components: int, scans: int | None = None) -> bytes:
    """A baseline JPEG whose `components`, all equal to `plane`, come in one scan each; only the first `scans`."""
    data = encode(".jpg", plane, cv2.IMWRITE_JPEG_QUALITY, 95)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    start = data[frame + 4 : frame + 9] + bytes([components])
    start += b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    tables = data[:frame] + data[frame + 2 + 11 : scan]
    coded = data[scan + 10 : -2]
    parts = [
        struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, number, 0, 0, 63, 0) + coded
        for number in range(1, (scans or components) + 1)
    ]
    return tables + b"\xff\xc0" + struct.pack(">H", len(start) + 2) + start + b"".join(parts) + b"\xff\xd9"


def jpeg_claiming(data: bytes, *, height: int, width: int) -> bytes:
    """`data` with other dimensions in its frame header."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


# PNG

PNG_GREY, PNG_RGB, PNG_PALETTE, PNG_GREY_ALPHA, PNG_RGBA = 0, 2, 3, 4, 6
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    samples: npt.NDArray[np.uint8 | np.uint16],
    colour: int,
    *,
    extra: Sequence[tuple[bytes, bytes]] = (),
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of `samples (height, width[, channels])`, with `extra` chunks before its pixels; `size` lies about them."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, colour, 0, 0, interlaced)
    big_endian = samples.astype(f">u{samples.itemsize}")
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [row for top, left, down, right in passes for row in big_endian[top::down, left::right]]
    chunks = [
        (b"IHDR", header),
        *extra,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in chunks)


def palette_of(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """(indices, colours) of a tile that has few colours."""
    colours, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    assert len(colours) <= 256
    return indices.reshape(pixels.shape[:2]).astype(np.uint8), colours


def png_palette(pixels: Pixels, *, alphas: bytes = b"") -> bytes:
    indices, colours = palette_of(pixels)
    extra = [(b"PLTE", colours.tobytes())] + ([(b"tRNS", alphas)] if alphas else [])
    return png(indices, PNG_PALETTE, extra=extra)


def png_animated(pixels: Pixels) -> bytes:
    height, width = pixels.shape[:2]
    frame = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)
    return png(pixels, PNG_RGB, extra=[(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame)])


# BMP


def bmp(
    samples: npt.NDArray[np.uint8 | np.uint16],
    *,
    top_down: bool = False,
    palette: Pixels | None = None,
    masks: Sequence[int] = (),
    header_size: int = 40,
    compression: int | None = None,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A BMP of `samples (height, width[, channels])` in the order of the file (BGR); `size` lies about them."""
    height, width = size or samples.shape[:2]
    bits = 8 * samples.itemsize * (samples.shape[2] if samples.ndim == 3 else 1)
    rows = [row.tobytes() for row in (samples if top_down else samples[::-1])]
    body = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    colours = b"" if palette is None else b"".join(bytes([*colour[::-1], 0]) for colour in palette)
    compressed = compression if compression is not None else (3 if masks else 0)
    entries = 0 if palette is None else len(palette)
    header = struct.pack(
        "<IiiHHIIiiII",
        header_size,
        width,
        -height if top_down else height,
        1,
        bits,
        compressed,
        len(body),
        0,
        0,
        entries,
        0,
    )
    packed = struct.pack(f"<{len(masks)}I", *masks)
    header += packed if header_size == 40 else packed.ljust(header_size - 40, b"\0")
    start = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


# TIFF

_TIFF_KINDS = {"B": 1, "H": 3, "I": 4}
TiffTags = Mapping[int, tuple[str, Sequence[int]]]


def tiff(
    samples: Pixels | npt.NDArray[np.uint16],
    *,
    order: str = "<",
    rows_per_strip: int | None = None,
    deflate: bool = False,
    tags: TiffTags | None = None,
    next_page: int = 0,
) -> bytes:
    """A TIFF of `samples (height, width[, channels])`: its directory in front, then its strips.

    Args:
        samples: grey, RGB or RGBA.
        order: `<` or `>`.
        rows_per_strip: all of them in one strip by default.
        deflate: whether to compress the strips.
        tags: others, or other values; an empty sequence leaves a tag's values out.
        next_page: offset of another directory.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, channels = samples.shape
    step = rows_per_strip or height
    stored = samples.astype(f"{order}u{samples.itemsize}")
    strips = [stored[row : row + step].tobytes() for row in range(0, height, step)]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * samples.itemsize] * channels),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [2 if channels >= 3 else 1]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [step]),
        279: ("I", [len(strip) for strip in strips]),
        **(tags or {}),
    }
    # Twice: where the strips begin is known only after the first.
    start = len(_tiff_directory(entries, order, next_page))
    if 273 not in (tags or {}):
        entries[273] = ("I", [start + sum(map(len, strips[:index])) for index in range(len(strips))])
    return _tiff_directory(entries, order, next_page) + b"".join(strips)


def _tiff_directory(entries: TiffTags, order: str, next_page: int) -> bytes:
    outside_at = 8 + 2 + 12 * len(entries) + 4
    table, outside = b"", b""
    for tag, (code, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        table += struct.pack(order + "HHI", tag, _TIFF_KINDS[code], len(values))
        if len(packed) <= 4:
            table += packed.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", outside_at + len(outside))
            outside += packed + b"\0" * (len(packed) % 2)
    start = b"II*\0" if order == "<" else b"MM\0*"
    head = start + struct.pack(order + "I", 8) + struct.pack(order + "H", len(entries))
    return head + table + struct.pack(order + "I", next_page) + outside


# WebP


def webp_lossless(pixels: Pixels) -> bytes:
    return encode(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 101)


def webp_lossy(pixels: Pixels, *, quality: int = 80) -> bytes:
    return encode(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, quality)


def webp_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def webp_of(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_extended(data: bytes, *, flags: int, size: tuple[int, int], before: bytes = b"") -> bytes:
    """The image chunk of a simple WebP in the extended format, with `flags` and `before` in front of it."""
    height, width = size
    extent = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp_of(webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + extent), before, data[12:])


def webp_animated(pixels: Pixels) -> bytes:
    size = pixels.shape[:2]
    extent = (size[1] - 1).to_bytes(3, "little") + (size[0] - 1).to_bytes(3, "little")
    image = webp_lossless(pixels)[12:]
    frame = webp_chunk(b"ANMF", bytes(6) + extent + (100).to_bytes(3, "little") + b"\0" + image)
    animation = webp_chunk(b"ANIM", bytes(6))
    return webp_of(webp_chunk(b"VP8X", bytes([0x02, 0, 0, 0]) + extent), animation, frame, frame)


def whole_tiles() -> dict[str, tuple[bytes, Pixels | None]]:
    """Name -> (file, the RGB pixels it must decode to, or None where the format is lossy). All must be accepted."""
    pixels = draw()
    plane = grey(pixels)
    few = palette_of(pixels)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    restarts, sampling = cv2.IMWRITE_JPEG_RST_INTERVAL, cv2.IMWRITE_JPEG_SAMPLING_FACTOR
    compression = cv2.IMWRITE_TIFF_COMPRESSION
    return {
        "jpeg_420": (jpeg(pixels, sampling, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420), None),
        "jpeg_444": (jpeg(pixels, sampling, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), None),
        "jpeg_422": (jpeg(pixels, sampling, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422), None),
        "jpeg_progressive": (jpeg_progressive(pixels), None),
        "jpeg_progressive_grey": (jpeg_progressive(plane), None),
        "jpeg_grey": (jpeg(plane), None),
        "jpeg_restarts": (jpeg(pixels, restarts, 1), None),
        "jpeg_three_scans": (jpeg_of_scans(plane, components=3), None),
        "jpeg_thumbnail": (jpeg_with_segment(jpeg(pixels), 0xE1, exif(1, thumbnail=jpeg(draw(1), quality=40))), None),
        "png_rgb": (png(pixels, PNG_RGB), pixels),
        "png_opencv": (encode(".png", pixels), pixels),
        "png_grey": (png(plane, PNG_GREY), as_rgb(plane)),
        "png_interlaced": (png(pixels, PNG_RGB, interlaced=True), pixels),
        "png_palette": (png_palette(pixels), pixels),
        "png_palette_opaque": (png_palette(pixels, alphas=b"\xff" * len(few[1])), pixels),
        "png_unused_transparent_colour": (
            png(pixels, PNG_RGB, extra=[(b"tRNS", struct.pack(">3H", 1, 2, 3))]),
            pixels,
        ),
        "png_rgba_opaque": (png(with_alpha(pixels, 255), PNG_RGBA), pixels),
        "png_grey_alpha_opaque": (
            png(np.dstack([plane, np.full_like(plane, 255)]), PNG_GREY_ALPHA),
            as_rgb(plane),
        ),
        "bmp_24": (bmp(bgr), pixels),
        "bmp_24_top_down": (bmp(bgr, top_down=True), pixels),
        "bmp_palette": (bmp(few[0], palette=few[1]), pixels),
        "bmp_32": (bmp(with_alpha(bgr, 0)), pixels),
        "bmp_32_top_down": (bmp(with_alpha(bgr, 7), top_down=True), pixels),
        "bmp_32_masks": (bmp(with_alpha(bgr, 0), masks=(0xFF0000, 0xFF00, 0xFF)), pixels),
        "bmp_32_masks_rgb": (bmp(with_alpha(pixels, 0), masks=(0xFF, 0xFF00, 0xFF0000, 0), header_size=108), pixels),
        "bmp_32_opaque": (
            bmp(with_alpha(bgr, 255), masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), header_size=124),
            pixels,
        ),
        "tiff": (tiff(pixels), pixels),
        "tiff_big_endian": (tiff(pixels, order=">"), pixels),
        "tiff_strips": (tiff(pixels, rows_per_strip=7), pixels),
        "tiff_deflate": (tiff(pixels, order=">", rows_per_strip=16, deflate=True), pixels),
        "tiff_lzw": (encode(".tiff", pixels, compression, cv2.IMWRITE_TIFF_COMPRESSION_LZW), pixels),
        "tiff_packbits": (encode(".tiff", pixels, compression, cv2.IMWRITE_TIFF_COMPRESSION_PACKBITS), pixels),
        "tiff_grey": (tiff(plane), as_rgb(plane)),
        "tiff_white_is_zero": (tiff(plane, tags={262: ("H", [0])}), as_rgb(255 - plane)),
        "tiff_opaque": (tiff(with_alpha(pixels, 255), tags={338: ("H", [2])}), pixels),
        "webp_lossless": (webp_lossless(pixels), pixels),
        "webp_lossy": (webp_lossy(pixels), None),
        "webp_extended": (webp_extended(webp_lossless(pixels), flags=0, size=(HEIGHT, WIDTH)), pixels),
    }
