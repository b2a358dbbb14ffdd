from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
import numpy as np
import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_train.metrics import measure

SCHEMA = json.loads(files("cervix_train").joinpath("schemas/metrics.schema.json").read_text())
THREE = (TileClass("a", "A", "abnormal"), TileClass("b", "B", "benign"), TileClass("n", "N", "normal"))


def one_hot(predicted: list[int], *, classes: int = 3, sure: float = 0.8) -> Any:
    probabilities = np.full((len(predicted), classes), (1 - sure) / (classes - 1), np.float32)
    probabilities[np.arange(len(predicted)), predicted] = sure
    return probabilities


def run(predicted: list[int], true: list[int], **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"classes": THREE, "split": "test"}
    metrics = measure(one_hot(predicted), np.array(true), **{**values, **changes})
    jsonschema.validate(json.loads(json.dumps(metrics)), SCHEMA)
    return metrics


def test_counts_by_hand() -> None:
    # true a: 3 of which 2 found; true b: 2 of which 1 found; true n: 1, found.
    metrics = run([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], failed=4)
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert (metrics["tiles"], metrics["failed"]) == (6, 4)
    a, b, n = metrics["per_class"]
    assert a == {"name": "a", "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "tiles": 3}
    assert b == {"name": "b", "precision": 0.5, "recall": 0.5, "f1": 0.5, "tiles": 2}
    assert n["precision"] == 0.5
    assert metrics["macro"]["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics["weighted"]["recall"] == pytest.approx(4 / 6)
    assert metrics["weighted"]["precision"] == pytest.approx((3 * 1 + 2 * 0.5 + 1 * 0.5) / 6)


def test_abnormal_against_the_rest() -> None:
    probabilities = np.array([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.35, 0.33, 0.32], [0.1, 0.8, 0.1]], np.float32)
    abnormal = measure(probabilities, np.array([0, 0, 1, 2]), classes=THREE, split="all")["abnormal_vs_rest"]
    # Called abnormal: tiles 0 and 2. Of the four (abnormal, other) pairs, one is ranked the wrong way round.
    assert abnormal == {"abnormal_tiles": 2, "sensitivity": 0.5, "specificity": 0.5, "auroc": pytest.approx(0.75)}


def test_perfect_answers() -> None:
    metrics = run([0, 1, 2], [0, 1, 2])
    assert metrics["macro"] == metrics["weighted"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert metrics["abnormal_vs_rest"]["auroc"] == 1.0


def test_a_class_that_does_not_occur_is_no_part_of_the_macro_average() -> None:
    metrics = run([0, 1], [0, 1])
    assert metrics["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert metrics["per_class"][2] == {"name": "n", "precision": 0.0, "recall": 0.0, "f1": 0.0, "tiles": 0}


@pytest.mark.parametrize("true", [[0, 0], [1, 2]])
def test_nothing_to_tell_apart(true: list[int]) -> None:
    assert run([0, 1], true)["abnormal_vs_rest"] is None


def test_sipakmeds_abnormal_classes() -> None:
    probabilities = one_hot([0, 1, 2, 3, 4], classes=5)
    metrics = measure(probabilities, np.arange(5), classes=SIPAKMED_CLASSES, split="test")
    assert metrics["abnormal_vs_rest"]["abnormal_tiles"] == 2


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="for 3 tiles"):
        measure(one_hot([0, 1]), np.array([0, 1, 2]), classes=THREE, split="test")
    with pytest.raises(ValueError, match="for 0 tiles"):
        measure(one_hot([]), np.array([], np.intp), classes=THREE, split="test")
