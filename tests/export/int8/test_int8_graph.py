"""The INT8 graph: in integers where it says so, calibrated on training tiles, and honest about what that costs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import onnx
import onnxruntime
import pytest

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.calibration_tiles import calibration_pixels
from cervix_engine.errors import ContractError
from cervix_export.graphs.precision_proof import INTEGER_SHARE, integer_share
from export.int8.int8_graphs import Exported, graph_of


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
