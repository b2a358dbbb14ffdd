"""Tiles on an object store or a web server: `s3://`, `gs://`, `https://`, and whatever else fsspec knows.

A request that fails is repeated, a little later each time. A tile that is not there is a failed row at once; so is one
whose requests fail again and again, as long as the store itself still answers. Where it does not, the run stops, to be
gone on with.

Names, sizes and keys of access stay out of messages: libraries put addresses, and these sometimes credentials, into
theirs, so that only the kind of an error is told, and its status.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from cervix_engine.errors import BackendUnavailableError, ListingError, TileReadError, UsageError
from cervix_engine.extras import require_installed
from cervix_engine.tiles.discover import Reason, objection_to_file, objection_to_folder
from cervix_engine.tiles.listing import Record, absent
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES
from cervix_engine.tiles.tile import TileStamp

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

# What is installed for the schemes that most people have; fsspec names the library of any other.
_LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_BY_LINKS = ("http", "https")

# Waits before a request is repeated: together long enough for a store that is busy, and short beside an outage.
WAITS_S = (0.1, 0.3, 1.0, 3.0)
# Within a request to a web server, for the connection and for each of its parts.
CONNECT_S, READ_S = 10.0, 60.0
# A tile takes many times longer to come than to be decoded: a worker asks for so many at once.
TILES_AT_ONCE = 32
# A web server's page of links says nothing of what lies behind them.
UNKNOWN_SIZE = -1

# Answers, and not failures: asked again, they would be the same.
_ANSWERED = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name is an address."""
    return "://" in os.fspath(name)


