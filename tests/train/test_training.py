"""One whole training, and what it leaves behind."""

from __future__ import annotations

import csv
import html
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_engine.errors import DatasetError, OutputExistsError
from cervix_engine.files import sha256_file
from cervix_engine.tiles.preprocess import decode, preprocess
from cervix_engine.tiles.tile import TileFailure
from cervix_keras.start import load_keras
from cervix_train.data.dataset import Dataset, LabelledTile
from cervix_train.data.distribution import ClassCounts, ClassDistribution
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import assign_splits
from cervix_train.features.extractor import build_extractor
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.network import build_head, join
from cervix_train.learning.split_tiles import SplitTiles
from cervix_train.learning.stages import thaw
from cervix_train.learning.temperature import nll
from cervix_train.results.record import TrainingRecord
from cervix_train.results.reference import choose_golden
from cervix_train.results.report.page import write_page
from cervix_train.results.report.page_input import PageInput
from cervix_train.training.train import TrainReport, measure_temperature, train

from .conftest import interrupted_at

TILES = 60  # in the fixture `drawn`
PLOTS = ("confusion_matrix", "distribution", "examples", "history", "precision_recall", "reliability", "roc")

MakeConfig = Callable[..., TrainConfig]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return Bundle.open(bundle)


@pytest.fixture(scope="module")
def model(opened: Bundle) -> Any:
    return load_keras().saving.load_model(opened.root / "model.keras", safe_mode=True)


def test_the_bundle_holds_all_it_should_and_nothing_else_lies_around(opened: Bundle) -> None:
    expected = {"contract.json", "MODEL_CARD.md", "model.keras", "golden/golden.json", "calibration/tiles.json"}
    expected |= {f"training/{name}" for name in ("metrics.json", "history.csv", "split.csv", "head.weights.h5")}
    expected |= {f"training/{name}.png" for name in PLOTS}
    expected |= {f"training/{name}.json" for name in ("calibration", "copies", "operating_point", "training")}
    expected |= {"training/report.html"}
    assert {name for name in opened.files if not name.endswith(".tile")} == expected
    assert {path.name for path in opened.root.parent.iterdir()} == {"bundle", "cache"}


def test_the_model_takes_raw_pixels_and_gives_probabilities(model: Any, opened: Bundle) -> None:
    assert model.inputs[0].dtype == "uint8"
    assert model.input_shape == (None, *opened.contract.input_size, 3)
    assert model.output_shape == (None, 5)
    assert not any(type(layer).__name__ == "Lambda" for layer in model.layers)
    answers = model.predict_on_batch(np.zeros((2, *opened.contract.input_size, 3), np.uint8))
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-6)


def test_golden_tiles_are_the_models_answers_on_the_original_files(model: Any, opened: Bundle, drawn: Path) -> None:
    golden = GoldenSet.load(opened)
    assert len(golden.tiles) == TILES
    pixels = golden.pixels()
    assert np.allclose(model.predict_on_batch(pixels), golden.probabilities(), atol=1e-5)
    originals = {sha256_file(path): path.parent.name for path in drawn.rglob("*.png")}
    assert {opened.files[tile.file]: tile.label for tile in golden.tiles} == originals
    # What is replayed at every start should be of several classes.
    assert len({tile.label for tile in golden.tiles[:8]}) >= 3


def test_calibration_tiles_were_learnt_from(opened: Bundle, drawn: Path) -> None:
    index = opened.read_json("calibration/tiles.json", schema="cervix/calibration-tiles/1")
    split = {row["path"]: row["split"] for row in read_csv(opened.root / "training/split.csv")}
    assert index["tiles"]
    assert {split[tile["source"]] for tile in index["tiles"]} == {"train"}
    for tile in index["tiles"]:
        assert opened.read(tile["file"]) == (drawn / tile["source"]).read_bytes()
    assert calibration_pixels(opened).shape == (len(index["tiles"]), *opened.contract.input_size, 3)


