"""Where tiles lie, from a CSV file with `path,minx,miny` and, where wanted, `width,height,slide_id`.

Paths are relative to the folder of tiles and not escaped. A tile that the file does not name has no location. All of it
is in memory while a run writes: about 200 bytes a tile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.errors import UsageError
from cervix_engine.files import sha256_bytes
from cervix_engine.table.coordinates import Locating, Location, Locator
from cervix_engine.table.csv_input import read_csv, whole_number
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Box, Row, Table

# How a run remembers the file: its bytes decide, and its path lets a resumed run find it.
_PREFIX = "file:"


@dataclass(frozen=True, slots=True)
class Locations:
    """The locations that a file names.

    Attributes:
        named: (slide or "", x, y, width or 0, height or 0) by path.
        coords: what identifies the file, for `load`.
    """

    named: dict[str, tuple[str, int, int, int, int]]
    coords: str

    @classmethod
    def load(cls, coords: str | Path) -> Locations:
        """Read a file, or the one that an earlier run read.

        Args:
            coords: its path; or `Locations.coords` of an earlier run, whose file must still be the same.

        Raises:
            UsageError: it cannot be read, is no such file, or has changed since.
        """
        text = os.fspath(coords)
        digest, _, remembered = text.removeprefix(_PREFIX).partition(":") if _is_remembered(text) else ("", "", text)
        path = Path(remembered)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the coordinates {path}: {error.strerror}") from error
        now = sha256_bytes(data)
        if digest and now != digest:
            raise UsageError(f"the coordinates {path} have changed since the run began: pass --no-resume to begin anew")
        return cls(dict(_rows(path, data)), f"{_PREFIX}{now}:{path.resolve()}")

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None:
        """As `Locator.locate`."""
        found = self.named.get(name)
        if found is None:
            return None
        slide, x, y, own_width, own_height = found
        return Location(slide or slide_id, Box(x, y, own_width or width, own_height or height))

    def __call__(self, row: Row) -> Location | None:
        """As `Locator.__call__`; the file goes before what the table says."""
        if row.width is None or row.height is None:
            return None
        location = self.locate(unescape_name(row.path), row.slide_id, row.width, row.height)
        return location or (Location(row.slide_id, row.box) if row.box is not None else None)


def locating_for_run(coords: str) -> Locating:
    """What knows where a run's tiles lie, which no table holds yet.

    Args:
        coords: `coordinates.NAMES`, a pattern, a CSV file, or what `identified` made of one.

    Raises:
        UsageError: the pattern names no position, or the file cannot be used.
    """
    return Locations.load(coords) if _is_file(coords) else Locator.for_run(coords)


def locating_for_table(table: Table, coords: str | None) -> Locating:
    """What knows where a finished table's tiles lie, by a pattern or a CSV file, else by what table and names say.

    Raises:
        UsageError: as `locating_for_run`.
    """
    if coords is not None and _is_file(coords):
        return Locations.load(coords)
    return Locator.for_table(table, pattern=coords)


def identified(coords: str) -> str:
    """`coords` as part of what a run is: a file by its bytes, all else as it stands.

    Raises:
        UsageError: as `locating_for_run`.
    """
    if _is_file(coords):
        return Locations.load(coords).coords
    locating_for_run(coords)
    return coords


def _is_file(coords: str) -> bool:
    return _is_remembered(coords) or coords.lower().endswith(".csv")


def _is_remembered(coords: str) -> bool:
    return coords.startswith(_PREFIX)


def _rows(path: Path, data: bytes) -> Iterator[tuple[str, tuple[str, int, int, int, int]]]:
    optional = ("width", "height", "slide_id")
    for line, row in read_csv(path, ("path", "minx", "miny"), optional, data=data, any_bytes=True):
        try:
            x, y = whole_number(row["minx"]), whole_number(row["miny"])
            width, height = (whole_number(row.get(name) or "0") for name in ("width", "height"))
        except ValueError as error:
            raise UsageError(f"{path}, line {line}: {error}") from error
        yield row["path"], (row.get("slide_id") or "", x, y, width, height)
