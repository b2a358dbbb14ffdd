"""The INT8 graph for TensorRT: symmetric about zero, in integers wherever it can be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cervix_engine.backends.survey import survey
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers_as_written
from cervix_export.graphs.int8.graph import CPU, TENSORRT, Scheme, dequantised_weights, initializers, layers, quantised
from cervix_export.graphs.int8.ranges import Range
from cervix_export.graphs.precision_proof import integer_share
from export.int8.int8_graphs import Exported, graph_of, residual_graph


def constants_of(model: Any, kind: str, place: int) -> list[Any]:
    """The constants that nodes of one kind take as their input number `place`."""
    values = initializers(model)
    return [values[node.input[place]] for node in model.graph.node if node.op_type == kind]


def test_the_signed_graph_has_integers_symmetric_about_zero_and_floats_in_half(exported: Exported) -> None:
    model = graph_of(exported, "model.int8-signed.onnx")
    points = constants_of(model, "QuantizeLinear", 2) + constants_of(model, "DequantizeLinear", 2)
    assert {item.dtype for item in points} == {np.dtype(np.int8)}
    assert not any(item.any() for item in points)
    scales = constants_of(model, "QuantizeLinear", 1) + constants_of(model, "DequantizeLinear", 1)
    assert {item.dtype for item in scales} == {np.dtype(np.float16)}
    assert {item.dtype for item in constants_of(model, "Conv", 2)} == {np.dtype(np.float16)}, "biases are not rounded"


def test_the_signed_graph_computes_all_in_integers_but_what_is_listed(exported: Exported) -> None:
    model = graph_of(exported, "model.int8-signed.onnx")
    kept = exported[0].read_json("model.int8.json", schema="cervix/int8/1")["kept_when_signed"]
    in_float = [
        node for node in model.graph.node if node.op_type in ("Conv", "MatMul") and "rounded" not in node.input[1]
    ]
    assert [node.name for node in in_float] == kept
    assert [node.op_type for node in in_float] == ["Conv", "MatMul"]
    assert integer_share(model) > 0.95


def test_the_signed_graph_stays_near_to_keras(exported: Exported, golden_pixels: Pixels) -> None:
    certificate = json.loads(exported[0].read("certificates/model.int8-signed.onnx.onnxruntime-cpu.int8.json"))
    assert certificate["file_sha256"] == exported[0].files["model.int8-signed.onnx"]
    assert certificate["passed"]
    written = answers_as_written(exported[0].read("model.int8-signed.onnx"), golden_pixels)
    difference = np.abs(written - GoldenSet.load(exported[0]).probabilities())
    assert certificate["parity"]["max_absdiff"] == pytest.approx(difference.max(), abs=1e-3)
    assert 0 < difference.max() < 0.1


def test_no_machine_runs_the_signed_graph_itself(exported: Exported) -> None:
    assert "model.int8-signed.onnx" not in {way.combination.artefact for way in survey(exported[0]).ways}


def test_the_residual_stream_is_rounded_for_cpus_and_exact_for_tensorrt() -> None:
    model = residual_graph()
    chosen = layers(model)[1:]
    ranges = {name: Range(0.0, 4.0) for layer in chosen for name in (layer.data, layer.result)}

    def operands(scheme: Scheme) -> list[set[str]]:
        graph = quantised(model, chosen, ranges=ranges, biases={}, scheme=scheme).graph
        return [set(node.input) for node in graph.node if node.op_type == "Add"]

    assert operands(TENSORRT) == [{"shortcut", "one"}, {"three", "sum_1/relu"}]
    assert operands(CPU) == [{"shortcut/rounded", "one/rounded"}, {"three/rounded", "sum_1/relu/rounded"}]


def test_a_signed_range_has_127_steps_on_either_side() -> None:
    for span in (Range(0.0, 2.54), Range(-2.54, 1.0)):
        scale, zero_point = TENSORRT.scale_and_zero_point(span, np.float32)
        assert float(scale) == pytest.approx(0.02)
        assert int(zero_point) == 0
        assert zero_point.dtype == np.int8


def test_tiny_weights_in_half_precision_keep_a_scale() -> None:
    weights: Any = np.full((2, 1, 1, 1), 1e-7, np.float16)
    assert (dequantised_weights(weights) >= 0).all()
    assert np.isfinite(dequantised_weights(weights)).all()
