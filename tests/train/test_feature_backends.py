"""Which backend computes features, and that the faster one computes the same."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from cervix_engine.backends import Backend, Combination, objection
from cervix_engine.contract import ModelContract
from cervix_engine.errors import ConversionError
from cervix_engine.tiles.preprocess import preprocess
from cervix_engine.values import Pixels, Precision, Probabilities
from cervix_train.data.augment import Copy, Variant
from cervix_train.features.backends import ExtractorBackends, KerasBackend, backend_name, graph_backends
from cervix_train.features.choice import Rules, Workload, choose_backend, choose_bf16, relative_difference
from cervix_train.features.features import FeatureSet, compute_features
from cervix_train.features.passes import Extraction, cache_keys

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

ORT, OPENVINO, BF16 = (
    backend_name(Combination(*pair))
    for pair in (("onnxruntime-cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
)
RULES = Rules()
ENOUGH = RULES.pays_from


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))[:12]


@pytest.fixture(scope="module")
def pixels(paths: list[Path], contract: ModelContract) -> Pixels:
    return np.stack([preprocess(path.read_bytes(), contract=contract) for path in paths])


class Off(KerasBackend):
    """A backend whose features are wrong by a known share of the largest; it tells whether it was freed."""

    def __init__(self, extractor: Any, error: float, opened: list[Off]) -> None:
        super().__init__(extractor)
        self._error, self._opened = error, opened

    def __enter__(self) -> Off:
        self._opened.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.remove(self)

    def infer(self, pixels: Pixels) -> Probabilities:
        assert self in self._opened, "used outside of its with block"
        vectors = super().infer(pixels)
        return np.asarray(vectors + np.float32(self._error * np.abs(vectors).max()))


class Fakes(ExtractorBackends):
    """Real names, and features that are off by `errors`; a CPU that has BF16 unless `no_bf16` says otherwise."""

    def __init__(self, extractor: Any, errors: Mapping[str, float] | None = None) -> None:
        super().__init__(extractor)
        self.errors = dict(errors or {})
        self.refusal: str | None = None
        self.opened: list[Off] = []
        self.made = 0

    def no_bf16(self) -> str | None:
        return self.refusal

    def convert(self) -> None:
        pass

    def backend(self, name: str) -> Backend:
        self.made += 1
        return Off(self.extractor, self.errors.get(name, 0.0), self.opened)


def rules_of(rates: Iterable[float], **changes: Any) -> Rules:
    """Rules whose race gives these rates, in the order of the names, to those that take part."""
    return Rules(race=lambda backends, _: dict(zip(backends, rates, strict=False)), **changes)


def held(keras: int = 0, onnx: int = 0, openvino: int = 0) -> dict[str, int]:
    return dict(zip(ExtractorBackends(None).names(), (keras, onnx, openvino), strict=True))


@pytest.mark.parametrize("name", [ORT, OPENVINO])
def test_the_converted_extractor_computes_the_same(extractor: Any, pixels: Pixels, name: str) -> None:
    backends = ExtractorBackends(extractor)
    with backends.backend(name) as backend, backends.backend(backends.keras) as keras:
        features, reference = backend.infer(pixels), keras.infer(pixels)
        assert name == f"{backend.info.backend.removesuffix('-cpu')} {backend.info.version}"
        assert backends.keras == f"{keras.info.backend} {keras.info.version}"
    assert features.dtype == np.float32
    assert relative_difference(features, reference) <= RULES.agreement
    # A relative difference means something only where features differ between tiles.
    assert relative_difference(reference[::-1], reference) > 100 * RULES.agreement


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (held(), ENOUGH - 1, (1, 9, 8), 0.0, "keras", "too few for a conversion"),
        (held(), ENOUGH, (1, 9, 8), 0.0, "onnxruntime", "9.0 tiles/s against 1.0 of keras"),
        (held(), ENOUGH, (1, 8, 9), 0.0, "openvino", "8.0 of onnxruntime"),
        (held(), ENOUGH, (9, 1, 2), 0.0, "keras", "9.0 tiles/s against 1.0 of onnxruntime"),
        (held(), ENOUGH, (1, 9, 9), 2 * RULES.agreement, "keras", "differs by 2.0e-04"),
        (held(), ENOUGH, (1, 9, 9), float("nan"), "keras", "differs by nan"),
        (held(keras=5, onnx=4), ENOUGH, (1, 9, 9), 0.0, "keras", "5 of 2000 tiles are in its store already"),
        (held(keras=4, onnx=5), ENOUGH, (9, 1, 1), 0.0, "onnxruntime", "5 of 2000 tiles are in its store already"),
        (held(keras=4, openvino=5), 9, (9, 1, 1), 0.0, "openvino", "5 of 9 tiles are in its store already"),
        (held(onnx=5), ENOUGH, (1, 9, 9), 0.1, "keras", "differs by 1.0e-01"),
        ({next(iter(held())): 0}, ENOUGH, (1, 9, 9), 0.0, "keras", "no other runtime"),
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
    caplog: pytest.LogCaptureFixture,
) -> None:
    backends = Fakes(extractor, {ORT: error, OPENVINO: error})
    with caplog.at_level(logging.INFO, "cervix_train"):
        name = choose_backend(backends, Workload(store, tiles, pixels), rules_of(rates))
    assert name.partition(" ")[0] == chosen
    (line,) = caplog.messages
    assert line.startswith(f"features by {name}: ")
    assert words in line
    assert backends.opened == [], "what was tried is freed"


class OtherInput:
    """A model that no converter takes."""

    name = "odd"
    input = np.zeros((1, 8, 8, 3))

    def __call__(self, *_: object, **__: object) -> None:
        raise RuntimeError("no such operator")


def test_an_extractor_that_cannot_be_converted_stays_with_keras(
    extractor: Any, pixels: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConversionError, match=r"cannot convert the odd model \(RuntimeError: [^\n]*no such operator"):
        ExtractorBackends(OtherInput()).convert()

    class Unconvertible(Fakes):
        def convert(self) -> None:
            raise ConversionError("it has no such operator")

    with caplog.at_level(logging.INFO, "cervix_train"):
        backends = Unconvertible(extractor)
        assert choose_backend(backends, Workload(held(), ENOUGH, pixels), RULES) == backends.keras
    assert "it has no such operator" in caplog.text


def test_without_the_converter_there_is_keras_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = ExtractorBackends(None)
    assert backends.names() == (backends.keras, ORT, OPENVINO)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    assert backends.names() == (backends.keras,)
    assert graph_backends("bf16") == {}


class Passes:
    """Computes features of some tiles, half of them learnt from, with backends whose features tell them apart."""

    def __init__(self, paths: list[Path], backends: Fakes, contract: ModelContract, cache: Path) -> None:
        self.paths, self.backends, self.cache = list(paths), backends, cache
        self._contract = contract
        self.learnt = frozenset(range(0, len(paths), 2))

    def run(
        self,
        *,
        bf16: bool = False,
        copies: tuple[Copy, ...] = (),
        tiles: int | None = None,
        rates: Iterable[float] = (1.0, 2.0, 3.0),
        **rules: Any,
    ) -> FeatureSet:
        found = rules_of(rates, **{"pays_from": 1, **rules})
        return compute_features(
            self.paths[:tiles],
            Extraction(self.backends, self._contract, self.cache, batch_size=4, rules=found),
            advance=lambda _tiles: None,
            copies=copies,
            bf16=self.learnt if bf16 else (),
        )

    def stores(self) -> set[str]:
        """The names of the backends whose stores are there."""
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        keys = [cache_keys(self.backends, self._contract, precision) for precision in precisions]
        found = {path.stem for path in self.cache.glob("*.sqlite3")}
        return {name for own in keys for name, key in own.items() if key in found}

    def far(self, found: FeatureSet, exact: FeatureSet) -> set[int]:
        """The tiles whose features are those of BF16."""
        return {
            int(index)
            for index, vector, other in zip(found.indices, found.vectors, exact.vectors, strict=True)
            if relative_difference(vector, other) > RULES.agreement
        }


@pytest.fixture
def passes(paths: list[Path], extractor: Any, contract: ModelContract, tmp_path: Path) -> Passes:
    """As on a CPU with BF16 and with enough tiles, where a graph wins the race and BF16 is off by its share."""
    return Passes(paths, Fakes(extractor, {BF16: 0.5 * RULES.bf16_agreement}), contract, tmp_path / "cache")


@pytest.fixture
def exact(passes: Passes, tmp_path: Path) -> FeatureSet:
    """Features of the same tiles in FP32, from a cache of their own."""
    return Passes(passes.paths, passes.backends, passes._contract, tmp_path / "exact").run()


def test_two_backends_never_share_a_store(passes: Passes) -> None:
    first = passes.run(tiles=6, rates=(1.0, 9.0, 8.0))
    assert passes.stores() == {ORT}
    # What one backend began it ends, whichever is faster by now.
    rest = passes.run(rates=(9.0, 1.0, 1.0))
    assert passes.stores() == {ORT}
    assert passes.backends.opened == []
    # A whole store serves without any.
    passes.backends.errors[passes.backends.keras] = passes.backends.errors[ORT] = float("nan")
    again = passes.run(rates=(9.0, 1.0, 1.0))
    assert (first.computed, rest.computed, again.computed) == (6, 6, 0)
    assert np.array_equal(again.vectors, rest.vectors)


def test_an_older_store_of_keras_still_serves(passes: Passes) -> None:
    assert passes.run(pays_from=ENOUGH).computed == len(passes.paths)
    assert passes.stores() == {passes.backends.keras}
    assert passes.run().computed == 0


def bf16_or_skip() -> None:
    if reason := objection("openvino", "bf16"):
        pytest.skip(reason)


def test_bf16_computes_nearly_the_same_and_says_what_it_is(extractor: Any, pixels: Pixels) -> None:
    bf16_or_skip()
    backends = ExtractorBackends(extractor)
    assert backends.no_bf16() is None
    assert backends.names("bf16") == (BF16,) == (f"{OPENVINO} bf16",)
    with backends.backend(BF16) as backend, backends.backend(backends.keras) as keras:
        difference = relative_difference(backend.infer(pixels), keras.infer(pixels))
    # Nearer than its own bound, and so far that it cannot be FP32.
    assert RULES.agreement < difference <= RULES.bf16_agreement


@pytest.mark.parametrize(
    ("store", "tiles", "rates", "error", "chosen", "words"),
    [
        (0, ENOUGH - 1, (1, 9), 0.0, False, "1999 tiles are too few for a conversion to pay"),
        (0, ENOUGH, (1, 9), 0.0, True, "9.0 tiles/s against 1.0 of keras"),
        (0, ENOUGH, (1, 9), 0.9 * RULES.bf16_agreement, True, "they agree to "),
        (0, ENOUGH, (1, 9), 1.1 * RULES.bf16_agreement, False, "of the largest feature, over "),
        (0, ENOUGH, (1, 9), float("nan"), False, "differs by nan"),
        (0, ENOUGH, (9, 1), 0.0, False, "is as fast, 9.0 tiles/s against 1.0 of openvino"),
        (0, ENOUGH, (5, 5), 0.0, False, "is as fast, 5.0 tiles/s against 5.0 of openvino"),
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
    caplog: pytest.LogCaptureFixture,
) -> None:
    backends = Fakes(extractor, {BF16: error})
    with caplog.at_level(logging.INFO, "cervix_train"):
        name = choose_bf16(backends, Workload({BF16: store}, tiles, pixels), rules_of(rates))
    assert name == (BF16 if chosen else None)
    (line,) = caplog.records
    declined = "the features of training tiles are not computed in BF16: "
    assert line.getMessage().startswith(f"features by {name}: " if chosen else declined)
    assert line.levelno == (logging.INFO if chosen else logging.WARNING)
    assert words in line.getMessage()
    assert backends.opened == []


def test_where_nothing_has_bf16_nothing_is_tried(
    extractor: Any, pixels: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    backends = Fakes(extractor)
    backends.refusal = "this CPU has no bf16 instructions"
    assert choose_bf16(backends, Workload({BF16: 5}, ENOUGH, pixels), RULES) is None
    assert backends.made == 0
    assert "not computed in BF16: this CPU has no bf16 instructions" in caplog.text


def test_only_what_is_learnt_from_is_computed_in_bf16(passes: Passes, exact: FeatureSet) -> None:
    copies = (Copy(0, Variant(0, 1)), Copy(2, Variant(0, 1)))
    found = passes.run(bf16=True, copies=copies)
    assert passes.far(found, exact) == passes.learnt
    assert passes.stores() == {OPENVINO, BF16}
    assert found.indices.tolist() == list(range(len(passes.paths)))
    assert (found.copies.copies, found.computed) == (copies, len(passes.paths) + 2)
    assert (found.sizes, found.mean_rgb.tolist()) == (exact.sizes, exact.mean_rgb.tolist())
    again = passes.run(bf16=True, copies=copies)
    assert again.computed == 0
    assert np.array_equal(again.vectors, found.vectors)
    assert np.array_equal(again.copies.vectors, found.copies.vectors)


def test_who_does_not_ask_for_bf16_never_gets_it(passes: Passes, exact: FeatureSet) -> None:
    passes.run(bf16=True)
    found = passes.run()
    # Those that were measured on lie in the store of FP32; the others are computed again.
    assert found.computed == len(passes.learnt)
    assert np.array_equal(found.vectors, exact.vectors)


def test_training_tiles_that_fp32_holds_are_served_from_there(
    passes: Passes, exact: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    passes.run()
    with caplog.at_level(logging.INFO, "cervix_train"):
        found = passes.run(bf16=True)
    assert found.computed == 0
    assert np.array_equal(found.vectors, exact.vectors)
    assert passes.stores() == {OPENVINO}
    assert f"those of {OPENVINO}, all in its store already" in caplog.text


def test_where_bf16_cannot_be_had_all_is_as_without_it(
    passes: Passes, exact: FeatureSet, caplog: pytest.LogCaptureFixture
) -> None:
    found = passes.run(bf16=True, bf16_agreement=1e-6)
    assert np.array_equal(found.vectors, exact.vectors)
    assert passes.stores() == {OPENVINO}
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
