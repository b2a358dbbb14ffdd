"""The doctor is right with and without each runtime: absence is simulated by taking the module away."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.cli.doctor import main
from cervix_engine.doctor import Diagnosis, Verdict, diagnose
from engine.report.bundles import CPU, certified_bundle

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install '.[cpu]'")


def _without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def _install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str) -> None:
    """A package that is there as far as Python's own records say."""
    (folder / name.replace("-", "_")).mkdir(parents=True)
    (folder / name.replace("-", "_") / "__init__.py").touch()
    record = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def _plug_in_gpu(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str = "NVIDIA H100, 9.0, 81559 MiB, 580.1"
) -> None:
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 9.0, 81559 MiB, 580.1'\n", encoding="utf-8")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def _version(diagnosis: Diagnosis, name: str) -> str | None:
    return next(package.version for package in diagnosis.packages if package.name == name)


def _way(diagnosis: Diagnosis, backend: str, precision: str) -> Verdict:
    return next(way for way in diagnosis.ways if (way.backend, way.precision) == (backend, precision))


def test_auto_takes_the_fastest_certified_and_says_why(tmp_path: Path) -> None:
    diagnosis = diagnose(certified_bundle(tmp_path / "b", ("fp32", 20.0), ("fp16", 30.0)))
    assert diagnosis.auto == f"{CPU} fp16"
    chosen, other = _way(diagnosis, CPU, "fp16"), _way(diagnosis, CPU, "fp32")
    assert (chosen.chosen, chosen.tiles_per_sec, chosen.reason) == (True, 30.0, "the fastest one certified here")
    assert (other.chosen, other.tiles_per_sec, other.reason) == (False, 20.0, "certified here")
    assert "no model.int8.onnx" in _way(diagnosis, CPU, "int8").reason


@pytest.mark.parametrize(
    ("version", "device", "reason"),
    [("0.1", None, "is here, certified with 0.1"), (None, "cpu-z80", "certified on cpu-z80")],
)
def test_a_certificate_of_elsewhere_does_not_count(
    tmp_path: Path, version: str | None, device: str | None, reason: str
) -> None:
    diagnosis = diagnose(
        certified_bundle(tmp_path / "b", ("fp32", 20.0), ("fp16", 30.0), version=version, device=device)
    )
    assert diagnosis.auto == f"{CPU} fp32"
    assert reason in _way(diagnosis, CPU, "fp32").reason
    assert reason in _way(diagnosis, CPU, "fp16").reason


def test_int8_is_certified_and_not_what_auto_takes(tmp_path: Path) -> None:
    diagnosis = diagnose(certified_bundle(tmp_path / "b", ("fp32", 20.0), ("int8", 90.0)))
    assert diagnosis.auto == f"{CPU} fp32"
    assert _way(diagnosis, CPU, "int8").reason == "certified here, asked for by --int8"


def test_without_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "onnxruntime_ep_openvino")
    diagnosis = diagnose(certified_bundle(tmp_path / "b", ("fp32", 20.0)))
    assert _version(diagnosis, "onnxruntime-ep-openvino") is None
    assert "onnxruntime-ep-openvino" in _way(diagnosis, "onnxruntime-openvino", "fp32").reason
    assert ("onnxruntime-ep-openvino: to run bundles on the CPU", "pip install '.[cpu]'") in diagnosis.missing
    assert diagnosis.auto == f"{CPU} fp32"


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "tensorflow", "keras")
    diagnosis = diagnose(tmp_path / "none")
    assert ("tensorflow, keras: to train", "pip install '.[train]'") in diagnosis.missing


def test_without_onnxruntime_the_others_are_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    _without(monkeypatch, "onnxruntime", "onnxruntime_ep_openvino")
    diagnosis = diagnose(certified_bundle(tmp_path / "b", ("fp32", 20.0)))
    assert diagnosis.auto == "openvino fp32"
    assert _way(diagnosis, CPU, "fp32").reason == "ONNX Runtime is not installed: pip install '.[cpu]'"


