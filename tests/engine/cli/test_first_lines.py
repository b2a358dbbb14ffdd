"""A run first says what computes it and by which certificate, and names what was faster and is not taken."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.backends import runtime_version
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.certificate import Certificate, Flip, Parity
from cervix_engine.files import write_json
from cervix_engine.machine import cpu_class
from engine.run.support import Invoke, make_bundle, tiny_onnx

FLIP = Flip("00001.tile", "cervix_dyk", "cervix_koc", 0.01)
CPU, HERE = "onnxruntime-cpu", str(runtime_version("onnxruntime-cpu"))


@pytest.fixture
def fp32(tmp_path: Path) -> Certificate:
    """A certificate that covers the tiny bundle here."""
    bundle = make_bundle(tmp_path / "bundle")
    return Certificate(
        file="model.onnx",
        file_sha256=bundle.files["model.onnx"],
        backend=CPU,
        backend_version=HERE,
        precision="fp32",
        arithmetic="fp32",
        device_class=cpu_class(),
        reference="numpy",
        parity=Parity(tiles=24, max_absdiff=0.0, p99_absdiff=0.0, top1_agreement=1.0, flips=()),
        tiles_per_sec=10.0,
        passed=True,
    )


def sealed(root: Path, *certificates: Certificate) -> Bundle:
    (root / "certificates").mkdir(exist_ok=True)
    for item in certificates:
        write_json(root / item.path, item.to_json())
    return seal(root)


def first_lines(invoke: Invoke, bundle: Bundle, *options: str) -> list[str]:
    done = invoke(*options, model=bundle.root)
    assert done.exit_code == 0, done.output
    return [line for line in done.stderr.splitlines() if str(bundle.root) in line or line.startswith("not taken")]


def test_without_a_certificate_the_line_names_the_command_that_makes_one(invoke: Invoke, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    expected = f"{bundle.root} ({bundle.digest[:12]}): fp32 on {CPU} {HERE}, no certificate: cervix-parity --certify"
    done = invoke(model=bundle.root)
    assert done.stderr.splitlines()[0] == expected
    assert first_lines(invoke, bundle, "--dry-run") == [expected]


def test_what_was_faster_is_named_with_the_reason(invoke: Invoke, tmp_path: Path, fp32: Certificate) -> None:
    root = tmp_path / "bundle"
    (root / "model.int8.onnx").write_bytes(tiny_onnx())
    sha256 = seal(root).files["model.int8.onnx"]
    parity = replace(fp32.parity, flips=(FLIP,) * 3)
    int8 = replace(
        fp32, file="model.int8.onnx", file_sha256=sha256, precision="int8", parity=parity, tiles_per_sec=90.0
    )
    stale = replace(fp32, backend="openvino", backend_version="2020.1", tiles_per_sec=30.0)
    bundle = sealed(root, fp32, int8, stale)
    start = f"{root} ({bundle.digest[:12]}): "
    here = f"openvino {runtime_version('openvino')} is here, certified with 2020.1: cervix-parity --certify"
    assert first_lines(invoke, bundle) == [
        f"{start}fp32 on {CPU} {HERE}, certified, 0 of 24 decisions changed",
        f"not taken: fp32 on openvino, 30.0 tiles/s when it was certified: {here}",
        f"not taken: int8 on {CPU}, 90.0 tiles/s when it was certified: 3 of 24 decisions changed, "
        "so it is asked for by --int8",
    ]
    assert first_lines(invoke, bundle, "--int8", "--overwrite") == [
        f"{start}int8 on {CPU} {HERE}, certified, 3 of 24 decisions changed"
    ]


def test_a_gate_that_was_not_passed_is_no_matter_of_certifying_again(
    invoke: Invoke, tmp_path: Path, fp32: Certificate
) -> None:
    bundle = sealed(tmp_path / "bundle", replace(fp32, passed=False))
    assert first_lines(invoke, bundle)[1:] == []
    bundle = sealed(tmp_path / "bundle", fp32, replace(fp32, backend="openvino", passed=False, tiles_per_sec=30.0))
    assert first_lines(invoke, bundle, "--overwrite")[1:] == [
        "not taken: fp32 on openvino, 30.0 tiles/s when it was certified: its certificate's gate was not passed"
    ]


def test_quiet_says_nothing(invoke: Invoke) -> None:
    assert invoke("-q").stderr == ""


def test_an_automatic_batch_size_is_said(invoke: Invoke, bundle: Bundle, out: Path) -> None:
    done = invoke("--batch-size", "auto")
    assert done.exit_code == 0, done.output
    said = re.search(r"^--batch-size auto: batches of (\d+) tiles$", done.stderr, re.MULTILINE)
    assert said
    record = json.loads(out.with_name(f"{out.name}.run.json").read_text(encoding="utf-8"))
    assert int(said[1]) == record["batch_size"]
    assert "--batch-size auto" not in invoke("--overwrite").stderr
