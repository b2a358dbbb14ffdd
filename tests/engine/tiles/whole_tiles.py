"""One tile of every kind that must be accepted."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from .encoded_tiles import (
    HEIGHT,
    PNG_GREY,
    PNG_GREY_ALPHA,
    PNG_RGB,
    PNG_RGBA,
    WIDTH,
    Pixels,
    as_rgb,
    bmp,
    draw,
    encode,
    exif,
    grey,
    jpeg,
    jpeg2000,
    jpeg_of_scans,
    jpeg_progressive,
    jpeg_with_segment,
    palette_of,
    png,
    png_animated,
    png_palette,
    webp_animated,
    webp_extended,
    webp_lossless,
    webp_lossy,
    with_alpha,
)
from .tiff_tiles import (
    TIFF_APERIO_RGB,
    TIFF_DEFLATE,
    TIFF_LZMA,
    TIFF_LZW,
    TIFF_PACKBITS,
    TIFF_WEBP,
    TIFF_ZSTD,
    jpeg_tiff,
    packed,
    tiff,
    tiff_of_two_pages,
)


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
        "png_grey_unused_transparent_value": (
            png(plane, PNG_GREY, extra=[(b"tRNS", struct.pack(">H", 1))]),
            as_rgb(plane),
        ),
        "png_of_one_frame": (png_animated(pixels, frames=1), pixels),
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
        "bmp_32_of_no_alpha": (
            bmp(with_alpha(bgr, 0), masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000), header_size=124),
            pixels,
        ),
        "tiff": (tiff(pixels), pixels),
        "tiff_big_endian": (tiff(pixels, order=">"), pixels),
        "tiff_strips": (tiff(pixels, rows_per_strip=7), pixels),
        "tiff_deflate": (tiff(pixels, order=">", rows_per_strip=16, compression=TIFF_DEFLATE), pixels),
        "tiff_lzw": (encode(".tiff", pixels, compression, cv2.IMWRITE_TIFF_COMPRESSION_LZW), pixels),
        "tiff_packbits": (encode(".tiff", pixels, compression, cv2.IMWRITE_TIFF_COMPRESSION_PACKBITS), pixels),
        "tiff_grey": (tiff(plane), as_rgb(plane)),
        "tiff_white_is_zero": (tiff(plane, tags={262: ("H", [0])}), as_rgb(255 - plane)),
        "tiff_opaque": (tiff(with_alpha(pixels, 255), tags={338: ("H", [2])}), pixels),
        "tiff_grey_opaque": (tiff(np.dstack([plane, np.full_like(plane, 255)]), tags={338: ("H", [2])}), as_rgb(plane)),
        "tiff_grey_of_4_bits": (
            tiff(packed(plane // np.uint8(16), 4), tags={256: ("I", [WIDTH]), 258: ("H", [4])}),
            as_rgb(plane // np.uint8(16) * np.uint8(17)),
        ),
        "tiff_jpeg": (jpeg_tiff(pixels, sampling=0x221111, shared=True, rows_per_strip=16), None),
        "tiff_big": (tiff(pixels, big=True), pixels),
        "tiff_big_of_big_endian": (tiff(pixels, big=True, order=">", tile=(16, 32)), pixels),
        "tiff_tiles": (tiff(pixels, tile=(16, 32), compression=TIFF_LZW), pixels),
        "tiff_planar": (tiff(pixels, planar=True, rows_per_strip=9, compression=TIFF_PACKBITS), pixels),
        "tiff_predicted": (tiff(pixels, predicted=True, compression=TIFF_LZW), pixels),
        "tiff_zstd": (tiff(pixels, compression=TIFF_ZSTD), pixels),
        "tiff_lzma": (tiff(pixels, compression=TIFF_LZMA), pixels),
        "tiff_webp": (tiff(pixels, compression=TIFF_WEBP), pixels),
        "tiff_jpeg2000": (tiff(pixels, compression=TIFF_APERIO_RGB), pixels),
        "tiff_thumbnail": (tiff_of_two_pages(pixels, subfile=1), pixels),
        "jpeg2000": (jpeg2000(pixels), pixels),
        "jpeg2000_grey": (jpeg2000(plane), as_rgb(plane)),
        "jpeg2000_jp2": (jpeg2000(pixels, bare=False), pixels),
        "webp_lossless": (webp_lossless(pixels), pixels),
        "webp_lossy": (webp_lossy(pixels), None),
        "webp_of_one_frame": (webp_animated(pixels, frames=1), pixels),
        "webp_extended": (webp_extended(webp_lossless(pixels), flags=0, size=(HEIGHT, WIDTH)), pixels),
    }
