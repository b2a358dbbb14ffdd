"""The files of an assembled table, in the hidden folder of its run: rows, their checks, and the digests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.errors import OutputError
from cervix_engine.files import fsync_file, fsync_folder, sha256_file
from cervix_engine.run.assembly.beside import row_check
from cervix_engine.run.assembly.chunks import (
    CHUNK_ROWS,
    WrittenChunk,
    remove_chunks,
    take_chunks,
    write_chunks,
)
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.record import DecidedTiles, TableDigests, identity_to_json
from cervix_engine.table.columns import are_decided
from cervix_engine.table.formats import csv_line, is_folder, publish_as
from cervix_engine.table.parquet.folder import Manifest, names_beside_table
from cervix_engine.table.rows import DecidedRows

TABLE, CHECKS, STAMPS = "table.csv", "rows", "stamps"
# What a folder takes the place of, from then on until the run's folder goes.
REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table is made of.

    Attributes:
        identity: of its run, with the columns.
        rows: lines of the table as CSV.
        stamps: the stamp check of each row's tile, in row order; None where they are not known.
        chunks: of a folder, if others have written them already; then `rows` and `stamps` are not read.
        chunk_rows: how many rows a file of a folder has.
    """

    identity: RunIdentity
    rows: Iterable[bytes]
    stamps: Iterable[bytes] | None
    chunks: Sequence[WrittenChunk] | None = None
    chunk_rows: int = CHUNK_ROWS


def write_table(folder: Path, published: Path, content: TableContent) -> tuple[TableDigests, DecidedTiles | None]:
    """Write a table and what it can be checked against, durably.

    Args:
        folder: of the run.
        published: the table in there, in the format that it is published in.
        content: its rows.

    Returns:
        The digests, and what an operating point, where there is one, made of the tiles.

    Raises:
        OSError, OutputError: something cannot be written.
    """
    checks, stamps = folder / CHECKS, folder / STAMPS
    stamps.unlink(missing_ok=True)
    sha256, decided = (_write_folder if is_folder(published) else _write_file)(published, content)
    if content.stamps is not None and content.chunks is None:
        with stamps.open("wb") as file:
            file.writelines(content.stamps)
    fsync_file(checks)
    has_stamps = stamps.exists()
    if has_stamps:
        fsync_file(stamps)
    digests = TableDigests(
        table_sha256=sha256,
        header_check=row_check(csv_line(content.identity.columns)).hex(),
        rows_sha256=sha256_file(checks),
        stamps_sha256=sha256_file(stamps) if has_stamps else None,
    )
    return digests, decided if are_decided(content.identity.columns) else None


def _write_file(published: Path, content: TableContent) -> tuple[str, DecidedTiles]:
    table, decided = published.with_name(TABLE), DecidedRows(content.identity.columns)
    with table.open("wb") as file, published.with_name(CHECKS).open("wb") as check_file:
        file.write(csv_line(content.identity.columns))
        for row in decided.counted(content.rows):
            file.write(row)
            check_file.write(row_check(row))
    fsync_file(table)
    if published != table:
        publish_as(table, published)
    return sha256_file(published), DecidedTiles(decided.abnormal, decided.review)


def _write_folder(published: Path, content: TableContent) -> tuple[str, DecidedTiles]:
    folder, columns = published.parent, content.identity.columns
    if published.exists():
        shutil.rmtree(published)  # of an assembly that was killed
    published.mkdir()
    chunks = content.chunks
    if chunks is None:
        remove_chunks(folder)
        chunks = list(write_chunks(folder, columns, content.rows, content.chunk_rows))
    files = take_chunks(chunks, published, checks=folder / CHECKS, stamps=folder / STAMPS)
    sha256 = Manifest(columns, files, identity_to_json(content.identity)).save(published)
    return sha256, DecidedTiles(sum(chunk.abnormal for chunk in chunks), sum(chunk.review for chunk in chunks))


def place_table(published: Path, out: Path) -> None:
    """Rename an assembled table to its place. In that of a folder, what is there first moves into the run's folder.

    Raises:
        OSError: it cannot be renamed.
        OutputError: a folder there holds more than a table by now.
    """
    if is_folder(out) and os.path.lexists(out):
        others = names_beside_table(out) if out.is_dir() else [out.name] * out.exists()
        if others:
            raise OutputError(
                f"{out} holds more than a table by now, {others[0]}: take it away and start this run again"
            )
        out.rename(published.with_name(REPLACED))
        fsync_folder(published.parent)
    published.replace(out)


def restore_replaced(folder: Path, out: Path) -> None:
    """Put the table back that a folder was to take the place of, where a kill came before that.

    Raises:
        OSError: it cannot be renamed.
    """
    if os.path.lexists(folder / REPLACED) and not os.path.lexists(out):
        (folder / REPLACED).rename(out)
