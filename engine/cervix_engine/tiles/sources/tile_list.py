"""A list of tiles: a CSV file with a column `path`, or a file, or standard input, with one path a line.

Relative paths are relative to the list's folder, those of standard input to the working folder. A path is taken as it
is written; what is listed is a tile, whatever its name, and gets its row, whether it is there or not.
"""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cervix_engine.errors import UsageError
from cervix_engine.files import scratch_folder
from cervix_engine.tiles.csv_input import check_header, csv_rows, repeated
from cervix_engine.tiles.listing import LISTING, Record, absent, read_records, write_sorted
from cervix_engine.tiles.preprocess import read_tile
from cervix_engine.tiles.sources.mounts import Mounts
from cervix_engine.tiles.tile import TileStamp

STANDARD_INPUT = Path("-")
LIST_SUFFIXES = (".csv", ".txt", ".lst", ".list")

# What a list may say of each tile beside its path, for its row; and what it may say that is for training alone.
ABOUT_TILES = ("slide_id", "minx", "miny", "width", "height")
UNUSED = ("label", "group", "split")

_LONGEST_PATH = 4096


@cache
def standard_input() -> bytes:
    """All of standard input: it can be read once, and is asked for more than once."""
    return sys.stdin.buffer.read()


def list_named(name: str | os.PathLike[str]) -> TileList | None:
    """The list that is named so; None where it is a folder, or no list by its name."""
    path = Path(name)
    is_list = path == STANDARD_INPUT or (path.suffix.lower() in LIST_SUFFIXES and not os.path.isdir(path))  # noqa: PTH112
    return TileList(path) if is_list and "://" not in os.fspath(name) else None


