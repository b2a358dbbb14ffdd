"""Reads labelled tiles from the layouts people have them in.

1. A manifest: a `.csv` file, or a folder that holds `manifest.csv` (see `manifest.py`).
2. Split folders: `train/`, `val/` and `test/`, each with one folder per class.
3. One folder per class, Kaggle's `cervix_<xyz>` or any class named in `--classes`; what lies in `train/`, `val/` or
   `test/` within it keeps that split.
4. SIPaKMeD as published: `im_<Class>/…/CROPPED/*.bmp`; what lies beside `CROPPED` are whole fields, not tiles.

A folder stands for a class by the class's name or its display name, with or without `im_`. Files are found as
`cervix-batch` finds them. Nothing is taken for something else in silence: what is left out is named and counted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_engine.errors import DatasetError, ListingError
from cervix_engine.tiles.discover import SYSTEM_FOLDERS, ignored_words
from cervix_engine.tiles.sources.folder import Walk
from cervix_engine.words import agreeing, counted
from cervix_train.data.dataset import Dataset, LabelledTile, Split
from cervix_train.data.manifest import read_manifest
from cervix_train.data.masks import FOLDERS as MASK_FOLDERS
from cervix_train.data.masks import masks_among

log = logging.getLogger(__name__)

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read_dataset(data: Path, *, classes: Sequence[TileClass] = SIPAKMED_CLASSES, follow_links: bool = False) -> Dataset:
    """Recognise the layout of `data` and read it. Tiles are listed, not opened.

    Args:
        data: a folder or a manifest.
        classes: those that may occur.
        follow_links: also take links that lead out of a folder, as `cervix-batch --follow-links`.

    Raises:
        DatasetError: there is nothing at `data`, no tile in it, a class that is not in `classes`, a broken manifest,
            or folders that could be meant in two ways.
    """
    if not data.exists():
        raise DatasetError(f"no such folder or manifest: {data}")
    manifest = data / "manifest.csv" if data.is_dir() else data
    if manifest.is_file():
        root, layout = manifest.parent, f"the manifest {manifest.name}"
        tiles = read_manifest(manifest, class_names=[item.name for item in classes])
        masks = masks_among([tile.path for tile in tiles])
        _name_some(
            masks,
            "tile of the manifest looks like a mask by its name",
            "tiles of the manifest look like masks by their names",
        )
    else:
        root, (layout, tiles) = data, _Folders(data, classes, follow_links=follow_links).read()
    present = {tile.label for tile in tiles}
    ordered = tuple(sorted(tiles, key=lambda tile: os.fsencode(tile.path)))
    return Dataset(root, ordered, tuple(item for item in classes if item.name in present), layout)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile lies: in which class's folder, in which split, and whether in a folder of cropped cells."""

    path: Path
    folder: Path
    split: Split | None
    cropped: bool


