"""Reads a manifest: a CSV file with the columns `path,label[,group][,split]` beside or above its tiles.

Paths are relative to the manifest's folder. The columns `width`, `height`, `sha256` and `error` may be there and
are not used, so that a bundle's `training/split.csv`, put beside the tiles, is a manifest too. Any other column is
refused: a misspelt `group` would silently let the split leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cervix_engine.errors import DatasetError, UsageError
from cervix_engine.tiles.csv_input import read_csv
from cervix_train.data.dataset import SPLITS, LabelledTile

REQUIRED = ("path", "label")
OPTIONAL = ("group", "split")
UNUSED = ("width", "height", "sha256", "error")


def read_manifest(manifest: Path, *, class_names: Sequence[str]) -> list[LabelledTile]:
    """Read every row, in file order.

    Raises:
        DatasetError: the file is not such a manifest; the message names file, line and reason.
    """
    tiles: list[LabelledTile] = []
    try:
        for line, row in read_csv(manifest, REQUIRED, OPTIONAL, ignored=UNUSED, same=_normal):
            try:
                tiles.append(_tile(row, root=manifest.parent, class_names=class_names))
            except ValueError as error:
                raise DatasetError(f"{manifest}, line {line}: {error}") from error
    except UsageError as error:
        raise DatasetError(str(error)) from error
    if not tiles:
        raise DatasetError(f"{manifest} lists no tiles")
    return tiles


def _normal(path: str) -> str:
    return PurePosixPath(path).as_posix()


def _tile(row: dict[str, str], *, root: Path, class_names: Sequence[str]) -> LabelledTile:
    """Raises ValueError with the reason alone: the caller knows the line."""
    path = PurePosixPath(row["path"])
    if path.is_absolute() or ".." in path.parts:
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
