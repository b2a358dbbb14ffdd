"""Cross-validation: each tile answered once, by a model that learnt from other groups; one model of all tiles."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import DatasetError, UsageError
from cervix_engine.table.intervals import mcnemar_exact
from cervix_keras.start import load_keras
from cervix_train.cli.compare_folds import main as compare_main
from cervix_train.cli.train import main as train_main
from cervix_train.data.copies import Copies
from cervix_train.data.dataset import Dataset, LabelledTile
from cervix_train.data.splits import fold_numbers
from cervix_train.features.features import CopyFeatures, FeatureSet
from cervix_train.learning.config import TrainConfig
from cervix_train.results.fold_table import FoldTable, median_epochs
from cervix_train.results.paired import compare_folds
from cervix_train.training.fold_heads import Setup, train_fold
from cervix_train.training.folds import FoldsReport, train_folds

FOLDS = 3


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("cervix_train").joinpath(f"schemas/{name}.schema.json").read_text())
    return found


@pytest.fixture(scope="module")
def folds_config(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return replace(config, out=tmp_path_factory.mktemp("folds") / "bundle", epochs=2, augment=1)


@pytest.fixture(scope="module")
def folds_report(folds_config: TrainConfig) -> FoldsReport:
    return train_folds(folds_config, folds=FOLDS)


@pytest.fixture(scope="module")
def cross_validated(folds_config: TrainConfig, folds_report: FoldsReport) -> Bundle:
    assert folds_report.training.left_out == 0
    return Bundle.open(folds_config.out)


@pytest.fixture(scope="module")
def table(cross_validated: Bundle) -> FoldTable:
    return FoldTable.read(cross_validated.root)


def test_every_tile_is_answered_once_and_groups_are_whole(table: FoldTable, cross_validated: Bundle) -> None:
    split = list(csv.DictReader(io.StringIO(cross_validated.read("training/split.csv").decode())))
    assert list(table.paths) == [row["path"] for row in split]
    assert {row["split"] for row in split} == {"train"}
    folds = defaultdict(set)
    for group, fold in zip(table.groups, table.folds, strict=True):
        folds[group].add(fold)
    assert {len(found) for found in folds.values()} == {1}
    assert set(table.folds) == {1, 2, 3}
    assert np.allclose(table.probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_figures_are_those_of_the_table(
    table: FoldTable, cross_validated: Bundle, folds_report: FoldsReport
) -> None:
    figures = cross_validated.read_json("training/folds.json", schema="cervix/folds/1")
    jsonschema.validate(figures, schema("folds"))
    right = table.probabilities.argmax(axis=1) == table.targets
    assert figures["pooled"]["accuracy"] == pytest.approx(right.mean())
    for item in figures["folds"]:
        inside = np.array(table.folds) == item["fold"]
        assert item["accuracy"] == pytest.approx(right[inside].mean())
        assert item["tiles"] == inside.sum()
    metrics = cross_validated.read_json("training/metrics.json", schema="cervix/metrics/1")
    jsonschema.validate(metrics, schema("metrics"))
    assert (metrics["split"], metrics["tiles"]) == ("folds", len(table.paths))
    assert metrics["accuracy"] == folds_report.training.metrics.accuracy == figures["pooled"]["accuracy"]
    best = [item["best_epoch"] for item in figures["folds"]]
    assert figures["final_model"]["epochs"] == median_epochs(best)
    assert folds_report.training.history.epochs == median_epochs(best)
    assert "batch-norm statistics" in figures["caveats"][0]
    jsonschema.validate(
        cross_validated.read_json("training/training.json", schema="cervix/training/1"), schema("training")
    )


def test_page_and_card_tell_what_the_figures_are_of(cross_validated: Bundle, folds_report: FoldsReport) -> None:
    page = cross_validated.read("training/report.html").decode()
    card = cross_validated.read("MODEL_CARD.md").decode()
    assert "<h2>Fold by fold</h2>" in page
    assert "each answered by a model that learnt from other groups" in page
    assert "test tiles" not in re.sub(r"No test tiles tell[^<]*", "", page)
    assert "answered out of fold by a model that learnt from other groups" in card
    pooled = folds_report.figures.pooled
    low, high = pooled.accuracy_interval
    assert f"| accuracy | {pooled.accuracy:.3f} | {low:.3f} to {high:.3f} |" in card
    assert "A run is compared as a whole with 60 tiles of 30 groups, from 25 tiles on" in card


def test_the_model_has_the_temperature_that_the_contract_names(cross_validated: Bundle) -> None:
    figures = cross_validated.read_json("training/folds.json", schema="cervix/folds/1")
    assert cross_validated.contract.temperature == figures["final_model"]["temperature"]
    model = load_keras().saving.load_model(cross_validated.root / "model.keras", safe_mode=True)
    answers = model.predict_on_batch(np.zeros((2, *cross_validated.contract.input_size, 3), np.uint8))
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-6)


def fold_setup(config: TrainConfig, wrong: int | None) -> Setup:
    """Two clusters of features in three folds; the labels of fold `wrong` are all the other class's."""
    random = np.random.default_rng(0)
    numbers = tuple(number % 3 for number in range(36))
    truth = np.arange(36) // 3 % 2
    labels = np.where(np.array(numbers) == wrong, 1 - truth, truth)
    classes = SIPAKMED_CLASSES[:2]
    tiles = tuple(
        LabelledTile(Path(f"{number}.png"), classes[label].name, group=str(number), split="train")
        for number, label in enumerate(labels)
    )
    vectors = (random.normal(0, 0.5, (36, 8)) + 2 * np.eye(2, 8)[truth]).astype(np.float32)
    copies = CopyFeatures((), np.zeros((0, 8), np.float32))
    features = FeatureSet(np.arange(36), vectors, (), np.zeros((36, 3)), {}, 0, copies)
    dataset = Dataset(Path(), tiles, classes)
    return Setup(config, Copies(dataset), numbers, ModelContract(classes, (32, 32)), None, features)


