from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.errors import OutputError, ResumeMismatchError, UsageError
from cervix_keras.start import load_keras
from cervix_train.learning.batches import LabelledFeatures
from cervix_train.learning.fit import History, Resumable, fit, fit_all
from cervix_train.learning.fit_setup import PATIENCE, FitConfig, class_weights
from cervix_train.learning.network import build_head
from cervix_train.learning.optimizers import OPTIMIZERS

from .conftest import interrupted_at


def clusters(count: int, *, seed: int) -> LabelledFeatures:
    """Three clusters that a head can tell apart, `count` points in all."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    vectors = rng.normal(0, 0.5, (count, 8)) + 2 * np.eye(3, 8)[targets]
    return LabelledFeatures(vectors.astype(np.float32), targets.astype(np.intp))


CONFIG = FitConfig(epochs=6, learning_rate=0.002, batch_size=16, seed=0)


def new_head() -> Any:
    load_keras(seed=0)
    return build_head(features=8, classes=3)


def fit_clusters(folder: Path, head: Any = None, *, resumable: Resumable | None = None, **changes: Any) -> Any:
    """Train a head; keywords replace what a test is about."""
    head = head or new_head()
    given = {"train": clusters(48, seed=0), "val": clusters(12, seed=1)}
    given |= {name: changes.pop(name) for name in list(changes) if name in given}
    history = fit(
        head,
        train=given["train"],
        val=given["val"],
        checkpoint=folder / "best.weights.h5",
        config=replace(CONFIG, **changes),
        resumable=resumable,
    )
    return head, history


def weights(head: Any) -> list[Any]:
    return [weight.copy() for weight in head.get_weights()]


def test_it_learns_as_the_paper_does_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    head, history = fit_clusters(tmp_path, epochs=12)
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
    first, history = fit_clusters(tmp_path, epochs=2)
    keras = load_keras()
    head = new_head()
    keras.random.normal((100,))
    np.random.default_rng().random(3)
    _, again = fit_clusters(tmp_path, head, epochs=2)
    assert again == history
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(head), strict=True))


def test_it_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    wrong = clusters(12, seed=1)
    # Every validation label is wrong, so learning can only make the validation loss worse.
    val = LabelledFeatures(wrong.vectors, (wrong.targets + 1) % 3)
    _, history = fit_clusters(tmp_path, val=val, epochs=30, learning_rate=0.01)
    assert history.epochs == history.best_epoch + PATIENCE < 30


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    train = LabelledFeatures(np.full((32, 8), np.nan, np.float32), np.arange(32) % 3)
    with pytest.raises(UsageError, match="diverged"):
        fit_clusters(tmp_path, train=train, epochs=1)


def misleading(count: int, *, seed: int) -> LabelledFeatures:
    """Clusters under wrong labels: whoever learns from others gets worse at these, epoch by epoch."""
    given = clusters(count, seed=seed)
    return LabelledFeatures(given.vectors, (given.targets + 1) % 3)


@pytest.mark.parametrize("epochs", [1, 4, None])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(epochs: int | None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"val": misleading(12, seed=1), "epochs": 30, "learning_rate": 0.01}
    whole, history = fit_clusters(tmp_path, **given)
    assert history.epochs == history.best_epoch + PATIENCE < 30, "it should stop early, or waiting is not tested"
    resumable = Resumable(tmp_path / "state.npz", "id", resume=True)
    # An epoch is in the log when its state is on disk.
    with interrupted_at(f"epoch {epochs or history.epochs} of "):
        fit_clusters(tmp_path, resumable=resumable, **given)
    (tmp_path / "best.weights.h5").unlink()
    # Another process begins with other random numbers.
    load_keras(seed=99)
    resumed, again = fit_clusters(tmp_path, build_head(features=8, classes=3), resumable=resumable, **given)
    assert again == history
    assert all(np.array_equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    stored = build_head(features=8, classes=3)
    stored.load_weights(tmp_path / "best.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(weights(stored), weights(whole), strict=True))


def test_only_the_same_training_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.npz"
    _, history = fit_clusters(tmp_path, epochs=2, resumable=Resumable(path, "one", resume=None))
    with pytest.raises(ResumeMismatchError, match="begin anew with --no-resume"):
        fit_clusters(tmp_path, epochs=2, resumable=Resumable(path, "other", resume=True))
    with caplog.at_level(logging.INFO, "cervix_train"):
        assert fit_clusters(tmp_path, epochs=2, resumable=Resumable(path, "other", resume=None))[1] == history
    assert "beginning anew" in caplog.text
    assert "resumed after" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_broken_state_says_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(OutputError, match="delete it, or begin anew with --no-resume"):
        fit_clusters(tmp_path, resumable=Resumable(tmp_path / "state.npz", "id", resume=None))


def test_history_csv(tmp_path: Path) -> None:
    history = History({"loss": [1.0, 0.5], "val_loss": [0.25, float("nan")]})
    assert (history.epochs, history.best_epoch) == (2, 1)
    history.write_csv(tmp_path / "history.csv")
    rows = list(csv.reader((tmp_path / "history.csv").read_text().splitlines()))
    assert rows == [["epoch", "loss", "val_loss"], ["1", "1.000000", "0.250000"], ["2", "0.500000", "nan"]]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimisers_are_taken_by_name(name: str, tmp_path: Path) -> None:
    head, history = fit_clusters(tmp_path, epochs=1, optimizer=name, learning_rate=0.003)
    assert type(head.optimizer).__name__.lower() == name
    assert float(head.optimizer.learning_rate) == pytest.approx(0.003)
    assert history.epochs == 1


def test_balanced_classes_count_alike_in_the_loss() -> None:
    targets = np.array([0] * 6 + [1] * 2 + [2] * 4)
    labelled = LabelledFeatures(np.zeros((12, 8), np.float32), targets)
    assert class_weights(labelled, CONFIG) is None
    weights = class_weights(labelled, replace(CONFIG, class_weights="balanced"))
    # As scikit-learn's: tiles / (classes * tiles of the class).
    assert weights == pytest.approx({0: 12 / 18, 1: 2.0, 2: 1.0})


def test_class_weights_reach_the_training_and_leave_validation_alone(tmp_path: Path) -> None:
    rare = clusters(60, seed=0)
    few = LabelledFeatures(rare.vectors[:40], np.where(rare.targets[:40] == 2, 2, 0))
    histories = {
        weights: fit_clusters(tmp_path, train=few, epochs=1, class_weights=weights)[1].values
        for weights in ("none", "balanced")
    }
    assert histories["balanced"]["loss"][0] != pytest.approx(histories["none"]["loss"][0], rel=1e-3)


def test_tensorboard_gets_its_events(tmp_path: Path) -> None:
    fit_clusters(tmp_path, epochs=2, events=tmp_path / "events" / "head")
    kinds = {path.parent.name for path in (tmp_path / "events/head").rglob("events.out.tfevents.*")}
    assert kinds == {"train", "validation"}
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(OutputError, match="cannot write TensorBoard's events"):
        fit_clusters(tmp_path, epochs=1, events=blocked / "head")


def test_without_validation_all_epochs_are_learnt() -> None:
    head = new_head()
    before = [weight.copy() for weight in head.get_weights()]
    history = fit_all(head, train=clusters(30, seed=0), config=replace(CONFIG, epochs=4))
    assert (history.epochs, history.best_epoch, set(history.values)) == (4, 4, {"loss", "accuracy"})
    assert history.values["loss"][-1] < history.values["loss"][0]
    again = new_head()
    assert all(np.array_equal(a, b) for a, b in zip(before, again.get_weights(), strict=True))
    fit_all(again, train=clusters(30, seed=0), config=replace(CONFIG, epochs=4))
    assert all(np.array_equal(a, b) for a, b in zip(head.get_weights(), again.get_weights(), strict=True))