def test_tile_statistics_are_the_training_tiles(opened: Bundle, drawn: Path) -> None:
    rows = [row for row in read_csv(opened.root / "training/split.csv") if row["split"] == "train"]
    data = [(drawn / row["path"]).read_bytes() for row in rows]
    means = np.array([preprocess(item, contract=opened.contract).mean(axis=(0, 1)) for item in data])
    heights = [decode(item, contract=opened.contract).shape[0] for item in data]
    statistics = {item.name: item for item in opened.contract.tile_statistics}
    assert list(statistics) == ["mean_red", "mean_green", "mean_blue", "height_px", "width_px"]
    green = statistics["mean_green"]
    assert (green.low, green.median, green.high) == pytest.approx(tuple(np.percentile(means[:, 1], [0.5, 50, 99.5])))
    assert statistics["height_px"].median == np.median(heights)


def test_the_split_file_lists_every_tile_once(opened: Bundle, drawn: Path) -> None:
    rows = read_csv(opened.root / "training/split.csv")
    on_disk = sorted(path.relative_to(drawn).as_posix() for path in drawn.rglob("*.png"))
    assert [row["path"] for row in rows] == on_disk
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert {row["error"] for row in rows} == {""}
    assert rows[0]["group"] == "cervix_dyk/001"


def test_the_split_file_is_a_manifest_of_the_same_split(opened: Bundle, drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn, data)
    (data / "manifest.csv").write_bytes(opened.read("training/split.csv"))
    dataset = read_dataset(data)
    assert assign_splits(dataset, seed=9) == dataset
    assert len(dataset.tiles) == TILES


def test_the_metrics_are_the_test_splits(opened: Bundle, model: Any, drawn: Path, report: TrainReport) -> None:
    metrics = json.loads((opened.root / "training/metrics.json").read_text())
    schema = json.loads(files("cervix_train").joinpath("schemas/metrics.schema.json").read_text())
    jsonschema.validate(metrics, schema)
    assert metrics == json.loads(json.dumps(report.metrics.to_json()))
    rows = [row for row in read_csv(opened.root / "training/split.csv") if row["split"] == "test"]
    data = [(drawn / row["path"]).read_bytes() for row in rows]
    answers = model.predict_on_batch(np.stack([preprocess(item, contract=opened.contract) for item in data]))
    true = [opened.contract.class_names.index(row["label"]) for row in rows]
    assert metrics["tiles"] == len(rows)
    assert metrics["accuracy"] == pytest.approx((answers.argmax(axis=1) == true).mean())


def test_the_temperature_is_folded_recorded_and_no_loss(opened: Bundle, model: Any, drawn: Path) -> None:
    calibration = opened.read_json("training/calibration.json", schema="cervix/calibration/2")
    jsonschema.validate(
        calibration, json.loads(files("cervix_train").joinpath("schemas/calibration.schema.json").read_text())
    )
    temperature = opened.contract.temperature
    assert temperature == calibration["temperature"] != 1.0
    low, high = calibration["temperature_interval"]
    assert low < temperature < high
    assert calibration["val"]["after"]["nll"] <= calibration["val"]["before"]["nll"]
    metrics = json.loads((opened.root / "training/metrics.json").read_text())
    assert metrics["calibration"] == calibration["test"]["after"]
    # What was stored while it was trained is the head before the temperature.
    head = build_head(features=128, classes=5)
    head.load_weights(opened.root / "training/head.weights.h5")
    before, after = head.layers[-1].get_weights(), model.layers[-1].get_weights()
    assert all(np.allclose(a, b / temperature) for a, b in zip(after, before, strict=True))


def test_the_report_is_one_file_with_all_tables_and_plots(opened: Bundle, report: TrainReport) -> None:
    page = opened.read("training/report.html").decode()
    assert page.count("<svg ") == len(PLOTS) - 1
    assert page.count("data:image/jpeg;base64,") == min(24, report.metrics.tiles), "examples are pictures of their own"
    assert "<script" not in page
    assert "cervix_dyk" not in page.partition("How to do it again")[0], "classes have their display names"
    assert "Dyskeratotic" in page
    assert 'src="http' not in page
    assert f"{100 * report.metrics.accuracy:.1f} %" in page
    headings = ("The tiles", "Learning", "Class by class", "What was missed", "Abnormal against", "confidence", "again")
    assert all(words in page for words in headings)
    record = opened.read_json("training/training.json", schema="cervix/training/1")
    jsonschema.validate(record, json.loads(files("cervix_train").joinpath("schemas/training.schema.json").read_text()))
    assert sum(item["test"] for item in record["distribution"]["classes"]) == report.metrics.tiles
    assert [stage["kept"] for stage in record["stages"]] == [True]
    assert record["stages"][0]["test_accuracy"] == report.metrics.accuracy


