"""Finds the tiles below one root and lists them in byte order of their paths, in bounded memory.

The listing is a file of records `path NUL size NUL mtime_ns NUL`, sorted by the path's bytes. It is written
once and then read, by the run and by whoever resumes it: what was found is decided here and nowhere else.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO

from cervix_engine.errors import ListingError, OutputError, UsageError
from cervix_engine.tiles.tile import TileRef, TileStamp

log = logging.getLogger(__name__)

SUFFIXES = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp")

# 16,384 records of about 100 bytes: the sort holds a few MB however many tiles there are.
_RUN_LENGTH = 16_384

# A link that leads nowhere, or a file that went away meanwhile.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})

Record = tuple[bytes, int, int]  # path relative to the root, size in bytes, mtime in ns


@dataclass(frozen=True, slots=True)
class Listing:
    """The tiles that were found, on disk.

    Attributes:
        root: the folder that paths are relative to.
        path: the file of records.
        found: number of tiles.
        ignored: files passed over, for their suffix or as special files.
    """

    root: Path
    path: Path
    found: int
    ignored: int

    def __iter__(self) -> Iterator[TileRef]:
        root_name = self.root.resolve().name or "root"
        for index, (name, size, mtime_ns) in enumerate(self._records()):
            folder = name.rpartition(b"/")[0]
            slide = os.fsdecode(folder.rpartition(b"/")[2]) if folder else root_name
            yield TileRef(index, os.fsdecode(name), slide, TileStamp(size, mtime_ns))

    def _records(self) -> Iterator[Record]:
        try:
            with self.path.open("rb") as file:
                yield from _read_records(file)
        except OSError as error:
            raise OutputError(f"cannot read the listing {self.path}: {error.strerror}") from error


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


def discover(root: Path, *, spool: Path) -> Listing:
    """List every tile below `root` into `spool / "listing"`.

    A tile is a regular file, or a link to one inside the root, whose suffix is an image's in any case and whose
    path has no hidden part. Folders that are links are not entered.

    Raises:
        UsageError: `root` is no folder or holds no tile.
        ListingError: a folder below it cannot be listed.
        OutputError: the listing cannot be written.
    """
    with _listing_errors(os.fsencode(root)):
        if not root.is_dir():
            raise UsageError(f"no such folder: {root}" if not root.exists() else f"not a folder: {root}")
    ignored = [0]
    try:
        with ExitStack() as stack:
            runs = [stack.enter_context(run) for run in _sorted_runs(_walk(os.fsencode(root), ignored), spool)]
            found = _write_records(spool / "listing", heapq.merge(*map(_read_records, runs), key=itemgetter(0)))
    except OSError as error:
        raise OutputError(f"cannot write the listing in {spool}: {error.strerror}") from error
    if not found:
        raise UsageError(f"no tiles in {root}: {ignored[0]} other files; known suffixes are {_known()}")
    return Listing(root, spool / "listing", found, ignored[0])


def list_again(names: Iterable[bytes], root: Path, *, spool: Path, ignored: int) -> Listing:
    """List tiles that were found before, in the order given, into `spool / "listing"`, as they are now.

    One that is gone, or leads out of `root` by now, is listed as an empty file of no time, which it cannot be read as.

    Raises:
        OutputError: the listing cannot be written.
    """
    inside = os.path.realpath(os.fsencode(root)) + b"/"
    records = ((name, *_size_and_time(inside + name, inside)) for name in names)
    try:
        found = _write_records(spool / "listing", records)
    except OSError as error:
        raise OutputError(f"cannot write the listing in {spool}: {error.strerror}") from error
    return Listing(root, spool / "listing", found, ignored)


def _size_and_time(path: bytes, inside: bytes) -> tuple[int, int]:
    try:
        if os.path.realpath(path).startswith(inside):
            status = os.stat(path)  # noqa: PTH116 - bytes
            return status.st_size, status.st_mtime_ns
    except (OSError, ValueError):
        pass
    return 0, 0


def _known() -> str:
    return " ".join(suffix.decode() for suffix in SUFFIXES)


def _walk(root: bytes, ignored: list[int]) -> Iterator[Record]:
    inside = os.path.realpath(root) + b"/"
    folders = [b""]
    while folders:
        folder = folders.pop()
        for entry in _scan(root + b"/" + folder):
            if entry.name.startswith(b"."):
                continue
            name = folder + b"/" + entry.name if folder else entry.name
            with _listing_errors(name):
                is_folder = entry.is_dir(follow_symlinks=False)
                status = None if is_folder else _tile_status(entry, inside)
            if is_folder:
                folders.append(name)
            elif status is None:
                ignored[0] += 1
            else:
                yield name, status.st_size, status.st_mtime_ns


def _scan(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    with _listing_errors(folder), os.scandir(folder) as entries:
        yield from entries


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


def _tile_status(entry: os.DirEntry[bytes], inside: bytes) -> os.stat_result | None:
    if not entry.name.lower().endswith(SUFFIXES):
        return None
    try:
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(inside):
            return None
        status = entry.stat()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _sorted_runs(records: Iterable[Record], spool: Path) -> Iterator[IO[bytes]]:
    iterator = iter(records)
    while run := sorted(islice(iterator, _RUN_LENGTH)):
        file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - the caller's ExitStack closes it
        file.writelines(map(_encode, run))
        file.seek(0)
        yield file


def _encode(record: Record) -> bytes:
    return b"%b\0%d\0%d\0" % record


def _write_records(path: Path, records: Iterable[Record]) -> int:
    count = 0
    with path.open("wb") as file:
        for record in records:
            file.write(_encode(record))
            count += 1
    return count


def _read_records(file: IO[bytes]) -> Iterator[Record]:
    rest = b""
    while block := file.read(1 << 16):
        *fields, rest = (rest + block).split(b"\0")
        # Records have three fields; what does not fill one waits for the next block.
        whole = len(fields) // 3 * 3
        for at in range(0, whole, 3):
            yield fields[at], int(fields[at + 1]), int(fields[at + 2])
        rest = b"\0".join([*fields[whole:], rest])
