"""Pictures inside a page: thumbnails of tiles, through the one decoder of the project, as data URIs."""

from __future__ import annotations

import base64
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError
from cervix_engine.files import scratch_folder
from cervix_engine.table.names import unescape_name
from cervix_engine.tiles.listing import ABSENT, Record
from cervix_engine.tiles.sources.source import TileReader, TileSource
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels

if TYPE_CHECKING:
    from cervix_engine.report.class_maps import ClassMaps

THUMBNAIL_PX = 160
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A tile's picture, or None and why there is none; and its heat map, where one was asked for."""

    uri: str | None
    reason: str = ""
    heat: str | None = None


def thumbnails(
    source: TileSource, cells: Collection[str], *, contract: ModelContract, maps: ClassMaps | None = None
) -> dict[str, Thumbnail]:
    """The pictures of tiles, by what a table calls them; each at most `THUMBNAIL_PX` wide and high. `maps` adds heat.

    A table may come from somebody else: what it names is looked for in the source, and opened nowhere else.
    """
    # In the order of a listing, in which a source finds them soonest.
    names = {os.fsencode(unescape_name(cell)): cell for cell in cells}
    reader = source.reader()
    with scratch_folder() as spool:
        records = source.again(sorted(names), spool=spool)
        return {names[record[0]]: _thumbnail(reader, record, contract, maps) for record in records}


def _thumbnail(reader: TileReader, record: Record, contract: ModelContract, maps: ClassMaps | None) -> Thumbnail:

    from cervix_engine.tiles.preprocess import decode

    name, size, mtime_ns, where = record
    if (size, mtime_ns) == ABSENT:
        return Thumbnail(None, "not among these tiles")
    try:
        data = reader.read(os.fsdecode(name), TileStamp(size, mtime_ns, where.decode()))
        pixels = decode(data, contract=contract) if isinstance(data, bytes) else data
    except TileError as error:
        return Thumbnail(None, str(error))
    return Thumbnail(_jpeg(pixels), heat=_jpeg(maps.overlay(pixels)) if maps else None)


def _jpeg(pixels: Pixels) -> str:
    import cv2

    height, width = pixels.shape[:2]
    scale = THUMBNAIL_PX / max(height, width)
    if scale < 1:
        size_px = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(cv2.resize(pixels, size_px, interpolation=cv2.INTER_AREA), np.uint8)
    return data_uri("jpeg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def data_uri(kind: str, pixels: Any) -> str:
    """Encode `uint8` pixels (BGR or BGRA) as a `jpeg` or `png` data URI."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else []
    _, encoded = cv2.imencode(f".{kind}", pixels, options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
