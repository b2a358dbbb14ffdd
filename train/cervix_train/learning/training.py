"""The whole of a training, step by step: from labelled tiles to a sealed bundle."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cervix_engine.contract import ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.files import sha256_bytes
from cervix_keras.runtime import KerasModel, load_keras
from cervix_train.audit.near_copies import group_by_look
from cervix_train.data.augment import training_copies
from cervix_train.data.dataset import SPLITS, Dataset, Split, check_trainable, log_failures
from cervix_train.data.distribution import class_distribution, warn_of_imbalance
from cervix_train.data.layouts import read_dataset
from cervix_train.data.split_tiles import Part, split_parts
from cervix_train.data.splits import assign_splits
from cervix_train.data.tiles import tile_batches
from cervix_train.features.batchnorm import reestimate
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.mixed import MixedPrecision, hardware_has_bf16
from cervix_train.learning.calibration import SCHEMA as CALIBRATION
from cervix_train.learning.calibration import (
    Logits,
    before_and_after,
    doubts,
    fit_temperature,
    fold_temperature,
    softmax,
    temperature_interval,
)
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.fit import FitConfig, History, Resumable
from cervix_train.learning.network import build_extractor, build_head, join
from cervix_train.learning.output_folder import check_output, whole_folder
from cervix_train.learning.progress import meter
from cervix_train.learning.record import training_record
from cervix_train.learning.reference import Reference, tile_statistics, write_reference
from cervix_train.learning.stages import Stage, Trainable, fine_tune, pixel_inputs, train_head, train_whole
from cervix_train.results.intervals import bootstrap_weights
from cervix_train.results.metrics import Probabilities, measure
from cervix_train.results.plots import Example

log = logging.getLogger(__name__)

# Enough for stable batch-norm statistics: they are averages over every position of every tile.
NORM_TILES = 1024
EXAMPLES = 24


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What happened: the test split's metrics, the history and validation loss of the stage that was kept, and how many
    tiles were computed or left out."""

    metrics: dict[str, Any]
    history: History
    val_loss: float
    computed: int
    left_out: int


def train(config: TrainConfig) -> TrainReport:
    """Train a model and write its bundle.

    Raises:
        CervixError: an input or the output cannot be used; nothing is then left at `config.out`.
    """
    check_output(config.out, overwrite=config.overwrite)
    mixed = _mixed(config)
    dataset = read_dataset(config.data, classes=config.classes)
    check_trainable(dataset)
    dataset = assign_splits(group_by_look(dataset), seed=config.seed)
    _log_dataset(dataset)
    contract = config.contract(dataset.classes)

    load_keras(seed=config.seed)
    extractor = frozen_extractor(config, dataset, contract)
    features = dataset_features(config, dataset, extractor=extractor, contract=contract, bf16=mixed.features)
    parts = split_parts(dataset, features)
    head = build_head(features=features.vectors.shape[1], classes=len(dataset.classes))
    paths = [dataset.root / tile.path for tile in dataset.tiles]
    given = Trainable(join(extractor, head), head, parts, paths, contract)
    with whole_folder(config.out, overwrite=config.overwrite) as folder:
        (folder / "training").mkdir()
        stages, kept = _run_stages(config, mixed, given, folder=folder / "training")
        temperature = fit_temperature(kept.logits["val"], parts["val"].labelled.targets)
        fold_temperature(given.model, temperature)
        failed = sum(dataset.tiles[index].split == "test" for index in features.failures)
        test = softmax(kept.logits["test"] / temperature).astype(np.float32)
        reference = Reference(
            model=given.model,
            contract=replace(contract, temperature=temperature, tile_statistics=_statistics(dataset, features)),
            dataset=dataset,
            failures=features.failures,
            stages=stages,
            metrics=_test_metrics(test, parts["test"], dataset=dataset, failed=failed),
            calibration=_calibration(kept.logits, parts, temperature),
            record=training_record(
                config, mixed, dataset, stages, kept, test_part=parts["test"], left_out=len(features.failures)
            ),
            examples=_examples(given, test, seed=config.seed),
        )
        write_reference(folder, reference, seed=config.seed, batch_size=config.batch_size)
    shutil.rmtree(_state_folder(config), ignore_errors=True)
    return TrainReport(reference.metrics, kept.history, kept.val_loss, features.computed, len(features.failures))


def _run_stages(
    config: TrainConfig, mixed: MixedPrecision, given: Trainable, *, folder: Path
) -> tuple[tuple[Stage, ...], Stage]:
    """All stages, and the one of the lowest validation loss, whose weights the model then has."""
    states = _state_folder(config)
    states.mkdir(parents=True, exist_ok=True)
    identity = _identity(config, mixed, given)

    def resumable(name: str) -> Resumable:
        return Resumable(states / f"{name}.npz", identity, config.resume)

    if config.whole:
        whole = train_whole(
            given,
            checkpoint=folder / "whole.weights.h5",
            config=_fit_config(config),
            resumable=resumable("whole"),
            mixed=mixed.stages,
        )
        return (whole,), whole
    head = train_head(
        given, checkpoint=folder / "head.weights.h5", config=_fit_config(config), resumable=resumable("head")
    )
    if not config.fine_tune_epochs:
        return (head,), head
    weights = given.model.get_weights()
    tuned = fine_tune(
        given,
        share=config.thaw,
        checkpoint=folder / "fine_tune.weights.h5",
        config=replace(
            _fit_config(config), epochs=config.fine_tune_epochs, learning_rate=config.fine_tune_learning_rate
        ),
        resumable=resumable("fine_tune"),
        mixed=mixed.stages,
    )
    if tuned.val_loss < head.val_loss:
        return (head, tuned), tuned
    log.info("fine-tuning brought nothing: the head on frozen features is kept")
    given.model.set_weights(weights)
    return (head, tuned), head


