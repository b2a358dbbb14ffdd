"""What a run predicts that goes on with an earlier one, or is made from a finished table: its listing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cervix_engine.files import output_errors
from cervix_engine.run.assembly.base import LISTING, Base, Growth
from cervix_engine.run.journal import Journal
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Table
from cervix_engine.tiles.discover import compared
from cervix_engine.tiles.listing import Listing, list_again
from cervix_engine.tiles.sources.source import TileSource


def stored_listing(journal: Journal, source: TileSource, base: Base | None) -> Listing:
    """The listing of a partial run, as it was made when that began, and how its source differs by now.

    A retry takes its tiles from a table, and says nothing of others; an update has found all of the new table's.
    """
    identity, folder = journal.identity, journal.path.parent
    stored = Listing(source, folder / LISTING, journal.found, journal.ignored, journal.ignored_by)
    if identity.retry_of:
        return stored
    if identity.shard:
        stored = replace(stored, found=sum(1 for _ in stored.records()))
    found = Growth(base, stored, folder).paths if base else stored.paths
    return compared(stored, found, spool=folder)


def failed_listing(base: Base, source: TileSource, *, spool: Path) -> Listing:
    """The tiles of a finished table's failed rows, in the table's order, as they are now; listed in `spool`."""
    with output_errors(f"cannot read {base.table}"):
        failed = (row.path for row in Table.open(base.table).rows() if row.error is not None)
        names = (os.fsencode(unescape_name(path)) for path in failed)
        stored = Listing(source, spool / LISTING, 0, base.record.ignored, base.record.ignored_by)
        return list_again(names, stored)
