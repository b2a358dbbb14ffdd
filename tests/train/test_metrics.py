from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
import numpy as np
import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, TileClass
from cervix_engine.table.scores import macro_f1
from cervix_train.results.intervals import bootstrap_weights, percentile_interval
from cervix_train.results.metrics import Averages, ClassScores, Metrics, Misses, _auroc, measure

SCHEMA = json.loads(files("cervix_train").joinpath("schemas/metrics.schema.json").read_text())
THREE = (TileClass("a", "A", "abnormal"), TileClass("b", "B", "benign"), TileClass("n", "N", "normal"))


def one_hot(predicted: list[int], *, classes: int = 3, sure: float = 0.8) -> Any:
    probabilities = np.full((len(predicted), classes), (1 - sure) / (classes - 1), np.float32)
    probabilities[np.arange(len(predicted)), predicted] = sure
    return probabilities


def run(predicted: list[int], true: list[int], **changes: Any) -> Metrics:
    values: dict[str, Any] = {"classes": THREE, "split": "test"}
    metrics = measure(one_hot(predicted), np.array(true), **{**values, **changes})
    jsonschema.validate(json.loads(json.dumps(metrics.to_json())), SCHEMA)
    return metrics


def scores(item: ClassScores) -> tuple[Any, ...]:
    return item.name, item.precision, item.recall, item.f1, item.tiles


def noisy(count: int, *, seed: int = 0) -> tuple[Any, Any]:
    """Answers that are right more often than not, and their true classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    raised = np.exp(rng.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[targets])
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32), targets


def test_counts_by_hand() -> None:
    # true a: 3 of which 2 found; true b: 2 of which 1 found; true n: 1, found.
    metrics = run([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], failed=4)
    assert metrics.confusion_matrix == ((2, 1, 0), (0, 1, 1), (0, 0, 1))
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert (metrics.tiles, metrics.failed) == (6, 4)
    a, b, n = metrics.per_class
    assert scores(a) == ("a", 1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3)
    assert scores(b) == ("b", 0.5, 0.5, 0.5, 2)
    assert n.precision == 0.5
    assert metrics.macro.recall == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics.weighted.recall == pytest.approx(4 / 6)
    assert metrics.weighted.precision == pytest.approx((3 * 1 + 2 * 0.5 + 1 * 0.5) / 6)


def test_abnormal_against_the_rest() -> None:
    probabilities = np.array([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.35, 0.33, 0.32], [0.1, 0.8, 0.1]], np.float32)
    abnormal = measure(probabilities, np.array([0, 0, 1, 2]), classes=THREE, split="all").abnormal_vs_rest
    # Called abnormal: tiles 0 and 2. Of the four (abnormal, other) pairs, one is ranked the wrong way round.
    assert abnormal is not None
    assert (abnormal.abnormal_tiles, abnormal.sensitivity, abnormal.specificity, abnormal.auroc) == (2, 0.5, 0.5, 0.75)


def test_perfect_answers() -> None:
    metrics = run([0, 1, 2], [0, 1, 2])
    assert metrics.macro == metrics.weighted == Averages(1.0, 1.0, 1.0)
    assert metrics.abnormal_vs_rest is not None
    assert metrics.abnormal_vs_rest.auroc == 1.0


def test_a_class_that_does_not_occur_is_no_part_of_the_macro_average() -> None:
    metrics = run([0, 1], [0, 1])
    assert metrics.macro == Averages(1.0, 1.0, 1.0)
    assert scores(metrics.per_class[2]) == ("n", 0.0, 0.0, 0.0, 0)
    assert metrics.per_class[2].recall_interval == (0, 1)


@pytest.mark.parametrize("true", [[0, 0], [1, 2]])
def test_nothing_to_tell_apart(true: list[int]) -> None:
    assert run([0, 1], true).abnormal_vs_rest is None


def test_sipakmeds_abnormal_classes() -> None:
    probabilities = one_hot([0, 1, 2, 3, 4], classes=5)
    metrics = measure(probabilities, np.arange(5), classes=SIPAKMED_CLASSES, split="test")
    assert metrics.abnormal_vs_rest is not None
    assert metrics.abnormal_vs_rest.abnormal_tiles == 2


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="for 3 tiles"):
        measure(one_hot([0, 1]), np.array([0, 1, 2]), classes=THREE, split="test")
    with pytest.raises(ValueError, match="for 0 tiles"):
        measure(one_hot([]), np.array([], np.intp), classes=THREE, split="test")


def test_false_negatives_say_what_each_missed_tile_was_called() -> None:
    metrics = run([0, 1, 2, 2, 1, 2], [0, 0, 0, 0, 1, 2])
    expected = (Misses("a", 3, {"n": 2, "b": 1}), Misses("b", 0, {}), Misses("n", 0, {}))
    assert metrics.false_negatives == expected
    assert list(metrics.false_negatives[0].called) == ["n", "b"]


def test_fast_resampling_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, roc_auc_score

    probabilities, targets = noisy(80)
    probabilities = probabilities.round(1)  # ties
    predicted = probabilities.argmax(axis=1)
    weights = bootstrap_weights(range(80))
    scores = probabilities[:, 0]
    slow = [roc_auc_score(targets == 0, scores, sample_weight=row) for row in weights[:20]]
    assert np.allclose(_auroc(scores, targets == 0, weights[:20]), slow)
    interval = percentile_interval(macro_f1(predicted, targets, weights[:1], classes=3))
    expected = f1_score(targets, predicted, average="macro", sample_weight=weights[0])
    assert interval == pytest.approx((expected, expected))


def test_intervals_hold_the_number_and_narrow_with_more_tiles() -> None:
    widths = []
    for count in (100, 1600):
        probabilities, targets = noisy(count)
        metrics = measure(probabilities, targets, classes=THREE, split="test")
        abnormal = metrics.abnormal_vs_rest
        assert abnormal is not None
        pairs = [
            (metrics.accuracy, metrics.accuracy_interval),
            (metrics.macro.f1, metrics.macro_f1_interval),
            (abnormal.sensitivity, abnormal.sensitivity_interval),
            (abnormal.specificity, abnormal.specificity_interval),
            (abnormal.auroc, abnormal.auroc_interval),
        ]
        assert all(low < value < high for value, (low, high) in pairs)
        widths.append([high - low for _, (low, high) in pairs])
    assert all(3 < wide / narrow < 6 for wide, narrow in zip(*widths, strict=True))


def test_tiles_of_one_group_count_as_one_draw() -> None:
    probabilities, targets = noisy(100)
    alone = measure(probabilities, targets, classes=THREE, split="test")
    copies = measure(
        np.tile(probabilities, (4, 1)),
        np.tile(targets, 4),
        classes=THREE,
        split="test",
        groups=[str(number) for number in range(100)] * 4,
    )
    assert (alone.groups, copies.groups) == (None, 100)
    assert copies.macro_f1_interval == pytest.approx(alone.macro_f1_interval)
    # Four copies of a tile are no more sure than one, and Wilson's interval alone would be half as wide.
    widths = [np.ptp(item.accuracy_interval) for item in (copies, alone)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
