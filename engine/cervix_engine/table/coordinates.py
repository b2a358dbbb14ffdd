"""Where a tile lies on its slide, and which slide that is, as far as names say it.

A slide is what the user's pattern says; else the folder that the tile lies in, relative to the root, so that two
folders called `tiles` stay two slides; else the root. A location is in the table itself, or comes from a pattern or
the name.

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
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Protocol

from cervix_engine.errors import UsageError
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Box, Row, Table
from cervix_engine.tiles.csv_input import MOST_PIXELS

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

_PLACEHOLDERS = {f"{{{name}}}": rf"(?P<{name}>\d+)" for name in ("x", "y", "w", "h", "col", "row")} | {
    "{slide}": r"(?P<slide>[^/]+?)",
    "{*}": r"[^/]*?",
}
_WILD = {"*": r"[^/]*?", "**": ".*?", "**/": "(?:.*?/)?"}
_PARTS = re.compile(r"(\{[^{}]*\}|\*\*/|\*\*|\*)")

# How a run names slides where nothing is said: by the folders of tiles.
FOLDER = "folder"


# The slide of a tile, by its path.
Slides = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class FolderSlides:
    """A slide is the folder of its tiles, relative to the root.

    Attributes:
        root_name: the slide of tiles that lie in no folder.
        bare: take the folder's own name alone, as runs once did: it merges folders of one name.
    """

    root_name: str
    bare: bool = False

    def __call__(self, path: str) -> str:
        folder = path.rpartition("/")[0]
        return (folder.rpartition("/")[2] if self.bare else folder) or self.root_name


@dataclass(frozen=True, slots=True)
class NamedSlides:
    """A slide is what a pattern or a list says of a tile, and where it says nothing, what `others` says."""

    named: Callable[[str], str | None]
    others: Slides

    def __call__(self, path: str) -> str:
        return self.named(path) or self.others(path)


class Location(NamedTuple):
    """A tile's slide and its box there."""

    slide_id: str
    box: Box


class Locating(Protocol):
    """Knows where tiles lie: `Locator` from names, `locations.Locations` from a file."""

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None: ...

    def __call__(self, row: Row) -> Location | None: ...


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern with placeholders, such as `{slide}/tiles/{x}_{y}`, made by `compile_pattern`.

    It is matched against the file's name without its suffix, or against the whole path where it holds a `/`.
    """

    expression: re.Pattern[str]
    matches_folders: bool

    def match(self, path: str) -> re.Match[str] | None:
        """`path` without the suffix."""
        return self.expression.fullmatch(path if self.matches_folders else path.rpartition("/")[2])

    def slide(self, path: str) -> str | None:
        """The slide that a path says, or None."""
        found = self.match(_without_suffix(path))
        return found["slide"].strip("_- ") or None if found else None


@dataclass(frozen=True, slots=True)
class Locator:
    """Finds the locations of tiles in their names.

    Attributes:
        pattern: None reads what names spell out.
        trusts_bare_numbers: whether two bare numbers are a location too.
        names_slides: whether a name also says the slide; else that is known.
        alike: names of slides that stand in several folders: each folder's is one of its own.
    """

    pattern: Pattern | None = None
    trusts_bare_numbers: bool = False
    names_slides: bool = True
    alike: frozenset[str] = frozenset()

    @classmethod
    def for_table(cls, table: Table, *, pattern: str | None = None, names_slides: bool = True) -> Locator:
        """Decide once for a table how its names are read.

        Args:
            table: the finished table.
            pattern: such as `{slide}_x{x}_y{y}`; `{col}` and `{row}` count tiles, `*` is anything but a `/`.
            names_slides: as there, where no pattern is given.

        Raises:
            UsageError: the pattern names no position.
        """
        if pattern is not None:
            return cls(compile_pattern(pattern))
        judged = [row for row in islice(table.rows(), _JUDGED_ROWS) if row.box is None]
        locator = cls(trusts_bare_numbers=_lie_beside_each_other(judged), names_slides=names_slides)
        if not any(map(locator, judged)):
            return locator  # the table knows its locations, or nobody does
        return locator.apart(_path(row) for row in table.rows() if row.box is None)

    @classmethod
    def for_run(cls, coords: str, *, names_slides: bool = True) -> Locator:
        """How a run reads names that no table holds yet: by `NAMES`, or by a pattern as in `for_table`.

        Raises:
            UsageError: the pattern names no position.
        """
        return cls(None if coords == NAMES else compile_pattern(coords), names_slides=names_slides)

    def apart(self, paths: Iterable[str]) -> Locator:
        """The same, for tiles of these paths: what names in several folders call alike stays apart."""
        if self.pattern or not self.names_slides:
            return self
        folder_of: dict[str, str] = {}
        alike: set[str] = set()
        for path in paths:
            folder = path.rpartition("/")[0]
            found = self._find(_without_suffix(path))
            name = (_slide_in(found) if found else "") or folder
            if folder_of.setdefault(name, folder) != folder:
                alike.add(name)
        return replace(self, alike=frozenset(alike))

    def __call__(self, row: Row) -> Location | None:
        """The location of a row's tile, or None where nothing says it."""
        if row.width is None or row.height is None:
            return None
        if row.box is not None:
            return Location(row.slide_id, row.box)
        return self.locate(_path(row), row.slide_id, row.width, row.height)

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None:
        """The location that a tile's path says, or None; also where its numbers are none of pixels, see `MOST_PIXELS`.

        Args:
            name: the path, not escaped.
            slide_id: the slide where the name says none.
            width, height: of the tile in pixels, where the name says neither.
        """
        found = self._find(_without_suffix(name))
        if found is None:
            return None
        box = _box(found, width, height)
        if max(box) > MOST_PIXELS:
            return None
        named = _slide_in(found) if self.names_slides else ""
        if named in self.alike:
            folder = name.rpartition("/")[0]
            named = f"{folder}/{named}" if folder else named
        return Location(named or slide_id, box)

    def _find(self, path: str) -> re.Match[str] | None:
        if self.pattern is not None:
            return self.pattern.match(path)
        stem = path.rpartition("/")[2]
        if self.trusts_bare_numbers:
            return _first_match(stem, _SPELT_OUT_OR_BARE)
        # Most names spell nothing out, which these looks say in a tenth of the expressions' time.
        return _first_match(stem, _SPELT_OUT) if "x" in stem or "(" in stem or "X" in stem else None


