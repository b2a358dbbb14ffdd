"""The whole of a training, step by step: from labelled tiles to a sealed bundle."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cervix_engine.bundle.output_folder import check_output, whole_folder
from cervix_engine.contract import TileStatistic
from cervix_engine.errors import UsageError
from cervix_engine.files import sha256_bytes
from cervix_engine.values import Probabilities
from cervix_keras.settings import pin_environment
from cervix_keras.start import library_versions, load_keras
from cervix_train.data.copies import Copies
from cervix_train.data.dataset import HELD_OUT, SPLITS, Dataset, Split
from cervix_train.data.distribution import class_distribution
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.features import FeatureSet
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.fit import History, Resumable
from cervix_train.learning.mixed import MixedPrecision, hardware_has_bf16
from cervix_train.learning.network import build_head, join
from cervix_train.learning.split_tiles import SplitTiles, tiles_by_split
from cervix_train.learning.stages import Stage, Trainable, fine_tune, pixel_inputs, train_head, train_whole
from cervix_train.learning.temperature import Logits, fit_temperature, fold_temperature, softmax
from cervix_train.results.calibration import Calibration, calibration_of, calibration_warnings
from cervix_train.results.copy_cost import CopyReport, copy_report
from cervix_train.results.intervals import bootstrap_weights
from cervix_train.results.metrics import Metrics, measure
from cervix_train.results.record import StageRecord, TrainingRecord, TrainingRun
from cervix_train.results.reference import Reference, tile_statistics, write_reference
from cervix_train.results.report.plots import Example
from cervix_train.training.decide import check_request, decide
from cervix_train.training.drift import drift_of
from cervix_train.training.extraction import dataset_features, frozen_extractor
from cervix_train.training.preparation import split_tiles

log = logging.getLogger(__name__)

EXAMPLES = 24


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What happened: the test split's metrics, the history and validation loss of the stage that was kept, and how many
    tiles were computed or left out, and the copies among all tiles."""

    metrics: Metrics
    history: History
    val_loss: float
    computed: int
    left_out: int
    copies: CopyReport


@dataclass(frozen=True, slots=True)
class Learnt:
    """All stages, and the one of the lowest validation loss, whose weights the model then has."""

    stages: tuple[Stage, ...]
    kept: Stage


def train(config: TrainConfig, *, has_bf16: Callable[[], bool] = hardware_has_bf16) -> TrainReport:
    """Train a model and write its bundle; `has_bf16` says whether the hardware here multiplies BF16.

    Raises:
        CervixError: an input or the output cannot be used; nothing is then left at `config.out`.
    """
    began = time.perf_counter()
    check_request(config)
    check_output(config.out, overwrite=config.overwrite, inputs=(config.data,))
    mixed = _mixed(config, has_bf16)
    copies = split_tiles(config)
    dataset = copies.dataset
    contract = config.contract(dataset.classes)

    log.info("starting Keras and building %s (weights: %s)", config.backbone, config.weights)
    load_keras(seed=config.seed)
    extractor = frozen_extractor(config, dataset, contract)
    backends = ExtractorBackends(extractor)
    features = dataset_features(config, dataset, backends, contract=contract, bf16=mixed.features)
    head = build_head(features=features.vectors.shape[1], classes=len(dataset.classes))
    paths = [dataset.root / tile.path for tile in dataset.tiles]
    given = Trainable(join(extractor, head), head, tiles_by_split(dataset, features), paths, contract)
    with whole_folder(config.out, overwrite=config.overwrite) as folder:
        (folder / "training").mkdir()
        learnt = _run_stages(config, mixed, given, folder=folder / "training")
        reference = _reference(config, mixed, given, learnt, copies=copies, features=features)
        ending = partial(TrainingRun.ending_now, began=began, command=config.command)
        write_reference(folder, reference, seed=config.seed, batch_size=config.batch_size, ending=ending)
    shutil.rmtree(_state_folder(config), ignore_errors=True)
    kept, left_out = learnt.kept, len(features.failures)
    return TrainReport(reference.metrics, kept.history, kept.val_loss, features.computed, left_out, reference.copies)


def _reference(
    config: TrainConfig,
    mixed: MixedPrecision,
    given: Trainable,
    learnt: Learnt,
    *,
    copies: Copies,
    features: FeatureSet,
) -> Reference:
    """Fold the temperature into the model, and measure what it then is."""
    kept, tiles, dataset = learnt.kept, given.tiles, copies.dataset
    temperature = fit_temperature(kept.logits["val"], tiles["val"].labelled.targets)
    fold_temperature(given.model, temperature)
    answers = {split: softmax(kept.logits[split] / temperature).astype(np.float32) for split in HELD_OUT}
    probabilities, statistics = answers["test"], statistics_of(dataset, features)
    measured = replace(given.contract, temperature=temperature, tile_statistics=statistics)
    decided = decide(measured, answers, tiles, config=config)
    record = TrainingRecord(
        {**config.recipe(mixed), **config.decisions()},
        library_versions(),
        class_distribution(dataset),
        len(features.failures),
        tuple(StageRecord.of(stage, test=tiles["test"], kept=stage is kept) for stage in learnt.stages),
        pin_environment(),
    )
    return Reference(
        model=given.model,
        contract=decided.contract,
        dataset=dataset,
        failures=features.failures,
        stages=learnt.stages,
        metrics=_test_metrics(probabilities, tiles["test"], dataset=dataset, features=features),
        calibration=measure_temperature(kept.logits, tiles, temperature),
        copies=copy_report(copies, probabilities, tiles["test"], classes=dataset.classes),
        decisions=decided.report,
        judged=decided.judged,
        record=record,
        examples=examples_of(given, probabilities, seed=config.seed),
        drift=drift_of(dataset, tiles, answers["val"], contract=given.contract, seed=config.seed),
    )