def test_the_bundle_carries_its_card(opened: Bundle, report: TrainReport) -> None:
    card = opened.read("MODEL_CARD.md").decode()
    metrics = report.metrics
    low, high = metrics.accuracy_interval
    assert f"| accuracy | {metrics.accuracy:.3f} | {low:.3f} to {high:.3f} |" in card
    assert "Trained with cervix-train" in card
    assert "| all | 40 | 10 | 10 |" in card


def test_a_temperature_that_does_not_fit_the_test_tiles_is_said_aloud(
    report: TrainReport, opened: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 60)
    tiles = SplitTiles(np.arange(60), LabelledFeatures(np.zeros((60, 1), np.float32), targets), ("",) * 60, ())
    tiles = replace(tiles, groups=tuple(map(str, range(60))))
    logits = rng.normal(0, 1, (60, 5))
    with caplog.at_level(logging.WARNING, "cervix_train"):
        calibration = measure_temperature({"val": logits, "test": logits}, {"val": tiles, "test": tiles}, 0.05)
    said = re.search(r"the test tiles' ECE .* lies above a calibrated model's, [^:]*", caplog.text)
    assert said is not None
    distribution = ClassDistribution((ClassCounts("cervix_dyk", 1, 1, 1),), 1.0)
    record = TrainingRecord({"backbone": "cnn"}, {}, distribution, 0, (), {})
    told = PageInput(report.metrics, calibration, None, record, classes=opened.contract.classes, pictures={})
    write_page(tmp_path / "page.html", told)
    assert html.escape(said[0].removeprefix("the ")) in (tmp_path / "page.html").read_text()


def test_a_training_interrupted_after_the_head_goes_on(
    config: TrainConfig, report: TrainReport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = replace(config, out=tmp_path / "bundle")
    with interrupted_at("head: kept epoch "):
        train(again)
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.resume"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "cervix_train"):
        resumed = train(replace(again, resume=True))
    # The training has no epoch left, so nothing may be learnt again.
    assert not [line for line in caplog.messages if line.startswith("epoch ")]
    assert "resumed after epoch 3" in caplog.text
    assert (resumed.metrics, resumed.history) == (report.metrics, report.history)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("rate", "kept"), [(1e-3, "fine-tuning, 50% of the layers"), (50.0, "head")])
def test_the_better_stage_is_kept(
    rate: float, kept: str, config: TrainConfig, drawn: Path, tmp_path: Path, report: TrainReport
) -> None:
    tuned = replace(config, out=tmp_path / "bundle", fine_tune_epochs=2, fine_tune_learning_rate=rate)
    result = train(tuned)
    opened = Bundle.open(tmp_path / "bundle")
    record = opened.read_json("training/training.json", schema="cervix/training/1")
    assert [stage["name"] for stage in record["stages"] if stage["kept"]] == [kept]
    assert len(record["stages"]) == 2
    assert "training/history_fine_tune.csv" in opened
    # The file answers as the kept stage did, whichever that is.
    model = load_keras().saving.load_model(opened.root / "model.keras", safe_mode=True)
    rows = [row for row in read_csv(opened.root / "training/split.csv") if row["split"] == "test"]
    data = [(drawn / row["path"]).read_bytes() for row in rows]
    answers = model.predict_on_batch(np.stack([preprocess(item, contract=opened.contract) for item in data]))
    true = np.array([opened.contract.class_names.index(row["label"]) for row in rows])
    assert result.metrics.calibration.nll == pytest.approx(nll(answers, true), rel=1e-3)


def test_fine_tuning_changes_the_last_layers_alone() -> None:
    load_keras(seed=0)
    extractor = build_extractor("cnn", input_size=(32, 32), weights="none")
    extractor.trainable = False
    model = join(extractor, build_head(features=128, classes=5))
    thaw(model, share=0.5)
    names = {variable.path.split("/")[-2] for variable in model.trainable_variables}
    assert names == {"conv_3", "conv_4", "dense_1", "dense_2", "probabilities"}


