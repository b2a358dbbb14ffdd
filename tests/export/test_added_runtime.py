"""A new runtime is one file and one entry of the register: whatever chooses, certifies or measures then has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cervix_engine.backends import Combination
from cervix_engine.backends.register import registered, runtime_names
from cervix_engine.backends.selection import select
from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.bundle.golden import GoldenSet
from cervix_engine.cli.bench import main as bench
from cervix_engine.cli.doctor import main as doctor
from cervix_engine.files import write_json
from cervix_export.certify import certify_all
from cervix_export.cli.parity import main as parity
from engine.backends.more_runtimes import NUMPY
from engine.run.support import make_bundle

ADDED = Combination("numpy", "fp32")
QUICK = ["--sweep", "1", "-b", "4", "-j", "2", "--count", "8", "--max-rounds", "5", "--round-seconds", "0"]


@pytest.fixture
def added() -> Iterator[None]:
    with registered(*NUMPY):
        yield


@pytest.fixture
def certified(tmp_path: Path, added: None) -> Bundle:
    """The tiny bundle with a certificate that says that the new runtime is the fastest."""
    bundle = make_bundle(tmp_path / "bundle")
    made = certify_all(bundle, GoldenSet.load(bundle), reference="numpy", batch_size=8)
    (bundle.root / "certificates").mkdir()
    for item in made:
        rate = 1e6 if item.backend == "numpy" else item.tiles_per_sec
        write_json(bundle.root / item.path, replace(item, tiles_per_sec=rate).to_json())
    return seal(bundle.root)


def of_added(bundle: Bundle) -> Certificate:
    (found,) = [item for item in certificates(bundle) if item.backend == "numpy"]
    return found


def test_it_is_certified(certified: Bundle) -> None:
    made = of_added(certified)
    assert (made.file, made.precision, made.passed) == ("model.onnx", "fp32", True)
    assert made.parity.max_absdiff < 1e-6


def test_it_is_chosen_where_it_is_the_fastest(certified: Bundle) -> None:
    assert select(certified, precision="auto", require_parity=True).combination == ADDED
    assert select(certified, precision="auto", backend="numpy").combination == ADDED


def test_the_doctor_names_it(certified: Bundle) -> None:
    done = CliRunner().invoke(doctor, ["--json", "--model", str(certified.root)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["auto"] == "numpy fp32"
    reasons = {way["precision"]: way["reason"] for way in found["ways"] if way["backend"] == "numpy"}
    assert reasons["fp32"] == "the fastest one certified here"
    assert reasons["bf16"] == "NumPy has no bf16"
    assert "the bundle has no model.int8.onnx" in reasons["int8"]


def test_parity_measures_it(certified: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "parity.json"
    done = CliRunner().invoke(parity, ["--model", str(certified.root), "--no-keras", "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text(encoding="utf-8"))
    assert "model.onnx on numpy in fp32, and model.onnx" in [layer["subject"] for layer in report["layers"]]
    assert "numpy " in report["machine"]


def test_the_benchmark_runs_it(certified: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(
        bench, ["--model", str(certified.root), *QUICK, "--scratch", str(tmp_path), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text(encoding="utf-8"))["backend"]["backend"] == "numpy"


def test_it_is_there_only_where_it_was_added(tmp_path: Path) -> None:
    assert "numpy" not in runtime_names()
    with registered(*NUMPY):
        assert runtime_names()[-1] == "numpy"
        with pytest.raises(ValueError, match="a runtime numpy already"), registered(*NUMPY):
            pass
    assert "numpy" not in runtime_names()
