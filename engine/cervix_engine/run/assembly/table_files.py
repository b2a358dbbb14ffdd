"""The files of an assembled table, in the hidden folder of its run: rows, their checks, and the digests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cervix_engine.files import fsync_file, sha256_file
from cervix_engine.run.record import DecidedTiles, TableDigests, row_check
from cervix_engine.table.columns import are_decided
from cervix_engine.table.formats import csv_line, publish_as
from cervix_engine.table.rows import DecidedRows

TABLE, CHECKS, STAMPS = "table.csv", "rows", "stamps"


def write_table(
    folder: Path, published: Path, *, columns: Sequence[str], rows: Iterable[bytes], stamps: Iterable[bytes] | None
) -> tuple[TableDigests, DecidedTiles | None]:
    """Write a table and what it can be checked against, durably.

    Args:
        folder: of the run.
        published: the table in there, in the format that it is published in.
        columns, rows: of the table, its rows as lines of CSV.
        stamps: the stamp check of each row's tile, in row order; None where they are not known.

    Returns:
        The digests, and what an operating point, where there is one, made of the tiles.

    Raises:
        OSError, OutputError: something cannot be written.
    """
    table, checks, stamp_checks = folder / TABLE, folder / CHECKS, folder / STAMPS
    header, decided = csv_line(columns), DecidedRows(columns)
    with table.open("wb") as file, checks.open("wb") as check_file:
        file.write(header)
        for row in decided.counted(rows):
            file.write(row)
            check_file.write(row_check(row))
    fsync_file(table)
    fsync_file(checks)
    stamp_checks.unlink(missing_ok=True)
    if stamps is not None:
        with stamp_checks.open("wb") as file:
            file.writelines(stamps)
        fsync_file(stamp_checks)
    if published != table:
        publish_as(table, published)
    stamps_sha256 = None if stamps is None else sha256_file(stamp_checks)
    digests = TableDigests(sha256_file(published), row_check(header).hex(), sha256_file(checks), stamps_sha256)
    return digests, DecidedTiles(decided.abnormal, decided.review) if are_decided(columns) else None
