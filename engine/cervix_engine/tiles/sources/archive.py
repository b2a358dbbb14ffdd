"""Archives of tiles, tar or zip, read in place: workers read members by their place in the archive.

A tile's path is its member's name; where there are several archives, as WebDataset's shards, it begins with the name of
its archive: `shard-000001.tar/key.jpg`. What lies beside tiles there (`key.cls`, `key.json`) is no tile.

| of a member | becomes |
|---|---|
| a leading `/` or `./` | left out, as tar does |
| `..` in its name | a failed row: nothing outside of the archive is ever opened |
| a name that another one has too | a refusal: no row could say which is meant |
| compression, encryption or a sparse member that is not read in place | a failed row |
| a link | ignored, and counted |
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.tiles.discover import Reason, objection_to_file, objection_to_folder
from cervix_engine.tiles.listing import Record, found_again
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from cervix_engine.tiles.sources import tar_file, zip_file
from cervix_engine.tiles.sources.folder import leads_to_folder, listing_errors
from cervix_engine.tiles.sources.member import REFUSED, Member
from cervix_engine.tiles.tile import TileStamp

log = logging.getLogger(__name__)


class _Format(Protocol):
    """What a module for a format of archives has; see there."""

    def members(self, file: BinaryIO, /) -> Iterator[Member]: ...
    def read(self, descriptor: int, where: str, size: int, /) -> bytes: ...


_FORMATS: Mapping[str, _Format] = {".tar": tar_file, ".zip": zip_file}
ARCHIVE_SUFFIXES = tuple(_FORMATS)
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lz|lzma|Z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)

_LEADS_OUT = "the name leads out of the archive"
_HOLDS_NUL = "the name holds a NUL, which no file's name can"

# As Linux has it: workers are told the names of many tiles in one message.
_LONGEST_NAME = 4096
# Tiles come archive by archive.
_MOST_OPEN = 8


@dataclass(frozen=True, slots=True)
class Archives:
    """The tiles in one archive, or in several of one folder.

    Attributes:
        files: the archives.
        name: what the user named: the archive, their folder, or a pattern such as `shard-{000000..000012}.tar`.
        several: whether paths begin with an archive's name.
        beside: how much else lies in their folder, by why it is ignored.
    """

    files: tuple[Path, ...]
    name: Path
    several: bool = False
    beside: Mapping[Reason, int] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> str:
        return os.fspath(self.name.resolve())

    @property
    def slide_name(self) -> str:
        return self.name.resolve().stem

    @property
    def tiles_at_once(self) -> int:
        return 1

    def lane(self, path: str) -> None:
        """As `TileSource.lane`: tiles share nothing."""

    def __str__(self) -> str:
        return os.fspath(self.name)

    def check(self) -> None:
        """As `TileSource.check`."""
        for file in self.files:
            if not file.is_file():
                raise UsageError(f"no such archive: {file}")

    def walk(self) -> ArchivePass:
        """As `TileSource.walk`."""
        self.check()
        return ArchivePass(self)

    def walk_again(self, listed: Iterable[bytes]) -> ArchivePass:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.walk_again`: it does not take long."""
        return self.walk()

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:
        """As `TileSource.again`: one pass over all members, and more only where names are in another order."""
        return found_again(names, self.walk(), spool=spool)

    def reader(self) -> ArchiveReader:
        """As `TileSource.reader`."""
        first = self.files[0].absolute()
        return ArchiveReader(os.fspath(first.parent if self.several else first), several=self.several)

    def holds(self, path: Path) -> bool:
        """As `TileSource.holds`."""
        return path.resolve() in {file.resolve() for file in self.files}


class ArchivePass:
    """One pass over archives: yields the tiles among their members, and counts the others.

    Raises:
        ListingError: an archive is cut, broken, or of another format.
    """

    def __init__(self, archives: Archives) -> None:
        self._archives = archives
        self._passed_folders: set[bytes] = set()
        self.ignored: Counter[str] = Counter(archives.beside)

    def __iter__(self) -> Iterator[Record]:
        for file in self._archives.files:
            prefix = os.fsencode(file.name) + b"/" if self._archives.several else b""
            try:
                with file.open("rb") as data:
                    mtime_ns = os.fstat(data.fileno()).st_mtime_ns
                    for member in _FORMATS[file.suffix.lower()].members(data):
                        if record := self._record(member, mtime_ns):
                            yield prefix + record[0], *record[1:]
            except OSError as error:
                raise ListingError(f"cannot read {file}: {error.strerror}") from error
            except ListingError as error:
                raise ListingError(f"{file} cannot be listed in full: {error}") from error
            self._passed_folders.clear()

    def _record(self, member: Member, mtime_ns: int) -> Record | None:
        parts = [part for part in member.name.split(b"/") if part not in (b"", b".")]
        if member.kind == "folder" and not parts:
            return None  # `./`, the folder that was packed
        *folders, name = parts or [b"."]
        for depth, folder in enumerate([*folders, *([name] if member.kind == "folder" else [])]):
            if folder != b".." and (reason := objection_to_folder(folder)):
                self._ignore_folder(b"/".join(parts[: depth + 1]), reason)
                return None
        if member.kind == "folder":
            return None
        if len(member.name) > _LONGEST_NAME:
            raise ListingError(f"a member's name has {len(member.name)} bytes, and no file's can have so many")
        reason = objection_to_file(name) or (None if member.kind == "file" else member.kind)
        path = b"/".join(parts)
        if reason:
            self._ignore(reason, path)
            return None
        where = member.where
        if b".." in folders:
            where = REFUSED + f"unsafe_name: {_LEADS_OUT}".encode()
        elif b"\0" in path:
            where = REFUSED + f"unsafe_name: {_HOLDS_NUL}".encode()
        return path.replace(b"\0", b"?"), member.size, mtime_ns, where

    def _ignore_folder(self, path: bytes, reason: Reason) -> None:
        # A folder that is not entered counts once, whatever it holds.
        if path not in self._passed_folders:
            self._passed_folders.add(path)
            self._ignore(reason, path)

    def _ignore(self, reason: Reason, name: bytes) -> None:
        self.ignored[reason] += 1
        log.debug("ignored, %s: %r", reason, os.fsdecode(name))


