"""Fetches tiles from a web server, whose answers say neither truly how large they are nor when they end.

An answer is read piece by piece, each of which must come in time, and never beyond the limit for tiles. So a server
that hangs, or drips, or goes on for ever costs neither more time nor more memory than is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cervix_engine.errors import TileReadError
from cervix_engine.tiles.preprocess import MAX_TILE_BYTES

CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """What is asked of a transfer.

    Attributes:
        piece_s: within which each piece of an answer must come, and its first sign of life.
        piece_bytes: of a piece: a line may be slow, but not as slow as a server that keeps its clients busy.
        page_s: within which a request that is for no tile must be answered, such as for a page of links.
        repeat_s: after which a request that keeps failing is not made again.
        tile_bytes: of the largest tile.
    """

    piece_s: float = 30.0
    piece_bytes: int = 32 * 1024
    page_s: float = 600.0
    repeat_s: float = 60.0
    tile_bytes: int = MAX_TILE_BYTES

    def client_options(self) -> dict[str, Any]:
        """For fsspec; proxies and ~/.netrc are those of other tools."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self.page_s, sock_connect=CONNECT_S, sock_read=self.piece_s)
        return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


USUAL_LIMITS = TransferLimits()


@dataclass(slots=True)
class _Room:
    """Memory for the answers to some requests."""

    all: int
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.all

    def take(self, size: int) -> None:
        if size > self.left:
            raise TileReadError("too_large", f"more than {self.all} bytes")
        self.left -= size


def fetch(files: Any, address: str, limits: TransferLimits) -> bytes:
    """The answer to one request.

    Args:
        files: fsspec's web server.
        address: of the tile.
        limits: of its transfer.

    Raises:
        TileReadError: it is larger than a tile may be.
        FileNotFoundError: it is not there.
        Exception: of any class; the request failed.
    """
    from fsspec.asyn import sync

    data: bytes = sync(files.loop, _fetched, files, address, limits, _Room(limits.tile_bytes))
    return data


def fetch_all(files: Any, addresses: Sequence[str], limits: TransferLimits) -> dict[str, bytes | BaseException]:
    """The answers to several requests at once, which together are no larger than one tile may be; or what failed."""
    import asyncio  # here, for every decode worker would have it else

    from fsspec.asyn import sync

    async def all_of_them() -> list[bytes | BaseException]:
        room = _Room(limits.tile_bytes)
        requests = (_fetched(files, address, limits, room) for address in addresses)
        return await asyncio.gather(*requests, return_exceptions=True)

    return dict(zip(addresses, sync(files.loop, all_of_them), strict=True))


async def _fetched(files: Any, address: str, limits: TransferLimits, room: _Room) -> bytes:
    import asyncio

    import aiohttp

    session = await files.set_session()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=limits.piece_s)
    data = bytearray()
    try:
        async with (
            asyncio.timeout(limits.piece_s) as patience,
            session.get(files.encode_url(address), timeout=timeout) as answer,
        ):
            if answer.status == 404:
                raise FileNotFoundError
            answer.raise_for_status()
            if (answer.content_length or 0) > limits.tile_bytes:
                raise TileReadError("too_large", f"{answer.content_length} bytes, limit {limits.tile_bytes}")
            while piece := await _piece(answer.content, limits.piece_bytes):
                room.take(len(piece))
                data += piece
                patience.reschedule(asyncio.get_running_loop().time() + limits.piece_s)
    except BaseException:
        room.left += len(data)
        raise
    return bytes(data)


async def _piece(content: Any, size: int) -> bytes:
    """So many bytes, or what is left."""
    from asyncio import IncompleteReadError

    try:
        piece: bytes = await content.readexactly(size)
        return piece
    except IncompleteReadError as end:
        return end.partial
