"""Altered copies: what they look like, that they are always the same, and that none crosses the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.contract import ModelContract
from cervix_engine.files import sha256_file
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels
from cervix_train.data.augment import BRIGHTNESS, ORIGINAL, Copy, Variant, training_copies
from cervix_train.data.dataset import Dataset
from cervix_train.data.layouts import read_dataset
from cervix_train.data.splits import assign_splits
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.passes import Extraction
from cervix_train.learning.config import TrainConfig
from cervix_train.learning.split_tiles import tiles_by_split
from cervix_train.learning.stages import pixel_inputs
from cervix_train.training.train import TrainReport, train

COPIES = 2
MakeConfig = Callable[..., TrainConfig]


def disc(*, left: int = 150, right: int = 150) -> Pixels:
    """A disc on black whose halves may differ: turns and flips keep its area."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    cv2.circle(pixels, (32, 32), 20, (left, left, left), -1)
    pixels[:, 32:][pixels[:, 32:] > 0] = right
    return pixels


def test_a_copy_is_the_same_whenever_it_is_made() -> None:
    pixels = disc(left=200, right=90)
    before = pixels.copy()
    variants = [Variant(seed, number) for seed in (0, 1) for number in (1, 2, 3)]
    copies = [variant.apply(pixels, digest=digest) for variant in variants for digest in ("aa", "bb")]
    again = [variant.apply(pixels, digest=digest) for variant in variants for digest in ("aa", "bb")]
    assert all(np.array_equal(a, b) for a, b in zip(copies, again, strict=True))
    # Seed, number and the tile's bytes each make another copy, and another place to keep its features.
    assert len({copy.tobytes() for copy in copies}) == len(copies)
    assert len({variant.key(digest) for variant in variants for digest in ("aa", "bb")}) == len(copies)
    assert np.array_equal(pixels, before)


def test_the_tile_itself_is_variant_zero() -> None:
    assert np.array_equal(ORIGINAL.apply(disc(), digest="aa"), disc())
    assert ORIGINAL.key("aa") == Variant(9, 0).key("aa") == "aa"


def test_copies_are_turned_flipped_and_lit_within_bounds() -> None:
    lights: list[float] = []
    sides: Counter[tuple[int, ...]] = Counter()
    for number in range(1, 101):
        copy = Variant(0, number).apply(disc(left=150, right=100), digest="aa")
        assert copy.shape == (64, 64, 3)
        assert copy.dtype == np.uint8
        lights.append(copy.max() / 150)
        brightest = np.argwhere(copy[..., 0] > 0.9 * copy.max()).mean(axis=0) - 31.5
        sides[tuple(np.sign(brightest).astype(int).tolist())] += 1
        assert np.count_nonzero(copy[..., 0] > 50) == pytest.approx(np.count_nonzero(disc()[..., 0]), rel=0.08)
    assert 1 - BRIGHTNESS - 0.01 <= min(lights) < 0.85
    assert 1.15 < max(lights) <= 1 + BRIGHTNESS + 0.01
    assert len(sides) == 4
    assert min(sides.values()) >= 10


def test_light_does_not_wrap_around() -> None:
    white = np.full((32, 32, 3), 250, np.uint8)
    assert min(int(Variant(0, number).apply(white, digest="aa").min()) for number in range(1, 30)) >= 195


@pytest.fixture(scope="module")
def dataset(drawn: Path) -> Dataset:
    return assign_splits(read_dataset(drawn), seed=0)


def features_of(
    dataset: Dataset, copies: tuple[Copy, ...], *, extractor: Any, contract: Any, cache: Path
) -> FeatureSet:
    extraction = Extraction(ExtractorBackends(extractor), contract, cache, batch_size=16)
    paths = [dataset.root / tile.path for tile in dataset.tiles]
    return compute_features(paths, extraction, advance=lambda _tiles: None, copies=copies)


def test_copies_are_of_training_tiles_and_never_cross_the_split(
    dataset: Dataset, extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    copies = training_copies(dataset, count=COPIES, seed=0)
    features = features_of(dataset, copies, extractor=extractor, contract=contract, cache=tmp_path)
    plain = tiles_by_split(dataset, features_of(dataset, (), extractor=extractor, contract=contract, cache=tmp_path))
    by_split = tiles_by_split(dataset, features)
    for split in ("val", "test"):
        assert by_split[split].variants == (ORIGINAL,) * len(by_split[split].indices)
        assert np.array_equal(by_split[split].labelled.vectors, plain[split].labelled.vectors)
    train, tiles = by_split["train"], len(plain["train"].indices)
    assert len(train.indices) == len(train.variants) == len(train.groups) == (1 + COPIES) * tiles
    assert {dataset.tiles[index].split for index in train.indices} == {"train"}
    assert set(Counter(train.indices.tolist()).values()) == {1 + COPIES}
    names = [item.name for item in dataset.classes]
    assert [names[target] for target in train.labelled.targets] == [dataset.tiles[i].label for i in train.indices]
    # A copy's features are those of its altered pixels.
    place = tiles + 3
    path = dataset.root / dataset.tiles[train.indices[place]].path
    altered = train.variants[place].apply(preprocess(path.read_bytes(), contract=contract), digest=sha256_file(path))
    expected = extractor.predict_on_batch(altered[np.newaxis])[0]
    assert np.allclose(train.labelled.vectors[place], expected, atol=1e-5)
    # Fine-tuning sees the same pixels as the head did.
    inputs = pixel_inputs([path], contract=contract, variants=[train.variants[place]])
    assert np.array_equal(inputs(np.array([0]))[0], altered)


def test_a_copy_of_a_tested_tile_is_refused(
    dataset: Dataset, extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    tested = next(index for index, tile in enumerate(dataset.tiles) if tile.split == "test")
    copies = (Copy(tested, Variant(0, 1)),)
    features = features_of(dataset, copies, extractor=extractor, contract=contract, cache=tmp_path)
    with pytest.raises(ValueError, match=f"1 copies are of tiles of another split, such as {tested}"):
        tiles_by_split(dataset, features)


def test_copies_are_cached_and_fail_with_their_tile(
    dataset: Dataset, extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((dataset.root / dataset.tiles[0].path).read_bytes()[:99])
    some = replace(dataset, root=Path(), tiles=(replace(dataset.tiles[0], path=broken), *(
        replace(tile, path=dataset.root / tile.path) for tile in dataset.tiles[1:4]
    )))  # fmt: skip
    copies = tuple(Copy(index, Variant(0, 1)) for index in range(4))
    for computed in (6, 0):
        features = features_of(some, copies, extractor=extractor, contract=contract, cache=tmp_path / "cache")
        assert features.computed == computed
        assert list(features.failures) == [0]
        assert features.indices.tolist() == [1, 2, 3]
        assert [copy.index for copy in features.copies.copies] == [1, 2, 3]


def test_a_whole_training_with_copies(
    make_config: MakeConfig, config: TrainConfig, report: TrainReport, tmp_path: Path
) -> None:
    asked = make_config(tmp_path, cache=config.cache, augment=COPIES, epochs=1, fine_tune_epochs=1)
    got = train(asked)
    opened = Bundle.open(asked.out)
    trained = opened.read("training/split.csv").decode().count(",train,")
    assert got.computed == COPIES * trained
    assert got.metrics.tiles == report.metrics.tiles
    record = opened.read_json("training/training.json", schema="cervix/training/1")
    assert record["recipe"]["augment"] == COPIES
    assert sum(item["train"] for item in record["distribution"]["classes"]) == trained
