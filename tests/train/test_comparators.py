"""Several networks trained alike, one table, and a network that cannot be trained keeps none of the others from it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.errors import BackendUnavailableError
from cervix_train.cli.train import main
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.training import train
from cervix_train.results import comparators

QUICK = ["--input-size", "32", "--epochs", "2", "-b", "16"]


def invoke(drawn: Path, out: Path, *arguments: str) -> Result:
    options = ["-o", str(out), "--cache", str(out.parent / "cache"), *QUICK, *arguments]
    return CliRunner().invoke(main, [str(drawn), *options])


def test_each_is_trained_and_one_table_says_what_they_reach(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []

    def small(config: TrainConfig) -> Any:
        """A ResNet takes long, so that the CNN stands in for it; what was asked is kept."""
        asked.append(config)
        if config.backbone == "mobilenetv2":
            raise BackendUnavailableError("no weights for it here")
        return train(config)

    monkeypatch.setattr(comparators, "train", small)
    done = invoke(drawn, tmp_path / "all", "--compare", "mobilenetv2,cnn", "--weights", "none")
    assert done.exit_code == 1
    assert [(item.backbone, item.weights, item.out.name) for item in asked] == [
        ("mobilenetv2", "none", "mobilenetv2"),
        ("cnn", "none", "cnn"),
    ]
    assert done.stderr.splitlines()[-1] == "error: not trained: mobilenetv2; see the warnings above"
    assert "warning: mobilenetv2: no weights for it here" in done.stderr
    assert "not trained" in done.stdout
    record = json.loads((tmp_path / "all" / "comparison.json").read_text())
    schema = files("cervix_train") / "schemas" / "training_comparison.schema.json"
    jsonschema.validate(record, json.loads(schema.read_text()))
    failed, cnn = record["comparators"]
    assert failed["error"] == "no weights for it here"
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
