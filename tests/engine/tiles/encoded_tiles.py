"""Tiles in every format, drawn and encoded here: what OpenCV cannot write is put together byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

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


def png_animated(pixels: Pixels, *, frames: int = 2) -> bytes:
    height, width = pixels.shape[:2]
    frame = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)
    return png(pixels, PNG_RGB, extra=[(b"acTL", struct.pack(">II", frames, 0)), (b"fcTL", frame)])


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


def webp_animated(pixels: Pixels, *, frames: int = 2) -> bytes:
    size = pixels.shape[:2]
    extent = (size[1] - 1).to_bytes(3, "little") + (size[0] - 1).to_bytes(3, "little")
    image = webp_lossless(pixels)[12:]
    frame = webp_chunk(b"ANMF", bytes(6) + extent + (100).to_bytes(3, "little") + b"\0" + image)
    animation = webp_chunk(b"ANIM", bytes(6))
    return webp_of(webp_chunk(b"VP8X", bytes([0x02, 0, 0, 0]) + extent), animation, *[frame] * frames)


# JPEG 2000


def jpeg2000(pixels: Pixels, *, bare: bool = True, transformed: bool = True) -> bytes:
    """A lossless JPEG 2000, bare or in a JP2 file, its colours transformed or each on its own."""
    codec = "j2k" if bare else "jp2"
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat=codec, reversible=True, mct=transformed))


def jpeg2000_claiming(data: bytes, *, height: int, width: int) -> bytes:
    """A bare `data` of one tile with other dimensions."""
    size = struct.pack(">6I", width, height, 0, 0, max(width, 1), max(height, 1))
    return data[:8] + size + data[32:]


def jpeg2000_of_tiles(pixels: Pixels, *, kept: int) -> bytes:
    """Only the first tiles of those that make up an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True, tile_size=(16, 16))
    data = buffer.getvalue()
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\x90\0\x0a", at)]
    return data[: starts[kept]] + b"\xff\xd9"
