"""The fast path of features against the plain one of streamed inputs.

Equal means: the same tiles in the same batches, bit by bit; and, learnt from, the same weights to 1e-6.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cervix_keras.start import load_keras
from cervix_train.learning.batches import Batches, Labelled, LabelledFeatures, LabelledInputs
from cervix_train.learning.fit import fit
from cervix_train.learning.fit_setup import FitConfig
from cervix_train.learning.network import build_head

CLASSES = 3


def features(tiles: int, *, seed: int = 0) -> LabelledFeatures:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, tiles)
    vectors = rng.normal(0, 1, (tiles, 8)) + 2 * np.eye(CLASSES, 8)[targets]
    return LabelledFeatures(vectors.astype(np.float32), targets.astype(np.intp))


def streamed(whole: LabelledFeatures) -> LabelledInputs:
    return LabelledInputs(whole.inputs, whole.targets)


def seen(batches: Batches) -> list[tuple[Any, Any]]:
    """An epoch as Keras would see it."""
    data = batches.data
    epoch = (data[number] for number in range(len(data))) if hasattr(data, "__getitem__") else data
    return [(np.asarray(vectors), np.asarray(one_hot)) for vectors, one_hot in epoch]


@settings(max_examples=30, deadline=None)
@given(tiles=st.integers(1, 40), batch_size=st.integers(1, 16), seed=st.integers(0, 99))
def test_both_give_the_same_batches_in_any_order(tiles: int, batch_size: int, seed: int) -> None:
    whole = features(tiles, seed=seed)
    kinds: tuple[Labelled, Labelled] = (whole, streamed(whole))
    fast, plain = (kind.batches(classes=CLASSES, batch_size=batch_size) for kind in kinds)
    orders = [np.random.default_rng((seed, epoch)).permutation(tiles) for epoch in range(2)]
    for order in (np.arange(tiles), *orders):
        fast.reorder(order)
        plain.reorder(order)
        expected = [order[place : place + batch_size] for place in range(0, tiles, batch_size)]
        for epoch in (seen(fast), seen(plain)):
            assert len(epoch) == len(expected)
            for (vectors, one_hot), chosen in zip(epoch, expected, strict=True):
                assert np.array_equal(vectors, whole.vectors[chosen])
                assert np.array_equal(one_hot, np.eye(CLASSES)[whole.targets[chosen]])


def learnt(
    kind: type[LabelledFeatures] | type[LabelledInputs], folder: Path, *, steps: int = 256
) -> tuple[list[Any], dict[str, list[float]]]:
    train, val = replace(features(53), steps_per_execution=steps), features(21, seed=1)
    load_keras(seed=0)
    head = build_head(features=8, classes=CLASSES)
    given: tuple[Labelled, Labelled] = (train, val) if kind is LabelledFeatures else (streamed(train), streamed(val))
    history = fit(
        head,
        train=given[0],
        val=given[1],
        checkpoint=folder / "best.weights.h5",
        config=FitConfig(epochs=4, learning_rate=0.01, batch_size=8, seed=0),
    )
    return head.get_weights(), history.values


@pytest.mark.parametrize("steps", [1, 3, 7, 256])
def test_many_steps_a_call_learn_the_same(steps: int, tmp_path: Path) -> None:
    # 53 tiles are six whole batches and one of five; three steps a call leave one over.
    fast, fast_course = learnt(LabelledFeatures, tmp_path, steps=steps)
    plain, plain_course = learnt(LabelledInputs, tmp_path)
    assert plain_course["loss"][-1] < plain_course["loss"][0]
    for one, other in zip(fast, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    for measure, values in fast_course.items():
        assert values == pytest.approx(plain_course[measure], abs=1e-5)
