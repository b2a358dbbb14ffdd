"""Tar archives (POSIX.1-2001 and GNU), uncompressed: what lies where in them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cervix_engine.errors import ListingError, TileReadError
from cervix_engine.tiles.sources.member import REFUSED, Member

_SPARSE = REFUSED + b"unreadable: a sparse member, which is not read in place: pack the archive without sparse files"


# Names and times that do not fit into a plain header: a few hundred bytes, which `tarfile` reads into memory whole.
_MOST_EXTENDED_BYTES = 2**20
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_READ_BYTES = 2**20


class _Header(tarfile.TarInfo):
    """A header that is refused where it would make the reader hold more than any name takes, or go backwards."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _EXTENDED and self.size > _MOST_EXTENDED_BYTES):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        processed: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return processed


def members(file: BinaryIO) -> Iterator[Member]:
    """Every member, in the archive's order; in memory that does not grow with it.

    Raises:
        ListingError: the archive is cut, broken or compressed.
    """
    try:
        with tarfile.open(
            fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while info := archive.next():
                # It would keep all of them, for names that are asked for later.
                archive.members.clear()  # type: ignore[attr-defined]
                yield _member(info)
            _require_end(file, archive.offset)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ListingError(f"{error}: the archive is cut, compressed or broken") from error


def _member(info: tarfile.TarInfo) -> Member:
    name = os.fsencode(info.name)
    if info.isdir():
        return Member(name, 0, b"", "folder")
    if info.issym() or info.islnk():
        return Member(name, 0, b"", "link")
    if not info.isfile():
        return Member(name, 0, b"", "special")
    return Member(name, info.size, _SPARSE if info.issparse() else b"%d" % info.offset_data)


def _require_end(file: BinaryIO, offset: int) -> None:
    """`tarfile` takes whatever it cannot read for the end; the format marks it by zeros, and nothing comes behind."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ListingError("it ends without its end mark: the archive is cut")
    if any(block):
        raise ListingError(f"what lies at byte {offset} is no header: the archive is broken")
    while block := file.read(_READ_BYTES):  # padding, as much as its writer likes
        if behind := block.lstrip(b"\0"):
            raise ListingError(
                f"data follows the end of the archive, at byte {file.tell() - len(behind)}: it is damaged, or several "
                "were joined; `tar -ixf` unpacks what is there, to be packed anew"
            )


def read(descriptor: int, where: str, size: int) -> bytes:
    """A member's bytes.

    Raises:
        TileReadError: the archive ends within it.
        OSError: it cannot be read.
    """
    data = os.pread(descriptor, size, int(where))
    if len(data) != size:
        raise TileReadError("unreadable", "the archive ends within this member")
    return data
