"""A store, or a web server, as one process speaks with it through fsspec.

Names, sizes and keys of access stay out of messages: libraries put addresses, and these sometimes credentials, into
theirs, so that only the kind of an error is told, and its status.
"""

from __future__ import annotations

import html
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from cervix_engine.errors import BackendUnavailableError, ListingError, TileReadError, UsageError
from cervix_engine.tiles.listing import Record, absent
from cervix_engine.tiles.sources.web import USUAL_LIMITS, TransferLimits, fetch, fetch_all

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

BY_LINKS = ("http", "https")
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
        waits_s, limits: as in `Remote`.

    Raises:
        BackendUnavailableError: what speaks with it is not installed.
        ListingError: it does not answer.
        UsageError: there can be no such store.
    """

    def __init__(self, url: str, waits_s: Sequence[float], limits: TransferLimits = USUAL_LIMITS) -> None:
        self.scheme = urlsplit(url).scheme
        self._waits_s = waits_s
        self._limits = limits
        self._by_links = self.scheme in BY_LINKS
        self._files: Any
        try:
            self._files, self.root = self._opened(url)
        except ImportError as error:
            raise BackendUnavailableError(f"{self.scheme}:// needs another package: {error}") from error
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            raise ListingError(f"cannot reach {url} ({error_words(error)}); the run can go on later") from error
        except Exception as error:  # of whatever class a store's library has
            raise UsageError(f"cannot open {url}: {type(error).__name__}: {error}") from error

    def _opened(self, url: str) -> tuple[Any, str]:
        """What speaks with it, and the address as that understands it, without a slash at its end."""
        import fsspec
        from fsspec.core import url_to_fs

        # Listings are read once, and would fill the memory of whoever keeps them.
        options = {"use_listings_cache": False, "skip_instance_cache": True}
        if self._by_links:  # host and port are part of each request
            return fsspec.filesystem(self.scheme, **options, **self._limits.client_options()), url
        files, root = url_to_fs(url, **options)
        return files, root.rstrip("/")

    def address(self, name: bytes) -> str:
        """Of the tile of this path."""
        return f"{self.root}/{quote_from_bytes(name) if self._by_links else os.fsdecode(name)}"

    def entries(self, folder: str) -> list[dict[str, Any]]:
        """What lies in a folder, by its address; a name that a page has twice once.

        Raises:
            FileNotFoundError, PermissionError: as the store answers.
            ListingError: it does not answer.
        """
        place = f"{folder}/" if self._by_links else folder
        with self._required("list"):
            found: list[dict[str, Any]] = self._repeated(lambda: self._files.ls(place, detail=True))
        if not self._by_links:
            return found
        # A page is HTML, which escapes its links, and may spell one link in several ways.
        links = [{**entry, "name": html.unescape(str(entry["name"]))} for entry in found]
        return list({unquote_to_bytes(link["name"]): link for link in links}.values())

    def name_below(self, folder: str, entry: dict[str, Any]) -> bytes:
        """An entry's own name; empty where it is not in the folder, but the folder itself."""
        name = str(entry["name"]).removeprefix(f"{folder}/").strip("/")
        if name == folder.strip("/") or "/" in name:
            return b""
        return unquote_to_bytes(name) if self._by_links else os.fsencode(name)

    def read(self, name: bytes) -> bytes:
        """A tile's bytes.

        Raises:
            TileReadError: it is not there, is too large, cannot be read, or its requests fail again and again.
        """
        try:
            data = self._repeated(lambda: self._fetched(self.address(name)))
        except ANSWERED as error:
            raise TileReadError("unreadable", error_words(error)) from error
        except _NoAnswer as error:
            raise TileReadError("unreadable", f"its requests fail: {error}") from error
        return data

    def _fetched(self, address: str) -> bytes:
        if self._by_links:
            return fetch(self._files, address, self._limits)
        if self._files.async_impl:  # and listed with its size
            data: bytes = self._files.cat_file(address)
            return data
        limit = self._limits.tile_bytes
        with self._files.open(address, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise TileReadError("too_large", f"more than {limit} bytes")
        return data

    def read_all(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """The bytes of those that come at the first request, all of which are made at once."""
        by_address = {self.address(name): name for name in names}
        try:
            if self._by_links:
                answers = fetch_all(self._files, list(by_address), self._limits)
            else:
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
        place = f"{self.root}/" if self._by_links else self.root
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
        failure, until = "no answer", time.monotonic() + self._limits.repeat_s
        for wait_s in (*self._waits_s, None):
            try:
                answer = request()
                if answer is not None:
                    return answer
            except (*ANSWERED, TileReadError):
                raise
            except Exception as error:  # noqa: BLE001 - of whatever class a store's library has
                failure = error_words(error)
            log.debug("a request to %s:// failed: %s", self.scheme, failure)
            if time.monotonic() >= until:
                break
            if wait_s is not None:
                time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - so that workers do not ask all at once
        raise _NoAnswer(failure)


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
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        kind = "not found"
    elif isinstance(error, TimeoutError):
        kind = "no answer in time"
    return f"{kind} {status}" if isinstance(status, int) else kind
