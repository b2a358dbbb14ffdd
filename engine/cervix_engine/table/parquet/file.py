"""A table, or a part of one, as one Parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from cervix_engine.errors import BackendUnavailableError, OutputError, UsageError
from cervix_engine.table.columns import cell_text, cell_value, column_type
from cervix_engine.tiles.csv_input import NumberedRows

GROUP_ROWS = 65_536
_ARROW_TYPES = {int: "int64", float: "float64", str: "string"}


def read_parquet(path: Path) -> NumberedRows:
    """As `formats.numbered_cells`, of one file."""
    pyarrow, parquet = require_pyarrow()
    try:
        # Opened here: Arrow takes no name that is not UTF-8.
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            yield 1, list(names)
            lines = count(2)
            for batch in file.iter_batches(GROUP_ROWS):
                columns = [[cell_text(name, value) for value in batch.column(name).to_pylist()] for name in names]
                yield from ((next(lines), list(row)) for row in zip(*columns, strict=True))
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        raise UsageError(f"{path} is no Parquet table, or a damaged one: {_one_line(error)}") from error
    except OSError as error:
        if error.errno is not None:  # the file system's
            raise
        raise UsageError(f"{path} is a damaged Parquet table: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def write_parquet(path: Path, header: Sequence[str], cells: Iterator[list[str]]) -> None:
    """Write one file, from cells as the CSV's text."""
    pyarrow, parquet = require_pyarrow()
    schema = _schema(pyarrow, header)
    with path.open("wb") as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        while rows := list(islice(cells, GROUP_ROWS)):
            columns = [
                [cell_value(name, cell) for cell in column]
                for name, column in zip(header, zip(*rows, strict=True), strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def parquet_of_csv(path: Path, header: Sequence[str], lines: bytes) -> None:
    """Write one file from the lines of a CSV, without its header: what `write_parquet` holds, in a ninth of the time.

    No cell holds a control character, as none of a run's does.

    Raises:
        OutputError: the lines are not those of a table with this header.
    """
    pyarrow, parquet = require_pyarrow()
    from pyarrow import csv

    schema = _schema(pyarrow, header)
    try:
        table = csv.read_csv(
            pyarrow.py_buffer(lines),
            read_options=csv.ReadOptions(column_names=list(header), use_threads=False),
            convert_options=csv.ConvertOptions(
                column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True
            ),
        )
    except pyarrow.ArrowException as error:
        raise OutputError(f"rows that cannot be written as Parquet: {error}") from error
    with path.open("wb") as stream:
        parquet.write_table(table, stream, compression="zstd", row_group_size=GROUP_ROWS)


def require_pyarrow() -> tuple[Any, Any]:
    """The package, and its part for Parquet.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BackendUnavailableError("Parquet needs pyarrow: pip install '.[report]'") from error
    return pyarrow, parquet


def _schema(pyarrow: Any, header: Sequence[str]) -> Any:
    return pyarrow.schema([(name, getattr(pyarrow, _ARROW_TYPES[column_type(name)])()) for name in header])
