"""A runtime that is not installed stops no other: a machine with TensorRT alone needs no ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.backends.simulated_gpu import ON_GPU, certified, make_engine_bundle
from engine.run.support import draw_folder, environment, read_table

PROGRAM = Path(__file__).with_name("tensorrt_only.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


def run(folder: Path, bundle: Path, out: str) -> dict[str, Any]:
    tiles = draw_folder(folder / "study", 20)
    (folder / out).mkdir()
    command = [sys.executable, str(PROGRAM), str(bundle), str(tiles), str(folder / out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["imported"] == []
    return found


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, Any]:
    """The commands on a bundle whose engine is certified."""
    bundle, _ = certified(make_engine_bundle(folder / "bundle"), ON_GPU["tensorrt"])
    return run(folder, bundle.root, "out")


def test_the_doctor_finds_the_engine(done: dict[str, Any]) -> None:
    assert done["doctor"]["exit"] == 0, done["doctor"]
    found = json.loads(done["doctor"]["stdout"])
    assert found["auto"] == "tensorrt fp16"
    reasons = {f"{way['backend']} {way['precision']}": way["reason"] for way in found["ways"]}
    assert reasons["tensorrt fp16"] == "the fastest one certified here"
    assert reasons["onnxruntime-cpu fp32"] == "ONNX Runtime is not installed: pip install '.[cpu]'"
    assert reasons["onnxruntime-cuda fp32"] == "ONNX Runtime is not installed: pip install '.[gpu]'"
    assert reasons["openvino fp32"] == "OpenVINO is not installed: pip install '.[cpu]'"


def test_a_run_predicts_every_tile(done: dict[str, Any], folder: Path) -> None:
    assert done["batch"]["exit"] == 0, done["batch"]
    rows = read_table(folder / "out" / "preds.csv")
    assert [row["status"] for row in rows] == ["ok"] * 20
    record = json.loads((folder / "out" / "preds.csv.run.json").read_text(encoding="utf-8"))
    assert record["backend"]["backend"] == "tensorrt"


def test_parity_holds_the_engine_to_keras_s_recorded_answers(done: dict[str, Any], folder: Path) -> None:
    assert done["parity"]["exit"] == 0, done["parity"]
    report = json.loads((folder / "out" / "parity.json").read_text(encoding="utf-8"))
    pixels, engine = report["layers"]
    assert pixels["passed"]
    assert engine["subject"].endswith("-fp16.engine on tensorrt in fp16, and the golden tiles' recorded answers")
    assert (engine["passed"], engine["parity"]["max_absdiff"]) == (True, 0.0)
    assert "no runtime on this machine computes model.onnx" in done["parity"]["stderr"]


def test_the_benchmark_measures_the_engine(done: dict[str, Any]) -> None:
    assert done["bench"]["exit"] == 0, done["bench"]
    assert json.loads(done["bench"]["stdout"])["backend"]["backend"] == "tensorrt"


def test_without_a_certificate_it_is_asked_for_by_name(tmp_path: Path) -> None:
    found = run(tmp_path, make_engine_bundle(tmp_path / "bundle").root, "out")
    assert found["batch"]["exit"] == 1
    assert "no backend on this machine runs fp32: use --precision fp16 (ONNX Runtime" in found["batch"]["stderr"]
    assert json.loads(found["doctor"]["stdout"])["auto"] is None
    assert found["parity"]["exit"] == 0
