"""The INT8 graph: in integers where it says so, calibrated on training tiles, and honest about what that costs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from cervix_engine.backends.survey import survey
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.errors import ContractError
from cervix_engine.values import Pixels
from cervix_export.graphs.compute import answers, answers_as_written
from cervix_export.graphs.int8 import make, sensitivity
from cervix_export.graphs.int8.graph import (
    CPU,
    TENSORRT,
    Layer,
    Scheme,
    dequantised_weights,
    initializers,
    layers,
    quantised,
    store_in_half,
)
from cervix_export.graphs.int8.make import int8_from_onnx
from cervix_export.graphs.int8.means import Junction, channel_means, correct_means, junctions
from cervix_export.graphs.int8.ranges import BINS, Observed, Range, observe
from cervix_export.graphs.int8.sensitivity import BlockCost
from cervix_export.graphs.precision_proof import INTEGER_SHARE, integer_share

from .conftest import CONTRACT

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def graph_of(exported: Exported, name: str) -> Any:
    return onnx.load_model_from_string(exported[0].read(name))


@pytest.fixture(scope="module")
def exact(exported: Exported) -> Any:
    return graph_of(exported, "model.onnx")


@pytest.fixture(scope="module")
def observed(exact: Any, exported: Exported) -> dict[str, Observed]:
    tensors = {name for layer in layers(exact) for name in (layer.data, layer.result)}
    pixels = calibration_pixels(exported[0])
    return observe(exact, [pixels[:8], pixels[8:16]], tensors=tensors)


def test_the_export_makes_an_int8_graph_and_certifies_it(exported: Exported) -> None:
    bundle, done = exported
    certificate = json.loads(bundle.read("certificates/model.int8.onnx.onnxruntime-cpu.int8.json"))
    assert certificate["precision"] == certificate["arithmetic"] == "int8"
    assert certificate["file_sha256"] == bundle.files["model.int8.onnx"]
    assert "what rounding one block alone costs" in done.stdout


def test_arithmetic_is_in_integers_and_only_there(exported: Exported) -> None:
    assert integer_share(graph_of(exported, "model.int8.onnx")) >= INTEGER_SHARE
    assert integer_share(graph_of(exported, "model.onnx")) == 0
    assert integer_share(graph_of(exported, "model.fp16.onnx")) == 0


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("model.int8.json", "cervix_export/schemas/int8"),
        ("calibration/tiles.json", "cervix_engine/schemas/calibration_tiles"),
    ],
)
def test_records_are_as_their_schemas_say(exported: Exported, name: str, package: str) -> None:
    module, _, path = package.partition("/")
    schema = json.loads((files(module) / f"{path}.schema.json").read_text())
    jsonschema.validate(json.loads(exported[0].read(name)), schema)


def test_the_record_says_what_was_done(exported: Exported) -> None:
    record = exported[0].read_json("model.int8.json", schema="cervix/int8/1")
    assert record["calibration_tiles"] == 24
    assert record["integer_share"] == pytest.approx(integer_share(graph_of(exported, "model.int8.onnx")))
    assert [block["layers"] for block in record["blocks"]] == [1, 1]
    assert all(block["rms"] > 0 for block in record["blocks"])


# For TensorRT.


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


# The runtimes of CPUs.


def test_the_runtime_has_an_integer_kernel_for_every_layer_in_integers(exported: Exported, tmp_path: Path) -> None:
    wanted = [
        node
        for node in graph_of(exported, "model.int8.onnx").graph.node
        if node.op_type == "Conv" and node.input[1].endswith("/rounded")
    ]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = exported[0].read("model.int8.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load_model(tmp_path / "optimised.onnx").graph.node]
    assert kernels.count("QLinearConv") == len(wanted) >= 1


def test_an_export_without_int8_takes_the_earlier_graph_away(
    exported_root: Path, export_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = export_command(exported_root)
    assert done.returncode == 0, done.stderr
    assert not list(exported_root.glob("model.int8*"))
    assert not [name for name in Bundle.open(exported_root).files if "int8" in name]


def test_a_bundle_without_calibration_tiles_is_told_before_the_long_work(
    bundle_root: Path, export_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (bundle_root / "calibration" / "tiles.json").unlink()
    seal(bundle_root)
    done = export_command("--int8", bundle_root)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "no calibration tiles" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("index", ['{"schema": "cervix/calibration-tiles/1", "tiles": [{}]}', "{", '{"schema": "x"}'])
def test_a_malformed_index_is_named(bundle_root: Path, index: str) -> None:
    (bundle_root / "calibration" / "tiles.json").write_text(index)
    with pytest.raises(ContractError, match=r"calibration/tiles\.json"):
        calibration_pixels(seal(bundle_root))


def test_a_tile_that_cannot_be_decoded_is_named(bundle_root: Path) -> None:
    (bundle_root / "calibration" / "00003.tile").write_bytes(b"no image")
    with pytest.raises(ContractError, match=r"calibration/00003\.tile cannot be decoded"):
        calibration_pixels(seal(bundle_root))


def test_rounding_nothing_changes_nothing(exact: Any, golden_pixels: Pixels) -> None:
    same = quantised(exact, [], ranges={}, biases={})
    np.testing.assert_array_equal(answers(same, golden_pixels), answers(exact, golden_pixels))


def test_answers_stay_near(exact: Any, observed: dict[str, Observed], golden_pixels: Pixels) -> None:
    ranges = {name: item.best_range() for name, item in observed.items()}
    rounded = quantised(exact, layers(exact)[1:], ranges=ranges, biases={})
    difference = np.abs(answers(rounded, golden_pixels) - answers(exact, golden_pixels))
    assert 0 < difference.max() < 0.15


def test_a_range_cuts_an_outlier_off_where_that_costs_less_than_coarse_steps() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[: BINS // 4] = 100_000
    counts[-1] = 1
    assert Observed(0.0, 8.0, counts, np.zeros(1)).best_range().high == pytest.approx(2.0, abs=0.1)
    counts[-1] = 100_000_000
    assert Observed(0.0, 8.0, counts, np.zeros(1)).best_range().high == pytest.approx(8.0, abs=0.1)


def test_a_range_is_unsigned_only_where_no_value_is_negative() -> None:
    counts = np.ones(BINS, np.int64)
    assert Observed(0.0, 4.0, counts, np.zeros(1)).best_range().low == 0
    signed = Observed(-1.0, 4.0, counts, np.zeros(1)).best_range()
    assert signed.low == -1.0
    assert Observed(0.0, 0.0, np.zeros(BINS, np.int64), np.zeros(1)).best_range() == Range(0.0, 1.0)


def test_what_is_observed_is_what_flows(exact: Any, observed: dict[str, Observed], exported: Exported) -> None:
    first = layers(exact)[1]
    watched = onnx.ModelProto()
    watched.CopyFrom(exact)
    watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(first.data))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = calibration_pixels(exported[0])[:16]
    (values,) = session.run([first.data], {session.get_inputs()[0].name: pixels})
    seen = observed[first.data]
    assert (seen.low, seen.high) == (values.min(), values.max())
    np.testing.assert_allclose(seen.mean, values.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert seen.counts.sum() == values.size


def test_weights_have_one_scale_a_channel_and_lose_at_most_half_a_step() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    weights[1] *= 1000
    weights[2] = 0
    error = np.abs(dequantised_weights(weights) - weights)
    steps = np.abs(weights).max(axis=(1, 2, 3)) / 127
    assert (error.max(axis=(1, 2, 3)) <= steps / 2 * 1.001).all()


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


# Means.


def residual_graph() -> Any:
    """Two blocks of 3×3 convolutions on a stream of 8 channels: the first changes the stream, the second adds to it."""
    random = np.random.default_rng(5)
    constants, nodes = [], []

    def convolution(name: str, data: str, channels: int) -> str:
        weights = random.normal(0, 0.4, (8, channels, 3, 3)).astype(np.float32)
        bias = random.normal(0, 0.1, 8).astype(np.float32)
        constants.extend([numpy_helper.from_array(weights, f"{name}/w"), numpy_helper.from_array(bias, f"{name}/b")])
        nodes.append(helper.make_node("Conv", [data, f"{name}/w", f"{name}/b"], [name], name=name, pads=[1, 1, 1, 1]))
        return name

    def relu(data: str) -> str:
        nodes.append(helper.make_node("Relu", [data], [f"{data}/relu"], name=f"{data}/relu"))
        return f"{data}/relu"

    def add(left: str, right: str, name: str) -> str:
        nodes.append(helper.make_node("Add", [left, right], [name], name=name))
        return relu(name)

    constants.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    nodes.append(helper.make_node("Cast", ["tiles"], ["numbers"], to=onnx.TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", ["numbers", "scale"], ["scaled"]))
    nodes.append(helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]))
    stem = relu(convolution("stem", "planes", 3))
    first = add(convolution("shortcut", stem, 8), convolution("one", relu(convolution("zero", stem, 8)), 8), "sum_1")
    second = add(convolution("three", relu(convolution("two", first, 8)), 8), first, "sum_2")
    nodes.append(helper.make_node("GlobalAveragePool", [second], ["pooled"]))
    shapes = (("tiles", onnx.TensorProto.UINT8, ["N", 16, 16, 3]), ("pooled", onnx.TensorProto.FLOAT, ["N", 8, 1, 1]))
    given, got = (helper.make_tensor_value_info(*shape) for shape in shapes)
    graph = helper.make_graph(nodes, "residual", [given], [got], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


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


WEIGHTS = {"w0": 100, "w1": 10, "w2": 1000, "w3": 10, "w4": 100}


def test_the_sweep_says_what_each_block_alone_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    harm = {"conv0": 0.01, "conv1": 0.2, "conv2": 0.01, "conv3": 0.1, "conv4": 0.02}
    blocks = [[Layer(f"conv{place}", "x", "y", name, "b")] for place, name in enumerate(WEIGHTS)]

    def planted(graph: Sequence[Layer], pixels: Pixels) -> Any:
        return np.full((len(pixels), 5), sum(harm[layer.name] for layer in graph), np.float32)

    monkeypatch.setattr(sensitivity, "answers", planted)
    costs = sensitivity.sweep(blocks, list, exact=[], sizes=WEIGHTS, pixels=np.zeros((4, 2, 2, 3), np.uint8))
    assert [cost.rms for cost in costs] == pytest.approx(list(harm.values()))
    assert [cost.weights for cost in costs] == list(WEIGHTS.values())


def in_float(*rms: float) -> list[int]:
    blocks = enumerate(zip(WEIGHTS.values(), rms, strict=True))
    costs = [BlockCost(f"conv{place}", 1, size, cost) for place, (size, cost) in blocks]
    return [place for place, cost in enumerate(sensitivity.leave_in_float(costs)) if cost.in_float]


def test_blocks_that_save_most_a_weight_are_left_in_float_as_far_as_the_file_may_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "MOST_FLOAT_WEIGHTS", 0.05)
    # 5 % of 1,220 weights are 61: room for both small blocks, and for none of the others, whatever they would save.
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1, 3]
    assert in_float(9.0, 0.2, 9.0, 0.1, 0.02) == [1, 3]
    monkeypatch.setattr(sensitivity, "MOST_FLOAT_WEIGHTS", 0.01)
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1]
    assert in_float(0.01, 0.1, 0.01, 0.2, 0.02) == [3]
