"""Counts what a run asks of the file system, and lets one of its calls fail, or kills the process there.

A step is a call that opens, reads, writes, syncs, renames, removes, lists or looks at something in a watched folder.
Most are seen through Python's own audit events; what has none is wrapped.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels

# Where steps are named: a copy of standard error, which a command takes from native code.
MARKS = 100

EVENTS = {
    "open": "open",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.listdir": "list",
    "os.scandir": "list",
}

CHANGING = frozenset({"open", "write", "fsync", "rename", "remove", "mkdir", "rmdir"})
LISTING = frozenset({"list", "stat"})
READING = frozenset({"open", "read"})


class ShortWrite(Exception):  # noqa: N818 - what a fault asks for, and no error
    """Raised by a fault where a write shall take only half of its bytes."""


@dataclass
class Injector:
    """Counts steps in the watched folders and does `fault` at step `at`; with `lasting`, at all later ones too.

    The step is named on standard error; if `at` is 0, all are named and nothing is done.

    Attributes:
        watched: folder -> the kinds of steps that count in it.
    """

    watched: Mapping[str, frozenset[str]]
    at: int = 0
    fault: Callable[[], None] = lambda: None
    lasting: bool = False
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))  # atomic: several threads take steps

    def install(self) -> None:
        """Watch this process from now on."""
        self._wrap_fsync()
        self._wrap_stat()
        self._wrap_scandir()
        self._wrap_open()
        sys.addaudithook(self._audit)

    def step(self, what: str, path: str) -> None:
        if what not in self.kinds(path):
            return
        number = next(self._numbers)
        if self.at in (0, number):
            os.write(MARKS, f"step: {what} {Path(path).name}\n".encode())
        if number == self.at or (self.lasting and number > self.at > 0):
            self.fault()

    def kinds(self, path: str) -> frozenset[str]:
        """The kinds of steps that count at `path`."""
        return next((kinds for folder, kinds in self.watched.items() if path.startswith(folder)), frozenset())

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            self.step(EVENTS[event], os.fsdecode(arguments[0]))

    def _wrap_fsync(self) -> None:
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self.step("fsync", os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        os.fsync = counted  # type: ignore[assignment]

    def _wrap_stat(self) -> None:
        stat = os.stat

        def counted(path: Any, **options: Any) -> os.stat_result:
            if isinstance(path, str | bytes | os.PathLike):
                self.step("stat", os.fsdecode(path))
            return stat(path, **options)

        os.stat = counted

    def _wrap_scandir(self) -> None:
        scandir = os.scandir

        @contextmanager
        def counted(folder: Any) -> Iterator[Iterator[CountedEntry]]:
            name = (
                os.fspath(Path(f"/proc/self/fd/{folder}").readlink())
                if isinstance(folder, int)
                else os.fsdecode(folder)
            )
            with scandir(folder) as entries:
                yield self._entries(name, entries)

        os.scandir = counted  # type: ignore[assignment]

    def _entries(self, folder: str, entries: Any) -> Iterator[CountedEntry]:
        for entry in entries:
            yield CountedEntry(entry, self)
        self.step("list", folder)  # a listing can break off, too

    def _wrap_open(self) -> None:
        plain = io.open

        def counted(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
            named = isinstance(file, str | bytes | os.PathLike)
            call = "write" if set(mode) & set("wax+") else "read"
            if not named or call not in self.kinds(os.fsdecode(file)):
                return plain(file, mode, buffering, *text, **more)
            raw = CountedFile(os.fsdecode(file), mode.replace("b", "").replace("t", ""), more.get("opener"), self)
            if buffering == 0:
                return raw
            buffered: Any = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, more.get("encoding"))

        io.open = builtins.open = counted


class CountedEntry:
    """An entry of a folder, whose `stat` is a step."""

    def __init__(self, entry: os.DirEntry[Any], injector: Injector) -> None:
        self._entry = entry
        self._injector = injector

    def stat(self) -> os.stat_result:
        self._injector.step("stat", os.fsdecode(self._entry.path))
        return self._entry.stat()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)


class CountedFile(io.FileIO):
    """An unbuffered file, each of whose writes and whole reads is a step."""

    def __init__(self, path: str, mode: str, opener: Any, injector: Injector) -> None:
        super().__init__(path, mode, opener=opener)
        self._injector = injector
        self._path = path

    def write(self, data: Any) -> int:
        try:
            self._injector.step("write", self._path)
        except ShortWrite:
            data = memoryview(data)[: len(data) // 2]
        return super().write(data)

    def readall(self) -> bytes:
        self._injector.step("read", self._path)
        return super().readall()


def error(number: int) -> Callable[[], None]:
    """A fault: the call is refused with this error number."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


class InjectedRead:
    """`read_tile_of`, one step of which fails with EIO: it is taken in a decode worker, of which there must be one.

    The worker names the step where this process does.

    Args:
        tiles: the folder that is read from.
        at: the number of the step.
    """

    def __init__(self, tiles: str, at: int) -> None:
        self._step = tiles, at
        self._run = 0
        self._watched = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": os.getpid()}  # it is pickled by the process that runs

    def __call__(self, reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes | Pixels:
        if not self._watched:
            self._watched = True
            os.dup2(os.open(f"/proc/{self._run}/fd/{MARKS}", os.O_WRONLY), MARKS)
            tiles, at = self._step
            Injector({tiles: READING}, at, error(errno.EIO)).install()
        return reader.read(path, stamp)


def kill() -> None:
    """A fault: SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def short_write() -> Callable[[], None]:
    """A fault for writes that lasts: the first one takes half of its bytes, and then the disk is full."""
    full = iter([False])

    def fail() -> None:
        if next(full, True):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ShortWrite

    return fail
