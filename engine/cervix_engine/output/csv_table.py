"""The finished table as CSV: it is either whole at its place, or not there."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from cervix_engine.errors import OutputError
from cervix_engine.files import fsync_file, fsync_folder
from cervix_engine.output.rows import RowFormat
from cervix_engine.pipeline.stream import BatchResult


class Table(Protocol):
    """Takes the batches of a run in order, and appears at its place when committed."""

    def write(self, result: BatchResult) -> None: ...

    def commit(self) -> None: ...


class CsvTable:
    """Writes rows to a temporary file beside `path` and renames it there on `commit`; without it nothing is left.

    Raises:
        OutputError: the file system refuses; the table is then not there.
    """

    def __init__(self, path: Path, row_format: RowFormat) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.partial")
        self._format = row_format
        self._file: IO[str] | None = None
        self._writer: Any = None

    def __enter__(self) -> CsvTable:
        try:
            self._file = self._temporary.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"cannot write in {self._path.parent}: {error.strerror}") from error
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(self._format.columns)
        return self

    def write(self, result: BatchResult) -> None:
        rows = [self._format.row(*pair) for pair in zip(result.batch.tiles, result.outcomes, strict=True)]
        try:
            self._writer.writerows(rows)
        except OSError as error:
            raise OutputError(f"cannot write the table: {error.strerror}") from error

    def commit(self) -> None:
        assert self._file is not None
        try:
            self._file.close()
            fsync_file(self._temporary)
            self._temporary.replace(self._path)
            fsync_folder(self._path.parent)
        except OSError as error:
            raise OutputError(f"cannot finish the table: {error.strerror}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)
