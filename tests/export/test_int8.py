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

from cervix_engine.bundle import Bundle, seal
from cervix_engine.calibration_tiles import calibration_pixels
from cervix_engine.errors import ContractError
from cervix_engine.preprocess import Pixels
from cervix_export.int8 import sensitivity
from cervix_export.int8.graph import Layer, dequantised_weights, folded, initializers, layers, quantised
from cervix_export.int8.make import INTEGER_SHARE, int8_from_onnx
from cervix_export.int8.ranges import BINS, Observed, Range, observe
from cervix_export.int8.sensitivity import BlockCost, answers
from cervix_export.precision_proof import integer_share

from .conftest import CONTRACT

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def graph_of(exported: Exported, name: str) -> Any:
    return onnx.load_model_from_string(exported[0].read(name))


@pytest.fixture(scope="module")
def exact(exported: Exported) -> Any:
    return folded(exported[0].root / "model.onnx")


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
    exact: Any, exported: Exported, tmp_path: Path, observed: dict[str, Observed]
) -> None:
    (tmp_path / "model.onnx").write_bytes(exported[0].read("model.onnx"))
    pixels = calibration_pixels(exported[0])
    int8_from_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", contract=CONTRACT, tiles=pixels[:16])
    made = initializers(onnx.load_model(tmp_path / "int8.onnx"))
    last = layers(exact)[-1]
    before = initializers(exact)
    error = dequantised_weights(before[last.weights]) - before[last.weights]
    expected = np.einsum("oikl,i->o", error, observed[last.data].mean)
    np.testing.assert_allclose(before[last.bias] - made[last.bias], expected, rtol=1e-3, atol=1e-6)


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
    # 5 % of 1,220 weights are 61: room for both small blocks, and for none of the others, whatever they would save.
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1, 3]
    assert in_float(9.0, 0.2, 9.0, 0.1, 0.02) == [1, 3]
    monkeypatch.setattr(sensitivity, "MOST_FLOAT_WEIGHTS", 0.01)
    assert in_float(0.01, 0.2, 0.01, 0.1, 0.02) == [1]
    assert in_float(0.01, 0.1, 0.01, 0.2, 0.02) == [3]
