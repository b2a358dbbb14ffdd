"""Opens what a user named as TILES."""

from __future__ import annotations

import os
from pathlib import Path

from cervix_engine.errors import UsageError
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.archive import (
    ARCHIVE_SUFFIXES,
    Archives,
    archives_in,
    archives_named,
    refuse_compressed,
)
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.sources.remote import Remote, is_remote
from cervix_engine.tiles.sources.slides import WholeSlides, is_named_slide
from cervix_engine.tiles.sources.source import TileSource
from cervix_engine.tiles.sources.tile_list import LIST_SUFFIXES, STANDARD_INPUT, TileList


def open_source(
    name: str | os.PathLike[str],
    *,
    follow_links: bool = False,
    grid: GridRules | None = None,
    previews: Path | None = None,
) -> TileSource:
    """The source that `name` names.

    | name | source |
    |---|---|
    | a folder | the tiles below it; the archives in it, where it holds nothing but these and what is no tile |
    | `tiles.csv`, or a text file | the tiles that it lists |
    | `-` | those that standard input lists |
    | `slide.svs` and other whole slides, or a folder with `grid` | the tiles that they are cut into |
    | `s3://bucket/tiles` and other addresses | the tiles below it |
    | `tiles.tar`, `tiles.zip` | those in the archive |
    | `shard-{000000..000012}.tar` | those in all of them |

    Args:
        name: as above.
        follow_links: for a folder, as there.
        grid: how whole slides are cut, of which `name` is one or a folder; None takes a folder's tiles, and cuts a
            slide by default.
        previews: for whole slides, as there.

    Raises:
        UsageError: it is of no kind that tiles can come from; whether it is there, `check` says.
        ListingError: a folder cannot be listed.
    """
    if is_remote(name):
        return _store(os.fspath(name), of_slides=grid is not None)
    path = Path(name)
    if grid is not None or is_named_slide(name):
        _refuse_tiles(path)
        return WholeSlides.named(path, grid or GridRules(), follow_links=follow_links, previews=previews)
    if path != STANDARD_INPUT and _is_folder(path):
        return archives_in(path) or Folder(path, follow_links)
    return _named_file(path) or Folder(path, follow_links)


def _store(url: str, *, of_slides: bool) -> Remote:
    if of_slides:
        raise UsageError("whole slides are read from files of this machine: copy them here first")
    return Remote(url)


def _refuse_tiles(path: Path) -> None:
    """Raises UsageError where a file holds tiles that are cut already, by its name."""
    suffix = path.suffix.lower()
    is_list = path == STANDARD_INPUT or suffix in LIST_SUFFIXES
    if (is_list or suffix in ARCHIVE_SUFFIXES) and not _is_folder(path):
        raise UsageError(
            f"{path} is {'a list' if is_list else 'an archive'} of tiles, and --whole-slides cuts a slide or all of a "
            "folder: name one of these, or leave --whole-slides out"
        )


def _named_file(path: Path) -> TileSource | None:
    """The source in a file, or in files of a pattern, that is named so; None where its name says nothing."""
    if archives := archives_named(path):
        return archives
    suffix = path.suffix.lower()
    refuse_compressed(path)
    if suffix in ARCHIVE_SUFFIXES:
        return Archives((path,), path)
    return TileList(path) if path == STANDARD_INPUT or suffix in LIST_SUFFIXES else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
