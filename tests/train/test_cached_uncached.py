"""The fast path against the plain one: a head trained on cached features, and on pixels through the frozen extractor.

Equal means: after the same epochs from the same seed, every weight of the head differs by at most 1e-5 absolute.
Weights are of the order of 0.1, and the two paths sum the same numbers in other batches, so the last bits differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.contract import SIPAKMED_CLASSES, ModelContract
from cervix_keras.start import load_keras
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.features import compute_features
from cervix_train.features.passes import Extraction
from cervix_train.learning.batches import LabelledFeatures, LabelledInputs
from cervix_train.learning.fit import History, fit
from cervix_train.learning.fit_setup import FitConfig
from cervix_train.learning.network import build_head, join
from cervix_train.learning.stages import pixel_inputs

ATOL = 1e-5
CONFIG = FitConfig(epochs=3, learning_rate=0.002, batch_size=8, seed=7)
TRAINED, VALIDATED = slice(0, None, 2), slice(1, None, 2)

Weights = list[Any]


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))


@pytest.fixture(scope="module")
def targets(paths: list[Path]) -> Any:
    names = [item.name for item in SIPAKMED_CLASSES]
    return np.array([names.index(path.parent.name) for path in paths], np.intp)


def fresh_head() -> Any:
    load_keras(seed=CONFIG.seed)
    return build_head(features=128, classes=len(SIPAKMED_CLASSES))


def cached(extractor: Any, paths: list[Path], targets: Any, contract: ModelContract, folder: Path) -> Any:
    extraction = Extraction(ExtractorBackends(extractor), contract, folder, batch_size=8)
    features = compute_features(paths, extraction, advance=lambda _tiles: None)
    head = fresh_head()
    train, val = (LabelledFeatures(features.vectors[part], targets[part]) for part in (TRAINED, VALIDATED))
    history = fit(head, train=train, val=val, checkpoint=folder / "cached.weights.h5", config=CONFIG)
    return head, history


def uncached(extractor: Any, paths: list[Path], targets: Any, contract: ModelContract, folder: Path) -> Any:
    head = fresh_head()
    train, val = (
        LabelledInputs(pixel_inputs(paths[part], contract=contract), targets[part]) for part in (TRAINED, VALIDATED)
    )
    history = fit(join(extractor, head), train=train, val=val, checkpoint=folder / "whole.weights.h5", config=CONFIG)
    return head, history


def test_cached_features_train_the_same_head(
    extractor: Any, paths: list[Path], targets: Any, contract: ModelContract, tmp_path: Path
) -> None:
    before = fresh_head().get_weights()
    fast, fast_history = cached(extractor, paths, targets, contract, tmp_path)
    plain, plain_history = uncached(extractor, paths, targets, contract, tmp_path)
    for first, fast_weight, plain_weight in zip(before, fast.get_weights(), plain.get_weights(), strict=True):
        # Both learnt: equality with each other, and with nothing learnt at all, would be worth nothing.
        assert np.abs(plain_weight - first).max() > 100 * ATOL
        np.testing.assert_allclose(fast_weight, plain_weight, rtol=0, atol=ATOL)
    assert_same_course(fast_history, plain_history)


def assert_same_course(fast: History, plain: History) -> None:
    assert fast.best_epoch == plain.best_epoch
    for measure, values in fast.values.items():
        assert values == pytest.approx(plain.values[measure], abs=1e-4)