def test_the_history_has_a_row_per_epoch(opened: Bundle) -> None:
    rows = read_csv(opened.root / "training/history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}


def test_plots_are_pictures(opened: Bundle) -> None:
    for name in PLOTS:
        picture = decode(opened.read(f"training/{name}.png"), contract=opened.contract)
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 5


def test_the_same_seed_learns_the_same_and_computes_no_feature_again(
    make_config: MakeConfig, report: TrainReport, tmp_path: Path
) -> None:
    # A cache of its own: other tests share that of `report`, in whatever order they run.
    config = make_config(tmp_path, cache=tmp_path / "cache")
    first, again = train(config), train(replace(config, out=tmp_path / "again"))
    assert (first.computed, again.computed) == (TILES, 0)
    assert again.history == first.history == report.history
    assert again.metrics == first.metrics == report.metrics


def test_corrupt_tiles_of_classes_of_ones_own_are_left_out_aloud(
    make_config: MakeConfig, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn / "cervix_dyk", data / "hsil")
    shutil.copytree(drawn / "cervix_sfi", data / "nilm")
    broken = data / "nilm/001_01.png"
    broken.write_bytes(broken.read_bytes()[:99])
    classes = (TileClass("nilm", "Negative", "normal"), TileClass("hsil", "High grade", "abnormal"))
    with caplog.at_level(logging.WARNING, "cervix_train"):
        report = train(make_config(tmp_path, data=data, classes=classes, epochs=1))
    assert report.left_out == 1
    assert "left out nilm/001_01.png: truncated: " in caplog.text
    assert "1 of 24 tiles was left out" in caplog.text
    errors = {row["path"]: row["error"] for row in read_csv(tmp_path / "bundle/training/split.csv") if row["error"]}
    assert list(errors) == ["nilm/001_01.png"]
    opened = Bundle.open(tmp_path / "bundle")
    assert opened.contract.classes == classes
    assert len(GoldenSet.load(opened).tiles) == 23


def test_a_class_without_a_readable_tile_stops_it(make_config: MakeConfig, drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn, data)
    for path in (data / "cervix_pab").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DatasetError, match="no readable tile of class cervix_pab is left in the training split"):
        train(make_config(tmp_path, data=data))
    assert not (tmp_path / "bundle").exists()


def test_an_existing_bundle_is_refused_before_any_work(make_config: MakeConfig, bundle: Path) -> None:
    config = make_config(bundle.parent, data=Path("/nowhere"))
    with pytest.raises(OutputExistsError):
        train(config)


def test_an_interrupted_training_leaves_the_old_bundle(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.json").write_text("old")
    with interrupted_at("epoch 1 of "):
        train(make_config(tmp_path, epochs=1, overwrite=True))
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["bundle.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "cache", ".bundle.resume"}


def dataset(**counts: int) -> Dataset:
    tiles = tuple(
        LabelledTile(Path(f"{split}/{number}.png"), "cervix_dyk", split=split)  # type: ignore[arg-type]
        for split, count in counts.items()
        for number in range(count)
    )
    return Dataset(Path("root"), tiles, SIPAKMED_CLASSES)


def test_golden_tiles_were_not_learnt_from_where_there_are_enough() -> None:
    given = dataset(train=900, val=300, test=300)
    chosen = choose_golden(given, {}, seed=0)
    assert len(chosen) == len(set(chosen)) == 512
    assert {given.tiles[index].split for index in chosen} == {"val", "test"}
    assert choose_golden(given, {}, seed=0) == chosen
    assert choose_golden(given, {}, seed=1) != chosen


def test_golden_tiles_are_filled_up_from_training_where_there_are_not() -> None:
    given = dataset(train=900, val=100, test=100)
    chosen = choose_golden(given, {1000: TileFailure("decode", "corrupt: x")}, seed=0)
    splits = [given.tiles[index].split for index in chosen]
    assert len(chosen) == 512
    assert "train" not in splits[:199]
    assert set(splits[199:]) == {"train"}
    assert 1000 not in chosen
