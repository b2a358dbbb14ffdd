"""The formats a table can have, by its suffix: `.csv`, `.csv.gz`, `.jsonl`, `.parquet`; without one, a folder.

One content in all of them. CSV is the one that runs are assembled in; the other files are made of a finished CSV by
`publish_as`, in the run's own folder and before the rename, so that what makes the one whole makes them whole; of a
folder see `parquet/`. Cells are compared as text: a number in Parquet or JSON reads back as the very digits of the
CSV.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from cervix_engine.errors import OutputExistsError, UsageError
from cervix_engine.files import atomic_path, output_errors, sha256_file
from cervix_engine.table.columns import cell_text, cell_value
from cervix_engine.table.parquet.file import read_parquet, require_pyarrow, write_parquet
from cervix_engine.table.parquet.folder import MANIFEST, folder_sha256, read_folder
from cervix_engine.tiles.csv_input import NumberedRows, csv_rows

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".parquet")

# In place of a suffix: the table is a folder.
FOLDER = "/"

Cells = Iterator[list[str]]


def table_suffix(path: Path) -> str:
    """The suffix that says a table's format; `FOLDER` where its name has none, or where a folder lies there.

    Raises:
        UsageError: it is none of `SUFFIXES`.
    """
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    if not path.suffix or path.is_dir():
        return FOLDER
    raise UsageError(f"{path.name}: a table's name ends in {', '.join(SUFFIXES)}; that of a folder has no dot")


def is_folder(path: Path) -> bool:
    """Whether the table of this name is a folder.

    Raises:
        UsageError: as `table_suffix`.
    """
    return table_suffix(path) == FOLDER


def table_exists(path: Path) -> bool:
    """Whether a table lies there, whole or not: an empty folder is none.

    Raises:
        OSError, UsageError: it cannot be looked at; as `table_suffix`.
    """
    return (path / MANIFEST if is_folder(path) else path).exists()


def require_no_table(path: Path, *, overwrite: bool = False) -> None:
    """Raises OutputExistsError where a table lies there that may not be overwritten."""
    with output_errors(f"cannot look at {path}"):
        exists = table_exists(path)
    if exists and not overwrite:
        raise OutputExistsError(f"{path} is there already: pass --overwrite to replace it")


def table_sha256(path: Path) -> str:
    """Hex SHA-256 that stands for all bytes of a table: of its file, or as `folder_sha256`.

    Raises:
        OSError, UsageError: it cannot be read; its manifest is none.
    """
    return folder_sha256(path) if path.is_dir() else sha256_file(path)


def require_writer(path: Path) -> None:
    """Say now, and not at a run's end, that a table cannot be written as `path` asks.

    Raises:
        UsageError: its suffix is no table's.
        BackendUnavailableError: the library that writes it is missing.
    """
    if table_suffix(path) in (".parquet", FOLDER):
        require_pyarrow()


def csv_lines(path: Path) -> Generator[bytes, None, None]:
    """The header and then every row of a table as the run's CSV has or had it, each with its line's end.

    Raises:
        OSError, UsageError: as `numbered_cells`.
    """
    suffix = table_suffix(path)
    if suffix in (".csv", ".csv.gz"):
        with _open_csv(path) as file, _gzip_errors(path):
            yield from file
        return
    with closing(numbered_cells(path)) as rows:
        yield from (csv_line(cells) for _, cells in rows)


def csv_line(cells: Iterable[str]) -> bytes:
    """One row of a CSV table."""
    return csv_text(cells).encode("utf-8")


def csv_text(cells: Iterable[str]) -> str:
    """One row of a CSV table, with its line's end."""
    text = io.StringIO(newline="")
    _write_rows(text, [cells])
    return text.getvalue()


def csv_cell(cell: str) -> str:
    """One of several cells of a row: as it is, unless the CSV needs quotation marks around it."""
    if "," in cell or '"' in cell or "\n" in cell or "\r" in cell:
        return csv_text([cell, ""])[:-2]
    return cell


def open_cells(path: Path) -> Generator[list[str], None, None]:
    """As `numbered_cells`, without the lines."""
    with closing(numbered_cells(path)) as rows:
        yield from (cells for _, cells in rows)


def numbered_cells(path: Path) -> NumberedRows:
    """The header and then every row of a table, streamed, as the CSV's text; each with its line there.

    Raises:
        OSError: it cannot be read.
        UsageError: its suffix is no table's, or what it holds is not what the suffix says.
    """
    return _READERS[table_suffix(path)](path)


def publish_as(table_csv: Path, out: Path) -> None:
    """Write a finished CSV table as `out`, in the format of its suffix: atomically, durably, in bounded memory.

    The same CSV gives the same bytes.

    Raises:
        UsageError: the suffix is no table's.
        OutputError: `out` cannot be written.
    """
    suffix = table_suffix(out)
    with output_errors(f"cannot write {out}"), atomic_path(out) as file, closing(open_cells(table_csv)) as cells:
        header = next(cells)
        _WRITERS[suffix](file, header, cells)


def _read_csv(path: Path) -> NumberedRows:
    with _open_csv(path) as file, _gzip_errors(path):
        yield from csv_rows(file, path)


def _open_csv(path: Path) -> BinaryIO:
    packed = table_suffix(path) == ".csv.gz"
    return cast("BinaryIO", gzip.GzipFile(path)) if packed else path.open("rb")


@contextmanager
def _gzip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise UsageError(f"{path} was cut off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path} is no gzip file, or a damaged one: {error}") from error


def _read_jsonl(path: Path) -> NumberedRows:
    number, header = 0, None
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("expected an object, {…}, of one tile")
                if header is None:
                    header = list(record)
                    yield number, header
                if list(record) != header:
                    raise ValueError("other keys than in line 1")
                yield number, [cell_text(name, value) for name, value in record.items()]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path}, line {number}: {error}") from error


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file, atomically and durably.

    Raises:
        OutputError: it cannot be written.
    """
    with output_errors(f"cannot write {path}"), atomic_path(path) as temporary:
        _write_csv(temporary, header, rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, chain([header], rows))


def _write_gzip(path: Path, header: list[str], cells: Cells) -> None:
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("wb"))
        # No name and no time in the gzip header: equal tables are equal files.
        packed = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0))
        text = stack.enter_context(io.TextIOWrapper(packed, newline="", encoding="utf-8"))
        _write_rows(text, chain([header], cells))


def _write_rows(file: Any, rows: Iterable[Iterable[str]]) -> None:
    csv.writer(file, lineterminator="\n").writerows(rows)


def _write_jsonl(path: Path, header: list[str], cells: Cells) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in cells:
            record = {name: cell_value(name, cell) for name, cell in zip(header, row, strict=True)}
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


_READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": read_parquet,
    FOLDER: read_folder,
}
_WRITERS: dict[str, Callable[[Path, list[str], Cells], None]] = {
    ".csv": _write_csv,
    ".csv.gz": _write_gzip,
    ".jsonl": _write_jsonl,
    ".parquet": write_parquet,
}
