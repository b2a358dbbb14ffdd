from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.errors import UsageError
from cervix_train.fit import PATIENCE, History, LabelledFeatures, fit_head
from cervix_train.keras_runtime import load_keras
from cervix_train.network import build_head


def clusters(count: int, *, seed: int) -> LabelledFeatures:
    """Three clusters that a head can tell apart, `count` points in all."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    vectors = rng.normal(0, 0.5, (count, 8)) + 2 * np.eye(3, 8)[targets]
    return LabelledFeatures(vectors.astype(np.float32), targets.astype(np.intp))


def fit(folder: Path, **changes: Any) -> tuple[Any, History]:
    load_keras(seed=0)
    head = build_head(features=8, classes=3)
    values: dict[str, Any] = {
        "train": clusters(48, seed=0),
        "val": clusters(12, seed=1),
        "checkpoint": folder / "best.weights.h5",
        "epochs": 6,
        "learning_rate": 0.002,
        "batch_size": 16,
        "seed": 0,
    }
    return head, fit_head(head, **{**values, **changes})


def weights(head: Any) -> list[Any]:
    return [weight.copy() for weight in head.get_weights()]


def test_it_learns_as_the_paper_does_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    head, history = fit(tmp_path, epochs=12)
    assert type(head.optimizer).__name__ == "Adamax"
    assert float(head.optimizer.learning_rate) == pytest.approx(0.002)
    assert head.loss == "categorical_crossentropy"
    assert history.values["loss"][-1] < history.values["loss"][0] / 2
    val = clusters(12, seed=1)
    loss, accuracy = head.evaluate(val.vectors, np.eye(3)[val.targets], verbose=0)
    assert loss == pytest.approx(min(history.values["val_loss"]), rel=1e-4)
    assert accuracy == 1.0
    stored = build_head(features=8, classes=3)
    stored.load_weights(tmp_path / "best.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(weights(stored), weights(head), strict=True))


def test_the_seed_makes_it_reproducible_whatever_was_drawn_before(tmp_path: Path) -> None:
    first, history = fit(tmp_path, epochs=2)
    keras = load_keras()
    load_keras(seed=0)
    head = build_head(features=8, classes=3)
    keras.random.normal((100,))
    np.random.default_rng().random(3)
    again = fit_head(
        head,
        train=clusters(48, seed=0),
        val=clusters(12, seed=1),
        checkpoint=tmp_path / "again.weights.h5",
        epochs=2,
        learning_rate=0.002,
        batch_size=16,
        seed=0,
    )
    assert again == history
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(head), strict=True))


def test_it_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    wrong = clusters(12, seed=1)
    # Every validation label is wrong, so learning can only make the validation loss worse.
    val = LabelledFeatures(wrong.vectors, (wrong.targets + 1) % 3)
    _, history = fit(tmp_path, val=val, epochs=30, learning_rate=0.01)
    assert history.epochs == history.best_epoch + PATIENCE < 30


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    train = LabelledFeatures(np.full((32, 8), np.nan, np.float32), np.arange(32) % 3)
    with pytest.raises(UsageError, match="diverged"):
        fit(tmp_path, train=train, epochs=1)


def test_history_csv(tmp_path: Path) -> None:
    history = History({"loss": [1.0, 0.5], "val_loss": [0.25, float("nan")]})
    assert (history.epochs, history.best_epoch) == (2, 1)
    history.write_csv(tmp_path / "history.csv")
    rows = list(csv.reader((tmp_path / "history.csv").read_text().splitlines()))
    assert rows == [["epoch", "loss", "val_loss"], ["1", "1.000000", "0.250000"], ["2", "0.500000", "nan"]]
