"""Zip archives (PKWARE's APPNOTE 6.3.10, zip64 too): what lies where in them, stored or deflated.

The central directory is read from front to back: `zipfile` would hold all of it, about 1 kB a member.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import deflate

from cervix_engine.errors import ListingError, TileReadError
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from cervix_engine.tiles.sources.member import REFUSED, Member

_END = struct.Struct("<4s4H2LH")  # signature, disk, first disk, entries here, entries, size, offset, comment's length
_END64 = struct.Struct("<4sQ2H2L4Q")  # …, entries here, entries, size, offset
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_USUAL_NAME = 256  # bytes of a member's name and extra field; longer ones take a second read
_VARIABLE = slice(12, 15)  # an entry's lengths of name, extra field and comment
_END_SIGNATURE = b"PK\x05\x06"
_LONGEST_COMMENT = 2**16
_BROKEN = "its directory is broken"

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _MADE_ON_UNIX = 1, 3
_IN_ZIP64 = 2**32 - 1
_MOST_OFFSET = 2**63 - 1


def members(file: BinaryIO) -> Iterator[Member]:
    """Every member, in the order of the directory; in memory that does not grow with it.

    Raises:
        ListingError: the archive is cut, broken, joined from several, or of several volumes.
    """
    directory = _directory(file)
    file.seek(directory.offset + directory.shift)
    left, found = directory.size, 0
    while left > 0:
        fields = file.read(_ENTRY.size)
        if fields.startswith(b"PK\x05\x05"):  # a signature, the last part of a directory
            left = 0
            break
        if len(fields) < _ENTRY.size or not fields.startswith(b"PK\x01\x02"):
            raise ListingError(_BROKEN)
        entry = _ENTRY.unpack(fields)
        length = sum(entry[_VARIABLE])
        variable = file.read(length)
        if len(variable) < length:
            raise ListingError("its directory is cut")
        left, found = left - _ENTRY.size - length, found + 1
        yield _member(entry, variable, directory.shift)
    if left:
        raise ListingError(_BROKEN)
    # Writers that know no zip64 store the count without its upper bits.
    if found != directory.entries and (directory.zip64 or (found - directory.entries) % 2**16):
        raise ListingError(
            f"its directory holds {found:,} entries, and its end says {directory.entries:,}: pack it anew"
        )


class _Directory(NamedTuple):
    """Where the directory lies, as the archive's end says.

    Attributes:
        entries: how many it holds; without `zip64` modulo 65,536.
        size: of it, in bytes.
        offset: of it, in the archive as it was written.
        shift: of this and all other offsets, by what lies before the archive.
    """

    entries: int
    size: int
    offset: int
    shift: int
    zip64: bool


def _directory(file: BinaryIO) -> _Directory:
    end = _end(file, file.seek(0, os.SEEK_END))
    if end is None:
        raise ListingError("it has no directory at its end: the archive is cut, or no zip archive")
    file.seek(end)
    _, disk, first_disk, here, entries, size, offset, _ = _END.unpack(file.read(_END.size))
    file.seek(max(0, end - _LOCATOR64.size))
    zip64 = end >= _LOCATOR64.size and file.read(4) == b"PK\x06\x07"
    if zip64:
        end, disk, first_disk, here, entries, size, offset = _directory64(file, end - _LOCATOR64.size)
    if disk or first_disk or here != entries:
        raise ListingError("it is one of several volumes: join them first")
    shift = end - size - offset
    if shift < 0:
        raise ListingError(_BROKEN)
    if shift and _end(file, shift, exactly=True) is not None:
        raise ListingError("it is several archives, joined: name them apart, or pack them anew as one")
    return _Directory(entries, size, offset, shift, zip64)


def _end(file: BinaryIO, length: int, *, exactly: bool = False) -> int | None:
    """Where the end record lies of an archive that ends at `length`: the one whose comment reaches to there.

    Any text may be in a comment, another such record too. Where none reaches to there, something was appended to the
    archive, or its comment was cut: then it is the last one, unless `exactly`.
    """
    start = max(0, length - _LONGEST_COMMENT - _END.size)
    file.seek(start)
    tail = file.read(length - start)
    last = at = tail.rfind(_END_SIGNATURE, 0, max(0, len(tail) - _END.size + len(_END_SIGNATURE)))
    while at >= 0:
        if at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            return start + at
        at = tail.rfind(_END_SIGNATURE, 0, at)
    return None if exactly or last < 0 else start + last


def _directory64(file: BinaryIO, locator: int) -> tuple[int, int, int, int, int, int, int]:
    file.seek(max(0, locator - _END64.size))
    fields = file.read(_END64.size)
    if locator < _END64.size or not fields.startswith(b"PK\x06\x06"):
        raise ListingError(_BROKEN)
    *_, disk, first_disk, here, entries, size, offset = _END64.unpack(fields)
    return locator - _END64.size, disk, first_disk, here, entries, size, offset


def _member(entry: tuple[Any, ...], variable: bytes, shift: int) -> Member:
    _, _, made_on, _, _, flags, method, _, _, crc, packed, size, *rest = entry
    name_length, extra_length, _, _, _, attributes, offset = rest
    name, extra = variable[:name_length], variable[name_length : name_length + extra_length]
    size, packed, offset = _in_zip64(extra, size, packed, offset)
    if offset + shift > _MOST_OFFSET:
        raise ListingError(_BROKEN)
    if name.endswith(b"/"):
        return Member(name, 0, b"", "folder")
    if made_on == _MADE_ON_UNIX and stat.S_ISLNK(attributes >> 16):
        return Member(name, 0, b"", "link")
    if flags & _ENCRYPTED:
        return Member(name, size, REFUSED + b"unreadable: an encrypted member: pack the archive without a password")
    if method not in (_STORED, _DEFLATED):
        words = b"unreadable: compressed by method %d, expected stored or deflated: pack it anew" % method
        return Member(name, size, REFUSED + words)
    return Member(name, size, b"%d:%d:%d:%d" % (offset + shift, packed, method, crc))


def _in_zip64(extra: bytes, *values: int) -> tuple[int, ...]:
    """Uncompressed and compressed size and offset, those that do not fit into 32 bits from the extra field."""
    large, at = b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            large = extra[at + 4 : at + 4 + length]
        at += 4 + length
    found = iter(struct.unpack(f"<{len(large) // 8}Q", large[: len(large) // 8 * 8]))
    return tuple(next(found, value) if value == _IN_ZIP64 else value for value in values)


def read(descriptor: int, where: str, size: int) -> bytes:
    """A member's bytes: never more than were listed, whatever a bomb holds.

    Raises:
        TileReadError: they are not what the directory says.
        OSError: they cannot be read.
    """
    offset, packed, method, crc = map(int, where.split(":"))
    if packed > MAX_TILE_BYTES:
        raise TileReadError("too_large", f"{packed} bytes compressed, limit {MAX_TILE_BYTES}")
    # In one read, with room for the name and what writers put beside it.
    block = os.pread(descriptor, _LOCAL.size + _USUAL_NAME + packed, offset)
    if len(block) < _LOCAL.size or not block.startswith(b"PK\x03\x04"):
        raise TileReadError("unreadable", "the archive has no member where its directory says")
    *_, name_length, extra_length = _LOCAL.unpack_from(block)
    start = _LOCAL.size + name_length + extra_length
    data = block[start : start + packed]
    if len(data) < packed:
        data = os.pread(descriptor, packed, offset + start)
    if len(data) != packed:
        raise TileReadError("unreadable", "the archive ends within this member")
    if method == _DEFLATED:
        data = _inflated(data, size)
    if len(data) != size or deflate.crc32(data) != crc:
        raise TileReadError("unreadable", "the member is not as the archive's directory says: its checksum differs")
    return data


def _inflated(data: bytes, size: int) -> bytes:
    with suppress(deflate.DeflateError):
        if plain := deflate.deflate_decompress(data, size):  # never more than `size`
            return bytes(plain)
    return _inflated_by_zlib(data, size)  # which says what is wrong


def _inflated_by_zlib(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise TileReadError("unreadable", f"the member cannot be decompressed ({error})") from error
    if len(plain) > size:
        raise TileReadError("too_large", f"decompresses to more than the {size} bytes that the archive says")
    return plain
