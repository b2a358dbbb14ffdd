from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.errors import OutputError
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.tiles.tile import TileSize
from cervix_keras.start import load_keras
from cervix_train.features.backends import ExtractorBackends
from cervix_train.features.extractor import build_extractor
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.passes import Extraction, cache_keys
from cervix_train.features.store import FeatureStore, TileRecord


class CountingExtractor:
    """A real extractor that counts the tiles it is run on, and can be interrupted after some batches."""

    def __init__(self, extractor: Any, *, fail_after: int | None = None) -> None:
        self._extractor = extractor
        self.fail_after = fail_after
        self.tiles = 0
        self.batches = 0

    @property
    def variables(self) -> Any:
        return self._extractor.variables

    @property
    def output(self) -> Any:
        return self._extractor.output

    def predict_on_batch(self, pixels: Any) -> Any:
        if self.batches == self.fail_after:
            raise KeyboardInterrupt
        self.batches += 1
        # Free places of a batch are black.
        self.tiles += int(pixels.any(axis=(1, 2, 3)).sum())
        return self._extractor.predict_on_batch(pixels)


@pytest.fixture
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:20]


def run(paths: list[Path], extractor: Any, contract: ModelContract, cache: Path) -> FeatureSet:
    seen: list[int] = []
    extraction = Extraction(ExtractorBackends(extractor), contract, cache, batch_size=8)
    result = compute_features(paths, extraction, advance=seen.append)
    assert sum(seen) == len(paths)
    return result


def test_features_are_the_extractors(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    result = run(paths, extractor, contract, tmp_path)
    pixels = np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths])
    assert result.vectors.dtype == np.float32
    assert np.allclose(result.vectors, extractor.predict_on_batch(pixels), atol=1e-5)
    assert np.allclose(result.mean_rgb, pixels.mean(axis=(1, 2)))
    assert result.indices.tolist() == list(range(20))
    assert result.computed == 20


def test_a_second_run_computes_nothing(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    first = run(paths, extractor, contract, tmp_path)
    counting = CountingExtractor(extractor)
    second = run(paths, counting, contract, tmp_path)
    assert counting.tiles == second.computed == 0
    assert np.array_equal(first.vectors, second.vectors)
    assert np.array_equal(first.mean_rgb, second.mean_rgb)
    assert first.sizes == second.sizes


def test_an_interrupted_pass_goes_on_where_it_stopped(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    interrupted = CountingExtractor(extractor, fail_after=1)
    with pytest.raises(KeyboardInterrupt):
        run(paths, interrupted, contract, tmp_path / "a")
    assert interrupted.tiles == 8
    rest = CountingExtractor(extractor)
    resumed = run(paths, rest, contract, tmp_path / "a")
    assert rest.tiles == resumed.computed == 12
    whole = run(paths, extractor, contract, tmp_path / "b")
    assert np.array_equal(resumed.vectors, whole.vectors)


def test_content_decides_not_the_name(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    run(paths, extractor, contract, tmp_path / "cache")
    renamed, other = tmp_path / "renamed.png", tmp_path / paths[1].name
    renamed.write_bytes(paths[0].read_bytes())
    other.write_bytes(paths[19].read_bytes() + b"\0")
    counting = CountingExtractor(extractor)
    run([renamed, other], counting, contract, tmp_path / "cache")
    assert counting.tiles == 1


def test_another_preprocessing_extractor_or_runtime_is_another_store(extractor: Any, contract: ModelContract) -> None:
    backends = ExtractorBackends(extractor)
    keys = cache_keys(backends, contract)
    load_keras(seed=1)
    another = ExtractorBackends(build_extractor("cnn", input_size=(32, 32), weights="none"))
    others = (
        cache_keys(backends, replace(contract, input_size=(32, 40))),
        cache_keys(backends, replace(contract, exif_policy="apply")),
        cache_keys(backends, replace(contract, scaled_decoding=True)),
        cache_keys(another, contract),
    )
    assert cache_keys(backends, replace(contract, temperature=2.0)) == keys
    assert list(keys) == list(backends.names())
    distinct = [key for found in (keys, *others) for key in found.values()]
    assert len(set(distinct)) == len(distinct)


def test_a_corrupt_tile_is_named_and_left_out(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:-20])
    given = [paths[0], broken, paths[1]]
    for computed in (2, 0):
        result = run(given, extractor, contract, tmp_path / "cache")
        assert result.computed == computed
        assert result.indices.tolist() == [0, 2]
        assert {index: failure.kind for index, failure in result.failures.items()} == {1: "truncated"}


def test_no_readable_tile_at_all(extractor: Any, contract: ModelContract, tmp_path: Path) -> None:
    result = run([tmp_path / "none.png"], extractor, contract, tmp_path)
    assert result.vectors.shape == (0, 128)
    assert result.mean_rgb.shape == (0, 3)


def record(value: float, *, width: int = 4) -> TileRecord:
    return TileRecord(np.full(width, value, np.float32), TileSize(7, 9), (1.5, 2.0, 255.0))


def test_the_store_gives_back_what_was_put(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "new/folder", key="k", width=4) as store:
        store.put({"a": record(0.1), "b": record(-3e38)})
        assert store.get("c") is None
    with FeatureStore(tmp_path / "new/folder", key="k", width=4) as store:
        got = store.get("b")
        assert got is not None
        assert got.features.dtype == np.float32
        assert got.features.tolist() == record(-3e38).features.tolist()
        assert (got.size, got.mean_rgb) == (TileSize(7, 9), (1.5, 2.0, 255.0))


def test_a_damaged_store_says_which_file_to_delete(tmp_path: Path) -> None:
    (tmp_path / "k.sqlite3").write_bytes(b"no database, but long enough to look at" * 100)
    with (
        pytest.raises(OutputError, match=r"k\.sqlite3 cannot be used .* delete it"),
        FeatureStore(tmp_path, key="k", width=4),
    ):
        pass


def test_rows_of_another_width_are_not_believed(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, key="k", width=4) as store:
        store.put({"a": record(1.0)})
    with FeatureStore(tmp_path, key="k", width=5) as store, pytest.raises(OutputError, match="expected 20"):
        store.get("a")


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="give --cache DIR"), FeatureStore(tmp_path / "file", key="k", width=4):
        pass


def test_half_a_batch_is_never_kept(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, key="k", width=4) as store:
        bad = TileRecord(np.zeros(4, np.float32), TileSize(1, None), (0.0, 0.0, 0.0))  # type: ignore[arg-type]
        with pytest.raises(OutputError):
            store.put({"a": record(1.0), "b": bad})
        assert store.get("a") is None
    connection = sqlite3.connect(tmp_path / "k.sqlite3")
    assert connection.execute("SELECT count(*) FROM tiles").fetchone() == (0,)
    connection.close()


def test_asking_what_a_store_holds_makes_none(tmp_path: Path) -> None:
    asked = FeatureStore(tmp_path, key="k", width=4)
    assert asked.held(["a"]) == set()
    assert not asked.path.exists()
    with asked as store:
        store.put({"a": record(1.0)})
    assert asked.held(["a", "b"]) == {"a"}
