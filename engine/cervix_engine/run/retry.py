"""Predicting the failed rows of a finished table again; every other row stays as it is, byte for byte.

A retry is a run over the failed tiles alone, in a work folder like any other's. Its identity names the table that it
mends, and its rows take the failed ones' places when the new table is assembled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cervix_engine.errors import OutputError, UsageError
from cervix_engine.files import sha256_file
from cervix_engine.run.journal import RunIdentity, output_errors
from cervix_engine.run.record import RunReport, report_of
from cervix_engine.table.names import unescape_name
from cervix_engine.table.reader import Table
from cervix_engine.tiles.discover import Listing, list_again


def finished_run(table: Path) -> RunReport:
    """The report of a finished table whose failed rows may be predicted again.

    Raises:
        UsageError: there is no finished table, or nothing that says how it was made.
        OutputError: it is not as its run wrote it.
    """
    with output_errors(f"cannot look at {table}"):
        there = table.is_file()
    if not there:
        raise UsageError(f"no finished table whose failed rows could be predicted again: {table}")
    try:
        report = report_of(table)
    except OutputError as error:
        raise UsageError(f"nothing says how {table} was made: {error}") from error
    with output_errors(f"cannot read {table}"):
        if report.table is None or sha256_file(table) != report.table.table_sha256:
            raise OutputError(f"{table} is not as its run wrote it: cervix-verify says where")
    return report


def require_same_run(finished: RunIdentity, now: RunIdentity) -> None:
    """Raises ResumeMismatchError where rows predicted now would not be as those of the finished run."""
    finished.check(
        replace(now, listing_sha256=finished.listing_sha256, retry_of=finished.retry_of),
        what="the table was made",
        remedy="its failed rows can only be predicted as the others were",
    )


def list_failed(table: Path, finished: RunReport, root: Path, *, spool: Path) -> Listing:
    """List the tiles of the failed rows of `table` into `spool`, in the table's order, as they are now."""
    names = (os.fsencode(unescape_name(path)) for path in _failed_paths(table))
    with output_errors(f"cannot read {table}"):
        return list_again(names, root, spool=spool, ignored=finished.ignored)


def _failed_paths(table: Path) -> Iterator[str]:
    yield from (row.path for row in Table.open(table).rows() if row.error is not None)
