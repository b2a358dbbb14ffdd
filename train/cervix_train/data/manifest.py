"""Reads a manifest: a CSV file with the columns `path,label[,group][,split]` beside or above its tiles.

Paths are relative to the manifest's folder. The columns `width`, `height`, `sha256` and `error` may be there and
are not used, so that a bundle's `training/split.csv`, put beside the tiles, is a manifest too. Any other column is
refused: a misspelt `group` would silently let the split leak.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from cervix_engine.errors import DatasetError
from cervix_train.data.dataset import SPLITS, LabelledTile

REQUIRED = ("path", "label")
OPTIONAL = ("group", "split")
UNUSED = ("width", "height", "sha256", "error")

Row = dict[str, str]


def read_manifest(manifest: Path, *, class_names: Sequence[str]) -> list[LabelledTile]:
    """Read every row, in file order.

    Raises:
        DatasetError: the file is not such a manifest; the message names file, line and reason.
    """
    tiles: list[LabelledTile] = []
    lines: dict[PurePosixPath, int] = {}
    for line, row in _rows(manifest):
        try:
            tile = _tile(row, root=manifest.parent, class_names=class_names)
        except ValueError as error:
            raise DatasetError(f"{manifest}, line {line}: {error}") from error
        first = lines.setdefault(PurePosixPath(tile.path), line)
        if first != line:
            raise DatasetError(f"{manifest}, line {line}: {tile.path} is already listed in line {first}")
        tiles.append(tile)
    if not tiles:
        raise DatasetError(f"{manifest} lists no tiles")
    return tiles


def _rows(manifest: Path) -> Iterator[tuple[int, Row]]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front, which would become part of "path".
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(manifest, reader.fieldnames or ())
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise DatasetError(f"cannot read {manifest}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{manifest} is not a CSV file in UTF-8: {error}") from error


def _check_columns(manifest: Path, columns: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*REQUIRED, *OPTIONAL, *UNUSED)]
    if missing:
        raise DatasetError(f"{manifest} has no column {' or '.join(missing)}: expected path,label[,group][,split]")
    if unknown:
        raise DatasetError(f"{manifest} has the unknown column {unknown[0]!r}: expected path,label[,group][,split]")
    if len(set(columns)) != len(columns):
        raise DatasetError(f"{manifest} has a column twice: {','.join(columns)}")


def _tile(row: Row, *, root: Path, class_names: Sequence[str]) -> LabelledTile:
    """Raises ValueError with the reason alone: the caller knows the line."""
    if None in row or None in row.values():
        raise ValueError("expected as many fields as the header has")
    path = PurePosixPath(row["path"])
    if not row["path"] or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {row['path']!r} must be relative to the manifest's folder, without '..'")
    if row["label"] not in class_names:
        raise ValueError(
            f"unknown class {row['label']!r}, expected one of {', '.join(class_names)}; "
            "other classes can be described with --classes FILE"
        )
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    if not (root / path).is_file():
        raise ValueError(f"no such tile: {path}")
    return LabelledTile(Path(path), row["label"], row.get("group") or None, split)
