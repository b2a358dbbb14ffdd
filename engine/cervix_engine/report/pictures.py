"""Pictures inside a page: thumbnails of tiles, through the one decoder of the project, as data URIs."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.table.names import unescape_name

THUMBNAIL_PX = 160
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A tile's picture, or None and why there is none."""

    uri: str | None
    reason: str = ""


def thumbnail(root: Path, cell: str, *, contract: ModelContract) -> Thumbnail:
    """The picture of the tile that a table names `cell`, below `root`; at most `THUMBNAIL_PX` wide and high."""
    import cv2

    from cervix_engine.tiles.preprocess import decode, read_tile

    path = _inside(root, cell)
    if path is None:
        return Thumbnail(None, "outside the folder of tiles")
    try:
        pixels = decode(read_tile(path), contract=contract)
    except TileError as error:
        return Thumbnail(None, str(error))
    height, width = pixels.shape[:2]
    scale = THUMBNAIL_PX / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return _jpeg(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return _jpeg(pixels)


def _jpeg(pixels: Any) -> Thumbnail:
    import cv2

    return Thumbnail(data_uri("jpeg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)))


def data_uri(kind: str, pixels: Any) -> str:
    """Encode `uint8` pixels (BGR or BGRA) as a `jpeg` or `png` data URI."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else []
    _, encoded = cv2.imencode(f".{kind}", pixels, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _inside(root: Path, cell: str) -> Path | None:
    # A table may come from somebody else: it must not make this program open files of its choice.
    try:
        path = Path(os.path.realpath(root / unescape_name(cell)))
    except (OSError, ValueError):
        return None
    return path if path.is_relative_to(os.path.realpath(root)) else None
