"""Checks a finished table against what its run wrote down: every edited, missing, doubled or moved row is found.

A run leaves 8 bytes of each row's SHA-256 beside its table, in row order (`preds.csv.rows`), and the digest of the
whole table and of those bytes in `preds.csv.run.json`. A table with the SHA-256 of each tile (`cervix-batch --hash`)
also says whether the tiles are still those that were predicted.
"""

from __future__ import annotations

import csv
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import Category
from cervix_engine.errors import OutputError, TileError, UsageError
from cervix_engine.files import scratch_folder, sha256_bytes, sha256_file
from cervix_engine.run.assembly.beside import checks_path, record_of, row_check, source_of
from cervix_engine.run.journal import RunIdentity
from cervix_engine.run.record import RunRecord, TableDigests, record_beside
from cervix_engine.table.columns import probability, probability_column
from cervix_engine.table.decisions import Rule, in_millionths, most_probable, yes_or_no
from cervix_engine.table.formats import csv_lines, open_cells, table_exists, table_suffix
from cervix_engine.table.names import unescape_name
from cervix_engine.table.parquet.folder import MANIFEST, Manifest, altered_files
from cervix_engine.table.reader import Table
from cervix_engine.tiles.listing import Record
from cervix_engine.tiles.sources.source import TileReader
from cervix_engine.tiles.tile import TileStamp

RowChecks = npt.NDArray[np.uint64]