def _run_stages(config: TrainConfig, mixed: MixedPrecision, given: Trainable, *, folder: Path) -> Learnt:
    states = _state_folder(config)
    states.mkdir(parents=True, exist_ok=True)
    identity = _identity(config, mixed, given)

    def resumable(name: str) -> Resumable:
        return Resumable(states / f"{name}.npz", identity, config.resume)

    def checkpoint(name: str) -> Path:
        return folder / f"{name}.weights.h5"

    if config.whole:
        whole = train_whole(
            given,
            checkpoint=checkpoint("whole"),
            config=config.fit("whole"),
            resumable=resumable("whole"),
            mixed=mixed.stages,
        )
        return Learnt((whole,), whole)
    head = train_head(given, checkpoint=checkpoint("head"), config=config.fit("head"), resumable=resumable("head"))
    if not config.fine_tune_epochs:
        return Learnt((head,), head)
    weights = given.model.get_weights()
    slower = replace(
        config.fit("fine_tune"), epochs=config.fine_tune_epochs, learning_rate=config.fine_tune_learning_rate
    )
    tuned = fine_tune(
        given,
        share=config.thaw,
        checkpoint=checkpoint("fine_tune"),
        config=slower,
        resumable=resumable("fine_tune"),
        mixed=mixed.stages,
    )
    if tuned.val_loss < head.val_loss:
        return Learnt((head, tuned), tuned)
    log.info("fine-tuning brought nothing: the head on frozen features is kept")
    given.model.set_weights(weights)
    return Learnt((head, tuned), head)


def _mixed(config: TrainConfig, has_bf16: Callable[[], bool]) -> MixedPrecision:
    """What will compute in BF16; features only where that was asked for, since it rounds what the head learns from.

    Raises:
        UsageError: it was asked for, there is a stage on pixels, and the hardware has none.
    """
    asked, on_pixels = config.mixed_precision, config.whole or config.fine_tune_epochs > 0
    stages = on_pixels and asked is not False and has_bf16()
    if on_pixels and asked and not stages:
        raise UsageError("--mixed-precision: neither the CPU nor a GPU here multiplies BF16")
    if stages:
        log.info("stages on pixels compute the backbone in BF16, its weights stay FP32")
    return MixedPrecision(stages=stages, features=bool(asked))


def _state_folder(config: TrainConfig) -> Path:
    """Where an interrupted training lies: beside the bundle, so that the same command finds it."""
    out = config.out.absolute()
    return out.with_name(f".{out.name}.resume")


def _identity(config: TrainConfig, mixed: MixedPrecision, given: Trainable) -> str:
    """Digest of all that decides what is learnt."""
    facts = [config.recipe(mixed), *filter(None, [pin_environment()])]
    for split in SPLITS:
        labelled = given.tiles[split].labelled
        facts.append({split: [sha256_bytes(array.tobytes()) for array in (labelled.vectors, labelled.targets)]})
    return sha256_bytes(json.dumps(facts).encode())


def examples_of(given: Trainable, probabilities: Probabilities, *, seed: int) -> list[Example]:
    """Some test tiles, drawn at random, with their answers."""
    test, names = given.tiles["test"], given.contract.class_names
    chosen = np.random.default_rng(seed).permutation(len(test.indices))[:EXAMPLES]
    pixels = pixel_inputs([given.paths[index] for index in test.indices], contract=given.contract)(chosen)
    return [
        Example(tile, names[test.labelled.targets[position]], names[answer.argmax()], float(answer.max()))
        for tile, position, answer in zip(pixels, chosen, probabilities[chosen], strict=True)
    ]


def _test_metrics(probabilities: Probabilities, test: SplitTiles, *, dataset: Dataset, features: FeatureSet) -> Metrics:
    return measure(
        probabilities,
        test.labelled.targets,
        classes=dataset.classes,
        split="test",
        failed=sum(dataset.tiles[index].split == "test" for index in features.failures),
        groups=test.groups,
    )


def measure_temperature(logits: dict[Split, Logits], tiles: dict[Split, SplitTiles], temperature: float) -> Calibration:
    """What the temperature does to both splits; where it does not fit the test tiles, the log says so."""
    targets = {split: tiles[split].labelled.targets for split in HELD_OUT}
    weights = {split: bootstrap_weights(tiles[split].groups) for split in HELD_OUT}
    calibration = calibration_of(logits, targets, weights, temperature=temperature)
    log.info(
        "temperature %.3f (95 %%: %.3f to %.3f): validation NLL %.4f before, %.4f after",
        temperature,
        *calibration.temperature_interval,
        calibration.val.before.nll,
        calibration.val.after.nll,
    )
    for warning in calibration_warnings(calibration):
        log.warning("%s", warning)
    return calibration


def statistics_of(dataset: Dataset, features: FeatureSet) -> tuple[TileStatistic, ...]:
    learnt = [place for place, index in enumerate(features.indices) if dataset.tiles[index].split == "train"]
    return tile_statistics([features.sizes[place] for place in learnt], features.mean_rgb[learnt])
