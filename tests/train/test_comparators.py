"""Several networks trained alike, one table, and a network that cannot be trained keeps none of the others from it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendUnavailableError
from cervix_train.cli.train import main
from cervix_train.features.extractor import Backbone, Weights
from cervix_train.learning.config import TrainConfig
from cervix_train.training.comparators import Comparator, compare_backbones
from cervix_train.training.train import TrainReport

QUICK = ["--input-size", "32", "--epochs", "2", "-b", "16"]


def invoke(drawn: Path, out: Path, *arguments: str) -> Result:
    options = ["-o", str(out), "--cache", str(out.parent / "cache"), *QUICK, *arguments]
    return CliRunner().invoke(main, [str(drawn), *options])


def test_what_cannot_be_trained_keeps_the_others_from_nothing(
    config: TrainConfig, report: TrainReport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[TrainConfig] = []

    def trainer(config: TrainConfig) -> TrainReport:
        asked.append(config)
        if config.backbone == "mobilenetv2":
            raise BackendUnavailableError("no weights for it here")
        return report

    weights: dict[Backbone, Weights] = {"mobilenetv2": "imagenet", "cnn": "none"}
    given = replace(config, out=tmp_path)
    found = compare_backbones(given, ["mobilenetv2", "cnn"], weights_of=weights.__getitem__, train=trainer)
    assert asked == [
        replace(config, backbone="mobilenetv2", weights="imagenet", out=tmp_path / "mobilenetv2"),
        replace(config, backbone="cnn", weights="none", out=tmp_path / "cnn"),
    ]
    failed, cnn = found.comparators
    assert failed == Comparator("mobilenetv2", error="no weights for it here")
    assert cnn.accuracy == (report.metrics.accuracy, *report.metrics.accuracy_interval)
    assert (cnn.error, cnn.val_loss) == (None, report.val_loss)
    assert "mobilenetv2: no weights for it here" in caplog.text


def test_each_is_trained_and_one_table_says_what_they_reach(drawn: Path, tmp_path: Path) -> None:
    done = invoke(drawn, tmp_path / "all", "--compare", "cnn", "--weights", "none")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "all" / "comparison.json").read_text())
    schema = files("cervix_train") / "schemas" / "training_comparison.schema.json"
    jsonschema.validate(record, json.loads(schema.read_text()))
    (cnn,) = record["comparators"]
    metrics = json.loads(Bundle.open(tmp_path / "all" / "cnn").read("training/metrics.json"))
    assert cnn["accuracy"] == [metrics["accuracy"], *metrics["accuracy_interval"]]
    assert cnn["macro_f1"] == [metrics["macro"]["f1"], *metrics["macro_f1_interval"]]
    assert f"{metrics['accuracy']:.3f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "resnet101,alexnet"], "expected different ones of resnet101, resnet50, mobilenetv2, cnn"),
        (["--compare", "cnn,cnn"], "expected different ones"),
        (["--compare", ""], "expected different ones"),
        (["--compare", "cnn", "--weights", "x.weights.h5"], "fits one backbone"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_in_one_line(
    drawn: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = invoke(drawn, tmp_path / "all", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "all").exists()
