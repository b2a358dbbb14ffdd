"""TIFF 6.0 and BigTIFF: a page with a single meaning as 8-bit RGB, and the decoder of its own that each one gets."""

from __future__ import annotations

from functools import partial

from cervix_engine.tiles.formats.header import TileHeader
from cervix_engine.tiles.formats.tiff_page import read_page

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(data: bytes) -> TileHeader:
    # Only who meets a TIFF loads its codecs.
    from cervix_engine.tiles.formats.tiff_pixels import decode

    page = read_page(data)
    return TileHeader("tiff", page.height, page.width, page.has_alpha, decode=partial(decode, page=page))
