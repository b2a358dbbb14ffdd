"""The tiles that parity is measured on, as the engine's own stream receives them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cervix_engine.backends.fake import FakeBackend
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.run.stream.slot import TileBatch
from cervix_engine.run.stream.stats import StreamStats
from cervix_engine.run.stream.steps import TileSteps
from cervix_engine.run.stream.stream import TILE_STEPS, StreamSettings, stream
from cervix_engine.tiles.csv_input import read_csv
from cervix_engine.tiles.sources.folder import Folder
from cervix_engine.tiles.tile import TileFailure, TileRef
from cervix_engine.values import Pixels, Probabilities

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ParityTiles:
    """Tiles to measure on.

    Attributes:
        root: the folder that `paths` are relative to.
        paths: their files.
        labels: true classes by their place in the contract, -1 where unknown; `intp (N,)`.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Labels


@dataclass(frozen=True, slots=True)
class Received:
    """What the engine's inference stage receives.

    Attributes:
        pixels: `uint8 (N, height, width, 3)`; zeros where a tile failed.
        failures: why a tile has none, by its place.
    """

    pixels: Pixels
    failures: dict[int, TileFailure]


def golden_tiles(golden: GoldenSet) -> ParityTiles:
    """The bundle's own tiles."""
    labels = _labels([tile.label for tile in golden.tiles], golden.bundle.contract)
    return ParityTiles(golden.bundle.root, tuple(tile.file for tile in golden.tiles), labels)


def manifest_tiles(manifest: Path, *, splits: Collection[str], contract: ModelContract) -> ParityTiles:
    """The tiles of a manifest with the columns `path,label[,split]`, paths relative to it.

    Args:
        manifest: a CSV file.
        splits: take only tiles of these; all where it is empty.
        contract: which classes there are.

    Raises:
        UsageError: it cannot be read, lacks a column, names a class or split that is not there, or a path outside
            its folder.
    """
    rows = read_csv(manifest, ("path", "label", *(["split"] if splits else [])), any_bytes=True)
    chosen = [(line, row) for line, row in rows if not splits or row["split"] in splits]
    missing = set(splits) - {row.get("split") for _, row in chosen}
    if missing or not chosen:
        raise UsageError(f"{manifest} has no tiles{' of the split ' + ', '.join(sorted(missing)) if missing else ''}")
    known = ", ".join(contract.class_names)
    for line, row in chosen:
        path = PurePosixPath(row["path"])
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{manifest}, line {line}: a path outside of its folder: {row['path']!r}")
        if row["label"] not in contract.class_names:
            raise UsageError(f"{manifest}, line {line}: unknown class {row['label']!r}; known: {known}")
    labels = _labels([row["label"] for _, row in chosen], contract)
    return ParityTiles(manifest.parent, tuple(row["path"] for _, row in chosen), labels)


def received(
    tiles: ParityTiles, *, contract: ModelContract, batch_size: int, steps: TileSteps = TILE_STEPS
) -> Received:
    """Send tiles through the engine's stream, in these steps, to a backend that only keeps what it is given."""
    recorder = _Recorder(classes=len(contract.classes))
    refs = [TileRef(index, path) for index, path in enumerate(tiles.paths)]
    starts = range(0, len(refs), batch_size)
    batches = [TileBatch(k, tuple(refs[start : start + batch_size])) for k, start in enumerate(starts)]
    settings = StreamSettings(Folder(tiles.root), contract, batch_size)
    results = list(stream(batches, backend=recorder, settings=settings, stats=StreamStats(), steps=steps))
    outcomes = [outcome for result in results for outcome in result.outcomes]
    failures = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, TileFailure)}
    return Received(np.concatenate(recorder.batches)[: len(refs)], failures)


class _Recorder(FakeBackend):
    """Keeps a copy of every batch: slots are used again."""

    def __init__(self, *, classes: int) -> None:
        super().__init__(classes=classes)
        self.batches: list[Pixels] = []

    def infer(self, pixels: Pixels) -> Probabilities:
        self.batches.append(pixels.copy())
        return super().infer(pixels)


def _labels(names: Sequence[str | None], contract: ModelContract) -> Labels:
    places = {name: place for place, name in enumerate(contract.class_names)}
    return np.array([places.get(name or "", -1) for name in names], np.intp)
