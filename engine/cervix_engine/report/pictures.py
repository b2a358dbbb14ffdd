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
    from cervix_engine.report.reasons import Reasons
    from cervix_engine.report.similar import Neighbour

THUMBNAIL_PX = 160
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A tile's picture, or None and why there is none; its heat map and its nearest training tiles, if asked for."""

    uri: str | None
    missing: str = ""
    heat: str | None = None
    similar: tuple[Neighbour, ...] = ()


def thumbnails(
    source: TileSource, cells: Collection[str], *, contract: ModelContract, reasons: Reasons | None = None
) -> dict[str, Thumbnail]:
    """The pictures of tiles, by what a table calls them; each at most `THUMBNAIL_PX` wide and high.

    `reasons` adds what is shown beside them.
    A table may come from somebody else: what it names is looked for in the source, and opened nowhere else.
    """
    # In the order of a listing, in which a source finds them soonest.
    names = {os.fsencode(unescape_name(cell)): cell for cell in cells}
    reader = source.reader()
    with scratch_folder() as spool:
        records = source.again(sorted(names), spool=spool)
        return {names[record[0]]: _thumbnail(reader, record, contract, reasons) for record in records}


def _thumbnail(reader: TileReader, record: Record, contract: ModelContract, reasons: Reasons | None) -> Thumbnail:
    from cervix_engine.tiles.preprocess import decode

    name, size, mtime_ns, where = record
    if (size, mtime_ns) == ABSENT:
        return Thumbnail(None, "not among these tiles")
    try:
        data = reader.read(os.fsdecode(name), TileStamp(size, mtime_ns, where.decode()))
        pixels = decode(data, contract=contract) if isinstance(data, bytes) else data
    except TileError as error:
        return Thumbnail(None, str(error))
    if reasons is None:
        return Thumbnail(jpeg_uri(pixels))
    reason = reasons.of(pixels)
    heat = jpeg_uri(reason.heat) if reason.heat is not None else None
    return Thumbnail(jpeg_uri(pixels), heat=heat, similar=reason.similar)


def jpeg_uri(pixels: Pixels, *, longest_px: int = THUMBNAIL_PX) -> str:
    """RGB pixels as a JPEG data URI, shrunk to at most so many pixels a side."""
    import cv2

    height, width = pixels.shape[:2]
    scale = longest_px / max(height, width)
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
