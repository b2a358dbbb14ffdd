"""The tiles that an import is checked on: their bytes, and what is known of their classes and answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cervix_engine.bundle.golden import TARGET_COUNT
from cervix_engine.contract import ModelContract
from cervix_engine.errors import TileError, UsageError
from cervix_engine.tiles.csv_input import read_csv
from cervix_engine.tiles.preprocess import preprocess, read_tile
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.values import Pixels

_SEED = 0


@dataclass(frozen=True, slots=True)
class GivenTile:
    """One tile.

    Attributes:
        path: relative to what was named.
        data: its file.
        label: its true class, None where nobody says.
        expected: the answer that another pipeline gave, one probability a class; None where there is none.
    """

    path: str
    data: bytes
    label: str | None = None
    expected: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What a CSV file says of a tile."""

    label: str | None
    expected: tuple[float, ...] | None


def read_given(golden: Path, expected: Path | None, *, contract: ModelContract) -> list[GivenTile]:
    """At most `TARGET_COUNT` tiles, in random order, those with known answers first.

    Args:
        golden: a folder of tiles, or a CSV file `path[,label][,prob_<class>…]` beside them.
        expected: a CSV file of the same form, by the paths relative to `golden`; None where there is none.
        contract: which classes there are.

    Raises:
        UsageError: there are no tiles, one cannot be read, or a CSV file cannot be used.
    """
    known = read_known(expected, contract) if expected else {}
    if golden.is_dir():
        root, paths = golden, [os.fsdecode(name) for name, *_ in Folder(golden).walk()]
    else:
        root, listed = golden.parent, read_known(golden, contract)
        paths, known = list(listed), {**listed, **known}
    if not paths:
        raise UsageError(f"no tiles in {golden}")
    if strangers := sorted(known.keys() - set(paths)):
        raise UsageError(f"{expected}: no such tile in {golden}: {strangers[0]!r}")
    nothing = Known(None, None)
    shuffled = np.random.default_rng(_SEED).permutation(sorted(paths)).tolist()
    shuffled.sort(key=lambda path: known.get(path, nothing).expected is None)
    chosen = shuffled[:TARGET_COUNT]
    return [
        GivenTile(path, _read(root, path), known.get(path, nothing).label, known.get(path, nothing).expected)
        for path in chosen
    ]


def read_known(path: Path, contract: ModelContract) -> dict[str, Known]:
    """Labels and answers by tile, from a CSV file `path[,label][,prob_<class>…]`; a table of cervix-batch is one too.

    Raises:
        UsageError: it cannot be read, names a class that the contract does not, or holds what is no probability.
    """
    columns = [f"prob_{name}" for name in contract.class_names]
    found: dict[str, Known] = {}
    for line, row in read_csv(path, ("path",), ("label", *columns), ignored=None, same=_normal):
        if not set(columns) <= row.keys() and set(columns) & row.keys():
            missing = sorted(set(columns) - row.keys())
            raise UsageError(f"{path}, line 1: no column {missing[0]}: expected {', '.join(columns)}")
        if (label := row.get("label") or None) is not None and label not in contract.class_names:
            known = ", ".join(contract.class_names)
            raise UsageError(f"{path}, line {line}: unknown class {label!r}, expected one of {known}")
        found[_normal(row["path"])] = Known(label, _probabilities(path, line, [row.get(name, "") for name in columns]))
    return found


def read_folder(folder: Path, *, count: int) -> dict[str, bytes]:
    """At most `count` tiles of a folder, drawn at random, by their path.

    Raises:
        UsageError: there are none, or one cannot be read.
    """
    paths = sorted(os.fsdecode(name) for name, *_ in Folder(folder).walk())
    if not paths:
        raise UsageError(f"no tiles in {folder}")
    drawn = np.random.default_rng(_SEED).permutation(paths).tolist()[:count]
    return {path: _read(folder, path) for path in drawn}


def pixels_of(tiles: Sequence[GivenTile], *, contract: ModelContract) -> Pixels:
    """The tiles' preprocessed pixels, `uint8 (N, height, width, 3)`.

    Raises:
        UsageError: one cannot be decoded.
    """
    pixels = []
    for tile in tiles:
        try:
            pixels.append(preprocess(tile.data, contract=contract))
        except TileError as error:
            raise UsageError(f"{tile.path} cannot be a golden tile: {error}") from error
    return np.stack(pixels)


def _normal(path: str) -> str:
    return PurePosixPath(path).as_posix()


def _probabilities(path: Path, line: int, cells: Sequence[str]) -> tuple[float, ...] | None:
    if not any(cells):
        return None
    try:
        values = tuple(map(float, cells))
    except ValueError as error:
        raise UsageError(f"{path}, line {line}: a probability is no number ({error})") from error
    # Written with few digits, they need not add up to 1 exactly.
    if not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 0.01:
        raise UsageError(f"{path}, line {line}: probabilities {values}: expected numbers from 0 to 1 that add up to 1")
    return values


def _read(root: Path, path: str) -> bytes:
    if Path(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UsageError(f"a path outside of its folder: {path!r}")
    try:
        return read_tile(root / path)
    except TileError as error:
        raise UsageError(f"{path} cannot be a golden tile: {error}") from error
