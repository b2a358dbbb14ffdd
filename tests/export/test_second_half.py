"""Engines and certificates for a machine that has the runtimes and nothing else, from a bundle exported elsewhere."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.backends.selection import select
from cervix_engine.backends.survey import certificates
from cervix_engine.bundle.bundle import Bundle, seal
from cervix_engine.bundle.engine_file import engines_of, read_fingerprint
from cervix_engine.bundle.golden import INDEX
from cervix_engine.files import write_json

KERAS = ("tensorflow", "keras", "tf2onnx", "onnx")
CPU_RUNTIMES = ("onnxruntime", "onnxruntime_ep_openvino", "openvino")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install '.[rtx]'"
)


def run(command: str, *arguments: str | Path, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """`cervix-COMMAND` in a process where the packages in `without` cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({without!r})); "
        f"from cervix_export.cli.{command} import main; main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def from_elsewhere(exported_root: Path) -> Path:
    """A bundle whose certificates another kind of CPU made, with another version of the runtime."""
    for certificate in certificates(Bundle.open(exported_root)):
        elsewhere = replace(certificate, device_class="cpu-elsewhere", backend_version="0.9")
        write_json(exported_root / certificate.path, elsewhere.to_json())
    seal(exported_root)
    return exported_root


def unchanged(before: Bundle, after: Bundle) -> bool:
    return after.files.items() >= before.files.items()


@needs_rtx
def test_a_machine_with_tensorrt_alone_builds_ahead_of_time(from_elsewhere: Path) -> None:
    before = Bundle.open(from_elsewhere)
    arguments = ("--fp16", "--engine", "tensorrt-rtx", "--compute-capability", "8.0,8.9,12.0")
    done = run("export", from_elsewhere, *arguments, without=(*KERAS, *CPU_RUNTIMES))
    assert done.returncode == 0, done.stderr
    assert "taking the bundle's graphs as they are" in done.stderr
    after = Bundle.open(from_elsewhere)
    assert unchanged(before, after)
    (engine,) = engines_of(after)
    mark = read_fingerprint(after, engine)
    assert (mark.compute_capabilities, mark.precision, mark.source) == (
        ("8.0", "8.9", "12.0"),
        "fp16",
        "model.fp16.onnx",
    )
    assert mark.half_share >= 0.99


@pytest.mark.parametrize(("command", "options"), [("export", ("--engine", "none")), ("parity", ("--certify",))])
def test_a_machine_with_cpu_runtimes_alone_is_certified(
    from_elsewhere: Path, command: str, options: tuple[str, ...]
) -> None:
    before = Bundle.open(from_elsewhere)
    assert select(before, precision="auto").certificate is None
    done = run(command, "--model", from_elsewhere, "-b", "8", *options, without=KERAS)
    assert done.returncode == 0, done.stderr
    after = Bundle.open(from_elsewhere)
    assert unchanged(before, after)
    assert after.digest in done.stdout
    mine = [item for item in certificates(after) if item.device_class != "cpu-elsewhere"]
    assert {item.precision for item in mine} >= {"fp32", "fp16", "int8"}
    assert all(item.reference.startswith("keras 3.") for item in mine)
    assert select(after, precision="auto").certificate in mine


def test_the_keras_version_is_known_from_the_golden_tiles(exported_root: Path) -> None:
    index = json.loads((exported_root / INDEX).read_text())
    write_json(exported_root / INDEX, {**index, "reference": "keras 9.9"})
    for name in ("certificates", "engines"):
        for file in (exported_root / name).glob("*"):
            file.unlink()
    seal(exported_root)
    assert run("parity", "--certify", "--model", exported_root, without=KERAS).returncode == 0
    assert {item.reference for item in certificates(Bundle.open(exported_root))} == {"keras 9.9"}


def test_a_bundle_that_knows_no_reference_is_told_so(exported_root: Path) -> None:
    for file in (exported_root / "certificates").glob("*"):
        file.unlink()
    seal(exported_root)
    done = run("parity", "--certify", "--model", exported_root, without=KERAS)
    assert done.returncode == 1
    assert "does not say what answered its golden tiles" in done.stderr.splitlines()[-1]


def test_answers_that_left_the_gate_exit_4_and_are_on_record(from_elsewhere: Path) -> None:
    index = json.loads((from_elsewhere / INDEX).read_text())
    index["tiles"][-1]["probabilities"].reverse()
    write_json(from_elsewhere / INDEX, index)
    seal(from_elsewhere)
    done = run("parity", "--certify", "--model", from_elsewhere, without=KERAS)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: not certified, ")
    mine = [item for item in certificates(Bundle.open(from_elsewhere)) if item.device_class != "cpu-elsewhere"]
    assert mine
    assert not any(item.passed for item in mine)


def test_graphs_can_be_kept_where_keras_is(from_elsewhere: Path) -> None:
    before = Bundle.open(from_elsewhere)
    done = run("export", from_elsewhere, "--keep-graphs", "--engine", "none", without=())
    assert done.returncode == 0, done.stderr
    assert "converting" not in done.stderr
    assert unchanged(before, Bundle.open(from_elsewhere))


def test_what_only_keras_can_make_is_named(exported_root: Path, bundle_root: Path) -> None:
    (exported_root / "model.fp16.onnx").unlink()
    seal(exported_root)
    asked = run("export", exported_root, "--fp16", without=KERAS)
    assert (asked.returncode, asked.stderr.splitlines()[-1]) == (
        1,
        "error: the bundle has no model.fp16.onnx, and to make it tensorflow, keras, tf2onnx, onnx are missing: "
        "pip install '.[export]'",
    )
    kept = run("export", exported_root, "--fp16", "--keep-graphs", without=())
    assert (kept.returncode, "has no model.fp16.onnx" in kept.stderr) == (1, True)
    never_exported = run("parity", "--certify", "--model", bundle_root, without=KERAS)
    assert (never_exported.returncode, "has no model.onnx" in never_exported.stderr) == (1, True)


def test_a_machine_without_any_runtime_is_told_what_to_install(exported_root: Path) -> None:
    done = run("parity", "--certify", "--model", exported_root, without=(*KERAS, *CPU_RUNTIMES))
    assert done.returncode == 1
    assert "no runtime is here to certify: pip install" in done.stderr.splitlines()[-1]


def test_certifying_takes_no_options_of_comparing(exported_root: Path) -> None:
    done = run("parity", "--certify", "--model", exported_root, "--atol", "0.1", without=())
    assert done.returncode == 2
    assert "--certify takes" in done.stderr.splitlines()[-1]


def test_a_certificate_of_this_machine_is_replaced(exported_root: Path) -> None:
    before = certificates(Bundle.open(exported_root))
    assert run("parity", "--certify", "--model", exported_root, without=KERAS).returncode == 0
    after = certificates(Bundle.open(exported_root))
    assert [item.covers for item in after] == [item.covers for item in before]
