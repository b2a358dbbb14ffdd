"""Runs the whole Keras model over tile files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cervix_engine.contract import ModelContract
from cervix_engine.tiles.tile import TileFailure
from cervix_keras.start import KerasModel
from cervix_train.data.tiles import tile_batches
from cervix_train.progress import meter


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says of a list of tiles.

    Attributes:
        indices: where each answered tile stands in the list.
        probabilities: `float32 (N, classes)`, in the same order.
        failures: why the others have no answer, by their place in the list.
    """

    indices: tuple[int, ...]
    probabilities: npt.NDArray[np.float32]
    failures: dict[int, TileFailure]


def predict(
    model: KerasModel, paths: Sequence[Path], *, contract: ModelContract, batch_size: int, what: str
) -> Answers:
    """Decode and predict all tiles, in order; `what` names the pass in the progress display."""
    failures: dict[int, TileFailure] = {}
    indices: list[int] = []
    answers: list[npt.NDArray[np.float32]] = []
    with meter(what, total=len(paths)) as advance:
        for batch in tile_batches(paths, contract=contract, batch_size=batch_size, failures=failures):
            answers.append(np.asarray(model.predict_on_batch(batch.pixels)[: len(batch)], np.float32))
            indices.extend(batch.indices)
            advance(len(batch))
        advance(len(failures))
    empty = np.empty((0, len(contract.classes)), np.float32)
    return Answers(tuple(indices), np.concatenate([empty, *answers]), failures)
