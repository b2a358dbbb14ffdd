"""Writes the bundle that a training ends with: the Keras reference model and all that belongs to it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cervix_engine.bundle.bundle import CONTRACT
from cervix_engine.bundle.calibration_tiles import COUNT as CALIBRATION_TILES
from cervix_engine.bundle.calibration_tiles import write_calibration_tiles
from cervix_engine.bundle.golden import TARGET_COUNT, write_golden
from cervix_engine.contract import ModelContract, TileStatistic
from cervix_engine.drift.reference import DriftReference
from cervix_engine.files import write_json
from cervix_engine.report.card import seal_with_card
from cervix_engine.tiles.preprocess import read_tile
from cervix_engine.tiles.tile import TileFailure, TileSize
from cervix_keras.model_file import KERAS_FILE, load_model
from cervix_keras.start import KerasModel, library_versions
from cervix_train.data.dataset import HELD_OUT, Dataset, Split
from cervix_train.data.splits import group_of
from cervix_train.learning.stages import Stage
from cervix_train.results.calibration import Calibration
from cervix_train.results.copy_cost import CopyReport
from cervix_train.results.curves import CURVE_KINDS, curve
from cervix_train.results.fold_table import FIGURES_FILE, FOLDS_FILE, CrossValidation, FoldTable
from cervix_train.results.metrics import Metrics
from cervix_train.results.operating_point import DecisionReport, JudgedTiles, Worth
from cervix_train.results.predict import predict
from cervix_train.results.record import TrainingRecord, TrainingRun
from cervix_train.results.report.page import write_page
from cervix_train.results.report.page_input import PageInput
from cervix_train.results.report.plots import (
    Example,
    Figure,
    as_svg,
    draw_confusion,
    draw_curves,
    draw_distribution,
    draw_examples,
    draw_history,
    draw_reliability,
    save_png,
)

log = logging.getLogger(__name__)

# Which tiles learnt, chose the epoch and tested; beside the tiles, a manifest of the same split.
SPLIT_FILE = "training/split.csv"
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a training found out.

    Attributes:
        model: raw pixels to probabilities.
        contract: with the training tiles' statistics.
        dataset: every tile with its split.
        failures: why tiles of `dataset` were left out, by index.
        stages: all that were trained.
        metrics: of the test split.
        calibration: the temperature, and what it changed.
        copies: tiles that show one cell, across the split or under two labels, and what they cost.
        decisions: the operating point; None where none could be chosen.
        judged: the held-out splits, as it sees them.
        record: recipe, versions, class distribution and what each stage reached.
        examples: some test tiles.
        drift: what runs are compared with, where there are tiles enough.
        cross_validation: and its table, where the model is that of a cross-validation.
    """

    model: KerasModel
    contract: ModelContract
    dataset: Dataset
    failures: dict[int, TileFailure]
    stages: Sequence[Stage]
    metrics: Metrics
    calibration: Calibration
    copies: CopyReport
    decisions: DecisionReport | None
    judged: Mapping[Split, JudgedTiles]
    record: TrainingRecord
    examples: Sequence[Example]
    drift: DriftReference | None = None
    cross_validation: tuple[CrossValidation, FoldTable] | None = None


def write_reference(
    root: Path, reference: Reference, *, seed: int, batch_size: int, ending: Callable[[], TrainingRun]
) -> None:
    """Fill the empty folder `root` with a sealed bundle; `ending` says when and where the training ran, at its end.

    The golden tiles' answers come from the model as it is read back from `model.keras`, so they are the file's,
    not the memory's.

    Raises:
        ContractError: the saved model cannot be read back.
    """
    log.info("saving the model, its plots and its golden tiles")
    reference.model.save(root / KERAS_FILE)
    reference.contract.save(root / CONTRACT)
    if reference.drift:
        reference.drift.save(root)
    training = root / "training"
    training.mkdir(exist_ok=True)
    write_json(training / "metrics.json", reference.metrics.to_json())
    write_json(training / "calibration.json", reference.calibration.to_json())
    write_json(training / "copies.json", reference.copies.to_json())
    if reference.cross_validation:
        figures, table = reference.cross_validation
        write_json(root / FIGURES_FILE, figures.to_json())
        table.write(root / FOLDS_FILE)
    if reference.decisions:
        write_json(training / "operating_point.json", reference.decisions.to_json())
    _write_split(root / SPLIT_FILE, reference.dataset, reference.failures)
    for stage, name in zip(reference.stages, ("history.csv", "history_fine_tune.csv"), strict=False):
        stage.history.write_csv(training / name)
    _write_golden(root, reference, seed=seed, batch_size=batch_size)
    _write_calibration(root, reference, seed=seed)
    _write_report(training, reference, ending())
    seal_with_card(root)


