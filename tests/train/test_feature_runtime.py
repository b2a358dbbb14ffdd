"""Which runtime computes features, and that the faster one computes the same."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_engine.preprocess import Pixels, preprocess
from cervix_train import feature_runtime
from cervix_train.feature_runtime import (
    AGREEMENT,
    PAYS_FROM,
    KerasRuntime,
    OnnxRuntime,
    choose_runtime,
    keras_name,
    onnx_name,
    relative_difference,
    runtime_names,
)
from cervix_train.features import cache_keys, compute_features

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:12]


@pytest.fixture(scope="module")
def pixels(paths: list[Path], contract: ModelContract) -> Pixels:
    return np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths])


class Stub:
    """A runtime whose features are wrong by a known share of the largest."""

    def __init__(self, extractor: Any, *, error: float = 0.0) -> None:
        self._keras, self._error = KerasRuntime(extractor), error

    @property
    def name(self) -> str:
        return onnx_name()

    def __call__(self, pixels: Pixels) -> Any:
        vectors = self._keras(pixels)
        return vectors + np.float32(self._error * np.abs(vectors).max())


def held(*, keras: int = 0, onnx: int = 0) -> dict[str, int]:
    return {keras_name(): keras, onnx_name(): onnx}


def test_the_converted_extractor_computes_the_same(extractor: Any, pixels: Pixels) -> None:
    runtime = OnnxRuntime(extractor)
    reference = KerasRuntime(extractor)(pixels)
    assert runtime.name.startswith("onnxruntime ")
    assert runtime(pixels).dtype == np.float32
    assert relative_difference(runtime(pixels), reference) <= AGREEMENT
    # A relative difference means something only where features differ between tiles.
    assert relative_difference(reference[::-1], reference) > 100 * AGREEMENT


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (held(), PAYS_FROM - 1, (1, 9), 0.0, "keras", "too few for a conversion"),
        (held(), PAYS_FROM, (1, 9), 0.0, "onnxruntime", "9.0 tiles/s against 1.0 of keras"),
        (held(), PAYS_FROM, (9, 1), 0.0, "keras", "9.0 tiles/s against 1.0 of onnxruntime"),
        (held(), PAYS_FROM, (1, 9), 2 * AGREEMENT, "keras", "differs by 2.0e-04 of the largest feature"),
        (held(), PAYS_FROM, (1, 9), float("nan"), "keras", "differs by nan"),
        (held(keras=5, onnx=4), PAYS_FROM, (1, 9), 0.0, "keras", "5 of 2000 tiles are in its store already"),
        (held(keras=4, onnx=5), PAYS_FROM, (9, 1), 0.0, "onnxruntime", "5 of 2000 tiles are in its store already"),
        (held(keras=4, onnx=5), 9, (9, 1), 0.0, "onnxruntime", "5 of 9 tiles are in its store already"),
        (held(onnx=5), PAYS_FROM, (1, 9), 0.1, "keras", "differs by 1.0e-01"),
        ({keras_name(): 0}, PAYS_FROM, (1, 9), 0.0, "keras", "not both installed"),
    ],
)
def test_the_rules_of_the_choice(
    store: dict[str, int],
    tiles: int,
    rates: tuple[float, float],
    error: float,
    chosen: str,
    words: str,
    extractor: Any,
    pixels: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(feature_runtime, "OnnxRuntime", lambda model: Stub(model, error=error))
    monkeypatch.setattr(feature_runtime, "_race", lambda *_arguments: rates)
    with caplog.at_level(logging.INFO, "cervix_train"):
        runtime = choose_runtime(extractor, held=store, tiles=tiles, sample=pixels)
    assert runtime.name.partition(" ")[0] == chosen
    (line,) = caplog.messages
    assert line.startswith(f"features by {runtime.name}: ")
    assert words in line


def test_an_extractor_that_cannot_be_converted_stays_with_keras(
    extractor: Any, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("tf2onnx.convert.from_function", fail)
    with pytest.raises(ConversionError, match="no such operator"):
        OnnxRuntime(extractor)
    with caplog.at_level(logging.INFO, "cervix_train"):
        runtime = choose_runtime(extractor, held=held(), tiles=PAYS_FROM, sample=pixels)
    assert runtime.name == keras_name()
    assert "cannot convert the extractor (RuntimeError: no such operator)" in caplog.text


def test_without_the_converter_there_is_keras_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_names() == (keras_name(), onnx_name())
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tf2onnx" else find(name))
    assert runtime_names() == (keras_name(),)


def test_two_runtimes_never_share_a_store(
    extractor: Any, paths: list[Path], contract: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(some: list[Path]) -> Any:
        return compute_features(
            some, extractor=extractor, contract=contract, cache=tmp_path, batch_size=4, advance=lambda _tiles: None
        )

    monkeypatch.setattr(feature_runtime, "PAYS_FROM", 1)
    monkeypatch.setattr(feature_runtime, "_race", lambda *_arguments: (1.0, 9.0))
    keys = cache_keys(extractor, contract)
    first = run(paths[:6])
    assert [path.stem for path in tmp_path.glob("*.sqlite3")] == [keys[onnx_name()]]
    # What one runtime began it ends, and a whole store serves without any: the converter is not even asked.
    monkeypatch.setattr(feature_runtime, "_race", lambda *_arguments: (9.0, 1.0))
    rest = run(paths)
    monkeypatch.setattr(feature_runtime, "OnnxRuntime", None)
    again = run(paths)
    assert (first.computed, rest.computed, again.computed) == (6, 6, 0)
    assert np.array_equal(again.vectors, rest.vectors)
    assert [path.stem for path in tmp_path.glob("*.sqlite3")] == [keys[onnx_name()]]


def test_an_older_store_of_keras_still_serves(
    extractor: Any, paths: list[Path], contract: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> int:
        return compute_features(
            paths, extractor=extractor, contract=contract, cache=tmp_path, batch_size=4, advance=lambda _tiles: None
        ).computed

    assert run() == len(paths)
    monkeypatch.setattr(feature_runtime, "PAYS_FROM", 1)
    monkeypatch.setattr(feature_runtime, "OnnxRuntime", None)
    assert run() == 0
