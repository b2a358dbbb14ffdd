"""Finds the tiles of a source: which files are tiles, and why each of the others is not.

Nothing is passed over in silence: whatever is no tile is counted by its reason and named in the debug log. A folder
that is not entered counts once, whatever it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cervix_engine.errors import UsageError
from cervix_engine.tiles.listing import LISTING, Listing, folder_changes, write_sorted
from cervix_engine.words import counted

if TYPE_CHECKING:
    from cervix_engine.tiles.sources.source import TileSource

SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp", b".jp2", b".j2k")

# Whole slides, as scanners write them; what is a TIFF too (.ome.tif) only shows when it is read.
SLIDE_SUFFIXES = tuple(
    f".{name}".encode()
    for name in (
        *("svs", "svslide", "ndpi", "ndpis", "mrxs", "scn", "vms", "vmu", "bif", "czi", "zvi", "lif", "vsi", "ets"),
        *("isyntax", "i2syntax", "qptiff", "tmap", "sdpc", "kfb", "mds", "mdsx", "dcm"),
    )
)

# What file servers and systems put among files: thumbnails, waste baskets, snapshots. In any case.
SYSTEM_FOLDERS = frozenset(
    {
        *(b"@eadir", b"#recycle", b"#snapshot", b"@tmp", b"@sharebin"),  # Synology
        *(b"@recycle", b"@recently-snapshot", b"@transcode"),  # QNAP
        *(b"$recycle.bin", b"recycler", b"system volume information"),  # Windows
        *(b"__macosx", b"network trash folder", b"temporary items"),  # macOS
        *(b"lost+found", b"~snapshot"),  # Linux, NetApp
    }
)

Reason = Literal["hidden", "link", "link_loop", "gone", "suffix", "system_folder", "whole_slide", "special"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# For one and for more.
_WORDS: Mapping[str, tuple[str, str]] = {
    "hidden": ("hidden", "hidden"),
    "link": ("link that leads elsewhere", "links that lead elsewhere"),
    "link_loop": ("link in a loop", "links in a loop"),
    "gone": ("broken link or gone meanwhile", "broken links or gone meanwhile"),
    "suffix": ("with another suffix", "with another suffix"),
    "system_folder": ("system folder", "system folders"),
    "whole_slide": ("whole slide", "whole slides"),
    "special": ("special file", "special files"),
}

HINTS: Mapping[str, str] = {
    "link": "--follow-links follows links",
    "suffix": f"known suffixes are {' '.join(suffix.decode() for suffix in SUFFIXES)}",
    "whole_slide": "--whole-slides cuts whole slides into tiles",
}


def discover(source: TileSource, *, spool: Path) -> Listing:
    """List every tile of a source into `spool / "listing"`.

    Raises:
        UsageError: there is no such source, or it holds no tile.
        ListingError: a part of it cannot be listed.
        OutputError: the listing cannot be written.
    """
    walk = source.walk()
    found = write_sorted(walk, spool)
    if not found:
        raise UsageError(f"no tiles in {source}: {_why_none(walk.ignored)}")
    return Listing(source, spool / LISTING, found, walk.ignored.total(), dict(walk.ignored))


def compared(listing: Listing, paths: Callable[[], Iterator[str]], *, spool: Path) -> Listing:
    """A stored listing with how its source differs by now; a tile whose bytes changed is not counted there.

    Args:
        listing: of which source.
        paths: gives what was found there, in byte order: all of the listing, or of the table that it is a part of.
        spool: a folder for what does not fit into memory.

    Raises:
        ListingError: the source cannot be listed.
        OutputError: `spool` cannot be written, or the listing not read.
    """
    now = listing.source.walk_again(map(os.fsencode, paths()))
    return replace(listing, changes=folder_changes(map(os.fsencode, paths()), now, spool=spool))


def objection_to_folder(name: bytes) -> Reason | None:
    """Why a folder of this name, without those above, is not entered, or None."""
    if name.startswith(b"."):
        return "hidden"
    return "system_folder" if name.lower() in SYSTEM_FOLDERS else None


def objection_to_file(name: bytes) -> Reason | None:
    """Why a file of this name, without its folder, is no tile, or None."""
    if name.startswith(b"."):
        return "hidden"
    lower = name.lower()
    if lower.endswith(SUFFIXES):
        return None
    return "whole_slide" if lower.endswith(SLIDE_SUFFIXES) else "suffix"


def ignored_words(ignored_by: Mapping[str, int]) -> str:
    """Such as `2 hidden, 1 whole slide`, the most frequent first."""
    by_count = sorted(ignored_by.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(counted(count, *_WORDS[reason]) for reason, count in by_count)


def _why_none(ignored_by: Mapping[str, int]) -> str:
    if not ignored_by:
        return counted(0, "other file")
    hints = [hint for reason, hint in HINTS.items() if reason in ignored_by]
    return "; ".join([f"{counted(sum(ignored_by.values()), 'other file')} ({ignored_words(ignored_by)})", *hints])
