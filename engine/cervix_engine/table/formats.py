"""The formats a table can have, by its suffix: `.csv`, `.csv.gz`, `.jsonl`, `.parquet`. One content in all of them.

CSV is the one that runs are assembled in; the others are made of a finished CSV by `publish_as`, in the run's own
folder and before the rename, so that what makes the one whole makes them whole. Cells are compared as text: a number
in Parquet or JSON reads back as the very digits of the CSV.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

from cervix_engine.errors import BackendUnavailableError, OutputError, UsageError
from cervix_engine.files import atomic_path

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".parquet")

_INTEGERS = frozenset({"minx", "miny", "width", "height"})
_PARQUET_ROWS = 65_536

Cells = Generator[list[str], None, None]


def table_suffix(path: Path) -> str:
    """The suffix that says a table's format.

    Raises:
        UsageError: it is none of `SUFFIXES`.
    """
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise UsageError(f"{path.name}: a table's name ends in {', '.join(SUFFIXES)}")


def require_writer(path: Path) -> None:
    """Say now, and not at a run's end, that a table cannot be written as `path` asks.

    Raises:
        UsageError: its suffix is no table's.
        BackendUnavailableError: the library that writes it is missing.
    """
    if table_suffix(path) == ".parquet":
        _pyarrow()


def csv_lines(path: Path) -> Generator[bytes, None, None]:
    """The header and then every row of a table as the run's CSV has or had it, each with its line's end.

    Raises:
        OSError, UsageError: as `open_cells`.
    """
    if table_suffix(path) == ".csv":
        with path.open("rb") as file:
            yield from file
        return
    with closing(open_cells(path)) as rows:
        yield from map(csv_line, rows)


def csv_line(cells: Iterable[str]) -> bytes:
    """One row of a CSV table."""
    text = io.StringIO(newline="")
    _csv_writer(text).writerow(cells)
    return text.getvalue().encode("utf-8")


def open_cells(path: Path) -> Cells:
    """The header and then every row of a table, as the CSV's text, streamed.

    Raises:
        OSError: it cannot be read.
        UsageError: its suffix is no table's.
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
    try:
        with atomic_path(out) as temporary, closing(_read_csv(table_csv)) as cells:
            header = next(cells)
            _WRITERS[suffix](temporary, header, cells)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error


def _read_csv(path: Path) -> Cells:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def _read_gzip(path: Path) -> Cells:
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            yield from csv.reader(file)
    except EOFError as error:
        raise UsageError(f"{path} was cut off") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path} is no gzip file, or a damaged one: {error}") from error


def _read_jsonl(path: Path) -> Cells:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                record: dict[str, Any] = json.loads(line)
                if number == 1:
                    yield list(record)
                yield [_text(name, value) for name, value in record.items()]
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path}, line {number}: {error}") from error


def _read_parquet(path: Path) -> Cells:
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            yield list(names)
            for batch in file.iter_batches(_PARQUET_ROWS):
                columns = [[_text(name, value) for value in batch.column(name).to_pylist()] for name in names]
                yield from map(list, zip(*columns, strict=True))
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is no Parquet table: {error}") from error


def _write_csv(path: Path, header: list[str], cells: Cells) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, header, cells)


def _write_gzip(path: Path, header: list[str], cells: Cells) -> None:
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("wb"))
        # No name and no time in the gzip header: equal tables are equal files.
        packed = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0))
        text = stack.enter_context(io.TextIOWrapper(packed, newline="", encoding="utf-8"))
        _write_rows(text, header, cells)


def _write_rows(file: Any, header: list[str], cells: Cells) -> None:
    writer = _csv_writer(file)
    writer.writerow(header)
    writer.writerows(cells)


def _csv_writer(file: Any) -> Any:
    return csv.writer(file, lineterminator="\n")


def _write_jsonl(path: Path, header: list[str], cells: Cells) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in cells:
            record = {name: _value(name, cell) for name, cell in zip(header, row, strict=True)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, header: list[str], cells: Cells) -> None:
    pyarrow, parquet = _pyarrow()
    schema = pyarrow.schema([(name, getattr(pyarrow, _arrow_type(name))()) for name in header])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := list(islice(cells, _PARQUET_ROWS)):
            columns = [
                [_value(name, cell) for cell in column]
                for name, column in zip(header, zip(*rows, strict=True), strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _is_real(name: str) -> bool:
    return name == "confidence" or name.startswith("prob_")


def _arrow_type(name: str) -> str:
    return "int64" if name in _INTEGERS else "float64" if _is_real(name) else "string"


def _value(name: str, cell: str) -> int | float | str | None:
    if cell == "":
        return None
    return int(cell) if name in _INTEGERS else float(cell) if _is_real(name) else cell


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if _is_real(name) else str(value)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BackendUnavailableError("Parquet needs pyarrow: pip install 'cervix[report]'") from error
    return pyarrow, parquet


_READERS: dict[str, Callable[[Path], Cells]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_gzip,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, list[str], Cells], None]] = {
    ".csv": _write_csv,
    ".csv.gz": _write_gzip,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
