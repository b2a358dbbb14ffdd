"""The seam between a run and where its tiles come from.

    what the user named ── open_source ──> TileSource ── discover ──> listing ── batches ──> decode workers
                                               └────────────── reader ─────────────────────────┘

A source is cheap to make: it looks at nothing before it is asked. It lists its tiles in any order, and the listing
brings them into byte order of their paths, so that one set of tiles gives one table wherever it lies. A tile's path is
its identity; its stamp tells it from what it was when it was listed, and says where in its source it lies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cervix_engine.tiles.listing import Record
from cervix_engine.tiles.tile import TileStamp
from cervix_engine.values import Pixels


class Pass(Protocol):
    """One pass over a source: yields a record for each tile, in any order, and counts what is passed over.

    Attributes:
        ignored: how many for which of `discover.REASONS`; complete when all records are taken.
    """

    ignored: Counter[str]

    def __iter__(self) -> Iterator[Record]:
        """Raises ListingError where a part of the source cannot be listed."""


class TileReader(Protocol):
    """Gives decode workers the bytes of tiles, or their pixels.

    It is pickled, once for each worker, so it holds little and nothing open: what it opens, it opens in the worker when
    it is first needed, and heavy libraries it imports there. One thread at a time uses it.
    """

    def read(self, path: str, stamp: TileStamp | None) -> bytes | Pixels:
        """One tile's encoded bytes; or its pixels, `uint8 (height, width, 3)` RGB, at its own size.

        Args:
            path: as it was listed.
            stamp: as it was listed; None, in a source of files, takes whatever lies there.

        Raises:
            TileReadError: it cannot be read, or is not what was listed: becomes the tile's row.
            ListingError: the machine, not the tile, is why.
        """

    def expect(self, tiles: Sequence[tuple[str, TileStamp | None]]) -> None:
        """Told of the tiles that will be read next: a source that is far away may fetch them at once."""

    def require_there(self) -> None:
        """Asked after each tile that could not be read: raises ListingError where the whole source has gone.

        Then no tile can be read, and the run must stop, to go on later, and not fail them all.
        """


class TileSource(Protocol):
    """Where tiles come from. Frozen, and equal to another one of the same place."""

    @property
    def identity(self) -> str:
        """What a run remembers it by, `RunIdentity.root`: the same wherever the command is started."""

    @property
    def slide_name(self) -> str:
        """The slide of the tiles whose paths name no folder."""

    @property
    def tiles_at_once(self) -> int:
        """As many tiles should be asked of a reader at a time, at least: more than 1 where each takes long to come."""

    def lane(self, path: str) -> int | None:
        """Tiles of one lane share what is read for them, so that one worker should read them; None where none do."""

    def __str__(self) -> str:
        """As the user named it."""

    def check(self) -> None:
        """Refuse what can be seen to be wrong at a glance.

        Raises:
            UsageError: there is no such source, or it is of no kind that tiles can come from.
        """

    def walk(self) -> Pass:
        """Begin a pass over its tiles.

        Raises:
            UsageError: as `check`.
            ListingError: it cannot be listed.
        """

    def walk_again(self, listed: Iterable[bytes]) -> Iterable[Record]:
        """What `walk` would find, for a comparison by names with what was `listed` before, in byte order.

        Where it takes long to find tiles, those that surely are still there are taken for found.

        Raises:
            UsageError, ListingError: as `walk`.
        """

    def again(self, names: Iterable[bytes], *, spool: Path) -> Iterator[Record]:
        """The records of these tiles as they are now, in the order given; `listing.ABSENT` of those that are gone.

        Args:
            names: paths of tiles, soonest found in the order of a listing.
            spool: a folder for what does not fit into memory.
        """

    def reader(self) -> TileReader:
        """What workers read its tiles with, from now on."""

    def holds(self, path: Path) -> bool:
        """Whether what is written at `path` would lie in the source, or in its place."""
