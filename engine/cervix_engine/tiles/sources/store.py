"""A store, or a web server, as one process speaks with it through fsspec.

Names, sizes and keys of access stay out of messages: libraries put addresses, and these sometimes credentials, into
theirs, so that only the kind of an error is told, and its status.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from cervix_engine.errors import BackendUnavailableError, ListingError, TileReadError
from cervix_engine.tiles.listing import Record, absent

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_BY_LINKS = ("http", "https")
# Within a request to a web server, for the connection and for each of its parts.
CONNECT_S, READ_S = 10.0, 60.0
# A web server's page of links says nothing of what lies behind them.
UNKNOWN_SIZE = -1

# Answers, and not failures: asked again, they would be the same.
ANSWERED = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


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
        except ANSWERED as error:
            raise TileReadError("unreadable", error_words(error)) from error
        except _NoAnswer as error:
            raise TileReadError("unreadable", f"its requests fail: {error}") from error
        return data

    def read_all(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """The bytes of those that come at the first request, all of which are made at once."""
        by_address = {self.address(name): name for name in names}
        try:
            answers = self._files.cat(list(by_address), on_error="return")
        except Exception as error:  # noqa: BLE001 - of whatever class a store's library has; each is asked for again
            log.debug("reading several tiles: %s", error_words(error))
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
        except ANSWERED:
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
            except ANSWERED:
                raise
            except Exception as error:  # noqa: BLE001 - of whatever class a store's library has
                failure = error_words(error)
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


def error_words(error: BaseException) -> str:
    """An error without what its library says of addresses: its kind, and the status that it carries."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    kind = "not found" if isinstance(error, FileNotFoundError) else type(error).__name__
    return f"{kind} {status}" if isinstance(status, int) else kind
