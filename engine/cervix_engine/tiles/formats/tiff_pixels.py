"""The pixels of a TIFF page. Each strip or tile is decoded alone, and must give exactly what it has to.

libtiff logs what is wrong with a strip and leaves its rows black, and OpenCV believes that. Here a codec's error, a
wrong checksum, and a byte too few or too many refuse the tile.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator

import imagecodecs
import numpy as np

from cervix_engine.tiles.formats import lzw, tiff_page
from cervix_engine.tiles.formats.header import corrupt, refuse_transparency
from cervix_engine.tiles.formats.tiff_images import decode_image
from cervix_engine.tiles.formats.tiff_page import TiffPage
from cervix_engine.values import Pixels

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LZMA_MEMORY_BYTES = 128 * 2**20  # xz's largest preset asks for 65 MiB


def decode(data: bytes, *, page: TiffPage) -> Pixels:
    """Decode one page to `uint8 (height, width, 3)` RGB.

    Raises:
        TileDecodeError: a strip or tile is not whole, or a pixel is transparent.
    """
    samples = _samples(data, page)
    if samples.shape[2] > page.colours:
        refuse_transparency(samples[..., -1])
    return _in_rgb(samples, page)


def _samples(data: bytes, page: TiffPage) -> Pixels:
    """All samples, `(height, width, samples)`; an alpha channel only where its codec leaves it to be checked."""
    in_bytes = page.compression in tiff_page.IN_BYTES
    if len(page.segments) == 1 and not page.tiled:
        return _segment(data, page, page.segments[0], page.height)
    samples = np.empty((page.height, page.width, page.samples if in_bytes else page.colours), np.uint8)
    for segment, part in zip(page.segments, _parts(samples, page), strict=True):
        # Tiles reach beyond the image's edges, strips do not.
        pixels = _segment(data, page, segment, page.segment_height if page.tiled else len(part))
        part[...] = pixels[: part.shape[0], : part.shape[1]]
    return samples


def _segment(data: bytes, page: TiffPage, segment: tuple[int, int], height: int) -> Pixels:
    """Decode a strip of this height, or a tile, to `(height, segment width, samples)`."""
    offset, size = segment
    encoded = data[offset : offset + size]
    if page.compression in tiff_page.AS_IMAGES:
        return decode_image(encoded, page, height)[:height]
    if page.reversed_bits:
        encoded = encoded.translate(_REVERSED)
    channels = 1 if page.planar else page.samples
    row_bytes = -(-page.segment_width * channels * page.bits // 8)
    decoded = _bytes(encoded, page, height * row_bytes, page.segment_height * row_bytes)
    rows = np.frombuffer(decoded, np.uint8, height * row_bytes).reshape(height, row_bytes)
    if page.bits < 8:
        rows = _unpacked(rows, page.bits)[:, : page.segment_width]
    samples = rows.reshape(height, page.segment_width, channels)
    return np.cumsum(samples, axis=1, dtype=np.uint8) if page.predicted else samples


def _parts(samples: Pixels, page: TiffPage) -> Iterator[Pixels]:
    """What each segment fills: plane by plane, row by row."""
    for plane in np.split(samples, samples.shape[2], axis=2) if page.planar else [samples]:
        for top in range(0, page.height, page.segment_height):
            for left in range(0, page.width, page.segment_width):
                yield plane[top : top + page.segment_height, left : left + page.segment_width]


def _unpacked(rows: Pixels, bits: int) -> Pixels:
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    samples = rows[..., None] >> shifts & np.uint8((1 << bits) - 1)
    return samples.reshape(len(rows), -1)


def _bytes(encoded: bytes, page: TiffPage, wanted: int, most: int) -> bytes | bytearray:
    decoded: bytes | bytearray
    if page.compression == tiff_page.NONE:
        decoded = encoded[:wanted]
    else:
        try:
            decoded = _CODECS[page.compression](encoded, most + 1)
        except (lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
            raise corrupt("the codec refused a TIFF strip or tile") from error
    # Some writers fill up the last strip.
    if len(decoded) not in (wanted, most):
        more = "or more " if len(decoded) > most else ""
        raise corrupt(f"TIFF strip or tile of {len(decoded)} {more}bytes, expected {wanted}")
    return decoded


def _deflate(encoded: bytes, limit: int) -> bytes | bytearray:
    # libdeflate checks the checksum, and refuses what is longer than the limit.
    return imagecodecs.deflate_decode(encoded, out=limit)


def _lzma(encoded: bytes, limit: int) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES)
    decoded = decompressor.decompress(encoded, limit)
    # The checksum lies at the end; a stream that goes on beyond the limit is too long anyway.
    if not decompressor.eof and len(decoded) < limit:
        raise EOFError
    return decoded


# Compression -> a codec that gives no more bytes than it is told, and raises for what it cannot decode.
_CODECS: dict[int, Callable[[bytes, int], bytes | bytearray]] = {
    tiff_page.LZW: lzw.decode,
    tiff_page.DEFLATE: _deflate,
    tiff_page.OLD_DEFLATE: _deflate,
    tiff_page.PACKBITS: lambda encoded, limit: imagecodecs.packbits_decode(encoded, out=limit),
    tiff_page.LZMA: _lzma,
    tiff_page.ZSTD: lambda encoded, limit: imagecodecs.zstd_decode(encoded, out=limit),
}


def _in_rgb(samples: Pixels, page: TiffPage) -> Pixels:
    if page.colour_model == tiff_page.PALETTE:
        colours = np.reshape(page.palette, (3, -1)).T
        # Of 16 bits by the standard; of 8 where no value needs more, as libtiff takes it.
        return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)[samples[..., 0]]
    if page.colours == 3:
        return np.ascontiguousarray(samples[..., :3])
    grey = samples[..., :1] * np.uint8(255 // ((1 << page.bits) - 1))
    return np.repeat(255 - grey if page.colour_model == tiff_page.WHITE_IS_ZERO else grey, 3, axis=2)