# What reading a damaged table raises.
UNREADABLE = (OSError, UsageError, ValueError, csv.Error)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a table. `line` is a line of it as CSV, from 1, or None for the table as a whole."""

    kind: str
    line: int | None
    message: str


def verify_table(table: Path) -> list[Finding]:
    """Compare a table with the checks that its run left beside it.

    Args:
        table: the finished table, in any of its formats; its `.run.json` and `.rows` lie beside it.

    Returns:
        What is wrong, in the order of the table; empty when it is as the run wrote it.

    Raises:
        UsageError: the table or what lies beside it is missing or unreadable.
    """
    record, digests = _read_record(table)
    try:
        altered = list(altered_files(table)) if table.is_dir() else []
    except UsageError as error:
        return [Finding("unreadable", None, str(error))]
    as_listed = sha256_file(table / MANIFEST if table.is_dir() else table) == digests.table_sha256
    whole = as_listed and not altered
    if whole and _is_being_replaced(table):
        # Its row checks go before it does; its own digest is proof enough.
        return _check_books(table, record)
    recorded = _read_checks(table, digests)
    if whole:
        return _check_books(table, record)
    if as_listed:
        return _check_files(table, dict(altered), recorded)
    return _check_rows(table, recorded, digests)


def _check_rows(table: Path, recorded: RowChecks, digests: TableDigests) -> list[Finding]:
    try:
        header, *lines = list(csv_lines(table)) or [b""]
    except UNREADABLE as error:
        return [Finding("unreadable", None, f"it cannot be read any more: {error}")]
    findings = _differences(recorded, _checks_of(lines))
    if row_check(header).hex() != digests.header_check:
        findings.insert(0, Finding("header", 1, "the header is not the one that was written"))
    if table_suffix(table) == ".csv":
        findings += _line_ends([header, *lines])
    return findings or [Finding("bytes", None, "the rows are as written, but the file's bytes are not")]


def _check_files(folder: Path, altered: dict[str, str], recorded: RowChecks) -> list[Finding]:
    """What is wrong with a folder whose manifest is as it was written: its files, and the rows of those."""
    findings = [Finding("file", None, f"{name}: {what}") for name, what in altered.items()]
    first = 0
    for file in Manifest.load(folder).files:
        if file.name in altered and (folder / file.name).is_file():
            try:
                _, *lines = csv_lines(folder / file.name)
            except UNREADABLE as error:
                findings.append(Finding("unreadable", None, str(error)))
            else:
                findings += _differences(recorded[first : first + file.rows], _checks_of(lines), first=first)
        first += file.rows
    return findings


def _checks_of(lines: list[bytes]) -> RowChecks:
    return np.frombuffer(b"".join(map(row_check, lines)), np.uint64)


def _line_ends(lines: list[bytes]) -> list[Finding]:
    other = [number for number, line in enumerate(lines, start=1) if line[-2:] == b"\r\n" or line[-1:] != b"\n"]
    if len(other) == len(lines):
        return [Finding("line_end", None, "no line of the file ends as it was written")]
    return [Finding("line_end", number, "this line does not end as it was written") for number in other]


def verify_tiles(table: Path, tiles: str | os.PathLike[str]) -> list[Finding]:
    """Hash the tiles of a source again and compare with the table's column `sha256`.

    Returns:
        The rows whose tile is gone, cannot be read, or has other bytes than those that were predicted.

    Raises:
        UsageError: there is no such source, or the table has no column of that name.
    """
    source = source_of(table, tiles, follow_links=True)
    source.check()
    if "sha256" not in Table.open(table).columns:
        raise UsageError(f"{table} has no column sha256 to compare tiles with: cervix-batch --hash writes one")
    # A tile that could not be read had no bytes to hash.
    hashed, named = tee((line, row) for line, row in enumerate(_rows(table), start=2) if row["sha256"])
    names = (os.fsencode(unescape_name(row["path"])) for _, row in named)
    reader, findings = source.reader(), []
    with scratch_folder() as spool:
        for (line, row), record in zip(hashed, source.again(names, spool=spool), strict=True):
            if finding := _tile_finding(reader, record, row["sha256"], line):
                findings.append(finding)
    return findings


def _tile_finding(reader: TileReader, record: Record, sha256: str, line: int) -> Finding | None:
    name, size, mtime_ns, where = record
    try:
        data = reader.read(os.fsdecode(name), TileStamp(size, mtime_ns, where.decode()))
        same = sha256_bytes(data) == sha256
    except TileError as error:
        return Finding("tile_gone", line, f"this row's tile cannot be read: {error}")
    return None if same else Finding("tile_changed", line, "this row's tile has other bytes than were predicted")


def _differences(recorded: RowChecks, found: RowChecks, *, first: int = 0) -> list[Finding]:
    """How rows from `first` on, from 0, differ from those that were recorded."""
    order = {int(check): index for index, check in enumerate(recorded, start=first)}
    findings: list[Finding] = []
    lines: dict[int, int] = {}  # of each row of the run, by its index, where it was found first
    for line, check in enumerate(map(int, found), start=first + 2):
        index = order.get(check)
        if index is None:
            findings.append(Finding("edited", line, "this row was not written by the run"))
        elif index in lines:
            findings.append(Finding("doubled", line, f"the same row as row {index + 1} of the run"))
        else:
            lines[index] = line
    findings += [
        Finding("moved", lines[index], f"row {index + 1} of the run, out of its order") for index in _moved(list(lines))
    ]
    findings.sort(key=lambda finding: finding.line or 0)
    missing = (index for index in range(first, first + len(recorded)) if index not in lines)
    findings += [Finding("missing", None, f"row {index + 1} of the run is not there as written") for index in missing]
    return findings


def _moved(indices: list[int]) -> set[int]:
    """The fewest rows that have to be put elsewhere to bring all in order: those outside a longest rising sequence."""
    tails: list[int] = []  # the lowest last index of a rising sequence of each length
    before: dict[int, int | None] = {}
    for index in indices:
        length = bisect_left(tails, index)
        before[index] = tails[length - 1] if length else None
        tails[length : length + 1] = [index]
    moved, kept = set(indices), tails[-1] if tails else None
    while kept is not None:
        moved.remove(kept)
        kept = before[kept]
    return moved


def _check_books(table: Path, record: RunRecord) -> list[Finding]:
    """The conservation law once more, on the rows themselves."""
    counts: Counter[str] = Counter()
    contradicts, findings = _contradicts(table, record.identity), []
    for line, row in enumerate(_rows(table), start=2):
        counts[row["status"]] += 1
        if contradicts(row):
            message = "category, abnormal or review is not what its digits say at the run's operating point"
            findings.append(Finding("decision", line, message))
    if counts != Counter(ok=record.ok, failed=record.failed) or counts.total() != record.found:
        said = f"the rows say {dict(counts)}, the run {record.ok} ok and {record.failed} failed"
        findings.append(Finding("books", None, said))
    return findings


def _contradicts(table: Path, identity: RunIdentity) -> Callable[[dict[str, str]], bool]:
    """Whether a row decides otherwise than its own digits do."""
    if identity.operating_point is None:
        return lambda _: False
    rule = Rule.of(identity.operating_point)
    columns = Table.open(table).columns
    categories = [name for name in get_args(Category) if probability_column(name) in columns]

    def contradicts(row: dict[str, str]) -> bool:
        if row["status"] != "ok":
            return False
        names = ("confidence", *map(probability_column, categories))
        try:
            confidence, *sums = (in_millionths(probability(row[name])) for name in names)
        except ValueError:
            return True
        abnormal = sums[-1]
        answers = (yes_or_no(rule.calls_abnormal(abnormal)), yes_or_no(rule.asks_for_review(confidence, abnormal)))
        return (most_probable(categories, sums), *answers) != (row["category"], row["abnormal"], row["review"])

    return contradicts


def _rows(table: Path) -> Iterator[dict[str, str]]:
    with closing(open_cells(table)) as cells:
        header = next(cells)
        for values in cells:
            yield dict(zip(header, values, strict=False))


def _read_record(table: Path) -> tuple[RunRecord, TableDigests]:
    if not table_exists(table):
        raise UsageError(f"no such table: {table}{_unfinished(table)}")
    try:
        record = record_of(table)
    except OutputError as error:
        raise UsageError(f"without its run.json there is nothing to check {table} against: {error}") from error
    assert record.table is not None
    return record, record.table


def _is_being_replaced(table: Path) -> bool:
    return RunRecord.load(record_beside(table)).replaces is not None


def _unfinished(table: Path) -> str:
    """What is known of the run that is to make a table which is not there."""
    try:
        record = RunRecord.load(record_beside(table))
    except OutputError:
        return ""
    because = f" ({record.reason})" if record.reason else ""
    return f"; its run is {record.status}{because}: the same cervix-batch command goes on with it"


def _read_checks(table: Path, digests: TableDigests) -> RowChecks:
    path = checks_path(table)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if sha256_bytes(data) != digests.rows_sha256:
        stopped = "; a run stopped while it replaced the table: start it again" if _is_being_replaced(table) else ""
        raise UsageError(f"{path} is not the one that the run wrote{stopped}")
    return np.frombuffer(data, np.uint64)
