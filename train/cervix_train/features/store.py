"""Features on disk, found again by what they were computed from.

One SQLite file per *extractor* (its weights and the preprocessing, as one digest), one row per tile (the digest
of its file). A row is there whole or not at all, so an interrupted pass goes on where it stopped, and several
data sets or processes may share a store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cervix_engine.errors import OutputError
from cervix_engine.tiles.tile import TileSize

_TABLE = """CREATE TABLE IF NOT EXISTS tiles (
    digest TEXT PRIMARY KEY, features BLOB NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
    mean_red REAL NOT NULL, mean_green REAL NOT NULL, mean_blue REAL NOT NULL)"""
_SELECT = "SELECT features, height, width, mean_red, mean_green, mean_blue FROM tiles WHERE digest = ?"
_HOLDS = "SELECT EXISTS (SELECT 1 FROM tiles WHERE digest = ?)"
_INSERT = "INSERT OR REPLACE INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What is kept of one tile.

    Attributes:
        features: `float32 (features,)`.
        size: decoded size, before the resize.
        mean_rgb: mean of the preprocessed pixels, per channel, 0-255.
    """

    features: npt.NDArray[np.float32]
    size: TileSize
    mean_rgb: tuple[float, float, float]


class FeatureStore:
    """A store for one extractor. Used in `with`; one thread owns it.

    Args:
        folder: the cache; made if need be.
        key: the extractor's digest.
        width: number of features of a tile.

    Raises:
        OutputError: the store cannot be read or written; the message says which file to delete.
    """

    def __init__(self, folder: Path, *, key: str, width: int) -> None:
        self.path = folder / f"{key}.sqlite3"
        self._width = width
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> FeatureStore:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._close()
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def get(self, digest: str) -> TileRecord | None:
        """The record of the tile whose file has this digest, or None if it is not there yet."""
        try:
            row = self._open.execute(_SELECT, (digest,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if row is None:
            return None
        blob, height, width, *mean = row
        if len(blob) != 4 * self._width:
            raise self._unusable(f"a row has {len(blob)} bytes, expected {4 * self._width}")
        return TileRecord(np.frombuffer(blob, "<f4").astype(np.float32), TileSize(height, width), tuple(mean))

    def held(self, digests: Iterable[str]) -> set[str]:
        """Which of these tiles are there. Asked outside of `with` too, and then leaves no file that was not there."""
        if self._connection is None:
            if not self.path.exists():
                return set()
            with self:
                return self.held(digests)
        try:
            return {digest for digest in digests if self._open.execute(_HOLDS, (digest,)).fetchone()[0]}
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def put(self, records: Mapping[str, TileRecord]) -> None:
        """Keep records by file digest, all or none of them, durably."""
        rows = [
            (digest, record.features.astype("<f4").tobytes(), record.size.height, record.size.width, *record.mean_rgb)
            for digest, record in records.items()
        ]
        try:
            with self._open:
                self._open.executemany(_INSERT, rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the feature store is used outside its `with` block")
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _unusable(self, reason: object) -> OutputError:
        return OutputError(f"the feature cache {self.path} cannot be used ({reason}): delete it or give --cache DIR")