def _write_report(training: Path, reference: Reference, run: TrainingRun) -> None:
    """The record of the training, its pictures and its page."""
    record = replace(reference.record, run=run)
    write_json(training / "training.json", record.to_json())
    figures = _figures(reference)
    for name, figure in figures.items():
        save_png(figure, training / f"{name}.png")
    told = PageInput(
        reference.metrics,
        reference.calibration,
        reference.decisions,
        record,
        classes=reference.contract.classes,
        pictures={name: as_svg(figure, name) for name, figure in figures.items() if name != "examples"},
        examples=reference.examples,
        copies=reference.copies,
        folds=reference.cross_validation[0] if reference.cross_validation else None,
    )
    write_page(training / "report.html", told)


def _figures(reference: Reference) -> dict[str, Figure]:
    names = {item.name: item.display_name for item in reference.contract.classes}
    figures = {
        "distribution": draw_distribution(reference.record.distribution, names),
        "history": draw_history(reference.stages),
        "confusion_matrix": draw_confusion(reference.metrics, names),
        "reliability": draw_reliability(reference.calibration),
        "examples": draw_examples(reference.examples, names),
    }
    told = {split: tiles for split, tiles in reference.judged.items() if tiles.can_be_told_apart}
    decided = reference.decisions
    points: dict[Split, Worth] = {}
    if decided:
        points = {split: found.chosen for split in HELD_OUT if (found := getattr(decided, split))}
    labels: dict[Split, str] = {"val": "out of fold" if reference.cross_validation else "validation", "test": "test"}
    if told:
        for kind in CURVE_KINDS:
            curves = {split: curve(tiles, kind) for split, tiles in told.items()}
            figures[kind] = draw_curves(curves, kind, points, labels)
    return figures


def tile_statistics(sizes: Sequence[TileSize], mean_rgb: npt.NDArray[np.float64]) -> tuple[TileStatistic, ...]:
    """Spread of colour (of the preprocessed pixels, 0-255) and of decoded size (px) over the training tiles.

    Args:
        sizes: decoded sizes of N tiles.
        mean_rgb: `float64 (N, 3)`.
    """
    measures = {
        "mean_red": mean_rgb[:, 0],
        "mean_green": mean_rgb[:, 1],
        "mean_blue": mean_rgb[:, 2],
        "height_px": np.array([size.height for size in sizes], np.float64),
        "width_px": np.array([size.width for size in sizes], np.float64),
    }
    return tuple(TileStatistic(name, *np.percentile(values, PERCENTILES).tolist()) for name, values in measures.items())


def choose_golden(dataset: Dataset, failures: dict[int, TileFailure], *, seed: int) -> list[int]:
    """Indices of the golden tiles, at most `TARGET_COUNT`, in random order.

    Tiles that were not learnt from come first; training tiles only fill up what those leave free.
    """
    usable = [index for index in range(len(dataset.tiles)) if index not in failures]
    shuffled = np.random.default_rng(seed).permutation(usable).tolist()
    # A stable sort: within each kind the random order stays, so that the first few are of mixed classes.
    shuffled.sort(key=lambda index: dataset.tiles[index].split == "train")
    return [int(index) for index in shuffled[:TARGET_COUNT]]


def _write_golden(root: Path, reference: Reference, *, seed: int, batch_size: int) -> None:
    dataset, contract = reference.dataset, reference.contract
    chosen = [dataset.tiles[index] for index in choose_golden(dataset, reference.failures, seed=seed)]
    paths = [dataset.root / tile.path for tile in chosen]
    model = load_model(root / KERAS_FILE, contract=contract)
    answers = predict(model, paths, contract=contract, batch_size=batch_size, what="golden tiles")
    write_golden(
        root,
        [read_tile(paths[index]) for index in answers.indices],
        labels=[chosen[index].label for index in answers.indices],
        probabilities=answers.probabilities,
        contract=contract,
        reference=f"keras {library_versions()['keras']}",
    )


def _write_calibration(root: Path, reference: Reference, *, seed: int) -> None:
    dataset = reference.dataset
    learnt = [
        index for index, tile in enumerate(dataset.tiles) if tile.split == "train" and index not in reference.failures
    ]
    golden = set(choose_golden(dataset, reference.failures, seed=seed))
    shuffled = np.random.default_rng(seed).permutation(learnt).tolist()
    # Those that a certificate is not measured on come first; where all are, INT8 is judged by what it was fitted to.
    shuffled.sort(key=lambda index: index in golden)
    paths = [dataset.tiles[index].path for index in shuffled[:CALIBRATION_TILES]]
    write_calibration_tiles(root, {path.as_posix(): read_tile(dataset.root / path) for path in paths}, seed=seed)


def _write_split(path: Path, dataset: Dataset, failures: dict[int, TileFailure]) -> None:
    """One row per tile of the data set; `error` says why a tile was left out."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group", "split", "error"))
        for index, tile in enumerate(dataset.tiles):
            failure = failures.get(index)
            error = failure.reason if failure else ""
            writer.writerow((tile.path.as_posix(), tile.label, group_of(tile), tile.split, error))
