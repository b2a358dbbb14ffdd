"""Which training tiles a tile is most like in the eyes of the network, among those that the bundle carries.

Tiles are compared by their pooled features, of which only the direction counts, as in cosine similarity. Distances are
in units of what training tiles are from their own nearest: 1 is usual for a tile of the same kind, much more is not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.calibration_tiles import CalibrationTile, calibration_tiles
from cervix_engine.errors import ContractError, TileError, UsageError
from cervix_engine.report.feature_network import FeatureNetwork, Floats, pooled
from cervix_engine.report.pictures import jpeg_uri
from cervix_engine.tiles.preprocess import decode
from cervix_engine.values import Pixels

NEIGHBOURS = 3
# The longer side of a neighbour's picture.
PICTURE_PX = 72

# Which tiles a training learnt from, and their labels; imported bundles have none.
_SPLIT = "training/split.csv"
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training tile that another tile is like.

    Attributes:
        source: its path in the training data.
        label: its class; empty where the bundle does not tell it.
        distance: 0 is the same picture, 1 what training tiles are from their own nearest (the median).
        picture: as a data URI.
    """

    source: str
    label: str
    distance: float
    picture: str


class TrainingTiles:
    """The training tiles that a bundle carries, with their features, which are computed here.

    Attributes:
        carried: how many there are.
        learnt: how many the model learnt from; None where the bundle does not tell it.

    Raises:
        ContractError: one of them cannot be decoded here, or what the bundle says of them is malformed.
    """

    def __init__(self, bundle: Bundle, network: FeatureNetwork) -> None:
        tiles = carried_tiles(bundle)
        labels = _training_labels(bundle)
        self.carried, self.learnt = len(tiles), len(labels) or None
        features: list[Floats] = []
        self._tiles: list[Neighbour] = []
        for first in range(0, len(tiles), _BATCH):
            batch = tiles[first : first + _BATCH]
            pixels = [_decoded(bundle, tile) for tile in batch]
            features.append(pooled(network.features(pixels)))
            for tile, seen in zip(batch, pixels, strict=True):
                label, picture = labels.get(tile.source, ""), jpeg_uri(seen, longest_px=PICTURE_PX)
                self._tiles.append(Neighbour(tile.source, label, 0.0, picture))
        self._directions = _directions(np.concatenate(features))
        self._unit = _usual_distance(self._directions)

    def nearest(self, features: Floats) -> tuple[Neighbour, ...]:
        """The nearest to a tile with this last feature map, `(h, w, features)`; the nearest first."""
        distances = _distances(self._directions, _directions(pooled(features)[None]))[:, 0] / self._unit
        chosen = np.argsort(distances, kind="stable")[:NEIGHBOURS].tolist()
        return tuple(replace(self._tiles[at], distance=float(distances[at])) for at in chosen)


def carried_tiles(bundle: Bundle) -> Sequence[CalibrationTile]:
    """The training tiles that a bundle carries.

    Raises:
        UsageError: there are none to compare with.
    """
    tiles = calibration_tiles(bundle)
    if len(tiles) < NEIGHBOURS:
        raise UsageError(
            f"--similar: {bundle.root} carries no training tiles: bundles of cervix-train do, and those of "
            "cervix-import that were given --calibration"
        )
    return tiles


def _training_labels(bundle: Bundle) -> dict[str, str]:
    """The class of each tile that the model learnt from, by its path in the data set."""
    if _SPLIT not in bundle:
        return {}
    rows: Iterable[dict[str, str]] = csv.DictReader(io.StringIO(bundle.read(_SPLIT).decode("utf-8", "surrogateescape")))
    try:
        return {row["path"]: row["label"] for row in rows if row["split"] == "train" and not row["error"]}
    except (KeyError, csv.Error) as error:
        raise ContractError(f"{_SPLIT} is malformed: {error!r}") from error


def _decoded(bundle: Bundle, tile: CalibrationTile) -> Pixels:
    try:
        return decode(bundle.read(tile.file), contract=bundle.contract)
    except TileError as error:
        raise ContractError(f"{tile.file} cannot be decoded on this machine: {error}") from error


def _directions(features: Floats) -> Floats:
    """Of N tiles' pooled features, `(N, features)`: vectors of length 1, or 0 where there is nothing at all."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)


def _distances(some: Floats, others: Floats) -> Floats:
    """Between each of N and each of M directions, `(N, M)`: the chord, which near 0 is the angle."""
    return np.asarray(np.sqrt((2 - 2 * some @ others.T).clip(0)), np.float32)


def _usual_distance(directions: Floats) -> float:
    """How far a tile is from its nearest other: the median over tiles."""
    distances = _distances(directions, directions)
    np.fill_diagonal(distances, np.inf)
    return max(float(np.median(distances.min(axis=1))), 1e-6)
