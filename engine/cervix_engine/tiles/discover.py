"""Finds the tiles below one root: which files are tiles, and why each of the others is not.

Nothing is passed over in silence: whatever is no tile is counted by its reason and named in the debug log. A folder
that is not entered counts once, whatever it holds.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from cervix_engine.errors import ListingError, UsageError
from cervix_engine.tiles.listing import Listing, Record, folder_changes, write_sorted

log = logging.getLogger(__name__)

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

_WORDS: Mapping[str, str] = {
    "hidden": "hidden",
    "link": "links that lead elsewhere",
    "link_loop": "links in a loop",
    "gone": "broken links or gone meanwhile",
    "suffix": "with another suffix",
    "system_folder": "system folders",
    "whole_slide": "whole slides",
    "special": "special files",
}

_HINTS: Mapping[str, str] = {
    "link": "--follow-links follows links",
    "suffix": f"known suffixes are {' '.join(suffix.decode() for suffix in SUFFIXES)}",
    "whole_slide": "a whole slide has to be cut into tiles first",
}

# A link that leads nowhere, or a file that went away meanwhile.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


ScanDir = Callable[[bytes], AbstractContextManager[Iterator["os.DirEntry[bytes]"]]]


def discover(root: Path, *, spool: Path, follow_links: bool = False) -> Listing:
    """List every tile below `root` into `spool / "listing"`.

    A tile is a regular file, or a link to one inside the root, whose suffix is an image's in any case and whose
    path has no hidden part and no system folder. Folders that are links are not entered.

    Args:
        root: the folder.
        spool: where the listing is written and sorted.
        follow_links: also take links to files elsewhere, and enter folders that are links, but for those that lead
            back to a folder which they are in.

    Raises:
        UsageError: `root` is no folder or holds no tile.
        ListingError: a folder below it cannot be listed.
        OutputError: the listing cannot be written.
    """
    with _listing_errors(os.fsencode(root)):
        if not root.is_dir():
            raise refuse_root(root, exists=root.exists())
    walk = Walk(root, follow_links=follow_links)
    found = write_sorted(walk, spool)
    if not found:
        raise UsageError(f"no tiles in {root}: {_why_none(walk.ignored)}")
    return Listing(root, spool / "listing", found, walk.ignored.total(), dict(walk.ignored))


def compared(listing: Listing, *, spool: Path, follow_links: bool = False) -> Listing:
    """A stored listing with how its folder differs by now; a tile whose bytes changed is not counted there.

    Raises:
        ListingError: a folder cannot be listed.
        OutputError: `spool` cannot be written, or the listing not read.
    """
    walk = Walk(listing.root, follow_links=follow_links)
    return replace(listing, changes=folder_changes(listing, walk, spool=spool))


def ignored_words(ignored_by: Mapping[str, int]) -> str:
    """Such as `2 hidden, 1 whole slides`, the most frequent first."""
    counted = sorted(ignored_by.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {_WORDS[reason]}" for reason, count in counted)


def refuse_root(root: Path, *, exists: bool) -> UsageError:
    """The error of a root that is no folder."""
    if exists and os.fsencode(root).lower().endswith(SLIDE_SUFFIXES):
        return UsageError(f"{root} is a whole slide, expected a folder: {_HINTS['whole_slide']}")
    return UsageError(f"{'not a folder' if exists else 'no such folder'}: {root}")


def _why_none(ignored_by: Mapping[str, int]) -> str:
    if not ignored_by:
        return "0 other files"
    hints = [hint for reason, hint in _HINTS.items() if reason in ignored_by]
    return "; ".join([f"{sum(ignored_by.values())} other files ({ignored_words(ignored_by)})", *hints])


class Walk:
    """One pass over a folder: yields its tiles in no order, and counts what is passed over.

    Raises:
        ListingError: a folder cannot be listed.
    """

    def __init__(self, root: Path, *, follow_links: bool = False, scandir: ScanDir | None = None) -> None:
        self._root = os.fsencode(root)
        self._scandir = scandir or os.scandir
        self._inside = os.path.realpath(self._root) + b"/"
        self._follow_links = follow_links
        self.ignored: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        # With each folder, the ones that it lies in: by a link it may be one of them again.
        folders: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
        while folders:
            folder, above = folders.pop()
            if self._follow_links:
                here = self._identity(folder)
                if here in above:
                    self._ignore("link_loop", folder)
                    continue
                above = (*above, here)
            for entry in self._entries(self._root + b"/" + folder):
                name = folder + b"/" + entry.name if folder else entry.name
                with _listing_errors(name):
                    is_folder = _is_folder(entry)
                    reason = self._objection(entry, is_folder=is_folder)
                    status = None if reason else _status(entry)
                if status is None:
                    self._ignore(reason or "gone", name)
                elif is_folder:
                    folders.append((name, above))
                else:
                    yield name, status.st_size, status.st_mtime_ns

    def _entries(self, folder: bytes) -> Iterator[os.DirEntry[bytes]]:
        with _listing_errors(folder), self._scandir(folder) as entries:
            yield from entries

    def _identity(self, folder: bytes) -> tuple[int, int]:
        with _listing_errors(folder):
            status = os.stat(self._root + b"/" + folder)  # noqa: PTH116 - bytes
        return status.st_dev, status.st_ino

    def _objection(self, entry: os.DirEntry[bytes], *, is_folder: bool) -> Reason | None:
        """Why an entry is neither a tile nor a folder to enter, or None."""
        name = entry.name.lower()
        if name.startswith(b"."):
            return "hidden"
        if is_folder:
            if name in SYSTEM_FOLDERS:
                return "system_folder"
            return "link" if entry.is_symlink() and not self._follow_links else None
        if not name.endswith(SUFFIXES):
            return "whole_slide" if name.endswith(SLIDE_SUFFIXES) else "suffix"
        if entry.is_symlink():
            if _status(entry) is None:
                return "gone"
            if not self._follow_links and not os.path.realpath(entry.path).startswith(self._inside):
                return "link"
        return None if entry.is_file() else "special"

    def _ignore(self, reason: Reason, name: bytes) -> None:
        self.ignored[reason] += 1
        log.debug("ignored, %s: %r", reason, os.fsdecode(name))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Also for a link to a folder; unlike `entry.is_dir`, it takes a link that leads round in circles for none."""
    if not entry.is_symlink():
        return entry.is_dir()
    status = _status(entry)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(entry: os.DirEntry[bytes]) -> os.stat_result | None:
    """What an entry leads to; None where that is nothing, or nothing any more."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


@contextmanager
def _listing_errors(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Behind what cannot be looked at lies an unknown number of tiles, so no count could be trusted.
        # Its name stays in the debug log: names can identify patients.
        log.debug("cannot list %r", os.fsdecode(path))
        message = f"a folder of the input cannot be listed ({error.strerror}); --log-file says which"
        raise ListingError(message) from error
