"""Cross-validation: every tile is answered by a model that learnt from other groups, then one model learns from all.

1. All tiles are cut into K folds, stratified by class, with groups and near-copies kept whole. A split that the data
   give is not used. Features are computed once.
2. For each fold a head learns from K-2 folds; the next fold (the first for the last) chooses its epoch and fits its
   temperature. So no tile of the fold itself has had any part in what answers it.
3. The figures are those of all answers out of fold, pooled, each with its own fold's temperature.
4. The model of the bundle learns from all tiles. No tile is left to choose its epoch by: it learns for the median of
   the folds' best epochs, and its temperature is fitted on all logits out of fold. The pooled figures are of the
   recipe, as it does with (K-2)/K of the tiles.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from cervix_engine.bundle.output_folder import check_output, whole_folder
from cervix_engine.errors import UsageError
from cervix_engine.files import scratch_folder
from cervix_engine.values import Probabilities
from cervix_keras.settings import pin_environment
from cervix_keras.start import library_versions
from cervix_train.data.distribution import class_distribution
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.fit import fit_all
from cervix_train.learning.mixed import MixedPrecision
from cervix_train.learning.network import join
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.learning.stages import Stage, Trainable
from cervix_train.learning.temperature import fit_temperature, fold_temperature, nll, softmax
from cervix_train.results.calibration import Calibration, before_and_after, temperature_interval
from cervix_train.results.copy_cost import copy_report
from cervix_train.results.fold_table import CrossValidation, Figures, FoldFigures, FoldTable, median_epochs
from cervix_train.results.intervals import bootstrap_weights
from cervix_train.results.metrics import Metrics, measure
from cervix_train.results.record import StageRecord, TrainingRecord, TrainingRun
from cervix_train.results.reference import Reference, write_reference
from cervix_train.training.decide import check_request, decide
from cervix_train.training.drift import drift_of
from cervix_train.training.fold_heads import Fold, Pooled, Setup, pool, prepare, train_fold
from cervix_train.training.train import TrainReport, examples_of, statistics_of

log = logging.getLogger(__name__)

_FP32 = MixedPrecision(stages=False, features=False)


@dataclass(frozen=True, slots=True)
class FoldsReport:
    """What happened: as in a training, with metrics of all tiles out of fold, and the figures of each fold."""

    training: TrainReport
    figures: CrossValidation


def train_folds(config: TrainConfig, *, folds: int) -> FoldsReport:
    """Cross-validate a recipe in `folds` folds, and write the bundle of a model that learnt from all tiles.

    Raises:
        CervixError: an input or the output cannot be used; nothing is then left at `config.out`.
    """
    began = time.perf_counter()
    _check(config)
    check_request(config)
    check_output(config.out, overwrite=config.overwrite, inputs=(config.data,))
    setup = prepare(config, folds)
    with scratch_folder() as folder:
        trained = [train_fold(setup, number, folds, folder=folder) for number in range(folds)]
    pooled = pool(trained, setup.features)
    figures = _figures(setup, trained, pooled)
    given, final = _learn_from_all(setup, pooled, epochs=figures.epochs, temperature=figures.temperature)
    reference = _reference(setup, trained, pooled, figures, given, final)
    with whole_folder(config.out, overwrite=config.overwrite) as out:
        ending = partial(TrainingRun.ending_now, began=began, command=config.command)
        write_reference(out, reference, seed=config.seed, batch_size=config.batch_size, ending=ending)
    left_out, computed = len(setup.features.failures), setup.features.computed
    training = TrainReport(reference.metrics, final.history, final.val_loss, computed, left_out, reference.copies)
    return FoldsReport(training, figures)


def _check(config: TrainConfig) -> None:
    if config.whole or config.fine_tune_epochs:
        raise UsageError("--folds trains heads on features that are computed once: take --recipe head")
    if config.mixed_precision:
        raise UsageError("--mixed-precision rounds what is only learnt from; with --folds every tile is measured too")
    if config.resume:
        raise UsageError("--folds does not resume: features that were computed are found again in --cache")


def _figures(setup: Setup, trained: Sequence[Fold], pooled: Pooled) -> CrossValidation:
    figures = []
    for number, fold in enumerate(trained, 1):
        history = fold.stage.history
        answers = softmax(fold.stage.logits["test"] / fold.temperature).astype(np.float32)
        measured = Figures.of(_measure(setup, answers, fold.tested))
        figures.append(
            FoldFigures(number, history.epochs, history.best_epoch, fold.stage.val_loss, fold.temperature, measured)
        )
    return CrossValidation(
        folds=tuple(figures),
        pooled=Figures.of(_measure(setup, pooled.probabilities, pooled.tiles)),
        epochs=median_epochs([item.best_epoch for item in figures]),
        temperature=fit_temperature(pooled.logits, pooled.tiles.labelled.targets),
        caveats=tuple(_caveats(setup.config)),
    )


def _measure(setup: Setup, probabilities: Probabilities, tiles: SplitTiles) -> Metrics:
    targets, classes = tiles.labelled.targets, setup.dataset.classes
    return measure(probabilities, targets, classes=classes, split="folds", groups=tiles.groups)


def _caveats(config: TrainConfig) -> list[str]:
    """What the folds cannot see, said aloud."""
    found = []
    if isinstance(config.weights, Path):
        found.append(
            f"the backbone's weights come from {config.weights.name}: if they learnt from some of these tiles, all "
            "figures are too high"
        )
    if config.weights == "none":
        found.append("the batch-norm statistics of the backbone were estimated on tiles of all folds, without labels")
    for sentence in found:
        log.warning("%s", sentence)
    return found


def _learn_from_all(setup: Setup, pooled: Pooled, *, epochs: int, temperature: float) -> tuple[Trainable, Stage]:
    """The model of the bundle, its temperature folded in, and what its training was."""
    everything = pooled.tiles.with_copies(setup.features.copies)
    head = setup.new_head()
    log.info("learning from all %d tiles, for %d epochs as the median fold", len(pooled.tiles.indices), epochs)
    history = fit_all(head, train=everything.labelled, config=replace(setup.config.fit("all"), epochs=epochs))
    model = join(setup.extractor, head)
    fold_temperature(model, temperature)
    statistics = statistics_of(setup.dataset, setup.features)
    given = Trainable(
        model,
        head,
        {"train": everything, "val": pooled.tiles, "test": pooled.tiles},
        [setup.dataset.root / tile.path for tile in setup.dataset.tiles],
        replace(setup.contract, temperature=temperature, tile_statistics=statistics),
    )
    loss = nll(softmax(pooled.logits), pooled.tiles.labelled.targets)
    return given, Stage("all tiles", "head", history, {"val": pooled.logits, "test": pooled.logits}, loss)


def _reference(
    setup: Setup,
    trained: Sequence[Fold],
    pooled: Pooled,
    figures: CrossValidation,
    given: Trainable,
    final: Stage,
) -> Reference:
    dataset, features, probabilities = setup.dataset, setup.features, pooled.probabilities
    record = TrainingRecord(
        {**setup.config.recipe(_FP32), **setup.config.decisions()},
        library_versions(),
        class_distribution(dataset),
        len(features.failures),
        tuple(StageRecord.of(fold.stage, test=fold.tested, kept=False) for fold in trained),
        pin_environment(),
    )
    # No tile is held back: the answers out of fold are the only ones of tiles that a model did not learn from.
    decided = decide(given.contract, {"val": probabilities}, {"val": pooled.tiles}, config=setup.config)
    metrics = replace(_measure(setup, probabilities, pooled.tiles), failed=len(features.failures))
    used = [dataset.tiles[index] for index in pooled.tiles.indices]
    numbers = [setup.numbers[index] + 1 for index in pooled.tiles.indices]
    return Reference(
        model=given.model,
        contract=decided.contract,
        dataset=dataset,
        failures=features.failures,
        stages=(final,),
        metrics=metrics,
        calibration=_calibration(pooled, figures.temperature),
        copies=copy_report(setup.copies, probabilities, pooled.tiles, classes=dataset.classes),
        decisions=decided.report,
        judged=decided.judged,
        record=record,
        examples=examples_of(given, probabilities, seed=setup.config.seed),
        drift=drift_of(dataset, {"val": pooled.tiles}, probabilities, contract=given.contract, seed=setup.config.seed),
        cross_validation=(figures, FoldTable.of(used, numbers, probabilities, given.contract.class_names)),
    )


def _calibration(pooled: Pooled, temperature: float) -> Calibration:
    """As validation: the temperature on what it was fitted to; as test: each fold's, which never saw the fold."""
    targets, weights = pooled.tiles.labelled.targets, bootstrap_weights(pooled.tiles.groups)
    val, test = (
        before_and_after(pooled.logits, targets, temperature=value, weights=weights)
        for value in (temperature, pooled.temperatures)
    )
    return Calibration(temperature, temperature_interval(pooled.logits, targets, weights=weights), val, test)