class ArchiveReader:
    """Reads members by where they lie.

    Args:
        place: the archive; of several, their folder.
        several: whether a path begins with its archive's name.
    """

    def __init__(self, place: str, *, several: bool) -> None:
        self._place = place
        self._several = several
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}  # each worker opens its own

    def read(self, path: str, stamp: TileStamp | None) -> bytes:
        """As `TileReader.read`.

        Raises:
            ListingError: the archive has changed since it was listed, so that no member lies where it was.
        """
        if stamp is None:
            raise ValueError("a member of an archive is read by where it was listed")
        if (stamp.size_bytes, stamp.mtime_ns) == (0, 0):
            raise TileReadError("unreadable", "no such member")
        if stamp.where.startswith(REFUSED.decode()):
            kind, _, message = stamp.where[1:].partition(": ")
            raise TileReadError(kind, message)
        if stamp.size_bytes > MAX_TILE_BYTES:
            raise TileReadError("too_large", f"{stamp.size_bytes} bytes, limit {MAX_TILE_BYTES}")
        archive = f"{self._place}/{path.partition('/')[0]}" if self._several else self._place
        try:
            descriptor = self._opened(archive)
            if os.fstat(descriptor).st_mtime_ns != stamp.mtime_ns:
                raise ListingError(f"{archive} has changed since it was listed: begin anew with --no-resume")
            return _FORMATS[archive[-4:].lower()].read(descriptor, stamp.where, stamp.size_bytes)
        except TileReadError:
            raise
        except OSError as error:
            self._require(archive)
            raise TileReadError("unreadable", error.strerror or type(error).__name__) from error

    def _opened(self, archive: str) -> int:
        if archive not in self._open:
            self._open[archive] = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(archive)
        return self._open[archive]

    def _require(self, archive: str) -> None:
        if not Path(archive).is_file():
            raise ListingError(f"the archive of tiles is gone: {archive}")

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """As `TileReader.expect`: the kernel reads ahead."""

    def require_there(self) -> None:
        """As `TileReader.require_there`: of several archives, `read` asks for the tile's own."""
        if not os.path.exists(self._place):  # noqa: PTH110 - text
            raise ListingError(f"the archive of tiles is gone: {self._place}")


_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def archives_named(name: Path) -> Archives | None:
    """The archives of a pattern such as `shard-{000000..000012}.tar`; None where the name is none.

    Raises:
        UsageError: it counts down, or its folder is a pattern too.
    """
    found = _BRACES.search(name.name)
    if found is None or name.suffix.lower() not in _FORMATS:
        return None
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise UsageError(f"{name} counts down: write {{{found[2]}..{found[1]}}}")
    numbers = (f"{number:0{len(found[1])}d}" for number in range(first, last + 1))
    return Archives(tuple(name.with_name(_BRACES.sub(n, name.name, count=1)) for n in numbers), name, several=True)


def archives_in(folder: Path) -> Archives | None:
    """All archives of a folder that holds no tile and no other folder beside them; None where it is not such a one.

    What else is there is counted. What is an archive by its name and no file is left to `Archives.check`.

    Raises:
        ListingError: it cannot be listed.
        UsageError: an archive in it is compressed as a whole.
    """
    files: list[Path] = []
    beside: Counter[Reason] = Counter()
    with listing_errors(os.fsencode(folder)), os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            file = folder / os.fsdecode(entry.name)
            reason = objection_to_folder(entry.name) if leads_to_folder(entry) else objection_to_file(entry.name)
            if reason is None:
                return None
            if reason == "suffix" and (file.suffix.lower() in _FORMATS or _COMPRESSED.search(file.name)):
                files.append(file)
            else:
                beside[reason] += 1
                log.debug("ignored, %s: %r", reason, file.name)
    for file in sorted(files):
        refuse_compressed(file)
    return Archives(tuple(sorted(files)), folder, several=True, beside=beside) if files else None


def refuse_compressed(file: Path) -> None:
    """Raises UsageError where a file is, by its name, an archive that is compressed as a whole."""
    if _COMPRESSED.search(file.name):
        raise UsageError(
            f"{file} is compressed as a whole, so that its members cannot be read in place: decompress it, as gunzip "
            "does, or pack a zip archive, which compresses each member"
        )
