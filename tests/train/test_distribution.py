from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cervix_engine.contract import TileClass
from cervix_train.data.dataset import Dataset, LabelledTile
from cervix_train.data.distribution import ClassCounts, ClassDistribution, class_distribution, warn_of_imbalance

CLASSES = (TileClass("a", "A", "abnormal"), TileClass("b", "B", "normal"))


def dataset(**counts: int) -> Dataset:
    tiles = [
        LabelledTile(Path(f"{name}{n}.png"), name, None, "train")
        for name, count in counts.items()
        for n in range(count)
    ]
    return Dataset(Path("x"), (*tiles, LabelledTile(Path("t.png"), "a", None, "test")), CLASSES)


def test_counts() -> None:
    found = class_distribution(dataset(a=3, b=2))
    assert found == ClassDistribution((ClassCounts("a", 3, 0, 1), ClassCounts("b", 2, 0, 0)), 1.5)
    assert found.totals == ClassCounts("all", 5, 0, 1)


@pytest.mark.parametrize(("counts", "warned"), [({"a": 2, "b": 4}, True), ({"a": 3, "b": 5}, False)])
def test_unequal_classes_are_said(counts: dict[str, int], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cervix_train"):
        warn_of_imbalance(class_distribution(dataset(**counts)))
    assert ("b has 4 training tiles, a has 2" in caplog.text) is warned
