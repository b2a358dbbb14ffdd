from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from cervix_keras.start import load_keras
from cervix_train.learning.network import build_head
from cervix_train.learning.temperature import BOUNDS, fit_temperature, fold_temperature, logits_of, nll, softmax
from cervix_train.results.calibration import (
    Calibration,
    Reliability,
    before_and_after,
    calibration_of,
    calibration_warnings,
    measure_reliability,
    temperature_interval,
)
from cervix_train.results.intervals import bootstrap_weights

Logits = npt.NDArray[np.float64]
Targets = npt.NDArray[np.intp]


def calibrated(count: int, *, seed: int = 0) -> tuple[Logits, Targets]:
    """Logits, and classes that are drawn with exactly their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    below = softmax(logits).cumsum(axis=1)
    return logits, (rng.random((count, 1)) > below[:, :-1]).sum(axis=1)


def measured(logits: Logits, targets: Targets) -> Reliability:
    weights = bootstrap_weights(range(len(targets)))
    return measure_reliability(softmax(logits).astype(np.float32), targets, weights=weights)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_over_and_underconfidence(factor: float) -> None:
    logits, targets = calibrated(8000)
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.05)


def test_validation_never_gets_worse() -> None:
    for seed in range(20):
        logits, targets = calibrated(15, seed=seed)
        temperature = fit_temperature(logits, targets)
        assert nll(softmax(logits / temperature), targets) <= nll(softmax(logits), targets)


def test_where_all_is_right_the_temperature_stays_within_bounds() -> None:
    logits = 5 * np.eye(3)
    assert BOUNDS[0] <= fit_temperature(logits, np.arange(3)) < 1


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperatures_interval_holds_what_it_would_be_fitted_to(factor: float) -> None:
    inside = 0
    for seed in range(20):
        logits, targets = calibrated(300, seed=seed)
        low, high = temperature_interval(factor * logits, targets, weights=bootstrap_weights(range(300)))
        inside += low <= factor <= high
        assert 1.1 < high / low < 2
    assert inside >= 16  # 19 expected


def test_each_resample_fits_its_own_temperature() -> None:
    logits, targets = calibrated(200)
    drawn = np.random.default_rng(1).integers(0, 200, 200)
    weights = np.bincount(drawn, minlength=200)[np.newaxis].astype(np.float64)
    low, high = temperature_interval(2 * logits, targets, weights=weights)
    assert low == high == pytest.approx(fit_temperature(2 * logits[drawn], targets[drawn]), rel=0.01)


def test_tiles_that_belong_together_say_less() -> None:
    logits, targets = calibrated(60)
    copies, fields = 8, np.repeat(np.arange(60), 8)
    many = (np.repeat(logits, copies, axis=0), np.repeat(targets, copies))
    low, high = temperature_interval(logits, targets, weights=bootstrap_weights(range(60)))
    assert temperature_interval(*many, weights=bootstrap_weights(fields.tolist())) == pytest.approx((low, high))
    narrow = temperature_interval(*many, weights=bootstrap_weights(range(480)))
    assert narrow[1] / narrow[0] < (high / low) ** 0.5


def test_folding_is_dividing() -> None:
    load_keras(seed=0)
    head = build_head(features=6, classes=3)
    vectors = np.random.default_rng(0).normal(0, 3, (20, 6)).astype(np.float32)
    logits = logits_of(head, vectors.__getitem__, tiles=20, batch_size=8)
    assert np.allclose(head(vectors).numpy(), softmax(logits), atol=1e-6)
    fold_temperature(head, 2.5)
    assert np.allclose(head(vectors).numpy(), softmax(logits / 2.5), atol=1e-6)
    again = logits_of(head, vectors.__getitem__, tiles=20, batch_size=32)
    assert np.allclose(softmax(again), softmax(logits / 2.5), atol=1e-6)


def test_ece_by_hand() -> None:
    # Two tiles at 0.8, one right; two at 0.6, both right: |0.5 - 0.8| / 2 + |1 - 0.6| / 2.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]], np.float32)
    result = measure_reliability(probabilities, np.array([0, 1, 0, 1]), weights=np.ones((1, 4)))
    assert result.ece == pytest.approx(0.35)
    assert result.ece_interval == pytest.approx((0.35, 0.35))
    assert [(item.tiles, item.accuracy) for item in result.bins] == [(2, 1.0), (2, 0.5)]
    assert [item.confidence for item in result.bins] == pytest.approx([0.6, 0.8])
    assert result.nll == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.6]).mean())
    assert result.brier == pytest.approx((2 * 0.04 + 2 * 0.64 + 4 * 0.16) / 4)


def test_a_calibrated_model_lies_in_the_range_and_an_overconfident_one_does_not() -> None:
    inside = 0
    for seed in range(40):
        result = measured(*calibrated(300, seed=seed))
        low, high = result.ece_if_calibrated
        inside += low <= result.ece <= high
    assert inside >= 35  # 38 expected
    logits, targets = calibrated(300)
    result = measured(3 * logits, targets)
    assert result.ece > result.ece_if_calibrated[1]


def test_before_and_after_differ_by_the_temperature_alone() -> None:
    logits, targets = calibrated(500)
    weights = bootstrap_weights(range(500))
    both = before_and_after(3 * logits, targets, temperature=3.0, weights=weights)
    assert both.after == measured(logits, targets)
    assert both.before == measured(3 * logits, targets)
    assert both.after.nll < both.before.nll
    low, high = both.nll_change_interval
    assert low < both.after.nll - both.before.nll < high < 0


def judged(val: Logits, test: Logits, targets: Targets) -> list[str]:
    """What is said of a temperature that was fitted on `val` and is used on `test`."""
    temperature = fit_temperature(val, targets)
    weights = bootstrap_weights(range(len(targets)))
    same = {"targets": {"val": targets, "test": targets}, "weights": {"val": weights, "test": weights}}
    return calibration_warnings(calibration_of({"val": val, "test": test}, **same, temperature=temperature))  # type: ignore[arg-type]


def test_a_temperature_that_fits_the_test_tiles_gives_no_warning() -> None:
    logits, targets = calibrated(2000)
    assert judged(3 * logits, 3 * logits, targets) == []


@pytest.mark.parametrize(
    ("factor", "kind", "left", "often"), [(3.0, "harder", "too unsure", "more"), (0.4, "easier", "too sure", "less")]
)
def test_validation_tiles_of_another_kind_are_said(factor: float, kind: str, left: str, often: str) -> None:
    logits, targets = calibrated(2000)
    worse, beyond = judged(factor * logits, logits, targets)
    assert f"the validation tiles are {kind} than the test tiles, of which it leaves the model {left}" in worse
    assert "makes the test tiles' NLL worse (" in worse
    assert f"the validation tiles are {kind} than the test tiles, of which the model is right {often} often" in beyond


def test_a_change_that_other_tiles_would_not_show_is_no_news() -> None:
    logits, targets = calibrated(60)
    # Their own temperature lies in the middle between 1 and 1.1.
    logits *= np.sqrt(1.1) / fit_temperature(logits, targets)
    weights = bootstrap_weights(range(60))
    test = before_and_after(logits, targets, temperature=1.1, weights=weights)
    assert test.after.nll != test.before.nll
    low, high = test.nll_change_interval
    assert low < 0 < high
    worse = replace(test, after=replace(test.after, nll=9.0))
    assert calibration_warnings(Calibration(1.1, (1.0, 1.2), test, worse)) == []


def test_a_model_that_no_temperature_mends_is_said_so() -> None:
    logits, targets = calibrated(2000)
    # Sure of one half of its answers, unsure of the other, and right equally often.
    torn = logits * np.where(np.arange(2000) % 2, 5.0, 0.2)[:, np.newaxis]
    (only,) = judged(torn, torn, targets)
    assert "so does the validation tiles', which one temperature does not mend" in only


def test_certain_answers_have_finite_numbers() -> None:
    result = measured(np.array([[999.0, 0.0], [999.0, 0.0]]), np.array([0, 1]))
    assert np.isfinite(result.nll)