BY_NAMES = Locator()


def compile_pattern(pattern: str) -> Pattern:
    """A pattern that says where tiles lie.

    Raises:
        UsageError: a placeholder is unknown or there twice, or no position is named.
    """
    compiled = _compile(pattern, "coordinates")
    named = set(compiled.expression.groupindex)
    if not ({"x", "y"} <= named or {"col", "row"} <= named):
        raise UsageError(f"coordinates {pattern!r}: expected {{x}} and {{y}}, or {{col}} and {{row}}")
    return compiled


def compile_slide_pattern(pattern: str) -> Pattern:
    """A pattern that says which slide tiles are of.

    Raises:
        UsageError: a placeholder is unknown or there twice, or no slide is named.
    """
    compiled = _compile(pattern, "slide")
    if "slide" not in compiled.expression.groupindex:
        raise UsageError(f"slide {pattern!r}: expected {{slide}} in it, such as '{{slide}}/tiles/*', or a .csv file")
    return compiled


def _compile(pattern: str, what: str) -> Pattern:
    parts = _PARTS.split(pattern)
    names = [part for part in parts[1::2] if part not in _WILD]
    if unknown := [name for name in names if name not in _PLACEHOLDERS]:
        raise UsageError(f"{what} {pattern!r}: unknown {unknown[0]}, expected {' '.join(_PLACEHOLDERS)}")
    if any(names.count(name) > 1 for name in names if name != "{*}"):
        raise UsageError(f"{what} {pattern!r}: a placeholder is there twice")
    known = _PLACEHOLDERS | _WILD
    texts = [known[part] if at % 2 else re.escape(part) for at, part in enumerate(parts)]
    return Pattern(re.compile("".join(texts)), matches_folders="/" in pattern or "**" in pattern)


def _first_match(stem: str, patterns: Iterable[re.Pattern[str]]) -> re.Match[str] | None:
    return next((found for pattern in patterns if (found := pattern.fullmatch(stem))), None)


def _without_suffix(path: str) -> str:
    stem, dot, suffix = path.rpartition(".")
    # A tile of a whole slide has none, while its slide, which is its folder, has.
    return stem if dot and "/" not in suffix else path


def _slide_in(found: re.Match[str]) -> str:
    """The slide that a name says; empty where it says none, or only what kind of file it is."""
    named = (found.groupdict().get("slide") or "").strip("_- ")
    return "" if _GENERIC.fullmatch(named) else named


def _box(found: re.Match[str], width: int, height: int) -> Box:
    groups = found.groupdict()
    if groups.get("w") and groups.get("h"):
        width, height = int(groups["w"]), int(groups["h"])
    x = int(groups["x"]) if groups.get("x") else int(groups["col"]) * width
    y = int(groups["y"]) if groups.get("y") else int(groups["row"]) * height
    return Box(x, y, width, height)


def _path(row: Row) -> str:
    return unescape_name(row.path) if "%" in row.path else row.path


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
