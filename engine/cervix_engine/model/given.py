"""What is handed in at the door for Python, checked there: anything else is a UsageError that says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.run.assembly.part import Part
from cervix_engine.run.budget import FailureBudget
from cervix_engine.run.config import RunOptions
from cervix_engine.tiles.slides.grid import GridRules
from cervix_engine.values import Pixels

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def path_text(name: object, *, what: str) -> str:
    """A path as text, from whatever Python takes for one.

    Raises:
        UsageError: it is none.
    """
    try:
        return os.fsdecode(name)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{what} is {_a(name)}: pass a path, as text or a pathlib.Path") from error


def path_texts(paths: object) -> list[str]:
    """Paths as text.

    Raises:
        UsageError: one is none, or there is no list of them.
    """
    if isinstance(paths, str | bytes | os.PathLike) or not isinstance(paths, Iterable):
        raise UsageError(f"the paths are {_a(paths)}: pass a list of paths, model.predict_files([path])")
    names = [path_text(path, what=f"path {at}") for at, path in enumerate(paths)]
    if not names:
        raise UsageError("no files: pass at least one path")
    return names


def plain_number(number: Any) -> Any:
    """A whole number of numpy's as one of Python's; anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def run_options(options: RunOptions) -> dict[str, Any]:
    """Options of a run, where they were written as the command line writes them, as `BatchConfig` takes them.

    Raises:
        UsageError: one cannot be read so.
    """
    read: dict[str, Any] = dict(options)
    for name in ("coords", "slide", "previews"):
        if read.get(name) is not None:
            read[name] = path_text(read[name], what=name)
    if read.get("previews") is not None:
        read["previews"] = Path(read["previews"])
    if "workers" in read:
        read["workers"] = plain_number(read["workers"])
    if "budget" in read:
        read["budget"] = _budget(plain_number(read["budget"]))
    if isinstance(read.get("shard"), str):
        read["shard"] = Part.parse(read["shard"])
    for name, kind, example in (
        ("grid", GridRules, "GridRules(tile_px=224, mpp=0.5), from cervix_engine.tiles.slides.grid"),
        ("shard", Part, "'3/8'"),
    ):
        if not isinstance(read.get(name), kind | None):
            raise UsageError(f"{name}={read[name]!r}: expected {example}")
    return read


def _budget(budget: object) -> FailureBudget:
    if isinstance(budget, FailureBudget):
        return budget
    try:
        return FailureBudget.parse(budget if isinstance(budget, str) else str(budget if type(budget) is int else ""))
    except UsageError as error:
        raise UsageError(f"budget={budget!r}: expected a count such as 100, or a share such as '10%'") from error


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def tiles_of(images: object, contract: ModelContract) -> Pixels | list[Pixels]:
    """Images as they are, in a list or one array.

    Raises:
        UsageError: they are no RGB tiles, to which a model would answer all the same.
    """
    tiles: Pixels | list[Pixels]
    if isinstance(images, np.ndarray) and images.ndim:
        tiles = images
    elif isinstance(images, str | bytes | os.PathLike | np.ndarray) or not isinstance(images, Iterable):
        raise UsageError(f"the images are {_a(images)}: pass a list of numpy arrays, uint8 (height, width, 3)")
    else:
        tiles = list(images)
    _require_tiles(tiles, contract)
    return tiles


def _require_tiles(tiles: Pixels | list[Pixels], contract: ModelContract) -> None:
    """Raise UsageError where a model would answer to something that is no RGB tile."""
    if isinstance(tiles, np.ndarray):
        if tiles.ndim == 3:
            raise UsageError(f"one image of shape {tiles.shape}: pass a list, model.predict([image])")
        if tiles.ndim == 4 and tiles.shape[3] == 3 and tiles.shape[1:3] != contract.input_size:
            raise UsageError(
                f"tiles of {tiles.shape[1:3]}, this model takes {contract.input_size}: pass a list, whose arrays are "
                "resized as in training"
            )
    if len(tiles) == 0:
        raise UsageError("no images: pass at least one")
    for at, tile in enumerate(tiles):
        if objection := _objection(tile):
            raise UsageError(f"image {at} {objection}")


def _objection(tile: object) -> str | None:
    if isinstance(tile, np.ma.MaskedArray):
        return "is a masked array, whose mask the model would not see: pass image.filled(255), or image.data"
    if not isinstance(tile, np.ndarray):
        return f"is a {type(tile).__name__}: pass numpy arrays, uint8 (height, width, 3)"
    if tile.dtype != np.uint8:
        return f"is {tile.dtype}: pass uint8 from 0 to 255, as decoded; scaling is inside the model"
    if tile.ndim != 3:
        return f"has the shape {tile.shape}, expected (height, width, 3)"
    if tile.shape[2] == 4:
        return "has 4 channels: pass RGB, without alpha, in this order: image[..., :3] of RGBA, [..., 2::-1] of BGRA"
    if tile.shape[2] != 3 or 0 in tile.shape:
        return f"has the shape {tile.shape}, expected (height, width, 3) and at least one pixel"
    return None
