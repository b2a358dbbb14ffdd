"""The whole of a training, step by step: from labelled tiles to a sealed bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.contract import ModelContract, TileClass
from cervix_train.batchnorm import reestimate
from cervix_train.calibration import SCHEMA as CALIBRATION
from cervix_train.calibration import Logits, before_and_after, fit_temperature, fold_temperature, logits_of, softmax
from cervix_train.dataset import SPLITS, Dataset, Split, check_trainable, log_failures
from cervix_train.features import FeatureSet, compute_features
from cervix_train.fit import History, fit_head
from cervix_train.intervals import bootstrap_weights
from cervix_train.keras_runtime import KerasModel, load_keras
from cervix_train.layouts import read_dataset
from cervix_train.metrics import measure
from cervix_train.network import Backbone, Weights, build_extractor, build_head, join
from cervix_train.output_folder import check_output, whole_folder
from cervix_train.parts import Part, split_parts
from cervix_train.progress import meter
from cervix_train.reference import Reference, tile_statistics, write_reference
from cervix_train.splits import assign_splits
from cervix_train.tiles import tile_batches

log = logging.getLogger(__name__)

# Enough for stable batch-norm statistics: they are averages over every position of every tile.
NORM_TILES = 1024


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What was asked for.

    Attributes:
        data: a folder or a manifest.
        out: where the bundle goes.
        classes: the classes that may occur, in output order.
        input_size: (height, width) in pixels.
        cache: folder of the feature stores.
        overwrite: whether a bundle at `out` may be replaced.
    """

    data: Path
    out: Path
    classes: Sequence[TileClass]
    backbone: Backbone
    weights: Weights
    input_size: tuple[int, int]
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    cache: Path
    overwrite: bool


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What happened: the test split's metrics, the history, and how many tiles were computed or left out."""

    metrics: dict[str, Any]
    history: History
    computed: int
    left_out: int


def train(config: TrainConfig) -> TrainReport:
    """Train a model and write its bundle.

    Raises:
        CervixError: an input or the output cannot be used; nothing is then left at `config.out`.
    """
    check_output(config.out, overwrite=config.overwrite)
    dataset = read_dataset(config.data, classes=config.classes)
    check_trainable(dataset)
    dataset = assign_splits(dataset, seed=config.seed)
    _log_dataset(dataset)
    contract = ModelContract(classes=dataset.classes, input_size=config.input_size)

    load_keras(seed=config.seed)
    extractor = _extractor(config, dataset, contract)
    features = _features(config, dataset, extractor=extractor, contract=contract)
    parts = split_parts(dataset, features)
    head = build_head(features=features.vectors.shape[1], classes=len(dataset.classes))
    with whole_folder(config.out, overwrite=config.overwrite) as folder:
        history = _fit(config, head, parts, folder=folder)
        logits: dict[Split, Logits] = {
            split: logits_of(head, parts[split].labelled.vectors) for split in ("val", "test")
        }
        temperature = fit_temperature(logits["val"], parts["val"].labelled.targets)
        fold_temperature(head, temperature)
        reference = Reference(
            model=join(extractor, head),
            contract=replace(contract, temperature=temperature, tile_statistics=_statistics(dataset, features)),
            dataset=dataset,
            failures=features.failures,
            history=history,
            metrics=_test_metrics(
                logits["test"] / temperature, parts["test"], dataset=dataset, failures=features.failures
            ),
            calibration=_calibration(logits, parts, temperature),
        )
        write_reference(folder, reference, seed=config.seed, batch_size=config.batch_size)
    return TrainReport(reference.metrics, history, features.computed, len(features.failures))


def _extractor(config: TrainConfig, dataset: Dataset, contract: ModelContract) -> KerasModel:
    extractor = build_extractor(config.backbone, input_size=config.input_size, weights=config.weights)
    if config.weights == "none":
        paths = [dataset.root / tile.path for tile in dataset.tiles if tile.split == "train"]
        chosen = np.random.default_rng(config.seed).permutation(len(paths))[:NORM_TILES]
        with meter("batch-norm statistics", total=len(chosen)) as advance:
            batches = tile_batches(
                [paths[index] for index in chosen], contract=contract, batch_size=config.batch_size, failures={}
            )
            reestimate(extractor, (batch.pixels[: len(batch)] for batch in batches), advance=advance)
    extractor.trainable = False
    return extractor


def _features(config: TrainConfig, dataset: Dataset, *, extractor: KerasModel, contract: ModelContract) -> FeatureSet:
    with meter("features", total=len(dataset.tiles)) as advance:
        features = compute_features(
            [dataset.root / tile.path for tile in dataset.tiles],
            extractor=extractor,
            contract=contract,
            cache=config.cache,
            batch_size=config.batch_size,
            advance=advance,
        )
    log.info("features: %d computed, %d from the cache", features.computed, len(features.indices) - features.computed)
    log_failures(dataset.tiles, features.failures)
    return features


def _fit(config: TrainConfig, head: KerasModel, parts: dict[Split, Part], *, folder: Path) -> History:
    training = folder / "training"
    training.mkdir()
    history = fit_head(
        head,
        train=parts["train"].labelled,
        val=parts["val"].labelled,
        checkpoint=training / "head.weights.h5",
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    log.info("kept epoch %d of %d", history.best_epoch, history.epochs)
    return history


def _test_metrics(logits: Logits, test: Part, *, dataset: Dataset, failures: dict[int, Any]) -> dict[str, Any]:
    failed = sum(dataset.tiles[index].split == "test" for index in failures)
    return measure(
        softmax(logits).astype(np.float32),
        test.labelled.targets,
        classes=dataset.classes,
        split="test",
        failed=failed,
        groups=test.groups,
    )


def _calibration(logits: dict[Split, Logits], parts: dict[Split, Part], temperature: float) -> dict[str, Any]:
    measured: dict[str, Any] = {
        split: before_and_after(
            logits[split],
            parts[split].labelled.targets,
            temperature=temperature,
            weights=bootstrap_weights(parts[split].groups),
        )
        for split in logits
    }
    before, after = (measured["val"][when]["nll"] for when in ("before", "after"))
    log.info("temperature %.3f: validation NLL %.4f before, %.4f after", temperature, before, after)
    return {"schema": CALIBRATION, "temperature": temperature, **measured}


def _statistics(dataset: Dataset, features: FeatureSet) -> tuple[Any, ...]:
    members = [place for place, index in enumerate(features.indices) if dataset.tiles[index].split == "train"]
    return tile_statistics([features.sizes[place] for place in members], features.mean_rgb[members])


def _log_dataset(dataset: Dataset) -> None:
    counts = {split: sum(tile.split == split for tile in dataset.tiles) for split in SPLITS}
    names = ", ".join(item.name for item in dataset.classes)
    log.info("%d tiles of %d classes (%s)", len(dataset.tiles), len(dataset.classes), names)
    log.info("train %d, val %d, test %d", counts["train"], counts["val"], counts["test"])
