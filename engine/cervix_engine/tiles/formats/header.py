"""What every format's header is turned into, and the refusals that formats have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cervix_engine.errors import TileDecodeError, TileShapeError
from cervix_engine.values import Pixels

Format = Literal["jpeg", "png", "bmp", "tiff", "webp", "jpeg2000"]

MAX_SIDE_PX = 16_384
MAX_AREA_PX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class TileHeader:
    """What the header of an encoded tile says.

    Attributes:
        format: by content.
        height, width: in pixels, as stored.
        has_alpha: whether pixels may be transparent.
        scan_end: where a JPEG's end-of-image marker begins; 0 in other formats.
        process: a JPEG's, by the marker of its frame; 0 in other formats.
        transparent_grey: the one value that a grey PNG shows as transparent, as it is stored in 8 bits.
        decode: the file's bytes to RGB pixels, where a format has a decoder of its own; None leaves it to OpenCV.
    """

    format: Format
    height: int
    width: int
    has_alpha: bool = False
    scan_end: int = 0
    process: int = 0
    transparent_grey: int | None = None
    decode: Callable[[bytes], Pixels] | None = field(default=None, compare=False)


def truncated(what: str) -> TileDecodeError:
    return TileDecodeError("truncated", what)


def corrupt(what: str) -> TileDecodeError:
    return TileDecodeError("corrupt", what)


def refuse_depth(bits: int) -> None:
    if bits > 8:
        raise TileDecodeError("unsupported_depth", f"{bits} bits a sample, expected 8")


def refuse_size(height: int, width: int) -> None:
    """Refuse dimensions of zero or above the limits."""
    if height < 1 or width < 1:
        raise TileShapeError("bad_dimensions", f"{width}x{height} pixels")
    if max(height, width) > MAX_SIDE_PX or height * width > MAX_AREA_PX:
        limit = f"{MAX_SIDE_PX} a side and {MAX_AREA_PX} in all"
        raise TileShapeError("too_large", f"{width}x{height} pixels, limit {limit}")


def refuse_transparency(alpha: Pixels) -> None:
    """Refuse a tile that is not opaque: what lies behind a transparent pixel is not in the file."""
    if np.min(alpha, initial=255) < 255:
        raise TileDecodeError("transparent", "the image has transparent pixels")