@dataclass(frozen=True, slots=True)
class TileList:
    """The tiles that a list names.

    Attributes:
        file: the list; `STANDARD_INPUT` for that.
    """

    file: Path

    @property
    def identity(self) -> str:
        return os.fspath(self.file.resolve())

    @property
    def slide_name(self) -> str:
        return self._folder.name or "root"

    @property
    def tiles_at_once(self) -> int:
        return 1

    @property
    def _folder(self) -> Path:
        return self.file.resolve().parent

    def lane(self, path: str) -> None:
        """As `TileSource.lane`: tiles share nothing."""

    def __str__(self) -> str:
        return "standard input" if self.file == STANDARD_INPUT else os.fspath(self.file)

    def check(self) -> None:
        """As `TileSource.check`: the list can be read, and its header is one."""
        self.columns()

    def columns(self) -> tuple[str, ...]:
        """What it says of each tile beside its path.

        Raises:
            UsageError: it cannot be read, or has a column that no list has.
        """
        return tuple(name for name in self._header() or () if name in ABOUT_TILES)

    def walk(self) -> ListPass:
        """As `TileSource.walk`."""
        self.check()
        return ListPass(self)

    def paths(self) -> Iterator[tuple[int, str]]:
        """Every path, with its line.

        Raises:
            UsageError: the list cannot be read, or a line of it names no tile.
        """
        header = self._header()
        with self._open() as file:
            if header is None:
                yield from self._plain_paths(file)
                return
            rows = csv_rows(file, Path(str(self)), any_bytes=True)
            at = header.index("path")
            for line, cells in islice(rows, 1, None):
                yield line, self._checked(cells[at], line)

    def _header(self) -> list[str] | None:
        """The columns of a CSV file; None of a file with one path a line."""
        if self.file.suffix.lower() != ".csv" and "path" not in self._first_names():
            return None
        with self._open() as file:
            line, names = next(csv_rows(file, Path(str(self)), any_bytes=True))
        where, expected = f"{self}, line {line}", "path[,slide_id][,minx,miny]"
        check_header(Path(str(self)), names, ("path",), expected=expected, line=line)
        if unknown := [name for name in names if name not in ("path", *ABOUT_TILES, *UNUSED)]:
            raise UsageError(f"{where}: unknown column {unknown[0]!r}: expected {expected}")
        if ("minx" in names) != ("miny" in names):
            raise UsageError(f"{where}: minx without miny, or miny without minx: name both or neither")
        return names

    def _first_names(self) -> list[str]:
        """What a header would name, in the first line that is not blank."""
        with self._open() as file:
            lines = file.read(_LONGEST_PATH).removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").splitlines()
        return [name.strip().strip('"') for name in os.fsdecode(lines[0] if lines else b"").split(",")]

    def _plain_paths(self, file: BinaryIO) -> Iterator[tuple[int, str]]:
        lines = iter(lambda: file.readline(2 * _LONGEST_PATH), b"")
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if number == 1 and b"\r" in text.strip(b"\r") and not text.endswith(b"\n"):
                raise UsageError(
                    f"{self}: its lines end in CR alone, as old Macs wrote them: save it with line ends of Linux or "
                    r"Windows, as `tr '\r' '\n'` does"
                )
            if path := text.rstrip(b"\r\n"):
                yield number, self._checked(os.fsdecode(path), number)

    def _checked(self, path: str, line: int) -> str:
        if not path:
            raise UsageError(f"{self}, line {line}: no path")
        if "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
            raise UsageError(f"{self}, line {line}: no file can have this name: is this a list of tiles?")
        return path

    def _open(self) -> BinaryIO:
        if self.file == STANDARD_INPUT:
            return io.BytesIO(standard_input())
        try:
            return self.file.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read the list {self}: {error.strerror}") from error

    def walk_again(self, listed: Iterable[bytes]) -> ListPass:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.walk_again`: it does not take long."""
        return self.walk()

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.again`. A table may come from somebody else: what the list does not name is not looked at."""
        wanted, asked = list(names), set[bytes]()
        asked.update(wanted)
        listed = {os.fsencode(path) for _, path in self.paths()} & asked
        prefix = self.prefix
        return (_as_it_is(name, prefix) if name in listed else absent(name) for name in wanted)

    @property
    def prefix(self) -> bytes:
        """Of relative paths."""
        return os.fsencode(self._folder) + b"/"

    def reader(self) -> ListReader:
        """As `TileSource.reader`."""
        return ListReader(os.fsdecode(self.prefix), Mounts())

    def holds(self, path: Path) -> bool:
        """As `TileSource.holds`."""
        return path.resolve() == self.file.resolve()


class ListPass:
    """One pass over a list; nothing of it is ignored.

    Raises:
        UsageError: as `TileList.paths`, or a path is there twice.
    """

    def __init__(self, tiles: TileList) -> None:
        self._tiles = tiles
        self.ignored: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        prefix, before = self._tiles.prefix, (b"", 0)
        with scratch_folder() as spool:
            # Sorted by path, so that the same ones meet, however many there are.
            numbered = ((os.fsencode(path), line, 0, b"") for line, path in self._tiles.paths())
            write_sorted(numbered, spool, once=False)
            with (spool / LISTING).open("rb") as file:
                for name, line, *_ in read_records(file):
                    if name == before[0]:
                        raise repeated(Path(str(self._tiles)), line, os.fsdecode(name), before[1])
                    before = name, line
                    yield _as_it_is(name, prefix)


def _as_it_is(name: bytes, prefix: bytes) -> Record:
    try:
        status = os.stat(os.path.join(prefix, name))  # noqa: PTH116, PTH118 - bytes
    except (OSError, ValueError):
        return absent(name)  # reading it says why
    return name, status.st_size, status.st_mtime_ns, b""


@dataclass(frozen=True, slots=True)
class ListReader:
    """Reads tiles that a list names.

    Attributes:
        prefix: of those whose path is relative.
    """

    prefix: str
    _mounts: Mounts

    def read(self, path: str, stamp: TileStamp | None) -> bytes:
        """As `TileReader.read`."""
        file = self._file(path)
        try:
            return read_tile(file, stamp=stamp)
        except OSError:
            self._mounts.require(file)
            raise

    def _file(self, path: str) -> str:
        return path if path.startswith("/") else self.prefix + path

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """As `TileReader.expect`: the kernel reads ahead."""

    def require_there(self) -> None:
        """As `TileReader.require_there`: `read` asks, which knows the tile."""
