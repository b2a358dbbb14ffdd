"""What a bundle keeps of its tiles so that runs can be compared with them: measured here, made into panels there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import ModelContract
from cervix_engine.drift.calibrate import FEWEST_GROUPS, FEWEST_TILES, enough, make_panel, make_pixel_panels
from cervix_engine.drift.changes import measure_changed
from cervix_engine.drift.measures import ANSWER, PIXELS, measure_answers, measure_image
from cervix_engine.drift.reference import DriftReference, Panel
from cervix_engine.tiles.preprocess import decode, read_tile
from cervix_engine.tiles.tile import TileFailure
from cervix_engine.values import Pixels, Probabilities
from cervix_train.data.dataset import Dataset, Split
from cervix_train.data.splits import group_of
from cervix_train.data.tiles import tile_batches
from cervix_train.learning.split_tiles import SplitTiles

log = logging.getLogger(__name__)

# More change no limit by a hundredth, and each has to be decoded once more.
MOST_TILES = 4096
_BATCH = 64


def drift_of(
    dataset: Dataset,
    tiles: Mapping[Split, SplitTiles],
    answers: Probabilities,
    *,
    contract: ModelContract,
    seed: int,
) -> DriftReference | None:
    """The reference of a training; None, and a line in the log, where its tiles are too few to say what is usual.

    Args:
        dataset: all tiles.
        tiles: those of training and validation, or all as `val` where folds were held out in turn.
        answers: of the network to `tiles["val"]`, which it did not learn from, `float32 (N, classes)`.
        contract: of the model.
        seed: of what is drawn.
    """
    seen = {int(index) for split, part in tiles.items() if split != "test" for index in part.indices}
    panels = _pixel_panels(dataset, _whole_groups(dataset, sorted(seen), seed=seed), contract=contract, seed=seed)
    if panels is None:
        log.warning(
            "drift of runs will not be watched: that takes %d training and validation tiles of %d groups, such as the "
            "fields or slides that a manifest names",
            FEWEST_TILES,
            FEWEST_GROUPS,
        )
        return None
    images, colours = panels
    return DriftReference(images, _answer_panel(tiles["val"].groups, answers, contract=contract, seed=seed), colours)


def _whole_groups(dataset: Dataset, seen: Sequence[int], *, seed: int) -> list[int]:
    """At most about `MOST_TILES`, of groups taken at random."""
    members: dict[str, list[int]] = {}
    for index in seen:
        members.setdefault(group_of(dataset.tiles[index]), []).append(index)
    chosen: list[int] = []
    for at in np.random.default_rng(seed).permutation(len(members)):
        if len(chosen) >= MOST_TILES:
            break
        chosen += list(members.values())[at]
    return sorted(chosen)


def _pixel_panels(
    dataset: Dataset, indices: Sequence[int], *, contract: ModelContract, seed: int
) -> tuple[Panel, Panel] | None:
    """Of what tiles look like, and of known changes of colour."""
    given = [dataset.tiles[index] for index in indices]
    values, at = measured([dataset.root / tile.path for tile in given], contract=contract)
    tiles = [given[place] for place in at]
    groups = [group_of(tile) for tile in tiles]
    if not enough(groups):
        return None

    def decoded(number: int) -> Pixels:
        return decode(read_tile(dataset.root / tiles[number].path), contract=contract)

    changed = measure_changed(decoded, len(tiles), contract=contract, seed=seed)
    classes = np.array([contract.class_names.index(tile.label) for tile in tiles], np.intp)
    return make_pixel_panels(values, classes, groups, changed=changed, class_count=len(contract.classes), seed=seed)


def measured(paths: Sequence[Path], *, contract: ModelContract) -> tuple[npt.NDArray[np.float64], list[int]]:
    """The measures `PIXELS` of tiles, and which of the paths could be decoded."""
    failures: dict[int, TileFailure] = {}
    rows: list[tuple[float, ...]] = []
    at: list[int] = []
    for batch in tile_batches(paths, contract=contract, batch_size=_BATCH, failures=failures):
        at += batch.indices
        rows += [
            measure_image(pixels, height=size.height, width=size.width)
            for pixels, size in zip(batch.pixels, batch.sizes, strict=False)
        ]
    return np.array(rows, np.float64).reshape(-1, len(PIXELS)), at


def _answer_panel(
    groups: Sequence[str], probabilities: Probabilities, *, contract: ModelContract, seed: int
) -> Panel | None:
    if not enough(groups):
        return None
    return make_panel(
        [measure.name for measure in ANSWER],
        measure_answers(probabilities),
        probabilities.argmax(axis=1),
        groups,
        class_count=len(contract.classes),
        seed=seed,
    )
