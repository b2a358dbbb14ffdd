"""The operating point is chosen on validation tiles alone, and keeps there what it was chosen for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_engine.errors import UsageError
from cervix_engine.table.decisions import Decisions
from cervix_train.learning.config import TrainConfig
from cervix_train.results.curves import curve
from cervix_train.results.intervals import bootstrap_weights
from cervix_train.results.operating_point import (
    JudgedTiles,
    choose,
    report_decisions,
    threshold_for,
    threshold_interval,
)
from cervix_train.training.train import train

TILES = 400


def answers(seed: int, *, tiles: int = TILES, sure: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and true classes of tiles that a model mostly gets right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 5, tiles)
    logits = rng.normal(0, 1, (tiles, 5))
    logits[np.arange(tiles), targets] += sure
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), targets


def judged(seed: int, *, group: int = 4, sure: float = 2.5) -> JudgedTiles:
    probabilities, targets = answers(seed, sure=sure)
    weights = bootstrap_weights((np.arange(len(targets)) // group).tolist())
    return JudgedTiles.of(probabilities, targets, weights, classes=SIPAKMED_CLASSES)


@pytest.mark.parametrize("sensitivity", [0.5, 0.9, 0.98, 1.0])
def test_the_threshold_is_the_largest_that_finds_what_is_asked(sensitivity: float) -> None:
    val = judged(1)
    at = threshold_for(val, sensitivity)
    found = val.abnormal[val.is_abnormal]
    assert (found >= at).mean() >= sensitivity > (found >= at + 1).mean()


def test_a_person_sees_no_more_than_the_share_and_nearly_as_much() -> None:
    val = judged(2)
    for share in (0.0, 0.05, 0.1, 0.5):
        point = choose(val, sensitivity=0.98, review_share=share)
        contract = ModelContract(SIPAKMED_CLASSES, operating_point=point)
        decide = Decisions(contract)
        probabilities, _ = answers(2)
        review = np.mean([decide(row).review for row in probabilities.tolist()])
        assert share - 2 / TILES - 0.02 * share <= review <= share


def test_what_is_measured_is_what_a_table_would_decide() -> None:
    val, probabilities, targets = judged(3), *answers(3)
    report = report_decisions(val, judged(4), sensitivity=0.95, review_share=0.1)
    assert report is not None
    decide = Decisions(ModelContract(SIPAKMED_CLASSES, operating_point=report.point))
    rows = [decide(row) for row in probabilities.tolist()]
    abnormal = np.array([SIPAKMED_CLASSES[target].category == "abnormal" for target in targets])
    called, review = np.array([row.abnormal for row in rows]), np.array([row.review for row in rows])
    chosen = report.val.chosen
    assert chosen.sensitivity == pytest.approx(called[abnormal].mean())
    assert chosen.specificity == pytest.approx((~called[~abnormal]).mean())
    assert chosen.review == pytest.approx(review.mean())
    assert chosen.rest_called_right == pytest.approx((called == abnormal)[~review].mean())
    right = probabilities.argmax(axis=1) == targets
    assert chosen.rest_class_right == pytest.approx(right[~review].mean())
    assert chosen.sensitivity_interval[0] < chosen.sensitivity < chosen.sensitivity_interval[1]
    schema = json.loads(files("cervix_train").joinpath("schemas/operating_point.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema)


def test_the_test_tiles_are_measured_and_never_chosen_by() -> None:
    val = judged(5)
    # An oracle: every abnormal test tile has one probability and every other one a lower one.
    oracle = replace(judged(6), abnormal=np.where(judged(6).is_abnormal, 900_000, 100_000))
    tests = (judged(6), judged(7, sure=0.1), oracle)
    reports = [report_decisions(val, test, sensitivity=0.98, review_share=0.1) for test in tests]
    assert all(reports)
    points = {report.point for report in reports if report}
    assert points == {choose(val, sensitivity=0.98, review_share=0.1)}
    assert len({report.abnormal_at_interval for report in reports if report}) == 1
    assert len({report.val for report in reports if report}) == 1
    assert len({report.test for report in reports if report}) == 3


def test_groups_are_resampled_and_not_tiles() -> None:
    alone, together = judged(8, group=1), judged(8, group=20)
    narrow, wide = threshold_interval(alone, 0.9), threshold_interval(together, 0.9)
    at = threshold_for(alone, 0.9) / 1e6
    assert narrow[0] <= at <= narrow[1]
    # Twenty copies of each tile are no more evidence than one.
    copied = replace(
        alone,
        abnormal=np.repeat(alone.abnormal, 20),
        is_abnormal=np.repeat(alone.is_abnormal, 20),
        weights=np.repeat(alone.weights, 20, axis=1),
    )
    assert threshold_interval(copied, 0.9) == narrow
    assert wide[0] < wide[1]


def test_tiles_of_one_side_give_no_operating_point() -> None:
    val = judged(9)
    one_sided = replace(val, is_abnormal=np.zeros(TILES, bool))
    assert report_decisions(one_sided, val, sensitivity=0.98, review_share=0.1) is None
    report = report_decisions(val, one_sided, sensitivity=0.98, review_share=0.1)
    assert report is not None
    assert report.test is None


def test_curves_are_scikit_learns_within_their_bands() -> None:
    tiles = judged(10)
    roc, pr = curve(tiles, "roc"), curve(tiles, "precision_recall")
    assert roc.area == pytest.approx(roc_auc_score(tiles.is_abnormal, tiles.abnormal))
    assert pr.area == pytest.approx(average_precision_score(tiles.is_abnormal, tiles.abnormal))
    for shown in (roc, pr):
        assert shown.area_interval[0] < shown.area < shown.area_interval[1]
        assert (shown.low <= shown.high).all()
        inside = np.interp(shown.grid, shown.x, shown.y)
        assert ((shown.low - 1e-9 <= inside) & (inside <= shown.high + 1e-9)).mean() > 0.9


def test_the_bundle_decides_by_what_its_training_chose(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    report = opened.read_json("training/operating_point.json", schema="cervix/operating-point/1")
    schema = json.loads(files("cervix_train").joinpath("schemas/operating_point.schema.json").read_text())
    jsonschema.validate(report, schema)
    point = opened.contract.operating_point
    assert point is not None
    assert opened.contract.to_json()["operating_point"] == report["point"]
    assert report["val"]["thresholds"][0]["sensitivity"] >= point.sensitivity == 0.98
    recipe = opened.read_json("training/training.json", schema="cervix/training/1")["recipe"]
    assert (recipe["sensitivity"], recipe["review_share"]) == (0.98, 0.1)


def test_other_test_labels_train_to_the_same_operating_point(
    config: TrainConfig, bundle: Path, drawn: Path, tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    """A whole training whose test labels are all wrong: nothing that is chosen may know them."""
    shutil.copytree(drawn, data := tmp_path / "data")
    with (bundle / "training/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [item.name for item in SIPAKMED_CLASSES]
    for row in rows:
        if row["split"] == "test":
            row["label"] = names[(names.index(row["label"]) + 2) % len(names)]
    with (data / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("path", "label", "group", "split", "error"))
        writer.writeheader()
        writer.writerows(rows)
    report = train(make_config(tmp_path, data=data, cache=config.cache))
    assert report.metrics.accuracy < 0.5, "the labels are wrong"
    assert Bundle.open(tmp_path / "bundle").contract == Bundle.open(bundle).contract


@pytest.mark.parametrize(
    "changes", [{"sensitivity": float("nan")}, {"sensitivity": 0.0}, {"review_share": 1.0}, {"review_share": -0.1}]
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_learnt(
    changes: dict[str, float], make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(changes)).replace('_', '-')}"):
        train(make_config(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
