"""A table in a folder of Parquet files, with a manifest that lists them.

    preds/
      part-00000.parquet   262,144 rows, and so on
      part-00001.parquet
      _manifest.json       written last: columns, rows, the run's identity; of each file its rows and SHA-256

The folder is what other programs read as one data set: they pass over names that begin with `_`. Here a folder is read
by its manifest alone, so that a file that is missing, or does not belong there, is never overlooked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from cervix_engine.errors import UsageError
from cervix_engine.files import fsync_file, fsync_folder, sha256_bytes, sha256_file
from cervix_engine.table.parquet.file import read_parquet
from cervix_engine.tiles.csv_input import NumberedRows

MANIFEST = "_manifest.json"
_PART = re.compile(r"part-[0-9]{5,}\.parquet")

# What a file manager leaves wherever a person looks.
_NOBODYS = frozenset({".DS_Store"})


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A Parquet file of a folder, by its name there."""

    name: str
    rows: int
    sha256: str

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ListedFile:
        """Raises ValueError, KeyError or TypeError where these are no file's."""
        name, rows, sha256 = data["name"], data["rows"], data["sha256"]
        # A name from elsewhere could lead out of the folder.
        if not _PART.fullmatch(name) or not isinstance(rows, int) or not isinstance(sha256, str):
            raise ValueError(f"no file of a table: {name!r}, {rows!r} rows, SHA-256 {sha256!r}")
        return cls(name, rows, sha256)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds, in the order of its rows.

    Attributes:
        columns: of all files.
        files: those that are the table.
        identity: of the run that made it, as its record has it.
    """

    columns: tuple[str, ...]
    files: tuple[ListedFile, ...]
    identity: dict[str, Any]

    schema: ClassVar[str] = "cervix/manifest/1"

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def save(self, folder: Path) -> str:
        """Write it durably; its SHA-256.

        Raises:
            OSError: it cannot be written.
        """
        values = {"schema": self.schema, "rows": self.rows, **asdict(self)}
        data = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        (folder / MANIFEST).write_bytes(data)
        fsync_file(folder / MANIFEST)
        fsync_folder(folder)
        return sha256_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read that of a folder.

        Raises:
            OSError: there is no such folder, or nothing in it can be read.
            UsageError: the folder has no manifest, or none of ours.
        """
        if folder.is_dir() and not (folder / MANIFEST).exists():
            raise UsageError(f"{folder} is no table: it has no {MANIFEST}")
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if data["schema"] != cls.schema:
                raise ValueError(f"schema {data['schema']!r}, expected {cls.schema!r}")
            files = tuple(map(ListedFile.from_json, data["files"]))
            return cls(tuple(data["columns"]), files, data["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / MANIFEST} is no manifest of cervix-batch: {error}") from error


def altered_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file of a folder that is not as its manifest says, by name, and what is wrong with it.

    Of what the manifest does not list, all that other programs would read as part of the table: they pass over names
    that begin with `_` or a dot.

    Raises:
        OSError, UsageError: as `Manifest.load`; or a file cannot be read.
    """
    listed = Manifest.load(folder).files
    for file in listed:
        if not (folder / file.name).is_file():
            yield file.name, "it is not there"
        elif sha256_file(folder / file.name) != file.sha256:
            yield file.name, "it is not as the run wrote it"
    others = (name for name in names_beside_table(folder) if not name.startswith(("_", ".")))
    yield from ((name, "the manifest does not list it") for name in others)


def names_beside_table(folder: Path) -> list[str]:
    """What lies in a folder and is no part of its table.

    Raises:
        OSError, UsageError: it cannot be looked at; its manifest is none.
    """
    names = {path.name for path in folder.iterdir()} - _NOBODYS
    listed = Manifest.load(folder).files if MANIFEST in names else ()
    return sorted(names - {MANIFEST, *(file.name for file in listed)})


def folder_sha256(folder: Path) -> str:
    """Hex SHA-256 of a folder's manifest; where a file is not as that says, of something else.

    Raises:
        OSError, UsageError: as `altered_files`.
    """
    altered = "".join(name for name, _ in altered_files(folder))
    return sha256_bytes((folder / MANIFEST).read_bytes() + altered.encode())


def read_folder(folder: Path) -> NumberedRows:
    """As `formats.numbered_cells`, of a folder.

    Raises:
        OSError, UsageError: it is not as its manifest says, as far as reading shows that.
    """
    manifest, lines = Manifest.load(folder), count(2)
    yield 1, list(manifest.columns)
    for file in manifest.files:
        rows = read_parquet(folder / file.name)
        if tuple(next(rows)[1]) != manifest.columns:
            raise UsageError(f"{folder / file.name} has other columns than {MANIFEST} says")
        found = 0
        for _, cells in rows:
            found += 1
            yield next(lines), cells
        if found != file.rows:
            raise UsageError(f"{folder / file.name} has {found} rows, {MANIFEST} says {file.rows}")
