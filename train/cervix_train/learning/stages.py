"""The stages of a training: the head on frozen features, then fine-tuning the last layers on pixels; or all at once.

The better of the two by validation loss is kept, whichever it is: at a rate of 1e-5, fine-tuning may well do harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.files import sha256_bytes
from cervix_engine.tiles.preprocess import preprocess, read_tile
from cervix_engine.values import Pixels
from cervix_engine.words import counted
from cervix_keras.start import KerasModel, load_keras
from cervix_train.data.augment import Variant
from cervix_train.data.dataset import HELD_OUT, Split
from cervix_train.learning.batches import Inputs, Labelled, LabelledInputs
from cervix_train.learning.fit import History, Resumable, fit
from cervix_train.learning.fit_setup import FitConfig
from cervix_train.learning.mixed import mixed_precision
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.learning.temperature import Logits, logits_of, nll, softmax

log = logging.getLogger(__name__)

# A split -> what is learnt from it, or measured on it.
LabelledSplits = Callable[[Split], Labelled]


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage reached.

    Attributes:
        name: for people.
        file: the stem of its files in `training/`.
        logits: `float64 (N, classes)` of the tiles of `val` and `test`, computed in FP32.
        val_loss: of these logits.
    """

    name: str
    file: str
    history: History
    logits: dict[Split, Logits]
    val_loss: float


@dataclass(frozen=True, slots=True)
class Trainable:
    """What a stage works on.

    Attributes:
        model: raw pixels to probabilities; its last layers are those of `head`.
        head: features to probabilities.
        tiles: those that are learnt from or measured on.
        paths: the file of every tile of the data set, whatever its split.
    """

    model: KerasModel
    head: KerasModel
    tiles: dict[Split, SplitTiles]
    paths: Sequence[Path]
    contract: ModelContract


def train_head(given: Trainable, *, checkpoint: Path, config: FitConfig, resumable: Resumable | None) -> Stage:
    """Train the head on features that were computed once."""

    def labelled(split: Split) -> Labelled:
        return given.tiles[split].labelled

    return _stage(given, given.head, labelled, Names("head", checkpoint), config=config, resumable=resumable)


def fine_tune(
    given: Trainable, *, share: float, checkpoint: Path, config: FitConfig, resumable: Resumable | None, mixed: bool
) -> Stage:
    """Train the head and the last `share` of the backbone's layers on pixels, which are decoded in every epoch."""
    thaw(given.model, share=share)
    names = Names(f"fine-tuning, {share:.0%} of the layers", checkpoint)
    return _stage(given, given.model, _pixels_of(given), names, config=config, resumable=resumable, mixed=mixed)


def train_whole(
    given: Trainable, *, checkpoint: Path, config: FitConfig, resumable: Resumable | None, mixed: bool
) -> Stage:
    """Train every layer on pixels, batch norms and their statistics included, as from scratch."""
    _unfrozen(given.model)
    names = Names("all layers", checkpoint)
    return _stage(given, given.model, _pixels_of(given), names, config=config, resumable=resumable, mixed=mixed)


def _pixels_of(given: Trainable) -> LabelledSplits:
    def labelled(split: Split) -> Labelled:
        tiles = given.tiles[split]
        paths = [given.paths[index] for index in tiles.indices]
        inputs = pixel_inputs(paths, contract=given.contract, variants=tiles.variants)
        return LabelledInputs(inputs, tiles.labelled.targets)

    return labelled


def thaw(model: KerasModel, *, share: float) -> None:
    """Let the last `share` of the backbone's layers learn, and the head.

    Batch norms stay as they are, statistics and scales: statistics of batches of 32 would undo what the
    pre-training found (Keras's guide to transfer learning, "fine-tuning").
    """
    norm = load_keras().layers.BatchNormalization
    layers = _unfrozen(model)
    frozen = round((1 - share) * len(layers))
    for number, layer in enumerate(layers):
        layer.trainable = number >= frozen and not isinstance(layer, norm)


def _unfrozen(model: KerasModel) -> list[Any]:
    """Let everything learn; gives the backbone's layers, whose own settings Keras leaves as they are."""
    model.trainable = True
    body = next(layer for layer in model.layers if hasattr(layer, "layers"))
    for layer in body.layers:
        layer.trainable = True
    return list(body.layers)


def pixel_inputs(
    paths: Sequence[Path], *, contract: ModelContract, variants: Sequence[Variant] | None = None
) -> Inputs:
    """A function from indices into `paths` to `uint8 (N, height, width, 3)` pixels.

    Args:
        paths: the tiles' files.
        contract: how they are decoded and resized.
        variants: how each is altered; None leaves all as they are.
    """

    def pixels(index: int) -> Pixels:
        data = read_tile(paths[index])
        whole = preprocess(data, contract=contract)
        return variants[index].apply(whole, digest=sha256_bytes(data)) if variants else whole

    return lambda indices: np.stack([pixels(index) for index in indices])


@dataclass(frozen=True, slots=True)
class Names:
    """What a stage is called, and where its best weights lie."""

    stage: str
    checkpoint: Path


def _stage(
    given: Trainable,
    model: KerasModel,
    labelled: LabelledSplits,
    names: Names,
    *,
    config: FitConfig,
    resumable: Resumable | None,
    mixed: bool = False,
) -> Stage:
    learnt = len(given.tiles["train"].indices)
    most = counted(config.epochs, "epoch")
    log.info("%s: learning from %s, for at most %s", names.stage, counted(learnt, "tile"), most)
    with mixed_precision(model, wanted=mixed):
        history = fit(
            model,
            train=labelled("train"),
            val=labelled("val"),
            checkpoint=names.checkpoint,
            config=config,
            resumable=resumable,
        )
    log.info("%s: kept epoch %d of %d", names.stage, history.best_epoch, history.epochs)
    logits = {
        split: logits_of(
            model, labelled(split).inputs, tiles=len(given.tiles[split].indices), batch_size=config.batch_size
        )
        for split in HELD_OUT
    }
    val_loss = nll(softmax(logits["val"]), given.tiles["val"].labelled.targets)
    return Stage(names.stage, names.checkpoint.name.removesuffix(".weights.h5"), history, logits, val_loss)
