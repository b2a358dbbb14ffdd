"""Which runtime computes features, and that the faster one computes the same."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cervix_engine.backends import Combination, objection
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels
from cervix_train.data.augment import Copy, Variant
from cervix_train.features import runtime as feature_runtime
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.passes import cache_keys
from cervix_train.features.runtime import (
    AGREEMENT,
    BF16_AGREEMENT,
    PAYS_FROM,
    Convertible,
    GraphRuntime,
    KerasRuntime,
    choose_bf16,
    choose_runtime,
    graph_runtime_name,
    keras_name,
    onnx_graph,
    relative_difference,
    runtime_names,
)

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

ORT, OPENVINO = Combination("onnxruntime-cpu", "fp32"), Combination("openvino", "fp32")
BF16 = Combination("openvino", "bf16")


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:12]


@pytest.fixture(scope="module")
def pixels(paths: list[Path], contract: ModelContract) -> Pixels:
    return np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths])


class Stub:
    """A runtime whose features are wrong by a known share of the largest."""

    def __init__(self, combination: Combination, extractor: Any, *, error: float = 0.0) -> None:
        self.name = graph_runtime_name(combination)
        self._keras, self._error = KerasRuntime(extractor), error

    def __call__(self, pixels: Pixels) -> Any:
        vectors = self._keras(pixels)
        return vectors + np.float32(self._error * np.abs(vectors).max())


def held(*, keras: int = 0, onnx: int = 0, openvino: int = 0) -> dict[str, int]:
    return {keras_name(): keras, graph_runtime_name(ORT): onnx, graph_runtime_name(OPENVINO): openvino}


@pytest.mark.parametrize("combination", [ORT, OPENVINO])
def test_the_converted_extractor_computes_the_same(extractor: Any, pixels: Pixels, combination: Combination) -> None:
    runtime = GraphRuntime(combination, onnx_graph(extractor))
    reference = KerasRuntime(extractor)(pixels)
    assert runtime.name.startswith(f"{combination.backend.removesuffix('-cpu')} ")
    assert runtime(pixels).dtype == np.float32
    assert relative_difference(runtime(pixels), reference) <= AGREEMENT
    # A relative difference means something only where features differ between tiles.
    assert relative_difference(reference[::-1], reference) > 100 * AGREEMENT


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (held(), PAYS_FROM - 1, (1, 9, 8), 0.0, "keras", "too few for a conversion"),
        (held(), PAYS_FROM, (1, 9, 8), 0.0, "onnxruntime", "9.0 tiles/s against 1.0 of keras"),
        (held(), PAYS_FROM, (1, 8, 9), 0.0, "openvino", "8.0 of onnxruntime"),
        (held(), PAYS_FROM, (9, 1, 2), 0.0, "keras", "9.0 tiles/s against 1.0 of onnxruntime"),
        (held(), PAYS_FROM, (1, 9, 9), 2 * AGREEMENT, "keras", "differs by 2.0e-04"),
        (held(), PAYS_FROM, (1, 9, 9), float("nan"), "keras", "differs by nan"),
        (held(keras=5, onnx=4), PAYS_FROM, (1, 9, 9), 0.0, "keras", "5 of 2000 tiles are in its store already"),
        (held(keras=4, onnx=5), PAYS_FROM, (9, 1, 1), 0.0, "onnxruntime", "5 of 2000 tiles are in its store already"),
        (held(keras=4, openvino=5), 9, (9, 1, 1), 0.0, "openvino", "5 of 9 tiles are in its store already"),
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
    monkeypatch.setattr(feature_runtime, "GraphRuntime", lambda one, _: Stub(one, extractor, error=error))
    monkeypatch.setattr(feature_runtime, "_race", lambda *_: dict(zip(held(), rates, strict=True)))
    with caplog.at_level(logging.INFO, "cervix_train"):
        runtime = choose_runtime(Convertible(extractor), held=store, tiles=tiles, sample=pixels)
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
        runtime = choose_runtime(Convertible(extractor), held=held(), tiles=PAYS_FROM, sample=pixels)
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


def bf16_or_skip() -> None:
    if reason := objection(BF16.backend, BF16.precision):
        pytest.skip(reason)


def test_bf16_computes_nearly_the_same_and_says_what_it_is(extractor: Any, pixels: Pixels) -> None:
    bf16_or_skip()
    runtime = GraphRuntime(BF16, onnx_graph(extractor))
    assert runtime.name == f"{graph_runtime_name(OPENVINO)} bf16"
    # Nearer than its own bound, and so far that it cannot be FP32.
    assert AGREEMENT < relative_difference(runtime(pixels), KerasRuntime(extractor)(pixels)) <= BF16_AGREEMENT


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (0, PAYS_FROM - 1, (1, 9), 0.0, False, "1999 tiles are too few for a conversion to pay"),
        (0, PAYS_FROM, (1, 9), 0.0, True, "9.0 tiles/s against 1.0 of keras"),
        (0, PAYS_FROM, (1, 9), 0.9 * BF16_AGREEMENT, True, "they agree to "),
        (0, PAYS_FROM, (1, 9), 1.1 * BF16_AGREEMENT, False, "of the largest feature, over "),
        (0, PAYS_FROM, (1, 9), float("nan"), False, "differs by nan"),
        (0, PAYS_FROM, (9, 1), 0.0, False, "is as fast, 9.0 tiles/s against 1.0 of openvino"),
        (5, 9, (9, 1), 0.0, True, "5 of 9 tiles are in its store already"),
        (5, 9, (9, 1), 0.9, False, "of the largest feature, over "),
    ],
)
def test_the_rule_of_bf16(
    store: int,
    tiles: int,
    rates: tuple[float, float],
    error: float,
    chosen: bool,
    words: str,
    extractor: Any,
    pixels: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = graph_runtime_name(BF16)
    monkeypatch.setattr(feature_runtime, "objection", lambda *_: None)
    monkeypatch.setattr(feature_runtime, "GraphRuntime", lambda one, _: Stub(one, extractor, error=error))
    monkeypatch.setattr(feature_runtime, "_race", lambda *_: dict(zip((keras_name(), name), rates, strict=True)))
    with caplog.at_level(logging.INFO, "cervix_train"):
        runtime = choose_bf16(Convertible(extractor), held={name: store}, tiles=tiles, sample=pixels)
    assert (runtime.name if runtime else None) == (name if chosen else None)
    (line,) = caplog.records
    declined = "the features of training tiles are not computed in BF16: "
    assert line.getMessage().startswith(f"features by {name}: " if chosen else declined)
    assert line.levelno == (logging.INFO if chosen else logging.WARNING)
    assert words in line.getMessage()


def test_a_cpu_without_bf16_is_not_asked_to_emulate_it(
    extractor: Any, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cervix_engine.backends.openvino.cpu_has_bf16", lambda: False)
    monkeypatch.setattr(feature_runtime, "onnx_graph", None)
    held = dict.fromkeys(runtime_names("bf16"), 5)
    assert choose_bf16(Convertible(extractor), held=held, tiles=PAYS_FROM, sample=pixels) is None
    assert "not computed in BF16: this CPU has no bf16 instructions" in caplog.text


class Passes:
    """Computes features of some tiles, half of them learnt from, with runtimes whose features tell them apart."""

    def __init__(self, paths: list[Path], extractor: Any, contract: ModelContract, cache: Path) -> None:
        self.paths, self.cache = list(paths), cache
        self._extractor, self._contract = extractor, contract
        self.learnt = frozenset(range(0, len(paths), 2))

    def run(self, *, bf16: bool, copies: tuple[Copy, ...] = ()) -> FeatureSet:
        return compute_features(
            self.paths,
            extractor=self._extractor,
            contract=self._contract,
            cache=self.cache,
            batch_size=4,
            advance=lambda _tiles: None,
            copies=copies,
            bf16=self.learnt if bf16 else (),
        )

    def stores(self) -> set[str]:
        """The names of the runtimes whose stores are there."""
        keys = {**cache_keys(self._extractor, self._contract), **cache_keys(self._extractor, self._contract, "bf16")}
        return {name for name, key in keys.items() if (self.cache / f"{key}.sqlite3").exists()}

    def far(self, found: FeatureSet, exact: FeatureSet) -> set[int]:
        """The tiles whose features are those of the stub of BF16."""
        return {
            int(index)
            for index, vector, other in zip(found.indices, found.vectors, exact.vectors, strict=True)
            if relative_difference(vector, other) > AGREEMENT
        }


@pytest.fixture
def passes(
    paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Passes:
    """As on a CPU with BF16 and with enough tiles, where a graph always wins the race and BF16 is off by its share."""

    def stub(one: Combination, _graph: bytes) -> Stub:
        return Stub(one, extractor, error=0.5 * BF16_AGREEMENT if one == BF16 else 0.0)

    monkeypatch.setattr(feature_runtime, "PAYS_FROM", 1)
    monkeypatch.setattr(feature_runtime, "objection", lambda *_: None)
    monkeypatch.setattr(feature_runtime, "onnx_graph", lambda _: b"")
    monkeypatch.setattr(feature_runtime, "GraphRuntime", stub)
    monkeypatch.setattr(
        feature_runtime, "_race", lambda runtimes, _: {one.name: float(n) for n, one in enumerate(runtimes)}
    )
    return Passes(paths, extractor, contract, tmp_path / "cache")


@pytest.fixture
def exact(passes: Passes, tmp_path: Path) -> FeatureSet:
    """Features of the same tiles in FP32, from a cache of their own."""
    return Passes(passes.paths, passes._extractor, passes._contract, tmp_path / "exact").run(bf16=False)


def test_only_what_is_learnt_from_is_computed_in_bf16(passes: Passes, exact: FeatureSet) -> None:
    copies = (Copy(0, Variant(0, 1)), Copy(2, Variant(0, 1)))
    found = passes.run(bf16=True, copies=copies)
    assert passes.far(found, exact) == passes.learnt
    assert passes.stores() == {graph_runtime_name(OPENVINO), graph_runtime_name(BF16)}
    assert found.indices.tolist() == list(range(len(passes.paths)))
    assert (found.copies.copies, found.computed) == (copies, len(passes.paths) + 2)
    assert (found.sizes, found.mean_rgb.tolist()) == (exact.sizes, exact.mean_rgb.tolist())
    again = passes.run(bf16=True, copies=copies)
    assert again.computed == 0
    assert np.array_equal(again.vectors, found.vectors)
    assert np.array_equal(again.copies.vectors, found.copies.vectors)


def test_who_does_not_ask_for_bf16_never_gets_it(passes: Passes, exact: FeatureSet) -> None:
    passes.run(bf16=True)
    found = passes.run(bf16=False)
    # Those that were measured on lie in the store of FP32; the others are computed again.
    assert found.computed == len(passes.learnt)
    assert np.array_equal(found.vectors, exact.vectors)


def test_training_tiles_that_fp32_holds_are_served_from_there(
    passes: Passes, exact: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    passes.run(bf16=False)
    with caplog.at_level(logging.INFO, "cervix_train"):
        found = passes.run(bf16=True)
    assert found.computed == 0
    assert np.array_equal(found.vectors, exact.vectors)
    assert passes.stores() == {graph_runtime_name(OPENVINO)}
    assert f"those of {graph_runtime_name(OPENVINO)}, all in its store already" in caplog.text


def test_where_bf16_cannot_be_had_all_is_as_without_it(
    passes: Passes, exact: FeatureSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feature_runtime, "BF16_AGREEMENT", 1e-6)
    found = passes.run(bf16=True)
    assert np.array_equal(found.vectors, exact.vectors)
    assert passes.stores() == {graph_runtime_name(OPENVINO)}
    assert "not computed in BF16: openvino" in caplog.text


def test_broken_tiles_are_named_in_either_pass(passes: Passes, tmp_path: Path) -> None:
    whole = list(passes.paths)
    for index in (2, 5):
        passes.paths[index] = tmp_path / f"{index}.png"
        passes.paths[index].write_bytes(whole[index].read_bytes()[:99])
    found = passes.run(bf16=True, copies=(Copy(2, Variant(0, 1)), Copy(4, Variant(0, 1))))
    assert sorted(found.failures) == [2, 5]
    assert found.indices.tolist() == [index for index in range(len(whole)) if index not in (2, 5)]
    assert [copy.index for copy in found.copies.copies] == [4]
