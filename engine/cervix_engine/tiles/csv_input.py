"""The one reader of CSV files that a person may hand in: manifests, labels, locations, earlier tables.

Spreadsheets and scripts write CSV in many ways. Accepted are a UTF-8 byte-order mark, the line ends of Linux, Windows
and old Macs, blank lines, and spaces around the header's names. Anything else that is not CSV in UTF-8 is refused in
one line, which names the line of the file and the remedy. A file is streamed; no more than one row of it is held.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO

from cervix_engine.errors import UsageError

# The line of the file at which a row begins, from 1, and the row's cells.
NumberedRows = Generator[tuple[int, list[str]], None, None]

# What the columns of a Parquet table hold, signed and of 64 bits.
MOST_PIXELS = 2**63 - 1

# Bounds on what is held and shown of a file that is no CSV.
_LONGEST_LINE = 2**20
_LONGEST_SHOWN = 200
_LONGEST_NUMBER = 100

_WRONG_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_UNDECODED = re.compile("[\udc80-\udcff]")
_WHOLE_NUMBER = re.compile(r"\s*(\d+)(?:\.0*)?\s*")


def read_csv(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    ignored: Collection[str] | None = None,
    data: bytes | None = None,
    any_bytes: bool = False,
    same: Callable[[str], str] = str,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row of a file that names each tile once, with its line.

    Args:
        path: the file.
        required, optional: names of its columns; `path` is a required one.
        ignored: other columns that it may have, None for any: a misspelt optional column would be one of them.
        data: the file's bytes, where they are read already.
        any_bytes: cells may hold bytes that are not UTF-8, as names of files do; they become surrogate escapes.
        same: two paths name the same tile where it gives the same text for both.

    Raises:
        UsageError: the file cannot be read, is no such CSV, or has a row without a path or with one that was there.
    """
    lines: dict[str, int] = {}
    try:
        with path.open("rb") if data is None else io.BytesIO(data) as file:
            rows = csv_rows(file, path, any_bytes=any_bytes)
            first, header = next(rows)
            _check_columns(path, first, header, required, optional, ignored)
            for line, cells in rows:
                row = dict(zip(header, cells, strict=True))
                if not row["path"]:
                    raise UsageError(f"{path}, line {line}: no path")
                if (first := lines.setdefault(same(row["path"]), line)) != line:
                    raise repeated(path, line, row["path"], first)
                yield line, row
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def csv_rows(file: BinaryIO, path: Path, *, any_bytes: bool = False) -> NumberedRows:
    """The header and then every row of a CSV file, each as long as the header.

    Args:
        file: its bytes, from the start.
        path: its name, for messages.
        any_bytes: as in `read_csv`.

    Raises:
        UsageError: it is empty or no CSV in UTF-8.
    """
    # Bytes that are not UTF-8 arrive as surrogates, so that their line can be named.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = _parsed(_checked_lines(text, path, any_bytes=any_bytes), path)
        line, names = next(rows, (0, []))
        if not line:
            raise UsageError(f"{path} is empty: expected a header and rows")
        header = [name.strip() for name in names]
        yield line, header
        for line, cells in rows:
            if len(cells) != len(header):
                raise UsageError(
                    f"{path}, line {line}: {len(cells)} of {len(header)} cells that the header has; complete the row, "
                    "or put a cell that holds a comma in quotation marks"
                )
            yield line, cells


def check_header(path: Path, header: Sequence[str], required: Sequence[str], *, expected: str, line: int = 1) -> None:
    """Raises UsageError where a name is missing or there twice.

    Args:
        path: the file.
        header, line: its names, and where they stand.
        required: names that must be there.
        expected: what a header has, in words.
    """
    found = ", ".join(header)
    if missing := [name for name in required if name not in header]:
        shown = found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}…"
        raise UsageError(f"{path}, line {line}: no column {', '.join(missing)}: found {shown}; expected {expected}")
    if doubled := [name for name, times in Counter(header).items() if name and times > 1]:
        raise UsageError(f"{path}, line {line}: column {doubled[0]!r} twice: remove or rename one")


def repeated(path: Path, line: int, name: str, first: int) -> UsageError:
    """The error of a row that names the same tile as an earlier one."""
    return UsageError(f"{path}, line {line}: {name!r} is already in line {first}: keep one of the two")


def whole_number(cell: str) -> int:
    """A number of pixels from 0 to `MOST_PIXELS`, in decimal digits; spaces around them count for nothing.

    `87.0` is one too, as pandas writes it beside empty cells; a sign, an exponent or another fraction is not.

    Raises:
        ValueError: it is none.
    """
    digits = cell
    if not cell.isdecimal():
        found = _WHOLE_NUMBER.fullmatch(cell)
        if found is None:
            raise ValueError(f"{cell!r} is no number of pixels, 0 or more")
        digits = found[1]
    # Python refuses to read what is much longer.
    if len(digits) <= _LONGEST_NUMBER and (number := int(digits)) <= MOST_PIXELS:
        return number
    raise ValueError(f"{digits[:_LONGEST_NUMBER]} is no number of pixels: {MOST_PIXELS} is the most that a table holds")


def _check_columns(
    path: Path,
    line: int,
    header: Sequence[str],
    required: Sequence[str],
    optional: Sequence[str],
    ignored: Collection[str] | None,
) -> None:
    expected = ",".join(required) + "".join(f"[,{name}]" for name in optional)
    check_header(path, header, required, expected=expected, line=line)
    known = {*required, *optional, *(header if ignored is None else ignored)}
    if unknown := [name for name in header if name not in known]:
        raise UsageError(f"{path}, line {line}: unknown column {unknown[0]!r}: expected {expected}")


def _checked_lines(file: TextIO, path: Path, *, any_bytes: bool) -> Iterator[str]:
    for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), ""), start=1):
        if "\0" in line or (not any_bytes and not line.isascii() and _UNDECODED.search(line)):
            raise UsageError(f"{path}, line {number}: bytes that are not text in UTF-8: save the file as CSV UTF-8")
        if len(line) == _LONGEST_LINE:
            raise UsageError(f"{path}, line {number}: longer than {_LONGEST_LINE:,} characters: is this a CSV file?")
        yield line


def _parsed(text: Iterator[str], path: Path) -> NumberedRows:
    blank = 0
    for first in text:
        if first.strip("\r\n"):
            break
        blank += 1
    else:
        return
    _check_separator(path, blank + 1, first)
    reader = csv.reader(chain([first], text), strict=True)
    line = blank + 1
    try:
        for cells in reader:
            if cells:  # a blank line has none
                yield line, cells
            line = blank + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {line}: quotation marks do not match ({error}): close each, and double one inside a cell"
        ) from error


def _check_separator(path: Path, line: int, first: str) -> None:
    if first.lower().startswith("sep="):
        raise UsageError(
            f"{path}, line {line}: {first.strip()} is for spreadsheets: delete this line, separate by commas"
        )
    wrong = [name for separator, name in _WRONG_SEPARATORS.items() if separator in first]
    if wrong and "," not in first:
        raise UsageError(f"{path}, line {line}: columns are separated by {wrong[0]}: save the file with commas instead")
