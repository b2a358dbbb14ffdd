"""Where a tile lies on its slide: from the table itself, from a pattern the user gives, or from the file's name.

Names that spell x and y out are taken at their word:
    slide_x123_y456.png   slide-x=123,y=456.png   tile_x_123_y_456.png
    slide [x=123,y=456,w=512,h=512].tif           QuPath's tile exporter; also with d=…, z=…, t=…
    slide_(123,456).jpg
Two bare numbers, `123_456.jpg` or `slide_123_456.png`, are as often a patient and a cell. They count only where the
whole table's tiles, so placed, would lie beside each other and not in a heap: better no coordinates than wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from cervix_engine.errors import UsageError
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Box, Row, Table

_SPELT_OUT = (
    re.compile(r"(?P<slide>.*?)\s*\[(?:d=[\d.]+,)?x=(?P<x>\d+),y=(?P<y>\d+),w=(?P<w>\d+),h=(?P<h>\d+)(?:,[zt]=\d+)*\]"),
    re.compile(
        r"(?P<slide>.*?)(?:^|[^A-Za-z0-9]|(?<=\d))x[=_-]?(?P<x>\d+)[_, -]*y[=_-]?(?P<y>\d+)"
        r"(?:[_, -]*w[=_-]?(?P<w>\d+)[_, -]*h[=_-]?(?P<h>\d+))?",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<slide>.*?)[_ -]*\((?P<x>\d+),\s*(?P<y>\d+)\)"),
)
_BARE = (re.compile(r"(?P<slide>.+)[_-](?P<x>\d+)_(?P<y>\d+)"), re.compile(r"(?P<slide>)(?P<x>\d+)[_-](?P<y>\d+)"))
_SPELT_OUT_OR_BARE = (*_SPELT_OUT, *_BARE)

# How a run reads names where no pattern is given: as far as they spell a location out.
NAMES = "names"

# A prefix that says what the file is, and not of which slide.
_GENERIC = re.compile(r"(tile|patch|img|image|crop|cell)s?", re.IGNORECASE)

# Tiles that overlap by half each way fill a cell of their own size four times.
_MOST_TILES_A_CELL = 5
_JUDGED_ROWS = 20_000

_PLACEHOLDERS = {name: rf"(?P<{name}>\d+)" for name in ("x", "y", "w", "h", "col", "row")} | {
    "slide": r"(?P<slide>[^/]+?)",
    "*": r"[^/]*?",
}


class Location(NamedTuple):
    """A tile's slide and its box there."""

    slide_id: str
    box: Box


class Locating(Protocol):
    """Knows where tiles lie: `Locator` from names, `locations.Locations` from a file."""

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None: ...

    def __call__(self, row: Row) -> Location | None: ...


@dataclass(frozen=True, slots=True)
class Locator:
    """Finds the locations of tiles in their names."""

    pattern: re.Pattern[str] | None = None
    matches_folders: bool = False
    trusts_bare_numbers: bool = False

    @classmethod
    def for_table(cls, table: Table, *, pattern: str | None = None) -> Locator:
        """Decide once for a table how its names are read.

        Args:
            table: the finished table.
            pattern: such as `{slide}_x{x}_y{y}`, matched against the file's name without its suffix, or against the
                whole path where it holds a `/`. `{col}` and `{row}` count tiles, `{*}` is anything.

        Raises:
            UsageError: the pattern names no position.
        """
        if pattern is not None:
            return cls(compile_pattern(pattern), matches_folders="/" in pattern)
        return cls(trusts_bare_numbers=_lie_beside_each_other(islice(table.rows(), _JUDGED_ROWS)))

    @classmethod
    def for_run(cls, coords: str) -> Locator:
        """How a run reads names that no table holds yet: by `NAMES`, or by a pattern as in `for_table`.

        Raises:
            UsageError: the pattern names no position.
        """
        return BY_NAMES if coords == NAMES else cls(compile_pattern(coords), matches_folders="/" in coords)

    def __call__(self, row: Row) -> Location | None:
        """The location of a row's tile, or None where nothing says it."""
        if row.width is None or row.height is None:
            return None
        if row.box is not None:
            return Location(row.slide_id, row.box)
        path = unescape_name(row.path) if "%" in row.path else row.path
        return self.locate(path, row.slide_id, row.width, row.height)

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None:
        """The location that a tile's path says, or None.

        Args:
            name: the path, not escaped.
            slide_id: the slide where the name says none.
            width, height: of the tile in pixels, where the name says neither.
        """
        path = name.rpartition(".")[0]
        stem = path.rpartition("/")[2]
        if self.pattern is not None:
            found = self.pattern.fullmatch(path if self.matches_folders else stem)
        elif self.trusts_bare_numbers:
            found = _first_match(stem, _SPELT_OUT_OR_BARE)
        else:
            # Most names spell nothing out, which these looks say in a tenth of the expressions' time.
            found = _first_match(stem, _SPELT_OUT) if "x" in stem or "(" in stem or "X" in stem else None
        return None if found is None else _location(found, slide_id, width, height)


BY_NAMES = Locator()


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern with `{placeholders}` as a regular expression.

    Raises:
        UsageError: a placeholder is unknown or there twice, or no position is named.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    names = parts[1::2]
    if unknown := [name for name in names if name not in _PLACEHOLDERS]:
        known = " ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        raise UsageError(f"coordinates {pattern!r}: unknown {{{unknown[0]}}}, expected {known}")
    if any(names.count(name) > 1 for name in names if name != "*"):
        raise UsageError(f"coordinates {pattern!r}: a placeholder is there twice")
    if not ({"x", "y"} <= set(names) or {"col", "row"} <= set(names)):
        raise UsageError(f"coordinates {pattern!r}: expected {{x}} and {{y}}, or {{col}} and {{row}}")
    texts = [_PLACEHOLDERS[part] if at % 2 else re.escape(part) for at, part in enumerate(parts)]
    return re.compile("".join(texts))


def _first_match(stem: str, patterns: Iterable[re.Pattern[str]]) -> re.Match[str] | None:
    return next((found for pattern in patterns if (found := pattern.fullmatch(stem))), None)


def _location(found: re.Match[str], slide_id: str, width: int, height: int) -> Location:
    groups = found.groupdict()
    if groups.get("w") and groups.get("h"):
        width, height = int(groups["w"]), int(groups["h"])
    x = int(groups["x"]) if groups.get("x") else int(groups["col"]) * width
    y = int(groups["y"]) if groups.get("y") else int(groups["row"]) * height
    named = (groups.get("slide") or "").strip("_- ")
    return Location(slide_id if not named or _GENERIC.fullmatch(named) else named, Box(x, y, width, height))


def _lie_beside_each_other(rows: Iterable[Row]) -> bool:
    cells: set[tuple[str, int, int]] = set()
    tiles = 0
    locate: Callable[[Row], Location | None] = Locator(trusts_bare_numbers=True)
    for location in _bare_locations(rows, locate):
        tiles += 1
        cells.add(
            (location.slide_id, location.box.minx // location.box.width, location.box.miny // location.box.height)
        )
    # One tile lies beside none: its name alone shows nothing.
    return len(cells) > 1 and tiles <= _MOST_TILES_A_CELL * len(cells) and len({cell[1:] for cell in cells}) > 1


def _bare_locations(rows: Iterable[Row], locate: Callable[[Row], Location | None]) -> Iterator[Location]:
    for row in rows:
        if row.box is None and (location := locate(row)) is not None and location.box.width and location.box.height:
            yield location