def test_without_any_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = certified_bundle(tmp_path / "b", ("fp32", 20.0), version="1.32.0")
    _without(monkeypatch, "onnxruntime", "onnxruntime_ep_openvino", "openvino")
    diagnosis = diagnose(bundle)
    assert (diagnosis.auto, diagnosis.can_run) == (None, False)
    assert not any(way.chosen or way.tiles_per_sec for way in diagnosis.ways)
    assert all("is not installed" in way.reason or "has no" in way.reason for way in diagnosis.ways)
    assert "pip install '.[cpu]'" in [line for _, line in diagnosis.missing]
    done = CliRunner().invoke(main, ["--model", str(bundle)])
    assert done.exit_code == 1
    assert "ONNX Runtime is not installed" in done.stdout


def test_without_a_gpu_nobody_needs_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    diagnosis = diagnose(tmp_path / "none")
    assert diagnosis.gpus == ()
    assert not any("'.[gpu]'" in line for _, line in diagnosis.missing)


def test_with_a_gpu_the_runtime_for_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in_gpu(monkeypatch, tmp_path / "bin")
    _without(monkeypatch, "tensorrt")
    diagnosis = diagnose(tmp_path / "none")
    assert diagnosis.gpus == ("NVIDIA H100, compute capability 9.0, 81559 MiB, driver 580.1",)
    assert "pip install '.[gpu]'" in [line for _, line in diagnosis.missing]


def test_with_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tmp_path / "site", "tensorrt", "10.9.0")
    _plug_in_gpu(monkeypatch, tmp_path / "bin")
    diagnosis = diagnose(tmp_path / "none")
    assert _version(diagnosis, "tensorrt") == "10.9.0"
    assert not any("no installed runtime" in problem for problem in diagnosis.problems)


def test_two_runtimes_in_one_place_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tmp_path / "site", "onnxruntime-gpu", "1.31.0")
    assert any("overwrite each other" in problem for problem in diagnose(tmp_path / "none").problems)


def test_no_bundle_is_a_finding(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--json", "--model", str(tmp_path / "none")])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["schema"], found["auto"]) == ("cervix/doctor/1", None)
    assert "no bundle at" in found["bundle"]
    assert found["ways"], "what this machine could run is still said"


def test_the_text_marks_the_choice(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--model", str(certified_bundle(tmp_path / "b", ("fp32", 20.0)))])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("->")]
    assert f"{CPU} fp32" in line
    assert "20.0 tiles/s" in line
    assert f"auto takes: {CPU} fp32" in done.stdout


def test_where_nothing_is_wrong_it_names_what_is_certified_and_no_more(tmp_path: Path) -> None:
    bundle = str(certified_bundle(tmp_path / "b", ("fp32", 20.0), ("int8", 90.0)))
    short = CliRunner().invoke(main, ["--model", bundle]).stdout
    assert re.findall(r"^(?:->|  )(\S+ \S+)", short, re.MULTILINE) == [f"{CPU} fp32", f"{CPU} int8"]
    assert "packages" not in short
    assert "more: cervix-doctor --verbose" in short
    long = CliRunner().invoke(main, ["--verbose", "--model", bundle]).stdout
    assert re.search(r"^  onnxruntime +\d", long, re.MULTILINE)
    assert f"  {CPU} bf16" in long


def test_what_runs_need_not_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "tensorflow", "keras", "tf2onnx", "onnx", "pyarrow", "jinja2")
    said = CliRunner().invoke(main, ["--model", str(certified_bundle(tmp_path / "b", ("fp32", 20.0)))]).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("not installed, ")]
    assert "to train, to export and certify" in line
    assert re.search(r"pip install '\.\[train,export,\S*report\S*\]'$", line)
    assert "missing: " not in said


def test_where_nothing_is_certified_it_says_why_of_every_way(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--model", str(certified_bundle(tmp_path / "b", ("fp32", 20.0), version="0.1"))])
    assert "nothing is certified here: " in done.stdout
    assert f"  {CPU} bf16" in done.stdout
