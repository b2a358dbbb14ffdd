"""Calibration tiles: some of the training tiles, encoded, inside every bundle; INT8 ranges are observed on them.

They are never tiles that a certificate is measured on, else an INT8 graph would be judged by what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import ContractError, TileError
from cervix_engine.files import write_json
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels

SCHEMA = "cervix/calibration-tiles/1"
INDEX = "calibration/tiles.json"
# INT8 moved a ResNet-101's probabilities of 1,130 tiles by 0.0091 (root mean square) with 96, by 0.0082 with these.
COUNT = 256


def write_calibration_tiles(root: Path, encoded: Mapping[str, bytes], *, seed: int) -> None:
    """Write calibration tiles and their index into the bundle folder `root`, which the caller then seals.

    Args:
        root: the bundle's folder.
        encoded: the tiles' files, byte for byte, by their path in the data set.
        seed: what they were chosen with.
    """
    (root / "calibration").mkdir(parents=True, exist_ok=True)
    tiles = []
    for number, (source, data) in enumerate(encoded.items()):
        file = f"calibration/{number:05d}.tile"
        (root / file).write_bytes(data)
        tiles.append({"file": file, "source": source})
    write_json(root / INDEX, {"schema": SCHEMA, "seed": seed, "tiles": tiles})


@dataclass(frozen=True, slots=True)
class CalibrationTile:
    """One of a bundle's calibration tiles: its encoded file in the bundle, and its path in the data set."""

    file: str
    source: str


def calibration_tiles(bundle: Bundle) -> tuple[CalibrationTile, ...]:
    """Those of a bundle; none where it has no index of them.

    Raises:
        ContractError: the index is malformed.
    """
    if INDEX not in bundle:
        return ()
    data = bundle.read_json(INDEX, schema=SCHEMA)
    try:
        return tuple(CalibrationTile(str(tile["file"]), str(tile["source"])) for tile in data["tiles"])
    except (KeyError, TypeError) as error:
        raise ContractError(f"{INDEX} is malformed: {error}") from error


def calibration_pixels(bundle: Bundle) -> Pixels:
    """The calibration tiles, preprocessed: `uint8 (N, height, width, 3)`.

    Raises:
        ContractError: the bundle has none, or one cannot be decoded here.
    """
    if INDEX not in bundle:
        raise ContractError(
            f"{bundle.root} has no calibration tiles, which INT8 needs: train again with cervix-train, or "
            "import again with --calibration"
        )
    return np.stack([_pixels(bundle, tile) for tile in calibration_tiles(bundle)])


def _pixels(bundle: Bundle, tile: CalibrationTile) -> Pixels:
    try:
        return preprocess(bundle.read(tile.file), contract=bundle.contract)
    except TileError as error:
        raise ContractError(f"{tile.file} cannot be decoded on this machine: {error}") from error
