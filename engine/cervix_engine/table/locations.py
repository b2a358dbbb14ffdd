"""Where tiles lie and of which slide they are: what a run or a report asks, from names or from a CSV file.

Paths in a file are relative to the folder of tiles and not escaped. A tile that it does not name has no location, and
the slide that its folder names. All of a file is in memory while a run writes: about 200 bytes a tile.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.errors import UsageError
from cervix_engine.files import sha256_bytes
from cervix_engine.table.coordinates import (
    FOLDER,
    NAMES,
    FolderSlides,
    Locating,
    Location,
    Locator,
    NamedSlides,
    Slides,
    compile_slide_pattern,
)
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Box, Row, Table
from cervix_engine.tiles.csv_input import read_csv, whole_number
from cervix_engine.tiles.sources.tile_list import STANDARD_INPUT, UNUSED, TileList, standard_input
from cervix_engine.words import counted

log = logging.getLogger(__name__)

# How a run remembers a file: its bytes decide, and its path lets a resumed run find it.
_PREFIX = "file:"

# Names of folders that say what lies in them, and not of which slide.
_GENERAL = re.compile(r"(tile|patch|patche|img|image|crop|cell|region|roi)s?", re.IGNORECASE)

# Folders are compared with each other up to so many, which holds what that takes in memory.
_MOST_FOLDERS = 100_000


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that was named to a run, as it is now.

    Attributes:
        path: where it lies.
        data: its bytes.
        identity: what lets a later run find it and know it again.
    """

    path: Path
    data: bytes
    identity: str

    @classmethod
    def read(cls, name: str | Path, *, what: str) -> NamedFile:
        """Read a file, or the one that an earlier run read.

        Args:
            name: its path; or the `identity` that an earlier run remembers, whose file must still be the same, unless
                `as_it_is_now` has left out its digest.
            what: it is for, such as `coordinates`.

        Raises:
            UsageError: it cannot be read, or has changed since.
        """
        text = os.fspath(name)
        digest, _, remembered = text.removeprefix(_PREFIX).partition(":") if _is_remembered(text) else ("", "", text)
        path = Path(remembered)
        try:
            data = standard_input() if path == STANDARD_INPUT else path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error
        now = sha256_bytes(data)
        if digest and now != digest:
            raise UsageError(f"the {what} {path} have changed since the run began: pass --no-resume to begin anew")
        return cls(path, data, f"{_PREFIX}{now}:{path if path == STANDARD_INPUT else path.resolve()}")


@dataclass(frozen=True, slots=True)
class Locations:
    """The locations that a CSV file with `path,minx,miny[,width,height,slide_id]` names.

    Attributes:
        named: (slide or "", x, y, width or 0, height or 0) by path.
        coords: what identifies the file, for `load`.
        names_slides: whether its slides count; else those are known otherwise.
    """

    named: dict[str, tuple[str, int, int, int, int]]
    coords: str
    names_slides: bool = True

    @classmethod
    def load(cls, coords: str | Path, *, names_slides: bool = True) -> Locations:
        """Read a file; `coords` as in `NamedFile.read`.

        Raises:
            UsageError: it cannot be read, is no such file, or has changed since.
        """
        file = NamedFile.read(coords, what="coordinates")
        return cls(dict(_located(file)), file.identity, names_slides)

    def locate(self, name: str, slide_id: str, width: int, height: int) -> Location | None:
        """As `Locator.locate`."""
        found = self.named.get(name)
        if found is None:
            return None
        slide, x, y, own_width, own_height = found
        named = slide if self.names_slides else ""
        return Location(named or slide_id, Box(x, y, own_width or width, own_height or height))

    def __call__(self, row: Row) -> Location | None:
        """As `Locator.__call__`; the file goes before what the table says."""
        if row.width is None or row.height is None:
            return None
        location = self.locate(unescape_name(row.path), row.slide_id, row.width, row.height)
        return location or (Location(row.slide_id, row.box) if row.box is not None else None)


def locating_for_run(coords: str, *, slide: str | None = FOLDER, paths: Iterable[str] = ()) -> Locating:
    """What knows where a run's tiles lie, which no table holds yet.

    Args:
        coords: `coordinates.NAMES`, a pattern, a CSV file, or what `identified` made of one.
        slide: how slides are named, as `slides_identified` gives it; None as runs once did.
        paths: of all tiles, to keep slides of several folders apart that are called alike.

    Raises:
        UsageError: the pattern names no position, or the file cannot be used.
    """
    names_slides = slide in (None, FOLDER)
    if _is_file(coords):
        return Locations.load(coords, names_slides=names_slides)
    locator = Locator.for_run(coords, names_slides=names_slides)
    return locator.apart(paths) if slide == FOLDER else locator


def locating_for_table(table: Table, coords: str | None, *, names_slides: bool = True) -> Locating:
    """What knows where a finished table's tiles lie, by a pattern or a CSV file, else by what table and names say.

    Args:
        table: the finished table.
        coords: None takes what table and names say.
        names_slides: whether names also say slides there; else the table's are what its run was told.

    Raises:
        UsageError: as `locating_for_run`.
    """
    if coords is not None and _is_file(coords):
        return Locations.load(coords)
    return Locator.for_table(table, pattern=coords, names_slides=names_slides)