def _mixed(config: TrainConfig) -> MixedPrecision:
    """What will compute in BF16; features only where that was asked for, since it rounds what the head learns from.

    Raises:
        UsageError: it was asked for, there is a stage on pixels, and the hardware has none.
    """
    asked, on_pixels = config.mixed_precision, config.whole or config.fine_tune_epochs > 0
    stages = on_pixels and asked is not False and hardware_has_bf16()
    if on_pixels and asked and not stages:
        raise UsageError("--mixed-precision: neither the CPU nor a GPU here multiplies BF16")
    if stages:
        log.info("stages on pixels compute the backbone in BF16, its weights stay FP32")
    return MixedPrecision(stages=stages, features=bool(asked))


def _fit_config(config: TrainConfig) -> FitConfig:
    return FitConfig(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=config.seed,
        patience=config.patience,
    )


def _state_folder(config: TrainConfig) -> Path:
    """Where an interrupted training lies: beside the bundle, so that the same command finds it."""
    place = config.out.absolute()
    return place.with_name(f".{place.name}.resume")


def _identity(config: TrainConfig, mixed: MixedPrecision, given: Trainable) -> str:
    """Digest of all that decides what is learnt."""
    parts = [config.recipe(mixed)]
    for split in SPLITS:
        labelled = given.parts[split].labelled
        parts.append({split: [sha256_bytes(array.tobytes()) for array in (labelled.vectors, labelled.targets)]})
    return sha256_bytes(json.dumps(parts).encode())


def _examples(given: Trainable, probabilities: Probabilities, *, seed: int) -> list[Example]:
    """Some test tiles, drawn at random, with their answers."""
    part, names = given.parts["test"], given.contract.class_names
    chosen = np.random.default_rng(seed).permutation(len(part.indices))[:EXAMPLES]
    pixels = pixel_inputs([given.paths[index] for index in part.indices], contract=given.contract)(chosen)
    return [
        Example(tile, names[part.labelled.targets[place]], names[answer.argmax()], float(answer.max()))
        for tile, place, answer in zip(pixels, chosen, probabilities[chosen], strict=True)
    ]


def frozen_extractor(config: TrainConfig, dataset: Dataset, contract: ModelContract) -> KerasModel:
    """The backbone as it will not change; without weights, its batch norms are estimated on training tiles."""
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


def dataset_features(
    config: TrainConfig, dataset: Dataset, *, extractor: KerasModel, contract: ModelContract, bf16: bool = False
) -> FeatureSet:
    """Features of all tiles and of training tiles' copies, with progress, and a warning for each tile that has none.

    With `bf16`, training tiles and their copies may be computed in BF16: nothing is measured on them.
    """
    copies = training_copies(dataset, count=config.augment, seed=config.seed)
    with meter("features", total=len(dataset.tiles) + len(copies)) as advance:
        features = compute_features(
            [dataset.root / tile.path for tile in dataset.tiles],
            extractor=extractor,
            contract=contract,
            cache=config.cache,
            batch_size=config.batch_size,
            advance=advance,
            copies=copies,
            bf16={index for index, tile in enumerate(dataset.tiles) if bf16 and tile.split == "train"},
        )
    usable = len(features.indices) + len(features.copies.copies)
    log.info("features: %d computed, %d from the cache", features.computed, usable - features.computed)
    log_failures(dataset.tiles, features.failures)
    return features


def _test_metrics(probabilities: Probabilities, test: Part, *, dataset: Dataset, failed: int) -> dict[str, Any]:
    return measure(
        probabilities,
        test.labelled.targets,
        classes=dataset.classes,
        split="test",
        failed=failed,
        groups=test.groups,
    )


def _calibration(logits: dict[Split, Logits], parts: dict[Split, Part], temperature: float) -> dict[str, Any]:
    targets = {split: parts[split].labelled.targets for split in logits}
    weights = {split: bootstrap_weights(parts[split].groups) for split in logits}
    calibration: dict[str, Any] = {
        "schema": CALIBRATION,
        "temperature": temperature,
        "temperature_interval": temperature_interval(logits["val"], targets["val"], weights=weights["val"]),
        **{
            split: before_and_after(logits[split], targets[split], temperature=temperature, weights=weights[split])
            for split in logits
        },
    }
    log.info(
        "temperature %.3f (95 %%: %.3f to %.3f): validation NLL %.4f before, %.4f after",
        temperature,
        *calibration["temperature_interval"],
        *(calibration["val"][when]["nll"] for when in ("before", "after")),
    )
    for doubt in doubts(calibration):
        log.warning("%s", doubt)
    return calibration


def _statistics(dataset: Dataset, features: FeatureSet) -> tuple[Any, ...]:
    members = [place for place, index in enumerate(features.indices) if dataset.tiles[index].split == "train"]
    return tile_statistics([features.sizes[place] for place in members], features.mean_rgb[members])


def _log_dataset(dataset: Dataset) -> None:
    counts = {split: sum(tile.split == split for tile in dataset.tiles) for split in SPLITS}
    warn_of_imbalance(class_distribution(dataset))
    names = ", ".join(item.name for item in dataset.classes)
    log.info("%d tiles of %d classes (%s)", len(dataset.tiles), len(dataset.classes), names)
    log.info("train %d, val %d, test %d", counts["train"], counts["val"], counts["test"])
