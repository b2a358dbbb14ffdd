"""Training names copies across a split that was given, and cells with two labels, and says what they cost."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import SIPAKMED_CLASSES
from cervix_train.cli.train import main
from cervix_train.data.copies import Copies
from cervix_train.data.dataset import Dataset, LabelledTile
from cervix_train.data.duplicates import Pair
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.results.copy_cost import copy_report

QUICK = ["--backbone", "cnn", "--input-size", "32", "--epochs", "1", "-b", "16"]


def test_a_planted_copy_and_a_cell_with_two_labels_are_named(drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, path in enumerate(sorted(drawn.rglob("*.png"))):
        folder = data / ("train", "train", "val", "test")[number // 2 % 4] / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    learnt = sorted((data / "train/cervix_dyk").iterdir())
    shutil.copy(learnt[0], data / "test/cervix_dyk/again.png")
    shutil.copy(learnt[1], data / "train/cervix_koc/other.png")
    result = CliRunner().invoke(main, [str(data), "-o", str(tmp_path / "bundle"), *QUICK])
    assert result.exit_code == 0, result.output
    leak = f"  test test/cervix_dyk/again.png = train train/cervix_dyk/{learnt[0].name}: copy"
    doubt = f"  cervix_dyk train/cervix_dyk/{learnt[1].name} = cervix_koc train/cervix_koc/other.png: copy"
    said = [line.removeprefix("warning: ") for line in result.stderr.splitlines()]
    assert leak in said
    assert doubt in said
    assert "pairs of tiles that look like one cell, on both sides of the split: 1; " in result.stderr
    assert "without copies of tiles in another split" in result.stdout
    report = Bundle.open(tmp_path / "bundle").read_json("training/copies.json", schema="cervix/copies/1")
    jsonschema.validate(report, json.loads(files("cervix_train").joinpath("schemas/copies.schema.json").read_text()))
    assert [len(report[kind]) for kind in ("across_splits", "two_labels")] == [1, 1]
    assert {tile["label"] for tile in report["two_labels"][0]["tiles"]} == {"cervix_dyk", "cervix_koc"}
    everything, without, *_ = report["cost"]
    assert (everything["left_out"], without["left_out"]) == (0, 1)
    assert without["tiles"] == everything["tiles"] - 1


def test_the_cost_is_the_figures_without_them() -> None:
    # Six test tiles and a training tile; 0 is a copy of it, 1 and 2 show one cell under two labels.
    labels = ("cervix_dyk", "cervix_dyk", "cervix_koc", "cervix_koc", "cervix_dyk", "cervix_koc", "cervix_dyk")
    tiles = tuple(
        LabelledTile(Path(f"{number}.png"), label, split="train" if number == 6 else "test")
        for number, label in enumerate(labels)
    )
    classes = SIPAKMED_CLASSES[:2]
    copies = Copies(Dataset(Path(), tiles, classes), (Pair(0, 6, True, 1.0), Pair(1, 2, False, 0.98)))
    # Right on 0, 1, 3 and 4.
    answers = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]], np.float32)
    targets = LabelledFeatures(np.zeros((6, 1), np.float32), np.array([0, 0, 1, 1, 0, 1]))
    tested = SplitTiles(np.arange(6), targets, tuple("abcdef"), ())
    report = copy_report(copies, answers, tested, classes=classes)
    assert report.found
    counts = [(row.left_out, row.left_out_right, row.tiles) for row in report.cost]
    assert counts == [(0, 0, 6), (1, 1, 5), (2, 1, 4), (3, 2, 3)]
    assert [row.accuracy for row in report.cost] == pytest.approx([4 / 6, 3 / 5, 3 / 4, 2 / 3])


def test_nothing_found_is_nothing_to_say() -> None:
    tiles = tuple(LabelledTile(Path(f"{number}.png"), "cervix_dyk", split="test") for number in range(2))
    copies = Copies(Dataset(Path(), tiles, SIPAKMED_CLASSES[:2]), (Pair(0, 1, True, 1.0),))
    targets = LabelledFeatures(np.zeros((2, 1), np.float32), np.zeros(2, np.intp))
    answers = np.array([[0.9, 0.1]] * 2, np.float32)
    report = copy_report(
        copies, answers, SplitTiles(np.arange(2), targets, ("a", "b"), ()), classes=SIPAKMED_CLASSES[:2]
    )
    assert not report.found
    assert len(report.cost) == 1
