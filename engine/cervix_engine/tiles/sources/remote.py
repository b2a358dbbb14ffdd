"""Tiles on an object store or a web server: `s3://`, `gs://`, `https://`, and whatever else fsspec knows.

A request that fails is repeated, a little later each time. A tile that is not there is a failed row at once; so is one
whose requests fail again and again, as long as the store itself still answers. Where it does not, the run stops, to be
gone on with.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from cervix_engine.errors import ListingError, TileReadError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.tiles.discover import Reason, objection_to_file, objection_to_folder
from cervix_engine.tiles.listing import Record
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from cervix_engine.tiles.sources.store import ANSWERED, BY_LINKS, UNKNOWN_SIZE, Store, error_words, record_of
from cervix_engine.tiles.sources.web import USUAL_LIMITS, TransferLimits
from cervix_engine.tiles.tile import TileStamp

log = logging.getLogger(__name__)

# What is installed for the schemes that most people have; fsspec names the library of any other.
_LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}

# Waits before a request is repeated: together long enough for a store that is busy, and short beside an outage.
WAITS_S = (0.1, 0.3, 1.0, 3.0)
# A tile takes many times longer to come than to be decoded: a worker asks for so many at once.
TILES_AT_ONCE = 32


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name is an address."""
    return "://" in os.fspath(name)


@dataclass(frozen=True, slots=True)
class Remote:
    """The tiles below an address.

    Attributes:
        url: without credentials: those come from where each store's own tools take them.
        waits_s: before a failed request is repeated.
        limits: of a web server's answers.
    """

    url: str
    waits_s: tuple[float, ...] = WAITS_S
    limits: TransferLimits = USUAL_LIMITS

    @property
    def identity(self) -> str:
        return self.url.rstrip("/")

    @property
    def slide_name(self) -> str:
        return os.fsdecode(unquote_to_bytes(self.identity.rpartition("/")[2])) or "root"

    @property
    def tiles_at_once(self) -> int:
        return TILES_AT_ONCE

    def lane(self, path: str) -> None:
        """As `TileSource.lane`: tiles share nothing."""

    def __str__(self) -> str:
        return self.url

    def check(self) -> None:
        """As `TileSource.check`; the store itself is asked later.

        Raises:
            BackendUnavailableError: what speaks with it is not installed.
        """
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise UsageError(f"this is no address: {error}") from error
        if parts.username or parts.password:
            raise UsageError(
                "an address with a user or a password would be written to the run's record: leave them out, and give "
                "credentials as the store's own tools take them (docs/sources.md)"
            )
        if parts.query or parts.fragment:
            raise UsageError("an address with ? or # would be written to the run's record, keys and all: leave it out")
        self._check_path(parts)
        require_installed("remote", "fsspec", *filter(None, [_LIBRARIES.get(parts.scheme)]), work=f"{parts.scheme}://")
        import fsspec

        if parts.scheme not in fsspec.available_protocols():
            raise UsageError(f"unknown kind of address {parts.scheme}://: known are {', '.join(sorted(_LIBRARIES))}")

    def _check_path(self, parts: SplitResult) -> None:
        if "::" in self.url and parts.scheme not in BY_LINKS:
            raise UsageError(f"{self.url}: addresses that are chained by :: are not read: name one folder")
        if parts.scheme in ("file", "local") and not self.url.partition("://")[2].startswith("/"):
            raise UsageError(f"{self.url}: a path behind file:// begins with a slash; or leave file:// out")
        try:
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"{self.url}: {error}") from error

    def walk(self) -> RemotePass:
        """As `TileSource.walk`."""
        self.check()
        return RemotePass(Store(self.identity, self.waits_s, self.limits))

    def walk_again(self, listed: Iterable[bytes]) -> RemotePass:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.walk_again`: it does not take long."""
        return self.walk()

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.again`: a request for each."""
        self.check()
        store = Store(self.identity, self.waits_s, self.limits)
        return (store.record(name) for name in names)

    def reader(self) -> RemoteReader:
        """As `TileSource.reader`."""
        return RemoteReader(self.identity, self.waits_s, self.limits)

    def holds(self, path: Path) -> bool:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.holds`."""
        return False


class RemotePass:
    """One pass over a store: yields its tiles, and counts what is passed over.

    Raises:
        UsageError: there is nothing at the address.
        ListingError: a part of it cannot be listed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ignored: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Record]:
        folders = [(self._store.root, b"")]
        while folders:
            address, path = folders.pop()
            for entry in self._entries(address, is_root=not path):
                name = self._store.name_below(address, entry)
                if not name or b"\0" in name:
                    continue
                if b"/" in name:  # written as %2F, which no path could say again
                    self._ignore("link", path + name)
                    continue
                is_folder = entry.get("type") == "directory" or str(entry["name"]).endswith("/")
                if reason := objection_to_folder(name) if is_folder else objection_to_file(name):
                    self._ignore(reason, path + name)
                elif is_folder:
                    folders.append((str(entry["name"]).rstrip("/"), path + name + b"/"))
                else:
                    yield record_of(path + name, entry)

    def _entries(self, address: str, *, is_root: bool) -> list[dict[str, Any]]:
        try:
            return self._store.entries(address)
        except ANSWERED as error:
            if is_root and isinstance(error, FileNotFoundError):
                raise UsageError(f"there is nothing at this {self._store.scheme}:// address") from error
            raise ListingError(
                f"a folder of {self._store.scheme}:// cannot be listed ({error_words(error)})"
            ) from error

    def _ignore(self, reason: Reason, name: bytes) -> None:
        self.ignored[reason] += 1
        log.debug("ignored, %s: %r", reason, os.fsdecode(name))


class RemoteReader:
    """Reads tiles from a store; arguments as `Store`."""

    def __init__(self, url: str, waits_s: Sequence[float], limits: TransferLimits) -> None:
        self._url = url
        self._waits_s = waits_s
        self._limits = limits
        self._opened: Store | None = None
        self._fetched: dict[bytes, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None, "_fetched": {}}  # each worker has its own connections

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._url, self._waits_s, self._limits)
        return self._opened

    def read(self, path: str, stamp: TileStamp | None) -> bytes:
        """As `TileReader.read`."""
        name = os.fsencode(path)
        size = stamp.size_bytes if stamp else UNKNOWN_SIZE
        if size > MAX_TILE_BYTES:
            raise TileReadError("too_large", f"{size} bytes, limit {MAX_TILE_BYTES}")
        data = self._fetched.pop(name, None)
        if data is None:
            data = self._store.read(name)
        if size not in (UNKNOWN_SIZE, len(data)):
            raise TileReadError("changed", "not the object that was listed: another size")
        return data

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """As `TileReader.expect`: all of them are fetched at once."""
        names, left = [], MAX_TILE_BYTES
        for path, stamp in tiles:
            size = max(0, stamp.size_bytes) if stamp else 0
            if size <= left:  # in memory, all together are no more than one may be
                names.append(os.fsencode(path))
                left -= size
        self._fetched = self._store.read_all(names) if len(names) > 1 else {}

    def require_there(self) -> None:
        """As `TileReader.require_there`."""
        self._store.require_there()