class _Folders:
    """One reading of a folder without a manifest."""

    def __init__(self, root: Path, classes: Sequence[TileClass], *, follow_links: bool) -> None:
        self._root, self._classes = root, classes
        self._labels = {name.lower(): item.name for item in classes for name in (item.name, item.display_name)}
        walk = Walk(root, follow_links=follow_links)
        try:
            paths = [Path(os.fsdecode(name)) for name, *_ in walk]
        except ListingError as error:
            raise DatasetError(f"{root}: {str(error).partition(';')[0]}") from error
        self._masks = masks_among(paths, class_folders=self._labels)
        self._files = [path for path in paths if path not in self._masks]
        self._ignored: Mapping[str, int] = walk.ignored

    def read(self) -> tuple[str, list[LabelledTile]]:
        """What the layout is, for people, and its tiles.

        Raises:
            DatasetError: as `read_dataset`.
        """
        by_split = self._tops_are_splits()
        places = [place for path in self._files if (place := _place(path, by_split=by_split))]
        if not places:
            raise DatasetError(f"{self._root} holds {self._no_tiles()}")
        with_cells = {place.folder for place in places if place.cropped}
        tiles = [place for place in places if place.cropped or place.folder not in with_cells]
        labelled = [LabelledTile(place.path, self._label(place.folder), split=place.split) for place in tiles]
        self._say_what_is_left_out(places, tiles)
        self._name_empty_folders({place.folder for place in places}, by_split=by_split)
        return _layout(tiles, by_split=by_split), labelled

    def _tops_are_splits(self) -> bool:
        """Whether the folders at the top are splits.

        Raises:
            DatasetError: some are, and others hold tiles too.
        """
        tiles = Counter(path.parts[0] for path in self._files if len(path.parts) > 1)
        splits = sorted(name for name in tiles if name.lower() in _SPLIT_FOLDERS)
        strays = sorted(tiles.keys() - set(splits))
        if splits and strays:
            raise DatasetError(
                f"{self._root} has {', '.join(f'{name}/' for name in splits)}, and beside them tiles of no split: "
                f"{', '.join(f'{tiles[name]} in {name}/' for name in strays)}; put those into a split, or elsewhere"
            )
        return bool(splits)

    def _label(self, folder: Path) -> str:
        label = self._labels.get(folder.name.lower().removeprefix("im_"))
        if label is None:
            known = ", ".join(item.name for item in self._classes)
            raise DatasetError(
                f"unknown class {folder.name!r} in {self._root / folder.parent}: expected one of {known}; "
                "other classes can be described with --classes FILE"
            )
        return label

    def _no_tiles(self) -> str:
        """What there is where there is no tile of a class."""
        if self._files:
            return "tiles, but no folder per class: expected one folder of tiles per class, or manifest.csv"
        found = ", only ".join(["no tiles", *filter(None, [ignored_words(self._ignored)])])
        hint = "; --follow-links follows links" if "link" in self._ignored else ""
        return f"{found}: expected one folder of tiles per class, or manifest.csv{hint}"

    def _say_what_is_left_out(self, places: Sequence[_Place], tiles: Sequence[_Place]) -> None:
        placed = {place.path for place in places}
        _name_some(self._masks, "mask is left out", "masks are left out")
        _name_some(
            set(self._files) - placed,
            "tile is left out, which lies in no class's folder",
            "tiles are left out, which lie in no class's folder",
        )
        fields = len(placed) - len(tiles)
        if fields:
            words = counted(fields, "whole field, which lies", "whole fields, which lie")
            log.info("%s beside CROPPED, %s left out", words, agreeing(fields, "is", "are"))
        if self._ignored:
            hint = "; --follow-links follows links" if "link" in self._ignored else ""
            log.info("passed over: %s%s", ignored_words(self._ignored), hint)

    def _name_empty_folders(self, used: set[Path], *, by_split: bool) -> None:
        """Say which folders, where splits or classes would be, hold no tile."""
        tops = _subfolders(self._root)
        expected = [*tops, *(inner for top in tops for inner in _subfolders(top))] if by_split else tops
        entered = used | {path.parent for path in used}
        empty = [path.relative_to(self._root) for path in expected if path.relative_to(self._root) not in entered]
        if empty := [path for path in empty if path.name.lower() not in MASK_FOLDERS]:
            log.warning("no tiles are in %s", ", ".join(f"{path.as_posix()}/" for path in empty))


def _place(path: Path, *, by_split: bool) -> _Place | None:
    """None where the tile lies in no class's folder."""
    depth = 2 if by_split else 1
    folders, inner = path.parts[:-1], path.parts[depth:-1]
    if len(folders) < depth:
        return None
    splits = (_SPLIT_FOLDERS.get(name.lower()) for name in (folders[:1] if by_split else inner))
    return _Place(path, Path(*folders[:depth]), next(filter(None, splits), None), cropped="CROPPED" in inner)


def _layout(tiles: Sequence[_Place], *, by_split: bool) -> str:
    """In words."""
    if by_split:
        return "split folders, each with one folder per class"
    inner = "cells in CROPPED" if any(place.cropped for place in tiles) else ""
    splits = "with split folders" if any(place.split for place in tiles) else ""
    return ", ".join(filter(None, ["one folder per class", splits, inner]))


def _name_some(paths: Collection[Path], one: str, several: str) -> None:
    """Say how many there are, and name the first."""
    if paths:
        log.warning("%s, such as %s", counted(len(paths), one, several), min(paths).as_posix())


def _subfolders(folder: Path) -> list[Path]:
    """Those that could hold tiles: no hidden ones, nor what file servers and systems put there."""
    found = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(
        entry
        for entry in found
        if not entry.name.startswith(".") and os.fsencode(entry.name).lower() not in SYSTEM_FOLDERS
    )
