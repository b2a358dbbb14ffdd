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
    GraphRuntime,
    KerasRuntime,
    choose_runtime,
    graph_runtime_name,
    keras_name,
    onnx_graph,
    relative_difference,
    runtime_names,
)
from cervix_train.features import cache_keys, compute_features

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

ORT, OPENVINO = "onnxruntime-cpu", "openvino"


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:12]


@pytest.fixture(scope="module")
def pixels(paths: list[Path], contract: ModelContract) -> Pixels:
    return np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths])


class Stub:
    """A runtime whose features are wrong by a known share of the largest."""

    def __init__(self, backend: str, extractor: Any, *, error: float = 0.0) -> None:
        self.name = graph_runtime_name(backend)
        self._keras, self._error = KerasRuntime(extractor), error

    def __call__(self, pixels: Pixels) -> Any:
        vectors = self._keras(pixels)
        return vectors + np.float32(self._error * np.abs(vectors).max())


def held(*, keras: int = 0, onnx: int = 0, openvino: int = 0) -> dict[str, int]:
    return {keras_name(): keras, graph_runtime_name(ORT): onnx, graph_runtime_name(OPENVINO): openvino}


@pytest.mark.parametrize("backend", [ORT, OPENVINO])
def test_the_converted_extractor_computes_the_same(extractor: Any, pixels: Pixels, backend: str) -> None:
    runtime = GraphRuntime(backend, onnx_graph(extractor))
    reference = KerasRuntime(extractor)(pixels)
    assert runtime.name.startswith(f"{backend.removesuffix('-cpu')} ")
    assert runtime(pixels).dtype == np.float32
    assert relative_difference(runtime(pixels), reference) <= AGREEMENT
    # A relative difference means something only where features differ between tiles.
    assert relative_difference(reference[::-1], reference) > 100 * AGREEMENT


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (held(), PAYS_FROM - 1, (1, 9, 8), 0.0, "keras", "too few for a conversion"),
        (held(), PAYS_FROM, (1, 9, 8), 0.0, "onnxruntime", "9.0 tiles/s against 1.0 of keras"),
        (held(), PAYS_FROM, (1, 8, 9), 0.0, OPENVINO, "8.0 of onnxruntime"),
        (held(), PAYS_FROM, (9, 1, 2), 0.0, "keras", "9.0 tiles/s against 1.0 of onnxruntime"),
        (held(), PAYS_FROM, (1, 9, 9), 2 * AGREEMENT, "keras", "differs by 2.0e-04"),
        (held(), PAYS_FROM, (1, 9, 9), float("nan"), "keras", "differs by nan"),
        (held(keras=5, onnx=4), PAYS_FROM, (1, 9, 9), 0.0, "keras", "5 of 2000 tiles are in its store already"),
        (held(keras=4, onnx=5), PAYS_FROM, (9, 1, 1), 0.0, "onnxruntime", "5 of 2000 tiles are in its store already"),
        (held(keras=4, openvino=5), 9, (9, 1, 1), 0.0, OPENVINO, "5 of 9 tiles are in its store already"),
        (held(onnx=5), PAYS_FROM, (1, 9, 9), 0.1, "keras", "differs by 1.0e-01"),
        ({keras_name(): 0}, PAYS_FROM, (1, 9, 9), 0.0, "keras", "no other runtime"),
    ],
)
def test_the_rules_of_the_choice(
    store: dict[str, int],
    tiles: int,
    rates: tuple[float, float, float],
    error: float,
    chosen: str,
    words: str,
    extractor: Any,
    pixels: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(feature_runtime, "GraphRuntime", lambda backend, _: Stub(backend, extractor, error=error))
    monkeypatch.setattr(feature_runtime, "_race", lambda *_: dict(zip(held(), rates, strict=True)))
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
        onnx_graph(extractor)
    with caplog.at_level(logging.INFO, "cervix_train"):
        runtime = choose_runtime(extractor, held=held(), tiles=PAYS_FROM, sample=pixels)
    assert runtime.name == keras_name()
    assert "cannot convert the extractor (RuntimeError: no such operator)" in caplog.text


def test_without_the_converter_there_is_keras_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_names() == tuple(held())
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
    monkeypatch.setattr(feature_runtime, "_race", lambda *_: dict(zip(held(), (1.0, 9.0, 8.0), strict=True)))
    keys = cache_keys(extractor, contract)
    first = run(paths[:6])
    assert [path.stem for path in tmp_path.glob("*.sqlite3")] == [keys[graph_runtime_name(ORT)]]
    # What one runtime began it ends, and a whole store serves without any: the converter is not even asked.
    monkeypatch.setattr(feature_runtime, "_race", lambda *_: dict(zip(held(), (9.0, 1.0, 1.0), strict=True)))
    rest = run(paths)
    monkeypatch.setattr(feature_runtime, "GraphRuntime", None)
    again = run(paths)
    assert (first.computed, rest.computed, again.computed) == (6, 6, 0)
    assert np.array_equal(again.vectors, rest.vectors)
    assert [path.stem for path in tmp_path.glob("*.sqlite3")] == [keys[graph_runtime_name(ORT)]]


def test_an_older_store_of_keras_still_serves(
    extractor: Any, paths: list[Path], contract: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> int:
        return compute_features(
            paths, extractor=extractor, contract=contract, cache=tmp_path, batch_size=4, advance=lambda _tiles: None
        ).computed

    assert run() == len(paths)
    monkeypatch.setattr(feature_runtime, "PAYS_FROM", 1)
    monkeypatch.setattr(feature_runtime, "GraphRuntime", None)
    assert run() == 0
