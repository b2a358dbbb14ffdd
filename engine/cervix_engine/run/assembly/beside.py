"""What lies beside a table: its record, which a run that is to replace it may have in its keeping, and its checks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cervix_engine.errors import OutputError
from cervix_engine.files import output_errors
from cervix_engine.run.record import RunRecord, record_beside
from cervix_engine.table.formats import table_exists, table_sha256
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.tiles.sources.open import open_source
from cervix_engine.tiles.sources.source import TileSource

ROW_CHECK_BYTES = 8


def record_of(table: Path) -> RunRecord:
    """The record of the table that lies at `table`, which a run that is to replace it may have in its keeping.

    Raises:
        OutputError: there is none, or it is of a run that has made no table.
    """
    path = record_beside(table)
    record = RunRecord.load(path)
    if record.replaces is None:
        if record.table is None:
            raise OutputError(f"{path} speaks of a run that made no table: {record.status}")
        return record
    if record.table is None:
        return record.replaces
    # The new table is assembled, and replaces the old one at some instant about now.
    with output_errors(f"cannot read {table}"):
        return record if table_sha256(table) == record.table.table_sha256 else record.replaces


def replaced_record(table: Path) -> RunRecord | None:
    """The record of a table that a new run is to replace; None where there is no table, or none of ours."""
    with output_errors(f"cannot look at {table}"):
        exists = table_exists(table)
    try:
        return record_of(table) if exists else None
    except OutputError:
        return None


def files_of_table(table: Path) -> tuple[Path, ...]:
    """A table, with all that may lie beside it and is read with it."""
    return table, record_beside(table), checks_path(table), stamps_path(table)


def source_of(table: Path, tiles: str | os.PathLike[str], *, follow_links: bool = False) -> TileSource:
    """Where the tiles of a finished table come from: `tiles`, cut as its record says where they are whole slides."""
    try:
        grid = record_of(table).identity.grid
    except OutputError:
        grid = None
    return open_source(tiles, follow_links=follow_links, grid=GridRules.from_text(grid) if grid else None)


def row_check(line: bytes) -> bytes:
    """The check of one row: the first 8 bytes of the SHA-256 of its line in the CSV, without the line's end."""
    return hashlib.sha256(line.rstrip(b"\r\n")).digest()[:ROW_CHECK_BYTES]


def checks_path(table: Path) -> Path:
    """Where a table's row checks lie: 8 bytes a row, in row order."""
    return table.with_name(f"{table.name}.rows")


def stamps_path(table: Path) -> Path:
    """Where the checks of a table's tiles lie, as they were listed: `listing.stamp_check` of each row, in row order."""
    return table.with_name(f"{table.name}.stamps")