def slides_for_run(slide: str | None, root_name: str) -> Slides:
    """What names the slides of a run's tiles.

    Args:
        slide: `coordinates.FOLDER`, a pattern such as `{slide}/tiles/*`, a CSV file with `path,slide_id`, or what
            `slides_identified` made of one; None as runs once did, by the bare name of the folder.
        root_name: the slide of tiles that lie in no folder.

    Raises:
        UsageError: the pattern names no slide, or the file cannot be used.
    """
    folders = FolderSlides(root_name, bare=slide is None)
    if slide in (None, FOLDER):
        return folders
    if _is_file(slide):
        return NamedSlides(dict(_slides_in(NamedFile.read(slide, what="slides"))).get, folders)
    return NamedSlides(compile_slide_pattern(slide).slide, folders)


def may_be_located(paths: Iterable[str], coords: str | None) -> bool:
    """Whether anything can say of any tile where it lies: two bare numbers may, as the finished table shows."""
    locating = locating_for_run(coords or NAMES)
    bare = Locator(trusts_bare_numbers=True) if coords == NAMES else locating
    return any(locating.locate(path, "", 1, 1) or bare.locate(path, "", 1, 1) for path in paths)


def identified(coords: str) -> str:
    """`coords` as part of what a run is: a file by its bytes, all else as it stands.

    Raises:
        UsageError: as `locating_for_run`.
    """
    if _is_file(coords):
        return Locations.load(coords).coords
    locating_for_run(coords)
    return coords


def slides_identified(slide: str) -> str:
    """`slide` as part of what a run is, like `identified`.

    Raises:
        UsageError: as `slides_for_run`.
    """
    slides_for_run(slide, "")
    return NamedFile.read(slide, what="slides").identity if _is_file(slide) else slide


def remembered_file(named: str | None) -> str | None:
    """The file, where a run was told its slides or coordinates by one; as `identified` gives it."""
    return named.removeprefix(_PREFIX).partition(":")[2] if named and _is_remembered(named) else None


def as_it_is_now(named: str | None) -> str | None:
    """What an earlier run was told of slides or coordinates, and where that was a file, the file as it is by now."""
    file = remembered_file(named)
    return named if file is None else f"{_PREFIX}:{file}"


def coords_beside_slides(slide: str | None) -> str | None:
    """The file of slides, where it says locations too."""
    if slide is None or not _is_file(slide):
        return None
    file = NamedFile.read(slide, what="slides")
    rows = read_csv(file.path, ("path", "slide_id"), ("minx", "miny"), data=file.data, any_bytes=True)
    _, first = next(rows, (0, {}))
    return slide if {"minx", "miny"} <= first.keys() else None


def said_by(tiles: TileList) -> tuple[str | None, str | None]:
    """What a list of tiles says of their slides and of their coordinates, as `slide` and `coords` of a run.

    Raises:
        UsageError: it cannot be read.
    """
    columns = tiles.columns()
    identity = NamedFile.read(tiles.file, what="slides").identity if columns else None
    return identity if "slide_id" in columns else None, identity if "minx" in columns else None


def check_slides(slides: Slides, paths: Iterable[str]) -> None:
    """Refuse a pattern or a list that names no tile's slide, and warn of what it leaves out and of folders of one name.

    Args:
        slides: of `slides_for_run`.
        paths: of all tiles.

    Raises:
        UsageError: it names none.
    """
    if isinstance(slides, NamedSlides):
        named = Counter(bool(slides.named(path)) for path in paths)
        if not named[True]:
            raise UsageError(
                f"--slide names the slide of none of {counted(named.total(), 'tile')}: is it for another folder?"
            )
        if named[False]:
            log.warning(
                "--slide names no slide for %d of %d tiles: theirs is their folder", named[False], named.total()
            )
        return
    folders: set[str] = set()
    for path in paths:
        if len(folders) < _MOST_FOLDERS:
            folders.add(path.rpartition("/")[0])
    names = [folder.rpartition("/")[2] for folder in folders]
    if len(set(names)) < len(names) or any(map(_GENERAL.fullmatch, names)):
        log.debug("slides by folder: %s", sorted(folders))
        log.warning(
            "slides are named by folder, and some folders have one name or a general one: %s its path below TILES; "
            "--slide names them otherwise",
            counted(len(folders), "slide, called by", "slides, each called by"),
        )


def _is_file(name: str) -> bool:
    return _is_remembered(name) or name.lower().endswith(".csv")


def _is_remembered(name: str) -> bool:
    return name.startswith(_PREFIX)


def _located(file: NamedFile) -> Iterator[tuple[str, tuple[str, int, int, int, int]]]:
    rows = read_csv(
        file.path,
        ("path", "minx", "miny"),
        ("width", "height", "slide_id"),
        ignored=UNUSED,
        data=file.data,
        any_bytes=True,
    )
    for line, row in rows:
        try:
            x, y = whole_number(row["minx"]), whole_number(row["miny"])
            width, height = (whole_number(row.get(name) or "0") for name in ("width", "height"))
        except ValueError as error:
            raise UsageError(f"{file.path}, line {line}: {error}") from error
        yield row["path"], (row.get("slide_id") or "", x, y, width, height)


def _slides_in(file: NamedFile) -> Iterator[tuple[str, str]]:
    optional = ("minx", "miny", "width", "height")
    rows = read_csv(file.path, ("path", "slide_id"), optional, ignored=UNUSED, data=file.data, any_bytes=True)
    for line, row in rows:
        if not row["slide_id"].strip():
            raise UsageError(f"{file.path}, line {line}: no slide_id")
        yield row["path"], row["slide_id"]
