"""A bundle can be opened after a crash at any point of an export's last step."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cervix_engine.bundle.bundle import Bundle
from cervix_engine.bundle.certificate import Certificate
from cervix_engine.errors import ContractError, ExportError
from cervix_engine.files import sha256_file
from cervix_export.publish import is_exported, publish, staging_folder


class PowerCutError(Exception):
    """Stands for the power going out."""


def staged_in(folder: Path, bundle: Bundle, *names: str) -> Bundle:
    for name in names:
        (folder / name).write_bytes(b"new " + name.encode())
    return replace(bundle, root=folder, files={name: sha256_file(folder / name) for name in names})


def core(bundle: Bundle) -> set[str]:
    return {name for name in bundle.files if not is_exported(name)}


@pytest.mark.parametrize(
    ("name", "exported"),
    [
        ("model.onnx", True),
        ("model.fp16.onnx", True),
        ("model.int8.onnx", True),
        ("certificates/model.onnx.onnxruntime-cpu.fp32.json", True),
        ("engines/h100-tensorrt-fp16.engine", True),
        ("model.keras", False),
        ("contract.json", False),
        ("golden/00000.tile", False),
        ("training/notes.onnx", False),
    ],
)
def test_what_exports_make_is_told_by_name(name: str, exported: bool) -> None:
    assert is_exported(name) == exported


def test_new_files_replace_all_that_an_earlier_export_made(exported_root: Path) -> None:
    bundle = Bundle.open(exported_root)
    assert "model.fp16.onnx" in bundle
    with staging_folder(exported_root) as staging:
        now = publish(bundle, staged_in(staging, bundle, "model.onnx"), certificates=[])
    assert set(now.files) == core(bundle) | {"model.onnx"}
    assert now.read("model.onnx") == b"new model.onnx"
    assert not (exported_root / "model.fp16.onnx").exists()
    assert not list((exported_root).rglob("certificates/*"))
    assert Bundle.open(exported_root).digest == now.digest


def crash_at_once() -> Iterator[Certificate]:
    raise PowerCutError
    yield


def test_a_crash_between_files_and_manifest_leaves_a_bundle_without_them(exported_root: Path) -> None:
    bundle = Bundle.open(exported_root)
    with pytest.raises(PowerCutError), staging_folder(exported_root) as staging:
        publish(bundle, staged_in(staging, bundle, "model.onnx"), certificates=crash_at_once())
    assert set(Bundle.open(exported_root).files) == core(bundle)


def test_a_failure_between_two_files_leaves_a_bundle_without_them(exported_root: Path) -> None:
    bundle = Bundle.open(exported_root)
    with staging_folder(exported_root) as staging:
        staged = staged_in(staging, bundle, "model.onnx", "model.fp16.onnx")
        (staging / "model.fp16.onnx").unlink()
        with pytest.raises(FileNotFoundError):
            publish(bundle, staged, certificates=[])
    assert set(Bundle.open(exported_root).files) == core(bundle)


def test_a_file_that_changed_meanwhile_does_not_become_part_of_the_bundle(bundle_root: Path) -> None:
    bundle = Bundle.open(bundle_root)
    (bundle_root / "contract.json").write_text("{}")
    with staging_folder(bundle_root) as staging, pytest.raises(ContractError, match=r"contract\.json was altered"):
        publish(bundle, staged_in(staging, bundle, "model.onnx"), certificates=[])


def test_a_stray_file_does_not_become_part_of_the_bundle(bundle_root: Path) -> None:
    bundle = Bundle.open(bundle_root)
    (bundle_root / "notes.txt").write_text("mine")
    with staging_folder(bundle_root) as staging:
        now = publish(bundle, staged_in(staging, bundle, "model.onnx"), certificates=[])
    assert "notes.txt" not in now
    assert (bundle_root / "notes.txt").exists()


def test_two_exports_at_once_are_one_too_many(bundle_root: Path) -> None:
    with staging_folder(bundle_root), pytest.raises(ExportError, match="another export"), staging_folder(bundle_root):
        pass


def test_a_killed_exports_leftovers_are_cleared(bundle_root: Path) -> None:
    with staging_folder(bundle_root) as staging:
        place = staging
    place.mkdir()
    (place / "model.onnx").write_bytes(b"half")
    with staging_folder(bundle_root) as staging:
        assert list(staging.iterdir()) == []
    assert not place.exists()


def test_staging_never_becomes_part_of_the_bundle(exported: tuple[Bundle, subprocess.CompletedProcess[str]]) -> None:
    assert not [name for name in exported[0].files if name.startswith(".")]
    assert not list(exported[0].root.rglob("*.tmp"))
