"""A table's tiles as QuPath's objects: one GeoJSON file a slide, in the layout that WSInfer's converter writes too.

QuPath reads a FeatureCollection of polygons in full-resolution pixels, with `objectType`, `classification` (name and
colour), `measurements` and `metadata` (an operating point's decisions, as text) among the properties.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from cervix_engine.contract import Category
from cervix_engine.errors import UsageError
from cervix_engine.outputs.folder import whole_folder
from cervix_engine.outputs.places import require_free_folder
from cervix_engine.table.columns import probability_column
from cervix_engine.table.coordinates import Locating, Location
from cervix_engine.table.decisions import yes_or_no
from cervix_engine.table.reader import Row, Table

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS: Mapping[Category, tuple[int, int, int]] = {
    "normal": (0, 114, 178),
    "benign": (230, 159, 0),
    "abnormal": (213, 94, 0),
}

SUFFIX = ".geojson"

_NAMESPACE = uuid.UUID("6b1f3c0e-5d0a-5f0e-9c39-0f9a1f6f3c11")
_HEAD, _TAIL = '{"type": "FeatureCollection", "features": [\n', "\n]}\n"
_LONGEST_NAME = 200


def write_geojson(table: Table, folder: Path, *, locator: Locating, overwrite: bool = False) -> int:
    """Write `folder/<slide>.geojson` for every slide with a tile whose location is known; all of them appear at once.

    Failed tiles, and those without a location, are left out.

    Returns:
        How many tiles were written.

    Raises:
        OutputExistsError: the folder is there and `overwrite` is not set.
        UsageError: no tile's location is known; or the folder there holds more than such files.
        OutputError: the folder cannot be written.
    """
    check = partial(require_free_folder, folder, SUFFIX, overwrite=overwrite, inputs=(table.path,))
    check()
    with whole_folder(folder, check=check) as made:
        return _write_slides(made, table, locator)


def feature(row: Row, location: Location, class_names: tuple[str, ...]) -> dict[str, Any]:
    """One tile as a GeoJSON feature; its identity depends on slide and path only."""
    x, y, width, height = location.box
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    colour = list(COLOURS[row.category]) if row.category else None
    measurements = {probability_column(name): value for name, value in zip(class_names, row.probabilities, strict=True)}
    decisions = {}
    if row.abnormal is not None and row.review is not None:
        measurements[probability_column("abnormal")] = row.prob_abnormal or 0.0
        answers = {"category": row.category, "abnormal": yes_or_no(row.abnormal), "review": yes_or_no(row.review)}
        decisions = {"metadata": answers}
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{location.slide_id}\n{row.path}")),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {
            "objectType": "tile",
            "name": row.path,
            "isLocked": True,
            "classification": {"name": row.pred, "color": colour},
            "measurements": {**measurements, "confidence": row.confidence},
            **decisions,
        },
    }


def slide_file(slide_id: str) -> str:
    """A file name for any slide's name; different names stay different."""
    name = re.sub(r"[^\w.()-]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), slide_id)
    if name.startswith(".") or len(name.encode()) > _LONGEST_NAME:
        name = f"slide-{uuid.uuid5(_NAMESPACE, slide_id).hex}"
    return f"{name}{SUFFIX}"


def _write_slides(folder: Path, table: Table, locator: Locating) -> int:
    written, files = 0, set()
    # Rows come in order of their paths, so a slide's are mostly together; a slide that comes again is gone on with.
    for slide_id, group in groupby(_located(table, locator), key=lambda item: item[1].slide_id):
        path = folder / slide_file(slide_id)
        with path.open("a", encoding="utf-8") as file:
            for row, location in group:
                file.write(",\n" if path in files else _HEAD)
                file.write(json.dumps(feature(row, location, table.class_names), ensure_ascii=False, allow_nan=False))
                files.add(path)
                written += 1
    for path in files:
        with path.open("a", encoding="utf-8") as file:
            file.write(_TAIL)
    if not written:
        raise UsageError(f"no tile of {table.path} says where it lies on its slide: name its pattern with --coords")
    return written


def _located(table: Table, locator: Locating) -> Iterator[tuple[Row, Location]]:
    for row in table.rows():
        if row.pred is not None and (location := locator(row)) is not None:
            yield row, location
