"""Steps from a file to pixels that go wrong, for decode workers: they import them by name.

A tile whose name holds one of these words comes to the end that it says; all others are decoded as ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.tiles.preprocess import preprocess_into
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileSize, TileStamp
from cervix_engine.values import Pixels

# Put before a tile's bytes by `read_named`, so that the decoder knows what the tile was called.
_NAME_ENDS = b"\0"


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(10_000)


def spin() -> None:
    """In C, and with Python's lock, as a decoder might."""
    sum(range(1 << 60))


def allocate() -> None:
    np.ones(1 << 40, np.uint8)


def allocate_by_opencv() -> None:
    cv2.resize(np.zeros((1, 1, 3), np.uint8), (40_000, 40_000))


def abort() -> None:
    os.abort()


def leave() -> None:
    os._exit(0)


def die_by_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def complain() -> None:
    """As native libraries do, past Python's own streams."""
    os.write(1, b"printed by a decoder\n")
    os.write(2, b"TIFFReadDirectory: said by a decoder\n" * 9000)


ENDS: dict[str, Callable[[], None]] = {
    "segfault": segfault,
    "hang": hang,
    "spin": spin,
    "allocate": allocate,
    "opencv": allocate_by_opencv,
    "abort": abort,
    "leave": leave,
    "kill": die_by_kill,
    "noise": complain,
}


def read_named(reader: TileReader, path: str, stamp: TileStamp | None, /) -> bytes:
    data = reader.read(path, stamp)
    assert isinstance(data, bytes)
    return Path(path).name.encode() + _NAME_ENDS + data


def decode_unless_planted(
    out: Pixels, data: bytes | Pixels, /, *, contract: ModelContract, look: Callable[[Pixels], None] | None = None
) -> TileSize:
    assert isinstance(data, bytes)
    name, _, data = data.partition(_NAME_ENDS)
    for word, end in ENDS.items():
        if word.encode() in name:
            out[...] = 0xEE  # half a tile, which nobody may see
            end()
    return preprocess_into(out, data, contract=contract, look=look)


def defect(*_: object, **__: object) -> TileSize:
    raise ZeroDivisionError


class StillbornStep:
    """A step that ends the worker which is told of it."""

    def __init__(self, end: str) -> None:
        self._end = end

    def __setstate__(self, state: dict[str, str]) -> None:
        ENDS[state["_end"]]()

    def __call__(
        self, out: Pixels, data: bytes | Pixels, /, *, contract: ModelContract, look: object = None
    ) -> TileSize:
        raise AssertionError("no worker gets here")


class FirstbornStep:
    """A slow step that ends every worker which is told of it, but the first."""

    def __init__(self, told: Path) -> None:
        self._told = told

    def __setstate__(self, state: dict[str, Path]) -> None:
        self._told = state["_told"]
        try:
            self._told.touch(exist_ok=False)
        except FileExistsError:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(
        self,
        out: Pixels,
        data: bytes | Pixels,
        /,
        *,
        contract: ModelContract,
        look: Callable[[Pixels], None] | None = None,
    ) -> TileSize:
        time.sleep(0.01)
        return preprocess_into(out, data, contract=contract, look=look)


PLANTED = TileSteps(read_named, decode_unless_planted)
