"""Reads labelled tiles from the layouts people have them in.

1. A manifest: a `.csv` file, or a folder that holds `manifest.csv` (see `manifest.py`).
2. Split folders: `train/`, `val/` and `test/`, each with one folder per class.
3. SIPaKMeD as published: `im_<Class>/…/CROPPED/*.bmp`; what lies beside `CROPPED` are whole fields, not tiles.
4. One folder per class, Kaggle's `cervix_<xyz>` or any class named in `--classes`.

A folder stands for a class by the class's name or its display name, with or without `im_`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_engine.errors import DatasetError
from cervix_engine.tiles.discover import SUFFIXES
from cervix_train.data.dataset import Dataset, LabelledTile, Split
from cervix_train.data.manifest import read_manifest

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_TILE_SUFFIXES = frozenset(os.fsdecode(suffix) for suffix in SUFFIXES)


def read_dataset(data: Path, *, classes: Sequence[TileClass] = SIPAKMED_CLASSES) -> Dataset:
    """Recognise the layout of `data` and read it. Tiles are listed, not opened.

    Raises:
        DatasetError: there is nothing at `data`, no tile in it, a class that is not in `classes`, or a broken
            manifest.
    """
    if not data.exists():
        raise DatasetError(f"no such folder or manifest: {data}")
    manifest = data / "manifest.csv" if data.is_dir() else data
    if manifest.is_file():
        root, tiles = manifest.parent, read_manifest(manifest, class_names=[item.name for item in classes])
    else:
        root, tiles = data, _folder_tiles(data, classes=classes)
    present = {tile.label for tile in tiles}
    ordered = tuple(sorted(tiles, key=lambda tile: os.fsencode(tile.path)))
    return Dataset(root, ordered, tuple(item for item in classes if item.name in present))


def _folder_tiles(root: Path, *, classes: Sequence[TileClass]) -> list[LabelledTile]:
    folders = _subfolders(root)
    splits = [_SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders]
    if folders and all(splits):
        pairs = list(zip(folders, splits, strict=True))
        tiles = [tile for folder, split in pairs for tile in _class_tiles(folder, root, split=split, classes=classes)]
    else:
        tiles = list(_class_tiles(root, root, split=None, classes=classes))
    if not tiles:
        loose = any(True for _ in _tile_files(root))
        found = "tiles, but no folder per class" if loose else "no tiles"
        raise DatasetError(f"{root} holds {found}: expected one folder of tiles per class, or manifest.csv")
    return tiles


def _class_tiles(
    folder: Path, root: Path, *, split: Split | None, classes: Sequence[TileClass]
) -> Iterator[LabelledTile]:
    labels = {spelling: item.name for item in classes for spelling in _spellings(item)}
    for subfolder in _subfolders(folder):
        files = sorted(_tile_files(subfolder))
        if not files:
            continue
        label = labels.get(subfolder.name.lower().removeprefix("im_"))
        if label is None:
            known = ", ".join(item.name for item in classes)
            raise DatasetError(
                f"unknown class {subfolder.name!r} in {folder}: expected one of {known}; "
                "other classes can be described with --classes FILE"
            )
        cropped = [file for file in files if "CROPPED" in file.relative_to(subfolder).parts[:-1]]
        for file in cropped or files:
            yield LabelledTile(file.relative_to(root), label, split=split)


def _spellings(item: TileClass) -> set[str]:
    return {item.name.lower(), item.display_name.lower()}


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror}") from error


def _tile_files(folder: Path) -> Iterator[Path]:
    for entry in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in entry.relative_to(folder).parts)
        if entry.suffix.lower() in _TILE_SUFFIXES and not hidden and entry.is_file():
            yield entry