def test_no_fold_learns_from_what_it_answers(config: TrainConfig, tmp_path: Path) -> None:
    def logits_of_the_first(wrong: int | None) -> Any:
        return train_fold(fold_setup(config, wrong), 0, FOLDS, folder=tmp_path).stage.logits["test"]

    honest = logits_of_the_first(None)
    assert np.array_equal(logits_of_the_first(0), honest)
    # It does learn from the third.
    assert not np.allclose(logits_of_the_first(2), honest)


def test_the_same_seed_gives_the_same_number(folds_config: TrainConfig, table: FoldTable, tmp_path: Path) -> None:
    again = train_folds(replace(folds_config, out=tmp_path / "again"), folds=FOLDS)
    same = FoldTable.read(tmp_path / "again")
    assert same.folds == table.folds
    assert np.array_equal(same.probabilities, table.probabilities)
    assert again.training.computed == 0


def test_folds_are_stratified_and_refused_where_a_class_has_too_few_groups() -> None:
    tiles = tuple(
        LabelledTile(Path(f"{label}{number}.png"), label, group=f"{label}{number // 2}")
        for label in ("a", "b")
        for number in range(20)
    )
    dataset = Dataset(Path(), tiles, ())
    numbers = fold_numbers(dataset, folds=5, seed=1)
    assert numbers == fold_numbers(dataset, folds=5, seed=1)
    counts = {(tile.label, number) for tile, number in zip(tiles, numbers, strict=True)}
    assert len(counts) == 10
    with pytest.raises(DatasetError, match=r"class a has too few separate groups, 10: 11 folds need 11"):
        fold_numbers(dataset, folds=11, seed=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"whole": True}, "take --recipe head"),
        ({"fine_tune_epochs": 3}, "take --recipe head"),
        ({"mixed_precision": True}, "every tile is measured too"),
        ({"resume": True}, "does not resume"),
    ],
)
def test_what_folds_cannot_do_is_refused_first(
    changes: dict[str, Any], words: str, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        train_folds(make_config(tmp_path, data=Path("/nowhere"), **changes), folds=FOLDS)


def test_backbones_are_not_compared_in_folds(drawn: Path, tmp_path: Path) -> None:
    arguments = [str(drawn), "-o", str(tmp_path / "out"), "--compare", "cnn", "--folds", "3"]
    result = CliRunner().invoke(train_main, arguments)
    assert result.exit_code == 2
    assert "cervix-compare-folds" in result.stderr


def paired_table(right: list[bool], **changes: Any) -> FoldTable:
    """Eight tiles of two classes in four groups and two folds; `right` says which are answered right."""
    targets = np.array([0, 1] * 4)
    answers = np.where(right, targets, 1 - targets)
    values: dict[str, Any] = {
        "paths": tuple(f"{number}.png" for number in range(8)),
        "labels": tuple("ab"[target] for target in targets),
        "groups": tuple("wwxxyyzz"),
        "folds": (1, 1, 1, 1, 2, 2, 2, 2),
        "class_names": ("a", "b"),
        "probabilities": np.eye(2, dtype=np.float32)[answers],
    }
    return FoldTable(**{**values, **changes})


def test_two_recipes_are_compared_tile_by_tile() -> None:
    first, second = paired_table([True] * 7 + [False]), paired_table([True] * 4 + [False] * 4)
    found = compare_folds(first, second)
    assert (found.only_first, found.only_second) == (3, 0)
    assert found.mcnemar_p == pytest.approx(mcnemar_exact(3, 0))
    assert found.accuracy.difference == pytest.approx(3 / 8)
    assert [(pair.first, pair.second) for pair in found.folds] == [(1.0, 1.0), (0.75, 0.0)]
    low, high = found.accuracy.interval
    assert low == 0.0
    assert 3 / 8 < high <= 1
    jsonschema.validate(json.loads(json.dumps(found.to_json())), schema("paired_folds"))
    other = compare_folds(second, first)
    assert other.accuracy.interval == pytest.approx((-high, 0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": (1, 1, 2, 2, 1, 1, 2, 2)}, "the folds differ, such as of 2.png, 1 and 2"),
        ({"labels": tuple("aabbabab")}, "the labels differ"),
        ({"paths": tuple(f"{number}.png" for number in range(1, 9))}, "2 tiles were answered by one of them only"),
        ({"class_names": ("a", "c")}, "the classes differ"),
    ],
)
def test_what_is_not_paired_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare_folds(paired_table([True] * 8), paired_table([True] * 8, **changes))


def test_the_command_compares_bundles(cross_validated: Bundle, bundle: Path, tmp_path: Path) -> None:
    root = str(cross_validated.root)
    result = CliRunner().invoke(compare_main, [root, root, "--json", str(tmp_path / "paired.json")])
    assert result.exit_code == 0, result.output
    assert "neither is shown better" in result.stdout
    jsonschema.validate(json.loads((tmp_path / "paired.json").read_text()), schema("paired_folds"))
    refused = CliRunner().invoke(compare_main, [root, str(bundle)])
    assert refused.exit_code == 2
    assert "cervix-train --folds K" in refused.stderr