@dataclass(frozen=True, slots=True)
class Remote:
    """The tiles below an address.

    Attributes:
        url: without credentials: those come from where each store's own tools take them.
        waits_s: before a failed request is repeated.
    """

    url: str
    waits_s: tuple[float, ...] = WAITS_S

    @property
    def identity(self) -> str:
        return self.url.rstrip("/")

    @property
    def slide_name(self) -> str:
        return os.fsdecode(unquote_to_bytes(self.identity.rpartition("/")[2])) or "root"

    @property
    def tiles_at_once(self) -> int:
        return TILES_AT_ONCE

    def __str__(self) -> str:
        return self.url

    def check(self) -> None:
        """As `TileSource.check`; the store itself is asked later.

        Raises:
            BackendUnavailableError: what speaks with it is not installed.
        """
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise UsageError(
                "an address with a user or a password would be written to the run's record: leave them out, and give "
                "credentials as the store's own tools take them (docs/sources.md)"
            )
        if parts.query or parts.fragment:
            raise UsageError("an address with ? or # would be written to the run's record, keys and all: leave it out")
        require_installed("remote", "fsspec", *filter(None, [_LIBRARIES.get(parts.scheme)]), work=f"{parts.scheme}://")
        import fsspec

        if parts.scheme not in fsspec.available_protocols():
            raise UsageError(f"unknown kind of address {parts.scheme}://: known are {', '.join(sorted(_LIBRARIES))}")

    def walk(self) -> RemotePass:
        """As `TileSource.walk`."""
        self.check()
        return RemotePass(Store(self.identity, self.waits_s))

    def walk_again(self, listed: Iterable[bytes]) -> RemotePass:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.walk_again`: it does not take long."""
        return self.walk()

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.again`: a request for each."""
        self.check()
        store = Store(self.identity, self.waits_s)
        return (store.record(name) for name in names)

    def reader(self) -> RemoteReader:
        """As `TileSource.reader`."""
        return RemoteReader(self.identity, self.waits_s)

    def holds(self, path: Path) -> bool:  # noqa: ARG002 - as `TileSource`
        """As `TileSource.holds`."""
        return False


class _NoAnswer(Exception):  # noqa: N818 - not what a caller of this module sees
    """A request failed again and again; says how."""


class Store:
    """A store, or a web server, as one process speaks with it.

    Args:
        url: the address that paths are relative to, without a slash at its end.
        waits_s: as in `Remote`.
    """

    def __init__(self, url: str, waits_s: Sequence[float]) -> None:
        import fsspec

        self.scheme = urlsplit(url).scheme
        self._waits_s = waits_s
        try:
            # Listings are read once, and would fill the memory of whoever keeps them.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._files: Any = fsspec.filesystem(self.scheme, **options, **_client_options(self.scheme))
        except ImportError as error:
            raise BackendUnavailableError(f"{self.scheme}:// needs another package: {error}") from error
        self.root: str = url if self.scheme in _BY_LINKS else self._files.unstrip_protocol(url).partition("://")[2]

    def address(self, name: bytes) -> str:
        """Of the tile of this path."""
        return f"{self.root}/{quote_from_bytes(name) if self.scheme in _BY_LINKS else os.fsdecode(name)}"

    def entries(self, folder: str) -> list[dict[str, Any]]:
        """What lies in a folder, by its address.

        Raises:
            FileNotFoundError, PermissionError: as the store answers.
            ListingError: it does not answer.
        """
        place = f"{folder}/" if self.scheme in _BY_LINKS else folder
        with self._required("list"):
            found: list[dict[str, Any]] = self._repeated(lambda: self._files.ls(place, detail=True))
        return found

    def name_below(self, folder: str, entry: dict[str, Any]) -> bytes:
        """An entry's own name; empty where it is not in the folder, but the folder itself."""
        name = str(entry["name"]).removeprefix(f"{folder}/").strip("/")
        if name == folder.strip("/") or "/" in name:
            return b""
        return unquote_to_bytes(name) if self.scheme in _BY_LINKS else os.fsencode(name)

    def read(self, name: bytes) -> bytes:
        """A tile's bytes.

        Raises:
            TileReadError: it is not there, cannot be read, or its requests fail again and again.
        """
        try:
            data: bytes = self._repeated(lambda: self._files.cat_file(self.address(name)))
        except _ANSWERED as error:
            raise TileReadError("unreadable", _words(error)) from error
        except _NoAnswer as error:
            raise TileReadError("unreadable", f"its requests fail: {error}") from error
        return data

    def read_all(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """The bytes of those that come at the first request, all of which are made at once."""
        by_address = {self.address(name): name for name in names}
        try:
            answers = self._files.cat(list(by_address), on_error="return")
        except Exception as error:  # noqa: BLE001 - of whatever class a store's library has; each is asked for again
            log.debug("reading several tiles: %s", _words(error))
            return {}
        if not isinstance(answers, dict):  # of one address
            answers = dict.fromkeys(by_address, answers)
        return {by_address[at]: data for at, data in answers.items() if at in by_address and isinstance(data, bytes)}

    def record(self, name: bytes) -> Record:
        """A tile as it is now.

        Raises:
            ListingError: the store does not answer.
        """
        try:
            with self._required("look at tiles of"):
                return record_of(name, self._repeated(lambda: self._files.info(self.address(name))))
        except _ANSWERED:
            return absent(name)

    def require_there(self) -> None:
        """Raises ListingError where the store does not answer, or has nothing at the address any more."""
        place = f"{self.root}/" if self.scheme in _BY_LINKS else self.root
        with self._required("reach"):
            self._repeated(lambda: self._files.exists(place) or None)

    @contextmanager
    def _required(self, what: str) -> Iterator[None]:
        """A ListingError in place of no answer: without it, the run cannot go on."""
        try:
            yield
        except _NoAnswer as error:
            raise ListingError(f"cannot {what} {self.scheme}:// ({error}); the run can go on later") from error

    def _repeated(self, request: Callable[[], _Answer | None]) -> _Answer:
        """The answer to a request, repeated while it fails; None is a failure too.

        Raises:
            FileNotFoundError, PermissionError: the answer is that.
            _NoAnswer: it fails again and again.
        """
        failure = "no answer"
        for wait_s in (*self._waits_s, None):
            try:
                answer = request()
                if answer is not None:
                    return answer
            except _ANSWERED:
                raise
            except Exception as error:  # noqa: BLE001 - of whatever class a store's library has
                failure = _words(error)
            log.debug("a request to %s:// failed: %s", self.scheme, failure)
            if wait_s is not None:
                time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - so that workers do not ask all at once
        raise _NoAnswer(failure)


def _client_options(scheme: str) -> dict[str, Any]:
    """For web servers: proxies and ~/.netrc are those of other tools, and no request waits for ever."""
    if scheme not in _BY_LINKS:
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


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
        except _ANSWERED as error:
            if is_root and isinstance(error, FileNotFoundError):
                raise UsageError(f"there is nothing at this {self._store.scheme}:// address") from error
            raise ListingError(f"a folder of {self._store.scheme}:// cannot be listed ({_words(error)})") from error

    def _ignore(self, reason: Reason, name: bytes) -> None:
        self.ignored[reason] += 1
        log.debug("ignored, %s: %r", reason, os.fsdecode(name))


class RemoteReader:
    """Reads tiles from a store; arguments as `Store`."""

    def __init__(self, url: str, waits_s: Sequence[float]) -> None:
        self._url = url
        self._waits_s = waits_s
        self._opened: Store | None = None
        self._fetched: dict[bytes, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None, "_fetched": {}}  # each worker has its own connections

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._url, self._waits_s)
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
        names = [os.fsencode(path) for path, stamp in tiles if not stamp or stamp.size_bytes <= MAX_TILE_BYTES]
        self._fetched = self._store.read_all(names) if len(names) > 1 else {}

    def require_there(self) -> None:
        """As `TileReader.require_there`."""
        self._store.require_there()


def record_of(name: bytes, entry: dict[str, Any]) -> Record:
    """What a store says of a tile; its own digest of it, where it has one, tells what changed within a second."""
    size = entry.get("size")
    tag = str(entry.get("ETag") or entry.get("etag") or "").strip('"')
    where = tag.encode() if tag.isascii() and tag.isprintable() else b""
    return name, UNKNOWN_SIZE if size is None else int(size), _mtime_ns(entry), where


def _mtime_ns(entry: dict[str, Any]) -> int:
    for key in ("LastModified", "mtime", "updated", "last_modified"):
        value = entry.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return int(value.timestamp() * 10**6) * 1000
        if isinstance(value, int | float):
            return int(value * 10**9)
    return 0


def _words(error: BaseException) -> str:
    """An error without what its library says of addresses: its kind, and the status that it carries."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    kind = "not found" if isinstance(error, FileNotFoundError) else type(error).__name__
    return f"{kind} {status}" if isinstance(status, int) else kind
