"""The mean error of rounding is taken off, and float weights take half of their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers
from cervix_export.graphs.int8 import make
from cervix_export.graphs.int8.graph import dequantised_weights, initializers, layers, quantised, store_in_half
from cervix_export.graphs.int8.make import int8_from_onnx
from cervix_export.graphs.int8.means import Junction, channel_means, correct_means, junctions
from cervix_export.graphs.int8.ranges import Observed, observe
from export.conftest import CONTRACT
from export.int8.int8_graphs import Exported, graph_of, residual_graph


def test_biases_make_up_for_the_mean_error_of_rounded_weights(
    exact: Any, exported: Exported, tmp_path: Path, observed: dict[str, Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of rounded weights alone: what is observed of all rounding comes after it.
    monkeypatch.setattr(make, "correct_means", lambda *_, **__: None)
    (tmp_path / "model.onnx").write_bytes(exported[0].read("model.onnx"))
    pixels = calibration_pixels(exported[0])
    int8_from_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", contract=CONTRACT, tiles=pixels[:16])
    made = initializers(onnx.load_model(tmp_path / "int8.onnx"))
    last = layers(exact)[-1]
    before = initializers(exact)
    error = dequantised_weights(before[last.weights]) - before[last.weights]
    expected = np.einsum("oikl,i->o", error, observed[last.data].mean)
    np.testing.assert_allclose(before[last.bias] - made[last.bias], expected, rtol=1e-3, atol=1e-6)


def test_means_are_decided_where_streams_are_added_else_behind_every_convolution(exact: Any) -> None:
    assert junctions(residual_graph()) == [
        Junction("shortcut/b", "sum_1", None),
        Junction("three/b", "sum_2", "sum_1/relu"),
    ]
    assert [place.bias for place in junctions(exact)] == [layer.bias for layer in layers(exact)]


def test_the_mean_error_of_rounding_is_taken_off() -> None:
    exact = residual_graph()
    tiles = np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), np.uint8)
    chosen = layers(exact)[1:]
    seen = observe(exact, [tiles], tensors={name for layer in chosen for name in (layer.data, layer.result)})
    ranges = {name: item.best_range() for name, item in seen.items()}
    rounded = quantised(exact, chosen, ranges=ranges, biases={})
    sums = ["sum_1", "sum_2"]
    expected, before = channel_means(exact, sums, tiles), channel_means(rounded, sums, tiles)
    kept = dict(initializers(rounded))
    correct_means(rounded, exact=exact, tiles=tiles)
    after = channel_means(rounded, sums, tiles)
    for name in sums:
        error = np.abs(before[name] - expected[name]).max()
        assert error > 0
        assert np.abs(after[name] - expected[name]).max() < 0.2 * error
    changed = {name for name, values in initializers(rounded).items() if not np.array_equal(values, kept[name])}
    assert changed == {"shortcut/b", "three/b"}


def test_float_weights_are_stored_in_half_and_biases_are_not(exported: Exported, golden_pixels: Pixels) -> None:
    graph = graph_of(exported, "model.onnx")
    exact, size = answers(graph, golden_pixels), len(graph.SerializeToString())
    biases = {layer.bias for layer in layers(graph)}
    store_in_half(graph)
    assert len(graph.SerializeToString()) < 0.6 * size
    assert 0 < np.abs(answers(graph, golden_pixels) - exact).max() < 5e-3
    kinds = {item.name: item.data_type for item in graph.graph.initializer}
    assert {kinds[name] for name in biases} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in kinds.values()


def test_weights_beyond_the_range_of_half_stay_as_they_are() -> None:
    graph = residual_graph()
    wide = np.full((64, 8, 3, 3), 1e5, np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(wide, "wide"))
    store_in_half(graph)
    np.testing.assert_array_equal(initializers(graph)["wide"], wide)
