"""`cervix-export` as users meet it: one line and the right exit code for each thing that can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cervix_engine.bundle.bundle import Bundle, seal
from cervix_export.cli.export import main

Exported = tuple[Bundle, subprocess.CompletedProcess[str]]


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(result: Result, *, code: int) -> str:
    """The one line that a failed command ended with."""
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_the_default_place_becomes_a_deployable_bundle(exported: Exported) -> None:
    bundle, done = exported
    assert {"model.onnx", "model.fp16.onnx", "model.keras"} <= set(bundle.files)
    assert bundle.digest in done.stdout
    assert "onnxruntime-cpu" in done.stdout
    assert "yes" in done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("no TensorRT engine: ")]
    assert "Traceback" not in done.stderr
    assert "warning" not in done.stderr.lower()


def test_an_export_can_be_repeated(exported_root: Path) -> None:
    before = Bundle.open(exported_root)
    result = run("--model", exported_root, "--engine", "none", "--tiles", 10, "-b", 4, "--expect-digest", before.digest)
    assert result.exit_code == 0, result.stderr
    after = Bundle.open(exported_root)
    assert "model.fp16.onnx" not in after
    assert [name for name in after.files if name.startswith("certificates/")] == [
        name for name in before.files if name.startswith("certificates/model.onnx.")
    ]
    assert "TensorRT" not in result.stderr
    assert after.digest in result.stdout


def test_answers_that_differ_from_keras_exit_4_and_are_kept_on_record(bundle_root: Path) -> None:
    swap_last_answers(bundle_root)
    result = run(bundle_root, "--engine", "none")
    assert "max absolute difference" in error_of(result, code=4)
    assert "NO" in result.stdout
    bundle = Bundle.open(bundle_root)
    certificate = json.loads(bundle.read("certificates/model.onnx.onnxruntime-cpu.fp32.json"))
    assert certificate["passed"] is False
    assert "model.onnx" in bundle


def swap_last_answers(root: Path) -> None:
    """Alter what golden tiles record, behind the few that are compared while converting."""
    index = root / "golden" / "golden.json"
    golden = json.loads(index.read_text())
    golden["tiles"][-1]["probabilities"].reverse()
    index.write_text(json.dumps(golden))
    seal(root)


def test_an_altered_model_is_refused_before_any_runtime_sees_it(bundle_root: Path) -> None:
    with (bundle_root / "model.keras").open("ab") as file:
        file.write(b"!")
    result = run(bundle_root)
    assert "model.keras was altered" in error_of(result, code=1)
    assert "converting" not in result.stderr


def test_another_bundle_than_the_pinned_one_is_refused(bundle_root: Path) -> None:
    assert "expected 00000" in error_of(run(bundle_root, "--expect-digest", "0" * 64), code=1)


def test_a_missing_model_says_how_to_get_one(tmp_path: Path) -> None:
    assert "cervix-train" in error_of(run(tmp_path / "nowhere"), code=2)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "has no bundle.json" in error_of(run(tmp_path), code=2)


@pytest.mark.parametrize("name", ["model.h5", "MODEL.H5", "model.hdf5"])
@pytest.mark.parametrize("exists", [True, False])
def test_h5_files_are_refused(tmp_path: Path, name: str, exists: bool) -> None:
    if exists:
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "HDF5 models are not opened" in error_of(run(tmp_path / name), code=2)


def test_a_lone_keras_file_is_refused_with_what_to_name(bundle_root: Path) -> None:
    assert "expected a bundle: the folder" in error_of(run(bundle_root / "model.keras"), code=2)


def test_an_h5_model_inside_a_bundle_is_refused_also_under_another_name(bundle_root: Path) -> None:
    (bundle_root / "model.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    seal(bundle_root)
    assert "is an HDF5 file" in error_of(run(bundle_root), code=2)
    (bundle_root / "model.keras").rename(bundle_root / "model.h5")
    seal(bundle_root)
    assert "HDF5 models are not opened" in error_of(run(bundle_root), code=2)


def test_a_bundle_without_a_keras_model_is_refused(bundle_root: Path) -> None:
    (bundle_root / "model.keras").unlink()
    seal(bundle_root)
    assert "has no model.keras" in error_of(run(bundle_root), code=1)


def test_a_model_that_is_no_archive_is_refused(bundle_root: Path) -> None:
    (bundle_root / "model.keras").write_text("a text")
    seal(bundle_root)
    assert "no Keras archive" in error_of(run(bundle_root), code=1)


def test_two_different_models_are_one_too_many(tmp_path: Path) -> None:
    assert "name one" in error_of(run(tmp_path / "a", "--model", tmp_path / "b"), code=2)


def test_the_environment_names_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERVIX_MODEL", str(tmp_path / "elsewhere"))
    assert "elsewhere" in error_of(run(), code=2)


def test_an_engine_that_cannot_be_made_is_said_before_the_work(
    bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = run(bundle_root, "--engine", "tensorrt-rtx")
    assert error_of(result, code=1) == "error: no tensorrt-rtx engine: tensorrt_rtx is not installed"
    assert "converting" not in result.stderr


@pytest.mark.parametrize("missing", ["tf2onnx", "onnxruntime"])
def test_a_missing_tool_is_named_with_how_to_install_it(
    bundle_root: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install '.[" in error_of(run(bundle_root), code=1)


@pytest.mark.parametrize("arguments", [["-b", "0"], ["--tiles", "0"], ["--engine", "cuda"], ["--int8"]])
def test_options_that_make_no_sense_are_usage_errors(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_unwritable_bundle_is_one_line(bundle_root: Path) -> None:
    (bundle_root / ".export").write_text("in the way")
    assert "cannot export into" in error_of(run(bundle_root, "--engine", "none"), code=1)


def test_help_loads_nothing_heavy(export_command: Callable[..., Any]) -> None:
    code = "import sys, cervix_export.cli.export; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"numpy", "cv2", "onnx", "onnxruntime", "tensorflow", "keras", "tf2onnx", "rich"}
    assert heavy & set(done.stdout.split()) == set()
    assert export_command("--help").stdout.startswith("Usage: ")
