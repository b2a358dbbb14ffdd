"""A folder of tiles: every file below it whose suffix is an image's."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.errors import ListingError, UsageError
from cervix_engine.tiles.discover import HINTS, SLIDE_SUFFIXES, Reason, objection_to_file, objection_to_folder
from cervix_engine.tiles.listing import Record, absent
from cervix_engine.tiles.preprocess import read_tile
from cervix_engine.tiles.tile import TileStamp

log = logging.getLogger(__name__)

# A link that leads nowhere, or a file that went away meanwhile.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


ScanDir = Callable[[bytes], AbstractContextManager[Iterator["os.DirEntry[bytes]"]]]


@dataclass(frozen=True, slots=True)
class Folder:
    """The tiles below one folder.

    A tile is a regular file, or a link to one inside the folder, whose suffix is an image's in any case and whose
    path has no hidden part and no system folder. Folders that are links are not entered.

    Attributes:
        root: the folder; paths are relative to it.
        follow_links: also take links to files elsewhere, and enter folders that are links, but for those that lead
            back to a folder which they are in.
    """

    root: Path
    follow_links: bool = False

    @property
    def identity(self) -> str:
        return os.fspath(self.root.resolve())

    @property
    def slide_name(self) -> str:
        return self.root.resolve().name or "root"

    @property
    def tiles_at_once(self) -> int:
        return 1

    def lane(self, path: str) -> None:
        """As `TileSource.lane`: tiles share nothing."""

    def __str__(self) -> str:
        return os.fspath(self.root)

    def check(self) -> None:
        """As `TileSource.check`."""
        try:
            is_folder, exists = stat.S_ISDIR(self.root.stat().st_mode), True
        except (OSError, ValueError):
            is_folder = exists = False
        if not is_folder:
            raise refuse_root(self.root, exists=exists)

    def walk(self) -> Walk:
        """As `TileSource.walk`."""
        with listing_errors(os.fsencode(self.root)):
            if not self.root.is_dir():
                self.check()
        return Walk(self.root, follow_links=self.follow_links)

    def walk_again(self, listed: Iterable[bytes]) -> Walk:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.walk_again`: it does not take long."""
        return self.walk()

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.again`; one that leads out of the folder by now is gone, where links are not followed."""
        top = os.path.realpath(os.fsencode(self.root)) + b"/"
        inside = b"/" if self.follow_links else top
        return (_as_it_is(name, top, inside) for name in names)

    def reader(self) -> FolderReader:
        """As `TileSource.reader`."""
        root = self.root.absolute()  # workers have a working directory of their own
        return FolderReader(os.path.join(root, ""), SameRoot(root))  # noqa: PTH118 - text, as the reader joins it

    def holds(self, path: Path) -> bool:
        """As `TileSource.holds`."""
        return (path.parent.resolve() / path.name).is_relative_to(self.root.resolve())


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads tiles below a folder.

    Attributes:
        prefix: of their paths. Joined as text: a `Path` for each tile would cost as much as all of the rest of
            handing it on.
    """

    prefix: str
    _same_root: SameRoot

    def read(self, path: str, stamp: TileStamp | None) -> bytes:
        """As `TileReader.read`."""
        return read_tile(self.prefix + path, stamp=stamp)

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """As `TileReader.expect`: the kernel reads ahead."""

    def require_there(self) -> None:
        """As `TileReader.require_there`."""
        self._same_root.require()


class SameRoot:
    """Tells a tile that cannot be read from an input share that has gone: then no tile can, and the run must stop."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._device = self._now()

    def require(self) -> None:
        """Raises ListingError where the root is not the folder, on the device, that it was at the start."""
        if self._now() != self._device:
            raise ListingError(f"the folder of tiles is gone or was replaced: {self._root}")

    def _now(self) -> tuple[int, int] | None:
        try:
            status = self._root.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def refuse_root(root: Path, *, exists: bool) -> UsageError:
    """The error of a root that is no folder."""
    if exists and os.fsencode(root).lower().endswith(SLIDE_SUFFIXES):
        return UsageError(f"{root} is a whole slide, expected a folder: {HINTS['whole_slide']}")
    if exists:
        return UsageError(
            f"not a folder of tiles, a list (.csv, .txt), an archive (.tar, .zip) or a whole slide: {root}"
        )
    return UsageError(f"no such folder: {root}")


class Walk:
    """One pass over a folder: yields its tiles in no order, and counts what is passed over.

    Raises:
        ListingError: a folder cannot be listed.
    """

    def __init__(
        self,
        root: Path,
        *,
        follow_links: bool = False,
        scandir: ScanDir | None = None,
        objection: Callable[[bytes], Reason | None] = objection_to_file,
    ) -> None:
        self._root = os.fsencode(root)
        self._file_objection = objection
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
                with listing_errors(name):
                    is_folder = leads_to_folder(entry)
                    reason = self._objection(entry, is_folder=is_folder)
                    status = None if reason else _status(entry)
                if status is None:
                    self._ignore(reason or "gone", name)
                elif is_folder:
                    folders.append((name, above))
                else:
                    yield name, status.st_size, status.st_mtime_ns, b""

    def _entries(self, folder: bytes) -> Iterator[os.DirEntry[bytes]]:
        with listing_errors(folder), self._scandir(folder) as entries:
            yield from entries

    def _identity(self, folder: bytes) -> tuple[int, int]:
        with listing_errors(folder):
            status = os.stat(self._root + b"/" + folder)  # noqa: PTH116 - bytes
        return status.st_dev, status.st_ino

    def _objection(self, entry: os.DirEntry[bytes], *, is_folder: bool) -> Reason | None:
        """Why an entry is neither a tile nor a folder to enter, or None."""
        if is_folder:
            reason = objection_to_folder(entry.name)
            return reason or ("link" if entry.is_symlink() and not self._follow_links else None)
        if reason := self._file_objection(entry.name):
            return reason
        if entry.is_symlink():
            if _status(entry) is None:
                return "gone"
            if not self._follow_links and not os.path.realpath(entry.path).startswith(self._inside):
                return "link"
        return None if entry.is_file() else "special"

    def _ignore(self, reason: Reason, name: bytes) -> None:
        self.ignored[reason] += 1
        log.debug("ignored, %s: %r", reason, os.fsdecode(name))


def _as_it_is(name: bytes, top: bytes, inside: bytes) -> Record:
    try:
        if os.path.realpath(top + name).startswith(inside):
            status = os.stat(top + name)  # noqa: PTH116 - bytes
            return name, status.st_size, status.st_mtime_ns, b""
    except (OSError, ValueError):
        pass
    return absent(name)


def leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
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
def listing_errors(path: bytes) -> Iterator[None]:
    """A ListingError in place of an OSError at `path`."""
    try:
        yield
    except OSError as error:
        # Behind what cannot be looked at lies an unknown number of tiles, so no count could be trusted.
        # Its name stays in the debug log: names can identify patients.
        log.debug("cannot list %r", os.fsdecode(path))
        message = f"a folder of the input cannot be listed ({error.strerror}); --log-file says which"
        raise ListingError(message) from error
